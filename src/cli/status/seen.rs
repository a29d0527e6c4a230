//! What a router says about itself, in a few questions.

use std::time::SystemTime;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::admin::{
    ClusterSummary, Facts, HealthView, HoldView, LeaderView, MemberView, PoolView, RouteView, RouterView,
};
use crate::cli::administer::understood;
use crate::cli::remote::{Fault, Remote, Router, encoded};

pub(in crate::cli) struct Seen {
    pub(in crate::cli) router: RouterView,
    pub(in crate::cli) clusters: Vec<ClusterSeen>,
    pub(in crate::cli) routes: Vec<RouteView>,
    pub(in crate::cli) pools: Vec<PoolView>,
    pub(in crate::cli) holds: Vec<HoldView>,
    /// Those that the router keeps, the oldest first.
    pub(in crate::cli) events: Vec<Value>,
    /// `None`: the router is of an older release.
    pub(in crate::cli) health: Option<HealthView>,
}

pub(in crate::cli) struct ClusterSeen {
    pub(in crate::cli) about: ClusterSummary,
    pub(in crate::cli) members: Vec<MemberView>,
}

/// When something began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) struct Since {
    /// Milliseconds since 1970.
    pub(in crate::cli) at_ms: u64,
    /// Otherwise it may have begun before the router saw it.
    pub(in crate::cli) is_exact: bool,
}

impl Seen {
    /// # Errors
    /// The router does not answer, or has no such cluster; in words.
    pub(in crate::cli) fn ask(router: &Router, remote: &Remote) -> Result<Self, Fault> {
        let about: RouterView = read(&router.look_closely("/api/v1/router")?)?;
        let mut summaries: Vec<ClusterSummary> = read(&router.look_closely("/api/v1/clusters")?)?;
        summaries.retain(|cluster| {
            remote
                .cluster
                .as_ref()
                .is_none_or(|wanted| *wanted == cluster.name)
        });
        let mut clusters = Vec::new();
        for about in summaries {
            let path = format!("/api/v1/members?cluster={}", encoded(&about.name));
            let members = read(&router.look_closely(&path)?)?;
            clusters.push(ClusterSeen { about, members });
        }
        let query = remote.query(&[]);
        let look = |path: &str| router.look_closely(&format!("{path}{query}"));
        let routes = read(&look("/api/v1/routes")?)?;
        let pools = read(&look("/api/v1/pools")?)?;
        // A router of an older release does not have them.
        let holds = look("/api/v1/holds")
            .and_then(|holds| read(&holds))
            .unwrap_or_default();
        let health = look("/api/v1/health").and_then(|health| read(&health)).ok();
        let mut events = match look("/api/v1/events")? {
            Value::Array(events) => events,
            _ => Vec::new(),
        };
        if let Some(wanted) = &remote.cluster {
            events.retain(|event| event["cluster"].is_null() || event["cluster"] == wanted.as_str());
        }
        Ok(Self {
            router: about,
            clusters,
            routes,
            pools,
            holds,
            events,
            health,
        })
    }

    /// As the router says it, or by the same rules.
    pub(in crate::cli) fn health(&self) -> HealthView {
        let by_views = || {
            let facts = Facts {
                router: &self.router,
                clusters: self.clusters.iter().map(|cluster| &cluster.about).collect(),
                members: self.members().collect(),
                routes: self.routes.iter().collect(),
                pools: self.pools.iter().collect(),
                switchover: None,
                certificates: &[],
                standing: None,
                now: SystemTime::now(),
            };
            HealthView::of(&facts, &|_| None)
        };
        self.health.clone().unwrap_or_else(by_views)
    }

    pub(in crate::cli) fn members(&self) -> impl Iterator<Item = &MemberView> {
        self.clusters.iter().flat_map(|cluster| &cluster.members)
    }

    /// Since when the member of this cluster leads on this timeline, as far as the router's events
    /// go back.
    pub(in crate::cli) fn leader_since(&self, cluster: &str, leader: &LeaderView) -> Option<Since> {
        let changes = self.events.iter().rev();
        let changes = changes.filter(|event| {
            event["cluster"] == cluster
                && (event["event"] == "leader_changed" || event["event"] == "leader_lost")
        });
        let mut since = None;
        for event in changes {
            let is_change = event["event"] == "leader_changed";
            let is_same =
                event["member"] == leader.member && (!is_change || event["timeline"] == leader.timeline);
            if !is_same {
                // Another one led before, so this one has become the leader since.
                return since.map(|at_ms| Since {
                    at_ms,
                    is_exact: true,
                });
            }
            if is_change {
                since = event["time_ms"].as_u64();
            }
        }
        since.map(|at_ms| Since {
            at_ms,
            is_exact: false,
        })
    }
}

fn read<T: DeserializeOwned>(answer: &Value) -> Result<T, Fault> {
    understood(answer).map_err(Fault::Refused)
}
