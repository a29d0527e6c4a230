//! Reports changes of the topology as events, once per change.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::snapshot::{Identity, Lag, Leader, Member, MemberName, NamedBy, NoLeader, Snapshot};
use crate::events::{ClusterChange, LeaderSource, MemberFacts};

/// How often an event reports that a member is down for another reason than before. The first
/// reason is often not the helpful one: a terminated session is reported before the refused
/// connection.
const REASON_EVERY: Duration = Duration::from_secs(5);

/// The reasons that were reported for the members that are down; at most one for each member.
#[derive(Debug, Default)]
pub(super) struct Announcer {
    reported: BTreeMap<MemberName, (String, Instant)>,
}

impl Announcer {
    /// The changes between two snapshots. The second one is from `now`.
    pub(super) fn changes(&mut self, old: &Snapshot, new: &Snapshot, now: Instant) -> Vec<ClusterChange> {
        let mut all = changes(old, new);
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
}

fn changes(old: &Snapshot, new: &Snapshot) -> Vec<ClusterChange> {
    let mut all = Vec::new();
    match (&old.source.error, &new.source.error) {
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
    if old.leader != new.leader {
        all.extend(leader(&old.leader, &new.leader));
    }
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

fn leader(old: &Leader, new: &Leader) -> Option<ClusterChange> {
    let (member, timeline, named_by) = match new {
        Leader::Verified {
            member,
            timeline,
            named_by,
        } => (member.to_string(), *timeline, *named_by),
        Leader::None(NoLeader::NotYetKnown) => return None,
        Leader::None(why) => {
            let why = why.to_string();
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
