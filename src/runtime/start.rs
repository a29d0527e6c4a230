//! The start of a process. Each phase has a type: [`Begin`] binds the sockets, [`Sockets`] makes
//! everything that serves, [`Prepared`] takes over from an old process if there is one, and opens.
//!
//! Everything that can fail comes before the last phase. If an earlier phase is dropped, the old
//! process stays as it was.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use arc_swap::{ArcSwap, ArcSwapOption};
use prometheus_client::registry::Registry as Metrics;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::administration::Administration;
use super::control::{self, ControlHandler, ControlRequest, Requests};
use super::files::FileReader;
use super::handover::{self, OldProcess};
use super::hold_events;
use super::holding::HoldingRouter;
use super::inventory::Inventory;
use super::lag_limits;
use super::listeners::{self, Listeners, WantedListener};
use super::notify::Notifier;
use super::processes::{self, AllProcesses};
use super::running::Running;
use super::service::{self, Service};
use super::shutdown::Signals;
use super::supervisor::Supervisor;
use super::upgrade::Program;
use super::workers::Workers;
use crate::admin::log::LogHandle;
use crate::admin::metrics::FileMetrics;
use crate::admin::{self, ClusterView, Handles, Readiness};
use crate::auth::crypto::random;
use crate::auth::scram::MockSecret;
use crate::cluster::{self, ClusterHandle, Reporting};
use crate::config::{Config, ListenerMode, ListenerTls, Words};
use crate::events::{Events, ProcessEvent, ReloadEvent};
use crate::frontend::auth_policy::{AuthPolicy, PolicyContext};
use crate::frontend::tls::Acceptor;
use crate::listen::{self, Bound, BoundPlace, Handle, Inheritance};
use crate::session::arrival::Quota;
use crate::session::arrival::admission::Admission;
use crate::session::arrival::login_throttle::SharedThrottle;
use crate::session::generations::Generations;
use crate::session::holds::Holds;
use crate::session::keys::{Incarnation, KeyIssuer};
use crate::session::occupancy::Occupancy;
use crate::session::orders;
use crate::session::pool::open;
use crate::session::pool::pools::{Pools, Spare};
use crate::session::registry::Registry;
use crate::session::{self, Shared, peers::Peers};

/// The input of a start.
pub(super) struct Begin {
    pub(super) config: Arc<Config>,
    pub(super) events: Events,
    pub(super) log: LogHandle,
    pub(super) program: Program,
    /// The sockets that systemd passed.
    pub(super) inherited: Inheritance,
    /// The control socket of the process to be replaced.
    pub(super) take_over: Option<PathBuf>,
}

/// The phase after the ports are bound or taken over. They accept nothing yet.
pub(super) struct Sockets {
    config: Arc<Config>,
    events: Events,
    log: LogHandle,
    program: Program,
    generations: Arc<Generations>,
    /// The old process, if this one takes over.
    old_process: Option<OldProcess>,
    listeners: Vec<(Bound, Handle)>,
    control: Option<(Bound, Handle)>,
    /// The sockets for HTTP, and those on which this process does not listen.
    inherited: Inheritance,
}

impl Begin {
    /// Binds the ports for clients and the control socket, or takes them over from the old process.
    ///
    /// # Errors
    /// A port is in use; the old process passes nothing on; a signal came.
    pub(super) async fn bind(self, signals: &mut Signals) -> anyhow::Result<Sockets> {
        let Self {
            config,
            events,
            log,
            program,
            mut inherited,
            take_over,
        } = self;
        let generations = Arc::new(Generations::default());
        let mut old_process = None;
        if let Some(path) = take_over {
            let taking = handover::take(&path, generations.own());
            let (offered, sockets) = signals.unless_ended(taking).await?.context("cannot take over")?;
            inherited = sockets;
            old_process = Some(offered);
        }
        let listeners = listeners::bind(&config.listeners, &[], &mut inherited)
            .map_err(|faults| anyhow!(faults.join("; ")))?;
        let control = match &config.control_socket {
            Some(path) => {
                let bound = listen::bind(&control::address(path), &[], &mut inherited);
                Some(bound.with_context(|| format!("control_socket: cannot listen on {}", path.display()))?)
            }
            None => None,
        };
        Ok(Sockets {
            config,
            events,
            log,
            program,
            generations,
            old_process,
            listeners,
            control,
            inherited,
        })
    }
}

/// The phase after everything that serves has been made. Nothing is served yet.
pub(super) struct Prepared {
    config: Arc<Config>,
    log: LogHandle,
    program: Program,
    old_process: Option<OldProcess>,
    /// The places where the old process listens and this one does not.
    left: Vec<BoundPlace>,
    listeners: Vec<(Bound, Handle)>,
    control: Option<(Bound, Handle)>,
    wanted: Vec<WantedListener>,
    tls: Option<Arc<ArcSwap<Acceptor>>>,
    parts: Parts,
    file_metrics: FileMetrics,
    workers: Arc<Workers>,
    handles: Handles,
    inventory: Arc<Inventory>,
    metric_views: Arc<ArcSwap<Vec<ClusterView>>>,
    admin: admin::Prepared,
}

/// Everything below HTTP that serves by the configuration, and its tasks.
struct Parts {
    clusters: HashMap<Arc<str>, ClusterHandle>,
    cluster_metrics: Arc<cluster::Metrics>,
    shared: Arc<Shared>,
    administration: Arc<Administration>,
    request_sender: Requests,
    requests: mpsc::Receiver<ControlRequest>,
    /// Taken by the task that opens them.
    spares: Option<mpsc::Receiver<Spare>>,
    readiness: Arc<Readiness>,
    stop: CancellationToken,
    tracker: TaskTracker,
}

/// Connections of pools that wait to be opened. The pools ask again for what does not fit.
const SPARES: usize = 64;

impl Sockets {
    /// Makes everything that serves. If there is an old process, the clusters have had time to see
    /// what it sees.
    ///
    /// # Errors
    /// The process cannot start; a signal came.
    pub(super) async fn prepare(mut self, signals: &mut Signals) -> anyhow::Result<Prepared> {
        let mut metrics = Metrics::default();
        let admin_metrics = admin::Metrics::register(&mut metrics, self.log.lost());
        let file_metrics = FileMetrics::register(metrics.sub_registry_with_prefix(admin::metrics::PREFIX));
        let readiness = Arc::new(Readiness::new());
        admin_metrics.follow(&mut metrics, &readiness);
        let generations = Arc::clone(&self.generations);
        let ours = metrics.sub_registry_with_prefix(admin::metrics::PREFIX);
        let reporting = Reporting {
            metrics: Arc::new(cluster::Metrics::register(ours)),
            events: self.events.clone(),
        };
        let old_process = self.old_process.as_mut();
        let mut parts = Parts::start(&self.config, old_process, generations, readiness, reporting, ours)?;
        let workers = Arc::new(Workers::start(self.config.workers)?);
        if let Some(old_process) = &mut self.old_process {
            let waiting = old_process.wait_for_same_view(&parts.clusters);
            signals.unless_ended(waiting).await?.context("cannot take over")?;
        }
        let views = service::views(&self.config, &parts.clusters, &parts.shared.occupancy);
        let metric_views = Arc::new(ArcSwap::from_pointee(views.clone()));
        let ours = metrics.sub_registry_with_prefix(admin::metrics::PREFIX);
        let disabled_routes = Arc::clone(&parts.shared.disabled_routes);
        let paused = Arc::clone(parts.shared.occupancy.paused_routes());
        let disabled = Arc::clone(&disabled_routes);
        admin::fit_metric::register(ours, Arc::clone(&metric_views), disabled, paused);
        let inventory = Arc::new(Inventory::new(&parts.shared, &parts.readiness, &self.config));
        let handles = Handles {
            clusters: views,
            access: service::access_view(&parts.shared.auth_policy),
            operations: Arc::new(AllProcesses {
                administration: Arc::clone(&parts.administration),
                generations: Arc::clone(&self.generations),
            }),
            holding: Arc::new(HoldingRouter::new(
                Arc::clone(&parts.shared),
                Arc::clone(&parts.administration),
                self.events.clone(),
                (&parts.tracker, &parts.stop),
            )),
            inventory: Arc::clone(&inventory) as Arc<dyn admin::Inventory>,
            token: Arc::new(ArcSwapOption::new(self.config.http.token.clone().map(Arc::new))),
            readiness: Arc::clone(&parts.readiness),
            disabled_routes,
            registry: Arc::new(metrics),
            metrics: admin_metrics,
            events: self.events,
            history: admin::History::default(),
            has_page: self.config.http.ui,
        };
        hold_events::emit(&parts.shared.occupancy, handles.events.clone());
        let console = service::console_access(&self.config, &handles);
        parts.shared.console.store(console);
        let http = &self.config.http;
        let admin = admin::prepare(
            http,
            handles.clone(),
            CancellationToken::new(),
            &mut self.inherited,
        )?;
        let left = self.inherited.places();
        if self.old_process.is_none() && !left.is_empty() {
            let left: Vec<String> = left.iter().map(ToString::to_string).collect();
            bail!(
                "systemd passed sockets for {}, and no listener in the configuration uses them",
                left.join(", ")
            );
        }
        parts.spawn_tasks();
        let certificate = self.config.tls.as_ref();
        let tls = certificate.map(|tls| Arc::new(ArcSwap::from_pointee(Acceptor::new(tls))));
        let occupancy = &parts.shared.occupancy;
        let wanted = service::wanted_listeners(&self.config, &parts.clusters, tls.as_ref(), occupancy)?;
        if self.config.control_socket.is_some() || self.old_process.is_some() {
            parts.answer_processes()?;
        }
        Ok(Prepared {
            config: self.config,
            log: self.log,
            program: self.program,
            old_process: self.old_process,
            left,
            listeners: self.listeners,
            control: self.control,
            wanted,
            tls,
            parts,
            file_metrics,
            workers,
            handles,
            inventory,
            metric_views,
            admin,
        })
    }
}

impl Parts {
    /// Starts everything without waiting, so that the clusters have the operators' settings before
    /// their first check.
    fn start(
        config: &Config,
        mut old_process: Option<&mut OldProcess>,
        generations: Arc<Generations>,
        readiness: Arc<Readiness>,
        reporting: Reporting,
        metrics: &mut Metrics,
    ) -> anyhow::Result<Self> {
        readiness.drain(
            old_process
                .as_ref()
                .is_some_and(|old_process| old_process.is_drained),
        );
        let stop = CancellationToken::new();
        let tracker = TaskTracker::new();
        let clusters = start_clusters(config, &reporting, &stop, &tracker)?;
        let registry = Arc::new(Registry::default());
        registry.number_from(
            old_process
                .as_ref()
                .map_or(0, |old_process| old_process.first_session),
        );
        let occupancy = Arc::new(Occupancy::default());
        if old_process.is_some() {
            occupancy.assume_served();
        }
        let (request_sender, requests) = mpsc::channel(1);
        let (spare_sender, spares) = mpsc::channel(SPARES);
        let shared = share(
            config,
            (Arc::clone(&registry), Arc::clone(&occupancy)),
            generations,
            metrics,
            (&tracker, spare_sender),
        )?;
        let shared = Arc::new(shared);
        let administration = Arc::new(Administration::begin(
            config.state_file.clone(),
            old_process
                .as_mut()
                .map(|old_process| std::mem::take(&mut old_process.kept)),
            clusters.clone(),
            (
                registry,
                occupancy,
                Arc::clone(&shared.pools),
                Arc::clone(&shared.disabled_routes),
            ),
            Arc::clone(&readiness),
            request_sender.clone(),
            (&stop, &tracker),
        ));
        shared.opener.attend(&shared);
        service::know_clusters(&shared, config, &clusters);
        Ok(Self {
            clusters,
            cluster_metrics: reporting.metrics,
            shared,
            spares: Some(spares),
            administration,
            request_sender,
            requests,
            readiness,
            stop,
            tracker,
        })
    }

    /// Answers the other processes of this router.
    fn answer_processes(&self) -> anyhow::Result<()> {
        let responder = Arc::new(processes::Local {
            shared: Arc::clone(&self.shared),
            administration: Arc::clone(&self.administration),
        });
        let generations = &self.shared.generations;
        session::generations::answer(generations, responder, &self.tracker, self.stop.clone())
            .context("cannot listen for other processes of this router")
    }

    fn spawn_tasks(&mut self) {
        if let Some(spares) = self.spares.take() {
            let (shared, stop) = (Arc::clone(&self.shared), self.stop.clone());
            self.tracker.spawn(async move {
                let pools = Arc::clone(&shared.pools).keep(stop.clone());
                tokio::join!(pools, shared.opener.serve(&shared, spares, stop));
            });
        }
        for cluster in self.clusters.values() {
            let registry = Arc::clone(&self.shared.registry);
            let enforcing = orders::enforce(cluster.subscribe(), registry, self.stop.clone());
            self.tracker.spawn(enforcing);
            self.tracker
                .spawn(service::follow(&self.shared, cluster, self.stop.clone()));
        }
        self.tracker.spawn(Arc::clone(&self.administration).keep_pauses());
        let (shared, stop) = (Arc::clone(&self.shared), self.stop.clone());
        self.tracker.spawn(async move {
            tokio::join!(
                shared.failures.summarise(stop.clone()),
                shared.login_throttle.summarise(stop)
            );
        });
    }
}

impl Prepared {
    /// Takes over from the old process if there is one, and serves.
    ///
    /// # Errors
    /// The old process does not hand over; a signal came.
    pub(super) async fn open(mut self, signals: &mut Signals) -> anyhow::Result<Running> {
        let shared = Arc::clone(&self.parts.shared);
        let committed = match self.old_process.take() {
            None => None,
            Some(mut old_process) => {
                shared
                    .generations
                    .add(std::mem::take(&mut old_process.generations));
                let process_id = old_process.process_id;
                let waiting = signals.unless_ended(old_process.ready(&self.left));
                Some((process_id, waiting.await?.context("cannot take over")?))
            }
        };
        // From here on nothing fails.
        let events = self.handles.events.clone();
        let readiness = Arc::clone(&self.parts.readiness);
        let workers = Arc::clone(&self.workers);
        readiness.accepting();
        let supervisor = self.serve();
        if let Some((process_id, committed)) = committed {
            supervisor.claim();
            match committed.serving().await {
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
        // The metrics include the traffic of the processes before from now on.
        let generations = Arc::clone(&shared.generations);
        shared.tasks.spawn(async move {
            generations.refresh_totals().await;
        });
        supervisor.notifier().ready();
        Ok(Running {
            supervisor,
            workers,
            shared,
            readiness,
        })
    }

    /// Accepts connections from now on.
    fn serve(self) -> Supervisor {
        let Parts {
            spares: _,
            clusters,
            cluster_metrics,
            shared,
            administration,
            request_sender,
            requests,
            readiness: _,
            stop,
            tracker,
        } = self.parts;
        let mut listeners = Listeners::new(Arc::clone(&shared), Arc::clone(&self.workers));
        listeners.replace(self.wanted, self.listeners);
        let admin = self.admin.open();
        let control_stop = CancellationToken::new();
        let control = self.control.map(|(bound, handle)| {
            let handler = ControlHandler::new(request_sender, tracker.clone(), self.config.path.clone());
            tracker.spawn(listen::accept_loop(bound, handler, control_stop.clone()));
            handle
        });
        announce(&self.config, self.workers.len(), &self.handles.events);
        let service = Service {
            tls: self.tls,
            clusters,
            retired: HashMap::new(),
            shared,
            listeners,
            admin,
            handles: self.handles,
            inventory: self.inventory,
            metric_views: self.metric_views,
            administration,
            control,
            control_stop,
            log: self.log,
            files: FileReader::default(),
            cluster_metrics,
            stop,
            tracker,
        };
        let notifier = Notifier::new(std::env::var_os("NOTIFY_SOCKET").as_deref());
        Supervisor::new(
            self.config,
            service,
            self.file_metrics,
            requests,
            notifier,
            self.program,
        )
    }
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

fn share(
    config: &Config,
    (registry, occupancy): (Arc<Registry>, Arc<Occupancy>),
    generations: Arc<Generations>,
    metrics: &mut Metrics,
    (tasks, spares): (&TaskTracker, mpsc::Sender<Spare>),
) -> anyhow::Result<Shared> {
    let incarnation = Incarnation::random();
    let secret = config.peers.as_ref().map(|peers| &peers.secret);
    let mock = Arc::new(MockSecret::new(secret));
    let access = AuthPolicy::load(&config.auth, PolicyContext::of(config), &mock)?;
    for warning in access.warnings(PolicyContext::of(config)) {
        warn!("{warning}");
    }
    let login_throttle = Arc::new(SharedThrottle::new(config.auth.rate_limit.clone()));
    let auth_policy = Arc::new(ArcSwap::from_pointee(access));
    let closing = CancellationToken::new();
    let session_metrics = session::metrics::Metrics::new(
        metrics,
        Arc::clone(&registry),
        Arc::clone(&login_throttle),
        Arc::clone(&generations),
    );
    let pool_metrics = session_metrics.pools(metrics);
    occupancy.register(metrics);
    let pools = Pools::new(Arc::clone(&occupancy), pool_metrics, open::rehome, spares);
    pools.register_connections(metrics);
    Ok(Shared {
        pools,
        opener: Arc::default(),
        pool_secret: random(),
        console: ArcSwapOption::empty(),
        admission: Arc::new(Admission::new(
            config.limits.max_clients,
            config.limits.max_pending_logins,
        )),
        quota: Arc::new(Quota::new(&config.limits)),
        metrics: Arc::new(session_metrics),
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
        disabled_routes: Arc::default(),
        holds: Holds::default(),
        cancels: session::cancel::Cancels::default(),
        failures: session::Failures::default(),
        tasks: tasks.clone(),
        console_closing: closing.child_token(),
        closing,
    })
}

fn announce(config: &Config, workers: usize, events: &Events) {
    events.emit(ProcessEvent::Started {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        config: config.path.display().to_string(),
        workers,
    });
    for listener in &config.listeners {
        let tls = match (listener.tls, &config.tls) {
            _ if listener.mode == ListenerMode::Tcp => "the server's",
            (ListenerTls::Optional | ListenerTls::Required, None) => "none: no certificate is configured",
            (tls, _) => Words::word(tls),
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
