//! What can be seen of pools.

use std::time::Duration;

use super::key::PoolName;
use super::pinned::PinCounts;
use crate::cluster::snapshot::MemberName;

/// The numbers of a pool at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolView {
    pub name: PoolName,
    /// Those that have connections.
    pub members: Vec<PoolMemberView>,
    /// To each member. For sessions that keep their own connection (`resume: tracked`), it is the
    /// cluster's `server.max_connections`; `None`: there is no limit.
    pub max_connections: Option<usize>,
    /// To each member, on top.
    pub reserve: usize,
    /// Sessions that wait for a connection.
    pub waiting: usize,
    /// Of the session that waits first.
    pub longest_wait: Duration,
    /// How long ago a session was last refused a connection.
    pub last_refused: Option<Duration>,
}

/// The connections of a pool to one member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolMemberView {
    pub member: MemberName,
    pub idle: usize,
    pub leased: usize,
    pub opening: usize,
    /// Of all: they are closed instead of being used again, as an operator has ordered.
    pub outdated: usize,
    /// Of the leased ones: sessions keep them between transactions.
    pub pinned: PinCounts,
    /// The idle ones, if they were asked for.
    pub idle_connections: Vec<IdleConnectionView>,
}

/// A connection that no session has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdleConnectionView {
    /// The server's process.
    pub process_id: u32,
    /// Since its last session gave it back, or since it was opened.
    pub idle: Duration,
    /// Sessions that have had it, one after the other.
    pub leases: u64,
}
