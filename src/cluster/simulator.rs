//! A model of a cluster, its Patroni instances and the network, and the invariants of every
//! snapshot for any sequence of events.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::check::CheckStatus;
use super::control::seen_writable;
use super::observation::FailureKind;
use super::patroni::choose;
use super::server_identity::AddressCheck;
use super::snapshot::{AdminState, Leader, MemberName, NamedBy, ProbeFacts, Role, Snapshot};
use super::state::{
    Arming, Evidence, LagLimits, Listed, MemberStatus, Named, Observation, ProbeError, Settings, SourceKind,
    SourceReport, State,
};

use crate::config::{Limit, MaxLag};

mod arming;
mod cuts;
mod etcd;
mod lag;
mod leaving;
mod naming;
mod places;
mod random;
mod scripts;
mod standby;
mod witness;

use witness::Witness;

const OURS: u64 = 42;
const RISE: u32 = 2;
const FALL: u32 = 3;
const STEP: Duration = Duration::from_millis(50);

/// The real state of one server and its Patroni.
#[derive(Debug, Clone)]
struct Node {
    running: bool,
    primary: bool,
    timeline: u32,
    identifier: u64,
    /// The router can reach PostgreSQL.
    connected: bool,
    rest: Rest,
    addressed: bool,
    lag: Option<u64>,
    /// Replayed bytes of the primary's WAL; `None` means all.
    replayed: Option<u64>,
}

/// The answer of its Patroni.
#[derive(Debug, Clone)]
enum Rest {
    Live,
    /// Disconnected from the DCS: its last known state.
    Stale(SourceReport),
    /// It names two leaders.
    Double,
    Dead,
}

/// The real cluster, the running polls and probes, and the router's state.
struct World {
    nodes: Vec<Node>,
    key: Option<usize>,
    kind: SourceKind,
    state: State,
    now: Instant,
    next_poll: Instant,
    next_probe: Vec<Instant>,
    /// The running poll: when it ends, when it began, and its result.
    polling: Option<(Instant, Instant, Option<SourceReport>)>,
    /// The running probes: when they end, and their results.
    flying: Vec<(Instant, usize, Instant, Result<ProbeFacts, ProbeError>)>,
    slow: bool,
    /// Bytes written by the primary.
    written: u64,
    /// The primary's write rate in bytes per second.
    rate: u64,
    watch: Watch,
    next_check: Instant,
    witness: Witness,
    /// The servers to which the addresses of these nodes lead instead of their own.
    elsewhere: BTreeMap<usize, Node>,
    /// The probers' connections: when they began, and to which server if not to the node's own.
    standing: BTreeMap<usize, (Instant, Option<Node>)>,
    /// The checks of the nodes' addresses, as sessions use them.
    checks: BTreeMap<usize, AddressCheck>,
    sessions: Vec<places::Session>,
    /// What the nodes' Patroni instances say of their servers, if not `running`.
    statuses: BTreeMap<usize, &'static str>,
    /// How often they were asked.
    looks: usize,
    armings: Vec<Arming>,
}

/// The router's watch on the leader key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    /// There is no watch, or it is lost.
    Down,
    Live,
    /// It sends no more messages. `quorum`: a check reads the key; otherwise the check fails.
    Silent {
        quorum: bool,
    },
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
        rise: RISE,
        fall: FALL,
        probe_interval: Duration::from_secs(1),
        probe_timeout: Duration::from_secs(1),
        poll_interval: Duration::from_secs(1),
        fast_interval: Duration::from_millis(100),
        placement: crate::config::Placement {
            slow_start: Duration::from_secs(10),
            ..crate::config::Placement::even()
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
            polling: None,
            flying: Vec::new(),
            slow: false,
            written: 1 << 30,
            rate: 0,
            watch: Watch::Down,
            next_check: now,
            witness: Witness::new(kind),
            elsewhere: BTreeMap::new(),
            standing: BTreeMap::new(),
            checks: BTreeMap::new(),
            sessions: Vec::new(),
            statuses: BTreeMap::new(),
            looks: 0,
            armings: Vec::new(),
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
            api_url: None,
        };
        SourceReport {
            members: self.nodes.iter().enumerate().map(listed).collect(),
            named: match self.key {
                Some(index) if patroni => Named::One(name(index)),
                _ => Named::Nobody,
            },
            paused: false,
            disagreement: None,
            rivals: Vec::new(),
            scheduled: None,
        }
    }

    fn check(&self, index: usize) -> Result<ProbeFacts, ProbeError> {
        let node = self.probed(index);
        let failure = |message: &str, kind| ProbeError {
            check: CheckStatus::Layer4Connection,
            message: message.into(),
            kind,
        };
        if !node.connected {
            return Err(failure("timeout", FailureKind::Counts));
        }
        if !node.running {
            return Err(failure("refused", FailureKind::Certain));
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
            address: Some(places::address(index)),
            connected: self.standing.get(&index).map(|(begun, _)| *begun),
        })
    }

    /// Folds one observation in, and checks the invariants.
    fn observe(&mut self, observation: Observation) {
        self.witness.hear(&observation, self.now);
        let before = self.state.snapshot();
        self.state.observe(observation, self.now);
        self.witness.check(&before, &self.state.snapshot(), self.now);
    }

    fn tick(&mut self) {
        let before = self.state.snapshot();
        self.state.tick(self.now);
        self.witness.check(&before, &self.state.snapshot(), self.now);
    }

    /// The key in etcd, as an event or as the answer to a read through its quorum.
    fn observe_key(&mut self) {
        let named = self.key.map_or(Named::Nobody, |index| Named::One(name(index)));
        let at = self.now;
        self.observe(Observation::Key { named, at });
    }

    fn set_watch(&mut self, watch: Watch) {
        if self.kind == SourceKind::Fixed {
            return;
        }
        if watch == Watch::Down && self.watch != Watch::Down {
            self.observe(Observation::KeyLost);
        }
        if watch == Watch::Live && self.watch != Watch::Live {
            self.observe_key();
        }
        self.watch = watch;
        self.next_check = self.now + Duration::from_secs(5);
    }

    fn check_key(&mut self) {
        self.next_check = self.now + Duration::from_secs(5);
        match self.watch {
            Watch::Down => {}
            Watch::Live | Watch::Silent { quorum: true } => self.observe_key(),
            Watch::Silent { quorum: false } => self.set_watch(Watch::Down),
        }
    }

    fn poll(&mut self) {
        if self.kind == SourceKind::Fixed {
            if self.state.snapshot().members.is_empty() {
                let view = self.view();
                self.observe(Observation::Source(view));
            }
            return;
        }
        let live = self.view();
        let double = SourceReport {
            named: Named::Several,
            ..live.clone()
        };
        let answers: Vec<&SourceReport> = self
            .nodes
            .iter()
            .filter_map(|node| match &node.rest {
                Rest::Live => Some(&live),
                Rest::Stale(view) => Some(view),
                Rest::Double => Some(&double),
                Rest::Dead => None,
            })
            .collect();
        let snapshot = self.state.snapshot();
        let seen = |name: &MemberName| seen_writable(&snapshot, name);
        let takes = Duration::from_millis(if self.slow { 400 } else { 0 });
        self.polling = Some((self.now + takes, self.now, choose(&answers, &seen, &snapshot)));
        self.polled();
    }

    /// Ends the running poll if it is due.
    fn polled(&mut self) {
        match self.polling.take() {
            Some((at, begun, Some(report))) if at <= self.now => {
                self.observe(Observation::Polled { report, begun });
            }
            Some((at, _, None)) if at <= self.now => {
                self.observe(Observation::SourceFailed("no endpoint answers".into()));
            }
            pending => self.polling = pending,
        }
    }

    /// Lets time pass: probes and polls at the pace that the state requests.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += STEP;
            self.written += self.rate / 20;
            self.polled();
            let pace = self.state.pace(self.now);
            let mut wants = self.state.wants();
            self.armings.append(&mut wants.armings);
            if self.polling.is_none() && (wants.poll || self.now >= self.next_poll) {
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
                    self.keep_connection(index);
                    let seen = self.check(index);
                    let takes = match &seen {
                        Err(failure) if failure.kind == FailureKind::Counts => Duration::from_secs(1),
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
                self.show_look(index, &result);
                self.observe(Observation::Probe {
                    member: name(index),
                    started,
                    result,
                });
            }
            self.tick();
            self.ask_patroni();
            self.judge_sessions();
        }
    }

    /// Asks the Patroni that the state wants to ask.
    fn ask_patroni(&mut self) {
        let Some(look) = self.state.look() else {
            return;
        };
        self.looks += 1;
        let index = (0..self.nodes.len())
            .find(|index| name(*index) == look.member)
            .unwrap();
        let answers = !matches!(self.nodes[index].rest, Rest::Dead);
        let state = self.statuses.get(&index).copied().unwrap_or("running");
        let started = self.now;
        self.observe(Observation::Status {
            member: look.member,
            started,
            status: answers.then(|| MemberStatus { state: state.into() }),
        });
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
                    self.observe_key();
                }
            }
            Action::Watch(watch) => self.set_watch(*watch),
            Action::Run(index, running) => self.nodes[at(*index)].running = *running,
            Action::Connect(index, connected) => self.nodes[at(*index)].connected = *connected,
            Action::Stale(index) => self.nodes[at(*index)].rest = Rest::Stale(self.view()),
            Action::RestDead(index) => self.nodes[at(*index)].rest = Rest::Dead,
            Action::RestLive(index) => self.nodes[at(*index)].rest = Rest::Live,
            Action::RestDouble(index) => self.nodes[at(*index)].rest = Rest::Double,
            Action::Cut(count) => {
                let cut = count % (size + 1);
                for node in &mut self.nodes[..cut] {
                    node.connected = false;
                    node.rest = Rest::Dead;
                }
            }
            Action::Outage => self.nodes.iter_mut().for_each(|node| node.rest = Rest::Dead),
            Action::Foreign(index) => self.nodes[at(*index)].identifier = 666,
            Action::Address(index, addressed) => self.nodes[at(*index)].addressed = *addressed,
            Action::Lag(index, lag) => self.nodes[at(*index)].lag = *lag,
            Action::Admin(index, state) => self.observe(Observation::Admin(name(at(*index)), *state)),
            Action::Jump(seconds) => {
                self.now += Duration::from_secs(*seconds);
                self.tick();
            }
            Action::Slow(slow) => self.slow = *slow,
            Action::Evidence(index, evidence) => {
                let member = name(at(*index));
                let at = self.now;
                self.observe(Observation::Evidence {
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
        for index in 0..self.nodes.len() {
            self.apply(&Action::Admin(index, AdminState::Ready));
        }
        self.elsewhere.clear();
        self.apply(&Action::Key(Some(leader)));
        self.slow = false;
    }

    /// The first leader may have been of another cluster, and that never changes by itself.
    fn forget_foreign_identity(&mut self) {
        if self
            .state
            .snapshot()
            .system_identifier
            .is_some_and(|known| known != OURS)
        {
            self.observe(Observation::ForgetIdentity);
        }
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

    /// Replay of a node stops, and the primary writes this many bytes.
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
    RestDouble(usize),
    /// The network between the router and the first so many members fails.
    Cut(usize),
    Outage,
    Foreign(usize),
    Address(usize, bool),
    Lag(usize, Option<u64>),
    Admin(usize, AdminState),
    /// The router is frozen for this many seconds.
    Jump(u64),
    Slow(bool),
    Evidence(usize, Evidence),
    Pass(u64),
}

fn calm(size: usize) -> World {
    let mut world = World::new(size, SourceKind::Patroni);
    world.pass(Duration::from_secs(10));
    assert_eq!(world.leader(), Some(("db0".into(), NamedBy::LeaderKey)));
    world
}
