//! Sessions, server connections and what was moved. Names, order and types of their columns are
//! PgBouncer's.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use futures_util::FutureExt;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::super::views::View;
use super::tally::Seen;
use crate::admin::handles::Handles;
use crate::admin::operations::Gathered;
use crate::admin::relation::{Column, Kind, Row, Value, column};
use crate::admin::views::{DatabaseView, ServerConnectionView, SessionView};
use Kind::{Int4, Numeric, Text};

const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");

pub(super) const fn of(name: &'static str, kind: Kind) -> Column {
    column(name, kind, "As PgBouncer's")
}

pub(super) fn count(number: impl TryInto<i64>) -> Value {
    Value::int(number)
}

pub(super) fn flag(is: bool) -> Value {
    Value::Int(i64::from(is))
}

pub(super) const POOLS: View = View::new(
    "POOLS",
    "Clients and server connections by database and user, as PgBouncer shows them",
    &[
        of("database", Text),
        of("user", Text),
        of("cl_active", Int4),
        of("cl_waiting", Int4),
        of("cl_active_cancel_req", Int4),
        of("cl_waiting_cancel_req", Int4),
        of("sv_active", Int4),
        of("sv_active_cancel", Int4),
        of("sv_being_canceled", Int4),
        of("sv_idle", Int4),
        of("sv_used", Int4),
        of("sv_tested", Int4),
        of("sv_login", Int4),
        of("maxwait", Int4),
        of("maxwait_us", Int4),
        of("pool_mode", Text),
        of("load_balance_hosts", Text),
    ],
    |handles| {
        async move {
            let seen = Seen::look(handles).await;
            let rows = seen.pools().into_iter().map(|((database, user), tally)| {
                let mode = seen.pool_mode(&tally.routes);
                vec![
                    Value::Text(database),
                    Value::Text(user),
                    count(tally.clients),
                    count(tally.waiting),
                    // Cancel requests are counted for the router as a whole.
                    Value::Null,
                    Value::Null,
                    count(tally.active),
                    Value::Null,
                    Value::Null,
                    count(tally.idle),
                    // There are no such states here.
                    count(0),
                    count(0),
                    count(tally.opening),
                    count(tally.longest_wait_ms / 1000),
                    count(tally.longest_wait_ms % 1000 * 1000),
                    Value::or_null(mode, Value::text),
                    Value::Null,
                ]
            });
            let rows = rows.collect();
            seen.gathered(rows)
        }
        .boxed()
    },
);

const SOCKET: &[Column] = &[
    of("type", Text),
    of("user", Text),
    of("database", Text),
    of("replication", Text),
    of("state", Text),
    of("addr", Text),
    of("port", Int4),
    of("local_addr", Text),
    of("local_port", Int4),
    of("connect_time", Text),
    of("request_time", Text),
    of("wait", Int4),
    of("wait_us", Int4),
    of("close_needed", Int4),
    of("ptr", Text),
    of("link", Text),
    of("remote_pid", Int4),
    of("tls", Text),
    of("application_name", Text),
    of("prepared_statements", Int4),
    of("id", Int4),
];

pub(super) const CLIENTS: View = View::new(
    "CLIENTS",
    "The clients' sessions, as PgBouncer shows them",
    SOCKET,
    |handles| {
        async move {
            let seen = Seen::look(handles).await;
            let now = unix_seconds();
            let rows = seen.sessions.iter().map(|session| client(session, now));
            let rows = rows.collect();
            seen.gathered(rows)
        }
        .boxed()
    },
);

fn client(session: &SessionView, now: u64) -> Row {
    let (address, port) = match session.client.rsplit_once(':') {
        Some((address, port)) => {
            let address = address.trim_start_matches('[').trim_end_matches(']');
            (address, Value::or_null(port.parse::<u16>().ok(), Value::int))
        }
        None => ("unix", Value::Null),
    };
    let is_waiting = session.phase == "waiting";
    let state = match (is_waiting, session.member.is_empty()) {
        (true, _) => "waiting",
        (false, false) => "active",
        (false, true) => "idle",
    };
    let link = (!session.member.is_empty()).then(|| server_name(&session.member, session.process_id));
    vec![
        Value::text("C"),
        Value::text(&*session.user),
        Value::text(&*session.database),
        Value::Null,
        Value::text(state),
        Value::text(address),
        port,
        Value::Null,
        Value::Null,
        Value::Text(shown_time(now.saturating_sub(session.age_s))),
        Value::Null,
        count(session.waiting_s.filter(|_| is_waiting).unwrap_or_default()),
        count(0),
        flag(session.ending.is_some()),
        Value::Text(client_name(session.id)),
        Value::Text(link.unwrap_or_default()),
        Value::Null,
        Value::Text(session.tls.clone().unwrap_or_default()),
        Value::Null,
        Value::Null,
        count(session.id),
    ]
}

/// What links a client to its server connection.
fn client_name(id: u64) -> String {
    format!("client {id}")
}

fn server_name(member: &str, process_id: u32) -> String {
    format!("{member} {process_id}")
}

pub(super) const SERVERS: View = View::new(
    "SERVERS",
    "The server connections, as PgBouncer shows them",
    SOCKET,
    |handles| {
        async move {
            let seen = Seen::look(handles).await;
            let hosts = hosts(handles);
            let connections = seen.server_connections();
            let rows = connections.iter().map(|connection| server(connection, &hosts));
            let rows = rows.collect();
            seen.gathered(rows)
        }
        .boxed()
    },
);

type Hosts = BTreeMap<(String, String), (String, u16)>;

/// Of the members, by cluster and name.
fn hosts(handles: &Handles) -> Hosts {
    let mut hosts = Hosts::new();
    for view in &handles.clusters {
        for member in &view.snapshot.borrow().members {
            let key = (view.name.to_string(), member.name.to_string());
            hosts.insert(key, (member.host.clone(), member.port));
        }
    }
    hosts
}

fn server(connection: &ServerConnectionView, hosts: &Hosts) -> Row {
    let host = hosts.get(&(connection.cluster.clone(), connection.member.clone()));
    let state = if connection.session.is_some() {
        "active"
    } else {
        "idle"
    };
    let link = connection.session.map(client_name);
    let process_id = Some(connection.process_id).filter(|id| *id != 0);
    vec![
        Value::text("S"),
        Value::text(&*connection.user),
        Value::text(&*connection.database),
        Value::Null,
        Value::text(state),
        Value::or_null(host, |(host, _)| Value::text(&**host)),
        Value::or_null(host, |(_, port)| Value::int(*port)),
        Value::Null,
        Value::Null,
        Value::Null,
        Value::Null,
        Value::Null,
        Value::Null,
        Value::Null,
        Value::Text(server_name(&connection.member, connection.process_id)),
        Value::Text(link.unwrap_or_default()),
        Value::or_null(process_id, Value::int),
        Value::Null,
        Value::Null,
        Value::Null,
        Value::Null,
    ]
}

pub(super) const STATS: View = View::new(
    "STATS",
    "What was moved since the process started, by database, as PgBouncer shows it",
    &[
        of("database", Text),
        of("total_server_assignment_count", Numeric),
        of("total_xact_count", Numeric),
        of("total_query_count", Numeric),
        of("total_received", Numeric),
        of("total_sent", Numeric),
        of("total_xact_time", Numeric),
        of("total_query_time", Numeric),
        of("total_wait_time", Numeric),
        of("total_client_parse_count", Numeric),
        of("total_server_parse_count", Numeric),
        of("total_bind_count", Numeric),
        of("total_client_login_count", Numeric),
        of("avg_server_assignment_count", Numeric),
        of("avg_xact_count", Numeric),
        of("avg_query_count", Numeric),
        of("avg_recv", Numeric),
        of("avg_sent", Numeric),
        of("avg_xact_time", Numeric),
        of("avg_query_time", Numeric),
        of("avg_wait_time", Numeric),
        of("avg_client_parse_count", Numeric),
        of("avg_server_parse_count", Numeric),
        of("avg_bind_count", Numeric),
        of("avg_client_login_count", Numeric),
    ],
    |handles| {
        let row = |database| {
            let mut row = totals(database);
            row.extend([UNKNOWN; 12]);
            row
        };
        let rows = handles.inventory.databases().into_iter().map(row).collect();
        async { Gathered::whole(rows) }.boxed()
    },
);

pub(super) const STATS_TOTALS: View = View::new(
    "STATS_TOTALS",
    "The totals of SHOW STATS",
    &[
        of("database", Text),
        of("server_assignment_count", Numeric),
        of("xact_count", Numeric),
        of("query_count", Numeric),
        of("bytes_received", Numeric),
        of("bytes_sent", Numeric),
        of("xact_time", Numeric),
        of("query_time", Numeric),
        of("wait_time", Numeric),
        of("client_parse_count", Numeric),
        of("server_parse_count", Numeric),
        of("bind_count", Numeric),
        of("client_login_count", Numeric),
    ],
    |handles| {
        let rows = handles.inventory.databases().into_iter().map(totals).collect();
        async { Gathered::whole(rows) }.boxed()
    },
);

/// A number that the router does not know. Tools take it for a number, as they do not take null.
const UNKNOWN: Value = Value::Float(f64::NAN);

/// What is counted by database.
fn totals(database: DatabaseView) -> Row {
    vec![
        Value::Text(database.database),
        UNKNOWN,
        count(database.transactions),
        UNKNOWN,
        count(database.bytes_up),
        count(database.bytes_down),
        UNKNOWN,
        UNKNOWN,
        UNKNOWN,
        UNKNOWN,
        UNKNOWN,
        UNKNOWN,
        count(database.sessions),
    ]
}

pub(super) const TOTALS: View = View::new(
    "TOTALS",
    "The sums of SHOW STATS over all databases",
    &[of("name", Text), of("value", Numeric)],
    |handles| {
        let all = handles.inventory.databases();
        let sum = |of: fn(&DatabaseView) -> u64| count(all.iter().map(of).sum::<u64>());
        let rows = [
            ("total_xact_count", sum(|database| database.transactions)),
            ("total_client_bytes", sum(|database| database.bytes_up)),
            ("total_server_bytes", sum(|database| database.bytes_down)),
            ("total_client_login_count", sum(|database| database.sessions)),
        ];
        let rows = named(rows);
        async { Gathered::whole(rows) }.boxed()
    },
);

pub(super) fn named<const N: usize>(rows: [(&str, Value); N]) -> Vec<Row> {
    let row = |(name, value): (&str, Value)| vec![Value::text(name), value];
    rows.into_iter().map(row).collect()
}

fn unix_seconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

fn shown_time(seconds: u64) -> String {
    let at = OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap_or(i64::MAX));
    let shown = at.ok().and_then(|at| at.format(TIME).ok());
    shown.unwrap_or_default()
}
