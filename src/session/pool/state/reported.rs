//! The parameters that a server reports by `ParameterStatus`.

use std::sync::Arc;

/// Parameters kept. PostgreSQL 19 reports 15.
const MAX_PARAMETERS: usize = 64;

/// Reported parameters and their values, as received: of a connection at its login, of a connection
/// now, or as a client was last told.
///
/// Cheap to clone; a change copies what is shared.
#[derive(Debug, Clone, Default, Eq)]
pub struct Reported(Arc<Vec<Parameter>>);

impl PartialEq for Reported {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

/// Name and value.
type Parameter = (Box<[u8]>, Box<[u8]>);

impl Reported {
    /// Takes a `ParameterStatus`. More than 64 names are not kept.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        match self.0.iter().position(|(known, _)| **known == *name) {
            Some(at) if *self.0[at].1 == *value => {}
            Some(at) => Arc::make_mut(&mut self.0)[at].1 = value.into(),
            None if self.0.len() < MAX_PARAMETERS => {
                Arc::make_mut(&mut self.0).push((name.into(), value.into()));
            }
            None => {}
        }
    }

    /// The name is compared without case: `datestyle` finds `DateStyle`.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        let mut all = self.0.iter();
        all.find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| &**value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Makes two equal ones the same pointer, always the lower one: so all equal ones come to share
    /// one, and their comparison is one of pointers. `true`: they are equal.
    pub fn unify(&mut self, other: &mut Self) -> bool {
        if self != other {
            return false;
        }
        if Arc::as_ptr(&self.0) < Arc::as_ptr(&other.0) {
            other.0.clone_from(&self.0);
        } else {
            self.0.clone_from(&other.0);
        }
        true
    }

    /// What a client must be told that was told `told` and now has the connection with these. Set
    /// them in `told` when they are sent.
    pub fn differences<'a>(&'a self, told: &'a Self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.iter().filter(|(name, value)| told.get(name) != Some(value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_what_differs() {
        let mut told = Reported::default();
        told.set(b"TimeZone", b"UTC");
        told.set(b"DateStyle", b"ISO, MDY");
        let mut now = told.clone();
        assert_eq!(now.differences(&told).count(), 0);
        now.set(b"TimeZone", b"Europe/Berlin");
        now.set(b"search_path", b"public");
        let differences: Vec<_> = now.differences(&told).collect();
        assert_eq!(
            differences,
            [
                (&b"TimeZone"[..], &b"Europe/Berlin"[..]),
                (b"search_path", b"public")
            ]
        );
        assert_eq!(told.get(b"timezone"), Some(&b"UTC"[..]));
    }

    #[test]
    fn equal_ones_come_to_share_their_memory() {
        let told = |zone: &[u8]| {
            let mut told = Reported::default();
            told.set(b"TimeZone", zone);
            told
        };
        let (mut one, mut other) = (told(b"UTC"), told(b"UTC"));
        assert!(one.unify(&mut other) && Arc::ptr_eq(&one.0, &other.0));
        let mut different = told(b"CET");
        assert!(!one.unify(&mut different));
        assert_eq!(different.get(b"TimeZone"), Some(&b"CET"[..]));
    }

    #[test]
    fn the_number_has_a_limit() {
        let mut all = Reported::default();
        for i in 0..1000 {
            all.set(format!("p{i}").as_bytes(), b"");
        }
        assert_eq!(all.iter().count(), MAX_PARAMETERS);
    }
}
