//! The last numbers of sequences, which a server connection remembers: a session gets its own, or
//! an error, never another's.

use super::{FIRST_PORT, bind_named, login, parse_named, process, router, seen};
use crate::cluster::postgres::{Options, Postgres};
use crate::cluster::{Router, eventually};
use crate::raw::{Client, PATIENCE, execute, framed, sync};

fn server() -> Postgres {
    let server = Postgres::start(&Options::default());
    server.sql_in("app", "CREATE SEQUENCE s; GRANT ALL ON SEQUENCE s TO app");
    server
}

fn client(router: &Router, pool: u16) -> Client {
    login(router, FIRST_PORT + pool, "app", "app")
}

/// `lastval()` as a `FunctionCall` without arguments, for a result as text.
fn call_lastval() -> Vec<u8> {
    let mut body = 2559_u32.to_be_bytes().to_vec();
    body.extend([0, 0, 0, 0, 0, 0]);
    framed(b'F', &body)
}

fn extended(sql: &str) -> Vec<u8> {
    [parse_named("", sql, &[]), bind_named("", &[]), execute()].concat()
}

/// Ends it, and waits until its connection is free.
fn leave(client: Client, other: &mut Client) {
    drop(client);
    eventually("the connection is free", PATIENCE, || {
        seen(&other.ask("SELECT 1")) == "1"
    });
}

#[test]
fn nobody_gets_the_number_that_another_session_has_drawn() {
    let server = server();
    let router = router(&server, &["max_connections: 1"], "1s");
    let mut first = client(&router, 0);
    let asks: [&[u8]; 4] = [
        &crate::raw::query("SELECT currval('s')"),
        &crate::raw::query("BEGIN; SELECT lastval()"),
        &[extended("SELECT lastval()"), sync()].concat(),
        &call_lastval(),
    ];
    for ask in asks {
        let mut second = client(&router, 0);
        let same = process(&mut second);
        first.ask("SELECT nextval('s')");
        assert_eq!(process(&mut first), same, "they share one connection");
        second.send(ask);
        assert_eq!(seen(&second.ready()), "55000");
        leave(second, &mut first);
    }
    // In a transaction that has failed the server says so, and nothing else.
    let mut second = client(&router, 0);
    first.ask("SELECT nextval('s')");
    assert_eq!(seen(&second.ask("BEGIN")), "");
    assert_eq!(seen(&second.ask("SELECT 1/0")), "22012");
    assert_eq!(seen(&second.ask("SELECT lastval()")), "25P02");
    assert_eq!(seen(&second.ask("ROLLBACK")), "");
    assert_eq!(seen(&second.ask("SELECT lastval()")), "55000");
}

#[test]
fn a_session_that_asks_for_its_numbers_has_them_from_then_on() {
    let server = server();
    let router = router(&server, &["max_connections: 1", "max_connections: 1"], "1s");
    let (mut first, mut other) = (client(&router, 0), client(&router, 0));
    other.ask("SELECT nextval('s')");
    let own = first.value("SELECT nextval('s')");
    assert_eq!(
        seen(&first.ask("SELECT currval('s')")),
        "55000",
        "whose it is nobody knows"
    );
    let own = (own.parse::<u64>().unwrap() + 1).to_string();
    assert_eq!(first.value("SELECT nextval('s')"), own);
    // It keeps its connection.
    assert_eq!(seen(&other.ask("SELECT 1")), "53300");
    assert_eq!(first.value("SELECT currval('s')"), own);
    leave(first, &mut other);
    // Drawn and asked for in one transaction, by statements one by one and in one batch: here
    // first, where the pool knows that sessions ask, then where it does not.
    for pool in [0, 1] {
        let (mut before, mut asks) = (client(&router, pool), client(&router, pool));
        before.ask("SELECT nextval('s')");
        asks.ask("BEGIN");
        let own = asks.value("SELECT nextval('s')");
        assert_eq!(asks.value("SELECT lastval()"), own, "pool {pool}");
        asks.ask("COMMIT");
        leave(asks, &mut before);
    }
    let mut asks = client(&router, 0);
    other.ask("SELECT nextval('s')");
    asks.send(
        &[
            extended("SELECT nextval('s')"),
            extended("SELECT currval('s')"),
            sync(),
        ]
        .concat(),
    );
    let both = seen(&asks.ready());
    let (drawn, told) = both.split_once(' ').unwrap();
    assert_eq!(drawn, told);
}

/// A connection that has to forget the numbers of others does so for the session that has it, and
/// serves that session before it serves another one.
#[test]
fn more_sessions_than_connections_all_go_on_after_a_number_was_read() {
    const CLIENTS: usize = 6;
    const ROUNDS: usize = 50;
    let server = server();
    let router = router(&server, &["max_connections: 2"], "20s");
    assert_eq!(seen(&client(&router, 0).ask("SELECT lastval()")), "55000");
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let router = &router;
            scope.spawn(move || {
                let mut client = client(router, 0);
                for round in 0..ROUNDS {
                    let own = format!("{number}-{round}");
                    assert_eq!(seen(&client.ask(&format!("SELECT '{own}'"))), own);
                    client.send(&[extended(&format!("SELECT '{own}'")), sync()].concat());
                    assert_eq!(seen(&client.ready()), own);
                }
            });
        }
    });
}
