"""PostgreSQL's own suites: pg_regress, the isolation tests and libpq_pipeline, from the source of the server's version."""
import difflib
import os
import re
import signal
import subprocess

from servers import HOST, PASSWORD, PG_BIN, USER, as_postgres, fail

VERSION = "15.18"
SOURCE = {
    "urls": [
        f"http://deb.debian.org/debian/pool/main/p/postgresql-15/postgresql-15_{VERSION}.orig.tar.bz2",
        f"https://ftp.postgresql.org/pub/source/v{VERSION}/postgresql-{VERSION}.tar.bz2",
    ],
    "sha256": "11df0df97fe3ea4ba9a791faaf39cee1d2fe571e78885b5b55d8517d27c323b4",
}
# Seconds for a suite. It takes minutes, but a pool that mixes sessions can make a test endless.
LONGEST = 600
BUILT = ["src/port", "src/common", "src/interfaces/libpq", "src/test/regress", "contrib/spi", "src/test/isolation", "src/test/modules/libpq_pipeline"]

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


def prepare(cache):
    """The unpacked source with what the suites need built in it; once for each version."""
    tree = cache.unpacked(SOURCE)
    if cache.made(tree):
        return tree
    for name, before, after in BY_NAME:
        file = tree / name
        text = file.read_text()
        if text.count(before) != 1:
            fail(f"{file} does not have this once: {before}")
        file.write_text(text.replace(before, after))
    log = tree / "suites.log"
    with open(log, "w") as output:
        commands = [["./configure", "--quiet", "--without-readline", "--without-zlib"]]
        commands += [["make", "-s", "-j", str(os.cpu_count()), "-C", directory, "all"] for directory in BUILT]
        for command in commands:
            print("suites: PostgreSQL's source:", " ".join(command), flush=True)
            if subprocess.run(command, cwd=tree, stdout=output, stderr=output, stdin=subprocess.DEVNULL).returncode != 0:
                fail(f"{' '.join(command)} failed. The end of {log}:\n" + log.read_text(errors="replace")[-2000:])
    cache.finish(tree)
    return tree


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
    name, version, with_pgbouncer = "pg_regress", VERSION, True
    server_settings = []
    directory, program, database = "regress", "pg_regress", "regression"

    def __init__(self, cache):
        self.tree = prepare(cache)
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
    name, version, with_pgbouncer = "libpq_pipeline", VERSION, True
    server_settings = []
    # As the suite's own 001_libpq_pipeline.pl has it: in the others' traces the order is by chance.
    TRACED = {"disallowed_in_pipeline", "multi_pipelines", "nosync", "pipeline_abort", "pipeline_idle", "prepared", "simple_pipeline", "singlerow", "transaction"}

    def __init__(self, cache):
        self.tree = prepare(cache)

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
            done = subprocess.run([str(part) for part in [program, "-r", "700", *options, name, "dbname=postgres"]], cwd=output, env=settings,
                                  capture_output=True, text=True, timeout=300, **as_postgres())
            said = done.stderr if done.returncode else ""
            outcomes[name] = f"exit code {done.returncode}\n{said}{trace.read_text() if trace.exists() else ''}"
        return outcomes

    @staticmethod
    def is_good(outcome):
        return outcome.startswith("exit code 0")

    @staticmethod
    def changed(_name, before, after):
        return changed_lines(before, after)


def make_database(servers, name):
    """As pg_regress makes it. Made directly, since a pool may still be connected to one that it is to drop."""
    servers.psql(f"CREATE DATABASE {name} TEMPLATE = template0")
    for setting in ("lc_messages = 'C'", "lc_monetary = 'C'", "lc_numeric = 'C'", "lc_time = 'C'", "bytea_output = 'hex'", "timezone_abbreviations = 'Default'"):
        servers.psql(f"ALTER DATABASE {name} SET {setting}")


def regress(servers, output, program, arguments):
    output.mkdir()
    os.chmod(output, 0o777)
    command = [program, "--use-existing", f"--outputdir={output}", f"--bindir={PG_BIN}", f"--host={HOST}", f"--port={servers.port}", f"--user={USER}", *arguments]
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
    for name, result in re.findall(r"^(?:test|    ) ?\s*(\S+)\s+\.\.\. (ok|FAILED|failed \(ignored\))", text, re.M):
        results = output / "results" / f"{name}.out"
        if result == "ok":
            found[name] = "ok"
        else:
            found[name] = results.read_text(errors="replace") if results.exists() else "no output"
    if not found:
        fail(f"{program.name} through {servers.target} has no results:\n{text[-2000:]}")
    return found


def changed_lines(before, after):
    """What differs, without its place: the place of a line says nothing about the difference."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return [line for line in list(lines)[2:] if not line.startswith("@@")]
