//! Where servers are: several clusters in one process, two instances on one host, IPv6, host names
//! that move.

use std::fs;
use std::process::Command;
use std::time::Duration;

use super::cluster::postgres::{self, Pair18, Postgres};
use super::cluster::{Options, Router, eventually, fresh_address, secret, succeed};

const HBA: &str = "host all all 127.0.0.0/8 scram-sha-256\nhost all all ::1/128 scram-sha-256";

/// A fixed list of one in a cluster of its own.
fn section(name: &str, host: &str, port: u16, password: &str) -> String {
    format!(
        "  {name}:\n    servers: [{{name: db, host: \"{host}\", port: {port}}}]\n    \
         service_account: {{user: trunkline, password_file: {password}}}\n    \
         server_tls: {{sslmode: require}}\n    probe: {{interval: 200ms}}\n"
    )
}

/// A port that nobody else uses on `::1`: other runs may be under way.
fn free_port() -> u16 {
    std::net::TcpListener::bind("[::1]:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn ask(host: &str, port: u16, sql: &str) -> String {
    let dsn = format!(
        "host={host} port={port} user=app password=app dbname=app sslmode=require connect_timeout=10"
    );
    succeed(Command::new("psql").args(["-XAtq", "-c", sql, &dsn]))
        .trim()
        .to_owned()
}

#[test]
fn clusters_of_one_process_are_apart_also_on_one_host_and_over_ipv6() {
    let one = Postgres::start(&postgres::Options {
        hba: Some(HBA.into()),
        ..postgres::Options::default()
    });
    let port = free_port();
    let two = Postgres::start(&postgres::Options {
        hba: Some(HBA.into()),
        port: Some(port),
        conf: format!("listen_addresses = '{}, ::1'\n", one.address),
        ..postgres::Options::default()
    });
    let dir = tempfile::tempdir().unwrap();
    let password = secret(dir.path(), "pw", "trunkline");
    let password = password.display().to_string();
    let host = one.address.to_string();
    let listener = free_port();
    let router = Router::launch(
        None,
        Options {
            clusters: Some(format!(
                "clusters:\n{}{}{}",
                section("one", &host, one.port, &password),
                section("two", &host, port, &password),
                section("six", "::1", port, &password)
            )),
            listeners: Some(format!(
                "  - {{name: one, address: \"{{address}}:6432\", route: one}}\n  \
                 - {{name: two, address: \"{{address}}:6433\", route: two}}\n  \
                 - {{name: six, address: \"[::1]:{listener}\", route: six}}\n"
            )),
            extra: "routes:\n  one: {cluster: one, targets: [leader]}\n  two: {cluster: two, targets: [leader]}\n  \
                    six: {cluster: six, targets: [leader]}\n"
                .to_owned(),
            ..Options::default()
        },
    );
    for name in ["one", "two", "six"] {
        let path = format!("/connection/is-ready-rw?strict=1&cluster={name}");
        eventually(&format!("{name} has a leader"), Duration::from_secs(20), || {
            router.http(&path).is_some_and(|(status, _)| status == 200)
        });
    }
    let at = router.address.to_string();
    let place = "SELECT inet_server_addr() || ' ' || inet_server_port()";
    assert_eq!(ask(&at, 6432, place), format!("{host}/32 {}", one.port));
    assert_eq!(ask(&at, 6433, place), format!("{host}/32 {port}"));
    assert_eq!(ask("::1", listener, place), format!("::1/128 {port}"));

    // One's death is nobody else's.
    one.stop();
    eventually("one has no leader", Duration::from_secs(10), || {
        router
            .http("/connection/is-ready-rw?strict=1&cluster=one")
            .is_some_and(|(status, _)| status == 503)
    });
    assert_eq!(ask(&at, 6433, "SELECT 1"), "1");
    assert_eq!(ask("::1", listener, "SELECT 1"), "1");
    drop(two);
}

/// To the promoted standby, as after a failover; a name that leads to another cluster is not
/// followed, which `led.rs` shows.
#[test]
fn a_host_name_that_leads_elsewhere_is_followed() {
    let pair = Pair18::start();
    let (old, new) = (&pair.primary, &pair.standby);
    let dir = tempfile::tempdir().unwrap();
    let password = secret(dir.path(), "pw", "trunkline");
    let hosts = dir.path().join("hosts");
    let lead_to = |server: &Postgres| fs::write(&hosts, format!("{} moving.test\n", server.address)).unwrap();
    lead_to(old);
    // The router alone sees these names.
    let prefix = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        "mount --bind \"$0\" /etc/hosts && exec \"$@\"",
    ];
    let mut prefix: Vec<String> = prefix.iter().map(ToString::to_string).collect();
    prefix.push(hosts.display().to_string());
    let router = Router::launch(
        None,
        Options {
            clusters: Some(format!(
                "clusters:\n{}",
                section("main", "moving.test", old.port, &password.display().to_string())
            )),
            address: Some(fresh_address()),
            prefix,
            ..Options::default()
        },
    );
    router.await_read_write();
    assert_eq!(
        router.psql(6432, "SELECT inet_server_addr()"),
        old.address.to_string()
    );
    let probed = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'trunkline probe'";
    eventually("one connection probes", Duration::from_secs(10), || {
        old.sql(probed) == "1"
    });

    new.sql("SELECT pg_promote()");
    lead_to(new);
    eventually("the probes have moved", Duration::from_secs(40), || {
        old.sql(probed) == "0" && new.sql(probed) == "1"
    });
    router.await_read_write();
    assert_eq!(
        router.psql(6432, "SELECT inet_server_addr()"),
        new.address.to_string()
    );
}
