#![allow(clippy::unwrap_used, clippy::format_collect, clippy::format_push_string)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair as TestKey};
use rustls::pki_types::ServerName;
use tempfile::TempDir;

use super::schema::markdown::sections;
use super::schema::{DEFAULT_LISTENERS, DEFAULT_ROUTES, Otherwise, ROOT};
use super::*;

mod access;
mod administration;
mod admission;
mod arrows;
mod certificates;
mod console;
mod defaults;
mod diff;
mod etcd;
mod every_key;
mod keys;
mod pool;
mod rereading;
mod routes;
mod schema;
mod settings;
mod tcp;
mod texts;
mod unfit;
mod wrong_values;

/// A directory with every file that the texts below name.
struct Files(TempDir);

const MINIMAL: &str = r#"
clusters:
  main:
    patroni: {endpoints: ["http://db1:8008"]}
    service_account: {user: trunkline, password_file: pw}
tls: {certificates: [{cert_file: s.crt, key_file: s.key}]}
"#;

/// Every key that works, none at its default; `servers` instead of `patroni` in the second cluster.
const FULL: &str = r#"
clusters:
  main:
    patroni: {endpoints: ["https://db1:8008/", "https://[::1]:8009"], ca_file: ca.crt, cert_file: s.crt,
              key_file: s.key, username: u, password_file: pw, poll_interval: 2s, fast_poll_interval: 50ms}
    etcd: {endpoints: ["https://db1:2379/", "https://[::1]:2379"], namespace: /pg/, scope: main/0, ca_file: ca.crt, cert_file: s.crt,
           key_file: s.key, username: e, password_file: pw}
    service_account: {user: svc, password_file: pw, dbname: app, pool_size: 7, timeout: 4s}
    server_tls: {sslmode: verify-full, sslnegotiation: direct, channel_binding: require,
                 sslrootcert: ca.crt, sslcert: s.crt, sslkey: s.key}
    server: {connect_timeout: 5s, keepalive: 20s, tcp_user_timeout: 40s, slow_start: 20s}
    probe: {interval: 500ms, timeout: 250ms, rise: 4, fall: 5}
    local_member: db9
    zone: a
    weight_tag: weight
    zone_tag: zone
    members:
      db3: {weight: 50, zone: b}
  other:
    servers: [{name: a, host: db1, port: 5433}, {name: b, host: "::1"}]
    service_account: {user: svc, password_env: SECRET}
    server: {keepalive: 0, tcp_user_timeout: 0, max_connections: 18}
    local_member: none
tls:
  certificates: [{cert_file: s.crt, key_file: s.key}]
  min_version: "1.3"
auth: {query: "SELECT a, b FROM c WHERE a = $1", cache_ttl: 5s, login_timeout: 10s,
       server_credentials: [{users: all, password_file: pw}],
       rate_limit: {failures: 2, delay: 50ms, max_delay: 3s, refuse_after: 9, refuse_for: 2m, exempt: [10.9.0.0/16]}}
routes:
  w: {cluster: other, targets: [leader], balance: least_connections, resume: tracked, queue_timeout: 3s, max_queue: 19,
      hold: {timeout: 50s, max_clients: 30, max_bytes: 1MiB, logins: false},
      client_address: {setting: false, application_name: true, tls: true}}
  r: {targets: [[sync, quorum], replica, leader], tags: {disk: ssd, old: false, site: 2}, balance: source_hash,
      read_only_on_leader: unenforced, max_lag: {bytes: 4MiB, time: 8s, recover_bytes: 1MiB, recover_time: 3s},
      on_unfit: {lag: close, down: close_idle, role: close, grace: 7s},
      pool: {mode: transaction, max_connections: 21, min_connections: 2, reserve: 3, reserve_delay: 4s, idle_timeout: 6m,
             max_lifetime: 2h, connects: 5, reset_timeout: 3s, ignore_startup_parameters: [extra_float_digits, Search_Path],
             settings: [app.Tenant, work_mem], verify: always, custom_settings: close, max_statements: 300,
             max_statement_bytes: 1MiB, wait_notify: 2s, query_timeout: 30s, transaction_timeout: 60s,
             idle_transaction_timeout: 20s, batch_timeout: 10s,
             overrides: [{user: batch, database: app, max_connections: 5, min_connections: 1, reserve: 0, idle_timeout: 1m,
                          max_lifetime: 30m, query_timeout: 0, transaction_timeout: 2h, idle_transaction_timeout: 1m,
                          batch_timeout: 1m}, {user: web, reserve: 9, reserve_delay: 1s}, {database: app, max_connections: 40}]}}
listeners:
  - {name: one, address: "127.0.0.1:7001", route: w, mode: postgres, tls: required, max_clients: 11, allow: ["::1", 10.0.0.0/8],
     deny: [10.1.0.0/16], proxy_protocol: {trusted: [192.0.2.1, "2001:db8::/32"], required: true}, connection_rate: 20/s}
  - {name: two, address: "[::1]:7001", route: r, tls: off}
  - {name: three, address: /run/trunkline/.s.PGSQL.7001, socket_mode: "0750", route: r}
http: {address: ["127.0.0.1:7003", "127.0.0.2:7003"], tls: {cert_file: s.crt, key_file: s.key},
       agent_check: {address: "127.0.0.1:7004", about: local_member}, proxy_protocol: {trusted: [192.0.2.2]},
       ui: false}
console: {users: [admin, b], operators: [b], database: router, cluster: other}
limits: {max_clients: 12, max_pending_logins: 13, per_user: 14, per_database: 15, per_address: 16,
         connection_rate: 17/s}
peers: {secret_file: peers.key, members: [{name: p, address: "db2:6432"}, {name: q, address: "[::1]:6432"}]}
log: {level: debug, format: json}
shutdown: {delay: 4s, grace: 9s, handover: 2h}
workers: 3
"#;

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.certificate("s", |_| {});
        files.certificate("ca", |_| {});
        files.secret("pw", "geheim\n");
        files.secret("peers.key", "0123456789abcdef");
        files.secret("users", "\"app\" \"SCRAM-SHA-256$4096:...\"\n");
        files.write("pg_hba.conf", "", 0o644);
        files.write("pg_ident.conf", "", 0o644);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, contents: &str, mode: u32) {
        fs::write(self.path(name), contents).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn secret(&self, name: &str, contents: &str) {
        self.write(name, contents, 0o640);
    }

    fn certificate(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) {
        let key = TestKey::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        change(&mut params);
        self.write(
            &format!("{name}.crt"),
            &params.self_signed(&key).unwrap().pem(),
            0o644,
        );
        self.secret(&format!("{name}.key"), &key.serialize_pem());
    }

    fn parse(&self, text: &str) -> Result<Config, ConfigErrors> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        parse_at(
            &self.path("trunkline.yaml"),
            text,
            i64::try_from(now).unwrap(),
            &|name| match name {
                "SECRET" => Some("from the environment".into()),
                "EMPTY" => Some(OsString::new()),
                _ => None,
            },
        )
    }

    fn ok(&self, text: &str) -> Config {
        self.parse(text)
            .unwrap_or_else(|errors| panic!("{errors}\n{text}"))
    }

    /// The errors without the file's name: `3: clusters.main: …`.
    fn errors(&self, text: &str) -> Vec<String> {
        let errors = self.parse(text).map(|_| ()).expect_err(text);
        let prefix = format!("{}:", self.path("trunkline.yaml").display());
        let shown = |error: &ConfigError| error.to_string().strip_prefix(&prefix).unwrap().trim().to_owned();
        let directory = format!("{}/", self.0.path().display());
        errors
            .iter()
            .map(|error| shown(error).replace(&directory, ""))
            .collect()
    }

    /// Asserts that the text has this one error and no other.
    #[track_caller]
    fn one_error(&self, text: &str, expected: &str) {
        let errors = self.errors(text);
        assert!(
            errors.len() == 1 && errors[0].contains(expected),
            "expected {expected:?}, got {errors:#?}"
        );
    }
}

/// `MINIMAL` with one cluster key more.
fn with_cluster_key(key: &str) -> String {
    MINIMAL.replace("tls:", &format!("    {key}\ntls:"))
}

/// What the table says of a key that is not written; `place` as the documentation has it.
fn otherwise(place: &str, key: &str) -> &'static Otherwise {
    let (_, keys) = sections().into_iter().find(|(name, _)| name == place).unwrap();
    &keys.find(key).unwrap().otherwise
}

fn default_time(place: &str, key: &str) -> Duration {
    let Otherwise::Time(time) = otherwise(place, key) else {
        panic!("{place} {key}")
    };
    *time
}

fn default_number(place: &str, key: &str) -> u32 {
    let Otherwise::Number(number) = otherwise(place, key) else {
        panic!("{place} {key}")
    };
    *number
}

fn default_text(place: &str, key: &str) -> &'static str {
    let Otherwise::Text(text) = otherwise(place, key) else {
        panic!("{place} {key}")
    };
    text
}

fn default_word<T: Words>(place: &str, key: &str) -> T {
    T::from_word(default_text(place, key)).unwrap()
}

#[test]
fn unix_sockets() {
    let files = Files::new();
    let listener = |keys: &str| {
        format!(
            "{MINIMAL}listeners: [{{name: a, route: read-write, {keys}}}, {{name: b, route: read-only, address: \"*:1\"}}]\n"
        )
    };
    let config = files.ok(&listener("address: /run/.s.PGSQL.6432, tls: optional"));
    let (path, mode) = ("/run/.s.PGSQL.6432".into(), 0o777);
    assert_eq!(config.listeners[0].address, BindAddress::Unix { path, mode });
    assert_eq!(config.warnings(), [""; 0]);
    for name in ["socket", ".s.PGSQL.", ".s.PGSQL.70000", "s.PGSQL.1"] {
        let config = files.ok(&listener(&format!("address: /run/{name}")));
        let warnings = config.warnings();
        assert!(
            warnings.len() == 1 && warnings[0].contains("libpq looks only for"),
            "{warnings:?}"
        );
    }
    let path = |length: usize| format!("address: /{}/.s.PGSQL.6432", "x".repeat(length - 15));
    assert_eq!(path(107).len() - "address: ".len(), 107);
    let _ = files.ok(&listener(&path(107)));
    files.one_error(&listener(&path(108)), "longer than the 107 bytes");
    for (keys, expected) in [
        ("address: /run/", "is a directory"),
        ("address: /", "is a directory"),
        ("address: /run/..", "is a directory"),
        ("address: run/.s.PGSQL.6432", "is not an address to listen on"),
        ("address: /run/.s.PGSQL.1, tls: required", "offers no TLS"),
        ("address: /run/.s.PGSQL.1, socket_mode: 0777", "put it in quotes"),
        (
            "address: /run/.s.PGSQL.1, socket_mode: \"0778\"",
            "must be from `\"0000\"`",
        ),
        (
            "address: /run/.s.PGSQL.1, socket_mode: \"1777\"",
            "must be from `\"0000\"`",
        ),
        (
            "address: /run/.s.PGSQL.1, socket_mode: rwx",
            "must be from `\"0000\"`",
        ),
        ("address: \"*:2\", socket_mode: \"0777\"", "has no effect"),
    ] {
        files.one_error(&listener(keys), expected);
    }
    let twice = listener("address: /run/.s.PGSQL.1").replace("\"*:1\"", "/run//.s.PGSQL.1");
    files.one_error(&twice, "overlaps listeners[0].address, /run/.s.PGSQL.1");
    files.one_error(
        &format!("{MINIMAL}http: {{address: /run/.s.PGSQL.1}}\n"),
        "is not an address to listen on",
    );
}

#[test]
fn no_secret_is_shown_by_debug() {
    let config = Files::new().ok(FULL);
    let shown = format!("{config:?}");
    for secret in ["geheim", "from the environment", "0123456789abcdef"] {
        assert!(!shown.contains(secret), "{secret}");
    }
}

#[test]
fn all_faults_are_reported_at_once_in_the_order_of_their_lines() {
    let files = Files::new();
    let errors = files.errors(
        r#"clusters:
  main:
    patroni: {endpoints: ["db1:8008"], pol_interval: 1s}
    service_account: {user: 5, password_file: nowhere}
    probe: {interval: 1, rise: 0}
    probe: {}
    etcd: {endpoints: []}
tls: {min_version: 1.1}
listeners:
  - {name: a, address: "*:6432", route: nowhere}
  - {name: a, address: "127.0.0.1:6432", route: read-only, tls: sometimes}
lisp: 1
shutdown: [1]
"#,
    );
    let expected = [
        "3: clusters.main.patroni.pol_interval: unknown key `pol_interval` (did you mean `poll_interval`?)",
        "3: clusters.main.patroni.endpoints[0]: is not an `http://` or `https://` URL (as in `https://db1:8008`)",
        "4: clusters.main.service_account.user: expected text, found a number (put it in quotes)",
        "4: clusters.main.service_account.password_file: nowhere: does not exist (create it, or correct its name)",
        "5: clusters.main.probe.interval: is not a time (a whole number and a unit, ms, s, m or h, as in `500ms` or `5s`)",
        "5: clusters.main.probe.rise: must be from 1 to 100",
        "6: clusters.main.probe: `probe` is written twice, first on line 5 (remove one of the two)",
        "7: clusters.main.etcd.endpoints: must not be empty",
        "7: clusters.main.etcd.scope: `scope` is missing",
        "8: tls.min_version: expected `1.2` or `1.3`, found `1.1`",
        "8: tls.certificates: `certificates` is missing",
        "10: listeners[0].route: there is no route `nowhere` (the names are: read-write, read-only)",
        "11: listeners[1].tls: expected `off`, `optional` or `required`, found `sometimes`",
        "11: listeners[1].name: has the same name as listeners[0].name",
        "11: listeners[1].address: overlaps listeners[0].address, *:6432",
        "12: lisp: unknown key `lisp`",
        "13: shutdown: expected a map of keys, found a list",
    ];
    assert_eq!(errors, expected, "{errors:#?}");
}

#[test]
fn a_fault_names_file_line_and_path() {
    let files = Files::new();
    let errors = files.parse(&format!("{MINIMAL}logs: {{}}\n")).unwrap_err();
    let path = files.path("trunkline.yaml");
    let expected = format!(
        "{}:7: logs: unknown key `logs` (did you mean `log`?)",
        path.display()
    );
    assert_eq!(errors.to_string(), expected);
}

#[test]
fn tls_without_a_certificate() {
    let files = Files::new();
    let plain = MINIMAL
        .lines()
        .filter(|line| !line.starts_with("tls"))
        .collect::<Vec<_>>()
        .join("\n");
    let config = files.ok(&plain);
    assert!(config.tls.is_none());
    assert!(
        config
            .listeners
            .iter()
            .all(|listener| listener.tls == ListenerTls::Off)
    );
    assert_eq!(
        config.warnings(),
        ["no certificate is configured: clients connect without TLS"]
    );
    let listener = |tls: &str| {
        format!("{plain}\nlisteners: [{{name: a, address: \"*:1\", route: read-write, tls: {tls}}}]\n")
    };
    assert_eq!(files.ok(&listener("optional")).listeners[0].tls, ListenerTls::Off);
    files.one_error(&listener("required"), "`required` needs a certificate");
    // One error for a faulty certificate, none for the listeners.
    let faulty = listener("required") + "tls: {certificates: [{cert_file: gone.crt, key_file: s.key}]}\n";
    files.one_error(&faulty, "gone.crt: does not exist");
}

#[test]
fn what_is_odd_is_a_warning() {
    let files = Files::new();
    let text = format!("{MINIMAL}listeners: [{{name: a, address: \"*:1\", route: read-write, tls: off}}]\n");
    let odd = [
        "a certificate is configured, but every listener has `tls: off`",
        "no listener uses the route `read-only`",
    ];
    assert_eq!(files.ok(&text).warnings(), odd);
    let clear = MINIMAL.replace("8008\"]", "8008\"], username: u, password_file: pw");
    assert!(files.ok(&clear).warnings()[0].contains("is sent unencrypted"));
    let clear = MINIMAL.replace(
        "    service_account:",
        "    etcd: {endpoints: [\"http://127.0.0.1:2379\"], scope: s, username: u, password_file: pw}\n    service_account:",
    );
    assert_eq!(
        files.ok(&clear).warnings()[0],
        "cluster `main`: etcd's password is sent unencrypted to `http://` endpoints"
    );
    files.certificate("s", |params| {
        let end = rcgen::date_time_ymd(2200, 1, 1);
        params.not_after = end;
    });
    let end = 7_258_118_400; // 2200-01-01
    let at = |now| parse_at(&files.path("trunkline.yaml"), MINIMAL, now, &|_| None);
    assert_eq!(at(end - 15 * 86_400).unwrap().warnings(), [""; 0]);
    let soon = at(end - 13 * 86_400).unwrap();
    assert!(
        soon.warnings()[0].contains("s.crt: certificate 1 expires on"),
        "{:?}",
        soon.warnings()
    );
    assert_eq!(soon.tls.unwrap().certificates[0].pair.leaf().not_after, end);
    assert!(
        at(end + 1)
            .unwrap_err()
            .to_string()
            .contains("s.crt: certificate 1 has expired")
    );
}

#[test]
fn unknown_keys_of_every_section_are_reported_with_its_path() {
    let files = Files::new();
    // A key put first into every map of the full file that has fixed keys.
    let text = FULL
        .replace('{', "{zzz: 1, ")
        .replace("  certificates: [{", "  zzz: 1\n  certificates: [{");
    let errors = files.errors(&text);
    for (place, _) in sections()
        .into_iter()
        .filter(|(place, _)| !matches!(&**place, "" | "clusters.NAME"))
    {
        let path = place.replace("[]", "[0]");
        let of_cluster =
            ["main", "other"].map(|name| path.replace("clusters.NAME", &format!("clusters.{name}")));
        let of_route = ["r", "w"].map(|name| {
            of_cluster
                .clone()
                .map(|path| path.replace("routes.NAME", &format!("routes.{name}")))
        });
        let found = of_route.iter().flatten().any(|path| {
            let path = format!(
                " {}.zzz: unknown key `zzz`",
                path.replace("members.NAME", "members.db3")
            );
            errors.iter().any(|error| error.contains(&path))
        });
        assert!(found, "{place}: {errors:#?}");
    }
    assert!(
        errors.iter().all(|error| error.contains("unknown key `zzz`")),
        "{errors:#?}"
    );
}
