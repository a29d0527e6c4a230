//! How far a standby may lag for a route, and what happens to the sessions of a member that is no longer fit.

use std::time::Duration;

use crate::config::units::secs;

const GRACE: Duration = secs(30);

/// How far a standby may be behind the leader; one of the two is limited at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxLag {
    /// WAL written and not replayed, in bytes: 1 kB to 1024 TB.
    pub bytes: Option<Limit<u64>>,
    /// How long it has been since it had replayed all there was: two probe intervals to 24 h.
    pub time: Option<Limit<Duration>>,
}

/// A limit, and what a member that was beyond it must come down to (default: half of it).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit<T> {
    pub most: T,
    /// Not more than `most`.
    pub recover: T,
}

/// What happens to the live sessions of a member that is no longer fit for their route. A session keeps what was so
/// when it began. A change of the member's role ends them at once, whatever is written here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnUnfit {
    /// It lags too far behind (default `keep`).
    pub lag: Unfit,
    /// It is down by our probes (default `keep`: a connection may live, and a dead one ends by itself).
    pub down: Unfit,
    /// How long `close`, and maintenance, wait for the end of a transaction, 0 to 24 h (default 30 s).
    pub grace: Duration,
}

impl Default for OnUnfit {
    fn default() -> Self {
        Self {
            lag: Unfit::Keep,
            down: Unfit::Keep,
            grace: GRACE,
        }
    }
}

/// What happens to live sessions, milder first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Unfit {
    #[default]
    Keep,
    /// They end between transactions, whenever that is.
    CloseIdle,
    /// They end between transactions, or when the grace period is over.
    Close,
}
