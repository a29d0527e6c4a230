//! Addresses that lead to another server: of another cluster, to an old primary, and back. The
//! model knows which server each session is really on.

use std::net::{IpAddr, Ipv4Addr};

use proptest::test_runner::RngSeed;

use super::super::server_identity::{IdentifiedBy, ServerIdentity, ServerLocation};
use super::*;
use crate::routing::{Candidate, EndReason, GrantedRole, Preference, SessionVerdict, fits, verdict};

/// Another cluster.
const THEIRS: u64 = 666;
/// How long a prober keeps its connection unless a check is requested.
const STANDING: Duration = Duration::from_secs(10);
/// How long a session may be on the wrong server before it is ended: until the next probe has
/// ended.
const NOTICED: Duration = Duration::from_secs(2);

pub(super) fn address(index: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, u8::try_from(index).unwrap()))
}

/// A read-write session, the router's knowledge about it, and the server it is really on.
#[derive(Debug, Clone)]
pub(super) struct Session {
    member: usize,
    place: ServerLocation,
    /// System identifier and timeline.
    on: (u64, u32),
    /// It was on a wrong server from its beginning.
    is_misled: bool,
    pub(super) ended: Option<EndReason>,
}

impl World {
    /// The server that a new connection to this node's address reaches.
    fn reached(&self, index: usize) -> &Node {
        self.elsewhere.get(&index).unwrap_or(&self.nodes[index])
    }

    /// The server at the other end of the probe's connection.
    pub(super) fn probed(&self, index: usize) -> &Node {
        match self.standing.get(&index) {
            Some((_, Some(stranger))) => stranger,
            _ => &self.nodes[index],
        }
    }

    pub(super) fn keep_connection(&mut self, index: usize) {
        let wanted = self.checks.entry(index).or_default().take_request();
        let is_kept = self
            .standing
            .get(&index)
            .is_some_and(|(begun, _)| !wanted && self.now < *begun + STANDING);
        if !is_kept {
            let stranger = self.elsewhere.get(&index).cloned();
            self.standing.insert(index, (self.now, stranger));
        }
    }

    pub(super) fn show_look(&mut self, index: usize, result: &Result<ProbeFacts, ProbeError>) {
        let identity = result.as_ref().ok().and_then(ServerIdentity::of);
        let check = self.checks.entry(index).or_default();
        let known = check.last().map(|last| last.connected);
        match identity {
            Some(identity) if known < Some(identity.connected) => {
                check.publish(identity.connected, Some(identity));
            }
            Some(_) => {}
            None => {
                check.publish(self.now, None);
                self.standing.remove(&index);
            }
        }
    }

    fn lead(&mut self, index: usize, identifier: u64, timeline: u32) {
        let node = Node {
            identifier,
            timeline,
            primary: true,
            running: true,
            ..self.nodes[index].clone()
        };
        self.elsewhere.insert(index, node);
    }

    fn look_now(&mut self, index: usize) {
        self.checks.entry(index).or_default().request();
        self.next_probe[index] = self.now;
    }

    fn lead_back(&mut self, index: usize) {
        self.elsewhere.remove(&index);
    }

    /// Attaches a read-write session to a server; `None` if it is refused.
    fn attach(&mut self) -> Option<usize> {
        let snapshot = self.state.snapshot();
        let Leader::Verified { member, .. } = &snapshot.leader else {
            return None;
        };
        let index = (0..self.nodes.len())
            .find(|index| name(*index) == *member)
            .unwrap();
        let candidate = Candidate {
            member: member.clone(),
            host: String::new(),
            port: 0,
            reason: Preference::Leader,
        };
        let (server, own) = (self.reached(index).clone(), self.nodes[index].clone());
        if !server.running || !server.connected || !server.primary {
            return None;
        }
        let asked = ServerIdentity {
            system_identifier: server.identifier,
            timeline: server.timeline,
            in_recovery: false,
            address: address(index),
            connected: self.now,
        };
        let check = self.checks.entry(index).or_default();
        let recent = check
            .recent(address(index), self.now)
            .filter(|_| !check.is_doubted(self.now));
        let (identity, known) = match recent.filter(|identity| fits(&snapshot, &candidate, identity).is_ok())
        {
            Some(identity) => (identity, IdentifiedBy::Prober),
            None => (asked, IdentifiedBy::Session),
        };
        if identity.connected < self.now {
            check.request_soon();
        }
        if fits(&snapshot, &candidate, &identity).is_err() {
            check.doubt(self.now);
            self.next_probe[index] = self.now;
            return None;
        }
        let begun = self.now;
        self.sessions.push(Session {
            member: index,
            place: ServerLocation {
                identity,
                known,
                begun,
            },
            on: (server.identifier, server.timeline),
            is_misled: (server.identifier, server.timeline) != (own.identifier, own.timeline),
            ended: None,
        });
        Some(self.sessions.len() - 1)
    }

    /// Ends the sessions on a wrong server. Fails if a session should have been ended and was not,
    /// or the reverse.
    pub(super) fn judge_sessions(&mut self) {
        let snapshot = self.state.snapshot();
        for session in self.sessions.iter_mut().filter(|session| session.ended.is_none()) {
            let member = name(session.member);
            if let SessionVerdict::End(why) =
                verdict(&snapshot, GrantedRole::ReadWrite, &member, Some(&session.place))
            {
                session.ended = Some(why);
                continue;
            }
            if session.is_misled {
                let is_beside = session.place.known == IdentifiedBy::Prober;
                assert!(
                    is_beside,
                    "a server that was checked was the wrong one: {session:?}"
                );
                let begun = session.place.begun;
                assert!(
                    self.now < begun + NOTICED,
                    "the router has not noticed: {session:?}"
                );
            }
        }
    }

    fn end_of(&self, session: usize) -> Option<&EndReason> {
        self.sessions[session].ended.as_ref()
    }
}

#[test]
fn an_address_that_leads_to_another_cluster_gets_no_session_until_it_leads_back() {
    for kind in [SourceKind::Patroni, SourceKind::Fixed] {
        let mut world = World::new(1, kind);
        world.pass(Duration::from_secs(30));
        let before = world.attach().expect("all is well");
        world.pass(Duration::from_secs(5));
        world.lead(0, THEIRS, 1);
        for _ in 0..100 {
            world.pass(STEP * 2);
            assert_eq!(world.attach(), None, "{kind:?}");
        }
        assert!(world.leader().is_none());
        assert!(
            world.reason().contains("belongs to another cluster"),
            "{}",
            world.reason()
        );
        assert_eq!(
            world.end_of(before),
            None,
            "the session is still on its own server"
        );
        assert_eq!(world.state.snapshot().system_identifier, Some(OURS));

        world.lead_back(0);
        world.pass(Duration::from_secs(15));
        assert!(world.leader().is_some());
        assert!(world.attach().is_some());
        assert_eq!(world.end_of(before), None);
    }
}

/// It can happen only between two checks.
#[test]
fn a_session_that_reached_another_server_just_after_a_check_is_ended_also_if_the_address_leads_back() {
    for (identifier, timeline) in [(THEIRS, 2), (THEIRS, 9), (OURS, 1)] {
        let mut world = calm(1);
        world.apply(&Action::Promote(0));
        // Until the mismatch is no longer a reason to check each connection.
        world.pass(Duration::from_secs(80));
        // The check that this session requests serves the next one.
        world.attach().unwrap();
        world.look_now(0);
        world.pass(STEP * 2);
        world.lead(0, identifier, timeline);
        let led = world.attach().expect("the router cannot know yet");
        assert_eq!(world.sessions[led].on, (identifier, timeline));
        world.pass(NOTICED);
        let end = world.end_of(led).cloned();
        assert!(
            matches!(end, Some(EndReason::Foreign(_) | EndReason::OldPrimary(_))),
            "{identifier} {timeline}: {end:?}"
        );
        world.lead_back(0);
        world.pass(Duration::from_secs(15));
        assert!(world.leader().is_some());
    }
}

#[test]
fn a_virtual_address_that_moves_to_the_promoted_standby_ends_the_sessions_on_the_old_primary() {
    let mut world = World::new(1, SourceKind::Fixed);
    world.pass(Duration::from_secs(30));
    let old = world.attach().unwrap();
    world.pass(Duration::from_secs(2));
    // From now on the address leads to that server.
    world.nodes[0].timeline = 2;
    world.look_now(0);
    let new = loop {
        world.pass(STEP);
        if let Some(new) = world
            .attach()
            .filter(|new| world.sessions[*new].place.identity.timeline == 2)
        {
            break new;
        }
    };
    world.pass(Duration::from_secs(12));
    assert_eq!(world.end_of(old), Some(&EndReason::OldPrimary(name(0))));
    assert_eq!(world.end_of(new), None);
}

/// Two endpoints name db0, on timeline 1. The third begins to list only a server of another
/// cluster, on timeline 99.
#[test]
fn one_endpoint_does_not_outvote_two_with_a_claimed_timeline() {
    let mut world = World::new(4, SourceKind::Patroni);
    world.nodes[3].identifier = THEIRS;
    world.nodes[3].primary = true;
    world.nodes[3].timeline = 99;
    world.nodes[3].rest = Rest::Dead;
    let mut others = world.view();
    let mut stranger = others.clone();
    others.members.truncate(3);
    stranger.members.drain(..3);
    stranger.members[0].role = Role::Leader;
    stranger.named = Named::One(name(3));
    for index in 0..3 {
        world.nodes[index].rest = Rest::Stale(others.clone());
    }
    world.pass(Duration::from_secs(10));
    let session = world.attach().unwrap();
    for claimed in [Some(99), Some(u32::MAX), Some(2), None] {
        stranger.members[0].timeline = claimed;
        world.nodes[2].rest = Rest::Stale(stranger.clone());
        for _ in 0..100 {
            world.pass(STEP);
            assert_eq!(
                world.leader(),
                Some(("db0".into(), NamedBy::LeaderKey)),
                "{claimed:?}"
            );
        }
        assert!(world.state.snapshot().source.disagreement.is_some());
        assert_eq!(world.state.snapshot().system_identifier, Some(OURS));
        assert_eq!(world.end_of(session), None);
    }
    // Now all endpoints: it is not this router's cluster, and no session goes there.
    for index in 0..3 {
        world.nodes[index].rest = Rest::Stale(stranger.clone());
    }
    world.pass(Duration::from_secs(10));
    assert_eq!(
        world.reason(),
        "db3 is named as the leader but belongs to another cluster"
    );
    assert_eq!(world.end_of(session), None, "its server is not one of theirs");
    // Until an operator declares that it is.
    world.observe(Observation::ForgetIdentity);
    world.pass(Duration::from_secs(3));
    assert_eq!(world.leader(), Some(("db3".into(), NamedBy::LeaderKey)));
    assert!(
        world.end_of(session).is_some(),
        "its server belongs to another cluster now"
    );
}

/// The leader key in etcd has no more authority than an endpoint: the named member must belong to
/// this cluster.
#[test]
fn no_session_goes_to_a_server_of_another_cluster_that_the_leader_key_names() {
    let mut world = calm(3);
    world.apply(&Action::Watch(Watch::Live));
    world.pass(Duration::from_secs(1));
    let session = world.attach().unwrap();
    world.apply(&Action::Foreign(2));
    world.apply(&Action::Promote(2));
    world.apply(&Action::Key(Some(2)));
    world.pass(Duration::from_secs(5));
    assert_eq!(
        world.reason(),
        "db2 is named as the leader but belongs to another cluster"
    );
    assert_eq!(world.attach(), None);
    assert_eq!(world.end_of(session), None);
    world.apply(&Action::Key(Some(0)));
    world.pass(Duration::from_secs(5));
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::LeaderKey)));
}

#[test]
fn a_leader_is_used_on_the_timeline_by_which_it_is_named_and_not_on_an_older_one() {
    let mut world = calm(2);
    world.apply(&Action::Promote(0));
    world.pass(Duration::from_secs(3));
    world.lead(0, OURS, 1);
    world.look_now(0);
    world.pass(Duration::from_secs(1));
    assert_eq!(
        world.reason(),
        "db0 is named as the leader on timeline 2 but has been seen on timeline 1"
    );
    world.lead_back(0);
    world.look_now(0);
    world.pass(Duration::from_secs(3));
    assert!(world.leader().is_some());
}

/// A fixed list of one server that never accepted writes: no leader was verified, but sessions were
/// given out.
#[test]
fn one_replica_alone_does_not_make_another_cluster() {
    let mut world = World::new(1, SourceKind::Fixed);
    world.nodes[0].primary = false;
    world.pass(Duration::from_secs(5));
    assert_eq!(world.state.snapshot().system_identifier, Some(OURS));
    world.lead(0, THEIRS, 1);
    world.look_now(0);
    world.pass(Duration::from_secs(5));
    assert_eq!(world.state.snapshot().system_identifier, Some(OURS));
    assert_eq!(
        world.reason(),
        "db0 accepts writes but belongs to another cluster"
    );
}

#[derive(Debug, Clone)]
enum Turn {
    Lead(u64, u32),
    Back,
    Promote,
    Attach,
    Pass(u64),
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(9),
        ..ProptestConfig::default()
    })]

    /// Addresses lead to arbitrary servers, at intervals in which the router can notice it. No
    /// session stays on a wrong server ([`World::judge_sessions`] checks that), and sessions on the
    /// right one stay there.
    #[test]
    fn sessions_are_on_their_own_server_wherever_an_address_leads(
        fixed in any::<bool>(),
        turns in proptest::collection::vec(prop_oneof![
            2 => prop_oneof![Just(Turn::Lead(THEIRS, 1)), Just(Turn::Lead(THEIRS, 50)), Just(Turn::Lead(OURS, 1))],
            2 => Just(Turn::Back),
            1 => Just(Turn::Promote),
            8 => Just(Turn::Attach),
            6 => (50_u64..3000).prop_map(Turn::Pass),
        ], 0..60),
    ) {
        let mut world = World::new(1, if fixed { SourceKind::Fixed } else { SourceKind::Patroni });
        world.nodes[0].timeline = 2;
        world.pass(Duration::from_secs(3));
        for turn in &turns {
            match turn {
                Turn::Lead(identifier, timeline) => {
                    world.pass(NOTICED);
                    world.lead(0, *identifier, *timeline);
                }
                Turn::Back => {
                    world.pass(NOTICED);
                    world.lead_back(0);
                }
                Turn::Promote => {
                    // A server has no sessions when it is promoted.
                    world.sessions.clear();
                    world.apply(&Action::Promote(0));
                    world.standing.clear();
                }
                Turn::Attach => drop(world.attach()),
                Turn::Pass(millis) => world.pass(Duration::from_millis(*millis)),
            }
        }
        world.lead_back(0);
        world.pass(Duration::from_secs(15));
        prop_assert!(world.leader().is_some(), "{:?}", world.state.snapshot().leader);
        let settled = world.attach();
        prop_assert!(settled.is_some());
        world.pass(Duration::from_secs(3));
        prop_assert_eq!(world.end_of(settled.unwrap()), None);
        for session in &world.sessions {
            let is_right = session.on == (OURS, world.nodes[0].timeline);
            let is_certain = session.place.known == IdentifiedBy::Session;
            prop_assert!(!(is_right && is_certain) || session.ended.is_none(), "{:?}", session);
            prop_assert!(is_right || session.ended.is_some(), "{:?}", session);
        }
    }
}
