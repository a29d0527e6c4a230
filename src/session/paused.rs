//! Routes that an operator has paused at this router: no new transaction begins, and clients wait.
//!
//! A pause ends by itself at its time limit, so that a forgotten one holds nobody for ever.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;

/// The longest pause.
pub const MAX_PAUSE: Duration = Duration::from_hours(1);
/// Routes that can be paused at once; further ones are refused.
const MAX_PAUSED: usize = 1024;

/// The paused routes, each with the moment at which its pause ends. Reading takes no lock.
#[derive(Debug)]
pub struct PausedRoutes {
    until: ArcSwap<BTreeMap<Arc<str>, Instant>>,
    changed: watch::Sender<()>,
}

impl Default for PausedRoutes {
    fn default() -> Self {
        Self {
            until: ArcSwap::default(),
            changed: watch::Sender::new(()),
        }
    }
}

impl PausedRoutes {
    /// Pauses the route, or gives its pause another end. `false`: too many routes are paused.
    #[must_use]
    pub fn pause(&self, route: &str, until: Instant) -> bool {
        let mut is_done = false;
        self.change(|paused| {
            is_done = paused.contains_key(route) || paused.len() < MAX_PAUSED;
            if is_done {
                paused.insert(route.into(), until);
            }
        });
        is_done
    }

    /// `false`: it was not paused.
    pub fn unpause(&self, route: &str) -> bool {
        let mut was_paused = false;
        self.change(|paused| was_paused = paused.remove(route).is_some());
        was_paused
    }

    /// When the route's pause ends; `None`: it is not paused.
    pub fn until(&self, route: &str, now: Instant) -> Option<Instant> {
        self.until.load().get(route).copied().filter(|until| *until > now)
    }

    /// All pauses, in the order of the routes' names.
    pub fn all(&self) -> Arc<BTreeMap<Arc<str>, Instant>> {
        self.until.load_full()
    }

    /// Says when a pause begins, ends, or gets another end.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Forgets the pauses that are over.
    pub(super) fn expire(&self) {
        self.change(|_| {});
    }

    fn change(&self, mut change: impl FnMut(&mut BTreeMap<Arc<str>, Instant>)) {
        let now = Instant::now();
        self.until.rcu(|paused| {
            let mut paused = BTreeMap::clone(paused);
            paused.retain(|_, until| *until > now);
            change(&mut paused);
            paused
        });
        self.changed.send_replace(());
    }
}
