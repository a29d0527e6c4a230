//! A cluster whose snapshots a test publishes, and of whose sessions it hears. Its tasks never run.
//! Measurements of pools have one too.

#![cfg_attr(not(test), allow(dead_code, reason = "measurements change nothing in it"))]

use std::path::Path;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::server_identity::{AddressCheck, ServerIdentity};
use super::snapshot::Snapshot;
use super::state::Observation;
use super::{
    ClusterHandle, Evidence, LagLimits, MAX_EVIDENCE, Metrics, PreparedCluster, Reporting, Shared, prepare,
};
use crate::config;
use crate::events::Events;

/// The cluster's other end.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) cluster: ClusterHandle,
    reports: mpsc::Receiver<Observation>,
}

impl Script {
    /// The first cluster of this configuration.
    pub(crate) fn new(text: &str, snapshot: Arc<Snapshot>) -> Self {
        // It is never driven, and what is spawned there stays.
        static RUNTIME: OnceLock<Runtime> = OnceLock::new();
        let runtime = RUNTIME.get_or_init(|| {
            let runtime = Builder::new_current_thread().enable_all().build();
            runtime.expect("descriptors are left")
        });
        let _entered = runtime.enter();
        let config = config::parse(Path::new("trunkline.yaml"), text).expect("it is well formed");
        let cluster = config.clusters.values().next().expect("there is one");
        let reporting = Reporting {
            metrics: Arc::new(Metrics::register(
                &mut prometheus_client::registry::Registry::default(),
            )),
            events: Events::new(),
        };
        let prepared = prepare(
            Arc::clone(cluster),
            &config.auth,
            LagLimits::default(),
            reporting.clone(),
            &CancellationToken::new(),
            &TaskTracker::new(),
        );
        let PreparedCluster { mut tasks } = prepared.expect("nothing is opened");
        let (evidence, reports) = mpsc::channel(MAX_EVIDENCE);
        tasks.evidence = evidence;
        for member in &snapshot.members {
            tasks.checks.begin(&member.name);
        }
        let (snapshots, first) = watch::channel(snapshot);
        let shared = Shared {
            tasks: ArcSwap::from_pointee(tasks),
            snapshots: Arc::new(snapshots),
            first,
            reporting,
        };
        Self {
            cluster: ClusterHandle {
                shared: Arc::new(shared),
            },
            reports,
        }
    }

    pub(crate) fn publish(&self, snapshot: Arc<Snapshot>) {
        self.cluster.shared.snapshots.send_replace(snapshot);
    }

    /// The prober of this member has checked its address over a connection that it begins now.
    pub(crate) fn checked(check: &AddressCheck, identity: Option<ServerIdentity>) {
        check.publish(Instant::now(), identity);
    }

    /// What sessions have reported since the last call.
    pub(crate) fn reports(&mut self) -> Vec<(String, Evidence)> {
        let mut reports = Vec::new();
        while let Ok(observation) = self.reports.try_recv() {
            if let Observation::Evidence { member, evidence, .. } = observation {
                reports.push((member.to_string(), evidence));
            }
        }
        reports
    }
}
