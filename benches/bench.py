#!/usr/bin/python3
"""Side-by-side benchmark: direct, a bare epoll forwarder, HAProxy (TCP), PgBouncer (session), and Trunkline, the last
two in clear and in TLS, against one PostgreSQL on loopback.

Every round runs every target once, in turn, so that a drift of the machine hits all of them alike; figures are the
median over the rounds with the lowest and highest. CPU is the process's own (all threads), from the scheduler's
nanosecond counters, per transaction. Memory is PSS per idle client, before and after one 256 KiB answer. Refused
logins: a wrong password and an unknown user in turn, from connect to the error.

Run it through `make bench`, which installs what it needs and builds the release binary."""

import argparse
import base64
import json
import os
import re
import socket
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

from rig import DATABASE, HOST, PASSWORD, PG_BIN, PG_PORT, ROOT, SELECT, USER, Rig, cpu_ns, pss, spread

FWD_PORT, HAP_PORT, BOUNCER_PORT, TL_PORT, TL_RO_PORT, TL_HTTP_PORT, TL_TCP_PORT = range(PG_PORT + 1, PG_PORT + 8)
OTHER_BUILDS = PG_PORT + 8  # and the ports above it, two for each

ROWS = "\\set aid random(1, 90000)\nSELECT aid, bid, abalance, filler FROM pgbench_accounts WHERE aid BETWEEN :aid AND :aid + 99;\n"
BULK = "SELECT value FROM bulk;\n"

WORKLOADS = {
    # name: (script, clients, threads, protocol, pgbench extra)
    "select-1": (SELECT, 1, 1, "prepared", []),
    "select-16": (SELECT, 16, 2, "prepared", []),
    "rows100-16": (ROWS, 16, 2, "prepared", []),
    "bulk10MB-2": (BULK, 2, 2, "simple", []),
    "connect-4": (SELECT, 4, 2, "simple", ["-C"]),
    # Each transaction is a login: through the TLS targets, TLS handshake and SCRAM.
    "login-4": ("SELECT 1;\n", 4, 2, "simple", ["-C"]),
}


class Bench(Rig):
    def __init__(self, args):
        super().__init__()
        self.args = args

    def forwarder(self):
        binary = self.dir / "forwarder"
        subprocess.run(["cc", "-O2", "-o", binary, ROOT / "benches/forwarder.c"], check=True)
        self.start("forwarder", [binary, FWD_PORT, HOST, PG_PORT], FWD_PORT)

    def haproxy(self):
        conf = self.dir / "haproxy.cfg"
        conf.write_text(f"""global
    maxconn 4000
defaults
    mode tcp
    timeout connect 4s
    timeout client 30m
    timeout server 30m
listen bench
    bind {HOST}:{HAP_PORT}
    server pg {HOST}:{PG_PORT}
""")
        self.start("haproxy", ["haproxy", "-db", "-f", conf], HAP_PORT)

    def run_round(self, workload, port, sslmode):
        script, clients, threads, protocol, extra = WORKLOADS[workload]
        path = self.dir / f"{workload}.sql"
        path.write_text(script)
        out = subprocess.run(
            [PG_BIN / "pgbench", "-n", "-f", path, "-M", protocol, "-c", str(clients), "-j", str(threads), "-T", str(self.args.seconds),
             *extra, f"host={HOST} port={port} user={USER} dbname={DATABASE} sslmode={sslmode}"],
            text=True, capture_output=True, env={**os.environ, "PGPASSWORD": PASSWORD})
        if out.returncode:
            sys.exit(f"pgbench against port {port} failed: {out.stderr}")
        transactions = int(re.search(r"actually processed: (\d+)", out.stdout)[1])
        tps = float(re.search(r"tps = ([\d.]+)", out.stdout)[1])
        return tps, transactions

    def memory(self, name, port, sslmode, clients):
        """PSS per idle client in KiB: after login, and after each has had one 256 KiB answer."""
        before = pss(self.pids[name])
        sessions = [Session(port, sslmode) for _ in range(clients)]
        time.sleep(1)
        idle = (pss(self.pids[name]) - before) / clients
        for session in sessions:
            session.query("SELECT repeat('x', 262144)")
        time.sleep(1)
        after = (pss(self.pids[name]) - before) / clients
        for session in sessions:
            session.close()
        return idle, after


class Session:
    """One psql that stays: real SCRAM and TLS, at the cost of a process."""

    def __init__(self, port, sslmode):
        self.child = subprocess.Popen(
            ["psql", "-XAtq", f"host={HOST} port={port} user={USER} dbname={DATABASE} sslmode={sslmode}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PGPASSWORD": PASSWORD})
        self.query("SELECT 1")

    def query(self, sql):
        self.child.stdin.write(sql + ";\n")
        self.child.stdin.flush()
        return self.child.stdout.readline()

    def close(self):
        self.child.stdin.close()
        self.child.wait(10)


def refused_login(port, user):
    """One login by SCRAM with a made-up proof; seconds from connect to the error, and the messages' types and sizes."""
    began = time.perf_counter()
    with socket.create_connection((HOST, port), 10) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = sock.makefile("rb")

        def message(kind, body):
            sock.sendall(kind + struct.pack("!i", len(body) + 4) + body)

        def answer():
            kind = stream.read(1)
            return kind, stream.read(struct.unpack("!i", stream.read(4))[0] - 4)

        message(b"", struct.pack("!i", 196608) + f"user\0{user}\0database\0{DATABASE}\0\0".encode())
        shape = [answer()]
        first = b"n,,n=,r=" + base64.b64encode(os.urandom(18))
        message(b"p", b"SCRAM-SHA-256\0" + struct.pack("!i", len(first)) + first)
        shape.append(answer())
        nonce = re.match(rb"r=([^,]+)", shape[1][1][4:])[1]
        message(b"p", b"c=biws,r=" + nonce + b",p=" + base64.b64encode(os.urandom(32)))
        shape.append(answer())
    took = time.perf_counter() - began
    if shape[-1][0] != b"E" or b"28P01" not in shape[-1][1]:
        sys.exit(f"a made-up proof of {user} was answered {shape[-1]}")
    return took, [(kind, len(body)) for kind, body in shape]


def refused_logins(port, times):
    """Medians of a wrong password and of an unknown user whose name is as long, taken in turn."""
    users = {"wrong password": USER, "unknown user": "xyz"[: len(USER)]}
    took, shapes = {what: [] for what in users}, set()
    for _ in range(times):
        for what, user in users.items():
            seconds, shape = refused_login(port, user)
            took[what].append(seconds * 1e6)
            shapes.add(str(shape))
    return took, shapes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3, help="length of one run")
    parser.add_argument("--workloads", nargs="*", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--targets", nargs="*")
    parser.add_argument("--idle-clients", type=int, default=200)
    parser.add_argument("--refused-logins", type=int, default=1000, help="of each kind; 0 is none")
    parser.add_argument("--build", nargs=2, action="append", default=[], metavar=("NAME", "BINARY"),
                        help="another build of Trunkline, measured in the same rounds, in clear; may be given again")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    bench = Bench(args)
    try:
        bench.postgres()
        bench.psql(PG_PORT, "CREATE TABLE bulk AS SELECT repeat('x', 10 * 1024 * 1024) AS value; VACUUM ANALYZE bulk")
        bench.forwarder()
        bench.haproxy()
        bench.pgbouncer("pgbouncer", BOUNCER_PORT, "session", 1100)
        bench.trunkline("trunkline", TL_PORT, TL_HTTP_PORT, f"""auth: {{rate_limit: {{failures: 0}}}}
listeners:
  - {{name: rw, address: "{HOST}:{TL_PORT}", route: read-write}}
  - {{name: tcp, address: "{HOST}:{TL_TCP_PORT}", route: read-write, mode: tcp}}
""")
        targets = {
            "direct": (PG_PORT, "disable", None),
            "forwarder": (FWD_PORT, "disable", "forwarder"),
            "haproxy": (HAP_PORT, "disable", "haproxy"),
            "pgbouncer": (BOUNCER_PORT, "disable", "pgbouncer"),
            "pgbouncer-tls": (BOUNCER_PORT, "require", "pgbouncer"),
            "trunkline": (TL_PORT, "disable", "trunkline"),
            "trunkline-tls": (TL_PORT, "require", "trunkline"),
            "trunkline-tcp": (TL_TCP_PORT, "disable", "trunkline"),
        }
        others = {}
        for number, (name, binary) in enumerate(args.build):
            port = OTHER_BUILDS + 2 * number
            # With only keys that every version has.
            listener = f'{{name: rw, address: "{HOST}:{port}", route: read-write}}'
            bench.trunkline(name, port, port + 1, f"listeners: [{listener}]\n", Path(binary).resolve())
            others[name] = (port, "disable", name)
        if args.targets:
            targets = {name: value for name, value in targets.items() if name in args.targets or name == "direct"}
        targets |= others
        report = {"machine": f"{os.cpu_count()} cores, {os.uname().release}", "workloads": {}}
        for workload in args.workloads:
            figures = {name: {"tps": [], "ratio": [], "cpu_us": []} for name in targets}
            for _ in range(args.rounds):
                direct = None
                for name, (port, sslmode, process) in targets.items():
                    pids = bench.pids.get(process, [])
                    before = cpu_ns(pids)
                    tps, transactions = bench.run_round(workload, port, sslmode)
                    used = cpu_ns(pids) - before
                    direct = tps if name == "direct" else direct
                    figures[name]["tps"].append(tps)
                    figures[name]["ratio"].append(tps / direct)
                    if process:
                        figures[name]["cpu_us"].append(used / 1000 / max(transactions, 1))
            report["workloads"][workload] = figures
            print(f"\n### {workload}: {args.rounds} rounds of {args.seconds} s, median (lowest–highest)\n")
            print("| target | tps | ratio to direct | own CPU µs per transaction |\n|---|---|---|---|")
            for name, values in figures.items():
                cpu = spread(values["cpu_us"], 1) if values["cpu_us"] else "–"
                print(f"| {name} | {spread(values['tps'], 1)} | {spread(values['ratio'], 3)} | {cpu} |", flush=True)
        if args.idle_clients:
            print(f"\n### Memory: PSS per idle client, KiB, {args.idle_clients} clients\n")
            print("| target | after login | after one 256 KiB answer |\n|---|---|---|")
            report["memory"] = {}
            for name, (port, sslmode, process) in targets.items():
                if process:
                    idle, after = bench.memory(process, port, sslmode, args.idle_clients)
                    report["memory"][name] = [idle, after]
                    print(f"| {name} | {idle:.1f} | {after:.1f} |", flush=True)
        if args.refused_logins:
            took, shapes = refused_logins(TL_PORT, args.refused_logins)
            report["refused_logins_us"] = took
            print(f"\n### Refused logins, {args.refused_logins} of each in turn, µs from connect to the error\n")
            print("| login | median | 10th and 90th percentile |\n|---|---|---|")
            for what, values in took.items():
                deciles = statistics.quantiles(values, n=10)
                print(f"| {what} | {statistics.median(values):.1f} | {deciles[0]:.1f}–{deciles[-1]:.1f} |")
            wrong, unknown = (statistics.median(values) for values in took.values())
            print(f"\nThe medians are {abs(wrong - unknown) / wrong:.2%} apart; {len(shapes)} shape(s) of messages.", flush=True)
        if args.json:
            args.json.write_text(json.dumps(report, indent=1))
    finally:
        bench.stop()


if __name__ == "__main__":
    main()
