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
use tokio::io::ReadBuf;
use tokio::time::Instant;

use super::direction::{Direction, Look};
use super::end::{Cause, End, Fate, Order, Reason};
use super::registry::{Activity, SessionEntry, Ticket, Traffic};
use super::sent::Sent;
use super::stream::SessionStream;
use crate::backend::ServerStream;
use crate::cluster::snapshot::MemberName;
use crate::cluster::{ClusterHandle, Evidence};
use crate::frontend::ClientStream;
use crate::routing::{EndReason, GrantedRole};
use crate::wire::observe::{ClientObserver, ServerEvent, ServerObserver};
use crate::wire::pending::{PendingReplies, TransactionStatus};

/// Bytes read at once.
const WORKER_BUFFER: usize = 64 * 1024;
/// Between two hints of one session that its server may have been demoted.
const HINT_EVERY: Duration = Duration::from_secs(1);
/// Turns of both directions in one wake-up, before other sessions of the worker get theirs.
pub(super) const TURNS: usize = 16;

/// A worker's one buffer, leased to a session for the length of a wake-up. Only that worker's thread uses it, so
/// the lock is never contended.
#[derive(Debug)]
pub struct WorkerBuffer(pub(super) Mutex<Box<[u8]>>);

impl Default for WorkerBuffer {
    fn default() -> Self {
        Self(Mutex::new(vec![0; WORKER_BUFFER].into_boxed_slice()))
    }
}

/// A server connection as the relay holds it: it can be taken away, and another put in its place.
#[derive(Debug)]
pub struct Attached<S = ServerStream> {
    pub stream: S,
    pub member: MemberName,
}

/// A session between its login and its end.
#[derive(Debug)]
pub struct Relay<C = ClientStream, S = ServerStream> {
    client: C,
    server: Attached<S>,
    to_server: Direction,
    to_client: Direction,
    from_client: ClientObserver,
    from_server: ServerObserver,
    /// What of the client's stream has been written to the server.
    sent: Sent,
    pending: PendingReplies,
    /// While the client is not read.
    look: Look,
    ticket: Ticket,
    granted: GrantedRole,
    cluster: ClusterHandle,
    worker_buffer: Arc<WorkerBuffer>,
    /// Whom the registry wakes; kept to see whether it is still the right one.
    registered: Option<Waker>,
    /// SQLSTATE of the server's own last word.
    fatal: Option<[u8; 5]>,
    /// When a session's 25006 was last passed on.
    read_only_told: Option<Instant>,
    /// What was read behind the login cannot be followed.
    unreadable: Option<Box<str>>,
    /// The server has been told that nothing more comes.
    end_passed_on: bool,
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

/// What is left when a relay has ended.
#[derive(Debug)]
pub struct Ended<C = ClientStream, S = ServerStream> {
    pub end: End,
    pub parting: Parting<C, S>,
    pub traffic: Traffic,
    /// The session is in the registry until its log line is written.
    pub ticket: Ticket,
}

/// Enough to say goodbye to the client.
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

/// What a relay is made of.
#[derive(Debug)]
pub struct Parts<C = ClientStream, S = ServerStream> {
    pub client: C,
    pub server: Attached<S>,
    /// Read from the server behind its login.
    pub leftover: Bytes,
    pub ticket: Ticket,
    pub granted: GrantedRole,
    pub cluster: ClusterHandle,
    pub worker_buffer: Arc<WorkerBuffer>,
    pub replication: bool,
}

impl<C: SessionStream, S: SessionStream> Relay<C, S> {
    pub fn new(parts: Parts<C, S>) -> Self {
        let Parts {
            client,
            server,
            leftover,
            ticket,
            granted,
            cluster,
            worker_buffer,
            replication,
        } = parts;
        let mut relay = Self {
            client,
            server,
            to_server: Direction::default(),
            to_client: Direction::default(),
            from_client: ClientObserver::default(),
            from_server: ServerObserver::default(),
            sent: Sent::default(),
            look: Look::default(),
            pending: PendingReplies::new(TransactionStatus::Idle),
            ticket,
            granted,
            cluster,
            worker_buffer,
            registered: None,
            fatal: None,
            read_only_told: None,
            unreadable: None,
            end_passed_on: false,
            replication,
            traffic: Traffic::default(),
        };
        if !leftover.is_empty() {
            match relay.observe_server(&leftover) {
                Ok(()) => {
                    relay.traffic.bytes_down += leftover.len() as u64;
                    relay.to_client.rest = leftover;
                }
                Err(what) => relay.unreadable = Some(what.into()),
            }
        }
        relay
    }

    /// Relays until the session ends.
    pub async fn run(mut self) -> Ended<C, S> {
        let mut cause = std::future::poll_fn(|cx| self.poll(cx)).await;
        if matches!(cause, Cause::Ordered(_)) && self.fate() == Fate::Unknown {
            // Lets the driver learn what the kernel has.
            tokio::task::yield_now().await;
            let said = std::future::poll_fn(|cx| Poll::Ready(self.hear_out(cx))).await;
            cause = said.unwrap_or(cause);
        }
        let fate = self.fate();
        Ended {
            end: End { cause, fate },
            parting: Parting {
                client: self.client,
                server: self.server.stream,
                from_server: self.from_server,
                ready: self.pending.ready_after_error(),
                rest: self.to_client.rest,
            },
            traffic: self.traffic,
            ticket: self.ticket,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Cause> {
        if let Some(what) = self.unreadable.take() {
            return Poll::Ready(Cause::ServerProtocol(what.into()));
        }
        self.listen_for_orders(cx);
        let worker_buffer = Arc::clone(&self.worker_buffer);
        let mut buffer = worker_buffer.0.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = self.turns(cx, &mut buffer);
        self.entry().record(self.traffic);
        outcome
    }

    fn turns(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Cause> {
        for _ in 0..TURNS {
            if let Some(cause) = self.obey() {
                return Poll::Ready(cause);
            }
            let to_server = self.turn_to_server(cx, buffer);
            let to_client = self.turn_to_client(cx, buffer);
            match (to_server, to_client) {
                (Turn::End(cause), _) | (_, Turn::End(cause)) => return Poll::Ready(cause),
                (Turn::Blocked, Turn::Blocked) => {
                    self.show_activity();
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

    /// Both directions have come to rest: shows what the session does.
    fn show_activity(&self) {
        let entry = self.entry();
        if !self.pending.is_idle() {
            if !entry.in_flight() {
                entry.begin_request();
            }
            return;
        }
        let activity = if self.pending.between_transactions() {
            Activity::Idle
        } else {
            Activity::InTransaction
        };
        if entry.activity() != activity {
            entry.rest(activity);
        }
    }

    fn entry(&self) -> &Arc<SessionEntry> {
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
        if self.pending.stream_has_ended() {
            return Some(Cause::ServerClosed);
        }
        match order {
            Order::Now(reason) => Some(Cause::Ordered(reason)),
            Order::AtBoundary(reason) if self.replication || self.is_between_transactions() => {
                Some(Cause::Ordered(reason))
            }
            Order::AtBoundary(_) => None,
        }
    }

    /// A session is cut with a request under way: what the server has said meanwhile may be the answer, or its own last
    /// word. Bounded, as the server may go on for ever.
    fn hear_out(&mut self, cx: &mut Context<'_>) -> Option<Cause> {
        let worker_buffer = Arc::clone(&self.worker_buffer);
        let mut buffer = worker_buffer.0.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..TURNS {
            match self.turn_to_client(cx, &mut buffer) {
                Turn::Progress if self.fate() == Fate::Unknown && self.fatal.is_none() => {}
                // Why the connection is lost, the order knows better.
                Turn::Progress | Turn::Blocked | Turn::End(Cause::ServerGone) => break,
                Turn::End(cause) => return Some(cause),
            }
        }
        let is_said = self.from_server.at_boundary();
        self.fatal
            .filter(|_| is_said)
            .map(|code| Cause::ServerFatal { code })
    }

    /// What is known of the client's last request.
    fn fate(&self) -> Fate {
        if self.fatal.is_some() {
            // The server's own last word, to which there is nothing to add.
            return Fate::Settled;
        }
        let reached = |outstanding| outstanding > 0 && outstanding > self.sent.unsent(&self.to_server.rest);
        match self.pending.outstanding() {
            None => Fate::Unknown,
            Some(outstanding) if reached(outstanding) => Fate::Unknown,
            Some(_) if self.pending.has_executed() => Fate::Unsynced,
            Some(_) if self.pending.is_open() => Fate::RolledBack,
            Some(_) => Fate::Settled,
        }
    }

    fn is_between_transactions(&self) -> bool {
        self.pending.between_transactions()
            && self.from_client.at_boundary()
            && self.from_server.at_boundary()
            && self.to_server.rest.is_empty()
            && self.to_client.rest.is_empty()
    }

    /// Client to server.
    fn turn_to_server(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Turn {
        if self.to_server.broken || self.from_client.terminated() && self.to_server.is_empty() {
            return self.turn_away(cx, buffer);
        }
        let kept = self.to_server.rest.clone();
        let drained = self.to_server.drain(Pin::new(&mut self.server.stream), cx);
        if !kept.is_empty() {
            self.sent.drained(&kept[..kept.len() - self.to_server.rest.len()]);
        }
        match drained {
            Poll::Pending => return self.held_back(cx),
            Poll::Ready(Err(_)) => return self.server_takes_nothing(),
            Poll::Ready(Ok(())) => {}
        }
        if self.from_client.terminated() {
            return Turn::Progress;
        }
        if self.to_server.ended {
            return self.pass_end_on(cx);
        }
        if self.is_full() {
            let turn = self.held_back(cx);
            if self.is_full() || matches!(turn, Turn::End(_)) {
                return turn;
            }
        }
        self.look.rest();
        let mut read = ReadBuf::new(buffer);
        match Pin::new(&mut self.client).poll_read(cx, &mut read) {
            Poll::Pending => return Turn::Blocked,
            Poll::Ready(Err(_)) => return Turn::End(self.client_gone()),
            Poll::Ready(Ok(())) => {}
        }
        let data = read.filled();
        if data.is_empty() {
            self.to_server.ended = true;
            return Turn::Progress;
        }
        if self.pending.is_idle() && self.to_client.unread > 0 {
            // It asks anew, so it has read all answers.
            let limit = self.user_timeout();
            self.to_client.has_read(&self.client, limit);
        }
        let limit = self.user_timeout();
        self.to_server.count(data.len(), &self.server.stream, limit);
        let before = self.from_client;
        let data = match self.observe_client(data) {
            Ok(length) => &data[..length],
            Err(what) => {
                // None of it has reached the server.
                self.to_server.rest = Bytes::copy_from_slice(data);
                return Turn::End(Cause::ClientProtocol(what));
            }
        };
        self.traffic.bytes_up += data.len() as u64;
        if !self.entry().in_flight() && !self.pending.is_idle() {
            // Before the server can know of the request, so that no cancel for it is taken for a late one.
            self.entry().begin_request();
        }
        let forwarded = self
            .to_server
            .forward(Pin::new(&mut self.server.stream), cx, data);
        self.sent
            .forwarded(before, self.from_client, data, self.to_server.rest.len());
        match forwarded {
            Ok(()) => Turn::Progress,
            Err(_) => self.server_takes_nothing(),
        }
    }

    /// Nothing more goes to the server: the client has said goodbye, or the server takes nothing. What the client sends
    /// is dropped, so that its leaving is seen. What was asked before is still answered.
    fn turn_away(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Turn {
        if self.to_server.ended {
            return self.pass_end_on(cx);
        }
        let mut read = ReadBuf::new(buffer);
        match Pin::new(&mut self.client).poll_read(cx, &mut read) {
            Poll::Pending => Turn::Blocked,
            Poll::Ready(Err(_)) => Turn::End(self.client_gone()),
            Poll::Ready(Ok(())) => {
                self.to_server.ended = read.filled().is_empty();
                Turn::Progress
            }
        }
    }

    /// Too much waits for answers. Of a client that has closed its side no more comes than the kernel has: that is read, so
    /// that its end can be passed on.
    fn is_full(&self) -> bool {
        self.pending.full() && !(self.look.has_closed() && self.pending.has_room())
    }

    /// The client is not read, as the server has to take or to answer something first.
    fn held_back(&mut self, cx: &mut Context<'_>) -> Turn {
        match self.look.poll_broken(cx, &self.client) {
            Poll::Ready(()) => Turn::End(self.client_gone()),
            Poll::Pending => Turn::Blocked,
        }
    }

    /// Server to client.
    fn turn_to_client(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Turn {
        match self.to_client.drain(Pin::new(&mut self.client), cx) {
            Poll::Pending => return Turn::Blocked,
            Poll::Ready(Err(_)) => return Turn::End(self.client_gone()),
            Poll::Ready(Ok(())) => {}
        }
        if self.to_client.ended {
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
            self.to_client.ended = true;
            return Turn::Progress;
        }
        if let Err(what) = self.observe_server(data) {
            // The messages before the broken one are the client's; what is not taken now goes before our last word.
            let whole = &data[..self.from_server.valid()];
            return match self.to_client.forward(Pin::new(&mut self.client), cx, whole) {
                Ok(()) => Turn::End(Cause::ServerProtocol(what)),
                Err(_) => Turn::End(self.client_gone()),
            };
        }
        self.traffic.bytes_down += data.len() as u64;
        let limit = self.user_timeout();
        self.to_client.count(data.len(), &self.client, limit);
        if self.to_server.unread > 0 && self.pending.is_idle() {
            self.to_server.has_read(&self.server.stream, limit);
        }
        match self.to_client.forward(Pin::new(&mut self.client), cx, data) {
            Ok(()) => Turn::Progress,
            Err(_) => Turn::End(self.client_gone()),
        }
    }

    fn user_timeout(&self) -> Option<Duration> {
        self.cluster.config().server.tcp_user_timeout
    }

    /// The server's socket refuses our bytes: it has ended, and what it said last is still to be read. What it has not
    /// taken stays, as it says what has not reached the server.
    fn server_takes_nothing(&mut self) -> Turn {
        self.to_server.broken = true;
        Turn::Progress
    }

    /// Passes the client's end on. The server finishes, answers and closes (case 52); with
    /// `client_connection_check_interval` it ends what it runs for nobody.
    fn pass_end_on(&mut self, cx: &mut Context<'_>) -> Turn {
        if self.end_passed_on {
            return Turn::Blocked;
        }
        if self.to_server.broken || self.from_client.terminated() {
            // Behind a goodbye there is nothing, not even TLS's own: a server that closes with something unread resets
            // the connection, and answers are lost.
            self.server.stream.end_socket();
        } else if Pin::new(&mut self.server.stream).poll_shutdown(cx).is_pending() {
            return Turn::Blocked;
        }
        self.end_passed_on = true;
        self.to_server.broken = true;
        Turn::Progress
    }

    fn client_gone(&self) -> Cause {
        if self.from_client.terminated() {
            Cause::ClientTerminated
        } else {
            Cause::ClientGone
        }
    }

    fn server_gone(&self) -> Cause {
        if self.from_client.terminated() {
            return Cause::ClientTerminated;
        }
        if let Some(code) = self.fatal {
            return Cause::ServerFatal { code };
        }
        if self.to_server.ended {
            return self.client_gone();
        }
        self.cluster.evidence(&self.server.member, Evidence::Terminated);
        if self.pending.stream_has_ended() {
            Cause::ServerClosed
        } else {
            Cause::ServerGone
        }
    }

    /// Says how many of the bytes are the server's.
    fn observe_client(&mut self, data: &[u8]) -> Result<usize, String> {
        let Self {
            from_client, pending, ..
        } = self;
        let mut fault = None;
        let length = from_client
            .feed(data, |tag, _length| {
                // `full` is asked before each read: one read more than the bound is what may come on top.
                if let Err(error) = pending.client(tag) {
                    fault.get_or_insert(error.to_string());
                }
            })
            .map_err(|error| error.to_string())?;
        fault.map_or(Ok(length), Err)
    }

    fn observe_server(&mut self, data: &[u8]) -> Result<(), String> {
        let Self {
            from_server,
            pending,
            fatal,
            read_only_told,
            ticket,
            cluster,
            server,
            granted,
            ..
        } = self;
        let entry = ticket.entry();
        from_server
            .feed(data, |event| {
                pending.server(&event);
                if let ServerEvent::ReadyForQuery(_) = event {
                    // What was sent behind it is another request: a cancel for the one before must not hit it.
                    if !pending.is_idle() {
                        entry.begin_request();
                    } else if pending.between_transactions() {
                        entry.rest(Activity::Idle);
                    } else {
                        entry.rest(Activity::InTransaction);
                    }
                }
                match event {
                    ServerEvent::Error(report) => {
                        let code = report.code().unwrap_or_default();
                        if report.is_fatal() {
                            *fatal = Some(code);
                        }
                        match evidence_of(code, report.is_fatal(), *granted) {
                            // A client can have as many of these as it likes.
                            Some(Evidence::ReadOnlySeen) if !due(read_only_told) => {}
                            Some(evidence) => cluster.evidence(&server.member, evidence),
                            None => {}
                        }
                    }
                    ServerEvent::Parameter {
                        name: b"in_hot_standby",
                        value: b"off",
                    } if *granted == GrantedRole::ReadOnly => {
                        cluster.evidence(&server.member, Evidence::Promoted);
                        entry.order(Order::Now(Reason::Role(EndReason::Promoted(
                            server.member.clone(),
                        ))));
                    }
                    _ => {}
                }
            })
            .map_err(|error| error.to_string())?;
        self.traffic.transactions = self.pending.transactions();
        Ok(())
    }
}

/// What a server's error says of its fitness: never more than that a probe should look. An ERROR may have any SQLSTATE a
/// client likes (`RAISE … USING ERRCODE`), and so may a FATAL (`plpy.fatal`); the harmless 25006 is expected on a standby.
fn evidence_of(code: [u8; 5], is_fatal: bool, granted: GrantedRole) -> Option<Evidence> {
    match (&code, is_fatal, granted) {
        (b"57P01" | b"57P02" | b"57P03", true, _) => Some(Evidence::Terminated),
        (b"25006", _, GrantedRole::ReadWrite) => Some(Evidence::ReadOnlySeen),
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

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
