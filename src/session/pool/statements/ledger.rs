//! The messages on their way to a server, in order, and what each of them changes once the server
//! has done it.
//!
//! It follows the same rules as [`crate::wire::pending::PendingReplies`], which says who asked but
//! not what: each message of the extended protocol is completed by one answer or fails; behind a
//! failure everything up to the next Sync is skipped, simple queries too; COPY IN takes the Syncs
//! that are sent into it. Where the server's answer can be read in two ways, `PendingReplies` is
//! uncertain, and the connection goes to nobody else.

use std::collections::VecDeque;

use super::effect::Effect;
use crate::wire::pending::Owner;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Parse, Bind, Describe, Execute, Close.
    Extended,
    Sync,
    Query,
    FunctionCall,
    /// `CopyDone`, `CopyFail`.
    CopyEnd,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) owner: Owner,
    /// Messages in a row that change nothing are one entry.
    count: u32,
    pub(super) effect: Effect,
}

/// What an error means.
#[derive(Debug)]
pub(super) enum Failed {
    /// This message failed, and the others are skipped, up to a Sync of this owner (of the
    /// client's, if it was not sent yet).
    Batch {
        failed: Entry,
        skipped: Vec<Entry>,
        sync: Owner,
    },
    /// A Query, a FunctionCall or a Sync failed: its `Z` follows.
    Request,
    /// Nothing was asked.
    Unasked,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    queue: VecDeque<Entry>,
    /// Counts Syncs sent: messages with the same number succeed together or are skipped from some
    /// point on.
    batch: u64,
    /// The server discards messages up to a Sync that was not sent yet.
    skipping: bool,
    /// The Query or FunctionCall in front has been answered in part.
    started: bool,
    copy_in: Option<CopyIn>,
}

#[derive(Debug)]
struct CopyIn {
    /// Its end is on its way, or something that has no place in it.
    ended: bool,
}

impl Ledger {
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn batch(&self) -> u64 {
        self.batch
    }

    pub(super) fn is_skipping(&self) -> bool {
        self.skipping
    }

    pub(super) fn front_mut(&mut self) -> Option<&mut Entry> {
        self.queue.front_mut()
    }

    pub(super) fn front(&self) -> Option<&Entry> {
        self.queue.front()
    }

    /// What was sent last.
    pub(super) fn back(&self) -> Option<&Entry> {
        self.queue.back()
    }

    /// Anything but Sync and the end of a COPY.
    pub(super) fn push(&mut self, kind: Kind, owner: Owner, effect: Effect) {
        if let Some(copy) = &mut self.copy_in {
            copy.ended = true;
        }
        self.append(kind, owner, effect);
    }

    pub(super) fn sync(&mut self, owner: Owner) {
        if !matches!(self.copy_in, Some(CopyIn { ended: false })) {
            if let Some(copy) = &mut self.copy_in {
                copy.ended = true;
            }
            self.append(Kind::Sync, owner, Effect::None);
            self.skipping = false;
        }
        self.batch += 1;
    }

    pub(super) fn copy_end(&mut self) {
        match &mut self.copy_in {
            Some(copy) if !copy.ended => copy.ended = true,
            // Of a COPY that comes behind, if there is one.
            _ if !self.queue.is_empty() => self.append(Kind::CopyEnd, Owner::Client, Effect::None),
            _ => {}
        }
    }

    fn append(&mut self, kind: Kind, owner: Owner, effect: Effect) {
        if let Some(last) = self.queue.back_mut()
            && (last.kind, last.owner) == (kind, owner)
            // A Query changes something in any case: the unnamed statement.
            && kind != Kind::Query
            && matches!((&last.effect, &effect), (Effect::None, Effect::None))
            && last.count < u32::MAX
        {
            last.count += 1;
            return;
        }
        self.queue.push_back(Entry {
            kind,
            owner,
            count: 1,
            effect,
        });
    }

    /// The server completed one message of the extended protocol.
    pub(super) fn completed(&mut self) -> Option<(Owner, Effect)> {
        self.copy_in = None;
        if self.front()?.kind == Kind::Extended {
            self.pop()
        } else {
            None
        }
    }

    /// The Query or FunctionCall in front is being answered.
    pub(super) fn started(&mut self) {
        self.started = true;
    }

    /// The server reads what follows as part of a COPY.
    pub(super) fn copy_in(&mut self) {
        self.started = true;
        let mut ended = self.front().is_some_and(|entry| entry.count > 1);
        while !ended && let Some(next) = self.queue.get_mut(1) {
            ended = next.kind != Kind::Sync;
            match next.kind {
                Kind::CopyEnd if next.count > 1 => next.count -= 1,
                Kind::Sync | Kind::CopyEnd => {
                    self.queue.remove(1);
                }
                _ => {}
            }
        }
        self.copy_in = Some(CopyIn { ended });
    }

    /// The server reported an error that does not end the session.
    pub(super) fn failed(&mut self) -> Failed {
        self.copy_in = None;
        match self.front().map(|entry| entry.kind) {
            Some(Kind::Extended) => {}
            Some(Kind::Query | Kind::FunctionCall) => {
                self.started = true;
                return Failed::Request;
            }
            Some(Kind::Sync) => return Failed::Request,
            Some(Kind::CopyEnd) | None => return Failed::Unasked,
        }
        let end = self.queue.iter().position(|entry| entry.kind == Kind::Sync);
        self.skipping = end.is_none();
        self.started = false;
        let sync = end.map_or(Owner::Client, |end| self.queue[end].owner);
        let mut batch = self.queue.drain(..end.unwrap_or(self.queue.len()));
        match batch.next() {
            Some(failed) => Failed::Batch {
                failed,
                skipped: batch.collect(),
                sync,
            },
            None => Failed::Unasked,
        }
    }

    /// `Z`. None where it does not belong to the request in front: a Sync was sent into a COPY that
    /// failed before the server read it.
    pub(super) fn ready(&mut self) -> Option<(Kind, Owner, Effect)> {
        let kind = self.front()?.kind;
        match kind {
            Kind::Sync => {}
            Kind::Query | Kind::FunctionCall if self.started => {}
            _ => return None,
        }
        self.copy_in = None;
        self.pop().map(|(owner, effect)| (kind, owner, effect))
    }

    /// The connection is at rest, or lost.
    pub(super) fn clear(&mut self) {
        *self = Self {
            batch: self.batch + 1,
            ..Self::default()
        };
    }

    fn pop(&mut self) -> Option<(Owner, Effect)> {
        self.started = false;
        let front = self.queue.front_mut()?;
        let popped = if front.count > 1 {
            front.count -= 1;
            (front.owner, Effect::None)
        } else {
            self.queue.pop_front().map(|entry| (entry.owner, entry.effect))?
        };
        // The end of a COPY that there was none of.
        while self.front().is_some_and(|entry| entry.kind == Kind::CopyEnd) {
            self.queue.pop_front();
        }
        if self.queue.is_empty() && self.queue.capacity() > KEPT {
            self.queue = VecDeque::new();
        }
        Some(popped)
    }
}

/// Entries for which an idle connection keeps memory.
const KEPT: usize = 16;
