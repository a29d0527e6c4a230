//! Drivers before pools of the router's: their usual use, and with pools of their own on top and
//! their prepared statements on. The programs in `tests/drivers/pools` do the same work, each in
//! its driver's way: many tasks over a few connections of the driver's pool, with settings made
//! once, prepared statements, transactions, savepoints, errors, time-outs, cancels and COPY. Each
//! asserts what it reads.
//!
//! `make test-drivers` runs all of them, with more tasks than CI.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::{FIRST_PORT, bind_named, login, parse_named, router, seen};
use crate::cluster::postgres::{self, Postgres};
use crate::cluster::{Cluster, Options, Router, eventually, project, succeed};
use crate::drivers::{asyncpg_driver, cache, node, pgjdbc, psycopg, run_before};
use crate::raw::{Client, execute, sync};

/// The same programs that use a server of their own, whose sessions share server connections.
#[test]
fn each_driver_uses_a_pool_as_it_uses_a_server() {
    for mode in ["transaction", "session"] {
        let pool = format!("pool: {{mode: {mode}, max_connections: 8}}");
        let router = Router::before(
            Cluster::shared(),
            Options {
                extra: format!(
                    "routes:\n  read-write: {{targets: [leader], {pool}}}\n  \
                     read-only: {{targets: [replica], {pool}}}\n"
                ),
                ..Options::default()
            },
        );
        for command in [psycopg(), asyncpg_driver(), node(), pgjdbc()] {
            run_before(&router, command);
        }
    }
}

fn program(file: &str) -> PathBuf {
    project().join("tests/drivers/pools").join(file)
}

fn python(file: &str) -> Command {
    let mut command = Command::new(cache().join("drivers-python/bin/python"));
    command.arg(program(file));
    command
}

fn javascript(file: &str) -> Command {
    let mut command = Command::new("node");
    command
        .arg(program(file))
        .env("NODE_PATH", cache().join("drivers-node/node_modules"));
    command
}

#[test]
fn psycopg_with_its_pool() {
    work(|| python("psycopg_pool_driver.py"));
}

#[test]
fn asyncpg_with_its_pool_and_its_reset_query() {
    work(|| python("asyncpg_pool_driver.py"));
}

#[test]
fn node_postgres_with_its_pool() {
    work(|| javascript("node_pg_pool.js"));
}

#[test]
#[ignore = "long: `make test-drivers`"]
fn postgres_js() {
    work(|| javascript("postgres_js.js"));
}

#[test]
fn pgjdbc_with_hikaricp_and_large_objects() {
    work(|| {
        let mut command = Command::new("java");
        let jars = ["postgresql", "HikariCP", "slf4j-api", "slf4j-nop"]
            .map(|jar| format!("/usr/share/java/{jar}.jar"));
        command
            .args(["-XX:TieredStopAtLevel=1", "-cp", &jars.join(":")])
            .arg(program("Hikari.java"));
        command
    });
}

#[test]
#[ignore = "long: `make test-drivers`"]
fn sqlalchemy_with_psycopg_and_with_asyncpg() {
    work(|| python("sqlalchemy_pools.py"));
}

#[test]
#[ignore = "long: `make test-drivers`"]
fn django_with_persistent_connections_and_with_its_pool() {
    work(|| python("django_orm.py"));
}

/// A crate of its own, with a hundred dependencies: `make test-drivers`.
#[test]
#[ignore = "builds tests/drivers/rust: `make test-drivers`"]
fn deadpool_postgres_and_sqlx() {
    let directory = project().join("tests/drivers/rust");
    succeed(
        Command::new("cargo")
            .args(["build", "--locked", "--quiet", "--target-dir"])
            .arg(project().join("target/drivers"))
            .current_dir(&directory),
    );
    for driver in ["deadpool", "sqlx"] {
        work(|| {
            let mut command = Command::new(project().join("target/drivers/debug/drivers"));
            command.arg(driver);
            command
        });
    }
}

/// In two schemas at once over two server connections, then in session mode, always beside a
/// stranger that has statements of the same names and settings of its own.
fn work(command: impl Fn() -> Command) {
    let server = Postgres::start(&postgres::Options::default());
    let router = router(
        &server,
        &["max_connections: 2", "mode: session, max_connections: 20"],
        "60s",
    );
    for (port, schemas) in [(FIRST_PORT, &["one", "two"][..]), (FIRST_PORT + 1, &["one"][..])] {
        for schema in schemas {
            prepare(&server, schema);
        }
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let stranger = scope.spawn(|| stranger(&router, port, &done));
            let mut running: Vec<Running> = schemas
                .iter()
                .map(|schema| Running::start(command(), &router, port, schema))
                .collect();
            let said: Vec<String> = running.iter_mut().filter_map(Running::fault).collect();
            done.store(true, Ordering::Relaxed);
            let rounds = stranger.join();
            assert!(said.is_empty(), "{}", said.join("\n"));
            assert!(rounds.unwrap() > 0);
        });
        for schema in schemas {
            let sum = server.sql_in("app", &format!("SELECT sum(amount) FROM {schema}.account"));
            assert_eq!(sum, "8000", "no transfer is lost or done by half");
        }
        if port == FIRST_PORT {
            let held = server.sql("SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'");
            assert!(held.parse::<u32>().unwrap() <= 2, "{held} connections");
        }
        let locks = || server.sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'");
        eventually(
            "the locks of sessions that ended are gone",
            Duration::from_secs(10),
            || locks() == "0",
        );
    }
}

/// The same tables under the same names, with other types of columns.
fn prepare(server: &Postgres, schema: &str) {
    let amount = if schema == "one" { "bigint" } else { "int" };
    server.sql_in(
        "app",
        &format!(
            "DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema} AUTHORIZATION app; \
             SET ROLE app; SET search_path = {schema}; \
             CREATE TABLE account (id int PRIMARY KEY, amount {amount} NOT NULL CHECK (amount >= 0)); \
             INSERT INTO account SELECT id, 1000 FROM generate_series(1, 8) id; \
             CREATE TABLE line (task int, text text); \
             CREATE TABLE entry (id bigserial PRIMARY KEY, task int, text text); \
             CREATE TABLE place AS SELECT '{schema}' AS name"
        ),
    );
}

/// A session with settings of its own, and with statements under the names that the drivers use.
/// Says how often it looked.
fn stranger(router: &Router, port: u16, done: &AtomicBool) -> u32 {
    let mut client = login(router, port, "app", "app");
    client.ask("SET search_path = ''; SET statement_timeout = '59s'; SET app.tenant = 'stranger'");
    let names = [
        "s0",
        "_pg3_0",
        "_pg3_1",
        "__asyncpg_stmt_1__",
        "__asyncpg_stmt_2__",
        "S_1",
        "S_2",
        "own",
        "twice",
        "sqlx_s_1",
    ];
    for (number, name) in names.iter().enumerate() {
        client.send(
            &[
                parse_named(name, &format!("SELECT {number}, $1::text"), &[]),
                sync(),
            ]
            .concat(),
        );
        client.ready();
    }
    let mut rounds = 0;
    while !done.load(Ordering::Relaxed) {
        for (number, name) in names.iter().enumerate() {
            client.send(&[bind_named(name, &["mine"]), execute(), sync()].concat());
            assert_eq!(seen(&client.ready()), format!("{number},mine"), "{name}");
        }
        assert_eq!(settings(&mut client), "\"\",59s,stranger,4MB,off,read committed");
        rounds += 1;
    }
    rounds
}

fn settings(client: &mut Client) -> String {
    let names = [
        "search_path",
        "statement_timeout",
        "app.tenant",
        "work_mem",
        "default_transaction_read_only",
        "default_transaction_isolation",
    ];
    seen(&client.ask(&format!(
        "SELECT {}",
        names.map(|name| format!("current_setting('{name}')")).join(", ")
    )))
}

/// A driver's program; it must end well and say so.
struct Running {
    child: Child,
    output: PathBuf,
    _dir: tempfile::TempDir,
}

impl Running {
    fn start(mut command: Command, router: &Router, port: u16, schema: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("output");
        let file = fs::File::create(&output).unwrap();
        let tasks = std::env::var("TRUNKLINE_TEST_DRIVER_TASKS").unwrap_or_else(|_| "8".to_owned());
        let child = command
            .env("HOST", router.address.to_string())
            .env("PORT", port.to_string())
            .env("SCHEMA", schema)
            .env("TASKS", tasks)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error: io::Error| panic!("{command:?}: {error}"));
        Self {
            child,
            output,
            _dir: dir,
        }
    }

    /// What it said, if it did not end well.
    fn fault(&mut self) -> Option<String> {
        let status = self.child.wait().unwrap();
        let said = fs::read_to_string(&self.output).unwrap();
        (!status.success() || !said.trim().ends_with("done")).then_some(said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
