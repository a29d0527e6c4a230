//! Values of a wrong type, beyond their limits, or against each other.

use super::*;

/// A key of a cluster, and its error.
const IN_A_CLUSTER: &[(&str, &str)] = &[
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
        "use only one kind",
    ),
    ("server_tls: {require_auth: \"md5,md5\"}", "names `md5` twice"),
    ("server_tls: {require_auth: [gss, oauth]}", "allows no method"),
    (
        "server_tls: {require_auth: \"!none,!password,!md5,!scram-sha-256\"}",
        "allows no method",
    ),
    (
        "server_tls: {channel_binding: require, require_auth: password}",
        "which `channel_binding: require` needs",
    ),
    ("server_tls: {sslcert: s.crt}", "`sslcert` also needs `sslkey`"),
    ("local_member: \"\"", "must not be empty"),
    ("local_member: \"a\\0b\"", "control characters"),
    (
        "servers: [{name: a, host: h}]",
        "`servers` cannot be combined with `patroni`",
    ),
];

/// Top-level keys, and one of their errors.
const OUTSIDE_CLUSTERS: &[(&str, &str)] = &[
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
    ("log: {level: WARNING}", "did you mean `warn`?"),
    ("log: {format: xml}", "expected `text` or `json`"),
    ("http: {address: 6434}", "expected text, found a number"),
    ("http: {address: 6434}", "as in `\"*:6434\"`"),
    ("http: {address:\"*:6434\"}", "a blank is missing after the colon"),
    (
        "http: {address: \"localhost:6434\"}",
        "is not an address to listen on",
    ),
    ("http: {address: \"*:0\"}", "the port must be from 1 to 65535"),
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
        "in brackets",
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
        "routes: `listeners` is missing, and the default listeners need routes `read-write` and `read-only`",
    ),
    (
        "routes: {read-write: {targets: [leader]}}",
        "the default listeners need a route `read-only`",
    ),
    (
        "routes: {read-write: {targets: [primary]}, read-only: {targets: [replica]}}",
        "did you mean `leader`?",
    ),
    (
        "routes: {read-write: {targets: [leader]}, read-only: {targets: [standby]}}",
        "did you mean `replica`?",
    ),
    (
        "routes: {read-write: {targets: [leader], client_address: {setting: yes}}, read-only: {targets: [replica]}}",
        "write `true`",
    ),
    ("listeners: []", "must not be empty"),
    (
        "listeners: [{name: a, address: \"*:6434\", route: read-only}]",
        "overlaps the default of http.address",
    ),
];

#[test]
fn wrong_values_in_a_cluster() {
    let files = Files::new();
    for (key, expected) in IN_A_CLUSTER {
        files.one_error(&with_cluster_key(key), expected);
    }
}

#[test]
fn wrong_endpoints_and_accounts() {
    let files = Files::new();
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
            "`username` also needs `password_file`",
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
        files.one_error(&patroni(keys), expected);
        assert!(!files.errors(&patroni(keys))[0].contains("geheim"));
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
        files.one_error(&account(keys), expected);
        assert!(!files.errors(&account(keys))[0].contains("geheim"));
    }
}

#[test]
fn wrong_values_outside_clusters() {
    let files = Files::new();
    for (keys, expected) in OUTSIDE_CLUSTERS {
        let errors = files.errors(&format!("{MINIMAL}{keys}\n"));
        assert!(
            errors.iter().any(|error| error.contains(expected)),
            "{keys}: {errors:#?}"
        );
    }
    files.one_error("", "`clusters` is missing");
    files.one_error("[]", "expected a map of keys, found a list");
    files.one_error(
        "clusters: {main: {service_account: {user: u}}}",
        "`patroni` is missing",
    );
    files.one_error(
        "clusters: {main: {servers: [{name: a, host: h}]}}",
        "`service_account` is missing",
    );
    let twice =
        "clusters: {main: {servers: [{name: a, host: h}, {name: a, host: h}], service_account: {user: u}}}";
    assert_eq!(files.errors(twice).len(), 2, "name and place");
}
