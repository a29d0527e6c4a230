"""What the benchmarks share: one PostgreSQL, PgBouncer and Trunkline on loopback, and what measures their processes."""

import os
import pwd
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PG_BIN = Path("/usr/lib/postgresql/15/bin")
HOST = "127.0.0.1"
PG_PORT = 27432
MAX_CLIENTS = 12000
USER, PASSWORD, DATABASE = "app", "app", "app"

SELECT = "\\set aid random(1, 100000)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n"


class Rig:
    """Programs that are started for a benchmark, and stopped at its end."""

    TRUNKLINE = ROOT / "target/release/trunkline"

    def __init__(self):
        self.dir = Path(tempfile.mkdtemp(prefix="trunkline-bench-"))
        self.dir.chmod(0o755)
        self.children = []
        self.pids = {}
        self.as_root = os.geteuid() == 0

    def unprivileged(self, command):
        return ["runuser", "-u", "postgres", "--", *command] if self.as_root else command

    def start(self, name, command, port, unprivileged=False, **kwargs):
        log = open(self.dir / f"{name}.log", "ab")
        if unprivileged:
            command = self.unprivileged(command)
        child = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, cwd=self.dir, **kwargs)
        self.children.append(child)
        deadline = time.monotonic() + 30
        while True:
            if child.poll() is not None:
                sys.exit(f"{name} ended at once:\n{(self.dir / f'{name}.log').read_text()[-2000:]}")
            try:
                socket.create_connection((HOST, port), 1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    sys.exit(f"{name} does not listen on {port}")
                time.sleep(0.05)
        self.pids[name] = tree(child.pid)
        return child

    def psql(self, port, sql, user=USER, password=PASSWORD, database=DATABASE, sslmode="disable"):
        return subprocess.run(
            ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", f"host={HOST} port={port} user={user} dbname={database} sslmode={sslmode}"],
            input=sql, text=True, check=True, capture_output=True, env={**os.environ, "PGPASSWORD": password},
        ).stdout.strip()

    def postgres(self, scale=1):
        data = self.dir / "data"
        data.mkdir(mode=0o700)
        pwfile = self.dir / "pwfile"
        pwfile.write_text("postgres\n")
        if self.as_root:
            entry = pwd.getpwnam("postgres")
            for path in (data, pwfile, self.dir):
                os.chown(path, entry.pw_uid, entry.pw_gid)
        subprocess.run(
            self.unprivileged([str(PG_BIN / "initdb"), "-D", str(data), "-U", "postgres", "--auth=scram-sha-256",
                               f"--pwfile={pwfile}", "--no-sync", "-E", "UTF8", "--no-locale"]),
            check=True, stdout=subprocess.DEVNULL)
        self.start_postgres()
        self.wait_sql(PG_PORT, "postgres", "postgres", "postgres")
        self.psql(PG_PORT, f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'; CREATE DATABASE {DATABASE} OWNER {USER}", "postgres", "postgres", "postgres")
        subprocess.run(["psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-v", "password=trunkline", "-f", ROOT / "config/service-account.sql",
                        f"host={HOST} port={PG_PORT} user=postgres dbname=postgres"],
                       check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PGPASSWORD": "postgres"})
        subprocess.run([PG_BIN / "pgbench", "-i", "-q", "-s", str(scale), "-h", HOST, "-p", str(PG_PORT), "-U", USER, DATABASE],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "PGPASSWORD": PASSWORD})

    def start_postgres(self):
        return self.start("postgres", [PG_BIN / "postgres", "-D", self.dir / "data", "-p", PG_PORT, "-k", self.dir, "-h", HOST,
                                       "-c", "fsync=off", "-c", "max_connections=1200", "-c", "shared_buffers=256MB",
                                       "-c", "logging_collector=off", "-c", "log_min_messages=fatal"], PG_PORT, True)

    def wait_sql(self, port, user=USER, password=PASSWORD, database=DATABASE):
        deadline = time.monotonic() + 30
        while True:
            try:
                return self.psql(port, "SELECT 1", user, password, database)
            except subprocess.CalledProcessError as error:
                if time.monotonic() > deadline:
                    sys.exit(f"port {port} does not serve: {error.stderr}")
                time.sleep(0.2)

    def pgbouncer(self, name, port, mode, pool_size, program="pgbouncer", extra=""):
        """One process, with TLS for clients that ask for it."""
        users = self.dir / "userlist.txt"
        verifier = self.psql(PG_PORT, f"SELECT rolpassword FROM pg_authid WHERE rolname = '{USER}'", "postgres", "postgres", "postgres")
        users.write_text(f'"{USER}" "{verifier}"\n')
        certs = self.certificates()
        key = self.dir / "pgbouncer.key"
        shutil.copy(certs / "server.key", key)
        conf = self.dir / f"{name}.ini"
        conf.write_text(f"""[databases]
* = host={HOST} port={PG_PORT}
[pgbouncer]
listen_addr = {HOST}
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
pool_mode = {mode}
max_client_conn = {MAX_CLIENTS}
default_pool_size = {pool_size}
logfile = {self.dir}/{name}-own.log
pidfile =
log_connections = 0
log_disconnections = 0
client_tls_sslmode = allow
client_tls_cert_file = {certs}/server.crt
client_tls_key_file = {key}
{extra}""")
        for path in (users, conf, key):
            path.chmod(0o644)
        # runuser gives it the soft limit of a login shell.
        with_descriptors = ["sh", "-c", 'ulimit -n "$(ulimit -Hn)" && exec "$@"', "sh"]
        self.start(name, [*with_descriptors, program, conf], port, unprivileged=True)

    def certificates(self):
        certs = self.dir / "certs"
        if not certs.exists():
            subprocess.run([ROOT / "certs/make-certs", "--dir", certs], check=True, stdout=subprocess.DEVNULL)
            certs.chmod(0o755)
        return certs

    def trunkline(self, name, port, http_port, rest, binary=TRUNKLINE, http=""):
        """`rest`: what else its configuration says, its listeners among that; `http`: what else `http` has."""
        certs = self.certificates()
        secret = self.dir / "service-password"
        secret.write_text("trunkline\n")
        secret.chmod(0o600)
        conf = self.dir / f"{name}.yaml"
        conf.write_text(f"""clusters:
  bench:
    servers: [{{name: pg, host: {HOST}, port: {PG_PORT}}}]
    service_account: {{user: trunkline, password_file: {secret}}}
    server_tls: {{sslmode: disable}}
tls:
  certificates: [{{cert_file: {certs}/server.crt, key_file: {certs}/server.key}}]
limits: {{max_clients: {MAX_CLIENTS}}}
log: {{level: warn}}
http: {{address: "{HOST}:{http_port}"{http}}}
{rest}""")
        self.start(name, [binary, "run", "-c", conf], port)
        self.wait_sql(port)

    def stop(self):
        for child in reversed(self.children):
            if child.poll() is None:
                for pid in reversed(tree(child.pid)):
                    try:
                        os.kill(pid, signal.SIGINT if "postgres" in comm(pid) else signal.SIGTERM)
                    except ProcessLookupError:
                        pass
        for child in self.children:
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
        shutil.rmtree(self.dir, ignore_errors=True)


def comm(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def tree(pid):
    pids = [pid]
    for parent in pids:
        # A process, or a thread of it, may end at any moment.
        try:
            for task in Path(f"/proc/{parent}/task").glob("*/children"):
                pids += [int(child) for child in task.read_text().split()]
        except OSError:
            pass
    return pids


def cpu_ns(pids):
    total = 0
    for pid in pids:
        for stat in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            try:
                total += int(stat.read_text().split()[0])
            except OSError:
                pass
    return total


def pss(pids):
    total = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        total += int(re.search(r"^Pss:\s+(\d+)", text, re.M)[1])
    return total


def spread(values, digits=0):
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"
