//! What the cluster says about a user's password, and for how long that is believed. The look-up itself is not here.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Identity;
use super::md5::Md5Hash;
use super::scram::{Verifier, VerifierFault};

/// What a look-up returned for one user.
#[derive(Debug, Clone)]
pub enum LookedUp {
    Known(Identity),
    /// No such user, or one without password. Its login fails.
    NoPassword,
    /// A password that cannot be used. The client is told what an unknown user is told; the operator gets a line.
    Unsupported(Unsupported),
}

/// Why a stored password cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    #[error("its stored password is not a SCRAM-SHA-256 verifier: {0}")]
    Other(VerifierFault),
}

impl LookedUp {
    /// Reads the second column of the look-up's row (`rolpassword`): NULL, empty, or text.
    pub fn parse(password: Option<&[u8]>) -> Self {
        let Some(password) = password.filter(|text| !text.is_empty()) else {
            return Self::NoPassword;
        };
        if let Some(hash) = Md5Hash::parse(password) {
            return Self::Known(Identity::Md5(hash));
        }
        let parsed = std::str::from_utf8(password)
            .map_err(|_| VerifierFault::Form)
            .and_then(Verifier::parse);
        match parsed {
            Ok(verifier) => Self::Known(Identity::Verifier(Arc::new(verifier))),
            Err(fault) => Self::Unsupported(Unsupported::Other(fault)),
        }
    }

    /// What the login is checked against; `None` fails.
    pub fn identity(self) -> Option<Identity> {
        match self {
            Self::Known(identity) => Some(identity),
            Self::NoPassword | Self::Unsupported(_) => None,
        }
    }
}

/// The most users remembered by default, known and unknown ones alike.
pub const DEFAULT_CAPACITY: usize = 10_000;
/// No role has a longer name (NAMEDATALEN is 64, unless PostgreSQL was built otherwise): bounds the memory of a key.
const MAX_NAME: usize = 255;

/// The cache's answer.
#[derive(Debug, Clone)]
pub enum Cached {
    /// Looked up less than the time to live ago; `None` for a user that cannot log in.
    Hit(Option<Identity>),
    Miss,
}

/// Remembers look-ups for a while. At its bound the oldest entry goes: somebody who makes up users costs look-ups, not
/// memory.
#[derive(Debug)]
pub struct VerifierCache {
    entries: HashMap<Arc<[u8]>, Entry>,
    /// The same keys in the order they were put, which is the order they expire.
    order: BTreeMap<u64, Arc<[u8]>>,
    next: u64,
    ttl: Duration,
    capacity: usize,
}

#[derive(Debug)]
struct Entry {
    identity: Option<Identity>,
    put: Instant,
    order: u64,
}

impl VerifierCache {
    /// A `ttl` or `capacity` of zero caches nothing.
    pub fn new(ttl: Duration, capacity: usize) -> Self {
        Self {
            entries: HashMap::new(),
            order: BTreeMap::new(),
            next: 0,
            ttl,
            capacity,
        }
    }

    pub fn get(&mut self, user: &[u8], now: Instant) -> Cached {
        if user.len() > MAX_NAME {
            return Cached::Hit(None);
        }
        match self.entries.get(user) {
            Some(entry) if now.saturating_duration_since(entry.put) < self.ttl => {
                Cached::Hit(entry.identity.clone())
            }
            Some(_) => {
                self.invalidate(user);
                Cached::Miss
            }
            None => Cached::Miss,
        }
    }

    pub fn put(&mut self, user: &[u8], identity: Option<Identity>, now: Instant) {
        self.invalidate(user);
        if user.len() > MAX_NAME || self.capacity == 0 || self.ttl.is_zero() {
            return;
        }
        while self.entries.len() >= self.capacity {
            let Some((_, oldest)) = self.order.pop_first() else {
                break;
            };
            self.entries.remove(&oldest);
        }
        let key: Arc<[u8]> = user.into();
        self.order.insert(self.next, Arc::clone(&key));
        self.entries.insert(
            key,
            Entry {
                identity,
                put: now,
                order: self.next,
            },
        );
        self.next += 1;
    }

    /// Forgets one user: its login failed in a way that a new look-up may mend.
    pub fn invalidate(&mut self, user: &[u8]) {
        if let Some(entry) = self.entries.remove(user) {
            self.order.remove(&entry.order);
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
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

    fn is_hit(cached: &Cached) -> bool {
        matches!(cached, Cached::Hit(_))
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

    #[test]
    fn known_and_unknown_users_are_remembered_for_the_time_to_live() {
        let start = Instant::now();
        let mut cache = VerifierCache::new(Duration::from_mins(1), 10);
        cache.put(b"a", Some(Identity::Verifier(verifier())), start);
        cache.put(b"nobody", None, start);
        let later = start + Duration::from_secs(59);
        assert!(matches!(cache.get(b"a", later), Cached::Hit(Some(_))));
        assert!(matches!(cache.get(b"nobody", later), Cached::Hit(None)));
        assert!(matches!(cache.get(b"b", later), Cached::Miss));
        let expired = start + Duration::from_mins(1);
        assert!(!is_hit(&cache.get(b"a", expired)) && !is_hit(&cache.get(b"nobody", expired)));
        assert!(cache.is_empty());
    }

    #[test]
    fn one_user_can_be_forgotten() {
        let now = Instant::now();
        let mut cache = VerifierCache::new(Duration::from_mins(1), 10);
        cache.put(b"a", None, now);
        cache.put(b"b", None, now);
        cache.invalidate(b"a");
        assert!(!is_hit(&cache.get(b"a", now)) && is_hit(&cache.get(b"b", now)));
    }

    #[test]
    fn the_oldest_goes_at_the_bound() {
        let now = Instant::now();
        let mut cache = VerifierCache::new(Duration::from_mins(1), 3);
        for user in [b"a", b"b", b"c", b"a", b"d"] {
            cache.put(user, None, now);
        }
        assert!(!is_hit(&cache.get(b"b", now)), "put before the second a");
        assert!(
            [b"a", b"c", b"d"]
                .iter()
                .all(|user| is_hit(&cache.get(*user, now)))
        );
        for i in 0..1000_u32 {
            cache.put(&i.to_be_bytes(), None, now);
            assert!(cache.len() <= 3 && cache.order.len() == cache.len());
        }
    }

    #[test]
    fn a_name_no_role_can_have_is_unknown_and_takes_no_room() {
        let now = Instant::now();
        let mut cache = VerifierCache::new(Duration::from_mins(1), 3);
        cache.put(&[b'x'; 256], Some(Identity::Verifier(verifier())), now);
        assert!(cache.is_empty());
        assert!(matches!(cache.get(&[b'x'; 256], now), Cached::Hit(None)));
    }

    #[test]
    fn no_time_to_live_is_no_cache() {
        let now = Instant::now();
        let mut cache = VerifierCache::new(Duration::ZERO, 3);
        cache.put(b"a", None, now);
        assert!(!is_hit(&cache.get(b"a", now)));
    }
}
