use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use crate::tls::HelloStream;

/// Between two looks at a client that has sent something too early.
const LOOK: Duration = Duration::from_millis(250);

/// TLS with a client, over `S`.
pub type ClientTlsStream<S> = TlsStream<HelloStream<S>>;

/// A client's connection, in clear or in TLS, or on this host.
#[derive(Debug)]
pub enum ClientStream {
    Plain(TcpStream),
    // Boxed: an idle session in clear must not pay for the size of a TLS one.
    Tls(Box<ClientTlsStream<TcpStream>>),
    Unix(UnixStream),
}

/// What the kernel knows of a peer that is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    No,
    /// It sends no more, and may still read.
    Closed,
    /// The connection is reset, or has failed; on a Unix socket, closed by the peer.
    Broken,
}

impl Left {
    /// By what a socket is ready for, in both directions; `None`: nothing was seen.
    pub(crate) fn of(ready: Option<&io::Result<Ready>>) -> Self {
        match ready {
            Some(Ok(ready)) if ready.is_write_closed() => Self::Broken,
            Some(Ok(ready)) if ready.is_read_closed() => Self::Closed,
            Some(Err(_)) => Self::Broken,
            Some(Ok(_)) | None => Self::No,
        }
    }
}

impl ClientStream {
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The TCP socket underneath; a Unix socket is none.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Tls(stream) => Some(stream.get_ref().0.get_ref()),
            Self::Unix(_) => None,
        }
    }

    /// Returns once the client has closed its side, a moment late if it has sent something before. Reads nothing, so
    /// nothing is lost. Cancel safe.
    pub async fn hung_up(&self) {
        loop {
            let ready = match self {
                Self::Plain(stream) => stream.ready(Interest::READABLE).await,
                Self::Tls(stream) => stream.get_ref().0.get_ref().ready(Interest::READABLE).await,
                Self::Unix(stream) => stream.ready(Interest::READABLE).await,
            };
            match ready {
                Ok(ready) if !ready.is_read_closed() => tokio::time::sleep(LOOK).await,
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Protocol and cipher of the TLS session, for the log.
    pub fn tls_description(&self) -> Option<&'static str> {
        match self {
            Self::Plain(_) | Self::Unix(_) => None,
            Self::Tls(stream) => Some(match stream.get_ref().1.protocol_version() {
                Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
                Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
                _ => "TLS",
            }),
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, data),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, data),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, data),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
