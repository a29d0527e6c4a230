//! Patroni or its DCS is not there.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use super::cluster::{Cluster, Node, Options, Router, eventually, succeed};
use super::session::Session;
use super::standby::patch;

/// Body of a GET on a node's Patroni.
fn ask(node: &Node, path: &str) -> String {
    let mut text = String::new();
    if let Ok(mut stream) = TcpStream::connect((node.address.as_str(), 8008)) {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(3)));
        let _ = write!(stream, "GET {path} HTTP/1.0\r\n\r\n");
        let _ = stream.read_to_string(&mut text);
    }
    text
}

/// Does Patroni on this node say that it runs without the DCS, by failsafe mode?
fn failsafe(node: &Node) -> bool {
    ask(node, "/patroni").contains("\"failsafe_mode_is_active\": true")
}

/// When this node's Patroni read the DCS last, in seconds.
fn dcs_last_seen(node: &Node) -> u64 {
    let text = ask(node, "/patroni");
    let after = text
        .split_once("\"dcs_last_seen\": ")
        .map_or("", |(_, after)| after);
    after
        .chars()
        .take_while(char::is_ascii_digit)
        .collect::<String>()
        .parse()
        .unwrap_or(0)
}

/// Until every node's Patroni has heard of the setting.
fn await_setting(cluster: &Cluster, on: bool) {
    let word = format!("\"failsafe_mode\":{on}");
    eventually("every node knows the setting", Duration::from_secs(20), || {
        cluster.nodes().iter().all(|node| {
            let path = format!("{}/{}/data/patroni.dynamic.json", cluster.dir(), node.name);
            fs::read_to_string(path).is_ok_and(|text| text.replace(": ", ":").contains(&word))
        })
    });
}

/// Sets `failsafe_mode`; every node is ready for it when this returns.
pub fn prepare_failsafe(cluster: &Cluster) {
    patch(cluster, r#"{"failsafe_mode": true}"#);
    await_setting(cluster, true);
    eventually("failsafe mode is prepared", Duration::from_secs(20), || {
        cluster.nodes().iter().all(|node| {
            let members = ask(node, "/failsafe");
            cluster.nodes().iter().all(|node| members.contains(&node.name))
        })
    });
    // And each has been through its loop with that.
    let seen: Vec<u64> = cluster.nodes().iter().map(dcs_last_seen).collect();
    eventually("every node has looked again", Duration::from_secs(20), || {
        cluster
            .nodes()
            .iter()
            .zip(&seen)
            .all(|(node, seen)| dcs_last_seen(node) >= seen + 4)
    });
}

#[test]
fn without_the_dcs_the_verified_leader_serves_as_long_as_patroni_lets_it_write() {
    let cluster = Cluster::start(
        "127.0.37.11",
        14070,
        &["--ttl", "20", "--loop-wait", "1", "--name", "dcs"],
    );
    let router = Router::before(&cluster, Options::default());
    let leader = cluster.node(&cluster.leader());
    prepare_failsafe(&cluster);
    let mut session = Session::open(router.address, 6432).unwrap();

    // With failsafe_mode: nothing happens to anybody.
    cluster.control("kill", &["etcd"]);
    eventually("Patroni is in failsafe mode", Duration::from_secs(40), || {
        failsafe(&leader)
    });
    assert_eq!(session.query("SELECT pg_is_in_recovery()"), "f");
    for _ in 0..10 {
        let mut new = Session::open(router.address, 6432).unwrap();
        assert_eq!(new.server(), leader.address);
        new.query("CREATE TEMP TABLE t (n int)");
        assert_eq!(
            Session::open(router.address, 6433)
                .unwrap()
                .query("SELECT pg_is_in_recovery()"),
            "t"
        );
    }
    assert_eq!(router.http("/connection/is-ready-rw?strict=1").unwrap().0, 200);

    cluster.control("start", &["etcd"]);
    cluster.control("wait", &[]);
    eventually("failsafe mode is over", Duration::from_secs(30), || {
        !failsafe(&leader)
    });

    // Without it, Patroni demotes the leader, and that ends its sessions; readers stay.
    patch(&cluster, r#"{"failsafe_mode": false}"#);
    await_setting(&cluster, false);
    cluster.control("kill", &["etcd"]);
    let told = session.end(Duration::from_mins(1)).ended();
    assert_eq!(told.code, "57P01", "{told:?}");
    eventually("there is no leader", Duration::from_secs(10), || {
        router.http("/connection/is-ready-rw?strict=1").unwrap().0 == 503
    });
    let report = Session::refused(router.address, 6432);
    assert_eq!(report.code, "57P03", "{report:?}");
    cluster.control("start", &["etcd"]);
    eventually("it recovers by itself", Duration::from_mins(1), || {
        Session::open(router.address, 6432)
            .is_ok_and(|mut session| session.query("SELECT pg_is_in_recovery()") == "f")
    });
}

#[test]
fn with_every_patroni_dead_the_verified_leader_serves_on() {
    let cluster = Cluster::start(
        "127.0.39.11",
        14096,
        &["--ttl", "20", "--loop-wait", "1", "--name", "dead"],
    );
    let router = Router::before(&cluster, Options::default());
    let leader = cluster.node(&cluster.leader());
    let mut session = Session::open(router.address, 6432).unwrap();
    for node in cluster.nodes() {
        // Patroni alone: PostgreSQL lives on.
        let pid = fs::read_to_string(format!("{}/{}", cluster.text("pids"), node.name)).unwrap();
        succeed(Command::new("kill").args(["-9", pid.split(' ').next().unwrap()]));
    }
    router.await_log(&["Patroni", "no"]);
    eventually("nobody answers for the cluster", Duration::from_secs(10), || {
        router.log().contains("no Patroni endpoint gave a usable answer")
    });
    for _ in 0..10 {
        assert_eq!(
            Session::open(router.address, 6432).unwrap().server(),
            leader.address
        );
        assert_eq!(
            Session::open(router.address, 6433)
                .unwrap()
                .query("SELECT pg_is_in_recovery()"),
            "t"
        );
    }
    assert_eq!(session.query("SELECT pg_is_in_recovery()"), "f");
    // Somebody promotes another by hand: whom to believe is not known, so nobody is.
    let rogue = cluster.node(&cluster.replicas()[0]);
    rogue.sql("SELECT pg_promote()");
    eventually(
        "two writable servers are no leader",
        Duration::from_secs(5),
        || router.http("/connection/is-ready-rw?strict=1").unwrap().0 == 503,
    );
    let report = Session::refused(router.address, 6432);
    assert_eq!(report.code, "57P03", "{report:?}");
    assert!(report.message.contains("newer timeline"), "{report:?}");
}
