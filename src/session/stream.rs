//! What a session asks of a connection beyond reading and writing. A relay takes any two streams
//! that can do this: a socket, TLS over one, or, in tests, a connection in memory.

use std::io;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client;

use crate::backend::{OrderlyStream, ServerStream, set_user_timeout};
use crate::frontend::{ClientStream, ClientTlsStream, Left};

/// A connection of a session, to the client or to the server. `poll_shutdown` ends our side in
/// order, with TLS's own last message where there is TLS.
pub trait SessionStream: AsyncRead + AsyncWrite + Unpin {
    /// Whether the peer has left, as far as can be seen without reading. Never waits.
    fn left(&self) -> Left;

    /// Changes `TCP_USER_TIMEOUT`; `None` turns it off. A Unix socket has none and needs none: the
    /// kernel knows when its other end is gone.
    fn set_user_timeout(&self, timeout: Option<Duration>);

    /// Ends our side of the socket at once, without a last message of TLS. Does nothing where the
    /// connection is gone.
    fn end_socket(&self);

    /// Whether anything can be read, or the peer has ended the connection: the kernel is asked, and
    /// what TLS has read already counts too. Reads nothing, never waits.
    fn has_input(&self) -> bool;

    /// Ready if the socket has something to read or the peer has ended it, as far as the reactor
    /// knows. Otherwise the task is woken when that changes, in place of the task that waits for a
    /// read. Reads nothing.
    fn poll_input(&self, cx: &mut Context<'_>) -> Poll<()>;
}

/// TLS wants to read only while nothing that it has read waits for us.
fn has_read_ahead(wants_read: bool) -> bool {
    !wants_read
}

/// Asks the kernel, since a reactor may not have heard of the newest bytes yet.
fn socket_has_input(socket: &SockRef<'_>) -> bool {
    let mut byte = [MaybeUninit::uninit()];
    !matches!(socket.peek(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

impl SessionStream for TcpStream {
    fn left(&self) -> Left {
        let both = Interest::READABLE | Interest::WRITABLE;
        Left::of(self.ready(both).now_or_never().as_ref())
    }

    fn set_user_timeout(&self, timeout: Option<Duration>) {
        set_user_timeout(self, timeout);
    }

    fn end_socket(&self) {
        let _ = SockRef::from(self).shutdown(Shutdown::Write);
    }

    fn has_input(&self) -> bool {
        socket_has_input(&SockRef::from(self))
    }

    fn poll_input(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_read_ready(cx).map(drop)
    }
}

impl SessionStream for UnixStream {
    fn left(&self) -> Left {
        let both = Interest::READABLE | Interest::WRITABLE;
        Left::of(self.ready(both).now_or_never().as_ref())
    }

    fn set_user_timeout(&self, _timeout: Option<Duration>) {}

    fn end_socket(&self) {
        let _ = SockRef::from(self).shutdown(Shutdown::Write);
    }

    fn has_input(&self) -> bool {
        socket_has_input(&SockRef::from(self))
    }

    fn poll_input(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_read_ready(cx).map(drop)
    }
}

impl<S: SessionStream> SessionStream for Box<ClientTlsStream<S>> {
    fn left(&self) -> Left {
        self.get_ref().0.get_ref().left()
    }

    fn set_user_timeout(&self, timeout: Option<Duration>) {
        self.get_ref().0.get_ref().set_user_timeout(timeout);
    }

    fn end_socket(&self) {
        self.get_ref().0.get_ref().end_socket();
    }

    fn has_input(&self) -> bool {
        let (socket, tls) = self.get_ref();
        has_read_ahead(tls.wants_read()) || socket.get_ref().has_input()
    }

    fn poll_input(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.get_ref().0.get_ref().poll_input(cx)
    }
}

impl<S: SessionStream> SessionStream for Box<client::TlsStream<S>> {
    fn left(&self) -> Left {
        self.get_ref().0.left()
    }

    fn set_user_timeout(&self, timeout: Option<Duration>) {
        self.get_ref().0.set_user_timeout(timeout);
    }

    fn end_socket(&self) {
        self.get_ref().0.end_socket();
    }

    fn has_input(&self) -> bool {
        let (socket, tls) = self.get_ref();
        has_read_ahead(tls.wants_read()) || socket.has_input()
    }

    fn poll_input(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.get_ref().0.poll_input(cx)
    }
}

impl SessionStream for ClientStream {
    fn left(&self) -> Left {
        match self {
            Self::Plain(stream) => stream.left(),
            Self::Tls(stream) => stream.left(),
            Self::Unix(stream) => stream.left(),
        }
    }

    fn set_user_timeout(&self, timeout: Option<Duration>) {
        match self {
            Self::Plain(stream) => stream.set_user_timeout(timeout),
            Self::Tls(stream) => stream.set_user_timeout(timeout),
            Self::Unix(stream) => stream.set_user_timeout(timeout),
        }
    }

    fn end_socket(&self) {
        match self {
            Self::Plain(stream) => stream.end_socket(),
            Self::Tls(stream) => stream.end_socket(),
            Self::Unix(stream) => stream.end_socket(),
        }
    }

    fn has_input(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.has_input(),
            Self::Tls(stream) => stream.has_input(),
            Self::Unix(stream) => stream.has_input(),
        }
    }

    fn poll_input(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Plain(stream) => stream.poll_input(cx),
            Self::Tls(stream) => stream.poll_input(cx),
            Self::Unix(stream) => stream.poll_input(cx),
        }
    }
}

impl SessionStream for ServerStream {
    fn left(&self) -> Left {
        self.tcp().left()
    }

    fn set_user_timeout(&self, timeout: Option<Duration>) {
        set_user_timeout(self.tcp(), timeout);
    }

    fn end_socket(&self) {
        self.tcp().end_socket();
    }

    fn has_input(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.has_input(),
            Self::Tls(stream) => stream.has_input(),
        }
    }

    fn poll_input(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.tcp().poll_input(cx)
    }
}

impl<S: SessionStream> SessionStream for OrderlyStream<S> {
    fn left(&self) -> Left {
        S::left(self)
    }

    fn set_user_timeout(&self, timeout: Option<Duration>) {
        S::set_user_timeout(self, timeout);
    }

    fn end_socket(&self) {
        S::end_socket(self);
    }

    fn has_input(&self) -> bool {
        S::has_input(self)
    }

    fn poll_input(&self, cx: &mut Context<'_>) -> Poll<()> {
        S::poll_input(self, cx)
    }
}
