//! Databases, users, and how the router is set. Names, order and types of the columns are
//! PgBouncer's.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::FutureExt;

use super::super::views::View;
use super::tables::{count, flag, named, of};
use super::tally::Seen;
use crate::admin::handles::{ClusterView, Handles, Phase};
use crate::admin::operations::Gathered;
use crate::admin::relation::{Kind, Row, Value};
use crate::admin::views::{RouteView, SettingView};
use Kind::{Int4, Text};

pub(super) const DATABASES: View = View::new(
    "DATABASES",
    "The databases that clients or pools use now, as PgBouncer shows them",
    &[
        of("name", Text),
        of("host", Text),
        of("port", Int4),
        of("database", Text),
        of("force_user", Text),
        of("pool_size", Int4),
        of("min_pool_size", Int4),
        of("reserve_pool_size", Int4),
        of("server_lifetime", Int4),
        of("pool_mode", Text),
        of("load_balance_hosts", Text),
        of("max_connections", Int4),
        of("current_connections", Int4),
        of("max_client_connections", Int4),
        of("current_client_connections", Int4),
        of("paused", Int4),
        of("disabled", Int4),
    ],
    |handles| {
        async move {
            let seen = Seen::look(handles).await;
            let rows = databases(handles, &seen);
            seen.gathered(rows)
        }
        .boxed()
    },
);

fn databases(handles: &Handles, seen: &Seen) -> Vec<Row> {
    let mut routes: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for session in &seen.sessions {
        let of = routes.entry(&session.database).or_default();
        of.insert(session.route.clone());
    }
    for pool in &seen.pools {
        routes
            .entry(&pool.database)
            .or_default()
            .insert(pool.route.clone());
    }
    let connections = seen.server_connections();
    let most = limit(handles, "limits.per_database");
    let row = |(name, routes): (&str, BTreeSet<String>)| {
        let pools = seen.pools.iter().filter(|pool| pool.database == name);
        let size = pools.clone().filter_map(|pool| pool.max_connections).max();
        let reserve = pools.map(|pool| pool.reserve).max();
        let known = || seen.routes.iter().filter(|route| routes.contains(&route.name));
        let has = |is: fn(&RouteView) -> bool| known().count() > 0 && known().all(is);
        vec![
            Value::text(name),
            // Of several members.
            Value::Null,
            Value::Null,
            Value::text(name),
            Value::Null,
            // Of the largest; 0 without a pool.
            count(size.unwrap_or_default()),
            Value::Null,
            count(reserve.unwrap_or_default()),
            Value::Null,
            Value::or_null(seen.pool_mode(&routes), Value::text),
            Value::Null,
            // There is no such limit.
            count(0),
            count(connections.iter().filter(|one| one.database == name).count()),
            count(most),
            count(
                seen.sessions
                    .iter()
                    .filter(|session| session.database == name)
                    .count(),
            ),
            flag(has(|route| route.paused_s.is_some())),
            flag(has(|route| route.admin == "disabled")),
        ]
    };
    routes.into_iter().map(row).collect()
}

/// The number under a key; 0 if there is no limit.
fn limit(handles: &Handles, key: &str) -> u64 {
    let limits = handles.inventory.limits();
    let found = limits.iter().find(|limit| limit.key.as_deref() == Some(key));
    found.and_then(|limit| limit.limit).unwrap_or_default()
}

pub(super) const USERS: View = View::new(
    "USERS",
    "The users that have sessions now, as PgBouncer shows them",
    &[
        of("name", Text),
        of("pool_size", Text),
        of("reserve_pool_size", Text),
        of("pool_mode", Text),
        of("max_user_connections", Int4),
        of("current_connections", Int4),
        of("max_user_client_connections", Int4),
        of("current_client_connections", Int4),
    ],
    |handles| {
        async move {
            let seen = Seen::look(handles).await;
            let most = limit(handles, "limits.per_user");
            let names: BTreeSet<&str> = seen.sessions.iter().map(|session| &*session.user).collect();
            let connections = seen.server_connections();
            let row = |name: &str| {
                vec![
                    Value::text(name),
                    Value::text(""),
                    Value::text(""),
                    Value::Null,
                    // There is no such limit.
                    count(0),
                    count(connections.iter().filter(|one| one.user == name).count()),
                    count(most),
                    count(
                        seen.sessions
                            .iter()
                            .filter(|session| session.user == name)
                            .count(),
                    ),
                ]
            };
            let rows = names.into_iter().map(row).collect();
            seen.gathered(rows)
        }
        .boxed()
    },
);

pub(super) const LISTS: View = View::new(
    "LISTS",
    "How many things of each kind there are, as PgBouncer shows it",
    &[of("list", Text), of("items", Int4)],
    |handles| {
        async move {
            let seen = Seen::look(handles).await;
            let pools = seen.pools();
            let names = |of: fn(&(String, String)) -> &String| {
                let names: BTreeSet<&String> = pools.keys().map(of).collect();
                count(names.len())
            };
            let logins = handles.inventory.limits();
            let logins = logins.iter().find(|limit| limit.name == "pending logins");
            let peers = handles.inventory.peer_count();
            let rows = named([
                ("databases", names(|(database, _)| database)),
                ("users", names(|(_, user)| user)),
                ("peers", count(peers)),
                ("pools", count(pools.len())),
                ("peer_pools", count(0)),
                // No memory is kept for clients and connections that have left.
                ("free_clients", count(0)),
                ("used_clients", count(seen.sessions.len())),
                (
                    "login_clients",
                    count(logins.and_then(|limit| limit.used).unwrap_or_default()),
                ),
                ("free_servers", count(0)),
                ("used_servers", count(seen.server_connections().len())),
                // Nothing of the name service is kept.
                ("dns_names", count(0)),
                ("dns_zones", count(0)),
                ("dns_pending", count(0)),
            ]);
            seen.gathered(rows)
        }
        .boxed()
    },
);

/// PgBouncer's names for limits that mean the same here, 0 being no limit for both.
const SAME: [(&str, &str); 2] = [
    ("limits.per_database", "max_db_client_connections"),
    ("limits.per_user", "max_user_client_connections"),
];

pub(super) const CONFIG: View = View::new(
    "CONFIG",
    "The router's own keys in PgBouncer's columns, and those of PgBouncer's that mean the same",
    &[
        of("key", Text),
        of("value", Text),
        of("default", Text),
        of("changeable", Text),
    ],
    |handles| {
        // It is always so here; check_postgres takes it as the sign of an answer.
        let always = ["log_pooler_errors", "1", "1", "no"];
        let mut rows = vec![always.map(Value::text).to_vec()];
        for setting in handles.inventory.settings() {
            let theirs = SAME.iter().find(|(ours, _)| *ours == setting.key);
            // For PgBouncer 0 is no clients at all.
            let is_most = setting.key == "limits.max_clients" && setting.value.as_deref() != Some("0");
            if is_most {
                rows.push(config("max_client_conn", &setting));
            }
            rows.extend(theirs.map(|(_, theirs)| config(theirs, &setting)));
            rows.push(config(&setting.key, &setting));
        }
        async { Gathered::whole(rows) }.boxed()
    },
);

fn config(key: &str, setting: &SettingView) -> Row {
    const RESTART: [&str; 5] = [
        "workers",
        "peers.secret_file",
        "control_socket",
        "state_file",
        "http.agent_check",
    ];
    let text = |text: &Option<String>| Value::or_null(text.clone(), Value::Text);
    let needs_restart = RESTART.iter().any(|restart| setting.key.starts_with(restart));
    vec![
        Value::text(key),
        text(&setting.value),
        text(&setting.default),
        Value::text(if needs_restart { "no" } else { "yes" }),
    ]
}

pub(super) const STATE: View = View::new(
    "STATE",
    "Whether the router accepts clients, and whether all routes are paused",
    &[of("key", Text), of("value", Text)],
    |handles| {
        let word = |is: bool| Value::text(if is { "yes" } else { "no" });
        let is_active = matches!(handles.readiness.phase(), Phase::Accepting | Phase::Drained);
        let paused = handles.holding.paused();
        let mut routes = handles.clusters.iter().flat_map(ClusterView::routes);
        let is_paused = !paused.is_empty() && routes.all(|route| paused.contains_key(&*route.name));
        let rows = named([("active", word(is_active)), ("paused", word(is_paused))]);
        async { Gathered::whole(rows) }.boxed()
    },
);
