"""Runs foreign suites direct and through the router, and compares: see `scripts/suites`."""
import argparse
import datetime
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import drivers
import lists
import regress
from cache import Cache
from servers import PG_BIN, PORTS, ROOT, Servers, fail, pgbouncer_program

MODES = ["off", "session", "transaction"]
SUITES = {
    suite.name: suite
    for suite in (
        regress.PgRegress, regress.Isolation, regress.LibpqPipeline,
        regress.PgRegress18, regress.Isolation18, regress.LibpqPipeline18,
        drivers.Psycopg2, drivers.Asyncpg, drivers.Pg8000, drivers.TokioPostgres,
    )
}


def version(command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def run(suite, directory, target):
    """Each test's outcome: equal texts are equal outcomes."""
    place = directory / f"{suite.name}-{target}"
    place.mkdir()
    if os.geteuid() == 0:
        shutil.chown(place, "postgres", "postgres")
    started = time.monotonic()
    with Servers(place, target, suite.server_settings, suite.programs) as servers:
        outcomes = suite.run(servers, place / "output")
    print(f"{suite.name:15} {target:22} {len(outcomes)} tests in {time.monotonic() - started:.0f} s", flush=True)
    shutil.rmtree(place / "data")
    return outcomes


def differences(suite, direct, through):
    """Per test what differs from direct, as changed lines."""
    found = {}
    for name in sorted(direct.keys() | through.keys()):
        before, after = direct.get(name, "not run"), through.get(name, "not run")
        if before != after:
            found[name] = suite.changed(name, before, after)
    return found


def main():
    parser = argparse.ArgumentParser(prog="scripts/suites", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"{', '.join(SUITES)} (all)")
    parser.add_argument("--modes", default=",".join(MODES), help="of the pool, with commas (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the directory with all outputs and logs")
    parser.add_argument("--proposals", metavar="DIR", help="write lists with what was found into DIR, for a review: reasons are kept or empty")
    arguments = parser.parse_args()
    modes = arguments.modes.split(",")
    for given, known in ((arguments.suites, SUITES), (modes, MODES)):
        for name in given:
            if name not in known:
                parser.error(f"unknown: {name}; there are {', '.join(known)}")

    print(datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"), version([PG_BIN / "postgres", "--version"]), flush=True)
    pgbouncer = pgbouncer_program()
    print(version([pgbouncer, "--version"]) if pgbouncer else "no PgBouncer: give it in PGBOUNCER", flush=True)

    # What was started must end with this, also when something ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    base = os.environ.get("TRUNKLINE_TEST_DIR")
    directory = Path(tempfile.mkdtemp(prefix="suites.", dir=base))
    directory.chmod(0o755)
    if os.geteuid() == 0:
        shutil.chown(directory, "postgres", "postgres")
    faults = []
    try:
        cache = Cache()
        for name in arguments.suites or SUITES:
            suite = SUITES[name](cache)
            faults += compare(suite, modes, directory, pgbouncer, arguments.proposals)
    finally:
        if arguments.keep:
            print(f"kept: {directory}")
        else:
            shutil.rmtree(directory)
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        sys.exit(1)


def compare(suite, modes, directory, pgbouncer, proposals):
    direct = run(suite, directory, "direct")
    good = sum(suite.is_good(outcome) for outcome in direct.values())
    print(f"{suite.name} {suite.version}: direct, {good} of {len(direct)} tests passed", flush=True)
    # Tests that cannot run at all are the same everywhere, which says nothing.
    if good < len(direct) * 3 / 4:
        fail("too few of them pass without a router")
    faults = []
    targets = list(modes)
    if suite.with_pgbouncer and pgbouncer:
        targets += [target for target in PORTS if target.startswith("pgbouncer-") and target.removeprefix("pgbouncer-") in modes]
    for target in targets:
        found = differences(suite, direct, run(suite, directory, target))
        print(f"{suite.name} {suite.version}: {target}, {len(found)} of {len(direct)} tests differ from direct: {' '.join(found) or 'none'}", flush=True)
        if target in modes:
            listed = lists.read(suite.name, target)
            faults += lists.faults(suite.name, target, listed, found)
            if proposals:
                lists.propose(Path(proposals), suite.name, target, listed, found)
    return faults


if __name__ == "__main__":
    main()
