//! Clients on a Unix socket.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::BytesMut;
use trunkline::wire::message;

use super::hand::{GSS_REQUEST, SSL_REQUEST};
use crate::cluster::{Cluster, Options, Router, eventually, output};

const PATIENCE: Duration = Duration::from_secs(20);

/// Beside the usual ports a Unix socket in `dir`, its mode 0700.
fn options(dir: &Path) -> Options {
    Options {
        listeners: Some(format!(
            "  - {{name: rw, address: \"{{address}}:6432\", route: read-write}}\n  \
             - {{name: ro, address: \"{{address}}:6433\", route: read-only}}\n  \
             - {{name: local, address: {}, socket_mode: \"0700\", route: read-write, max_clients: 2}}\n",
            socket(dir).display()
        )),
        ..Options::default()
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join(".s.PGSQL.6432")
}

fn dsn(dir: &Path) -> String {
    format!(
        "host={} port=6432 user=app password=app dbname=app connect_timeout=10",
        dir.display()
    )
}

fn psql(dir: &Path, sql: &str) -> Command {
    let mut command = Command::new("psql");
    command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql, &dsn(dir)]);
    command
}

fn told(command: &mut Command) -> String {
    let output = output(command);
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout).trim(),
        String::from_utf8_lossy(&output.stderr).trim()
    )
}

fn connect(dir: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket(dir)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn sessions_cancel_and_limits() {
    let dir = tempfile::tempdir().unwrap();
    let router = Router::before(Cluster::shared(), options(dir.path()));
    assert_eq!(told(&mut psql(dir.path(), "SELECT 6 * 7")), "42");
    let line = router.await_log(&["session ended", "client=[local]"]);
    assert!(line.contains("tls=\"-\"") && line.contains("user=app"), "{line}");
    // One client: pgbench's first connection, which only looks around, may still be ending, and two
    // is the limit.
    let bench = told(
        Command::new("pgbench")
            .args(["-n", "-c1", "-t400", "-f", "/dev/stdin"])
            .arg(dsn(dir.path()))
            .stdin(script()),
    );
    assert!(
        bench.contains("number of transactions actually processed: 400/400"),
        "{bench}"
    );
    let big = "SELECT length(string_agg(repeat('x', 1000), '')) FROM generate_series(1, 5000)";
    assert_eq!(told(&mut psql(dir.path(), big)), "5000000");
    let wide = told(&mut psql(dir.path(), "SELECT repeat('x', 3000000)"));
    assert_eq!(wide.len(), 3_000_000);
    let wrong = dsn(dir.path()).replace("password=app", "password=no");
    let wrong = told(Command::new("psql").args(["-XAtqc", "SELECT 1", &wrong]));
    assert!(wrong.contains("password authentication failed"), "{wrong}");

    let sleeping = |seconds: u32| {
        let mut command = psql(
            dir.path(),
            &format!("SELECT pg_sleep({seconds}), 'on the socket'"),
        );
        command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut sleeper = sleeping(60);
    let running = || {
        router
            .psql(
                6432,
                "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%on the socket%' \
                 AND pid <> pg_backend_pid()",
            )
            .parse::<u32>()
            .unwrap()
    };
    eventually("it runs", PATIENCE, || running() == 1);
    // psql sends a cancel request at SIGINT, over the socket.
    interrupt(&sleeper);
    let mut error = String::new();
    sleeper.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert!(
        error.contains("canceling statement due to user request"),
        "{error}"
    );
    sleeper.wait().unwrap();

    let mut held = [sleeping(60), sleeping(60)];
    eventually("both run", PATIENCE, || running() == 2);
    let third = told(&mut psql(dir.path(), "SELECT 1"));
    assert!(third.contains("sorry, too many clients already"), "{third}");
    assert_eq!(router.psql(6432, "SELECT 'beside'"), "beside");
    for sleeper in &mut held {
        interrupt(sleeper);
        sleeper.wait().unwrap();
    }
}

fn script() -> Stdio {
    let (read, mut write) = std::io::pipe().unwrap();
    write.write_all(b"SELECT 1;\n").unwrap();
    read.into()
}

fn interrupt(child: &Child) {
    let status = Command::new("kill")
        .args(["-s", "INT", &child.id().to_string()])
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn there_is_no_tls_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let router = Router::before(Cluster::shared(), options(dir.path()));
    let mut stream = connect(dir.path());
    let mut answer = [0];
    for request in [GSS_REQUEST, SSL_REQUEST] {
        stream.write_all(request).unwrap();
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"N");
    }
    let mut packet = BytesMut::new();
    let parameters: &[(&[u8], &[u8])] = &[(b"user", b"app")];
    message::startup(
        &mut packet,
        trunkline::wire::startup::ProtocolVersion::V3_0,
        parameters,
    );
    stream.write_all(&packet).unwrap();
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"R");
    // Direct TLS: no answer and the end.
    let mut stream = connect(dir.path());
    stream
        .write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3])
        .unwrap();
    let mut all = Vec::new();
    let _reset_or_end = stream.read_to_end(&mut all);
    assert_eq!(all, b"");
    assert_eq!(router.metric("trunkline_login_failure_addresses"), 0.0);
}

#[test]
fn its_file_has_its_mode_replaces_a_stale_one_and_is_gone_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = socket(dir.path());
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "left behind, as by a crash");
    let mut router = Router::before(Cluster::shared(), options(dir.path()));
    let about = fs::metadata(&path).unwrap();
    assert!(about.file_type().is_socket());
    assert_eq!(about.permissions().mode() & 0o7777, 0o700);
    assert_eq!(told(&mut psql(dir.path(), "SELECT 1")), "1");
    router.signal("TERM");
    assert_eq!(router.await_exit(PATIENCE), 0);
    assert!(!path.exists());
}

#[test]
fn what_is_not_a_stale_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = socket(dir.path());
    let start = || {
        let home = tempfile::tempdir().unwrap();
        let address = crate::cluster::fresh_address();
        let text = Router::configuration(
            Some(Cluster::shared()),
            &options(dir.path()),
            home.path(),
            address,
        );
        let file = home.path().join("trunkline.yaml");
        fs::write(&file, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
        output(command.args(["run", "-c"]).arg(file))
    };
    let live = UnixListener::bind(&path).unwrap();
    let refused = start();
    assert!(!refused.status.success());
    let error = String::from_utf8_lossy(&refused.stderr);
    let expected = format!(
        "listener local: cannot listen on {}: it is in use by another program",
        path.display()
    );
    assert!(error.contains(&expected), "{error}");
    assert!(UnixStream::connect(&path).is_ok());
    drop(live);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "kept").unwrap();
    let refused = start();
    assert!(!refused.status.success());
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(error.contains("there is a file that is not a socket"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "kept");
}
