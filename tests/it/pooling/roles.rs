//! Roles that are dropped, and made again under the same name, while a pool has connections on
//! which they have logged in (P65).

use std::collections::BTreeSet;

use super::{FIRST_PORT, codes, login, process, router, seen};
use crate::cluster::postgres::{Options, Postgres};
use crate::cluster::{Router, eventually};
use crate::raw::{Client, PATIENCE, query, terminate};

fn server() -> Postgres {
    let server = Postgres::start(&Options::default());
    server.sql_in("app", "CREATE TABLE t (a int)");
    server.sql("CREATE ROLE worker LOGIN PASSWORD 'worker'");
    server.sql_in("app", "GRANT SELECT ON t TO worker");
    server
}

/// Drops the role and makes it again, with the same stored password.
fn make_anew(server: &Postgres) {
    let stored = server.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'worker'");
    server.sql_in("app", "DROP OWNED BY worker");
    server.sql("DROP ROLE worker");
    server.sql(&format!("CREATE ROLE worker LOGIN PASSWORD '{stored}'"));
    server.sql_in("app", "GRANT SELECT ON t TO worker");
}

fn worker(router: &Router, port: u16) -> Client {
    login(router, port, "worker", "app")
}

fn discarded(router: &Router, route: &str) -> f64 {
    router.metric(&format!(
        "trunkline_pool_discarded_total{{route=\"{route}\",reason=\"role_gone\"}}"
    ))
}

const WORKS: &str = "SELECT current_user, count(*) FROM t";

#[test]
fn connections_of_a_role_that_is_made_anew_are_replaced_at_the_first_error() {
    let server = server();
    let router = router(&server, &["max_connections: 3"], "20s");
    let mut clients: Vec<Client> = (0..3).map(|_| worker(&router, FIRST_PORT)).collect();
    let errors = [
        (1.0, vec!["SELECT current_user"], "42704"),
        (2.0, vec!["SELECT count(*) FROM t"], "42501"),
        (3.0, vec!["CREATE TEMP TABLE x (a int)"], "42704"),
        (
            4.0,
            vec!["BEGIN", "SELECT count(*) FROM t", "SELECT 1", "ROLLBACK"],
            "42501",
        ),
    ];
    for (replaced, requests, code) in errors {
        for client in &mut clients {
            client.ask("BEGIN");
        }
        let old: BTreeSet<String> = clients.iter_mut().map(process).collect();
        assert_eq!(old.len(), 3);
        for client in &mut clients {
            client.ask("COMMIT");
        }
        make_anew(&server);
        // PostgreSQL says nothing as long as no right is needed.
        assert_eq!(seen(&clients[0].ask("SELECT 1")), "1");
        let said: Vec<String> = requests
            .iter()
            .flat_map(|request| codes(&clients[0].ask(request)))
            .collect();
        assert_eq!(said[0], code, "{requests:?}");
        for client in &mut clients {
            assert_eq!(seen(&client.ask(WORKS)), "worker,0", "{requests:?}");
            assert!(!old.contains(&process(client)), "{requests:?}");
        }
        assert!((discarded(&router, "r0") - replaced).abs() < 0.1, "{requests:?}");
    }
    router.await_log(&["the role of a pool's connections was dropped", "user=worker"]);
}

#[test]
fn a_session_with_a_role_that_is_gone_leaves_its_connection_to_nobody() {
    let server = server();
    let router = router(&server, &["mode: session, max_connections: 1"], "20s");
    let mut client = worker(&router, FIRST_PORT);
    let old = process(&mut client);
    make_anew(&server);
    for _ in 0..2 {
        assert_eq!(codes(&client.ask(WORKS)), ["42501"]);
        assert_eq!(process(&mut client), old, "it is the session's until its end");
    }
    client.send(&terminate());
    let mut next = worker(&router, FIRST_PORT);
    assert_eq!(seen(&next.ask(WORKS)), "worker,0");
    assert_ne!(process(&mut next), old);
    assert!((discarded(&router, "r0") - 1.0).abs() < 0.1);
}

#[test]
fn a_right_that_a_role_does_not_have_costs_no_connection() {
    let server = server();
    let pools = ["max_connections: 1", "mode: session, max_connections: 1"];
    let router = router(&server, &pools, "20s");
    for (index, port) in [FIRST_PORT, FIRST_PORT + 1].into_iter().enumerate() {
        let mut client = worker(&router, port);
        let own = process(&mut client);
        assert_eq!(codes(&client.ask("SELECT * FROM pg_authid")), ["42501"]);
        assert_eq!(codes(&client.ask("SHOW no.such")), ["42704"]);
        assert_eq!(seen(&client.ask(WORKS)), "worker,0");
        client.send(&terminate());
        let mut next = worker(&router, port);
        assert_eq!(process(&mut next), own);
        assert!(discarded(&router, &format!("r{index}")) < 0.1);
    }
    let question = "trunkline_pool_exchanges_total{route=\"r0\",kind=\"question\"}";
    assert!((router.metric(question) - 2.0).abs() < 0.1);
}

/// A session keeps the password with which its client logged in, and can do nothing with it once
/// the server has another one.
#[test]
fn a_session_whose_password_was_changed_ends_when_it_needs_a_connection() {
    let server = server();
    let router = router(&server, &["max_connections: 1"], "20s");
    let mut client = worker(&router, FIRST_PORT);
    server.sql("ALTER ROLE worker PASSWORD 'other'");
    // The connection that is there serves it.
    assert_eq!(seen(&client.ask(WORKS)), "worker,0");
    let idle = || router.metric(r#"trunkline_pool_connections{route="r0",member="s1",state="idle"}"#);
    eventually("the connection is back", PATIENCE, || (idle() - 1.0).abs() < 0.1);
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'worker'");
    // A statement that goes out before the router has read the end is on a lost connection.
    eventually("the router knows that it is lost", PATIENCE, || idle() < 0.1);
    client.send(&query("SELECT 1"));
    assert_eq!(codes(&client.rest()), ["57P01"], "the last word");
    router.await_log(&["session ended", "does not take the session's password any more"]);
    server.sql("ALTER ROLE worker PASSWORD 'worker'");
    assert_eq!(seen(&worker(&router, FIRST_PORT).ask(WORKS)), "worker,0");
}
