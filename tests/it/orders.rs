//! Orders that hold clients: `trunkline before-stop` and `trunkline switchover`.

mod processes;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::postgres::{Options as ServerOptions, Postgres};
use crate::cluster::{Cluster, Options, Router, eventually, fresh_address, output, pause, secret, succeed};
use crate::hand::{Raw, V3_0, message};

const TOKEN: &str = "a-token-of-24-characters";
const POOLED: &str = "routes:\n  read-write: {targets: [leader], pool: {mode: transaction, max_connections: 3}}\n  \
                      read-only: {targets: [replica]}\n";

fn trunkline(router: &Router, arguments: &[&str]) -> Output {
    output(
        Command::new(env!("CARGO_BIN_EXE_trunkline"))
            .args(arguments)
            .arg("-c")
            .arg(router.dir().join("trunkline.yaml")),
    )
}

fn session(router: &Router) -> Raw {
    let mut raw = Raw::tls(router.address, 6432);
    raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
    assert_eq!(raw.authenticate("app").last().unwrap().tag, b'Z');
    raw
}

fn send(session: &mut Raw, sql: &str) {
    session.send(&message(b'Q', format!("{sql}\0").as_bytes()));
}

/// The tags of an answer, up to its ReadyForQuery.
fn answer(session: &mut Raw) -> String {
    let mut tags = String::new();
    while !tags.ends_with('Z') {
        tags.push(char::from(session.message().tag));
    }
    tags
}

fn waiting(router: &Router) -> usize {
    let (_, body) = router.http("/api/v1/sessions").unwrap();
    body.matches("\"phase\":\"waiting\"").count()
}

#[test]
fn clients_of_a_server_that_is_stopped_wait_until_it_runs_again() {
    let server = Postgres::start(&ServerOptions::default());
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        clusters: Some(format!("{}    local_member: s1\n", server.yaml())),
        address: Some(fresh_address()),
        http: format!("token_file: {}", secret(dir.path(), "token", TOKEN).display()),
        extra: POOLED.to_owned(),
        ..Options::default()
    };
    let router = Router::launch(None, options);
    router.await_read_write();
    let (mut busy, mut idle) = (session(&router), session(&router));
    busy.value("SELECT 1");
    send(&mut busy, "BEGIN");
    assert_eq!(answer(&mut busy), "CZ");

    let began = Instant::now();
    let said = trunkline(&router, &["before-stop", "--grace", "500ms"]);
    let errors = String::from_utf8(said.stderr).unwrap();
    assert!(said.status.success() && began.elapsed() < Duration::from_secs(5));
    assert!(
        errors.contains("1 transaction is still open after 0.5 s"),
        "{errors}"
    );
    // What is under way goes on, and what begins waits.
    assert_eq!(busy.value("SELECT 2"), "2");
    send(&mut idle, "SELECT 3");
    eventually("the other client waits", Duration::from_secs(10), || {
        waiting(&router) == 1
    });
    let (_, members) = router.http("/api/v1/members").unwrap();
    assert!(members.contains("about to be stopped"), "{members}");

    // Once the transaction ends, the next call returns at once.
    send(&mut busy, "COMMIT");
    assert_eq!(answer(&mut busy), "CZ");
    let began = Instant::now();
    let said = trunkline(&router, &["before-stop", "--grace", "20s"]);
    let errors = String::from_utf8(said.stderr).unwrap();
    assert!(errors.contains("no transaction is open"), "{errors}");
    assert!(began.elapsed() < Duration::from_secs(10));

    server.stop();
    server.start_again();
    assert_eq!(answer(&mut idle), "TDCZ", "{}", router.log());
    assert_eq!(busy.value("SELECT 4"), "4");
    router.await_log(&["its server is about to be stopped"]);
}

#[test]
fn a_stop_that_is_called_off_lets_its_clients_go_on() {
    let server = Postgres::start(&ServerOptions::default());
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        clusters: Some(format!("{}    local_member: s1\n", server.yaml())),
        address: Some(fresh_address()),
        http: format!("token_file: {}", secret(dir.path(), "token", TOKEN).display()),
        extra: POOLED.to_owned(),
        ..Options::default()
    };
    let router = Router::launch(None, options);
    router.await_read_write();
    let mut client = session(&router);
    assert_eq!(client.value("SELECT 1"), "1");
    let said = |arguments: &[&str]| {
        let said = trunkline(&router, arguments);
        let both = [said.stdout, said.stderr].concat();
        (said.status.success(), String::from_utf8(both).unwrap())
    };
    let (is_good, text) = said(&["before-stop", "--check"]);
    assert!(
        is_good && text.contains("member s1") && text.contains("no session will be cut"),
        "{text}"
    );
    assert_eq!(client.value("SELECT 2"), "2", "it holds nobody");
    let (_, text) = said(&["before-stop"]);
    assert!(text.contains("s more at most"), "{text}");
    send(&mut client, "SELECT 3");
    eventually("the client waits", Duration::from_secs(10), || {
        waiting(&router) == 1
    });
    let (_, holds) = router.http("/api/v1/holds").unwrap();
    assert!(
        holds.contains("\"kind\":\"before-stop\"") && holds.contains("\"clients\":1"),
        "{holds}"
    );
    let (is_done, text) = said(&["before-stop", "--end"]);
    assert!(is_done && text.contains("s1: its clients go on"), "{text}");
    assert_eq!(answer(&mut client), "TDCZ", "{}", router.log());
    let (is_done, text) = said(&["before-stop", "--end"]);
    assert!(is_done && text.contains("were not held by before-stop"), "{text}");
    router.await_log(&[
        "held clients go on",
        "s1 is about to be stopped (before-stop)",
        "clients=1",
    ]);
}

#[test]
fn before_stop_never_fails() {
    let server = Postgres::start(&ServerOptions::default());
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        clusters: Some(format!("{}    local_member: none\n", server.yaml())),
        address: Some(fresh_address()),
        http: format!("token_file: {}", secret(dir.path(), "token", TOKEN).display()),
        ..Options::default()
    };
    let router = Router::launch(None, options);
    for (arguments, why) in [
        (&["before-stop"][..], "local_member is none"),
        (
            &["before-stop", "--member", "nobody"][..],
            "has no member nobody (there is only s1)",
        ),
    ] {
        let said = trunkline(&router, arguments);
        let errors = String::from_utf8(said.stderr).unwrap();
        assert!(said.status.success(), "{arguments:?}");
        assert!(
            errors.starts_with("clients are not held: ") && errors.contains(why),
            "{errors}"
        );
    }
    let url = format!("http://{}:1", router.address);
    let nobody = output(Command::new(env!("CARGO_BIN_EXE_trunkline")).args(["before-stop", "--url", &url]));
    assert!(nobody.status.success());
}

/// Patroni's REST interface of the shared cluster, but for switchovers: they get an answer of the
/// test's.
#[derive(Clone)]
struct FakeRest {
    url: String,
    /// Status of the answer to a switchover; `None` hangs up.
    status: Arc<Mutex<Option<u16>>>,
    /// Status of the answer to one without a leader, which says whether the router may ask.
    right: Arc<Mutex<u16>>,
    /// Bodies of the requests for switchovers with a leader, and what they authenticate with.
    asked: Arc<Mutex<Vec<String>>>,
}

impl FakeRest {
    fn start(cluster: &Cluster) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let status = Arc::new(Mutex::new(Some(200)));
        let (asked, right) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(400)));
        let rest = cluster.nodes()[0].rest.clone();
        let fake = Self {
            url,
            status,
            right,
            asked,
        };
        let serving = fake.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (rest, fake) = (rest.clone(), serving.clone());
                std::thread::spawn(move || serve(stream.unwrap(), &rest, &fake));
            }
        });
        fake
    }

    fn set(&self, status: Option<u16>) {
        *self.status.lock().unwrap() = status;
        self.asked.lock().unwrap().clear();
    }
}

fn serve(mut stream: TcpStream, rest: &str, fake: &FakeRest) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        let Some((name, value)) = header.trim().split_once(": ") else {
            break;
        };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let length = headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let body = String::from_utf8(body).unwrap();
    let (status, text) = if path == "/switchover" && body.contains("null") {
        (
            *fake.right.lock().unwrap(),
            "Switchover could be performed only from a specific leader".to_owned(),
        )
    } else if path == "/switchover" {
        let with = headers.get("authorization").cloned().unwrap_or_default();
        fake.asked.lock().unwrap().push(format!("{body} {with}"));
        ((*fake.status.lock().unwrap())?, "as the test says".to_owned())
    } else {
        let said = output(
            Command::new("curl")
                .args(["-s", "-m", "3", "-w", "%{http_code}"])
                .arg(format!("{rest}{path}")),
        );
        let said = String::from_utf8(said.stdout).unwrap();
        let (text, status) = said.split_at(said.len().checked_sub(3)?);
        (status.parse().unwrap(), renamed(text, &fake.url))
    };
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        text.len()
    );
    stream
        .write_all(&[head.as_bytes(), text.as_bytes()].concat())
        .ok()
}

/// Every member's REST interface is the fake one.
fn renamed(text: &str, own: &str) -> String {
    let Ok(mut value) = serde_json::from_str::<serde_json::Value>(text) else {
        return text.to_owned();
    };
    for member in value["members"].as_array_mut().into_iter().flatten() {
        member["api_url"] = format!("{own}/patroni").into();
    }
    value.to_string()
}

/// Nobody says yes to it.
fn plan_names_a_transaction(router: &Router) {
    let said = trunkline(router, &["switchover", "--grace", "5"]);
    let plan = String::from_utf8(said.stdout).unwrap();
    assert!(!said.status.success());
    let open = "1 transaction is open now; if it is open after the grace, it is rolled back\n  route read-write: 1, for ";
    assert!(plan.contains(open) && plan.contains(": app at 127."), "{plan}");
}

#[test]
fn what_patroni_says_to_a_switchover_decides_whether_clients_wait() {
    let cluster = Cluster::shared();
    let fake = FakeRest::start(cluster);
    let dir = tempfile::tempdir().unwrap();
    let clusters = cluster.yaml(dir.path());
    let (before, behind) = clusters.split_once("endpoints: [").unwrap();
    let (_, behind) = behind.split_once(']').unwrap();
    let options = Options {
        clusters: Some(format!("{before}endpoints: [\"{}\"]{behind}", fake.url)),
        http: format!("token_file: {}", secret(dir.path(), "token", TOKEN).display()),
        extra: POOLED.to_owned(),
        ..Options::default()
    };
    let router = Router::before(cluster, options);
    let leader = cluster.leader();
    let mut client = session(&router);
    assert_eq!(client.value("SELECT 1"), "1");
    for status in [400, 401, 403, 412] {
        fake.set(Some(status));
        let said = trunkline(&router, &["switchover", "--yes", "--grace", "1s"]);
        let text = String::from_utf8(said.stdout).unwrap();
        assert!(!said.status.success(), "{status}: {text}");
        let refused = format!("Patroni refuses, and clients go on: HTTP status {status}: as the test says");
        assert!(text.contains(&refused), "{status}: {text}");
        assert!(text.contains(&format!("switch over from {leader} to ")), "{text}");
        assert!(text.contains("no transaction is open now; "), "{text}");
        assert_eq!(client.value("SELECT 2"), "2");
        let asked = fake.asked.lock().unwrap().clone();
        assert_eq!(asked.len(), 1, "{asked:?}");
        assert!(
            asked[0].contains(&format!("\"leader\":\"{leader}\"")),
            "{asked:?}"
        );
    }
    // Nobody knows: clients wait up to the bound, and nothing has happened.
    for status in [Some(503), None] {
        fake.set(status);
        let began = Instant::now();
        let commands = std::thread::scope(|scope| {
            let command = scope.spawn(|| trunkline(&router, &["switchover", "--yes", "--grace", "1s"]));
            eventually("Patroni was asked", Duration::from_secs(20), || {
                !fake.asked.lock().unwrap().is_empty()
            });
            send(&mut client, "SELECT 3");
            eventually("the client waits", Duration::from_secs(5), || {
                waiting(&router) == 1
            });
            // A second one is refused meanwhile.
            let second = trunkline(&router, &["switchover", "--yes"]);
            let errors = String::from_utf8(second.stderr).unwrap();
            assert!(
                errors.contains("another switchover of this cluster runs"),
                "{errors}"
            );
            while !command.is_finished() {
                pause(Duration::from_millis(50));
            }
            command.join().unwrap()
        });
        let text = String::from_utf8(commands.stdout).unwrap();
        assert!(!commands.status.success(), "{text}");
        assert!(text.contains("nobody knows whether it switches over"), "{text}");
        let still = format!("{leader} is still the leader after ");
        assert!(text.contains(&still), "{text}");
        // Patroni's ttl and loop_wait, less what a hold ends before them.
        assert!(began.elapsed() >= Duration::from_secs(15), "{text}");
        assert_eq!(answer(&mut client), "TDCZ");
    }
    // The answer is yes, and another member never leads: it counts what the router sees.
    fake.set(Some(200));
    let said = trunkline(&router, &["switchover", "--yes", "--grace", "1s"]);
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(
        !said.status.success() && text.contains("Patroni: as the test says"),
        "{text}"
    );
    assert_eq!(client.value("SELECT 4"), "4");
    // Clients would wait for transactions until no time is left to switch over.
    let said = trunkline(&router, &["switchover", "--yes", "--grace", "20s"]);
    let text = String::from_utf8(said.stderr).unwrap();
    assert!(
        !said.status.success() && text.contains("use --grace 14s"),
        "{text}"
    );
    // Ctrl-C undoes it, as long as Patroni has not been asked.
    fake.set(Some(200));
    let mut busy = session(&router);
    send(&mut busy, "BEGIN");
    assert_eq!(answer(&mut busy), "CZ");
    plan_names_a_transaction(&router);
    let command = Command::new(env!("CARGO_BIN_EXE_trunkline"))
        .args(["switchover", "--yes", "--grace", "12s", "-c"])
        .arg(router.dir().join("trunkline.yaml"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    send(&mut client, "SELECT 5");
    let held = || {
        router
            .http("/api/v1/members")
            .unwrap()
            .1
            .contains("about to be stopped")
    };
    eventually("the leader's clients are held", Duration::from_secs(20), held);
    send(&mut client, "SELECT 5");
    eventually("the client waits", Duration::from_secs(5), || {
        waiting(&router) == 1
    });
    succeed(Command::new("kill").args(["-s", "INT", &command.id().to_string()]));
    let said = command.wait_with_output().unwrap();
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(
        !said.status.success() && text.contains("nothing was changed: an operator has ended it"),
        "{text}"
    );
    assert!(fake.asked.lock().unwrap().is_empty());
    for _ in 0..2 {
        assert_eq!(answer(&mut client), "TDCZ");
    }
    send(&mut busy, "COMMIT");
    assert_eq!(answer(&mut busy), "CZ");
    // Not confirmed: nothing is asked.
    fake.set(Some(200));
    let said = trunkline(&router, &["switchover"]);
    assert!(!said.status.success());
    assert!(fake.asked.lock().unwrap().is_empty());
}

#[test]
fn whether_the_router_may_ask_patroni_is_known_beforehand() {
    let cluster = Cluster::shared();
    let fake = FakeRest::start(cluster);
    let dir = tempfile::tempdir().unwrap();
    let clusters = cluster.yaml(dir.path());
    let (before, behind) = clusters.split_once("endpoints: [").unwrap();
    let (_, behind) = behind.split_once(']').unwrap();
    let password = secret(dir.path(), "basic", "geheim");
    let options = Options {
        clusters: Some(format!(
            "{before}endpoints: [\"{}\"], username: u, password_file: {}{behind}",
            fake.url,
            password.display()
        )),
        http: format!("token_file: {}", secret(dir.path(), "token", TOKEN).display()),
        extra: format!("console: {{users: [app], operators: [app]}}\n{POOLED}"),
        ..Options::default()
    };
    let router = Router::before(cluster, options);
    let (leader, mut client) = (cluster.leader(), session(&router));
    assert_eq!(client.value("SELECT 1"), "1");
    let console = |command: &str| {
        let said = router.psql_output(6432, "dbname=trunkline", command);
        (
            said.status.success(),
            String::from_utf8(said.stdout).unwrap(),
            String::from_utf8(said.stderr).unwrap(),
        )
    };
    for status in [401, 403] {
        *fake.right.lock().unwrap() = status;
        let denied = format!("Patroni does not let the router switch over (HTTP status {status})");
        let said = trunkline(&router, &["check", "--connect"]);
        let text = String::from_utf8(said.stdout).unwrap();
        assert!(said.status.success() && text.contains(&denied), "{text}");
        let said = trunkline(&router, &["switchover", "--yes"]);
        let errors = String::from_utf8(said.stderr).unwrap();
        assert!(!said.status.success() && errors.contains(&denied), "{errors}");
        let (is_done, rows, _) = console("EXPLAIN SWITCHOVER");
        assert!(
            is_done && rows.contains(&format!("not possible now: {denied}")),
            "{rows}"
        );
        let (is_done, _, errors) = console("SWITCHOVER");
        assert!(
            !is_done && errors.contains("not possible now") && errors.contains(&denied),
            "{errors}"
        );
    }
    assert!(fake.asked.lock().unwrap().is_empty());
    *fake.right.lock().unwrap() = 400;
    let said = trunkline(&router, &["check", "--connect"]);
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(text.contains("Patroni lets the router switch over"), "{text}");

    // With basic authentication; the checkpoint is made before anybody is held, if it may be made.
    let checkpoint = "a checkpoint was made in ";
    for (grant, is_made) in [("GRANT", true), ("REVOKE", false)] {
        let word = if is_made { "TO" } else { "FROM" };
        cluster
            .node(&leader)
            .sql(&format!("{grant} pg_checkpoint {word} trunkline"));
        fake.set(Some(412));
        let (is_done, _, errors) = console("SWITCHOVER");
        assert!(!is_done, "{errors}");
        let place = |part: &str| errors.find(part);
        assert_eq!(place(checkpoint).is_some(), is_made, "{errors}");
        let first = if is_made {
            checkpoint
        } else {
            "no checkpoint was made: the service account may not"
        };
        let steps = [
            format!("switch over from {leader} to "),
            first.to_owned(),
            "clients are held, and no transaction is open".to_owned(),
            format!("Patroni is asked to switch over from {leader}"),
            "Patroni refuses, and clients go on: HTTP status 412".to_owned(),
            "ERROR:  there was no switchover".to_owned(),
        ];
        let places: Vec<_> = steps.iter().map(|step| place(step)).collect();
        assert!(
            places.iter().all(Option::is_some) && places.is_sorted(),
            "{errors}"
        );
        let asked = fake.asked.lock().unwrap().clone();
        assert_eq!(asked.len(), 1, "{asked:?}");
        // "u:geheim" in Base64.
        assert!(asked[0].ends_with(" Basic dTpnZWhlaW0="), "{asked:?}");
        let (_, rows, _) = console("SHOW SWITCHOVER");
        assert!(
            rows.starts_with(&format!("main|{leader}|")) && rows.contains("|failed|"),
            "{rows}"
        );
        assert_eq!(client.value("SELECT 2"), "2");
    }
}

#[test]
fn a_paused_route_lets_its_clients_wait_also_after_a_restart() {
    let server = Postgres::start(&ServerOptions::default());
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state.json");
    let options = || Options {
        clusters: Some(server.yaml()),
        address: Some(fresh_address()),
        http: format!("token_file: {}", secret(dir.path(), "token", TOKEN).display()),
        extra: format!("state_file: {}\n{POOLED}", state.display()),
        ..Options::default()
    };
    let mut router = Router::launch(None, options());
    router.await_read_write();
    let (mut busy, mut idle) = (session(&router), session(&router));
    send(&mut busy, "BEGIN");
    assert_eq!(answer(&mut busy), "CZ");
    let said = trunkline(&router, &["pause", "read-write", "--wait", "300ms"]);
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(!said.status.success(), "{text}");
    assert!(
        text.contains("1 transaction is still open") && text.contains("idle in transaction"),
        "{text}"
    );
    send(&mut idle, "SELECT 3");
    eventually("the other client waits", Duration::from_secs(10), || {
        waiting(&router) == 1
    });
    assert_eq!(busy.value("SELECT 2"), "2");
    send(&mut busy, "COMMIT");
    assert_eq!(answer(&mut busy), "CZ");
    let said = trunkline(&router, &["pause", "read-write"]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let routes = String::from_utf8(trunkline(&router, &["routes"]).stdout).unwrap();
    assert!(routes.contains("enabled, paused, 4 min "), "{routes}");
    assert!((router.metric("trunkline_route_paused{route=\"read-write\"}") - 1.0).abs() < 0.1);
    let said = trunkline(&router, &["unpause", "read-write"]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert_eq!(answer(&mut idle), "TDCZ");
    let unknown = trunkline(&router, &["pause", "nowhere"]);
    assert!(!unknown.status.success());

    let said = trunkline(&router, &["pause", "read-write"]);
    assert!(said.status.success());
    eventually("the pause is kept", Duration::from_secs(10), || {
        std::fs::read_to_string(&state).is_ok_and(|text| text.contains("paused_routes"))
    });
    router.signal("KILL");
    router.await_exit(Duration::from_secs(10));
    let router = Router::launch(None, options());
    router.await_log(&["the route is paused for", "as before"]);
    assert!((router.metric("trunkline_route_paused{route=\"read-write\"}") - 1.0).abs() < 0.1);
    assert!(trunkline(&router, &["unpause", "read-write"]).status.success());
    router.await_read_write();
    assert_eq!(session(&router).value("SELECT 4"), "4");
}

/// What `psql` says to this command in the console, errors and notices included.
fn console(router: &Router, user: &str, command: &str) -> String {
    let dsn = router.dsn(6432, &format!("dbname=trunkline user={user} password={user}"));
    let said = output(
        Command::new("psql")
            .args(["-XAt", "-v", "VERBOSITY=verbose", "-c", command])
            .arg(dsn),
    );
    String::from_utf8([said.stdout, said.stderr].concat()).unwrap()
}

#[test]
fn operators_pause_and_resume_routes_in_the_console() {
    let server = Postgres::start(&ServerOptions::default());
    server.sql("CREATE ROLE admin LOGIN PASSWORD 'admin'");
    let options = Options {
        clusters: Some(server.yaml()),
        extra: "console: {users: [app, admin], operators: [admin]}\nroutes:\n  \
                read-write: {targets: [leader], pool: {mode: transaction, max_connections: 3}}\n  \
                read-only: {targets: [replica]}\n"
            .to_owned(),
        ..Options::default()
    };
    let router = Router::launch(None, options);
    router.await_read_write();
    let mut client = session(&router);
    assert_eq!(client.value("SELECT 1"), "1");
    let is_paused = || router.metric("trunkline_route_paused{route=\"read-write\"}") > 0.5;

    for command in ["PAUSE", "RESUME", "SWITCHOVER", "ABORT SWITCHOVER"] {
        let said = console(&router, "app", command);
        assert!(
            said.contains("ERROR:  42501: permission denied") && said.contains("console.operators"),
            "{said}"
        );
    }
    let said = console(&router, "admin", "PAUSE nowhere");
    assert!(said.contains("42704: route \"nowhere\" does not exist"), "{said}");
    assert!(!is_paused());

    for (pause, resume) in [
        ("PAUSE", "RESUME"),
        ("pause \"read-write\"", "resume read-write;"),
    ] {
        let said = console(&router, "admin", pause);
        assert!(
            said.contains("PAUSE\n") && said.contains("NOTICE:  00000: the clients of read-write wait"),
            "{said}"
        );
        assert!(is_paused());
        send(&mut client, "SELECT 2");
        eventually("the client waits", Duration::from_secs(10), || {
            waiting(&router) == 1
        });
        let said = console(&router, "admin", resume);
        assert!(
            said.contains("RESUME\n") && said.contains("NOTICE:  00000: read-write: 1 session goes on"),
            "{said}"
        );
        assert_eq!(answer(&mut client), "TDCZ");
        assert!(!is_paused());
    }
    router.await_log(&["the route is paused", "by=admin at 127.", "(console)"]);
    // Nothing to end, and nothing that runs.
    let said = console(&router, "admin", "RESUME");
    assert!(said.contains("NOTICE:  00000: no route is paused"), "{said}");
    let said = console(&router, "admin", "RESUME read-write");
    assert!(
        said.contains("NOTICE:  00000: read-write was not paused"),
        "{said}"
    );
    assert_eq!(console(&router, "app", "SHOW SWITCHOVER").trim(), "");
    let said = console(&router, "admin", "ABORT SWITCHOVER");
    assert!(said.contains("55000: no switchover runs"), "{said}");
    // The members are a fixed list.
    for command in ["SWITCHOVER", "EXPLAIN SWITCHOVER TO s2"] {
        let said = console(&router, "admin", command);
        assert!(said.contains("ERROR:  55000: "), "{said}");
    }
}
