use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use crate::tls::HelloStream;

/// TLS with a client, over `S`.
pub type ClientTlsStream<S> = TlsStream<HelloStream<S>>;

/// A client's connection: TCP without or with TLS, or a Unix socket.
#[derive(Debug)]
pub enum ClientStream {
    Plain(TcpStream),
    // Boxed, so that an idle session without TLS does not need the memory of one with TLS.
    Tls(Box<ClientTlsStream<TcpStream>>),
    Unix(UnixStream),
}

/// What the kernel reports about a peer without reading from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    No,
    /// The peer sends no more, but may still read.
    Closed,
    /// The connection was reset or has failed. On a Unix socket: the peer closed it.
    Broken,
}

impl Left {
    /// From the readiness of a socket in both directions; `None` means that no event was seen.
    pub(crate) fn of(ready: Option<&io::Result<Ready>>) -> Self {
        match ready {
            Some(Ok(ready)) if ready.is_write_closed() => Self::Broken,
            Some(Ok(ready)) if ready.is_read_closed() => Self::Closed,
            Some(Err(_)) => Self::Broken,
            Some(Ok(_)) | None => Self::No,
        }
    }
}

/// See [`ClientStream::watch`]. It keeps the socket open.
#[derive(Debug)]
pub struct HangUp(ClientStream);

impl HangUp {
    /// As [`ClientStream::hung_up`].
    pub async fn hung_up(&self) {
        self.0.hung_up().await;
    }
}

impl ClientStream {
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// The TCP socket; `None` for a Unix socket.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Tls(stream) => Some(stream.get_ref().0.get_ref()),
            Self::Unix(_) => None,
        }
    }

    /// Returns once the client has closed its side, also if it sent bytes before. It reads nothing,
    /// so nothing is lost. Cancel safe.
    pub async fn hung_up(&self) {
        // tokio does not register for urgent data, so only the end of the stream satisfies this
        // interest.
        let end = Interest::PRIORITY;
        let _ = match self {
            Self::Plain(stream) => stream.ready(end).await,
            Self::Tls(stream) => stream.get_ref().0.get_ref().ready(end).await,
            Self::Unix(stream) => stream.ready(end).await,
        };
    }

    /// Tells the end of the client while somebody else has the stream.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn watch(&self) -> io::Result<HangUp> {
        let of_tcp = |stream: &TcpStream| {
            let socket = stream.as_fd().try_clone_to_owned()?;
            Ok(Self::Plain(TcpStream::from_std(socket.into())?))
        };
        match self {
            Self::Plain(stream) => of_tcp(stream),
            Self::Tls(stream) => of_tcp(stream.get_ref().0.get_ref()),
            Self::Unix(stream) => {
                let socket = stream.as_fd().try_clone_to_owned()?;
                Ok(Self::Unix(UnixStream::from_std(socket.into())?))
            }
        }
        .map(HangUp)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    /// A client that sends bytes and stays connected has not hung up. When it leaves, the router
    /// notices, and the bytes can still be read.
    async fn check_hang_up(mut stream: ClientStream, mut client: impl AsyncWrite + Unpin) {
        client.write_all(b"early").await.unwrap();
        assert!(
            timeout(Duration::from_millis(50), stream.hung_up())
                .await
                .is_err(),
            "the client is still connected"
        );
        {
            let mut waiting = std::pin::pin!(stream.hung_up());
            assert!(
                waiting.as_mut().now_or_never().is_none(),
                "hung_up waits for an event"
            );
            drop(client);
            timeout(Duration::from_secs(20), waiting).await.unwrap();
        }
        let mut early = [0; 2];
        stream.read_exact(&mut early).await.unwrap();
        assert_eq!(&early, b"ea");
    }

    #[tokio::test]
    async fn the_end_of_a_client_that_sent_bytes_early_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        check_hang_up(ClientStream::Plain(stream), client).await;
        let (stream, client) = UnixStream::pair().unwrap();
        check_hang_up(ClientStream::Unix(stream), client).await;
    }
}
