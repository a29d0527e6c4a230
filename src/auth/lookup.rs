//! The cluster's answers about users' passwords, and how long they are valid. The look-up itself is
//! not here.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Identity;
use super::md5::Md5Hash;
use super::scram::{Verifier, VerifierError};

/// What a look-up returned for one user.
#[derive(Debug, Clone)]
pub(crate) enum LookedUp {
    Known(Identity),
    /// No such user, or one without password. Its login fails.
    NoPassword,
    /// A password that cannot be used. The client gets the answer for an unknown user; the operator
    /// gets a log line.
    Unsupported(Unsupported),
}

/// Why the look-up has nothing for a user. For the log only: a client sees a wrong password in each
/// case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Standing {
    #[default]
    NoRole,
    NoLogin,
    Expired,
    NoPassword,
}

impl std::fmt::Display for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NoRole => "there is no such user",
            Self::NoLogin => "the role may not log in (NOLOGIN)",
            Self::Expired => "its password has expired (VALID UNTIL)",
            Self::NoPassword => "it has no password that auth.query returns and that can be used",
        })
    }
}

/// Why a stored password cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsupported {
    #[error("its stored password is not a SCRAM-SHA-256 verifier: {0}")]
    Other(VerifierError),
}

impl LookedUp {
    /// Reads the second column of the look-up's row (`rolpassword`): NULL, empty, or text.
    pub(crate) fn parse(password: Option<&[u8]>) -> Self {
        let Some(password) = password.filter(|text| !text.is_empty()) else {
            return Self::NoPassword;
        };
        if let Some(hash) = Md5Hash::parse(password) {
            return Self::Known(Identity::Md5(hash));
        }
        let parsed = std::str::from_utf8(password)
            .map_err(|_| VerifierError::Form)
            .and_then(Verifier::parse);
        match parsed {
            Ok(verifier) => Self::Known(Identity::Verifier(Arc::new(verifier))),
            Err(error) => Self::Unsupported(Unsupported::Other(error)),
        }
    }

    /// What to check the login with; with `None` it fails.
    pub(crate) fn identity(self) -> Option<Identity> {
        match self {
            Self::Known(identity) => Some(identity),
            Self::NoPassword | Self::Unsupported(_) => None,
        }
    }
}

/// After an attempt without an answer there is no new one for the same user for so long: an outage
/// must not cost a query for each login.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(100);
/// No role has a longer name (NAMEDATALEN is 64, unless PostgreSQL was built otherwise): limits the
/// memory of a key.
pub(crate) const MAX_NAME: usize = 255;

/// What is known about one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LookupAnswer<V> {
    pub found: V,
    /// The question was asked after the login began. An older answer may be out of date: it can let
    /// in a client that the server checks as well, but it does not prove a password wrong.
    pub is_confirmed: bool,
}

impl<V> LookupAnswer<V> {
    pub fn confirmed(found: V) -> Self {
        Self {
            found,
            is_confirmed: true,
        }
    }

    pub fn unconfirmed(found: V) -> Self {
        Self {
            found,
            is_confirmed: false,
        }
    }
}

/// What is remembered about one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cached<V> {
    /// Ask again, and use it unconfirmed only if no answer comes in time.
    Known(V),
    /// The last attempt to confirm it, less than [`RETRY_AFTER`] ago, gave no answer: use it
    /// unconfirmed.
    Tried(V),
    Miss,
}

impl<V> Cached<V> {
    /// Where it could not be asked again.
    pub(crate) fn unconfirmed(self) -> Option<LookupAnswer<V>> {
        match self {
            Self::Known(found) | Self::Tried(found) => Some(LookupAnswer::unconfirmed(found)),
            Self::Miss => None,
        }
    }
}

/// Remembers answers about users, also about unknown ones. At its limit the oldest is removed: a
/// client that invents users costs look-ups, not memory.
///
/// An answer counts from when it was asked, not from when it came: what changed in between may not
/// be in it.
#[derive(Debug)]
pub(crate) struct AnswerCache<V> {
    entries: HashMap<Arc<[u8]>, CachedAnswer<V>>,
    /// The same keys in the order they were put.
    order: BTreeMap<u64, Arc<[u8]>>,
    next: u64,
    ttl: Duration,
    capacity: usize,
    weight: usize,
}

#[derive(Debug)]
struct CachedAnswer<V> {
    value: V,
    asked: Instant,
    /// The last attempt since to confirm it that gave no answer.
    tried: Option<Instant>,
    order: u64,
    weight: usize,
}

impl<V: Clone> AnswerCache<V> {
    /// `ttl` is how long an answer may be used without being confirmed; `capacity` limits the sum
    /// of the weights. With either at zero nothing is remembered.
    pub(crate) fn new(ttl: Duration, capacity: usize) -> Self {
        Self {
            entries: HashMap::new(),
            order: BTreeMap::new(),
            next: 0,
            ttl,
            capacity,
            weight: 0,
        }
    }

    pub(crate) fn get(&mut self, user: &[u8], now: Instant) -> Cached<V> {
        let Some(entry) = self.entries.get(user) else {
            return Cached::Miss;
        };
        let age = now.saturating_duration_since(entry.asked);
        if age >= self.ttl {
            self.remove(user);
            return Cached::Miss;
        }
        let found = entry.value.clone();
        let is_tried = |at: Instant| now.saturating_duration_since(at) < RETRY_AFTER;
        if entry.tried.is_some_and(is_tried) {
            Cached::Tried(found)
        } else {
            Cached::Known(found)
        }
    }

    /// Remembers the answer to a question asked at `asked`, in place of an earlier one. `weight` is
    /// at least 1.
    pub(crate) fn put(&mut self, user: &[u8], value: V, weight: usize, asked: Instant) {
        self.remove(user);
        if user.len() > MAX_NAME || weight > self.capacity || self.ttl.is_zero() {
            return;
        }
        while self.weight > self.capacity - weight {
            let Some((_, oldest)) = self.order.pop_first() else {
                break;
            };
            if let Some(gone) = self.entries.remove(&oldest) {
                self.weight -= gone.weight;
            }
        }
        let key: Arc<[u8]> = user.into();
        self.order.insert(self.next, Arc::clone(&key));
        self.entries.insert(
            key,
            CachedAnswer {
                value,
                asked,
                tried: None,
                order: self.next,
                weight,
            },
        );
        self.weight += weight;
        self.next += 1;
    }

    /// An attempt that ended at `at` gave no answer: the remembered one is used unconfirmed for
    /// [`RETRY_AFTER`], within its time to live. It is not forgotten: otherwise a client that sends
    /// wrong passwords during an outage would lock the user out.
    pub(crate) fn not_confirmed(&mut self, user: &[u8], at: Instant) {
        if let Some(entry) = self.entries.get_mut(user) {
            entry.tried = Some(at);
        }
    }

    fn remove(&mut self, user: &[u8]) {
        if let Some(entry) = self.entries.remove(user) {
            self.order.remove(&entry.order);
            self.weight -= entry.weight;
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.entries.len()
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::num::NonZeroU32;

    use super::*;

    fn verifier() -> Arc<Verifier> {
        Arc::new(Verifier::from_password(b"x", b"salt", NonZeroU32::MIN))
    }

    #[test]
    fn reads_what_pg_authid_holds() {
        let text = verifier().to_text();
        assert_eq!(
            LookedUp::parse(Some(text.as_bytes()))
                .identity()
                .unwrap()
                .verifier(),
            Some(&verifier())
        );
        assert!(matches!(LookedUp::parse(None), LookedUp::NoPassword));
        assert!(matches!(LookedUp::parse(Some(b"")), LookedUp::NoPassword));
        let md5 = LookedUp::parse(Some(b"md5900150983cd24fb0d6963f7d28e17f72"));
        assert!(matches!(md5.identity(), Some(Identity::Md5(_))));
        for other in [&b"plain"[..], b"\xff", b"SCRAM-SHA-256$"] {
            assert!(matches!(
                LookedUp::parse(Some(other)),
                LookedUp::Unsupported(Unsupported::Other(_))
            ));
        }
    }

    const TTL: Duration = Duration::from_mins(1);
    const MS: Duration = Duration::from_millis(1);

    fn cache(capacity: usize) -> (AnswerCache<Option<u8>>, Instant) {
        (AnswerCache::new(TTL, capacity), Instant::now())
    }

    #[test]
    fn known_and_unknown_users_are_remembered_alike() {
        let (mut cache, start) = cache(10);
        for (user, answer) in [(&b"a"[..], Some(1)), (b"nobody", None)] {
            cache.put(user, answer, 1, start);
            assert_eq!(
                cache.get(user, start),
                Cached::Known(answer),
                "asked again at once"
            );
            assert_eq!(cache.get(user, start + TTL - MS), Cached::Known(answer));
            assert_eq!(cache.get(user, start + TTL), Cached::Miss);
        }
        assert_eq!(cache.get(b"b", start), Cached::Miss);
        assert!(cache.is_empty() && cache.weight == 0);
    }

    #[test]
    fn an_attempt_without_answer_gives_another_moment_but_no_longer_life() {
        let (mut cache, start) = cache(10);
        for (user, answer) in [(&b"a"[..], Some(1)), (b"nobody", None)] {
            cache.put(user, answer, 1, start);
            let tried = start + Duration::from_secs(5);
            cache.not_confirmed(user, tried);
            cache.not_confirmed(b"unheard of", tried);
            assert_eq!(cache.get(user, tried + RETRY_AFTER - MS), Cached::Tried(answer));
            assert_eq!(cache.get(user, tried + RETRY_AFTER), Cached::Known(answer));
            cache.not_confirmed(user, start + TTL - MS);
            assert_eq!(cache.get(user, start + TTL), Cached::Miss);
        }
        assert!(cache.is_empty());
        // An answer since is one that can be had.
        cache.put(b"a", Some(1), 1, start);
        cache.not_confirmed(b"a", start);
        cache.put(b"a", Some(2), 1, start);
        assert_eq!(cache.get(b"a", start), Cached::Known(Some(2)));
    }

    #[test]
    fn the_oldest_goes_at_the_bound() {
        let (mut cache, now) = cache(3);
        for user in [b"a", b"b", b"c", b"a", b"d"] {
            cache.put(user, None, 1, now);
        }
        assert_eq!(cache.get(b"b", now), Cached::Miss, "put before the second a");
        assert!(
            [b"a", b"c", b"d"]
                .iter()
                .all(|user| cache.get(*user, now) == Cached::Known(None))
        );
        for i in 0..1000_u32 {
            cache.put(&i.to_be_bytes(), None, 1, now);
            assert!(cache.len() <= 3 && cache.order.len() == cache.len());
        }
        cache.put(b"heavy", None, 3, now);
        assert_eq!((cache.len(), cache.weight), (1, 3));
        cache.put(b"too heavy", None, 4, now);
        assert_eq!(cache.get(b"too heavy", now), Cached::Miss);
        assert_eq!((cache.len(), cache.weight), (1, 3));
    }

    #[test]
    fn a_name_no_role_can_have_takes_no_room() {
        let (mut cache, now) = cache(3);
        cache.put(&[b'x'; 256], Some(1), 1, now);
        assert!(cache.is_empty());
    }

    #[test]
    fn no_time_to_live_is_no_cache() {
        let (mut cache, now) = (AnswerCache::new(Duration::ZERO, 3), Instant::now());
        cache.put(b"a", Some(1), 1, now);
        assert_eq!(cache.get(b"a", now), Cached::Miss);
    }
}
