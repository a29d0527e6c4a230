//! The listeners that are open, one door each. Another set may take their place: an address that both have stays
//! open throughout.

use std::io;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::accept_handler::AcceptHandler;
use super::workers::Workers;
use crate::config::{BindAddress, Listener};
use crate::frontend::listen::{self, Bound, Handle, Inheritance, Inherited};
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
    /// To be passed to another process; holds the port as the accept loop does.
    handle: Handle,
    stop: CancellationToken,
}

/// What a listener is to be.
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

    /// Binds what is not open yet, also where it overlaps what is about to close; or says what could not be bound.
    pub(super) fn bind(&self, listeners: &[Listener]) -> Result<Vec<(Bound, Handle)>, Vec<String>> {
        let open: Vec<&Handle> = self.open.iter().map(|open| &open.handle).collect();
        bind(listeners, &open, &mut Inheritance::default())
    }

    /// The sockets, for another process to listen on as well.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub(super) fn passed_on(&self) -> io::Result<Vec<Inherited>> {
        self.open.iter().map(|open| open.handle.passed_on()).collect()
    }

    /// Another process has the sockets of the places `kept`: their files are its own.
    pub(super) fn release(&self, kept: &[listen::BoundPlace]) {
        for open in &self.open {
            open.handle.release(kept);
        }
    }

    /// Opens what was bound, gives those that are open their new gates, and closes what is not among `places`. Sessions
    /// stay, and count for the listener of their name; who waits in the kernel's queue of a door that closes is refused.
    pub(super) fn replace(&mut self, places: Vec<WantedListener>, bound: Vec<(Bound, Handle)>) {
        let before: Vec<Arc<ListenerSettings>> =
            self.open.iter().map(|open| open.handler.settings()).collect();
        self.open.retain(|open| {
            let stays = places.iter().any(|place| place.address == open.address);
            if !stays {
                open.stop.cancel();
            }
            stays
        });
        let mut bound = bound;
        for WantedListener {
            address,
            mut settings,
        } in places
        {
            if let Some(before) = before.iter().find(|before| before.name == settings.name) {
                settings = settings.in_place_of(before);
            }
            let settings = Arc::new(settings);
            if let Some(open) = self.open.iter().find(|open| open.address == address) {
                open.handler.replace_settings(settings);
            } else if let Some(index) = bound.iter().position(|(bound, _)| bound.address == address) {
                let (bound, handle) = bound.swap_remove(index);
                let handler = Arc::new(AcceptHandler::new(
                    settings,
                    Arc::clone(&self.shared),
                    Arc::clone(&self.workers),
                ));
                let stop = CancellationToken::new();
                self.loops
                    .spawn(listen::accept_loop(bound, Arc::clone(&handler), stop.clone()));
                self.open.push(Open {
                    address,
                    handler,
                    handle,
                    stop,
                });
            }
        }
    }

    /// What [`Self::release`] released, here or in the process that passed the sockets on, is this process's.
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

/// Binds every listener but those that are `open`, or takes what is bound for it from `inherited`; or says which could
/// not be bound.
pub(super) fn bind(
    listeners: &[Listener],
    open: &[&Handle],
    inherited: &mut Inheritance,
) -> Result<Vec<(Bound, Handle)>, Vec<String>> {
    let mut bound = Vec::new();
    let mut faults = Vec::new();
    let is_open = |listener: &&Listener| open.iter().any(|open| open.address == listener.address);
    for listener in listeners.iter().filter(|listener| !is_open(listener)) {
        // What overlaps this one is not among `listeners`, so it closes. A Unix socket's file is another matter.
        let overlapping = open
            .iter()
            .filter(|open| listener.address.port().is_some() && open.address.overlaps(&listener.address));
        let leaving: Vec<&Handle> = overlapping.copied().collect();
        match with_handle(&listener.address, &leaving, inherited) {
            Ok(socket) => bound.push(socket),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let why = match inherited.in_the_way(&listener.address) {
                    Some(place) => format!(
                        "overlaps {place}, where the process before listens; reload it with this listener before the upgrade"
                    ),
                    None => "is in use by another program".to_owned(),
                };
                faults.push(format!("listener {}: {} {why}", listener.name, listener.address));
            }
            Err(error) => faults.push(format!(
                "listener {}: cannot listen on {}: {error}",
                listener.name, listener.address
            )),
        }
    }
    if faults.is_empty() { Ok(bound) } else { Err(faults) }
}

/// Binds one address, or takes what is bound there.
pub(super) fn with_handle(
    address: &BindAddress,
    leaving: &[&Handle],
    inherited: &mut Inheritance,
) -> io::Result<(Bound, Handle)> {
    let bound = match inherited.take(address) {
        Some(inherited) => listen::adopt(address, inherited)?,
        None => listen::bind_beside(address, leaving)?,
    };
    let handle = bound.handle()?;
    Ok((bound, handle))
}
