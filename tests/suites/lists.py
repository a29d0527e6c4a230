"""The reviewed lists: what differs from a direct connection, test by test, and why. One file for each suite and mode.

    # a comment
    test: NAME
    reason: why it differs, in one line
    -a line that a direct connection has
    +a line that the router has instead

A test whose changed lines are not the same in each run has `lines: vary` instead of them; if it differs in some runs only,
because it needs two sessions to meet on one connection, `lines: vary or none`.
"""
from dataclasses import dataclass, field

from servers import ROOT

DIRECTORY = ROOT / "tests/suites"
VARY = "lines: vary"
VARY_OR_NONE = "lines: vary or none"


@dataclass
class Entry:
    reason: str = ""
    lines: list = field(default_factory=list)
    kind: str = ""  # VARY or VARY_OR_NONE, if it has no lines


def path(directory, suite, mode):
    return directory / f"{suite}.{mode}.list"


def read(suite, mode, directory=DIRECTORY):
    """The entries by test."""
    file = path(directory, suite, mode)
    listed, entry = {}, None
    if not file.exists():
        raise SystemExit(f"{file}: there is no such list; an empty one says that nothing differs")
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        key, _, rest = line.partition(": ")
        if key == "test" and rest not in listed:
            entry = listed[rest] = Entry()
        elif entry and key == "reason" and not entry.reason:
            entry.reason = rest
        elif entry and line in (VARY, VARY_OR_NONE) and not entry.lines:
            entry.kind = line
        elif entry and line[0] in "+-" and not entry.kind:
            entry.lines.append(line)
        else:
            raise SystemExit(f"{file}:{number}: not understood, or there twice: {line}")
    for name, entry in listed.items():
        if not entry.reason.strip():
            raise SystemExit(f"{file}: {name} has no reason")
    return listed


def faults(suite, mode, listed, found):
    """Differences that are not on the list, and listed ones that are gone."""
    problems = []
    for name, lines in found.items():
        if name not in listed:
            problems.append(f"{suite} in mode {mode}: {name} differs from direct and is not on the list:\n" + shown(lines))
        elif not listed[name].kind and listed[name].lines != lines:
            problems.append(f"{suite} in mode {mode}: {name} differs in another way than its list says:\n" + shown(lines))
    for name, entry in listed.items():
        if name not in found and entry.kind != VARY_OR_NONE:
            problems.append(f"{suite} in mode {mode}: {name} is on the list and does not differ any more")
    return problems


def shown(lines, limit=40):
    rest = [f"… and {len(lines) - limit} lines"] if len(lines) > limit else []
    return "\n".join("    " + line for line in lines[:limit] + rest)


def propose(directory, suite, mode, listed, found):
    directory.mkdir(parents=True, exist_ok=True)
    text = []
    for name, lines in found.items():
        entry = listed.get(name, Entry())
        text += [f"test: {name}", f"reason: {entry.reason}", *([entry.kind] if entry.kind else lines), ""]
    path(directory, suite, mode).write_text("\n".join(text))
