//! What clients are told that get no server at a gate.

use super::QueueError;
use crate::cluster::snapshot::Snapshot;
use crate::config::{Cluster, Route};
use crate::routing;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// The error for a client that was held and had no turn.
pub(super) fn not_released(route: &Route) -> ErrorReply {
    ErrorReply::fatal(
            SqlState::TOO_MANY_CONNECTIONS,
            format!("too many clients of the route {} wait for a server", route.name),
        )
        .hint(format!(
            "They were held while there was none, and this one had no turn within {} ms (queue_timeout). Try again \
             later.",
            route.queue.timeout.as_millis()
        ))
}

/// The error if no member may serve the route.
pub(in crate::session) fn unavailable(
    snapshot: &Snapshot,
    route: &Route,
    choice: &routing::Choice,
) -> ErrorReply {
    let (message, hint) = routing::unavailable(snapshot, route, choice);
    ErrorReply::fatal(SqlState::CANNOT_CONNECT_NOW, message).hint(hint)
}

/// Whether a new client can expect a server that was fit when it was heard of last. A router that
/// is cut off notices that nothing answers before it has lost each member.
///
/// # Errors
/// The router hears nothing of the cluster.
pub(in crate::session) fn hears(snapshot: &Snapshot, route: &Route) -> Result<(), ErrorReply> {
    if !snapshot.is_cut_off() {
        return Ok(());
    }
    let message = format!(
        "no server accepts {} sessions now: this router hears nothing of the cluster",
        route.access
    );
    let hint = "Neither Patroni nor a server has answered it for more than a second. Another router may still serve \
                you; try again later.";
    Err(ErrorReply::fatal(SqlState::CANNOT_CONNECT_NOW, message).hint(hint))
}

/// The error for a client whose session waited too long, or may not wait.
pub(in crate::session) fn busy(cluster: &Cluster, route: &Route, error: QueueError) -> ErrorReply {
    let most = cluster.max_connections;
    let reason = match error {
        QueueError::Timeout => format!(
            "No session ended within {} ms (queue_timeout).",
            route.queue.timeout.as_millis()
        ),
        QueueError::Full if route.queue.most == 0 => {
            "Clients may not wait for a session to end (max_queue is 0).".to_owned()
        }
        QueueError::Full => format!(
            "{} clients already wait for a session to end (max_queue).",
            route.queue.most
        ),
    };
    ErrorReply::fatal(
        SqlState::TOO_MANY_CONNECTIONS,
        format!("every server for {} sessions is full", route.access),
    )
    .hint(format!(
        "The router gives each server at most {most} sessions (server.max_connections). {reason} Try again later, or \
         ask the operator to raise these limits."
    ))
}
