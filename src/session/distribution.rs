//! A histogram that sessions fill while they relay: a few atomic additions, and no lock.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// Upper bounds of the buckets, in microseconds: from a short transaction to one that is forgotten.
const BOUNDS: [u64; 17] = [
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
];

const FIRST: u64 = BOUNDS[0];

/// See the module. Clones count together.
#[derive(Debug, Clone, Default)]
pub(super) struct Distribution(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The last one is for what exceeds every bound.
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// The sum, in microseconds.
    total: AtomicU64,
}

impl Distribution {
    /// Counts a duration as often as `times` says.
    pub(super) fn observe(&self, duration: Duration, times: u64) {
        let micros = duration.as_secs().saturating_mul(1_000_000) + u64::from(duration.subsec_micros());
        // The first one is that of most transactions, which are not to pay for a search.
        let bucket = match micros {
            ..=FIRST => 0,
            _ => BOUNDS.partition_point(|bound| *bound < micros),
        };
        self.0.buckets[bucket].fetch_add(times, Ordering::Relaxed);
        self.0
            .total
            .fetch_add(micros.saturating_mul(times), Ordering::Relaxed);
    }
}

impl TypedMetric for Distribution {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Distribution {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = BOUNDS.iter().map(|bound| seconds(*bound));
        let bounds = bounds.chain(std::iter::once(f64::INFINITY));
        let counts = self.0.buckets.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = seconds(self.0.total.load(Ordering::Relaxed));
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "the exposition has floating-point numbers only"
)]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::{Registry, Unit};

    use super::*;

    #[test]
    fn a_duration_is_in_every_bucket_from_its_bound_on() {
        let (mut registry, waits) = (Registry::default(), Distribution::default());
        registry.register_with_unit("wait", "Waits", Unit::Seconds, waits.clone());
        waits.observe(Duration::from_micros(500), 1);
        waits.observe(Duration::from_micros(501), 1);
        waits.observe(Duration::from_millis(1500), 16);
        waits.observe(Duration::from_hours(1), 1);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let line = |start: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(start));
            found.unwrap_or_else(|| panic!("no {start} in {text}")).to_owned()
        };
        for (bound, count) in [
            ("0.0005", "1"),
            ("0.001", "2"),
            ("1.0", "2"),
            ("2.5", "18"),
            ("300.0", "18"),
            ("+Inf", "19"),
        ] {
            assert_eq!(line(&format!("wait_seconds_bucket{{le=\"{bound}\"}} ")), count);
        }
        assert_eq!(line("wait_seconds_count "), "19");
        assert_eq!(line("wait_seconds_sum "), "3624.001001");
    }
}
