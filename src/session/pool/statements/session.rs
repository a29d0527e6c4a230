//! What one client has prepared.

use std::collections::HashMap;
use std::sync::Arc;

use super::frames::Target;
use super::interner::Statement;
use super::{Interner, Limits};
use crate::session::pool::state::Command;

/// Bytes of a statement's name that count: PostgreSQL compares no more (`NAMEDATALEN` - 1).
const NAME_BYTES: usize = 63;

/// A batch that no message belongs to: what it says is doubtful until it is answered.
const NO_BATCH: u64 = u64::MAX;

/// The part of a name that counts.
pub(super) fn key(name: &[u8]) -> &[u8] {
    &name[..name.len().min(NAME_BYTES)]
}

/// One name of the client's, and the statement that it stands for.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) name: Box<[u8]>,
    pub(super) statement: Arc<Statement>,
    /// What executing it takes away.
    pub(super) drops: Drops,
}

/// What the client's next message would find under a name.
#[derive(Debug)]
pub(super) enum Known {
    Nothing,
    /// `is_new`: its Parse is not answered yet, but if it fails, the next message is skipped.
    Statement {
        named: Arc<Named>,
        is_new: bool,
    },
    /// That depends on an answer which is still to come.
    Doubtful,
}

#[derive(Debug, Default)]
struct Slot {
    confirmed: Option<Arc<Named>>,
    /// As the last message on its way will leave it, if the server does it.
    expected: Option<Arc<Named>>,
    /// Messages on their way that change it.
    pending: u32,
    /// The batch of the last of them.
    batch: u64,
}

/// The text of an unnamed statement, for another connection.
#[derive(Debug, Clone)]
pub(super) enum Kept {
    /// There is no unnamed statement.
    Nothing,
    Text(Arc<UnnamedText>),
    /// It is longer than the limit.
    TooLong,
}

#[derive(Debug)]
pub(super) struct UnnamedText {
    pub(super) text: Box<[u8]>,
    pub(super) types: Box<[u32]>,
}

/// Where the connection's unnamed statement stands to the client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UnnamedState {
    Same,
    /// The connection has another client's, or none.
    Other,
    /// That depends on an answer which is still to come.
    Doubtful,
}

#[derive(Debug)]
pub(super) struct Unnamed {
    pub(super) kept: Kept,
    /// Rises with each change, so that a connection knows whether it has the last one.
    version: u64,
    pending: u32,
    batch: u64,
    /// Before the messages on their way, the connection had the client's.
    was_same: bool,
    /// What executing the last one that was sent takes away.
    pub(super) drops: Drops,
}

/// What executing a statement takes away.
#[derive(Debug, Clone, Default)]
pub(super) enum Drops {
    #[default]
    Nothing,
    /// This name of the session's.
    Name(Box<[u8]>),
    /// A name that the session does not have, and that must not be taken for one of the router's.
    Reserved(Box<[u8]>),
    MaybeAll,
}

impl Unnamed {
    pub(super) fn state(&self, has: bool, batch: u64) -> UnnamedState {
        match (self.pending, has) {
            (0, true) => UnnamedState::Same,
            (0, false) => UnnamedState::Other,
            _ if self.was_same || self.batch == batch => UnnamedState::Same,
            _ => UnnamedState::Doubtful,
        }
    }

    /// A message that changes it was sent in this batch; none: as if it was in an earlier one.
    fn sent(&mut self, has: bool, batch: Option<u64>) {
        if self.pending == 0 {
            self.was_same = has;
        }
        self.pending += 1;
        self.batch = batch.unwrap_or(NO_BATCH);
    }
}

/// The names that a client has given, and its unnamed statement. It lives as long as the session.
#[derive(Debug)]
pub(crate) struct SessionStatements {
    id: u64,
    limits: Limits,
    names: HashMap<Box<[u8]>, Slot>,
    /// Names that are confirmed or on their way.
    count: usize,
    bytes: usize,
    /// Changes of names on their way.
    pending: usize,
    /// Messages on their way that may take all names away.
    doubts: usize,
    pub(super) unnamed: Unnamed,
}

impl SessionStatements {
    pub(crate) fn new(interner: &Interner, limits: Limits) -> Self {
        Self {
            id: interner.next_session(),
            limits,
            names: HashMap::new(),
            count: 0,
            bytes: 0,
            pending: 0,
            doubts: 0,
            unnamed: Unnamed {
                kept: Kept::Nothing,
                version: 0,
                pending: 0,
                batch: 0,
                was_same: false,
                drops: Drops::Nothing,
            },
        }
    }

    /// No other session of the pool has the same.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Named statements: those that the server has accepted, and those on their way.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Bytes of their texts and parameter types.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(in crate::session::pool) fn limits(&self) -> Limits {
        self.limits
    }

    /// The limits of a configuration that was loaded again. Nothing is taken away.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The connection is lost or was given up with answers outstanding: what they would have
    /// changed has not happened.
    pub(crate) fn connection_lost(&mut self) {
        self.names.retain(|_, slot| {
            slot.expected = None;
            slot.pending = 0;
            slot.confirmed.is_some()
        });
        let sizes = self.names.values().filter_map(|slot| slot.confirmed.as_ref());
        self.bytes = sizes.map(|named| named.statement.size()).sum();
        self.count = self.names.len();
        (self.pending, self.doubts) = (0, 0);
        self.unnamed.pending = 0;
    }

    /// What executing the portal does that this Bind of the client's makes. `unnamed`: what the
    /// unnamed statement does, if it was prepared in the same batch.
    pub(crate) fn command_of(&self, bind: &[u8], unnamed: Option<Command>) -> Command {
        let Some(target) = Target::of_bind(bind) else {
            return Command::Unknown;
        };
        if target.name.is_empty() {
            return unnamed.unwrap_or_else(|| match (&self.unnamed.kept, self.unnamed.pending) {
                (Kept::Text(kept), 0) => Command::of(&kept.text),
                _ => Command::Unknown,
            });
        }
        let slot = self.names.get(key(target.name)).filter(|_| self.doubts == 0);
        let named = slot.and_then(|slot| match slot.pending {
            0 => slot.confirmed.as_ref(),
            _ => slot.expected.as_ref(),
        });
        named.map_or(Command::Unknown, |named| named.statement.command())
    }

    /// Whether one more statement of this size is too much.
    pub(super) fn is_full_for(&self, size: usize) -> bool {
        self.count >= self.limits.statements || self.bytes.saturating_add(size) > self.limits.bytes
    }

    pub(super) fn has_changes_pending(&self) -> bool {
        self.pending + self.doubts > 0
    }

    /// It has no named statements, and none on their way.
    pub(super) fn is_unused(&self) -> bool {
        self.names.is_empty()
    }

    pub(super) fn known(&self, name: &[u8], batch: u64) -> Known {
        let Some(slot) = self.names.get(key(name)) else {
            return Known::Nothing;
        };
        let is_new = slot.pending > 0;
        if self.doubts > 0 || is_new && slot.batch != batch {
            return Known::Doubtful;
        }
        let found = if is_new { &slot.expected } else { &slot.confirmed };
        found.as_ref().map_or(Known::Nothing, |named| Known::Statement {
            named: Arc::clone(named),
            is_new,
        })
    }

    /// A message that gives or takes a name is on its way; `batch` none: it may fail alone.
    pub(super) fn name_sent(&mut self, name: &[u8], expected: Option<Arc<Named>>, batch: Option<u64>) {
        if let Some(named) = &expected {
            self.count += 1;
            self.bytes += named.statement.size();
        }
        let slot = self.names.entry(key(name).into()).or_default();
        slot.expected = expected;
        slot.pending += 1;
        slot.batch = batch.unwrap_or(NO_BATCH);
        self.pending += 1;
    }

    /// The server has prepared it.
    pub(super) fn name_given(&mut self, named: &Arc<Named>) {
        let old = self.settle(&named.name, |slot| slot.confirmed.replace(Arc::clone(named)));
        self.uncount(old.as_ref());
    }

    /// The Parse failed, or was skipped.
    pub(super) fn name_not_given(&mut self, named: &Arc<Named>) {
        self.settle(&named.name, |_| None);
        self.uncount(Some(named));
    }

    /// The message that takes a name away was done, or not.
    pub(super) fn name_taken(&mut self, name: &[u8], is_done: bool) {
        let old = self.settle(name, |slot| is_done.then(|| slot.confirmed.take()).flatten());
        self.uncount(old.as_ref());
    }

    fn settle(
        &mut self,
        name: &[u8],
        change: impl FnOnce(&mut Slot) -> Option<Arc<Named>>,
    ) -> Option<Arc<Named>> {
        let slot = self.names.get_mut(key(name))?;
        let old = change(slot);
        slot.pending = slot.pending.saturating_sub(1);
        self.pending = self.pending.saturating_sub(1);
        if slot.pending == 0 {
            slot.expected = None;
            if slot.confirmed.is_none() {
                self.names.remove(key(name));
            }
        }
        old
    }

    fn uncount(&mut self, named: Option<&Arc<Named>>) {
        if let Some(named) = named {
            self.count = self.count.saturating_sub(1);
            self.bytes = self.bytes.saturating_sub(named.statement.size());
        }
    }

    /// `DISCARD ALL`, `DEALLOCATE ALL`: what is on its way behind it is not touched.
    pub(super) fn all_names_taken(&mut self) {
        let mut gone = Vec::new();
        self.names.retain(|_, slot| {
            gone.extend(slot.confirmed.take());
            slot.pending > 0
        });
        for named in &gone {
            self.uncount(Some(named));
        }
        self.names.shrink_to_fit();
    }

    /// What the client prepared under this name turned out to be another statement.
    pub(super) fn replace(&mut self, old: &Arc<Named>, statement: Arc<Statement>) {
        let new = Arc::new(Named {
            name: old.name.clone(),
            statement,
            drops: old.drops.clone(),
        });
        if let Some(slot) = self.names.get_mut(&old.name) {
            for named in [&mut slot.confirmed, &mut slot.expected].into_iter().flatten() {
                if Arc::ptr_eq(named, old) {
                    *named = Arc::clone(&new);
                }
            }
        }
    }

    pub(super) fn doubt(&mut self) {
        self.doubts += 1;
    }

    pub(super) fn doubt_settled(&mut self) {
        self.doubts = self.doubts.saturating_sub(1);
    }

    /// Identifies the client's unnamed statement as it is now, among all sessions of the pool.
    pub(super) fn unnamed_version(&self) -> (u64, u64) {
        (self.id, self.unnamed.version)
    }

    /// A message that changes the client's unnamed statement, or the connection's, is on its way.
    pub(super) fn unnamed_sent(&mut self, holds: Option<(u64, u64)>, batch: Option<u64>) {
        let has = holds == Some(self.unnamed_version());
        self.unnamed.sent(has, batch);
    }

    /// The router's own Query is on its way.
    pub(super) fn unnamed_lost(&mut self) {
        self.unnamed.sent(false, None);
        self.unnamed.was_same = false;
    }

    /// It was done; none: it has changed nothing of the client's.
    pub(super) fn unnamed_settled(&mut self, kept: Option<Kept>) {
        self.unnamed.pending = self.unnamed.pending.saturating_sub(1);
        if let Some(kept) = kept {
            self.unnamed.kept = kept;
            self.unnamed.version += 1;
        }
    }

    /// The types of the client's unnamed statement, as the server says.
    pub(super) fn unnamed_described(&mut self, types: &[u32]) {
        if let Kept::Text(kept) = &mut self.unnamed.kept
            && *kept.types != *types
        {
            *kept = Arc::new(UnnamedText {
                text: kept.text.clone(),
                types: types.into(),
            });
        }
    }
}
