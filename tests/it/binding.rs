//! Channel binding, with several drivers and certificates; men in the middle on both sides of the
//! router; and what who does not get in may learn from that.

mod middle;
mod strangers;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use self::middle::{Middle, Plan, Play};
use crate::cluster::postgres::{self, Postgres, psql_18};
use crate::cluster::{Certificates, Cluster, Options, Router, eventually, output, secret};
use crate::drivers::cache;

/// More than a test needs failed logins.
pub(crate) const UNLIMITED: &str = "rate_limit: {failures: 0}";

/// `NAME.crt`, signed by its own key, so that the key's kind decides the hash; and `NAME.key`.
fn leaf(dir: &Path, name: &str, names: &[&str], algorithm: &'static rcgen::SignatureAlgorithm) {
    let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let leaf = rcgen::CertificateParams::new(names)
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let put = |file: &str, text: &str| {
        secret(dir, &format!("{file}.new"), text);
        fs::rename(dir.join(format!("{file}.new")), dir.join(file)).unwrap();
    };
    // A pair that does not fit yet is left alone.
    put(&format!("{name}.key"), &key.serialize_pem());
    put(&format!("{name}.crt"), &leaf.pem());
}

fn entry(dir: &Path, name: &str) -> String {
    let dir = dir.display();
    format!("{{cert_file: {dir}/{name}.crt, key_file: {dir}/{name}.key}}")
}

fn before_shared(certificates: &[String]) -> Router {
    let options = Options {
        tls: Some(format!("tls: {{certificates: [{}]}}\n", certificates.join(", "))),
        extra: format!("auth: {{{UNLIMITED}}}\n"),
        ..Options::default()
    };
    Router::before(Cluster::shared(), options)
}

fn says(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `psql` with the libpq of PostgreSQL 15, and with that of 18.
fn both() -> [Command; 2] {
    [Command::new("psql"), psql_18()]
}

fn ask(mut psql: Command, router: &Router, extra: &str) -> Output {
    output(psql.args(["-XAtqc", "SELECT 'in'"]).arg(router.dsn(6432, extra)))
}

/// Reads the lines of sessions one by one; the test must open them one by one.
struct Sessions<'a> {
    router: &'a Router,
    seen: usize,
}

impl<'a> Sessions<'a> {
    fn of(router: &'a Router) -> Self {
        Self { router, seen: 0 }
    }

    /// Waits for the end of the next one; whether it was bound.
    fn next_is_bound(&mut self) -> bool {
        let mut line = None;
        eventually("a session's line", Duration::from_secs(20), || {
            let log = self.router.log();
            line = log
                .lines()
                .filter(|line| line.contains("session ended"))
                .nth(self.seen)
                .map(str::to_owned);
            line.is_some()
        });
        self.seen += 1;
        let line = line.unwrap();
        let (yes, no) = (
            line.contains("channel_binding=\"yes\""),
            line.contains("channel_binding=\"no\""),
        );
        assert!(yes != no, "{line}");
        yes
    }

    /// Runs a client that must get in.
    fn is_bound(&mut self, command: &mut Command) -> bool {
        let done = output(command);
        assert!(
            done.status.success() && String::from_utf8_lossy(&done.stdout).contains("in"),
            "{command:?}: {done:?}\n{}",
            self.router.log()
        );
        self.next_is_bound()
    }

    fn psql_is_bound(&mut self, mut psql: Command, extra: &str) -> bool {
        let dsn = self.router.dsn(6432, extra);
        self.is_bound(psql.args(["-XAtqc", "SELECT 'in'"]).arg(dsn))
    }
}

// --- clients -------------------------------------------------------------------------------------

fn psycopg(router: &Router, mode: &str) -> Command {
    let mut command = Command::new(cache().join("drivers-python/bin/python"));
    let program =
        "import psycopg, sys\nprint(psycopg.connect(sys.argv[1]).execute(\"SELECT 'in'\").fetchone()[0])";
    command
        .args(["-c", program])
        .arg(router.dsn(6432, &format!("channel_binding={mode}")));
    command
}

/// It speaks SCRAM-SHA-256 only, and says that it cannot bind (`n`).
fn asyncpg(router: &Router) -> Command {
    let mut command = Command::new(cache().join("drivers-python/bin/python"));
    let program = "import asyncio, asyncpg, sys\n\
                   async def main():\n    \
                       c = await asyncpg.connect(host=sys.argv[1], port=6432, user='app', password='app', database='app', \
                   ssl='require')\n    \
                       print(await c.fetchval(\"SELECT 'in'\"))\n    \
                       await c.close()\n\
                   asyncio.run(main())";
    command.args(["-c", program]).arg(router.address.to_string());
    command
}

/// It binds where it is told that it may (`enableChannelBinding`), and the server offers it.
fn node_pg(router: &Router, enable: bool) -> Command {
    let mut command = Command::new("node");
    let program = format!(
        "const {{Client}} = require('pg');\n\
         const client = new Client({{host: '{}', port: 6432, user: 'app', password: 'app', database: 'app', \
         ssl: {{rejectUnauthorized: false}}, enableChannelBinding: {enable}}});\n\
         client.connect().then(() => client.query(\"SELECT 'in' AS x\")).then((r) => {{ console.log(r.rows[0].x); \
         return client.end(); }}).catch((error) => {{ console.error(error); process.exit(1); }});",
        router.address
    );
    command
        .args(["-e", &program])
        .env("NODE_PATH", cache().join("drivers-node/node_modules"));
    command
}

/// The Debian version, 42.5, has no channel binding: it takes SCRAM-SHA-256 from the list, and says
/// `n`.
fn pgjdbc(router: &Router, dir: &Path) -> Command {
    let program = "public class Bound { public static void main(String[] a) throws Exception {\n\
                   try (var c = java.sql.DriverManager.getConnection(a[0], \"app\", \"app\");\n\
                   var r = c.createStatement().executeQuery(\"SELECT 'in'\")) { r.next(); System.out.println(r.getString(1)); } } }";
    let file = dir.join("Bound.java");
    fs::write(&file, program).unwrap();
    let mut command = Command::new("java");
    command
        .args(["-XX:TieredStopAtLevel=1", "-cp", "/usr/share/java/postgresql.jar"])
        .arg(file)
        .arg(format!(
            "jdbc:postgresql://{}:6432/app?sslmode=require",
            router.address
        ));
    command
}

/// Every driver binds that can, to whatever certificate is in service; the others get in without.
#[test]
fn every_driver_with_every_kind_of_certificate_while_the_file_changes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let kinds = [
        ("rsa-256.example", &rcgen::PKCS_RSA_SHA256),
        ("rsa-512.example", &rcgen::PKCS_RSA_SHA512),
        ("ecdsa-256.example", &rcgen::PKCS_ECDSA_P256_SHA256),
        ("ecdsa-384.example", &rcgen::PKCS_ECDSA_P384_SHA384),
    ];
    leaf(dir, "server", &["first.example"], &rcgen::PKCS_ECDSA_P256_SHA256);
    let router = before_shared(&[entry(dir, "server")]);
    let mut sessions = Sessions::of(&router);
    for (name, algorithm) in kinds {
        leaf(dir, "server", &[name], algorithm);
        router.await_log(&["certificate loaded", name]);
        for (client, bound) in [("require", true), ("prefer", true), ("disable", false)] {
            for psql in both() {
                let extra = format!("channel_binding={client}");
                assert_eq!(sessions.psql_is_bound(psql, &extra), bound, "{name} {client}");
            }
            let is_bound = sessions.is_bound(&mut psycopg(&router, client));
            assert_eq!(is_bound, bound, "{name} {client}: psycopg");
        }
        assert!(sessions.is_bound(&mut node_pg(&router, true)), "{name}");
    }
    assert!(!sessions.is_bound(&mut node_pg(&router, false)));
    assert!(!sessions.is_bound(&mut asyncpg(&router)));
    assert!(!sessions.is_bound(&mut pgjdbc(&router, dir)));
}

/// Ed25519 has no hash to bind with (docs/protocol.md, case 21): -PLUS is not offered, and only a
/// client that insists on it is refused.
#[test]
fn with_ed25519_nothing_is_offered() {
    let dir = tempfile::tempdir().unwrap();
    leaf(dir.path(), "server", &["ed25519.example"], &rcgen::PKCS_ED25519);
    let router = before_shared(&[entry(dir.path(), "server")]);
    let mut sessions = Sessions::of(&router);
    for psql in both() {
        let done = ask(psql, &router, "channel_binding=require");
        assert!(
            !done.status.success()
                && says(&done).contains("channel binding is required, but server did not offer"),
            "{done:?}"
        );
    }
    let done = output(&mut psycopg(&router, "require"));
    assert!(
        !done.status.success() && says(&done).contains("channel binding is required"),
        "{done:?}"
    );
    for psql in both() {
        // It says `y`: it could, and was offered nothing.
        assert!(!sessions.psql_is_bound(psql, "channel_binding=prefer"));
    }
    assert!(!sessions.is_bound(&mut psycopg(&router, "prefer")));
    assert!(!sessions.is_bound(&mut node_pg(&router, true)), "`y` as well");
    assert!(!sessions.is_bound(&mut asyncpg(&router)));
}

#[test]
fn with_several_certificates_the_one_shown_is_bound() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    leaf(dir, "first", &["first.example"], &rcgen::PKCS_RSA_SHA256);
    leaf(dir, "second", &["second.example"], &rcgen::PKCS_ECDSA_P384_SHA384);
    leaf(dir, "third", &["third.example"], &rcgen::PKCS_ED25519);
    let router = before_shared(&[entry(dir, "first"), entry(dir, "second"), entry(dir, "third")]);
    let mut sessions = Sessions::of(&router);
    let extra = |name: &str, file: &str, mode: &str| {
        // verify-full: libpq saw that very certificate.
        format!(
            "host={name}.example hostaddr={} sslmode=verify-full sslrootcert={} channel_binding={mode}",
            router.address,
            dir.join(format!("{file}.crt")).display()
        )
    };
    for name in ["first", "second"] {
        for psql in both() {
            assert!(
                sessions.psql_is_bound(psql, &extra(name, name, "require")),
                "{name}"
            );
        }
    }
    for psql in both() {
        assert!(!sessions.psql_is_bound(psql, &extra("third", "third", "prefer")));
    }
    // Unknown names get the first.
    let unknown = format!(
        "host=other.example hostaddr={} sslmode=verify-ca sslrootcert={} channel_binding=require",
        router.address,
        dir.join("first.crt").display()
    );
    assert!(sessions.psql_is_bound(psql_18(), &unknown));
}

#[test]
fn without_tls_nothing_is_bound() {
    let router = Router::shared();
    for psql in both() {
        let done = ask(psql, &router, "sslmode=disable channel_binding=require");
        assert!(
            !done.status.success() && says(&done).contains("channel binding required, but SSL not in use"),
            "{done:?}"
        );
    }
    let mut sessions = Sessions::of(&router);
    assert!(!sessions.psql_is_bound(Command::new("psql"), "sslmode=disable channel_binding=prefer"));
}

// --- between client and router -------------------------------------------------------------------

/// Somebody between the clients and `router`, with a certificate of his own.
fn before_router(router: &Router, play: Play) -> Middle {
    Middle::start(Plan {
        own: Some(Certificates::make(&["localhost".to_owned()])),
        port: 6432,
        upstream: (router.address, 6432).into(),
        peer: Some((Certificates::shared().file("ca.crt"), "localhost".to_owned())),
        play,
    })
}

fn refused(psql: Command, router: &Router, middle: &Middle, extra: &str, words: &str) {
    let done = ask(psql, router, &format!("host={} {extra}", middle.address));
    assert!(
        !done.status.success() && says(&done).contains(words),
        "{extra}: {done:?}\n{}",
        router.log()
    );
}

fn unlimited() -> Router {
    let options = Options {
        extra: format!("auth: {{{UNLIMITED}}}\n"),
        ..Options::default()
    };
    Router::before(Cluster::shared(), options)
}

#[test]
fn who_passes_a_bound_login_on_is_refused_by_the_router() {
    let router = unlimited();
    let middle = before_router(&router, Play::Pass);
    for mode in ["prefer", "require"] {
        for psql in both() {
            let extra = format!("channel_binding={mode}");
            refused(
                psql,
                &router,
                &middle,
                &extra,
                "SCRAM channel binding check failed",
            );
        }
    }
    router.await_log(&["login refused", "user=app", "SCRAM channel binding check failed"]);
    assert_eq!(
        router.metric("trunkline_logins_refused_total{reason=\"protocol\"}"),
        4.0
    );
    // He is not seen by who does not bind: it was the binding that stopped him.
    let done = ask(
        psql_18(),
        &router,
        &format!("host={} channel_binding=disable", middle.address),
    );
    assert!(done.status.success(), "{done:?}");
}

#[test]
fn who_strips_plus_is_refused_by_the_client_that_requires_it_and_else_by_the_router() {
    let router = unlimited();
    let middle = before_router(&router, Play::Strip);
    for psql in both() {
        refused(
            psql,
            &router,
            &middle,
            "channel_binding=require",
            "channel binding is required, but server did not offer",
        );
    }
    assert!(!router.log().contains("login refused"), "the client refused");
    for psql in both() {
        refused(
            psql,
            &router,
            &middle,
            "channel_binding=prefer",
            "SCRAM channel binding negotiation error",
        );
    }
    router.await_log(&["login refused", "SCRAM channel binding negotiation error"]);
}

/// He also changes what the client says of itself, `y` to `n`: its proof is over what it has said.
#[test]
fn who_strips_plus_and_forges_the_flag_spoils_the_proof() {
    let router = unlimited();
    let middle = before_router(&router, Play::StripAndForge);
    for psql in both() {
        refused(
            psql,
            &router,
            &middle,
            "channel_binding=prefer",
            "password authentication failed for user \"app\"",
        );
    }
    let done = ask(
        psql_18(),
        &router,
        &format!("host={} channel_binding=disable", middle.address),
    );
    assert!(done.status.success(), "nothing to forge: {done:?}");
}

#[test]
fn who_denies_tls_gets_no_further_than_the_rules() {
    let dir = tempfile::tempdir().unwrap();
    let hba = dir.path().join("hba.conf");
    fs::write(&hba, "hostssl all all all scram-sha-256\n").unwrap();
    let options = Options {
        extra: format!("auth: {{hba_file: {}, {UNLIMITED}}}\n", hba.display()),
        ..Options::default()
    };
    let router = Router::before(Cluster::shared(), options);
    let denies = |peer| {
        Middle::start(Plan {
            own: None,
            port: 6432,
            upstream: (router.address, 6432).into(),
            peer,
            play: Play::Pass,
        })
    };
    let plain = denies(None);
    for psql in both() {
        refused(
            psql,
            &router,
            &plain,
            "sslmode=prefer",
            "no pg_hba.conf entry for host",
        );
    }
    router.await_log(&["login refused", "no authentication rule matches"]);
    for psql in both() {
        refused(
            psql,
            &router,
            &plain,
            "sslmode=require",
            "server does not support SSL",
        );
    }
    // He has TLS with the router for himself: the list gives him away, and binding cannot be had
    // from him.
    let encrypted = denies(Some((
        Certificates::shared().file("ca.crt"),
        "localhost".to_owned(),
    )));
    for psql in both() {
        refused(
            psql,
            &router,
            &encrypted,
            "sslmode=prefer",
            "over a non-SSL connection",
        );
    }
    for psql in both() {
        let extra = "sslmode=prefer channel_binding=require";
        refused(
            psql,
            &router,
            &encrypted,
            extra,
            "channel binding required, but SSL not in use",
        );
    }
}

// --- between router and server -------------------------------------------------------------------

/// A server, and somebody before it.
fn behind(
    version_18: bool,
    hba: &str,
    own: impl FnOnce(&Postgres) -> Certificates,
    play: Play,
) -> (Postgres, Middle) {
    let server = Postgres::start(&postgres::Options {
        version_18,
        hba: Some(hba.to_owned()),
        ..postgres::Options::default()
    });
    let ca = server.certificates.file("ca.crt");
    let middle = Middle::start(Plan {
        own: Some(own(&server)),
        port: Postgres::PORT,
        upstream: (server.address, Postgres::PORT).into(),
        peer: Some((ca, "server.example".to_owned())),
        play,
    });
    (server, middle)
}

/// A router that takes `middle` for the server.
fn before_middle(server: &Postgres, middle: &Middle, binding: &str) -> Router {
    before_middle_with(server, middle, &format!("channel_binding: {binding}"))
}

fn before_middle_with(server: &Postgres, middle: &Middle, tls: &str) -> Router {
    let yaml = server.yaml_with(&format!("{{sslmode: require, {tls}}}")).replace(
        &format!("host: {}", server.address),
        &format!("host: {}", middle.address),
    );
    Router::launch(
        None,
        Options {
            clusters: Some(yaml),
            extra: format!("auth: {{{UNLIMITED}}}\n"),
            ..Options::default()
        },
    )
}

fn app_is_refused(router: &Router, words: &[&str]) {
    let done = ask(psql_18(), router, "");
    let text = says(&done);
    assert!(
        !done.status.success() && words.iter().all(|word| text.contains(word)),
        "{words:?}: {done:?}\n{}",
        router.log()
    );
}

const NOT_BOUND: &[&str] = &[
    "could not bind its login at server \"s1\" to the TLS connection",
    "server_tls.channel_binding",
];

#[test]
fn who_strips_a_servers_plus_is_refused_by_the_router_that_requires_it_and_else_by_the_server() {
    strips_a_servers_plus(false);
}

#[test]
fn who_strips_the_plus_of_postgresql_18_is_refused_as_well() {
    strips_a_servers_plus(true);
}

/// He has the server's own key, so that only the list tells; and lets the router's account through.
fn strips_a_servers_plus(version_18: bool) {
    let stolen = |server: &Postgres| server.certificates.copy();
    let (server, middle) = behind(
        version_18,
        "hostssl all all 127.0.0.0/8 scram-sha-256",
        stolen,
        Play::StripFor("app"),
    );
    let router = before_middle(&server, &middle, "require");
    router.await_read_write();
    app_is_refused(&router, NOT_BOUND);
    router.await_log(&["no server for the session", "could not bind its login", "s1"]);
    assert!(!server.log().contains("channel binding"), "it was the router");

    let router = before_middle(&server, &middle, "prefer");
    router.await_read_write();
    app_is_refused(&router, NOT_BOUND);
    assert!(
        server.log().contains("SCRAM channel binding negotiation error"),
        "{}",
        server.log()
    );
    let router = before_middle(&server, &middle, "disable");
    router.await_read_write();
    assert_eq!(router.psql(6432, "SELECT 'in'"), "in", "nothing is noticed");
}

/// The server's certificate is public, and channel binding is to it: what counts is that its key
/// signs the handshake.
#[test]
fn who_has_the_servers_certificate_and_not_its_key_gets_neither_look_ups_nor_sessions() {
    let mut key = None;
    let stolen = |server: &Postgres| {
        let own = server.certificates.copy();
        key = Some(own.file("server.key"));
        own
    };
    let hba = "hostssl all all 127.0.0.0/8 scram-sha-256";
    let (server, middle) = behind(false, hba, stolen, Play::Pass);
    let key = key.unwrap();
    let genuine = fs::read(&key).unwrap();
    let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
    for binding in ["require", "prefer"] {
        fs::write(&key, &genuine).unwrap();
        let router = before_middle(&server, &middle, binding);
        router.await_read_write();
        assert_eq!(router.psql(6432, "SELECT 'in'"), "in");
        // The standing connections stay; the next session makes one.
        fs::write(&key, &other).unwrap();
        app_is_refused(
            &router,
            &["the router did not accept the certificate of server \"s1\""],
        );
        router.await_log(&["s1 is down", "its key did not sign the handshake"]);
        // A router that begins says nothing to this one: no probe, no look-up.
        let router = before_middle(&server, &middle, binding);
        router.await_log(&["WARN", "s1", "its key did not sign the handshake"]);
        app_is_refused(&router, &["s1 is down"]);
    }
}

#[test]
fn who_shows_the_router_another_certificate_is_refused_by_the_server() {
    shows_another_certificate(false);
}

#[test]
fn who_shows_the_router_another_certificate_is_refused_by_postgresql_18() {
    shows_another_certificate(true);
}

fn shows_another_certificate(version_18: bool) {
    let own = |_: &Postgres| Certificates::make(&["server.example".to_owned()]);
    // The router's account gives its password in clear, as configured, which binds nothing, and so
    // does not keep `app` from trying.
    let (server, middle) = behind(
        version_18,
        "hostssl all trunkline 127.0.0.0/8 password\nhostssl all all 127.0.0.0/8 scram-sha-256",
        own,
        Play::Pass,
    );
    let router = before_middle_with(&server, &middle, "require_auth: [password, scram-sha-256]");
    router.await_read_write();
    app_is_refused(&router, NOT_BOUND);
    assert!(
        server.log().contains("SCRAM channel binding check failed"),
        "{}",
        server.log()
    );
    let router = before_middle(&server, &middle, "require");
    router.await_log(&["WARN", "s1", "no channel binding with the server: it is required"]);
    app_is_refused(
        &router,
        &["no server accepts read-write sessions now", "s1 is down"],
    );

    server.set_hba("hostssl all all 127.0.0.0/8 scram-sha-256");
    let router = before_middle(&server, &middle, "require");
    router.await_log(&[
        "WARN",
        "s1",
        "the server has another certificate than the one seen here",
    ]);
}
