//! Limits at the door and before full servers: who is refused hears why, and others are unharmed.
#![allow(clippy::unwrap_used)]

use std::net::Ipv4Addr;
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::fake::{Fake, Session, await_leader, cheap_verifier, router_before, trusting};
use super::hand::{Message, Raw, V3_0, packet};
use crate::cluster::{Cluster, Options, Router, eventually, output, secret};

const PATIENCE: Duration = Duration::from_secs(20);
const CANCEL: u32 = 80_877_102;

fn from(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 97, 0, last)
}

/// A router before one server; `server` are keys of the cluster's `server`.
pub fn before(server: &Fake, keys: &str, options: Options) -> Router {
    let dir = tempfile::tempdir().unwrap();
    let users = secret(dir.path(), "users", &format!("\"app\" \"{}\"", cheap_verifier()));
    let clusters = format!(
        "clusters:\n  main:\n    servers: [{{name: one, host: \"{}\", port: {}}}]\n    \
         service_account: {{user: trunkline, dbname: postgres}}\n    server_tls: {{sslmode: disable}}\n    \
         server: {{{keys}}}\n",
        server.address.ip(),
        server.address.port()
    );
    let router = Router::launch(
        None,
        Options {
            clusters: Some(clusters),
            extra: format!("auth: {{users_file: {}}}\n{}", users.display(), options.extra),
            ..options
        },
    );
    await_leader(&router);
    router
}

/// Logs in as `app`; the last message is ReadyForQuery or an error.
fn log_in(router: &Router, port: u16, source: Ipv4Addr) -> (Raw, Message) {
    let mut raw = Raw::connect_from(source, router.address, port);
    raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
    let last = match raw.begin_scram("app") {
        Ok(mut all) => all.pop().unwrap(),
        Err(error) => error,
    };
    (raw, last)
}

#[track_caller]
fn served(router: &Router, port: u16, source: Ipv4Addr) -> Raw {
    let (mut raw, last) = log_in(router, port, source);
    assert_eq!(last.tag, b'Z', "{last:?}\n{}", router.log());
    assert_eq!(raw.value("SELECT 1"), "1");
    raw
}

#[track_caller]
fn is_refused(answer: &Message, code: &str, text: &str, hint: &str) {
    assert_eq!((answer.tag, answer.code()), (b'E', code.to_owned()), "{answer:?}");
    assert_eq!(answer.field(b'S').unwrap(), "FATAL");
    assert_eq!(answer.field(b'M').unwrap(), text);
    let told = answer.field(b'H').unwrap();
    assert!(told.contains(hint), "{told}");
}

fn refused(router: &Router, reason: &str) -> f64 {
    router.metric(&format!("trunkline_logins_refused_total{{reason=\"{reason}\"}}"))
}

#[test]
fn addresses_are_denied_after_the_startup_packet_and_before_anything_else() {
    let server = Fake::start(Session::answer_all);
    let router = before(
        &server,
        "",
        Options {
            listeners: Some(
                "  - {name: rw, address: \"{address}:6432\", route: read-write, allow: [127.97.0.0/30], deny: [127.97.0.2]}\n"
                    .to_owned(),
            ),
            ..Options::default()
        },
    );
    let text = "this address may not connect to this port of the router";
    drop(served(&router, 6432, from(1)));
    for last in [2, 4] {
        let mut raw = Raw::connect_from(from(last), router.address, 6432);
        raw.startup(V3_0, &[("user", "nobody"), ("database", "app")]);
        is_refused(&raw.message(), "28000", text, "allow or deny of the listener");
        assert_eq!(raw.rest(), b"");
    }
    // In TLS as well: from 127.0.0.1.
    let mut raw = Raw::tls(router.address, 6432);
    raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
    is_refused(&raw.message(), "28000", text, "");
    assert_eq!(refused(&router, "address_denied"), 3.0);
    router.await_log(&["WARN", "login refused", "client=127.97.0.2:", text]);
    // Their cancel requests are not even looked up.
    let mut raw = Raw::connect_from(from(2), router.address, 6432);
    raw.send(&packet(CANCEL, &[0; 8]));
    assert_eq!(raw.rest(), b"");
    assert_eq!(router.metric("trunkline_cancels_total{result=\"denied\"}"), 1.0);
}

#[test]
fn sessions_of_a_user_a_database_an_address() {
    let server = Fake::start(Session::answer_all);
    for (key, text) in [
        ("per_user", "too many sessions as user \"app\""),
        ("per_database", "too many sessions in database \"app\""),
        ("per_address", "too many sessions from this address"),
    ] {
        let router = before(
            &server,
            "",
            Options {
                extra: format!("limits: {{{key}: 2}}\n"),
                ..Options::default()
            },
        );
        // Who has not shown a password takes no place, whatever name it gives.
        let idle: Vec<Raw> = (0..4)
            .map(|_| {
                let mut raw = Raw::connect_from(from(1), router.address, 6432);
                raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
                assert_eq!(raw.message().tag, b'R');
                raw
            })
            .collect();
        let first = served(&router, 6432, from(1));
        let _second = served(&router, 6432, from(1));
        let (_raw, answer) = log_in(&router, 6432, from(1));
        is_refused(&answer, "53300", text, &format!("raise limits.{key}, which is 2"));
        assert_eq!(refused(&router, key), 1.0);
        router.await_log(&["WARN", "login refused", "too many sessions"]);
        if key == "per_address" {
            drop(served(&router, 6432, from(2)));
        }
        drop((first, idle));
        eventually("the place is free again", PATIENCE, || {
            log_in(&router, 6432, from(1)).1.tag == b'Z'
        });
    }
}

#[test]
fn a_storm_of_logins_is_slowed_and_checks_are_not() {
    let server = Fake::start(Session::answer_all);
    let listener =
        |keys: &str| format!("  - {{name: rw, address: \"{{address}}:6432\", route: read-write{keys}}}\n");
    for (extra, keys, reason) in [
        ("limits: {connection_rate: 1/s}\n", "", "connection_rate"),
        ("", ", connection_rate: 1/s", "connection_rate_listener"),
    ] {
        let router = before(
            &server,
            "",
            Options {
                extra: extra.to_owned(),
                listeners: Some(listener(keys)),
                ..Options::default()
            },
        );
        let refusals: Vec<Message> = thread::scope(|scope| {
            let logins: Vec<_> = (0..12)
                .map(|number| {
                    scope.spawn({
                        let router = &router;
                        move || log_in(router, 6432, from(number + 1)).1
                    })
                })
                .collect();
            let answers = logins.into_iter().map(|login| login.join().unwrap());
            answers.filter(|answer| answer.tag == b'E').collect()
        });
        assert!(!refusals.is_empty(), "{}", router.log());
        let text = "too many connections at once";
        is_refused(&refusals[0], "53300", text, "ask the operator to raise");
        #[allow(clippy::cast_precision_loss, reason = "a dozen")]
        let counted = refusals.len() as f64;
        assert_eq!(refused(&router, reason), counted);
        // A balancer's check, as many as there are: it is asked for a password, and hangs up.
        for _ in 0..5 {
            let mut raw = Raw::connect_from(from(1), router.address, 6432);
            raw.startup(V3_0, &[("user", "checkuser")]);
            assert_eq!(raw.message().tag, b'R');
        }
        eventually("it is over in a moment", PATIENCE, || {
            log_in(&router, 6432, from(1)).1.tag == b'Z'
        });
    }
}

/// A login that may have to wait.
fn waiting(router: &Router) -> JoinHandle<(Raw, Message)> {
    let address = router.address;
    thread::spawn(move || {
        let mut raw = Raw::connect_from(from(1), address, 6432);
        raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
        let last = raw.begin_scram("app").unwrap().pop().unwrap();
        (raw, last)
    })
}

fn await_length(router: &Router, length: f64) {
    eventually("so many wait", PATIENCE, || {
        router.metric("trunkline_queue_length{route=\"read-write\"}") == length
    });
}

fn with_queue(server: &Fake, keys: &str) -> Router {
    before(
        server,
        "max_connections: 1",
        Options {
            extra: format!(
                "routes: {{read-write: {{targets: [leader], {keys}}}, read-only: {{targets: [replica]}}}}\n"
            ),
            ..Options::default()
        },
    )
}

const FULL: &str = "every server for read-write sessions is full";

#[test]
fn sessions_wait_for_a_place_in_turn() {
    let server = Fake::start(Session::answer_all);
    let mut router = with_queue(&server, "queue_timeout: 1m, max_queue: 2");
    let first = served(&router, 6432, from(1));
    assert_eq!(
        router.metric("trunkline_queue_entered_total{route=\"read-write\"}"),
        0.0
    );
    let second = waiting(&router);
    await_length(&router, 1.0);
    let third = waiting(&router);
    await_length(&router, 2.0);
    let (_raw, answer) = log_in(&router, 6432, from(1));
    is_refused(
        &answer,
        "53300",
        FULL,
        "2 clients already wait for a session to end",
    );
    assert_eq!(refused(&router, "queue_full"), 1.0);
    assert_eq!(
        router.metric("trunkline_queue_full_total{route=\"read-write\"}"),
        1.0
    );
    drop(first);
    let (second, answer) = second.join().unwrap();
    assert_eq!(answer.tag, b'Z', "{answer:?}");
    await_length(&router, 1.0);
    assert!(!third.is_finished());

    // One that leaves while it waits, with a FIN or a reset, has waited for nothing; those behind
    // it move up.
    let mut leaves = Raw::connect_from(from(9), router.address, 6432);
    leaves.startup(V3_0, &[("user", "app"), ("database", "app")]);
    let leaver = thread::spawn(move || {
        let socket = leaves.socket().try_clone().unwrap();
        let waits = thread::spawn(move || drop(leaves.begin_scram("app").map(|_| ())));
        (socket, waits)
    });
    let (socket, waits) = leaver.join().unwrap();
    await_length(&router, 2.0);
    let _ = socket.shutdown(std::net::Shutdown::Both);
    await_length(&router, 1.0);
    let _ = waits.join();

    drop(second);
    let (third, answer) = third.join().unwrap();
    assert_eq!(answer.tag, b'Z', "{answer:?}");
    await_length(&router, 0.0);
    assert_eq!(
        router.metric("trunkline_queue_entered_total{route=\"read-write\"}"),
        3.0
    );
    assert_eq!(router.metric("trunkline_queue_wait_seconds_count"), 3.0);

    // Who waits at the end is told.
    let last = waiting(&router);
    await_length(&router, 1.0);
    router.signal("TERM");
    let (_raw, answer) = last.join().unwrap();
    assert_eq!(answer.code(), "57P03", "{answer:?}");
    drop(third);
    assert_eq!(router.await_exit(PATIENCE), 0);
}

/// There are two places for logins, and one address may have one of them.
#[test]
fn forwarded_connections_that_wait_hold_no_place_of_a_login() {
    let server = Fake::start(Session::answer_all);
    let router = before(
        &server,
        "max_connections: 1",
        Options {
            listeners: Some(
                "  - {name: rw, address: \"{address}:6432\", route: read-write}\n  \
                 - {name: forwarding, address: \"{address}:6436\", route: read-write, mode: tcp}\n"
                    .to_owned(),
            ),
            extra: "limits: {max_pending_logins: 2}\n\
                    routes: {read-write: {targets: [leader], queue_timeout: 1m, max_queue: 9}}\n"
                .to_owned(),
            ..Options::default()
        },
    );
    let first = served(&router, 6432, from(1));
    let mut forwarded = Vec::new();
    for (last, length) in [(1, 1.0), (1, 2.0), (2, 3.0), (3, 4.0)] {
        let mut raw = Raw::connect_from(from(last), router.address, 6436);
        raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
        forwarded.push(raw);
        await_length(&router, length);
    }
    assert_eq!(router.metric("trunkline_pending_logins"), 0.0);
    let last = waiting(&router);
    await_length(&router, 5.0);
    drop(first);
    assert_eq!(forwarded[0].message().tag, b'R', "the server answers in its turn");
    drop(forwarded);
    let (_raw, answer) = last.join().unwrap();
    assert_eq!(answer.tag, b'Z', "{answer:?}");
}

#[test]
fn waiting_has_an_end_and_may_be_switched_off() {
    let server = Fake::start(Session::answer_all);
    let router = with_queue(&server, "queue_timeout: 300ms");
    let held = served(&router, 6432, from(1));
    let (_raw, answer) = log_in(&router, 6432, from(1));
    is_refused(&answer, "53300", FULL, "within 300 ms (queue_timeout)");
    assert_eq!(refused(&router, "queue_timeout"), 1.0);
    assert_eq!(
        router.metric("trunkline_queue_timeouts_total{route=\"read-write\"}"),
        1.0
    );
    router.await_log(&["WARN", "no server for the session", FULL]);
    drop(held);

    let router = with_queue(&server, "max_queue: 0");
    let held = served(&router, 6432, from(1));
    let (_raw, answer) = log_in(&router, 6432, from(1));
    is_refused(
        &answer,
        "53300",
        FULL,
        "Clients may not wait for a session to end (max_queue is 0)",
    );
    drop(held);
    eventually("the place is free again", PATIENCE, || {
        log_in(&router, 6432, from(1)).1.tag == b'Z'
    });
}

#[test]
fn full_members_are_passed_over() {
    let router = Router::before(
        Cluster::shared(),
        Options {
            cluster_extra: "server: {max_connections: 1}".to_owned(),
            extra: "routes:\n  read-write: {targets: [leader]}\n  \
                    read-only: {targets: [replica], balance: first, max_queue: 0}\n"
                .to_owned(),
            ..Options::default()
        },
    );
    router.await_replicas(Cluster::shared());
    let place = "SELECT host(inet_server_addr())";
    let ask = || {
        let mut raw = Raw::connect_from(from(1), router.address, 6433);
        raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
        let last = raw.authenticate("app").pop().unwrap();
        (raw, last)
    };
    let mut held = Vec::new();
    let mut places = Vec::new();
    for _ in Cluster::shared().replicas() {
        let (mut raw, last) = ask();
        assert_eq!(last.tag, b'Z', "{last:?}");
        places.push(raw.value(place));
        held.push(raw);
    }
    places.sort();
    places.dedup();
    assert_eq!(places.len(), Cluster::shared().replicas().len(), "one on each");
    assert_eq!(ask().1.code(), "53300");
    // Another route's members are others.
    assert_eq!(router.psql(6432, "SELECT 1"), "1");
}

#[test]
fn servers_are_told_the_clients_address() {
    let server = trusting(false);
    let host = server.address.to_string();
    let routes = |told: &str| {
        format!("routes:\n  read-write: {{targets: [leader]{told}}}\n  read-only: {{targets: [replica]}}\n")
    };
    let router = |told: &str| router_before(&host, 5432, "trunkline", &routes(told));
    let ask = |router: &Router, sql: &str, source: Ipv4Addr, extra: &[(&str, &str)]| {
        let mut raw = Raw::connect_from(source, router.address, 6432);
        let parameters = [&[("user", "app"), ("database", "app")], extra].concat();
        raw.startup(V3_0, &parameters);
        assert_eq!(raw.authenticate("app").pop().unwrap().tag, b'Z');
        raw.value(sql)
    };
    let usual = router("");
    let setting = "SELECT current_setting('trunkline.client_addr', true)";
    let lies = [
        ("options", "-c trunkline.client_addr=1.2.3.4"),
        ("Trunkline.client_addr", "1.2.3.4"),
        ("application_name", "probe"),
    ];
    assert_eq!(ask(&usual, setting, from(7), &lies), "127.97.0.7");
    assert_eq!(ask(&usual, "SHOW application_name", from(7), &lies), "probe");
    // It is what the session goes back to.
    let mut raw = Raw::connect_from(from(8), usual.address, 6432);
    raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
    let _ = raw.authenticate("app");
    let _ = raw.query("SET trunkline.client_addr = 'x'; DISCARD ALL");
    assert_eq!(raw.value(setting), "127.97.0.8");

    let other = router(", client_address: {setting: false, application_name: true}");
    assert_eq!(
        ask(
            &other,
            "SELECT coalesce(current_setting('trunkline.client_addr', true), 'none')",
            from(7),
            &[]
        ),
        "none"
    );
    let name = ask(&other, "SHOW application_name", from(7), &lies[2..]);
    assert!(name.starts_with("probe from 127.97.0.7:"), "{name}");
    let psql = output(
        Command::new("psql")
            .args([
                "-XAtqc",
                "SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()",
            ])
            .arg(other.dsn(6432, "")),
    );
    let name = String::from_utf8_lossy(&psql.stdout).into_owned();
    assert!(name.starts_with("psql from 127.0.0.1:"), "{name}");
}

/// `pg_stat_ssl` shows the router's connection; how the client came is told where that is wanted.
#[test]
fn servers_are_told_how_the_client_came() {
    let server = trusting(false);
    let host = server.address.to_string();
    let router = |told: &str| {
        let routes = format!(
            "routes:\n  read-write: {{targets: [leader]{told}}}\n  read-only: {{targets: [replica]}}\n"
        );
        router_before(&host, 5432, "trunkline", &routes)
    };
    let ask = |router: &Router, extra: &str| {
        let sql = "SELECT coalesce(current_setting('trunkline.client_tls', true), 'not told')";
        let answer = router.psql_output(6432, extra, sql);
        assert!(
            answer.status.success(),
            "{}",
            String::from_utf8_lossy(&answer.stderr)
        );
        String::from_utf8_lossy(&answer.stdout).trim().to_owned()
    };
    let telling = router(", client_address: {tls: true}");
    assert_eq!(ask(&telling, "sslmode=require"), "TLSv1.3");
    assert_eq!(
        ask(&telling, "sslmode=require ssl_max_protocol_version=TLSv1.2"),
        "TLSv1.2"
    );
    assert_eq!(ask(&telling, "sslmode=disable"), "");
    // The client cannot say so of itself.
    let lie = "sslmode=disable options='-c trunkline.client_tls=TLSv1.3'";
    assert_eq!(ask(&telling, lie), "");
    assert_eq!(ask(&router(""), "sslmode=require"), "not told");
}
