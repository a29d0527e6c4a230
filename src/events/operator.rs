//! The actions of operators on the running router.

use std::fmt;

use serde::Serialize;

use super::{Level, log_at};

/// One action. `by` is the address that requested it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum OperatorEvent {
    AdminStateSet {
        cluster: String,
        member: String,
        /// `ready`, `drain` or `maint`.
        state: String,
        by: String,
    },
    WeightSet {
        cluster: String,
        member: String,
        weight: u16,
        by: String,
    },
    /// The configuration and the tags set the weight again.
    WeightReset {
        cluster: String,
        member: String,
        by: String,
    },
    /// The router ends the sessions on a member.
    SessionsEnded {
        cluster: String,
        member: String,
        sessions: usize,
        how: String,
        by: String,
    },
    /// The router ends one session.
    SessionEnded {
        session: u64,
        client: String,
        user: String,
        member: String,
        how: String,
        by: String,
    },
    /// Server connections of pools are replaced.
    Reconnect {
        which: String,
        connections: usize,
        by: String,
    },
    /// The route gets no new sessions.
    RouteDisabled {
        route: String,
        by: String,
    },
    RouteEnabled {
        route: String,
        by: String,
    },
    /// Clients of the route wait.
    RoutePaused {
        route: String,
        by: String,
    },
    RouteUnpaused {
        route: String,
        by: String,
    },
    RouterDrained {
        by: String,
    },
    RouterReady {
        by: String,
    },
    IdentityForgotten {
        cluster: String,
        /// The identifier that was known before.
        identifier: Option<u64>,
        by: String,
    },
    /// A member's clients were held before its server was stopped.
    StopPrepared {
        cluster: String,
        member: String,
        /// Still open on all routers that answer.
        transactions: u32,
        waited_ms: u64,
        by: String,
    },
    /// The member is not stopped after all: its clients go on.
    StopCalledOff {
        cluster: String,
        member: String,
        by: String,
    },
    SwitchoverBegun {
        cluster: String,
        leader: String,
        candidate: String,
        by: String,
    },
    SwitchoverEnded {
        cluster: String,
        leader: String,
        has_succeeded: bool,
        /// The last step.
        how: String,
    },
    ReloadAsked {
        by: String,
    },
}

impl OperatorEvent {
    pub(super) fn level(&self) -> Level {
        match self {
            Self::IdentityForgotten { .. }
            | Self::SwitchoverEnded {
                has_succeeded: false, ..
            } => Level::Warn,
            _ => Level::Info,
        }
    }

    pub(super) fn log(&self) {
        macro_rules! line {
            ($($fields:tt)+) => {
                log_at!(self.level(), "trunkline::admin::http::api", $($fields)+, "{self}")
            };
        }
        match self {
            Self::AdminStateSet {
                cluster,
                member,
                state,
                by,
            } => line!(%cluster, %member, %state, %by),
            Self::WeightSet {
                cluster,
                member,
                weight,
                by,
            } => line!(%cluster, %member, weight, %by),
            Self::WeightReset { cluster, member, by } | Self::StopCalledOff { cluster, member, by } => {
                line!(%cluster, %member, %by);
            }
            Self::SessionsEnded {
                cluster,
                member,
                sessions,
                how,
                by,
            } => line!(%cluster, %member, sessions, %how, %by),
            Self::SessionEnded {
                session,
                client,
                user,
                member,
                how,
                by,
            } => line!(session, client, ?user, member, %how, %by),
            Self::Reconnect {
                which,
                connections,
                by,
            } => line!(%which, connections, %by),
            Self::RouteDisabled { route, by }
            | Self::RouteEnabled { route, by }
            | Self::RoutePaused { route, by }
            | Self::RouteUnpaused { route, by } => line!(%route, %by),
            Self::RouterDrained { by } | Self::RouterReady { by } | Self::ReloadAsked { by } => line!(%by),
            Self::StopPrepared {
                cluster,
                member,
                transactions,
                waited_ms,
                by,
            } => line!(%cluster, %member, transactions, waited_ms, %by),
            Self::SwitchoverBegun {
                cluster,
                leader,
                candidate,
                by,
            } => line!(%cluster, %leader, %candidate, %by),
            Self::SwitchoverEnded {
                cluster, leader, how, ..
            } => line!(%cluster, %leader, %how),
            Self::IdentityForgotten {
                cluster,
                identifier,
                by,
            } => line!(%cluster, identifier, %by),
        }
    }
}

impl fmt::Display for OperatorEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AdminStateSet { .. } => "administrative state set",
            Self::WeightSet { .. } => "weight set",
            Self::WeightReset { .. } => "weight reset to the configured value",
            Self::SessionsEnded { .. } => "ending the sessions on a member",
            Self::SessionEnded { .. } => "ending a session",
            Self::Reconnect { .. } => "connections of pools are replaced",
            Self::RouteDisabled { .. } => {
                "the route is disabled: it gets no new sessions, and its sessions go on"
            }
            Self::RouteEnabled { .. } => "the route is enabled again",
            Self::RoutePaused { .. } => "the route is paused: its clients wait",
            Self::RouteUnpaused { .. } => "the route is no longer paused",
            Self::RouterDrained { .. } => {
                "the router is drained: it serves as before, and reports to balancers that it is not ready"
            }
            Self::RouterReady { .. } => "the router is ready again",
            Self::IdentityForgotten { .. } => {
                "the cluster's system identifier is forgotten; the router learns it again"
            }
            Self::StopPrepared { .. } => {
                "the clients of a member are held: its server is about to be stopped"
            }
            Self::StopCalledOff { .. } => "the member is not stopped after all: its clients go on",
            Self::SwitchoverBegun { .. } => "a switchover begins",
            Self::SwitchoverEnded {
                has_succeeded: true, ..
            } => "the switchover is over",
            Self::SwitchoverEnded { .. } => "the switchover has failed",
            Self::ReloadAsked { .. } => "an operator asks for a reload",
        })
    }
}
