//! What the client sends.

use std::sync::Arc;

use bytes::BytesMut;

use super::connection::{Found, Presence};
use super::effect::Effect;
use super::frames::{self, Parse, Target};
use super::interner::{NEVER, SCRATCH, Shape, Statement, TAKEN, is_reserved};
use super::ledger::Kind;
use super::session::{Drops, Kept, Known, Named, UnnamedState, UnnamedText};
use super::sql::{self, Deallocate};
use super::{FORWARD, Rewriter, Step};
use crate::wire::message::ErrorReply;
use crate::wire::pending::{Owner, PendingError, PendingReplies};
use crate::wire::sqlstate::SqlState;

/// Messages on their way at which the next one waits. More than a server answers before it sends:
/// its buffer has 8 KiB, an answer at least five bytes.
const FULL_AT: usize = 4096;

/// Portals of one transaction that are remembered because executing them takes statements away.
const MAX_BOUND: usize = 16;

/// A statement that is never executed. A server prepares it in a failed transaction too.
const DUMMY: &[u8] = b"ROLLBACK";

/// What a Bind or Describe needs of the connection.
enum Ready {
    Yes,
    Wait,
    /// The result columns differ from those that the client has been told.
    Differs,
}

/// Where messages go: the bytes, and the account of who asked.
pub(super) struct Way<'a> {
    pub(super) out: &'a mut BytesMut,
    pub(super) pending: &'a mut PendingReplies,
}

impl Rewriter<'_> {
    /// See [`Rewriter::client`]. `differs`: the statement for which this message has waited has
    /// other columns on this connection.
    pub(super) fn message(
        &mut self,
        tag: u8,
        frame: &[u8],
        differs: Option<u64>,
        way: &mut Way<'_>,
    ) -> Result<Step, PendingError> {
        let ledger = &mut self.connection.ledger;
        let is_extended = matches!(tag, b'P' | b'B' | b'D' | b'C' | b'E');
        if !is_extended && !matches!(tag, b'Q' | b'F' | b'S' | b'c' | b'f')
            || ledger.is_skipping() && tag != b'S'
        {
            let _ = way.pending.client(tag)?;
            return Ok(FORWARD);
        }
        if ledger.len() >= FULL_AT {
            return Ok(self.wait(way));
        }
        match tag {
            b'P' => return self.parse(frame, way),
            b'B' => return self.bind(frame, differs, way),
            b'D' => return self.describe(frame, differs, way),
            b'C' => return self.close(frame, way),
            b'Q' => return self.query(frame, way),
            b'E' => return self.execute(frame, way),
            b'F' => ledger.push(Kind::FunctionCall, Owner::Client, Effect::None),
            b'S' => ledger.sync(Owner::Client),
            _ => ledger.copy_end(),
        }
        let _ = way.pending.client(tag)?;
        Ok(FORWARD)
    }

    /// Flush, as the server may be keeping answers back until a Sync.
    fn wait(&mut self, way: &mut Way<'_>) -> Step {
        frames::put_empty(way.out, b'H');
        self.connection.waiting = true;
        Step::Wait
    }

    /// A message of the client in the extended protocol is on its way.
    fn sent(&mut self, tag: u8, effect: Effect, way: &mut Way<'_>) -> Result<(), PendingError> {
        self.connection.ledger.push(Kind::Extended, Owner::Client, effect);
        way.pending.client(tag).map(|_| ())
    }

    /// A message of the client that is none of this module's business goes as it is. What is
    /// malformed too: the server refuses it.
    fn pass(&mut self, tag: u8, way: &mut Way<'_>) -> Result<Step, PendingError> {
        self.sent(tag, Effect::None, way)?;
        Ok(FORWARD)
    }

    /// A message of the router in the extended protocol is on its way.
    fn own(&mut self, tag: u8, effect: Effect, way: &mut Way<'_>) -> Result<(), PendingError> {
        self.connection.ledger.push(Kind::Extended, Owner::Router, effect);
        way.pending.router(tag).map(|_| ())
    }

    fn batch(&self) -> u64 {
        self.connection.ledger.batch()
    }

    fn parse(&mut self, frame: &[u8], way: &mut Way<'_>) -> Result<Step, PendingError> {
        let Some(parse) = Parse::read(frame) else {
            return self.pass(b'P', way);
        };
        let name = parse.target.name;
        if name.is_empty() {
            return self.parse_unnamed(&parse, way);
        }
        match self.session.known(name, self.batch()) {
            Known::Doubtful => return Ok(self.wait(way)),
            Known::Statement { .. } => return self.refuse_parse(&parse, None, way),
            Known::Nothing => {}
        }
        let Some((text, types)) = &parse.statement else {
            return self.refuse_parse(&parse, Some(self.too_many()), way);
        };
        let (text, types) = (*text, types.as_slice());
        let Some((drops, rewritten)) = self.drops(text) else {
            return Ok(self.wait(way));
        };
        let text = rewritten.as_deref().map_or(text, str::as_bytes);
        if self.session.is_full_for(text.len() + 4 * types.len()) {
            if self.session.has_changes_pending() {
                return Ok(self.wait(way));
            }
            return self.refuse_parse(&parse, Some(self.too_many()), way);
        }
        let statement = match self.path {
            Some(path) => self.interner.shared(text, types, path),
            None => self.interner.private(text, types),
        };
        self.close_copy(&statement, way)?;
        self.make_room(&statement, way)?;
        frames::put_parse(way.out, statement.name(), text, types);
        let batch = self.batch();
        let named = Arc::new(Named {
            name: super::session::key(name).into(),
            statement,
            drops,
        });
        self.session
            .name_sent(name, Some(Arc::clone(&named)), Some(batch));
        self.parsing(&named.statement);
        self.sent(b'P', Effect::Prepare(Arc::clone(&named)), way)?;
        frames::put_statement(way.out, b'D', named.statement.name());
        self.own(b'D', Effect::Learn(named), way)?;
        Ok(Step::Forward {
            replaced: frame.len(),
        })
    }

    /// A copy on the connection, whose description is asked for right behind, is on its way.
    fn parsing(&mut self, statement: &Arc<Statement>) {
        let batch = self.batch();
        let copies = &mut self.connection.copies;
        copies.sent(statement, Presence::Present, batch);
        copies.describing(statement.number());
        self.connection.counts.parsed += 1;
    }

    fn parse_unnamed(&mut self, parse: &Parse<'_>, way: &mut Way<'_>) -> Result<Step, PendingError> {
        let mut step = FORWARD;
        self.session.unnamed.drops = Drops::Nothing;
        let kept = match &parse.statement {
            Some((text, types)) if text.len() + 4 * types.len() <= self.session.limits().bytes => {
                let Some((drops, rewritten)) = self.drops(text) else {
                    return Ok(self.wait(way));
                };
                self.session.unnamed.drops = drops;
                if let Some(rewritten) = &rewritten {
                    frames::put_parse(way.out, "", rewritten.as_bytes(), types);
                    step = Step::Forward {
                        replaced: parse.target.frame_len(),
                    };
                }
                let text = rewritten.as_deref().map_or(*text, str::as_bytes);
                Kept::Text(Arc::new(UnnamedText {
                    text: text.into(),
                    types: types[..].into(),
                }))
            }
            _ => Kept::TooLong,
        };
        self.set_unnamed(b'P', kept, way)?;
        Ok(step)
    }

    fn set_unnamed(&mut self, tag: u8, kept: Kept, way: &mut Way<'_>) -> Result<(), PendingError> {
        let batch = self.batch();
        self.session.unnamed_sent(self.connection.holds, Some(batch));
        self.sent(tag, Effect::SetUnnamed(kept), way)
    }

    /// What executing a text takes away, and the text to send in its place: one that does the same
    /// to a name of the router's. None: that depends on an answer which is still to come.
    fn drops(&self, text: &[u8]) -> Option<(Drops, Option<String>)> {
        let Some(lone) = sql::lone_deallocate(text) else {
            let drops = if sql::drops_all(text) {
                Drops::MaybeAll
            } else {
                Drops::Nothing
            };
            return Some((drops, None));
        };
        let Deallocate::Name(name) = lone else {
            return Some((Drops::MaybeAll, None));
        };
        match self.session.known(&name, self.batch()) {
            Known::Doubtful => None,
            Known::Statement { named, .. } => {
                Some((Drops::Name(named.name.clone()), Some(deallocate(SCRATCH))))
            }
            Known::Nothing if is_reserved(&name) => {
                Some((Drops::Reserved(name.into()), Some(deallocate(NEVER))))
            }
            Known::Nothing => Some((Drops::Nothing, None)),
        }
    }

    /// Sends the Parse under a name that is taken: the server itself says what it would have said
    /// (25P02, a syntax error), and only if it has nothing to say does the reply count. Without
    /// one, the client is told that its own name is taken.
    fn refuse_parse(
        &mut self,
        parse: &Parse<'_>,
        reply: Option<ErrorReply>,
        way: &mut Way<'_>,
    ) -> Result<Step, PendingError> {
        self.put_dummy(TAKEN, way)?;
        let effect = match reply {
            Some(reply) => Effect::Refused(SqlState::DUPLICATE_PREPARED_STATEMENT, Box::new(reply)),
            None => Effect::Shown(TAKEN, parse.target.name.into()),
        };
        let step = parse.target.rename(TAKEN, way.out);
        self.sent(b'P', effect, way)?;
        Ok(step)
    }

    /// Prepares a statement that costs nothing, under a name that only this is for.
    fn put_dummy(&mut self, name: &'static str, way: &mut Way<'_>) -> Result<(), PendingError> {
        frames::put_statement(way.out, b'C', name);
        self.own(b'C', Effect::None, way)?;
        frames::put_parse(way.out, name, DUMMY, &[]);
        self.own(b'P', Effect::None, way)
    }

    fn too_many(&self) -> ErrorReply {
        let limits = self.session.limits();
        ErrorReply::error(
            SqlState::CONFIGURATION_LIMIT_EXCEEDED,
            "the session has too many prepared statements",
        )
        .detail(format!(
            "It has {} of at most {}, with {} of at most {} bytes.",
            self.session.len(),
            limits.statements,
            self.session.bytes(),
            limits.bytes,
        ))
        .hint(
            "Close statements that are not used any more, or ask the router's administrator to raise \
             pool.max_statements or pool.max_statement_bytes.",
        )
    }

    fn bind(&mut self, frame: &[u8], differs: Option<u64>, way: &mut Way<'_>) -> Result<Step, PendingError> {
        let Some(target) = Target::of_bind(frame) else {
            return self.pass(b'B', way);
        };
        if !self.connection.bound.is_empty() {
            let portal = frames::portal(frame);
            self.connection.bound.retain(|(name, _)| **name != *portal);
        }
        self.use_statement(b'B', target, differs, way)
    }

    fn describe(
        &mut self,
        frame: &[u8],
        differs: Option<u64>,
        way: &mut Way<'_>,
    ) -> Result<Step, PendingError> {
        let Some(target) = Target::of_statement(frame) else {
            return self.pass(b'D', way);
        };
        self.use_statement(b'D', target, differs, way)
    }

    fn use_statement(
        &mut self,
        tag: u8,
        target: Target<'_>,
        differs: Option<u64>,
        way: &mut Way<'_>,
    ) -> Result<Step, PendingError> {
        if target.name.is_empty() {
            return self.use_unnamed(tag, target, way);
        }
        let (named, is_new) = match self.session.known(target.name, self.batch()) {
            Known::Doubtful => return Ok(self.wait(way)),
            Known::Statement { named, is_new } => (named, is_new),
            // The server says so itself; or SQL has prepared it.
            Known::Nothing => return self.use_unknown(tag, target, way),
        };
        match self.need(&named.statement, is_new, differs, way)? {
            Ready::Wait => return Ok(self.wait(way)),
            Ready::Differs => {
                let reply = ErrorReply::error(
                    SqlState::FEATURE_NOT_SUPPORTED,
                    "cached plan must not change result type",
                );
                return self.refuse_use(tag, target, reply, way);
            }
            Ready::Yes => {}
        }
        if tag == b'B' && !self.bound(target, &named.drops, way)? {
            return Ok(self.wait(way));
        }
        let step = target.rename(named.statement.name(), way.out);
        self.sent(tag, Effect::Use(named), way)?;
        Ok(step)
    }

    fn use_unknown(&mut self, tag: u8, target: Target<'_>, way: &mut Way<'_>) -> Result<Step, PendingError> {
        if is_reserved(target.name) {
            let step = target.rename(NEVER, way.out);
            self.sent(tag, Effect::Shown(NEVER, target.name.into()), way)?;
            Ok(step)
        } else {
            self.pass(tag, way)
        }
    }

    /// Sends the message with a name that the server does not know.
    fn refuse_use(
        &mut self,
        tag: u8,
        target: Target<'_>,
        reply: ErrorReply,
        way: &mut Way<'_>,
    ) -> Result<Step, PendingError> {
        let step = target.rename(NEVER, way.out);
        let effect = Effect::Refused(SqlState::INVALID_SQL_STATEMENT_NAME, Box::new(reply));
        self.sent(tag, effect, way)?;
        Ok(step)
    }

    /// Sees to it that the connection has the statement.
    fn need(
        &mut self,
        statement: &Arc<Statement>,
        is_new: bool,
        differs: Option<u64>,
        way: &mut Way<'_>,
    ) -> Result<Ready, PendingError> {
        let number = statement.number();
        let rows = matches!(
            statement.resolved(),
            Some(resolved) if matches!(resolved.shape, Shape::Rows(_))
        );
        match self.connection.copies.found(number, self.batch()) {
            Found::Doubtful => return Ok(Ready::Wait),
            Found::Unverified if rows && !is_new => return Ok(Ready::Wait),
            Found::Is(Presence::Present) | Found::Unverified => {
                self.connection.copies.used(number);
                self.connection.counts.found += 1;
                return Ok(Ready::Yes);
            }
            Found::Is(_) if differs == Some(number) => return Ok(Ready::Differs),
            Found::Is(_) => {}
        }
        self.close_copy(statement, way)?;
        self.make_room(statement, way)?;
        frames::put_parse(way.out, statement.name(), &statement.text, statement.types());
        self.own(b'P', Effect::Again(Arc::clone(statement)), way)?;
        self.parsing(statement);
        frames::put_statement(way.out, b'D', statement.name());
        self.own(b'D', Effect::Verify(Arc::clone(statement)), way)?;
        // Where it has rows the client knows its columns: before anything is executed they must be
        // the same here.
        Ok(if rows { Ready::Wait } else { Ready::Yes })
    }

    /// Closes what the connection may have under a statement's name.
    fn close_copy(&mut self, statement: &Arc<Statement>, way: &mut Way<'_>) -> Result<(), PendingError> {
        let found = self.connection.copies.found(statement.number(), self.batch());
        if found == Found::Is(Presence::Absent) {
            return Ok(());
        }
        self.drop_copy(statement, way)
    }

    fn drop_copy(&mut self, statement: &Arc<Statement>, way: &mut Way<'_>) -> Result<(), PendingError> {
        let batch = self.batch();
        frames::put_statement(way.out, b'C', statement.name());
        self.connection.copies.sent(statement, Presence::Absent, batch);
        self.own(b'C', Effect::DropCopy(statement.number()), way)
    }

    fn make_room(&mut self, statement: &Statement, way: &mut Way<'_>) -> Result<(), PendingError> {
        let (limits, number) = (self.connection.limits, statement.number());
        while let Some(victim) = self.connection.copies.victim(statement.size(), number, limits) {
            self.drop_copy(&victim, way)?;
            self.connection.counts.evicted += 1;
        }
        Ok(())
    }

    fn use_unnamed(&mut self, tag: u8, target: Target<'_>, way: &mut Way<'_>) -> Result<Step, PendingError> {
        let batch = self.batch();
        let has = self.connection.holds == Some(self.session.unnamed_version());
        match self.session.unnamed.state(has, batch) {
            UnnamedState::Doubtful => return Ok(self.wait(way)),
            UnnamedState::Same => {}
            UnnamedState::Other => {
                let own = match &self.session.unnamed.kept {
                    Kept::Nothing => {
                        frames::put_statement(way.out, b'C', "");
                        b'C'
                    }
                    Kept::Text(kept) => {
                        frames::put_parse(way.out, "", &kept.text, &kept.types);
                        b'P'
                    }
                    Kept::TooLong => {
                        let reply = self.unnamed_too_long();
                        return self.refuse_use(tag, target, reply, way);
                    }
                };
                self.session.unnamed_sent(self.connection.holds, Some(batch));
                self.own(own, Effect::RestoreUnnamed, way)?;
            }
        }
        let effect = if tag == b'D' {
            Effect::DescribeUnnamed
        } else {
            let drops = self.session.unnamed.drops.clone();
            if !self.bound(target, &drops, way)? {
                return Ok(self.wait(way));
            }
            Effect::None
        };
        self.sent(tag, effect, way)?;
        Ok(FORWARD)
    }

    /// What the Execute behind this Bind will take away; false if that depends on an answer which
    /// is still to come.
    fn bound(&mut self, target: Target<'_>, drops: &Drops, way: &mut Way<'_>) -> Result<bool, PendingError> {
        if let Drops::Name(name) = drops {
            match self.session.known(name, self.batch()) {
                Known::Doubtful => return Ok(false),
                Known::Statement { .. } => self.put_dummy(SCRATCH, way)?,
                // It is executed once more: now it must fail.
                Known::Nothing => {
                    frames::put_statement(way.out, b'C', SCRATCH);
                    self.own(b'C', Effect::None, way)?;
                }
            }
        }
        if !matches!(drops, Drops::Nothing) && self.connection.bound.len() < MAX_BOUND {
            self.connection
                .bound
                .push((target.portal().into(), drops.clone()));
        }
        Ok(true)
    }

    fn unnamed_too_long(&self) -> ErrorReply {
        ErrorReply::error(
            SqlState::CONFIGURATION_LIMIT_EXCEEDED,
            "the unnamed statement is too long to be used again after the end of its batch",
        )
        .detail(format!(
            "Its text and parameter types have more than {} bytes, and the transaction runs on \
             another server connection.",
            self.session.limits().bytes,
        ))
        .hint(
            "Send Parse, Bind and Execute together, or ask the router's administrator to raise \
             pool.max_statement_bytes.",
        )
    }

    fn execute(&mut self, frame: &[u8], way: &mut Way<'_>) -> Result<Step, PendingError> {
        if self.connection.bound.is_empty() {
            return self.pass(b'E', way);
        }
        let portal = frames::portal(frame);
        let bound = self.connection.bound.iter().find(|(name, _)| **name == *portal);
        let effect = match bound.map_or(Drops::Nothing, |(_, drops)| drops.clone()) {
            Drops::Nothing => Effect::None,
            Drops::Name(name) => {
                // Its success is in its own answer, and what follows in this batch can rely on it.
                let batch = self.batch();
                self.session.name_sent(&name, None, Some(batch));
                Effect::Deallocate(name)
            }
            Drops::Reserved(name) => Effect::Shown(NEVER, name),
            Drops::MaybeAll => {
                self.session.doubt();
                Effect::MayDropAll
            }
        };
        self.sent(b'E', effect, way)?;
        Ok(FORWARD)
    }

    /// The copy on the connection stays: other sessions use it.
    fn close(&mut self, frame: &[u8], way: &mut Way<'_>) -> Result<Step, PendingError> {
        let Some(target) = Target::of_statement(frame) else {
            return self.pass(b'C', way);
        };
        if target.name.is_empty() {
            self.set_unnamed(b'C', Kept::Nothing, way)?;
            return Ok(FORWARD);
        }
        let batch = self.batch();
        if matches!(self.session.known(target.name, batch), Known::Nothing) {
            if is_reserved(target.name) {
                let step = target.rename(NEVER, way.out);
                self.sent(b'C', Effect::None, way)?;
                return Ok(step);
            }
            return self.pass(b'C', way);
        }
        let step = target.rename(NEVER, way.out);
        self.session.name_sent(target.name, None, Some(batch));
        let name = super::session::key(target.name).into();
        self.sent(b'C', Effect::DropName(name), way)?;
        Ok(step)
    }

    fn query(&mut self, frame: &[u8], way: &mut Way<'_>) -> Result<Step, PendingError> {
        // The usual case: there is nothing that it could take away.
        let text = if self.session.is_unused() && self.connection.len() == 0 {
            &[]
        } else {
            frames::query_text(frame)
        };
        let Some((drops, rewritten)) = self.drops(text) else {
            return Ok(self.wait(way));
        };
        let effect = match drops {
            Drops::Nothing => Effect::None,
            Drops::Name(name) => {
                self.put_dummy(SCRATCH, way)?;
                self.session.name_sent(&name, None, None);
                Effect::Deallocate(name)
            }
            Drops::Reserved(name) => Effect::Shown(NEVER, name),
            Drops::MaybeAll => {
                self.session.doubt();
                Effect::MayDropAll
            }
        };
        let mut step = FORWARD;
        if let Some(text) = &rewritten {
            frames::put_query(way.out, text);
            step = Step::Forward {
                replaced: frame.len(),
            };
        }
        self.session.unnamed_sent(self.connection.holds, None);
        self.connection.ledger.push(Kind::Query, Owner::Client, effect);
        let _ = way.pending.client(b'Q')?;
        Ok(step)
    }
}

fn deallocate(name: &str) -> String {
    format!("DEALLOCATE {name}")
}
