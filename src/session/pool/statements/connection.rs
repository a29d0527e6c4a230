//! What one server connection has prepared.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::interner::Statement;
use super::ledger::Ledger;
use super::sequences::Numbers;
use super::session::Drops;
use super::{Counts, Limits};
use crate::session::pool::numbers::NumberHash;

/// Whether a server connection has a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Presence {
    #[default]
    Absent,
    Present,
    /// It may be there, but is not to be used: it must be closed before it is prepared again.
    Stale,
}

#[derive(Debug)]
pub(super) struct Copy {
    pub(super) statement: Arc<Statement>,
    confirmed: Presence,
    /// As the last message on its way will leave it, if the server does it.
    expected: Presence,
    /// Messages on their way that change it.
    pending: u32,
    /// The batch of the last of them.
    batch: u64,
    /// Descriptions on their way, which say whether it is what it is taken for.
    describing: u32,
    /// When it was used last.
    used: u64,
    /// Where it stands in the order of use; it may have been used since.
    place: u64,
}

impl Copy {
    fn latest(&self) -> Presence {
        if self.pending > 0 {
            self.expected
        } else {
            self.confirmed
        }
    }
}

/// What the next message would find on the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Is(Presence),
    /// It is there, but what it is depends on an answer which is still to come.
    Unverified,
    /// That depends on an answer which is still to come.
    Doubtful,
}

/// The statements that a connection has, with the order in which they were used.
#[derive(Debug, Default)]
pub(super) struct Copies {
    by_number: HashMap<u64, Copy, NumberHash>,
    /// By when they were used last, as far as that was noted: the first is looked at again before
    /// it goes.
    order: BTreeMap<u64, u64>,
    clock: u64,
    count: usize,
    bytes: usize,
}

impl Copies {
    pub(super) fn found(&self, number: u64, batch: u64) -> Found {
        match self.by_number.get(&number) {
            None => Found::Is(Presence::Absent),
            Some(copy) if copy.pending > 0 && copy.batch != batch => Found::Doubtful,
            Some(copy) if copy.describing > 0 && copy.latest() == Presence::Present => Found::Unverified,
            Some(copy) => Found::Is(copy.latest()),
        }
    }

    pub(super) fn used(&mut self, number: u64) {
        self.clock += 1;
        if let Some(copy) = self.by_number.get_mut(&number) {
            copy.used = self.clock;
        }
    }

    /// A message that makes it so is on its way.
    pub(super) fn sent(&mut self, statement: &Arc<Statement>, expected: Presence, batch: u64) {
        self.clock += 1;
        let clock = self.clock;
        let order = &mut self.order;
        self.by_number.entry(statement.number()).or_insert_with(|| {
            order.insert(clock, statement.number());
            Copy {
                statement: Arc::clone(statement),
                confirmed: Presence::Absent,
                expected: Presence::Absent,
                pending: 0,
                batch,
                describing: 0,
                used: clock,
                place: clock,
            }
        });
        self.change(statement.number(), |copy| {
            copy.expected = expected;
            copy.pending += 1;
            copy.batch = batch;
            if expected == Presence::Present {
                copy.used = clock;
            }
        });
    }

    /// The message was done and left it so; none: it was not done.
    pub(super) fn settled(&mut self, number: u64, confirmed: Option<Presence>) {
        self.change(number, |copy| {
            copy.pending = copy.pending.saturating_sub(1);
            copy.confirmed = confirmed.unwrap_or(copy.confirmed);
        });
    }

    pub(super) fn describing(&mut self, number: u64) {
        self.change(number, |copy| copy.describing += 1);
    }

    /// Its description was answered, or will not be.
    pub(super) fn described(&mut self, number: u64, is_right: bool) {
        self.change(number, |copy| {
            copy.describing = copy.describing.saturating_sub(1);
            if !is_right && copy.confirmed == Presence::Present {
                copy.confirmed = Presence::Stale;
            }
        });
    }

    /// The server does not know it.
    pub(super) fn missing(&mut self, number: u64) {
        self.change(number, |copy| copy.confirmed = Presence::Absent);
    }

    /// All are gone.
    pub(super) fn all_missing(&mut self) {
        self.change_all(|copy| copy.confirmed = Presence::Absent);
    }

    /// Any of them may be gone.
    pub(super) fn all_stale(&mut self) {
        self.change_all(|copy| {
            if copy.confirmed == Presence::Present {
                copy.confirmed = Presence::Stale;
            }
        });
    }

    /// What was on its way may have been done or not.
    pub(super) fn abandoned(&mut self) {
        self.change_all(|copy| {
            if copy.pending > 0 {
                copy.confirmed = Presence::Stale;
            }
            (copy.pending, copy.describing) = (0, 0);
        });
    }

    /// The least recently used one that can go so that one of `size` bytes has room within the
    /// limits; none if there is room, or nothing can go.
    pub(super) fn victim(&mut self, size: usize, keep: u64, limits: Limits) -> Option<Arc<Statement>> {
        if self.count < limits.statements && self.bytes.saturating_add(size) <= limits.bytes {
            return None;
        }
        for _ in 0..self.order.len() {
            let (place, number) = self.order.pop_first()?;
            let Some(copy) = self.by_number.get_mut(&number).filter(|copy| copy.place == place) else {
                continue;
            };
            let can_go = number != keep && copy.latest() != Presence::Absent;
            if can_go && copy.used <= place {
                self.order.insert(place, number);
                return Some(Arc::clone(&copy.statement));
            }
            // Used since, or not to go now: it goes behind the others, as if used now.
            self.clock += 1;
            copy.place = if can_go { copy.used } else { self.clock };
            while self.order.contains_key(&copy.place) {
                self.clock += 1;
                copy.place = self.clock;
            }
            self.order.insert(copy.place, number);
        }
        None
    }

    fn change_all(&mut self, mut change: impl FnMut(&mut Copy)) {
        let numbers: Vec<u64> = self.by_number.keys().copied().collect();
        for number in numbers {
            self.change(number, &mut change);
        }
    }

    /// The one place where a copy changes: it counts if it is, or will be, on the server.
    fn change(&mut self, number: u64, change: impl FnOnce(&mut Copy)) {
        let Some(copy) = self.by_number.get_mut(&number) else {
            return;
        };
        let size = copy.statement.size();
        let before = copy.latest() != Presence::Absent;
        change(copy);
        let after = copy.latest() != Presence::Absent;
        let place = copy.place;
        let is_over = copy.pending == 0 && copy.describing == 0 && !after;
        match (before, after) {
            (false, true) => {
                self.count += 1;
                self.bytes += size;
            }
            (true, false) => {
                self.count -= 1;
                self.bytes -= size;
            }
            _ => {}
        }
        if is_over {
            self.by_number.remove(&number);
            self.order.remove(&place);
        }
    }
}

/// The statements that a server connection has, the least recently used first to go, and the
/// messages on their way to it. It lives as long as the connection, through many sessions.
#[derive(Debug)]
pub(crate) struct ConnectionStatements {
    pub(super) limits: Limits,
    pub(super) counts: Counts,
    pub(super) ledger: Ledger,
    pub(super) copies: Copies,
    /// Session and version of the unnamed statement on the connection; none: unknown.
    pub(super) holds: Option<(u64, u64)>,
    /// The client's next message waits.
    pub(super) waiting: bool,
    /// The statement that the waiting message needs has other columns here.
    pub(super) differs: Option<u64>,
    /// The parameter types of the Describe that is being answered.
    pub(super) types: Option<Box<[u32]>>,
    /// Portals whose execution takes statements away.
    pub(super) bound: Vec<(Box<[u8]>, Drops)>,
    /// The Query in front said that it has deallocated something.
    pub(super) deallocated: bool,
    pub(super) numbers: Numbers,
    /// See [`Self::must_forget`].
    pub(super) must_forget: bool,
}

impl ConnectionStatements {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            counts: Counts::default(),
            ledger: Ledger::default(),
            copies: Copies::default(),
            holds: None,
            waiting: false,
            differs: None,
            types: None,
            bound: Vec::new(),
            deallocated: false,
            numbers: Numbers::Nobodys,
            must_forget: false,
        }
    }

    /// Statements that it has, or will have when it has done what is on its way.
    pub(crate) fn len(&self) -> usize {
        self.copies.count
    }

    /// Bytes of their texts and parameter types.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.copies.bytes
    }

    /// The limits of a configuration that was loaded again. What is too much goes with the next
    /// Parse.
    pub(crate) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// What has happened since the last call.
    pub(crate) fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// The router sent a simple Query of its own, outside of a lease: the unnamed statement is
    /// gone.
    pub(crate) fn unnamed_gone(&mut self) {
        self.holds = None;
    }

    /// The session went away, perhaps with answers outstanding, and then `DISCARD ALL` of the
    /// router's own has succeeded, outside of a lease.
    pub(crate) fn all_gone(&mut self) {
        self.abandoned();
        self.copies.all_missing();
        self.numbers = Numbers::Nobodys;
        self.must_forget = false;
    }

    /// The session went away with answers outstanding, and the caller has brought the connection to
    /// rest itself: whatever was under way is unknown, and will be closed before it is used again.
    pub(crate) fn abandoned(&mut self) {
        self.ledger.clear();
        self.copies.abandoned();
        self.holds = None;
        self.waiting = false;
        self.differs = None;
        self.types = None;
        self.bound = Vec::new();
        self.deallocated = false;
    }
}
