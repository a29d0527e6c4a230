//! Places that are limited in total and per source, and the connections that wait for one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Usage;
use crate::auth::login_throttle::network;

/// Places for connections that have not logged in, limited in total and per source, so that no
/// source can have all of them. A source is an IPv4 address, an IPv6 /64, or (`None`) all Unix
/// sockets together.
#[derive(Debug)]
pub(super) struct Places {
    most: AtomicU32,
    most_per_source: AtomicU32,
    taken: Mutex<Taken>,
    /// Wakes accept loops that wait for a place.
    pub(super) freed: Notify,
}

#[derive(Debug, Default)]
struct Taken {
    total: u32,
    by_source: HashMap<Source, u32>,
    /// The sources that connections wait for, while they do.
    waiting: HashMap<Source, WaitingSource>,
}

/// Connections of one source that wait for a place.
#[derive(Debug, Default)]
struct WaitingSource {
    connections: u32,
    freed: Arc<Notify>,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    Total,
    /// This source has as many places as one source may have.
    Source,
}

impl Places {
    pub(super) fn new(most: u32, most_per_source: u32) -> Arc<Self> {
        Arc::new(Self {
            most: AtomicU32::new(most),
            most_per_source: AtomicU32::new(most_per_source),
            taken: Mutex::default(),
            freed: Notify::new(),
        })
    }

    pub(super) fn resize(&self, most: u32, most_per_source: u32) {
        self.most.store(most, Ordering::Release);
        self.most_per_source.store(most_per_source, Ordering::Release);
        self.freed.notify_waiters();
        for source in self.taken().waiting.values() {
            source.freed.notify_waiters();
        }
    }

    /// Registers a connection of this source that waits for a place; it is woken when there may be
    /// one.
    pub(super) fn wait_for(self: &Arc<Self>, source: Source) -> PlaceWait {
        let mut taken = self.taken();
        let waiting = taken.waiting.entry(source).or_default();
        waiting.connections += 1;
        PlaceWait {
            freed: Arc::clone(&waiting.freed),
            places: Arc::clone(self),
            source,
        }
    }

    /// Wakes one connection that can have a place now: one of the source `first`, whose own place
    /// has become free, or else one of any source that is below its limit.
    fn wake_one(&self, mut taken: MutexGuard<'_, Taken>, first: Source) {
        if taken.total >= self.most.load(Ordering::Acquire) {
            return;
        }
        let most = self.most_per_source.load(Ordering::Acquire);
        let Taken {
            by_source, waiting, ..
        } = &mut *taken;
        let has_room = |source: &Source| {
            *source == Source::Balancer || by_source.get(source).is_none_or(|taken| *taken < most)
        };
        let next = match waiting.get(&first).filter(|_| has_room(&first)) {
            Some(next) => Some(next),
            None => waiting
                .iter()
                .find(|(source, _)| has_room(source))
                .map(|(_, next)| next),
        };
        let freed = next.map(|next| Arc::clone(&next.freed));
        drop(taken);
        if let Some(freed) = freed {
            freed.notify_one();
        }
    }

    pub(super) fn usage(&self) -> Usage {
        Usage {
            used: self.taken().total,
            most: self.most.load(Ordering::Acquire),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.taken().total >= self.most.load(Ordering::Acquire)
    }

    pub(super) fn take(self: &Arc<Self>, source: Option<IpAddr>) -> Result<AdmissionPlace, Full> {
        self.take_for(Source::Network(source.map(network)))
    }

    pub(super) fn take_for(self: &Arc<Self>, source: Source) -> Result<AdmissionPlace, Full> {
        let mut taken = self.taken();
        if taken.total >= self.most.load(Ordering::Acquire) {
            return Err(Full::Total);
        }
        taken.count(source, self.most_per_source.load(Ordering::Acquire))?;
        taken.total += 1;
        Ok(AdmissionPlace {
            places: Arc::clone(self),
            source,
        })
    }

    /// Nothing is kept of any source.
    #[cfg(test)]
    pub(super) fn is_untouched(&self) -> bool {
        let taken = self.taken();
        taken.by_source.is_empty() && taken.waiting.is_empty()
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection that waits for a place. It stops when this is dropped, and a wake-up that it has
/// not used goes to another connection.
#[derive(Debug)]
pub(super) struct PlaceWait {
    places: Arc<Places>,
    source: Source,
    freed: Arc<Notify>,
}

impl PlaceWait {
    /// A place, as soon as there is one. Cancel safe.
    pub(super) async fn place(&self) -> AdmissionPlace {
        loop {
            let mut freed = pin!(self.freed.notified());
            // Before the attempt, so that no place that becomes free after it is missed.
            freed.as_mut().enable();
            if let Ok(place) = self.places.take_for(self.source) {
                return place;
            }
            freed.await;
        }
    }
}

impl Drop for PlaceWait {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        if let Some(waiting) = taken.waiting.get_mut(&self.source) {
            waiting.connections -= 1;
            if waiting.connections == 0 {
                taken.waiting.remove(&self.source);
            }
        }
        self.places.wake_one(taken, self.source);
    }
}

/// A place among the connections that are logging in, or that wait for it; given back when dropped.
#[derive(Debug)]
pub struct AdmissionPlace {
    places: Arc<Places>,
    source: Source,
}

/// The source for which a place counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Network(Option<IpAddr>),
    /// A trusted balancer that has not named its client yet.
    Balancer,
}

impl Taken {
    /// `by_source` has at most as many entries as places are taken.
    fn count(&mut self, source: Source, most: u32) -> Result<(), Full> {
        let of_source = self.by_source.entry(source).or_default();
        if *of_source >= most && source != Source::Balancer {
            return Err(Full::Source);
        }
        *of_source += 1;
        Ok(())
    }

    fn forget(&mut self, source: Source) {
        if let Some(of_source) = self.by_source.get_mut(&source) {
            *of_source -= 1;
            if *of_source == 0 {
                self.by_source.remove(&source);
            }
        }
    }
}

impl AdmissionPlace {
    /// Counts the place for the source that a balancer has named.
    pub fn attribute(&mut self, source: Option<IpAddr>) -> Result<(), Full> {
        let source = Source::Network(source.map(network));
        let mut taken = self.places.taken();
        taken.count(source, self.places.most_per_source.load(Ordering::Acquire))?;
        taken.forget(self.source);
        self.source = source;
        Ok(())
    }
}

impl Drop for AdmissionPlace {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.total -= 1;
        taken.forget(self.source);
        self.places.wake_one(taken, self.source);
        self.places.freed.notify_waiters();
    }
}
