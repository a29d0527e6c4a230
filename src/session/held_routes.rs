//! Which routes hold their clients now, and why: as gates see it.
//!
//! A hold is one value, with its cause, who ordered it and its end. Its beginning and its end are
//! told once to a listener, not for each client.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::snapshot::{Leader, MemberName, OrderedBy, Snapshot, StopOrder};
use crate::config::{Access, Route};
use crate::routing::{Choice, Reason};

/// Why a route holds its clients. `Display` says it in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HoldCause {
    /// An operator has paused the route.
    Paused(Option<OrderedBy>),
    /// The server of the member is about to be stopped.
    Stop(MemberName, Arc<StopOrder>),
    /// An operator drains the only member that could serve.
    Drained(MemberName),
    /// No server may serve the route.
    NoServer,
}

impl HoldCause {
    /// Why no member may serve the route.
    pub(super) fn of(snapshot: &Snapshot, route: &Route, choice: &Choice) -> Self {
        let is_about = |member: &MemberName| match &snapshot.leader {
            Leader::Verified { member: leader, .. } => route.access != Access::ReadWrite || leader == member,
            Leader::None(_) => route.access != Access::ReadWrite,
        };
        let mut drained = None;
        for (member, reason) in choice.refused.iter().filter(|(member, _)| is_about(member)) {
            match reason {
                Reason::Leaving(order) => return Self::Stop(member.clone(), Arc::clone(order)),
                Reason::Draining if drained.is_none() => drained = Some(member.clone()),
                _ => {}
            }
        }
        drained.map_or(Self::NoServer, Self::Drained)
    }

    /// One word, for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Paused(_) => "pause",
            Self::Stop(_, order) => order.command(),
            Self::Drained(_) => "drain",
            Self::NoServer => "no server",
        }
    }

    pub fn by(&self) -> Option<&OrderedBy> {
        match self {
            Self::Paused(by) => by.as_ref(),
            Self::Stop(_, order) => order.by.as_ref(),
            Self::Drained(_) | Self::NoServer => None,
        }
    }

    /// What an operator can do to end it.
    pub fn ended_by(&self, route: &str) -> String {
        let router = self
            .by()
            .map(|by| by.router.as_str())
            .filter(|router| !router.is_empty());
        let there = router.map(|router| format!(" at {router}")).unwrap_or_default();
        match self {
            Self::Paused(_) => {
                format!(
                    "`trunkline unpause {route}`, or RESUME {route} in the console; with --all-peers if it was paused so"
                )
            }
            Self::Stop(_, order) if order.is_switchover => format!(
                "`trunkline switchover --abort`{there}, or ABORT SWITCHOVER in the console there, as long as Patroni has \
                 not been asked; otherwise it ends by itself"
            ),
            Self::Stop(member, _) => format!(
                "`trunkline before-stop --end --member {member}`{there}; it ends by itself when the server has been stopped and one serves again"
            ),
            Self::Drained(member) => format!("`trunkline ready {member}`, or READY {member} in the console"),
            Self::NoServer => "it ends by itself when a server can serve the route".to_owned(),
        }
    }
}

impl fmt::Display for HoldCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused(_) => f.write_str("an operator has paused the route"),
            Self::Stop(member, order) => {
                write!(f, "{member} is about to be stopped ({})", order.command())
            }
            Self::Drained(member) => write!(f, "{member} is being drained at this router"),
            Self::NoServer => f.write_str("no server may serve the route"),
        }
    }
}

/// A route that holds its clients.
#[derive(Debug, Clone)]
pub struct HeldRoute {
    pub route: Arc<str>,
    pub cluster: Arc<str>,
    /// Clients of this process that wait now.
    pub clients: usize,
    pub cause: HoldCause,
    pub since: Instant,
    /// When clients are held no longer, at the latest.
    pub until: Instant,
}

/// A beginning, or an end.
#[derive(Debug, Clone)]
pub enum HoldChange {
    Begun {
        route: Arc<str>,
        cause: HoldCause,
        lasts: Duration,
        /// The state of each member, for the log.
        because: Option<String>,
    },
    Ended {
        route: Arc<str>,
        cause: HoldCause,
        /// Clients that were held, all together.
        clients: u64,
        /// Of them, those that still wait for their turn.
        waiting: usize,
        after: Duration,
        /// `None`: they go on. Otherwise they get this error.
        error: Option<String>,
    },
    PauseExpired {
        route: Arc<str>,
        after: Duration,
        by: Option<OrderedBy>,
    },
}

type Hear = Box<dyn Fn(HoldChange) + Send + Sync>;

/// Is told of each change; must return at once.
#[derive(Default)]
pub(super) struct HoldListener(OnceLock<Hear>);

impl HoldListener {
    /// The first one counts.
    pub(super) fn set(&self, hear: Hear) {
        drop(self.0.set(hear));
    }

    pub(super) fn hear(&self, change: impl FnOnce() -> HoldChange) {
        if let Some(hear) = self.0.get() {
            hear(change());
        }
    }
}

impl fmt::Debug for HoldListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HoldListener").finish_non_exhaustive()
    }
}
