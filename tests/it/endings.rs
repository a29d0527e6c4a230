//! Sessions that end: by a client that leaves in the middle of something, by an operator, by the
//! server. Nothing is left behind, and what a client hears is what is known.
#![allow(clippy::unwrap_used)]

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::administration::Administered;
use super::drivers::cache;
use super::fake::{Fake, one_row, router_before, trusting};
use super::raw::{Client, How, Login, PATIENCE, at, framed, parse, query, shown, sync, terminate};
use crate::cluster::postgres::{self, Postgres};
use crate::cluster::{Certificates, Cluster, Options, Router, eventually, project};

/// Backends of the leader with this application name.
fn backends(name: &str) -> String {
    let cluster = Cluster::shared();
    let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = '{name}'");
    cluster.node(&cluster.leader()).sql(&sql)
}

fn sessions(router: &Router) -> f64 {
    let leader = Cluster::shared().leader();
    router.metric(&format!(
        "trunkline_sessions{{route=\"read-write\",member=\"{leader}\"}}"
    ))
}

/// A goodbye whose body does not come: the server waits for it, so that it is none.
#[test]
fn clients_that_leave_within_their_goodbye_leave_nothing_behind() {
    let router = Router::before(Cluster::shared(), Options::default());
    for how in [How::Plain, How::Tls, How::DirectTls] {
        let name = format!("half a goodbye {how:?}");
        let parameters = [("application_name", name.as_str())];
        let login = || Login {
            how,
            parameters: &parameters,
            ..Login::default()
        };
        let mut clients: Vec<_> = (0..10)
            .map(|_| Client::login(at(&router, 6432), login()))
            .collect();
        assert_eq!(backends(&name), "10");
        for (number, client) in clients.iter_mut().enumerate() {
            client.ask("BEGIN");
            let goodbye = framed(b'X', &[0; 20]);
            // Of the header nothing but the type; the header; a part of the body.
            client.send(&goodbye[..[1, 5, 20][number % 3]]);
        }
        for (number, client) in clients.into_iter().enumerate() {
            if number % 2 == 0 {
                client.reset();
            }
        }
        eventually("their backends end", PATIENCE, || backends(&name) == "0");
    }
    eventually("and their sessions", PATIENCE, || sessions(&router) < 0.5);
    assert!(!router.log().contains("while a request was under way"));
}

/// With `client_connection_check_interval` a server ends what it runs for nobody. Through the
/// router it does, too, whatever the client has sent behind its request.
#[test]
fn a_server_that_looks_after_its_client_sees_it_leave() {
    let router = Router::before(Cluster::shared(), Options::default());
    let many = [parse("SELECT 1"), sync()].concat().repeat(5000);
    let behinds = [
        ("nothing", Vec::new()),
        ("a goodbye", terminate()),
        ("a long goodbye", framed(b'X', &[0; 2000])),
        ("half a goodbye", framed(b'X', &[0; 20])[..9].to_vec()),
        ("a goodbye and more", [terminate(), query("SELECT 1")].concat()),
        ("many messages", many),
    ];
    for (how, (what, behind)) in [How::Plain, How::Tls].into_iter().cycle().zip(behinds) {
        let name = format!("{what} {how:?}");
        let parameters = [
            ("application_name", name.as_str()),
            ("options", "-c client_connection_check_interval=100"),
        ];
        let mut client = Client::login(
            at(&router, 6432),
            Login {
                how,
                parameters: &parameters,
                ..Login::default()
            },
        );
        client.send(&query("SELECT pg_sleep(600)"));
        client.send(&behind);
        eventually("it is there", PATIENCE, || backends(&name) == "1");
        drop(client);
        eventually(&name, PATIENCE, || backends(&name) == "0");
    }
    eventually("the sessions end", PATIENCE, || sessions(&router) < 0.5);
    // Without it, the statement goes on, and so does the session.
    let mut client = Client::named(&router, "it goes on");
    client.send(&[query("SELECT pg_sleep(5)"), terminate()].concat());
    eventually("it is there", PATIENCE, || backends("it goes on") == "1");
    drop(client);
    eventually("it ends", PATIENCE, || backends("it goes on") == "0");
    eventually("and its session", PATIENCE, || sessions(&router) < 0.5);
    let log = router.log();
    let ended: Vec<_> = log
        .lines()
        .filter(|line| line.contains("session ended"))
        .collect();
    assert!(!ended.iter().any(|line| line.contains("WARN")), "{ended:?}");
}

#[test]
fn a_session_that_is_ended_with_a_request_under_way_says_that_the_outcome_is_unknown() {
    let on = Administered::with(&tempfile::tempdir().unwrap().keep(), Options::default());
    let leader = Cluster::shared().leader();
    let (mut busy, mut open, mut idle) = (
        Client::named(&on.router, "ended busy"),
        Client::new(&on.router),
        Client::new(&on.router),
    );
    open.ask("BEGIN");
    // An answer in the middle of which the client is: it is told behind the row under way.
    let mut streaming = Client::encrypted(&on.router, How::Tls);
    streaming.send(&query(
        "SELECT repeat('x', 100000) FROM generate_series(1, 1000000)",
    ));
    assert_eq!(streaming.frame().tag, b'T');
    busy.send(&query("SELECT pg_sleep(600)"));
    eventually("it runs", PATIENCE, || backends("ended busy") == "1");
    on.ok(&["close", &leader, "--now"]);
    let last = busy.rest();
    // In order: the request is answered, and then there is nothing more.
    assert_eq!(shown(&last), ["E08007 ERROR", "ZI"]);
    let said = trunkline::wire::frame::ErrorFields::of_prefix(&last[0].body);
    assert!(
        said.message
            .contains(&format!("an operator ended the sessions on {leader}"))
            && said
                .message
                .contains("the outcome of the request under way is unknown"),
        "{said:?}"
    );
    assert!(said.hint.unwrap().contains("Check whether"));
    let last = shown(&streaming.rest());
    assert_eq!(last[last.len() - 2..], ["E08007 ERROR", "ZI"]);
    for client in [&mut open, &mut idle] {
        assert_eq!(shown(&client.rest()), ["E57P01 FATAL"]);
    }
    let line = on.router.await_log(&["session ended", "outcome unknown"]);
    assert!(line.contains("WARN"), "{line}");
    let counted = |name: &str| {
        let labels = "{route=\"read-write\",cause=\"member_closed\"}";
        on.router.metric(&format!("trunkline_{name}_total{labels}"))
    };
    eventually("they are counted", PATIENCE, || {
        (counted("sessions_ended"), counted("outcomes_unknown")) == (4.0, 2.0)
    });
}

/// What drivers make of it: each shows the SQLSTATE, and none runs the statement again.
#[test]
fn drivers_show_that_the_outcome_is_unknown() {
    let on = Administered::with(&tempfile::tempdir().unwrap().keep(), Options::default());
    let cluster = Cluster::shared();
    let file = |name: &str| project().join("tests/drivers").join(name);
    let python = || Command::new(cache().join("drivers-python/bin/python"));
    let mut commands = Vec::new();
    for driver in ["psycopg", "asyncpg"] {
        let mut command = python();
        command.arg(file("unknown.py")).arg(driver);
        commands.push(command);
    }
    let mut node = Command::new("node");
    node.arg(file("unknown.js"))
        .env("NODE_PATH", cache().join("drivers-node/node_modules"));
    let mut java = Command::new("java");
    java.args(["-XX:TieredStopAtLevel=1", "-cp", "/usr/share/java/postgresql.jar"])
        .arg(file("Unknown.java"));
    commands.extend([node, java]);
    let running: Vec<Child> = commands
        .iter_mut()
        .map(|command| {
            command
                .env("HOST", on.router.address.to_string())
                .env("CA", Certificates::shared().file("ca.crt"))
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let leader = cluster.node(&cluster.leader());
    let asked = "SELECT count(*) FROM pg_stat_activity \
                 WHERE state = 'active' AND query LIKE '%''outcome unknown''%' AND pid <> pg_backend_pid()";
    eventually("all are under way", Duration::from_secs(60), || {
        leader.sql(asked) == "4"
    });
    on.ok(&["close", &leader.name, "--now"]);
    for (child, command) in running.into_iter().zip(commands) {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert_eq!(
            said,
            "08007",
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    eventually("nobody asks again", PATIENCE, || leader.sql(asked) == "0");
}

/// A server that shuts down completes the replication streams and closes. Nobody's outcome is
/// unknown.
#[test]
fn a_replication_stream_that_ends_at_a_shutdown_ends_without_a_word() {
    let server = Postgres::start(&postgres::Options {
        hba: Some("host all,replication all 127.0.0.0/8 trust".to_owned()),
        ..postgres::Options::default()
    });
    server.sql("ALTER ROLE app REPLICATION");
    let router = router_before(&server.address.to_string(), server.port, "postgres", "");
    let dir = tempfile::tempdir().unwrap();
    let receiver = Command::new("/usr/lib/postgresql/15/bin/pg_receivewal")
        .args(["--no-loop", "-D"])
        .arg(dir.path())
        .arg("-d")
        .arg(router.dsn(6432, ""))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("it streams", PATIENCE, || {
        server.sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "1"
    });
    server.stop();
    let said = receiver.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!said.contains("outcome") && !said.contains("lost"), "{said}");
    let line = router.await_log(&["session ended"]);
    // The receiver says goodbye when the stream is complete: it may be faster than the server.
    let ends = ["server closed the connection", "client terminated the session"];
    assert!(ends.iter().any(|cause| line.contains(cause)), "{line}");
    assert!(line.contains("INFO"), "{line}");
    assert!(!router.log().contains("outcome unknown"));
}

/// A goodbye behind which the server never answers: the session ends with the client's connection,
/// not with the server's patience.
#[test]
fn a_silent_server_keeps_no_session_of_a_client_that_is_gone() {
    let server = Fake::start(|mut session| async move {
        // The end of the client's stream is all it hears.
        while session.frame().await.is_some() {}
        session.send(&one_row("1")).await;
    });
    let router = server.router("");
    for goodbye in [terminate(), framed(b'X', &[0; 50])[..30].to_vec()] {
        let mut client = Client::new(&router);
        client.send(&[query("SELECT 1"), goodbye].concat());
        drop(client);
    }
    eventually("their sessions end", PATIENCE, || {
        router.metric("trunkline_sessions{route=\"read-write\",member=\"one\"}") < 0.5
    });
}

/// A place on a server, and the share of its user, are counted until the server's process is gone:
/// whoever leaves without waiting for that must not have any number of them.
#[test]
fn who_leaves_while_the_server_is_busy_keeps_what_is_counted() {
    let server = trusting(false);
    let router = router_before(
        &server.address.to_string(),
        server.port,
        "postgres",
        "limits: {per_user: 2}\n",
    );
    let login = || Client::try_login(at(&router, 6432), Login::default());
    let refused = || {
        let error = login().err().map(|error| (error.code, error.message));
        error.is_some_and(|(code, text)| code == "53300" && text.contains("too many sessions as user"))
    };
    let own = "FROM pg_stat_activity WHERE usename = 'app' AND backend_type = 'client backend'";
    let count = format!("SELECT count(*) {own}");
    // In the middle of a statement, by a reset.
    for _ in 0..2 {
        let mut client = login().unwrap();
        client.send(&query("SELECT pg_sleep(600)"));
        let running = format!("{count} AND state = 'active' AND pid = {}", client.process_id);
        eventually("it runs", PATIENCE, || server.sql(&running) == "1");
        client.reset();
    }
    eventually("the sessions end", PATIENCE, || {
        router.metric("trunkline_sessions{route=\"read-write\",member=\"one\"}") < 0.5
    });
    assert_eq!(server.sql(&count), "2");
    assert!(refused(), "the server works on for them");
    server.sql(&format!("SELECT pg_terminate_backend(pid) {own}"));
    let mut since = String::new();
    let start = "SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    eventually("they are given back", PATIENCE, || {
        login().is_ok_and(|mut client| {
            since = client.value(start);
            !since.is_empty()
        })
    });
    // In the middle of the login, by a time-out: a lock that every login waits for.
    eventually("nobody is left", PATIENCE, || server.sql(&count) == "0");
    // Within a second of a login the prober logs in anew. If that waits for the lock, the server is
    // down, and nobody is refused for anything else.
    let probes = format!(
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'trunkline probe' AND state = 'idle' \
         AND backend_start > '{since}'"
    );
    eventually("the prober has logged in", PATIENCE, || {
        server.sql(&probes) == "t"
    });
    let mut locking = Client::login(
        (server.address, server.port).into(),
        Login {
            user: "postgres",
            password: "postgres",
            ..Login::default()
        },
    );
    locking.ask("BEGIN");
    locking.ask("LOCK TABLE pg_db_role_setting");
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| assert!(login().is_err(), "it waits for the lock"));
        }
    });
    assert!(refused(), "their processes wait on");
    locking.ask("COMMIT");
    eventually("they are given back", PATIENCE, || {
        login().is_ok_and(|mut client| client.value("SELECT 1") == "1")
    });
}

#[test]
fn a_setting_that_delays_logins_is_passed_on_for_nobody() {
    let router = Router::shared();
    for parameter in [
        ("post_auth_delay", "60"),
        ("Post_Auth_Delay", "60"),
        ("pre_auth_delay", "60"),
        ("options", "-c post_auth_delay=60"),
        ("options", "--post-auth-delay=60"),
        ("options", "-eW60"),
    ] {
        let parameters = [parameter];
        let login = Login {
            parameters: &parameters,
            ..Login::default()
        };
        let error = Client::try_login(at(&router, 6432), login).unwrap_err();
        assert_eq!(error.code, "42501", "{error:?}");
        assert!(
            error.message.contains("auth_delay") && error.hint.unwrap().contains("PGOPTIONS"),
            "{parameter:?}"
        );
    }
}
