//! Everything that serves by one configuration, and its replacement by another configuration:
//! whole, or not at all.
//!
//! A reload first does everything that can fail or takes time, without a change to the running
//! service. Then it exchanges everything in one step. A live session changes only by the later
//! snapshots of its own cluster.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::administration::Administration;
use super::files::FileReader;
use super::inventory::Inventory;
use super::listeners::{Listeners, WantedListener};
use super::state_file::MemberOverrides;
use super::supervisor::READ_LIMIT;
use super::{lag_limits, limits};
use crate::admin::log::LogHandle;
use crate::admin::{self, AccessView, AdminThread, ClusterView, ConsoleOrders, Handles};
use crate::backend::TlsClient;
use crate::cluster::snapshot::Leader;
use crate::cluster::{self, ClusterHandle, PreparedCluster, Reporting, WeakClusterHandle};
use crate::config::{self, BindAddress, Cluster, ClusterChange, Config, Resume, Route};
use crate::events;
use crate::frontend::auth_policy::{AuthPolicy, PolicyContext};
use crate::frontend::opening::Offer;
use crate::frontend::tls::Acceptor;
use crate::listen::{BoundPlace, Handle, Inherited};
use crate::session::Shared;
use crate::session::console::ConsoleAccess;
use crate::session::listener_settings::ListenerSettings;
use crate::session::occupancy::Occupancy;
use crate::session::orders::enforce;
use crate::session::peers::Peers;

/// Time limit for a cluster with new settings to see what it saw before, and for a new one to see
/// its leader.
const WARM_UP: Duration = Duration::from_secs(10);

/// Everything that serves by the current configuration.
pub(super) struct Service {
    /// `None` if no certificate is configured.
    pub(super) tls: Option<Arc<ArcSwap<Acceptor>>>,
    pub(super) clusters: HashMap<Arc<str>, ClusterHandle>,
    /// Clusters that are no longer configured. They exist while they have sessions.
    pub(super) retired: HashMap<Arc<str>, WeakClusterHandle>,
    pub(super) shared: Arc<Shared>,
    pub(super) listeners: Listeners,
    pub(super) admin: AdminThread,
    /// A reload replaces the clusters. Everything else stays.
    pub(super) handles: Handles,
    /// What the handles show of this.
    pub(super) inventory: Arc<Inventory>,
    /// The clusters, as the metrics show them.
    pub(super) metric_views: Arc<ArcSwap<Vec<ClusterView>>>,
    pub(super) administration: Arc<Administration>,
    /// The control socket.
    pub(super) control: Option<Handle>,
    /// Ends the accept loop of the control socket.
    pub(super) control_stop: CancellationToken,
    pub(super) log: LogHandle,
    pub(super) files: FileReader,
    pub(super) cluster_metrics: Arc<cluster::Metrics>,
    pub(super) stop: CancellationToken,
    pub(super) tracker: TaskTracker,
}

/// A cluster of the new configuration.
enum NextCluster {
    Unchanged(ClusterHandle),
    /// It has other passwords or other TLS settings towards the servers.
    Credentials(ClusterHandle, Arc<TlsClient>),
    /// New settings, with the administrative states and weights that the prepared cluster has.
    Replaced(ClusterHandle, Box<PreparedCluster>, MemberOverrides),
    New(ClusterHandle),
}

impl Service {
    /// Every socket on which this process listens, so that another one can listen on it too.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn passed_on(&self) -> io::Result<Vec<Inherited>> {
        let mut sockets = self.listeners.passed_on()?;
        sockets.extend(self.admin.passed_on()?);
        if let Some(control) = &self.control {
            sockets.push(control.passed_on()?);
        }
        Ok(sockets)
    }

    /// Another process owns the files of the sockets at the places `kept`.
    pub(super) fn release(&self, kept: &[BoundPlace]) {
        self.listeners.release(kept);
        if let Some(control) = &self.control {
            control.release(kept);
        }
    }

    /// This process owns the files of its sockets.
    pub(super) fn claim(&self) {
        self.listeners.claim();
        if let Some(control) = &self.control {
            control.claim();
        }
    }

    /// Leaves everything but the sessions to another process. Accepted connections and HTTP
    /// requests continue.
    pub(super) async fn leave(&mut self) {
        self.close_ports().await;
        self.admin.leave();
    }

    /// Stops accepting clients and requests over the control socket, and keeps no idle connection
    /// of pools. Every port is free when this returns.
    pub(super) async fn close_ports(&mut self) {
        self.shared.pools.retire();
        self.control_stop.cancel();
        self.control = None;
        self.listeners.close().await;
    }

    /// The path of the control socket.
    pub(super) fn control_path(&self) -> Option<&Path> {
        match &self.control.as_ref()?.address {
            BindAddress::Unix { path, .. } => Some(path),
            BindAddress::Any { .. } | BindAddress::Ip(_) => None,
        }
    }

    /// Replaces the configuration `old` by `new`. `started` is the one at the start of the process.
    ///
    /// # Errors
    /// A sentence for each reason. Then nothing has changed.
    pub(super) async fn replace(
        &mut self,
        old: &Config,
        new: &Arc<Config>,
        started: &Config,
    ) -> Result<(), Vec<String>> {
        let in_the_way = new.addresses_in_the_way(old, started.http.agent_check.as_ref());
        if !in_the_way.is_empty() {
            return Err(in_the_way);
        }
        let (config, shared) = (Arc::clone(new), Arc::clone(&self.shared));
        let load = move || AuthPolicy::load(&config.auth, PolicyContext::of(&config), &shared.mock);
        let access = match self.files.read(READ_LIMIT, load).await {
            Ok(Ok(access)) => Arc::new(access),
            Ok(Err(faults)) => return Err(faults.lines),
            Err(unread) => return Err(vec![unread.to_string()]),
        };
        let clusters = self.next_clusters(old, new).await?;
        // From here on nothing waits, so that the sockets that are bound now serve their clients,
        // or are closed at once.
        let bound = self.listeners.bind(&new.listeners)?;
        let http = self
            .admin
            .bind(&new.http)
            .map_err(|error| vec![format!("{:#}", anyhow::Error::from(error))])?;
        let handles = clusters
            .iter()
            .map(|(name, next)| (Arc::clone(name), next.handle().clone()))
            .collect();
        let acceptor = new.tls.as_ref().map(|tls| Arc::new(Acceptor::new(tls)));
        // All listeners share one acceptor, so that a new certificate is stored in one place.
        let tls = acceptor.as_ref().map(|acceptor| match &self.tls {
            Some(shared) => Arc::clone(shared),
            None => Arc::new(ArcSwap::new(Arc::clone(acceptor))),
        });
        let wanted = wanted_listeners(new, &handles, tls.as_ref(), &self.shared.occupancy)
            .map_err(|error| vec![error.to_string()])?;
        self.log
            .replace(&new.log)
            .map_err(|error| vec![error.to_string()])?;

        for (name, next) in clusters {
            self.apply_cluster(&name, next, new);
        }
        self.administration.replace(handles.clone());
        know_clusters(&self.shared, new, &handles);
        let gone = std::mem::replace(&mut self.clusters, handles);
        self.retire(gone);
        if let (Some(shared), Some(acceptor)) = (&tls, acceptor) {
            shared.store(acceptor);
        }
        self.tls = tls;
        self.shared.auth_policy.store(access);
        self.apply_shared(old, new, started);
        limits::raise_open_files(&new.limits);
        self.listeners.replace(wanted, bound);
        let routes: Vec<Arc<Route>> = new.routes.values().cloned().collect();
        self.shared.pools.reconfigure(&routes);
        self.handles.clusters = views(new, &self.clusters, &self.shared.occupancy);
        self.handles.token.store(new.http.token.clone().map(Arc::new));
        self.handles.has_page = new.http.ui;
        self.metric_views.store(Arc::new(self.handles.clusters.clone()));
        // It shows the new clusters.
        self.shared.console.store(console_access(new, &self.handles));
        self.admin.replace(&new.http, http, self.handles.clone());
        Ok(())
    }

    /// The clusters of the new configuration. Those that are new or have new settings have been
    /// checked when this returns.
    async fn next_clusters(
        &self,
        old: &Config,
        new: &Config,
    ) -> Result<Vec<(Arc<str>, NextCluster)>, Vec<String>> {
        let mut next = Vec::new();
        let mut faults = Vec::new();
        for cluster in new.clusters.values() {
            match self.next_cluster(old, new, cluster) {
                Ok(one) => next.push((Arc::clone(&cluster.name), one)),
                Err(fault) => faults.push(format!("clusters.{}: {fault}", cluster.name)),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let ready = async {
            for (_, next) in &next {
                next.wait_until_ready().await;
            }
        };
        // The loop below handles clusters that are not ready by then.
        let _ = timeout(WARM_UP, ready).await;
        for (name, next) in &next {
            if let Some(account) = new.clusters.get(&**name).map(|cluster| &cluster.service_account)
                && let Some(refusal) = next.refusal(account).await
            {
                faults.push(format!("clusters.{name}.service_account: {refusal}"));
                continue;
            }
            match next {
                NextCluster::Replaced(handle, successor, _) if !successor.has_leader_of(handle) => faults.push(format!(
                    "clusters.{name}: the router saw no leader within {} s with the new settings, and sees one with the old settings",
                    WARM_UP.as_secs()
                )),
                NextCluster::New(handle) if !is_led(handle) => {
                    self.handles.events.emit(events::ClusterEvent {
                        cluster: name.to_string(),
                        change: events::ClusterChange::NoLeaderYet,
                    });
                }
                _ => {}
            }
        }
        if faults.is_empty() { Ok(next) } else { Err(faults) }
    }

    fn reporting(&self) -> Reporting {
        Reporting {
            metrics: Arc::clone(&self.cluster_metrics),
            events: self.handles.events.clone(),
        }
    }

    fn next_cluster(
        &self,
        old: &Config,
        new: &Config,
        cluster: &Arc<Cluster>,
    ) -> anyhow::Result<NextCluster> {
        let (handle, change) = if let Some(handle) = self.clusters.get(&cluster.name) {
            (handle.clone(), new.cluster_change(old, &cluster.name))
        } else if let Some(handle) = self
            .retired
            .get(&cluster.name)
            .and_then(WeakClusterHandle::upgrade)
        {
            // The cluster still has its sessions.
            (handle, ClusterChange::Whole)
        } else {
            let limits = lag_limits(new, &cluster.name);
            let (config, auth) = (Arc::clone(cluster), &new.auth);
            let handle = cluster::start(config, auth, limits, self.reporting(), &self.stop, &self.tracker)?;
            self.administration.apply(&cluster.name, &handle);
            return Ok(NextCluster::New(handle));
        };
        Ok(match change {
            // A new file may have been put in service since the configuration was read.
            ClusterChange::Same if handle.has_account(&cluster.service_account) => {
                NextCluster::Unchanged(handle)
            }
            ClusterChange::Same | ClusterChange::Credentials => {
                let tls = TlsClient::new(&cluster.server_tls)?;
                NextCluster::Credentials(handle, tls)
            }
            ClusterChange::Whole => {
                let limits = lag_limits(new, &cluster.name);
                let (config, auth) = (Arc::clone(cluster), &new.auth);
                let successor =
                    cluster::prepare(config, auth, limits, self.reporting(), &self.stop, &self.tracker)?;
                if cluster.source.is_same_place(&handle.config().source) {
                    // Only another source can lead to another cluster.
                    successor.keep_identity(&handle)?;
                }
                let overrides = self.administration.apply_to_prepared(&cluster.name, &successor);
                NextCluster::Replaced(handle, Box::new(successor), overrides)
            }
        })
    }

    fn apply_cluster(&self, name: &Arc<str>, next: NextCluster, new: &Config) {
        match next {
            NextCluster::Unchanged(handle) => handle.replace_limits(lag_limits(new, name)),
            NextCluster::Credentials(handle, tls) => {
                handle.replace_limits(lag_limits(new, name));
                handle.replace_tls(tls);
                let cluster = new.clusters.get(&**name);
                handle
                    .replace_password(cluster.and_then(|cluster| cluster.service_account.password.as_ref()));
            }
            NextCluster::Replaced(handle, successor, overrides) => {
                handle.replace_tasks(*successor);
                self.administration.apply_changes(name, &handle, &overrides);
            }
            NextCluster::New(handle) => self.watch(&handle),
        }
    }

    fn watch(&self, handle: &ClusterHandle) {
        let registry = Arc::clone(&self.shared.registry);
        let watching = enforce(handle.subscribe(), registry, self.stop.clone());
        self.tracker.spawn(watching);
        self.tracker
            .spawn(follow(&self.shared, handle, self.stop.clone()));
    }

    fn retire(&mut self, gone: HashMap<Arc<str>, ClusterHandle>) {
        for (name, handle) in gone {
            self.retired.insert(name, handle.downgrade());
        }
        let clusters = &self.clusters;
        self.retired
            .retain(|name, handle| !clusters.contains_key(name) && handle.upgrade().is_some());
    }

    fn apply_shared(&self, old: &Config, new: &Config, started: &Config) {
        let shared = &self.shared;
        shared
            .admission
            .resize(new.limits.max_clients, new.limits.max_pending_logins);
        shared.quota.resize(&new.limits);
        shared.login_throttle.replace_limit(new.auth.rate_limit.clone());
        shared.login_timeout.store(Arc::new(new.auth.login_timeout));
        let members = |config: &Config| config.peers.as_ref().map(|peers| peers.members.clone());
        // Issued keys are sealed with the secret from the start.
        let secret = started.peers.as_ref().map(|peers| peers.secret.clone());
        if members(old) != members(new) {
            let peers = members(new).zip(secret).map(|(members, secret)| {
                let config = config::Peers { secret, members };
                Arc::new(Peers::new(&config, shared.keys.incarnation()))
            });
            shared.peers.store(peers);
        }
    }
}

impl NextCluster {
    fn handle(&self) -> &ClusterHandle {
        match self {
            Self::Unchanged(handle)
            | Self::Credentials(handle, _)
            | Self::Replaced(handle, ..)
            | Self::New(handle) => handle,
        }
    }

    /// Why the servers refuse this account of the new configuration, if it is another one.
    async fn refusal(&self, account: &config::ServiceAccount) -> Option<String> {
        match self {
            Self::Credentials(handle, tls) => {
                handle.refusal(account.password.as_ref(), Arc::clone(tls)).await
            }
            Self::Replaced(handle, successor, _) if !handle.has_account(account) => successor.refusal().await,
            Self::Unchanged(_) | Self::Replaced(..) | Self::New(_) => None,
        }
    }

    /// Waits until the new cluster can replace the old one without a gap.
    async fn wait_until_ready(&self) {
        match self {
            Self::Unchanged(_) | Self::Credentials(..) => {}
            Self::Replaced(handle, successor, _) => successor.ready(handle).await,
            Self::New(handle) => {
                let mut snapshots = handle.subscribe();
                // The sender lives as long as the handle.
                let _ = snapshots
                    .wait_for(|snapshot| matches!(snapshot.leader, Leader::Verified { .. }))
                    .await;
            }
        }
    }
}

/// Opens and shuts the gates of this cluster's routes.
pub(super) fn follow(
    shared: &Shared,
    cluster: &ClusterHandle,
    stop: CancellationToken,
) -> impl Future<Output = ()> + Send + use<> {
    let (occupancy, snapshots) = (Arc::clone(&shared.occupancy), cluster.subscribe());
    async move { occupancy.follow(snapshots, stop).await }
}

/// Which clusters orders to hold clients may be about, and on which routes clients can be held.
pub(super) fn know_clusters(shared: &Shared, config: &Config, clusters: &HashMap<Arc<str>, ClusterHandle>) {
    let routes = config.routes.values();
    let movable = routes.filter(|route| route.resume == Resume::Tracked);
    let movable = movable.map(|route| Arc::clone(&route.name)).collect();
    let routes = config
        .routes
        .values()
        .map(|route| Arc::clone(&route.name))
        .collect();
    shared
        .holds
        .replace(clusters.values().cloned().collect(), routes, movable);
}

fn is_led(handle: &ClusterHandle) -> bool {
    matches!(handle.snapshot().leader, Leader::Verified { .. })
}

/// `None` if no console is configured.
pub(super) fn console_access(config: &Config, handles: &Handles) -> Option<Arc<ConsoleAccess>> {
    config.console.clone().map(|console| {
        let database = console.database.to_string();
        let routes = config.routes.values();
        let orders = ConsoleOrders {
            holding: Arc::clone(&handles.holding),
            cluster: Arc::clone(&console.cluster),
            routes: routes.clone().map(|route| Arc::clone(&route.name)).collect(),
            waiting_routes: routes
                .filter(|route| route.resume == Resume::Tracked)
                .map(|route| Arc::clone(&route.name))
                .collect(),
            events: handles.events.clone(),
        };
        let answers = admin::Console::new(handles.clone(), orders, database);
        Arc::new(ConsoleAccess::new(console, Arc::new(answers)))
    })
}

/// A view of the rules that are in service at the time of a request.
pub(super) fn access_view(access: &Arc<ArcSwap<AuthPolicy>>) -> AccessView {
    let (rules, maps) = (Arc::clone(access), Arc::clone(access));
    AccessView {
        hba: Arc::new(move || rules.load().rules.rows()),
        ident: Arc::new(move || maps.load().maps.rows()),
    }
}

/// The configured listeners with their settings.
pub(super) fn wanted_listeners(
    config: &Config,
    clusters: &HashMap<Arc<str>, ClusterHandle>,
    tls: Option<&Arc<ArcSwap<Acceptor>>>,
    occupancy: &Occupancy,
) -> anyhow::Result<Vec<WantedListener>> {
    let wanted = |listener: &config::Listener| {
        Ok(WantedListener {
            address: listener.address.clone(),
            settings: settings(config, listener, clusters, tls, occupancy)?,
        })
    };
    config.listeners.iter().map(wanted).collect()
}

pub(super) fn views(
    config: &Config,
    clusters: &HashMap<Arc<str>, ClusterHandle>,
    occupancy: &Arc<Occupancy>,
) -> Vec<ClusterView> {
    let served = |name: &str, access| -> Vec<Arc<Route>> {
        let has_listener = |route: &Route| {
            config
                .listeners
                .iter()
                .any(|listener| listener.route == route.name)
        };
        let asks =
            |route: &&Arc<Route>| &*route.cluster == name && route.access == access && has_listener(route);
        config.routes.values().filter(asks).cloned().collect()
    };
    let view = |cluster: &Arc<Cluster>| {
        let handle = clusters.get(&cluster.name)?.clone();
        Some(ClusterView {
            name: Arc::clone(&cluster.name),
            snapshot: handle.subscribe(),
            local_member: cluster.local_member.clone(),
            dbname: cluster.service_account.dbname.clone(),
            read_write: served(&cluster.name, config::Access::ReadWrite),
            read_only: served(&cluster.name, config::Access::ReadOnly),
            holds: {
                let (occupancy, handle) = (Arc::clone(occupancy), handle.clone());
                Arc::new(move |route| occupancy.holds(route, || handle.snapshot()))
            },
            look_again: Arc::new(move || handle.look_again()),
        })
    };
    config.clusters.values().filter_map(view).collect()
}

fn settings(
    config: &Config,
    listener: &config::Listener,
    clusters: &HashMap<Arc<str>, ClusterHandle>,
    tls: Option<&Arc<ArcSwap<Acceptor>>>,
    occupancy: &Occupancy,
) -> anyhow::Result<ListenerSettings> {
    let route = config
        .routes
        .get(&*listener.route)
        .context("a listener's route is in the configuration")?;
    let cluster = clusters
        .get(&route.cluster)
        .context("a route's cluster is in the configuration")?;
    let offer = Offer {
        tls: tls.cloned(),
        mode: listener.tls,
    };
    Ok(ListenerSettings::new(
        listener,
        Arc::clone(route),
        cluster.clone(),
        offer,
        occupancy,
    ))
}
