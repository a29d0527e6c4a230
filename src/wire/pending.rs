//! Pending replies: what the server still has to answer, and to whom. It says when a session is
//! between transactions.
//!
//! A server sends one `Z` for each Query, `FunctionCall` and Sync *that it processes*. Which ones
//! it processes depends on its answers: after an error in the extended protocol it discards
//! everything up to the next Sync, and during COPY IN it ignores Sync and Flush. So this keeps the
//! order of the requests that were sent and not yet answered. It is fed with both directions: each
//! type byte before it is forwarded, each event of the server as it passes (PostgreSQL
//! documentation, chapter "Message Flow"; `PostgresMain` in `src/backend/tcop/postgres.c`;
//! `CopyGetData` in `src/backend/commands/copyfromparse.c`).
//!
//! Each request has an owner: the client, or the router where it asks something itself on the same
//! connection (to restore session state, to clean up). [`PendingReplies::server`] says whose each
//! reply is, so that the router's own replies can be kept from the client.
//!
//! Guarantees: [`PendingReplies::is_idle`] is never true while a reply is pending, an
//! extended-protocol batch is open, or the server skips to a Sync. The owner of a reply is exact
//! unless [`PendingReplies::is_lost`]. This is pure, has no heap when nothing waits behind the
//! request being answered, and has a limit: at [`FULL_AT`] runs of waiting messages the client must
//! not be read for a while.
//!
//! Where the protocol itself is ambiguous, this says so and is not idle. The case: a client sends
//! Sync while COPY IN runs, and the COPY fails. Was the Sync ignored, or is its `Z` still to come?
//! That depends on a moment only the server knows ([`PendingReplies::is_uncertain`]). The first
//! answer to a later request settles it, or all the `Z` that may come.

mod owed;
mod queue;
mod waiting;

use queue::{RequestKind, Run, Waiting};

pub use self::owed::{Owed, OwedKind};
pub use self::queue::Owner;
use super::observe::ServerEvent;

/// Runs of waiting messages at which a client must not be read until answers have come.
pub const FULL_AT: usize = 4096;

/// The same limit for a client that has closed its side.
pub const LAST_AT: usize = 32_768;

/// Runs of waiting messages beyond which [`PendingReplies::client`] fails. [`LAST_AT`] plus the
/// messages that one read of 64 KiB can hold is less.
pub const MAX_RUNS: usize = 65_536;

/// What the last `Z` said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransactionStatus {
    Idle,
    InTransaction,
    /// In a failed transaction: only ROLLBACK is accepted.
    Failed,
    /// No `Z` was seen yet.
    #[default]
    Unknown,
}

/// Whether more may be read from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Admit {
    More,
    /// This message is accepted, but the queue is full: read from the server first.
    Full,
}

/// The client has more unanswered messages than are ever read ahead: the caller ignored
/// [`Admit::Full`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PendingError {
    #[error("too many messages wait for an answer")]
    TooManyWaiting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum CopyMode {
    #[default]
    None,
    /// The server reads copied data. `ended`: `CopyDone` or `CopyFail` is on its way, or a message
    /// that has no place in a COPY.
    In {
        ended: bool,
    },
    Out,
    Both,
}

#[derive(Debug, Default)]
pub struct PendingReplies {
    /// The requests that the server is answering, or will answer next.
    current: Run,
    /// The first of `current` has been answered in part: its `Z` may come.
    started: bool,
    /// An error was the answer to it, or to its batch: only its `Z` is to come, and so for a batch
    /// whose Sync was not sent yet.
    errored: bool,
    waiting: Waiting,
    copy: CopyMode,
    /// Syncs sent into the COPY IN under way: ignored if it succeeds.
    copy_syncs: u32,
    /// `Z` that may or may not come. While there are any, `current` may be behind the server by as
    /// many.
    uncertain: u32,
    /// Who sent the Syncs that are counted in `copy_syncs` or `uncertain`; `None`: both did.
    sync_owner: Option<Owner>,
    status: TransactionStatus,
    /// The server discards messages up to a Sync that was not sent yet.
    skipping: bool,
    /// The last extended message sent was not followed by Sync, Query or `FunctionCall`.
    batch_open: bool,
    /// The client sent an Execute since the last moment at which no reply was pending.
    execute_sent: bool,
    /// An Execute of the client, or what may have been one, was answered since the last `Z`.
    executed: bool,
    /// A command of the client was completed since the last time the server was idle.
    worked: bool,
    /// A COPY in both directions was the last thing, and the server has completed it.
    stream_ended: bool,
    terminated: bool,
    /// The server has ended the session with a FATAL error.
    over: bool,
    /// See [`PendingReplies::is_lost`].
    lost: bool,
    /// It is lost because of what the server said.
    out_of_step: bool,
    transactions: u64,
}

impl PendingReplies {
    /// For a connection after login's `Z`, which said `status`.
    pub fn new(status: TransactionStatus) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    /// No reply is pending, no batch of the extended protocol is open, and the last `Z` was seen:
    /// the server does nothing until it is asked. (The observers know whether a frame is under
    /// way.)
    pub fn is_idle(&self) -> bool {
        self.status != TransactionStatus::Unknown
            && self.current.kind == RequestKind::Nothing
            && self.uncertain == 0
            && !(self.skipping || self.batch_open || self.terminated || self.over || self.lost)
    }

    /// Idle, and in no transaction.
    pub fn between_transactions(&self) -> bool {
        self.is_idle() && self.status == TransactionStatus::Idle
    }

    /// What the last `Z` said, also while something is under way.
    pub fn status(&self) -> TransactionStatus {
        self.status
    }

    /// How many messages of the client the server has not answered yet; `None` where that cannot be
    /// known. What is answered need not be settled ([`Self::has_executed`]). A stream in both
    /// directions (replication) is no request: its client can go on elsewhere where it stopped.
    pub fn outstanding(&self) -> Option<usize> {
        let is_known = self.status != TransactionStatus::Unknown && !self.is_uncertain();
        match self.copy {
            _ if self.stream_ended => Some(0),
            CopyMode::Both if !self.lost => Some(0),
            CopyMode::None | CopyMode::Out if is_known => {
                Some(self.pending().map(|run| run.client_requests()).sum())
            }
            _ => None,
        }
    }

    /// As [`Self::outstanding`], with the router's own messages.
    pub fn unanswered(&self) -> Option<usize> {
        self.outstanding()
            .map(|_| self.pending().map(|run| run.requests()).sum())
    }

    fn pending(&self) -> impl Iterator<Item = &Run> {
        std::iter::once(&self.current).chain(self.waiting.iter())
    }

    /// The server completed a COPY in both directions and has said nothing since: at a shutdown a
    /// server ends replication streams this way, and closes.
    pub fn stream_has_ended(&self) -> bool {
        self.stream_ended
    }

    /// Something is not committed yet: a transaction block is open, or a batch of the extended
    /// protocol without its Sync.
    pub fn is_open(&self) -> bool {
        self.batch_open
            || matches!(
                self.status,
                TransactionStatus::InTransaction | TransactionStatus::Failed
            )
    }

    /// Something of the client's was executed by the extended protocol, and no `Z` has confirmed it
    /// since: COMMIT, CALL or VACUUM commit without a Sync, anything else is rolled back without
    /// one.
    pub fn has_executed(&self) -> bool {
        self.executed
    }

    /// Whether the server answers each message of this type.
    pub fn is_request(tag: u8) -> bool {
        matches!(tag, b'Q' | b'F' | b'P' | b'B' | b'D' | b'E' | b'C' | b'S')
    }

    /// A COPY in any direction is under way.
    pub fn in_copy(&self) -> bool {
        self.copy != CopyMode::None
    }

    /// Something was sent that could be read in two ways: not idle until an answer settles it, and
    /// the server connection must not be given to another client.
    pub fn is_uncertain(&self) -> bool {
        self.uncertain > 0 || self.lost
    }

    /// Everything is answered and no transaction is open, but Syncs were sent into a COPY that
    /// failed: it is not known whether the server has read them as a part of it, or answers them.
    /// The answer to the next request settles it.
    pub fn has_only_doubtful_syncs(&self) -> bool {
        self.uncertain > 0
            && self.status == TransactionStatus::Idle
            && self.current.kind == RequestKind::Nothing
            && self.copy == CopyMode::None
            && !(self.skipping || self.batch_open || self.terminated || self.over || self.lost)
    }

    /// Replies can no longer be matched with requests, nor have they an owner: the server answered
    /// what nobody asked, or what is uncertain has no end. Never idle again.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// The server has answered what nobody asked.
    pub fn is_out_of_step(&self) -> bool {
        self.out_of_step
    }

    /// Only what may come at any time (`N`, `S`, `A`) is to come, or FATAL.
    pub fn owes_nothing(&self) -> bool {
        self.current.kind == RequestKind::Nothing && !(self.uncertain > 0 || self.over || self.lost)
    }

    /// The server has ended the session (FATAL).
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// The client must not be read until answers have come.
    pub fn full(&self) -> bool {
        self.waiting.runs() >= FULL_AT
    }

    /// Though it is [`Self::full`], what a kernel holds of one connection may still be read.
    pub fn has_room(&self) -> bool {
        self.waiting.runs() < LAST_AT
    }

    /// Transactions completed: the server was idle again after it had completed a command.
    pub fn transactions(&self) -> u64 {
        self.transactions
    }

    /// The owner of what the server sends next without an event: rows and copied data.
    pub fn answering(&self) -> Owner {
        self.current.owner
    }

    /// A message of the client, before it is forwarded.
    pub fn client(&mut self, tag: u8) -> Result<Admit, PendingError> {
        self.sent(tag, Owner::Client)
    }

    /// A message of the router itself, before it is sent. It may stand between any two of the
    /// client's, though only a boundary makes it certain that the server answers it: in a batch
    /// that has failed it is discarded.
    pub fn router(&mut self, tag: u8) -> Result<Admit, PendingError> {
        self.sent(tag, Owner::Router)
    }

    #[inline]
    fn sent(&mut self, tag: u8, owner: Owner) -> Result<Admit, PendingError> {
        match tag {
            b'X' => self.terminated = true,
            // Data is consumed or ignored, never answered; Flush asks for what comes anyway.
            b'd' | b'H' => {}
            b'c' | b'f' => match &mut self.copy {
                CopyMode::In { ended } if !*ended => *ended = true,
                CopyMode::Both => {}
                // Ignored, unless something before it turns out to be a COPY.
                _ if self.current.kind != RequestKind::Nothing => self.push(RequestKind::CopyEnd, owner)?,
                _ => {}
            },
            b'S' => {
                if self.copy == (CopyMode::In { ended: false }) {
                    self.add_copy_syncs(owner, 1);
                } else {
                    self.push(RequestKind::Sync, owner)?;
                    self.skipping = false;
                }
                self.batch_open = false;
            }
            // Whether the server skips this depends on a Sync that it may have taken for a part of
            // a COPY.
            _ if self.skipping && self.uncertain > 0 => self.lost = true,
            _ if self.skipping => {}
            b'Q' => self.request(RequestKind::Query, owner)?,
            b'F' => self.request(RequestKind::FunctionCall, owner)?,
            b'P' | b'B' | b'D' | b'E' | b'C' => {
                self.push(RequestKind::Extended, owner)?;
                self.batch_open = true;
                self.execute_sent |= tag == b'E' && owner == Owner::Client;
            }
            // The server ends the session over anything else.
            _ => {}
        }
        Ok(if self.full() { Admit::Full } else { Admit::More })
    }

    /// A message of the server, as it passes; says whose it is.
    ///
    /// Notices, changes of parameters and notifications are always the client's: they may come at
    /// any time, and nothing in them says which request they belong to, if any. A FATAL error
    /// belongs to the owner of the request under way, and to the client where there is none.
    #[inline]
    pub fn server(&mut self, event: &ServerEvent<'_>) -> Owner {
        // Nearly everything is the client's: one comparison, and nothing else depends on the owner.
        if self.current.owner == Owner::Client {
            self.server_says::<true>(event)
        } else {
            self.server_says::<false>(event)
        }
    }

    #[inline]
    fn server_says<const IS_CLIENT: bool>(&mut self, event: &ServerEvent<'_>) -> Owner {
        let was_streaming = self.copy == CopyMode::Both;
        self.stream_ended &= matches!(event, ServerEvent::Notice(_) | ServerEvent::Parameter { .. });
        let kind = self.current.kind;
        match *event {
            ServerEvent::ReadyForQuery(status) => return self.ready(status),
            ServerEvent::CommandComplete(_) => {
                self.worked |= IS_CLIENT;
                self.executed |= IS_CLIENT && kind == RequestKind::Extended;
                if matches!(self.copy, CopyMode::In { ended: false }) {
                    self.lost = true;
                }
                self.completed();
                self.stream_ended = was_streaming;
            }
            // The rows of a Query: nothing is done yet.
            ServerEvent::Answer(b'T') if kind == RequestKind::Query => self.answered(),
            ServerEvent::Answer(tag) => {
                self.worked |= IS_CLIENT && matches!(tag, b'V' | b's');
                self.executed |= IS_CLIENT && kind == RequestKind::Extended && matches!(tag, b'I' | b's');
                self.completed();
            }
            ServerEvent::CopyIn => self.copy_in(),
            ServerEvent::CopyOut => self.copying(CopyMode::Out),
            ServerEvent::CopyBoth => self.copying(CopyMode::Both),
            ServerEvent::Error(report) if report.is_fatal() => self.over = true,
            ServerEvent::Error(_) => self.failed(),
            ServerEvent::Notice(_)
            | ServerEvent::Parameter { .. }
            | ServerEvent::Key { .. }
            | ServerEvent::Notification => return Owner::Client,
        }
        if IS_CLIENT { Owner::Client } else { Owner::Router }
    }

    fn request(&mut self, kind: RequestKind, owner: Owner) -> Result<(), PendingError> {
        self.push(kind, owner)?;
        // Both commit what an open batch has done.
        self.batch_open = false;
        Ok(())
    }

    fn push(&mut self, kind: RequestKind, owner: Owner) -> Result<(), PendingError> {
        if let CopyMode::In { ended } = &mut self.copy {
            *ended = true;
        }
        if self.current.kind == RequestKind::Nothing {
            self.current = Run::one(kind, owner);
            return Ok(());
        }
        if self.waiting.is_empty() && self.current.extend(kind, owner) {
            return Ok(());
        }
        self.waiting.push(kind, owner)
    }

    /// One message of `current` has its last answer.
    fn advance(&mut self) {
        self.leave_copy();
        self.started = false;
        self.current.count -= 1;
        if self.current.count == 0 {
            self.next();
        }
    }

    fn add_copy_syncs(&mut self, owner: Owner, count: u16) {
        if self.copy_syncs == 0 {
            self.sync_owner = Some(owner);
        } else if self.sync_owner != Some(owner) {
            self.sync_owner = None;
        }
        self.copy_syncs = self.copy_syncs.saturating_add(u32::from(count));
    }

    /// Returns how many Syncs were sent into it.
    fn leave_copy(&mut self) -> u32 {
        self.copy = CopyMode::None;
        std::mem::take(&mut self.copy_syncs)
    }

    fn next(&mut self) {
        self.current = Run::default();
        self.started = false;
        while let Some(run) = self.waiting.pop() {
            // Not behind a COPY IN: ignored.
            if run.kind != RequestKind::CopyEnd {
                self.current = run;
                break;
            }
        }
    }

    fn unasked(&mut self) {
        self.out_of_step |= !self.lost;
        self.lost = true;
    }

    /// Something came that can only be about `current`: what was uncertain before it is settled.
    fn answered(&mut self) {
        match self.current.kind {
            RequestKind::Query | RequestKind::FunctionCall | RequestKind::Extended => {
                self.uncertain = 0;
                self.started = true;
            }
            RequestKind::Nothing | RequestKind::Sync | RequestKind::CopyEnd => self.unasked(),
        }
    }

    /// A command within a Query, or one message of the extended protocol, is done.
    fn completed(&mut self) {
        self.answered();
        if self.current.kind == RequestKind::Extended {
            let took_syncs = self.copy_syncs > 0;
            self.advance();
            // A Sync that the COPY took has closed no batch.
            self.batch_open |= took_syncs && self.current.kind == RequestKind::Nothing;
        } else {
            self.leave_copy();
        }
    }

    fn copying(&mut self, copy: CopyMode) {
        self.answered();
        self.copy = copy;
    }

    /// The server now reads what follows the COPY, up to `CopyDone` or `CopyFail`, as part of it.
    fn copy_in(&mut self) {
        self.answered();
        // Anything but data, Sync, Flush and its end breaks the COPY: then the server ends the
        // session, unless the COPY had failed before; so what follows that is not part of the COPY
        // either way.
        let mut ended = self.current.count > 1;
        while !ended && let Some(run) = self.waiting.front() {
            match run.kind {
                RequestKind::Sync => {
                    self.add_copy_syncs(run.owner, run.count);
                    self.waiting.pop();
                }
                RequestKind::CopyEnd => {
                    ended = true;
                    self.waiting.pop_one();
                }
                _ => ended = true,
            }
        }
        self.copy = CopyMode::In { ended };
    }

    /// A request failed, and the session goes on.
    fn failed(&mut self) {
        let is_client = self.current.owner == Owner::Client;
        self.worked |= is_client;
        self.errored = self.current.kind != RequestKind::Nothing;
        let syncs = self.leave_copy();
        // Some of them are answered, and it is unknown whose.
        self.lost |= syncs > 0 && self.sync_owner.is_none();
        match self.current.kind {
            // Its `Z` follows; then those of Syncs that were sent into the COPY, if it had not read
            // them.
            RequestKind::Query | RequestKind::FunctionCall => {
                self.uncertain = syncs;
                self.started = true;
            }
            // At the Sync itself: deferred constraints.
            RequestKind::Sync => {}
            RequestKind::Extended => {
                // A procedure may have committed before it failed.
                self.executed |= self.execute_sent;
                self.uncertain = syncs;
                let more = self.current.count > 1;
                self.next();
                if syncs > 0
                    && (more || !matches!(self.current.kind, RequestKind::Nothing | RequestKind::Sync))
                {
                    // The server may skip it or not: this cannot be known, and what follows depends
                    // on it.
                    self.lost = true;
                }
                while !matches!(self.current.kind, RequestKind::Nothing | RequestKind::Sync) {
                    self.next();
                }
                self.skipping = self.current.kind == RequestKind::Nothing;
            }
            // Nothing was asked: only FATAL comes unasked.
            RequestKind::Nothing | RequestKind::CopyEnd => self.unasked(),
        }
    }

    fn ready(&mut self, status: TransactionStatus) -> Owner {
        self.status = status;
        self.executed = false;
        self.errored = false;
        if status == TransactionStatus::Idle && std::mem::take(&mut self.worked) {
            self.transactions += 1;
        }
        let mut owner = self.current.owner;
        match self.current.kind {
            RequestKind::Sync => {
                // It may be the `Z` of an uncertain Sync as well: then that one must have the same
                // owner.
                self.lost |= self.uncertain > 0 && self.sync_owner != Some(owner);
                self.advance();
            }
            // A request says something before its `Z`: if this one has not, the `Z` is one of the
            // uncertain ones.
            RequestKind::Query | RequestKind::FunctionCall if self.started || self.uncertain == 0 => {
                self.advance();
            }
            _ if self.uncertain > 0 => {
                owner = self.sync_owner.unwrap_or_default();
                self.uncertain -= 1;
                // A Sync of the COPY was processed after all.
                self.skipping = false;
            }
            _ => self.unasked(),
        }
        self.execute_sent &= self.batch_open || self.current.kind != RequestKind::Nothing;
        owner
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod model;
#[cfg(test)]
mod tests;
