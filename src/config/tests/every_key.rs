//! Each key has its effect, none at its default.

use super::*;
use crate::config::model::{Hold, Resume};

#[test]
fn every_key_of_a_cluster_has_its_effect() {
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
}

#[test]
fn every_key_of_a_fixed_list_has_its_effect() {
    let files = Files::new();
    let config = files.ok(FULL);
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
}

#[test]
fn every_key_outside_clusters_has_its_effect() {
    let files = Files::new();
    let config = files.ok(FULL);
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
    files.one_error(
        &format!("{MINIMAL}auth: {{users_file: users, query: \"SELECT $1\"}}"),
        "remove one of them",
    );
    files.one_error(
        &format!("{MINIMAL}auth: {{users_file: users, cache_ttl: 1s}}"),
        "has no effect",
    );
    files.one_error(
        &format!("{MINIMAL}auth: {{query: SELECT 1}}"),
        "must contain `$1`",
    );
}

#[test]
fn every_key_of_hold_has_its_effect() {
    let files = Files::new();
    let config = files.ok(FULL);
    let route = &config.routes["w"];
    assert_eq!(route.resume, Resume::Tracked);
    assert_eq!(
        route.hold,
        Hold {
            timeout: Some(Duration::from_secs(50)),
            max_clients: Some(30),
            max_bytes: 1 << 20,
            logins: false,
        }
    );
    let pooled = &config.routes["r"];
    assert_eq!(
        pooled.resume,
        Resume::Tracked,
        "as with every pool in transaction mode"
    );
    assert_eq!((pooled.hold.timeout, pooled.hold.max_clients), (None, None));
    assert!(pooled.hold.logins);
}

#[test]
fn resume_and_hold_are_refused_where_they_have_no_effect() {
    let files = Files::new();
    let route = |keys: &str| {
        format!(
            "{MINIMAL}routes: {{read-write: {{targets: [leader], {keys}}}, read-only: {{targets: [replica]}}}}\n"
        )
    };
    for (keys, error) in [
        (
            "resume: off, pool: {mode: transaction}",
            "cannot be `off` with `pool: {mode: transaction}`",
        ),
        (
            "hold: {timeout: 5s}",
            "has no effect: with `resume: off` nobody is held",
        ),
        (
            "hold: {max_clients: 5}",
            "has no effect: with `resume: off` nobody is held",
        ),
        (
            "resume: tracked, hold: {timeout: 0, max_clients: 5}",
            "has no effect with `timeout: 0`",
        ),
        (
            "hold: {logins: true, max_bytes: 1MiB}",
            "has no effect with `resume: off`: only logins are held",
        ),
    ] {
        files.one_error(&route(keys), error);
    }
    for keys in [
        "resume: tracked",
        "resume: off, pool: {mode: session}",
        "resume: tracked, hold: {timeout: 0}",
        "hold: {logins: true, timeout: 5s, max_clients: 5}",
    ] {
        files.ok(&route(keys));
    }
}
