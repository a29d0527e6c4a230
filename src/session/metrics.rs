//! Metrics of sessions and logins.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::arrival::login_throttle;
use super::cancel::{CancelOutcome, CutOutcome};
use super::end::{End, EndLabel};
use super::gauges::{GaugeGuard, RouteLabel};
use super::generations::Generations;
use super::generations::totals::{Moved, ProcessCollector};
use super::pool::metrics::PoolMetrics;
use super::{gate, registry};
use crate::auth::login_throttle::By;
use crate::cluster::snapshot::MemberName;
use crate::cluster::{ClusterHandle, WeakClusterHandle};
use crate::frontend::RefuseReason;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RouteMemberLabel {
    pub route: String,
    pub member: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RouteCauseLabel {
    pub route: String,
    pub cause: EndLabel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabel {
    cause: EndLabel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReasonLabel {
    pub reason: RefuseReason,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CancelLabel {
    pub result: CancelOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabel {
    peer: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CutLabel {
    pub result: CutOutcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByLabel {
    pub by: &'static str,
}

/// The metrics of this room. Label values come from fixed sets, or are names from the configuration
/// and the cluster.
#[derive(Debug)]
pub struct Metrics {
    sessions: Arc<SessionCounts>,
    pub(super) ended: Family<RouteCauseLabel, Counter>,
    pub(super) unknown: Family<RouteCauseLabel, Counter>,
    pub(super) unenforced: Family<RouteLabel, Counter>,
    pub(super) refused: Family<ReasonLabel, Counter>,
    pub(super) pending_logins: Gauge,
    pub(super) logins_delayed: Family<ByLabel, Counter>,
    pub(super) logins_waiting: Gauge,
    pub(super) login_seconds: Histogram,
    pub(super) connect_seconds: Histogram,
    pub(super) cancels: Family<CancelLabel, Counter>,
    pub(super) cancels_waiting: Gauge,
    peer_versions: Family<PeerLabel, Gauge>,
    pub(super) abandoned: Family<CutLabel, Counter>,
    console_sessions: Gauge,
    console_ended: Family<CauseLabel, Counter>,
    pub(super) queue: gate::Metrics,
}

impl Metrics {
    /// Registers everything of this room in `into`.
    pub fn new(
        into: &mut Registry,
        sessions: Arc<registry::Registry>,
        login_throttle: Arc<login_throttle::SharedThrottle>,
        generations: Arc<Generations>,
    ) -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 14));
        let metrics = Self {
            sessions: Arc::default(),
            ended: Family::default(),
            unknown: Family::default(),
            unenforced: Family::default(),
            refused: Family::default(),
            pending_logins: Gauge::default(),
            logins_delayed: Family::default(),
            logins_waiting: Gauge::default(),
            login_seconds: seconds(),
            connect_seconds: seconds(),
            cancels: Family::default(),
            cancels_waiting: Gauge::default(),
            peer_versions: Family::default(),
            abandoned: Family::default(),
            console_sessions: Gauge::default(),
            console_ended: Family::default(),
            queue: gate::Metrics::register(into),
        };
        into.register(
            "sessions_ended",
            "Sessions that ended, by cause",
            metrics.ended.clone(),
        );
        into.register(
            "outcomes_unknown",
            "Sessions that ended with a request under way whose outcome is not known (08007), by cause",
            metrics.unknown.clone(),
        );
        into.register(
            "sessions_unenforced",
            "Read-only sessions that began on a leader, where privileges alone keep them from writing",
            metrics.unenforced.clone(),
        );
        into.register(
            "logins_refused",
            "Connections that did not become a session, by reason",
            metrics.refused.clone(),
        );
        into.register(
            "pending_logins",
            "Connections between accept and authenticated",
            metrics.pending_logins.clone(),
        );
        into.register(
            "logins_delayed",
            "Logins that had to wait because of earlier failed logins, by what they had in common with these",
            metrics.logins_delayed.clone(),
        );
        into.register(
            "logins_waiting",
            "Logins that wait now because of earlier failed logins",
            metrics.logins_waiting.clone(),
        );
        into.register_with_unit(
            "login",
            "From accept to authenticated",
            Unit::Seconds,
            metrics.login_seconds.clone(),
        );
        into.register_with_unit(
            "server_connect",
            "From the choice of a server until the session is logged in there and the server's role is verified",
            Unit::Seconds,
            metrics.connect_seconds.clone(),
        );
        into.register("cancels", "Cancel requests, by result", metrics.cancels.clone());
        into.register(
            "cancels_waiting",
            "Cancel requests that wait for their turn at a server now, or are being delivered",
            metrics.cancels_waiting.clone(),
        );
        into.register(
            "peer_version",
            "The version of the peer protocol in which a peer last answered",
            metrics.peer_versions.clone(),
        );
        into.register(
            "console_sessions",
            "Sessions with the router's console now; no other metric of sessions counts them",
            metrics.console_sessions.clone(),
        );
        into.register(
            "console_sessions_ended",
            "Sessions with the console that ended, by cause",
            metrics.console_ended.clone(),
        );
        into.register(
            "cut_requests",
            "Requests that were under way in sessions that the router cut, by whether the server took the cancel request",
            metrics.abandoned.clone(),
        );
        into.register_collector(Box::new(SessionCollector(
            Arc::clone(&metrics.sessions),
            Arc::clone(&generations),
        )));
        into.register_collector(Box::new(TrafficCollector(sessions, Arc::clone(&generations))));
        into.register_collector(Box::new(ProcessCollector(generations)));
        into.register_collector(Box::new(OffenderCollector(login_throttle)));
        metrics
    }

    /// The metrics of pools, registered behind these.
    pub fn pools(&self, into: &mut Registry) -> PoolMetrics {
        PoolMetrics::register(into, &self.queue)
    }

    pub(super) fn refuse(&self, reason: RefuseReason) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(super) fn cancel(&self, result: CancelOutcome) {
        self.cancels.get_or_create(&CancelLabel { result }).inc();
    }

    /// A peer answered in this version of the peer protocol.
    pub(super) fn peer_version(&self, peer: &str, version: u8) {
        let peer = peer.to_owned();
        self.peer_versions
            .get_or_create(&PeerLabel { peer })
            .set(version.into());
    }

    pub(super) fn cancel_waits(&self) -> GaugeGuard {
        GaugeGuard::new(self.cancels_waiting.clone())
    }

    pub(super) fn abandon(&self, result: CutOutcome) {
        self.abandoned.get_or_create(&CutLabel { result }).inc();
    }

    /// Counts a session; `cluster` is the cluster of its server.
    pub(super) fn session(
        &self,
        route: &Arc<str>,
        member: &MemberName,
        cluster: Option<&ClusterHandle>,
    ) -> SessionGuard {
        let key = (Arc::clone(route), member.clone());
        let mut counts = self.sessions.lock();
        let entry = counts.entry(key.clone()).or_default();
        entry.sessions += 1;
        entry.cluster = cluster.map(ClusterHandle::downgrade);
        drop(counts);
        SessionGuard {
            counts: Arc::clone(&self.sessions),
            key,
        }
    }

    /// Counts a session with the console. It is no client's session.
    pub(super) fn console_session(&self) -> GaugeGuard {
        GaugeGuard::new(self.console_sessions.clone())
    }

    pub(super) fn end_console(&self, end: &End) {
        let cause = end.label();
        self.console_ended.get_or_create(&CauseLabel { cause }).inc();
    }

    /// Counts a session with a pool, which is on no member for long.
    pub(super) fn pooled_session(&self, route: &Arc<str>) -> SessionGuard {
        self.session(route, &MemberName::new(""), None)
    }

    /// Sessions of this process by route and member, where there are any.
    pub fn sessions(&self) -> Vec<(String, String, i64)> {
        let all = self.sessions.by_label().into_iter();
        all.filter(|(_, sessions)| *sessions > 0)
            .map(|(label, sessions)| (label.route, label.member, sessions))
            .collect()
    }

    pub(super) fn unenforced(&self, route: &str) {
        let route = route.to_owned();
        self.unenforced.get_or_create(&RouteLabel { route }).inc();
    }

    pub(super) fn pending(&self) -> GaugeGuard {
        GaugeGuard::new(self.pending_logins.clone())
    }

    pub(super) fn delay(&self, by: By) {
        let by = login_throttle::label(by);
        self.logins_delayed.get_or_create(&ByLabel { by }).inc();
    }

    pub(super) fn waiting(&self) -> GaugeGuard {
        GaugeGuard::new(self.logins_waiting.clone())
    }

    pub(super) fn end(&self, route: &str, end: &End) {
        let label = RouteCauseLabel {
            route: route.to_owned(),
            cause: end.label(),
        };
        self.ended.get_or_create(&label).inc();
        if end.is_unknown() {
            self.unknown.get_or_create(&label).inc();
        }
    }
}

/// Sessions by route and member.
#[derive(Debug, Default)]
struct SessionCounts(Mutex<Counts>);

/// By route and member.
type Counts = HashMap<(Arc<str>, MemberName), Count>;

#[derive(Debug, Default)]
struct Count {
    sessions: i64,
    /// The cluster of the member; `None` for sessions that are on none.
    cluster: Option<WeakClusterHandle>,
}

impl Count {
    /// Nothing is left to report: there is no session, and the member has left the cluster.
    fn is_over(&self, member: &MemberName) -> bool {
        self.sessions == 0
            && self.cluster.as_ref().is_some_and(|cluster| {
                let cluster = cluster.upgrade();
                cluster.is_none_or(|cluster| cluster.snapshot().member(member).is_none())
            })
    }
}

impl SessionCounts {
    /// Those of members that are still there.
    fn by_label(&self) -> Vec<(RouteMemberLabel, i64)> {
        let mut counts = self.lock();
        counts.retain(|(_, member), count| !count.is_over(member));
        let sessions = counts.iter().map(|((route, member), count)| {
            let label = RouteMemberLabel {
                route: route.to_string(),
                member: member.to_string(),
            };
            (label, count.sessions)
        });
        sessions.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a session until it is dropped.
#[derive(Debug)]
pub(super) struct SessionGuard {
    counts: Arc<SessionCounts>,
    key: (Arc<str>, MemberName),
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(&self.key) {
            count.sessions -= 1;
            if count.is_over(&self.key.1) {
                counts.remove(&self.key);
            }
        }
    }
}

/// Leaves out and forgets members that have left the cluster. Adds the sessions of the other
/// processes of this router.
#[derive(Debug)]
struct SessionCollector(Arc<SessionCounts>, Arc<Generations>);

impl Collector for SessionCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let own = self.0.by_label().into_iter();
        let mut sessions: HashMap<RouteMemberLabel, i64> = own.collect();
        for ((route, member), others) in self.1.totals().sessions() {
            *sessions.entry(RouteMemberLabel { route, member }).or_default() += others;
        }
        let help = "Sessions now, by route and member";
        let mut family = encoder.encode_descriptor("sessions", help, None, MetricType::Gauge)?;
        for (label, sessions) in sessions {
            ConstGauge::new(sessions).encode(family.encode_family(&label)?)?;
        }
        Ok(())
    }
}

/// Adds up the sessions' traffic at scrape time, so that the relay shares no counter between
/// workers.
/// Adds the traffic of the other processes of this router.
#[derive(Debug)]
struct TrafficCollector(Arc<registry::Registry>, Arc<Generations>);

impl Collector for TrafficCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let moved = Moved::from(self.0.traffic()).and(self.1.totals().moved());
        let counters = [
            (
                "client_bytes_received",
                "Bytes forwarded from clients to servers",
                moved.bytes_up,
            ),
            (
                "client_bytes_sent",
                "Bytes forwarded from servers to clients",
                moved.bytes_down,
            ),
            ("transactions", "Transactions that ended", moved.transactions),
        ];
        for (name, help, value) in counters {
            let counter = ConstCounter::new(value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        let mut routes: BTreeMap<String, Moved> = BTreeMap::new();
        for (route, traffic) in self.0.traffic_by_route() {
            routes.insert(route.to_string(), traffic.into());
        }
        for (route, others) in self.1.totals().moved_by_route() {
            let of = routes.entry(route).or_default();
            *of = of.and(others);
        }
        let counters = [
            (
                "route_bytes_received",
                "Bytes forwarded from clients of a route to servers",
            ),
            (
                "route_bytes_sent",
                "Bytes forwarded from servers to clients of a route",
            ),
            ("route_transactions", "Transactions of a route that ended"),
        ];
        for (index, (name, help)) in counters.into_iter().enumerate() {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (route, moved) in &routes {
                let labels = [("route", route.as_str())];
                let value = [moved.bytes_up, moved.bytes_down, moved.transactions][index];
                ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// Counts at scrape time, after it has forgotten the failures that have expired.
#[derive(Debug)]
struct OffenderCollector(Arc<login_throttle::SharedThrottle>);

impl Collector for OffenderCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (addresses, users) = self.0.remembered();
        let gauges = [
            (
                "login_failure_addresses",
                "Addresses remembered for failed logins",
                addresses,
            ),
            ("login_failure_users", "Users remembered for failed logins", users),
        ];
        for (name, help, value) in gauges {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::pool::metrics::{
        CloseReason, DiscardReason, ExchangeKind, Outcome, RefusedReason, STATEMENT_EVENTS, TimeLimit,
    };
    use super::super::pool::state::PinReason;
    use super::*;

    const DOCUMENT: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md"));

    /// The words in backticks, sorted.
    fn words(text: &str) -> Vec<&str> {
        let mut words: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
        words.retain(|word| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
        words.sort_unstable();
        words
    }

    /// The first column of the table under a heading.
    fn listed(heading: &str) -> Vec<&'static str> {
        let (_, section) = DOCUMENT.split_once(&format!("## {heading}\n")).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| "));
        let mut listed: Vec<&str> = rows
            .flat_map(|row| words(row.split(" |").next().unwrap()))
            .collect();
        listed.sort_unstable();
        listed
    }

    /// The values of a label that are listed in its metric's own row.
    fn in_row(metric: &str, label: &str) -> Vec<&'static str> {
        let row = DOCUMENT
            .lines()
            .find(|line| line.starts_with(&format!("| `{metric}`")))
            .unwrap();
        words(row.split_once(&format!("`{label}` (")).unwrap().1)
    }

    fn sorted<T: Copy>(all: &[T], label: fn(T) -> &'static str) -> Vec<&'static str> {
        let mut labels: Vec<&str> = all.iter().map(|one| label(*one)).collect();
        labels.sort_unstable();
        labels
    }

    #[test]
    fn the_document_lists_every_label() {
        assert_eq!(
            sorted(RefuseReason::ALL, RefuseReason::label),
            listed("Reasons for refused logins")
        );
        assert_eq!(
            sorted(CancelOutcome::ALL, CancelOutcome::label),
            listed("Results of cancel requests")
        );
        assert_eq!(
            sorted(EndLabel::ALL, EndLabel::label),
            in_row("trunkline_sessions_ended_total", "cause")
        );
        assert_eq!(
            sorted(CutOutcome::ALL, CutOutcome::label),
            in_row("trunkline_cut_requests_total", "result")
        );
        assert_eq!(
            sorted(CloseReason::ALL, CloseReason::label),
            in_row("trunkline_pool_closed_total", "reason")
        );
        assert_eq!(
            sorted(&PinReason::ALL, PinReason::label),
            in_row("trunkline_pool_pins_total", "reason")
        );
        assert_eq!(
            sorted(DiscardReason::ALL, DiscardReason::label),
            in_row("trunkline_pool_discarded_total", "reason")
        );
        assert_eq!(
            sorted(RefusedReason::ALL, RefusedReason::label),
            in_row("trunkline_pool_refused_total", "reason")
        );
        assert_eq!(
            sorted(TimeLimit::ALL, TimeLimit::label),
            in_row("trunkline_pool_timeouts_total", "limit")
        );
        assert_eq!(
            sorted(ExchangeKind::ALL, ExchangeKind::label),
            in_row("trunkline_pool_exchanges_total", "kind")
        );
        assert_eq!(
            sorted(Outcome::ALL, Outcome::label),
            in_row("trunkline_pool_lost_total", "outcome")
        );
        assert_eq!(
            sorted(STATEMENT_EVENTS, |event| event),
            in_row("trunkline_pool_statements_total", "event")
        );
    }
}
