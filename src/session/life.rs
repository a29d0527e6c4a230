//! The life of a session, from the accepted socket to its one log line.
//!
//! ```text
//! open → admission → rule → anybody there? → authenticate → attach → relay → end
//!                                                         └→ console ──────────┘
//! ```
//! Each step consumes what the one before it made; what the login needed is dropped before the relay begins.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

use super::admission::{Admitted, Knock, Pending};
use super::attach::{self, AttachRequest, Attachable, NoServer, SessionState};
use super::cancel::CancelOutcome;
use super::candidates::Wanted;
use super::client_address::ClientAddressReport;
use super::client_origin::{self, ClientOrigin};
use super::close::{close_with_error, closing};
use super::end::{Order, Reason};
use super::finish::finish;
use super::keys::ClientCancelKey;
use super::listener_settings::ListenerSettings;
use super::metrics::{SessionGuard, seconds};
use super::occupancy::Seat;
use super::quota::Share;
use super::record::{Record, Times, note_attach, note_opening, refuse};
use super::registry::{self, CancelKey, Origin, Placement, Ticket};
use super::relay::{Attached, Parts, Relay, WorkerBuffer};
use super::{Shared, cancel, client_address, console, linger, login_throttle, peers, tcp};
use crate::auth::credentials::ServerLogin;
use crate::config::{Access, ListenerMode};
use crate::frontend::login::{self, Authenticated, Destination, Exchange, LoginError};
use crate::frontend::opening::{self, Opening};
use crate::frontend::tls::TlsFacts;
use crate::frontend::{ClientAddress, ClientStream, RefuseReason};
use crate::listen::ClientSocket;
use crate::routing::{GrantedRole, SessionVerdict};
use crate::wire::message::{self, ErrorReply};
use crate::wire::settings;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::{ProtocolVersion, Replication, StartupPacket};

/// A connection just accepted.
#[derive(Debug)]
pub struct Arrival {
    pub socket: ClientSocket,
    pub address: ClientAddress,
    pub accepted: Instant,
    pub listener: Arc<ListenerSettings>,
    pub worker_buffer: Arc<WorkerBuffer>,
    /// Its place among those that have not logged in yet.
    pub knock: Knock,
}

/// Serves one connection to its end. Never panics on what a peer sends; ends by itself in bounded time once the
/// peers are gone.
pub async fn serve(arrival: Arrival, shared: Arc<Shared>) {
    if arrival.listener.mode == ListenerMode::Tcp {
        return Box::pin(tcp::serve(arrival, shared)).await;
    }
    // The login is a large future with large parts; the relay must not carry its weight.
    let session = Box::pin(log_in(arrival, Arc::clone(&shared))).await;
    match session {
        None => {}
        Some(LoggedIn::Session(session)) => {
            let Session {
                relay,
                record,
                seat,
                gauge,
                admitted,
            } = session;
            let ended = relay.run().await;
            let has_keepalive = record.listener.cluster.config().server.keepalive.is_some();
            // Boxed: an idle session must not carry the weight of its end.
            let server = Box::pin(finish(ended, *record, &shared)).await;
            drop(gauge);
            let held = (seat, admitted.into_share());
            Box::pin(linger::until_ended(server, has_keepalive, &shared.closing)).await;
            drop(held);
        }
        Some(LoggedIn::Console(visit)) => Box::pin(console::visit(visit, &shared)).await,
    }
}

/// A client that has logged in.
#[allow(clippy::large_enum_variant, reason = "nearly every one is the large one")]
enum LoggedIn {
    /// Next: relay.
    Session(Session),
    /// Next: [`console::visit`].
    Console(console::Visit),
}

/// A session that is ready to relay.
struct Session {
    relay: Relay,
    record: Box<Record>,
    seat: Seat,
    gauge: SessionGuard,
    admitted: Admitted,
}

async fn log_in(arrival: Arrival, shared: Arc<Shared>) -> Option<LoggedIn> {
    let Arrival {
        socket,
        address,
        accepted,
        listener,
        worker_buffer,
        knock,
    } = arrival;
    let mut knock = Some(knock);
    let deadline = accepted + **shared.login_timeout.load();
    let gauge = shared.metrics.pending();
    let mut socket = adopt(socket, &listener)?;
    let ClientOrigin {
        address,
        tls: proxied_tls,
        denied,
    } = client_origin::identify(
        &shared,
        &listener,
        &mut socket,
        address,
        &mut knock,
        (accepted, deadline),
    )
    .await?;
    let until = client_origin::speaks_until(knock.as_ref(), accepted, deadline);
    let opened = tokio::select! {
        opened = timeout_at(until, opening::open(socket, &listener.offer)) => opened,
        // It has not said yet whom to answer how.
        () = shared.closing.cancelled() => {
            shared.metrics.refuse(RefuseReason::Shutdown);
            return None;
        }
    };
    let opening = match opened {
        Ok(Ok(opening)) => opening,
        Ok(Err(fault)) => {
            note_opening(&shared, &listener, address, &fault);
            return None;
        }
        // It never said what it wanted; PostgreSQL closes without a word too.
        Err(_elapsed) => {
            shared.metrics.refuse(RefuseReason::Timeout);
            return None;
        }
    };
    let (mut stream, packet, tls) = match opening {
        Opening::Session { stream, packet, tls } => (stream, packet, tls),
        Opening::Cancel { .. } if denied.is_some() => {
            shared.metrics.cancel(CancelOutcome::Denied);
            return None;
        }
        Opening::Cancel { stream, request } => {
            // It waits for its session's server, not for a login.
            drop((knock, gauge));
            cancel::serve(&shared, stream, request, address.ip()).await;
            return None;
        }
        Opening::Peer { stream, body } => {
            peers::serve(&shared, stream, body, deadline, knock).await;
            return None;
        }
    };
    if let Some(fault) = denied {
        refuse(&shared, &listener, &mut stream, &packet, address, fault).await;
        return None;
    }
    let mut pending = match client_origin::login(&shared, address, knock, accepted).await {
        Ok(pending) => pending,
        Err(full) => {
            let fault = client_origin::no_place(full);
            refuse(&shared, &listener, &mut stream, &packet, address, fault).await;
            return None;
        }
    };
    let tls_done = accepted.elapsed();
    let client = Client {
        stream: &mut stream,
        packet: &packet,
        tls: tls.as_deref(),
        address,
    };
    let outcome = tokio::select! {
        outcome = timeout_at(deadline, authenticate(&shared, &listener, client, &mut pending, deadline)) => outcome,
        () = shared.closing.cancelled() => Ok(Err(LoginError::Unavailable(closing()))),
    };
    let (authenticated, mut admitted) = match outcome {
        Ok(Ok(done)) => done,
        Ok(Err(fault)) => {
            refuse(&shared, &listener, &mut stream, &packet, address, fault).await;
            return None;
        }
        Err(_elapsed) => {
            refuse(
                &shared,
                &listener,
                &mut stream,
                &packet,
                address,
                LoginError::Timeout,
            )
            .await;
            return None;
        }
    };
    let authenticated_at = accepted.elapsed();
    shared.metrics.login_seconds.observe(seconds(authenticated_at));
    // From here on the client has an account: it no longer counts as an unknown one.
    drop((pending, gauge));
    let mut record = Box::new(Record {
        client: address,
        // Copies: slices of it would keep the whole startup packet for as long as the session lives.
        user: Bytes::copy_from_slice(&packet.user),
        database: Bytes::copy_from_slice(&packet.database),
        member: String::new(),
        granted: None,
        tls: stream.tls_description(),
        proxied_tls,
        is_bound: authenticated.is_bound(),
        accepted,
        times: Times {
            tls: tls_done,
            auth: authenticated_at.saturating_sub(tls_done),
            queued: Duration::ZERO,
            connect: Duration::ZERO,
        },
        listener,
    });
    let (login, mut welcome) = authenticated.into_parts();
    let Some(login) = login else {
        return Some(LoggedIn::Console(console::Visit {
            stream,
            welcome,
            record,
            admitted,
        }));
    };
    let names = (&record.user, &record.database);
    let share = shared
        .quota
        .share(&record.listener.rate, Some(names), address.ip(), Instant::now());
    let share = match share {
        Ok(share) => {
            let share = Arc::new(share);
            admitted.keep(Arc::clone(&share));
            share
        }
        Err(refusal) => {
            shared.metrics.refuse(refusal.reason);
            record.refused(&shared, &refusal.reply.message);
            message::error(&mut welcome, &refusal.reply);
            close_with_error(stream, welcome).await;
            return None;
        }
    };
    let session = begin(
        &shared,
        stream,
        &packet,
        (&login, welcome),
        &mut record,
        (worker_buffer, &share),
    )
    .await?;
    let Begun { relay, seat } = session;
    let gauge = shared.metrics.session(
        &record.listener.route.name,
        &record.member,
        Some(&record.listener.cluster),
    );
    Some(LoggedIn::Session(Session {
        relay,
        record,
        seat,
        gauge,
        admitted,
    }))
}

fn destination(shared: &Shared, packet: &StartupPacket) -> Destination {
    match &*shared.console.load() {
        Some(door) if door.is_meant(packet) => Destination::Console,
        _ => Destination::Servers,
    }
}

/// Registers an accepted socket with this worker and sets its options.
pub(super) fn adopt(socket: ClientSocket, listener: &ListenerSettings) -> Option<ClientStream> {
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

/// A client that has said what it wants.
struct Client<'a> {
    stream: &'a mut ClientStream,
    packet: &'a StartupPacket,
    tls: Option<&'a TlsFacts>,
    address: ClientAddress,
}

/// Its turn, admission, rules, is anybody there, and only then the exchange.
async fn authenticate(
    shared: &Arc<Shared>,
    listener: &ListenerSettings,
    client: Client<'_>,
    pending: &mut Option<Pending>,
    deadline: Instant,
) -> Result<(Authenticated, Admitted), LoginError> {
    let Client {
        stream,
        packet,
        tls,
        address,
    } = client;
    login::negotiate(stream, packet).await?;
    if let Some(setting) = settings::delay(&packet.parameters) {
        return Err(LoginError::Limit(
            RefuseReason::StartupSetting,
            not_passed_on(setting),
        ));
    }
    login_throttle::admit(shared, listener, stream, packet, address, pending, deadline).await?;
    shared.admission.ask(listener).map_err(LoginError::TooMany)?;
    let access = shared.access.load_full();
    let destination = destination(shared, packet);
    let context = shared.context(&access, listener, destination, deadline);
    let mut exchange = Exchange::new(stream, packet, address, tls, context);
    let decided = exchange.decide().await?;
    if destination == Destination::Servers {
        let admits = listener.gate.admits(listener.cluster.snapshot(), &listener.route);
        admits.map_err(LoginError::Unavailable)?;
    }
    let authenticated = exchange.run(decided).await?;
    if authenticated.has_proven() {
        login_throttle::succeeded(shared, listener, packet, address);
    }
    // Only now: whoever has no password must not use up the places of those who have.
    let admitted = shared.admission.admit(listener).map_err(LoginError::TooMany)?;
    Ok((authenticated, admitted))
}

/// As a server says it of a setting that is not for everybody.
fn not_passed_on(setting: &str) -> ErrorReply {
    let message = format!("permission denied to set parameter \"{setting}\"");
    ErrorReply::fatal(SqlState::INSUFFICIENT_PRIVILEGE, message).hint(
        "It makes the server wait in the middle of each login; the connection manager passes it on for nobody. \
         Remove it from the startup parameters or from options (PGOPTIONS).",
    )
}

struct Begun {
    relay: Relay,
    seat: Seat,
}

/// Attaches an authenticated client and tells it so.
async fn begin(
    shared: &Arc<Shared>,
    mut stream: ClientStream,
    packet: &StartupPacket,
    (login, mut out): (&ServerLogin, BytesMut),
    record: &mut Record,
    (worker_buffer, share): (Arc<WorkerBuffer>, &Arc<Share>),
) -> Option<Begun> {
    let listener = Arc::clone(&record.listener);
    let started = Instant::now();
    let report = ClientAddressReport {
        how: listener.route.client_address,
        client: record.client,
        tls: record.tls,
    };
    let state = session_state(packet, listener.route.access, login.user.as_ref(), report);
    let wanted = Wanted {
        gate: &listener.gate,
        metrics: &shared.metrics.queue,
        occupancy: &shared.occupancy,
        cluster: &listener.cluster,
        route: &listener.route,
        client: record.client.ip(),
    };
    let request = AttachRequest {
        cluster: &listener.cluster,
        occupancy: &shared.occupancy,
        route: &listener.route,
        state: &state,
        login,
        replication: packet.replication,
        share,
        closing: &shared.closing,
    };
    let attached = async {
        if !state.fits() {
            return Err(NoServer::too_long());
        }
        let pass = wanted.pass(stream.hung_up(), &shared.closing).await;
        let pass = pass?;
        record.times.queued = pass.queued;
        Ok(attach::attach(&request, pass).await?)
    };
    let attached: Result<Attachable, NoServer> = attached.await;
    record.times.connect = started.elapsed().saturating_sub(record.times.queued);
    let Attachable {
        connection,
        member,
        seat,
        granted,
        whereabouts,
        ..
    } = match attached {
        Ok(attached) => attached,
        Err(error) => {
            note_attach(shared, record, &error, &wanted);
            if !error.write(&wanted, &mut out) {
                return None;
            }
            close_with_error(stream, out).await;
            return None;
        }
    };
    shared
        .metrics
        .connect_seconds
        .observe(seconds(record.times.connect));
    member.as_str().clone_into(&mut record.member);
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
    let ticket = enter(
        shared,
        &listener,
        packet.served(),
        &placement,
        record.who(),
        &mut out,
    );
    message::ready_for_query(&mut out, b'I');
    check_placement(&listener, &ticket, &placement);
    let welcome = timeout(**shared.login_timeout.load(), async {
        stream.write_all(&out).await?;
        stream.flush().await
    });
    if !matches!(welcome.await, Ok(Ok(()))) {
        debug!(client = %record.client, "gone before it was served, or it does not listen");
        return None;
    }
    let relay = Relay::new(Parts {
        client: stream,
        server: Attached {
            stream: connection.stream,
            member,
        },
        leftover: connection.leftover,
        ticket,
        granted,
        cluster: listener.cluster.clone(),
        worker_buffer,
        replication: packet.replication != Replication::None,
    });
    Some(Begun { relay, seat })
}

/// The session state a client starts with. User and database are named once, as the rule saw them: repeated, empty or
/// overlong ones are not left to the server to read its own way. A read-only one is read-only by its last startup
/// parameter, which no earlier one can override (promise 2).
fn session_state(
    packet: &StartupPacket,
    access: Access,
    server_user: Option<&Bytes>,
    report: ClientAddressReport,
) -> SessionState {
    let user = server_user.unwrap_or(&packet.user).clone();
    let mut parameters = vec![
        (Bytes::from_static(b"user"), user),
        (Bytes::from_static(b"database"), packet.database.clone()),
    ];
    let is_name = |name: &Bytes| matches!(name.as_ref(), b"user" | b"database");
    let others = packet.parameters.iter().filter(|(name, _)| !is_name(name));
    parameters.extend(others.cloned());
    client_address::add_client_address(&mut parameters, report);
    if access == Access::ReadOnly {
        parameters.push((
            Bytes::from_static(b"default_transaction_read_only"),
            Bytes::from_static(b"on"),
        ));
    }
    SessionState {
        version: packet.served(),
        parameters,
    }
}

/// Issues a cancel key that is free, enters the session and writes BackendKeyData.
fn enter(
    shared: &Arc<Shared>,
    listener: &ListenerSettings,
    version: ProtocolVersion,
    placement: &Arc<Placement>,
    client: registry::Client,
    out: &mut BytesMut,
) -> Ticket {
    let new_key = || {
        Some(CancelKey {
            // A server without BackendKeyData gets 0, and a cancel for it is a no-op (case 35).
            process_id: placement.process_id,
            key: issue(shared, version),
        })
    };
    let mut origin = Origin {
        client,
        cluster: Arc::clone(&listener.cluster.config().name),
        route: Arc::clone(&listener.route.name),
        on_unfit: listener.route.on_unfit,
        cancel_key: new_key(),
    };
    loop {
        match shared.registry.enter(origin) {
            Ok(ticket) => {
                ticket.entry().place(Some(Arc::clone(placement)));
                if let Some(CancelKey { process_id, key }) = &ticket.entry().origin.cancel_key {
                    message::backend_key_data(out, *process_id, key.expose());
                }
                return ticket;
            }
            Err(taken) => {
                origin = Origin {
                    cancel_key: new_key(),
                    ..taken
                }
            }
        }
    }
}

fn issue(shared: &Shared, version: ProtocolVersion) -> ClientCancelKey {
    if version >= ProtocolVersion::V3_2 {
        shared.keys.issue_v32()
    } else {
        shared.keys.issue_v30()
    }
}

/// The snapshot may have changed between the choice and the entry into the registry, when no order reached this session.
pub(super) fn check_placement(listener: &ListenerSettings, ticket: &Ticket, placement: &Placement) {
    if let SessionVerdict::End(why) = placement.verdict(&listener.cluster.snapshot()) {
        ticket.entry().order(Order::Now(Reason::Role(why)));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::ClientAddressOptions;
    use crate::wire::startup::{self, FirstPacket};

    fn state(body: &str, access: Access, server_user: Option<&'static str>) -> SessionState {
        let mut packet = u32::try_from(body.len() + 9).unwrap().to_be_bytes().to_vec();
        packet.extend([0, 3, 0, 0]);
        packet.extend(body.replace(['=', ';'], "\0").as_bytes());
        packet.push(0);
        let Ok(Some((FirstPacket::Startup(packet), _))) = startup::parse(&packet) else {
            panic!("{body}")
        };
        let server_user = server_user.map(|name| Bytes::from_static(name.as_bytes()));
        let report = ClientAddressReport {
            how: ClientAddressOptions {
                setting: false,
                application_name: false,
                tls: false,
            },
            client: ClientAddress::Local(None),
            tls: None,
        };
        session_state(&packet, access, server_user.as_ref(), report)
    }

    /// What a server is told for a startup packet with these parameters.
    fn startup_parameters(body: &str, access: Access, server_user: Option<&'static str>) -> String {
        let state = state(body, access, server_user);
        let shown = state.parameters.iter().map(|(name, value)| {
            format!(
                "{}={};",
                String::from_utf8_lossy(name),
                String::from_utf8_lossy(value)
            )
        });
        shown.collect()
    }

    #[test]
    fn the_server_is_told_the_names_that_the_rule_saw() {
        let leader = |body| startup_parameters(body, Access::ReadWrite, None);
        assert_eq!(leader("user=a;"), "user=a;database=a;");
        assert_eq!(leader("user=a;database=;"), "user=a;database=a;");
        assert_eq!(
            leader("database=x;user=a;o=1;user=b;database=y;o=2;"),
            "user=b;database=y;o=1;o=2;"
        );
        let long = "n".repeat(64);
        assert_eq!(
            leader(&format!("user={long};database={long};")),
            format!("user={0};database={0};", &long[..63])
        );
        assert_eq!(
            startup_parameters("user=a;o=1;", Access::ReadOnly, None),
            "user=a;database=a;o=1;default_transaction_read_only=on;"
        );
    }

    /// The longest packet that a server reads, and that is read here, has no room for what is added to it.
    #[test]
    fn what_a_server_would_not_read_is_known_before() {
        let fits = |length: usize, target| {
            let start = "user=a;database=a;options=";
            let body = format!("{start}{};", "o".repeat(length - start.len() - 10));
            state(&body, target, None).fits()
        };
        let longest = startup::MAX_LENGTH;
        assert!(fits(longest, Access::ReadWrite));
        let added = b"default_transaction_read_only\0on\0".len();
        assert!(fits(longest - added, Access::ReadOnly));
        assert!(!fits(longest - added + 1, Access::ReadOnly));
    }

    /// An empty database is the client's user, for whom the rule was asked, not the server's.
    #[test]
    fn another_user_on_the_server_is_in_the_same_database() {
        for body in [
            "user=a;",
            "user=a;database=;",
            "user=b;user=a;database=x;database=;",
        ] {
            assert_eq!(
                startup_parameters(body, Access::ReadWrite, Some("reader")),
                "user=reader;database=a;",
                "{body}"
            );
        }
    }
}
