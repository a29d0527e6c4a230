//! What a reload has to exchange.

use super::super::diff::{ClusterChange, Diff};
use super::*;

const USUAL: &str = r#"
clusters:
  main:
    servers: [{name: a, host: a}]
    service_account: {user: trunkline, password_file: pw}
  other:
    servers: [{name: b, host: b}]
    service_account: {user: trunkline, password_file: pw}
tls: {certificates: [{cert_file: s.crt, key_file: s.key}]}
routes:
  rw: {cluster: main, targets: [leader]}
  ro: {cluster: other, targets: [replica]}
listeners:
  - {name: one, address: "127.0.0.1:1", route: rw}
  - {name: two, address: "127.0.0.1:2", route: ro}
"#;

fn changes(files: &Files, before: &str, now: &str) -> Vec<String> {
    let diff = Diff::of(&files.ok(before), &files.ok(now));
    diff.changes.iter().map(ToString::to_string).collect()
}

#[test]
fn each_difference_is_named_by_its_key() {
    let files = Files::new();
    assert_eq!(changes(&files, USUAL, USUAL), Vec::<String>::new());
    let commented = USUAL.replace("tls:", "# nothing\n\ntls:");
    assert_eq!(changes(&files, USUAL, &commented), Vec::<String>::new());
    for (from, to, key) in [
        ("host: a", "host: c", "clusters.main"),
        ("tls: {", "tls: {min_version: \"1.3\", ", "tls"),
        ("[replica]", "[leader]", "routes.ro"),
        ("route: ro}", "route: ro, max_clients: 5}", "listeners.two"),
        ("127.0.0.1:2", "127.0.0.1:3", "listeners.two"),
        ("route: ro}", "route: ro, mode: tcp}", "listeners.two"),
        (
            "route: ro}",
            "route: ro, deny: [\"10.0.0.0/8\"]}",
            "listeners.two",
        ),
        ("[replica]", "[replica], max_lag: {bytes: 64MB}", "routes.ro"),
        ("[replica]", "[replica], pool: {mode: session}", "routes.ro"),
    ] {
        assert_eq!(changes(&files, USUAL, &USUAL.replace(from, to)), [key], "{to}");
    }
    for (section, key) in [
        ("auth: {login_timeout: 5s}", "auth"),
        ("http: {address: \"127.0.0.1:9\"}", "http"),
        ("console: {users: [a]}", "console"),
        ("limits: {max_clients: 5}", "limits"),
        ("limits: {per_address: 5}", "limits"),
        ("http: {proxy_protocol: {trusted: [\"10.0.0.1\"]}}", "http"),
        ("log: {level: debug}", "log"),
        ("shutdown: {grace: 5s}", "shutdown"),
    ] {
        assert_eq!(changes(&files, USUAL, &format!("{USUAL}{section}\n")), [key]);
    }
    let third = format!("{USUAL}  - {{name: three, address: \"127.0.0.1:3\", route: rw}}\n");
    assert_eq!(changes(&files, USUAL, &third), ["listeners.three (added)"]);
    assert_eq!(changes(&files, &third, USUAL), ["listeners.three (removed)"]);
}

#[test]
fn what_needs_a_restart_is_told_apart() {
    let files = Files::new();
    let config = |text: &str| files.ok(&format!("{USUAL}{text}"));
    let diff = Diff::of(
        &config("workers: 1\n"),
        &config("workers: 2\ncontrol_socket: /x\nstate_file: /tmp/state.json\n"),
    );
    assert_eq!(diff.restart, ["workers", "control_socket", "state_file"]);
    assert!(diff.changes.is_empty());
    let checked = config("http: {agent_check: {address: \"127.0.0.1:9\"}}\n");
    assert_eq!(Diff::of(&config(""), &checked).restart, ["http.agent_check"]);
}

#[test]
fn a_password_does_not_make_another_cluster() {
    let files = Files::new();
    let old = files.ok(USUAL);
    let change = |text: &str, name: &str| files.ok(text).cluster_change(&old, name);
    assert_eq!(change(USUAL, "main"), ClusterChange::Same);
    let probe = USUAL.replace("host: a}]", "host: a}]\n    probe: {rise: 5}");
    assert_eq!(change(&probe, "main"), ClusterChange::Whole);
    assert_eq!(change(&probe, "other"), ClusterChange::Same);
    let places = USUAL.replace(
        "host: a}]",
        "host: a}]\n    server: {max_connections: 5, slow_start: 5s}",
    );
    assert_eq!(change(&places, "main"), ClusterChange::Whole);
    let watched = |endpoint: &str| {
        let patroni = format!(
            "patroni: {{endpoints: [\"http://a:8008\"]}}\n    etcd: {{endpoints: [\"{endpoint}\"], scope: x}}"
        );
        files.ok(&USUAL.replace("servers: [{name: a, host: a}]", &patroni))
    };
    assert_eq!(
        watched("http://b:1").cluster_change(&watched("http://b:2"), "main"),
        ClusterChange::Whole
    );
    let query = format!("{USUAL}auth: {{cache_ttl: 5s}}\n");
    assert_eq!(change(&query, "other"), ClusterChange::Whole);
    let tls = USUAL.replace("host: a}]", "host: a}]\n    server_tls: {sslmode: require}");
    assert_eq!(change(&tls, "main"), ClusterChange::Credentials);
    files.secret("pw", "another");
    assert_eq!(change(USUAL, "main"), ClusterChange::Credentials);
}
