//! Statements that sessions share, and their names on servers.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use super::Path;
use crate::session::pool::state::Command;

/// What the names of statements on servers begin with.
pub(crate) const PREFIX: &str = "tl_";
/// A name that no statement has: what must fail, or must close nothing, names it. The names of
/// statements go on behind the prefix.
pub(super) const NEVER: &str = PREFIX;
/// A statement that is there only to be deallocated in place of a client's.
pub(super) const SCRATCH: &str = "tl__d";
/// A name that is taken, where a Parse must fail.
pub(super) const TAKEN: &str = "tl__t";
/// What makes a connection forget the numbers of sequences.
pub(super) const SEQUENCES: &str = "tl__s";

/// A client cannot mean one of the router's statements by this name.
pub(super) fn is_reserved(name: &[u8]) -> bool {
    name.starts_with(PREFIX.as_bytes())
}

/// All statements of one pool. A statement lives as long as a session has a name for it or a
/// connection has it.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    sessions: AtomicU64,
    statements: AtomicU64,
    hasher: RandomState,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// By the hash of text, given types and path; several where hashes collide.
    statements: HashMap<u64, Vec<Weak<Statement>>>,
    /// How many there may be before those that are no longer used are taken out.
    sweep_at: usize,
}

impl Interner {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Statements that are in use, and at most as many that no longer are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.table().statements.len()
    }

    /// A number that no other session of this pool has.
    pub(super) fn next_session(&self) -> u64 {
        self.sessions.fetch_add(1, Ordering::Relaxed)
    }

    /// The statement that all sessions share which prepare the same under the same path.
    pub(super) fn shared(&self, text: &[u8], given: &[u32], path: Path) -> Arc<Statement> {
        let hash = self.hash(text, given, path);
        let mut table = self.table();
        let found = table.statements.get(&hash).and_then(|same| {
            same.iter()
                .filter_map(Weak::upgrade)
                .find(|statement| statement.is(text, given, path))
        });
        found.unwrap_or_else(|| {
            let statement = self.make(text, given, Some(path), OnceLock::new());
            table.insert(hash, &statement);
            statement
        })
    }

    /// A statement of one session alone.
    pub(super) fn private(&self, text: &[u8], given: &[u32]) -> Arc<Statement> {
        self.make(text, given, None, OnceLock::new())
    }

    /// The same text has come to mean something else: what is prepared from now on is another
    /// statement, with a name of its own, and the old one stays what it is.
    pub(super) fn changed(&self, old: &Statement, resolved: Resolved) -> Arc<Statement> {
        let (text, given) = (&old.text, &old.given);
        let Some(path) = old.path else {
            return self.make(text, given, None, OnceLock::from(resolved));
        };
        let hash = self.hash(text, given, path);
        let mut table = self.table();
        let live = table.statements.get(&hash).and_then(|same| {
            same.iter()
                .filter_map(Weak::upgrade)
                .find(|statement| statement.is(text, given, path) && statement.resolved() == Some(&resolved))
        });
        live.unwrap_or_else(|| {
            if let Some(same) = table.statements.get_mut(&hash) {
                same.retain(|weak| {
                    weak.upgrade()
                        .is_some_and(|statement| !statement.is(text, given, path))
                });
            }
            let statement = self.make(text, given, Some(path), OnceLock::from(resolved));
            table.insert(hash, &statement);
            statement
        })
    }

    /// A fingerprint of result columns, the same for all connections.
    pub(super) fn columns(&self, columns: &[u8]) -> u64 {
        self.hasher.hash_one(columns)
    }

    fn make(
        &self,
        text: &[u8],
        given: &[u32],
        path: Option<Path>,
        resolved: OnceLock<Resolved>,
    ) -> Arc<Statement> {
        let number = self.statements.fetch_add(1, Ordering::Relaxed);
        Arc::new(Statement {
            number,
            name: name(number),
            text: text.into(),
            command: Command::of(text),
            given: given.into(),
            path,
            resolved,
        })
    }

    fn hash(&self, text: &[u8], given: &[u32], path: Path) -> u64 {
        self.hasher.hash_one((text, given, path))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing in it is left half done by a panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn insert(&mut self, hash: u64, statement: &Arc<Statement>) {
        if self.statements.len() >= self.sweep_at {
            self.statements.retain(|_, same| {
                same.retain(|statement| statement.strong_count() > 0);
                !same.is_empty()
            });
            self.sweep_at = (2 * self.statements.len()).max(64);
        }
        self.statements
            .entry(hash)
            .or_default()
            .push(Arc::downgrade(statement));
    }
}

/// The prefix and the number in base 36.
fn name(mut number: u64) -> Box<str> {
    let mut digits = Vec::with_capacity(16);
    loop {
        digits.push(char::from(
            b"0123456789abcdefghijklmnopqrstuvwxyz"[(number % 36) as usize],
        ));
        number /= 36;
        if number == 0 {
            break;
        }
    }
    PREFIX
        .chars()
        .chain(digits.into_iter().rev())
        .collect::<String>()
        .into()
}

/// What a server said of a statement when it was first prepared. Wherever it is prepared again, it
/// must be the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resolved {
    /// OIDs of all its parameters.
    pub(super) types: Box<[u32]>,
    pub(super) shape: Shape,
}

/// The result of a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// It has none (`n`).
    Nothing,
    /// Fingerprint of the columns' names, types and type modifiers.
    Rows(u64),
}

/// One statement: text, parameter types and path, and the name that it has on servers.
#[derive(Debug)]
pub(super) struct Statement {
    number: u64,
    name: Box<str>,
    pub(super) text: Box<[u8]>,
    command: Command,
    /// OIDs as the client's Parse gave them; 0 or missing: the server finds out.
    given: Box<[u32]>,
    /// None: it belongs to one session.
    path: Option<Path>,
    resolved: OnceLock<Resolved>,
}

impl Statement {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// What it is called on servers.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What executing it does to the transaction.
    pub(super) fn command(&self) -> Command {
        self.command
    }

    /// What it counts for in a limit of bytes.
    pub(super) fn size(&self) -> usize {
        self.text.len() + 4 * self.given.len()
    }

    /// Parameter types for preparing it again.
    pub(super) fn types(&self) -> &[u32] {
        self.resolved().map_or(&self.given, |resolved| &resolved.types)
    }

    /// None until the first server has answered.
    pub(super) fn resolved(&self) -> Option<&Resolved> {
        self.resolved.get()
    }

    /// What a server says when a client has prepared it anew; false if it was something else
    /// before.
    pub(super) fn resolve(&self, resolved: Resolved) -> bool {
        let same = resolved.clone();
        self.resolved.get_or_init(|| resolved) == &same
    }

    fn is(&self, text: &[u8], given: &[u32], path: Path) -> bool {
        self.path == Some(path) && *self.text == *text && *self.given == *given
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_the_number_in_base_36() {
        assert_eq!(&*name(0), "tl_0");
        assert_eq!(&*name(35), "tl_z");
        assert_eq!(&*name(36), "tl_10");
        assert_eq!(&*name(u64::MAX), "tl_3w5e11264sgsf");
        for reserved in [NEVER, SCRATCH, TAKEN, SEQUENCES] {
            assert!(is_reserved(reserved.as_bytes()));
        }
    }

    #[test]
    fn the_same_text_types_and_path_are_one_statement() {
        let interner = Interner::new();
        let one = interner.shared(b"select $1", &[23], 1);
        assert!(Arc::ptr_eq(&one, &interner.shared(b"select $1", &[23], 1)));
        for other in [
            interner.shared(b"select $1 ", &[23], 1),
            interner.shared(b"select $1", &[20], 1),
            interner.shared(b"select $1", &[23], 2),
            interner.private(b"select $1", &[23]),
        ] {
            assert_ne!(one.name(), other.name());
        }
    }

    #[test]
    fn statements_that_nobody_has_are_forgotten() {
        let interner = Interner::new();
        let kept = interner.shared(b"kept", &[], 1);
        for i in 0..10_000_u32 {
            interner.shared(&i.to_be_bytes(), &[], 1);
        }
        assert!(interner.len() <= 65);
        assert!(Arc::ptr_eq(&kept, &interner.shared(b"kept", &[], 1)));
    }

    #[test]
    fn a_text_that_means_something_else_is_another_statement() {
        let interner = Interner::new();
        let resolved = |oid| Resolved {
            types: Box::new([oid]),
            shape: Shape::Nothing,
        };
        let old = interner.shared(b"insert", &[], 1);
        assert!(old.resolve(resolved(23)) && old.resolve(resolved(23)));
        assert!(!old.resolve(resolved(20)));
        let new = interner.changed(&old, resolved(20));
        assert_eq!((old.types(), new.types()), (&[23][..], &[20][..]));
        assert!(Arc::ptr_eq(&new, &interner.shared(b"insert", &[], 1)));
        assert!(Arc::ptr_eq(&new, &interner.changed(&old, resolved(20))));
    }
}
