//! Which member is fit for which route, and which routes are disabled, computed at each scrape.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

use super::handles::ClusterView;
use crate::routing;
use crate::session::disabled::DisabledRoutes;
use crate::session::paused::PausedRoutes;

#[derive(Debug)]
struct FitMetric(Arc<ArcSwap<Vec<ClusterView>>>);

#[derive(Debug)]
struct PausedMetric(Arc<ArcSwap<Vec<ClusterView>>>, Arc<PausedRoutes>);

#[derive(Debug)]
struct DisabledMetric(Arc<ArcSwap<Vec<ClusterView>>>, Arc<DisabledRoutes>);

/// Registers the metrics in a registry with our prefix. A scrape shows the clusters that are in
/// `clusters` then.
pub fn register(
    ours: &mut Registry,
    clusters: Arc<ArcSwap<Vec<ClusterView>>>,
    disabled: Arc<DisabledRoutes>,
    paused: Arc<PausedRoutes>,
) {
    ours.register_collector(Box::new(FitMetric(Arc::clone(&clusters))));
    ours.register_collector(Box::new(PausedMetric(Arc::clone(&clusters), paused)));
    ours.register_collector(Box::new(DisabledMetric(clusters, disabled)));
}

impl Collector for PausedMetric {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut metric = encoder.encode_descriptor(
            "route_paused",
            "1 while an operator has paused the route",
            None,
            MetricType::Gauge,
        )?;
        let now = Instant::now();
        for route in self.0.load().iter().flat_map(ClusterView::routes) {
            let labels = [("route", &*route.name)];
            let is_paused = i64::from(self.1.until(&route.name, now).is_some());
            ConstGauge::new(is_paused).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Collector for DisabledMetric {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut metric = encoder.encode_descriptor(
            "route_disabled",
            "1 while an operator has disabled the route",
            None,
            MetricType::Gauge,
        )?;
        for route in self.0.load().iter().flat_map(ClusterView::routes) {
            let labels = [("route", &*route.name)];
            let is_disabled = i64::from(self.1.has(&route.name));
            ConstGauge::new(is_disabled).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

impl Collector for FitMetric {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut metric = encoder.encode_descriptor(
            "cluster_member_fit",
            "1 while the member may be given sessions of the route",
            None,
            MetricType::Gauge,
        )?;
        for view in self.0.load().iter() {
            let snapshot = view.snapshot.borrow().clone();
            for route in view.read_write.iter().chain(&view.read_only) {
                for member in &snapshot.members {
                    let is_fit = routing::fitness(&snapshot, route, member).is_ok();
                    let labels = [
                        ("cluster", &*view.name),
                        ("member", member.name.as_str()),
                        ("route", &*route.name),
                    ];
                    ConstGauge::new(i64::from(is_fit)).encode(metric.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::super::http::fixture::{led, member, primary, view};
    use super::super::metrics::{exposition, tests::parses};
    use super::*;
    use crate::config::LocalMember;

    #[test]
    fn each_member_is_fit_or_not_for_each_route_and_disabled_and_paused_routes_are_shown() {
        let mut lagging = member("m");
        lagging.lagging = ["read-only".into()].into();
        let snapshot = led(vec![primary("p"), lagging, member("n")]);
        let mut registry = Registry::default();
        let views = vec![view(snapshot, LocalMember::None)];
        let disabled = Arc::new(DisabledRoutes::default());
        disabled.replace(["read-only".to_owned()].into());
        let paused = Arc::new(PausedRoutes::default());
        assert!(paused.pause("read-write", Instant::now() + std::time::Duration::from_mins(1)));
        let views = Arc::new(ArcSwap::from_pointee(views));
        register(&mut registry, views, disabled, paused);
        let samples = parses(&exposition(&registry).unwrap());
        let fit: Vec<&str> = samples
            .iter()
            .filter(|(_, value)| **value > 0.5)
            .map(|(key, _)| key.as_str())
            .collect();
        assert_eq!(
            fit,
            [
                "cluster_member_fit{cluster=\"main\",member=\"n\",route=\"read-only\"}",
                "cluster_member_fit{cluster=\"main\",member=\"p\",route=\"read-write\"}",
                "route_disabled{route=\"read-only\"}",
                "route_paused{route=\"read-write\"}",
            ]
        );
        assert_eq!(samples.len(), 10);
    }
}
