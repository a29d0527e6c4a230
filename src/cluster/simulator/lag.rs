//! Lag, shares and administrative states.

use super::*;

#[test]
fn flapping_lag_makes_no_new_version() {
    let mut world = calm(3);
    let version = world.state.snapshot().version;
    for round in 0..50 {
        world.apply(&Action::Lag(1, (round % 2 == 0).then_some(round * 1_000_000)));
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(world.state.snapshot().version, version);
}

#[test]
fn lag_that_flaps_between_the_limits_does_not_flap_fitness() {
    const MIB: u64 = 1 << 20;
    let mut world = calm(3);
    assert!(!world.is_lagging(1));
    for round in 0..20 {
        world.leave_behind(1, if round % 2 == 0 { 9 * MIB } else { 15 * MIB });
        // Below the time limit.
        world.pass(Duration::from_secs(1));
        assert!(!world.is_lagging(1), "{round}");
    }
    world.nodes[1].replayed = None;
    world.pass(Duration::from_secs(3));
    let version = world.state.snapshot().version;
    world.leave_behind(1, 17 * MIB);
    world.pass(Duration::from_secs(2));
    assert!(world.is_lagging(1) && !world.is_lagging(2));
    assert_eq!(
        world.state.snapshot().version,
        version + 1,
        "readers are woken once"
    );
    for round in 0..20 {
        world.leave_behind(1, if round % 2 == 0 { 9 * MIB } else { 15 * MIB });
        world.pass(Duration::from_secs(2));
        assert!(world.is_lagging(1), "{round}");
    }
    assert_eq!(world.state.snapshot().version, version + 1);
    world.nodes[1].replayed = None;
    world.pass(Duration::from_secs(2));
    assert!(!world.is_lagging(1));
    assert_eq!(world.state.snapshot().version, version + 2);
}

#[test]
fn a_standby_that_stops_replaying_lags_by_time_only_while_it_lacks_something() {
    let mut world = calm(2);
    world.leave_behind(1, 0);
    world.pass(Duration::from_mins(5));
    assert!(!world.is_lagging(1), "it has replayed everything");
    world.rate = 20_000;
    world.pass(Duration::from_secs(9));
    assert!(!world.is_lagging(1));
    world.pass(Duration::from_secs(4));
    assert!(world.is_lagging(1));
    let lag = world.state.snapshot().member(&name(1)).unwrap().measured.unwrap();
    assert!(lag.bytes < 300_000, "{lag:?}");
    // It catches up to six seconds, which is above the lower limit.
    world.nodes[1].replayed = Some(world.written - 6 * 20_000);
    world.rate = 0;
    world.pass(Duration::from_millis(1100));
    assert!(world.is_lagging(1));
    world.nodes[1].replayed = Some(world.written);
    world.pass(Duration::from_millis(1100));
    assert!(!world.is_lagging(1));
}

#[test]
fn an_unknown_lag_exceeds_the_limit_and_a_last_position_counts_during_a_failover() {
    let mut world = World::new(3, SourceKind::Patroni);
    world.apply(&Action::Run(0, false));
    world.pass(Duration::from_secs(3));
    assert!(world.is_lagging(1), "no primary has been seen");
    world.apply(&Action::Run(0, true));
    world.pass(Duration::from_secs(3));
    assert!(!world.is_lagging(1));
    // The leader dies. Its last position counts for a minute.
    world.apply(&Action::Run(0, false));
    world.pass(Duration::from_secs(55));
    assert!(!world.is_lagging(1) && !world.is_lagging(2));
    world.pass(Duration::from_secs(10));
    assert!(world.is_lagging(1) && world.is_lagging(2));
    world.apply(&Action::Key(Some(1)));
    world.apply(&Action::Promote(1));
    world.pass(Duration::from_secs(2));
    assert!(!world.is_lagging(1), "the leader is not behind");
    assert!(!world.is_lagging(2));
}

#[test]
fn other_limits_count_at_once_and_from_the_beginning() {
    let mut world = calm(3);
    world.leave_behind(1, 32 << 20);
    world.pass(Duration::from_millis(2500));
    assert!(world.is_lagging(1));
    let limited = |bytes| {
        let max = MaxLag {
            bytes: Some(bytes),
            time: None,
        };
        Observation::Limits(BTreeMap::from([(Arc::from(LIMITED), max)]))
    };
    let (wide, narrow) = (
        Limit {
            most: 64 << 20,
            recover: 1 << 20,
        },
        Limit {
            most: 16 << 20,
            recover: 1 << 20,
        },
    );
    world.observe(limited(wide));
    assert!(!world.is_lagging(1), "it has never exceeded this limit");
    world.observe(limited(narrow));
    assert!(world.is_lagging(1) && !world.is_lagging(2));
    world.observe(Observation::Limits(BTreeMap::new()));
    assert!(!world.is_lagging(1));
}

#[test]
fn no_standby_lags_at_the_start_of_a_router() {
    let mut world = World::new(3, SourceKind::Patroni);
    world.rate = 100 << 20;
    world.pass(Duration::from_secs(3));
    assert!(!world.is_lagging(1) && !world.is_lagging(2));
}

#[test]
fn the_share_of_a_member_that_comes_back_grows_slowly_and_others_keep_theirs() {
    let mut world = calm(3);
    assert_eq!([0, 1, 2].map(|index| world.share(index)), [100; 3]);
    world.apply(&Action::Evidence(1, Evidence::ConnectRefused));
    assert!(
        !world.state.snapshot().member(&name(1)).unwrap().health.up,
        "at once"
    );
    world.apply(&Action::Run(1, false));
    world.pass(Duration::from_secs(20));
    world.apply(&Action::Run(1, true));
    world.pass(Duration::from_millis(2500));
    assert!(world.state.snapshot().member(&name(1)).unwrap().health.up);
    let version = world.state.snapshot().version;
    let first = world.share(1);
    assert!((10..=40).contains(&first), "{first}");
    world.pass(Duration::from_secs(4));
    let later = world.share(1);
    assert!((first + 30..=first + 42).contains(&later), "{first} {later}");
    world.pass(Duration::from_secs(6));
    assert_eq!([0, 1, 2].map(|index| world.share(index)), [100; 3]);
    assert_eq!(
        world.state.snapshot().version,
        version,
        "no reader is woken for that"
    );

    // A member that appears long after the start.
    let node = world.nodes[1].clone();
    world.nodes.push(node);
    world.next_probe.push(world.now);
    world.pass(Duration::from_millis(1500));
    assert!(world.share(3) < 30, "{}", world.share(3));
}

#[test]
fn maintenance_and_draining_are_published_and_wake_readers() {
    let mut world = calm(2);
    for state in [AdminState::Drain, AdminState::Maint, AdminState::Ready] {
        let version = world.state.snapshot().version;
        world.observe(Observation::Admin(name(1), state));
        assert_eq!(world.state.snapshot().member(&name(1)).unwrap().admin, state);
        assert_eq!(world.state.snapshot().version, version + 1);
    }
}
