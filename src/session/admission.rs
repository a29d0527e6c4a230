//! Limits at the door: connections that have not logged in yet, and sessions at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use super::gate::Gate;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// How long new connections are left in the kernel's queue while too many are logging in, before they are refused.
const PATIENCE: Duration = Duration::from_secs(1);

/// Counts who is inside.
#[derive(Debug)]
pub struct Admission {
    max_clients: u32,
    max_pending: u32,
    clients: Arc<AtomicU32>,
    pending: Arc<AtomicU32>,
    /// Since when there has been no room for another login.
    full_since: Mutex<Option<Instant>>,
}

/// A place that is given back when dropped.
#[derive(Debug)]
struct Place(Arc<AtomicU32>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A place among the connections that are logging in.
#[derive(Debug)]
pub struct Pending {
    _place: Place,
}

/// A place among the sessions, of the whole and of the listener.
#[derive(Debug)]
pub struct Admitted {
    _total: Place,
    _listener: Place,
}

/// Whether there is room for one more login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Yes,
    /// Leave the connection where it is for now.
    Wait,
    /// There has been none for too long: say so.
    Refuse,
}

fn take(counter: &Arc<AtomicU32>, limit: u32) -> Option<Place> {
    let limit = if limit == 0 { u32::MAX } else { limit };
    let taken = counter.fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| {
        (count < limit).then(|| count + 1)
    });
    taken.ok().map(|_| Place(Arc::clone(counter)))
}

impl Admission {
    pub fn new(max_clients: u32, max_pending: u32) -> Self {
        Self {
            max_clients,
            max_pending,
            clients: Arc::default(),
            pending: Arc::default(),
            full_since: Mutex::default(),
        }
    }

    /// A burst waits in the kernel's queue, which costs nobody anything; a siege is told to go.
    pub fn room(&self, now: Instant) -> Room {
        let mut full_since = self.full_since.lock().unwrap_or_else(PoisonError::into_inner);
        if self.pending.load(Ordering::Acquire) < self.max_pending {
            *full_since = None;
            return Room::Yes;
        }
        let since = *full_since.get_or_insert(now);
        if now.duration_since(since) < PATIENCE {
            Room::Wait
        } else {
            Room::Refuse
        }
    }

    /// A place for a login.
    pub fn pending(&self) -> Option<Pending> {
        take(&self.pending, self.max_pending).map(|place| Pending { _place: place })
    }

    /// A place for a session.
    pub fn admit(&self, gate: &Gate) -> Result<Admitted, ErrorReply> {
        let refusal = |hint: &str| {
            ErrorReply::fatal(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already").hint(hint)
        };
        let total = take(&self.clients, self.max_clients)
            .ok_or_else(|| refusal("The connection manager's limits.max_clients is reached."))?;
        let listener = take(&gate.clients, gate.max_clients)
            .ok_or_else(|| refusal("The max_clients of this port of the connection manager is reached."))?;
        Ok(Admitted {
            _total: total,
            _listener: listener,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_waits_and_a_siege_is_refused() {
        let admission = Admission::new(0, 2);
        let first = admission.pending().expect("room");
        let _second = admission.pending().expect("room");
        assert!(admission.pending().is_none());
        assert_eq!(admission.room(Instant::now()), Room::Wait);
        tokio::time::advance(PATIENCE).await;
        assert_eq!(admission.room(Instant::now()), Room::Refuse);
        drop(first);
        assert_eq!(admission.room(Instant::now()), Room::Yes);
        assert!(admission.pending().is_some());
    }
}
