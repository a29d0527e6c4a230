//! Configurations of other programs, imported by the command and run before the cluster.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Output};

use crate::cluster::{Certificates, Cluster, Options, Router, fresh_address, output, secret};

fn import(arguments: &[&str], file: &Path) -> Output {
    output(
        Command::new(env!("CARGO_BIN_EXE_trunkline"))
            .arg("import")
            .args(arguments)
            .arg(file),
    )
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// As the fixture `tests/import/patroni.cfg`, before this cluster.
fn haproxy(cluster: &Cluster, address: Ipv4Addr) -> String {
    let mut text = format!(
        "defaults\n    mode tcp\n    timeout connect 4s\n    timeout client 30m\n\n\
         listen stats\n    mode http\n    bind {address}:6434\n    stats enable\n"
    );
    for (name, port, path) in [("write", 6432, "/primary"), ("read", 6433, "/replica")] {
        let _ = write!(
            text,
            "\nlisten postgres_{name}\n    bind {address}:{port}\n    option httpchk GET {path}\n    \
             http-check expect status 200\n    default-server inter 3s fall 3 rise 2 on-marked-down shutdown-sessions\n"
        );
        for node in cluster.nodes() {
            let check = node.rest.rsplit(':').next().unwrap();
            let _ = writeln!(
                text,
                "    server {} {}:{} maxconn 200 check port {check}",
                node.name, node.address, node.port
            );
        }
    }
    text
}

fn patroni_proxy(cluster: &Cluster, address: Ipv4Addr) -> String {
    let hosts: Vec<String> = cluster
        .nodes()
        .iter()
        .map(|node| format!("\"{}\"", node.rest))
        .collect();
    format!(
        "listen_address: \"{address}:6434\"\nclusters:\n  main:\n    hosts: [{}]\n    ports:\n      \
         master: {{listen: \"{address}:6432\", roles: [\"leader\"], host_port: 5432}}\n      \
         replicas: {{listen: \"{address}:6433\", roles: [\"sync\", \"async\"], host_port: 5432, max_lag_in_bytes: 16777216}}\n",
        hosts.join(", ")
    )
}

/// What a person does about every TODO, as options of a router.
fn settled(cluster: &Cluster, yaml: &str, dir: &Path, address: Ipv4Addr) -> Options {
    let password = secret(dir, "service-password", cluster.text("service_password"));
    let certificates = Certificates::shared().yaml();
    let yaml = yaml.replace(
        "{user: trunkline, password_file: TODO-service-account.password}",
        &format!(
            "{{user: {}, password_file: {}}}",
            cluster.text("service_user"),
            password.display()
        ),
    );
    let (head, rest) = yaml.split_once("\nlisteners:\n").unwrap();
    let (before, after) = head.split_once("\ntls:\n").unwrap();
    let (_, routes) = after.split_once("\n\n").unwrap();
    let (listeners, _) = rest.split_once("\n\n").unwrap();
    Options {
        clusters: Some(format!("{before}\n{routes}\n")),
        tls: Some(certificates),
        listeners: Some(format!("{listeners}\n")),
        address: Some(address),
        ..Options::default()
    }
}

fn serves(name: &str, configuration: &dyn Fn(&Cluster, Ipv4Addr) -> String) {
    let cluster = Cluster::shared();
    let dir = tempfile::tempdir().unwrap();
    let address = fresh_address();
    let file = dir.path().join(name);
    std::fs::write(&file, configuration(cluster, address)).unwrap();
    let imported = import(&[], &file);
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    let options = settled(cluster, &text(&imported.stdout), dir.path(), address);
    let router = Router::launch(None, options);
    router.await_read_write();
    assert_eq!(router.psql(6432, "SELECT pg_is_in_recovery()"), "f");
    crate::cluster::eventually("a replica is served", std::time::Duration::from_secs(20), || {
        let answer = router.psql_output(6433, "", "SELECT pg_is_in_recovery()");
        answer.status.success() && text(&answer.stdout).trim() == "t"
    });
}

#[test]
fn an_imported_haproxy_configuration_serves() {
    serves("haproxy.cfg", &haproxy);
}

#[test]
fn an_imported_patroni_proxy_configuration_serves() {
    serves("patroni_proxy.yaml", &patroni_proxy);
}

#[test]
fn a_file_is_not_overwritten_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let fixture = crate::cluster::project().join("tests/import/patroni.cfg");
    let target = dir.path().join("trunkline.yaml");
    let target = target.to_str().unwrap();
    let first = import(&["-o", target], &fixture);
    assert!(first.status.success() && first.stdout.is_empty());
    let said = text(&first.stderr);
    assert!(
        said.contains("patroni.cfg:9: timeout client: idle sessions are not cut"),
        "{said}"
    );
    let written = std::fs::read_to_string(target).unwrap();
    assert!(written.contains("targets: [leader]"), "{written}");

    std::fs::write(target, "mine").unwrap();
    let second = import(&["-o", target], &fixture);
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("exists; --force overwrites it"));
    assert_eq!(std::fs::read_to_string(target).unwrap(), "mine");

    assert!(import(&["-o", target, "--force"], &fixture).status.success());
    assert_eq!(std::fs::read_to_string(target).unwrap(), written);

    // A link may lead anywhere.
    let (link, victim) = (dir.path().join("link"), dir.path().join("victim"));
    std::fs::write(&victim, "precious").unwrap();
    std::os::unix::fs::symlink(&victim, &link).unwrap();
    let third = import(&["-o", link.to_str().unwrap(), "--force"], &fixture);
    assert_eq!(third.status.code(), Some(1));
    assert!(
        text(&third.stderr).contains("is a link"),
        "{}",
        text(&third.stderr)
    );
    assert_eq!(std::fs::read_to_string(victim).unwrap(), "precious");
}

#[test]
fn what_cannot_be_imported_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, contents: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, contents).unwrap();
        path
    };
    for (path, expected) in [
        (
            file("toml", b"[server]\nport = 1\n"),
            "is no configuration of HAProxy, patroni_proxy or PgBouncer",
        ),
        (
            file("ini", b"[databases]\n"),
            "has no database in its section [databases]",
        ),
        (file("binary", b"global\n\xff\n"), "is not UTF-8 text"),
        (
            file("large", &vec![b'#'; 1024 * 1024 + 1]),
            "is larger than 1 MiB",
        ),
        (file("yaml", b"clusters:\n  a: [\n"), "is not YAML"),
        (file("empty", b"global\n"), "has no `listen` or `frontend`"),
        (dir.path().join("nowhere"), "No such file"),
    ] {
        let answer = import(&[], &path);
        assert_eq!(answer.status.code(), Some(1), "{}", path.display());
        assert!(answer.stdout.is_empty());
        let said = text(&answer.stderr);
        assert!(said.contains(expected), "{said}");
        assert!(said.contains(path.to_str().unwrap()), "{said}");
    }
    let marked = file(
        "marked",
        "\u{feff}listen rw\r\n  bind :1\r\n  server a a1:6432\r\n".as_bytes(),
    );
    let answer = import(&[], &marked);
    assert!(answer.status.success() && text(&answer.stdout).contains("targets: [leader]"));
    // Another program's file, by mistake or for another reason.
    let path = file("cfg", b"clusters:\n");
    assert_eq!(import(&["--from", "haproxy"], &path).status.code(), Some(1));
    assert_eq!(import(&["--from", "nginx"], &path).status.code(), Some(2));
}

/// HAProxy demanded a certificate of every client; what is written does not serve until rules do.
#[test]
fn certificates_that_clients_had_to_show_are_left_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::shared();
    let (certificate, key, authority) = (
        certificates.file("server.crt"),
        certificates.file("server.key"),
        certificates.file("ca.crt"),
    );
    let cfg = dir.path().join("haproxy.cfg");
    let bind = format!(
        "listen rw\n  bind :1 ssl crt {} ca-file {} verify required\n  server a a1:6432\n",
        certificate.display(),
        authority.display()
    );
    std::fs::write(&cfg, bind).unwrap();
    let yaml = text(&import(&[], &cfg).stdout)
        .replace(
            &format!("key_file: {}", certificate.display()),
            &format!("key_file: {}", key.display()),
        )
        .replace("TODO-service-account.password", "password");
    secret(dir.path(), "password", "x");
    let path = dir.path().join("trunkline.yaml");
    std::fs::write(&path, &yaml).unwrap();
    let mut check = Command::new(env!("CARGO_BIN_EXE_trunkline"));
    let check = output(check.args(["check", "-c"]).arg(&path));
    assert_eq!(check.status.code(), Some(1));
    let said = text(&check.stderr) + &text(&check.stdout);
    assert!(said.contains("TODO-pg_hba.conf"), "{said}\n{yaml}");
}
