//! Somebody is cut off by a network that loses all packets: `make test-long`.

use tokio::time::Instant;

use super::super::cluster::pause;
use super::super::netns::Wire;
use super::super::session::Session;
use super::*;

const CLUSTER: [&str; 6] = ["--ttl", "20", "--loop-wait", "2", "--name", "cut"];

fn skip() {
    eprintln!("SKIPPED: network namespaces or /dev/net/tun are not to be had here (root?)");
}

/// The leader is cut off from the router and everybody else for a while, and goes on leading.
fn leader_cut_off(mode: Mode, device: &str, network: &str, etcd_port: u16) {
    let at = |host: u8| format!("{network}.{host}");
    let nodes = [at(11), at(12), at(13)];
    let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
    let Some(mut wire) = Wire::lay(device, &[&at(1)], &[&nodes]) else {
        return skip();
    };
    let cluster = Cluster::start_in(&wire.prefix(0), nodes[0], etcd_port, &CLUSTER);
    let mut run = Run::before(cluster, mode);
    let leader = run.leader();
    // Back before anybody else leads.
    run.during("leader cut off for 10 s", |_| {
        wire.tell("drop", &leader.address);
        pause(Duration::from_secs(10));
        wire.tell("pass", &leader.address);
    })
    .assert_only(&TOLD);
    // Another one leads meanwhile.
    let Run {
        cluster, recorder, ..
    } = &mut run;
    let episode = recorder.during("leader cut off, and another one promoted", || {
        wire.tell("drop", &leader.address);
        cluster.control("switchover", &[]);
    });
    wire.tell("pass", &leader.address);
    episode.assert_only(&TOLD);
    run.whole();
    run.finish();
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn a_leader_that_is_cut_off_loses_and_doubles_nothing_of_a_pooled_route() {
    leader_cut_off(Mode::Pooled, "tlcut", "10.231.31", 14330);
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn a_leader_that_is_cut_off_loses_and_doubles_nothing_of_a_tracked_route() {
    leader_cut_off(Mode::Tracked, "tlcutt", "10.231.32", 15350);
}

/// One of three routers hears nothing of the cluster any more; its clients reach it.
#[test]
#[ignore = "minutes: `make test-long`"]
fn a_router_that_is_cut_off_is_not_ready_and_keeps_nobody_waiting() {
    let nodes = ["10.231.33.11", "10.231.33.12", "10.231.33.13"];
    let ours = ["10.231.33.1", "10.231.33.2", "10.231.33.3"];
    let far = "10.231.33.21";
    let Some(mut wire) = Wire::lay("tlrouter", &ours, &[&nodes, &[far]]) else {
        return skip();
    };
    let cluster = Cluster::start_in(&wire.prefix(0), nodes[0], 15360, &CLUSTER);
    let place = |address: &str, prefix: &[&str]| Place {
        address: address.parse().unwrap(),
        prefix: prefix.iter().map(ToString::to_string).collect(),
        has_clients: prefix.is_empty(),
        mode: None,
    };
    let places = [
        place(ours[1], &[]),
        place(ours[2], &[]),
        place(far, &wire.prefix(1)),
    ];
    let mut run = Run::at(cluster, Mode::Pooled, &places, 10);
    let (name, from) = ("router cut off", Recorder::begin());
    {
        let cut = &run.routers[2];
        let mut session = Session::open(cut.address, 6432).unwrap();
        session.query("SELECT 1");
        for node in nodes {
            wire.tell("drop", &format!("{far} {node}"));
        }
        let begun = Instant::now();
        eventually("it is not ready", Duration::from_secs(10), || {
            cut.http("/connection/is-ready-rw").unwrap().0 == 503
        });
        let noticed = begun.elapsed();
        for _ in 0..10 {
            let begun = Instant::now();
            let report = Session::refused(cut.address, 6432);
            assert_eq!(report.code, "57P03", "{report:?}");
            let waited = begun.elapsed();
            assert!(waited < Duration::from_secs(1), "kept waiting for {waited:?}");
        }
        assert!(noticed < Duration::from_secs(2), "noticed after {noticed:?}");
        for node in nodes {
            wire.tell("pass", &format!("{far} {node}"));
        }
        eventually("it is ready again", Duration::from_secs(20), || {
            cut.http("/connection/is-ready-rw?strict=1").unwrap().0 == 200
        });
        let mut again = Session::open(cut.address, 6432).unwrap();
        assert_eq!(again.query("SELECT pg_is_in_recovery()"), "f");
        assert_eq!(session.query("SELECT pg_is_in_recovery()"), "f", "it has gone on");
    }
    run.recorder.await_all();
    run.recorder.end(name, from).assert_unnoticed();
    run.finish();
}
