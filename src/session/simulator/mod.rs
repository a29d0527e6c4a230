//! A session in memory, with a scripted peer at either end, on a paused clock.
//!
//! The test decides what happens next, byte by byte: a peer writes, reads, ends its side or leaves;
//! an order comes; time passes. After each of these the session runs until it waits
//! ([`Simulation::settle`]), so that a test waits for no time and two runs do the same.

mod attach;
mod conversation;
mod forward;
mod play;
mod relay;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::counts::RouteCounts;
use super::end::{End, Order};
use super::finish;
use super::memory::{self, MemoryStream};
use super::registry::{Registry, SessionEntry};
use super::relay::Ended;

/// The longest a session may take to end once its peers have left or do not listen.
const END_WITHIN: Duration = Duration::from_secs(5);
/// Steps of time in which its end is awaited.
const TICK: Duration = Duration::from_millis(50);

/// A frame of the protocol.
pub(super) fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("it is short");
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

/// The types of the messages; of an error severity and SQLSTATE, of `Z` its status.
pub(super) fn short(mut bytes: &[u8]) -> String {
    let mut said = Vec::new();
    while let Some((&[tag, a, b, c, d], rest)) = bytes.split_first_chunk::<5>() {
        let (body, next) = rest.split_at(u32::from_be_bytes([a, b, c, d]) as usize - 4);
        let tag = char::from(tag);
        let fields = crate::wire::frame::ErrorFields::of_prefix(body);
        said.push(match tag {
            'E' => format!("{} {}", fields.severity, fields.code),
            'Z' => format!("Z{}", char::from(body[0])),
            _ => tag.to_string(),
        });
        bytes = next;
    }
    assert!(bytes.is_empty(), "torn: {}", bytes.escape_ascii());
    said.join(" ")
}

#[derive(Debug, Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How a peer leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// What it has said still arrives.
    Closes,
    /// The connection breaks.
    Resets,
}

/// One peer of the session.
struct Peer {
    /// `None` once it has left.
    stream: Option<MemoryStream>,
    /// All it has read.
    heard: Vec<u8>,
    /// It reads whatever comes.
    listens: bool,
    /// The router has ended its side, or has broken the connection.
    saw_end: bool,
}

impl Peer {
    fn new(stream: MemoryStream) -> Self {
        Self {
            stream: Some(stream),
            heard: Vec::new(),
            listens: true,
            saw_end: false,
        }
    }

    fn stream(&mut self) -> Pin<&mut MemoryStream> {
        Pin::new(self.stream.as_mut().expect("it has not left"))
    }

    /// Writes as much as there is room for, and says how much. Where the router listens no more
    /// that is nothing.
    fn say(&mut self, data: &[u8]) -> usize {
        let mut context = Context::from_waker(Waker::noop());
        match self.stream().poll_write(&mut context, data) {
            Poll::Ready(Ok(written)) => written,
            Poll::Ready(Err(_)) | Poll::Pending => 0,
        }
    }

    /// Says no more, and goes on listening.
    fn end(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        assert!(self.stream().poll_shutdown(&mut context).is_ready());
    }

    fn leave(&mut self, how: Leaving) {
        let stream = self.stream.take();
        if let (Leaving::Resets, Some(stream)) = (how, stream) {
            stream.reset();
        }
    }

    /// Reads what is there.
    fn hear(&mut self) {
        let mut buffer = [0; 4096];
        let mut context = Context::from_waker(Waker::noop());
        while let Some(stream) = self.stream.as_mut().filter(|_| !self.saw_end) {
            let mut read = ReadBuf::new(&mut buffer);
            match Pin::new(stream).poll_read(&mut context, &mut read) {
                Poll::Ready(Ok(())) if !read.filled().is_empty() => {
                    self.heard.extend_from_slice(read.filled());
                }
                Poll::Ready(Ok(()) | Err(_)) => self.saw_end = true,
                Poll::Pending => return,
            }
        }
    }
}

/// A relay of either mode and what follows it, to the end of the session.
pub(super) struct Simulation {
    client: Peer,
    server: Peer,
    entry: Arc<SessionEntry>,
    /// The session is in it until it has ended.
    registry: Arc<Registry>,
    session: Pin<Box<dyn Future<Output = End>>>,
    woken: Arc<Woken>,
    end: Option<End>,
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation")
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

impl Simulation {
    /// A session of `mode: postgres`.
    fn of_relay() -> Self {
        let (client, to_client) = memory::connection();
        let (to_server, server) = memory::connection();
        let registry = Arc::default();
        let (mut relay, entry) = memory::relay_in(&registry, to_client, to_server, false);
        let session = async move {
            let cause = relay.run().await;
            let Ended {
                end, parting, ticket, ..
            } = relay.leave(cause).end();
            drop(ticket);
            finish::part(parting, &end, &RouteCounts::default()).await;
            end
        };
        Self::new((client, server), (registry, entry), session)
    }

    fn new(
        (client, server): (MemoryStream, MemoryStream),
        (registry, entry): (Arc<Registry>, Arc<SessionEntry>),
        session: impl Future<Output = End> + 'static,
    ) -> Self {
        Self {
            client: Peer::new(client),
            server: Peer::new(server),
            entry,
            registry,
            session: Box::pin(session),
            woken: Arc::new(Woken(AtomicBool::new(true))),
            end: None,
        }
    }

    /// Until the session waits for its peers, for an order or for time. Peers that listen read all
    /// that comes meanwhile.
    async fn settle(&mut self) {
        let waker = Waker::from(Arc::clone(&self.woken));
        loop {
            while self.woken.0.swap(false, Ordering::Relaxed) && self.end.is_none() {
                if let Poll::Ready(end) = self.session.as_mut().poll(&mut Context::from_waker(&waker)) {
                    self.end = Some(end);
                }
                for peer in [&mut self.client, &mut self.server] {
                    if peer.listens {
                        peer.hear();
                    }
                }
            }
            // What has yielded is woken by the runtime.
            tokio::task::yield_now().await;
            if self.end.is_some() || !self.woken.0.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    async fn pass(&mut self, time: Duration) {
        tokio::time::advance(time).await;
        self.settle().await;
    }

    async fn order(&mut self, order: Order) {
        self.entry.order(order);
        self.settle().await;
    }

    /// Plays the rest: a peer that sees the router end its side leaves, as drivers and servers do.
    /// The end must come in time.
    async fn ended(&mut self) -> End {
        let mut left = END_WITHIN;
        loop {
            self.settle().await;
            for peer in [&mut self.client, &mut self.server] {
                peer.hear();
                if peer.saw_end {
                    peer.leave(Leaving::Closes);
                }
            }
            if let Some(end) = &self.end {
                assert!(self.registry.is_empty(), "it has left the registry");
                return end.clone();
            }
            left = left.checked_sub(TICK).expect("the session ends in time");
            self.pass(TICK).await;
        }
    }
}
