//! Patroni or its DCS is not there.

use std::time::Duration;

use super::cluster::{Cluster, Options, Router, eventually};
use super::session::Session;
use super::standby::patch;

/// Does Patroni on this node say that it runs without the DCS, by failsafe mode?
fn failsafe(node: &super::cluster::Node) -> bool {
    use std::io::{Read, Write};
    let Ok(mut stream) = std::net::TcpStream::connect((node.address.as_str(), 8008)) else {
        return false;
    };
    let mut text = String::new();
    write!(stream, "GET /patroni HTTP/1.0\r\n\r\n").is_ok()
        && stream.read_to_string(&mut text).is_ok()
        && text.contains("\"failsafe_mode_is_active\": true")
}

#[test]
fn without_the_dcs_the_verified_leader_serves_as_long_as_patroni_lets_it_write() {
    let cluster = Cluster::start(
        "127.0.37.11",
        14070,
        &["--ttl", "20", "--loop-wait", "2", "--name", "dcs"],
    );
    let router = Router::before(&cluster, Options::default());
    let leader = cluster.node(&cluster.leader());
    patch(&cluster, r#"{"failsafe_mode": true}"#);
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

    // Patroni itself gone too, on every node: PostgreSQL goes on, and so does the router.
    cluster.control("start", &["etcd"]);
    cluster.control("wait", &[]);
    eventually("failsafe mode is over", Duration::from_secs(30), || {
        !failsafe(&leader)
    });

    // Without it, Patroni demotes the leader, and that ends its sessions; readers stay.
    patch(&cluster, r#"{"failsafe_mode": false}"#);
    eventually("every node knows", Duration::from_secs(20), || {
        cluster.nodes().iter().all(|node| {
            std::fs::read_to_string(format!(
                "{}/{}/data/patroni.dynamic.json",
                cluster.dir(),
                node.name
            ))
            .is_ok_and(|text| {
                text.contains("\"failsafe_mode\":false") || text.contains("\"failsafe_mode\": false")
            })
        })
    });
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
