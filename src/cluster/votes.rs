//! Makes one list of members from several endpoints' answers. A majority of the answers decides
//! about each member and each of its values.
//!
//! - A member is listed if more than half of the answers list it. If exactly half do, the published
//!   state stays.
//! - Its address (host and port together), role, state, timeline and tags are the values that more
//!   than half of the answers that list it give. Without such a majority the value published last
//!   stays if one of the answers gives it; otherwise the first answer counts. An address at which
//!   the member has been seen to belong to this cluster always stays in that case.
//! - Its lag is the median. Each endpoint reads it at another moment, so correct answers need not
//!   have a majority; with the maximum, one endpoint alone would decide the value. It is only
//!   displayed: probes measure the lag that counts.
//! - A name that appears twice in one answer has one vote, for its first entry.
//!
//! So an endpoint that is one poll behind the others does not switch values back and forth, and a
//! value that all endpoints give counts at once.

use super::snapshot::{Identity, Member, MemberName, Role, Snapshot};
use super::state::{Listed, SourceReport, SwitchoverRequest};

/// The role of a member that only a minority names as the leader.
const RIVAL: &str = "named by a minority";

pub(super) fn rival() -> Role {
    Role::Other(RIVAL.to_owned())
}

/// The answers of one poll.
pub(super) struct Votes<'a> {
    /// All answers.
    pub(super) all: &'a [&'a SourceReport],
    /// The answers that are not known to be old. Old answers count for addresses, tags and the list
    /// of members, but not for values that change with the leader.
    pub(super) current: &'a [&'a SourceReport],
    /// The chosen leader, and the answers that name it on the chosen timeline.
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

    /// Members for which the answers give different addresses.
    pub(super) fn moved(&self) -> Vec<&MemberName> {
        let mut names: Vec<&MemberName> = Vec::new();
        for listed in self.all.iter().flat_map(|answer| &answer.members) {
            let differs = |other: &Listed| address(other) != address(listed);
            if entries(self.all, &listed.name).into_iter().any(differs) && !names.contains(&&listed.name) {
                names.push(&listed.name);
            }
        }
        names
    }

    pub(super) fn is_paused(&self) -> bool {
        let paused: Vec<bool> = self.all.iter().map(|answer| answer.paused).collect();
        most(&paused, Some(&self.published.paused)).unwrap_or(false)
    }

    /// The switchover that more than half show as scheduled.
    pub(super) fn scheduled(&self) -> Option<SwitchoverRequest> {
        let scheduled: Vec<_> = self.all.iter().map(|answer| answer.scheduled.clone()).collect();
        majority(&scheduled).cloned().flatten()
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
        let all = entries(self.all, name);
        let current = match entries(self.current, name) {
            none if none.is_empty() => all.clone(),
            current => current,
        };
        let last = self.published(name);
        let of_leader = self.leader.filter(|(leader, _)| *leader == name);
        let (host, port) = address_of(&all, last);
        let leader_votes = match of_leader {
            Some((_, naming)) => entries(naming, name),
            None => current.clone(),
        };
        let mut role = most(
            &each(&leader_votes, |listed| listed.role.clone()),
            last.map(|last| &last.role),
        )
        .unwrap_or_else(rival);
        if self.leader.is_some() && of_leader.is_none() && leads(&role) {
            // Only one member can lead.
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
                &each(&leader_votes, |listed| listed.timeline),
                last.map(|last| &last.timeline),
            )
            .flatten(),
            lag: lags.get(lags.len() / 2).copied().flatten(),
            tags: most(
                &each(&all, |listed| listed.tags.clone()),
                last.map(|last| &last.tags),
            )
            .unwrap_or_default(),
            api_url: most(&each(&all, |listed| listed.api_url.clone()), None).flatten(),
        }
    }
}

/// The address of a member.
fn address_of(all: &[&Listed], last: Option<&Member>) -> (String, u16) {
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

fn entries<'a>(answers: &[&'a SourceReport], name: &MemberName) -> Vec<&'a Listed> {
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

/// The value of more than half, else `last` if it is one of the values, else the first value.
fn most<T: PartialEq + Clone>(votes: &[T], last: Option<&T>) -> Option<T> {
    majority(votes)
        .or_else(|| last.filter(|last| votes.contains(last)))
        .or(votes.first())
        .cloned()
}

#[cfg(test)]
#[path = "votes_tests.rs"]
mod tests;
