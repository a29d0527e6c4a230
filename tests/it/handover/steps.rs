//! What becomes of the service when either process ends at any step of the conversation, or
//! something in it is another's.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::{SOON, Subject, is_alive};
use crate::cluster::postgres::{self, Postgres};
use crate::cluster::{Options, Router, eventually, fresh_address, output, succeed};
use crate::service_manager::ServiceManager;

/// A new process up to the step at which it stops.
struct Taker(UnixStream);

impl Taker {
    fn ask(subject: &Subject) -> Self {
        let mut socket = UnixStream::connect(subject.control_socket()).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.write_all(b"handover\n").unwrap();
        let mut taker = Self(socket);
        taker.say(&json!({"version": 2, "release": "test", "relative": "trunkline-test"}));
        taker
    }

    fn say(&mut self, message: &Value) {
        let text = message.to_string();
        let length = u32::try_from(text.len()).unwrap();
        self.0.write_all(&length.to_be_bytes()).unwrap();
        self.0.write_all(text.as_bytes()).unwrap();
    }

    fn hear(&mut self) -> Value {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).unwrap();
        let mut text = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut text).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    /// Takes the offer, and says that it is ready and keeps everything.
    fn get_ready(&mut self) {
        let offer = self.hear();
        let sockets = offer["sockets"].as_array().unwrap();
        assert_eq!(
            sockets.len(),
            5,
            "two listeners, HTTP, the agent check, the control socket: {offer}"
        );
        for _ in sockets {
            // Without room for the descriptor the kernel closes it.
            self.0.read_exact(&mut [0]).unwrap();
        }
        let kept: Vec<&Value> = sockets.iter().map(|socket| &socket["place"]).collect();
        self.say(&json!({ "kept": kept }));
    }
}

/// That nothing has changed.
#[track_caller]
fn serves(subject: &Subject) {
    assert!(is_alive(subject.process), "{}", subject.router.log());
    assert_eq!(subject.router.psql(6432, "SELECT 1"), "1");
    assert_eq!(subject.psql_unix(), "2");
    assert_eq!(subject.router.http("/connection/is-ready").unwrap().0, 200);
    assert!(subject.control_socket().exists());
}

fn signal(process: u32, name: &str) {
    succeed(Command::new("kill").args([&format!("-{name}"), &process.to_string()]));
}

#[test]
fn a_new_process_that_ends_at_any_step_changes_nothing() {
    let server = Postgres::start(&postgres::Options::default());
    let dir = tempfile::tempdir().unwrap();
    let manager = ServiceManager::listen(SOON);
    let told = || manager.told();
    let env = manager.env();
    let extra = format!("state_file: {}\n", dir.path().join("state.json").display());
    let mut subject = Subject::told(&server, &extra, env);
    assert_eq!(told(), "READY=1");
    let goes_on = |times: usize| {
        eventually("it goes on", SOON, || {
            subject.router.log().matches("this one continues").count() == times
        });
        serves(&subject);
    };
    drop(Taker::ask(&subject));
    goes_on(1);
    let mut taker = Taker::ask(&subject);
    taker.hear();
    drop(taker);
    goes_on(2);
    // It has the word, and does not live to say that it serves.
    let mut taker = Taker::ask(&subject);
    taker.get_ready();
    assert_eq!(taker.hear(), json!({}));
    // Whether the service manager can be told is known before. Whoever does not serve is not the
    // main process, since the end of that one is the end of the service.
    assert_eq!(told(), format!("MAINPID={}", subject.process));
    drop(taker);
    goes_on(3);
    assert!(manager.is_told_nothing());
    subject.router.await_log(&["ERROR", "did not take over"]);
    // What is set is kept and written as ever.
    assert!(subject.command(&["weight", "s1", "7"]).status.success());
    eventually("it is written", SOON, || {
        fs::read_to_string(dir.path().join("state.json")).is_ok_and(|text| text.contains('7'))
    });
    // A cancel request knows nothing of it.
    let (sleeping, process) = subject.sleeping(&server, 1);
    signal(process, "INT");
    assert!(!sleeping.wait_with_output().unwrap().status.success());
    assert_eq!(subject.cancels("forwarded"), 1.0);

    // The service manager cannot be notified: it would watch no other process.
    drop(manager);
    let output = subject.command(&["upgrade"]);
    assert_eq!(output.status.code(), Some(1));
    let fault = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(fault.contains("service manager cannot be notified"), "{fault}");
    serves(&subject);
    signal(subject.process, "TERM");
    subject.router.await_log(&["stopped"]);
    assert!(!subject.control_socket().exists(), "the files are its own again");
    assert!(!subject.unix_socket().exists());
    subject.all.clear();
}

#[test]
fn an_old_process_that_is_ended_before_the_word_ends_as_ever() {
    let server = Postgres::start(&postgres::Options::default());
    for name in ["TERM", "KILL"] {
        let subject = Subject::before(&server, "");
        let mut taker = Taker::ask(&subject);
        taker.hear();
        signal(subject.process, name);
        // Also if it was in the middle of a descriptor.
        let mut rest = Vec::new();
        let _ = taker.0.read_to_end(&mut rest);
        assert!(rest.iter().all(|byte| *byte == b'S'), "no word: {rest:?}");
        eventually("it has ended", SOON, || !is_alive(subject.process));
        assert_eq!(subject.control_socket().exists(), name == "KILL", "{name}");
    }
    // As for a new process that has begun and sees no leader.
    for (which, name) in [(0, "TERM"), (0, "KILL"), (1, "TERM"), (1, "KILL")] {
        let subject = Subject::before(&server, "");
        let usual = fs::read_to_string(subject.path()).unwrap();
        let port = format!("port: {}", Postgres::PORT);
        fs::write(subject.path(), usual.replace(&port, "port: 1")).unwrap();
        let asking = subject.begin(&["upgrade"]);
        let mut processes = Vec::new();
        eventually("both run", SOON, || {
            processes = subject.processes();
            processes.len() == 2 && subject.router.log().contains("s1 at") && {
                subject.router.log().matches("is a member").count() == 2
            }
        });
        let new = *processes
            .iter()
            .find(|process| **process != subject.process)
            .unwrap();
        let (ended, left) = [(subject.process, new), (new, subject.process)][which];
        signal(ended, name);
        eventually("it has ended", SOON, || !is_alive(ended));
        assert!(!asking.wait_with_output().unwrap().status.success());
        if which == 0 {
            eventually("the new one never serves", SOON, || !is_alive(left));
            let log = subject.router.log();
            assert!(log.contains("not started: cannot take over"), "{log}");
            assert!(!log.contains("took over"), "{log}");
        } else {
            subject.router.await_log(&["this one continues"]);
            serves(&subject);
        }
    }
}

#[test]
fn an_old_process_that_dies_after_the_word_is_replaced() {
    let server = Postgres::start(&postgres::Options::default());
    let mut subject = Subject::before(&server, "");
    subject.upgrade();
    signal(subject.all[0], "KILL");
    serves(&subject);
    let parent = fs::read_to_string(format!("/proc/{}/status", subject.process)).unwrap();
    let parent = parent
        .lines()
        .find_map(|line| line.strip_prefix("PPid:\t"))
        .unwrap();
    assert_ne!(
        parent,
        subject.all[0].to_string(),
        "nobody's child but who takes in orphans"
    );

    // Two at once: one process serves at the end, whoever of them it is.
    let both = [subject.begin(&["upgrade"]), subject.begin(&["upgrade"])];
    let told = both.map(|child| child.wait_with_output().unwrap());
    assert!(told.iter().any(|told| told.status.success()), "{told:?}");
    eventually("one is left", SOON, || subject.processes().len() == 1);
    subject.process = subject.processes()[0];
    subject.all.push(subject.process);
    serves(&subject);
    subject.upgrade();
    serves(&subject);
}

#[test]
fn sockets_with_files_are_as_the_new_configuration_has_them() {
    let server = Postgres::start(&postgres::Options::default());
    let mut subject = Subject::before(&server, "");
    let dir = subject.sockets.path().to_owned();
    let usual = fs::read_to_string(subject.path()).unwrap();
    let second = dir.join(".s.PGSQL.7432");
    let listener = format!(
        "listeners:\n  - {{name: second, address: \"{}\", route: read-write}}\n",
        second.display()
    );
    fs::write(subject.path(), usual.replace("listeners:\n", &listener)).unwrap();
    subject.upgrade();
    assert!(second.exists());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&subject.unix_socket()), 0o777);
    // A reload cannot change where it is asked, and it does not forget that.
    let with_second = fs::read_to_string(subject.path()).unwrap();
    fs::write(subject.path(), with_second.replace("control.sock", "other.sock")).unwrap();
    signal(subject.process, "HUP");
    subject
        .router
        .await_log(&["takes effect after `trunkline upgrade`", "control_socket"]);
    // A listener less, another mode, another control socket.
    let other = usual
        .replace("\"0777\"", "\"0750\"")
        .replace("control.sock", "other.sock");
    assert_ne!(other, usual);
    fs::write(subject.path(), other).unwrap();
    let socket = subject.control_socket();
    let told = subject.upgrade_by(&["upgrade", "--socket", socket.to_str().unwrap()]);
    let release = env!("CARGO_PKG_VERSION");
    assert!(
        told.contains(&format!("({release}, before: {release})")),
        "{told}"
    );
    eventually("the files of what is no more are gone", SOON, || {
        !second.exists() && !socket.exists()
    });
    assert_eq!(mode(&subject.unix_socket()), 0o750);
    assert_eq!(subject.psql_unix(), "2");
    assert!(dir.join("other.sock").exists());
    // And by the new one.
    subject.upgrade();
    assert_eq!(subject.psql_unix(), "2");

    // A file that some program has put in the socket's place stays as it is, and nothing is taken
    // over.
    fs::remove_file(subject.unix_socket()).unwrap();
    fs::write(subject.unix_socket(), "theirs").unwrap();
    let told = subject.command(&["upgrade"]);
    assert!(!told.status.success());
    subject
        .router
        .await_log(&["not started", "another file is in the place"]);
}

#[test]
fn who_is_connected_over_http_is_answered_by_the_old_process() {
    let server = Postgres::start(&postgres::Options::default());
    let mut subject = Subject::before(&server, "");
    let mut silent = std::net::TcpStream::connect((subject.router.address, 6434)).unwrap();
    // One that connects later is answered, so that this one is accepted.
    assert_eq!(subject.router.http("/connection/is-ready").unwrap().0, 200);
    subject.upgrade();
    silent
        .write_all(b"GET /connection/is-ready HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    silent.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    eventually("it has nothing else to do", SOON, || !is_alive(subject.all[0]));
}

/// The program as a service of its own, with a prefix and without the harness.
fn start(prefix: &[&str], path: &Path, env: &[(&str, &str)]) -> Child {
    Command::new(prefix[0])
        .args(&prefix[1..])
        .envs(env.iter().copied())
        .env("PROGRAM", env!("CARGO_BIN_EXE_trunkline"))
        .env("CONFIG", path)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn where_a_new_process_would_be_ended_no_upgrade_begins() {
    let server = Postgres::start(&postgres::Options::default());
    let dir = tempfile::tempdir().unwrap();
    let control = dir.path().join("control.sock");
    let options = Options {
        clusters: Some(server.yaml()),
        extra: format!("control_socket: {}\n", control.display()),
        ..Options::default()
    };
    let path = dir.path().join("trunkline.yaml");
    fs::write(
        &path,
        Router::configuration(None, &options, dir.path(), fresh_address()),
    )
    .unwrap();
    let refused = |child: &mut Child, why: &str| {
        eventually("it runs", SOON, || {
            control.exists() || child.try_wait().unwrap().is_some()
        });
        let told = output(
            Command::new(env!("CARGO_BIN_EXE_trunkline"))
                .args(["upgrade", "-c"])
                .arg(&path),
        );
        let text = String::from_utf8_lossy(&told.stderr).into_owned();
        assert_eq!(told.status.code(), Some(1), "{text}");
        assert!(text.contains(why), "{text}");
    };
    let run = "exec \"$PROGRAM\" run -c \"$CONFIG\"";
    let service = format!("export SYSTEMD_EXEC_PID=$$; {run}");
    let mut child = start(&["sh", "-c", &service], &path, &[("INVOCATION_ID", "1")]);
    refused(&mut child, "set Type=notify-reload");
    signal(child.id(), "TERM");
    child.wait().unwrap();

    let container = ["unshare", "--pid", "--fork", "--kill-child"];
    if !output(Command::new(container[0]).args(&container[1..]).arg("true"))
        .status
        .success()
    {
        eprintln!("not tested: this user may not make a namespace of processes");
        return;
    }
    let mut child = start(&[&container[..], &["sh", "-c", run]].concat(), &path, &[]);
    refused(&mut child, "start another container");
    signal(child.id(), "KILL");
    child.wait().unwrap();
}

#[test]
fn a_key_that_nobody_has_is_asked_about_and_comes_to_nothing() {
    let server = Postgres::start(&postgres::Options::default());
    let mut subject = Subject::before(&server, "");
    let (sleeping, process) = subject.sleeping(&server, 1);
    subject.upgrade();
    let mut socket = std::net::TcpStream::connect((subject.router.address, 6432)).unwrap();
    let mut request = 16_u32.to_be_bytes().to_vec();
    for word in [80_877_102_u32, 4711, 0x0102_0304] {
        request.extend(word.to_be_bytes());
    }
    socket.write_all(&request).unwrap();
    assert_eq!(socket.read(&mut [0]).unwrap(), 0, "never answered");
    assert_eq!(subject.cancels("unknown"), 1.0);
    assert!(is_alive(subject.all[0]), "its session goes on");
    signal(process, "INT");
    assert!(!sleeping.wait_with_output().unwrap().status.success());
    assert_eq!(subject.cancels("other_process"), 1.0);
}
