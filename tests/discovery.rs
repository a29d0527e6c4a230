//! The cluster room against a real Patroni cluster. Needs one, made by `scripts/cluster.py up --dir DIR`:
//!
//!     TRUNKLINE_TEST_CLUSTER=DIR cargo test --test cluster -- --ignored --test-threads=1

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trunkline::cluster::snapshot::{Leader, NamedBy, Snapshot};
use trunkline::cluster::{self, ClusterHandle, LookupError, Metrics};
use trunkline::config::{
    Auth, Cluster, LocalMember, Patroni, Probe, Secret, Server, ServerOptions, ServerTls, ServiceAccount,
    Source, SslMode, Verifiers,
};
use trunkline::{config, routing};

const DEFAULT_QUERY: &str = "SELECT * FROM trunkline.user_lookup($1)";

fn directory() -> PathBuf {
    std::env::var_os("TRUNKLINE_TEST_CLUSTER")
        .expect("TRUNKLINE_TEST_CLUSTER names the cluster's directory")
        .into()
}

fn facts() -> Value {
    serde_json::from_slice(&std::fs::read(directory().join("cluster.json")).unwrap()).unwrap()
}

fn script(arguments: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/cluster.py");
    let status = Command::new("python3")
        .arg(script)
        .args(arguments)
        .arg("--dir")
        .arg(directory())
        .status()
        .unwrap();
    assert!(status.success(), "{arguments:?}");
}

fn nodes() -> Vec<Value> {
    facts()["nodes"].as_array().unwrap().clone()
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap().to_owned()
}

fn patroni() -> Source {
    Source::Patroni(Patroni {
        endpoints: nodes().iter().map(|node| text(node, "rest")).collect(),
        ca: None,
        client_certificate: None,
        basic_auth: None,
        poll_interval: Duration::from_secs(1),
        fast_poll_interval: Duration::from_millis(100),
    })
}

fn fixed() -> Source {
    let server = |node: &Value| Server {
        name: text(node, "name"),
        host: text(node, "address"),
        port: 5432,
    };
    Source::Servers(nodes().iter().map(server).collect())
}

struct Running {
    handle: ClusterHandle,
    stop: CancellationToken,
    tracker: TaskTracker,
    registry: Registry,
}

impl Running {
    fn start(source: Source, user: &str, password: &str, dbname: &str) -> Self {
        let config = Cluster {
            name: Arc::from("main"),
            source,
            service_account: ServiceAccount {
                user: user.into(),
                password: Some(Secret::new(password)),
                dbname: dbname.into(),
                pool_size: 2,
                timeout: Duration::from_secs(3),
            },
            server_tls: ServerTls {
                sslmode: SslMode::Prefer,
                roots: None,
                client_certificate: None,
            },
            server: ServerOptions {
                connect_timeout: Duration::from_secs(3),
                keepalive: Some(Duration::from_secs(15)),
                tcp_user_timeout: Some(Duration::from_secs(30)),
            },
            probe: Probe {
                interval: Duration::from_secs(1),
                timeout: Duration::from_secs(1),
                rise: 2,
                fall: 3,
            },
            local_member: LocalMember::None,
        };
        let auth = Auth {
            verifiers: Verifiers::Query {
                sql: DEFAULT_QUERY.into(),
                cache_ttl: Duration::from_mins(1),
            },
            login_timeout: Duration::from_mins(1),
        };
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::register(&mut registry));
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        let handle = cluster::start(Arc::new(config), &auth, metrics, stop.clone(), &tracker).unwrap();
        Self {
            handle,
            stop,
            tracker,
            registry,
        }
    }

    async fn until(&self, what: &str, condition: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let mut snapshots = self.handle.subscribe();
        let waited = timeout(
            Duration::from_mins(1),
            snapshots.wait_for(|snapshot| condition(snapshot)),
        )
        .await
        .map(|found| Arc::clone(&found.unwrap()));
        waited.unwrap_or_else(|_| panic!("not {what}: {:#?}", self.handle.snapshot()))
    }

    async fn end(self) {
        self.stop.cancel();
        self.tracker.close();
        timeout(Duration::from_secs(5), self.tracker.wait())
            .await
            .expect("every task ends");
    }
}

fn leader(snapshot: &Snapshot) -> Option<String> {
    match &snapshot.leader {
        Leader::Verified { member, .. } => Some(member.to_string()),
        Leader::None(_) => None,
    }
}

fn replicas(snapshot: &Snapshot) -> usize {
    routing::candidates(
        snapshot,
        config::TargetRole::Replica,
        &|_| 0,
        &mut routing::chance,
    )
    .candidates
    .len()
}

fn healthy(snapshot: &Snapshot) -> bool {
    leader(snapshot).is_some() && replicas(snapshot) == 2
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn finds_leader_and_replicas_with_and_without_patroni() {
    for source in [patroni(), fixed()] {
        let running = Running::start(source, "trunkline", "trunkline", "postgres");
        let start = Instant::now();
        let snapshot = running.until("healthy", healthy).await;
        println!("healthy after {:?}", start.elapsed());
        for member in &snapshot.members {
            let facts = member.health.facts.as_ref().unwrap();
            assert_eq!(Some(facts.system_identifier), snapshot.system_identifier);
            assert!(facts.position > 0 && facts.server_version >= 140_000, "{facts:?}");
            assert_eq!(facts.streaming, facts.in_recovery, "{member:?}");
        }
        let timelines: Vec<u32> = snapshot
            .members
            .iter()
            .map(|member| member.health.facts.as_ref().unwrap().timeline)
            .collect();
        assert!(
            timelines.iter().all(|timeline| *timeline == timelines[0]),
            "{timelines:?}"
        );
        let mut exposed = String::new();
        prometheus_client::encoding::text::encode(&mut exposed, &running.registry).unwrap();
        assert!(
            exposed.contains("cluster_leader{cluster=\"main\"} 1"),
            "{exposed}"
        );
        running.end().await;
    }
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn looks_up_verifiers() {
    let running = Running::start(patroni(), "trunkline", "trunkline", "postgres");
    assert!(matches!(
        running.handle.verifier(b"app").await,
        Err(LookupError::Unavailable(_))
    ));
    running.until("healthy", healthy).await;
    let verifier = running.handle.verifier(b"app").await.unwrap();
    assert!(verifier.is_some());
    for unknown in ["nobody", "app'; SELECT 1 --", "app\\", "$1"] {
        assert_eq!(
            running.handle.verifier(unknown.as_bytes()).await.unwrap(),
            None,
            "{unknown}"
        );
    }
    let many: Vec<_> = (0..100)
        .map(|_| {
            let handle = running.handle.clone();
            tokio::spawn(async move { handle.verifier(b"postgres").await })
        })
        .collect();
    for one in many {
        assert!(one.await.unwrap().unwrap().is_some());
    }
    running.handle.forget_verifier(b"app");
    assert_eq!(running.handle.verifier(b"app").await.unwrap(), verifier);

    // The function is in another database: an ordinary account gets no answer, a superuser asks pg_authid.
    let elsewhere = Running::start(patroni(), "trunkline", "trunkline", "app");
    elsewhere.until("healthy", healthy).await;
    assert!(matches!(
        elsewhere.handle.verifier(b"app").await,
        Err(LookupError::Query(_))
    ));
    let superuser = Running::start(patroni(), "postgres", "postgres", "app");
    superuser.until("healthy", healthy).await;
    assert_eq!(superuser.handle.verifier(b"app").await.unwrap(), verifier);
    assert_eq!(superuser.handle.verifier(b"nobody").await.unwrap(), None);
    // From another runtime.
    let handle = running.handle.clone();
    let other = std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(async move { handle.verifier(b"trunkline").await })
    });
    let found = tokio::task::spawn_blocking(move || other.join().unwrap())
        .await
        .unwrap();
    assert!(found.unwrap().is_some());
    for running in [running, elsewhere, superuser] {
        running.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster"]
async fn follows_a_switchover_and_a_dead_replica() {
    let running = Running::start(patroni(), "trunkline", "trunkline", "postgres");
    let before = running.until("healthy", healthy).await;
    let old = leader(&before).unwrap();
    let mut snapshots = running.handle.subscribe();
    let watcher = tokio::spawn(async move {
        let mut lost = None;
        let mut seen = Vec::new();
        while snapshots.changed().await.is_ok() {
            let snapshot = Arc::clone(&snapshots.borrow_and_update());
            match (&snapshot.leader, lost) {
                (Leader::None(why), _) => {
                    seen.push(why.to_string());
                    lost.get_or_insert_with(Instant::now);
                }
                (
                    Leader::Verified {
                        timeline, named_by, ..
                    },
                    Some(at),
                ) => {
                    return (at.elapsed(), seen, *timeline, *named_by);
                }
                _ => {}
            }
        }
        unreachable!()
    });
    tokio::task::spawn_blocking(|| script(&["switchover"]))
        .await
        .unwrap();
    let (gap, seen, timeline, named_by) = timeout(Duration::from_mins(1), watcher).await.unwrap().unwrap();
    println!("no leader for {gap:?}: {seen:?}");
    assert_eq!(named_by, NamedBy::LeaderKey);
    let Leader::Verified {
        timeline: earlier, ..
    } = before.leader
    else {
        unreachable!()
    };
    assert!(timeline > earlier);
    let after = running
        .until("healthy again", |s| {
            healthy(s) && leader(s).as_ref() != Some(&old)
        })
        .await;
    let new = leader(&after).unwrap();

    let dead = after
        .members
        .iter()
        .map(|member| member.name.to_string())
        .find(|name| *name != new)
        .unwrap();
    tokio::task::spawn_blocking({
        let dead = dead.clone();
        move || script(&["kill", &dead])
    })
    .await
    .unwrap();
    running
        .until("one replica", |s| replicas(s) == 1 && leader(s).is_some())
        .await;
    tokio::task::spawn_blocking(move || script(&["start", &dead]))
        .await
        .unwrap();
    running.until("healthy at the end", healthy).await;
    running.end().await;
}

async fn superuser(snapshot: &Snapshot, member: &str) -> tokio_postgres::Client {
    let member = snapshot
        .members
        .iter()
        .find(|known| known.name.as_str() == member)
        .unwrap();
    let settings = format!(
        "host={} user=postgres password=postgres dbname=postgres",
        member.host
    );
    let (client, connection) = tokio_postgres::connect(&settings, tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    client
}

#[tokio::test]
#[ignore = "needs a cluster"]
async fn connections_terminated_by_an_administrator_take_nothing_away() {
    let running = Running::start(patroni(), "trunkline", "trunkline", "postgres");
    let snapshot = running.until("healthy", healthy).await;
    assert!(running.handle.verifier(b"app").await.unwrap().is_some());
    let member = leader(&snapshot).unwrap();
    let administrator = superuser(&snapshot, &member).await;
    let version = running.handle.snapshot().version;
    for user in ["trunkline", "replicator", "app_repl"] {
        let terminate =
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'trunkline%'";
        let ended = administrator.query(terminate, &[]).await.unwrap();
        assert!(ended.len() >= 2, "a probe and a look-up");
        // Not remembered yet: a pooled connection is found dead and replaced.
        assert!(running.handle.verifier(user.as_bytes()).await.unwrap().is_some());
        running.handle.look_again();
        let probed = |snapshot: &Snapshot| {
            snapshot
                .members
                .iter()
                .find(|known| known.name.as_str() == member)
                .unwrap()
                .health
                .last_probe
        };
        let before = probed(&running.handle.snapshot());
        let deadline = Instant::now() + Duration::from_secs(10);
        while probed(&running.handle.snapshot()) == before {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    assert_eq!(running.handle.snapshot().version, version);
    running.end().await;
}

/// Patroni's `failsafe_mode` keeps the primary running while etcd is away; so does the router keep its leader.
#[tokio::test]
#[ignore = "needs a cluster"]
async fn an_outage_of_the_dcs_keeps_the_leader_in_failsafe_mode() {
    let running = Running::start(patroni(), "trunkline", "trunkline", "postgres");
    let healthy = running.until("healthy", healthy).await;
    let before = leader(&healthy);
    let rest = text(&nodes()[0], "rest");
    assert!(configure(&rest, "failsafe_mode", "true").success());
    tokio::task::spawn_blocking(|| script(&["freeze", "etcd"]))
        .await
        .unwrap();
    let named = |snapshot: &Snapshot| match &snapshot.leader {
        Leader::Verified { named_by, .. } => Some(*named_by),
        Leader::None(_) => None,
    };
    let snapshot = running
        .until("in failsafe", |s| named(s) == Some(NamedBy::Failsafe))
        .await;
    assert_eq!(leader(&snapshot), before);
    assert!(!snapshot.source.reachable && snapshot.source.error.is_some());
    tokio::task::spawn_blocking(|| script(&["thaw", "etcd"]))
        .await
        .unwrap();
    let snapshot = running
        .until("named again", |s| named(s) == Some(NamedBy::LeaderKey))
        .await;
    assert_eq!(leader(&snapshot), before);
    assert!(configure(&rest, "failsafe_mode", "null").success());
    running.end().await;
}

/// Changes Patroni's dynamic configuration.
fn configure(rest: &str, key: &str, value: &str) -> std::process::ExitStatus {
    let body = format!("{{\"{key}\": {value}}}");
    Command::new("curl")
        .args([
            "--silent",
            "--fail",
            "--output",
            "/dev/null",
            "--request",
            "PATCH",
            "--data",
            &body,
        ])
        .arg(format!("{rest}/config"))
        .status()
        .unwrap()
}
