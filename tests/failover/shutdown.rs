//! SIGTERM and SIGINT: what each session sees, and when the process is gone.

use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use super::cluster::{Cluster, Options, Router, eventually, pause};
use super::session::{Report, Session};

fn with_grace(grace: &str) -> Router {
    let options = Options {
        extra: format!("shutdown: {{grace: {grace}}}\n"),
        ..Options::default()
    };
    Router::before(Cluster::shared(), options)
}

fn told_of_the_shutdown(report: &Report) {
    assert_eq!(
        (report.severity.as_str(), report.code.as_str()),
        ("FATAL", "57P01"),
        "{report:?}"
    );
    assert!(report.message.contains("shutting down"), "{report:?}");
    assert!(!report.hint.is_empty());
}

fn a_shutdown(signal: &str) {
    let mut router = with_grace("60s");
    let at = router.address;
    let mut idle = Session::open(at, 6432).unwrap();
    let mut reader = Session::open(at, 6433).unwrap();
    let mut in_transaction = Session::open(at, 6432).unwrap();
    in_transaction.query("BEGIN");
    let mut statement = Session::open(at, 6432).unwrap();
    let marker = format!("statement-at-{signal}");
    // Long enough to be seen at work by another connection of a busy machine.
    statement.send(&format!("SELECT '{marker}', pg_sleep(4)"));
    let leader = Cluster::shared().node(&Cluster::shared().leader());
    let running = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT ''{marker}%' AND state = 'active'"
    );
    eventually("it runs", Duration::from_secs(5), || leader.sql(&running) == "1");
    // Have not said yet what they want; they must not hold up the end.
    let mute = TcpStream::connect((at, 6432)).unwrap();
    let mut half = TcpStream::connect((at, 6432)).unwrap();
    std::io::Write::write_all(&mut half, &[0, 0, 0, 100, 0, 3]).unwrap();

    let begun = Instant::now();
    router.signal(signal);
    told_of_the_shutdown(&idle.end(Duration::from_secs(2)).ended());
    told_of_the_shutdown(&reader.end(Duration::from_secs(2)).ended());
    eventually("it accepts nobody any more", Duration::from_secs(1), || {
        [6432, 6433]
            .iter()
            .all(|port| TcpStream::connect((at, *port)).is_err())
    });
    assert_eq!(router.http("/connection/is-ready").unwrap().0, 503);
    assert_eq!(router.http("/connection/is-live").unwrap().0, 200);
    let answer = statement.end(Duration::from_secs(20));
    assert_eq!(answer.tags(), "TDCZE", "its answer, and only then the end");
    told_of_the_shutdown(&answer.errors()[0]);

    assert_eq!(
        in_transaction.query("SELECT 41 + 1"),
        "42",
        "a transaction goes on"
    );
    in_transaction.send("COMMIT");
    let answer = in_transaction.end(Duration::from_secs(2));
    assert_eq!(answer.tags(), "CZE", "it may finish");
    assert!(answer.closed);
    told_of_the_shutdown(&answer.errors()[0]);
    drop((idle, reader, in_transaction, statement));
    assert_eq!(router.await_exit(Duration::from_secs(10)), 0);
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "long before the grace: {:?}",
        begun.elapsed()
    );
    drop((mute, half));
}

#[test]
fn sigterm_ends_sessions_at_their_next_boundary() {
    a_shutdown("TERM");
}

#[test]
fn sigint_ends_sessions_at_their_next_boundary() {
    a_shutdown("INT");
}

/// What is left is cut, and the server does not work on for nobody.
fn cut(router: &mut Router, marker: &str, after: impl FnOnce(&Router)) {
    let mut open = Session::open(router.address, 6432).unwrap();
    open.query("BEGIN");
    let mut busy = Session::open(router.address, 6432).unwrap();
    busy.send(&format!("SELECT '{marker}', pg_sleep(300)"));
    let leader = Cluster::shared().node(&Cluster::shared().leader());
    let running = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%{marker}%' AND pid <> pg_backend_pid() AND state = 'active'"
    );
    eventually("it runs", Duration::from_secs(5), || leader.sql(&running) == "1");
    router.signal("TERM");
    after(router);
    told_of_the_shutdown(&open.end(Duration::from_secs(5)).ended());
    let told = busy.end(Duration::from_secs(5)).ended();
    assert_eq!(told.code, "08007", "{told:?}");
    assert!(told.message.contains("shutting down"), "{told:?}");
    drop((open, busy));
    assert_eq!(router.await_exit(Duration::from_secs(5)), 0);
    eventually("the statement is cancelled", Duration::from_secs(5), || {
        leader.sql(&running) == "0"
    });
}

#[test]
fn what_does_not_finish_is_cut_at_the_grace() {
    let mut router = with_grace("1s");
    let begun = Instant::now();
    cut(&mut router, "cut-at-grace", |_| {});
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

#[test]
fn a_second_signal_cuts_at_once() {
    let mut router = with_grace("10m");
    cut(&mut router, "cut-at-second", |router| {
        router.await_log(&["ending sessions"]);
        // Not before the first one has been taken: signals of a kind are not counted.
        pause(Duration::from_millis(50));
        router.signal("INT");
    });
}

#[test]
fn replication_ends_at_once() {
    let mut router = with_grace("10m");
    let dir = tempfile::tempdir().unwrap();
    let mut receiver = Command::new("/usr/lib/postgresql/15/bin/pg_receivewal")
        .args(["--no-loop", "-D"])
        .arg(dir.path())
        .args([
            "-d",
            &format!(
                "host={} port=6432 user=app_repl password=app_repl sslmode=require",
                router.address
            ),
        ])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("WAL arrives", Duration::from_secs(20), || {
        std::fs::read_dir(dir.path()).unwrap().count() > 0
    });
    router.signal("TERM");
    let mut status = None;
    eventually("the receiver is told to leave", Duration::from_secs(5), || {
        status = receiver.try_wait().unwrap();
        status.is_some()
    });
    assert!(!status.unwrap().success());
    assert_eq!(router.await_exit(Duration::from_secs(5)), 0);
}
