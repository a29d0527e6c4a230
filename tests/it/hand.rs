//! A client that speaks the protocol by hand, right or wrong.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use socket2::{Domain, Socket, Type};
use trunkline::auth::scram::client::ClientExchange;
use trunkline::auth::scram::{ClientSecret, tls_server_end_point};
use trunkline::config::Secret;

use crate::cluster::Certificates;

pub const V3_0: u32 = 0x0003_0000;
pub const V3_2: u32 = 0x0003_0002;
pub const SSL_REQUEST: &[u8] = &[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];
pub const GSS_REQUEST: &[u8] = &[0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x30];

/// Longer than anything takes that is not stuck.
const PATIENCE: Duration = Duration::from_secs(10);

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// One message of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub tag: u8,
    pub body: Vec<u8>,
}

impl Message {
    /// A field of an `ErrorResponse` or a `NoticeResponse`: `C`, `M`, `H` ….
    pub fn field(&self, name: u8) -> Option<String> {
        assert!(matches!(self.tag, b'E' | b'N'), "{self:?}");
        self.body
            .split(|&byte| byte == 0)
            .find_map(|field| field.strip_prefix(&[name]))
            .map(|value| String::from_utf8_lossy(value).into_owned())
    }

    pub fn code(&self) -> String {
        self.field(b'C').unwrap()
    }
}

pub struct Raw {
    stream: Stream,
}

impl Raw {
    pub fn connect(address: Ipv4Addr, port: u16) -> Self {
        let socket = TcpStream::connect(SocketAddr::from((address, port))).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream: Stream::Plain(socket),
        }
    }

    /// From a loopback address of the caller's choice.
    pub fn connect_from(source: Ipv4Addr, address: Ipv4Addr, port: u16) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
        socket.connect(&SocketAddr::from((address, port)).into()).unwrap();
        let socket = TcpStream::from(socket);
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream: Stream::Plain(socket),
        }
    }

    /// SSLRequest, its `S`, and the handshake.
    pub fn tls(address: Ipv4Addr, port: u16) -> Self {
        let mut raw = Self::connect(address, port);
        raw.send(SSL_REQUEST);
        assert_eq!(raw.byte(), b'S');
        raw.handshake(&[b"postgresql"]).unwrap()
    }

    /// The TLS handshake as a client, now.
    pub fn handshake(self, alpn: &[&[u8]]) -> io::Result<Self> {
        let Stream::Plain(mut socket) = self.stream else {
            panic!("twice")
        };
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_file(Certificates::shared().file("ca.crt")).unwrap();
        roots.add(ca).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        let name = ServerName::try_from("localhost").unwrap();
        let mut connection = ClientConnection::new(Arc::new(config), name).unwrap();
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(Self {
            stream: Stream::Tls(Box::new(StreamOwned::new(connection, socket))),
        })
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).unwrap();
    }

    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(stream) => stream.write_all(bytes),
            Stream::Tls(stream) => stream.write_all(bytes).and_then(|()| stream.flush()),
        }
    }

    pub fn half_close(&self) {
        self.socket().shutdown(Shutdown::Write).unwrap();
    }

    pub fn socket(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => &stream.sock,
        }
    }

    pub fn is_encrypted(&self) -> bool {
        matches!(self.stream, Stream::Tls(_))
    }

    /// The hash of the certificate shown here, which a login can be bound to.
    pub fn end_point(&self) -> Vec<u8> {
        let Stream::Tls(stream) = &self.stream else {
            panic!("no TLS")
        };
        tls_server_end_point(&stream.conn.peer_certificates().unwrap()[0]).unwrap()
    }

    fn read_exact(&mut self, into: &mut [u8]) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(stream) => stream.read_exact(into),
            Stream::Tls(stream) => stream.read_exact(into),
        }
    }

    pub fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.read_exact(&mut byte).unwrap();
        byte[0]
    }

    pub fn try_message(&mut self) -> io::Result<Message> {
        let mut head = [0; 5];
        self.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut body = vec![0; length - 4];
        self.read_exact(&mut body)?;
        Ok(Message { tag: head[0], body })
    }

    pub fn message(&mut self) -> Message {
        self.try_message().unwrap()
    }

    /// The next message, which must be an error, and the end of the connection behind it.
    pub fn last_error(&mut self) -> Message {
        let message = self.message();
        assert_eq!(message.tag, b'E', "{message:?}");
        assert_eq!(self.rest(), b"", "nothing behind the error");
        message
    }

    /// Everything up to the end of the connection, whichever way it ends.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        let result = match &mut self.stream {
            Stream::Plain(stream) => stream.read_to_end(&mut all),
            Stream::Tls(stream) => stream.read_to_end(&mut all),
        };
        if let Err(error) = result {
            assert!(
                !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
                "the connection was not closed; so far {all:?}"
            );
        }
        all
    }

    pub fn startup(&mut self, version: u32, parameters: &[(&str, &str)]) {
        let parameters: Vec<(&[u8], &[u8])> = parameters
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes()))
            .collect();
        self.send(&startup(version, &parameters));
    }

    /// Answers the request for SCRAM with this user's password. The messages up to ReadyForQuery or
    /// an error.
    pub fn authenticate(&mut self, password: &str) -> Vec<Message> {
        self.begin_scram(password).unwrap()
    }

    /// The same; an error that comes instead of the request, or of the salt, by itself.
    pub fn begin_scram(&mut self, password: &str) -> Result<Vec<Message>, Message> {
        let request = self.message();
        if request.tag == b'E' {
            return Err(request);
        }
        assert_eq!(
            (request.tag, &request.body[..4]),
            (b'R', &[0, 0, 0, 10][..]),
            "{request:?}"
        );
        let secret = ClientSecret::Password(Secret::new(password.as_bytes()));
        let (exchange, first) = ClientExchange::new(secret).first();
        self.sasl_initial("SCRAM-SHA-256", &first);
        let reply = self.message();
        if reply.tag == b'E' {
            return Err(reply);
        }
        assert_eq!(
            (reply.tag, &reply.body[..4]),
            (b'R', &[0, 0, 0, 11][..]),
            "{reply:?}"
        );
        let (exchange, last) = exchange.server_first(&reply.body[4..]).unwrap();
        self.send(&message(b'p', &last));
        let reply = self.message();
        if reply.tag == b'E' {
            return Ok(vec![reply]);
        }
        exchange.server_final(&reply.body[4..]).unwrap();
        let mut all = Vec::new();
        loop {
            let message = self.message();
            let last = matches!(message.tag, b'Z' | b'E');
            all.push(message);
            if last {
                return Ok(all);
            }
        }
    }

    pub fn sasl_initial(&mut self, mechanism: &str, data: &[u8]) {
        let mut body = mechanism.as_bytes().to_vec();
        body.push(0);
        body.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        body.extend(data);
        self.send(&message(b'p', &body));
    }

    /// A simple query; the messages up to ReadyForQuery.
    pub fn query(&mut self, sql: &str) -> Vec<Message> {
        self.send(&message(b'Q', &[sql.as_bytes(), b"\0"].concat()));
        let mut all = Vec::new();
        loop {
            let message = self.message();
            let last = message.tag == b'Z';
            all.push(message);
            if last {
                return all;
            }
        }
    }

    /// The first column of the first row.
    pub fn value(&mut self, sql: &str) -> String {
        let all = self.query(sql);
        let row = all
            .iter()
            .find(|message| message.tag == b'D')
            .unwrap_or_else(|| panic!("{all:?}"));
        String::from_utf8_lossy(&row.body[6..]).into_owned()
    }
}

pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    out.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
    out.extend(body);
    out
}

/// A packet without a type byte.
pub fn packet(code: u32, body: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(body.len() + 8).unwrap().to_be_bytes().to_vec();
    out.extend(code.to_be_bytes());
    out.extend(body);
    out
}

pub fn startup(version: u32, parameters: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in parameters {
        for text in [name, value] {
            body.extend(*text);
            body.push(0);
        }
    }
    body.push(0);
    packet(version, &body)
}
