//! A connection to a server that ends in order wherever it is dropped.

use std::io;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Terminate.
pub(super) const TERMINATE: &[u8] = b"X\0\0\0\x04";

/// A connection from the beginning of its login until a session takes it. A deadline may pass, or
/// the router may stop, while the server answers: a socket that is closed with unread bytes is
/// reset, and the server logs that it "could not receive data from client". When this is dropped,
/// the server is notified first: by Terminate after the login, by the end of TLS, and by the end of
/// the stream, which is all that a server sees of what follows. Nothing is waited for.
#[derive(Debug)]
pub struct OrderlyStream<S: AsyncWrite + Unpin> {
    /// There until it is released.
    stream: Option<S>,
    /// The server takes messages.
    is_logged_in: bool,
}

impl<S: AsyncWrite + Unpin> OrderlyStream<S> {
    /// A connection on which the login begins.
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream: Some(stream),
            is_logged_in: false,
        }
    }

    /// The server has said that it takes messages.
    pub(crate) fn logged_in(mut self) -> Self {
        self.is_logged_in = true;
        self
    }

    /// The connection becomes what `change` makes of it.
    ///
    /// # Errors
    /// Those of `change`; the connection is lost.
    pub fn change(&mut self, change: impl FnOnce(S) -> io::Result<S>) -> io::Result<()> {
        if let Some(stream) = self.stream.take() {
            self.stream = Some(change(stream)?);
        }
        Ok(())
    }

    /// The connection itself, which the caller ends.
    pub fn release(mut self) -> S {
        self.stream.take().expect(RELEASED)
    }
}

/// Releasing consumes it.
const RELEASED: &str = "it has not been released";

impl<S: AsyncWrite + Unpin> Deref for OrderlyStream<S> {
    type Target = S;

    fn deref(&self) -> &S {
        self.stream.as_ref().expect(RELEASED)
    }
}

impl<S: AsyncWrite + Unpin> DerefMut for OrderlyStream<S> {
    fn deref_mut(&mut self) -> &mut S {
        self.stream.as_mut().expect(RELEASED)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for OrderlyStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.get_mut()).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for OrderlyStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut **self.get_mut()).poll_write(cx, data)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.get_mut()).poll_shutdown(cx)
    }
}

impl<S: AsyncWrite + Unpin> Drop for OrderlyStream<S> {
    fn drop(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        let mut cx = Context::from_waker(Waker::noop());
        if self.is_logged_in {
            let _ = Pin::new(&mut *stream).poll_write(&mut cx, TERMINATE);
        }
        let _ = Pin::new(stream).poll_shutdown(&mut cx);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;

    /// The server sees the end of the stream, not a reset, whether its answer has come or comes
    /// later.
    #[tokio::test]
    async fn a_connection_that_is_dropped_with_an_answer_unread_is_not_reset() {
        for (is_logged_in, heard) in [(false, &b""[..]), (true, TERMINATE)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let near = TcpStream::connect(listener.local_addr().unwrap());
            let (near, far) = tokio::join!(near, listener.accept());
            let (near, mut server) = (near.unwrap(), far.unwrap().0);
            let mut connection = OrderlyStream::new(near);
            if is_logged_in {
                connection = connection.logged_in();
            }
            server.write_all(b"an answer").await.unwrap();
            connection.readable().await.unwrap();
            drop(connection);
            // It answers once more before it looks.
            let _ = server.write_all(b"the rest").await;
            let mut bytes = Vec::new();
            let reading = timeout(Duration::from_secs(20), server.read_to_end(&mut bytes));
            assert_eq!(reading.await.unwrap().unwrap(), heard.len(), "{is_logged_in}");
            assert_eq!(bytes, heard);
        }
    }
}
