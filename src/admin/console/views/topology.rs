//! Clusters and their members.

use futures_util::FutureExt;

use super::View;
use crate::admin::handles::Handles;
use crate::admin::operations::Gathered;
use crate::admin::relation::{Kind, Row, Value, column};
use crate::admin::views::{ClusterSummary, MemberView};

pub(super) const CLUSTERS: View = View {
    name: "clusters",
    about: "The clusters, and who leads them",
    columns: &[
        column("cluster", Kind::Text, "Its name in the configuration"),
        column("leader", Kind::Text, "The verified leader; null without one"),
        column("timeline", Kind::Int8, "Of the leader"),
        column("named_by", Kind::Text, "leader key, failsafe or highest timeline"),
        column("no_leader", Kind::Text, "Why there is none"),
        column("members", Kind::Int4, "How many there are"),
        column("source_reachable", Kind::Bool, "The list of members is fresh"),
        column("source_error", Kind::Text, "Why not"),
        column(
            "disagreement",
            Kind::Text,
            "What members and source say differently",
        ),
        column("system_identifier", Kind::Text, "As in pg_control_system()"),
        column("paused", Kind::Bool, "Patroni's pause"),
    ],
    rows: |handles| {
        let all = handles.clusters.iter().map(ClusterSummary::new);
        let rows = all.map(cluster).collect();
        async { Gathered::whole(rows) }.boxed()
    },
};

fn cluster(cluster: ClusterSummary) -> Row {
    let (leader, timeline, named_by) = match cluster.leader {
        Some(leader) => (
            Value::Text(leader.member),
            Value::int(leader.timeline),
            Value::Text(leader.named_by),
        ),
        None => (Value::Null, Value::Null, Value::Null),
    };
    vec![
        Value::Text(cluster.name),
        leader,
        timeline,
        named_by,
        Value::or_null(cluster.no_leader, Value::Text),
        Value::int(cluster.members.len()),
        Value::Bool(cluster.source.reachable),
        Value::or_null(cluster.source.error, Value::Text),
        Value::or_null(cluster.source.disagreement, Value::Text),
        Value::or_null(cluster.system_identifier, Value::Text),
        Value::Bool(cluster.paused),
    ]
}

pub(super) const MEMBERS: View = View {
    name: "members",
    about: "The servers of the clusters, with HAProxy's words for their state",
    columns: &[
        column("cluster", Kind::Text, "Its cluster"),
        column("member", Kind::Text, "Its name"),
        column("host", Kind::Text, "Where it listens"),
        column("port", Kind::Int4, "Where it listens"),
        column(
            "role",
            Kind::Text,
            "leader (verified), named leader (by Patroni only), replica, sync_standby, …",
        ),
        column("is_leader", Kind::Bool, "It is the verified leader"),
        column("state", Kind::Text, "By the source"),
        column("timeline", Kind::Int8, "Of its last probe"),
        column("lag", Kind::Int8, "Bytes behind the leader; null: not known"),
        column(
            "lag_seconds",
            Kind::Float8,
            "Seconds behind the leader; null: not known",
        ),
        column("status", Kind::Text, "UP, DOWN, DRAIN, MAINT or INI"),
        column("check_status", Kind::Text, "How the last probe ended"),
        column("check_text", Kind::Text, "What it said"),
        column("check_age_ms", Kind::Int8, "Since the last probe"),
        column("admin", Kind::Text, "ready, drain or maint"),
        column("weight", Kind::Int4, "Its share of new sessions"),
        column("zone", Kind::Text, "Where it stands"),
        column("sessions", Kind::Int8, "Those with a server connection there"),
        column("server_connections", Kind::Int8, "Of sessions and of pools"),
    ],
    rows: |handles| members(handles, member).boxed(),
};

pub(super) const MEMBER_ROUTES: View = View {
    name: "member_routes",
    about: "Whether a member may get sessions of a route, and why not",
    columns: &[
        column("cluster", Kind::Text, "The member's cluster"),
        column("member", Kind::Text, "Its name"),
        column("route", Kind::Text, "The route"),
        column("fit", Kind::Bool, "It may get its sessions"),
        column("reason", Kind::Text, "Why, or why not"),
    ],
    rows: |handles| members(handles, member_routes).boxed(),
};

async fn members<R>(handles: &Handles, shown: fn(MemberView) -> R) -> Gathered<Vec<Row>>
where
    R: IntoIterator<Item = Row>,
{
    let missing = handles.operations.refresh().await;
    let mut rows = Vec::new();
    for view in &handles.clusters {
        let snapshot = view.snapshot.borrow().clone();
        for member in &snapshot.members {
            let load = handles.operations.load_of(&view.name, &member.name);
            rows.extend(shown(MemberView::new(view, &snapshot, member, load)));
        }
    }
    Gathered { value: rows, missing }
}

fn member(member: MemberView) -> [Row; 1] {
    let role = member.shown_role().map(str::to_owned);
    [vec![
        Value::Text(member.cluster),
        Value::Text(member.name),
        Value::Text(member.host),
        Value::int(member.port),
        Value::or_null(role, Value::Text),
        Value::Bool(member.leader),
        Value::Text(member.state),
        Value::or_null(member.timeline, Value::int),
        Value::or_null(member.lag, Value::int),
        Value::or_null(member.lag_seconds, Value::Float),
        Value::text(member.status.to_string()),
        Value::Text(member.check.status),
        Value::or_null(member.check.text, Value::Text),
        Value::or_null(member.check.age_ms, Value::int),
        Value::Text(member.admin),
        Value::int(member.weight),
        Value::or_null(member.zone, Value::Text),
        Value::int(member.sessions),
        Value::or_null(member.server_connections, Value::int),
    ]]
}

fn member_routes(member: MemberView) -> Vec<Row> {
    let row = |route: crate::admin::views::RouteFitness| {
        vec![
            Value::text(&*member.cluster),
            Value::text(&*member.name),
            Value::Text(route.route),
            Value::Bool(route.fit),
            Value::Text(route.reason),
        ]
    };
    member.routes.into_iter().map(row).collect()
}
