//! The metrics of this room.

mod leader;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use self::leader::LeaderMetrics;
use super::snapshot::{AdminState, Leader, MemberName, Snapshot};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClusterLabels {
    cluster: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MemberLabels {
    cluster: String,
    member: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProbeLabels {
    cluster: String,
    member: String,
    result: ProbeResult,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PollLabels {
    cluster: String,
    result: ProbeResult,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LookUpLabels {
    cluster: String,
    result: LookUpResult,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ProbeResult {
    Success,
    Failure,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum LookUpResult {
    /// Answered from the cache, because the answer was fresh or was not confirmed in time.
    Cached,
    Found,
    /// No such user, no password, or a password that cannot be used.
    NotFound,
    /// No member could be asked.
    Failed,
}

impl EncodeLabelValue for ProbeResult {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let label = match self {
            Self::Success => "success",
            Self::Failure => "failure",
        };
        EncodeLabelValue::encode(&label, encoder)
    }
}

impl EncodeLabelValue for LookUpResult {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        let label = match self {
            Self::Cached => "cached",
            Self::Found => "found",
            Self::NotFound => "not_found",
            Self::Failed => "failed",
        };
        EncodeLabelValue::encode(&label, encoder)
    }
}

/// The room's metrics. Clones share the counts; the label `cluster` distinguishes clusters.
#[derive(Debug, Clone)]
pub struct Metrics {
    member_up: Family<MemberLabels, Gauge>,
    member_leader: Family<MemberLabels, Gauge>,
    member_admin: Family<MemberLabels, Gauge>,
    member_weight: Family<MemberLabels, Gauge>,
    leader: Family<ClusterLabels, Gauge>,
    leaders: LeaderMetrics,
    lag_bytes: Family<MemberLabels, Gauge>,
    lag_seconds: Family<MemberLabels, Gauge<f64, AtomicU64>>,
    version: Family<ClusterLabels, Gauge>,
    source_up: Family<ClusterLabels, Gauge>,
    heard: Family<ClusterLabels, Gauge>,
    armed: Family<ClusterLabels, Gauge>,
    looks: Family<PollLabels, Counter>,
    probes: Family<ProbeLabels, Counter>,
    probe_seconds: Family<MemberLabels, Histogram>,
    polls: Family<PollLabels, Counter>,
    etcd_up: Family<ClusterLabels, Gauge>,
    etcd_checks: Family<PollLabels, Counter>,
    look_ups: Family<LookUpLabels, Counter>,
    /// Whether these tasks of a cluster may still write. Who writes has it locked for reading.
    is_open: Arc<RwLock<bool>>,
}

fn probe_histogram() -> Histogram {
    Histogram::new([0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5])
}

impl Metrics {
    /// Registers the room's metrics in `registry`, whose prefix they get.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            member_up: Family::default(),
            member_leader: Family::default(),
            member_admin: Family::default(),
            member_weight: Family::default(),
            leader: Family::default(),
            leaders: LeaderMetrics::register(registry),
            lag_bytes: Family::default(),
            lag_seconds: Family::default(),
            version: Family::default(),
            source_up: Family::default(),
            heard: Family::default(),
            armed: Family::default(),
            looks: Family::default(),
            probes: Family::default(),
            probe_seconds: Family::new_with_constructor(probe_histogram),
            polls: Family::default(),
            etcd_up: Family::default(),
            etcd_checks: Family::default(),
            look_ups: Family::default(),
            is_open: Arc::new(RwLock::new(true)),
        };
        let Self {
            member_up,
            member_leader,
            member_admin,
            member_weight,
            leader,
            leaders: _,
            lag_bytes,
            lag_seconds,
            version,
            source_up,
            heard,
            armed,
            looks,
            probes,
            probe_seconds,
            polls,
            etcd_up,
            etcd_checks,
            look_ups,
            is_open: _,
        } = metrics.clone();
        registry.register(
            "cluster_member_up",
            "1 while the member may get sessions",
            member_up,
        );
        registry.register(
            "cluster_member_leader",
            "1 for the verified leader",
            member_leader,
        );
        registry.register(
            "cluster_member_admin",
            "Administrative state: 0 ready, 1 drain, 2 maint",
            member_admin,
        );
        registry.register("cluster_member_weight", "Weight, 0 to 256", member_weight);
        registry.register(
            "cluster_member_lag_bytes",
            "Bytes that the leader has written and the standby has not replayed; absent while not known",
            lag_bytes,
        );
        registry.register(
            "cluster_member_lag_seconds",
            "How long the standby has been behind the leader; absent while not known",
            lag_seconds,
        );
        registry.register("cluster_leader", "1 while there is a verified leader", leader);
        registry.register(
            "cluster_snapshot_version",
            "Counts up with every change of the topology",
            version,
        );
        registry.register(
            "cluster_source_up",
            "1 while the source of the list of members answers",
            source_up,
        );
        registry.register(
            "cluster_heard",
            "1 while anything in the cluster answers this router",
            heard,
        );
        registry.register(
            "cluster_armed",
            "1 while a switchover may begin and the leader's Patroni is asked for its status",
            armed,
        );
        registry.register(
            "cluster_status_looks",
            "Requests to the leader's Patroni for its status, by result",
            looks,
        );
        registry.register("cluster_probes", "Probes of members, by result", probes);
        registry.register("cluster_probe_seconds", "Duration of probes", probe_seconds);
        registry.register("cluster_source_polls", "Polls of the source, by result", polls);
        registry.register(
            "cluster_etcd_up",
            "1 while Patroni's keys in etcd are watched",
            etcd_up,
        );
        registry.register(
            "cluster_etcd_checks",
            "Checks of the watch on etcd, by result",
            etcd_checks,
        );
        registry.register(
            "cluster_look_ups",
            "Look-ups of verifiers and memberships, by result",
            look_ups,
        );
        metrics
    }

    /// For the tasks of one configuration of a cluster. The counts are the same.
    pub(super) fn of_tasks(&self) -> Self {
        Self {
            is_open: Arc::new(RwLock::new(true)),
            ..self.clone()
        }
    }

    /// These tasks write no more when this returns: they end a little later than their cluster, on
    /// another thread, and nobody would remove what they then write.
    pub(super) fn close(&self) {
        *self.is_open.write().unwrap_or_else(PoisonError::into_inner) = false;
    }

    /// `None` after [`Self::close`].
    fn open(&self) -> Option<RwLockReadGuard<'_, bool>> {
        let is_open = self.is_open.read().unwrap_or_else(PoisonError::into_inner);
        is_open.then_some(is_open)
    }

    /// Call it only for published members, from the task that publishes them. Otherwise the series
    /// is never removed.
    pub(super) fn probed(&self, cluster: &str, member: &MemberName, result: ProbeResult, took: Duration) {
        let Some(_open) = self.open() else { return };
        let (cluster, member) = (cluster.to_owned(), member.as_str().to_owned());
        self.probe_seconds
            .get_or_create_owned(&MemberLabels {
                cluster: cluster.clone(),
                member: member.clone(),
            })
            .observe(took.as_secs_f64());
        self.probes
            .get_or_create_owned(&ProbeLabels {
                cluster,
                member,
                result,
            })
            .inc();
    }

    /// Whether a switchover may begin.
    pub(super) fn armed(&self, cluster: &str, armed: bool) {
        let Some(_open) = self.open() else { return };
        let cluster = cluster.to_owned();
        self.armed
            .get_or_create_owned(&ClusterLabels { cluster })
            .set(i64::from(armed));
    }

    pub(super) fn looked(&self, cluster: &str, result: ProbeResult) {
        let Some(_open) = self.open() else { return };
        let cluster = cluster.to_owned();
        self.looks
            .get_or_create_owned(&PollLabels { cluster, result })
            .inc();
    }

    pub(super) fn polled(&self, cluster: &str, result: ProbeResult) {
        let Some(_open) = self.open() else { return };
        self.polls
            .get_or_create_owned(&PollLabels {
                cluster: cluster.to_owned(),
                result,
            })
            .inc();
    }

    /// Sets whether the watch on etcd is up.
    pub(super) fn watched(&self, cluster: &str, up: bool) {
        let Some(_open) = self.open() else { return };
        let cluster = cluster.to_owned();
        self.etcd_up
            .get_or_create_owned(&ClusterLabels { cluster })
            .set(i64::from(up));
    }

    pub(super) fn checked(&self, cluster: &str, result: ProbeResult) {
        let Some(_open) = self.open() else { return };
        let cluster = cluster.to_owned();
        self.etcd_checks
            .get_or_create_owned(&PollLabels { cluster, result })
            .inc();
    }

    pub(super) fn looked_up(&self, cluster: &str, result: LookUpResult) {
        let Some(_open) = self.open() else { return };
        self.look_ups
            .get_or_create_owned(&LookUpLabels {
                cluster: cluster.to_owned(),
                result,
            })
            .inc();
    }

    /// A switchover by this router is over. `held`: for how long clients were held, if another
    /// member leads.
    pub(super) fn switched_over(&self, cluster: &str, held: Option<Duration>) {
        let Some(_open) = self.open() else { return };
        self.leaders.switched_over(cluster, held);
    }

    /// Updates the values that change all the time.
    pub(super) fn measure(&self, new: &Snapshot) {
        let Some(_open) = self.open() else { return };
        for member in &new.members {
            let labels = MemberLabels {
                cluster: new.cluster.to_string(),
                member: member.name.as_str().to_owned(),
            };
            match member.measured {
                Some(lag) => {
                    let bytes = i64::try_from(lag.bytes).unwrap_or(i64::MAX);
                    self.lag_bytes.get_or_create(&labels).set(bytes);
                }
                None => _ = self.lag_bytes.remove(&labels),
            }
            match member.measured.and_then(|lag| lag.time) {
                Some(time) => _ = self.lag_seconds.get_or_create(&labels).set(time.as_secs_f64()),
                None => _ = self.lag_seconds.remove(&labels),
            }
        }
    }

    /// Updates the metrics from a new snapshot, and removes members that are gone.
    pub(super) fn show(&self, old: &Snapshot, new: &Snapshot) {
        let Some(_open) = self.open() else { return };
        let cluster = || ClusterLabels {
            cluster: new.cluster.to_string(),
        };
        let member = |name: &MemberName| MemberLabels {
            cluster: new.cluster.to_string(),
            member: name.as_str().to_owned(),
        };
        let leader = match &new.leader {
            Leader::Verified { member, .. } => Some(member),
            Leader::None(_) => None,
        };
        self.leader
            .get_or_create_owned(&cluster())
            .set(i64::from(leader.is_some()));
        self.leaders.follow(&new.cluster, leader);
        self.version
            .get_or_create_owned(&cluster())
            .set(i64::try_from(new.version).unwrap_or(i64::MAX));
        self.source_up
            .get_or_create_owned(&cluster())
            .set(i64::from(new.source.reachable));
        self.heard
            .get_or_create_owned(&cluster())
            .set(i64::from(new.hears));
        for shown in &new.members {
            self.member_up
                .get_or_create_owned(&member(&shown.name))
                .set(i64::from(shown.health.up));
            self.member_admin
                .get_or_create_owned(&member(&shown.name))
                .set(match shown.admin {
                    AdminState::Ready => 0,
                    AdminState::Drain => 1,
                    AdminState::Maint => 2,
                });
            self.member_weight
                .get_or_create_owned(&member(&shown.name))
                .set(shown.weight.into());
            self.member_leader
                .get_or_create_owned(&member(&shown.name))
                .set(i64::from(leader == Some(&shown.name)));
        }
        for gone in old.members.iter().filter(|old| new.member(&old.name).is_none()) {
            self.forget_member(member(&gone.name));
        }
    }

    /// Removes the series of a cluster that is gone.
    pub(super) fn forget(&self, snapshot: &Snapshot) {
        let cluster = snapshot.cluster.to_string();
        for gone in &snapshot.members {
            self.forget_member(MemberLabels {
                cluster: cluster.clone(),
                member: gone.name.as_str().to_owned(),
            });
        }
        for result in [ProbeResult::Success, ProbeResult::Failure] {
            let cluster = cluster.clone();
            let labels = PollLabels { cluster, result };
            self.polls.remove(&labels);
            self.looks.remove(&labels);
        }
        for result in [
            LookUpResult::Cached,
            LookUpResult::Found,
            LookUpResult::NotFound,
            LookUpResult::Failed,
        ] {
            let cluster = cluster.clone();
            self.look_ups.remove(&LookUpLabels { cluster, result });
        }
        self.forget_watch(&cluster);
        self.leaders.forget(&cluster);
        let labels = ClusterLabels { cluster };
        self.leader.remove(&labels);
        self.version.remove(&labels);
        self.source_up.remove(&labels);
        self.heard.remove(&labels);
        self.armed.remove(&labels);
    }

    /// Removes the series of the watch on etcd.
    pub(super) fn forget_watch(&self, cluster: &str) {
        let cluster = cluster.to_owned();
        for result in [ProbeResult::Success, ProbeResult::Failure] {
            let cluster = cluster.clone();
            self.etcd_checks.remove(&PollLabels { cluster, result });
        }
        self.etcd_up.remove(&ClusterLabels { cluster });
    }

    fn forget_member(&self, labels: MemberLabels) {
        self.member_up.remove(&labels);
        self.member_leader.remove(&labels);
        self.member_admin.remove(&labels);
        self.member_weight.remove(&labels);
        self.lag_bytes.remove(&labels);
        self.lag_seconds.remove(&labels);
        self.probe_seconds.remove(&labels);
        let MemberLabels { cluster, member } = labels;
        for result in [ProbeResult::Success, ProbeResult::Failure] {
            self.probes.remove(&ProbeLabels {
                cluster: cluster.clone(),
                member: member.clone(),
                result,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use prometheus_client::encoding::text::encode;

    use super::super::snapshot::{NoLeader, SourceStatus};
    use super::*;

    #[test]
    fn tasks_that_end_later_than_their_cluster_leave_nothing() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let has_series = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            text.contains("cluster=\"main\"")
        };
        let tasks = metrics.of_tasks();
        let write = |tasks: &Metrics| {
            tasks.armed("main", true);
            tasks.polled("main", ProbeResult::Success);
            tasks.looked("main", ProbeResult::Success);
            tasks.looked_up("main", LookUpResult::Found);
            tasks.watched("main", true);
            tasks.checked("main", ProbeResult::Success);
        };
        write(&tasks);
        assert!(has_series());
        tasks.close();
        metrics.forget(&Snapshot {
            cluster: "main".into(),
            version: 0,
            members: Vec::new(),
            leader: Leader::None(NoLeader::NotYetKnown),
            source: SourceStatus {
                reachable: true,
                error: None,
                disagreement: None,
            },
            system_identifier: None,
            paused: false,
            hears: true,
            patience: None,
            switchover_requested: false,
        });
        assert!(!has_series());
        write(&tasks);
        assert!(!has_series(), "another thread was later");
        // A cluster of the same name that comes again.
        write(&metrics.of_tasks());
        assert!(has_series());
    }
}
