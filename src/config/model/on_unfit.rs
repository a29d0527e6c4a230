//! How far a standby may lag for a route, and what happens to the sessions of a member that is no
//! longer fit.

use std::time::Duration;

use super::words::words;

/// How far a standby may be behind the leader; one of the two is limited at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxLag {
    /// WAL written and not replayed, in bytes: 1 kB to 1024 TB.
    pub bytes: Option<Limit<u64>>,
    /// How long it has been since it had replayed all there was: two probe intervals to 24 h.
    pub time: Option<Limit<Duration>>,
}

/// A limit, and the value that a member that exceeded it must reach again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit<T> {
    pub most: T,
    /// Not more than `most`.
    pub recover: T,
}

/// What happens to the live sessions of a member that is no longer fit for their route. A session
/// keeps what was so when it began. A change of the member's role ends them at once, regardless of
/// this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnUnfit {
    /// It lags too far behind.
    pub lag: Unfit,
    /// It is down according to the probes. A connection may still live, and a dead one ends by
    /// itself.
    pub down: Unfit,
    /// How long `close`, and maintenance, wait for the end of a transaction, 0 to 24 h.
    pub grace: Duration,
}

words! {
    /// What happens to live sessions, milder first.
    #[derive(PartialOrd, Ord)]
    pub enum Unfit {
        Keep = "keep",
        /// They end between transactions, whenever that is.
        CloseIdle = "close_idle",
        /// They end between transactions, or when the grace period is over.
        Close = "close",
    }
}
