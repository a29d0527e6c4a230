//! All pools of the process.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

use super::keeper::Signals;
use super::key::{PoolName, Recipe};
use super::metrics::{CloseReason, ConnectionCollector, PoolMetrics};
use super::permit::OpenPermit;
use super::pool::Pool;
use super::view::PoolView;
use crate::backend::{OrderlyStream, ServerStream};
use crate::cluster::ClusterHandle;
use crate::cluster::snapshot::MemberName;
use crate::config::Route;
use crate::session::occupancy::Occupancy;
use crate::session::stream::SessionStream;

/// A connection to open for which no session waits (`min_connections`): the receiver opens it on a
/// worker and releases it, or drops this.
#[derive(Debug)]
pub struct Spare<S: SessionStream = ServerStream> {
    pub(in crate::session) recipe: Arc<Recipe>,
    pub(in crate::session) permit: OpenPermit<S>,
}

/// Makes the worker that calls it drive the connection. `false`: the connection works, and its old
/// worker goes on driving it, as with TLS. After an error it is closed.
pub type Rehome<S> = fn(&mut OrderlyStream<S>) -> io::Result<bool>;

/// Which connections are replaced; see [`Pools::reconnect`].
#[derive(Debug, Clone, Copy)]
pub enum Reconnect<'a> {
    Member {
        cluster: &'a str,
        member: &'a MemberName,
    },
    Route(&'a str),
    All,
}

/// What the pools share.
#[derive(Debug)]
pub(super) struct Parts<S: SessionStream> {
    pub(super) pools: Weak<Pools<S>>,
    pub(super) occupancy: Arc<Occupancy>,
    pub(super) metrics: PoolMetrics,
    pub(super) rehome: Rehome<S>,
    pub(super) signals: Signals,
    /// See [`Pools::retire`].
    pub(super) is_retired: AtomicBool,
    spares: mpsc::Sender<Spare<S>>,
}

impl<S: SessionStream> Parts<S> {
    /// Gives the places back if too many wait to be opened: the keeper asks again.
    pub(super) fn send_spare(&self, spare: Spare<S>) {
        let _ = self.spares.try_send(spare);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Pools<S: SessionStream = ServerStream> {
    pools: Mutex<HashMap<PoolName, Arc<Pool<S>>>>,
    pub(super) parts: Arc<Parts<S>>,
}

impl<S: SessionStream> Pools<S> {
    pub fn new(
        occupancy: Arc<Occupancy>,
        metrics: PoolMetrics,
        rehome: Rehome<S>,
        spares: mpsc::Sender<Spare<S>>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|pools| Self {
            pools: Mutex::default(),
            parts: Arc::new(Parts {
                pools: Weak::clone(pools),
                occupancy,
                metrics,
                rehome,
                signals: Signals::default(),
                is_retired: AtomicBool::new(false),
                spares,
            }),
        })
    }

    /// The pool of this route, server user and database. It is made at its first use, and dropped
    /// when it has no session and no connection any more. `None`: the route has no pool.
    pub(in crate::session) fn pool(
        self: &Arc<Self>,
        route: &Arc<Route>,
        cluster: &ClusterHandle,
        user: &Bytes,
        database: &Bytes,
    ) -> Option<Arc<Pool<S>>> {
        route.session_pool()?;
        let name = PoolName {
            route: Arc::clone(&route.name),
            cluster: Arc::clone(&route.cluster),
            user: user.clone(),
            database: database.clone(),
        };
        let mut pools = self.lock();
        if let Some(known) = pools.get(&name) {
            let known = Arc::clone(known);
            drop(pools);
            known.use_route(route);
            return Some(known);
        }
        let pool = Pool::new(name.clone(), route, cluster, &self.parts)?;
        pools.insert(name, Arc::clone(&pool));
        drop(pools);
        if self.parts.is_retired.load(Ordering::Acquire) {
            pool.reconfigure(Some(route));
        }
        Some(pool)
    }

    /// From now on no connection idles, for the rest of the process: another process serves new
    /// sessions, or the router stops. Sessions here still get connections.
    pub fn retire(&self) {
        // A pool that is made meanwhile is in the list, or sees this.
        self.parts.is_retired.store(true, Ordering::Release);
        for pool in self.all() {
            pool.reconfigure(None);
        }
    }

    /// After a reload: sizes and times change for pools that exist. A pool whose route is gone, or
    /// has no pool any more, keeps no idle connection.
    pub fn reconfigure(&self, routes: &[Arc<Route>]) {
        for pool in self.all() {
            let name = pool.name();
            let is_its_own = |route: &&Arc<Route>| route.name == name.route && route.cluster == name.cluster;
            pool.reconfigure(routes.iter().find(is_its_own));
        }
    }

    /// Connections that exist now are not used for another lease: idle ones close now, leased ones
    /// at their release. Returns how many there are.
    pub fn reconnect(&self, which: Reconnect<'_>) -> usize {
        let mut count = 0;
        for pool in self.all() {
            let name = pool.name();
            count += match which {
                Reconnect::Member { cluster, member } if *name.cluster == *cluster => {
                    pool.reconnect(Some(member))
                }
                Reconnect::Route(route) if *name.route == *route => pool.reconnect(None),
                Reconnect::All => pool.reconnect(None),
                Reconnect::Member { .. } | Reconnect::Route(_) => 0,
            };
        }
        count
    }

    /// Closes the connection to this member that has been idle longest, to make room under
    /// `server.max_connections`. `false`: there is none.
    pub(in crate::session) fn evict_oldest_idle_on(&self, cluster: &str, member: &MemberName) -> bool {
        let mut pools: Vec<_> = self
            .all_of(cluster)
            .into_iter()
            .filter_map(|pool| Some((pool.oldest_idle(member)?, pool)))
            .collect();
        pools.sort_by_key(|(since, _)| *since);
        pools.into_iter().any(|(_, pool)| pool.evict(member))
    }

    /// Connections to this member that no session has.
    pub fn idle_on(&self, cluster: &str, member: &MemberName) -> usize {
        let pools = self.all_of(cluster);
        pools.iter().map(|pool| pool.idle_on(member)).sum()
    }

    /// The numbers of all pools, for people and programs.
    pub fn views(&self) -> Vec<PoolView> {
        self.all().iter().map(|pool| pool.view()).collect()
    }

    /// The same, with each idle connection.
    pub fn views_with_idle(&self) -> Vec<PoolView> {
        self.all().iter().map(|pool| pool.view_with_idle()).collect()
    }

    pub(super) fn all(&self) -> Vec<Arc<Pool<S>>> {
        self.lock().values().map(Arc::clone).collect()
    }

    fn all_of(&self, cluster: &str) -> Vec<Arc<Pool<S>>> {
        let pools = self.lock();
        let own = pools.values().filter(|pool| *pool.name().cluster == *cluster);
        own.map(Arc::clone).collect()
    }

    /// Those in which sessions wait.
    pub(super) fn with_waiting(&self) -> Vec<Arc<Pool<S>>> {
        let pools = self.lock();
        let waiting = pools
            .values()
            .filter(|pool| pool.waiting.load(Ordering::Acquire) > 0);
        waiting.map(Arc::clone).collect()
    }

    /// Drops the pools that have nothing and that nobody has.
    pub(super) fn forget_unused(&self) {
        let mut unused = Vec::new();
        self.lock().retain(|_, pool| {
            // No session can have got it since: this is where sessions find it.
            let is_used = Arc::strong_count(pool) > 1 || !pool.is_unused();
            if !is_used {
                unused.push(Arc::clone(pool));
            }
            is_used
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PoolName, Arc<Pool<S>>>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: SessionStream + std::fmt::Debug + Send + 'static> Pools<S> {
    /// Registers the numbers of connections.
    pub fn register_connections(self: &Arc<Self>, into: &mut Registry) {
        into.register_collector(Box::new(ConnectionCollector(Arc::downgrade(self))));
    }
}

impl<S: SessionStream> Drop for Pools<S> {
    fn drop(&mut self) {
        // Idle connections hold their pool.
        for pool in self.all() {
            pool.close_idle(None, CloseReason::Retired);
        }
    }
}
