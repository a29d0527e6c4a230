//! The watch on etcd.

use super::{FULL, Files, MINIMAL};

fn with_etcd(text: &str) -> String {
    MINIMAL.replace("\ntls:", &format!("\n    etcd: {{{text}}}\ntls:"))
}

#[test]
fn each_key_has_its_effect() {
    let files = Files::new();
    let config = files.ok(FULL);
    let etcd = config.clusters["main"].etcd.as_ref().unwrap();
    assert_eq!(etcd.endpoints, ["https://db1:2379", "https://[::1]:2379"]);
    assert_eq!(etcd.prefix, "/pg/main/0/");
    assert_eq!(etcd.ca.as_ref().map(Vec::len), Some(1));
    assert_eq!(
        etcd.client_certificate.as_ref().unwrap().cert_file,
        files.path("s.crt")
    );
    let login = etcd.login.as_ref().unwrap();
    assert_eq!(
        (login.username.as_str(), login.password.expose()),
        ("e", &b"geheim"[..])
    );
    assert!(config.clusters["other"].etcd.is_none());

    let usual = files.ok(&with_etcd("endpoints: [\"http://db1:2379\"], scope: main"));
    let etcd = usual.clusters["main"].etcd.as_ref().unwrap();
    assert_eq!(etcd.prefix, "/service/main/");
    assert!(etcd.ca.is_none() && etcd.client_certificate.is_none() && etcd.login.is_none());
}

#[test]
fn errors() {
    let files = Files::new();
    let good = "endpoints: [\"http://db1:2379\"], scope: main";
    files.one_error(
        &with_etcd("endpoints: [\"http://db1:2379\"]"),
        "`scope` is missing",
    );
    files.one_error(&with_etcd("scope: main"), "`endpoints` is missing");
    files.one_error(
        &with_etcd("endpoints: [\"http://db1:2379/v3\"], scope: main"),
        "without a path",
    );
    files.one_error(&with_etcd(&format!("{good}, ca_file: ca.crt")), "has no effect");
    files.one_error(
        &with_etcd(&format!("{good}, username: u")),
        "needs `password_file`",
    );
    files.one_error(
        &with_etcd("endpoints: [\"http://db1:2379\"], scope: /"),
        "must not be empty",
    );
    files.one_error(
        &with_etcd(&format!("{good}, namespace: \"a\\tb\"")),
        "control character",
    );
    let long = "n".repeat(256);
    files.one_error(
        &with_etcd(&format!("{good}, namespace: {long}")),
        "longer than 255 bytes",
    );
    files.one_error(
        &with_etcd(good).replace(
            "patroni: {endpoints: [\"http://db1:8008\"]}",
            "servers: [{name: a, host: db1}]",
        ),
        "has no effect with `servers`",
    );
}
