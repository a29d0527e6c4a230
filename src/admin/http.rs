//! The HTTP side: paths, statuses and headers are in `docs/http.md`.
//!
//! Requests never wait: they read snapshots. The listener runs on a thread and runtime of its own.

mod access;
mod answer;
mod api;
#[cfg(test)]
mod api_tests;
#[cfg(test)]
pub(super) mod fixture;
mod guard;
mod node;
mod patroni;
mod router;
mod serve;
pub(super) mod stream;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod wire_tests;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread;

use arc_swap::ArcSwap;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

pub use self::serve::Bounds;
use super::handles::Handles;
use crate::config::{self, AgentSubject, BindAddress};

/// Why the room could not start. `Display` is the sentence the operator sees.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("cannot listen for HTTP on {address}{}", because(.source))]
    Listen { address: BindAddress, source: io::Error },
    #[error("cannot start the thread that answers HTTP: {0}")]
    Thread(io::Error),
}

/// The commonest reason in the words that a listener for clients has for it; the others follow as the error's source.
fn because(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => ": it is in use by another program",
        _ => "",
    }
}

/// The running thread. Ends after the token it was started with is cancelled, within about a second. Dropping this
/// leaves it running.
#[derive(Debug)]
pub struct AdminThread {
    addresses: Vec<SocketAddr>,
    shutdown: CancellationToken,
    thread: thread::JoinHandle<()>,
    tls: Option<Arc<ArcSwap<rustls::ServerConfig>>>,
}

impl AdminThread {
    /// The settings of the handshakes to come, which may be exchanged; `None` where HTTP is in clear.
    pub fn tls(&self) -> Option<Arc<ArcSwap<rustls::ServerConfig>>> {
        self.tls.clone()
    }

    /// Where it listens, address by address: with the port chosen, where the configured one was 0.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Ends it and waits for the end, about a second at most; blocks the calling thread meanwhile.
    pub fn stop(self) {
        self.shutdown.cancel();
        if self.thread.join().is_err() {
            tracing::error!("the thread that answers HTTP panicked");
        }
    }
}

/// Listens, then answers on a thread named `admin` with a runtime of its own until `shutdown`.
///
/// # Errors
/// The port is in use or may not be used, or there is no room for another thread; nothing runs then.
pub fn spawn_thread(
    config: &config::Http,
    handles: Handles,
    shutdown: CancellationToken,
) -> Result<AdminThread, AdminError> {
    spawn_thread_with(config, handles, shutdown, Bounds::default())
}

/// As [`spawn_thread`], with other bounds than the default ones.
///
/// # Errors
/// As [`spawn_thread`].
pub fn spawn_thread_with(
    config: &config::Http,
    handles: Handles,
    shutdown: CancellationToken,
    bounds: Bounds,
) -> Result<AdminThread, AdminError> {
    let mut listeners = Vec::new();
    let mut addresses = Vec::new();
    for address in &config.addresses {
        let listen_error = |source| AdminError::Listen {
            address: address.clone(),
            source,
        };
        let listener = serve::bind(address).map_err(listen_error)?;
        addresses.push(listener.local_addr().map_err(listen_error)?);
        listeners.push(listener);
    }
    let mut agent = None;
    if let Some(check) = &config.agent_check {
        let listen_error = |source| AdminError::Listen {
            address: check.address.clone(),
            source,
        };
        agent = Some((serve::bind(&check.address).map_err(listen_error)?, check.about));
    }
    let tls = config
        .tls
        .as_ref()
        .map(|tls| Arc::new(ArcSwap::new(Arc::clone(&tls.server_config))));
    let kept = tls.clone();
    let proxies = config.proxy_protocol.clone();
    let stop = shutdown.clone();
    let (report, started) = mpsc::sync_channel(1);
    let thread = thread::Builder::new()
        .name("admin".into())
        // The runtime is made where it ends: it must not be dropped within another one, the caller's perhaps.
        .spawn(move || match prepare(listeners, agent) {
            Ok((runtime, listeners, agent)) => {
                let _ = report.send(Ok(()));
                runtime.block_on(async {
                    let mut serving = tokio::task::JoinSet::new();
                    for listener in listeners {
                        serving.spawn(serve::serve(
                            listener,
                            tls.clone(),
                            proxies.clone(),
                            handles.clone(),
                            stop.clone(),
                            bounds,
                        ));
                    }
                    if let Some((listener, about)) = agent {
                        serving.spawn(serve::agent(listener, about, handles.clone(), stop.clone()));
                    }
                    while serving.join_next().await.is_some() {}
                });
            }
            Err(error) => {
                let _ = report.send(Err(error));
            }
        })
        .map_err(AdminError::Thread)?;
    match started.recv() {
        Ok(Ok(())) => Ok(AdminThread {
            addresses,
            shutdown,
            thread,
            tls: kept,
        }),
        Ok(Err(error)) => Err(AdminError::Thread(error)),
        Err(mpsc::RecvError) => Err(AdminError::Thread(io::Error::other("it panicked"))),
    }
}

type Agent<L> = Option<(L, AgentSubject)>;

fn prepare(
    listeners: Vec<std::net::TcpListener>,
    agent: Agent<std::net::TcpListener>,
) -> io::Result<(Runtime, Vec<TcpListener>, Agent<TcpListener>)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (listeners, agent) = {
        let _guard = runtime.enter();
        let listeners = listeners
            .into_iter()
            .map(TcpListener::from_std)
            .collect::<io::Result<_>>()?;
        let agent = match agent {
            Some((listener, about)) => Some((TcpListener::from_std(listener)?, about)),
            None => None,
        };
        (listeners, agent)
    };
    Ok((runtime, listeners, agent))
}
