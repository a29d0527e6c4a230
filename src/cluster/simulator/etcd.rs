//! The watch on the leader key compared with REST: lost, silent, ahead of it, contradicted.

use super::*;

pub(super) fn watched() -> World {
    let mut world = calm(3);
    world.apply(&Action::Watch(Watch::Live));
    world.pass(Duration::from_secs(1));
    world
}

/// The key moves to another member, and no Patroni's REST interface shows it yet.
fn hidden_switchover(world: &mut World) {
    for index in 0..3 {
        world.apply(&Action::Stale(index));
    }
    world.apply(&Action::Run(0, false));
    world.apply(&Action::Key(Some(1)));
    world.pass(Duration::from_millis(100));
}

#[test]
fn the_key_counts_at_once_and_rest_does_not_revert_it() {
    let mut world = watched();
    hidden_switchover(&mut world);
    world.apply(&Action::Promote(1));
    world.pass(Duration::from_millis(100));
    assert_eq!(world.leader(), Some(("db1".into(), NamedBy::LeaderKey)));
    world.pass(Duration::from_secs(20));
    assert_eq!(world.leader(), Some(("db1".into(), NamedBy::LeaderKey)));
}

#[test]
fn the_first_leader_is_accepted_also_if_the_watch_shows_it_before_rest() {
    let mut world = World::new(3, SourceKind::Patroni);
    world.apply(&Action::Key(None));
    world.apply(&Action::Watch(Watch::Live));
    world.pass(Duration::from_secs(2));
    assert_eq!(world.reason(), "no member holds the leader key");
    world.apply(&Action::Key(Some(0)));
    // Earlier than a quiet watch is checked: a busy watch is not checked.
    world.pass(Duration::from_secs(2));
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::LeaderKey)));
}

#[test]
fn a_deleted_key_is_no_leader_although_the_old_one_accepts_writes() {
    let mut world = watched();
    world.apply(&Action::Stale(0));
    world.apply(&Action::Stale(1));
    world.apply(&Action::Stale(2));
    world.apply(&Action::Key(None));
    assert_eq!(world.reason(), "no member holds the leader key");
    world.pass(Duration::from_secs(10));
    assert_eq!(world.reason(), "no member holds the leader key");
}

#[test]
fn after_a_loss_only_a_poll_begun_after_the_last_event_counts() {
    let mut world = watched();
    let old = world.view();
    let begun = world.now;
    hidden_switchover(&mut world);
    world.apply(&Action::Promote(1));
    world.pass(Duration::from_millis(200));
    world.apply(&Action::Watch(Watch::Down));
    // This poll was running when the key moved, and its answer arrives last.
    world.observe(Observation::Polled {
        report: old.clone(),
        begun,
    });
    assert_eq!(world.leader(), Some(("db1".into(), NamedBy::LeaderKey)));
    let begun = world.now;
    world.observe(Observation::Polled { report: old, begun });
    assert_eq!(world.reason(), "db0 holds the leader key but cannot be reached");
}

#[test]
fn a_silent_watch_that_rest_contradicts_is_checked_and_corrected() {
    for quorum in [true, false] {
        let mut world = watched();
        world.apply(&Action::Watch(Watch::Silent { quorum }));
        world.apply(&Action::Run(0, false));
        world.apply(&Action::Key(Some(1)));
        world.apply(&Action::Promote(1));
        world.pass(Duration::from_millis(500));
        assert_eq!(
            world.leader(),
            Some(("db1".into(), NamedBy::LeaderKey)),
            "{quorum}"
        );
    }
}

#[test]
fn without_rest_the_watch_names_the_leader_and_without_both_the_last_named_leader_stays() {
    let mut world = watched();
    world.apply(&Action::Outage);
    world.pass(Duration::from_secs(3));
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::LeaderKey)));
    // The whole DCS is unavailable, and the leader continues in failsafe mode.
    world.apply(&Action::Watch(Watch::Down));
    world.pass(Duration::from_mins(2));
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::Failsafe)));
    world.apply(&Action::Watch(Watch::Live));
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::LeaderKey)));
}

#[test]
fn keys_that_have_never_agreed_with_rest_do_not_count() {
    let mut world = calm(3);
    let named = Named::Nobody;
    let at = world.now;
    world.watch = Watch::Silent { quorum: false };
    world.next_check = at + Duration::from_mins(1);
    world.observe(Observation::Key { named, at });
    world.pass(Duration::from_secs(2));
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::LeaderKey)));
    let disagreement = world.state.snapshot().source.disagreement.clone().unwrap();
    assert!(disagreement.contains("`etcd.scope`"), "{disagreement}");
}

#[test]
fn a_member_just_named_is_probed_fast_until_it_accepts_writes_for_a_limited_time() {
    let mut world = watched();
    assert_eq!(world.state.pace(world.now).chased, None);
    world.apply(&Action::Run(0, false));
    world.apply(&Action::Key(Some(1)));
    let pace = world.state.pace(world.now);
    assert_eq!(pace.chased, Some(name(1)));
    assert!(pace.of(&name(1)) <= Duration::from_millis(10));
    assert!(pace.of(&name(2)) >= Duration::from_millis(100));
    world.pass(Duration::from_secs(6));
    assert_eq!(world.state.pace(world.now).chased, None);
    assert!(world.reason().contains("has not been seen to accept writes"));
}
