//! Which members may serve a pool now, and the connections to each.

use std::sync::Arc;

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

/// The connections to one member.
#[derive(Debug)]
pub(super) struct Member<S: SessionStream> {
    pub(super) name: MemberName,
    /// Connections of an older generation are not used again.
    pub(super) generation: u64,
    /// All: idle, leased and opening ones.
    pub(super) total: usize,
    pub(super) opening: usize,
    pub(super) idle: Idle<S>,
    pub(super) pinned: PinCounts,
}

impl<S: SessionStream> Member<S> {
    pub(super) fn new(name: MemberName) -> Self {
        Self {
            name,
            generation: 0,
            total: 0,
            opening: 0,
            idle: Idle::default(),
            pinned: PinCounts::default(),
        }
    }

    /// Those that sessions have or will have.
    pub(super) fn busy(&self) -> usize {
        self.total - self.idle.len()
    }
}
