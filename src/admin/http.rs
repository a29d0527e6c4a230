//! The HTTP side: paths, statuses and headers are in `docs/http.md`.
//!
//! Requests never wait: they read snapshots. The listener runs on a separate thread and runtime.

mod answer;
mod api;
#[cfg(test)]
mod api_order_tests;
#[cfg(test)]
mod api_tests;
mod app;
mod connection_limit;
#[cfg(any(test, fuzzing))]
pub(super) mod fixture;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod guard;
mod hba;
mod history_api;
mod holding;
mod inventory;
mod live_api;
#[cfg(test)]
mod live_tests;
mod names;
mod node;
mod page;
mod patroni;
#[cfg(test)]
mod patroni_tests;
#[cfg(test)]
mod readiness_tests;
mod router;
mod routes;
mod serve;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wire_tests;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread;

use arc_swap::ArcSwapOption;
use tokio::runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(super) use self::serve::MOST_CONNECTIONS;
use self::serve::{HttpLimits, Settings};
use super::handles::Handles;
use super::history;
use super::live;
use crate::config::{self, AgentSubject, BindAddress};
use crate::listen::{self, BindError, Bound, Handle, Inheritance, Inherited};

/// Why the room cannot start. `Display` is the sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("cannot listen for HTTP on {address}: {error}")]
    Listen { address: BindAddress, error: BindError },
    #[error("cannot listen for HAProxy's agent check (http.agent_check) on {address}: {error}")]
    ListenAgent { address: BindAddress, error: BindError },
    #[error("cannot start the thread that answers HTTP: {0}")]
    Thread(io::Error),
}

/// The running thread. It ends about a second after its token is cancelled. It goes on if this is
/// dropped.
#[derive(Debug)]
pub struct AdminThread {
    listening: Vec<Listening>,
    /// The port that answers HAProxy's agent check.
    agent: Option<Handle>,
    shutdown: CancellationToken,
    /// Ends the agent check, the history and what is live before the rest ends.
    leaving: CancellationToken,
    thread: thread::JoinHandle<()>,
    runtime: runtime::Handle,
    tasks: TaskTracker,
    handles: watch::Sender<Handles>,
    settings: Settings,
    limits: HttpLimits,
}

/// An address with an accept loop.
#[derive(Debug)]
struct Listening {
    /// To be passed to another process. It holds the port, as the accept loop does.
    handle: Handle,
    stop: CancellationToken,
}

/// Addresses that are bound, and do not answer yet.
#[derive(Debug)]
pub struct BoundHttp(Vec<(Bound, Handle)>);

impl BoundHttp {
    /// `open`: the addresses that listen now. Those that overlap will close.
    fn bind<'a>(
        addresses: impl Iterator<Item = &'a BindAddress>,
        open: &[Listening],
        inherited: &mut Inheritance,
    ) -> Result<Self, AdminError> {
        let open = || open.iter().map(|open| &open.handle);
        let bound = addresses.map(|address| {
            let leaving: Vec<&Handle> = open().filter(|open| open.address.overlaps(address)).collect();
            listen::bind(address, &leaving, inherited).map_err(|error| AdminError::Listen {
                address: address.clone(),
                error,
            })
        });
        bound.collect::<Result<_, _>>().map(Self)
    }
}

impl AdminThread {
    /// The sockets, for another process to listen on as well.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn passed_on(&self) -> io::Result<Vec<Inherited>> {
        let http = self.listening.iter().map(|listening| &listening.handle);
        http.chain(&self.agent).map(Handle::passed_on).collect()
    }

    /// The settings of new handshakes, which may be replaced; empty without TLS.
    pub fn tls(&self) -> Arc<ArcSwapOption<rustls::ServerConfig>> {
        Arc::clone(&self.settings.tls)
    }

    /// The addresses that listen, with the port that the kernel chose if the configured one is 0.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        let local = |listening: &Listening| listening.handle.local_addr();
        self.listening.iter().filter_map(local).collect()
    }

    /// Binds the addresses of `config` that do not listen yet.
    ///
    /// # Errors
    /// An address cannot be bound; then none is.
    pub fn bind(&self, config: &config::Http) -> Result<BoundHttp, AdminError> {
        let is_new =
            |address: &&BindAddress| !self.listening.iter().any(|old| old.handle.address == **address);
        BoundHttp::bind(
            config.addresses.iter().filter(is_new),
            &self.listening,
            &mut Inheritance::default(),
        )
    }

    /// Answers by other handles, also on the addresses that were bound for `config`, and not on
    /// addresses that it does not have.
    pub fn replace(&mut self, config: &config::Http, bound: BoundHttp, handles: Handles) {
        self.handles.send_replace(handles);
        let tls = config.tls.as_ref().map(|tls| Arc::clone(&tls.server_config));
        self.settings.tls.store(tls);
        self.settings
            .proxies
            .store(config.proxy_protocol.clone().map(Arc::new));
        self.listening.retain(|listening| {
            let stays = config.addresses.contains(&listening.handle.address);
            if !stays {
                listening.stop.cancel();
            }
            stays
        });
        self.answer(bound);
    }

    fn answer(&mut self, bound: BoundHttp) {
        for (bound, handle) in bound.0 {
            let stop = self.shutdown.child_token();
            let serving = serve::serve(
                bound,
                self.settings.clone(),
                self.handles.subscribe(),
                stop.clone(),
                self.shutdown.clone(),
                self.limits,
            );
            self.tasks.spawn_on(serving, &self.runtime);
            self.listening.push(Listening { handle, stop });
        }
    }

    /// Answers HAProxy's agent check there, until the end.
    fn answer_agent(&mut self, subject: AgentSubject, (bound, handle): (Bound, Handle)) {
        let answering = serve::agent(bound, subject, self.handles.subscribe(), self.leaving.clone());
        self.tasks.spawn_on(answering, &self.runtime);
        self.agent = Some(handle);
    }

    /// Leaves its ports to another process: clients that are connected get their answers, and no
    /// new ones are accepted.
    pub fn leave(&mut self) {
        for listening in self.listening.drain(..) {
            listening.stop.cancel();
        }
        self.agent = None;
        self.leaving.cancel();
    }

    /// After [`Self::leave`]: until every connected client has its answer, or has asked for nothing
    /// in time.
    pub async fn answered(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Ends the thread and waits for its end, about a second at most; blocks the caller.
    pub fn stop(mut self) {
        self.shutdown.cancel();
        self.listening.clear();
        self.agent = None;
        if self.thread.join().is_err() {
            tracing::error!("the thread that answers HTTP panicked");
        }
    }
}

/// Binds the ports, or takes them from `inherited`. A thread named `admin`, with its own runtime,
/// answers until `shutdown`, once the returned value is opened.
///
/// # Errors
/// The port is in use or may not be used, or no thread can start; nothing runs then.
pub fn prepare(
    config: &config::Http,
    handles: Handles,
    shutdown: CancellationToken,
    inherited: &mut Inheritance,
) -> Result<Prepared, AdminError> {
    prepare_with(config, handles, shutdown, HttpLimits::default(), inherited)
}

/// As [`prepare`], with other limits than the default ones.
///
/// # Errors
/// As [`prepare`].
fn prepare_with(
    config: &config::Http,
    handles: Handles,
    shutdown: CancellationToken,
    limits: HttpLimits,
    inherited: &mut Inheritance,
) -> Result<Prepared, AdminError> {
    let bound = BoundHttp::bind(config.addresses.iter(), &[], inherited)?;
    let agent = match &config.agent_check {
        Some(check) => {
            let bound = listen::bind(&check.address, &[], inherited);
            let failed = |error| AdminError::ListenAgent {
                address: check.address.clone(),
                error,
            };
            Some((check.about, bound.map_err(failed)?))
        }
        None => None,
    };
    let tls = config.tls.as_ref().map(|tls| Arc::clone(&tls.server_config));
    let tasks = TaskTracker::new();
    let (stop, left) = (shutdown.clone(), tasks.clone());
    let (report, started) = mpsc::sync_channel(1);
    let thread = thread::Builder::new()
        .name("admin".into())
        // The runtime is created where it ends: it must not be dropped within another runtime, such
        // as the caller's.
        .spawn(move || {
            let made = runtime::Builder::new_current_thread().enable_all().build();
            match made {
                Ok(runtime) => {
                    let _ = report.send(Ok(runtime.handle().clone()));
                    runtime.block_on(async {
                        stop.cancelled().await;
                        left.close();
                        left.wait().await;
                    });
                    // Dropping it would wait for a name service that does not answer.
                    runtime.shutdown_background();
                }
                Err(error) => {
                    let _ = report.send(Err(error));
                }
            }
        })
        .map_err(AdminError::Thread)?;
    let runtime = match started.recv() {
        Ok(Ok(runtime)) => runtime,
        Ok(Err(error)) => return Err(AdminError::Thread(error)),
        Err(mpsc::RecvError) => return Err(AdminError::Thread(io::Error::other("it panicked"))),
    };
    let thread = AdminThread {
        listening: Vec::new(),
        agent: None,
        leaving: shutdown.child_token(),
        shutdown,
        thread,
        runtime,
        tasks,
        handles: watch::Sender::new(handles),
        settings: Settings {
            tls: Arc::new(ArcSwapOption::new(tls)),
            proxies: Arc::new(ArcSwapOption::new(config.proxy_protocol.clone().map(Arc::new))),
            live: live::Live::default(),
        },
        limits,
    };
    Ok(Prepared { thread, bound, agent })
}

/// Bound, and not answering yet.
#[derive(Debug)]
pub struct Prepared {
    thread: AdminThread,
    bound: BoundHttp,
    agent: Option<(AgentSubject, (Bound, Handle))>,
}

impl Prepared {
    /// Answers from now on.
    pub fn open(self) -> AdminThread {
        let Self {
            mut thread,
            bound,
            agent,
        } = self;
        thread.answer(bound);
        let sampling = history::sample(thread.handles.subscribe(), thread.leaving.clone());
        thread.tasks.spawn_on(sampling, &thread.runtime);
        let publishing = live::publish(
            thread.settings.live.clone(),
            thread.handles.subscribe(),
            thread.leaving.clone(),
        );
        thread.tasks.spawn_on(publishing, &thread.runtime);
        if let Some((subject, bound)) = agent {
            thread.answer_agent(subject, bound);
        }
        thread
    }
}
