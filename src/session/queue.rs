//! Sessions that wait for a place on a server, where `server.max_connections` bounds how many it has.
//!
//! One queue for each route, first come, first served: a newcomer never overtakes. Whoever is first tries again when a
//! session of the cluster ends and when the topology changes. Waiting is bounded in number and time, takes no thread,
//! and ends when the client hangs up or the router closes.

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry as Into, Unit};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::metrics::{GaugeGuard, RouteLabel, seconds};
use crate::cluster::ClusterHandle;
use crate::config::{Cluster, Route};
use crate::frontend::ClientStream;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// Why waiting came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueueError {
    /// As many wait as may.
    Full,
    Timeout,
    HungUp,
    Closing,
}

/// All queues; an entry is there only while somebody waits.
#[derive(Debug, Default)]
pub(super) struct Queues(Mutex<HashMap<Arc<str>, Queue>>);

#[derive(Debug)]
struct Queue {
    cluster: Arc<str>,
    waiting: VecDeque<Arc<Notify>>,
}

/// A place in a queue; it is left when this is dropped, and the next one is told.
#[derive(Debug)]
struct QueuePosition<'a> {
    queues: &'a Queues,
    route: Arc<str>,
    client_address: Arc<Notify>,
}

enum Entered<'a, T> {
    /// At once.
    Done(T),
    Waits(QueuePosition<'a>),
    Full,
}

impl Queues {
    /// A session of the cluster has ended, or has not come about.
    pub(super) fn freed(&self, cluster: &Arc<str>) {
        for queue in self.lock().values() {
            if queue.cluster == *cluster
                && let Some(first) = queue.waiting.front()
            {
                first.notify_one();
            }
        }
    }

    /// Tries at once where nobody of the route waits. `attempt` must not give up a seat: that comes back here.
    fn enter<T>(&self, route: &Route, attempt: impl FnOnce() -> Option<T>) -> Entered<'_, T> {
        let mut queues = self.lock();
        let length = queues.get(&route.name).map_or(0, |queue| queue.waiting.len());
        if length == 0
            && let Some(done) = attempt()
        {
            return Entered::Done(done);
        }
        if length >= route.queue.most as usize {
            return Entered::Full;
        }
        let client_address = Arc::new(Notify::new());
        let queue = queues.entry(Arc::clone(&route.name)).or_insert_with(|| Queue {
            cluster: Arc::clone(&route.cluster),
            waiting: VecDeque::new(),
        });
        queue.waiting.push_back(Arc::clone(&client_address));
        Entered::Waits(QueuePosition {
            queues: self,
            route: Arc::clone(&route.name),
            client_address,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Queue>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueuePosition<'_> {
    /// Tries, if it is this one's turn.
    fn attempt<T>(&self, attempt: impl FnOnce() -> Option<T>) -> Option<T> {
        let queues = self.queues.lock();
        let first = queues.get(&self.route)?.waiting.front()?;
        // Under the lock: nobody comes in between.
        if Arc::ptr_eq(first, &self.client_address) {
            attempt()
        } else {
            None
        }
    }
}

impl Drop for QueuePosition<'_> {
    fn drop(&mut self) {
        let mut queues = self.queues.lock();
        let Some(queue) = queues.get_mut(&self.route) else {
            return;
        };
        queue
            .waiting
            .retain(|client_address| !Arc::ptr_eq(client_address, &self.client_address));
        match queue.waiting.front() {
            // There may be more than one seat.
            Some(first) => first.notify_one(),
            None => {
                queues.remove(&self.route);
            }
        }
    }
}

/// What waiting needs to know besides whom for.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    pub(super) queues: &'a Queues,
    pub(super) cluster: &'a ClusterHandle,
    pub(super) route: &'a Route,
    pub(super) client: &'a ClientStream,
    pub(super) closing: &'a CancellationToken,
    pub(super) metrics: &'a Metrics,
}

impl Waiting<'_> {
    /// What `attempt` gives, once it gives something and it is this one's turn; and how long that took.
    pub(super) async fn until<T>(
        &self,
        mut attempt: impl FnMut() -> Option<T>,
    ) -> Result<(T, Duration), QueueError> {
        let label = RouteLabel {
            route: self.route.name.to_string(),
        };
        // Before the first attempt, so that no change after it is missed.
        let mut snapshots = self.cluster.subscribe();
        let place = match self.queues.enter(self.route, &mut attempt) {
            Entered::Done(done) => return Ok((done, Duration::ZERO)),
            Entered::Full => {
                self.metrics.full.get_or_create(&label).inc();
                return Err(QueueError::Full);
            }
            Entered::Waits(place) => place,
        };
        let began = Instant::now();
        self.metrics.entered.get_or_create(&label).inc();
        let gauge = GaugeGuard::new(self.metrics.length.get_or_create(&label).clone());
        let deadline = began + self.route.queue.timeout;
        let mut hung_up = pin!(self.client.hung_up());
        let outcome = loop {
            tokio::select! {
                () = place.client_address.notified() => {}
                Ok(()) = snapshots.changed() => {}
                () = &mut hung_up => break Err(QueueError::HungUp),
                () = self.closing.cancelled() => break Err(QueueError::Closing),
                () = sleep_until(deadline) => {
                    self.metrics.timeouts.get_or_create(&label).inc();
                    break Err(QueueError::Timeout);
                }
            }
            if let Some(done) = place.attempt(&mut attempt) {
                break Ok((done, began.elapsed()));
            }
        };
        self.metrics.wait_seconds.observe(seconds(began.elapsed()));
        drop((place, gauge));
        outcome
    }
}

/// What a client is told that waited for nothing, or that may not wait.
pub(super) fn busy(cluster: &Cluster, route: &Route, fault: QueueError) -> ErrorReply {
    let most = cluster.max_connections;
    let waited = match fault {
        QueueError::Timeout => format!(
            "None has ended one within {} ms (queue_timeout).",
            route.queue.timeout.as_millis()
        ),
        _ if route.queue.most == 0 => "Nobody may wait for one (max_queue).".to_owned(),
        _ => format!("{} clients wait for one already (max_queue).", route.queue.most),
    };
    ErrorReply::fatal(
        SqlState::TOO_MANY_CONNECTIONS,
        format!("every server for {} sessions has as many as it may have", route.access),
    )
    .hint(format!(
        "The connection manager gives a server at most {most} sessions (server.max_connections). {waited} Try again later."
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

#[cfg(test)]
mod tests {
    use super::*;

    fn route(most: u32) -> Route {
        let mut route = Route::read_write("read-write", "main");
        route.queue.most = most;
        route
    }

    fn waits<'a>(queues: &'a Queues, route: &Route) -> QueuePosition<'a> {
        match queues.enter(route, || None::<()>) {
            Entered::Waits(place) => place,
            Entered::Done(()) | Entered::Full => panic!("it waits"),
        }
    }

    fn is_told(place: &QueuePosition<'_>) -> bool {
        use std::future::Future;
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        pin!(place.client_address.notified())
            .poll(&mut context)
            .is_ready()
    }

    #[test]
    fn first_come_first_served_and_nobody_overtakes() {
        let (queues, route) = (Queues::default(), route(3));
        assert!(matches!(queues.enter(&route, || Some(1)), Entered::Done(1)));
        let [first, second, third] = [0; 3].map(|_| waits(&queues, &route));
        assert!(
            matches!(queues.enter(&route, || Some(1)), Entered::Full),
            "though it could be served"
        );
        queues.freed(&"other".into());
        assert!(!is_told(&first));
        queues.freed(&"main".into());
        assert!(is_told(&first) && !is_told(&second));
        assert_eq!(second.attempt(|| Some(1)), None, "not its turn");
        assert_eq!(first.attempt(|| Some(1)), Some(1));
        drop(first);
        assert!(is_told(&second) && !is_told(&third), "there may be another seat");
        // One that leaves from the middle costs nobody a turn.
        let fourth = waits(&queues, &route);
        drop(third);
        drop(second);
        assert!(is_told(&fourth));
        assert_eq!(fourth.attempt(|| Some(1)), Some(1));
        drop(fourth);
        assert!(queues.lock().is_empty(), "nothing is left behind");
        assert!(matches!(queues.enter(&route, || Some(1)), Entered::Done(1)));
    }

    #[test]
    fn without_a_queue_only_a_free_seat_counts() {
        let (queues, route) = (Queues::default(), route(0));
        assert!(matches!(queues.enter(&route, || None::<u8>), Entered::Full));
        assert!(matches!(queues.enter(&route, || Some(1)), Entered::Done(1)));
        assert!(queues.lock().is_empty());
    }
}
