//! Keeps the pools: closes what is to be closed, lets sessions go that have waited too long, and
//! asks for connections that are to be ready.

use std::collections::HashMap;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::select_all;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::metrics::CloseReason;
use super::pools::Pools;
use crate::cluster::snapshot::Snapshot;
use crate::session::stream::SessionStream;

/// Between two looks while a session waits: this is how exact its time-outs are.
const QUICK: Duration = Duration::from_millis(50);
/// Between two looks at everything.
const SLOW: Duration = Duration::from_secs(1);

/// How the pools wake the keeper.
#[derive(Debug, Default)]
pub(super) struct Signals {
    /// Sessions that wait in all pools.
    waiting: AtomicUsize,
    /// The keeper looks every [`QUICK`] already.
    is_quick: AtomicBool,
    /// A session waits for a place under `server.max_connections`.
    wants_seat: AtomicBool,
    wake: Notify,
}

impl Signals {
    /// The queue of a pool had `before` sessions, and has `now`.
    pub(super) fn waiting(&self, before: usize, now: usize) {
        if now < before {
            self.waiting.fetch_sub(before - now, Ordering::SeqCst);
        } else if now > before {
            self.waiting.fetch_add(now - before, Ordering::SeqCst);
            if !self.is_quick.load(Ordering::SeqCst) {
                self.wake.notify_one();
            }
        }
    }

    pub(super) fn want_seat(&self) {
        if !self.wants_seat.swap(true, Ordering::SeqCst) {
            self.wake.notify_one();
        }
    }

    /// Decides how long the keeper sleeps. It stays quick for a while after the last session, so
    /// that sessions that wait now and then do not wake it each time. `was_quiet`: nobody has
    /// waited for [`SLOW`].
    fn pace(&self, was_quiet: bool) -> Duration {
        self.is_quick.store(!was_quiet, Ordering::SeqCst);
        // A session that has come just now has seen that it has to wake the keeper, or is seen
        // here.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.is_quick.store(true, Ordering::SeqCst);
            return QUICK;
        }
        if was_quiet { SLOW } else { QUICK }
    }
}

impl<S: SessionStream> Pools<S> {
    /// Closes what is to be closed, lets sessions go that have waited too long, and keeps
    /// `min_connections`, until `stop`. At its end nothing idles; sessions may still have
    /// connections.
    pub async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let mut snapshots = HashMap::new();
        let (mut look, mut last_wait) = (Instant::now(), None);
        loop {
            let now = Instant::now();
            if self.parts.signals.waiting.load(Ordering::SeqCst) > 0 {
                last_wait = Some(now);
            }
            let was_quiet = last_wait.is_none_or(|last| last + SLOW <= now);
            let pace = self.parts.signals.pace(was_quiet);
            let wants_seat = self.parts.signals.wants_seat.load(Ordering::SeqCst);
            let has_new_snapshot = tokio::select! {
                () = stop.cancelled() => break,
                () = sleep_until(look.min(now + pace)) => false,
                () = self.parts.signals.wake.notified() => false,
                () = self.parts.occupancy.seat_freed(), if wants_seat => {
                    self.parts.signals.wants_seat.store(false, Ordering::SeqCst);
                    false
                }
                () = new_snapshot(&mut snapshots) => true,
            };
            let now = Instant::now();
            let is_due = now >= look;
            if is_due || has_new_snapshot {
                self.watch(&mut snapshots);
                for pool in self.all() {
                    if is_due {
                        pool.close_unquiet();
                    }
                    pool.tick(now);
                }
            } else {
                for pool in self.with_waiting() {
                    pool.tick(now);
                }
            }
            if is_due {
                look = now + SLOW;
                self.forget_unused();
            }
        }
        for pool in self.all() {
            pool.close_idle(None, CloseReason::Retired);
        }
    }

    /// Subscribes to the snapshots of the clusters that have pools.
    fn watch(&self, snapshots: &mut Snapshots) {
        let pools = self.all();
        snapshots.retain(|cluster, _| pools.iter().any(|pool| pool.name().cluster == *cluster));
        for pool in pools {
            let cluster = Arc::clone(&pool.name().cluster);
            snapshots.entry(cluster).or_insert_with(|| {
                let mut snapshots = pool.cluster().subscribe();
                // The pools look at it now.
                snapshots.mark_unchanged();
                snapshots
            });
        }
    }
}

/// By cluster.
type Snapshots = HashMap<Arc<str>, watch::Receiver<Arc<Snapshot>>>;

/// Waits for the next snapshot of any cluster.
async fn new_snapshot(snapshots: &mut Snapshots) {
    if snapshots.is_empty() {
        return pending().await;
    }
    let (changed, index, _) = select_all(
        snapshots
            .values_mut()
            .map(|snapshots| Box::pin(snapshots.changed())),
    )
    .await;
    if changed.is_err() {
        // No handle of the cluster exists any more.
        let cluster = snapshots.keys().nth(index).map(Arc::clone);
        snapshots.retain(|known, _| Some(known) != cluster.as_ref());
    }
}
