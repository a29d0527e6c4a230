//! A model of a cluster, its Patronis and the network, and what must hold of every snapshot whatever happens to them.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::patroni::choose;
use super::snapshot::{Leader, MemberName, NamedBy, ProbeFacts, Role, Snapshot};
use super::state::{
    Evidence, Listed, Named, Observation, ProbeFailure, Settings, SourceKind, SourceReport, State,
};

use crate::config::{Limit, MaxLag};

mod etcd;

const OURS: u64 = 42;
const STEP: Duration = Duration::from_millis(50);

/// One server and the Patroni beside it, as they really are.
#[derive(Debug, Clone)]
struct Node {
    running: bool,
    primary: bool,
    timeline: u32,
    identifier: u64,
    /// The router reaches PostgreSQL.
    connected: bool,
    rest: Rest,
    addressed: bool,
    lag: Option<u64>,
    /// Bytes of what the primary has written; `None` is all.
    replayed: Option<u64>,
}

/// What its Patroni answers.
#[derive(Debug, Clone)]
enum Rest {
    Live,
    /// Cut from the DCS: what it last knew.
    Stale(SourceReport),
    Dead,
}

/// The real cluster, the observations under way, and what the router was told so far.
struct World {
    nodes: Vec<Node>,
    key: Option<usize>,
    kind: SourceKind,
    state: State,
    now: Instant,
    next_poll: Instant,
    next_probe: Vec<Instant>,
    /// Probes under way: when they end, what they saw.
    flying: Vec<(Instant, usize, Instant, Result<ProbeFacts, ProbeFailure>)>,
    slow: bool,
    /// By the primary.
    written: u64,
    /// By the primary, in bytes a second.
    rate: u64,
    watch: Watch,
    next_check: Instant,
    told: Told,
}

/// The router's watch on the leader key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// There is none, or it is lost.
    Down,
    Live,
    /// It says nothing more. `quorum`: a check finds that out, else it finds nobody.
    Silent {
        quorum: bool,
    },
}

/// Kept apart from the state: what the observations said.
#[derive(Default)]
struct Told {
    named: Option<MemberName>,
    by_source: Option<MemberName>,
    /// By the watch, while it is up.
    key: Option<Named>,
    agreed: bool,
    key_at: Option<Instant>,
    reachable: bool,
    /// Of the last successful probe that was delivered since the last failure.
    writable: BTreeMap<MemberName, bool>,
}

impl Told {
    fn agree(&mut self) {
        let by_source = self.by_source.clone().map(Named::One);
        self.agreed |= by_source.is_some() && self.key == by_source;
    }
}

fn name(index: usize) -> MemberName {
    MemberName::new(format!("db{index}"))
}

/// A route with limits.
const LIMITED: &str = "limited";

fn max_lag() -> MaxLag {
    MaxLag {
        bytes: Some(Limit {
            most: 16 << 20,
            recover: 8 << 20,
        }),
        time: Some(Limit {
            most: Duration::from_secs(10),
            recover: Duration::from_secs(5),
        }),
    }
}

fn settings(kind: SourceKind) -> Settings {
    Settings {
        cluster: Arc::from("main"),
        kind,
        rise: 2,
        fall: 3,
        probe_interval: Duration::from_secs(1),
        probe_timeout: Duration::from_secs(1),
        poll_interval: Duration::from_secs(1),
        fast_interval: Duration::from_millis(100),
        placement: crate::config::Placement {
            slow_start: Duration::from_secs(10),
            ..crate::config::Placement::default()
        },
        limits: BTreeMap::from([(Arc::from(LIMITED), max_lag())]),
    }
}

impl World {
    fn new(size: usize, kind: SourceKind) -> Self {
        let now = Instant::now();
        let node = Node {
            running: true,
            primary: false,
            timeline: 1,
            identifier: OURS,
            connected: true,
            rest: Rest::Live,
            addressed: true,
            lag: Some(0),
            replayed: None,
        };
        let mut nodes = vec![node; size];
        nodes[0].primary = true;
        Self {
            nodes,
            key: Some(0),
            kind,
            state: State::new(settings(kind), now),
            now,
            next_poll: now,
            next_probe: vec![now; size],
            flying: Vec::new(),
            slow: false,
            written: 1 << 30,
            rate: 0,
            watch: Watch::Down,
            next_check: now,
            told: Told::default(),
        }
    }

    fn view(&self) -> SourceReport {
        let patroni = self.kind == SourceKind::Patroni;
        let listed = |(index, node): (usize, &Node)| Listed {
            name: name(index),
            host: if node.addressed || !patroni {
                format!("10.0.0.{index}")
            } else {
                String::new()
            },
            port: 5432,
            role: match (patroni, self.key == Some(index)) {
                (false, _) => Role::Unnamed,
                (true, true) => Role::Leader,
                (true, false) => Role::Replica,
            },
            state: if patroni { "running".into() } else { String::new() },
            timeline: patroni.then_some(node.timeline),
            lag: node.lag,
            tags: BTreeMap::new(),
        };
        SourceReport {
            members: self.nodes.iter().enumerate().map(listed).collect(),
            named: match self.key {
                Some(index) if patroni => Named::One(name(index)),
                _ => Named::Nobody,
            },
            paused: false,
            disagreement: None,
        }
    }

    fn look(&self, index: usize) -> Result<ProbeFacts, ProbeFailure> {
        let node = &self.nodes[index];
        let failure = |message: &str, certain| ProbeFailure {
            check: crate::cluster::check::CheckStatus::Layer4Connection,
            message: message.into(),
            certain,
        };
        if !node.connected {
            return Err(failure("time ran out", false));
        }
        if !node.running {
            return Err(failure("refused", true));
        }
        Ok(ProbeFacts {
            in_recovery: !node.primary,
            system_identifier: node.identifier,
            timeline: node.timeline,
            position: match node.replayed {
                Some(replayed) if !node.primary => replayed,
                _ => self.written,
            },
            received: 0,
            streaming: !node.primary,
            server_version: 150_000,
            latency: Duration::ZERO,
            address: None,
        })
    }

    /// Folds one observation in, and checks what must always hold.
    fn tell(&mut self, observation: Observation) {
        match &observation {
            Observation::Source(report) => {
                let told = &mut self.told;
                told.reachable = true;
                told.by_source = match &report.named {
                    Named::One(name) => Some(name.clone()),
                    _ => None,
                };
                told.agree();
                let newer = told
                    .key_at
                    .is_none_or(|at| self.now >= at + Duration::from_millis(100));
                match &told.key {
                    Some(Named::One(name)) if told.agreed => told.named = Some(name.clone()),
                    Some(_) if told.agreed => told.named = None,
                    Some(_) => told.named.clone_from(&told.by_source),
                    None if !told.agreed || newer => told.named.clone_from(&told.by_source),
                    None => {}
                }
            }
            Observation::Key { named, .. } => {
                let told = &mut self.told;
                told.key = Some(named.clone());
                told.key_at = Some(self.now);
                told.agree();
                if told.agreed {
                    told.named = match named {
                        Named::One(name) => Some(name.clone()),
                        _ => None,
                    };
                }
            }
            Observation::KeyLost => self.told.key = None,
            Observation::SourceFailed(_) => self.told.reachable = false,
            Observation::Probe {
                member,
                result: Ok(facts),
                ..
            } => {
                self.told.writable.insert(member.clone(), !facts.in_recovery);
            }
            _ => {}
        }
        let before = self.state.snapshot();
        self.state.observe(observation, self.now);
        self.check(&before);
    }

    fn check(&self, before: &Snapshot) {
        let snapshot = self.state.snapshot();
        assert!(snapshot.version >= before.version);
        if snapshot.leader != before.leader {
            assert!(snapshot.version > before.version, "a new leader is a new version");
        }
        let Leader::Verified { member, named_by, .. } = &snapshot.leader else {
            return;
        };
        assert_eq!(
            self.told.writable.get(member),
            Some(&true),
            "{member} was not seen writable"
        );
        let shown = snapshot.member(member).unwrap();
        assert!(shown.health.up && !shown.health.facts.as_ref().unwrap().in_recovery);
        assert_eq!(
            shown.health.facts.as_ref().map(|facts| facts.system_identifier),
            snapshot.system_identifier
        );
        match named_by {
            NamedBy::LeaderKey => {
                let watched = self.told.agreed && self.told.key.is_some();
                assert!((watched || self.told.reachable) && self.told.named.as_ref() == Some(member));
            }
            NamedBy::Failsafe => assert!(!self.told.reachable && self.told.named.as_ref() == Some(member)),
            NamedBy::HighestTimeline => {
                let newest = snapshot.members.iter().filter_map(|m| m.health.facts.as_ref());
                let ours = newest.filter(|facts| Some(facts.system_identifier) == snapshot.system_identifier);
                let newest = ours.map(|facts| facts.timeline).max().unwrap();
                assert_eq!(shown.health.facts.as_ref().unwrap().timeline, newest);
            }
        }
    }

    /// What etcd itself has, as an event or the answer to a read through its quorum.
    fn tell_key(&mut self) {
        let named = self.key.map_or(Named::Nobody, |index| Named::One(name(index)));
        let at = self.now;
        self.tell(Observation::Key { named, at });
    }

    fn set_watch(&mut self, watch: Watch) {
        if self.kind == SourceKind::Fixed {
            return;
        }
        if watch == Watch::Down && self.watch != Watch::Down {
            self.tell(Observation::KeyLost);
        }
        if watch == Watch::Live && self.watch != Watch::Live {
            self.tell_key();
        }
        self.watch = watch;
        self.next_check = self.now + Duration::from_secs(5);
    }

    fn check_key(&mut self) {
        self.next_check = self.now + Duration::from_secs(5);
        match self.watch {
            Watch::Down => {}
            Watch::Live | Watch::Silent { quorum: true } => self.tell_key(),
            Watch::Silent { quorum: false } => self.set_watch(Watch::Down),
        }
    }

    fn poll(&mut self) {
        if self.kind == SourceKind::Fixed {
            if self.state.snapshot().members.is_empty() {
                let view = self.view();
                self.tell(Observation::Source(view));
            }
            return;
        }
        let live = self.view();
        let answers: Vec<&SourceReport> = self
            .nodes
            .iter()
            .filter_map(|node| match &node.rest {
                Rest::Live => Some(&live),
                Rest::Stale(view) => Some(view),
                Rest::Dead => None,
            })
            .collect();
        let snapshot = self.state.snapshot();
        let writable = |name: &MemberName| {
            snapshot
                .member(name)
                .is_some_and(|m| m.health.up && m.health.facts.as_ref().is_some_and(|f| !f.in_recovery))
        };
        let observation = match choose(&answers, &writable) {
            Some(report) => Observation::Source(report),
            None => Observation::SourceFailed("none answers".into()),
        };
        self.tell(observation);
    }

    /// Lets time pass: probes and polls at the pace the state asks for.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += STEP;
            self.written += self.rate / 20;
            let pace = self.state.pace(self.now);
            let wants = self.state.wants();
            if wants.poll || self.now >= self.next_poll {
                self.next_poll = self.now + pace.poll;
                self.poll();
            }
            if wants.check_key || self.now >= self.next_check {
                self.check_key();
            }
            let shown = self.state.snapshot();
            let listed: BTreeSet<_> = shown
                .members
                .iter()
                .filter(|m| m.has_address())
                .map(|m| m.name.clone())
                .collect();
            for index in 0..self.nodes.len() {
                let busy = self.flying.iter().any(|(_, other, ..)| *other == index);
                let due = self.now >= self.next_probe[index] || wants.probe.contains(&name(index));
                if due && !busy && listed.contains(&name(index)) {
                    self.next_probe[index] = self.now + pace.probe;
                    let seen = self.look(index);
                    let takes = match &seen {
                        Err(failure) if !failure.certain => Duration::from_secs(1),
                        _ if self.slow => Duration::from_millis(400),
                        _ => Duration::from_millis(2),
                    };
                    self.flying.push((self.now + takes, index, self.now, seen));
                }
            }
            let (landed, flying) = std::mem::take(&mut self.flying)
                .into_iter()
                .partition(|(at, ..)| *at <= self.now);
            self.flying = flying;
            let landed: Vec<(Instant, usize, Instant, _)> = landed;
            for (_, index, started, result) in landed {
                self.tell(Observation::Probe {
                    member: name(index),
                    started,
                    result,
                });
            }
            let before = self.state.snapshot();
            self.state.tick(self.now);
            self.check(&before);
        }
    }

    fn apply(&mut self, action: &Action) {
        let size = self.nodes.len();
        let at = |index: usize| index % size;
        match action {
            Action::Promote(index) => {
                let newest = self.nodes.iter().map(|node| node.timeline).max().unwrap();
                let node = &mut self.nodes[at(*index)];
                node.primary = true;
                node.timeline = newest + 1;
            }
            Action::Demote(index) => self.nodes[at(*index)].primary = false,
            Action::Key(index) => {
                self.key = index.map(at);
                if self.watch == Watch::Live {
                    self.tell_key();
                }
            }
            Action::Watch(watch) => self.set_watch(*watch),
            Action::Run(index, running) => self.nodes[at(*index)].running = *running,
            Action::Connect(index, connected) => self.nodes[at(*index)].connected = *connected,
            Action::Stale(index) => self.nodes[at(*index)].rest = Rest::Stale(self.view()),
            Action::RestDead(index) => self.nodes[at(*index)].rest = Rest::Dead,
            Action::RestLive(index) => self.nodes[at(*index)].rest = Rest::Live,
            Action::Outage => self.nodes.iter_mut().for_each(|node| node.rest = Rest::Dead),
            Action::Foreign(index) => self.nodes[at(*index)].identifier = 666,
            Action::Address(index, addressed) => self.nodes[at(*index)].addressed = *addressed,
            Action::Lag(index, lag) => self.nodes[at(*index)].lag = *lag,
            Action::Slow(slow) => self.slow = *slow,
            Action::Evidence(index, evidence) => {
                let member = name(at(*index));
                let at = self.now;
                self.tell(Observation::Evidence {
                    member,
                    evidence: *evidence,
                    at,
                });
            }
            Action::Pass(millis) => self.pass(Duration::from_millis(*millis)),
        }
    }

    /// Everything is repaired: `leader` leads, the others follow.
    fn repair(&mut self, leader: usize) {
        let newest = self.nodes.iter().map(|node| node.timeline).max().unwrap() + 1;
        for (index, node) in self.nodes.iter_mut().enumerate() {
            *node = Node {
                running: true,
                primary: index == leader,
                timeline: newest,
                identifier: OURS,
                connected: true,
                rest: Rest::Live,
                addressed: true,
                lag: Some(0),
                replayed: None,
            };
        }
        self.apply(&Action::Key(Some(leader)));
        self.slow = false;
    }

    fn leader(&self) -> Option<(String, NamedBy)> {
        match &self.state.snapshot().leader {
            Leader::Verified { member, named_by, .. } => Some((member.to_string(), *named_by)),
            Leader::None(_) => None,
        }
    }

    fn is_lagging(&self, index: usize) -> bool {
        self.state
            .snapshot()
            .member(&name(index))
            .unwrap()
            .lagging
            .contains(LIMITED)
    }

    fn share(&self, index: usize) -> u8 {
        self.state.snapshot().member(&name(index)).unwrap().share
    }

    /// Replay of a node stops, and so many bytes are written.
    fn leave_behind(&mut self, index: usize, bytes: u64) {
        self.nodes[index].replayed = Some(self.written);
        self.written += bytes;
    }

    fn reason(&self) -> String {
        match &self.state.snapshot().leader {
            Leader::Verified { member, .. } => panic!("{member} leads"),
            Leader::None(why) => why.to_string(),
        }
    }
}

#[derive(Debug, Clone)]
enum Action {
    Promote(usize),
    Demote(usize),
    Key(Option<usize>),
    Watch(Watch),
    Run(usize, bool),
    Connect(usize, bool),
    Stale(usize),
    RestDead(usize),
    RestLive(usize),
    Outage,
    Foreign(usize),
    Address(usize, bool),
    Lag(usize, Option<u64>),
    Slow(bool),
    Evidence(usize, Evidence),
    Pass(u64),
}

fn action() -> impl Strategy<Value = Action> {
    let node = 0_usize..5;
    let evidence = prop_oneof![
        Just(Evidence::ConnectRefused),
        Just(Evidence::ConnectFailed),
        Just(Evidence::ShutdownSeen),
        Just(Evidence::Terminated),
        Just(Evidence::ReadOnlySeen),
        Just(Evidence::Promoted),
        Just(Evidence::Demoted),
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
        1 => Just(Action::Outage),
        1 => node.clone().prop_map(Action::Foreign),
        1 => (node.clone(), any::<bool>()).prop_map(|(n, on)| Action::Address(n, on)),
        1 => (node.clone(), proptest::option::of(any::<u64>())).prop_map(|(n, lag)| Action::Lag(n, lag)),
        1 => any::<bool>().prop_map(Action::Slow),
        2 => (node, evidence).prop_map(|(n, e)| Action::Evidence(n, e)),
        6 => (50_u64..4000).prop_map(Action::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_leader_is_named_and_seen_writable_and_calm_finds_the_right_one(
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
        world.pass(Duration::from_secs(15));
        let named_by = if fixed { NamedBy::HighestTimeline } else { NamedBy::LeaderKey };
        prop_assert_eq!(world.leader(), Some((name(last).to_string(), named_by)));
        let snapshot = world.state.snapshot();
        prop_assert!(snapshot.members.iter().all(|member| member.health.up), "{:?}", snapshot);
        prop_assert!(snapshot.members.iter().all(|member| member.lagging.is_empty()), "{:?}", snapshot);
        // Fast polling ends by itself, and so do new versions.
        prop_assert!(!world.state.suspicious(world.now));
        world.pass(Duration::from_secs(5));
        prop_assert_eq!(world.state.snapshot().version, snapshot.version);
    }
}

fn calm(size: usize) -> World {
    let mut world = World::new(size, SourceKind::Patroni);
    world.pass(Duration::from_secs(10));
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::LeaderKey)));
    world
}

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
    assert_eq!(world.reason(), "no Patroni endpoint can be reached");
}

#[test]
fn an_answer_that_names_nobody_is_no_outage() {
    let mut world = calm(3);
    world.apply(&Action::Key(None));
    world.pass(Duration::from_secs(2));
    world.apply(&Action::Outage);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.reason(), "no Patroni endpoint can be reached");
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
    // Only the stale one answers: it names db0, on the older timeline; the key is believed, as it must be.
    world.apply(&Action::RestLive(0));
    world.apply(&Action::Demote(0));
    world.pass(Duration::from_secs(3));
    assert!(world.state.snapshot().source.disagreement.is_none());
}

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

#[test]
fn flapping_lag_is_not_a_new_version() {
    let mut world = calm(3);
    let version = world.state.snapshot().version;
    for round in 0..50 {
        world.apply(&Action::Lag(1, (round % 2 == 0).then_some(round * 1_000_000)));
        world.pass(Duration::from_secs(1));
    }
    assert_eq!(world.state.snapshot().version, version);
}

#[test]
fn a_member_of_another_cluster_is_never_used() {
    use super::snapshot::Identity;
    let mut world = World::new(3, SourceKind::Patroni);
    world.apply(&Action::Foreign(1));
    world.pass(Duration::from_secs(3));
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::LeaderKey)));
    let snapshot = world.state.snapshot();
    let identities: Vec<Identity> = snapshot.members.iter().map(|member| member.identity).collect();
    assert_eq!(identities, [Identity::Same, Identity::Foreign, Identity::Same]);

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
        "the members belong to different clusters, and none to the majority"
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
    world.apply(&Action::Evidence(0, Evidence::ShutdownSeen));
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
fn one_session_terminated_or_read_only_takes_nothing_away() {
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
fn a_demotion_seen_by_a_session_outweighs_a_probe_that_looked_before() {
    let mut world = calm(3);
    let early = world.now;
    let seen = world.look(0);
    world.now += STEP;
    world.nodes[0].primary = false;
    world.apply(&Action::Evidence(0, Evidence::Demoted));
    world.told.writable.insert(name(0), false);
    assert_eq!(
        world.reason(),
        "db0 holds the leader key but has not been seen to accept writes"
    );
    world.now += STEP;
    world.state.observe(
        Observation::Probe {
            member: name(0),
            started: early,
            result: seen,
        },
        world.now,
    );
    assert!(world.leader().is_none());
}

#[test]
fn a_promotion_seen_by_a_session_shows_at_once_but_makes_no_leader() {
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
fn what_a_probe_saw_long_ago_does_not_count() {
    let mut world = calm(1);
    world.now += Duration::from_secs(30);
    world.state.tick(world.now);
    assert!(world.leader().is_none());
}

#[test]
fn fast_polling_is_bounded_in_time() {
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
fn a_member_that_moves_is_looked_at_anew() {
    let mut world = calm(2);
    let early = world.now;
    let seen = world.look(0);
    world.now += STEP;
    let mut view = world.view();
    view.members[0].host = "10.9.9.9".into();
    world.tell(Observation::Source(view));
    assert!(world.leader().is_none());
    world.tell(Observation::Probe {
        member: name(0),
        started: early,
        result: seen,
    });
    assert!(world.leader().is_none(), "that probe went to the old address");
}

#[test]
fn lag_that_flaps_between_the_limits_does_not_flap_fitness() {
    const MIB: u64 = 1 << 20;
    let mut world = calm(3);
    assert!(!world.is_lagging(1));
    for round in 0..20 {
        world.leave_behind(1, if round % 2 == 0 { 9 * MIB } else { 15 * MIB });
        // Less than the limit in time.
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
    assert!(!world.is_lagging(1), "nothing is missing");
    world.rate = 20_000;
    world.pass(Duration::from_secs(9));
    assert!(!world.is_lagging(1));
    world.pass(Duration::from_secs(4));
    assert!(world.is_lagging(1));
    let lag = world.state.snapshot().member(&name(1)).unwrap().measured.unwrap();
    assert!(lag.bytes < 300_000, "{lag:?}");
    // It catches up to six seconds: above the lower limit.
    world.nodes[1].replayed = Some(world.written - 6 * 20_000);
    world.rate = 0;
    world.pass(Duration::from_millis(1100));
    assert!(world.is_lagging(1));
    world.nodes[1].replayed = Some(world.written);
    world.pass(Duration::from_millis(1100));
    assert!(!world.is_lagging(1));
}

#[test]
fn a_lag_that_is_not_known_is_too_much_and_a_failover_is_waited_for() {
    let mut world = World::new(3, SourceKind::Patroni);
    world.apply(&Action::Run(0, false));
    world.pass(Duration::from_secs(3));
    assert!(world.is_lagging(1), "no primary has been seen");
    world.apply(&Action::Run(0, true));
    world.pass(Duration::from_secs(3));
    assert!(!world.is_lagging(1));
    // The leader dies: what it last wrote counts for a minute.
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
    world.tell(limited(wide));
    assert!(!world.is_lagging(1), "it has never been beyond this one");
    world.tell(limited(narrow));
    assert!(world.is_lagging(1) && !world.is_lagging(2));
    world.tell(Observation::Limits(BTreeMap::new()));
    assert!(!world.is_lagging(1));
}

#[test]
fn a_busy_router_start_finds_nobody_lagging() {
    let mut world = World::new(3, SourceKind::Patroni);
    world.rate = 100 << 20;
    world.pass(Duration::from_secs(3));
    assert!(!world.is_lagging(1) && !world.is_lagging(2));
}

#[test]
fn a_member_that_comes_back_takes_its_share_slowly_and_one_that_was_there_does_not() {
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
        "nobody is woken for that"
    );

    // Not seen before, but long after the start.
    let node = world.nodes[1].clone();
    world.nodes.push(node);
    world.next_probe.push(world.now);
    world.pass(Duration::from_millis(1500));
    assert!(world.share(3) < 30, "{}", world.share(3));
}

#[test]
fn maintenance_and_draining_are_shown_and_wake_readers() {
    use super::snapshot::AdminState;
    let mut world = calm(2);
    for state in [AdminState::Drain, AdminState::Maint, AdminState::Ready] {
        let version = world.state.snapshot().version;
        world.tell(Observation::Admin(name(1), state));
        assert_eq!(world.state.snapshot().member(&name(1)).unwrap().admin, state);
        assert_eq!(world.state.snapshot().version, version + 1);
    }
}
