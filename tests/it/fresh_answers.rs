//! What the cluster says of a user counts as of the very login that asks, as in PostgreSQL; and
//! what nobody can confirm lets in only a client that a server checks as well.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::Duration;

use crate::cluster::postgres::{self, Postgres};
use crate::cluster::{Options, Router, eventually, output, secret};
use crate::hand::{Message, Raw, V3_0, startup};

/// By database: a method each.
const HBA: &str = "
host app       +blocked all reject
host app       +staff   all scram-sha-256
host app       tom      all reject
host samerole  tom      all trust
host trunkline +staff   all trust
host template1 all      all md5
host postgres  all      all password
host all       all      all scram-sha-256
";

fn before(server: &Postgres) -> Router {
    let dir = server.certificates.file("");
    let hba = secret(&dir, "router.hba", HBA);
    let word = secret(&dir, "shared-word", "app");
    let router = Router::launch(
        None,
        Options {
            clusters: Some(server.yaml()),
            extra: format!(
                "auth:\n  hba_file: {}\n  rate_limit: {{failures: 0}}\n  server_credentials:\n  \
                 - {{users: [tom, eve], server_user: app, password_file: {}}}\nconsole: {{users: [tom]}}\n",
                hba.display(),
                word.display()
            ),
            ..Options::default()
        },
    );
    router.await_read_write();
    router
}

/// The user, or the SQLSTATE.
fn psql(router: &Router, database: &str, user: &str, password: &str) -> String {
    let dsn = format!(
        "host={} port=6432 dbname={database} user={user} sslmode=disable connect_timeout=20",
        router.address
    );
    let sql = if database == "trunkline" {
        "SHOW VERSION"
    } else {
        "SELECT session_user"
    };
    let output = output(
        Command::new("psql")
            .args(["-XAtq", "-v", "VERBOSITY=verbose", "-c", sql, &dsn])
            .env("PGPASSWORD", password),
    );
    if output.status.success() {
        return String::from_utf8(output.stdout).unwrap().trim().to_owned();
    }
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

fn is_wrong(told: &str) {
    assert!(told.contains("password authentication failed"), "{told}");
}

#[test]
fn a_password_that_was_just_changed_is_right_at_once() {
    let server = Postgres::start(&postgres::Options {
        hba: Some("host all all 127.0.0.0/8 md5".to_owned()),
        ..postgres::Options::default()
    });
    let router = before(&server);
    for database in ["template1", "postgres", "app"] {
        is_wrong(&psql(&router, database, "r", "0"));
        server.sql("CREATE ROLE r LOGIN PASSWORD '0'");
        for (change, password) in [
            ("SELECT 1", "0"),
            ("ALTER ROLE r PASSWORD '1'", "1"),
            ("ALTER ROLE r PASSWORD '2'", "2"),
            ("DROP ROLE r; CREATE ROLE r LOGIN PASSWORD '3'", "3"),
            ("ALTER ROLE r VALID UNTIL '2020-01-01'", "-"),
            ("ALTER ROLE r VALID UNTIL 'infinity'", "3"),
            ("ALTER ROLE r NOLOGIN", "-"),
            ("ALTER ROLE r LOGIN PASSWORD '4'", "4"),
        ] {
            server.sql(change);
            match password {
                "-" => is_wrong(&psql(&router, database, "r", "3")),
                right => {
                    assert_eq!(psql(&router, database, "r", right), "r", "{database}: {change}");
                    is_wrong(&psql(&router, database, "r", "old"));
                }
            }
        }
        // Another kind of verifier, there and back; SCRAM only where the method is SCRAM.
        if database != "app" {
            server.sql("SET password_encryption = 'md5'; ALTER ROLE r PASSWORD '5'");
            assert_eq!(psql(&router, database, "r", "5"), "r", "{database}");
            server.sql("SET password_encryption = 'scram-sha-256'; ALTER ROLE r PASSWORD '6'");
            assert_eq!(psql(&router, database, "r", "6"), "r", "{database}");
        }
        server.sql("DROP ROLE r");
    }
}

/// `+role` and `samerole`, where the server checks nothing of the client itself.
#[test]
fn a_membership_that_was_just_granted_or_revoked_counts_at_once() {
    let server = Postgres::start(&postgres::Options::default());
    server.sql(
        "CREATE ROLE staff; CREATE ROLE blocked; CREATE ROLE tom LOGIN PASSWORD 'tom'; GRANT staff TO tom",
    );
    let router = before(&server);
    let tom = || psql(&router, "app", "tom", "tom");
    for _ in 0..3 {
        assert_eq!(tom(), "app");
        server.sql("REVOKE staff FROM tom");
        assert!(tom().contains("pg_hba.conf rejects"), "{}", tom());
        server.sql("GRANT staff TO tom");
        assert_eq!(tom(), "app");
        server.sql("GRANT blocked TO tom");
        assert!(tom().contains("pg_hba.conf rejects"), "{}", tom());
        server.sql("REVOKE blocked FROM tom");
    }
}

#[test]
fn memberships_that_nobody_can_confirm_let_in_only_whom_a_server_checks() {
    let server = Postgres::start(&postgres::Options::default());
    server.sql(
        "CREATE ROLE staff; CREATE ROLE blocked; CREATE ROLE tom LOGIN PASSWORD 'tom'; GRANT staff TO tom;
         CREATE ROLE eve LOGIN PASSWORD 'eve'; CREATE ROLE own LOGIN PASSWORD 'own';
         CREATE ROLE samerole; GRANT samerole TO tom",
    );
    server.sql("CREATE DATABASE samerole");
    let router = before(&server);
    // Known: tom is staff; eve and own are not blocked.
    assert_eq!(psql(&router, "app", "tom", "tom"), "app");
    assert_eq!(psql(&router, "samerole", "tom", ""), "app");
    assert_eq!(psql(&router, "app", "eve", "eve"), "app");
    assert_eq!(psql(&router, "app", "own", "own"), "own");
    let console = || psql(&router, "trunkline", "tom", "");
    assert!(console().starts_with("Trunkline "), "{}", console());
    server.sql(
        "REVOKE staff, samerole FROM tom; GRANT blocked TO eve, own;
         REVOKE SELECT ON pg_catalog.pg_roles, pg_catalog.pg_auth_members FROM PUBLIC",
    );
    for (database, user) in [("app", "tom"), ("samerole", "tom"), ("app", "eve")] {
        let told = psql(&router, database, user, user);
        assert!(
            told.contains("cannot ask the servers about this user"),
            "{user} in {database}: {told}"
        );
    }
    assert!(
        console().contains("cannot ask the servers about this user"),
        "{}",
        console()
    );
    // The server asks own for its password, and its own rules go on to decide.
    assert_eq!(psql(&router, "app", "own", "own"), "own");
    router.await_log(&["memberships could not be looked up"]);
}

/// The router reads it within two seconds; until then nobody's password is wrong for it.
#[test]
fn a_users_file_that_was_just_changed_makes_no_password_wrong() {
    let server = Postgres::start(&postgres::Options::default());
    let dir = server.certificates.file("");
    let users = secret(&dir, "users", "\"app\" \"old\"\n");
    let router = Router::launch(
        None,
        Options {
            clusters: Some(server.yaml()),
            extra: format!(
                "auth: {{users_file: {}, rate_limit: {{failures: 0}}}}\n",
                users.display()
            ),
            ..Options::default()
        },
    );
    router.await_read_write();
    // Longer than a file counts as one that has just been changed.
    eventually("a wrong password is one", Duration::from_secs(20), || {
        psql(&router, "app", "app", "app").contains("password authentication failed")
    });
    secret(&dir, "users", "\"app\" \"app\"\n");
    eventually("the new file is read", Duration::from_secs(20), || {
        let told = psql(&router, "app", "app", "app");
        assert!(told == "app" || told.contains("has just been changed"), "{told}");
        told == "app"
    });
}

/// For the log: the client hears the same from all of them.
#[test]
fn the_log_tells_apart_why_a_user_has_no_password() {
    let server = Postgres::start(&postgres::Options::default());
    server.sql(
        "CREATE ROLE nopassword LOGIN; CREATE ROLE nologin PASSWORD 'x';
         CREATE ROLE expired LOGIN PASSWORD 'x' VALID UNTIL '2020-01-01'",
    );
    let router = before(&server);
    for (user, reason) in [
        ("nobody", "there is no such user"),
        ("nopassword", "it has no password"),
        ("nologin", "may not log in (NOLOGIN)"),
        ("expired", "its password has expired (VALID UNTIL)"),
    ] {
        is_wrong(&psql(&router, "app", user, "x"));
        router.await_log(&["login refused", &format!("user={user}"), reason]);
    }
    // Where no server tells, the line does not wait for it.
    server.sql("REVOKE SELECT ON pg_catalog.pg_roles FROM PUBLIC");
    is_wrong(&psql(&router, "postgres", "gone", "x"));
    router.await_log(&["login refused", "user=gone", "no such user, or it cannot log in"]);
}

/// The names of roles are bytes: in a database of another encoding than UTF-8 they may be anything.
#[test]
fn a_role_whose_name_is_not_utf_8_gets_in_and_has_memberships() {
    let server = Postgres::start(&postgres::Options::default());
    server.sql("CREATE DATABASE old TEMPLATE template0 ENCODING 'LATIN1'");
    server.sql("CREATE ROLE staff; CREATE ROLE blocked; CREATE ROLE app2 LOGIN PASSWORD 'app'");
    server.sql_in(
        "old",
        "SET client_encoding = 'SQL_ASCII';
         DO $$ DECLARE name text := 'ren' || chr(233); BEGIN
         EXECUTE format('CREATE ROLE %I LOGIN PASSWORD ''secret''', name);
         name := 'zo' || chr(235);
         EXECUTE format('CREATE ROLE %I LOGIN PASSWORD ''secret''', name);
         EXECUTE format('GRANT blocked TO %I', name); END $$",
    );
    let router = before(&server);
    let log_in = |user: &[u8], password: &str| -> Message {
        let mut raw = Raw::connect(router.address, 6432);
        raw.send(&startup(V3_0, &[(b"user", user), (b"database", b"app")]));
        match raw.begin_scram(password) {
            Ok(mut all) => all.pop().unwrap(),
            Err(error) => error,
        }
    };
    assert_eq!(log_in(b"ren\xe9", "secret").tag, b'Z');
    assert_eq!(log_in(b"ren\xe9", "wrong").code(), "28P01");
    assert_eq!(log_in(b"zo\xeb", "secret").code(), "28000", "a member of blocked");
    // The same letters in UTF-8 are another name.
    for other in [&b"ren\xc3\xa9"[..], b"ren\xff", b"ren\xe9\xe9"] {
        assert_eq!(log_in(other, "secret").code(), "28P01");
    }
}
