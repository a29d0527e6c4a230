//! Names of clients' addresses, for rules that name hosts.
//!
//! Guarantees: a name counts only if it leads back to the address, as in PostgreSQL (`check_hostname`); a look-up never
//! blocks a worker, and is bounded in time for whoever waits; look-ups of one address at the same time are one; those
//! that run, and what is remembered, are bounded.
//!
//! Refuses: a name that is an address written out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

/// How long an answer is used again: a resolver caches too, this is against bursts.
const REMEMBERED_FOR: Duration = Duration::from_secs(10);
/// Look-ups at the same time; each has a thread for as long as the resolver takes.
const MAX_RUNNING: usize = 16;
/// Addresses remembered.
const MAX_REMEMBERED: usize = 1024;

/// The resolver's configuration is the host's, so there is one for the process.
static RESOLVER: LazyLock<Resolver> = LazyLock::new(|| Resolver::new(host_name, addresses));

/// The name of the client's address, as the host's resolver has it; `None` if there is none that leads back to the
/// address, or none is known by `deadline`.
pub async fn verified_host_name(ip: IpAddr, deadline: Instant) -> Option<String> {
    RESOLVER.verified_host_name(ip, deadline).await
}

type Reverse = fn(IpAddr) -> Option<String>;
type Forward = fn(&str) -> Vec<IpAddr>;
type Known = HashMap<IpAddr, Entry>;

#[derive(Debug)]
struct Resolver {
    reverse: Reverse,
    forward: Forward,
    running: Arc<Semaphore>,
    known: Arc<Mutex<Known>>,
}

#[derive(Debug)]
enum Entry {
    Found(Option<String>, Instant),
    /// Closed without a value if the look-up came to nothing.
    Running(watch::Receiver<Told>),
}

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
            running: Arc::new(Semaphore::new(MAX_RUNNING)),
            known: Arc::default(),
        }
    }

    async fn verified_host_name(&self, ip: IpAddr, deadline: Instant) -> Option<String> {
        // A listener on `::` sees IPv4 clients as ::ffff:0:0/96.
        let ip = ip.to_canonical();
        let mut running = match self.look(ip, None) {
            Look::Found(name) => return name,
            Look::Running(running) => running,
            Look::Unknown => {
                let permit = Arc::clone(&self.running).acquire_owned();
                let permit = timeout_at(deadline, permit).await.ok()?.ok()?;
                match self.look(ip, Some(permit)) {
                    Look::Found(name) => return name,
                    Look::Running(running) => running,
                    Look::Unknown => return None,
                }
            }
        };
        let told = running.wait_for(|told| matches!(told, Told::Name(_)));
        match &*timeout_at(deadline, told).await.ok()?.ok()? {
            Told::Name(name) => name.clone(),
            Told::Nothing => None,
        }
    }

    /// What is known of `ip`; if nothing is, a look-up is begun, given a permit.
    fn look(&self, ip: IpAddr, permit: Option<OwnedSemaphorePermit>) -> Look {
        let now = Instant::now();
        let mut known = lock(&self.known);
        match known.get(&ip) {
            Some(Entry::Found(name, at)) if now.saturating_duration_since(*at) < REMEMBERED_FOR => {
                return Look::Found(name.clone());
            }
            Some(Entry::Running(running)) if running.has_changed().is_ok() => {
                return Look::Running(running.clone());
            }
            _ => {}
        }
        let Some(permit) = permit else {
            return Look::Unknown;
        };
        make_room(&mut known, now);
        let (tell, told) = watch::channel(Told::Nothing);
        known.insert(ip, Entry::Running(told.clone()));
        drop(known);
        let (reverse, forward, known) = (self.reverse, self.forward, Arc::clone(&self.known));
        // Not awaited: a resolver that takes longer than one client has time still answers the next.
        spawn_blocking(move || {
            let name = verify(ip, reverse, forward);
            lock(&known).insert(ip, Entry::Found(name.clone(), Instant::now()));
            tell.send_replace(Told::Name(name));
            drop(permit);
        });
        Look::Running(told)
    }
}

enum Look {
    Found(Option<String>),
    Running(watch::Receiver<Told>),
    Unknown,
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps those that run, of which there are [`MAX_RUNNING`], and if need be nothing else.
fn make_room(known: &mut Known, now: Instant) {
    if known.len() < MAX_REMEMBERED {
        return;
    }
    let young = |at: &Instant| now.saturating_duration_since(*at) < REMEMBERED_FOR;
    known.retain(|_, entry| match entry {
        Entry::Found(_, at) => young(at),
        Entry::Running(running) => running.has_changed().is_ok(),
    });
    if known.len() >= MAX_REMEMBERED {
        known.retain(|_, entry| matches!(entry, Entry::Running(_)));
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
