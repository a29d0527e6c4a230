#![allow(clippy::unwrap_used)]

use super::*;
use crate::config;

pub(super) fn imported(kind: InputKind, text: &str, mode: Mode) -> (String, Vec<String>) {
    let (yaml, notes) = convert(kind, text, "f", mode).unwrap();
    (yaml, notes.lines("f"))
}

pub(super) fn haproxy(text: &str) -> (String, Vec<String>) {
    imported(InputKind::Haproxy, text, Mode::Postgres)
}

/// A section whose check asks Patroni, with more lines.
pub(super) fn section(path: &str, more: &str) -> String {
    format!(
        "listen reads\n  mode tcp\n  bind *:5001\n  option httpchk GET {path}\n  \
         default-server check port 8008\n{more}  server a a1:5432\n  server b b1:5432\n"
    )
}

#[track_caller]
pub(super) fn has(text: &str, expected: &str) {
    assert!(text.contains(expected), "no `{expected}` in:\n{text}");
}

/// Faults of `trunkline check`.
pub(super) fn errors(yaml: &str) -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trunkline.yaml");
    match config::parse(&path, yaml) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

/// What was put off, with files in its place.
pub(super) fn settled(yaml: &str) -> String {
    yaml.replace(", password_file: TODO-service-account.password", "")
        .replace(
            "\ntls:\n  # TODO: the certificate and its key, which others must not be able to read\n  \
             certificates: [{cert_file: TODO-server.crt, key_file: TODO-server.key}]\n",
            "\n",
        )
}

#[test]
fn whole_files_become_what_was_written_by_hand() {
    for (file, text, expected) in [
        (
            "through-routers.cfg",
            include_str!("../../../tests/import/through-routers.cfg"),
            include_str!("../../../tests/import/through-routers.expected.yaml"),
        ),
        (
            "node-checks.cfg",
            include_str!("../../../tests/import/node-checks.cfg"),
            include_str!("../../../tests/import/node-checks.expected.yaml"),
        ),
        (
            "patroni.cfg",
            include_str!("../../../tests/import/patroni.cfg"),
            include_str!("../../../tests/import/patroni.expected.yaml"),
        ),
        (
            "patroni_proxy.yaml",
            include_str!("../../../tests/import/patroni_proxy.yaml"),
            include_str!("../../../tests/import/patroni_proxy.expected.yaml"),
        ),
    ] {
        let kind = recognise(text).unwrap();
        let (yaml, _) = convert(kind, text, file, Mode::Postgres).unwrap();
        for (index, (line, wanted)) in yaml.lines().zip(expected.lines()).enumerate() {
            assert_eq!(line, wanted, "{file}, line {} of what was written", index + 1);
        }
        assert_eq!(yaml, expected, "{file}");
        let errors = errors(&settled(&yaml));
        assert!(errors.is_empty(), "{file}: {errors:#?}");
    }
}

#[test]
fn what_is_left_to_do_is_a_fault_of_check() {
    let (yaml, _) = haproxy(&section(
        "/replica",
        "  acl x src 1.1.1.1\n  tcp-request connection expect-proxy layer4\n",
    ));
    let errors = errors(&yaml).join("\n");
    for todo in [
        "TODO-service-account.password",
        "TODO-server.crt",
        "TODO-server.key",
    ] {
        has(&errors, todo);
    }
    has(&yaml, "proxy_protocol: {trusted: [\"TODO: ");
}

#[test]
fn the_path_of_the_check_is_the_role() {
    for (path, targets) in [
        ("/", "[leader]"),
        ("/primary", "[leader]"),
        ("/master", "[leader]"),
        ("/read-write", "[leader]"),
        ("/leader", "[leader]"),
        ("/replica", "[replica]"),
        ("/sync", "[sync]"),
        ("/synchronous", "[sync]"),
        ("/async", "[async]"),
        ("/asynchronous", "[async]"),
        ("/quorum", "[quorum]"),
        (
            "/read-only",
            "[[replica, leader]], read_only_on_leader: unenforced",
        ),
        (
            "/read-only-sync",
            "[[sync, leader]], read_only_on_leader: unenforced",
        ),
        ("/health", "[any], read_only_on_leader: unenforced"),
        ("/replica/", "[replica]"),
    ] {
        let (yaml, _) = haproxy(&section(path, ""));
        has(&yaml, &format!("reads: {{cluster: main, targets: {targets}"));
        has(
            &yaml,
            "        - \"http://a1:8008\"\n        - \"http://b1:8008\"\n",
        );
        assert_eq!(errors(&settled(&yaml)), [""; 0], "{path}");
    }
    // HAProxy's own default.
    let (yaml, _) = haproxy(&section("", "").replace(" GET ", ""));
    has(&yaml, "targets: [leader]");
    let (yaml, _) = haproxy(&section("", "").replace(" GET ", " /replica"));
    has(&yaml, "targets: [replica]");
    let (yaml, notes) = haproxy(&section("/x", ""));
    has(&yaml, "targets: [replica]");
    has(
        &notes.join("\n"),
        "f:4: option httpchk: the path of the check says nothing about the role",
    );
}

#[test]
fn the_check_may_be_written_in_parts() {
    let text = "backend pg\n  option httpchk\n  http-check connect port 8009 ssl\n  \
                http-check send meth GET uri /replica?lag=10MB&tag_zone=b ver HTTP/1.1 hdr Host db\n  \
                server a [fd00::1]:5432 check ca-file /etc/ca.crt check-ssl\n\
                frontend ro\n  bind [::]:5001 v4v6\n  default_backend pg\n";
    let (yaml, _) = haproxy(text);
    has(
        &yaml,
        "        - \"https://[fd00::1]:8009\"\n      ca_file: /etc/ca.crt\n",
    );
    has(
        &yaml,
        "pg: {cluster: main, targets: [replica], balance: round_robin, tags: {zone: b}, max_lag: {bytes: 10MiB}}",
    );
    has(&yaml, "{name: ro, address: \"*:5001\", route: pg,");
}

#[test]
fn a_fixed_list_has_no_finer_roles() {
    let text =
        section("/sync", "").replace("default-server check port 8008", "default-server check port 6434");
    let (yaml, notes) = haproxy(&text);
    has(&yaml, "targets: [replica]");
    has(&yaml, "- {name: a, host: a1, port: 5432}");
    has(&notes.join("\n"), "no port of Patroni is named");
}

#[test]
fn sections_inherit_from_the_defaults_before_them() {
    let text = "defaults\n timeout connect 1s\n timeout queue 30s\n balance leastconn\n\
                listen ro\n bind :1\n server a a1:5432\n\
                defaults other\n balance first\n timeout connect 2s\n\
                listen ro2\n bind :2\n server b b1:5432\n\
                defaults base from other\n option httpchk GET /replica\n\
                listen ro3 from base\n bind :3\n server c c1:5432 check port 8008\n";
    let (yaml, _) = haproxy(text);
    has(
        &yaml,
        "ro: {cluster: ro, targets: [replica], balance: least_connections, queue_timeout: 30s}",
    );
    has(&yaml, "ro2: {cluster: ro2, targets: [replica], balance: first}");
    has(&yaml, "ro3: {cluster: ro3, targets: [replica], balance: first}");
    has(&yaml, "    server: {connect_timeout: 1s}\n");
    assert_eq!(yaml.matches("    server: {connect_timeout: 2s}\n").count(), 2);
    has(&yaml, "- \"http://c1:8008\"");
}

#[test]
fn every_way_of_balancing() {
    for (written, expected) in [
        ("roundrobin", "round_robin"),
        ("static-rr", "round_robin"),
        ("leastconn", "least_connections"),
        ("random", "random"),
        ("random(3)", "random"),
        ("source", "source_hash"),
        ("first", "first"),
        ("hdr(host)", "least_connections"),
    ] {
        let (yaml, notes) = haproxy(&section("/replica", &format!("  balance {written}\n")));
        has(&yaml, &format!("balance: {expected}"));
        assert_eq!(
            notes.join("\n").contains(": balance: "),
            written == "hdr(host)",
            "{written}"
        );
    }
    // There is one leader.
    let (yaml, _) = haproxy(&section("/primary", "  balance leastconn\n"));
    assert!(!yaml.contains("balance"));
}

#[test]
fn options_of_servers() {
    let text = "listen reads\n bind :1\n option httpchk GET /replica\n timeout check 700\n\
                server a a1:5432 check port 8008 inter 500ms rise 3 fall 200 maxconn 10 weight 30 slowstart 20s\n\
                server b b1:5432 check port 8008 inter 1s maxconn 20 send-proxy disabled\n";
    let (yaml, notes) = haproxy(text);
    has(&yaml, "    server: {max_connections: 20, slow_start: 20s}\n");
    has(
        &yaml,
        "    probe: {interval: 500ms, timeout: 700ms, rise: 3, fall: 100}\n",
    );
    has(
        &yaml,
        "    members:\n      a: {weight: 30}\n      b: {weight: 1}\n",
    );
    let notes = notes.join("\n");
    for expected in [
        "f:5: fall: is 100 here",
        "f:5: server a … maxconn: `max_connections` holds for each member",
        "f:5: server … weight: weights are by Patroni's names",
        "f:6: server … inter: holds for the cluster; the shortest was written",
        "f:6: server b … send-proxy: PostgreSQL cannot read it",
        "f:6: server b … disabled: it was written as enabled; `trunkline maint b`",
    ] {
        has(&notes, expected);
    }
    assert_eq!(errors(&settled(&yaml)), [""; 0]);
}

#[test]
fn tls_to_the_servers_and_to_clients() {
    let text = "listen rw\n bind :1 ssl crt /etc/a.pem ca-file /etc/ca.crt crl-file /etc/crl ssl-min-ver TLSv1.3\n \
                option httpchk GET /primary\n server a a1:5432 check port 8008 ssl verify required ca-file /etc/s.crt\n";
    let (yaml, _) = haproxy(text);
    has(
        &yaml,
        "server_tls: {sslmode: verify-ca, sslnegotiation: direct, sslrootcert: /etc/s.crt}",
    );
    has(&yaml, "    - {cert_file: /etc/a.pem, key_file: /etc/a.pem}\n");
    has(
        &yaml,
        "  min_version: \"1.3\"\n  client_ca_file: /etc/ca.crt\n  client_crl_file: /etc/crl\n",
    );
    has(&yaml, "route: rw, mode: postgres, tls: required}");
}

#[test]
fn backup_servers_are_the_next_choice() {
    // Nobody checks it, so it is always there: the leader.
    let (yaml, _) =
        haproxy(&section("/replica", "").replace("server b b1:5432", "server b b1:5432 no-check backup"));
    has(
        &yaml,
        "targets: [replica, leader], read_only_on_leader: unenforced",
    );
    assert!(!yaml.contains("members:"));
    // Checked as the others are, it waits.
    let (yaml, _) = haproxy(&section("/replica", "").replace("server b b1:5432", "server b b1:5432 backup"));
    has(&yaml, "targets: [replica], balance");
    has(&yaml, "      a: {weight: 1}\n      b: {weight: 0}\n");
    // It follows the section of another role.
    let text = format!(
        "{}listen writes\n bind :2\n option httpchk GET /sync\n server b b1:5432 check port 8008\n",
        section("/replica", "").replace("server b b1:5432", "server b b1:5432 track writes/b backup")
    );
    let (yaml, _) = haproxy(&text);
    has(&yaml, "reads: {cluster: main, targets: [replica, sync]");
}

#[test]
fn a_fallback_by_the_number_of_servers() {
    let backends = "backend ro\n option httpchk GET /replica\n server a a1:5432 check port 8008\n\
                    backend rw\n option httpchk GET /primary\n server a a1:5432 check port 8008\n";
    for frontend in [
        "frontend f\n bind :1\n acl gone nbsrv(ro) lt 1\n use_backend rw if gone\n default_backend ro\n",
        "frontend f\n bind :1\n use_backend ro if { nbsrv(ro) gt 0 }\n default_backend rw\n",
    ] {
        let (yaml, notes) = haproxy(&format!("{frontend}{backends}"));
        has(
            &yaml,
            "ro: {cluster: main, targets: [replica, leader], read_only_on_leader: unenforced",
        );
        has(&yaml, "{name: f, address: \"*:1\", route: ro,");
        assert_eq!(notes, [""; 0]);
    }
    let other = "frontend f\n bind :1\n use_backend rw if { dst_port 1 }\n default_backend ro\n";
    let (_, notes) = haproxy(&format!("{other}{backends}"));
    has(&notes.join("\n"), "f:3: use_backend: a listener has one route");
}

#[test]
fn who_may_connect() {
    let (yaml, notes) = haproxy(&section(
        "/replica",
        "  acl office src 10.0.0.0/8 192.0.2.1\n  tcp-request connection reject if { src 10.9.0.0/16 }\n  \
         tcp-request connection reject if !office\n  tcp-request connection expect-proxy layer4 if office\n  \
         maxconn 50\n  rate-limit sessions 100\n",
    ));
    has(
        &yaml,
        "max_clients: 50, connection_rate: 100/s, proxy_protocol: {trusted: [\"10.0.0.0/8\", \"192.0.2.1/32\"]}, \
         allow: [\"10.0.0.0/8\", \"192.0.2.1/32\"], deny: [\"10.9.0.0/16\"]}",
    );
    assert_eq!(notes, [""; 0]);
    let (yaml, _) = haproxy(&section(
        "/replica",
        "  tcp-request connection accept if { src ::1 }\n  tcp-request connection reject\n",
    ));
    has(&yaml, "allow: [\"::1/128\"]}");
    // Those it accepts first would be denied.
    let (yaml, notes) = haproxy(&section(
        "/replica",
        "  tcp-request connection accept if { src 10.0.0.1 }\n  tcp-request connection reject if { src 10.0.0.0/8 }\n",
    ));
    assert!(!yaml.contains("deny: [\"10."), "{yaml}");
    has(
        &notes.join("\n"),
        "f:7: tcp-request … reject: `deny` counts before `allow`",
    );
}

#[test]
fn several_addresses_and_what_is_not_for_postgresql() {
    let text = "listen rw\n bind 10.0.0.1:5000,10.0.0.2:5000 name both\n bind /run/pg/.s.PGSQL.5000 mode 660\n \
                server a a1:6432\nlisten web\n mode http\n bind :80\n server w w1:80\n\
                frontend metrics\n mode http\n bind :8405\n http-request use-service prometheus-exporter if { path /metrics }\n\
                listen off\n disabled\n bind :9\n server a a1:5432\n";
    let (yaml, notes) = haproxy(text);
    has(&yaml, "- {name: both, address: \"10.0.0.1:5000\", route: rw,");
    has(&yaml, "- {name: both-2, address: \"10.0.0.2:5000\", route: rw,");
    has(
        &yaml,
        "address: /run/pg/.s.PGSQL.5000, route: rw, mode: postgres, tls: optional, socket_mode: \"0660\"}",
    );
    has(&yaml, "http: {address: \"*:8405\"}");
    assert!(!yaml.contains("w1"));
    let notes = notes.join("\n");
    has(&notes, "f:5: listen web: is for HTTP, not for PostgreSQL");
    has(&notes, "f:13: listen off: is disabled");
}

#[test]
fn bytes_may_be_forwarded_as_before() {
    let (yaml, _) = imported(InputKind::Haproxy, &section("/primary", ""), Mode::Tcp);
    has(
        &yaml,
        "  - {name: reads, address: \"*:5001\", route: reads, mode: tcp}\n",
    );
    assert!(!yaml.contains("\ntls:"), "{yaml}");
    assert_eq!(errors(&settled(&yaml)), [""; 0]);
}

#[test]
fn secrets_are_not_repeated() {
    let text = format!(
        "userlist u\n user admin insecure-password hunter2\nlisten stats\n mode http\n bind :7000\n \
         stats auth admin:hunter2\n{}  http-check send-state hunter2\n  email-alert from hunter2\n  hunter\n",
        section("/replica", "  http-check send hdr Authorization hunter2\n")
    );
    let (yaml, notes) = haproxy(&text);
    assert!(
        !yaml.contains("hunter2") && !notes.join("\n").contains("hunter2"),
        "{yaml}"
    );
    has(&notes.join("\n"), "stats auth: pages are read without a password");
    let text = "clusters: {a: {hosts: [\"http://u:hunter2@h:8008/x\"], ports: {p: {listen: \"1.1.1.1:1\", roles: [leader]}}}}";
    let (yaml, notes) = imported(InputKind::PatroniProxy, text, Mode::Postgres);
    has(
        &yaml,
        "- \"http://h:8008\"\n      username: u\n      password_file: TODO-patroni.password\n",
    );
    assert!(
        !yaml.contains("hunter2") && !notes.join("\n").contains("hunter2"),
        "{yaml}"
    );
}

#[test]
fn what_is_not_known_is_said() {
    let (_, notes) = haproxy(
        &section("/replica", "  frobnicate x\n  timeout connect soon\n")
            .replace("listen reads", "listen reads 10.0.0.1:5000")
            .replace(
                "server b b1:5432",
                "server b b1:5432 wibble\n  server c ${HOST}:5432",
            ),
    );
    let notes = notes.join("\n");
    for expected in [
        "f:1: listen: current versions of HAProxy do not read an address",
        "f:6: frobnicate: is unknown to the importer",
        "f:7: timeout connect: is not a time",
        "f:9: server b … wibble: there is no such setting",
        "f:10: server c: its address is not a supported host and port",
    ] {
        has(&notes, expected);
    }
}

#[test]
fn a_file_without_servers_is_refused() {
    for text in [
        "",
        "global\n",
        "listen a\n bind :1\n",
        "frontend a\n bind :1\n default_backend b\n",
    ] {
        assert!(
            convert(InputKind::Haproxy, text, "f", Mode::Postgres).is_err(),
            "{text}"
        );
    }
    for text in [
        "",
        "clusters:\n",
        "clusters: {a: {hosts: [\"http://h:1\"]}}",
        "clusters: [",
        "- 1",
    ] {
        assert!(
            convert(InputKind::PatroniProxy, text, "f", Mode::Postgres).is_err(),
            "{text}"
        );
    }
    let inherited = format!(
        "defaults\n{}listen a\n bind :1\n server a a:1\n",
        "retries 1\n".repeat(1001)
    );
    assert!(convert(InputKind::Haproxy, &inherited, "f", Mode::Postgres).is_err());
    let ranges = "listen a\n server a a:1\n".to_owned() + &" bind :1-65535\n bind :1-200\n".repeat(9);
    let (yaml, _) = haproxy(&ranges);
    assert_eq!(yaml.matches("address: \"*:").count(), 256);
    let servers = "listen a\n bind :1\n".to_owned() + &" server a a:1\n".repeat(1025);
    assert!(convert(InputKind::Haproxy, &servers, "f", Mode::Postgres).is_err());
}

#[test]
fn every_key_of_patroni_proxy() {
    let text = "cluster_update_interval: 900\nverbose: true\nclusters:\n  a:\n    hosts: [\"https://h1:8008\", \"ftp://h2\"]\n    \
                tls: {ca_cert: /etc/ca.crt, client_cert: c.crt, client_key: c.key, skip_verify: true}\n    \
                ports:\n      rw: {listen: \"0.0.0.0:1\", roles: [Leader], max_lag_in_bytes: 5}\n      \
                all: {listen: \"0.0.0.0:2\", roles: [any, sync]}\n      \
                both: {listen: \"0.0.0.0:3\", roles: [leader, async, boss], host_port: 6432}\n  \
                b:\n    hosts: [\"http://h3:8008/\"]\n    tls: {ca_cert: x}\n    \
                ports:\n      rw: {listen: \"0.0.0.0:4\", roles: [leader]}\n";
    let (yaml, notes) = imported(InputKind::PatroniProxy, text, Mode::Postgres);
    for expected in [
        "        - \"https://h1:8008\"\n      poll_interval: 5m\n      ca_file: /etc/ca.crt\n      cert_file: c.crt\n      key_file: c.key\n",
        "        - \"http://h3:8008\"\n      poll_interval: 5m\n    # TODO",
        "a-rw: {cluster: a, targets: [leader], on_unfit: {down: close}}",
        "a-all: {cluster: a, targets: [any], read_only_on_leader: unenforced, on_unfit: {down: close}}",
        "a-both: {cluster: a, targets: [[leader, async]], read_only_on_leader: unenforced, on_unfit: {down: close}}",
        "b-rw: {cluster: b, targets: [leader], on_unfit: {down: close}}",
        "http: {address: \"127.0.0.1:8009\"}",
    ] {
        has(&yaml, expected);
    }
    let notes = notes.join("\n");
    for expected in [
        "f:1: cluster_update_interval: is 5m here",
        "f:2: verbose: is not known; patroni_proxy ignored it as well",
        "f:5: hosts: is not an `http://`",
        "f:6: tls.skip_verify: a server that is not verified could name any leader",
        "f:6: tls: counts from now on",
        "f:10: ports.both.roles: is none of",
        "f:10: ports.both.host_port: ",
        "f:13: tls: has no effect: every host is `http://`",
    ] {
        has(&notes, expected);
    }
}

#[test]
fn the_kind_is_seen() {
    assert_eq!(recognise("# clusters:\n\nglobal\n"), Some(InputKind::Haproxy));
    assert_eq!(recognise("  listen x\n"), Some(InputKind::Haproxy));
    assert_eq!(recognise("clusters:\n"), Some(InputKind::PatroniProxy));
    assert_eq!(recognise("listen_address: x\n"), Some(InputKind::PatroniProxy));
    assert_eq!(recognise("; x\n[databases]\n"), Some(InputKind::PgBouncer));
    assert_eq!(recognise("[pgbouncer]\n"), Some(InputKind::PgBouncer));
    assert_eq!(recognise("[server]\n"), None);
}

#[test]
fn names_and_texts_are_what_the_configuration_takes() {
    use super::write::{Names, scalar};
    let mut names = Names::default();
    assert_eq!(names.take("pg:rw"), "pg-rw");
    assert_eq!(names.take("pg-rw"), "pg-rw-2");
    assert_eq!(names.take(""), "-");
    assert_eq!(names.take(&"x".repeat(99)).len(), 56);
    for plain in ["db1", "/etc/ca.crt", "read-write"] {
        assert_eq!(scalar(plain), plain);
    }
    for (text, quoted) in [
        ("yes", "\"yes\""),
        ("", "\"\""),
        ("*:1", "\"*:1\""),
        ("1e5", "\"1e5\""),
        ("a: b", "\"a: b\""),
        ("a\"\\\n", "\"a\\\"\\\\\\U0000000A\""),
    ] {
        assert_eq!(scalar(text), quoted);
    }
}

mod any_text {
    use proptest::prelude::*;

    use super::super::*;
    use crate::config::tree;

    const WORDS: &[&str] = &[
        "global",
        "defaults",
        "listen",
        "frontend",
        "backend",
        "from",
        "a",
        "b",
        "bind",
        ":1",
        "*:2-9",
        "server",
        "a1:5432",
        "[::1]:6432",
        "check",
        "port",
        "8008",
        "option",
        "httpchk",
        "GET",
        "/replica?lag=1MB&tag_x=\u{1b}[y",
        "pgsql-check",
        "default_backend",
        "use_backend",
        "if",
        "{",
        "nbsrv(a)",
        "lt",
        "1",
        "}",
        "balance",
        "weight",
        "0",
        "backup",
        "track",
        "a/b",
        "timeout",
        "connect",
        "4s",
        "tcp-request",
        "connection",
        "reject",
        "src",
        "10.0.0.0/8",
        "maxconn",
        "\n",
        "\n",
        "\n",
        "\"",
        "'",
        "\\",
        "#",
        "ssl",
        "crt",
        "x: [y",
        "mode",
        "http",
        "tcp",
        "stats",
        "no",
        "server-template",
        "1-3",
    ];

    proptest! {
        #[test]
        fn what_is_written_is_yaml(picked in prop::collection::vec(0..WORDS.len(), 0..120)) {
            let words: Vec<&str> = picked.into_iter().map(|index| WORDS[index]).collect();
            let text = format!("listen a\nbind :1\nserver a a1:5432\n{}", words.join(" "));
            if let Ok((yaml, _)) = convert(InputKind::Haproxy, &text, "f", Mode::Postgres) {
                prop_assert!(tree::parse(&yaml).is_ok(), "{yaml}");
            }
        }

        #[test]
        fn nothing_ends_it(text in "\\PC{0,200}") {
            let _ = convert(InputKind::Haproxy, &text, "f", Mode::Tcp);
            let _ = convert(InputKind::PatroniProxy, &text, "f", Mode::Tcp);
        }
    }
}
