//! What a method asks of a client: passwords in each form, certificates, the operating system's
//! user.

use super::*;

const HBA: &str = r"
local   all postgres               trust
local   all os_app,os_other        peer map=os
local   all root,os_plain          peer
hostssl all c_cn                   all cert
hostssl all c_dn                   all cert clientname=DN map=dn
hostssl all c_re,c_other           all cert map=mail
hostssl all v_ca                   all scram-sha-256 clientcert=verify-ca
hostssl all v_full                 all scram-sha-256 clientcert=verify-full
hostssl all v_trust                all trust clientcert=verify-full
hostssl all v_reject               all reject clientcert=verify-ca
host    all m_trust                all trust
host    all m_reject               all reject
host    all m_password,nobody_p    all password
host    all m_md5,md5_scram,nobody_m all md5
host    all m_scram,scram_md5,nobody_s all scram-sha-256
";

const IDENT: &str = r#"
os   root                      os_app
os   postgres                  os_other
dn   "CN=Somebody,O=Example"   c_dn
mail /^(.*)@example\.org$      \1
"#;

const ROLES: &str = "
CREATE ROLE os_app LOGIN; CREATE ROLE os_other LOGIN; CREATE ROLE os_plain LOGIN; CREATE ROLE root LOGIN;
CREATE ROLE c_cn LOGIN; CREATE ROLE c_dn LOGIN; CREATE ROLE c_re LOGIN; CREATE ROLE c_other LOGIN;
CREATE ROLE v_ca LOGIN PASSWORD 'right'; CREATE ROLE v_full LOGIN PASSWORD 'right'; CREATE ROLE v_trust LOGIN;
CREATE ROLE v_reject LOGIN; CREATE ROLE m_trust LOGIN; CREATE ROLE m_reject LOGIN;
CREATE ROLE m_password LOGIN PASSWORD 'right'; CREATE ROLE md5_scram LOGIN PASSWORD 'right';
CREATE ROLE m_scram LOGIN PASSWORD 'right';
SET password_encryption = 'md5'; SET client_min_messages = error;
CREATE ROLE m_md5 LOGIN PASSWORD 'right'; CREATE ROLE scram_md5 LOGIN PASSWORD 'right';
";

struct Stage {
    _dir: TempDir,
    reference: Postgres,
    _server: Postgres,
    router: Router,
    direct: Place,
    through: Place,
}

impl Stage {
    fn new() -> Self {
        let dir = open_directory();
        let hba = write(dir.path(), "pg_hba.conf", HBA);
        let ident = write(dir.path(), "pg_ident.conf", IDENT);
        let ca = Clients::shared().ca_file();
        let (reference, direct) = reference(
            &hba,
            &ident,
            ROLES,
            &format!("ssl_ca_file = '{ca}'\nlog_line_prefix = '%e '\n"),
        );
        let server = Postgres::start(&postgres::Options {
            hba: Some("host all all 127.0.0.0/8 md5".to_owned()),
            ..postgres::Options::default()
        });
        server.sql(ROLES);
        server.sql("CREATE ROLE entrant LOGIN PASSWORD 'entrant'");
        let password = secret(dir.path(), "entrant", "entrant");
        let auth = format!(
            "  hba_file: {}\n  ident_file: {}\n  server_credentials:\n  - {{users: [postgres, os_app, os_other, \
             os_plain, root, c_cn, c_dn, c_re, c_other, v_trust, m_trust], server_user: entrant, password_file: {}}}\n",
            hba.display(),
            ident.display(),
            password.display()
        );
        let tls =
            Certificates::shared().yaml().trim_end().to_owned() + &format!("\n  client_ca_file: {ca}\n");
        let options = Options {
            tls: Some(tls),
            ..Options::default()
        };
        let (router, through) = router(&server, dir.path(), &auth, options);
        Self {
            _dir: dir,
            reference,
            _server: server,
            router,
            direct,
            through,
        }
    }
}

const NO_CERTIFICATE: &str = "connection requires a valid client certificate";

/// As PostgreSQL words it.
fn failed(method: &str, user: &str) -> Told {
    Err(format!("{method} authentication failed for user \"{user}\""))
}

#[allow(clippy::unnecessary_wraps, reason = "what `psql` tells, beside the failures")]
fn has(name: &str) -> Told {
    Ok(name.to_owned())
}

#[expect(clippy::too_many_lines, reason = "a list of methods and what each expects")]
#[test]
fn a_method_asks_and_answers_as_postgresql_does() {
    let stage = Stage::new();
    let mut wrong = Vec::new();
    let mut check = |user: &str, password: &str, extra: &str, expected: Told| {
        let ask = |place: &Place| match extra.strip_prefix("local") {
            Some(extra) => place.local(user, password, extra),
            None => place.psql(user, password, extra),
        };
        let (theirs, ours) = (ask(&stage.direct), ask(&stage.through));
        let expected_there = expected.clone().map(|_| user.to_owned());
        if theirs != expected_there || ours != expected {
            wrong.push(format!(
                "{user} {password} {extra}: {expected:?} expected\n  direct: {theirs:?}\n  router: {ours:?}"
            ));
        }
    };
    // What libpq is asked for must be what the rule says: it hangs up on anything else.
    for tls in ["sslmode=disable", "sslmode=require"] {
        let with = |method: &str| format!("{tls} require_auth={method}");
        check("m_trust", "", &with("none"), has("entrant"));
        let encryption = if tls.ends_with("require") { "SSL" } else { "no" };
        let words = format!(
            "pg_hba.conf rejects connection for host \"127.0.0.1\", user \"m_reject\", database \"app\", {encryption} encryption"
        );
        check("m_reject", "", tls, Err(words));
        for (user, method) in [
            ("m_password", "password"),
            ("m_md5", "md5"),
            ("md5_scram", "scram-sha-256"),
            ("m_scram", "scram-sha-256"),
        ] {
            check(user, "right", &with(method), has(user));
            check(user, "amiss", &with(method), failed("password", user));
        }
        check(
            "scram_md5",
            "right",
            &with("scram-sha-256"),
            failed("password", "scram_md5"),
        );
        check(
            "nobody_p",
            "right",
            &with("password"),
            failed("password", "nobody_p"),
        );
        check(
            "nobody_m",
            "right",
            &with("scram-sha-256"),
            failed("password", "nobody_m"),
        );
        check(
            "nobody_s",
            "right",
            &with("scram-sha-256"),
            failed("password", "nobody_s"),
        );
    }
    check(
        "m_scram",
        "right",
        "sslmode=require channel_binding=require",
        has("m_scram"),
    );

    let clients = Clients::shared();
    let bare = "sslmode=require sslcertmode=disable";
    let [cn, somebody, mail, ca, full, trust] = [
        "c_cn",
        "Somebody",
        "c_re@example.org",
        "v_ca",
        "v_full",
        "v_trust",
    ]
    .map(|name| clients.shown(name));
    check("c_cn", "", &cn, has("entrant"));
    check("c_cn", "", &somebody, failed("certificate", "c_cn"));
    check("c_cn", "", bare, Err(NO_CERTIFICATE.to_owned()));
    check("c_dn", "", &somebody, has("entrant"));
    check("c_dn", "", &cn, failed("certificate", "c_dn"));
    check("c_dn", "", bare, Err(NO_CERTIFICATE.to_owned()));
    check("c_re", "", &mail, has("entrant"));
    check("c_re", "", &cn, failed("certificate", "c_re"));
    check("c_other", "", &mail, failed("certificate", "c_other"));
    check("v_ca", "right", &ca, has("v_ca"));
    check("v_ca", "right", &cn, has("v_ca"));
    check("v_ca", "amiss", &ca, failed("password", "v_ca"));
    check("v_ca", "right", bare, Err(NO_CERTIFICATE.to_owned()));
    check("v_full", "right", &full, has("v_full"));
    check("v_full", "amiss", &full, failed("password", "v_full"));
    check("v_full", "right", &cn, failed("password", "v_full"));
    check("v_full", "right", bare, Err(NO_CERTIFICATE.to_owned()));
    check("v_trust", "", &trust, has("entrant"));
    check("v_trust", "", &cn, failed("\"trust\"", "v_trust"));
    check("v_reject", "", bare, Err(NO_CERTIFICATE.to_owned()));

    // The client runs as this user.
    if own_name() == "root" {
        check("os_app", "", "local require_auth=none", has("entrant"));
        check("root", "", "local", has("entrant"));
    } else {
        eprintln!("SKIPPED: that peer lets the right user in, for the map names root");
    }
    check("os_other", "", "local", failed("Peer", "os_other"));
    check("os_plain", "", "local", failed("Peer", "os_plain"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    // With the libpq of PostgreSQL 15, which cannot say what it was asked for.
    let older = |user: &str, password: &str, extra: &str| {
        let dsn = format!(
            "host={} port={} user={user} dbname=app connect_timeout=20 {extra}",
            stage.through.address, stage.through.port
        );
        let mut psql = Command::new("psql");
        psql.args(["-XAtqc", "SELECT current_user", &dsn]);
        told(psql.env("PGPASSWORD", password))
    };
    for (user, password, extra, expected) in [
        ("m_password", "right", "sslmode=require", has("m_password")),
        ("m_md5", "right", "sslmode=disable", has("m_md5")),
        ("md5_scram", "right", "sslmode=disable", has("md5_scram")),
        (
            "m_scram",
            "right",
            "sslmode=require channel_binding=require",
            has("m_scram"),
        ),
        (
            "m_scram",
            "amiss",
            "sslmode=require",
            failed("password", "m_scram"),
        ),
        ("c_cn", "", cn.as_str(), has("entrant")),
        ("c_re", "", cn.as_str(), failed("certificate", "c_re")),
        ("v_full", "right", full.as_str(), has("v_full")),
    ] {
        assert_eq!(older(user, password, extra), expected, "{user} {extra}");
    }

    if own_name() == "root" {
        for (user, expected) in [("os_other", has("entrant")), ("os_app", failed("Peer", "os_app"))] {
            let [theirs, ours] = [&stage.direct, &stage.through].map(|place| {
                let dsn = format!(
                    "host={} port={} user={user} dbname=app",
                    place.socket.display(),
                    place.port
                );
                let mut psql = Command::new("runuser");
                psql.args([
                    "-u",
                    "postgres",
                    "--",
                    "psql",
                    "-XAtqc",
                    "SELECT current_user",
                    &dsn,
                ]);
                told(psql.current_dir("/"))
            });
            assert_eq!(ours, expected, "{user}");
            assert_eq!(theirs, expected.map(|_| user.to_owned()), "{user}");
        }
    }

    // The codes, which psql does not show.
    let log = stage.reference.log();
    assert!(log.contains("28P01 FATAL:  password authentication failed for user \"v_full\""));
    assert!(!log.contains("28000 FATAL:  password authentication failed"));
    assert!(log.contains("28000 FATAL:  \"trust\" authentication failed for user \"v_trust\""));
    for (user, code) in [("m_reject", "28000"), ("c_cn", "28000"), ("v_ca", "28000")] {
        let errors = [&stage.direct, &stage.through].map(|place| place.knock([127, 0, 0, 1].into(), user));
        assert_eq!(errors[0].code(), code, "{user}");
        assert_eq!(fields(&errors[0]), fields(&errors[1]), "{user}");
    }
    for (user, answer, code) in [
        ("m_password", &b"amiss\0"[..], "28P01"),
        ("m_password", b"\0", "28P01"),
        ("m_password", b"amiss", "08P01"),
        ("m_md5", b"md5wrong\0", "28P01"),
    ] {
        let [theirs, ours] = [&stage.direct, &stage.through].map(|place| {
            let mut raw = Raw::connect(place.address, place.port);
            raw.startup(V3_0, &[("user", user), ("database", "app")]);
            assert_eq!(raw.message().tag, b'R');
            raw.send(&crate::hand::message(b'p', answer));
            raw.last_error()
        });
        assert_eq!(theirs.code(), code, "{user} {}", answer.escape_ascii());
        assert_eq!(fields(&theirs), fields(&ours), "{user} {}", answer.escape_ascii());
    }
    let log = stage.router.log();
    assert!(!log.contains("right") && !log.contains("amiss"), "{log}");
}
