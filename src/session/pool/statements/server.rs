//! What the server answers.

use std::sync::Arc;

use bytes::BytesMut;

use super::connection::Presence;
use super::effect::Effect;
use super::frames;
use super::interner::{Resolved, Shape, Statement};
use super::ledger::{Entry, Failed, Kind};
use super::sequences::Numbers;
use super::session::{Kept, Named};
use super::{Answer, Rewriter};
use crate::wire::frame::ErrorFields;
use crate::wire::message;
use crate::wire::pending::Owner;
use crate::wire::sqlstate::SqlState;

impl Rewriter<'_> {
    /// See [`Rewriter::answered`].
    pub(super) fn answer(&mut self, owner: Owner, tag: u8, body: &[u8]) -> Answer {
        let front = self.connection.ledger.front().map(|entry| entry.kind);
        match tag {
            b'E' => return self.failed(owner, body),
            b'Z' => {
                self.ready();
                if body == b"I" && self.connection.ledger.is_empty() {
                    self.connection.bound = Vec::new();
                }
            }
            b't' => {
                self.connection.types = frames::parameter_types(body);
                self.described_unnamed();
            }
            b'C' => self.command(front, body),
            b'G' => self.connection.ledger.copy_in(),
            b'1' | b'2' | b'3' | b'n' | b's' | b'I' | b'T' if front == Some(Kind::Extended) => {
                self.completed(tag, body);
            }
            _ => self.connection.ledger.started(),
        }
        self.unless_waiting();
        by(owner)
    }

    /// What waited can go on.
    fn unless_waiting(&mut self) {
        self.connection.waiting &= !self.connection.ledger.is_empty();
    }

    fn completed(&mut self, tag: u8, body: &[u8]) {
        let Some((_, effect)) = self.connection.ledger.completed() else {
            return;
        };
        let types = self.connection.types.take();
        match effect {
            Effect::None
            | Effect::Use(_)
            | Effect::Shown(..)
            | Effect::Refused(..)
            | Effect::DescribeUnnamed => {}
            Effect::Prepare(named) => {
                let number = named.statement.number();
                self.connection.copies.settled(number, Some(Presence::Present));
                self.session.name_given(&named);
            }
            Effect::Again(statement) => {
                self.connection
                    .copies
                    .settled(statement.number(), Some(Presence::Present));
            }
            Effect::Learn(named) => self.learned(&named, self.resolved(types, tag, body)),
            Effect::Verify(statement) => self.verified(&statement, self.resolved(types, tag, body).as_ref()),
            Effect::DropCopy(number) => {
                self.connection.copies.settled(number, Some(Presence::Absent));
            }
            Effect::DropName(name) => self.session.name_taken(&name, true),
            // An Execute that was no such command after all.
            Effect::Deallocate(name) => self.session.name_taken(&name, false),
            Effect::MayDropAll => self.session.doubt_settled(),
            Effect::Forget => self.numbers_forgotten(),
            Effect::SetUnnamed(kept) => self.unnamed_set(kept),
            Effect::RestoreUnnamed => {
                self.session.unnamed_settled(None);
                self.connection.holds = Some(self.session.unnamed_version());
            }
        }
    }

    fn numbers_forgotten(&mut self) {
        self.connection.numbers = Numbers::Of(self.session.id());
        self.connection.must_forget = false;
    }

    fn unnamed_set(&mut self, kept: Kept) {
        self.session.unnamed_settled(Some(kept));
        self.connection.holds = Some(self.session.unnamed_version());
    }

    fn described_unnamed(&mut self) {
        let front = self.connection.ledger.front();
        if matches!(front.map(|entry| &entry.effect), Some(Effect::DescribeUnnamed))
            && let Some(types) = &self.connection.types
        {
            self.session.unnamed_described(types);
        }
    }

    /// What a Describe of a statement said; none if it was malformed.
    fn resolved(&self, types: Option<Box<[u32]>>, tag: u8, body: &[u8]) -> Option<Resolved> {
        let shape = match tag {
            b'n' => Shape::Nothing,
            _ => Shape::Rows(self.interner.columns(&frames::columns(body)?)),
        };
        Some(Resolved { types: types?, shape })
    }

    /// The client's own Parse was accepted, and this is what came of it here and now.
    fn learned(&mut self, named: &Arc<Named>, resolved: Option<Resolved>) {
        let statement = &named.statement;
        let number = statement.number();
        let is_same = resolved
            .as_ref()
            .is_none_or(|resolved| statement.resolve(resolved.clone()));
        self.connection.copies.described(number, is_same);
        if let Some(resolved) = resolved
            && !is_same
        {
            let changed = self.interner.changed(statement, resolved);
            self.session.replace(named, changed);
        }
    }

    /// The statement was prepared again: it must be what it was.
    fn verified(&mut self, statement: &Arc<Statement>, resolved: Option<&Resolved>) {
        let is_same = match (statement.resolved(), resolved) {
            (Some(expected), Some(resolved)) => expected == resolved,
            _ => true,
        };
        self.connection.copies.described(statement.number(), is_same);
        if !is_same {
            self.connection.differs = Some(statement.number());
        }
    }

    /// `C`: the end of an Execute, or of one command of a Query.
    fn command(&mut self, front: Option<Kind>, tag: &[u8]) {
        let tag = tag.strip_suffix(b"\0").unwrap_or(tag);
        let is_client = self
            .connection
            .ledger
            .front()
            .is_none_or(|entry| entry.owner == Owner::Client);
        match tag {
            b"DISCARD SEQUENCES" => self.numbers_forgotten(),
            b"DISCARD ALL" | b"DEALLOCATE ALL" => {
                if tag == b"DISCARD ALL" {
                    self.numbers_forgotten();
                }
                self.connection.copies.all_missing();
                if is_client {
                    self.session.all_names_taken();
                }
            }
            b"DEALLOCATE" => self.deallocated(front),
            b"DO" => self.did(),
            _ => {}
        }
        if front == Some(Kind::Extended) {
            self.completed(b'C', &[]);
        } else {
            self.connection.ledger.started();
        }
    }

    fn deallocated(&mut self, front: Option<Kind>) {
        if front == Some(Kind::Query) {
            self.connection.deallocated = true;
        } else if let Some(Effect::Deallocate(name)) = self.front_effect() {
            self.session.name_taken(&name, true);
        }
    }

    /// A block of code that may have deallocated anything: its tag does not say.
    fn did(&mut self) {
        let front = self.connection.ledger.front();
        if matches!(front.map(|entry| &entry.effect), Some(Effect::MayDropAll)) {
            self.connection.copies.all_stale();
        }
    }

    /// Takes what the message in front changes.
    fn front_effect(&mut self) -> Option<Effect> {
        let front = self.connection.ledger.front_mut()?;
        Some(std::mem::replace(&mut front.effect, Effect::None))
    }

    fn ready(&mut self) {
        let Some((kind, owner, effect)) = self.connection.ledger.ready() else {
            return;
        };
        if kind != Kind::Query {
            return;
        }
        match (owner, effect) {
            (Owner::Client, Effect::Deallocate(name)) => {
                let is_done = self.connection.deallocated;
                self.session.name_taken(&name, is_done);
            }
            (Owner::Client, Effect::MayDropAll) => self.session.doubt_settled(),
            _ => {}
        }
        self.connection.deallocated = false;
        match owner {
            Owner::Client => self.unnamed_set(Kept::Nothing),
            Owner::Router => {
                self.session.unnamed_settled(None);
                self.connection.holds = None;
            }
        }
    }

    fn failed(&mut self, owner: Owner, body: &[u8]) -> Answer {
        let fields = ErrorFields::of_prefix(body);
        if fields.is_fatal() {
            return Answer::Forward;
        }
        let answer = match self.connection.ledger.failed() {
            Failed::Request => {
                let front = self.connection.ledger.front().map(|entry| &entry.effect);
                shown(front, fields.code, body).unwrap_or_else(|| by(owner))
            }
            Failed::Unasked => by(owner),
            Failed::Batch {
                failed,
                skipped,
                sync,
            } => {
                let answer = shown(Some(&failed.effect), fields.code, body);
                let is_own = failed.owner == Owner::Router && sync == Owner::Router;
                self.undo(failed, Some(fields.code));
                for entry in skipped {
                    self.undo(entry, None);
                }
                if is_own {
                    Answer::Swallow
                } else {
                    // The client's batch has failed, whoever's message it was that did.
                    answer.unwrap_or(Answer::Forward)
                }
            }
        };
        self.connection.types = None;
        self.unless_waiting();
        answer
    }

    /// A message failed with this code, or was skipped.
    fn undo(&mut self, entry: Entry, failed: Option<SqlState>) {
        let copies = &mut self.connection.copies;
        // Where a Parse failed, its name was free; unless the server says that it was not.
        let left = failed.map(|code| match code {
            SqlState::DUPLICATE_PREPARED_STATEMENT => Presence::Stale,
            _ => Presence::Absent,
        });
        match entry.effect {
            Effect::None
            | Effect::Shown(..)
            | Effect::Refused(..)
            | Effect::Forget
            | Effect::DescribeUnnamed => {}
            Effect::Use(named) => {
                if failed == Some(SqlState::INVALID_SQL_STATEMENT_NAME) {
                    // It was taken away where nobody saw it, and not alone, perhaps.
                    copies.missing(named.statement.number());
                    copies.all_stale();
                }
            }
            Effect::Prepare(named) => {
                copies.settled(named.statement.number(), left);
                self.session.name_not_given(&named);
            }
            Effect::Again(statement) => copies.settled(statement.number(), left),
            Effect::Learn(named) => copies.described(named.statement.number(), true),
            Effect::Verify(statement) => copies.described(statement.number(), true),
            Effect::DropCopy(number) => copies.settled(number, None),
            Effect::DropName(name) | Effect::Deallocate(name) => self.session.name_taken(&name, false),
            Effect::MayDropAll => self.session.doubt_settled(),
            // A Parse that fails has removed the statement before.
            Effect::SetUnnamed(_) if failed.is_some() => self.unnamed_set(Kept::Nothing),
            Effect::SetUnnamed(_) => self.session.unnamed_settled(None),
            Effect::RestoreUnnamed => {
                self.session.unnamed_settled(None);
                if failed.is_some() {
                    self.connection.holds = None;
                }
            }
        }
        if entry.kind == Kind::Query {
            self.session.unnamed_settled(None);
        }
    }
}

fn by(owner: Owner) -> Answer {
    match owner {
        Owner::Client => Answer::Forward,
        Owner::Router => Answer::Swallow,
    }
}

/// What the client sees in the place of an error that only the router's names have caused, or
/// that shows them.
fn shown(effect: Option<&Effect>, code: SqlState, body: &[u8]) -> Option<Answer> {
    let renamed = |name, shown| {
        let report = frames::rename_in_report(body, name, shown);
        Some(Answer::Instead(report.freeze()))
    };
    match effect? {
        Effect::Use(named) if code == SqlState::INVALID_SQL_STATEMENT_NAME => {
            renamed(named.statement.name(), &named.name)
        }
        Effect::Prepare(named) if code == SqlState::DUPLICATE_PREPARED_STATEMENT => {
            renamed(named.statement.name(), &named.name)
        }
        Effect::Shown(name, shown) => renamed(name, shown),
        Effect::Deallocate(shown) => renamed(super::interner::SCRATCH, shown),
        Effect::Refused(expected, reply) if code == *expected => {
            let mut out = BytesMut::new();
            message::error(&mut out, reply);
            Some(Answer::Instead(out.freeze()))
        }
        _ => None,
    }
}
