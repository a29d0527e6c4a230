//! `/api/v1/live` over real sockets.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::time::Instant;

use super::super::live::MOST_OF_SOURCE;
use super::HttpLimits;
use super::fixture::*;
use super::wire_tests::{body, connect, exchange, leader, start, start_with, status};
use crate::config::Secret;
use crate::events::OperatorEvent;

/// No test waits for it: it is the bound after which one fails.
const PATIENCE: Duration = Duration::from_mins(1);

fn ask(address: SocketAddr, version: &str) -> TcpStream {
    let mut stream = connect(address);
    let request = format!("GET /api/v1/live HTTP/{version}\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

/// Reads until a line begins so, and returns all lines.
fn until(stream: &mut BufReader<TcpStream>, wanted: &str) -> Vec<String> {
    let mut all = Vec::new();
    loop {
        let mut line = String::new();
        assert!(
            stream.read_line(&mut line).unwrap() > 0,
            "{wanted} is not in {all:?}"
        );
        all.push(line.trim_end().to_owned());
        if line.starts_with(wanted) {
            return all;
        }
    }
}

#[test]
fn a_stream_goes_on_until_the_listener_ends() {
    let mut running = start(leader(), None, HttpLimits::default());
    for version in ["1.0", "1.1"] {
        let mut stream = BufReader::new(ask(running.address, version));
        let head = until(&mut stream, "event: hello");
        assert!(head[0].starts_with(&format!("HTTP/{version} 200")), "{head:?}");
        assert!(
            head.contains(&"content-type: text/event-stream".to_owned()),
            "{head:?}"
        );
        assert!(
            head.contains(&"connection: close".to_owned()) || version == "1.0",
            "{head:?}"
        );
        until(&mut stream, "event: members");
    }
    let mut stream = BufReader::new(ask(running.address, "1.0"));
    until(&mut stream, "event: pools");
    running.thread.take().unwrap().stop();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
}

#[test]
fn a_listener_that_goes_to_another_process_ends_its_streams_at_once() {
    let mut running = start(leader(), None, HttpLimits::default());
    let mut stream = BufReader::new(ask(running.address, "1.1"));
    until(&mut stream, "event: pools");
    let mut thread = running.thread.take().unwrap();
    thread.leave();
    let left = Instant::now();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("0\r\n\r\n"), "{rest}");
    assert!(
        left.elapsed() < HttpLimits::default().linger,
        "{:?}",
        left.elapsed()
    );
    thread.stop();
}

#[test]
fn streams_above_the_limit_are_refused_and_checks_are_answered() {
    let limits = HttpLimits {
        max_connections: 2 * MOST_OF_SOURCE + 4,
        ..HttpLimits::default()
    };
    let running = start(leader(), None, limits);
    let mut streams: Vec<BufReader<TcpStream>> = Vec::new();
    for _ in 0..MOST_OF_SOURCE {
        let mut stream = BufReader::new(ask(running.address, "1.1"));
        until(&mut stream, "event: hello");
        streams.push(stream);
    }
    let refused = exchange(running.address, b"GET /api/v1/live HTTP/1.0\r\n\r\n");
    assert_eq!(status(&refused), "503", "{refused}");
    assert!(body(&refused).contains("\"hint\""), "{refused}");
    // One address has all the connections that it may have, and they are streams: they make room.
    let check = b"GET /node/is-read-write HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut checks = Vec::new();
    for _ in 0..MOST_OF_SOURCE {
        let mut stream = connect(running.address);
        stream.write_all(check).unwrap();
        let mut stream = BufReader::new(stream);
        let answer = until(&mut stream, "HTTP/1.1");
        assert_eq!(answer[0], "HTTP/1.1 200 OK");
        checks.push(stream);
    }
    let mut first = streams.remove(0);
    let mut rest = Vec::new();
    // Closed; what was on its way may be lost.
    let _ = first.read_to_end(&mut rest);
}

#[test]
fn who_shows_the_token_gets_in_while_all_streams_of_the_address_are_taken() {
    let handles = handles(vec![view(leader(), named("m"))]);
    handles
        .token
        .store(Some(Arc::new(Secret::new("0123456789abcdef"))));
    let running = start_with(handles, None, HttpLimits::default());
    let mut streams: Vec<BufReader<TcpStream>> = Vec::new();
    for _ in 0..MOST_OF_SOURCE {
        let mut stream = BufReader::new(ask(running.address, "1.1"));
        until(&mut stream, "event: hello");
        streams.push(stream);
    }
    let request = b"GET /api/v1/live HTTP/1.0\r\nAuthorization: Bearer 0123456789abcdef\r\n\r\n";
    let mut operator = connect(running.address);
    operator.write_all(request).unwrap();
    let mut operator = BufReader::new(operator);
    let head = until(&mut operator, "data: ");
    assert!(head.last().unwrap().contains("\"token\":true"), "{head:?}");
    let mut first = streams.remove(0);
    until(&mut first, "event: ended");
    let mut rest = String::new();
    first.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("0\r\n\r\n"), "{rest}");
    let refused = exchange(running.address, b"GET /api/v1/live HTTP/1.0\r\n\r\n");
    assert_eq!(status(&refused), "503", "{refused}");
    assert!(body(&refused).contains("show the token"), "{refused}");
    assert!(refused.contains("retry-after: 30\r\n"), "{refused}");
    until(&mut operator, "event: members");
}

#[test]
fn a_reader_that_takes_nothing_is_closed() {
    let handles = handles(vec![view(leader(), named("m"))]);
    let events = handles.events.clone();
    let limits = HttpLimits {
        write_timeout: Duration::from_secs(2),
        ..HttpLimits::default()
    };
    let running = start_with(handles, None, limits);
    let live = running.thread.as_ref().unwrap().settings.live.clone();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&running.address.into()).unwrap();
    let mut stopped = TcpStream::from(socket);
    stopped
        .write_all(b"GET /api/v1/live HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let mut reads = BufReader::new(ask(running.address, "1.1"));
    until(&mut reads, "event: pools");
    let begun = Instant::now();
    while live.readers() != 2 {
        assert!(begun.elapsed() < PATIENCE, "the one that stops is not there yet");
        thread::yield_now();
    }
    let (sender, drained) = mpsc::channel();
    let reading = thread::spawn(move || {
        // The other one reads all there is.
        until(
            &mut reads,
            "data: {\"about\":\"by=-\",\"by\":\"-\",\"event\":\"router_drained\"",
        );
        drop(sender);
    });
    let by = "x".repeat(10_000);
    while live.readers() != 1 {
        assert!(begun.elapsed() < PATIENCE, "{} are still there", live.readers());
        for _ in 0..100 {
            events.emit(OperatorEvent::RouterReady { by: by.clone() });
        }
        // It only passes some time.
        let _: Result<(), _> = drained.recv_timeout(Duration::from_millis(20));
    }
    events.emit(OperatorEvent::RouterDrained { by: "-".to_owned() });
    reading.join().unwrap();
}
