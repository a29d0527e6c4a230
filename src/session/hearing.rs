//! What a server says on a session's connection, one message after the other: what it still owes,
//! what the session does, and what concerns the server's fitness.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::end::{Order, Reason};
use super::registry::{Activity, Placement, SessionEntry};
use crate::cluster::{ClusterHandle, Evidence};
use crate::routing::{EndReason, GrantedRole};
use crate::wire::observe::ServerEvent;
use crate::wire::pending::{Owner, PendingReplies};
use crate::wire::sqlstate::SqlState;

/// Between two hints of one session that its server may have been demoted.
const HINT_EVERY: Duration = Duration::from_secs(1);

/// The parts of a link that follow what its server says.
pub(super) struct Hearing<'a> {
    pub(super) pending: &'a mut PendingReplies,
    pub(super) fatal: &'a mut Option<SqlState>,
    pub(super) read_only_reported: &'a mut Option<Instant>,
    pub(super) placement: &'a Arc<Placement>,
    pub(super) cluster: &'a ClusterHandle,
}

impl Hearing<'_> {
    /// Takes one message; says whose answer it is. The session of `entry` has the connection.
    #[inline]
    pub(super) fn hear(&mut self, entry: &SessionEntry, event: &ServerEvent<'_>) -> Owner {
        let owner = self.pending.server(event);
        match event {
            ServerEvent::ReadyForQuery(_) => {
                // What was sent behind it is another request: a cancel for the one before must not
                // hit it.
                if !self.pending.is_idle() {
                    entry.begin_request();
                } else if self.pending.between_transactions() {
                    entry.rest(Activity::Idle);
                } else {
                    entry.rest(Activity::InTransaction);
                }
            }
            ServerEvent::Error(report) => {
                let code = report.code();
                if owner == Owner::Client {
                    entry.origin.counts.server_error(code);
                }
                if report.is_fatal() {
                    *self.fatal = Some(code);
                }
                match evidence_of(code, report.is_fatal(), self.placement.granted) {
                    // A client can have as many of these as it likes.
                    Some(Evidence::ReadOnlySeen) if !due(self.read_only_reported) => {}
                    Some(evidence) => self.cluster.evidence(&self.placement.member, evidence),
                    None => {}
                }
            }
            ServerEvent::Parameter {
                name: b"in_hot_standby",
                value: b"off",
            } if self.placement.granted == GrantedRole::ReadOnly => {
                self.cluster.evidence(&self.placement.member, Evidence::Promoted);
                let reason = EndReason::Promoted(self.placement.member.clone());
                entry.order_on(self.placement, Order::Now(Reason::Role(reason)));
            }
            _ => {}
        }
        owner
    }
}

/// What a server's error says of its fitness: never more than that a probe should look. An ERROR
/// may have any SQLSTATE a client likes (`RAISE … USING ERRCODE`), and so may a FATAL
/// (`plpy.fatal`); the harmless 25006 is expected on a standby.
fn evidence_of(code: SqlState, is_fatal: bool, granted: GrantedRole) -> Option<Evidence> {
    match (code, is_fatal, granted) {
        (SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN | SqlState::CANNOT_CONNECT_NOW, true, _) => {
            Some(Evidence::Terminated)
        }
        (SqlState::READ_ONLY_TRANSACTION, _, GrantedRole::ReadWrite) => Some(Evidence::ReadOnlySeen),
        _ => None,
    }
}

/// Whether [`HINT_EVERY`] is over since the last time, which is now then.
fn due(last: &mut Option<Instant>) -> bool {
    let now = Instant::now();
    let is_due = last.is_none_or(|at| now.saturating_duration_since(at) >= HINT_EVERY);
    if is_due {
        *last = Some(now);
    }
    is_due
}
