//! The harness: a real Patroni cluster, and routers before it.
//!
//! The cluster is made by `scripts/cluster.py`. Tests that leave it as it is share one, which
//! `make test` (or `scripts/test-cluster up`) starts and names in `TRUNKLINE_TEST_CLUSTER`; tests
//! that break things start their own with [`Cluster::start`]. Each router listens on an address of
//! its own, so that tests run side by side.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on says so and fails"
)]

pub mod drivers;
pub mod postgres;
pub mod slapd;

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

/// The project's top folder.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The program under test: the one of this build, or another that `TRUNKLINE_TEST_BINARY` names.
pub fn binary() -> PathBuf {
    let other = std::env::var_os("TRUNKLINE_TEST_BINARY");
    other.map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_trunkline")), PathBuf::from)
}

/// Polls until `done` says yes; fails with `what` after `limit`.
pub fn eventually(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        pause(Duration::from_millis(20));
    }
}

/// Between two looks at a condition; never instead of one.
#[allow(clippy::disallowed_methods, reason = "tests have threads of their own")]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// A loopback address nobody else of this run uses, between 127.64.0.1 and 127.127.255.255: twelve
/// bits of the process, ten of a counter.
pub fn fresh_address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(number < 1 << 10, "more than 1023 addresses in one test binary");
    let process = std::process::id() & 0xfff;
    Ipv4Addr::from_bits(0x7f40_0000 | process << 10 | number)
}

/// Runs a command to its end and returns its output, whatever its exit code.
pub fn output(command: &mut Command) -> Output {
    command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Standard output of a command that must succeed.
pub fn succeed(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?} failed with {}:\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// `cluster.py`, behind another command if there is one.
fn script(prefix: &[&str]) -> Command {
    let script = project().join("scripts/cluster.py");
    match prefix {
        [] => Command::new(script),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(script);
            command
        }
    }
}

/// A Patroni cluster as `cluster.py up --json` describes it.
#[derive(Debug)]
pub struct Cluster {
    pub about: Value,
    owned: bool,
    /// Before each `cluster.py`, as `ip netns exec NAME`.
    prefix: Vec<String>,
}

impl Cluster {
    /// The one that tests share and leave as it is.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| {
            let Ok(path) = std::env::var("TRUNKLINE_TEST_CLUSTER") else {
                panic!("TRUNKLINE_TEST_CLUSTER is not set: run `make test`, or `eval $(scripts/test-cluster up)` first");
            };
            let text = fs::read_to_string(Path::new(&path).join("cluster.json")).unwrap();
            Self { about: serde_json::from_str(&text).unwrap(), owned: false, prefix: Vec::new() }
        })
    }

    /// One of the test's own, to be broken; it is gone when this is dropped. `options` are
    /// `cluster.py up`'s. `base` must be an address no other cluster of the test run uses.
    pub fn start(base: &str, etcd_port: u16, options: &[&str]) -> Self {
        Self::start_in(&[], base, etcd_port, options)
    }

    /// As [`Self::start`], where the command `prefix` leads: another network namespace.
    pub fn start_in(prefix: &[&str], base: &str, etcd_port: u16, options: &[&str]) -> Self {
        // `scripts/test` takes down whatever is left in its directory.
        let parent = std::env::var("TRUNKLINE_TEST_DIR").unwrap_or_else(|_| "/tmp".to_owned());
        let dir = format!("{parent}/own-{}-{etcd_port}", std::process::id());
        let text = succeed(
            script(prefix)
                .args([
                    "up",
                    "--json",
                    "--dir",
                    &dir,
                    "--base",
                    base,
                    "--etcd-port",
                    &etcd_port.to_string(),
                ])
                .args(options),
        );
        Self {
            about: serde_json::from_str(&text).unwrap(),
            owned: true,
            prefix: prefix.iter().map(ToString::to_string).collect(),
        }
    }

    pub fn text(&self, key: &str) -> &str {
        self.about[key]
            .as_str()
            .unwrap_or_else(|| panic!("no {key} in {}", self.about))
    }

    pub fn dir(&self) -> &str {
        self.text("dir")
    }

    pub fn nodes(&self) -> Vec<Node> {
        let nodes = self.about["nodes"].as_array().unwrap();
        nodes.iter().map(Node::new).collect()
    }

    pub fn node(&self, name: &str) -> Node {
        self.nodes().into_iter().find(|node| node.name == name).unwrap()
    }

    /// `cluster.py COMMAND --dir … ARGUMENTS`.
    pub fn control(&self, command: &str, arguments: &[&str]) -> String {
        let prefix: Vec<&str> = self.prefix.iter().map(String::as_str).collect();
        succeed(
            script(&prefix)
                .arg(command)
                .args(["--dir", self.dir()])
                .args(arguments),
        )
    }

    /// Name of the node that accepts writes, by asking each node itself.
    pub fn leader(&self) -> String {
        let mut found = None;
        eventually("a leader", Duration::from_mins(1), || {
            found = self
                .nodes()
                .into_iter()
                .find(|node| node.sql_try("SELECT pg_is_in_recovery()").as_deref() == Some("f"));
            found.is_some()
        });
        found.unwrap().name
    }

    pub fn replicas(&self) -> Vec<String> {
        let leader = self.leader();
        self.nodes()
            .into_iter()
            .map(|node| node.name)
            .filter(|name| *name != leader)
            .collect()
    }

    /// The `clusters:` part of a configuration, with the service account's password in `dir`.
    pub fn yaml(&self, dir: &Path) -> String {
        let endpoints: Vec<String> = self
            .nodes()
            .iter()
            .map(|node| format!("\"{}\"", node.rest))
            .collect();
        let password = secret(dir, "service-password", self.text("service_password"));
        format!(
            "clusters:\n  main:\n    patroni: {{endpoints: [{}]}}\n    service_account: {{user: {}, password_file: {}}}\n    \
             server_tls: {{sslmode: verify-ca, sslrootcert: {}}}\n",
            endpoints.join(", "),
            self.text("service_user"),
            password.display(),
            self.text("ca_file"),
        )
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.owned {
            self.control("down", &[]);
        }
    }
}

/// A node of a cluster, spoken to directly.
#[derive(Debug, Clone)]
pub struct Node {
    pub name: String,
    pub address: String,
    pub port: u16,
    pub rest: String,
    pub postgres_log: PathBuf,
    pub data: PathBuf,
}

impl Node {
    fn new(about: &Value) -> Self {
        let text = |key: &str| about[key].as_str().unwrap().to_owned();
        Self {
            name: text("name"),
            address: text("address"),
            port: u16::try_from(about["port"].as_u64().unwrap()).unwrap(),
            rest: text("rest"),
            postgres_log: text("postgres_log").into(),
            data: text("data").into(),
        }
    }

    /// Process id of the server.
    pub fn postmaster(&self) -> u32 {
        let file = fs::read_to_string(self.data.join("postmaster.pid")).unwrap();
        file.lines().next().unwrap().parse().unwrap()
    }

    /// As the superuser, on this very server; `None` if it does not answer.
    pub fn sql_try(&self, sql: &str) -> Option<String> {
        self.psql(sql).ok()
    }

    /// A server that takes no connection for a moment, on a busy machine or while it is full, is
    /// asked again.
    pub fn sql(&self, sql: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match self.psql(sql) {
                Ok(answer) => return answer,
                Err(said) if said.contains("connection to server") && Instant::now() < deadline => {
                    pause(Duration::from_millis(200));
                }
                Err(said) => panic!("{} does not answer {sql}: {said}", self.name),
            }
        }
    }

    fn psql(&self, sql: &str) -> Result<String, String> {
        let output = output(
            Command::new("psql")
                .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql])
                .arg(format!(
                    "host={} port={} user=postgres dbname=app connect_timeout=3 sslmode=disable",
                    self.address, self.port
                ))
                .env("PGPASSWORD", "postgres"),
        );
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
        }
    }
}

/// Writes a file that only its owner may read.
pub fn secret(dir: &Path, name: &str, contents: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, format!("{contents}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// A CA and a certificate for the router; made once a test binary.
#[derive(Debug)]
pub struct Certificates {
    dir: TempDir,
}

impl Certificates {
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Certificates> = OnceLock::new();
        SHARED.get_or_init(|| Self::make(&["localhost".to_owned(), "router.example".to_owned()]))
    }

    pub fn make(names: &[String]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        ca.distinguished_name.push(rcgen::DnType::CommonName, "test CA");
        let ca_cert = ca.self_signed(&ca_key).unwrap();
        let issuer = rcgen::Issuer::new(ca, ca_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new(names.to_vec())
            .unwrap()
            .signed_by(&key, &issuer)
            .unwrap();
        fs::write(dir.path().join("ca.crt"), ca_cert.pem()).unwrap();
        fs::write(dir.path().join("server.crt"), leaf.pem()).unwrap();
        secret(dir.path(), "server.key", &key.serialize_pem());
        Self { dir }
    }

    /// The same certificate, key and CA, in other files.
    pub fn copy(&self) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["ca.crt", "server.crt", "server.key"] {
            fs::copy(self.file(name), dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn yaml(&self) -> String {
        format!(
            "tls:\n  certificates: [{{cert_file: {}, key_file: {}}}]\n",
            self.file("server.crt").display(),
            self.file("server.key").display()
        )
    }
}

/// A router that runs as a process of its own, and is killed when this is dropped.
#[derive(Debug)]
pub struct Router {
    child: Child,
    dir: TempDir,
    pub address: Ipv4Addr,
}

/// What a test changes of the usual configuration.
#[derive(Debug, Default)]
pub struct Options {
    /// Appended to the configuration: whole top-level sections.
    pub extra: String,
    /// In place of `clusters:`.
    pub clusters: Option<String>,
    /// Appended to the usual cluster: whole sections of `clusters.main`, one a line, not indented.
    pub cluster_extra: String,
    /// More keys of `http:`, in braces' notation: `token_file: t`.
    pub http: String,
    /// In place of `tls:`; empty for none.
    pub tls: Option<String>,
    /// In place of `listeners:`; `{address}` is the router's.
    pub listeners: Option<String>,
    pub address: Option<Ipv4Addr>,
    /// Before the command, as `prlimit --nofile=64`.
    pub prefix: Vec<String>,
    pub env: Vec<(String, String)>,
}

impl Router {
    /// Before the shared cluster, with everything at its default; serves both ports when this
    /// returns.
    pub fn shared() -> Self {
        Self::before(Cluster::shared(), Options::default())
    }

    /// Before `cluster`; serves both ports when this returns.
    pub fn before(cluster: &Cluster, options: Options) -> Self {
        let router = Self::launch(Some(cluster), options);
        router.await_ready();
        router
    }

    /// Started, and nothing waited for but its answering on the HTTP port.
    #[allow(clippy::needless_pass_by_value, reason = "callers write them where they call")]
    pub fn launch(cluster: Option<&Cluster>, options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let address = options.address.unwrap_or_else(fresh_address);
        let text = Self::configuration(cluster, &options, dir.path(), address);
        let path = dir.path().join("trunkline.yaml");
        fs::write(&path, &text).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let binary = binary();
        let mut command = match options.prefix.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(binary);
                command
            }
            None => Command::new(binary),
        };
        command
            .args(["run", "-c"])
            .arg(&path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        command.envs(options.env.iter().cloned()).env_remove("RUST_LOG");
        let child = command.spawn().unwrap();
        let mut router = Self { child, dir, address };
        eventually(
            "the router answers on its HTTP port",
            Duration::from_secs(20),
            || {
                assert!(
                    router.child.try_wait().unwrap().is_none(),
                    "the router ended:\n{}\n{text}",
                    router.log()
                );
                router
                    .http("/connection/is-live")
                    .is_some_and(|(status, _)| status == 200)
            },
        );
        router
    }

    /// The configuration text a router with these options would run with.
    pub fn configuration(
        cluster: Option<&Cluster>,
        options: &Options,
        dir: &Path,
        address: Ipv4Addr,
    ) -> String {
        let mut text = String::new();
        match (&options.clusters, cluster) {
            (Some(clusters), _) => text.push_str(clusters),
            (None, Some(cluster)) => {
                text.push_str(&cluster.yaml(dir));
                for line in options.cluster_extra.lines() {
                    let _ = writeln!(text, "    {line}");
                }
            }
            (None, None) => panic!("a router needs a cluster"),
        }
        text.push_str(
            &options
                .tls
                .clone()
                .unwrap_or_else(|| Certificates::shared().yaml()),
        );
        let listeners = options.listeners.clone().unwrap_or_else(|| {
            "  - {name: rw, address: \"{address}:6432\", route: read-write}\n  \
             - {name: ro, address: \"{address}:6433\", route: read-only}\n"
                .to_owned()
        });
        let _ = write!(
            text,
            "listeners:\n{}",
            listeners.replace("{address}", &address.to_string())
        );
        let _ = write!(
            text,
            "http: {{address: \"{address}:6434\", {}}}\n{}",
            options.http.trim_start_matches(", "),
            options.extra
        );
        text
    }

    pub fn await_ready(&self) {
        eventually(
            &format!("the router is ready; its log:\n{}", self.log()),
            Duration::from_secs(20),
            || {
                self.http("/connection/is-ready-rw?strict=1")
                    .is_some_and(|(status, _)| status == 200)
                    && self
                        .http("/connection/is-ready-ro?strict=1")
                        .is_some_and(|(status, _)| status == 200)
            },
        );
    }

    /// Sends sessions to all replicas of `cluster` when this returns; [`Self::await_ready`] waits
    /// for the first.
    pub fn await_replicas(&self, cluster: &Cluster) {
        let names: Vec<String> = cluster
            .replicas()
            .iter()
            .map(|name| format!("\"{name}\""))
            .collect();
        eventually(
            &format!("every replica serves; the router's log:\n{}", self.log()),
            Duration::from_secs(20),
            || {
                self.http("/group/read-only-info").is_some_and(|(status, body)| {
                    status == 200 && names.iter().all(|name| body.contains(name))
                })
            },
        );
    }

    /// Serves the read-write port when this returns; there may be no replica.
    pub fn await_read_write(&self) {
        eventually(
            &format!("the router is ready to write; its log:\n{}", self.log()),
            Duration::from_secs(20),
            || {
                self.http("/connection/is-ready-rw?strict=1")
                    .is_some_and(|(status, _)| status == 200)
            },
        );
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Waits for a line that contains all of `parts`, and returns it.
    pub fn await_log(&self, parts: &[&str]) -> String {
        let mut found = None;
        eventually(
            &format!("a log line with {parts:?}"),
            Duration::from_secs(20),
            || {
                found = self
                    .log()
                    .lines()
                    .find(|line| parts.iter().all(|part| line.contains(part)))
                    .map(str::to_owned);
                found.is_some()
            },
        );
        found.unwrap()
    }

    pub fn signal(&self, name: &str) {
        succeed(Command::new("kill").args(["-s", name, &self.child.id().to_string()]));
    }

    /// Waits for the end and returns the exit code.
    pub fn await_exit(&mut self, limit: Duration) -> i32 {
        let mut status = None;
        eventually("the router ends", limit, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code().unwrap_or(-1)
    }

    /// Status and body of a GET on the HTTP port; `None` if it does not answer.
    pub fn http(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(SocketAddr::from((self.address, 6434))).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let status = text.split(' ').nth(1)?.parse().ok()?;
        let body = text.split_once("\r\n\r\n")?.1.to_owned();
        Some((status, body))
    }

    /// The value of a metric with exactly these labels in the text (`name{a="b"}`); 0 where it is
    /// not there.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, body) = self.http("/metrics").unwrap();
        body.lines()
            .find_map(|line| {
                line.strip_prefix(name)?
                    .strip_prefix(' ')?
                    .split(' ')
                    .next()?
                    .parse()
                    .ok()
            })
            .unwrap_or_default()
    }

    /// A libpq connection string as user `app`. A later key overrides an earlier one.
    pub fn dsn(&self, port: u16, extra: &str) -> String {
        format!(
            "host={} port={port} user=app password=app dbname=app sslmode=require connect_timeout=10 {extra}",
            self.address
        )
    }

    /// `psql` with a script; output whatever its exit code.
    pub fn psql_output(&self, port: u16, extra: &str, sql: &str) -> Output {
        output(
            Command::new("psql")
                .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql])
                .arg(self.dsn(port, extra)),
        )
    }

    /// What `psql` prints, trimmed; it must succeed.
    pub fn psql(&self, port: u16, sql: &str) -> String {
        let output = self.psql_output(port, "", sql);
        assert!(
            output.status.success(),
            "{sql}: {}\n{}",
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the router at {}:\n{}", self.address, self.log());
        }
    }
}
