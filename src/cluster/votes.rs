//! One list of members out of several endpoints' answers: each member, and each thing said of it, by the most of them.
//!
//! - A member is listed if more than half of the answers list it; of exactly half, it stays as it was.
//! - Its address (host and port together), role, state, timeline and tags are each what more than half of the answers
//!   that list it say. Without such a majority what was published last stays, if one of them says so; else the first
//!   answer counts. The address at which it has been seen to belong to this cluster stays in any case.
//! - Its lag is the middle one. Each endpoint reads it at another moment, so that there need be no majority though all
//!   are right; the highest would let one endpoint alone say what is shown. It is shown only: probes measure lag.
//! - A name that comes twice in one answer has one vote, for the entry that is first.
//!
//! So endpoints that are one poll behind the others change nothing back and forth, and what all say counts at once.

use super::snapshot::{Identity, Member, MemberName, Role, Snapshot};
use super::state::{Listed, SourceReport};

/// The role of a member that only a minority names as the leader.
const RIVAL: &str = "named by a minority";

pub(super) fn rival() -> Role {
    Role::Other(RIVAL.to_owned())
}

/// The answers of one poll.
pub(super) struct Votes<'a> {
    /// All that came.
    pub(super) all: &'a [&'a SourceReport],
    /// Those of them that are not known to be old. Old ones tell addresses, tags and who is there, and nothing that
    /// changes with the leader.
    pub(super) current: &'a [&'a SourceReport],
    /// The leader taken, and those that name it, on the timeline taken.
    pub(super) leader: Option<(&'a MemberName, &'a [&'a SourceReport])>,
    pub(super) published: &'a Snapshot,
}

impl Votes<'_> {
    /// At most `limit` members.
    pub(super) fn members(&self, limit: usize) -> Vec<Listed> {
        let mut members: Vec<Listed> = Vec::new();
        for listed in self
            .current
            .iter()
            .chain(self.all)
            .flat_map(|answer| &answer.members)
        {
            let name = &listed.name;
            if members.len() < limit
                && members.iter().all(|known| known.name != *name)
                && self.is_listed(name)
            {
                members.push(self.member(name));
            }
        }
        members
    }

    /// Members at whose addresses the answers differ.
    pub(super) fn moved(&self) -> Vec<&MemberName> {
        let mut names: Vec<&MemberName> = Vec::new();
        for listed in self.all.iter().flat_map(|answer| &answer.members) {
            let differs = |other: &Listed| address(other) != address(listed);
            if said(self.all, &listed.name).into_iter().any(differs) && !names.contains(&&listed.name) {
                names.push(&listed.name);
            }
        }
        names
    }

    pub(super) fn is_paused(&self) -> bool {
        let paused: Vec<bool> = self.all.iter().map(|answer| answer.paused).collect();
        most(&paused, Some(&self.published.paused)).unwrap_or(false)
    }

    fn published(&self, name: &MemberName) -> Option<&Member> {
        self.published
            .member(name)
            .filter(|member| member.role != rival())
    }

    fn is_listed(&self, name: &MemberName) -> bool {
        let by = |answers: &[&SourceReport]| {
            let lists: Vec<bool> = answers
                .iter()
                .map(|answer| answer.members.iter().any(|member| member.name == *name))
                .collect();
            let was = self.published(name).is_some();
            most(&lists, Some(&was).filter(|_| !self.published.members.is_empty())) == Some(true)
        };
        self.leader.is_some_and(|(leader, _)| leader == name) || by(self.current) || by(self.all)
    }

    fn member(&self, name: &MemberName) -> Listed {
        let all = said(self.all, name);
        let current = match said(self.current, name) {
            none if none.is_empty() => all.clone(),
            current => current,
        };
        let last = self.published(name);
        let of_leader = self.leader.filter(|(leader, _)| *leader == name);
        let (host, port) = place(&all, last);
        let told = match of_leader {
            Some((_, naming)) => said(naming, name),
            None => current.clone(),
        };
        let mut role = most(
            &each(&told, |listed| listed.role.clone()),
            last.map(|last| &last.role),
        )
        .unwrap_or_else(rival);
        if self.leader.is_some() && of_leader.is_none() && leads(&role) {
            // Only one leads.
            role = last
                .map(|last| &last.role)
                .into_iter()
                .chain(current.iter().map(|listed| &listed.role))
                .find(|role| !leads(role))
                .cloned()
                .unwrap_or_else(rival);
        }
        let mut lags = each(&current, |listed| listed.lag);
        lags.sort_unstable_by_key(|lag| (lag.is_none(), *lag));
        Listed {
            name: name.clone(),
            host,
            port,
            role,
            state: most(
                &each(&current, |listed| listed.state.clone()),
                last.map(|last| &last.state),
            )
            .unwrap_or_default(),
            timeline: most(
                &each(&told, |listed| listed.timeline),
                last.map(|last| &last.timeline),
            )
            .flatten(),
            lag: lags.get(lags.len() / 2).copied().flatten(),
            tags: most(
                &each(&all, |listed| listed.tags.clone()),
                last.map(|last| &last.tags),
            )
            .unwrap_or_default(),
        }
    }
}

/// Where a member is.
fn place(all: &[&Listed], last: Option<&Member>) -> (String, u16) {
    let addresses = each(all, address);
    let was = last.map(|last| (last.host.clone(), last.port));
    if majority(&addresses).is_none()
        && let Some(seen) = was
            .clone()
            .filter(|_| last.is_some_and(|last| last.identity == Identity::Same))
    {
        return seen;
    }
    most(&addresses, was.as_ref()).unwrap_or_default()
}

fn leads(role: &Role) -> bool {
    matches!(role, Role::Leader | Role::StandbyLeader)
}

fn address(listed: &Listed) -> (String, u16) {
    (listed.host.clone(), listed.port)
}

fn said<'a>(answers: &[&'a SourceReport], name: &MemberName) -> Vec<&'a Listed> {
    let of = |answer: &&'a SourceReport| answer.members.iter().find(|member| member.name == *name);
    answers.iter().filter_map(of).collect()
}

fn each<T>(members: &[&Listed], get: impl Fn(&Listed) -> T) -> Vec<T> {
    members.iter().map(|member| get(member)).collect()
}

fn majority<T: PartialEq>(votes: &[T]) -> Option<&T> {
    let count = |vote: &&T| votes.iter().filter(|other| other == vote).count();
    votes.iter().find(|vote| count(vote) * 2 > votes.len())
}

/// What more than half say, else `last` where it is among them, else the first.
fn most<T: PartialEq + Clone>(votes: &[T], last: Option<&T>) -> Option<T> {
    majority(votes)
        .or_else(|| last.filter(|last| votes.contains(last)))
        .or(votes.first())
        .cloned()
}

#[cfg(test)]
#[path = "votes_tests.rs"]
mod tests;
