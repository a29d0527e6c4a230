//! How a member's lag and the time since it came back up affect which sessions it gets.

use std::sync::Arc;

use tokio::time::Instant;

use super::{LagLimits, MemberState, Named, State};
use crate::cluster::lag::{Judgement, judge};
use crate::cluster::snapshot::{Identity, Leader, Role, WHOLE_SHARE};

/// Percent of its share with which a member begins after it came back up.
const FIRST_SHARE: u8 = WHOLE_SHARE / 10;

impl State {
    /// Replaces the lag limits. If a route's limit has changed, members that exceeded the old one
    /// begin again as not lagging.
    pub(super) fn limit(&mut self, limits: LagLimits) {
        let before = std::mem::replace(&mut self.settings.limits, limits);
        let limits = &self.settings.limits;
        let stays = |route: &Arc<str>| limits.get(route) == before.get(route);
        for member in self.members.values_mut() {
            member.lagging.retain(stays);
            member.unfit_for.retain(stays);
        }
    }

    /// Measures every standby against the leader's history, and decides for which routes it lags.
    pub(super) fn measure(&mut self, leader: &Leader, now: Instant) {
        let reference = match leader {
            Leader::Verified { member, .. } => self.members.get(member),
            Leader::None(_) => self.standby_leader(),
        };
        if let Some(reference) = reference
            && let (Some(facts), Some(from)) = (&reference.health.facts, reference.facts_from)
            && facts.position > 0
        {
            // A standby leader forwards what it has received, replayed or not.
            let has = facts.position.max(facts.received);
            self.history.primary(from, facts.timeline, has);
        }
        for member in self.members.values_mut() {
            let Some(facts) = &member.health.facts else {
                member.lag = None;
                continue;
            };
            if !facts.in_recovery {
                member.lag = None;
                member.lagging.clear();
                member.unfit_for.clear();
                continue;
            }
            let seen = member.health.last_probe.unwrap_or(now);
            let watched = self.history.watched(seen);
            member.lag = self.history.lag(facts, seen, now);
            member.unfit_for.clear();
            for (route, max) in &self.settings.limits {
                let judgement = judge(max, member.lag, watched, member.lagging.contains(route));
                match judgement {
                    Judgement::Lagging => member.lagging.insert(route.clone()),
                    Judgement::Fit => member.lagging.remove(route),
                    Judgement::Unknown => false,
                };
                if judgement != Judgement::Fit {
                    member.unfit_for.insert(route.clone());
                }
            }
        }
    }

    /// The leader of a standby cluster: named by the last answer, and no member has been promoted
    /// since.
    pub(super) fn standby_leader(&self) -> Option<&MemberState> {
        let Some(Named::One(name)) = &self.named else {
            return None;
        };
        let member = self.members.get(name)?;
        let is_standby = member.listed.role == Role::StandbyLeader
            && member.health.up
            && member
                .health
                .facts
                .as_ref()
                .is_some_and(|facts| facts.in_recovery)
            && self.identity(member) == Identity::Same;
        // A session's report is enough: then the lag is not known.
        let is_promoted = self.members.values().any(|member| {
            let writes = member
                .health
                .facts
                .as_ref()
                .is_some_and(|facts| !facts.in_recovery);
            writes && self.identity(member) == Identity::Same
        });
        (is_standby && !is_promoted).then_some(member)
    }

    /// Percent of the member's weight that counts.
    pub(super) fn share(&self, member: &MemberState, now: Instant) -> u8 {
        let whole = self.settings.placement.slow_start;
        let Some(risen) = member.risen.filter(|_| !whole.is_zero()) else {
            return WHOLE_SHARE;
        };
        let passed = now.saturating_duration_since(risen).min(whole);
        let grown = u128::from(WHOLE_SHARE - FIRST_SHARE) * passed.as_millis() / whole.as_millis().max(1);
        FIRST_SHARE + u8::try_from(grown).unwrap_or(WHOLE_SHARE - FIRST_SHARE)
    }
}
