//! The leader dies, or freezes.

use std::time::Duration;

use tokio::time::Instant;

use super::cluster::{Cluster, Options, Router, eventually};
use super::session::{Report, Session};

const FAST: [&str; 4] = ["--ttl", "20", "--loop-wait", "2"];
/// Patroni's ttl and the election, with room for a busy machine.
const FAILOVER: Duration = Duration::from_mins(1);

fn start(patroni: &str, base: &str, etcd_port: u16) -> Cluster {
    let options: Vec<&str> = ["--patroni", patroni, "--name", "death"]
        .into_iter()
        .chain(FAST)
        .collect();
    Cluster::start(base, etcd_port, &options)
}

fn strict(router: &Router) -> u16 {
    router.http("/connection/is-ready-rw?strict=1").unwrap().0
}

/// No leader: what clients and balancers are told.
fn without_a_leader(router: &Router, dead: &str) {
    let report = Session::refused(router.address, 6432);
    assert_eq!(
        (report.severity.as_str(), report.code.as_str()),
        ("FATAL", "57P03"),
        "{report:?}"
    );
    assert!(report.message.contains("read-write"), "{report:?}");
    assert!(
        report.message.contains(dead) || report.hint.contains(dead),
        "who is missing: {report:?}"
    );
    assert!(report.hint.contains("Try again"), "{report:?}");
    assert_eq!(strict(router), 503);
    assert_eq!(router.http("/connection/is-live").unwrap().0, 200);
    assert_eq!(router.http("/connection/is-ready-ro").unwrap().0, 200);
}

/// New sessions reach the new leader.
fn recovered(router: &Router, cluster: &Cluster, dead: &str) -> String {
    let mut server = String::new();
    eventually("the new leader serves", FAILOVER, || {
        let session = Session::open(router.address, 6432);
        session.is_ok_and(|mut session| {
            assert_eq!(session.query("SELECT pg_is_in_recovery()"), "f");
            server = session.server();
            true
        })
    });
    assert_ne!(server, cluster.node(dead).address);
    assert_eq!(strict(router), 200);
    server
}

fn a_death(patroni: &str, base: &str, etcd_port: u16) {
    let cluster = start(patroni, base, etcd_port);
    let router = Router::before(&cluster, Options::default());
    let dead = cluster.leader();
    let mut idle = Session::open(router.address, 6432).unwrap();
    let mut busy = Session::open(router.address, 6432).unwrap();
    let mut readers = [
        Session::open(router.address, 6433).unwrap(),
        Session::open(router.address, 6433).unwrap(),
    ];
    let on: Vec<String> = readers.iter_mut().map(Session::server).collect();
    assert_ne!(on[0], on[1]);
    busy.send("SELECT pg_sleep(60)");
    cluster.control("kill", &[&dead]);
    let told = idle.end(Duration::from_secs(5)).ended();
    assert!(["57P01", "08006"].contains(&told.code.as_str()), "{told:?}");
    // A backend that survives the postmaster for a moment says so itself.
    let servers_own = |report: &Report| report.message.contains("postmaster exit");
    assert!(servers_own(&told) || !told.hint.is_empty(), "{told:?}");
    let told = busy.end(Duration::from_secs(5)).ended();
    assert!(
        told.code == "08007" || servers_own(&told),
        "a statement whose fate is not known: {told:?}"
    );
    eventually(
        "it is known that the leader is gone",
        Duration::from_secs(5),
        || strict(&router) == 503,
    );
    without_a_leader(&router, &dead);
    let new = recovered(&router, &cluster, &dead);
    for (session, on) in readers.iter_mut().zip(&on) {
        if *on == new {
            let told = session.end(Duration::from_secs(5)).ended();
            assert_eq!(told.code, "57P01", "{told:?}");
        } else {
            assert_eq!(session.server(), *on, "a reader elsewhere goes on");
        }
    }
    cluster.control("start", &[&dead]);
    eventually("the dead one comes back as a replica", FAILOVER, || {
        Session::open(router.address, 6433)
            .is_ok_and(|mut session| session.server() == cluster.node(&dead).address)
    });
}

#[test]
fn the_death_of_a_leader_under_patroni_4_1() {
    a_death("4.1", "127.0.32.11", 14020);
}

#[test]
fn the_death_of_a_leader_under_patroni_3_0() {
    a_death("3.0", "127.0.33.11", 14030);
}

#[test]
fn a_frozen_leader_costs_bounded_time_and_its_sessions_end_when_another_leads() {
    let cluster = start("4.1", "127.0.34.11", 14040);
    let options = Options {
        cluster_extra: "server: {connect_timeout: 1s}".into(),
        ..Options::default()
    };
    let router = Router::before(&cluster, options);
    let frozen = cluster.leader();
    let mut idle = Session::open(router.address, 6432).unwrap();
    let mut open = Session::open(router.address, 6432).unwrap();
    open.query("BEGIN; CREATE TABLE half (n int)");
    cluster.control("freeze", &[&frozen]);

    // The kernel still accepts connections for it, and nobody answers.
    let begun = Instant::now();
    let report = Session::refused(router.address, 6432);
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "within connect_timeout: {:?}",
        begun.elapsed()
    );
    assert_eq!(report.code, "57P03", "{report:?}");
    eventually(
        "it is known that the leader is silent",
        Duration::from_secs(10),
        || strict(&router) == 503,
    );
    without_a_leader(&router, &frozen);
    // Frozen is not dead: its sessions wait with it.
    assert!(idle.is_open() && open.is_open());
    recovered(&router, &cluster, &frozen);
    for session in [&mut idle, &mut open] {
        let told = session.end(Duration::from_secs(5)).ended();
        assert_eq!(told.code, "57P01", "{told:?}");
        assert!(told.message.contains("is the leader now"), "{told:?}");
    }
    // Thawed, it believes for a moment that it still leads.
    cluster.control("thaw", &[&frozen]);
    for _ in 0..50 {
        if let Ok(mut session) = Session::open(router.address, 6432) {
            assert_ne!(session.server(), cluster.node(&frozen).address, "two leaders");
        }
    }
}
