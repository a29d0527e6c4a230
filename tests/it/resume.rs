//! Sessions that keep their server connection, and have another one where they must leave it:
//! `resume: tracked`, in front of a real cluster.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use super::pooling::{bind_named, parse_named, seen};
use super::raw::{Client, Login, PATIENCE, at, execute, query, shown, sync};
use crate::cluster::{Cluster, Options, Router, eventually, output, pause, secret};

const ROUTES: &str = "routes:
  plain: {targets: [replica], resume: tracked}
  pooled: {targets: [replica], resume: tracked, pool: {mode: session, max_connections: 5}}
  untracked: {targets: [replica]}
  read-write: {targets: [leader], resume: tracked}
  transactions: {targets: [leader], pool: {mode: transaction, max_connections: 5}}
";
const LISTENERS: &str = "  - {name: plain, address: \"{address}:6440\", route: plain}
  - {name: pooled, address: \"{address}:6441\", route: pooled}
  - {name: untracked, address: \"{address}:6442\", route: untracked}
  - {name: read-write, address: \"{address}:6432\", route: read-write}
  - {name: transactions, address: \"{address}:6443\", route: transactions}
";

struct Subject {
    router: Router,
    _files: tempfile::TempDir,
}

impl Subject {
    fn start() -> Self {
        let files = tempfile::tempdir().unwrap();
        let token = secret(files.path(), "token", "a-token-of-24-characters");
        let options = Options {
            http: format!("token_file: {}", token.display()),
            extra: ROUTES.to_owned(),
            listeners: Some(LISTENERS.to_owned()),
            ..Options::default()
        };
        let router = Router::launch(Some(Cluster::shared()), options);
        router.await_read_write();
        let subject = Self {
            router,
            _files: files,
        };
        eventually("all members are up", PATIENCE, || {
            subject.members().matches(" UP ").count() == 3
        });
        subject
    }

    fn run(&self, arguments: &[&str]) -> String {
        let config = self.router.dir().join("trunkline.yaml");
        let mut command = Command::new(env!("CARGO_BIN_EXE_trunkline"));
        let done = output(command.args(arguments).arg("-c").arg(config));
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{arguments:?}: {said}");
        String::from_utf8(done.stdout).unwrap()
    }

    fn members(&self) -> String {
        self.run(&["members"])
    }

    fn session(&self, port: u16) -> Client {
        let parameters = [("application_name", "mine"), ("work_mem", "6MB")];
        Client::login(
            at(&self.router, port),
            Login {
                parameters: &parameters,
                ..Login::default()
            },
        )
    }
}

/// The member on which the session is now.
fn place(client: &mut Client) -> String {
    let address = client.value("SELECT host(inet_server_addr()) || ':' || inet_server_port()");
    let cluster = Cluster::shared();
    let mut all = cluster.replicas();
    all.push(cluster.leader());
    let mut at = all.into_iter().filter(|name| {
        let node = cluster.node(name);
        format!("{}:{}", node.address, node.port) == address
    });
    at.next().unwrap_or(address)
}

#[test]
fn a_drained_member_is_left_with_settings_and_statements_and_nobody_notices() {
    let on = Subject::start();
    for port in [6440, 6441] {
        let mut client = on.session(port);
        let before = place(&mut client);
        client.ask("SET statement_timeout = '77s'");
        client.ask("SET app.tenant = 'seven'");
        client.send(&[parse_named("s", "SELECT $1::int + 1", &[]), sync()].concat());
        assert_eq!(shown(&client.ready()), ["1", "ZI"]);
        client.ask("BEGIN");
        on.run(&["drain", &before]);
        assert_eq!(place(&mut client), before, "a transaction stays where it is");
        client.ask("COMMIT");
        eventually("the session moves", PATIENCE, || place(&mut client) != before);
        assert_eq!(client.value("SHOW statement_timeout"), "77s");
        assert_eq!(client.value("SHOW app.tenant"), "seven");
        assert_eq!(client.value("SHOW work_mem"), "6MB");
        assert!(client.value("SHOW application_name").starts_with("mine"));
        client.send(&[bind_named("s", &["41"]), execute(), sync()].concat());
        assert_eq!(seen(&client.ready()), "42");
        on.run(&["ready", &before]);
    }
}

#[test]
fn who_is_pinned_or_not_tracked_stays_on_a_drained_member() {
    let on = Subject::start();
    let (mut pinned, mut untracked) = (on.session(6440), on.session(6442));
    pinned.ask("PREPARE mine AS SELECT 1");
    for client in [&mut pinned, &mut untracked] {
        let before = place(client);
        on.run(&["drain", &before]);
        for _ in 0..5 {
            assert_eq!(place(client), before);
        }
        on.run(&["ready", &before]);
    }
    // What pinned it is gone: it can move now.
    let before = place(&mut pinned);
    pinned.ask("DEALLOCATE mine");
    on.run(&["drain", &before]);
    eventually("the session moves", PATIENCE, || place(&mut pinned) != before);
    on.run(&["ready", &before]);
}

/// There is no other leader to go to.
#[test]
fn clients_of_a_drained_leader_wait_until_it_is_ready() {
    let on = Subject::start();
    let (mut kept, mut pooled) = (on.session(6432), on.session(6443));
    let leader = place(&mut kept);
    kept.ask("SET work_mem = '9MB'");
    kept.ask("BEGIN");
    on.run(&["drain", &leader]);
    assert_eq!(place(&mut kept), leader, "a transaction stays where it is");
    kept.ask("COMMIT");
    kept.send(&query("SHOW work_mem"));
    pooled.send(&query("SELECT 1"));
    let address = at(&on.router, 6432);
    let newcomer = thread::spawn(move || Client::login(address, Login::default()).value("SELECT 1"));
    for (route, clients) in [("read-write", 2.0), ("transactions", 1.0)] {
        let held = format!("trunkline_hold_length{{route=\"{route}\"}}");
        eventually("they wait", PATIENCE, || {
            (on.router.metric(&held) - clients).abs() < 0.1
        });
    }
    on.run(&["ready", &leader]);
    assert_eq!(seen(&kept.ready()), "9MB");
    assert_eq!(seen(&pooled.ready()), "1");
    assert_eq!(newcomer.join().unwrap(), "1");
}

#[test]
fn a_tracked_session_is_like_one_of_its_own_as_long_as_nothing_happens() {
    let on = Subject::start();
    let mut client = on.session(6432);
    let first = client.value("SELECT pg_backend_pid()");
    for _ in 0..5 {
        assert_eq!(client.value("SELECT pg_backend_pid()"), first);
    }
    assert_eq!(client.value("SELECT count(*) FROM pg_prepared_statements"), "0");
    client.ask("CREATE TEMPORARY TABLE mine (x int)");
    client.ask("INSERT INTO mine VALUES (1)");
    assert_eq!(client.value("SELECT count(*) FROM mine"), "1");
    assert_eq!(client.value("SELECT pg_backend_pid()"), first);
}

/// Whether the session goes on behind a request, whatever the answer is.
fn is_answered(client: &mut Client) -> bool {
    client.send(&query("SELECT 1"));
    std::iter::from_fn(|| client.next()).any(|frame| frame.tag == b'Z')
}

/// For ten seconds a role ends the server connections of its own sessions, again and again. That is
/// no evidence that the leader is gone: the gate stays open, and others are answered all the while.
#[test]
fn a_role_that_terminates_its_own_sessions_delays_nobody() {
    let on = Subject::start();
    let leader = Cluster::shared().node(&Cluster::shared().leader());
    let (over, ended) = (AtomicBool::new(false), AtomicUsize::new(0));
    let held = || -> f64 {
        let (_, text) = on.router.http("/metrics").unwrap();
        let entered = text
            .lines()
            .filter(|line| line.starts_with("trunkline_hold_entered_total"));
        entered
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
            .sum()
    };
    let before = held();
    thread::scope(|scope| {
        for port in [6432, 6443] {
            let (on, over) = (&on, &over);
            scope.spawn(move || {
                // A login that is hit fails, a request has an unknown outcome: both begin anew.
                while !over.load(Ordering::Relaxed) {
                    let login = Login {
                        parameters: &[("application_name", "ends itself")],
                        ..Login::default()
                    };
                    let Ok(mut own) = Client::try_login(at(&on.router, port), login) else {
                        continue;
                    };
                    while !over.load(Ordering::Relaxed) && is_answered(&mut own) {}
                }
            });
        }
        scope.spawn(|| {
            let address = std::net::SocketAddr::new(leader.address.parse().unwrap(), leader.port);
            let mut killer = Client::login(address, Login::default());
            while !over.load(Ordering::Relaxed) {
                let count = killer.value(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                     WHERE usename = 'app' AND application_name LIKE 'ends itself%' AND pid <> pg_backend_pid()",
                );
                ended.fetch_add(count.parse().unwrap(), Ordering::Relaxed);
                pause(Duration::from_millis(20));
            }
        });
        let other = Login {
            user: "postgres",
            password: "postgres",
            ..Login::default()
        };
        let mut others = [6432, 6443].map(|port| Client::login(at(&on.router, port), other));
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(10) {
            for client in &mut others {
                assert_eq!(client.value("SELECT 'served'"), "served");
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    let ended = ended.load(Ordering::Relaxed);
    assert!(ended > 50, "sessions were terminated: {ended}");
    assert!(
        (held() - before).abs() < 0.5,
        "nobody was held: {}",
        on.router.log()
    );
}
