//! A client that speaks the protocol byte by byte, for what no driver would do.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use trunkline::auth::scram::{ClientExchange, ClientSecret};
use trunkline::config::Secret;
use trunkline::wire::frame::{ErrorFields, Frame, next_frame};
use trunkline::wire::message;
use trunkline::wire::startup::ProtocolVersion;

use crate::cluster::{Certificates, Node, Router};

/// For every read: a test that waits longer has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How a connection is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Plain,
    /// `SSLRequest`, then TLS.
    Tls,
    DirectTls,
}

#[derive(Debug)]
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    pub fn connect(address: SocketAddr, how: How) -> Self {
        let mut socket = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        if how == How::Plain {
            return Self::Plain(socket);
        }
        if how == How::Tls {
            let mut request = BytesMut::new();
            message::ssl_request(&mut request);
            socket.write_all(&request).unwrap();
            let mut answer = [0];
            socket.read_exact(&mut answer).unwrap();
            assert_eq!(answer, *b"S");
        }
        Self::Tls(Box::new(StreamOwned::new(tls_connection(), socket)))
    }

    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => &stream.sock,
        }
    }
}

fn tls_connection() -> ClientConnection {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(Certificates::shared().file("ca.crt")).unwrap();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap()
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(into),
            Self::Tls(stream) => stream.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(data),
            Self::Tls(stream) => stream.write(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}

/// Whom to log in as.
#[derive(Debug, Clone, Copy)]
pub struct Login<'a> {
    pub how: How,
    pub version: ProtocolVersion,
    pub user: &'a str,
    pub password: &'a str,
    /// Beside `user` and `database`.
    pub parameters: &'a [(&'a str, &'a str)],
}

impl Default for Login<'_> {
    fn default() -> Self {
        Self {
            how: How::Plain,
            version: ProtocolVersion::V3_0,
            user: "app",
            password: "app",
            parameters: &[],
        }
    }
}

/// A session.
#[derive(Debug)]
pub struct Client {
    pub stream: Stream,
    buffer: BytesMut,
    pub process_id: u32,
    pub key: Vec<u8>,
    /// Frames of the login behind `AuthenticationOk`, but for `K`.
    pub greeting: Vec<Frame>,
}

pub fn at(router: &Router, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(router.address), port)
}

pub fn node_address(node: &Node) -> SocketAddr {
    SocketAddr::new(node.address.parse().unwrap(), node.port)
}

impl Client {
    /// As `app` to the read-write port.
    pub fn new(router: &Router) -> Self {
        Self::login(at(router, 6432), Login::default())
    }

    pub fn named(router: &Router, name: &str) -> Self {
        let parameters = [("application_name", name)];
        Self::login(
            at(router, 6432),
            Login {
                parameters: &parameters,
                ..Login::default()
            },
        )
    }

    pub fn encrypted(router: &Router, how: How) -> Self {
        Self::login(
            at(router, 6432),
            Login {
                how,
                ..Login::default()
            },
        )
    }

    pub fn login(address: SocketAddr, login: Login<'_>) -> Self {
        Self::try_login(address, login).unwrap_or_else(|error| panic!("login refused: {error:?}"))
    }

    /// `Err`: what the other side said.
    pub fn try_login(address: SocketAddr, login: Login<'_>) -> Result<Self, ErrorFields> {
        let mut client = Self {
            stream: Stream::connect(address, login.how),
            buffer: BytesMut::new(),
            process_id: 0,
            key: Vec::new(),
            greeting: Vec::new(),
        };
        let mut parameters = vec![("user", login.user)];
        if !login.parameters.iter().any(|(name, _)| *name == "database") {
            parameters.push(("database", "app"));
        }
        parameters.extend(login.parameters);
        let parameters: Vec<(&[u8], &[u8])> = parameters
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
            .collect();
        let mut out = BytesMut::new();
        message::startup(&mut out, login.version, &parameters);
        client.send(&out);
        let (mut first, mut last) = (None, None);
        loop {
            let frame = client.frame();
            let (kind, data) = match frame.tag {
                b'R' => (
                    u32::from_be_bytes(frame.body[..4].try_into().unwrap()),
                    &frame.body[4..],
                ),
                b'E' => return Err(ErrorFields::parse(&frame.body).unwrap()),
                tag => panic!("{} while authenticating", char::from(tag)),
            };
            let mut out = BytesMut::new();
            match kind {
                0 => break,
                10 => {
                    let secret = ClientSecret::Password(Secret::new(login.password));
                    let (next, data) = ClientExchange::new(secret).first();
                    first = Some(next);
                    message::sasl_initial_response(&mut out, "SCRAM-SHA-256", &data);
                }
                11 => {
                    let (next, data) = first.take().unwrap().server_first(data).unwrap();
                    last = Some(next);
                    message::sasl_response(&mut out, &data);
                }
                12 => {
                    last.take().unwrap().server_final(data).unwrap();
                }
                other => panic!("authentication {other}"),
            }
            client.send(&out);
        }
        loop {
            let frame = client.frame();
            match frame.tag {
                b'K' => {
                    client.process_id = u32::from_be_bytes(frame.body[..4].try_into().unwrap());
                    client.key = frame.body[4..].to_vec();
                }
                b'E' => return Err(ErrorFields::parse(&frame.body).unwrap()),
                tag => {
                    client.greeting.push(frame);
                    if tag == b'Z' {
                        return Ok(client);
                    }
                }
            }
        }
    }

    pub fn send(&mut self, data: &[u8]) {
        self.stream.write_all(data).unwrap();
        self.stream.flush().unwrap();
    }

    /// The next frame; the connection must not end before.
    pub fn frame(&mut self) -> Frame {
        self.next().unwrap_or_else(|| panic!("the connection was closed"))
    }

    /// The next frame, or `None` at an orderly end.
    pub fn next(&mut self) -> Option<Frame> {
        let mut read = vec![0; 65_536];
        loop {
            if let Some(frame) = next_frame(&mut self.buffer, 1 << 30).unwrap() {
                return Some(frame);
            }
            match self.stream.read(&mut read) {
                Ok(0) => {
                    assert!(self.buffer.is_empty(), "closed within a frame: {:?}", self.buffer);
                    return None;
                }
                Ok(length) => self.buffer.extend_from_slice(&read[..length]),
                // A signal to the test's process; only reads without a timeout are begun again by
                // the kernel.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => panic!("waited in vain: {error}; there is {:?}", self.buffer),
            }
        }
    }

    /// Frames up to and with the next `Z`.
    pub fn ready(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        loop {
            let frame = self.frame();
            let last = frame.tag == b'Z';
            frames.push(frame);
            if last {
                return frames;
            }
        }
    }

    /// Everything to the end of the connection, which must be an orderly one.
    pub fn rest(&mut self) -> Vec<Frame> {
        std::iter::from_fn(|| self.next()).collect()
    }

    /// A simple query and its answer.
    pub fn ask(&mut self, sql: &str) -> Vec<Frame> {
        self.send(&query(sql));
        self.ready()
    }

    /// The one value a query returns.
    pub fn value(&mut self, sql: &str) -> String {
        let frames = self.ask(sql);
        let row = frames.iter().find(|frame| frame.tag == b'D');
        let row = row.unwrap_or_else(|| panic!("{sql}: {:?}", shown(&frames)));
        String::from_utf8(row.body[6..].to_vec()).unwrap()
    }

    /// No more from us; what comes is still read.
    pub fn half_close(&mut self) {
        if let Stream::Tls(stream) = &mut self.stream {
            stream.conn.send_close_notify();
            stream.flush().unwrap();
        }
        self.stream.socket().shutdown(Shutdown::Write).unwrap();
    }

    /// Ends with a reset.
    pub fn reset(self) {
        socket2::SockRef::from(self.stream.socket())
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }
}

/// Types and SQLSTATEs, for messages of failed tests and comparisons.
pub fn shown(frames: &[Frame]) -> Vec<String> {
    let show = |frame: &Frame| match frame.tag {
        b'E' | b'N' => {
            let fields = ErrorFields::of_prefix(&frame.body);
            format!("{}{} {}", char::from(frame.tag), fields.code, fields.severity)
        }
        b'C' | b'Z' => format!(
            "{}{}",
            char::from(frame.tag),
            String::from_utf8_lossy(&frame.body).trim_end_matches('\0')
        ),
        tag => char::from(tag).to_string(),
    };
    frames.iter().map(show).collect()
}

pub fn framed(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![tag];
    frame.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    frame.extend(body);
    frame
}

pub fn query(sql: &str) -> Vec<u8> {
    framed(b'Q', format!("{sql}\0").as_bytes())
}

pub fn parse(sql: &str) -> Vec<u8> {
    framed(b'P', format!("\0{sql}\0\0\0").as_bytes())
}

/// With parameters as text.
pub fn bind(parameters: &[&[u8]]) -> Vec<u8> {
    let mut body = vec![0, 0, 0, 0];
    body.extend(u16::try_from(parameters.len()).unwrap().to_be_bytes());
    for parameter in parameters {
        body.extend(u32::try_from(parameter.len()).unwrap().to_be_bytes());
        body.extend(*parameter);
    }
    body.extend([0, 0]);
    framed(b'B', &body)
}

pub fn execute() -> Vec<u8> {
    framed(b'E', b"\0\0\0\0\0")
}

pub fn sync() -> Vec<u8> {
    framed(b'S', b"")
}

pub fn flush() -> Vec<u8> {
    framed(b'H', b"")
}

pub fn terminate() -> Vec<u8> {
    framed(b'X', b"")
}

/// One statement of the extended protocol, without Sync.
pub fn extended(sql: &str) -> Vec<u8> {
    [parse(sql), bind(&[]), framed(b'D', b"P\0"), execute()].concat()
}

/// High-water mark of a process's memory, KiB.
pub fn peak_kib(process_id: u32) -> u64 {
    status_kib(process_id, "VmHWM:")
}

/// Memory of a process that is in use now, KiB.
pub fn resident_kib(process_id: u32) -> u64 {
    status_kib(process_id, "VmRSS:")
}

fn status_kib(process_id: u32, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process_id}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Memory that is this process's own, shared pages counted by their share, KiB.
pub fn proportional_kib(process_id: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process_id}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
