//! What is in service, by one configuration, and how another takes its place: whole, or not at all.
//!
//! Everything that can fail or takes time is done first, with nothing in force changed; then everything is exchanged in
//! one step. No live session is touched, but by what its own cluster shows from then on.

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
use super::listeners::{Listeners, WantedListener};
use super::start::access_view;
use super::state_file::MemberOverrides;
use super::supervisor::READ_PATIENCE;
use super::{lag_limits, limits};
use crate::admin::log::LogHandle;
use crate::admin::{self, AdminThread, ClusterView, Handles};
use crate::backend::TlsClient;
use crate::cluster::snapshot::Leader;
use crate::cluster::{self, ClusterHandle, PreparedCluster, Reporting, WeakClusterHandle};
use crate::config::{self, BindAddress, Cluster, ClusterChange, Config, Route};
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

/// For a cluster with new settings to see what it saw before, and for a new one to see its leader.
const WARM_UP: Duration = Duration::from_secs(10);

/// Everything a configuration made.
pub(super) struct Service {
    /// Empty where no certificate is configured.
    pub(super) tls: Option<Arc<ArcSwap<Acceptor>>>,
    pub(super) clusters: HashMap<Arc<str>, ClusterHandle>,
    /// Configured no longer, and there as long as they have sessions.
    pub(super) retired: HashMap<Arc<str>, WeakClusterHandle>,
    pub(super) shared: Arc<Shared>,
    pub(super) listeners: Listeners,
    pub(super) admin: AdminThread,
    /// With the clusters of the first configuration; what else is in it stays.
    pub(super) handles: Handles,
    /// What is scraped of the clusters.
    pub(super) fit: Arc<ArcSwap<Vec<ClusterView>>>,
    pub(super) administration: Arc<Administration>,
    /// Of the control socket.
    pub(super) control: Option<Handle>,
    /// Ends its accept loop.
    pub(super) asking: CancellationToken,
    pub(super) log: LogHandle,
    pub(super) files: FileReader,
    pub(super) cluster_metrics: Arc<cluster::Metrics>,
    pub(super) stop: CancellationToken,
    pub(super) tracker: TaskTracker,
}

/// What becomes of a cluster.
enum Next {
    Stays(ClusterHandle),
    /// Other passwords and TLS towards the servers.
    Credentials(ClusterHandle, Arc<TlsClient>),
    /// And what the successor was told of administrative states and weights.
    Succeeded(ClusterHandle, Box<PreparedCluster>, MemberOverrides),
    New(ClusterHandle),
}

impl Service {
    /// Every socket this process listens on, for another one to do so as well.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub(super) fn passed_on(&self) -> io::Result<Vec<Inherited>> {
        let mut sockets = self.listeners.passed_on()?;
        sockets.extend(self.admin.passed_on()?);
        if let Some(control) = &self.control {
            sockets.push(control.passed_on()?);
        }
        Ok(sockets)
    }

    /// What is at the places `kept` is another process's: the files of its sockets.
    pub(super) fn release(&self, kept: &[BoundPlace]) {
        self.listeners.release(kept);
        if let Some(control) = &self.control {
            control.release(kept);
        }
    }

    /// What this process listens on is its own, as far as files go.
    pub(super) fn claim(&self) {
        self.listeners.claim();
        if let Some(control) = &self.control {
            control.claim();
        }
    }

    /// Leaves everything but the sessions to another process. No connection that was accepted is cut by that, and no
    /// request over HTTP.
    pub(super) async fn leave(&mut self) {
        self.close_ports().await;
        self.admin.leave();
    }

    /// Stops accepting clients, and requests over the control socket; every port is free when this returns.
    pub(super) async fn close_ports(&mut self) {
        self.asking.cancel();
        self.control = None;
        self.listeners.close().await;
    }

    /// Where this process is asked for an upgrade.
    pub(super) fn control_path(&self) -> Option<&Path> {
        match &self.control.as_ref()?.address {
            BindAddress::Unix { path, .. } => Some(path),
            BindAddress::Any { .. } | BindAddress::Ip(_) => None,
        }
    }

    /// Puts `new` in the place of `old`. `started` is what the process began with.
    ///
    /// # Errors
    /// Each reason why not, a sentence each; everything is as it was then.
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
        let access = match self.files.read(READ_PATIENCE, load).await {
            Ok(Ok(access)) => Arc::new(access),
            Ok(Err(faults)) => return Err(faults.lines),
            Err(unread) => return Err(vec![unread.to_string()]),
        };
        let clusters = self.next_clusters(old, new).await?;
        // From here on nothing waits: those who connect to what is bound are served, or nothing is bound.
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
        // The same place for every listener and every time, so that a certificate is exchanged in one.
        let tls = acceptor.as_ref().map(|acceptor| match &self.tls {
            Some(place) => Arc::clone(place),
            None => Arc::new(ArcSwap::new(Arc::clone(acceptor))),
        });
        let places = wanted_listeners(new, &handles, tls.as_ref(), &self.shared.occupancy)
            .map_err(|error| vec![error.to_string()])?;
        self.log
            .replace(&new.log)
            .map_err(|error| vec![error.to_string()])?;

        for (name, next) in clusters {
            self.settle(&name, next, new);
        }
        self.administration.replace(handles.clone());
        let gone = std::mem::replace(&mut self.clusters, handles);
        self.retire(gone);
        if let (Some(place), Some(acceptor)) = (&tls, acceptor) {
            place.store(acceptor);
        }
        self.tls = tls;
        self.shared.auth_policy.store(access);
        self.settle_shared(old, new, started);
        limits::raise_open_files(&new.limits);
        self.listeners.replace(places, bound);
        self.handles.clusters = views(new, &self.clusters);
        self.handles.token.store(new.http.token.clone().map(Arc::new));
        self.fit.store(Arc::new(self.handles.clusters.clone()));
        self.admin.replace(&new.http, http, self.handles.clone());
        Ok(())
    }

    /// Those with new settings, and new ones, have looked around when this returns.
    async fn next_clusters(&self, old: &Config, new: &Config) -> Result<Vec<(Arc<str>, Next)>, Vec<String>> {
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
        let warm = async {
            for (_, next) in &next {
                next.warm().await;
            }
        };
        // What is not ready by then is looked at below.
        let _ = timeout(WARM_UP, warm).await;
        for (name, next) in &next {
            match next {
                Next::Succeeded(handle, successor, _) if !successor.has_leader_of(handle) => faults.push(format!(
                    "clusters.{name}: with the new settings no leader was seen within {} s, and there is one",
                    WARM_UP.as_secs()
                )),
                Next::New(handle) if !is_led(handle) => {
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

    fn next_cluster(&self, old: &Config, new: &Config, cluster: &Arc<Cluster>) -> anyhow::Result<Next> {
        let (handle, change) = if let Some(handle) = self.clusters.get(&cluster.name) {
            (handle.clone(), new.cluster_change(old, &cluster.name))
        } else if let Some(handle) = self
            .retired
            .get(&cluster.name)
            .and_then(WeakClusterHandle::upgrade)
        {
            // Its sessions are still there, and are its own again.
            (handle, ClusterChange::Whole)
        } else {
            let limits = lag_limits(new, &cluster.name);
            let (config, auth) = (Arc::clone(cluster), &new.auth);
            let handle = cluster::start(config, auth, limits, self.reporting(), &self.stop, &self.tracker)?;
            self.administration.brief(&cluster.name, &handle);
            return Ok(Next::New(handle));
        };
        Ok(match change {
            ClusterChange::Same => Next::Stays(handle),
            ClusterChange::Credentials => {
                let tls = TlsClient::new(&cluster.server_tls)?;
                Next::Credentials(handle, tls)
            }
            ClusterChange::Whole => {
                let limits = lag_limits(new, &cluster.name);
                let (config, auth) = (Arc::clone(cluster), &new.auth);
                let successor =
                    cluster::prepare(config, auth, limits, self.reporting(), &self.stop, &self.tracker)?;
                if cluster.source.is_same_place(&handle.config().source) {
                    // Another source may be another cluster; this one is not.
                    successor.keep_identity(&handle)?;
                }
                let told = self.administration.brief_successor(&cluster.name, &successor);
                Next::Succeeded(handle, Box::new(successor), told)
            }
        })
    }

    fn settle(&self, name: &Arc<str>, next: Next, new: &Config) {
        match next {
            Next::Stays(handle) => handle.replace_limits(lag_limits(new, name)),
            Next::Credentials(handle, tls) => {
                handle.replace_limits(lag_limits(new, name));
                handle.replace_tls(tls);
                let cluster = new.clusters.get(&**name);
                handle
                    .replace_password(cluster.and_then(|cluster| cluster.service_account.password.as_ref()));
            }
            Next::Succeeded(handle, successor, told) => {
                handle.succeed(*successor);
                self.administration.catch_up(name, &handle, &told);
            }
            Next::New(handle) => self.watch(&handle),
        }
    }

    fn watch(&self, handle: &ClusterHandle) {
        let registry = Arc::clone(&self.shared.registry);
        let watching = enforce(handle.subscribe(), registry, self.stop.clone());
        self.tracker.spawn(watching);
    }

    fn retire(&mut self, gone: HashMap<Arc<str>, ClusterHandle>) {
        for (name, handle) in gone {
            self.retired.insert(name, handle.downgrade());
        }
        let clusters = &self.clusters;
        self.retired
            .retain(|name, handle| !clusters.contains_key(name) && handle.upgrade().is_some());
    }

    fn settle_shared(&self, old: &Config, new: &Config, started: &Config) {
        let shared = &self.shared;
        shared
            .admission
            .resize(new.limits.max_clients, new.limits.max_pending_logins);
        shared.quota.resize(&new.limits);
        shared.login_throttle.replace_limit(new.auth.rate_limit.clone());
        shared.login_timeout.store(Arc::new(new.auth.login_timeout));
        shared.console.store(console_access(new, &shared.auth_policy));
        let members = |config: &Config| config.peers.as_ref().map(|peers| peers.members.clone());
        // Keys that were issued are sealed with the secret of the start.
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

impl Next {
    fn handle(&self) -> &ClusterHandle {
        match self {
            Self::Stays(handle)
            | Self::Credentials(handle, _)
            | Self::Succeeded(handle, ..)
            | Self::New(handle) => handle,
        }
    }

    /// Until nobody would notice the change.
    async fn warm(&self) {
        match self {
            Self::Stays(_) | Self::Credentials(..) => {}
            Self::Succeeded(handle, successor, _) => successor.ready(handle).await,
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

fn is_led(handle: &ClusterHandle) -> bool {
    matches!(handle.snapshot().leader, Leader::Verified { .. })
}

/// `None` where there is no console.
pub(super) fn console_access(
    config: &Config,
    access: &Arc<ArcSwap<AuthPolicy>>,
) -> Option<Arc<ConsoleAccess>> {
    config.console.clone().map(|console| {
        let answers = admin::Console::new(access_view(access));
        Arc::new(ConsoleAccess::new(console, Arc::new(answers)))
    })
}

/// One place for each listener.
pub(super) fn wanted_listeners(
    config: &Config,
    clusters: &HashMap<Arc<str>, ClusterHandle>,
    tls: Option<&Arc<ArcSwap<Acceptor>>>,
    occupancy: &Occupancy,
) -> anyhow::Result<Vec<WantedListener>> {
    let place = |listener: &config::Listener| {
        Ok(WantedListener {
            address: listener.address.clone(),
            settings: settings(config, listener, clusters, tls, occupancy)?,
        })
    };
    config.listeners.iter().map(place).collect()
}

pub(super) fn views(config: &Config, clusters: &HashMap<Arc<str>, ClusterHandle>) -> Vec<ClusterView> {
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
            // No request is held yet.
            holds_read_write: false,
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
