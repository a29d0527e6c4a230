//! A running router, administered by its own program and by HTTP, in front of a real cluster.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;

use crate::checks::HaProxy;
use crate::cluster::{Certificates, Cluster, Options, Router, eventually, fresh_address, output, secret};
use crate::hand::{Raw, V3_0};

const TOKEN: &str = "a-token-of-24-characters";

pub struct Administered {
    pub router: Router,
    dir: tempfile::TempDir,
}

impl Administered {
    fn start() -> Self {
        Self::with(&tempfile::tempdir().unwrap().keep(), Options::default())
    }

    /// `state` is the directory of the state file.
    pub fn with(state: &Path, options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let token = secret(dir.path(), "token", TOKEN);
        let options = Options {
            http: format!("token_file: {}, {}", token.display(), options.http),
            extra: format!(
                "state_file: {}\n{}",
                state.join("state.json").display(),
                options.extra
            ),
            ..options
        };
        let router = Router::launch(Some(Cluster::shared()), options);
        router.await_read_write();
        Self { router, dir }
    }

    /// `trunkline ARGUMENTS -c FILE`
    fn run(&self, arguments: &[&str]) -> Output {
        let config = self.router.dir().join("trunkline.yaml");
        output(
            Command::new(env!("CARGO_BIN_EXE_trunkline"))
                .args(arguments)
                .arg("-c")
                .arg(config),
        )
    }

    #[track_caller]
    pub fn ok(&self, arguments: &[&str]) -> String {
        let done = self.run(arguments);
        let (out, err) = (text(&done.stdout), text(&done.stderr));
        assert_eq!((done.status.code(), err.as_str()), (Some(0), ""), "{arguments:?}");
        out
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str]) -> String {
        let done = self.run(arguments);
        assert_eq!(
            (done.status.code(), done.stdout.len()),
            (Some(1), 0),
            "{arguments:?}"
        );
        text(&done.stderr)
    }

    pub fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let mut all = arguments.to_vec();
        all.push("--json");
        serde_json::from_str(&self.ok(&all)).unwrap()
    }

    fn member(&self, name: &str) -> Value {
        let members = self.json(&["members"]);
        members.into_iter().find(|member| member["name"] == name).unwrap()
    }

    fn session(&self, port: u16) -> Raw {
        let mut raw = Raw::tls(self.router.address, port);
        raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
        assert_eq!(raw.authenticate("app").last().unwrap().tag, b'Z');
        raw
    }

    /// The newest session.
    fn newest(&self) -> Value {
        let sessions = self.json(&["sessions"]);
        sessions
            .into_iter()
            .max_by_key(|session| session["id"].as_u64())
            .unwrap()
    }

    pub fn await_replicas(&self, count: usize) {
        eventually("the replicas are fit", Duration::from_secs(20), || {
            let fit = |member: &Value| member["routes"][1]["fit"] == true;
            self.json(&["members"])
                .iter()
                .filter(|member| fit(member))
                .count()
                == count
        });
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn name(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

#[test]
fn a_drained_member_gets_no_new_sessions_and_keeps_those_it_has() {
    let on = Administered::start();
    on.await_replicas(2);
    let mut live = on.session(6433);
    let there = name(&on.newest()["member"]);
    let table = on.ok(&["drain", &there]);
    let line = table.lines().nth(1).unwrap();
    assert!(
        line.contains(" DRAIN ") && line.contains(" drain ") && line.contains(" L7OK "),
        "{table}"
    );
    let logged = on
        .router
        .await_log(&["administrative state set", &format!("member={there}")]);
    assert!(
        logged.contains("state=drain") && logged.contains("by=HTTP from 127."),
        "{logged}"
    );
    for _ in 0..6 {
        let mut raw = on.session(6433);
        assert_ne!(on.newest()["member"], there.as_str());
        raw.value("SELECT 1");
    }
    assert_eq!(live.value("SELECT 'still here'"), "still here");
    assert_eq!(on.member(&there)["sessions"], 1);
    let why = &on.member(&there)["routes"][1];
    assert_eq!(
        (&why["fit"], &why["reason"]),
        (&Value::Bool(false), &"is being drained".into())
    );
    // The other one in maintenance: nobody is left.
    let other = Cluster::shared()
        .replicas()
        .into_iter()
        .find(|other| *other != there)
        .unwrap();
    on.ok(&["maint", &other]);
    assert_eq!(on.member(&other)["status"], "MAINT");
    let refused = on.router.psql_output(6433, "", "SELECT 1");
    let words = text(&refused.stderr);
    assert!(words.contains(&format!("{there} is being drained.")), "{words}");
    assert!(words.contains(&format!("{other} is in maintenance.")), "{words}");
    on.ok(&["ready", &other]);
    on.ok(&["ready", &there]);
    on.await_replicas(2);
    on.session(6433);
    let state = format!("trunkline_cluster_member_admin{{cluster=\"main\",member=\"{there}\"}}");
    assert!(on.router.metric(&state).abs() < 0.1);
}

#[test]
fn a_weight_shares_sessions_out_anew() {
    let on = Administered::start();
    on.await_replicas(2);
    let one = Cluster::shared().replicas().remove(0);
    on.ok(&["weight", &one, "0"]);
    assert_eq!(
        (&on.member(&one)["weight"], &on.member(&one)["status"]),
        (&0.into(), &"DRAIN".into())
    );
    let kept: Vec<Raw> = (0..4).map(|_| on.session(6433)).collect();
    assert!(on.json(&["sessions", "--member", &one]).is_empty());
    drop(kept);
    on.ok(&["weight", &one, "default"]);
    assert_eq!(on.member(&one)["weight"], 1);
}

#[test]
fn sessions_are_shown_and_ended() {
    let on = Administered::start();
    let leader = Cluster::shared().leader();
    let (mut busy, mut idle) = (on.session(6432), on.session(6432));
    let id = on.newest()["id"].to_string();
    busy.query("BEGIN");
    let states = || -> Vec<String> {
        on.json(&["sessions"])
            .iter()
            .map(|session| name(&session["state"]))
            .collect()
    };
    assert_eq!(states(), ["idle in transaction", "idle"]);
    let shown = on.ok(&["sessions", "--member", &leader]);
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), 3, "{shown}");
    assert!(
        lines[0].starts_with("ID  CLIENT ") && lines[1].contains(" app ") && lines[1].contains(" TLSv1.3"),
        "{shown}"
    );
    let process: String = idle.value("SELECT pg_backend_pid()");
    assert_eq!(on.newest()["process_id"].to_string(), process);

    on.ok(&["kill", &id]);
    let error = idle.last_error();
    assert_eq!(error.code(), "57P01");
    assert_eq!(
        error.field(b'M').unwrap(),
        "terminating connection: an operator of the router ended this session"
    );
    on.router
        .await_log(&["session ended", "cause=ended by an operator"]);
    on.router
        .await_log(&["ending a session", "how=now", "by=HTTP from 127."]);
    eventually("it is gone", Duration::from_secs(10), || states().len() == 1);
    assert!(
        on.refused(&["kill", &id])
            .contains("there is no session of this number")
    );

    // At the transaction's end, not before it.
    let told = on.ok(&["close", &leader]);
    assert_eq!(told, format!("{leader}: 1 session is ending\n"));
    assert!(
        on.ok(&["sessions"])
            .contains("(ending: an operator ended the sessions on")
    );
    assert_eq!(busy.value("SELECT 'in it'"), "in it");
    busy.query("COMMIT");
    assert_eq!(busy.last_error().code(), "57P01");
    on.router.await_log(&[
        "session ended",
        &format!("cause=an operator ended the sessions on {leader}"),
    ]);

    // Not longer than the grace.
    let mut stubborn = on.session(6432);
    stubborn.query("BEGIN");
    on.ok(&["close", &leader, "--grace", "1"]);
    assert_eq!(stubborn.last_error().code(), "57P01");
    let mut cut = on.session(6432);
    cut.query("BEGIN");
    on.ok(&["close", &leader, "--now"]);
    assert_eq!(cut.last_error().code(), "57P01");
}

#[test]
fn the_token_decides_and_a_new_one_is_taken_up() {
    let on = Administered::start();
    let leader = Cluster::shared().leader();
    let other = secret(on.dir.path(), "other", "another-token-of-mine");
    let with_other = ["drain", &leader, "--token-file", other.to_str().unwrap()];
    assert!(on.refused(&with_other).contains("the token is wrong"));
    on.router
        .await_log(&["a request came with a wrong token", "by=127."]);
    let url = format!("http://{}:6434", on.router.address);
    let bare = output(Command::new(env!("CARGO_BIN_EXE_trunkline")).args(["drain", &leader, "--url", &url]));
    assert_eq!(bare.status.code(), Some(1));
    assert!(text(&bare.stderr).contains("this needs the token"), "{bare:?}");
    let looked = output(Command::new(env!("CARGO_BIN_EXE_trunkline")).args(["members", "--url", &url]));
    assert!(text(&looked.stdout).contains(&leader), "{looked:?}");
    assert_eq!(on.member(&leader)["admin"], "ready");
    // Not to another host in clear.
    let far = output(Command::new(env!("CARGO_BIN_EXE_trunkline")).args([
        "drain",
        &leader,
        "--url",
        "http://db.example:6434",
        "--token-file",
        other.to_str().unwrap(),
    ]));
    assert!(text(&far.stderr).contains("is not sent unencrypted"), "{far:?}");

    fs::write(on.dir.path().join("token"), "another-token-of-mine\n").unwrap();
    eventually("the new token counts", Duration::from_secs(20), || {
        on.run(&with_other).status.success()
    });
    on.router.await_log(&["files loaded", "part=http.token_file"]);
    assert!(
        on.refused(&["drain", "nobody"])
            .contains("has no member nobody (there are ")
    );
    assert!(
        on.refused(&["members", "--cluster", "x"])
            .contains("there is only main")
    );
    let usage = on.run(&["weight", &leader, "257"]);
    assert_eq!(usage.status.code(), Some(2));
    // What is not there is said.
    let nobody = format!("http://{}:6434", fresh_address());
    let dead = output(Command::new(env!("CARGO_BIN_EXE_trunkline")).args(["members", "--url", &nobody]));
    assert_eq!(dead.status.code(), Some(1));
    assert!(text(&dead.stderr).contains("does not answer"), "{dead:?}");
}

#[test]
fn what_was_set_outlives_a_restart() {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("state.json");
    let leader = Cluster::shared().leader();
    let one = Cluster::shared().replicas().remove(0);
    let first = Administered::with(state.path(), Options::default());
    first.ok(&["drain", &one]);
    first.ok(&["weight", &leader, "7"]);
    first.ok(&["disable", "read-only"]);
    let kept = || fs::read_to_string(&file).unwrap_or_default();
    eventually("it is written", Duration::from_secs(10), || {
        kept().contains("\"weight\": 7") && kept().contains("read-only")
    });
    drop(first);
    let text = kept().replace(
        "\"clusters\": {",
        "\"clusters\": {\"gone\": {\"x\": {\"admin\": \"maint\"}},",
    );
    fs::write(&file, text).unwrap();

    // A drained leader would serve nobody: it is the replica that is.
    let second = Administered::with(state.path(), Options::default());
    let line = second.router.await_log(&[
        "the administrative state is as before the restart",
        &format!("member={one}"),
    ]);
    assert!(line.contains("state=drain"), "{line}");
    assert_eq!(second.member(&one)["admin"], "drain");
    assert_eq!(second.member(&leader)["weight"], 7);
    second
        .router
        .await_log(&["the route is disabled, as before the restart", "route=read-only"]);
    let status = second.ok(&["router", "status"]);
    assert!(status.contains("`trunkline enable NAME`: read-only"), "{status}");
    second.ok(&["enable", "read-only"]);
    second.ok(&["ready", &one]);
    second.ok(&["weight", &leader, "default"]);
    eventually(
        "what is at its default is forgotten, others are kept",
        Duration::from_secs(10),
        || kept().contains("gone") && !kept().contains("\"main\"") && !kept().contains("read-only"),
    );
    drop(second);

    fs::write(&file, "{").unwrap();
    let third = Administered::with(state.path(), Options::default());
    third
        .router
        .await_log(&["WARN", "the state file is not a state file"]);
    assert_eq!(third.member(&one)["admin"], "ready");
    assert!(state.path().join("state.json.broken").exists());
    third.ok(&["drain", &one]);
    eventually("it is written anew", Duration::from_secs(10), || {
        kept().contains("drain")
    });
}

/// HAProxy in front of the servers, and each router says what becomes of its own.
#[test]
fn haproxys_agent_check_follows_the_administrative_state() {
    let cluster = Cluster::shared();
    let one = cluster.replicas().remove(0);
    let address = fresh_address();
    let member = Administered::with(
        &tempfile::tempdir().unwrap().keep(),
        Options {
            address: Some(address),
            http: format!("agent_check: {{address: \"{address}:6435\", about: local_member}}"),
            clusters: Some(format!(
                "{}    local_member: {one}\n",
                cluster.yaml(&Certificates::shared().file(""))
            )),
            ..Options::default()
        },
    );
    let router_address = fresh_address();
    let router = Administered::with(
        &tempfile::tempdir().unwrap().keep(),
        Options {
            address: Some(router_address),
            http: format!("agent_check: {{address: \"{router_address}:6435\"}}"),
            extra: "shutdown: {grace: 60s}\n".to_owned(),
            ..Options::default()
        },
    );
    let line = |address| {
        let mut said = String::new();
        TcpStream::connect((address, 6435))
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        said
    };
    assert_eq!(line(router_address), "up ready 100%\n");
    eventually("the member is up", Duration::from_secs(10), || {
        line(address) == "up ready 100%\n"
    });
    // What HAProxy may send it is not waited for, nor read.
    let mut talker = TcpStream::connect((address, 6435)).unwrap();
    let _ = talker.write_all(b"hello\n");
    let haproxy = HaProxy::start(&format!(
        "backend m\n  server s {address}:6432 check agent-check agent-port 6435 agent-inter 100ms\n\
         backend r\n  server s {router_address}:6432 check agent-check agent-port 6435 agent-inter 100ms\n"
    ));
    let seen = |server: &str, state: &str| {
        eventually(&format!("{server} is {state}"), Duration::from_secs(10), || {
            haproxy
                .states()
                .get(server)
                .is_some_and(|(now, _)| now.starts_with(state))
        });
    };
    seen("m/s", "UP");
    seen("r/s", "UP");
    for (action, state) in [
        ("drain", "DRAIN"),
        ("maint", "MAINT"),
        ("drain", "DRAIN"),
        ("ready", "UP"),
    ] {
        member.ok(&[action, &one]);
        seen("m/s", state);
    }
    // A router that shuts down is drained; the sessions it has go on.
    let mut live = router.session(6432);
    live.query("BEGIN");
    router.router.signal("TERM");
    eventually("the router drains", Duration::from_secs(10), || {
        line(router_address) == "up drain\n"
    });
    assert_eq!(live.value("SELECT 'goes on'"), "goes on");
}
