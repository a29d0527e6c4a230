//! The line of held clients at a gate. First come, first served; when the gate opens they leave in
//! order, a few at a time, so that they do not all log into the new server at once.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::time::{Instant, Sleep, sleep_until};

use super::Gate;
use super::position::Position;
use crate::session::gauges::{GaugeGuard, seconds};
use crate::wire::message::ErrorReply;

/// Clients that are let go at once and have no server yet.
const MAX_LEAVING: usize = 32;

/// The clients that wait, and how many of those let go have no server yet.
#[derive(Debug, Default)]
pub(super) struct Line {
    inner: Mutex<Inner>,
    /// How many wait; to be read without the lock.
    length: AtomicUsize,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    /// By their tickets, so in the order in which they came.
    waiting: BTreeMap<u64, Waker>,
    leaving: usize,
    /// The requests of those that wait, in bytes.
    bytes: u64,
}

impl Line {
    /// Nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.length() == 0
    }

    pub(super) fn length(&self) -> usize {
        self.length.load(Ordering::Acquire)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// A ticket at the end; `None` if `most` wait already.
    fn enter(&self, most: Option<u32>, bytes: u64) -> Option<u64> {
        let mut inner = self.lock();
        if most.is_some_and(|most| inner.waiting.len() >= most as usize) {
            return None;
        }
        let ticket = inner.next;
        inner.next += 1;
        inner.waiting.insert(ticket, Waker::noop().clone());
        self.length.store(inner.waiting.len(), Ordering::Release);
        inner.bytes += bytes;
        Some(ticket)
    }

    /// Lets `ticket` go if it is its turn; otherwise `waker` is woken when it may be.
    fn leave(&self, ticket: u64, waker: &Waker) -> bool {
        let mut inner = self.lock();
        let is_first = inner
            .waiting
            .first_key_value()
            .is_some_and(|(first, _)| *first == ticket);
        if is_first && inner.leaving < MAX_LEAVING {
            inner.leaving += 1;
            return true;
        }
        if let Some(kept) = inner.waiting.get_mut(&ticket) {
            kept.clone_from(waker);
        }
        false
    }

    /// `waker` is woken when the gate changes.
    fn stay(&self, ticket: u64, waker: &Waker) {
        if let Some(kept) = self.lock().waiting.get_mut(&ticket) {
            kept.clone_from(waker);
        }
    }

    /// The place is given up. The next one may have its turn.
    fn remove(&self, ticket: u64, bytes: u64) {
        let next = {
            let mut inner = self.lock();
            if inner.waiting.remove(&ticket).is_some() {
                inner.bytes = inner.bytes.saturating_sub(bytes);
            }
            self.length.store(inner.waiting.len(), Ordering::Release);
            inner.first()
        };
        wake(next);
    }

    /// One that was let go has a server, or none.
    fn left(&self) {
        let next = {
            let mut inner = self.lock();
            inner.leaving -= 1;
            inner.first()
        };
        wake(next);
    }

    /// The first has its turn.
    pub(super) fn wake_first(&self) {
        let next = self.lock().first();
        wake(next);
    }

    /// The gate fails fast.
    pub(super) fn wake_all(&self) {
        let all: Vec<Waker> = self.lock().waiting.values().cloned().collect();
        for waker in all {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn first(&self) -> Option<Waker> {
        self.waiting.first_key_value().map(|(_, waker)| waker.clone())
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// A held client's place. Dropping it gives it up.
#[derive(Debug)]
pub(in crate::session) struct HeldPlace {
    gate: Arc<Gate>,
    ticket: u64,
    bytes: u64,
    since: Instant,
    /// When the wait is over, by the last look at the gate.
    limit: Option<Pin<Box<Sleep>>>,
    _length: GaugeGuard,
}

/// The client may ask for a server now. Until it is dropped it counts among those that are let go.
#[derive(Debug)]
pub(in crate::session) struct ReleasePass(Arc<Gate>);

impl Drop for ReleasePass {
    fn drop(&mut self) {
        self.0.line.left();
    }
}

impl HeldPlace {
    /// A place for a client whose request has this many bytes.
    ///
    /// # Errors
    /// `hold.max_clients` are held already.
    pub(super) fn new(gate: &Arc<Gate>, bytes: u64) -> Result<Self, ErrorReply> {
        let computed = gate.computed();
        let most = computed
            .as_ref()
            .and_then(|computed| computed.route.hold.max_clients);
        let Some(ticket) = gate.line.enter(most, bytes) else {
            gate.hold.full.get_or_create(&gate.label).inc();
            return Err(gate.too_many());
        };
        gate.hold.entered.get_or_create(&gate.label).inc();
        Ok(Self {
            gate: Arc::clone(gate),
            ticket,
            bytes,
            since: Instant::now(),
            limit: None,
            _length: GaugeGuard::new(gate.hold.length.get_or_create(&gate.label).clone()),
        })
    }

    /// Ready when it is this client's turn, or there is no use in waiting.
    ///
    /// # Errors
    /// The answer for the client: no server within `hold.timeout`.
    pub(in crate::session) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ReleasePass, Box<ErrorReply>>> {
        loop {
            let now = Instant::now();
            // Before the look, so that no change after it is missed.
            self.gate.line.stay(self.ticket, cx.waker());
            let (until, error) = match self.gate.position(now) {
                Position::FailFast(error) => {
                    self.is_late();
                    return Poll::Ready(Err(error));
                }
                Position::Shut { until, error, .. } => (until, error),
                Position::Open => {
                    if self.gate.line.leave(self.ticket, cx.waker()) {
                        return Poll::Ready(Ok(ReleasePass(Arc::clone(&self.gate))));
                    }
                    let (until, error) = self.gate.release_limit(now);
                    (until, Box::new(error))
                }
            };
            if until <= now {
                self.is_late();
                return Poll::Ready(Err(error));
            }
            let limit = self.limit.get_or_insert_with(|| Box::pin(sleep_until(until)));
            if limit.deadline() != until {
                limit.as_mut().reset(until);
            }
            if limit.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn is_late(&self) {
        self.gate.hold.timeouts.get_or_create(&self.gate.label).inc();
    }
}

impl Drop for HeldPlace {
    fn drop(&mut self) {
        self.gate.hold.wait_seconds.observe(seconds(self.since.elapsed()));
        self.gate.line.remove(self.ticket, self.bytes);
    }
}
