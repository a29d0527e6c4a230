//! Targets, tags, weights, zones and balance.

use std::net::Ipv4Addr;
use std::sync::Arc;

use super::*;
use crate::config::{Balance, Server};

/// A leader, and standbys of every kind, named after their kind.
fn five() -> Snapshot {
    snapshot(
        vec![
            member("async", Role::Replica, "streaming", true),
            member("leader", Role::Leader, "running", false),
            member("quorum", Role::QuorumStandby, "streaming", true),
            member("sync", Role::SyncStandby, "streaming", true),
            member("sync2", Role::SyncStandby, "streaming", true),
        ],
        Some("leader"),
    )
}

/// Streaming replicas `m0`, `m1`, … of these weights, without a leader.
fn replicas(weights: &[u16]) -> Snapshot {
    let members = weights.iter().enumerate().map(|(index, weight)| Member {
        weight: *weight,
        ..member(&format!("m{index}"), Role::Replica, "streaming", true)
    });
    snapshot(members.collect(), None)
}

/// A random sequence that is the same in each run.
fn sequence() -> impl FnMut() -> u64 {
    let mut state = 42_u64;
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// A route's logins, one after the other.
struct Logins {
    route: Route,
    turns: Turns,
    chance: Box<dyn FnMut() -> u64>,
    sessions: BTreeMap<MemberName, usize>,
    backing_off: Vec<&'static str>,
    zone: Option<&'static str>,
    listed: Vec<Server>,
}

impl Logins {
    fn by(balance: Balance) -> Self {
        Self {
            route: Route {
                balance,
                ..to_replica()
            },
            turns: Turns::default(),
            chance: Box::new(sequence()),
            sessions: BTreeMap::new(),
            backing_off: Vec::new(),
            zone: None,
            listed: Vec::new(),
        }
    }

    fn order(&mut self, cluster: &Snapshot, client: u32) -> Vec<String> {
        let sessions = self.sessions.clone();
        let mut input = ChoiceInput {
            client: Some(Ipv4Addr::from(client).into()),
            zone: self.zone,
            listed: &self.listed,
            sessions_on: &|name| sessions.get(name).copied().unwrap_or_default(),
            is_backing_off: &|name| self.backing_off.contains(&name.as_str()),
            chance: &mut *self.chance,
            turns: &mut self.turns,
        };
        let choice = candidates(cluster, &self.route, &mut input);
        names(&choice).into_iter().map(str::to_owned).collect()
    }

    /// The member that the next session gets. The session stays.
    fn next(&mut self, cluster: &Snapshot, client: u32) -> String {
        let member = self.order(cluster, client)[0].clone();
        *self.sessions.entry(MemberName::new(member.as_str())).or_default() += 1;
        member
    }

    /// The number of sessions that each member gets from this many logins, each from another
    /// address.
    fn shares(&mut self, cluster: &Snapshot, logins: u32) -> Vec<usize> {
        let mut shares: BTreeMap<String, usize> = BTreeMap::new();
        for client in 0..logins {
            *shares.entry(self.next(cluster, client)).or_default() += 1;
        }
        let share = |member: &Member| shares.get(member.name.as_str()).copied().unwrap_or_default();
        cluster.members.iter().map(share).collect()
    }
}

#[test]
fn targets_are_used_in_order_and_roles_of_one_target_are_equal() {
    use TargetRole::{Any, Async, Leader, Quorum, Replica, Sync};
    #[allow(clippy::type_complexity, reason = "a table")]
    let cases: [(&[&[TargetRole]], &[&[&str]]); 7] = [
        (&[&[Sync]], &[&["sync", "sync2"]]),
        (&[&[Quorum], &[Async]], &[&["quorum"], &["async"]]),
        (
            &[&[Async, Quorum], &[Sync]],
            &[&["async", "quorum"], &["sync", "sync2"]],
        ),
        (
            &[&[Replica], &[Leader]],
            &[&["async", "quorum", "sync", "sync2"], &["leader"]],
        ),
        (
            &[&[Sync], &[Replica], &[Leader]],
            &[&["sync", "sync2"], &["async", "quorum"], &["leader"]],
        ),
        (&[&[Any]], &[&["async", "leader", "quorum", "sync", "sync2"]]),
        (&[&[Leader]], &[&["leader"]]),
    ];
    for (targets, expected) in cases {
        let choice = choose(&five(), &to(targets));
        let mut found = names(&choice).into_iter();
        for tier in expected {
            let mut these: Vec<&str> = found.by_ref().take(tier.len()).collect();
            these.sort_unstable();
            assert_eq!(these, *tier, "{targets:?}");
        }
        assert_eq!(found.next(), None, "{targets:?}");
    }
}

#[test]
fn a_later_target_serves_when_no_member_of_an_earlier_one_can() {
    let route = to(&[&[TargetRole::Replica], &[TargetRole::Leader]]);
    let mut cluster = three();
    for index in [1, 2] {
        cluster.members[index].health = Health::default();
    }
    let choice = choose(&cluster, &route);
    assert_eq!(names(&choice), ["db1"]);
    assert_eq!(choice.candidates[0].reason, Preference::Leader);
    assert!(check_available(&cluster, &route).is_ok());
    cluster.members[0].health = Health::default();
    let refused = check_available(&cluster, &route).unwrap_err();
    let (message, hint) = unavailable(&cluster, &route, &refused);
    assert_eq!(message, "no server accepts read-only sessions now");
    assert!(hint.contains("db2 has not been reached yet"), "{hint}");
}

#[test]
fn refused_members_have_the_most_specific_reason() {
    let reason = |cluster: &Snapshot, route: &Route, name: &str| {
        let refused = choose(cluster, route).refused;
        let found = refused.into_iter().find(|(member, _)| member.as_str() == name);
        found.unwrap().1
    };
    let sync_first = to(&[&[TargetRole::Sync], &[TargetRole::Leader]]);
    let cluster = five();
    let wanted = Reason::NotWanted("sync, then leader".into());
    assert_eq!(reason(&cluster, &sync_first, "async"), wanted);
    assert_eq!(
        wanted.to_string(),
        "does not match the targets of the route: sync, then leader"
    );
    let mut drained = five();
    drained.members[0].admin = AdminState::Drain;
    drained.members[1].admin = AdminState::Maint;
    assert_eq!(reason(&drained, &sync_first, "async"), Reason::Draining);
    assert_eq!(reason(&drained, &sync_first, "leader"), Reason::Maintenance);
    assert_eq!(
        reason(&drained, &to(&[&[TargetRole::Any]]), "leader"),
        Reason::Maintenance
    );
    let mut spared = five();
    spared.members[1].tags.insert("noloadbalance".into(), json!(true));
    assert_eq!(
        reason(&spared, &to(&[&[TargetRole::Any]]), "leader"),
        Reason::NoLoadBalance
    );
    let mut tagged = to_replica();
    tagged.tags.insert("site".into(), json!("north"));
    assert_eq!(
        reason(&cluster, &tagged, "sync"),
        Reason::Tag("site: north".into())
    );
}

#[test]
fn a_member_that_is_about_to_be_stopped_serves_nobody_and_stays_the_leader() {
    let mut cluster = five();
    let order = Arc::new(StopOrder::unnamed(tokio::time::Instant::now()));
    cluster.members[1].leaving = Some(Arc::clone(&order));
    let refused = choose(&cluster, &to(&[&[TargetRole::Leader]]));
    assert_eq!(names(&refused), [""; 0]);
    let leader = MemberName::new("leader");
    assert!(
        refused
            .refused
            .contains(&(leader.clone(), Reason::Leaving(Arc::clone(&order))))
    );
    assert!(matches!(&cluster.leader, Leader::Verified { member, .. } if *member == leader));
    // It is stopped.
    cluster.members[1].health.up = false;
    let refused = choose(&cluster, &to(&[&[TargetRole::Leader]])).refused;
    assert!(
        !refused.contains(&(leader, Reason::Leaving(Arc::clone(&order)))),
        "{refused:?}"
    );
    let mut cluster = five();
    cluster.members[0].leaving = Some(order);
    let chosen = choose(&cluster, &to_replica());
    assert!(!names(&chosen).contains(&"async"), "{chosen:?}");
    assert!(!chosen.candidates.is_empty());
}

#[test]
fn only_members_with_the_tags_serve() {
    let mut cluster = five();
    cluster.members[0].tags.insert("site".into(), json!("north"));
    cluster.members[1].tags.insert("site".into(), json!("north"));
    let mut route = to(&[&[TargetRole::Replica], &[TargetRole::Leader]]);
    route.tags.insert("site".into(), json!("north"));
    assert_eq!(names(&choose(&cluster, &route)), ["async", "leader"]);
}

#[test]
fn an_unenforced_session_on_a_leader_stays_after_a_demotion() {
    let db1 = MemberName::new("db1");
    let mut cluster = three();
    let verdict = |cluster: &Snapshot| verdict(cluster, GrantedRole::Unenforced, &db1, None);
    assert_eq!(verdict(&cluster), SessionVerdict::Stay);
    cluster.leader = Leader::Verified {
        member: MemberName::new("db2"),
        timeline: 4,
        named_by: NamedBy::LeaderKey,
    };
    cluster.members[0] = member("db1", Role::Replica, "streaming", true);
    assert_eq!(verdict(&cluster), SessionVerdict::Stay);
}

#[test]
fn members_that_failed_recently_come_last() {
    for balance in [
        Balance::LeastConnections,
        Balance::RoundRobin,
        Balance::Random,
        Balance::SourceHash,
        Balance::First,
    ] {
        let mut logins = Logins::by(balance);
        logins.backing_off = vec!["m0"];
        for client in 0..50 {
            assert_eq!(
                logins.order(&replicas(&[256, 1, 1]), client)[2],
                "m0",
                "{balance:?}"
            );
        }
        assert_eq!(logins.order(&replicas(&[1]), 1), ["m0"], "it is the only member");
    }
    let mut logins = Logins::by(Balance::First);
    logins.route = to(&[&[TargetRole::Replica], &[TargetRole::Leader]]);
    logins.backing_off = vec!["async", "quorum", "sync", "sync2"];
    assert_eq!(
        logins.order(&five(), 1)[0],
        "leader",
        "the next target, not a member that fails"
    );
}

#[test]
fn members_of_the_routers_zone_come_first() {
    let mut cluster = replicas(&[1, 1, 1]);
    cluster.members[1].zone = Some("b".into());
    cluster.members[2].zone = Some("a".into());
    for balance in [
        Balance::LeastConnections,
        Balance::RoundRobin,
        Balance::SourceHash,
    ] {
        let mut logins = Logins::by(balance);
        logins.zone = Some("b");
        assert_eq!(logins.shares(&cluster, 30), [0, 30, 0]);
        assert_eq!(logins.order(&cluster, 1).len(), 3);
        cluster.members[1].health.up = false;
        assert_eq!(logins.shares(&cluster, 30)[1], 0);
        cluster.members[1].health.up = true;
    }
}

#[test]
fn a_member_of_weight_0_serves_when_no_other_can() {
    for balance in [Balance::LeastConnections, Balance::RoundRobin, Balance::Random] {
        let mut cluster = replicas(&[0, 2]);
        let mut logins = Logins::by(balance);
        assert_eq!(logins.shares(&cluster, 20), [0, 20], "{balance:?}");
        cluster.members[1].health.up = false;
        assert_eq!(logins.shares(&cluster, 5), [5, 0], "{balance:?}");
    }
}

#[test]
fn round_robin_is_smooth_and_forgets_removed_members() {
    let mut logins = Logins::by(Balance::RoundRobin);
    let cluster = replicas(&[3, 1]);
    let given: Vec<String> = (0..8).map(|client| logins.next(&cluster, client)).collect();
    assert_eq!(given, ["m0", "m0", "m1", "m0", "m0", "m0", "m1", "m0"]);
    assert_eq!(logins.shares(&replicas(&[1]), 3), [3]);
    assert_eq!(logins.turns, {
        let mut fresh = Logins::by(Balance::RoundRobin);
        fresh.shares(&replicas(&[1]), 1);
        fresh.turns
    });
}

#[test]
fn first_is_by_name_or_by_the_order_of_a_fixed_list() {
    let cluster = replicas(&[1, 5, 1]);
    let mut logins = Logins::by(Balance::First);
    assert_eq!(logins.order(&cluster, 1), ["m0", "m1", "m2"]);
    let server = |name: &str| Server {
        name: name.to_owned(),
        host: name.to_owned(),
        port: 5432,
    };
    logins.listed = vec![server("m2"), server("m0"), server("m1")];
    assert_eq!(logins.order(&cluster, 1), ["m2", "m0", "m1"]);
}

proptest! {
    #[test]
    fn shares_follow_the_weights(weights in proptest::collection::vec(1_u16..=8, 2..5)) {
        let sum: u16 = weights.iter().sum();
        let cluster = replicas(&weights);
        for (balance, tolerance) in [
            (Balance::LeastConnections, 0.02),
            (Balance::RoundRobin, 0.005),
            (Balance::Random, 0.06),
            (Balance::SourceHash, 0.06),
        ] {
            let shares = Logins::by(balance).shares(&cluster, 2000);
            for (share, weight) in shares.iter().zip(&weights) {
                #[allow(clippy::cast_precision_loss)]
                let (share, expected) = (*share as f64 / 2000.0, f64::from(*weight) / f64::from(sum));
                prop_assert!((share - expected).abs() < tolerance, "{:?} {:?} {:?}", balance, weights, shares);
            }
        }
    }

    #[test]
    fn source_hash_moves_only_the_clients_of_a_removed_member(
        weights in proptest::collection::vec(1_u16..=4, 2..6),
        gone in any::<proptest::sample::Index>(),
        clients in proptest::collection::vec(any::<u32>(), 1..200),
    ) {
        let whole = replicas(&weights);
        let mut less = whole.clone();
        let gone = less.members.remove(gone.index(weights.len())).name;
        let mut logins = Logins::by(Balance::SourceHash);
        for client in clients {
            let (before, after) = (logins.next(&whole, client), logins.next(&less, client));
            prop_assert!(before == after || before == gone.as_str(), "{} {}", before, after);
        }
    }

    #[test]
    fn candidates_and_fitness_agree(
        cluster in any_snapshot(),
        tiers in proptest::collection::vec(
            proptest::collection::vec(proptest::sample::select(vec![
                TargetRole::Leader, TargetRole::Replica, TargetRole::Sync, TargetRole::Quorum,
                TargetRole::Async, TargetRole::Any,
            ]), 1..3), 1..4),
        balance in proptest::sample::select(vec![
            Balance::LeastConnections, Balance::RoundRobin, Balance::Random, Balance::SourceHash, Balance::First,
        ]),
    ) {
        let tiers: Vec<&[TargetRole]> = tiers.iter().map(Vec::as_slice).collect();
        let route = Route { balance, ..to(&tiers) };
        let choice = choose(&cluster, &route);
        prop_assert_eq!(choice.candidates.len() + choice.refused.len(), cluster.members.len());
        prop_assert_eq!(check_available(&cluster, &route).is_ok(), !choice.candidates.is_empty());
        let mut tiers = Vec::new();
        for candidate in &choice.candidates {
            let member = cluster.member(&candidate.member).unwrap();
            let (tier, reason) = fitness(&cluster, &route, member).unwrap();
            prop_assert_eq!(reason, candidate.reason);
            let fit = match reason {
                Preference::Leader => leader_reason(&cluster, member),
                _ => replica_reason(&cluster, member),
            };
            prop_assert_eq!(fit, Ok(reason));
            tiers.push(tier);
        }
        prop_assert!(tiers.is_sorted());
        for (name, _) in &choice.refused {
            prop_assert!(fitness(&cluster, &route, cluster.member(name).unwrap()).is_err());
        }
    }
}

#[test]
fn a_standby_that_lags_for_a_route_does_not_serve_that_route() {
    let mut cluster = five();
    for member in &mut cluster.members {
        member.lagging = ["route".into(), "ro".into()].into();
    }
    let choice = choose(&cluster, &to(&[&[TargetRole::Sync], &[TargetRole::Any]]));
    assert_eq!(names(&choice), ["leader"], "the leader is not behind itself");
    assert!(
        choice
            .refused
            .iter()
            .all(|(_, reason)| *reason == Reason::LagUnknown)
    );
    cluster.members[0].measured = Some(crate::cluster::snapshot::Lag {
        bytes: 1,
        time: Some(Duration::ZERO),
    });
    let choice = choose(&cluster, &to_replica());
    assert_eq!(choice.refused[0], (MemberName::new("async"), Reason::Lagging));
    let (_, hint) = unavailable(&cluster, &to_replica(), &choice);
    assert!(hint.contains("async is too far behind the leader."), "{hint}");
    let other = Route::read_only("other", "main");
    assert_eq!(choose(&cluster, &other).candidates.len(), 4);
}

#[test]
fn a_member_in_slow_start_gets_a_smaller_share() {
    let mut cluster = replicas(&[2, 2, 2]);
    cluster.members[1].share = 10;
    for balance in [
        Balance::LeastConnections,
        Balance::RoundRobin,
        Balance::SourceHash,
    ] {
        let shares = Logins::by(balance).shares(&cluster, 2100);
        assert!((70..=130).contains(&shares[1]), "{balance:?} {shares:?}");
    }
    let shares = Logins::by(Balance::Random).shares(&cluster, 2100);
    assert!((70..=330).contains(&shares[1]), "{shares:?}");
}
