//! The sizes and times of one pool.

use std::time::Duration;

use tokio::time::Instant;

use super::key::PoolName;
use crate::config::Route;
use crate::routing::chance;

/// What the configuration says of the pool of one server user and one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limits {
    /// Connections to each member.
    pub(super) most: usize,
    /// The route has no pool: each tracked session has a connection of its own, and `most` is out
    /// of reach.
    pub(super) is_tracking: bool,
    /// As many to each preferred member are kept ready.
    pub(super) least: usize,
    /// Further connections to each member, for sessions that have waited for `reserve_delay`.
    pub(super) reserve: usize,
    pub(super) reserve_delay: Duration,
    pub(super) idle_timeout: Option<Duration>,
    pub(super) max_lifetime: Duration,
    /// Connections to each member that are being opened at once.
    pub(super) connects: usize,
    pub(super) wait_notify: Option<Duration>,
    pub(super) queue_timeout: Duration,
    pub(super) max_queue: usize,
}

impl Limits {
    /// `None`: the route has no pool.
    pub(super) fn of(route: &Route, name: &PoolName) -> Option<Self> {
        let pool = route.session_pool()?;
        let user = String::from_utf8_lossy(&name.user);
        let database = String::from_utf8_lossy(&name.database);
        let limits = pool.limits_for(&user, &database);
        Some(Self {
            most: limits.max_connections as usize,
            is_tracking: route.pool.is_none(),
            least: limits.min_connections as usize,
            reserve: limits.reserve as usize,
            reserve_delay: limits.reserve_delay,
            idle_timeout: limits.idle_timeout,
            max_lifetime: limits.max_lifetime,
            connects: pool.connects as usize,
            wait_notify: pool.wait_notify,
            queue_timeout: route.queue.timeout,
            max_queue: route.queue.most as usize,
        })
    }

    /// As many connections to a member may exist for a session that has waited so long.
    pub(super) fn most_after(&self, waited: Duration) -> usize {
        if self.reserve > 0 && waited >= self.reserve_delay {
            self.most + self.reserve
        } else {
            self.most
        }
    }

    /// When a connection that is opened now is not used again: connections that are opened together
    /// do not all end together.
    pub(super) fn expiry(&self, now: Instant) -> Instant {
        let tenth = self.max_lifetime / 10;
        let thousandth = u32::try_from(chance() % 1_001).unwrap_or_default();
        now + self.max_lifetime - tenth * thousandth / 1_000
    }
}
