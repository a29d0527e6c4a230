//! What may have been changed: names of settings, and kinds of state.

use super::settings::{MAX_NAME, is_custom};

/// Names kept of one text, or between two boundaries.
pub(super) const MAX_NAMES: usize = 64;
/// Parameters that are names, kept of one text.
const MAX_PARAMETERS: usize = 16;

/// A set of kinds of state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Kinds(u16);

impl Kinds {
    pub(super) const NONE: Self = Self(0);
    /// Settings whose names are not known: they must be looked for.
    pub(super) const ANY_SETTING: Self = Self(1);
    /// A custom setting whose name is not known, and which cannot be looked for.
    pub(super) const UNKNOWN_NAME: Self = Self(1 << 1);
    pub(super) const ROLE: Self = Self(1 << 2);
    pub(super) const PREPARE: Self = Self(1 << 3);
    pub(super) const LISTEN: Self = Self(1 << 4);
    pub(super) const TEMPORARY: Self = Self(1 << 5);
    pub(super) const CURSOR: Self = Self(1 << 6);
    pub(super) const ADVISORY: Self = Self(1 << 7);
    /// What cannot be asked for, and stays.
    pub(super) const LOAD: Self = Self(1 << 8);
    pub(super) const SEED: Self = Self(1 << 9);
    pub(super) const SEQUENCE: Self = Self(1 << 10);
    pub(super) const EXTENSION: Self = Self(1 << 11);

    /// The text was looked at in pieces. A `DO` in it may set any custom name.
    pub(super) const LONG: Self = Self(1 << 12);

    /// Everything that a question about catalogue and locks can find.
    pub(super) const PINS: Self = Self::PREPARE
        .and(Self::LISTEN)
        .and(Self::TEMPORARY)
        .and(Self::CURSOR)
        .and(Self::ADVISORY);
    /// What code that is put together at run time may do.
    pub(super) const ANYTHING: Self = Self::PINS.and(Self::ANY_SETTING).and(Self::ROLE);
    /// What any function may do, if its name is not known: also what cannot be asked for.
    pub(super) const EVERYTHING: Self = Self::ANYTHING
        .and(Self::UNKNOWN_NAME)
        .and(Self::SEED)
        .and(Self::SEQUENCE)
        .and(Self::EXTENSION);

    pub(super) const fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    pub(super) const fn only(self, others: Self) -> Self {
        Self(self.0 & others.0)
    }

    pub(super) const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    pub(super) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) const fn has(self, one: Self) -> bool {
        self.0 & one.0 != 0
    }

    pub(super) fn add(&mut self, others: Self) {
        self.0 |= others.0;
    }
}

/// A parameter of a statement that is the name of a setting: `set_config($1, $2, false)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NameParameter {
    /// From 1.
    pub number: u16,
    /// Only until the end of the transaction.
    pub is_local: bool,
}

/// What may have been changed, or what one text may change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Suspicion {
    /// May have been set, or added to.
    pub kinds: Kinds,
    /// Can only have been taken away.
    pub removed: Kinds,
    /// Names in lower case.
    pub names: Vec<Box<str>>,
    /// Custom names that were set until the end of the transaction only.
    pub local_custom: Vec<Box<str>>,
    pub parameters: Vec<NameParameter>,
    /// There is a SET among the statements, and `names` has what it sets.
    pub has_set: bool,
}

impl Suspicion {
    pub(super) fn is_empty(&self) -> bool {
        self.kinds.is_empty()
            && self.removed.is_empty()
            && self.names.is_empty()
            && self.local_custom.is_empty()
            && self.parameters.is_empty()
            && !self.has_set
    }

    /// A name as it stands in SQL. One that is too long, not ASCII, or one too many, is looked for
    /// with all others.
    pub(super) fn name(&mut self, name: &[u8], is_local: bool) {
        if name.is_empty() {
            return;
        }
        let lower = name.to_ascii_lowercase();
        let text = match std::str::from_utf8(&lower) {
            Ok(text) if text.is_ascii() && text.len() <= MAX_NAME => text,
            _ if is_local => return,
            _ => return self.unknown(lower.contains(&b'.')),
        };
        match text {
            "seed" => return self.kinds.add(Kinds::SEED),
            // Each transaction sets these anew (P9, P17).
            "transaction_isolation" | "transaction_read_only" | "transaction_deferrable" => return,
            // The session's user is a reported parameter; setting it resets the role (P18).
            "role" | "session_authorization" if !is_local => return self.kinds.add(Kinds::ROLE),
            _ => {}
        }
        let names = if !is_local {
            &mut self.names
        } else if is_custom(text) {
            &mut self.local_custom
        } else {
            return;
        };
        if names.iter().any(|known| **known == *text) {
            return;
        }
        if names.len() < MAX_NAMES {
            names.push(text.into());
        } else if !is_local {
            self.unknown(is_custom(text));
        }
    }

    /// A setting whose name is not known was set.
    pub(super) fn unknown(&mut self, may_be_custom: bool) {
        self.kinds.add(Kinds::ANY_SETTING.and(Kinds::ROLE));
        if may_be_custom {
            self.kinds.add(Kinds::UNKNOWN_NAME);
        }
    }

    pub(super) fn parameter(&mut self, parameter: NameParameter) {
        if self.parameters.contains(&parameter) {
        } else if self.parameters.len() < MAX_PARAMETERS {
            self.parameters.push(parameter);
        } else if !parameter.is_local {
            self.unknown(true);
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.kinds.add(other.kinds);
        self.removed.add(other.removed);
        self.has_set |= other.has_set;
        for name in &other.names {
            self.name(name.as_bytes(), false);
        }
        for name in &other.local_custom {
            self.name(name.as_bytes(), true);
        }
    }

    /// Takes the names that are parameters from the body of a Bind, as far as it has come.
    pub(super) fn bound(&mut self, parameters: &[NameParameter], body: &[u8]) {
        for parameter in parameters {
            match bound_value(body, parameter.number) {
                // NULL: set_config fails.
                Some(name) => self.name(name, parameter.is_local),
                None if parameter.is_local => {}
                None => self.unknown(true),
            }
        }
    }
}

/// The value of a parameter in the body of a Bind, nothing for NULL: `None` if it is not there or
/// not whole. Text is the same bytes in both formats.
fn bound_value(body: &[u8], number: u16) -> Option<&[u8]> {
    let mut rest = body;
    for _ in 0..2 {
        let end = rest.iter().position(|&byte| byte == 0)?;
        rest = &rest[end + 1..];
    }
    let word = |rest: &mut &[u8]| {
        let (word, tail) = rest.split_first_chunk::<2>()?;
        *rest = tail;
        Some(u16::from_be_bytes(*word))
    };
    let formats = word(&mut rest)?;
    rest = rest.get(usize::from(formats) * 2..)?;
    let count = word(&mut rest)?;
    if number == 0 || number > count {
        return None;
    }
    let mut value: &[u8] = &[];
    for _ in 0..number {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        rest = tail;
        value = match i32::from_be_bytes(*length) {
            -1 => &[],
            length => {
                let (value, tail) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                rest = tail;
                value
            }
        };
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(values: &[Option<&[u8]>]) -> Vec<u8> {
        let mut body = b"portal\0name\0\0\x01\0\0".to_vec();
        body.extend(u16::try_from(values.len()).expect("few").to_be_bytes());
        for value in values {
            match value {
                None => body.extend((-1_i32).to_be_bytes()),
                Some(value) => {
                    body.extend(u32::try_from(value.len()).expect("short").to_be_bytes());
                    body.extend(*value);
                }
            }
        }
        body.extend([0, 0]);
        body
    }

    #[test]
    fn a_bound_value_is_found_where_it_has_come_whole() {
        let body = bind(&[Some(b"x"), None, Some(b"App.Tenant")]);
        assert_eq!(bound_value(&body, 1), Some(&b"x"[..]));
        assert_eq!(bound_value(&body, 2), Some(&b""[..]));
        assert_eq!(bound_value(&body, 3), Some(&b"App.Tenant"[..]));
        assert_eq!(bound_value(&body, 4), None);
        assert_eq!(bound_value(&body, 0), None);
        for length in 0..body.len() - 2 {
            assert_eq!(bound_value(&body[..length], 3), None, "{length}");
        }
    }

    #[test]
    fn a_name_that_has_not_come_is_unknown() {
        let parameter = NameParameter {
            number: 1,
            is_local: false,
        };
        let mut suspicion = Suspicion::default();
        suspicion.bound(&[parameter], &bind(&[Some(b"App.Tenant")]));
        assert_eq!(suspicion.names, ["app.tenant".into()]);
        assert!(suspicion.kinds.is_empty());
        suspicion.bound(&[parameter], b"portal\0na");
        assert!(suspicion.kinds.has(Kinds::UNKNOWN_NAME) && suspicion.kinds.has(Kinds::ANY_SETTING));
    }

    #[test]
    fn too_many_names_are_looked_for() {
        let mut suspicion = Suspicion::default();
        for i in 0..MAX_NAMES {
            suspicion.name(format!("a{i}").as_bytes(), false);
            suspicion.name(format!("A{i}").as_bytes(), false);
        }
        assert!(suspicion.kinds.is_empty());
        suspicion.name(b"more", false);
        assert!(suspicion.kinds.has(Kinds::ANY_SETTING) && !suspicion.kinds.has(Kinds::UNKNOWN_NAME));
        suspicion.name(b"a.more", false);
        assert!(suspicion.kinds.has(Kinds::UNKNOWN_NAME));
        assert_eq!(suspicion.names.len(), MAX_NAMES);
    }
}
