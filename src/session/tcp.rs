//! The life of a connection on a listener with `mode: tcp`: the router chooses a server as for
//! every other session, and forwards bytes unread. TLS and authentication are between the client
//! and the server.
//!
//! It promises less than a session of `mode: postgres`. Cluster, timeline and role of the server
//! are not seen on the connection itself: a probe sees them at the same address at about the same
//! time. Transactions are not seen, so an order to end at a boundary has no effect until it becomes
//! an order to end at once. A client whose connection is cut gets no error.
//!
//! ```text
//! first packet → admission → choose → connect → (next candidate)* → forward → end
//!      └→ cancel: to every member                    └→ no server: 57P03, in clear
//! ```

mod connect;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, warn};

use self::connect::{Connected, connect};
use super::arrival::admission::{AdmissionPlace, Admitted, ArrivalPlace};
use super::arrival::client_origin::{self, ClientOrigin};
use super::arrival::{Arrival, Course, Identified};
use super::cancel::CancelOutcome;
use super::close::{close_with_error, closing};
use super::counts::RouteCounts;
use super::end::{Cause, End};
use super::forward::{self, Ended, Forward, Parts};
use super::gate;
use super::gauges::GaugeGuard;
use super::held::{Held, check_placement};
use super::listener_settings::ListenerSettings;
use super::record::{self, Record, Times};
use super::registry::{self, Origin, Placement, SessionKind, Ticket};
use super::{Shared, cancel};

use crate::frontend::login::LoginError;
use crate::frontend::opening::OpeningError;
use crate::frontend::{ClientAddress, ClientStream, RefuseReason};
use crate::routing::{self, GrantedRole};
use crate::wire::message::ErrorReply;
use crate::wire::startup::{self, FirstPacket, Glance};

/// How long a client that is refused may take to send its startup packet.
const REFUSING: Duration = Duration::from_secs(5);
/// The most members to which one cancel request is sent.
const MOST_CANCELLED: usize = 64;

/// Serves one connection to its end; as [`super::life::serve`].
pub(super) async fn serve(arrival: Box<Arrival>, shared: Arc<Shared>) {
    let Some(mut forwarding) = Box::pin(begin(*arrival, &shared)).await else {
        return;
    };
    let cause = forwarding.forward.run().await;
    // Boxed: an idle session must not hold the memory of its end.
    Box::pin(forwarding.finish(cause, &shared)).await;
}

/// A client with a server connection.
struct Forwarding {
    forward: Forward,
    record: Box<Record>,
    held: Held,
}

/// Why there is no server, and the error for the client.
struct Refusal {
    reply: ErrorReply,
    /// `None`: the client has left, and gets no error.
    reason: Option<RefuseReason>,
}

impl Forwarding {
    /// Writes the session's line, and waits until the server has ended its part.
    async fn finish(self, cause: Cause, shared: &Shared) {
        let Self {
            forward,
            record,
            held,
        } = self;
        let server = finish(forward.end(cause), &record, shared).await;
        held.release(server, &record.listener.cluster, &shared.closing)
            .await;
    }
}

/// Takes a connection as far as forwarding. `None`: the connection ended before that.
async fn begin(arrival: Arrival, shared: &Arc<Shared>) -> Option<Forwarding> {
    let identified = arrival.identify(shared).await?;
    let opened = Opened::read(identified, shared).await?;
    opened.connect(shared).await
}

/// A client whose first bytes are those of a session.
struct Opened {
    client: ClientStream,
    /// The bytes read so far.
    head: BytesMut,
    origin: ClientOrigin,
    place: ArrivalPlace,
    course: Course,
    pending: GaugeGuard,
}

impl Opened {
    /// Reads until it is clear what the client wants. If that is not a session, it is served here.
    async fn read(identified: Identified, shared: &Arc<Shared>) -> Option<Self> {
        let until = identified.first_packet_deadline();
        let Identified {
            stream: mut client,
            origin,
            place,
            course,
            pending,
        } = identified;
        let mut head = BytesMut::new();
        let glance = tokio::select! {
            glance = timeout_at(until, first(&mut client, &mut head)) => glance,
            () = shared.closing.cancelled() => {
                shared.metrics.refuse(RefuseReason::Shutdown);
                return None;
            }
        };
        let (listener, address) = (&course.listener, origin.address);
        match glance {
            Ok(Ok(Glance::Session)) => Some(Self {
                client,
                head,
                origin,
                place,
                course,
                pending,
            }),
            Ok(Ok(Glance::Cancel(_))) if origin.denied.is_some() => {
                shared.metrics.cancel(CancelOutcome::Denied);
                None
            }
            Ok(Ok(Glance::Cancel(request))) => {
                // A cancel request waits for servers, not for a login.
                drop((place, pending));
                cancel(shared, listener, client, &request, address).await;
                None
            }
            Ok(Ok(Glance::Peer)) => {
                debug!(client = %address, listener = %listener.name, "a router sent a peer request to a listener with mode: tcp");
                shared.metrics.refuse(RefuseReason::Opening);
                None
            }
            Ok(Err(error)) => {
                record::note_opening(shared, listener, address, &error);
                None
            }
            Err(_elapsed) => {
                shared.metrics.refuse(RefuseReason::Timeout);
                None
            }
        }
    }

    /// Takes a place among the sessions, and connects to a server.
    async fn connect(self, shared: &Arc<Shared>) -> Option<Forwarding> {
        let Self {
            client,
            head,
            origin: ClientOrigin { address, denied, .. },
            place,
            course,
            pending,
        } = self;
        let Course {
            listener,
            worker_buffer,
            accepted,
            ..
        } = course;
        let started = Instant::now();
        // Held until the client has its error, so that refused clients are limited like pending
        // ones.
        let mut held = None;
        let admitted = match denied {
            Some(LoginError::Limit(reason, reply)) => Err(Refusal {
                reply,
                reason: Some(reason),
            }),
            // An address is refused only by a limit.
            Some(_) => return None,
            None => {
                let admitted = admit(shared, &listener, (address, accepted), place, &mut held);
                unless_closing(shared, admitted).await
            }
        };
        let admitted = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => {
                turn_away(shared, &listener, address, (client, head), &refusal).await;
                return None;
            }
        };
        // A client that waits for a server must not keep others from logging in. The router does
        // not see when the client has logged in at the server. From here on the place among the
        // sessions limits refused clients, too.
        drop((held, pending));
        let connected = connect(shared, &listener, &client, address);
        let connected = match unless_closing(shared, connected).await {
            Ok(connected) => connected,
            Err(refusal) => {
                turn_away(shared, &listener, address, (client, head), &refusal).await;
                return None;
            }
        };
        let Connected {
            stream,
            member,
            granted,
            whereabouts,
            seat,
        } = connected;
        if granted == GrantedRole::Unenforced {
            shared.metrics.unenforced(&listener.route.name);
        }
        let gauge = shared
            .metrics
            .session(&listener.route.name, &member, Some(&listener.cluster));
        let placement = Placement {
            member: member.clone(),
            granted,
            whereabouts: Some(whereabouts),
            process_id: 0,
            cancel: None,
        };
        let ticket = enter(shared, &listener, (address, accepted), placement)?;
        let origin = Arc::clone(&ticket.entry().origin);
        let forward = Forward::new(Parts {
            client,
            server: stream,
            head: head.freeze(),
            ticket,
            member: member.clone(),
            cluster: listener.cluster.clone(),
            occupancy: Arc::clone(&shared.occupancy),
            worker_buffer,
        });
        Some(Forwarding {
            forward,
            record: Box::new(Record {
                origin,
                listener,
                member: Some(member),
                granted: Some(granted),
                login: None,
                times: Times {
                    connect: started.elapsed(),
                    ..Times::default()
                },
            }),
            held: Held {
                seat,
                gauge,
                admitted,
            },
        })
    }
}

/// Reads until it is clear what the client wants; what was read stays in `head`. Cancel safe, as
/// `read_buf` is.
async fn first(client: &mut ClientStream, head: &mut BytesMut) -> Result<Glance, OpeningError> {
    loop {
        if let Some(glance) = startup::glance(head).map_err(|error| OpeningError::at_first(error, head))? {
            return Ok(glance);
        }
        head.reserve(1024);
        match client.read_buf(head).await {
            Ok(0) | Err(_) => return Err(OpeningError::HungUp),
            Ok(_) => {}
        }
    }
}

/// The result of `step`, unless the router shuts down before.
async fn unless_closing<T>(
    shared: &Shared,
    step: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    tokio::select! {
        done = step => done,
        () = shared.closing.cancelled() => Err(Refusal {
            reply: closing(),
            reason: Some(RefuseReason::Shutdown),
        }),
    }
}

/// Takes a place among the sessions. Only the address of the client is known. `held` gets the
/// client's place among the connections that have not logged in.
async fn admit(
    shared: &Shared,
    listener: &ListenerSettings,
    (client, accepted): (ClientAddress, Instant),
    place: ArrivalPlace,
    held: &mut Option<AdmissionPlace>,
) -> Result<Admitted, Refusal> {
    let place = client_origin::login_place(shared, client, place, accepted).await;
    let place = place.map_err(|full| {
        let (reason, reply) = client_origin::no_place(full);
        Refusal {
            reply,
            reason: Some(reason),
        }
    })?;
    *held = Some(place);
    let is_enabled = shared.disabled_routes.admits(&listener.route.name);
    is_enabled.map_err(|reply| Refusal {
        reply,
        reason: Some(RefuseReason::Disabled),
    })?;
    gate::hears(&listener.cluster.snapshot(), &listener.route).map_err(|reply| Refusal {
        reply,
        reason: Some(RefuseReason::Unavailable),
    })?;
    let mut admitted = shared.admission.admit(listener).map_err(|reply| Refusal {
        reply,
        reason: Some(RefuseReason::TooMany),
    })?;
    let share = shared
        .quota
        .share(&listener.rate, None, client.ip(), Instant::now());
    let share = share.map_err(|refusal| Refusal {
        reply: refusal.reply,
        reason: Some(refusal.reason),
    })?;
    admitted.keep(Arc::new(share));
    Ok(admitted)
}

/// Enters the session. It is never `None`: without a cancel key there is no other session with the
/// same key.
fn enter(
    shared: &Shared,
    listener: &ListenerSettings,
    (client, accepted): (ClientAddress, Instant),
    placement: Placement,
) -> Option<Ticket> {
    let client = registry::Client {
        address: client,
        user: Bytes::new(),
        database: Bytes::new(),
        tls: None,
        since: accepted,
    };
    let origin = Arc::new(Origin::new(client, listener, SessionKind::Forwarded));
    let placement = Arc::new(placement);
    let ticket = shared.registry.enter(origin, None).ok()?;
    ticket.entry().place(Some(Arc::clone(&placement)));
    check_placement(listener, &ticket, &placement);
    Some(ticket)
}

/// Sends a cancel request to every member that may have the session: its key is the server's own,
/// and only that one knows it. The client's socket is closed after theirs, which is when libpq
/// takes the cancel for delivered.
async fn cancel(
    shared: &Shared,
    listener: &ListenerSettings,
    client: ClientStream,
    request: &Bytes,
    address: ClientAddress,
) {
    let cluster = &listener.cluster;
    let snapshot = cluster.snapshot();
    let may_have_it = |member: &&crate::cluster::snapshot::Member| {
        member.has_address()
            && (routing::fitness(&snapshot, &listener.route, member).is_ok()
                || shared.occupancy.sessions_on(&cluster.config().name, &member.name) > 0)
    };
    let members = snapshot.members.iter().filter(may_have_it).take(MOST_CANCELLED);
    let servers: Vec<(String, u16)> = members.map(|member| (member.host.clone(), member.port)).collect();
    cancel::pass_unread(shared, &servers, &cluster.tls(), client, request, address.ip()).await;
}

/// Logs the refusal, and sends the error to the client if it is still there.
async fn turn_away(
    shared: &Shared,
    listener: &ListenerSettings,
    address: ClientAddress,
    (client, head): (ClientStream, BytesMut),
    refusal: &Refusal,
) {
    if refusal.reason.is_some() {
        refuse(shared, listener, address, refusal);
        send_refusal(client, head, &refusal.reply, listener.gate.counts()).await;
    }
}

fn refuse(shared: &Shared, listener: &ListenerSettings, client: ClientAddress, refusal: &Refusal) {
    let Refusal { reply, reason } = refusal;
    let Some(counted) = *reason else { return };
    shared.metrics.refuse(counted);
    let (listener, reason) = (&listener.name, &reply.message);
    let via = client.via().map(tracing::field::display);
    let is_known = matches!(
        counted,
        RefuseReason::Unavailable | RefuseReason::Disabled | RefuseReason::Shutdown
    );
    if is_known {
        // Another log line says why, once; balancers ask every second.
        debug!(%client, %listener, mode = "tcp", %reason, "connection refused");
    } else if let Some(skipped) = shared.failures.admit(client.ip(), None) {
        warn!(%client, via, %listener, mode = "tcp", ?reason, skipped, "connection refused");
    }
}

/// Sends the error to a client without TLS. It first declines encryption, as PostgreSQL's protocol
/// defines. A client that requires encryption hangs up, and direct TLS is closed without an error.
async fn send_refusal(
    mut client: ClientStream,
    mut head: BytesMut,
    reply: &ErrorReply,
    counts: &RouteCounts,
) {
    let mut declined = 0;
    let asked = timeout(REFUSING, async {
        loop {
            match startup::parse(&head) {
                Ok(Some((FirstPacket::SslRequest | FirstPacket::GssEncRequest, used)))
                    if declined < 2 && head.len() == used =>
                {
                    declined += 1;
                    head.clear();
                    client.write_all(b"N").await.ok()?;
                }
                Ok(Some((FirstPacket::Startup(_), _))) => return Some(()),
                Ok(Some(_)) => return None,
                // A faulty packet gets the same error: the client would not have been served in any
                // case.
                Err(error) => return error.reply().map(|_| ()),
                Ok(None) => {
                    head.reserve(1024);
                    if client.read_buf(&mut head).await.ok()? == 0 {
                        return None;
                    }
                }
            }
        }
    });
    if let Ok(Some(())) = asked.await {
        let mut out = BytesMut::new();
        counts.error(&mut out, reply);
        close_with_error(client, out).await;
    }
}

async fn finish(ended: Ended, record: &Record, shared: &Shared) -> TcpStream {
    let Ended {
        cause,
        client,
        server,
        traffic,
        ticket,
    } = ended;
    // The router does not see whether a request is under way.
    let end = End::from(cause);
    record::log_end(&end, record, traffic, None);
    shared.metrics.end(&record.listener.route.name, &end);
    drop(ticket);
    forward::part(client, &end).await;
    server
}
