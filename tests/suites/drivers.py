"""The test suites of drivers, from the archives that their authors publish."""
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from servers import HOST, PASSWORD, PG_BIN, USER, as_postgres, fail


class PythonDriver:
    """A suite that pytest runs. The tests are the source archive's; the driver is the wheel of the same version."""

    with_pgbouncer = False
    database, options, settings, server_settings = "postgres", [], {}, []
    programs = PG_BIN

    def __init__(self, cache):
        self.tree = cache.unpacked(self.source)
        self.python = cache.venv(f"{self.name}-{self.version}", self.requirements)

    def run(self, servers, output):
        output.mkdir()
        # Beside nothing else: the archive's own directory of the driver has no compiled parts.
        shutil.copytree(self.tree / self.tests, output / self.tests)
        if os.geteuid() == 0:
            subprocess.run(["chown", "-R", "postgres", output], check=True)
        self.prepare(servers)
        report = output / "report.xml"
        command = [self.python, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=60", f"--junitxml={report}", *self.options, self.tests]
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(output), "LC_ALL": "C.UTF-8", "PGHOST": HOST, "PGPORT": str(servers.port),
            "PGUSER": USER, "PGPASSWORD": PASSWORD, "PGDATABASE": self.database, **self.settings,
        }
        with open(output / "stdout", "w") as log:
            done = subprocess.run([str(part) for part in command], cwd=output, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                  timeout=3600, **as_postgres())
        if done.returncode not in (0, 1) or not report.exists():  # 0: all tests passed, 1: some failed
            fail(f"{self.name} through {servers.target} has no report:\n" + (output / "stdout").read_text()[-2000:])
        return read_report(report)

    def prepare(self, servers):
        pass

    @staticmethod
    def is_good(outcome):
        return outcome == "passed"

    @staticmethod
    def changed(_name, before, after):
        return [f"-{before}", f"+{after}"]


def read_report(path):
    """Each test's result, with the first line of what it says. Numbers are left out: they are ports, process ids and times."""
    outcomes = {}
    for case in ElementTree.parse(path).iter("testcase"):
        name, result = f"{case.get('classname')}::{case.get('name')}", "passed"
        for kind in ("skipped", "failure", "error"):
            for found in case.findall(kind):
                line = (found.get("message") or "").strip().split("\n")[0]
                result = "skipped" if kind == "skipped" else f"{kind}: {re.sub(r'0x[0-9a-f]+|[0-9]+', 'N', line)[:200]}"
        # A test has two entries if its end fails, too.
        if outcomes.get(name, "passed") == "passed":
            outcomes[name] = result
    return outcomes


class Psycopg2(PythonDriver):
    name, version, tests = "psycopg2", "2.9.13", "tests"
    requirements = ["psycopg2-binary==2.9.13", "pytest==9.*", "pytest-timeout==2.*"]
    source = {
        "urls": ["https://files.pythonhosted.org/packages/91/81/6ea19b8b28feb9405c8c87a307776614d6e404bdb98467d1ce10a39d2c1d/psycopg2-2.9.13.tar.gz"],
        "sha256": "d36784fc2dae69523ba4b79c7d1d1b4d6e83e87836874f111262f4db940b16a6",
    }
    server_settings = ["wal_level=logical"]
    settings = {"PSYCOPG2_TESTDB": "psycopg2_test", "PSYCOPG2_TEST_REPL_DSN": ""}

    def prepare(self, servers):
        servers.psql("CREATE DATABASE psycopg2_test")
        servers.psql("CREATE EXTENSION hstore", "psycopg2_test")


class Asyncpg(PythonDriver):
    name, version, tests = "asyncpg", "0.32.0", "tests"
    requirements = ["asyncpg==0.32.0", "distro", "pytest==9.*", "pytest-timeout==2.*"]
    source = {
        "urls": ["https://files.pythonhosted.org/packages/80/4e/59dc964f962f09e3ed472e5d2d3ba670a41a2be25080dc62ab3db507ff5e/asyncpg-0.32.0.tar.gz"],
        "sha256": "45e64e56714d888330b884aad1dfb363d0bf43fb343e3d1a8968525f3bade478",
    }
    # The first two look at the archive's other files. The last one fails by chance, direct too.
    options = ["--ignore=tests/test__sourcecode.py", "--ignore=tests/test__environment.py", "--deselect=tests/test_pool.py::TestPool::test_pool_config_persistence"]


class Pg8000(PythonDriver):
    name, version, tests = "pg8000", "1.31.6", "test"
    requirements = ["pg8000==1.31.6", "pytest==9.*", "pytest-timeout==2.*", "pytest-mock==3.*", "pytest-benchmark==5.*", "pytz"]
    source = {
        "urls": ["https://files.pythonhosted.org/packages/f0/3d/34ee10f4b7d050c02008a132701d6c61722a404b334909247e44633605cb/pg8000-1.31.6.tar.gz"],
        "sha256": "553b240256d4b2d8f0ad2af28d07df1f9980247f74ac98d2c2b573762ec1ff1b",
    }
    # Benchmarks are no comparison here, and the README is not beside the tests. One test takes
    # the server minutes, and one fails by chance, direct too.
    options = ["--benchmark-skip", "--ignore=test/test_readme.py", "-k", "not test_max_parameters and not test_broken_pipe_read"]

    def prepare(self, servers):
        servers.psql("CREATE EXTENSION hstore")


class TokioPostgres:
    name, version, with_pgbouncer = "tokio-postgres", "0.7.18", False
    server_settings = []
    programs = PG_BIN
    source = {
        "urls": [f"https://static.crates.io/crates/tokio-postgres/tokio-postgres-{version}.crate"],
        "sha256": "a528f7d280f6d5b9cd149635c8705b0dd049754bc67d81d31fa25169a93809d3",
    }
    # The tests want their server at one address. It is to ask some users for passwords, which ours
    # does not.
    HERE = """
fn here(text: &str) -> String {
    let (host, port) = (std::env::var("PGHOST").unwrap(), std::env::var("PGPORT").unwrap());
    text.replace("localhost", &host).replace("127.0.0.1", &host).replace("5433", &port)
}
"""
    SKIPPED = ["plain_password", "md5_password", "scram_password", "::parse::", "types::"]

    def __init__(self, cache):
        self.tree = cache.unpacked(self.source)
        if cache.made(self.tree):
            self.program = Path((self.tree / "program").read_text())
            return
        for name in ("main.rs", "runtime.rs"):
            file = self.tree / "tests/test" / name
            text = re.sub(r'"[^"]*\b5433\b[^"]*"', lambda found: f"&crate::here({found[0]})", file.read_text())
            file.write_text(text + (self.HERE if name == "main.rs" else ""))
        print(f"suites: building the tests of {self.name} {self.version}", flush=True)
        features = "--features=with-serde_json-1,with-uuid-1"
        done = subprocess.run(["cargo", "test", "--locked", "--quiet", "--no-run", "--message-format=json", "--test=test", features], cwd=self.tree,
                              env={**os.environ, "CARGO_TARGET_DIR": str(self.tree / "target")}, stdout=subprocess.PIPE, text=True)
        programs = re.findall(r'"executable":"([^"]+/test-[^"]+)"', done.stdout)
        if done.returncode or not programs:
            fail(f"the tests of {self.name} cannot be built")
        (self.tree / "program").write_text(programs[-1])
        cache.finish(self.tree)
        self.program = Path(programs[-1])

    def run(self, servers, output):
        output.mkdir()
        output.chmod(0o777)
        for user in ("pass_user", "md5_user", "scram_user"):
            servers.psql(f"CREATE ROLE {user} LOGIN PASSWORD 'password'")
        for extension in ("hstore", "citext", "ltree"):
            servers.psql(f"CREATE EXTENSION {extension}")
        skipped = [option for name in self.SKIPPED for option in ("--skip", name)]
        done = subprocess.run([self.program, *skipped], cwd=output, env={"PGHOST": HOST, "PGPORT": str(servers.port), "RUST_BACKTRACE": "0"},
                              capture_output=True, text=True, timeout=600)
        (output / "stdout").write_text(done.stdout + done.stderr)
        said = dict(re.findall(r"^thread '([^']+)'[^\n]* panicked at [^\n]*\n([^\n]*)", done.stdout, re.M))
        return {
            name: "passed" if result == "ok" else f"failure: {re.sub('[0-9]+', 'N', said.get(name, result))[:200]}" if result == "FAILED" else "skipped"
            for name, result in re.findall(r"^test (\S+)(?: - should panic)? \.\.\. (ok|FAILED|ignored)", done.stdout, re.M)
        }

    is_good = staticmethod(PythonDriver.is_good)
    changed = staticmethod(PythonDriver.changed)
