//! Where a gate stands: open, shut, or failing fast. A pure function of one snapshot, the route,
//! its pause, and what the gate has seen before.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::unavailable;
use crate::cluster::snapshot::{Cause, Leader, Snapshot};
use crate::config::{Access, Route};
use crate::routing::{self, Choice, Reason};
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// How long clients are held where neither the configuration nor Patroni says it.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(40);

/// Whether clients of a route can be served.
#[derive(Debug, Clone)]
pub(super) enum Position {
    /// A member may serve the route.
    Open,
    /// None may now, or an operator has paused the route: clients wait until this moment, and then
    /// get the error.
    Shut {
        until: Instant,
        error: Box<ErrorReply>,
        why: ShutReason,
    },
    /// None may, and waiting is no use: clients get the error at once.
    FailFast(Box<ErrorReply>),
}

impl Position {
    /// Until when clients are held at most, if they are.
    pub(super) fn until(&self) -> Option<Instant> {
        match self {
            Self::Shut { until, .. } => Some(*until),
            Self::Open | Self::FailFast(_) => None,
        }
    }

    /// The same kind of position, for the same reason.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Shut { why, .. }, Self::Shut { why: other, .. }) => why == other,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

/// Why a gate is shut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::session) enum ShutReason {
    /// No member may serve the route now.
    NoServer,
    /// By an operator.
    Paused,
}

impl std::fmt::Display for ShutReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NoServer => "no server may serve the route",
            Self::Paused => "an operator has paused the route",
        })
    }
}

/// What a gate remembers from one evaluation to the next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct GateMemory {
    /// A member could serve the route once. Before that nobody is held: perhaps none ever will.
    pub(super) has_served: bool,
    /// Since when no member can.
    pub(super) lost: Option<Instant>,
}

/// How long clients of the route are held at most after its last server was lost.
pub(super) fn hold_timeout(snapshot: &Snapshot, route: &Route) -> Duration {
    let from_cluster = || snapshot.patience.unwrap_or(DEFAULT_TIMEOUT);
    route.hold.timeout.unwrap_or_else(from_cluster)
}

/// `paused`: until when an operator has paused the route.
pub(super) fn evaluate(
    memory: &mut GateMemory,
    snapshot: &Snapshot,
    route: &Route,
    paused: Option<Instant>,
    now: Instant,
) -> Position {
    let available = routing::check_available(snapshot, route);
    if available.is_ok() {
        *memory = GateMemory {
            has_served: true,
            lost: None,
        };
    } else {
        memory.lost.get_or_insert(now);
    }
    if let Some(until) = paused {
        return Position::Shut {
            until,
            error: Box::new(paused_by_operator(route)),
            why: ShutReason::Paused,
        };
    }
    let Err(choice) = available else {
        return Position::Open;
    };
    let error = Box::new(unavailable(snapshot, route, &choice));
    let timeout = hold_timeout(snapshot, route);
    let until = memory.lost.unwrap_or(now) + timeout;
    let is_held = route.holds_clients()
        && memory.has_served
        && snapshot.hears
        && now < until
        && may_pass(snapshot, route, &choice);
    if !is_held {
        return Position::FailFast(error);
    }
    Position::Shut {
        until,
        error,
        why: ShutReason::NoServer,
    }
}

/// Whether a failover, a server's return, or the end of a drain may end the lack of servers. A
/// drained member is worked on and comes back; one in maintenance is gone until further notice.
fn may_pass(snapshot: &Snapshot, route: &Route, choice: &Choice) -> bool {
    if route.access == Access::ReadWrite {
        return match &snapshot.leader {
            // Otherwise it is in maintenance, or lacks what the route asks for.
            Leader::Verified { member, .. } => choice.refused.iter().any(|(refused, reason)| {
                refused == member && matches!(reason, Reason::Leaving(_) | Reason::Draining)
            }),
            Leader::None(why) => why.cause() == Cause::Passing,
        };
    }
    choice.refused.iter().any(|(_, reason)| match reason {
        Reason::NotYetProbed
        | Reason::Down(_)
        | Reason::Full
        | Reason::Promoting
        | Reason::State(_)
        | Reason::Unidentified
        | Reason::Draining
        | Reason::Leaving(_) => true,
        Reason::NoLeader(why) => why.cause() == Cause::Passing,
        // The leader that is there will not become a replica by itself.
        Reason::Writable
        | Reason::IsLeader
        | Reason::NotLeader
        | Reason::NoAddress
        | Reason::Foreign
        | Reason::Maintenance
        | Reason::Role(_)
        | Reason::NoLoadBalance
        | Reason::NotWanted(_)
        | Reason::Tag(_)
        | Reason::Lagging
        | Reason::LagUnknown => false,
    })
}

fn paused_by_operator(route: &Route) -> ErrorReply {
    ErrorReply::fatal(
        SqlState::CANNOT_CONNECT_NOW,
        format!("an operator has paused the route {}", route.name),
    )
    .hint("Clients wait until the pause ends. Try again later.")
}

/// The error for a client that is one too many.
pub(super) fn too_many(route: &Arc<Route>, most: u32, error: &ErrorReply) -> ErrorReply {
    ErrorReply {
        hint: None,
        ..error.clone()
    }
    .hint(format!(
        "{most} clients of the route {} already wait for a server (hold.max_clients). Try again later.",
        route.name
    ))
}
