//! Carries out operators' requests on clusters and sessions.

mod shown;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::control::{ControlRequest, Requests};
use super::handover::STEP_LIMIT;
use super::pauses;
use super::processes::NotFollowed;
use super::running_orders::RunningOrders;
use super::state_file::{self, AdminOverrides, MemberOverrides};
use crate::admin::{Change, Ending, PoolView, Readiness, Reconnection, ReloadAnswer, SessionView};
use crate::cluster::snapshot::{AdminState, MemberName, OrderedBy};
use crate::cluster::{Busy, ClusterHandle, PreparedCluster};
use crate::session::disabled::DisabledRoutes;
use crate::session::end::{Order, Reason};
use crate::session::generations::totals::MemberLoad;
use crate::session::occupancy::Occupancy;
use crate::session::pool::pools::{Pools, Reconnect};
use crate::session::registry::{ConsoleSession, Placement, Registry, SessionEntry};
use shown::{console_view, pool_view, session_view};

#[derive(Debug)]
pub(super) struct Administration {
    /// The clusters of the current configuration.
    clusters: Mutex<HashMap<Arc<str>, ClusterHandle>>,
    registry: Arc<Registry>,
    occupancy: Arc<Occupancy>,
    pools: Arc<Pools>,
    disabled_routes: Arc<DisabledRoutes>,
    readiness: Arc<Readiness>,
    /// Locked during a change, so that concurrent changes are kept in the order of their execution.
    overrides: Mutex<watch::Sender<Arc<AdminOverrides>>>,
    requests: Requests,
    /// Set while another process receives the overrides: a change would be lost.
    is_handing_over: AtomicBool,
    state_file: Option<PathBuf>,
    /// The task that writes the state file, and the token that ends it.
    writing: Mutex<Option<(CancellationToken, JoinHandle<()>)>>,
    /// The runtime for work that takes time.
    control: Handle,
    tracker: TaskTracker,
    stop: CancellationToken,
    /// Those that hold clients, and run in this process.
    pub(super) orders: Arc<RunningOrders>,
}

/// What sessions and administration share.
type SharedParts = (Arc<Registry>, Arc<Occupancy>, Arc<Pools>, Arc<DisabledRoutes>);

impl Administration {
    /// Applies the overrides `received` from the old process, or those from before the restart. The
    /// clusters have them before their first check if the caller has not waited since it started
    /// them. To be called on the control runtime.
    pub(super) fn begin(
        state_file: Option<PathBuf>,
        received: Option<AdminOverrides>,
        clusters: HashMap<Arc<str>, ClusterHandle>,
        (registry, occupancy, pools, disabled_routes): SharedParts,
        readiness: Arc<Readiness>,
        requests: Requests,
        (stop, tracker): (&CancellationToken, &TaskTracker),
    ) -> Self {
        let is_received = received.is_some();
        let overrides = received
            .or_else(|| state_file.as_deref().map(state_file::load))
            .unwrap_or_default();
        for (name, cluster) in &clusters {
            if let Some(members) = overrides.members.get(&**name) {
                apply(members, name, on(cluster));
            }
        }
        disabled_routes.replace(overrides.disabled_routes.clone());
        pauses::resume(occupancy.paused_routes(), &overrides.paused_routes);
        let administration = Self {
            clusters: Mutex::new(clusters),
            registry,
            occupancy,
            pools,
            disabled_routes,
            readiness,
            overrides: Mutex::new(watch::Sender::new(Arc::new(overrides))),
            requests,
            is_handing_over: AtomicBool::new(false),
            state_file,
            writing: Mutex::default(),
            control: Handle::current(),
            tracker: tracker.clone(),
            stop: stop.clone(),
            orders: Arc::default(),
        };
        if !is_received {
            administration.write(false);
        }
        administration
    }

    /// Writes changes to the state file from now on. `at_once` writes the present overrides too.
    fn write(&self, at_once: bool) {
        let Some(path) = self.state_file.clone() else {
            return;
        };
        let overrides = self.overrides.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changes = overrides.subscribe();
        if at_once {
            changes.mark_changed();
        }
        let stop = self.stop.child_token();
        let writing = state_file::keep(path, changes, stop.clone());
        let task = self.tracker.spawn_on(writing, &self.control);
        *self.writing.lock().unwrap_or_else(PoisonError::into_inner) = Some((stop, task));
    }

    /// Applies the overrides to a cluster that has started. It has them before its first check if
    /// the caller has not waited since the start.
    pub(super) fn apply(&self, name: &str, cluster: &ClusterHandle) {
        apply(&self.overrides(name), name, on(cluster));
    }

    /// As [`Self::apply`], for a prepared cluster. Returns the overrides.
    pub(super) fn apply_to_prepared(&self, name: &str, successor: &PreparedCluster) -> MemberOverrides {
        let overrides = self.overrides(name);
        apply(&overrides, name, |member, change| match change {
            Change::Admin(state) => successor.set_admin(member, state),
            Change::Weight(weight) => successor.set_weight(member, weight),
        });
        overrides
    }

    /// Applies the changes since the overrides were `before`, after a prepared cluster is in
    /// service.
    pub(super) fn apply_changes(&self, name: &str, cluster: &ClusterHandle, before: &MemberOverrides) {
        let now = self.overrides(name);
        let set = on(cluster);
        let of =
            |overrides: &MemberOverrides, member: &String| overrides.get(member).copied().unwrap_or_default();
        for member in before.keys().chain(now.keys()) {
            let (old, overrides) = (of(before, member), of(&now, member));
            if old == overrides {
                continue;
            }
            let name = MemberName::new(member.as_str());
            let admin = set(&name, Change::Admin(overrides.admin));
            if admin.and(set(&name, Change::Weight(overrides.weight))).is_err() {
                tracing::warn!(member = %name, "too many settings were changed during the reload; set them again");
            }
        }
    }

    /// All overrides of members, and whether the router is drained. Operators can change nothing
    /// from now on, until [`Self::unfreeze`].
    pub(super) fn freeze(&self) -> (AdminOverrides, bool) {
        let overrides = self.overrides.lock().unwrap_or_else(PoisonError::into_inner);
        self.note_pauses(&overrides);
        self.is_handing_over.store(true, Ordering::Relaxed);
        let is_drained = self.readiness.is_drained();
        (AdminOverrides::clone(&overrides.borrow()), is_drained)
    }

    pub(super) fn unfreeze(&self) {
        self.is_handing_over.store(false, Ordering::Relaxed);
    }

    /// This process owns the state file from now on, and writes it.
    pub(super) fn claim(&self) {
        self.write(true);
    }

    /// Gives up the state file: when this returns, the overrides are written, and this process
    /// writes no more.
    ///
    /// # Errors
    /// The write takes too long.
    pub(super) async fn release(&self) -> Result<(), Elapsed> {
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((stop, mut task)) = writing {
            stop.cancel();
            let ended = timeout(STEP_LIMIT, &mut task).await;
            if ended.is_err() {
                *self.writing.lock().unwrap_or_else(PoisonError::into_inner) = Some((stop, task));
            }
            ended.map(drop)?;
        }
        Ok(())
    }

    /// Replaces the clusters after a reload.
    pub(super) fn replace(&self, clusters: HashMap<Arc<str>, ClusterHandle>) {
        *self.clusters.lock().unwrap_or_else(PoisonError::into_inner) = clusters;
    }

    /// The overrides of a cluster, once no change is in progress.
    fn overrides(&self, cluster: &str) -> MemberOverrides {
        let overrides = self.overrides.lock().unwrap_or_else(PoisonError::into_inner);
        let overrides = overrides.borrow();
        overrides.members.get(cluster).cloned().unwrap_or_default()
    }

    fn end(&self, entries: Vec<Addressee>, ending: Ending, reason: &Reason) {
        let grace = match ending {
            Ending::Now => None,
            Ending::AtBoundary { grace } => {
                for entry in &entries {
                    entry.order(Order::AtBoundary(reason.clone()));
                }
                let Some(grace) = grace.filter(|_| !entries.is_empty()) else {
                    return;
                };
                Some(grace)
            }
        };
        let cut = move |entries: Vec<Addressee>, reason: &Reason| {
            for entry in entries {
                entry.order(Order::Now(reason.clone()));
            }
        };
        match grace {
            None => cut(entries, reason),
            Some(grace) => {
                let (stop, reason) = (self.stop.clone(), reason.clone());
                self.tracker.spawn_on(
                    async move {
                        tokio::select! {
                            () = stop.cancelled() => {}
                            () = sleep(grace) => cut(entries, &reason),
                        }
                    },
                    &self.control,
                );
            }
        }
    }
}

/// Who gets an order.
enum Addressee {
    Session(Arc<SessionEntry>),
    /// A session as long as it has this server connection.
    OnServer(Arc<SessionEntry>, Arc<Placement>),
    Console(Arc<ConsoleSession>),
}

impl Addressee {
    fn order(&self, order: Order) {
        match self {
            Self::Session(entry) => entry.order(order),
            Self::OnServer(entry, placement) => entry.order_on(placement, order),
            Self::Console(session) => session.order(&order),
        }
    }
}

/// The actions of operators in this process. No function waits.
impl Administration {
    /// Every session of this process, by number.
    pub(super) fn sessions(&self) -> Vec<SessionView> {
        let mut all: Vec<SessionView> = self
            .registry
            .sessions()
            .iter()
            .map(|entry| session_view(entry))
            .collect();
        let consoles = self.registry.consoles();
        all.extend(consoles.iter().map(|session| console_view(session)));
        all.sort_unstable_by_key(|session| session.id);
        all
    }

    pub(super) fn session_count(&self) -> usize {
        self.registry.len()
    }

    /// What a member has of this process.
    pub(super) fn load_of(&self, cluster: &str, member: &MemberName) -> MemberLoad {
        let connections = self.occupancy.sessions_on(&Arc::from(cluster), member);
        MemberLoad::of(connections, self.pools.idle_on(cluster, member))
    }

    /// Ends one session. `None`: this process has no session with this number.
    pub(super) fn end_session(&self, id: u64, ending: Ending) -> Option<SessionView> {
        if let Some(session) = self.registry.console(id) {
            self.end(
                vec![Addressee::Console(Arc::clone(&session))],
                ending,
                &Reason::Killed,
            );
            return Some(console_view(&session));
        }
        let entry = self.registry.session(id)?;
        // The session may lose its server once it is ordered to end.
        let session = session_view(&entry);
        let addressee = Addressee::Session(Arc::clone(&entry));
        self.end(vec![addressee], ending, &Reason::Killed);
        Some(SessionView {
            ending: entry.ordered().map(|order| order.reason().to_string()),
            ..session
        })
    }

    /// Ends the sessions on a member, and returns their number.
    pub(super) fn end_sessions_on(&self, cluster: &str, member: &MemberName, ending: Ending) -> usize {
        let on_member = |entry: Arc<SessionEntry>| {
            let placement = entry.placement().filter(|place| place.member == *member)?;
            Some(Addressee::OnServer(entry, placement))
        };
        let sessions = self.registry.sessions_of(cluster);
        let entries: Vec<Addressee> = sessions.into_iter().filter_map(on_member).collect();
        let sessions = entries.len();
        self.end(entries, ending, &Reason::MemberClosed(member.clone()));
        sessions
    }

    /// Every pool of this process, in the order of their names.
    pub(super) fn pools(&self) -> Vec<PoolView> {
        let mut all: Vec<PoolView> = self.pools.views_with_idle().iter().map(pool_view).collect();
        all.sort_unstable_by(|one, other| {
            let name = |pool: &PoolView| (pool.route.clone(), pool.user.clone(), pool.database.clone());
            name(one).cmp(&name(other))
        });
        all
    }

    /// Connections of pools that exist now are not used again. Returns their number.
    pub(super) fn reconnect(&self, which: &Reconnection) -> usize {
        match which {
            Reconnection::Member { cluster, member } => self.pools.reconnect(Reconnect::Member {
                cluster,
                member: &MemberName::new(member.as_str()),
            }),
            Reconnection::Route(route) => self.pools.reconnect(Reconnect::Route(route)),
            Reconnection::All => self.pools.reconnect(Reconnect::All),
        }
    }

    /// Whether an override for this member is kept, even if the member is absent now.
    pub(super) fn has_kept(&self, cluster: &str, member: &MemberName) -> bool {
        let overrides = self.overrides.lock().unwrap_or_else(PoisonError::into_inner);
        let overrides = overrides.borrow();
        overrides.member(cluster, member.as_str()).is_some()
    }

    /// Changes how a member is used. A later snapshot shows it.
    pub(super) fn administer(&self, cluster: &str, member: &MemberName, change: Change) -> Result<(), Busy> {
        let clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(handle) = clusters.get(cluster) else {
            return Ok(());
        };
        let overrides = self.overrides.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_handing_over.load(Ordering::Relaxed) {
            return Err(Busy);
        }
        match change {
            Change::Admin(state) => handle.set_admin(member, state)?,
            Change::Weight(weight) => handle.set_weight(member, weight)?,
        }
        overrides.send_modify(|overrides| {
            Arc::make_mut(overrides).change(cluster, member.as_str(), |member| match change {
                Change::Admin(state) => member.admin = state,
                Change::Weight(weight) => member.weight = weight,
            });
        });
        Ok(())
    }

    /// Applies a change that the serving process has made to a member to the sessions here. Nothing
    /// is kept, because that process owns the state file.
    pub(super) fn follow(
        &self,
        cluster: &str,
        member: &MemberName,
        change: Change,
    ) -> Result<(), NotFollowed> {
        let clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_handing_over.load(Ordering::Relaxed) {
            return Err(NotFollowed::Serves);
        }
        match clusters.get(cluster) {
            Some(handle) => on(handle)(member, change).map_err(NotFollowed::Busy),
            // This process has no sessions of the cluster.
            None => Ok(()),
        }
    }

    /// Sessions of a route, with and without a server.
    pub(super) fn sessions_of(&self, route: &str) -> usize {
        self.registry.len_of(route)
    }

    /// Disables a route, or enables it again. It counts for logins from now on.
    pub(super) fn disable_route(&self, route: &str, is_disabled: bool) -> Result<(), Busy> {
        let overrides = self.overrides.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_handing_over.load(Ordering::Relaxed) {
            return Err(Busy);
        }
        overrides.send_modify(|overrides| {
            let names = &mut Arc::make_mut(overrides).disabled_routes;
            if is_disabled {
                names.insert(route.to_owned());
            } else {
                names.remove(route);
            }
        });
        let names = overrides.borrow().disabled_routes.clone();
        self.disabled_routes.replace(names);
        Ok(())
    }

    /// Pauses a route at this process, or ends that; it is kept over a restart.
    pub(super) fn pause_route(
        &self,
        route: &str,
        lasts: Option<Duration>,
        by: Option<&OrderedBy>,
    ) -> Result<(), Busy> {
        let overrides = self.overrides.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_handing_over.load(Ordering::Relaxed) {
            return Err(Busy);
        }
        let paused = self.occupancy.paused_routes();
        match lasts {
            Some(lasts) if !paused.pause_by(route, Instant::now() + lasts, by) => return Err(Busy),
            Some(_) => {}
            None => drop(paused.unpause(route)),
        }
        overrides.send_modify(|overrides| {
            pauses::keep(&mut Arc::make_mut(overrides).paused_routes, route, lasts);
        });
        Ok(())
    }

    /// Keeps the pauses that others order, a peer or another process of this router, as those that
    /// are ordered here; until `stop`.
    pub(super) async fn keep_pauses(self: Arc<Self>) {
        let paused = Arc::clone(self.occupancy.paused_routes());
        let mut changes = paused.subscribe();
        loop {
            {
                let overrides = self.overrides.lock().unwrap_or_else(PoisonError::into_inner);
                if !self.is_handing_over.load(Ordering::Relaxed) {
                    self.note_pauses(&overrides);
                }
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = self.stop.cancelled() => return,
            }
        }
    }

    fn note_pauses(&self, overrides: &watch::Sender<Arc<AdminOverrides>>) {
        let current = pauses::changed(&overrides.borrow().paused_routes, self.occupancy.paused_routes());
        if let Some(current) = current {
            overrides.send_modify(|overrides| Arc::make_mut(overrides).paused_routes = current);
        }
    }

    /// Drains the router, or reverses that. A drained router serves as before and reports that it
    /// is not ready.
    pub(super) fn drain_router(&self, is_drained: bool) -> Result<(), Busy> {
        // Locked, so that nothing changes between the offer to another process and its answer.
        let _kept = self.overrides.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_handing_over.load(Ordering::Relaxed) {
            return Err(Busy);
        }
        self.readiness.drain(is_drained);
        Ok(())
    }

    /// Forgets the cluster's system identifier. The router learns it again.
    pub(super) fn forget_identity(&self, cluster: &str) -> Result<(), Busy> {
        let clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters
            .get(cluster)
            .map_or(Ok(()), ClusterHandle::forget_identity)
    }

    /// Reads the configuration again. The reload continues if the caller stops waiting. While the
    /// process is ending, no answer comes.
    pub(super) fn reload(&self) -> oneshot::Receiver<ReloadAnswer> {
        let (answer, answered) = oneshot::channel();
        let requests = self.requests.clone();
        self.tracker.spawn_on(
            async move {
                // It fails only while the process is ending.
                let _ = requests.send(ControlRequest::Reload(answer)).await;
            },
            &self.control,
        );
        answered
    }
}

fn on(cluster: &ClusterHandle) -> impl Fn(&MemberName, Change) -> Result<(), Busy> {
    |member, change| match change {
        Change::Admin(state) => cluster.set_admin(member, state),
        Change::Weight(weight) => cluster.set_weight(member, weight),
    }
}

/// Applies every override that differs from the default.
fn apply(overrides: &MemberOverrides, cluster: &str, set: impl Fn(&MemberName, Change) -> Result<(), Busy>) {
    for (name, member) in overrides {
        let name = MemberName::new(name.as_str());
        let admin = match member.admin {
            AdminState::Ready => Ok(()),
            state => set(&name, Change::Admin(state)),
        };
        let weight = match member.weight {
            None => Ok(()),
            weight => set(&name, Change::Weight(weight)),
        };
        if admin.and(weight).is_err() {
            tracing::warn!(cluster, member = %name, "states are set for too many members; not all are applied");
        }
    }
}
