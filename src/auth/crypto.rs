//! The few primitives that logins and cancel keys share; all of them are aws-lc-rs'.

use aws_lc_rs::{constant_time, hmac, rand};
use zeroize::Zeroizing;

/// HMAC-SHA-256 over the concatenation of `parts`. A caller with several parts of variable length
/// must make the concatenation unambiguous.
pub(crate) fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(part);
    }
    let mut out = Zeroizing::new([0; 32]);
    out.copy_from_slice(context.sign().as_ref());
    out
}

/// Whether two secrets are equal, in a time that depends on their lengths only.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(a, b).is_ok()
}

/// Bytes of the system's cryptographic random source.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the system's random source does not fail once the process has started");
    bytes
}
