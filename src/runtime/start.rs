//! The start of a process, a type for each phase: [`Begin`] binds the sockets, [`Sockets`] makes everything that serves,
//! [`Prepared`] takes over from the old process where there is one, and opens.
//!
//! Everything that can fail comes before the last phase. Dropped before it, a phase leaves the old process as it was.

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
use super::control::{self, ControlRequest, Desk, Requests};
use super::files::FileReader;
use super::handover::{self, Taken};
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
use crate::admin::{self, AccessView, ClusterView, Handles, Readiness};
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
use crate::session::keys::{Incarnation, KeyIssuer};
use crate::session::occupancy::Occupancy;
use crate::session::orders;
use crate::session::registry::Registry;
use crate::session::{self, Shared, peers::Peers};

/// What a process has at its start.
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

/// The ports are bound or taken over, and accept nothing yet.
pub(super) struct Sockets {
    config: Arc<Config>,
    events: Events,
    log: LogHandle,
    program: Program,
    generations: Arc<Generations>,
    /// What the old process has passed on.
    taken: Option<Taken>,
    listeners: Vec<(Bound, Handle)>,
    control: Option<(Bound, Handle)>,
    /// Those for HTTP, and those that nothing here listens on.
    inherited: Inheritance,
}

impl Begin {
    /// Binds the ports for clients and the control socket, or takes over those of the old process.
    ///
    /// # Errors
    /// A port is in use; the old process passes nothing on; a signal.
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
        let mut taken = None;
        if let Some(path) = take_over {
            let asking = handover::take(&path, generations.own());
            let (offered, sockets) = signals.unless_ended(asking).await?.context("cannot take over")?;
            inherited = sockets;
            taken = Some(offered);
        }
        let listeners = listeners::bind(&config.listeners, &[], &mut inherited)
            .map_err(|faults| anyhow!(faults.join("; ")))?;
        let control = match &config.control_socket {
            Some(path) => {
                let bound = listen::bind(&control::address(path), &[], &mut inherited);
                Some(bound.with_context(|| format!("control_socket: {}", path.display()))?)
            }
            None => None,
        };
        Ok(Sockets {
            config,
            events,
            log,
            program,
            generations,
            taken,
            listeners,
            control,
            inherited,
        })
    }
}

/// Everything that serves is there, and nothing is served yet.
pub(super) struct Prepared {
    config: Arc<Config>,
    log: LogHandle,
    program: Program,
    taken: Option<Taken>,
    /// Where the old process listens and this one does not.
    left: Vec<BoundPlace>,
    listeners: Vec<(Bound, Handle)>,
    control: Option<(Bound, Handle)>,
    wanted: Vec<WantedListener>,
    tls: Option<Arc<ArcSwap<Acceptor>>>,
    parts: Parts,
    file_metrics: FileMetrics,
    workers: Arc<Workers>,
    handles: Handles,
    fit: Arc<ArcSwap<Vec<ClusterView>>>,
    admin: admin::Prepared,
}

/// What the configuration makes below HTTP, and the tasks that belong to it.
struct Parts {
    clusters: HashMap<Arc<str>, ClusterHandle>,
    cluster_metrics: Arc<cluster::Metrics>,
    shared: Arc<Shared>,
    administration: Arc<Administration>,
    ask: Requests,
    requests: mpsc::Receiver<ControlRequest>,
    readiness: Arc<Readiness>,
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl Sockets {
    /// Makes everything that serves. The clusters have looked around, where there is an old process, as long as it may
    /// take to see what that one sees.
    ///
    /// # Errors
    /// What keeps the process from starting; a signal.
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
        let taken = self.taken.as_mut();
        let parts = Parts::start(&self.config, taken, generations, readiness, reporting, ours)?;
        let workers = Arc::new(Workers::start(self.config.workers)?);
        if let Some(taken) = &mut self.taken {
            let warming = taken.warm(&parts.clusters);
            signals.unless_ended(warming).await?.context("cannot take over")?;
        }
        let views = service::views(&self.config, &parts.clusters);
        let fit = Arc::new(ArcSwap::from_pointee(views.clone()));
        let ours = metrics.sub_registry_with_prefix(admin::metrics::PREFIX);
        admin::fit_metric::register(ours, Arc::clone(&fit));
        let handles = Handles {
            clusters: views,
            access: access_view(&parts.shared.auth_policy),
            operations: Arc::new(AllProcesses {
                administration: Arc::clone(&parts.administration),
                generations: Arc::clone(&self.generations),
            }),
            token: Arc::new(ArcSwapOption::new(self.config.http.token.clone().map(Arc::new))),
            readiness: Arc::clone(&parts.readiness),
            registry: Arc::new(metrics),
            metrics: admin_metrics,
            events: self.events,
        };
        let http = &self.config.http;
        let admin = admin::prepare(
            http,
            handles.clone(),
            CancellationToken::new(),
            &mut self.inherited,
        )?;
        let left = self.inherited.places();
        if self.taken.is_none() && !left.is_empty() {
            let left: Vec<String> = left.iter().map(ToString::to_string).collect();
            bail!(
                "systemd listens on {}, and nothing in the configuration does",
                left.join(", ")
            );
        }
        parts.spawn_tasks();
        let certificate = self.config.tls.as_ref();
        let tls = certificate.map(|tls| Arc::new(ArcSwap::from_pointee(Acceptor::new(tls))));
        let occupancy = &parts.shared.occupancy;
        let wanted = service::wanted_listeners(&self.config, &parts.clusters, tls.as_ref(), occupancy)?;
        if self.config.control_socket.is_some() || self.taken.is_some() {
            parts.answer_processes()?;
        }
        Ok(Prepared {
            config: self.config,
            log: self.log,
            program: self.program,
            taken: self.taken,
            left,
            listeners: self.listeners,
            control: self.control,
            wanted,
            tls,
            parts,
            file_metrics,
            workers,
            handles,
            fit,
            admin,
        })
    }
}

impl Parts {
    /// Nothing is waited for, so that the clusters get what operators have set before their first look.
    fn start(
        config: &Config,
        mut taken: Option<&mut Taken>,
        generations: Arc<Generations>,
        readiness: Arc<Readiness>,
        reporting: Reporting,
        metrics: &mut Metrics,
    ) -> anyhow::Result<Self> {
        readiness.drain(taken.as_ref().is_some_and(|taken| taken.is_drained));
        let stop = CancellationToken::new();
        let tracker = TaskTracker::new();
        let clusters = start_clusters(config, &reporting, &stop, &tracker)?;
        let registry = Arc::new(Registry::default());
        registry.number_from(taken.as_ref().map_or(0, |taken| taken.first_session));
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
        let shared = share(config, (registry, occupancy), generations, metrics, &tracker)?;
        Ok(Self {
            clusters,
            cluster_metrics: reporting.metrics,
            shared: Arc::new(shared),
            administration,
            ask,
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

    fn spawn_tasks(&self) {
        for cluster in self.clusters.values() {
            let registry = Arc::clone(&self.shared.registry);
            let enforcing = orders::enforce(cluster.subscribe(), registry, self.stop.clone());
            self.tracker.spawn(enforcing);
        }
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
    /// Takes over from the old process where there is one, and serves.
    ///
    /// # Errors
    /// The old process does not hand over; a signal.
    pub(super) async fn open(mut self, signals: &mut Signals) -> anyhow::Result<Running> {
        let shared = Arc::clone(&self.parts.shared);
        let successor = match self.taken.take() {
            None => None,
            Some(mut taken) => {
                shared.generations.add(std::mem::take(&mut taken.generations));
                let process_id = taken.process_id;
                let waiting = signals.unless_ended(taken.ready(&self.left));
                Some((process_id, waiting.await?.context("cannot take over")?))
            }
        };
        // From here on nothing fails.
        let events = self.handles.events.clone();
        let readiness = Arc::clone(&self.parts.readiness);
        let workers = Arc::clone(&self.workers);
        readiness.accepting();
        let supervisor = self.serve();
        if let Some((process_id, successor)) = successor {
            supervisor.claim();
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
        // What the processes before move from now on counts in the metrics.
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
            clusters,
            cluster_metrics,
            shared,
            administration,
            ask,
            requests,
            readiness: _,
            stop,
            tracker,
        } = self.parts;
        let mut listeners = Listeners::new(Arc::clone(&shared), Arc::clone(&self.workers));
        listeners.replace(self.wanted, self.listeners);
        let admin = self.admin.open();
        let asking = CancellationToken::new();
        let control = self.control.map(|(bound, handle)| {
            let desk = Desk::new(ask, tracker.clone());
            tracker.spawn(listen::accept_loop(bound, desk, asking.clone()));
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
            fit: self.fit,
            administration,
            control,
            asking,
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
    tasks: &TaskTracker,
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
            Arc::clone(&generations),
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
pub(super) fn access_view(access: &Arc<ArcSwap<AuthPolicy>>) -> AccessView {
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
