//! What sessions have moved, by route and member: totals of the metrics, and means of the history.

use std::collections::BTreeMap;

use super::handles::Handles;
use super::history::{About, samples};
use super::metrics;
use super::operations::Gathered;
use super::views::{StatView, TrafficView};

/// Points of the history.
const MINUTE: usize = 6;
const FIVE_MINUTES: usize = 30;

/// A row for each route, and one for each member that has sessions of it, or has had. Counters are
/// those of `/metrics`, so they include earlier processes as those do.
pub(super) async fn stats(handles: &Handles) -> Gathered<Vec<StatView>> {
    let missing = handles.operations.refresh().await;
    let text = metrics::exposition(&handles.registry).unwrap_or_default();
    let counted = Counted::of(&text);
    let mut value = Vec::new();
    for view in &handles.clusters {
        for route in view.routes() {
            let name = &*route.name;
            value.push(StatView {
                cluster: view.name.to_string(),
                route: name.to_owned(),
                member: None,
                sessions: handles.operations.sessions_of(name),
                connects_failed: counted.of_members(name).map(|(_, on)| on.connects_failed).sum(),
                traffic: Some(traffic(handles, name, counted.routes.get(name))),
            });
            value.extend(counted.of_members(name).map(|(member, on)| StatView {
                cluster: view.name.to_string(),
                route: name.to_owned(),
                member: Some(member.to_owned()),
                sessions: usize::try_from(on.sessions).unwrap_or(usize::MAX),
                connects_failed: on.connects_failed,
                traffic: None,
            }));
        }
    }
    Gathered { value, missing }
}

fn traffic(handles: &Handles, route: &str, counted: Option<&OfRoute>) -> TrafficView {
    let mean = |series: &str, points| handles.history.mean(About::Route(route), series, points);
    let in_minute = |series: &str| mean(series, MINUTE).map(|rate| rate * 60.0);
    let rate = |series: &str| mean(series, FIVE_MINUTES);
    let both = |one: Option<f64>, other: Option<f64>| match (one, other) {
        (None, None) => None,
        (one, other) => Some(one.unwrap_or_default() + other.unwrap_or_default()),
    };
    let counted = counted.copied().unwrap_or_default();
    TrafficView {
        transactions: counted.transactions,
        bytes_up: counted.bytes_up,
        bytes_down: counted.bytes_down,
        waits: counted.waits,
        server_errors: counted.server_errors,
        router_errors: counted.router_errors,
        refused: counted.refused,
        sessions_ended: counted.sessions_ended,
        transactions_per_min: in_minute("transactions"),
        bytes_up_per_min: in_minute("bytes_up"),
        bytes_down_per_min: in_minute("bytes_down"),
        waits_per_min: in_minute("waits"),
        errors_per_min: both(in_minute("server_errors"), in_minute("router_errors")),
        transactions_per_s: rate("transactions"),
        bytes_up_per_s: rate("bytes_up"),
        bytes_down_per_s: rate("bytes_down"),
        errors_per_s: both(rate("server_errors"), rate("router_errors")),
        transaction_ms: mean("transaction_ms", FIVE_MINUTES),
        wait_ms: mean("wait_ms", FIVE_MINUTES),
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct OfRoute {
    transactions: u64,
    bytes_up: u64,
    bytes_down: u64,
    waits: u64,
    server_errors: u64,
    router_errors: u64,
    refused: u64,
    sessions_ended: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct OnMember {
    sessions: u64,
    connects_failed: u64,
}

/// Sums of the metrics' samples.
#[derive(Debug, Default)]
struct Counted {
    routes: BTreeMap<String, OfRoute>,
    /// By route and member.
    members: BTreeMap<(String, String), OnMember>,
}

impl Counted {
    fn of(metrics: &str) -> Self {
        let mut counted = Self::default();
        for sample in samples(metrics) {
            let Some(route) = sample.label("route") else {
                continue;
            };
            let count = whole(sample.value);
            if matches!(
                sample.name,
                "trunkline_sessions" | "trunkline_pool_connects_failed_total"
            ) {
                let member = sample.label("member").unwrap_or_default();
                if !member.is_empty() {
                    let key = (route.into_owned(), member.into_owned());
                    let on = counted.members.entry(key).or_default();
                    match sample.name {
                        "trunkline_sessions" => on.sessions += count,
                        _ => on.connects_failed += count,
                    }
                }
                continue;
            }
            let is_of_server = || sample.label("origin").is_some_and(|origin| origin == "server");
            let mut add = |to: fn(&mut OfRoute) -> &mut u64| {
                *to(counted.routes.entry(route.to_string()).or_default()) += count;
            };
            match sample.name {
                "trunkline_route_transactions_total" => add(|of| &mut of.transactions),
                "trunkline_route_bytes_received_total" => add(|of| &mut of.bytes_up),
                "trunkline_route_bytes_sent_total" => add(|of| &mut of.bytes_down),
                "trunkline_queue_entered_total" => add(|of| &mut of.waits),
                "trunkline_errors_total" if is_of_server() => add(|of| &mut of.server_errors),
                "trunkline_errors_total" => add(|of| &mut of.router_errors),
                "trunkline_queue_full_total"
                | "trunkline_queue_timeouts_total"
                | "trunkline_hold_full_total"
                | "trunkline_hold_timeouts_total" => add(|of| &mut of.refused),
                "trunkline_sessions_ended_total" => add(|of| &mut of.sessions_ended),
                _ => {}
            }
        }
        counted
    }

    fn of_members(&self, route: &str) -> impl Iterator<Item = (&str, OnMember)> {
        let all = self.members.iter().filter(move |((of, _), _)| of == route);
        all.map(|((_, member), on)| (member.as_str(), *on))
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts are whole, and none is negative"
)]
fn whole(value: f64) -> u64 {
    value.max(0.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed_by_route_and_member() {
        let counted = Counted::of(
            "trunkline_route_transactions_total{route=\"rw\"} 7\n\
             trunkline_route_bytes_received_total{route=\"rw\"} 100\n\
             trunkline_route_bytes_sent_total{route=\"rw\"} 200\n\
             trunkline_queue_entered_total{route=\"rw\"} 3\n\
             trunkline_queue_full_total{route=\"rw\"} 1\n\
             trunkline_hold_timeouts_total{route=\"rw\"} 2\n\
             trunkline_errors_total{route=\"rw\",origin=\"server\",class=\"23\"} 4\n\
             trunkline_errors_total{route=\"rw\",origin=\"server\",class=\"42\"} 5\n\
             trunkline_errors_total{route=\"rw\",origin=\"router\",class=\"57\"} 6\n\
             trunkline_sessions_ended_total{route=\"rw\",cause=\"shutdown\"} 8\n\
             trunkline_sessions_ended_total{route=\"ro\",cause=\"shutdown\"} 9\n\
             trunkline_sessions{route=\"rw\",member=\"db1\"} 2\n\
             trunkline_sessions{route=\"rw\",member=\"\"} 5\n\
             trunkline_pool_connects_failed_total{route=\"rw\",member=\"db2\"} 1\n\
             trunkline_transactions_total 1000\n# EOF\n",
        );
        let rw = &counted.routes["rw"];
        assert_eq!((rw.transactions, rw.bytes_up, rw.bytes_down), (7, 100, 200));
        assert_eq!((rw.waits, rw.refused), (3, 3));
        assert_eq!((rw.server_errors, rw.router_errors), (9, 6));
        assert_eq!((rw.sessions_ended, counted.routes["ro"].sessions_ended), (8, 9));
        let members: Vec<_> = counted
            .of_members("rw")
            .map(|(member, on)| (member, on.sessions, on.connects_failed))
            .collect();
        assert_eq!(members, [("db1", 2, 0), ("db2", 0, 1)]);
    }
}
