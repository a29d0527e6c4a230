//! What others see of the state: its members, and whether a new snapshot says anything new.

use tokio::time::Instant;

use super::State;
use super::member::MemberState;
use crate::cluster::share::share;
use crate::cluster::snapshot::{Member, Snapshot};

impl State {
    pub(super) fn show(&self, member: &MemberState, now: Instant) -> Member {
        let listed = member.listed.clone();
        let (weight, zone) = share(&self.settings.placement, &listed.name, &listed.tags);
        let weight = self.weights.get(&listed.name).copied().unwrap_or(weight);
        Member {
            leaving: self.leaving.of(&listed.name, now),
            admin: self.admin.get(&listed.name).copied().unwrap_or_default(),
            identity: self.identity(member),
            health: member.health.clone(),
            name: listed.name,
            host: listed.host,
            port: listed.port,
            role: listed.role,
            state: listed.state,
            timeline: listed.timeline,
            lag: listed.lag,
            tags: listed.tags,
            measured: member.lag,
            lagging: member.unfit_for.clone(),
            share: self.share(member, now),
            weight,
            zone,
        }
    }
}

/// Whether a reader could notice a difference. Times, positions, lag, shares and the text of a
/// failure do not count, because they change all the time.
pub(super) fn differs(a: &Snapshot, b: &Snapshot) -> bool {
    let same_member = |a: &Member, b: &Member| {
        let facts = |member: &Member| {
            member.health.facts.as_ref().map(|facts| {
                (
                    facts.in_recovery,
                    facts.system_identifier,
                    facts.timeline,
                    facts.streaming,
                    facts.server_version,
                )
            })
        };
        a.name == b.name
            && (&a.host, a.port) == (&b.host, b.port)
            && a.role == b.role
            && a.state == b.state
            && a.timeline == b.timeline
            && a.tags == b.tags
            && (a.health.up, a.health.full) == (b.health.up, b.health.full)
            && facts(a) == facts(b)
            && a.identity == b.identity
            && (a.admin, &a.leaving) == (b.admin, &b.leaving)
            && a.lagging == b.lagging
            && (a.weight, &a.zone) == (b.weight, &b.zone)
    };
    let same = a.leader == b.leader
        && a.source.reachable == b.source.reachable
        && a.source.disagreement == b.source.disagreement
        && a.system_identifier == b.system_identifier
        && a.paused == b.paused
        && (a.hears, a.patience) == (b.hears, b.patience)
        && a.switchover_requested == b.switchover_requested
        && a.members.len() == b.members.len()
        && a.members.iter().zip(&b.members).all(|(a, b)| same_member(a, b));
    !same
}
