//! The settings of a session that differ from what its startup parameters give.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Names kept for one session.
pub(super) const MAX_SETTINGS: usize = 128;
/// Bytes of names and values kept for one session.
pub(super) const MAX_BYTES: usize = 32 * 1024;
/// The longest name of a setting that is looked at. PostgreSQL's own names are below 64 bytes;
/// a custom name may have any length.
pub(super) const MAX_NAME: usize = 256;

/// The deviations of a session from what its connection's startup gives: names in lower case, with
/// the value of `current_setting` in the encoding of the database.
///
/// Cheap to clone. An empty one has no heap. Equality looks at the pointer first.
#[derive(Debug, Clone, Default)]
pub struct Settings(Option<Arc<Values>>);

type Values = BTreeMap<Box<str>, Box<[u8]>>;

/// A name with a dot: an extension's, or one that the application made up. PostgreSQL cannot remove
/// it from a connection: once set, it reads as an empty string.
pub type CustomName = Box<str>;

impl PartialEq for Settings {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
            _ => false,
        }
    }
}

impl Eq for Settings {}

impl Settings {
    /// No deviation: a fresh connection has these.
    pub const NONE: Self = Self(None);

    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.as_ref()?.get(name).map(|value| &**value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        let all = self.0.iter().flat_map(|all| all.iter());
        all.map(|(name, value)| (&**name, &**value))
    }

    /// The custom names among them.
    pub fn custom_names(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(name, _)| name).filter(|name| is_custom(name))
    }

    /// Sets one (`None`: no deviation), whatever the server says. For what the router itself gives
    /// a session, as its `application_name`. False if there is no room for it.
    #[must_use]
    pub fn set(&mut self, name: &str, value: Option<&[u8]>) -> bool {
        if self.get(name) == value {
            return true;
        }
        let Some(value) = value else {
            if let Some(all) = &mut self.0 {
                let all = Arc::make_mut(all);
                all.remove(name);
                if all.is_empty() {
                    self.0 = None;
                }
            }
            return true;
        };
        let others = self.iter().filter(|(other, _)| *other != name);
        let (count, bytes) = others.fold((0, 0), |(count, bytes), (name, value)| {
            (count + 1, bytes + name.len() + value.len())
        });
        if count >= MAX_SETTINGS || bytes + name.len() + value.len() > MAX_BYTES || name.len() > MAX_NAME {
            return false;
        }
        Arc::make_mut(self.0.get_or_insert_default()).insert(name.into(), value.into());
        true
    }

    /// Makes two equal ones the same pointer, always the lower one: so all equal ones come to share
    /// one, and their comparison is one of pointers.
    pub fn unify(&mut self, other: &mut Self) {
        if self != other {
            return;
        }
        let pointer = |settings: &Self| settings.0.as_ref().map(Arc::as_ptr);
        if pointer(self) < pointer(other) {
            other.0.clone_from(&self.0);
        } else {
            self.0.clone_from(&other.0);
        }
    }
}

/// Whether a name is custom: it has a dot.
pub(super) fn is_custom(name: &str) -> bool {
    name.contains('.')
}

/// Whether a value of this name could be set on another connection. The server sets the others, or
/// each transaction has its own.
pub(super) fn is_restorable(name: &str) -> bool {
    !matches!(
        name,
        "transaction_isolation"
            | "transaction_read_only"
            | "transaction_deferrable"
            | "session_authorization"
            | "is_superuser"
            | "in_hot_standby"
            | "seed"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_contents_are_equal_and_can_share_their_memory() {
        let (mut one, mut other) = (Settings::NONE, Settings::NONE);
        assert!(one.set("work_mem", Some(b"1MB")) && other.set("work_mem", Some(b"1MB")));
        assert_eq!(one, other);
        one.unify(&mut other);
        assert!(Arc::ptr_eq(
            one.0.as_ref().expect("set"),
            other.0.as_ref().expect("set")
        ));
        assert!(one.set("work_mem", None));
        assert!(one.is_empty() && one == Settings::NONE);
        assert_eq!(other.get("work_mem"), Some(&b"1MB"[..]));
    }

    #[test]
    fn number_and_bytes_have_a_limit() {
        let mut settings = Settings::NONE;
        for i in 0..MAX_SETTINGS {
            assert!(settings.set(&format!("a.n{i}"), Some(b"x")));
        }
        assert!(!settings.set("a.more", Some(b"x")));
        assert!(settings.set("a.n0", Some(b"other")));
        let mut settings = Settings::NONE;
        assert!(!settings.set("a.b", Some(&vec![b'x'; MAX_BYTES])));
        assert!(!settings.set(&"x".repeat(MAX_NAME + 1), Some(b"x")));
        assert!(settings.is_empty());
    }
}
