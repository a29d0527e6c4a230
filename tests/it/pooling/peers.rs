//! Cancel requests for sessions of a pool that come to another router, and those whose connection
//! does not end in order.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use trunkline::wire::startup::ProtocolVersion;

use super::{FIRST_PORT, cheapen, codes, login, process, router_before, seen};
use crate::cancel::{SECRET, cancel, metric, peers};
use crate::cluster::postgres::{Options, Postgres};
use crate::cluster::{eventually, fresh_address};
use crate::raw::{Client, How, Login, PATIENCE, at, query, shown};

/// Until the session has an answer, a cancel request comes again and again: the first ones may come
/// before its request.
fn cancel_until_answered(address: SocketAddr, client: &mut Client) {
    eventually("it is cancelled", PATIENCE, || {
        cancel(address, How::Plain, client.process_id, &client.key);
        let socket = client.stream.socket();
        socket.set_nonblocking(true).unwrap();
        let is_answered = socket.peek(&mut [0]).is_ok();
        socket.set_nonblocking(false).unwrap();
        is_answered
    });
}

#[test]
fn a_cancel_that_comes_to_another_router_finds_the_session_and_nobody_else() {
    let server = Postgres::start(&Options::default());
    let routes = "routes:\n  read-write: {targets: [leader], queue_timeout: 20s, \
                  pool: {mode: transaction, max_connections: 1}}\n  read-only: {targets: [replica]}\n";
    let (routers, _dir) = peers(&server.yaml(), routes, [SECRET; 3], |_, address| address);
    for version in [ProtocolVersion::V3_0, ProtocolVersion::V3_2] {
        let with = || {
            let login = Login {
                version,
                ..Login::default()
            };
            Client::login(at(&routers[0], 6432), login)
        };
        let (mut one, mut other) = (with(), with());
        for asked in &routers[1..] {
            let address = at(asked, 6432);
            // With a statement on the only connection.
            one.send(&query("SELECT pg_sleep(60)"));
            cancel_until_answered(address, &mut one);
            assert_eq!(shown(&one.ready())[1..], ["E57014 ERROR", "ZI"]);
            // With none: neither what it does next nor the other's statement is hit.
            other.send(&query("SELECT 7 FROM pg_sleep(0.2)"));
            for _ in 0..5 {
                cancel(address, How::Plain, one.process_id, &one.key);
            }
            assert_eq!(seen(&other.ready()), "7");
            assert_eq!(one.value("SELECT 1"), "1");
            // While it waits for the only connection.
            other.ask("BEGIN");
            one.send(&query("SELECT 1"));
            cancel_until_answered(address, &mut one);
            assert_eq!(shown(&one.ready()), ["E57014 ERROR", "ZI"]);
            assert_eq!(other.value("SELECT 1"), "1", "the transaction is not hit");
            assert_eq!(shown(&other.ask("COMMIT")), ["CCOMMIT", "ZI"]);
            assert_eq!(one.value("SELECT 1"), "1");
        }
    }
    for asked in &routers[1..] {
        assert!(metric(asked, "peer") >= 14.0, "{}", metric(asked, "peer"));
    }
}

/// What becomes of a cancel request between the router and the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// It is passed on, and the end is passed back.
    Orderly,
    /// Its connection is reset; whether the server has it, nobody knows.
    Reset,
}

/// Between the router and the server.
struct Middle {
    address: SocketAddr,
    resets: Arc<AtomicBool>,
    cancels: Arc<AtomicUsize>,
}

impl Middle {
    fn before(server: &Postgres) -> Self {
        let listener = TcpListener::bind((fresh_address(), Postgres::PORT)).unwrap();
        let middle = Self {
            address: listener.local_addr().unwrap(),
            resets: Arc::default(),
            cancels: Arc::default(),
        };
        let to = SocketAddr::from((server.address, server.port));
        let (resets, cancels) = (Arc::clone(&middle.resets), Arc::clone(&middle.cancels));
        thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                let (resets, cancels) = (Arc::clone(&resets), Arc::clone(&cancels));
                thread::spawn(move || pass(client, to, &resets, &cancels));
            }
        });
        middle
    }

    fn take(&self, way: Way) {
        self.resets.store(way == Way::Reset, Ordering::Relaxed);
    }
}

fn pass(mut client: TcpStream, to: SocketAddr, resets: &AtomicBool, cancels: &AtomicUsize) {
    let mut head = [0; 8];
    if client.read_exact(&mut head).is_err() {
        return;
    }
    if head[4..] == 80_877_102_u32.to_be_bytes() {
        // Whoever sees the end of this connection must find it counted.
        cancels.fetch_add(1, Ordering::Relaxed);
        if resets.load(Ordering::Relaxed) {
            socket2::SockRef::from(&client)
                .set_linger(Some(std::time::Duration::ZERO))
                .unwrap();
            return;
        }
    }
    let Ok(mut server) = TcpStream::connect(to) else {
        return;
    };
    server.set_nodelay(true).unwrap();
    client.set_nodelay(true).unwrap();
    server.write_all(&head).unwrap();
    let (mut from, mut onward) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let up = thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut onward);
        let _ = onward.shutdown(Shutdown::Write);
    });
    let _ = std::io::copy(&mut server, &mut client);
    let _ = client.shutdown(Shutdown::Write);
    up.join().unwrap();
}

/// The cancel may hit whatever its connection runs later.
#[test]
fn a_cancel_whose_connection_is_reset_makes_the_server_connection_useless() {
    let server = Postgres::start(&Options::default());
    cheapen(&server);
    let middle = Middle::before(&server);
    let clusters = server
        .yaml_with("{sslmode: disable}")
        .replace(&server.address.to_string(), &middle.address.ip().to_string());
    let router = router_before(&clusters, &["max_connections: 1"], "20s");
    server.sql_in("app", "CREATE TABLE locked (); GRANT SELECT ON locked TO app");
    let mut client = login(&router, FIRST_PORT, "app", "app");
    let mut locking = Client::login(
        (server.address, server.port).into(),
        Login {
            user: "postgres",
            password: "postgres",
            ..Login::default()
        },
    );
    for (way, answer, is_kept) in [
        (Way::Orderly, "57014", true),
        (Way::Reset, "0", false),
        (Way::Orderly, "57014", true),
    ] {
        middle.take(way);
        locking.ask("BEGIN");
        locking.ask("LOCK TABLE locked");
        let before = process(&mut client);
        let cancels = middle.cancels.load(Ordering::Relaxed);
        client.send(&query("SELECT count(*) FROM locked"));
        eventually("the statement waits", PATIENCE, || {
            let waiting = "SELECT count(*) FROM pg_locks WHERE relation = 'locked'::regclass AND NOT granted";
            server.sql_in("app", waiting) == "1"
        });
        cancel(
            at(&router, FIRST_PORT),
            How::Plain,
            client.process_id,
            &client.key,
        );
        assert_eq!(middle.cancels.load(Ordering::Relaxed), cancels + 1);
        if way == Way::Reset {
            locking.ask("COMMIT");
        }
        assert_eq!(seen(&client.ready()), answer, "{way:?}");
        assert_eq!(process(&mut client) == before, is_kept, "{way:?}");
        if is_kept {
            locking.ask("COMMIT");
        } else {
            eventually("it is closed", PATIENCE, || {
                server.sql(&format!(
                    "SELECT count(*) FROM pg_stat_activity WHERE pid = {before}"
                )) == "0"
            });
        }
    }
    assert_eq!(codes(&client.ask("SELECT 1")), Vec::<String>::new());
}
