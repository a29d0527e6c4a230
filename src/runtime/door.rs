use std::io::Write;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::time::Instant;

use super::workers::Workers;
use crate::frontend::ClientAddress;
use crate::frontend::listen::{Accepted, ClientSocket};
use crate::session::admission::{Full, Room};
use crate::session::farewell;
use crate::session::gate::Gate;
use crate::session::life::{self, Arrival};
use crate::session::{Shared, entry, sentry};

/// Takes what a listener accepts to a worker. The gate is read per accept: another one may be put in its place.
pub(super) struct Door {
    gate: ArcSwap<Gate>,
    shared: Arc<Shared>,
    workers: Arc<Workers>,
}

impl Door {
    pub(super) fn new(gate: Arc<Gate>, shared: Arc<Shared>, workers: Arc<Workers>) -> Self {
        Self {
            gate: ArcSwap::new(gate),
            shared,
            workers,
        }
    }
}

impl Door {
    pub(super) fn gate(&self) -> Arc<Gate> {
        self.gate.load_full()
    }

    /// For the connections accepted from now on.
    pub(super) fn replace_gate(&self, gate: Arc<Gate>) {
        self.gate.store(gate);
    }
}

impl Accepted for Arc<Door> {
    fn accepted(&self, socket: ClientSocket, address: ClientAddress) {
        let admission = &self.shared.admission;
        let gate = self.gate.load_full();
        let pending = if entry::is_announced(&gate, address) {
            admission.pending_unsaid()
        } else {
            admission.pending(address.ip())
        };
        let place = match pending {
            Ok(pending) => Ok(pending),
            Err(full) => match (full, admission.queued(address.ip())) {
                (Full::Source, Ok(queued)) => Err(queued),
                _ => return refuse(&self.shared, &socket, full),
            },
        };
        let shared = Arc::clone(&self.shared);
        self.workers.spawn(move |lease| async move {
            let pending = match place {
                Ok(pending) => pending,
                Err(queued) => match entry::turn(&shared, address, queued).await {
                    Ok(pending) => pending,
                    Err(full) => return refuse(&shared, &socket, full),
                },
            };
            let arrival = Arrival {
                socket,
                address,
                gate,
                lease,
                pending,
            };
            life::serve(arrival, shared).await;
        });
    }

    fn no_descriptor(&self, socket: ClientSocket) {
        self.shared.refused("no_descriptor");
        tell(
            &socket,
            &farewell::too_many(
                "the connection manager has no file descriptor left",
                "Its operator has to raise the open-file limit or lower limits.max_clients.",
            ),
        );
    }

    fn has_room(&self) -> bool {
        match self.shared.admission.room(Instant::now()) {
            Room::Yes | Room::Refuse => true,
            Room::Wait => false,
        }
    }
}

fn refuse(shared: &Shared, socket: &ClientSocket, full: Full) {
    shared.refused(match full {
        Full::Total => "too_many_logins",
        Full::Source => "too_many_logins_address",
    });
    let (text, hint) = sentry::too_many(full);
    tell(socket, &farewell::too_many(text, hint));
}

/// Last words at the accept loop: as much as the socket takes at once, which for a new one is everything.
fn tell(socket: &ClientSocket, words: &[u8]) {
    let _ = match socket {
        ClientSocket::Tcp(socket) => socket
            .set_nonblocking(true)
            .and_then(|()| (&*socket).write(words)),
        ClientSocket::Unix(socket) => socket
            .set_nonblocking(true)
            .and_then(|()| (&*socket).write(words)),
    };
}
