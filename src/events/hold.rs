//! Routes begin and end to hold their clients.

use std::fmt;

use serde::Serialize;

use super::{Level, log_at};

/// One for a route's hold, not for each client. `by` is who ordered it, if anybody did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum HoldEvent {
    HoldBegun {
        route: String,
        cause: String,
        by: Option<String>,
        /// At most.
        lasts_ms: u64,
        /// The state of each member.
        because: Option<String>,
    },
    /// Clients go on.
    HoldEnded {
        route: String,
        cause: String,
        by: Option<String>,
        /// Clients that were held, all together.
        clients: u64,
        /// Of them, those that wait for their turn.
        held: usize,
        after_ms: u64,
    },
    /// Clients get an error from now on.
    HoldFailed {
        route: String,
        cause: String,
        by: Option<String>,
        clients: u64,
        held: usize,
        after_ms: u64,
        error: String,
    },
    /// The time of a pause is over.
    PauseExpired {
        route: String,
        by: Option<String>,
        after_ms: u64,
    },
}

impl HoldEvent {
    pub(super) fn level(&self) -> Level {
        match self {
            Self::HoldFailed { .. } | Self::PauseExpired { .. } => Level::Warn,
            Self::HoldBegun { .. } | Self::HoldEnded { .. } => Level::Info,
        }
    }

    pub(super) fn log(&self) {
        macro_rules! line {
            ($($fields:tt)+) => {
                log_at!(self.level(), "trunkline::session::gate", $($fields)+, "{self}")
            };
        }
        match self {
            Self::HoldBegun {
                route,
                cause,
                by,
                because,
                ..
            } => line!(%route, why = %cause, by, because),
            Self::HoldEnded {
                route,
                cause,
                by,
                clients,
                held,
                ..
            } => line!(%route, why = %cause, by, clients, held),
            Self::HoldFailed {
                route,
                cause,
                by,
                clients,
                held,
                error,
                ..
            } => line!(%route, why = %cause, by, clients, held, error),
            Self::PauseExpired { route, by, .. } => line!(%route, by),
        }
    }
}

impl fmt::Display for HoldEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HoldBegun { lasts_ms, .. } => write!(f, "clients are held for up to {lasts_ms} ms"),
            Self::HoldEnded { after_ms, .. } => write!(f, "held clients go on after {after_ms} ms"),
            Self::HoldFailed { after_ms, .. } => {
                write!(f, "clients are held no longer, after {after_ms} ms")
            }
            Self::PauseExpired { after_ms, .. } => {
                write!(
                    f,
                    "the pause of the route is over: its timeout has passed, after {after_ms} ms"
                )
            }
        }
    }
}
