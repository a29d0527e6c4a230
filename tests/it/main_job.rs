//! psql through the router to a real Patroni cluster.
#![allow(clippy::unwrap_used, clippy::float_cmp)]

use std::process::Command;
use std::time::Duration;

use crate::cluster::{Cluster, Router, eventually, output, project, secret};

#[test]
fn the_read_write_port_is_the_leader_and_the_read_only_port_a_replica() {
    let (cluster, router) = (Cluster::shared(), Router::shared());
    let leader = cluster.node(&cluster.leader());
    let where_and_what =
        "SELECT host(inet_server_addr()), pg_is_in_recovery(), current_setting('transaction_read_only')";
    assert_eq!(
        router.psql(6432, where_and_what),
        format!("{}|f|off", leader.address)
    );
    let read_only = router.psql(6433, where_and_what);
    let replicas: Vec<String> = cluster
        .replicas()
        .iter()
        .map(|name| format!("{}|t|on", cluster.node(name).address))
        .collect();
    assert!(
        replicas.contains(&read_only),
        "{read_only} is none of {replicas:?}"
    );
}

#[test]
fn every_metric_is_documented_and_sessions_are_counted() {
    let router = Router::shared();
    assert_eq!(router.psql(6432, "SELECT 1"), "1");
    assert_eq!(router.psql(6433, "SELECT 1"), "1");
    let refused = router.psql_output(6432, "password=wrong", "SELECT 1");
    assert!(!refused.status.success());
    eventually(
        "both sessions are counted as ended",
        Duration::from_secs(10),
        || {
            ["read-write", "read-only"].iter().all(|route| {
                let label = format!(
                    "trunkline_sessions_ended_total{{route=\"{route}\",cause=\"client_terminated\"}}"
                );
                router.metric(&label) == 1.0
            })
        },
    );
    assert!(router.metric("trunkline_logins_refused_total{reason=\"password\"}") >= 1.0);
    assert!(router.metric("trunkline_client_bytes_sent_total") > 0.0);
    assert_eq!(router.metric("trunkline_transactions_total"), 2.0);
    let documented = std::fs::read_to_string(project().join("docs/metrics.md")).unwrap();
    let (_, text) = router.http("/metrics").unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    for name in samples.filter_map(|line| line.split(['{', ' ']).next()) {
        let histogram = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end))
            .unwrap_or(name);
        assert!(
            documented.contains(&format!("`{histogram}`")),
            "{name} is not in docs/metrics.md"
        );
    }
}

#[test]
fn check_connect_tries_everything_and_says_what_fails() {
    let cluster = Cluster::shared();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trunkline.yaml");
    let check = |text: &str| {
        std::fs::write(&path, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
        command.args(["check", "--connect", "-c"]).arg(&path);
        let mut told = (None, String::new());
        // Patroni of a busy host may need more than the 5 s that it has.
        for _ in 0..3 {
            let result = output(&mut command);
            told = (result.status.code(), String::from_utf8(result.stdout).unwrap());
            if !told.1.contains("no answer in time") {
                break;
            }
        }
        told
    };
    let right = cluster.yaml(dir.path());
    let (code, said) = check(&right);
    assert_eq!(code, Some(0), "{said}");
    for node in cluster.nodes() {
        let place = format!("{} at {}:{}", node.name, node.address, node.port);
        for what in [
            "login as trunkline: with TLS",
            "probe",
            "pg_monitor",
            "look-up of verifiers: answers",
            "max_connections: it takes",
        ] {
            assert!(
                said.lines()
                    .any(|line| line.starts_with("ok") && line.contains(&place) && line.contains(what)),
                "{place} {what}:\n{said}"
            );
        }
    }
    // More connections than a server takes: a remark, and everything works.
    let large = format!(
        "{right}routes:\n  read-write: {{targets: [leader], pool: {{mode: transaction, max_connections: 99999}}}}\n\
         listeners: [{{name: rw, address: \"127.0.0.1:6432\", route: read-write}}]\n"
    );
    let (code, said) = check(&large);
    assert_eq!(code, Some(0), "{said}");
    let remarks = said.lines().filter(|line| line.starts_with("remark"));
    let told: Vec<&str> = remarks.collect();
    assert_eq!(told.len(), cluster.nodes().len(), "{said}");
    assert!(told[0].contains("99999 of read-write"), "{said}");
    // A dead endpoint, and an account that may not log in: each is told, with all that works.
    let dead = right.replacen(":8008", ":8009", 1);
    let (code, said) = check(&dead);
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(
        said.lines().filter(|line| line.starts_with("FAILED")).count(),
        1,
        "{said}"
    );
    secret(dir.path(), "service-password", "wrong");
    let (code, said) = check(&right);
    assert_eq!(code, Some(1), "{said}");
    let refused = said
        .lines()
        .filter(|line| line.starts_with("FAILED") && line.contains("login as trunkline"));
    assert_eq!(refused.count(), cluster.nodes().len(), "{said}");
}
