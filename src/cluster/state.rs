//! The reducer: it folds observations and the time into the next snapshot. It does no IO and has no
//! clock.
//!
//! # Who is the leader
//!
//! With Patroni, the leader is the member that holds the leader key, once this router's own probe
//! has seen it writable. A watch on the DCS shows who holds the key, if it is configured ([`key`]);
//! otherwise Patroni's REST interface does. While neither answers, the member named by the *last
//! answer* stays leader as long as probes see it writable. The exception: another member of the
//! cluster is seen writable on a newer timeline. Then it was promoted without the router's
//! knowledge, and there is no leader. An answer that names no leader counts as an answer: there is
//! no leader then, also in pause. (`/cluster` reads the DCS for each request. During a DCS outage
//! it fails or still shows the last state of its cache; it does not answer that there is no
//! leader.)
//!
//! The named member must be seen on at least the timeline that the source gives it. On an older
//! timeline it is another server under that name, or the source is wrong.
//!
//! If another member is first seen writable on a newer timeline, there is no leader until the key
//! has been read again: Patroni moves the key before it promotes, so the last answer may be old.
//!
//! In a fixed list, the leader is the writable member that alone has the highest timeline. Its
//! timeline must not be older than any timeline seen in this cluster, including those of standbys.
//! There is no leader before each server has been probed once.
//!
//! # Which members belong to the cluster
//!
//! The members with the system identifier of the named leader, if that is known: Patroni does not
//! let other servers take the key. Otherwise the identifier that most members have counts, once
//! each member has been probed; a tie changes nothing. Once a leader (or the leader of a standby
//! cluster) has been verified with an identifier, that identifier stays: a name or an address that
//! leads to another cluster, and endpoints that name one, change nothing. Only another
//! configuration or an operator ([`Observation::ForgetIdentity`]) can change it.
//!
//! # Up and down
//!
//! A member is up after its first success, or after `rise` successes in a row if it had been up
//! before. It is down after `fall` failures in a row, or at once if the failure is certain
//! (refused, shutting down). A role that a probe sees counts at once. Sessions' reports of a role
//! or of a closed port count at once, too. Events that a session can cause by itself
//! (`pg_terminate_backend`, a failed login, a read-only transaction) only make the router probe
//! again.
//!
//! # Full
//!
//! A server that answers 53300 to a probe is up. The role seen last stays valid for a while. After
//! that, or if none was seen, a session may check on its own connection whether the server is the
//! leader ([`NoLeader::Full`]).
//!
//! # About to be stopped
//!
//! A member can be ordered to get nothing new because its server is about to be stopped
//! ([`leaving`]). It stays the leader until it is seen to be none.
//!
//! # Lag
//!
//! A standby's position is compared with the leader's. A standby that exceeds a route's limit lags
//! for that route until it is below the lower limit. While its lag is not known, it is not fit
//! either. In a standby cluster the position that the standby leader has received replaces the
//! leader's: the lag behind the other cluster cannot be seen from here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

mod arming;
mod eligibility;
mod full;
mod hearing;
mod key;
mod leader;
mod leaving;
mod member;
mod view;

use self::leaving::LeavingMembers;
pub use self::leaving::{LeaveRequest, LeaveToken};
use self::member::{MemberState, ProbeHistory};
use self::view::differs;
use super::check::CheckStatus;
use super::lag::History;
pub use super::observation::{
    Arming, Evidence, FailureKind, Listed, MemberStatus, Named, Observation, Pace, PatroniTimes, ProbeError,
    RequestedIn, SourceKind, SourceReport, StatusLook, SwitchoverRequest, Wants,
};
use super::snapshot::{
    AdminState, Health, Lag, Leader, MemberName, NoLeader, ProbeFacts, Snapshot, SourceStatus,
};
use crate::config::{MOST_WEIGHT, MaxLag, Placement};

/// Longest time of fast polling for one loss of the leader: longer than Patroni's default `ttl` +
/// `loop_wait`.
const LEADERLESS: Duration = Duration::from_mins(1);
/// Fast polling after a member failed or the source was lost.
const AFTER_FAILURE: Duration = Duration::from_secs(10);
/// Fast polling after a hint from a session, or a new leader.
const AFTER_HINT: Duration = Duration::from_secs(3);
/// Probe intervals after which a probe's result is too old.
const STALE_INTERVALS: u32 = 3;

/// How far behind a standby may be, by route. Routes without a limit are absent.
pub type LagLimits = BTreeMap<Arc<str>, MaxLag>;

/// The part of the configuration that the reducer needs.
#[derive(Debug, Clone)]
pub struct Settings {
    pub cluster: Arc<str>,
    pub kind: SourceKind,
    pub rise: u32,
    pub fall: u32,
    pub probe_interval: Duration,
    pub probe_timeout: Duration,
    pub poll_interval: Duration,
    /// Interval of polls and probes while something is suspicious.
    pub fast_interval: Duration,
    /// Weights and zones, and how shares grow.
    pub placement: Placement,
    pub limits: LagLimits,
}

/// Everything that the router knows about one cluster.
#[derive(Debug)]
pub struct State {
    settings: Settings,
    members: BTreeMap<MemberName, MemberState>,
    /// Administrative states. They are kept while a member is absent. Their number is limited by
    /// the callers that set them.
    admin: HashMap<MemberName, AdminState>,
    /// Weights that override the configured ones; kept in the same way.
    weights: HashMap<MemberName, u16>,
    leaving: LeavingMembers,
    /// The leader named by the best available source.
    named: Option<Named>,
    /// The leader named by the last answer of the source.
    by_source: Option<Named>,
    /// The leader key, if the DCS is watched.
    key: key::Key,
    /// Until then the named member is probed at the fastest pace.
    chase_until: Instant,
    paused: bool,
    times: Option<PatroniTimes>,
    /// Whether a switchover may begin.
    armed: arming::Armed,
    /// When something in the cluster last answered.
    heard: Option<Instant>,
    source: SourceStatus,
    /// While no endpoint gives a list of members: Patroni answers nevertheless.
    is_dcs_silent: bool,
    polled: bool,
    /// When the last answered poll began.
    answered: Option<Instant>,
    identifier: Option<u64>,
    /// A leader has been verified with `identifier`, which therefore stays.
    is_verified: bool,
    /// The highest timeline seen under `identifier`.
    newest_timeline: u32,
    history: History,
    /// Until then polling is fast while there is no leader.
    leaderless_until: Instant,
    /// Until then polling is fast in any case.
    hinted_until: Instant,
    wants: Wants,
    snapshot: Arc<Snapshot>,
}

impl State {
    pub fn new(settings: Settings, now: Instant) -> Self {
        let source = SourceStatus {
            reachable: false,
            error: None,
            disagreement: None,
        };
        let snapshot = Arc::new(Snapshot {
            cluster: Arc::clone(&settings.cluster),
            version: 0,
            members: Vec::new(),
            leader: Leader::None(NoLeader::NotYetKnown),
            source: source.clone(),
            system_identifier: None,
            paused: false,
            hears: false,
            patience: None,
            switchover_requested: false,
        });
        Self {
            settings,
            members: BTreeMap::new(),
            admin: HashMap::new(),
            weights: HashMap::new(),
            leaving: LeavingMembers::default(),
            named: None,
            by_source: None,
            key: key::Key::default(),
            chase_until: now,
            paused: false,
            times: None,
            armed: arming::Armed::default(),
            heard: None,
            source,
            is_dcs_silent: false,
            polled: false,
            answered: None,
            identifier: None,
            is_verified: false,
            newest_timeline: 0,
            history: History::default(),
            leaderless_until: now + LEADERLESS,
            hinted_until: now,
            wants: Wants::default(),
            snapshot,
        }
    }

    /// Folds one observation into the state.
    pub fn observe(&mut self, observation: Observation, now: Instant) {
        match observation {
            Observation::Source(report) => self.source_answered(report, now, now),
            Observation::Polled { report, begun } => {
                self.heard = Some(now);
                self.source_answered(report, begun, now);
            }
            Observation::Times(times) => self.times = Some(times),
            Observation::Key { named, at } => {
                self.heard = self.heard.max(Some(at));
                self.key_seen(named, at, now);
            }
            Observation::KeyLost => self.key_lost(),
            Observation::Switchover { place, request, due } => {
                self.requested(place, request, due, now);
            }
            Observation::Status {
                member,
                started,
                status,
            } => self.status_seen(&member, started, status.as_ref(), now),
            Observation::SourceFailed(error) => self.source_failed(error, false, now),
            Observation::DcsFailed(error) => self.source_failed(error, true, now),
            Observation::Probe {
                member,
                started,
                result,
            } => self.probe_ended(&member, started, result, now),
            Observation::Evidence { member, evidence, at } => self.evidence(&member, evidence, at, now),
            Observation::Admin(member, state) => {
                self.admin.insert(member, state);
            }
            Observation::Weight(member, Some(weight)) => {
                self.weights.insert(member, weight.min(MOST_WEIGHT));
            }
            Observation::Weight(member, None) => drop(self.weights.remove(&member)),
            Observation::Leaving(request) => {
                self.leaving.order(request, now);
                // Its end is to be seen soon.
                self.hint(now, AFTER_HINT);
            }
            Observation::EndLeaving(token) => self.leaving.end(token),
            Observation::EndStops(member) => self.leaving.end_stops(&member),
            Observation::Identity(identifier) => {
                self.identifier = Some(identifier);
                self.is_verified = true;
            }
            Observation::ForgetIdentity => self.forget_identity(),
            Observation::Limits(limits) => self.limit(limits),
            Observation::LookAgain => {
                self.wants.poll = true;
                self.wants.probe.extend(self.members.keys().cloned());
            }
        }
        self.settle(now);
    }

    /// Lets time pass: old probe results expire.
    pub fn tick(&mut self, now: Instant) {
        self.settle(now);
    }

    /// This process was frozen for `gap`. The freeze does not make earlier probe results older, and
    /// everything is probed again now.
    pub fn resume(&mut self, gap: Duration, now: Instant) {
        for member in self.members.values_mut() {
            for at in [&mut member.facts_from, &mut member.full_from] {
                *at = at.map(|at| at + gap);
            }
        }
        self.leaderless_until += gap;
        self.heard = self.heard.map(|at| at + gap);
        self.armed.resume(gap);
        self.wants.poll = true;
        self.wants.probe.extend(self.members.keys().cloned());
        self.hint(now, AFTER_FAILURE);
        self.settle(now);
    }

    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot)
    }

    /// Whether to poll and probe fast. For each cause this ends by itself.
    pub fn suspicious(&self, now: Instant) -> bool {
        now < self.hinted_until
            || (matches!(self.snapshot.leader, Leader::None(_)) && now < self.leaderless_until)
    }

    pub fn pace(&self, now: Instant) -> Pace {
        let Settings {
            poll_interval,
            probe_interval,
            fast_interval,
            ..
        } = self.settings;
        let chased = self.chased(now).cloned();
        let chase = probe_interval.min(fast_interval).min(key::CHASE);
        if self.suspicious(now) {
            Pace {
                poll: poll_interval.min(fast_interval),
                probe: probe_interval.min(fast_interval),
                chase,
                chased,
            }
        } else {
            Pace {
                poll: poll_interval,
                probe: probe_interval,
                chase,
                chased,
            }
        }
    }

    /// What to poll and probe now. Each request is returned once.
    pub fn wants(&mut self) -> Wants {
        std::mem::take(&mut self.wants)
    }

    fn hint(&mut self, now: Instant, length: Duration) {
        self.hinted_until = self.hinted_until.max(now + length);
    }

    fn source_answered(&mut self, mut report: SourceReport, begun: Instant, now: Instant) {
        let is_late = self.by_source.is_some();
        self.source_named(&mut report, begun, now);
        self.answered = Some(begun);
        let SourceReport {
            members,
            named: _,
            paused,
            disagreement,
            rivals,
            scheduled: _,
        } = report;
        let listed: BTreeSet<_> = members.iter().map(|member| member.name.clone()).collect();
        self.members.retain(|name, _| listed.contains(name));
        for member in members {
            match self.members.get_mut(&member.name) {
                Some(known) if known.listed.host == member.host && known.listed.port == member.port => {
                    known.listed = member;
                }
                _ => {
                    self.wants.probe.insert(member.name.clone());
                    self.members
                        .insert(member.name.clone(), MemberState::new(member, is_late, now));
                }
            }
        }
        self.paused = paused;
        self.polled = true;
        if disagreement.is_some() && self.source.disagreement.is_none() {
            // A takeover may be in progress. Probes will soon show which answer is right.
            self.wants.probe.extend(rivals);
            self.hint(now, AFTER_FAILURE);
        }
        self.source = SourceStatus {
            reachable: true,
            error: None,
            disagreement,
        };
    }

    fn source_failed(&mut self, error: String, is_dcs_silent: bool, now: Instant) {
        if self.source.reachable {
            self.hint(now, AFTER_FAILURE);
        }
        self.polled = true;
        self.is_dcs_silent = is_dcs_silent;
        self.source = SourceStatus {
            reachable: false,
            error: Some(error),
            disagreement: None,
        };
    }

    fn probe_ended(
        &mut self,
        name: &MemberName,
        started: Instant,
        result: Result<ProbeFacts, ProbeError>,
        now: Instant,
    ) {
        let Settings { rise, fall, .. } = self.settings;
        let Some(member) = self.members.get_mut(name) else {
            return;
        };
        if started < member.since {
            return;
        }
        if result.is_ok() && member.evidence_at.is_some_and(|at| started <= at) {
            // The probe may have run before the event that a session saw: probe again.
            self.wants.probe.insert(name.clone());
            return;
        }
        member.answers = hearing::is_answer(&result);
        if member.answers {
            self.heard = Some(now);
        }
        member.probes = member.probes.max(ProbeHistory::NeverUp);
        member.health.last_probe = Some(now);
        match result {
            Ok(facts) => {
                let successes = if member.health.error.is_none() {
                    member.health.streak.saturating_add(1)
                } else {
                    1
                };
                member.health.streak = successes.min(rise);
                member.health.error = None;
                member.not_full();
                member.health.check = CheckStatus::Layer7Ok;
                member.identifier = Some(facts.system_identifier);
                let primary = (!facts.in_recovery).then_some(facts.timeline);
                if member.primary_since.map(|(timeline, _)| timeline) != primary {
                    member.primary_since = primary.map(|timeline| (timeline, now));
                }
                member.health.facts = Some(facts);
                member.facts_from = Some(started);
                member.unconfirmed = false;
                let has_been_up = member.probes == ProbeHistory::BeenUp;
                if !has_been_up || successes >= rise {
                    if !member.health.up && (has_been_up || member.is_late) {
                        member.risen = Some(now);
                    }
                    member.health.up = true;
                    member.probes = ProbeHistory::BeenUp;
                }
            }
            Err(ProbeError {
                message,
                check,
                kind: FailureKind::Full,
            }) => member.full(check, message, started),
            // The earlier result counts until it is too old.
            Err(ProbeError {
                message,
                check,
                kind: FailureKind::NotTried,
            }) => {
                member.health.check = check;
                member.health.error = Some(message);
            }
            Err(ProbeError { message, check, kind }) => {
                let failures = if member.health.error.is_some() {
                    member.health.streak.saturating_add(1)
                } else {
                    1
                };
                let was_up = member.health.up;
                let certain = kind == FailureKind::Certain;
                member.not_full();
                // A member that is about to come up keeps its probe result until then.
                if certain || failures >= fall || member.health.facts.is_none() {
                    member.down(check, message, failures.min(fall));
                } else {
                    member.health.streak = failures;
                    member.health.check = check;
                    member.health.error = Some(message);
                }
                if was_up {
                    self.hint(now, AFTER_FAILURE);
                }
            }
        }
    }

    fn evidence(&mut self, name: &MemberName, evidence: Evidence, at: Instant, now: Instant) {
        let fall = self.settings.fall;
        let Some(member) = self.members.get_mut(name) else {
            return;
        };
        let outdated = at < member.since
            || member.facts_from.is_some_and(|from| from > at)
            || member.evidence_at.is_some_and(|known| known > at);
        self.wants.poll = true;
        self.wants.probe.insert(name.clone());
        match evidence {
            _ if outdated => {}
            Evidence::ConnectRefused => {
                member.evidence_at = Some(at);
                // A member that is already down keeps its error.
                if member.health.facts.is_some() {
                    let why = "it refused a connection".into();
                    member.down(CheckStatus::Layer4Connection, why, fall);
                }
            }
            Evidence::Promoted | Evidence::Demoted => {
                member.evidence_at = Some(at);
                if let Some(facts) = &mut member.health.facts {
                    facts.in_recovery = evidence == Evidence::Demoted;
                    facts.streaming = false;
                    member.unconfirmed = true;
                }
            }
            Evidence::ConnectFailed | Evidence::Terminated => {
                self.wants.anew.insert(name.clone());
            }
            Evidence::ReadOnlySeen => {}
        }
        self.hint(now, AFTER_HINT);
    }

    /// Derives the state from the observations, and makes the next snapshot.
    fn settle(&mut self, now: Instant) {
        self.drop_stale(now);
        self.identify();
        self.verify_members(now);
        self.forget_stopping(now);
        let leader = self.leader();
        self.arm(&leader, now);
        self.is_verified |= matches!(leader, Leader::Verified { .. }) || self.standby_leader().is_some();
        self.measure(&leader, now);
        self.end_leaving(&leader, now);
        if leader != self.snapshot.leader {
            match (&leader, &self.snapshot.leader) {
                (Leader::Verified { .. }, _) => self.hint(now, AFTER_HINT),
                (Leader::None(_), Leader::Verified { .. }) => {
                    self.leaderless_until = now + LEADERLESS;
                    self.wants.poll = true;
                }
                (Leader::None(_), Leader::None(_)) => {}
            }
            if matches!(leader, Leader::None(NoLeader::Overtaken { .. })) {
                self.wants.poll = true;
                self.wants.check_key = true;
            }
            if let Leader::None(NoLeader::NotOnTimeline { member, .. }) = &leader {
                // It may have been promoted since the last probe.
                self.wants.probe.insert(member.clone());
            }
        }
        self.listen(now);
        let next = Snapshot {
            cluster: Arc::clone(&self.settings.cluster),
            version: self.snapshot.version,
            members: self
                .members
                .values()
                .map(|member| self.show(member, now))
                .collect(),
            switchover_requested: self.is_switchover_requested(&leader),
            leader,
            source: self.source.clone(),
            system_identifier: self.identifier,
            paused: self.paused,
            hears: self.hears(now),
            patience: self.times.map(|times| times.ttl + times.loop_wait),
        };
        let version = next.version + u64::from(differs(&next, &self.snapshot));
        self.snapshot = Arc::new(Snapshot { version, ..next });
    }

    fn drop_stale(&mut self, now: Instant) {
        let Settings {
            probe_interval,
            probe_timeout,
            fall,
            ..
        } = self.settings;
        let bound = probe_interval * STALE_INTERVALS + probe_timeout * 2;
        let named = match &self.named {
            Some(Named::One(name)) => Some(name),
            _ => None,
        };
        for (name, member) in &mut self.members {
            if member.is_full(bound, now) {
                member.drop_old_role(named == Some(name), now);
            } else if member
                .facts_from
                .is_some_and(|from| now.saturating_duration_since(from) > bound)
            {
                let (check, message) = match member.health.error.take() {
                    Some(message) => (member.health.check, message),
                    None => (CheckStatus::Layer7Timeout, "no probe ended in time".into()),
                };
                member.down(check, message, fall);
            }
        }
    }
}
