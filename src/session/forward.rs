//! The relay of `mode: tcp`: bytes are passed on unread, in both directions at once, through the
//! worker's buffer. An idle session holds no buffer here either, and at most one read of each
//! direction is kept for a sink that is slow.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::close::close_with_error;
use super::direction::{Direction, Look};
use super::end::{Cause, End, Order};
use super::occupancy::Occupancy;
use super::registry::{SessionEntry, Ticket, Traffic};
use super::stream::SessionStream;
use super::turns::{self, Turn, Turns, TwoWay, WorkerBuffer};
use crate::cluster::snapshot::MemberName;
use crate::cluster::{ClusterHandle, Evidence};
use crate::frontend::ClientStream;

/// A client that speaks again after the server has been silent for this long has read what the
/// server sent, and the server what the client did: it is a new request.
const REST: Duration = Duration::from_millis(100);

/// A connection that is passed on.
#[derive(Debug)]
pub(super) struct Forward<C = ClientStream, S = TcpStream> {
    client: C,
    server: S,
    to_server: Direction,
    to_client: Direction,
    /// While the client is not read.
    look: Look,
    ticket: Ticket,
    member: MemberName,
    cluster: ClusterHandle,
    occupancy: Arc<Occupancy>,
    turns: Turns,
    /// When the server last said something; `None` once the client has spoken since.
    server_spoke: Option<Instant>,
    /// Writing to the server failed otherwise than because it had closed.
    server_lost: bool,
    traffic: Traffic,
}

/// What it is made of.
#[derive(Debug)]
pub(super) struct Parts<C = ClientStream, S = TcpStream> {
    pub client: C,
    pub server: S,
    /// What was read from the client to see what it wants.
    pub head: Bytes,
    pub ticket: Ticket,
    pub member: MemberName,
    pub cluster: ClusterHandle,
    pub occupancy: Arc<Occupancy>,
    pub worker_buffer: Arc<WorkerBuffer>,
}

/// What is left at the end.
#[derive(Debug)]
pub(super) struct Ended<C = ClientStream, S = TcpStream> {
    pub cause: Cause,
    pub client: C,
    pub server: S,
    pub traffic: Traffic,
    /// Dropped last: the session is in the registry until its log line is written.
    pub ticket: Ticket,
}

impl<C: SessionStream, S: SessionStream> Forward<C, S> {
    pub(super) fn new(parts: Parts<C, S>) -> Self {
        let Parts {
            client,
            server,
            head,
            ticket,
            member,
            cluster,
            occupancy,
            worker_buffer,
        } = parts;
        Self {
            client,
            server,
            traffic: Traffic {
                bytes_up: head.len() as u64,
                ..Traffic::default()
            },
            to_server: Direction::holding(head),
            to_client: Direction::default(),
            look: Look::default(),
            ticket,
            member,
            cluster,
            occupancy,
            turns: Turns::new(worker_buffer),
            server_spoke: None,
            server_lost: false,
        }
    }

    /// Passes bytes on until the session ends. When the server has closed, all it said has been
    /// passed on. Borrows, so that a session's task holds it once.
    pub(super) async fn run(&mut self) -> Cause {
        std::future::poll_fn(|cx| turns::poll(self, cx)).await
    }

    /// What is left, for the cause that [`Self::run`] gave.
    pub(super) fn end(self, cause: Cause) -> Ended<C, S> {
        Ended {
            cause,
            client: self.client,
            server: self.server,
            traffic: self.traffic,
            ticket: self.ticket,
        }
    }

    fn user_timeout(&self) -> Option<Duration> {
        self.cluster.config().server.tcp_user_timeout
    }

    /// Who owes what cannot be seen, so that this is a guess: while little goes back and forth,
    /// each has read what the other said. Where much went one way (a result, a pipeline, a COPY) it
    /// takes a rest to believe it. Guessed wrong, a peer that is gone is found out by the kernel's
    /// own limit, not ours, or one that is alive and does not read for `tcp_user_timeout` is cut
    /// off; the second is what [`REST`] keeps from happening.
    fn client_speaks(&mut self) {
        let Some(at) = self.server_spoke.take() else {
            return;
        };
        let is_new = at.elapsed() >= REST;
        let limit = self.user_timeout();
        if is_new || !self.to_server.patient {
            self.to_server.has_read(&self.server, limit);
        }
        if is_new || !self.to_client.patient {
            self.to_client.has_read(&self.client, limit);
        }
    }

    /// The server's socket refuses our bytes: it has ended, and what it said last is still to be
    /// read.
    fn server_takes_nothing(&mut self, error: &io::Error) -> Turn {
        self.server_lost |= error.kind() != io::ErrorKind::BrokenPipe;
        self.to_server.broken = true;
        self.to_server.rest = Bytes::new();
        Turn::Progress
    }

    fn server_ended(&self, is_lost: bool) -> Cause {
        if self.to_server.ended {
            return Cause::ClientGone;
        }
        if !is_lost {
            return Cause::ServerClosed;
        }
        self.cluster.evidence(&self.member, Evidence::Terminated);
        Cause::ServerGone
    }
}

impl<C: SessionStream, S: SessionStream> TwoWay for Forward<C, S> {
    type Stop = Cause;

    fn parts(&mut self) -> (&mut Turns, &Arc<SessionEntry>) {
        (&mut self.turns, self.ticket.entry())
    }

    fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// A boundary cannot be seen here: an order to end at one has no effect until it becomes an
    /// order to end at once.
    fn obey(&mut self) -> Option<Cause> {
        match self.ticket.entry().ordered() {
            Some(Order::Now(reason)) => Some(Cause::Ordered(reason)),
            Some(Order::AtBoundary(_) | Order::Move(_)) | None => None,
        }
    }

    /// Client to server; the client's end of sending is passed on, and the server may go on
    /// answering (docs/protocol.md, case 52).
    fn turn_to_server(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Turn {
        if self.to_server.broken {
            return Turn::Blocked;
        }
        match self.to_server.drain(Pin::new(&mut self.server), cx) {
            Poll::Pending => {
                return match self.look.poll_broken(cx, &self.client) {
                    Poll::Ready(()) => Turn::End(Cause::ClientGone),
                    Poll::Pending => Turn::Blocked,
                };
            }
            Poll::Ready(Err(error)) => return self.server_takes_nothing(&error),
            Poll::Ready(Ok(())) => {}
        }
        if self.to_server.ended {
            return match Pin::new(&mut self.server).poll_shutdown(cx) {
                Poll::Pending => Turn::Blocked,
                Poll::Ready(_) => {
                    self.to_server.broken = true;
                    Turn::Progress
                }
            };
        }
        self.look.rest();
        let mut read = ReadBuf::new(buffer);
        match Pin::new(&mut self.client).poll_read(cx, &mut read) {
            Poll::Pending => return Turn::Blocked,
            Poll::Ready(Err(_)) => return Turn::End(Cause::ClientGone),
            Poll::Ready(Ok(())) => {}
        }
        let data = read.filled();
        if data.is_empty() {
            self.to_server.ended = true;
            return Turn::Progress;
        }
        self.client_speaks();
        let limit = self.user_timeout();
        self.to_server.count(data.len(), &self.server, limit);
        self.traffic.bytes_up += data.len() as u64;
        match self.to_server.forward(Pin::new(&mut self.server), cx, data) {
            Ok(()) => Turn::Progress,
            Err(error) => self.server_takes_nothing(&error),
        }
    }

    /// Server to client. A server that closes closes both ways: nothing is to be passed up any
    /// more.
    fn turn_to_client(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Turn {
        match self.to_client.drain(Pin::new(&mut self.client), cx) {
            Poll::Pending => return Turn::Blocked,
            Poll::Ready(Err(_)) => return Turn::End(Cause::ClientGone),
            Poll::Ready(Ok(())) => {}
        }
        if self.to_client.ended {
            return Turn::End(self.server_ended(self.server_lost));
        }
        let mut read = ReadBuf::new(buffer);
        match Pin::new(&mut self.server).poll_read(cx, &mut read) {
            Poll::Pending => return Turn::Blocked,
            Poll::Ready(Err(_)) => return Turn::End(self.server_ended(true)),
            Poll::Ready(Ok(())) => {}
        }
        let data = read.filled();
        if data.is_empty() {
            self.to_client.ended = true;
            return Turn::Progress;
        }
        if self.traffic.bytes_down == 0 {
            let cluster = &self.ticket.entry().origin.cluster;
            self.occupancy.answered(cluster, &self.member);
        }
        self.server_spoke = Some(Instant::now());
        self.traffic.bytes_down += data.len() as u64;
        let limit = self.user_timeout();
        self.to_client.count(data.len(), &self.client, limit);
        match self.to_client.forward(Pin::new(&mut self.client), cx, data) {
            Ok(()) => Turn::Progress,
            Err(_) => Turn::End(Cause::ClientGone),
        }
    }
}

/// Closes the client's side. What the server sent last still arrives: a reset would lose it.
pub(super) async fn part(client: impl SessionStream, end: &End) {
    if let Cause::ServerClosed | Cause::ServerGone = end.cause {
        close_with_error(client, BytesMut::new()).await;
    }
}
