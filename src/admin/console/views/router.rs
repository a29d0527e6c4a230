//! The router itself: its state, its routes, its events.

use futures_util::FutureExt;

use super::{View, named};
use crate::admin::gather;
use crate::admin::operations::Gathered;
use crate::admin::relation::{Kind, Row, Value, column};
use crate::admin::views::{EventView, HoldView, RouteView, RouterView};
use crate::events::Level;

pub(super) const ROUTER: View = View {
    name: "router",
    about: "The router itself, in one row",
    columns: &[
        column("state", Kind::Text, "starting, ready, drain or stopping"),
        column("ready", Kind::Bool, "It wants clients"),
        column("reason", Kind::Text, "Why not"),
        column("sessions", Kind::Int8, "Of all its processes"),
        column("process_id", Kind::Int8, "Of the process that answers"),
        column("version", Kind::Text, "Of the process that answers"),
        column(
            "disabled_routes",
            Kind::TextArray,
            "Those that an operator has disabled",
        ),
    ],
    rows: |handles| {
        async move {
            let missing = handles.operations.refresh().await;
            let sessions = handles.operations.session_count();
            let disabled = handles.disabled_routes.names();
            let router = RouterView::new(
                handles.readiness.phase(),
                sessions,
                &disabled,
                handles.holding.holds(),
            );
            Gathered {
                value: vec![vec![
                    Value::Text(router.state),
                    Value::Bool(router.ready),
                    Value::or_null(router.reason, Value::Text),
                    Value::int(router.sessions),
                    Value::int(router.process_id),
                    Value::Text(router.version),
                    Value::TextArray(router.disabled_routes),
                ]],
                missing,
            }
        }
        .boxed()
    },
};

pub(super) const ROUTES: View = View {
    name: "routes",
    about: "The routes, and who may serve them",
    columns: &[
        column("route", Kind::Text, "Its name"),
        column("cluster", Kind::Text, "Its cluster; null if no listener has it"),
        column("access", Kind::Text, "read-write or read-only"),
        column("admin", Kind::Text, "enabled or disabled"),
        column(
            "paused_s",
            Kind::Int8,
            "Seconds until its pause ends; null without one",
        ),
        column("pool", Kind::Text, "The mode of its pool; off without one"),
        column("members", Kind::TextArray, "Those that may serve it now"),
        column("sessions", Kind::Int8, "Of all processes"),
        column(
            "hold",
            Kind::Text,
            "That its clients are held, in short; null if not",
        ),
    ],
    rows: |handles| {
        async move {
            let missing = handles.operations.refresh().await;
            let value = gather::routes(handles, &handles.holding.holds())
                .into_iter()
                .map(route)
                .collect();
            Gathered { value, missing }
        }
        .boxed()
    },
};

fn route(route: RouteView) -> Row {
    vec![
        Value::Text(route.name),
        Value::or_null(route.cluster, Value::Text),
        Value::or_null(route.access, Value::Text),
        Value::Text(route.admin),
        Value::or_null(route.paused_s, Value::int),
        Value::Text(route.pool),
        Value::TextArray(route.members),
        Value::int(route.sessions),
        Value::or_null(route.hold, |hold| Value::Text(hold.in_short())),
    ]
}

pub(super) const HOLDS: View = View {
    name: "holds",
    about: "The routes whose clients are held, why, for how long, and how to end it",
    columns: &[
        column("cluster", Kind::Text, "Its cluster"),
        column("route", Kind::Text, "The route"),
        column("clients", Kind::Int8, "Those that wait, of all processes"),
        column(
            "kind",
            Kind::Text,
            "pause, switchover, before-stop, drain or no server",
        ),
        column("cause", Kind::Text, "In words"),
        column(
            "router",
            Kind::Text,
            "Who ordered it; null if nobody did, or it is not known",
        ),
        column("operator", Kind::Text, "Who asked that router for it"),
        column("since", Kind::Timestamp, "When it began"),
        column("held_s", Kind::Int8, "Seconds since then"),
        column("until", Kind::Timestamp, "When it is over at the latest"),
        column("left_s", Kind::Int8, "Seconds until then"),
        column("ended_by", Kind::Text, "How to end it"),
    ],
    rows: |handles| {
        async move {
            let missing = handles.operations.refresh().await;
            let value = handles.holding.holds().into_iter().map(hold).collect();
            Gathered { value, missing }
        }
        .boxed()
    },
};

fn hold(hold: HoldView) -> Row {
    let (router, operator) = match hold.by {
        Some(by) => (named(by.router), named(by.operator)),
        None => (Value::Null, Value::Null),
    };
    vec![
        Value::Text(hold.cluster),
        Value::Text(hold.route),
        Value::int(hold.clients),
        Value::Text(hold.kind),
        Value::Text(hold.cause),
        router,
        operator,
        at(hold.since_ms),
        Value::int(hold.held_s),
        at(hold.until_ms),
        Value::int(hold.left_s),
        Value::Text(hold.ended_by),
    ]
}

/// Of milliseconds since 1970.
pub(super) fn at(millis: u64) -> Value {
    let millis = i64::try_from(millis).unwrap_or(i64::MAX);
    Value::Timestamp(millis.saturating_mul(1000))
}

pub(super) const EVENTS: View = View {
    name: "events",
    about: "What has happened, up to 1000 events of this process",
    columns: &[
        column("number", Kind::Int8, "From 1, without gaps"),
        column("at", Kind::Timestamp, "When"),
        column("level", Kind::Text, "info, warn or error"),
        column("event", Kind::Text, "Its kind"),
        column("cluster", Kind::Text, "The cluster it is about"),
        column("member", Kind::Text, "The member it is about"),
        column(
            "text",
            Kind::Text,
            "As in the log, with what it is about and who asked for it",
        ),
        column("fields", Kind::Text, "All it says, as JSON"),
    ],
    rows: |handles| {
        let rows = handles.events.since(0);
        let rows = rows.iter().map(|recorded| event(&EventView::new(recorded)));
        let rows = rows.collect();
        async { Gathered::whole(rows) }.boxed()
    },
};

fn event(event: &EventView) -> Row {
    let fields = serde_json::to_value(&event.event).unwrap_or_default();
    let field = |name: &str| {
        let text = fields.get(name).and_then(serde_json::Value::as_str);
        Value::or_null(text, Value::text)
    };
    let level = match event.level {
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
    };
    vec![
        Value::int(event.number),
        at(event.time_ms),
        Value::text(level),
        field("event"),
        field("cluster"),
        field("member"),
        Value::Text(format!("{} {}", event.text, event.about).trim_end().to_owned()),
        Value::Text(fields.to_string()),
    ]
}
