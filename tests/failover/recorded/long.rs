//! Planned stops in long rows: `make test-long`.

use std::cmp::Reverse;

use serde_json::Value;

use super::super::orders::restart;
use super::*;

/// How often something is repeated: `TRUNKLINE_TEST_ROUNDS`, or `usual`.
fn rounds(usual: usize) -> usize {
    let asked = std::env::var("TRUNKLINE_TEST_ROUNDS").ok();
    asked.map_or(usual, |asked| asked.parse().unwrap())
}

/// Of a row of switchovers: how long the cluster had no leader, and how long its clients waited.
fn summary(name: &str, episodes: &[Episode]) {
    let mut text = format!("{name}, {} in a row (median / worst, ms)", episodes.len());
    for (what, of) in [
        ("without a leader", (|episode| episode.gap) as fn(&Episode) -> u64),
        ("longest pause", Episode::pause),
        ("difference", |episode| {
            episode.pause().saturating_sub(episode.gap)
        }),
        ("of it after the gap", |episode| episode.after),
    ] {
        let mut times: Vec<u64> = episodes.iter().map(of).collect();
        times.sort_unstable_by_key(|time| Reverse(*time));
        let _ = write!(text, "; {what} {} / {}", times[times.len() / 2], times[0]);
    }
    eprintln!("{text}");
}

fn unnoticed(run: Run, name: &str, episodes: &[Episode]) {
    summary(name, episodes);
    run.finish();
    for episode in episodes {
        episode.assert_unnoticed();
    }
}

impl Run {
    /// So many sessions, over all routers, have a server connection on this member.
    fn sessions_on(&self, member: &str) -> u64 {
        let of = |router: &Router| {
            let text = self.tell(router, &["members", "--json"]);
            let members: Value = serde_json::from_str(&text).unwrap();
            let members = members.as_array().unwrap();
            let found = members.iter().find(|row| row["name"] == member).unwrap();
            found["sessions"].as_u64().unwrap()
        };
        self.routers.iter().map(of).sum()
    }

    /// PostgreSQL of this member is restarted where it is, when nobody is on it any more.
    fn restart_drained(&mut self, name: &str) -> Episode {
        let from = Recorder::begin();
        for router in &self.routers {
            self.tell(router, &["drain", name]);
        }
        eventually("no session is left on the member", FAILOVER, || {
            self.sessions_on(name) == 0
        });
        restart(&self.cluster, name);
        for router in &self.routers {
            self.tell(router, &["ready", name]);
        }
        self.recorder.await_all();
        let episode = self.recorder.end(&format!("{name} restarted"), from);
        self.whole();
        episode
    }
}

fn fifty_switchovers(mode: Mode, base: &str, etcd_port: u16) {
    let mut run = Run::with_peers(mode, "fifty", base, etcd_port);
    let episodes: Vec<Episode> = (0..rounds(50))
        .map(|round| run.switchover_by(round % 3))
        .collect();
    unnoticed(run, &format!("{mode:?}: trunkline switchover"), &episodes);
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn fifty_switchovers_cost_clients_of_pooled_routes_of_three_routers_nothing() {
    fifty_switchovers(Mode::Pooled, "127.0.56.11", 14310);
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn fifty_switchovers_cost_clients_of_tracked_routes_of_three_routers_nothing() {
    fifty_switchovers(Mode::Tracked, "127.0.201.11", 15200);
}

/// Twenty switchovers and five restarts of the leader by Patroni, with its `before_stop`.
fn stops_by_patroni(mode: Mode, base: &str, etcd_port: u16) {
    let mut run = Run::with_peers(mode, "before", base, etcd_port);
    install_before_stop(&run.cluster, &run.routers[0]);
    let mut episodes: Vec<Episode> = (0..rounds(20)).map(|_| run.switchover()).collect();
    for _ in 0..rounds(20).div_ceil(4) {
        let leader = run.leader().name;
        episodes.push(run.during("leader restarted", |cluster| restart(cluster, &leader)));
        assert_eq!(run.leader().name, leader);
    }
    unnoticed(run, &format!("{mode:?}: before-stop"), &episodes);
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn many_stops_by_patroni_after_before_stop_cost_clients_of_pooled_routes_nothing() {
    stops_by_patroni(Mode::Pooled, "127.0.202.11", 15210);
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn many_stops_by_patroni_after_before_stop_cost_clients_of_tracked_routes_nothing() {
    stops_by_patroni(Mode::Tracked, "127.0.203.11", 15220);
}

/// Drain, restart, ready: the replicas, and then the leader.
fn rolling_restart(mode: Mode, base: &str, etcd_port: u16) {
    let mut run = Run::with_peers(mode, "rolling", base, etcd_port);
    let leader = run.leader().name;
    let names = run.cluster.replicas().into_iter().chain([leader.clone()]);
    let names: Vec<String> = names.collect();
    let episodes: Vec<Episode> = names.iter().map(|name| run.restart_drained(name)).collect();
    assert_eq!(run.leader().name, leader);
    unnoticed(run, &format!("{mode:?}: rolling restart"), &episodes);
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn a_rolling_restart_costs_clients_of_pooled_routes_nothing() {
    rolling_restart(Mode::Pooled, "127.0.204.11", 15230);
}

#[test]
#[ignore = "minutes: `make test-long`"]
fn a_rolling_restart_costs_clients_of_tracked_routes_nothing() {
    rolling_restart(Mode::Tracked, "127.0.205.11", 15240);
}

/// Patroni 3.0 runs nothing before it stops a server.
#[test]
#[ignore = "minutes: `make test-long`"]
fn switchovers_of_patroni_3_0_lose_and_double_nothing() {
    let cluster = Run::cluster("three", "127.0.206.11", 15250, &["--patroni", "3.0"]);
    let mut run = Run::before(cluster, Mode::Pooled);
    let episodes: Vec<Episode> = (0..2).map(|_| run.switchover_by_the_router()).collect();
    run.switchover().assert_only(&TOLD);
    unnoticed(run, "Patroni 3.0: trunkline switchover", &episodes);
}
