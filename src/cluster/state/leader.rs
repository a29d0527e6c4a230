//! Which members belong to the cluster, and which one leads it, by the rules in the parent's
//! header.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::{History, MemberState, Named, ProbeHistory, SourceKind, State};
use crate::cluster::snapshot::{
    Health, Identity, Leader, MemberName, NamedBy, NoLeader, ProbeFacts, Role, Strayed, VerifiedAt,
};

impl State {
    /// Decides which system identifier is this cluster's. Once a leader has been verified with it,
    /// it stays.
    pub(super) fn identify(&mut self) {
        if !self.is_verified {
            let decided = self.named_identifier().or_else(|| self.majority());
            let decided = decided.filter(|new| self.outweighs(*new)).or(self.identifier);
            if decided != self.identifier {
                self.identifier = decided;
                self.newest_timeline = 0;
                self.history = History::default();
            }
        }
        let newest = self
            .members
            .values()
            .filter(|member| member.identifier.is_some() && member.identifier == self.identifier)
            .filter_map(|member| member.health.facts.as_ref())
            .map(|facts| facts.timeline)
            .max();
        self.newest_timeline = self.newest_timeline.max(newest.unwrap_or(0));
    }

    fn named_identifier(&self) -> Option<u64> {
        match &self.named {
            Some(Named::One(name)) => self.members.get(name)?.identifier,
            _ => None,
        }
    }

    /// Whether `new` may replace the current identifier, to whose members sessions have been given.
    /// One server whose address leads to another cluster, or one named server with another
    /// identifier than all others, is not enough.
    fn outweighs(&self, new: u64) -> bool {
        let having = |identifier: u64| {
            let has = |member: &&MemberState| member.identifier == Some(identifier);
            self.members.values().filter(has).count()
        };
        match self.identifier {
            Some(current) if current != new => {
                let (current, new) = (having(current), having(new));
                new > current && (new > 1 || self.named_identifier().is_some())
            }
            _ => true,
        }
    }

    /// An operator has declared that the cluster may be another one from now on.
    pub(super) fn forget_identity(&mut self) {
        self.is_verified = false;
        self.identifier = None;
        self.newest_timeline = 0;
        self.history = History::default();
        for member in self.members.values_mut() {
            member.health.verified = None;
            member.health.strayed = None;
        }
        self.wants.poll = true;
        self.wants.probe.extend(self.members.keys().cloned());
    }

    /// The identifier that most members have; `None` in a tie, and before each member has been
    /// probed once.
    pub(super) fn majority(&self) -> Option<u64> {
        if self
            .members
            .values()
            .any(|member| member.has_address() && member.probes == ProbeHistory::Unprobed)
        {
            return None;
        }
        let mut votes: BTreeMap<u64, usize> = BTreeMap::new();
        for identifier in self.members.values().filter_map(|member| member.identifier) {
            *votes.entry(identifier).or_default() += 1;
        }
        let most = *votes.values().max()?;
        let mut first = votes
            .iter()
            .filter(|(_, count)| **count == most)
            .map(|(identifier, _)| *identifier);
        match (first.next(), first.next()) {
            (only, None) => only,
            _ => None,
        }
    }

    pub(super) fn identity(&self, member: &MemberState) -> Identity {
        match (self.identifier, member.identifier) {
            (Some(ours), Some(theirs)) if ours == theirs => Identity::Same,
            (Some(_), Some(_)) => Identity::Foreign,
            _ => Identity::Unknown,
        }
    }

    /// Records the connections on which probes have seen that members belong to the cluster, or
    /// that they do not.
    pub(super) fn verify_members(&mut self, now: Instant) {
        let ours = self.identifier;
        for Health {
            facts,
            verified,
            strayed,
            ..
        } in self.members.values_mut().map(|member| &mut member.health)
        {
            if let (Some(facts), Some(ours)) = (facts, ours)
                && (facts.system_identifier != ours
                    || verified.is_some_and(|known| known.timeline > facts.timeline))
                && strayed.as_ref().is_none_or(|strayed| strayed.facts != *facts)
            {
                *strayed = Some(Strayed {
                    facts: facts.clone(),
                    known: now,
                    before: *verified,
                });
            }
        }
        for member in self
            .members
            .values_mut()
            .filter(|member| member.identifier.is_some() && member.identifier == ours)
        {
            let Some((at, timeline)) = member
                .health
                .facts
                .as_ref()
                .and_then(|facts| Some((facts.connected?, facts.timeline)))
            else {
                continue;
            };
            let known = member.health.verified;
            if known.is_none_or(|known| known.timeline <= timeline && known.at <= at) {
                member.health.verified = Some(VerifiedAt { at, timeline });
            }
        }
    }

    /// The facts of a member that this router has recently seen to be writable and that may be
    /// used.
    pub(super) fn writable<'a>(&self, member: &'a MemberState) -> Option<&'a ProbeFacts> {
        self.accepts_writes(member).filter(|_| member.health.up)
    }

    /// As [`Self::writable`], also for a member that needs more successful probes before it may be
    /// used: one is enough to contradict another leader.
    fn accepts_writes<'a>(&self, member: &'a MemberState) -> Option<&'a ProbeFacts> {
        let facts = member.health.facts.as_ref()?;
        let ours = member.has_address() && !member.unconfirmed && self.identity(member) == Identity::Same;
        (ours && !facts.in_recovery).then_some(facts)
    }

    /// Members that accept writes on a newer timeline than `timeline`.
    fn newer(&self, timeline: u32) -> impl Iterator<Item = (&MemberName, &MemberState)> {
        self.members.iter().filter(move |(_, member)| {
            self.accepts_writes(member)
                .is_some_and(|facts| facts.timeline > timeline)
        })
    }

    /// Whether `newer` has been promoted since the leader key was last read.
    fn is_news(&self, newer: &MemberState) -> bool {
        let Some((_, seen)) = newer.primary_since else {
            return false;
        };
        if self.key.counts() {
            !self.key.is_as_new_as(seen)
        } else {
            self.answered.is_none_or(|begun| begun < seen)
        }
    }

    pub(super) fn leader(&self) -> Leader {
        let leader = match self.settings.kind {
            SourceKind::Patroni => self.named_leader(),
            SourceKind::Fixed => self.newest_leader(),
        };
        self.unless_stopping(leader).unwrap_or_else(Leader::None)
    }

    pub(super) fn named_leader(&self) -> Result<Leader, NoLeader> {
        let name = match &self.named {
            None if self.polled => return Err(self.source_silent()),
            None => return Err(NoLeader::NotYetKnown),
            Some(_) if !self.source.reachable && !self.key.counts() => return self.failsafe_leader(),
            Some(Named::Nobody) => return Err(NoLeader::NotNamed),
            Some(Named::Several) => return Err(NoLeader::SeveralNamed),
            Some(Named::Mixed) => return Err(NoLeader::MixedEndpoints),
            Some(Named::One(name)) => name,
        };
        let Some(member) = self.members.get(name) else {
            return Err(NoLeader::NotNamed);
        };
        if let Some(facts) = self.writable(member) {
            let timeline = facts.timeline;
            on_claimed(name, member, timeline)?;
            if let Some((newer, _)) = self.newer(timeline).find(|(_, newer)| self.is_news(newer)) {
                return Err(NoLeader::Overtaken {
                    named: name.clone(),
                    newer: newer.clone(),
                });
            }
            return Ok(Leader::Verified {
                member: name.clone(),
                timeline,
                named_by: NamedBy::LeaderKey,
            });
        }
        Err(if !member.has_address() {
            NoLeader::NoAddress(name.clone())
        } else if self.identity(member) == Identity::Foreign {
            NoLeader::NamedForeign(name.clone())
        } else if member.listed.role == Role::StandbyLeader {
            NoLeader::StandbyCluster(name.clone())
        } else if let Some(full) = self.named_full() {
            full
        } else if member.probes != ProbeHistory::Unprobed && !member.health.up {
            let (member, check) = (name.clone(), member.health.check);
            if check.is_connected() {
                NoLeader::ProbeFails { member, check }
            } else {
                NoLeader::NotReachable(member)
            }
        } else {
            NoLeader::NotWritable(name.clone())
        })
    }

    pub(super) fn failsafe_leader(&self) -> Result<Leader, NoLeader> {
        let Some(Named::One(name)) = &self.named else {
            return Err(self.source_silent());
        };
        let Some(member) = self.members.get(name) else {
            return Err(self.source_silent());
        };
        let Some(facts) = self.writable(member) else {
            let is_lost = member.has_address()
                && member.probes != ProbeHistory::Unprobed
                && !member.health.up
                && self.identity(member) != Identity::Foreign;
            return Err(if is_lost {
                NoLeader::LastLost {
                    last: name.clone(),
                    check: member.health.check,
                    is_dcs_silent: self.is_dcs_silent,
                }
            } else {
                self.source_silent()
            });
        };
        on_claimed(name, member, facts.timeline)?;
        if let Some((newer, _)) = self.newer(facts.timeline).next() {
            return Err(NoLeader::Superseded {
                last: name.clone(),
                newer: newer.clone(),
            });
        }
        Ok(Leader::Verified {
            member: name.clone(),
            timeline: facts.timeline,
            named_by: NamedBy::Failsafe,
        })
    }

    /// Why nobody is named while no endpoint gives a list of members.
    fn source_silent(&self) -> NoLeader {
        if self.is_dcs_silent {
            NoLeader::DcsUnreachable
        } else {
            NoLeader::SourceUnreachable
        }
    }

    pub(super) fn newest_leader(&self) -> Result<Leader, NoLeader> {
        if self
            .members
            .values()
            .any(|member| member.has_address() && member.probes == ProbeHistory::Unprobed)
        {
            return Err(NoLeader::NotYetKnown);
        }
        let writable: Vec<_> = self
            .members
            .iter()
            .filter_map(|(name, member)| Some((self.writable(member)?.timeline, name)))
            .collect();
        let Some((timeline, name)) = writable.iter().max().copied() else {
            if let Some(full) = self.only_full() {
                return Err(full);
            }
            let any_identifier = self.members.values().any(|member| member.identifier.is_some());
            return Err(if self.identifier.is_none() && any_identifier {
                NoLeader::MixedClusters
            } else if let Some(name) = self.foreign_primary() {
                NoLeader::Foreign(name.clone())
            } else {
                NoLeader::NoneWritable
            });
        };
        if timeline < self.newest_timeline {
            let newest = self.newest_timeline;
            return Err(NoLeader::OldTimeline {
                member: name.clone(),
                timeline,
                newest,
            });
        }
        let rivals = self
            .members
            .values()
            .filter_map(|member| self.accepts_writes(member))
            .filter(|facts| facts.timeline == timeline);
        if rivals.count() > 1 {
            return Err(NoLeader::Tie);
        }
        Ok(Leader::Verified {
            member: name.clone(),
            timeline,
            named_by: NamedBy::HighestTimeline,
        })
    }

    /// A listed member that accepts writes but belongs to another cluster.
    fn foreign_primary(&self) -> Option<&MemberName> {
        let is_foreign = |(_, member): &(&MemberName, &MemberState)| {
            let writes = member
                .health
                .facts
                .as_ref()
                .is_some_and(|facts| !facts.in_recovery);
            writes && self.identity(member) == Identity::Foreign
        };
        self.members.iter().find(is_foreign).map(|(name, _)| name)
    }
}

/// A leader must be on the timeline on which it was named. Otherwise the probed server is not the
/// named one.
fn on_claimed(name: &MemberName, member: &MemberState, seen: u32) -> Result<(), NoLeader> {
    match member.listed.timeline {
        Some(claimed) if claimed > seen => Err(NoLeader::NotOnTimeline {
            member: name.clone(),
            seen,
            claimed,
        }),
        _ => Ok(()),
    }
}
