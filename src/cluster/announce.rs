//! Reports changes of the topology as events, once per change.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::observation::Arming;
use super::snapshot::{AdminState, Identity, Lag, Leader, Member, MemberName, NamedBy, NoLeader, Snapshot};
use crate::events::{ClusterChange, LeaderSource, MemberFacts};

/// How often an event reports that a member is down for another reason than before. The first
/// reason is often not the helpful one: a terminated session is reported before the refused
/// connection.
const REASON_EVERY: Duration = Duration::from_secs(5);

/// What was reported, as far as later changes depend on it.
#[derive(Debug, Default)]
pub(super) struct Announcer {
    /// The reasons for the members that are down; at most one for each member.
    reported: BTreeMap<MemberName, (String, Instant)>,
    /// There is no leader, and this is not reported before the named member's first probe has
    /// ended.
    is_unprobed: bool,
}

impl Announcer {
    /// The changes between two snapshots. The second one is from `now`.
    pub(super) fn changes(&mut self, old: &Snapshot, new: &Snapshot, now: Instant) -> Vec<ClusterChange> {
        let mut all = changes(old, new);
        all.extend(self.leader(old, new));
        all.extend(out_of_service(old, new));
        self.reported
            .retain(|name, _| new.member(name).is_some_and(|member| !member.health.up));
        for member in &new.members {
            let (false, Some(error)) = (member.health.up, &member.health.error) else {
                continue;
            };
            match self.reported.get(&member.name) {
                None => {}
                Some((reported, at)) if reported != error && now.duration_since(*at) >= REASON_EVERY => {
                    all.push(ClusterChange::MemberStillDown {
                        member: member.name.to_string(),
                        error: error.clone(),
                    });
                }
                Some(_) => continue,
            }
            self.reported.insert(member.name.clone(), (error.clone(), now));
        }
        all
    }

    fn leader(&mut self, old: &Snapshot, new: &Snapshot) -> Option<ClusterChange> {
        let is_new = old.leader != new.leader;
        let was_unprobed = self.is_unprobed;
        self.is_unprobed = (is_new || was_unprobed)
            && !matches!(old.leader, Leader::Verified { .. })
            && matches!(&new.leader, Leader::None(NoLeader::NotWritable(named)) if is_unprobed(new, named));
        if self.is_unprobed || !(is_new || was_unprobed) || is_same_failure(&old.leader, &new.leader) {
            return None;
        }
        leader(&old.leader, new)
    }
}

fn is_unprobed(snapshot: &Snapshot, name: &MemberName) -> bool {
    snapshot
        .member(name)
        .is_none_or(|member| member.health.last_probe.is_none())
}

/// Whether probes of the same member fail, in another way than before. The events about the member
/// report that.
fn is_same_failure(old: &Leader, new: &Leader) -> bool {
    let failing = |leader: &Leader| match leader {
        Leader::None(NoLeader::NotReachable(member) | NoLeader::ProbeFails { member, .. }) => {
            Some(member.clone())
        }
        _ => None,
    };
    failing(old).is_some() && failing(old) == failing(new)
}

/// That the router begins or ends to look more closely.
pub(super) fn arming(arming: Arming) -> ClusterChange {
    match arming {
        Arming::Begun { member, why } => ClusterChange::Armed {
            member: member.to_string(),
            why: why.to_owned(),
        },
        Arming::Ended { member, why } => ClusterChange::Disarmed {
            member: member.to_string(),
            why,
        },
    }
}

/// The leader that an operator has taken out of service at this router.
fn unused_leader(snapshot: &Snapshot) -> Option<(&MemberName, AdminState)> {
    match &snapshot.leader {
        Leader::Verified { member, .. } => {
            let admin = snapshot.member(member)?.admin;
            (admin != AdminState::Ready).then_some((member, admin))
        }
        Leader::None(_) => None,
    }
}

fn out_of_service(old: &Snapshot, new: &Snapshot) -> Option<ClusterChange> {
    let (member, admin) = unused_leader(new).filter(|now| unused_leader(old) != Some(*now))?;
    Some(ClusterChange::LeaderOutOfService {
        member: member.to_string(),
        draining: admin == AdminState::Drain,
    })
}

fn changes(old: &Snapshot, new: &Snapshot) -> Vec<ClusterChange> {
    let mut all = Vec::new();
    match (&old.source.error, &new.source.error) {
        (None, Some(error)) if !old.source.reachable => {
            all.push(ClusterChange::NoSourceYet { error: error.clone() });
        }
        (_, Some(error)) if old.source.reachable || old.source.error.is_none() => {
            all.push(ClusterChange::SourceLost { error: error.clone() });
        }
        (Some(_), None) if new.source.reachable => all.push(ClusterChange::SourceBack),
        _ => {}
    }
    match (&old.source.disagreement, &new.source.disagreement) {
        (None, Some(how)) => all.push(ClusterChange::EndpointsDisagree { how: how.clone() }),
        (Some(_), None) if new.source.reachable => all.push(ClusterChange::EndpointsAgree),
        _ => {}
    }
    match (old.paused, new.paused) {
        (false, true) => all.push(ClusterChange::PatroniPaused),
        (true, false) => all.push(ClusterChange::PatroniResumed),
        _ => {}
    }
    for member in &new.members {
        let known = old.member(&member.name);
        if known.is_none() {
            all.push(ClusterChange::MemberAppeared {
                member: member.name.to_string(),
                address: member
                    .has_address()
                    .then(|| format!("{}:{}", member.host, member.port)),
            });
        }
        all.extend(health(known, member));
        all.extend(identity(known, member));
        share(known, member, &mut all);
        lag(known, member, &mut all);
    }
    let gone = old
        .members
        .iter()
        .filter(|member| new.member(&member.name).is_none());
    all.extend(gone.map(|member| ClusterChange::MemberLeft {
        member: member.name.to_string(),
    }));
    all
}

fn health(old: Option<&Member>, new: &Member) -> Option<ClusterChange> {
    let member = new.name.to_string();
    let was_up = old.is_some_and(|old| old.health.up);
    let was_full = old.is_some_and(|old| old.health.full);
    if new.health.full && !was_full {
        return Some(ClusterChange::MemberFull {
            member,
            error: new.health.error.clone().unwrap_or_default(),
            is_role_known: new.health.facts.is_some(),
        });
    }
    if was_full && !new.health.full && new.health.up {
        return Some(ClusterChange::MemberNotFull { member });
    }
    if new.health.up && !was_up {
        let facts = new.health.facts.as_ref().map(|facts| MemberFacts {
            in_recovery: facts.in_recovery,
            timeline: facts.timeline,
            server_version: facts.server_version,
        });
        return Some(ClusterChange::MemberUp { member, facts });
    }
    if let (false, Some(error)) = (new.health.up, &new.health.error) {
        let failed_before = old.is_some_and(|old| !old.health.up && old.health.error.is_some());
        let error = error.clone();
        return (!failed_before).then_some(ClusterChange::MemberDown { member, error });
    }
    let before = old.and_then(|old| old.health.facts.as_ref())?;
    let now = new.health.facts.as_ref()?;
    match (before.in_recovery, now.in_recovery) {
        (true, false) => Some(ClusterChange::MemberPromoted { member }),
        (false, true) => Some(ClusterChange::MemberDemoted { member }),
        _ => None,
    }
}

fn identity(old: Option<&Member>, new: &Member) -> Option<ClusterChange> {
    let member = new.name.to_string();
    let was = old.map_or(Identity::Unknown, |old| old.identity);
    match (was, new.identity) {
        (Identity::Foreign, Identity::Foreign) => None,
        (_, Identity::Foreign) => Some(ClusterChange::MemberForeign { member }),
        (Identity::Foreign, Identity::Same) => Some(ClusterChange::MemberFamiliar { member }),
        _ => None,
    }
}

/// For a new member only values other than the default.
fn share(old: Option<&Member>, new: &Member, all: &mut Vec<ClusterChange>) {
    let member = || new.name.to_string();
    if old.map_or(1, |old| old.weight) != new.weight {
        all.push(ClusterChange::WeightChanged {
            member: member(),
            weight: new.weight,
        });
    }
    if old.and_then(|old| old.zone.as_ref()) != new.zone.as_ref() {
        all.push(ClusterChange::ZoneChanged {
            member: member(),
            zone: new.zone.as_deref().map(str::to_owned),
        });
    }
}

/// For each route once when the member begins to lag, and once when it has caught up. Nothing for a
/// member that is down.
fn lag(old: Option<&Member>, new: &Member, all: &mut Vec<ClusterChange>) {
    let nothing = BTreeSet::new();
    let before = old.map_or(&nothing, |old| &old.lagging);
    if !new.health.up {
        return;
    }
    let member = || new.name.to_string();
    for route in new.lagging.difference(before) {
        let (bytes, seconds) = match new.measured {
            Some(Lag { bytes, time }) => (Some(bytes), time.map(|time| time.as_secs_f64())),
            None => (None, None),
        };
        all.push(ClusterChange::MemberLagging {
            member: member(),
            route: route.to_string(),
            bytes,
            seconds,
        });
    }
    for route in before.difference(&new.lagging) {
        all.push(ClusterChange::MemberCaughtUp {
            member: member(),
            route: route.to_string(),
        });
    }
}

/// Why there is no leader, for the log: with the words of the probe.
fn why(no_leader: &NoLeader, snapshot: &Snapshot) -> String {
    let NoLeader::ProbeFails { member, .. } = no_leader else {
        return no_leader.to_string();
    };
    let member_now = snapshot.member(member);
    match member_now.and_then(|member| member.health.error.as_deref()) {
        Some(error) if member_now.is_some_and(|member| member.leaving.is_some()) => {
            format!("{member} holds the leader key, and its server is being stopped: {error}")
        }
        Some(error) => format!(
            "{member} holds the leader key, but the router's probe fails: {error}; run `trunkline check --connect`"
        ),
        None => no_leader.to_string(),
    }
}

fn leader(old: &Leader, new: &Snapshot) -> Option<ClusterChange> {
    let (member, timeline, named_by) = match &new.leader {
        Leader::Verified {
            member,
            timeline,
            named_by,
        } => (member.to_string(), *timeline, *named_by),
        Leader::None(NoLeader::NotYetKnown) => return None,
        Leader::None(no_leader) => {
            let why = why(no_leader, new);
            return Some(match old {
                Leader::Verified { member, .. } => ClusterChange::LeaderLost {
                    member: member.to_string(),
                    why,
                },
                Leader::None(_) => ClusterChange::NoLeader { why },
            });
        }
    };
    let stays = matches!(old, Leader::Verified { member: before, .. } if before.as_str() == member);
    Some(match named_by {
        NamedBy::Failsafe if stays => ClusterChange::LeaderKept { member },
        NamedBy::LeaderKey if stays => ClusterChange::LeaderConfirmed { member, timeline },
        _ => ClusterChange::LeaderChanged {
            member,
            timeline,
            named_by: match named_by {
                NamedBy::LeaderKey => LeaderSource::LeaderKey,
                NamedBy::Failsafe => LeaderSource::Failsafe,
                NamedBy::HighestTimeline => LeaderSource::HighestTimeline,
            },
        },
    })
}

#[cfg(test)]
#[path = "announce_tests.rs"]
mod tests;
