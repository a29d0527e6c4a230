#!/usr/bin/python3
"""The demo behind `scripts/demo` and `make demo`.

    scripts/demo run              start everything, say what to type, stay until Ctrl-C, leave nothing behind
    scripts/demo up               the same without staying
    scripts/demo status           who is leader, what runs
    scripts/demo switchover [--to NODE]
    scripts/demo kill NODE        a dead host: server, Patroni and router of node1, node2 or node3
    scripts/demo start NODE       bring it back
    scripts/demo down             end everything, also after a crash

Everything lives in one directory (TRUNKLINE_DEMO_DIR, default trunkline-demo-UID in the temporary directory): see
scripts/cluster.py for how processes are told from others'. TRUNKLINE_DEMO_ROUTERS=0 leaves the routers out.
"""
import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
from cluster import Cluster, ClusterError, Deadline, PROJECT, SERVICE_PASSWORD  # noqa: E402
from cluster import http, in_use, locked, print_status, tail  # noqa: E402

# What developers build: good enough for a try, and there in a fraction of the time that the release binary takes.
BINARY = PROJECT / "target" / "debug" / "trunkline"
CERTS = PROJECT / "certs"
DIR = Path(os.environ.get("TRUNKLINE_DEMO_DIR") or Path(tempfile.gettempdir()) / f"trunkline-demo-{os.geteuid()}")
READ_WRITE, READ_ONLY, HTTP = 6432, 6433, 6434
LOCAL = "127.0.0.1"  # the first router listens here too


def routers_wanted():
    return os.environ.get("TRUNKLINE_DEMO_ROUTERS") != "0"


def build():
    if not routers_wanted():
        return
    print("building the router (the first time takes some minutes)", flush=True)
    path = os.environ.get("PATH", "") + os.pathsep + os.path.expanduser("~/.cargo/bin")
    try:
        subprocess.run(["cargo", "build", "--bin", "trunkline", "--locked", "--quiet"], cwd=PROJECT, check=True,
                       env=os.environ | {"PATH": path, "CARGO_TARGET_DIR": str(PROJECT / "target")})  # fmt: skip
    except FileNotFoundError:
        raise ClusterError("cargo is missing: install Rust with rustup (https://rustup.rs)") from None
    except subprocess.CalledProcessError:
        raise ClusterError("the router could not be built (see above)") from None


class Demo(Cluster):
    def router_dir(self, node):
        return self.dir / "routers" / node.name

    def router_addresses(self, node):
        addresses = [(node.address, port) for port in (READ_WRITE, READ_ONLY, HTTP)]
        if node is self.nodes[0]:
            addresses += [(LOCAL, READ_WRITE), (LOCAL, READ_ONLY), (LOCAL, HTTP)]
        return addresses

    def router_config(self, node):
        """The text of one router's configuration: what a person would write, kept short."""
        shared = self.dir / "routers"
        endpoints = ", ".join(f'"{other.rest}"' for other in self.nodes)
        peers = "\n".join(f'    - {{name: {other.name}, address: "{other.address}:{READ_WRITE}"}}'
                          for other in self.nodes if other is not node)  # fmt: skip
        listeners = [("rw", node.address, READ_WRITE, "read-write"), ("ro", node.address, READ_ONLY, "read-only")]
        if node is self.nodes[0]:
            listeners += [("rw-local", LOCAL, READ_WRITE, "read-write"), ("ro-local", LOCAL, READ_ONLY, "read-only")]
        listening = "\n".join(f'  - {{name: {name}, address: "{address}:{port}", route: {route}}}'
                              for name, address, port, route in listeners)  # fmt: skip
        http_hosts = [node.address, LOCAL] if node is self.nodes[0] else [node.address]
        http_addresses = ", ".join(f'"{host}:{HTTP}"' for host in http_hosts)
        return f"""\
# Made by scripts/demo: the router beside {node.name}.
clusters:
  main:
    patroni: {{endpoints: [{endpoints}]}}
    service_account: {{user: trunkline, password_file: {shared / "service-account.password"}}}
    server_tls: {{sslmode: verify-full, sslrootcert: {CERTS / "ca.crt"}}}
    local_member: {node.name}
tls:
  certificates: [{{cert_file: {CERTS / "server.crt"}, key_file: {CERTS / "server.key"}}}]
routes:
  read-write: {{cluster: main, targets: [leader], resume: tracked}}
  read-only: {{cluster: main, targets: [replica]}}
listeners:
{listening}
http: {{address: [{http_addresses}], token_file: {shared / "http.token"}}}
peers:
  secret_file: {shared / "peers.key"}
  members:
{peers}
"""

    def prepare_routers(self):
        shared = self.dir / "routers"
        shared.mkdir(mode=0o700)
        token = secrets.token_hex(32)
        for name, text in (("routers/service-account.password", SERVICE_PASSWORD), ("routers/peers.key", secrets.token_hex(32)),
                           ("routers/http.token", token), ("before-stop.token", token)):  # fmt: skip
            with open(os.open(self.dir / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(text + "\n")
        # Patroni's account may not be able to read the routers' files, nor to reach the program where it was built.
        self.own(self.dir / "before-stop.token", 0o400)
        program = self.dir / "trunkline"
        try:
            os.link(BINARY, program)
        except OSError:
            shutil.copy(BINARY, program)
        for node in self.nodes:
            self.router_dir(node).mkdir(mode=0o700)
            (self.dir / f"{node.name}.yaml").write_text(self.router_config(node))
            script = self.dir / f"before-stop-{node.name}"
            script.write_text(f"#!/bin/sh\nexec {program} before-stop --url http://{node.address}:{HTTP} "
                              f"--token-file {self.dir / 'before-stop.token'}\n")  # fmt: skip
            script.chmod(0o755)

    def start_router(self, node):
        if not routers_wanted():
            return
        log = self.dir / f"router-{node.name}.log"
        command = [BINARY, "run", "-c", self.dir / f"{node.name}.yaml"]
        self.launch(f"router-{node.name}", command, self.router_dir(node), log, env=os.environ.copy())

        def ready():
            if not self.pid(f"router-{node.name}"):
                raise ClusterError(f"the router of {node.name} ended at its start{tail(log)}")
            return http(f"http://{node.address}:{HTTP}/connection/is-ready")[0] == 200

        Deadline(30).until(ready, f"the router of {node.name} to be ready", log)

    def up(self):
        super().up()
        try:
            if routers_wanted():
                self.prepare_routers()
            for node in self.nodes:
                self.start_router(node)
        except BaseException:
            self.down()
            raise

    def check_ports(self):
        super().check_ports()
        for node in self.nodes:
            for address, port in self.router_addresses(node):
                if in_use(address, port):
                    raise ClusterError(f"{address}:{port} is in use (`ss -ltnp` tells by whom): end that program first")

    def start(self, name):
        super().start(name)
        if name.startswith("node"):
            node = self.node(name)
            # Not ready before its cluster answers; that is waited for here, the replica's return is not.
            self.start_router(node)


def what_to_type(demo):
    ca = CERTS / "ca.crt"

    def psql(host, port):
        return f'  PGPASSWORD=app psql "host={host} port={port} user=app dbname=app sslmode=verify-full sslrootcert={ca}"'

    print(f"""
Read-write (the leader, wherever it is):
{psql(LOCAL, READ_WRITE)}
Read-only (a replica):
{psql(LOCAL, READ_ONLY)}
Each router listens beside its server too, on {", ".join(n.address for n in demo.nodes)}, same ports. HTTP:
  curl http://{demo.nodes[0].address}:{HTTP}/connection/is-ready
  curl http://{demo.nodes[0].address}:{HTTP}/group/read-write-info
  curl http://{demo.nodes[0].address}:{HTTP}/metrics
Things to try, in another terminal:
  scripts/demo status
  scripts/demo switchover     (sessions on the read-write port go on: Patroni runs `trunkline before-stop` before the stop)
  scripts/demo kill {demo.nodes[0].name}     (a dead host; Patroni names a new leader after about {demo.options["ttl"]} s)
  scripts/demo start {demo.nodes[0].name}
Configuration, logs and data: {demo.dir}
""", flush=True)  # fmt: skip


def up():
    marker = DIR / "cluster.json"
    if marker.exists() and Cluster(DIR).alive():
        raise ClusterError(f"the demo is already up (in {DIR}): `scripts/demo status`, `scripts/demo down`")
    build()
    begun = time.monotonic()
    subprocess.run([CERTS / "make-certs"], check=True)
    # Before Patroni stops a server, the routers hold its clients: a switchover costs them no error.
    before_stop = "{dir}/before-stop-{node}" if routers_wanted() else None
    demo = Demo(DIR, name="demo", certs=str(CERTS), verbose=True, before_stop=before_stop)
    demo.up()
    print_status(demo.status())
    print(f"up in {time.monotonic() - begun:.1f} s")
    what_to_type(demo)
    return demo


def existing():
    if not (DIR / "cluster.json").exists():
        raise ClusterError("the demo is not up: start it with `scripts/demo up`")
    return Demo(DIR)


def stop(*_):
    raise KeyboardInterrupt


def run():
    """Up, stay, down: whatever ends it, also a closed terminal."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        with locked(DIR):
            up()
        print("Ctrl-C ends it and leaves nothing behind.", flush=True)
        while (DIR / "cluster.json").exists():  # `scripts/demo down` elsewhere ends it too
            time.sleep(1)
    except KeyboardInterrupt:
        pass
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C does not leave half of it behind


def main():
    parser = argparse.ArgumentParser(prog="scripts/demo", allow_abbrev=False, description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in ("run", "up", "down", "help"):
        commands.add_parser(name)
    commands.add_parser("status").add_argument("--json", action="store_true")
    commands.add_parser("switchover").add_argument("--to", metavar="NODE")
    for name in ("kill", "start"):
        commands.add_parser(name).add_argument("node", metavar="NODE")
    arguments = parser.parse_args()
    command = arguments.command
    try:
        if command == "help":
            print(__doc__.strip())
        elif command == "run":
            # Only what this run started is taken down: not a demo that was already up.
            already = (DIR / "cluster.json").exists() and Cluster(DIR).alive()
            if already:
                raise ClusterError(f"the demo is already up (in {DIR}): `scripts/demo status`, `scripts/demo down`")
            try:
                run()
            finally:
                with locked(DIR):
                    if (DIR / "cluster.json").exists():
                        print("\ntaking everything down", flush=True)
                        Demo(DIR).down()
        elif command == "up":
            signal.signal(signal.SIGTERM, stop)
            with locked(DIR):
                up()
        elif command == "down":
            with locked(DIR):
                if (DIR / "cluster.json").exists():
                    Demo(DIR).down()
        elif command == "status":
            status = existing().status()
            if arguments.json:
                print(json.dumps(status, indent=1))
            else:
                print_status(status)
                for node in status["nodes"]:
                    print(f"  router beside {node['name']}: {'running' if node['router'] else 'stopped'}")
        elif command == "switchover":
            print(f"the leader is now {existing().switchover(arguments.to).name}")
        elif command == "kill":
            with locked(DIR):
                existing().kill(arguments.node)
            print(f"{arguments.node} is dead: its server, Patroni and router")
        elif command == "start":
            with locked(DIR):
                existing().start(arguments.node)
            print(f"{arguments.node} is started; `scripts/demo status` shows when it streams again")
    except ClusterError as error:
        sys.exit(f"demo: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"demo: failed: {' '.join(map(str, error.cmd))}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
