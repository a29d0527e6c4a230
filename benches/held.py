#!/usr/bin/python3
"""What clients cost while they are held, and how soon they go on: before one PostgreSQL on loopback.

    scripts/bench-held [--rounds 3] [--clients 10000] [--sessions 250] [--binary target/release/trunkline]

Clients of a route in transaction mode with 20 connections send one query each, while the route is paused (`trunkline pause`),
and while the server is down. Measured are the router's memory for each client beyond what it has for an idle one, its CPU
time while nothing happens, and the time from the end of the pause, or from the first login that the new server accepts, to
the last client's answer. Beside it, the same queries over 20 direct connections.

Then sessions of a route with `resume: tracked` wait for a server that is down: the time from the first login that it accepts
to the last one's answer, beside as many direct logins, with a query each, to the same server after the same stop.
"""

import argparse
import json
import os
import re
import resource
import select
import signal
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pool import Client
from rig import HOST, PG_PORT, Rig, cpu_ns, pss, spread

CONNECTIONS = 20
POOLED, TRACKED, HTTP = PG_PORT + 300, PG_PORT + 301, PG_PORT + 302
TOKEN = "token-of-the-benchmark"
QUIET = 10
AT_ONCE = 32  # as many held clients the router lets look for a server at once
QUERY = b"Q\0\0\0\x0dSELECT 1\0"
READY = b"Z\0\0\0\x05I"


class Answers:
    """Reads the answers of many clients."""

    def __init__(self, clients):
        self.by_descriptor = {client.socket.fileno(): client for client in clients}
        self.epoll = select.epoll()
        for descriptor in self.by_descriptor:
            self.epoll.register(descriptor, select.EPOLLIN)

    def take(self, wanted, then=None):
        """Until so many queries are answered; `then(client)` after each. Returns when the first and the last one were."""
        done, first, end = 0, None, time.monotonic() + 120
        while done < wanted:
            if time.monotonic() > end:
                sys.exit(f"{wanted - done} of {wanted} answers are missing")
            for descriptor, _ in self.epoll.poll(1):
                client = self.by_descriptor[descriptor]
                text = client.socket.recv(4096)
                if not text or text[:1] == b"E":
                    sys.exit(f"a held client got {text}")
                if text.endswith(READY):
                    done, first = done + 1, first or time.monotonic()
                    if then:
                        then(client)
        return first, time.monotonic()


class Held(Rig):
    def __init__(self, args):
        super().__init__()
        self.args = args

    def up(self):
        self.postgres()
        token = self.dir / "token"
        token.write_text(TOKEN)
        token.chmod(0o600)
        self.trunkline("trunkline", POOLED, HTTP, f"""routes:
  pooled: {{targets: [leader], queue_timeout: 1m, max_queue: 20000, pool: {{mode: transaction, max_connections: {CONNECTIONS}}}}}
  tracked: {{targets: [leader], resume: tracked}}
listeners:
  - {{name: pooled, address: "{HOST}:{POOLED}", route: pooled}}
  - {{name: tracked, address: "{HOST}:{TRACKED}", route: tracked}}
""", self.args.binary.resolve(), f", token_file: {token}")
        self.router = self.pids["trunkline"]

    # -- the router

    def ask(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(f"http://{HOST}:{HTTP}{path}", data, headers), timeout=60) as answer:
            return answer.read().decode()

    def await_held(self, route, wanted):
        end = time.monotonic() + 60
        while True:
            found = re.search(rf'^trunkline_hold_length{{route="{route}"}} (\d+)', self.ask("/metrics"), re.M)
            if found and int(found[1]) == wanted:
                return
            if time.monotonic() > end:
                sys.exit(f"{found and found[1]} clients of {wanted} are held")
            time.sleep(0.2)

    # -- the server

    def stop_server(self):
        """A fast shutdown, and time for the router to notice what it means for its sessions."""
        pid = int((self.dir / "data/postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGINT)
        self.server.wait(60)
        self.children.remove(self.server)
        time.sleep(1)

    def start_postgres(self):
        self.server = super().start_postgres()
        return self.server

    def start_server(self):
        """Returns when it was first seen to accept a login."""
        self.start_postgres()
        while True:
            try:
                Client(PG_PORT).close()
                return time.monotonic()
            except (OSError, SystemExit):
                time.sleep(0.002)

    # -- figures

    def many(self, release):
        """Clients of the pool are held; `release` lets them go and returns since when they could."""
        idle = pss(self.router)
        for client in self.clients:
            client.socket.sendall(QUERY)
        self.await_held("pooled", len(self.clients))
        time.sleep(1)
        memory = (pss(self.router) - idle) / len(self.clients)
        before = cpu_ns(self.router)
        time.sleep(QUIET)
        cpu = (cpu_ns(self.router) - before) / 1e9 / QUIET * 100
        before = cpu_ns(self.router)
        answers = Answers(self.clients)
        since = release()
        first, last = answers.take(len(self.clients))
        return {"KiB": memory, "cpu": cpu, "first": first - since, "last": last - since,
                "release_cpu": (cpu_ns(self.router) - before) / 1e9}  # fmt: skip

    def paused(self):
        self.ask("/api/v1/routes/pooled/pause", {"all_peers": False, "wait_ms": 5000, "timeout_ms": 600_000})

        def release():
            since = time.monotonic()
            self.ask("/api/v1/routes/pooled/unpause", {"all_peers": False})
            return since

        return self.many(release)

    def down(self):
        self.stop_server()
        return self.many(self.start_server)

    def direct(self, connections):
        """As many queries over direct connections: each one sends the next when it has its answer."""
        left = len(self.clients) - len(connections)

        def then(client):
            nonlocal left
            if left > 0:
                left -= 1
                client.socket.sendall(QUERY)

        answers = Answers(connections)
        since = time.monotonic()
        for client in connections:
            client.socket.sendall(QUERY)
        return answers.take(len(self.clients), then)[1] - since

    def direct_after_a_stop(self):
        """As many queries over direct connections that are opened when the server is there."""
        self.stop_server()
        since = self.start_server()
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            connections = list(threads.map(lambda _: Client(PG_PORT), range(CONNECTIONS)))
        self.direct(connections)
        took = time.monotonic() - since
        for client in connections:
            client.close()
        return took

    def sessions(self):
        """Tracked sessions come back after a stop."""
        clients = [Client(TRACKED) for _ in range(self.args.sessions)]
        self.stop_server()
        for client in clients:
            client.socket.sendall(QUERY)
        self.await_held("tracked", len(clients))
        answers = Answers(clients)
        since = self.start_server()
        first, last = answers.take(len(clients))
        for client in clients:
            client.close()
        return {"first": first - since, "last": last - since}

    def logins(self):
        """As many direct logins after a stop."""
        self.stop_server()
        since = self.start_server()
        with ThreadPoolExecutor(AT_ONCE) as threads:
            clients = list(threads.map(lambda _: Client(PG_PORT), range(self.args.sessions)))
        took = time.monotonic() - since
        for client in clients:
            client.close()
        return took

    def run(self):
        self.clients = [Client(POOLED) for _ in range(self.args.clients)]
        time.sleep(2)
        figures = {name: [] for name in ("paused", "down", "direct", "direct_after_a_stop", "sessions", "logins")}
        connections = [Client(PG_PORT) for _ in range(CONNECTIONS)]
        for _ in range(self.args.rounds):
            figures["paused"].append(self.paused())
            figures["direct"].append(self.direct(connections))
            print(figures["paused"][-1], figures["direct"][-1], flush=True)
        for client in connections:
            client.close()
        for _ in range(self.args.rounds):
            figures["down"].append(self.down())
            figures["direct_after_a_stop"].append(self.direct_after_a_stop())
            print(figures["down"][-1], figures["direct_after_a_stop"][-1], flush=True)
        for client in self.clients:
            client.close()
        for _ in range(self.args.rounds):
            figures["sessions"].append(self.sessions())
            figures["logins"].append(self.logins())
            print(figures["sessions"][-1], figures["logins"][-1], flush=True)
        return figures


def table(args, figures):
    print(f"\nMemory, when they are held for the first time: {figures['paused'][0]['KiB']:.2f} KiB for each client")
    print("\n| held | CPU while held, % of a core | first answer, s | last answer, s | router's CPU for these, s | direct, s |\n"
          "|---|---|---|---|---|---|")  # fmt: skip

    def row(name, whats, beside):
        columns = [spread([one[what] for one in figures[name]], 2) if what else "" for what in whats]
        print(f"| {name} | {' | '.join(columns)} | {spread(figures[beside], 2)} |")

    row("paused", ("cpu", "first", "last", "release_cpu"), "direct")
    row("down", ("cpu", "first", "last", "release_cpu"), "direct_after_a_stop")
    row("sessions", (None, "first", "last", None), "logins")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--sessions", type=int, default=250)
    parser.add_argument("--binary", type=Path, default=Rig.TRUNKLINE, help="the program")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    bench = Held(args)
    try:
        bench.up()
        figures = bench.run()
        table(args, figures)
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1))
    finally:
        bench.stop()


if __name__ == "__main__":
    main()
