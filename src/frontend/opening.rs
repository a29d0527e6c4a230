//! From the first byte to the startup packet: SSLRequest, GSSENCRequest, direct TLS, CancelRequest, peer request
//! (protocol chapter, "Session Encryption"; docs/protocol.md, cases 1–8).

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::certificate::PeerCertificateError;
use super::tls::{Acceptor, HandshakeError, TlsFacts};
use super::{ClientStream, ClientTlsStream};
use crate::config::ListenerTls;
use crate::tls;
use crate::wire::message::{self, ErrorReply};
use crate::wire::proxy;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::{self, CancelRequest, FirstPacket, StartupError, StartupPacket, TLS_HANDSHAKE};

/// PostgreSQL's registered protocol name; demanded with direct TLS (case 4).
const ALPN: &[u8] = b"postgresql";

/// What a client turned out to want.
#[derive(Debug)]
pub enum Opening {
    Session {
        stream: ClientStream,
        packet: StartupPacket,
        /// `None` in clear. For the login only: an idle session does without.
        tls: Option<Box<TlsFacts>>,
    },
    Cancel {
        stream: ClientStream,
        request: CancelRequest,
    },
    Peer {
        stream: ClientStream,
        body: Bytes,
    },
}

/// Why an opening came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum OpeningError {
    /// It connected and left, or never said anything that needs an answer: a health check, a port scan.
    #[error("hung up")]
    HungUp,
    #[error("{0}")]
    Startup(#[from] StartupError),
    #[error("received unencrypted data after an encryption request")]
    Injected,
    #[error("an encryption request inside TLS, or a second one")]
    EncryptionTwice,
    #[error("direct TLS without ALPN protocol \"postgresql\"")]
    NoAlpn,
    #[error("direct TLS on a port that offers none")]
    TlsNotOffered,
    #[error("TLS handshake: {}", tls::of_io(.0).map_or_else(|| .0.to_string(), tls::explain))]
    Handshake(io::Error),
    #[error("{0}")]
    Certificate(PeerCertificateError),
    /// From an address that is not among `proxy_protocol.trusted`.
    #[error(
        "a PROXY protocol header, which this listener does not take from this address: set its proxy_protocol.trusted \
         to the balancer's address, or remove send-proxy there"
    )]
    ProxyHeader,
    #[error("this port requires TLS")]
    TlsRequired,
}

/// What is offered to the client on this listener.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Shared by all listeners; another one may be put in its place, for the handshakes that begin after that.
    pub tls: Option<Arc<ArcSwap<Acceptor>>>,
    pub mode: ListenerTls,
}

/// Reads up to and including the startup packet. Answers faults itself where PostgreSQL would.
pub async fn open(stream: ClientStream, offer: &Offer) -> Result<Opening, OpeningError> {
    match stream {
        ClientStream::Plain(socket) => over_network(socket, offer).await,
        // No TLS on this host, as with PostgreSQL; the first byte of direct TLS is no length of a startup packet.
        local => in_clear(local, None, ListenerTls::Off).await,
    }
}

async fn over_network(socket: TcpStream, offer: &Offer) -> Result<Opening, OpeningError> {
    let acceptor = match offer.mode {
        ListenerTls::Off => None,
        ListenerTls::Optional | ListenerTls::Required => offer.tls.as_ref().map(|tls| tls.load_full()),
    };
    let mut first = [0_u8; 1];
    if !matches!(socket.peek(&mut first).await, Ok(1)) {
        return Err(OpeningError::HungUp);
    }
    if first[0] == TLS_HANDSHAKE {
        let Some(acceptor) = acceptor else {
            return Err(OpeningError::TlsNotOffered);
        };
        let (stream, facts) = handshake(socket, &acceptor).await?;
        if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
            // No PostgreSQL client: a cross-protocol request must learn nothing.
            return Err(OpeningError::NoAlpn);
        }
        return inside_tls(stream, facts).await;
    }
    in_clear(ClientStream::Plain(socket), acceptor, offer.mode).await
}

async fn in_clear(
    mut stream: ClientStream,
    acceptor: Option<Arc<Acceptor>>,
    mode: ListenerTls,
) -> Result<Opening, OpeningError> {
    let mut buffer = BytesMut::new();
    let (mut ssl_asked, mut gss_asked) = (false, false);
    loop {
        let packet = match read_packet(&mut stream, &mut buffer).await {
            Ok(packet) => packet,
            Err(fault) => return Err(answer(&mut stream, fault).await),
        };
        let asked = match packet {
            FirstPacket::SslRequest => &mut ssl_asked,
            FirstPacket::GssEncRequest => &mut gss_asked,
            FirstPacket::Cancel(request) => {
                return finish(stream, &buffer, |stream| Opening::Cancel { stream, request }).await;
            }
            FirstPacket::Peer(body) => {
                return finish(stream, &buffer, |stream| Opening::Peer { stream, body }).await;
            }
            FirstPacket::Startup(packet) => {
                if mode == ListenerTls::Required {
                    return Err(answer(&mut stream, OpeningError::TlsRequired).await);
                }
                return finish(stream, &buffer, |stream| Opening::Session {
                    stream,
                    packet,
                    tls: None,
                })
                .await;
            }
        };
        if std::mem::replace(asked, true) {
            return Err(answer(&mut stream, OpeningError::EncryptionTwice).await);
        }
        if !buffer.is_empty() {
            // CVE-2021-23214: what came behind the request would be taken for encrypted data.
            return Err(answer(&mut stream, OpeningError::Injected).await);
        }
        let is_ssl = matches!(packet, FirstPacket::SslRequest);
        let accept = acceptor.as_ref().filter(|_| is_ssl);
        stream
            .write_all(if accept.is_some() { b"S" } else { b"N" })
            .await
            .map_err(|_| OpeningError::HungUp)?;
        if let Some(acceptor) = accept {
            let ClientStream::Plain(socket) = stream else {
                unreachable!("not yet encrypted, and no TLS on a Unix socket")
            };
            let (stream, facts) = handshake(socket, acceptor).await?;
            return inside_tls(stream, facts).await;
        }
    }
}

async fn handshake(
    socket: TcpStream,
    acceptor: &Acceptor,
) -> Result<(ClientTlsStream<TcpStream>, Box<TlsFacts>), OpeningError> {
    match acceptor.accept(socket).await {
        Ok((stream, facts)) => Ok((stream, Box::new(facts))),
        Err(HandshakeError::Certificate(fault)) => Err(OpeningError::Certificate(fault)),
        Err(HandshakeError::Io(error)) => Err(match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                OpeningError::HungUp
            }
            _ => OpeningError::Handshake(error),
        }),
    }
}

async fn inside_tls(
    stream: ClientTlsStream<TcpStream>,
    facts: Box<TlsFacts>,
) -> Result<Opening, OpeningError> {
    let mut stream = ClientStream::Tls(Box::new(stream));
    let mut buffer = BytesMut::new();
    let fault = match read_packet(&mut stream, &mut buffer).await {
        Ok(FirstPacket::Startup(packet)) => {
            return finish(stream, &buffer, |stream| Opening::Session {
                stream,
                packet,
                tls: Some(facts),
            })
            .await;
        }
        Ok(FirstPacket::Cancel(request)) => {
            return finish(stream, &buffer, |stream| Opening::Cancel { stream, request }).await;
        }
        Ok(FirstPacket::Peer(body)) => {
            return finish(stream, &buffer, |stream| Opening::Peer { stream, body }).await;
        }
        Ok(FirstPacket::SslRequest | FirstPacket::GssEncRequest) => OpeningError::EncryptionTwice,
        Err(fault) => fault,
    };
    Err(answer(&mut stream, fault).await)
}

/// Nothing may follow the packet: the client has to wait for our answer.
async fn finish(
    mut stream: ClientStream,
    rest: &BytesMut,
    done: impl FnOnce(ClientStream) -> Opening,
) -> Result<Opening, OpeningError> {
    if rest.is_empty() {
        Ok(done(stream))
    } else {
        Err(answer(&mut stream, OpeningError::Injected).await)
    }
}

/// Reads until one first packet is whole. What was read beyond it stays in `buffer`, which never holds more than
/// the largest packet and one read. Cancel safe: `read_buf` is.
async fn read_packet(stream: &mut ClientStream, buffer: &mut BytesMut) -> Result<FirstPacket, OpeningError> {
    loop {
        let parsed = startup::parse(buffer).map_err(|fault| OpeningError::at_first(fault, buffer))?;
        if let Some((packet, used)) = parsed {
            let _consumed = buffer.split_to(used);
            return Ok(packet);
        }
        buffer.reserve(1024);
        match stream.read_buf(buffer).await {
            Ok(0) | Err(_) => return Err(OpeningError::HungUp),
            Ok(_) => {}
        }
    }
}

/// Tells the client, where PostgreSQL would, and passes the fault on.
async fn answer(stream: &mut ClientStream, fault: OpeningError) -> OpeningError {
    if let Some(reply) = fault.reply() {
        let mut out = BytesMut::new();
        message::error(&mut out, &reply);
        // Best effort: it is being refused, and may be gone.
        let _ = stream.write_all(&out).await;
        let _ = stream.shutdown().await;
    }
    fault
}

/// Not a TLS message at all, or not one that begins a handshake. An alert or versions that do not meet are worth a
/// line: somebody's client does not get in.
fn is_garbage(error: &io::Error) -> bool {
    matches!(
        tls::of_io(error),
        Some(
            rustls::Error::InvalidMessage(_)
                | rustls::Error::InappropriateMessage { .. }
                | rustls::Error::InappropriateHandshakeMessage { .. }
        )
    )
}

/// The client's own certificate was refused.
fn is_bad_certificate(error: &io::Error) -> bool {
    matches!(tls::of_io(error), Some(rustls::Error::InvalidCertificate(_)))
}

impl OpeningError {
    /// What is wrong with a first packet that begins with `read`.
    pub fn at_first(fault: StartupError, read: &[u8]) -> Self {
        match fault {
            StartupError::Length if proxy::begins(read) => Self::ProxyHeader,
            fault => Self::Startup(fault),
        }
    }

    /// What the client is told; `None` is a silent close.
    pub fn reply(&self) -> Option<ErrorReply> {
        match self {
            Self::HungUp
            | Self::NoAlpn
            | Self::TlsNotOffered
            | Self::ProxyHeader
            | Self::Handshake(_)
            | Self::Certificate(_) => None,
            Self::Startup(fault) => fault.reply(),
            Self::Injected => Some(
                ErrorReply::fatal(SqlState::PROTOCOL_VIOLATION, "received unencrypted data after an encryption request")
                    .detail("This could be either a client-software bug or evidence of an attempted man-in-the-middle attack."),
            ),
            Self::EncryptionTwice => Some(ErrorReply::fatal(
                SqlState::PROTOCOL_VIOLATION,
                "an encryption request may be sent once, and not inside TLS",
            )),
            Self::TlsRequired => Some(
                ErrorReply::fatal(SqlState::INVALID_AUTHORIZATION, "this port accepts TLS connections only")
                    .hint("Connect with sslmode=require or stronger."),
            ),
        }
    }

    /// Is it worth a line in the log? Health checks and port scans are not.
    pub fn is_noise(&self) -> bool {
        match self {
            // Not PostgreSQL's protocol, or a TLS that no PostgreSQL client speaks: PostgreSQL logs neither.
            Self::HungUp | Self::Startup(StartupError::Length) | Self::NoAlpn | Self::TlsNotOffered => true,
            Self::Handshake(error) => is_garbage(error),
            Self::Startup(_)
            | Self::Injected
            | Self::EncryptionTwice
            | Self::ProxyHeader
            | Self::TlsRequired
            | Self::Certificate(_) => false,
        }
    }

    /// Does it speak against the peer, for the limits on guessing? What a health check, a port scan, an old driver
    /// or a client that does not trust our certificate does, does not.
    pub fn is_offence(&self) -> bool {
        match self {
            Self::HungUp
            | Self::Startup(StartupError::Length | StartupError::Version { .. })
            | Self::NoAlpn
            | Self::TlsNotOffered
            | Self::ProxyHeader
            | Self::TlsRequired => false,
            Self::Handshake(error) => is_bad_certificate(error),
            Self::Startup(_) | Self::Injected | Self::EncryptionTwice | Self::Certificate(_) => true,
        }
    }

    /// Did the peer want something that it was refused?
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::HungUp | Self::Startup(StartupError::Length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_of_a_balancer_is_told_from_noise() {
        let fault = |read: &[u8]| OpeningError::at_first(StartupError::Length, read);
        let header = fault(b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\n");
        assert!(!header.is_noise() && header.is_refusal() && !header.is_offence());
        assert!(header.to_string().contains("proxy_protocol.trusted"), "{header}");
        assert!(fault(b"GET / HTTP/1.1\r\n").is_noise());
    }
}
