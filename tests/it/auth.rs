//! Authentication of clients by the router, and its login into the servers.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::Duration;

use crate::cluster::postgres::{self, Postgres};
use crate::cluster::{Certificates, Cluster, Options, Router, eventually, output, secret};
use crate::hand::{Message, Raw, V3_0, message};

fn before(server: &Postgres, extra: &str) -> Router {
    let router = Router::launch(
        None,
        Options {
            clusters: Some(server.yaml()),
            extra: extra.to_owned(),
            ..Options::default()
        },
    );
    router.await_read_write();
    router
}

/// Code, message and hint of the error that a login ends with, at whatever step.
fn try_in(router: &Router, user: &str, password: &str) -> Result<Raw, String> {
    let mut raw = Raw::tls(router.address, 6432);
    raw.startup(V3_0, &[("user", user), ("database", "app")]);
    let error = match raw.begin_scram(password) {
        Ok(all) if all.last().is_some_and(|last| last.tag == b'Z') => return Ok(raw),
        Ok(all) => all.last().unwrap().clone(),
        Err(error) => error,
    };
    let hint = error.field(b'H').unwrap_or_default();
    Err(format!(
        "{} {} HINT {hint}",
        error.code(),
        error.field(b'M').unwrap()
    ))
}

/// `psql`'s one line of output, or its error.
fn log_in(router: &Router, user: &str, password: &str) -> Result<String, String> {
    let dsn = router.dsn(6432, &format!("user={user}"));
    let output = output(
        Command::new("psql")
            .args(["-XAtq", "-v", "VERBOSITY=verbose", "-c", "SELECT current_user"])
            .arg(dsn.replace("password=app", ""))
            .env("PGPASSWORD", password),
    );
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// The error a user's login with a password ends with.
fn refused(router: &Router, user: &str, password: &str) -> Message {
    let mut raw = Raw::connect(router.address, 6432);
    raw.startup(V3_0, &[("user", user), ("database", "app")]);
    let all = raw.authenticate(password);
    let error = all.last().unwrap().clone();
    assert_eq!(error.tag, b'E', "{user} got in");
    assert_eq!(raw.rest(), b"");
    error
}

/// Salt and iterations offered to a user.
fn offered(router: &Router, user: &str) -> String {
    let mut raw = Raw::connect(router.address, 6432);
    raw.startup(V3_0, &[("user", user), ("database", "app")]);
    assert_eq!(raw.message().tag, b'R');
    raw.sasl_initial("SCRAM-SHA-256", b"n,,n=,r=abcdefghijkl");
    let reply = raw.message();
    assert_eq!((reply.tag, &reply.body[..4]), (b'R', &[0, 0, 0, 11][..]));
    let text = String::from_utf8(reply.body[4..].to_vec()).unwrap();
    assert!(text.starts_with("r=abcdefghijkl"), "{text}");
    text.split_once(",s=").unwrap().1.to_owned()
}

#[test]
fn who_does_not_get_in_sees_the_same_whatever_the_reason() {
    let server = Postgres::start(&postgres::Options::default());
    server.sql("CREATE ROLE nopassword LOGIN");
    server.sql("CREATE ROLE nologin NOLOGIN PASSWORD 'secret'");
    server.sql("CREATE ROLE expired LOGIN PASSWORD 'secret' VALID UNTIL '2020-01-01'");
    server.sql("CREATE ROLE current LOGIN PASSWORD 'secret' VALID UNTIL '2999-01-01'");
    server.sql("SET password_encryption = 'md5'; CREATE ROLE oldmd5 LOGIN PASSWORD 'secret'");
    server.sql("CREATE ROLE \"Odd \"\"Name'\\\" LOGIN PASSWORD 'secret'");
    server.sql("CREATE ROLE unicode LOGIN PASSWORD U&'p\\00e4ss\\00a0w\\2168'");
    let router = before(&server, "auth: {rate_limit: {failures: 0}}\n");

    let wrong = refused(&router, "app", "wrong");
    assert_eq!(wrong.code(), "28P01");
    assert_eq!(
        wrong.field(b'M').unwrap(),
        "password authentication failed for user \"app\""
    );
    for user in ["nobody", "oldmd5", "nopassword", "nologin", "expired"] {
        let error = refused(&router, user, "secret");
        let expected = String::from_utf8_lossy(&wrong.body).replace("\"app\"", &format!("\"{user}\""));
        assert_eq!(String::from_utf8_lossy(&error.body), expected, "{user}");
    }
    // A database that does not exist is told only to whom is known.
    let mut raw = Raw::connect(router.address, 6432);
    raw.startup(V3_0, &[("user", "nobody"), ("database", "nowhere")]);
    assert_eq!(raw.authenticate("x").last().unwrap().code(), "28P01");
    let mut raw = Raw::connect(router.address, 6432);
    raw.startup(V3_0, &[("user", "app"), ("database", "nowhere")]);
    assert_eq!(raw.authenticate("app").last().unwrap().code(), "3D000");

    // The salt of a user who does not exist stays, as a real one does, and has its form.
    for user in ["app", "nobody", "nopassword", "expired"] {
        let first = offered(&router, user);
        assert_eq!(first, offered(&router, user), "{user}");
        assert!(
            first.ends_with("==,i=4096") && first.len() == "AAAAAAAAAAAAAAAAAAAAAA==,i=4096".len(),
            "{first}"
        );
    }
    assert_ne!(offered(&router, "nobody"), offered(&router, "somebody"));

    assert_eq!(log_in(&router, "current", "secret").as_deref(), Ok("current"));
    assert_eq!(
        log_in(&router, "unicode", "p\u{e4}ss w\u{2168}").as_deref(),
        Ok("unicode"),
        "SASLprep"
    );
    let mut raw = Raw::connect(router.address, 6432);
    raw.startup(V3_0, &[("user", "Odd \"Name'\\"), ("database", "app")]);
    assert_eq!(raw.authenticate("secret").last().unwrap().tag, b'Z');

    router.await_log(&["login refused", "password authentication failed", "user=app"]);
    router.await_log(&["login refused", "user=app", "wrong password"]);
    router.await_log(&["login refused", "user=nobody", "no such user"]);
    router.await_log(&["login refused", "user=oldmd5", "stored as md5"]);
    assert!(!router.log().contains("SCRAM-SHA-256$"), "{}", router.log());
    assert!(router.metric("trunkline_logins_refused_total{reason=\"password\"}") >= 7.0);
}

#[test]
fn a_hostile_or_broken_exchange_is_refused_as_postgresql_does() {
    let extra = "auth: {rate_limit: {failures: 0}}\n".to_owned();
    let router = Router::before(
        Cluster::shared(),
        Options {
            extra,
            ..Options::default()
        },
    );
    let begin = || {
        let mut raw = Raw::connect(router.address, 6432);
        raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
        assert_eq!(raw.message().tag, b'R');
        raw
    };
    let first: &[(&str, &[u8], &str)] = &[
        ("SCRAM-SHA-256-PLUS", b"p=tls-server-end-point,,n=,r=abc", "08P01"),
        ("SCRAM-SHA-1", b"n,,n=,r=abc", "08P01"),
        ("SCRAM-SHA-256", b"p=tls-server-end-point,,n=,r=abc", "08P01"),
        ("SCRAM-SHA-256", b"n,a=postgres,n=,r=abc", "0A000"),
        ("SCRAM-SHA-256", b"n,,m=x,n=,r=abc", "0A000"),
        ("SCRAM-SHA-256", b"n,,n=,r=a\x01c", "08P01"),
        ("SCRAM-SHA-256", b"", "08P01"),
        ("SCRAM-SHA-256", b"garbage", "08P01"),
        ("SCRAM-SHA-256", b"n,,n=,r=abc\0", "08P01"),
    ];
    for (mechanism, data, code) in first {
        let mut raw = begin();
        raw.sasl_initial(mechanism, data);
        assert_eq!(
            raw.last_error().code(),
            *code,
            "{mechanism} {}",
            data.escape_ascii()
        );
    }
    let last: &[&str] = &[
        "",
        "c=biws",
        "c=eSws,r={n},p=AAAA",
        "c=biws,r=other,p={p}",
        "c=biws,r={n},p={p},x=y",
        "c=biws,r={n},p=%%",
    ];
    for data in last {
        let mut raw = begin();
        raw.sasl_initial("SCRAM-SHA-256", b"n,,n=,r=abcdefgh");
        let reply = raw.message();
        let nonce = String::from_utf8_lossy(&reply.body[6..])
            .split_once(',')
            .unwrap()
            .0
            .to_owned();
        let data = data
            .replace("{n}", &nonce)
            .replace("{p}", &format!("{}=", "A".repeat(43)));
        raw.send(&message(b'p', data.as_bytes()));
        assert_eq!(raw.last_error().code(), "08P01", "{data}");
    }
    // Not a password message; one that is too long; two at once.
    for bytes in [
        message(b'Q', b"SELECT 1\0"),
        vec![b'p', 0, 1, 0, 5],
        vec![b'p', 0, 0, 0, 3],
        vec![b'p', 0xff, 0xff, 0xff, 0xff],
        b"GET / HTTP/1.1\r\n".to_vec(),
        [message(b'p', b"x"), message(b'p', b"x")].concat(),
    ] {
        let mut raw = begin();
        raw.send(&bytes);
        assert_eq!(raw.last_error().code(), "08P01", "{bytes:?}");
    }
    // A long one that is allowed (a token) is merely wrong.
    let mut raw = begin();
    raw.send(&message(b'p', &vec![b'x'; 65_000]));
    assert_eq!(raw.last_error().code(), "08P01");
    assert_eq!(router.psql(6432, "SELECT 1"), "1");
}

#[test]
fn users_from_a_file_by_verifier_and_by_password() {
    let cluster = Cluster::shared();
    let leader = cluster.node(&cluster.leader());
    let verifier = leader.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'app'");
    let dir = tempfile::tempdir().unwrap();
    let users = secret(
        dir.path(),
        "users",
        &format!("; ours\n\"app\" \"{verifier}\"\n\"app_repl\" \"app_repl\" \"\"\n\"ghost\" \"boo\""),
    );
    let extra = format!("auth: {{users_file: {}}}\n", users.display());
    let router = Router::before(
        cluster,
        Options {
            extra,
            ..Options::default()
        },
    );
    for port in [6432, 6433] {
        assert_eq!(router.psql(port, "SELECT current_user"), "app");
        let dsn = "user=app_repl password=app_repl".to_owned();
        let output = router.psql_output(port, &dsn, "SELECT current_user");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "app_repl");
    }
    assert_eq!(refused(&router, "app", "wrong").code(), "28P01");
    assert_eq!(
        refused(&router, "postgres", "postgres").code(),
        "28P01",
        "not in the file"
    );
    // In the file and not in the cluster: the server's own words.
    let error = log_in(&router, "ghost", "boo").unwrap_err();
    assert!(
        error.contains("password authentication failed for user \"ghost\""),
        "{error}"
    );
    assert!(!router.log().contains("SCRAM-SHA-256$") && !router.log().contains("boo"));
}

#[test]
fn faults_of_a_users_file_are_told_with_their_lines() {
    let dir = tempfile::tempdir().unwrap();
    let users = secret(
        dir.path(),
        "users",
        "\"app\" \"\"\n\"b\" hidden\n\"c\" \"SCRAM-SHA-256$x\"",
    );
    let extra = format!("auth: {{users_file: {}}}\n", users.display());
    let options = Options {
        extra,
        ..Options::default()
    };
    let text = Router::configuration(
        Some(Cluster::shared()),
        &options,
        dir.path(),
        crate::cluster::fresh_address(),
    );
    let path = dir.path().join("trunkline.yaml");
    std::fs::write(&path, text).unwrap();
    for command in ["check", "run"] {
        let output = output(
            Command::new(env!("CARGO_BIN_EXE_trunkline"))
                .args([command, "-c"])
                .arg(&path),
        );
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command}: {text}");
        for line in [
            "line 1: user \"app\" has an empty password",
            "line 2: ",
            "line 3: user \"c\"",
        ] {
            assert!(text.contains(line), "{command}: {line} is not in {text}");
        }
        assert!(text.contains("users:") || text.contains("users_file"), "{text}");
        assert!(!text.contains("hidden"), "{text}");
    }
}

#[test]
fn a_superuser_needs_no_function_and_a_changed_password_is_learned() {
    let server = Postgres::start(&postgres::Options::default());
    server.sql("DROP SCHEMA trunkline CASCADE");
    server.sql("ALTER ROLE trunkline SUPERUSER");
    server.sql("CREATE ROLE nologin NOLOGIN PASSWORD 'secret'");
    server.sql("CREATE ROLE expired LOGIN PASSWORD 'secret' VALID UNTIL '2020-01-01'");
    let router = before(&server, "");
    assert_eq!(log_in(&router, "app", "app").as_deref(), Ok("app"));
    for user in ["nologin", "expired", "nobody"] {
        assert_eq!(refused(&router, user, "secret").code(), "28P01", "{user}");
    }
    // The old verifier is remembered for a second: a login with the new password may fail, and
    // makes it forgotten.
    server.sql("ALTER ROLE app PASSWORD 'new'");
    eventually("the new password opens", Duration::from_secs(5), || {
        log_in(&router, "app", "new").is_ok()
    });
    assert_eq!(refused(&router, "app", "app").code(), "28P01");
    // With the old password of a verifier still remembered the server is asked, which knows better;
    // that is no 28P01, for the router has accepted it. On a slow machine the second is over, and
    // the router knows better itself.
    server.sql("CREATE ROLE second LOGIN PASSWORD 'old'");
    assert_eq!(log_in(&router, "second", "old").as_deref(), Ok("second"));
    server.sql("ALTER ROLE second PASSWORD 'new'");
    let error = try_in(&router, "second", "old").err().unwrap();
    assert!(
        (error.contains("57P03") && error.contains("does not have the current password"))
            || error.contains("28P01"),
        "{error}"
    );
    eventually("the new password opens", Duration::from_secs(5), || {
        log_in(&router, "second", "new").is_ok()
    });
    assert_eq!(refused(&router, "second", "old").code(), "28P01");
}

#[test]
fn an_outage_of_the_look_up_is_no_wrong_password() {
    let server = Postgres::start(&postgres::Options::default());
    let router = before(&server, "auth: {cache_ttl: 0s}\n");
    assert_eq!(log_in(&router, "app", "app").as_deref(), Ok("app"));
    let mut inside = Raw::connect(router.address, 6432);
    inside.startup(V3_0, &[("user", "app"), ("database", "app")]);
    assert_eq!(inside.authenticate("app").last().unwrap().tag, b'Z');

    server.sql("REVOKE EXECUTE ON FUNCTION trunkline.user_lookup(text) FROM trunkline");
    for (user, password) in [("app", "app"), ("app", "wrong"), ("nobody", "x")] {
        let mut raw = Raw::connect(router.address, 6432);
        raw.startup(V3_0, &[("user", user), ("database", "app")]);
        assert_eq!(raw.message().tag, b'R');
        raw.sasl_initial("SCRAM-SHA-256", b"n,,n=,r=abcdefghijkl");
        let error = raw.last_error();
        assert_eq!(error.code(), "57P03", "{user} {password}");
        assert!(error.field(b'H').is_some());
    }
    router.await_log(&[
        "a verifier could not be looked up",
        "permission denied for function user_lookup",
    ]);
    server.sql("GRANT EXECUTE ON FUNCTION trunkline.user_lookup(text) TO trunkline");
    assert_eq!(log_in(&router, "app", "app").as_deref(), Ok("app"));

    // The account itself: its password is changed, and its connections are cut.
    server.sql("ALTER ROLE trunkline PASSWORD 'other'");
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'trunkline'");
    for _ in 0..5 {
        let error = try_in(&router, "app", "app").err().unwrap();
        assert!(
            error.starts_with("57P03") && !error.contains("trunkline"),
            "{error}"
        );
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'trunkline'");
    }
    eventually(
        "members are not fit without their probes",
        Duration::from_secs(10),
        || {
            let mut raw = Raw::connect(router.address, 6432);
            raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
            let answer = raw.message();
            answer.tag == b'E' && answer.code() == "57P03" && answer.field(b'H').is_some()
        },
    );
    assert_eq!(inside.value("SELECT 1"), "1", "who is in does not notice");
    server.sql("ALTER ROLE trunkline PASSWORD 'trunkline'");
    eventually("recovered", Duration::from_secs(10), || {
        log_in(&router, "app", "app").is_ok()
    });
    assert_eq!(inside.value("SELECT 1"), "1");
}

#[test]
fn the_line_that_pg_hba_conf_lacks_is_told_to_both() {
    let service = "hostssl all trunkline 127.0.0.0/8 scram-sha-256";
    let server = Postgres::start(&postgres::Options {
        hba: Some(service.to_owned()),
        ..postgres::Options::default()
    });
    let router = before(&server, "");
    let line = "hostssl app app 127.0.0.1/32 scram-sha-256";
    let error = try_in(&router, "app", "app").err().unwrap();
    assert!(error.contains("28000") && error.contains(line), "{error}");
    router.await_log(&["s1 refused the login", line]);
    server.set_hba(&format!("{service}\n{line}"));
    eventually("the line helps", Duration::from_secs(5), || {
        log_in(&router, "app", "app").is_ok()
    });

    // No password travels anywhere: a server that would take one in clear, or by md5, gets none.
    for method in ["password", "md5"] {
        server.set_hba(&format!("{service}\nhost all all 127.0.0.0/8 {method}"));
        // md5 in pg_hba.conf with a SCRAM verifier is SCRAM.
        let works = method == "md5";
        eventually(method, Duration::from_secs(5), || {
            match try_in(&router, "app", "app") {
                Ok(_) => works,
                Err(error) => !works && error.contains("08006") && error.contains("scram-sha-256"),
            }
        });
    }
    // The service account shut out: the log names its line, and clients hear 57P03.
    server.set_hba("hostssl all app 127.0.0.0/8 scram-sha-256");
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'trunkline'");
    eventually("57P03", Duration::from_secs(10), || {
        try_in(&router, "app", "app").is_err_and(|error| error.contains("57P03"))
    });
    router.await_log(&["hostssl postgres trunkline 127.0.0.1/32 scram-sha-256"]);
}

#[test]
fn every_sslmode_towards_the_server_has_libpqs_meaning() {
    let server = Postgres::start(&postgres::Options {
        hba: Some(
            "hostssl all all 127.0.0.0/8 scram-sha-256\nhostnossl all all 127.0.0.0/8 reject".to_owned(),
        ),
        ..postgres::Options::default()
    });
    let ca = server.certificates.file("ca.crt");
    let other_ca = Certificates::shared().file("ca.crt");
    let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let yaml = |host: &str, tls: &str| {
        server
            .yaml_with(tls)
            .replace(&format!("host: {}", server.address), &format!("host: {host}"))
    };
    let launch = |host: &str, tls: &str| {
        Router::launch(
            None,
            Options {
                clusters: Some(yaml(host, tls)),
                ..Options::default()
            },
        )
    };
    let address = server.address.to_string();
    for tls in [
        "{sslmode: allow}".to_owned(),
        "{sslmode: prefer}".to_owned(),
        "{sslmode: require}".to_owned(),
        format!("{{sslmode: require, sslrootcert: {}}}", ca.display()),
        format!("{{sslmode: verify-ca, sslrootcert: {}}}", ca.display()),
        format!("{{sslmode: verify-full, sslrootcert: {}}}", ca.display()),
    ] {
        let router = launch(&address, &tls);
        router.await_read_write();
        assert_eq!(router.psql(6432, encrypted), "t", "{tls}");
    }
    // What must fail says why, in one place, and the client hears 57P03.
    for (host, tls, words) in [
        (address.as_str(), "{sslmode: disable}".to_owned(), "no encryption"),
        (
            &address,
            format!("{{sslmode: require, sslrootcert: {}}}", other_ca.display()),
            "certificate was not accepted",
        ),
        (
            &address,
            format!("{{sslmode: verify-ca, sslrootcert: {}}}", other_ca.display()),
            "certificate was not accepted",
        ),
        (
            &address,
            format!("{{sslmode: verify-full, sslrootcert: {}}}", other_ca.display()),
            "certificate was not accepted",
        ),
    ] {
        let router = launch(host, &tls);
        let line = router.await_log(&["WARN", words]);
        assert!(line.contains("s1"), "{line}");
        let error = try_in(&router, "app", "app").err().unwrap();
        assert!(
            error.contains("57P03") && error.ends_with("failover usually ends within a minute."),
            "{tls}: {error}"
        );
    }
}

#[test]
fn the_name_in_a_servers_certificate_counts_in_verify_full_only() {
    let server = Postgres::start(&postgres::Options {
        names: Some(vec!["elsewhere.example".to_owned()]),
        ..postgres::Options::default()
    });
    let ca = server.certificates.file("ca.crt");
    let launch = |mode: &str| {
        let tls = format!("{{sslmode: {mode}, sslrootcert: {}}}", ca.display());
        Router::launch(
            None,
            Options {
                clusters: Some(server.yaml_with(&tls)),
                ..Options::default()
            },
        )
    };
    let router = launch("verify-ca");
    router.await_read_write();
    assert_eq!(router.psql(6432, "SELECT 1"), "1");
    let router = launch("verify-full");
    let line = router.await_log(&["WARN", "certificate was not accepted"]);
    assert!(
        line.contains("s1") && line.to_lowercase().contains("name"),
        "{line}"
    );
    let error = try_in(&router, "app", "app").err().unwrap();
    assert!(error.contains("57P03"), "{error}");
}

#[test]
fn probes_leave_no_lines_in_a_servers_log() {
    let server = Postgres::start(&postgres::Options {
        conf: "log_connections = on\nlog_disconnections = on\n".to_owned(),
        ..postgres::Options::default()
    });
    let mut router = before(&server, "");
    let lines = |what: &str| {
        let log = server.log();
        let of_ours = log
            .lines()
            .filter(|line| line.contains(what) && line.contains("user=trunkline"));
        of_ours.count()
    };
    let ended = || lines("disconnection:");
    eventually(
        "a probe's connection was replaced",
        Duration::from_secs(15),
        || ended() >= 1,
    );
    // Nor does its end, with a connection for look-ups open beside that of the probes.
    assert_eq!(router.psql(6432, "SELECT 1"), "1");
    // A session of a client that the end meets half-way is another matter.
    eventually("the client's session has ended", Duration::from_secs(15), || {
        let log = server.log();
        log.lines()
            .any(|line| line.contains("disconnection:") && line.contains("user=app"))
    });
    router.signal("TERM");
    assert_eq!(router.await_exit(Duration::from_secs(20)), 0);
    eventually("each has ended", Duration::from_secs(15), || {
        ended() == lines("connection authorized:")
    });
    assert!(
        !server.log().contains("could not receive data"),
        "{}",
        server.log()
    );
}
