//! What operators see of pools, and what they do with them.

use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use crate::cluster::postgres::{Options as ServerOptions, Postgres};
use crate::cluster::{Options, Router, eventually, fresh_address, output, secret};
use crate::hand::{Message, Raw, V3_0};

const TOKEN: &str = "a-token-of-24-characters";
const SOON: Duration = Duration::from_secs(20);

/// A router with a pool at port 6432 and the same without one at 6430 and, with `mode: tcp`, at
/// 6431, before one server.
struct Pooled {
    router: Router,
    server: Postgres,
}

impl Pooled {
    /// `pool` are keys of the pool, `server` those of `clusters.main.server`.
    fn with(pool: &str, server_keys: &str) -> Self {
        let server = Postgres::start(&ServerOptions::default());
        Self::before(server, "1s", pool, server_keys)
    }

    fn before(server: Postgres, queue_timeout: &str, pool: &str, server_keys: &str) -> Self {
        let dir = tempfile::tempdir().unwrap().keep();
        let token = secret(&dir, "token", TOKEN);
        let address = fresh_address();
        let options = Options {
            clusters: Some(format!(
                "{}    server: {{connect_timeout: 15s, {server_keys}}}\n",
                server.yaml()
            )),
            address: Some(address),
            http: format!("token_file: {}", token.display()),
            listeners: Some(
                "  - {name: rw, address: \"{address}:6432\", route: rw}\n  \
                 - {name: plain, address: \"{address}:6430\", route: plain}\n  \
                 - {name: bytes, address: \"{address}:6431\", route: plain, mode: tcp}\n"
                    .to_owned(),
            ),
            extra: format!(
                "control_socket: {}/control.sock\nauth: {{rate_limit: {{failures: 0}}}}\n\
                 routes:\n  rw: {{targets: [leader], queue_timeout: {queue_timeout}, pool: {{mode: transaction, {pool}}}}}\n  \
                 plain: {{targets: [leader]}}\n",
                dir.display()
            ),
            ..Options::default()
        };
        let router = Router::launch(None, options);
        router.await_read_write();
        Self { router, server }
    }

    fn session(&self, port: u16) -> Raw {
        let mut raw = Raw::tls(self.router.address, port);
        raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
        assert_eq!(raw.authenticate("app").last().unwrap().tag, b'Z');
        raw
    }

    fn run(&self, arguments: &[&str]) -> Output {
        output(
            Command::new(env!("CARGO_BIN_EXE_trunkline"))
                .args(arguments)
                .arg("-c")
                .arg(self.router.dir().join("trunkline.yaml")),
        )
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        let done = self.run(arguments);
        let errors = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(done.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let mut all = arguments.to_vec();
        all.push("--json");
        serde_json::from_str(&self.ok(&all)).unwrap()
    }

    /// Idle, leased and pinned connections of the only pool.
    fn counts(&self) -> [u64; 3] {
        let pools = self.json(&["pools"]);
        let sum = |key: &str| {
            let members = pools.iter().flat_map(|pool| pool["members"].as_array().unwrap());
            members.map(|member| member[key].as_u64().unwrap()).sum()
        };
        ["idle", "leased", "pinned"].map(sum)
    }

    #[track_caller]
    fn await_counts(&self, counts: [u64; 3]) {
        eventually(&format!("{counts:?}"), SOON, || self.counts() == counts);
    }

    fn phases(&self) -> Vec<String> {
        let sessions = self.json(&["sessions"]);
        let of = |session: &Value| session["phase"].as_str().unwrap().to_owned();
        sessions.iter().map(of).collect()
    }
}

const BACKEND: &str = "SELECT pg_backend_pid()";

#[test]
fn pools_and_sessions_are_shown_with_what_pins_them() {
    let on = Pooled::with("max_connections: 2", "");
    let mut one = on.session(6432);
    one.value("SELECT 1");
    on.await_counts([1, 0, 0]);
    assert_eq!(on.phases(), ["detached"]);
    assert!(on.json(&["sessions"])[0]["held_s"].is_null());
    one.query("LISTEN news");
    on.await_counts([0, 1, 1]);
    let sessions = on.json(&["sessions"]);
    assert_eq!(sessions[0]["phase"], "pinned");
    assert_eq!(sessions[0]["pins"], serde_json::json!(["listen"]));
    assert_ne!(sessions[0]["member"], "");
    eventually("it has held its connection for a second", SOON, || {
        on.json(&["sessions", "--route", "rw"])[0]["held_s"].as_u64() >= Some(1)
    });
    assert!(on.json(&["sessions", "--route", "plain"]).is_empty());
    let table = on.ok(&["sessions"]);
    assert!(table.contains("idle, pinned (listen)"), "{table}");
    let table = on.ok(&["pools", "--route", "rw"]);
    assert!(table.contains("listen 1"), "{table}");
    let servers = on.json(&["servers", "--route", "rw"]);
    assert_eq!(servers.len(), 1);
    assert_eq!(servers[0]["state"], "pinned");
    assert!(servers[0]["held_s"].as_u64() >= Some(1), "{servers:?}");
    assert_eq!(servers[0]["session"], sessions[0]["id"]);
    assert_eq!(servers[0]["process_id"], sessions[0]["process_id"]);
    let warning = on
        .router
        .await_log(&["half of a pool's connections or more are pinned"]);
    assert!(warning.contains("listen 1"), "{warning}");
    // The second of two: the next session waits until it may not any more.
    let mut two = on.session(6432);
    two.query("BEGIN");
    let mut three = on.session(6432);
    let refused = three.query("SELECT 1");
    let error = refused.iter().find(|message| message.tag == b'E').unwrap();
    let hint = error.field(b'H').unwrap();
    assert_eq!(error.code(), "53300");
    assert!(
        hint.contains("1 of its 2 connections are pinned to their sessions (listen 1)"),
        "{hint}"
    );
    let refused = on
        .router
        .metric("trunkline_pool_refused_total{route=\"rw\",reason=\"queue_timeout\"}");
    assert!((refused - 1.0).abs() < 0.1, "{refused}");
    two.query("COMMIT");
    let process: u32 = one.value(BACKEND).parse().unwrap();
    one.query("UNLISTEN *");
    on.await_counts([2, 0, 0]);
    let member = sessions[0]["member"].as_str().unwrap();
    let servers = on.json(&["servers", "--member", member]);
    assert_eq!(servers.len(), 2);
    let own = servers
        .iter()
        .find(|server| server["process_id"] == process)
        .unwrap();
    assert_eq!(own["state"], "idle");
    // At the login, for SELECT, and from LISTEN on.
    assert_eq!(own["leases"], 3);
    assert!(own["session"].is_null());
    for (arguments, what) in [
        (["servers", "--member", "nobody"], "has no member nobody"),
        (["servers", "--route", "nobody"], "has no route nobody"),
        (["pools", "--route", "nobody"], "has no route nobody"),
        (["sessions", "--route", "nobody"], "has no route nobody"),
        (["pools", "--cluster", "nobody"], "there is no cluster nobody"),
    ] {
        let done = on.run(&arguments);
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(
            done.status.code(),
            Some(1),
            "{arguments:?}: an empty list is no answer"
        );
        assert!(said.contains(what), "{arguments:?}: {said}");
    }
    let table = on.ok(&["servers"]);
    assert!(table.contains(&process.to_string()), "{table}");
    let pins = on
        .router
        .metric("trunkline_pool_pins_total{route=\"rw\",reason=\"listen\"}");
    assert!((pins - 1.0).abs() < 0.1);
    assert!(
        on.router
            .metric("trunkline_pool_exchanges_total{route=\"rw\",kind=\"question\"}")
            > 0.9
    );
    let member = on.json(&["members"])[0]["name"].as_str().unwrap().to_owned();
    let idle = format!("trunkline_pool_connections{{route=\"rw\",member=\"{member}\",state=\"idle\"}}");
    assert!((on.router.metric(&idle) - 2.0).abs() < 0.1);
}

#[test]
fn reconnect_replaces_connections_and_cuts_no_transaction() {
    let on = Pooled::with("max_connections: 2", "");
    let member = on.json(&["members"])[0]["name"].as_str().unwrap().to_owned();
    let (mut one, mut two) = (on.session(6432), on.session(6432));
    one.query("BEGIN");
    let mine = one.value(BACKEND);
    let idle = two.value(BACKEND);
    assert_ne!(mine, idle);
    for which in [vec!["--member", &member], vec!["--route", "rw"], vec!["--all"]] {
        let mut arguments = vec!["reconnect"];
        arguments.extend(which);
        on.ok(&arguments);
        on.await_counts([0, 1, 0]);
        assert_eq!(one.value(BACKEND), mine, "a transaction goes on");
    }
    one.query("COMMIT");
    on.await_counts([0, 0, 0]);
    assert_ne!(one.value(BACKEND), mine);
    let closed = on
        .router
        .metric("trunkline_pool_closed_total{route=\"rw\",reason=\"reconnect\"}");
    assert!(closed > 1.9, "{closed}");
    on.router.await_log(&["connections of pools are replaced"]);
    let nobody = on.run(&["reconnect", "--member", "nobody"]);
    assert_eq!(nobody.status.code(), Some(1));
}

#[track_caller]
fn assert_disabled(raw: &mut Raw, route: &str) {
    raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
    let error = raw.last_error();
    assert_eq!(error.code(), "57P03");
    assert_eq!(
        error.field(b'M').unwrap(),
        format!("the route {route} is disabled")
    );
}

#[test]
fn a_disabled_route_refuses_logins_and_its_sessions_go_on() {
    let on = Pooled::with("max_connections: 1", "");
    let (mut one, mut two) = (on.session(6432), on.session(6432));
    one.query("BEGIN");
    assert_eq!(on.ok(&["disable", "rw"]), "rw: disabled; 2 sessions go on\n");
    assert_disabled(&mut Raw::tls(on.router.address, 6432), "rw");
    one.query("COMMIT");
    // It has no connection at the moment, and gets one, old or new.
    assert_eq!(two.value("SELECT 7"), "7");
    on.ok(&["reconnect", "--route", "rw"]);
    assert_eq!(two.value("SELECT 8"), "8");
    let mut plain = on.session(6430);
    on.ok(&["disable", "plain"]);
    assert_disabled(&mut Raw::tls(on.router.address, 6430), "plain");
    assert_disabled(&mut Raw::connect(on.router.address, 6431), "plain");
    assert_eq!(plain.value("SELECT 9"), "9");
    on.ok(&["enable", "rw"]);
    assert_eq!(on.session(6432).value("SELECT 1"), "1");
    let refused = on
        .router
        .metric("trunkline_logins_refused_total{reason=\"disabled\"}");
    assert!((refused - 3.0).abs() < 0.1, "{refused}");
}

#[test]
fn a_statement_for_which_no_connection_can_be_opened_is_counted_and_logged() {
    let on = Pooled::with("max_connections: 2", "");
    let member = on.json(&["members"])[0]["name"].as_str().unwrap().to_owned();
    let mut one = on.session(6432);
    on.server.sql("ALTER ROLE app NOLOGIN");
    on.ok(&["reconnect", "--all"]);
    on.await_counts([0, 0, 0]);
    let refused = one.query("SELECT 1");
    let error = refused.iter().find(|message| message.tag == b'E').unwrap();
    assert_eq!(error.code(), "28000");
    on.router.await_log(&[
        "no server connection for a statement",
        "route=rw",
        "not permitted to log in",
    ]);
    on.server.sql("ALTER ROLE app LOGIN");
    assert_eq!(one.value("SELECT 2"), "2");
    for metric in [
        "trunkline_pool_refused_total{route=\"rw\",reason=\"server_refused\"}".to_owned(),
        format!("trunkline_pool_connects_failed_total{{route=\"rw\",member=\"{member}\"}}"),
    ] {
        assert!((on.router.metric(&metric) - 1.0).abs() < 0.1, "{metric}");
    }
}

#[test]
fn an_idle_connection_makes_room_for_a_session_without_a_pool() {
    let on = Pooled::with("max_connections: 2, wait_notify: 100ms", "max_connections: 2");
    let (mut one, mut two) = (on.session(6432), on.session(6432));
    one.query("BEGIN");
    two.value("SELECT 1");
    one.query("COMMIT");
    on.await_counts([2, 0, 0]);
    let on_member = || {
        let member = on.json(&["members"]).remove(0);
        [&member["sessions"], &member["server_connections"]].map(|count| count.as_u64().unwrap())
    };
    assert_eq!(on_member(), [0, 2], "no session has a connection");
    let mut plain = on.session(6430);
    assert_eq!(plain.value("SELECT 1"), "1");
    on.await_counts([1, 0, 0]);
    assert_eq!(on_member(), [1, 2]);
    // Nothing idles now: the next one waits until something does.
    one.query("BEGIN");
    on.await_counts([0, 1, 0]);
    let address = on.router.address;
    let waits = std::thread::spawn(move || {
        let mut raw = Raw::tls(address, 6430);
        raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
        raw.authenticate("app");
        raw.value("SELECT 2")
    });
    eventually("it waits", SOON, || {
        on.router.metric("trunkline_queue_length{route=\"plain\"}") > 0.9
    });
    // The pool may have another connection; the server may not. That is what the client is told.
    let mut three = on.session(6432);
    let refused = three.query("SELECT 1");
    let error = refused.iter().find(|message| message.tag == b'E').unwrap();
    assert_eq!(error.code(), "53300");
    let hint = error.field(b'H').unwrap();
    assert!(hint.contains("at most 2 connections to each server"), "{hint}");
    assert!(hint.contains("server.max_connections"), "{hint}");
    assert_eq!(notices(&refused), [ROUTER_FULL]);
    one.query("COMMIT");
    assert_eq!(waits.join().unwrap(), "2");
}

const ROUTER_FULL: &str = "waiting for a server connection: the router may open no more to the server, and other \
                           pools and sessions have them (server.max_connections)";
const POOL_FULL: &str = "waiting for a server connection: all of this pool are in use";

fn notices(messages: &[Message]) -> Vec<String> {
    let notices = messages.iter().filter(|message| message.tag == b'N');
    notices.map(|notice| notice.field(b'M').unwrap()).collect()
}

/// Also one of those that `min_connections` keeps, for another user's pool; and the place is the
/// waiting session's, whatever the pool that had it does next.
#[test]
fn an_idle_connection_makes_room_for_another_pool() {
    let on = Pooled::with(
        "max_connections: 2, min_connections: 2, wait_notify: 100ms",
        "max_connections: 2",
    );
    on.server.sql("CREATE ROLE other LOGIN PASSWORD 'other'");
    let (mut one, mut two) = (on.session(6432), on.session(6432));
    on.await_counts([2, 0, 0]);
    let other = || {
        let mut raw = Raw::tls(on.router.address, 6432);
        raw.startup(V3_0, &[("user", "other"), ("database", "app")]);
        assert_eq!(raw.authenticate("other").last().unwrap().tag, b'Z');
        raw
    };
    let mut three = other();
    assert_eq!(three.value("SELECT 1"), "1");
    // Both pools are in use, and neither is out of connections of its own.
    one.query("BEGIN");
    three.query("BEGIN");
    let refused = two.query("SELECT 2");
    assert_eq!(notices(&refused), [ROUTER_FULL]);
    let error = refused.iter().find(|message| message.tag == b'E').unwrap();
    assert!(error.field(b'H').unwrap().contains("server.max_connections"));
    three.query("COMMIT");
    // The connection of the other user idles, and makes room.
    two.query("BEGIN");
    assert_eq!(two.value("SELECT 3"), "3");
    let refused = on.session(6432).query("SELECT 4");
    assert_eq!(notices(&refused), [POOL_FULL]);
    let error = refused.iter().find(|message| message.tag == b'E').unwrap();
    assert!(
        error
            .field(b'H')
            .unwrap()
            .contains("max_connections of the route's pool")
    );
    one.query("COMMIT");
    assert_eq!(three.value("SELECT 5"), "5");
    let evicted = on
        .router
        .metric("trunkline_pool_closed_total{route=\"rw\",reason=\"evicted\"}");
    assert!(evicted > 2.9, "{evicted}");
}

/// Another program's connections, until the server has no free one.
fn fill(server: &Postgres) -> Vec<Raw> {
    let mut held = Vec::new();
    loop {
        let mut raw = Raw::connect(server.address, server.port);
        raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
        let last = match raw.begin_scram("app") {
            Ok(mut messages) => messages.pop().unwrap(),
            Err(error) => error,
        };
        if last.tag == b'E' {
            assert_eq!(last.code(), "53300");
            return held;
        }
        held.push(raw);
    }
}

/// Sessions wait for the connections that their pool has, as if it could have no more.
#[test]
fn a_server_that_is_full_makes_the_sessions_of_a_pool_wait() {
    let server = Postgres::start(&ServerOptions {
        conf: "max_connections = 20\n".to_owned(),
        ..ServerOptions::default()
    });
    let on = Pooled::before(server, "10s", "max_connections: 5, wait_notify: 100ms", "");
    let (mut one, two, three) = (on.session(6432), on.session(6432), on.session(6432));
    one.query("BEGIN");
    on.await_counts([0, 1, 0]);
    let others = fill(&on.server);
    let waits = [two, three].map(|mut session| {
        std::thread::spawn(move || {
            let answer = session.query("SELECT 1");
            (session, answer)
        })
    });
    let length = "trunkline_queue_length{route=\"rw\"}";
    eventually("both wait", SOON, || on.router.metric(length) > 1.9);
    let line = "the server takes no more connections";
    on.router.await_log(&[line, "route=rw"]);
    // It tries again now and then.
    let tries = || {
        let member = on.json(&["members"])[0]["name"].as_str().unwrap().to_owned();
        on.router.metric(&format!(
            "trunkline_pool_connects_failed_total{{route=\"rw\",member=\"{member}\"}}"
        ))
    };
    let began = tokio::time::Instant::now();
    let before = tries();
    eventually("it tries twice more", SOON, || tries() > before + 1.9);
    assert!(began.elapsed() > Duration::from_secs(1), "not at once");
    one.query("COMMIT");
    let [mut two, mut three] = waits.map(|waits| {
        let (session, answer) = waits.join().unwrap();
        assert!(answer.iter().any(|message| message.tag == b'D'), "{answer:?}");
        let told = notices(&answer);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(
            told[0].contains("takes no more (") && told[0].contains("connection"),
            "{told:?}"
        );
        session
    });
    assert_eq!(
        on.router.log().matches(line).count(),
        1,
        "once, not for each session"
    );
    on.await_counts([1, 0, 0]);
    // With none of its own there is nothing to wait for.
    on.ok(&["reconnect", "--route", "rw"]);
    on.await_counts([0, 0, 0]);
    let more = fill(&on.server);
    let refused = two.query("SELECT 2");
    let error = refused.iter().find(|message| message.tag == b'E').unwrap();
    assert_eq!(error.code(), "53300");
    assert!(notices(&refused).is_empty(), "at once");
    drop((others, more));
    eventually("the server has room", SOON, || {
        let answer = two.query("SELECT 3");
        answer.iter().any(|message| message.tag == b'D')
    });
    three.query("BEGIN");
    assert_eq!(two.value("SELECT 4"), "4");
}

#[test]
fn a_reload_changes_the_size_of_a_pool() {
    let on = Pooled::with("max_connections: 2", "");
    let path = on.router.dir().join("trunkline.yaml");
    let (mut one, mut two) = (on.session(6432), on.session(6432));
    one.query("BEGIN");
    two.value("SELECT 1");
    one.query("COMMIT");
    on.await_counts([2, 0, 0]);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("max_connections: 2", "max_connections: 1")).unwrap();
    on.ok(&["reload"]);
    on.await_counts([1, 0, 0]);
    assert_eq!(on.json(&["pools"])[0]["max_connections"], 1);
    // Without a pool in the file nothing idles, and the sessions that are there go on.
    let pool = "queue_timeout: 1s, pool: {mode: transaction, max_connections: 2}";
    assert!(text.contains(pool), "{text}");
    fs::write(&path, text.replace(pool, "pool: {mode: off}")).unwrap();
    on.ok(&["reload"]);
    on.await_counts([0, 0, 0]);
    assert_eq!(one.value("SELECT 3"), "3");
    on.await_counts([0, 0, 0]);
    assert!(on.server.sql("SELECT 1").contains('1'));
}

/// `min_connections` are there while a session of theirs is, also after the server has gone.
#[test]
fn connections_are_kept_ready_while_a_session_lives() {
    let on = Pooled::with(
        "max_connections: 6, min_connections: 3, idle_timeout: 300ms, max_lifetime: 10m",
        "",
    );
    let mut one = on.session(6432);
    on.await_counts([3, 0, 0]);
    let backends = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
    assert_eq!(on.server.sql(backends), "3");
    // One that a session has counts among them; those beyond go when they have been idle.
    one.query("BEGIN");
    on.await_counts([2, 1, 0]);
    let mut others: Vec<Raw> = (0..4).map(|_| on.session(6432)).collect();
    for other in &mut others {
        other.query("BEGIN");
    }
    on.await_counts([0, 5, 0]);
    for session in others.iter_mut().chain([&mut one]) {
        session.query("COMMIT");
    }
    on.await_counts([3, 0, 0]);
    drop(others);
    // The ones that are there are not used up by their time: they stay the same.
    let pids = "SELECT string_agg(pid::text, ' ' ORDER BY pid) FROM pg_stat_activity WHERE usename = 'app'";
    let there = on.server.sql(pids);
    for _ in 0..3 {
        crate::cluster::pause(Duration::from_millis(300));
        assert_eq!(on.server.sql(pids), there);
    }
    on.server.stop();
    on.server.start_again();
    // Without a request.
    eventually("they are there again", SOON, || on.server.sql(backends) == "3");
    on.await_counts([3, 0, 0]);
    assert_eq!(one.value("SELECT 1"), "1");
    drop(one);
    on.await_counts([0, 0, 0]);
    eventually("nothing is left", SOON, || on.server.sql(backends) == "0");
}
