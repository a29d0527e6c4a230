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

/// The cut of the first `count`, and what was there before: nothing is changed but the network.
fn heal(world: &mut World, count: usize) {
    for index in 0..count {
        world.apply(&Action::Connect(index, true));
        world.apply(&Action::RestLive(index));
    }
}

/// The key moves to db2 behind the back of db0, which goes on accepting writes, and whose Patroni, as db1's, knows nothing.
fn split(world: &mut World) {
    world.apply(&Action::Stale(0));
    world.apply(&Action::Stale(1));
    world.apply(&Action::Promote(2));
    world.apply(&Action::Key(Some(2)));
}

/// The router reaches the first two only, or also asks the others by SQL.
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
fn with_the_leader_on_our_side_a_cut_takes_replicas_away_and_healing_brings_them_back() {
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
fn our_side_elects_another_and_the_old_one_comes_back_writable_and_deaf() {
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
fn on_the_side_of_the_minority_the_old_leader_serves_until_patroni_is_heard_from_the_other() {
    let mut world = calm(4);
    split(&mut world);
    only_the_minority_answers(&mut world, true);
    world.pass(Duration::from_secs(10));
    // Nothing that can be heard speaks against it; Patroni demotes it within its ttl.
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::LeaderKey)));
    // The first half to heal: SQL gets through, Patroni does not.
    world.apply(&Action::Connect(2, true));
    world.apply(&Action::Connect(3, true));
    world.pass(Duration::from_secs(10));
    // Asked again, Patroni still names db0: a server promoted by hand would look the same.
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::LeaderKey)));
    world.apply(&Action::RestLive(3));
    world.pass(Duration::from_secs(2));
    assert_eq!(world.leader(), Some(("db2".into(), NamedBy::LeaderKey)));
}

#[test]
fn a_newer_leader_that_a_probe_has_seen_speaks_against_an_old_answer_at_once() {
    let mut world = calm(4);
    let stale = world.view();
    split(&mut world);
    only_the_minority_answers(&mut world, false);
    let result = world.look(2);
    let started = world.now;
    world.tell(Observation::Probe {
        member: name(2),
        started,
        result,
    });
    assert!(world.leader().is_none());
    assert_eq!(
        world.reason(),
        "db2 accepts writes on a newer timeline than db0, the last known to hold the leader key"
    );
    assert!(world.state.wants().poll, "Patroni is asked at once");
    let begun = world.now - STEP;
    world.tell(Observation::Polled { report: stale, begun });
    assert!(world.leader().is_none(), "that was asked before");
    world.apply(&Action::RestLive(3));
    world.pass(Duration::from_secs(2));
    assert_eq!(world.leader(), Some(("db2".into(), NamedBy::LeaderKey)));
}

#[test]
fn a_server_promoted_by_hand_takes_the_leader_away_only_until_patroni_is_asked() {
    let mut world = calm(3);
    world.apply(&Action::Promote(1));
    let result = world.look(1);
    let started = world.now;
    world.tell(Observation::Probe {
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
fn a_leader_that_patroni_names_and_no_probe_reaches_is_none() {
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
    // It comes back, and one look is enough to speak against another.
    world.apply(&Action::Run(2, false));
    world.pass(Duration::from_secs(3));
    world.apply(&Action::Promote(2));
    let result = Ok(ProbeFacts {
        timeline: 2,
        in_recovery: false,
        ..world.look(1).unwrap()
    });
    let started = world.now;
    world.tell(Observation::Probe {
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
fn half_of_the_patronis_are_enough_and_those_cut_off_are_outvoted() {
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
fn a_watch_that_is_cut_off_with_the_old_leader_is_looked_through() {
    for quorum in [false, true] {
        let mut world = calm(4);
        world.apply(&Action::Watch(Watch::Live));
        world.pass(Duration::from_secs(6));
        world.apply(&Action::Watch(Watch::Silent { quorum }));
        split(&mut world);
        only_the_minority_answers(&mut world, false);
        world.pass(Duration::from_secs(2));
        if !quorum {
            // The watch is given up, and Patroni heard from the other side, too.
            world.apply(&Action::RestLive(3));
            world.pass(Duration::from_secs(2));
        }
        assert_eq!(world.leader(), Some(("db2".into(), NamedBy::LeaderKey)));
    }
}

#[test]
fn the_key_as_the_watch_knows_it_outweighs_a_newer_timeline() {
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
