//! What a snapshot says about one member, as sentences for a person. Pure.
//!
//! `routing` decides which member may get sessions; here its answer stands beside what Patroni's
//! checks ask.

use crate::cluster::snapshot::{Leader, Member, Role, Snapshot};
use crate::config::Route;
use crate::routing::{Reason, fitness, leader_reason, replica_reason};

/// The answer to a check, and why it is no.
pub(super) type CheckResult = Result<(), String>;

/// The member that may be given read-write sessions now, or whose clients are held because its
/// server is about to be stopped: a balancer that closed their connections would undo the hold.
pub(super) fn leader(snapshot: &Snapshot) -> Option<&Member> {
    snapshot
        .members
        .iter()
        .find(|member| is_leader(snapshot, member).is_ok())
}

/// Is it the verified leader, and may it be given sessions, or are its clients held?
pub(super) fn is_leader(snapshot: &Snapshot, member: &Member) -> CheckResult {
    let result = match (leader_reason(snapshot, member), &snapshot.leader) {
        (Err(Reason::Leaving(_)), Leader::Verified { member: leader, .. }) if *leader == member.name => {
            Ok(())
        }
        (result, _) => result.map(drop),
    };
    sentence(member, result)
}

/// Why no read-write session gets the verified leader now, although it leads.
pub(super) fn why_leader_waits(snapshot: &Snapshot, leader: &Member, holds: bool) -> String {
    match leader_reason(snapshot, leader).map(drop) {
        Ok(()) => format!("no read-write route may use {}", leader.name),
        Err(reason) => {
            let held = match reason {
                Reason::Leaving(_) | Reason::Draining if holds => "; clients are held",
                _ => "",
            };
            match sentence(leader, Err::<(), _>(reason)) {
                Ok(()) => String::new(),
                Err(sentence) => sentence + held,
            }
        }
    }
}

/// May it, as a replica, be given sessions of the read-only route `route` now? Without one: any
/// read-only sessions.
pub(super) fn is_fit_replica(snapshot: &Snapshot, route: Option<&Route>, member: &Member) -> CheckResult {
    let fit = replica_reason(snapshot, member).and_then(|_| match route {
        Some(route) => fitness(snapshot, route, member).map(drop),
        None => Ok(()),
    });
    sentence(member, fit)
}

pub(super) fn fit_replicas<'a>(
    snapshot: &'a Snapshot,
    route: Option<&'a Route>,
) -> impl Iterator<Item = &'a Member> {
    let is_fit = move |member: &&Member| is_fit_replica(snapshot, route, member).is_ok();
    snapshot.members.iter().filter(is_fit)
}

/// Does it lead a standby cluster, and has it been seen to be a standby? Tags do not matter.
pub(super) fn is_standby_leader(snapshot: &Snapshot, member: &Member) -> CheckResult {
    if member.role != Role::StandbyLeader {
        return Err(format!("{} does not lead a standby cluster", member.name));
    }
    sentence(member, whatever_its_tag(replica_reason(snapshot, member)))
}

/// Patroni's notion of a replica: fit, and never the leader of a standby cluster.
pub(super) fn is_replica(snapshot: &Snapshot, member: &Member) -> CheckResult {
    not_leading(member)?;
    sentence(member, replica_reason(snapshot, member))
}

/// As [`is_replica`], also where the tags keep it out of balancing.
pub(super) fn is_standby(snapshot: &Snapshot, member: &Member) -> CheckResult {
    not_leading(member)?;
    sentence(member, whatever_its_tag(replica_reason(snapshot, member)))
}

/// How far behind the leader it has replayed, in bytes: by our own probes, else by the source.
pub(super) fn replay_lag(member: &Member) -> Option<u64> {
    member.measured.map(|lag| lag.bytes).or(member.lag)
}

/// How much it has not even received, in bytes.
pub(super) fn receive_lag(member: &Member) -> Option<u64> {
    let received = member
        .health
        .facts
        .as_ref()
        .filter(|facts| facts.received > 0)
        .map(|facts| facts.received.saturating_sub(facts.position));
    match (member.measured, received) {
        (Some(lag), Some(waiting)) => Some(lag.bytes.saturating_sub(waiting)),
        _ => member.lag.or_else(|| replay_lag(member)),
    }
}

/// Does it answer our probes, whatever its role?
pub(super) fn is_up(member: &Member) -> CheckResult {
    if member.health.up {
        return Ok(());
    }
    let reason = member
        .health
        .error
        .clone()
        .map_or(Reason::NotYetProbed, Reason::Down);
    sentence(member, Err::<(), _>(reason))
}

fn not_leading(member: &Member) -> CheckResult {
    if member.role == Role::StandbyLeader {
        return Err(format!("{} leads a standby cluster", member.name));
    }
    Ok(())
}

/// A standby that its tags keep out of balancing is a standby.
fn whatever_its_tag<T>(result: Result<T, Reason>) -> Result<(), Reason> {
    match result {
        Ok(_) | Err(Reason::NoLoadBalance) => Ok(()),
        Err(reason) => Err(reason),
    }
}

/// For every caller: the exact words of a probe or a server are for the log and the API.
fn sentence<T>(member: &Member, result: Result<T, Reason>) -> CheckResult {
    result.map(drop).map_err(|reason| match reason {
        Reason::Down(_) => format!("{} is down: {}", member.name, member.health.check.words()),
        reason => format!("{} {reason}", member.name),
    })
}

/// The note about a cluster whose leader is full, although the cluster is ready.
pub(super) fn full_leader(snapshot: &Snapshot) -> Option<String> {
    let leader = leader(snapshot).filter(|leader| leader.health.full)?;
    Some(format!(
        "{} is full: it takes no more sessions of ordinary roles",
        leader.name
    ))
}
