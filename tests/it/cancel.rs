//! Cancel requests: to the right query, by every way, and to nothing else.
#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::Instant;
use trunkline::wire::message;
use trunkline::wire::startup::ProtocolVersion;

use super::fake::{Fake, await_leader, one_row, router_in, trusting};
use super::handover::upgrade;
use super::raw::{Client, How, Login, PATIENCE, Stream, at, extended, node_address, query, shown, sync};
use crate::cluster::{Cluster, Node, Options, Router, eventually, fresh_address, secret};

const EACH: [How; 3] = [How::Plain, How::Tls, How::DirectTls];

pub fn send_cancel(address: SocketAddr, how: How, process_id: u32, key: &[u8]) -> Stream {
    let mut stream = Stream::connect(address, how);
    let mut out = BytesMut::new();
    message::cancel_request(&mut out, process_id, key);
    stream.write_all(&out).unwrap();
    stream.flush().unwrap();
    stream
}

/// Sends it and waits for the end of the connection, as libpq does; never is anything answered.
pub fn cancel(address: SocketAddr, how: How, process_id: u32, key: &[u8]) {
    let mut stream = send_cancel(address, how, process_id, key);
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.is_empty(), "{answer:?}");
}

/// A query that runs until it is cancelled, and does run when this returns.
fn sleep(client: &mut Client, leader: &Node) {
    client.send(&query("SELECT pg_sleep(60)"));
    running(client, leader);
}

fn running(client: &Client, leader: &Node) {
    let state = format!(
        "SELECT state FROM pg_stat_activity WHERE pid = {}",
        client.process_id
    );
    eventually("it runs", PATIENCE, || leader.sql(&state) == "active");
}

pub fn assert_cancelled(client: &mut Client) {
    let end = shown(&client.ready());
    assert_eq!(&end[end.len() - 2..], ["E57014 ERROR", "ZI"], "{end:?}");
    assert_eq!(client.value("SELECT 1"), "1");
}

pub fn metric(router: &Router, result: &str) -> f64 {
    router.metric(&format!("trunkline_cancels_total{{result=\"{result}\"}}"))
}

#[test]
fn by_every_way_and_from_either_port() {
    let (cluster, router) = (Cluster::shared(), Router::shared());
    let leader = cluster.node(&cluster.leader());
    for how in EACH {
        for port in [6432, 6433] {
            let mut client = Client::encrypted(&router, how);
            sleep(&mut client, &leader);
            cancel(at(&router, port), how, client.process_id, &client.key);
            assert_cancelled(&mut client);
            // In the extended protocol.
            client.send(&[extended("SELECT pg_sleep(60)"), sync()].concat());
            running(&client, &leader);
            cancel(at(&router, port), how, client.process_id, &client.key);
            assert_cancelled(&mut client);
        }
    }
}

#[test]
fn a_key_is_the_routers_own_and_only_the_right_one_counts() {
    let (cluster, router) = (Cluster::shared(), Router::shared());
    let leader = cluster.node(&cluster.leader());
    let address = at(&router, 6432);
    let mut client = Client::new(&router);
    assert_eq!(client.key.len(), 4);
    assert_eq!(
        client.value("SELECT pg_backend_pid()"),
        client.process_id.to_string()
    );
    sleep(&mut client, &leader);
    // The server does not know the router's key.
    cancel(node_address(&leader), How::Plain, client.process_id, &client.key);
    let mut wrong = client.key.clone();
    wrong[3] ^= 1;
    let longer = [&client.key[..], &[0]].concat();
    for key in [&wrong[..], &longer, &[0; 4], &[7; 32], &[1; 256]] {
        cancel(address, How::Plain, client.process_id, key);
    }
    cancel(address, How::Plain, client.process_id ^ 1, &client.key);
    eventually("all are counted", PATIENCE, || {
        metric(&router, "unknown") + metric(&router, "forged") >= 6.0
    });
    assert_eq!(
        leader.sql(&format!(
            "SELECT state FROM pg_stat_activity WHERE pid = {}",
            client.process_id
        )),
        "active"
    );
    cancel(address, How::Plain, client.process_id, &client.key);
    assert_cancelled(&mut client);
    // Idle, also within a transaction: nothing to cancel, and nothing is.
    client.ask("BEGIN");
    for _ in 0..20 {
        cancel(address, How::Plain, client.process_id, &client.key);
        assert_eq!(client.value("SELECT 1"), "1");
    }
    assert!(metric(&router, "idle") >= 20.0);
    // Of a session that is over.
    let (process_id, key) = (client.process_id, client.key.clone());
    drop(client);
    router.await_log(&["session ended"]);
    cancel(address, How::Plain, process_id, &key);
    // Hangs up in the middle of its request.
    let mut torn = Stream::connect(address, How::Plain);
    torn.write_all(b"\0\0\0\x10\x04\xd2\x16\x2e\0\0").unwrap();
    drop(torn);
    assert_eq!(Client::new(&router).value("SELECT 1"), "1");
}

#[test]
fn a_cancel_that_has_ended_hits_nothing_that_begins_later() {
    const ROUNDS: usize = 2000;
    let router = Router::shared();
    let mut client = Client::new(&router);
    let (address, process_id, key) = (at(&router, 6432), client.process_id, client.key.clone());
    let mut hits = 0;
    for round in 0..ROUNDS {
        // For a query that is just beginning, running, ending, or over.
        let asked = format!("SELECT count(*) FROM generate_series(1, {})", round % 64 * 20);
        let late = if round % 2 == 0 {
            let late = send_cancel(address, How::Plain, process_id, &key);
            client.send(&query(&asked));
            late
        } else {
            client.send(&query(&asked));
            send_cancel(address, How::Plain, process_id, &key)
        };
        let frames = client.ready();
        let end = shown(&frames);
        hits += usize::from(end.contains(&"E57014 ERROR".to_owned()));
        let mut late = late;
        assert_eq!(late.read(&mut [0]).unwrap(), 0);
        // The request's connection is closed: whatever comes now is not its business.
        assert_eq!(
            shown(&client.ask("SELECT 2")),
            ["T", "D", "CSELECT 1", "ZI"],
            "round {round}"
        );
    }
    let known = metric(&router, "forwarded") + metric(&router, "idle");
    #[allow(clippy::cast_precision_loss)]
    let all = ROUNDS as f64;
    assert!((known - all).abs() < 0.5, "{known} of {all}; {hits} hits");
}

#[test]
fn the_clients_connection_is_closed_after_the_servers() {
    let server = Fake::start(|mut session| async move {
        session.frame().await;
        // Answers the second request only.
        session.frame().await;
        session.send(&[one_row("1"), one_row("2")].concat()).await;
        session.frame().await;
    });
    let router = server.router("");
    let mut client = Client::new(&router);
    client.send(&query("long"));
    // In flight as soon as the router has it: a later session's login is a later thing on the same
    // listener.
    eventually("the cancel reaches the server", PATIENCE, || {
        if server.cancels.lock().unwrap().is_empty() {
            drop(send_cancel(
                at(&router, 6432),
                How::Plain,
                client.process_id,
                &client.key,
            ));
        }
        !server.cancels.lock().unwrap().is_empty()
    });
    server.cancels.lock().unwrap().clear();
    let mut waiting = send_cancel(at(&router, 6432), How::Plain, client.process_id, &client.key);
    eventually("the cancel reaches the server", PATIENCE, || {
        !server.cancels.lock().unwrap().is_empty()
    });
    assert_eq!(server.cancels.lock().unwrap()[0].process_id, client.process_id);
    waiting.socket().set_nonblocking(true).unwrap();
    assert_eq!(waiting.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    waiting.socket().set_nonblocking(false).unwrap();
    server.cancels.lock().unwrap().clear();
    assert_eq!(waiting.read(&mut [0]).unwrap(), 0);
    // A server that never closes it is not waited for without an end.
    let started = Instant::now();
    cancel(at(&router, 6432), How::Plain, client.process_id, &client.key);
    assert!(started.elapsed() < Duration::from_secs(8));
    client.send(&query("second"));
    assert_eq!(shown(&client.ready()), ["T", "D", "CSELECT 1", "ZI"]);
}

/// Passes everything on to `to`, and keeps what the connecting side said on each connection.
pub fn recorder(to: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = TcpListener::bind((fresh_address(), 5432)).unwrap();
    let address = listener.local_addr().unwrap();
    let said: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let kept = Arc::clone(&said);
    thread::spawn(move || {
        while let Ok((client, _)) = listener.accept() {
            let Ok(server) = TcpStream::connect(to) else {
                continue;
            };
            let (mut from, mut onward) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let number = {
                let mut kept = kept.lock().unwrap();
                kept.push(Vec::new());
                kept.len() - 1
            };
            let kept = Arc::clone(&kept);
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length) = from.read(&mut buffer) {
                    kept.lock().unwrap()[number].extend(&buffer[..length]);
                    if length == 0 || onward.write_all(&buffer[..length]).is_err() {
                        let _ = onward.shutdown(std::net::Shutdown::Write);
                        return;
                    }
                }
            });
            thread::spawn(move || {
                let (mut server, mut client) = (server, client);
                let _ = std::io::copy(&mut server, &mut client);
                let _ = client.shutdown(std::net::Shutdown::Write);
            });
        }
    });
    (address, said)
}

#[test]
fn a_cancel_goes_to_the_server_as_the_session_does_in_tls() {
    let cluster = Cluster::shared();
    let leader = cluster.node(&cluster.leader());
    let (address, said) = recorder(node_address(&leader));
    let dir = tempfile::tempdir().unwrap();
    let yaml = cluster.yaml(dir.path());
    let patroni = yaml.lines().find(|line| line.contains("patroni:")).unwrap();
    let servers = format!(
        "    servers: [{{name: one, host: \"{}\", port: {}}}]",
        address.ip(),
        address.port()
    );
    let clusters = yaml.replace(patroni, &servers);
    let router = Router::launch(
        Some(cluster),
        Options {
            clusters: Some(clusters),
            ..Options::default()
        },
    );
    await_leader(&router);
    let mut client = Client::new(&router);
    sleep(&mut client, &leader);
    cancel(at(&router, 6432), How::Plain, client.process_id, &client.key);
    assert_cancelled(&mut client);
    // SSLRequest and at once the handshake; never a key in clear. The prober may just be making a
    // connection of its own, of which a part has come.
    let request = b"\0\0\0\x08\x04\xd2\x16\x2f\x16";
    let said = said.lock().unwrap();
    for connection in said.iter() {
        let came = connection.len().min(request.len());
        assert_eq!(
            connection[..came],
            request[..came],
            "{}",
            connection.escape_ascii()
        );
        assert!(!connection.windows(4).any(|part| part == b"\x04\xd2\x16\x2e"));
    }
    let whole = said.iter().filter(|connection| connection.starts_with(request));
    assert!(whole.count() >= 3, "probe, session, cancel");
}

/// Three routers that are peers, each with `clusters`; the addresses of their read-write ports in
/// their configurations may be changed by `heard_at`.
pub fn peers(
    clusters: &str,
    rest: &str,
    secrets: [&str; 3],
    heard_at: impl Fn(usize, SocketAddr) -> SocketAddr,
) -> (Vec<Router>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let addresses: Vec<Ipv4Addr> = (0..3).map(|_| fresh_address()).collect();
    let heard: Vec<SocketAddr> = addresses
        .iter()
        .enumerate()
        .map(|(number, address)| heard_at(number, SocketAddr::from((*address, 6432))))
        .collect();
    let routers = (0..3)
        .map(|number| {
            let secret = secret(dir.path(), &format!("peers-{number}"), secrets[number]);
            let members: Vec<String> = (0..3)
                .filter(|other| *other != number)
                .map(|other| format!("{{name: r{other}, address: \"{}\"}}", heard[other]))
                .collect();
            Router::launch(
                None,
                Options {
                    clusters: Some(clusters.to_owned()),
                    extra: format!(
                        "control_socket: {}/control-{number}\npeers: {{secret_file: {}, members: [{}]}}\n{rest}",
                        dir.path().display(),
                        secret.display(),
                        members.join(", ")
                    ),
                    address: Some(addresses[number]),
                    ..Options::default()
                },
            )
        })
        .collect::<Vec<_>>();
    routers.iter().for_each(await_leader);
    (routers, dir)
}

pub const SECRET: &str = "a secret of the peers, long enough to be one";

#[test]
fn through_any_of_three_routers() {
    let (cluster, dir) = (Cluster::shared(), tempfile::tempdir().unwrap());
    let leader = cluster.node(&cluster.leader());
    let (routers, _dir) = peers(&cluster.yaml(dir.path()), "", [SECRET; 3], |_, address| address);
    for owner in &routers {
        for asked in &routers {
            let mut client = Client::new(owner);
            sleep(&mut client, &leader);
            cancel(at(asked, 6432), How::Tls, client.process_id, &client.key);
            assert_cancelled(&mut client);
        }
    }
    // Nobody's.
    cancel(at(&routers[0], 6432), How::Plain, 1, &[1, 2, 3, 4]);
    assert!(metric(&routers[0], "unknown") >= 1.0);
    assert!(metric(&routers[0], "peer") >= 2.0);
}

#[test]
fn thirty_two_bytes_lead_straight_to_their_router() {
    let server = trusting(true);
    let users = tempfile::tempdir().unwrap();
    // The users file is that of the stand-in's routers.
    let alone = router_in(
        users.path(),
        &server.address.to_string(),
        5432,
        "postgres",
        "",
        None,
    );
    let clusters = format!(
        "clusters:\n  main:\n    servers: [{{name: one, host: \"{}\", port: 5432}}]\n    \
         service_account: {{user: postgres, dbname: postgres}}\n    server_tls: {{sslmode: disable}}\n",
        server.address
    );
    let auth = format!("auth: {{users_file: {}}}\n", users.path().join("users").display());
    let asked = Mutex::new(Vec::new());
    let (routers, _dir) = peers(&clusters, &auth, [SECRET; 3], |_, address| {
        let (heard, said) = recorder(address);
        asked.lock().unwrap().push(said);
        heard
    });
    let mut watch = Client::new(&alone);
    let newest = || Login {
        version: ProtocolVersion::V3_2,
        ..Login::default()
    };
    let mut first = Client::login(at(&routers[1], 6432), newest());
    assert_eq!(first.key.len(), 32);
    // Bytes that each router was told by others: connections are kept.
    let told = || -> Vec<usize> {
        let asked = asked.lock().unwrap();
        let told = asked.iter().map(|said| {
            let said = said.lock().unwrap();
            said.iter().map(Vec::len).sum()
        });
        told.collect()
    };
    for round in 0..3 {
        first.send(&query("SELECT pg_sleep(60)"));
        let state = format!(
            "SELECT state FROM pg_stat_activity WHERE pid = {}",
            first.process_id
        );
        eventually("it runs", PATIENCE, || watch.value(&state) == "active");
        let before = told();
        cancel(at(&routers[0], 6432), How::Plain, first.process_id, &first.key);
        assert_cancelled(&mut first);
        let after = told();
        let questions: Vec<bool> = before
            .iter()
            .zip(&after)
            .map(|(before, after)| after > before)
            .collect();
        assert!(questions[1]);
        if round > 0 {
            // Whose it is, is known by now.
            assert_eq!(questions, [false, true, false]);
            assert_eq!(
                after[1] - before[1],
                284,
                "one question in the conversation there is"
            );
        }
    }
    // One that nobody issued is asked of nobody.
    let before = told();
    let mut forged = first.key.clone();
    forged[20] ^= 1;
    cancel(at(&routers[0], 6432), How::Plain, first.process_id, &forged);
    assert!(metric(&routers[0], "forged") >= 1.0);
    assert_eq!(told(), before);
    // At its own router.
    first.send(&query("SELECT pg_sleep(60)"));
    let state = format!(
        "SELECT state FROM pg_stat_activity WHERE pid = {}",
        first.process_id
    );
    eventually("it runs", PATIENCE, || watch.value(&state) == "active");
    cancel(at(&routers[1], 6432), How::Plain, first.process_id, &first.key);
    assert_cancelled(&mut first);

    // Its process finishes the session while another one has its port: that one asks it, for its
    // clients and for peers.
    let _new = upgrade(&routers[1]);
    let mut second = Client::login(at(&routers[1], 6432), newest());
    for asked in [&routers[1], &routers[0], &routers[0], &routers[2]] {
        for client in [&mut first, &mut second] {
            client.send(&query("SELECT pg_sleep(60)"));
            let state = format!(
                "SELECT state FROM pg_stat_activity WHERE pid = {}",
                client.process_id
            );
            eventually("it runs", PATIENCE, || watch.value(&state) == "active");
            cancel(at(asked, 6432), How::Plain, client.process_id, &client.key);
            assert_cancelled(client);
        }
    }
    assert_eq!(
        metric(&routers[1], "other_process"),
        1.0,
        "peers are answered, not counted"
    );
}

#[test]
fn what_a_peer_said_cannot_be_said_again() {
    let (cluster, dir) = (Cluster::shared(), tempfile::tempdir().unwrap());
    let leader = cluster.node(&cluster.leader());
    let said = Mutex::new(Vec::new());
    let (routers, _dir) = peers(&cluster.yaml(dir.path()), "", [SECRET; 3], |_, address| {
        let (heard, kept) = recorder(address);
        said.lock().unwrap().push(kept);
        heard
    });
    let mut client = Client::new(&routers[1]);
    sleep(&mut client, &leader);
    cancel(at(&routers[0], 6432), How::Plain, client.process_id, &client.key);
    assert_cancelled(&mut client);
    let recorded = said.lock().unwrap()[1].lock().unwrap()[0].clone();
    assert!(recorded.len() > 300, "{}", recorded.len());
    assert!(
        !recorded.windows(4).any(|part| part == client.key),
        "the key in clear"
    );
    sleep(&mut client, &leader);
    for _ in 0..3 {
        let mut replay = Stream::connect(at(&routers[1], 6432), How::Plain);
        replay.write_all(&recorded[..41]).unwrap();
        let mut challenge = [0; 41];
        replay.read_exact(&mut challenge).unwrap();
        replay.write_all(&recorded[41..]).unwrap();
        let mut answer = Vec::new();
        let _ = replay.read_to_end(&mut answer);
        assert!(answer.is_empty());
    }
    routers[1].await_log(&["WARN", "peer"]);
    assert_eq!(
        leader.sql(&format!(
            "SELECT state FROM pg_stat_activity WHERE pid = {}",
            client.process_id
        )),
        "active"
    );
    cancel(at(&routers[1], 6432), How::Plain, client.process_id, &client.key);
    assert_cancelled(&mut client);
}

#[test]
fn a_peer_with_another_secret_is_refused_and_one_that_is_away_is_not_waited_for() {
    let (cluster, dir) = (Cluster::shared(), tempfile::tempdir().unwrap());
    let leader = cluster.node(&cluster.leader());
    // The third accepts connections and never says a word.
    let silent = TcpListener::bind((fresh_address(), 5432)).unwrap();
    let (routers, _dir) = peers(
        &cluster.yaml(dir.path()),
        "",
        [SECRET, "another secret, which is as long as the first", SECRET],
        |number, address| {
            if number == 2 {
                silent.local_addr().unwrap()
            } else {
                address
            }
        },
    );
    let mut client = Client::new(&routers[1]);
    sleep(&mut client, &leader);
    for _ in 0..3 {
        let started = Instant::now();
        cancel(at(&routers[0], 6432), How::Plain, client.process_id, &client.key);
        assert!(
            started.elapsed() < Duration::from_secs(8),
            "{:?}",
            started.elapsed()
        );
    }
    let lines = |router: &Router| {
        let log = router.log();
        log.lines()
            .filter(|line| line.contains("WARN") && line.contains("cancel::peers"))
            .count()
    };
    // Said, but not once for each.
    eventually("each side says so", PATIENCE, || {
        lines(&routers[0]) > 0 && lines(&routers[1]) > 0
    });
    assert!(
        lines(&routers[0]) <= 2 && lines(&routers[1]) <= 2,
        "{}\n{}",
        routers[0].log(),
        routers[1].log()
    );
    assert_eq!(
        leader.sql(&format!(
            "SELECT state FROM pg_stat_activity WHERE pid = {}",
            client.process_id
        )),
        "active"
    );
    // The silent one delays nothing where another one knows the key.
    let mut client = Client::new(&routers[0]);
    sleep(&mut client, &leader);
    let started = Instant::now();
    cancel(at(&routers[2], 6432), How::Plain, client.process_id, &client.key);
    assert_cancelled(&mut client);
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
}

/// Case 35: a server that gives no key (some managed ones). The client has one all the same, and it
/// cancels nothing.
#[test]
fn a_server_without_keys_cannot_be_cancelled_and_is_not_harmed() {
    let fake = Fake::keyless(|mut session| async move {
        // The first request stays under way; the next one is answered.
        session.frame().await;
        session.answer_all().await;
    });
    let pooled = "routes:\n  read-write: {targets: [leader], pool: {mode: transaction, max_connections: 1}}\n  \
                  read-only: {targets: [replica]}\n";
    for routes in ["", pooled] {
        let router = fake.router(routes);
        let mut client = Client::new(&router);
        assert_eq!(client.key.len(), 4, "a key of the router's own");
        client.send(&query("SELECT pg_sleep(60)"));
        eventually("the request is under way", PATIENCE, || {
            cancel(at(&router, 6432), How::Plain, client.process_id, &client.key);
            metric(&router, "idle") >= 1.0
        });
        assert!(
            fake.cancels.lock().unwrap().is_empty(),
            "the server was sent a cancel"
        );
        client.send(&query("SELECT 1"));
        assert_eq!(shown(&client.ready()).last().map(String::as_str), Some("ZI"));
    }
}
