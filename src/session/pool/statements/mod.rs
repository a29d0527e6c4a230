//! Prepared statements of sessions that share server connections.
//!
//! A client prepares a statement once and expects it to be there until it closes it. In transaction
//! pooling its next transaction may run on another server connection, which has never heard of it,
//! or on which another client uses the same name for something else. So each statement gets a name
//! of the router's on the servers; the client's Bind, Describe and Close are renamed as they pass,
//! and a connection that does not have the statement gets a Parse of the router's own in front.
//!
//! - [`Interner`], one per pool: statements by text, parameter types and path; sessions that
//!   prepare the same share one [`interner::Statement`], and so one copy on each connection.
//! - [`SessionStatements`], one per client: which of its names is which statement.
//! - [`ConnectionStatements`], one per server connection: which statements it has, and the messages
//!   on their way to it, in order.
//! - [`Rewriter`], the three together while a session has the connection.
//!
//! Guarantees: what the client sees is what one server connection of its own would answer, with the
//! exceptions listed below. A name exists for the client only after the server has accepted its
//! Parse. A statement keeps its parameter types wherever it is prepared again, and is refused
//! (0A000) where its result columns would differ. Memory is limited by number and bytes, for each
//! session and each connection. There is no IO and no clock here.
//!
//! The client's own Parse is always executed by the server, although the connection may have the
//! statement already: only this gives its errors, types and columns as they are now, and its answer
//! in order. It costs once per client and statement; a Bind costs a rename.
//!
//! A message waits ([`Step::Wait`]) where it cannot be known yet what it means: its name depends on
//! an answer to an earlier batch, or the connection has just been given a statement with rows,
//! whose columns must be seen before anything is executed. Both happen once per statement and
//! connection.
//!
//! What differs from a connection of one's own:
//! - SQL's `EXECUTE` does not find what was prepared by Parse, and neither a Parse nor SQL's
//!   `PREPARE` collides with a name that the other has taken.
//! - `DEALLOCATE` of what was prepared by Parse works only where it stands alone in its Query or
//!   Parse, and where the name is known when that is sent.
//! - The unnamed statement is prepared again without a look at its columns, and with the parameter
//!   types of the server's first answer only if the client has asked for them (Describe).
//! - A function that deallocates statements takes those of other sessions away too. They notice it
//!   once for each connection (26000).

mod client;
mod connection;
mod effect;
mod frames;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod interner;
mod ledger;
mod sequences;
mod server;
mod session;
mod sql;
#[cfg(test)]
mod tests;

use bytes::{Bytes, BytesMut};

use super::state::Command;
use crate::wire::pending::{Owner, PendingError, PendingReplies};
use client::Way;
use effect::Effect;
use ledger::Kind;

pub(crate) use connection::ConnectionStatements;
pub(crate) use interner::{Interner, PREFIX};
pub(crate) use session::SessionStatements;

/// Limits of what one session, or one server connection, may have prepared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Named statements.
    pub(crate) statements: usize,
    /// Bytes of their texts and parameter types. One unnamed statement of the same size may be kept
    /// besides.
    pub(crate) bytes: usize,
}

/// What statements on one connection came to, since it was last asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    /// A Parse was sent: the client's, or the router's where the connection did not have it.
    pub(crate) parsed: u64,
    /// A Bind or Describe found its statement on the connection.
    pub(crate) found: u64,
    /// Closed to make room.
    pub(crate) evicted: u64,
}

/// What becomes of one message of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Step {
    /// It is on its way, and announced. First what was appended to `out`, then the frame from byte
    /// `replaced` on, with whatever of a long frame had not come yet. Most often nothing was
    /// appended and `replaced` is 0.
    Forward { replaced: usize },
    /// Nothing of it may be sent yet: its meaning depends on an answer that is still to come. What
    /// was appended to `out` must be sent (it ends with Flush). Do not read the client; offer the
    /// same frame again once [`Rewriter::is_waiting`] is false.
    Wait,
}

/// It goes as it is.
const FORWARD: Step = Step::Forward { replaced: 0 };

/// What becomes of one message of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub(crate) enum Answer {
    /// The client gets it as it is.
    Forward,
    /// It answers the router: the client must not see it.
    Swallow,
    /// The client gets this frame in its place.
    Instead(Bytes),
}

/// Where a statement's names are resolved: part of its identity (fingerprint of `search_path` and
/// whatever else decides what a text means).
pub(crate) type Path = u64;

/// The statements of a session on the connection that it has. Made anew for each run of messages:
/// it only borrows.
#[derive(Debug)]
pub(crate) struct Rewriter<'a> {
    interner: &'a Interner,
    session: &'a mut SessionStatements,
    connection: &'a mut ConnectionStatements,
    path: Option<Path>,
}

impl<'a> Rewriter<'a> {
    /// `path`: as confirmed at the last boundary; `None` where this transaction may have changed
    /// it: what is prepared now is not shared with other sessions.
    pub(crate) fn new(
        interner: &'a Interner,
        session: &'a mut SessionStatements,
        connection: &'a mut ConnectionStatements,
        path: Option<Path>,
    ) -> Self {
        Self {
            interner,
            session,
            connection,
            path,
        }
    }

    /// One message of the client, of any type, in order. `frame` is the header and the body; of a
    /// Parse, Bind, Query or FunctionCall it may be only a prefix with the names in it (the first
    /// [`MIN_PREFIX`] bytes are enough), other types must be whole. What is sent is announced to
    /// `pending` here, the router's own messages too.
    pub(crate) fn client(
        &mut self,
        tag: u8,
        frame: &[u8],
        out: &mut BytesMut,
        pending: &mut PendingReplies,
    ) -> Result<Step, PendingError> {
        self.connection.waiting = false;
        let differs = self.connection.differs.take();
        self.message(tag, frame, differs, &mut Way { out, pending })
    }

    /// A message of the router's own that the caller sends on this connection, among the client's
    /// (a question at a boundary, a Sync to clean up). It is announced to `pending` here.
    pub(crate) fn router(&mut self, tag: u8, pending: &mut PendingReplies) -> Result<(), PendingError> {
        self.router_with(tag, Effect::None, pending)
    }

    /// The same. `effect`: what a message of the extended protocol changes.
    fn router_with(
        &mut self,
        tag: u8,
        effect: Effect,
        pending: &mut PendingReplies,
    ) -> Result<(), PendingError> {
        let ledger = &mut self.connection.ledger;
        match tag {
            b'S' => ledger.sync(Owner::Router),
            b'P' | b'B' | b'D' | b'C' | b'E' => ledger.push(Kind::Extended, Owner::Router, effect),
            b'F' => ledger.push(Kind::FunctionCall, Owner::Router, Effect::None),
            b'Q' => {
                ledger.push(Kind::Query, Owner::Router, Effect::None);
                self.session.unnamed_lost();
            }
            b'c' | b'f' => ledger.copy_end(),
            _ => {}
        }
        pending.router(tag).map(|_| ())
    }

    /// One message of the server: any of `1 2 3 t T n C E Z I s V G H W`, in order; others need not
    /// come here. `body` is whole for `t`, `T`, `C`, `E` and `Z`; it is not looked at for others.
    /// `owner` is what [`PendingReplies::server`] says of it.
    pub(crate) fn answered(&mut self, owner: Owner, tag: u8, body: &[u8]) -> Answer {
        self.answer(owner, tag, body)
    }

    /// As [`SessionStatements::command_of`], of the Bind that was forwarded last.
    pub(crate) fn command_bound(&self, bind: &[u8], unnamed: Option<Command>) -> Command {
        match self.connection.ledger.back().map(|entry| &entry.effect) {
            Some(Effect::Use(named)) => named.statement.command(),
            _ => self.session.command_of(bind, unnamed),
        }
    }

    /// The client's next message waits for an answer.
    pub(crate) fn is_waiting(&self) -> bool {
        self.connection.waiting
    }
}

/// A prefix of a long frame is enough if it has this many bytes. A client with longer names than
/// fit has its frame forwarded as it is.
pub(crate) const MIN_PREFIX: usize = 1024;
