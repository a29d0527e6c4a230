"""What four writing clients notice of a failover, side by side: HAProxy, PgBouncer behind HAProxy, and Trunkline.

    scripts/bench-events [--planned 3] [--lost 2] [--binary target/release/trunkline] [--pgbouncer pgbouncer]

A real cluster (scripts/cluster.py: three nodes, each in a network namespace of its own; Patroni 4.1 with its default ttl 30
and loop_wait 10, and synchronous_mode). All targets have their clients at the same time, so each event is the same for all:

    haproxy      HAProxy before PostgreSQL, as Patroni's documentation has it: GET /primary every 3 s, fall 3, rise 2
    pgbouncer    the same HAProxy before a PgBouncer in transaction mode on each node, which leads to its own PostgreSQL
    off          Trunkline, `resume: off`
    tracked      Trunkline, `resume: tracked`
    transaction  Trunkline, `pool: {mode: transaction}`

The routes of Trunkline are one process. Each client has one connection, and inserts a row every 10 ms. After an error it
tries again 20 ms later, over a new connection if the old one was closed. `cluster` is the longest time in which no writer
that is directly connected to a node, one to each, had a row committed: Patroni's own part of the pause.

At the end every acknowledged row must be in the table, and none twice. Needs root, psycopg2 (Debian's python3-psycopg2),
haproxy and PgBouncer.
"""

import argparse
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2

from segment import Segment

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "scripts"))
import cluster as patroni  # noqa: E402

NETWORK = "10.231.46"
HERE = f"{NETWORK}.1"
NODES = {f"node{number}": f"{NETWORK}.{10 + number}" for number in (1, 2, 3)}
ETCD_PORT = 14470
HAPROXY = {"haproxy": (5001, 5432), "pgbouncer": (5002, 6432)}  # its port, and that of the nodes
ROUTES = {
    "off": (6001, "{targets: [leader], resume: off}"),
    "tracked": (6002, "{targets: [leader], resume: tracked}"),
    "transaction": (6003, "{targets: [leader], pool: {mode: transaction}}"),
}
PORTS = {name: port for name, (port, _) in (HAPROXY | ROUTES).items()}
CLIENTS = 4
BETWEEN, AFTER_AN_ERROR = 0.01, 0.02
LIMIT = 150
TOKEN = "token-of-the-benchmark"


class Cluster(patroni.Cluster):
    """Each node in its own namespace; etcd on this host."""

    def __init__(self, directory, segment, **options):
        super().__init__(directory, **options)
        self.segment = segment
        self.etcd_address = HERE
        self.etcd_url = f"http://{HERE}:{self.options['etcd_port']}"

    def check_ports(self):
        pass  # the namespaces are new

    def launch(self, name, *arguments, **more):
        with self.segment.inside(name):
            return super().launch(name, *arguments, **more)

    def wait_settled(self):
        """Whole, and with a synchronous standby, so that the next switchover can begin."""
        self.wait()
        patroni.Deadline(60).until(lambda: any(member.get("role") == "sync_standby" for member in self.members()),
                                   "a synchronous standby")  # fmt: skip


@dataclass(eq=False)
class Client(threading.Thread):
    """Inserts rows until `stop`. Times are those of the monotonic clock."""

    host: str
    port: int
    number: int
    stop: threading.Event
    options: dict = field(default_factory=dict)
    acknowledged: list = field(default_factory=list)  # (when, id)
    logins: list = field(default_factory=list)
    refused: list = field(default_factory=list)  # (when, text): of logins
    failed: list = field(default_factory=list)  # (when, text): of rows
    server: str = ""

    def __post_init__(self):
        super().__init__(daemon=True)

    def run(self):
        connection, ids = None, itertools.count(self.number * 10_000_000)
        while not self.stop.is_set():
            if connection is None:
                try:
                    connection = psycopg2.connect(host=self.host, port=self.port, user="app", password="app", dbname="app",
                                                  sslmode="disable", **self.options)  # fmt: skip
                    connection.autocommit = True
                    self.logins.append(time.monotonic())
                except psycopg2.Error as error:
                    self.refused.append((time.monotonic(), str(error)))
                    time.sleep(AFTER_AN_ERROR)
                    continue
            one = next(ids)
            try:
                with connection.cursor() as cursor:
                    cursor.execute("INSERT INTO written VALUES (%s) RETURNING host(inet_server_addr())", (one,))
                    server = cursor.fetchone()[0]
                self.acknowledged.append((time.monotonic(), one))
                self.server = server
                time.sleep(BETWEEN)
            except psycopg2.Error as error:
                self.failed.append((time.monotonic(), f"{error.pgcode} {error}"))
                if connection.closed:
                    connection = None
                time.sleep(AFTER_AN_ERROR)
        if connection:
            connection.close()


def between(values, begin, end):
    """Those of a list of moments, or of pairs that begin with one, that are in this time."""
    return [value for value in list(values) if begin <= (value[0] if isinstance(value, tuple) else value) <= end]


def longest(moments, begin, end):
    ordered = [begin, *sorted(moments), end]
    return max(later - earlier for earlier, later in zip(ordered, ordered[1:]))


@dataclass
class Noticed:
    """What the clients of a target noticed of one event."""

    errors: int
    refused: int
    reconnects: int
    pause: float
    kinds: dict

    @classmethod
    def of(cls, clients, begin, end):
        failed = [text for client in clients for _, text in between(client.failed, begin, end)]
        refused = [text for client in clients for _, text in between(client.refused, begin, end)]
        kinds = {}
        for text in failed + refused:
            kind = text.strip().splitlines()[0][:110]
            kinds[kind] = kinds.get(kind, 0) + 1
        pauses = [longest((when for when, _ in between(client.acknowledged, begin, end)), begin, end) for client in clients]
        reconnects = sum(len(between(client.logins, begin, end)) for client in clients)
        return cls(len(failed) + len(refused), len(refused), reconnects, max(pauses), kinds)


class Bench:
    def __init__(self, arguments):
        self.arguments = arguments
        self.dir = Path(tempfile.mkdtemp(prefix="trunkline-events-"))
        self.dir.chmod(0o755)
        self.segment = Segment("tlevents", HERE, NODES)
        self.cluster = Cluster(self.dir / "cluster", self.segment, name="events", base=NODES["node1"], etcd_port=ETCD_PORT,
                               certs=str(self.dir / "certs"), before_stop=f"{self.dir}/before-stop {{node}}")  # fmt: skip
        self.children = []
        self.stop = threading.Event()
        self.clients, self.direct = {}, []
        self.results = {}  # event: target: [Noticed], and "cluster": [seconds]

    # -- programs

    def start(self, name, command, host=None, **more):
        with open(self.dir / f"{name}.log", "wb") as log, self.segment.inside(host):
            command = [str(part) for part in command]
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.dir, **more)
        self.children.append(child)

    def up(self):
        self.segment.lay()
        names = [part for address in (HERE, *NODES.values()) for part in ("--san", address)]
        subprocess.run([PROJECT / "certs/make-certs", "--dir", self.dir / "certs", *names], check=True, stdout=subprocess.DEVNULL)
        self.write("before-stop", "#!/bin/sh\nexit 0\n", 0o755)
        self.cluster.up()
        leader = self.cluster.wait()
        # No key, so that a row that was written twice would be seen.
        self.cluster.sql(leader, "CREATE TABLE written (id bigint); GRANT ALL ON written TO app", database="app")
        self.cluster.sql(leader, "GRANT pg_checkpoint TO trunkline")
        status, text = patroni.http(f"{leader.rest}/config", {"synchronous_mode": True}, "PATCH", timeout=10)
        if status != 200:
            raise SystemExit(f"Patroni did not take synchronous_mode: {text}")
        self.haproxy()
        for node in self.cluster.nodes:
            self.pgbouncer(node)
        self.trunkline()
        self.cluster.wait_settled()

    def write(self, name, text, mode=0o644):
        path = self.dir / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def haproxy(self):
        text = "defaults\n  mode tcp\n  retries 2\n  timeout client 30m\n  timeout connect 4s\n  timeout server 30m\n  timeout check 5s\n"
        for name, (port, nodes_port) in HAPROXY.items():
            text += (f"listen {name}\n  bind {HERE}:{port}\n  option httpchk GET /primary\n  http-check expect status 200\n"
                     "  default-server inter 3s fall 3 rise 2 on-marked-down shutdown-sessions\n")  # fmt: skip
            for node, address in NODES.items():
                text += f"  server {node} {address}:{nodes_port} maxconn 200 check port 8008\n"
        self.start("haproxy", ["haproxy", "-db", "-f", self.write("haproxy.cfg", text)])

    def pgbouncer(self, node):
        self.write("users.txt", '"app" "app"\n')
        text = (f"[databases]\n* = host={node.address} port=5432\n[pgbouncer]\nlisten_addr = {node.address}\nlisten_port = 6432\n"
                f"unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {self.dir}/users.txt\npool_mode = transaction\n"
                "default_pool_size = 20\nlog_connections = 0\nlog_disconnections = 0\n")  # fmt: skip
        name = f"pgbouncer-{node.name}"
        account = self.cluster.as_account()
        self.start(name, [self.arguments.pgbouncer, self.write(f"{name}.ini", text)], node.name, **account)

    def trunkline(self):
        about = self.cluster.describe()
        self.write("pw", about["service_password"] + "\n", 0o600)
        self.write("token", TOKEN + "\n", 0o600)
        endpoints = ", ".join(f'"{node["rest"]}"' for node in about["nodes"])
        listeners = "".join(f'  - {{name: {name}, address: "{HERE}:{port}", route: {name}, tls: off}}\n'
                            for name, (port, _) in ROUTES.items())  # fmt: skip
        routes = "".join(f"  {name}: {route}\n" for name, (_, route) in ROUTES.items())
        self.config = self.write("trunkline.yaml",
            f"clusters:\n  main:\n    patroni: {{endpoints: [{endpoints}]}}\n"
            f'    etcd: {{endpoints: ["{about["etcd"]["url"]}"], namespace: {about["namespace"]}, scope: {about["scope"]}}}\n'
            f"    service_account: {{user: {about['service_user']}, password_file: pw}}\n"
            f"routes:\n{routes}listeners:\n{listeners}"
            f'http: {{address: "{HERE}:6434", token_file: token, tls: {{cert_file: certs/server.crt, key_file: certs/server.key}}}}\n',
        )  # fmt: skip
        self.start("trunkline", [self.arguments.binary, "run", "-c", self.config])
        # For before-stop, which Patroni runs on the nodes as its own user.
        account = self.cluster.account
        shutil.copy(self.arguments.binary, self.dir / "trunkline")
        self.write("token-of-patroni", TOKEN + "\n", 0o600)
        self.write("ca.crt", (self.dir / "certs/ca.crt").read_text())
        for name, mode in (("trunkline", 0o700), ("token-of-patroni", 0o600)):
            os.chown(self.dir / name, account.pw_uid, account.pw_gid)
            (self.dir / name).chmod(mode)
        said = self.write("before-stop.log", "", 0o666)
        self.before_stop = (f"#!/bin/sh\nexec {self.dir}/trunkline before-stop --url https://{HERE}:6434 --ca-file {self.dir}/ca.crt "
                            f'--token-file {self.dir}/token-of-patroni --member "$1" 2>>{said}\n')  # fmt: skip

    def down(self):
        self.stop.set()
        for child in self.children:
            child.kill()
            child.wait()
        self.cluster.down()
        self.segment.remove()
        shutil.rmtree(self.dir, ignore_errors=True)

    # -- clients

    def start_clients(self):
        numbers = itertools.count(1)
        for name, port in PORTS.items():
            self.clients[name] = [Client(HERE, port, next(numbers), self.stop) for _ in range(CLIENTS)]
        quick = {"connect_timeout": 2, "tcp_user_timeout": 1000}
        self.direct = [Client(address, 5432, next(numbers), self.stop, quick) for address in NODES.values()]
        for client in self.all():
            client.start()

    def all(self):
        return [client for clients in self.clients.values() for client in clients] + self.direct

    def await_served(self, address, since):
        """Each client has had a row committed there."""
        def late():
            return [name for name, clients in self.clients.items() for client in clients
                    if client.server != address or not client.acknowledged or client.acknowledged[-1][0] < since]

        patroni.Deadline(LIMIT).until(lambda: not late(), lambda: f"rows of {sorted(set(late()))} on {address}")

    # -- events

    def planned(self, leader):
        self.cluster.switchover()

    def before_stopped(self, leader):
        log = self.dir / "before-stop.log"
        before = log.read_text()
        self.write("before-stop", self.before_stop, 0o755)
        try:
            self.cluster.switchover()
        finally:
            self.write("before-stop", "#!/bin/sh\nexit 0\n", 0o755)
        said = log.read_text()[len(before):]
        if "no transaction is open after" not in said:
            print(f"before-stop said: {said}", flush=True)

    def by_trunkline(self, leader):
        done = subprocess.run([self.arguments.binary, "switchover", "--yes", "-c", self.config], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"trunkline switchover: {done.stdout}{done.stderr}")

    def killed(self, leader):
        self.cluster.kill(leader.name)

    def cut_off(self, leader):
        self.segment.cut(leader.name)

    def heal(self, leader, what):
        if what == self.killed:
            self.cluster.start(leader.name)
        elif what == self.cut_off:
            self.segment.join(leader.name)
        self.cluster.wait_settled()

    def event(self, name, what):
        leader = self.cluster.leader()
        self.await_served(leader.address, time.monotonic())
        time.sleep(2)
        begin = time.monotonic()
        what(leader)

        def new_leader():
            found = self.cluster.leader()
            return found if found and found.name != leader.name else None

        new = patroni.Deadline(LIMIT).until(new_leader, "another leader")
        self.await_served(new.address, begin)
        time.sleep(1)
        end = time.monotonic()
        result = self.results.setdefault(name, {})
        gap = longest((when for client in self.direct for when, _ in between(client.acknowledged, begin, end)), begin, end)
        result.setdefault("cluster", []).append(gap)
        print(f"{name}: cluster {gap:.2f} s", flush=True)
        for target, clients in self.clients.items():
            noticed = Noticed.of(clients, begin, end)
            result.setdefault(target, []).append(noticed)
            print(f"  {target:12} errors {noticed.errors} ({noticed.refused} logins), reconnects {noticed.reconnects}, "
                  f"pause {noticed.pause:.2f} s {noticed.kinds}", flush=True)
        self.heal(leader, what)

    def run(self):
        planned = {"patronictl switchover": self.planned, "with before_stop": self.before_stopped,
                   "trunkline switchover": self.by_trunkline}  # fmt: skip
        lost = {"leader killed": self.killed, "leader cut off": self.cut_off}
        for events, rounds in ((planned, self.arguments.planned), (lost, self.arguments.lost)):
            for _ in range(rounds):
                for name, what in events.items():
                    self.event(name, what)

    def check(self):
        """The rows that each target's clients lost, or wrote twice."""
        self.stop.set()
        for client in self.all():
            client.join(30)
        found = {}
        for text in self.cluster.sql(self.cluster.wait(), "SELECT id FROM written", database="app", timeout=120).split():
            found[int(text)] = found.get(int(text), 0) + 1
        faults = {}
        for name, clients in [*self.clients.items(), ("direct", self.direct)]:
            acknowledged = [one for client in clients for _, one in client.acknowledged]
            numbers = {client.number for client in clients}
            lost = sum(one not in found for one in acknowledged)
            doubled = sum(count > 1 for one, count in found.items() if one // 10_000_000 in numbers)
            faults[name] = (len(acknowledged), lost, doubled)
            print(f"{name}: {len(acknowledged)} rows acknowledged, {lost} lost, {doubled} there twice")
        return faults

    def table(self):
        print("\n| event | target | errors | of these, logins | reconnects | longest pause, s | cluster's own, s |\n"
              "|---|---|---|---|---|---|---|")  # fmt: skip
        for event, result in self.results.items():
            for target in PORTS:
                noticed = result[target]
                counts = [spread([getattr(one, what) for one in noticed]) for what in ("errors", "refused", "reconnects")]
                pause, own = spread([one.pause for one in noticed], 1), spread(result["cluster"], 1)
                print(f"| {event} | {target} | {' | '.join(counts)} | {pause} | {own} |")


def spread(values, digits=0):
    if min(values) == max(values):
        return f"{values[0]:.{digits}f}"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planned", type=int, default=3, help="rounds of the planned switchovers")
    parser.add_argument("--lost", type=int, default=2, help="rounds of the lost leaders")
    parser.add_argument("--binary", type=Path, default=PROJECT / "target" / "release" / "trunkline")
    parser.add_argument("--pgbouncer", default="pgbouncer", help="the program")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arguments.binary = arguments.binary.absolute()
    if os.geteuid():
        sys.exit("bench-events: network namespaces need root")
    # As an exception, so that no namespace is left behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    bench = Bench(arguments)
    try:
        bench.up()
        bench.start_clients()
        bench.run()
        faults = bench.check()
        bench.table()
        if arguments.json:
            results = {event: {target: [vars(one) if isinstance(one, Noticed) else one for one in values]
                               for target, values in result.items()} for event, result in bench.results.items()}  # fmt: skip
            arguments.json.write_text(json.dumps({"events": results, "rows": faults}, indent=1))
    finally:
        bench.down()


if __name__ == "__main__":
    main()
