"""Which combinations of versions are run: a set in which each pair of versions occurs."""
import itertools
from typing import NamedTuple

POSTGRES = ["14", "15", "16", "17", "18", "19"]
PATRONI = ["3.0", "3.3", "4.0", "4.1"]
ETCD = ["3.4", "3.5"]
USERS = ["noauth", "auth"]  # whether etcd asks for a user and a password


class Combination(NamedTuple):
    postgres: str
    patroni: str
    etcd: str
    users: str

    def __str__(self):
        return "/".join(self)


def works(combination):
    """Without a router. Patroni 3.0 asks for etcd's list of members without its token, which etcd 3.5 refuses."""
    return combination[1:] != ("3.0", "3.5", "auth")


def parts(combination, size):
    """Its pairs, or triples: each with the places of its versions."""
    return set(itertools.combinations(enumerate(combination), size))


def covering():
    """In order: again and again the combination with most pairs, and among those with most triples, that are in none
    before it."""
    candidates = [row for row in map(Combination._make, itertools.product(POSTGRES, PATRONI, ETCD, USERS)) if works(row)]
    missing = {size: set().union(*(parts(row, size) for row in candidates)) for size in (2, 3)}
    chosen = []
    while missing[2]:
        best = max(candidates, key=lambda row: [len(parts(row, size) & missing[size]) for size in (2, 3)])
        for size in missing:
            missing[size] -= parts(best, size)
        chosen.append(best)
    return sorted(chosen, key=candidates.index)


def has_standby_cluster(combination):
    """Each version of Patroni with one of PostgreSQL."""
    return combination[:2] in zip(["14", "16", "18", "19"], PATRONI, strict=True)


def has_citus(combination):
    """Those where PostgreSQL can be told to find an extension elsewhere: Citus's place is taken by one of the tests."""
    return combination.postgres == "18"
