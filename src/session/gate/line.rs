//! The line of held clients at a gate. First come, first served among those that compete for the
//! same connections; when the gate opens they leave in order, a few at a time, so that they do not
//! all log into the new server at once.

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

/// Clients of one group that are let go at once and have no server yet.
const MAX_LEAVING: usize = 32;

/// Clients that compete for the same connections: those of one pool, or all that have none. A full
/// pool keeps its own clients only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(in crate::session) struct Group(usize);

impl Group {
    /// Clients that log in on a route without a pool.
    pub(in crate::session) const UNPOOLED: Self = Self(0);

    /// The clients of a pool. They keep it alive, so no other has its address meanwhile.
    pub(in crate::session) fn of<P>(pool: &Arc<P>) -> Self {
        Self(Arc::as_ptr(pool) as usize)
    }
}

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
    /// None is empty.
    groups: BTreeMap<Group, Members>,
    length: usize,
    /// The requests of those that wait, in bytes.
    bytes: u64,
}

#[derive(Debug, Default)]
struct Members {
    /// By their tickets, so in the order in which they came.
    waiting: BTreeMap<u64, Waker>,
    leaving: usize,
}

impl Line {
    /// Nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.length() == 0
    }

    /// Somebody of this group waits.
    pub(super) fn has(&self, group: Group) -> bool {
        !self.is_empty()
            && self
                .lock()
                .groups
                .get(&group)
                .is_some_and(|members| !members.waiting.is_empty())
    }

    pub(super) fn length(&self) -> usize {
        self.length.load(Ordering::Acquire)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// How many have ever entered.
    pub(super) fn entered(&self) -> u64 {
        self.lock().next
    }

    /// A ticket at the end; `None` if `most` wait already.
    fn enter(&self, group: Group, most: Option<u32>, bytes: u64) -> Option<u64> {
        let mut inner = self.lock();
        if most.is_some_and(|most| inner.length >= most as usize) {
            return None;
        }
        let ticket = inner.next;
        inner.next += 1;
        let members = inner.groups.entry(group).or_default();
        members.waiting.insert(ticket, Waker::noop().clone());
        inner.length += 1;
        self.length.store(inner.length, Ordering::Release);
        inner.bytes += bytes;
        Some(ticket)
    }

    /// Lets `ticket` go if it is its turn; otherwise `waker` is woken when it may be.
    fn leave(&self, group: Group, ticket: u64, waker: &Waker) -> bool {
        let mut inner = self.lock();
        let Some(members) = inner.groups.get_mut(&group) else {
            return false;
        };
        let first = members.waiting.first_key_value();
        if first.is_some_and(|(first, _)| *first == ticket) && members.leaving < MAX_LEAVING {
            members.leaving += 1;
            return true;
        }
        if let Some(kept) = members.waiting.get_mut(&ticket) {
            kept.clone_from(waker);
        }
        false
    }

    /// `waker` is woken when the gate changes.
    fn stay(&self, group: Group, ticket: u64, waker: &Waker) {
        let mut inner = self.lock();
        let members = inner.groups.get_mut(&group);
        if let Some(kept) = members.and_then(|members| members.waiting.get_mut(&ticket)) {
            kept.clone_from(waker);
        }
    }

    /// The place is given up. The next one may have its turn.
    fn remove(&self, group: Group, ticket: u64, bytes: u64) {
        let next = {
            let mut inner = self.lock();
            let members = inner.groups.get_mut(&group);
            if members.is_some_and(|members| members.waiting.remove(&ticket).is_some()) {
                inner.bytes = inner.bytes.saturating_sub(bytes);
                inner.length -= 1;
            }
            self.length.store(inner.length, Ordering::Release);
            inner.next_of(group)
        };
        wake(next);
    }

    /// One that was let go has a server, or none.
    fn left(&self, group: Group) {
        let next = {
            let mut inner = self.lock();
            if let Some(members) = inner.groups.get_mut(&group) {
                members.leaving -= 1;
            }
            inner.next_of(group)
        };
        wake(next);
    }

    /// The first of each group has its turn.
    pub(super) fn wake_first(&self) {
        let first: Vec<Waker> = {
            let inner = self.lock();
            inner.groups.values().filter_map(Members::first).collect()
        };
        for waker in first {
            waker.wake();
        }
    }

    /// The gate fails fast, or the time for which clients are held is another one.
    pub(super) fn wake_all(&self) {
        let all: Vec<Waker> = {
            let inner = self.lock();
            let members = inner.groups.values();
            members
                .flat_map(|members| members.waiting.values().cloned())
                .collect()
        };
        for waker in all {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The first of the group. A group of which nobody is left is forgotten.
    fn next_of(&mut self, group: Group) -> Option<Waker> {
        let members = self.groups.get(&group)?;
        if members.waiting.is_empty() && members.leaving == 0 {
            self.groups.remove(&group);
            return None;
        }
        members.first()
    }
}

impl Members {
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
    group: Group,
    ticket: u64,
    bytes: u64,
    since: Instant,
    /// When the wait is over, by the last look at the gate.
    limit: Option<Pin<Box<Sleep>>>,
    _length: GaugeGuard,
}

/// The client may ask for a server now. Until it is dropped it counts among those that are let go.
#[derive(Debug)]
pub(in crate::session) struct ReleasePass(Arc<Gate>, Group);

impl Drop for ReleasePass {
    fn drop(&mut self) {
        self.0.line.left(self.1);
    }
}

impl HeldPlace {
    /// A place for a client whose request has this many bytes.
    ///
    /// # Errors
    /// `hold.max_clients` are held already.
    pub(super) fn new(gate: &Arc<Gate>, group: Group, bytes: u64) -> Result<Self, ErrorReply> {
        let computed = gate.computed();
        let most = computed
            .as_ref()
            .and_then(|computed| computed.route.hold.max_clients);
        let Some(ticket) = gate.line.enter(group, most, bytes) else {
            gate.hold.full.get_or_create(&gate.label).inc();
            return Err(gate.too_many());
        };
        gate.hold.entered.get_or_create(&gate.label).inc();
        Ok(Self {
            gate: Arc::clone(gate),
            group,
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
            self.gate.line.stay(self.group, self.ticket, cx.waker());
            let (until, error) = match self.gate.position(now) {
                Position::FailFast(error) => {
                    self.is_late();
                    return Poll::Ready(Err(error));
                }
                Position::Shut { until, error, .. } => (until, error),
                Position::Open => {
                    if self.gate.line.leave(self.group, self.ticket, cx.waker()) {
                        return Poll::Ready(Ok(ReleasePass(Arc::clone(&self.gate), self.group)));
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
        self.gate.line.remove(self.group, self.ticket, self.bytes);
    }
}
