//! A session as the rest of the process sees it.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::activity::{Activity, ActivityCell, RequestNumber};
use super::mailbox::{Mailbox, ServerOrder, replaces};
use super::{CancelKey, Origin, Placement, Traffic};
use crate::session::counts::RouteCounts;
use crate::session::end::Order;
use crate::session::pool::pinned;
use crate::session::pool::state::Pins;

/// One session. The session's task owns it; other tasks read it and give orders.
#[derive(Debug)]
pub struct SessionEntry {
    pub id: u64,
    pub origin: Arc<Origin>,
    /// The key with which the client cancels; `None` with `mode: tcp`, where the client has the
    /// server's key and the router does not know it.
    pub(in crate::session) cancel_key: Option<CancelKey>,
    activity: ActivityCell,
    /// The number of requests so far.
    requests: AtomicU64,
    /// The number of cancel requests for this session that are in progress.
    cancels: AtomicU32,
    /// Notifies waiting cancel requests of a change of the activity.
    activity_changed: Notify,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    transactions: AtomicU64,
    /// When the transaction under way began, in microseconds after the session was accepted;
    /// [`NOT_MEASURED`] outside one, and in one that is not measured.
    began: AtomicU64,
    /// A cancel request may have been delivered later than its connection showed.
    late_cancel: AtomicBool,
    /// [`Phase`]; changed by sessions with a pool only.
    phase: AtomicU8,
    /// [`Pins`]: why it keeps its server connection.
    pins: AtomicU16,
    /// When a session with a pool got its server connection, or began to wait for one, in whole
    /// seconds after the session was accepted: a full time would make every session's entry larger.
    held_since: AtomicU32,
    /// The client asks to end the wait for a server.
    wait_cancelled: AtomicBool,
    /// Whether the mailbox has an order. The relay reads this on every wake-up.
    ordered: AtomicBool,
    mailbox: Mutex<Mailbox>,
}

/// No connection of a pool yet; far more seconds than a session can last.
const NEVER: u32 = u32::MAX;

/// Far more microseconds than a session can last.
const NOT_MEASURED: u64 = u64::MAX;

/// Whether a session has a server connection, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// It has one, which no other session can have before the session gives it back.
    Relaying,
    /// It has none and asks for none.
    Detached,
    /// It has a request and waits for one.
    Waiting,
    /// It has one and keeps it between transactions.
    Pinned,
}

impl Phase {
    /// As operators see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Relaying => "relaying",
            Self::Detached => "detached",
            Self::Waiting => "waiting",
            Self::Pinned => "pinned",
        }
    }
}

impl SessionEntry {
    pub(in crate::session) fn new(id: u64, origin: Arc<Origin>, cancel_key: Option<CancelKey>) -> Self {
        Self {
            id,
            origin,
            cancel_key,
            activity: ActivityCell::default(),
            requests: AtomicU64::new(0),
            cancels: AtomicU32::new(0),
            activity_changed: Notify::new(),
            bytes_up: AtomicU64::new(0),
            bytes_down: AtomicU64::new(0),
            transactions: AtomicU64::new(0),
            began: AtomicU64::new(NOT_MEASURED),
            late_cancel: AtomicBool::new(false),
            phase: AtomicU8::new(Phase::Relaying as u8),
            pins: AtomicU16::new(0),
            held_since: AtomicU32::new(NEVER),
            wait_cancelled: AtomicBool::new(false),
            ordered: AtomicBool::new(false),
            mailbox: Mutex::default(),
        }
    }

    /// Compares in constant time.
    pub(super) fn has_key(&self, key: &[u8]) -> bool {
        self.cancel_key.as_ref().is_some_and(|own| own.key.matches(key))
    }

    /// Where the server connection is; `None` while there is none.
    pub fn placement(&self) -> Option<Arc<Placement>> {
        self.mailbox().placement.clone()
    }

    /// The session has another server connection, or none. Only the session's own task calls this.
    pub(in crate::session) fn place(&self, placement: Option<Arc<Placement>>) {
        let before = std::mem::replace(&mut self.mailbox().placement, placement);
        drop(before);
    }

    /// Gives an order about the session. A stricter order replaces a milder one; of two equally
    /// strict ones the first stays.
    pub fn order(&self, order: Order) {
        let mut mailbox = self.mailbox();
        if mailbox
            .session
            .as_ref()
            .is_none_or(|given| replaces(&order, given))
        {
            mailbox.session = Some(order);
            self.deliver(mailbox);
        }
    }

    /// As [`Self::order`], for a session that has no server connection and asks for none. A session
    /// that gets one later sees the order before it passes a request on: it takes its placement
    /// under the same lock.
    pub(in crate::session) fn order_detached(&self, order: Order) {
        let mut mailbox = self.mailbox();
        let is_detached = mailbox.placement.is_none() && self.phase() == Phase::Detached;
        if is_detached && mailbox.session.is_none() {
            mailbox.session = Some(order);
            self.deliver(mailbox);
        }
    }

    /// As [`Self::order`], about the server connection at this placement: a session that has
    /// another one meanwhile does not follow it.
    pub fn order_on(&self, placement: &Arc<Placement>, order: Order) {
        let mut mailbox = self.mailbox();
        let stays = |given: &ServerOrder| given.is_about(placement) && !replaces(&order, &given.order);
        if mailbox.server.as_deref().is_some_and(stays) {
            return;
        }
        mailbox.server = Some(Box::new(ServerOrder {
            order,
            placement: Arc::clone(placement),
        }));
        self.deliver(mailbox);
    }

    /// Gives an order about the server connection at this placement, which stays until it is
    /// replaced, or withdrawn with `None`; the session may have followed it by then.
    pub fn leave(&self, placement: &Arc<Placement>, leave: Option<Order>) {
        let mut mailbox = self.mailbox();
        let Some(order) = leave else {
            mailbox.leave = None;
            self.ordered.store(!mailbox.is_empty(), Ordering::Release);
            return;
        };
        let is_same = |given: &ServerOrder| given.is_about(placement) && given.order == order;
        if mailbox.leave.as_deref().is_some_and(is_same) {
            return;
        }
        mailbox.leave = Some(Box::new(ServerOrder {
            order,
            placement: Arc::clone(placement),
        }));
        self.deliver(mailbox);
    }

    fn deliver(&self, mailbox: MutexGuard<'_, Mailbox>) {
        self.ordered.store(true, Ordering::Release);
        let waker = mailbox.waker.clone();
        drop(mailbox);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The order to follow, if any: the strictest one. Without an order this is one atomic load.
    pub fn ordered(&self) -> Option<Order> {
        if !self.ordered.load(Ordering::Acquire) {
            return None;
        }
        self.mailbox().strictest()
    }

    /// As [`Self::ordered`], for a session that has the server connection at `placement` now, or
    /// none. Orders about other connections are dropped.
    pub(in crate::session) fn ordered_on(&self, placement: Option<&Arc<Placement>>) -> Option<Order> {
        if !self.ordered.load(Ordering::Acquire) {
            return None;
        }
        let mut mailbox = self.mailbox();
        let is_over =
            |given: &mut Box<ServerOrder>| !placement.is_some_and(|placement| given.is_about(placement));
        mailbox.server.take_if(is_over);
        mailbox.leave.take_if(is_over);
        self.ordered.store(!mailbox.is_empty(), Ordering::Release);
        mailbox.strictest()
    }

    /// What a session with a pool is doing about a server connection.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::SeqCst) {
            1 => Phase::Detached,
            2 => Phase::Waiting,
            3 => Phase::Pinned,
            _ => Phase::Relaying,
        }
    }

    /// Only the session's own task calls this.
    pub(in crate::session) fn set_phase(&self, phase: Phase) {
        if phase == Phase::Waiting && self.phase() != Phase::Waiting {
            self.set_held_since(Instant::now());
        }
        self.phase.store(phase as u8, Ordering::SeqCst);
    }

    /// Only the session's own task calls this.
    pub(in crate::session) fn set_held_since(&self, since: Instant) {
        let after = since.saturating_duration_since(self.origin.client.since);
        let seconds = u32::try_from(after.as_secs()).unwrap_or(NEVER - 1);
        self.held_since.store(seconds, Ordering::Relaxed);
    }

    /// For how many seconds the session has had its server connection; `None` while it has none,
    /// and on a route without a pool, where that is the session's age.
    pub fn held_s(&self) -> Option<u64> {
        let since = self.held_since.load(Ordering::Relaxed);
        if since == NEVER || self.placement().is_none() {
            return None;
        }
        let age = self.origin.client.since.elapsed().as_secs();
        Some(age.saturating_sub(since.into()))
    }

    /// For how many seconds it has waited for a server connection; `None`: it does not wait.
    pub fn waiting_s(&self) -> Option<u64> {
        let since = self.held_since.load(Ordering::Relaxed);
        if self.phase() != Phase::Waiting || since == NEVER {
            return None;
        }
        let age = self.origin.client.since.elapsed().as_secs();
        Some(age.saturating_sub(since.into()))
    }

    /// Why the session keeps its server connection between transactions; empty where it does not.
    pub fn pins(&self) -> Pins {
        match self.phase() {
            Phase::Pinned => pinned::pins_of(self.pins.load(Ordering::Relaxed)),
            _ => Pins::NONE,
        }
    }

    /// Only the session's own task calls this. A session that is not pinned writes nothing.
    pub(in crate::session) fn set_pins(&self, pins: Pins) {
        let bits = pinned::bits_of(pins);
        if self.pins.load(Ordering::Relaxed) != bits {
            self.pins.store(bits, Ordering::Relaxed);
        }
    }

    /// Ends the wait for a server, on the client's own request. `false`: the session does not wait.
    pub(in crate::session) fn cancel_wait(&self) -> bool {
        if self.phase() != Phase::Waiting {
            return false;
        }
        self.wait_cancelled.store(true, Ordering::SeqCst);
        if let Some(waker) = self.mailbox().waker.clone() {
            waker.wake();
        }
        true
    }

    /// Whether [`Self::cancel_wait`] was called since the last time. Only the session's own task
    /// calls this.
    pub(in crate::session) fn take_wait_cancelled(&self) -> bool {
        self.wait_cancelled.load(Ordering::Relaxed) && self.wait_cancelled.swap(false, Ordering::SeqCst)
    }

    /// Sets the waker that an order wakes. Call [`Self::ordered`] again afterwards: an order may
    /// have come before.
    pub fn wake_for_orders(&self, waker: &Waker) {
        self.mailbox().waker = Some(waker.clone());
    }

    /// What the session is doing.
    pub fn activity(&self) -> Activity {
        self.activity.load()
    }

    /// Whether the server is working for this session. Only then is a cancel request forwarded.
    pub fn in_flight(&self) -> bool {
        self.under_way().is_some()
    }

    /// Which request the server is working on.
    pub(in crate::session) fn under_way(&self) -> Option<RequestNumber> {
        match self.activity() {
            Activity::Active(request) => Some(request),
            Activity::Idle | Activity::InTransaction => None,
        }
    }

    /// A request begins, even while another one is under way. Only the session's own task calls
    /// this.
    pub(in crate::session) fn begin_request(&self) {
        let number = self.requests.load(Ordering::Relaxed) + 1;
        self.requests.store(number, Ordering::Relaxed);
        if RouteCounts::is_measured(self.id, number) && self.activity() == Activity::Idle {
            self.began.store(self.age_us(), Ordering::Relaxed);
        }
        if let Some(number) = NonZeroU64::new(number) {
            self.set_activity(Activity::Active(RequestNumber(number)));
        }
    }

    /// The server has answered every request. Only the session's own task calls this.
    pub(in crate::session) fn rest(&self, activity: Activity) {
        self.set_activity(activity);
        if activity == Activity::Idle && self.began.load(Ordering::Relaxed) != NOT_MEASURED {
            let began = self.began.swap(NOT_MEASURED, Ordering::Relaxed);
            let took = Duration::from_micros(self.age_us().saturating_sub(began));
            self.origin.counts.transaction(took);
        }
    }

    fn age_us(&self) -> u64 {
        let age = self.origin.client.since.elapsed();
        age.as_secs().saturating_mul(1_000_000) + u64::from(age.subsec_micros())
    }

    fn set_activity(&self, activity: Activity) {
        self.activity.store(activity);
        // A cancel request takes its place before it reads the activity, so one of the two sees the
        // other.
        if self.cancels.load(Ordering::SeqCst) > 0 {
            self.activity_changed.notify_waiters();
        }
    }

    /// Returns when this request is no longer under way. Cancel safe. The caller must hold a
    /// [`CancelPlace`].
    pub(in crate::session) async fn until_over(&self, request: RequestNumber) {
        loop {
            let mut changed = std::pin::pin!(self.activity_changed.notified());
            // Before the check, so that no change after it is missed.
            changed.as_mut().enable();
            if self.under_way() != Some(request) {
                return;
            }
            changed.await;
        }
    }

    /// A place among the cancel requests for this session; `None` if `most` are in progress
    /// already.
    pub(in crate::session) fn cancel_place(&self, most: u32) -> Option<CancelPlace<'_>> {
        let taken = &self.cancels;
        let next = taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |taken| {
            (taken < most).then(|| taken + 1)
        });
        next.ok().map(|_| CancelPlace(self))
    }

    /// A cancel request for this session is in progress, or may still be delivered: its server
    /// connection must not serve anybody else. Of this and a cancel request that begins, one sees
    /// the other.
    pub(in crate::session) fn has_cancels(&self) -> bool {
        self.cancels.load(Ordering::SeqCst) > 0 || self.late_cancel.load(Ordering::SeqCst)
    }

    /// Returns when no cancel request is in progress any more. Says whether one since the last call
    /// may still be delivered. Cancel safe.
    pub(in crate::session) async fn until_no_cancels(&self) -> bool {
        loop {
            let mut changed = std::pin::pin!(self.activity_changed.notified());
            changed.as_mut().enable();
            if self.cancels.load(Ordering::SeqCst) == 0 {
                return self.late_cancel.swap(false, Ordering::SeqCst);
            }
            changed.await;
        }
    }

    /// Sets what the session has transferred so far. Only the session's own task calls this.
    pub(in crate::session) fn record(&self, traffic: Traffic) {
        self.bytes_up.store(traffic.bytes_up, Ordering::Relaxed);
        self.bytes_down.store(traffic.bytes_down, Ordering::Relaxed);
        self.transactions.store(traffic.transactions, Ordering::Relaxed);
    }

    pub fn traffic(&self) -> Traffic {
        Traffic {
            bytes_up: self.bytes_up.load(Ordering::Relaxed),
            bytes_down: self.bytes_down.load(Ordering::Relaxed),
            transactions: self.transactions.load(Ordering::Relaxed),
        }
    }

    fn mailbox(&self) -> MutexGuard<'_, Mailbox> {
        self.mailbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among a session's cancel requests; given back when dropped.
#[derive(Debug)]
pub(in crate::session) struct CancelPlace<'a>(&'a SessionEntry);

impl CancelPlace<'_> {
    /// The server did not close the cancel connection in order: it may carry the request out later.
    pub(in crate::session) fn may_be_late(&self) {
        self.0.late_cancel.store(true, Ordering::SeqCst);
    }
}

impl Drop for CancelPlace<'_> {
    fn drop(&mut self) {
        self.0.cancels.fetch_sub(1, Ordering::SeqCst);
        self.0.activity_changed.notify_waiters();
    }
}
