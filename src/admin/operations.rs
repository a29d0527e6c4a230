//! What an operator may do, handed in by whoever composes the process: sessions to look at and to end, members to
//! administer.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::views::SessionView;
use crate::cluster::Busy;
use crate::cluster::snapshot::{AdminState, MemberName};

/// Sessions and members, as an operator handles them. Everything returns at once.
pub trait Operations: fmt::Debug + Send + Sync {
    /// Every session there is now, by number.
    fn sessions(&self) -> Vec<SessionView>;

    /// Sessions on a member, those connecting included.
    fn sessions_on(&self, cluster: &str, member: &MemberName) -> usize;

    /// Ends one session; `None`: there is none of this number.
    fn end_session(&self, id: u64, ending: Ending) -> Option<SessionView>;

    /// Ends the sessions on a member and says how many there are.
    fn end_sessions_on(&self, cluster: &str, member: &MemberName, ending: Ending) -> usize;

    /// Whether something was set for this member and kept, though it may not be there now.
    fn has_kept(&self, cluster: &str, member: &MemberName) -> bool;

    /// Changes how a member is used; it is seen in a snapshot soon.
    fn administer(&self, cluster: &str, member: &MemberName, change: Change) -> Result<(), Busy>;

    /// Drains the router, or takes that back: it serves as ever, and says whether it is ready.
    fn drain_router(&self, is_drained: bool) -> Result<(), Busy>;

    /// The cluster may be another one from now on: its system identifier is learned anew.
    fn forget_identity(&self, cluster: &str) -> Result<(), Busy>;

    /// Has the configuration read again; it goes on if nobody waits for the answer, which does not come while ending.
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
