//! A second implementation of a route's choice, from the documentation instead of the code.

use proptest::sample::select;

use super::*;
use crate::config::Balance;

/// The index of the route's target by which `member` may serve. `None`: it may not serve.
fn allowed(cluster: &Snapshot, route: &Route, member: &Member) -> Option<usize> {
    let is_usable = member.health.up
        && !member.host.is_empty()
        && member.identity == Identity::Same
        && member.admin == AdminState::Ready;
    let leads = matches!(&cluster.leader, Leader::Verified { member: leader, .. } if *leader == member.name);
    let is_balanced = member.tags.get("noloadbalance") != Some(&json!(true));
    let runs = ["running", "streaming", "in archive recovery"].contains(&member.state.as_str());
    let is_standby = !leads
        && is_balanced
        && member
            .health
            .facts
            .as_ref()
            .is_some_and(|facts| facts.in_recovery)
        && match member.role {
            Role::Unnamed => true,
            Role::Leader | Role::Other(_) => false,
            Role::StandbyLeader | Role::Replica | Role::SyncStandby | Role::QuorumStandby => runs,
        };
    let has_tags = route
        .tags
        .iter()
        .all(|(key, value)| member.tags.get(key) == Some(value));
    let is_near = leads || !member.lagging.contains(&route.name);
    let serves = |role: &TargetRole| match role {
        TargetRole::Leader => leads,
        TargetRole::Any => is_standby || leads && is_balanced,
        TargetRole::Replica => is_standby,
        TargetRole::Sync => is_standby && member.role == Role::SyncStandby,
        TargetRole::Quorum => is_standby && member.role == Role::QuorumStandby,
        TargetRole::Async => is_standby && member.role == Role::Replica,
    };
    let tier = route
        .targets
        .iter()
        .position(|Tier(roles)| roles.iter().any(serves))?;
    (is_usable && has_tags && is_near).then_some(tier)
}

prop_compose! {
    /// A member that is fit more often than not.
    fn likely(index: usize)(
        member in any_member(index),
        is_fit in prop::bool::weighted(0.7),
        weight in 0_u16..4,
        share in 10_u8..=100,
        disk in proptest::option::of(select(vec!["ssd", "hdd"])),
        zone in proptest::option::of(select(vec!["a", "b"])),
        lags in prop::bool::weighted(0.3),
    ) -> Member {
        let mut member = member;
        if is_fit {
            member.host = "host".into();
            member.health.up = true;
            member.identity = Identity::Same;
            member.admin = AdminState::Ready;
        }
        member.weight = weight;
        member.share = share;
        member.zone = zone.map(Into::into);
        if let Some(disk) = disk {
            member.tags.insert("disk".into(), json!(disk));
        }
        if lags {
            member.lagging = ["route".into()].into();
        }
        member
    }
}

fn roles() -> impl Strategy<Value = Vec<TargetRole>> {
    use TargetRole::{Any, Async, Leader, Quorum, Replica, Sync};
    proptest::collection::vec(select(vec![Leader, Replica, Sync, Quorum, Async, Any]), 1..3)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn exactly_the_allowed_members_are_candidates(
        members in (likely(0), likely(1), likely(2), likely(3)),
        leader in proptest::option::of(0_usize..4),
        tiers in proptest::collection::vec(roles(), 1..4),
        disk in proptest::option::weighted(0.3, select(vec!["ssd", "hdd"])),
        balance in select(vec![
            Balance::LeastConnections, Balance::RoundRobin, Balance::Random, Balance::SourceHash, Balance::First,
        ]),
        zone in proptest::option::of(select(vec!["a", "b"])),
        backing_off in 0_usize..6,
        loads in proptest::array::uniform4(0_usize..5),
        chances in proptest::collection::vec(any::<u64>(), 1..8),
    ) {
        let leader = leader.map(|index| format!("m{index}"));
        let cluster = snapshot(vec![members.0, members.1, members.2, members.3], leader.as_deref());
        let tiers: Vec<&[TargetRole]> = tiers.iter().map(Vec::as_slice).collect();
        let mut route = Route { balance, ..to(&tiers) };
        if let Some(disk) = disk {
            route.tags.insert("disk".into(), json!(disk));
        }
        let index = |name: &MemberName| name.as_str()[1..].parse::<usize>().unwrap();
        let is_backing_off = |name: &MemberName| index(name) == backing_off;
        let mut expected: Vec<&str> = cluster
            .members
            .iter()
            .filter(|member| allowed(&cluster, &route, member).is_some())
            .map(|member| member.name.as_str())
            .collect();
        expected.sort_unstable();
        let mut turns = Turns::default();
        let mut chances = chances.into_iter().cycle();
        for client in 0..5_u32 {
            let mut input = ChoiceInput {
                client: Some(std::net::Ipv4Addr::from(client).into()),
                zone,
                listed: &[],
                sessions_on: &|name| loads[index(name)],
                is_backing_off: &is_backing_off,
                chance: &mut || chances.next().unwrap(),
                turns: &mut turns,
            };
            let choice = candidates(&cluster, &route, &mut input);
            let order: Vec<_> = choice.candidates.iter().map(|candidate| {
                let member = cluster.member(&candidate.member).unwrap();
                (is_backing_off(&member.name), allowed(&cluster, &route, member), member.weight == 0)
            }).collect();
            prop_assert!(order.is_sorted(), "{:?}", order);
            let mut found = names(&choice);
            found.sort_unstable();
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(choice.refused.len(), 4 - found.len());
        }
    }
}
