//! Every type, keyword and method of `pg_hba.conf` by a real client, through a router and, with the
//! same file, at a PostgreSQL without one: both must let in the same, and refuse in the same words.

mod check;
mod credentials;
mod matching;
mod proofs;

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::cluster::postgres::{self, Postgres, psql_18};
use crate::cluster::{Certificates, Options, Router, output, secret};
use crate::hand::{Message, Raw, V3_0};

/// Where the router, or the PostgreSQL it is compared with, is to be found.
#[derive(Debug, Clone)]
struct Place {
    address: Ipv4Addr,
    port: u16,
    /// Of the Unix socket, whose port is the same.
    socket: PathBuf,
}

/// `psql`'s output, or what it was told after `FATAL:`, the first line.
type Told = Result<String, String>;

impl Place {
    /// Through the network; `extra` is `sslmode=…` and whatever else is to be said.
    fn psql(&self, user: &str, password: &str, extra: &str) -> Told {
        self.connect(&self.address.to_string(), user, password, extra)
    }

    fn local(&self, user: &str, password: &str, extra: &str) -> Told {
        self.connect(&self.socket.display().to_string(), user, password, extra)
    }

    fn connect(&self, host: &str, user: &str, password: &str, extra: &str) -> Told {
        let sql = if extra.contains("replication=") {
            "IDENTIFY_SYSTEM"
        } else {
            "SELECT current_user"
        };
        let mut command = psql_18();
        command.args(["-XAtq", "-c", sql]).arg(format!(
            "host={host} port={} user='{user}' dbname=app connect_timeout=20 gssencmode=disable {extra}",
            self.port
        ));
        told(command.env("PGPASSWORD", password))
    }

    /// From a loopback address of the caller's choice, in clear: what comes first.
    fn knock(&self, source: Ipv4Addr, user: &str) -> Message {
        let mut raw = Raw::connect_from(source, self.address, self.port);
        raw.startup(V3_0, &[("user", user), ("database", "app")]);
        raw.message()
    }
}

fn told(command: &mut Command) -> Told {
    let output = output(command.env("LC_ALL", "C"));
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let words = text.split_once("FATAL:").map_or(&text[..], |(_, words)| words);
    Err(words.trim().lines().next().unwrap_or_default().to_owned())
}

/// The operating system's user here, who the clients are.
fn own_name() -> String {
    let me = String::from_utf8(output(Command::new("id").arg("-un")).stdout).unwrap();
    me.trim().to_owned()
}

/// Severity, code and text, as far as the client is concerned.
fn fields(message: &Message) -> Vec<Option<String>> {
    b"SVCM".iter().map(|&name| message.field(name)).collect()
}

/// A directory that a server may read, too.
fn open_directory() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

fn write(dir: &Path, name: &str, contents: &str) -> PathBuf {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, contents).unwrap();
    path
}

/// PostgreSQL 18 with this very `pg_hba.conf`, and `pg_ident.conf` beside it. The file must let
/// `postgres` in locally.
fn reference(hba: &Path, ident: &Path, roles: &str, conf: &str) -> (Postgres, Place) {
    let server = Postgres::start(&postgres::Options {
        version_18: true,
        conf: format!(
            "hba_file = '{}'\nident_file = '{}'\n{conf}",
            hba.display(),
            ident.display()
        ),
        ..postgres::Options::default()
    });
    server.sql(roles);
    let place = Place {
        address: server.address,
        port: Postgres::PORT,
        socket: server.data().parent().unwrap().to_owned(),
    };
    (server, place)
}

/// A router on two ports (the second has the Unix socket `dir/.s.PGSQL.6432` beside it) with `auth`
/// as its section.
fn router(server: &Postgres, dir: &Path, auth: &str, rest: Options) -> (Router, Place) {
    let router = Router::launch(
        None,
        Options {
            clusters: Some(rest.clusters.unwrap_or_else(|| server.yaml())),
            listeners: Some(format!(
                "  - {{name: rw, address: \"{{address}}:6432\", route: read-write}}\n  \
                 - {{name: local, address: {}, route: read-write}}\n",
                dir.join(".s.PGSQL.6432").display()
            )),
            extra: format!("auth:\n  rate_limit: {{failures: 0}}\n{auth}"),
            ..rest
        },
    );
    router.await_read_write();
    let place = Place {
        address: router.address,
        port: 6432,
        socket: dir.to_owned(),
    };
    (router, place)
}

/// Certificates of clients: `O=Example` and a common name, of an authority of this run.
#[derive(Debug)]
pub struct Clients {
    dir: TempDir,
    ca: rcgen::CertificateParams,
    key: rcgen::KeyPair,
}

impl Clients {
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Clients> = OnceLock::new();
        SHARED.get_or_init(|| {
            let dir = open_directory();
            let key = rcgen::KeyPair::generate().unwrap();
            let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
            ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            ca.distinguished_name
                .push(rcgen::DnType::CommonName, "authority of clients");
            write(dir.path(), "ca.crt", &ca.self_signed(&key).unwrap().pem());
            Self { dir, ca, key }
        })
    }

    pub fn ca_file(&self) -> String {
        self.dir.path().join("ca.crt").display().to_string()
    }

    /// The files of certificate and key for this common name.
    pub fn issue(&self, name: &str) -> (String, String) {
        let mut about = rcgen::CertificateParams::new(Vec::new()).unwrap();
        about.distinguished_name = rcgen::DistinguishedName::new();
        about
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, "Example");
        about.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        let issuer = rcgen::Issuer::from_params(&self.ca, &self.key);
        let certificate = about.signed_by(&key, &issuer).unwrap();
        let cert = write(self.dir.path(), &format!("{name}.crt"), &certificate.pem());
        let key = secret(self.dir.path(), &format!("{name}.key"), &key.serialize_pem());
        (cert.display().to_string(), key.display().to_string())
    }

    /// What `psql` needs to show it.
    fn shown(&self, name: &str) -> String {
        let (cert, key) = self.issue(name);
        format!("sslmode=require sslcert={cert} sslkey={key}")
    }
}
