//! The cluster room against a real Patroni cluster: discovery, probes, look-ups, failsafe.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::task::{block_in_place, spawn_blocking};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trunkline::cluster::snapshot::{Leader, NamedBy, Snapshot};
use trunkline::cluster::{self as room, ClusterHandle, LagLimits, LookupError, Metrics, Reporting};
use trunkline::config::{
    Auth, ChannelBinding, LocalMember, Patroni, Probe, Secret, Server, ServerOptions, ServerTls,
    ServiceAccount, Source, SslMode, SslNegotiation, Verifiers,
};
use trunkline::events::Events;
use trunkline::{config, routing};

#[path = "cluster/mod.rs"]
mod cluster;
#[path = "discovery/etcd.rs"]
mod etcd;
#[path = "discovery/lookups.rs"]
mod lookups;

use cluster::{Cluster, Node};

fn patroni(cluster: &Cluster) -> Source {
    Source::Patroni(Patroni {
        endpoints: cluster.nodes().into_iter().map(|node| node.rest).collect(),
        ca: None,
        client_certificate: None,
        basic_auth: None,
        poll_interval: Duration::from_secs(1),
        fast_poll_interval: Duration::from_millis(100),
    })
}

fn fixed(cluster: &Cluster) -> Source {
    let server = |node: Node| Server {
        name: node.name,
        host: node.address,
        port: node.port,
    };
    Source::Servers(cluster.nodes().into_iter().map(server).collect())
}

struct Running {
    handle: ClusterHandle,
    stop: CancellationToken,
    tracker: TaskTracker,
    registry: Registry,
}

impl Running {
    fn start(source: Source, user: &str, password: &str, dbname: &str) -> Self {
        let verifiers = Verifiers::Query {
            sql: "SELECT * FROM trunkline.user_lookup($1)".into(),
            cache_ttl: Duration::from_mins(1),
        };
        Self::start_with(source, user, password, dbname, verifiers)
    }

    fn watching(source: Source, etcd: Option<config::Etcd>) -> Self {
        let verifiers = Verifiers::Query {
            sql: "SELECT * FROM trunkline.user_lookup($1)".into(),
            cache_ttl: Duration::from_mins(1),
        };
        Self::start_all(source, "trunkline", "trunkline", "postgres", verifiers, etcd)
    }

    fn start_with(source: Source, user: &str, password: &str, dbname: &str, verifiers: Verifiers) -> Self {
        Self::start_all(source, user, password, dbname, verifiers, None)
    }

    fn start_all(
        source: Source,
        user: &str,
        password: &str,
        dbname: &str,
        verifiers: Verifiers,
        etcd: Option<config::Etcd>,
    ) -> Self {
        let config = config::Cluster {
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
                sslnegotiation: SslNegotiation::Postgres,
                channel_binding: ChannelBinding::Prefer,
                roots: None,
                client_certificate: None,
                server_name: None,
                require_auth: config::RequireAuth::Safe,
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
            max_connections: 0,
            local_member: LocalMember::None,
            placement: config::Placement::even(),
            etcd,
        };
        let auth = Auth {
            verifiers,
            login_timeout: Duration::from_mins(1),
            hba_file: None,
            ident_file: None,
            ldap_roots: None,
            server_credentials: Arc::new([]),
            rate_limit: config::RateLimit {
                failures: 0,
                delay: Duration::ZERO,
                max_delay: Duration::ZERO,
                refuse_after: 0,
                refuse_for: Duration::ZERO,
                exempt: [].into(),
            },
        };
        let mut registry = Registry::default();
        let reporting = Reporting {
            metrics: Arc::new(Metrics::register(&mut registry)),
            events: Events::new(),
        };
        let (stop, tracker) = (CancellationToken::new(), TaskTracker::new());
        let handle = room::start(
            Arc::new(config),
            &auth,
            LagLimits::new(),
            reporting,
            &stop,
            &tracker,
        )
        .unwrap();
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
    let fit = |member| routing::replica_reason(snapshot, member).is_ok();
    snapshot.members.iter().filter(|member| fit(member)).count()
}

fn healthy(snapshot: &Snapshot) -> bool {
    leader(snapshot).is_some() && replicas(snapshot) == 2
}

#[tokio::test]
async fn finds_leader_and_replicas_with_and_without_patroni() {
    let cluster = Cluster::shared();
    for source in [patroni(cluster), fixed(cluster)] {
        let running = Running::start(source, "trunkline", "trunkline", "postgres");
        let snapshot = running.until("healthy", healthy).await;
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
async fn looks_up_verifiers() {
    let cluster = Cluster::shared();
    let running = Running::start(patroni(cluster), "trunkline", "trunkline", "postgres");
    assert!(matches!(
        running.handle.identity(b"app").await,
        Err(LookupError::Unavailable(_))
    ));
    running.until("healthy", healthy).await;
    let verifier = running.handle.identity(b"app").await.unwrap().found;
    assert!(verifier.is_some());
    for unknown in ["nobody", "app'; SELECT 1 --", "app\\", "$1"] {
        assert_eq!(
            running.handle.identity(unknown.as_bytes()).await.unwrap().found,
            None,
            "{unknown}"
        );
    }
    let many: Vec<_> = (0..100)
        .map(|_| {
            let handle = running.handle.clone();
            tokio::spawn(async move { handle.identity(b"postgres").await })
        })
        .collect();
    for one in many {
        assert!(one.await.unwrap().unwrap().found.is_some());
    }
    assert_eq!(running.handle.identity(b"app").await.unwrap().found, verifier);

    // The function is in another database: an ordinary account gets no answer, a superuser asks
    // pg_authid.
    let elsewhere = Running::start(patroni(cluster), "trunkline", "trunkline", "app");
    elsewhere.until("healthy", healthy).await;
    assert!(matches!(
        elsewhere.handle.identity(b"app").await,
        Err(LookupError::Query(_))
    ));
    let superuser = Running::start(patroni(cluster), "postgres", "postgres", "app");
    superuser.until("healthy", healthy).await;
    assert_eq!(superuser.handle.identity(b"app").await.unwrap().found, verifier);
    assert_eq!(superuser.handle.identity(b"nobody").await.unwrap().found, None);
    // From another runtime.
    let handle = running.handle.clone();
    let other = std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(async move { handle.identity(b"trunkline").await })
    });
    let found = spawn_blocking(move || other.join().unwrap()).await.unwrap();
    assert!(found.unwrap().found.is_some());
    for running in [running, elsewhere, superuser] {
        running.end().await;
    }
}

/// One cluster for both, to be broken.
#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_dcs_a_switchover_and_a_dead_replica() {
    let cluster = Cluster::start("127.0.22.11", 22379, &["--ttl", "20", "--loop-wait", "5"]);
    an_outage_of_the_dcs_keeps_the_leader_in_failsafe_mode(&cluster).await;
    follows_a_switchover_and_a_dead_replica(&cluster).await;
}

async fn follows_a_switchover_and_a_dead_replica(cluster: &Cluster) {
    let running = Running::start(patroni(cluster), "trunkline", "trunkline", "postgres");
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
    block_in_place(|| cluster.control("switchover", &[]));
    let (gap, seen, timeline, named_by) = timeout(Duration::from_mins(1), watcher).await.unwrap().unwrap();
    assert_eq!(named_by, NamedBy::LeaderKey);
    assert!(gap < Duration::from_secs(30), "{gap:?} {seen:?}");
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
    block_in_place(|| cluster.control("kill", &[&dead]));
    running
        .until("one replica", |s| replicas(s) == 1 && leader(s).is_some())
        .await;
    block_in_place(|| cluster.control("start", &[&dead]));
    running.until("healthy at the end", healthy).await;
    running.end().await;
}

#[tokio::test]
async fn connections_terminated_by_an_administrator_take_nothing_away() {
    let cluster = Cluster::shared();
    let running = Running::start(patroni(cluster), "trunkline", "trunkline", "postgres");
    let snapshot = running.until("healthy", healthy).await;
    assert!(running.handle.identity(b"app").await.unwrap().found.is_some());
    let member = leader(&snapshot).unwrap();
    let version = running.handle.snapshot().version;
    for user in ["trunkline", "replicator", "app_repl"] {
        // Both the probe's and the look-ups' connection are there, then gone.
        let node = cluster.node(&member);
        let ours = "FROM pg_stat_activity WHERE application_name IN ('trunkline probe', 'trunkline look-up')";
        let deadline = Instant::now() + Duration::from_secs(10);
        while node.sql(&format!("SELECT count(DISTINCT application_name) {ours}")) != "2" {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        node.sql(&format!("SELECT pg_terminate_backend(pid) {ours}"));
        // Not remembered yet: a pooled connection is found dead and replaced.
        assert!(
            running
                .handle
                .identity(user.as_bytes())
                .await
                .unwrap()
                .found
                .is_some()
        );
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

/// Patroni's `failsafe_mode` keeps the primary running while etcd is away; so does the router keep
/// its leader.
async fn an_outage_of_the_dcs_keeps_the_leader_in_failsafe_mode(cluster: &Cluster) {
    let running = Running::start(patroni(cluster), "trunkline", "trunkline", "postgres");
    let healthy = running.until("healthy", healthy).await;
    let before = leader(&healthy);
    let rest = cluster.nodes()[0].rest.clone();
    assert!(configure(&rest, "failsafe_mode", "true").success());
    // Each Patroni knows whom to ask once the DCS is away.
    for node in cluster.nodes() {
        cluster::eventually("failsafe mode is on", Duration::from_mins(1), || {
            let url = format!("{}/failsafe", node.rest);
            Command::new("curl")
                .args(["--silent", "--fail", "--output", "/dev/null", &url])
                .status()
                .unwrap()
                .success()
        });
    }
    block_in_place(|| cluster.control("freeze", &["etcd"]));
    let named = |snapshot: &Snapshot| match &snapshot.leader {
        Leader::Verified { named_by, .. } => Some(*named_by),
        Leader::None(_) => None,
    };
    let snapshot = running
        .until("in failsafe", |s| named(s) == Some(NamedBy::Failsafe))
        .await;
    assert_eq!(leader(&snapshot), before);
    assert!(!snapshot.source.reachable && snapshot.source.error.is_some());
    block_in_place(|| cluster.control("thaw", &["etcd"]));
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
