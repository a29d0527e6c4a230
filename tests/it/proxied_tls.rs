//! A balancer that ends TLS itself, and says so: what the router makes of it.

use std::net::Ipv4Addr;

use super::checks::HaProxy;
use super::methods::Clients;
use crate::cluster::postgres::{self, Postgres, psql_18};
use crate::cluster::{Certificates, Options, Router, eventually, fresh_address, output, secret};

const BALANCER: Ipv4Addr = Ipv4Addr::new(127, 96, 0, 3);

#[test]
fn what_haproxy_says_of_tls_is_logged_and_counts_for_nothing() {
    let server = Postgres::start(&postgres::Options::default());
    let dir = tempfile::tempdir().unwrap();
    let rules = dir.path().join("rules");
    std::fs::write(
        &rules,
        "hostssl all all all reject\nhostnossl all all all scram-sha-256\n",
    )
    .unwrap();
    let proxied = format!("proxy_protocol: {{trusted: [{BALANCER}]}}");
    let router = Router::launch(
        None,
        Options {
            clusters: Some(server.yaml()),
            extra: format!("auth: {{hba_file: {}}}\n", rules.display()),
            listeners: Some(format!(
                "  - {{name: rw, address: \"{{address}}:6432\", route: read-write, {proxied}}}\n  \
                 - {{name: strict, address: \"{{address}}:6433\", route: read-write, tls: required, {proxied}}}\n"
            )),
            ..Options::default()
        },
    );
    router.await_read_write();

    let certificates = Certificates::shared();
    let text = |name: &str| std::fs::read_to_string(certificates.file(name)).unwrap();
    let shown = secret(
        dir.path(),
        "shown.pem",
        &(text("server.crt") + &text("server.key")),
    );
    let clients = Clients::shared();
    let front = fresh_address();
    let section = |port: u16, to: u16, keys: &str| {
        format!(
            "listen p{port}\n  bind {front}:{port} ssl crt {} alpn postgresql ca-file {} verify optional {keys}\n  \
             source {BALANCER}\n  server one {}:{to} send-proxy-v2-ssl-cn\n",
            shown.display(),
            clients.ca_file(),
            router.address
        )
    };
    let _haproxy = HaProxy::start(&format!(
        "{}{}{}",
        section(7001, 6432, ""),
        section(7002, 6432, "ca-ignore-err all crt-ignore-err all"),
        section(7003, 6433, "")
    ));
    eventually("HAProxy listens", std::time::Duration::from_secs(10), || {
        std::net::TcpStream::connect((front, 7003)).is_ok()
    });
    let ask = |port: u16, name: &str, keys: &str| {
        let dsn = format!(
            "host={front} port={port} user=app password=app dbname=app sslmode=require sslnegotiation=direct \
             application_name={name} {keys}"
        );
        output(
            psql_18()
                .args(["-XAtqc", "SELECT current_setting('trunkline.client_addr')"])
                .arg(dsn),
        )
    };
    let log_of = |port: u16, keys: &str| {
        let before = router.log().len();
        let output = ask(port, "x", keys);
        assert_eq!(output.stdout, b"127.0.0.1\n", "{output:?}");
        let mut line = String::new();
        eventually(
            "the session is logged",
            std::time::Duration::from_secs(10),
            || {
                let log = router.log();
                let ended = log[before..].lines().find(|line| line.contains("session ended"));
                line = ended.unwrap_or_default().to_owned();
                !line.is_empty()
            },
        );
        assert!(line.contains(&format!("via={BALANCER}:")), "{line}");
        line
    };

    // The router itself sees a connection in clear: the rule for such matches.
    let line = log_of(7001, "");
    assert!(line.contains("via_tls=TLSv1.3 "), "{line}");
    assert!(!line.contains("CN "), "{line}");
    let (cert, key) = clients.issue("somebody");
    let with_certificate = format!("sslcert={cert} sslkey={key}");
    let line = log_of(7001, &with_certificate);
    assert!(line.contains("via_tls=TLSv1.3, CN \"somebody\""), "{line}");
    // One that nobody has verified is nobody's name.
    let foreign = format!(
        "sslcert={} sslkey={}",
        server.certificates.file("server.crt").display(),
        server.certificates.file("server.key").display()
    );
    let line = log_of(7002, &foreign);
    assert!(
        line.contains("via_tls=TLSv1.3 ") && !line.contains("CN "),
        "{line}"
    );
    // And a listener that requires TLS has none.
    let refused = ask(7003, "x", &with_certificate);
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && told.contains("TLS"), "{told}");
}
