//! A planned switchover, under writers, without a pool and with one.

use std::time::Duration;

use super::cluster::{Cluster, Options, Router, eventually};
use super::pooled::Pooled;
use super::session::{Report, Session, spread};
use super::writers::Writers;

/// By the server's own FATAL, or by the router's with the reason.
pub fn told_to_leave(report: &Report, reasons: &[&str]) {
    assert_eq!(report.code, "57P01", "{report:?}");
    let servers_own = report.message.contains("administrator command");
    assert!(
        servers_own || reasons.iter().any(|reason| report.message.contains(reason)),
        "{report:?}"
    );
    assert!(servers_own || !report.hint.is_empty(), "{report:?}");
}

fn a_switchover(patroni: &str, base: &str, etcd_port: u16) {
    let options = [
        "--patroni",
        patroni,
        "--ttl",
        "20",
        "--loop-wait",
        "2",
        "--name",
        "switch",
    ];
    let cluster = Cluster::start(base, etcd_port, &options);
    let router = Router::before(&cluster, Options::default());
    let at = router.address;
    let old = cluster.leader();
    let replicas = cluster.replicas();
    let (new, other) = (cluster.node(&replicas[0]), cluster.node(&replicas[1]));

    let mut idle = Session::open(at, 6432).unwrap();
    let mut in_transaction = Session::open(at, 6432).unwrap();
    in_transaction.query("CREATE TABLE half (n int)");
    in_transaction.query("BEGIN; INSERT INTO half VALUES (1)");
    let mut busy = Session::open(at, 6432).unwrap();
    busy.send("SELECT pg_sleep(60)");
    let (readers, _) = spread(at, 6433, 4);
    let (mut promoted, mut staying): (Vec<_>, Vec<_>) = readers
        .into_iter()
        .map(|mut session| (session.server(), session))
        .partition(|(server, _)| *server == new.address);
    assert_eq!((promoted.len(), staying.len()), (2, 2), "least connections");
    let pooled = Pooled::start(&cluster);
    let writers = Writers::start(at, 3);

    assert_eq!(
        cluster.control("switchover", &["--to", &new.name]).trim(),
        new.name
    );

    let leave = ["is the leader now", "has been demoted"];
    for session in [&mut idle, &mut in_transaction, &mut busy] {
        told_to_leave(&session.end(Duration::from_secs(5)).ended(), &leave);
    }
    for (_, session) in &mut promoted {
        told_to_leave(
            &session.end(Duration::from_secs(5)).ended(),
            &["has been promoted", "is the leader now"],
        );
    }
    pooled.check(&cluster.node(&old), &new);
    writers.await_more(50);
    let mut session = Session::open(at, 6432).unwrap();
    assert_eq!(session.server(), new.address);
    assert_eq!(
        session.query("SELECT count(*) FROM half"),
        "0",
        "the open transaction was rolled back"
    );
    for (server, session) in &mut staying {
        assert_eq!(session.server(), *server, "readers on the other replica go on");
        assert_eq!(*server, other.address);
    }
    let written = writers.stop();
    assert!(
        written.logins >= 6,
        "each writer was thrown out once: {written:?}"
    );
    written.check(&new.sql("SELECT n FROM written"));
    let elsewhere = format!(
        "SELECT count(*) FROM written WHERE server NOT IN ('{}', '{}')",
        cluster.node(&old).address,
        new.address
    );
    assert_eq!(new.sql(&elsewhere), "0");
    router.await_log(&[&new.name, "leader"]);
    eventually("the old leader serves readers", Duration::from_secs(30), || {
        let (_sessions, places) = spread(at, 6433, 4);
        places.contains_key(&cluster.node(&old).address)
    });
}

#[test]
fn a_switchover_of_patroni_4_1_moves_everybody_and_loses_nothing() {
    a_switchover("4.1", "127.0.30.11", 14000);
}

#[test]
fn a_switchover_of_patroni_3_0_moves_everybody_and_loses_nothing() {
    a_switchover("3.0", "127.0.31.11", 14010);
}
