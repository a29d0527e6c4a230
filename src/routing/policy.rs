//! Decides which members may serve a session, and in which order.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::balance::{self, Share, Turns};
use super::tags;
use crate::cluster::snapshot::{
    AdminState, Identity, Leader, Member, MemberName, NoLeader, Role, Snapshot, StopOrder,
};
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
    /// A standby that is not seen to stream: it is `running` according to Patroni before 3.1, it is
    /// `in archive recovery`, or it belongs to a fixed list.
    Running,
    /// It leads a standby cluster. It is a standby too, and serves after its own replicas.
    StandbyLeader,
}

impl Preference {
    /// The order among members of one target; less is better. A leader and a standby that may both
    /// serve are equal.
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
    #[error("is about to be stopped: {0}")]
    Leaving(Arc<StopOrder>),
    #[error("has not been reached yet")]
    NotYetProbed,
    #[error("is down: {0}")]
    Down(String),
    #[error("has no free connection, so the router cannot see its role")]
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
    #[error("cannot serve reads: its state is {0:?}")]
    State(String),
    #[error("is tagged noloadbalance")]
    NoLoadBalance,
    #[error("does not match the targets of the route: {0}")]
    NotWanted(String),
    #[error("does not have the tag {0}")]
    Tag(String),
    #[error("is too far behind the leader")]
    Lagging,
    #[error("has an unknown lag behind the leader")]
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

/// The candidates in order of preference, and the reason for each refused member.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    pub candidates: Vec<Candidate>,
    pub refused: Vec<(MemberName, Reason)>,
}

/// The input of a choice besides the snapshot and the route.
pub struct ChoiceInput<'a> {
    /// The client's address; `None` for a client on a Unix socket.
    pub client: Option<IpAddr>,
    /// The router's own zone.
    pub zone: Option<&'a str>,
    /// The order of a fixed list; empty with Patroni.
    pub listed: &'a [Server],
    pub sessions_on: &'a dyn Fn(&MemberName) -> usize,
    /// Whether recent attempts to connect to the member have failed.
    pub is_backing_off: &'a dyn Fn(&MemberName) -> bool,
    pub chance: &'a mut dyn FnMut() -> u64,
    /// The route's turns. A choice advances them.
    pub turns: &'a mut Turns,
}

impl fmt::Debug for ChoiceInput<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChoiceInput")
            .field("client", &self.client)
            .field("zone", &self.zone)
            .finish_non_exhaustive()
    }
}

/// The members that may serve `route`, in order of preference. Members that sessions and the last
/// probe could reach come first. The next criteria are the target, a weight above 0, the
/// [`Preference`], the router's own zone, and the route's balance.
pub fn candidates(snapshot: &Snapshot, route: &Route, input: &mut ChoiceInput<'_>) -> Choice {
    let mut choice = Choice::default();
    let mut ranked = Vec::with_capacity(snapshot.members.len());
    for member in &snapshot.members {
        match fitness(snapshot, route, member) {
            Ok((tier, reason)) => {
                let is_far = input.zone.is_some() && input.zone != member.zone.as_deref();
                // Its last probe failed, but not often enough for it to be down; or it is full.
                let is_doubtful = member.health.error.is_some();
                let rank = (
                    is_doubtful || (input.is_backing_off)(&member.name),
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
                    // Members of weight 0 share equally among themselves.
                    weight: member.weight.max(1) * u16::from(member.share),
                    sessions: (input.sessions_on)(&member.name),
                };
                ranked.push((rank, share));
            }
            Err(reason) => choice.refused.push((member.name.clone(), reason)),
        }
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    for tied in ranked.chunk_by_mut(|(a, _), (b, _)| a == b) {
        balance::order(route.balance, tied, input, choice.candidates.is_empty());
        let shares = tied.iter_mut().map(|(_, share)| share.candidate.clone());
        choice.candidates.extend(shares);
    }
    choice
}

/// Checks that at least one member may serve `route`.
///
/// # Errors
/// The reason for each member.
pub fn check_available(snapshot: &Snapshot, route: &Route) -> Result<(), Choice> {
    let mut choice = Choice::default();
    for member in &snapshot.members {
        match fitness(snapshot, route, member) {
            Ok(_) => return Ok(()),
            Err(reason) => choice.refused.push((member.name.clone(), reason)),
        }
    }
    Err(choice)
}

/// Whether `member` may serve `route`: the index of the matching target, and the reason.
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
                // Any other reason says more than a wrong role.
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
                // It could serve only as the leader, so the leader's reason counts.
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

/// A random number for [`candidates`]: not predictable, not secret.
pub fn chance() -> u64 {
    let mut bytes = [0_u8; 8];
    // Without randomness ties go to the same member each time.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    u64::from_ne_bytes(bytes)
}

/// Whether `member` may serve as the leader.
pub fn leader_reason(snapshot: &Snapshot, member: &Member) -> Result<Preference, Reason> {
    match (usable(member), &snapshot.leader) {
        // A member that was full at every probe has no known identity. Its session must verify it.
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
        // Patroni since 3.1 reports the last two where it reported `running` before.
        "running" | "streaming" | "in archive recovery" if member.role == Role::StandbyLeader => {
            Ok(Preference::StandbyLeader)
        }
        "running" | "streaming" | "in archive recovery" => Ok(fit),
        other => Err(Reason::State(other.to_owned())),
    }
}

/// Checks the conditions that every target has for a member.
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
    if let Some(order) = &member.leaving
        && member.health.up
    {
        return Err(Reason::Leaving(Arc::clone(order)));
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

/// Members that a client's hint names.
const MOST_NAMED: usize = 16;

/// Why a member does not serve, for a client's hint. Every client sees this before it logs in, so
/// the text must not repeat what a server or the network sent.
fn refusal(snapshot: &Snapshot, member: &MemberName, reason: &Reason) -> String {
    let facts = || snapshot.member(member)?.health.facts.as_ref();
    match reason {
        Reason::Down(_) => format!("{member} is down."),
        // The message says why there is no leader.
        Reason::NoLeader(_) => match facts() {
            Some(facts) if facts.in_recovery => format!("{member} is a standby."),
            Some(_) => format!("{member} accepts writes, but is not the verified leader."),
            None => format!("{member} is not the verified leader."),
        },
        _ => format!("{member} {reason}."),
    }
}

/// The verified leader and its state, if an operator has taken it out of service.
fn leader_out_of_service<'a>(
    snapshot: &'a Snapshot,
    choice: &Choice,
) -> Option<(&'a MemberName, &'static str)> {
    let Leader::Verified { member: leader, .. } = &snapshot.leader else {
        return None;
    };
    let (_, reason) = choice.refused.iter().find(|(member, _)| member == leader)?;
    match reason {
        Reason::Maintenance => Some((leader, "is in maintenance")),
        Reason::Draining => Some((leader, "is being drained")),
        _ => None,
    }
}

/// What a client can do, or whom it can ask, while there is no leader.
fn advice(snapshot: &Snapshot, why: &NoLeader) -> &'static str {
    match why {
        NoLeader::Full { .. } => "Try again later: the server has no free connection.",
        NoLeader::NotYetKnown => "Try again in a moment.",
        NoLeader::SourceUnreachable => "Ask the operator to check Patroni, and the router's log.",
        NoLeader::DcsUnreachable => "Ask the operator to check Patroni's DCS, for example etcd.",
        NoLeader::LastLost { .. } => "Ask the operator to check the leader's server, and Patroni.",
        NoLeader::ProbeFails { .. } => {
            "Try again later. If this lasts, ask the operator to run `trunkline check --connect`."
        }
        NoLeader::StandbyCluster(_) => "Only read-only sessions can be served here.",
        NoLeader::NotNamed
        | NoLeader::NotWritable(_)
        | NoLeader::NotReachable(_)
        | NoLeader::Stopping(_)
        | NoLeader::SeveralNamed
        | NoLeader::Overtaken { .. }
        | NoLeader::NotOnTimeline { .. }
        | NoLeader::NoneWritable
            if !snapshot.members.is_empty() =>
        {
            if snapshot.paused {
                "Patroni is paused, so there is no automatic failover. Ask the operator."
            } else {
                "Try again: a failover usually ends within a minute."
            }
        }
        _ => "Ask the operator to read the router's log.",
    }
}

/// The message and the hint of the error (57P03) that a client gets when a choice has no candidate.
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
    let out_of_service = leader_out_of_service(snapshot, choice);
    let taken_out = choice
        .refused
        .iter()
        .find(|(_, reason)| matches!(reason, Reason::Maintenance | Reason::Draining));
    let mut hints: Vec<String> = choice
        .refused
        .iter()
        .filter(|(member, _)| out_of_service.is_none_or(|(leader, _)| leader != member))
        .take(MOST_NAMED)
        .map(|(member, reason)| refusal(snapshot, member, reason))
        .collect();
    let unnamed = choice.refused.len() - hints.len() - usize::from(out_of_service.is_some());
    if unnamed > 0 {
        hints.push(format!("{unnamed} more members are not listed."));
    }
    if snapshot.source.error.is_some() {
        // Only the log has the details: clients see this before they log in.
        hints.push(
            "No Patroni endpoint gives a list of members; the state of the members may be outdated."
                .to_owned(),
        );
    } else if snapshot.members.is_empty() {
        hints.push("No member of the cluster is known.".to_owned());
    }
    if let Some((leader, state)) = out_of_service {
        hints.push(format!(
            "{leader}, the leader, {state} at this router. Ask the operator to run `trunkline ready {leader}`."
        ));
    } else if let Leader::None(why) = &snapshot.leader
        && (route.access == Access::ReadWrite || matches!(why, NoLeader::Full { .. }))
    {
        hints.push(advice(snapshot, why).to_owned());
    }
    // Who is out of service by an order is back by one.
    if let (Access::ReadOnly, None, Some((member, _))) = (route.access, out_of_service, taken_out) {
        hints.push(format!("Ask the operator to run `trunkline ready {member}`."));
    }
    if hints.is_empty() {
        hints.push("Try again later.".to_owned());
    }
    (message, hints.join(" "))
}

#[cfg(test)]
#[path = "tests.rs"]
pub(in crate::routing) mod tests;
