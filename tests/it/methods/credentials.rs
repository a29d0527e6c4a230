//! With what the router logs in where the client's own login leaves it nothing, and passwords in
//! clear: the servers' side of `auth.server_credentials`, `auth.users_file`, `password` and `ldap`.

use super::*;
use crate::cluster::slapd::{BASE, ROUTER, Slapd};

/// The rules for directories, the same at the router and at the server; `HOST`, `PORT`, `BASE` and
/// `ROUTER` are filled in.
const DIRECTORY: &str = r#"
host all alice,keyless,nobody_d all ldap ldapserver=HOST ldapport=PORT ldapprefix="uid=" ldapsuffix=",ou=people,BASE"
host all carol,twin,nobody_s    all ldap ldapserver=HOST ldapport=PORT ldapbasedn="BASE" ldapbinddn="ROUTER" ldapbindpasswd=router-secret ldapsearchattribute=uid
host all outsider               all ldap ldapurl="ldap://HOST:PORT/ou=people,BASE?uid?sub"
"#;

/// By TLS from the first byte, and after it was asked for.
const ENCRYPTED: &str = r#"
host postgres  alice all ldap ldapscheme=ldaps ldapserver=HOST ldapport=SECURE ldapprefix="uid=" ldapsuffix=",ou=people,BASE"
host template1 alice all ldap ldaptls=1 ldapserver=HOST ldapport=PORT ldapprefix="uid=" ldapsuffix=",ou=people,BASE"
"#;

const AT_ROUTER: &str = r"
local all by_peer                                   peer map=os
host  all by_file,other_file,own_file,anybody       all trust
host  all misled,lost,via_entry,asks_entry,via_cluster,asks_cluster all trust
host  all mapped                                    all scram-sha-256
host  all long,in_clear,passed_on                   all password
";

const AT_SERVER: &str = r"
hostssl all via_entry,via_cluster all cert map=router
hostssl all long                  all password
host    all all                   all scram-sha-256
";

/// The common names of the router's two certificates, and whom they may be.
const AT_SERVER_IDENT: &str = "router entry via_entry\nrouter cluster via_cluster\n";

const ROLES: &str = "
CREATE ROLE reader LOGIN PASSWORD 'reads'; CREATE ROLE own_file LOGIN PASSWORD 'owns'; CREATE ROLE via_entry LOGIN;
CREATE ROLE via_cluster LOGIN; CREATE ROLE mapped LOGIN PASSWORD 'maps'; CREATE ROLE rest LOGIN PASSWORD 'rests';
CREATE ROLE long LOGIN; CREATE ROLE in_clear LOGIN PASSWORD 'clear'; CREATE ROLE same_password LOGIN PASSWORD 'passed';
CREATE ROLE passed_on LOGIN PASSWORD 'passed'; CREATE ROLE alice LOGIN; CREATE ROLE keyless LOGIN;
CREATE ROLE carol LOGIN; CREATE ROLE twin LOGIN; CREATE ROLE by_peer LOGIN;
CREATE ROLE carols LOGIN PASSWORD 'carol-secret';
";

struct Stage {
    dir: TempDir,
    slapd: Slapd,
    server: Postgres,
    direct: Place,
    router: Router,
    through: Place,
}

/// PostgreSQL 15, which was built to ask directories.
fn stage() -> Stage {
    let dir = open_directory();
    let path = dir.path();
    let slapd = Slapd::start();
    let [directory, encrypted] = [DIRECTORY, ENCRYPTED].map(|rules| {
        rules
            .replace("HOST", &slapd.host.to_string())
            .replace("PORT", &slapd.plain.to_string())
            .replace("SECURE", &slapd.secure.to_string())
            .replace("BASE", BASE)
            .replace("ROUTER", ROUTER)
    });
    let clients = Clients::shared();
    let server_ident = write(path, "server_ident.conf", AT_SERVER_IDENT);
    let server = Postgres::start(&postgres::Options {
        hba: Some(format!("{directory}{AT_SERVER}")),
        conf: format!(
            "ssl_ca_file = '{}'\nident_file = '{}'\n",
            clients.ca_file(),
            server_ident.display()
        ),
        ..postgres::Options::default()
    });
    server.sql(ROLES);
    let direct = Place {
        address: server.address,
        port: Postgres::PORT,
        socket: server.data().parent().unwrap().to_owned(),
    };

    // It has a password: ldapbindpasswd.
    let hba = secret(path, "pg_hba.conf", &format!("{encrypted}{directory}{AT_ROUTER}"));
    let ident = write(path, "pg_ident.conf", &format!("os {} by_peer\n", own_name()));
    let [reads, owns, rests] =
        ["reads", "owns", "rests"].map(|word| secret(path, word, word).display().to_string());
    let (entry_cert, entry_key) = clients.issue("entry");
    let (cluster_cert, cluster_key) = clients.issue("cluster");
    let auth = format!(
        "  hba_file: {}\n  ident_file: {}\n  ldap_ca_file: {}\n  server_credentials:\n  \
         - {{users: [by_file, other_file, by_peer], server_user: reader, password_file: {reads}}}\n  \
         - {{users: [own_file], password_file: {owns}}}\n  \
         - {{users: [own_file, mapped], server_user: reader, password_file: {reads}}}\n  \
         - {{users: [misled], server_user: reader, password_file: {owns}}}\n  \
         - {{users: [lost], server_user: nobody_there, password_file: {owns}}}\n  \
         - {{users: [via_entry], cert_file: {entry_cert}, key_file: {entry_key}}}\n  \
         - {{users: [asks_entry], server_user: via_entry, cert_file: {entry_cert}, key_file: {entry_key}}}\n  \
         - {{users: [via_cluster]}}\n  \
         - {{users: [asks_cluster], server_user: via_cluster}}\n  \
         - {{users: [passed_on], server_user: same_password, password: client}}\n  \
         - {{users: [carol, twin, nobody_s], server_user: carols, password: client}}\n  \
         - {{users: [long, in_clear, alice, keyless, nobody_d, outsider], password: client}}\n  \
         - {{users: all, server_user: rest, password_file: {rests}}}\n",
        hba.display(),
        ident.display(),
        slapd.ca_file().display(),
    );
    let tls = format!(
        "{{sslmode: verify-full, sslrootcert: {}, sslcert: {cluster_cert}, sslkey: {cluster_key}}}",
        server.certificates.file("ca.crt").display()
    );
    let options = Options {
        clusters: Some(server.yaml_with(&tls)),
        ..Options::default()
    };
    let (router, through) = router(&server, path, &auth, options);
    Stage {
        dir,
        slapd,
        server,
        direct,
        router,
        through,
    }
}

/// By hand: the password in clear, and the message after it.
fn in_clear(place: &Place, user: &str, password: &[u8]) -> Result<Message, std::io::Error> {
    let mut raw = Raw::connect(place.address, place.port);
    raw.startup(V3_0, &[("user", user), ("database", "app")]);
    let request = raw.message();
    assert_eq!(
        (request.tag, &request.body[..]),
        (b'R', &[0, 0, 0, 3][..]),
        "{request:?}"
    );
    raw.send(&crate::hand::message(b'p', &[password, b"\0"].concat()));
    raw.try_message()
}

#[test]
fn the_credential_that_names_the_user_opens_the_servers() {
    let Stage {
        dir: _dir,
        mut slapd,
        server,
        direct,
        router,
        through,
    } = stage();
    for tls in ["sslmode=disable", "sslmode=require"] {
        for (user, password, on_server) in [
            ("by_file", "", "reader"),
            ("other_file", "", "reader"),
            ("own_file", "", "own_file"),
            ("via_entry", "", "via_entry"),
            ("asks_entry", "", "via_entry"),
            ("via_cluster", "", "via_cluster"),
            ("asks_cluster", "", "via_cluster"),
            ("anybody", "", "rest"),
            ("mapped", "maps", "reader"),
            ("in_clear", "clear", "in_clear"),
            ("passed_on", "passed", "same_password"),
            ("alice", "alice-secret", "alice"),
            ("carol", "carol-secret", "carols"),
        ] {
            assert_eq!(
                through.psql(user, password, tls).as_deref(),
                Ok(on_server),
                "{user} {tls}"
            );
        }
    }
    assert_eq!(through.local("by_peer", "", "").as_deref(), Ok("reader"));
    let words = "password authentication failed for user \"mapped\"".to_owned();
    assert_eq!(through.psql("mapped", "reads", "sslmode=disable"), Err(words));

    // The operator's mistake is not the client's, who did get in.
    for (user, role) in [("misled", "reader"), ("lost", "nobody_there")] {
        let told = through.psql(user, "", "sslmode=disable").unwrap_err();
        assert_eq!(
            told,
            "server \"s1\" does not accept the router's login for this user"
        );
        router.await_log(&[
            "s1 refused the login",
            &format!("user={user} "),
            &format!("28P01: password authentication failed for user \\\"{role}"),
        ]);
    }
    // The directory's answers, and of one who is in the directory and no role. What a role is
    // called on the server does not matter to who comes in.
    for (user, password) in [
        ("alice", "alice-secret"),
        ("alice", "carol-secret"),
        ("keyless", "anything"),
        ("nobody_d", "anything"),
        ("carol", "alice-secret"),
        ("twin", "twin-secret"),
        ("nobody_s", "anything"),
        ("outsider", "outsider-secret"),
        ("outsider", "alice-secret"),
    ] {
        let ask = |place: &Place| place.psql(user, password, "sslmode=disable require_auth=password");
        let (theirs, ours) = (ask(&direct), ask(&through));
        assert_eq!(theirs, ours, "{user} {password}");
        let expected = match (user, password) {
            ("alice", "alice-secret") => Ok("alice".to_owned()),
            ("outsider", "outsider-secret") => Err("role \"outsider\" does not exist".to_owned()),
            _ => Err(format!("LDAP authentication failed for user \"{user}\"")),
        };
        assert_eq!(ours, expected, "{user} {password}");
    }
    for database in ["postgres", "template1"] {
        let ask = |password| through.psql("alice", password, &format!("sslmode=disable dbname={database}"));
        assert_eq!(ask("alice-secret").as_deref(), Ok("alice"), "{database}");
        let words = "LDAP authentication failed for user \"alice\"".to_owned();
        assert_eq!(ask("carol-secret"), Err(words), "{database}");
    }
    for password in [&b"wrong"[..], b""] {
        let [theirs, ours] = [&direct, &through].map(|place| in_clear(place, "alice", password).unwrap());
        assert_eq!(fields(&theirs), fields(&ours), "{}", password.escape_ascii());
    }
    slapd.stop();
    for user in ["alice", "carol", "outsider"] {
        let error = in_clear(&through, user, b"alice-secret").unwrap();
        assert_eq!(error.code(), "57P03", "{user}");
    }
    assert_eq!(
        through.psql("by_file", "", "sslmode=disable").as_deref(),
        Ok("reader")
    );

    // In clear at the server too PostgreSQL reads 65,530 bytes; where it asks for SCRAM, the
    // router's own bound counts.
    let long = |length: usize| "x".repeat(length - 1) + "y";
    for (user, length) in [("long", 65_000), ("long", 65_530), ("in_clear", 65_535)] {
        server.sql(&format!("ALTER ROLE {user} PASSWORD '{}'", long(length)));
        let told = through.psql(user, &long(length), "sslmode=require require_auth=password");
        assert_eq!(told.as_deref(), Ok(user), "{length}");
        let wrong = "y".repeat(length);
        let error = in_clear(&through, user, wrong.as_bytes()).unwrap();
        assert_eq!(error.code(), "28P01", "{length}");
    }
    for length in [65_536, 70_000, 1_000_000] {
        match in_clear(&through, "long", long(length).as_bytes()) {
            Ok(error) => assert_eq!(error.code(), "08P01", "{length}"),
            // What was not read of it may make the end a reset.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{length}"),
        }
    }
    assert_eq!(
        through.psql("by_file", "", "sslmode=disable").as_deref(),
        Ok("reader")
    );
    let log = router.log();
    for word in [
        "alice-secret",
        "carol-secret",
        "router-secret",
        "reads",
        "xxxxxxxx",
    ] {
        assert!(!log.contains(word), "{word} in {log}");
    }
}

const BY_NAME: &str = "
local   all owner,hashed           peer map=os
hostssl all certified,certified_md5 all cert
host    all owner                  all scram-sha-256
host    all hashed                 all md5
";

/// The passwords of a users file open the servers to whom nobody asked for one.
#[test]
fn a_users_file_opens_the_servers_after_a_certificate_and_after_peer() {
    let dir = open_directory();
    let hba = write(dir.path(), "pg_hba.conf", BY_NAME);
    let me = own_name();
    let ident = write(
        dir.path(),
        "pg_ident.conf",
        &format!("os {me} owner\nos {me} hashed\n"),
    );
    let server = Postgres::start(&postgres::Options {
        hba: Some("host all all 127.0.0.0/8 md5".to_owned()),
        ..postgres::Options::default()
    });
    server.sql(
        "CREATE ROLE owner LOGIN PASSWORD 'owns'; CREATE ROLE certified LOGIN PASSWORD 'shown'; \
         SET password_encryption = 'md5'; CREATE ROLE hashed LOGIN PASSWORD 'old'; \
         CREATE ROLE certified_md5 LOGIN PASSWORD 'older'",
    );
    let stored = |user: &str| {
        server.sql(&format!(
            "SELECT rolpassword FROM pg_authid WHERE rolname = '{user}'"
        ))
    };
    let users = secret(
        dir.path(),
        "users",
        &format!(
            "\"owner\" \"owns\"\n\"certified\" \"shown\"\n\"hashed\" \"{}\"\n\"certified_md5\" \"{}\"",
            stored("hashed"),
            stored("certified_md5")
        ),
    );
    let auth = format!(
        "  hba_file: {}\n  ident_file: {}\n  users_file: {}\n",
        hba.display(),
        ident.display(),
        users.display()
    );
    let clients = Clients::shared();
    let tls = Certificates::shared().yaml().trim_end().to_owned()
        + &format!("\n  client_ca_file: {}\n", clients.ca_file());
    let options = Options {
        tls: Some(tls),
        ..Options::default()
    };
    let (_router, through) = router(&server, dir.path(), &auth, options);
    for user in ["owner", "hashed"] {
        assert_eq!(through.local(user, "", "require_auth=none").as_deref(), Ok(user));
    }
    for user in ["certified", "certified_md5"] {
        let shown = clients.shown(user);
        assert_eq!(through.psql(user, "", &shown).as_deref(), Ok(user));
    }
    for (user, password, method) in [("owner", "owns", "scram-sha-256"), ("hashed", "old", "md5")] {
        let extra = format!("sslmode=disable require_auth={method}");
        assert_eq!(through.psql(user, password, &extra).as_deref(), Ok(user));
        let words = format!("password authentication failed for user \"{user}\"");
        assert_eq!(through.psql(user, "no", &extra), Err(words));
    }
}
