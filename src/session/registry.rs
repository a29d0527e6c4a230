//! Every session of this process. Cancel requests, shutdown, role changes and statistics reach
//! sessions through the registry, and only through it.
//!
//! A session keeps its [`Origin`] for its whole life. Its [`Placement`] says where its server
//! connection is: it is replaced together with the server connection, and absent while there is
//! none.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::end::Order;
use super::keys::ClientCancelKey;
use super::listener_settings::ListenerSettings;
use crate::backend::CancelTarget;
use crate::cluster::server_identity::ServerLocation;
use crate::cluster::snapshot::{MemberName, Snapshot};
use crate::config::OnUnfit;
use crate::frontend::ClientAddress;
use crate::routing::{self, GrantedRole, SessionVerdict};

/// Shared by every worker. The lock is taken when a session begins or ends, for a cancel and for
/// statistics; never while bytes are relayed.
#[derive(Debug, Default)]
pub struct Registry {
    inner: Mutex<Inner>,
    next_id: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    /// By cluster and id, so that a change of one cluster costs nothing for the sessions of
    /// another.
    clusters: HashMap<Arc<str>, HashMap<u64, Arc<SessionEntry>>>,
    /// By the process id in the client's cancel key. It is the server's process id, so several
    /// sessions may have the same one.
    by_process_id: HashMap<u32, Vec<Arc<SessionEntry>>>,
    /// The traffic of sessions that are over.
    past: Traffic,
}

/// What a session has transferred.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// From the client to the server.
    pub bytes_up: u64,
    /// From the server to the client.
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

/// The client of a session.
#[derive(Debug, Clone)]
pub struct Client {
    pub address: ClientAddress,
    /// As the client wrote it.
    pub user: Bytes,
    /// As the client wrote it.
    pub database: Bytes,
    /// TLS version and cipher; `None` in clear.
    pub tls: Option<&'static str>,
    /// When its connection was accepted.
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

/// What does not change during a session.
#[derive(Debug)]
pub struct Origin {
    pub client: Client,
    pub cluster: Arc<str>,
    pub route: Arc<str>,
    pub on_unfit: OnUnfit,
}

/// The process id and key that the router sent the client in BackendKeyData.
#[derive(Debug, Clone)]
pub struct CancelKey {
    pub process_id: u32,
    pub key: ClientCancelKey,
}

impl Origin {
    pub(super) fn new(client: Client, listener: &ListenerSettings) -> Self {
        Self {
            client,
            cluster: Arc::clone(&listener.cluster.config().name),
            route: Arc::clone(&listener.route.name),
            on_unfit: listener.route.on_unfit,
        }
    }
}

/// Another session has this process id and key already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyTaken;

/// Where a session's server connection is.
#[derive(Debug)]
pub struct Placement {
    pub member: MemberName,
    pub granted: GrantedRole,
    /// Which server the router has seen under the member's name.
    pub whereabouts: Option<ServerLocation>,
    /// The server's process id; 0 if the server sent none, or if the router does not see it (`mode:
    /// tcp`).
    pub process_id: u32,
    /// `None` if the server sent no key: a cancel then has no effect.
    pub cancel: Option<CancelTarget>,
}

impl Placement {
    /// What this snapshot means for the session.
    pub fn verdict(&self, snapshot: &Snapshot) -> SessionVerdict {
        routing::verdict(snapshot, self.granted, &self.member, self.whereabouts.as_ref())
    }
}

/// The number of a request within its session. It distinguishes the request from those before and
/// after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestNumber(NonZeroU64);

/// What a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Between two transactions.
    Idle,
    /// A transaction is open, and the server is not working on a request.
    InTransaction,
    /// The server is working on this request, the last one sent.
    Active(RequestNumber),
}

/// An [`Activity`] in one atomic.
#[derive(Debug, Default)]
struct ActivityCell(AtomicU64);

impl ActivityCell {
    const IDLE: u64 = 0;
    const IN_TRANSACTION: u64 = 1;
    /// From here on, request numbers.
    const FIRST: u64 = 2;

    fn load(&self) -> Activity {
        match self.0.load(Ordering::SeqCst) {
            Self::IDLE => Activity::Idle,
            Self::IN_TRANSACTION => Activity::InTransaction,
            request => NonZeroU64::new(request - (Self::FIRST - 1))
                .map_or(Activity::Idle, |number| Activity::Active(RequestNumber(number))),
        }
    }

    fn store(&self, activity: Activity) {
        let value = match activity {
            Activity::Idle => Self::IDLE,
            Activity::InTransaction => Self::IN_TRANSACTION,
            Activity::Active(RequestNumber(number)) => number.get() + (Self::FIRST - 1),
        };
        // Sequentially consistent with `SessionEntry::cancels`, see `set_activity`.
        self.0.store(value, Ordering::SeqCst);
    }
}

/// One session. The session's task owns it; other tasks read it and give orders.
#[derive(Debug)]
pub struct SessionEntry {
    pub id: u64,
    pub origin: Arc<Origin>,
    /// The key with which the client cancels; `None` with `mode: tcp`, where the client has the
    /// server's key and the router does not know it.
    pub(super) cancel_key: Option<CancelKey>,
    placement: ArcSwapOption<Placement>,
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
    /// Whether the mailbox has an order. The relay reads this on every wake-up.
    ordered: AtomicBool,
    mailbox: Mutex<Mailbox>,
}

#[derive(Debug, Default)]
struct Mailbox {
    /// Never withdrawn.
    order: Option<Order>,
    /// Present while the server is not fit for the route.
    leave: Option<Order>,
    waker: Option<Waker>,
}

impl Registry {
    /// Enters a session, which has no server connection yet. It leaves the registry when the ticket
    /// is dropped.
    ///
    /// # Errors
    /// Another session has this process id and key (with 32 random bits this happens): issue
    /// another key.
    pub fn enter(
        self: &Arc<Self>,
        origin: Arc<Origin>,
        cancel_key: Option<CancelKey>,
    ) -> Result<Ticket, KeyTaken> {
        let mut inner = self.lock();
        if let Some(CancelKey { process_id, key }) = &cancel_key {
            let mut others = inner.by_process_id.get(process_id).into_iter().flatten();
            if others.any(|other| other.has_key(key.expose())) {
                return Err(KeyTaken);
            }
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed) + 1;
        let entry = Arc::new(SessionEntry {
            id,
            origin,
            cancel_key,
            placement: ArcSwapOption::empty(),
            activity: ActivityCell::default(),
            requests: AtomicU64::new(0),
            cancels: AtomicU32::new(0),
            activity_changed: Notify::new(),
            bytes_up: AtomicU64::new(0),
            bytes_down: AtomicU64::new(0),
            transactions: AtomicU64::new(0),
            ordered: AtomicBool::new(false),
            mailbox: Mutex::default(),
        });
        if let Some(key) = &entry.cancel_key {
            let same = inner.by_process_id.entry(key.process_id).or_default();
            same.push(Arc::clone(&entry));
        }
        let cluster = inner.clusters.entry(Arc::clone(&entry.origin.cluster));
        cluster.or_default().insert(id, Arc::clone(&entry));
        drop(inner);
        Ok(Ticket {
            registry: Arc::clone(self),
            entry,
        })
    }

    /// The next sessions have higher numbers than this: those of the process before this one have
    /// the numbers up to it.
    pub fn number_from(&self, number: u64) {
        self.next_id.fetch_max(number, Ordering::Relaxed);
    }

    /// The highest number that a session has had.
    pub fn last_number(&self) -> u64 {
        self.next_id.load(Ordering::Relaxed)
    }

    /// The session that a cancel request is for. It compares every key with that process id, each
    /// in constant time.
    pub fn find(&self, process_id: u32, key: &[u8]) -> Option<Arc<SessionEntry>> {
        let inner = self.lock();
        let mut found = None;
        for entry in inner.by_process_id.get(&process_id).into_iter().flatten() {
            if entry.has_key(key) {
                found = Some(Arc::clone(entry));
            }
        }
        found
    }

    /// The session with this id.
    pub fn session(&self, id: u64) -> Option<Arc<SessionEntry>> {
        let inner = self.lock();
        inner
            .clusters
            .values()
            .find_map(|cluster| cluster.get(&id))
            .cloned()
    }

    /// All sessions.
    pub fn sessions(&self) -> Vec<Arc<SessionEntry>> {
        let inner = self.lock();
        inner
            .clusters
            .values()
            .flat_map(HashMap::values)
            .cloned()
            .collect()
    }

    /// All sessions of this cluster.
    pub fn sessions_of(&self, cluster: &str) -> Vec<Arc<SessionEntry>> {
        let inner = self.lock();
        let sessions = inner.clusters.get(cluster).into_iter();
        sessions.flat_map(HashMap::values).cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.lock().clusters.values().map(HashMap::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The traffic of all sessions since the start, past and present.
    pub fn traffic(&self) -> Traffic {
        let inner = self.lock();
        let mut sum = inner.past;
        for entry in inner.clusters.values().flat_map(HashMap::values) {
            sum.add(entry.traffic());
        }
        sum
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while it is held leaves counts wrong by one at most; that is no reason to end
        // every session.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SessionEntry {
    /// Compares in constant time.
    fn has_key(&self, key: &[u8]) -> bool {
        self.cancel_key.as_ref().is_some_and(|own| own.key.matches(key))
    }

    /// Where the server connection is; `None` while there is none.
    pub fn placement(&self) -> Option<Arc<Placement>> {
        self.placement.load_full()
    }

    /// The session has another server connection, or none. Only the session's own task calls this.
    pub(super) fn place(&self, placement: Option<Arc<Placement>>) {
        self.placement.store(placement);
    }

    /// Gives an order. A stricter order replaces a milder one; of two equally strict ones the first
    /// stays.
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

    /// Gives an order that stays until it is replaced, or withdrawn with `None`; the session may
    /// have followed it by then. It does not replace an order of [`Self::order`].
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

    /// The order to follow, if any: the stricter one of two. Without an order this is one atomic
    /// load.
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
    pub(super) fn under_way(&self) -> Option<RequestNumber> {
        match self.activity() {
            Activity::Active(request) => Some(request),
            Activity::Idle | Activity::InTransaction => None,
        }
    }

    /// A request begins, even while another one is under way. Only the session's own task calls
    /// this.
    pub(super) fn begin_request(&self) {
        let number = self.requests.load(Ordering::Relaxed) + 1;
        self.requests.store(number, Ordering::Relaxed);
        if let Some(number) = NonZeroU64::new(number) {
            self.set_activity(Activity::Active(RequestNumber(number)));
        }
    }

    /// The server has answered every request. Only the session's own task calls this.
    pub(super) fn rest(&self, activity: Activity) {
        self.set_activity(activity);
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
    pub(super) async fn until_over(&self, request: RequestNumber) {
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
    pub(super) fn cancel_place(&self, most: u32) -> Option<CancelPlace<'_>> {
        let taken = &self.cancels;
        let next = taken.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |taken| {
            (taken < most).then(|| taken + 1)
        });
        next.ok().map(|_| CancelPlace(taken))
    }

    /// Sets what the session has transferred so far. Only the session's own task calls this.
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

/// A session's entry in the registry; the session leaves the registry when this is dropped.
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
        let origin = &self.entry.origin;
        let mut inner = self.registry.lock();
        inner.past.add(self.entry.traffic());
        if let Some(sessions) = inner.clusters.get_mut(&origin.cluster) {
            sessions.remove(&self.entry.id);
            if sessions.is_empty() {
                inner.clusters.remove(&origin.cluster);
            }
        }
        let Some(CancelKey { process_id, .. }) = self.entry.cancel_key else {
            return;
        };
        if let Some(entries) = inner.by_process_id.get_mut(&process_id) {
            entries.retain(|entry| entry.id != self.entry.id);
            if entries.is_empty() {
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

    fn origin() -> Arc<Origin> {
        Arc::new(Origin {
            client: Client::app(),
            cluster: "main".into(),
            route: "read-write".into(),
            on_unfit: crate::config::Route::read_only("r", "main").on_unfit,
        })
    }

    fn placement(member: &str) -> Arc<Placement> {
        Arc::new(Placement {
            member: MemberName::new(member),
            granted: GrantedRole::ReadWrite,
            whereabouts: None,
            process_id: 7,
            cancel: None,
        })
    }

    fn enter(registry: &Arc<Registry>, process_id: u32, key: ClientCancelKey) -> Result<Ticket, KeyTaken> {
        registry.enter(origin(), Some(CancelKey { process_id, key }))
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
        // Processes of two members may have the same id.
        let first = enter(&registry, 7, one.clone()).unwrap();
        let second = enter(&registry, 7, two.clone()).unwrap();
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
    fn a_key_that_is_taken_is_refused() {
        let (registry, keys) = (Arc::new(Registry::default()), issuer());
        let key = keys.issue_v30();
        let ticket = enter(&registry, 7, key.clone()).unwrap();
        assert_eq!(enter(&registry, 7, key.clone()).err(), Some(KeyTaken));
        assert!(enter(&registry, 8, key.clone()).is_ok(), "another process");
        drop(ticket);
        assert!(enter(&registry, 7, key).is_ok());
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
        let ticket = enter(&registry, 1, issuer().issue_v30()).unwrap();
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
        let ticket = enter(&registry, 1, issuer().issue_v30()).unwrap();
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
    fn each_request_has_its_own_number() {
        let registry = Arc::new(Registry::default());
        let ticket = enter(&registry, 1, issuer().issue_v30()).unwrap();
        let entry = ticket.entry();
        assert_eq!(entry.activity(), Activity::Idle);
        entry.begin_request();
        let first = entry.under_way();
        assert!(first.is_some() && entry.in_flight());
        // The next request, sent before the first was answered.
        entry.begin_request();
        assert_ne!(entry.under_way(), first);
        entry.rest(Activity::InTransaction);
        assert_eq!(entry.activity(), Activity::InTransaction);
        entry.begin_request();
        assert_ne!(entry.under_way(), first);
        entry.rest(Activity::Idle);
        assert_eq!(entry.activity(), Activity::Idle);
        assert!(entry.under_way().is_none());
    }

    #[tokio::test]
    async fn a_waiting_cancel_is_notified_when_its_request_is_over() {
        let registry = Arc::new(Registry::default());
        let ticket = enter(&registry, 1, issuer().issue_v30()).unwrap();
        let entry = ticket.entry();
        entry.begin_request();
        let request = entry.under_way().unwrap();
        let _place = entry.cancel_place(1).unwrap();
        let over = entry.until_over(request);
        tokio::pin!(over);
        assert!(futures_util::poll!(&mut over).is_pending());
        entry.begin_request();
        assert!(futures_util::poll!(&mut over).is_ready());
        entry.until_over(request).await;
    }

    #[test]
    fn a_session_that_moved_to_another_member_is_found_by_the_same_key() {
        let (registry, key) = (Arc::new(Registry::default()), issuer().issue_v32());
        let ticket = enter(&registry, 7, key.clone()).unwrap();
        let member = || {
            let entry = registry.find(7, key.expose()).unwrap();
            entry.placement().map(|placement| placement.member.clone())
        };
        assert_eq!(member(), None);
        ticket.entry().place(Some(placement("db1")));
        assert_eq!(member(), Some(MemberName::new("db1")));
        ticket.entry().place(Some(placement("db2")));
        assert_eq!(member(), Some(MemberName::new("db2")));
        assert_eq!(registry.sessions_of("main").len(), 1);
        assert!(registry.sessions_of("other").is_empty());
    }

    #[test]
    fn the_cancel_requests_of_a_session_are_limited() {
        let registry = Arc::new(Registry::default());
        let ticket = enter(&registry, 1, issuer().issue_v30()).unwrap();
        let held = [(); 2].map(|()| ticket.entry().cancel_place(2));
        assert!(held.iter().all(Option::is_some));
        assert!(ticket.entry().cancel_place(2).is_none());
        drop(held);
        assert!(ticket.entry().cancel_place(2).is_some());
    }

    #[test]
    fn an_order_given_before_the_waker_is_set_is_kept() {
        let registry = Arc::new(Registry::default());
        let ticket = enter(&registry, 1, issuer().issue_v30()).unwrap();
        ticket.entry().order(Order::Now(Reason::Shutdown));
        ticket.entry().wake_for_orders(Waker::noop());
        assert_eq!(ticket.entry().ordered(), Some(Order::Now(Reason::Shutdown)));
    }

    #[test]
    fn traffic_counts_sessions_past_and_present() {
        let (registry, keys) = (Arc::new(Registry::default()), issuer());
        let traffic = |bytes| Traffic {
            bytes_up: bytes,
            bytes_down: 2 * bytes,
            transactions: 1,
        };
        let past = enter(&registry, 1, keys.issue_v30()).unwrap();
        let present = enter(&registry, 2, keys.issue_v30()).unwrap();
        past.entry().record(traffic(10));
        present.entry().record(traffic(100));
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
}
