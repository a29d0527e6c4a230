//! The watch on etcd as an operator sees it: configuration, check, log, metrics. What it does is
//! tested in `discovery`.

use std::process::Command;
use std::time::Duration;

use super::cluster::{Cluster, Options, Router, eventually, output};
use super::hand::{Raw, V3_0};

fn options(cluster: &Cluster, scope: &str) -> Options {
    let url = cluster.about["etcd"]["url"].as_str().unwrap();
    let namespace = cluster.text("namespace");
    Options {
        cluster_extra: format!("etcd: {{endpoints: [\"{url}\"], namespace: {namespace}, scope: {scope}}}"),
        ..Options::default()
    }
}

fn check(router: &Router) -> String {
    let path = router.dir().join("trunkline.yaml");
    let output = output(
        Command::new(env!("CARGO_BIN_EXE_trunkline"))
            .args(["check", "--connect", "-c"])
            .arg(path),
    );
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn the_watch_shows_in_the_log_the_metrics_and_the_check() {
    let cluster = Cluster::shared();
    let router = Router::before(cluster, options(cluster, cluster.text("scope")));
    router.await_log(&["the router watches etcd", "endpoint=http://"]);
    eventually("the metric says so", Duration::from_secs(10), || {
        router.metric("trunkline_cluster_etcd_up{cluster=\"main\"}") > 0.5
    });
    let shown = check(&router);
    let expected = format!("{} holds the leader key", cluster.leader());
    assert!(
        shown.contains(&expected) && shown.contains(", etcd at http://"),
        "{shown}"
    );
}

#[test]
fn a_wrong_scope_is_told_and_does_no_harm() {
    let cluster = Cluster::shared();
    let router = Router::before(cluster, options(cluster, "elsewhere"));
    router.await_log(&["WARN", "etcd has no leader key", "`etcd.scope`", "SCOPE/GROUP"]);
    assert_eq!(router.psql(6432, "SELECT pg_is_in_recovery()"), "f");
    assert!(
        check(&router).contains("no member holds the leader key"),
        "{}",
        check(&router)
    );
}

#[test]
fn a_reload_begins_changes_and_ends_the_watch() {
    let cluster = Cluster::shared();
    let router = Router::before(cluster, Options::default());
    let path = router.dir().join("trunkline.yaml");
    let usual = std::fs::read_to_string(&path).unwrap();
    let watching = |scope: &str| {
        let section = format!("    {}\n", options(cluster, scope).cluster_extra);
        usual.replacen(
            "    service_account:",
            &format!("{section}    service_account:"),
            1,
        )
    };
    let mut session = Raw::tls(router.address, 6432);
    session.startup(V3_0, &[("user", "app"), ("database", "app")]);
    assert_eq!(session.authenticate("app").last().unwrap().tag, b'Z');
    let reload = |text: &str, told: &[&str]| {
        assert_ne!(std::fs::read_to_string(&path).unwrap(), text);
        std::fs::write(&path, text).unwrap();
        let before = router.log().len();
        router.signal("HUP");
        eventually("it is reloaded", Duration::from_secs(20), || {
            let log = &router.log()[before..];
            let mut lines = log.lines();
            log.contains("configuration reloaded")
                && lines.any(|line| told.iter().all(|part| line.contains(part)))
        });
    };
    let changed = "changed=clusters.main";
    let up = "trunkline_cluster_etcd_up{cluster=\"main\"} 1";
    let is_up = || router.http("/metrics").unwrap().1.contains(up);
    assert!(!is_up());
    reload(&watching(cluster.text("scope")), &[changed]);
    eventually("etcd is watched", Duration::from_secs(10), is_up);
    reload(
        &watching("elsewhere"),
        &["WARN", "etcd has no leader key", "`etcd.scope`"],
    );
    reload(&usual, &[changed]);
    eventually("it is watched no longer", Duration::from_secs(10), || !is_up());
    assert_eq!(session.value("SELECT 6 * 7"), "42");
    assert_eq!(router.psql(6432, "SELECT pg_is_in_recovery()"), "f");
}
