//! Pools of a process that was replaced: its sessions go on, and its connections go.

use serde_json::Value;

use super::{SOON, Subject, is_alive};
use crate::cluster::eventually;
use crate::cluster::postgres::{self, Postgres};
use crate::pooling::{bind_named, parse_named, seen};
use crate::raw::{Client, Login, at, execute, query, shown, sync};

const ROUTES: &str = "routes:\n  read-write: {targets: [leader], queue_timeout: 20s, \
                      pool: {mode: transaction, max_connections: 3}}\n";

fn client(subject: &Subject) -> Client {
    Client::login(at(&subject.router, 6432), Login::default())
}

/// Server processes of clients: those of each state.
fn on_server(server: &Postgres) -> String {
    server.sql(
        "SELECT coalesce(string_agg(state, ' ' ORDER BY state), '') FROM pg_stat_activity WHERE usename = 'app'",
    )
}

#[track_caller]
fn await_server(server: &Postgres, states: &str) {
    let mut found = String::new();
    let deadline = tokio::time::Instant::now() + SOON;
    while found != states {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{found:?}, not {states:?}"
        );
        crate::cluster::pause(std::time::Duration::from_millis(20));
        found = on_server(server);
    }
}

/// Idle, leased and pinned connections, of all processes of the router.
fn counts(subject: &Subject) -> [u64; 3] {
    let output = subject.command(&["pools", "--json"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let pools: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    ["idle", "leased", "pinned"].map(|key| {
        let members = pools.iter().flat_map(|pool| pool["members"].as_array().unwrap());
        members.map(|member| member[key].as_u64().unwrap()).sum()
    })
}

#[track_caller]
fn await_counts(subject: &Subject, expected: [u64; 3]) {
    eventually(&format!("{expected:?}"), SOON, || counts(subject) == expected);
}

#[test]
fn pooled_sessions_go_on_in_the_old_process_which_keeps_no_idle_connection() {
    let server = Postgres::start(&postgres::Options::default());
    server.sql_in("app", "CREATE TABLE t (a int); ALTER TABLE t OWNER TO app");
    let mut subject = Subject::before(&server, ROUTES);
    let (mut detached, mut busy, mut pinned) = (client(&subject), client(&subject), client(&subject));
    detached.ask("SET work_mem = '7MB'");
    detached.send(&[parse_named("own", "SHOW work_mem", &[]), sync()].concat());
    assert_eq!(shown(&detached.ready()), ["1", "ZI"]);
    pinned.ask("LISTEN news");
    busy.ask("BEGIN; INSERT INTO t VALUES (1)");
    detached.value("SELECT 1");
    await_server(&server, "idle idle idle in transaction");
    await_counts(&subject, [1, 2, 1]);

    subject.upgrade();
    let old = subject.all[0];
    // The one that nobody had is closed; the others are counted with those of the new process.
    await_server(&server, "idle idle in transaction");
    await_counts(&subject, [0, 2, 1]);
    let mut new = client(&subject);
    assert_eq!(new.value("SHOW work_mem"), "4MB");
    await_counts(&subject, [1, 2, 1]);
    // A session that has no connection gets one, with its settings and statements, and it is not
    // kept.
    for _ in 0..3 {
        detached.send(&[bind_named("own", &[]), execute(), sync()].concat());
        assert_eq!(seen(&detached.ready()), "7MB");
        assert_eq!(seen(&detached.ask("INSERT INTO t VALUES (2); SELECT 2")), "2");
        await_counts(&subject, [1, 2, 1]);
        await_server(&server, "idle idle idle in transaction");
    }
    // Nobody is told of it.
    assert_eq!(
        shown(&busy.ask("INSERT INTO t VALUES (3)")),
        ["CINSERT 0 1", "ZT"]
    );
    assert_eq!(shown(&busy.ask("COMMIT")), ["CCOMMIT", "ZI"]);
    new.ask("NOTIFY news");
    assert_eq!(pinned.frame().tag, b'A');
    assert_eq!(pinned.value("SELECT 4"), "4");
    await_counts(&subject, [1, 1, 1]);
    pinned.ask("UNLISTEN *");
    await_counts(&subject, [1, 0, 0]);
    await_server(&server, "idle");
    assert!(is_alive(old), "it has three sessions");
    assert_eq!(
        new.value("SELECT string_agg(a::text, ' ' ORDER BY a) FROM t"),
        "1 2 2 2 3"
    );
    // Again: the sessions of the first process go on, and so do those of the second.
    subject.upgrade();
    await_server(&server, "");
    for (client, work_mem) in [(&mut detached, "7MB"), (&mut new, "4MB"), (&mut busy, "4MB")] {
        assert_eq!(client.value("SHOW work_mem"), work_mem);
    }
    await_server(&server, "");
    await_counts(&subject, [0, 0, 0]);
    drop((detached, busy, pinned, new));
    for process in &subject.all[..2] {
        eventually("it ends with its last session", SOON, || !is_alive(*process));
    }
    await_server(&server, "");
}

/// They hold no connection whose end could end them.
#[test]
fn sessions_without_a_connection_end_when_the_time_of_the_handover_is_over() {
    let server = Postgres::start(&postgres::Options::default());
    let extra = format!("{ROUTES}shutdown: {{handover: 1s, grace: 20s}}\n");
    let mut subject = Subject::before(&server, &extra);
    let (mut detached, mut busy, mut pinned) = (client(&subject), client(&subject), client(&subject));
    busy.ask("BEGIN");
    pinned.ask("LISTEN news");
    detached.ask("SET work_mem = '7MB'");
    subject.upgrade();
    for client in [&mut detached, &mut pinned] {
        assert_eq!(shown(&client.rest()), ["E57P01 FATAL"]);
    }
    assert_eq!(busy.value("SELECT 1"), "1");
    busy.send(&query("COMMIT"));
    assert_eq!(shown(&busy.rest()), ["CCOMMIT", "ZI", "E57P01 FATAL"]);
    eventually("the old process has ended", SOON, || !is_alive(subject.all[0]));
    await_server(&server, "");
    assert_eq!(client(&subject).value("SHOW work_mem"), "4MB");
}
