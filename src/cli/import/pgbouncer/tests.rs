#![allow(clippy::unwrap_used, clippy::format_collect)]

use std::fs;

use proptest::prelude::*;

use super::*;
use crate::cli::import::tests::{errors, has, imported};
use crate::cli::import::{InputKind, Mode, fuzzing};
use crate::config::{Config, PoolMode};

const FIXTURE: &str = include_str!("../../../../tests/import/pgbouncer.ini");
const EXPECTED: &str = include_str!("../../../../tests/import/pgbouncer.expected.yaml");

fn pgbouncer(text: &str) -> (String, Vec<String>) {
    imported(InputKind::PgBouncer, text, Mode::Postgres)
}

/// One database, and settings.
fn with(settings: &str) -> (String, Vec<String>) {
    pgbouncer(&format!(
        "[databases]\n* = host=a\n[pgbouncer]\nlisten_addr=*\nunix_socket_dir=\n{settings}"
    ))
}

/// As a person settles it: every TODO has its file, and every listener an address.
fn config(yaml: &str) -> Config {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, contents: &str| {
        let path = directory.path().join(name);
        fs::write(&path, contents).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(path, mode).unwrap();
    };
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["pg.example.org".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    let rules: String = yaml
        .lines()
        .filter_map(|line| line.strip_prefix("#   "))
        .map(|rule| format!("{rule}\n"))
        .collect();
    for (name, contents) in [
        ("TODO-service-account.password", "x"),
        ("TODO-server-user.password", "x"),
        ("TODO-server.crt", &certificate),
        ("TODO-server.key", &key.serialize_pem()),
        ("TODO-client-ca.crt", &certificate),
        ("TODO-server-ca.crt", &certificate),
        ("TODO-pg_hba.conf", &rules),
        ("server.crt", &certificate),
        ("server.key", &key.serialize_pem()),
        ("root.crt", &certificate),
        (
            "userlist.txt",
            "\"app\" \"md545f2603610af569b6155c45067268c6b\"\n",
        ),
    ] {
        file(name, contents);
    }
    let mut yaml = yaml.replace("/etc/pgbouncer/", "");
    for port in 7001.. {
        let Some((before, after)) = yaml.split_once("\"TODO: the address of ") else {
            break;
        };
        let (_, after) = after.split_once('"').unwrap();
        yaml = format!("{before}\"*:{port}\"{after}");
    }
    let path = directory.path().join("trunkline.yaml");
    crate::config::parse(&path, &yaml).unwrap_or_else(|errors| panic!("{errors}\n{yaml}"))
}

#[test]
fn a_typical_file_becomes_what_was_written_by_hand() {
    let kind = crate::cli::import::recognise(FIXTURE).unwrap();
    assert_eq!(kind, InputKind::PgBouncer);
    let (yaml, _) = crate::cli::import::convert(kind, FIXTURE, "pgbouncer.ini", Mode::Postgres).unwrap();
    for (index, (line, wanted)) in yaml.lines().zip(EXPECTED.lines()).enumerate() {
        assert_eq!(line, wanted, "line {} of what was written", index + 1);
    }
    assert_eq!(yaml, EXPECTED);
    let config = config(&yaml);
    let pool = config.routes.values().next().unwrap().pool.as_ref().unwrap();
    assert_eq!(pool.mode, PoolMode::Transaction);
    let sizes = |user: &str, database: &str| {
        let limits = pool.limits_for(user, database);
        (limits.max_connections, limits.min_connections, limits.reserve)
    };
    // As PgBouncer counts: the user's, or else the database's, or else the file's.
    assert_eq!(sizes("app", "shop"), (40, 2, 10));
    assert_eq!(sizes("app", "reports"), (5, 1, 5));
    assert_eq!(sizes("app", "audit-log"), (25, 2, 5));
    assert_eq!(sizes("batch", "shop"), (3, 2, 10));
    assert_eq!(sizes("batch", "reports"), (3, 1, 5));
    assert_eq!(sizes("batch", "other"), (3, 2, 5));
    assert_eq!(pool.limits_for("batch", "shop").query_timeout, None);
    assert_eq!(pool.limits.query_timeout, Some(Duration::from_mins(1)));
}

#[test]
fn what_is_left_to_do_is_a_fault_of_check() {
    let (yaml, _) = pgbouncer(FIXTURE);
    let errors = errors(&yaml).join("\n");
    for todo in [
        "TODO-service-account.password",
        "TODO-pg_hba.conf",
        "listeners[2].address",
    ] {
        has(&errors, todo);
    }
}

#[test]
fn a_small_file_needs_nothing_but_the_service_account() {
    let (yaml, notes) = with("pool_mode = transaction\nauth_type = scram-sha-256\n");
    assert!(notes.is_empty(), "{notes:#?}");
    has(&yaml, "    pool:\n      mode: transaction\n");
    has(&yaml, "    queue_timeout: 2m\n");
    has(
        &yaml,
        "{name: read-write, address: \"*:6432\", route: read-write, mode: postgres, tls: off}",
    );
    assert!(!yaml.contains("auth:") && !yaml.contains("\ntls:"), "{yaml}");
    assert_eq!(
        config(&yaml).routes["read-write"]
            .pool
            .as_ref()
            .unwrap()
            .limits
            .max_connections,
        20
    );
}

#[test]
fn pools_of_sessions_have_no_time_outs_of_transactions() {
    let (yaml, notes) = with(
        "default_pool_size=7\nquery_timeout=5\ntransaction_timeout=0\nidle_transaction_timeout=6\nquery_wait_notify=3\n\
         max_prepared_statements=2000\nserver_idle_timeout=0\n",
    );
    has(
        &yaml,
        "    pool:\n      mode: session\n      max_connections: 7\n      idle_timeout: 0\n",
    );
    let notes = notes.join("\n");
    has(
        &notes,
        "f:7: query_timeout: pools with `mode: session` have no such time-out; use PostgreSQL's `statement_timeout`",
    );
    has(
        &notes,
        "f:9: idle_transaction_timeout: pools with `mode: session`",
    );
    has(
        &notes,
        "f:10: query_wait_notify: pools with `mode: session` give no notice",
    );
    let _ = config(&yaml);
}

#[test]
fn what_the_configuration_would_refuse_is_not_written() {
    for (settings, expected) in [
        // Behind the transaction's limit, nothing else counts.
        (
            "query_timeout=60\ntransaction_timeout=60\n",
            "      transaction_timeout: 1m\n",
        ),
        (
            "server_idle_timeout=600\nserver_lifetime=300\n",
            "      max_lifetime: 5m\n      idle_timeout: 0\n",
        ),
        ("server_lifetime=0\n", "      max_lifetime: 100ms\n"),
        ("reserve_pool_timeout=9\n", "      mode: transaction\n"),
        (
            "reserve_pool_size=4\nreserve_pool_timeout=9\n",
            "      reserve: 4\n      reserve_delay: 9s\n",
        ),
        (
            "reserve_pool_size=4\nreserve_pool_timeout=0\n",
            "      mode: transaction\n",
        ),
        ("min_pool_size=50\n", "      min_connections: 20\n"),
        ("query_wait_timeout=0\n", "    queue_timeout: 10m\n"),
        (
            "query_wait_timeout=3\nquery_wait_notify=5\n",
            "      wait_notify: 0\n",
        ),
        ("max_client_conn=500\n", "    max_queue: 500\n"),
        ("max_client_conn=500\n", "limits: {max_clients: 500}\n"),
        ("max_prepared_statements=5000\n", "      max_statements: 5000\n"),
        (
            "ignore_startup_parameters=options,Options, extra_float_digits,client_encoding,a-b\n",
            "      ignore_startup_parameters: [options, extra_float_digits]\n",
        ),
        (
            "application_name_add_host=1\n",
            "    client_address: {application_name: true}\n",
        ),
        (
            "tcp_keepalive=0\ntcp_keepidle=5\n",
            "    server: {keepalive: 0}\n",
        ),
        (
            "max_user_client_connections=5\nmax_db_client_connections=6\n",
            "limits: {per_user: 5, per_database: 6}\n",
        ),
        ("client_login_timeout=30\n", "  login_timeout: 30s\n"),
    ] {
        let (yaml, _) = with(&format!("pool_mode=transaction\n{settings}"));
        has(&yaml, expected);
        let _ = config(&yaml);
    }
    let (yaml, _) = with("pool_mode=transaction\nquery_timeout=60\ntransaction_timeout=60\n");
    assert!(!yaml.contains("query_timeout"), "{yaml}");
}

#[test]
fn sizes_of_all_other_databases_are_the_pools() {
    let text = "[databases]\nshop = host=a\n* = host=a pool_size=5\nsmall = host=a pool_size=2\n\
                [users]\nbig = pool_size=50\nsame = pool_size=5\n[pgbouncer]\nlisten_addr=*\ndefault_pool_size=30\n";
    let (yaml, _) = pgbouncer(text);
    has(&yaml, "      max_connections: 5\n");
    let config = config(&yaml);
    let pool = config.routes["read-write"].pool.as_ref().unwrap();
    for (user, database, most) in [
        ("x", "shop", 30),
        ("x", "small", 2),
        ("x", "other", 5),
        ("big", "shop", 50),
        ("big", "small", 50),
        ("big", "other", 50),
        // No entry of its own, but the databases' do not hold for it.
        ("same", "shop", 5),
        ("same", "small", 5),
        ("same", "other", 5),
    ] {
        assert_eq!(
            pool.limits_for(user, database).max_connections,
            most,
            "{user} {database}"
        );
    }
}

#[test]
fn databases_on_other_servers_have_routes_of_their_own() {
    let text = "[databases]\na = host=one\nb = host=two port=5433\nc = host=one target_session_attrs=read-only\n* = host=two port=5433\n\
                [pgbouncer]\nlisten_addr=10.0.0.1,10.0.0.2\n";
    let (yaml, notes) = pgbouncer(text);
    for expected in [
        "      - {name: two, host: two, port: 5433}\n",
        "      - {name: one, host: one, port: 5432}\n",
        "  b-read-write:\n    cluster: b\n    targets: [leader]\n",
        "  a-read-write:\n    cluster: a\n    targets: [leader]\n",
        "  a-read-only:\n    cluster: a\n    targets: [replica]\n",
        "{name: b-read-write, address: \"10.0.0.1:6432\", route: b-read-write,",
        "{name: b-read-write-2, address: \"10.0.0.2:6432\", route: b-read-write,",
        "address: \"TODO: the address of a-read-write\"",
    ] {
        has(&yaml, expected);
    }
    let notes = notes.join("\n");
    has(&notes, "f:2: a: is on other servers than the first databases");
    has(&notes, "f:4: c: is on other servers");
    let _ = config(&yaml);
}

#[test]
fn what_kept_clients_out_is_a_rule_that_is_left_to_do() {
    for (settings, rules) in [
        (
            "auth_type=md5\n",
            "#   host all all all md5\n#   local all all md5\n",
        ),
        ("", "#   host all all all md5\n#   local all all md5\n"),
        ("auth_type=plain\n", "#   host all all all password\n"),
        (
            "auth_type=cert\nclient_tls_sslmode=verify-full\nclient_tls_ca_file=/etc/pgbouncer/root.crt\n",
            "#   hostssl all all all cert\nauth:\n",
        ),
        (
            "auth_type=scram-sha-256\nclient_tls_sslmode=verify-ca\n",
            "#   hostssl all all all scram-sha-256 clientcert=verify-ca\nauth:\n",
        ),
        (
            "auth_type=ldap\n",
            "#   host all all all ldap TODO: ldapserver=…\n",
        ),
    ] {
        let (yaml, _) = with(settings);
        has(
            &yaml,
            &format!("# TODO: a file with these rules, or with your own:\n{rules}"),
        );
        has(&yaml, "auth:\n  hba_file: TODO-pg_hba.conf\n");
        has(&errors(&yaml).join("\n"), "TODO-pg_hba.conf");
        if !rules.contains("ldap") {
            let _ = config(&yaml);
        }
    }
    // Only the databases of the list were there.
    let (yaml, _) = pgbouncer(
        "[databases]\na=host=x\n\"b c\"=host=x\nd=host=x dbname=a\nall=host=x\n[pgbouncer]\nlisten_addr=*\n\
         auth_type=scram-sha-256\nadmin_users=root\n",
    );
    has(
        &yaml,
        "#   host pgbouncer root all scram-sha-256\n#   host a,\"b c\",\"all\" all all scram-sha-256\n\
         #   local pgbouncer root scram-sha-256\n#   local a,\"b c\",\"all\" all scram-sha-256\n",
    );
    let _ = config(&yaml);
    // Nobody gets in without a password who was not asked for one before.
    for kind in ["trust", "any", "pam"] {
        let (yaml, notes) = with(&format!("auth_type={kind}\n"));
        assert!(!yaml.contains("trust\n"), "{yaml}");
        has(&notes.join("\n"), "auth_type: ");
    }
    let (yaml, notes) = pgbouncer(
        "[databases]\na=host=x\n[pgbouncer]\nlisten_addr=*\nauth_type=hba\nauth_hba_file=/etc/pgbouncer/hba\n\
         auth_ident_file=/etc/pgbouncer/ident\n",
    );
    has(
        &yaml,
        "auth:\n  hba_file: /etc/pgbouncer/hba\n  ident_file: /etc/pgbouncer/ident\n",
    );
    has(
        &notes.join("\n"),
        "f:6: auth_hba_file: PgBouncer knew only the databases of its list",
    );
}

#[test]
fn passwords_come_from_the_file_or_the_cluster() {
    let (yaml, notes) = with("auth_file=/etc/pgbouncer/userlist.txt\n");
    has(&yaml, "  users_file: /etc/pgbouncer/userlist.txt\n");
    has(
        &notes.join("\n"),
        "f:6: auth_file: sessions log into the servers with what their client has proven",
    );
    let _ = config(&yaml);
    let query = "SELECT usename, passwd FROM get_auth($1)";
    let (yaml, notes) = with(&format!("auth_file=users\nauth_user=asker\nauth_query={query}\n"));
    has(&yaml, &format!("  query: \"{query}\"\n"));
    let notes = notes.join("\n");
    has(
        &notes,
        "f:6: auth_file: verifiers come from a file or from the cluster",
    );
    has(
        &notes,
        "f:8: auth_query: the service account asks instead of `auth_user`",
    );
    let _ = config(&yaml);
    let (yaml, notes) = with("auth_user=asker\n");
    assert!(!yaml.contains("query:"), "{yaml}");
    has(
        &notes.join("\n"),
        "f:6: auth_user: the service account of config/service-account.sql asks",
    );
}

#[test]
fn one_user_for_all_databases_is_a_server_credential_and_its_password_is_never_shown() {
    let text = |second: &str| {
        format!(
            "[databases]\na = host=x user=app password=geheim\nb = host=x {second}\n[pgbouncer]\nlisten_addr=*\n"
        )
    };
    let (yaml, notes) = pgbouncer(&text("user=app password='geheim'"));
    has(
        &yaml,
        "  server_credentials: [{users: all, server_user: app, password_file: TODO-server-user.password}]\n",
    );
    let _ = config(&yaml);
    let shown = yaml + &notes.join("\n");
    assert!(!shown.contains("geheim"), "{shown}");
    let (yaml, notes) = pgbouncer(&text("password=geheim"));
    assert!(!yaml.contains("server_credentials: ["), "{yaml}");
    let notes = notes.join("\n");
    has(
        &notes,
        "f:2: a … user: `auth.server_credentials` chooses the server's user by the client's",
    );
    has(
        &notes,
        "f:3: b … password: sessions log in with what their client has proven",
    );
    assert!(!notes.contains("geheim"), "{notes}");
}

#[test]
fn tls_on_both_sides_is_written() {
    let files = "_cert_file=/etc/pgbouncer/server.crt\n";
    let client = |mode: &str| {
        with(&format!(
            "client_tls_sslmode={mode}\nclient_tls{files}client_tls_key_file=/etc/pgbouncer/server.key\n\
             client_tls_ca_file=/etc/pgbouncer/root.crt\nclient_tls_protocols=tlsv1.3\n"
        ))
    };
    for (mode, tls, authority) in [
        ("allow", "optional", false),
        ("prefer", "optional", false),
        ("require", "required", false),
        ("verify-ca", "required", true),
        ("verify-full", "required", true),
    ] {
        let (yaml, _) = client(mode);
        has(&yaml, &format!("mode: postgres, tls: {tls}}}"));
        has(
            &yaml,
            "    - {cert_file: /etc/pgbouncer/server.crt, key_file: /etc/pgbouncer/server.key}\n",
        );
        has(&yaml, "  min_version: \"1.3\"\n");
        assert_eq!(
            yaml.contains("  client_ca_file: /etc/pgbouncer/root.crt\n"),
            authority,
            "{yaml}"
        );
        let _ = config(&yaml);
    }
    let (yaml, _) = client("disable");
    assert!(
        !yaml.contains("cert_file") && yaml.contains("tls: off}"),
        "{yaml}"
    );
    for (settings, expected) in [
        (
            "server_tls_sslmode=disable\nserver_tls_ca_file=x\n",
            "    server_tls: {sslmode: disable}\n",
        ),
        (
            "server_tls_sslmode=require\n",
            "    server_tls: {sslmode: require}\n",
        ),
        (
            "server_tls_sslmode=verify-ca\nserver_tls_ca_file=/etc/pgbouncer/root.crt\nserver_tls_cert_file=/etc/pgbouncer/server.crt\n\
             server_tls_key_file=/etc/pgbouncer/server.key\n",
            "    server_tls: {sslmode: verify-ca, sslrootcert: /etc/pgbouncer/root.crt, sslcert: /etc/pgbouncer/server.crt, \
             sslkey: /etc/pgbouncer/server.key}\n",
        ),
        // Never less than was asked for.
        (
            "server_tls_sslmode=verify-ca\n",
            "    server_tls: {sslmode: verify-ca, sslrootcert: TODO-server-ca.crt}\n",
        ),
        (
            "server_tls_sslmode=strict\n",
            "    server_tls: {sslmode: verify-full, sslrootcert: TODO-server-ca.crt}\n",
        ),
    ] {
        let (yaml, _) = with(settings);
        has(&yaml, expected);
        let _ = config(&yaml);
    }
}

#[test]
fn clients_connect_where_they_did() {
    let addresses = |settings: &str| {
        let (yaml, notes) = pgbouncer(&format!("[databases]\n* = host=a\n[pgbouncer]\n{settings}"));
        let lines = yaml.lines().filter(|line| line.starts_with("  - {name: "));
        let addresses: Vec<String> = lines
            .map(|line| {
                let (_, rest) = line.split_once("address: ").unwrap();
                rest.split_once(", route").unwrap().0.to_owned()
            })
            .collect();
        let sockets = yaml.matches("socket_mode: \"0770\"").count();
        (addresses, sockets, notes.join("\n"))
    };
    let (found, _, _) = addresses("");
    assert_eq!(found, ["/tmp/.s.PGSQL.6432"]);
    let (found, sockets, _) = addresses("unix_socket_dir=/run/p/\nlisten_port=7000\nunix_socket_mode=0770\n");
    assert_eq!(
        (found.as_slice(), sockets),
        (&["/run/p/.s.PGSQL.7000".to_owned()][..], 1)
    );
    let (found, _, notes) = addresses("listen_addr = 127.0.0.1, ::1 ,localhost\n");
    assert_eq!(found, ["\"127.0.0.1:6432\"", "\"[::1]:6432\""]);
    has(
        &notes,
        "unix_socket_dir: PgBouncer also listened on /tmp/.s.PGSQL.6432",
    );
    let (found, _, _) = addresses("listen_addr = 127.0.0.1,*\nunix_socket_dir=\n");
    assert_eq!(found, ["\"*:6432\""]);
    let (found, _, notes) = addresses("listen_addr = db.example\nunix_socket_dir=@abstract\n");
    assert_eq!(found, ["\"TODO: the IP address of db.example, and :6432\""]);
    has(
        &notes,
        "f:5: unix_socket_dir: a listener is a file or an address of the network",
    );
}

#[test]
fn every_setting_without_an_equivalent_is_listed_with_its_reason() {
    let keys = [
        "max_db_connections",
        "max_user_connections",
        "stats_users",
        "server_check_query",
        "server_check_delay",
        "server_login_retry",
        "client_idle_timeout",
        "cancel_wait_timeout",
        "suspend_timeout",
        "disable_pqexec",
        "login_notify_message",
        "scram_iterations",
        "logfile",
        "syslog",
        "syslog_ident",
        "syslog_facility",
        "verbose",
        "log_connections",
        "log_disconnections",
        "log_pooler_errors",
        "log_stats",
        "stats_period",
        "pidfile",
        "user",
        "unix_socket_group",
        "dns_max_ttl",
        "dns_nxdomain_ttl",
        "dns_zone_check_period",
        "resolv_conf",
        "client_tls_ciphers",
        "client_tls13_ciphers",
        "client_tls_ecdhcurve",
        "client_tls_dheparams",
        "server_tls_ciphers",
        "server_tls13_ciphers",
        "pkt_buf",
        "max_packet_size",
        "sbuf_loopcnt",
        "listen_backlog",
        "tcp_socket_buffer",
        "tcp_keepcnt",
        "tcp_keepintvl",
        "so_reuseport",
        "peer_id",
        "server_reset_query",
    ];
    let settings: String = keys.iter().map(|key| format!("{key} = geheim\n")).collect();
    let (yaml, notes) = with(&settings);
    for key in keys {
        let of_key: Vec<&String> = notes
            .iter()
            .filter(|note| note.contains(&format!(" {key}: ")))
            .collect();
        assert!(
            of_key.len() == 1 && !of_key[0].contains("is unknown"),
            "{key}: {of_key:?}"
        );
    }
    assert!(!yaml.contains("geheim"), "{yaml}");
    let (_, notes) = with("no_such_setting = 1\nno setting\n");
    let notes = notes.join("\n");
    has(&notes, "f:6: no_such_setting: is unknown to the importer");
    has(&notes, "f:7: the line: is no setting");
}

#[test]
fn settings_of_databases_and_users_without_an_equivalent_are_listed() {
    let text = "[databases]\na = dbname=b pool_mode=session connect_query='SELECT 1' timezone=UTC max_db_connections=5 \
                auth_user=x query_wait_timeout=1 what=1 port=0\nb host=x\nc = host=1 2\nd = host=x,y\n\
                [users]\nu = pool_mode=statement max_user_connections=1 client_idle_timeout=5 pool_size=many\n\
                [other]\nx = 1\n[pgbouncer]\nlisten_addr=*\npool_mode=statement\n";
    let (yaml, notes) = pgbouncer(text);
    let notes = notes.join("\n");
    for expected in [
        "f:2: a … dbname: clients connect to the database by its name on the server",
        "f:2: a … pool_mode: a route has one mode",
        "f:2: a … connect_query: use `ALTER ROLE",
        "f:2: a … timezone: use `ALTER ROLE",
        "f:2: a … max_db_connections: is `server.max_connections` here",
        "f:2: a … auth_user: the cluster's service account asks",
        "f:2: a … query_wait_timeout: `queue_timeout` is of the route",
        "f:2: a … what: is unknown to the importer",
        "f:2: a … port: is not a port",
        "f:2: a … host: was a Unix socket; the router reaches servers by TCP",
        "f:3: b host: is no connection string",
        "f:4: c: is no connection string",
        "f:5: d … host: sessions went to each server in turn",
        "f:7: u … max_user_connections: `max_connections` is of one user",
        "f:7: u … client_idle_timeout: idle sessions are not ended",
        "f:7: u … pool_size: is not a number",
        "f:7: u … pool_mode: is `transaction` here",
        "f:8: [other]: is no section of PgBouncer's",
        "f:12: pool_mode: is `transaction` here",
    ] {
        has(&notes, expected);
    }
    has(
        &yaml,
        "      - {name: \"127.0.0.1\", host: \"127.0.0.1\", port: 5432}\n",
    );
}

#[test]
fn a_limit_of_a_database_is_that_of_its_servers_where_they_have_no_other() {
    let text = |databases: &str| {
        format!(
            "[databases]\n{databases}[pgbouncer]\nlisten_addr=*\ndefault_pool_size=40\nmax_db_connections=30\n"
        )
    };
    let (yaml, notes) = pgbouncer(&text(
        "shop = host=a pool_size=35\naudit = host=b max_db_connections=50\n",
    ));
    let found = config(&yaml);
    let limits: Vec<u32> = found
        .routes
        .values()
        .map(|route| found.clusters[&*route.cluster].max_connections)
        .collect();
    let pools: Vec<u32> = found
        .routes
        .values()
        .map(|route| route.pool.as_ref().unwrap().limits.max_connections)
        .collect();
    // No pool may have more than its servers.
    assert_eq!((limits, pools), (vec![30, 50], vec![30, 40]));
    let notes = notes.join("\n");
    has(
        &notes,
        "f:7: max_db_connections: is `server.max_connections` here",
    );
    has(
        &notes,
        "f:3: audit … max_db_connections: is `server.max_connections` here",
    );
    for databases in ["shop = host=a\naudit = host=a\n", "* = host=a\n"] {
        let (yaml, notes) = pgbouncer(&text(databases));
        assert!(!yaml.contains("    server:"), "{yaml}");
        has(
            &notes.join("\n"),
            "max_db_connections: `max_connections` is of one user in one database",
        );
    }
    let (yaml, notes) =
        pgbouncer("[databases]\na = host=a max_db_connections=0\n[pgbouncer]\nlisten_addr=*\n");
    assert!(
        !yaml.contains("    server:") && !notes.join("\n").contains("max_db"),
        "{yaml}"
    );
}

#[test]
fn an_unknown_mode_is_a_fault_of_check() {
    let (yaml, notes) = with("pool_mode = foo\n");
    has(
        &notes.join("\n"),
        "pool_mode: is no mode of a pool: `session`, `transaction` or `statement`",
    );
    let errors = errors(&yaml).join("\n");
    has(&errors, "pool.mode: expected `off`, `session` or `transaction`");
    // That of a database is only listed: a route has one mode.
    let text = "[databases]\na = host=a pool_mode=foo\n[pgbouncer]\nlisten_addr=*\n";
    let (yaml, notes) = pgbouncer(text);
    has(&yaml, "mode: session\n");
    assert_eq!(
        notes.iter().filter(|note| note.contains("pool_mode")).count(),
        1,
        "{notes:?}"
    );
}

#[test]
fn what_cannot_become_a_router_is_refused() {
    for text in [
        "[pgbouncer]\npool_mode=session\n",
        "[databases]\n",
        "[databases]\na b\n",
    ] {
        let refusal = convert(text, &mut Notes::default()).unwrap_err();
        assert_eq!(refusal.message, "has no database in its section [databases]");
    }
    let many: String = (0..300).map(|host| format!("d{host} = host=h{host}\n")).collect();
    let refusal = convert(&format!("[databases]\n{many}"), &mut Notes::default()).unwrap_err();
    assert_eq!(refusal.message, "has databases on more than 256 servers");
    let many = "a = host=x\n".repeat(5000);
    let refusal = convert(&format!("[databases]\n{many}"), &mut Notes::default()).unwrap_err();
    assert_eq!(refusal.message, "has more than 4096 settings");
    let forwarding = crate::cli::import::convert(InputKind::PgBouncer, FIXTURE, "f", Mode::Tcp).unwrap_err();
    has(&forwarding.message, "`--mode tcp` cannot have");
}

#[test]
fn more_overrides_than_a_pool_takes_are_listed() {
    let entries = |kind: &str| {
        (0..1500)
            .map(|n| format!("{kind}{n} = pool_size=3 host=a\n"))
            .collect::<String>()
    };
    let text = format!(
        "[databases]\n{}[users]\n{}[pgbouncer]\nlisten_addr=*\n",
        entries("d"),
        entries("u").replace(" host=a", "")
    );
    let (yaml, notes) = pgbouncer(&text);
    has(&notes.join("\n"), "[users]: a pool has at most 1024 overrides");
    let _ = config(&yaml);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// A good file with a piece of it lost, doubled or replaced.
    #[test]
    fn a_damaged_file_is_answered(start in 0..FIXTURE.len(), length in 0_usize..60, put in "\\PC{0,12}") {
        let end = (start + length).min(FIXTURE.len());
        let mut text = b"\x04".to_vec();
        text.extend_from_slice(&FIXTURE.as_bytes()[..start]);
        text.extend_from_slice(put.as_bytes());
        text.extend_from_slice(&FIXTURE.as_bytes()[end..]);
        fuzzing::run(&text);
    }
}
