//! A watch on a real etcd with TLS and users, whose leader key the test writes as it likes, beside
//! a real Patroni's REST.

use std::fs;
use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::block_in_place;
use trunkline::cluster::snapshot::{Leader, NamedBy, NoLeader, Snapshot};
use trunkline::config::{self, BasicAuth, Secret};

use super::cluster::{Certificates, Cluster, eventually, fresh_address, succeed};
use super::{Running, healthy, leader, patroni};

const PREFIX: &str = "/service/test/";

struct Etcd {
    dir: TempDir,
    certificates: Certificates,
    address: Ipv4Addr,
    process: Child,
}

impl Etcd {
    fn start() -> Self {
        let address = fresh_address();
        let certificates = Certificates::make(&[address.to_string()]);
        let dir = tempfile::tempdir().unwrap();
        let process = Self::run(&dir, &certificates, address);
        let etcd = Self {
            dir,
            certificates,
            address,
            process,
        };
        etcd.await_healthy();
        etcd
    }

    fn run(dir: &TempDir, certificates: &Certificates, address: Ipv4Addr) -> Child {
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let (clients, peers) = (
            format!("https://{address}:2379"),
            format!("http://{address}:2380"),
        );
        Command::new("etcd")
            .args(["--name", "test", "--data-dir"])
            .arg(dir.path().join("data"))
            .args([
                "--listen-client-urls",
                &clients,
                "--advertise-client-urls",
                &clients,
            ])
            .args([
                "--listen-peer-urls",
                &peers,
                "--initial-advertise-peer-urls",
                &peers,
            ])
            .args(["--initial-cluster", &format!("test={peers}"), "--cert-file"])
            .arg(certificates.file("server.crt"))
            .arg("--key-file")
            .arg(certificates.file("server.key"))
            .env("ETCD_UNSUPPORTED_ARCH", "arm64")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    fn await_healthy(&self) {
        eventually("etcd answers", Duration::from_secs(30), || {
            self.try_call("maintenance/status", &json!({}), None).is_some()
        });
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn start_again(&mut self) {
        self.process = Self::run(&self.dir, &self.certificates, self.address);
        self.await_healthy();
    }

    fn signal(&self, name: &str) {
        succeed(Command::new("kill").args(["-s", name, &self.process.id().to_string()]));
    }

    fn try_call(&self, path: &str, body: &Value, token: Option<&str>) -> Option<Value> {
        let mut command = Command::new("curl");
        command
            .args([
                "--silent",
                "--fail",
                "--max-time",
                "5",
                "--data",
                &body.to_string(),
                "--cacert",
            ])
            .arg(self.certificates.file("ca.crt"))
            .arg(format!("https://{}:2379/v3/{path}", self.address));
        if let Some(token) = token {
            command.args(["--header", &format!("Authorization: {token}")]);
        }
        let output = command.output().unwrap();
        serde_json::from_slice(&output.stdout)
            .ok()
            .filter(|_| output.status.success())
    }

    fn call(&self, path: &str, body: &Value) -> Value {
        self.try_call(path, body, None)
            .unwrap_or_else(|| panic!("etcd refuses {path} {body}"))
    }

    /// From now on only users come in: `root`, and `reader` who may read below the prefix.
    fn enable_users(&self) {
        let mut end = PREFIX.as_bytes().to_vec();
        *end.last_mut().unwrap() += 1;
        let permission = json!({
            "permType": "READ",
            "key": BASE64_STANDARD.encode(PREFIX),
            "range_end": BASE64_STANDARD.encode(end),
        });
        self.call("auth/role/add", &json!({"name": "root"}));
        self.call("auth/role/add", &json!({"name": "reading"}));
        self.call("auth/role/grant", &json!({"name": "reading", "perm": permission}));
        for (user, role) in [("root", "root"), ("reader", "reading")] {
            self.call("auth/user/add", &json!({"name": user, "password": "geheim"}));
            self.call("auth/user/grant", &json!({"user": user, "role": role}));
        }
        self.call("auth/enable", &json!({}));
    }

    fn as_root(&self, path: &str, body: &Value) {
        let login = self.call(
            "auth/authenticate",
            &json!({"name": "root", "password": "geheim"}),
        );
        assert!(self.try_call(path, body, login["token"].as_str()).is_some());
    }

    fn put(&self, key: &str, value: &str) {
        let key = BASE64_STANDARD.encode(format!("{PREFIX}{key}"));
        let value = BASE64_STANDARD.encode(value);
        block_in_place(|| self.as_root("kv/put", &json!({"key": key, "value": value})));
    }

    fn delete(&self, key: &str) {
        let key = BASE64_STANDARD.encode(format!("{PREFIX}{key}"));
        block_in_place(|| self.as_root("kv/deleterange", &json!({"key": key})));
    }

    fn config(&self, prefix: &str, password: Option<&str>) -> config::Etcd {
        let ca = CertificateDer::from_pem_file(self.certificates.file("ca.crt")).unwrap();
        config::Etcd {
            // The first is nobody's.
            endpoints: vec![
                "https://127.0.0.1:1".into(),
                format!("https://{}:2379", self.address),
            ],
            prefix: prefix.into(),
            ca: Some(vec![ca]),
            client_certificate: None,
            login: password.map(|password| BasicAuth {
                username: "reader".into(),
                password: Secret::new(password),
            }),
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn named_by_key(snapshot: &Snapshot, name: &str) -> bool {
    matches!(&snapshot.leader, Leader::Verified { member, named_by: NamedBy::LeaderKey, .. } if member.as_str() == name)
}

fn awaits(snapshot: &Snapshot, name: &str) -> bool {
    matches!(&snapshot.leader, Leader::None(NoLeader::NotWritable(member)) if member.as_str() == name)
}

async fn until_watched(running: &Running, watched: bool) {
    let line = format!("cluster_etcd_up{{cluster=\"main\"}} {}", u8::from(watched));
    until(running, &line, |text| text.contains(&line)).await;
}

async fn until(running: &Running, what: &str, condition: impl Fn(&str) -> bool) {
    let condition = &condition;
    for _ in 0..1500 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &running.registry).unwrap();
        if condition(&text) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not within 30 s: {what}");
}

fn polls(text: &str) -> u64 {
    let name = "cluster_source_polls_total{cluster=\"main\",result=\"success\"} ";
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_key_in_etcd_counts_more_than_rest_until_the_watch_is_lost() {
    let cluster = Cluster::shared();
    let mut etcd = Etcd::start();
    etcd.enable_users();
    let (actual, replica) = (cluster.leader(), cluster.replicas()[0].clone());
    etcd.put("leader", &actual);
    let running = Running::watching(patroni(cluster), Some(etcd.config(PREFIX, Some("geheim"))));
    running.until("healthy", healthy).await;
    until_watched(&running, true).await;

    // What REST goes on to say does not turn it back.
    etcd.put("leader", &replica);
    running
        .until("waiting for the replica", |s| awaits(s, &replica))
        .await;
    let mut now = String::new();
    prometheus_client::encoding::text::encode(&mut now, &running.registry).unwrap();
    until(&running, "three more polls", |text| {
        polls(text) >= polls(&now) + 3
    })
    .await;
    assert!(awaits(&running.handle.snapshot(), &replica));
    etcd.delete("leader");
    let nobody = |s: &Snapshot| matches!(s.leader, Leader::None(NoLeader::NotNamed));
    running.until("without a leader key", nobody).await;
    etcd.put("leader", &actual);
    running.until("led again", |s| named_by_key(s, &actual)).await;

    // Without etcd, REST alone counts; then etcd again.
    etcd.put("leader", &replica);
    running
        .until("waiting for the replica", |s| awaits(s, &replica))
        .await;
    block_in_place(|| etcd.kill());
    running
        .until("led by REST's word", |s| named_by_key(s, &actual))
        .await;
    until_watched(&running, false).await;
    block_in_place(|| etcd.start_again());
    running.until("led by etcd's word", |s| awaits(s, &replica)).await;
    until_watched(&running, true).await;

    // An etcd that is there and says nothing is found out, too.
    etcd.signal("STOP");
    until_watched(&running, false).await;
    running
        .until("led by REST's word", |s| named_by_key(s, &actual))
        .await;
    etcd.signal("CONT");
    until_watched(&running, true).await;
    etcd.put("leader", &actual);
    running
        .until("led by etcd's word", |s| named_by_key(s, &actual))
        .await;
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_another_cluster_or_a_refused_user_take_nothing_away() {
    let cluster = Cluster::shared();
    let etcd = Etcd::start();
    let running = Running::watching(patroni(cluster), Some(etcd.config("/service/other/", None)));
    let snapshot = running
        .until("told of the scope", |s| s.source.disagreement.is_some())
        .await;
    let how = snapshot.source.disagreement.clone().unwrap();
    assert!(
        how.contains("has no leader key") && how.contains("`etcd.scope`") && how.contains("SCOPE/GROUP"),
        "{how}"
    );
    let snapshot = running.until("healthy", healthy).await;
    assert_eq!(leader(&snapshot), Some(cluster.leader()));
    running.end().await;

    etcd.enable_users();
    let running = Running::watching(patroni(cluster), Some(etcd.config(PREFIX, Some("wrong"))));
    running.until("healthy", healthy).await;
    until_watched(&running, false).await;
    running.end().await;
}
