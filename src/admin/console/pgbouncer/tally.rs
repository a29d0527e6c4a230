//! Sessions and server connections, counted by database and user as PgBouncer counts them.

use std::collections::{BTreeMap, BTreeSet};

use crate::admin::gather;
use crate::admin::handles::Handles;
use crate::admin::operations::Gathered;
use crate::admin::views::{PoolView, RouteView, ServerConnectionView, SessionView};

/// Everything that the tables are made of, of all processes.
pub(super) struct Seen {
    pub(super) sessions: Vec<SessionView>,
    pub(super) pools: Vec<PoolView>,
    pub(super) routes: Vec<RouteView>,
    pub(super) missing: Vec<String>,
}

impl Seen {
    pub(super) async fn look(handles: &Handles) -> Self {
        let pools = handles.operations.pools().await;
        let sessions = handles.operations.sessions().await;
        let mut missing = [pools.missing, sessions.missing].concat();
        missing.sort_unstable();
        missing.dedup();
        Self {
            sessions: sessions.value,
            pools: pools.value,
            routes: gather::routes(handles, &[]),
            missing,
        }
    }

    pub(super) fn gathered<T>(self, value: T) -> Gathered<T> {
        Gathered {
            value,
            missing: self.missing,
        }
    }

    /// Those of sessions, then the idle ones.
    pub(super) fn server_connections(&self) -> Vec<ServerConnectionView> {
        let held = self.sessions.iter().cloned();
        let held = held.filter_map(ServerConnectionView::of_session);
        let idle = self.pools.iter().flat_map(ServerConnectionView::idle_in);
        held.chain(idle).collect()
    }

    /// By database and user: the client's of sessions, the server's of what is idle.
    pub(super) fn pools(&self) -> BTreeMap<(String, String), PoolTally> {
        let mut all: BTreeMap<(String, String), PoolTally> = BTreeMap::new();
        for session in &self.sessions {
            let key = (session.database.clone(), session.user.clone());
            let tally = all.entry(key).or_default();
            tally.routes.insert(session.route.clone());
            if session.phase == "waiting" {
                tally.waiting += 1;
                let waited = session.waiting_s.unwrap_or_default().saturating_mul(1000);
                tally.longest_wait_ms = tally.longest_wait_ms.max(waited);
            } else {
                tally.clients += 1;
            }
            tally.active += usize::from(!session.member.is_empty());
        }
        for pool in &self.pools {
            let key = (pool.database.clone(), pool.user.clone());
            let tally = all.entry(key).or_default();
            tally.routes.insert(pool.route.clone());
            tally.longest_wait_ms = tally.longest_wait_ms.max(pool.longest_wait_ms);
            for member in &pool.members {
                tally.idle += member.idle;
                tally.opening += member.opening;
            }
        }
        all
    }

    /// The mode of these routes' pools in PgBouncer's words; `None`: they differ.
    pub(super) fn pool_mode(&self, routes: &BTreeSet<String>) -> Option<&'static str> {
        let mode = |route_name: &String| {
            let route = self.routes.iter().find(|known| known.name == *route_name);
            match route.map(|route| route.pool.as_str()) {
                Some("transaction") => "transaction",
                // The console, where PgBouncer calls it so.
                None if route_name.is_empty() => "statement",
                // A session has its connection to its end, with a pool or without.
                _ => "session",
            }
        };
        let modes: BTreeSet<&str> = routes.iter().map(mode).collect();
        let mut modes = modes.into_iter();
        modes.next().filter(|_| modes.next().is_none())
    }
}

/// A database and a user.
#[derive(Debug, Default)]
pub(super) struct PoolTally {
    pub(super) routes: BTreeSet<String>,
    /// Those that do not wait.
    pub(super) clients: usize,
    pub(super) waiting: usize,
    /// Server connections that sessions have.
    pub(super) active: usize,
    pub(super) idle: usize,
    pub(super) opening: usize,
    pub(super) longest_wait_ms: u64,
}
