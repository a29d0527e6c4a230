//! One address does not use up the HTTP port, its thread's time, nor the agent check.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::fake::{Fake, Session};
use super::limits::before;
use crate::cluster::{Options, fresh_address};

const PATIENCE: Duration = Duration::from_secs(20);
const GREEDY: Ipv4Addr = Ipv4Addr::new(127, 98, 0, 1);

fn connect(source: Ipv4Addr, to: (Ipv4Addr, u16)) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&SocketAddr::from(to).into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn half_requests_and_silent_agents_from_one_address_keep_nobody_out() {
    let server = Fake::start(Session::answer_all);
    let address = fresh_address();
    let router = before(
        &server,
        "",
        Options {
            address: Some(address),
            http: format!("agent_check: {{address: \"{address}:6435\"}}"),
            ..Options::default()
        },
    );
    let greedy: Vec<TcpStream> = (0..600)
        .map(|_| {
            let mut stream = connect(GREEDY, (address, 6434));
            // Closed already, perhaps.
            let _ = stream.write_all(b"GET /connection/is-ready HTTP/1.1\r\nX: ");
            stream
        })
        .collect();
    let agents: Vec<TcpStream> = (0..200).map(|_| connect(GREEDY, (address, 6435))).collect();
    for source in [Ipv4Addr::new(127, 98, 0, 2), GREEDY] {
        let mut stream = connect(source, (address, 6434));
        stream
            .write_all(b"GET /connection/is-ready HTTP/1.0\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.0 200"), "{source}: {answer}");
        let mut line = String::new();
        connect(source, (address, 6435))
            .read_to_string(&mut line)
            .unwrap();
        assert_eq!(line, "up ready 100%\n", "{source}");
    }
    router.await_log(&[
        "WARN",
        "HTTP: one address has all the connections",
        "by=127.98.0.1",
    ]);
    assert!(router.metric("trunkline_http_connections_evicted_total") > 300.0);
    assert_eq!(router.metric("trunkline_http_connections_refused_total"), 0.0);
    drop((greedy, agents));
}

/// What one address asks for, one request behind the other on each of its connections, is answered
/// a few at a time, so that a health check of another address is answered in between.
#[test]
fn many_requests_from_one_address_delay_nobody_elses_health_check() {
    let server = Fake::start(Session::answer_all);
    let address = fresh_address();
    let router = before(
        &server,
        "",
        Options {
            address: Some(address),
            ..Options::default()
        },
    );
    let many = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(29)
        + "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let greedy: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut stream = connect(GREEDY, (address, 6434));
            stream.write_all(many.as_bytes()).unwrap();
            stream
        })
        .collect();
    for _ in 0..5 {
        let mut stream = connect(Ipv4Addr::new(127, 98, 0, 3), (address, 6434));
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        stream.write_all(b"GET /liveness HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    }
    // Every one of them is answered, too.
    let readers: Vec<_> = greedy
        .into_iter()
        .map(|mut stream| {
            std::thread::spawn(move || {
                let mut answers = Vec::new();
                stream.read_to_end(&mut answers).unwrap();
                String::from_utf8_lossy(&answers).matches("HTTP/1.1 200").count()
            })
        })
        .collect();
    for reader in readers {
        assert_eq!(reader.join().unwrap(), 30);
    }
    drop(router);
}

#[test]
fn a_client_that_closes_its_half_behind_its_request_gets_its_answer() {
    let server = Fake::start(Session::answer_all);
    let address = fresh_address();
    let router = before(
        &server,
        "",
        Options {
            address: Some(address),
            ..Options::default()
        },
    );
    for path in ["/connection/is-ready", "/metrics"] {
        for _ in 0..20 {
            let mut stream = connect(GREEDY, (address, 6434));
            let request = format!("GET {path} HTTP/1.1\r\nHost: router\r\n\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
        }
    }
    drop(router);
}
