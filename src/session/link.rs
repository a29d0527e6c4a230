//! One server connection while a session has it: what was asked on it, what it owes, and where it
//! is.

use std::sync::Arc;

use tokio::time::Instant;

use super::direction::Direction;
use super::end::Fate;
use super::hearing::Hearing;
use super::registry::Placement;
use super::sent::Sent;
use crate::backend::ServerStream;
use crate::cluster::ClusterHandle;
use crate::wire::observe::ServerObserver;
use crate::wire::pending::{PendingReplies, TransactionStatus};
use crate::wire::sqlstate::SqlState;

/// See the module.
#[derive(Debug)]
pub struct Link<S = ServerStream> {
    pub(super) stream: S,
    pub(super) observer: ServerObserver,
    pub(super) pending: PendingReplies,
    /// Requests that the server has not taken yet.
    pub(super) to_server: Direction,
    /// What of the client's stream has been written to the server.
    pub(super) sent: Sent,
    pub(super) placement: Arc<Placement>,
    pub(super) cluster: ClusterHandle,
    /// SQLSTATE of the server's own last word.
    pub(super) fatal: Option<SqlState>,
    /// When a session's 25006 was last passed on.
    pub(super) read_only_reported: Option<Instant>,
    /// The server has been told that nothing more comes.
    pub(super) end_passed_on: bool,
}

impl<S> Link<S> {
    /// A connection on which the server has said ReadyForQuery.
    pub fn new(stream: S, placement: Arc<Placement>, cluster: ClusterHandle) -> Self {
        Self {
            stream,
            observer: ServerObserver::default(),
            pending: PendingReplies::new(TransactionStatus::Idle),
            to_server: Direction::default(),
            sent: Sent::default(),
            placement,
            cluster,
            fatal: None,
            read_only_reported: None,
            end_passed_on: false,
        }
    }

    /// What is known of the client's last request.
    pub(super) fn fate(&self) -> Fate {
        if self.fatal.is_some() {
            // The server's own last word, to which there is nothing to add.
            return Fate::Settled;
        }
        // What is not sent includes messages of the router's own.
        let reached = |unanswered: usize| unanswered > self.sent.unsent(&self.to_server.rest);
        match self.pending.outstanding() {
            None => Fate::Unknown,
            Some(1..) if self.pending.unanswered().is_none_or(reached) => Fate::Unknown,
            Some(_) if self.pending.has_executed() => Fate::Unsynced,
            Some(_) if self.pending.is_open() => Fate::RolledBack,
            Some(_) => Fate::Settled,
        }
    }

    /// The observer of the server's stream, and what it reports to.
    #[inline]
    pub(super) fn hearing(&mut self) -> (&mut ServerObserver, Hearing<'_>) {
        let hearing = Hearing {
            pending: &mut self.pending,
            fatal: &mut self.fatal,
            read_only_reported: &mut self.read_only_reported,
            placement: &self.placement,
            cluster: &self.cluster,
        };
        (&mut self.observer, hearing)
    }

    /// Nothing is owed, no transaction is open, and nothing is on its way to the server.
    pub(super) fn is_at_boundary(&self) -> bool {
        self.pending.between_transactions() && self.observer.at_boundary() && self.to_server.rest.is_empty()
    }
}
