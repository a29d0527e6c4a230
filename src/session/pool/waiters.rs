//! The sessions that wait for a connection of a pool, in order.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::time::Instant;

use super::acquire::{Acquired, Waited, Want};
use super::connection::WorkerId;
use super::key::ConnectionKey;
use super::numbers::NumberHash;
use crate::cluster::snapshot::MemberName;
use crate::session::stream::SessionStream;

/// A session of another worker is served first if it has waited longer by more than this: handing a
/// connection over costs a few system calls.
const HAND_OVER: Duration = Duration::from_millis(5);

/// The place in the queue. Lower ones came earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// A session that waits.
#[derive(Debug)]
pub(super) struct Waiter<S: SessionStream> {
    pub(super) want: Want,
    pub(super) since: Instant,
    pub(super) slot: Arc<Slot<S>>,
}

impl<S: SessionStream> Waiter<S> {
    pub(super) fn takes(&self, member: &MemberName) -> bool {
        !self.want.tried.contains(member)
    }
}

/// First come, first served, over all keys and workers; and the first of each key and worker.
///
/// Most sessions come at the end and leave from the front. A place whose session has left from
/// elsewhere stays until it is at the front, or until half of all places are such.
#[derive(Debug)]
pub(super) struct Waiters<S: SessionStream> {
    next: u64,
    /// In order; the first one is taken.
    places: Places<S>,
    count: usize,
    /// By the address of the key.
    lines: HashMap<usize, Vec<Line>, NumberHash>,
    /// The sessions before this one have had their notice.
    notified: Ticket,
}

type Places<S> = VecDeque<(Ticket, Option<Waiter<S>>)>;

/// The sessions of one key and worker, in order; and perhaps tickets of some that have left, but
/// not as the first.
#[derive(Debug)]
struct Line {
    worker: WorkerId,
    tickets: VecDeque<Ticket>,
    count: usize,
}

/// So many places may be empty before it is looked how many are taken.
const FEW: usize = 32;

fn is_sparse(places: usize, taken: usize) -> bool {
    places > 2 * taken + FEW
}

/// Where a session's place is, or would be.
fn place_of<S: SessionStream>(places: &Places<S>, ticket: Ticket) -> Result<usize, usize> {
    match places.front() {
        Some((first, _)) if *first == ticket => Ok(0),
        Some((first, _)) if *first < ticket => places.binary_search_by_key(&ticket, |(ticket, _)| *ticket),
        _ => Err(0),
    }
}

fn at<S: SessionStream>(places: &Places<S>, ticket: Ticket) -> Option<&Waiter<S>> {
    places[place_of(places, ticket).ok()?].1.as_ref()
}

fn address(key: &Arc<ConnectionKey>) -> usize {
    Arc::as_ptr(key).addr()
}

impl<S: SessionStream> Default for Waiters<S> {
    fn default() -> Self {
        Self {
            next: 0,
            places: VecDeque::new(),
            count: 0,
            lines: HashMap::default(),
            notified: Ticket(0),
        }
    }
}

impl<S: SessionStream> Waiters<S> {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// A place behind all others, for a session that comes now.
    pub(super) fn ticket(&mut self) -> Ticket {
        let ticket = Ticket(self.next);
        self.next += 1;
        ticket
    }

    /// It was decided already who gets a notice, up to this place: there will be none for it.
    pub(super) fn is_past_notice(&self, ticket: Ticket) -> bool {
        ticket < self.notified
    }

    /// At its place, also if it had left that.
    pub(super) fn put(&mut self, ticket: Ticket, waiter: Waiter<S>) {
        let lines = self.lines.entry(address(&waiter.want.key)).or_default();
        let worker = waiter.want.worker;
        let index = lines.iter().position(|line| line.worker == worker);
        let index = index.unwrap_or_else(|| {
            lines.push(Line {
                worker,
                tickets: VecDeque::new(),
                count: 0,
            });
            lines.len() - 1
        });
        let line = &mut lines[index];
        line.count += 1;
        if let Err(index) = line.tickets.binary_search(&ticket) {
            line.tickets.insert(index, ticket);
        }
        self.count += 1;
        match place_of(&self.places, ticket) {
            Ok(index) => self.places[index].1 = Some(waiter),
            Err(index) => self.places.insert(index, (ticket, Some(waiter))),
        }
    }

    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<Waiter<S>> {
        let index = place_of(&self.places, ticket).ok()?;
        let waiter = self.places[index].1.take()?;
        self.count -= 1;
        while self.places.front().is_some_and(|(_, waiter)| waiter.is_none()) {
            self.places.pop_front();
        }
        if is_sparse(self.places.len(), self.count) {
            self.places.retain(|(_, waiter)| waiter.is_some());
        }
        self.leave_line(&waiter);
        Some(waiter)
    }

    /// The session has left its place already.
    fn leave_line(&mut self, waiter: &Waiter<S>) {
        let (places, key) = (&self.places, address(&waiter.want.key));
        let Some(lines) = self.lines.get_mut(&key) else {
            return;
        };
        let Some(line) = lines.iter_mut().find(|line| line.worker == waiter.want.worker) else {
            return;
        };
        line.count -= 1;
        let has_left = |ticket: &Ticket| at(places, *ticket).is_none();
        while line.tickets.front().is_some_and(has_left) {
            line.tickets.pop_front();
        }
        if is_sparse(line.tickets.len(), line.count) {
            line.tickets.retain(|ticket| !has_left(ticket));
        }
        if lines.iter().all(|line| line.count == 0) {
            self.lines.remove(&key);
        }
    }

    /// The session that has waited longest.
    pub(super) fn first(&self) -> Option<(Ticket, &Waiter<S>)> {
        let (ticket, waiter) = self.places.front()?;
        Some((*ticket, waiter.as_ref()?))
    }

    pub(super) fn get(&self, ticket: Ticket) -> Option<&Waiter<S>> {
        at(&self.places, ticket)
    }

    /// The next session behind this one.
    pub(super) fn after(&self, ticket: Ticket) -> Option<(Ticket, &Waiter<S>)> {
        self.from(Ticket(ticket.0 + 1)).next()
    }

    /// The sessions from this place on, in order.
    fn from(&self, ticket: Ticket) -> impl Iterator<Item = (Ticket, &Waiter<S>)> {
        let (Ok(index) | Err(index)) = place_of(&self.places, ticket);
        let places = self.places.range(index..);
        places.filter_map(|(ticket, waiter)| Some((*ticket, waiter.as_ref()?)))
    }

    pub(super) fn has_key(&self, key: &Arc<ConnectionKey>) -> bool {
        !self.lines.is_empty() && self.lines.contains_key(&address(key))
    }

    /// The session that gets a connection of this key to this member, which `worker` drives.
    pub(super) fn next_for(
        &self,
        key: &Arc<ConnectionKey>,
        worker: WorkerId,
        member: &MemberName,
    ) -> Option<(Ticket, &Waiter<S>)> {
        let (mut own, mut any) = (None, None);
        for line in self.lines.get(&address(key))? {
            let waiters = line
                .tickets
                .iter()
                .filter_map(|ticket| Some((*ticket, self.get(*ticket)?)));
            let Some(first) = waiters.into_iter().find(|(_, waiter)| waiter.takes(member)) else {
                continue;
            };
            if line.worker == worker {
                own = Some(first);
            }
            if any.is_none_or(|(ticket, _)| first.0 < ticket) {
                any = Some(first);
            }
        }
        match (own, any) {
            (Some((_, near)), Some((_, far))) if far.since + HAND_OVER < near.since => any,
            (Some(_), _) => own,
            (None, _) => any,
        }
    }

    /// Takes the first session if it has waited for `longest`.
    pub(super) fn take_expired(&mut self, longest: Duration, now: Instant) -> Option<Waiter<S>> {
        let (ticket, waiter) = self.first()?;
        if waiter.since + longest > now {
            return None;
        }
        self.remove(ticket)
    }

    /// The sessions that have waited for `delay` and have had no notice.
    pub(super) fn take_notices(&mut self, delay: Duration, now: Instant) -> Vec<Arc<Slot<S>>> {
        let due: Vec<_> = self
            .from(self.notified)
            .take_while(|(_, waiter)| waiter.since + delay <= now)
            .map(|(ticket, waiter)| (ticket, Arc::clone(&waiter.slot)))
            .collect();
        if let Some((Ticket(last), _)) = due.last() {
            self.notified = Ticket(last + 1);
        }
        due.into_iter().map(|(_, slot)| slot).collect()
    }
}

/// Where a waiting session finds what it got. Its lock is never taken under that of the pool.
#[derive(Debug)]
pub(super) struct Slot<S: SessionStream>(Mutex<SlotState<S>>);

#[derive(Debug)]
struct SlotState<S: SessionStream> {
    waker: Option<Waker>,
    is_notice_due: bool,
    result: Option<Acquired<S>>,
    /// The session does not wait any more.
    has_left: bool,
}

impl<S: SessionStream> Default for Slot<S> {
    fn default() -> Self {
        Self(Mutex::new(SlotState {
            waker: None,
            is_notice_due: false,
            result: None,
            has_left: false,
        }))
    }
}

impl<S: SessionStream> Slot<S> {
    /// Gives the session its result; gives it back if the session has left.
    pub(super) fn deliver(&self, result: Acquired<S>) -> Option<Acquired<S>> {
        let mut state = self.lock();
        if state.has_left {
            return Some(result);
        }
        state.result = Some(result);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        None
    }

    pub(super) fn notify(&self) {
        let mut state = self.lock();
        state.is_notice_due = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<Waited<S>> {
        let mut state = self.lock();
        if let Some(result) = state.result.take() {
            return Poll::Ready(Waited::Done(result));
        }
        if std::mem::take(&mut state.is_notice_due) {
            return Poll::Ready(Waited::Notice);
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// The session waits no longer. Returns what it has got and not seen.
    pub(super) fn leave(&self) -> Option<Acquired<S>> {
        let mut state = self.lock();
        state.has_left = true;
        state.result.take()
    }

    fn lock(&self) -> MutexGuard<'_, SlotState<S>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
