//! Sessions whose server connection is lost, before a real server: what their clients get, and that
//! they go on with their settings and prepared statements.

use super::{FIRST_PORT, TRACKED, bind_named, cheapen, codes, login, parse_named, router, seen};
use crate::cluster::postgres::{Options, Postgres};
use crate::cluster::{Router, eventually};
use crate::raw::{Client, PATIENCE, execute, extended, framed, query, shown, sync};

/// `t` is a table; an INSERT into `slow` makes its COMMIT take a minute.
fn server() -> Postgres {
    let server = Postgres::start(&Options::default());
    server.sql_in(
        "app",
        "CREATE TABLE t (a int); ALTER TABLE t OWNER TO app; CREATE TABLE slow (a int); ALTER TABLE slow OWNER TO app; \
         CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END'; \
         CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON slow DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE \
         FUNCTION wait()",
    );
    cheapen(&server);
    server
}

/// A session with a setting and a statement of its own.
fn app(router: &Router) -> Client {
    let mut client = login(router, FIRST_PORT, "app", "app");
    client.ask("SET work_mem = '7MB'");
    client.send(&[parse_named("own", "SHOW work_mem", &[]), sync()].concat());
    client.ready();
    client
}

/// Ends the pool's one server connection, in this state.
fn terminate(server: &Postgres, state: &str) {
    eventually("the server has come so far", PATIENCE, || {
        server.sql("SELECT state FROM pg_stat_activity WHERE usename = 'app'") == state
    });
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'");
    eventually("the server process ends", PATIENCE, || {
        server.sql("SELECT count(*) FROM pg_stat_activity WHERE usename = 'app' AND state IS NOT NULL") == "0"
    });
}

/// What is under way when the connection is lost, and what the client hears.
struct Row {
    what: &'static str,
    before: &'static str,
    under_way: Vec<u8>,
    /// The errors and the statuses that answer it.
    answers: &'static [&'static str],
    /// What the client says then, and hears.
    then: &'static [(&'static str, &'static [&'static str])],
}

fn rows() -> Vec<Row> {
    let slow = "SELECT pg_sleep(60)";
    let batch = |text: &str| [extended(text), sync()].concat();
    let row = |what, before, under_way, answers, then| Row {
        what,
        before,
        under_way,
        answers,
        then,
    };
    let ended: &[(&str, &[&str])] = &[("ROLLBACK", &["CROLLBACK", "ZI"])];
    vec![
        row("a statement", "", query(slow), &["E08007 ERROR", "ZI"], &[]),
        row("a batch", "", batch(slow), &["E08007 ERROR", "ZI"], &[]),
        row(
            "a COMMIT",
            "BEGIN; INSERT INTO slow VALUES (1); INSERT INTO t VALUES (1)",
            query("COMMIT"),
            &["E08007 ERROR", "ZI"],
            &[],
        ),
        row(
            "the COMMIT of a driver",
            "BEGIN; INSERT INTO slow VALUES (1)",
            batch("COMMIT"),
            &["E08007 ERROR", "ZI"],
            &[],
        ),
        row(
            "a COPY",
            "",
            [query("COPY t FROM STDIN"), framed(b'd', b"1\n")].concat(),
            &["E08007 ERROR", "ZI"],
            &[],
        ),
        row(
            "a statement in a transaction",
            "BEGIN; INSERT INTO t VALUES (1)",
            query(slow),
            &["E40001 ERROR", "ZE"],
            &[
                ("SELECT 1", &["E25P02 ERROR", "ZE"]),
                ("ROLLBACK TO a", &["E3B001 ERROR", "ZE"]),
                ("ROLLBACK", &["CROLLBACK", "ZI"]),
            ],
        ),
        row(
            "a batch in a transaction",
            "BEGIN; INSERT INTO t VALUES (1)",
            batch(slow),
            &["E40001 ERROR", "ZE"],
            ended,
        ),
        row(
            "a pipeline in a transaction",
            "BEGIN; INSERT INTO t VALUES (1)",
            [batch(slow), query("SELECT 1")].concat(),
            &["E40001 ERROR", "ZE", "E25P02 ERROR", "ZE"],
            ended,
        ),
        row(
            "a transaction in one batch",
            "",
            [extended("BEGIN"), batch(slow)].concat(),
            &["E40001 ERROR", "ZE"],
            ended,
        ),
        row(
            "nothing, and then COMMIT",
            "BEGIN; INSERT INTO t VALUES (1)",
            Vec::new(),
            &[],
            &[("COMMIT", &["E40001 ERROR", "ZI"])],
        ),
        row(
            "nothing, and then ROLLBACK",
            "BEGIN; INSERT INTO t VALUES (1)",
            Vec::new(),
            &[],
            ended,
        ),
        row(
            "nothing, and then a savepoint's end",
            "BEGIN; SAVEPOINT a; INSERT INTO t VALUES (1)",
            Vec::new(),
            &[],
            &[
                ("ROLLBACK TO a", &["E40001 ERROR", "ZE"]),
                ("ROLLBACK TO a", &["E3B001 ERROR", "ZE"]),
                ("COMMIT; SELECT 1", &["CROLLBACK", "T", "D1", "CSELECT 1", "ZI"]),
            ],
        ),
        row(
            "nothing in a transaction that had failed",
            "BEGIN; SELECT 1/0",
            Vec::new(),
            &[],
            &[
                ("SELECT 1", &["E25P02 ERROR", "ZE"]),
                ("COMMIT", &["CROLLBACK", "ZI"]),
            ],
        ),
    ]
}

#[test]
fn a_session_in_transaction_mode_goes_on_when_its_server_connection_is_lost() {
    goes_on("max_connections: 1");
}

#[test]
fn a_tracked_session_goes_on_when_its_server_connection_is_lost() {
    goes_on(TRACKED);
}

fn goes_on(route: &str) {
    let server = server();
    let router = router(&server, &[route], "20s");
    let mut client = app(&router);
    for row in rows() {
        let what = row.what;
        if !row.before.is_empty() {
            client.ask(row.before);
        }
        let state = if !row.under_way.is_empty() {
            client.send(&row.under_way);
            "active"
        } else if row.before.contains("1/0") {
            "idle in transaction (aborted)"
        } else {
            "idle in transaction"
        };
        terminate(&server, state);
        if !row.answers.is_empty() {
            let count = row
                .answers
                .iter()
                .filter(|answer| answer.starts_with('Z'))
                .count();
            let mut heard = Vec::new();
            for _ in 0..count {
                heard.extend(shown(&client.ready()));
            }
            heard.retain(|one| one.starts_with(['E', 'Z']));
            assert_eq!(heard, row.answers, "{what}");
        }
        for (text, answer) in row.then {
            let heard = shown(&client.ask(text));
            let heard: Vec<&str> = heard.iter().map(|one| &one[..one.len().min(12)]).collect();
            let kinds = |all: &[&str]| all.join(" ").replace("D1", "D");
            let heard = kinds(&heard);
            let heard = heard.split(' ').filter(|one| !one.is_empty());
            let expected = kinds(answer);
            assert!(
                heard
                    .clone()
                    .zip(expected.split(' '))
                    .all(|(heard, expected)| heard.starts_with(expected)),
                "{what}: {text}: {:?}",
                heard.collect::<Vec<_>>()
            );
        }
        // What was rolled back is gone, and the session has what it had.
        assert_eq!(client.value("SELECT count(*) FROM t"), "0", "{what}");
        assert_eq!(client.value("SHOW work_mem"), "7MB", "{what}");
        client.send(&[bind_named("own", &[]), execute(), sync()].concat());
        assert_eq!(seen(&client.ready()), "7MB", "{what}");
    }
    let count = |outcome: &str| {
        let metric = format!("trunkline_pool_lost_total{{route=\"r0\",outcome=\"{outcome}\"}}");
        router.metric(&metric)
    };
    assert!((count("unknown") - 5.0).abs() < 0.1);
    assert!((count("rolled_back") - 8.0).abs() < 0.1);
}

/// A setting that was made in the transaction is lost with it, and the client is told.
#[test]
fn settings_of_a_lost_transaction_are_what_they_were_before() {
    let server = server();
    let router = router(&server, &["max_connections: 1"], "20s");
    let mut client = app(&router);
    client.ask("SET TimeZone = 'Asia/Tokyo'");
    client.ask("BEGIN");
    client.ask("SET TimeZone = 'Europe/Berlin'; SET work_mem = '9MB'");
    terminate(&server, "idle in transaction");
    assert_eq!(codes(&client.ask("SELECT 1")), ["40001"]);
    client.ask("ROLLBACK");
    let frames = client.ask("SHOW TimeZone");
    assert_eq!(seen(&frames), "Asia/Tokyo");
    let is_told = frames
        .iter()
        .any(|frame| frame.tag == b'S' && *frame.body == *b"TimeZone\0Asia/Tokyo\0");
    assert!(is_told, "{:?}", shown(&frames));
    assert_eq!(client.value("SHOW work_mem"), "7MB");
}

/// What exists on one connection only cannot be had on another one.
#[test]
fn a_session_that_is_pinned_ends_with_its_server_connection() {
    let server = server();
    let router = router(&server, &["max_connections: 1"], "20s");
    for text in [
        "LISTEN x",
        "SELECT pg_advisory_lock(1)",
        "BEGIN; SELECT pg_advisory_lock(1)",
        "BEGIN; PREPARE x AS SELECT 1",
    ] {
        let mut client = app(&router);
        client.ask(text);
        terminate(
            &server,
            if text.starts_with("BEGIN") {
                "idle in transaction"
            } else {
                "idle"
            },
        );
        assert_eq!(codes(&client.rest()), ["57P01"], "{text}");
    }
}
