//! What a router says about itself, in a few questions.

use serde_json::Value;

use crate::admin::{ClusterSummary, HoldView, MemberView, PoolView, RouteView, RouterView};
use crate::cli::administer::understood;
use crate::cli::remote::{Remote, Router, encoded};

/// Events that are kept of what the router answers.
const EVENTS: usize = 200;

pub(in crate::cli) struct Seen {
    pub(in crate::cli) router: RouterView,
    pub(in crate::cli) clusters: Vec<ClusterSeen>,
    pub(in crate::cli) routes: Vec<RouteView>,
    pub(in crate::cli) pools: Vec<PoolView>,
    pub(in crate::cli) holds: Vec<HoldView>,
    /// The newest, the oldest of them first.
    pub(in crate::cli) events: Vec<Value>,
}

pub(in crate::cli) struct ClusterSeen {
    pub(in crate::cli) about: ClusterSummary,
    pub(in crate::cli) members: Vec<MemberView>,
}

impl Seen {
    /// # Errors
    /// The router does not answer, or has no such cluster; in words.
    pub(in crate::cli) fn ask(router: &Router, remote: &Remote) -> Result<Self, String> {
        let about: RouterView = understood(&router.look("/api/v1/router")?)?;
        let mut summaries: Vec<ClusterSummary> = understood(&router.look("/api/v1/clusters")?)?;
        summaries.retain(|cluster| {
            remote
                .cluster
                .as_ref()
                .is_none_or(|wanted| *wanted == cluster.name)
        });
        let mut clusters = Vec::new();
        for about in summaries {
            let path = format!("/api/v1/members?cluster={}", encoded(&about.name));
            let members = understood(&router.look(&path)?)?;
            clusters.push(ClusterSeen { about, members });
        }
        let query = remote.query(&[]);
        let look = |path: &str| router.look(&format!("{path}{query}"));
        let routes = understood(&look("/api/v1/routes")?)?;
        let pools = understood(&look("/api/v1/pools")?)?;
        // A router of an older release does not have them.
        let holds = look("/api/v1/holds")
            .and_then(|holds| understood(&holds))
            .unwrap_or_default();
        let mut events = match look("/api/v1/events")? {
            Value::Array(events) => events,
            _ => Vec::new(),
        };
        if let Some(wanted) = &remote.cluster {
            events.retain(|event| event["cluster"].is_null() || event["cluster"] == wanted.as_str());
        }
        events.drain(..events.len().saturating_sub(EVENTS));
        Ok(Self {
            router: about,
            clusters,
            routes,
            pools,
            holds,
            events,
        })
    }

    pub(in crate::cli) fn members(&self) -> impl Iterator<Item = &MemberView> {
        self.clusters.iter().flat_map(|cluster| &cluster.members)
    }

    /// Since when the member of this cluster is the leader, in milliseconds since 1970, as far as
    /// the router's events go back.
    pub(in crate::cli) fn leader_since(&self, cluster: &str, leader: &str) -> Option<u64> {
        let changes = self.events.iter().rev();
        let mut changes =
            changes.filter(|event| event["cluster"] == cluster && event["event"] == "leader_changed");
        let newest = changes.next()?;
        (newest["member"] == leader).then(|| newest["time_ms"].as_u64())?
    }
}
