//! Turns for cancel requests, a lane for each server: cancels for one server never wait for another
//! server.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Cancel requests that are being delivered to one server at the same time. Each takes a descriptor
/// here and a process there.
const AT_ONCE: usize = 32;

/// All lanes; a lane exists only while it is used.
#[derive(Debug)]
pub(super) struct Lanes<K: Eq + Hash + Clone>(Mutex<HashMap<K, Lane>>);

impl<K: Eq + Hash + Clone> Default for Lanes<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

#[derive(Debug)]
struct Lane {
    turns: Arc<Semaphore>,
    /// Waiting or being delivered.
    users: usize,
}

/// The right to deliver one cancel request; given back when dropped.
#[derive(Debug)]
pub(super) struct Turn<'a, K: Eq + Hash + Clone> {
    _permit: OwnedSemaphorePermit,
    _place: LanePosition<'a, K>,
}

/// A place in a lane; it is left when this is dropped.
#[derive(Debug)]
struct LanePosition<'a, K: Eq + Hash + Clone> {
    lanes: &'a Lanes<K>,
    server: K,
}

impl<K: Eq + Hash + Clone> Lanes<K> {
    /// Waits for a turn at this server: first come, first served. The caller limits how many wait,
    /// and for how long. Cancel safe.
    pub(super) async fn turn(&self, server: K) -> Turn<'_, K> {
        let (turns, place) = self.enter(server);
        let permit = turns.acquire_owned().await;
        Turn {
            _permit: permit.expect("a lane's semaphore is never closed"),
            _place: place,
        }
    }

    fn enter(&self, server: K) -> (Arc<Semaphore>, LanePosition<'_, K>) {
        let mut lanes = self.lock();
        let lane = lanes.entry(server.clone()).or_insert_with(|| Lane {
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            users: 0,
        });
        lane.users += 1;
        let place = LanePosition { lanes: self, server };
        (Arc::clone(&lane.turns), place)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Lane>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash + Clone> Drop for LanePosition<'_, K> {
    fn drop(&mut self) {
        let mut lanes = self.lanes.lock();
        if let Some(lane) = lanes.get_mut(&self.server) {
            lane.users -= 1;
            if lane.users == 0 {
                lanes.remove(&self.server);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use futures_util::future::join_all;
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn a_server_that_takes_no_cancels_holds_up_its_own_only() {
        let lanes = Lanes::default();
        let held = join_all((0..AT_ONCE).map(|_| lanes.turn(1))).await;
        assert!(timeout(SOON, lanes.turn(1)).await.is_err());
        let other = timeout(SOON, lanes.turn(2)).await.unwrap();
        let mut waits = std::pin::pin!(lanes.turn(1));
        assert!(timeout(SOON, &mut waits).await.is_err());
        drop(held);
        drop((waits.await, other));
        assert!(lanes.lock().is_empty(), "nothing is left behind");
    }
}
