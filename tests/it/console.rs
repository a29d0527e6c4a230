//! The console, as `psql` and drivers see it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cluster::postgres::{Options as ServerOptions, Postgres, psql_18};
use crate::cluster::{Certificates, Options, Router, fresh_address, output, project, secret, succeed};
use crate::drivers::{Rustls, cache};
use crate::hand::{Message, Raw, V3_0, message};

/// The console is for `admin`; `app` is known too. Nothing else works: no server is there.
fn alone(extra: &str) -> Router {
    alone_with("", extra)
}

fn alone_with(auth: &str, extra: &str) -> Router {
    let dir = Certificates::shared().file("");
    let nowhere = fresh_address();
    let users = secret(
        &dir,
        &format!("users-{nowhere}"),
        "\"admin\" \"admin\"\n\"app\" \"app\"\n",
    );
    let options = Options {
        clusters: Some(format!(
            "clusters:\n  main:\n    servers: [{{name: one, host: \"{nowhere}\", port: 5432}}]\n    \
             service_account: {{user: trunkline, dbname: postgres}}\n    server_tls: {{sslmode: disable}}\n",
        )),
        extra: format!(
            "auth: {{users_file: {}, {auth}}}\nconsole: {{users: [admin]}}\n{extra}",
            users.display()
        ),
        ..Options::default()
    };
    Router::launch(None, options)
}

fn dsn(router: &Router) -> String {
    router.dsn(6432, "dbname=trunkline user=admin password=admin")
}

/// Output and errors of `psql`, together.
fn told(mut psql: Command, dsn: &str, commands: &[&str]) -> String {
    psql.args(["-XAtq", "-v", "VERBOSITY=verbose"]);
    for command in commands {
        psql.args(["-c", command]);
    }
    let output = output(psql.arg(dsn));
    let both = [output.stdout, output.stderr].concat();
    String::from_utf8(both).unwrap().trim().to_owned()
}

fn into_console(router: &Router, user: &str) -> Raw {
    let mut raw = Raw::tls(router.address, 6432);
    raw.startup(V3_0, &[("user", user), ("database", "trunkline")]);
    raw
}

#[test]
fn psql_is_answered_though_no_server_is_there() {
    let router = alone("");
    let version = concat!(
        "Trunkline ",
        env!("CARGO_PKG_VERSION"),
        " (commands of PgBouncer 1.26.1)"
    );
    let direct = format!(
        "{} sslnegotiation=direct max_protocol_version=latest",
        dsn(&router)
    );
    for (psql, dsn) in [(Command::new("psql"), dsn(&router)), (psql_18(), direct)] {
        let told = told(
            psql,
            &dsn,
            &["SHOW VERSION", "LISTEN t", "show help;", "show ident"],
        );
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines[0], version, "{told}");
        assert!(lines.contains(&"SHOW HELP|The commands of the console"), "{told}");
        assert!(
            told.contains("ERROR:  0A000: the console does not know this command"),
            "{told}"
        );
        assert!(
            told.contains("HINT:  SHOW HELP lists the commands, \\d the views."),
            "{told}"
        );
    }
    // As psql's users see the one built-in rule, with a heading.
    let mut psql = Command::new("psql");
    let seen = output(psql.args(["-X", "-c", "SHOW HBA"]).arg(dsn(&router)));
    let seen = String::from_utf8(seen.stdout).unwrap();
    assert!(
        seen.contains(" auth_method ") && seen.contains("| scram-sha-256"),
        "{seen}"
    );
    assert!(seen.contains("{all,replication}"), "{seen}");

    let line = router.await_log(&["session ended", "database=trunkline"]);
    for part in [
        "user=admin",
        "route=read-write",
        "member=console",
        "cause=client terminated the session",
    ] {
        assert!(line.contains(part), "{line}");
    }
    let ended = "trunkline_console_sessions_ended_total{cause=\"client_terminated\"}";
    assert!(router.metric(ended) > 0.0);
    let (_, metrics) = router.http("/metrics").unwrap();
    assert!(
        !metrics.contains("trunkline_sessions_ended_total{"),
        "no client's session: {metrics}"
    );
    assert!(!metrics.contains("member=\"console\""), "{metrics}");
    // An ordinary session is not affected.
    let refused = router.psql_output(6432, "user=admin password=admin", "SELECT 1");
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("no server accepts read-write sessions"),
        "{refused:?}"
    );
}

/// An outage of the whole cluster is when somebody wants to look.
#[test]
fn without_a_users_file_an_outage_is_told_with_the_command_that_works() {
    let nowhere = fresh_address();
    let options = Options {
        clusters: Some(format!(
            "clusters:\n  main:\n    servers: [{{name: one, host: \"{nowhere}\", port: 5432}}]\n    \
             service_account: {{user: trunkline, dbname: postgres}}\n    server_tls: {{sslmode: disable}}\n",
        )),
        extra: "console: {users: [admin]}\n".to_owned(),
        ..Options::default()
    };
    let router = Router::launch(None, options);
    let said = told(Command::new("psql"), &dsn(&router), &["SHOW VERSION"]);
    assert!(
        said.contains("the router cannot ask the servers about this user"),
        "{said}"
    );
    assert!(
        said.contains("`trunkline status`") && said.contains("auth.users_file"),
        "{said}"
    );
    // To a client of the database that says nothing.
    let database = router.dsn(6432, "dbname=app user=admin password=admin");
    let said = told(Command::new("psql"), &database, &["SELECT 1"]);
    assert!(
        said.contains("FATAL") && !said.contains("trunkline status"),
        "{said}"
    );
}

#[test]
fn only_who_is_listed_gets_in_and_only_after_authentication() {
    let router = alone("");
    let mut raw = into_console(&router, "app");
    let all = raw.authenticate("app");
    let tags: Vec<u8> = all.iter().map(|message| message.tag).collect();
    assert_eq!(tags, b"RE", "AuthenticationOk and the error");
    assert_eq!(all[0].body, [0, 0, 0, 0]);
    let error = &all[1];
    assert_eq!(error.code(), "42501");
    assert_eq!(error.field(b'S').unwrap(), "FATAL");
    assert_eq!(
        error.field(b'M').unwrap(),
        "permission denied for database \"trunkline\""
    );
    assert!(error.field(b'H').unwrap().contains("console.users"));
    assert_eq!(raw.rest(), b"");
    router.await_log(&[
        "login refused",
        "user=app",
        "reason=the user is not in console.users",
    ]);

    let wrong = |user: &str| {
        let error = into_console(&router, user).begin_scram("wrong").unwrap();
        let error = error.last().unwrap().clone();
        (error.code(), error.field(b'M').unwrap().replace(user, "USER"))
    };
    assert_eq!(wrong("app").0, "28P01");
    assert_eq!(wrong("app"), wrong("admin"), "the list is told to nobody");
    assert_eq!(wrong("app"), wrong("nobody"));
}

#[test]
fn a_session_counts_as_any_other_and_ends_with_the_process() {
    let router = alone("limits: {max_clients: 1}\n");
    let mut inside = into_console(&router, "admin");
    assert_eq!(inside.authenticate("admin").last().unwrap().tag, b'Z');
    let error = into_console(&router, "admin").begin_scram("admin").unwrap_err();
    assert_eq!(error.code(), "53300");
    router.signal("TERM");
    assert_eq!(inside.last_error().code(), "57P01");
    router.await_log(&["session ended", "member=console", "cause=shutdown"]);
}

/// By rules of its own, which need nothing that opens a server.
#[test]
fn rules_decide_who_gets_in() {
    let dir = tempfile::tempdir().unwrap();
    let hba = dir.path().join("pg_hba.conf");
    fs::write(
        &hba,
        "hostssl trunkline admin 127.0.0.1 255.255.255.255 trust\nhostssl trunkline all all reject\n\
         host all all 127.0.0.0/8 scram-sha-256\n",
    )
    .unwrap();
    let router = alone_with(&format!("hba_file: {}", hba.display()), "");
    let told = |extra: &str| {
        let dsn = router.dsn(6432, &format!("dbname=trunkline {extra}"));
        told(Command::new("psql"), &dsn, &["SHOW VERSION"])
    };
    assert!(told("user=admin password=no").starts_with("Trunkline "));
    assert!(told("user=app").contains("pg_hba.conf rejects connection"));
    assert!(told("user=app sslmode=disable").contains("permission denied for database"));
    assert!(told("user=admin sslmode=disable password=no").contains("password authentication failed"));
    // Logical replication is as any client to the rules; the console has no replication commands.
    let mut raw = into_console_replicating(&router, "database");
    let all = raw.query("IDENTIFY_SYSTEM");
    assert_eq!(all[0].code(), "0A000");
    // Physical replication asks for no database, so it is not the console that it gets.
    let mut raw = Raw::tls(router.address, 6432);
    raw.startup(
        V3_0,
        &[
            ("user", "admin"),
            ("database", "trunkline"),
            ("replication", "true"),
        ],
    );
    assert_ne!(raw.last_error().code(), "0A000");
}

fn into_console_replicating(router: &Router, replication: &str) -> Raw {
    let mut raw = Raw::tls(router.address, 6432);
    raw.startup(
        V3_0,
        &[
            ("user", "admin"),
            ("database", "trunkline"),
            ("replication", replication),
        ],
    );
    while raw.message().tag != b'Z' {}
    raw
}

const RULES: &str = "\
# A comment
hostssl app,\"all\" \"app\",+app 10.0.0.0/8 scram-sha-256 clientcert=verify-ca
host  all,sameuser  /^a.*z$,\"o\"\"dd {,} \\\\name\"  samenet  md5
hostnossl replication all 10.1.2.3 255.255.255.255 reject
host samerole \"\" ::1/128 reject
host all all .example.com reject
hostssl all app 192.168.0.0/16 cert map=cn
host all all all scram-sha-256
";

/// The same files in service on both sides; a server and a router tell the same rows of them.
#[test]
fn rows_are_those_of_postgresql() {
    let server = Postgres::start(&ServerOptions {
        version_18: true,
        hba: Some(RULES.to_owned()),
        ..ServerOptions::default()
    });
    server.sql("CREATE ROLE admin LOGIN PASSWORD 'admin'");
    let data = server.data();
    let (hba, ident) = (data.join("pg_hba.conf"), data.join("pg_ident.conf"));
    // Without the server's first lines, which let in on its socket who is nobody to the router.
    fs::write(&hba, RULES).unwrap();
    fs::write(&ident, "# none\ncn /^(.*)@example$ \\1\ncn \"a b\" +app\n").unwrap();
    let yaml = Certificates::shared().yaml().replace(
        "tls:\n",
        &format!(
            "tls:\n  client_ca_file: {}\n",
            Certificates::shared().file("ca.crt").display()
        ),
    );
    let password = secret(&data, "app-password", "app");
    let router = Router::launch(
        None,
        Options {
            clusters: Some(server.yaml()),
            tls: Some(yaml),
            extra: format!(
                "auth:\n  hba_file: {}\n  ident_file: {}\n  server_credentials: [{{users: [app], password_file: {}}}]\n\
                 console: {{users: [admin]}}\n",
                hba.display(),
                ident.display(),
                password.display()
            ),
            ..Options::default()
        },
    );
    router.await_read_write();
    for (view, short) in [
        ("pg_hba_file_rules", "SHOW HBA"),
        ("pg_ident_file_mappings", "SHOW IDENT"),
    ] {
        let select = format!("SELECT * FROM {view}");
        let theirs = server.sql(&select);
        assert!(theirs.lines().count() > 1, "{theirs}");
        assert_eq!(told(Command::new("psql"), &dsn(&router), &[&select]), theirs);
        assert_eq!(told(psql_18(), &dsn(&router), &[short]), theirs);
        let json: Value =
            serde_json::from_str(&server.sql(&format!("SELECT json_agg(v) FROM {view} v"))).unwrap();
        let path = if view == "pg_hba_file_rules" {
            "hba"
        } else {
            "ident"
        };
        let (status, body) = router.http(&format!("/api/v1/{path}")).unwrap();
        assert_eq!(status, 200);
        assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), json);
    }

    // Another file in service is other rows at the next question.
    fs::write(&hba, "host all all all scram-sha-256\n").unwrap();
    router.signal("HUP");
    crate::cluster::eventually("the new rules are in service", Duration::from_secs(20), || {
        told(Command::new("psql"), &dsn(&router), &["SHOW HBA"])
            .lines()
            .count()
            == 1
    });
}

#[test]
fn psycopg_and_pgjdbc() {
    let router = alone("");
    let ca = Certificates::shared().file("ca.crt");
    for (program, arguments, file) in [
        (cache().join("drivers-python/bin/python"), vec![], "console.py"),
        (
            "java".into(),
            vec!["-XX:TieredStopAtLevel=1", "-cp", "/usr/share/java/postgresql.jar"],
            "Console.java",
        ),
    ] {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .arg(project().join("tests/drivers").join(file))
            .env("HOST", router.address.to_string())
            .env("CA", &ca);
        assert_eq!(succeed(&mut command).trim(), "done", "{file}");
    }
}

#[tokio::test]
async fn tokio_postgres_in_the_binary_format() {
    let router = alone("");
    let config: tokio_postgres::Config = dsn(&router).parse().unwrap();
    let (client, connection) = config.connect(Rustls::new()).await.unwrap();
    tokio::spawn(connection);
    let rows = client.query("SHOW HBA", &[]).await.unwrap();
    let row: (i32, Option<String>, Vec<String>) = (rows[0].get(0), rows[0].get(1), rows[0].get("database"));
    assert_eq!(row, (1, None, ["all", "replication"].map(str::to_owned).into()));
    let row = client.query_one("SELECT $1::int + 1", &[&1]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 2);
    let error = client.query("LISTEN changes", &[]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "0A000");
    assert!(
        client.query_one("SHOW VERSION", &[]).await.is_ok(),
        "the session goes on"
    );
}

/// What a client sends that no driver would; the bounds are tested beside the code.
#[test]
fn garbage_ends_its_own_session_at_most() {
    let router = alone("");
    let mut other = into_console(&router, "admin");
    other.authenticate("admin");
    let ends = |bytes: &[u8]| -> Option<Message> {
        let mut raw = into_console(&router, "admin");
        raw.authenticate("admin");
        raw.send(bytes);
        raw.try_message().ok()
    };
    for bytes in [
        &message(b'd', b"x")[..],
        &message(b'p', b""),
        &message(b'E', &[b' '; 65_600]),
        &[b'Q', 0x40, 0, 0, 0],
        b"\x16\x03\x01\x02\0\x01\0",
        b"GET / HTTP/1.1\r\n\r\n",
        &[b'B', 0, 0, 0, 0],
    ] {
        let error = ends(bytes).unwrap();
        assert_eq!(
            (error.code().as_str(), error.field(b'S').unwrap().as_str()),
            ("08P01", "FATAL")
        );
        router.await_log(&[
            "session ended",
            "member=console",
            "protocol violation by the client",
        ]);
    }
    for body in [&b""[..], b"SHOW HBA", b"\0x", b"\xff\0"] {
        let mut raw = into_console(&router, "admin");
        raw.authenticate("admin");
        raw.send(&message(b'Q', body));
        assert_eq!(raw.message().field(b'S').unwrap(), "ERROR");
        assert_eq!(raw.message().tag, b'Z');
        assert!(raw.value("SHOW VERSION").starts_with("Trunkline"));
    }
    // What a driver may send, if a program makes it do so.
    let mut raw = into_console(&router, "admin");
    raw.authenticate("admin");
    raw.send(&message(b'Q', &[b' '; 3 << 20]));
    assert_eq!(raw.message().code(), "54000");
    assert_eq!(raw.message().tag, b'Z');
    assert!(raw.value("SHOW VERSION").starts_with("Trunkline"));
    assert!(other.value("SHOW VERSION").starts_with("Trunkline"));
    assert!(!router.log().contains("panicked"), "{}", router.log());
}

#[test]
fn without_the_section_there_is_no_console() {
    let server = Postgres::start(&ServerOptions::default());
    let router = Router::launch(
        None,
        Options {
            clusters: Some(server.yaml()),
            ..Options::default()
        },
    );
    router.await_read_write();
    let told = told(
        Command::new("psql"),
        &router.dsn(6432, "dbname=trunkline"),
        &["SHOW HELP"],
    );
    assert!(told.contains("database \"trunkline\" does not exist"), "{told}");
    let (status, body) = router.http("/api/v1/hba").unwrap();
    assert_eq!(status, 200);
    let rules: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(rules[0]["database"], json!(["all", "replication"]));
}
