//! The process's own metrics and the exposition. Names are documented in `docs/metrics.md` and stable.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder,
};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// What [`exposition`] gives.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The prefix of every metric of ours; each room is given a registry with it.
pub const PREFIX: &str = "trunkline";

/// This room's own metrics. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    pub(super) connections: Gauge,
    pub(super) refused: Counter,
}

/// Which kind of path was asked for; never the path itself, which a caller chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Endpoint {
    Connection,
    Node,
    Group,
    Patroni,
    Metrics,
    UpdateClusters,
    Other,
}

impl EncodeLabelValue for Endpoint {
    fn encode(&self, encoder: &mut LabelValueEncoder) -> fmt::Result {
        let label = match self {
            Self::Connection => "connection",
            Self::Node => "node",
            Self::Group => "group",
            Self::Patroni => "patroni",
            Self::Metrics => "metrics",
            Self::UpdateClusters => "update_clusters",
            Self::Other => "other",
        };
        EncodeLabelValue::encode(&label, encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    endpoint: Endpoint,
    code: u16,
}

impl Metrics {
    /// Registers the process's metrics (with their usual names, without a prefix) and this room's.
    pub fn register(root: &mut Registry) -> Self {
        root.register_collector(Box::new(Process { started: unix_now() }));
        let ours = root.sub_registry_with_prefix(PREFIX);
        ours.register(
            "build",
            "The version that runs",
            Info::new(
                [("version", env!("CARGO_PKG_VERSION"))]
                    .map(|(k, v)| (k.to_owned(), v.to_owned()))
                    .to_vec(),
            ),
        );
        let metrics = Self::default();
        ours.register(
            "http_requests",
            "HTTP requests answered",
            metrics.requests.clone(),
        );
        ours.register(
            "http_connections",
            "HTTP connections open",
            metrics.connections.clone(),
        );
        ours.register(
            "http_connections_refused",
            "HTTP connections closed at once because too many were open",
            metrics.refused.clone(),
        );
        metrics
    }

    pub(super) fn request(&self, endpoint: Endpoint, code: u16) {
        self.requests
            .get_or_create(&RequestLabels { endpoint, code })
            .inc();
    }
}

/// The `OpenMetrics` text of everything registered.
///
/// # Errors
/// Only if a collector fails to format its own values.
pub fn exposition(registry: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::new();
    encode(&mut text, registry)?;
    Ok(text)
}

fn unix_now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

/// Read at each scrape; what cannot be read is left out.
#[derive(Debug)]
struct Process {
    /// Unix seconds.
    started: f64,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: f64| {
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, unit, gauge.metric_type())?;
            gauge.encode(metric)
        };
        gauge(
            "process_start_time",
            "When the process started, Unix time",
            Some(&Unit::Seconds),
            self.started,
        )?;
        if let Some(open) = open_files() {
            gauge("process_open_fds", "Open files", None, lossy(open))?;
        }
        if let Ok(limit) = rlimit::Resource::NOFILE.get_soft() {
            gauge(
                "process_max_fds",
                "How many files may be open",
                None,
                lossy(limit),
            )?;
        }
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        if let Some(kibibytes) = status_value(&status, "VmRSS:") {
            gauge(
                "process_resident_memory",
                "Resident memory",
                Some(&Unit::Bytes),
                lossy(kibibytes * 1024),
            )?;
        }
        if let Some(threads) = status_value(&status, "Threads:") {
            gauge("process_threads", "Threads", None, lossy(threads))?;
        }
        Ok(())
    }
}

/// The files open now, without the one needed to count them.
fn open_files() -> Option<u64> {
    let count = std::fs::read_dir("/proc/self/fd").ok()?.count();
    u64::try_from(count).ok()?.checked_sub(1)
}

/// A number of `/proc/self/status`: unlike `statm`, in units that do not depend on the page size.
fn status_value(status: &str, key: &str) -> Option<u64> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(key))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "the exposition has floating-point numbers only"
)]
fn lossy(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Every sample line is `name{labels} value`, every name is described, the text ends with `# EOF`.
    pub(in crate::admin) fn parses(text: &str) -> std::collections::BTreeMap<String, f64> {
        let mut samples = std::collections::BTreeMap::new();
        let mut described = Vec::new();
        assert!(text.ends_with("# EOF\n"), "{text}");
        for line in text.lines().filter(|line| *line != "# EOF") {
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let (kind, name) = (words.next().unwrap(), words.next().unwrap());
                assert!(["HELP", "TYPE", "UNIT"].contains(&kind), "{line}");
                described.push(name.to_owned());
            } else {
                let (key, value) = line.rsplit_once(' ').unwrap();
                let name = key.split('{').next().unwrap();
                assert!(
                    name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'),
                    "{line}"
                );
                assert!(
                    described.iter().any(|known| name.starts_with(known.as_str())),
                    "{line}"
                );
                assert!(
                    samples.insert(key.to_owned(), value.parse().unwrap()).is_none(),
                    "twice: {line}"
                );
            }
        }
        samples
    }

    #[test]
    fn the_exposition_parses_and_has_the_documented_names() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.request(Endpoint::Node, 503);
        metrics.request(Endpoint::Node, 503);
        let samples = parses(&exposition(&registry).unwrap());
        let documented = include_str!("../../docs/metrics.md");
        for key in samples.keys() {
            let name = key.split('{').next().unwrap();
            assert!(
                documented.contains(&format!("`{name}`")),
                "{name} is not documented"
            );
        }
        assert!(
            samples[&format!(
                "trunkline_build_info{{version=\"{}\"}}",
                env!("CARGO_PKG_VERSION")
            )] > 0.0
        );
        assert!(samples["process_resident_memory_bytes"] > 1e5);
        assert!(samples["process_open_fds"] >= 3.0);
        assert!(samples["process_max_fds"] >= samples["process_open_fds"]);
        assert!(samples["process_start_time_seconds"] > 1.6e9);
        assert!((samples["trunkline_http_requests_total{endpoint=\"node\",code=\"503\"}"] - 2.0).abs() < 0.1);
    }
}
