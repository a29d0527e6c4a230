//! What servers may ask the router for, which name it asks them for, and how much work it does at
//! their word.

use crate::binding::UNLIMITED;
use crate::cluster::postgres::{Options as ServerOptions, Postgres};
use crate::cluster::{Certificates, Options, Router};

/// Before one server, which stays when this is gone.
fn router(server: &Postgres, server_tls: &str) -> Router {
    Router::launch(
        None,
        Options {
            clusters: Some(server.yaml_with(&format!("{{{server_tls}}}"))),
            extra: format!("auth: {{{UNLIMITED}}}\n"),
            ..Options::default()
        },
    )
}

fn server(hba: &str, version_18: bool) -> Postgres {
    Postgres::start(&ServerOptions {
        hba: Some(hba.to_owned()),
        version_18,
        ..ServerOptions::default()
    })
}

#[test]
fn a_server_gets_no_password_until_it_is_verified_or_the_method_is_configured() {
    let server = server(
        "hostssl all trunkline 127.0.0.0/8 password\nhostssl all all 127.0.0.0/8 scram-sha-256",
        false,
    );
    let ca = server.certificates.file("ca.crt").display().to_string();
    let refused = |router: &Router, words: &str| {
        router.await_log(&["WARN", "s1", words]);
        let output = router.psql_output(6432, "", "SELECT 1");
        assert!(!output.status.success());
    };
    // By default nobody knows who answers, also where `channel_binding` is only preferred.
    for tls in ["", "sslmode: require", "require_auth: \"!md5\""] {
        refused(
            &router(&server, tls),
            "the server asks for the password in clear, which is refused: nothing has shown",
        );
    }
    refused(
        &router(
            &server,
            &format!("sslmode: verify-ca, sslrootcert: {ca}, require_auth: scram-sha-256"),
        ),
        "server_tls.require_auth leaves out password",
    );
    for tls in [
        format!("sslmode: verify-ca, sslrootcert: {ca}"),
        format!("sslrootcert: {ca}"),
        "sslmode: require, require_auth: [password, scram-sha-256]".to_owned(),
        "require_auth: \"password,scram-sha-256\"".to_owned(),
    ] {
        let router = router(&server, &tls);
        router.await_read_write();
        assert_eq!(router.psql(6432, "SELECT 'in'"), "in", "{tls}");
    }
    server.set_hba("host all trunkline 127.0.0.0/8 trust\nhost all all 127.0.0.0/8 scram-sha-256");
    refused(
        &router(&server, ""),
        "the server asks for no authentication, which is refused",
    );
    let trusted = router(&server, "require_auth: [none, scram-sha-256]");
    trusted.await_read_write();
}

/// PostgreSQL's `scram_iterations`, with OWASP's advice, and one more than is computed.
#[test]
fn the_service_account_may_have_many_iterations_up_to_a_bound_that_the_error_names() {
    let server = server("host all all 127.0.0.0/8 scram-sha-256", true);
    let set = |iterations: u32| {
        server.sql(&format!(
            "SET scram_iterations = {iterations}; ALTER ROLE trunkline PASSWORD 'trunkline'"
        ));
    };
    set(600_000);
    let first = router(&server, "");
    first.await_read_write();
    assert_eq!(first.psql(6432, "SELECT 'in'"), "in");
    set(1_000_001);
    let second = router(&server, "");
    second.await_log(&["WARN", "s1", "more than 1000000 SCRAM iterations"]);
}

#[test]
fn the_name_to_verify_may_be_another_than_the_members_host() {
    let server = Postgres::start(&ServerOptions {
        names: Some(vec!["server.example".to_owned()]),
        ..ServerOptions::default()
    });
    let ca = server.certificates.file("ca.crt").display().to_string();
    let full = format!("sslmode: verify-full, sslrootcert: {ca}");
    let named = router(&server, &format!("{full}, server_name: server.example"));
    named.await_read_write();
    assert_eq!(named.psql(6432, "SELECT 'in'"), "in");
    for more in ["", ", server_name: other.example"] {
        router(&server, &format!("{full}{more}")).await_log(&[
            "WARN",
            "s1",
            "certificate not valid for name",
        ]);
    }
}

#[test]
fn prefer_says_once_that_it_goes_on_in_clear() {
    let server = server("host all all 127.0.0.0/8 scram-sha-256", false);
    let other = Certificates::make(&["other.example".to_owned()]);
    let router = router(
        &server,
        &format!("sslrootcert: {}", other.file("ca.crt").display()),
    );
    router.await_read_write();
    for _ in 0..3 {
        assert_eq!(router.psql(6432, "SELECT 'in'"), "in");
    }
    let words = "connections to a server go on in clear text (sslmode: prefer)";
    let line = router.await_log(&["WARN", words]);
    assert!(
        line.contains(&server.address.to_string()) && line.contains("another one has the same name"),
        "{line}"
    );
    assert_eq!(router.log().matches(words).count(), 1, "{}", router.log());
}
