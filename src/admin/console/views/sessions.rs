//! Sessions, pools and server connections.

use futures_util::FutureExt;

use super::{View, named};
use crate::admin::gather;
use crate::admin::handles::Handles;
use crate::admin::operations::Gathered;
use crate::admin::relation::{Kind, Row, Value, column};
use crate::admin::views::{PoolMemberView, PoolView, ServerConnectionView, SessionView};

pub(super) const SESSIONS: View = View {
    name: "sessions",
    about: "The clients' sessions, of all processes",
    columns: &[
        column("id", Kind::Int8, "For KILL"),
        column("client", Kind::Text, "Address and port, or [local]"),
        column("user", Kind::Text, "As it logged in"),
        column("database", Kind::Text, "As it asked for"),
        column("cluster", Kind::Text, "Its cluster; null for the console"),
        column("route", Kind::Text, "Its route; null for the console"),
        column(
            "member",
            Kind::Text,
            "Where its server connection leads; null without one",
        ),
        column(
            "server_process_id",
            Kind::Int8,
            "As in pg_stat_activity; null without one",
        ),
        column("state", Kind::Text, "active, idle or idle in transaction"),
        column(
            "phase",
            Kind::Text,
            "relaying, detached, waiting, pinned or console",
        ),
        column("pins", Kind::TextArray, "Why it keeps its server connection"),
        column(
            "held_s",
            Kind::Int8,
            "Seconds that it has had its connection of a pool",
        ),
        column("age_s", Kind::Int8, "Seconds since it was accepted"),
        column("bytes_up", Kind::Int8, "From the client"),
        column("bytes_down", Kind::Int8, "To the client"),
        column("transactions", Kind::Int8, "Those that have ended"),
        column("tls", Kind::Text, "Version and cipher; null in clear"),
        column("ending", Kind::Text, "Why it is about to end"),
        column("router_process_id", Kind::Int8, "The process that has it"),
    ],
    rows: |handles| sessions(handles, |_| true, session).boxed(),
};

pub(super) const WAITS: View = View {
    name: "waits",
    about: "The sessions that wait for a server connection, at a gate or in a pool",
    columns: &[
        column("id", Kind::Int8, "The session's"),
        column("client", Kind::Text, "Address and port, or [local]"),
        column("user", Kind::Text, "As it logged in"),
        column("database", Kind::Text, "As it asked for"),
        column("cluster", Kind::Text, "Its cluster"),
        column("route", Kind::Text, "Its route"),
        column("waiting_s", Kind::Int8, "Seconds that it has waited"),
        column("age_s", Kind::Int8, "Seconds since the session was accepted"),
        column("router_process_id", Kind::Int8, "The process that has it"),
    ],
    rows: |handles| sessions(handles, |session| session.phase == "waiting", wait).boxed(),
};

async fn sessions(
    handles: &Handles,
    is_meant: fn(&SessionView) -> bool,
    shown: fn(SessionView) -> Row,
) -> Gathered<Vec<Row>> {
    let Gathered { value, missing } = handles.operations.sessions().await;
    let value = value.into_iter().filter(is_meant).map(shown).collect();
    Gathered { value, missing }
}

fn numbered(number: u32) -> Value {
    Value::or_null(Some(number).filter(|number| *number != 0), Value::int)
}

fn session(session: SessionView) -> Row {
    vec![
        Value::int(session.id),
        Value::Text(session.client),
        Value::Text(session.user),
        Value::Text(session.database),
        named(session.cluster),
        named(session.route),
        named(session.member),
        numbered(session.process_id),
        Value::text(session.state.to_string()),
        Value::Text(session.phase),
        Value::TextArray(session.pins),
        Value::or_null(session.held_s, Value::int),
        Value::int(session.age_s),
        Value::int(session.bytes_up),
        Value::int(session.bytes_down),
        Value::int(session.transactions),
        Value::or_null(session.tls, Value::Text),
        Value::or_null(session.ending, Value::Text),
        numbered(session.router_process_id),
    ]
}

fn wait(session: SessionView) -> Row {
    vec![
        Value::int(session.id),
        Value::Text(session.client),
        Value::Text(session.user),
        Value::Text(session.database),
        Value::Text(session.cluster),
        Value::Text(session.route),
        Value::or_null(session.waiting_s, Value::int),
        Value::int(session.age_s),
        numbered(session.router_process_id),
    ]
}

pub(super) const POOLS: View = View {
    name: "pools",
    about: "The pools' server connections by member, of all processes",
    columns: &[
        column("cluster", Kind::Text, "Its cluster"),
        column("route", Kind::Text, "Its route"),
        column("user", Kind::Text, "The role on the server"),
        column("database", Kind::Text, "The database"),
        column(
            "member",
            Kind::Text,
            "Where these lead; null for a pool without any",
        ),
        column("idle", Kind::Int8, "Nobody has them"),
        column("leased", Kind::Int8, "Sessions have them, pinned ones included"),
        column("opening", Kind::Int8, "Being opened"),
        column("pinned", Kind::Int8, "Kept between transactions"),
        column(
            "max_connections",
            Kind::Int8,
            "To each member; of tracked sessions the cluster's, null without a limit",
        ),
        column("reserve", Kind::Int8, "On top, for who has waited long"),
        column("waiting", Kind::Int8, "Sessions that wait for the pool"),
        column("longest_wait_ms", Kind::Int8, "Of the one that waits first"),
        column("router_process_id", Kind::Int8, "The process that has it"),
    ],
    rows: |handles| {
        async move {
            let Gathered { value, missing } = handles.operations.pools().await;
            let value = value.iter().flat_map(pool).collect();
            Gathered { value, missing }
        }
        .boxed()
    },
};

fn pool(pool: &PoolView) -> Vec<Row> {
    let row = |member: Option<&PoolMemberView>| {
        let count = |count: fn(&PoolMemberView) -> usize| Value::int(member.map_or(0, count));
        vec![
            Value::text(&*pool.cluster),
            Value::text(&*pool.route),
            Value::text(&*pool.user),
            Value::text(&*pool.database),
            Value::or_null(member, |member| Value::text(&*member.member)),
            count(|member| member.idle),
            count(|member| member.leased),
            count(|member| member.opening),
            count(|member| member.pinned),
            Value::or_null(pool.max_connections, Value::int),
            Value::int(pool.reserve),
            Value::int(pool.waiting),
            Value::int(pool.longest_wait_ms),
            numbered(pool.router_process_id),
        ]
    };
    if pool.members.is_empty() {
        return vec![row(None)];
    }
    pool.members.iter().map(|member| row(Some(member))).collect()
}

pub(super) const SERVER_CONNECTIONS: View = View {
    name: "server_connections",
    about: "The connections to the servers, of sessions and idle in pools",
    columns: &[
        column("cluster", Kind::Text, "Its cluster"),
        column("member", Kind::Text, "Where it leads"),
        column("server_process_id", Kind::Int8, "As in pg_stat_activity"),
        column("route", Kind::Text, "Its route"),
        column("user", Kind::Text, "The role on the server"),
        column("database", Kind::Text, "The database"),
        column("state", Kind::Text, "idle, leased or pinned"),
        column("session", Kind::Int8, "The id of the session that has it"),
        column("held_s", Kind::Int8, "Seconds that it has had it"),
        column("idle_ms", Kind::Int8, "Since it was given back"),
        column(
            "leases",
            Kind::Int8,
            "How often sessions have had it, if it is idle",
        ),
        column("router_process_id", Kind::Int8, "The process that has it"),
    ],
    rows: |handles| {
        async move {
            let Gathered { value, missing } = gather::server_connections(&*handles.operations).await;
            let value = value.into_iter().map(server_connection).collect();
            Gathered { value, missing }
        }
        .boxed()
    },
};

fn server_connection(connection: ServerConnectionView) -> Row {
    vec![
        Value::Text(connection.cluster),
        Value::Text(connection.member),
        numbered(connection.process_id),
        Value::Text(connection.route),
        Value::Text(connection.user),
        Value::Text(connection.database),
        Value::Text(connection.state),
        Value::or_null(connection.session, Value::int),
        Value::or_null(connection.held_s, Value::int),
        Value::or_null(connection.idle_ms, Value::int),
        Value::or_null(connection.leases, Value::int),
        numbered(connection.router_process_id),
    ]
}
