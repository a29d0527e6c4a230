//! Decides whether a live session may stay on its server after a new snapshot.

use tokio::time::Instant;

use super::policy::{Candidate, Preference};
use crate::cluster::server_identity::{IdentifiedBy, ServerIdentity, ServerLocation};
use crate::cluster::snapshot::{Identity, Leader, MemberName, NoLeader, ProbeFacts, Snapshot, VerifiedAt};
use crate::config::Access;

/// The role that a session's server was granted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GrantedRole {
    /// It is the verified leader.
    ReadWrite,
    /// It is a standby.
    ReadOnly,
    /// No role: it was the leader, on a route that allows this without enforcement.
    Unenforced,
    /// No role: it was the leader, and the session's role cannot write.
    Enforced,
}

impl GrantedRole {
    pub fn access(self) -> Access {
        match self {
            Self::ReadWrite => Access::ReadWrite,
            Self::ReadOnly | Self::Unenforced | Self::Enforced => Access::ReadOnly,
        }
    }
}

/// Why a server is not the one that was chosen. `Display` completes "server "db1" …".
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    #[error("belongs to another cluster")]
    Foreign,
    #[error("is an old primary")]
    OldPrimary,
    #[error("does not accept writes")]
    NotWritable,
    #[error("is no longer the verified leader")]
    NoLongerLeader,
}

/// Whether the server that a session sees is the chosen member, in the role for which it was
/// chosen.
pub fn fits(snapshot: &Snapshot, candidate: &Candidate, identity: &ServerIdentity) -> Result<(), Misfit> {
    // If the servers have been full since the start, no probe has read the identifier yet.
    let is_unknown = snapshot.system_identifier.is_none()
        && matches!(snapshot.leader, Leader::None(NoLeader::Full { .. }));
    if snapshot.system_identifier != Some(identity.system_identifier) && !is_unknown {
        return Err(Misfit::Foreign);
    }
    if candidate.reason != Preference::Leader {
        return Ok(());
    }
    if identity.in_recovery {
        return Err(Misfit::NotWritable);
    }
    match &snapshot.leader {
        Leader::Verified { member, timeline, .. }
        | Leader::None(NoLeader::Full {
            member,
            newest: timeline,
        }) if *member == candidate.member => {
            if identity.timeline < *timeline {
                Err(Misfit::OldPrimary)
            } else {
                Ok(())
            }
        }
        Leader::Verified { .. } | Leader::None(_) => Err(Misfit::NoLongerLeader),
    }
}

/// Whether a live session may stay on its server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionVerdict {
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
    #[error("the address of {0} leads to a server of another cluster")]
    Foreign(MemberName),
    #[error("the server of this session is an old primary, no longer {0}")]
    OldPrimary(MemberName),
}

/// Whether the session's server belongs to another cluster.
fn is_foreign(snapshot: &Snapshot, member: &MemberName, place: &ServerLocation) -> bool {
    let Some(ours) = snapshot.system_identifier else {
        return false;
    };
    place.identity.system_identifier != ours
        || seen_since(snapshot, member, place).any(|facts| facts.system_identifier != ours)
}

/// Whether the session's server is a primary on an older timeline than the leader. A primary stays
/// on its timeline as long as it has sessions.
fn is_outdated(snapshot: &Snapshot, member: &MemberName, place: &ServerLocation) -> bool {
    let mine = place.identity.timeline;
    let is_behind = matches!(
        &snapshot.leader,
        Leader::Verified { member: leader, timeline, .. } if leader == member && *timeline > mine
    );
    is_behind || seen_since(snapshot, member, place).any(|facts| facts.timeline < mine)
}

/// The facts that a probe sees, or has once seen, at the address of a session whose own connection
/// was not asked. Not those before which the session's server was verified there over a connection
/// that is younger than the session's: then the session is not on the server of these facts.
fn seen_since<'a>(
    snapshot: &'a Snapshot,
    member: &MemberName,
    place: &'a ServerLocation,
) -> impl Iterator<Item = &'a ProbeFacts> {
    let health = snapshot.member(member).map(|member| &member.health);
    let now = health.and_then(|health| {
        let facts = health.facts.as_ref()?;
        Some((facts, facts.connected, health.verified))
    });
    let once = health.and_then(|health| health.strayed.as_ref());
    let once = once.map(|strayed| (&strayed.facts, Some(strayed.known), strayed.before));
    let of_this_place = |(facts, at, verified): &(&ProbeFacts, Option<Instant>, Option<VerifiedAt>)| {
        let is_here = place.known == IdentifiedBy::Prober && facts.address == Some(place.identity.address);
        let is_confirmed = verified.is_some_and(|verified| {
            verified.at >= place.begun && verified.timeline >= place.identity.timeline
        });
        let is_younger = at.is_some_and(|at| at >= place.begun);
        is_here && is_younger && !is_confirmed
    };
    now.into_iter()
        .chain(once)
        .filter(of_this_place)
        .map(|(facts, ..)| facts)
}

/// Whether a session on `member`, chosen for `granted` and seen at `place`, may stay. A member that
/// is only unknown, down or unreachable keeps its sessions: their own connections show best whether
/// it works.
pub fn verdict(
    snapshot: &Snapshot,
    granted: GrantedRole,
    member: &MemberName,
    place: Option<&ServerLocation>,
) -> SessionVerdict {
    if let Some(place) = place {
        if is_foreign(snapshot, member, place) {
            return SessionVerdict::End(EndReason::Foreign(member.clone()));
        }
        if granted == GrantedRole::ReadWrite && is_outdated(snapshot, member, place) {
            return SessionVerdict::End(EndReason::OldPrimary(member.clone()));
        }
    }
    // A member of the same name in another cluster says nothing about this one.
    let in_recovery = snapshot
        .member(member)
        .filter(|member| member.identity != Identity::Foreign)
        .and_then(|member| member.health.facts.as_ref())
        .map(|facts| facts.in_recovery);
    match (granted, &snapshot.leader, in_recovery) {
        (GrantedRole::ReadWrite, Leader::Verified { member: leader, .. }, _) if leader != member => {
            SessionVerdict::End(EndReason::OtherLeader {
                old: member.clone(),
                leader: leader.clone(),
            })
        }
        (GrantedRole::ReadWrite, _, Some(true)) => SessionVerdict::End(EndReason::Demoted(member.clone())),
        (GrantedRole::ReadOnly, _, Some(false)) => SessionVerdict::End(EndReason::Promoted(member.clone())),
        _ => SessionVerdict::Stay,
    }
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
