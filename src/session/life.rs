//! The life of a session, from the accepted socket to its one log line.
//!
//! ```text
//! arrival → Waiting → Relaying → Over
//!    └→ console         (docs/architecture.md, "The life of a session")
//! ```
//! Each state is a type that holds only what is valid in that state, and each step consumes the
//! state before it. What only the login needs is dropped before the relay begins.

use std::future::Future;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};
use tracing::debug;

use super::arrival::admission::Admitted;
use super::arrival::{Arrival, LoggedIn, SessionRequest, WelcomedClient};
use super::attach::{self, AttachRequest, Attachable, NoServer};
use super::candidates::Wanted;
use super::client::Client;
use super::client_address::ClientAddressReport;
use super::close::close_with_error;
use super::end::Cause;
use super::finish::finish;
use super::gauges::seconds;
use super::held::{Held, check_placement};
use super::held_login::HeldLogin;
use super::keys::ClientCancelKey;
use super::link::Link;
use super::pool::{self, begin::Pooled};
use super::record::{Record, note_attach};
use super::registry::{CancelKey, Origin, Placement, Ticket};
use super::relay::{self, Relay};
use super::state::SessionState;
use super::turns::WorkerBuffer;
use super::{Shared, console, tcp};
use crate::config::ListenerMode;
use crate::frontend::ClientStream;
use crate::routing::GrantedRole;
use crate::wire::message;
use crate::wire::startup::{ProtocolVersion, Replication, StartupPacket};

/// Serves one connection to its end. It never panics on what a peer sends, and it ends within a
/// limited time after the peers have left. `arriving` is `None` if the connection was refused.
///
/// The login is in a box from the start, outside the future that is returned: a future keeps the
/// room of its arguments for as long as it lives, and an idle session must not hold the memory of
/// its login.
pub fn serve<A>(arriving: A, shared: Arc<Shared>) -> impl Future<Output = ()> + Send
where
    A: Future<Output = Option<Arrival>> + Send,
{
    let beginning = Box::pin(begin(arriving, Arc::clone(&shared)));
    async move {
        let begun = beginning.await;
        match begun {
            Some(Begun::Relaying(mut relaying)) => {
                let cause = relaying.relay.run().await;
                // Boxed: an idle session must not hold the memory of its end either.
                Box::pin(relaying.leave(cause).finish(&shared)).await;
            }
            Some(Begun::Pooled(pooled)) => pooled.serve(&shared).await,
            Some(Begun::Tcp(arrival)) => Box::pin(tcp::serve(arrival, shared)).await,
            None => {}
        }
    }
}

/// What a connection has come to.
enum Begun {
    Relaying(Box<Relaying>),
    Pooled(Box<Pooled>),
    /// `mode: tcp`, which has no login.
    Tcp(Box<Arrival>),
}

/// Takes a connection as far as the relay. `None`: it ended before that, or the client used the
/// console.
async fn begin(arriving: impl Future<Output = Option<Arrival>>, shared: Arc<Shared>) -> Option<Begun> {
    let arrival = arriving.await?;
    if arrival.listener.mode == ListenerMode::Tcp {
        return Some(Begun::Tcp(Box::new(arrival)));
    }
    let shared = &shared;
    let identified = arrival.identify(shared).await?;
    let named = identified.open(shared).await?;
    match named.log_in(shared).await? {
        LoggedIn::Session(request) => {
            let route = Arc::clone(&request.client.record.listener.route);
            // A replication connection has state that no other session could take over.
            let pool = route.session_pool();
            if let Some(pool) = pool.filter(|_| request.packet.replication == Replication::None) {
                let pooled = pool::begin::begin(request, pool, shared).await?;
                return Some(Begun::Pooled(Box::new(pooled)));
            }
            let relaying = Waiting(request).attach(shared).await?;
            Some(Begun::Relaying(Box::new(relaying)))
        }
        LoggedIn::Console(client, version) => {
            Box::pin(console::visit(client, version, shared)).await;
            None
        }
    }
}

/// A client that asks for a server connection and has none yet. Next: [`Relaying`].
struct Waiting(SessionRequest);

impl Waiting {
    /// Waits at the gate of the route, attaches, and sends the client the end of its login. `None`:
    /// the client was refused or has left.
    async fn attach(self, shared: &Arc<Shared>) -> Option<Relaying> {
        let SessionRequest {
            client,
            packet,
            login,
            share,
            worker_buffer,
        } = self.0;
        let WelcomedClient {
            stream,
            welcome: mut out,
            mut record,
            admitted,
        } = client;
        let listener = Arc::clone(&record.listener);
        let started = Instant::now();
        let report = ClientAddressReport {
            options: listener.route.client_address,
            client: record.client().address,
            tls: record.client().tls,
        };
        let state = SessionState::at_login(&packet, listener.route.access, login.user.as_ref(), report);
        let wanted = Wanted {
            gate: &listener.gate,
            metrics: &shared.metrics.queue,
            occupancy: &shared.occupancy,
            pools: Some(&shared.pools),
            cluster: &listener.cluster,
            route: &listener.route,
            client: record.client().address.ip(),
        };
        let request = AttachRequest {
            cluster: &listener.cluster,
            occupancy: &shared.occupancy,
            route: &listener.route,
            state: &state,
            login: &login,
            replication: packet.replication,
            share: Some(&share),
            closing: &shared.closing,
        };
        let attached = async {
            if !state.fits() {
                return Err(NoServer::too_long());
            }
            let mut trying = HeldLogin::new(&listener, &shared.closing);
            loop {
                let released = trying.wait(stream.hung_up()).await?;
                let pass = wanted.pass(stream.hung_up(), &shared.closing).await?;
                record.times.queued += pass.queued;
                match attach::attach(&request, pass).await {
                    Err(error) if trying.tries_again(&error) => drop(released),
                    attached => return Ok(attached?),
                }
            }
        };
        let attached = attached.await;
        record.times.connect = started.elapsed().saturating_sub(record.times.queued);
        match attached {
            Ok(attachable) => {
                let parts = Attached {
                    stream,
                    packet: &packet,
                    out,
                    attachable,
                    worker_buffer,
                };
                parts.welcome(shared, record, admitted).await
            }
            Err(error) => {
                note_attach(shared, &record, &error, &wanted);
                if error.write(&wanted, &mut out) {
                    close_with_error(stream, out).await;
                }
                None
            }
        }
    }
}

/// A client that has a server connection and has not been sent the end of its login yet.
struct Attached<'a> {
    stream: ClientStream,
    packet: &'a StartupPacket,
    out: BytesMut,
    attachable: Attachable,
    worker_buffer: Arc<WorkerBuffer>,
}

impl Attached<'_> {
    /// Enters the session into the registry, and sends the client what the server sent at its
    /// login.
    async fn welcome(
        self,
        shared: &Arc<Shared>,
        mut record: Box<Record>,
        admitted: Admitted,
    ) -> Option<Relaying> {
        let Self {
            mut stream,
            packet,
            mut out,
            attachable,
            worker_buffer,
        } = self;
        let Attachable {
            connection,
            member,
            seat,
            granted,
            whereabouts,
            ..
        } = attachable;
        let listener = Arc::clone(&record.listener);
        shared
            .metrics
            .connect_seconds
            .observe(seconds(record.times.connect));
        record.member = Some(member.clone());
        record.granted = Some(granted);
        if granted == GrantedRole::Unenforced {
            shared.metrics.unenforced(&listener.route.name);
        }
        for notice in &connection.notices {
            out.extend_from_slice(notice);
        }
        for (name, value) in &connection.parameters {
            message::parameter_status(&mut out, name, value);
        }
        let placement = Arc::new(Placement {
            member: member.clone(),
            granted,
            whereabouts: Some(whereabouts),
            process_id: connection.process_id.unwrap_or_default(),
            cancel: connection.cancel.clone(),
        });
        let ticket = enter(shared, packet.served(), &record.origin, &placement, &mut out);
        message::ready_for_query(&mut out, b'I');
        check_placement(&listener, &ticket, &placement);
        let welcome = timeout(**shared.login_timeout.load(), async {
            stream.write_all(&out).await?;
            stream.flush().await
        });
        if !matches!(welcome.await, Ok(Ok(()))) {
            debug!(client = %record.client().address, "the client left during its login, or does not read");
            return None;
        }
        let gauge = shared
            .metrics
            .session(&listener.route.name, &member, Some(&listener.cluster));
        let link = Link::new(connection.stream.release(), placement, listener.cluster.clone());
        let is_replication = packet.replication != Replication::None;
        let relay = Relay::new(
            Client::new(stream, ticket),
            link,
            connection.leftover,
            worker_buffer,
            is_replication,
        );
        Some(Relaying {
            relay,
            record,
            held: Held {
                seat,
                gauge,
                admitted,
            },
        })
    }
}

/// A session with a server connection. Next: [`Over`].
struct Relaying {
    relay: Relay,
    record: Box<Record>,
    held: Held,
}

impl Relaying {
    fn leave(self, cause: Cause) -> Over {
        Over {
            // A session does not move to another server yet.
            ended: self.relay.leave(cause).end(),
            record: self.record,
            held: self.held,
        }
    }
}

/// A session that is over. The client and the server may not have been notified yet.
struct Over {
    ended: relay::Ended,
    record: Box<Record>,
    held: Held,
}

impl Over {
    /// Notifies the client, writes the session's log line, and waits until the server has ended its
    /// part.
    async fn finish(self, shared: &Arc<Shared>) {
        let cluster = self.record.listener.cluster.clone();
        let server = finish(self.ended, *self.record, shared).await.into_tcp();
        self.held.release(server, &cluster, &shared.closing).await;
    }
}

/// Issues a cancel key that no other session has, enters the session and writes BackendKeyData.
fn enter(
    shared: &Arc<Shared>,
    version: ProtocolVersion,
    origin: &Arc<Origin>,
    placement: &Arc<Placement>,
    out: &mut BytesMut,
) -> Ticket {
    loop {
        let key = CancelKey {
            // 0 for a server without BackendKeyData; a cancel then has no effect (docs/protocol.md,
            // case 35).
            process_id: placement.process_id,
            key: issue(shared, version),
        };
        let Ok(ticket) = shared.registry.enter(Arc::clone(origin), Some(key)) else {
            continue;
        };
        let entry = ticket.entry();
        entry.place(Some(Arc::clone(placement)));
        if let Some(CancelKey { process_id, key }) = &entry.cancel_key {
            message::backend_key_data(out, *process_id, key.expose());
        }
        return ticket;
    }
}

pub(super) fn issue(shared: &Shared, version: ProtocolVersion) -> ClientCancelKey {
    if version >= ProtocolVersion::V3_2 {
        shared.keys.issue_v32()
    } else {
        shared.keys.issue_v30()
    }
}
