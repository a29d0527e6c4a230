//! What the router has and how it is set, as the console's views and HTTP show it.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::cancel::SECRET;
use crate::cluster::postgres::{Options as ServerOptions, Postgres};
use crate::cluster::{Certificates, Options, Router, eventually, fresh_address, secret, succeed};

const TOKEN: &str = "a-token-of-24-characters";

struct Setting {
    _server: Postgres,
    router: Router,
    peer: Option<Router>,
    certificates: Certificates,
    dir: tempfile::TempDir,
}

/// Before one server, with a peer.
fn setting() -> Setting {
    let server = Postgres::start(&ServerOptions::default());
    server.sql("CREATE ROLE admin LOGIN PASSWORD 'admin'");
    let dir = tempfile::tempdir().unwrap();
    let certificates = Certificates::make(&["router.example".to_owned()]);
    let token = secret(dir.path(), "token", TOKEN);
    let peers = secret(dir.path(), "peers", SECRET);
    let addresses = [fresh_address(), fresh_address()];
    let launch = |number: usize| {
        let other: Ipv4Addr = addresses[1 - number];
        let options = Options {
            clusters: Some(server.yaml()),
            tls: Some(certificates.yaml()),
            http: format!("token_file: {}", token.display()),
            listeners: Some(
                "  - {name: rw, address: \"{address}:6432\", route: read-write, max_clients: 40, allow: [127.0.0.0/8]}\n  \
                 - {name: ro, address: \"{address}:6433\", route: read-only, tls: off}\n"
                    .to_owned(),
            ),
            extra: format!(
                "console: {{users: [admin]}}\nlimits: {{max_clients: 77}}\nworkers: 1\n\
                 peers: {{secret_file: {}, members: [{{name: other, address: \"{other}:6432\"}}]}}\n",
                peers.display(),
            ),
            address: Some(addresses[number]),
            ..Options::default()
        };
        Router::launch(None, options)
    };
    let (router, peer) = (launch(0), launch(1));
    router.await_read_write();
    Setting {
        _server: server,
        router,
        peer: Some(peer),
        certificates,
        dir,
    }
}

impl Setting {
    fn sql(&self, sql: &str) -> String {
        let dsn = self
            .router
            .dsn(6432, "dbname=trunkline user=admin password=admin");
        let told = succeed(
            Command::new("psql")
                .args(["-XAt", "-P", "null=NULL", "-c", sql])
                .arg(dsn),
        );
        told.trim().to_owned()
    }

    fn look(&self, path: &str) -> Value {
        let (status, body) = self.router.http(path).unwrap();
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }
}

#[test]
fn listeners_say_where_they_lead_and_how_many_clients_they_have() {
    let setting = setting();
    let address = setting.router.address;
    let client = || {
        let dsn = setting.router.dsn(6432, "");
        let mut psql = Command::new("psql");
        let psql = psql.args(["-XAtq", "-c", "SELECT pg_sleep(600)"]).arg(dsn);
        psql.spawn().unwrap()
    };
    let both = [client(), client()];
    // Whoever asks at the console counts, too.
    let clients = || setting.sql("SELECT clients FROM listeners WHERE name = 'rw'");
    eventually("the clients count", Duration::from_secs(20), || clients() == "3");
    assert_eq!(
        setting.sql(
            "SELECT name, protocol, address, port, route, cluster, access, targets, tls, state, console, max_clients, allow \
             FROM listeners ORDER BY port"
        ),
        format!(
            "rw|postgres|{address}|6432|read-write|main|read-write|leader|optional|open|trunkline|40|{{127.0.0.0/8}}\n\
             ro|postgres|{address}|6433|read-only|main|read-only|replica|off|open|trunkline|NULL|{{}}\n\
             http|http|{address}|6434|NULL|NULL|NULL|NULL|off|open|NULL|NULL|{{}}"
        )
    );
    assert_eq!(
        setting.sql("SELECT name, scope, \"limit\", used FROM limits WHERE key IN ('limits.max_clients', 'listeners[0].max_clients') AND name = 'clients'"),
        "clients|router|77|3\nclients|listener rw|40|3"
    );
    assert_eq!(
        setting.sql("SELECT scope, used FROM limits WHERE key = 'limits.per_user'"),
        "user app, which has the most|2"
    );
    let files = setting.sql("SELECT used > 10 AND used < \"limit\" FROM limits WHERE name = 'open files'");
    assert_eq!(files, "t");
    let json = setting.look("/api/v1/listeners");
    assert_eq!(
        (&json[0]["clients"], &json[0]["max_clients"]),
        (&2.into(), &40.into())
    );
    let token = format!("authorization: Bearer {TOKEN}");
    let disable = format!("http://{address}:6434/api/v1/routes/read-only/disable");
    succeed(Command::new("curl").args(["-sf", "-X", "POST", "-H", &token, &disable]));
    assert_eq!(
        setting.sql("SELECT state FROM listeners WHERE name = 'ro'"),
        "disabled"
    );
    for mut client in both {
        client.kill().unwrap();
        client.wait().unwrap();
    }
    eventually("the clients have left", Duration::from_secs(20), || {
        clients() == "1"
    });
}

#[test]
fn certificates_are_those_in_use_and_openssl_says_the_same() {
    let setting = setting();
    let of_file = |field: &str| {
        let mut openssl = Command::new("openssl");
        openssl.args(["x509", "-noout", field, "-in"]);
        if field == "-fingerprint" {
            openssl
                .arg(setting.certificates.file("server.crt"))
                .arg("-sha256");
        } else {
            openssl.arg(setting.certificates.file("server.crt"));
        }
        let said = succeed(&mut openssl);
        said.trim().split_once('=').unwrap().1.to_owned()
    };
    let shown =
        || setting.sql("SELECT fingerprint FROM certificates WHERE used_for = 'clients' AND kind = 'own'");
    let before = shown();
    assert_eq!(before, of_file("-fingerprint"));
    let row = "SELECT kind, key, number, listeners, names, serial, issuer, not_after > now(), days_left > 0 FROM certificates \
               WHERE used_for = 'clients'";
    assert_eq!(
        setting.sql(row),
        format!(
            "own|tls.certificates[0].cert_file|1|{{rw}}|{{router.example}}|{}|CN=test CA|t|t",
            of_file("-serial")
        )
    );
    assert_eq!(
        setting.sql("SELECT kind, key, cluster FROM certificates WHERE used_for = 'servers'"),
        "authority|clusters.main.server_tls.sslrootcert|main"
    );
    // A new one counts without a reload of the configuration.
    let new = Certificates::make(&["router.example".to_owned()]);
    for name in ["server.crt", "server.key"] {
        fs::copy(new.file(name), setting.certificates.file(name)).unwrap();
    }
    eventually("the new certificate is in use", Duration::from_secs(20), || {
        shown() == of_file("-fingerprint")
    });
    assert_ne!(shown(), before);
    // A broken one does not.
    let in_use = shown();
    fs::write(setting.certificates.file("server.crt"), "no certificate").unwrap();
    setting.router.await_log(&["the old version stays in service"]);
    assert_eq!(shown(), in_use);
    let json = setting.look("/api/v1/certificates");
    assert_eq!(json[0]["fingerprint"], in_use);
    assert!(!json.to_string().contains("PRIVATE"));
}

#[test]
fn the_configuration_shows_what_is_in_effect_and_where_it_is_set() {
    let setting = setting();
    let path = setting.router.dir().join("trunkline.yaml");
    let text = fs::read_to_string(&path).unwrap();
    let line = |part: &str| text.lines().position(|line| line.contains(part)).unwrap() + 1;
    let rows = || {
        setting.sql(
            "SELECT key, value, \"default\", source, line, after_restart FROM config \
             WHERE key IN ('limits.max_clients', 'limits.per_user', 'workers') ORDER BY key",
        )
    };
    let (limits, workers) = (line("limits:"), line("workers:"));
    assert_eq!(
        rows(),
        format!(
            "limits.max_clients|77|5000|file|{limits}|NULL\n\
             limits.per_user|0|0|default|NULL|NULL\n\
             workers|1|half of the processors, at least 1|file|{workers}|NULL"
        )
    );
    let changed = text
        .replace("max_clients: 77", "max_clients: 78")
        .replace("workers: 1", "workers: 2");
    fs::write(&path, format!("# One line more\n{changed}")).unwrap();
    assert!(rows().contains("|77|"), "what is not loaded does not count");
    setting.router.signal("HUP");
    eventually("the reload is applied", Duration::from_secs(20), || {
        rows().contains("|78|")
    });
    let (limits, workers) = (limits + 1, workers + 1);
    assert_eq!(
        rows(),
        format!(
            "limits.max_clients|78|5000|file|{limits}|NULL\n\
             limits.per_user|0|0|default|NULL|NULL\n\
             workers|1|half of the processors, at least 1|file|{workers}|2"
        )
    );
    let all = setting.sql("SELECT * FROM config");
    assert!(all.contains(&setting.dir.path().join("token").display().to_string()));
    assert!(!all.contains(TOKEN) && !all.contains(SECRET));
    let refused = setting.router.http("/api/v1/config").unwrap();
    assert_eq!(refused.0, 401, "{}", refused.1);
    let url = format!("http://{}:6434/api/v1/config", setting.router.address);
    let token = format!("authorization: Bearer {TOKEN}");
    let json = succeed(Command::new("curl").args(["-sf", "-H", &token, &url]));
    let json: Value = serde_json::from_str(&json).unwrap();
    let known = json.as_array().unwrap().iter();
    let max = known
        .clone()
        .find(|setting| setting["key"] == "limits.max_clients");
    assert_eq!(max.unwrap()["value"], "78");
}

#[test]
fn peers_are_asked_when_they_are_shown() {
    let mut setting = setting();
    let rows = |setting: &Setting| {
        setting.sql("SELECT name, port, state, protocol_version, error IS NULL, seen IS NULL FROM peers")
    };
    assert_eq!(rows(&setting), "other|6432|up|3|t|f");
    drop(setting.peer.take());
    eventually("the peer is down", Duration::from_secs(20), || {
        rows(&setting) == "other|6432|down|NULL|f|f"
    });
    let json = setting.look("/api/v1/peers");
    assert_eq!(json[0]["state"], "down");
    assert!(json[0]["error"].as_str().unwrap().contains("refused"), "{json}");
}
