//! What changes, as it changes: for the page and for other readers of `/api/v1/live`.
//!
//! Guarantees: a reader costs no queue. What is shown is kept once, in parts that have versions; a
//! reader knows the version that it has, and a slow one gets the newest parts and misses those in
//! between. Events and points of the history are read from where they are kept anyway. Nothing is
//! put together while nobody reads. There are at most [`MOST_READERS`] readers, and
//! [`MOST_OF_SOURCE`] of one address.
//!
//! Refuses: to hold a connection that somebody else needs. To the limit of connections a reader is
//! an idle client, which makes room for health checks.

mod parts;
mod reader;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::handles::Handles;
use super::views::PoolView;
use crate::auth::login_throttle::network;
use parts::Parts;
pub(super) use reader::{Reader, Resumed};

/// Readers at once.
pub(super) const MOST_READERS: usize = 64;
/// Of one address, or IPv6 /64.
pub(super) const MOST_OF_SOURCE: usize = 24;

/// Between two looks for a change.
const LOOK: Duration = Duration::from_millis(250);
/// Numbers that change all the time are sent this often.
const EVERY: Duration = Duration::from_secs(1);
/// Between two rounds to all processes of the router, for pools and for counts.
const GATHER: Duration = Duration::from_secs(2);

/// What all readers share. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Live(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Tells this run of the router from others.
    run: u64,
    now: watch::Sender<Now>,
    readers: watch::Sender<usize>,
    /// Readers by address; none have 0.
    sources: Mutex<HashMap<IpAddr, usize>>,
    pools: Mutex<Vec<PoolView>>,
}

/// What there is to read.
#[derive(Debug, Clone, Default)]
struct Now {
    parts: Arc<Parts>,
    /// The number of the newest event.
    event: u64,
    /// The number of the newest point of the history.
    point: u64,
}

/// The place of one reader, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    live: Live,
    source: IpAddr,
}

/// There are too many readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    All,
    OfSource,
}

impl Default for Live {
    fn default() -> Self {
        let run = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(Arc::new(Shared {
            run: u64::try_from(run.as_micros()).unwrap_or_default(),
            now: watch::Sender::default(),
            readers: watch::Sender::new(0),
            sources: Mutex::default(),
            pools: Mutex::default(),
        }))
    }
}

impl Live {
    /// A place for a reader at this address.
    pub(super) fn place(&self, source: IpAddr) -> Result<Place, Full> {
        let source = network(source);
        let mut sources = self.sources();
        if sources.values().sum::<usize>() >= MOST_READERS {
            return Err(Full::All);
        }
        let of_source = sources.entry(source).or_default();
        if *of_source >= MOST_OF_SOURCE {
            return Err(Full::OfSource);
        }
        *of_source += 1;
        self.0.readers.send_replace(sources.values().sum());
        drop(sources);
        Ok(Place {
            live: self.clone(),
            source,
        })
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn readers(&self) -> usize {
        *self.0.readers.borrow()
    }

    fn sources(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pools(&self) -> MutexGuard<'_, Vec<PoolView>> {
        self.0.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts together what there is.
    fn publish(&self, handles: &Handles) {
        let parts = Parts::of(handles, &self.pools());
        let event = handles.events.newest();
        let point = *handles.history.newest().borrow();
        self.0.now.send_if_modified(|now| {
            let next = now.parts.with(parts);
            let is_new = next.version() != now.parts.version() || (event, point) != (now.event, now.point);
            if is_new {
                *now = Now {
                    parts: Arc::new(next),
                    event,
                    point,
                };
            }
            is_new
        });
    }

    /// Nobody reads: what there was is old when somebody comes.
    fn forget(&self) {
        self.0
            .now
            .send_modify(|now| now.parts = Arc::new(now.parts.without()));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut sources = self.live.sources();
        if let Some(readers) = sources.get_mut(&self.source) {
            *readers -= 1;
            if *readers == 0 {
                sources.remove(&self.source);
            }
        }
        self.live.0.readers.send_replace(sources.values().sum());
    }
}

/// Publishes what the newest of `handles` show while there are readers, until `stop`.
pub(super) async fn publish(live: Live, handles: watch::Receiver<Handles>, stop: CancellationToken) {
    let mut readers = live.0.readers.subscribe();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = readers.wait_for(|readers| *readers > 0) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            _ = readers.wait_for(|readers| *readers == 0) => {}
            () = gather(&live, &handles) => {}
            () = look(&live, &handles) => {}
        }
        live.forget();
    }
}

/// Asks all processes of the router, again and again.
async fn gather(live: &Live, handles: &watch::Receiver<Handles>) {
    let mut due = interval(GATHER);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        due.tick().await;
        let operations = Arc::clone(&handles.borrow().operations);
        drop(operations.refresh().await);
        let pools = operations.pools().await.value;
        *live.pools() = pools;
    }
}

/// Publishes at once what concerns the topology, and everything else a little later.
async fn look(live: &Live, handles: &watch::Receiver<Handles>) {
    let mut due = interval(LOOK);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut published: Option<(Instant, Vec<u64>)> = None;
    loop {
        due.tick().await;
        let now = handles.borrow().clone();
        let mut topology: Vec<u64> = now
            .clusters
            .iter()
            .map(|view| view.snapshot.borrow().version)
            .collect();
        topology.push(now.events.newest());
        let is_due = published
            .as_ref()
            .is_none_or(|(at, before)| *before != topology || at.elapsed() >= EVERY);
        if is_due {
            live.publish(&now);
            published = Some((Instant::now(), topology));
        }
    }
}

#[cfg(test)]
mod tests;
