//! Which of several different answers of Patroni's endpoints counts.
//!
//! Answers are grouped by the leader that they name and its timeline.
//!
//! 1. A leader counts as *seen* if this router's probes saw it accept writes, as a member of this
//!    cluster, on at least the timeline that the answer gives it. Timelines only grow: answers that
//!    name a leader on an older timeline than a seen leader are old and do not count.
//!
//! 2. A timeline that is only claimed does not count. The largest group of the other answers is
//!    chosen, including the group of answers without a leader, if it is more than half of all
//!    answers or its leader is seen.
//!
//! 3. In a tie the group whose leader is seen is chosen, if there is exactly one.
//!
//! 4. Otherwise no leader is named.
//!
//! Answers that have no member in common are about different clusters, for example about two
//! groups of Citus. None of these rules can tell which one is meant. Until the cluster's system
//! identifier is known nobody is named or listed. After that it keeps members of other clusters
//! out.
//!
//! A majority of all answers decides which members are listed and with which values
//! ([`votes`](crate::cluster::votes)). A leader that is claimed on a newer timeline than the chosen
//! one is a *rival*: it is listed too, so that it is probed.

use std::collections::{BTreeMap, BTreeSet};

use super::{MAX_MEMBERS, printable};
use crate::cluster::snapshot::{MemberName, Snapshot};
use crate::cluster::state::{Listed, Named, SourceReport};
use crate::cluster::votes::{Votes, rival};

/// The leader that an answer names, and its timeline (0 if there is none).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Nobody,
    Several,
    /// Of one answer never.
    Mixed,
    Leader {
        timeline: u32,
        name: MemberName,
    },
}

impl Key {
    fn timeline(&self) -> Option<u32> {
        match self {
            Self::Leader { timeline, .. } => Some(*timeline),
            Self::Nobody | Self::Several | Self::Mixed => None,
        }
    }
}

pub(super) fn key(report: &SourceReport) -> Key {
    match &report.named {
        Named::Nobody => Key::Nobody,
        Named::Several => Key::Several,
        Named::Mixed => Key::Mixed,
        Named::One(name) => {
            let leader = report.members.iter().find(|member| member.name == *name);
            Key::Leader {
                timeline: leader.and_then(|leader| leader.timeline).unwrap_or(0),
                name: name.clone(),
            }
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nobody => f.write_str("no leader"),
            Self::Several => f.write_str("several leaders"),
            Self::Mixed => f.write_str("leaders of different clusters"),
            Self::Leader { timeline, name } => write!(f, "{name} on timeline {timeline}"),
        }
    }
}

/// Makes one report from several answers, by the rules at the top of this module; `None` without an
/// answer. `seen` returns the timeline on which this router's probes see a member accept writes;
/// `None` if it does not, or is not known to belong to this cluster. `published` is the result of
/// earlier answers.
pub fn choose(
    answers: &[&SourceReport],
    seen: &dyn Fn(&MemberName) -> Option<u32>,
    published: &Snapshot,
) -> Option<SourceReport> {
    let keys: Vec<Key> = answers.iter().map(|answer| key(answer)).collect();
    if answers.iter().all(|answer| *answer == answers[0]) {
        return answers.first().map(|answer| (*answer).clone());
    }
    let mixed = different_clusters(answers);
    if published.system_identifier.is_none()
        && let Some(mixed) = mixed
    {
        return Some(SourceReport {
            members: Vec::new(),
            named: Named::Mixed,
            paused: false,
            disagreement: Some(mixed),
            rivals: Vec::new(),
            scheduled: None,
        });
    }
    let is_seen = |key: &Key| match key {
        Key::Leader { timeline, name } => seen(name).is_some_and(|seen| seen >= *timeline),
        Key::Nobody | Key::Several | Key::Mixed => false,
    };
    let newest = keys
        .iter()
        .filter(|key| is_seen(key))
        .filter_map(Key::timeline)
        .max();
    let mut groups: BTreeMap<&Key, usize> = BTreeMap::new();
    for key in keys
        .iter()
        .filter(|key| key.timeline().is_none() || key.timeline() >= newest)
    {
        *groups.entry(key).or_default() += 1;
    }
    let most = groups.values().max().copied().unwrap_or(0);
    let tied: Vec<&Key> = groups
        .iter()
        .filter(|(_, count)| **count == most)
        .map(|(key, _)| *key)
        .collect();
    let seen: Vec<&Key> = tied.iter().copied().filter(|key| is_seen(key)).collect();
    let chosen = match (tied.as_slice(), seen.as_slice()) {
        ([only], _) if most * 2 > keys.len() => Some(*only),
        (_, [only]) => Some(*only),
        _ => None,
    };
    let taken = chosen.or(tied.first().copied());
    let picked = |is_picked: &dyn Fn(&Key) -> bool| -> Vec<&SourceReport> {
        let pairs = keys.iter().zip(answers);
        pairs
            .filter(|(key, _)| is_picked(key))
            .map(|(_, answer)| *answer)
            .collect()
    };
    let naming = picked(&|key| Some(key) == taken);
    let votes = Votes {
        all: answers,
        current: &picked(&|key| groups.contains_key(key)),
        leader: chosen.and_then(|key| match key {
            Key::Leader { name, .. } => Some((name, naming.as_slice())),
            Key::Nobody | Key::Several | Key::Mixed => None,
        }),
        published,
    };
    let mut report = SourceReport {
        members: votes.members(MAX_MEMBERS),
        named: match (chosen, naming.first()) {
            (Some(_), Some(answer)) => answer.named.clone(),
            _ => Named::Nobody,
        },
        paused: votes.is_paused(),
        disagreement: None,
        rivals: Vec::new(),
        scheduled: votes.scheduled(),
    };
    for (key, answer) in keys.iter().zip(answers) {
        if key.timeline() > chosen.and_then(Key::timeline) {
            add_rival(&mut report, answer);
        }
    }
    let mut leaders: Vec<String> = keys.iter().map(ToString::to_string).collect();
    leaders.sort();
    leaders.dedup();
    let moved = votes.moved();
    if let Some(mixed) = mixed {
        report.disagreement = Some(format!("{mixed}; they name {}", leaders.join(", ")));
    } else if leaders.len() > 1 {
        report.disagreement = Some(format!(
            "Patroni's endpoints disagree: they name {}",
            leaders.join(", ")
        ));
    } else if !moved.is_empty() {
        let names: Vec<&str> = moved.iter().map(|name| name.as_str()).collect();
        report.disagreement = Some(format!(
            "Patroni's endpoints disagree: they give different addresses for {}",
            printable(&names.join(", "), 200)
        ));
    }
    Some(report)
}

/// That the answers are about different clusters, if they are: their members fall into groups that
/// no answer connects. An answer without members says nothing about that.
fn different_clusters(answers: &[&SourceReport]) -> Option<String> {
    let mut clusters: Vec<BTreeSet<&str>> = Vec::new();
    for answer in answers.iter().filter(|answer| !answer.members.is_empty()) {
        let mut members: BTreeSet<&str> = answer.members.iter().map(|member| member.name.as_str()).collect();
        for joined in clusters
            .extract_if(.., |cluster| !cluster.is_disjoint(&members))
            .collect::<Vec<_>>()
        {
            members.extend(joined);
        }
        clusters.push(members);
    }
    if clusters.len() < 2 {
        return None;
    }
    let mut lists: Vec<String> = clusters
        .iter()
        .map(|members| {
            let names: Vec<&str> = members.iter().copied().collect();
            printable(&names.join(", "), 200)
        })
        .collect();
    lists.sort();
    Some(format!(
        "Patroni's endpoints are of different clusters, or of different groups of Citus: they list {}; \
         `patroni.endpoints` must have those of one only",
        lists.join("; and ")
    ))
}

/// Adds the leader of `answer` as a member that is not named leader, so that it is probed.
fn add_rival(report: &mut SourceReport, answer: &SourceReport) {
    let Named::One(name) = &answer.named else {
        return;
    };
    let is_listed = report.members.iter().any(|member| member.name == *name);
    let named = answer.members.iter().find(|member| member.name == *name);
    if let Some(named) = named.filter(|_| !is_listed && report.members.len() < MAX_MEMBERS) {
        report.members.push(Listed {
            role: rival(),
            ..named.clone()
        });
    }
    report.rivals.push(name.clone());
}
