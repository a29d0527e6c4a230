//! What a client of a pool sends: message by message while it has a server connection, and what
//! becomes of it while it has none.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;

use super::aborted::{Block, Refused, begins};
use super::connection::Scratch;
use super::metrics::DiscardReason;
use super::session::{Pause, PooledSession};
use super::statements::{MIN_PREFIX, Rewriter, Step};
use crate::config::PoolMode;
use crate::session::end::Cause;
use crate::session::registry::Phase;
use crate::session::stream::SessionStream;
use crate::session::turns::Turn;
use crate::wire::message::{self, ErrorReply, Severity};
use crate::wire::pending::TransactionStatus;

/// A message of this size or more passes piece by piece; a smaller one is passed on whole.
const LONG: usize = 64 * 1024;

/// The header of a message: its type, and the bytes of the whole message.
fn header(bytes: &[u8]) -> Option<(u8, usize)> {
    let &[tag, a, b, c, d] = bytes.first_chunk::<5>()?;
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    Some((tag, length.saturating_add(1)))
}

/// Of a Parse besides its text: names and parameter types.
const BESIDE_TEXT: usize = 64 * 1024;

/// What of a run of the client's bytes can be passed on.
#[derive(Default)]
struct Passed {
    /// Bytes of the run that are dealt with.
    at: usize,
    /// What goes to the server in place of the run's first `copied` bytes, if that differs
    /// (`scratch.out`).
    copied: usize,
    scratch: Scratch,
}

impl Passed {
    /// From where the run is dealt with, `replaced` bytes are replaced by `scratch.extra`.
    fn replace(&mut self, run: &[u8], replaced: usize) {
        let Scratch { out, extra } = &mut self.scratch;
        out.reserve(run.len() - self.copied + extra.len());
        out.extend_from_slice(&run[self.copied..self.at]);
        out.extend_from_slice(extra);
        self.copied = self.at + replaced;
    }
}

impl<C: SessionStream, S: SessionStream + Send + 'static> PooledSession<C, S> {
    /// Deals with what the client has sent.
    pub(super) fn requests(&mut self, cx: &mut Context<'_>, run: &[u8]) -> Turn<Pause> {
        let mut run = run;
        if self.home.keeps && self.home.gate.is_paused() && self.can_move() {
            self.discard_for(DiscardReason::Ordered);
        }
        if self.lease.is_none() {
            match self.before_lease(run) {
                Ok(Some(rest)) => run = rest,
                Ok(None) => return Turn::Progress,
                Err(cause) => return Turn::End(Pause::End(cause)),
            }
            // With `custom_settings: close` not every connection serves the session.
            // A cancel request that came while this was unread is for this, and for nothing later.
            let is_free = !self.cancels_unread && !self.home.gate.must_wait(self.home.group());
            let lease = (!self.home.is_strict && is_free)
                .then(|| self.home.pool.try_lease(&self.home.want, self.address))
                .flatten();
            let pause = match lease {
                Some(lease) => self.adopt(lease),
                None => Some(Pause::Wait),
            };
            if let Some(pause) = pause {
                self.request = BytesMut::from(run);
                return Turn::End(pause);
            }
        }
        self.pass_on(cx, run)
    }

    /// Without a server connection: drops what belongs to a batch that the router has answered, and
    /// keeps a message that is not whole. `Some`: the rest, which needs a server.
    fn before_lease<'a>(&mut self, mut run: &'a [u8]) -> Result<Option<&'a [u8]>, Cause> {
        loop {
            if self.passing > 0 {
                // Of a message that is dropped.
                let part = self.passing.min(run.len());
                self.observe(&run[..part])?;
                self.passing -= part;
                run = &run[part..];
            }
            let Some((tag, length)) = header(run) else {
                self.request = BytesMut::from(run);
                return Ok(None);
            };
            let is_dropped = self.is_discarding || matches!(tag, b'd' | b'c' | b'f' | b'H');
            if tag == b'X' || is_dropped {
                let part = length.min(run.len());
                if self.is_discarding {
                    self.refuse(tag, &run[..part], part == length, run.len() - part);
                }
                self.observe(&run[..part])?;
                if self.client.observer.terminated() {
                    return Ok(None);
                }
                self.passing = length - part;
                run = &run[part..];
                continue;
            }
            if run.len() < length && (run.len() < LONG || self.is_kept(tag, length, run)) {
                // A client that sends half a message holds no connection.
                self.check(run)?;
                self.request = BytesMut::from(run);
                return Ok(None);
            }
            if self.block != Block::None && self.answers_itself(run, length) {
                let part = length.min(run.len());
                self.observe(&run[..part])?;
                self.passing = length - part;
                run = &run[part..];
                continue;
            }
            return Ok(Some(run));
        }
    }

    /// A long message that is not passed on before it is whole: the Parse of a named statement,
    /// whose text the session keeps in any case. One that is longer than what a session may keep is
    /// refused by its beginning.
    fn is_kept(&self, tag: u8, length: usize, beginning: &[u8]) -> bool {
        let most = self.memory.statements.limits().bytes.saturating_add(BESIDE_TEXT);
        self.home.mode == PoolMode::Transaction
            && tag == b'P'
            && beginning.get(5).is_some_and(|&first| first != 0)
            && length <= most
    }

    /// The router's own error is the answer to the client's request; the session goes on.
    pub(super) fn answer_error(&mut self, reply: ErrorReply) -> Option<Cause> {
        if self.request.is_empty() {
            // The client may not have asked for anything.
            self.entry().set_phase(Phase::Detached);
            return None;
        }
        let mut out = BytesMut::new();
        let severity = Severity::Error;
        let counts = self.home.gate.counts();
        counts.error(&mut out, &ErrorReply { severity, ..reply });
        self.client.answers.push(&out);
        let request = std::mem::take(&mut self.request);
        let (tag, length) = header(&request)?;
        let part = length.min(request.len());
        if let Err(cause) = self.observe(&request[..part]) {
            return Some(cause);
        }
        self.passing = length - part;
        let behind = request.len() - part;
        self.request = BytesMut::from(&request[part..]);
        self.is_resumed = !self.request.is_empty();
        self.entry().set_phase(Phase::Detached);
        if matches!(tag, b'Q' | b'F' | b'S') {
            let begins = tag == b'Q' && begins(&request[5.min(part)..part]);
            if begins && self.block == Block::None && self.has_sent_more(behind) {
                self.rest_in(Block::Failed);
            }
            self.answer_ready();
        } else {
            self.refused = Refused::default();
            self.is_discarding = true;
            self.refuse(tag, &request[..part], part == length, behind);
        }
        None
    }

    /// The end of an answer of the router's own.
    pub(super) fn answer_ready(&mut self) {
        let mut out = BytesMut::new();
        let status = if self.block.is_open() { b'E' } else { b'I' };
        message::ready_for_query(&mut out, status);
        self.client.answers.push(&out);
    }

    /// Passes on what is whole, and keeps the rest.
    fn pass_on(&mut self, cx: &mut Context<'_>, run: &[u8]) -> Turn<Pause> {
        let Some(most) = self.weigh(run.len()) else {
            return Turn::End(Pause::End(self.client_gone()));
        };
        let scratch = self.lease.as_mut().map(|lease| lease.state.scratch.take());
        let mut passed = Passed {
            scratch: scratch.unwrap_or_default(),
            ..Passed::default()
        };
        let looked = self.pass_messages(&run[..most], &mut passed);
        let Passed {
            at,
            copied,
            mut scratch,
        } = passed;
        let out = &mut scratch.out;
        if at < run.len() && !self.client.observer.terminated() {
            self.request = BytesMut::from(&run[at..]);
        }
        let data = if out.is_empty() && copied == 0 {
            &run[..at]
        } else {
            out.extend_from_slice(&run[copied..at]);
            &out[..]
        };
        let Some(lease) = &mut self.lease else {
            return Turn::Progress;
        };
        if let Err(what) = looked {
            // None of it has reached the server.
            lease.link.to_server.rest = BytesMut::from(data).freeze();
            lease.state.scratch.put_back(scratch);
            return Turn::End(Pause::End(what));
        }
        let entry = self.client.ticket.entry();
        if !entry.in_flight() && !lease.link.pending.is_idle() {
            // Before the server can know of the request, so that no cancel for it is taken for a
            // late one.
            entry.begin_request();
        }
        let limit = self.home.cluster.config().server.tcp_user_timeout;
        let link = &mut lease.link;
        link.to_server.count(data.len(), &link.stream, limit);
        let forwarded = link.to_server.forward(Pin::new(&mut link.stream), cx, data);
        link.sent.drained(&data[..data.len() - link.to_server.rest.len()]);
        if forwarded.is_err() {
            // It has ended; what it said last is still to be read.
            link.to_server.broken = true;
        }
        lease.state.scratch.put_back(scratch);
        self.weighed();
        Turn::Progress
    }

    fn pass_messages(&mut self, run: &[u8], passed: &mut Passed) -> Result<(), Cause> {
        while passed.at < run.len() {
            let rest = &run[passed.at..];
            if self.passing > 0 {
                let part = self.passing.min(rest.len());
                self.observe(&rest[..part])?;
                self.passing -= part;
                let memory = &mut self.memory;
                let is_last = self.passing == 0;
                if memory.hints.piece(&rest[..part], is_last, &mut memory.doubts) {
                    self.home.pool.sequence_is_read();
                }
                if let Some(lease) = &mut self.lease {
                    lease.state.under_way.long_piece(&rest[..part], is_last);
                }
                passed.at += part;
                continue;
            }
            let Some((tag, length)) = header(rest) else { break };
            let here = length.min(rest.len());
            let passes_in_part = match self.home.mode {
                // Terminate is not for the server, which serves others afterwards.
                PoolMode::Session => tag != b'X',
                PoolMode::Transaction => {
                    tag == b'd' || length >= LONG && here >= MIN_PREFIX && !self.is_kept(tag, length, rest)
                }
            };
            if here < length && !passes_in_part {
                return self.check(rest);
            }
            let frame = &rest[..here];
            let before = self.client.observer;
            let reads_sequence = self.look(tag, frame, here == length);
            self.observe(frame)?;
            if self.client.observer.terminated() {
                // It is not for the server, which serves others afterwards.
                return Ok(());
            }
            let Some(lease) = &mut self.lease else {
                return Ok(());
            };
            if self.home.mode == PoolMode::Session {
                // The connection is the session's own until it ends: nothing is renamed.
                let announced = lease.link.pending.client(tag);
                announced
                    .map(drop)
                    .map_err(|error| Cause::ClientProtocol(error.to_string()))?;
                self.passing = length - here;
                passed.at += here;
                continue;
            }
            let is_at_rest = lease.link.pending.is_idle();
            let is_skipped = lease.link.pending.is_skipping() && tag != b'S';
            let mut forgets = lease.state.statements.must_forget();
            if reads_sequence {
                self.home.pool.sequence_is_read();
                // What has run in this lease may have drawn the number that is asked for.
                forgets |= lease.link.pending.is_idle() && !self.memory.doubts.has_worked();
            }
            // There the server refuses whatever the client asks.
            forgets &= lease.link.pending.status() != TransactionStatus::Failed;
            let mut rewriter = Rewriter::new(
                self.home.pool.interner(),
                &mut self.memory.statements,
                &mut lease.state.statements,
                (!self.memory.doubts.is_path_open()).then_some(self.memory.path),
            );
            let extra = &mut passed.scratch.extra;
            extra.clear();
            let pending = &mut lease.link.pending;
            let waits = if forgets {
                rewriter.forget_numbers(extra, pending)
            } else {
                Ok(false)
            };
            let step = waits.and_then(|waits| {
                if waits {
                    Ok(Step::Wait)
                } else {
                    rewriter.client(tag, frame, extra, pending)
                }
            });
            match step.map_err(|error| Cause::ClientProtocol(error.to_string()))? {
                Step::Forward { replaced } => {
                    let way = &mut lease.state.under_way;
                    if is_at_rest {
                        way.rest(lease.link.pending.status());
                    }
                    if !is_skipped {
                        way.forwarded(tag, frame, here == length, |unnamed| {
                            rewriter.command_bound(frame, unnamed)
                        });
                    }
                    if tag == b'Q' {
                        lease.keep_begin(frame);
                    }
                    if replaced > 0 || !extra.is_empty() {
                        passed.replace(run, replaced);
                    }
                    self.passing = length - here;
                    passed.at += here;
                }
                Step::Wait => {
                    // It is offered again, with what of it has come by then.
                    self.client.observer = before;
                    passed.replace(run, 0);
                    self.is_resumed = true;
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// What a message may change of the session's state. Whether its text reads the numbers of
    /// sequences.
    fn look(&mut self, tag: u8, frame: &[u8], is_whole: bool) -> bool {
        let memory = &mut self.memory;
        let body = frame.get(5..).unwrap_or_default();
        let is_shared = self.home.mode == PoolMode::Transaction;
        let mut reads_sequence = false;
        match tag {
            b'Q' if is_shared => {
                let text = body.strip_suffix(b"\0").unwrap_or(body);
                reads_sequence = memory.hints.query(text, is_whole, &mut memory.doubts);
            }
            b'P' if is_shared => reads_sequence = memory.hints.parse(body, is_whole),
            b'B' if is_shared => memory.hints.bind(body, &mut memory.doubts),
            b'F' if is_shared => {
                let function = body.first_chunk().map_or(0, |oid| u32::from_be_bytes(*oid));
                reads_sequence = memory.doubts.call(function);
            }
            b'E' => memory.is_unsynced = true,
            b'S' => memory.is_unsynced = false,
            _ => {}
        }
        if matches!(tag, b'Q' | b'F') {
            memory.is_tainted |= memory.is_unsynced;
        }
        reads_sequence
    }

    /// Follows the client's stream.
    fn observe(&mut self, part: &[u8]) -> Result<(), Cause> {
        let fed = self.client.observer.feed(part, |_, _| {});
        fed.map(drop)
            .map_err(|error| Cause::ClientProtocol(error.to_string()))
    }

    /// Whether the beginning of a message is one, so that nothing is kept for one that never ends.
    fn check(&self, beginning: &[u8]) -> Result<(), Cause> {
        let mut probe = self.client.observer;
        let fed = probe.feed(beginning, |_, _| {});
        fed.map(drop)
            .map_err(|error| Cause::ClientProtocol(error.to_string()))
    }

    /// The client is not read, as the server has to take or to answer something first.
    pub(super) fn held_back(&mut self, cx: &mut Context<'_>) -> Turn<Pause> {
        match self.client.look.poll_broken(cx, &self.client.stream) {
            Poll::Ready(()) => Turn::End(Pause::End(self.client_gone())),
            Poll::Pending => Turn::Blocked,
        }
    }
}
