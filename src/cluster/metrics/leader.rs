//! Changes of the leader, the time without one, and switchovers by this router.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

use super::{ClusterLabels, PollLabels, ProbeResult};
use crate::cluster::snapshot::MemberName;

/// See the module. Clones share the counts.
#[derive(Debug, Clone)]
pub(super) struct LeaderMetrics {
    changes: Family<ClusterLabels, Counter>,
    leaderless: Family<ClusterLabels, Histogram>,
    switchovers: Family<PollLabels, Counter>,
    switchover: Family<ClusterLabels, Histogram>,
    /// By cluster.
    last: Arc<Mutex<HashMap<String, LastLeader>>>,
}

/// The verified leader of a cluster, or the last one.
#[derive(Debug)]
struct LastLeader {
    member: MemberName,
    /// Since when there has been none.
    lost: Option<Instant>,
}

fn pauses() -> Histogram {
    Histogram::new([
        0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0,
    ])
}

impl LeaderMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            changes: Family::default(),
            leaderless: Family::new_with_constructor(pauses),
            switchovers: Family::default(),
            switchover: Family::new_with_constructor(pauses),
            last: Arc::default(),
        };
        registry.register(
            "cluster_leader_changes",
            "How often another member than before became the verified leader",
            metrics.changes.clone(),
        );
        registry.register_with_unit(
            "cluster_leaderless",
            "How long there was no verified leader, until there was one again",
            Unit::Seconds,
            metrics.leaderless.clone(),
        );
        registry.register(
            "cluster_switchovers",
            "Switchovers that this router was ordered to make, by result",
            metrics.switchovers.clone(),
        );
        registry.register_with_unit(
            "cluster_switchover",
            "From the moment at which such a switchover held clients until another member led",
            Unit::Seconds,
            metrics.switchover.clone(),
        );
        metrics
    }

    /// The cluster has this leader now, or none.
    pub(super) fn follow(&self, cluster: &str, leader: Option<&MemberName>) {
        let labels = ClusterLabels {
            cluster: cluster.to_owned(),
        };
        // Its series exist before the first event, so that this is seen as an increase.
        let changes = self.changes.get_or_create_owned(&labels);
        let leaderless = self.leaderless.get_or_create_owned(&labels);
        drop(self.switchover.get_or_create_owned(&labels));
        for result in [ProbeResult::Success, ProbeResult::Failure] {
            let cluster = cluster.to_owned();
            drop(
                self.switchovers
                    .get_or_create_owned(&PollLabels { cluster, result }),
            );
        }
        let mut all = self.lock();
        match (all.get_mut(cluster), leader) {
            (None, None) => {}
            (None, Some(member)) => {
                let member = member.clone();
                all.insert(labels.cluster, LastLeader { member, lost: None });
            }
            (Some(last), None) => last.lost = last.lost.or_else(|| Some(Instant::now())),
            (Some(last), Some(member)) => {
                if last.member != *member {
                    last.member = member.clone();
                    changes.inc();
                }
                if let Some(lost) = last.lost.take() {
                    leaderless.observe(lost.elapsed().as_secs_f64());
                }
            }
        }
    }

    /// A switchover by this router is over. `held`: for how long clients were held, if another
    /// member leads.
    pub(super) fn switched_over(&self, cluster: &str, held: Option<Duration>) {
        let result = match held {
            Some(_) => ProbeResult::Success,
            None => ProbeResult::Failure,
        };
        let cluster = cluster.to_owned();
        let labels = PollLabels { cluster, result };
        self.switchovers.get_or_create_owned(&labels).inc();
        if let Some(held) = held {
            let PollLabels { cluster, .. } = labels;
            self.switchover
                .get_or_create_owned(&ClusterLabels { cluster })
                .observe(held.as_secs_f64());
        }
    }

    /// Removes the series of a cluster that is gone.
    pub(super) fn forget(&self, cluster: &str) {
        self.lock().remove(cluster);
        for result in [ProbeResult::Success, ProbeResult::Failure] {
            let cluster = cluster.to_owned();
            self.switchovers.remove(&PollLabels { cluster, result });
        }
        let cluster = cluster.to_owned();
        let labels = ClusterLabels { cluster };
        self.changes.remove(&labels);
        self.leaderless.remove(&labels);
        self.switchover.remove(&labels);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, LastLeader>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    fn registered() -> (Registry, LeaderMetrics) {
        let mut registry = Registry::default();
        let metrics = LeaderMetrics::register(&mut registry);
        (registry, metrics)
    }

    fn has(registry: &Registry, expected: &[(&str, &str)]) {
        let mut text = String::new();
        assert!(encode(&mut text, registry).is_ok());
        for (name, value) in expected {
            let line = format!("{name} {value}\n");
            assert!(text.contains(&line), "{line}in {text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_s_absence_is_measured_and_its_change_counted() {
        let (registry, metrics) = registered();
        let (one, two) = (MemberName::new("db1"), MemberName::new("db2"));
        let after = |seconds| tokio::time::advance(Duration::from_secs(seconds));
        let expect = |pauses, seconds, changes| {
            has(
                &registry,
                &[
                    ("cluster_leaderless_seconds_count{cluster=\"main\"}", pauses),
                    ("cluster_leaderless_seconds_sum{cluster=\"main\"}", seconds),
                    ("cluster_leader_changes_total{cluster=\"main\"}", changes),
                ],
            );
        };
        // Before the first leader nothing is missing.
        metrics.follow("main", None);
        after(100).await;
        metrics.follow("main", Some(&one));
        expect("0", "0.0", "0");
        metrics.follow("main", None);
        after(3).await;
        metrics.follow("main", None);
        after(4).await;
        metrics.follow("main", Some(&two));
        expect("1", "7.0", "1");
        // The same one again.
        metrics.follow("main", None);
        after(1).await;
        metrics.follow("main", Some(&two));
        expect("2", "8.0", "1");
        // Without a moment between the two.
        metrics.follow("main", Some(&one));
        expect("2", "8.0", "2");
    }

    #[test]
    fn switchovers_count_by_result_and_only_those_that_succeed_take_time() {
        let (registry, metrics) = registered();
        metrics.follow("main", None);
        let success = "cluster_switchovers_total{cluster=\"main\",result=\"success\"}";
        let failure = "cluster_switchovers_total{cluster=\"main\",result=\"failure\"}";
        has(&registry, &[(success, "0"), (failure, "0")]);
        metrics.switched_over("main", Some(Duration::from_secs(2)));
        metrics.switched_over("main", None);
        let sum = "cluster_switchover_seconds_sum{cluster=\"main\"}";
        has(&registry, &[(success, "1"), (failure, "1"), (sum, "2.0")]);
    }
}
