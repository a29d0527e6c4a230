//! Handles a connection on a port for PostgreSQL: gives it a place, a worker and a session.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::workers::Workers;
use crate::frontend::{ClientAddress, RefuseReason};
use crate::listen::{ClientSocket, Connection, DetachedSocket, OnAccept};
use crate::session::Shared;
use crate::session::arrival::admission::Full;
use crate::session::arrival::{Arrival, client_origin, login_throttle};
use crate::session::close;
use crate::session::life;
use crate::session::listener_settings::ListenerSettings;

/// Gives the connections of a listener to the workers. It reads the settings for each connection,
/// because a reload may replace them. A connection of the accept loop's own worker stays registered
/// as it is.
pub(super) struct AcceptHandler {
    settings: ArcSwap<ListenerSettings>,
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    /// The worker on which the accept loop runs.
    home: usize,
}

/// A socket on its way to its worker.
enum Passed {
    Here(ClientSocket),
    Detached(DetachedSocket),
}

impl Passed {
    /// Registers the socket with the worker that calls this. `None`: the client has left, or no
    /// memory is left.
    fn arrive(self) -> Option<ClientSocket> {
        match self {
            Self::Here(socket) => Some(socket),
            Self::Detached(socket) => socket.attach().ok(),
        }
    }
}

impl AcceptHandler {
    pub(super) fn new(
        settings: Arc<ListenerSettings>,
        shared: Arc<Shared>,
        workers: Arc<Workers>,
        home: usize,
    ) -> Self {
        Self {
            settings: ArcSwap::new(settings),
            shared,
            workers,
            home,
        }
    }

    pub(super) fn settings(&self) -> Arc<ListenerSettings> {
        self.settings.load_full()
    }

    /// The settings apply to connections that are accepted from now on.
    pub(super) fn replace_settings(&self, settings: Arc<ListenerSettings>) {
        self.settings.store(settings);
    }
}

impl OnAccept for Arc<AcceptHandler> {
    type Room = ();

    const ANSWERS_WITHOUT_DESCRIPTOR: bool = true;

    async fn room(&self) {
        self.shared.admission.until_room().await;
    }

    fn accepted(&self, connection: Connection, (): ()) {
        let Connection { socket, peer } = connection;
        let address = ClientAddress::from(peer);
        let accepted = Instant::now();
        let admission = &self.shared.admission;
        let settings = self.settings.load_full();
        let place = if client_origin::is_announced(&settings, address) {
            admission.place_of_balancer()
        } else {
            admission.place(address.ip())
        };
        let place = match place {
            Ok(place) => Ok(place),
            Err(full) => match admission.queued(address.ip()) {
                Ok(queued) => Err(queued),
                Err(_) => return refuse(&self.shared, &settings, &socket, full),
            },
        };
        let worker = self.workers.least_busy(self.home);
        let passed = if worker == self.home {
            Passed::Here(socket)
        } else {
            match socket.detach() {
                Ok(socket) => Passed::Detached(socket),
                Err(_gone) => return,
            }
        };
        let shared = Arc::clone(&self.shared);
        self.workers.spawn(worker, move |worker_buffer| {
            let serving = Arc::clone(&shared);
            let arriving = async move {
                let socket = passed.arrive()?;
                let place = match place {
                    Ok(place) => place,
                    Err(queued) => match client_origin::turn(&shared, address, queued, accepted).await {
                        Ok(place) => place,
                        Err(full) => {
                            refuse(&shared, &settings, &socket, full);
                            return None;
                        }
                    },
                };
                Some(Arrival {
                    socket,
                    address,
                    accepted,
                    listener: settings,
                    worker_buffer,
                    place,
                })
            };
            life::serve(arriving, serving)
        });
    }

    fn no_descriptor(&self, socket: ClientSocket) {
        self.shared.refused(RefuseReason::NoDescriptor);
        send(
            &socket,
            &close::too_many(
                &self.settings.load(),
                "the router has no file descriptor left",
                "Ask the operator to raise the open-file limit or lower limits.max_clients.",
            ),
        );
    }
}

fn refuse(shared: &Shared, listener: &ListenerSettings, socket: &ClientSocket, full: Full) {
    shared.refused(client_origin::reason(full));
    let (text, hint) = login_throttle::too_many(full);
    send(socket, &close::too_many(listener, text, hint));
}

/// Sends a client its last message from the accept loop. A new socket takes the whole message at
/// once.
fn send(socket: &ClientSocket, message: &[u8]) {
    let _gone = socket.send_now(message);
}
