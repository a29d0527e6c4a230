//! An independent record of the observations, and the invariants of every snapshot that follow from
//! it.
//!
//! - A read-write session goes to at most one member. A probe has seen it accept writes at most
//!   [`FRESH`] ago, and nothing known since contradicts that. It is named. It is on the newest
//!   timeline on which a member accepts writes, unless the leader key has been read since the newer
//!   one was seen.
//! - A read-only session goes to a member that was last seen in recovery, equally recently, or, if
//!   the route includes the leader, to the member that gets read-write sessions.
//! - A route with a lag limit gives no sessions to a member whose lag is not known or exceeds the
//!   limit. The lag is measured against the leader, or in a standby cluster against the standby
//!   leader.
//! - A member of another cluster, without an address, down or not administratively ready gets no
//!   sessions.
//! - The leader has the system identifier of the first leader until an operator resets it, and was
//!   seen on the timeline that the source gives it.
//! - A change of one of these makes a new version.

use std::collections::BTreeMap;

use super::*;
use crate::config::{OnLeader, Route, TargetRole, Tier};
use crate::routing::{Candidate, ChoiceInput, Preference, Turns, candidates};

/// Three intervals and two timeouts of [`settings`].
const FRESH: Duration = Duration::from_secs(5);
/// How long the last position of a primary counts.
const MEASURED: Duration = Duration::from_mins(1);
/// How far Patroni may be behind the leader key.
const BEHIND: Duration = Duration::from_millis(100);

/// The observations of a member at its current address.
struct Seen {
    listed: Listed,
    since: Instant,
    /// Start and facts of the last successful probe; `None` after it went down.
    probe: Option<(Instant, ProbeFacts)>,
    /// Its timeline, and when a probe first saw it accept writes there.
    primary_since: Option<(u32, Instant)>,
    probed: bool,
    been_up: bool,
    down: bool,
    successes: u32,
    failures: u32,
    /// When a session last found it refusing connections or shutting down.
    refused: Option<Instant>,
    /// When a session last saw its role, and that it was in recovery.
    role: Option<(Instant, bool)>,
}

impl Seen {
    fn new(listed: Listed, since: Instant) -> Self {
        Self {
            listed,
            since,
            probe: None,
            primary_since: None,
            probed: false,
            been_up: false,
            down: false,
            successes: 0,
            failures: 0,
            refused: None,
            role: None,
        }
    }

    fn addressed(&self) -> bool {
        !self.listed.host.is_empty() && self.listed.port != 0
    }

    fn fall(&mut self) {
        self.probe = None;
        self.down = true;
        self.successes = 0;
    }

    /// Whether results from before `started` no longer count.
    fn outweighs(&self, started: Instant) -> bool {
        let role = self.role.map(|(at, _)| at);
        self.refused.max(role).is_some_and(|at| at >= started)
    }

    fn probed(&mut self, started: Instant, result: &Result<ProbeFacts, ProbeError>, now: Instant) {
        match result {
            Ok(_) if self.outweighs(started) => {}
            Ok(facts) => {
                self.probed = true;
                self.probe = Some((started, facts.clone()));
                self.failures = 0;
                self.successes += 1;
                self.down &= self.been_up && self.successes < RISE;
                self.been_up = true;
                let primary = (!facts.in_recovery).then_some(facts.timeline);
                if self.primary_since.map(|(timeline, _)| timeline) != primary {
                    self.primary_since = primary.map(|timeline| (timeline, now));
                }
            }
            Err(failure) => {
                self.probed = true;
                self.successes = 0;
                self.failures += 1;
                if failure.kind == FailureKind::Certain || self.failures >= FALL {
                    self.fall();
                }
            }
        }
    }

    fn session(&mut self, evidence: Evidence, at: Instant) {
        let known = self.probe.as_ref().map(|(started, _)| *started);
        if at < self.since || known.is_some_and(|started| started > at) {
            return;
        }
        let in_recovery = match evidence {
            Evidence::ConnectRefused => {
                self.refused = self.refused.max(Some(at));
                if self.role.is_none_or(|(seen, _)| seen <= at) && self.probe.is_some() {
                    self.fall();
                }
                return;
            }
            Evidence::Promoted => false,
            Evidence::Demoted => true,
            Evidence::ConnectFailed | Evidence::Terminated | Evidence::ReadOnlySeen => return,
        };
        if self.role.is_none_or(|(seen, _)| seen <= at) && self.refused.is_none_or(|seen| seen <= at) {
            self.role = Some((at, in_recovery));
        }
    }

    /// The facts that are still valid.
    fn facts(&self, now: Instant) -> Option<&ProbeFacts> {
        let (started, facts) = self.probe.as_ref()?;
        (now.saturating_duration_since(*started) <= FRESH).then_some(facts)
    }

    fn in_recovery(&self, now: Instant) -> Option<bool> {
        let (started, facts) = self.probe.as_ref()?;
        self.facts(now)?;
        match self.role {
            Some((at, in_recovery)) if at >= *started => Some(in_recovery),
            _ => Some(facts.in_recovery),
        }
    }
}

/// The observations of a cluster.
pub(super) struct Witness {
    kind: SourceKind,
    members: BTreeMap<MemberName, Seen>,
    admin: BTreeMap<MemberName, AdminState>,
    limits: LagLimits,
    named: Option<Named>,
    by_source: Option<Named>,
    /// By the watch, while it is up.
    key: Option<Named>,
    key_at: Option<Instant>,
    agreed: bool,
    reachable: bool,
    /// Start of the last poll that was answered.
    answered: Option<Instant>,
    /// The identifier with which the first leader was verified.
    identifier: Option<u64>,
    /// The highest timeline seen under the cluster's identifier.
    newest: u32,
    /// Start of the last probe that saw the leader, or the standby leader of a cluster without one.
    led: Option<Instant>,
    /// The candidates of each route before.
    chosen: BTreeMap<Arc<str>, Vec<MemberName>>,
    routes: Vec<Route>,
    /// Number of moments with a candidate for a read-write session, with one for a read-only
    /// session, and without a writable member although the source names a leader.
    pub(super) written: usize,
    pub(super) read: usize,
    pub(super) withheld: usize,
}

impl Witness {
    pub(super) fn new(kind: SourceKind) -> Self {
        Self {
            kind,
            members: BTreeMap::new(),
            admin: BTreeMap::new(),
            limits: settings(kind).limits,
            named: None,
            by_source: None,
            key: None,
            key_at: None,
            agreed: false,
            reachable: false,
            answered: None,
            identifier: None,
            newest: 0,
            led: None,
            chosen: BTreeMap::new(),
            routes: vec![
                route("replica", &[&[TargetRole::Replica]]),
                route(LIMITED, &[&[TargetRole::Replica]]),
                route(
                    "sync",
                    &[&[TargetRole::Sync, TargetRole::Quorum], &[TargetRole::Async]],
                ),
                route("any", &[&[TargetRole::Any]]),
            ],
            written: 0,
            read: 0,
            withheld: 0,
        }
    }

    pub(super) fn hear(&mut self, observation: &Observation, now: Instant) {
        match observation {
            Observation::Source(report) => self.answered(report, now, now),
            Observation::Polled { report, begun } => self.answered(report, *begun, now),
            Observation::SourceFailed(_) | Observation::DcsFailed(_) => self.reachable = false,
            Observation::Key { named, at } => {
                self.key = Some(named.clone());
                self.key_at = Some(*at);
                self.agree();
                if self.agreed {
                    self.named = Some(named.clone());
                }
            }
            Observation::KeyLost => self.key = None,
            Observation::Probe {
                member,
                started,
                result,
            } => {
                if let Some(seen) = self.members.get_mut(member).filter(|seen| *started >= seen.since) {
                    seen.probed(*started, result, now);
                }
            }
            Observation::Evidence { member, evidence, at } => {
                if let Some(seen) = self.members.get_mut(member) {
                    seen.session(*evidence, *at);
                }
            }
            Observation::Admin(member, state) => {
                self.admin.insert(member.clone(), *state);
            }
            Observation::Limits(limits) => self.limits.clone_from(limits),
            Observation::Identity(identifier) => self.identifier = Some(*identifier),
            Observation::ForgetIdentity => self.identifier = None,
            Observation::Switchover { .. }
            | Observation::Status { .. }
            | Observation::Times(_)
            | Observation::Weight(..)
            | Observation::Leaving { .. }
            | Observation::EndLeaving(_)
            | Observation::EndStops(_)
            | Observation::LookAgain => {}
        }
    }

    fn agree(&mut self) {
        let one = matches!(self.by_source, Some(Named::One(_)));
        self.agreed |= one && self.key == self.by_source;
    }

    fn answered(&mut self, report: &SourceReport, begun: Instant, now: Instant) {
        self.reachable = true;
        self.answered = Some(begun);
        self.by_source = Some(report.named.clone());
        self.agree();
        let newer = self.key_at.is_none_or(|at| begun >= at + BEHIND);
        match &self.key {
            Some(key) if self.agreed => self.named = Some(key.clone()),
            Some(_) => self.named.clone_from(&self.by_source),
            None if !self.agreed || newer => self.named.clone_from(&self.by_source),
            None => {}
        }
        let mut before = std::mem::take(&mut self.members);
        for listed in &report.members {
            let known = before
                .remove(&listed.name)
                .filter(|seen| (&seen.listed.host, seen.listed.port) == (&listed.host, listed.port));
            let mut seen = known.unwrap_or_else(|| Seen::new(listed.clone(), now));
            seen.listed = listed.clone();
            self.members.insert(listed.name.clone(), seen);
        }
    }

    /// Checks all invariants after one step.
    pub(super) fn check(&mut self, before: &Snapshot, snapshot: &Snapshot, now: Instant) {
        if before.system_identifier != snapshot.system_identifier {
            self.newest = 0;
        }
        let timelines = self.members.values().filter_map(|seen| seen.facts(now));
        let ours = timelines.filter(|facts| Some(facts.system_identifier) == snapshot.system_identifier);
        self.newest = ours
            .map(|facts| facts.timeline)
            .max()
            .unwrap_or(0)
            .max(self.newest);

        let mut differs = before.leader != snapshot.leader;
        let writes = route("rw", &[&[TargetRole::Leader]]);
        let chosen = choose(snapshot, &writes);
        assert!(chosen.len() <= 1, "one leader at most: {chosen:?}");
        match &snapshot.leader {
            Leader::Verified {
                member,
                timeline,
                named_by,
            } => {
                self.check_leader(snapshot, member, *timeline, *named_by, now);
                assert!(chosen.iter().all(|candidate| candidate.member == *member));
            }
            Leader::None(_) => {
                assert!(chosen.is_empty(), "{chosen:?} without a leader");
                self.led = self.standby_leader(now).or(self.led);
            }
        }
        for candidate in &chosen {
            self.check_use(snapshot, candidate, now);
        }
        let routes = std::mem::take(&mut self.routes);
        for route in &routes {
            let reads = choose(snapshot, route);
            for candidate in &reads {
                if candidate.reason == Preference::Leader {
                    assert!(chosen.iter().any(|leader| leader.member == candidate.member));
                } else {
                    self.check_reads(snapshot, route, candidate, now);
                }
            }
            self.read += usize::from(&*route.name == LIMITED && !reads.is_empty());
            differs |= self.chosen_differ(route, &reads);
        }
        self.routes = routes;
        differs |= self.chosen_differ(&writes, &chosen);
        assert!(snapshot.version >= before.version);
        assert!(
            !differs || snapshot.version > before.version,
            "readers that wait for a change must be woken"
        );
        self.written += chosen.len();
        self.withheld += usize::from(chosen.is_empty() && matches!(self.by_source, Some(Named::One(_))));
    }

    /// Whether the candidates of `route` have changed.
    fn chosen_differ(&mut self, route: &Route, candidates: &[Candidate]) -> bool {
        let mut members: Vec<_> = candidates
            .iter()
            .map(|candidate| candidate.member.clone())
            .collect();
        members.sort();
        let before = self.chosen.insert(Arc::clone(&route.name), members.clone());
        before.unwrap_or_default() != members
    }

    /// Checks a member that leads or gets any session.
    fn check_known(&self, snapshot: &Snapshot, member: &MemberName, now: Instant) -> (&Seen, &ProbeFacts) {
        let seen = self
            .members
            .get(member)
            .unwrap_or_else(|| panic!("{member} is not listed"));
        assert!(seen.addressed(), "{member} has no address");
        assert!(!seen.down, "{member} is down");
        let facts = seen
            .facts(now)
            .unwrap_or_else(|| panic!("{member} was not seen lately"));
        assert_eq!(
            Some(facts.system_identifier),
            snapshot.system_identifier,
            "{member} is foreign"
        );
        (seen, facts)
    }

    /// Checks a member that gets any session.
    fn check_use(&self, snapshot: &Snapshot, candidate: &Candidate, now: Instant) -> &Seen {
        let Candidate {
            member, host, port, ..
        } = candidate;
        let (seen, _) = self.check_known(snapshot, member, now);
        let address = (&seen.listed.host, seen.listed.port);
        assert_eq!((host, *port), address, "{member} has moved");
        let admin = self.admin.get(member).copied().unwrap_or_default();
        assert_eq!(admin, AdminState::Ready, "{member}");
        seen
    }

    /// Checks the leader, with or without sessions.
    fn check_leader(
        &mut self,
        snapshot: &Snapshot,
        member: &MemberName,
        timeline: u32,
        named_by: NamedBy,
        now: Instant,
    ) {
        let (seen, facts) = self.check_known(snapshot, member, now);
        assert!(!facts.in_recovery, "{member} was not seen to accept writes");
        let started = seen.probe.as_ref().map(|(started, _)| *started);
        assert!(
            started.is_some_and(|started| !seen.outweighs(started)),
            "{member} was contradicted since"
        );
        assert_eq!(timeline, facts.timeline, "{member}");
        assert!(
            seen.listed.timeline.is_none_or(|claimed| claimed <= timeline),
            "{member} is named on a timeline on which it was not seen"
        );
        let identifier = facts.system_identifier;
        assert_eq!(
            self.identifier.unwrap_or(identifier),
            identifier,
            "{member} leads another cluster than the first leader"
        );

        let watched = self.agreed && self.key.is_some();
        let is_named = self.named == Some(Named::One(member.clone()));
        match (self.kind, named_by) {
            (SourceKind::Patroni, NamedBy::LeaderKey) => {
                assert!(is_named && (watched || self.reachable), "{member} is not named");
            }
            (SourceKind::Patroni, NamedBy::Failsafe) => {
                assert!(
                    is_named && !watched && !self.reachable,
                    "{member} was not named last"
                );
            }
            (SourceKind::Fixed, NamedBy::HighestTimeline) => {
                assert_eq!(
                    facts.timeline, self.newest,
                    "{member} is behind a timeline that was seen"
                );
                let mut listed = self.members.values().filter(|seen| seen.addressed());
                assert!(
                    listed.all(|seen| seen.probed),
                    "{member}, and others are not yet known"
                );
            }
            other => panic!("{other:?}"),
        }
        for (other, rival) in self.members.iter().filter(|(other, _)| *other != member) {
            let Some(theirs) = rival.facts(now).filter(|_| rival.addressed()) else {
                continue;
            };
            let is_ours = Some(theirs.system_identifier) == snapshot.system_identifier;
            let is_shown = rival
                .role
                .is_none_or(|(at, _)| rival.probe.as_ref().is_some_and(|(started, _)| *started > at));
            if theirs.in_recovery || !is_ours || !is_shown {
                continue;
            }
            let (theirs, ours) = (theirs.timeline, facts.timeline);
            if named_by == NamedBy::HighestTimeline {
                assert!(theirs < ours, "{member} on {ours}, {other} on {theirs}");
            }
            let asked = if watched { self.key_at } else { self.answered };
            let is_known = named_by == NamedBy::LeaderKey
                && asked
                    .zip(rival.primary_since)
                    .is_some_and(|(at, (_, since))| at >= since);
            assert!(
                theirs <= ours || is_known,
                "{member} is on {ours}, {other} accepts writes on {theirs}"
            );
        }
        self.led = started;
        self.identifier = Some(identifier);
    }

    /// Start of the last probe of the leader of a standby cluster: a named standby while no member
    /// accepts writes.
    fn standby_leader(&self, now: Instant) -> Option<Instant> {
        let Some(Named::One(name)) = &self.named else {
            return None;
        };
        let seen = self.members.get(name)?;
        let ours = seen.facts(now)?.system_identifier;
        let writes = self.members.values().any(|seen| {
            let is_ours = seen
                .facts(now)
                .is_some_and(|facts| facts.system_identifier == ours);
            is_ours && seen.in_recovery(now) == Some(false)
        });
        let is_standby = seen.listed.role == Role::StandbyLeader && seen.in_recovery(now) == Some(true);
        let (started, _) = seen.probe.as_ref()?;
        (is_standby && !writes).then_some(*started)
    }

    fn check_reads(&self, snapshot: &Snapshot, route: &Route, candidate: &Candidate, now: Instant) {
        let seen = self.check_use(snapshot, candidate, now);
        let member = &candidate.member;
        assert_eq!(seen.in_recovery(now), Some(true), "{member} is not a standby");
        assert_ne!(seen.listed.role, Role::Leader, "{member} is about to be promoted");
        if let Leader::Verified { member: leader, .. } = &snapshot.leader {
            assert_ne!(leader, member);
        }
        if let Some(limit) = self.limits.get(&route.name) {
            let lag = snapshot.member(member).unwrap().measured;
            let lag = lag.unwrap_or_else(|| panic!("the lag of {member} is not known"));
            if let Some(bytes) = limit.bytes {
                assert!(lag.bytes <= bytes.most, "{member}: {lag:?}");
            }
            if let Some(limit) = limit.time {
                assert!(
                    lag.time.is_some_and(|time| time <= limit.most),
                    "{member}: {lag:?}"
                );
            }
            let led = self.led.map(|led| now.saturating_duration_since(led));
            assert!(
                led.is_some_and(|led| led <= MEASURED),
                "{member}: no primary is known"
            );
        }
    }
}

fn route(name: &str, tiers: &[&[TargetRole]]) -> Route {
    let targets = tiers.iter().map(|roles| Tier(roles.to_vec())).collect();
    Route {
        read_only_on_leader: OnLeader::Unenforced,
        ..Route::new(name, "main", targets)
    }
}

/// The members to which routing would send a session.
fn choose(snapshot: &Snapshot, route: &Route) -> Vec<Candidate> {
    let mut asked = ChoiceInput {
        client: None,
        zone: None,
        listed: &[],
        sessions_on: &|_| 0,
        is_backing_off: &|_| false,
        chance: &mut || 0,
        turns: &mut Turns::default(),
    };
    candidates(snapshot, route, &mut asked).candidates
}
