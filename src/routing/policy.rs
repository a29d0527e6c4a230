//! Who may be given a session.

use std::cmp::Reverse;
use std::fmt;

use crate::cluster::snapshot::{AdminState, Identity, Leader, Member, MemberName, NoLeader, Role, Snapshot};
use crate::config::TargetRole;

/// A member that may serve, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub member: MemberName,
    pub host: String,
    pub port: u16,
    pub reason: Preference,
}

/// Why a member may serve; earlier is preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Preference {
    /// It is the verified leader.
    Leader,
    /// A standby that streams.
    Streaming,
    /// A standby, `running` by Patroni before 3.1, or a fixed list's; not seen to stream.
    Running,
    /// It leads a standby cluster: a standby too, after its own replicas.
    StandbyLeader,
}

impl fmt::Display for Preference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leader => "verified leader",
            Self::Streaming => "streaming replica",
            Self::Running => "running replica",
            Self::StandbyLeader => "leader of a standby cluster",
        })
    }
}

/// Why a member may not serve a route. `Display` completes "db1 …".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("has no known address")]
    NoAddress,
    #[error("belongs to another cluster")]
    Foreign,
    #[error("has not been verified to belong to the cluster yet")]
    Unidentified,
    #[error("is in maintenance")]
    Maintenance,
    #[error("is being drained")]
    Draining,
    #[error("has not been reached yet")]
    NotYetProbed,
    #[error("is down: {0}")]
    Down(String),
    #[error("is not the leader")]
    NotLeader,
    #[error("is not the verified leader: {0}")]
    NoLeader(NoLeader),
    #[error("is the leader")]
    IsLeader,
    #[error("accepts writes, so it is not a replica")]
    Writable,
    #[error("holds the leader key, so it is about to be promoted")]
    Promoting,
    #[error("has the unknown role {0:?}")]
    Role(String),
    #[error("is not fit to be read from: its state is {0:?}")]
    State(String),
    #[error("is tagged noloadbalance")]
    NoLoadBalance,
}

/// The candidates in order of preference, and why the other members are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    pub candidates: Vec<Candidate>,
    pub refused: Vec<(MemberName, Reason)>,
}

/// Who may serve `target`: the verified leader, or the replicas: streaming before others, then with the least
/// sessions, ties by `chance`.
pub fn candidates(
    snapshot: &Snapshot,
    target: TargetRole,
    sessions_on: &dyn Fn(&MemberName) -> usize,
    chance: &mut dyn FnMut() -> u64,
) -> Choice {
    let mut choice = Choice::default();
    let mut ranked = Vec::with_capacity(snapshot.members.len());
    for member in &snapshot.members {
        let fit = match target {
            TargetRole::Leader => leader_reason(snapshot, member),
            TargetRole::Replica => replica_reason(snapshot, member),
        };
        match fit {
            Ok(reason) => {
                let rank = (reason, sessions_on(&member.name), Reverse(chance()));
                let candidate = Candidate {
                    member: member.name.clone(),
                    host: member.host.clone(),
                    port: member.port,
                    reason,
                };
                ranked.push((rank, candidate));
            }
            Err(reason) => choice.refused.push((member.name.clone(), reason)),
        }
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    choice.candidates = ranked.into_iter().map(|(_, candidate)| candidate).collect();
    choice
}

/// A source of chance for [`candidates`]: not predictable, not secret.
pub fn chance() -> u64 {
    let mut bytes = [0_u8; 8];
    // Without randomness ties go to the same member each time.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}

/// Whether `member` may serve as the leader.
pub fn leader_reason(snapshot: &Snapshot, member: &Member) -> Result<Preference, Reason> {
    usable(member)?;
    match &snapshot.leader {
        Leader::Verified { member: leader, .. } if *leader == member.name => Ok(Preference::Leader),
        Leader::Verified { .. } => Err(Reason::NotLeader),
        Leader::None(why) => Err(Reason::NoLeader(why.clone())),
    }
}

/// Whether `member` may serve as a replica.
pub fn replica_reason(snapshot: &Snapshot, member: &Member) -> Result<Preference, Reason> {
    if matches!(&snapshot.leader, Leader::Verified { member: leader, .. } if *leader == member.name) {
        return Err(Reason::IsLeader);
    }
    usable(member)?;
    let Some(facts) = &member.health.facts else {
        return Err(Reason::NotYetProbed);
    };
    if !facts.in_recovery {
        return Err(Reason::Writable);
    }
    if no_load_balance(member) {
        return Err(Reason::NoLoadBalance);
    }
    let streaming = facts.streaming || member.state == "streaming";
    let fit = if streaming {
        Preference::Streaming
    } else {
        Preference::Running
    };
    match &member.role {
        Role::Unnamed => return Ok(fit),
        Role::Leader => return Err(Reason::Promoting),
        Role::Other(role) => return Err(Reason::Role(role.clone())),
        Role::StandbyLeader | Role::Replica | Role::SyncStandby | Role::QuorumStandby => {}
    }
    match member.state.as_str() {
        "running" | "streaming" if member.role == Role::StandbyLeader => Ok(Preference::StandbyLeader),
        "running" | "streaming" => Ok(fit),
        other => Err(Reason::State(other.to_owned())),
    }
}

/// What every target asks of a member.
fn usable(member: &Member) -> Result<(), Reason> {
    if !member.has_address() {
        return Err(Reason::NoAddress);
    }
    match member.identity {
        Identity::Foreign => return Err(Reason::Foreign),
        Identity::Same | Identity::Unknown => {}
    }
    match member.admin {
        AdminState::Ready => {}
        AdminState::Drain => return Err(Reason::Draining),
        AdminState::Maint => return Err(Reason::Maintenance),
    }
    if !member.health.up {
        return Err(match &member.health.error {
            Some(error) => Reason::Down(error.clone()),
            None => Reason::NotYetProbed,
        });
    }
    if member.identity == Identity::Unknown {
        Err(Reason::Unidentified)
    } else {
        Ok(())
    }
}

/// Patroni's tag is a YAML value: `true`, `yes`, `"on"`, `1`.
fn no_load_balance(member: &Member) -> bool {
    match member.tags.get("noloadbalance") {
        Some(serde_json::Value::Bool(value)) => *value,
        Some(serde_json::Value::Number(value)) => value.as_f64() != Some(0.0),
        Some(serde_json::Value::String(value)) => ["true", "t", "yes", "y", "on", "1"]
            .iter()
            .any(|word| value.trim().eq_ignore_ascii_case(word)),
        _ => false,
    }
}

/// What a client is told (57P03) when a choice has no candidate: a sentence and a hint.
pub fn unavailable(snapshot: &Snapshot, target: TargetRole, choice: &Choice) -> (String, String) {
    let message = match (target, &snapshot.leader) {
        (TargetRole::Leader, Leader::None(why)) => {
            format!("no server accepts read-write sessions now: {why}")
        }
        (TargetRole::Leader, Leader::Verified { .. }) => {
            "no server accepts read-write sessions now".to_owned()
        }
        (TargetRole::Replica, _) => "no replica accepts read-only sessions now".to_owned(),
    };
    let mut hints: Vec<String> = choice
        .refused
        .iter()
        .filter(|(_, reason)| !matches!(reason, Reason::NoLeader(_)))
        .take(16)
        // Whoever connects hears this, before any login: not what a server, or somebody on the way, has said.
        .map(|(member, reason)| match reason {
            Reason::Down(_) => format!("{member} is down."),
            _ => format!("{member} {reason}."),
        })
        .collect();
    if choice.refused.len() > 16 {
        hints.push(format!(
            "{} more members are not listed.",
            choice.refused.len() - 16
        ));
    }
    if snapshot.source.error.is_some() {
        // What exactly fails is for the log: this is said before any login.
        hints.push("No Patroni endpoint can be reached; what is known of the members may be old.".to_owned());
    } else if snapshot.members.is_empty() {
        hints.push("No member of the cluster is known.".to_owned());
    }
    if target == TargetRole::Leader {
        hints.push("Try again: a failover usually ends within a minute.".to_owned());
    }
    (message, hints.join(" "))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
