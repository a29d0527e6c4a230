//! Values that several surfaces show, put together from what the router knows.

use std::cell::LazyCell;
use std::time::{Duration, SystemTime};

use super::handles::{ClusterView, Handles};
use super::health::{self, Facts, HealthView};
use super::holding::SwitchoverStatus;
use super::operations::{Gathered, Operations};
use super::process_limits;
use super::views::{
    CertificateView, ClusterSummary, HoldView, LimitView, MemberView, PoolView, RouteView, RouterView,
    ServerConnectionView,
};
use crate::cluster::snapshot::OrderedBy;

/// Those of each cluster in the order of the configuration, then disabled ones that no listener
/// has. `held` are the routes that hold their clients. The numbers of sessions are by the last
/// [`Operations::refresh`].
pub(super) fn routes(handles: &Handles, held: &[HoldView]) -> Vec<RouteView> {
    let disabled = handles.disabled_routes.names();
    let sessions = |route: &str| handles.operations.sessions_of(route);
    let mut all: Vec<RouteView> = Vec::new();
    for view in &handles.clusters {
        for route in view.routes() {
            let is_disabled = disabled.contains(&*route.name);
            all.push(RouteView::new(view, route, is_disabled, sessions(&route.name)));
        }
    }
    for name in &*disabled {
        if !all.iter().any(|route| route.name == *name) {
            all.push(RouteView::absent(name, true, sessions(name)));
        }
    }
    let paused = handles.holding.paused();
    for route in &mut all {
        let cluster = route.cluster.as_deref().unwrap_or_default();
        let is_here = |hold: &&HoldView| hold.route == route.name && hold.cluster == cluster;
        route.hold = held.iter().find(is_here).cloned();
        route.paused_s = paused.get(&route.name).map(Duration::as_secs);
    }
    all
}

/// `held` as for [`routes`].
pub(super) fn router(handles: &Handles, held: Vec<HoldView>) -> RouterView {
    RouterView::new(
        handles.readiness.phase(),
        handles.operations.session_count(),
        &handles.disabled_routes.names(),
        held,
    )
}

pub(super) fn members(handles: &Handles, view: &ClusterView) -> Vec<MemberView> {
    let snapshot = view.snapshot.borrow().clone();
    let shown = snapshot.members.iter().map(|member| {
        let load = handles.operations.load_of(&view.name, &member.name);
        MemberView::new(view, &snapshot, member, load)
    });
    shown.collect()
}

/// The switchover that runs, or the last one. Only with the token it says who has ordered it.
pub(super) fn switchover(handles: &Handles, has_token: bool) -> Option<SwitchoverStatus> {
    let mut status = handles.holding.switchover();
    if let Some(status) = status.as_mut().filter(|_| !has_token) {
        status.run_by = status.run_by.take().and_then(OrderedBy::without_operator);
    }
    status
}

/// Everything that the verdict depends on. The numbers of sessions are by the last
/// [`Operations::refresh`].
pub(super) struct Shown {
    pub(super) router: RouterView,
    pub(super) clusters: Vec<ClusterSummary>,
    pub(super) members: Vec<MemberView>,
    pub(super) routes: Vec<RouteView>,
    pub(super) switchover: Option<SwitchoverStatus>,
}

impl Shown {
    /// Without the token nobody learns which operator has ordered something.
    pub(super) fn of(handles: &Handles, has_token: bool) -> Self {
        let mut holds = handles.holding.holds();
        if !has_token {
            holds = holds.into_iter().map(HoldView::without_operator).collect();
        }
        let views = || handles.clusters.iter();
        Self {
            routes: routes(handles, &holds),
            router: router(handles, holds),
            clusters: views().map(ClusterSummary::new).collect(),
            members: views().flat_map(|view| members(handles, view)).collect(),
            switchover: switchover(handles, has_token),
        }
    }

    /// Of one cluster, or of all.
    pub(super) fn health(
        &self,
        handles: &Handles,
        cluster: Option<&str>,
        pools: &[PoolView],
        certificates: &[CertificateView],
    ) -> HealthView {
        let is_asked = |name: &str| cluster.is_none_or(|wanted| wanted == name);
        let standing = handles.events.standing();
        let facts = Facts {
            router: &self.router,
            clusters: self
                .clusters
                .iter()
                .filter(|about| is_asked(&about.name))
                .collect(),
            members: self
                .members
                .iter()
                .filter(|member| is_asked(&member.cluster))
                .collect(),
            routes: self
                .routes
                .iter()
                .filter(|route| route.cluster.as_deref().is_none_or(is_asked))
                .collect(),
            pools: pools.iter().filter(|pool| is_asked(&pool.cluster)).collect(),
            switchover: self.switchover.as_ref(),
            certificates,
            standing: Some(&standing),
            now: SystemTime::now(),
        };
        let events = LazyCell::new(|| handles.events.since(0));
        HealthView::of(&facts, &|subject| health::since(&events, subject))
    }
}

/// Those of the router, then those of the process and of this room.
pub(super) fn limits(handles: &Handles) -> Vec<LimitView> {
    let mut all = handles.inventory.limits();
    all.extend(process_limits::limits(handles));
    all
}

/// Those of sessions, then the idle ones of pools.
pub(super) async fn server_connections(operations: &dyn Operations) -> Gathered<Vec<ServerConnectionView>> {
    // Pools first: a connection that is leased in between is listed twice rather than not at all.
    let pools = operations.pools().await;
    let sessions = operations.sessions().await;
    let mut missing = pools.missing;
    // Of one process they say the same.
    missing.extend(sessions.missing);
    missing.sort_unstable();
    missing.dedup();
    let idle = pools.value.iter().flat_map(ServerConnectionView::idle_in);
    let held = sessions
        .value
        .into_iter()
        .filter_map(ServerConnectionView::of_session);
    Gathered {
        value: held.chain(idle).collect(),
        missing,
    }
}
