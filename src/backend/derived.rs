//! Keys derived from passwords for logins at servers: computed outside the workers, and remembered.
//!
//! A password, a salt and a number of iterations give the same keys each time, and a server asks
//! for the same ones at each login. With many iterations that is much work (PostgreSQL's
//! `scram_iterations`; OWASP's advice is 600,000, about 150 ms), which is done once. A login that
//! runs out of time leaves the work to the next one.
//!
//! Limits: [`AT_ONCE`] derivations at once; [`MOST_PASSWORDS`] passwords, with [`MOST_SALTS`] salts
//! each, so that a server that invents salts displaces only those of its own password. The password
//! itself is kept as a keyed digest.

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use crate::auth::crypto::{hmac_sha256, random};
use crate::auth::scram::Keys;
use crate::auth::scram::client::Derivation;

const AT_ONCE: usize = 4;
const MOST_PASSWORDS: usize = 1024;
const MOST_SALTS: usize = 8;

static REMEMBERED: LazyLock<Remembered> = LazyLock::new(Remembered::new);

struct Remembered {
    key: [u8; 32],
    /// The one used last comes last; so of each password.
    known: Mutex<VecDeque<([u8; 32], OfPassword)>>,
    permits: Arc<Semaphore>,
}

/// By salt and iterations.
type OfPassword = VecDeque<(Vec<u8>, u32, Keys)>;

impl Remembered {
    fn new() -> Self {
        Self {
            key: random(),
            known: Mutex::default(),
            permits: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<([u8; 32], OfPassword)>> {
        // Entries are moved whole: a panic leaves nothing half done.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn digest(&self, work: &Derivation) -> [u8; 32] {
        *hmac_sha256(&self.key, &[work.password.expose()])
    }

    fn find(&self, digest: &[u8; 32], work: &Derivation) -> Option<Keys> {
        let mut known = self.lock();
        let place = known.iter().position(|(of, _)| of == digest)?;
        let (of, mut salts) = known.remove(place)?;
        let place = salts
            .iter()
            .position(|(salt, iterations, _)| *salt == work.salt && *iterations == work.iterations.get());
        let found = place.and_then(|place| salts.remove(place)).map(|entry| {
            let keys = entry.2.clone();
            salts.push_back(entry);
            keys
        });
        known.push_back((of, salts));
        found
    }

    fn keep(&self, digest: [u8; 32], work: &Derivation, keys: Keys) {
        let mut known = self.lock();
        let place = known.iter().position(|(of, _)| *of == digest);
        let mut salts = place
            .and_then(|place| known.remove(place))
            .map(|(_, salts)| salts)
            .unwrap_or_default();
        if salts.len() >= MOST_SALTS {
            salts.pop_front();
        }
        salts.push_back((work.salt.clone(), work.iterations.get(), keys));
        if known.len() >= MOST_PASSWORDS {
            known.pop_front();
        }
        known.push_back((digest, salts));
    }
}

/// The keys of a password. If the future is dropped, the work goes on and its result is remembered.
pub(super) async fn keys(work: &Derivation) -> Keys {
    let remembered = &*REMEMBERED;
    let digest = remembered.digest(work);
    if let Some(keys) = remembered.find(&digest, work) {
        return keys;
    }
    let permit = Arc::clone(&remembered.permits).acquire_owned().await;
    // Another login may have done the same work.
    if let Some(keys) = remembered.find(&digest, work) {
        return keys;
    }
    let owned = work.clone();
    let task = tokio::task::spawn_blocking(move || {
        let keys = owned.run();
        remembered.keep(digest, &owned, keys.clone());
        drop(permit);
        keys
    });
    match task.await {
        Ok(keys) => keys,
        // The runtime is ending.
        Err(_) => work.run(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::num::NonZeroU32;

    use super::*;
    use crate::config::Secret;

    fn work(password: &str, salt: u32) -> Derivation {
        Derivation {
            password: Secret::new(password.as_bytes()),
            salt: salt.to_be_bytes().to_vec(),
            iterations: NonZeroU32::MIN,
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_for_each_password_and_in_all() {
        let remembered = Remembered::new();
        let keep = |work: &Derivation| remembered.keep(remembered.digest(work), work, work.run());
        let knows = |work: &Derivation| remembered.find(&remembered.digest(work), work).is_some();
        let mine = work("mine", 0);
        keep(&mine);
        assert!(knows(&mine));
        let other = Derivation {
            iterations: NonZeroU32::new(2).unwrap(),
            ..mine.clone()
        };
        assert!(!knows(&other), "another number of iterations");
        // A server that invents salts displaces only those of this password.
        for salt in 0..1000 {
            keep(&work("theirs", salt));
        }
        assert!(knows(&mine));
        assert!(knows(&work("theirs", 999)) && !knows(&work("theirs", 0)));
        // One that is in use stays.
        for password in 0..MOST_PASSWORDS * 2 {
            keep(&work(&password.to_string(), 0));
            assert!(knows(&mine));
        }
        assert_eq!(remembered.lock().len(), MOST_PASSWORDS);
        let salts = remembered.lock().iter().map(|(_, salts)| salts.len()).max();
        assert!(salts.unwrap() <= MOST_SALTS);
        assert!(!knows(&work("theirs", 999)));
    }

    /// 1,000,000 iterations off the runtime's one thread, and once only.
    #[tokio::test]
    async fn many_iterations_are_derived_elsewhere_and_once() {
        let work = Derivation {
            iterations: NonZeroU32::new(1_000_000).unwrap(),
            ..work("of the test of many iterations", 1)
        };
        let mut ticks = 0;
        let mut deriving = std::pin::pin!(keys(&work));
        loop {
            tokio::select! {
                biased;
                _ = deriving.as_mut() => break,
                () = tokio::task::yield_now() => ticks += 1,
            }
        }
        assert!(ticks > 100, "the thread went on: {ticks}");
        // It is there at the first poll.
        let mut again = std::pin::pin!(keys(&work));
        assert!(futures_util::poll!(again.as_mut()).is_ready());
    }
}
