//! What a session is doing, for those who cancel its requests and for operators.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

/// The number of a request within its session. It distinguishes the request from those before and
/// after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestNumber(pub(super) NonZeroU64);

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
pub(super) struct ActivityCell(AtomicU64);

impl ActivityCell {
    const IDLE: u64 = 0;
    const IN_TRANSACTION: u64 = 1;
    /// From here on, request numbers.
    const FIRST: u64 = 2;

    pub(super) fn load(&self) -> Activity {
        match self.0.load(Ordering::SeqCst) {
            Self::IDLE => Activity::Idle,
            Self::IN_TRANSACTION => Activity::InTransaction,
            request => NonZeroU64::new(request - (Self::FIRST - 1))
                .map_or(Activity::Idle, |number| Activity::Active(RequestNumber(number))),
        }
    }

    pub(super) fn store(&self, activity: Activity) {
        let value = match activity {
            Activity::Idle => Self::IDLE,
            Activity::InTransaction => Self::IN_TRANSACTION,
            Activity::Active(RequestNumber(number)) => number.get() + (Self::FIRST - 1),
        };
        // Sequentially consistent with `SessionEntry::cancels`, see `set_activity`.
        self.0.store(value, Ordering::SeqCst);
    }
}
