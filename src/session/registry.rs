//! Every session there is. Cancel, shutdown, role changes and statistics act through it, and only through it.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::Bytes;
use tokio::time::Instant;

use super::connect_backoff::ConnectBackoff;
use super::end::Order;
use super::keys::ClientCancelKey;
use super::queue::Queues;
use crate::backend::CancelTarget;
use crate::cluster::sight::Whereabouts;
use crate::cluster::snapshot::{MemberName, Snapshot};
use crate::config::OnUnfit;
use crate::frontend::ClientAddress;
use crate::routing::{self, GrantedRole, SessionVerdict, Turns};

/// A cluster's member, as sessions are counted on it.
type MemberKey = (Arc<str>, MemberName);

/// Shared by every worker. The lock is taken when a session begins or ends, for a cancel and for statistics; never
/// while bytes are relayed.
#[derive(Debug, Default)]
pub struct Registry {
    inner: Mutex<Inner>,
    next_id: AtomicU64,
    /// Whose turn it is, by route.
    turns: Mutex<HashMap<Arc<str>, Turns>>,
    pub(super) backoff: ConnectBackoff,
    pub(super) queues: Queues,
}

#[derive(Debug, Default)]
struct Inner {
    sessions: HashMap<u64, Arc<SessionEntry>>,
    /// By the process id in the client's cancel key: the server's own, so several members may share one.
    by_process_id: HashMap<u32, Vec<u64>>,
    loads: HashMap<MemberKey, usize>,
    /// Of sessions that are over.
    past: Traffic,
}

/// What a session has moved.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// From the client to the server, bytes.
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub transactions: u64,
}

impl Traffic {
    fn add(&mut self, other: Self) {
        self.bytes_up += other.bytes_up;
        self.bytes_down += other.bytes_down;
        self.transactions += other.transactions;
    }
}

/// Whose session it is, for those who look at it.
#[derive(Debug, Clone)]
pub struct Client {
    pub address: ClientAddress,
    /// As the client named them.
    pub user: Bytes,
    pub database: Bytes,
    /// TLS version and cipher; `None` in clear.
    pub tls: Option<&'static str>,
    /// When it was accepted.
    pub since: Instant,
}

#[cfg(test)]
impl Client {
    pub(crate) fn app() -> Self {
        Self {
            address: ClientAddress::Local(None),
            user: Bytes::from_static(b"app"),
            database: Bytes::from_static(b"app"),
            tls: None,
            since: Instant::now(),
        }
    }
}

/// What a session tells the registry when it is attached.
#[derive(Debug)]
pub struct Placement {
    pub client: Client,
    pub cluster: Arc<str>,
    pub route: Arc<str>,
    pub granted: GrantedRole,
    pub member: MemberName,
    /// Where it was seen to be, under the member's name.
    pub whereabouts: Option<Whereabouts>,
    pub process_id: u32,
    /// `None` where the client has one of the server's, which the router does not know (`mode: tcp`).
    pub key: Option<ClientCancelKey>,
    /// `None` where the server gave no key: a cancel is then a no-op.
    pub cancel: Option<CancelTarget>,
    pub on_unfit: OnUnfit,
}

impl Placement {
    /// What this snapshot means for the session.
    pub fn verdict(&self, snapshot: &Snapshot) -> SessionVerdict {
        routing::verdict(snapshot, self.granted, &self.member, self.whereabouts.as_ref())
    }

    /// In constant time.
    fn has_key(&self, key: &[u8]) -> bool {
        self.key.as_ref().is_some_and(|own| own.matches(key))
    }
}

/// One session. Its owner is the session's task; others read, and give orders.
#[derive(Debug)]
pub struct SessionEntry {
    pub id: u64,
    pub placement: Placement,
    /// The number of the request under way; 0 where there is none.
    under_way: AtomicU64,
    /// Requests so far.
    requests: AtomicU64,
    /// Cancel requests for it that are being served.
    cancels: AtomicU32,
    /// As it was when the session last came to rest.
    in_transaction: AtomicBool,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    transactions: AtomicU64,
    /// Whether the mailbox has an order: what the relay looks at on every wake-up.
    ordered: AtomicBool,
    mailbox: Mutex<Mailbox>,
}

#[derive(Debug, Default)]
struct Mailbox {
    /// Set, and never unset.
    order: Option<Order>,
    /// As long as the server is not fit.
    leave: Option<Order>,
    waker: Option<Waker>,
}

impl Registry {
    /// Counts a session on a member before it connects there, so that two logins at once do not choose the same.
    pub fn reserve(self: &Arc<Self>, cluster: &Arc<str>, member: &MemberName) -> Seat {
        let place = (Arc::clone(cluster), member.clone());
        *self.lock().loads.entry(place.clone()).or_default() += 1;
        Seat {
            registry: Arc::clone(self),
            place,
            is_bounded: false,
        }
    }

    /// As [`Self::reserve`], where the member has fewer than `most` sessions; 0 is no limit.
    pub fn reserve_within(
        self: &Arc<Self>,
        cluster: &Arc<str>,
        member: &MemberName,
        most: u32,
    ) -> Option<Seat> {
        if most == 0 {
            return Some(self.reserve(cluster, member));
        }
        let place = (Arc::clone(cluster), member.clone());
        let mut inner = self.lock();
        let load = inner.loads.get(&place).copied().unwrap_or_default();
        if load >= most as usize {
            return None;
        }
        inner.loads.insert(place.clone(), load + 1);
        drop(inner);
        Some(Seat {
            registry: Arc::clone(self),
            place,
            is_bounded: true,
        })
    }

    /// Sessions on a member, those connecting included.
    pub fn load(&self, cluster: &Arc<str>, member: &MemberName) -> usize {
        self.lock()
            .loads
            .get(&(Arc::clone(cluster), member.clone()))
            .copied()
            .unwrap_or_default()
    }

    /// Lets `choose` have the turns of a route. It must not come back here.
    pub(super) fn with_turns<T>(&self, route: &Arc<str>, choose: impl FnOnce(&mut Turns) -> T) -> T {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        match turns.get_mut(route) {
            Some(turns) => choose(turns),
            None => choose(turns.entry(Arc::clone(route)).or_default()),
        }
    }

    /// Enters a session; it leaves when the ticket is dropped. `Err` gives the attachment back: that process id and
    /// key are taken (which for a key of 32 random bits happens), so issue another key.
    // The error is the caller's own value, handed back.
    #[allow(clippy::result_large_err)]
    pub fn enter(self: &Arc<Self>, placement: Placement) -> Result<Ticket, Placement> {
        let mut inner = self.lock();
        if let Some(key) = &placement.key {
            let ids = inner.by_process_id.get(&placement.process_id);
            let mut others = ids.into_iter().flatten().filter_map(|id| inner.sessions.get(id));
            if others.any(|other| other.placement.has_key(key.expose())) {
                return Err(placement);
            }
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed) + 1;
        let process_id = placement.process_id;
        let can_be_found = placement.key.is_some();
        let entry = Arc::new(SessionEntry {
            id,
            placement,
            under_way: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            cancels: AtomicU32::new(0),
            in_transaction: AtomicBool::new(false),
            bytes_up: AtomicU64::new(0),
            bytes_down: AtomicU64::new(0),
            transactions: AtomicU64::new(0),
            ordered: AtomicBool::new(false),
            mailbox: Mutex::default(),
        });
        if can_be_found {
            inner.by_process_id.entry(process_id).or_default().push(id);
        }
        inner.sessions.insert(id, Arc::clone(&entry));
        drop(inner);
        Ok(Ticket {
            registry: Arc::clone(self),
            entry,
        })
    }

    /// The session a cancel request is for. Every key under that process id is compared, each in constant time.
    pub fn find(&self, process_id: u32, key: &[u8]) -> Option<Arc<SessionEntry>> {
        let inner = self.lock();
        let mut found = None;
        for id in inner.by_process_id.get(&process_id).into_iter().flatten() {
            let Some(entry) = inner.sessions.get(id) else {
                continue;
            };
            if entry.placement.has_key(key) {
                found = Some(Arc::clone(entry));
            }
        }
        found
    }

    /// The session of this number.
    pub fn session(&self, id: u64) -> Option<Arc<SessionEntry>> {
        self.lock().sessions.get(&id).cloned()
    }

    /// Every session there is now.
    pub fn sessions(&self) -> Vec<Arc<SessionEntry>> {
        self.lock().sessions.values().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.lock().sessions.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Moved since the start, by all sessions, past and present.
    pub fn traffic(&self) -> Traffic {
        let inner = self.lock();
        let mut sum = inner.past;
        for entry in inner.sessions.values() {
            sum.add(entry.traffic());
        }
        sum
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while it was held leaves counts that are at worst one off; no reason to end every session.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SessionEntry {
    /// Gives an order. A stricter one replaces a milder one; the first of equals stands.
    pub fn order(&self, order: Order) {
        let mut mailbox = self.mailbox();
        let replace = match (&mailbox.order, &order) {
            (None, _) | (Some(Order::AtBoundary(_)), Order::Now(_)) => true,
            (Some(_), _) => false,
        };
        if !replace {
            return;
        }
        mailbox.order = Some(order);
        self.ordered.store(true, Ordering::Release);
        let waker = mailbox.waker.clone();
        drop(mailbox);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Gives an order that stands until it is replaced, or taken back with `None`; it may have been carried out by then.
    /// One of [`Self::order`] stands beside it.
    pub fn leave(&self, leave: Option<Order>) {
        let mut mailbox = self.mailbox();
        if mailbox.leave == leave {
            return;
        }
        let is_given = leave.is_some();
        mailbox.leave = leave;
        self.ordered
            .store(is_given || mailbox.order.is_some(), Ordering::Release);
        let waker = mailbox.waker.clone().filter(|_| is_given);
        drop(mailbox);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The order given, if any, of two the stricter. One atomic load where there is none.
    pub fn ordered(&self) -> Option<Order> {
        if !self.ordered.load(Ordering::Acquire) {
            return None;
        }
        let mailbox = self.mailbox();
        match (&mailbox.order, &mailbox.leave) {
            (None | Some(Order::AtBoundary(_)), Some(leave @ Order::Now(_))) => Some(leave.clone()),
            (Some(order), _) => Some(order.clone()),
            (None, leave) => leave.clone(),
        }
    }

    /// Whom to wake for an order. Look at [`Self::ordered`] again afterwards.
    pub fn wake_for_orders(&self, waker: &Waker) {
        self.mailbox().waker = Some(waker.clone());
    }

    /// Is the server working for this session? Only then is a cancel passed on.
    pub fn in_flight(&self) -> bool {
        self.under_way().is_some()
    }

    /// Which request the server is working on, so that it can be told from the one before and the one after.
    pub(super) fn under_way(&self) -> Option<NonZeroU64> {
        NonZeroU64::new(self.under_way.load(Ordering::Acquire))
    }

    /// `true`: a request begins, also where another one was under way. Written by the session's own task only.
    pub(super) fn set_in_flight(&self, in_flight: bool) {
        let request = if in_flight {
            self.requests.fetch_add(1, Ordering::Relaxed) + 1
        } else {
            0
        };
        self.under_way.store(request, Ordering::Release);
    }

    /// A place among the cancel requests for this session, of which there may be so many at a time.
    pub(super) fn cancel_place(&self, most: u32) -> Option<CancelPlace<'_>> {
        let taken = &self.cancels;
        let next = taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            (taken < most).then(|| taken + 1)
        });
        next.ok().map(|_| CancelPlace(taken))
    }

    /// Is a transaction open, though the server is not working? Meaningless while it is.
    pub fn in_transaction(&self) -> bool {
        self.in_transaction.load(Ordering::Relaxed)
    }

    pub(super) fn set_in_transaction(&self, in_transaction: bool) {
        self.in_transaction.store(in_transaction, Ordering::Relaxed);
    }

    /// Written by the session's own task only.
    pub(super) fn record(&self, traffic: Traffic) {
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
pub(super) struct CancelPlace<'a>(&'a AtomicU32);

impl Drop for CancelPlace<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A place on a member; given back when dropped.
#[derive(Debug)]
pub struct Seat {
    registry: Arc<Registry>,
    place: MemberKey,
    /// Somebody may wait for it.
    is_bounded: bool,
}

impl Seat {
    pub fn member(&self) -> &MemberName {
        &self.place.1
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.registry.lock();
        if let Some(load) = inner.loads.get_mut(&self.place) {
            *load = load.saturating_sub(1);
            if *load == 0 {
                inner.loads.remove(&self.place);
            }
        }
        drop(inner);
        if self.is_bounded {
            self.registry.queues.freed(&self.place.0);
        }
    }
}

/// A session's membership of the registry; it leaves when this is dropped.
#[derive(Debug)]
pub struct Ticket {
    registry: Arc<Registry>,
    entry: Arc<SessionEntry>,
}

impl Ticket {
    pub fn entry(&self) -> &Arc<SessionEntry> {
        &self.entry
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut inner = self.registry.lock();
        inner.past.add(self.entry.traffic());
        inner.sessions.remove(&self.entry.id);
        let process_id = self.entry.placement.process_id;
        if let Some(ids) = inner.by_process_id.get_mut(&process_id) {
            ids.retain(|id| *id != self.entry.id);
            if ids.is_empty() {
                inner.by_process_id.remove(&process_id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::super::end::Reason;
    use super::super::keys::{Incarnation, KeyIssuer};
    use super::*;
    use crate::routing::{EndReason, LeaveReason};

    fn placement(process_id: u32, key: ClientCancelKey) -> Placement {
        Placement {
            client: Client::app(),
            cluster: "main".into(),
            route: "read-write".into(),
            granted: GrantedRole::ReadWrite,
            member: MemberName::new("db1"),
            whereabouts: None,
            process_id,
            key: Some(key),
            cancel: None,
            on_unfit: OnUnfit::default(),
        }
    }

    fn issuer() -> KeyIssuer {
        KeyIssuer::new(Incarnation::random(), None)
    }

    fn demoted() -> Reason {
        Reason::Role(EndReason::Demoted(MemberName::new("db1")))
    }

    #[test]
    fn a_session_is_found_by_process_id_and_key_together_while_it_lasts() {
        let (registry, keys) = (Arc::new(Registry::default()), issuer());
        let (one, two) = (keys.issue_v30(), keys.issue_v32());
        // Two members, two servers' processes of the same number.
        let first = registry.enter(placement(7, one.clone())).unwrap();
        let second = registry.enter(placement(7, two.clone())).unwrap();
        assert_eq!(registry.find(7, one.expose()).unwrap().id, first.entry().id);
        assert_eq!(registry.find(7, two.expose()).unwrap().id, second.entry().id);
        assert!(registry.find(8, one.expose()).is_none());
        assert!(registry.find(7, &one.expose()[..3]).is_none());
        assert!(registry.find(7, &[]).is_none());
        drop(first);
        assert!(registry.find(7, one.expose()).is_none());
        assert_eq!(registry.len(), 1);
        drop(second);
        assert!(registry.is_empty());
        assert!(registry.lock().by_process_id.is_empty(), "nothing is left behind");
    }

    #[test]
    fn a_key_that_is_taken_is_given_back() {
        let (registry, keys) = (Arc::new(Registry::default()), issuer());
        let key = keys.issue_v30();
        let ticket = registry.enter(placement(7, key.clone())).unwrap();
        let refused = registry.enter(placement(7, key.clone())).unwrap_err();
        assert_eq!(refused.process_id, 7);
        assert!(
            registry.enter(placement(8, key.clone())).is_ok(),
            "another process"
        );
        drop(ticket);
        assert!(registry.enter(placement(7, key)).is_ok());
    }

    #[test]
    fn a_stricter_order_replaces_a_milder_one_and_each_wakes_once() {
        #[derive(Default)]
        struct Count(AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let registry = Arc::new(Registry::default());
        let ticket = registry.enter(placement(1, issuer().issue_v30())).unwrap();
        let entry = ticket.entry();
        let woken = Arc::new(Count::default());
        let count = || woken.0.load(Ordering::Relaxed);
        entry.wake_for_orders(&Waker::from(Arc::clone(&woken)));
        assert_eq!(entry.ordered(), None);
        entry.order(Order::AtBoundary(Reason::Shutdown));
        entry.order(Order::AtBoundary(demoted()));
        assert_eq!(entry.ordered(), Some(Order::AtBoundary(Reason::Shutdown)));
        assert_eq!(count(), 1);
        entry.order(Order::Now(demoted()));
        entry.order(Order::Now(Reason::Shutdown));
        entry.order(Order::AtBoundary(Reason::Shutdown));
        assert_eq!(entry.ordered(), Some(Order::Now(demoted())));
        assert_eq!(count(), 2);
    }

    #[test]
    fn an_order_to_leave_can_be_taken_back_and_others_cannot() {
        let registry = Arc::new(Registry::default());
        let ticket = registry.enter(placement(1, issuer().issue_v30())).unwrap();
        let entry = ticket.entry();
        let lagging = || Reason::Unfit(LeaveReason::Lagging(MemberName::new("db1")));
        entry.leave(Some(Order::AtBoundary(lagging())));
        assert_eq!(entry.ordered(), Some(Order::AtBoundary(lagging())));
        entry.leave(None);
        assert_eq!(entry.ordered(), None);
        entry.order(Order::AtBoundary(Reason::Shutdown));
        entry.leave(Some(Order::AtBoundary(lagging())));
        assert_eq!(entry.ordered(), Some(Order::AtBoundary(Reason::Shutdown)));
        entry.leave(Some(Order::Now(lagging())));
        assert_eq!(entry.ordered(), Some(Order::Now(lagging())));
        entry.leave(None);
        assert_eq!(entry.ordered(), Some(Order::AtBoundary(Reason::Shutdown)));
        entry.order(Order::Now(demoted()));
        entry.leave(Some(Order::Now(lagging())));
        assert_eq!(entry.ordered(), Some(Order::Now(demoted())));
    }

    #[test]
    fn each_request_has_a_number_of_its_own() {
        let registry = Arc::new(Registry::default());
        let ticket = registry.enter(placement(1, issuer().issue_v30())).unwrap();
        let entry = ticket.entry();
        assert!(!entry.in_flight() && entry.under_way().is_none());
        entry.set_in_flight(true);
        let first = entry.under_way();
        assert!(first.is_some());
        // The next one, which was sent behind it.
        entry.set_in_flight(true);
        assert_ne!(entry.under_way(), first);
        entry.set_in_flight(false);
        assert!(entry.under_way().is_none());
        entry.set_in_flight(true);
        assert_ne!(entry.under_way(), first);
    }

    #[test]
    fn a_session_has_so_many_cancel_requests() {
        let registry = Arc::new(Registry::default());
        let ticket = registry.enter(placement(1, issuer().issue_v30())).unwrap();
        let held = [(); 2].map(|()| ticket.entry().cancel_place(2));
        assert!(held.iter().all(Option::is_some));
        assert!(ticket.entry().cancel_place(2).is_none());
        drop(held);
        assert!(ticket.entry().cancel_place(2).is_some());
    }

    #[test]
    fn an_order_before_anybody_listens_is_still_there() {
        let registry = Arc::new(Registry::default());
        let ticket = registry.enter(placement(1, issuer().issue_v30())).unwrap();
        ticket.entry().order(Order::Now(Reason::Shutdown));
        ticket.entry().wake_for_orders(Waker::noop());
        assert_eq!(ticket.entry().ordered(), Some(Order::Now(Reason::Shutdown)));
    }

    #[test]
    fn traffic_counts_sessions_past_and_present() {
        let (registry, keys) = (Arc::new(Registry::default()), issuer());
        let moved = |bytes| Traffic {
            bytes_up: bytes,
            bytes_down: 2 * bytes,
            transactions: 1,
        };
        let past = registry.enter(placement(1, keys.issue_v30())).unwrap();
        let present = registry.enter(placement(2, keys.issue_v30())).unwrap();
        past.entry().record(moved(10));
        present.entry().record(moved(100));
        drop(past);
        let expected = Traffic {
            bytes_up: 110,
            bytes_down: 220,
            transactions: 2,
        };
        assert_eq!(registry.traffic(), expected);
        drop(present);
        assert_eq!(registry.traffic(), expected);
    }

    #[test]
    fn a_bounded_member_has_so_many_seats() {
        let registry = Arc::new(Registry::default());
        let (main, db1) = (Arc::from("main"), MemberName::new("db1"));
        let one = registry.reserve_within(&main, &db1, 2).unwrap();
        let two = registry.reserve_within(&main, &db1, 2).unwrap();
        assert!(registry.reserve_within(&main, &db1, 2).is_none());
        assert!(
            registry
                .reserve_within(&main, &MemberName::new("db2"), 2)
                .is_some()
        );
        assert!(registry.reserve_within(&"other".into(), &db1, 2).is_some());
        assert_eq!(one.member(), &db1);
        drop(one);
        assert!(registry.reserve_within(&main, &db1, 2).is_some());
        drop(two);
        assert!(registry.lock().loads.is_empty(), "nothing is left behind");
    }

    #[test]
    fn a_seat_counts_as_long_as_it_is_held_and_by_cluster() {
        let registry = Arc::new(Registry::default());
        let (main, other): (Arc<str>, Arc<str>) = ("main".into(), "other".into());
        let db1 = MemberName::new("db1");
        let seats = [
            registry.reserve(&main, &db1),
            registry.reserve(&main, &db1),
            registry.reserve(&other, &db1),
        ];
        assert_eq!((registry.load(&main, &db1), registry.load(&other, &db1)), (2, 1));
        drop(seats);
        assert_eq!(registry.load(&main, &db1), 0);
        assert!(registry.lock().loads.is_empty(), "nothing is left behind");
    }
}
