//! The turns of a session with a pool: what passes between the client and the server connection
//! that the session has now, if it has one.

use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};

use super::answers::{Amiss, Answers};
use super::connection::RoleState;
use super::metrics::{DiscardReason, TimeLimit};
use super::session::{Pause, PooledSession};
use super::statements::Rewriter;
use super::timers::{Doing, Expired};
use super::wary::Wary;
use crate::cluster::Evidence;
use crate::config::PoolMode;
use crate::session::end::{Cause, Fate, Order, Reason, SessionTimeout};
use crate::session::registry::{Activity, Phase, SessionEntry, Traffic};
use crate::session::stream::SessionStream;
use crate::session::turns::{Turn, Turns, TwoWay};
use crate::wire::message;
use crate::wire::pending::PendingReplies;

/// Reads from a server whose session is cut.
const HEAR_OUT_TURNS: usize = 16;

impl<C: SessionStream, S: SessionStream + Send + 'static> TwoWay for PooledSession<C, S> {
    type Stop = Pause;

    fn parts(&mut self) -> (&mut Turns, &Arc<SessionEntry>) {
        (&mut self.turns, self.client.ticket.entry())
    }

    fn traffic(&self) -> Traffic {
        self.client.traffic
    }

    fn obey(&mut self) -> Option<Pause> {
        let placement = self.lease.as_ref().map(|lease| &lease.link.placement);
        let order = self.entry().ordered_on(placement)?;
        let is_at_boundary = self.is_at_boundary();
        if let Some(lease) = &self.lease {
            if let (Some(code), true) = (lease.link.fatal, lease.link.observer.at_boundary()) {
                // The server has said the last word already; a second one of ours would follow it.
                return Some(Pause::End(Cause::ServerFatal { code }));
            }
            if order.reason().is_about_server() && self.can_move() {
                return Some(Pause::Discard(DiscardReason::Ordered));
            }
        }
        match order {
            Order::Now(reason) if reason.is_about_server() => {
                Some(Pause::Lost(Box::new(Cause::Ordered(reason))))
            }
            Order::Now(reason) => Some(Pause::End(Cause::Ordered(reason))),
            Order::AtBoundary(reason) if is_at_boundary => Some(Pause::End(Cause::Ordered(reason))),
            Order::AtBoundary(_) | Order::Move(_) => None,
        }
    }

    /// Shows what the session does.
    fn rested(&self) {
        let Some(lease) = &self.lease else { return };
        let (entry, pending) = (self.entry(), &lease.link.pending);
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

    fn turn_to_server(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Turn<Pause> {
        if let Some(turn) = self.drain_to_server(cx) {
            return turn;
        }
        if self.is_resumed && !self.is_waiting_for_answer() {
            self.is_resumed = false;
            let request = std::mem::take(&mut self.request);
            let turn = self.requests(cx, &request);
            self.time(true);
            return match turn {
                // It may have asked nothing of the server.
                Turn::Progress => self.at_boundary().map_or(Turn::Progress, Turn::End),
                turn => turn,
            };
        }
        if self.client.observer.terminated() || self.is_closed {
            return self.client_left(cx);
        }
        if self.is_full() {
            return self.held_back(cx);
        }
        if self.lease.is_none()
            && !self.may_read_once
            && self.home.gate.keeps_unread(self.request.len())
            // One that asks nothing takes no place.
            && self.client.stream.has_input()
        {
            // What the client asks stays unread until there is a server.
            return Turn::End(Pause::Unread);
        }
        if self.lets_server_speak(cx) {
            return Turn::Progress;
        }
        self.client.look.rest();
        let mut read = ReadBuf::new(buffer);
        match Pin::new(&mut self.client.stream).poll_read(cx, &mut read) {
            Poll::Pending if self.nothing_follows() => return Turn::Progress,
            Poll::Pending => return Turn::Blocked,
            Poll::Ready(Err(_)) => return Turn::End(Pause::End(self.client_gone())),
            Poll::Ready(Ok(())) => {}
        }
        let data = read.filled();
        if data.is_empty() {
            if self.wary != Wary::No {
                return Turn::End(Pause::End(self.client_gone()));
            }
            self.is_closed = true;
            return Turn::Progress;
        }
        self.may_read_once = false;
        if self.client.answers.unread > 0 && self.fate() != Fate::Unknown {
            // It asks anew, so it has read all answers.
            let limit = self.home.cluster.config().server.tcp_user_timeout;
            self.client.answers.has_read(&self.client.stream, limit);
        }
        self.client.traffic.bytes_up += data.len() as u64;
        let turn = if self.request.is_empty() {
            self.requests(cx, data)
        } else {
            let mut request = std::mem::take(&mut self.request);
            request.extend_from_slice(data);
            self.requests(cx, &request)
        };
        self.cancels_unread &= !self.request.is_empty();
        self.time(true);
        turn
    }

    fn turn_to_client(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Turn<Pause> {
        let had_answers = !self.client.answers.is_empty();
        match self.client.answers.drain(Pin::new(&mut self.client.stream), cx) {
            Poll::Pending => return self.expired(cx),
            Poll::Ready(Err(_)) => return Turn::End(Pause::End(self.client_gone())),
            Poll::Ready(Ok(())) => {}
        }
        let Some(lease) = &mut self.lease else {
            // The client was not read while it had to take an answer of the router's own.
            return if had_answers {
                Turn::Progress
            } else {
                Turn::Blocked
            };
        };
        if lease.has_ended {
            return Turn::End(self.server_gone());
        }
        let mut read = ReadBuf::new(buffer);
        match Pin::new(&mut lease.link.stream).poll_read(cx, &mut read) {
            Poll::Pending => return self.expired(cx),
            Poll::Ready(Err(_)) => return Turn::End(self.server_gone()),
            Poll::Ready(Ok(())) => {}
        }
        let data = read.filled();
        if data.is_empty() {
            lease.has_ended = true;
            return Turn::Progress;
        }
        self.server_said(cx, data)
    }
}

impl<C: SessionStream, S: SessionStream + Send + 'static> PooledSession<C, S> {
    /// What the server has not taken yet. `Some`: the turn is over.
    fn drain_to_server(&mut self, cx: &mut Context<'_>) -> Option<Turn<Pause>> {
        let link = &mut self.lease.as_mut()?.link;
        if link.to_server.broken || link.to_server.is_empty() {
            return None;
        }
        let kept = link.to_server.rest.clone();
        let drained = link.to_server.drain(Pin::new(&mut link.stream), cx);
        if !kept.is_empty() {
            link.sent.drained(&kept[..kept.len() - link.to_server.rest.len()]);
        }
        match drained {
            Poll::Ready(Ok(())) => {
                if self.passing > 0 {
                    // From now on the client is waited for.
                    self.time(true);
                }
                None
            }
            Poll::Pending => Some(self.held_back(cx)),
            Poll::Ready(Err(_)) => {
                link.to_server.broken = true;
                Some(Turn::Progress)
            }
        }
    }

    /// What the server says unasked is heard before the client's next request is read: it may be
    /// its last word, and then no server has received the request. One read of it, as a server may
    /// have much to say.
    fn lets_server_speak(&mut self, cx: &mut Context<'_>) -> bool {
        let had_spoken = std::mem::take(&mut self.has_let_speak);
        let Some(lease) = &self.lease else { return false };
        if self.passing > 0 || !self.request.is_empty() || !self.client.answers.is_empty() {
            return false;
        }
        let link = &lease.link;
        if !link.pending.is_idle() {
            return false;
        }
        self.has_let_speak = lease.has_ended || !had_spoken && link.stream.poll_input(cx).is_ready();
        self.has_let_speak
    }

    /// The client's next message waits for an answer to the one before.
    fn is_waiting_for_answer(&mut self) -> bool {
        let (memory, pool) = (&mut self.memory, &self.home.pool);
        let Some(lease) = &mut self.lease else {
            return false;
        };
        lease.state.is_waiting(memory, pool.interner())
    }

    /// No more may be read of the client: too much waits for answers, or it does not take them.
    fn is_full(&mut self) -> bool {
        if self.is_resumed {
            return true;
        }
        match &self.lease {
            Some(lease) => lease.link.pending.full() || lease.link.to_server.broken,
            None => !self.client.answers.rest.is_empty(),
        }
    }

    /// The client has said goodbye or closed its side. What it asked before is still answered.
    fn client_left(&mut self, cx: &mut Context<'_>) -> Turn<Pause> {
        // To a message whose end never comes there is no answer.
        let halves = usize::from(self.passing > 0);
        // Of what is lost, or doubtful and the last of all, nobody knows an end.
        let owes = |pending: &PendingReplies| {
            pending
                .outstanding()
                .map_or(halves == 0, |messages| messages > halves)
                && !(pending.waits_for_client() || pending.has_only_doubtful_syncs() || pending.is_lost())
        };
        let is_owed = self.lease.as_ref().is_some_and(|lease| owes(&lease.link.pending));
        if is_owed && self.is_closed && !self.is_cancelled && !self.client.observer.terminated() {
            // Without a goodbye: the server need not finish it for nobody.
            self.is_cancelled = true;
            self.home.opener.cancel(self.client.ticket.entry());
        }
        if is_owed || !self.client.answers.is_empty() {
            return self.held_back(cx);
        }
        Turn::End(Pause::End(self.client_gone()))
    }

    /// Takes what the server has said, and passes on what is the client's.
    fn server_said(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Turn<Pause> {
        if self
            .lease
            .as_ref()
            .is_some_and(|lease| lease.link.fatal.is_some())
        {
            // It has said its last word, and goes on.
            return Turn::End(self.server_gone());
        }
        let mut answers = Answers::default();
        let joined = self.lease.as_mut().and_then(|lease| lease.state.join(data));
        let run = joined.as_deref().unwrap_or(data);
        let heard = match self.home.mode {
            PoolMode::Session => self.hear_unchanged(run, &mut answers),
            PoolMode::Transaction => self.hear_messages(run, &mut answers),
        };
        let Answers { at, mut out, copied } = answers;
        let for_client = if out.is_empty() && copied == 0 {
            &run[..at]
        } else {
            out.extend_from_slice(&run[copied..at]);
            &out[..]
        };
        if let Some(lease) = &mut self.lease {
            if at < run.len() && heard.is_ok() && lease.link.fatal.is_none() {
                lease.state.partial = BytesMut::from(&run[at..]);
            }
            let pending = &lease.link.pending;
            self.client.traffic.transactions = self.transactions.wrapping_add(pending.transactions());
            let limit = self.home.cluster.config().server.tcp_user_timeout;
            if lease.link.to_server.unread > 0 && pending.is_idle() {
                lease.link.to_server.has_read(&lease.link.stream, limit);
            }
            self.client
                .answers
                .count(for_client.len(), &self.client.stream, limit);
        }
        let pause = match heard {
            Ok(()) => {
                self.settle_syncs(cx);
                self.time(false);
                // Before the answer goes out: the connection serves the next one as soon as it can.
                self.at_boundary()
            }
            Err(Amiss::Lost(code)) => Some(Pause::Lost(Box::new(Cause::ServerFatal { code }))),
            Err(Amiss::Violation(what)) => Some(Pause::End(Cause::ServerProtocol(what))),
            Err(Amiss::Parts(what)) => {
                self.note_settled();
                // An operator may end connections as often as he likes.
                if let Some(lease) = self.lease.as_ref().filter(|lease| lease.link.fatal.is_none()) {
                    self.home.pool.out_of_use(lease.member(), &what);
                }
                Some(Pause::Discard(DiscardReason::Unquiet))
            }
        };
        self.client.traffic.bytes_down += for_client.len() as u64;
        match self
            .client
            .answers
            .forward(Pin::new(&mut self.client.stream), cx, for_client)
        {
            Ok(()) => pause.map_or(Turn::Progress, Turn::End),
            Err(_) => Turn::End(Pause::End(self.client_gone())),
        }
    }

    /// Whether the server answers a Sync that was sent into a COPY which failed shows with the next
    /// answer. The client may not ask for anything for hours, and keep its connection meanwhile; so
    /// the router asks for nothing.
    fn settle_syncs(&mut self, cx: &mut Context<'_>) {
        let (memory, interner) = (&mut self.memory, self.home.pool.interner());
        let Some(lease) = &mut self.lease else { return };
        // Not in the middle of a message of the client.
        let is_due = lease.link.pending.has_only_doubtful_syncs()
            && lease.link.to_server.rest.is_empty()
            && self.passing == 0;
        if !is_due || self.home.mode == PoolMode::Session {
            return;
        }
        let (session, connection) = (&mut memory.statements, &mut lease.state.statements);
        let mut rewriter = Rewriter::new(interner, session, connection, None);
        let link = &mut lease.link;
        if rewriter.router(b'Q', &mut link.pending).is_err() {
            return;
        }
        let mut out = BytesMut::new();
        message::query(&mut out, "");
        let forwarded = link.to_server.forward(Pin::new(&mut link.stream), cx, &out);
        link.to_server.broken |= forwarded.is_err();
    }

    /// At a boundary the connection goes back, unless something must be done before, or pins keep
    /// it.
    fn at_boundary(&mut self) -> Option<Pause> {
        if self.home.mode == PoolMode::Session || self.lease.is_none() || !self.is_at_boundary() {
            return None;
        }
        if self.is_resumed {
            // The client's next message waited for this answer, to a batch of the router's own. If
            // the connection went back now, it would come again with the same need, and so would
            // each session's: leases without end that serve nobody.
            return None;
        }
        let memory = &mut self.memory;
        let lease = self.lease.as_mut()?;
        let (login, now) = (&lease.state.login, &lease.state.now);
        if let Some(question) = memory
            .doubts
            .settle(&mut memory.confirmed, login, now, &self.home.options)
        {
            return Some(Pause::Ask(Box::new(question)));
        }
        self.settled()
    }

    /// What is known of the session's state counts for its connection, too.
    fn note_settled(&mut self) {
        let memory = &mut self.memory;
        let Some(lease) = &mut self.lease else { return };
        memory.hints.at_boundary();
        for name in memory.doubts.take_custom_names() {
            memory.keep_custom_name(&name);
            lease.state.keep_custom_name(name);
        }
        if lease.state.settings != memory.confirmed.settings {
            lease.state.settings = memory.confirmed.settings.clone();
            memory.give_own();
            memory.path = super::connection::path_of(&memory.confirmed.settings);
        }
    }

    /// At a boundary, with everything known about the session's state.
    pub(super) fn settled(&mut self) -> Option<Pause> {
        self.note_settled();
        self.tries = 0;
        let memory = &mut self.memory;
        let lease = self.lease.as_mut()?;
        let pins = memory.confirmed.pins;
        let is_pinned = !pins.is_empty();
        let before_idle = memory.confirmed.settings.before_idle();
        let entry = self.client.ticket.entry();
        entry.rest(Activity::Idle);
        lease.permit.pin(pins);
        entry.set_pins(pins);
        if is_pinned {
            entry.set_phase(Phase::Pinned);
            return None;
        }
        if self.home.keeps {
            entry.set_phase(Phase::Relaying);
            return None;
        }
        if memory.is_tainted {
            return Some(Pause::Discard(DiscardReason::Uncertain));
        }
        if entry.has_cancels() {
            return Some(Pause::Cancel);
        }
        if lease.state.role != RoleState::Exists {
            return Some(Pause::Role);
        }
        if let Some(before_idle) = before_idle {
            return Some(Pause::Quiet(Box::new(before_idle)));
        }
        self.release();
        None
    }

    /// Notes what the session does, for its time limits. `has_come`: something from the client.
    fn time(&mut self, has_come: bool) {
        if !self.timers.are_set() {
            return;
        }
        let doing = match &self.lease {
            None => Doing::Nothing,
            Some(lease) => {
                let pending = &lease.link.pending;
                let waits_for_client = pending.waits_for_client();
                if pending.in_copy() && (pending.reads_copy() || !waits_for_client) {
                    Doing::Copying
                } else if self.passing > 0 && lease.link.to_server.rest.is_empty() {
                    // The server reads the rest of a message.
                    Doing::OpenBatch
                } else if pending.between_transactions() {
                    Doing::Nothing
                } else if pending.is_idle() {
                    Doing::IdleTransaction
                } else if waits_for_client {
                    // Whatever the server owes: without a Sync it may keep it.
                    Doing::OpenBatch
                } else {
                    Doing::Request
                }
            }
        };
        self.timers.set(doing, has_come && doing == Doing::OpenBatch);
    }

    /// Nothing can be done now; a time limit may be over.
    fn expired(&mut self, cx: &mut Context<'_>) -> Turn<Pause> {
        // Not due when the COPY failed, if the server had not taken all that the client had sent.
        self.settle_syncs(cx);
        if self
            .lease
            .as_mut()
            .is_some_and(|lease| lease.poll_over(cx).is_ready())
        {
            return Turn::End(self.server_gone());
        }
        let Poll::Ready(expired) = self.timers.poll_expired(cx) else {
            return Turn::Blocked;
        };
        let timeout = match expired {
            Expired::Request => {
                self.home.pool.meters.timed_out(TimeLimit::Query);
                self.home.opener.cancel(self.client.ticket.entry());
                return Turn::Progress;
            }
            Expired::Transaction => SessionTimeout::Transaction,
            Expired::IdleTransaction => SessionTimeout::IdleTransaction,
            Expired::Batch => SessionTimeout::Batch,
        };
        Turn::End(Pause::End(Cause::Ordered(Reason::TimedOut(timeout))))
    }

    /// As the session's turns, but to the client only: bounded, as the server may go on for ever.
    pub(super) fn hear_out(&mut self, cx: &mut Context<'_>) -> Option<Cause> {
        let worker_buffer = Arc::clone(&self.turns.worker_buffer);
        let mut buffer = worker_buffer.0.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..HEAR_OUT_TURNS {
            match self.turn_to_client(cx, &mut buffer) {
                Turn::Progress if self.fate() == Fate::Unknown => {}
                Turn::End(Pause::End(cause)) => return Some(cause),
                // With a last word, perhaps, that the client does not have.
                Turn::End(Pause::Lost(_)) => return None,
                Turn::Progress | Turn::Blocked | Turn::End(_) => break,
            }
        }
        let link = &self.lease.as_ref()?.link;
        let fatal = link.fatal.filter(|_| link.observer.at_boundary());
        fatal.map(|code| Cause::ServerFatal { code })
    }

    /// The server has ended its connection, without a word of its own or behind it.
    fn server_gone(&self) -> Pause {
        let Some(lease) = &self.lease else {
            return Pause::Lost(Box::new(Cause::ServerGone));
        };
        if let Some(code) = lease.link.fatal {
            return Pause::End(Cause::ServerFatal { code });
        }
        let cluster = &lease.link.cluster;
        cluster.evidence(&lease.link.placement.member, Evidence::Terminated);
        Pause::Lost(Box::new(Cause::ServerGone))
    }
}
