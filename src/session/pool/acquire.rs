//! The wait of a session for a server connection of its pool.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::Instant;

use super::connection::{PooledConnection, WorkerId};
use super::inner::Found;
use super::key::ConnectionKey;
use super::permit::OpenPermit;
use super::pool::Pool;
use super::waiters::{Slot, Ticket, Waiter};
use super::work::Work;
use crate::backend::ServerStream;
use crate::cluster::snapshot::MemberName;
use crate::routing::Choice;
use crate::session::gate::QueueError;
use crate::session::gauges::GaugeGuard;
use crate::session::stream::SessionStream;

/// What a session asks a pool for.
#[derive(Debug, Clone)]
pub(in crate::session) struct Want {
    /// From [`Pool::intern`].
    pub(in crate::session) key: Arc<ConnectionKey>,
    /// The client's address; `None` on a Unix socket.
    pub(in crate::session) client: Option<IpAddr>,
    /// The worker of the session.
    pub(in crate::session) worker: WorkerId,
    /// Members where this session has failed to open a connection; it gets none there.
    pub(in crate::session) tried: Vec<MemberName>,
    /// `custom_settings: close`: the custom names that the session has used. A connection with
    /// others does not serve it, and is closed. `None`: any serves it.
    pub(in crate::session) custom_names: Option<Arc<[Box<str>]>>,
}

impl Want {
    /// The connection has custom names that the session never used, and the operator wants them
    /// kept apart.
    pub(super) fn is_foreign<S: SessionStream>(&self, connection: &PooledConnection<S>) -> bool {
        let names = &connection.state.custom_names;
        self.custom_names
            .as_ref()
            .is_some_and(|mine| names.iter().any(|name| !mine.contains(name)))
    }
}

/// What a session gets.
#[derive(Debug)]
pub(in crate::session) enum Grant<S: SessionStream = ServerStream> {
    /// It is quiet, and driven by the session's worker unless it has TLS.
    Connection(Box<PooledConnection<S>>),
    /// The session opens a connection itself, to this member.
    Open(OpenPermit<S>),
}

/// Why a session gets nothing.
#[derive(Debug)]
pub(in crate::session) enum NoLease {
    /// A limit of the queue is reached.
    Queue(QueueError),
    /// No member may serve the route, or the session has tried all that may. With the reasons.
    NoCandidate(Box<Choice>),
}

/// What a session's wait comes to.
pub(in crate::session) type Acquired<S = ServerStream> = Result<Grant<S>, NoLease>;

/// Something that a waiting session learns.
#[derive(Debug)]
pub(in crate::session) enum Waited<S: SessionStream = ServerStream> {
    /// It has waited for `wait_notify` and goes on waiting. At most once.
    Notice,
    Done(Acquired<S>),
}

/// A session's wait; see [`Pool::acquire`]. As a future it skips the notice. Dropping it leaves the
/// queue and gives back what was granted.
#[derive(Debug)]
pub(in crate::session) struct Acquire<S: SessionStream = ServerStream> {
    pool: Arc<Pool<S>>,
    want: Want,
    /// Since its first poll: when the session came, and its place among those that wait.
    place: Option<(Ticket, Instant)>,
    /// It has had its notice.
    is_notified: bool,
    /// `None` before the first poll, and at the end.
    wait: Option<Wait<S>>,
}

/// A place in the queue.
#[derive(Debug)]
struct Wait<S: SessionStream> {
    ticket: Ticket,
    /// When the session came.
    since: Instant,
    /// When this wait began.
    begun: Instant,
    slot: Arc<Slot<S>>,
    _length: GaugeGuard,
}

/// What a session finds when it comes.
enum Entered<S: SessionStream> {
    Done(Acquired<S>),
    Waits {
        ticket: Ticket,
        /// When it came.
        since: Instant,
        /// Its notice was due while it did not wait.
        is_notice_due: bool,
    },
}

impl<S: SessionStream> Acquire<S> {
    pub(super) fn new(pool: Arc<Pool<S>>, want: Want) -> Self {
        Self {
            pool,
            want,
            place: None,
            is_notified: false,
            wait: None,
        }
    }

    pub(super) fn want(&self) -> &Want {
        &self.want
    }

    /// The next thing that happens. Ready with `Done` once. If it is polled after that, the session
    /// waits again at its place, no longer in all than `queue_timeout`.
    pub(in crate::session) fn poll_waited(&mut self, cx: &mut Context<'_>) -> Poll<Waited<S>> {
        if self.wait.is_none()
            && let Some(result) = self.enter()
        {
            return Poll::Ready(Waited::Done(result));
        }
        loop {
            let Some(wait) = &self.wait else {
                return Poll::Pending;
            };
            let result = match wait.slot.poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Waited::Notice) => {
                    self.is_notified = true;
                    return Poll::Ready(Waited::Notice);
                }
                Poll::Ready(Waited::Done(result)) => result,
            };
            let result = match result {
                Ok(Grant::Connection(connection)) => {
                    match self.pool.make_ready(connection, &self.want) {
                        Ok(connection) => Ok(Grant::Connection(connection)),
                        Err(unusable) => {
                            // Its places are free for the first session, which may be this one.
                            self.wait_again();
                            drop(unusable);
                            continue;
                        }
                    }
                }
                other => other,
            };
            return Poll::Ready(Waited::Done(self.end(result)));
        }
    }

    /// The result if there is one at once; otherwise the session has a place in the queue.
    fn enter(&mut self) -> Option<Acquired<S>> {
        let slot = Arc::new(Slot::default());
        let begun = Instant::now();
        loop {
            let mut work = Work::default();
            let (place, is_notified) = (&mut self.place, self.is_notified);
            let entered = self.pool.change(&mut work, |inner, work| {
                let has_waited = place.is_some();
                let (ticket, since) = *place.get_or_insert_with(|| (inner.waiters.ticket(), begun));
                if has_waited && since + inner.limits.queue_timeout <= begun {
                    return Entered::Done(Err(NoLease::Queue(QueueError::Timeout)));
                }
                let result = match inner.enter(&self.pool, &self.want, work) {
                    Found::Grant(grant) => Ok(grant),
                    Found::NoCandidate(choice) => Err(NoLease::NoCandidate(choice)),
                    Found::Nothing if inner.waiters.len() >= inner.limits.max_queue => {
                        Err(NoLease::Queue(QueueError::Full))
                    }
                    Found::Nothing => {
                        let waiter = Waiter {
                            want: self.want.clone(),
                            since,
                            slot: Arc::clone(&slot),
                        };
                        inner.waiters.put(ticket, waiter);
                        return Entered::Waits {
                            ticket,
                            since,
                            is_notice_due: !is_notified && inner.waiters.is_past_notice(ticket),
                        };
                    }
                };
                Entered::Done(result)
            });
            let has_made_room = work.finish(&self.pool);
            match entered {
                Entered::Waits {
                    ticket,
                    since,
                    is_notice_due,
                } => {
                    if is_notice_due {
                        slot.notify();
                    }
                    self.wait = Some(Wait {
                        ticket,
                        since,
                        begun,
                        slot,
                        _length: self.pool.meters.waits(),
                    });
                    if has_made_room {
                        self.pool.pump();
                    }
                    return None;
                }
                Entered::Done(Err(NoLease::Queue(QueueError::Full))) if has_made_room => {}
                Entered::Done(Ok(Grant::Connection(connection))) => {
                    if let Ok(connection) = self.pool.make_ready(connection, &self.want) {
                        return Some(self.end(Ok(Grant::Connection(connection))));
                    }
                }
                Entered::Done(result) => return Some(self.end(result)),
            }
        }
    }

    fn wait_again(&self) {
        let Some(wait) = &self.wait else { return };
        let waiter = Waiter {
            want: self.want.clone(),
            since: wait.since,
            slot: Arc::clone(&wait.slot),
        };
        self.pool.with(|inner, _| inner.waiters.put(wait.ticket, waiter));
    }

    /// Counts what came of it.
    fn end(&mut self, result: Acquired<S>) -> Acquired<S> {
        let meters = &self.pool.meters;
        if let Some(wait) = self.wait.take() {
            meters.waited(wait.begun.elapsed());
        }
        match &result {
            Ok(Grant::Connection(_)) => meters.hit(),
            Ok(Grant::Open(_)) => meters.miss(),
            Err(NoLease::Queue(error)) => {
                meters.refused(*error);
                self.pool.has_refused();
            }
            Err(NoLease::NoCandidate(_)) => {}
        }
        result
    }
}

impl<S: SessionStream> Future for Acquire<S> {
    type Output = Acquired<S>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match self.poll_waited(cx) {
                Poll::Ready(Waited::Notice) => {}
                Poll::Ready(Waited::Done(result)) => return Poll::Ready(result),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl<S: SessionStream> Drop for Acquire<S> {
    fn drop(&mut self) {
        let Some(wait) = self.wait.take() else { return };
        self.pool.meters.waited(wait.begun.elapsed());
        let waiter = self.pool.with(|inner, _| inner.waiters.remove(wait.ticket));
        if waiter.is_none()
            && let Some(Ok(grant)) = wait.slot.leave()
        {
            self.pool.give_back(grant);
        }
    }
}
