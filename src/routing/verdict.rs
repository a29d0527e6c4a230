//! Who must leave: what a new snapshot means for a live session.

use crate::cluster::snapshot::{Leader, MemberName, Snapshot};
use crate::config::Access;

/// What a session was promised of its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Terms {
    /// It is the verified leader.
    ReadWrite,
    /// It is a standby.
    ReadOnly,
    /// Nothing: it was the leader, on a route that puts up with that.
    Unenforced,
    /// Nothing: it was the leader, where the session's role may write nothing.
    Enforced,
}

impl Terms {
    pub fn access(self) -> Access {
        match self {
            Self::ReadWrite => Access::ReadWrite,
            Self::ReadOnly | Self::Unenforced | Self::Enforced => Access::ReadOnly,
        }
    }
}

/// Whether a live session may stay on its server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Stay,
    End(EndReason),
}

/// Why a session must leave its server. `Display` is the sentence its client sees.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndReason {
    #[error("{0} has been demoted and no longer accepts writes")]
    Demoted(MemberName),
    #[error("{leader} is the leader now, no longer {old}")]
    OtherLeader { old: MemberName, leader: MemberName },
    #[error("{0} has been promoted and is no longer read-only")]
    Promoted(MemberName),
}

/// What `snapshot` means for a session that was given `member` on `terms`. A member that is merely unknown, down or
/// unreachable keeps its sessions: their own connections tell best.
pub fn verdict(snapshot: &Snapshot, terms: Terms, member: &MemberName) -> Verdict {
    let in_recovery = snapshot
        .member(member)
        .and_then(|member| member.health.facts.as_ref())
        .map(|facts| facts.in_recovery);
    match (terms, &snapshot.leader, in_recovery) {
        (Terms::ReadWrite, Leader::Verified { member: leader, .. }, _) if leader != member => {
            Verdict::End(EndReason::OtherLeader {
                old: member.clone(),
                leader: leader.clone(),
            })
        }
        (Terms::ReadWrite, _, Some(true)) => Verdict::End(EndReason::Demoted(member.clone())),
        (Terms::ReadOnly, _, Some(false)) => Verdict::End(EndReason::Promoted(member.clone())),
        _ => Verdict::Stay,
    }
}
