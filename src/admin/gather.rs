//! Values that several surfaces show, put together from what the router knows.

use std::time::Duration;

use super::handles::Handles;
use super::operations::{Gathered, Operations};
use super::process_limits;
use super::views::{HoldView, LimitView, RouteView, ServerConnectionView};

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
