//! Which members may serve a pool now, and the connections to each.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::idle::Idle;
use super::pinned::PinCounts;
use crate::cluster::snapshot::{MemberName, Snapshot};
use crate::config::Route;
use crate::routing::{self, Candidate, Choice, Reason};
use crate::session::stream::SessionStream;

/// The members that may serve the route, by one snapshot.
#[derive(Debug)]
pub(super) struct Fit {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) route: Arc<Route>,
    /// With the index of the target.
    pub(super) candidates: Vec<(usize, Candidate)>,
    pub(super) refused: Vec<(MemberName, Reason)>,
}

impl Fit {
    pub(super) fn new(snapshot: Arc<Snapshot>, route: Arc<Route>) -> Self {
        let (mut candidates, mut refused) = (Vec::new(), Vec::new());
        for member in &snapshot.members {
            match routing::fitness(&snapshot, &route, member) {
                Ok((tier, reason)) => candidates.push((
                    tier,
                    Candidate {
                        member: member.name.clone(),
                        host: member.host.clone(),
                        port: member.port,
                        reason,
                    },
                )),
                Err(reason) => refused.push((member.name.clone(), reason)),
            }
        }
        Self {
            snapshot,
            route,
            candidates,
            refused,
        }
    }

    pub(super) fn is_of(&self, snapshot: &Arc<Snapshot>, route: &Arc<Route>) -> bool {
        Arc::ptr_eq(&self.snapshot, snapshot) && Arc::ptr_eq(&self.route, route)
    }

    pub(super) fn standing(&self, member: &MemberName) -> Standing {
        if self
            .candidates
            .iter()
            .any(|(_, candidate)| candidate.member == *member)
        {
            return Standing::Fit;
        }
        match self.refused.iter().find(|(refused, _)| refused == member) {
            Some((
                _,
                Reason::Down(_)
                | Reason::Leaving(_)
                | Reason::NoLeader(_)
                | Reason::NotYetProbed
                | Reason::Full
                | Reason::Unidentified,
            )) => Standing::Unclear,
            Some(_) | None => Standing::Unfit,
        }
    }

    /// Why there is no candidate.
    pub(super) fn refusal(&self) -> Choice {
        Choice {
            candidates: Vec::new(),
            refused: self.refused.clone(),
        }
    }
}

/// What a snapshot says of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Fit,
    /// It is not used now, but nothing says that its connections are useless.
    Unclear,
    Unfit,
}

/// How long nobody tries to open another connection to a member that was full, while the pool has
/// some there. Then one session tries.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// The server has refused a connection because it has no free one (53300).
#[derive(Debug)]
pub(super) struct ServerFull {
    since: Instant,
    /// What it said.
    pub(super) said: Box<str>,
    is_logged: bool,
}

/// The connections to one member.
#[derive(Debug)]
pub(super) struct Member<S: SessionStream> {
    pub(super) name: MemberName,
    /// Connections of an older generation are not used again.
    pub(super) generation: u64,
    /// All: idle, leased and opening ones.
    pub(super) total: usize,
    pub(super) opening: usize,
    /// Of an older generation, all together.
    pub(super) outdated: usize,
    pub(super) idle: Idle<S>,
    pub(super) pinned: PinCounts,
    /// `None` once another connection was opened.
    pub(super) full: Option<ServerFull>,
}

impl<S: SessionStream> Member<S> {
    pub(super) fn new(name: MemberName) -> Self {
        Self {
            name,
            generation: 0,
            total: 0,
            opening: 0,
            outdated: 0,
            idle: Idle::default(),
            pinned: PinCounts::default(),
            full: None,
        }
    }

    /// The pool has a connection, which will be free some time.
    pub(super) fn has_any(&self) -> bool {
        self.total > self.opening
    }

    /// Whether it is no use to open one now: the server was full a moment ago, or one session tries
    /// already.
    pub(super) fn is_resting(&self, now: Instant) -> bool {
        let is_early = |full: &ServerFull| now < full.since + FULL_PAUSE || self.opening > 0;
        self.has_any() && self.full.as_ref().is_some_and(is_early)
    }

    /// The server has said that it is full. Returns whether that is to be logged: once, until it
    /// has taken another connection.
    pub(super) fn set_full(&mut self, said: &str, now: Instant) -> bool {
        let was_logged = self.full.as_ref().is_some_and(|full| full.is_logged);
        self.full = Some(ServerFull {
            since: now,
            said: said.into(),
            is_logged: was_logged || self.has_any(),
        });
        !was_logged && self.has_any()
    }

    /// Those that sessions have or will have.
    pub(super) fn busy(&self) -> usize {
        self.total - self.idle.len()
    }
}
