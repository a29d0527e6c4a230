#!/usr/bin/python3
"""A real Patroni cluster on loopback addresses, for the demo and the tests.

    cluster.py up --dir DIR [--base 127.0.0.11] [--nodes 3] [--patroni 4.1] [--postgres BINDIR] [--json] …
    cluster.py status|wait|switchover|kill|start|freeze|thaw|stop-postgres|psql|down --dir DIR …

Nodes are node1, node2, … on consecutive addresses: PostgreSQL on port 5432, Patroni's REST interface on 8008. etcd is a
single process on ports of its own. As root everything runs as the user `postgres`, else as the current user.

All state is in DIR: data, logs, sockets, certificates, `cluster.json` (what `up --json` prints) and `pids/` (pid and start
time of each process started). `down` ends the processes and removes DIR. A process is only ever signalled if its start
time is the recorded one, or if it is one of ours by name and works inside DIR. Every wait has a deadline, and an error
shows the end of the log.

Standard library only. Exit code 1 and one sentence on standard error when something fails, 2 for wrong usage.
"""
import argparse
import base64
import contextlib
import fcntl
import ipaddress
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
ETCD = "etcd"  # its name among the nodes, for kill, start, freeze and thaw
MARKER = "cluster.json"
# What may work inside a node's directory and be ours; a person's shell that stands there is not.
OUR_PROGRAMS = re.compile(r"^(postgres|postmaster|initdb|pg_\w+|python[\d.]*|etcd|trunkline|sh|dash|cp)$")
SUPERUSER_PASSWORD = "postgres"
REPLICATION_PASSWORD = "replicator"
SERVICE_PASSWORD = "trunkline"
# With --etcd-auth: Patroni writes below the namespace, the router reads there.
ETCD_USERS = {"root": "root", "patroni": "patroni", "trunkline": "trunkline"}
NAMESPACE = "/service/"
PATRONI_VERSIONS = ["3.0", "3.3", "4.0", "4.1"]


class ClusterError(Exception):
    """Something that a person is told in one sentence, and a log's end where it helps."""


def tail(path, lines=15):
    try:
        text = Path(path).read_text(errors="replace").splitlines()[-lines:]
    except OSError:
        return ""
    return f"\n--- the end of {path}:\n" + "\n".join(text) if text else ""


# --- processes -------------------------------------------------------------------------------------------------------


def start_time(pid):
    """When a process started, in clock ticks since boot, and its state; None when there is none (a zombie is none)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else (int(fields[19]), fields[0])


def working_in(directory):
    """Processes of ours whose working directory is DIRECTORY or below: what Patroni and the postmaster started."""
    directory = str(directory)
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            cwd = os.readlink(f"/proc/{entry}/cwd").removesuffix(" (deleted)")
            if cwd != directory and not cwd.startswith(directory + "/"):
                continue
            program = os.path.basename(os.readlink(f"/proc/{entry}/exe").removesuffix(" (deleted)"))
        except OSError:
            continue  # ended meanwhile, or somebody else's
        if OUR_PROGRAMS.match(program) and start_time(entry):
            found.append(int(entry))
    return found


def send(pid, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def in_use(address, port):
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return True
    return False


# --- HTTP, without the environment's proxies -------------------------------------------------------------------------

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def http(url, body=None, method=None, timeout=2.0, headers=None):
    """Status and text of one request; status 0 when there is no answer."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | (headers or {})
    request = urllib.request.Request(url, data=data, method=method, headers=headers)
    try:
        with _opener.open(request, timeout=timeout) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except (OSError, ValueError) as error:
        return 0, str(error)
    except Exception as error:  # http.client's own: a server killed in the middle of an answer
        return 0, repr(error)


class Deadline:
    def __init__(self, seconds):
        self.seconds = seconds
        self.end = time.monotonic() + seconds

    def passed(self):
        return time.monotonic() >= self.end

    def until(self, condition, what, log=None, pause=0.05):
        """Waits until CONDITION is true; WHAT may be a function that tells what is missing."""
        while not (result := condition()):
            if self.passed():
                missing = what() if callable(what) else what
                raise ClusterError(f"gave up after {self.seconds:g} s waiting for {missing}{tail(log) if log else ''}")
            time.sleep(pause)
        return result


def encoded(key):
    """As etcd's gateway wants keys."""
    return base64.b64encode(key.encode()).decode()


# --- the cluster -----------------------------------------------------------------------------------------------------


class Node:
    def __init__(self, cluster, number):
        self.name = f"node{number}"
        self.address = str(ipaddress.ip_address(cluster.options["base"]) + number - 1)
        self.dir = cluster.dir / self.name
        self.data = self.dir / "data"
        self.sockets = cluster.dir / f"s{number}"
        self.config = self.dir / "patroni.yaml"
        self.patroni_log = self.dir / "patroni.log"
        self.postgres_log = self.dir / "postgres.log"
        self.rest = f"http://{self.address}:8008"


class Cluster:
    """The cluster of one directory. OPTIONS are those of `up`; without them they are read from the directory."""

    DEFAULTS = {
        "name": "demo", "base": "127.0.0.11", "nodes": 3, "patroni": "4.1", "etcd_port": 12379, "ttl": 30,
        "loop_wait": 10, "max_connections": 300, "fsync": False, "certs": None, "before_stop": None, "timeout": 120, "verbose": False,
        "postgres": None, "etcd": None, "etcd_auth": False, "standby_of": None, "hba": [],
    }  # fmt: skip

    def __init__(self, directory, **options):
        self.dir = Path(directory).absolute()
        self.marker = self.dir / MARKER
        if not options:
            try:
                options = json.loads(self.marker.read_text())["options"]
            except FileNotFoundError:
                raise ClusterError(f"there is no cluster in {self.dir}: start one with `up` first") from None
            except (OSError, ValueError, KeyError) as error:
                raise ClusterError(f"{self.marker} cannot be read: {error}") from None
        self.options = self.DEFAULTS | options
        self.nodes = [Node(self, number + 1) for number in range(self.options["nodes"])]
        self.etcd_address = self.options["base"]
        self.etcd_url = f"http://{self.etcd_address}:{self.options['etcd_port']}"
        self.account = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        self.etcd_has_users = False
        self.service_account_sql = PROJECT / "config" / "service-account.sql"

    def node(self, name):
        for node in self.nodes:
            if node.name == name:
                return node
        raise ClusterError(f"there is no {name}: the nodes are {', '.join(n.name for n in self.nodes)}")

    def say(self, text):
        if self.options["verbose"]:
            print(text, file=sys.stderr, flush=True)

    # -- programs

    def bindir(self):
        if self.options["postgres"]:
            return Path(self.options["postgres"])
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda p: float(p.parts[4]))
        if not found:
            raise ClusterError("PostgreSQL's server is missing: run scripts/install-packages demo")
        return found[-1].parent

    def patroni_command(self):
        if self.options["patroni"] == "3.0":
            command = ["/usr/bin/python3", "/usr/bin/patroni"]
        else:
            cache = subprocess.run([PROJECT / "scripts" / "install-packages", "--cache-dir"], check=True, text=True,
                                   stdout=subprocess.PIPE).stdout.strip()  # fmt: skip
            venv = f"{cache}/patroni-{self.options['patroni']}"
            command = [f"{venv}/bin/python3", f"{venv}/bin/patroni"]
        for program in command:
            if not os.path.exists(program):
                raise ClusterError(f"{program} is missing: run scripts/install-packages test versions")
        return command

    def as_account(self):
        """Arguments that make a child run as the servers' account, with a clean environment."""
        environment = {
            "PATH": f"{self.bindir()}:/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin",
            "HOME": str(self.dir), "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        arguments = {"env": environment}
        if os.geteuid() == 0:
            arguments |= {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []}
        return arguments

    def own(self, path, mode):
        if os.geteuid() == 0:
            os.chown(path, self.account.pw_uid, self.account.pw_gid)
        os.chmod(path, mode)

    # -- pids

    def launch(self, name, command, directory, log, **arguments):
        """Starts a process that outlives us and records it. Its working directory tells its children from others."""
        with open(log, "ab") as output:
            process = subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                       start_new_session=True, umask=0o077, **(arguments or self.as_account()))  # fmt: skip
        started = start_time(process.pid)
        record = self.dir / "pids" / name
        record.write_text(f"{process.pid} {started[0] if started else 0}\n")
        process.returncode = 0  # not waited for: it is not ours to end with us
        return process.pid

    def pid(self, name):
        """The recorded process if it is still the same one, else None."""
        with contextlib.suppress(OSError, ValueError):
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            pid, started = map(int, (self.dir / "pids" / name).read_text().split())
            now = start_time(pid)
            if now and now[0] == started:
                return pid
        return None

    def frozen(self, name):
        pid = self.pid(name)
        now = start_time(pid) if pid else None
        return bool(now and now[1] == "T")

    def processes(self, name):
        """Leaders first, so that nothing is born while the list is worked through."""
        pids = [pid for record in (name, f"router-{name}") if (pid := self.pid(record))]
        directory = self.dir / name
        if (postmaster := self.postmaster(directory / "data")) and postmaster not in pids:
            pids.append(postmaster)
        return pids + [pid for pid in working_in(directory) if pid not in pids]

    @staticmethod
    def postmaster(data):
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int((data / "postmaster.pid").read_text().split()[0])
            if os.readlink(f"/proc/{pid}/cwd") == str(data):
                return pid
        return None

    def signal_all(self, name, number):
        """Signals every process of a node until there is no new one."""
        done = set()
        while new := [pid for pid in self.processes(name) if pid not in done]:
            for pid in new:
                send(pid, number)
            done.update(new)
        return bool(done)

    # -- questions

    def sql(self, node, query, database="postgres", variables=(), file=None, timeout=10):
        """One query as the superuser over the unix socket: unaligned rows, or None when the server is not there."""
        command = [self.bindir() / "psql", "-XAtq", "-h", node.sockets, "-U", "postgres", "-d", database,
                   "-v", "ON_ERROR_STOP=1"]  # fmt: skip
        for variable in variables:
            command += ["-v", variable]
        command += ["-f", "-"] if file else ["-c", query]
        with open(file) if file else contextlib.nullcontext(subprocess.DEVNULL) as stdin:
            arguments = self.as_account()
            arguments["env"]["PGCONNECT_TIMEOUT"] = "3"
            try:
                result = subprocess.run(command, cwd="/", stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        text=True, timeout=timeout, **arguments)  # fmt: skip
            except subprocess.TimeoutExpired:
                return None
        if result.returncode == 2:  # no connection
            return None
        if result.returncode:
            raise ClusterError(f"{node.name}: {result.stderr.strip()}")
        return result.stdout.strip()

    def running(self):
        """Nodes that were started and neither killed nor frozen."""
        return [node for node in self.nodes if self.pid(node.name) and not self.frozen(node.name)]

    def members(self):
        """Patroni's own view, from the first node that answers."""
        for node in self.running():
            status, text = http(f"{node.rest}/cluster")
            if status == 200:
                with contextlib.suppress(ValueError):
                    return json.loads(text)["members"]
        return []

    def leader(self):
        """The node that Patroni names and that answers as writable, or None."""
        for member in self.members():
            if member.get("role") in ("leader", "master", "primary"):
                node = self.node(member["name"])
                if node in self.running() and self.sql(node, "SELECT pg_is_in_recovery()") == "f":
                    return node
        return None

    def missing(self):
        """What the cluster still lacks to be whole, or None: a leader, and every started node streaming from it."""
        members = {member["name"]: member for member in self.members()}
        if not members:
            return "Patroni to answer"
        leader = self.leader()
        if not leader:
            return "a writable leader"
        streaming = self.sql(leader, "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'")
        streaming = (streaming or "").split()
        for node in self.running():
            state = members.get(node.name, {}).get("state")
            if node is leader:
                if state != "running":
                    return f"the leader {node.name} to be running in Patroni's eyes"
            elif node.name not in streaming:
                return f"{node.name} to stream from {leader.name}"
            elif state != ("running" if self.options["patroni"] == "3.0" else "streaming"):
                return f"{node.name} to be streaming in Patroni's eyes ({state})"
        return None

    def standby_missing(self):
        """The same of a standby cluster, where no leader is writable."""
        members = self.members()
        if not any(member.get("role") == "standby_leader" for member in members):
            return "a standby leader"
        for member in members:
            if member.get("state") not in ("running", "streaming"):
                return f"{member['name']} to be streaming in Patroni's eyes ({member.get('state')})"
        return None if len(members) == len(self.running()) else "every started node to be a member"

    def wait(self, timeout=None):
        """Until there is a writable leader and every started node streams from it. Returns the leader."""
        deadline = Deadline(timeout or self.options["timeout"])
        lacking = "an answer"
        missing = self.standby_missing if self.options["standby_of"] else self.missing

        def whole():
            nonlocal lacking
            lacking = missing()
            return lacking is None

        try:
            deadline.until(whole, lambda: lacking, pause=0.1)
        except ClusterError as error:
            logs = "".join(tail(log, 8) for node in self.nodes for log in (node.patroni_log, node.postgres_log))
            raise ClusterError(f"{error}{logs}") from None
        return self.leader()

    def status(self):
        members = {member["name"]: member for member in self.members()}
        nodes = []
        for node in self.nodes:
            member = members.get(node.name, {})
            nodes.append({
                "name": node.name, "address": node.address, "port": 5432,
                "patroni": "frozen" if self.frozen(node.name) else "running" if self.pid(node.name) else "stopped",
                "postgres": "running" if self.postmaster(node.data) else "stopped",
                "role": member.get("role"), "state": member.get("state"), "timeline": member.get("timeline"),
                "lag": member.get("lag"), "router": bool(self.pid(f"router-{node.name}")),
            })  # fmt: skip
        leader = next((m["name"] for m in members.values() if m.get("role") in ("leader", "master", "primary")), None)
        return {"dir": str(self.dir), "name": self.options["name"], "leader": leader,
                "etcd": "frozen" if self.frozen(ETCD) else "running" if self.pid(ETCD) else "stopped",
                "nodes": nodes}  # fmt: skip

    def describe(self):
        """Everything a test needs to know, all of it fixed for the cluster's life."""
        tls = self.dir / "tls"
        return {
            "options": self.options, "dir": str(self.dir), "scope": self.options["name"], "namespace": NAMESPACE,
            "patroni_version": self.options["patroni"], "run_as": self.account.pw_name, "pids": str(self.dir / "pids"),
            "bindir": str(self.bindir()), "superuser": "postgres", "superuser_password": SUPERUSER_PASSWORD,
            "replication_user": "replicator", "replication_password": REPLICATION_PASSWORD,
            "service_user": "trunkline", "service_password": SERVICE_PASSWORD,
            "app_user": "app", "app_password": "app", "app_database": "app",
            "app_replication_user": "app_repl", "app_replication_password": "app_repl",
            "etcd": {"url": self.etcd_url, "log": str(self.dir / ETCD / "etcd.log")} | (
                {"user": "trunkline", "password": ETCD_USERS["trunkline"]} if self.options["etcd_auth"] else {}),
            "ca_file": str(tls / "ca.crt"), "cert_file": str(tls / "server.crt"), "key_file": str(tls / "server.key"),
            "client_cert_file": str(tls / "client.crt"), "client_key_file": str(tls / "client.key"),
            "nodes": [{
                "name": node.name, "address": node.address, "port": 5432, "rest": node.rest, "dir": str(node.dir),
                "data": str(node.data), "sockets": str(node.sockets), "patroni_log": str(node.patroni_log),
                "postgres_log": str(node.postgres_log),
            } for node in self.nodes],
        }  # fmt: skip

    # -- up and down

    def alive(self):
        return [name for name in (*(n.name for n in self.nodes), ETCD) if self.processes(name)]

    def claim(self):
        """Makes DIR ours, or says why not."""
        parent = self.dir.parent
        if len(f"{self.nodes[-1].sockets}/.s.PGSQL.5432.lock") > 100:
            raise ClusterError(f"{self.dir} is too long a path for unix sockets: use a shorter --dir")
        if self.dir.is_symlink() or (self.dir.exists() and self.dir.stat().st_uid not in {os.geteuid(), self.account.pw_uid}):
            raise ClusterError(f"{self.dir} belongs to somebody else: use another --dir")
        if self.dir.exists() and any(self.dir.iterdir()):
            if not self.marker.exists():
                raise ClusterError(f"{self.dir} is not empty and not a cluster's directory: use another --dir")
            old = Cluster(self.dir)
            if old.alive():
                raise ClusterError(f"a cluster already runs in {self.dir}: end it with `down` first")
            old.down()  # left behind by a crash or a reboot
        self.dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.geteuid() == 0:
            # `postgres` must be able to come this far.
            arguments = self.as_account()
            check = subprocess.run(["/usr/bin/test", "-x", parent], cwd="/", **arguments)
            if check.returncode:
                self.dir.rmdir()
                raise ClusterError(f"the user {self.account.pw_name} cannot enter {parent}: use another --dir")
        self.own(self.dir, 0o700)

    def check_ports(self):
        wanted = [(node.address, port) for node in self.nodes for port in (5432, 8008)]
        wanted += [(self.etcd_address, self.options["etcd_port"] + extra) for extra in (0, 1)]
        for address, port in wanted:
            if in_use(address, port):
                raise ClusterError(f"{address}:{port} is in use or cannot be bound (`ss -ltnp` tells by whom): "
                                   "end that program, or use another --base or --etcd-port")  # fmt: skip

    def certificates(self):
        tls = self.dir / "tls"
        tls.mkdir()
        if self.options["certs"]:
            for name in ("ca.crt", "ca.key", "server.crt", "server.key", "client.crt", "client.key"):
                shutil.copy(Path(self.options["certs"]) / name, tls / name)
        else:
            command = [PROJECT / "certs" / "make-certs", "--dir", tls]
            for node in self.nodes:
                command += ["--san", node.address, "--san", node.name]
            subprocess.run(command, check=True)
        self.own(tls, 0o700)
        for path in tls.iterdir():
            self.own(path, 0o600 if path.suffix == ".key" else 0o644)

    def patroni_config(self, node):
        options, tls = self.options, self.dir / "tls"
        parameters = {
            "wal_level": "logical", "hot_standby": "on", "max_connections": options["max_connections"],
            "max_wal_senders": 20, "max_replication_slots": 20, "max_prepared_transactions": 20,
            "wal_keep_size": "128MB", "wal_log_hints": "on", "password_encryption": "scram-sha-256",
        }  # fmt: skip
        local = {
            "unix_socket_directories": str(node.sockets), "shared_buffers": "32MB", "max_wal_size": "1GB",
            "ssl": "on", "ssl_ca_file": str(tls / "ca.crt"), "ssl_cert_file": str(tls / "server.crt"),
            "ssl_key_file": str(tls / "server.key"), "logging_collector": "off", "log_line_prefix": "%m [%p] %q%u@%d ",
            "log_connections": "off", "timezone": "UTC", "log_timezone": "UTC",
            # In the data directory, so that a killed server leaves nothing in /dev/shm.
            "dynamic_shared_memory_type": "mmap", "jit": "off",
        }  # fmt: skip
        if not options["fsync"]:
            # Survives the death of every process, which is what happens here; not a power failure, which does not.
            # full_page_writes stays on: pg_rewind wants it.
            local |= {"fsync": "off"}
        # Everybody on the nodes' own network.
        base = ipaddress.ip_interface(f"{options['base']}/{8 if options['base'].startswith('127.') else 24}")
        before_stop = {}
        if options["before_stop"]:
            command = options["before_stop"].replace("{node}", node.name).replace("{dir}", str(self.dir))
            before_stop = {"before_stop": command}
        etcd = {"hosts": f"{self.etcd_address}:{options['etcd_port']}", "protocol": "http"}
        if options["etcd_auth"]:
            etcd |= {"username": "patroni", "password": ETCD_USERS["patroni"]}
        standby = {}
        if options["standby_of"]:
            standby = {"standby_cluster": {"host": options["standby_of"], "port": 5432, "create_replica_methods": ["basebackup"]}}
        retry = max(3, min(10, (options["ttl"] - options["loop_wait"]) // 2))
        return {
            "scope": options["name"], "namespace": NAMESPACE, "name": node.name,
            "restapi": {"listen": f"{node.address}:8008", "connect_address": f"{node.address}:8008"},
            "etcd3": etcd,
            "bootstrap": {
                "dcs": standby | {
                    "ttl": options["ttl"], "loop_wait": 1, "retry_timeout": retry,
                    "maximum_lag_on_failover": 1048576,
                    "postgresql": {"use_pg_rewind": True, "use_slots": True, "parameters": parameters},
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C.UTF-8"}, {"auth-host": "scram-sha-256"},
                           {"auth-local": "trust"}, "data-checksums", "no-sync"],
            },
            "postgresql": before_stop | {
                "listen": f"{node.address}:5432", "connect_address": f"{node.address}:5432",
                "data_dir": str(node.data), "bin_dir": str(self.bindir()), "pgpass": str(node.dir / "pgpass"),
                "use_unix_socket": True, "parameters": local,
                "authentication": {
                    "superuser": {"username": "postgres", "password": SUPERUSER_PASSWORD},
                    "replication": {"username": "replicator", "password": REPLICATION_PASSWORD},
                },
                "pg_hba": [
                    "local all postgres trust",
                    "local replication postgres trust",
                    *options["hba"],
                    f"host all all {base.network} scram-sha-256",
                    f"host replication replicator {base.network} scram-sha-256",
                    f"host replication postgres {base.network} scram-sha-256",
                    f"host replication app_repl {base.network} scram-sha-256",
                ],
                "basebackup": [{"checkpoint": "fast"}, "no-sync"],
                "remove_data_directory_on_rewind_failure": True,
                "remove_data_directory_on_diverged_timelines": True,
            },
            "watchdog": {"mode": "off"},
        }  # fmt: skip

    def start_etcd(self):
        directory = self.dir / ETCD
        if not directory.exists():
            directory.mkdir()
            self.own(directory, 0o700)
        peer = f"http://{self.etcd_address}:{self.options['etcd_port'] + 1}"
        program = self.options["etcd"] or shutil.which("etcd", path="/usr/local/bin:/usr/bin:/bin")
        if not program:
            raise ClusterError("etcd is missing: run scripts/install-packages demo")
        log = directory / "etcd.log"
        pid = self.launch(ETCD, [
            program, "--name", ETCD, "--data-dir", directory / "data", "--listen-client-urls", self.etcd_url,
            "--advertise-client-urls", self.etcd_url, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", f"{ETCD}={peer}", "--heartbeat-interval", "50", "--election-timeout", "500",
        ], directory, log)  # fmt: skip

        def healthy():
            if not start_time(pid):
                raise ClusterError(f"etcd ended at its start{tail(log)}")
            return http(f"{self.etcd_url}/health")[0] == 200

        Deadline(30).until(healthy, "etcd to answer", log)

    def start_node(self, node):
        if not node.dir.exists():
            for directory in (node.dir, node.sockets):
                directory.mkdir()
                self.own(directory, 0o700)
            node.config.write_text(json.dumps(self.patroni_config(node), indent=1))  # JSON is YAML
            self.own(node.config, 0o600)
        with open(node.patroni_log, "a"):
            pass
        self.launch(node.name, [*self.patroni_command(), node.config], node.dir, node.patroni_log)

    def etcd_has(self, key):
        return "kvs" in self.etcd_call("kv/range", {"key": encoded(f"{NAMESPACE}{self.options['name']}/{key}")})

    def etcd_call(self, path, body):
        """One call of etcd's JSON gateway, with authentication as root; the answer's text."""
        headers = {}
        if self.options["etcd_auth"] and self.etcd_has_users:
            login = {"name": "root", "password": ETCD_USERS["root"]}
            headers["Authorization"] = json.loads(http(f"{self.etcd_url}/v3/auth/authenticate", login)[1])["token"]
        status, text = http(f"{self.etcd_url}/v3/{path}", body, headers=headers)
        if status != 200:
            raise ClusterError(f"etcd refuses {path}: {status} {text}")
        return text

    def enable_etcd_users(self):
        end = NAMESPACE[:-1] + chr(ord(NAMESPACE[-1]) + 1)
        self.etcd_call("auth/role/add", {"name": "root"})
        for role, kind in (("patroni", "READWRITE"), ("trunkline", "READ")):
            permission = {"permType": kind, "key": encoded(NAMESPACE), "range_end": encoded(end)}
            self.etcd_call("auth/role/add", {"name": role})
            self.etcd_call("auth/role/grant", {"name": role, "perm": permission})
        for user, password in ETCD_USERS.items():
            self.etcd_call("auth/user/add", {"name": user, "password": password})
            self.etcd_call("auth/user/grant", {"user": user, "role": user})
        self.etcd_call("auth/enable", {})
        self.etcd_has_users = True

    def set_up_roles(self, leader):
        self.sql(leader, None, file=self.service_account_sql, variables=[f"password={SERVICE_PASSWORD}"])
        for name, attributes in (("app", "LOGIN"), ("app_repl", "LOGIN REPLICATION")):
            self.sql(leader, f"CREATE ROLE {name} {attributes} PASSWORD '{name}'")
        self.sql(leader, "CREATE DATABASE app OWNER app", timeout=60)

    def up(self):
        self.patroni_command()  # fails early
        self.claim()
        try:
            self.marker.write_text(json.dumps(self.describe(), indent=1))
            os.chmod(self.marker, 0o600)
            self.check_ports()
            (self.dir / "pids").mkdir()
            self.certificates()
            deadline = Deadline(self.options["timeout"])
            self.say("starting etcd")
            self.start_etcd()
            if self.options["etcd_auth"]:
                self.enable_etcd_users()
            first = self.nodes[0]
            self.say(f"starting {first.name}")
            self.start_node(first)

            def initialised():
                if not self.pid(first.name):
                    raise ClusterError(f"Patroni ended at its start{tail(first.patroni_log)}")
                return self.etcd_has("initialize")

            deadline.until(initialised, f"{first.name} to take the initialisation", first.patroni_log)
            for node in self.nodes[1:]:
                self.say(f"starting {node.name}")
                self.start_node(node)
            if not self.options["standby_of"]:  # which has the roles of its source
                deadline.until(lambda: self.sql(first, "SELECT pg_is_in_recovery()") == "f", f"{first.name} to be writable",
                               first.patroni_log)  # fmt: skip
                self.set_up_roles(first)
            self.say("waiting for the replicas to stream")
            self.wait(max(1, deadline.end - time.monotonic()))
            # It started with a short loop; now the pace asked for.
            status, text = http(f"{first.rest}/config", {"loop_wait": self.options["loop_wait"]}, "PATCH", timeout=10)
            if status != 200:
                raise ClusterError(f"Patroni did not take loop_wait: {status} {text}")
        except BaseException as error:
            if os.environ.get("TRUNKLINE_KEEP_FAILED"):
                raise
            self.down()
            if isinstance(error, subprocess.CalledProcessError):
                raise ClusterError(f"failed: {' '.join(map(str, error.cmd))}") from None
            raise
        return self.describe()

    def down(self):
        """Ends everything at once, also after a crash, and removes DIR."""
        if not self.marker.exists() and not (self.dir / "pids").exists():
            return
        names = [*(node.name for node in self.nodes), ETCD]
        for name in names:
            for record in (f"router-{name}", name):
                if pid := self.pid(record):
                    send(pid, signal.SIGKILL)
        segments = [segment for node in self.nodes if (segment := self.shared_memory(node))]
        for node in self.nodes:
            if postmaster := self.postmaster(node.data):
                send(postmaster, signal.SIGQUIT)  # it gives its shared memory back
                send(postmaster, signal.SIGCONT)
            for pid in working_in(node.dir):
                send(pid, signal.SIGCONT)
        with contextlib.suppress(ClusterError):
            Deadline(5).until(lambda: not any(self.postmaster(node.data) for node in self.nodes), "")
        deadline = Deadline(10)
        for name in names:
            deadline.until(lambda: not self.signal_all(name, signal.SIGKILL), f"the processes of {name} to end")
        for segment in segments:
            subprocess.run(["ipcrm", "-m", segment], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        shutil.rmtree(self.dir)

    @staticmethod
    def shared_memory(node):
        """The id of the server's System V segment, the one thing that a killed server leaves outside DIR."""
        with contextlib.suppress(OSError, IndexError):
            return (node.data / "postmaster.pid").read_text().splitlines()[6].split()[1]
        return None

    # -- faults

    def kill(self, name):
        """SIGKILL for all of a node (its router too): a dead host, but for the resets its kernel sends."""
        if name != ETCD:
            self.node(name)
        if not self.processes(name):
            raise ClusterError(f"{name} is not running")
        Deadline(10).until(lambda: not self.signal_all(name, signal.SIGKILL), f"the processes of {name} to end")

    def start(self, name):
        """Starts what `kill` ended. Does not wait for the cluster to be whole: `wait` does."""
        if self.pid(name):
            raise ClusterError(f"{name} is running already")
        if name == ETCD:
            self.start_etcd()
        else:
            self.start_node(self.node(name))

    def freeze(self, name):
        """SIGSTOP for all of a node: it accepts connections and never answers."""
        if name != ETCD:
            self.node(name)
        if not self.signal_all(name, signal.SIGSTOP):
            raise ClusterError(f"{name} is not running")

    def thaw(self, name):
        if not self.signal_all(name, signal.SIGCONT):
            raise ClusterError(f"{name} is not running")

    def stop_postgres(self, name):
        """SIGKILL for PostgreSQL alone: Patroni lives on and starts it again."""
        node = self.node(name)
        if not self.postmaster(node.data):
            raise ClusterError(f"PostgreSQL of {name} is not running")
        for pid in [self.postmaster(node.data), *working_in(node.data)]:
            if pid:
                send(pid, signal.SIGKILL)

    def switchover(self, to=None, timeout=60):
        """Patroni's planned switchover; returns the new leader once it is writable."""
        deadline = Deadline(timeout)
        old = deadline.until(self.leader, "a leader", pause=0.2)
        if to:
            self.node(to)
            if to == old.name:
                raise ClusterError(f"{to} is the leader already")
        body = {"leader": old.name} | ({"candidate": to} if to else {})
        while True:
            status, text = http(f"{old.rest}/switchover", body, timeout=timeout)
            if status == 200:
                break
            # Right after a change the replicas are not yet known to be healthy: 412.
            if deadline.passed() or status not in (0, 412, 503):
                raise ClusterError(f"Patroni refused the switchover: {status} {text.strip()}{tail(old.patroni_log)}")
            time.sleep(0.3)

        def new_leader():
            leader = self.leader()
            return leader if leader and leader is not old and leader.name != old.name else None

        return deadline.until(new_leader, "the new leader to be writable", old.patroni_log)


@contextlib.contextmanager
def locked(directory):
    """One command at a time for a directory; the lock is beside it, as `down` removes it."""
    path = Path(f"{Path(directory).absolute()}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "w")
    except OSError as error:
        raise ClusterError(f"{path} cannot be locked: {error.strerror}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if not Path(directory).exists():
                with contextlib.suppress(OSError):
                    path.unlink()


def print_status(status):
    print(f"cluster {status['name']} in {status['dir']}, leader {status['leader'] or 'none'}, etcd {status['etcd']}")
    row = "  {:7} {:15} {:8} {:9} {:15} {:18} {:>4} {:>9}"
    print(row.format("node", "address", "patroni", "postgres", "role", "state", "TL", "lag"))
    for node in status["nodes"]:
        values = [node[key] for key in ("name", "address", "patroni", "postgres", "role", "state", "timeline", "lag")]
        print(row.format(*("-" if value is None else str(value) for value in values)).rstrip())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, text, node=False):
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.add_argument("--dir", required=True, help="the cluster's directory")
        if node:
            sub.add_argument("node", help="node1, node2, … or etcd")
        return sub

    up = command("up", "start a cluster and wait until it is whole")
    up.add_argument("--name", help="Patroni's scope (default demo)")
    up.add_argument("--base", help="address of node1 (default 127.0.0.11)")
    up.add_argument("--nodes", type=int, choices=range(1, 10), metavar="N", help="default 3")
    up.add_argument("--patroni", choices=PATRONI_VERSIONS, help="Debian's 3.0, or from PyPI (default 4.1)")
    up.add_argument("--postgres", metavar="BINDIR", type=os.path.abspath, help="PostgreSQL's programs (default Debian's)")
    up.add_argument("--etcd", metavar="PROGRAM", type=os.path.abspath, help="default Debian's")
    up.add_argument("--etcd-auth", action="store_const", const=True, help="etcd asks for users and passwords")
    up.add_argument("--standby-of", metavar="HOST", help="a standby cluster that follows this server")
    up.add_argument("--hba", action="append", metavar="LINE", help="a line of the servers' pg_hba.conf, before the usual ones")
    up.add_argument("--etcd-port", type=int, help="clients' port; the next one is for peers (default 12379)")
    up.add_argument("--ttl", type=int, help="Patroni's ttl in seconds, 20 at least (default 30)")
    up.add_argument("--loop-wait", type=int, help="Patroni's loop_wait in seconds (default 10)")
    up.add_argument("--max-connections", type=int, help="default 300")
    up.add_argument("--fsync", action="store_const", const=True, help="write through to the disk (slower)")
    up.add_argument("--certs", type=os.path.abspath, help="use the certificates of this directory (default: own ones)")
    up.add_argument("--before-stop", metavar="COMMAND",
                    help="what Patroni 4.1 runs before it stops PostgreSQL, with {node} and {dir} replaced")  # fmt: skip
    up.add_argument("--timeout", type=int, help="seconds until giving up (default 120)")
    up.add_argument("--json", action="store_true", help="print everything a test needs to know")
    up.add_argument("--verbose", action="store_const", const=True, help="say what is being done")
    command("down", "end everything and remove the directory")
    command("info", "print what `up --json` printed")
    command("status", "who is what").add_argument("--json", action="store_true")
    command("wait", "wait until there is a leader and every started node streams").add_argument(
        "--timeout", type=int, default=None)  # fmt: skip
    switchover = command("switchover", "make another node the leader, planned")
    switchover.add_argument("--to", metavar="NODE")
    switchover.add_argument("--timeout", type=int, default=60)
    command("kill", "SIGKILL all of a node: a dead host", node=True)
    command("stop-postgres", "SIGKILL PostgreSQL only; Patroni starts it again", node=True)
    command("freeze", "SIGSTOP all of a node: it goes silent", node=True)
    command("thaw", "SIGCONT all of a node", node=True)
    command("start", "start a killed node again", node=True)

    arguments = vars(parser.parse_args())
    name, directory = arguments.pop("command"), arguments.pop("dir")
    try:
        # `wait` and the questions may run beside anything else.
        with locked(directory) if name in ("up", "down", "kill", "start") else contextlib.nullcontext():
            if name == "up":
                as_json = arguments.pop("json")
                given = {key: value for key, value in arguments.items() if value is not None}
                if given.get("ttl", 30) < 20:
                    raise ClusterError("Patroni's smallest ttl is 20")
                cluster = Cluster(directory, **({"name": "demo"} | given))
                begun = time.monotonic()
                description = cluster.up()
                if as_json:
                    print(json.dumps(description, indent=1))
                else:
                    print_status(cluster.status())
                    print(f"up in {time.monotonic() - begun:.1f} s")
            elif name == "down":
                if (Path(directory) / MARKER).exists():
                    Cluster(directory).down()
            elif name == "info":
                print(json.dumps(Cluster(directory).describe(), indent=1))
            elif name == "status":
                status = Cluster(directory).status()
                print(json.dumps(status, indent=1)) if arguments["json"] else print_status(status)
            elif name == "wait":
                print(Cluster(directory).wait(arguments["timeout"]).name)
            elif name == "switchover":
                print(Cluster(directory).switchover(arguments["to"], arguments["timeout"]).name)
            else:
                getattr(Cluster(directory), name.replace("-", "_"))(arguments["node"])
    except ClusterError as error:
        sys.exit(f"cluster: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    # As an exception, so that a started `up` takes down what it has begun.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
