//! Makes a connection clean after a session that had it for itself, so that nothing of it is left
//! for the next one.

use bytes::BytesMut;
use tokio::time::Instant;

use super::boundary::parameter;
use super::connection::{PooledConnection, RoleState};
use super::exchange::{ExchangeError, Exchanged, exchange, send_and_read};
use super::state::Settings;
use crate::session::stream::SessionStream;
use crate::wire::pending::TransactionStatus;

/// `true`: the connection is as after its login. Each command is a Query of its own, because
/// `DISCARD ALL` cannot run in a transaction, and `RESET ALL` first, because some settings make
/// everything but SET, RESET and ROLLBACK wait or fail (P12, P31).
pub(super) async fn clean<S: SessionStream>(lease: &mut PooledConnection<S>, deadline: Instant) -> bool {
    let PooledConnection { link, state, .. } = lease;
    let is_usable = link.fatal.is_none()
        && !link.to_server.broken
        && link.to_server.rest.is_empty()
        && (link.pending.outstanding() == Some(0) || link.pending.waits_for_client())
        && !link.pending.is_uncertain();
    if !is_usable || !state.partial.is_empty() || !link.observer.at_boundary() {
        return false;
    }
    let mut status = match link.pending.status() {
        TransactionStatus::Idle => b'I',
        _ => b'T',
    };
    let mut heard = |tag: u8, body: &[u8]| {
        if let (b'S', Some((name, value))) = (tag, parameter(body)) {
            state.now.set(name, value);
        }
    };
    if !link.pending.is_idle() {
        // A batch is open. What is sent in it may be skipped, so its end comes first (P49). Its
        // Sync would commit what the client has not, so something that undoes it comes before.
        let mut out = BytesMut::new();
        let reads_copy = link.pending.reads_copy();
        if reads_copy {
            out.extend_from_slice(b"f\0\0\0\x05\0");
        } else {
            out.extend_from_slice(ROLLBACK_IN_BATCH);
        }
        if !reads_copy || link.pending.is_copying_in_batch() {
            out.extend_from_slice(b"S\0\0\0\x04");
        }
        match send_and_read(link, &out, deadline, &mut heard).await {
            Ok(exchanged) => status = exchanged.status,
            Err(_) => return false,
        }
    }
    if status != b'I' && !is_done(&exchange(link, "ROLLBACK", deadline, &mut heard).await) {
        return false;
    }
    for sql in ["RESET ALL", "DISCARD ALL"] {
        if !is_done(&exchange(link, sql, deadline, &mut heard).await) {
            return false;
        }
    }
    state.settings = Settings::NONE;
    state.statements.all_gone();
    link.pending = crate::wire::pending::PendingReplies::new(TransactionStatus::Idle);
    if state.role == RoleState::Doubted {
        lease.check_role(deadline).await;
    }
    lease.state.role == RoleState::Exists
}

/// Parse, Bind and Execute of ROLLBACK, without names. A server that is in no transaction block
/// rolls back what the batch has done, too, and only warns.
const ROLLBACK_IN_BATCH: &[u8] =
    b"P\0\0\0\x10\0ROLLBACK\0\0\0B\0\0\0\x0c\0\0\0\0\0\0\0\0E\0\0\0\x09\0\0\0\0\0";

fn is_done(exchanged: &Result<Exchanged, ExchangeError>) -> bool {
    matches!(
        exchanged,
        Ok(Exchanged {
            error: None,
            status: b'I'
        })
    )
}
