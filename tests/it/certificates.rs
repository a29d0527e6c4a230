//! Names and certificates that OpenSSL and libpq take, and rustls does not.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::cluster::postgres::psql_18;
use crate::cluster::{Cluster, Options, Router, output, secret};

fn openssl(dir: &Path, arguments: &str) {
    let done = output(
        Command::new("openssl")
            .current_dir(dir)
            .args(arguments.split(' ')),
    );
    assert!(done.status.success(), "{arguments}: {done:?}");
}

/// `NAME.crt`, of version 1 and signed by `ca.crt`, and `NAME.key`.
fn version_1(dir: &Path, name: &str) {
    let keys = "-nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256";
    if !dir.join("ca.crt").exists() {
        openssl(
            dir,
            &format!("req -x509 {keys} -keyout ca.key -out ca.crt -subj /CN=ca -days 30"),
        );
    }
    openssl(
        dir,
        &format!("req {keys} -keyout {name}.key -out {name}.csr -subj /CN={name}"),
    );
    openssl(
        dir,
        &format!(
            "x509 -req -in {name}.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -out {name}.crt"
        ),
    );
    let key = fs::read_to_string(dir.join(format!("{name}.key"))).unwrap();
    secret(dir, &format!("{name}.key"), &key);
}

/// libpq asks by SNI for whatever `host` says; such a name is one that no certificate has.
#[test]
fn a_host_that_is_no_dns_name_gets_tls_and_the_first_certificate() {
    let router = Router::shared();
    let long = "a.".repeat(125) + "b";
    for host in [
        "pg.1",
        "db-.internal",
        "db main",
        "a..b",
        "under_score",
        "-x",
        "ünï.example",
        &long,
    ] {
        for mut psql in [Command::new("psql"), psql_18()] {
            let extra = format!("host='{host}' hostaddr={} sslmode=require", router.address);
            let done = output(psql.args(["-XAtqc", "SELECT 'in'"]).arg(router.dsn(6432, &extra)));
            assert!(
                done.status.success() && done.stdout.starts_with(b"in"),
                "{host}: {done:?}\n{}",
                router.log()
            );
        }
    }
}

/// As PostgreSQL: the router shows it, and takes it from a client.
#[test]
fn version_1_certificates_on_both_sides_of_a_client() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    version_1(dir, "router");
    version_1(dir, "app");
    let hba = dir.join("hba.conf");
    fs::write(&hba, "hostssl all app all scram-sha-256 clientcert=verify-full\n").unwrap();
    let at = |name: &str| dir.join(name).display().to_string();
    let options = Options {
        tls: Some(format!(
            "tls: {{certificates: [{{cert_file: {}, key_file: {}}}], client_ca_file: {}}}\n",
            at("router.crt"),
            at("router.key"),
            at("ca.crt")
        )),
        extra: format!("auth: {{hba_file: {}}}\n", hba.display()),
        ..Options::default()
    };
    let router = Router::before(Cluster::shared(), options);
    let ask = |extra: &str| {
        let extra = format!(
            "sslmode=verify-ca sslrootcert={} channel_binding=require {extra}",
            at("ca.crt")
        );
        output(
            psql_18()
                .args(["-XAtqc", "SELECT 'in'"])
                .arg(router.dsn(6432, &extra)),
        )
    };
    let own = format!("sslcert={} sslkey={}", at("app.crt"), at("app.key"));
    let done = ask(&own);
    assert!(
        done.status.success() && done.stdout.starts_with(b"in"),
        "{done:?}\n{}",
        router.log()
    );
    let without = ask("sslcertmode=disable");
    assert!(!without.status.success(), "{without:?}");
}

/// The reason for what a client is told with an alert only stands in the log, and says what to do.
#[test]
fn the_log_says_why_a_clients_certificate_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    version_1(dir, "router");
    let keys = "-nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256";
    openssl(
        dir,
        &format!(
            "req -x509 {keys} -keyout none.key -out none.crt -subj /CN=none -days 30 -addext basicConstraints=critical,CA:FALSE"
        ),
    );
    openssl(
        dir,
        &format!("req {keys} -keyout app.key -out app.csr -subj /CN=app"),
    );
    openssl(
        dir,
        "x509 -req -in app.csr -CA none.crt -CAkey none.key -CAcreateserial -days 30 -out app.crt",
    );
    let at = |name: &str| dir.join(name).display().to_string();
    let key = fs::read_to_string(dir.join("app.key")).unwrap();
    secret(dir, "app.key", &key);
    let options = Options {
        tls: Some(format!(
            "tls: {{certificates: [{{cert_file: {}, key_file: {}}}], client_ca_file: {}}}\n",
            at("router.crt"),
            at("router.key"),
            at("none.crt")
        )),
        ..Options::default()
    };
    let router = Router::before(Cluster::shared(), options);
    router.await_log(&["WARN", "none.crt", "is not an authority"]);
    let extra = format!(
        "sslmode=require sslcert={} sslkey={}",
        at("app.crt"),
        at("app.key")
    );
    let done = output(
        psql_18()
            .args(["-XAtqc", "SELECT 'in'"])
            .arg(router.dsn(6432, &extra))
            .stdin(Stdio::null()),
    );
    assert!(!done.status.success(), "{done:?}");
    router.await_log(&["connection refused", "is none of an authority"]);
}
