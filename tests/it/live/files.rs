//! Files that change.

use super::*;
use crate::cluster::slapd::Slapd;
use crate::cluster::{Certificates, eventually, postgres, secret, succeed};

const FAILED: &str = "trunkline_file_reload_failed{part=\"auth\"}";

#[test]
fn rules_that_change_are_for_new_logins() {
    let server = Postgres::start(&postgres::Options::default());
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, contents: &str| write(dir.path(), name, contents);
    put("more.conf", "# nothing yet\n");
    let usual = "include more.conf\nhost all app all scram-sha-256\n";
    let hba = put("pg_hba.conf", usual);
    let router = router(&server, &[UNLIMITED, &format!("hba_file: {}", hba.display())]);
    let session = open(&router, "app", "app");
    let let_in = || log_in(&router, "app", "app").is_ok();
    let rejected = || is(&log_in(&router, "app", "app"), "28000");
    let reject = "host all app all reject\n";

    put("pg_hba.conf", reject);
    eventually("the file itself", SOON, rejected);
    router.await_log(&["INFO", "files loaded", "part=auth"]);
    // Asked to, the router does not wait for a second look.
    put("pg_hba.conf", usual);
    router.signal("HUP");
    router.await_log(&["reload: files read again", "changed=auth", "broken=none"]);
    assert!(let_in());

    put("more.conf", reject);
    eventually("a file that it includes", SOON, rejected);
    put("barred", "somebody\n");
    put("more.conf", "host all @barred all reject\n");
    eventually("a file with names, of others", SOON, let_in);
    put("barred", "somebody, app\n");
    eventually("a file with names", SOON, rejected);
    fs::remove_file(dir.path().join("barred")).unwrap();
    router.await_log(&["ERROR", "part=auth", "more.conf:1", "barred", "stays in service"]);
    assert!(rejected(), "a file that is gone is no empty one");
    put("barred", "somebody\n");
    eventually("it is back", SOON, let_in);
    session.goes_on();
}

#[test]
fn broken_rules_leave_the_old_ones_in_service_and_are_told_everywhere() {
    let server = Postgres::start(&postgres::Options::default());
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, contents: &str| write(dir.path(), name, contents);
    let usual = "host all app all scram-sha-256\n";
    let hba = put("pg_hba.conf", usual);
    let router = router(&server, &[UNLIMITED, &format!("hba_file: {}", hba.display())]);
    let session = open(&router, "app", "app");
    assert_eq!(router.metric(FAILED), 0.0);
    assert!(check(&router).status.success());

    // Each would keep everybody out, were it not for what is wrong with it.
    let broken = [
        ("host all all all frobnicate\n", "pg_hba.conf:2", "frobnicate"),
        ("host all all 127.0.0.1/77 md5\n", "pg_hba.conf:2", "127.0.0.1/77"),
        ("host all all all gss\n", "pg_hba.conf:2", "gss"),
        ("\n\ninclude later.conf\n", "pg_hba.conf:4", "later.conf"),
        (
            "host all all all trust\n",
            "pg_hba.conf:2",
            "auth.server_credentials",
        ),
        (
            "hostssl all all all cert\n",
            "pg_hba.conf:2",
            "tls.client_ca_file",
        ),
        ("host all all all scram-sha-256 map=os\n", "pg_hba.conf:2", "map"),
    ];
    for (index, (contents, place, words)) in broken.into_iter().enumerate() {
        put("pg_hba.conf", &format!("host all all all reject\n{contents}"));
        if index > 0 {
            router.signal("HUP");
        }
        let line = router.await_log(&["ERROR", "part=auth", place, words, "stays in service"]);
        assert!(
            line.contains(&format!("{}/{place}", dir.path().display())),
            "{line}"
        );
        assert_eq!(router.metric(FAILED), 1.0, "{contents}");
        assert_eq!(log_in(&router, "app", "app").as_deref(), Ok("app"), "{contents}");
        let check = check(&router);
        let told = String::from_utf8_lossy(&check.stderr);
        assert!(
            check.status.code() == Some(1) && told.contains(place) && told.contains(words),
            "{told}"
        );
    }
    router.await_log(&["reload: files read again", "changed=none", "broken=auth"]);

    put("pg_hba.conf", usual);
    eventually("mended", SOON, || router.metric(FAILED) == 0.0);
    assert!(log_in(&router, "app", "app").is_ok());
    assert!(check(&router).status.success());

    // What is missing is watched as well: it mends the rules by being there.
    put("pg_hba.conf", "include later.conf\n");
    eventually("broken", SOON, || router.metric(FAILED) == 1.0);
    put("later.conf", "host all app all reject\n");
    eventually("mended", SOON, || router.metric(FAILED) == 0.0);
    assert_told(&log_in(&router, "app", "app"), "28000", "app");
    session.goes_on();
}

/// `peer`: this user of the host may be who the map says, with the password that the router has.
#[test]
fn maps_and_server_credentials_that_change_are_for_new_logins() {
    let server = Postgres::start(&postgres::Options::default());
    server.sql("CREATE ROLE reader LOGIN PASSWORD 'first'; CREATE ROLE writer LOGIN PASSWORD 'first'");
    let dir = tempfile::tempdir().unwrap();
    let me = succeed(Command::new("id").arg("-un")).trim().to_owned();
    let map = |user: &str| write(dir.path(), "pg_ident.conf", &format!("os {me} {user}\n"));
    let ident = map("writer");
    let hba = write(dir.path(), "pg_hba.conf", "local all reader,writer peer map=os\n");
    let password = secret(dir.path(), "password", "first");
    let router = router_with(
        &server,
        &[
            UNLIMITED,
            &format!("hba_file: {}", hba.display()),
            &format!("ident_file: {}", ident.display()),
            &format!(
                "server_credentials: [{{users: [reader, writer], password_file: {}}}]",
                password.display()
            ),
        ],
        Options {
            listeners: Some(format!(
                "  - {{name: local, address: {}/.s.PGSQL.6432, route: read-write}}\n",
                dir.path().display()
            )),
            ..Options::default()
        },
    );
    let place = |user: &str| {
        let mut place = Config::new();
        place.host_path(dir.path()).port(6432).user(user).dbname("app");
        place
    };
    let told = |user: &str| enter(&place(user)).map(|(_, user)| user);
    let (session, user) = enter(&place("writer")).unwrap();
    assert_eq!(user, "writer");
    assert_told(&told("reader"), "28000", "reader");

    map("reader");
    eventually("the map is another", SOON, || {
        told("reader").as_deref() == Ok("reader")
    });
    assert_told(&told("writer"), "28000", "writer");
    map("/(");
    router.await_log(&["ERROR", "part=auth", "pg_ident.conf:1", "stays in service"]);
    assert_eq!(router.metric(FAILED), 1.0);
    let output = check(&router);
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("pg_ident.conf:1"),
        "{output:?}"
    );
    assert_eq!(told("reader").as_deref(), Ok("reader"));
    map("/^writer$");
    eventually("mended", SOON, || router.metric(FAILED) == 0.0);
    assert_told(&told("reader"), "28000", "reader");
    map("reader");
    eventually("the map is as before", SOON, || told("reader").is_ok());

    server.sql("ALTER ROLE reader PASSWORD 'rotated'");
    let error = told("reader").unwrap_err();
    assert!(!error.contains("first"), "{error}");
    secret(dir.path(), "password", "rotated");
    eventually("the router has the new password", SOON, || {
        told("reader").as_deref() == Ok("reader")
    });
    // Others can read it: not taken.
    fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    router.await_log(&[
        "ERROR",
        "part=auth",
        "auth.server_credentials[0].password_file",
        "stays in service",
    ]);
    assert!(told("reader").is_ok());
    session.goes_on();
    assert!(!router.log().contains("rotated"), "{}", router.log());
}

#[test]
fn another_authority_of_the_directory_is_for_new_logins() {
    let slapd = Slapd::start();
    let server = Postgres::start(&postgres::Options::default());
    server.sql("CREATE ROLE alice LOGIN PASSWORD 'on the server'");
    let dir = tempfile::tempdir().unwrap();
    let rule = format!(
        "host all alice all ldap ldapserver={} ldapport={} ldapscheme=ldaps ldapprefix=\"uid=\" \
         ldapsuffix=\",ou=people,dc=example,dc=net\"\n",
        slapd.host, slapd.secure
    );
    let hba = write(dir.path(), "pg_hba.conf", &rule);
    let strange = fs::read_to_string(Certificates::shared().file("ca.crt")).unwrap();
    let right = fs::read_to_string(slapd.ca_file()).unwrap();
    let authority = write(dir.path(), "ca.crt", &strange);
    let password = secret(dir.path(), "password", "on the server");
    let router = router(
        &server,
        &[
            UNLIMITED,
            &format!("hba_file: {}", hba.display()),
            &format!("ldap_ca_file: {}", authority.display()),
            &format!(
                "server_credentials: [{{users: [alice], password_file: {}}}]",
                password.display()
            ),
        ],
    );
    let enters = || log_in(&router, "alice", "alice-secret");
    assert_told(&enters(), "57P03", "alice");
    write(dir.path(), "ca.crt", &right);
    eventually("the directory is trusted", SOON, || enters().is_ok());
    let session = open(&router, "alice", "alice-secret");
    assert_told(&log_in(&router, "alice", "wrong"), "28000", "alice");
    write(dir.path(), "ca.crt", "not a certificate\n");
    router.await_log(&["ERROR", "part=auth", "auth.ldap_ca_file", "stays in service"]);
    assert_eq!(router.metric(FAILED), 1.0);
    assert!(enters().is_ok());
    write(dir.path(), "ca.crt", &strange);
    eventually("the directory is trusted no longer", SOON, || {
        is(&enters(), "57P03")
    });
    assert_eq!(router.metric(FAILED), 0.0);
    session.goes_on();
}

/// The account's password is altered on the server first: until the router has read it, it lives by
/// the connections it has, and by what it remembers.
#[test]
fn the_service_account_changes_its_password_and_nobody_notices() {
    let server = Postgres::start(&postgres::Options::default());
    server.sql("CREATE ROLE late LOGIN PASSWORD 'late'");
    let router = router(&server, &[UNLIMITED]);
    let session = open(&router, "app", "app");
    server.sql("ALTER ROLE trunkline PASSWORD 'rotated'");
    secret(&server.certificates.file(""), "service-password", "rotated");
    eventually("the file is read", SOON, || {
        assert_eq!(log_in(&router, "app", "app").as_deref(), Ok("app"));
        router
            .log()
            .lines()
            .any(|line| line.contains("files loaded") && line.contains("part=clusters.main.service_account"))
    });
    let failures = "trunkline_cluster_look_ups_total{cluster=\"main\",result=\"failed\"}";
    let before = router.metric(failures);
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'trunkline'");
    // Nobody has asked for this one before.
    assert_eq!(log_in(&router, "late", "late").as_deref(), Ok("late"));
    assert_told(&log_in(&router, "nobody", "x"), "28P01", "nobody");
    assert_eq!(router.metric(failures), before);
    session.goes_on();
}

#[test]
fn a_users_file_that_changes_ends_no_session() {
    let server = Postgres::start(&postgres::Options::default());
    let dir = tempfile::tempdir().unwrap();
    let users = secret(dir.path(), "users", "\"app\" \"app\"");
    let router = router(&server, &[UNLIMITED, &format!("users_file: {}", users.display())]);
    let session = open(&router, "app", "app");
    secret(dir.path(), "users", "\"postgres\" \"postgres\"");
    eventually("who is no longer in the file", SOON, || {
        is(&log_in(&router, "app", "app"), "28P01")
    });
    assert_eq!(log_in(&router, "postgres", "postgres").as_deref(), Ok("postgres"));
    server.sql("ALTER ROLE app PASSWORD 'new'");
    secret(dir.path(), "users", "\"app\" \"new\"");
    eventually("who is in it again", SOON, || {
        log_in(&router, "app", "new").is_ok()
    });
    assert_told(&log_in(&router, "app", "app"), "28P01", "app");
    session.goes_on();
}
