//! The sessions of a process that was replaced are administered through the one that serves.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::{SOON, Subject, is_alive};
use crate::cluster::postgres::{self, Postgres};
use crate::cluster::{eventually, succeed};
use crate::hand::{Raw, V3_0};

fn session(subject: &Subject) -> Raw {
    let mut raw = Raw::connect(subject.router.address, 6432);
    raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
    assert_eq!(raw.authenticate("app").last().unwrap().tag, b'Z');
    raw
}

/// What a command prints as JSON, and what it warns of.
#[track_caller]
fn json(subject: &Subject, arguments: &[&str]) -> (Vec<Value>, String) {
    let output = subject.command(&[arguments, &["--json"]].concat());
    let warned = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{warned}\n{}", subject.router.log());
    (serde_json::from_slice(&output.stdout).unwrap(), warned)
}

/// The numbers of the sessions in this process.
fn ids(sessions: &[Value], process: u32) -> Vec<u64> {
    let there = sessions
        .iter()
        .filter(|session| session["router_process_id"] == process);
    there.map(|session| session["id"].as_u64().unwrap()).collect()
}

#[track_caller]
fn is_ended(raw: &mut Raw, why: &str) {
    let told = raw.last_error();
    assert_eq!(told.code(), "57P01", "{told:?}");
    let text = told.field(b'M').unwrap();
    assert!(text.contains(why), "{text}");
}

#[test]
fn an_old_process_is_administered_with_the_new_one() {
    let server = Postgres::start(&postgres::Options::default());
    let mut subject = Subject::before(&server, "");
    let (mut first, mut second) = (session(&subject), session(&subject));
    subject.upgrade();
    let mut third = session(&subject);
    let (old, new) = (subject.all[0], subject.process);

    let (listed, warned) = json(&subject, &["sessions"]);
    assert_eq!(warned, "");
    let (in_old, in_new) = (ids(&listed, old), ids(&listed, new));
    assert_eq!((in_old.len(), in_new.len()), (2, 1), "{listed:?}");
    let all: BTreeSet<u64> = in_old.iter().chain(&in_new).copied().collect();
    assert_eq!(all.len(), 3, "each has a number of its own");
    assert!(in_old.iter().all(|id| *id < in_new[0]), "{all:?}");

    let metric = |name: &str| subject.router.metric(name);
    let sessions = "trunkline_sessions{route=\"read-write\",member=\"s1\"}";
    assert_eq!(metric(sessions), 3.0);
    assert_eq!(metric("trunkline_other_processes{state=\"answering\"}"), 1.0);
    assert_eq!(metric("trunkline_other_processes{state=\"silent\"}"), 0.0);
    let before = metric("trunkline_transactions_total");
    for _ in 0..5 {
        assert_eq!(first.value("SELECT 6 * 7"), "42");
    }
    eventually("they are counted", SOON, || {
        metric("trunkline_transactions_total") >= before + 5.0
    });
    let (members, _) = json(&subject, &["members"]);
    assert_eq!(members[0]["sessions"], 3, "{members:?}");
    let router = subject.router.http("/api/v1/router").unwrap().1;
    assert!(router.contains("\"sessions\":3"), "{router}");

    // One is killed by its number, wherever it is.
    let id = listed.iter().find_map(|session| {
        let port = first.socket().local_addr().unwrap().port().to_string();
        let is_first = session["client"].as_str().unwrap().ends_with(&format!(":{port}"));
        is_first.then(|| session["id"].to_string())
    });
    assert!(subject.command(&["kill", &id.unwrap()]).status.success());
    is_ended(&mut first, "an operator of the router ended this session");
    assert_eq!(second.value("SELECT 6 * 7"), "42");
    let refused = subject.command(&["kill", "999999999"]);
    assert_eq!(refused.status.code(), Some(1));
    eventually("it is gone", SOON, || json(&subject, &["sessions"]).0.len() == 2);

    // Maintenance ends the sessions on the member in both processes, and the old one has nothing
    // left to do.
    assert!(subject.command(&["maint", "s1"]).status.success());
    is_ended(&mut second, "s1 is in maintenance");
    is_ended(&mut third, "s1 is in maintenance");
    eventually("the old process has ended", SOON, || !is_alive(old));
    assert!(subject.command(&["ready", "s1"]).status.success());
    eventually("nobody else is left", SOON, || metric(sessions) == 0.0);
    assert_eq!(metric("trunkline_other_processes{state=\"answering\"}"), 0.0);
    assert!(
        metric("trunkline_transactions_total") >= before + 5.0,
        "it never goes back"
    );
}

#[test]
fn the_sessions_on_a_member_are_closed_in_every_process() {
    let server = Postgres::start(&postgres::Options::default());
    let mut subject = Subject::before(&server, "");
    let mut clients = vec![session(&subject)];
    subject.upgrade();
    clients.push(session(&subject));
    subject.upgrade();
    clients.push(session(&subject));
    let output = subject.command(&["close", "s1"]);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && told.contains('3'), "{told}");
    for client in &mut clients {
        is_ended(client, "s1");
    }
    for process in &subject.all[..2] {
        eventually("it has ended", SOON, || !is_alive(*process));
    }
}

/// A process that is stopped, until this is dropped.
struct Stopped(u32);

impl Stopped {
    fn stop(process: u32) -> Self {
        succeed(Command::new("kill").args(["-STOP", &process.to_string()]));
        Self(process)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-CONT", &self.0.to_string()]).status();
    }
}

#[test]
fn a_process_that_hangs_is_named_and_not_waited_for() {
    let server = Postgres::start(&postgres::Options::default());
    let mut subject = Subject::before(&server, "");
    let mut client = session(&subject);
    let (listed, _) = json(&subject, &["sessions"]);
    let id = listed[0]["id"].to_string();
    subject.upgrade();
    let old = subject.all[0];
    let named = format!("process {old}: it did not answer within");

    let stopped = Stopped::stop(old);
    let began = Instant::now();
    let (listed, warned) = json(&subject, &["sessions"]);
    assert!(
        listed.is_empty() && warned.contains(&named),
        "{listed:?} {warned}"
    );
    let killed = subject.command(&["kill", &id]);
    let told = String::from_utf8_lossy(&killed.stderr);
    assert!(!killed.status.success() && told.contains(&named), "{told}");
    let drained = subject.command(&["drain", "s1"]);
    let told = String::from_utf8_lossy(&drained.stderr);
    assert!(drained.status.success() && told.contains(&named), "{told}");
    subject.router.await_log(&["WARN", "was not reached", &named]);
    assert_eq!(
        subject
            .router
            .metric("trunkline_other_processes{state=\"silent\"}"),
        1.0
    );
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());

    drop(stopped);
    let (listed, warned) = json(&subject, &["sessions"]);
    assert_eq!((listed.len(), warned.as_str()), (1, ""));
    assert!(subject.command(&["ready", "s1"]).status.success());
    assert!(subject.command(&["kill", &id]).status.success());
    is_ended(&mut client, "an operator of the router ended this session");
}
