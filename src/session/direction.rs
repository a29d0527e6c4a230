//! One direction of a relay: what was read is written at once as far as the sink takes it, the rest
//! is kept, and nothing more is read until it is gone.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;
use tokio::time::{Instant, Sleep, sleep_until};

use super::stream::SessionStream;
use crate::frontend::Left;

/// Between two looks at a client that is not read although it has sent something.
///
/// A timer, because there is no event to wait for then. epoll reports the end of the stream as
/// readiness to read, tokio keeps that readiness while something is unread, and a second
/// registration of the same socket would cost each session a descriptor.
const LOOK: Duration = Duration::from_millis(250);

/// A peer takes this much without reading it: its kernel does. Beyond, silence may be a peer that
/// is busy.
const TAKEN_UNREAD: usize = 16 * 1024;

/// What one direction of a relay has read and not yet passed on.
#[derive(Debug, Default)]
pub(super) struct Direction {
    /// Read, observed and not yet written; nothing is read while this is not empty.
    pub(super) rest: Bytes,
    /// Written to TLS and not yet on the wire.
    unflushed: bool,
    /// Its source has ended.
    pub(super) ended: bool,
    /// Its sink takes nothing more.
    pub(super) broken: bool,
    /// Bytes written since its sink was last known to have read everything.
    pub(super) unread: usize,
    /// Its sink may be busy for as long as it likes: `TCP_USER_TIMEOUT` is off.
    pub(super) patient: bool,
}

impl Direction {
    /// With what has been read already.
    pub(super) fn holding(rest: Bytes) -> Self {
        Self {
            rest,
            ..Self::default()
        }
    }

    /// Something of the router's own, behind what is left over.
    pub(super) fn push(&mut self, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let mut rest = BytesMut::from(&self.rest[..]);
        rest.extend_from_slice(data);
        self.rest = rest.freeze();
        self.unflushed = true;
    }

    /// Nothing is left over, in TLS neither.
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty() && !self.unflushed
    }

    /// `TCP_USER_TIMEOUT` (`limit`) finds out a peer that is gone while something is on its way to
    /// it, but it also ends one that is alive and does not read: a server that waits for a lock, a
    /// client that takes its time. The two can be told apart only while less is on its way than a
    /// peer takes unread.
    pub(super) fn count(&mut self, bytes: usize, sink: &impl SessionStream, limit: Option<Duration>) {
        self.unread = self.unread.saturating_add(bytes);
        if self.unread > TAKEN_UNREAD && !self.patient && limit.is_some() {
            self.patient = true;
            sink.set_user_timeout(None);
        }
    }

    /// Its sink has read everything.
    pub(super) fn has_read(&mut self, sink: &impl SessionStream, limit: Option<Duration>) {
        self.unread = 0;
        if std::mem::take(&mut self.patient) {
            sink.set_user_timeout(limit);
        }
    }

    /// Writes what is left over. `Ready(Ok)`: nothing is left, the sink may be given more.
    pub(super) fn drain<W: AsyncWrite>(
        &mut self,
        mut sink: Pin<&mut W>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.rest.is_empty() {
            let written = ready!(sink.as_mut().poll_write(cx, &self.rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.rest.advance(written);
            self.unflushed = true;
        }
        // Gives back the memory: an empty `Bytes` may still hold on to its buffer.
        self.rest = Bytes::new();
        if self.unflushed {
            ready!(sink.poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes `data` as far as the sink takes it now, and keeps a copy of the rest, also of what it
    /// refuses.
    pub(super) fn forward<W: AsyncWrite>(
        &mut self,
        mut sink: Pin<&mut W>,
        cx: &mut Context<'_>,
        mut data: &[u8],
    ) -> io::Result<()> {
        while !data.is_empty() {
            let outcome = match sink.as_mut().poll_write(cx, data) {
                Poll::Ready(Ok(written @ 1..)) => {
                    data = &data[written..];
                    continue;
                }
                Poll::Ready(Ok(0)) => Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Err(error)) => Err(error),
                Poll::Pending => Ok(()),
            };
            self.rest = BytesMut::from(data).freeze();
            self.unflushed = true;
            return outcome;
        }
        // In clear this is free; in TLS records may be waiting for the socket.
        self.unflushed = sink.poll_flush(cx)?.is_pending();
        Ok(())
    }
}

/// Notices that a client leaves which is not read because the server has to take, or to answer,
/// something first. Costs nothing while the client is silent, however long that is.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// Until the next look; none while everything is read that the client has sent.
    timer: Option<Pin<Box<Sleep>>>,
    has_closed: bool,
}

impl Look {
    /// Ready once its connection is broken: what it sent before is not worth anything any more.
    pub(super) fn poll_broken(&mut self, cx: &mut Context<'_>, client: &impl SessionStream) -> Poll<()> {
        loop {
            if let Some(timer) = &mut self.timer {
                ready!(timer.as_mut().poll(cx));
                match client.left() {
                    Left::Broken => return Poll::Ready(()),
                    Left::Closed => self.has_closed = true,
                    Left::No => {}
                }
            }
            if client.poll_input(cx).is_pending() {
                self.timer = None;
                return Poll::Pending;
            }
            let next = Instant::now() + LOOK;
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(next),
                None => self.timer = Some(Box::pin(sleep_until(next))),
            }
        }
    }

    /// It was seen to send no more than what is not read yet.
    pub(super) fn has_closed(&self) -> bool {
        self.has_closed
    }

    /// The client is read again. An idle session has no timer, and a busy one does not make one for
    /// each read.
    pub(super) fn rest(&mut self) {
        self.timer.take_if(|timer| timer.is_elapsed());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::{advance, timeout};

    use super::super::memory;
    use super::*;

    /// Counts its wake-ups.
    #[derive(Debug, Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A look that is polled by hand.
    #[derive(Default)]
    struct Looking {
        look: Look,
        woken: Arc<Count>,
    }

    impl Looking {
        fn is_broken(&mut self, client: &impl SessionStream) -> bool {
            let waker = Waker::from(Arc::clone(&self.woken));
            let polled = self.look.poll_broken(&mut Context::from_waker(&waker), client);
            polled.is_ready()
        }

        fn is_woken(&self) -> bool {
            self.woken.0.swap(0, Ordering::Relaxed) > 0
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_not_looked_at_until_it_leaves() {
        let (client, router) = memory::connection();
        let mut looking = Looking::default();
        assert!(!looking.is_broken(&router));
        advance(Duration::from_hours(1)).await;
        assert!(!looking.is_woken());
        client.reset();
        assert!(looking.is_woken());
        assert!(!looking.is_broken(&router));
        advance(LOOK).await;
        assert!(looking.is_woken() && looking.is_broken(&router));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_has_sent_something_is_looked_at_until_that_is_read() {
        let (mut client, mut router) = memory::connection();
        let mut looking = Looking::default();
        client.write_all(b"more").await.unwrap();
        for _ in 0..3 {
            assert!(!looking.is_broken(&router));
            advance(LOOK).await;
            assert!(looking.is_woken());
        }
        router.read_exact(&mut [0; 4]).await.unwrap();
        assert!(!looking.is_broken(&router));
        advance(Duration::from_hours(1)).await;
        assert!(!looking.is_woken());
        client.write_all(b"more").await.unwrap();
        assert!(looking.is_woken() && !looking.is_broken(&router));
        client.reset();
        advance(LOOK).await;
        assert!(looking.is_woken() && looking.is_broken(&router));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_sends_no_more_is_no_broken_one() {
        let (mut client, router) = memory::connection();
        let mut looking = Looking::default();
        assert!(!looking.is_broken(&router) && !looking.look.has_closed());
        client.shutdown().await.unwrap();
        assert!(looking.is_woken() && !looking.is_broken(&router));
        advance(LOOK).await;
        assert!(!looking.is_broken(&router) && looking.look.has_closed());
    }

    /// The reactor tells it, with everything read that the client has sent.
    #[tokio::test]
    async fn a_socket_that_is_reset_is_broken() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut router, _) = listener.accept().await.unwrap();
        client.write_all(b"query").await.unwrap();
        let mut buffer = [0; 100];
        assert_eq!(router.read(&mut buffer).await.unwrap(), 5);
        let mut look = Look::default();
        let broken = std::future::poll_fn(|cx| look.poll_broken(cx, &router));
        let mut broken = std::pin::pin!(broken);
        assert!(timeout(LOOK * 2, broken.as_mut()).await.is_err());
        socket2::SockRef::from(&client)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(client);
        timeout(Duration::from_secs(20), broken).await.unwrap();
    }
}
