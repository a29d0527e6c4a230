//! From the first byte to the startup packet: SSLRequest, GSSENCRequest, direct TLS, CancelRequest,
//! peer request (protocol chapter, "Session Encryption"; docs/protocol.md, cases 1–8).

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

/// PostgreSQL's registered ALPN protocol name. Direct TLS requires it (case 4).
const ALPN: &[u8] = b"postgresql";

/// What the client asks for with its first packets.
#[derive(Debug)]
pub enum Opening {
    Session {
        stream: ClientStream,
        packet: StartupPacket,
        /// `None` without TLS. Only the login needs it; an idle session does not keep it.
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

/// Why an opening failed.
#[derive(Debug, thiserror::Error)]
pub enum OpeningError {
    /// The peer connected and left, or sent nothing that needs an answer: a health check, a port
    /// scan.
    #[error("hung up")]
    HungUp,
    #[error("{0}")]
    Startup(#[from] StartupError),
    #[error("received unencrypted data after an encryption request")]
    Injected,
    /// PostgreSQL would read on where the login needs no answer; no known driver relies on that.
    #[error("received data after the startup packet, before its answer")]
    Early,
    #[error("an encryption request inside TLS, or a second encryption request")]
    EncryptionTwice,
    #[error("direct TLS without ALPN protocol \"postgresql\"")]
    NoAlpn,
    #[error("direct TLS on a port that does not offer TLS")]
    TlsNotOffered,
    #[error("TLS handshake: {}", tls::of_io(.0).map_or_else(|| .0.to_string(), tls::explain_client))]
    Handshake(io::Error),
    #[error("{0}")]
    Certificate(PeerCertificateError),
    /// From an address that is not among `proxy_protocol.trusted`.
    #[error(
        "a PROXY protocol header from an address that this listener does not trust: add the balancer's address to the \
         listener's proxy_protocol.trusted, or remove send-proxy at the balancer"
    )]
    ProxyHeader,
    #[error("this port requires TLS")]
    TlsRequired,
}

/// The encryption that this listener offers.
#[derive(Debug, Clone)]
pub struct Offer {
    /// All listeners share it. A reload replaces it; handshakes that begin later use the new one.
    pub tls: Option<Arc<ArcSwap<Acceptor>>>,
    pub mode: ListenerTls,
}

/// Reads up to and including the startup packet. Where PostgreSQL would answer a fault, this
/// function answers it.
pub async fn open(stream: ClientStream, offer: &Offer) -> Result<Opening, OpeningError> {
    match stream {
        ClientStream::Plain(socket) => over_network(socket, offer).await,
        // A Unix socket has no TLS, as in PostgreSQL. The first byte of direct TLS is not a valid
        // length of a startup packet.
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
            // This is no PostgreSQL client. A cross-protocol attack must get no answer.
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
            // As in PostgreSQL, nothing behind the request is read.
            FirstPacket::Cancel(request) => return Ok(Opening::Cancel { stream, request }),
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
            // CVE-2021-23214: the bytes after the request would be taken for encrypted data.
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
                unreachable!("the stream is not encrypted yet, and a Unix socket has no TLS")
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
        Ok(FirstPacket::Cancel(request)) => return Ok(Opening::Cancel { stream, request }),
        Ok(FirstPacket::Peer(body)) => {
            return finish(stream, &buffer, |stream| Opening::Peer { stream, body }).await;
        }
        Ok(FirstPacket::SslRequest | FirstPacket::GssEncRequest) => OpeningError::EncryptionTwice,
        Err(fault) => fault,
    };
    Err(answer(&mut stream, fault).await)
}

/// No bytes may follow the packet: the client has to wait for the answer.
async fn finish(
    mut stream: ClientStream,
    rest: &BytesMut,
    done: impl FnOnce(ClientStream) -> Opening,
) -> Result<Opening, OpeningError> {
    if rest.is_empty() {
        Ok(done(stream))
    } else {
        Err(answer(&mut stream, OpeningError::Early).await)
    }
}

/// Reads until one first packet is complete. Bytes after it stay in `buffer`, which never holds
/// more than the largest packet and one read. Cancel safe, because `read_buf` is.
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

/// Sends an error to the client where PostgreSQL would, and returns the fault.
async fn answer(stream: &mut ClientStream, fault: OpeningError) -> OpeningError {
    if let Some(reply) = fault.reply() {
        let mut out = BytesMut::new();
        message::error(&mut out, &reply);
        // Best effort: the client is refused, and may have left.
        let _ = stream.write_all(&out).await;
        let _ = stream.shutdown().await;
    }
    fault
}

/// The bytes are not TLS, or not the start of a handshake. An alert or a version mismatch is
/// logged, because a real client cannot connect.
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

/// The client's certificate was refused.
fn is_bad_certificate(error: &io::Error) -> bool {
    matches!(tls::of_io(error), Some(rustls::Error::InvalidCertificate(_)))
}

impl OpeningError {
    /// The error for a first packet that begins with `read`.
    pub fn at_first(fault: StartupError, read: &[u8]) -> Self {
        match fault {
            StartupError::Length if proxy::begins(read) => Self::ProxyHeader,
            fault => Self::Startup(fault),
        }
    }

    /// The error that the client receives; `None` closes the connection without an answer.
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
            Self::Early => Some(
                ErrorReply::fatal(
                    SqlState::PROTOCOL_VIOLATION,
                    "received data after the startup packet, before its answer",
                )
                .hint("The client has to wait for the answer to its startup packet."),
            ),
            Self::EncryptionTwice => Some(ErrorReply::fatal(
                SqlState::PROTOCOL_VIOLATION,
                "a client may send an encryption request only once, and not inside TLS",
            )),
            Self::TlsRequired => Some(
                ErrorReply::fatal(SqlState::INVALID_AUTHORIZATION, "this port accepts TLS connections only")
                    .hint("Connect with sslmode=require or stronger."),
            ),
        }
    }

    /// Whether the log leaves it out, as for health checks and port scans.
    pub fn is_noise(&self) -> bool {
        match self {
            // Not the PostgreSQL protocol, or TLS that no PostgreSQL client would use. PostgreSQL
            // does not log these either.
            Self::HungUp | Self::Startup(StartupError::Length) | Self::NoAlpn | Self::TlsNotOffered => true,
            Self::Handshake(error) => is_garbage(error),
            Self::Startup(_)
            | Self::Injected
            | Self::Early
            | Self::EncryptionTwice
            | Self::ProxyHeader
            | Self::TlsRequired
            | Self::Certificate(_) => false,
        }
    }

    /// Whether it counts against the peer in the limits on password guessing. Health checks, port
    /// scans, old drivers and clients that do not trust our certificate do not count.
    pub fn is_offence(&self) -> bool {
        match self {
            Self::HungUp
            | Self::Startup(StartupError::Length | StartupError::Version { .. })
            | Self::NoAlpn
            | Self::TlsNotOffered
            | Self::Early
            | Self::ProxyHeader
            | Self::TlsRequired => false,
            Self::Handshake(error) => is_bad_certificate(error),
            Self::Startup(_) | Self::Injected | Self::EncryptionTwice | Self::Certificate(_) => true,
        }
    }

    /// Whether the peer asked for something and was refused.
    pub fn is_refusal(&self) -> bool {
        !matches!(self, Self::HungUp | Self::Startup(StartupError::Length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balancers_header_is_distinguished_from_noise() {
        let fault = |read: &[u8]| OpeningError::at_first(StartupError::Length, read);
        let header = fault(b"PROXY TCP4 192.0.2.7 192.0.2.8 1 2\r\n");
        assert!(!header.is_noise() && header.is_refusal() && !header.is_offence());
        assert!(header.to_string().contains("proxy_protocol.trusted"), "{header}");
        assert!(fault(b"GET / HTTP/1.1\r\n").is_noise());
    }
}
