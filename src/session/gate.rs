//! The gate of a route: where a session waits until a server may be given to it.
//!
//! Today a session waits for one reason: every candidate has as many sessions as `server.max_connections` allows. A route
//! for which no member is fit does not wait: its gate fails fast.
//!
//! Guarantees: first come, first served; a newcomer never overtakes. A change (a session has ended, the topology is
//! another one) wakes one session, the first, however many wait; when that one leaves, the next one has its turn. A
//! session in the middle leaves at once and costs the others nothing. Waiting is limited in number and time, and takes
//! no thread. No lock is held while a session tries, and none is taken within another.

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

use super::metrics::{GaugeGuard, RouteLabel, seconds};
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
    /// `queue_timeout` is over.
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
pub(super) struct Gates(Mutex<HashMap<Arc<str>, Weak<Gate>>>);

impl Gates {
    /// The gate of this route, made where there is none.
    pub(super) fn of(&self, route: &Route) -> Arc<Gate> {
        let mut gates = self.lock();
        // A route of the same name may be another cluster's after a reload.
        let found = gates.get(&route.name).and_then(Weak::upgrade);
        if let Some(gate) = found.filter(|gate| gate.cluster == route.cluster) {
            return gate;
        }
        gates.retain(|_, gate| gate.strong_count() > 0);
        let gate = Arc::new(Gate::new(Arc::clone(&route.cluster)));
        gates.insert(Arc::clone(&route.name), Arc::downgrade(&gate));
        gate
    }

    /// A session of the cluster has ended, or did not come about.
    pub(super) fn freed(&self, cluster: &Arc<str>) {
        let waited_at: Vec<Arc<Gate>> = self
            .lock()
            .values()
            .filter_map(Weak::upgrade)
            .filter(|gate| gate.cluster == *cluster && gate.waiting() > 0)
            .collect();
        for gate in waited_at {
            gate.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Weak<Gate>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether sessions of a route can be served at all, by one snapshot.
#[derive(Debug, Clone)]
enum GateState {
    /// A member may serve the route.
    Open,
    /// No member may, and the client is told so at once.
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
        let state = match routing::anybody(&snapshot, route) {
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
    cluster: Arc<str>,
    /// Computed once for each snapshot, by the first login that asks.
    state: ArcSwapOption<Computed>,
    /// Sessions that wait.
    waiting: AtomicU32,
    /// The session that holds it is the first; the semaphore hands it on in order.
    turn: Semaphore,
    /// What the first session waits for.
    changed: Notify,
}

impl Gate {
    fn new(cluster: Arc<str>) -> Self {
        Self {
            cluster,
            state: ArcSwapOption::empty(),
            waiting: AtomicU32::new(0),
            turn: Semaphore::new(1),
            changed: Notify::new(),
        }
    }

    /// Whether a session of `route` can hope for a server. Asked before authentication, so that a balancer's check sees
    /// the error.
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

    /// What `attempt` gives, once it gives something and it is this session's turn; and how long that took. Dropping the
    /// future leaves the queue.
    ///
    /// # Errors
    /// The limits of the route's queue.
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

    /// Waits for the turn, and tries until `attempt` gives something. Cancel safe: the turn goes to the next session.
    async fn first<T>(
        &self,
        subscribe: impl Fn() -> watch::Receiver<Arc<Snapshot>>,
        mut attempt: impl FnMut() -> Option<T>,
    ) -> T {
        let _turn = self.turn.acquire().await;
        // Before the first attempt, so that no change after it is missed.
        let mut snapshots = subscribe();
        loop {
            // A change that came before is kept by `Notify`; at worst one attempt is made in vain.
            if let Some(done) = attempt() {
                return done;
            }
            tokio::select! {
                () = self.changed.notified() => {}
                Ok(()) = snapshots.changed() => {}
            }
        }
    }

    /// A place among the sessions that wait, of which there are at most `most`.
    fn wait<'a>(&'a self, most: u32, metrics: &'a Metrics, label: &RouteLabel) -> Option<Wait<'a>> {
        let counted = self
            .waiting
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |waiting| {
                (waiting < most).then(|| waiting + 1)
            });
        counted.ok().map(|_| Wait {
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
        self.duration.observe(seconds(self.began.elapsed()));
    }
}

/// The error where no member may serve the route.
pub(super) fn unavailable(snapshot: &Snapshot, route: &Route, choice: &routing::Choice) -> ErrorReply {
    let (message, hint) = routing::unavailable(snapshot, route, choice);
    ErrorReply::fatal(SqlState::CANNOT_CONNECT_NOW, message).hint(hint)
}

/// The error of a client whose session waited in vain, or may not wait.
pub(super) fn busy(cluster: &Cluster, route: &Route, error: QueueError) -> ErrorReply {
    let most = cluster.max_connections;
    let waited = match error {
        QueueError::Timeout => format!(
            "No session ended within {} ms (queue_timeout).",
            route.queue.timeout.as_millis()
        ),
        QueueError::Full if route.queue.most == 0 => {
            "No client may wait for one to end (max_queue).".to_owned()
        }
        QueueError::Full => format!(
            "{} clients wait for one to end already (max_queue).",
            route.queue.most
        ),
    };
    ErrorReply::fatal(
        SqlState::TOO_MANY_CONNECTIONS,
        format!("every server for {} sessions has as many as it may have", route.access),
    )
    .hint(format!(
        "The router gives each server at most {most} sessions (server.max_connections). {waited} Try again later."
    ))
}

/// Of all queues.
#[derive(Debug)]
pub(super) struct Metrics {
    length: Family<RouteLabel, Gauge>,
    entered: Family<RouteLabel, Counter>,
    full: Family<RouteLabel, Counter>,
    timeouts: Family<RouteLabel, Counter>,
    wait_seconds: Histogram,
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
            "Sessions refused because as many waited as may",
            metrics.full.clone(),
        );
        into.register(
            "queue_timeouts",
            "Sessions that waited for a place on a server, and got none in time",
            metrics.timeouts.clone(),
        );
        into.register_with_unit(
            "queue_wait",
            "How long sessions waited, however it ended",
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
