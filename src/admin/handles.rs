//! What the room is given of the others: values to read, and what to ask for.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use arc_swap::ArcSwapOption;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::metrics::Metrics;
use super::operations::Operations;
use crate::auth::hba::rows::HbaRow;
use crate::auth::ident::IdentRow;
use crate::cluster::snapshot::Snapshot;
use crate::config::{LocalMember, Route, Secret};

/// Everything the room reads. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handles {
    /// In the order of the configuration; the first is the one meant without `?cluster=`.
    pub clusters: Vec<ClusterView>,
    pub access: AccessView,
    pub operations: Arc<dyn Operations>,
    /// Of `http.token_file`; exchanged when the file or the key changes, empty where there is none.
    pub token: Arc<ArcSwapOption<Secret>>,
    pub readiness: Arc<Readiness>,
    /// Complete: nothing is registered after it is shared.
    pub registry: Arc<Registry>,
    /// Registered in `registry`.
    pub metrics: Metrics,
}

/// Who may log in, as rows: what is in service when it is asked.
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
    /// Read-write clients are held while there is no leader, so `is-ready-rw` stays true meanwhile.
    pub holds_read_write: bool,
    /// Asks the sources and probes to look again now. Must return at once; whoever makes it bounds its rate.
    pub look_again: Arc<dyn Fn() + Send + Sync>,
}

impl ClusterView {
    /// The route that "fit to read from" means where none is named: `read-only`, else the first.
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

/// Where the process is in its life. Only ever goes forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Not every listener is bound yet.
    Starting,
    Accepting,
    /// Ending: no new sessions.
    Draining,
}

/// A latch: set by the runtime, read by everyone.
#[derive(Debug, Default)]
pub struct Readiness(AtomicU8);

impl Readiness {
    pub fn new() -> Self {
        Self::default()
    }

    /// All listeners are bound. Has no effect once draining.
    pub fn accepting(&self) {
        self.0.fetch_max(1, Ordering::AcqRel);
    }

    /// The process is ending; there is no way back.
    pub fn draining(&self) {
        self.0.fetch_max(2, Ordering::AcqRel);
    }

    pub fn phase(&self) -> Phase {
        match self.0.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Accepting,
            _ => Phase::Draining,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn readiness_only_goes_forward() {
        let readiness = Readiness::new();
        assert_eq!(readiness.phase(), Phase::Starting);
        readiness.accepting();
        assert_eq!(readiness.phase(), Phase::Accepting);
        readiness.draining();
        readiness.accepting();
        assert_eq!(readiness.phase(), Phase::Draining);
    }
}
