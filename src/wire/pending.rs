//! The account of answers owed: when is a session between transactions?
//!
//! A server owes one `Z` for each Query, `FunctionCall` and Sync *that it processes*. Which it processes depends on
//! its answers: after an error in the extended protocol it discards everything up to the next Sync, and during COPY
//! IN it ignores Sync and Flush. So the account keeps the order of what was sent and not yet answered, and is fed
//! with both directions: each type byte before it is forwarded, each event of the server as it passes
//! (PostgreSQL documentation, chapter "Message Flow"; `PostgresMain` in `src/backend/tcop/postgres.c`;
//! `CopyGetData` in `src/backend/commands/copyfromparse.c`).
//!
//! Guarantees: [`PendingReplies::is_idle`] is never true while the server owes an answer, has an extended-protocol batch
//! open or skips to a Sync. It is pure, has no heap when nothing waits behind what is being answered, and is bounded:
//! at [`FULL_AT`] runs of waiting messages the client must not be read for a while.
//!
//! Where the protocol itself is ambiguous it says so and is not idle. The case: a client sends Sync while COPY IN
//! runs, and the COPY fails. Was the Sync ignored, or does it owe a `Z`? That depends on a moment only the server
//! knows ([`PendingReplies::is_uncertain`]); the first answer to a later request tells, or all the `Z` that may come.

use std::collections::VecDeque;

use super::observe::ServerEvent;

/// Runs of waiting messages at which a client must not be read until answers have come.
pub const FULL_AT: usize = 4096;

/// The same for a client that has closed its side.
pub const LAST_AT: usize = 32_768;

/// Runs of waiting messages beyond which [`PendingReplies::client`] fails. [`LAST_AT`] plus whatever one read of 64 KiB can
/// hold is less.
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
    /// This message is taken, but the queue is full: read from the server first.
    Full,
}

/// The client has more unanswered messages than are ever read ahead: the caller did not heed [`Admit::Full`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PendingError {
    #[error("too many messages wait for an answer")]
    TooManyWaiting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum RequestKind {
    #[default]
    Nothing,
    /// Parse, Bind, Describe, Execute, Close: each is completed by exactly one of `1 2 3 n T C I s`, or fails.
    Extended,
    /// One `Z`, whatever happens.
    Sync,
    Query,
    Function,
    /// `CopyDone`, `CopyFail`: ends COPY IN, means nothing elsewhere.
    CopyEnd,
}

/// Messages of one kind in a row.
#[derive(Debug, Clone, Copy, Default)]
struct Run {
    kind: RequestKind,
    count: u16,
}

impl Run {
    fn requests(self) -> usize {
        match self.kind {
            RequestKind::Nothing | RequestKind::CopyEnd => 0,
            RequestKind::Extended | RequestKind::Sync | RequestKind::Query | RequestKind::Function => {
                usize::from(self.count)
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum CopyMode {
    #[default]
    None,
    /// The server reads copied data; `ended`: the client's `CopyDone` or `CopyFail` is on its way, or something
    /// that has no place in a COPY.
    In {
        ended: bool,
    },
    Out,
    Both,
}

/// What waits behind the message being answered, in order. On the heap only beyond a few runs.
#[derive(Debug, Default)]
struct Waiting {
    near: [Run; 4],
    near_len: u8,
    far: VecDeque<Run>,
}

impl Waiting {
    fn runs(&self) -> usize {
        usize::from(self.near_len) + self.far.len()
    }

    fn is_empty(&self) -> bool {
        self.near_len == 0
    }

    fn iter(&self) -> impl Iterator<Item = &Run> {
        self.near[..usize::from(self.near_len)].iter().chain(&self.far)
    }

    fn requests(&self) -> usize {
        self.iter().map(|run| run.requests()).sum()
    }

    fn front(&self) -> Option<Run> {
        self.near[..usize::from(self.near_len)].first().copied()
    }

    fn back(&mut self) -> Option<&mut Run> {
        match self.far.back_mut() {
            Some(run) => Some(run),
            None => self.near[..usize::from(self.near_len)].last_mut(),
        }
    }

    fn push(&mut self, kind: RequestKind) -> Result<(), PendingError> {
        if let Some(run) = self.back().filter(|run| run.kind == kind && run.count < u16::MAX) {
            run.count += 1;
        } else if self.runs() >= MAX_RUNS {
            return Err(PendingError::TooManyWaiting);
        } else if self.far.is_empty() && usize::from(self.near_len) < self.near.len() {
            self.near[usize::from(self.near_len)] = Run { kind, count: 1 };
            self.near_len += 1;
        } else {
            self.far.push_back(Run { kind, count: 1 });
        }
        Ok(())
    }

    fn pop(&mut self) -> Option<Run> {
        let run = self.front()?;
        self.near.rotate_left(1);
        self.near_len -= 1;
        if self.near_len == 0 {
            while let Some(far) = (usize::from(self.near_len) < self.near.len())
                .then(|| self.far.pop_front())
                .flatten()
            {
                self.near[usize::from(self.near_len)] = far;
                self.near_len += 1;
            }
            if self.far.is_empty() {
                self.far = VecDeque::new();
            }
        }
        Some(run)
    }

    /// One message of the first run.
    fn pop_one(&mut self) {
        match self.near.first_mut() {
            Some(run) if self.near_len > 0 && run.count > 1 => run.count -= 1,
            _ => {
                self.pop();
            }
        }
    }
}

#[derive(Debug, Default)]
pub struct PendingReplies {
    /// What the server is answering, or will answer next.
    current: Run,
    /// The first of `current` has been answered in part: its `Z` may come.
    started: bool,
    waiting: Waiting,
    copy: CopyMode,
    /// Syncs sent into the COPY IN under way: ignored if it succeeds.
    copy_syncs: u32,
    /// `Z` that may or may not come. While there are any, `current` may be behind the server by as many.
    uncertain: u32,
    status: TransactionStatus,
    /// Discarding up to a Sync that the client has not sent yet.
    skipping: bool,
    /// The last extended message sent was not followed by Sync, Query or `FunctionCall`.
    batch_open: bool,
    /// An Execute was sent since the account was last empty.
    execute_sent: bool,
    /// An Execute, or what may have been one, was answered since the last `Z`.
    executed: bool,
    /// A command was completed since the last time the server was idle.
    worked: bool,
    /// A COPY in both directions was the last thing, and the server has completed it.
    stream_ended: bool,
    terminated: bool,
    /// The server has said its last word.
    over: bool,
    /// The server answered what nobody asked: not a PostgreSQL, or our mistake. Never idle again.
    lost: bool,
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

    /// Nothing is owed, no batch of the extended protocol is open, and the last `Z` was seen: the server does nothing
    /// until the client asks. (Whether a frame is under way, the observers know.)
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

    /// How many messages the server has not answered yet; `None` where that cannot be told. What is answered need not be
    /// settled ([`Self::has_executed`]). A stream in both directions (replication) is no request: its client can go on
    /// elsewhere where it stopped.
    pub fn outstanding(&self) -> Option<usize> {
        let is_known = self.status != TransactionStatus::Unknown && !self.is_uncertain();
        match self.copy {
            _ if self.stream_ended => Some(0),
            CopyMode::Both if !self.lost => Some(0),
            CopyMode::None | CopyMode::Out if is_known => {
                Some(self.current.requests() + self.waiting.requests())
            }
            _ => None,
        }
    }

    /// If what is being answered failed now: the status that the `Z` behind the error would have; `None` where no `Z`
    /// would come, as the client has not sent the Sync yet, or where that cannot be told.
    pub fn ready_after_error(&self) -> Option<u8> {
        let has_sync = || self.waiting.iter().any(|run| run.kind == RequestKind::Sync);
        let comes = match self.current.kind {
            RequestKind::Query | RequestKind::Function | RequestKind::Sync => true,
            RequestKind::Extended => has_sync(),
            RequestKind::Nothing | RequestKind::CopyEnd => false,
        };
        let is_known = !self.over && !self.is_uncertain() && self.copy != CopyMode::Both;
        (comes && is_known).then_some(match self.status {
            TransactionStatus::Idle | TransactionStatus::Unknown => b'I',
            TransactionStatus::InTransaction | TransactionStatus::Failed => b'E',
        })
    }

    /// A COPY in both directions was completed by the server, which has said nothing else since: at a shutdown a server
    /// ends replication streams this way, and closes.
    pub fn stream_has_ended(&self) -> bool {
        self.stream_ended
    }

    /// Something is not committed yet: a transaction block is open, or a batch of the extended protocol without its Sync.
    pub fn is_open(&self) -> bool {
        self.batch_open
            || matches!(
                self.status,
                TransactionStatus::InTransaction | TransactionStatus::Failed
            )
    }

    /// Something was executed by the extended protocol, and no `Z` has said since what became of it: COMMIT, CALL or VACUUM
    /// commit without a Sync, anything else is rolled back without one.
    pub fn has_executed(&self) -> bool {
        self.executed
    }

    /// Whether the server answers messages of this type, each by itself.
    pub fn is_request(tag: u8) -> bool {
        matches!(tag, b'Q' | b'F' | b'P' | b'B' | b'D' | b'E' | b'C' | b'S')
    }

    /// A COPY in any direction is under way.
    pub fn in_copy(&self) -> bool {
        self.copy != CopyMode::None
    }

    /// Something was sent that could be read in two ways: not idle until an answer tells, and the server connection
    /// should not be given to anybody else.
    pub fn is_uncertain(&self) -> bool {
        self.uncertain > 0 || self.lost
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

    /// A message of the client, before it is forwarded.
    pub fn client(&mut self, tag: u8) -> Result<Admit, PendingError> {
        match tag {
            b'X' => self.terminated = true,
            // Data is consumed or ignored, never answered; Flush asks for what comes anyway.
            b'd' | b'H' => {}
            b'c' | b'f' => match &mut self.copy {
                CopyMode::In { ended } if !*ended => *ended = true,
                CopyMode::Both => {}
                // Ignored, unless something before it turns out to be a COPY.
                _ if self.current.kind != RequestKind::Nothing => self.push(RequestKind::CopyEnd)?,
                _ => {}
            },
            b'S' => {
                if self.copy == (CopyMode::In { ended: false }) {
                    self.copy_syncs = self.copy_syncs.saturating_add(1);
                } else {
                    self.push(RequestKind::Sync)?;
                    self.skipping = false;
                }
                self.batch_open = false;
            }
            // Whether the server skips this depends on a Sync that it may have taken for a part of a COPY.
            _ if self.skipping && self.uncertain > 0 => self.lost = true,
            _ if self.skipping => {}
            b'Q' => self.request(RequestKind::Query)?,
            b'F' => self.request(RequestKind::Function)?,
            b'P' | b'B' | b'D' | b'E' | b'C' => {
                self.push(RequestKind::Extended)?;
                self.batch_open = true;
                self.execute_sent |= tag == b'E';
            }
            // The server ends the session over anything else.
            _ => {}
        }
        Ok(if self.full() { Admit::Full } else { Admit::More })
    }

    /// A message of the server, as it passes.
    pub fn server(&mut self, event: &ServerEvent<'_>) {
        let was_streaming = self.copy == CopyMode::Both;
        self.stream_ended &= matches!(event, ServerEvent::Notice(_) | ServerEvent::Parameter { .. });
        match *event {
            ServerEvent::ReadyForQuery(status) => self.ready(status),
            ServerEvent::CommandComplete(_) => {
                self.worked = true;
                self.executed |= self.current.kind == RequestKind::Extended;
                if matches!(self.copy, CopyMode::In { ended: false }) {
                    self.lost = true;
                }
                self.completed();
                self.stream_ended = was_streaming;
            }
            // The rows of a Query: nothing is done yet.
            ServerEvent::Answer(b'T') if self.current.kind == RequestKind::Query => self.answered(),
            ServerEvent::Answer(tag) => {
                self.worked |= matches!(tag, b'V' | b's');
                self.executed |= self.current.kind == RequestKind::Extended && matches!(tag, b'I' | b's');
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
            | ServerEvent::Notification => {}
        }
    }

    fn request(&mut self, kind: RequestKind) -> Result<(), PendingError> {
        self.push(kind)?;
        // Both commit what an open batch has done.
        self.batch_open = false;
        Ok(())
    }

    fn push(&mut self, kind: RequestKind) -> Result<(), PendingError> {
        if let CopyMode::In { ended } = &mut self.copy {
            *ended = true;
        }
        if self.current.kind == RequestKind::Nothing {
            self.current = Run { kind, count: 1 };
            return Ok(());
        }
        if self.waiting.is_empty() && self.current.kind == kind && self.current.count < u16::MAX {
            self.current.count += 1;
            return Ok(());
        }
        self.waiting.push(kind)
    }

    /// One message of `current` is answered for good.
    fn advance(&mut self) {
        self.leave_copy();
        self.started = false;
        self.current.count -= 1;
        if self.current.count == 0 {
            self.next();
        }
    }

    /// Says how many Syncs were sent into it.
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

    /// Something came that can only be about `current`: whatever was uncertain before it is settled.
    fn answered(&mut self) {
        match self.current.kind {
            RequestKind::Query | RequestKind::Function | RequestKind::Extended => {
                self.uncertain = 0;
                self.started = true;
            }
            RequestKind::Nothing | RequestKind::Sync | RequestKind::CopyEnd => self.lost = true,
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
        // Anything but data, Sync, Flush and its end breaks the COPY: then the server ends the session, unless the
        // COPY had failed before; so what follows that is not part of the COPY either way.
        let mut ended = self.current.count > 1;
        while !ended && let Some(run) = self.waiting.front() {
            match run.kind {
                RequestKind::Sync => {
                    self.copy_syncs = self.copy_syncs.saturating_add(u32::from(run.count));
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
        self.worked = true;
        let may_owe = self.leave_copy();
        match self.current.kind {
            // Its `Z` follows; then those of Syncs that were sent into the COPY, if it had not read them.
            RequestKind::Query | RequestKind::Function => {
                self.uncertain = may_owe;
                self.started = true;
            }
            // At the Sync itself: deferred constraints.
            RequestKind::Sync => {}
            RequestKind::Extended => {
                // Also a procedure that has committed before it failed.
                self.executed |= self.execute_sent;
                self.uncertain = may_owe;
                let more = self.current.count > 1;
                self.next();
                if may_owe > 0
                    && (more || !matches!(self.current.kind, RequestKind::Nothing | RequestKind::Sync))
                {
                    // Skipped or not? It cannot be told, and the two go different ways.
                    self.lost = true;
                }
                while !matches!(self.current.kind, RequestKind::Nothing | RequestKind::Sync) {
                    self.next();
                }
                self.skipping = self.current.kind == RequestKind::Nothing;
            }
            // Nothing was asked: only FATAL comes unasked.
            RequestKind::Nothing | RequestKind::CopyEnd => self.lost = true,
        }
    }

    fn ready(&mut self, status: TransactionStatus) {
        self.status = status;
        self.executed = false;
        if status == TransactionStatus::Idle && std::mem::take(&mut self.worked) {
            self.transactions += 1;
        }
        match self.current.kind {
            RequestKind::Sync => self.advance(),
            // A request says something before its `Z`: if this one has not, the `Z` is one of the uncertain ones.
            RequestKind::Query | RequestKind::Function if self.started || self.uncertain == 0 => {
                self.advance();
            }
            _ if self.uncertain > 0 => {
                self.uncertain -= 1;
                // A Sync of the COPY was processed after all.
                self.skipping = false;
            }
            _ => self.lost = true,
        }
        self.execute_sent &= self.batch_open || self.current.kind != RequestKind::Nothing;
    }
}

#[cfg(any(test, fuzzing))]
#[path = "pending_model.rs"]
pub(crate) mod model;
#[cfg(test)]
#[path = "pending_tests.rs"]
mod tests;
