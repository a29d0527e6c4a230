//! Composes the rooms: threads, signals, readiness, drain.
//!
//! ```text
//! main      control: sources, probes, look-ups, accept loops, signals
//! worker-N  sessions, each on the worker it was handed to
//! admin     HTTP
//! ```
//! Shutdown has phases, each bounded: not ready, stop accepting, end sessions at their next boundary, cut what is
//! left, exit.

mod administration;
mod door;
mod enforce;
mod limits;
mod reload;
mod shutdown;
mod state_file;
mod workers;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use anyhow::Context;
use arc_swap::ArcSwap;
use prometheus_client::registry::Registry as Metrics;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::admin::metrics::FileMetrics;
use crate::admin::{self, AccessView, ClusterView, Handles, Readiness};
use crate::auth::scram::MockSecret;
use crate::cluster::{self, ClusterHandle, LagLimits};
use crate::config::{Config, Route};
use crate::frontend::access::{Access, Around};
use crate::frontend::listen::{self, Bound};
use crate::frontend::opening::Offer;
use crate::frontend::tls::Acceptor;
use crate::session::admission::Admission;
use crate::session::console::ConsoleDoor;
use crate::session::gate::Gate;
use crate::session::keys::{Incarnation, KeyIssuer};
use crate::session::quota::Quota;
use crate::session::registry::Registry;
use crate::session::sentry::Sentry;
use crate::session::{self, Shared, peers::Peers};
use administration::Administration;
use door::Door;
use reload::{Reload, Sinks};
use workers::Workers;

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from starting: a port in use, a thread that cannot be made. Once it serves it does not fail.
pub fn run(config: Config) -> anyhow::Result<()> {
    admin::log::init(&config.log)?;
    limits::raise_open_files(&config.limits);
    let control = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = control.block_on(serve(Arc::new(config)));
    // A passphrase command may be under way, and is nothing to wait for.
    control.shutdown_background();
    outcome
}

async fn serve(config: Arc<Config>) -> anyhow::Result<()> {
    let bound = bind(&config)?;
    let mut signals = shutdown::Signals::listen().context("cannot listen for signals")?;
    let hangup = shutdown::hangup().context("cannot listen for signals")?;
    let stop = CancellationToken::new();
    let tracker = TaskTracker::new();
    let mut metrics = Metrics::default();
    let admin_metrics = admin::Metrics::register(&mut metrics);
    let file_metrics = FileMetrics::register(metrics.sub_registry_with_prefix(admin::metrics::PREFIX));
    let ours = metrics.sub_registry_with_prefix(admin::metrics::PREFIX);
    let clusters = start_clusters(&config, ours, &stop, &tracker)?;
    let registry = Arc::new(Registry::default());
    let operations = Administration::begin(
        config.state_file.clone(),
        clusters.clone(),
        Arc::clone(&registry),
        &stop,
        &tracker,
    );
    let token = config
        .http
        .token
        .as_ref()
        .map(|token| Arc::new(ArcSwap::from_pointee(token.clone())));
    let shared = Arc::new(share(&config, Arc::clone(&registry), ours, &tracker)?);
    let workers = Arc::new(Workers::start(config.workers)?);
    let readiness = Arc::new(Readiness::new());
    let views = views(&config, &clusters);
    admin::fit::register(metrics.sub_registry_with_prefix(admin::metrics::PREFIX), &views);
    let handles = Handles {
        clusters: views,
        access: access_view(&shared.access),
        operations: Arc::new(operations),
        token: token.clone(),
        readiness: Arc::clone(&readiness),
        registry: Arc::new(metrics),
        metrics: admin_metrics,
    };
    let admin = admin::spawn_thread(&config.http, handles, CancellationToken::new())?;
    announce(&config, workers.len());
    for cluster in clusters.values() {
        tracker.spawn(enforce::enforce(
            cluster.clone(),
            Arc::clone(&registry),
            stop.clone(),
        ));
    }
    let told = (Arc::clone(&shared), stop.clone());
    tracker.spawn(async move {
        tokio::join!(
            told.0.failures.summarise(told.1.clone()),
            told.0.sentry.summarise(told.1)
        );
    });
    let tls = config
        .tls
        .as_ref()
        .map(|tls| Arc::new(ArcSwap::from_pointee(Acceptor::new(tls))));
    let accepting = CancellationToken::new();
    let doors = TaskTracker::new();
    for (listener, bound) in config.listeners.iter().zip(bound) {
        let gate = gate(&config, listener, &clusters, tls.as_ref())?;
        let door = Door::new(Arc::new(gate), Arc::clone(&shared), Arc::clone(&workers));
        doors.spawn(listen::accept_loop(bound, door, accepting.clone()));
    }
    readiness.accepting();
    let sinks = Sinks {
        tls,
        http: admin.tls(),
        token,
        clusters,
        shared: Arc::clone(&shared),
    };
    tracker.spawn(Reload::new(config.clone(), sinks, file_metrics).run(hangup, stop.clone()));

    signals.wait().await;
    readiness.draining();
    accepting.cancel();
    doors.close();
    doors.wait().await;
    shared.closing.cancel();
    shutdown::drain(&registry, &workers, config.shutdown.grace, &mut signals).await;
    stop.cancel();
    tracker.close();
    shutdown::bounded("tasks", tracker.wait()).await;
    admin.stop();
    match Arc::try_unwrap(workers) {
        Ok(workers) => workers.stop(),
        Err(_still_shared) => warn!("a session outlived the shutdown"),
    }
    info!("stopped");
    Ok(())
}

/// Binds every listener, or says which could not be bound.
fn bind(config: &Config) -> anyhow::Result<Vec<Bound>> {
    let mut bound = Vec::new();
    let mut faults = Vec::new();
    for listener in &config.listeners {
        match listen::bind(&listener.address) {
            Ok(socket) => bound.push(socket),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                faults.push(format!(
                    "listener {}: {} is in use by another program",
                    listener.name, listener.address
                ));
            }
            Err(error) => faults.push(format!(
                "listener {}: cannot listen on {}: {error}",
                listener.name, listener.address
            )),
        }
    }
    if faults.is_empty() {
        Ok(bound)
    } else {
        Err(anyhow::anyhow!(faults.join("; ")))
    }
}

fn start_clusters(
    config: &Config,
    metrics: &mut Metrics,
    stop: &CancellationToken,
    tracker: &TaskTracker,
) -> anyhow::Result<HashMap<Arc<str>, ClusterHandle>> {
    let metrics = Arc::new(cluster::Metrics::register(metrics));
    let mut handles = HashMap::new();
    for cluster in config.clusters.values() {
        let handle = cluster::start(
            Arc::clone(cluster),
            &config.auth,
            lag_limits(config, &cluster.name),
            Arc::clone(&metrics),
            stop.clone(),
            tracker,
        )
        .with_context(|| format!("cluster {}", cluster.name))?;
        handles.insert(Arc::clone(&cluster.name), handle);
    }
    Ok(handles)
}

/// `max_lag` of the routes to a cluster.
fn lag_limits(config: &Config, cluster: &str) -> LagLimits {
    let routes = config.routes.values().filter(|route| &*route.cluster == cluster);
    routes
        .filter_map(|route| Some((Arc::clone(&route.name), route.max_lag?)))
        .collect()
}

fn share(
    config: &Config,
    registry: Arc<Registry>,
    metrics: &mut Metrics,
    tasks: &TaskTracker,
) -> anyhow::Result<Shared> {
    let incarnation = Incarnation::random();
    let secret = config.peers.as_ref().map(|peers| &peers.secret);
    let mock = Arc::new(MockSecret::new(secret));
    let access = Access::load(&config.auth, Around::of(config), &mock)?;
    for warning in access.warnings(Around::of(config)) {
        warn!("{warning}");
    }
    let sentry = Arc::new(Sentry::new(config.auth.rate_limit));
    let access = Arc::new(ArcSwap::from_pointee(access));
    let console = config.console.clone().map(|console| {
        let answers = admin::Console::new(access_view(&access));
        ConsoleDoor::new(console, Arc::new(answers))
    });
    Ok(Shared {
        console,
        admission: Arc::new(Admission::new(
            config.limits.max_clients,
            config.limits.max_pending_logins,
        )),
        quota: Arc::new(Quota::new(&config.limits)),
        metrics: Arc::new(session::metrics::Metrics::new(
            metrics,
            Arc::clone(&registry),
            Arc::clone(&sentry),
        )),
        sentry,
        registry,
        keys: KeyIssuer::new(incarnation, secret),
        peers: config.peers.as_ref().map(|peers| Peers::new(peers, incarnation)),
        access,
        mock,
        derivations: Arc::new(Semaphore::new(session::MOST_DERIVATIONS)),
        login_timeout: config.auth.login_timeout,
        cancels: Arc::new(Semaphore::new(session::MOST_CANCELS)),
        failures: session::Failures::default(),
        tasks: tasks.clone(),
        closing: CancellationToken::new(),
    })
}

/// The rules in service, whenever they are asked for.
fn access_view(access: &Arc<ArcSwap<Access>>) -> AccessView {
    let (rules, maps) = (Arc::clone(access), Arc::clone(access));
    AccessView {
        hba: Arc::new(move || rules.load().rules.rows()),
        ident: Arc::new(move || maps.load().maps.rows()),
    }
}

fn views(config: &Config, clusters: &HashMap<Arc<str>, ClusterHandle>) -> Vec<ClusterView> {
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
    let view = |cluster: &Arc<crate::config::Cluster>| {
        let handle = clusters.get(&cluster.name)?.clone();
        Some(ClusterView {
            name: Arc::clone(&cluster.name),
            snapshot: handle.subscribe(),
            local_member: cluster.local_member.clone(),
            dbname: cluster.service_account.dbname.clone(),
            read_write: served(&cluster.name, crate::config::Access::ReadWrite),
            read_only: served(&cluster.name, crate::config::Access::ReadOnly),
            // No request is held yet.
            holds_read_write: false,
            look_again: Arc::new(move || handle.look_again()),
        })
    };
    config.clusters.values().filter_map(view).collect()
}

fn gate(
    config: &Config,
    listener: &crate::config::Listener,
    clusters: &HashMap<Arc<str>, ClusterHandle>,
    tls: Option<&Arc<ArcSwap<Acceptor>>>,
) -> anyhow::Result<Gate> {
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
    Ok(Gate::new(
        Arc::clone(&listener.name),
        Arc::clone(route),
        cluster.clone(),
        listener.mode,
        offer,
        listener.max_clients,
        listener.entry.clone(),
    ))
}

fn announce(config: &Config, workers: usize) {
    info!(
        version = env!("CARGO_PKG_VERSION"),
        config = %config.path.display(),
        workers,
        "started"
    );
    for listener in &config.listeners {
        let tls = match (listener.tls, &config.tls) {
            _ if listener.mode == crate::config::ListenerMode::Tcp => "the server's",
            (crate::config::ListenerTls::Off, _) => "off",
            (_, None) => "none: no certificate is configured",
            (crate::config::ListenerTls::Optional, Some(_)) => "optional",
            (crate::config::ListenerTls::Required, Some(_)) => "required",
        };
        info!(listener = %listener.name, address = %listener.address, route = %listener.route, mode = %listener.mode, tls, "listening for clients");
    }
    for address in &config.http.addresses {
        info!(%address, tls = config.http.tls.is_some(), "listening for HTTP");
    }
    if let Some(check) = &config.http.agent_check {
        info!(address = %check.address, "listening for HAProxy's agent check");
    }
    for warning in config.warnings() {
        warn!("{warning}");
    }
}
