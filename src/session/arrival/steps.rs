//! The steps of a login, beginning with the accepted socket.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::{Instant, timeout_at};

use super::admission::{Admitted, ArrivalPlace, LoginPlace};
use super::client_origin::{self, ClientOrigin};
use super::login_throttle;
use super::quota::Share;
use crate::auth::credentials::ServerLogin;
use crate::frontend::login::{self, Authenticated, Destination, Exchange, LoginError};
use crate::frontend::opening::{self, Opening};
use crate::frontend::tls::TlsFacts;
use crate::frontend::{ClientAddress, ClientStream, RefuseReason};
use crate::listen::ClientSocket;
use crate::session::cancel::{self, CancelOutcome};
use crate::session::close::{close_with_error, closing};
use crate::session::gauges::{GaugeGuard, seconds};
use crate::session::listener_settings::ListenerSettings;
use crate::session::record::{LoginRecord, Record, Times, note_opening, refuse};
use crate::session::registry::{Client, Origin, SessionKind};
use crate::session::turns::WorkerBuffer;
use crate::session::{Shared, peers};
use crate::wire::message::ErrorReply;
use crate::wire::proxy::ProxiedTls;
use crate::wire::settings;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::{ProtocolVersion, Replication, StartupPacket};

/// A connection just accepted, on its worker. Next: [`Identified`].
#[derive(Debug)]
pub struct Arrival {
    /// It has its options from the listening one.
    pub socket: ClientSocket,
    pub address: ClientAddress,
    pub accepted: Instant,
    pub listener: Arc<ListenerSettings>,
    pub worker_buffer: Arc<WorkerBuffer>,
    /// Its place among the connections that have not logged in yet.
    pub place: ArrivalPlace,
}

impl Arrival {
    /// Finds out the client's address.
    pub(in crate::session) async fn identify(self, shared: &Arc<Shared>) -> Option<Identified> {
        let Self {
            socket,
            address,
            accepted,
            listener,
            worker_buffer,
            place,
        } = self;
        let pending = shared.metrics.pending();
        let deadline = accepted + **shared.login_timeout.load();
        let mut stream = match socket {
            ClientSocket::Tcp(socket) => ClientStream::Plain(socket),
            ClientSocket::Unix(socket) => ClientStream::Unix(socket),
        };
        let times = (accepted, deadline);
        let (origin, place) =
            client_origin::identify(shared, &listener, &mut stream, address, place, times).await?;
        Some(Identified {
            stream,
            origin,
            place,
            course: Course {
                listener,
                worker_buffer,
                accepted,
                deadline,
            },
            pending,
        })
    }
}

/// What stays the same from step to step.
#[derive(Debug)]
pub(in crate::session) struct Course {
    pub(in crate::session) listener: Arc<ListenerSettings>,
    pub(in crate::session) worker_buffer: Arc<WorkerBuffer>,
    pub(in crate::session) accepted: Instant,
    /// The client must be authenticated by then.
    pub(in crate::session) deadline: Instant,
}

/// A client whose address is known. Next: [`Named`], a cancel request, another router.
#[derive(Debug)]
pub(in crate::session) struct Identified {
    pub(in crate::session) stream: ClientStream,
    pub(in crate::session) origin: ClientOrigin,
    pub(in crate::session) place: ArrivalPlace,
    pub(in crate::session) course: Course,
    /// Counts the connection as one that has not logged in.
    pub(in crate::session) pending: GaugeGuard,
}

impl Identified {
    /// When the client's first packet must have come.
    pub(in crate::session) fn first_packet_deadline(&self) -> Instant {
        client_origin::first_packet_deadline(&self.place, self.course.accepted, self.course.deadline)
    }

    /// Sets up TLS if the client asks for it, and reads the client's request. If that is not a
    /// session, it is served here.
    pub(in crate::session) async fn open(self, shared: &Arc<Shared>) -> Option<Named> {
        let until = self.first_packet_deadline();
        let Self {
            stream,
            origin,
            place,
            course,
            pending,
        } = self;
        let (listener, address) = (&course.listener, origin.address);
        let opened = tokio::select! {
            opened = timeout_at(until, opening::open(stream, &listener.offer)) => opened,
            // Before its request, no error can be sent that the client understands.
            () = shared.closing.cancelled() => {
                shared.metrics.refuse(RefuseReason::Shutdown);
                return None;
            }
        };
        let opening = match opened {
            Ok(Ok(opening)) => opening,
            Ok(Err(error)) => {
                note_opening(shared, listener, address, &error);
                return None;
            }
            // The client sent no request; PostgreSQL closes without an error too.
            Err(_elapsed) => {
                shared.metrics.refuse(RefuseReason::Timeout);
                return None;
            }
        };
        let (stream, packet, tls) = match opening {
            Opening::Session { stream, packet, tls } => (stream, packet, tls),
            Opening::Cancel { .. } if origin.denied.is_some() => {
                shared.metrics.cancel(CancelOutcome::Denied);
                return None;
            }
            Opening::Cancel { stream, request } => {
                // A cancel request waits for its session's server, not for a login.
                drop((place, pending));
                cancel::serve(shared, stream, request, address.ip()).await;
                return None;
            }
            Opening::Peer { stream, body } => {
                peers::serve(shared, stream, body, course.deadline, place).await;
                return None;
            }
        };
        let mut named = Named {
            stream,
            packet,
            tls,
            address,
            proxied_tls: origin.tls,
            place: LoginPlace::GivenUp,
            course,
            pending,
            opened: Duration::ZERO,
        };
        if let Some(error) = origin.denied {
            named.refuse(shared, error).await;
            return None;
        }
        match client_origin::login_place(shared, address, place, named.course.accepted).await {
            Ok(place) => named.place = LoginPlace::Held(place),
            Err(full) => {
                let (reason, reply) = client_origin::no_place(full);
                named.refuse(shared, LoginError::Limit(reason, reply)).await;
                return None;
            }
        }
        named.opened = named.course.accepted.elapsed();
        Some(named)
    }
}

/// A client that has sent its startup packet. Next: [`LoggedIn`].
#[derive(Debug)]
pub(in crate::session) struct Named {
    stream: ClientStream,
    packet: StartupPacket,
    /// `None` in clear.
    tls: Option<Box<TlsFacts>>,
    address: ClientAddress,
    /// TLS that ended at a balancer.
    proxied_tls: Option<Box<ProxiedTls>>,
    place: LoginPlace,
    course: Course,
    pending: GaugeGuard,
    /// The time from accept to here.
    opened: Duration,
}

impl Named {
    /// Authenticates the client, within the login's deadline.
    pub(in crate::session) async fn log_in(mut self, shared: &Arc<Shared>) -> Option<LoggedIn> {
        let deadline = self.course.deadline;
        let outcome = tokio::select! {
            outcome = timeout_at(deadline, self.authenticate(shared)) => outcome,
            () = shared.closing.cancelled() => Ok(Err(LoginError::Unavailable(closing()))),
        };
        let error = match outcome {
            Ok(Ok((authenticated, admitted))) => {
                return self.into_logged_in(shared, authenticated, admitted).await;
            }
            Ok(Err(error)) => error,
            Err(_elapsed) => LoginError::Timeout,
        };
        // The place is held until the client has its error, so that refused clients are limited
        // like pending ones.
        self.refuse(shared, error).await;
        None
    }

    /// Waits for the login's turn, checks admission, rules and whether a member is fit, and only
    /// then runs the exchange.
    async fn authenticate(&mut self, shared: &Arc<Shared>) -> Result<(Authenticated, Admitted), LoginError> {
        let Self {
            stream,
            packet,
            tls,
            address,
            place,
            course: Course {
                listener, deadline, ..
            },
            ..
        } = self;
        let (packet, address, deadline) = (&*packet, *address, *deadline);
        login::negotiate(stream, packet).await?;
        if let Some(setting) = settings::delay(&packet.parameters) {
            return Err(LoginError::Limit(
                RefuseReason::StartupSetting,
                not_passed_on(setting),
            ));
        }
        login_throttle::admit(shared, listener, stream, packet, address, place, deadline).await?;
        shared.admission.ask(listener).map_err(LoginError::TooMany)?;
        let policy = shared.auth_policy.load_full();
        let destination = destination(shared, packet);
        let context = shared.login_context(&policy, listener, destination, deadline);
        let mut exchange = Exchange::new(stream, packet, address, tls.as_deref(), context);
        let decided = exchange.decide().await?;
        if destination == Destination::Servers {
            admits_route(shared, listener)?;
            let admits = listener
                .gate
                .admits(|| listener.cluster.snapshot(), &listener.route);
            admits.map_err(LoginError::Unavailable)?;
        }
        let authenticated = exchange.run(decided).await?;
        if authenticated.has_proven() {
            login_throttle::succeeded(shared, listener, packet, address);
        }
        if destination == Destination::Servers {
            // An operator may have disabled it while the client looked for its password.
            admits_route(shared, listener)?;
        }
        // Only now: a client without the password must not use up the places of others.
        let admitted = shared.admission.admit(listener).map_err(LoginError::TooMany)?;
        Ok((authenticated, admitted))
    }

    async fn into_logged_in(
        self,
        shared: &Arc<Shared>,
        authenticated: Authenticated,
        admitted: Admitted,
    ) -> Option<LoggedIn> {
        let authenticated_after = self.course.accepted.elapsed();
        shared.metrics.login_seconds.observe(seconds(authenticated_after));
        // The client is authenticated now, and no longer counts as one that has not logged in.
        drop((self.place, self.pending));
        let Course {
            listener,
            worker_buffer,
            accepted,
            ..
        } = self.course;
        let client = Client {
            address: self.address,
            user: copied(&self.packet.user),
            database: copied(&self.packet.database),
            tls: self.stream.tls_description(),
            since: accepted,
        };
        let kind = match self.packet.replication {
            Replication::None => SessionKind::Ordinary,
            Replication::Physical | Replication::Logical => SessionKind::Replication,
        };
        let record = Box::new(Record {
            origin: Arc::new(Origin::new(client, &listener, kind)),
            member: None,
            granted: None,
            login: Some(LoginRecord {
                proxied_tls: self.proxied_tls,
                is_bound: authenticated.is_bound(),
            }),
            times: Times {
                tls: self.opened,
                auth: authenticated_after.saturating_sub(self.opened),
                queued: Duration::ZERO,
                connect: Duration::ZERO,
            },
            listener,
        });
        let (login, welcome) = authenticated.into_parts();
        let client = WelcomedClient {
            stream: self.stream,
            welcome,
            record,
            admitted,
        };
        let Some(login) = login else {
            return Some(LoggedIn::Console(client, self.packet.served()));
        };
        let (client, share) = client.share(shared).await?;
        Some(LoggedIn::Session(SessionRequest {
            client,
            packet: self.packet,
            login,
            share,
            worker_buffer,
        }))
    }

    async fn refuse(&mut self, shared: &Shared, error: LoginError) {
        let listener = &self.course.listener;
        refuse(
            shared,
            listener,
            &mut self.stream,
            &self.packet,
            self.address,
            error,
        )
        .await;
    }
}

/// A copy: a slice of the packet would keep the whole packet as long as the session exists.
fn copied(name: &[u8]) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(name)
}

fn admits_route(shared: &Shared, listener: &ListenerSettings) -> Result<(), LoginError> {
    let admits = shared.disabled_routes.admits(&listener.route.name);
    admits.map_err(LoginError::Disabled)
}

/// The destination of a client that names this database.
fn destination(shared: &Shared, packet: &StartupPacket) -> Destination {
    match &*shared.console.load() {
        Some(console) if console.is_meant(packet) => Destination::Console,
        _ => Destination::Servers,
    }
}

/// The error of a server for a setting that not every role may set.
fn not_passed_on(setting: &str) -> ErrorReply {
    let message = format!("permission denied to set parameter \"{setting}\"");
    ErrorReply::fatal(SqlState::INSUFFICIENT_PRIVILEGE, message).hint(
        "Remove it from the startup parameters or from options (PGOPTIONS). It makes the server wait in the middle \
         of each login, so the router does not accept it.",
    )
}

/// A client that has logged in.
#[allow(
    clippy::large_enum_variant,
    reason = "nearly every one is the large one, and it lives for a moment"
)]
pub(in crate::session) enum LoggedIn {
    /// Next: a server.
    Session(SessionRequest),
    /// Next: the console.
    Console(WelcomedClient, ProtocolVersion),
}

/// An authenticated client that has not been sent AuthenticationOk yet.
pub(in crate::session) struct WelcomedClient {
    pub(in crate::session) stream: ClientStream,
    /// The last message of the exchange and AuthenticationOk, sent together with what follows.
    pub(in crate::session) welcome: BytesMut,
    pub(in crate::session) record: Box<Record>,
    pub(in crate::session) admitted: Admitted,
}

impl WelcomedClient {
    /// Takes the client's share of the limits for its user, database, address and rate.
    async fn share(mut self, shared: &Shared) -> Option<(Self, Arc<Share>)> {
        let record = &self.record;
        let client = record.client();
        let names = (&client.user, &client.database);
        let share = shared.quota.share(
            &record.listener.rate,
            Some(names),
            client.address.ip(),
            Instant::now(),
        );
        match share {
            Ok(share) => {
                let share = Arc::new(share);
                self.admitted.keep(Arc::clone(&share));
                Some((self, share))
            }
            Err(refusal) => {
                shared.metrics.refuse(refusal.reason);
                record.refused(shared, &refusal.reply.message);
                record.origin.counts.error(&mut self.welcome, &refusal.reply);
                close_with_error(self.stream, self.welcome).await;
                None
            }
        }
    }
}

/// An authenticated client that needs a server.
pub(in crate::session) struct SessionRequest {
    pub(in crate::session) client: WelcomedClient,
    pub(in crate::session) packet: StartupPacket,
    /// How the router logs into a server for the client.
    pub(in crate::session) login: ServerLogin,
    pub(in crate::session) share: Arc<Share>,
    pub(in crate::session) worker_buffer: Arc<WorkerBuffer>,
}
