//! The steps of a login, from the accepted socket on.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::{TcpStream, UnixStream};
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
use crate::session::listener_settings::ListenerSettings;
use crate::session::metrics::{GaugeGuard, seconds};
use crate::session::record::{Record, Times, note_opening, refuse};
use crate::session::registry::{Client, Origin};
use crate::session::turns::WorkerBuffer;
use crate::session::{Shared, peers};
use crate::wire::message::{self, ErrorReply};
use crate::wire::proxy::ProxiedTls;
use crate::wire::settings;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::StartupPacket;

/// A connection just accepted. Next: [`Identified`].
#[derive(Debug)]
pub struct Arrival {
    pub socket: ClientSocket,
    pub address: ClientAddress,
    pub accepted: Instant,
    pub listener: Arc<ListenerSettings>,
    pub worker_buffer: Arc<WorkerBuffer>,
    /// Among the connections that have not logged in yet.
    pub place: ArrivalPlace,
}

impl Arrival {
    /// Registers the socket with this worker and finds out where the client is.
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
        let mut stream = adopt(socket, &listener)?;
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

/// Registers an accepted socket with this worker and sets its options.
fn adopt(socket: ClientSocket, listener: &ListenerSettings) -> Option<ClientStream> {
    // Each fails only if the peer is gone already.
    Some(match socket {
        ClientSocket::Tcp(socket) => {
            socket.set_nonblocking(true).ok()?;
            let socket = TcpStream::from_std(socket).ok()?;
            crate::backend::tune_socket(&socket, &listener.cluster.config().server).ok()?;
            ClientStream::Plain(socket)
        }
        ClientSocket::Unix(socket) => {
            socket.set_nonblocking(true).ok()?;
            ClientStream::Unix(UnixStream::from_std(socket).ok()?)
        }
    })
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
    /// Until when the client may take to say what it wants.
    pub(in crate::session) fn speaks_until(&self) -> Instant {
        client_origin::speaks_until(&self.place, self.course.accepted, self.course.deadline)
    }

    /// Sets up TLS if the client asks for it, and reads what it wants. Serves it, if that is not a session.
    pub(in crate::session) async fn open(self, shared: &Arc<Shared>) -> Option<Named> {
        let until = self.speaks_until();
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
            // The client has not said yet in which way it can be answered.
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
            // The client never said what it wanted; PostgreSQL closes without a word too.
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
                // It waits for its session's server, not for a login.
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

/// A client that has said who it wants to be. Next: [`LoggedIn`].
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
    /// How long it took to get here.
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
        // The place is held until the client has heard it: refused clients are no more than the pending ones may be.
        self.refuse(shared, error).await;
        None
    }

    /// Its turn, admission, rules, is any member fit, and only then the exchange.
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
            let admits = listener.gate.admits(listener.cluster.snapshot(), &listener.route);
            admits.map_err(LoginError::Unavailable)?;
        }
        let authenticated = exchange.run(decided).await?;
        if authenticated.has_proven() {
            login_throttle::succeeded(shared, listener, packet, address);
        }
        // Only now: a client without a password must not use up the places of those that have one.
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
        // From here on the client is known: it no longer counts as one that has not logged in.
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
        let record = Box::new(Record {
            origin: Arc::new(Origin::new(client, &listener)),
            member: None,
            granted: None,
            proxied_tls: self.proxied_tls,
            is_bound: authenticated.is_bound(),
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
            return Some(LoggedIn::Console(client));
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

/// A slice of the packet would keep all of it for as long as the session lives.
fn copied(name: &[u8]) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(name)
}

/// Where a client that names this database is led.
fn destination(shared: &Shared, packet: &StartupPacket) -> Destination {
    match &*shared.console.load() {
        Some(console) if console.is_meant(packet) => Destination::Console,
        _ => Destination::Servers,
    }
}

/// As a server says it of a setting that not every role may set.
fn not_passed_on(setting: &str) -> ErrorReply {
    let message = format!("permission denied to set parameter \"{setting}\"");
    ErrorReply::fatal(SqlState::INSUFFICIENT_PRIVILEGE, message).hint(
        "It makes the server wait in the middle of each login, so the router passes it on for no client. \
         Remove it from the startup parameters or from options (PGOPTIONS).",
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
    Console(WelcomedClient),
}

/// An authenticated client, which has not heard so yet.
pub(in crate::session) struct WelcomedClient {
    pub(in crate::session) stream: ClientStream,
    /// The last words of the exchange and AuthenticationOk, to travel with what follows.
    pub(in crate::session) welcome: BytesMut,
    pub(in crate::session) record: Box<Record>,
    pub(in crate::session) admitted: Admitted,
}

impl WelcomedClient {
    /// Its share of what user, database, address and rate may have.
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
                message::error(&mut self.welcome, &refusal.reply);
                close_with_error(self.stream, self.welcome).await;
                None
            }
        }
    }
}

/// What an authenticated client asks of a server.
pub(in crate::session) struct SessionRequest {
    pub(in crate::session) client: WelcomedClient,
    pub(in crate::session) packet: StartupPacket,
    /// How the router logs into a server for it.
    pub(in crate::session) login: ServerLogin,
    pub(in crate::session) share: Arc<Share>,
    pub(in crate::session) worker_buffer: Arc<WorkerBuffer>,
}
