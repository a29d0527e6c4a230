//! Sessions that have a pool's connection until they end.

use super::{FIRST_PORT, bind_named, login, parse_named, process, router, seen};
use crate::cluster::eventually;
use crate::cluster::postgres::{Options, Postgres};
use crate::raw::{Client, Login, PATIENCE, at, execute, query, shown, sync};
use trunkline::wire::frame::ErrorFields;

#[test]
fn a_session_has_its_connection_to_itself_and_leaves_nothing_on_it() {
    let server = Postgres::start(&Options::default());
    let router = router(&server, &["mode: session, max_connections: 1"], "20s");
    let mut before = String::new();
    for round in 0..3 {
        let mut client = login(&router, FIRST_PORT, "app", "app");
        let this = process(&mut client);
        assert!(round == 0 || this == before, "the same connection, clean");
        before = this;
        // What the session before has left: nothing.
        assert_eq!(
            seen(&client.ask("SELECT count(*) FROM pg_prepared_statements")),
            "0"
        );
        assert_eq!(client.value("SHOW work_mem"), "4MB");
        assert_eq!(seen(&client.ask("SELECT * FROM mine")), "42P01");
        // Not one message more or less than on a connection of its own: nothing is renamed.
        client.send(&[parse_named("s", "SELECT $1::int + 1", &[]), sync()].concat());
        assert_eq!(shown(&client.ready()), ["1", "ZI"]);
        for _ in 0..3 {
            client.send(&[bind_named("s", &["41"]), execute(), sync()].concat());
            let frames = client.ready();
            assert_eq!(frames.iter().map(|frame| frame.tag).collect::<Vec<_>>(), b"2DCZ");
            assert_eq!(seen(&frames), "42");
        }
        assert_eq!(
            seen(&client.ask("EXECUTE s(1)")),
            "2",
            "it has the client's own name"
        );
        client.ask("SET work_mem = '7MB'");
        client.ask("CREATE TEMPORARY TABLE mine (x int)");
        client.ask("LISTEN mine");
        match round {
            // Terminate in a transaction, Terminate behind a request, no goodbye.
            0 => client.send(&[query("BEGIN"), b"X\0\0\0\x04".to_vec()].concat()),
            1 => client.send(b"X\0\0\0\x04"),
            _ => {}
        }
    }
}

/// Defaults of a role are those of a connection's login; the server's configuration is everybody's,
/// also where the server reports a value.
#[test]
fn what_an_administrator_changes_is_nobody_s_own_setting() {
    let server = Postgres::start(&Options::default());
    let router = router(&server, &["max_connections: 1"], "20s");
    let mut clients = [0, 1].map(|_| login(&router, FIRST_PORT, "app", "app"));
    let shows = |client: &mut Client| {
        let work_mem = client.value("SHOW work_mem");
        format!("{work_mem} {}", client.value("SHOW TimeZone"))
    };
    let before = process(&mut clients[0]);
    server.sql("ALTER ROLE app SET work_mem = '7MB'");
    for client in &mut clients {
        client.ask("RESET ALL");
        assert!(shows(client).starts_with("4MB "));
    }
    server.sql("ALTER ROLE app RESET work_mem");
    server.sql("ALTER ROLE app NOLOGIN");
    for zone in ["Asia/Tokyo", "Europe/Berlin"] {
        for (name, value) in [("work_mem", "8MB"), ("TimeZone", zone)] {
            server.sql(&format!("ALTER SYSTEM SET {name} = '{value}'"));
        }
        server.sql("SELECT pg_reload_conf()");
        for client in &mut clients {
            eventually("the configuration counts", PATIENCE, || {
                shows(client) == format!("8MB {zone}")
            });
        }
        // In turn, so that each has the connection behind the other.
        for _ in 0..2 {
            for client in &mut clients {
                client.ask("SET statement_timeout = '1h'");
                assert_eq!(shows(client), format!("8MB {zone}"));
                client.ask("RESET statement_timeout");
            }
        }
    }
    assert_eq!(process(&mut clients[1]), before, "still the same connection");
}

/// Under these settings nearly every statement, DISCARD ALL too, waits for a snapshot that the open
/// transaction of somebody else holds up.
#[test]
fn settings_that_make_statements_wait_do_not_hold_up_the_cleaning() {
    let server = Postgres::start(&Options::default());
    let router = router(&server, &["mode: session, max_connections: 1"], "20s");
    server.sql_in("app", "CREATE TABLE t (a int); ALTER TABLE t OWNER TO app");
    let mut writer = Client::login((server.address, server.port).into(), Login::default());
    writer.ask("BEGIN ISOLATION LEVEL SERIALIZABLE; INSERT INTO t VALUES (1)");
    let mut first = login(&router, FIRST_PORT, "app", "app");
    let before = process(&mut first);
    first.ask(
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE",
    );
    drop(first);
    let mut second = login(&router, FIRST_PORT, "app", "app");
    assert_eq!(process(&mut second), before, "the same connection, clean");
    assert_eq!(second.value("SHOW transaction_isolation"), "read committed");
    assert_eq!(writer.value("SELECT 1"), "1", "it is still open");
}

/// The router looks at the role at each login. What only the server looks at counts for new
/// connections.
#[test]
fn a_login_is_checked_though_a_connection_is_there() {
    let server = Postgres::start(&Options::default());
    let router = router(&server, &["max_connections: 1"], "20s");
    let mut client = login(&router, FIRST_PORT, "app", "app");
    let before = process(&mut client);
    let comes = || Client::try_login(at(&router, FIRST_PORT), Login::default());
    server.sql("ALTER DATABASE app OWNER TO postgres; REVOKE CONNECT ON DATABASE app FROM public, app");
    assert_eq!(process(&mut comes().unwrap()), before);
    server.sql("GRANT CONNECT ON DATABASE app TO app");
    for (change, back) in [
        ("NOLOGIN", "LOGIN"),
        ("VALID UNTIL '2020-01-01'", "VALID UNTIL 'infinity'"),
        ("PASSWORD 'other'", "PASSWORD 'app'"),
    ] {
        server.sql(&format!("ALTER ROLE app {change}"));
        assert_eq!(comes().unwrap_err().code.to_string(), "28P01", "{change}");
        assert_eq!(client.value("SELECT 1"), "1", "{change}: a session goes on");
        server.sql(&format!("ALTER ROLE app {back}"));
        assert_eq!(comes().unwrap().value("SELECT 1"), "1", "{back}");
    }
}

/// Why a server lets nobody in is what the client hears, at a login and for a statement, and what
/// the log says.
#[test]
fn the_reason_of_a_server_that_refuses_is_passed_on() {
    let server = Postgres::start(&Options::default());
    let pools = ["max_connections: 2", "mode: session, max_connections: 2"];
    let router = router(&server, &pools, "5s");
    let mut inside = login(&router, FIRST_PORT, "app", "app");
    let process = process(&mut inside);
    server.sql("ALTER ROLE app CONNECTION LIMIT 0");
    server.sql(&format!("SELECT pg_terminate_backend({process})"));
    let reason = "too many connections for role \"app\"";
    eventually("the statement gets no connection", PATIENCE, || {
        let answer = inside.ask("SELECT 1");
        let Some(error) = answer.iter().find(|frame| frame.tag == b'E') else {
            return false;
        };
        let error = ErrorFields::of_prefix(&error.body);
        let code = error.code.to_string();
        // A statement that goes out before the router has read that the process ends is on a lost
        // connection.
        if code == "08007" {
            return false;
        }
        assert_eq!((code.as_str(), &*error.message), ("53300", reason));
        true
    });
    router.await_log(&[
        "no server connection for a statement",
        "too many connections for role",
    ]);
    // In session mode each login needs a connection.
    let parameters = [("database", "app")];
    let refused = Client::try_login(
        at(&router, FIRST_PORT + 1),
        Login {
            parameters: &parameters,
            ..Login::default()
        },
    );
    let error = refused.map(drop).unwrap_err();
    assert_eq!(
        (error.code.to_string().as_str(), &*error.message),
        ("53300", reason)
    );
    server.sql("ALTER ROLE app CONNECTION LIMIT -1");
    assert_eq!(inside.value("SELECT 1"), "1");
}
