//! What sessions have moved, by the database that their clients asked for.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Traffic;

/// Databases that are counted apart. Clients that have logged in name them, so that there are not
/// many more than the servers have.
const MOST: usize = 1000;
/// All others together.
const OTHERS: Bytes = Bytes::from_static(b"(others)");

/// The sessions of one database since the process started.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct DatabaseTotals {
    /// Those that have begun.
    pub sessions: u64,
    pub traffic: Traffic,
}

#[derive(Debug, Default, Clone)]
pub(super) struct Databases(BTreeMap<Bytes, DatabaseTotals>);

impl Databases {
    pub(super) fn begun(&mut self, database: &Bytes) {
        self.of(database).sessions += 1;
    }

    pub(super) fn moved(&mut self, database: &Bytes, traffic: Traffic) {
        self.of(database).traffic.add(traffic);
    }

    pub(super) fn into_all(self) -> BTreeMap<Bytes, DatabaseTotals> {
        self.0
    }

    fn of(&mut self, database: &Bytes) -> &mut DatabaseTotals {
        let is_known = self.0.contains_key(database) || self.0.len() < MOST;
        let name = if is_known { database.clone() } else { OTHERS };
        self.0.entry(name).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_names_takes_bounded_room() {
        let mut databases = Databases::default();
        for number in 0..3 * MOST {
            databases.begun(&Bytes::from(format!("d{number}")));
        }
        let all = databases.into_all();
        assert_eq!(all.len(), MOST + 1);
        assert_eq!(all[&OTHERS].sessions, 2 * MOST as u64);
        let sum: u64 = all.values().map(|totals| totals.sessions).sum();
        assert_eq!(sum, 3 * MOST as u64);
    }
}
