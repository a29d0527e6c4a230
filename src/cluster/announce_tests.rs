#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::snapshot::{MemberName, ProbeFacts, Role};
use super::super::state::{
    LagLimits, Listed, Named, Observation, ProbeError, Settings, SourceKind, SourceReport, State,
};
use super::*;

fn settings(kind: SourceKind) -> Settings {
    let second = Duration::from_secs(1);
    Settings {
        cluster: Arc::from("main"),
        kind,
        rise: 2,
        fall: 3,
        probe_interval: second,
        probe_timeout: second,
        poll_interval: second,
        fast_interval: second,
        placement: crate::config::Placement::even(),
        limits: LagLimits::new(),
    }
}

#[tokio::test(start_paused = true)]
async fn another_reason_for_being_down_is_reported_at_intervals() {
    let mut state = State::new(settings(SourceKind::Fixed), Instant::now());
    let server = Listed {
        name: MemberName::new("a"),
        host: "h".into(),
        port: 5432,
        role: Role::Unnamed,
        state: String::new(),
        timeline: None,
        lag: None,
        tags: BTreeMap::new(),
    };
    let report = SourceReport {
        members: vec![server],
        named: Named::Nobody,
        paused: false,
        disagreement: None,
        rivals: Vec::new(),
    };
    state.observe(Observation::Source(report), Instant::now());
    let mut announcer = Announcer::default();
    let mut changes_after = |error: &str| {
        let old = state.snapshot();
        let probe = Observation::Probe {
            member: MemberName::new("a"),
            started: Instant::now(),
            result: Err(ProbeError {
                check: crate::cluster::check::CheckStatus::Layer4Connection,
                message: error.into(),
                kind: crate::cluster::observation::FailureKind::Certain,
            }),
        };
        state.observe(probe, Instant::now());
        let lines = announcer.changes(&old, &state.snapshot(), Instant::now());
        let texts = lines.iter().map(ToString::to_string);
        texts.filter(|text| text.contains("down")).collect::<Vec<_>>()
    };
    assert_eq!(changes_after("57P01"), ["a is down: 57P01"]);
    assert_eq!(changes_after("28000"), [""; 0]);
    tokio::time::advance(REASON_EVERY).await;
    assert_eq!(changes_after("57P01"), [""; 0]);
    assert_eq!(changes_after("28000"), ["a is still down: 28000"]);
    assert_eq!(changes_after("57P01"), [""; 0]);
    tokio::time::advance(REASON_EVERY).await;
    assert_eq!(changes_after("28000"), [""; 0]);
}

fn texts(old: &Snapshot, new: &Snapshot) -> Vec<String> {
    changes(old, new).iter().map(ToString::to_string).collect()
}

#[test]
fn each_change_is_one_sentence_and_no_change_is_none() {
    let mut now = Instant::now();
    let mut state = State::new(settings(SourceKind::Patroni), now);
    let mut changes_after = |observation: Observation| {
        now += Duration::from_millis(10);
        let observation = match observation {
            Observation::Probe { member, result, .. } => Observation::Probe {
                member,
                started: now,
                result,
            },
            other => other,
        };
        let old = state.snapshot();
        state.observe(observation, now);
        texts(&old, &state.snapshot())
    };
    let report = |disagreement: Option<&str>| {
        let listed = |name: &str, role, host: &str| Listed {
            name: MemberName::new(name),
            host: host.into(),
            port: 5432,
            role,
            state: "running".into(),
            timeline: Some(1),
            lag: None,
            tags: BTreeMap::new(),
        };
        Observation::Source(SourceReport {
            members: vec![listed("a", Role::Leader, "h"), listed("b", Role::Replica, "")],
            named: Named::One(MemberName::new("a")),
            paused: false,
            disagreement: disagreement.map(Into::into),
            rivals: Vec::new(),
        })
    };
    let probe = |result| Observation::Probe {
        member: MemberName::new("a"),
        started: Instant::now(),
        result,
    };
    let seen = |in_recovery| {
        Ok(ProbeFacts {
            in_recovery,
            system_identifier: 1,
            timeline: 1,
            position: 0,
            received: 0,
            streaming: false,
            server_version: 150_020,
            latency: Duration::ZERO,
            address: None,
            connected: None,
        })
    };
    let refused = || {
        Err(ProbeError {
            check: crate::cluster::check::CheckStatus::Layer4Connection,
            message: "refused".into(),
            kind: crate::cluster::observation::FailureKind::Certain,
        })
    };

    assert_eq!(
        changes_after(Observation::SourceFailed("no route".into())),
        [
            "the source of the list of members is lost: no route",
            "there is no leader: no Patroni endpoint can be reached"
        ]
    );
    assert_eq!(
        changes_after(Observation::SourceFailed("no route".into())),
        [""; 0]
    );
    assert_eq!(
        changes_after(report(None)),
        [
            "the source of the list of members is back",
            "a at h:5432 is a member",
            "b is a member without an address; it is not used",
            "there is no leader: a holds the leader key but has not been seen to accept writes"
        ]
    );
    assert_eq!(
        changes_after(probe(seen(false))),
        [
            "a is up (accepts writes, timeline 1, PostgreSQL 15.20)",
            "a is the leader: seen to accept writes on timeline 1, named by the leader key"
        ]
    );
    assert_eq!(changes_after(probe(seen(false))), [""; 0]);
    assert_eq!(
        changes_after(report(Some("they name a, b"))),
        ["Patroni's endpoints disagree: they name a, b"]
    );
    assert_eq!(changes_after(report(None)), ["Patroni's endpoints agree again"]);
    assert_eq!(
        changes_after(Observation::SourceFailed("no route".into())),
        [
            "the source of the list of members is lost: no route",
            "a stays the leader while no Patroni endpoint can be reached, as long as it accepts writes"
        ]
    );
    assert_eq!(
        changes_after(report(None)),
        [
            "the source of the list of members is back",
            "a is the leader (timeline 1), named by the leader key"
        ]
    );
    assert_eq!(
        changes_after(probe(refused())),
        [
            "a is down: refused",
            "a is no longer the leader: a holds the leader key but cannot be reached"
        ]
    );
    assert_eq!(changes_after(probe(refused())), [""; 0]);
}

#[test]
fn weights_and_zones_are_reported_when_they_change() {
    let now = Instant::now();
    let settings = Settings {
        placement: crate::config::Placement {
            weight_tag: Some("weight".into()),
            zone_tag: Some("zone".into()),
            ..crate::config::Placement::even()
        },
        ..settings(SourceKind::Patroni)
    };
    let mut state = State::new(settings, now);
    let mut changes_after = |tags: serde_json::Value| {
        let listed = Listed {
            name: MemberName::new("a"),
            host: "h".into(),
            port: 5432,
            role: Role::Replica,
            state: "running".into(),
            timeline: Some(1),
            lag: None,
            tags: serde_json::from_value(tags).unwrap(),
        };
        let report = SourceReport {
            members: vec![listed],
            named: Named::Nobody,
            paused: false,
            disagreement: None,
            rivals: Vec::new(),
        };
        let old = state.snapshot();
        state.observe(Observation::Source(report), now);
        let version = state.snapshot().version - old.version;
        let reported: Vec<String> = texts(&old, &state.snapshot())
            .into_iter()
            .filter(|text| text.contains("weight") || text.contains("zone"))
            .collect();
        assert!(reported.is_empty() || version == 1, "readers are woken");
        reported
    };
    assert_eq!(
        changes_after(serde_json::json!({"weight": 5, "zone": "b"})),
        ["a has weight 5", "a is in zone b"]
    );
    assert_eq!(
        changes_after(serde_json::json!({"weight": 5, "zone": "b"})),
        [""; 0]
    );
    assert_eq!(
        changes_after(serde_json::json!({})),
        ["a has weight 1", "a is in no zone"]
    );
}

#[test]
fn lag_is_reported_when_it_begins_and_ends_for_each_route() {
    use std::time::Duration as Time;
    let listed = Listed {
        name: MemberName::new("a"),
        host: "h".into(),
        port: 5432,
        role: Role::Replica,
        state: "running".into(),
        timeline: Some(1),
        lag: None,
        tags: BTreeMap::new(),
    };
    let report = SourceReport {
        members: vec![listed],
        named: Named::Nobody,
        paused: false,
        disagreement: None,
        rivals: Vec::new(),
    };
    let mut state = State::new(settings(SourceKind::Patroni), Instant::now());
    state.observe(Observation::Source(report), Instant::now());
    let mut fit = Snapshot::clone(&state.snapshot());
    fit.members[0].health.up = true;
    let lagging = |time: Option<Time>, routes: &[&str]| {
        let mut snapshot = fit.clone();
        snapshot.members[0].measured = Some(Lag { bytes: 5000, time });
        snapshot.members[0].lagging = routes.iter().map(|route| Arc::from(*route)).collect();
        snapshot
    };
    let one = lagging(Some(Time::from_millis(2500)), &["r"]);
    assert_eq!(
        texts(&fit, &one),
        ["a gets no sessions of route r: it is 5000 bytes and 2.5 s behind the leader"]
    );
    assert_eq!(texts(&one, &lagging(None, &["r"])), [""; 0]);
    assert_eq!(
        texts(&one, &lagging(None, &["r", "s"])),
        ["a gets no sessions of route s: it is 5000 bytes behind the leader; the duration is unknown"]
    );
    assert_eq!(
        texts(&one, &fit),
        ["a is close enough to the leader for route r again"]
    );
}
