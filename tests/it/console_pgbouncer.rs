//! The console as PgBouncer's, beside the program and before an exporter for it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::cluster::postgres::{Options as ServerOptions, Postgres};
use crate::cluster::{Options, Router, eventually, fresh_address, output, project, succeed};
use crate::drivers::{Rustls, cache};

/// What PgBouncer 1.26.1 sends, by command.
const COLUMNS: &str = include_str!("console_pgbouncer/columns-1.26.1");
const LIMIT: Duration = Duration::from_secs(20);

/// Ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn theirs() -> BTreeMap<&'static str, &'static str> {
    let lines = COLUMNS.lines();
    lines.map(|line| line.split_once(' ').unwrap()).collect()
}

/// A server that leads, and a router with a pool; its console has PgBouncer's name.
fn pooled() -> (Postgres, Router) {
    let server = Postgres::start(&ServerOptions::default());
    server.sql("CREATE ROLE stats LOGIN PASSWORD 'stats'");
    let options = Options {
        clusters: Some(server.yaml()),
        extra:
            "routes:\n  read-write: {targets: [leader], pool: {mode: transaction, max_connections: 7}}\n  \
                read-only: {targets: [replica]}\n\
                console: {users: [stats], database: pgbouncer}\nlimits: {max_clients: 77}\n"
                .to_owned(),
        ..Options::default()
    };
    let router = Router::launch(None, options);
    router.await_read_write();
    (server, router)
}

fn dsn(router: &Router) -> String {
    router.dsn(6432, "dbname=pgbouncer user=stats password=stats")
}

fn told(router: &Router, command: &str) -> String {
    let mut psql = Command::new("psql");
    let psql = psql.args(["-XAt", "-P", "null=NULL", "-c", command]);
    succeed(psql.arg(dsn(router))).trim().to_owned()
}

/// A client in a session that lasts.
struct Client(Ended);

impl Client {
    fn of(router: &Router) -> Self {
        let mut psql = Command::new("psql");
        let psql = psql.arg("-XAtq").arg(router.dsn(6432, "")).stdin(Stdio::piped());
        Self(Ended(psql.stdout(Stdio::null()).spawn().unwrap()))
    }

    fn send(&mut self, sql: &str) {
        let input = self.0.0.stdin.as_mut().unwrap();
        writeln!(input, "{sql}").unwrap();
        input.flush().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_are_pgbouncers_in_order_and_type() {
    let (_server, router) = pooled();
    let config: tokio_postgres::Config = dsn(&router).parse().unwrap();
    let (client, connection) = config.connect(Rustls::new()).await.unwrap();
    tokio::spawn(connection);
    for (command, expected) in theirs() {
        let show = format!("SHOW {command}");
        match client.prepare(&show).await {
            Ok(statement) => {
                let columns: Vec<String> = statement
                    .columns()
                    .iter()
                    .map(|column| format!("{}:{}", column.name(), column.type_().name()))
                    .collect();
                assert_eq!(columns.join(" "), expected, "{show}");
                client.query(&statement, &[]).await.unwrap();
            }
            Err(error) => {
                let error = error.as_db_error().unwrap();
                assert_eq!(error.code().code(), "0A000", "{show}");
                assert!(error.hint().is_some(), "{show}");
            }
        }
    }
    for command in [
        "POOLS",
        "CLIENTS",
        "SERVERS",
        "STATS",
        "DATABASES",
        "LISTS",
        "CONFIG",
        "VERSION",
    ] {
        assert!(theirs().contains_key(command));
        assert!(client.simple_query(&format!("show {command};")).await.is_ok());
    }
}

/// What is compared with above is what the program says: `make test-bouncer` runs this.
#[test]
#[ignore = "make test-bouncer runs it"]
fn the_program_has_the_columns_that_the_console_is_compared_with() {
    let program = env::var("PGBOUNCER").unwrap_or_else(|_| "/usr/sbin/pgbouncer".to_owned());
    let version = succeed(Command::new(&program).arg("--version"));
    if !version.starts_with("PgBouncer 1.26.1\n") {
        eprintln!("not compared: {}", version.lines().next().unwrap_or_default());
        return;
    }
    let (dir, address) = (tempfile::tempdir().unwrap(), fresh_address());
    let configuration = dir.path().join("pgbouncer.ini");
    let text = format!(
        "[databases]\n* = host=127.0.0.1\n[pgbouncer]\nlisten_addr = {address}\nlisten_port = 6432\n\
         unix_socket_dir =\nauth_type = any\nadmin_users = admin\n"
    );
    fs::write(&configuration, text).unwrap();
    for (path, mode) in [(dir.path(), 0o755), (&configuration, 0o644)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut bouncer = Command::new(program);
    let _bouncer = Ended(
        bouncer
            .args(["-q", "-u", "nobody"])
            .arg(&configuration)
            .spawn()
            .unwrap(),
    );
    eventually("PgBouncer listens", LIMIT, || {
        TcpStream::connect((address, 6432)).is_ok()
    });
    let mut script = Command::new("python3");
    script.arg(project().join("tests/it/console_pgbouncer/columns.py"));
    script.args([&address.to_string(), "6432"]).args(theirs().keys());
    let mut expected: Vec<&str> = COLUMNS.lines().collect();
    expected.sort_unstable();
    assert_eq!(succeed(&mut script).lines().collect::<Vec<_>>(), expected);
}

#[test]
fn tables_say_what_sessions_and_pools_do() {
    let (_server, router) = pooled();
    let mut client = Client::of(&router);
    client.send("BEGIN; SELECT 1;");
    let pool = || {
        let all = told(&router, "SHOW POOLS");
        all.lines()
            .find(|line| line.starts_with("app|app|"))
            .map(str::to_owned)
    };
    let row = "app|app|1|0|NULL|NULL|1|NULL|NULL|0|0|0|0|0|0|transaction|NULL";
    eventually("the transaction is open", LIMIT, || {
        pool().as_deref() == Some(row)
    });
    let clients = told(&router, "SHOW CLIENTS");
    let session = clients
        .lines()
        .find(|line| line.starts_with("C|app|app|"))
        .unwrap();
    let fields: Vec<&str> = session.split('|').collect();
    assert_eq!((fields[4], fields[5]), ("active", "127.0.0.1"), "{session}");
    let servers = told(&router, "SHOW SERVERS");
    let server = servers
        .lines()
        .find(|line| line.starts_with("S|app|app|"))
        .unwrap();
    let linked: Vec<&str> = server.split('|').collect();
    // Each names the other.
    assert_eq!((fields[14], fields[15]), (linked[15], linked[14]), "{server}");
    assert_eq!((linked[4], linked[6]), ("active", "5432"), "{server}");
    client.send("COMMIT;");
    let row = "app|app|1|0|NULL|NULL|0|NULL|NULL|1|0|0|0|0|0|transaction|NULL";
    eventually("the connection is idle", LIMIT, || pool().as_deref() == Some(row));
    let databases = told(&router, "SHOW DATABASES");
    let row = "app|NULL|NULL|app|NULL|7|NULL|0|NULL|transaction|NULL|0|1|0|1|0|0";
    assert!(databases.lines().any(|line| line == row), "{databases}");
    let stats = told(&router, "SHOW STATS_TOTALS");
    let app = stats.lines().find(|line| line.starts_with("app|")).unwrap();
    let fields: Vec<&str> = app.split('|').collect();
    assert_eq!((fields[1], fields[2], fields[12]), ("NaN", "1", "1"), "{app}");
    assert!(fields[4].parse::<u64>().unwrap() > 20, "{app}");
    let lists = told(&router, "SHOW LISTS");
    assert!(lists.lines().any(|line| line == "used_servers|1"), "{lists}");
    let config = told(&router, "SHOW CONFIG");
    for line in ["max_client_conn|77|5000|yes", "limits.max_clients|77|5000|yes"] {
        assert!(config.lines().any(|shown| shown == line), "{line}: {config}");
    }
    assert_eq!(told(&router, "SHOW STATE"), "active|yes\npaused|no");
    let version = told(&router, "SHOW VERSION");
    assert!(
        version.starts_with("Trunkline ") && version.contains("PgBouncer 1.26.1"),
        "{version}"
    );
    let refused = output(Command::new("psql").args(["-XAtc", "SHOW MEM"]).arg(dsn(&router)));
    let refused = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.contains("HINT:  Use SELECT"), "{refused}");
}

#[test]
fn an_exporter_for_pgbouncer_is_served() {
    let (_server, router) = pooled();
    let address = fresh_address();
    let config = router.dir().join("exporter.yaml");
    let text = format!(
        "exporter_host: {address}\nexporter_port: 9127\npgbouncers:\n  \
         - dsn: \"postgresql://stats:stats@{}:6432/pgbouncer?sslmode=require\"\n",
        router.address
    );
    fs::write(&config, text).unwrap();
    let mut exporter = Command::new(cache().join("pgbouncer-exporter/bin/python"));
    exporter.args([
        "-c",
        "from prometheus_pgbouncer_exporter.cli import main; main()",
        "--config",
    ]);
    exporter.arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
    let _exporter = Ended(exporter.spawn().unwrap());
    let at = SocketAddr::from((address, 9127));
    eventually("the exporter listens", LIMIT, || TcpStream::connect(at).is_ok());
    let metric = |name: &str| {
        let url = format!("http://{at}/metrics");
        let text = succeed(Command::new("curl").args(["-sf", &url]));
        let found = text.lines().find_map(|line| line.strip_prefix(name));
        found.map(|value| value.trim().to_owned())
    };
    let mut client = Client::of(&router);
    let active = "pgbouncer_pools_server_active_connections{database=\"app\",user=\"app\"}";
    let idle = "pgbouncer_pools_server_idle_connections{database=\"app\",user=\"app\"}";
    client.send("BEGIN; SELECT 1;");
    eventually("the connection is active", LIMIT, || {
        metric(active).as_deref() == Some("1.0") && metric(idle).as_deref() == Some("0.0")
    });
    client.send("COMMIT;");
    eventually("the connection is idle", LIMIT, || {
        metric(active).as_deref() == Some("0.0") && metric(idle).as_deref() == Some("1.0")
    });
    for (name, value) in [
        ("pgbouncer_up", "1.0"),
        ("pgbouncer_config_max_client_conn", "77.0"),
        ("pgbouncer_stats_transactions_total{database=\"app\"}", "1.0"),
        ("pgbouncer_stats_queries_total{database=\"app\"}", "NaN"),
        (
            "pgbouncer_databases_database_pool_size{backend_database=\"app\",database=\"app\"}",
            "7.0",
        ),
    ] {
        assert_eq!(metric(name).as_deref(), Some(value), "{name}");
    }
}

/// Its actions for PgBouncer, as Nagios runs them.
#[test]
fn check_postgres_is_served() {
    let (_server, router) = pooled();
    let mut client = Client::of(&router);
    client.send("BEGIN; SELECT 1;");
    let host = router.address.to_string();
    let check = |action: &str, limits: &[&str]| {
        let mut check = Command::new("check_postgres");
        check.args(["--db", "pgbouncer", "-p", "6432", "-u", "stats", "-H", &host]);
        check.arg(format!("--action={action}")).args(limits);
        let told = output(check.env("PGPASSWORD", "stats"));
        String::from_utf8(told.stdout).unwrap()
    };
    let pool = |action: &str| check(action, &["-w", "10", "-c", "20", "--include=app"]);
    eventually("the transaction is seen", LIMIT, || {
        pool("pgb_pool_sv_active").contains("app=1 ")
    });
    for (action, expected) in [
        ("pgb_pool_cl_active", "app=1 "),
        ("pgb_pool_cl_waiting", "app=0 "),
        ("pgb_pool_sv_idle", "app=0 "),
        ("pgb_pool_sv_used", "app=0 "),
        ("pgb_pool_sv_tested", "app=0 "),
        ("pgb_pool_sv_login", "app=0 "),
        ("pgb_pool_maxwait", "app=0 "),
    ] {
        let told = pool(action);
        assert!(
            told.contains(" OK: ") && told.contains(expected),
            "{action}: {told}"
        );
    }
    let told = check("pgb_pool_cl_active", &["-w", "1", "-c", "20", "--include=app"]);
    assert!(told.contains(" WARNING: "), "{told}");
    let told = check("pgbouncer_backends", &["--include=app"]);
    assert!(
        told.contains(" OK: ") && told.contains("1 of 77 connections"),
        "{told}"
    );
    // Without one to compare with, it says the checksum.
    let told = check("pgbouncer_checksum", &["--critical=0"]);
    let sum = told.split_whitespace().find(|word| word.len() == 32);
    let sum = sum.unwrap_or_else(|| panic!("{told}"));
    let told = check("pgbouncer_checksum", &[&format!("--critical={sum}")]);
    assert!(told.contains(" OK: "), "{told}");
}
