//! Servers without a free connection for a probe: they are up and keep the role seen last.

use std::time::Duration;

use tokio::time::Instant;

use super::{MemberState, Named, State};
use crate::cluster::check::CheckStatus;
use crate::cluster::snapshot::{Identity, MemberName, NoLeader};

/// How long the role seen last counts while no probe can connect. A server changes its role without
/// ending its sessions only when it is promoted, and then it notifies its sessions.
const KEEP: Duration = Duration::from_mins(5);

impl MemberState {
    /// It answered a probe begun at `started` with 53300.
    pub(super) fn full(&mut self, check: CheckStatus, message: String, started: Instant) {
        self.health.check = check;
        self.health.error = Some(message);
        self.health.streak = 0;
        self.health.up = true;
        self.health.full = true;
        self.full_from = Some(started);
    }

    pub(super) fn not_full(&mut self) {
        self.health.full = false;
        self.full_from = None;
    }

    /// Whether it answered so at most `max_age` ago.
    pub(super) fn is_full(&mut self, max_age: Duration, now: Instant) -> bool {
        let is_fresh = |from: &Instant| now.saturating_duration_since(*from) <= max_age;
        if !self.full_from.as_ref().is_some_and(is_fresh) {
            self.not_full();
        }
        self.health.full
    }

    /// Drops an old role, and a standby's role if the member now has the leader key.
    pub(super) fn drop_old_role(&mut self, is_named: bool, now: Instant) {
        let is_old = |from: Instant| now.saturating_duration_since(from) > KEEP;
        let was_standby = self.health.facts.as_ref().is_some_and(|facts| facts.in_recovery);
        if self.facts_from.is_some_and(is_old) || is_named && was_standby {
            self.forget_facts();
        }
    }

    /// Whether it may be the leader although no probe has seen it as the leader.
    fn may_lead(&self) -> bool {
        self.health.full && self.has_address() && (self.health.facts.is_none() || self.unconfirmed)
    }
}

impl State {
    /// The result if `name` may be the leader but is full.
    pub(super) fn full_leader(&self, name: &MemberName, member: &MemberState) -> Option<NoLeader> {
        let is_possible = member.may_lead() && self.identity(member) != Identity::Foreign;
        is_possible.then(|| NoLeader::Full {
            member: name.clone(),
            newest: self.newest_timeline.max(member.listed.timeline.unwrap_or(0)),
        })
    }

    /// In a fixed list in which no server is seen to accept writes: the only full one.
    pub(super) fn only_full(&self) -> Option<NoLeader> {
        let mut full = self
            .members
            .iter()
            .filter_map(|(name, member)| self.full_leader(name, member));
        full.next().filter(|_| full.next().is_none())
    }

    /// The named leader, if it is full.
    pub(super) fn named_full(&self) -> Option<NoLeader> {
        let Some(Named::One(name)) = &self.named else {
            return None;
        };
        self.full_leader(name, self.members.get(name)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::{FailureKind, Listed, Observation, Settings, SourceKind, SourceReport};
    use super::*;
    use crate::cluster::snapshot::{Leader, ProbeFacts, Role, Snapshot};
    use crate::config::Placement;

    fn settings(kind: SourceKind) -> Settings {
        let second = Duration::from_secs(1);
        Settings {
            cluster: "main".into(),
            kind,
            rise: 2,
            fall: 3,
            probe_interval: second,
            probe_timeout: second,
            poll_interval: second,
            fast_interval: second,
            placement: Placement::even(),
            limits: std::collections::BTreeMap::new(),
        }
    }

    struct World {
        state: State,
        now: Instant,
    }

    impl World {
        fn new(kind: SourceKind, names: &[&str]) -> Self {
            let now = Instant::now();
            let mut state = State::new(settings(kind), now);
            let members: Vec<_> = names
                .iter()
                .map(|name| serde_json::json!({"name": name, "host": name, "port": 5432, "role": "replica"}))
                .collect();
            let body = serde_json::json!({"members": members}).to_string();
            let parsed = crate::cluster::patroni::parse(body.as_bytes()).unwrap();
            let members = parsed.members.into_iter().map(|member| Listed {
                role: Role::Unnamed,
                ..member
            });
            let report = SourceReport {
                members: members.collect(),
                ..parsed
            };
            state.observe(Observation::Source(report), now);
            Self { state, now }
        }

        fn probe(
            &mut self,
            member: &str,
            result: Result<(bool, u32), FailureKind>,
        ) -> std::sync::Arc<Snapshot> {
            let result = result
                .map(|(in_recovery, timeline)| ProbeFacts {
                    in_recovery,
                    system_identifier: 7,
                    timeline,
                    position: 1,
                    received: 0,
                    streaming: in_recovery,
                    server_version: 150_000,
                    latency: Duration::ZERO,
                    address: None,
                    connected: None,
                })
                .map_err(|kind| crate::cluster::state::ProbeError {
                    message: "as scripted".into(),
                    check: CheckStatus::Layer7Status,
                    kind,
                });
            let probe = Observation::Probe {
                member: MemberName::new(member),
                started: self.now,
                result,
            };
            self.state.observe(probe, self.now);
            self.now += Duration::from_secs(1);
            self.state.snapshot()
        }
    }

    fn is_leader(snapshot: &Snapshot, name: &str) -> bool {
        matches!(&snapshot.leader, Leader::Verified { member, .. } if member.as_str() == name)
    }

    fn may_lead(snapshot: &Snapshot, name: &str, timeline: u32) -> bool {
        matches!(&snapshot.leader, Leader::None(NoLeader::Full { member, newest })
            if member.as_str() == name && *newest == timeline)
    }

    #[test]
    fn a_full_leader_stays_the_leader_and_later_sessions_must_verify_it() {
        let mut world = World::new(SourceKind::Fixed, &["a"]);
        assert!(is_leader(&world.probe("a", Ok((false, 3))), "a"));
        for second in 1..=300 {
            let seen = world.probe("a", Err(FailureKind::Full));
            assert!(is_leader(&seen, "a"), "after {second} s");
            let health = &seen.members[0].health;
            assert!(health.up && health.full && health.error.is_some());
        }
        world.probe("a", Err(FailureKind::Full));
        let seen = world.probe("a", Err(FailureKind::Full));
        assert!(
            may_lead(&seen, "a", 3) && seen.members[0].health.up,
            "{:?}",
            seen.leader
        );
        assert!(is_leader(&world.probe("a", Ok((false, 3))), "a"));
        // Being full is no failure, and does not hide failures.
        world.probe("a", Err(FailureKind::Full));
        world.probe("a", Err(FailureKind::Counts));
        assert!(is_leader(&world.probe("a", Err(FailureKind::Counts)), "a"));
        let seen = world.probe("a", Err(FailureKind::Counts));
        assert!(!seen.members[0].health.up && !seen.members[0].health.full);
    }

    #[test]
    fn a_server_that_is_full_from_the_start_may_lead_unless_another_server_leads() {
        let mut world = World::new(SourceKind::Fixed, &["a", "b"]);
        world.probe("a", Err(FailureKind::Full));
        let seen = world.probe("b", Ok((true, 4)));
        assert!(may_lead(&seen, "a", 4), "{:?}", seen.leader);
        assert!(is_leader(&world.probe("b", Ok((false, 5))), "b"));
        let mut world = World::new(SourceKind::Fixed, &["a", "b"]);
        world.probe("a", Err(FailureKind::Full));
        let seen = world.probe("b", Err(FailureKind::Full));
        assert!(
            matches!(seen.leader, Leader::None(NoLeader::NoneWritable)),
            "two servers may be the leader"
        );
    }

    #[test]
    fn a_full_server_that_stops_answering_is_no_longer_full() {
        let mut world = World::new(SourceKind::Fixed, &["a"]);
        world.probe("a", Ok((false, 3)));
        world.probe("a", Err(FailureKind::Full));
        world.now += Duration::from_secs(30);
        world.state.tick(world.now);
        let seen = world.state.snapshot();
        assert!(!seen.members[0].health.full && !is_leader(&seen, "a"));
    }

    #[test]
    fn a_probe_that_was_not_tried_changes_nothing_until_the_last_result_is_old() {
        let mut world = World::new(SourceKind::Fixed, &["a"]);
        world.probe("a", Ok((false, 3)));
        for _ in 0..4 {
            assert!(is_leader(&world.probe("a", Err(FailureKind::NotTried)), "a"));
        }
        for _ in 0..4 {
            world.probe("a", Err(FailureKind::NotTried));
        }
        assert!(!world.state.snapshot().members[0].health.up);
    }

    #[test]
    fn a_freeze_of_this_process_makes_no_probe_result_old() {
        let mut world = World::new(SourceKind::Fixed, &["a"]);
        world.probe("a", Ok((false, 3)));
        world.now += Duration::from_secs(12);
        world.state.resume(Duration::from_secs(12), world.now);
        let seen = world.state.snapshot();
        assert!(is_leader(&seen, "a"));
        assert!(world.state.wants().probe.contains(&MemberName::new("a")));
        world.now += Duration::from_secs(12);
        world.state.tick(world.now);
        assert!(!is_leader(&world.state.snapshot(), "a"));
    }
}
