//! What a client gets where the server connection of its session is lost: a decision, without IO.
//!
//! All that was forwarded and is not answered is looked at together. If something of it may be
//! committed, the outcome of the whole is unknown (08007) and the session is outside a transaction.
//! If not, an open transaction block is rolled back (40001), and the session is in a failed
//! transaction ([`super::aborted`]). Either way each request gets one answer, in the order of the
//! protocol, framed as the server would.
//!
//! Refuses: to send anything again but a lone BEGIN, which has no effect; and to guess where the
//! protocol is ambiguous.

use super::aborted::Block;
use super::under_way::{Step, UnderWay};
use crate::labels::labels;
use crate::wire::pending::{Owed, OwedKind, PendingReplies, TransactionStatus};
use crate::wire::sqlstate::SqlState;

/// Requests that are answered one by one. A client with more on their way gets one FATAL.
const MOST_ANSWERED: usize = 4096;

labels! {
    /// What a lost connection meant for its session: the label of `trunkline_pool_lost_total`.
    pub(in crate::session) enum Outcome {
        /// The outcome of what was under way is unknown.
        Unknown = "unknown",
        /// A transaction was rolled back.
        RolledBack = "rolled_back",
        /// The client notices nothing.
        Nothing = "nothing",
        /// The session ended.
        Ended = "ended",
    }
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// The session goes on without a word.
    Nothing,
    /// A transaction block or a batch was open, and everything answered: the client's next message
    /// is answered by what became of it.
    Block(Block),
    /// BEGIN is sent again, to the next connection.
    Begin,
    Answer(Answers),
    /// The session ends.
    End,
}

/// The answers to what is under way.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answers {
    pub(super) outcome: Outcome,
    pub(super) replies: Vec<Reply>,
    /// What the client sends next, up to a Sync, belongs to a batch that has its error.
    pub(super) discards: bool,
    /// What is left of the transaction block.
    pub(super) block: Block,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    Error(Why),
    /// The tag `ROLLBACK`.
    RolledBack,
    Parsed,
    Bound,
    NoRows,
    /// `Z` with this status.
    Ready(u8),
}

/// Why a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// It may have taken effect.
    Unknown,
    /// Its transaction is rolled back.
    RolledBack,
    /// Nothing was executed.
    NotExecuted,
    /// An earlier one has told that the transaction is rolled back.
    Aborted,
}

impl Outcome {
    pub(super) fn of(plan: &Plan) -> Self {
        match plan {
            Plan::Nothing | Plan::Begin => Self::Nothing,
            Plan::Block(Block::Batch(Why::Unknown)) => Self::Unknown,
            Plan::Block(_) => Self::RolledBack,
            Plan::Answer(answers) => answers.outcome,
            Plan::End => Self::Ended,
        }
    }
}

/// A FATAL error with which a server stops, or says that it has lost its client: with another
/// server connection the session can go on. All others are about the session itself.
pub(super) fn is_about_connection(code: SqlState) -> bool {
    matches!(
        code,
        SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN | SqlState::CANNOT_CONNECT_NOW
    ) || code.is_in_class(*b"08")
}

/// See the module. The session needs nothing else of the connection.
pub(super) fn decide(pending: &PendingReplies, way: &UnderWay) -> Plan {
    let status = pending.status();
    let counted = pending.owed().filter(|owed| owed.kind != OwedKind::Extended);
    let too_many = counted.map(|owed| owed.count).sum::<usize>() > MOST_ANSWERED;
    let is_ambiguous = pending.is_uncertain() || pending.is_streaming();
    if is_ambiguous || too_many || status == TransactionStatus::Unknown {
        return Plan::End;
    }
    let is_owed = pending.owed().next().is_some();
    if !is_owed && !pending.is_skipping() {
        return nothing_owed(pending, way);
    }
    let is_untouched = !(pending.has_started() || pending.has_failed());
    if way.is_lone_begin() && is_untouched && is_owed {
        return Plan::Begin;
    }
    Plan::Answer(Writing::new(pending, way).answers(pending, way))
}

/// All that the client has sent is answered. An error that answers nothing would be lost on it.
fn nothing_owed(pending: &PendingReplies, way: &UnderWay) -> Plan {
    // Nothing that a batch has parsed is lost with the connection.
    let is_in_batch = pending.is_batch_open() && way.is_bound();
    Plan::Block(match pending.status() {
        _ if is_in_batch && way.is_unknown() => Block::Batch(Why::Unknown),
        TransactionStatus::InTransaction => Block::Lost,
        TransactionStatus::Failed => Block::Failed,
        _ if is_in_batch && way.begins() => Block::Lost,
        _ if is_in_batch => Block::Batch(Why::NotExecuted),
        TransactionStatus::Idle | TransactionStatus::Unknown => return Plan::Nothing,
    })
}

/// The answers as they are put together.
struct Writing {
    replies: Vec<Reply>,
    /// For the next error.
    why: Why,
    ready: u8,
    block: Block,
    /// The client has the error of the first request owed.
    has_failed: bool,
    /// The batch has its error.
    skips: bool,
}

impl Writing {
    fn new(pending: &PendingReplies, way: &UnderWay) -> Self {
        let status = pending.status();
        let is_open = matches!(
            status,
            TransactionStatus::InTransaction | TransactionStatus::Failed
        );
        let is_in_block = is_open || way.begins();
        let has_failed = pending.has_failed();
        let why = if way.is_unknown() {
            Why::Unknown
        } else if !is_in_block {
            Why::NotExecuted
        } else if has_failed || status == TransactionStatus::Failed && !way.revives() {
            Why::Aborted
        } else {
            Why::RolledBack
        };
        let is_block_left = is_in_block && !way.is_unknown();
        Self {
            replies: Vec::new(),
            why,
            ready: if is_block_left { b'E' } else { b'I' },
            block: if is_block_left { Block::Failed } else { Block::None },
            // Its error says what became of it, unless more than it may be committed.
            has_failed: has_failed && (!way.is_unknown() || !is_in_block),
            skips: false,
        }
    }

    fn error(&mut self) {
        self.replies.push(Reply::Error(self.why));
        if self.why == Why::RolledBack {
            self.why = Why::Aborted;
        }
    }

    fn answers(mut self, pending: &PendingReplies, way: &UnderWay) -> Answers {
        let all: Vec<Owed> = pending.owed().collect();
        let mut is_first = true;
        for (place, owed) in all.iter().enumerate() {
            let has_error = is_first && self.has_failed;
            if !(self.skips || has_error) && self.batch_rolled_back(&all[place..], way) {
                break;
            }
            let is_last = place + 1 == all.len();
            match owed.kind {
                OwedKind::Extended => {
                    if !std::mem::replace(&mut self.skips, true) {
                        self.error();
                    }
                    is_first = false;
                }
                OwedKind::Query | OwedKind::FunctionCall if self.skips => {}
                OwedKind::Query | OwedKind::FunctionCall => {
                    for left in (0..owed.count).rev() {
                        let has_error = is_first && self.has_failed;
                        if left == 0 && is_last && way.rolls_back() && !has_error {
                            self.rolled_back(is_first && pending.has_started());
                            break;
                        }
                        if !has_error {
                            self.error();
                        }
                        self.replies.push(Reply::Ready(self.ready));
                        is_first = false;
                    }
                }
                OwedKind::Sync => {
                    for _ in 0..owed.count {
                        if !self.skips && is_first && self.is_told_at_sync(pending) {
                            self.error();
                        }
                        self.replies.push(Reply::Ready(self.ready));
                        (is_first, self.skips) = (false, false);
                    }
                }
            }
        }
        let is_unknown = self.replies.contains(&Reply::Error(Why::Unknown));
        Answers {
            outcome: if is_unknown {
                Outcome::Unknown
            } else {
                Outcome::RolledBack
            },
            replies: self.replies,
            discards: self.skips || pending.is_skipping(),
            block: self.block,
        }
    }

    /// The end of a batch whose messages are answered: whether there is anything to tell.
    fn is_told_at_sync(&self, pending: &PendingReplies) -> bool {
        !self.has_failed
            && match self.why {
                Why::Unknown => pending.has_executed(),
                Why::RolledBack => true,
                Why::NotExecuted | Why::Aborted => false,
            }
    }

    /// What is left is a batch that is a ROLLBACK, or the end of one: it is answered as by a
    /// server.
    fn batch_rolled_back(&mut self, left: &[Owed], way: &UnderWay) -> bool {
        let Some((
            Owed {
                kind: OwedKind::Sync,
                count: 1,
            },
            messages,
        )) = left.split_last()
        else {
            return false;
        };
        if messages.iter().any(|owed| owed.kind != OwedKind::Extended) {
            return false;
        }
        let owed = messages.iter().map(|owed| owed.count).sum();
        let Some(steps) = way.rolls_back_in_batch(owed) else {
            return false;
        };
        self.replies.extend(steps.map(|step| match step {
            Step::Parse => Reply::Parsed,
            Step::Bind => Reply::Bound,
            Step::Describe => Reply::NoRows,
            Step::Execute => Reply::RolledBack,
        }));
        self.replies.push(Reply::Ready(b'I'));
        self.block = Block::None;
        true
    }

    /// The last request is a ROLLBACK, which is done in any case.
    fn rolled_back(&mut self, has_tag: bool) {
        if !has_tag {
            self.replies.push(Reply::RolledBack);
        }
        self.replies.push(Reply::Ready(b'I'));
        self.block = Block::None;
    }
}

#[cfg(test)]
#[path = "lost_tests.rs"]
mod tests;
