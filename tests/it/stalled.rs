//! What is outside of the process may stall: who reads the log, the name service. Nobody waits for
//! it.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use super::fake::{Fake, Session};
use super::hand::{Raw, V3_0};
use super::limits::before;
use crate::cluster::{Options, Router, eventually, fresh_address, output};

const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the command with a pipe of 4 KiB as standard error, whose other end, descriptor 19, nobody
/// reads.
const STALLED: &str = "import fcntl, os, sys
r, w = os.pipe()
fcntl.fcntl(w, 1031, 4096)
os.dup2(r, 19)
os.dup2(w, 2)
os.execv(sys.argv[1], sys.argv[1:])";

fn stalled(format: &str) -> Options {
    Options {
        prefix: ["python3", "-c", STALLED].map(str::to_owned).to_vec(),
        extra: format!("log: {{level: debug, format: {format}}}\nshutdown: {{grace: 5s}}\n"),
        ..Options::default()
    }
}

/// As `app`, to the end of a statement.
fn log_in(router: &Router) -> Raw {
    let mut raw = Raw::connect(router.address, 6432);
    raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
    let last = raw.begin_scram("app").unwrap().pop().unwrap();
    assert_eq!(last.tag, b'Z', "{last:?}");
    assert_eq!(raw.value("SELECT 1"), "1");
    raw
}

/// So many health checks, on one connection; each makes a line at the level `debug`.
fn check(router: &Router, times: usize) {
    let mut stream = TcpStream::connect(SocketAddr::from((router.address, 6434))).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut asked = String::new();
    for _ in 1..times {
        asked.push_str("GET /connection/is-live HTTP/1.1\r\nHost: r\r\n\r\n");
    }
    let _ = write!(
        asked,
        "GET /connection/is-live HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n"
    );
    let mut answers = stream.try_clone().unwrap();
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        answers.read_to_string(&mut text).unwrap();
        text
    });
    stream.write_all(asked.as_bytes()).unwrap();
    assert_eq!(reading.join().unwrap().matches(" 200 OK").count(), times);
}

#[test]
fn a_log_that_nobody_reads_stops_nobody_and_loses_lines_that_are_counted() {
    for (format, logins) in [("text", 200), ("json", 20)] {
        let server = Fake::start(Session::answer_all);
        let mut router = before(&server, "", stalled(format));
        let mut first = log_in(&router);
        for _ in 0..logins {
            drop(log_in(&router));
        }
        assert_eq!(first.value("SELECT 1"), "1", "sessions that are there go on");
        check(&router, 6000);
        let lost = router.metric("trunkline_log_lines_lost_total");
        assert!(lost > 0.0, "{lost}");
        // The reader comes back.
        let mut reader = File::open(format!("/proc/{}/fd/19", router.process_id())).unwrap();
        let (mut text, mut part) = (String::new(), vec![0; 65536]);
        let mut told = None;
        eventually("how many lines were lost is told", PATIENCE, || {
            let read = reader.read(&mut part).unwrap();
            text.push_str(&String::from_utf8_lossy(&part[..read]));
            // There may be more to read, and nothing comes by itself.
            check(&router, 1);
            let line = text
                .lines()
                .find(|line| line.contains("lines of the log were lost here"));
            told = line.map(str::to_owned);
            told.is_some()
        });
        let told = told.unwrap();
        assert!(told.contains("lines") && told.contains("WARN"), "{told}");
        drop(reader);
        // And stalls again.
        check(&router, 1000);
        router.signal("TERM");
        let code = router.await_exit(PATIENCE);
        assert_eq!(code, 0, "it ends in time");
    }
}

/// A name service that is asked and says nothing, in a mount namespace of its own.
#[test]
fn a_silent_name_service_does_not_hold_up_the_end() {
    let may = output(Command::new("unshare").args(["-m", "true"]));
    if !may.status.success() {
        eprintln!("SKIPPED: a mount namespace is not to be had here (root?)");
        return;
    }
    let silent = fresh_address();
    let service = UdpSocket::bind((silent, 53)).unwrap();
    service.set_read_timeout(Some(PATIENCE)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let resolv = directory.path().join("resolv.conf");
    let text = format!("nameserver {silent}\noptions timeout:30 attempts:5\n");
    std::fs::write(&resolv, text).unwrap();
    let bind = format!(
        "mount --bind {} /etc/resolv.conf && exec \"$0\" \"$@\"",
        resolv.display()
    );
    let mut router = Router::launch(
        None,
        Options {
            prefix: vec!["unshare".into(), "-m".into(), "sh".into(), "-c".into(), bind],
            clusters: Some(
                "clusters:\n  main:\n    servers: [{name: one, host: db.example, port: 5432}]\n    \
                 service_account: {user: trunkline, dbname: postgres}\n"
                    .to_owned(),
            ),
            tls: Some(String::new()),
            ..Options::default()
        },
    );
    service.recv(&mut [0; 512]).unwrap();
    router.signal("TERM");
    assert_eq!(router.await_exit(PATIENCE), 0, "{}", router.log());
}
