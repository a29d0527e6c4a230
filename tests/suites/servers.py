"""The servers that the foreign suites run against: PostgreSQL, the router before it, and PgBouncer before it."""
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PG_BIN = Path("/usr/lib/postgresql/15/bin")
NET = os.environ.get("TRUNKLINE_TEST_NET", "1")
# Below the addresses of the clusters of the tests, which begin at .11.
HOST = f"127.0.{NET}.5"
USER = "postgres"
PASSWORD = "suites"  # the server trusts everybody; some clients want to send one
SERVER_PORT = 5432
PORTS = {"direct": 5432, "off": 6001, "session": 6002, "transaction": 6003, "pgbouncer-session": 6004, "pgbouncer-transaction": 6005}
# More than any suite uses at once: what a suite sees must not be that it waits.
POOL_SIZE = 100

# As the server's own tests have it, with what the tests of prepared transactions need.
POSTGRESQL_CONF = f"""
listen_addresses = '{HOST}'
port = {SERVER_PORT}
fsync = off
max_connections = 300
max_prepared_transactions = 10
log_lock_waits = on
log_statement = none
logging_collector = off
unix_socket_directories = ''
"""

ROUTER = """clusters:
  main:
    servers: [{{name: one, host: {host}, port: {server_port}}}]
    service_account: {{user: trunkline, dbname: postgres, password_file: password}}
    server_tls: {{sslmode: disable, require_auth: [none]}}
auth:
  hba_file: hba.conf
  rate_limit: {{failures: 0}}
  server_credentials: [{{users: all, password_file: password}}]
routes:
  off: {{targets: [leader]}}
  session: {{targets: [leader], pool: {{mode: session, max_connections: {pool}}}}}
  transaction: {{targets: [leader], pool: {{mode: transaction, max_connections: {pool}}}}}
listeners:
  - {{name: off, address: "{host}:{off}", route: off}}
  - {{name: session, address: "{host}:{session}", route: session}}
  - {{name: transaction, address: "{host}:{transaction}", route: transaction}}
http: {{address: "{host}:6000"}}
"""

# As it comes, with what the suites need to log in: it understands `intervalstyle` in `options`.
PGBOUNCER = """[databases]
* = host={host} port={server_port}
[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = users.txt
pool_mode = {mode}
max_client_conn = 1000
default_pool_size = {pool}
ignore_startup_parameters = extra_float_digits
logfile =
pidfile =
"""


def fail(text):
    sys.exit(f"suites: {text}")


def as_postgres():
    """As whom everything runs: the servers refuse to be root's."""
    if os.geteuid() != 0:
        return {}
    return {"user": "postgres", "group": "postgres", "extra_groups": []}


def run_as_postgres(command, **options):
    return subprocess.run([str(part) for part in command], **as_postgres(), **options)


def pgbouncer_program():
    return os.environ.get("PGBOUNCER") or shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")


class Servers:
    """A fresh PostgreSQL, and what `target` names before it. Everything ends with the `with` block."""

    def __init__(self, directory, target, settings=(), programs=PG_BIN):
        self.directory, self.target, self.settings, self.programs, self.children = directory, target, settings, programs, []
        self.port = PORTS[target]

    def __enter__(self):
        try:
            self.postgres()
            if self.target.startswith("pgbouncer"):
                self.pgbouncer()
            elif self.target != "direct":
                self.router()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for child in reversed(self.children):
            if child.poll() is None:
                child.send_signal(signal.SIGINT)
                try:
                    child.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()

    def start(self, name, command, port):
        if listens(port):
            fail(f"something listens on {HOST}:{port} already")
        log = open(self.directory / f"{name}.log", "wb")
        child = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.directory,
                                 start_new_session=True, **as_postgres())
        self.children.append(child)
        until(f"{name} listens", lambda: listens(port), child, self.directory / f"{name}.log")

    def psql(self, sql, database="postgres", port=SERVER_PORT):
        return subprocess.run([PG_BIN / "psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql, f"host={HOST} port={port} user={USER} dbname={database}"],
                              capture_output=True, text=True, check=True, env={"PGPASSWORD": PASSWORD, "LC_ALL": "C"}).stdout.strip()

    def postgres(self):
        """One initdb for all runs; each gets a copy, so that none sees what another has left."""
        version = subprocess.run([self.programs / "postgres", "--version"], capture_output=True, text=True, check=True).stdout.split()[2]
        template, data = self.directory.parent / f"template-{version}", self.directory / "data"
        if not template.exists():
            run_as_postgres([self.programs / "initdb", "-D", template, "-U", USER, "--auth=trust", "--no-sync", "-E", "UTF8", "--no-locale"],
                            check=True, stdout=subprocess.DEVNULL, cwd=self.directory.parent)
            with open(template / "postgresql.conf", "a") as file:
                file.write(POSTGRESQL_CONF)
        run_as_postgres(["cp", "-a", template, data], check=True, cwd=self.directory.parent)
        settings = [option for setting in self.settings for option in ("-c", setting)]
        self.start("postgres", [self.programs / "postgres", "-D", data, *settings], SERVER_PORT)
        until("PostgreSQL answers", lambda: works(lambda: self.psql("SELECT 1")), self.children[0], self.directory / "postgres.log")
        self.psql("CREATE ROLE trunkline LOGIN")

    def router(self):
        self.write("trunkline.yaml", ROUTER.format(host=HOST, server_port=SERVER_PORT, pool=POOL_SIZE, **PORTS))
        self.write("hba.conf", "host all,replication all all trust\n")
        self.write("password", PASSWORD + "\n")
        program = os.environ.get("TRUNKLINE") or ROOT / "target/debug/trunkline"
        copy = self.directory / "trunkline"  # the project may be where only its owner reads
        shutil.copy(program, copy)
        copy.chmod(0o755)
        self.start("router", [copy, "run", "-c", "trunkline.yaml"], self.port)
        until("the router serves", lambda: works(lambda: self.psql("SELECT 1", port=self.port)), self.children[-1], self.directory / "router.log")

    def pgbouncer(self):
        mode = self.target.split("-")[1]
        self.write("pgbouncer.ini", PGBOUNCER.format(host=HOST, server_port=SERVER_PORT, port=self.port, mode=mode, pool=POOL_SIZE))
        self.write("users.txt", f'"{USER}" "{PASSWORD}"\n')
        self.start("pgbouncer", [pgbouncer_program(), self.directory / "pgbouncer.ini"], self.port)
        until("PgBouncer serves", lambda: works(lambda: self.psql("SELECT 1", port=self.port)), self.children[-1], self.directory / "pgbouncer.log")

    def write(self, name, text):
        path = self.directory / name
        path.write_text(text)
        path.chmod(0o600)
        if os.geteuid() == 0:
            shutil.chown(path, "postgres", "postgres")


def listens(port):
    try:
        socket.create_connection((HOST, port), 1).close()
        return True
    except OSError:
        return False


def works(action):
    try:
        action()
        return True
    except subprocess.CalledProcessError:
        return False


def until(what, condition, child, log):
    deadline = time.monotonic() + 60
    while not condition():
        if child.poll() is not None or time.monotonic() > deadline:
            fail(f"not so: {what}. The end of {log}:\n" + log.read_text(errors="replace")[-2000:])
        time.sleep(0.1)
