//! The limits of the router, and how much of each is used.

use std::num::NonZeroU32;
use std::sync::Arc;

use crate::admin::LimitView;
use crate::config::Config;
use crate::session::Shared;
use crate::session::arrival::admission::Usage;
use crate::session::listener_settings::ListenerSettings;
use crate::session::occupancy::GateLoad;
use crate::wire::text::Escaped;

pub(super) fn all(config: &Config, open: &[Arc<ListenerSettings>], shared: &Shared) -> Vec<LimitView> {
    let mut all = of_router(config, shared);
    for listener in &config.listeners {
        let settings = open.iter().find(|settings| settings.name == listener.name);
        let scope = format!("listener {}", listener.name);
        let place = config
            .listeners
            .iter()
            .position(|other| other.name == listener.name);
        let key = |key: &str| format!("listeners[{}].{key}", place.unwrap_or_default());
        let clients = LimitView::new("clients", scope.clone(), "sessions")
            .key(key("max_clients"))
            .most(listener.max_clients);
        all.push(match settings {
            Some(settings) => clients.used(settings.sessions()),
            None => clients,
        });
        all.push(rate(
            scope,
            key("connection_rate"),
            listener.entry.connection_rate,
        ));
    }
    all.extend(of_members(config, shared));
    for load in shared.occupancy.gate_loads() {
        all.extend(of_route(config, &load));
    }
    all.extend(of_pools(config, shared));
    if let Some(peers) = shared.peers.load_full() {
        let (used, most) = peers.conversations();
        let conversations = LimitView::new("conversations of peers", "router", "connections");
        all.push(conversations.exactly(most).used(used));
    }
    all
}

fn of_router(config: &Config, shared: &Shared) -> Vec<LimitView> {
    let usage = shared.admission.usage();
    let of = |name: &str, unit: &str, key: &str, usage: Usage| {
        LimitView::new(name, "router", unit)
            .key(key)
            .most(usage.most)
            .used(usage.used)
    };
    let pending = "limits.max_pending_logins";
    let clients = "limits.max_clients";
    let mut all = vec![
        of("clients", "sessions", clients, usage.clients),
        of("pending logins", "logins", pending, usage.pending_logins),
        of("first packets", "connections", pending, usage.reserve),
        of("waiting for a login", "connections", pending, usage.queued),
        of("delayed logins", "logins", pending, usage.delayed_logins),
        of("cancel requests", "requests", clients, usage.cancels[0]),
        of("sealed cancel requests", "requests", clients, usage.cancels[1]),
    ];
    let limits = &config.limits;
    let each = [
        ("user", "limits.per_user", limits.per_user),
        ("database", "limits.per_database", limits.per_database),
        ("address", "limits.per_address", limits.per_address),
    ];
    for ((what, key, most), busiest) in each.into_iter().zip(shared.quota.most()) {
        let (scope, used) = match busiest {
            Some((name, used)) => (format!("{what} {name}, which has the most"), used),
            None => (format!("each {what}"), 0),
        };
        let view = LimitView::new(&format!("clients of one {what}"), scope, "sessions");
        all.push(view.key(key).most(most).used(used));
    }
    let key = "limits.connection_rate".to_owned();
    all.push(rate("router".to_owned(), key, limits.connection_rate));
    all
}

fn rate(scope: String, key: String, per_second: Option<NonZeroU32>) -> LimitView {
    let rate = LimitView::new("new sessions", scope, "sessions/s").key(key);
    rate.most(per_second.map_or(0, NonZeroU32::get))
}

/// Of the members that have sessions, or that the cluster names.
fn of_members(config: &Config, shared: &Shared) -> Vec<LimitView> {
    let mut loads = shared.occupancy.loads();
    loads.sort_unstable();
    let view = |((cluster, member), used): ((Arc<str>, _), usize)| {
        let most = config.clusters.get(&*cluster)?.max_connections;
        let scope = format!("member {cluster}/{member}");
        let view = LimitView::new("server connections", scope, "connections");
        let key = format!("clusters.{cluster}.server.max_connections");
        Some(view.key(key).most(most).used(used))
    };
    loads.into_iter().filter_map(view).collect()
}

fn of_route(config: &Config, load: &GateLoad) -> Vec<LimitView> {
    let route = &load.route;
    let scope = format!("route {}", route.name);
    let key = |key: &str| format!("routes.{}.{key}", route.name);
    let view = |name: &str, unit: &str| LimitView::new(name, scope.clone(), unit);
    let mut all = Vec::new();
    let max_connections = config
        .clusters
        .get(&*route.cluster)
        .map_or(0, |cluster| cluster.max_connections);
    if max_connections > 0 || route.pool.is_some() {
        let waiting = view("waiting for a server connection", "sessions");
        all.push(
            waiting
                .key(key("max_queue"))
                .exactly(route.queue.most)
                .used(load.waiting),
        );
    }
    if route.holds_clients() {
        let held = view("held clients", "clients").key(key("hold.max_clients"));
        let held = match route.hold.max_clients {
            Some(most) => held.exactly(most),
            None => held,
        };
        all.push(held.used(load.held));
        let bytes = view("held requests", "bytes").key(key("hold.max_bytes"));
        all.push(bytes.exactly(route.hold.max_bytes).used(load.held_bytes));
    }
    all
}

fn of_pools(config: &Config, shared: &Shared) -> Vec<LimitView> {
    let mut all = Vec::new();
    for pool in shared.pools.views() {
        let name = &pool.name;
        let whose = format!(
            "pool {} {}@{}",
            name.route,
            Escaped(&name.user),
            Escaped(&name.database)
        );
        let key = |key: &str| format!("routes.{}.{key}", name.route);
        // Connections of tracked sessions have the limit of their cluster, which stands there.
        let is_pool = config
            .routes
            .get(&*name.route)
            .is_none_or(|route| route.pool.is_some());
        for member in pool.members.iter().filter(|_| is_pool) {
            let used = member.idle + member.leased + member.opening;
            let scope = format!("{whose} on {}", member.member);
            let view = LimitView::new("pooled connections", scope, "connections");
            let view = view.key(key("pool.max_connections")).used(used);
            all.push(match pool.max_connections {
                Some(most) => view.exactly(most + pool.reserve),
                None => view,
            });
        }
        let most = config
            .routes
            .get(&*name.route)
            .map_or(0, |route| route.queue.most);
        let waiting = LimitView::new("waiting for a pooled connection", whose, "sessions");
        all.push(waiting.key(key("max_queue")).exactly(most).used(pool.waiting));
    }
    all
}
