"""Runs each driver before a real cluster, directly and through the router: see `scripts/test-clients`."""
import argparse
import collections
import contextlib
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[1:1] = [str(HERE.parent.parent / "scripts"), str(HERE.parent / "versions")]
import cluster  # noqa: E402
import table  # noqa: E402
from drivers import DRIVERS, GROUPS, SUITE  # noqa: E402
from router import PORTS, Router  # noqa: E402

NET = int(os.environ.get("TRUNKLINE_TEST_NET", "1"))
SERVERS, ROUTER = f"127.0.{NET}.11", f"127.0.{NET}.5"
CHECKS = ["tls", "binding", "cancel", "copy", "prepared", "pool"]
DIRECT = "direct"
ROUTES = [DIRECT, "read-write", "pooled", "tracked"]
# A driver's checks at one place, and all of its writing.
LIMIT = 180
SESSION = re.compile(r'session ended .*route=read-write .*channel_binding="(yes|no)"')
TABLES = """
    CREATE TABLE copied (id int8 PRIMARY KEY, words text);
    CREATE TABLE written (writer int, number int);
    CREATE TABLE counted (number int8);
    INSERT INTO counted VALUES (0);
    ALTER TABLE copied OWNER TO app;
    ALTER TABLE written OWNER TO app;
    ALTER TABLE counted OWNER TO app;
"""


class Place:
    """The cluster, the router before it, and a directory for what the programs read."""

    def __init__(self, servers, router, directory):
        self.servers = servers
        self.router = router
        self.directory = directory
        self.stop = directory / "stop"
        self.ca = directory / "servers-ca.crt"
        shutil.copy(servers.describe()["ca_file"], self.ca)

    def environment(self, driver, route):
        if route == DIRECT:
            where = {"HOST": self.servers.leader().address, "PORT": "5432", "CA": str(self.ca)}
        else:
            where = {"HOST": self.router.address, "PORT": str(PORTS[route]), "CA": str(self.router.ca)}
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return kept | driver.environment | where | {"STOP": str(self.stop), "ROUTE": route}

    def on_leader(self, query):
        return self.servers.sql(self.servers.leader(), query, database="app")


def lines(text):
    """What a program has said; what is no JSON may come from a library."""
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            if isinstance(said := json.loads(line), dict):
                yield said


def within(place, command):
    return [str(part).replace("{scratch}", str(place.directory)) for part in command]


def command(driver, place, what):
    return within(place, [*driver.command, what, *driver.more])


def build(driver, place):
    if driver.build:
        result = subprocess.run(within(place, driver.build), env=os.environ | driver.environment, capture_output=True, text=True, timeout=600)
        if result.returncode:
            raise cluster.ClusterError(f"{driver.name} cannot be built: {result.stderr[-1000:]}")


def said_of(driver, place, route):
    """The version, and each check's result and note, at ROUTE."""
    environment = place.environment(driver, route)
    try:
        result = subprocess.run(command(driver, place, "checks"), env=environment, cwd=place.directory, stdin=subprocess.DEVNULL,
                                capture_output=True, text=True, timeout=LIMIT)  # fmt: skip
        out, end = result.stdout, f"ended with {result.returncode}: {result.stderr.strip()[-300:]}"
    except subprocess.TimeoutExpired as error:
        out, end = (error.stdout or b"").decode(), f"not done within {LIMIT} s"
    version, found = "?", {}
    for said in lines(out):
        version = said.get("version", version)
        if "check" in said:
            found[said["check"]] = said["result"], said["note"]
    if not found:
        raise cluster.ClusterError(f"{driver.name} at {route}: the program {end}")
    return version, {check: found.get(check, ("failed", f"the program {end}")) for check in CHECKS}


def bound(place, offset):
    """How many sessions on the read-write port since OFFSET in the log were bound to their certificate, and were not."""
    seen = None
    while seen != (seen := place.router.log.stat().st_size):
        time.sleep(0.3)
    counts = collections.Counter(SESSION.findall(place.router.log.read_text(errors="replace")[offset:]))
    return counts["yes"], counts["no"]


def cell(check, results):
    """What the table says of CHECK, and whether it is a fault of the router's. RESULTS has result and note of each route."""
    direct, notes = results[DIRECT], [note for _, note in results.values() if note]
    failed = [route for route, (result, _) in results.items() if result == "failed" and route != DIRECT]
    if failed and direct[0] == "failed":
        return f"fails, the same directly: {notes[0][:120]}"
    if failed:
        return f"**failed** ({', '.join(failed)})"
    if direct[0] == "failed":
        return "ok, not directly"
    if direct[0] == "cannot":
        return f"no: {direct[1]}"
    return f"ok: {', '.join(dict.fromkeys(notes))}" if notes else "ok"


def binding_cell(said, yes, no):
    """SAID is of requiring it. It may be used without being required."""
    if said.startswith("no") and yes and not no:
        return f"by itself; {said.removeprefix('no: ')}"
    if said == "ok" and not no:
        return "by itself, can be required"
    if said.startswith("ok: "):
        return said.removeprefix("ok: ") if yes else "**failed** (not used)"
    return "can be required" if said == "ok" else said


def checked(driver, place):
    """The version, and a cell for each check."""
    by_route = {}
    for route in ROUTES:
        offset = len(place.router.log.read_text(errors="replace"))
        version, by_route[route] = said_of(driver, place, route)
        if route == "read-write":
            yes, no = bound(place, offset)
    cells = {}
    for check in CHECKS:
        results = {route: by_route[route][check] for route in ROUTES}
        cells[check] = cell(check, results)
        for route, (result, note) in results.items():
            if result == "failed":
                print(f"    {check} at {route}: {' '.join(note.split())[:400]}", flush=True)
    cells["binding"] = binding_cell(cells["binding"], yes, no)
    return version, cells


# --- the switchover --------------------------------------------------------------------------------------------------


def switchover(driver, place):
    """What clients notice of `trunkline switchover` while they write, and whether the table has what was acknowledged."""
    place.on_leader("TRUNCATE written")
    place.stop.unlink(missing_ok=True)
    before = place.servers.leader()
    out = place.directory / "written"
    with open(out, "w") as file, open(place.directory / "errors", "w") as errors:
        program = subprocess.Popen(command(driver, place, "writes"), env=place.environment(driver, "tracked"), cwd=place.directory,
                                   stdin=subprocess.DEVNULL, stdout=file, stderr=errors)  # fmt: skip
    try:
        await_writes(place, program, 40)
        order = [place.router.program, "switchover", "--yes", "-c", place.router.configuration]
        result = subprocess.run(order, capture_output=True, text=True, timeout=90)
        if result.returncode:
            raise cluster.ClusterError(f"the switchover ended with {result.returncode}: {result.stdout}{result.stderr}")
        await_writes(place, program, 40)
    finally:
        place.stop.touch()
        try:
            program.wait(60)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()
    after = place.servers.wait(90)
    place.router.await_ready("rw", "ro")
    if after is before:
        raise cluster.ClusterError("the leader is the same")
    rows = place.on_leader("SELECT writer, number FROM written").splitlines()
    there = collections.Counter(tuple(map(int, row.split("|"))) for row in rows)
    return verdict(there, list(lines(out.read_text())))


def await_writes(place, program, more):
    """Until the table has so many more rows."""
    count = lambda: int(place.on_leader("SELECT count(*) FROM written"))
    goal = count() + more

    def there():
        if program.poll() is not None:
            raise cluster.ClusterError(f"the program ended with {program.returncode}{cluster.tail(place.directory / 'errors', 5)}")
        return count() >= goal

    cluster.Deadline(60).until(there, "writes", pause=0.2)


def verdict(there, said):
    """What the table says of a switchover. THERE counts each row of the table, SAID is what the program said."""
    acknowledged = collections.Counter(tuple(one["wrote"]) for one in said if "wrote" in one)
    errors = [one["error"] for one in said if "error" in one]
    lost = sum((acknowledged - there).values())
    doubled = sum(count - 1 for count in there.values())
    longest = max(one["seconds"] for one in said if "wrote" in one)
    for error in errors[:4]:
        print(f"    switchover: {error}", flush=True)
    told = f"{len(errors)} errors, {lost} lost, {doubled} doubled"
    print(f"    switchover: {sum(acknowledged.values())} writes, {told}, longest {longest:.1f} s", flush=True)
    return f"**failed**: {told}" if errors or lost or doubled else f"ok, {longest:.1f} s"


# --- all of it -------------------------------------------------------------------------------------------------------


def run(driver, place):
    """One driver: its row."""
    begun = time.monotonic()
    print(driver.name, flush=True)
    try:
        build(driver, place)
        version, cells = checked(driver, place)
    except (cluster.ClusterError, OSError, subprocess.SubprocessError) as error:
        print(f"    {error}", flush=True)
        return None
    try:
        cells["switchover"] = f"no: {driver.stays}" if driver.stays else switchover(driver, place)
    except (cluster.ClusterError, subprocess.SubprocessError, ValueError) as error:
        print(f"    switchover: {error}", flush=True)
        cells["switchover"] = "**failed**"
    row = table.Row(driver.name, version, datetime.date.today().isoformat(), *cells.values())
    print(f"  {table.line(row)} {time.monotonic() - begun:.0f} s", flush=True)
    return row


def run_suite(place):
    """A part of Django's tests, on routes without a pool: whether those that fail are the same directly."""
    print(SUITE.name, flush=True)
    # Those that only a superuser may create; each database of the tests is a copy of this one.
    place.servers.sql(place.servers.leader(), "CREATE EXTENSION bloom", database="template1")
    failed = {}
    for route in (DIRECT, "read-write", "tracked"):
        begun = time.monotonic()
        result = subprocess.run(command(SUITE, place, "suite"), env=place.environment(SUITE, route), cwd=place.directory,
                                capture_output=True, text=True, timeout=1800)  # fmt: skip
        said = next(lines(result.stdout), {"tests": 0, "failed": [], "end": result.stderr[-300:]})
        failed[route] = set(said["failed"]) if said["tests"] else {said["end"]}
        print(f"  {route}: {said['tests']} tests, {len(failed[route])} failed, {time.monotonic() - begun:.0f} s", flush=True)
        for one in sorted(failed[route] - failed.get(DIRECT, set()) if route != DIRECT else failed[route]):
            print(f"    {one}", flush=True)
    return all(found <= failed[DIRECT] for found in failed.values())


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/test-clients", description=__doc__)
    parser.add_argument("groups", metavar="GROUP", nargs="*", help=f"of {', '.join(GROUPS)}; all, if none is named")
    parser.add_argument("--only", metavar="TEXT", action="append", help="drivers whose name has TEXT in it; may be repeated")
    parser.add_argument("--list", action="store_true", help="the drivers that are run, and no more")
    parser.add_argument("--write", action="store_true", help="write the rows into docs/compatibility.md")
    given = parser.parse_args()
    if unknown := set(given.groups) - set(GROUPS):
        parser.error(f"unknown group: {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    given.suite = "django" in (given.groups or GROUPS) and not given.only
    given.chosen = [driver for driver in DRIVERS if driver.group in (given.groups or GROUPS)]
    if given.only:
        given.chosen = [driver for driver in given.chosen if any(text in driver.name for text in given.only)]
    return given


@contextlib.contextmanager
def places():
    """A cluster of two members and the router before it, for as long as this is entered."""
    base = Path(tempfile.mkdtemp(prefix="clients.", dir=os.environ.get("TRUNKLINE_TEST_DIR")))
    base.chmod(0o711)
    options = {"name": "clients", "base": SERVERS, "nodes": 2, "etcd_port": 13378 + NET, "ttl": 20, "loop_wait": 2}
    servers = cluster.Cluster(base / "c", **options)
    try:
        servers.up()
        servers.sql(servers.leader(), TABLES, database="app")
        servers.sql(servers.leader(), "ALTER ROLE app CREATEDB")
        (base / "p").mkdir()
        with Router(os.environ["TRUNKLINE"], servers.describe(), base / "r", ROUTER) as router:
            router.await_ready("rw", "ro")
            yield Place(servers, router, base / "p")
    finally:
        if (base / "c" / cluster.MARKER).exists():
            servers.down()
        shutil.rmtree(base)


def main():
    given = arguments()
    if given.list:
        print("\n".join(f"{driver.group:8} {driver.name}" for driver in given.chosen))
        return
    # What was started must end with this, also when something ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    done = []
    with places() as place:
        for driver in given.chosen:
            if row := run(driver, place):
                done.append(row)
                if given.write:
                    table.write([row], [each.name for each in DRIVERS])
        suite_failed = given.suite and not run_suite(place)
    print(table.render(done))
    passed = sum(not row.failed() for row in done)
    failed = len(given.chosen) - passed + suite_failed
    passed += given.suite and not suite_failed
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
