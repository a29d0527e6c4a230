//! Passwords stored as md5 (`password_encryption = md5`): PostgreSQL's older form, deprecated since 18. Its hash opens a
//! server that still knows the role by md5; it can never take part in SCRAM (case 26).

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::crypto::same;

/// What a server stores: md5 of password and user name. As good as the password itself towards a server that asks for
/// md5.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Md5Hash([u8; 32]);

impl Md5Hash {
    /// Reads PostgreSQL's form, `md5` and 32 lower-case hexadecimal digits.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let digits: [u8; 32] = text.strip_prefix(b"md5")?.try_into().ok()?;
        digits
            .iter()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
            .then_some(Self(digits))
    }
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
