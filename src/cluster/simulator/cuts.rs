//! The network between the router and some of the members fails: probes, Patroni, or both.

use super::*;

#[test]
fn the_network_between_the_router_and_half_of_the_members_fails() {
    let mut world = calm(4);
    world.apply(&Action::Connect(0, false));
    world.apply(&Action::Connect(1, false));
    world.apply(&Action::RestDead(0));
    world.apply(&Action::RestDead(1));
    world.pass(Duration::from_secs(10));
    assert_eq!(world.reason(), "db0 holds the leader key but cannot be reached");
    let up: Vec<bool> = world
        .state
        .snapshot()
        .members
        .iter()
        .map(|member| member.health.up)
        .collect();
    assert_eq!(up, [false, false, true, true]);
    world.apply(&Action::Connect(0, true));
    world.pass(Duration::from_secs(4));
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::LeaderKey)));
}

/// Restores the network to the first `count` members. Nothing else changes.
fn heal(world: &mut World, count: usize) {
    for index in 0..count {
        world.apply(&Action::Connect(index, true));
        world.apply(&Action::RestLive(index));
    }
}

/// The key moves to db2. db0 does not notice and still accepts writes; the Patroni instances of db0
/// and db1 do not know of the change.
fn split(world: &mut World) {
    world.apply(&Action::Stale(0));
    world.apply(&Action::Stale(1));
    world.apply(&Action::Promote(2));
    world.apply(&Action::Key(Some(2)));
}

/// The router reaches only the first two members, or also probes the others.
fn only_the_minority_answers(world: &mut World, probes_too: bool) {
    for index in 2..4 {
        world.apply(&Action::RestDead(index));
        world.apply(&Action::Connect(index, !probes_too));
    }
}

fn up(world: &World) -> Vec<bool> {
    let snapshot = world.state.snapshot();
    snapshot.members.iter().map(|member| member.health.up).collect()
}

#[test]
fn a_partition_with_the_leader_on_the_routers_side_removes_the_other_replicas_until_it_heals() {
    let mut world = World::new(4, SourceKind::Patroni);
    world.apply(&Action::Key(Some(2)));
    world.apply(&Action::Demote(0));
    world.apply(&Action::Promote(2));
    world.pass(Duration::from_secs(10));
    let leads = Some(("db2".into(), NamedBy::LeaderKey));
    world.apply(&Action::Cut(2));
    for _ in 0..20 {
        world.pass(Duration::from_secs(1));
        assert_eq!(world.leader(), leads);
    }
    assert_eq!(up(&world), [false, false, true, true]);
    heal(&mut world, 2);
    world.pass(Duration::from_secs(4));
    assert_eq!(up(&world), [true; 4]);
    assert_eq!(world.leader(), leads);
}

#[test]
fn the_routers_side_elects_a_leader_and_the_old_one_comes_back_writable_without_its_dcs() {
    let mut world = calm(4);
    world.apply(&Action::Stale(0));
    let stale = world.nodes[0].rest.clone();
    world.apply(&Action::Cut(2));
    world.pass(Duration::from_secs(30));
    assert!(world.leader().is_none(), "its key has not expired yet");
    world.apply(&Action::Key(Some(2)));
    world.pass(Duration::from_secs(1));
    assert_eq!(
        world.reason(),
        "db2 holds the leader key but has not been seen to accept writes"
    );
    world.apply(&Action::Promote(2));
    world.pass(Duration::from_millis(200));
    let leads = Some(("db2".into(), NamedBy::LeaderKey));
    assert_eq!(world.leader(), leads);
    // The network heals, but not that between db0's Patroni and the DCS.
    heal(&mut world, 2);
    world.nodes[0].rest = stale;
    for _ in 0..10 {
        world.pass(Duration::from_secs(1));
        assert_eq!(world.leader(), leads);
    }
    assert_eq!(up(&world), [true; 4]);
    world.apply(&Action::Demote(0));
    world.apply(&Action::RestLive(0));
    world.pass(Duration::from_secs(3));
    assert_eq!(world.leader(), leads);
}

#[test]
fn on_the_minority_side_the_old_leader_serves_until_a_patroni_of_the_majority_answers() {
    let mut world = calm(4);
    split(&mut world);
    only_the_minority_answers(&mut world, true);
    world.pass(Duration::from_secs(10));
    // No reachable source contradicts it. Patroni demotes it within its ttl.
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::LeaderKey)));
    // SQL works again first, Patroni does not yet.
    world.apply(&Action::Connect(2, true));
    world.apply(&Action::Connect(3, true));
    world.pass(Duration::from_secs(10));
    // Polled again, Patroni still names db0. A manually promoted server would look the same.
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::LeaderKey)));
    world.apply(&Action::RestLive(3));
    world.pass(Duration::from_secs(2));
    assert_eq!(world.leader(), Some(("db2".into(), NamedBy::LeaderKey)));
}

#[test]
fn a_newer_leader_that_a_probe_has_seen_contradicts_an_old_answer_at_once() {
    let mut world = calm(4);
    let stale = world.view();
    split(&mut world);
    only_the_minority_answers(&mut world, false);
    let result = world.check(2);
    let started = world.now;
    world.observe(Observation::Probe {
        member: name(2),
        started,
        result,
    });
    assert!(world.leader().is_none());
    assert_eq!(
        world.reason(),
        "db2 accepts writes on a newer timeline than db0, the last known holder of the leader key"
    );
    assert!(world.state.wants().poll, "Patroni is polled at once");
    let begun = world.now - STEP;
    world.observe(Observation::Polled { report: stale, begun });
    assert!(world.leader().is_none(), "that poll began before");
    world.apply(&Action::RestLive(3));
    world.pass(Duration::from_secs(2));
    assert_eq!(world.leader(), Some(("db2".into(), NamedBy::LeaderKey)));
}

#[test]
fn a_manually_promoted_server_removes_the_leader_only_until_patroni_is_polled() {
    let mut world = calm(3);
    world.apply(&Action::Promote(1));
    let result = world.check(1);
    let started = world.now;
    world.observe(Observation::Probe {
        member: name(1),
        started,
        result,
    });
    assert!(world.leader().is_none());
    world.pass(Duration::from_millis(200));
    for _ in 0..20 {
        assert_eq!(world.leader(), Some(("db0".into(), NamedBy::LeaderKey)));
        world.pass(Duration::from_millis(500));
    }
}

#[test]
fn a_named_leader_that_no_probe_reaches_is_no_leader() {
    let mut world = calm(4);
    world.apply(&Action::Connect(0, false));
    world.apply(&Action::Connect(1, false));
    world.pass(Duration::from_secs(6));
    assert_eq!(world.reason(), "db0 holds the leader key but cannot be reached");
    assert!(world.state.snapshot().source.reachable);
    world.apply(&Action::Connect(0, true));
    world.pass(Duration::from_secs(3));
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::LeaderKey)));
}

#[test]
fn probes_alone_keep_the_last_leader_until_a_newer_one_is_seen() {
    let mut world = calm(4);
    for index in 0..4 {
        world.apply(&Action::RestDead(index));
    }
    world.pass(Duration::from_mins(1));
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::Failsafe)));
    // It comes back. One probe is enough to contradict another leader.
    world.apply(&Action::Run(2, false));
    world.pass(Duration::from_secs(3));
    world.apply(&Action::Promote(2));
    let result = Ok(ProbeFacts {
        timeline: 2,
        in_recovery: false,
        ..world.check(1).unwrap()
    });
    let started = world.now;
    world.observe(Observation::Probe {
        member: name(2),
        started,
        result,
    });
    assert!(!up(&world)[2]);
    assert!(
        world
            .reason()
            .contains("db2 accepts writes on a newer timeline than db0")
    );
    for index in 0..4 {
        world.apply(&Action::RestLive(index));
    }
    world.apply(&Action::Key(Some(2)));
    world.apply(&Action::Run(2, true));
    world.pass(Duration::from_secs(3));
    assert_eq!(world.leader(), Some(("db2".into(), NamedBy::LeaderKey)));
}

#[test]
fn half_of_the_patroni_endpoints_are_enough_and_disconnected_ones_are_outvoted() {
    let mut world = calm(4);
    world.apply(&Action::RestDead(0));
    world.apply(&Action::RestDead(1));
    world.pass(Duration::from_secs(10));
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::LeaderKey)));
    world.apply(&Action::RestLive(0));
    world.apply(&Action::RestLive(1));
    split(&mut world);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.leader(), Some(("db2".into(), NamedBy::LeaderKey)));
}

#[test]
fn a_watch_that_is_cut_off_with_the_old_leader_is_detected() {
    for quorum in [false, true] {
        let mut world = calm(4);
        world.apply(&Action::Watch(Watch::Live));
        world.pass(Duration::from_secs(6));
        world.apply(&Action::Watch(Watch::Silent { quorum }));
        split(&mut world);
        only_the_minority_answers(&mut world, false);
        world.pass(Duration::from_secs(2));
        if !quorum {
            // The watch ends, and a Patroni of the other side answers, too.
            world.apply(&Action::RestLive(3));
            world.pass(Duration::from_secs(2));
        }
        assert_eq!(world.leader(), Some(("db2".into(), NamedBy::LeaderKey)));
    }
}

#[test]
fn the_watched_key_takes_precedence_over_a_newer_timeline() {
    let mut world = calm(3);
    world.apply(&Action::Watch(Watch::Live));
    world.pass(Duration::from_secs(6));
    for index in 0..3 {
        world.apply(&Action::Stale(index));
    }
    world.apply(&Action::Promote(1));
    world.pass(Duration::from_millis(1200));
    for _ in 0..10 {
        assert_eq!(world.leader(), Some(("db0".into(), NamedBy::LeaderKey)));
        world.pass(Duration::from_secs(1));
    }
}
