//! The HTTP side: paths, statuses and headers are in `docs/http.md`.
//!
//! Requests never wait: they read snapshots. The listener runs on a thread and runtime of its own.

mod answer;
mod api;
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
mod node;
mod patroni;
mod router;
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

pub use self::serve::HttpLimits;
use self::serve::Settings;
use super::handles::Handles;
use crate::config::{self, AgentSubject, BindAddress};
use crate::listen::{self, BindError, Bound, Handle, Inheritance, Inherited};

/// Why the room could not start. `Display` is the sentence the operator sees.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("cannot listen for HTTP on {address}: {error}")]
    Listen { address: BindAddress, error: BindError },
    #[error("cannot listen for HAProxy's agent check (http.agent_check) on {address}: {error}")]
    ListenAgent { address: BindAddress, error: BindError },
    #[error("cannot start the thread that answers HTTP: {0}")]
    Thread(io::Error),
}

/// The running thread. Ends after the token it was started with is cancelled, within about a second. Dropping this
/// leaves it running.
#[derive(Debug)]
pub struct AdminThread {
    listening: Vec<Listening>,
    /// Where `HAProxy`'s agent check is answered.
    agent: Option<Handle>,
    shutdown: CancellationToken,
    /// Ends the agent check before the rest ends.
    leaving: CancellationToken,
    thread: thread::JoinHandle<()>,
    runtime: runtime::Handle,
    tasks: TaskTracker,
    handles: watch::Sender<Handles>,
    settings: Settings,
    limits: HttpLimits,
}

/// An address that is answered on.
#[derive(Debug)]
struct Listening {
    /// To be passed to another process. It holds the port, as the accept loop does.
    handle: Handle,
    stop: CancellationToken,
}

/// Addresses that are bound and not answered on yet.
#[derive(Debug)]
pub struct BoundHttp(Vec<(Bound, Handle)>);

impl BoundHttp {
    /// `open`: what is listened on now; what of it overlaps closes.
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

    /// The settings of the handshakes to come, which may be exchanged; empty where HTTP is in clear.
    pub fn tls(&self) -> Arc<ArcSwapOption<rustls::ServerConfig>> {
        Arc::clone(&self.settings.tls)
    }

    /// Where it listens, address by address: with the port chosen, where the configured one was 0.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        let local = |listening: &Listening| listening.handle.local_addr();
        self.listening.iter().filter_map(local).collect()
    }

    /// Binds what `config` has and this has not.
    ///
    /// # Errors
    /// An address that cannot be listened on; nothing is bound then.
    pub fn bind(&self, config: &config::Http) -> Result<BoundHttp, AdminError> {
        let is_new =
            |address: &&BindAddress| !self.listening.iter().any(|old| old.handle.address == **address);
        BoundHttp::bind(
            config.addresses.iter().filter(is_new),
            &self.listening,
            &mut Inheritance::default(),
        )
    }

    /// Answers by other handles, on what was bound for `config`, and no longer where that says nothing of.
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

    /// Leaves what it listens on to another process: whoever is connected is answered, and nobody else.
    pub fn leave(&mut self) {
        for listening in self.listening.drain(..) {
            listening.stop.cancel();
        }
        self.agent = None;
        self.leaving.cancel();
    }

    /// After [`Self::leave`]: until whoever was connected has been answered, or has asked nothing for long enough.
    pub async fn answered(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Ends it and waits for the end, about a second at most; blocks the calling thread meanwhile.
    pub fn stop(mut self) {
        self.shutdown.cancel();
        self.listening.clear();
        self.agent = None;
        if self.thread.join().is_err() {
            tracing::error!("the thread that answers HTTP panicked");
        }
    }
}

/// Listens, where no other process has for this one, for a thread named `admin` with a runtime of its own to answer
/// until `shutdown`, once what this returns is opened.
///
/// # Errors
/// The port is in use or may not be used, or there is no room for another thread; nothing runs then.
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
pub fn prepare_with(
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
        // The runtime is made where it ends: it must not be dropped within another one, the caller's perhaps.
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
                    // Not by dropping it, which waits for a name service that does not answer.
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
        },
        limits,
    };
    Ok(Prepared { thread, bound, agent })
}

/// Listens, and answers nobody yet.
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
        if let Some((subject, bound)) = agent {
            thread.answer_agent(subject, bound);
        }
        thread
    }
}
