"""The router before a cluster: a configuration with every kind of route that is checked, and its process."""
import os
import secrets
import signal
import subprocess

import cluster
from programs import ROOT

PORTS = {"read-write": 6432, "read-only": 6433, "session": 6435, "pooled": 6436, "tracked": 6437, "sync": 6438, "quorum": 6439}
HTTP_PORT = 6434

TEMPLATE = """clusters:
  main:
    patroni: {{endpoints: [{endpoints}]}}
    etcd: {{{etcd}}}
    service_account: {{user: trunkline, password_file: {directory}/service-password}}
    server_tls: {{sslmode: verify-ca, sslrootcert: {server_ca}}}
tls:
  certificates: [{{cert_file: {tls}/server.crt, key_file: {tls}/server.key}}]
  client_ca_file: {tls}/ca.crt
auth:
  hba_file: {directory}/pg_hba.conf
  ident_file: {directory}/pg_ident.conf
  rate_limit: {{failures: 0}}
  server_credentials: [{{users: [app_trust, app_cert], server_user: app, password_file: {directory}/app-password}}]
routes:
  read-write: {{targets: [leader]}}
  read-only: {{targets: [replica]}}
  session: {{targets: [leader], pool: {{mode: session, max_connections: 1}}}}
  pooled: {{targets: [leader], pool: {{mode: transaction, max_connections: 1}}}}
  tracked: {{targets: [leader], resume: tracked}}
  sync: {{targets: [sync]}}
  quorum: {{targets: [quorum]}}
listeners:
{listeners}
http: {{address: "{address}:{http_port}", token_file: {directory}/http-token}}
"""

# For the clients. Each user has a method of its own.
RULES = """hostssl all app_md5 all md5
hostssl all app_password all password
hostssl all app_trust all trust
hostssl all app_cert all cert map=certificates
host all app_reject all reject
hostssl replication app_repl all scram-sha-256
hostssl all all all scram-sha-256
"""


def secret(path, value):
    path.write_text(f"{value}\n")
    path.chmod(0o600)


def text(about, directory, address):
    """The text for the cluster that ABOUT describes."""
    etcd = {"endpoints": f'["{about["etcd"]["url"]}"]', "namespace": about["namespace"], "scope": about["scope"]}
    if "user" in about["etcd"]:
        secret(directory / "etcd-password", about["etcd"]["password"])
        etcd |= {"username": about["etcd"]["user"], "password_file": directory / "etcd-password"}
    listeners = [f'  - {{name: {route}, address: "{address}:{port}", route: {route}}}' for route, port in PORTS.items()]
    return TEMPLATE.format(
        endpoints=", ".join(f'"{node["rest"]}"' for node in about["nodes"]), directory=directory, server_ca=about["ca_file"],
        etcd=", ".join(f"{key}: {value}" for key, value in etcd.items()), tls=directory / "tls", address=address,
        listeners="\n".join(listeners), http_port=HTTP_PORT,
    )  # fmt: skip


class Router:
    """Runs while this is entered."""

    def __init__(self, program, about, directory, address):
        self.program = program
        self.directory = directory
        self.address = address
        self.log = directory / "log"
        directory.mkdir(mode=0o700)
        secret(directory / "service-password", about["service_password"])
        secret(directory / "app-password", about["app_password"])
        secret(directory / "http-token", secrets.token_hex(32))
        (directory / "pg_hba.conf").write_text(RULES)
        (directory / "pg_ident.conf").write_text("certificates app app_cert\n")
        subprocess.run([ROOT / "certs" / "make-certs", "--dir", directory / "tls", "--san", address], check=True)
        self.ca = directory / "tls" / "ca.crt"
        self.configuration = directory / "trunkline.yaml"
        self.configuration.write_text(text(about, directory, address))

    def __enter__(self):
        environment = {key: value for key, value in os.environ.items() if key != "RUST_LOG"}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([self.program, "run", "-c", self.configuration],
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)  # fmt: skip
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def says_true(self, path):
        if self.process.poll() is not None:
            raise cluster.ClusterError(f"the router ended{cluster.tail(self.log)}")
        return cluster.http(f"http://{self.address}:{HTTP_PORT}/{path}")[0] == 200

    def metrics(self):
        return cluster.http(f"http://{self.address}:{HTTP_PORT}/metrics")[1]

    def await_ready(self, *kinds):
        for kind in kinds:
            cluster.Deadline(60).until(lambda path=f"connection/is-ready-{kind}": self.says_true(path),
                                       f"the router to be ready for {kind}", self.log)  # fmt: skip
