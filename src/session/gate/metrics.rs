//! The metrics of gates: of sessions that wait for a place on a server, and of held clients.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry as Into, Unit};

use crate::session::gauges::RouteLabel;

/// The metrics of all gates, and of sessions that wait in pools.
#[derive(Debug, Clone)]
pub(in crate::session) struct Metrics {
    pub(in crate::session) length: Family<RouteLabel, Gauge>,
    pub(in crate::session) entered: Family<RouteLabel, Counter>,
    pub(in crate::session) full: Family<RouteLabel, Counter>,
    pub(in crate::session) timeouts: Family<RouteLabel, Counter>,
    pub(in crate::session) wait_seconds: Histogram,
}

impl Metrics {
    pub(in crate::session) fn register(into: &mut Into) -> Self {
        let metrics = Self {
            length: Family::default(),
            entered: Family::default(),
            full: Family::default(),
            timeouts: Family::default(),
            wait_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
        };
        into.register(
            "queue_length",
            "Sessions that wait now for a place on a server",
            metrics.length.clone(),
        );
        into.register(
            "queue_entered",
            "Sessions that had to wait for a place on a server",
            metrics.entered.clone(),
        );
        into.register(
            "queue_full",
            "Sessions refused because max_queue sessions waited already",
            metrics.full.clone(),
        );
        into.register(
            "queue_timeouts",
            "Sessions that got no place on a server within queue_timeout",
            metrics.timeouts.clone(),
        );
        into.register_with_unit(
            "queue_wait",
            "How long sessions waited, whatever the result",
            Unit::Seconds,
            metrics.wait_seconds.clone(),
        );
        metrics
    }
}

/// The metrics of held clients.
#[derive(Debug, Clone)]
pub(in crate::session) struct HoldMetrics {
    pub(super) length: Family<RouteLabel, Gauge>,
    pub(super) entered: Family<RouteLabel, Counter>,
    pub(super) full: Family<RouteLabel, Counter>,
    pub(super) timeouts: Family<RouteLabel, Counter>,
    pub(super) wait_seconds: Histogram,
}

impl Default for HoldMetrics {
    fn default() -> Self {
        Self {
            length: Family::default(),
            entered: Family::default(),
            full: Family::default(),
            timeouts: Family::default(),
            wait_seconds: Histogram::new(exponential_buckets(0.01, 2.0, 14)),
        }
    }
}

impl HoldMetrics {
    /// The series of a route exist before anything is counted, so that the first event is seen as
    /// an increase.
    pub(super) fn show(&self, route: &RouteLabel) {
        drop(self.length.get_or_create(route));
        for counter in [&self.entered, &self.full, &self.timeouts] {
            drop(counter.get_or_create(route));
        }
    }

    pub(in crate::session) fn register(&self, into: &mut Into) {
        into.register("hold_length", "Clients that are held now", self.length.clone());
        into.register(
            "hold_entered",
            "Clients that were held while no server could serve them",
            self.entered.clone(),
        );
        into.register(
            "hold_full",
            "Clients refused because hold.max_clients were held already",
            self.full.clone(),
        );
        into.register(
            "hold_timeouts",
            "Held clients that got no server in time",
            self.timeouts.clone(),
        );
        into.register_with_unit(
            "hold_wait",
            "How long clients were held, whatever the result",
            Unit::Seconds,
            self.wait_seconds.clone(),
        );
    }
}
