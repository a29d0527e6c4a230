//! A leader that goes silent because packets are lost on the way: nobody resets anything, nobody
//! says goodbye.
//!
//! The cluster lives in a network namespace; a wire of tun devices leads there, and drops what the
//! test tells it to. Needs root and `/dev/net/tun`; without them the test says so and is over.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use super::cluster::{Cluster, Options, Router, eventually, project};
use super::session::{Session, spread};

const LISTENERS: &str = "  - {name: rw, address: \"{address}:6432\", route: read-write}\n  \
                         - {name: ro, address: \"{address}:6433\", route: read-only}\n  \
                         - {name: forward, address: \"{address}:6532\", route: read-write, mode: tcp}\n";

/// From this network namespace to others of its own.
pub struct Wire {
    pub namespaces: Vec<String>,
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Wire {
    /// Our addresses, and those in each other namespace; all in one network. `None` where this
    /// machine does not allow it.
    pub fn lay(device: &str, ours: &[&str], others: &[&[&str]]) -> Option<Self> {
        let list = |addresses: &[&str]| {
            let whole: Vec<String> = addresses.iter().map(|address| format!("{address}/24")).collect();
            whole.join(",")
        };
        let tun = OpenOptions::new().read(true).write(true).open("/dev/net/tun");
        if tun.is_err() {
            return None;
        }
        let (mut namespaces, mut theirs) = (Vec::new(), Vec::new());
        for (number, addresses) in (1..).zip(others) {
            let namespace = format!("trunkline-{}-{device}{number}", std::process::id());
            let made = Command::new("ip").args(["netns", "add", &namespace]).status();
            if !made.is_ok_and(|status| status.success()) {
                return None;
            }
            theirs.push(format!("{namespace}={}", list(addresses)));
            namespaces.push(namespace);
        }
        let mut process = Command::new("/usr/bin/python3")
            .arg(project().join("tests/failover/wire.py"))
            .args([device, &list(ours)])
            .args(theirs)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (input, output) = (
            process.stdin.take(),
            BufReader::new(process.stdout.take().unwrap()),
        );
        let mut wire = Self {
            namespaces,
            process,
            input,
            output,
        };
        wire.expect("up");
        Some(wire)
    }

    fn expect(&mut self, word: &str) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), word);
    }

    /// `drop` or `pass` for what goes to and from an address, or between two (separated by a
    /// blank).
    pub fn tell(&mut self, command: &str, addresses: &str) {
        writeln!(self.input.as_mut().unwrap(), "{command} {addresses}").unwrap();
        self.expect("done");
    }

    /// What runs a command in the n-th other namespace.
    pub fn prefix(&self, number: usize) -> [&str; 4] {
        ["ip", "netns", "exec", &self.namespaces[number]]
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.input = None;
        let _ = self.process.wait();
        for namespace in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

#[test]
#[allow(clippy::print_stderr, reason = "a test that is left out says so")]
fn a_leader_whose_packets_are_lost_costs_bounded_time_and_nobody_elses_session() {
    let nodes = ["10.231.30.11", "10.231.30.12", "10.231.30.13"];
    let Some(mut wire) = Wire::lay("tlwire", &["10.231.30.1"], &[&nodes]) else {
        eprintln!("SKIPPED: network namespaces or /dev/net/tun are not to be had here (root?)");
        return;
    };
    let cluster = Cluster::start_in(
        &wire.prefix(0),
        nodes[0],
        14090,
        &["--ttl", "20", "--loop-wait", "1", "--name", "silent"],
    );
    let quick = "server: {connect_timeout: 1s, keepalive: 1s, tcp_user_timeout: 3s}";
    let quick = Router::before(
        &cluster,
        Options {
            cluster_extra: quick.into(),
            listeners: Some(LISTENERS.to_owned()),
            ..Options::default()
        },
    );
    let patient = Router::before(&cluster, Options::default());
    let leader = cluster.node(&cluster.leader());
    let mut idle = Session::open(quick.address, 6432).unwrap();
    let mut busy = Session::open(quick.address, 6432).unwrap();
    let mut forwarded = Session::open(quick.address, 6532).unwrap();
    let mut asking = Session::open(quick.address, 6532).unwrap();
    let mut waiting = Session::open(patient.address, 6432).unwrap();
    let (mut readers, places) = spread(quick.address, 6433, 4);
    assert_eq!(places.len(), 2);

    wire.tell("drop", &leader.address);
    asking.send("SELECT 1");
    busy.send("CREATE TABLE nobody_knows (n int)");
    let begun = Instant::now();
    let report = Session::refused(quick.address, 6432);
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "connect_timeout is 1 s: {:?}",
        begun.elapsed()
    );
    assert_eq!(report.code, "57P03", "{report:?}");
    let told = busy.end(Duration::from_secs(10)).ended();
    assert_eq!(told.code, "08007", "{told:?}");
    let told = idle.end(Duration::from_secs(10)).ended();
    assert_eq!(told.code, "08006", "{told:?}");
    for session in [&mut asking, &mut forwarded] {
        let end = session.end(Duration::from_secs(10));
        assert!(end.closed && end.frames.is_empty(), "{end:?}");
    }
    quick.await_log(&["session ended", "mode=\"tcp\"", "connection to the server lost"]);
    for router in [&quick, &patient] {
        eventually("the silence is known", Duration::from_secs(10), || {
            router.http("/connection/is-ready-rw?strict=1").unwrap().0 == 503
        });
        let report = Session::refused(router.address, 6432);
        assert!(
            report.message.contains("cannot be reached") || report.hint.contains(&leader.name),
            "{report:?}"
        );
    }
    for reader in &mut readers {
        assert_eq!(
            reader.query("SELECT pg_is_in_recovery()"),
            "t",
            "nobody else's session is concerned"
        );
    }
    assert!(waiting.is_open(), "keepalive has not given up yet");

    // Another leader: who still waits for the silent one is told to leave.
    let new = cluster.control("switchover", &[]);
    let told = waiting.end(Duration::from_secs(10)).ended();
    assert_eq!(told.code, "57P01", "{told:?}");
    assert!(told.message.contains(new.trim()), "{told:?}");
    let on_new = cluster.node(new.trim()).address;
    for router in [&quick, &patient] {
        eventually("the new leader serves", Duration::from_secs(10), || {
            Session::open(router.address, 6432).is_ok_and(|mut session| session.server() == on_new)
        });
    }
    wire.tell("pass", &leader.address);
    eventually(
        "the silent one is back, as a replica",
        Duration::from_secs(30),
        || Session::open(quick.address, 6433).is_ok_and(|mut session| session.server() == leader.address),
    );
}
