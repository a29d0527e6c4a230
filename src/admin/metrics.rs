//! The process's own metrics and the exposition. Names are documented in `docs/metrics.md` and
//! stable.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use super::handles::Readiness;
use crate::config::ReloadUnit;
use crate::labels::labels;

/// The prefix of every metric of ours; each room is given a registry with it.
pub const PREFIX: &str = "trunkline";

/// The metrics of this room. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    pub(super) connections: Gauge,
    pub(super) refused: Counter,
    pub(super) evicted: Counter,
}

labels! {
    /// The label `endpoint`: the kind of path, never the path itself, which a caller chooses.
    pub(super) enum Endpoint {
        Connection = "connection",
        Node = "node",
        Group = "group",
        Api = "api",
        Patroni = "patroni",
        Metrics = "metrics",
        Ui = "ui",
        UpdateClusters = "update_clusters",
        Other = "other",
    }
}

impl Endpoint {
    /// What balancers ask.
    pub(super) fn is_check(self) -> bool {
        matches!(self, Self::Connection | Self::Node | Self::Group | Self::Patroni)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    endpoint: Endpoint,
    code: u16,
}

impl Metrics {
    /// Registers the process's metrics (with their usual names, without a prefix) and this room's.
    /// `lost` counts lines of the log.
    pub fn register(root: &mut Registry, lost: Counter) -> Self {
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
        ours.register(
            "log_lines_lost",
            "Log lines that were not written: the reader was too slow, or the stream failed",
            lost,
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
            "Connections of HTTP and the agent check closed at once: too many were open, and each was being answered",
            metrics.refused.clone(),
        );
        ours.register(
            "http_connections_evicted",
            "Connections of HTTP and the agent check that were idle the longest, closed for new ones because too many were open",
            metrics.evicted.clone(),
        );
        metrics
    }

    /// Shows the router's own state.
    pub fn follow(&self, root: &mut Registry, readiness: &Arc<Readiness>) {
        root.sub_registry_with_prefix(PREFIX)
            .register_collector(Box::new(State(Arc::clone(readiness))));
    }

    pub(super) fn request(&self, endpoint: Endpoint, code: u16) {
        self.requests
            .get_or_create(&RequestLabels { endpoint, code })
            .inc();
    }
}

/// 1 for the state that the router is in.
#[derive(Debug)]
struct State(Arc<Readiness>);

impl Collector for State {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut metric = encoder.encode_descriptor(
            "router_state",
            "1 for the state that the router is in, 0 for the others",
            None,
            MetricType::Gauge,
        )?;
        let is = self.0.phase().word();
        for state in ["starting", "ready", "drain", "stopping"] {
            let labels = [("state", state)];
            ConstGauge::new(i64::from(state == is)).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// Files that are read again, and the certificates in them. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct FileMetrics {
    failed: Family<PartLabels, Gauge>,
    reloads: Family<ResultLabels, Counter>,
    whole: Family<ResultLabels, Counter>,
    refused: Gauge,
    certificates: Arc<ArcSwap<Vec<Expiry>>>,
}

/// The end of a certificate in service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    pub part: String,
    pub file: String,
    /// Unix seconds.
    pub not_after: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartLabels {
    part: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

impl FileMetrics {
    /// Registers them where names get the prefix of ours.
    pub fn register(ours: &mut Registry) -> Self {
        let metrics = Self::default();
        ours.register(
            "file_reload_failed",
            "1 while the files of a part of the configuration are broken, and older ones are in use",
            metrics.failed.clone(),
        );
        ours.register(
            "file_reloads",
            "Parts of the configuration whose files had changed and were read again",
            metrics.reloads.clone(),
        );
        ours.register(
            "config_reloads",
            "Reloads of the whole configuration",
            metrics.whole.clone(),
        );
        ours.register(
            "config_reload_refused",
            "1 while the newest configuration is refused, and an older one is in use",
            metrics.refused.clone(),
        );
        ours.register_collector(Box::new(Certificates(Arc::clone(&metrics.certificates))));
        metrics
    }

    pub fn failed(&self, part: &ReloadUnit, failed: bool) {
        let labels = PartLabels {
            part: part.to_string(),
        };
        self.failed.get_or_create(&labels).set(i64::from(failed));
    }

    /// A part of the configuration was read and is in use, or was refused.
    pub fn reloaded(&self, success: bool) {
        let result = if success { "success" } else { "failure" };
        self.reloads.get_or_create(&ResultLabels { result }).inc();
    }

    /// The whole configuration was applied, or refused.
    pub fn replaced(&self, success: bool) {
        let result = if success { "success" } else { "refused" };
        self.whole.get_or_create(&ResultLabels { result }).inc();
        self.refused.set(i64::from(!success));
    }

    /// The newest configuration is the one that is in use already.
    pub fn confirmed(&self) {
        self.refused.set(0);
    }

    /// The certificates that are in service now.
    pub fn certificates(&self, all: Vec<Expiry>) {
        self.certificates.store(Arc::new(all));
    }
}

/// Computed at each scrape.
#[derive(Debug)]
struct Certificates(Arc<ArcSwap<Vec<Expiry>>>);

impl Collector for Certificates {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let all = self.0.load();
        if all.is_empty() {
            return Ok(());
        }
        let mut metric = encoder.encode_descriptor(
            "tls_certificate_expiry_timestamp",
            "When a certificate in use expires, Unix time",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        let mut shown = BTreeSet::new();
        for expiry in all.iter() {
            let labels = [("part", expiry.part.as_str()), ("file", expiry.file.as_str())];
            // The same file may stand twice in a list, but not in a scrape.
            if shown.insert(labels) {
                ConstGauge::new(unix(expiry.not_after)).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "the exposition has floating-point numbers only"
)]
fn unix(seconds: i64) -> f64 {
    seconds as f64
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
        if let Some(bytes) = resident_memory() {
            gauge(
                "process_resident_memory",
                "Resident memory",
                Some(&Unit::Bytes),
                lossy(bytes),
            )?;
        }
        let status = process_status();
        if let Some(threads) = status_value(&status, "Threads:") {
            gauge("process_threads", "Threads", None, lossy(threads))?;
        }
        Ok(())
    }
}

fn process_status() -> String {
    std::fs::read_to_string("/proc/self/status").unwrap_or_default()
}

/// In bytes.
pub(super) fn resident_memory() -> Option<u64> {
    status_value(&process_status(), "VmRSS:").map(|kibibytes| kibibytes * 1024)
}

/// The files open now, without the one needed to count them.
pub(super) fn open_files() -> Option<u64> {
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
    #![allow(
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss
    )]
    use super::*;

    /// Every sample line is `name{labels} value`, every name is described, the text ends with
    /// `# EOF`.
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
        let metrics = Metrics::register(&mut registry, Counter::default());
        let files = FileMetrics::register(registry.sub_registry_with_prefix(PREFIX));
        files.failed(&ReloadUnit::ServerTls("main".into()), true);
        files.reloaded(true);
        files.replaced(true);
        let not_after = unix_now() as i64 + 10 * 86_400;
        let in_ten_days = Expiry {
            part: "tls".to_owned(),
            file: "/s.crt".to_owned(),
            not_after,
        };
        files.certificates(vec![in_ten_days.clone(), in_ten_days]);
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
        for endpoint in Endpoint::ALL {
            assert!(
                documented.contains(&format!("`{}`", endpoint.label())),
                "{endpoint:?}"
            );
        }
        assert!(
            samples[&format!(
                "trunkline_build_info{{version=\"{}\"}}",
                env!("CARGO_PKG_VERSION")
            )] > 0.0
        );
        let expiry =
            samples["trunkline_tls_certificate_expiry_timestamp_seconds{part=\"tls\",file=\"/s.crt\"}"];
        assert!((expiry - not_after as f64).abs() < 0.1, "{expiry}");
        assert!(samples["trunkline_file_reload_failed{part=\"clusters.main.server_tls\"}"] > 0.9);
        assert!(samples["trunkline_file_reloads_total{result=\"success\"}"] > 0.9);
        assert!(samples["process_resident_memory_bytes"] > 1e5);
        assert!(samples["process_open_fds"] >= 3.0);
        assert!(samples["process_max_fds"] >= samples["process_open_fds"]);
        assert!(samples["process_start_time_seconds"] > 1.6e9);
        assert!((samples["trunkline_http_requests_total{endpoint=\"node\",code=\"503\"}"] - 2.0).abs() < 0.1);
    }
}
