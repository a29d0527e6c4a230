//! `trunkline status`, `events` and `top`: what somebody sees who did not install the router.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Command, Output};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::handover::upgrade;
use crate::cluster::postgres::Pair18;
use crate::cluster::{Cluster, Options, Router, eventually, fresh_address, output, secret, succeed};

mod terminal;

const TOKEN: &str = "a-token-of-24-characters";
const SOON: Duration = Duration::from_secs(20);

/// Exit code, and everything printed.
fn trunkline(arguments: &[&str]) -> (Option<i32>, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = output(Command::new(env!("CARGO_BIN_EXE_trunkline")).args(arguments));
    (
        status.code(),
        String::from_utf8([stdout, stderr].concat()).unwrap(),
    )
}

fn config(router: &Router) -> String {
    router.dir().join("trunkline.yaml").display().to_string()
}

fn status(router: &Router) -> (Option<i32>, String) {
    trunkline(&["status", "-c", &config(router)])
}

fn told(router: &Router) -> Value {
    let (_, text) = trunkline(&["status", "--json", "-c", &config(router)]);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A router whose token is known.
fn with_token(dir: &Path, cluster: Option<&Cluster>, options: Options) -> Router {
    let token = secret(dir, "token", TOKEN).display().to_string();
    Router::before(
        cluster.unwrap_or_else(|| Cluster::shared()),
        Options {
            http: format!("token_file: {token}"),
            ..options
        },
    )
}

#[test]
fn a_healthy_cluster_of_three_is_one_screen_and_exit_code_0() {
    let router = Router::shared();
    let (code, text) = status(&router);
    assert_eq!(code, Some(0), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "all is well");
    assert!(lines.len() <= 24, "{} lines:\n{text}", lines.len());
    let leader = Cluster::shared().leader();
    assert!(
        text.contains(&format!("cluster main: leader {leader}, timeline ")),
        "{text}"
    );
    assert!(
        text.contains("last events (UTC)") && text.contains("is the leader"),
        "{text}"
    );
    for node in Cluster::shared().nodes() {
        let line = lines
            .iter()
            .find(|line| line.starts_with(&format!("  {} ", node.name)));
        assert!(line.is_some_and(|line| line.contains(" UP ")), "{text}");
    }
    for (route, by) in [
        ("read-write", leader),
        ("read-only", Cluster::shared().replicas().join(",")),
    ] {
        let line = lines
            .iter()
            .find(|line| line.starts_with(&format!("  {route} ")))
            .unwrap();
        assert!(line.contains("enabled") && line.contains(&by), "{line}");
    }
    assert!(!text.contains('\u{1b}'), "no colours into a pipe: {text:?}");

    let document = told(&router);
    assert_eq!(document["result"], "well");
    assert_eq!(document["problems"], serde_json::json!([]));
    assert_eq!(document["clusters"][0]["members"].as_array().unwrap().len(), 3);
    for key in ["router", "routes", "pools", "holds", "events"] {
        assert!(!document[key].is_null(), "{key}");
    }
    let (_, coloured) = trunkline(&["status", "--color", "always", "-c", &config(&router)]);
    assert!(
        coloured.starts_with("\u{1b}[32mall is well\u{1b}[0m"),
        "{coloured:?}"
    );
    // A name of a cluster that there is not.
    let (code, text) = trunkline(&["status", "--cluster", "other", "-c", &config(&router)]);
    assert_eq!(text, "there is no cluster other (there is only main)\n");
    assert_eq!(code, Some(2));
    let (code, text) = trunkline(&["status", "--json", "--cluster", "other", "-c", &config(&router)]);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &document["result"]), (Some(2), &Value::from("refused")));
}

#[test]
fn status_says_what_is_wrong_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let router = with_token(dir.path(), None, Options::default());
    let config = config(&router);
    let order = |arguments: &[&str]| {
        let (code, text) = trunkline(&[arguments, &["-c", &config]].concat());
        assert_eq!(code, Some(0), "{text}");
    };
    order(&["pause", "read-only", "--wait", "1s"]);
    let (code, text) = status(&router);
    assert_eq!(code, Some(1), "{text}");
    let first = text.lines().next().unwrap();
    assert!(
        first.starts_with("NOT WELL: nobody can read through route read-only, since ")
            && first.contains(" UTC: an operator has paused the route"),
        "{text}"
    );
    assert!(text.contains("trunkline unpause read-only"), "{text}");
    // It was not disabled, and what holds its clients goes on.
    let (_, text) = trunkline(&["enable", "read-only", "-c", &config]);
    assert_eq!(
        text,
        "read-only: enabled, and still paused: its clients wait until `trunkline unpause read-only`\n"
    );
    order(&["unpause", "read-only"]);
    let replica = Cluster::shared().replicas().remove(0);
    order(&["maint", &replica]);
    order(&["disable", "read-write"]);
    let (code, text) = status(&router);
    assert_eq!(code, Some(2), "new clients get an error: {text}");
    assert!(
        text.starts_with("NO SERVICE: route read-write is disabled, since "),
        "{text}"
    );
    let document = told(&router);
    assert_eq!(document["result"], "no service");
    let problems = document["problems"].to_string();
    for part in [
        &format!("{replica} is in maintenance; to end it: `trunkline ready {replica}`"),
        "route read-write is disabled: new clients get an error; to end it: `trunkline enable read-write`",
    ] {
        assert!(problems.contains(part), "{part}: {problems}");
    }
    order(&["ready", &replica]);
    order(&["enable", "read-write"]);
    eventually("all is well again", SOON, || status(&router).0 == Some(0));
    drop(router);
    let nowhere = format!("http://{}:6434", fresh_address());
    let (code, text) = trunkline(&["status", "--url", &nowhere]);
    assert!(code == Some(2) && text.starts_with("NO ANSWER: "), "{text}");
    let (code, text) = trunkline(&["status", "--json", "--url", &nowhere]);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &document["result"]), (Some(2), &Value::from("no service")));
}

#[test]
fn a_configuration_that_cannot_be_read_is_no_router_that_does_not_answer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trunkline.yaml").display().to_string();
    let missing = trunkline(&["status", "-c", &path]);
    fs::write(&path, "http: [\n").unwrap();
    let broken = trunkline(&["status", "-c", &path]);
    for (code, text) in [missing, broken] {
        assert_eq!(code, Some(2), "{text}");
        assert!(text.starts_with(&format!("NOT ASKED: {path}:")), "{text}");
        assert!(text.contains("Use --url http://HOST:6434"), "{text}");
    }
    let (code, text) = trunkline(&["status", "--json", "-c", &path]);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &document["result"]), (Some(2), &Value::from("not asked")));
}

#[test]
fn a_refused_reload_is_told_until_one_is_accepted() {
    let router = Router::before(Cluster::shared(), Options::default());
    assert_eq!(status(&router).0, Some(0), "{}", status(&router).1);
    let path = config(&router);
    let sound = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{sound}lock: 1\nworkres: 2\n")).unwrap();
    router.signal("HUP");
    let refused = || {
        told(&router)["problems"]
            .to_string()
            .contains("the last reload was refused")
    };
    eventually("the refusal is told", SOON, refused);
    let (code, text) = status(&router);
    assert_eq!(code, Some(1), "{text}");
    let first = text.lines().next().unwrap();
    assert!(
        first.starts_with(
            "NOT WELL: the last reload was refused, and the configuration from before stays in use, since "
        ),
        "{text}"
    );
    for part in [
        " UTC: ",
        "lock",
        "(and 1 fault more)",
        &format!("`trunkline reload -c {path}`"),
    ] {
        assert!(first.contains(part), "{part}: {text}");
    }
    fs::write(&path, sound).unwrap();
    router.signal("HUP");
    eventually("all is well again", SOON, || status(&router).0 == Some(0));
}

/// As `systemctl reload` does it.
#[test]
fn a_reload_by_command_of_a_broken_file_is_refused_by_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let router = Router::before(
        Cluster::shared(),
        Options {
            extra: format!(
                "control_socket: \"{}/control\" # for reloads\n",
                dir.path().display()
            ),
            ..Options::default()
        },
    );
    let path = config(&router);
    let is_refused = || {
        let (_, text) = router.http("/metrics").unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("trunkline_config_reload_refused "));
        line.unwrap() == "1"
    };
    let reload = || trunkline(&["reload", "-c", &path]);
    let sound = fs::read_to_string(&path).unwrap();
    // The second is not even YAML.
    for (broken, fault) in [
        ("workres: 2\n", "workres: unknown key `workres`"),
        ("workers: [\n", "trunkline.yaml:"),
    ] {
        assert!(!is_refused());
        fs::write(&path, format!("{sound}{broken}")).unwrap();
        let (code, text) = reload();
        assert_eq!(code, Some(1), "{text}");
        // Once, although the process says the same.
        assert_eq!(text.matches(fault).count(), 1, "{text}");
        let end = format!(
            "not reloaded: {path} has errors. The running process refuses it, and keeps its configuration\n"
        );
        assert!(text.ends_with(&end), "{text}");
        // By HTTP: without YAML, the commands do not find the router.
        let (_, health) = router.http("/api/v1/health").unwrap();
        assert!(health.contains("the last reload was refused"), "{health}");
        let (_, events) = router.http("/api/v1/events").unwrap();
        assert!(
            events.contains("configuration refused: the old one stays in use"),
            "{events}"
        );
        assert!(is_refused());
        // The file is as it was, and is reloaded: nothing has changed.
        fs::write(&path, &sound).unwrap();
        assert_eq!(reload(), (Some(0), "reloaded\n".to_owned()));
        assert!(!is_refused());
        assert_eq!(status(&router).0, Some(0), "{}", status(&router).1);
    }
    // Nobody is there to refuse it.
    fs::write(&path, format!("{sound}workres: 2\n")).unwrap();
    let socket = format!("control_socket: {}/nobody\n", dir.path().display());
    let other = secret(dir.path(), "other.yaml", &format!("{socket}workres: 2\n"));
    let (code, text) = trunkline(&["reload", "-c", &other.display().to_string()]);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("has errors, and no running process was asked: "),
        "{text}"
    );
}

#[test]
fn several_clusters_are_on_one_screen_the_worst_first() {
    let (one, two) = (Pair18::start(), Pair18::start());
    let named = |pair: &Pair18, name: &str| {
        let yaml = pair.yaml().replace("  main:\n", &format!("  {name}:\n"));
        yaml.trim_start_matches("clusters:\n").to_owned()
    };
    let address = fresh_address();
    let listeners = ["one", "two"].map(|name| {
        let port = if name == "one" { 6432 } else { 6433 };
        format!("  - {{name: {name}, address: \"{address}:{port}\", route: {name}}}\n")
    });
    let router = Router::launch(
        None,
        Options {
            address: Some(address),
            clusters: Some(format!("clusters:\n{}{}", named(&one, "one"), named(&two, "two"))),
            listeners: Some(listeners.concat()),
            extra: "routes:\n  one: {cluster: one, targets: [leader]}\n  two: {cluster: two, targets: [leader]}\n".to_owned(),
            ..Options::default()
        },
    );
    eventually("both clusters are well", SOON, || status(&router).0 == Some(0));
    one.standby.stop();
    eventually("the standby is down", SOON, || status(&router).0 == Some(1));
    two.primary.stop();
    eventually("nobody serves the second cluster", SOON, || {
        status(&router).0 == Some(2)
    });
    let (_, text) = status(&router);
    assert!(
        text.starts_with("NO SERVICE: nobody can write to cluster two, "),
        "{text}"
    );
    assert!(text.contains("  also: s2 is DOWN"), "{text}");
    assert!(
        text.contains("cluster one: leader s1") && text.contains("cluster two: no leader"),
        "{text}"
    );
    let ask = |name: &str| trunkline(&["status", "--cluster", name, "-c", &config(&router)]);
    let (code, text) = ask("one");
    assert!(code == Some(1) && !text.contains("cluster two"), "{text}");
    let (code, text) = ask("three");
    assert_eq!(
        (code, text.as_str()),
        (Some(2), "there is no cluster three (there are one, two)\n")
    );
    one.standby.start_again();
    two.primary.start_again();
    eventually("all is well again", SOON, || status(&router).0 == Some(0));
}

#[test]
fn status_tells_a_standby_that_is_down_from_a_cluster_without_a_leader() {
    let pair = Pair18::start();
    let router = Router::before(
        Cluster::shared(),
        Options {
            clusters: Some(pair.yaml()),
            ..Options::default()
        },
    );
    assert_eq!(status(&router).0, Some(0), "{}", status(&router).1);
    pair.standby.stop();
    eventually("the standby is seen to be down", SOON, || {
        told(&router)["problems"].to_string().contains("s2 is DOWN")
    });
    let (code, text) = status(&router);
    // Nobody serves read-only sessions: the leader is not among the targets of that route.
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.starts_with("NO SERVICE: nobody can read through route read-only: no member can serve it: "),
        "{text}"
    );
    pair.standby.start_again();
    eventually("all is well again", SOON, || status(&router).0 == Some(0));
    pair.primary.stop();
    eventually("there is no leader", SOON, || {
        told(&router)["problems"]
            .to_string()
            .contains("nobody can write to cluster main, which has no leader")
    });
    let (code, text) = status(&router);
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.starts_with("NO SERVICE: nobody can write to cluster main, which has no leader, since "),
        "{text}"
    );
    assert!(text.contains("cluster main: no leader"), "{text}");
    pair.primary.start_again();
    eventually("all is well again", SOON, || status(&router).0 == Some(0));
}

/// `trunkline events --follow --json`, whose output goes to a file.
struct Followed {
    child: Child,
    dir: TempDir,
}

impl Followed {
    fn start(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| fs::File::create(dir.path().join(name)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_trunkline"))
            .args(["events", "--follow", "--json"])
            .args(arguments)
            .stdout(file("out"))
            .stderr(file("err"))
            .spawn()
            .unwrap();
        Self { child, dir }
    }

    fn events(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.path().join("out")).unwrap();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    fn said(&self) -> String {
        fs::read_to_string(self.dir.path().join("err")).unwrap()
    }

    fn await_event(&self, kind: &str, count: usize) {
        eventually(&format!("{count} times {kind}"), SOON, || {
            self.events()
                .iter()
                .filter(|event| event["event"] == kind)
                .count()
                >= count
        });
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Numbers that go on by one from 1: one list for each process.
fn processes(events: &[Value]) -> Vec<u64> {
    let mut lasts: Vec<u64> = Vec::new();
    for event in events {
        match (event["number"].as_u64().unwrap(), lasts.last_mut()) {
            (1, _) => lasts.push(1),
            (number, Some(last)) if number == *last + 1 => *last = number,
            (number, last) => panic!("{number} after {last:?}"),
        }
    }
    lasts
}

#[test]
fn events_are_followed_over_a_restart_and_an_upgrade_without_gap_or_double() {
    let dir = tempfile::tempdir().unwrap();
    let address: Ipv4Addr = fresh_address();
    let options = || Options {
        address: Some(address),
        extra: format!("control_socket: {}/control\n", dir.path().display()),
        ..Options::default()
    };
    let router = with_token(dir.path(), None, options());
    let url = format!("http://{address}:6434");
    let followed = Followed::start(&["--url", &url]);
    followed.await_event("leader_changed", 1);
    let order = |router: &Router, what: &str| {
        let (code, text) = trunkline(&[what, "read-only", "-c", &config(router)]);
        assert_eq!(code, Some(0), "{text}");
    };
    order(&router, "disable");
    order(&router, "enable");
    followed.await_event("route_enabled", 1);
    assert_eq!(processes(&followed.events()).len(), 1);
    drop(router);
    eventually("it says that nobody answers", SOON, || {
        followed.said().contains("does not answer")
    });
    let router = with_token(dir.path(), None, options());
    followed.await_event("started", 2);
    eventually("it says that somebody answers", SOON, || {
        followed.said().contains("the router answers again")
    });
    assert_eq!(
        followed.said().matches("does not answer").count(),
        1,
        "{}",
        followed.said()
    );
    let _new = upgrade(&router);
    followed.await_event("started", 3);
    order(&router, "disable");
    followed.await_event("route_disabled", 2);
    assert_eq!(processes(&followed.events()).len(), 3, "{:?}", followed.events());
    assert_eq!(
        followed.said().matches("another process").count(),
        2,
        "{}",
        followed.said()
    );

    let url = ["--url", url.as_str()];
    let (code, all) = trunkline(&[&["events"], &url[..]].concat());
    assert_eq!(code, Some(0));
    assert!(all.contains(" info ") && all.contains("[main]"), "{all}");
    let (_, last) = trunkline(&[&["events", "-n", "1"], &url[..]].concat());
    assert_eq!(last.lines().count(), 1, "{last}");
    let (_, warnings) = trunkline(&[&["events", "--level", "warn", "--json"], &url[..]].concat());
    let warnings: Value = serde_json::from_str(&warnings).unwrap();
    assert!(
        warnings
            .as_array()
            .unwrap()
            .iter()
            .all(|event| event["level"] != "info"),
        "{warnings}"
    );
    let _ = succeed(Command::new("kill").arg(followed.child.id().to_string()));
}
