#![allow(clippy::unwrap_used)]

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::*;
use crate::cluster::control::seen_writable;
use crate::cluster::patroni::{choose, parse};
use crate::cluster::snapshot::ProbeFacts;
use crate::cluster::state::{Named, Observation, Settings, SourceKind, State};
use crate::config::Placement;

fn read(value: &Value) -> SourceReport {
    parse(value.to_string().as_bytes()).unwrap()
}

fn member(name: &str, role: &str) -> Value {
    json!({"name": name, "role": role, "state": "running", "host": format!("host-{name}"), "port": 5432,
           "timeline": 1, "lag": 0, "tags": {}})
}

fn truth() -> Value {
    json!({"members": [member("n1", "leader"), member("n2", "replica"), member("n3", "sync_standby")]})
}

/// The truth, with `change` made to it.
fn lie(change: impl Fn(&mut Value)) -> SourceReport {
    let mut said = truth();
    change(&mut said["members"]);
    read(&said)
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

/// A router that has been told the truth, and has seen each member to belong to the cluster.
fn knowing() -> State {
    let now = Instant::now();
    let mut state = State::new(settings(), now);
    state.observe(Observation::Source(read(&truth())), now);
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

/// By name, since the order means nothing.
fn sorted(report: &SourceReport) -> Vec<Listed> {
    let mut members = report.members.clone();
    members.sort_by(|a, b| a.name.cmp(&b.name));
    members
}

fn lies() -> Vec<(&'static str, SourceReport)> {
    let swap = |said: &mut Value| {
        said[0]["host"] = json!("host-n2");
        said[1]["host"] = json!("host-n1");
    };
    vec![
        (
            "the leader's host",
            lie(|said| said[0]["host"] = json!("elsewhere")),
        ),
        ("the leader's port", lie(|said| said[0]["port"] = json!(5999))),
        ("no address", lie(|said| said[0]["host"] = json!(""))),
        ("hosts exchanged", lie(swap)),
        (
            "no replicas",
            lie(|said| said.as_array_mut().unwrap().truncate(1)),
        ),
        (
            "a replica's host",
            lie(|said| said[1]["host"] = json!("elsewhere")),
        ),
        ("stopped", lie(|said| said[1]["state"] = json!("stopped"))),
        (
            "a tag",
            lie(|said| said[1]["tags"] = json!({"noloadbalance": true})),
        ),
        ("a role", lie(|said| said[2]["role"] = json!("replica"))),
        ("a timeline", lie(|said| said[1]["timeline"] = json!(9))),
        (
            "a stranger",
            lie(|said| said.as_array_mut().unwrap().push(member("n9", "replica"))),
        ),
        (
            "an entry of that name in front",
            lie(|said| {
                let mut other = member("n1", "leader");
                other["host"] = json!("elsewhere");
                said.as_array_mut().unwrap().insert(0, other);
            }),
        ),
        (
            "another leader",
            lie(|said| {
                said[0]["role"] = json!("replica");
                said[1]["role"] = json!("leader");
            }),
        ),
        ("nobody leads", lie(|said| said[0]["role"] = json!("replica"))),
        ("none at all", lie(|said| *said = json!([]))),
        ("paused", {
            let mut report = read(&truth());
            report.paused = true;
            report
        }),
    ]
}

/// Whatever one endpoint of three says, wherever it stands in the configuration, and also before anything is known.
#[tokio::test(start_paused = true)]
async fn one_endpoint_of_three_changes_nothing_but_lag() {
    let nothing = State::new(settings(), Instant::now()).snapshot();
    for (what, lie) in lies() {
        for published in [knowing().snapshot(), std::sync::Arc::clone(&nothing)] {
            for liar in 0..3 {
                let mut answers = vec![read(&truth()); 3];
                answers[liar] = lie.clone();
                let report = polled(&published, &answers);
                assert_eq!(sorted(&report), read(&truth()).members, "{what}, {liar}");
                assert_eq!(report.named, Named::One(MemberName::new("n1")), "{what}, {liar}");
                assert!(!report.paused, "{what}, {liar}");
            }
        }
    }
}

/// One against one: what was published stays, until the two agree.
#[tokio::test(start_paused = true)]
async fn two_endpoints_that_differ_change_nothing() {
    let mut state = knowing();
    for (what, lie) in lies() {
        for liar in 0..2 {
            let mut answers = vec![read(&truth()); 2];
            answers[liar] = lie.clone();
            let report = polled(&state.snapshot(), &answers);
            assert_eq!(sorted(&report), read(&truth()).members, "{what}, {liar}");
            assert!(!report.paused, "{what}, {liar}");
            state.observe(Observation::Source(report), Instant::now());
        }
    }
}

/// Two of three are believed, as they are the most; where they differ from each other, what was seen stays.
#[tokio::test(start_paused = true)]
async fn two_liars_of_three_must_agree() {
    let published = knowing().snapshot();
    let elsewhere = |host: &str| lie(|said| said[1]["host"] = json!(host));
    for honest in 0..3 {
        let mut answers = vec![elsewhere("x"); 3];
        answers[honest] = read(&truth());
        assert_eq!(sorted(&polled(&published, &answers))[1].host, "x");
        answers[(honest + 1) % 3] = elsewhere("y");
        assert_eq!(sorted(&polled(&published, &answers))[1].host, "host-n2");
        // Also where the honest one does not answer.
        answers.remove(honest);
        let report = polled(&published, &answers);
        assert_eq!(sorted(&report)[1].host, "host-n2");
        assert_eq!(
            report.disagreement.as_deref(),
            Some("they give different addresses of n2")
        );
    }
    let gone = lie(|said| said.as_array_mut().unwrap().truncate(1));
    assert_eq!(
        polled(&published, &[read(&truth()), gone.clone(), gone])
            .members
            .len(),
        1
    );
}

/// A change arrives at the endpoints one after the other: it is followed once, when most have it.
#[tokio::test(start_paused = true)]
async fn a_change_that_endpoints_learn_one_after_another_is_made_once() {
    let new = || lie(|said| said[1]["host"] = json!("new"));
    for endpoints in [2, 3] {
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
            let order: Vec<usize> = order.into_iter().filter(|index| *index < endpoints).collect();
            let mut state = knowing();
            let mut answers = vec![read(&truth()); endpoints];
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
    // All at once.
    let report = polled(&knowing().snapshot(), &[new(), new(), new()]);
    assert_eq!(
        (sorted(&report)[1].host.as_str(), report.disagreement),
        ("new", None)
    );
}

#[tokio::test(start_paused = true)]
async fn lag_is_the_middle_one() {
    let published = knowing().snapshot();
    let lagging = |lag: u64| lie(|said| said[1]["lag"] = json!(lag));
    for (lags, expected) in [([5, 6, 7], 6), ([u64::MAX, 6, 7], 7), ([0, 7, 6], 6)] {
        let report = polled(&published, &lags.map(lagging));
        assert_eq!(sorted(&report)[1].lag, Some(expected));
        assert_eq!(report.disagreement, None, "{lags:?}");
    }
    let report = polled(&published, &[lagging(5), lagging(6)]);
    assert_eq!(sorted(&report)[1].lag, Some(6));
}
