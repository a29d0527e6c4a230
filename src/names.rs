//! Addresses of hosts that are given by name: servers, Patroni, etcd, directories, peers.
//!
//! Guarantees: a look-up blocks no worker, and no place for blocking tasks, however long the host's
//! resolver takes; look-ups of one name at the same time are one; the number of look-ups that run,
//! and of names remembered, is limited; while the name service does not *answer*, the last good
//! addresses of a name are used, and one log line says so.
//!
//! It never uses an old answer instead of a new one. A name that no longer exists has no addresses.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dns_lookup::{AddrInfoHints, LookupErrorKind, SockType, getaddrinfo};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout_at};

/// Addresses of one name; more are ignored.
const MAX_ADDRESSES: usize = 16;
/// Look-ups at the same time; each has a thread while the resolver works.
const MAX_RUNNING: usize = 32;
/// Names remembered; those used longest ago are removed first.
const MAX_NAMES: usize = 1024;
/// How long a look-up waits for an answer where there is an earlier one.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long it waits where the caller has no deadline.
const LONGEST: Duration = Duration::from_secs(10);

/// The resolver's configuration is the host's, so there is one for the process.
static NAMES: LazyLock<Names> = LazyLock::new(|| Names::new(Arc::new(look_up)));

/// Why a name has no addresses.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NameError {
    /// It did not answer in time, and there is no earlier answer.
    #[error("the name service does not answer")]
    Silent,
    /// There is no such name, or it has no address.
    #[error("{0}")]
    NoSuchName(Arc<str>),
    /// This host has no threads or memory left.
    #[error("the name cannot be looked up: {0}")]
    Local(Arc<str>),
}

impl From<NameError> for io::Error {
    fn from(error: NameError) -> Self {
        let kind = match &error {
            NameError::Silent => io::ErrorKind::TimedOut,
            NameError::NoSuchName(_) => io::ErrorKind::NotFound,
            NameError::Local(_) => io::ErrorKind::OutOfMemory,
        };
        Self::new(kind, error)
    }
}

/// All addresses of a host, in the resolver's order, at least one. An address needs no look-up.
pub(crate) async fn addresses(host: &str, deadline: Instant) -> Result<Vec<IpAddr>, NameError> {
    match host.parse() {
        Ok(address) => Ok(vec![address]),
        Err(_) => NAMES.addresses(host, deadline).await,
    }
}

/// Connects to the first address of a host that accepts. Only the caller limits the time.
pub(crate) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses = addresses(host, Instant::now() + LONGEST).await?;
    let addresses: Vec<SocketAddr> = addresses.into_iter().map(|ip| (ip, port).into()).collect();
    TcpStream::connect(&addresses[..]).await
}

/// For clients of HTTP.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct HttpNames;

impl reqwest::dns::Resolve for HttpNames {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        Box::pin(async move {
            let found = addresses(name.as_str(), Instant::now() + LONGEST).await?;
            let found: reqwest::dns::Addrs = Box::new(found.into_iter().map(|ip| (ip, 0).into()));
            Ok(found)
        })
    }
}

type LookUp = Arc<dyn Fn(&str) -> Result<Vec<IpAddr>, NameError> + Send + Sync>;
type NameResult = Result<Vec<IpAddr>, NameError>;

struct Names {
    look_up: LookUp,
    running: Arc<Semaphore>,
    known: Arc<Mutex<HashMap<String, NameRecord>>>,
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

/// What is known of a name.
#[derive(Debug)]
struct NameRecord {
    /// The addresses of the last answer, if it had any.
    good: Option<Vec<IpAddr>>,
    /// The last look-up was not answered, and that was logged.
    silent: bool,
    /// It holds `None` until the look-up has ended.
    running: Option<watch::Receiver<Option<NameResult>>>,
    used: Instant,
}

impl NameRecord {
    fn is_running(&self) -> bool {
        let has_ended = |running: &watch::Receiver<_>| running.has_changed().is_err();
        self.running.as_ref().is_some_and(|running| !has_ended(running))
    }
}

impl Names {
    fn new(look_up: LookUp) -> Self {
        Self {
            look_up,
            running: Arc::new(Semaphore::new(MAX_RUNNING)),
            known: Arc::default(),
        }
    }

    async fn addresses(&self, host: &str, deadline: Instant) -> NameResult {
        let mut running = self.begin(host, None);
        if running.is_none() {
            let permit = Arc::clone(&self.running).acquire_owned();
            if let Ok(Ok(permit)) = timeout_at(self.until(host, deadline), permit).await {
                running = self.begin(host, Some(permit));
            }
        }
        let Some(mut running) = running else {
            return self.instead(host);
        };
        let answer = timeout_at(self.until(host, deadline), running.wait_for(Option::is_some)).await;
        match answer {
            Ok(Ok(outcome)) => match &*outcome {
                Some(Ok(found)) => Ok(found.clone()),
                Some(Err(NameError::NoSuchName(why))) => Err(NameError::NoSuchName(Arc::clone(why))),
                Some(Err(_)) | None => {
                    drop(outcome);
                    self.instead(host)
                }
            },
            // Its thread failed, or takes too long.
            Ok(Err(_)) | Err(_) => self.instead(host),
        }
    }

    /// How long to wait for a look-up: a short time where there is an earlier answer, and not at
    /// all while the name service is known to be silent.
    fn until(&self, host: &str, deadline: Instant) -> Instant {
        let now = Instant::now();
        match lock(&self.known).get(host) {
            Some(NameRecord {
                good: Some(_),
                silent: true,
                ..
            }) => now,
            Some(NameRecord { good: Some(_), .. }) => {
                deadline.min(now + PATIENCE.min(deadline.saturating_duration_since(now) / 2))
            }
            _ => deadline,
        }
    }

    /// The look-up that runs, or one that begins now if a permit is free.
    fn begin(
        &self,
        host: &str,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Option<watch::Receiver<Option<NameResult>>> {
        let now = Instant::now();
        let mut known = lock(&self.known);
        if let Some(entry) = known.get_mut(host) {
            entry.used = now;
            if let Some(running) = entry.running.clone().filter(|_| entry.is_running()) {
                return Some(running);
            }
        }
        let permit = permit.or_else(|| Arc::clone(&self.running).try_acquire_owned().ok())?;
        make_room(&mut known);
        let (sender, receiver) = watch::channel(None);
        let entry = known.entry(host.to_owned()).or_insert_with(|| NameRecord {
            good: None,
            silent: false,
            running: None,
            used: now,
        });
        entry.running = Some(receiver.clone());
        drop(known);
        let (look_up, known, name) = (
            Arc::clone(&self.look_up),
            Arc::clone(&self.known),
            host.to_owned(),
        );
        let thread = std::thread::Builder::new().name("names".into());
        let begun = thread.spawn(move || {
            let outcome = look_up(&name);
            note(&known, &name, &outcome);
            sender.send_replace(Some(outcome));
            drop(permit);
        });
        if let Err(error) = begun {
            tracing::debug!(%error, "no thread for a look-up");
        }
        Some(receiver)
    }

    /// The addresses to use without an answer.
    fn instead(&self, host: &str) -> NameResult {
        let mut known = lock(&self.known);
        let Some(entry) = known.get_mut(host) else {
            return Err(NameError::Silent);
        };
        let good = entry.good.clone();
        if good.is_some() && !std::mem::replace(&mut entry.silent, true) {
            drop(known);
            silence(host);
        }
        good.ok_or(NameError::Silent)
    }
}

/// Keeps the result of a look-up.
fn note(known: &Mutex<HashMap<String, NameRecord>>, host: &str, outcome: &NameResult) {
    let mut known = lock(known);
    let Some(entry) = known.get_mut(host) else {
        return;
    };
    match outcome {
        Ok(found) => {
            entry.good = Some(found.clone());
            if std::mem::take(&mut entry.silent) {
                drop(known);
                tracing::info!(host, "the name service answers again");
            }
        }
        Err(NameError::NoSuchName(_)) => {
            entry.good = None;
            entry.silent = false;
        }
        Err(NameError::Silent | NameError::Local(_)) => {
            if entry.good.is_some() && !std::mem::replace(&mut entry.silent, true) {
                drop(known);
                silence(host);
            }
        }
    }
}

fn silence(host: &str) {
    tracing::warn!(
        host,
        "the name service does not answer: the last addresses that it gave are used"
    );
}

fn lock(known: &Mutex<HashMap<String, NameRecord>>) -> MutexGuard<'_, HashMap<String, NameRecord>> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the name that was used longest ago; those of look-ups that run stay, at most
/// [`MAX_RUNNING`].
fn make_room(known: &mut HashMap<String, NameRecord>) {
    if known.len() < MAX_NAMES {
        return;
    }
    let idle = known.iter().filter(|(_, entry)| !entry.is_running());
    let oldest = idle
        .min_by_key(|(_, entry)| entry.used)
        .map(|(name, _)| name.clone());
    if let Some(oldest) = oldest {
        known.remove(&oldest);
    }
}

/// Asks the host's resolver, however long that takes.
fn look_up(host: &str) -> NameResult {
    let hints = AddrInfoHints {
        socktype: SockType::Stream.into(),
        ..AddrInfoHints::default()
    };
    let found = getaddrinfo(Some(host), None, Some(hints)).map_err(|error| {
        let why = Arc::from(error.to_string());
        match error.kind() {
            LookupErrorKind::NoName | LookupErrorKind::NoData => NameError::NoSuchName(why),
            LookupErrorKind::Memory => NameError::Local(why),
            _ => NameError::Silent,
        }
    })?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in found.flatten().map(|info| info.sockaddr.ip()) {
        if !addresses.contains(&address) && addresses.len() < MAX_ADDRESSES {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(NameError::NoSuchName("the name has no address".into()));
    }
    Ok(addresses)
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
