//! Every session of this process. Cancel requests, shutdown, role changes and statistics reach
//! sessions through the registry, and only through it.
//!
//! A session keeps its [`Origin`] for its whole life. Its [`Placement`] says where its server
//! connection is: it is replaced together with the server connection, and absent while there is
//! none.

mod activity;
mod consoles;
mod databases;
mod entry;
mod mailbox;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::time::Instant;

pub use activity::{Activity, RequestNumber};
pub use consoles::{ConsoleActivity, ConsoleSession, ConsoleTicket};
pub use databases::DatabaseTotals;
pub use entry::{Phase, SessionEntry};

use databases::Databases;

use super::counts::RouteCounts;
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
    consoles: consoles::Consoles,
    next_id: AtomicU64,
    next_pooled: AtomicU64,
}

#[derive(Debug, Default)]
struct Inner {
    /// By cluster and id, so that a change of one cluster costs nothing for the sessions of
    /// another.
    clusters: HashMap<Arc<str>, HashMap<u64, Arc<SessionEntry>>>,
    /// By the process id in the client's cancel key. It is the server's process id, so several
    /// sessions may have the same one.
    by_process_id: HashMap<u32, Vec<Arc<SessionEntry>>>,
    /// The traffic of sessions that are over, by route. A route that a listener has had stays.
    past: HashMap<Arc<str>, Traffic>,
    /// Their traffic by database, and how many sessions have begun.
    databases: Databases,
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

#[cfg(any(test, fuzzing))]
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
    pub kind: SessionKind,
    /// Of the route.
    pub counts: Arc<RouteCounts>,
}

/// What the router sees of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SessionKind {
    /// Requests and their answers.
    #[default]
    Ordinary,
    /// A replication connection: it is always at work.
    Replication,
    /// Bytes only (`mode: tcp`).
    Forwarded,
}

/// The process id and key that the router sent the client in BackendKeyData.
#[derive(Debug, Clone)]
pub struct CancelKey {
    pub process_id: u32,
    pub key: ClientCancelKey,
}

impl Origin {
    pub(super) fn new(client: Client, listener: &ListenerSettings, kind: SessionKind) -> Self {
        Self {
            client,
            kind,
            cluster: Arc::clone(&listener.cluster.config().name),
            route: Arc::clone(&listener.route.name),
            on_unfit: listener.route.on_unfit,
            counts: Arc::clone(listener.gate.counts()),
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
        let entry = Arc::new(SessionEntry::new(id, origin, cancel_key));
        if let Some(key) = &entry.cancel_key {
            let same = inner.by_process_id.entry(key.process_id).or_default();
            same.push(Arc::clone(&entry));
        }
        inner.databases.begun(&entry.origin.client.database);
        let cluster = inner.clusters.entry(Arc::clone(&entry.origin.cluster));
        cluster.or_default().insert(id, Arc::clone(&entry));
        drop(inner);
        Ok(Ticket {
            registry: Arc::clone(self),
            entry,
        })
    }

    /// A process id for the cancel key of a session with a pool, whose server process changes:
    /// above those that Linux gives.
    pub(super) fn pooled_process_id(&self) -> u32 {
        const FIRST: u64 = 1 << 30;
        let next = self.next_pooled.fetch_add(1, Ordering::Relaxed) % FIRST;
        u32::try_from(FIRST + next).unwrap_or(u32::MAX)
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

    /// Sessions of a route.
    pub fn len_of(&self, route: &str) -> usize {
        let inner = self.lock();
        let sessions = inner.clusters.values().flat_map(HashMap::values);
        sessions.filter(|entry| &*entry.origin.route == route).count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The traffic of all sessions since the start, past and present.
    pub fn traffic(&self) -> Traffic {
        let mut sum = Traffic::default();
        for traffic in self.traffic_by_route().into_values() {
            sum.add(traffic);
        }
        sum
    }

    /// As [`Self::traffic`], by route.
    pub fn traffic_by_route(&self) -> BTreeMap<Arc<str>, Traffic> {
        let inner = self.lock();
        let past = inner.past.iter();
        let mut all: BTreeMap<Arc<str>, Traffic> =
            past.map(|(route, past)| (Arc::clone(route), *past)).collect();
        for entry in inner.clusters.values().flat_map(HashMap::values) {
            let of = match all.get_mut(&entry.origin.route) {
                Some(of) => of,
                None => all.entry(Arc::clone(&entry.origin.route)).or_default(),
            };
            of.add(entry.traffic());
        }
        all
    }

    /// What the sessions of each database have moved since the start, past and present.
    pub fn databases(&self) -> BTreeMap<Bytes, DatabaseTotals> {
        let inner = self.lock();
        let mut all = inner.databases.clone();
        for entry in inner.clusters.values().flat_map(HashMap::values) {
            all.moved(&entry.origin.client.database, entry.traffic());
        }
        all.into_all()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while it is held leaves counts wrong by one at most; that is no reason to end
        // every session.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
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
        let traffic = self.entry.traffic();
        inner.databases.moved(&origin.client.database, traffic);
        match inner.past.get_mut(&origin.route) {
            Some(past) => past.add(traffic),
            None => drop(inner.past.insert(Arc::clone(&origin.route), traffic)),
        }
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
    use std::task::{Wake, Waker};

    use super::super::end::{Order, Reason};
    use super::super::keys::{Incarnation, KeyIssuer};
    use super::*;
    use crate::routing::{EndReason, LeaveReason};

    fn origin() -> Arc<Origin> {
        Arc::new(Origin {
            client: Client::app(),
            cluster: "main".into(),
            route: "read-write".into(),
            on_unfit: crate::config::Route::read_only("r", "main").on_unfit,
            kind: SessionKind::Ordinary,
            counts: Arc::default(),
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
        let (entry, place) = (ticket.entry(), placement("db1"));
        let lagging = || Reason::Unfit(LeaveReason::Lagging(MemberName::new("db1")));
        entry.leave(&place, Some(Order::AtBoundary(lagging())));
        assert_eq!(entry.ordered(), Some(Order::AtBoundary(lagging())));
        entry.leave(&place, None);
        assert_eq!(entry.ordered(), None);
        entry.order(Order::AtBoundary(Reason::Shutdown));
        entry.leave(&place, Some(Order::AtBoundary(lagging())));
        assert_eq!(entry.ordered(), Some(Order::AtBoundary(Reason::Shutdown)));
        entry.leave(&place, Some(Order::Now(lagging())));
        assert_eq!(entry.ordered(), Some(Order::Now(lagging())));
        entry.leave(&place, None);
        assert_eq!(entry.ordered(), Some(Order::AtBoundary(Reason::Shutdown)));
        entry.order(Order::Now(demoted()));
        entry.leave(&place, Some(Order::Now(lagging())));
        assert_eq!(entry.ordered(), Some(Order::Now(demoted())));
    }

    #[test]
    fn an_order_about_a_connection_means_nothing_on_another_one() {
        let registry = Arc::new(Registry::default());
        let ticket = enter(&registry, 1, issuer().issue_v30()).unwrap();
        let (entry, old, new) = (ticket.entry(), placement("db1"), placement("db1"));
        entry.order_on(&old, Order::Now(demoted()));
        assert_eq!(entry.ordered_on(Some(&old)), Some(Order::Now(demoted())));
        assert_eq!(entry.ordered_on(Some(&new)), None);
        assert_eq!(entry.ordered_on(Some(&old)), None, "it is gone");
        // One about the new connection takes the place of one about the old.
        entry.order_on(&old, Order::Now(demoted()));
        entry.order_on(&new, Order::AtBoundary(demoted()));
        assert_eq!(entry.ordered_on(Some(&new)), Some(Order::AtBoundary(demoted())));
        entry.order(Order::AtBoundary(Reason::Shutdown));
        assert_eq!(entry.ordered_on(None), Some(Order::AtBoundary(Reason::Shutdown)));
    }

    #[tokio::test]
    async fn a_connection_is_not_free_before_its_cancel_requests_have_ended() {
        let registry = Arc::new(Registry::default());
        let ticket = enter(&registry, 1, issuer().issue_v30()).unwrap();
        let entry = ticket.entry();
        assert!(!entry.until_no_cancels().await);
        let place = entry.cancel_place(4).unwrap();
        let free = entry.until_no_cancels();
        tokio::pin!(free);
        assert!(futures_util::poll!(&mut free).is_pending());
        place.may_be_late();
        drop(place);
        assert!(free.await, "the request may still arrive");
        assert!(!entry.until_no_cancels().await);
        // The same if it failed before anybody waited for its end.
        assert!(!entry.has_cancels());
        entry.cancel_place(4).unwrap().may_be_late();
        assert!(entry.has_cancels());
        assert!(entry.until_no_cancels().await);
        assert!(!entry.has_cancels());
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

    #[tokio::test(start_paused = true)]
    async fn for_how_long_a_connection_is_held_counts_from_its_lease() {
        let registry = Arc::new(Registry::default());
        let ticket = enter(&registry, 7, issuer().issue_v30()).unwrap();
        let entry = ticket.entry();
        entry.place(Some(placement("db1")));
        assert_eq!(entry.held_s(), None, "without a pool");
        tokio::time::advance(std::time::Duration::from_secs(100)).await;
        entry.set_held_since(Instant::now());
        assert_eq!(entry.held_s(), Some(0));
        tokio::time::advance(std::time::Duration::from_secs(30)).await;
        assert_eq!(entry.held_s(), Some(30));
        entry.place(None);
        assert_eq!(entry.held_s(), None, "given back");
        // It idled before the session came.
        entry.place(Some(placement("db1")));
        entry.set_held_since(entry.origin.client.since - std::time::Duration::from_millis(1));
        assert_eq!(entry.held_s(), Some(130));
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
        let by_route = registry.traffic_by_route();
        assert_eq!(
            by_route.into_iter().collect::<Vec<_>>(),
            [("read-write".into(), expected)]
        );
    }
}
