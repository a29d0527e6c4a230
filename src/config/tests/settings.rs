//! What operators see of the configuration.

use super::*;

fn found<'a>(all: &'a [Setting], key: &str) -> &'a Setting {
    let mut matching = all.iter().filter(|setting| setting.key == key);
    let setting = matching.next().unwrap_or_else(|| panic!("{key}: {all:#?}"));
    assert_eq!(matching.next(), None, "{key} is there once");
    setting
}

#[test]
fn a_setting_says_its_value_its_default_and_its_line() {
    let files = Files::new();
    let all = files.ok(FULL).settings();
    let line = |part: &str| FULL.lines().position(|line| line.contains(part)).map(|at| at + 1);
    for (key, value, default, part) in [
        ("limits.max_clients", "12", Some("5000"), "limits:"),
        (
            "limits.connection_rate",
            "17/s",
            Some("0"),
            "connection_rate: 17/s",
        ),
        ("listeners[1].address", "[::1]:7001", None, "name: two"),
        (
            "listeners[0].allow",
            "[::1, 10.0.0.0/8]",
            Some("all"),
            "name: one",
        ),
        (
            "routes.r.targets",
            "[[sync, quorum], replica, leader]",
            None,
            "  r:",
        ),
        ("routes.r.pool.mode", "transaction", Some("off"), "pool: {mode"),
        (
            "routes.r.pool.max_statement_bytes",
            "1MiB",
            Some("4MiB"),
            "max_statement_bytes",
        ),
        ("routes.r.tags", "{disk: ssd, old: false, site: 2}", None, "  r:"),
        (
            "clusters.main.members.db3.weight",
            "50",
            Some("by weight_tag, else 1"),
            "db3:",
        ),
        (
            "clusters.other.server.keepalive",
            "0",
            Some("15s"),
            "keepalive: 0",
        ),
        (
            "clusters.main.server_tls.sslrootcert",
            "ca.crt",
            Some("system for verify-full"),
            "sslrootcert",
        ),
        ("peers.members[1].name", "q", None, "peers:"),
        (
            "http.address",
            "[127.0.0.1:7003, 127.0.0.2:7003]",
            Some("*:6434"),
            "http:",
        ),
        (
            "workers",
            "3",
            Some("half of the processors, at least 1"),
            "workers:",
        ),
    ] {
        let setting = found(&all, key);
        assert_eq!(setting.value.as_deref(), Some(value), "{key}");
        assert_eq!(setting.default.as_deref(), default, "{key}");
        assert_eq!(setting.line, line(part), "{key}");
        assert!(setting.is_written, "{key}");
    }
}

#[test]
fn what_is_not_written_has_the_value_that_counts() {
    let files = Files::new();
    let config = files.ok(MINIMAL);
    let all = config.settings();
    let workers = config.workers.to_string();
    for (key, value) in [
        ("limits.max_clients", Some("5000")),
        ("workers", Some(workers.as_str())),
        ("routes.read-write.targets", Some("[leader]")),
        ("routes.read-only.targets", Some("[replica]")),
        ("routes.read-only.cluster", Some("main")),
        ("routes.read-only.resume", Some("off")),
        ("routes.read-only.max_lag", Some("no limit")),
        ("listeners[0].address", Some("*:6432")),
        ("listeners[1].route", Some("read-only")),
        ("clusters.main.server_tls.server_name", Some("the member's host")),
        ("clusters.main.etcd", None),
        ("console", None),
        ("http.token_file", None),
    ] {
        let setting = found(&all, key);
        assert_eq!(setting.value.as_deref(), value, "{key}");
        assert!(!setting.is_written && setting.line.is_none(), "{key}");
    }
}

/// A command may have the passphrase in it.
#[test]
fn no_secret_is_a_setting() {
    let files = Files::new();
    let text = FULL.replace(
        "sslkey: s.key}",
        "sslkey: s.key, sslpassphrase_command: echo geheim}",
    );
    let text = text.replace(
        "tls: {cert_file: s.crt, key_file: s.key}",
        "tls: {cert_file: s.crt, key_file: s.key, passphrase_command: echo geheim}",
    );
    let all = files.ok(&text).settings();
    for key in [
        "clusters.main.server_tls.sslpassphrase_command",
        "http.tls.passphrase_command",
    ] {
        assert_eq!(found(&all, key).value.as_deref(), Some("…"), "{key}");
    }
    let shown = format!("{all:?}");
    for secret in ["geheim", "0123456789abcdef", "from the environment", "PRIVATE"] {
        assert!(!shown.contains(secret), "{secret}");
    }
}

/// So that a new key cannot show a command in which a secret may be.
#[test]
fn every_command_is_hidden() {
    let documented = include_str!("../../../docs/configuration.md");
    let commands = documented
        .split('`')
        .filter(|name| name.ends_with("_command") && !name.contains(' '));
    for command in commands {
        assert!(
            ["passphrase_command", "sslpassphrase_command"].contains(&command),
            "{command} is in the list of hidden keys too"
        );
    }
}

#[test]
fn certificates_in_use_have_their_files_and_their_facts() {
    let files = Files::new();
    let all = files
        .ok(&FULL.replace("  min_version", "  client_ca_file: ca.crt\n  min_version"))
        .certificates();
    let mut keys: Vec<String> = all
        .values()
        .flatten()
        .map(|file| format!("{} {}", file.key, file.is_shown))
        .collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "clusters.main.etcd.ca_file false",
            "clusters.main.etcd.cert_file true",
            "clusters.main.patroni.ca_file false",
            "clusters.main.patroni.cert_file true",
            "clusters.main.server_tls.sslcert true",
            "clusters.main.server_tls.sslrootcert false",
            "http.tls.cert_file true",
            "tls.certificates[0].cert_file true",
            "tls.client_ca_file false",
        ]
    );
    for file in all.values().flatten() {
        let name = if file.is_shown { "s.crt" } else { "ca.crt" };
        assert_eq!(file.file, files.path(name), "{}", file.key);
        assert_eq!(file.certificates.len(), 1, "{}", file.key);
    }
}

#[test]
fn the_facts_of_a_certificate_are_openssls() {
    let files = Files::new();
    files.certificate("t", |params| {
        params.serial_number = Some(vec![0x0a, 0xbc].into());
        params.not_before = rcgen::date_time_ymd(2026, 1, 2);
        params.not_after = rcgen::date_time_ymd(2099, 3, 4);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "db.example");
    });
    let config = files.ok(&MINIMAL.replace("s.crt", "t.crt").replace("s.key", "t.key"));
    let facts = CertificateFacts::of(&config.tls.unwrap().certificates[0].pair.chain[0]);
    let openssl = std::process::Command::new("openssl")
        .args(["x509", "-noout", "-serial", "-fingerprint", "-sha256", "-in"])
        .arg(files.path("t.crt"))
        .output()
        .unwrap();
    let said = String::from_utf8(openssl.stdout).unwrap().to_lowercase();
    let serial = format!("serial={}\n", facts.serial.to_lowercase());
    let fingerprint = format!("fingerprint={}\n", facts.fingerprint.to_lowercase());
    assert!(
        said.contains(&serial) && said.contains(&fingerprint),
        "{said}{facts:?}"
    );
    assert_eq!(facts.names, ["localhost"]);
    assert!(facts.subject.contains("db.example") && facts.issuer.contains("db.example"));
    assert_eq!(
        (facts.not_before, facts.not_after),
        (1_767_312_000, 4_076_265_600)
    );
}
