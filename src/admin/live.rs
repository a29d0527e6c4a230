//! What changes, as it changes: for the page and for other readers of `/api/v1/live`.
//!
//! Guarantees: a reader costs no queue. What is shown is kept once, in parts that have versions; a
//! reader knows the version that it has, and a slow one gets the newest parts and misses those in
//! between. Events and points of the history are read from where they are kept anyway. Nothing is
//! put together while nobody reads. There are at most [`MOST_READERS`] readers, and
//! [`MOST_OF_SOURCE`] of one address. Readers without the token keep out nobody who has it: the
//! oldest of them is told so, and makes room.
//!
//! Refuses: to hold a connection that somebody else needs. To the limit of connections a reader is
//! an idle client, which makes room for health checks.

mod parts;
mod reader;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::handles::Handles;
use super::views::{CertificateView, PoolView};
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
/// What a first reader waits for the first round.
const FIRST: Duration = Duration::from_secs(1);
/// Between two rounds to all processes of the router, for pools and for counts; certificates, too.
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
    places: Mutex<Places>,
    gathered: Mutex<Gathered>,
}

/// What is not put together for each look.
#[derive(Debug, Default)]
struct Gathered {
    pools: Vec<PoolView>,
    certificates: Vec<CertificateView>,
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

/// The places that are taken, by number: the oldest first.
#[derive(Debug, Default)]
struct Places {
    next: u64,
    taken: BTreeMap<u64, Taken>,
}

#[derive(Debug)]
struct Taken {
    source: IpAddr,
    has_token: bool,
    /// Cancelled when somebody with the token gets its place.
    makes_room: CancellationToken,
}

/// The place of one reader, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    live: Live,
    number: u64,
    makes_room: CancellationToken,
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
            places: Mutex::default(),
            gathered: Mutex::default(),
        }))
    }
}

impl Live {
    /// A place for a reader at this address. One with the token gets that of the oldest without, if
    /// there is no other.
    pub(super) fn place(&self, source: IpAddr, has_token: bool) -> Result<Place, Full> {
        let source = network(source);
        let mut places = self.places();
        let is_here = |taken: &Taken| taken.source == source;
        let is_full = |places: &Places| places.taken.len() >= MOST_READERS;
        let is_full_here = |places: &Places| places.count(is_here) >= MOST_OF_SOURCE;
        if !has_token && is_full(&places) {
            return Err(Full::All);
        }
        if is_full_here(&places) && !(has_token && places.make_room(is_here)) {
            return Err(Full::OfSource);
        }
        if is_full(&places) && !places.make_room(|_| true) {
            return Err(Full::All);
        }
        let number = places.next;
        places.next += 1;
        let makes_room = CancellationToken::new();
        let taken = Taken {
            source,
            has_token,
            makes_room: makes_room.clone(),
        };
        places.taken.insert(number, taken);
        self.0.readers.send_replace(places.taken.len());
        drop(places);
        Ok(Place {
            live: self.clone(),
            number,
            makes_room,
        })
    }

    /// How many there are.
    #[cfg(test)]
    pub(super) fn readers(&self) -> usize {
        *self.0.readers.borrow()
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.0.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts together what there is.
    fn publish(&self, handles: &Handles) {
        let gathered = self.gathered();
        let parts = Parts::of(handles, &gathered.pools, &gathered.certificates);
        drop(gathered);
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

impl Places {
    fn count(&self, which: impl Fn(&Taken) -> bool) -> usize {
        self.taken.values().filter(|taken| which(taken)).count()
    }

    /// Ends the oldest of these without the token. `false`: all have it.
    fn make_room(&mut self, which: impl Fn(&Taken) -> bool) -> bool {
        let mut taken = self.taken.iter();
        let oldest = taken.find(|(_, taken)| !taken.has_token && which(taken));
        let Some(number) = oldest.map(|(number, _)| *number) else {
            return false;
        };
        if let Some(taken) = self.taken.remove(&number) {
            taken.makes_room.cancel();
        }
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.live.places();
        // It may have made room already.
        places.taken.remove(&self.number);
        self.live.0.readers.send_replace(places.taken.len());
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
        // Counts and pools that are not known yet would look as if there were none.
        let first = timeout(FIRST, gather_once(&live, &handles));
        tokio::select! {
            () = stop.cancelled() => return,
            _ = first => {}
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
    due.reset();
    loop {
        due.tick().await;
        gather_once(live, handles).await;
    }
}

async fn gather_once(live: &Live, handles: &watch::Receiver<Handles>) {
    let now = handles.borrow().clone();
    drop(now.operations.refresh().await);
    let pools = now.operations.pools().await.value;
    let certificates = now.inventory.certificates();
    *live.gathered() = Gathered { pools, certificates };
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
