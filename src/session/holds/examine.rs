//! What a peer knows of a switchover's members, before it begins.

use serde::{Deserialize, Serialize};

use super::{HoldRefusal, Holds};
use crate::cluster::snapshot::{AdminState, MemberName};
use crate::session::Shared;

/// Server processes that one router reports.
pub const MAX_PROCESSES: usize = 4096;

/// What one process of a router knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examined {
    /// How the candidate stands there; `None`: its cluster has no such member.
    pub candidate: Option<CandidateState>,
    /// Server processes of its connections to the leader, [`MAX_PROCESSES`] at most.
    pub processes: Vec<u32>,
    /// There are more.
    pub has_more: bool,
}

/// What an operator has set for a member at a router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CandidateState {
    Ready,
    Drain,
    Maint,
}

impl CandidateState {
    /// Why the member may not become the leader; completes "db2 ".
    pub fn refusal(self) -> Option<&'static str> {
        match self {
            Self::Ready => None,
            Self::Drain => Some("is being drained"),
            Self::Maint => Some("is in maintenance"),
        }
    }
}

impl From<AdminState> for CandidateState {
    fn from(state: AdminState) -> Self {
        match state {
            AdminState::Ready => Self::Ready,
            AdminState::Drain => Self::Drain,
            AdminState::Maint => Self::Maint,
        }
    }
}

impl Holds {
    pub(super) fn examine(
        &self,
        shared: &Shared,
        cluster: u64,
        leader: &str,
        candidate: &str,
    ) -> Result<Examined, HoldRefusal> {
        let known = self.known.load();
        let snapshot = known.cluster(cluster)?.snapshot();
        let member = snapshot.member(&MemberName::new(candidate));
        let mut processes = shared.server_processes(&snapshot.cluster, &MemberName::new(leader));
        let has_more = processes.len() > MAX_PROCESSES;
        processes.truncate(MAX_PROCESSES);
        Ok(Examined {
            candidate: member.map(|member| member.admin.into()),
            processes,
            has_more,
        })
    }
}

impl Shared {
    /// The server processes of this process's sessions and pools on a member.
    pub fn server_processes(&self, cluster: &str, member: &MemberName) -> Vec<u32> {
        let sessions = self.registry.sessions_of(cluster);
        let placed = sessions.iter().filter_map(|entry| entry.placement());
        let placed = placed.filter(|place| place.member == *member);
        let mut all: Vec<u32> = placed.map(|place| place.process_id).collect();
        for pool in self.pools.views_with_idle() {
            if *pool.name.cluster == *cluster {
                let there = pool.members.iter().filter(|on| on.member == *member);
                all.extend(
                    there
                        .flat_map(|on| &on.idle_connections)
                        .map(|idle| idle.process_id),
                );
            }
        }
        all
    }
}
