//! Sessions with the console. They are kept apart from those of clients: what counts, moves or ends
//! the sessions of a cluster, a route or a member never meets one. Their numbers are of the same
//! sequence.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio_util::sync::CancellationToken;

use super::{CancelKey, Origin, Registry, Traffic};
use crate::session::end::{Order, Reason};
use crate::wire::message;

/// One session with the console. Its task owns it; others read it, cancel what it runs and end it.
#[derive(Debug)]
pub struct ConsoleSession {
    pub id: u64,
    pub origin: Arc<Origin>,
    cancel_key: CancelKey,
    state: Mutex<ConsoleState>,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    transactions: AtomicU64,
    /// It has to end after what it runs now.
    at_boundary: CancellationToken,
    /// It has to end now.
    now: CancellationToken,
}

#[derive(Debug, Default)]
struct ConsoleState {
    activity: ConsoleActivity,
    /// Of the request under way: cancelled by the client's cancel request.
    request: CancellationToken,
    ending: Option<Reason>,
}

/// What a session with the console does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConsoleActivity {
    #[default]
    Idle,
    InTransaction,
    Active,
}

impl ConsoleSession {
    /// `BackendKeyData`, with which the client can cancel.
    pub fn write_key(&self, out: &mut BytesMut) {
        let CancelKey { process_id, key } = &self.cancel_key;
        message::backend_key_data(out, *process_id, key.expose());
    }

    pub fn activity(&self) -> ConsoleActivity {
        self.state().activity
    }

    /// A request is under way, with this token: cancelled if the client asks for that. Only the
    /// session's own task calls this.
    pub fn begin(&self) -> CancellationToken {
        let mut state = self.state();
        if state.activity != ConsoleActivity::Active {
            state.activity = ConsoleActivity::Active;
            state.request = CancellationToken::new();
        }
        state.request.clone()
    }

    /// Every request is answered. Only the session's own task calls this.
    pub fn rest(&self, is_in_transaction: bool) {
        let mut state = self.state();
        state.activity = if is_in_transaction {
            ConsoleActivity::InTransaction
        } else {
            self.transactions.fetch_add(1, Ordering::Relaxed);
            ConsoleActivity::Idle
        };
    }

    /// Cancels the request under way; `false`: there is none.
    pub fn cancel(&self) -> bool {
        let state = self.state();
        let is_active = state.activity == ConsoleActivity::Active;
        if is_active {
            state.request.cancel();
        }
        is_active
    }

    /// Ends it.
    pub fn order(&self, order: &Order) {
        let mut state = self.state();
        state.ending.get_or_insert_with(|| order.reason().clone());
        drop(state);
        self.at_boundary.cancel();
        if matches!(order, Order::Now(_)) {
            self.now.cancel();
        }
    }

    /// Why it is about to end.
    pub fn ending(&self) -> Option<Reason> {
        self.state().ending.clone()
    }

    /// Returns when it has to end, after what it runs.
    pub async fn has_to_end(&self) {
        self.at_boundary.cancelled().await;
    }

    /// Returns when it has to end at once.
    pub async fn has_to_end_now(&self) {
        self.now.cancelled().await;
    }

    /// Only the session's own task calls this.
    pub fn record(&self, bytes_up: u64, bytes_down: u64) {
        self.bytes_up.store(bytes_up, Ordering::Relaxed);
        self.bytes_down.store(bytes_down, Ordering::Relaxed);
    }

    pub fn traffic(&self) -> Traffic {
        Traffic {
            bytes_up: self.bytes_up.load(Ordering::Relaxed),
            bytes_down: self.bytes_down.load(Ordering::Relaxed),
            transactions: self.transactions.load(Ordering::Relaxed),
        }
    }

    fn state(&self) -> MutexGuard<'_, ConsoleState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those of a process, by number.
#[derive(Debug, Default)]
pub(super) struct Consoles(Mutex<BTreeMap<u64, Arc<ConsoleSession>>>);

impl Consoles {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<ConsoleSession>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    /// Enters a session with the console. `key`: its process id is one of
    /// [`Registry::pooled_process_id`], which no other session has. It leaves when the ticket is
    /// dropped.
    pub fn enter_console(self: &Arc<Self>, origin: Arc<Origin>, key: CancelKey) -> ConsoleTicket {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed) + 1;
        let session = Arc::new(ConsoleSession {
            id,
            origin,
            cancel_key: key,
            state: Mutex::default(),
            bytes_up: AtomicU64::new(0),
            bytes_down: AtomicU64::new(0),
            transactions: AtomicU64::new(0),
            at_boundary: CancellationToken::new(),
            now: CancellationToken::new(),
        });
        self.consoles.lock().insert(id, Arc::clone(&session));
        ConsoleTicket {
            registry: Arc::clone(self),
            session,
        }
    }

    /// Sessions with the console, by number.
    pub fn consoles(&self) -> Vec<Arc<ConsoleSession>> {
        self.consoles.lock().values().cloned().collect()
    }

    /// The session with the console of this number.
    pub fn console(&self, id: u64) -> Option<Arc<ConsoleSession>> {
        self.consoles.lock().get(&id).cloned()
    }

    /// The session with the console that a cancel request is for. The key is compared in constant
    /// time.
    pub(in crate::session) fn find_console(
        &self,
        process_id: u32,
        key: &[u8],
    ) -> Option<Arc<ConsoleSession>> {
        let consoles = self.consoles.lock();
        let mut found = None;
        for session in consoles.values() {
            if session.cancel_key.process_id == process_id && session.cancel_key.key.matches(key) {
                found = Some(Arc::clone(session));
            }
        }
        found
    }
}

/// A console session's entry; it leaves the registry when this is dropped.
#[derive(Debug)]
pub struct ConsoleTicket {
    registry: Arc<Registry>,
    session: Arc<ConsoleSession>,
}

impl ConsoleTicket {
    pub fn session(&self) -> &Arc<ConsoleSession> {
        &self.session
    }
}

impl Drop for ConsoleTicket {
    fn drop(&mut self) {
        self.registry.consoles.lock().remove(&self.session.id);
    }
}

#[cfg(any(test, fuzzing))]
impl ConsoleSession {
    /// In a registry of its own.
    pub(crate) fn alone() -> ConsoleTicket {
        use crate::session::keys::{Incarnation, KeyIssuer};
        let keys = KeyIssuer::new(Incarnation::random(), None);
        let origin = Arc::new(Origin {
            client: super::Client::app(),
            cluster: "main".into(),
            route: "read-write".into(),
            on_unfit: crate::config::Route::read_only("r", "main").on_unfit,
            kind: super::SessionKind::Ordinary,
            counts: Arc::default(),
        });
        let key = CancelKey {
            process_id: 1 << 30,
            key: keys.issue_v30(),
        };
        Arc::<Registry>::default().enter_console(origin, key)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_session_with_the_console_is_listed_apart_and_leaves_with_its_ticket() {
        let ticket = ConsoleSession::alone();
        let (registry, session) = (Arc::clone(&ticket.registry), Arc::clone(ticket.session()));
        assert_eq!(
            (registry.len(), registry.consoles().len()),
            (0, 1),
            "no client's session"
        );
        assert!(registry.session(session.id).is_none());
        assert_eq!(registry.console(session.id).unwrap().id, session.id);
        assert_eq!(registry.last_number(), session.id, "of the same sequence");
        drop(ticket);
        assert!(registry.consoles().is_empty() && registry.console(session.id).is_none());
    }

    #[test]
    fn only_its_own_key_cancels_and_only_what_is_under_way() {
        let ticket = ConsoleSession::alone();
        let (registry, session) = (&ticket.registry, ticket.session());
        let CancelKey { process_id, key } = &session.cancel_key;
        assert!(registry.find_console(*process_id, key.expose()).is_some());
        assert!(registry.find_console(*process_id + 1, key.expose()).is_none());
        assert!(registry.find_console(*process_id, &[]).is_none());
        let mut other = key.expose().to_vec();
        other[0] ^= 1;
        assert!(registry.find_console(*process_id, &other).is_none());
        assert!(!session.cancel(), "nothing is under way");
        let first = session.begin();
        assert!(!first.is_cancelled() && session.cancel() && first.is_cancelled());
        session.rest(true);
        assert_eq!(session.activity(), ConsoleActivity::InTransaction);
        assert!(!session.cancel());
        assert!(!session.begin().is_cancelled(), "the next one has its own");
        session.rest(false);
        assert_eq!(session.traffic().transactions, 1);
    }

    #[tokio::test]
    async fn the_first_reason_stays_and_a_stricter_order_counts() {
        let ticket = ConsoleSession::alone();
        let session = ticket.session();
        session.order(&Order::AtBoundary(Reason::Killed));
        session.has_to_end().await;
        assert!(!session.now.is_cancelled());
        session.order(&Order::Now(Reason::Shutdown));
        session.has_to_end_now().await;
        assert_eq!(session.ending(), Some(Reason::Killed));
    }
}
