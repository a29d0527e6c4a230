//! What a snapshot says about one member, as sentences for a person. Pure.

use crate::cluster::snapshot::{AdminState, Leader, Member, Role, Snapshot};

/// The answer to a check, and why it is no.
pub(super) type Verdict = Result<(), String>;

/// The member that may be given read-write sessions now.
pub(super) fn leader(snapshot: &Snapshot) -> Result<&Member, String> {
    match &snapshot.leader {
        Leader::Verified { member, .. } => {
            let found = snapshot.member(member).ok_or("the leader is not in the list of members")?;
            usable(snapshot, found)?;
            Ok(found)
        }
        Leader::None(why) => Err(why.to_string()),
    }
}

/// Is it the verified leader, and may it be given sessions?
pub(super) fn is_leader(snapshot: &Snapshot, member: &Member) -> Verdict {
    match leader(snapshot) {
        Ok(leader) if leader.name == member.name => Ok(()),
        Ok(leader) => Err(format!("the leader is {}", leader.name)),
        Err(why) => Err(why),
    }
}

/// Does it lead a standby cluster, and has it been seen to be a standby?
pub(super) fn is_standby_leader(snapshot: &Snapshot, member: &Member) -> Verdict {
    if member.role != Role::StandbyLeader {
        return Err("it does not lead a standby cluster".into());
    }
    usable(snapshot, member)?;
    in_recovery(member)
}

/// May it be given read-only sessions now?
pub(super) fn is_fit_replica(snapshot: &Snapshot, member: &Member) -> Verdict {
    is_replica(snapshot, member)?;
    if !matches!(member.state.as_str(), "" | "running" | "streaming") {
        return Err(format!("its state is \"{}\"", member.state));
    }
    balanced(member)
}

pub(super) fn fit_replicas(snapshot: &Snapshot) -> impl Iterator<Item = &Member> {
    snapshot.members.iter().filter(|member| is_fit_replica(snapshot, member).is_ok())
}

/// Is it a replica by its role, and a running standby by our own probes?
pub(super) fn is_replica(snapshot: &Snapshot, member: &Member) -> Verdict {
    match &member.role {
        Role::Replica | Role::SyncStandby | Role::QuorumStandby | Role::Unnamed => {}
        Role::Leader | Role::StandbyLeader => return Err("it is not a replica".into()),
        Role::Other(role) => return Err(format!("its role is \"{role}\"")),
    }
    usable(snapshot, member)?;
    in_recovery(member)
}

/// Patroni's tag `noloadbalance`, by Python's notion of truth, which is Patroni's.
pub(super) fn balanced(member: &Member) -> Verdict {
    use serde_json::Value;
    let set = match member.tags.get("noloadbalance") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(set)) => *set,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(items)) => !items.is_empty(),
    };
    if set { Err("it has the tag noloadbalance".into()) } else { Ok(()) }
}

/// How far behind the leader it has replayed, in bytes: by our own probes, else by the source.
pub(super) fn replay_lag(snapshot: &Snapshot, member: &Member) -> Option<u64> {
    let position = |member: &Member| member.health.facts.as_ref().map(|facts| facts.position).filter(|p| *p > 0);
    match (leader(snapshot).ok().and_then(position), position(member)) {
        (Some(leader), Some(replayed)) => Some(leader.saturating_sub(replayed)),
        _ => member.lag,
    }
}

/// Up, of this cluster, and not taken out of service.
fn usable(snapshot: &Snapshot, member: &Member) -> Verdict {
    is_up(member)?;
    if let (Some(ours), Some(facts)) = (snapshot.system_identifier, &member.health.facts)
        && facts.system_identifier != ours
    {
        return Err("it belongs to another cluster".into());
    }
    match member.admin {
        AdminState::Ready => Ok(()),
        AdminState::Drain => Err("it is being drained".into()),
        AdminState::Maint => Err("it is in maintenance".into()),
    }
}

pub(super) fn is_up(member: &Member) -> Verdict {
    if member.health.up {
        return Ok(());
    }
    Err(match &member.health.error {
        Some(error) => format!("it is down: {error}"),
        None => "it has not been seen up yet".into(),
    })
}

fn in_recovery(member: &Member) -> Verdict {
    match &member.health.facts {
        Some(facts) if facts.in_recovery => Ok(()),
        Some(_) => Err("it is not in recovery".into()),
        None => Err("nothing is known of it yet".into()),
    }
}
