//! Rules and server credentials.

use super::{Files, MINIMAL};
use crate::config::{CredentialUsers, ServerSecret};

fn with_auth(text: &str) -> String {
    format!("{MINIMAL}auth:\n  {text}\n")
}

fn with_credential(text: &str) -> String {
    with_auth(&format!("server_credentials: [{text}]"))
}

#[test]
fn each_key_has_its_effect() {
    let files = Files::new();
    let config = files.ok(&with_auth(
        "hba_file: pg_hba.conf\n  ident_file: pg_ident.conf\n  ldap_ca_file: ca.crt\n  server_credentials:\n  \
         - {users: [a, all], server_user: b, password_file: pw}\n  \
         - {users: [c], password: client}\n  \
         - {users: all, cert_file: s.crt, key_file: s.key}",
    ));
    let auth = &config.auth;
    assert_eq!(auth.hba_file, Some(files.path("pg_hba.conf")));
    assert_eq!(auth.ident_file, Some(files.path("pg_ident.conf")));
    assert_eq!(auth.ldap_roots.as_ref().map(Vec::len), Some(1));
    let [first, second, third] = &*auth.server_credentials else {
        panic!("{:?}", auth.server_credentials)
    };
    // In a list, `all` is the role of that name.
    assert_eq!(
        first.users,
        CredentialUsers::Names(vec!["a".into(), "all".into()])
    );
    assert_eq!(first.server_user.as_deref(), Some("b"));
    assert!(matches!(&first.secret, ServerSecret::Password(password) if password.expose() == b"geheim"));
    assert!(matches!(second.secret, ServerSecret::ClientPassword) && second.server_user.is_none());
    assert_eq!(third.users, CredentialUsers::All);
    assert!(
        matches!(&third.secret, ServerSecret::Certificate(pair) if pair.cert_file == files.path("s.crt"))
    );
}

#[test]
fn the_clusters_certificate_must_be_there_where_it_is_leant_on() {
    let files = Files::new();
    files.one_error(&with_credential("{users: all}"), "has no `server_tls.sslcert`");
    let text = with_credential("{users: all, server_user: b}").replace(
        "\ntls:",
        "\n    server_tls: {sslmode: require, sslcert: s.crt, sslkey: s.key}\ntls:",
    );
    let config = files.ok(&text);
    assert!(matches!(
        config.auth.server_credentials[0].secret,
        ServerSecret::ClusterCertificate
    ));
}

#[test]
fn a_missing_file_of_rules_is_reported_beside_all_other_faults() {
    let files = Files::new();
    let errors = files.errors(&format!(
        "{}authx: 1\n",
        with_auth("hba_file: nope.conf\n  ident_file: also-nope.conf")
    ));
    for expected in [
        "auth.hba_file: nope.conf: does not exist",
        "auth.ident_file: also-nope.conf: does not exist",
        "authx: unknown key",
    ] {
        assert!(
            errors.iter().any(|error| error.contains(expected)),
            "{expected}: {errors:#?}"
        );
    }
    assert_eq!(errors.len(), 3, "{errors:#?}");
}

#[test]
fn errors() {
    let files = Files::new();
    files.one_error(
        &with_auth("ident_file: pg_ident.conf"),
        "needs `hba_file`, whose rules",
    );
    files.one_error(&with_credential("{password_file: pw}"), "`users` is missing");
    files.one_error(
        &with_credential("{users: some, password_file: pw}"),
        "expected `all`",
    );
    files.one_error(
        &with_credential("{users: [], password_file: pw}"),
        "must not be empty",
    );
    files.one_error(
        &with_credential("{users: [a, a], password_file: pw}"),
        "the same user as",
    );
    files.one_error(
        &with_credential("{users: [a], password_file: pw, password: client}"),
        "more than one of",
    );
    let long = "n".repeat(64);
    files.one_error(
        &with_credential(&format!("{{users: [{long}], password_file: pw}}")),
        "longer than 63 bytes",
    );
    files.one_error(
        &with_credential(&format!("{{users: [a], server_user: {long}, password_file: pw}}")),
        "longer than 63 bytes",
    );
    files.one_error(
        &with_credential("{users: [a], password: mine}"),
        "expected `client`",
    );
    files.one_error(
        &with_credential("{users: [a], cert_file: s.crt}"),
        "`cert_file` also needs `key_file`",
    );
    files.one_error(
        &with_credential("{users: all, password: client}, {users: [a], password_file: pw}"),
        "is never reached",
    );
}
