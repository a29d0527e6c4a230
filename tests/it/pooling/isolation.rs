//! What one session can see of another's state when both have one server connection in turn. The
//! table is [`ROWS`]; docs/pooling.md shows it.

use std::net::SocketAddr;
use std::thread;

use trunkline::wire::frame::Frame;

use super::rows::{ROWS, Row};
use super::table::{COLUMNS, Outcome, Step, markdown};
use super::{FIRST_PORT, bind_named, cheapen, codes, parse_named, router, seen};
use crate::cluster::postgres::{Options, Postgres};
use crate::cluster::{eventually, project};
use crate::raw::{Client, Login, PATIENCE, at, execute, query, sync};

/// Everything that the rows of the table need, in a database of its own for each column.
pub fn prepare(server: &Postgres, database: &str) {
    server.sql(&format!("CREATE DATABASE {database} OWNER app"));
    server.sql_in(
        database,
        "CREATE EXTENSION dblink; \
         GRANT ALL ON SCHEMA public TO app; \
         CREATE SCHEMA one AUTHORIZATION app; CREATE SCHEMA two AUTHORIZATION app; \
         CREATE TABLE one.t AS SELECT 'one' AS a; CREATE TABLE two.t AS SELECT 'two' AS a; \
         GRANT SELECT ON one.t, two.t TO app; \
         CREATE TABLE public.ddl (a int); GRANT ALL ON public.ddl TO app; INSERT INTO public.ddl VALUES (1); \
         CREATE SEQUENCE public.s; GRANT ALL ON SEQUENCE public.s TO app; \
         CREATE FUNCTION public.run(text) RETURNS void LANGUAGE plpgsql AS 'BEGIN EXECUTE $1; END'",
    );
}

/// A client's steps; what it sees of the last one, up to the end of its connection if that ends.
fn play(client: &mut Client, superuser: &mut Client, steps: &[Step]) -> String {
    let mut last = String::new();
    for step in steps {
        let request = match step {
            Step::Sql(sql) => query(sql),
            Step::Hidden(sql) => query(&hidden(sql)),
            Step::Parse(name, sql, types) => [parse_named(name, sql, types), sync()].concat(),
            Step::Run(name, parameters) => [bind_named(name, parameters), execute(), sync()].concat(),
            Step::Extended(sql, parameters) => {
                let parse = parse_named("", sql, &[]);
                [parse, bind_named("", parameters), execute(), sync()].concat()
            }
            Step::Superuser(sql) => {
                superuser.ask(sql);
                continue;
            }
        };
        if has_ended(client) {
            return ENDED.to_owned();
        }
        client.send(&request);
        let mut frames = Vec::new();
        while frames.last().is_none_or(|frame: &Frame| frame.tag != b'Z') {
            let Some(frame) = client.next() else {
                return format!("{} {ENDED}", seen(&frames));
            };
            frames.push(frame);
        }
        last = seen(&frames);
    }
    last
}

const ENDED: &str = "ended";

fn has_ended(client: &Client) -> bool {
    let socket = client.stream.socket();
    socket.set_nonblocking(true).unwrap();
    let peeked = socket.peek(&mut [0]);
    socket.set_nonblocking(false).unwrap();
    match peeked {
        Ok(length) => length == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

/// A call of a function that runs this, with nothing of it to be read in the text.
fn hidden(sql: &str) -> String {
    let codes: Vec<String> = sql.bytes().map(|byte| byte.to_string()).collect();
    format!(
        "SELECT public.run((SELECT pg_catalog.string_agg(pg_catalog.chr(c), '' ORDER BY n) \
         FROM pg_catalog.unnest(ARRAY[{}]) WITH ORDINALITY AS u(c, n)))",
        codes.join(", ")
    )
}

/// What each of two sessions with connections of their own sees.
fn alone(server: &Postgres, superuser: &mut Client, row: &Row, database: &str) -> (String, String) {
    let mut direct = |steps: &[Step]| {
        let mut client = direct_login(server, row.user, database);
        let answer = play(&mut client, superuser, steps);
        superuser.ask(row.undo);
        answer
    };
    let mine = direct(&[row.first, row.between, row.look].concat());
    let other = direct(&[row.second, row.look].concat());
    (mine, other)
}

fn direct_login(server: &Postgres, user: &str, database: &str) -> Client {
    log_in((server.address, server.port).into(), user, database)
}

fn log_in(address: SocketAddr, user: &str, database: &str) -> Client {
    let parameters = [("database", database)];
    let login = Login {
        user,
        password: user,
        parameters: &parameters,
        ..Login::default()
    };
    Client::login(address, login)
}

/// The same two, one after the other on one connection of the pooler at this address.
fn together(
    server: &Postgres,
    superuser: &mut Client,
    pooler: SocketAddr,
    database: &str,
    row: &Row,
    expected: Outcome,
) -> Outcome {
    // A new connection for each row: what leaks, or what PostgreSQL cannot take back, is not the
    // next row's.
    eventually("the connections of the row before are gone", PATIENCE, || {
        superuser.value(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE \
             datname = current_database() AND usename <> 'trunkline' AND pid <> pg_backend_pid()",
        ) == "0"
    });
    let (mine, other) = alone(server, superuser, row, database);
    let login = || log_in(pooler, row.user, database);
    let (mut first, mut second) = (login(), login());
    play(&mut first, superuser, row.first);
    let answer = second.ask("SELECT 1");
    if codes(&answer) == ["53300"] {
        // It waited for the first one, which has everything that it had, and leaves nothing.
        let own = play(&mut first, superuser, &[row.between, row.look].concat());
        drop(first);
        eventually("the connection is free again", PATIENCE, || {
            seen(&second.ask("SELECT 1")) == "1"
        });
        let others = play(&mut second, superuser, &[row.second, row.look].concat());
        if (&own, &others) != (&mine, &other) {
            eprintln!(
                "{}, pinned: first {own:?}, alone {mine:?}; second {others:?}, alone {other:?}",
                row.state
            );
            return Outcome::Leaks;
        }
        return Outcome::Pinned;
    }
    assert_eq!(seen(&answer), "1", "{}", row.state);
    let others = play(&mut second, superuser, &[row.second, row.look].concat());
    // It may have pinned the connection by its look.
    drop(second);
    let own = play(&mut first, superuser, &[row.between, row.look].concat());
    let outcome = match (others == other, own == mine) {
        _ if others.ends_with(ENDED) || own.ends_with(ENDED) => Outcome::Ended,
        (false, _) => Outcome::Leaks,
        (true, false) if own == "55000" => Outcome::Refused,
        (true, false) if own == other => Outcome::Leaks,
        (true, true) => Outcome::Kept,
        (true, false) if own.len() == 5 && own.starts_with(|first: char| first.is_ascii_digit()) => {
            Outcome::Refused
        }
        (true, false) => Outcome::Lost,
    };
    if outcome != expected {
        eprintln!(
            "{}: first {own:?}, alone {mine:?}; second {others:?}, alone {other:?}",
            row.state
        );
    }
    outcome
}

/// A server with what the rows need.
pub fn server_of_the_table() -> Postgres {
    let server = Postgres::start(&Options {
        hba: Some("host all all 127.0.0.0/8 scram-sha-256".to_owned()),
        ..Options::default()
    });
    server.sql("CREATE ROLE member; GRANT member TO app");
    cheapen(&server);
    server
}

/// Every row through the pooler at this address; what is not as `expected` says.
pub fn play_rows(
    server: &Postgres,
    pooler: SocketAddr,
    database: &str,
    expected: impl Fn(&Row) -> Outcome,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut superuser = direct_login(server, "postgres", database);
    for row in ROWS {
        let outcome = together(server, &mut superuser, pooler, database, row, expected(row));
        if outcome != expected(row) {
            wrong.push(format!("{} / {database}: {outcome:?}", row.state));
        }
    }
    wrong
}

#[test]
fn sessions_on_one_connection_see_what_the_table_says() {
    let server = server_of_the_table();
    let pools: Vec<&str> = COLUMNS.iter().map(|column| column.pool).collect();
    let router = router(&server, &pools, "300ms");
    let wrong: Vec<String> = thread::scope(|scope| {
        let columns: Vec<_> = (0..COLUMNS.len())
            .map(|column| {
                let database = COLUMNS[column].database;
                prepare(&server, database);
                let (server, router) = (&server, &router);
                let pooler = at(router, FIRST_PORT + u16::try_from(column).unwrap());
                scope.spawn(move || play_rows(server, pooler, database, |row| row.outcomes[column]))
            })
            .collect();
        columns
            .into_iter()
            .flat_map(|column| column.join().unwrap())
            .collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_document_shows_the_table_of_isolation() {
    let text = std::fs::read_to_string(project().join("docs/pooling.md")).unwrap();
    assert!(
        text.contains(&markdown()),
        "docs/pooling.md should have:\n{}",
        markdown()
    );
}
