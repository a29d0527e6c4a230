//! Checks of passwords in clear: how many at once, whose turn it is, and which need not be made again.
//!
//! A check costs what the verifier asks for, and any role may give itself one of a million iterations (about 250 ms).
//!
//! - [`MOST_AT_ONCE`] run at the same time, one of them for a user and one for an address (an IPv6 /64; a Unix socket
//!   has none), so that no user and no address has all of them. The others wait.
//! - They wait in the order in which they came, but each goes back [`STEP`] places for every other of the same user
//!   that is there already: who comes with one is not kept waiting by who came with many.
//! - A secret that was wrong for a verifier is wrong for it for ever. It is remembered, as a keyed digest of both with
//!   the time that it took, and takes that time again without a thread. This holds only for verifiers of more
//!   iterations than PostgreSQL's default: what an unknown user costs is computed each time as for everybody else, and
//!   SCRAM's first message tells the iterations anyway. The time is spent so that nobody learns which secrets others
//!   have tried.

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

const MOST_AT_ONCE: usize = 4;
/// How far one goes back for each other of its user.
const STEP: u64 = 16;
/// Wrong secrets remembered.
const MOST_WRONG: usize = 4096;

/// Whom a check is for, as keyed hashes.
#[derive(Debug, Clone, Copy)]
pub struct Party {
    user: u64,
    address: Option<u64>,
}

impl Party {
    fn shares_with(&self, other: &Self) -> bool {
        self.user == other.user || (self.address.is_some() && self.address == other.address)
    }
}

/// A secret and the verifier it is held against.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mark([u8; 32]);

/// Shared by all logins of the process.
#[derive(Debug)]
pub struct Derivations {
    hashes: RandomState,
    key: [u8; 32],
    turns: Mutex<Turns>,
    wrong: Mutex<HashMap<Mark, Wrong>>,
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
    /// `realm` is the cluster that `user` is a name of.
    pub fn party(&self, source: Option<IpAddr>, realm: &str, user: &[u8]) -> Party {
        Party {
            user: self.hashes.hash_one((realm, user)),
            address: source.map(|source| self.hashes.hash_one(network(source))),
        }
    }

    /// Waits for a turn. Cancel safe: who stops waiting is forgotten.
    pub async fn place(self: &Arc<Self>, party: Party) -> DerivationPermit {
        let (call, called) = oneshot::channel();
        let place = DerivationPermit {
            ticket: self.turns().queue(party, call),
            derivations: Arc::clone(self),
        };
        // Cannot fail: `call` is kept until it is used.
        let _ = called.await;
        place
    }

    /// What to remember `secret` by, if it is wrong; `None` where it is computed each time.
    pub fn mark(&self, verifier: &Verifier, secret: &[u8]) -> Option<Mark> {
        // Only the last part is of a length that is not said.
        let salt_len = verifier.salt.len().to_be_bytes();
        let is_dear = verifier.iterations > DEFAULT_ITERATIONS;
        is_dear.then(|| {
            Mark(*hmac_sha256(
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

    /// How long it took to find that this secret is wrong, if that is known.
    pub fn known_wrong(&self, mark: &Mark, now: Instant) -> Option<Duration> {
        let mut wrong = self.wrong();
        let known = wrong.get_mut(mark)?;
        known.last = now;
        Some(known.took)
    }

    /// At the bound the quarter is forgotten that was given longest ago.
    pub fn was_wrong(&self, mark: Mark, took: Duration, now: Instant) {
        let mut wrong = self.wrong();
        if wrong.len() >= MOST_WRONG {
            let mut ages: Vec<_> = wrong.iter().map(|(mark, wrong)| (wrong.last, *mark)).collect();
            ages.select_nth_unstable_by_key(MOST_WRONG / 4, |(last, _)| *last);
            for (_, mark) in &ages[..MOST_WRONG / 4] {
                wrong.remove(mark);
            }
        }
        wrong.insert(mark, Wrong { took, last: now });
    }

    // Nothing in there is left half done by a panic.
    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wrong(&self) -> MutexGuard<'_, HashMap<Mark, Wrong>> {
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to compute, until it is dropped.
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

/// Who computes and who waits. As many as there are pending logins, and those that were given up while they computed.
#[derive(Debug, Default)]
struct Turns {
    /// How many have come.
    tickets: u64,
    running: Vec<(u64, Party)>,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    /// Lowest first.
    rank: u64,
    ticket: u64,
    party: Party,
    call: oneshot::Sender<()>,
}

impl Turns {
    fn queue(&mut self, party: Party, call: oneshot::Sender<()>) -> u64 {
        self.tickets += 1;
        let ticket = self.tickets;
        let parties = self.waiting.iter().map(|waiting| &waiting.party);
        let parties = parties.chain(self.running.iter().map(|(_, party)| party));
        let others = parties.filter(|other| other.user == party.user).count() as u64;
        self.waiting.push(Waiting {
            rank: ticket + STEP * others,
            ticket,
            party,
            call,
        });
        self.call();
        ticket
    }

    fn leave(&mut self, ticket: u64) {
        self.waiting.retain(|waiting| waiting.ticket != ticket);
        self.running.retain(|(running, _)| *running != ticket);
        self.call();
    }

    /// Calls those whose turn it is.
    fn call(&mut self) {
        while self.running.len() < MOST_AT_ONCE {
            let running = &self.running;
            let is_free = |party: &Party| !running.iter().any(|(_, other)| other.shares_with(party));
            let next = self.waiting.iter().enumerate();
            let next = next.filter(|(_, waiting)| is_free(&waiting.party));
            let Some((index, _)) = next.min_by_key(|(_, waiting)| (waiting.rank, waiting.ticket)) else {
                return;
            };
            let next = self.waiting.swap_remove(index);
            self.running.push((next.ticket, next.party));
            // One that has just stopped waiting is about to leave.
            let _ = next.call.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::num::NonZeroU32;

    use super::*;

    fn party(derivations: &Derivations, user: &str, address: u8) -> Party {
        derivations.party(Some(IpAddr::from([10, 0, 0, address])), "main", user.as_bytes())
    }

    /// The tickets of those who compute.
    fn running(derivations: &Derivations) -> Vec<u64> {
        let turns = derivations.turns();
        let mut running: Vec<_> = turns.running.iter().map(|(ticket, _)| *ticket).collect();
        running.sort_unstable();
        running
    }

    type Waits = tokio::task::JoinHandle<DerivationPermit>;

    async fn come(derivations: &Arc<Derivations>, user: &str, address: u8) -> Waits {
        let (party, derivations) = (party(derivations, user, address), Arc::clone(derivations));
        let waits = tokio::spawn(async move { derivations.place(party).await });
        tokio::task::yield_now().await;
        waits
    }

    #[tokio::test]
    async fn one_user_and_one_address_have_one_place_each() {
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
            waits.push(come(&derivations, user, address).await);
        }
        assert_eq!(running(&derivations), [1, 5, 6, 7]);
        // Who leaves in the middle of it has no place any more, who stops waiting neither.
        waits[7].abort();
        assert!((&mut waits[7]).await.is_err());
        drop(waits.remove(4).await.unwrap());
        assert_eq!(running(&derivations), [1, 6, 7], "pw and its address have theirs");
        drop(waits.remove(0).await.unwrap());
        tokio::task::yield_now().await;
        assert_eq!(running(&derivations), [3, 4, 6, 7]);
        // A Unix socket is no address.
        let local = Arc::new(Derivations::default());
        let first = local.place(local.party(None, "main", b"a")).await;
        let second = local.place(local.party(None, "main", b"b")).await;
        assert_eq!(running(&local), [1, 2]);
        drop((first, second));
        assert!(running(&local).is_empty());
    }

    #[tokio::test]
    async fn who_comes_with_one_is_not_kept_waiting_by_who_came_with_many() {
        let derivations = Arc::new(Derivations::default());
        let mut many = Vec::new();
        for _ in 0..40 {
            many.push(come(&derivations, "pw", 1).await);
        }
        let neighbour = come(&derivations, "neighbour", 1).await;
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
        // All of them have their turn.
        for next in many {
            drop(next.await.unwrap());
        }
        assert!(running(&derivations).is_empty());
    }

    #[tokio::test]
    async fn what_is_wrong_for_a_verifier_is_remembered_with_it() {
        let derivations = Derivations::default();
        let of = |iterations| {
            let iterations = NonZeroU32::new(iterations).unwrap();
            Verifier::from_password(b"right", b"0123456789abcdef", iterations)
        };
        assert!(
            derivations.mark(&of(DEFAULT_ITERATIONS), b"wrong").is_none(),
            "as an unknown user costs"
        );
        let dear = of(DEFAULT_ITERATIONS + 1);
        let mark = derivations.mark(&dear, b"wrong").unwrap();
        let now = Instant::now();
        assert_eq!(derivations.known_wrong(&mark, now), None);
        derivations.was_wrong(mark, Duration::from_millis(250), now);
        let again = derivations.mark(&dear, b"wrong").unwrap();
        assert_eq!(
            derivations.known_wrong(&again, now),
            Some(Duration::from_millis(250))
        );
        // Another secret, and the same one after ALTER ROLE ... PASSWORD 'wrong'.
        let iterations = NonZeroU32::new(dear.iterations).unwrap();
        let changed = Verifier::from_password(b"wrong", b"0123456789abcdef", iterations);
        for (verifier, secret) in [(&dear, &b"other"[..]), (&changed, b"wrong")] {
            let mark = derivations.mark(verifier, secret).unwrap();
            assert_eq!(derivations.known_wrong(&mark, now), None);
        }
        for number in 0..MOST_WRONG * 2 {
            let at = now + Duration::from_millis(number as u64);
            let mark = derivations.mark(&dear, &number.to_be_bytes()).unwrap();
            derivations.was_wrong(mark, Duration::ZERO, at);
            assert!(
                derivations.known_wrong(&again, at).is_some(),
                "what is given stays"
            );
        }
        assert!(derivations.wrong().len() <= MOST_WRONG);
    }
}
