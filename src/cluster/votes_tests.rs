#![allow(clippy::unwrap_used)]

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::cluster::control::seen_writable;
use crate::cluster::patroni::{choose, parse};
use crate::cluster::snapshot::{Cause, Leader, NoLeader, ProbeFacts};
use crate::cluster::state::{Named, Observation, Settings, SourceKind, State};
use crate::config::Placement;

fn read(value: &Value) -> SourceReport {
    parse(value.to_string().as_bytes()).unwrap()
}

fn member(name: &str, role: &str) -> Value {
    json!({"name": name, "role": role, "state": "running", "host": format!("host-{name}"), "port": 5432,
           "timeline": 1, "lag": 0, "tags": {}})
}

fn correct() -> Value {
    json!({"members": [member("n1", "leader"), member("n2", "replica"), member("n3", "sync_standby")]})
}

/// The correct answer with `change` applied.
fn wrong(change: impl Fn(&mut Value)) -> SourceReport {
    let mut members = correct();
    change(&mut members["members"]);
    read(&members)
}

fn settings() -> Settings {
    Settings {
        cluster: "main".into(),
        kind: SourceKind::Patroni,
        rise: 2,
        fall: 3,
        probe_interval: Duration::from_secs(1),
        probe_timeout: Duration::from_secs(1),
        poll_interval: Duration::from_secs(1),
        fast_interval: Duration::from_secs(1),
        placement: Placement::even(),
        limits: std::collections::BTreeMap::new(),
    }
}

/// A router that has the correct answer, and has seen that each member belongs to the cluster.
fn informed() -> State {
    let now = Instant::now();
    let mut state = State::new(settings(), now);
    state.observe(Observation::Source(read(&correct())), now);
    for name in ["n1", "n2", "n3"] {
        let facts = ProbeFacts {
            in_recovery: name != "n1",
            system_identifier: 7,
            timeline: 1,
            position: 1,
            received: 0,
            streaming: name != "n1",
            server_version: 180_000,
            latency: Duration::ZERO,
            address: None,
            connected: None,
        };
        state.observe(
            Observation::Probe {
                member: MemberName::new(name),
                started: now,
                result: Ok(facts),
            },
            now,
        );
    }
    state
}

fn polled(published: &Snapshot, answers: &[SourceReport]) -> SourceReport {
    let answers: Vec<&SourceReport> = answers.iter().collect();
    choose(&answers, &|name| seen_writable(published, name), published).unwrap()
}

/// Sorted by name, since the order does not matter.
fn sorted(report: &SourceReport) -> Vec<Listed> {
    let mut members = report.members.clone();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    members
}

fn wrong_answers() -> Vec<(&'static str, SourceReport)> {
    let swap = |members: &mut Value| {
        members[0]["host"] = json!("host-n2");
        members[1]["host"] = json!("host-n1");
    };
    vec![
        (
            "the leader's host",
            wrong(|members| members[0]["host"] = json!("elsewhere")),
        ),
        (
            "the leader's port",
            wrong(|members| members[0]["port"] = json!(5999)),
        ),
        ("no address", wrong(|members| members[0]["host"] = json!(""))),
        ("hosts exchanged", wrong(swap)),
        (
            "no replicas",
            wrong(|members| members.as_array_mut().unwrap().truncate(1)),
        ),
        (
            "a replica's host",
            wrong(|members| members[1]["host"] = json!("elsewhere")),
        ),
        ("stopped", wrong(|members| members[1]["state"] = json!("stopped"))),
        (
            "a tag",
            wrong(|members| members[1]["tags"] = json!({"noloadbalance": true})),
        ),
        ("a role", wrong(|members| members[2]["role"] = json!("replica"))),
        ("a timeline", wrong(|members| members[1]["timeline"] = json!(9))),
        (
            "a stranger",
            wrong(|members| members.as_array_mut().unwrap().push(member("n9", "replica"))),
        ),
        (
            "an entry of that name in front",
            wrong(|members| {
                let mut other = member("n1", "leader");
                other["host"] = json!("elsewhere");
                members.as_array_mut().unwrap().insert(0, other);
            }),
        ),
        (
            "another leader",
            wrong(|members| {
                members[0]["role"] = json!("replica");
                members[1]["role"] = json!("leader");
            }),
        ),
        (
            "nobody leads",
            wrong(|members| members[0]["role"] = json!("replica")),
        ),
        ("none at all", wrong(|members| *members = json!([]))),
        ("paused", {
            let mut report = read(&correct());
            report.paused = true;
            report
        }),
    ]
}

/// For every wrong answer, at every position in the configuration, and also before anything is
/// known.
#[tokio::test(start_paused = true)]
async fn one_endpoint_of_three_changes_nothing_but_lag() {
    let nothing = State::new(settings(), Instant::now()).snapshot();
    for (what, wrong) in wrong_answers() {
        for published in [informed().snapshot(), std::sync::Arc::clone(&nothing)] {
            for index in 0..3 {
                let mut answers = vec![read(&correct()); 3];
                answers[index] = wrong.clone();
                let report = polled(&published, &answers);
                assert_eq!(sorted(&report), read(&correct()).members, "{what}, {index}");
                assert_eq!(report.named, Named::One(MemberName::new("n1")), "{what}, {index}");
                assert!(!report.paused, "{what}, {index}");
            }
        }
    }
}

/// One against one: the published state stays until the two agree.
#[tokio::test(start_paused = true)]
async fn two_endpoints_that_differ_change_nothing() {
    let mut state = informed();
    for (what, wrong) in wrong_answers() {
        for index in 0..2 {
            let mut answers = vec![read(&correct()); 2];
            answers[index] = wrong.clone();
            let report = polled(&state.snapshot(), &answers);
            assert_eq!(sorted(&report), read(&correct()).members, "{what}, {index}");
            assert!(!report.paused, "{what}, {index}");
            state.observe(Observation::Source(report), Instant::now());
        }
    }
}

/// Two of three are the majority. If they differ from each other, the seen state stays.
#[tokio::test(start_paused = true)]
async fn two_wrong_endpoints_of_three_must_agree() {
    let published = informed().snapshot();
    let elsewhere = |host: &str| wrong(|members| members[1]["host"] = json!(host));
    for honest in 0..3 {
        let mut answers = vec![elsewhere("x"); 3];
        answers[honest] = read(&correct());
        assert_eq!(sorted(&polled(&published, &answers))[1].host, "x");
        answers[(honest + 1) % 3] = elsewhere("y");
        assert_eq!(sorted(&polled(&published, &answers))[1].host, "host-n2");
        // Also if the correct endpoint does not answer.
        answers.remove(honest);
        let report = polled(&published, &answers);
        assert_eq!(sorted(&report)[1].host, "host-n2");
        assert_eq!(
            report.disagreement.as_deref(),
            Some("Patroni's endpoints disagree: they give different addresses for n2")
        );
    }
    let gone = wrong(|members| members.as_array_mut().unwrap().truncate(1));
    assert_eq!(
        polled(&published, &[read(&correct()), gone.clone(), gone])
            .members
            .len(),
        1
    );
}

/// A change arrives at one endpoint after the other. It is applied once, when most have it.
#[tokio::test(start_paused = true)]
async fn a_change_that_reaches_one_endpoint_after_another_is_applied_once() {
    let new = || wrong(|members| members[1]["host"] = json!("new"));
    for endpoints in [2, 3] {
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
            let order: Vec<usize> = order.into_iter().filter(|index| *index < endpoints).collect();
            let mut state = informed();
            let mut answers = vec![read(&correct()); endpoints];
            let mut hosts = Vec::new();
            for index in order {
                answers[index] = new();
                let report = polled(&state.snapshot(), &answers);
                hosts.push(sorted(&report)[1].host.clone());
                state.observe(Observation::Source(report), Instant::now());
            }
            let expected = &["host-n2", "new", "new"][..endpoints];
            assert_eq!(hosts, expected);
        }
    }
    // All endpoints at once.
    let report = polled(&informed().snapshot(), &[new(), new(), new()]);
    assert_eq!(
        (sorted(&report)[1].host.as_str(), report.disagreement),
        ("new", None)
    );
}

#[tokio::test(start_paused = true)]
async fn the_lag_is_the_median() {
    let published = informed().snapshot();
    let lagging = |lag: u64| wrong(|members| members[1]["lag"] = json!(lag));
    for (lags, expected) in [([5, 6, 7], 6), ([u64::MAX, 6, 7], 7), ([0, 7, 6], 6)] {
        let report = polled(&published, &lags.map(lagging));
        assert_eq!(sorted(&report)[1].lag, Some(expected));
        assert_eq!(report.disagreement, None, "{lags:?}");
    }
    let report = polled(&published, &[lagging(5), lagging(6)]);
    assert_eq!(sorted(&report)[1].lag, Some(6));
}

/// The lists of two groups of Citus with one scope: the coordinator's, and that of two workers.
fn of_groups() -> [SourceReport; 3] {
    let workers = || read(&json!({"members": [member("w1", "leader"), member("w2", "replica")]}));
    [
        read(&json!({"members": [member("n1", "leader")]})),
        workers(),
        workers(),
    ]
}

#[test]
fn endpoints_of_different_clusters_name_nobody() {
    let now = Instant::now();
    let mut state = State::new(settings(), now);
    let report = polled(&state.snapshot(), &of_groups());
    assert!(report.members.is_empty(), "nobody is probed: {report:?}");
    let said = "Patroni's endpoints are of different clusters, or of different groups of Citus: they list n1; and \
                w1, w2; `patroni.endpoints` must have those of one only";
    assert_eq!(report.disagreement.as_deref(), Some(said));
    state.observe(Observation::Polled { report, begun: now }, now);
    let mixed = Leader::None(NoLeader::MixedEndpoints);
    assert_eq!(state.snapshot().leader, mixed);
    let cause = NoLeader::MixedEndpoints.cause();
    assert_eq!(cause, Cause::Lasting, "no client waits for that");

    // Nor does etcd's key decide.
    let named = Named::One(MemberName::new("n1"));
    state.observe(Observation::Key { named, at: now }, now);
    assert_eq!(
        state.snapshot().leader,
        mixed,
        "its scope may be that of another group"
    );
}

#[test]
fn lists_that_any_other_connects_are_of_one_cluster() {
    let nobody = State::new(settings(), Instant::now()).snapshot();
    let of = |names: &[&str]| {
        let members: Vec<Value> = names.iter().map(|name| member(name, "replica")).collect();
        read(&json!({ "members": members }))
    };
    for lists in [
        &[&["a", "b"][..], &["c", "d"], &["b", "c"]][..],
        // Patroni has been installed there, and nothing else.
        &[&["a", "b"], &[]],
    ] {
        let answers: Vec<SourceReport> = lists.iter().map(|names| of(names)).collect();
        let report = polled(&nobody, &answers);
        assert_ne!(report.named, Named::Mixed, "{lists:?}");
        assert!(!report.members.is_empty(), "{lists:?}");
    }
}

/// Whoever lists others later changes nothing but what is said.
#[test]
fn once_the_cluster_is_known_other_clusters_are_outvoted() {
    let state = informed();
    let other = read(&json!({"members": [member("w1", "leader"), member("w2", "replica")]}));
    let report = polled(&state.snapshot(), &[read(&correct()), read(&correct()), other]);
    assert_eq!(report.named, Named::One(MemberName::new("n1")));
    let said = report.disagreement.unwrap();
    assert!(said.contains("n1, n2, n3; and w1, w2"), "{said}");
}
