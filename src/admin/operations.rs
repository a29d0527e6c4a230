//! What an operator may do, handed in by whoever composes the process: sessions to look at and to end, members to
//! administer.

use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::views::SessionView;
use crate::cluster::Busy;
use crate::cluster::snapshot::{AdminState, MemberName};

/// An answer of all processes of this router: after an upgrade there are several, as long as earlier ones have sessions.
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

/// Sessions and members, as an operator handles them. Futures are ready after a few seconds at most: that is the time that
/// another process has for its answer. Everything else returns at once.
pub trait Operations: fmt::Debug + Send + Sync {
    /// Asks the other processes for their counts, for [`Self::session_count`], [`Self::sessions_on`] and the metrics. Returns
    /// a sentence for each process that did not answer.
    fn refresh(&self) -> BoxFuture<'_, Vec<String>>;

    /// Every session there is now, by number.
    fn sessions(&self) -> BoxFuture<'_, Gathered<Vec<SessionView>>>;

    /// How many sessions there are, by the last [`Self::refresh`].
    fn session_count(&self) -> usize;

    /// Sessions on a member, those connecting included, by the last [`Self::refresh`].
    fn sessions_on(&self, cluster: &str, member: &MemberName) -> usize;

    /// Ends one session; `None`: there is none of this number in the processes that answered.
    fn end_session(&self, id: u64, ending: Ending) -> BoxFuture<'_, Gathered<Option<SessionView>>>;

    /// Ends the sessions on a member, and returns how many there are.
    fn end_sessions_on<'a>(
        &'a self,
        cluster: &'a str,
        member: &'a MemberName,
        ending: Ending,
    ) -> BoxFuture<'a, Gathered<usize>>;

    /// Whether something was set for this member and kept, though it may not be there now.
    fn has_kept(&self, cluster: &str, member: &MemberName) -> bool;

    /// Changes how a member is used; it is seen in a snapshot soon. `Err`: nothing was changed.
    fn administer<'a>(
        &'a self,
        cluster: &'a str,
        member: &'a MemberName,
        change: Change,
    ) -> BoxFuture<'a, Result<Gathered<()>, Busy>>;

    /// Drains the router, or reverses that: it serves as before, and reports whether it is ready.
    fn drain_router(&self, is_drained: bool) -> Result<(), Busy>;

    /// The cluster may be another one from now on: its system identifier is learned again.
    fn forget_identity(&self, cluster: &str) -> Result<(), Busy>;

    /// Reads the configuration again; it goes on if nobody waits for the answer, which does not come while ending.
    fn reload(&self) -> oneshot::Receiver<ReloadAnswer>;
}

/// What came of a reload, for who asked for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadAnswer {
    /// What was asked for is in force, but for `restart`.
    pub applied: bool,
    /// Keys of the configuration, and parts whose files were other ones.
    pub changed: Vec<String>,
    /// Keys that are different from what the process began with, and need a restart.
    pub restart: Vec<String>,
    /// Why not, a sentence each.
    pub faults: Vec<String>,
}

/// What is changed of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Admin(AdminState),
    /// `None`: by configuration and tags again.
    Weight(Option<u16>),
}

/// How a session is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// At its next transaction end; what is left after `grace` is cut. `None`: however long it takes.
    AtBoundary {
        grace: Option<Duration>,
    },
    Now,
}
