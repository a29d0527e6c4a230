//! The gate of a route: sessions wait here until they can have a server.
//!
//! Today a session waits for one reason only: every candidate has as many sessions as
//! `server.max_connections` allows. If no member is fit for a route, its sessions do not wait: the
//! gate fails fast.
//!
//! Guarantees: first come, first served; a new session never overtakes. A change (a session ended,
//! the topology changed) wakes only the first session, however many wait; when it leaves, the next
//! one has its turn. A session in the middle leaves at once, at no cost for the others. The number
//! of waiting sessions and their time are limited, and waiting takes no thread. No lock is held
//! while a session tries, and no lock is taken within another.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry as Into, Unit};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, timeout};

use super::gauges::{GaugeGuard, RouteLabel, seconds};
use crate::cluster::snapshot::Snapshot;
use crate::config::{Cluster, Route};
use crate::frontend::RefuseReason;
use crate::routing;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

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

/// All gates. A gate lives as long as a listener or a session uses it.
#[derive(Debug, Default)]
pub(super) struct Gates {
    gates: Mutex<HashMap<GateKey, Weak<Gate>>>,
    /// The number of sessions that wait at all gates.
    waiting: Arc<AtomicU32>,
}

/// A route and its cluster. After a reload, a route of the same name may belong to another cluster,
/// while sessions still wait for a server of the old one.
#[derive(Debug, PartialEq, Eq, Hash)]
struct GateKey {
    route: Arc<str>,
    cluster: Arc<str>,
}

impl Gates {
    /// The gate of this route; a new one if there is none.
    pub(super) fn of(&self, route: &Route) -> Arc<Gate> {
        let mut gates = self.lock();
        let key = GateKey {
            route: Arc::clone(&route.name),
            cluster: Arc::clone(&route.cluster),
        };
        if let Some(gate) = gates.get(&key).and_then(Weak::upgrade) {
            return gate;
        }
        gates.retain(|_, gate| gate.strong_count() > 0);
        let gate = Arc::new(Gate::new(Arc::clone(&self.waiting)));
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
        let with_waiting: Vec<Arc<Gate>> = self
            .lock()
            .iter()
            .filter(|(key, _)| key.cluster == *cluster)
            .filter_map(|(_, gate)| gate.upgrade())
            .filter(|gate| gate.waiting() > 0)
            .collect();
        for gate in with_waiting {
            gate.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<GateKey, Weak<Gate>>> {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether sessions of a route can be served at all, by one snapshot.
#[derive(Debug, Clone)]
enum GateState {
    /// A member may serve the route.
    Open,
    /// No member may; clients get this error at once.
    FailFast(Box<ErrorReply>),
}

/// A gate's state, and what it was computed from.
#[derive(Debug)]
struct Computed {
    snapshot: Arc<Snapshot>,
    route: Arc<Route>,
    state: GateState,
}

impl Computed {
    fn new(snapshot: Arc<Snapshot>, route: &Arc<Route>) -> Self {
        let state = match routing::check_available(&snapshot, route) {
            Ok(()) => GateState::Open,
            Err(choice) => GateState::FailFast(Box::new(unavailable(&snapshot, route, &choice))),
        };
        Self {
            snapshot,
            route: Arc::clone(route),
            state,
        }
    }
}

/// One route's gate.
#[derive(Debug)]
pub struct Gate {
    /// Computed once for each snapshot, by the first login that asks.
    state: ArcSwapOption<Computed>,
    /// The number of sessions that wait.
    waiting: AtomicU32,
    /// The same for all gates.
    waiting_anywhere: Arc<AtomicU32>,
    /// The first session holds its permit; the semaphore passes the permit on in order.
    turn: Semaphore,
    /// What the first session waits for.
    changed: Notify,
}

impl Gate {
    fn new(waiting_anywhere: Arc<AtomicU32>) -> Self {
        Self {
            state: ArcSwapOption::empty(),
            waiting: AtomicU32::new(0),
            waiting_anywhere,
            turn: Semaphore::new(1),
            changed: Notify::new(),
        }
    }

    /// Whether a session of `route` can expect a server. The login asks this before authentication,
    /// so that a balancer's check sees the error.
    ///
    /// # Errors
    /// No member may serve the route: 57P03 with the reasons.
    pub(super) fn admits(&self, snapshot: Arc<Snapshot>, route: &Arc<Route>) -> Result<(), ErrorReply> {
        let known = self.state.load_full();
        let is_current = |known: &&Arc<Computed>| {
            Arc::ptr_eq(&known.snapshot, &snapshot) && Arc::ptr_eq(&known.route, route)
        };
        let computed = if let Some(known) = known.as_ref().filter(is_current) {
            Arc::clone(known)
        } else {
            let computed = Arc::new(Computed::new(snapshot, route));
            self.state.store(Some(Arc::clone(&computed)));
            computed
        };
        match &computed.state {
            GateState::Open => Ok(()),
            GateState::FailFast(reply) => Err(ErrorReply::clone(reply)),
        }
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

/// The error if no member may serve the route.
pub(super) fn unavailable(snapshot: &Snapshot, route: &Route, choice: &routing::Choice) -> ErrorReply {
    let (message, hint) = routing::unavailable(snapshot, route, choice);
    ErrorReply::fatal(SqlState::CANNOT_CONNECT_NOW, message).hint(hint)
}

/// The error for a client whose session waited too long, or may not wait.
pub(super) fn busy(cluster: &Cluster, route: &Route, error: QueueError) -> ErrorReply {
    let most = cluster.max_connections;
    let reason = match error {
        QueueError::Timeout => format!(
            "No session ended within {} ms (queue_timeout).",
            route.queue.timeout.as_millis()
        ),
        QueueError::Full if route.queue.most == 0 => {
            "Clients may not wait for a session to end (max_queue is 0).".to_owned()
        }
        QueueError::Full => format!(
            "{} clients already wait for a session to end (max_queue).",
            route.queue.most
        ),
    };
    ErrorReply::fatal(
        SqlState::TOO_MANY_CONNECTIONS,
        format!("every server for {} sessions is full", route.access),
    )
    .hint(format!(
        "The router gives each server at most {most} sessions (server.max_connections). {reason} Try again later, or \
         ask the operator to raise these limits."
    ))
}

/// The metrics of all gates, and of sessions that wait in pools.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    pub(super) length: Family<RouteLabel, Gauge>,
    pub(super) entered: Family<RouteLabel, Counter>,
    pub(super) full: Family<RouteLabel, Counter>,
    pub(super) timeouts: Family<RouteLabel, Counter>,
    pub(super) wait_seconds: Histogram,
}

impl Metrics {
    pub(super) fn register(into: &mut Into) -> Self {
        let metrics = Self {
            length: Family::default(),
            entered: Family::default(),
            full: Family::default(),
            timeouts: Family::default(),
            wait_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
        };
        into.register(
            "queue_length",
            "Sessions that wait now for a place on a server",
            metrics.length.clone(),
        );
        into.register(
            "queue_entered",
            "Sessions that had to wait for a place on a server",
            metrics.entered.clone(),
        );
        into.register(
            "queue_full",
            "Sessions refused because max_queue sessions waited already",
            metrics.full.clone(),
        );
        into.register(
            "queue_timeouts",
            "Sessions that got no place on a server within queue_timeout",
            metrics.timeouts.clone(),
        );
        into.register_with_unit(
            "queue_wait",
            "How long sessions waited, whatever the result",
            Unit::Seconds,
            metrics.wait_seconds.clone(),
        );
        metrics
    }
}

#[cfg(any(test, feature = "instructions"))]
#[path = "gate_scene.rs"]
pub(crate) mod gate_scene;
#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
