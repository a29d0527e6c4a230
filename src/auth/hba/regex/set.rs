//! The sets of bytes that a regular expression is made of.

use std::fmt::Write as _;

/// A set of bytes.
#[derive(Clone, Copy)]
pub(super) struct Set([u64; 4]);

impl Set {
    pub(super) fn of(contains: impl Fn(u8) -> bool) -> Self {
        let mut set = Self([0; 4]);
        for byte in 0..=u8::MAX {
            if contains(byte) {
                set.insert(byte);
            }
        }
        set
    }

    pub(super) fn insert(&mut self, byte: u8) {
        self.0[usize::from(byte >> 6)] |= 1 << (byte & 63);
    }

    fn contains(self, byte: u8) -> bool {
        self.0[usize::from(byte >> 6)] & 1 << (byte & 63) != 0
    }

    /// How many it is written with.
    pub(super) fn ranges(&self) -> usize {
        let begins = |byte: u8| self.contains(byte) && (byte == 0 || !self.contains(byte - 1));
        (0..=u8::MAX).filter(|byte| begins(*byte)).count()
    }

    pub(super) fn add(&mut self, other: Self) {
        for (word, more) in self.0.iter_mut().zip(other.0) {
            *word |= more;
        }
    }

    pub(super) fn negated(self) -> Self {
        Self(self.0.map(|word| !word))
    }

    pub(super) fn write(self, out: &mut String) {
        out.push('[');
        let mut next = 0_u16;
        while next < 256 {
            let first = next;
            while next < 256 && u8::try_from(next).is_ok_and(|byte| self.contains(byte)) {
                next += 1;
            }
            if next > first {
                let _ = write!(out, "\\x{first:02x}-\\x{:02x}", next - 1);
            }
            next += 1;
        }
        out.push(']');
    }
}

/// The class of a name in `[:…:]`, in the C locale.
pub(super) fn class(name: &[u8]) -> Option<Set> {
    let contains: fn(u8) -> bool = match name {
        b"alnum" => |byte| byte.is_ascii_alphanumeric(),
        b"alpha" => |byte| byte.is_ascii_alphabetic(),
        b"blank" => |byte| matches!(byte, b' ' | b'\t'),
        b"cntrl" => |byte| byte.is_ascii_control(),
        b"digit" => |byte| byte.is_ascii_digit(),
        b"graph" => |byte| byte.is_ascii_graphic(),
        b"lower" => |byte| byte.is_ascii_lowercase(),
        b"print" => |byte| byte.is_ascii_graphic() || byte == b' ',
        b"punct" => |byte| byte.is_ascii_punctuation(),
        b"space" => |byte| matches!(byte, b' ' | b'\t'..=b'\r'),
        b"upper" => |byte| byte.is_ascii_uppercase(),
        b"xdigit" => |byte| byte.is_ascii_hexdigit(),
        b"word" => |byte| byte.is_ascii_alphanumeric() || byte == b'_',
        _ => return None,
    };
    Some(Set::of(contains))
}
