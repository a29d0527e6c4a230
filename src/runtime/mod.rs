//! Composes the rooms: threads, signals, readiness, drain.
//!
//! ```text
//! main      control: sources, probes, look-ups, accept loops, signals
//! worker-N  sessions, each on the worker it was handed to
//! admin     HTTP
//! ```
//! Shutdown has phases, each bounded: not ready (`shutdown.delay`), stop accepting, end sessions at their next boundary, cut what is
//! left, exit. A process that another one replaces stops accepting, and exits when its sessions have finished; it is ready
//! to the end, as the service is.

mod accept_handler;
mod activation;
mod administration;
mod control;
mod files;
pub(crate) mod handover;
mod limits;
mod listeners;
mod notify;
mod process;
mod service;
mod shutdown;
mod state_file;
mod supervisor;
mod upgrade;
mod workers;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use arc_swap::{ArcSwap, ArcSwapOption};
use prometheus_client::registry::Registry as Metrics;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::admin::log::LogHandle;
use crate::admin::metrics::FileMetrics;
use crate::admin::{self, AccessView, Handles, Readiness};
use crate::auth::scram::MockSecret;
use crate::cluster::{self, ClusterHandle, LagLimits, Reporting};
use crate::config::Config;
use crate::events::{Events, ProcessEvent, ReloadEvent};
use crate::frontend::auth_policy::{Around, AuthPolicy};
use crate::frontend::tls::Acceptor;
use crate::listen::{self, Inheritance};
use crate::session::arrival::Quota;
use crate::session::arrival::admission::Admission;
use crate::session::arrival::login_throttle::SharedThrottle;
use crate::session::generations::Generations;
use crate::session::keys::{Incarnation, KeyIssuer};
use crate::session::occupancy::Occupancy;
use crate::session::orders;
use crate::session::registry::Registry;
use crate::session::{self, Shared, peers::Peers};
use administration::Administration;
use control::Desk;
use files::FileReader;
use listeners::Listeners;
use notify::Notifier;
use service::Service;
use supervisor::{ENDING, REPLACED, Supervisor};
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
    let _flush = log.at_end();
    limits::raise_open_files(&config.limits);
    let control = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let begin = Begin {
        program,
        inherited,
        take_over: take_over.map(Path::to_owned),
    };
    let outcome = control.block_on(serve(Arc::new(config), log, begin));
    // A passphrase command may be under way, and is nothing to wait for.
    control.shutdown_background();
    outcome
}

/// What a process has before it begins.
struct Begin {
    program: Program,
    /// What systemd listens on.
    inherited: Inheritance,
    /// The control socket of the process to be replaced.
    take_over: Option<PathBuf>,
}

async fn serve(config: Arc<Config>, log: LogHandle, begin: Begin) -> anyhow::Result<()> {
    let Begin {
        program,
        mut inherited,
        take_over,
    } = begin;
    let events = Events::new();
    let mut signals = shutdown::Signals::listen(events.clone()).context("cannot listen for signals")?;
    let mut hangup = shutdown::hangup().context("cannot listen for signals")?;
    let generations = Generations::default();
    let mut taken = match take_over {
        None => None,
        Some(path) => {
            let asking = handover::take(&path, generations.own());
            let (taken, sockets) = signals.unless_ended(asking).await?.context("cannot take over")?;
            inherited = sockets;
            Some(taken)
        }
    };
    let bound = listeners::bind(&config.listeners, &[], &mut inherited)
        .map_err(|faults| anyhow!(faults.join("; ")))?;
    let control = match &config.control_socket {
        Some(path) => {
            let bound = listen::bind(&control::address(path), &[], &mut inherited);
            Some(bound.with_context(|| format!("control_socket: {}", path.display()))?)
        }
        None => None,
    };
    let stop = CancellationToken::new();
    let tracker = TaskTracker::new();
    let mut metrics = Metrics::default();
    let admin_metrics = admin::Metrics::register(&mut metrics, log.lost());
    let file_metrics = FileMetrics::register(metrics.sub_registry_with_prefix(admin::metrics::PREFIX));
    let readiness = Arc::new(Readiness::new());
    readiness.drain(taken.as_ref().is_some_and(|taken| taken.is_drained));
    admin_metrics.follow(&mut metrics, &readiness);
    let ours = metrics.sub_registry_with_prefix(admin::metrics::PREFIX);
    let cluster_metrics = Arc::new(cluster::Metrics::register(ours));
    let reporting = Reporting {
        metrics: Arc::clone(&cluster_metrics),
        events: events.clone(),
    };
    let clusters = start_clusters(&config, &reporting, &stop, &tracker)?;
    let registry = Arc::new(Registry::default());
    let occupancy = Arc::new(Occupancy::default());
    let (ask, requests) = mpsc::channel(1);
    let administration = Arc::new(Administration::begin(
        config.state_file.clone(),
        taken.as_mut().map(|taken| std::mem::take(&mut taken.kept)),
        clusters.clone(),
        (Arc::clone(&registry), Arc::clone(&occupancy)),
        Arc::clone(&readiness),
        ask.clone(),
        (&stop, &tracker),
    ));
    let shared = Arc::new(share(
        &config,
        (Arc::clone(&registry), occupancy),
        generations,
        ours,
        &tracker,
    )?);
    let workers = Arc::new(Workers::start(config.workers)?);
    if let Some(taken) = &mut taken {
        let warming = taken.warm(&clusters);
        signals.unless_ended(warming).await?.context("cannot take over")?;
    }
    let views = service::views(&config, &clusters);
    let fit = Arc::new(ArcSwap::from_pointee(views.clone()));
    admin::fit_metric::register(
        metrics.sub_registry_with_prefix(admin::metrics::PREFIX),
        Arc::clone(&fit),
    );
    let handles = Handles {
        clusters: views,
        access: access_view(&shared.auth_policy),
        operations: Arc::clone(&administration) as _,
        token: Arc::new(ArcSwapOption::new(config.http.token.clone().map(Arc::new))),
        readiness: Arc::clone(&readiness),
        registry: Arc::new(metrics),
        metrics: admin_metrics,
        events: events.clone(),
    };
    let admin = admin::prepare(
        &config.http,
        handles.clone(),
        CancellationToken::new(),
        &mut inherited,
    )?;
    let left = inherited.places();
    if taken.is_none() && !left.is_empty() {
        let left: Vec<String> = left.iter().map(ToString::to_string).collect();
        bail!(
            "systemd listens on {}, and nothing in the configuration does",
            left.join(", ")
        );
    }
    // What the process before listens on, and this one does not.
    drop(inherited);
    for cluster in clusters.values() {
        tracker.spawn(orders::enforce(
            cluster.subscribe(),
            Arc::clone(&registry),
            stop.clone(),
        ));
    }
    let told = (Arc::clone(&shared), stop.clone());
    tracker.spawn(async move {
        tokio::join!(
            told.0.failures.summarise(told.1.clone()),
            told.0.login_throttle.summarise(told.1)
        );
    });
    let tls = config
        .tls
        .as_ref()
        .map(|tls| Arc::new(ArcSwap::from_pointee(Acceptor::new(tls))));
    let mut listeners = Listeners::new(Arc::clone(&shared), Arc::clone(&workers));
    let wanted = service::wanted_listeners(&config, &clusters, tls.as_ref(), &shared.occupancy)?;
    if config.control_socket.is_some() || taken.is_some() {
        session::generations::answer(&shared, stop.clone()).context("cannot listen for cancel requests")?;
    }
    let successor = match taken {
        None => None,
        Some(mut taken) => {
            shared.generations.add(std::mem::take(&mut taken.generations));
            let process_id = taken.process_id;
            let waiting = signals.unless_ended(taken.ready(&left));
            Some((process_id, waiting.await?.context("cannot take over")?))
        }
    };
    // From here on nothing fails.
    readiness.accepting();
    listeners.replace(wanted, bound);
    let admin = admin.open();
    let asking = CancellationToken::new();
    let control = control.map(|(bound, handle)| {
        let desk = Desk::new(ask, tracker.clone());
        tracker.spawn(listen::accept_loop(bound, desk, asking.clone()));
        handle
    });
    announce(&config, workers.len(), &events);
    let notifier = Notifier::new(std::env::var_os("NOTIFY_SOCKET").as_deref());
    let service = Service {
        tls,
        clusters,
        retired: HashMap::new(),
        shared: Arc::clone(&shared),
        listeners,
        admin,
        handles,
        fit,
        administration,
        control,
        asking,
        log,
        files: FileReader::default(),
        cluster_metrics,
        stop: stop.clone(),
        tracker: tracker.clone(),
    };
    if let Some((process_id, successor)) = successor {
        service.claim();
        service.administration.claim();
        match successor.serving().await {
            Ok(()) => events.emit(ProcessEvent::TookOver {
                process_id,
                error: None,
            }),
            Err(error) => events.emit(ProcessEvent::TookOver {
                process_id,
                error: Some(error.to_string()),
            }),
        }
    }
    notifier.ready();
    let mut supervisor = Supervisor::new(config.clone(), service, file_metrics, requests, notifier, program);
    let is_replaced = loop {
        let heir = tokio::select! {
            () = signals.wait() => break false,
            heir = supervisor.run(&mut hangup) => heir,
        };
        if supervisor.commit(heir, &mut hangup).await {
            break true;
        }
    };
    let limit = supervisor.config().shutdown.handover;
    let has_finished = is_replaced
        && tokio::select! {
            has_finished = shutdown::finish(&registry, &workers, limit, &mut signals) => has_finished,
            () = supervisor.watch(REPLACED) => false,
        };
    if !is_replaced {
        readiness.leaving();
        let shutdown = supervisor.config().shutdown.clone();
        if shutdown.delay.is_zero() {
            supervisor.notifier().stopping();
        } else {
            supervisor
                .notifier()
                .stopping_within(shutdown::longest(&shutdown));
            tokio::select! {
                () = shutdown::delay(shutdown.delay, &mut signals) => {}
                () = supervisor.watch(ENDING) => {}
            }
        }
    }
    let (config, mut service) = supervisor.into_parts();
    if !is_replaced {
        readiness.draining();
        service.asking.cancel();
        // Each holds its port.
        service.control = None;
        service.listeners.close().await;
    }
    if !has_finished {
        shared.closing.cancel();
        shutdown::drain(&registry, &workers, config.shutdown.grace, &mut signals).await;
    }
    let Service {
        admin,
        clusters,
        listeners,
        ..
    } = service;
    drop(listeners);
    // Where all sessions have finished by themselves, peers may still be there that ask.
    shared.closing.cancel();
    stop.cancel();
    drop(clusters);
    tracker.close();
    shutdown::bounded("tasks", tracker.wait()).await;
    if is_replaced {
        admin.answered().await;
    }
    admin.stop();
    match Arc::try_unwrap(workers) {
        Ok(workers) => workers.stop(),
        Err(_still_shared) => warn!("a session outlived the shutdown"),
    }
    info!("stopped");
    Ok(())
}

fn start_clusters(
    config: &Config,
    reporting: &Reporting,
    stop: &CancellationToken,
    tracker: &TaskTracker,
) -> anyhow::Result<HashMap<Arc<str>, ClusterHandle>> {
    let mut handles = HashMap::new();
    for cluster in config.clusters.values() {
        let handle = cluster::start(
            Arc::clone(cluster),
            &config.auth,
            lag_limits(config, &cluster.name),
            reporting.clone(),
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
    (registry, occupancy): (Arc<Registry>, Arc<Occupancy>),
    generations: Generations,
    metrics: &mut Metrics,
    tasks: &TaskTracker,
) -> anyhow::Result<Shared> {
    let incarnation = Incarnation::random();
    let secret = config.peers.as_ref().map(|peers| &peers.secret);
    let mock = Arc::new(MockSecret::new(secret));
    let access = AuthPolicy::load(&config.auth, Around::of(config), &mock)?;
    for warning in access.warnings(Around::of(config)) {
        warn!("{warning}");
    }
    let login_throttle = Arc::new(SharedThrottle::new(config.auth.rate_limit.clone()));
    let auth_policy = Arc::new(ArcSwap::from_pointee(access));
    let console = service::console_access(config, &auth_policy);
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
            Arc::clone(&login_throttle),
        )),
        login_throttle,
        registry,
        occupancy,
        keys: KeyIssuer::new(incarnation, secret),
        peers: ArcSwapOption::new(
            config
                .peers
                .as_ref()
                .map(|peers| Arc::new(Peers::new(peers, incarnation))),
        ),
        generations,
        auth_policy,
        mock,
        derivations: Arc::default(),
        login_timeout: ArcSwap::from_pointee(config.auth.login_timeout),
        cancels: session::cancel::Cancels::default(),
        failures: session::Failures::default(),
        tasks: tasks.clone(),
        closing: CancellationToken::new(),
    })
}

/// The rules in service, whenever they are asked for.
fn access_view(access: &Arc<ArcSwap<AuthPolicy>>) -> AccessView {
    let (rules, maps) = (Arc::clone(access), Arc::clone(access));
    AccessView {
        hba: Arc::new(move || rules.load().rules.rows()),
        ident: Arc::new(move || maps.load().maps.rows()),
    }
}

fn announce(config: &Config, workers: usize, events: &Events) {
    events.emit(ProcessEvent::Started {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        config: config.path.display().to_string(),
        workers,
    });
    for listener in &config.listeners {
        let tls = match (listener.tls, &config.tls) {
            _ if listener.mode == crate::config::ListenerMode::Tcp => "the server's",
            (crate::config::ListenerTls::Optional | crate::config::ListenerTls::Required, None) => {
                "none: no certificate is configured"
            }
            (tls, _) => crate::config::Words::word(tls),
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
        let at_start = true;
        events.emit(ReloadEvent::ConfigurationWarning { warning, at_start });
    }
}
