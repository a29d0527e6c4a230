//! What a server says to a client of a pool: message by message, so that the answers to the
//! router's own messages are kept from the client.

use bytes::BytesMut;

use super::connection::PooledConnection;
use super::cut;
use super::session::{Memory, PooledSession};
use super::state::StateOptions;
use super::statements::{Answer, Rewriter};
use crate::session::registry::SessionEntry;
use crate::session::stream::SessionStream;
use crate::wire::frame::{ErrorFields, FrameError};
use crate::wire::message::{self, ErrorReply};
use crate::wire::observe::ServerEvent;
use crate::wire::pending::{Owner, TransactionStatus};
use crate::wire::sqlstate::SqlState;

/// The longest message that is kept until it is whole. Rows and copied data are never kept.
const MAX_KEPT: usize = 1024 * 1024;

/// What the client is told where `query_timeout` has cancelled its statement: the server says the
/// same as if a user had.
fn timed_out(body: &[u8]) -> Option<ErrorReply> {
    let is_cancelled = ErrorFields::of_prefix(body).code == SqlState::QUERY_CANCELED;
    is_cancelled.then(|| {
        let text = "canceling statement due to the router's query_timeout";
        ErrorReply::error(SqlState::QUERY_CANCELED, text).hint(
            "It is a limit of the route's pool: make the statement faster, or ask the operator to raise it.",
        )
    })
}

/// A server's message that is not what it should be at this point. Nothing of it is the client's,
/// and the connection serves nobody any more.
pub(super) enum Amiss {
    /// Not a message of the protocol, or one in the wrong place.
    Violation(String),
    /// The last word of a server with which the connection is lost, and not the session.
    Lost(SqlState),
    /// The same, or FATAL, where the session needs nothing of the connection: it has no transaction
    /// there, and what else it has is known.
    Parts(String),
}

impl From<FrameError> for Amiss {
    fn from(error: FrameError) -> Self {
        Self::Violation(error.to_string())
    }
}

/// A message of this type in answer to nothing. Without its text, which may quote a user's data.
fn unasked(tag: u8, body: &[u8]) -> String {
    if tag == b'E' {
        return format!(
            "an error ({}) that answers nothing",
            ErrorFields::of_prefix(body).code
        );
    }
    format!("a message '{}' that answers nothing", tag.escape_ascii())
}

/// Answers that do not fit what was asked.
const OUT_OF_STEP: &str = "an answer that does not belong to what was asked";

/// What of a run of the server's bytes is dealt with.
#[derive(Default)]
pub(super) struct Answers {
    /// Bytes of the run.
    pub(super) at: usize,
    /// What goes to the client in place of the run's first `copied` bytes, if that differs.
    pub(super) out: BytesMut,
    pub(super) copied: usize,
}

impl<C: SessionStream, S: SessionStream + Send + 'static> PooledSession<C, S> {
    /// In session mode nothing is changed.
    pub(super) fn hear_unchanged(&mut self, run: &[u8], answers: &mut Answers) -> Result<(), Amiss> {
        let Some(lease) = &mut self.lease else {
            return Ok(());
        };
        let entry = self.client.ticket.entry();
        let (told, now) = (&mut self.memory.told, &mut lease.state.now);
        let role = &mut lease.state.role;
        let (observer, mut hearing) = lease.link.hearing();
        let mut is_unasked = false;
        let fed = observer.feed(run, |event| {
            is_unasked |= hearing.pending.owes_nothing()
                && match event {
                    ServerEvent::Error(report) => !report.is_fatal(),
                    ServerEvent::Notice(_) | ServerEvent::Notification | ServerEvent::Parameter { .. } => {
                        false
                    }
                    _ => true,
                };
            if is_unasked {
                // What was asked before is answered, and stays so.
                return;
            }
            hearing.hear(entry, &event);
            match event {
                ServerEvent::Parameter { name, value } => {
                    now.set(name, value);
                    told.set(name, value);
                }
                ServerEvent::Error(report) => role.error(report.code()),
                _ => {}
            }
        });
        answers.at = if fed.is_ok() { run.len() } else { observer.valid() };
        fed?;
        if is_unasked || lease.link.pending.is_out_of_step() {
            return Err(Amiss::Violation(OUT_OF_STEP.to_owned()));
        }
        Ok(())
    }

    pub(super) fn hear_messages(&mut self, run: &[u8], answers: &mut Answers) -> Result<(), Amiss> {
        let Some(lease) = &mut self.lease else {
            return Ok(());
        };
        let (memory, entry) = (&mut self.memory, self.client.ticket.entry());
        let has_cancelled = self.timers.has_cancelled();
        let (interner, options) = (self.home.pool.interner(), &self.home.options);
        while answers.at < run.len() {
            let rest = &run[answers.at..];
            if !lease.link.observer.at_boundary() {
                // The rest of a long row, or of what a function has returned.
                let part = lease.link.observer.missing().min(rest.len());
                let (observer, mut hearing) = lease.link.hearing();
                let mut ended = None;
                let fed = observer.feed(&rest[..part], |event| ended = Some(hearing.hear(entry, &event)));
                fed?;
                if let Some(owner) = ended {
                    let (session, connection) = (&mut memory.statements, &mut lease.state.statements);
                    let mut rewriter = Rewriter::new(interner, session, connection, None);
                    // It is the client's: the router calls no function in this way.
                    let _ = rewriter.answered(owner, b'V', b"");
                }
                answers.at += part;
                continue;
            }
            let Some(&[tag, a, b, c, d]) = rest.first_chunk::<5>() else {
                break;
            };
            let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
            let length = length.saturating_add(1);
            if lease.link.pending.owes_nothing()
                && !matches!(tag, b'N' | b'S' | b'A')
                // Whether an error is FATAL shows in its body.
                && (tag != b'E' || rest.len() >= length)
            {
                let body = rest.get(5..length).unwrap_or_default();
                let loses_nothing =
                    self.passing == 0 && parts_without_loss(memory, lease, &self.home.options);
                if loses_nothing {
                    hear_error(lease, entry, rest.get(..length).unwrap_or_default())?;
                    return Err(Amiss::Parts(unasked(tag, body)));
                }
                if tag != b'E' || !ErrorFields::of_prefix(body).is_fatal() {
                    return Err(Amiss::Violation(unasked(tag, body)));
                }
            }
            if tag == b'E'
                && rest.len() >= length
                && let Some(code) = cut::last_word(&self.home, memory, lease, &rest[..length])
            {
                hear_error(lease, entry, &rest[..length])?;
                return Err(Amiss::Lost(code));
            }
            if matches!(tag, b'D' | b'd') || tag == b'V' && rest.len() < length {
                let part = length.min(rest.len());
                if part < length || length < 5 {
                    lease.link.observer.feed(&rest[..part], |_| {})?;
                }
                answers.at += part;
                continue;
            }
            if rest.len() < length {
                if length > MAX_KEPT {
                    let what = format!("a message '{}' of {length} bytes", tag.escape_ascii());
                    return Err(Amiss::Violation(what));
                }
                break;
            }
            // For `t`, which the observer does not report.
            let (frame, mut owner) = (&rest[..length], lease.link.pending.answering());
            let (now, role) = (&mut lease.state.now, &mut lease.state.role);
            let (observer, mut hearing) = lease.link.hearing();
            let fed = observer.feed(frame, |event| {
                owner = hearing.hear(entry, &event);
                match event {
                    ServerEvent::Parameter { name, value } => {
                        now.set(name, value);
                        memory.told.set(name, value);
                        memory.doubts.parameter(name);
                    }
                    ServerEvent::ReadyForQuery(TransactionStatus::Idle) => memory.doubts.committed(options),
                    ServerEvent::CommandComplete(tag) if owner == Owner::Client => memory.doubts.tag(tag),
                    ServerEvent::Error(report) => {
                        memory.hints.failed();
                        role.error(report.code());
                    }
                    _ => {}
                }
            });
            fed?;
            if lease.link.pending.is_out_of_step() {
                return Err(Amiss::Violation(OUT_OF_STEP.to_owned()));
            }
            let mut rewriter = Rewriter::new(
                interner,
                &mut memory.statements,
                &mut lease.state.statements,
                None,
            );
            match rewriter.answered(owner, tag, &frame[5..]) {
                Answer::Forward if tag == b'E' && has_cancelled => {
                    if let Some(reply) = timed_out(&frame[5..]) {
                        answers.out.extend_from_slice(&run[answers.copied..answers.at]);
                        message::error(&mut answers.out, &reply);
                        answers.copied = answers.at + length;
                    }
                }
                Answer::Forward => {}
                Answer::Swallow => {
                    answers.out.extend_from_slice(&run[answers.copied..answers.at]);
                    answers.copied = answers.at + length;
                }
                Answer::Instead(bytes) => {
                    answers.out.extend_from_slice(&run[answers.copied..answers.at]);
                    answers.out.extend_from_slice(&bytes);
                    answers.copied = answers.at + length;
                }
            }
            answers.at += length;
            if lease.link.fatal.is_some() {
                // It was the server's last word.
                break;
            }
        }
        Ok(())
    }
}

/// Takes an error that is not passed on, for what it says of the server. Other messages say
/// nothing.
fn hear_error<S: SessionStream>(
    lease: &mut PooledConnection<S>,
    entry: &SessionEntry,
    frame: &[u8],
) -> Result<(), FrameError> {
    if frame.first() != Some(&b'E') {
        return Ok(());
    }
    let (observer, mut hearing) = lease.link.hearing();
    observer.feed(frame, |event| {
        hearing.hear(entry, &event);
    })
}

/// At a boundary: the session needs nothing of its connection. Nothing can be asked on it any more.
fn parts_without_loss<S: SessionStream>(
    memory: &mut Memory,
    lease: &PooledConnection<S>,
    options: &StateOptions,
) -> bool {
    if !lease.link.is_at_boundary() {
        return false;
    }
    let (login, now) = (&lease.state.login, &lease.state.now);
    let question = memory.doubts.settle(&mut memory.confirmed, login, now, options);
    question.is_none() && memory.confirmed.pins.is_empty()
}
