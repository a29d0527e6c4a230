//! Scheduling of cleartext password checks: how many run at once, which one is next, and which need
//! not run again.
//!
//! The verifier decides how much a check costs, and any role can set itself a verifier with a
//! million iterations (about 250 ms).
//!
//! - [`MAX_RUNNING`] checks run at the same time: at most one for a user and one for an address (an
//!   IPv6 /64; a Unix socket has none). So no user and no address can occupy all of them. The
//!   others wait.
//! - Waiting checks keep their order of arrival, but each goes back [`STEP`] places for every other
//!   check of the same user that is already there. A user with one check does not wait for all
//!   checks of a user with many.
//! - A secret that was wrong for a verifier stays wrong for it. A keyed digest of both is
//!   remembered with the time that the check took. The same secret takes that time again, without a
//!   thread, so that nobody learns which secrets others have tried. This applies only to verifiers
//!   with more iterations than PostgreSQL's default: the cost for an unknown user is computed each
//!   time, as for everyone else, and SCRAM's first message reveals the iterations anyway.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::auth::crypto::{hmac_sha256, random};
use crate::auth::login_throttle::network;
use crate::auth::scram::{DEFAULT_ITERATIONS, Verifier};

const MAX_RUNNING: usize = 4;
/// How many places a check goes back for each other check of its user.
const STEP: u64 = 16;
/// Limit of remembered wrong secrets.
const MAX_WRONG: usize = 4096;

/// The user and address that a check is for, as keyed hashes.
#[derive(Debug, Clone, Copy)]
pub struct Requester {
    user: u64,
    address: Option<u64>,
}

impl Requester {
    fn shares_with(&self, other: &Self) -> bool {
        self.user == other.user || (self.address.is_some() && self.address == other.address)
    }
}

/// A keyed digest of a secret and the verifier it is checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SecretDigest([u8; 32]);

/// Shared by all logins of the process.
#[derive(Debug)]
pub struct Derivations {
    hashes: RandomState,
    key: [u8; 32],
    turns: Mutex<Turns>,
    wrong: Mutex<HashMap<SecretDigest, Wrong>>,
}

#[derive(Debug, Clone, Copy)]
struct Wrong {
    took: Duration,
    last: Instant,
}

impl Default for Derivations {
    fn default() -> Self {
        Self {
            hashes: RandomState::new(),
            key: random(),
            turns: Mutex::default(),
            wrong: Mutex::default(),
        }
    }
}

impl Derivations {
    /// `realm` is the cluster that `user` belongs to.
    pub fn requester(&self, source: Option<IpAddr>, realm: &str, user: &[u8]) -> Requester {
        Requester {
            user: self.hashes.hash_one((realm, user)),
            address: source.map(|source| self.hashes.hash_one(network(source))),
        }
    }

    /// Waits for a permit. Cancel safe: a dropped future leaves the queue.
    pub async fn acquire(self: &Arc<Self>, requester: Requester) -> DerivationPermit {
        let (call, called) = oneshot::channel();
        let permit = DerivationPermit {
            ticket: self.turns().queue(requester, call),
            derivations: Arc::clone(self),
        };
        // Cannot fail: the queue keeps `call` until it is used.
        let _ = called.await;
        permit
    }

    /// The digest to remember `secret` by if it is wrong; `None` if the check runs each time.
    pub fn digest(&self, verifier: &Verifier, secret: &[u8]) -> Option<SecretDigest> {
        // Only the last part has a length that is not part of the digest.
        let salt_len = verifier.salt.len().to_be_bytes();
        let is_slow = verifier.iterations > DEFAULT_ITERATIONS;
        is_slow.then(|| {
            SecretDigest(*hmac_sha256(
                &self.key,
                &[
                    &verifier.iterations.to_be_bytes(),
                    &verifier.stored_key,
                    &verifier.server_key,
                    &salt_len,
                    &verifier.salt,
                    secret,
                ],
            ))
        })
    }

    /// If this secret is known to be wrong: how long the check took.
    pub fn known_wrong(&self, digest: &SecretDigest, now: Instant) -> Option<Duration> {
        let mut wrong = self.wrong();
        let known = wrong.get_mut(digest)?;
        known.last = now;
        Some(known.took)
    }

    /// Remembers a wrong secret. At the limit the quarter of the secrets that were tried longest
    /// ago is dropped.
    pub fn remember_wrong(&self, digest: SecretDigest, took: Duration, now: Instant) {
        let mut wrong = self.wrong();
        if wrong.len() >= MAX_WRONG {
            let mut ages: Vec<_> = wrong
                .iter()
                .map(|(digest, wrong)| (wrong.last, *digest))
                .collect();
            ages.select_nth_unstable_by_key(MAX_WRONG / 4, |(last, _)| *last);
            for (_, digest) in &ages[..MAX_WRONG / 4] {
                wrong.remove(digest);
            }
        }
        wrong.insert(digest, Wrong { took, last: now });
    }

    // A panic leaves no partial change in there.
    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wrong(&self) -> MutexGuard<'_, HashMap<SecretDigest, Wrong>> {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to run a check, until it is dropped.
#[derive(Debug)]
pub struct DerivationPermit {
    derivations: Arc<Derivations>,
    ticket: u64,
}

impl Drop for DerivationPermit {
    fn drop(&mut self) {
        self.derivations.turns().leave(self.ticket);
    }
}

/// The checks that run and that wait: at most one for each pending login, and those whose login
/// ended while they ran.
#[derive(Debug, Default)]
struct Turns {
    /// Number of tickets given so far.
    tickets: u64,
    running: Vec<(u64, Requester)>,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    /// The lowest rank is next.
    rank: u64,
    ticket: u64,
    requester: Requester,
    call: oneshot::Sender<()>,
}

impl Turns {
    fn queue(&mut self, requester: Requester, call: oneshot::Sender<()>) -> u64 {
        self.tickets += 1;
        let ticket = self.tickets;
        let requesters = self.waiting.iter().map(|waiting| &waiting.requester);
        let requesters = requesters.chain(self.running.iter().map(|(_, requester)| requester));
        let others = requesters.filter(|other| other.user == requester.user).count() as u64;
        self.waiting.push(Waiting {
            rank: ticket + STEP * others,
            ticket,
            requester,
            call,
        });
        self.admit();
        ticket
    }

    fn leave(&mut self, ticket: u64) {
        self.waiting.retain(|waiting| waiting.ticket != ticket);
        self.running.retain(|(running, _)| *running != ticket);
        self.admit();
    }

    /// Gives permits to the checks that are next.
    fn admit(&mut self) {
        while self.running.len() < MAX_RUNNING {
            let running = &self.running;
            let is_free =
                |requester: &Requester| !running.iter().any(|(_, other)| other.shares_with(requester));
            let next = self.waiting.iter().enumerate();
            let next = next.filter(|(_, waiting)| is_free(&waiting.requester));
            let Some((index, _)) = next.min_by_key(|(_, waiting)| (waiting.rank, waiting.ticket)) else {
                return;
            };
            let next = self.waiting.swap_remove(index);
            self.running.push((next.ticket, next.requester));
            // Fails if the waiter has just been dropped; its ticket then leaves the queue.
            let _ = next.call.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::num::NonZeroU32;

    use super::*;

    fn requester(derivations: &Derivations, user: &str, address: u8) -> Requester {
        derivations.requester(Some(IpAddr::from([10, 0, 0, address])), "main", user.as_bytes())
    }

    /// The tickets of the running checks.
    fn running(derivations: &Derivations) -> Vec<u64> {
        let turns = derivations.turns();
        let mut running: Vec<_> = turns.running.iter().map(|(ticket, _)| *ticket).collect();
        running.sort_unstable();
        running
    }

    type Waits = tokio::task::JoinHandle<DerivationPermit>;

    async fn arrive(derivations: &Arc<Derivations>, user: &str, address: u8) -> Waits {
        let (requester, derivations) = (requester(derivations, user, address), Arc::clone(derivations));
        let waits = tokio::spawn(async move { derivations.acquire(requester).await });
        tokio::task::yield_now().await;
        waits
    }

    #[tokio::test]
    async fn one_user_and_one_address_have_one_permit_each() {
        let derivations = Arc::new(Derivations::default());
        let mut waits = Vec::new();
        for (user, address) in [
            ("pw", 1),
            ("pw", 1),
            ("pw", 2),
            ("neighbour", 1),
            ("a", 3),
            ("b", 4),
            ("c", 5),
            ("d", 6),
        ] {
            waits.push(arrive(&derivations, user, address).await);
        }
        assert_eq!(running(&derivations), [1, 5, 6, 7]);
        // A finished check gives its permit back, and an aborted wait leaves the queue.
        waits[7].abort();
        assert!((&mut waits[7]).await.is_err());
        drop(waits.remove(4).await.unwrap());
        assert_eq!(
            running(&derivations),
            [1, 6, 7],
            "the user pw and its address have their permit"
        );
        drop(waits.remove(0).await.unwrap());
        tokio::task::yield_now().await;
        assert_eq!(running(&derivations), [3, 4, 6, 7]);
        // A Unix socket has no address.
        let local = Arc::new(Derivations::default());
        let first = local.acquire(local.requester(None, "main", b"a")).await;
        let second = local.acquire(local.requester(None, "main", b"b")).await;
        assert_eq!(running(&local), [1, 2]);
        drop((first, second));
        assert!(running(&local).is_empty());
    }

    #[tokio::test]
    async fn a_user_with_one_check_does_not_wait_for_a_user_with_many() {
        let derivations = Arc::new(Derivations::default());
        let mut many = Vec::new();
        for _ in 0..40 {
            many.push(arrive(&derivations, "pw", 1).await);
        }
        let neighbour = arrive(&derivations, "neighbour", 1).await;
        for next in many.drain(..4) {
            assert!(!neighbour.is_finished());
            drop(next.await.unwrap());
            tokio::task::yield_now().await;
            if neighbour.is_finished() {
                break;
            }
        }
        assert!(neighbour.is_finished());
        drop(neighbour.await.unwrap());
        // All of them get a permit.
        for next in many {
            drop(next.await.unwrap());
        }
        assert!(running(&derivations).is_empty());
    }

    #[tokio::test]
    async fn a_wrong_secret_is_remembered_with_its_verifier() {
        let derivations = Derivations::default();
        let of = |iterations| {
            let iterations = NonZeroU32::new(iterations).unwrap();
            Verifier::from_password(b"right", b"0123456789abcdef", iterations)
        };
        assert!(
            derivations.digest(&of(DEFAULT_ITERATIONS), b"wrong").is_none(),
            "as for an unknown user"
        );
        let slow = of(DEFAULT_ITERATIONS + 1);
        let digest = derivations.digest(&slow, b"wrong").unwrap();
        let now = Instant::now();
        assert_eq!(derivations.known_wrong(&digest, now), None);
        derivations.remember_wrong(digest, Duration::from_millis(250), now);
        let again = derivations.digest(&slow, b"wrong").unwrap();
        assert_eq!(
            derivations.known_wrong(&again, now),
            Some(Duration::from_millis(250))
        );
        // Another secret, and the same secret after ALTER ROLE ... PASSWORD 'wrong'.
        let iterations = NonZeroU32::new(slow.iterations).unwrap();
        let changed = Verifier::from_password(b"wrong", b"0123456789abcdef", iterations);
        for (verifier, secret) in [(&slow, &b"other"[..]), (&changed, b"wrong")] {
            let digest = derivations.digest(verifier, secret).unwrap();
            assert_eq!(derivations.known_wrong(&digest, now), None);
        }
        for number in 0..MAX_WRONG * 2 {
            let at = now + Duration::from_millis(number as u64);
            let digest = derivations.digest(&slow, &number.to_be_bytes()).unwrap();
            derivations.remember_wrong(digest, Duration::ZERO, at);
            assert!(
                derivations.known_wrong(&again, at).is_some(),
                "a secret that is tried again stays"
            );
        }
        assert!(derivations.wrong().len() <= MAX_WRONG);
    }
}
