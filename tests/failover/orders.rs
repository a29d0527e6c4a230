//! Orders that hold clients: planned stops of servers without an error.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::cluster::postgres::{Options as ServerOptions, Postgres};
use super::cluster::{Cluster, Options, Router, binary, eventually, fresh_address, output, secret, succeed};
use super::fake::Patroni;
use super::session::Session;
use super::writers::Writers;

const WRITERS: u64 = 4;
pub const TOKEN: &str = "test-token-of-the-operators";

fn pooled(dir: &Path) -> Options {
    Options {
        extra:
            "routes:\n  read-write: {targets: [leader], pool: {mode: transaction, max_connections: 5}}\n  \
                read-only: {targets: [replica]}\n"
                .to_owned(),
        http: format!("token_file: {}", secret(dir, "token", TOKEN).display()),
        ..Options::default()
    }
}

/// What Patroni runs before it stops a server: `trunkline before-stop`, for a router on another
/// address than the server's.
pub fn install_before_stop(cluster: &Cluster, router: &Router) {
    let dir = Path::new(cluster.dir());
    let program = dir.join("trunkline");
    fs::copy(binary(), &program).unwrap();
    let token = dir.join("token");
    fs::write(&token, TOKEN).unwrap();
    let owner = cluster.text("run_as");
    for file in [&program, &token] {
        fs::set_permissions(file, fs::Permissions::from_mode(0o700)).unwrap();
        succeed(Command::new("chown").arg(owner).arg(file));
    }
    let script = dir.join("before-stop");
    let text = format!(
        "#!/bin/sh\nexec {program} before-stop --url http://{address}:6434 --token-file {token} --member \"$1\" \
         2>>{dir}/\"$1\"/before-stop.log\n",
        program = program.display(),
        address = router.address,
        token = token.display(),
        dir = dir.display(),
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
}

fn said_before_stop(cluster: &Cluster, node: &str) -> String {
    let log = Path::new(cluster.dir()).join(node).join("before-stop.log");
    fs::read_to_string(log).unwrap_or_default()
}

/// Patroni's REST interface restarts the server of this node in place.
pub fn restart(cluster: &Cluster, node: &str) {
    let rest = cluster.node(node).rest;
    succeed(
        Command::new("curl")
            .args(["-fsS", "-X", "POST", "-d", "{}", "-m", "60"])
            .arg(format!("{rest}/restart")),
    );
}

#[test]
fn stops_by_patroni_after_before_stop_cost_clients_nothing() {
    let options = ["--nodes", "2", "--before-stop", "{dir}/before-stop {node}"];
    let cluster = Cluster::start("127.0.91.11", 15100, &options);
    let dir = tempfile::tempdir().unwrap();
    let router = Router::before(&cluster, pooled(dir.path()));
    install_before_stop(&cluster, &router);
    let writers = Writers::start(router.address, WRITERS);
    for _ in 0..2 {
        let old = cluster.leader();
        cluster.control("switchover", &[]);
        writers.await_more(50);
        let said = said_before_stop(&cluster, &old);
        assert!(
            said.contains("no transaction is open after"),
            "{said:?}\n{}",
            router.log()
        );
        cluster.control("wait", &[]);
    }
    let leader = cluster.leader();
    restart(&cluster, &leader);
    writers.await_more(50);
    assert_eq!(cluster.leader(), leader);
    let written = writers.stop();
    let untouched = (Vec::new(), Vec::new(), WRITERS);
    assert_eq!(
        (written.refused.clone(), written.unknown.clone(), written.logins),
        untouched,
        "{}",
        router.log()
    );
    written.check(&cluster.node(&leader).sql("SELECT n FROM written"));
}

/// A single server under a Patroni with `ttl: 8` and `loop_wait: 2`, so that a hold lasts 7 s.
#[test]
fn a_second_stop_of_a_leader_that_stays_the_leader_has_all_of_its_time() {
    const LASTS: Duration = Duration::from_secs(7);
    let server = Postgres::start(&ServerOptions::default());
    let patroni = fresh_address();
    let leader = json!({"name": "s1", "role": "leader", "state": "running", "host": server.address,
        "port": server.port, "timeline": 1, "api_url": format!("http://{patroni}:8008/patroni")});
    let _patroni = Patroni::serve_with(
        patroni,
        &json!([leader]),
        json!({"ttl": 8, "loop_wait": 2, "state": "running"}),
    );
    let dir = tempfile::tempdir().unwrap();
    let clusters = format!(
        "clusters:\n  main:\n    patroni: {{endpoints: [\"http://{patroni}:8008\"]}}\n    local_member: s1\n    \
         service_account: {{user: trunkline, password_file: {}}}\n    server_tls: {{sslmode: require}}\n",
        secret(dir.path(), "service", "trunkline").display()
    );
    let router = Router::launch(
        None,
        Options {
            clusters: Some(clusters),
            ..pooled(dir.path())
        },
    );
    router.await_read_write();
    let before_stop = |grace: &str| {
        let mut command = Command::new(binary());
        let command = command.args(["before-stop", "--grace", grace, "-c"]);
        let said = output(command.arg(router.dir().join("trunkline.yaml")));
        String::from_utf8(said.stderr).unwrap()
    };
    let mut busy = Session::open(router.address, 6432).unwrap();
    let mut client = Session::open(router.address, 6432).unwrap();
    busy.query("BEGIN");
    let first = Instant::now();
    let said = before_stop("2s");
    assert!(said.contains("1 transaction is still open after"), "{said}");
    busy.query("COMMIT");
    client.send("SELECT 1");
    server.stop();
    server.start_again();
    assert_eq!(client.answer().value().as_deref(), Some("1"));

    // It runs again, and is stopped again at once.
    let second = Instant::now();
    assert!(second - first < LASTS, "within the time of the first order");
    let said = before_stop("2s");
    assert!(said.contains("no transaction is open"), "{said}");
    client.send("SELECT 2");
    assert_eq!(client.answer().value().as_deref(), Some("2"));
    let held = second.elapsed();
    assert!(
        held + Duration::from_millis(500) > LASTS,
        "{held:?}\n{}",
        router.log()
    );
    router.await_log(&["the member was not stopped", "within 7 s"]);
}

/// Two routers that are peers of each other.
fn peers(cluster: &Cluster, dir: &Path) -> [Router; 2] {
    let addresses = [fresh_address(), fresh_address()];
    let secret_file = secret(dir, "peers", &"5".repeat(64));
    [0, 1].map(|own: usize| {
        let mut options = pooled(dir);
        let _ = write!(
            options.extra,
            "peers:\n  secret_file: {}\n  members:\n    - {{name: other, address: \"{}:6432\"}}\n",
            secret_file.display(),
            addresses[1 - own]
        );
        options.address = Some(addresses[own]);
        Router::before(cluster, options)
    })
}

fn switchover(router: &Router, more: &[&str]) -> Output {
    output(
        Command::new(binary())
            .args(["switchover", "--yes", "-c"])
            .arg(router.dir().join("trunkline.yaml"))
            .args(more),
    )
}

/// The router that switches over is killed while clients are held: nobody renews the order, so that
/// the clients of its peers go on.
fn dies_before_it_asks_patroni(one: &mut Router, other: &Router) {
    let asked = |one: &Router| one.log().matches("Patroni is asked").count();
    let before = asked(one);
    let mut open = Session::open(other.address, 6432).unwrap();
    open.query("BEGIN");
    let command = Command::new(binary())
        .args(["switchover", "--yes", "--grace", "20s", "-c"])
        .arg(one.dir().join("trunkline.yaml"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut command = command.unwrap();
    let is_held = || {
        other
            .http("/api/v1/members")
            .unwrap()
            .1
            .contains("about to be stopped")
    };
    eventually("the peer holds its clients", Duration::from_secs(20), is_held);
    let waits = || other.metric("trunkline_hold_length{route=\"read-write\"}") > 0.5;
    eventually("clients of the peer wait", Duration::from_secs(10), waits);
    one.signal("KILL");
    one.await_exit(Duration::from_secs(10));
    let killed = Instant::now();
    eventually("the order ends by itself", Duration::from_secs(10), || {
        !is_held() && !waits()
    });
    assert!(
        killed.elapsed() < Duration::from_secs(3),
        "{:?}",
        killed.elapsed()
    );
    assert_eq!(asked(one), before, "{}", one.log());
    open.query("COMMIT");
    command.kill().unwrap();
    command.wait().unwrap();
}

#[test]
fn a_switchover_by_the_router_costs_clients_of_all_routers_nothing() {
    let cluster = Cluster::start("127.0.92.11", 15110, &["--nodes", "3"]);
    let dir = tempfile::tempdir().unwrap();
    let [mut one, other] = peers(&cluster, dir.path());
    let writers = [&one, &other].map(|router| Writers::start(router.address, WRITERS));
    for round in 0..3 {
        let old = cluster.leader();
        let to = cluster.replicas().remove(0);
        let more = ["--to", &to];
        let said = switchover(&one, if round == 0 { &more } else { &[] });
        let (text, errors) = (
            String::from_utf8(said.stdout).unwrap(),
            String::from_utf8(said.stderr).unwrap(),
        );
        assert!(said.status.success(), "{text}{errors}\n{}", one.log());
        assert!(text.contains("peers that take part: other"), "{text}");
        assert!(text.contains("no transaction is open after"), "{text}");
        let new = cluster.leader();
        assert_ne!(new, old);
        assert!(round > 0 || new == to, "{text}");
        for writers in &writers {
            writers.await_more(50);
        }
        cluster.control("wait", &[]);
        one.await_ready();
    }
    let old = cluster.leader();
    dies_before_it_asks_patroni(&mut one, &other);
    assert_eq!(cluster.leader(), old);
    writers[1].await_more(50);
    // A peer that does not answer stops it before anything happens, unless it is left out.
    let said = switchover(&other, &[]);
    let errors = String::from_utf8(said.stderr).unwrap();
    assert!(
        !said.status.success() && errors.contains("peer other: "),
        "{errors}"
    );
    assert_eq!(cluster.leader(), old);
    let said = switchover(&other, &["--without-peer", "other"]);
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let [killed, kept] = writers;
    kept.await_more(50);
    drop(killed.stop());
    let written = kept.stop();
    assert_eq!(
        (written.refused.clone(), written.unknown.clone(), written.logins),
        (Vec::new(), Vec::new(), WRITERS),
        "{}",
        other.log()
    );
}
