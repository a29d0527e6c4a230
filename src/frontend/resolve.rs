//! Names of clients' addresses, for rules that name hosts.
//!
//! Guarantees: a name counts only if it leads back to the address, as in PostgreSQL (`check_hostname`); a look-up never
//! blocks a worker, and is bounded in time for whoever waits; look-ups of one address at the same time are one; those
//! that run, those of one network among them, and what is remembered, are bounded; where the resolver does not answer,
//! the last name counts, and it is not asked again for a while; an address that cannot be looked up because others take
//! all places is no address without a name.
//!
//! Refuses: a name that is an address written out.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

/// How long an answer is used again: a resolver caches too, this is against bursts.
const REMEMBERED_FOR: Duration = Duration::from_secs(10);
/// How long the last answer is used where the resolver gives none.
const KEPT_FOR: Duration = Duration::from_hours(1);
/// A resolver that has found no name after so long did not answer: one that says so takes no time.
const SILENT_AFTER: Duration = Duration::from_secs(2);
/// An address is not asked about again for so long after the resolver did not answer.
const SILENT_FOR: Duration = Duration::from_mins(1);
/// How long a login waits for an answer where an earlier one is known. The look-up itself goes on.
const CONFIRM_WITHIN: Duration = Duration::from_millis(250);
/// How long a login waits for a place among the look-ups.
const PLACE_WITHIN: Duration = Duration::from_secs(5);
/// Look-ups at the same time; each has a thread for as long as the resolver takes.
const MAX_RUNNING: usize = 64;
/// Those of one network, whose owner may keep them from being answered.
const MAX_RUNNING_OF_NETWORK: usize = 16;
/// Addresses remembered.
const MAX_REMEMBERED: usize = 4096;

/// The resolver's configuration is the host's, so there is one for the process.
static RESOLVER: LazyLock<Resolver> = LazyLock::new(|| Resolver::new(host_name, addresses));

/// Too many look-ups are under way: nothing is known of this address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many look-ups of clients' host names are under way")]
pub struct Busy;

/// The name of the client's address, as the host's resolver has it; `None` if there is none that leads back to the
/// address, or none is known by `deadline`.
///
/// # Errors
/// [`Busy`] where it could not be looked up at all.
pub async fn verified_host_name(ip: IpAddr, deadline: Instant) -> Result<Option<String>, Busy> {
    RESOLVER.verified_host_name(ip, deadline).await
}

type Reverse = fn(IpAddr) -> Option<String>;
type Forward = fn(&str) -> Vec<IpAddr>;

#[derive(Debug)]
struct Resolver {
    reverse: Reverse,
    forward: Forward,
    places: Arc<Semaphore>,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    answers: HashMap<IpAddr, ResolverAnswer>,
    /// Closed without a value if the look-up came to nothing.
    running: HashMap<IpAddr, watch::Receiver<Told>>,
}

#[derive(Debug, Clone)]
struct ResolverAnswer {
    name: Option<String>,
    /// When the resolver said so.
    answered: Instant,
    /// Until then it is used without asking.
    fresh_until: Instant,
}

/// What was last found.
#[derive(Debug, Clone)]
struct Last(Option<String>);

/// What a look-up that runs has told.
#[derive(Debug)]
enum Told {
    Nothing,
    Name(Option<String>),
}

impl Resolver {
    fn new(reverse: Reverse, forward: Forward) -> Self {
        Self {
            reverse,
            forward,
            places: Arc::new(Semaphore::new(MAX_RUNNING)),
            known: Arc::default(),
        }
    }

    async fn verified_host_name(&self, ip: IpAddr, deadline: Instant) -> Result<Option<String>, Busy> {
        // A listener on `::` sees IPv4 clients as ::ffff:0:0/96.
        let ip = ip.to_canonical();
        let (mut running, last) = match self.look(ip, None)? {
            Look::Found(name) => return Ok(name),
            Look::Running(running, last) => (running, last),
            Look::Unknown(last) => {
                let patience = if last.is_some() {
                    CONFIRM_WITHIN
                } else {
                    PLACE_WITHIN
                };
                let place = Arc::clone(&self.places).acquire_owned();
                let place = timeout_at(deadline.min(Instant::now() + patience), place).await;
                let Ok(Ok(place)) = place else {
                    return last.map(|last| last.0).ok_or(Busy);
                };
                match self.look(ip, Some(place))? {
                    Look::Found(name) => return Ok(name),
                    Look::Running(running, last) => (running, last),
                    Look::Unknown(last) => return last.map(|last| last.0).ok_or(Busy),
                }
            }
        };
        let until = match last {
            Some(_) => deadline.min(Instant::now() + CONFIRM_WITHIN),
            None => deadline,
        };
        let told = running.wait_for(|told| matches!(told, Told::Name(_)));
        let last = last.and_then(|last| last.0);
        Ok(match timeout_at(until, told).await {
            Ok(Ok(told)) => match &*told {
                Told::Name(name) => name.clone(),
                Told::Nothing => last,
            },
            Ok(Err(_)) | Err(_) => last,
        })
    }

    /// What is known of `ip`; if nothing is, a look-up is begun, given a place.
    fn look(&self, ip: IpAddr, place: Option<OwnedSemaphorePermit>) -> Result<Look, Busy> {
        let now = Instant::now();
        let mut known = lock(&self.known);
        let answer = known.answers.get(&ip);
        if let Some(answer) = answer.filter(|answer| now < answer.fresh_until) {
            return Ok(Look::Found(answer.name.clone()));
        }
        let last = answer
            .filter(|answer| answer.is_kept(now))
            .map(|answer| Last(answer.name.clone()));
        if let Some(running) = known.running.get(&ip)
            && running.has_changed().is_ok()
        {
            return Ok(Look::Running(running.clone(), last));
        }
        known.running.retain(|_, running| running.has_changed().is_ok());
        let network = network(ip);
        let neighbours = known
            .running
            .keys()
            .filter(|other| self::network(**other) == network);
        if neighbours.count() >= MAX_RUNNING_OF_NETWORK {
            return last.map(|last| Look::Found(last.0)).ok_or(Busy);
        }
        let Some(place) = place else {
            return Ok(Look::Unknown(last));
        };
        let (tell, told) = watch::channel(Told::Nothing);
        known.running.insert(ip, told.clone());
        drop(known);
        let (reverse, forward, known) = (self.reverse, self.forward, Arc::clone(&self.known));
        // Not awaited: a resolver that takes longer than one client has time still answers the next.
        spawn_blocking(move || {
            let began = Instant::now();
            let name = verify(ip, reverse, forward);
            let name = lock(&known).put(ip, name, began);
            tell.send_replace(Told::Name(name));
            drop(place);
        });
        Ok(Look::Running(told, last))
    }
}

impl ResolverAnswer {
    fn is_kept(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.answered) < KEPT_FOR
    }
}

impl Known {
    /// What counts from now on, after a look-up that began at `began`.
    fn put(&mut self, ip: IpAddr, name: Option<String>, began: Instant) -> Option<String> {
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

    /// What is too old to be used goes, and if need be the half that was answered longest ago.
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
            let goes = excess > 0 && answer.answered <= middle;
            excess -= usize::from(goes);
            !goes
        });
    }
}

enum Look {
    Found(Option<String>),
    /// And the last answer, where there is one.
    Running(watch::Receiver<Told>, Option<Last>),
    Unknown(Option<Last>),
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whose name servers one party is taken to have: an IPv4 /24, an IPv6 /48.
fn network(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & !0xff).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !(u128::MAX >> 48)).into(),
    }
}

fn verify(ip: IpAddr, reverse: Reverse, forward: Forward) -> Option<String> {
    // Whoever owns the address's zone may write anything there, an address in digits too.
    let name = reverse(ip).filter(|name| name.parse::<IpAddr>().is_err())?;
    forward(&name)
        .iter()
        .any(|found| found.to_canonical() == ip)
        .then_some(name)
}

/// With `NI_NAMEREQD`: no name is an error, not the address in digits.
fn host_name(ip: IpAddr) -> Option<String> {
    dns_lookup::lookup_addr(&ip).ok()
}

fn addresses(name: &str) -> Vec<IpAddr> {
    dns_lookup::lookup_host(name).map_or_else(|_| Vec::new(), Iterator::collect)
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
