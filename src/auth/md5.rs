//! Passwords stored as md5 (`password_encryption = md5`): PostgreSQL's older form, deprecated since
//! 18. Its hash opens a server that still knows the role by md5; it can never take part in SCRAM
//! (docs/protocol.md, case 26).
//!
//! Both sides of `AuthenticationMD5Password`: [`Md5Hash::answer`] towards servers,
//! [`Md5Hash::verify`] towards clients.

use md5::{Digest, Md5};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::crypto::same;

/// What a server stores: md5 of password and user name. As good as the password itself towards a
/// server that asks for md5.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Md5Hash([u8; 32]);

impl Md5Hash {
    /// The hash itself, which is as good as the password. Callers must not let it reach a log, an
    /// error or a `Debug`.
    pub(crate) fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Reads PostgreSQL's form, `md5` and 32 lower-case hexadecimal digits.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let digits: [u8; 32] = text.strip_prefix(b"md5")?.try_into().ok()?;
        digits
            .iter()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
            .then_some(Self(digits))
    }

    /// The hash of a password, byte for byte: md5 knows no `SASLprep`.
    pub fn of(password: &[u8], user: &[u8]) -> Self {
        Self(*digest(password, user))
    }

    /// What `PasswordMessage` answers to a server's salt, without its terminator: `md5` and 32
    /// digits.
    pub fn answer(&self, salt: [u8; 4]) -> Zeroizing<[u8; 35]> {
        let mut answer = Zeroizing::new([0; 35]);
        answer[..3].copy_from_slice(b"md5");
        answer[3..].copy_from_slice(&*digest(&self.0, &salt));
        answer
    }

    /// Whether a client's `PasswordMessage`, without its terminator, answers `salt` with this hash.
    /// In constant time. The salt must be fresh and random, or the answer may be a replayed one.
    pub fn verify(&self, answer: &[u8], salt: [u8; 4]) -> bool {
        same(answer, &*self.answer(salt))
    }
}

/// md5 of both, as hexadecimal digits.
fn digest(first: &[u8], second: &[u8]) -> Zeroizing<[u8; 32]> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digest = Md5::new().chain_update(first).chain_update(second).finalize();
    let bytes = Zeroizing::new(<[u8; 16]>::from(digest));
    Zeroizing::new(std::array::from_fn(|at| {
        let byte = bytes[at / 2];
        DIGITS[usize::from(if at % 2 == 0 { byte >> 4 } else { byte & 15 })]
    }))
}

/// In constant time.
impl PartialEq for Md5Hash {
    fn eq(&self, other: &Self) -> bool {
        same(&self.0, &other.0)
    }
}

impl Eq for Md5Hash {}

impl std::fmt::Debug for Md5Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Md5Hash(***)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const STORED: &[u8] = b"md57cb133e596658708079ed4cfaaf64462";
    const ANSWER: &[u8] = b"md5e99ddb2f9ec55efafaab82a5d6c6de19";
    const BINARY_ANSWER: &[u8] = b"md50cf89d74ff54fe34ac224784d7e00fac";

    /// The constants are computed with Python's hashlib.
    #[test]
    fn hash_and_answers_are_postgresqls() {
        let hash = Md5Hash::of(b"secret", b"old");
        assert_eq!(hash, Md5Hash::parse(STORED).unwrap());
        assert_eq!(&hash.answer(*b"salt")[..], ANSWER);
        assert_eq!(&hash.answer([0, 255, 10, 0])[..], BINARY_ANSWER);
    }

    #[test]
    fn only_the_right_answer_to_this_salt_is_good() {
        let hash = Md5Hash::of(b"secret", b"old");
        assert!(hash.verify(ANSWER, *b"salt"));
        for wrong in [
            &b""[..],
            b"md5",
            STORED,
            &ANSWER[..34],
            &[ANSWER, b"0"].concat(),
            b"secret",
        ] {
            assert!(!hash.verify(wrong, *b"salt"), "{}", wrong.escape_ascii());
        }
        assert!(!hash.verify(ANSWER, *b"Salt"));
        assert!(!Md5Hash::of(b"secret", b"other").verify(ANSWER, *b"salt"));
        assert!(!Md5Hash::of(b"Secret", b"old").verify(ANSWER, *b"salt"));
    }

    #[test]
    fn nothing_secret_is_printed() {
        assert_eq!(format!("{:?}", Md5Hash::of(b"secret", b"old")), "Md5Hash(***)");
    }
}
