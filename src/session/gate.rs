//! The gate of a route: sessions wait here until they can have a server.
//!
//! A session waits for one of two reasons. The gate is shut ([`position`]): no member may serve the
//! route, which a failover may end, or an operator has paused it. Its client is then held in a line
//! ([`line`]), limited by `hold`. Or every candidate has as many sessions as
//! `server.max_connections` allows: limited by `queue_timeout` and `max_queue`. If no member is fit
//! and waiting is no use, the gate fails fast.
//!
//! Guarantees: nothing that a client can cause shuts the gate, and while a member may serve only a
//! pause does. First come, first served, among the held those of one pool; a new session never
//! overtakes. A change (a session ended, the topology changed) wakes only the first session,
//! however many wait; when it leaves, the next one has its turn. A session in the middle leaves at
//! once, at no cost for the others. The number of waiting sessions and their time are limited, and
//! waiting takes no thread. No lock is held while a session tries, and no lock is taken within
//! another, but the line's, while a position is computed.

mod line;
mod metrics;
mod position;
mod replies;
mod seen;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry as Into;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use self::line::Line;
pub(super) use self::line::{Group, HeldPlace, ReleasePass};
pub(super) use self::metrics::{HoldMetrics, Metrics};
use self::position::{GateMemory, Position, ShutReason};
use self::replies::not_released;
pub(super) use self::replies::{busy, hears, unavailable};
use super::counts::{AllCounts, RouteCounts};
use super::gauges::{GaugeGuard, RouteLabel, seconds};
use super::held_routes::HoldCause;
use super::paused::PausedRoutes;
use crate::cluster::snapshot::Snapshot;
use crate::config::Route;
use crate::frontend::RefuseReason;
use crate::wire::message::ErrorReply;

/// Why a session got no pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueueError {
    /// As many sessions wait as `max_queue` allows.
    Full,
    /// `queue_timeout` has passed.
    Timeout,
}

impl QueueError {
    /// For metrics.
    pub(super) fn reason(self) -> RefuseReason {
        match self {
            Self::Full => RefuseReason::QueueFull,
            Self::Timeout => RefuseReason::QueueTimeout,
        }
    }
}

/// A request of which so many bytes have come is read no further while clients are held.
const MOST_READ: usize = 64 * 1024;

/// All gates. A gate lives as long as a listener or a session uses it.
#[derive(Debug, Default)]
pub(super) struct Gates {
    by_route: Mutex<HashMap<GateKey, Weak<Gate>>>,
    /// The number of sessions that wait at all gates.
    waiting: Arc<AtomicU32>,
    paused: Arc<PausedRoutes>,
    hold: HoldMetrics,
    counts: AllCounts,
    /// The process before this one has served clients.
    has_served: AtomicBool,
}

/// What a gate has of its limits.
#[derive(Debug)]
pub struct GateLoad {
    /// As the configuration has it now.
    pub route: Arc<Route>,
    pub held: usize,
    /// Of the requests of these clients.
    pub held_bytes: u64,
    /// Sessions that wait for a seat on a member.
    pub waiting: u32,
}

/// A route and its cluster. After a reload, a route of the same name may belong to another cluster,
/// while sessions still wait for a server of the old one.
#[derive(Debug, PartialEq, Eq, Hash)]
struct GateKey {
    route: Arc<str>,
    cluster: Arc<str>,
}

impl Gates {
    /// The gate of this route, which from now on is as given; a new one if there is none.
    pub(super) fn of(&self, route: &Arc<Route>) -> Arc<Gate> {
        let mut gates = self.lock();
        let key = GateKey {
            route: Arc::clone(&route.name),
            cluster: Arc::clone(&route.cluster),
        };
        if let Some(gate) = gates.get(&key).and_then(Weak::upgrade) {
            if !Arc::ptr_eq(&gate.route.load(), route) {
                gate.route.store(Arc::clone(route));
                // Other limits count for clients that are held already.
                self.paused.expire();
            }
            return gate;
        }
        gates.retain(|_, gate| gate.strong_count() > 0);
        let gate = Arc::new(Gate::new(route, self));
        gates.insert(key, Arc::downgrade(&gate));
        gate
    }

    /// A seat in the cluster is free: a session has ended, or did not begin. Takes no lock while no
    /// session waits.
    pub(super) fn freed(&self, cluster: &Arc<str>) {
        // A session counts as waiting before it looks for a seat. One that is not counted here has
        // not looked yet, and will see the free seat: the lock of the seats orders the two.
        if self.waiting.load(Ordering::Acquire) == 0 {
            return;
        }
        for gate in self.of_cluster(cluster) {
            if gate.waiting() > 0 {
                gate.changed.notify_one();
            }
        }
    }

    /// How many clients each gate holds, and how many sessions wait there for a seat.
    pub(super) fn loads(&self) -> Vec<GateLoad> {
        let gates: Vec<Arc<Gate>> = self.lock().values().filter_map(Weak::upgrade).collect();
        let load = |gate: &Arc<Gate>| {
            let (held, held_bytes) = gate.held();
            GateLoad {
                route: gate.route.load_full(),
                held,
                held_bytes,
                waiting: gate.waiting(),
            }
        };
        gates.iter().map(load).collect()
    }

    fn of_cluster(&self, cluster: &str) -> Vec<Arc<Gate>> {
        self.lock()
            .iter()
            .filter(|(key, _)| &*key.cluster == cluster)
            .filter_map(|(_, gate)| gate.upgrade())
            .collect()
    }

    pub(super) fn paused(&self) -> &Arc<PausedRoutes> {
        &self.paused
    }

    /// Clients are held although this process has not seen a server: it goes on with the work of
    /// another one. To be called before there are gates.
    pub(super) fn assume_served(&self) {
        self.has_served.store(true, Ordering::Release);
    }

    pub(super) fn register(&self, into: &mut Into) {
        self.hold.register(into);
        self.counts.register(into);
    }

    /// Opens and shuts the gates of one cluster as its snapshots and the pauses of its routes say,
    /// until `stop`, or until the cluster is removed.
    pub(super) async fn follow(
        &self,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        stop: CancellationToken,
    ) {
        let mut pauses = self.paused.subscribe();
        loop {
            pauses.borrow_and_update();
            let snapshot = Arc::clone(&snapshots.borrow_and_update());
            // The end of a pause, or of the time for which clients are held.
            let mut next_end = self.paused.all().values().map(|pause| pause.until).min();
            for gate in self.of_cluster(&snapshot.cluster) {
                gate.refresh(|| Arc::clone(&snapshots.borrow()));
                next_end = next_end.into_iter().chain(gate.shut_until()).min();
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep_until(next_end.unwrap_or_else(Instant::now)), if next_end.is_some() => {
                    self.paused.expire();
                }
                _ = pauses.changed() => {}
                changed = snapshots.changed() => if changed.is_err() { return },
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<GateKey, Weak<Gate>>> {
        self.by_route.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A gate's position, and what it was computed from.
#[derive(Debug)]
struct Computed {
    snapshot: Arc<Snapshot>,
    route: Arc<Route>,
    /// Until when the route is paused.
    paused: Option<Instant>,
    position: Position,
    /// Since when the gate has had this kind of position.
    since: Instant,
    /// Why clients are held, if they are: the first cause counts. And how many were held before.
    hold: Option<(HoldCause, u64)>,
}

impl Computed {
    /// What it was computed from is still so.
    fn is_of(
        &self,
        snapshot: &Arc<Snapshot>,
        route: &Arc<Route>,
        paused: Option<Instant>,
        now: Instant,
    ) -> bool {
        let is_over = matches!(self.position, Position::Shut { until, .. } if until <= now);
        Arc::ptr_eq(&self.snapshot, snapshot)
            && Arc::ptr_eq(&self.route, route)
            && self.paused == paused
            && !is_over
    }
}

/// One route's gate.
#[derive(Debug)]
pub struct Gate {
    /// As the configuration has it now.
    route: ArcSwap<Route>,
    label: RouteLabel,
    state: ArcSwapOption<Computed>,
    /// Held while a position is computed.
    memory: Mutex<GateMemory>,
    is_shut: AtomicBool,
    /// By an operator.
    is_paused: AtomicBool,
    /// The clients that are held.
    line: Line,
    hold: HoldMetrics,
    counts: Arc<RouteCounts>,
    paused: Arc<PausedRoutes>,
    /// The number of sessions that wait for a seat.
    waiting: AtomicU32,
    /// The same for all gates.
    waiting_anywhere: Arc<AtomicU32>,
    /// The first session holds its permit; the semaphore passes the permit on in order.
    turn: Semaphore,
    /// What the first session waits for.
    changed: Notify,
}

impl Gate {
    fn new(route: &Arc<Route>, gates: &Gates) -> Self {
        let label = RouteLabel {
            route: route.name.to_string(),
        };
        gates.hold.show(&label);
        Self {
            route: ArcSwap::new(Arc::clone(route)),
            label,
            state: ArcSwapOption::empty(),
            memory: Mutex::new(GateMemory {
                has_served: gates.has_served.load(Ordering::Acquire),
                lost: None,
            }),
            is_shut: AtomicBool::new(false),
            is_paused: AtomicBool::new(false),
            line: Line::default(),
            hold: gates.hold.clone(),
            counts: gates.counts.of(&route.name),
            paused: Arc::clone(&gates.paused),
            waiting: AtomicU32::new(0),
            waiting_anywhere: Arc::clone(&gates.waiting),
            turn: Semaphore::new(1),
            changed: Notify::new(),
        }
    }

    /// What the route's sessions count.
    pub(super) fn counts(&self) -> &Arc<RouteCounts> {
        &self.counts
    }

    /// Whether a session of `route` can expect a server. The login asks this before authentication,
    /// so that a balancer's check sees the error.
    ///
    /// # Errors
    /// No member may serve the route, and its logins are not held, or the router hears nothing of
    /// the cluster any more: 57P03 with the reasons.
    pub(super) fn admits(
        &self,
        load: impl Fn() -> Arc<Snapshot>,
        route: &Arc<Route>,
    ) -> Result<(), ErrorReply> {
        self.refresh(&load);
        match self.position(Instant::now()) {
            Position::Open => hears(&load(), route),
            Position::Shut {
                why: ShutReason::Paused,
                ..
            } => Ok(()),
            Position::Shut { .. } if route.hold.logins => Ok(()),
            Position::Shut { error, .. } | Position::FailFast(error) => Err(*error),
        }
    }

    /// Computes the position again if anything has changed: by the route as the configuration has
    /// it now, also for a session that began with another one. `load`: the newest snapshot.
    pub(super) fn refresh(&self, load: impl Fn() -> Arc<Snapshot>) {
        let route = &self.route.load_full();
        let now = Instant::now();
        let paused = self.paused.until(&route.name, now);
        let is_current = |known: &Computed| known.is_of(&load(), route, paused, now);
        if self.state.load().as_deref().is_some_and(is_current) {
            return;
        }
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        // Loaded under the lock: an older one never replaces a newer one.
        let snapshot = load();
        let position = position::evaluate(&mut memory, &snapshot, route, paused, now);
        let cause = self.cause(&position, &snapshot, route);
        let before = self.state.load_full();
        let same = before.as_ref().filter(|known| known.position.is_like(&position));
        let is_changed = same.is_none();
        // Clients that are held do not begin to wait anew where the reason becomes another one.
        let kind = std::mem::discriminant(&position);
        let begun = before
            .as_ref()
            .filter(|known| std::mem::discriminant(&known.position) == kind);
        let since = begun.map_or(now, |known| known.since);
        let by_operator = matches!(
            position,
            Position::Shut {
                why: ShutReason::Paused,
                ..
            }
        );
        self.is_paused.store(by_operator, Ordering::Release);
        let (is_open, is_shut) = (
            matches!(position, Position::Open),
            matches!(position, Position::Shut { .. }),
        );
        let change = if is_changed {
            self.change(before.as_deref(), &position, cause.as_ref(), now)
        } else {
            None
        };
        let until = position.until();
        let known = same.and_then(|known| known.hold.clone());
        let hold = known.or_else(|| Some((cause?, self.line.entered())));
        self.state.store(Some(Arc::new(Computed {
            snapshot,
            route: Arc::clone(route),
            paused,
            position,
            since,
            hold,
        })));
        self.is_shut.store(is_shut, Ordering::Release);
        drop(memory);
        if let Some(change) = change {
            self.paused.listener.hear(|| change);
        }
        if is_open {
            self.line.wake_first();
        } else if is_changed || !is_shut || before.is_some_and(|known| known.position.until() != until) {
            self.line.wake_all();
        }
    }

    /// Until when clients are held at most, if they are.
    fn shut_until(&self) -> Option<Instant> {
        self.state.load().as_deref()?.position.until()
    }

    fn computed(&self) -> Option<Arc<Computed>> {
        self.state.load_full()
    }

    /// Where the gate stands, by its last look.
    fn position(&self, now: Instant) -> Position {
        match self.state.load().as_deref() {
            None => Position::Open,
            // A pause that is over.
            Some(Computed {
                position:
                    Position::Shut {
                        until,
                        why: ShutReason::Paused,
                        ..
                    },
                ..
            }) if *until <= now => Position::Open,
            Some(Computed {
                position: Position::Shut { until, error, .. },
                ..
            }) if *until <= now => Position::FailFast(error.clone()),
            Some(known) => known.position.clone(),
        }
    }

    /// A request that finds the session without a server must ask for a place: the gate is shut, or
    /// others of its group that came before are still held.
    pub(super) fn must_wait(&self, group: Group) -> bool {
        self.is_shut.load(Ordering::Acquire) || self.line.has(group)
    }

    /// An operator has paused the route: also a session that has a connection begins nothing new.
    pub(super) fn is_paused(&self) -> bool {
        self.is_paused.load(Ordering::Acquire)
    }

    /// Clients are held.
    pub(super) fn is_shut(&self) -> bool {
        matches!(self.position(Instant::now()), Position::Shut { .. })
    }

    /// A client that logs in now is held.
    pub(super) fn holds_logins(&self, load: impl Fn() -> Arc<Snapshot>, route: &Arc<Route>) -> bool {
        self.refresh(load);
        let has_room = route
            .hold
            .max_clients
            .is_none_or(|most| self.line.length() < most as usize);
        match self.position(Instant::now()) {
            Position::Shut { why, .. } => has_room && (route.hold.logins || why == ShutReason::Paused),
            Position::Open | Position::FailFast(_) => false,
        }
    }

    /// Clients are held, and a request of which so many bytes are read is not to be read further:
    /// it is a long one, or those that are held have reached `hold.max_bytes`.
    pub(super) fn keeps_unread(&self, read: usize) -> bool {
        self.is_shut.load(Ordering::Acquire)
            && (read >= MOST_READ
                || !self.line.is_empty() && self.line.bytes() >= self.route.load().hold.max_bytes)
    }

    /// A place for a client whose request has this many bytes.
    ///
    /// # Errors
    /// `hold.max_clients` are held already: the answer for the client.
    pub(super) fn hold(self: &Arc<Self>, group: Group, bytes: u64) -> Result<HeldPlace, ErrorReply> {
        HeldPlace::new(self, group, bytes)
    }

    /// How many clients are held, and the bytes of their requests.
    pub(super) fn held(&self) -> (usize, u64) {
        (self.line.length(), self.line.bytes())
    }

    /// The error if too many clients are held.
    fn too_many(&self) -> ErrorReply {
        let route = self.route.load();
        let error = match self.position(Instant::now()) {
            Position::Shut { error, .. } | Position::FailFast(error) => *error,
            Position::Open => not_released(&route),
        };
        position::too_many(&route, route.hold.max_clients.unwrap_or(u32::MAX), &error)
    }

    /// How long a client that was held waits for its turn after the gate has opened, and the error
    /// at the end.
    fn release_limit(&self, now: Instant) -> (Instant, ErrorReply) {
        let route = self.route.load();
        let since = self.state.load().as_deref().map_or(now, |known| known.since);
        (since + route.queue.timeout, not_released(&route))
    }

    /// Waits until it is this session's turn and `attempt` succeeds. Returns the result of
    /// `attempt` and the time it took to get it. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// A limit of the route's queue is reached.
    pub(super) async fn pass<T>(
        &self,
        route: &Route,
        subscribe: impl Fn() -> watch::Receiver<Arc<Snapshot>>,
        metrics: &Metrics,
        mut attempt: impl FnMut() -> Option<T>,
    ) -> Result<(T, Duration), QueueError> {
        if self.waiting() == 0
            && let Some(done) = attempt()
        {
            return Ok((done, Duration::ZERO));
        }
        let label = RouteLabel {
            route: route.name.to_string(),
        };
        let Some(wait) = self.wait(route.queue.most, metrics, &label) else {
            metrics.full.get_or_create(&label).inc();
            return Err(QueueError::Full);
        };
        metrics.entered.get_or_create(&label).inc();
        let first = timeout(route.queue.timeout, self.first(subscribe, attempt)).await;
        match first {
            Ok(done) => Ok((done, wait.began.elapsed())),
            Err(_elapsed) => {
                metrics.timeouts.get_or_create(&label).inc();
                Err(QueueError::Timeout)
            }
        }
    }

    /// Waits for this session's turn, and tries until `attempt` succeeds. Cancel safe: the turn
    /// goes to the next session.
    async fn first<T>(
        &self,
        subscribe: impl Fn() -> watch::Receiver<Arc<Snapshot>>,
        mut attempt: impl FnMut() -> Option<T>,
    ) -> T {
        let _turn = self.turn.acquire().await;
        // Before the first attempt, so that no change after it is missed.
        let mut snapshots = subscribe();
        loop {
            // `Notify` keeps a change that came earlier; at worst one attempt is unnecessary.
            if let Some(done) = attempt() {
                return done;
            }
            tokio::select! {
                () = self.changed.notified() => {}
                Ok(()) = snapshots.changed() => {}
            }
        }
    }

    /// A place among the sessions that wait; `None` if `most` wait already.
    fn wait<'a>(&'a self, most: u32, metrics: &'a Metrics, label: &RouteLabel) -> Option<Wait<'a>> {
        let counted = self
            .waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |waiting| {
                (waiting < most).then(|| waiting + 1)
            });
        counted.ok()?;
        self.waiting_anywhere.fetch_add(1, Ordering::AcqRel);
        Some(Wait {
            gate: self,
            began: Instant::now(),
            duration: &metrics.wait_seconds,
            _length: GaugeGuard::new(metrics.length.get_or_create(label).clone()),
        })
    }

    fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Acquire)
    }
}

/// A place among the sessions that wait; given back when dropped.
struct Wait<'a> {
    gate: &'a Gate,
    began: Instant,
    duration: &'a Histogram,
    _length: GaugeGuard,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.gate.waiting.fetch_sub(1, Ordering::AcqRel);
        self.gate.waiting_anywhere.fetch_sub(1, Ordering::AcqRel);
        self.duration.observe(seconds(self.began.elapsed()));
    }
}

#[cfg(any(test, feature = "instructions"))]
#[path = "gate_scene.rs"]
pub(crate) mod gate_scene;
#[cfg(test)]
#[path = "gate/hold_tests.rs"]
mod hold_tests;
#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
