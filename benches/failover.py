"""How soon a freshly elected leader serves new sessions through a router, after it accepts writes at all.

    scripts/bench-failover [--switchovers 20] [--binary target/release/trunkline]

A real cluster (scripts/cluster.py: three nodes, Patroni 4.1, ttl 20, loop_wait 2) and two routers before it: one learns of the
leader by Patroni's REST interface alone, one by a watch on etcd as well. At each switchover three writers try every 5 ms:
`direct`, over a connection to the node that is to lead; `rest` and `etcd`, over a new connection through each router. A
writer's time is that of its first INSERT that was committed on the new leader; printed is by how much the routers' come after
`direct`'s, logging in included. The machine should do nothing else.

Needs psycopg2 (Debian's python3-psycopg2).
"""
import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psycopg2

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT / "scripts"))
import cluster as patroni  # noqa: E402

BASE, ETCD_PORT = "127.0.46.11", 14460
ROUTERS = {"rest": "127.0.46.101", "etcd": "127.0.46.102"}
PAUSE = 0.005
LIMIT = 60


def configuration(directory, kind, address, about):
    (directory / "pw").write_text(about["service_password"] + "\n")
    (directory / "pw").chmod(0o600)
    endpoints = ", ".join(f'"{node["rest"]}"' for node in about["nodes"])
    etcd = ""
    if kind == "etcd":
        etcd = f'    etcd: {{endpoints: ["{about["etcd"]["url"]}"], namespace: {about["namespace"]}, scope: {about["scope"]}}}\n'
    path = directory / f"{kind}.yaml"
    path.write_text(
        f"clusters:\n  main:\n    patroni: {{endpoints: [{endpoints}]}}\n{etcd}"
        f"    service_account: {{user: {about['service_user']}, password_file: pw}}\n"
        f'listeners:\n  - {{name: rw, address: "{address}:6432", route: read-write, tls: off}}\n'
        f'http: {{address: "{address}:6434"}}\n'
    )
    return path


def ready(address):
    return patroni.http(f"http://{address}:6434/connection/is-ready-rw?strict=1")[0] == 200


def connect(about, host, port):
    connection = psycopg2.connect(host=host, port=port, user=about["app_user"], password=about["app_password"],
                                  dbname=about["app_database"], sslmode="disable", connect_timeout=2)  # fmt: skip
    connection.autocommit = True
    return connection


class Writer(threading.Thread):
    """Tries until a row is written on the node TARGET; `done` is then the moment."""

    def __init__(self, about, host, port, target, keep):
        super().__init__(daemon=True)
        self.about, self.host, self.port, self.target, self.keep = about, host, port, target, keep
        self.done, self.error = None, None

    def run(self):
        end = time.monotonic() + LIMIT
        connection = None
        while self.done is None and time.monotonic() < end:
            try:
                connection = connection or connect(self.about, self.host, self.port)
                with connection.cursor() as cursor:
                    cursor.execute("INSERT INTO elected DEFAULT VALUES RETURNING host(inet_server_addr())")
                    if cursor.fetchone()[0] == self.target:
                        self.done = time.monotonic()
            except psycopg2.Error as error:
                self.error = error
                if connection and connection.closed:
                    connection = None
            if connection and not self.keep:
                connection.close()
                connection = None
            time.sleep(PAUSE)


def one(cluster, about):
    """One switchover: seconds after `direct`, by router."""
    leader = cluster.wait()
    target = next(node for node in cluster.nodes if node is not leader)
    patroni.Deadline(30).until(lambda: all(map(ready, ROUTERS.values())), "the routers to be ready")
    writers = {"direct": Writer(about, target.address, 5432, target.address, True)}
    for kind, address in ROUTERS.items():
        writers[kind] = Writer(about, address, 6432, target.address, False)
    for writer in writers.values():
        writer.start()
    cluster.switchover(target.name)
    for kind, writer in writers.items():
        writer.join(LIMIT)
        if writer.done is None:
            raise SystemExit(f"{kind}: nothing was written within {LIMIT} s: {writer.error}")
    return {kind: writers[kind].done - writers["direct"].done for kind in ROUTERS}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--switchovers", type=int, default=20)
    parser.add_argument("--binary", default=PROJECT / "target" / "release" / "trunkline")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="trunkline-failover-"))
    cluster = patroni.Cluster(directory / "cluster", name="failover", base=BASE, etcd_port=ETCD_PORT, ttl=20, loop_wait=2)
    routers = []
    try:
        directory.chmod(0o755)
        cluster.up()
        about = cluster.describe()
        cluster.sql(cluster.wait(), "CREATE TABLE elected (at timestamptz DEFAULT clock_timestamp()); "
                    "GRANT ALL ON elected TO app", database="app")  # fmt: skip
        for kind, address in ROUTERS.items():
            with open(directory / f"{kind}.log", "wb") as log:
                command = [arguments.binary, "run", "-c", configuration(directory, kind, address, about)]
                routers.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        results = {kind: [] for kind in ROUTERS}
        for number in range(arguments.switchovers):
            for kind, late in one(cluster, about).items():
                results[kind].append(late * 1000)
            print(number + 1, *(f"{kind} {values[-1]:.0f} ms" for kind, values in results.items()), flush=True)
        for kind, values in results.items():
            p95 = sorted(values)[max(0, -(-len(values) * 95 // 100) - 1)]
            print(f"{kind}: median {statistics.median(values):.0f} ms, p95 {p95:.0f} ms, most {max(values):.0f} ms")
    finally:
        for router in routers:
            router.kill()
            router.wait()
        cluster.down()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
