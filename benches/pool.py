#!/usr/bin/python3
"""Pooling side by side: PgBouncer and Trunkline, in transaction and in session mode, before one PostgreSQL on loopback.

Every round runs every target once, in turn; figures are the median over the rounds with the lowest and highest. A run is
measured from its first second to its last, when all clients are logged in, except for the logins themselves. CPU is the
process's own (all threads), from the scheduler's nanosecond counters. `ratio` is that of Trunkline's CPU to PgBouncer's
in the same round.

Run it through `make bench-pool`, which fetches what it needs and builds the release binary."""

import argparse
import base64
import hashlib
import hmac
import json
import os
import resource
import socket
import statistics
import struct
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rig import DATABASE, HOST, PASSWORD, PG_BIN, PG_PORT, SELECT, USER, Rig, cpu_ns, pss, spread

SERVER_CONNECTIONS = 20
FIRST_PORT = PG_PORT + 100

# Each client sets its own value once; so each transaction finds a connection with the state of another client.
STATE = "\\if :fresh\n{}\n\\set fresh 0\n\\endif\n" + SELECT
OWN_NAME = STATE.format("SET application_name TO 'client :client_id';")
OWN_WORK_MEM = STATE.format("\\set kb 4096 + :client_id\nSET work_mem TO :kb;")


@dataclass
class Workload:
    script: str | None  # None: pgbench's own, TPC-B-like
    clients: int
    protocol: str
    mode: str = "transaction"
    sslmode: str = "disable"
    extra: tuple = ()
    without: tuple = ()  # targets whose names begin so


WORKLOADS = {
    "simple-20": Workload(SELECT, 20, "simple"),
    "prepared-20": Workload(SELECT, 20, "prepared"),
    "simple-500": Workload(SELECT, 500, "simple"),
    "prepared-500": Workload(SELECT, 500, "prepared"),
    "tls-simple-500": Workload(SELECT, 500, "simple", sslmode="require"),
    "tls-prepared-500": Workload(SELECT, 500, "prepared", sslmode="require"),
    "tpcb-20": Workload(None, 20, "prepared"),
    # Simple, as pgbench waits for the answer to each Parse: with fewer connections than clients it may wait for itself.
    "tpcb-500": Workload(None, 500, "simple"),
    "own-name-500": Workload(OWN_NAME, 500, "simple", extra=("-D", "fresh=1")),
    "own-work_mem-500": Workload(OWN_WORK_MEM, 500, "simple", extra=("-D", "fresh=1"), without=("pgbouncer",)),
    # Each transaction is a login: TLS handshake and SCRAM.
    "login-4": Workload("SELECT 1;\n", 4, "simple", "session", "require", ("-C",)),
}


@dataclass
class Target:
    processes: list[int]
    ports: dict[str, int]


class Pools(Rig):
    def __init__(self, args):
        super().__init__()
        self.args = args
        self.next_port = FIRST_PORT
        self.count = 0
        self.logins = {}

    def port(self):
        self.next_port += 1
        return self.next_port

    def fresh(self, name):
        """A new process, or two for PgBouncer that shares its port."""
        kind, size = name.rsplit("-", 1)
        self.count += 1
        unique = f"{name}-{self.count}"
        if kind == "pgbouncer":
            return self.fresh_pgbouncer(unique, int(size))
        binaries = {"trunkline": self.args.trunkline.resolve(), **{name: Path(binary).resolve() for name, binary in self.args.build}}
        return self.fresh_trunkline(unique, int(size), binaries[kind])

    def fresh_pgbouncer(self, name, processes):
        ports, pids = {}, []
        for mode in ("transaction", "session"):
            ports[mode] = self.port()
            for number in range(processes):
                one = f"{name}-{mode}-{number}"
                # Two processes have half of the connections each.
                self.pgbouncer(one, ports[mode], mode, SERVER_CONNECTIONS // processes, self.args.pgbouncer,
                               "so_reuseport = 1\n" if processes > 1 else "")
                pids += self.pids[one]
        return Target(pids, ports)

    def fresh_trunkline(self, name, workers, binary):
        ports = {mode: self.port() for mode in ("transaction", "session")}
        listeners = "".join(f'  - {{name: {mode}, address: "{HOST}:{port}", route: {mode}}}\n' for mode, port in ports.items())
        routes = "".join(f"  {mode}: {{targets: [leader], queue_timeout: 1m, max_queue: 20000, "
                         f"pool: {{mode: {mode}, max_connections: {SERVER_CONNECTIONS}}}}}\n" for mode in ports)
        self.trunkline(name, ports["transaction"], self.port(),
                       f"workers: {workers}\nroutes:\n{routes}listeners:\n{listeners}", binary)
        return Target(self.pids[name], ports)

    def pgbench(self, workload, port, seconds, log=None):
        path = self.dir / "script.sql"
        if workload.script:
            path.write_text(workload.script)
        command = [PG_BIN / "pgbench", "-n", "-M", workload.protocol, "-c", workload.clients, "-j", min(2, workload.clients),
                   "-T", seconds, *(["-f", path] if workload.script else []), *(["-l", "--log-prefix", log, "-P", 1] if log else []),
                   *workload.extra, f"host={HOST} port={port} user={USER} dbname={DATABASE} sslmode={workload.sslmode}"]
        return subprocess.Popen([str(part) for part in command], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                env={**os.environ, "PGPASSWORD": PASSWORD})

    def run(self, workload, target):
        """Transactions per second, their 99th percentile in ms, and CPU in µs of each."""
        log = self.dir / "log"
        while True:
            # The logins count for pgbench's duration, and take as long as in the run before.
            logins = self.logins.setdefault((workload.clients, workload.mode), workload.clients // 100)
            started = time.time()
            run = self.pgbench(workload, target.ports[workload.mode], self.args.seconds + 1 + logins, log)
            marks, said = [], []
            for line in run.stderr:
                if line.startswith("progress:"):
                    marks.append((time.time(), cpu_ns(target.processes)))
                else:
                    said.append(line)
            out = run.stdout.read()
            if run.wait() or "failed transactions: 0 " not in out:
                sys.exit(f"pgbench failed: {''.join(said)[-2000:]}{out}")
            is_short = len(marks) <= self.args.seconds / 2
            took = logins + self.args.seconds if is_short else marks[0][0] - started - 1
            self.logins[workload.clients, workload.mode] = max(0, round(took))
            if not is_short:
                break
            for path in self.dir.glob("log.*"):
                path.unlink()
        (begun, cpu_before), (ended, cpu_after) = marks[0], marks[-1]
        latencies = []
        for path in self.dir.glob("log.*"):
            for line in path.read_text().splitlines():
                fields = line.split()
                if begun < int(fields[4]) + int(fields[5]) / 1e6 <= ended:
                    latencies.append(int(fields[2]))
            path.unlink()
        cpu = (cpu_after - cpu_before) / 1000 / len(latencies)
        return len(latencies) / (ended - begun), statistics.quantiles(latencies, n=100)[-1] / 1000, cpu

    def memory(self, name, sslmode):
        """PSS in KiB of each idle client beyond the first 1,000, of a fresh process."""
        target = self.fresh(name)
        clients, sizes = [], []
        for most in (1_000, 10_000):
            while len(clients) < most:
                clients.append(Client(target.ports["transaction"]))
            time.sleep(2)
            sizes.append(pss(target.processes))
        for client in clients:
            client.close()
        self.end(target)
        return (sizes[1] - sizes[0]) / 9_000, sizes[1]

    def many(self, name):
        """10,000 clients at once; pgbench's count of transactions, and of those that failed."""
        target = self.fresh(name)
        # The logins count for pgbench's duration.
        run = self.pgbench(Workload(SELECT, 10_000, "prepared"), target.ports["transaction"], 60)
        out, said = run.communicate()
        self.end(target)
        if run.returncode:
            return f"failed: {said[-300:]}"
        return " ".join(line for line in out.splitlines() if any(word in line for word in ("processed", "failed", "latency average", "initial connection time")) or line.startswith("tps"))

    def end(self, target):
        for pid in target.processes:
            os.kill(pid, 15)
        time.sleep(1)


class Client:
    """A client that logs in by SCRAM, runs one query and then idles: of 10,000, each must cost this script little."""

    salted = {}

    def __init__(self, port):
        self.socket = socket.create_connection((HOST, port), 60)
        self.stream = self.socket.makefile("rb", 512)
        self.send(b"", struct.pack("!i", 196608) + f"user\0{USER}\0database\0{DATABASE}\0\0".encode())
        self.expect(b"R")
        nonce = base64.b64encode(os.urandom(18))
        bare = b"n=,r=" + nonce
        self.send(b"p", b"SCRAM-SHA-256\0" + struct.pack("!i", len(bare) + 3) + b"n,," + bare)
        challenge = self.expect(b"R")[4:]
        fields = dict(field.split(b"=", 1) for field in challenge.split(b","))
        known = (fields[b"s"], fields[b"i"])
        if known not in self.salted:
            self.salted[known] = hashlib.pbkdf2_hmac("sha256", PASSWORD.encode(), base64.b64decode(fields[b"s"]), int(fields[b"i"]))
        key = hmac.digest(self.salted[known], b"Client Key", "sha256")
        final = b"c=biws,r=" + fields[b"r"]
        signature = hmac.digest(hashlib.sha256(key).digest(), b",".join((bare, challenge, final)), "sha256")
        proof = bytes(a ^ b for a, b in zip(key, signature))
        self.send(b"p", final + b",p=" + base64.b64encode(proof))
        self.expect(b"Z")
        self.send(b"Q", b"SELECT 1\0")
        self.expect(b"Z")

    def send(self, kind, body):
        self.socket.sendall(kind + struct.pack("!i", len(body) + 4) + body)

    def expect(self, wanted):
        while True:
            kind, length = struct.unpack("!ci", self.stream.read(5))
            body = self.stream.read(length - 4)
            if kind == b"E":
                sys.exit(f"a client got {body}")
            if kind == wanted:
                return body

    def close(self):
        self.stream.close()
        self.socket.close()


def table(figures, base):
    print("| target | tps | p99 ms | own CPU µs per transaction | ratio |\n|---|---|---|---|---|")
    for name, values in figures.items():
        ratio = "–"
        if base in figures and name != base:
            ratio = spread([mine / its for mine, its in zip(values["cpu_us"], figures[base]["cpu_us"])], 2)
        print(f"| {name} | {spread(values['tps'])} | {spread(values['p99_ms'], 2)} | {spread(values['cpu_us'], 1)} | {ratio} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3, help="length of one run, beyond its first second")
    parser.add_argument("--workloads", nargs="*", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--targets", nargs="*", default=["pgbouncer-1", "trunkline-1", "trunkline-2"],
                        help="NAME-N: with N workers, which for PgBouncer are N processes on one port")
    parser.add_argument("--pgbouncer", type=Path, default="pgbouncer", help="the program")
    parser.add_argument("--trunkline", type=Path, default=Rig.TRUNKLINE, help="the program")
    parser.add_argument("--build", nargs=2, action="append", default=[], metavar=("NAME", "BINARY"),
                        help="another build of Trunkline, for a target NAME-N; may be given again")
    parser.add_argument("--no-clients", action="store_true", help="without memory, and without 10,000 clients at once")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    bench = Pools(args)
    try:
        print(subprocess.run([args.pgbouncer, "--version"], text=True, capture_output=True, check=True).stdout.splitlines()[0])
        bench.postgres(scale=20)
        targets = {name: bench.fresh(name) for name in args.targets}
        report = {"machine": f"{os.cpu_count()} cores, {os.uname().release}", "workloads": {}}
        for workload in args.workloads:
            what = WORKLOADS[workload]
            figures = {name: {"tps": [], "p99_ms": [], "cpu_us": []} for name in targets if not name.startswith(what.without)}
            for _ in range(args.rounds):
                for name, values in figures.items():
                    for key, value in zip(values, bench.run(what, targets[name])):
                        values[key].append(value)
            report["workloads"][workload] = figures
            print(f"\n### {workload}: {args.rounds} rounds of {args.seconds} s, median (lowest–highest)\n")
            table(figures, args.targets[0])
        if not args.no_clients:
            print("\n### Memory: PSS per idle client beyond the first 1,000, KiB, in a fresh process\n")
            print("| target | per client | with 10,000 clients |\n|---|---|---|")
            report["memory"] = {}
            for name in targets:
                each, total = report["memory"][name] = bench.memory(name, "disable")
                print(f"| {name} | {each:.2f} | {total} |", flush=True)
            print(f"\n### 10,000 clients on {SERVER_CONNECTIONS} connections\n")
            for name in targets:
                print(f"- {name}: {bench.many(name)}", flush=True)
        if args.json:
            args.json.write_text(json.dumps(report, indent=1))
    finally:
        bench.stop()


if __name__ == "__main__":
    main()
