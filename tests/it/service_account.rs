//! `config/service-account.sql`: whatever others have made or granted before, the account alone may
//! look up verifiers.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Output;

use crate::cluster::postgres::{Options, Postgres};
use crate::cluster::{output, project};

/// A server where the file has been run, with a role that may create schemas.
fn server(version_18: bool) -> Postgres {
    let server = Postgres::start(&Options {
        version_18,
        ..Options::default()
    });
    server.sql("CREATE ROLE mallory LOGIN PASSWORD 'mallory'; GRANT CREATE ON DATABASE postgres TO mallory");
    server
}

fn psql(server: &Postgres, arguments: &[&str]) -> Output {
    output(server.psql("postgres").args(arguments))
}

fn run_again(server: &Postgres) -> Output {
    let file = project().join("config/service-account.sql");
    psql(
        server,
        &["-v", "password=trunkline", "-f", file.to_str().unwrap()],
    )
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What `role` reads of a verifier, or why it does not.
fn reads(server: &Postgres, role: &str) -> String {
    let role = format!("SET ROLE {role}");
    let look_up = "SELECT passwd FROM trunkline.user_lookup('app')";
    let answer = psql(server, &["-c", &role, "-c", look_up]);
    text(&answer.stdout) + &text(&answer.stderr)
}

#[track_caller]
fn only_the_account_reads(server: &Postgres) {
    assert!(reads(server, "trunkline").contains("SCRAM-SHA-256$"));
    for role in ["mallory", "app"] {
        let said = reads(server, role);
        assert!(said.contains("permission denied for schema trunkline"), "{said}");
    }
}

fn rights_given_before(version_18: bool) {
    let server = server(version_18);
    only_the_account_reads(&server);
    // What an earlier version of the file kept.
    server.sql(
        "GRANT USAGE, CREATE ON SCHEMA trunkline TO mallory WITH GRANT OPTION; \
         GRANT EXECUTE ON FUNCTION trunkline.user_lookup(text) TO mallory WITH GRANT OPTION; \
         GRANT USAGE ON SCHEMA trunkline TO PUBLIC; GRANT EXECUTE ON FUNCTION trunkline.user_lookup(text) TO PUBLIC",
    );
    assert!(reads(&server, "mallory").contains("SCRAM-SHA-256$"));
    assert!(run_again(&server).status.success());
    only_the_account_reads(&server);
    // Rights that each new function and schema gets.
    server.sql(
        "ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO mallory; \
         ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO mallory, PUBLIC",
    );
    assert!(run_again(&server).status.success());
    only_the_account_reads(&server);
    // Members of the account, those whom they have made members, and what the account itself was
    // put into.
    server.sql(
        "CREATE ROLE friend; GRANT trunkline TO mallory WITH ADMIN OPTION; \
         GRANT pg_read_all_data, app TO trunkline; SET ROLE mallory; GRANT trunkline TO friend",
    );
    assert!(reads(&server, "mallory").contains("SCRAM-SHA-256$"));
    let again = run_again(&server);
    let said = text(&again.stderr);
    assert!(again.status.success(), "{said}");
    assert!(
        said.contains("mallory is no longer a member of trunkline"),
        "{said}"
    );
    assert!(
        said.contains("friend is no longer a member of trunkline"),
        "{said}"
    );
    only_the_account_reads(&server);
    // Once more there is nothing to tell.
    let said = text(&run_again(&server).stderr);
    assert_eq!(said, "");
    let members = "SELECT roleid::regrole || ' ' || member::regrole FROM pg_auth_members \
                   WHERE 'trunkline'::regrole IN (roleid, member)";
    let members = psql(&server, &["-Atc", members]);
    assert_eq!(text(&members.stdout).trim(), "pg_monitor trunkline");
}

#[test]
fn rights_that_others_were_given_before_are_taken_away() {
    rights_given_before(false);
}

#[test]
fn rights_that_others_were_given_before_are_taken_away_on_postgresql_18() {
    rights_given_before(true);
}

#[test]
fn a_schema_of_another_role_is_not_used() {
    let server = server(false);
    let ends_with = |expected: &str| {
        let ended = run_again(&server);
        let said = text(&ended.stderr);
        assert!(!ended.status.success() && said.contains(expected), "{said}");
    };
    // Another function of that name could be called in the place of the right one.
    server.sql("CREATE FUNCTION trunkline.user_lookup(name) RETURNS text LANGUAGE sql AS 'SELECT $1::text'");
    ends_with("cannot drop schema trunkline because other objects depend on it");
    ends_with("Move what is not this file's out of the schema trunkline first");
    // Nothing has been done, so nothing is said to have been.
    server.sql("GRANT trunkline TO mallory");
    let said = text(&run_again(&server).stderr);
    assert!(!said.contains("no longer a member"), "{said}");
    server.sql("REVOKE trunkline FROM mallory");
    only_the_account_reads(&server);
    server.sql("DROP SCHEMA trunkline CASCADE");
    server.sql("SET ROLE mallory; CREATE SCHEMA trunkline; GRANT ALL ON SCHEMA trunkline TO PUBLIC");
    ends_with("the schema trunkline belongs to mallory, which is not a superuser");
    server.sql("DROP SCHEMA trunkline");
    assert!(run_again(&server).status.success());
    only_the_account_reads(&server);
}

#[test]
fn it_says_at_once_that_it_is_for_a_superuser_on_the_leader() {
    let server = server(false);
    let file = project().join("config/service-account.sql");
    let ends_with = |role: &str, expected: &str, hint: &str| {
        let mut psql = server.psql("postgres");
        psql.args(["-v", "password=x", "-f", file.to_str().unwrap()])
            .env("PGOPTIONS", format!("-c role={role}"));
        let ended = output(&mut psql);
        let said = text(&ended.stderr);
        assert!(!ended.status.success(), "{said}");
        assert!(said.contains(expected) && said.contains(hint), "{said}");
    };
    let hint = "Run this file on the leader, as a superuser";
    ends_with("mallory", "ERROR:  the role mallory is not a superuser", hint);
    fs::write(server.data().join("standby.signal"), "").unwrap();
    server.stop();
    server.start_again();
    ends_with("postgres", "ERROR:  this server is a standby", hint);
}

/// A function made as the account would go on reading with its rights.
#[test]
fn what_a_former_member_has_made_as_the_account_does_not_go_on_reading() {
    let server = server(false);
    server.sql(
        "GRANT trunkline TO mallory; CREATE SCHEMA mallory; GRANT ALL ON SCHEMA mallory TO mallory, trunkline; SET ROLE trunkline; \
         CREATE FUNCTION mallory.f(n text) RETURNS text LANGUAGE sql SECURITY DEFINER \
         AS 'SELECT passwd FROM trunkline.user_lookup(n)'",
    );
    let ended = run_again(&server);
    let said = text(&ended.stderr);
    assert!(!ended.status.success(), "{said}");
    assert!(
        said.contains("the role trunkline owns something (pg_proc in postgres)"),
        "{said}"
    );
    server.sql("DROP FUNCTION mallory.f(text)");
    // Settings would hold for the account's own sessions.
    server.sql("ALTER ROLE trunkline SET statement_timeout = 1; ALTER ROLE trunkline IN DATABASE app SET work_mem = '64kB'");
    assert!(run_again(&server).status.success());
    let settings = "SELECT count(*) FROM pg_db_role_setting WHERE setrole = 'trunkline'::regrole";
    assert_eq!(text(&psql(&server, &["-Atc", settings]).stdout).trim(), "0");
    only_the_account_reads(&server);
}
