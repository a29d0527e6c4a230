//! A session loses its server connection, or must leave it at once: what [`super::lost`] decides is
//! carried out, and the session goes on without one, or ends.

use std::sync::PoisonError;
use std::task::{Context, Poll};

use bytes::BytesMut;

use super::aborted::{Block, Refused};
use super::connection::PooledConnection;
use super::lost::{self, Answers, Outcome, Plan, Reply, Why};
use super::metrics::DiscardReason;
use super::session::{Home, Memory, Pause, PooledSession};
use super::state::Pins;
use crate::session::end::{CHECK, Cause, End, Fate, UNKNOWN};
use crate::session::registry::Activity;
use crate::session::stream::SessionStream;
use crate::session::turns::{Turn, TwoWay};
use crate::wire::frame::ErrorFields;
use crate::wire::message::{self, ErrorReply};
use crate::wire::sqlstate::SqlState;

/// Reads from a server that must be left.
const HEAR_TURNS: usize = 16;

/// How often in a row a lone BEGIN is sent again.
const MOST_BEGINS: u8 = 3;

/// What becomes of a session that would lose this connection now.
pub(super) fn plan<S: SessionStream>(home: &Home<S>, memory: &Memory, lease: &PooledConnection<S>) -> Plan {
    let is_known = !memory.is_tainted && memory.doubts.end_with_connection();
    if home.is_tracked() && is_known && needed(memory).is_empty() {
        lost::decide(&lease.link.pending, &lease.state.under_way)
    } else {
        Plan::End
    }
}

/// The code of a server's error, if that ends the connection and the session goes on without it: it
/// is not the client's. `frame`: a whole message.
pub(super) fn last_word<S: SessionStream>(
    home: &Home<S>,
    memory: &Memory,
    lease: &PooledConnection<S>,
    frame: &[u8],
) -> Option<SqlState> {
    let fields = ErrorFields::of_prefix(&frame[5..]);
    let is_lost = fields.is_fatal() && lost::is_about_connection(fields.code);
    (is_lost && plan(home, memory, lease) != Plan::End).then_some(fields.code)
}

/// What the session has on its connection only, or may have.
fn needed(memory: &Memory) -> Pins {
    memory.confirmed.pins.and(memory.doubts.leave_behind())
}

/// What a server that must be left has said meanwhile.
enum Heard {
    /// Nothing that settles what is under way.
    Nothing,
    /// The last answer.
    Answered(Option<Pause>),
}

impl<C: SessionStream, S: SessionStream + Send + 'static> PooledSession<C, S> {
    /// The server connection is lost, or must be left at once, for this cause. The client has all
    /// that the server has said, but for its last word.
    pub(super) async fn lost(&mut self, cause: Cause) -> Result<Option<Pause>, Cause> {
        let is_ordered = matches!(cause, Cause::Ordered(_));
        if is_ordered && self.fate() == Fate::Unknown {
            // Lets the driver learn what the kernel has.
            tokio::task::yield_now().await;
            let heard = std::future::poll_fn(|cx| Poll::Ready(self.hear(cx))).await;
            match heard {
                Heard::Nothing => {}
                Heard::Answered(Some(Pause::End(cause))) => return Err(cause),
                Heard::Answered(pause) => return Ok(pause),
            }
        }
        let Some(lease) = &mut self.lease else {
            return Ok(None);
        };
        let mut plan = plan(&self.home, &self.memory, lease);
        // Nothing can be put behind a part of a message that the client has.
        let passed = lease.link.observer.passed();
        let rest = self.client.answers.rest.len().checked_sub(passed);
        match rest {
            Some(rest) if !lease.link.observer.is_torn() => {
                if plan != Plan::End {
                    self.client.answers.rest.truncate(rest);
                }
            }
            _ => plan = Plan::End,
        }
        if plan == Plan::End {
            let pins = needed(&self.memory);
            return Err(match cause {
                Cause::ServerGone if !pins.is_empty() => Cause::PinnedServerGone { pins },
                cause => cause,
            });
        }
        let reason = End::from(cause).to_string();
        let outcome = Outcome::of(&plan);
        self.home.pool.meters.lost(outcome);
        let (session, member) = (self.client.ticket.entry().id, lease.member());
        if outcome == Outcome::Unknown {
            self.home.pool.outcome_unknown(session, member, &reason);
        } else {
            let outcome = outcome.label();
            tracing::debug!(session, %member, reason, outcome, "a server connection was lost");
        }
        if is_ordered && self.client.ticket.entry().in_flight() {
            // Nobody may go on writing for a session that has left.
            self.home.opener.abandon(&lease.link.placement);
        }
        let begin = std::mem::take(&mut lease.state.begin);
        self.let_go();
        self.carry_out(plan, begin, &reason);
        Ok(None)
    }

    /// A connection was lost in an exchange of the router's own, and the session goes on.
    pub(super) fn lost_unnoticed(&self) {
        self.home.pool.meters.lost(Outcome::Nothing);
    }

    /// The session is over: perhaps because it has lost its connection, or had to leave it.
    pub(super) fn note_end(&self, cause: &Cause) {
        let is_lost = match cause {
            Cause::ServerGone | Cause::PinnedServerGone { .. } => true,
            Cause::ServerFatal { code } => lost::is_about_connection(*code),
            Cause::Ordered(reason) => reason.is_about_server(),
            _ => false,
        };
        if is_lost && self.home.is_tracked() {
            self.home.pool.meters.lost(Outcome::Ended);
        }
    }

    /// As the session's turns, but to the client only: bounded, as the server may go on for ever.
    fn hear(&mut self, cx: &mut Context<'_>) -> Heard {
        let worker_buffer = std::sync::Arc::clone(&self.turns.worker_buffer);
        let mut buffer = worker_buffer.0.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..HEAR_TURNS {
            match self.turn_to_client(cx, &mut buffer) {
                Turn::Progress if self.lease.is_none() => return Heard::Answered(None),
                Turn::Progress if self.fate() == Fate::Unknown => {}
                Turn::Progress | Turn::Blocked => break,
                // With a last word, perhaps, that the client does not have.
                Turn::End(Pause::Lost(_)) => return Heard::Nothing,
                Turn::End(pause) => return Heard::Answered(Some(pause)),
            }
        }
        // The client has the server's last word.
        let fatal = self.lease.as_ref().and_then(|lease| lease.link.fatal);
        fatal.map_or(Heard::Nothing, |code| {
            Heard::Answered(Some(Pause::End(Cause::ServerFatal { code })))
        })
    }

    /// The session has nothing of its connection any more, and what was under way has changed
    /// nothing of what is known of it.
    fn let_go(&mut self) {
        let memory = &mut self.memory;
        for name in memory.doubts.take_custom_names() {
            memory.keep_custom_name(&name);
        }
        memory.doubts.clear();
        memory.hints.connection_lost();
        memory.statements.connection_lost();
        memory.is_unsynced = false;
        self.discard_for(DiscardReason::Lost);
    }

    fn carry_out(&mut self, plan: Plan, begin: BytesMut, reason: &str) {
        self.refused = Refused::default();
        let tries = std::mem::take(&mut self.tries);
        let answers = match plan {
            Plan::Nothing | Plan::End => return self.rest_in(Block::None),
            Plan::Block(block) => return self.rest_in(block),
            Plan::Begin if tries < MOST_BEGINS && !begin.is_empty() => {
                self.tries = tries + 1;
                let mut request = begin;
                request.extend_from_slice(&self.request);
                self.request = request;
                self.is_resumed = true;
                return self.rest_in(Block::None);
            }
            Plan::Begin => Answers {
                outcome: Outcome::RolledBack,
                replies: vec![Reply::Error(Why::NotExecuted), Reply::Ready(b'I')],
                discards: false,
                block: Block::None,
            },
            Plan::Answer(answers) => answers,
        };
        let mut out = BytesMut::new();
        for reply in answers.replies {
            match reply {
                Reply::Error(why) => self.home.gate.counts().error(&mut out, &why.reply(Some(reason))),
                Reply::RolledBack => message::command_complete(&mut out, "ROLLBACK"),
                Reply::Parsed => out.extend_from_slice(b"1\0\0\0\x04"),
                Reply::Bound => out.extend_from_slice(b"2\0\0\0\x04"),
                Reply::NoRows => out.extend_from_slice(b"n\0\0\0\x04"),
                Reply::Ready(status) => message::ready_for_query(&mut out, status),
            }
        }
        self.client.answers.push(&out);
        self.is_discarding = answers.discards;
        self.rest_in(answers.block);
    }

    /// Nothing is under way any more.
    pub(super) fn rest_in(&mut self, block: Block) {
        self.block = block;
        self.entry().rest(if block.is_open() {
            Activity::InTransaction
        } else {
            Activity::Idle
        });
    }
}

impl Why {
    /// The error for the client. `reason`: how the connection was lost.
    pub(super) fn reply(self, reason: Option<&str>) -> ErrorReply {
        let (code, text, hint) = match self {
            Self::Unknown => (
                SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
                format!("the server connection was lost; {UNKNOWN}"),
                CHECK,
            ),
            Self::RolledBack => (
                SqlState::SERIALIZATION_FAILURE,
                "the server connection was lost; the transaction is rolled back".to_owned(),
                "Repeat the whole transaction.",
            ),
            Self::NotExecuted => (
                SqlState::SERIALIZATION_FAILURE,
                "the server connection was lost; nothing of the request was executed".to_owned(),
                "Repeat the request.",
            ),
            Self::Aborted => (
                SqlState::IN_FAILED_SQL_TRANSACTION,
                "the transaction is rolled back, because its server connection was lost".to_owned(),
                "End the transaction with ROLLBACK, and repeat it.",
            ),
        };
        let reply = ErrorReply::error(code, text).hint(hint);
        match reason {
            Some(reason) => reply.detail(reason),
            None => reply,
        }
    }
}

/// A BEGIN that is longer is not sent again.
const MAX_BEGIN: usize = 1024;

impl<S: SessionStream> PooledConnection<S> {
    /// The Query that was forwarded last: kept if it is all that is under way, and can be sent
    /// again.
    pub(super) fn keep_begin(&mut self, frame: &[u8]) {
        let state = &mut self.state;
        if state.under_way.is_lone_begin() {
            if frame.len() <= MAX_BEGIN {
                state.begin.clear();
                state.begin.extend_from_slice(frame);
            } else {
                state.under_way.others();
            }
        }
    }
}
