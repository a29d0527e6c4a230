//! The listener over real sockets.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use socket2::{Domain, Socket, Type};
use tokio_util::sync::CancellationToken;

use super::super::handles::Handles;
use super::super::inventory::Inventory;
use super::super::views::{CertificateView, DatabaseView, LimitView, ListenerView, PeerView, SettingView};
use super::fixture::*;
use super::{AdminError, AdminThread, HttpLimits, prepare, prepare_with};
use crate::cluster::snapshot::Snapshot;
use crate::config::{AgentCheck, AgentSubject, BindAddress, Http};
use crate::listen::Inheritance;

pub(super) struct Running {
    pub(super) thread: Option<AdminThread>,
    pub(super) address: SocketAddr,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.stop();
        }
    }
}

fn somewhere() -> BindAddress {
    BindAddress::Ip("127.0.0.1:0".parse().unwrap())
}

pub(super) fn start(
    snapshot: Snapshot,
    tls: Option<Arc<rustls::ServerConfig>>,
    limits: HttpLimits,
) -> Running {
    start_with(handles(vec![view(snapshot, named("m"))]), tls, limits)
}

pub(super) fn start_with(
    handles: Handles,
    tls: Option<Arc<rustls::ServerConfig>>,
    limits: HttpLimits,
) -> Running {
    let config = Http {
        addresses: vec![somewhere()],
        tls: tls.map(|server_config| crate::config::HttpTls {
            leaf: crate::config::Leaf::default(),
            chain: Vec::new(),
            server_config,
        }),
        token: None,
        agent_check: None,
        proxy_protocol: None,
        ui: true,
    };
    let thread = prepare_with(
        &config,
        handles,
        CancellationToken::new(),
        limits,
        &mut Inheritance::default(),
    )
    .unwrap()
    .open();
    Running {
        address: thread.local_addrs()[0],
        thread: Some(thread),
    }
}

pub(super) fn leader() -> Snapshot {
    led(vec![primary("m")])
}

fn replica() -> Snapshot {
    led(vec![primary("p"), member("m")])
}

pub(super) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    // No test waits for it: it is the bound after which one fails.
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Everything until the server closes.
pub(super) fn exchange(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = connect(address);
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    // A close with unread input is a reset; what came before counts.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

pub(super) fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("nothing")
}

pub(super) fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("headers end").1
}

#[test]
fn haproxys_default_check() {
    // `option httpchk` without arguments; HTTP/1.0 means close after the answer.
    for (snapshot, expected) in [(leader(), "200"), (replica(), "503")] {
        let running = start(snapshot, None, HttpLimits::default());
        for request in [
            "OPTIONS / HTTP/1.0\r\n\r\n",
            "OPTIONS /primary HTTP/1.0\r\n\r\n",
            "HEAD / HTTP/1.0\r\n\r\n",
        ] {
            let answer = exchange(running.address, request.as_bytes());
            assert!(answer.starts_with("HTTP/1.0 "), "{answer}");
            assert_eq!((status(&answer), body(&answer)), (expected, ""), "{answer}");
        }
        let answer = exchange(running.address, b"GET /node/is-read-write HTTP/1.0\r\n\r\n");
        assert_eq!(body(&answer), if expected == "200" { "true" } else { "false" });
    }
}

#[test]
fn one_connection_serves_many_requests() {
    let running = start(leader(), None, HttpLimits::default());
    let answer = exchange(
        running.address,
        b"GET /connection/is-live HTTP/1.1\r\nHost: x\r\n\r\n\
          HEAD /connection/is-live HTTP/1.1\r\nHost: x\r\n\r\n\
          DELETE /connection/is-live HTTP/1.1\r\nHost: x\r\n\r\n\
          GET /connection/is-live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    );
    let statuses: Vec<_> = answer.lines().filter(|line| line.contains("HTTP/1.1 ")).collect();
    assert_eq!(statuses.len(), 4, "{answer}");
    assert!(statuses[2].contains("405"), "{answer}");
    assert!(answer.ends_with("\r\n\r\ntrue"), "{answer}");
}

#[test]
fn nonsense_is_refused_and_hurts_nobody() {
    let running = start(leader(), None, HttpLimits::default());
    let huge_line = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(20_000));
    let many_headers = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100));
    let cases: [(&[u8], &[&str]); 9] = [
        (b"\x00\x00\x00\x08\x04\xd2\x16\x2f\r\n\r\n", &["400"]),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", &["400"]),
        (b"nonsense\r\n\r\n", &["400"]),
        (b"GET / HTTP/9.9\r\n\r\n", &["400", "505", "nothing"]),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &["400", "505", "nothing"]),
        (b"OPTIONS * HTTP/1.0\r\n\r\n", &["404"]),
        (b"CONNECT x:1 HTTP/1.0\r\n\r\n", &["404", "405"]),
        (huge_line.as_bytes(), &["414", "431", "nothing"]),
        (many_headers.as_bytes(), &["431", "nothing"]),
    ];
    for (request, expected) in cases {
        let answer = exchange(running.address, request);
        assert!(
            expected.contains(&status(&answer)),
            "{:?}: {answer}",
            request.escape_ascii().to_string()
        );
    }
    assert_eq!(
        status(&exchange(running.address, b"GET / HTTP/1.0\r\n\r\n")),
        "200"
    );
}

#[test]
fn a_body_is_not_waited_for() {
    let running = start(leader(), None, HttpLimits::default());
    let answer = exchange(
        running.address,
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\nabc",
    );
    assert_eq!(status(&answer), "200");
}

#[test]
fn who_is_slow_with_the_headers_is_cut_off() {
    let limits = HttpLimits {
        header_timeout: Duration::from_millis(200),
        ..HttpLimits::default()
    };
    let running = start(leader(), None, limits);
    for beginning in [&b""[..], b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"] {
        // Ends only because the server closes.
        let answer = exchange(running.address, beginning);
        assert!(!answer.contains("200"), "{answer}");
    }
    // Waiting for the next request is bounded too.
    let answer = exchange(running.address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(status(&answer), "200");
}

#[test]
fn abrupt_closes_and_many_connections() {
    let running = start(leader(), None, HttpLimits::default());
    for round in 0..300 {
        let mut stream = connect(running.address);
        if round % 3 > 0 {
            stream.write_all(b"OPTIONS / HTTP/1.0\r\n\r\n").unwrap();
        }
        if round % 3 == 2 {
            // Close with the answer unread: a reset.
            socket2::SockRef::from(&stream)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
        }
        drop(stream);
    }
    let open: Vec<_> = (0..200).map(|_| connect(running.address)).collect();
    assert_eq!(
        status(&exchange(running.address, b"GET / HTTP/1.0\r\n\r\n")),
        "200"
    );
    drop(open);
}

/// From an address of this host.
fn connect_from(source: [u8; 4], address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Whether it is answered, by 200 `true`.
fn is_answered(mut stream: &TcpStream) -> bool {
    stream
        .write_all(b"GET /connection/is-live HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let (mut answer, mut byte) = (Vec::new(), [0]);
    while !answer.ends_with(b"true") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
        answer.push(byte[0]);
    }
    answer.starts_with(b"HTTP/1.1 200 ")
}

#[test]
fn whoever_has_many_half_requests_has_them_closed_and_nobody_else_notices() {
    let running = start(
        leader(),
        None,
        HttpLimits {
            max_connections: 6,
            ..HttpLimits::default()
        },
    );
    let other = connect_from([127, 0, 0, 2], running.address);
    assert!(is_answered(&other));
    let mut half: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = connect_from([127, 0, 0, 3], running.address);
            stream.write_all(b"GET / HTTP/1.1\r\n").unwrap();
            stream
        })
        .collect();
    // Those that are idle the longest: all but as many as one address may have.
    for stream in &mut half[..17] {
        let closed = stream.read(&mut [0]);
        assert!(!matches!(closed, Ok(1..)), "{closed:?}");
    }
    assert!(is_answered(&other), "it was there before, and stays");
    assert!(is_answered(&connect_from([127, 0, 0, 4], running.address)));
    assert!(is_answered(&connect_from([127, 0, 0, 3], running.address)));
}

/// Peers that accept connections and say nothing.
#[derive(Debug)]
struct SilentPeers;

impl Inventory for SilentPeers {
    fn listeners(&self) -> Vec<ListenerView> {
        Vec::new()
    }

    fn limits(&self) -> Vec<LimitView> {
        Vec::new()
    }

    fn certificates(&self) -> Vec<CertificateView> {
        Vec::new()
    }

    fn settings(&self) -> Vec<SettingView> {
        Vec::new()
    }

    fn databases(&self) -> Vec<DatabaseView> {
        Vec::new()
    }

    fn peer_count(&self) -> usize {
        1
    }

    fn peers(&self) -> BoxFuture<'_, Vec<PeerView>> {
        Box::pin(std::future::pending())
    }
}

#[test]
fn who_looks_and_waits_keeps_nobody_else_out() {
    let limits = HttpLimits {
        max_connections: 6,
        ..HttpLimits::default()
    };
    let handles = Handles {
        inventory: Arc::new(SilentPeers),
        ..handles(vec![view(leader(), named("m"))])
    };
    let running = start_with(handles, None, limits);
    let mut waiting: Vec<_> = [2, 3, 4]
        .into_iter()
        .flat_map(|last| (0..3).map(move |_| last))
        .map(|last| {
            let mut stream = connect_from([127, 0, 0, last], running.address);
            stream
                .write_all(b"GET /api/v1/peers HTTP/1.1\r\nHost: x\r\n\r\n")
                .unwrap();
            stream
        })
        .collect();
    for last in 5..10 {
        assert!(is_answered(&connect_from([127, 0, 0, last], running.address)));
    }
    // Each check has taken the place of one that waited.
    let closed = waiting[0].read(&mut [0]);
    assert!(!matches!(closed, Ok(1..)), "{closed:?}");
}

#[test]
fn an_old_connection_is_closed_after_its_next_answer() {
    let limits = HttpLimits {
        max_age: Duration::ZERO,
        ..HttpLimits::default()
    };
    let running = start(leader(), None, limits);
    // Ends because the server closes.
    let answer = exchange(
        running.address,
        b"GET /connection/is-live HTTP/1.1\r\nHost: x\r\n\r\n",
    );
    assert_eq!(status(&answer), "200");
    assert!(answer.to_lowercase().contains("connection: close"), "{answer}");
}

#[test]
fn a_port_in_use_is_one_sentence() {
    let running = start(leader(), None, HttpLimits::default());
    let config = Http {
        addresses: vec![BindAddress::Ip(running.address)],
        tls: None,
        token: None,
        agent_check: None,
        proxy_protocol: None,
        ui: true,
    };
    let error = prepare(
        &config,
        handles(Vec::new()),
        CancellationToken::new(),
        &mut Inheritance::default(),
    )
    .unwrap_err();
    assert!(matches!(error, AdminError::Listen { .. }));
    let expected = format!(
        "cannot listen for HTTP on {}: it is in use by another program",
        running.address
    );
    assert!(error.to_string().starts_with(&expected), "{error}");
    let config = Http {
        addresses: vec![somewhere()],
        agent_check: Some(AgentCheck {
            address: BindAddress::Ip(running.address),
            about: AgentSubject::Router,
        }),
        ..config
    };
    let stop = CancellationToken::new();
    let error = prepare(&config, handles(Vec::new()), stop, &mut Inheritance::default()).unwrap_err();
    let expected = format!(
        "cannot listen for HAProxy's agent check (http.agent_check) on {}: it is in use",
        running.address
    );
    assert!(error.to_string().starts_with(&expected), "{error}");
}

#[tokio::test]
async fn it_starts_and_stops_within_another_runtime() {
    let config = Http {
        addresses: vec![somewhere()],
        tls: None,
        token: None,
        agent_check: None,
        proxy_protocol: None,
        ui: true,
    };
    let shutdown = CancellationToken::new();
    let thread = prepare(
        &config,
        handles(Vec::new()),
        shutdown.clone(),
        &mut Inheritance::default(),
    )
    .unwrap()
    .open();
    let taken = Http {
        addresses: vec![BindAddress::Ip(thread.local_addrs()[0])],
        tls: None,
        token: None,
        agent_check: None,
        proxy_protocol: None,
        ui: true,
    };
    assert!(
        prepare(
            &taken,
            handles(Vec::new()),
            shutdown.clone(),
            &mut Inheritance::default()
        )
        .is_err()
    );
    thread.stop();
    assert!(shutdown.is_cancelled());
}

#[test]
fn every_address_is_dual_stack() {
    let config = Http {
        addresses: vec![BindAddress::Any { port: 0 }],
        tls: None,
        token: None,
        agent_check: None,
        proxy_protocol: None,
        ui: true,
    };
    let shutdown = CancellationToken::new();
    let thread = prepare(
        &config,
        handles(vec![view(leader(), named("m"))]),
        shutdown.clone(),
        &mut Inheritance::default(),
    )
    .unwrap()
    .open();
    let port = thread.local_addrs()[0].port();
    assert_eq!(
        status(&exchange(
            ([127, 0, 0, 1], port).into(),
            b"GET / HTTP/1.0\r\n\r\n"
        )),
        "200"
    );
    thread.stop();
}

#[test]
fn the_end_is_bounded_and_frees_the_port() {
    let mut running = start(leader(), None, HttpLimits::default());
    let idle = connect(running.address);
    let mut half = connect(running.address);
    half.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    running.thread.take().unwrap().stop();
    drop((idle, half));
    let config = Http {
        addresses: vec![BindAddress::Ip(running.address)],
        tls: None,
        token: None,
        agent_check: None,
        proxy_protocol: None,
        ui: true,
    };
    let thread = prepare(
        &config,
        handles(Vec::new()),
        CancellationToken::new(),
        &mut Inheritance::default(),
    )
    .unwrap()
    .open();
    thread.stop();
}

#[test]
fn who_was_accepted_is_answered_when_another_process_listens() {
    let mut running = start(leader(), None, HttpLimits::default());
    let (mut silent, mut asking) = (connect(running.address), connect(running.address));
    let request = b"GET /primary HTTP/1.1\r\nHost: x\r\n\r\n";
    asking.write_all(request).unwrap();
    let mut first = [0; 12];
    asking.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let thread = running.thread.as_mut().unwrap();
    thread.leave();
    assert!(thread.local_addrs().is_empty());
    for stream in [&mut silent, &mut asking] {
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        // Ends because the server closes.
        stream.read_to_string(&mut answer).unwrap();
        let lower = answer.to_lowercase();
        assert!(lower.contains("http/1.1 200"), "{answer}");
        assert!(lower.contains("connection: close"), "{answer}");
    }
    // What this listened on is another's: here nobody listens any more.
    assert!(TcpStream::connect(running.address).is_err());
}

#[test]
fn https() {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let issued = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(issued.signing_key.serialize_der());
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![issued.cert.der().clone()], key.into())
        .unwrap();
    let limits = HttpLimits {
        handshake_timeout: Duration::from_millis(200),
        ..HttpLimits::default()
    };
    let running = start(leader(), Some(Arc::new(server)), limits);
    // Plaintext, silence and half a handshake end at the handshake's bound, and cost nobody else.
    for beginning in [&b"GET / HTTP/1.0\r\n\r\n"[..], b"", b"\x16\x03\x01\x02\x00\x01"] {
        assert!(!exchange(running.address, beginning).contains("HTTP/1"));
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add(issued.cert.der().clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut session =
        rustls::ClientConnection::new(Arc::new(client), "localhost".try_into().unwrap()).unwrap();
    let mut stream = connect(running.address);
    let mut tls = rustls::Stream::new(&mut session, &mut stream);
    tls.write_all(b"GET /node/is-read-write HTTP/1.0\r\n\r\n")
        .unwrap();
    let mut answer = Vec::new();
    let _ = tls.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    assert_eq!((status(&answer), body(&answer)), ("200", "true"));
}
