//! Changes of the topology as sentences for the log, once per change.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::snapshot::{Identity, Lag, Leader, Member, MemberName, NamedBy, NoLeader, Snapshot};

/// How often the log says that a member is down for another reason than before. The first is often not the one that
/// helps: a terminated session hides the refusal behind it.
const REASON_EVERY: Duration = Duration::from_secs(5);

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Something an operator may have to look at.
    pub(super) warning: bool,
    pub(super) text: String,
}

impl Line {
    pub(super) fn log(&self, cluster: &str) {
        if self.warning {
            tracing::warn!(cluster, "{}", self.text);
        } else {
            tracing::info!(cluster, "{}", self.text);
        }
    }
}

/// What the log was told of the members that are down: no more than there are members.
#[derive(Debug, Default)]
pub(super) struct Announcer {
    told: BTreeMap<MemberName, (String, Instant)>,
}

impl Announcer {
    /// What happened between two snapshots, the second being of `now`.
    pub(super) fn changes(&mut self, old: &Snapshot, new: &Snapshot, now: Instant) -> Vec<Line> {
        let mut lines = changes(old, new);
        self.told
            .retain(|name, _| new.member(name).is_some_and(|member| !member.health.up));
        for member in &new.members {
            let (false, Some(error)) = (member.health.up, &member.health.error) else {
                continue;
            };
            match self.told.get(&member.name) {
                None => {}
                Some((told, at)) if told != error && now.duration_since(*at) >= REASON_EVERY => {
                    let text = format!("{} is still down: {error}", member.name);
                    lines.push(Line { warning: true, text });
                }
                Some(_) => continue,
            }
            self.told.insert(member.name.clone(), (error.clone(), now));
        }
        lines
    }
}

fn changes(old: &Snapshot, new: &Snapshot) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut say = |warning: bool, text: String| lines.push(Line { warning, text });
    match (&old.source.error, &new.source.error) {
        (_, Some(error)) if old.source.reachable || old.source.error.is_none() => {
            say(
                true,
                format!("the source of the list of members is lost: {error}"),
            );
        }
        (Some(_), None) if new.source.reachable => {
            say(false, "the source of the list of members is back".into());
        }
        _ => {}
    }
    match (&old.source.disagreement, &new.source.disagreement) {
        (None, Some(how)) => say(true, format!("Patroni's endpoints disagree: {how}")),
        (Some(_), None) if new.source.reachable => say(false, "Patroni's endpoints agree again".into()),
        _ => {}
    }
    if old.paused != new.paused {
        let text = if new.paused {
            "Patroni is in pause: there is no automatic failover"
        } else {
            "Patroni is out of pause"
        };
        say(false, text.into());
    }
    for member in &new.members {
        let known = old.member(&member.name);
        if known.is_none() {
            say(false, introduction(member));
        }
        health(known, member, &mut say);
        share(known, member, &mut say);
        lag(known, member, &mut say);
    }
    for gone in old
        .members
        .iter()
        .filter(|member| new.member(&member.name).is_none())
    {
        say(false, format!("{} is no longer a member", gone.name));
    }
    if old.leader != new.leader {
        leader(&old.leader, &new.leader, &mut say);
    }
    lines
}

fn introduction(member: &Member) -> String {
    if member.has_address() {
        format!("{} at {}:{} is a member", member.name, member.host, member.port)
    } else {
        format!("{} is a member without an address; it is not used", member.name)
    }
}

/// `server_version_num` as a person reads it. A test version of 19 (`19rc1`) has the number of 19.0, so that a minor number
/// of 0 says nothing.
fn version(number: u32) -> String {
    match (number / 10_000, number % 10_000) {
        (major, 0) => major.to_string(),
        (major, minor) => format!("{major}.{minor}"),
    }
}

fn health(old: Option<&Member>, new: &Member, say: &mut impl FnMut(bool, String)) {
    let name = &new.name;
    let was_up = old.is_some_and(|old| old.health.up);
    let was_full = old.is_some_and(|old| old.health.full);
    if new.health.full && !was_full {
        let error = new.health.error.as_deref().unwrap_or_default();
        let role = match &new.health.facts {
            Some(_) => "the role last seen counts for now",
            None => "its role is not known, so each session has to find out whether it accepts writes",
        };
        say(
            true,
            format!(
                "{name} is up and full: {error}; {role}. Let the service account use reserved connections"
            ),
        );
    } else if was_full && !new.health.full && new.health.up {
        say(false, format!("{name} is not full any more"));
    } else if new.health.up && !was_up {
        let what = new.health.facts.as_ref().map_or_else(String::new, |facts| {
            let role = if facts.in_recovery {
                "standby"
            } else {
                "accepts writes"
            };
            let version = version(facts.server_version);
            format!(" ({role}, timeline {}, PostgreSQL {version})", facts.timeline)
        });
        say(false, format!("{name} is up{what}"));
    } else if let (false, Some(error)) = (new.health.up, &new.health.error) {
        let failed_before = old.is_some_and(|old| !old.health.up && old.health.error.is_some());
        if !failed_before {
            say(true, format!("{name} is down: {error}"));
        }
    } else if let (Some(Some(before)), Some(now)) = (old.map(|old| &old.health.facts), &new.health.facts) {
        match (before.in_recovery, now.in_recovery) {
            (true, false) => say(false, format!("{name} has been promoted: it accepts writes")),
            (false, true) => say(false, format!("{name} has been demoted: it is a standby now")),
            _ => {}
        }
    }
    let was = old.map_or(Identity::Unknown, |old| old.identity);
    match (was, new.identity) {
        (Identity::Foreign, Identity::Foreign) => {}
        (_, Identity::Foreign) => {
            say(
                true,
                format!(
                    "{name} belongs to another cluster (by its system identifier); it is not used. Look at name service, \
                     virtual addresses and forwarded ports; if the cluster was made anew, run trunkline forget-identity"
                ),
            );
        }
        (Identity::Foreign, Identity::Same) => say(false, format!("{name} belongs to this cluster now")),
        _ => {}
    }
}

/// Of a new member only what is not the default.
fn share(old: Option<&Member>, new: &Member, say: &mut impl FnMut(bool, String)) {
    let name = &new.name;
    if old.map_or(1, |old| old.weight) != new.weight {
        say(false, format!("{name} has weight {}", new.weight));
    }
    if old.and_then(|old| old.zone.as_ref()) != new.zone.as_ref() {
        say(
            false,
            match &new.zone {
                Some(zone) => format!("{name} is in zone {}", zone.escape_debug()),
                None => format!("{name} is in no zone"),
            },
        );
    }
}

/// For each route once when it begins to lag, and once when it no longer does; nothing of one that is down.
fn lag(old: Option<&Member>, new: &Member, say: &mut impl FnMut(bool, String)) {
    let nothing = BTreeSet::new();
    let before = old.map_or(&nothing, |old| &old.lagging);
    if !new.health.up {
        return;
    }
    let name = &new.name;
    for route in new.lagging.difference(before) {
        let far = match new.measured {
            Some(Lag {
                bytes,
                time: Some(time),
            }) => format!(
                "it is {bytes} bytes and {:.1} s behind the leader",
                time.as_secs_f64()
            ),
            Some(Lag { bytes, time: None }) => {
                format!("it is {bytes} bytes behind the leader, for how long is not known")
            }
            None => "how far it is behind the leader is not known".into(),
        };
        // At the router's start it is not known yet.
        say(
            new.measured.is_some(),
            format!("{name} gets no sessions of route {route}: {far}"),
        );
    }
    for route in before.difference(&new.lagging) {
        say(
            false,
            format!("{name} is not too far behind for route {route} any more"),
        );
    }
}

fn leader(old: &Leader, new: &Leader, say: &mut impl FnMut(bool, String)) {
    match new {
        Leader::Verified {
            member,
            timeline,
            named_by,
        } => match (old, named_by) {
            (Leader::Verified { member: before, .. }, NamedBy::Failsafe) if before == member => say(
                true,
                format!(
                    "{member} stays the leader while no Patroni endpoint can be reached, as long as it accepts writes"
                ),
            ),
            (Leader::Verified { member: before, .. }, NamedBy::LeaderKey) if before == member => {
                say(
                    false,
                    format!("{member} is the leader (timeline {timeline}), named by the leader key"),
                );
            }
            _ => {
                let by = match named_by {
                    NamedBy::LeaderKey => "named by the leader key",
                    NamedBy::Failsafe => "the last one named; no Patroni endpoint can be reached",
                    NamedBy::HighestTimeline => "it has the highest timeline",
                };
                say(
                    false,
                    format!("{member} is the leader: seen to accept writes on timeline {timeline}, {by}"),
                );
            }
        },
        Leader::None(NoLeader::NotYetKnown) => {}
        Leader::None(why) => match old {
            Leader::Verified { member, .. } => say(true, format!("{member} is no longer the leader: {why}")),
            Leader::None(_) => say(true, format!("there is no leader: {why}")),
        },
    }
}

#[cfg(test)]
#[path = "announce_tests.rs"]
mod tests;
