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
use super::attach::{self, AttachError, Attachable, Request, SessionState};
use super::end::Order;
use super::entry::{self, Caller};
use super::farewell::{closing, farewell};
use super::finish::finish;
use super::gate::Gate;
use super::keys::ClientCancelKey;
use super::metrics::{SessionGuard, seconds};
use super::queue::Waiting;
use super::quota::Share;
use super::record::{Record, Times, note_attach, note_opening, refuse};
use super::registry::{self, Attachment, Seat, Ticket};
use super::relay::{Attached, Lease, Parts, Relay};
use super::told::Telling;
use super::{Shared, cancel, console, linger, peers, sentry, tcp, told};
use crate::auth::credentials::ServerLogin;
use crate::cluster::sight::Whereabouts;
use crate::cluster::snapshot::MemberName;
use crate::config::{Access, ListenerMode};
use crate::frontend::listen::ClientSocket;
use crate::frontend::login::{self, Authenticated, Behind, Exchange, LoginFault};
use crate::frontend::opening::{self, Opening};
use crate::frontend::tls::TlsFacts;
use crate::frontend::{ClientAddress, ClientStream};
use crate::routing::{Terms, Verdict};
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
    pub gate: Arc<Gate>,
    pub lease: Arc<Lease>,
    /// Its place among those that have not logged in yet.
    pub knock: Knock,
}

/// Serves one connection to its end. Never panics on what a peer sends; ends by itself in bounded time once the
/// peers are gone.
pub async fn serve(arrival: Arrival, shared: Arc<Shared>) {
    if arrival.gate.mode == ListenerMode::Tcp {
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
            let has_keepalive = record.gate.cluster.config().server.keepalive.is_some();
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
        gate,
        lease,
        knock,
    } = arrival;
    let mut knock = Some(knock);
    let deadline = accepted + **shared.login_timeout.load();
    let gauge = shared.metrics.pending();
    let mut socket = adopt(socket, &gate)?;
    let Caller {
        address,
        tls: proxied_tls,
        denied,
    } = entry::identify(
        &shared,
        &gate,
        &mut socket,
        address,
        &mut knock,
        (accepted, deadline),
    )
    .await?;
    let until = entry::speaks_until(knock.as_ref(), accepted, deadline);
    let opened = tokio::select! {
        opened = timeout_at(until, opening::open(socket, &gate.offer)) => opened,
        // It has not said yet whom to answer how.
        () = shared.closing.cancelled() => {
            shared.metrics.refuse("shutdown");
            return None;
        }
    };
    let opening = match opened {
        Ok(Ok(opening)) => opening,
        Ok(Err(fault)) => {
            note_opening(&shared, &gate, address, &fault);
            return None;
        }
        // It never said what it wanted; PostgreSQL closes without a word too.
        Err(_elapsed) => {
            shared.metrics.refuse("timeout");
            return None;
        }
    };
    let (mut stream, packet, tls) = match opening {
        Opening::Session { stream, packet, tls } => (stream, packet, tls),
        Opening::Cancel { .. } if denied.is_some() => {
            shared.metrics.cancel("denied");
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
        refuse(&shared, &gate, &mut stream, &packet, address, fault).await;
        return None;
    }
    let mut pending = match entry::login(&shared, address, knock, accepted).await {
        Ok(pending) => pending,
        Err(full) => {
            let fault = entry::no_place(full);
            refuse(&shared, &gate, &mut stream, &packet, address, fault).await;
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
        outcome = timeout_at(deadline, authenticate(&shared, &gate, client, &mut pending, deadline)) => outcome,
        () = shared.closing.cancelled() => Ok(Err(LoginFault::Unavailable(closing()))),
    };
    let (authenticated, mut admitted) = match outcome {
        Ok(Ok(done)) => done,
        Ok(Err(fault)) => {
            refuse(&shared, &gate, &mut stream, &packet, address, fault).await;
            return None;
        }
        Err(_elapsed) => {
            refuse(&shared, &gate, &mut stream, &packet, address, LoginFault::Timeout).await;
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
        terms: None,
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
        gate,
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
        .share(&record.gate.rate, Some(names), address.ip(), Instant::now());
    let share = match share {
        Ok(share) => {
            let share = Arc::new(share);
            admitted.keep(Arc::clone(&share));
            share
        }
        Err(refusal) => {
            shared.metrics.refuse(refusal.label);
            record.refused(&shared, &refusal.reply.message);
            message::error(&mut welcome, &refusal.reply);
            farewell(stream, welcome).await;
            return None;
        }
    };
    let session = begin(
        &shared,
        stream,
        &packet,
        (&login, welcome),
        &mut record,
        (lease, &share),
    )
    .await?;
    let Begun { relay, seat } = session;
    let gauge = shared.metrics.session(
        &record.gate.route.name,
        &record.member,
        Some(&record.gate.cluster),
    );
    Some(LoggedIn::Session(Session {
        relay,
        record,
        seat,
        gauge,
        admitted,
    }))
}

fn behind(shared: &Shared, packet: &StartupPacket) -> Behind {
    match &*shared.console.load() {
        Some(door) if door.is_meant(packet) => Behind::Console,
        _ => Behind::Servers,
    }
}

/// Registers an accepted socket with this worker and sets its options.
pub(super) fn adopt(socket: ClientSocket, gate: &Gate) -> Option<ClientStream> {
    // Each fails only if the peer is gone already.
    Some(match socket {
        ClientSocket::Tcp(socket) => {
            socket.set_nonblocking(true).ok()?;
            let socket = TcpStream::from_std(socket).ok()?;
            crate::backend::tune_socket(&socket, &gate.cluster.config().server).ok()?;
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
    gate: &Gate,
    client: Client<'_>,
    pending: &mut Option<Pending>,
    deadline: Instant,
) -> Result<(Authenticated, Admitted), LoginFault> {
    let Client {
        stream,
        packet,
        tls,
        address,
    } = client;
    login::negotiate(stream, packet).await?;
    if let Some(setting) = settings::delay(&packet.parameters) {
        return Err(LoginFault::Limit("startup_setting", not_passed_on(setting)));
    }
    sentry::admit(shared, gate, stream, packet, address, pending, deadline).await?;
    shared.admission.ask(gate).map_err(LoginFault::TooMany)?;
    let access = shared.access.load_full();
    let behind = behind(shared, packet);
    let doors = shared.doors(&access, gate, behind, deadline);
    let mut exchange = Exchange::new(stream, packet, address, tls, doors);
    let decided = exchange.decide().await?;
    if behind == Behind::Servers {
        attach::anybody(&gate.cluster, &gate.route).map_err(LoginFault::Unavailable)?;
    }
    let authenticated = exchange.run(decided).await?;
    if authenticated.has_proven() {
        sentry::succeeded(shared, gate, packet, address);
    }
    // Only now: whoever has no password must not use up the places of those who have.
    let admitted = shared.admission.admit(gate).map_err(LoginFault::TooMany)?;
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
    (lease, share): (Arc<Lease>, &Arc<Share>),
) -> Option<Begun> {
    let gate = Arc::clone(&record.gate);
    let started = Instant::now();
    let telling = Telling {
        how: gate.route.client_address,
        client: record.client,
        tls: record.tls,
    };
    let state = session_state(packet, gate.route.access, login.user.as_ref(), telling);
    let waiting = Waiting {
        queues: &shared.registry.queues,
        cluster: &gate.cluster,
        route: &gate.route,
        client: &stream,
        closing: &shared.closing,
        metrics: &shared.metrics.queue,
    };
    let request = Request {
        cluster: &gate.cluster,
        registry: &shared.registry,
        route: &gate.route,
        state: &state,
        login,
        replication: packet.replication,
        client: record.client.ip(),
        waiting: &waiting,
        share,
    };
    let attached = attach::attach(&request).await;
    record.times.connect = started.elapsed();
    let Attachable {
        connection,
        member,
        seat,
        terms,
        whereabouts,
        queued,
        ..
    } = match attached {
        Ok(attached) => attached,
        Err(error) => {
            note_attach(shared, record, &error);
            match error {
                AttachError::Server { frame, .. } => out.extend_from_slice(&frame),
                AttachError::TooLong(reply)
                | AttachError::NoCandidate(reply)
                | AttachError::Busy(_, reply)
                | AttachError::Refused { reply, .. }
                | AttachError::Credential { reply, .. } => {
                    message::error(&mut out, &reply);
                }
                AttachError::Closing => message::error(&mut out, &closing()),
                AttachError::HungUp => return None,
            }
            farewell(stream, out).await;
            return None;
        }
    };
    record.times.queued = queued;
    record.times.connect = record.times.connect.saturating_sub(queued);
    shared
        .metrics
        .connect_seconds
        .observe(seconds(record.times.connect));
    member.as_str().clone_into(&mut record.member);
    record.terms = Some(terms);
    if terms == Terms::Unenforced {
        shared.metrics.unenforced(&gate.route.name);
    }
    for notice in &connection.notices {
        out.extend_from_slice(notice);
    }
    for (name, value) in &connection.parameters {
        message::parameter_status(&mut out, name, value);
    }
    let ticket = enter(
        shared,
        &gate,
        packet.served(),
        &connection,
        (&member, terms, whereabouts),
        record.who(),
        &mut out,
    );
    message::ready_for_query(&mut out, b'I');
    if let Routed::End(reason) = still_right(&gate, &ticket) {
        ticket.entry().order(Order::Now(reason));
    }
    let told = timeout(**shared.login_timeout.load(), async {
        stream.write_all(&out).await?;
        stream.flush().await
    });
    if !matches!(told.await, Ok(Ok(()))) {
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
        cluster: gate.cluster.clone(),
        lease,
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
    telling: Telling,
) -> SessionState {
    let user = server_user.unwrap_or(&packet.user).clone();
    let mut parameters = vec![
        (Bytes::from_static(b"user"), user),
        (Bytes::from_static(b"database"), packet.database.clone()),
    ];
    let is_name = |name: &Bytes| matches!(name.as_ref(), b"user" | b"database");
    let others = packet.parameters.iter().filter(|(name, _)| !is_name(name));
    parameters.extend(others.cloned());
    told::tell(&mut parameters, telling);
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
    gate: &Gate,
    version: ProtocolVersion,
    connection: &crate::backend::ServerConnection,
    (member, terms, whereabouts): (&MemberName, Terms, Whereabouts),
    client: registry::Client,
    out: &mut BytesMut,
) -> Ticket {
    // A server without BackendKeyData gets an id of ours, and a cancel for it is a no-op (case 35).
    let process_id = connection.process_id.unwrap_or_default();
    let mut attachment = Attachment {
        client,
        cluster: Arc::clone(&gate.cluster.config().name),
        route: Arc::clone(&gate.route.name),
        terms,
        member: member.clone(),
        whereabouts: Some(whereabouts),
        process_id,
        key: Some(issue(shared, version)),
        cancel: connection.cancel.clone(),
        on_unfit: gate.route.on_unfit,
    };
    loop {
        let key = attachment.key.clone();
        match shared.registry.enter(attachment) {
            Ok(ticket) => {
                if let Some(key) = key {
                    message::backend_key_data(out, process_id, key.expose());
                }
                return ticket;
            }
            Err(taken) => {
                attachment = Attachment {
                    key: Some(issue(shared, version)),
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

enum Routed {
    Stay,
    End(super::end::Reason),
}

/// The snapshot may have changed between the choice and the entry into the registry, when nobody would have told
/// this session.
fn still_right(gate: &Gate, ticket: &Ticket) -> Routed {
    let attachment = &ticket.entry().attachment;
    match attachment.verdict(&gate.cluster.snapshot()) {
        Verdict::Stay => Routed::Stay,
        Verdict::End(why) => Routed::End(super::end::Reason::Role(why)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::TellAddress;
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
        let telling = Telling {
            how: TellAddress {
                setting: false,
                application_name: false,
                tls: false,
            },
            client: ClientAddress::Local(None),
            tls: None,
        };
        session_state(&packet, access, server_user.as_ref(), telling)
    }

    /// What a server is told for a startup packet with these parameters.
    fn told(body: &str, access: Access, server_user: Option<&'static str>) -> String {
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
        let leader = |body| told(body, Access::ReadWrite, None);
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
            told("user=a;o=1;", Access::ReadOnly, None),
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
                told(body, Access::ReadWrite, Some("reader")),
                "user=reader;database=a;",
                "{body}"
            );
        }
    }
}
