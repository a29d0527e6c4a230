//! The relay: forwards the bytes received, in both directions at once, and observes what it must
//! know from frame headers and a few small messages (docs/protocol.md, cases 39–58).
//!
//! One task owns a session and polls both directions. A direction reads into the worker's buffer
//! and writes from it; only what the other side does not take at once is kept, and nothing more is
//! read in that direction until it is gone. So memory is bounded, one direction never waits for the
//! other, and an idle session holds no buffer.

use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::ReadBuf;

use super::client::Client;
use super::end::{Cause, End, Fate, Order, Reason};
use super::link::Link;
use super::registry::{Activity, SessionEntry, Ticket, Traffic};
use super::stream::SessionStream;
use super::turns::{self, Turn, Turns, TwoWay, WorkerBuffer};
use crate::backend::ServerStream;
use crate::cluster::Evidence;
use crate::frontend::ClientStream;

use crate::wire::observe::ServerObserver;

/// Reads from a server whose session is cut.
const HEAR_OUT_TURNS: usize = 16;

/// A client and its server connection.
#[derive(Debug)]
pub struct Relay<C = ClientStream, S = ServerStream> {
    client: Client<C>,
    link: Link<S>,
    turns: Turns,
    /// What was read behind the login cannot be followed.
    unreadable: Option<Box<str>>,
    /// A replication stream never comes to a boundary, and its client can go on elsewhere where it
    /// stopped.
    replication: bool,
}

/// A session at rest between two transactions: nothing is owed, nothing is buffered, and both
/// streams are between two messages. The only moment at which its server connection may be taken
/// away, or another put in its place. Only the relay makes one.
#[derive(Debug)]
pub struct Boundary(());

/// How a session leaves its relay.
#[derive(Debug)]
pub enum Leaving<C = ClientStream, S = ServerStream> {
    /// At a boundary, where it was ordered to leave its server. Next: another server connection, or
    /// the end.
    Detached {
        detached: Box<Detached<C>>,
        link: Box<Link<S>>,
        reason: Reason,
    },
    Ended(Ended<C, S>),
}

/// A client without a server connection, between two transactions.
#[derive(Debug)]
pub struct Detached<C = ClientStream> {
    pub client: Client<C>,
    _boundary: Boundary,
}

impl<C> Detached<C> {
    /// The session ends here; everything that was asked is answered.
    pub fn end<S>(self, link: Link<S>, reason: Reason) -> Ended<C, S> {
        Ended::new(self.client, link, Cause::Ordered(reason))
    }
}

/// What is left when a session is over.
#[derive(Debug)]
pub struct Ended<C = ClientStream, S = ServerStream> {
    pub end: End,
    pub parting: Parting<C, S>,
    pub traffic: Traffic,
    /// The session is in the registry until its log line is written.
    pub ticket: Ticket,
}

impl<C, S> Leaving<C, S> {
    /// The end of a session that does not go on elsewhere.
    pub fn end(self) -> Ended<C, S> {
        match self {
            Self::Ended(ended) => ended,
            Self::Detached {
                detached,
                link,
                reason,
            } => detached.end(*link, reason),
        }
    }
}

impl<C, S> Ended<C, S> {
    fn new(client: Client<C>, link: Link<S>, cause: Cause) -> Self {
        Self {
            end: End {
                cause,
                fate: link.fate(),
            },
            parting: Parting {
                client: client.stream,
                ready: link.pending.ready_after_error(),
                server: link.stream,
                from_server: link.observer,
                rest: client.answers.rest,
            },
            traffic: client.traffic,
            ticket: client.ticket,
        }
    }
}

/// Enough to say the last words to the client.
#[derive(Debug)]
pub struct Parting<C = ClientStream, S = ServerStream> {
    pub client: C,
    /// For the rest of the message under way.
    pub server: S,
    pub from_server: ServerObserver,
    /// The status of the `Z` that would follow an error now.
    pub ready: Option<u8>,
    /// Must still reach the client, in front of any message of ours.
    pub rest: Bytes,
}

impl<C: SessionStream, S: SessionStream> Relay<C, S> {
    /// Puts a client and a server connection together. `leftover` was read from the server behind
    /// the ReadyForQuery that the client has; `replication`: the client asked for a replication
    /// connection.
    pub fn new(
        client: Client<C>,
        link: Link<S>,
        leftover: Bytes,
        worker_buffer: Arc<WorkerBuffer>,
        replication: bool,
    ) -> Self {
        let entry = client.ticket.entry();
        entry.place(Some(Arc::clone(&link.placement)));
        let mut relay = Self {
            client,
            link,
            turns: Turns::new(worker_buffer),
            unreadable: None,
            replication,
        };
        if !leftover.is_empty() {
            match relay.observe_server(&leftover) {
                Ok(()) => {
                    relay.client.traffic.bytes_down += leftover.len() as u64;
                    relay.client.answers.rest = leftover;
                }
                Err(what) => relay.unreadable = Some(what.into()),
            }
        }
        relay
    }

    /// Relays until the session has to leave its server. Borrows the relay, so that a session's
    /// task holds it once.
    pub async fn run(&mut self) -> Cause {
        let cause = std::future::poll_fn(|cx| self.poll(cx)).await;
        if !matches!(cause, Cause::Ordered(_)) || self.link.fate() != Fate::Unknown {
            return cause;
        }
        // Lets the driver learn what the kernel has.
        tokio::task::yield_now().await;
        let said = std::future::poll_fn(|cx| Poll::Ready(self.hear_out(cx))).await;
        said.unwrap_or(cause)
    }

    /// The next state, for the cause that [`Self::run`] gave.
    pub fn leave(self, cause: Cause) -> Leaving<C, S> {
        match (cause, self.boundary()) {
            (Cause::Ordered(reason), Some(boundary)) if !self.replication => {
                self.entry().place(None);
                Leaving::Detached {
                    detached: Box::new(Detached {
                        client: self.client,
                        _boundary: boundary,
                    }),
                    link: Box::new(self.link),
                    reason,
                }
            }
            (cause, _) => Leaving::Ended(Ended::new(self.client, self.link, cause)),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Cause> {
        if let Some(what) = self.unreadable.take() {
            return Poll::Ready(Cause::ServerProtocol(what.into()));
        }
        turns::poll(self, cx)
    }

    fn entry(&self) -> &Arc<SessionEntry> {
        self.client.ticket.entry()
    }

    /// A session is cut with a request under way: what the server has said meanwhile may be the
    /// answer, or its own last word. Bounded, as the server may go on for ever.
    fn hear_out(&mut self, cx: &mut Context<'_>) -> Option<Cause> {
        let worker_buffer = Arc::clone(&self.turns.worker_buffer);
        let mut buffer = worker_buffer.0.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..HEAR_OUT_TURNS {
            match self.turn_to_client(cx, &mut buffer) {
                Turn::Progress if self.link.fate() == Fate::Unknown && self.link.fatal.is_none() => {}
                // Why the connection is lost, the order knows better.
                Turn::Progress | Turn::Blocked | Turn::End(Cause::ServerGone) => break,
                Turn::End(cause) => return Some(cause),
            }
        }
        let is_said = self.link.observer.at_boundary();
        let fatal = self.link.fatal.filter(|_| is_said);
        fatal.map(|code| Cause::ServerFatal { code })
    }

    /// `None`: the session is not at a boundary.
    fn boundary(&self) -> Option<Boundary> {
        (self.link.is_at_boundary() && self.client.is_at_boundary()).then_some(Boundary(()))
    }

    /// Nothing more goes to the server: the client has said goodbye, or the server takes nothing.
    /// What the client sends is dropped, so that its leaving is seen. What was asked before is
    /// still answered.
    fn turn_away(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Turn {
        if self.link.to_server.ended {
            return self.pass_end_on(cx);
        }
        let mut read = ReadBuf::new(buffer);
        match Pin::new(&mut self.client.stream).poll_read(cx, &mut read) {
            Poll::Pending => Turn::Blocked,
            Poll::Ready(Err(_)) => Turn::End(self.client_gone()),
            Poll::Ready(Ok(())) => {
                self.link.to_server.ended = read.filled().is_empty();
                Turn::Progress
            }
        }
    }

    /// Too much waits for answers. Of a client that has closed its side no more comes than the
    /// kernel has: that is read, so that its end can be passed on.
    fn is_full(&self) -> bool {
        self.link.pending.full() && !(self.client.look.has_closed() && self.link.pending.has_room())
    }

    /// The client is not read, as the server has to take or to answer something first.
    fn held_back(&mut self, cx: &mut Context<'_>) -> Turn {
        match self.client.look.poll_broken(cx, &self.client.stream) {
            Poll::Ready(()) => Turn::End(self.client_gone()),
            Poll::Pending => Turn::Blocked,
        }
    }

    fn user_timeout(&self) -> Option<Duration> {
        self.link.cluster.config().server.tcp_user_timeout
    }

    /// The server's socket refuses our bytes: it has ended, and what it said last is still to be
    /// read. What it has not taken stays, as it says what has not reached the server.
    fn server_takes_nothing(&mut self) -> Turn {
        self.link.to_server.broken = true;
        Turn::Progress
    }

    /// Passes the client's end on. The server finishes, answers and closes (case 52); with
    /// `client_connection_check_interval` it ends what it runs for nobody.
    fn pass_end_on(&mut self, cx: &mut Context<'_>) -> Turn {
        if self.link.end_passed_on {
            return Turn::Blocked;
        }
        if self.link.to_server.broken || self.client.observer.terminated() {
            // Behind a goodbye there is nothing, not even TLS's own: a server that closes with
            // something unread resets the connection, and answers are lost.
            self.link.stream.end_socket();
        } else if Pin::new(&mut self.link.stream).poll_shutdown(cx).is_pending() {
            return Turn::Blocked;
        }
        self.link.end_passed_on = true;
        self.link.to_server.broken = true;
        Turn::Progress
    }

    fn client_gone(&self) -> Cause {
        if self.client.observer.terminated() {
            Cause::ClientTerminated
        } else {
            Cause::ClientGone
        }
    }

    fn server_gone(&self) -> Cause {
        if self.client.observer.terminated() {
            return Cause::ClientTerminated;
        }
        if let Some(code) = self.link.fatal {
            return Cause::ServerFatal { code };
        }
        if self.link.to_server.ended {
            return self.client_gone();
        }
        self.link
            .cluster
            .evidence(&self.link.placement.member, Evidence::Terminated);
        if self.link.pending.stream_has_ended() {
            Cause::ServerClosed
        } else {
            Cause::ServerGone
        }
    }

    /// Says how many of the bytes are the server's.
    fn observe_client(&mut self, data: &[u8]) -> Result<usize, String> {
        let (observer, pending) = (&mut self.client.observer, &mut self.link.pending);
        let mut fault = None;
        let length = observer
            .feed(data, |tag, _length| {
                // `full` is asked before each read: one read more than the bound is what may come
                // on top.
                if let Err(error) = pending.client(tag) {
                    fault.get_or_insert(error.to_string());
                }
            })
            .map_err(|error| error.to_string())?;
        fault.map_or(Ok(length), Err)
    }

    fn observe_server(&mut self, data: &[u8]) -> Result<(), String> {
        let entry = self.client.ticket.entry();
        let (observer, mut hearing) = self.link.hearing();
        observer
            .feed(data, |event| {
                hearing.hear(entry, &event);
            })
            .map_err(|error| error.to_string())?;
        self.client.traffic.transactions = self.link.pending.transactions();
        Ok(())
    }
}

impl<C: SessionStream, S: SessionStream> TwoWay for Relay<C, S> {
    type Stop = Cause;

    fn parts(&mut self) -> (&mut Turns, &Arc<SessionEntry>) {
        (&mut self.turns, self.client.ticket.entry())
    }

    fn traffic(&self) -> Traffic {
        self.client.traffic
    }

    fn obey(&mut self) -> Option<Cause> {
        let order = self.entry().ordered()?;
        if let (Some(code), true) = (self.link.fatal, self.link.observer.at_boundary()) {
            // The server has said the last word already; a second one of ours would follow it.
            return Some(Cause::ServerFatal { code });
        }
        if self.link.pending.stream_has_ended() {
            return Some(Cause::ServerClosed);
        }
        match order {
            Order::Now(reason) => Some(Cause::Ordered(reason)),
            Order::AtBoundary(reason) if self.replication || self.boundary().is_some() => {
                Some(Cause::Ordered(reason))
            }
            // Without a pool, or `resume`, it has no other.
            Order::AtBoundary(_) | Order::Move(_) => None,
        }
    }

    /// Shows what the session does.
    fn rested(&self) {
        let (entry, pending) = (self.entry(), &self.link.pending);
        if !pending.is_idle() {
            if !entry.in_flight() {
                entry.begin_request();
            }
            return;
        }
        let activity = if pending.between_transactions() {
            Activity::Idle
        } else {
            Activity::InTransaction
        };
        if entry.activity() != activity {
            entry.rest(activity);
        }
    }

    fn turn_to_server(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Turn {
        if self.link.to_server.broken || self.client.observer.terminated() && self.link.to_server.is_empty() {
            return self.turn_away(cx, buffer);
        }
        let kept = self.link.to_server.rest.clone();
        let drained = self.link.to_server.drain(Pin::new(&mut self.link.stream), cx);
        if !kept.is_empty() {
            self.link
                .sent
                .drained(&kept[..kept.len() - self.link.to_server.rest.len()]);
        }
        match drained {
            Poll::Pending => return self.held_back(cx),
            Poll::Ready(Err(_)) => return self.server_takes_nothing(),
            Poll::Ready(Ok(())) => {}
        }
        if self.client.observer.terminated() {
            return Turn::Progress;
        }
        if self.link.to_server.ended {
            return self.pass_end_on(cx);
        }
        if self.is_full() {
            let turn = self.held_back(cx);
            if self.is_full() || matches!(turn, Turn::End(_)) {
                return turn;
            }
        }
        self.client.look.rest();
        let mut read = ReadBuf::new(buffer);
        match Pin::new(&mut self.client.stream).poll_read(cx, &mut read) {
            Poll::Pending => return Turn::Blocked,
            Poll::Ready(Err(_)) => return Turn::End(self.client_gone()),
            Poll::Ready(Ok(())) => {}
        }
        let data = read.filled();
        if data.is_empty() {
            self.link.to_server.ended = true;
            return Turn::Progress;
        }
        if self.link.pending.is_idle() && self.client.answers.unread > 0 {
            // It asks anew, so it has read all answers.
            let limit = self.user_timeout();
            self.client.answers.has_read(&self.client.stream, limit);
        }
        let limit = self.user_timeout();
        self.link.to_server.count(data.len(), &self.link.stream, limit);
        let before = self.client.observer;
        let data = match self.observe_client(data) {
            Ok(length) => &data[..length],
            Err(what) => {
                // None of it has reached the server.
                self.link.to_server.rest = Bytes::copy_from_slice(data);
                return Turn::End(Cause::ClientProtocol(what));
            }
        };
        self.client.traffic.bytes_up += data.len() as u64;
        if !self.entry().in_flight() && !self.link.pending.is_idle() {
            // Before the server can know of the request, so that no cancel for it is taken for a
            // late one.
            self.entry().begin_request();
        }
        let forwarded = self
            .link
            .to_server
            .forward(Pin::new(&mut self.link.stream), cx, data);
        self.link
            .sent
            .forwarded(before, self.client.observer, data, self.link.to_server.rest.len());
        match forwarded {
            Ok(()) => Turn::Progress,
            Err(_) => self.server_takes_nothing(),
        }
    }

    fn turn_to_client(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Turn {
        match self.client.answers.drain(Pin::new(&mut self.client.stream), cx) {
            Poll::Pending => return Turn::Blocked,
            Poll::Ready(Err(_)) => return Turn::End(self.client_gone()),
            Poll::Ready(Ok(())) => {}
        }
        if self.client.answers.ended {
            return Turn::End(self.server_gone());
        }
        let mut read = ReadBuf::new(buffer);
        match Pin::new(&mut self.link.stream).poll_read(cx, &mut read) {
            Poll::Pending => return Turn::Blocked,
            Poll::Ready(Err(_)) => return Turn::End(self.server_gone()),
            Poll::Ready(Ok(())) => {}
        }
        let data = read.filled();
        if data.is_empty() {
            self.client.answers.ended = true;
            return Turn::Progress;
        }
        if let Err(what) = self.observe_server(data) {
            // The messages before the broken one are the client's; what is not taken now goes
            // before our last word.
            let whole = &data[..self.link.observer.valid()];
            return match self
                .client
                .answers
                .forward(Pin::new(&mut self.client.stream), cx, whole)
            {
                Ok(()) => Turn::End(Cause::ServerProtocol(what)),
                Err(_) => Turn::End(self.client_gone()),
            };
        }
        self.client.traffic.bytes_down += data.len() as u64;
        let limit = self.user_timeout();
        self.client.answers.count(data.len(), &self.client.stream, limit);
        if self.link.to_server.unread > 0 && self.link.pending.is_idle() {
            self.link.to_server.has_read(&self.link.stream, limit);
        }
        match self
            .client
            .answers
            .forward(Pin::new(&mut self.client.stream), cx, data)
        {
            Ok(()) => Turn::Progress,
            Err(_) => Turn::End(self.client_gone()),
        }
    }
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
