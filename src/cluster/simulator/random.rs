//! Random events in the cluster, its Patroni instances, etcd and the network.

use proptest::test_runner::RngSeed;

use super::*;

fn action() -> impl Strategy<Value = Action> {
    let node = 0_usize..5;
    let evidence = prop_oneof![
        Just(Evidence::ConnectRefused),
        Just(Evidence::ConnectFailed),
        Just(Evidence::Terminated),
        Just(Evidence::ReadOnlySeen),
        Just(Evidence::Promoted),
        Just(Evidence::Demoted),
    ];
    let admin = prop_oneof![
        Just(AdminState::Ready),
        Just(AdminState::Drain),
        Just(AdminState::Maint)
    ];
    prop_oneof![
        2 => node.clone().prop_map(Action::Promote),
        2 => node.clone().prop_map(Action::Demote),
        2 => proptest::option::of(node.clone()).prop_map(Action::Key),
        2 => prop_oneof![
            Just(Watch::Down),
            Just(Watch::Live),
            any::<bool>().prop_map(|quorum| Watch::Silent { quorum }),
        ]
        .prop_map(Action::Watch),
        2 => (node.clone(), any::<bool>()).prop_map(|(n, on)| Action::Run(n, on)),
        2 => (node.clone(), any::<bool>()).prop_map(|(n, on)| Action::Connect(n, on)),
        1 => node.clone().prop_map(Action::Stale),
        1 => node.clone().prop_map(Action::RestDead),
        1 => node.clone().prop_map(Action::RestLive),
        1 => node.clone().prop_map(Action::RestDouble),
        1 => node.clone().prop_map(Action::Cut),
        1 => Just(Action::Outage),
        1 => node.clone().prop_map(Action::Foreign),
        1 => (node.clone(), any::<bool>()).prop_map(|(n, on)| Action::Address(n, on)),
        1 => (node.clone(), proptest::option::of(any::<u64>())).prop_map(|(n, lag)| Action::Lag(n, lag)),
        1 => (node.clone(), admin).prop_map(|(n, state)| Action::Admin(n, state)),
        1 => (1_u64..60).prop_map(Action::Jump),
        1 => any::<bool>().prop_map(Action::Slow),
        2 => (node, evidence).prop_map(|(n, e)| Action::Evidence(n, e)),
        6 => (50_u64..4000).prop_map(Action::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(5),
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_leader_is_always_named_and_seen_writable_and_after_repair_it_is_the_right_one(
        size in 1_usize..5,
        fixed in any::<bool>(),
        actions in proptest::collection::vec(action(), 0..60),
        last in 0_usize..5,
    ) {
        let mut world = World::new(size, if fixed { SourceKind::Fixed } else { SourceKind::Patroni });
        for action in &actions {
            world.apply(action);
        }
        let last = last % size;
        world.repair(last);
        world.pass(Duration::from_secs(3));
        world.forget_foreign_identity();
        world.pass(Duration::from_secs(15));
        let named_by = if fixed { NamedBy::HighestTimeline } else { NamedBy::LeaderKey };
        prop_assert_eq!(world.leader(), Some((name(last).to_string(), named_by)));
        let snapshot = world.state.snapshot();
        prop_assert!(snapshot.members.iter().all(|member| member.health.up), "{:?}", snapshot);
        prop_assert!(snapshot.members.iter().all(|member| member.lagging.is_empty()), "{:?}", snapshot);
        // Fast polling ends by itself, and no new versions follow.
        prop_assert!(!world.state.suspicious(world.now));
        world.pass(Duration::from_secs(5));
        prop_assert_eq!(world.state.snapshot().version, snapshot.version);
    }
}
