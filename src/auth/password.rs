//! The HBA method `password`: a password in clear, checked with the verifier or hash of the user.

use super::Identity;
use super::md5::Md5Hash;
use super::scram::{MAX_PASSWORD, MAX_VERIFIER_ITERATIONS, MockSecret};

/// The most iterations [`verify`] computes: about 250 ms of a processor.
pub(crate) const MAX_ITERATIONS: u32 = MAX_VERIFIER_ITERATIONS;

/// Whether `password` (without its terminator) is the user's. An empty one never is, nor one over
/// [`MAX_PASSWORD`] bytes, nor one with a zero byte, which the protocol cannot carry and HMAC
/// cannot tell from a shorter one.
///
/// Computes as many PBKDF2 iterations as the verifier has, up to [`MAX_ITERATIONS`], and blocks for
/// so long: the caller runs it off the data path (`spawn_blocking`), with a limit on how many run
/// at once. A user that does not exist, and one whose password is stored as md5, cost as much as a
/// verifier with PostgreSQL's default number of iterations, so that the time does not distinguish
/// them from a wrong password. SCRAM's first message shows another number of iterations anyway.
pub(crate) fn verify(identity: Option<&Identity>, user: &[u8], password: &[u8], mock: &MockSecret) -> bool {
    if password.is_empty() || password.len() > MAX_PASSWORD || password.contains(&0) {
        return false;
    }
    // Computed for every user.
    let stranger = mock.verifier(user);
    let digest = Md5Hash::of(password, user);
    let verifier = identity
        .and_then(Identity::verifier)
        .map_or(&stranger, |known| known);
    let is_bounded = verifier.iterations <= MAX_ITERATIONS;
    let is_derived = is_bounded && verifier.is_of(password);
    match identity {
        // The verifier of a password kept in clear was computed from it.
        Some(Identity::Verifier(_) | Identity::Password(..)) => is_derived,
        Some(Identity::Md5(stored)) => *stored == digest,
        None => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::num::NonZeroU32;
    use std::sync::Arc;

    use super::*;
    use crate::auth::scram::Verifier;
    use crate::config::Secret;

    fn verifier(password: &[u8]) -> Arc<Verifier> {
        let iterations = NonZeroU32::new(3).unwrap();
        Arc::new(Verifier::from_password(password, b"0123456789abcdef", iterations))
    }

    /// One of each kind, with the same password.
    fn identities(password: &[u8]) -> [Identity; 3] {
        [
            Identity::Verifier(verifier(password)),
            Identity::Password(Secret::new(password), verifier(password)),
            Identity::Md5(Md5Hash::of(password, b"app")),
        ]
    }

    #[test]
    fn the_right_password_of_each_kind_and_no_other() {
        let mock = MockSecret::new(None);
        for identity in identities(b"s3cret") {
            let check = |password: &[u8]| verify(Some(&identity), b"app", password, &mock);
            assert!(check(b"s3cret"), "{identity:?}");
            for wrong in [&b""[..], b"S3cret", b"s3cret ", b"s3cre", b"s3cret\0"] {
                assert!(!check(wrong), "{identity:?} {}", wrong.escape_ascii());
            }
        }
        assert!(!verify(None, b"app", b"s3cret", &mock));
        assert!(!verify(None, b"app", b"", &mock));
    }

    /// The hash of one user does not let in another one with the same password, as in PostgreSQL.
    #[test]
    fn md5_belongs_to_its_user() {
        let mock = MockSecret::new(None);
        let hash = Identity::Md5(Md5Hash::of(b"s3cret", b"app"));
        assert!(!verify(Some(&hash), b"other", b"s3cret", &mock));
    }

    #[test]
    fn an_empty_password_is_never_right() {
        let mock = MockSecret::new(None);
        for identity in identities(b"") {
            assert!(!verify(Some(&identity), b"app", b"", &mock), "{identity:?}");
        }
    }

    #[test]
    fn the_longest_password_works_and_a_longer_one_does_not() {
        let mock = MockSecret::new(None);
        let mut password = vec![b'x'; MAX_PASSWORD];
        for identity in identities(&password) {
            assert!(verify(Some(&identity), b"app", &password, &mock));
        }
        password.push(b'x');
        for identity in identities(&password) {
            assert!(!verify(Some(&identity), b"app", &password, &mock));
        }
    }

    /// Also the stored forms themselves are no passwords.
    #[test]
    fn what_is_stored_does_not_let_in() {
        let mock = MockSecret::new(None);
        let stored = verifier(b"s3cret");
        let text = stored.to_text();
        let identity = Identity::Verifier(stored);
        assert!(!verify(Some(&identity), b"app", text.as_bytes(), &mock));
        let hash = Md5Hash::of(b"s3cret", b"app");
        let answer = hash.answer(*b"salt");
        assert!(!verify(Some(&Identity::Md5(hash)), b"app", &answer[..], &mock));
    }

    #[test]
    fn sasl_prep_applies_as_in_scram() {
        let mock = MockSecret::new(None);
        let identity = Identity::Verifier(verifier("IX é".as_bytes()));
        let typed = "I\u{AD}X\u{A0}e\u{301}";
        assert!(verify(Some(&identity), b"app", typed.as_bytes(), &mock));
    }

    #[test]
    fn no_more_iterations_than_the_bound() {
        let mock = MockSecret::new(None);
        let mut endless = Verifier::clone(&verifier(b"x"));
        endless.iterations = u32::MAX;
        assert!(!verify(
            Some(&Identity::Verifier(Arc::new(endless))),
            b"app",
            b"x",
            &mock
        ));
    }
}
