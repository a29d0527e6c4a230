//! The roles one user is a member of, as `+role` in `pg_hba.conf` asks for them.

use std::collections::HashSet;

/// All roles a user is a member of, directly or not, itself included. Empty for a user that does not exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memberships(HashSet<Box<[u8]>>);

impl Memberships {
    pub fn new(roles: impl IntoIterator<Item = impl Into<Box<[u8]>>>) -> Self {
        Self(roles.into_iter().map(Into::into).collect())
    }

    pub fn contains(&self, role: &[u8]) -> bool {
        self.0.contains(role)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
