//! Orders at the console, its sessions as operators see them, cancel requests, and drivers that
//! keep to transactions.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::cancel::cancel;
use crate::cluster::postgres::{Options as ServerOptions, Postgres};
use crate::cluster::{
    Certificates, Options, Router, eventually, fresh_address, output, project, secret, succeed,
};
use crate::drivers::cache;
use crate::hand::{Raw, V3_0, message};
use crate::raw::{How, at};

const TOKEN: &str = "a-token-of-24-characters";
const SOON: Duration = Duration::from_secs(20);

/// A server that leads, and a router with a pool; `admin` may give orders, `reader` only reads.
fn led() -> (Postgres, Router) {
    let server = Postgres::start(&ServerOptions::default());
    server.sql("CREATE ROLE admin LOGIN PASSWORD 'admin'; CREATE ROLE reader LOGIN PASSWORD 'reader'");
    let token = secret(&server.data(), "token", TOKEN);
    let options = Options {
        clusters: Some(server.yaml()),
        address: Some(fresh_address()),
        http: format!("token_file: {}", token.display()),
        extra: "console: {users: [admin, reader], operators: [admin]}\nroutes:\n  \
                read-write: {targets: [leader], pool: {mode: transaction, max_connections: 3}}\n"
            .to_owned(),
        listeners: Some("  - {name: rw, address: \"{address}:6432\", route: read-write}\n".to_owned()),
        ..Options::default()
    };
    let router = Router::launch(None, options);
    router.await_read_write();
    (server, router)
}

fn into(router: &Router, database: &str, user: &str) -> (Raw, u32, Vec<u8>) {
    let mut raw = Raw::tls(router.address, 6432);
    raw.startup(V3_0, &[("user", user), ("database", database)]);
    let all = raw.authenticate(user);
    assert_eq!(all.last().unwrap().tag, b'Z', "{all:?}");
    let key = all.iter().find(|message| message.tag == b'K').unwrap();
    let process_id = u32::from_be_bytes(key.body[..4].try_into().unwrap());
    (raw, process_id, key.body[4..].to_vec())
}

fn console(router: &Router) -> Raw {
    into(router, "trunkline", "admin").0
}

/// What psql prints at the console, errors included.
fn told(router: &Router, user: &str, command: &str) -> String {
    let dsn = router.dsn(6432, &format!("dbname=trunkline user={user} password={user}"));
    let output = output(
        Command::new("psql")
            .args(["-XAtq", "-v", "VERBOSITY=verbose", "-c", command])
            .arg(dsn),
    );
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

fn sessions(router: &Router) -> Vec<Value> {
    let (status, body) = router.http("/api/v1/sessions").unwrap();
    assert_eq!(status, 200);
    serde_json::from_str(&body).unwrap()
}

fn consoles(router: &Router) -> Vec<Value> {
    let mut all = sessions(router);
    all.retain(|session| session["phase"] == "console");
    all
}

fn trunkline(router: &Router, arguments: &[&str]) -> String {
    let output = output(
        Command::new(env!("CARGO_BIN_EXE_trunkline"))
            .args(arguments)
            .arg("-c")
            .arg(router.dir().join("trunkline.yaml")),
    );
    String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
}

#[test]
fn operators_order_and_everybody_sees_it() {
    let (_server, router) = led();
    let member = "s1";
    let state = || {
        let (_, body) = router.http("/api/v1/members").unwrap();
        let members: Value = serde_json::from_str(&body).unwrap();
        members[0]["admin"].as_str().unwrap().to_owned()
    };
    for (command, admin) in [("DRAIN", "drain"), ("MAINT", "maint"), ("READY", "ready")] {
        let told = told(&router, "admin", &format!("{command} {member}"));
        assert!(told.contains(&format!("{member}: {admin}")), "{told}");
        assert_eq!(state(), admin);
        router.await_log(&["administrative state set", &format!("state={admin}"), "(console)"]);
    }
    router.await_read_write();
    let refused = told(&router, "reader", "DRAIN s1");
    assert!(refused.contains("42501"), "{refused}");
    assert_eq!(state(), "ready");

    let disabled = told(&router, "admin", "DISABLE read-write");
    assert!(disabled.contains("read-write: disabled"), "{disabled}");
    let client = router.psql_output(6432, "", "SELECT 1");
    assert!(!client.status.success());
    let enabled = told(&router, "admin", "ENABLE read-write");
    assert!(enabled.contains("read-write: enabled\n"), "{enabled}");
    told(&router, "admin", "PAUSE");
    let enabled = told(&router, "admin", "ENABLE read-write");
    assert!(
        enabled.contains("read-write: enabled, and still paused: its clients wait until RESUME read-write"),
        "{enabled}"
    );
    told(&router, "admin", "RESUME");
    assert!(router.psql_output(6432, "", "SELECT 1").status.success());

    let reloaded = told(&router, "admin", "RELOAD");
    assert!(reloaded.contains("nothing has changed"), "{reloaded}");
    for (command, hint) in [
        ("SHUTDOWN", "SIGTERM"),
        ("KILL app", "takes the id of a session"),
        ("SET max_client_conn = 1", "RELOAD reads it"),
    ] {
        let told = told(&router, "admin", command);
        assert!(told.contains("0A000") && told.contains(hint), "{told}");
    }
}

#[test]
fn connections_are_replaced_and_waited_for() {
    let (_server, router) = led();
    let (mut client, ..) = into(&router, "app", "app");
    client.query("BEGIN");
    let before = client.value("SELECT pg_backend_pid()");
    let replaced = told(&router, "admin", "RECONNECT");
    assert!(
        replaced.contains("is replaced") || replaced.contains("are replaced"),
        "{replaced}"
    );
    let waited = told(&router, "admin", "WAIT_CLOSE TIMEOUT 1");
    assert!(
        waited.contains("55006") && waited.contains("1 connection is still open"),
        "{waited}"
    );
    let mut waiting = console(&router);
    waiting.send(&message(b'Q', b"WAIT_CLOSE read-write\0"));
    assert_eq!(waiting.message().tag, b'N');
    client.query("COMMIT");
    assert_eq!(waiting.message().tag, b'N', "the last one was given back");
    assert_eq!(waiting.message().tag, b'C');
    assert_ne!(client.value("SELECT pg_backend_pid()"), before);
    // Of a member that is drained, every connection.
    told(&router, "admin", "DRAIN s1");
    assert_eq!(
        told(&router, "admin", "WAIT_CLOSE s1 TIMEOUT 20")
            .matches("ERROR")
            .count(),
        0
    );
    told(&router, "admin", "READY s1");
    router.await_read_write();
}

#[test]
fn sessions_of_the_console_are_listed_apart_and_can_be_killed() {
    let (_server, router) = led();
    let mut inside = console(&router);
    let listed = consoles(&router);
    assert_eq!(listed.len(), 1, "{listed:?}");
    let own = &listed[0];
    assert_eq!(
        (own["route"].as_str(), own["member"].as_str()),
        (Some(""), Some(""))
    );
    assert_eq!(own["database"], "trunkline");
    let rows = inside.value("SELECT count(*) FROM sessions WHERE phase = 'console' AND state = 'active'");
    assert_eq!(rows, "1", "it sees itself");
    assert!(trunkline(&router, &["sessions"]).contains("console"));
    // Nobody counts it as a client.
    let (_, body) = router.http("/api/v1/router").unwrap();
    let state: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(state["sessions"], 0);
    assert!(router.metric("trunkline_console_sessions") > 0.5);
    inside.query("BEGIN");
    assert_eq!(consoles(&router)[0]["state"], "idle in transaction");

    let id = own["id"].to_string();
    let killed = trunkline(&router, &["kill", &id]);
    assert!(killed.contains(&id), "{killed}");
    assert_eq!(inside.last_error().code(), "57P01");
    eventually("it has left", SOON, || consoles(&router).is_empty());
    // Itself.
    let mut inside = console(&router);
    let id = inside.value("SELECT id FROM sessions WHERE phase = 'console'");
    let tags: Vec<u8> = inside
        .query(&format!("KILL {id}"))
        .iter()
        .map(|message| message.tag)
        .collect();
    assert_eq!(tags, b"NCZ");
    assert_eq!(inside.last_error().code(), "57P01");
    // A client.
    let (mut client, ..) = into(&router, "app", "app");
    let mut inside = console(&router);
    let id = inside.value("SELECT id FROM sessions WHERE \"user\" = 'app'");
    let tags: Vec<u8> = inside
        .query(&format!("KILL {id}"))
        .iter()
        .map(|message| message.tag)
        .collect();
    assert_eq!(tags, b"NCZ");
    assert_eq!(client.last_error().code(), "57P01");
    // The end of the process waits for none.
    router.signal("TERM");
    assert_eq!(inside.last_error().code(), "57P01");
}

#[test]
fn a_cancel_request_ends_what_the_console_waits_for() {
    let (_server, router) = led();
    let (mut client, ..) = into(&router, "app", "app");
    client.query("BEGIN");
    client.query("SELECT 1");
    let (mut inside, process_id, key) = into(&router, "trunkline", "admin");
    let (_other, other_id, _) = into(&router, "trunkline", "admin");
    for command in ["PAUSE", "RECONNECT; ", "WAIT_CLOSE"] {
        if command == "RECONNECT; " {
            inside.query("RESUME");
            inside.query("RECONNECT");
            continue;
        }
        inside.send(&message(b'Q', format!("{command}\0").as_bytes()));
        eventually("it is under way", SOON, || {
            let is_active = |session: &Value| session["state"] == "active";
            consoles(&router).iter().any(is_active)
        });
        let mut wrong = key.clone();
        wrong[0] ^= 1;
        cancel(at(&router, 6432), How::Tls, process_id, &wrong);
        cancel(at(&router, 6432), How::Tls, other_id, &key);
        cancel(at(&router, 6432), How::Tls, process_id, &key);
        let mut said = Vec::new();
        loop {
            let message = inside.message();
            match message.tag {
                b'E' => said.push(message.code()),
                b'Z' => break,
                _ => {}
            }
        }
        assert_eq!(said, ["57014"], "{command}");
    }
    // Idle: nothing happens.
    cancel(at(&router, 6432), How::Tls, process_id, &key);
    assert!(inside.value("SHOW VERSION").starts_with("Trunkline"));
    client.query("COMMIT");
}

/// Work for a second and more, of which nothing is left to do when nobody waits for it.
#[test]
fn a_cancel_request_and_kill_end_a_query_that_runs() {
    let (_server, router) = led();
    let (text, pattern) = ("a".repeat(50_000), "a".repeat(3000));
    let heavy = format!("SELECT count(*) FROM config WHERE '{text}' LIKE '%{pattern}b'\0");
    let (mut inside, process_id, key) = into(&router, "trunkline", "admin");
    let mut other = console(&router);
    let running = || -> Option<u64> {
        let mut all = consoles(&router);
        all.retain(|session| session["state"] == "active");
        all.first().and_then(|session| session["id"].as_u64())
    };
    let code = |raw: &mut Raw| loop {
        let message = raw.message();
        match message.tag {
            b'E' => return message.code(),
            b'Z' => panic!("it was answered"),
            _ => {}
        }
    };
    for ends in ["57014", "57P01"] {
        inside.send(&message(b'Q', heavy.as_bytes()));
        eventually("it runs", SOON, || running().is_some());
        if ends == "57014" {
            cancel(at(&router, 6432), How::Tls, process_id, &key);
        } else {
            let id = running().unwrap();
            other.query(&format!("KILL {id}"));
        }
        assert_eq!(code(&mut inside), ends);
        if ends == "57014" {
            assert_eq!(inside.message().tag, b'Z');
        }
        // The work has ended, too: only the query that asks is worked on.
        let used = "SELECT used FROM limits WHERE name = 'queries of the console'";
        eventually("its turn is over", SOON, || other.value(used) == "1");
    }
}

#[test]
fn a_client_that_leaves_waits_for_nothing() {
    let (_server, router) = led();
    let (mut client, ..) = into(&router, "app", "app");
    client.query("BEGIN");
    client.query("SELECT 1");
    told(&router, "admin", "RECONNECT");
    let waiting: Vec<Raw> = (0..100)
        .map(|_| {
            let mut waiting = console(&router);
            waiting.send(&message(b'Q', b"WAIT_CLOSE\0"));
            assert_eq!(waiting.message().tag, b'N');
            waiting
        })
        .collect();
    drop(waiting);
    eventually("nobody waits any more", SOON, || consoles(&router).is_empty());
    // An order that was begun is carried out, and is in the events.
    let mut leaving = console(&router);
    leaving.send(&message(b'Q', b"DRAIN s1\0"));
    drop(leaving);
    router.await_log(&["administrative state set", "state=drain", "(console)"]);
    client.query("COMMIT");
}

#[test]
fn drivers_that_keep_to_transactions() {
    let (_server, router) = led();
    let python = cache().join("drivers-python/bin/python");
    let mut command = Command::new(python);
    command
        .arg(project().join("tests/drivers/console_transactions.py"))
        .env("HOST", router.address.to_string())
        .env("CA", Certificates::shared().file("ca.crt"))
        .stdin(Stdio::null());
    assert_eq!(succeed(&mut command).trim(), "done");
    let psycopg2 = cache().join("patroni-4.1/bin/python");
    let mut command = Command::new(psycopg2);
    command
        .arg(project().join("tests/drivers/console_psycopg2.py"))
        .env("HOST", router.address.to_string())
        .env("CA", Certificates::shared().file("ca.crt"));
    assert_eq!(succeed(&mut command).trim(), "done");
    let mut java = Command::new("java");
    java.args(["-XX:TieredStopAtLevel=1", "-cp", "/usr/share/java/postgresql.jar"])
        .arg(project().join("tests/drivers/ConsoleTransactions.java"))
        .env("HOST", router.address.to_string())
        .env("CA", Certificates::shared().file("ca.crt"));
    assert_eq!(succeed(&mut java).trim(), "done");
}
