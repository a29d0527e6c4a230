//! Who may be given a session.

use std::fmt;
use std::net::IpAddr;

use super::balance::{self, Share, Turns};
use super::tags;
use crate::cluster::snapshot::{AdminState, Identity, Leader, Member, MemberName, NoLeader, Role, Snapshot};
use crate::config::{Access, Route, Server, TargetRole, Tier};

/// A member that may serve, with the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub member: MemberName,
    pub host: String,
    pub port: u16,
    pub reason: Preference,
}

/// Why a member may serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preference {
    /// It is the verified leader.
    Leader,
    /// A standby that streams.
    Streaming,
    /// A standby that is not seen to stream: `running` by Patroni before 3.1, `in archive recovery`, or a fixed list's.
    Running,
    /// It leads a standby cluster: a standby too, after its own replicas.
    StandbyLeader,
}

impl Preference {
    /// Among members of targets that count alike; less is better. Where both may serve, leader and standby are alike.
    fn rank(self) -> u8 {
        match self {
            Self::Leader | Self::Streaming => 0,
            Self::Running => 1,
            Self::StandbyLeader => 2,
        }
    }
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
    #[error("has no connection left for the router to see its role")]
    Full,
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
    #[error("is not what the route asks for: {0}")]
    NotWanted(String),
    #[error("does not have the tag {0}")]
    Tag(String),
    #[error("is too far behind the leader")]
    Lagging,
    #[error("is behind the leader, how far is not known")]
    LagUnknown,
}

impl Reason {
    fn is_about_role(&self) -> bool {
        matches!(
            self,
            Self::NotLeader | Self::NoLeader(_) | Self::IsLeader | Self::Writable | Self::NotWanted(_)
        )
    }
}

/// The candidates in order of preference, and why the other members are none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    pub candidates: Vec<Candidate>,
    pub refused: Vec<(MemberName, Reason)>,
}

/// What is asked besides the route: who asks, and what is so now.
pub struct Asked<'a> {
    /// The client's address; `None` of one on a Unix socket.
    pub client: Option<IpAddr>,
    /// The router's own zone.
    pub zone: Option<&'a str>,
    /// The order of a fixed list; empty with Patroni.
    pub listed: &'a [Server],
    pub sessions_on: &'a dyn Fn(&MemberName) -> usize,
    /// Whether attempts to connect to it have failed lately.
    pub is_backing_off: &'a dyn Fn(&MemberName) -> bool,
    pub chance: &'a mut dyn FnMut() -> u64,
    /// Of this route; moved on by [`balance::Turns`].
    pub turns: &'a mut Turns,
}

impl fmt::Debug for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked")
            .field("client", &self.client)
            .field("zone", &self.zone)
            .finish_non_exhaustive()
    }
}

/// Who may serve `route`, in order of preference: members that sessions and the last probe could reach, then by target, members with a
/// weight, by [`Preference`], members of the own zone, and as the route balances.
pub fn candidates(snapshot: &Snapshot, route: &Route, asked: &mut Asked<'_>) -> Choice {
    let mut choice = Choice::default();
    let mut ranked = Vec::with_capacity(snapshot.members.len());
    for member in &snapshot.members {
        match fitness(snapshot, route, member) {
            Ok((tier, reason)) => {
                let is_far = asked.zone.is_some() && asked.zone != member.zone.as_deref();
                // Its last probe failed, though not often enough yet; or it is full.
                let is_doubtful = member.health.error.is_some();
                let rank = (
                    is_doubtful || (asked.is_backing_off)(&member.name),
                    tier,
                    member.weight == 0,
                    reason.rank(),
                    is_far,
                );
                let share = Share {
                    candidate: Candidate {
                        member: member.name.clone(),
                        host: member.host.clone(),
                        port: member.port,
                        reason,
                    },
                    // Members without weight, among themselves, share alike.
                    weight: member.weight.max(1) * u16::from(member.share),
                    sessions: (asked.sessions_on)(&member.name),
                };
                ranked.push((rank, share));
            }
            Err(reason) => choice.refused.push((member.name.clone(), reason)),
        }
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    for alike in ranked.chunk_by_mut(|(a, _), (b, _)| a == b) {
        balance::order(route.balance, alike, asked, choice.candidates.is_empty());
        let shares = alike.iter_mut().map(|(_, share)| share.candidate.clone());
        choice.candidates.extend(shares);
    }
    choice
}

/// Whether anybody may serve `route`; else why nobody may.
pub fn anybody(snapshot: &Snapshot, route: &Route) -> Result<(), Choice> {
    let mut choice = Choice::default();
    for member in &snapshot.members {
        match fitness(snapshot, route, member) {
            Ok(_) => return Ok(()),
            Err(reason) => choice.refused.push((member.name.clone(), reason)),
        }
    }
    Err(choice)
}

/// Whether `member` may serve `route`: by which of its targets, counted from 0, and why.
pub fn fitness(snapshot: &Snapshot, route: &Route, member: &Member) -> Result<(usize, Preference), Reason> {
    let mut refused: Option<Reason> = None;
    for (tier, Tier(roles)) in route.targets.iter().enumerate() {
        for role in roles {
            match role_reason(snapshot, member, *role) {
                Ok(reason) => {
                    tags::check(&route.tags, &member.tags).map_err(Reason::Tag)?;
                    if reason != Preference::Leader {
                        lag_reason(route, member)?;
                    }
                    return Ok((tier, reason));
                }
                // What else is wrong with it says more than that its role is another one.
                Err(reason) => match &refused {
                    Some(known) if reason.is_about_role() || !known.is_about_role() => {}
                    _ => refused = Some(reason),
                },
            }
        }
    }
    Err(match refused {
        Some(Reason::NotWanted(_)) => Reason::NotWanted(route.wanted()),
        Some(reason) => reason,
        None => Reason::NotLeader,
    })
}

/// Whether it is within the route's `max_lag`.
fn lag_reason(route: &Route, member: &Member) -> Result<(), Reason> {
    if !member.lagging.contains(&route.name) {
        Ok(())
    } else if member.measured.is_some_and(|lag| lag.time.is_some()) {
        Err(Reason::Lagging)
    } else {
        Err(Reason::LagUnknown)
    }
}

fn role_reason(snapshot: &Snapshot, member: &Member, target: TargetRole) -> Result<Preference, Reason> {
    match target {
        TargetRole::Leader => leader_reason(snapshot, member),
        TargetRole::Replica => replica_reason(snapshot, member),
        TargetRole::Sync => standby_reason(snapshot, member, target, &Role::SyncStandby),
        TargetRole::Quorum => standby_reason(snapshot, member, target, &Role::QuorumStandby),
        TargetRole::Async => standby_reason(snapshot, member, target, &Role::Replica),
        TargetRole::Any => match leader_reason(snapshot, member) {
            Ok(_) if no_load_balance(member) => Err(Reason::NoLoadBalance),
            Ok(reason) => Ok(reason),
            Err(why) => replica_reason(snapshot, member).map_err(|reason| match reason {
                // It may serve as the leader only, and why not is known.
                Reason::IsLeader => why,
                reason => reason,
            }),
        },
    }
}

fn standby_reason(
    snapshot: &Snapshot,
    member: &Member,
    target: TargetRole,
    role: &Role,
) -> Result<Preference, Reason> {
    let reason = replica_reason(snapshot, member)?;
    if member.role == *role {
        Ok(reason)
    } else {
        Err(Reason::NotWanted(target.to_string()))
    }
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
    match (usable(member), &snapshot.leader) {
        // Of a full one that was never seen otherwise not even that is known; its session must show all of it.
        (Err(Reason::Full), Leader::None(NoLeader::Full { .. })) => {}
        (usable, _) => usable?,
    }
    match &snapshot.leader {
        Leader::None(NoLeader::Full { member: full, .. }) if *full == member.name => Ok(Preference::Leader),
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
        return Err(if member.health.full {
            Reason::Full
        } else {
            Reason::NotYetProbed
        });
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
        // The last two are what Patroni since 3.1 says of one that it called running before.
        "running" | "streaming" | "in archive recovery" if member.role == Role::StandbyLeader => {
            Ok(Preference::StandbyLeader)
        }
        "running" | "streaming" | "in archive recovery" => Ok(fit),
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
        Err(if member.health.full {
            Reason::Full
        } else {
            Reason::Unidentified
        })
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
pub fn unavailable(snapshot: &Snapshot, route: &Route, choice: &Choice) -> (String, String) {
    let message = match (route.access, &snapshot.leader) {
        (Access::ReadWrite, Leader::None(why)) => {
            format!("no server accepts read-write sessions now: {why}")
        }
        (Access::ReadWrite, Leader::Verified { .. }) => {
            "no server accepts read-write sessions now".to_owned()
        }
        (Access::ReadOnly, _) if route.takes_leader() => {
            "no server accepts read-only sessions now".to_owned()
        }
        (Access::ReadOnly, _) => "no replica accepts read-only sessions now".to_owned(),
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
    if matches!(snapshot.leader, Leader::None(NoLeader::Full { .. })) {
        hints.push("Try again later: it has all the sessions it takes.".to_owned());
    } else if route.access == Access::ReadWrite {
        hints.push("Try again: a failover usually ends within a minute.".to_owned());
    }
    (message, hints.join(" "))
}

#[cfg(test)]
#[path = "tests.rs"]
pub(in crate::routing) mod tests;
