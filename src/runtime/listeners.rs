//! The open listeners. A reload may replace them. An address that is in both sets stays open
//! throughout.

use std::io;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::accept_handler::AcceptHandler;
use super::workers::Workers;
use crate::backend;
use crate::config::{BindAddress, Listener};
use crate::listen::{self, Bound, BoundPlace, Handle, Inheritance, Inherited};
use crate::session::Shared;
use crate::session::listener_settings::ListenerSettings;

/// The accept loops of this process.
pub(super) struct Listeners {
    open: Vec<Open>,
    loops: TaskTracker,
    shared: Arc<Shared>,
    workers: Arc<Workers>,
}

struct Open {
    address: BindAddress,
    handler: Arc<AcceptHandler>,
    /// To be passed to another process. It keeps the port in use, as the accept loop does.
    handle: Handle,
    stop: CancellationToken,
}

/// A configured listener.
pub(super) struct WantedListener {
    pub(super) address: BindAddress,
    pub(super) settings: ListenerSettings,
}

impl Listeners {
    pub(super) fn new(shared: Arc<Shared>, workers: Arc<Workers>) -> Self {
        Self {
            open: Vec::new(),
            loops: TaskTracker::new(),
            shared,
            workers,
        }
    }

    /// The settings of the open listeners.
    pub(super) fn settings(&self) -> Vec<Arc<ListenerSettings>> {
        self.open.iter().map(|open| open.handler.settings()).collect()
    }

    /// The number of accepted connections that have not ended.
    pub(super) fn connections(&self) -> usize {
        self.workers.tasks()
    }

    /// Binds the listeners that are not open yet, even if one overlaps an address that is about to
    /// close.
    ///
    /// # Errors
    /// As [`bind`].
    pub(super) fn bind(&self, listeners: &[Listener]) -> Result<Vec<(Bound, Handle)>, Vec<String>> {
        let open: Vec<&Handle> = self.open.iter().map(|open| &open.handle).collect();
        bind(listeners, &open, &mut Inheritance::default())
    }

    /// The sockets, so that another process can listen on them too.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(super) fn passed_on(&self) -> io::Result<Vec<Inherited>> {
        self.open.iter().map(|open| open.handle.passed_on()).collect()
    }

    /// Another process keeps the sockets at the places `kept`, and removes their files.
    pub(super) fn release(&self, kept: &[BoundPlace]) {
        for open in &self.open {
            open.handle.release(kept);
        }
    }

    /// Opens the `bound` listeners, gives new settings to the open ones, and closes those that are
    /// not `wanted`. Sessions stay and count for the listener of the same name. The kernel refuses
    /// the clients in the queue of a listener that closes.
    pub(super) fn replace(&mut self, wanted: Vec<WantedListener>, bound: Vec<(Bound, Handle)>) {
        let before = self.settings();
        self.open.retain(|open| {
            let stays = wanted.iter().any(|wanted| wanted.address == open.address);
            if !stays {
                open.stop.cancel();
            }
            stays
        });
        let mut bound = bound;
        for WantedListener {
            address,
            mut settings,
        } in wanted
        {
            if let Some(before) = before.iter().find(|before| before.name == settings.name) {
                settings = settings.in_place_of(before);
            }
            let settings = Arc::new(settings);
            let handles = self.open.iter().map(|open| &open.handle);
            let handles = handles.chain(bound.iter().map(|(_, handle)| handle));
            for handle in handles.filter(|handle| handle.address == address && address.port().is_some()) {
                if let Err(error) = backend::tune_listener(handle, &settings.cluster.config().server) {
                    warn!(listen = %address, %error, "the options of its connections are not set");
                }
            }
            if let Some(open) = self.open.iter().find(|open| open.address == address) {
                open.handler.replace_settings(settings);
            } else if let Some(index) = bound.iter().position(|(_, handle)| handle.address == address) {
                let (bound, handle) = bound.swap_remove(index);
                let home = self.open.len() % self.workers.len();
                let handler = Arc::new(AcceptHandler::new(
                    settings,
                    Arc::clone(&self.shared),
                    Arc::clone(&self.workers),
                    home,
                ));
                let stop = CancellationToken::new();
                self.loops.spawn_on(
                    listen::accept_loop(bound, Arc::clone(&handler), stop.clone()),
                    self.workers.handle(home),
                );
                self.open.push(Open {
                    address,
                    handler,
                    handle,
                    stop,
                });
            }
        }
    }

    /// This process owns the sockets' files again after [`Self::release`], here or in the process
    /// that passed the sockets on.
    pub(super) fn claim(&self) {
        for open in &self.open {
            open.handle.claim();
        }
    }

    /// Stops accepting; every port is free when this returns.
    pub(super) async fn close(&mut self) {
        for open in self.open.drain(..) {
            open.stop.cancel();
        }
        self.loops.close();
        self.loops.wait().await;
    }
}

/// Binds every listener that is not `open`, or takes its socket from `inherited`.
///
/// # Errors
/// A sentence for each listener that could not be bound.
pub(super) fn bind(
    listeners: &[Listener],
    open: &[&Handle],
    inherited: &mut Inheritance,
) -> Result<Vec<(Bound, Handle)>, Vec<String>> {
    let mut bound = Vec::new();
    let mut faults = Vec::new();
    let is_open = |listener: &&Listener| open.iter().any(|open| open.address == listener.address);
    for listener in listeners.iter().filter(|listener| !is_open(listener)) {
        // An open listener that overlaps this one is not among `listeners`, so it closes. The file
        // of a Unix socket cannot be shared.
        let overlapping = open
            .iter()
            .filter(|open| listener.address.port().is_some() && open.address.overlaps(&listener.address));
        let leaving: Vec<&Handle> = overlapping.copied().collect();
        match listen::bind(&listener.address, &leaving, inherited) {
            Ok(socket) => bound.push(socket),
            Err(error) => faults.push(format!(
                "listener {}: cannot listen on {}: {error}",
                listener.name, listener.address
            )),
        }
    }
    if faults.is_empty() { Ok(bound) } else { Err(faults) }
}
