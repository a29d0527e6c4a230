//! Routes that an operator has paused at this router: no new transaction begins, and clients wait.
//!
//! A pause ends by itself at its time limit, so that a forgotten one holds nobody for ever.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;

use super::held_routes::{HoldChange, HoldListener};
use crate::cluster::snapshot::OrderedBy;

/// The longest pause.
pub const MAX_PAUSE: Duration = Duration::from_hours(1);
/// Routes that can be paused at once; further ones are refused.
const MAX_PAUSED: usize = 1024;

/// One route's pause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    pub since: Instant,
    pub until: Instant,
    /// Who ordered it last; `None`: nobody says, as after a restart.
    pub by: Option<OrderedBy>,
}

/// The paused routes. Reading takes no lock.
#[derive(Debug)]
pub struct PausedRoutes {
    pauses: ArcSwap<BTreeMap<Arc<str>, Pause>>,
    changed: watch::Sender<()>,
    pub(super) listener: HoldListener,
}

impl Default for PausedRoutes {
    fn default() -> Self {
        Self {
            pauses: ArcSwap::default(),
            changed: watch::Sender::new(()),
            listener: HoldListener::default(),
        }
    }
}

impl PausedRoutes {
    /// Pauses the route, or gives its pause another end. `false`: too many routes are paused.
    #[must_use]
    pub fn pause(&self, route: &str, until: Instant) -> bool {
        self.pause_by(route, until, None)
    }

    /// As [`Self::pause`], by order of somebody.
    #[must_use]
    pub fn pause_by(&self, route: &str, until: Instant, by: Option<&OrderedBy>) -> bool {
        let mut is_done = false;
        let now = Instant::now();
        self.change(|paused| {
            is_done = paused.contains_key(route) || paused.len() < MAX_PAUSED;
            if is_done {
                let pause = paused.entry(route.into()).or_insert(Pause {
                    since: now,
                    until,
                    by: None,
                });
                pause.until = until;
                if by.is_some() {
                    pause.by = by.cloned();
                }
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
        let until = self.pauses.load().get(route).map(|pause| pause.until);
        until.filter(|until| *until > now)
    }

    /// All pauses, in the order of the routes' names.
    pub fn all(&self) -> Arc<BTreeMap<Arc<str>, Pause>> {
        self.pauses.load_full()
    }

    /// Says when a pause begins, ends, or gets another end.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Forgets the pauses that are over.
    pub(super) fn expire(&self) {
        self.change(|_| {});
    }

    fn change(&self, mut change: impl FnMut(&mut BTreeMap<Arc<str>, Pause>)) {
        let now = Instant::now();
        let before = self.pauses.rcu(|paused| {
            let mut paused = BTreeMap::clone(paused);
            paused.retain(|_, pause| pause.until > now);
            change(&mut paused);
            paused
        });
        self.changed.send_replace(());
        // Whoever has replaced these pauses, and nobody else, has forgotten those that were over.
        for (route, pause) in before.iter().filter(|(_, pause)| pause.until <= now) {
            self.listener.hear(|| HoldChange::PauseExpired {
                route: Arc::clone(route),
                after: now.duration_since(pause.since),
                by: pause.by.clone(),
            });
        }
    }
}
