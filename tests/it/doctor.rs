//! `trunkline doctor`: a sound place has no complaint, and each planted fault is found, with what
//! to do about it.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::time::Instant;

use crate::cluster::postgres::{Options as ServerOptions, Pair18, Postgres, fixed_list};
use crate::cluster::slapd::{BASE, ROUTER, Slapd};
use crate::cluster::{Certificates, Cluster, Options, Router, eventually, fresh_address, output, secret};

/// A configuration that nothing is wrong with, and its files.
struct Sound {
    dir: TempDir,
    clusters: String,
    tls: String,
    routes: String,
    listeners: String,
    http: String,
    extra: String,
    arguments: Vec<String>,
}

impl Sound {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let cluster = Cluster::shared();
        // The authority belongs to the user of the servers.
        fs::copy(cluster.text("ca_file"), dir.path().join("servers.crt")).unwrap();
        let clusters = cluster
            .yaml(dir.path())
            .replace(cluster.text("ca_file"), "servers.crt");
        let certificates = Certificates::shared();
        for name in ["server.crt", "server.key"] {
            fs::copy(certificates.file(name), dir.path().join(name)).unwrap();
        }
        let address = fresh_address();
        let run = dir.path().join("run");
        fs::create_dir(&run).unwrap();
        Self {
            clusters,
            tls: "tls: {certificates: [{cert_file: server.crt, key_file: server.key}]}\n".to_owned(),
            routes: String::new(),
            listeners: format!(
                "  - {{name: rw, address: \"{address}:6432\", route: read-write}}\n  \
                 - {{name: ro, address: \"{address}:6433\", route: read-only}}\n  \
                 - {{name: local, address: {}/.s.PGSQL.6432, route: read-write}}\n",
                run.display()
            ),
            http: format!("http: {{address: \"{address}:6434\"}}\n"),
            extra: format!(
                "control_socket: {0}/control\nstate_file: {0}/state\n",
                run.display()
            ),
            arguments: Vec::new(),
            dir,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self) -> PathBuf {
        let text = [
            &self.clusters,
            &self.tls,
            &self.routes,
            &format!("listeners:\n{}", self.listeners),
            &self.http,
            &self.extra,
        ]
        .map(String::as_str)
        .concat();
        let path = self.file("trunkline.yaml");
        fs::write(&path, text).unwrap();
        path
    }

    fn examined(&self) -> Report {
        Report::of(&self.write(), &self.arguments)
    }
}

/// What `doctor` says.
struct Report {
    code: Option<i32>,
    text: String,
    findings: Vec<Value>,
}

impl Report {
    fn of(path: &Path, arguments: &[String]) -> Self {
        let run = |json: &[&str]| {
            output(
                Command::new(env!("CARGO_BIN_EXE_trunkline"))
                    .args(["doctor", "-c"])
                    .arg(path)
                    .args(json)
                    .args(arguments),
            )
        };
        let (words, json) = (run(&[]), run(&["--json"]));
        let text = String::from_utf8([words.stdout, words.stderr].concat()).unwrap();
        let document: Value =
            serde_json::from_slice(&json.stdout).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(words.status.code(), json.status.code(), "{text}");
        let is_well = document["result"] == "ok";
        assert_eq!(is_well, words.status.success(), "{text}");
        Self {
            code: words.status.code(),
            text,
            findings: document["findings"].as_array().unwrap().clone(),
        }
    }

    /// Complaints: warnings and failures.
    fn complaints(&self) -> Vec<&Value> {
        let bad = |finding: &&Value| finding["level"] == "warn" || finding["level"] == "fail";
        self.findings.iter().filter(bad).collect()
    }

    /// One finding has this level and says all of this; if it is a complaint, it says what to do,
    /// on one line.
    #[track_caller]
    fn says(&self, level: &str, parts: &[&str]) {
        let found = self.findings.iter().find(|finding| {
            let text = format!("{} {} {}", finding["about"], finding["found"], finding["hint"]);
            finding["level"] == level && parts.iter().all(|part| text.contains(part))
        });
        let Some(found) = found else {
            panic!("no {level} with {parts:?} in:\n{}", self.text);
        };
        let about = found["about"].as_str().unwrap();
        let is_complaint = level == "warn" || level == "fail";
        assert_eq!(found["hint"].is_string(), is_complaint, "{found}");
        let has_line = self.text.lines().any(|line| {
            line.starts_with(level) && line.contains(about) && (!is_complaint || line.contains("; hint: "))
        });
        assert!(has_line, "{about} is not a line of:\n{}", self.text);
        assert!(level != "fail" || self.code == Some(1), "{}", self.text);
    }
}

#[test]
fn a_sound_place_has_no_complaint_before_the_start_and_beside_the_router() {
    let sound = Sound::new();
    let report = sound.examined();
    assert_eq!(report.complaints(), Vec::<&Value>::new(), "{}", report.text);
    assert_eq!(report.code, Some(0), "{}", report.text);
    for node in Cluster::shared().nodes() {
        report.says("ok", &[&node.rest, "clock", "agrees"]);
        for about in [
            "clock",
            "version",
            "pg_hba.conf",
            "certificate",
            "connections in use",
        ] {
            report.says("ok", &[&node.name, about]);
        }
    }
    assert!(
        report.text.contains(", 0 warnings, 0 failures, "),
        "{}",
        report.text
    );
    // It has left nothing behind.
    assert_eq!(fs::read_dir(sound.file("run")).unwrap().count(), 0);

    let cluster = Cluster::shared();
    let router = Router::before(cluster, Options::default());
    let report = Report::of(&router.dir().join("trunkline.yaml"), &[]);
    let process = format!("the running router has it (process {})", router.process_id());
    for port in ["6432", "6433", "6434"] {
        report.says("ok", &[&format!("{}:{port}", router.address), &process]);
    }
    report.says("ok", &["descriptors", "of the running router"]);
    assert_eq!(report.code, Some(0), "{}", report.text);
}

#[test]
fn faults_of_the_configuration_are_found_together() {
    let mut sound = Sound::new();
    sound.extra += "lock: {}\nworkers: many\n";
    let report = sound.examined();
    report.says("fail", &["lock"]);
    report.says("fail", &["workers"]);
    report.says("skip", &["everything else"]);

    let sound = Sound::new();
    let password = sound.file("service-password");
    fs::set_permissions(&password, fs::Permissions::from_mode(0o644)).unwrap();
    sound
        .examined()
        .says("fail", &["open to every user", "chmod o-rwx"]);

    let mut sound = Sound::new();
    sound.tls = "tls: {certificates: [{cert_file: server.crt, key_file: other.key}]}\n".to_owned();
    let other = Certificates::make(&["other".to_owned()]);
    fs::copy(other.file("server.key"), sound.file("other.key")).unwrap();
    sound
        .examined()
        .says("fail", &["does not belong to the first certificate"]);

    let mut sound = Sound::new();
    sound.extra += "auth: {hba_file: hba}\n";
    fs::write(sound.file("hba"), "host all all all scram\n").unwrap();
    sound.examined().says(
        "fail",
        &["rules for clients' logins", "invalid authentication method"],
    );
}

#[test]
fn files_that_another_user_may_not_read_or_may_replace_are_found() {
    let mut sound = Sound::new();
    sound.arguments = vec!["--user".to_owned(), "nobody".to_owned()];
    let report = sound.examined();
    report.says(
        "fail",
        &["service-password", "nobody may not read it", "chmod 0640"],
    );
    report.says(
        "fail",
        &[
            "control_socket: directory",
            "nobody may not write",
            "chown nobody",
        ],
    );

    let sound = Sound::new();
    let closed = sound.file("run");
    fs::rename(sound.file("service-password"), closed.join("service-password")).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let clusters = sound.clusters.replace("service-password", "run/service-password");
    let arguments = vec!["--user".to_owned(), "nobody".to_owned()];
    let sound = Sound {
        clusters,
        arguments,
        ..sound
    };
    sound
        .examined()
        .says("fail", &["may not enter the directory", "/run", "chmod g+x"]);

    let sound = Sound::new();
    fs::set_permissions(sound.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    sound
        .examined()
        .says("warn", &["every user of this host can replace it", "chmod o-w"]);

    let sound = Sound::new();
    crate::cluster::succeed(
        Command::new("chown")
            .arg("nobody")
            .arg(sound.file("service-password")),
    );
    sound.examined().says(
        "warn",
        &["service-password", "belongs to another user", "chown root"],
    );
}

#[test]
fn ports_that_cannot_be_bound_are_found() {
    let mut sound = Sound::new();
    let taken = TcpListener::bind((fresh_address(), 0)).unwrap();
    let taken = (taken.local_addr().unwrap(), taken);
    let _ = write!(
        sound.listeners,
        "  - {{name: taken, address: \"{}\", route: read-write}}\n  \
         - {{name: elsewhere, address: \"192.0.2.1:6432\", route: read-write}}\n  \
         - {{name: low, address: \"{}:432\", route: read-write}}\n  \
         - {{name: nowhere, address: /nowhere/socket, route: read-write}}\n",
        taken.0,
        fresh_address()
    );
    sound.extra = sound.extra.replace("/control\n", "/file\n");
    fs::write(sound.file("run/file"), "").unwrap();
    fs::write(sound.file("run/state"), "{").unwrap();
    let report = sound.examined();
    let process = format!("has it (process {})", std::process::id());
    report.says("fail", &["listener taken", &process, "stop that process"]);
    report.says(
        "fail",
        &[
            "listener elsewhere",
            "does not have that address",
            "ip_nonlocal_bind",
        ],
    );
    report.says(
        "fail",
        &[
            "listener nowhere: directory",
            "/nowhere does not exist",
            "install -d",
        ],
    );
    report.says(
        "fail",
        &["control_socket", "another file at this path", "move it away"],
    );
    report.says(
        "warn",
        &["state_file", "is not a state file", "correct it before the start"],
    );
    report.says("ok", &["listener low"]);
    sound.arguments = vec!["--user".to_owned(), "nobody".to_owned()];
    let report = sound.examined();
    report.says(
        "fail",
        &["listener low", "may not bind ports below", "CAP_NET_BIND_SERVICE"],
    );
}

#[test]
fn limits_of_the_host_and_of_the_service_are_found() {
    let mut sound = Sound::new();
    sound.extra += "limits: {max_clients: 90000}\nworkers: 64\nshutdown: {grace: 30s}\n";
    let unit = sound.file("t.service");
    let text = "[Service]\nType=simple\nUser=root\nLimitNOFILE=1024\nMemoryMax=256M\nTimeoutStopSec=10\nProtectSystem=strict\n";
    fs::write(&unit, text).unwrap();
    sound.arguments = vec!["--unit".to_owned(), unit.display().to_string()];
    let report = sound.examined();
    report.says(
        "warn",
        &["descriptors", "limit 1024 of the unit", "LimitNOFILE=18"],
    );
    report.says("warn", &["ip_local_port_range", "90000 connections", "use pools"]);
    report.says(
        "warn",
        &[
            "memory",
            "the unit gives the router (MemoryMax) 256.0 MiB",
            "90000 clients",
            "or lower limits.max_clients to",
        ],
    );
    report.says("warn", &["workers", "64 workers", "leave workers out"]);
    report.says(
        "warn",
        &["TimeoutStopSec", "kills the router after 10s", "TimeoutStopSec=4"],
    );
    report.says("warn", &["Type", "is simple", "Type=notify"]);
    report.says("fail", &["ProtectSystem", "may not write", "ReadWritePaths="]);
    assert_eq!(report.code, Some(1), "{}", report.text);
}

#[test]
fn names_and_certificates_are_looked_at() {
    let mut sound = Sound::new();
    let node = Cluster::shared().nodes().remove(0);
    let named = node.rest.replace(&node.address, "no-such-host.invalid");
    sound.clusters = sound.clusters.replace(&node.rest, &named);
    let report = sound.examined();
    report.says("fail", &["name no-such-host.invalid", "getent hosts"]);
    report.says("fail", &["Patroni at http://no-such-host.invalid"]);

    // A certificate that ends soon, without a name, before one that is not its issuer's.
    let sound = Sound::new();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
    parameters.not_after = time_in(10);
    parameters
        .distinguished_name
        .push(rcgen::DnType::CommonName, "router");
    let own = parameters.self_signed(&key).unwrap();
    let other = fs::read_to_string(sound.file("servers.crt")).unwrap();
    fs::write(sound.file("server.crt"), own.pem() + &other).unwrap();
    secret(sound.dir.path(), "server.key", &key.serialize_pem());
    let report = sound.examined();
    report.says("warn", &["server.crt", "expires in", "renew it"]);
    report.says("warn", &["server.crt", "no subjectAltName", "issue it with"]);
    report.says(
        "warn",
        &["server.crt: chain", "is not that of the issuer", "first"],
    );

    // The one of the quick start.
    let sound = Sound::new();
    let mut parameters = rcgen::CertificateParams::new(vec!["router1".to_owned()]).unwrap();
    parameters.not_after = time_in(30);
    fs::write(
        sound.file("server.crt"),
        parameters.self_signed(&key).unwrap().pem(),
    )
    .unwrap();
    secret(sound.dir.path(), "server.key", &key.serialize_pem());
    let report = sound.examined();
    report.says(
        "note",
        &["server.crt", "router1", "30 days left", "renew it before"],
    );
    assert_eq!(report.complaints(), Vec::<&Value>::new(), "{}", report.text);
}

/// A date so many days and some hours from now: so many whole days are left, however long a test
/// takes.
fn time_in(days: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::now_utc() + time::Duration::days(days) + time::Duration::hours(12)
}

/// A Patroni of another cluster: old, and with a clock that is wrong.
fn stranger() -> String {
    let listener = TcpListener::bind((fresh_address(), 8008)).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut request = [0; 1024];
            let read = client.read(&mut request).unwrap_or_default();
            let request = String::from_utf8_lossy(&request[..read]).into_owned();
            let body = match request.split(' ').nth(1) {
                Some("/patroni") => {
                    r#"{"state": "running", "role": "primary", "database_system_identifier": "7", "pause": true,
                        "patroni": {"version": "2.1.4", "scope": "other"}}"#
                }
                Some("/config") => r#"{"ttl": 20, "loop_wait": 10, "retry_timeout": 10}"#,
                _ => r#"{"members": []}"#,
            };
            let _ = write!(
                client,
                "HTTP/1.1 200 OK\r\nDate: Wed, 02 Dec 2020 03:36:01 GMT\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    format!("http://{address}")
}

#[test]
fn each_endpoint_of_patroni_and_etcd_is_asked_by_itself() {
    let cluster = Cluster::shared();
    let [first, second, third] = [0, 1, 2].map(|index| cluster.nodes().remove(index).rest);
    let mut sound = Sound::new();
    let stranger = stranger();
    let nobody = format!("http://{}:8008", fresh_address());
    sound.clusters = sound
        .clusters
        .replace(&second, &nobody)
        .replace(&third, &third.replace("http:", "https:"))
        .replace(&format!("\"{first}\""), &format!("\"{first}\", \"{stranger}\""));
    let etcd = cluster.about["etcd"]["url"].as_str().unwrap();
    let _ = writeln!(
        sound.clusters,
        "    etcd: {{endpoints: [\"{etcd}\"], scope: other}}"
    );
    sound.routes = "routes:\n  read-write: {targets: [leader], resume: tracked, hold: {timeout: 5s}}\n  \
                    read-only: {targets: [replica]}\n"
        .to_owned();
    let report = sound.examined();
    report.says("fail", &[&nobody, "is Patroni running there"]);
    report.says("fail", &["https://", "write http://"]);
    report.says("fail", &[&stranger, "Patroni 2.1.4 is older than 3.0", "install"]);
    report.says(
        "warn",
        &[&stranger, "clock", "behind this host's clock", "chrony"],
    );
    report.says("fail", &["different clusters", "other (7)", "patroni.endpoints"]);
    report.says("warn", &["Patroni is paused", "patronictl resume"]);
    report.says(
        "warn",
        &[
            "route read-write: hold.timeout",
            "5s at most",
            "raise hold.timeout",
        ],
    );
    report.says(
        "fail",
        &["etcd at", "no member holds the leader key", "namespace"],
    );

    let mut sound = Sound::new();
    sound.clusters = sound
        .clusters
        .replace(&format!(", \"{second}\", \"{third}\""), "");
    let report = sound.examined();
    report.says("warn", &["1 endpoint for 3 members", "every member"]);

    // Its ttl does not leave time for its retries.
    let mut sound = Sound::new();
    sound.clusters = sound.clusters.replace(
        &format!("\"{first}\", \"{second}\", \"{third}\""),
        &format!("\"{stranger}\""),
    );
    sound.examined().says(
        "warn",
        &[
            "ttl is below loop_wait + 2 * retry_timeout",
            "patronictl edit-config",
        ],
    );
}

#[test]
fn a_service_account_that_is_not_as_it_should_be_is_found() {
    let sound = Sound::new();
    secret(sound.dir.path(), "service-password", "wrong");
    sound
        .examined()
        .says("fail", &["login as trunkline", "service-account.sql"]);

    let server = Postgres::start(&ServerOptions::default());
    let mut sound = Sound::new();
    sound.clusters = server.yaml();
    let report = sound.examined();
    assert_eq!(report.code, Some(0), "{}", report.text);
    server.sql("ALTER ROLE trunkline SUPERUSER CONNECTION LIMIT 1");
    let until = "SELECT format('ALTER ROLE trunkline VALID UNTIL %L', now() + interval '3 days')";
    server.sql(&server.sql(until));
    let report = sound.examined();
    report.says("warn", &["trunkline is a superuser", "service-account.sql"]);
    report.says("warn", &["ends in 2 days", "VALID UNTIL 'infinity'"]);
    server.sql("ALTER ROLE trunkline NOSUPERUSER CONNECTION LIMIT -1; REVOKE pg_monitor FROM trunkline");
    sound
        .examined()
        .says("fail", &["not a member of pg_monitor", "GRANT pg_monitor TO"]);
    server.sql("GRANT pg_monitor TO trunkline; DROP FUNCTION trunkline.user_lookup(text)");
    sound
        .examined()
        .says("fail", &["look-up of verifiers", "service-account.sql"]);
}

#[test]
fn a_pg_hba_conf_that_shuts_out_clients_is_found_with_its_line() {
    let server = Postgres::start(&ServerOptions {
        hba: Some("host postgres trunkline 127.0.0.0/8 scram-sha-256".to_owned()),
        ..ServerOptions::default()
    });
    let mut sound = Sound::new();
    sound.clusters = server.yaml();
    let report = sound.examined();
    report.says(
        "fail",
        &[
            "pg_hba.conf for clients",
            "hostssl app app 127.",
            "scram-sha-256",
            "patronictl edit-config",
        ],
    );
    server.set_hba("host all trunkline 127.0.0.0/8 scram-sha-256\nhost all all 127.0.0.0/8 trust");
    let trusted = || {
        sound
            .examined()
            .complaints()
            .iter()
            .any(|finding| finding["found"].to_string().contains("trusts"))
    };
    eventually("the server has its rules", Duration::from_secs(20), trusted);
    sound
        .examined()
        .says("warn", &["the server trusts app to app", "in place of trust"]);
    server.sql("GRANT SELECT ON pg_hba_file_rules TO trunkline; GRANT EXECUTE ON FUNCTION pg_hba_file_rules() TO trunkline");
    server.set_hba("host all trunkline 127.0.0.0/8 scram-sha-256\nhost all all 127.0.0.0/8 scram");
    sound.examined().says(
        "warn",
        &[
            "pg_hba.conf",
            "line 4",
            "invalid authentication method",
            "correct the line",
        ],
    );
    // What clients need of the service account's own line is told as well.
    server.set_hba("host all app 127.0.0.0/8 scram-sha-256");
    let shut = || sound.examined().text.contains("pg_hba.conf needs");
    eventually("the account is shut out", Duration::from_secs(20), shut);
    sound
        .examined()
        .says("fail", &["login as trunkline", "hostssl postgres trunkline 127."]);
}

#[test]
fn settings_of_a_server_that_clash_with_the_configuration_are_found() {
    let server = Postgres::start(&ServerOptions {
        conf: "max_connections = 14\nsuperuser_reserved_connections = 12\nidle_session_timeout = '1min'\n\
               idle_in_transaction_session_timeout = '10s'\nstatement_timeout = '20s'\n\
               authentication_timeout = '1s'\nmax_wal_senders = 2\n"
            .to_owned(),
        ..ServerOptions::default()
    });
    server.sql("ALTER SYSTEM SET default_transaction_read_only = on");
    server.sql("SELECT pg_reload_conf()");
    let is_read = || server.sql("SHOW default_transaction_read_only") == "on";
    eventually("the server has its settings", Duration::from_secs(20), is_read);
    let other = Postgres::start(&ServerOptions {
        version_18: true,
        ..ServerOptions::default()
    });
    let dead = fresh_address();
    let mut sound = Sound::new();
    sound.clusters = fixed_list(&[&server, &other], "{sslmode: require}").replace(
        "servers: [",
        &format!("servers: [{{name: dead, host: {dead}, port: 5432}}, "),
    );
    sound.routes = "routes:\n  read-write: {targets: [leader], pool: {mode: transaction, max_connections: 50, idle_timeout: 10m, \
                    query_timeout: 1m, idle_transaction_timeout: 1m}}\n  read-only: {targets: [replica]}\n"
        .to_owned();
    let report = sound.examined();
    report.says("warn", &["idle_session_timeout", "after 1m", "10m", "below it"]);
    report.says(
        "warn",
        &["idle_in_transaction_session_timeout", "is 10s", "has no effect"],
    );
    report.says(
        "warn",
        &["statement_timeout", "is 20s", "query_timeout", "has no effect"],
    );
    report.says("warn", &["default_transaction_read_only", "begin read-only"]);
    report.says(
        "warn",
        &["authentication_timeout", "a login 1s", "server.connect_timeout"],
    );
    report.says("warn", &["s1 at", "max_connections", "raise max_connections"]);
    report.says("warn", &["s1 at", "connections in use", "pg_stat_activity"]);
    report.says(
        "fail",
        &["of different clusters", "on s1", "on s2", "pg_controldata"],
    );
    report.says("warn", &["different major versions", "15 on s1", "18 on s2"]);
    report.says("fail", &["dead at", "is PostgreSQL running there"]);
}

#[test]
fn directories_of_ldap_lines_are_asked() {
    let directory = Slapd::start();
    let (server, base) = (directory.server(), format!("ldapbasedn=\"{BASE}\""));
    let dead = fresh_address();
    let mut sound = Sound::new();
    sound.extra += "auth: {hba_file: hba, ldap_ca_file: ldap.crt, server_credentials: [{users: all, password: client}]}\n";
    fs::copy(directory.ca_file(), sound.file("ldap.crt")).unwrap();
    let secure = format!(
        "ldapserver={} ldapport={} ldapscheme=ldaps",
        directory.host, directory.secure
    );
    let lines = [
        format!("ldapserver=\"{server}\" {base}"),
        format!("{secure} {base}"),
        format!("ldapserver=\"{server}\" ldapprefix=\"uid=\" ldapsuffix=\",{BASE}\""),
        format!("ldapserver={dead} {base}"),
        format!("ldapserver=\"{server}\" {base} ldapbinddn=\"{ROUTER}\" ldapbindpasswd=wrong"),
        format!("ldapserver=\"{server}\" ldapbasedn=\"dc=nowhere\""),
    ];
    let rules = lines.map(|line| format!("hostssl all all all ldap {line}\n"));
    secret(sound.dir.path(), "hba", &rules.concat());
    let report = sound.examined();
    let line = |number: usize| format!("hba:{number}: ");
    report.says("ok", &[&line(1), &server, "lets the router search"]);
    report.says("ok", &[&line(2), "lets the router search"]);
    report.says("ok", &[&line(3), "no login was tried"]);
    report.says("fail", &[&line(4), &dead.to_string(), "does a firewall let"]);
    report.says(
        "fail",
        &[
            &line(5),
            "bind as ldapbinddn",
            "correct ldapbinddn and ldapbindpasswd",
        ],
    );
    report.says("fail", &[&line(6), "search", "correct ldapbasedn"]);
    assert!(!report.text.contains("wrong"), "{}", report.text);
    // An authority that did not sign the directory's certificate.
    fs::copy(sound.file("servers.crt"), sound.file("ldap.crt")).unwrap();
    sound
        .examined()
        .says("fail", &[&line(2), "TLS failed", "check auth.ldap_ca_file"]);
}

#[test]
fn peers_are_asked_each() {
    let secret_file = |dir: &Path, text: &str| secret(dir, "peers-secret", text).display().to_string();
    let keys = tempfile::tempdir().unwrap();
    let own = secret_file(keys.path(), "the secret of the peers, long enough");
    let peers = |file: &str, at: &str| {
        format!("peers: {{secret_file: {file}, members: [{{name: other, address: \"{at}\"}}]}}\n")
    };
    let there = Router::before(
        Cluster::shared(),
        Options {
            extra: peers(&own, "127.0.0.1:1"),
            ..Options::default()
        },
    );
    let with = |file: &str, at: String| {
        let mut sound = Sound::new();
        sound.extra += &peers(file, &at);
        sound.examined()
    };
    let report = with(&own, format!("{}:6432", there.address));
    report.says("ok", &["peer other", "with the same secret"]);
    report.says("ok", &["peer other: cluster main", "it serves the same one"]);
    assert_eq!(report.complaints(), Vec::<&Value>::new(), "{}", report.text);
    let nobody = format!("{}:6432", fresh_address());
    with(&own, nobody).says("warn", &["peer other", "no router listens there now", "start it"]);
    let strangers = tempfile::tempdir().unwrap();
    let another = secret_file(strangers.path(), "another secret of peers, long enough");
    let report = with(&another, format!("{}:6432", there.address));
    report.says("fail", &["peer other", "hung up", "secret_file"]);
    with(&own, format!("{}:6434", there.address)).says("fail", &["peer other"]);
    let pair = Pair18::start();
    let elsewhere = Router::before(
        Cluster::shared(),
        Options {
            clusters: Some(pair.yaml()),
            extra: peers(&own, "127.0.0.1:1"),
            ..Options::default()
        },
    );
    with(&own, format!("{}:6432", elsewhere.address)).says(
        "warn",
        &[
            "peer other: cluster main",
            "serves no cluster with the system identifier",
            "compare the endpoints",
        ],
    );
}

#[test]
fn places_that_do_not_answer_delay_it_once() {
    // Nobody accepts there: the connections stay in the queue.
    let silent: Vec<TcpListener> = (0..3)
        .map(|_| TcpListener::bind((fresh_address(), 5432)).unwrap())
        .collect();
    let mut sound = Sound::new();
    let servers: Vec<String> = silent
        .iter()
        .enumerate()
        .map(|(index, silent)| {
            let ip = silent.local_addr().unwrap().ip();
            format!("{{name: s{index}, host: {ip}, port: 5432}}")
        })
        .collect();
    sound.clusters = format!(
        "clusters:\n  main:\n    servers: [{}]\n    server_tls: {{sslmode: require}}\n    \
         service_account: {{user: trunkline, password_file: service-password, timeout: 2s}}\n",
        servers.join(", ")
    );
    let path = sound.write();
    let begun = Instant::now();
    let said = output(
        Command::new(env!("CARGO_BIN_EXE_trunkline"))
            .args(["doctor", "-c"])
            .arg(&path),
    );
    let took = begun.elapsed();
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    assert_eq!(text.matches("fail  cluster main: s").count(), 3, "{text}");
    // One after the other they would take six seconds.
    assert!(took < Duration::from_millis(5500), "{took:?}: {text}");
}
