//! What an operator may do, provided by the runtime: see and end sessions, administer members.

use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::views::{PoolView, SessionView};
use crate::cluster::Busy;
use crate::cluster::snapshot::{AdminState, MemberName};
use crate::session::generations::totals::MemberLoad;

/// The phase of sessions with the console, which are of no cluster, route and member. They count as
/// nobody's sessions.
pub const CONSOLE_PHASE: &str = "console";

/// An answer of all processes of this router: after an upgrade there are several, as long as
/// earlier ones have sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gathered<T> {
    /// What the processes that answered say.
    pub value: T,
    /// A sentence for each process that did not answer: the value is without it.
    pub missing: Vec<String>,
}

impl<T> Gathered<T> {
    /// Every process answered.
    pub fn whole(value: T) -> Self {
        Self {
            value,
            missing: Vec::new(),
        }
    }
}

/// Sessions and members, as an operator handles them. Futures are ready after a few seconds at
/// most: that is the time that another process has for its answer. Everything else returns at once.
pub trait Operations: fmt::Debug + Send + Sync {
    /// Asks the other processes for their counts, for [`Self::session_count`],
    /// [`Self::load_of`] and the metrics. Returns a sentence for each process that did not
    /// answer.
    fn refresh(&self) -> BoxFuture<'_, Vec<String>>;

    /// Every session there is now, by number.
    fn sessions(&self) -> BoxFuture<'_, Gathered<Vec<SessionView>>>;

    /// How many sessions there are, by the last [`Self::refresh`].
    fn session_count(&self) -> usize;

    /// Sessions on a member and connections to it, by the last [`Self::refresh`].
    fn load_of(&self, cluster: &str, member: &MemberName) -> MemberLoad;

    /// Ends one session; `None`: there is none of this number in the processes that answered.
    fn end_session(&self, id: u64, ending: Ending) -> BoxFuture<'_, Gathered<Option<SessionView>>>;

    /// Ends the sessions on a member, and returns how many there are.
    fn end_sessions_on<'a>(
        &'a self,
        cluster: &'a str,
        member: &'a MemberName,
        ending: Ending,
    ) -> BoxFuture<'a, Gathered<usize>>;

    /// Every pool there is now, in every process.
    fn pools(&self) -> BoxFuture<'_, Gathered<Vec<PoolView>>>;

    /// Server connections of pools that exist now are not used for another transaction or session.
    /// Returns how many there are.
    fn reconnect<'a>(&'a self, which: &'a Reconnection) -> BoxFuture<'a, Gathered<usize>>;

    /// Whether an operator's setting for this member is kept, although the member may be absent.
    fn has_kept(&self, cluster: &str, member: &MemberName) -> bool;

    /// Changes how a member is used; a snapshot shows it soon. `Err`: nothing was changed.
    fn administer<'a>(
        &'a self,
        cluster: &'a str,
        member: &'a MemberName,
        change: Change,
    ) -> BoxFuture<'a, Result<Gathered<()>, Busy>>;

    /// How many sessions a route has, by the last [`Self::refresh`].
    fn sessions_of(&self, route: &str) -> usize;

    /// Disables a route, which gets no new sessions from now on, or enables it again. `Err`:
    /// nothing was changed.
    fn disable_route(&self, route: &str, is_disabled: bool) -> Result<(), Busy>;

    /// Drains the router, or makes it ready again: it serves as before, and reports whether it is
    /// ready.
    fn drain_router(&self, is_drained: bool) -> Result<(), Busy>;

    /// From now on the cluster may be another one: the router learns its system identifier again.
    fn forget_identity(&self, cluster: &str) -> Result<(), Busy>;

    /// Reads the configuration again, also if nothing waits for the answer. While the router shuts
    /// down, there is no answer.
    fn reload(&self) -> oneshot::Receiver<ReloadAnswer>;
}

/// The result of a reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadAnswer {
    /// The new configuration is in use, except the keys in `restart`.
    pub applied: bool,
    /// Keys of the configuration, and parts whose files changed.
    pub changed: Vec<String>,
    /// Keys that differ from the start of the process, and need a restart.
    pub restart: Vec<String>,
    /// Why it was refused: one sentence for each fault.
    pub faults: Vec<String>,
}

impl ReloadAnswer {
    pub fn refused(faults: Vec<String>) -> Self {
        Self {
            applied: false,
            changed: Vec::new(),
            restart: Vec::new(),
            faults,
        }
    }
}

/// A change of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Admin(AdminState),
    /// `None`: the weight by configuration and tags again.
    Weight(Option<u16>),
}

/// Which server connections of pools are replaced. Another process reads it too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reconnection {
    Member { cluster: String, member: String },
    Route(String),
    All,
}

impl fmt::Display for Reconnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Member { cluster, member } => write!(f, "member {member} of cluster {cluster}"),
            Self::Route(route) => write!(f, "route {route}"),
            Self::All => f.write_str("all"),
        }
    }
}

/// How to end a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// At the end of its transaction; after `grace` it is cut. `None`: without a limit of time.
    AtBoundary {
        grace: Option<Duration>,
    },
    Now,
}
