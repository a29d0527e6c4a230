//! Composes the rooms: threads, signals, readiness, drain.
//!
//! ```text
//! main      control: sources, probes, look-ups, accept loops, signals
//! worker-N  sessions, each on the worker it was handed to
//! admin     HTTP
//! ```
//! Shutdown has phases, each bounded: not ready, stop accepting, end sessions at their next boundary, cut what is
//! left, exit. A process that another one replaces stops accepting, and exits when its sessions have finished.

mod activation;
mod administration;
mod control;
mod door;
mod doors;
mod enforce;
mod handover;
mod limits;
mod notify;
mod reload;
mod service;
mod shutdown;
mod state_file;
mod upgrade;
mod workers;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use arc_swap::{ArcSwap, ArcSwapOption};
use prometheus_client::registry::Registry as Metrics;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::admin::log::LogHandle;
use crate::admin::metrics::FileMetrics;
use crate::admin::{self, AccessView, Handles, Readiness};
use crate::auth::scram::MockSecret;
use crate::cluster::{self, ClusterHandle, LagLimits};
use crate::config::Config;
use crate::frontend::access::{Access, Around};
use crate::frontend::listen::{self, Inheritance};
use crate::frontend::tls::Acceptor;
use crate::session::admission::Admission;
use crate::session::keys::{Incarnation, KeyIssuer};
use crate::session::quota::Quota;
use crate::session::registry::Registry;
use crate::session::sentry::Sentry;
use crate::session::{self, Shared, peers::Peers};
use administration::Administration;
use control::Desk;
use doors::Doors;
use handover::Taken;
use notify::Notifier;
use reload::{Reload, Replaced};
use service::Service;
use upgrade::Program;
use workers::Workers;

pub(crate) use control::{RELOAD, UPGRADE, UpgradeAnswer};

/// Serves until SIGTERM or SIGINT, or until another process does so in its place and the last session has finished.
/// With `take_over` it takes the place of the process whose control socket that is.
///
/// # Errors
/// What keeps it from starting: a port in use, a thread that cannot be made. Once it serves it does not fail.
pub fn run(config: Config, take_over: Option<&Path>) -> anyhow::Result<()> {
    // The first thing that has to do with descriptors: those passed by number are not others' yet.
    let inherited = activation::sockets()?;
    let program = Program::of_this_process();
    let log = admin::log::init(&config.log)?;
    limits::raise_open_files(&config.limits);
    let control = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let begin = match take_over {
        None => Begin {
            program,
            inherited,
            taken: None,
        },
        Some(path) => {
            let (taken, inherited) = handover::take(path).context("cannot take over")?;
            Begin {
                program,
                inherited,
                taken: Some(taken),
            }
        }
    };
    let outcome = control.block_on(serve(Arc::new(config), log, begin));
    // A passphrase command may be under way, and is nothing to wait for.
    control.shutdown_background();
    outcome
}

/// What a process has before it begins.
struct Begin {
    program: Program,
    /// What systemd or the process before listens on.
    inherited: Inheritance,
    /// The process to be replaced.
    taken: Option<Taken>,
}

async fn serve(config: Arc<Config>, log: LogHandle, begin: Begin) -> anyhow::Result<()> {
    let Begin {
        program,
        mut inherited,
        mut taken,
    } = begin;
    let bound =
        doors::bind(&config.listeners, &[], &mut inherited).map_err(|faults| anyhow!(faults.join("; ")))?;
    let control = match &config.control_socket {
        Some(path) => {
            let bound = doors::with_handle(&control::address(path), &[], &mut inherited);
            Some(bound.with_context(|| format!("control_socket: {}", path.display()))?)
        }
        None => None,
    };
    let mut signals = shutdown::Signals::listen().context("cannot listen for signals")?;
    let hangup = shutdown::hangup().context("cannot listen for signals")?;
    let stop = CancellationToken::new();
    let tracker = TaskTracker::new();
    let mut metrics = Metrics::default();
    let admin_metrics = admin::Metrics::register(&mut metrics);
    let file_metrics = FileMetrics::register(metrics.sub_registry_with_prefix(admin::metrics::PREFIX));
    let ours = metrics.sub_registry_with_prefix(admin::metrics::PREFIX);
    let cluster_metrics = Arc::new(cluster::Metrics::register(ours));
    let clusters = start_clusters(&config, &cluster_metrics, &stop, &tracker)?;
    let registry = Arc::new(Registry::default());
    let (ask, requests) = mpsc::channel(1);
    let administration = Arc::new(Administration::begin(
        config.state_file.clone(),
        taken.as_mut().map(|taken| std::mem::take(&mut taken.kept)),
        clusters.clone(),
        Arc::clone(&registry),
        ask.clone(),
        &stop,
        &tracker,
    ));
    let shared = Arc::new(share(&config, Arc::clone(&registry), ours, &tracker)?);
    let workers = Arc::new(Workers::start(config.workers)?);
    if let Some(taken) = &taken {
        let warm = taken.warm(&clusters).await;
        warm.map_err(|faults| anyhow!(faults.join("; ")))?;
    }
    let readiness = Arc::new(Readiness::new());
    let views = service::views(&config, &clusters);
    let fit = Arc::new(ArcSwap::from_pointee(views.clone()));
    admin::fit::register(
        metrics.sub_registry_with_prefix(admin::metrics::PREFIX),
        Arc::clone(&fit),
    );
    let handles = Handles {
        clusters: views,
        access: access_view(&shared.access),
        operations: Arc::clone(&administration) as _,
        token: Arc::new(ArcSwapOption::new(config.http.token.clone().map(Arc::new))),
        readiness: Arc::clone(&readiness),
        registry: Arc::new(metrics),
        metrics: admin_metrics,
    };
    let admin = admin::spawn_thread(
        &config.http,
        handles.clone(),
        CancellationToken::new(),
        &mut inherited,
    )?;
    if taken.is_none() && !inherited.left().is_empty() {
        bail!(
            "systemd listens on {}, and nothing in the configuration does",
            inherited.left().join(", ")
        );
    }
    // What the process before listens on, and this one does not.
    drop(inherited);
    announce(&config, workers.len());
    for cluster in clusters.values() {
        tracker.spawn(enforce::enforce(
            cluster.subscribe(),
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
    let mut doors = Doors::new(Arc::clone(&shared), Arc::clone(&workers));
    let gates = service::gates(&config, &clusters, tls.as_ref())?;
    if config.control_socket.is_some() {
        session::relatives::answer(&shared, stop.clone()).context("cannot listen for cancel requests")?;
    }
    if let Some(taken) = &mut taken {
        shared.relatives.add(std::mem::take(&mut taken.relatives));
    }
    doors.replace(gates, bound);
    readiness.accepting();
    let asking = CancellationToken::new();
    let control = control.map(|(bound, handle)| {
        let desk = Desk::new(ask, tracker.clone());
        tracker.spawn(listen::accept_loop(bound, desk, asking.clone()));
        handle
    });
    if let Some(taken) = taken {
        let process_id = taken.process_id;
        let own = shared.relatives.own().to_owned();
        match spawn_blocking(move || taken.serving(own)).await? {
            Ok(()) => info!(
                process_id,
                "took over from the process before, which finishes its sessions"
            ),
            Err(error) => {
                warn!(process_id, %error, "took over; it is not known whether the process before still listens");
            }
        }
        doors.claim();
        if let Some(control) = &control {
            control.claim();
        }
    }
    let notifier = Notifier::new(std::env::var_os("NOTIFY_SOCKET").as_deref());
    notifier.ready();
    let service = Service {
        tls,
        clusters,
        retired: HashMap::new(),
        shared: Arc::clone(&shared),
        doors,
        admin,
        handles,
        fit,
        administration,
        control,
        log,
        cluster_metrics,
        stop: stop.clone(),
        tracker: tracker.clone(),
    };
    let mut reload = Reload::new(config.clone(), service, file_metrics, requests, notifier, program);
    let replaced = tokio::select! {
        () = signals.wait() => None,
        replaced = reload.run(hangup) => Some(replaced),
    };
    let (config, service, notifier) = reload.into_parts();
    readiness.draining();
    asking.cancel();
    let (clusters, admin) = match replaced {
        None => {
            notifier.stopping();
            let Service {
                doors,
                admin,
                clusters,
                ..
            } = service;
            doors.close().await;
            shared.closing.cancel();
            shutdown::drain(&registry, &workers, config.shutdown.grace, &mut signals).await;
            (clusters, Some(admin))
        }
        Some(replaced) => {
            let clusters = leave(service, replaced, &notifier).await;
            let limit = config.shutdown.handover;
            if !shutdown::finish(&registry, &workers, limit, &mut signals).await {
                shared.closing.cancel();
                shutdown::drain(&registry, &workers, config.shutdown.grace, &mut signals).await;
            }
            (clusters, None)
        }
    };
    stop.cancel();
    drop(clusters);
    tracker.close();
    shutdown::bounded("tasks", tracker.wait()).await;
    if let Some(admin) = admin {
        admin.stop();
    }
    match Arc::try_unwrap(workers) {
        Ok(workers) => workers.stop(),
        Err(_still_shared) => warn!("a session outlived the shutdown"),
    }
    info!("stopped");
    Ok(())
}

/// Leaves everything but the sessions to the process that serves by now.
async fn leave(
    service: Service,
    replaced: Replaced,
    notifier: &Notifier,
) -> HashMap<Arc<str>, ClusterHandle> {
    let Replaced { by, asked } = replaced;
    let Service {
        doors,
        admin,
        clusters,
        control,
        shared,
        administration,
        ..
    } = service;
    let process_id = by.process_id;
    notifier.replaced_by(process_id);
    // A client that connects here in this last moment may have a session there.
    shared.relatives.add([by.relative.clone()]);
    doors.release();
    if let Some(control) = control {
        control.release();
    }
    administration.release();
    doors.close().await;
    // It waits for its thread.
    let stopped = spawn_blocking(move || admin.stop()).await;
    let confirmed = spawn_blocking(move || by.confirm()).await;
    if let (Err(error), _) | (_, Err(error)) = (stopped, confirmed.map(drop)) {
        warn!(%error, "something went wrong while handing over");
    }
    let sessions = shared.registry.len();
    info!(
        process_id,
        sessions, "replaced: another process accepts connections now, and the sessions here finish"
    );
    if let Some(asked) = asked {
        // Whoever asked may be gone.
        let _ = asked.send(UpgradeAnswer {
            process_id: Some(process_id),
            old_process_id: std::process::id(),
            sessions,
            faults: Vec::new(),
        });
    }
    clusters
}

fn start_clusters(
    config: &Config,
    metrics: &Arc<cluster::Metrics>,
    stop: &CancellationToken,
    tracker: &TaskTracker,
) -> anyhow::Result<HashMap<Arc<str>, ClusterHandle>> {
    let mut handles = HashMap::new();
    for cluster in config.clusters.values() {
        let handle = cluster::start(
            Arc::clone(cluster),
            &config.auth,
            lag_limits(config, &cluster.name),
            Arc::clone(metrics),
            stop,
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
    let console = service::console_door(config, &access);
    Ok(Shared {
        console: ArcSwapOption::new(console),
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
        peers: ArcSwapOption::new(
            config
                .peers
                .as_ref()
                .map(|peers| Arc::new(Peers::new(peers, incarnation))),
        ),
        relatives: session::relatives::Relatives::default(),
        access,
        mock,
        derivations: Arc::new(Semaphore::new(session::MOST_DERIVATIONS)),
        login_timeout: ArcSwap::from_pointee(config.auth.login_timeout),
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
