//! Rarer outages, each on a cluster of its own: `make test-long`.

use tokio::time::Instant;

use super::super::cluster::pause;
use super::super::dcs::prepare_failsafe;
use super::*;

/// Another has the leader key long before it can be written to.
fn slow_promotion(mode: Mode, base: &str, etcd_port: u16) {
    const SLOW: u64 = 12;
    let mut run = Run::start(mode, "slow", base, etcd_port);
    // Patroni does not show what it has taken; a parameter of the same change does.
    let set = format!(
        r#"{{"postgresql": {{"pre_promote": "/bin/sleep {SLOW}", "parameters": {{"vacuum_cost_limit": 201}}}}}}"#
    );
    configure(&run.cluster, &set);
    for node in run.cluster.nodes() {
        eventually("Patroni has taken it", FAILOVER, || {
            node.sql("SHOW vacuum_cost_limit") == "201"
        });
    }
    let episode = run.switchover();
    episode.assert_only(&TOLD);
    assert!(episode.gap > SLOW * 1000, "it was slow: {} ms", episode.gap);
    run.finish();
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn a_slow_promotion_loses_and_doubles_nothing_of_a_pooled_route() {
    slow_promotion(Mode::Pooled, "127.0.57.11", 14320);
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn a_slow_promotion_loses_and_doubles_nothing_of_a_tracked_route() {
    slow_promotion(Mode::Tracked, "127.0.207.11", 15260);
}

/// The leader dies and is back before its key is gone.
fn old_leader_first(mode: Mode, base: &str, etcd_port: u16) {
    let mut run = Run::start(mode, "first", base, etcd_port);
    let dead = run.leader().name;
    run.during("leader killed and started again", |cluster| {
        cluster.control("kill", &[&dead]);
        pause(Duration::from_secs(3));
        cluster.control("start", &[&dead]);
    })
    .assert_only(&TOLD);
    run.finish();
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn a_leader_that_comes_back_first_loses_and_doubles_nothing_of_a_pooled_route() {
    old_leader_first(Mode::Pooled, "127.0.208.11", 15270);
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn a_leader_that_comes_back_first_loses_and_doubles_nothing_of_a_tracked_route() {
    old_leader_first(Mode::Tracked, "127.0.209.11", 15280);
}

fn two_leaders_within_10_s(mode: Mode, base: &str, etcd_port: u16) {
    let mut run = Run::start(mode, "two", base, etcd_port);
    let first = run.leader().name;
    let mut second = String::new();
    let Run {
        cluster, recorder, ..
    } = &mut run;
    let episode = recorder.during("two leaders killed within 10 s", || {
        cluster.control("kill", &[&first]);
        second = cluster.leader();
        let begun = Instant::now();
        // Until then the second one acknowledges what no other has.
        await_synchronous(cluster);
        cluster.control("kill", &[&second]);
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        cluster.control("start", &[&first]);
    });
    run.cluster.control("start", &[&second]);
    run.whole();
    episode.assert_only(&TOLD);
    run.finish();
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn two_leaders_killed_within_10_s_lose_and_double_nothing_of_a_pooled_route() {
    two_leaders_within_10_s(Mode::Pooled, "127.0.210.11", 15290);
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn two_leaders_killed_within_10_s_lose_and_double_nothing_of_a_tracked_route() {
    two_leaders_within_10_s(Mode::Tracked, "127.0.211.11", 15300);
}

fn etcd_stopped(run: &mut Run, seconds: u64) -> Episode {
    run.during(&format!("etcd stopped for {seconds} s"), |cluster| {
        cluster.control("kill", &["etcd"]);
        pause(Duration::from_secs(seconds));
        cluster.control("start", &["etcd"]);
    })
}

/// Patroni demotes its leader if it cannot reach etcd for long enough.
fn without_failsafe(mode: Mode, base: &str, etcd_port: u16) {
    let mut run = Run::start(mode, "noetcd", base, etcd_port);
    let short = etcd_stopped(&mut run, 15);
    short.assert_only(&TOLD);
    let long = etcd_stopped(&mut run, 120);
    long.assert_only(&TOLD);
    let refused = long
        .codes()
        .into_iter()
        .filter(|(code, _)| code.starts_with("57P03"));
    assert!(
        refused.count() > 0,
        "held for longer than the bound: {:?}",
        long.codes()
    );
    run.finish();
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn etcd_that_stops_loses_and_doubles_nothing_of_a_pooled_route() {
    without_failsafe(Mode::Pooled, "127.0.212.11", 15310);
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn etcd_that_stops_loses_and_doubles_nothing_of_a_tracked_route() {
    without_failsafe(Mode::Tracked, "127.0.213.11", 15320);
}

/// With `failsafe_mode` the leader goes on.
fn with_failsafe(mode: Mode, base: &str, etcd_port: u16) {
    let mut run = Run::start(mode, "failsafe", base, etcd_port);
    prepare_failsafe(&run.cluster);
    let leader = run.leader().name;
    for seconds in [15, 120] {
        etcd_stopped(&mut run, seconds).assert_unnoticed();
        assert_eq!(run.leader().name, leader);
    }
    run.finish();
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn etcd_that_stops_in_failsafe_mode_costs_clients_of_a_pooled_route_nothing() {
    with_failsafe(Mode::Pooled, "127.0.214.11", 15330);
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn etcd_that_stops_in_failsafe_mode_costs_clients_of_a_tracked_route_nothing() {
    with_failsafe(Mode::Tracked, "127.0.215.11", 15340);
}
