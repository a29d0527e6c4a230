//! Which member leads: it is named, seen to accept writes, and not contradicted.

use super::super::snapshot::Identity;
use super::*;

#[test]
fn at_the_start_one_probe_is_enough() {
    let mut world = World::new(3, SourceKind::Patroni);
    world.pass(Duration::from_millis(200));
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::LeaderKey)));
}

#[test]
fn a_named_member_leads_only_once_it_accepts_writes() {
    let mut world = calm(3);
    world.apply(&Action::Run(0, false));
    world.pass(Duration::from_secs(2));
    assert_eq!(world.reason(), "db0 holds the leader key but cannot be reached");
    world.apply(&Action::Key(Some(1)));
    world.pass(Duration::from_secs(1));
    assert_eq!(
        world.reason(),
        "db1 holds the leader key but has not been seen to accept writes"
    );
    world.apply(&Action::Promote(1));
    world.pass(Duration::from_millis(200));
    assert_eq!(world.leader(), Some(("db1".into(), NamedBy::LeaderKey)));
}

#[test]
fn two_writable_servers_and_only_the_named_one_leads() {
    let mut world = calm(3);
    world.apply(&Action::Promote(2));
    world.pass(Duration::from_secs(3));
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::LeaderKey)));
    world.apply(&Action::Key(Some(2)));
    world.pass(Duration::from_secs(2));
    assert_eq!(world.leader(), Some(("db2".into(), NamedBy::LeaderKey)));
    world.apply(&Action::Key(None));
    world.pass(Duration::from_secs(2));
    assert_eq!(world.reason(), "no member holds the leader key");
}

#[test]
fn an_outage_of_every_endpoint_keeps_the_last_leader_while_it_accepts_writes() {
    let mut world = calm(3);
    world.apply(&Action::Outage);
    world.pass(Duration::from_mins(2));
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::Failsafe)));
    world.apply(&Action::Promote(1));
    world.pass(Duration::from_secs(3));
    assert!(
        world
            .reason()
            .contains("db1 accepts writes on a newer timeline than db0"),
        "{}",
        world.reason()
    );
    world.apply(&Action::Demote(1));
    world.apply(&Action::Demote(0));
    world.pass(Duration::from_secs(3));
    assert_eq!(world.reason(), "no Patroni endpoint gives a usable answer");
}

/// With every endpoint silent, the leader's own fault is what ended its service.
#[test]
fn a_leader_that_is_lost_in_an_outage_is_named_as_the_reason() {
    let mut world = calm(3);
    world.apply(&Action::Outage);
    world.pass(Duration::from_secs(5));
    world.apply(&Action::Run(0, false));
    world.pass(Duration::from_secs(30));
    assert_eq!(
        world.reason(),
        "db0, the last named leader, cannot be reached (no connection can be made), and no Patroni \
         endpoint gives a usable answer"
    );
}

#[test]
fn an_answer_that_names_nobody_is_no_outage() {
    let mut world = calm(3);
    world.apply(&Action::Key(None));
    world.pass(Duration::from_secs(2));
    world.apply(&Action::Outage);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.reason(), "no Patroni endpoint gives a usable answer");
}

#[test]
fn a_stale_endpoint_does_not_bring_the_old_leader_back() {
    let mut world = calm(3);
    world.apply(&Action::Stale(0));
    world.apply(&Action::Promote(1));
    world.apply(&Action::Key(Some(1)));
    world.pass(Duration::from_secs(3));
    // db0 still accepts writes, and its own Patroni still names it.
    assert_eq!(world.leader(), Some(("db1".into(), NamedBy::LeaderKey)));
    assert!(
        world
            .state
            .snapshot()
            .source
            .disagreement
            .as_ref()
            .unwrap()
            .contains("db0")
    );
    // Only the stale endpoint answers. It names db0 on the older timeline, and the router must
    // accept the key.
    world.apply(&Action::RestLive(0));
    world.apply(&Action::Demote(0));
    world.pass(Duration::from_secs(3));
    assert!(world.state.snapshot().source.disagreement.is_none());
}

#[test]
fn a_member_of_another_cluster_is_never_used() {
    let mut world = World::new(3, SourceKind::Patroni);
    world.apply(&Action::Foreign(1));
    world.pass(Duration::from_secs(3));
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::LeaderKey)));
    let snapshot = world.state.snapshot();
    let identities: Vec<Identity> = snapshot.members.iter().map(|member| member.identity).collect();
    assert_eq!(identities, [Identity::Same, Identity::Foreign, Identity::Same]);

    // Whoever has not seen that can still see it when the address leads back.
    world.nodes[1].identifier = world.nodes[0].identifier;
    world.pass(Duration::from_secs(3));
    let member = &world.state.snapshot().members[1];
    assert_eq!(member.identity, Identity::Same);
    let strayed = member
        .health
        .strayed
        .as_ref()
        .map(|strayed| strayed.facts.system_identifier);
    assert_eq!(strayed, Some(666));

    // In a fixed list the majority decides, also against a newer timeline.
    let mut world = World::new(3, SourceKind::Fixed);
    world.apply(&Action::Foreign(1));
    world.apply(&Action::Promote(1));
    world.pass(Duration::from_secs(3));
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::HighestTimeline)));

    let mut world = World::new(2, SourceKind::Fixed);
    world.apply(&Action::Foreign(1));
    world.pass(Duration::from_secs(3));
    assert_eq!(
        world.reason(),
        "the members belong to different clusters, and no cluster has the majority"
    );
}

#[test]
fn a_leader_without_an_address() {
    let mut world = calm(2);
    world.apply(&Action::Address(0, false));
    world.pass(Duration::from_secs(2));
    assert_eq!(
        world.reason(),
        "db0 holds the leader key but Patroni gives no address for it"
    );
}

#[test]
fn in_a_fixed_list_the_highest_timeline_leads_and_a_tie_is_none() {
    let mut world = World::new(3, SourceKind::Fixed);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::HighestTimeline)));
    world.nodes[1].primary = true;
    world.pass(Duration::from_secs(2));
    assert_eq!(
        world.reason(),
        "several members accept writes on the same timeline"
    );
    world.apply(&Action::Promote(1));
    world.pass(Duration::from_secs(2));
    assert_eq!(world.leader(), Some(("db1".into(), NamedBy::HighestTimeline)));
    // The new leader dies: the old one, still writable, is not the leader again.
    world.apply(&Action::Run(1, false));
    world.pass(Duration::from_secs(2));
    assert_eq!(
        world.reason(),
        "db0 accepts writes on timeline 1, but timeline 2 has been seen"
    );
}

#[test]
fn a_dead_leader_is_down_at_once_and_a_silent_one_after_three_probes() {
    let mut world = calm(3);
    world.apply(&Action::Evidence(0, Evidence::ConnectRefused));
    assert_eq!(world.reason(), "db0 holds the leader key but cannot be reached");
    world.pass(Duration::from_millis(500));
    assert!(world.leader().is_some(), "two probes bring it back");
    world.pass(Duration::from_secs(10));
    world.apply(&Action::Connect(0, false));
    world.pass(Duration::from_millis(2900));
    assert!(world.leader().is_some());
    world.pass(Duration::from_millis(2500));
    assert!(world.leader().is_none());
}

#[test]
fn one_terminated_or_read_only_session_changes_nothing() {
    let mut world = calm(3);
    for evidence in [
        Evidence::Terminated,
        Evidence::ReadOnlySeen,
        Evidence::ConnectFailed,
    ] {
        for _ in 0..10 {
            world.apply(&Action::Evidence(0, evidence));
            assert!(world.leader().is_some(), "{evidence:?}");
        }
        assert!(world.state.wants().probe.contains(&name(0)));
    }
}

#[test]
fn a_demotion_seen_by_a_session_takes_precedence_over_an_earlier_probe() {
    let mut world = calm(3);
    let early = world.now;
    let seen = world.check(0);
    world.now += STEP;
    world.nodes[0].primary = false;
    world.apply(&Action::Evidence(0, Evidence::Demoted));
    assert_eq!(
        world.reason(),
        "db0 holds the leader key but has not been seen to accept writes"
    );
    world.now += STEP;
    world.observe(Observation::Probe {
        member: name(0),
        started: early,
        result: seen,
    });
    assert!(world.leader().is_none());
}

#[test]
fn a_promotion_seen_by_a_session_is_shown_at_once_but_makes_no_leader() {
    let mut world = calm(3);
    world.apply(&Action::Key(Some(1)));
    world.pass(Duration::from_secs(2));
    world.apply(&Action::Evidence(1, Evidence::Promoted));
    assert!(world.leader().is_none());
    let snapshot = world.state.snapshot();
    assert!(
        !snapshot
            .member(&name(1))
            .unwrap()
            .health
            .facts
            .as_ref()
            .unwrap()
            .in_recovery
    );
    world.apply(&Action::Promote(1));
    world.pass(Duration::from_millis(200));
    assert_eq!(world.leader(), Some(("db1".into(), NamedBy::LeaderKey)));
}

#[test]
fn an_old_probe_result_does_not_count() {
    let mut world = calm(1);
    world.now += Duration::from_secs(30);
    world.tick();
    assert!(world.leader().is_none());
}

#[test]
fn fast_polling_is_limited_in_time() {
    let mut world = calm(3);
    assert!(!world.state.suspicious(world.now));
    world.apply(&Action::Run(0, false));
    world.pass(Duration::from_secs(5));
    assert!(world.state.suspicious(world.now));
    assert_eq!(world.state.pace(world.now).probe, Duration::from_millis(100));
    world.pass(Duration::from_mins(2));
    assert!(!world.state.suspicious(world.now));
    assert_eq!(world.state.pace(world.now).poll, Duration::from_secs(1));
}

#[test]
fn a_member_that_moves_is_probed_again() {
    let mut world = calm(2);
    let early = world.now;
    let seen = world.check(0);
    world.now += STEP;
    let mut view = world.view();
    view.members[0].host = "10.9.9.9".into();
    world.observe(Observation::Source(view));
    assert!(world.leader().is_none());
    world.observe(Observation::Probe {
        member: name(0),
        started: early,
        result: seen,
    });
    assert!(world.leader().is_none(), "that probe went to the old address");
}

#[test]
fn a_patroni_that_names_two_leaders_names_none() {
    let mut world = calm(3);
    for index in 0..3 {
        world.apply(&Action::RestDouble(index));
    }
    world.pass(Duration::from_secs(2));
    assert_eq!(world.reason(), "Patroni names several leaders at once");
    // Two correct endpoints are the majority.
    world.apply(&Action::RestLive(1));
    world.apply(&Action::RestLive(2));
    world.pass(Duration::from_secs(2));
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::LeaderKey)));
}

/// Reports of sessions and probes arrive in the wrong order.
#[test]
fn the_last_event_a_session_saw_counts_although_older_reports_arrive_later() {
    let mut world = calm(2);
    let early = world.now;
    let seen = world.check(0);
    world.now += STEP;
    let later = world.now;
    world.now += STEP;
    let observe = |world: &mut World, evidence, at| {
        world.observe(Observation::Evidence {
            member: name(0),
            evidence,
            at,
        });
    };
    let probe = |world: &mut World, started| {
        let result = seen.clone();
        world.observe(Observation::Probe {
            member: name(0),
            started,
            result,
        });
    };
    observe(&mut world, Evidence::Demoted, later);
    observe(&mut world, Evidence::Promoted, early);
    probe(&mut world, early + STEP / 2);
    assert!(world.leader().is_none(), "that probe ran before the demotion");

    let mut world = calm(2);
    let later = world.now + STEP;
    world.now += STEP * 3;
    observe(&mut world, Evidence::ConnectRefused, later);
    probe(&mut world, later - STEP / 2);
    world.now += STEP;
    probe(&mut world, later + STEP);
    assert!(
        world.leader().is_none(),
        "one of the two required probes was too early"
    );
    world.now += STEP;
    let now = world.now;
    probe(&mut world, now);
    assert!(world.leader().is_some());
}

#[test]
fn in_a_fixed_list_one_probe_of_a_rival_is_enough_for_a_tie() {
    let mut world = World::new(2, SourceKind::Fixed);
    world.pass(Duration::from_secs(3));
    world.apply(&Action::Run(1, false));
    world.pass(Duration::from_secs(3));
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::HighestTimeline)));
    world.nodes[1].primary = true;
    world.nodes[1].running = true;
    let result = world.check(1);
    let started = world.now;
    world.observe(Observation::Probe {
        member: name(1),
        started,
        result,
    });
    assert_eq!(
        world.reason(),
        "several members accept writes on the same timeline"
    );
}
