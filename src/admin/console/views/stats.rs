//! What sessions have moved, by route and member.

use futures_util::FutureExt;

use super::View;
use crate::admin::operations::Gathered;
use crate::admin::relation::{Kind, Row, Value, column};
use crate::admin::stats;
use crate::admin::views::{StatView, TrafficView};

pub(super) const STATS: View = View {
    name: "stats",
    about: "What sessions have moved by route, and who has them by member",
    columns: &[
        column("cluster", Kind::Text, "Of the route"),
        column("route", Kind::Text, "Its name"),
        column(
            "member",
            Kind::Text,
            "Null: all of the route; by member only sessions and connects_failed are known",
        ),
        column("sessions", Kind::Int8, "Now, of all processes"),
        column(
            "connects_failed",
            Kind::Int8,
            "Server connections of pools that could not be opened",
        ),
        column("transactions", Kind::Int8, "All that have ended"),
        column("bytes_up", Kind::Int8, "From clients"),
        column("bytes_down", Kind::Int8, "To clients"),
        column(
            "waits",
            Kind::Int8,
            "How often a session waited for a server connection",
        ),
        column("server_errors", Kind::Int8, "Errors of servers that clients got"),
        column(
            "router_errors",
            Kind::Int8,
            "Errors of the router that clients got",
        ),
        column(
            "refused",
            Kind::Int8,
            "Clients whose queue or hold was full, or that waited too long there",
        ),
        column("sessions_ended", Kind::Int8, "All that have ended"),
        column("transactions_per_min", Kind::Float8, "In the last minute"),
        column("bytes_up_per_min", Kind::Float8, "In the last minute"),
        column("bytes_down_per_min", Kind::Float8, "In the last minute"),
        column("waits_per_min", Kind::Float8, "In the last minute"),
        column(
            "errors_per_min",
            Kind::Float8,
            "In the last minute, of both kinds",
        ),
        column("transactions_per_s", Kind::Float8, "Mean of the last 5 minutes"),
        column("bytes_up_per_s", Kind::Float8, "Mean of the last 5 minutes"),
        column("bytes_down_per_s", Kind::Float8, "Mean of the last 5 minutes"),
        column("errors_per_s", Kind::Float8, "Mean of the last 5 minutes"),
        column(
            "transaction_ms",
            Kind::Float8,
            "How long one took, mean of the last 5 minutes",
        ),
        column(
            "wait_ms",
            Kind::Float8,
            "How long one took for a connection of a pool, mean of the last 5 minutes",
        ),
    ],
    rows: |handles| {
        async move {
            let Gathered { value, missing } = stats::stats(handles).await;
            let value = value.into_iter().map(stat).collect();
            Gathered { value, missing }
        }
        .boxed()
    },
};

fn stat(stat: StatView) -> Row {
    let traffic = stat.traffic.as_ref();
    let count = |of: fn(&TrafficView) -> u64| Value::or_null(traffic.map(of), Value::int);
    let mean = |of: fn(&TrafficView) -> Option<f64>| {
        // Three digits behind the point, as charts have them.
        let shown = |mean: f64| Value::Float((mean * 1e3).round() / 1e3);
        Value::or_null(traffic.and_then(of), shown)
    };
    vec![
        Value::Text(stat.cluster),
        Value::Text(stat.route),
        Value::or_null(stat.member, Value::Text),
        Value::int(stat.sessions),
        Value::int(stat.connects_failed),
        count(|traffic| traffic.transactions),
        count(|traffic| traffic.bytes_up),
        count(|traffic| traffic.bytes_down),
        count(|traffic| traffic.waits),
        count(|traffic| traffic.server_errors),
        count(|traffic| traffic.router_errors),
        count(|traffic| traffic.refused),
        count(|traffic| traffic.sessions_ended),
        mean(|traffic| traffic.transactions_per_min),
        mean(|traffic| traffic.bytes_up_per_min),
        mean(|traffic| traffic.bytes_down_per_min),
        mean(|traffic| traffic.waits_per_min),
        mean(|traffic| traffic.errors_per_min),
        mean(|traffic| traffic.transactions_per_s),
        mean(|traffic| traffic.bytes_up_per_s),
        mean(|traffic| traffic.bytes_down_per_s),
        mean(|traffic| traffic.errors_per_s),
        mean(|traffic| traffic.transaction_ms),
        mean(|traffic| traffic.wait_ms),
    ]
}
