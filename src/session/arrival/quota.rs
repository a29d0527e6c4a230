//! Limits on the sessions of one user, database or address, and on how many begin per second.
//!
//! They count clients that have authenticated, as PostgreSQL's `CONNECTION LIMIT` does. Otherwise
//! anyone could use up the places of others without a password, and balancers' checks, which hang
//! up when they are asked for one, would be refused while the router is busy. Clients that have not
//! authenticated are limited as pending logins.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use tokio::time::Instant;

use super::rate::TokenBucket;
use crate::auth::login_throttle::network;
use crate::config;
use crate::frontend::RefuseReason;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;
use crate::wire::text::Escaped;

/// A user, database or address, whose sessions are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Whose {
    User(Bytes),
    Database(Bytes),
    /// IPv4, or the first address of an IPv6 /64.
    Address(IpAddr),
}

/// Shared by all workers; locked when a session begins or ends.
#[derive(Debug)]
pub struct Quota {
    current: ArcSwap<CurrentLimits>,
    /// One entry for each user, database and address with a session, even without a limit: a limit
    /// may come later.
    taken: Mutex<HashMap<Whose, u32>>,
}

#[derive(Debug)]
struct CurrentLimits {
    limits: config::Limits,
    rate: Rate,
}

/// How many sessions may begin per second, with a burst of one second. Clones share the same
/// tokens.
#[derive(Debug, Clone)]
pub(in crate::session) struct Rate(Option<Arc<Bucket>>);

#[derive(Debug)]
struct Bucket {
    per_second: NonZeroU32,
    tokens: Mutex<TokenBucket>,
}

impl Rate {
    pub(in crate::session) fn new(per_second: Option<NonZeroU32>) -> Self {
        Self(per_second.map(|per_second| {
            Arc::new(Bucket {
                per_second,
                tokens: Mutex::new(TokenBucket::new(per_second, per_second)),
            })
        }))
    }

    /// Continues with the tokens of `before` if the rate is the same.
    pub(in crate::session) fn in_place_of(self, before: &Self) -> Self {
        let per_second = |rate: &Self| rate.0.as_ref().map(|bucket| bucket.per_second);
        if per_second(&self) == per_second(before) {
            before.clone()
        } else {
            self
        }
    }

    fn admits(&self, now: Instant) -> bool {
        self.0.as_ref().is_none_or(|bucket| {
            let bucket = &bucket.tokens;
            let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
            bucket.try_take(now)
        })
    }
}

/// One session's part of what is limited; given back when dropped.
#[derive(Debug)]
pub(in crate::session) struct Share {
    quota: Arc<Quota>,
    whose: Vec<Whose>,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.quota.taken();
        for whose in &self.whose {
            if let Some(count) = taken.get_mut(whose) {
                *count -= 1;
                if *count == 0 {
                    taken.remove(whose);
                }
            }
        }
    }
}

/// A limit that is reached.
#[derive(Debug)]
pub(in crate::session) struct Refusal {
    pub(in crate::session) reason: RefuseReason,
    pub(in crate::session) reply: ErrorReply,
}

impl Quota {
    pub fn new(limits: &config::Limits) -> Self {
        Self {
            current: ArcSwap::from_pointee(CurrentLimits {
                rate: Rate::new(limits.connection_rate),
                limits: limits.clone(),
            }),
            taken: Mutex::default(),
        }
    }

    /// Sets other limits for the sessions that follow. Existing sessions stay and count.
    pub fn resize(&self, limits: &config::Limits) {
        let before = self.current.load();
        self.current.store(Arc::new(CurrentLimits {
            rate: Rate::new(limits.connection_rate).in_place_of(&before.rate),
            limits: limits.clone(),
        }));
    }

    /// A session's share, or the limit that is reached. `listener` is the rate of the session's
    /// listener. `names` (user and database) is `None` if the router does not see them, `address`
    /// on a Unix socket.
    pub(in crate::session) fn share(
        self: &Arc<Self>,
        listener: &Rate,
        names: Option<(&Bytes, &Bytes)>,
        address: Option<IpAddr>,
        now: Instant,
    ) -> Result<Share, Refusal> {
        let current = self.current.load();
        let limits = &current.limits;
        let wanted = [
            (limits.per_user, names.map(|(user, _)| Whose::User(user.clone()))),
            (
                limits.per_database,
                names.map(|(_, database)| Whose::Database(database.clone())),
            ),
            (limits.per_address, address.map(network).map(Whose::Address)),
        ];
        let wanted: Vec<(u32, Whose)> = wanted
            .into_iter()
            .filter_map(|(limit, whose)| Some((limit, whose?)))
            .collect();
        let mut taken = self.taken();
        for (limit, whose) in &wanted {
            if *limit > 0 && taken.get(whose).is_some_and(|count| count >= limit) {
                return Err(too_many(whose, *limit));
            }
        }
        // After the counts: a session that they refuse uses nothing of the rate.
        if !listener.admits(now) {
            return Err(too_fast(
                RefuseReason::ConnectionRateListener,
                "connection_rate of the listener",
            ));
        }
        if !current.rate.admits(now) {
            return Err(too_fast(RefuseReason::ConnectionRate, "limits.connection_rate"));
        }
        let whose: Vec<Whose> = wanted.into_iter().map(|(_, whose)| whose).collect();
        for whose in &whose {
            *taken.entry(whose.clone()).or_default() += 1;
        }
        drop(taken);
        Ok(Share {
            quota: Arc::clone(self),
            whose,
        })
    }

    /// The user, the database and the address with the most sessions, and how many these are.
    pub fn most(&self) -> [Option<(String, u32)>; 3] {
        let mut most: [Option<(Whose, u32)>; 3] = [const { None }; 3];
        for (whose, count) in self.taken().iter() {
            let kind = match whose {
                Whose::User(_) => 0,
                Whose::Database(_) => 1,
                Whose::Address(_) => 2,
            };
            if most[kind].as_ref().is_none_or(|(_, most)| count > most) {
                most[kind] = Some((whose.clone(), *count));
            }
        }
        most.map(|most| {
            most.map(|(whose, count)| match whose {
                Whose::User(name) | Whose::Database(name) => (Escaped(&name).to_string(), count),
                Whose::Address(address) => (address.to_string(), count),
            })
        })
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<Whose, u32>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn too_many(whose: &Whose, limit: u32) -> Refusal {
    let (reason, text) = match whose {
        Whose::User(name) => (
            RefuseReason::PerUser,
            format!("too many sessions as user \"{}\"", Escaped(name)),
        ),
        Whose::Database(name) => (
            RefuseReason::PerDatabase,
            format!("too many sessions in database \"{}\"", Escaped(name)),
        ),
        Whose::Address(_) => (
            RefuseReason::PerAddress,
            "too many sessions from this address".to_owned(),
        ),
    };
    let reply = ErrorReply::fatal(SqlState::TOO_MANY_CONNECTIONS, text).hint(format!(
        "Close sessions that are not needed, or ask the operator to raise limits.{}, which is {limit}.",
        reason.label()
    ));
    Refusal { reason, reply }
}

fn too_fast(reason: RefuseReason, limit: &str) -> Refusal {
    let text = "too many connections at once";
    let reply = ErrorReply::fatal(SqlState::TOO_MANY_CONNECTIONS, text).hint(format!(
        "Try again in a second, or ask the operator to raise {limit}."
    ));
    Refusal { reason, reply }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    fn quota(per_user: u32, per_database: u32, per_address: u32, rate: u32) -> Arc<Quota> {
        Arc::new(Quota::new(&config::Limits {
            max_clients: 0,
            max_pending_logins: 1,
            per_user,
            per_database,
            per_address,
            connection_rate: NonZeroU32::new(rate),
        }))
    }

    fn ask(
        quota: &Arc<Quota>,
        user: &'static str,
        database: &'static str,
        from: &str,
    ) -> Result<Share, &'static str> {
        ask_at(quota, &Rate::new(None), (user, database), from, Instant::now())
    }

    fn ask_at(
        quota: &Arc<Quota>,
        listener: &Rate,
        (user, database): (&'static str, &'static str),
        from: &str,
        now: Instant,
    ) -> Result<Share, &'static str> {
        let names = (&Bytes::from(user), &Bytes::from(database));
        quota
            .share(listener, Some(names), from.parse().ok(), now)
            .map_err(|refusal| refusal.reason.label())
    }

    #[test]
    fn each_limit_counts_separately_and_is_given_back() {
        let quota = quota(2, 3, 4, 0);
        let one = ask(&quota, "a", "x", "10.0.0.1").unwrap();
        let two = ask(&quota, "a", "y", "::ffff:10.0.0.1").unwrap();
        assert_eq!(ask(&quota, "a", "z", "10.0.0.2").unwrap_err(), "per_user");
        let three = ask(&quota, "b", "x", "10.0.0.1").unwrap();
        let four = ask(&quota, "c", "x", "10.0.0.1").unwrap();
        assert_eq!(ask(&quota, "d", "x", "10.0.0.9").unwrap_err(), "per_database");
        assert_eq!(ask(&quota, "d", "w", "10.0.0.1").unwrap_err(), "per_address");
        drop(one);
        assert!(ask(&quota, "a", "x", "10.0.0.1").is_ok());
        drop((two, three, four));
        assert!(quota.taken().is_empty(), "refusals leave nothing behind either");
    }

    #[test]
    fn an_ipv6_network_is_one_address_and_a_unix_socket_none() {
        let quota = quota(0, 0, 1, 0);
        let _held = ask(&quota, "a", "x", "2001:db8::1").unwrap();
        assert_eq!(
            ask(&quota, "b", "x", "2001:db8::ffff").unwrap_err(),
            "per_address"
        );
        let _others = [
            ask(&quota, "b", "x", "2001:db8:0:1::1").unwrap(),
            ask(&quota, "b", "x", "no address").unwrap(),
            ask(&quota, "b", "x", "no address").unwrap(),
        ];
        let addresses = |taken: &HashMap<Whose, u32>| {
            let is_address = |whose: &&Whose| matches!(whose, Whose::Address(_));
            taken.keys().filter(is_address).count()
        };
        assert_eq!(addresses(&quota.taken()), 2);
    }

    #[test]
    fn new_limits_count_existing_sessions_and_the_rate_continues() {
        let limits = |per_user, rate| config::Limits {
            per_user,
            connection_rate: NonZeroU32::new(rate),
            ..quota(0, 0, 0, 0).current.load().limits.clone()
        };
        let quota = quota(0, 0, 0, 2);
        let (unlimited, now) = (Rate::new(None), Instant::now());
        let ask = |user| ask_at(&quota, &unlimited, (user, "x"), "10.0.0.1", now);
        let held = ask("a").unwrap();
        quota.resize(&limits(1, 2));
        assert_eq!(ask("a").unwrap_err(), "per_user");
        let _other = ask("b").unwrap();
        assert_eq!(
            ask("c").unwrap_err(),
            "connection_rate",
            "the tokens are those of before"
        );
        quota.resize(&limits(2, 0));
        let _second = ask("a").unwrap();
        drop(held);
        quota.resize(&limits(1, 0));
        assert_eq!(ask("a").unwrap_err(), "per_user");
    }

    #[test]
    fn a_burst_of_one_second_is_allowed_and_the_listeners_rate_comes_first() {
        let quota = quota(1, 0, 0, 3);
        let (listener, now) = (Rate::new(NonZeroU32::new(2)), Instant::now());
        let mut held = Vec::new();
        for user in ["a", "b"] {
            held.push(ask_at(&quota, &listener, (user, "x"), "-", now).unwrap());
        }
        let fast = ask_at(&quota, &listener, ("c", "x"), "-", now);
        assert_eq!(fast.unwrap_err(), "connection_rate_listener");
        let free = Rate::new(None);
        // Refused by its count, so it uses nothing of the rate.
        assert_eq!(
            ask_at(&quota, &free, ("a", "x"), "-", now).unwrap_err(),
            "per_user"
        );
        held.push(ask_at(&quota, &free, ("c", "x"), "-", now).unwrap());
        assert_eq!(
            ask_at(&quota, &free, ("d", "x"), "-", now).unwrap_err(),
            "connection_rate"
        );
        let later = now + Duration::from_secs(1);
        held.push(ask_at(&quota, &free, ("d", "x"), "-", later).unwrap());
    }
}
