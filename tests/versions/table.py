"""The table in docs/compatibility.md, between its markers: one row for each combination, renewed row by row."""
from typing import NamedTuple

from combinations import Combination
from programs import ROOT

PAGE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- versions: by `make test-versions` -->", "<!-- versions end -->"
HEADER = ["PostgreSQL", "Patroni", "etcd", "etcd's users", "on", "longest pause", "result"]


class Row(NamedTuple):
    postgres: str
    patroni: str
    etcd: str
    users: str
    date: str
    pause: str
    result: str

    def combination(self):
        """Which one it is of: `17.2` is 17, `4.1.5` is 4.1, `19rc1` is 19."""
        major = lambda version, parts: ".".join(version.split(".")[:parts])
        return Combination(major(self.postgres, 1).split("rc")[0].split("beta")[0], major(self.patroni, 2), major(self.etcd, 2),
                           "auth" if self.users == "yes" else "noauth")  # fmt: skip


def line(cells):
    return f"| {' | '.join(cells)} |"


def rows(text):
    """Those of a table."""
    lines = text.strip().splitlines()[2:]
    return [Row(*(cell.strip() for cell in text.strip("|").split("|"))) for text in lines]


def render(table):
    return "\n".join([line(HEADER), line(["---"] * len(HEADER)).replace(" ", ""), *map(line, table)])


def renewed(text, new, order):
    """TEXT with NEW rows in place of older ones of the same combinations, and without those that are not in ORDER."""
    before, rest = text.split(BEGIN)
    old, after = rest.split(END)
    known = {row.combination(): row for row in [*rows(old), *new]}
    return f"{before}{BEGIN}\n\n{render([known[key] for key in order if key in known])}\n\n{END}{after}"


def write(new, order):
    PAGE.write_text(renewed(PAGE.read_text(), new, order))
