//! The relay: forwards the bytes received, in both directions at once, and observes what it must know from frame
//! headers and a few small messages (cases 39–58).
//!
//! One task owns a session and polls both directions. A direction reads into the worker's buffer and writes from it;
//! only what the other side does not take at once is kept, and nothing more is read in that direction until it is
//! gone. So memory is bounded, one direction never waits for the other, and an idle session holds no buffer.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::direction::Direction;
use super::end::{Cause, Order, Reason};
use super::registry::{Entry, Ticket, Traffic};
use crate::backend::ServerStream;
use crate::cluster::snapshot::MemberName;
use crate::cluster::{ClusterHandle, Evidence};
use crate::frontend::ClientStream;
use crate::routing::{EndReason, Terms};
use crate::wire::account::{Account, TransactionStatus};
use crate::wire::observe::{ClientObserver, ServerEvent, ServerObserver};

/// Bytes read at once.
const LEASE: usize = 64 * 1024;
/// Between two hints of one session that its server may have been demoted.
const HINT_EVERY: Duration = Duration::from_secs(1);
/// Turns of both directions in one wake-up, before other sessions of the worker get theirs.
pub(super) const TURNS: usize = 16;

/// A worker's one buffer, leased to a session for the length of a wake-up. Only that worker's thread uses it, so
/// the lock is never contended.
#[derive(Debug)]
pub struct Lease(pub(super) Mutex<Box<[u8]>>);

impl Default for Lease {
    fn default() -> Self {
        Self(Mutex::new(vec![0; LEASE].into_boxed_slice()))
    }
}

/// A server connection as the relay holds it: it can be taken away, and another put in its place.
#[derive(Debug)]
pub struct Attached {
    pub stream: ServerStream,
    pub member: MemberName,
}

/// A session between its login and its end.
#[derive(Debug)]
pub struct Relay {
    client: ClientStream,
    server: Attached,
    up: Direction,
    down: Direction,
    from_client: ClientObserver,
    from_server: ServerObserver,
    account: Account,
    ticket: Ticket,
    cluster: ClusterHandle,
    lease: Arc<Lease>,
    /// Whom the registry wakes; kept to see whether it is still the right one.
    registered: Option<Waker>,
    /// SQLSTATE of the server's own last word.
    fatal: Option<[u8; 5]>,
    /// When a session's 25006 was last passed on.
    read_only_told: Option<Instant>,
    /// What was read behind the login cannot be followed.
    unreadable: Option<Box<str>>,
    terminated: bool,
    /// A replication stream never comes to a boundary, and its client can go on elsewhere where it stopped.
    replication: bool,
    traffic: Traffic,
}

/// What a turn of one direction came to.
enum Turn {
    Progress,
    Blocked,
    End(Cause),
}

/// What is left when a relay has ended: enough to say goodbye to the client.
#[derive(Debug)]
pub struct Ended {
    pub cause: Cause,
    pub client: ClientStream,
    /// Must still reach the client, in front of any message of ours.
    pub rest: Bytes,
    /// The stream to the client is between two frames: a message of ours may follow `rest`.
    pub at_boundary: bool,
    pub traffic: Traffic,
    /// Dropped last: the session is in the registry until its log line is written.
    pub ticket: Ticket,
}

/// What a relay is made of.
#[derive(Debug)]
pub struct Parts {
    pub client: ClientStream,
    pub server: Attached,
    /// Read from the server behind its login.
    pub leftover: Bytes,
    pub ticket: Ticket,
    pub cluster: ClusterHandle,
    pub lease: Arc<Lease>,
    pub replication: bool,
}

impl Relay {
    pub fn new(parts: Parts) -> Self {
        let Parts {
            client,
            server,
            leftover,
            ticket,
            cluster,
            lease,
            replication,
        } = parts;
        let mut relay = Self {
            client,
            server,
            up: Direction::default(),
            down: Direction::default(),
            from_client: ClientObserver::default(),
            from_server: ServerObserver::default(),
            account: Account::new(TransactionStatus::Idle),
            ticket,
            cluster,
            lease,
            registered: None,
            fatal: None,
            read_only_told: None,
            unreadable: None,
            terminated: false,
            replication,
            traffic: Traffic::default(),
        };
        if !leftover.is_empty() {
            match relay.observe_server(&leftover) {
                Ok(()) => {
                    relay.traffic.bytes_down += leftover.len() as u64;
                    relay.down.rest = leftover;
                }
                Err(what) => relay.unreadable = Some(what.into()),
            }
        }
        relay
    }

    /// Relays until the session ends.
    pub async fn run(mut self) -> Ended {
        let cause = std::future::poll_fn(|cx| self.poll(cx)).await;
        let at_boundary = self.from_server.at_boundary();
        Ended {
            cause,
            client: self.client,
            rest: self.down.rest,
            at_boundary,
            traffic: self.traffic,
            ticket: self.ticket,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Cause> {
        if let Some(what) = self.unreadable.take() {
            return Poll::Ready(Cause::ServerProtocol(what.into()));
        }
        self.listen_for_orders(cx);
        let lease = Arc::clone(&self.lease);
        let mut buffer = lease.0.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = self.turns(cx, &mut buffer);
        self.entry().record(self.traffic);
        outcome
    }

    fn turns(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Cause> {
        for _ in 0..TURNS {
            if let Some(cause) = self.obey() {
                return Poll::Ready(cause);
            }
            let up = self.turn_up(cx, buffer);
            let down = self.turn_down(cx, buffer);
            match (up, down) {
                (Turn::End(cause), _) | (_, Turn::End(cause)) => return Poll::Ready(cause),
                (Turn::Blocked, Turn::Blocked) => {
                    let in_flight = !self.account.is_idle();
                    if in_flight != self.entry().in_flight() {
                        self.entry().set_in_flight(in_flight);
                    }
                    let in_transaction = !in_flight && !self.account.between_transactions();
                    if in_transaction != self.entry().in_transaction() {
                        self.entry().set_in_transaction(in_transaction);
                    }
                    // An order may be due just now that both directions have come to rest.
                    return match self.obey() {
                        Some(cause) => Poll::Ready(cause),
                        None => Poll::Pending,
                    };
                }
                (Turn::Progress | Turn::Blocked, Turn::Progress | Turn::Blocked) => {}
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn entry(&self) -> &Arc<Entry> {
        self.ticket.entry()
    }

    fn listen_for_orders(&mut self, cx: &Context<'_>) {
        if !self
            .registered
            .as_ref()
            .is_some_and(|waker| waker.will_wake(cx.waker()))
        {
            self.registered = Some(cx.waker().clone());
            self.entry().wake_for_orders(cx.waker());
        }
    }

    /// Carries out an order that is due.
    fn obey(&self) -> Option<Cause> {
        let order = self.entry().ordered()?;
        if let (Some(code), true) = (self.fatal, self.from_server.at_boundary()) {
            // The server has said the last word already; a second one of ours would follow it.
            return Some(Cause::ServerFatal { code });
        }
        match order {
            Order::Now(reason) => Some(Cause::Ordered(reason)),
            Order::AtBoundary(reason) if self.replication || self.is_between_transactions() => {
                Some(Cause::Ordered(reason))
            }
            Order::AtBoundary(_) => None,
        }
    }

    fn is_between_transactions(&self) -> bool {
        self.account.between_transactions()
            && self.from_client.at_boundary()
            && self.from_server.at_boundary()
            && self.up.rest.is_empty()
            && self.down.rest.is_empty()
    }

    /// Client to server.
    fn turn_up(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Turn {
        if self.up.broken {
            return Turn::Blocked;
        }
        match self.up.drain(Pin::new(&mut self.server.stream), cx) {
            Poll::Pending => return Turn::Blocked,
            Poll::Ready(Err(_)) => return self.server_takes_nothing(),
            Poll::Ready(Ok(())) => {}
        }
        if self.terminated {
            // The server has the goodbye, answers what was asked before it and closes. Nothing may follow it, not even
            // TLS's own: a server that closes with something unread resets the connection, and answers are lost.
            self.up.broken = true;
            return Turn::Progress;
        }
        if self.up.ended {
            return self.say_goodbye(cx);
        }
        if self.account.full() {
            return Turn::Blocked;
        }
        let mut read = ReadBuf::new(buffer);
        match Pin::new(&mut self.client).poll_read(cx, &mut read) {
            Poll::Pending => return Turn::Blocked,
            Poll::Ready(Err(_)) => return Turn::End(self.client_gone()),
            Poll::Ready(Ok(())) => {}
        }
        let data = read.filled();
        if data.is_empty() {
            self.up.ended = true;
            return Turn::Progress;
        }
        if self.account.is_idle() && self.down.unread > 0 {
            // It asks anew, so it has read all answers.
            let limit = self.user_timeout();
            self.down.has_read(self.client.tcp(), limit);
        }
        let limit = self.user_timeout();
        self.up.count(data.len(), Some(self.server.stream.tcp()), limit);
        if let Err(what) = self.observe_client(data) {
            return Turn::End(Cause::ClientProtocol(what));
        }
        self.traffic.bytes_up += data.len() as u64;
        if !self.entry().in_flight() && !self.account.is_idle() {
            // Before the server can know of the request, so that no cancel for it is taken for a late one.
            self.entry().set_in_flight(true);
        }
        match self.up.forward(Pin::new(&mut self.server.stream), cx, data) {
            Ok(()) => Turn::Progress,
            Err(_) => self.server_takes_nothing(),
        }
    }

    /// Server to client.
    fn turn_down(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Turn {
        match self.down.drain(Pin::new(&mut self.client), cx) {
            Poll::Pending => return Turn::Blocked,
            Poll::Ready(Err(_)) => return Turn::End(self.client_gone()),
            Poll::Ready(Ok(())) => {}
        }
        if self.down.ended {
            return Turn::End(self.server_gone());
        }
        let mut read = ReadBuf::new(buffer);
        match Pin::new(&mut self.server.stream).poll_read(cx, &mut read) {
            Poll::Pending => return Turn::Blocked,
            Poll::Ready(Err(_)) => return Turn::End(self.server_gone()),
            Poll::Ready(Ok(())) => {}
        }
        let data = read.filled();
        if data.is_empty() {
            self.down.ended = true;
            return Turn::Progress;
        }
        if let Err(what) = self.observe_server(data) {
            // The messages before the broken one are the client's; what is not taken now goes before our last word.
            let whole = &data[..self.from_server.valid()];
            return match self.down.forward(Pin::new(&mut self.client), cx, whole) {
                Ok(()) => Turn::End(Cause::ServerProtocol(what)),
                Err(_) => Turn::End(self.client_gone()),
            };
        }
        self.traffic.bytes_down += data.len() as u64;
        let limit = self.user_timeout();
        self.down.count(data.len(), self.client.tcp(), limit);
        if self.up.unread > 0 && self.account.is_idle() {
            self.up.has_read(Some(self.server.stream.tcp()), limit);
        }
        match self.down.forward(Pin::new(&mut self.client), cx, data) {
            Ok(()) => Turn::Progress,
            Err(_) => Turn::End(self.client_gone()),
        }
    }

    fn user_timeout(&self) -> Option<Duration> {
        self.cluster.config().server.tcp_user_timeout
    }

    /// The server's socket refuses our bytes: it has ended, and what it said last is still to be read.
    fn server_takes_nothing(&mut self) -> Turn {
        self.up.broken = true;
        self.up.rest = Bytes::new();
        Turn::Progress
    }

    /// Passes the client's end on; the server finishes, answers and closes (case 52).
    fn say_goodbye(&mut self, cx: &mut Context<'_>) -> Turn {
        match Pin::new(&mut self.server.stream).poll_shutdown(cx) {
            Poll::Pending => Turn::Blocked,
            Poll::Ready(_) => {
                self.up.broken = true;
                Turn::Progress
            }
        }
    }

    fn client_gone(&self) -> Cause {
        if self.terminated {
            Cause::ClientTerminated
        } else {
            Cause::ClientGone {
                in_flight: !self.account.is_idle(),
            }
        }
    }

    fn server_gone(&self) -> Cause {
        if self.terminated {
            return Cause::ClientTerminated;
        }
        if let Some(code) = self.fatal {
            return Cause::ServerFatal { code };
        }
        if self.up.ended {
            return self.client_gone();
        }
        self.cluster.evidence(&self.server.member, Evidence::Terminated);
        Cause::ServerGone {
            in_flight: !self.account.is_idle(),
        }
    }

    fn observe_client(&mut self, data: &[u8]) -> Result<(), String> {
        let Self {
            from_client,
            account,
            terminated,
            ..
        } = self;
        let mut fault = None;
        from_client
            .feed(data, |tag, _length| {
                *terminated |= tag == b'X';
                // `full` is asked before each read: one read more than the bound is what may come on top.
                if let Err(error) = account.client(tag) {
                    fault.get_or_insert(error.to_string());
                }
            })
            .map_err(|error| error.to_string())?;
        fault.map_or(Ok(()), Err)
    }

    fn observe_server(&mut self, data: &[u8]) -> Result<(), String> {
        let Self {
            from_server,
            account,
            fatal,
            read_only_told,
            ticket,
            cluster,
            server,
            ..
        } = self;
        let entry = ticket.entry();
        from_server
            .feed(data, |event| {
                account.server(&event);
                if let ServerEvent::ReadyForQuery(_) = event {
                    // What was sent behind it is another request: a cancel for the one before must not hit it.
                    entry.set_in_flight(!account.is_idle());
                }
                match event {
                    ServerEvent::Error(report) => {
                        let code = report.code().unwrap_or_default();
                        if report.is_fatal() {
                            *fatal = Some(code);
                        }
                        match evidence_of(code, report.is_fatal(), entry.attachment.terms) {
                            // A client can have as many of these as it likes.
                            Some(Evidence::ReadOnlySeen) if !due(read_only_told) => {}
                            Some(evidence) => cluster.evidence(&server.member, evidence),
                            None => {}
                        }
                    }
                    ServerEvent::Parameter {
                        name: b"in_hot_standby",
                        value: b"off",
                    } if entry.attachment.terms == Terms::ReadOnly => {
                        cluster.evidence(&server.member, Evidence::Promoted);
                        entry.order(Order::Now(Reason::Role(EndReason::Promoted(
                            server.member.clone(),
                        ))));
                    }
                    _ => {}
                }
            })
            .map_err(|error| error.to_string())?;
        self.traffic.transactions = self.account.transactions();
        Ok(())
    }
}

/// What a server's error says of its fitness. An ERROR may have any SQLSTATE a client likes (`RAISE … USING
/// ERRCODE`), so that only FATAL is believed; the harmless 25006 is expected on a standby.
fn evidence_of(code: [u8; 5], is_fatal: bool, terms: Terms) -> Option<Evidence> {
    match (&code, is_fatal, terms) {
        (b"57P01", true, _) => Some(Evidence::Terminated),
        (b"57P02" | b"57P03", true, _) => Some(Evidence::ShutdownSeen),
        (b"25006", _, Terms::ReadWrite) => Some(Evidence::ReadOnlySeen),
        _ => None,
    }
}

/// Whether [`HINT_EVERY`] is over since the last time, which is now then.
fn due(last: &mut Option<Instant>) -> bool {
    let now = Instant::now();
    let is_due = last.is_none_or(|at| now.saturating_duration_since(at) >= HINT_EVERY);
    if is_due {
        *last = Some(now);
    }
    is_due
}
