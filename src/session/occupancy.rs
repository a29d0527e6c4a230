//! How many sessions each member has, which member is next, and to which members a connection
//! failed lately.
//!
//! A session is counted on a member before it connects there, so that two simultaneous logins do
//! not choose the same member. One lock covers the choice and the count. It is held for
//! microseconds, and no other lock is taken under it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::registry::Registry as Into;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::connect_backoff::ConnectBackoff;
pub use super::gate::GateLoad;
use super::gate::{Gate, Gates};
use super::held_routes::{HeldRoute, HoldChange};
use super::paused::PausedRoutes;
use crate::cluster::snapshot::{MemberName, Snapshot};
use crate::config::{self, Route, Source};
use crate::routing::{self, Choice, Turns};

/// A cluster and one of its members.
pub(super) type MemberKey = (Arc<str>, MemberName);

/// Shared by all workers.
#[derive(Debug, Default)]
pub struct Occupancy {
    inner: Mutex<Inner>,
    gates: Gates,
    /// A seat was given back.
    freed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    /// Sessions on each member, those that are connecting included. No entry is 0.
    seats: HashMap<MemberKey, usize>,
    /// By route.
    turns: HashMap<Arc<str>, Turns>,
    backoff: ConnectBackoff,
}

impl Occupancy {
    /// The gate of this route; the same one for all its listeners, and after a reload.
    pub fn gate(&self, route: &Arc<Route>) -> Arc<Gate> {
        self.gates.of(route)
    }

    /// Clients are held from the beginning, as the process before this one would. To be called
    /// before there are gates.
    pub fn assume_served(&self) {
        self.gates.assume_served();
    }

    /// The routes that hold their clients, by name.
    pub fn held_routes(&self) -> Vec<HeldRoute> {
        self.gates.held_routes(Instant::now())
    }

    /// How many clients each of them holds.
    pub fn held_clients(&self) -> HashMap<String, usize> {
        let held = self.held_routes().into_iter();
        held.map(|held| (held.route.to_string(), held.clients)).collect()
    }

    /// What each route's gate has of its limits.
    pub fn gate_loads(&self) -> Vec<GateLoad> {
        self.gates.loads()
    }

    /// `hear` is told when holds begin and end. It must return at once. The first one counts.
    pub fn on_hold_change(&self, hear: impl Fn(HoldChange) + Send + Sync + 'static) {
        self.paused_routes().listener.set(Box::new(hear));
    }

    /// The routes that an operator has paused.
    pub fn paused_routes(&self) -> &Arc<PausedRoutes> {
        self.gates.paused()
    }

    /// Whether a client of this route that comes now is held until a server can serve it. `load`:
    /// the cluster's newest snapshot.
    pub fn holds(&self, route: &Arc<Route>, load: impl Fn() -> Arc<Snapshot>) -> bool {
        self.gates.of(route).holds_logins(load, route)
    }

    /// The metrics of gates, and of what sessions count for their route.
    pub fn register(&self, into: &mut Into) {
        self.gates.register(into);
    }

    /// Opens and shuts the gates of one cluster's routes, until `stop`, or until the cluster is
    /// removed.
    pub(crate) async fn follow(&self, snapshots: watch::Receiver<Arc<Snapshot>>, stop: CancellationToken) {
        self.gates.follow(snapshots, stop).await;
    }

    /// The members that may serve a session of `client` now, in order of preference, and a seat on
    /// the first one that has room. `None` if every candidate is full; without any candidate the
    /// choice has no seat. It uses one turn of the route.
    pub(super) fn choose(
        self: &Arc<Self>,
        cluster: &config::Cluster,
        route: &Route,
        client: Option<IpAddr>,
        snapshot: &Snapshot,
    ) -> Option<(Choice, Option<Seat>)> {
        let mut inner = self.lock();
        let choice = inner.choose(cluster, route, client, snapshot);
        if choice.candidates.is_empty() {
            return Some((choice, None));
        }
        let most = cluster.max_connections;
        let free = choice.candidates.iter().find_map(|candidate| {
            let key = (Arc::clone(&cluster.name), candidate.member.clone());
            inner.seat(&key, most).then_some(key)
        })?;
        drop(inner);
        Some((choice, Some(self.seat(free))))
    }

    /// A seat on this member if it has fewer than `most` sessions; 0 is no limit.
    pub(super) fn reserve(
        self: &Arc<Self>,
        cluster: &Arc<str>,
        member: &MemberName,
        most: u32,
    ) -> Option<Seat> {
        let key = (Arc::clone(cluster), member.clone());
        let is_counted = self.lock().seat(&key, most);
        is_counted.then(|| self.seat(key))
    }

    /// Sessions on a member, those connecting included.
    pub fn sessions_on(&self, cluster: &Arc<str>, member: &MemberName) -> usize {
        self.lock().sessions_on(cluster, member)
    }

    /// Sessions on each member, those connecting included.
    pub fn loads(&self) -> Vec<((Arc<str>, MemberName), usize)> {
        let inner = self.lock();
        inner
            .seats
            .iter()
            .map(|(key, load)| (key.clone(), *load))
            .collect()
    }

    /// A session is about to connect to the member.
    pub(super) fn connecting(&self, cluster: &Arc<str>, member: &MemberName) {
        self.lock().backoff.connecting(cluster, member, Instant::now());
    }

    /// A connection to the member failed.
    pub(super) fn failed(&self, cluster: &Arc<str>, member: &MemberName) {
        self.lock().backoff.failed(cluster, member, Instant::now());
    }

    /// The member answered like a server.
    pub(super) fn answered(&self, cluster: &Arc<str>, member: &MemberName) {
        self.lock().backoff.answered(cluster, member);
    }

    /// Whether sessions prefer other members now, because a connection to this one failed.
    pub(super) fn is_backing_off(&self, cluster: &Arc<str>, member: &MemberName) -> bool {
        self.lock()
            .backoff
            .is_backing_off(cluster, member, Instant::now())
    }

    /// A connection of a pool of this cluster idles: a session that waits for a place may have it.
    pub(super) fn idles(&self, cluster: &Arc<str>) {
        self.gates.freed(cluster);
    }

    /// Waits until a seat is given back anywhere; one that was given back since the last call
    /// counts. For one waiter.
    pub(super) async fn seat_freed(&self) {
        self.freed.notified().await;
    }

    fn seat(self: &Arc<Self>, key: MemberKey) -> Seat {
        Seat {
            occupancy: Arc::clone(self),
            key,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while it is held leaves a count wrong by one at most; that is no reason to end
        // every session.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn choose(
        &mut self,
        cluster: &config::Cluster,
        route: &Route,
        client: Option<IpAddr>,
        snapshot: &Snapshot,
    ) -> Choice {
        if !self.turns.contains_key(&route.name) {
            self.turns.insert(Arc::clone(&route.name), Turns::default());
        }
        let Self {
            seats,
            turns,
            backoff,
        } = self;
        let Some(turns) = turns.get_mut(&route.name) else {
            return Choice::default();
        };
        let now = Instant::now();
        let key = |member: &MemberName| (Arc::clone(&cluster.name), member.clone());
        let mut asked = routing::ChoiceInput {
            client,
            zone: cluster.placement.zone.as_deref(),
            listed: match &cluster.source {
                Source::Servers(servers) => servers,
                Source::Patroni(_) => &[],
            },
            sessions_on: &|member| seats.get(&key(member)).copied().unwrap_or_default(),
            is_backing_off: &|member| backoff.is_backing_off(&cluster.name, member, now),
            chance: &mut routing::chance,
            turns,
        };
        routing::candidates(snapshot, route, &mut asked)
    }

    /// Counts one more session if there is room for it.
    fn seat(&mut self, key: &MemberKey, most: u32) -> bool {
        let count = self.seats.get(key).copied().unwrap_or_default();
        let has_room = most == 0 || count < most as usize;
        if has_room {
            self.seats.insert(key.clone(), count + 1);
        }
        has_room
    }

    fn sessions_on(&self, cluster: &Arc<str>, member: &MemberName) -> usize {
        let key = (Arc::clone(cluster), member.clone());
        self.seats.get(&key).copied().unwrap_or_default()
    }
}

/// The place of one session on a member; given back when dropped.
#[derive(Debug)]
pub struct Seat {
    occupancy: Arc<Occupancy>,
    key: MemberKey,
}

impl Seat {
    pub(super) fn member(&self) -> &MemberName {
        &self.key.1
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.occupancy.lock();
        if let Some(count) = inner.seats.get_mut(&self.key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                inner.seats.remove(&self.key);
            }
        }
        drop(inner);
        // Sessions may wait for a seat that was taken when there was no limit.
        self.occupancy.gates.freed(&self.key.0);
        self.occupancy.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::pin::pin;

    use futures_util::FutureExt;
    use prometheus_client::registry::Registry;
    use tokio::sync::watch;

    use super::super::gate::{self, gate_scene};
    use super::*;

    #[test]
    fn a_member_has_as_many_seats_as_its_limit() {
        let occupancy = Arc::new(Occupancy::default());
        let (main, db1) = (Arc::from("main"), MemberName::new("db1"));
        let one = occupancy.reserve(&main, &db1, 2).unwrap();
        let two = occupancy.reserve(&main, &db1, 2).unwrap();
        assert!(occupancy.reserve(&main, &db1, 2).is_none());
        assert!(occupancy.reserve(&main, &MemberName::new("db2"), 2).is_some());
        assert!(occupancy.reserve(&"other".into(), &db1, 2).is_some());
        assert_eq!(one.member(), &db1);
        drop(one);
        assert!(occupancy.reserve(&main, &db1, 2).is_some());
        drop(two);
        assert!(occupancy.lock().seats.is_empty(), "nothing is left behind");
    }

    #[tokio::test(start_paused = true)]
    async fn a_seat_taken_without_a_limit_wakes_a_session_that_waits_under_one() {
        let occupancy = Arc::new(Occupancy::default());
        let (main, db1) = (Arc::from("main"), MemberName::new("db1"));
        let unlimited = occupancy.reserve(&main, &db1, 0).unwrap();
        // A reload has set a limit.
        let mut route = Route::read_write("read-write", "main");
        route.queue.most = 1;
        let route = Arc::new(route);
        let gate = occupancy.gate(&route);
        let metrics = gate::Metrics::register(&mut Registry::default());
        let snapshots = watch::channel(gate_scene::snapshot(1)).0;
        let mut passing = pin!(gate.pass(
            &route,
            || snapshots.subscribe(),
            &metrics,
            || occupancy.reserve(&main, &db1, 1)
        ));
        let waits = passing.as_mut().now_or_never().is_none();
        assert!(waits, "the member is full");
        drop(unlimited);
        let passed = passing.now_or_never().expect("it was woken");
        assert_eq!(passed.unwrap().0.member(), &db1);
    }

    #[test]
    fn a_seat_counts_for_its_cluster_until_it_is_dropped() {
        let occupancy = Arc::new(Occupancy::default());
        let (main, other): (Arc<str>, Arc<str>) = ("main".into(), "other".into());
        let db1 = MemberName::new("db1");
        let seats = [&main, &main, &other].map(|cluster| occupancy.reserve(cluster, &db1, 0).unwrap());
        assert_eq!(occupancy.sessions_on(&main, &db1), 2);
        assert_eq!(occupancy.sessions_on(&other, &db1), 1);
        drop(seats);
        assert_eq!(occupancy.sessions_on(&main, &db1), 0);
        assert!(occupancy.lock().seats.is_empty(), "nothing is left behind");
    }
}
