#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::cluster::snapshot::{Health, NamedBy, ProbeFacts, SourceStatus};
use crate::config::OnLeader;
use crate::routing::{EndReason, GrantedRole, SessionVerdict, verdict};

fn facts(in_recovery: bool) -> ProbeFacts {
    ProbeFacts {
        in_recovery,
        system_identifier: 7,
        timeline: 3,
        position: 0,
        received: 0,
        streaming: in_recovery,
        server_version: 150_000,
        latency: Duration::ZERO,
        address: None,
        connected: None,
    }
}

fn member(name: &str, role: Role, state: &str, in_recovery: bool) -> Member {
    Member {
        name: MemberName::new(name),
        host: name.to_owned(),
        port: 5432,
        role,
        state: state.to_owned(),
        timeline: Some(3),
        lag: None,
        tags: BTreeMap::new(),
        health: Health {
            up: true,
            facts: Some(facts(in_recovery)),
            ..Health::default()
        },
        identity: Identity::Same,
        admin: AdminState::Ready,
        leaving: None,
        measured: None,
        lagging: BTreeSet::new(),
        share: 100,
        weight: 1,
        zone: None,
    }
}

fn snapshot(members: Vec<Member>, leader: Option<&str>) -> Snapshot {
    Snapshot {
        cluster: Arc::from("main"),
        version: 1,
        members,
        leader: leader.map_or(Leader::None(NoLeader::NotNamed), |name| Leader::Verified {
            member: MemberName::new(name),
            timeline: 3,
            named_by: NamedBy::LeaderKey,
        }),
        source: SourceStatus {
            reachable: true,
            error: None,
            disagreement: None,
        },
        system_identifier: Some(7),
        paused: false,
        hears: true,
        patience: None,
        switchover_requested: false,
    }
}

pub(in crate::routing) fn three() -> Snapshot {
    snapshot(
        vec![
            member("db1", Role::Leader, "running", false),
            member("db2", Role::Replica, "streaming", true),
            member("db3", Role::SyncStandby, "running", true),
        ],
        Some("db1"),
    )
}

fn names(choice: &Choice) -> Vec<&str> {
    choice
        .candidates
        .iter()
        .map(|candidate| candidate.member.as_str())
        .collect()
}

fn to_leader() -> Route {
    Route::read_write("rw", "main")
}

fn to_replica() -> Route {
    Route::read_only("ro", "main")
}

/// A route with these targets and `read_only_on_leader: unenforced`.
fn to(tiers: &[&[TargetRole]]) -> Route {
    let targets = tiers.iter().map(|roles| Tier(roles.to_vec())).collect();
    Route {
        read_only_on_leader: OnLeader::Unenforced,
        ..Route::new("route", "main", targets)
    }
}

fn choose_with(
    snapshot: &Snapshot,
    route: &Route,
    sessions_on: &dyn Fn(&MemberName) -> usize,
    chance: &mut dyn FnMut() -> u64,
) -> Choice {
    let mut input = ChoiceInput {
        client: None,
        zone: None,
        listed: &[],
        sessions_on,
        is_backing_off: &|_| false,
        chance,
        turns: &mut Turns::default(),
    };
    candidates(snapshot, route, &mut input)
}

fn choose(snapshot: &Snapshot, route: &Route) -> Choice {
    choose_with(snapshot, route, &|_| 0, &mut || 0)
}

#[test]
fn read_write_goes_to_the_verified_leader_only() {
    let choice = choose(&three(), &to_leader());
    assert_eq!(names(&choice), ["db1"]);
    assert_eq!(choice.refused.len(), 2);
    let none = Snapshot {
        leader: Leader::None(NoLeader::NotNamed),
        ..three()
    };
    let choice = choose(&none, &to_leader());
    assert!(choice.candidates.is_empty());
    let (message, hint) = unavailable(&none, &to_leader(), &choice);
    assert_eq!(
        message,
        "no server accepts read-write sessions now: no member holds the leader key"
    );
    assert_eq!(
        hint,
        "db1 accepts writes, but is not the verified leader. db2 is a standby. db3 is a standby. Try again: a failover \
         usually ends within a minute."
    );
}

fn hint(snapshot: &Snapshot) -> String {
    let choice = choose(snapshot, &to_leader());
    assert!(choice.candidates.is_empty());
    unavailable(snapshot, &to_leader(), &choice).1
}

#[test]
fn replicas_in_maintenance_are_named_with_the_command_that_ends_it() {
    let mut cluster = three();
    for replica in &mut cluster.members[1..] {
        replica.admin = AdminState::Maint;
    }
    let choice = choose(&cluster, &to_replica());
    let (_, hint) = unavailable(&cluster, &to_replica(), &choice);
    assert!(
        hint.contains("db2 is in maintenance. db3 is in maintenance."),
        "{hint}"
    );
    assert!(
        hint.ends_with("Ask the operator to run `trunkline ready db2`."),
        "{hint}"
    );
}

#[test]
fn a_leader_in_maintenance_is_named_with_the_command_that_ends_it() {
    let mut cluster = three();
    cluster.members[0].admin = AdminState::Maint;
    assert_eq!(
        hint(&cluster),
        "db2 is not the leader. db3 is not the leader. db1, the leader, is in maintenance at this router. Ask the \
         operator to run `trunkline ready db1`."
    );
    cluster.members[0].admin = AdminState::Drain;
    let draining = hint(&cluster);
    assert!(
        draining.contains("db1, the leader, is being drained at this router."),
        "{draining}"
    );
}

#[test]
fn only_where_a_failover_can_be_under_way_does_the_hint_mention_one() {
    let db1 = || MemberName::new("db1");
    let check = crate::cluster::check::CheckStatus::Layer7Status;
    for (why, has_failover, words) in [
        (NoLeader::NotNamed, true, ""),
        (NoLeader::NotWritable(db1()), true, ""),
        (NoLeader::NotReachable(db1()), true, ""),
        (NoLeader::Stopping(db1()), true, ""),
        (NoLeader::NoneWritable, true, ""),
        (NoLeader::DcsUnreachable, false, "check Patroni's DCS"),
        (NoLeader::SourceUnreachable, false, "check Patroni"),
        (
            NoLeader::LastLost {
                last: db1(),
                check,
                is_dcs_silent: false,
            },
            false,
            "check the leader's server, and Patroni",
        ),
        (
            NoLeader::ProbeFails { member: db1(), check },
            false,
            "`trunkline check --connect`",
        ),
        (NoLeader::StandbyCluster(db1()), false, "read-only"),
        (NoLeader::Tie, false, "Ask the operator"),
    ] {
        let mut cluster = three();
        cluster.leader = Leader::None(why.clone());
        let text = hint(&cluster);
        assert_eq!(text.contains("failover"), has_failover, "{why}: {text}");
        assert!(text.contains(words), "{why}: {text}");
        for member in ["db1 ", "db2 ", "db3 "] {
            assert!(text.contains(member), "each member is named: {text}");
        }
    }
    let mut paused = three();
    paused.leader = Leader::None(NoLeader::NotNamed);
    paused.paused = true;
    let text = hint(&paused);
    assert!(text.contains("Patroni is paused"), "{text}");
}

#[test]
fn the_hint_names_a_limited_number_of_members() {
    let members = (10..30).map(|index| member(&format!("db{index}"), Role::Replica, "streaming", true));
    let text = hint(&snapshot(members.collect(), None));
    assert_eq!(text.matches("is a standby.").count(), 16, "{text}");
    assert!(text.contains("4 more members are not listed."), "{text}");
}

#[test]
fn read_only_goes_to_the_replica_with_the_least_sessions() {
    let mut cluster = three();
    cluster.members[2].health.facts.as_mut().unwrap().streaming = true;
    let sessions = |name: &MemberName| if name.as_str() == "db2" { 5 } else { 4 };
    let choice = choose_with(&cluster, &to_replica(), &sessions, &mut || 0);
    assert_eq!(names(&choice), ["db3", "db2"]);
    assert_eq!(choice.refused, [(MemberName::new("db1"), Reason::IsLeader)]);
}

#[test]
fn a_standby_that_restores_from_an_archive_serves_after_those_that_stream() {
    let mut cluster = three();
    let restores = |member: &mut Member| {
        member.state = "in archive recovery".into();
        member.health.facts.as_mut().unwrap().streaming = false;
    };
    restores(&mut cluster.members[1]);
    cluster.members[2].health.facts.as_mut().unwrap().streaming = true;
    let sessions = |name: &MemberName| if name.as_str() == "db2" { 0 } else { 9 };
    let choice = choose_with(&cluster, &to_replica(), &sessions, &mut || 0);
    assert_eq!(names(&choice), ["db3", "db2"]);
    assert_eq!(choice.candidates[1].reason, Preference::Running);
    // The router's own probe is newer than Patroni's state.
    cluster.members[1].health.facts.as_mut().unwrap().streaming = true;
    let choice = choose_with(&cluster, &to_replica(), &sessions, &mut || 0);
    assert_eq!(names(&choice), ["db2", "db3"]);
}

#[test]
fn ties_are_broken_at_random() {
    let mut cluster = three();
    cluster.members[2].health.facts.as_mut().unwrap().streaming = true;
    let mut first = BTreeMap::new();
    let mut state = 1_u64;
    for _ in 0..200 {
        let choice = choose_with(&cluster, &to_replica(), &|_| 1, &mut || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state >> 16
        });
        *first.entry(choice.candidates[0].member.clone()).or_insert(0) += 1;
    }
    assert!(first.values().all(|count| *count > 50), "{first:?}");
}

#[test]
fn refused_replicas_have_a_reason() {
    #[allow(clippy::type_complexity, reason = "a table")]
    let change: [(&dyn Fn(&mut Member), &str); 10] = [
        (&|m| m.host.clear(), "db2 has no known address"),
        (
            &|m| m.identity = Identity::Foreign,
            "db2 belongs to another cluster",
        ),
        (&|m| m.admin = AdminState::Maint, "db2 is in maintenance"),
        (&|m| m.admin = AdminState::Drain, "db2 is being drained"),
        (
            &|m| {
                m.health = Health {
                    error: Some("connection refused".into()),
                    ..Health::default()
                }
            },
            "db2 is down.",
        ),
        (
            &|m| m.health.facts.as_mut().unwrap().in_recovery = false,
            "accepts writes",
        ),
        (
            &|m| m.role = Role::Other("promoted".into()),
            "db2 has the unknown role \"promoted\"",
        ),
        (
            &|m| m.state = "creating replica".into(),
            "its state is \"creating replica\"",
        ),
        (&|m| m.role = Role::Leader, "about to be promoted"),
        (&|m| m.health = Health::default(), "has not been reached yet"),
    ];
    for (change, expected) in change {
        let mut cluster = three();
        change(&mut cluster.members[1]);
        cluster.members.remove(2);
        let choice = choose(&cluster, &to_replica());
        assert!(choice.candidates.is_empty(), "{expected}");
        let (message, hint) = unavailable(&cluster, &to_replica(), &choice);
        assert_eq!(message, "no replica accepts read-only sessions now");
        assert!(hint.contains(expected), "{hint} / {expected}");
    }
}

#[test]
fn noloadbalance_is_read_in_any_spelling() {
    for (value, excluded) in [
        (json!(true), true),
        (json!("yes"), true),
        (json!("ON"), true),
        (json!(1), true),
        (json!("1"), true),
        (json!(false), false),
        (json!("no"), false),
        (json!(0), false),
        (json!(null), false),
        (json!([1]), false),
    ] {
        let mut cluster = three();
        cluster.members[1]
            .tags
            .insert("noloadbalance".into(), value.clone());
        let refused = choose(&cluster, &to_replica()).refused;
        assert_eq!(
            refused.contains(&(MemberName::new("db2"), Reason::NoLoadBalance)),
            excluded,
            "{value}"
        );
    }
}

#[test]
fn the_leader_of_a_standby_cluster_serves_reads_last() {
    let mut cluster = three();
    cluster.leader = Leader::None(NoLeader::StandbyCluster(MemberName::new("db1")));
    cluster.members[0] = member("db1", Role::StandbyLeader, "streaming", true);
    assert_eq!(names(&choose(&cluster, &to_replica())).last(), Some(&"db1"));
    assert!(choose(&cluster, &to_leader()).candidates.is_empty());
}

#[test]
fn standbys_of_a_fixed_list_are_known_by_their_probe() {
    let cluster = snapshot(
        vec![
            member("a", Role::Unnamed, "", false),
            member("b", Role::Unnamed, "", true),
        ],
        Some("a"),
    );
    assert_eq!(names(&choose(&cluster, &to_replica())), ["b"]);
}

#[test]
fn live_sessions_end_at_a_demotion_another_leader_or_a_promotion() {
    let db1 = MemberName::new("db1");
    let db2 = MemberName::new("db2");
    let mut cluster = three();
    assert_eq!(
        verdict(&cluster, GrantedRole::ReadWrite, &db1, None),
        SessionVerdict::Stay
    );
    assert_eq!(
        verdict(&cluster, GrantedRole::ReadOnly, &db2, None),
        SessionVerdict::Stay
    );
    assert_eq!(
        verdict(&cluster, GrantedRole::ReadWrite, &db2, None),
        SessionVerdict::End(EndReason::OtherLeader {
            old: db2.clone(),
            leader: db1.clone()
        })
    );
    assert_eq!(
        verdict(&cluster, GrantedRole::ReadOnly, &db1, None),
        SessionVerdict::End(EndReason::Promoted(db1.clone()))
    );

    cluster.leader = Leader::None(NoLeader::NotReachable(db1.clone()));
    cluster.members[0].health = Health {
        error: Some("timeout".into()),
        ..Health::default()
    };
    assert_eq!(
        verdict(&cluster, GrantedRole::ReadWrite, &db1, None),
        SessionVerdict::Stay
    );
    cluster.members[0] = member("db1", Role::Replica, "running", true);
    assert_eq!(
        verdict(&cluster, GrantedRole::ReadWrite, &db1, None),
        SessionVerdict::End(EndReason::Demoted(db1.clone()))
    );
    cluster.members.remove(0);
    assert_eq!(
        verdict(&cluster, GrantedRole::ReadWrite, &db1, None),
        SessionVerdict::Stay
    );
}

prop_compose! {
    fn any_member(index: usize)(
        role in prop_oneof![
            Just(Role::Leader), Just(Role::StandbyLeader), Just(Role::Replica), Just(Role::SyncStandby),
            Just(Role::QuorumStandby), Just(Role::Other("x".into())), Just(Role::Unnamed),
        ],
        state in prop_oneof![Just("running"), Just("streaming"), Just("starting"), Just("in archive recovery")],
        up in any::<bool>(),
        recovery in proptest::option::of(any::<bool>()),
        identity in prop_oneof![Just(Identity::Unknown), Just(Identity::Same), Just(Identity::Foreign)],
        admin in prop_oneof![Just(AdminState::Ready), Just(AdminState::Drain), Just(AdminState::Maint)],
        tagged in any::<bool>(),
        addressed in any::<bool>(),
    ) -> Member {
        let mut member = member(&format!("m{index}"), role, state, true);
        member.health.up = up;
        member.health.facts = recovery.map(facts);
        member.identity = identity;
        member.admin = admin;
        if tagged { member.tags.insert("noloadbalance".into(), json!(true)); }
        if !addressed { member.host.clear(); }
        member
    }
}

prop_compose! {
    fn any_snapshot()(
        members in (any_member(0), any_member(1), any_member(2), any_member(3)),
        leader in proptest::option::of(0_usize..4),
    ) -> Snapshot {
        snapshot(vec![members.0, members.1, members.2, members.3], leader.map(|i| format!("m{i}")).as_deref())
    }
}

proptest! {
    #[test]
    fn candidates_are_always_fit(cluster in any_snapshot(), loads in proptest::array::uniform4(0_usize..5)) {
        for (route, granted) in [(to_leader(), GrantedRole::ReadWrite), (to_replica(), GrantedRole::ReadOnly)] {
            let load = |name: &MemberName| loads[name.as_str()[1..].parse::<usize>().unwrap()];
            let choice = choose_with(&cluster, &route, &load, &mut || 0);
            prop_assert_eq!(choice.candidates.len() + choice.refused.len(), cluster.members.len());
            let ranks: Vec<_> = choice.candidates.iter().map(|c| (c.reason.rank(), load(&c.member))).collect();
            prop_assert!(ranks.is_sorted());
            for candidate in &choice.candidates {
                let member = cluster.member(&candidate.member).unwrap();
                prop_assert!(member.health.up && member.has_address());
                prop_assert_eq!(member.identity, Identity::Same);
                prop_assert_eq!(member.admin, AdminState::Ready);
                let leads = matches!(&cluster.leader, Leader::Verified { member: leader, .. } if *leader == member.name);
                prop_assert_eq!(leads, granted == GrantedRole::ReadWrite);
                if granted == GrantedRole::ReadOnly {
                    prop_assert!(member.health.facts.as_ref().unwrap().in_recovery);
                    prop_assert!(!member.tags.contains_key("noloadbalance"));
                    // A candidate never has to leave at once.
                    prop_assert_eq!(verdict(&cluster, granted, &candidate.member, None), SessionVerdict::Stay);
                }
            }
            if granted == GrantedRole::ReadWrite {
                prop_assert!(choice.candidates.len() <= 1);
            }
        }
    }
}

#[path = "allowed_tests.rs"]
mod allowed;
#[path = "choosing_tests.rs"]
mod choosing;
