//! Clients that stop in the middle of a message, or of a batch whose COPY is over. Nothing of what
//! they left is completed by the router's own words, and nobody waits for it.

use super::{FIRST_PORT, codes, login, router};
use crate::cluster::postgres::{Options, Postgres};
use crate::raw::{bind, execute, flush, framed, parse, query, sync, terminate};

fn server() -> Postgres {
    let server = Postgres::start(&Options::default());
    server.sql_in(
        "app",
        "CREATE TABLE t (a bytea); CREATE TABLE n (a int); GRANT ALL ON t, n TO app",
    );
    server
}

/// One parameter, in binary.
fn bind_binary(value: &[u8]) -> Vec<u8> {
    let mut body = vec![0, 0, 0, 1, 0, 1, 0, 1];
    body.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
    body.extend(value);
    body.extend([0, 0]);
    framed(b'B', &body)
}

/// The router undoes a batch by messages of its own. Behind half a Bind they would be its value,
/// and the end of it the Execute and the Sync that the client never sent.
#[test]
fn half_a_message_is_not_completed_by_the_routers_own() {
    let server = server();
    let pools = ["mode: session, max_connections: 1", "max_connections: 1"];
    let router = router(&server, &pools, "20s");
    let insert = parse("INSERT INTO t VALUES ($1)");
    // In transaction mode short messages are passed on whole.
    for (pool, length) in [(0, 100), (1, 300_000)] {
        let whole = bind_binary(&vec![1; length]);
        for executed in [Vec::new(), [bind_binary(b"1"), execute()].concat()] {
            for missing in [5, 13, 15, 18, 28, 30, 35, 40, 45, 50] {
                let mut client = login(&router, FIRST_PORT + pool, "app", "app");
                client.send(&[&insert[..], &executed, &whole[..whole.len() - missing]].concat());
                drop(client);
                let mut next = login(&router, FIRST_PORT + pool, "app", "app");
                assert_eq!(
                    next.value("SELECT count(*) FROM t"),
                    "0",
                    "pool {pool}, {missing}"
                );
            }
        }
    }
}

/// What a client leaves behind that no server ever answers, and whether an answer to it comes
/// before: `G` or the error.
fn left() -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let long = "x".repeat(200_000);
    let half = |message: Vec<u8>| message[..message.len() - 50_000].to_vec();
    let batch = [parse("COPY n FROM STDIN"), bind(&[]), execute()].concat();
    let (done, fail) = (framed(b'c', b""), framed(b'f', b"no\0"));
    let rows = "1\n".repeat(100_000);
    vec![
        (
            "half a Query",
            half(query(&format!("SELECT '{long}'"))),
            Vec::new(),
        ),
        (
            "half a Parse",
            half(parse(&format!("SELECT '{long}'"))),
            Vec::new(),
        ),
        (
            "half a Bind",
            [parse("SELECT $1::text"), half(bind(&[long.as_bytes()]))].concat(),
            Vec::new(),
        ),
        (
            "half a FunctionCall",
            half(framed(b'F', &[0; 200_000])),
            Vec::new(),
        ),
        (
            "half a CopyData",
            query("COPY n FROM STDIN"),
            half(framed(b'd', rows.as_bytes())),
        ),
        (
            "CopyDone without a Sync, behind a Flush",
            [batch.clone(), flush()].concat(),
            done.clone(),
        ),
        (
            "CopyDone without a Sync, behind another one",
            [batch.clone(), sync()].concat(),
            done,
        ),
        (
            "CopyFail without a Sync, behind another one",
            [batch, sync()].concat(),
            fail,
        ),
    ]
}

#[test]
fn what_no_server_answers_keeps_no_connection() {
    let server = server();
    // An exchange that nobody answers would take as long as `reset_timeout`.
    let pools = [
        "mode: session, max_connections: 1, reset_timeout: 1m",
        "max_connections: 1, reset_timeout: 1m",
    ];
    let router = router(&server, &pools, "20s");
    for pool in 0..2 {
        for (what, begin, then) in left() {
            for has_goodbye in [true, false] {
                let is_half = what.starts_with("half");
                if is_half && has_goodbye {
                    // It would be a part of the message.
                    continue;
                }
                let mut client = login(&router, FIRST_PORT + pool, "app", "app");
                client.send(&begin);
                if !then.is_empty() {
                    while client.frame().tag != b'G' {}
                    client.send(&then);
                }
                if has_goodbye {
                    client.send(&terminate());
                } else {
                    client.half_close();
                }
                let mut next = login(&router, FIRST_PORT + pool, "app", "app");
                assert_eq!(next.value("SELECT count(*) FROM n"), "0", "{what}, pool {pool}");
                drop(client);
            }
        }
    }
}

#[test]
fn who_stops_in_a_message_or_owes_a_sync_is_waited_for_as_long_as_batch_timeout_says() {
    let server = server();
    let router = router(&server, &["max_connections: 1, batch_timeout: 300ms"], "20s");
    for (what, begin, then) in left() {
        // COPY IN is excepted.
        if what == "half a CopyData" {
            continue;
        }
        let mut client = login(&router, FIRST_PORT, "app", "app");
        client.send(&begin);
        if !then.is_empty() {
            while client.frame().tag != b'G' {}
            client.send(&then);
        }
        let mut next = login(&router, FIRST_PORT, "app", "app");
        assert_eq!(next.value("SELECT count(*) FROM n"), "0", "{what}");
        let heard = client.rest();
        let last = codes(&heard).pop().unwrap_or_default();
        assert!(["25P03", "08007"].contains(&last.as_str()), "{what}: {last}");
    }
}
