#![allow(clippy::unwrap_used, clippy::format_collect, clippy::format_push_string)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair as TestKey};
use rustls::pki_types::ServerName;
use tempfile::TempDir;

use super::schema::markdown::sections;
use super::schema::{DEFAULT_LISTENERS, DEFAULT_ROUTES, Otherwise, ROOT};
use super::*;

mod access;
mod administration;
mod arrows;
mod console;
mod diff;
mod entry;
mod etcd;
mod keys;
mod rereading;
mod routes;
mod schema;
mod tcp;
mod unfit;

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
  w: {cluster: other, targets: [leader], balance: least_connections, resume: off, queue_timeout: 3s, max_queue: 19,
      client_address: {setting: false, application_name: true, tls: true}}
  r: {targets: [[sync, quorum], replica, leader], tags: {disk: ssd, old: false, site: 2}, balance: source_hash,
      read_only_on_leader: unenforced, max_lag: {bytes: 4MiB, time: 8s, recover_bytes: 1MiB, recover_time: 3s},
      on_unfit: {lag: close, down: close_idle, role: close, grace: 7s}}
listeners:
  - {name: one, address: "127.0.0.1:7001", route: w, mode: postgres, tls: required, max_clients: 11, allow: ["::1", 10.0.0.0/8],
     deny: [10.1.0.0/16], proxy_protocol: {trusted: [192.0.2.1, "2001:db8::/32"], required: true}, connection_rate: 20/s}
  - {name: two, address: "[::1]:7001", route: r, tls: off}
  - {name: three, address: /run/trunkline/.s.PGSQL.7001, socket_mode: "0750", route: r}
http: {address: ["127.0.0.1:7003", "127.0.0.2:7003"], tls: {cert_file: s.crt, key_file: s.key},
       agent_check: {address: "127.0.0.1:7004", about: local_member}, proxy_protocol: {trusted: [192.0.2.2]}}
console: {users: [admin, b], database: router, cluster: other}
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
            .unwrap_or_else(|faults| panic!("{faults}\n{text}"))
    }

    /// The faults without the file's name: `3: clusters.main: …`.
    fn faults(&self, text: &str) -> Vec<String> {
        let faults = self.parse(text).map(|_| ()).expect_err(text);
        let prefix = format!("{}:", self.path("trunkline.yaml").display());
        let shown = |fault: &ConfigError| fault.to_string().strip_prefix(&prefix).unwrap().trim().to_owned();
        let directory = format!("{}/", self.0.path().display());
        faults
            .iter()
            .map(|fault| shown(fault).replace(&directory, ""))
            .collect()
    }

    /// Asserts that the text has this one fault and no other.
    #[track_caller]
    fn one_fault(&self, text: &str, expected: &str) {
        let faults = self.faults(text);
        assert!(
            faults.len() == 1 && faults[0].contains(expected),
            "expected {expected:?}, got {faults:#?}"
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
fn a_cluster_of_the_minimal_file_has_the_defaults_of_the_table() {
    let files = Files::new();
    let config = files.ok(MINIMAL);
    let cluster = &config.clusters["main"];
    let Source::Patroni(patroni) = &cluster.source else {
        panic!("{:?}", cluster.source)
    };
    let time = |section: &str, key| default_time(&format!("clusters.NAME.{section}"), key);
    let number = |section: &str, key| default_number(&format!("clusters.NAME.{section}"), key);
    assert_eq!(patroni.endpoints, ["http://db1:8008"]);
    assert_eq!(patroni.poll_interval, time("patroni", "poll_interval"));
    assert_eq!(patroni.fast_poll_interval, time("patroni", "fast_poll_interval"));
    assert!(patroni.ca.is_none() && patroni.client_certificate.is_none() && patroni.basic_auth.is_none());
    let account = &cluster.service_account;
    assert_eq!(
        account.dbname,
        default_text("clusters.NAME.service_account", "dbname")
    );
    assert_eq!(account.pool_size, number("service_account", "pool_size") as usize);
    assert_eq!(
        account.password.as_ref().unwrap().expose(),
        b"geheim",
        "without its newline"
    );
    assert_eq!(account.timeout, time("service_account", "timeout"));
    let (tls, place) = (&cluster.server_tls, "clusters.NAME.server_tls");
    assert_eq!(tls.sslmode, default_word(place, "sslmode"));
    assert_eq!(tls.sslnegotiation, default_word(place, "sslnegotiation"));
    assert_eq!(tls.channel_binding, default_word(place, "channel_binding"));
    assert!(tls.roots.is_none());
    assert_eq!(
        cluster.server,
        ServerOptions {
            connect_timeout: time("server", "connect_timeout"),
            keepalive: Some(time("server", "keepalive")),
            tcp_user_timeout: Some(time("server", "tcp_user_timeout")),
        }
    );
    assert_eq!(
        cluster.probe,
        Probe {
            interval: time("probe", "interval"),
            timeout: time("probe", "timeout"),
            rise: number("probe", "rise"),
            fall: number("probe", "fall"),
        }
    );
    assert_eq!(cluster.local_member, LocalMember::Auto);
    assert_eq!(cluster.placement, Placement::even());
    assert_eq!(config.warnings(), [""; 0]);
}

#[test]
fn the_rest_of_the_minimal_file_has_the_defaults_of_the_table() {
    let files = Files::new();
    let config = files.ok(MINIMAL);
    let Verifiers::Query { sql, cache_ttl } = &config.auth.verifiers else {
        panic!()
    };
    assert_eq!(sql, default_text("auth", "query"));
    assert_eq!(*cache_ttl, default_time("auth", "cache_ttl"));
    assert_eq!(config.auth.login_timeout, default_time("auth", "login_timeout"));
    let place = "auth.rate_limit";
    let rate_limit = RateLimit {
        failures: default_number(place, "failures"),
        delay: default_time(place, "delay"),
        max_delay: default_time(place, "max_delay"),
        refuse_after: default_number(place, "refuse_after"),
        refuse_for: default_time(place, "refuse_for"),
        exempt: [].into(),
    };
    assert_eq!(config.auth.rate_limit, rate_limit);
    assert_eq!(
        *config.routes["read-write"],
        Route::read_write("read-write", "main")
    );
    assert_eq!(*config.routes["read-only"], Route::read_only("read-only", "main"));
    let shown: Vec<(&str, String)> = config
        .listeners
        .iter()
        .map(|listener| (&*listener.route, listener.address.to_string()))
        .collect();
    let wanted = DEFAULT_LISTENERS.map(|(name, address)| (name, address.to_owned()));
    assert_eq!(shown, wanted);
    assert!(config.listeners.iter().all(|listener| {
        listener.tls == default_word("listeners[]", "tls")
            && listener.max_clients == default_number("listeners[]", "max_clients")
    }));
    let [http] = &*config.http.addresses else {
        panic!("{:?}", config.http.addresses)
    };
    assert_eq!(http.to_string(), default_text("http", "address"));
    assert!(config.http.tls.is_none() && config.peers.is_none());
    let number = |key| default_number("limits", key);
    assert_eq!(
        config.limits,
        Limits {
            max_clients: number("max_clients"),
            max_pending_logins: number("max_pending_logins"),
            per_user: number("per_user"),
            per_database: number("per_database"),
            per_address: number("per_address"),
            connection_rate: None,
        }
    );
    assert_eq!(
        config.log,
        Log {
            level: default_word("log", "level"),
            format: default_word("log", "format"),
        }
    );
    assert_eq!(config.shutdown.delay, default_time("shutdown", "delay"));
    assert_eq!(config.shutdown.grace, default_time("shutdown", "grace"));
    assert_eq!(config.shutdown.handover, None);
}

/// The table says in words which routes and listeners there are by default.
#[test]
fn the_words_about_default_routes_and_listeners_are_right() {
    let meaning = |key| ROOT.find(key).unwrap().meaning;
    for (name, address) in DEFAULT_LISTENERS {
        let listener = format!("`{name}` on `{address}`");
        assert!(meaning("listeners").contains(&listener), "{listener}");
    }
    for (name, target) in DEFAULT_ROUTES {
        let route = format!("`{name}` (the {target})").replace("the replica", "a replica");
        assert!(meaning("routes").contains(&route), "{route}");
    }
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
    files.one_fault(&listener(&path(108)), "longer than the 107 bytes");
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
        files.one_fault(&listener(keys), expected);
    }
    let twice = listener("address: /run/.s.PGSQL.1").replace("\"*:1\"", "/run//.s.PGSQL.1");
    files.one_fault(&twice, "overlaps listeners[0].address, /run/.s.PGSQL.1");
    files.one_fault(
        &format!("{MINIMAL}http: {{address: /run/.s.PGSQL.1}}\n"),
        "is not an address to listen on",
    );
}

#[test]
fn the_rate_limit_fits_what_is_written_beside_it() {
    let files = Files::new();
    let read = |auth: &str| files.ok(&format!("{MINIMAL}auth: {{{auth}}}\n")).auth.rate_limit;
    assert!(!read("rate_limit: {failures: 0}").is_on());
    assert_eq!(read("rate_limit: {failures: 30}").refuse_after, 30);
    assert_eq!(
        read("rate_limit: {delay: 20s}").max_delay,
        Duration::from_secs(20)
    );
    let short = read("login_timeout: 200ms");
    let most = Duration::from_millis(100);
    assert_eq!((short.delay, short.max_delay), (most, most));
}

#[test]
fn every_key_has_its_effect() {
    let files = Files::new();
    let config = files.ok(FULL);
    let cluster = &config.clusters["main"];
    let Source::Patroni(patroni) = &cluster.source else {
        panic!("{:?}", cluster.source)
    };
    assert_eq!(patroni.endpoints, ["https://db1:8008", "https://[::1]:8009"]);
    assert_eq!(patroni.ca.as_ref().unwrap().len(), 1);
    assert_eq!(
        patroni.client_certificate.as_ref().unwrap().cert_file,
        files.path("s.crt")
    );
    let basic = patroni.basic_auth.as_ref().unwrap();
    assert_eq!(
        (basic.username.as_str(), basic.password.expose()),
        ("u", b"geheim".as_slice())
    );
    assert_eq!(patroni.poll_interval, Duration::from_secs(2));
    assert_eq!(patroni.fast_poll_interval, Duration::from_millis(50));
    let account = &cluster.service_account;
    assert_eq!(
        (account.user.as_str(), account.dbname.as_str(), account.pool_size),
        ("svc", "app", 7)
    );
    assert_eq!(account.timeout, Duration::from_secs(4));
    assert_eq!(cluster.server_tls.sslmode, SslMode::VerifyFull);
    assert_eq!(cluster.server_tls.sslnegotiation, SslNegotiation::Direct);
    assert_eq!(cluster.server_tls.channel_binding, ChannelBinding::Require);
    assert_eq!(cluster.server_tls.roots.as_ref().unwrap().len(), 1);
    assert_eq!(
        cluster
            .server_tls
            .client_certificate
            .as_ref()
            .unwrap()
            .chain
            .len(),
        1
    );
    assert_eq!(cluster.server.connect_timeout, Duration::from_secs(5));
    assert_eq!(cluster.server.keepalive, Some(Duration::from_secs(20)));
    assert_eq!(cluster.server.tcp_user_timeout, Some(Duration::from_secs(40)));
    let (interval, timeout) = (Duration::from_millis(500), Duration::from_millis(250));
    assert_eq!(
        cluster.probe,
        Probe {
            interval,
            timeout,
            rise: 4,
            fall: 5
        }
    );
    assert_eq!(cluster.local_member, LocalMember::Name("db9".into()));

    let other = &config.clusters["other"];
    let Source::Servers(servers) = &other.source else {
        panic!("{:?}", other.source)
    };
    let server = |name: &str, host: &str, port| Server {
        name: name.into(),
        host: host.into(),
        port,
    };
    assert_eq!(*servers, [server("a", "db1", 5433), server("b", "::1", 5432)]);
    assert_eq!(
        other.service_account.password.as_ref().unwrap().expose(),
        b"from the environment"
    );
    assert_eq!(
        (other.server.keepalive, other.server.tcp_user_timeout),
        (None, None)
    );
    assert_eq!(other.local_member, LocalMember::None);

    let Verifiers::Query { sql, cache_ttl } = &config.auth.verifiers else {
        panic!()
    };
    assert_eq!(
        (sql.as_str(), *cache_ttl),
        ("SELECT a, b FROM c WHERE a = $1", Duration::from_secs(5))
    );
    assert_eq!(config.auth.login_timeout, Duration::from_secs(10));
    let rate_limit = RateLimit {
        failures: 2,
        delay: Duration::from_millis(50),
        max_delay: Duration::from_secs(3),
        refuse_after: 9,
        refuse_for: Duration::from_mins(2),
        exempt: [Network::parse("10.9.0.0/16").unwrap()].into(),
    };
    assert_eq!(config.auth.rate_limit, rate_limit);
    assert_eq!(config.routes.keys().collect::<Vec<_>>(), ["w", "r"]);
    assert_eq!(
        (&*config.routes["w"].cluster, config.routes["w"].access),
        ("other", Access::ReadWrite)
    );
    assert_eq!(
        (&*config.routes["r"].cluster, config.routes["r"].access),
        ("main", Access::ReadOnly)
    );
    let [one, two, three] = config.listeners.as_slice() else {
        panic!("{:?}", config.listeners)
    };
    let (path, mode) = ("/run/trunkline/.s.PGSQL.7001".into(), 0o750);
    assert_eq!(three.address, BindAddress::Unix { path, mode });
    assert_eq!(three.tls, ListenerTls::Off, "though there is a certificate");
    assert_eq!(
        (&*one.name, &*one.route, one.tls, one.max_clients),
        ("one", "w", ListenerTls::Required, 11)
    );
    assert_eq!(one.address, BindAddress::Ip("127.0.0.1:7001".parse().unwrap()));
    assert_eq!((&*two.name, &*two.route, two.tls), ("two", "r", ListenerTls::Off));
    assert_eq!(two.address, BindAddress::Ip("[::1]:7001".parse().unwrap()));
    assert_eq!(
        config.http.addresses,
        [
            BindAddress::Ip("127.0.0.1:7003".parse().unwrap()),
            BindAddress::Ip("127.0.0.2:7003".parse().unwrap())
        ]
    );
    assert_eq!(
        config.http.tls.as_ref().unwrap().server_config.alpn_protocols,
        [b"http/1.1"]
    );
    assert_eq!(
        config.limits,
        Limits {
            max_clients: 12,
            max_pending_logins: 13,
            per_user: 14,
            per_database: 15,
            per_address: 16,
            connection_rate: std::num::NonZeroU32::new(17),
        }
    );
    let peers = config.peers.as_ref().unwrap();
    assert_eq!(peers.secret.expose(), b"0123456789abcdef");
    let peer = |name: &str, host: &str| Peer {
        name: name.into(),
        host: host.into(),
        port: 6432,
    };
    assert_eq!(peers.members, [peer("p", "db2"), peer("q", "::1")]);
    assert_eq!(
        config.log,
        Log {
            level: LogLevel::Debug,
            format: LogFormat::Json
        }
    );
    assert_eq!(config.shutdown.delay, Duration::from_secs(4));
    assert_eq!(config.shutdown.grace, Duration::from_secs(9));
    assert_eq!(config.shutdown.handover, Some(Duration::from_hours(2)));
    assert_eq!(config.workers, 3);
}

#[test]
fn a_users_file_is_read_as_it_is() {
    let files = Files::new();
    let config = files.ok(&format!("{MINIMAL}auth: {{users_file: users}}"));
    let Verifiers::UsersFile { path, contents } = &config.auth.verifiers else {
        panic!()
    };
    assert_eq!(*path, files.path("users"));
    assert_eq!(contents.expose(), b"\"app\" \"SCRAM-SHA-256$4096:...\"\n");
    files.one_fault(
        &format!("{MINIMAL}auth: {{users_file: users, query: \"SELECT $1\"}}"),
        "remove one of them",
    );
    files.one_fault(
        &format!("{MINIMAL}auth: {{users_file: users, cache_ttl: 1s}}"),
        "has no effect",
    );
    files.one_fault(
        &format!("{MINIMAL}auth: {{query: SELECT 1}}"),
        "must contain `$1`",
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
fn words_of_later_features_are_refused_as_such() {
    let files = Files::new();
    let change = |from: &str, to: &str| {
        assert!(FULL.contains(from), "{from}");
        FULL.replacen(from, to, 1)
    };
    files.one_fault(
        &change("resume: off", "resume: tracked"),
        "`tracked` is not supported yet; use `off`",
    );
}

#[test]
fn all_faults_are_reported_at_once_in_the_order_of_their_lines() {
    let files = Files::new();
    let faults = files.faults(
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
        "4: clusters.main.service_account.password_file: nowhere: does not exist",
        "5: clusters.main.probe.interval: is not a time (a whole number and a unit, ms, s, m or h, as in `500ms` or `5s`)",
        "5: clusters.main.probe.rise: must be from 1 to 100",
        "6: clusters.main.probe: `probe` stands here twice, first on line 5",
        "7: clusters.main.etcd.endpoints: must not be empty",
        "7: clusters.main.etcd.scope: `scope` is missing",
        "8: tls.min_version: expected `1.2` or `1.3`, found `1.1`",
        "8: tls.certificates: `certificates` is missing",
        "10: listeners[0].route: there is no route `nowhere` (there is: read-write, read-only)",
        "11: listeners[1].tls: expected `off`, `optional` or `required`, found `sometimes`",
        "11: listeners[1].name: the same name as listeners[0].name",
        "11: listeners[1].address: overlaps listeners[0].address, *:6432",
        "12: lisp: unknown key `lisp`",
        "13: shutdown: expected a map of keys, found a list",
    ];
    assert_eq!(faults, expected, "{faults:#?}");
}

#[test]
fn a_fault_names_file_line_and_path() {
    let files = Files::new();
    let faults = files.parse(&format!("{MINIMAL}logs: {{}}\n")).unwrap_err();
    let path = files.path("trunkline.yaml");
    let expected = format!(
        "{}:7: logs: unknown key `logs` (did you mean `log`?)",
        path.display()
    );
    assert_eq!(faults.to_string(), expected);
}

#[test]
fn wrong_types_and_bounds() {
    let files = Files::new();
    for (key, expected) in [
        ("probe: {timeout: 0}", "probe.timeout: must be from 10ms to 5m"),
        ("probe: {fall: 101}", "must be from 1 to 100"),
        ("probe: {fall: -1}", "must be from 1 to 100"),
        (
            "probe: {fall: 1.5}",
            "expected a whole number from 1 to 100, found a number",
        ),
        (
            "probe: {fall: \"2\"}",
            "expected a whole number from 1 to 100, found text",
        ),
        ("probe: {fall: }", "has no value, expected a whole number"),
        ("probe: [1]", "expected a map of keys, found a list"),
        ("server: {connect_timeout: 0}", "must be from 10ms to 5m"),
        (
            "server: {keepalive: 500ms}",
            "must be from 1s to 9h, or 0 for off",
        ),
        ("server: {keepalive: 1500ms}", "must be whole seconds"),
        (
            "server: {tcp_user_timeout: true}",
            "expected a time such as `5s`, found true or false",
        ),
        (
            "server_tls: {sslmode: verify_full}",
            "did you mean `verify-full`?",
        ),
        ("server_tls: {sslmode: verify-ca}", "needs `sslrootcert`"),
        (
            "server_tls: {sslmode: require, sslrootcert: system}",
            "`system` needs `sslmode: verify-full`",
        ),
        (
            "server_tls: {sslmode: disable, sslrootcert: ca.crt}",
            "has no effect",
        ),
        (
            "server_tls: {sslmode: prefer, sslnegotiation: direct}",
            "`direct` needs `sslmode: require`",
        ),
        (
            "server_tls: {sslnegotiation: direct}",
            "`direct` needs `sslmode: require`",
        ),
        (
            "server_tls: {sslmode: require, sslnegotiation: directly}",
            "did you mean `direct`?",
        ),
        (
            "server_tls: {sslmode: disable, channel_binding: require}",
            "`require` needs TLS",
        ),
        (
            "server_tls: {channel_binding: requires}",
            "did you mean `require`?",
        ),
        (
            "server_tls: {sslmode: disable, server_name: db.example}",
            "has no effect with `sslmode: disable`",
        ),
        ("server_tls: {server_name: 10.0.0.1}", "is not a DNS name"),
        ("server_tls: {server_name: \"a..b\"}", "is not a DNS name"),
        ("server_tls: {require_auth: scram}", "`scram` is not a method"),
        ("server_tls: {require_auth: \"\"}", "must not be empty"),
        (
            "server_tls: {require_auth: [password, \"!md5\"]}",
            "a list is of one kind",
        ),
        ("server_tls: {require_auth: \"md5,md5\"}", "names `md5` twice"),
        ("server_tls: {require_auth: [gss, oauth]}", "leaves nothing"),
        (
            "server_tls: {require_auth: \"!none,!password,!md5,!scram-sha-256\"}",
            "leaves nothing",
        ),
        (
            "server_tls: {channel_binding: require, require_auth: password}",
            "which `channel_binding: require` needs",
        ),
        (
            "server_tls: {sslcert: s.crt}",
            "`sslcert` needs `sslkey` beside it",
        ),
        ("local_member: \"\"", "must not be empty"),
        ("local_member: \"a\\0b\"", "control characters"),
        (
            "servers: [{name: a, host: h}]",
            "`servers` stands instead of `patroni`",
        ),
    ] {
        files.one_fault(&with_cluster_key(key), expected);
    }
    let patroni = |keys: &str| MINIMAL.replace("[\"http://db1:8008\"]", keys);
    for (keys, expected) in [
        ("[]", "must not be empty"),
        ("http://db1:8008", "expected a list, found text"),
        ("[\"http://db1:8008/cluster\"]", "without a path"),
        ("[\"http://u:geheim@db1:8008\"]", "must not contain a user"),
        ("[\"ftp://db1\"]", "is not an `http://`"),
        (
            "[\"http://a\", \"http://a/\"]",
            "the same endpoint as clusters.main.patroni.endpoints[0]",
        ),
        (
            "[\"http://a\"], ca_file: ca.crt",
            "has no effect: every endpoint is `http://`",
        ),
        (
            "[\"http://a\"], username: u",
            "`username` needs `password_file` beside it",
        ),
        (
            "[\"http://a\"], poll_interval: 1s, fast_poll_interval: 2s",
            "must not be longer",
        ),
        (
            "[\"http://a\"], fast_poll_interval: 9ms",
            "must be from 10ms to 5m",
        ),
    ] {
        files.one_fault(&patroni(keys), expected);
        assert!(!files.faults(&patroni(keys))[0].contains("geheim"));
    }
    let account = |keys: &str| MINIMAL.replace("user: trunkline, password_file: pw", keys);
    for (keys, expected) in [
        ("password_file: pw", "`user` is missing"),
        (
            "user: u, password_file: pw, password_env: SECRET",
            "remove one of them",
        ),
        (
            "user: u, password_env: NOWHERE",
            "the environment variable `NOWHERE` is not set",
        ),
        (
            "user: u, password_env: EMPTY",
            "the environment variable `EMPTY` is empty",
        ),
        ("user: u, pool_size: 0", "must be from 1 to 100"),
        ("user: u, timeout: 99ms", "must be from 100ms to 1m"),
        ("user: u, password: geheim", "unknown key `password`"),
    ] {
        files.one_fault(&account(keys), expected);
        assert!(!files.faults(&account(keys))[0].contains("geheim"));
    }
    for (keys, expected) in [
        ("limits: {max_pending_logins: 0}", "must be from 1 to 100000"),
        ("limits: {max_clients: 1000001}", "must be from 0 to 1000000"),
        ("auth: {login_timeout: 0}", "must be from 100ms to 10m"),
        ("auth: {rate_limit: {failures: 1001}}", "must be from 0 to 1000"),
        ("auth: {rate_limit: {delay: 61s}}", "must be from 0 to 1m"),
        ("auth: {rate_limit: {max_delay: 0}}", "must be from 1ms to 5m"),
        (
            "auth: {rate_limit: {delay: 9s, max_delay: 8s}}",
            "must not be longer than `max_delay`",
        ),
        (
            "auth: {rate_limit: {max_delay: 31s}}",
            "half of `auth.login_timeout`",
        ),
        (
            "auth: {login_timeout: 1s, rate_limit: {delay: 600ms}}",
            "half of `auth.login_timeout`",
        ),
        (
            "auth: {rate_limit: {refuse_after: 4}}",
            "must not be less than `failures`",
        ),
        (
            "auth: {rate_limit: {refuse_after: 10001}}",
            "must be from 1 to 10000",
        ),
        (
            "auth: {rate_limit: {refuse_for: 999ms}}",
            "must be from 1s to 24h",
        ),
        (
            "auth: {rate_limit: {failures: 0, delay: 1s}}",
            "has no effect with `failures: 0`",
        ),
        ("log: {level: inf}", "did you mean `info`?"),
        ("log: {format: xml}", "expected `text` or `json`"),
        ("http: {address: 6434}", "expected text, found a number"),
        (
            "http: {address: \"localhost:6434\"}",
            "is not an address to listen on",
        ),
        ("http: {address: \"*:0\"}", "a port is from 1 to 65535"),
        ("http: {address: \"*:65536\"}", "is not an address to listen on"),
        ("http: {address: \"[::ffff:1.2.3.4]:1\"}", "IPv4"),
        (
            "http: {address: \"127.0.0.1:6432\"}",
            "overlaps the default of listener read-write, *:6432",
        ),
        ("http: {tls: {cert_file: s.crt}}", "`key_file` is missing"),
        ("peers: {secret_file: peers.key}", "`members` is missing"),
        (
            "peers: {secret_file: pw, members: [{name: p, address: \"h:1\"}]}",
            "is shorter than 16 bytes",
        ),
        (
            "peers: {secret_file: peers.key, members: [{name: p, address: \"::1:6432\"}]}",
            "stands in brackets",
        ),
        (
            "peers: {secret_file: peers.key, members: [{name: p, address: h}]}",
            "is not a host and a port",
        ),
        ("routes: {}", "must not be empty"),
        ("routes: {a b: {targets: [leader]}}", "a name has 1 to 63"),
        (
            "routes: {x: {targets: [leader], cluster: mian}}",
            "there is no cluster `mian`",
        ),
        (
            "routes: {x: {targets: [leader]}}",
            "the default ones need a route `read-write`",
        ),
        ("listeners: []", "must not be empty"),
        (
            "listeners: [{name: a, address: \"*:6434\", route: read-only}]",
            "overlaps the default of http.address",
        ),
    ] {
        let faults = files.faults(&format!("{MINIMAL}{keys}\n"));
        assert!(
            faults.iter().any(|fault| fault.contains(expected)),
            "{keys}: {faults:#?}"
        );
    }
    files.one_fault("", "`clusters` is missing");
    files.one_fault("[]", "expected a map of keys, found a list");
    files.one_fault(
        "clusters: {main: {service_account: {user: u}}}",
        "`patroni` is missing",
    );
    files.one_fault(
        "clusters: {main: {servers: [{name: a, host: h}]}}",
        "`service_account` is missing",
    );
    let twice =
        "clusters: {main: {servers: [{name: a, host: h}, {name: a, host: h}], service_account: {user: u}}}";
    assert_eq!(files.faults(twice).len(), 2, "name and place");
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
    files.one_fault(&listener("required"), "`required` needs a certificate");
    // One fault for a faulty certificate, none for the listeners.
    let faulty = listener("required") + "tls: {certificates: [{cert_file: gone.crt, key_file: s.key}]}\n";
    files.one_fault(&faulty, "gone.crt: does not exist");
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
    assert!(files.ok(&clear).warnings()[0].contains("is sent in clear"));
    let clear = MINIMAL.replace(
        "    service_account:",
        "    etcd: {endpoints: [\"http://127.0.0.1:2379\"], scope: s, username: u, password_file: pw}\n    service_account:",
    );
    assert_eq!(
        files.ok(&clear).warnings()[0],
        "cluster `main`: etcd's password is sent in clear to `http://` endpoints"
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
fn certificates_that_would_fail_in_service() {
    let files = Files::new();
    let with = |cert: &str, key: &str| MINIMAL.replace("s.crt", cert).replace("s.key", key);
    files.one_fault(
        &with("gone.crt", "s.key"),
        "tls.certificates[0].cert_file: gone.crt: does not exist",
    );
    assert_eq!(
        files.faults(&with("gone.crt", "gone.key")).len(),
        2,
        "both files are looked at"
    );
    files.one_fault(
        &with("s.crt", "ca.key"),
        "key_file: does not belong to the first certificate of s.crt",
    );
    files.one_fault(&with("pw", "s.key"), "pw: contains no certificate");
    files.one_fault(&with("s.crt", "pw"), "pw: contains no private key");
    files.one_fault(&with("\"\"", "s.key"), "must not be empty");
    files.one_fault(&with(".", "s.key"), "is a directory");
    files.certificate("early", |params| {
        params.not_before = rcgen::date_time_ymd(2300, 1, 1);
    });
    files.one_fault(&with("early.crt", "early.key"), "is not valid before");
    files.certificate("late", |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    files.one_fault(&with("late.crt", "late.key"), "has expired");
    let pem = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    files.write("bad.crt", &pem("CERTIFICATE"), 0o644);
    files.one_fault(
        &with("bad.crt", "s.key"),
        "bad.crt: certificate 1 is not a valid X.509 certificate",
    );
    files.write("cut.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n", 0o644);
    files.one_fault(
        &with("cut.crt", "s.key"),
        "cut.crt: is not valid PEM: a section does not end",
    );
    files.secret("bad.key", &pem("PRIVATE KEY"));
    files.one_fault(
        &with("s.crt", "bad.key"),
        "bad.key: the private key cannot be used",
    );
    files.secret("locked.key", &pem("ENCRYPTED PRIVATE KEY"));
    files.one_fault(&with("s.crt", "locked.key"), "locked.key: the key is encrypted");
    let old =
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    files.secret("old.key", old);
    files.one_fault(&with("s.crt", "old.key"), "old.key: the key is encrypted");
    files.write("big.crt", &"x".repeat(1024 * 1024 + 1), 0o644);
    files.one_fault(&with("big.crt", "s.key"), "big.crt: is larger than 1024 KiB");
    files.one_fault(
        &with_cluster_key("server_tls: {sslrootcert: bad.crt}"),
        "bad.crt: certificate 1 cannot be used",
    );
    files.one_fault(
        &with_cluster_key("server_tls: {sslrootcert: gone.crt}"),
        "gone.crt: does not exist",
    );
}

#[test]
fn secrets_that_others_can_read_are_refused() {
    let files = Files::new();
    for mode in [0o604, 0o602, 0o601, 0o644] {
        files.write("pw", "geheim", mode);
        files.one_fault(
            MINIMAL,
            &format!("pw: is open to every user (mode {mode:04o}) (`chmod o-rwx` it)"),
        );
    }
    files.write("pw", "geheim", 0o660);
    files.ok(MINIMAL);
    files.write("s.key", &fs::read_to_string(files.path("s.key")).unwrap(), 0o644);
    files.one_fault(MINIMAL, "s.key: is open to every user");
    files.certificate("s", |_| {});
    files.write("users", "", 0o644);
    files.one_fault(
        &format!("{MINIMAL}auth: {{users_file: users}}"),
        "users: is open to every user",
    );
}

#[test]
fn secrets_are_stripped_of_one_newline_and_never_empty() {
    let files = Files::new();
    for (contents, expected) in [("a\r\n", "a"), ("a\n\n", "a\n"), (" a ", " a "), ("a", "a")] {
        files.secret("pw", contents);
        let config = files.ok(MINIMAL);
        let password = config.clusters["main"].service_account.password.clone().unwrap();
        assert_eq!(password.expose(), expected.as_bytes(), "{contents:?}");
    }
    for contents in ["", "\n", "\r\n"] {
        files.secret("pw", contents);
        files.one_fault(MINIMAL, "pw: is empty");
    }
    files.secret("pw", &"x".repeat(64 * 1024 + 1));
    files.one_fault(MINIMAL, "pw: is larger than 64 KiB");
    files.one_fault(
        &MINIMAL.replace(": pw", ": /dev/null"),
        "/dev/null: is not a regular file",
    );
    files.one_fault(&MINIMAL.replace(": pw", ": ~/pw"), "`~` is not expanded");
}

/// One handshake in memory; the version and protocol agreed.
fn handshake(
    files: &Files,
    server: &Arc<rustls::ServerConfig>,
    version: &'static rustls::SupportedProtocolVersion,
    protocol: &[u8],
) -> Result<(rustls::ProtocolVersion, Option<Vec<u8>>), rustls::Error> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(files.path("s.crt")).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut server = rustls::ServerConnection::new(server.clone()).unwrap();
    let mut bytes = Vec::new();
    for _ in 0..10 {
        bytes.clear();
        client.write_tls(&mut bytes).unwrap();
        server.read_tls(&mut bytes.as_slice()).unwrap();
        server.process_new_packets()?;
        bytes.clear();
        server.write_tls(&mut bytes).unwrap();
        client.read_tls(&mut bytes.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    // No record carries more than 8 KiB of plaintext.
    server.writer().write_all(&vec![0; 20_000]).unwrap();
    bytes.clear();
    while server.wants_write() {
        server.write_tls(&mut bytes).unwrap();
    }
    let (mut rest, mut received) = (bytes.as_slice(), 0);
    while let Some(header) = rest.first_chunk::<5>() {
        let length = 5 + usize::from(u16::from_be_bytes([header[3], header[4]]));
        let (mut record, after) = rest.split_at(length);
        let mut carried = 0;
        while !record.is_empty() {
            client.read_tls(&mut record).unwrap();
            carried = client.process_new_packets()?.plaintext_bytes_to_read();
        }
        assert!((1..=8192).contains(&carried), "{carried}");
        client.reader().read_exact(&mut vec![0; carried]).unwrap();
        received += carried;
        rest = after;
    }
    assert_eq!(received, 20_000);
    let protocol = client.alpn_protocol().map(<[u8]>::to_vec);
    Ok((client.protocol_version().unwrap(), protocol))
}

#[test]
fn tls_towards_clients() {
    use rustls::ProtocolVersion::{TLSv1_2, TLSv1_3};
    use rustls::version::{TLS12, TLS13};
    let files = Files::new();
    let both = files.ok(MINIMAL).tls.unwrap();
    let server_config = &both.certificates[0].server_config;
    assert_eq!(server_config.send_tls13_tickets, 0);
    assert!(!server_config.session_storage.can_cache());
    let postgresql = b"postgresql".as_slice();
    let agreed = |config: &Config, version, protocol| {
        handshake(
            &files,
            &config.tls.as_ref().unwrap().certificates[0].server_config,
            version,
            protocol,
        )
    };
    let config = files.ok(MINIMAL);
    assert_eq!(
        agreed(&config, &TLS12, postgresql),
        Ok((TLSv1_2, Some(postgresql.to_vec())))
    );
    assert_eq!(
        agreed(&config, &TLS13, postgresql),
        Ok((TLSv1_3, Some(postgresql.to_vec())))
    );
    assert!(
        agreed(&config, &TLS13, b"h2").is_err(),
        "only PostgreSQL is spoken here"
    );
    for written in ["1.3", "\"1.3\""] {
        let newest = files.ok(&MINIMAL.replace("tls: {", &format!("tls: {{min_version: {written}, ")));
        assert!(agreed(&newest, &TLS12, postgresql).is_err());
        assert!(agreed(&newest, &TLS13, postgresql).is_ok());
    }
}

#[test]
fn unknown_keys_of_every_section_are_reported_with_its_path() {
    let files = Files::new();
    // A key put first into every map of the full file that has fixed keys.
    let text = FULL
        .replace('{', "{zzz: 1, ")
        .replace("  certificates: [{", "  zzz: 1\n  certificates: [{");
    let faults = files.faults(&text);
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
            faults.iter().any(|fault| fault.contains(&path))
        });
        assert!(found, "{place}: {faults:#?}");
    }
    assert!(
        faults.iter().all(|fault| fault.contains("unknown key `zzz`")),
        "{faults:#?}"
    );
}

#[test]
fn what_is_not_yaml_has_a_line() {
    let files = Files::new();
    files.one_fault("clusters:\n  main: [1\nx: }", "3: ");
    files.one_fault(
        "listeners:\n  - {name: a, address: *:6432}\n",
        "put the address in quotes",
    );
    files.one_fault(
        "listeners:\n  - {name: a, address: [::1]:6432}\n",
        "put the address in quotes",
    );
    files.one_fault("a: 1\n---\nb: 2\n", "is more than one YAML document");
    files.one_fault("clusters: !!python/object {}\n", "1: ");
    files.one_fault(&format!("{MINIMAL}log: *missing\n"), "7:");
    files.one_fault(
        &format!("{MINIMAL}<<: {{log: {{}}}}\n"),
        "merge keys are not read",
    );
    // Anchors are YAML's own way to say a thing once.
    let shared = MINIMAL.replace("patroni:", "probe: &times {interval: 2s}\n    patroni:");
    files.ok(&shared);
}

#[test]
fn huge_deep_and_explosive_texts_are_refused() {
    const TOO_MUCH: &str = "goes beyond the bounds: 24 levels, 20000 values";
    let files = Files::new();
    let deep = "[".repeat(100_000);
    files.one_fault(&deep, "recursion limit exceeded");
    let deep: String = (0..200)
        .map(|level| format!("{}a:\n", " ".repeat(level)))
        .collect();
    files.one_fault(&deep, TOO_MUCH);
    let many = format!("log: [{}]", "1,".repeat(100_000));
    files.one_fault(&many, TOO_MUCH);
    files.one_fault(&" ".repeat(files::MAX_CONFIG + 1), "is larger than 1024 KiB");
    let mut laughs = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n".to_owned();
    for level in 1..10 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        laughs += &format!("a{level}: &a{level} [{aliases}]\n");
    }
    files.one_fault(&laughs, "alias");
    let keys: String = (0..9_000).map(|key| format!("k{key}: 1\n")).collect();
    assert_eq!(files.faults(&keys).len(), 9_001, "bounded, and all of them");
}

#[test]
fn the_file_itself() {
    let files = Files::new();
    let path = files.path("trunkline.yaml");
    let message = |expected: &str| {
        let text = load(&path).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    };
    message("trunkline.yaml: does not exist");
    fs::write(&path, b"log: \xff").unwrap();
    message("is not UTF-8 text");
    fs::write(&path, vec![b' '; files::MAX_CONFIG + 1]).unwrap();
    message("is larger than 1024 KiB");
    fs::write(&path, MINIMAL).unwrap();
    assert_eq!(load(&path).unwrap().path, path);
    assert!(
        load(files.0.path())
            .unwrap_err()
            .to_string()
            .contains("is a directory")
    );
}

/// The examples as a person gets them, with the files they name.
#[test]
fn the_examples_are_right() {
    for (name, text) in [
        ("minimal", include_str!("../../config/minimal.yaml")),
        ("trunkline", include_str!("../../config/trunkline.yaml")),
    ] {
        let files = Files::new();
        for directory in ["config", "certs"] {
            fs::create_dir(files.path(directory)).unwrap();
        }
        for certificate in ["server", "ca", "client"] {
            files.certificate(&format!("certs/{certificate}"), |_| {});
        }
        for secret in [
            "service-account.password",
            "patroni.password",
            "userlist.txt",
            "peers.key",
        ] {
            files.secret(&format!("certs/{secret}"), "0123456789abcdef\n");
        }
        let path = files.path("config/trunkline.yaml");
        fs::write(&path, text).unwrap();
        let config = load(&path).unwrap_or_else(|faults| panic!("{faults}"));
        assert_eq!(config.warnings(), [""; 0], "{name}");
        let shown: Vec<String> = config.listeners.iter().map(|l| l.address.to_string()).collect();
        assert_eq!(shown, ["*:6432", "*:6433"], "{name}");
        if name == "minimal" {
            continue;
        }
        // Every key that works is shown, if in a comment.
        for key in sections().iter().flat_map(|(_, keys)| keys.names()) {
            assert!(text.contains(&format!("{key}:")), "{key} is not in the example");
        }
        // What is commented out is right as well.
        let instead = |from: &str, to: &str, text: &str| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        };
        let mut all = text.to_owned();
        for key in [
            "ca_file",
            "cert_file",
            "key_file",
            "username",
            "password_file",
            "sslnegotiation",
            "channel_binding",
            "require_auth",
            "server_name",
            "sslrootcert",
            "sslcert",
            "sslkey",
            "tls",
            "client_ca_file",
        ] {
            all = all.replace(&format!("# {key}: "), &format!("{key}: "));
        }
        all = instead("[\"http://127", "[\"https://127", &all);
        for line in ["peers:", "  secret_file:", "  members:", "    - {name: router2"] {
            all = instead(&format!("# {line}"), line, &all);
        }
        fs::write(&path, &all).unwrap();
        let config = load(&path).unwrap_or_else(|faults| panic!("{faults}"));
        assert!(config.peers.is_some() && config.http.tls.is_some());
        let users = instead("# users_file", "users_file", text);
        let users = instead(
            "  query:",
            "  # query:",
            &instead("  cache_ttl:", "  # cache_ttl:", &users),
        );
        fs::write(&path, &users).unwrap();
        load(&path).unwrap_or_else(|faults| panic!("{faults}"));
    }
}

/// Whatever is accepted holds together: what a name refers to is there.
fn holds_together(config: &Config) {
    assert!(!config.clusters.is_empty() && !config.routes.is_empty() && !config.listeners.is_empty());
    for route in config.routes.values() {
        assert!(config.clusters.contains_key(&*route.cluster));
    }
    for listener in &config.listeners {
        assert!(config.routes.contains_key(&*listener.route));
        assert!(listener.tls == ListenerTls::Off || config.tls.is_some());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_text_is_answered(text in "\\PC{0,200}|[a-z:\\-\\[\\]{}&*!|>'\"%@`, \n\t#0-9]{0,200}") {
        if let Err(faults) = parse(Path::new("any.yaml"), &text) {
            prop_assert!(faults.count() > 0);
            prop_assert!(!faults.to_string().is_empty());
        }
    }

    /// A good file with a piece of it lost, doubled or replaced.
    #[test]
    fn a_damaged_file_is_answered(
        start in 0..FULL.len(),
        length in 0_usize..60,
        put in prop_oneof![
            Just(String::new()), Just("{}".to_owned()), Just("[]".to_owned()), Just("null".to_owned()),
            Just("\"*:6432\"".to_owned()), Just("0".to_owned()), Just("- ".to_owned()), "[a-z0-9:{}, \n]{0,12}",
        ],
    ) {
        static FILES: std::sync::LazyLock<Files> = std::sync::LazyLock::new(Files::new);
        let end = (start + length).min(FULL.len());
        let text = format!("{}{put}{}", &FULL[..start], &FULL[end..]);
        match FILES.parse(&text) {
            Ok(config) => holds_together(&config),
            Err(faults) => prop_assert!(faults.count() > 0),
        }
    }
}
