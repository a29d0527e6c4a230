//! What this room gets from the others: values to read, and operations to ask for.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use arc_swap::ArcSwapOption;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::history::History;
use super::holding::HoldOperations;
use super::inventory::Inventory;
use super::metrics::Metrics;
use super::operations::Operations;
use crate::auth::hba::rows::HbaRow;
use crate::auth::ident::IdentRow;
use crate::cluster::snapshot::Snapshot;
use crate::config::{LocalMember, Route, Secret};
use crate::events::Events;
use crate::session::disabled::DisabledRoutes;

/// Everything the room reads. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handles {
    /// In the order of the configuration; requests without `?cluster=` are about the first.
    pub clusters: Vec<ClusterView>,
    pub access: AccessView,
    pub operations: Arc<dyn Operations>,
    pub holding: Arc<dyn HoldOperations>,
    pub inventory: Arc<dyn Inventory>,
    /// The content of `http.token_file`; replaced when the file or the key changes, empty if there
    /// is none.
    pub token: Arc<ArcSwapOption<Secret>>,
    pub readiness: Arc<Readiness>,
    /// [`Operations::disable_route`] changes it.
    pub disabled_routes: Arc<DisabledRoutes>,
    /// Complete: nothing is registered after it is shared.
    pub registry: Arc<Registry>,
    /// Registered in `registry`.
    pub metrics: Metrics,
    pub events: Events,
    /// The thread of HTTP adds the points.
    pub history: History,
    /// `/ui` is there.
    pub has_page: bool,
}

/// The rules of authentication as rows: those in use at the moment of the call.
#[derive(Clone)]
pub struct AccessView {
    pub hba: Arc<dyn Fn() -> Vec<HbaRow> + Send + Sync>,
    pub ident: Arc<dyn Fn() -> Vec<IdentRow> + Send + Sync>,
}

impl fmt::Debug for AccessView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessView").finish_non_exhaustive()
    }
}

/// Whether clients of a route that come now are held.
pub(super) type Holds = Arc<dyn Fn(&Arc<Route>) -> bool + Send + Sync>;

/// One cluster as this room sees it.
#[derive(Clone)]
pub struct ClusterView {
    pub name: Arc<str>,
    pub snapshot: watch::Receiver<Arc<Snapshot>>,
    pub local_member: LocalMember,
    /// Of the service account; `/group/*` shows it.
    pub dbname: String,
    /// The read-write routes to it that a listener has.
    pub read_write: Vec<Arc<Route>>,
    /// The read-only routes to it that a listener has.
    pub read_only: Vec<Arc<Route>>,
    /// Clients of this route that come now are held until a server can serve them, so it stays
    /// ready.
    pub holds: Holds,
    /// Starts polls and probes now. It must return at once; its maker limits its rate.
    pub look_again: Arc<dyn Fn() + Send + Sync>,
}

impl ClusterView {
    /// The routes to it that a listener has.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.read_write.iter().chain(&self.read_only)
    }

    /// The route for questions without one: `read-only`, else the first.
    pub fn default_read_only(&self) -> Option<&Route> {
        let named = self.read_only.iter().find(|route| &*route.name == "read-only");
        named.or(self.read_only.first()).map(|route| &**route)
    }
}

impl fmt::Debug for ClusterView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterView")
            .field("name", &self.name)
            .field("local_member", &self.local_member)
            .finish_non_exhaustive()
    }
}

/// Whether the router wants clients, and where it is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Not every listener is bound yet.
    Starting,
    Accepting,
    /// An operator has drained it: it serves as before, and reports that it is not ready.
    Drained,
    /// Ending soon: it serves as before, and reports that it is not ready.
    Leaving,
    /// Ending: no new sessions.
    Draining,
}

impl Phase {
    /// The word for it in HTTP and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Accepting => "ready",
            Self::Drained => "drain",
            Self::Leaving | Self::Draining => "stopping",
        }
    }

    /// Why it is not ready, if it is not.
    pub fn not_ready(self) -> Option<&'static str> {
        match self {
            Self::Accepting => None,
            Self::Starting => Some("the listeners are not ready yet"),
            Self::Drained => Some("the router is drained"),
            Self::Leaving | Self::Draining => Some("the router is shutting down"),
        }
    }
}

/// A latch, which only goes forward, and beside it the operator's choice. The runtime sets it,
/// everything reads it.
#[derive(Debug, Default)]
pub struct Readiness {
    step: AtomicU8,
    is_drained: AtomicBool,
}

impl Readiness {
    pub fn new() -> Self {
        Self::default()
    }

    /// All listeners are bound. Has no effect once leaving or draining.
    pub fn accepting(&self) {
        self.step.fetch_max(1, Ordering::AcqRel);
    }

    /// The process will end; there is no way back.
    pub fn leaving(&self) {
        self.step.fetch_max(2, Ordering::AcqRel);
    }

    /// The process is ending; there is no way back.
    pub fn draining(&self) {
        self.step.fetch_max(3, Ordering::AcqRel);
    }

    /// The operator's choice: no more clients, or clients again.
    pub fn drain(&self, is_drained: bool) {
        self.is_drained.store(is_drained, Ordering::Release);
    }

    pub fn is_drained(&self) -> bool {
        self.is_drained.load(Ordering::Acquire)
    }

    pub fn phase(&self) -> Phase {
        match self.step.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 if self.is_drained() => Phase::Drained,
            1 => Phase::Accepting,
            2 => Phase::Leaving,
            _ => Phase::Draining,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn readiness_only_goes_forward_and_a_drain_is_taken_back() {
        let readiness = Readiness::new();
        assert_eq!(readiness.phase(), Phase::Starting);
        readiness.accepting();
        assert_eq!(readiness.phase(), Phase::Accepting);
        readiness.drain(true);
        assert_eq!(readiness.phase(), Phase::Drained);
        readiness.drain(false);
        assert_eq!(readiness.phase(), Phase::Accepting);
        readiness.leaving();
        readiness.drain(true);
        assert_eq!(readiness.phase(), Phase::Leaving);
        readiness.draining();
        readiness.leaving();
        readiness.accepting();
        assert_eq!(readiness.phase(), Phase::Draining);
    }
}
