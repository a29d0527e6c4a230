"""PostgreSQL's own suites: pg_regress, the isolation tests and libpq_pipeline, from the source of the server's version."""
import difflib
import os
import re
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from servers import HOST, PASSWORD, PG_BIN, USER, as_postgres, fail


# The isolation tester finds a session that waits for a lock by the process id of its login, which in
# a pool is not that of its server process. Changed, it finds the session by the application_name
# that it has given it: in all runs, direct ones too.
BY_NAME = [
    ("src/test/isolation/isolationtester.c", 'conns[i].backend_pid_str = psprintf("%d", conns[i].backend_pid);',
     'conns[i].backend_pid_str = pg_strdup(PQgetvalue(res, 0, 0));'),
    ("src/test/isolation/isolationtester.c", '"SELECT pg_catalog.pg_isolation_test_session_is_blocked($1, \'{");',
     '"SELECT coalesce(bool_or(pg_catalog.pg_isolation_test_session_is_blocked(a.pid, "\n'
     '"ARRAY(SELECT b.pid FROM pg_catalog.pg_stat_get_activity(NULL) b WHERE b.application_name = ANY (\'{");'),
    ("src/test/isolation/isolationtester.c", 'appendPQExpBufferStr(&wait_query, "}\')");',
     'appendPQExpBufferStr(&wait_query, "}\')))), false) "\n'
     '"FROM pg_catalog.pg_stat_get_activity(NULL) a WHERE a.application_name = $1 AND a.state <> \'idle\'");'),
]

# So does libpq_pipeline since PostgreSQL 17; changed, it looks at all sessions but the one that asks.
BY_STATE = [
    ("src/test/modules/libpq_pipeline/libpq_pipeline.c", f'"pid = $1 AND {column} = $2"',
     f'"$1 > 0 AND pid <> pg_backend_pid() AND backend_type = \'client backend\' AND {column} = $2"')
    for column in ("state", "wait_event")
]


@dataclass(frozen=True)
class Release:
    """A version of PostgreSQL: `server` is its directory of programs, or None if its server is built as well."""

    version: str
    sha256: str
    server: Path | None
    # What is changed in its files.
    changes: tuple
    configure: tuple = ()

    @property
    def source(self):
        major = self.version.split(".")[0]
        return {
            "urls": [
                f"http://deb.debian.org/debian/pool/main/p/postgresql-{major}/postgresql-{major}_{self.version}.orig.tar.bz2",
                f"https://ftp.postgresql.org/pub/source/v{self.version}/postgresql-{self.version}.tar.bz2",
            ],
            "sha256": self.sha256,
        }


POSTGRESQL_15 = Release("15.18", "11df0df97fe3ea4ba9a791faaf39cee1d2fe571e78885b5b55d8517d27c323b4", PG_BIN, (*BY_NAME,))
# No package of Debian's stable release has it.
POSTGRESQL_18 = Release("18.6", "555610c24d53e4316da5b7d3fc25c279d96856d5e0e23ee308c328c5fa881d9f", None, (*BY_NAME, *BY_STATE), ("--without-icu",))
# Seconds for a suite. It takes minutes, but a pool that mixes sessions can make a test endless.
LONGEST = 600
BUILT = ["src/port", "src/common", "src/interfaces/libpq", "src/test/regress", "contrib/spi", "src/test/isolation", "src/test/modules/libpq_pipeline"]

def prepare(cache, release):
    """The unpacked source with what the suites need built in it, and the directory of its server's programs; once for each version."""
    tree = cache.unpacked(release.source)
    installed = tree / "installed"
    programs = release.server or installed / "bin"
    if cache.made(tree):
        return tree, programs
    for name, before, after in release.changes:
        file = tree / name
        text = file.read_text()
        if text.count(before) != 1:
            fail(f"{file} does not have this once: {before}")
        file.write_text(text.replace(before, after))
    log = tree / "suites.log"
    with open(log, "w") as output:
        commands = [["./configure", "--quiet", "--without-readline", "--without-zlib", f"--prefix={installed}", *release.configure]]
        if release.server is None:
            commands += [["make", "-s", "-j", str(os.cpu_count()), "all"], ["make", "-s", "install"]]
        commands += [["make", "-s", "-j", str(os.cpu_count()), "-C", directory, "all"] for directory in BUILT]
        for command in commands:
            print("suites: PostgreSQL's source:", " ".join(command), flush=True)
            if subprocess.run(command, cwd=tree, stdout=output, stderr=output, stdin=subprocess.DEVNULL).returncode != 0:
                fail(f"{' '.join(command)} failed. The end of {log}:\n" + log.read_text(errors="replace")[-2000:])
    cache.finish(tree)
    return tree, programs


def environment(servers):
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PGPASSWORD": PASSWORD,
        "PGUSER": USER,
        "PGHOST": HOST,
        "PGPORT": str(servers.port),
        "PGSSLMODE": "disable",
        "LC_ALL": "C",
        # A step that waits for ever is one whose session the tester does not see blocked.
        "PGISOLATIONTIMEOUT": "60",
    }


class PgRegress:
    name, release, with_pgbouncer = "pg_regress", POSTGRESQL_15, True
    server_settings = []
    directory, program, database = "regress", "pg_regress", "regression"

    def __init__(self, cache):
        self.version = self.release.version
        self.tree, self.programs = prepare(cache, self.release)
        self.suite = self.tree / "src/test" / self.directory

    def arguments(self):
        return [f"--dlpath={self.suite}", f"--schedule={self.suite}/parallel_schedule"]

    def run(self, servers, output):
        """What each test answered: `ok`, or its output if no expected file has it."""
        make_database(servers, self.database)
        return regress(servers, output, self.suite / self.program, [f"--inputdir={self.suite}", f"--dbname={self.database}", *self.arguments()])

    @staticmethod
    def is_good(outcome):
        return outcome == "ok"

    def changed(self, name, before, after):
        expected = (self.suite / "expected" / f"{name}.out").read_text(errors="replace")
        lines = changed_lines(*(expected if text == "ok" else text for text in (before, after)))
        return [re.sub(r"PID [0-9]+", "PID N", line) for line in lines]


class Isolation(PgRegress):
    name, with_pgbouncer = "isolation", False
    directory, program, database = "isolation", "pg_isolation_regress", "isolation_regression"

    def arguments(self):
        return [f"--schedule={self.suite}/isolation_schedule", "prepared-transactions", "prepared-transactions-cic"]


class LibpqPipeline:
    name, release, with_pgbouncer = "libpq_pipeline", POSTGRESQL_15, True
    server_settings = []
    # As the suite's own 001_libpq_pipeline.pl has it: in the others' traces the order is by chance.
    TRACED = {"disallowed_in_pipeline", "multi_pipelines", "nosync", "pipeline_abort", "pipeline_idle", "prepared", "simple_pipeline", "singlerow", "transaction"}

    def __init__(self, cache):
        self.version = self.release.version
        self.tree, self.programs = prepare(cache, self.release)

    def run(self, servers, output):
        """Each test's exit code, what it says on standard error, and the messages that its client has sent and got."""
        output.mkdir()
        output.chmod(0o777)
        program = self.tree / "src/test/modules/libpq_pipeline/libpq_pipeline"
        settings = {**environment(servers), "LD_LIBRARY_PATH": str(self.tree / "src/interfaces/libpq")}
        names = subprocess.run([program, "tests"], capture_output=True, text=True, check=True, env=settings).stdout.split()
        outcomes = {}
        for name in names:
            trace = output / f"{name}.trace"
            options = ["-t", trace] if name in self.TRACED else []
            command = [str(part) for part in [program, "-r", "700", *options, name, "dbname=postgres"]]
            try:
                done = subprocess.run(command, cwd=output, env=settings, capture_output=True, text=True, timeout=120, **as_postgres())
            except subprocess.TimeoutExpired:
                outcomes[name] = "no end\n"
                continue
            said = done.stderr if done.returncode else ""
            outcomes[name] = f"exit code {done.returncode}\n{said}{trace.read_text() if trace.exists() else ''}"
        return outcomes

    @staticmethod
    def is_good(outcome):
        return outcome.startswith("exit code 0")

    @staticmethod
    def changed(_name, before, after):
        return changed_lines(before, after)


class PgRegress18(PgRegress):
    name, release = "pg_regress-18", POSTGRESQL_18


class Isolation18(Isolation):
    name, release = "isolation-18", POSTGRESQL_18


class LibpqPipeline18(LibpqPipeline):
    name, release = "libpq_pipeline-18", POSTGRESQL_18


def make_database(servers, name):
    """As pg_regress makes it. Made directly, since a pool may still be connected to one that it is to drop."""
    servers.psql(f"CREATE DATABASE {name} TEMPLATE = template0")
    for setting in ("lc_messages = 'C'", "lc_monetary = 'C'", "lc_numeric = 'C'", "lc_time = 'C'", "bytea_output = 'hex'", "timezone_abbreviations = 'Default'"):
        servers.psql(f"ALTER DATABASE {name} SET {setting}")


def regress(servers, output, program, arguments):
    output.mkdir()
    os.chmod(output, 0o777)
    command = [program, "--use-existing", f"--outputdir={output}", f"--bindir={servers.programs}", f"--host={HOST}", f"--port={servers.port}", f"--user={USER}", *arguments]
    with open(output / "stdout", "w") as log:
        child = subprocess.Popen([str(part) for part in command], cwd=output, env=environment(servers), stdout=log, stderr=log,
                                 stdin=subprocess.DEVNULL, start_new_session=True, **as_postgres())
        try:
            child.wait(LONGEST)
        except subprocess.TimeoutExpired:
            pass  # what has no result by then counts as different
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    text = (output / "stdout").read_text(errors="replace")
    found = {}
    for name, result in results_of(text):
        results = output / "results" / f"{name}.out"
        if result == "ok":
            found[name] = "ok"
        else:
            found[name] = results.read_text(errors="replace") if results.exists() else "no output"
    if not found:
        fail(f"{program.name} through {servers.target} has no results:\n{text[-2000:]}")
    return found


def results_of(text):
    """Each test's name and whether it is `ok`, from what pg_regress prints: as TAP since PostgreSQL 16."""
    old = re.findall(r"^(?:test|    ) ?\s*(\S+)\s+\.\.\. (ok|FAILED|failed \(ignored\))", text, re.M)
    tap = re.findall(r"^(ok|not ok) \d+\s+[-+] (\S+)", text, re.M)
    return old + [(name, result) for result, name in tap]


def changed_lines(before, after):
    """What differs, without its place: the place of a line says nothing about the difference."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return [line for line in list(lines)[2:] if not line.startswith("@@")]
