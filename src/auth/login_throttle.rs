//! Failed logins make the next ones from the same address, and as the same user, wait and later be
//! refused. Pure: the caller passes the time.
//!
//! - An address is an IPv4 address or an IPv6 /64; a Unix socket has none. A user is a name of one
//!   cluster, known or not: both are treated alike.
//! - From `failures` failures on, each attempt gets a separate slot, a growing delay behind the one
//!   before it, so that attempts made in parallel wait for each other. From `refuse_after` on, all
//!   are refused for `refuse_for`; the first failure after that begins the next refusal.
//! - The same wrong secret for the same user is one failure, however often and from wherever it
//!   comes: it is not a guess, but a program with an old password. The secret is kept as a keyed
//!   hash.
//! - With SCRAM and md5 two wrong secrets cannot be distinguished: each proof depends on new random
//!   numbers. There a user's failures from one address count once for the address and for the user
//!   as a whole, so that such a program keeps neither its neighbours out nor that user elsewhere;
//!   all of them count for that user from that address, with the same limits.
//! - So that guesses at one user are limited for any number of addresses, an address that goes on
//!   failing counts for the user again, once for each `refuse_for`. The first of them in each
//!   `refuse_for` is passed over: it may be such a program. Where the user has more than
//!   `failures`, every failure counts, and only an address that is at `refuse_after` is passed
//!   over.
//! - A success does not reset the count: otherwise the owner of one account could guess at all
//!   others without end. Time does: one failure for each `refuse_for` without another, refusals not
//!   included.
//! - A user's success makes its address *familiar* to it for [`FAMILIAR_FOR`]. There that user is
//!   not subject to its own limit, so that guesses made elsewhere lock no user out, nor to the
//!   address's, so that one wrong password behind a NAT does not lock out its neighbours; the
//!   latter only as long as that user itself has failed fewer than `failures` times there. From
//!   then on the address's limit holds, on a Unix socket the user's own, and in both cases that of
//!   the user from there.
//! - Exempt networks are not counted and not limited.
//! - Memory has a fixed limit. At the limit a quarter is forgotten, the fewest failures first,
//!   among equals the oldest.
//!
//! Attempts that have begun are not stopped: how many of them run before the first one fails is
//! limited by the places of one address among the pending logins, not here.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::LazyLock;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::RateLimit;

/// Addresses remembered, and as many users.
const MOST_OFFENDERS: usize = 8192;
/// Pairs of user and familiar address remembered.
const MOST_FAMILIAR: usize = 16_384;
/// Wrong secrets remembered.
const MOST_SECRETS: usize = 16_384;
/// How long an address stays familiar after a user's last success there.
pub(crate) const FAMILIAR_FOR: Duration = Duration::from_hours(1);

/// The part of an address that is counted as one client: all of IPv4, the /64 of IPv6.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

/// Whose failures refuse an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum By {
    Address,
    User,
    /// The user's, from this address.
    UserHere,
}

/// A wrong secret, as a hash with a key of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Guess(u64);

impl Guess {
    pub fn of(secret: &[u8]) -> Self {
        static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self(KEYS.hash_one(secret))
    }
}

/// What to do with an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ThrottleDecision {
    Go,
    /// Its slot is reserved: ask [`LoginThrottle::refusal`] then, and go.
    Wait {
        until: Instant,
        by: By,
    },
    Refuse {
        by: By,
        until: Instant,
    },
}

/// What a failure began for one of the three counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ThrottleStart {
    /// Attempts wait from now on, after so many failures.
    Delay(u32),
    /// Attempts are refused from now on, after so many failures.
    Refusal(u32),
}

impl ThrottleStart {
    pub(crate) fn is_refusal(self) -> bool {
        matches!(self, Self::Refusal(_))
    }
}

/// What a failure began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Began {
    pub address: Option<ThrottleStart>,
    /// Except where the user is familiar.
    pub user: Option<ThrottleStart>,
    pub user_here: Option<ThrottleStart>,
}

/// The user and the address of an attempt. Names and addresses are kept as keyed hashes: they have
/// a fixed size, and no client can make two of them collide.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attempt {
    address: Option<u64>,
    user: u64,
    pair: u64,
    is_exempt: bool,
}

/// Counts failures and decides what follows from them.
#[derive(Debug)]
pub(crate) struct LoginThrottle {
    limit: RateLimit,
    keys: RandomState,
    addresses: Records,
    users: Records,
    familiar: Records,
    /// Users at an address.
    pairs: Records,
    secrets: Secrets,
}

impl LoginThrottle {
    pub(crate) fn new(limit: RateLimit) -> Self {
        Self {
            limit,
            keys: RandomState::new(),
            addresses: Records::new(MOST_OFFENDERS),
            users: Records::new(MOST_OFFENDERS),
            familiar: Records::new(MOST_FAMILIAR),
            pairs: Records::new(MOST_OFFENDERS),
            secrets: Secrets::default(),
        }
    }

    pub(crate) fn limit(&self) -> &RateLimit {
        &self.limit
    }

    /// Applies from now on; the counts stay.
    pub(crate) fn replace_limit(&mut self, limit: RateLimit) {
        self.limit = limit;
    }

    /// `source` is the client's address, `None` on a Unix socket; `realm` the cluster that `user`
    /// is a name of.
    pub(crate) fn attempt(&self, source: Option<IpAddr>, realm: &str, user: &[u8]) -> Attempt {
        let network = source.map(network);
        Attempt {
            address: network.map(|network| self.keys.hash_one(network)),
            user: self.keys.hash_one((realm, user)),
            pair: self.keys.hash_one((network, realm, user)),
            is_exempt: self.is_exempt(source),
        }
    }

    /// May this attempt begin? A slot that would come after `latest` is not reserved: refused until
    /// then.
    pub(crate) fn ask(&mut self, attempt: &Attempt, latest: Instant, now: Instant) -> ThrottleDecision {
        if let Some(refused) = self.refusal(attempt, now) {
            return refused;
        }
        let limit = self.limit.clone();
        let mut last = None;
        let slots = self.subject(attempt, now).map(|(by, key)| {
            let slot = key.and_then(|key| self.records(by).slot(key, &limit, now));
            if let Some(slot) = slot
                && last.is_none_or(|(latest, _)| slot > latest)
            {
                last = Some((slot, by));
            }
            (by, key, slot)
        });
        let Some((until, by)) = last else {
            return ThrottleDecision::Go;
        };
        if until > latest {
            return ThrottleDecision::Refuse { by, until };
        }
        for (by, key, slot) in slots {
            if let (Some(key), Some(slot)) = (key, slot) {
                self.records(by).reserve(key, slot);
            }
        }
        if until <= now {
            return ThrottleDecision::Go;
        }
        ThrottleDecision::Wait { until, by }
    }

    /// Is this attempt refused now? For one that has waited, while others may have failed.
    pub(crate) fn refusal(&mut self, attempt: &Attempt, now: Instant) -> Option<ThrottleDecision> {
        self.subject(attempt, now).into_iter().find_map(|(by, key)| {
            let until = self.records(by).refused_until(key?, now)?;
            Some(ThrottleDecision::Refuse { by, until })
        })
    }

    /// A proof was given and it was wrong: a password, a certificate, an unknown user. `guess` is
    /// the secret, where it is known.
    pub(crate) fn failed(&mut self, attempt: &Attempt, guess: Option<Guess>, now: Instant) -> Began {
        if !self.limit.is_on() || attempt.is_exempt {
            return Began::default();
        }
        if let Some(guess) = guess
            && self
                .secrets
                .is_repeated(self.keys.hash_one((attempt.user, guess)), now)
        {
            return Began::default();
        }
        if self.familiar.is_known(attempt.pair) {
            self.familiar.fail(attempt.pair, &self.limit, now);
        }
        let before = self.pairs.failures(attempt.pair, &self.limit, now);
        let user_here = self.pairs.fail(attempt.pair, &self.limit, now);
        if guess.is_none() && before > 0 {
            let counts = self.counts_again(attempt, before, now);
            let user = counts.then(|| self.users.fail(attempt.user, &self.limit, now));
            return Began {
                user: user.flatten(),
                user_here,
                ..Began::default()
            };
        }
        self.pairs.begins_span(attempt.pair, &self.limit, now);
        let address = attempt.address;
        Began {
            address: address.and_then(|key| self.addresses.fail(key, &self.limit, now)),
            user: self.users.fail(attempt.user, &self.limit, now),
            user_here,
        }
    }

    /// Does a failure count for the user though its address has failed before? That has `before`
    /// failures as this user.
    fn counts_again(&mut self, attempt: &Attempt, before: u32, now: Instant) -> bool {
        let is_due = self.pairs.begins_span(attempt.pair, &self.limit, now);
        let failures = self.users.failures(attempt.user, &self.limit, now);
        let is_under_attack = failures > self.limit.failures || failures >= self.limit.refuse_after;
        if is_under_attack && before < self.limit.refuse_after {
            return true;
        }
        is_due && !self.users.begins_span(attempt.user, &self.limit, now)
    }

    /// This address sent something that is not the protocol.
    pub(crate) fn garbage(&mut self, source: Option<IpAddr>, now: Instant) -> Option<ThrottleStart> {
        let source = source.filter(|_| self.limit.is_on() && !self.is_exempt(source))?;
        let key = self.keys.hash_one(network(source));
        self.addresses.fail(key, &self.limit, now)
    }

    fn is_exempt(&self, source: Option<IpAddr>) -> bool {
        source.is_some_and(|source| self.limit.exempt.iter().any(|network| network.contains(source)))
    }

    /// The user has proven who it is.
    pub(crate) fn succeeded(&mut self, attempt: &Attempt, now: Instant) {
        if self.limit.is_on() {
            self.familiar.welcome(attempt.pair, now);
        }
    }

    /// Forgets records that have expired; returns the addresses and users left.
    pub(crate) fn sweep(&mut self, now: Instant) -> (usize, usize) {
        self.addresses.forgive_all(&self.limit, now);
        self.users.forgive_all(&self.limit, now);
        self.pairs.forgive_all(&self.limit, now);
        self.familiar.forget_strangers(now);
        self.secrets.forget(now);
        (self.addresses.len(), self.users.len())
    }

    /// The limits this attempt is subject to.
    fn subject(&mut self, attempt: &Attempt, now: Instant) -> [(By, Option<u64>); 3] {
        let is_subject = self.limit.is_on() && !attempt.is_exempt;
        let here = Some(attempt.pair);
        let (address, user, here) = match self.familiar.failures_here(attempt.pair, &self.limit, now) {
            _ if !is_subject => (None, None, None),
            Some(failures) if failures < self.limit.failures => (None, None, None),
            // A Unix socket has no address whose limit could take over.
            Some(_) => (
                attempt.address,
                attempt.address.is_none().then_some(attempt.user),
                here,
            ),
            None => (attempt.address, Some(attempt.user), here),
        };
        [(By::Address, address), (By::User, user), (By::UserHere, here)]
    }

    fn records(&mut self, by: By) -> &mut Records {
        match by {
            By::Address => &mut self.addresses,
            By::User => &mut self.users,
            By::UserHere => &mut self.pairs,
        }
    }
}

/// Wrong secrets of users that have been counted, and when each was last given.
#[derive(Debug, Default)]
struct Secrets(HashMap<u64, Instant>);

impl Secrets {
    /// Whether it was given before; it is remembered from now on.
    fn is_repeated(&mut self, secret: u64, now: Instant) -> bool {
        if self.0.len() >= MOST_SECRETS && !self.0.contains_key(&secret) {
            self.make_room();
        }
        let last = self.0.insert(secret, now);
        last.is_some_and(|at| now.saturating_duration_since(at) < FAMILIAR_FOR)
    }

    fn forget(&mut self, now: Instant) {
        self.0
            .retain(|_, at| now.saturating_duration_since(*at) < FAMILIAR_FOR);
    }

    /// Forgets the quarter that was given longest ago.
    fn make_room(&mut self) {
        let mut ages: Vec<_> = self.0.iter().map(|(secret, at)| (*at, *secret)).collect();
        ages.select_nth_unstable(MOST_SECRETS / 4);
        for (_, secret) in &ages[..=MOST_SECRETS / 4] {
            self.0.remove(secret);
        }
    }
}

/// What is remembered of one address, user or pair.
#[derive(Debug, Clone, Copy)]
struct Record {
    failures: u32,
    /// From here on quiet counts: the last failure, or the end of the refusal it began.
    since: Instant,
    /// The last slot given away.
    slot: Instant,
    refused_until: Option<Instant>,
    /// When the time began in which no failure of a pair counts for its user again. Of a user: in
    /// which no other pair is passed over.
    span: Option<Instant>,
    /// The last success; only of pairs.
    success: Option<Instant>,
}

impl Record {
    fn new(now: Instant) -> Self {
        Self {
            failures: 0,
            since: now,
            slot: now,
            refused_until: None,
            span: None,
            success: None,
        }
    }

    fn forgive(&mut self, limit: &RateLimit, now: Instant) {
        let quiet = now.saturating_duration_since(self.since);
        let spans = quiet.as_nanos() / limit.refuse_for.as_nanos().max(1);
        let forgiven = u32::try_from(spans).unwrap_or(u32::MAX).min(self.failures);
        self.failures -= forgiven;
        // At most as long as the quiet was, so no further than `now`.
        self.since += limit.refuse_for * forgiven;
    }

    fn is_familiar(&self, now: Instant) -> bool {
        self.success
            .is_some_and(|at| now.saturating_duration_since(at) < FAMILIAR_FOR)
    }
}

/// A limited number of records.
#[derive(Debug)]
struct Records {
    records: HashMap<u64, Record>,
    most: usize,
}

impl Records {
    fn new(most: usize) -> Self {
        Self {
            records: HashMap::new(),
            most,
        }
    }

    fn len(&self) -> usize {
        self.records.len()
    }

    fn is_known(&self, key: u64) -> bool {
        self.records.contains_key(&key)
    }

    fn refused_until(&self, key: u64, now: Instant) -> Option<Instant> {
        self.records.get(&key)?.refused_until.filter(|until| *until > now)
    }

    /// The next slot; `None` where there are too few failures for that.
    fn slot(&mut self, key: u64, limit: &RateLimit, now: Instant) -> Option<Instant> {
        let record = self.records.get_mut(&key)?;
        record.forgive(limit, now);
        let beyond = record.failures.checked_sub(limit.failures)?;
        Some(record.slot.max(now) + limit.delay_after(beyond))
    }

    fn reserve(&mut self, key: u64, slot: Instant) {
        if let Some(record) = self.records.get_mut(&key) {
            record.slot = slot;
        }
    }

    fn failures(&mut self, key: u64, limit: &RateLimit, now: Instant) -> u32 {
        self.records.get_mut(&key).map_or(0, |record| {
            record.forgive(limit, now);
            record.failures
        })
    }

    /// Counts a failure. What begins with it?
    fn fail(&mut self, key: u64, limit: &RateLimit, now: Instant) -> Option<ThrottleStart> {
        let record = self.entry(key, now);
        record.forgive(limit, now);
        // Counted no further: it must expire in a known time.
        record.failures = (record.failures + 1).min(limit.refuse_after);
        if record.refused_until.is_some_and(|until| until > now) {
            return None;
        }
        record.since = now;
        if record.failures < limit.refuse_after {
            let waits = record.failures == limit.failures && !limit.delay.is_zero();
            return waits.then_some(ThrottleStart::Delay(record.failures));
        }
        let until = now + limit.refuse_for;
        (record.since, record.refused_until) = (until, Some(until));
        Some(ThrottleStart::Refusal(record.failures))
    }

    /// Begins a time of `refuse_for`, unless one runs.
    fn begins_span(&mut self, key: u64, limit: &RateLimit, now: Instant) -> bool {
        let span = &mut self.entry(key, now).span;
        let begins = span.is_none_or(|at| now.saturating_duration_since(at) >= limit.refuse_for);
        if begins {
            *span = Some(now);
        }
        begins
    }

    fn welcome(&mut self, key: u64, now: Instant) {
        let record = self.entry(key, now);
        if !record.is_familiar(now) {
            *record = Record::new(now);
        }
        record.success = Some(now);
    }

    /// How often this pair has failed lately; `None` where it is not familiar.
    fn failures_here(&mut self, key: u64, limit: &RateLimit, now: Instant) -> Option<u32> {
        let record = self.records.get_mut(&key)?;
        record.forgive(limit, now);
        record.is_familiar(now).then_some(record.failures)
    }

    fn forgive_all(&mut self, limit: &RateLimit, now: Instant) {
        self.records.retain(|_, record| {
            record.forgive(limit, now);
            record.failures > 0
        });
    }

    fn forget_strangers(&mut self, now: Instant) {
        self.records.retain(|_, record| record.is_familiar(now));
    }

    fn entry(&mut self, key: u64, now: Instant) -> &mut Record {
        if self.records.len() >= self.most && !self.is_known(key) {
            self.make_room();
        }
        self.records.entry(key).or_insert_with(|| Record::new(now))
    }

    /// Forgets a quarter, so that the work is done once in many additions. Of pairs, those whose
    /// success is longest ago go first.
    fn make_room(&mut self) {
        let rank = |record: &Record| match record.success {
            Some(success) => (0, success),
            None => (record.failures, record.since),
        };
        let mut ranks: Vec<_> = self
            .records
            .iter()
            .map(|(key, record)| (rank(record), *key))
            .collect();
        let excess = (self.most / 4).max(1).min(ranks.len());
        ranks.select_nth_unstable(excess - 1);
        for (_, key) in &ranks[..excess] {
            self.records.remove(key);
        }
    }
}

#[cfg(test)]
#[path = "login_throttle_tests.rs"]
mod tests;
