//! Host names of clients' addresses, for rules that name hosts.
//!
//! Guarantees:
//!
//! - A name counts only if it resolves back to the address, as in PostgreSQL (`check_hostname`).
//! - A look-up never blocks a worker. A login waits for it only for a limited time.
//! - Simultaneous look-ups of one address are one look-up. The number of look-ups, in total and per
//!   network, and the number of remembered answers are limited.
//! - If the resolver does not answer, the last name is used, and the resolver is not asked again
//!   for a while.
//! - An address that cannot be looked up because all slots are taken is not treated as an address
//!   without a name.
//!
//! A name that is an address in digits is refused.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

/// How long an answer is reused. A resolver caches too; this covers bursts.
const REMEMBERED_FOR: Duration = Duration::from_secs(10);
/// How long the last answer is used while the resolver does not answer.
const KEPT_FOR: Duration = Duration::from_hours(1);
/// A look-up without a name that took at least this long counts as no answer. A resolver that
/// reports that there is no name does so quickly.
const SILENT_AFTER: Duration = Duration::from_secs(2);
/// How long an address is not looked up again after the resolver did not answer.
const SILENT_FOR: Duration = Duration::from_mins(1);
/// How long a login waits for a new answer if an earlier one is known. The look-up itself
/// continues.
const CONFIRM_WITHIN: Duration = Duration::from_millis(250);
/// How long a login waits for a free look-up slot.
const SLOT_WITHIN: Duration = Duration::from_secs(5);
/// Limit of simultaneous look-ups. Each occupies a thread until the resolver returns.
const MAX_RUNNING: usize = 64;
/// The same limit per network: the owner of a network can make its look-ups hang.
const MAX_RUNNING_OF_NETWORK: usize = 16;
/// Limit of remembered addresses.
const MAX_REMEMBERED: usize = 4096;

/// There is one for the process, because the host has one resolver configuration.
static RESOLVER: LazyLock<Resolver> = LazyLock::new(|| Resolver::new(host_name, addresses));

/// Too many look-ups are running, so nothing is known about this address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many look-ups of clients' host names are running")]
pub struct Busy;

/// The host name of the client's address, from the host's resolver. `None` if no name resolves back
/// to the address, or if none is known by `deadline`.
///
/// # Errors
/// [`Busy`] if the address could not be looked up at all.
pub async fn verified_host_name(ip: IpAddr, deadline: Instant) -> Result<Option<String>, Busy> {
    RESOLVER.verified_host_name(ip, deadline).await
}

type Reverse = fn(IpAddr) -> Option<String>;
type Forward = fn(&str) -> Vec<IpAddr>;

#[derive(Debug)]
struct Resolver {
    reverse: Reverse,
    forward: Forward,
    slots: Arc<Semaphore>,
    known: Arc<Mutex<Memory>>,
}

#[derive(Debug, Default)]
struct Memory {
    answers: HashMap<IpAddr, ResolverAnswer>,
    /// Closed without a value if the look-up failed.
    running: HashMap<IpAddr, watch::Receiver<LookupState>>,
}

#[derive(Debug, Clone)]
struct ResolverAnswer {
    name: Option<String>,
    /// When the resolver answered.
    answered: Instant,
    /// Until then the answer is used without a look-up.
    fresh_until: Instant,
}

/// The last answer for an address.
#[derive(Debug, Clone)]
struct Last(Option<String>);

/// The state of a look-up.
#[derive(Debug)]
enum LookupState {
    Running,
    Done(Option<String>),
}

impl Resolver {
    fn new(reverse: Reverse, forward: Forward) -> Self {
        Self {
            reverse,
            forward,
            slots: Arc::new(Semaphore::new(MAX_RUNNING)),
            known: Arc::default(),
        }
    }

    async fn verified_host_name(&self, ip: IpAddr, deadline: Instant) -> Result<Option<String>, Busy> {
        // A listener on `::` sees IPv4 clients as ::ffff:0:0/96.
        let ip = ip.to_canonical();
        let (mut running, last) = match self.known_or_begin(ip, None)? {
            Known::Found(name) => return Ok(name),
            Known::Running(running, last) => (running, last),
            Known::Unknown(last) => {
                let within = if last.is_some() {
                    CONFIRM_WITHIN
                } else {
                    SLOT_WITHIN
                };
                let slot = Arc::clone(&self.slots).acquire_owned();
                let slot = timeout_at(deadline.min(Instant::now() + within), slot).await;
                let Ok(Ok(slot)) = slot else {
                    return last.map(|last| last.0).ok_or(Busy);
                };
                match self.known_or_begin(ip, Some(slot))? {
                    Known::Found(name) => return Ok(name),
                    Known::Running(running, last) => (running, last),
                    Known::Unknown(last) => return last.map(|last| last.0).ok_or(Busy),
                }
            }
        };
        let until = match last {
            Some(_) => deadline.min(Instant::now() + CONFIRM_WITHIN),
            None => deadline,
        };
        let state = running.wait_for(|state| matches!(state, LookupState::Done(_)));
        let last = last.and_then(|last| last.0);
        Ok(match timeout_at(until, state).await {
            Ok(Ok(state)) => match &*state {
                LookupState::Done(name) => name.clone(),
                LookupState::Running => last,
            },
            Ok(Err(_)) | Err(_) => last,
        })
    }

    /// What is known about `ip`. If nothing is known and there is a `slot`, a look-up begins.
    fn known_or_begin(&self, ip: IpAddr, slot: Option<OwnedSemaphorePermit>) -> Result<Known, Busy> {
        let now = Instant::now();
        let mut known = lock(&self.known);
        let answer = known.answers.get(&ip);
        if let Some(answer) = answer.filter(|answer| now < answer.fresh_until) {
            return Ok(Known::Found(answer.name.clone()));
        }
        let last = answer
            .filter(|answer| answer.is_kept(now))
            .map(|answer| Last(answer.name.clone()));
        if let Some(running) = known.running.get(&ip)
            && running.has_changed().is_ok()
        {
            return Ok(Known::Running(running.clone(), last));
        }
        known.running.retain(|_, running| running.has_changed().is_ok());
        let network = network(ip);
        let neighbours = known
            .running
            .keys()
            .filter(|other| self::network(**other) == network);
        if neighbours.count() >= MAX_RUNNING_OF_NETWORK {
            return last.map(|last| Known::Found(last.0)).ok_or(Busy);
        }
        let Some(slot) = slot else {
            return Ok(Known::Unknown(last));
        };
        let (sender, state) = watch::channel(LookupState::Running);
        known.running.insert(ip, state.clone());
        drop(known);
        let (reverse, forward, known) = (self.reverse, self.forward, Arc::clone(&self.known));
        // Nothing awaits it: an answer that is too late for this client serves the next one.
        spawn_blocking(move || {
            let began = Instant::now();
            let name = verify(ip, reverse, forward);
            let name = lock(&known).store(ip, name, began);
            sender.send_replace(LookupState::Done(name));
            drop(slot);
        });
        Ok(Known::Running(state, last))
    }
}

impl ResolverAnswer {
    fn is_kept(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.answered) < KEPT_FOR
    }
}

impl Memory {
    /// Stores the result of a look-up that began at `began`, and returns the name to use from now
    /// on.
    fn store(&mut self, ip: IpAddr, name: Option<String>, began: Instant) -> Option<String> {
        let now = Instant::now();
        self.running.remove(&ip);
        let is_silent = name.is_none() && now.saturating_duration_since(began) >= SILENT_AFTER;
        let last = self.answers.get(&ip).filter(|answer| answer.is_kept(now));
        let answer = match last {
            Some(last) if is_silent => ResolverAnswer {
                fresh_until: now + SILENT_FOR,
                ..last.clone()
            },
            _ => ResolverAnswer {
                name,
                answered: now,
                fresh_until: now + if is_silent { SILENT_FOR } else { REMEMBERED_FOR },
            },
        };
        let name = answer.name.clone();
        self.make_room(now);
        self.answers.insert(ip, answer);
        name
    }

    /// Removes answers that are too old to be used, and if necessary the older half of the rest.
    fn make_room(&mut self, now: Instant) {
        if self.answers.len() < MAX_REMEMBERED {
            return;
        }
        self.answers.retain(|_, answer| answer.is_kept(now));
        if self.answers.len() < MAX_REMEMBERED {
            return;
        }
        let mut ages: Vec<Instant> = self.answers.values().map(|answer| answer.answered).collect();
        let (_, middle, _) = ages.select_nth_unstable(MAX_REMEMBERED / 2);
        let middle = *middle;
        let mut excess = MAX_REMEMBERED / 2;
        self.answers.retain(|_, answer| {
            let is_removed = excess > 0 && answer.answered <= middle;
            excess -= usize::from(is_removed);
            !is_removed
        });
    }
}

enum Known {
    Found(Option<String>),
    /// With the last answer, if there is one.
    Running(watch::Receiver<LookupState>, Option<Last>),
    Unknown(Option<Last>),
}

fn lock(known: &Mutex<Memory>) -> MutexGuard<'_, Memory> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The network whose name servers are assumed to have one owner: an IPv4 /24 or an IPv6 /48.
fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & !0xff).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !(u128::MAX >> 48)).into(),
    }
}

fn verify(ip: IpAddr, reverse: Reverse, forward: Forward) -> Option<String> {
    // The owner of the reverse zone can enter anything as a name, also an address in digits.
    let name = reverse(ip).filter(|name| name.parse::<IpAddr>().is_err())?;
    forward(&name)
        .iter()
        .any(|found| found.to_canonical() == ip)
        .then_some(name)
}

/// With `NI_NAMEREQD`, a missing name is an error instead of the address in digits.
fn host_name(ip: IpAddr) -> Option<String> {
    dns_lookup::lookup_addr(&ip).ok()
}

fn addresses(name: &str) -> Vec<IpAddr> {
    dns_lookup::lookup_host(name).map_or_else(|_| Vec::new(), Iterator::collect)
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
