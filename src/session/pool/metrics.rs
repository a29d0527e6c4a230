//! Metrics of pools.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::Weak;
use std::time::Duration;

pub(in crate::session) use super::lost::Outcome;
use super::pools::Pools;
use super::state::PinReason;
use super::statements::Counts;
use crate::cluster::snapshot::MemberName;
use crate::labels::labels;
use crate::session::distribution::Distribution;
use crate::session::end::SessionTimeout;
use crate::session::gate::{self, QueueError};
use crate::session::gauges::{GaugeGuard, RouteLabel, seconds};
use crate::session::stream::SessionStream;

/// Why a pool closed a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::session) enum CloseReason {
    /// `max_lifetime`.
    Lifetime,
    /// `idle_timeout`.
    Idle,
    /// A connection of another key took its place.
    Displaced,
    /// A session without it needed its place under `server.max_connections`.
    Evicted,
    /// More connections than `max_connections`: `reserve` was in use, or a reload.
    Excess,
    /// Its member may not serve the route any more.
    Unfit,
    /// An operator asked for new connections, or their role was dropped.
    Reconnect,
    /// The server ended it or sent something unasked.
    Unquiet,
    /// The route has no pool any more, or the router stops.
    Retired,
    /// Another worker could not take it over.
    NotMoved,
}

impl CloseReason {
    #[cfg(test)]
    pub(in crate::session) const ALL: &[Self] = &[
        Self::Lifetime,
        Self::Idle,
        Self::Displaced,
        Self::Evicted,
        Self::Excess,
        Self::Unfit,
        Self::Reconnect,
        Self::Unquiet,
        Self::Retired,
        Self::NotMoved,
    ];

    pub(in crate::session) fn label(self) -> &'static str {
        match self {
            Self::Lifetime => "lifetime",
            Self::Idle => "idle",
            Self::Displaced => "displaced",
            Self::Evicted => "evicted",
            Self::Excess => "excess",
            Self::Unfit => "unfit",
            Self::Reconnect => "reconnect",
            Self::Unquiet => "unquiet",
            Self::Retired => "retired",
            Self::NotMoved => "not_moved",
        }
    }
}

impl EncodeLabelValue for CloseReason {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(self.label())
    }
}

/// Why a session closed its connection, or left one behind that cannot be used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::session) enum DiscardReason {
    /// It is not certain that no transaction is open (P48).
    Uncertain,
    /// An order about the member: its role changed, maintenance, an operator.
    Ordered,
    /// A statement of the router's own failed on it, or was not answered in time.
    Failed,
    /// `custom_settings: close`: it has custom settings of others.
    CustomSettings,
    /// At the end of its session it was in use, broken, or had what cannot be taken back.
    SessionEnd,
    /// It could not be cleaned after its session.
    NotCleaned,
    /// The role that had logged in on it was dropped.
    RoleGone,
    /// The server ended it or sent something unasked, while its session needed nothing of it.
    Unquiet,
    /// It was lost, or had to be left at once; the session goes on.
    Lost,
}

impl DiscardReason {
    #[cfg(test)]
    pub(in crate::session) const ALL: &[Self] = &[
        Self::Uncertain,
        Self::Ordered,
        Self::Failed,
        Self::CustomSettings,
        Self::SessionEnd,
        Self::NotCleaned,
        Self::RoleGone,
        Self::Unquiet,
        Self::Lost,
    ];

    pub(in crate::session) fn label(self) -> &'static str {
        match self {
            Self::Uncertain => "uncertain",
            Self::Ordered => "ordered",
            Self::Failed => "failed",
            Self::CustomSettings => "custom_settings",
            Self::SessionEnd => "session_end",
            Self::NotCleaned => "not_cleaned",
            Self::RoleGone => "role_gone",
            Self::Unquiet => "unquiet",
            Self::Lost => "lost",
        }
    }
}

/// What the router itself asks a server for on a connection that a session has; each is a round
/// trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::session) enum ExchangeKind {
    /// The connection gets the session's settings.
    Restore,
    /// The server is asked what the session has.
    Question,
    /// Settings that must not stay on an idle connection are reset.
    Reset,
    /// A transaction is made to fail, for a client whose own was lost.
    Abort,
}

impl ExchangeKind {
    #[cfg(test)]
    pub(in crate::session) const ALL: &[Self] = &[Self::Restore, Self::Question, Self::Reset, Self::Abort];

    pub(in crate::session) fn label(self) -> &'static str {
        match self {
            Self::Restore => "restore",
            Self::Question => "question",
            Self::Reset => "reset",
            Self::Abort => "abort",
        }
    }
}

labels! {
    /// Why a statement got no server connection: the label of `trunkline_pool_refused_total`.
    pub(in crate::session) enum RefusedReason {
        /// As many sessions wait as `max_queue` allows.
        QueueFull = "queue_full",
        /// `queue_timeout`.
        QueueTimeout = "queue_timeout",
        /// No member may serve the route.
        NoCandidate = "no_candidate",
        /// A server refused the login.
        ServerRefused = "server_refused",
        /// No server could be reached, or used.
        ServerConnect = "server_connect",
    }
}

labels! {
    /// A time limit of a pool: the label of `trunkline_pool_timeouts_total`.
    pub(in crate::session) enum TimeLimit {
        Query = "query_timeout",
        Transaction = "transaction_timeout",
        IdleTransaction = "idle_transaction_timeout",
        Batch = "batch_timeout",
    }
}

impl From<SessionTimeout> for TimeLimit {
    fn from(timeout: SessionTimeout) -> Self {
        match timeout {
            SessionTimeout::Transaction => Self::Transaction,
            SessionTimeout::IdleTransaction => Self::IdleTransaction,
            SessionTimeout::Batch => Self::Batch,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabel {
    route: String,
    limit: &'static str,
}

/// A label with one word.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    route: String,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MemberLabel {
    route: String,
    member: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    route: String,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    route: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabel {
    route: String,
    event: &'static str,
}

/// What becomes of prepared statements, as their metric says it.
#[cfg(test)]
pub(in crate::session) const STATEMENT_EVENTS: &[&str] = &["parsed", "found", "evicted"];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CloseLabel {
    route: String,
    reason: CloseReason,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
struct StateLabel {
    route: String,
    member: String,
    state: &'static str,
}

/// Of all pools.
#[derive(Debug)]
pub struct PoolMetrics {
    hits: Family<RouteLabel, Counter>,
    misses: Family<RouteLabel, Counter>,
    waits: Family<RouteLabel, Histogram>,
    leases: Family<RouteLabel, Distribution>,
    closed: Family<CloseLabel, Counter>,
    pinned: Family<ReasonLabel, Counter>,
    discarded: Family<ReasonLabel, Counter>,
    refused: Family<ReasonLabel, Counter>,
    failed_connects: Family<MemberLabel, Counter>,
    timeouts: Family<LimitLabel, Counter>,
    exchanges: Family<KindLabel, Counter>,
    lost: Family<OutcomeLabel, Counter>,
    statements: Family<EventLabel, Counter>,
    queue: gate::Metrics,
}

impl PoolMetrics {
    /// Registers everything but the numbers of connections ([`Pools::register_connections`]). Waits
    /// count in `queue` too.
    pub(in crate::session) fn register(into: &mut Registry, queue: &gate::Metrics) -> Self {
        let metrics = Self {
            hits: Family::default(),
            misses: Family::default(),
            waits: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.0001, 2.0, 20))),
            leases: Family::default(),
            closed: Family::default(),
            pinned: Family::default(),
            discarded: Family::default(),
            refused: Family::default(),
            failed_connects: Family::default(),
            timeouts: Family::default(),
            exchanges: Family::default(),
            lost: Family::default(),
            statements: Family::default(),
            queue: queue.clone(),
        };
        into.register(
            "pool_hits",
            "Leases of a server connection that existed",
            metrics.hits.clone(),
        );
        into.register(
            "pool_misses",
            "Leases for which the session had to open a server connection",
            metrics.misses.clone(),
        );
        into.register_with_unit(
            "pool_wait",
            "How long sessions waited for a server connection of their pool, whatever the result",
            Unit::Seconds,
            metrics.waits.clone(),
        );
        into.register_with_unit(
            "pool_lease",
            "How long sessions had a server connection of their pool that they gave back",
            Unit::Seconds,
            metrics.leases.clone(),
        );
        into.register(
            "pool_closed",
            "Server connections that a pool closed, by reason",
            metrics.closed.clone(),
        );
        into.register(
            "pool_pins",
            "How often sessions began to keep their server connection, by reason",
            metrics.pinned.clone(),
        );
        into.register(
            "pool_discarded",
            "Server connections that were closed while a session had them or at its end, by reason",
            metrics.discarded.clone(),
        );
        into.register(
            "pool_refused",
            "Statements that got an error because there was no server connection for them, by reason",
            metrics.refused.clone(),
        );
        into.register(
            "pool_connects_failed",
            "Server connections of pools that could not be opened",
            metrics.failed_connects.clone(),
        );
        into.register(
            "pool_timeouts",
            "How often a time limit of a pool was over for a session, by limit",
            metrics.timeouts.clone(),
        );
        into.register(
            "pool_exchanges",
            "Round trips of the router's own on connections that sessions have",
            metrics.exchanges.clone(),
        );
        into.register(
            "pool_lost",
            "Sessions whose server connection was lost or had to be left at once, by what that meant for them",
            metrics.lost.clone(),
        );
        into.register(
            "pool_statements",
            "What became of prepared statements on server connections",
            metrics.statements.clone(),
        );
        metrics
    }

    /// Those of one pool.
    pub(super) fn meters(&self, route: &str) -> Meters {
        let label = RouteLabel {
            route: route.to_owned(),
        };
        Meters {
            hits: self.hits.get_or_create(&label).clone(),
            misses: self.misses.get_or_create(&label).clone(),
            waits: self.waits.get_or_create(&label).clone(),
            leases: self.leases.get_or_create(&label).clone(),
            closed: self.closed.clone(),
            pinned: self.pinned.clone(),
            discarded: self.discarded.clone(),
            refused: self.refused.clone(),
            failed_connects: self.failed_connects.clone(),
            timeouts: [
                TimeLimit::Query,
                TimeLimit::Transaction,
                TimeLimit::IdleTransaction,
                TimeLimit::Batch,
            ]
            .map(|limit| {
                let (route, limit) = (route.to_owned(), limit.label());
                self.timeouts.get_or_create(&LimitLabel { route, limit }).clone()
            }),
            exchanges: [
                ExchangeKind::Restore,
                ExchangeKind::Question,
                ExchangeKind::Reset,
                ExchangeKind::Abort,
            ]
            .map(|kind| {
                let kind = kind.label();
                let route = route.to_owned();
                self.exchanges.get_or_create(&KindLabel { route, kind }).clone()
            }),
            lost: [
                Outcome::Unknown,
                Outcome::RolledBack,
                Outcome::Nothing,
                Outcome::Ended,
            ]
            .map(|outcome| {
                let (route, outcome) = (route.to_owned(), outcome.label());
                self.lost.get_or_create(&OutcomeLabel { route, outcome }).clone()
            }),
            statements: ["parsed", "found", "evicted"].map(|event| {
                let route = route.to_owned();
                self.statements
                    .get_or_create(&EventLabel { route, event })
                    .clone()
            }),
            queue: self.queue.clone(),
            entered: self.queue.entered.get_or_create(&label).clone(),
            length: self.queue.length.get_or_create(&label).clone(),
            label,
        }
    }
}

/// The metrics of one pool, which it looks up once.
#[derive(Debug)]
pub(super) struct Meters {
    label: RouteLabel,
    hits: Counter,
    misses: Counter,
    waits: Histogram,
    leases: Distribution,
    closed: Family<CloseLabel, Counter>,
    pinned: Family<ReasonLabel, Counter>,
    discarded: Family<ReasonLabel, Counter>,
    refused: Family<ReasonLabel, Counter>,
    failed_connects: Family<MemberLabel, Counter>,
    /// In the order of [`TimeLimit`].
    timeouts: [Counter; 4],
    /// In the order of [`ExchangeKind`].
    exchanges: [Counter; 4],
    /// In the order of [`Outcome`].
    lost: [Counter; 4],
    /// In the order of [`STATEMENT_EVENTS`].
    statements: [Counter; 3],
    queue: gate::Metrics,
    entered: Counter,
    length: Gauge,
}

impl Meters {
    pub(super) fn hit(&self) {
        self.hits.inc();
    }

    /// A session gives a connection back that it has had for so long.
    pub(super) fn leased(&self, time: Duration) {
        self.leases.observe(time, 1);
    }

    pub(super) fn miss(&self) {
        self.misses.inc();
    }

    pub(super) fn closed(&self, reason: CloseReason) {
        let label = CloseLabel {
            route: self.label.route.clone(),
            reason,
        };
        self.closed.get_or_create(&label).inc();
    }

    /// A session begins to keep its connection for this reason.
    pub(super) fn pinned(&self, reason: PinReason) {
        let label = self.reason(reason.label());
        self.pinned.get_or_create(&label).inc();
    }

    pub(super) fn discarded(&self, reason: DiscardReason) {
        let label = self.reason(reason.label());
        self.discarded.get_or_create(&label).inc();
    }

    /// A statement got an error because there was no connection for it.
    pub(super) fn statement_refused(&self, reason: RefusedReason) {
        let label = self.reason(reason.label());
        self.refused.get_or_create(&label).inc();
    }

    /// A connection to this member could not be opened.
    pub(super) fn connect_failed(&self, member: &MemberName) {
        let label = MemberLabel {
            route: self.label.route.clone(),
            member: member.to_string(),
        };
        self.failed_connects.get_or_create(&label).inc();
    }

    fn reason(&self, reason: &'static str) -> ReasonLabel {
        ReasonLabel {
            route: self.label.route.clone(),
            reason,
        }
    }

    /// A time limit is over: the statement is cancelled, or the session ends.
    pub(super) fn timed_out(&self, limit: TimeLimit) {
        self.timeouts[limit as usize].inc();
    }

    pub(super) fn exchanged(&self, kind: ExchangeKind) {
        self.exchanges[kind as usize].inc();
    }

    /// A session has lost its connection.
    pub(super) fn lost(&self, outcome: Outcome) {
        self.lost[outcome as usize].inc();
    }

    /// What happened to statements during a lease.
    pub(super) fn statements(&self, counts: Counts) {
        let numbers = [counts.parsed, counts.found, counts.evicted];
        for (counter, number) in self.statements.iter().zip(numbers) {
            if number > 0 {
                counter.inc_by(number);
            }
        }
    }

    /// A session begins to wait.
    pub(super) fn waits(&self) -> GaugeGuard {
        self.entered.inc();
        GaugeGuard::new(self.length.clone())
    }

    /// A session has waited, whatever the result.
    pub(super) fn waited(&self, wait: Duration) {
        self.waits.observe(seconds(wait));
        self.queue.wait_seconds.observe(seconds(wait));
    }

    pub(super) fn refused(&self, error: QueueError) {
        let refused = match error {
            QueueError::Full => &self.queue.full,
            QueueError::Timeout => &self.queue.timeouts,
        };
        refused.get_or_create(&self.label).inc();
    }
}

/// Counts the connections at scrape time, so that a lease changes no number that workers share.
#[derive(Debug)]
pub(super) struct ConnectionCollector<S: SessionStream>(pub(super) Weak<Pools<S>>);

impl<S: SessionStream + fmt::Debug + Send + 'static> Collector for ConnectionCollector<S> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(pools) = self.0.upgrade() else {
            return Ok(());
        };
        let mut numbers: BTreeMap<StateLabel, usize> = BTreeMap::new();
        for pool in pools.views() {
            for member in pool.members {
                let states = [
                    ("idle", member.idle),
                    ("leased", member.leased),
                    ("opening", member.opening),
                ];
                for (state, number) in states {
                    let label = StateLabel {
                        route: pool.name.route.to_string(),
                        member: member.member.to_string(),
                        state,
                    };
                    *numbers.entry(label).or_default() += number;
                }
            }
        }
        let help = "Server connections of pools now, by route, member and state";
        let mut family = encoder.encode_descriptor("pool_connections", help, None, MetricType::Gauge)?;
        for (label, number) in numbers {
            let number = i64::try_from(number).unwrap_or(i64::MAX);
            ConstGauge::new(number).encode(family.encode_family(&label)?)?;
        }
        Ok(())
    }
}
