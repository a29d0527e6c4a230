//! A replica that falls behind, and one that freezes: who is given new sessions, and what happens
//! to live ones.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::cluster::{Cluster, Node, Options, Router, eventually, fresh_address};
use super::fake::{Patroni, member, router_for};
use super::session::{Session, spread};

/// One route for each way to treat sessions on a member that lags, or is down.
const ROUTES: &str = "routes:
  read-write: {targets: [leader]}
  read-only: {targets: [replica], max_lag: {bytes: 2MB, recover_bytes: 512kB}}
  idle: {targets: [replica], max_lag: {bytes: 2MB}, on_unfit: {lag: close_idle, down: close_idle}}
  strict: {targets: [replica], max_lag: {time: 3s}, on_unfit: {lag: close, grace: 1s}}
  any: {targets: [replica]}
";
const LISTENERS: &str = "  - {name: rw, address: \"{address}:6432\", route: read-write}
  - {name: ro, address: \"{address}:6433\", route: read-only}
  - {name: idle, address: \"{address}:6435\", route: idle}
  - {name: strict, address: \"{address}:6436\", route: strict}
  - {name: any, address: \"{address}:6437\", route: any}
";

fn options() -> Options {
    Options {
        extra: ROUTES.into(),
        listeners: Some(LISTENERS.into()),
        cluster_extra: "server: {connect_timeout: 1s}".into(),
        ..Options::default()
    }
}

/// A session of that port's route on `node`.
fn on(router: &Router, port: u16, node: &Node) -> Session {
    // Those that went elsewhere stay there, so that the next one does not.
    let mut others = Vec::new();
    for _ in 0..20 {
        let mut session = Session::open(router.address, port).unwrap();
        if session.server() == node.address {
            return session;
        }
        others.push(session);
    }
    panic!("no session of {port} on {}", node.name);
}

fn is_fit(router: &Router, node: &Node) -> bool {
    let (status, _) = router.http(&format!("/node/{}/is-read-only", node.name)).unwrap();
    status == 200
}

/// So many MiB of WAL.
fn write(leader: &Node, mebibytes: u32) {
    leader.sql(&format!(
        "INSERT INTO wal SELECT repeat('x', 1000) FROM generate_series(1, {mebibytes} * 1000)"
    ));
}

fn is_told_to_leave(session: &mut Session, why: &str) {
    let told = session.end(Duration::from_secs(10)).ended();
    assert_eq!(told.code, "57P01", "{told:?}");
    assert!(told.message.contains(why), "{told:?}");
    assert!(told.hint.contains("Reconnect"), "{told:?}");
}

#[test]
fn a_replica_that_stops_replaying_loses_sessions_by_policy_and_gets_them_back_when_it_has_caught_up() {
    let cluster = Cluster::start(
        "127.0.40.11",
        14130,
        &["--ttl", "20", "--loop-wait", "2", "--name", "lag"],
    );
    let router = Router::before(&cluster, options());
    let leader = cluster.node(&cluster.leader());
    let replicas: Vec<Node> = cluster.replicas().iter().map(|name| cluster.node(name)).collect();
    let (behind, other) = (&replicas[0], &replicas[1]);
    leader.sql("CREATE TABLE wal (text text); CREATE TABLE held (n int); GRANT SELECT ON held TO app");
    behind.sql("ALTER SYSTEM SET max_standby_streaming_delay = -1");
    behind.sql("SELECT pg_reload_conf()");
    for node in &replicas {
        eventually("it is fit", Duration::from_secs(20), || is_fit(&router, node));
    }

    let mut kept = on(&router, 6433, behind);
    let mut idle = on(&router, 6435, behind);
    let mut returning = on(&router, 6435, behind);
    returning.query("BEGIN");
    let mut strict = on(&router, 6436, behind);
    strict.query("BEGIN");

    // A long transaction of a reader holds replay up. (Patroni resumes one that was paused.)
    kept.query("BEGIN");
    kept.query("SELECT count(*) FROM held");
    leader.sql("ALTER TABLE held ADD COLUMN more int");
    write(&leader, 4);
    // The other one may be behind, too, until it has replayed this much.
    eventually("only it lags", Duration::from_secs(20), || {
        !is_fit(&router, behind) && is_fit(&router, other)
    });
    let mut elsewhere = on(&router, 6436, other);
    let label = format!("{{cluster=\"main\",member=\"{}\"}}", behind.name);
    let lag = router.metric(&format!("trunkline_cluster_member_lag_bytes{label}"));
    assert!(lag > 4e6, "{lag}");
    let fit = |node: &Node| {
        router.metric(&format!(
            "trunkline_cluster_member_fit{{cluster=\"main\",member=\"{}\",route=\"read-only\"}}",
            node.name
        ))
    };
    assert!(fit(behind) < 0.5 && fit(other) > 0.5, "{}", router.log());
    router.await_log(&[&behind.name, "gets no sessions of route read-only", "bytes"]);

    // New ones.
    for port in [6433, 6435] {
        let (_sessions, places) = spread(router.address, port, 6);
        assert_eq!(places, HashMap::from([(other.address.clone(), 6)]), "{port}");
    }
    let (_sessions, places) = spread(router.address, 6437, 6);
    assert!(places.contains_key(&behind.address), "a route without a limit");

    // To a router that is told of the two alone, as of a standby cluster, the one that follows
    // stands for the leader.
    let address = fresh_address();
    let told = json!([
        member(other, &other.name, "standby_leader"),
        member(behind, &behind.name, "replica"),
    ]);
    let _patroni = Patroni::serve(address, &told);
    let led_by_standby = Options {
        cluster_extra: String::new(),
        ..options()
    };
    let (_dir, second) = router_for(&cluster, address, led_by_standby);
    eventually(
        "a standby leader is within the limit",
        Duration::from_secs(20),
        || is_fit(&second, other),
    );
    eventually("the other one is measured", Duration::from_secs(20), || {
        second.metric(&format!("trunkline_cluster_member_lag_bytes{label}")) > 4e6 && !is_fit(&second, behind)
    });
    let (_sessions, places) = spread(second.address, 6433, 4);
    assert_eq!(places, HashMap::from([(other.address.clone(), 4)]));
    let report = Session::refused(second.address, 6432);
    assert_eq!(report.code, "57P03", "{report:?}");
    assert!(
        report.message.contains("standby cluster") || report.hint.contains("standby cluster"),
        "{report:?}"
    );

    // Live ones.
    is_told_to_leave(&mut idle, "is too far behind the leader");
    is_told_to_leave(&mut strict, "is too far behind the leader");
    let seconds = router.metric(&format!("trunkline_cluster_member_lag_seconds{label}"));
    assert!(seconds > 3.0, "{seconds}");
    router.await_log(&["session ended", "route=strict", "is too far behind the leader"]);
    assert_eq!(kept.server(), behind.address, "by default they stay");
    assert_eq!(returning.server(), behind.address, "in a transaction");
    assert_eq!(elsewhere.server(), other.address);

    // It catches up before that transaction ends.
    kept.query("COMMIT");
    eventually("it has caught up", Duration::from_secs(20), || {
        is_fit(&router, behind) && is_fit(&second, behind)
    });
    for port in [6433, 6435, 6436] {
        eventually("it is given sessions again", Duration::from_secs(20), || {
            let (_sessions, places) = spread(router.address, port, 4);
            places.contains_key(&behind.address)
        });
    }
    assert!(returning.is_open());
    returning.query("COMMIT");
    assert_eq!(returning.server(), behind.address, "the order was taken back");
    assert_eq!(kept.server(), behind.address);
    router.await_log(&[
        &behind.name,
        "is close enough to the leader for route read-only again",
    ]);
}

#[test]
fn a_replica_that_freezes_stalls_nobody_and_its_idle_sessions_are_told() {
    let cluster = Cluster::start(
        "127.0.41.11",
        14140,
        &["--ttl", "20", "--loop-wait", "2", "--name", "freeze"],
    );
    let router = Router::before(&cluster, options());
    let replicas: Vec<Node> = cluster.replicas().iter().map(|name| cluster.node(name)).collect();
    let (frozen, other) = (&replicas[0], &replicas[1]);
    for node in &replicas {
        eventually("it is fit", Duration::from_secs(20), || is_fit(&router, node));
    }
    let mut kept = on(&router, 6433, frozen);
    let mut idle = on(&router, 6435, frozen);
    cluster.control("freeze", &[&frozen.name]);
    let mut slow = 0;
    for _ in 0..20 {
        let began = Instant::now();
        let mut session = Session::open(router.address, 6437).unwrap();
        assert_eq!(session.server(), other.address);
        // The one that finds out waits for `connect_timeout`.
        slow += usize::from(began.elapsed() >= Duration::from_secs(1));
    }
    assert!(slow <= 2, "{slow} sessions of 20 waited");
    is_told_to_leave(&mut idle, "is down");
    assert!(kept.is_open(), "by default they stay");
    assert!(!is_fit(&router, frozen));
    cluster.control("thaw", &[&frozen.name]);
    assert_eq!(kept.server(), frozen.address, "and it lives");
    eventually("it is given sessions again", Duration::from_secs(30), || {
        let (_sessions, places) = spread(router.address, 6437, 4);
        places.contains_key(&frozen.address)
    });
}
