"""Runs the router before real clusters of each version: see `scripts/test-versions`."""
import argparse
import contextlib
import datetime
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "scripts"))
import checks  # noqa: E402
import cluster  # noqa: E402
import combinations  # noqa: E402
import programs  # noqa: E402
import table  # noqa: E402
from citus import GROUPS, Groups  # noqa: E402
from router import Router  # noqa: E402

NET = int(os.environ.get("TRUNKLINE_TEST_NET", "1"))
SERVERS, STANDBY, ROUTER, STANDBY_ROUTER = (f"127.0.{NET}.{last}" for last in (11, 31, 5, 6))
ETCD_PORT = 13378 + NET
STANDBY_ETCD_PORT = 14378 + NET
# All of one combination. It takes about a minute.
LIMIT = 480


class TooLong(Exception):
    """One combination has taken all of its time."""


@contextlib.contextmanager
def limited(seconds):
    def end(*_):
        raise TooLong(f"not done within {seconds} s")

    signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


@contextlib.contextmanager
def servers(combination, directory, name, base, kind=cluster.Cluster, **more):
    """A cluster of these versions, for as long as this is entered."""
    options = {
        "name": name, "base": base, "nodes": 2, "etcd_port": ETCD_PORT, "ttl": 20, "loop_wait": 2, "patroni": combination.patroni,
        "postgres": str(programs.postgres(combination.postgres)), "etcd": str(programs.etcd(combination.etcd)),
        "etcd_auth": combination.users == "auth", "hba": ["host all app_md5 127.0.0.0/8 md5"],
    }  # fmt: skip
    running = kind(directory, **(options | more))
    running.up()  # takes down what it has begun if it fails
    try:
        yield running
    finally:
        running.down()


def check(name, function, *arguments):
    """Runs one check: its note and its fault, of which one is empty."""
    begun = time.monotonic()
    try:
        note, fault = function(*arguments) or "", ""
    except TooLong:
        raise
    except Exception as error:
        note, fault = "", f"{type(error).__name__}: {error}".strip()
    print(f"  {'FAILED' if fault else 'ok':6} {name:22} {time.monotonic() - begun:5.1f} s  {fault or note}", flush=True)
    return note, fault


def run_all(combination, program, directory, results):
    """All checks of one combination; RESULTS gets each one's note and fault by its name."""
    with servers(combination, directory / "c", "versions", SERVERS) as running:
        with Router(program, running.describe(), directory / "r", ROUTER) as router:
            router.await_ready("rw", "ro")
            place = checks.Place(running, router)
            checks.set_up(place)
            for function in checks.CHECKS:
                results[function.__name__] = check(function.__name__, function, place)
            if combinations.has_standby_cluster(combination):
                results["standby_cluster"] = check("standby_cluster", run_standby, combination, program, directory, place)
    if combinations.has_citus(combination):
        results["citus"] = check("citus", run_citus, combination, program, directory)


def run_standby(combination, program, directory, place):
    options = {"nodes": 1, "etcd_port": STANDBY_ETCD_PORT, "standby_of": place.servers.leader().address}
    with servers(combination, directory / "s", "standby", STANDBY, **options) as running:
        with Router(program, running.describe(), directory / "sr", STANDBY_ROUTER) as router:
            router.await_ready("ro")
            checks.standby_cluster(place, checks.Place(running, router))


def run_citus(combination, program, directory):
    with servers(combination, directory / "g", "citus", SERVERS, Groups, nodes=len(GROUPS)) as groups:
        groups.set_up_roles(groups.leader_of(1))  # `up` has done it in the coordinator's group
        for number in sorted(set(GROUPS)):
            with Router(program, groups.group(number), directory / f"g{number}", ROUTER) as router:
                router.await_ready("rw")
                checks.one_group(groups, number, router)
        checks.all_groups(Router(program, groups.describe(), directory / "gr", ROUTER))


def run(combination, program, base, keep):
    """One combination: its row."""
    versions = programs.full_versions(combination)
    print(f"{combination}: PostgreSQL {versions[0]}, Patroni {versions[1]}, etcd {versions[2]}", flush=True)
    directory = base / "run"
    directory.mkdir(mode=0o711)
    directory.chmod(0o711)
    results = {}
    try:
        with limited(LIMIT):
            run_all(combination, program, directory, results)
    except Exception as error:
        print(f"  FAILED {type(error).__name__}: {error}", flush=True)
        results["the run itself"] = "", str(error)
    finally:
        take_down(directory)
    if keep and any(fault for _, fault in results.values()):
        keep_routers(directory, keep / str(combination).replace("/", "-"))
    shutil.rmtree(directory)
    return row(combination, versions, results)


def keep_routers(directory, place):
    """Their configurations and logs."""
    for log in directory.glob("*/log"):
        shutil.copytree(log.parent, place / log.parent.name, dirs_exist_ok=True)


def take_down(directory):
    """What is left of clusters whose own end was interrupted."""
    for marker in directory.glob(f"*/{cluster.MARKER}"):
        cluster.Cluster(marker.parent).down()


def row(combination, versions, results):
    failed = [name.replace("_", " ") for name, (_, fault) in results.items() if fault]
    notes = [results.get(f"switchover_by_{who}", ("", ""))[0] for who in ("patroni", "router")]
    pause = " / ".join(note.rpartition("longest pause ")[2] or "–" for note in notes)
    more = {"standby_cluster": ", standby cluster", "citus": ", Citus groups"}
    extra = "".join(text for name, text in more.items() if name in results)
    return table.Row(*versions, "yes" if combination.users == "auth" else "no", datetime.date.today().isoformat(), pause,
                     f"**failed**: {', '.join(failed)}" if failed else f"ok{extra}")  # fmt: skip


def arguments(chosen):
    parser = argparse.ArgumentParser(prog="scripts/test-versions", description=__doc__)
    parser.add_argument("--list", action="store_true", help="the combinations that are run, and no more")
    parser.add_argument("--only", metavar="COMBINATION", action="append", help="this one, such as 17/4.0/3.5/auth; may be repeated")
    parser.add_argument("--write", action="store_true", help="write the rows into docs/compatibility.md")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="keep the router's files of combinations that fail")
    given = parser.parse_args()
    names = {str(combination): combination for combination in chosen}
    if unknown := [name for name in given.only or [] if name not in names]:
        parser.error(f"not among the combinations: {', '.join(unknown)}; --list shows them")
    given.chosen = [names[name] for name in given.only] if given.only else chosen
    return given


def main():
    covering = combinations.covering()
    given = arguments(covering)
    if given.list:
        print("\n".join(map(str, covering)))
        return
    # What was started must end with this, also when something ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    base = Path(tempfile.mkdtemp(prefix="versions.", dir=os.environ.get("TRUNKLINE_TEST_DIR")))
    base.chmod(0o711)
    done = []
    try:
        for combination in given.chosen:
            done.append(run(combination, os.environ["TRUNKLINE"], base, given.keep))
            if given.write:
                table.write(done[-1:], covering)
    finally:
        shutil.rmtree(base)
    print(table.render(done))
    failed = sum(result.result.startswith("**failed**") for result in done)
    print(f"{len(done) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    try:
        main()
    except programs.Missing as error:
        sys.exit(f"test-versions: {error}")
