//! The task that owns the state. It takes observations, keeps one prober for each member, polls the
//! source, publishes snapshots and reports changes as events.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::announce::{self, Announcer};
use super::etcd::Watcher;
use super::fixed;
use super::frozen::Frozen;
use super::metrics::ProbeResult;
use super::new_members::NewMemberLimit;
use super::patience::Patience;
use super::patroni::{Patroni, Reply, choose, is_without_dcs, printable};
use super::probe::{ProbeTrigger, Prober, wait};
use super::server_identity::AddressChecks;
use super::service_account::ServiceAccount;
use super::snapshot::{Identity, MemberName, Snapshot};
use super::state::{
    LagLimits, Observation, Pace, RequestedIn, Settings, SourceKind, State, StatusLook, SwitchoverRequest,
};
use super::{ClusterError, Reporting, looks, moment};
use crate::config::{self, Source};

/// How often the state is updated with the time. Many ages and deadlines depend on it (answers,
/// probes, lag, windows of fast polling). None needs more precision, and one tick costs less than a
/// timer for each.
const TICK: Duration = Duration::from_millis(250);
/// Limit of observations that wait to be folded in. A prober waits for space.
const MAX_OBSERVATIONS: usize = 256;
/// Interval of fast probes in a fixed list.
const FAST: Duration = Duration::from_millis(100);

pub(super) struct Control {
    state: State,
    announcer: Announcer,
    without_dcs: WithoutDcs,
    account: Arc<ServiceAccount>,
    reporting: Reporting,
    limits: watch::Receiver<LagLimits>,
    reports: mpsc::Receiver<Observation>,
    observations: mpsc::Receiver<Observation>,
    observers: mpsc::Sender<Observation>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    /// Once it is set, the snapshots of this task are public.
    published: Arc<OnceLock<Arc<watch::Sender<Arc<Snapshot>>>>>,
    pace: watch::Sender<Pace>,
    poll_now: Arc<Notify>,
    check_key: Arc<Notify>,
    /// The member whose Patroni is asked for its status.
    look: watch::Sender<Option<StatusLook>>,
    /// The scheduled switchover that Patroni has shown last.
    scheduled: Option<SwitchoverRequest>,
    /// Reads Patroni's configuration from time to time.
    patience: Patience,
    fast_interval: Duration,
    probers: BTreeMap<MemberName, RunningProber>,
    new_members: NewMemberLimit,
    frozen: Frozen,
    checks: Arc<AddressChecks>,
    stop: CancellationToken,
    tracker: TaskTracker,
}

/// A running prober. Dropping this ends its task.
struct RunningProber {
    host: String,
    port: u16,
    trigger: Arc<ProbeTrigger>,
    stop: CancellationToken,
}

impl Drop for RunningProber {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn settings(config: &config::Cluster, limits: LagLimits) -> Settings {
    let (kind, poll_interval, fast_interval) = match &config.source {
        Source::Patroni(patroni) => (
            SourceKind::Patroni,
            patroni.poll_interval,
            patroni.fast_poll_interval,
        ),
        Source::Servers(_) => (SourceKind::Fixed, config.probe.interval, FAST),
    };
    Settings {
        cluster: Arc::clone(&config.name),
        kind,
        rise: config.probe.rise.max(1),
        fall: config.probe.fall.max(1),
        probe_interval: config.probe.interval,
        probe_timeout: config.probe.timeout,
        poll_interval,
        fast_interval,
        placement: config.placement.clone(),
        limits,
    }
}

impl Control {
    pub(super) fn new(
        account: Arc<ServiceAccount>,
        mut limits: watch::Receiver<LagLimits>,
        reports: mpsc::Receiver<Observation>,
        reporting: Reporting,
        published: Arc<OnceLock<Arc<watch::Sender<Arc<Snapshot>>>>>,
        stop: CancellationToken,
        tracker: TaskTracker,
    ) -> (Self, watch::Receiver<Arc<Snapshot>>) {
        let settings = settings(&account.config, limits.borrow_and_update().clone());
        let fast_interval = settings.fast_interval;
        let now = Instant::now();
        let state = State::new(settings, now);
        let (observers, observations) = mpsc::channel(MAX_OBSERVATIONS);
        let (snapshots, readers) = watch::channel(state.snapshot());
        let (pace, _) = watch::channel(state.pace(now));
        let control = Self {
            state,
            announcer: Announcer::default(),
            without_dcs: WithoutDcs::default(),
            limits,
            account,
            reporting,
            reports,
            observations,
            observers,
            snapshots,
            published,
            pace,
            poll_now: Arc::new(Notify::new()),
            check_key: Arc::new(Notify::new()),
            look: watch::channel(None).0,
            scheduled: None,
            patience: Patience::new(now),
            fast_interval,
            probers: BTreeMap::new(),
            new_members: NewMemberLimit::new(now),
            frozen: Frozen::new(now),
            checks: Arc::default(),
            stop,
            tracker,
        };
        (control, readers)
    }

    /// The checks of the members' addresses.
    pub(super) fn checks(&self) -> Arc<AddressChecks> {
        Arc::clone(&self.checks)
    }

    /// The watcher of the cluster's DCS, if one is configured.
    pub(super) fn watcher(&self) -> Result<Option<Watcher>, ClusterError> {
        Watcher::new(
            Arc::clone(&self.account.config),
            Arc::clone(&self.check_key),
            self.observers.clone(),
            Arc::clone(&self.reporting.metrics),
        )
    }

    pub(super) async fn run(mut self, patroni: Option<Patroni>, watcher: Option<Watcher>) {
        let stop = self.stop.clone();
        if let Some(watcher) = watcher {
            self.until_stopped(watcher.run());
        }
        let (polled, mut polls) = mpsc::channel(1);
        match (patroni, &self.account.config.source) {
            (Some(patroni), _) => {
                let reader = self.patience.reader(patroni.requests(), self.observers.clone());
                self.until_stopped(reader);
                self.until_stopped(looks::run(
                    patroni.requests(),
                    self.look.subscribe(),
                    self.observers.clone(),
                    Arc::clone(&self.reporting.metrics),
                    Arc::clone(&self.account.config.name),
                ));
                let poller = poll(
                    patroni,
                    self.pace.subscribe(),
                    Arc::clone(&self.poll_now),
                    self.fast_interval,
                    polled,
                    Arc::clone(&self.account.config.name),
                );
                self.until_stopped(poller);
            }
            (None, Source::Servers(servers)) => {
                let report = fixed::report(servers);
                self.observe(Observation::Source(report));
            }
            (None, Source::Patroni(_)) => {}
        }
        // Requests made before the start are in effect from the first snapshot on.
        while let Ok(observation) = self.reports.try_recv() {
            self.observe(observation);
        }
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            let happened = tokio::select! {
                () = stop.cancelled() => return,
                Some(observation) = self.observations.recv() => Happened::Observed(observation),
                Some(observation) = self.reports.recv() => Happened::Observed(observation),
                Ok(()) = self.limits.changed() => {
                    let limits = self.limits.borrow_and_update().clone();
                    Happened::Observed(Observation::Limits(limits))
                }
                Some((begun, replies)) = polls.recv() => Happened::Polled(begun, replies),
                _ = ticks.tick() => Happened::Tick,
            };
            self.notice_freeze();
            match happened {
                Happened::Observed(observation) => self.observed(observation),
                Happened::Polled(begun, replies) => self.polled(begun, &replies),
                Happened::Tick => {
                    let old = self.state.snapshot();
                    self.state.tick(Instant::now());
                    self.settled(&old);
                    self.show_measures();
                }
            }
        }
    }

    fn until_stopped(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Handles a freeze of this process: time has passed without probes.
    fn notice_freeze(&mut self) {
        let now = Instant::now();
        let Some(gap) = self.frozen.passed(now) else {
            return;
        };
        if self.published.get().is_some() {
            tracing::warn!(
                cluster = %self.account.config.name,
                "this process was stopped for {:.1} s: earlier probe results count until the next probes end",
                gap.as_secs_f64()
            );
        }
        let old = self.state.snapshot();
        self.state.resume(gap, now);
        self.settled(&old);
    }

    fn observed(&mut self, observation: Observation) {
        if matches!(observation, Observation::Times(_)) {
            self.patience.known(Instant::now());
        }
        if let Observation::Probe {
            member,
            started,
            result,
        } = &observation
        {
            if result.is_err() && self.frozen.was_frozen_since(*started) {
                return;
            }
            let is_member = self.state.snapshot().member(member).is_some();
            if is_member && self.published.get().is_some() && !self.stop.is_cancelled() {
                let outcome = match result {
                    Ok(_) => ProbeResult::Success,
                    Err(_) => ProbeResult::Failure,
                };
                let cluster = &self.account.config.name;
                self.reporting
                    .metrics
                    .probed(cluster, member, outcome, started.elapsed());
            }
        }
        self.observe(observation);
    }

    fn show_measures(&self) {
        if self.published.get().is_some() && !self.stop.is_cancelled() {
            self.reporting.metrics.measure(&self.state.snapshot());
        }
    }

    fn polled(&mut self, begun: Instant, replies: &[Option<Reply>]) {
        let answers: Vec<_> = replies.iter().flatten().flatten().collect();
        let snapshot = self.state.snapshot();
        let seen = |name: &MemberName| seen_writable(&snapshot, name);
        if answers.is_empty() && self.frozen.was_frozen_since(begun) {
            self.poll_now.notify_one();
        } else if let Some(mut report) = choose(&answers, &seen, &snapshot) {
            let left_out = self.new_members.admit(&mut report, &snapshot, Instant::now());
            if left_out > 0 {
                tracing::warn!(
                    cluster = %snapshot.cluster,
                    left_out,
                    "Patroni lists too many new members at once; the router leaves some of them out for now"
                );
            }
            self.reporting
                .metrics
                .polled(&snapshot.cluster, ProbeResult::Success);
            self.without_dcs = WithoutDcs::default();
            let is_back = !snapshot.source.reachable;
            self.patience.ask(replies, is_back, Instant::now());
            let scheduled = report.scheduled.clone();
            self.observe(Observation::Polled { report, begun });
            self.schedule(scheduled);
        } else {
            self.reporting
                .metrics
                .polled(&snapshot.cluster, ProbeResult::Failure);
            let mut reasons: Vec<&str> = replies
                .iter()
                .flatten()
                .filter_map(|reply| reply.as_ref().err().map(String::as_str))
                .collect();
            reasons.sort_unstable();
            reasons.dedup();
            let text = format!(
                "no Patroni endpoint gave a usable answer ({})",
                reasons.join("; ")
            );
            let text = printable(&text, 500);
            let is_seen = reasons.iter().any(|reason| is_without_dcs(reason));
            let observation = if self.without_dcs.holds(is_seen) {
                Observation::DcsFailed(text)
            } else {
                Observation::SourceFailed(text)
            };
            self.observe(observation);
        }
    }

    /// Folds in what Patroni has scheduled, if that has changed.
    fn schedule(&mut self, scheduled: Option<SwitchoverRequest>) {
        if scheduled == self.scheduled {
            return;
        }
        self.scheduled.clone_from(&scheduled);
        self.observe(Observation::Switchover {
            place: RequestedIn::Source,
            due: moment::instant(scheduled.as_ref().and_then(|request| request.at)),
            request: scheduled,
        });
    }

    fn observe(&mut self, observation: Observation) {
        let old = self.state.snapshot();
        self.state.observe(observation, Instant::now());
        self.settled(&old);
    }

    /// Publishes a new snapshot, and acts on it.
    fn settled(&mut self, old: &Snapshot) {
        let new = self.state.snapshot();
        let published = self
            .published
            .get()
            .filter(|_| !self.stop.is_cancelled())
            .cloned();
        for change in self.announcer.changes(old, &new, Instant::now()) {
            if published.is_none() {
                tracing::debug!(cluster = %new.cluster, "not in service yet: {change}");
            } else {
                self.reporting.change(&new.cluster, change);
            }
        }
        if new.version != old.version {
            self.keep_probers(&new);
            if published.is_some() {
                self.reporting.metrics.show(old, &new);
                self.reporting.metrics.measure(&new);
            }
        }
        // This cluster's look-ups get the snapshot first: a reader that the published snapshot
        // wakes may use them at once.
        for snapshots in [&self.snapshots].into_iter().chain(published.as_deref()) {
            snapshots.send_if_modified(|current| {
                let noticeable = current.version != new.version;
                *current = Arc::clone(&new);
                noticeable
            });
        }
        let pace = self.state.pace(Instant::now());
        self.pace.send_if_modified(|current| {
            let differs = *current != pace;
            *current = pace;
            differs
        });
        let look = self.state.look();
        self.look.send_if_modified(|current| {
            let differs = *current != look;
            *current = look;
            differs
        });
        let wants = self.state.wants();
        if published.is_some() && !wants.armings.is_empty() {
            self.reporting.metrics.armed(&new.cluster, self.state.is_armed());
            for arming in wants.armings {
                self.reporting.change(&new.cluster, announce::arming(arming));
            }
        }
        if wants.poll {
            self.poll_now.notify_one();
        }
        if wants.check_key {
            self.check_key.notify_one();
        }
        for member in &wants.probe {
            if let Some(prober) = self.probers.get(member) {
                prober.trigger.request(wants.anew.contains(member));
            }
        }
    }

    /// One prober for each member with an address, at that address.
    fn keep_probers(&mut self, snapshot: &Snapshot) {
        self.probers.retain(|name, running| {
            snapshot
                .member(name)
                .is_some_and(|member| (&member.host, member.port) == (&running.host, running.port))
        });
        let probers = &self.probers;
        self.checks.retain(|name| probers.contains_key(name));
        for member in snapshot.members.iter().filter(|member| member.has_address()) {
            if self.probers.contains_key(&member.name) {
                continue;
            }
            let running = RunningProber {
                host: member.host.clone(),
                port: member.port,
                trigger: Arc::default(),
                stop: self.stop.child_token(),
            };
            let prober = Prober {
                member: member.name.clone(),
                host: member.host.clone(),
                port: member.port,
                account: Arc::clone(&self.account),
                pace: self.pace.subscribe(),
                trigger: Arc::clone(&running.trigger),
                check: self.checks.begin(&member.name),
                fast_interval: self.fast_interval,
                observations: self.observers.clone(),
                stop: running.stop.clone(),
            };
            self.tracker.spawn(prober.run());
            self.probers.insert(member.name.clone(), running);
        }
    }
}

/// Whether Patroni runs but may not reach its DCS, by polls without a usable answer. An endpoint
/// that has shown this is asked for the list of members again from time to time, and is late then.
#[derive(Debug, Default)]
struct WithoutDcs {
    last_poll: bool,
}

impl WithoutDcs {
    /// `is_seen`: whether an endpoint showed it in this poll. That holds for one more poll.
    fn holds(&mut self, is_seen: bool) -> bool {
        std::mem::replace(&mut self.last_poll, is_seen) || is_seen
    }
}

/// The events that wake the task.
enum Happened {
    Observed(Observation),
    Polled(Instant, Vec<Option<Reply>>),
    Tick,
}

/// The timeline on which this router's probes see a member of this cluster accept writes.
pub(super) fn seen_writable(snapshot: &Snapshot, name: &MemberName) -> Option<u32> {
    let member = snapshot.member(name)?;
    let facts = member.health.facts.as_ref()?;
    let is_ours = member.health.up && member.identity == Identity::Same;
    (is_ours && !facts.in_recovery).then_some(facts.timeline)
}

/// Polls Patroni until the receiver is dropped.
async fn poll(
    mut patroni: Patroni,
    mut pace: watch::Receiver<Pace>,
    now: Arc<Notify>,
    fast_interval: Duration,
    polled: mpsc::Sender<(Instant, Vec<Option<Reply>>)>,
    cluster: Arc<str>,
) {
    let mut failing: Vec<bool> = vec![false; patroni.endpoints().len()];
    loop {
        let started = Instant::now();
        let replies = patroni.poll().await;
        // Failures are not logged if this process was frozen and read the answers too late.
        let in_time = started.elapsed() < patroni.timeout() + Frozen::SHORTEST;
        for ((endpoint, failing), reply) in patroni.endpoints().iter().zip(&mut failing).zip(&replies) {
            match reply {
                Some(Err(error)) if !*failing && in_time => {
                    *failing = true;
                    tracing::warn!(%cluster, %endpoint, %error, "a Patroni endpoint gives no usable answer");
                }
                Some(Ok(_)) if *failing => {
                    *failing = false;
                    tracing::info!(%cluster, %endpoint, "a Patroni endpoint answers again");
                }
                _ => {}
            }
        }
        if polled.send((started, replies)).await.is_err() {
            return;
        }
        wait(&mut pace, &now, started, fast_interval, |pace| pace.poll).await;
    }
}

#[cfg(test)]
mod tests {
    use super::WithoutDcs;

    #[test]
    fn one_late_poll_does_not_change_what_is_said_of_patroni() {
        let mut without = WithoutDcs::default();
        let polls = [false, true, false, true, false, false];
        assert_eq!(
            polls.map(|is_seen| without.holds(is_seen)),
            [false, true, true, true, true, false]
        );
    }
}
