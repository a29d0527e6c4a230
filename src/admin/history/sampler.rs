//! Takes the points, on the thread of the administration.

use std::time::SystemTime;

use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::super::handles::{ClusterView, Handles};
use super::super::metrics;
use super::reading::Readings;
use super::series::Asked;
use super::{INTERVAL, MemberKey};

/// Adds a point to the history of the newest of `handles` every [`INTERVAL`], until `stop`.
pub(in crate::admin) async fn sample(handles: watch::Receiver<Handles>, stop: CancellationToken) {
    let mut due = interval(INTERVAL);
    // A point too late is one; no points follow each other at once.
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = due.tick() => {}
        }
        let now = handles.borrow().clone();
        if let Some(readings) = readings(&now).await {
            now.history.add(readings, SystemTime::now());
        }
    }
}

/// `None`: the metrics could not be written.
async fn readings(handles: &Handles) -> Option<Readings> {
    // What processes that do not answer said last counts on.
    drop(handles.operations.refresh().await);
    let mut readings = Readings::of(&metrics::exposition(&handles.registry).ok()?);
    let operations = &handles.operations;
    readings.router_asked(Asked::Sessions, operations.session_count());
    let holds = handles.holding.holds();
    readings.router_asked(Asked::Held, holds.iter().map(|hold| hold.clients).sum());
    let routes: Vec<&str> = handles
        .clusters
        .iter()
        .flat_map(ClusterView::routes)
        .map(|route| &*route.name)
        .collect();
    for route in &routes {
        let held = holds
            .iter()
            .filter(|hold| hold.route == *route)
            .map(|hold| hold.clients);
        readings.route_asked(route, Asked::Held, held.sum());
        readings.route_asked(route, Asked::Sessions, operations.sessions_of(route));
    }
    let mut members: Vec<MemberKey> = Vec::new();
    let mut connections = 0;
    for view in &handles.clusters {
        let snapshot = view.snapshot.borrow().clone();
        for member in &snapshot.members {
            let load = operations.load_of(&view.name, &member.name);
            let key = (view.name.to_string(), member.name.to_string());
            readings.member_asked(key.clone(), Asked::Sessions, load.sessions);
            readings.member_asked(key.clone(), Asked::ServerConnections, load.connections);
            connections += load.connections;
            members.push(key);
        }
    }
    readings.router_asked(Asked::ServerConnections, connections);
    readings.keep_only(&routes, &members);
    Some(readings)
}
