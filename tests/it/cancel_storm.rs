//! Cancel requests when there are many: applications time out together, servers stop, strangers
//! knock.
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::Instant;
use trunkline::wire::message;

use super::cancel::{SECRET, assert_cancelled, cancel, metric, peers, recorder, send_cancel};
use super::fake::{Fake, one_row, router_in, trusting};
use super::hand::{Raw, SSL_REQUEST, V3_0, packet};
use super::handover::upgrade;
use super::raw::{Client, How, Login, PATIENCE, Stream, at, query, shown};
use crate::cluster::postgres::{self, Pair18, Postgres};
use crate::cluster::{Options, Router, eventually, secret, succeed};

const CANCEL: u32 = 80_877_102;

/// As many sessions as each test cancels at once: more than wait for anything at the same time.
fn sessions() -> usize {
    let told = std::env::var("TRUNKLINE_SESSIONS");
    told.map_or(150, |number| number.parse().unwrap())
}

/// A server with room for them, that trusts everybody.
fn roomy() -> Postgres {
    Postgres::start(&postgres::Options {
        hba: Some("host all all 127.0.0.0/8 trust".to_owned()),
        conf: format!("max_connections = {}\n", sessions() + 20),
        ..postgres::Options::default()
    })
}

fn before(server: &Postgres, dir: &std::path::Path, extra: &str) -> Router {
    router_in(
        dir,
        &server.address.to_string(),
        server.port,
        "postgres",
        extra,
        None,
    )
}

fn active(server: &Postgres) -> String {
    server.sql(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename = 'app' AND state = 'active'",
    )
}

/// That many clients in `sql`, which runs on the server when this returns.
fn running(server: &Postgres, router: &Router, sql: &str, number: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..number).map(|_| Client::new(router)).collect();
    for client in &mut clients {
        client.send(&query(sql));
    }
    eventually("all of them run", PATIENCE, || {
        active(server) == number.to_string()
    });
    clients
}

/// Sends all at the same moment to `address`, and waits until each connection has been closed.
fn cancel_all(address: SocketAddr, clients: &[Client]) -> Duration {
    let began = Instant::now();
    let mut sent: Vec<Stream> = clients
        .iter()
        .map(|client| send_cancel(address, How::Plain, client.process_id, &client.key))
        .collect();
    for stream in &mut sent {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer.is_empty(), "{answer:?}");
    }
    began.elapsed()
}

fn all_are_cancelled(clients: &mut [Client]) {
    for client in clients {
        let end = shown(&client.ready());
        assert_eq!(&end[end.len() - 2..], ["E57014 ERROR", "ZI"], "{end:?}");
    }
}

#[allow(clippy::cast_precision_loss, reason = "hundreds")]
fn count(number: usize) -> f64 {
    number as f64
}

#[test]
fn every_session_is_cancelled_however_many_ask_at_once() {
    let (server, dir) = (roomy(), tempfile::tempdir().unwrap());
    let router = before(&server, dir.path(), "");
    let mut clients = running(&server, &router, "SELECT pg_sleep(60)", sessions());
    let took = cancel_all(at(&router, 6432), &clients);
    all_are_cancelled(&mut clients);
    eprintln!("{} cancels at once: {took:?}", clients.len());
    assert_eq!(metric(&router, "forwarded"), count(clients.len()));
    assert_eq!(metric(&router, "dropped") + metric(&router, "failed"), 0.0);
}

#[test]
fn a_server_that_takes_no_cancels_holds_up_its_own_only() {
    let pair = Pair18::start();
    let router = Router::launch(
        None,
        Options {
            clusters: Some(pair.yaml()),
            ..Options::default()
        },
    );
    router.await_ready();
    let reads = || Client::login(at(&router, 6433), Login::default());
    let mut stuck: Vec<Client> = (0..70).map(|_| reads()).collect();
    let mut writes = Client::new(&router);
    for client in stuck.iter_mut().chain([&mut writes]) {
        client.send(&query("SELECT pg_sleep(60)"));
    }
    let running = |server: &Postgres| {
        server.sql(
            "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(60)' AND state = 'active'",
        )
    };
    eventually("all of them run", PATIENCE, || {
        running(&pair.standby) == "70" && running(&pair.primary) == "1"
    });
    let pid_file = std::fs::read_to_string(pair.standby.data().join("postmaster.pid")).unwrap();
    let postmaster = pid_file.lines().next().unwrap();
    let signal = |name: &str| succeed(Command::new("kill").args([&format!("-{name}"), postmaster]));
    signal("STOP");
    let waiting: Vec<Stream> = stuck
        .iter()
        .map(|client| send_cancel(at(&router, 6433), How::Plain, client.process_id, &client.key))
        .collect();
    let began = Instant::now();
    cancel(at(&router, 6432), How::Plain, writes.process_id, &writes.key);
    let took = began.elapsed();
    let end = shown(&writes.ready());
    signal("CONT");
    assert_eq!(&end[end.len() - 2..], ["E57014 ERROR", "ZI"], "{end:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    // Those that waited are in time for the server that goes on.
    for stream in waiting {
        let mut stream = stream;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
    }
    all_are_cancelled(&mut stuck);
}

/// Cases 33 and 34: what it was for may be over when its turn comes.
#[test]
fn what_has_waited_for_its_turn_hits_nothing_that_begins_later() {
    let server = Fake::start(|mut session| async move {
        let mut owed = 0;
        while let Some((_, body)) = session.frame().await {
            owed += 1;
            if body.starts_with(b"end") {
                for _ in 0..owed {
                    session.send(&one_row("1")).await;
                }
                owed = 0;
            }
        }
    });
    let router = server.router("");
    let address = at(&router, 6432);
    let mut clients: Vec<Client> = (0..33).map(|_| Client::new(&router)).collect();
    for client in &mut clients {
        client.send(&query("hold"));
    }
    let (last, others) = clients.split_last_mut().unwrap();
    eventually("all requests are under way", PATIENCE, || {
        router.metric("trunkline_client_bytes_received_total") >= count(33 * query("hold").len())
    });
    // The server closes none of these connections: all turns are taken.
    let waiting: Vec<Stream> = others
        .iter()
        .map(|client| send_cancel(address, How::Plain, client.process_id, &client.key))
        .collect();
    eventually("all turns are taken", PATIENCE, || {
        server.cancels.lock().unwrap().len() == 32
    });
    let mut late = send_cancel(address, How::Plain, last.process_id, &last.key);
    eventually("it waits", PATIENCE, || {
        router.metric("trunkline_cancels_waiting") == 33.0
    });
    // What it was for ends, and another request begins behind it in the same breath.
    last.send(&[query("end"), query("next")].concat());
    let mut answer = Vec::new();
    late.read_to_end(&mut answer).unwrap();
    assert!(answer.is_empty());
    assert_eq!(shown(&last.ready()), ["T", "D", "CSELECT 1", "ZI"]);
    let first: Vec<u32> = {
        let mut cancels = server.cancels.lock().unwrap();
        cancels.drain(..).map(|cancel| cancel.process_id).collect()
    };
    // The others' connections are closed now.
    assert_eq!(first.len(), 32);
    assert!(!first.contains(&last.process_id));
    for mut stream in waiting {
        let _ = stream.read_to_end(&mut answer);
    }
    let later = server.cancels.lock().unwrap();
    assert!(
        later.iter().all(|cancel| cancel.process_id != last.process_id),
        "the next request was cancelled"
    );
    assert_eq!(metric(&router, "failed"), 0.0);
}

fn from(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 101, 0, last)
}

/// A connection that stops when it is asked for a password.
fn stops_at_sasl(router: &Router, source: Ipv4Addr) -> Raw {
    let mut raw = Raw::connect_from(source, router.address, 6432);
    raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
    assert_eq!(raw.message().tag, b'R');
    raw
}

fn request(client: &Client) -> Vec<u8> {
    let mut out = BytesMut::new();
    message::cancel_request(&mut out, client.process_id, &client.key);
    out.to_vec()
}

#[test]
fn cancels_get_in_while_logins_are_turned_away() {
    let (server, dir) = (roomy(), tempfile::tempdir().unwrap());
    let router = before(&server, dir.path(), "limits: {max_pending_logins: 4}\n");
    let mut clients = running(&server, &router, "SELECT pg_sleep(60)", 4);
    let held: Vec<Raw> = (1..=4).map(|last| stops_at_sasl(&router, from(last))).collect();
    // A siege: who wants to log in is told so.
    let refused = |source| {
        let mut raw = Raw::connect_from(source, router.address, 6432);
        raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
        assert_eq!(raw.last_error().code(), "53300");
    };
    refused(from(5));
    // One address holds what it can of the reserve, in silence.
    let silent: Vec<Raw> = (0..40)
        .map(|_| Raw::connect_from(from(6), router.address, 6432))
        .collect();
    // In clear, also from an address that has its share of the logins, and in TLS.
    let mut raw = Raw::connect_from(from(1), router.address, 6432);
    raw.send(&request(&clients[0]));
    assert_eq!(raw.rest(), b"");
    assert_cancelled_only(&mut clients[0]);
    let mut raw = Raw::connect_from(from(7), router.address, 6432);
    raw.send(SSL_REQUEST);
    assert_eq!(raw.byte(), b'S');
    drop(raw);
    cancel(
        at(&router, 6432),
        How::Tls,
        clients[1].process_id,
        &clients[1].key,
    );
    assert_cancelled_only(&mut clients[1]);
    cancel(
        at(&router, 6432),
        How::DirectTls,
        clients[2].process_id,
        &clients[2].key,
    );
    assert_cancelled_only(&mut clients[2]);
    refused(from(5));
    drop((held, silent));
    eventually("there is room again", PATIENCE, || {
        router.metric("trunkline_pending_logins") == 0.0
    });
    assert_cancelled_by(&router, &mut clients[3]);
}

fn assert_cancelled_only(client: &mut Client) {
    let end = shown(&client.ready());
    assert_eq!(&end[end.len() - 2..], ["E57014 ERROR", "ZI"], "{end:?}");
}

fn assert_cancelled_by(router: &Router, client: &mut Client) {
    cancel(at(router, 6432), How::Plain, client.process_id, &client.key);
    assert_cancelled(client);
}

#[test]
fn who_has_shown_no_password_takes_no_place_of_a_session() {
    let (server, dir) = (trusting(false), tempfile::tempdir().unwrap());
    let users = secret(
        dir.path(),
        "users",
        &format!("\"app\" \"{}\"", super::fake::cheap_verifier()),
    );
    let router = Router::launch(
        None,
        Options {
            clusters: Some(format!(
                "clusters:\n  main:\n    servers: [{{name: one, host: \"{}\", port: {}}}]\n    \
                 service_account: {{user: postgres, dbname: postgres}}\n    server_tls: {{sslmode: disable}}\n",
                server.address, server.port
            )),
            listeners: Some(
                "  - {name: rw, address: \"{address}:6432\", route: read-write, max_clients: 2}\n  \
                 - {name: other, address: \"{address}:6433\", route: read-write}\n"
                    .to_owned(),
            ),
            extra: format!(
                "auth: {{users_file: {}}}\nlimits: {{max_clients: 3}}\n",
                users.display()
            ),
            ..Options::default()
        },
    );
    super::fake::await_leader(&router);
    let strangers: Vec<Raw> = (0..8).map(|_| stops_at_sasl(&router, from(1))).collect();
    let mut late = Raw::connect_from(from(3), router.address, 6432);
    late.startup(V3_0, &[("user", "app"), ("database", "app")]);
    // It is asked for its password while there is a place.
    assert_eq!(late.socket().peek(&mut [0]).unwrap(), 1);
    let first = Client::new(&router);
    let _second = Client::new(&router);
    // Those that are in count.
    let refused = |port: u16, hint: &str| {
        let mut raw = Raw::connect_from(from(2), router.address, port);
        raw.startup(V3_0, &[("user", "app"), ("database", "app")]);
        let error = raw.last_error();
        assert_eq!(error.code(), "53300");
        assert!(error.field(b'H').unwrap().contains(hint), "{error:?}");
    };
    refused(6432, "this listener");
    let _third = Client::login(at(&router, 6433), Login::default());
    refused(6433, "limits.max_clients");
    // By the time it gives its password there is none.
    let told = late.begin_scram("app").unwrap().pop().unwrap();
    assert_eq!((told.tag, told.code()), (b'E', "53300".to_owned()), "{told:?}");
    drop(first);
    eventually("a place is free", PATIENCE, || {
        Client::try_login(at(&router, 6432), Login::default()).is_ok()
    });
    drop(strangers);
}

#[test]
fn nothing_that_ran_in_a_session_that_was_cut_writes_later() {
    let (server, dir) = (
        Postgres::start(&postgres::Options {
            hba: Some("host all all 127.0.0.0/8 trust".to_owned()),
            conf: "max_connections = 230\n".to_owned(),
            ..postgres::Options::default()
        }),
        tempfile::tempdir().unwrap(),
    );
    server.sql("CREATE TABLE written (x int); GRANT ALL ON written TO app");
    succeed(&mut psql_app(&server, "CREATE TABLE written (x int)"));
    let mut router = before(&server, dir.path(), "shutdown: {grace: 0}\n");
    let clients = running(
        &server,
        &router,
        "SELECT pg_sleep(20); INSERT INTO written VALUES (1)",
        200,
    );
    router.signal("TERM");
    assert_eq!(router.await_exit(PATIENCE), 0);
    let began = Instant::now();
    eventually("nothing of them runs", Duration::from_secs(10), || {
        active(&server) == "0"
    });
    eprintln!("after {:?} nothing ran any more", began.elapsed());
    drop(clients);
    let rows = succeed(&mut psql_app(&server, "SELECT count(*) FROM written"));
    assert_eq!(rows.trim(), "0");
}

fn psql_app(server: &Postgres, sql: &str) -> Command {
    let mut command = Command::new("psql");
    command.args(["-XAtqc", sql]).arg(format!(
        "host={} port={} user=app dbname=app",
        server.address, server.port
    ));
    command
}

#[test]
fn through_another_router_every_session_is_cancelled_in_one_conversation() {
    let server = roomy();
    let dir = tempfile::tempdir().unwrap();
    // Writes the users file of these routers.
    let _alone = before(&server, dir.path(), "");
    let heard = std::sync::Mutex::new(Vec::new());
    let (clusters, auth) = trusting_yaml(&server, dir.path());
    let (routers, _dir) = peers(&clusters, &auth, [SECRET; 3], |_, address| {
        let (at, said) = recorder(address);
        heard.lock().unwrap().push(said);
        at
    });
    let mut clients = running(&server, &routers[1], "SELECT pg_sleep(60)", sessions());
    let took = cancel_all(at(&routers[0], 6432), &clients);
    all_are_cancelled(&mut clients);
    eprintln!(
        "{} cancels at once through another router: {took:?}",
        clients.len()
    );
    assert_eq!(metric(&routers[0], "peer"), count(clients.len()));
    assert_eq!(metric(&routers[0], "dropped"), 0.0);
    assert_eq!(metric(&routers[1], "forwarded"), count(clients.len()));
    let conversations = heard.lock().unwrap()[1].lock().unwrap().len();
    assert_eq!(conversations, 1, "connections to the router that has them");
}

fn trusting_yaml(server: &Postgres, dir: &std::path::Path) -> (String, String) {
    let clusters = format!(
        "clusters:\n  main:\n    servers: [{{name: one, host: \"{}\", port: {}}}]\n    \
         service_account: {{user: postgres, dbname: postgres}}\n    server_tls: {{sslmode: disable}}\n",
        server.address, server.port
    );
    (
        clusters,
        format!("auth: {{users_file: {}}}\n", dir.join("users").display()),
    )
}

#[test]
fn keys_that_a_stranger_makes_up_use_up_its_own_share_only() {
    let server = trusting(false);
    let dir = tempfile::tempdir().unwrap();
    let _alone = before(&server, dir.path(), "");
    let (clusters, auth) = trusting_yaml(&server, dir.path());
    // The third router never answers: who asks for what nobody has waits for it.
    let silent = TcpListener::bind((crate::cluster::fresh_address(), 5432)).unwrap();
    let limits = "limits: {max_clients: 64, max_pending_logins: 2000}\n";
    let (routers, _dir) = peers(
        &clusters,
        &format!("{auth}{limits}"),
        [SECRET; 3],
        |number, address| {
            if number == 2 {
                silent.local_addr().unwrap()
            } else {
                address
            }
        },
    );
    let mut clients: Vec<Client> = (0..8).map(|_| Client::new(&routers[1])).collect();
    for client in &mut clients {
        client.send(&query("SELECT pg_sleep(60)"));
    }
    eventually("all of them run", PATIENCE, || active(&server) == "8");
    let made_up = AtomicU32::new(0);
    let strangers: Vec<Raw> = (0..700)
        .map(|_| {
            let mut raw = Raw::connect_from(from(9), routers[0].address, 6432);
            let number = made_up.fetch_add(1, Ordering::Relaxed).to_be_bytes();
            raw.send(&packet(CANCEL, &[number, [1; 4]].concat()));
            raw
        })
        .collect();
    eventually("its share is used up", PATIENCE, || {
        metric(&routers[0], "dropped") >= 1.0
    });
    routers[0].await_log(&[
        "WARN",
        "too many cancel requests for sessions that are not known here",
    ]);
    let began = Instant::now();
    cancel_all(at(&routers[0], 6432), &clients);
    all_are_cancelled(&mut clients);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    drop(strangers);
}

#[test]
fn after_an_upgrade_every_session_of_the_process_before_is_cancelled() {
    let (server, dir) = (roomy(), tempfile::tempdir().unwrap());
    let extra = format!("control_socket: {}/control\n", dir.path().display());
    let router = before(&server, dir.path(), &extra);
    let mut clients = running(&server, &router, "SELECT pg_sleep(60)", sessions());
    let _new = upgrade(&router);
    let took = cancel_all(at(&router, 6432), &clients);
    all_are_cancelled(&mut clients);
    eprintln!(
        "{} cancels at once through the new process: {took:?}",
        clients.len()
    );
    assert_eq!(metric(&router, "other_process"), count(clients.len()));
}

/// `mode: tcp`: the key is the server's own. It came in clear, and goes on as sessions of the
/// router's would.
#[test]
fn what_is_passed_on_unread_is_encrypted_on_its_way_to_the_server() {
    let server = trusting(false);
    let (address, said) = recorder(SocketAddr::from((server.address, server.port)));
    let router = Router::launch(
        None,
        Options {
            clusters: Some(format!(
                "clusters:\n  main:\n    servers: [{{name: one, host: \"{}\", port: {}}}]\n    \
                 service_account: {{user: postgres, dbname: postgres}}\n    server_tls: {{sslmode: require}}\n",
                address.ip(),
                address.port()
            )),
            listeners: Some(
                "  - {name: rw, address: \"{address}:6432\", route: read-write, mode: tcp}\n".to_owned(),
            ),
            tls: Some(String::new()),
            ..Options::default()
        },
    );
    super::fake::await_leader(&router);
    let mut client = Client::new(&router);
    client.send(&query("SELECT pg_sleep(60)"));
    eventually("it runs", PATIENCE, || active(&server) == "1");
    cancel(at(&router, 6432), How::Plain, client.process_id, &client.key);
    assert_cancelled(&mut client);
    assert_eq!(metric(&router, "forwarded"), 1.0);
    let said = said.lock().unwrap();
    let in_clear = |connection: &&Vec<u8>| connection.windows(4).any(|part| part == b"\x04\xd2\x16\x2e");
    assert_eq!(said.iter().filter(in_clear).count(), 0, "the key in clear");
}
