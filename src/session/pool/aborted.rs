//! A client whose transaction block was lost with its server connection: until it ends that
//! transaction, it is in a failed one.
//!
//! ```text
//! Lost ── COMMIT: 40001 ─────────────► outside
//!  │ └─── ROLLBACK ──────────────────► outside
//!  └ anything else: 40001 ─► Failed ── COMMIT, ROLLBACK ──► outside
//!                              └ anything else: the next server, in a failed transaction
//! ```
//! A lone COMMIT or ROLLBACK is answered here, so that it waits for no server. For everything else
//! the router makes a transaction fail on the next connection, and the server itself answers: it
//! knows best what a failed transaction accepts.

use bytes::BytesMut;
use tokio::time::Instant;

use super::exchange::{Exchanged, MOST_LOST, exchange};
use super::lost::Why;
use super::metrics::ExchangeKind;
use super::session::{Pause, PooledSession};
use super::state::Command;
use super::statements::SessionStatements;
use crate::session::end::Cause;
use crate::session::stream::SessionStream;
use crate::wire::message;
use crate::wire::pending::TransactionStatus;
use crate::wire::sqlstate::SqlState;

/// What is left of a client's transaction block while the session has no server connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Block {
    #[default]
    None,
    /// The client does not know that it is lost.
    Lost,
    /// It was told, or its transaction had failed before.
    Failed,
    /// There is none. A batch without its Sync was lost, and the client does not know.
    Batch(Why),
}

impl Block {
    /// The client is in a transaction block.
    pub(super) fn is_open(self) -> bool {
        matches!(self, Self::Lost | Self::Failed)
    }
}

/// What a batch that is refused would have executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Refused {
    /// Of the statement that was prepared last without a name, in this batch.
    unnamed: Option<Command>,
    /// Of the statement that was bound last.
    bound: Command,
    executed: Executed,
    /// A transaction block would be open behind it.
    begins: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Executed {
    #[default]
    Nothing,
    /// The end of the transaction, and nothing else.
    End(Command),
    Others,
}

/// What becomes of the first message of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum First {
    /// It ends the transaction, which is lost.
    Commit,
    Rollback,
    /// It is told that the transaction is lost.
    Told,
    /// A server answers it, in a failed transaction.
    Server,
}

/// The frames of a run that are whole: type, and frame.
fn frames(mut run: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let &[tag, a, b, c, d] = run.first_chunk::<5>()?;
        let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
        let (frame, rest) = run.split_at_checked(length.max(4) + 1)?;
        run = rest;
        Some((tag, frame))
    })
}

impl Refused {
    /// A message of the batch. `frame` may be only its beginning.
    pub(super) fn message(&mut self, tag: u8, frame: &[u8], is_whole: bool, statements: &SessionStatements) {
        match tag {
            b'P' => {
                let body = frame.get(5..).unwrap_or_default();
                if let Some(body) = body.strip_prefix(b"\0") {
                    let text = body.split(|&byte| byte == 0).next().unwrap_or_default();
                    self.unnamed = Some(if is_whole {
                        Command::of(text)
                    } else {
                        Command::Unknown
                    });
                } else {
                    // A name that does not exist in the end.
                    self.bound = Command::Unknown;
                }
            }
            b'B' => self.bound = statements.command_of(frame, self.unnamed),
            b'E' => {
                match self.bound {
                    Command::Begin => self.begins = true,
                    Command::Commit | Command::Rollback => self.begins = false,
                    Command::RollbackTo | Command::Other | Command::Unknown => {}
                }
                self.executed = match (self.executed, self.bound) {
                    (Executed::Nothing, end @ (Command::Commit | Command::Rollback)) => Executed::End(end),
                    _ => Executed::Others,
                };
            }
            b'Q' | b'F' => self.executed = Executed::Others,
            _ => {}
        }
    }

    /// It would have ended the transaction, and done nothing else.
    pub(super) fn only_ends(self) -> bool {
        matches!(self.executed, Executed::End(_))
    }
}

/// What becomes of the request that begins `run` with a message of this type. `is_whole`: all of
/// that message is there.
pub(super) fn first(block: Block, run: &[u8], is_whole: bool, statements: &SessionStatements) -> First {
    let Some(&tag) = run.first() else {
        return First::Server;
    };
    if let Block::Batch(_) = block {
        return First::Told;
    }
    if tag == b'Q' && is_whole {
        let text = frames(run).next().map_or(&[][..], |(_, frame)| &frame[5..]);
        let text = text.strip_suffix(b"\0").unwrap_or(text);
        match (Command::of(text), block) {
            (Command::Commit, Block::Lost) => return First::Commit,
            (Command::Commit | Command::Rollback, _) => return First::Rollback,
            _ => {}
        }
    }
    if block != Block::Lost || is_rollback(run, statements) {
        First::Server
    } else {
        First::Told
    }
}

/// The run begins with a whole batch of the extended protocol that executes a ROLLBACK and nothing
/// else. The server can execute that in a failed transaction, and then nothing is left to be told.
fn is_rollback(run: &[u8], statements: &SessionStatements) -> bool {
    let mut batch = Refused::default();
    for (tag, frame) in frames(run) {
        match tag {
            b'S' => return batch.executed == Executed::End(Command::Rollback),
            b'P' | b'B' | b'D' | b'E' | b'C' | b'H' => batch.message(tag, frame, true, statements),
            _ => return false,
        }
    }
    false
}

/// Whether a transaction block is open behind a Query with this text.
pub(super) fn begins(text: &[u8]) -> bool {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    match Command::of(text) {
        Command::Begin => true,
        Command::Unknown => {
            let mut words = text
                .split(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_')
                .filter(|word| !word.is_empty());
            let is_one_of =
                |word: &[u8], all: &[&str]| all.iter().any(|one| word.eq_ignore_ascii_case(one.as_bytes()));
            words
                .next()
                .is_some_and(|first| is_one_of(first, &["begin", "start"]))
                && !words.any(|word| is_one_of(word, &["commit", "end", "rollback", "abort", "prepare"]))
        }
        _ => false,
    }
}

/// Makes a transaction that has failed: there is no such savepoint.
const FAIL: &str = "BEGIN; ROLLBACK TO SAVEPOINT x";

impl<C: SessionStream, S: SessionStream + Send + 'static> PooledSession<C, S> {
    /// The session has no connection, and what is left of a lost transaction: whether the router
    /// answers the first message of `run`, which has this length. If not, a server does.
    pub(super) fn answers_itself(&mut self, run: &[u8], length: usize) -> bool {
        let is_whole = run.len() >= length;
        let mut out = BytesMut::new();
        let is_batch = !matches!(run.first(), Some(b'Q' | b'F' | b'S'));
        let (why, left) = match self.block {
            Block::Batch(why) => (why, Block::None),
            _ => (Why::RolledBack, Block::Failed),
        };
        match first(self.block, run, is_whole, &self.memory.statements) {
            First::Server => {
                self.rest_in(Block::Failed);
                return false;
            }
            First::Rollback => {
                message::command_complete(&mut out, "ROLLBACK");
                self.rest_in(Block::None);
            }
            First::Commit | First::Told if is_batch => {
                self.home.gate.counts().error(&mut out, &why.reply(None));
                if left == Block::None {
                    self.rest_in(left);
                }
                self.refused = Refused::default();
                self.is_discarding = true;
                let here = length.min(run.len());
                self.refuse(run[0], &run[..here], is_whole, run.len() - here);
            }
            told => {
                self.home.gate.counts().error(&mut out, &why.reply(None));
                self.rest_in(if told == First::Commit { Block::None } else { left });
            }
        }
        self.client.answers.push(&out);
        if !self.is_discarding {
            self.answer_ready();
        }
        true
    }

    /// A message of a batch that has its error already. `behind`: so many bytes are there behind
    /// it.
    pub(super) fn refuse(&mut self, tag: u8, frame: &[u8], is_whole: bool, behind: usize) {
        if matches!(self.block, Block::Lost | Block::None) {
            self.refused
                .message(tag, frame, is_whole, &self.memory.statements);
        }
        if tag == b'S' {
            self.is_discarding = false;
            let refused = std::mem::take(&mut self.refused);
            match self.block {
                Block::Lost if refused.only_ends() => self.rest_in(Block::None),
                Block::Lost => self.rest_in(Block::Failed),
                Block::None if refused.begins && self.has_sent_more(behind) => self.rest_in(Block::Failed),
                _ => {}
            }
            self.answer_ready();
        }
    }

    /// The client has not waited for the answer: `behind` its request there is another, or it
    /// comes.
    ///
    /// If the request was to begin a transaction and is refused, what follows was meant to be part
    /// of it, and must not be executed on its own.
    pub(super) fn has_sent_more(&self, behind: usize) -> bool {
        behind > 0 || self.client.stream.has_input()
    }

    /// Before the client's request is passed on: the server is brought into a failed transaction,
    /// as the client is in one.
    pub(super) async fn fail_transaction(&mut self) -> Result<Option<Pause>, Cause> {
        self.home.pool.meters.exchanged(ExchangeKind::Abort);
        let deadline = Instant::now() + self.home.reset_timeout;
        let Some(lease) = &mut self.lease else {
            return Ok(Some(Pause::Wait));
        };
        let exchanged = exchange(&mut lease.link, FAIL, deadline, |_, _| {}).await;
        lease.state.statements.unnamed_gone();
        let is_lost = matches!(&exchanged, Err(error) if error.is_loss());
        match exchanged {
            Ok(Exchanged {
                error: Some(said),
                status: b'E',
            }) if said.code == SqlState::INVALID_SAVEPOINT => {
                lease.link.pending.brought_to(TransactionStatus::Failed);
                (self.block, self.tries) = (Block::None, 0);
                self.is_resumed = true;
                return Ok(None);
            }
            Ok(answer) => tracing::debug!(?answer, "a transaction did not fail as it should"),
            Err(error) => tracing::debug!(%error, "a transaction was not brought to fail"),
        }
        self.discard();
        self.tries = self.tries.saturating_add(1);
        if self.tries > if is_lost { MOST_LOST } else { 1 } {
            return Err(Cause::ServerGone);
        }
        if is_lost {
            self.lost_unnoticed();
        }
        // Another connection may do.
        Ok(Some(Pause::Wait))
    }
}

#[cfg(test)]
mod tests {
    use super::super::conversations::{bind, close, execute, flush, parse, query, sync};
    use super::super::statements::{Interner, Limits};
    use super::*;

    fn of(block: Block, run: &[u8], is_whole: bool) -> First {
        let limits = Limits {
            statements: 10,
            bytes: 1000,
        };
        first(
            block,
            run,
            is_whole,
            &SessionStatements::new(&Interner::new(), limits),
        )
    }

    #[test]
    fn the_first_request_behind_a_loss_is_told_and_later_ones_go_to_a_server() {
        let batch = |text: &str| [parse("", text), bind(""), execute(), sync()].concat();
        let closing = [close("a"), batch("ROLLBACK")].concat();
        let unfinished = [parse("", "ROLLBACK"), bind(""), execute(), flush()].concat();
        let more = [
            parse("", "ROLLBACK"),
            bind(""),
            execute(),
            bind(""),
            execute(),
            sync(),
        ]
        .concat();
        for (run, lost, failed) in [
            (query("COMMIT"), First::Commit, First::Rollback),
            (query("end;"), First::Commit, First::Rollback),
            (query("ROLLBACK"), First::Rollback, First::Rollback),
            (query("ROLLBACK TO a"), First::Told, First::Server),
            (query("COMMIT AND CHAIN"), First::Told, First::Server),
            (query("ROLLBACK; SELECT 1"), First::Told, First::Server),
            (query("SELECT 1"), First::Told, First::Server),
            (query(""), First::Told, First::Server),
            (sync(), First::Told, First::Server),
            (batch("COMMIT"), First::Told, First::Server),
            (batch("ROLLBACK"), First::Server, First::Server),
            (closing, First::Server, First::Server),
            (unfinished, First::Told, First::Server),
            (more, First::Told, First::Server),
            (bind("unknown"), First::Told, First::Server),
        ] {
            let text = run.escape_ascii().to_string();
            assert_eq!(of(Block::Lost, &run, true), lost, "{text}");
            assert_eq!(of(Block::Failed, &run, true), failed, "{text}");
        }
        let long = &query("COMMIT")[..8];
        assert_eq!(of(Block::Lost, long, false), First::Told);
    }

    #[test]
    fn a_batch_that_only_ends_the_transaction_leaves_none() {
        let statements = SessionStatements::new(
            &Interner::new(),
            Limits {
                statements: 10,
                bytes: 1000,
            },
        );
        let [commit, insert] =
            ["COMMIT", "INSERT"].map(|text| [parse("", text), bind(""), execute()].concat());
        for (batch, only_ends) in [
            (commit.clone(), true),
            ([close("a"), commit.clone()].concat(), true),
            (insert.clone(), false),
            ([insert, commit.clone()].concat(), false),
            ([commit, query("")].concat(), false),
            (bind(""), false),
        ] {
            let mut refused = Refused::default();
            for (tag, frame) in frames(&batch) {
                refused.message(tag, frame, true, &statements);
            }
            assert_eq!(refused.only_ends(), only_ends, "{}", batch.escape_ascii());
        }
    }
}
