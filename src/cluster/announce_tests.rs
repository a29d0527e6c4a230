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
        api_url: None,
    };
    let report = SourceReport {
        members: vec![server],
        named: Named::Nobody,
        paused: false,
        disagreement: None,
        rivals: Vec::new(),
        scheduled: None,
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
    texts_by(&mut Announcer::default(), old, new)
}

fn texts_by(announcer: &mut Announcer, old: &Snapshot, new: &Snapshot) -> Vec<String> {
    let all = announcer.changes(old, new, Instant::now());
    all.iter().map(ToString::to_string).collect()
}

/// Patroni names a the leader; its endpoints may differ.
fn report(disagreement: Option<&str>) -> Observation {
    let listed = |name: &str, role, host: &str| Listed {
        name: MemberName::new(name),
        host: host.into(),
        port: 5432,
        role,
        state: "running".into(),
        timeline: Some(1),
        lag: None,
        tags: BTreeMap::new(),
        api_url: None,
    };
    Observation::Source(SourceReport {
        members: vec![listed("a", Role::Leader, "h"), listed("b", Role::Replica, "")],
        named: Named::One(MemberName::new("a")),
        paused: false,
        disagreement: disagreement.map(Into::into),
        rivals: Vec::new(),
        scheduled: None,
    })
}

#[test]
fn each_change_is_one_sentence_and_no_change_is_none() {
    let mut now = Instant::now();
    let (mut state, mut announcer) = (
        State::new(settings(SourceKind::Patroni), now),
        Announcer::default(),
    );
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
        texts_by(&mut announcer, &old, &state.snapshot())
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
            "there is no list of members yet: no route",
            "there is no leader: no Patroni endpoint gives a usable answer"
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
            "b is a member without an address; it is not used"
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
        changes_after(report(Some("Patroni's endpoints disagree: they name a, b"))),
        ["Patroni's endpoints disagree: they name a, b"]
    );
    assert_eq!(
        changes_after(report(None)),
        ["Patroni's endpoints, and etcd if it is configured, agree again"]
    );
    assert_eq!(
        changes_after(Observation::SourceFailed("no route".into())),
        [
            "the source of the list of members is lost: no route",
            "a stays the leader while no Patroni endpoint gives a usable answer, as long as it accepts writes"
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
fn the_reason_for_which_the_probe_of_the_leader_fails_is_in_the_log() {
    let leader = leader_in(AdminState::Ready);
    let member = || MemberName::new("a");
    let reason = "password authentication failed for user \"trunkline\"";
    let mut failed = leader.clone();
    failed.members[0].health.error = Some(reason.into());
    let check = crate::cluster::check::CheckStatus::Layer7Status;
    let no_leader = NoLeader::ProbeFails {
        member: member(),
        check,
    };
    // Clients do not get the server's words.
    assert_eq!(
        no_leader.to_string(),
        "a holds the leader key, but the router's probe fails: it answered the probe with an error"
    );
    failed.leader = Leader::None(no_leader);
    assert_eq!(
        texts(&leader, &failed),
        [
            format!("a is down: {reason}"),
            format!(
                "a is no longer the leader: a holds the leader key, but the router's probe fails: {reason}; run `trunkline \
                 check --connect`"
            )
        ]
    );
    // Nothing is to be checked where the stop was ordered.
    let mut ordered = failed.clone();
    ordered.members[0].leaving = Some(Arc::new(crate::cluster::snapshot::StopOrder::unnamed(
        Instant::now(),
    )));
    assert_eq!(
        texts(&leader, &ordered)[1],
        format!(
            "a is no longer the leader: a holds the leader key, and its server is being stopped: {reason}"
        )
    );
    // Another reason is reported as the member's, at intervals.
    let mut refused = failed.clone();
    refused.leader = Leader::None(NoLeader::NotReachable(member()));
    assert_eq!(texts(&failed, &refused), [""; 0]);
}

#[test]
fn an_answer_of_patroni_without_a_leader_is_not_an_unreachable_patroni() {
    let now = Instant::now();
    let mut state = State::new(settings(SourceKind::Patroni), now);
    state.observe(Observation::SourceFailed("no route".into()), now);
    let old = state.snapshot();
    state.observe(Observation::DcsFailed("HTTP status 503".into()), now);
    assert_eq!(
        texts(&old, &state.snapshot()),
        ["there is no leader: Patroni answers, but reports no leader: it may not reach its DCS"]
    );
}

/// A leader that is named and not probed yet is no fault, at the router's start. If its first probe
/// fails or shows a standby, that is reported then.
#[test]
fn no_leader_is_reported_before_the_named_members_first_probe_has_ended() {
    let old = leader_in(AdminState::Ready);
    let unprobed = Snapshot {
        leader: Leader::None(NoLeader::NotWritable(MemberName::new("a"))),
        ..old.clone()
    };
    let mut start = unprobed.clone();
    start.leader = Leader::None(NoLeader::NotYetKnown);
    let mut probed = unprobed.clone();
    probed.members[0].health.last_probe = Some(Instant::now());
    let mut announcer = Announcer::default();
    assert_eq!(texts_by(&mut announcer, &start, &unprobed), [""; 0]);
    assert_eq!(texts_by(&mut announcer, &unprobed, &unprobed), [""; 0]);
    let expected = ["there is no leader: a holds the leader key but has not been seen to accept writes"];
    assert_eq!(texts_by(&mut announcer, &unprobed, &probed), expected);
    assert_eq!(texts_by(&mut announcer, &probed, &probed), [""; 0]);
    // The loss of a leader is always reported.
    assert_eq!(texts(&old, &unprobed).len(), 1);
}

/// A snapshot whose verified leader has this administrative state.
fn leader_in(admin: AdminState) -> Snapshot {
    let listed = Listed {
        name: MemberName::new("a"),
        host: "h".into(),
        port: 5432,
        role: Role::Leader,
        state: "running".into(),
        timeline: Some(1),
        lag: None,
        tags: BTreeMap::new(),
        api_url: None,
    };
    let report = SourceReport {
        members: vec![listed],
        named: Named::One(MemberName::new("a")),
        paused: false,
        disagreement: None,
        rivals: Vec::new(),
        scheduled: None,
    };
    let mut state = State::new(settings(SourceKind::Patroni), Instant::now());
    state.observe(Observation::Source(report), Instant::now());
    let mut snapshot = Snapshot::clone(&state.snapshot());
    snapshot.members[0].admin = admin;
    snapshot.leader = Leader::Verified {
        member: MemberName::new("a"),
        timeline: 1,
        named_by: NamedBy::LeaderKey,
    };
    snapshot
}

#[test]
fn a_leader_that_an_operator_has_taken_out_of_service_is_reported_once() {
    let [ready, maint, drain] = [AdminState::Ready, AdminState::Maint, AdminState::Drain].map(leader_in);
    let words = [
        "a is the leader, but it is in maintenance at this router: read-write sessions get no server. Run `trunkline ready a`",
    ];
    assert_eq!(texts(&ready, &maint), words);
    assert_eq!(texts(&maint, &maint), [""; 0]);
    assert_eq!(
        texts(&ready, &drain),
        [
            "a is the leader, but it is being drained at this router: new read-write sessions get no server. Run `trunkline \
             ready a`"
        ]
    );
    assert_eq!(texts(&maint, &ready), [""; 0]);
    // It becomes the leader.
    let mut other = maint.clone();
    other.leader = Leader::None(NoLeader::NotNamed);
    let appeared = texts(&other, &maint);
    assert_eq!(appeared.last().unwrap(), words[0], "{appeared:?}");
    let warns = out_of_service(&other, &maint).unwrap();
    assert_eq!(warns.level(), crate::events::Level::Warn);
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
            api_url: None,
        };
        let report = SourceReport {
            members: vec![listed],
            named: Named::Nobody,
            paused: false,
            disagreement: None,
            rivals: Vec::new(),
            scheduled: None,
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
        api_url: None,
    };
    let report = SourceReport {
        members: vec![listed],
        named: Named::Nobody,
        paused: false,
        disagreement: None,
        rivals: Vec::new(),
        scheduled: None,
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
