"""The table in docs/compatibility.md, between its markers: one row for each driver, renewed row by row."""
from typing import NamedTuple

from programs import ROOT

PAGE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- clients: by `make test-clients` -->", "<!-- clients end -->"
HEADER = ["driver", "version", "on", "TLS", "channel binding", "cancel", "COPY", "prepared", "pool", "switchover"]


class Row(NamedTuple):
    driver: str
    version: str
    date: str
    tls: str
    binding: str
    cancel: str
    copy: str
    prepared: str
    pool: str
    switchover: str

    def failed(self):
        return any(cell.startswith(("**failed**", "fails")) for cell in self)


def line(cells):
    return f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |"


def rows(text):
    """Those of a table."""
    lines = text.strip().splitlines()[2:]
    return [Row(*(cell.strip() for cell in text.strip("|").split("|"))) for text in lines]


def render(table):
    return "\n".join([line(HEADER), line(["---"] * len(HEADER)).replace(" ", ""), *map(line, table)])


def renewed(text, new, order):
    """TEXT with NEW rows in place of older ones of the same drivers, and without drivers that are not in ORDER."""
    before, rest = text.split(BEGIN)
    old, after = rest.split(END)
    known = {row.driver: row for row in [*rows(old), *new]}
    return f"{before}{BEGIN}\n\n{render([known[name] for name in order if name in known])}\n\n{END}{after}"


def write(new, order):
    PAGE.write_text(renewed(PAGE.read_text(), new, order))
