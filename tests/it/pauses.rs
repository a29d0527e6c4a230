//! Pauses of routes at all peers, over a restart and an upgrade there.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use tokio::time::Instant;

use super::handover::upgrade;
use crate::cluster::postgres::{Options as ServerOptions, Postgres};
use crate::cluster::{Options, Router, eventually, fresh_address, output, secret};
use crate::hand::{Raw, V3_0, message};

const TOKEN: &str = "a-token-of-24-characters";
const SECRET: &str = "a secret of the peers, long enough to be one";
const SOON: Duration = Duration::from_secs(20);
const PAUSED: &str = "trunkline_route_paused{route=\"read-write\"}";

fn trunkline(router: &Router, arguments: &[&str]) -> (bool, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = output(
        Command::new(env!("CARGO_BIN_EXE_trunkline"))
            .args(arguments)
            .arg("-c")
            .arg(router.dir().join("trunkline.yaml")),
    );
    let both = [stdout, stderr].concat();
    (status.success(), String::from_utf8(both).unwrap())
}

/// The router `number` before `server`, with these peers.
fn router(
    server: &Postgres,
    dir: &Path,
    (number, address): (usize, Ipv4Addr),
    peers_secret: &str,
    peers: &[(&str, Ipv4Addr)],
    route: &str,
) -> Router {
    let members: Vec<String> = peers
        .iter()
        .map(|(name, address)| format!("{{name: {name}, address: \"{address}:6432\"}}"))
        .collect();
    let file = |name: &str| dir.join(format!("{name}-{number}")).display().to_string();
    let peers_secret = secret(dir, &format!("peers-{number}"), peers_secret);
    let options = Options {
        clusters: Some(server.yaml()),
        address: Some(address),
        http: format!(
            "token_file: {}",
            secret(dir, &format!("token-{number}"), TOKEN).display()
        ),
        listeners: Some(format!(
            "  - {{name: rw, address: \"{address}:6432\", route: {route}}}\n"
        )),
        extra: format!(
            "state_file: {}\ncontrol_socket: {}\npeers: {{secret_file: {}, members: [{}]}}\n\
             routes:\n  {route}: {{targets: [leader], pool: {{mode: transaction, max_connections: 3}}}}\n",
            file("state"),
            file("control"),
            peers_secret.display(),
            members.join(", "),
        ),
        ..Options::default()
    };
    Router::launch(None, options)
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

fn await_waiting(router: &Router, count: usize) {
    eventually("clients wait", SOON, || {
        let (_, body) = router.http("/api/v1/sessions").unwrap();
        body.matches("\"phase\":\"waiting\"").count() == count
    });
}

fn is_paused(router: &Router) -> bool {
    router.metric(PAUSED) > 0.5
}

#[test]
fn a_pause_at_all_peers_lasts_there_over_a_restart_and_an_upgrade() {
    let server = Postgres::start(&ServerOptions::default());
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (fresh_address(), fresh_address());
    let make_two = || {
        router(
            &server,
            dir.path(),
            (2, two),
            SECRET,
            &[("one", one)],
            "read-write",
        )
    };
    let first = router(
        &server,
        dir.path(),
        (1, one),
        SECRET,
        &[("two", two)],
        "read-write",
    );
    let mut second = make_two();
    first.await_read_write();
    second.await_read_write();

    let mut busy = session(&second);
    send(&mut busy, "BEGIN");
    assert_eq!(answer(&mut busy), "CZ");
    let pause = ["pause", "read-write", "--all-peers", "--wait", "300ms"];
    let (is_done, said) = trunkline(&first, &pause);
    assert!(!is_done && said.contains("1 transaction is still open"), "{said}");
    send(&mut busy, "COMMIT");
    assert_eq!(answer(&mut busy), "CZ");
    let (is_done, said) = trunkline(&first, &["pause", "read-write", "--all-peers"]);
    assert!(is_done && said.contains("no transaction is open"), "{said}");
    assert!(is_paused(&first) && is_paused(&second));
    send(&mut busy, "SELECT 1");
    await_waiting(&second, 1);
    // Both say why, and who ordered it.
    for held in [&first, &second] {
        let (_, holds) = held.http("/api/v1/holds").unwrap();
        // The operator only with the token.
        for part in ["\"kind\":\"pause\"", "\"operator\":\"\""] {
            assert!(holds.contains(part), "{holds}");
        }
        held.await_log(&[
            "clients are held for up to",
            "an operator has paused",
            "HTTP from 127.",
        ]);
    }
    let (is_done, said) = trunkline(&second, &["routes"]);
    assert!(
        is_done && said.contains("1 held ") && said.contains(", pause by "),
        "{said}"
    );
    let (is_done, said) = trunkline(&second, &["sessions"]);
    assert!(is_done && said.contains(" waits "), "{said}");
    let (is_done, said) = trunkline(&second, &["unpause", "read-write", "--cluster", "x"]);
    assert!(
        !is_done && said.contains("there is no cluster x (there is only "),
        "{said}"
    );

    // The peer dies, and is started again.
    let state = dir.path().join("state-2");
    eventually("the peer keeps it", SOON, || {
        std::fs::read_to_string(&state).is_ok_and(|text| text.contains("read-write"))
    });
    second.signal("KILL");
    second.await_exit(SOON);
    drop(second);
    let second = make_two();
    second.await_log(&["the route is paused for", "as before"]);
    second.await_log(&["s1 is the leader"]);
    assert!(is_paused(&second));

    // It is replaced while a client logs in, which waits.
    let old_client = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| session(&second).value("SELECT 2"));
        eventually("a login is held", SOON, || {
            second.metric("trunkline_hold_length{route=\"read-write\"}") > 0.5
        });
        let _new = upgrade(&second);
        assert!(is_paused(&second), "the new process");
        assert!(!waiting.is_finished(), "the old process, too");
        let (is_done, said) = trunkline(&first, &["unpause", "read-write", "--all-peers"]);
        assert!(is_done, "{said}");
        let served = waiting.join().unwrap();
        assert!(!is_paused(&first) && !is_paused(&second));
        assert_eq!(session(&second).value("SELECT 3"), "3");
        served
    });
    assert_eq!(old_client, "2");
    eventually("the peer forgets it", SOON, || {
        std::fs::read_to_string(&state).is_ok_and(|text| !text.contains("read-write"))
    });
}

#[test]
fn a_pause_at_all_peers_outlives_the_router_that_ordered_it() {
    let server = Postgres::start(&ServerOptions::default());
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (fresh_address(), fresh_address());
    let make =
        |own, other: (&str, Ipv4Addr)| router(&server, dir.path(), own, SECRET, &[other], "read-write");
    let second = make((2, two), ("one", one));
    second.await_read_write();
    let mut client = session(&second);
    assert_eq!(client.value("SELECT 1"), "1");

    // The peer's own command ends it.
    let mut first = make((1, one), ("two", two));
    first.await_read_write();
    let (is_done, said) = trunkline(&first, &["pause", "read-write", "--all-peers"]);
    assert!(is_done, "{said}");
    first.signal("KILL");
    first.await_exit(SOON);
    send(&mut client, "SELECT 2");
    await_waiting(&second, 1);
    let (is_done, said) = trunkline(&second, &["unpause", "read-write"]);
    assert!(is_done, "{said}");
    assert_eq!(answer(&mut client), "TDCZ");

    // Its time is over. The router that comes back has kept its own pause, and ends it.
    drop(first);
    let mut first = make((1, one), ("two", two));
    first.await_log(&["the route is paused for", "as before"]);
    assert!(is_paused(&first) && !is_paused(&second));
    let (is_done, said) = trunkline(&first, &["unpause", "read-write", "--all-peers"]);
    assert!(is_done, "{said}");
    first.await_read_write();
    let lasts = Duration::from_secs(4);
    let began = Instant::now();
    let (is_done, said) = trunkline(&first, &["pause", "read-write", "--all-peers", "--timeout", "4s"]);
    assert!(is_done, "{said}");
    first.signal("KILL");
    first.await_exit(SOON);
    send(&mut client, "SELECT 3");
    await_waiting(&second, 1);
    assert_eq!(answer(&mut client), "TDCZ");
    assert!(began.elapsed() >= lasts, "{:?}", began.elapsed());
    assert!(!is_paused(&second));
}

#[test]
fn a_peer_that_does_not_follow_a_pause_is_named() {
    let server = Postgres::start(&ServerOptions::default());
    let dir = tempfile::tempdir().unwrap();
    let [own, other, stranger, silent] = [(); 4].map(|()| fresh_address());
    let nobody = fresh_address();
    // It accepts connections and says nothing.
    let _silence = TcpListener::bind((silent, 6432)).unwrap();
    let peers = [
        ("other", other),
        ("stranger", stranger),
        ("silent", silent),
        ("nobody", nobody),
    ];
    let first = router(&server, dir.path(), (1, own), SECRET, &peers, "read-write");
    // A route of another name, and another secret.
    let other = router(
        &server,
        dir.path(),
        (2, other),
        SECRET,
        &[("first", own)],
        "elsewhere",
    );
    let unlike = SECRET.to_uppercase();
    let stranger = router(
        &server,
        dir.path(),
        (3, stranger),
        &unlike,
        &[("first", own)],
        "read-write",
    );
    for router in [&first, &other, &stranger] {
        eventually("there is a leader", SOON, || {
            router
                .http("/connection/is-ready")
                .is_some_and(|(status, _)| status == 200)
        });
    }
    let began = Instant::now();
    let (is_done, said) = trunkline(&first, &["pause", "read-write", "--all-peers"]);
    assert!(!is_done, "{said}");
    assert!(began.elapsed() < SOON, "nobody is waited for without end");
    for part in [
        "read-write: paused, and no transaction is open",
        "not everywhere: peer other: it has no such route",
        "not everywhere: peer stranger: ",
        "not everywhere: peer silent: it did not answer in time",
        "not everywhere: peer nobody: ",
    ] {
        assert!(said.contains(part), "{part}\n{said}");
    }
    assert!(is_paused(&first) && !is_paused(&stranger));
    assert_eq!(session(&other).value("SELECT 1"), "1");
    let (is_done, said) = trunkline(&first, &["unpause", "read-write", "--all-peers"]);
    assert!(!is_done && said.contains("peer silent"), "{said}");
    assert_eq!(session(&first).value("SELECT 1"), "1");
}
