//! Where a connection comes from: reads a balancer's header if there must be one, and checks
//! whether the client's address may connect.
//!
//! A connection from a trusted balancer counts for no source until its header is read. Then it
//! counts for the client's address, and every other rule uses that address too.

use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

use super::super::listener_settings::ListenerSettings;
use super::super::{Shared, close};
use super::admission::{AdmissionPlace, ArrivalPlace, Full, PATIENCE};
use super::login_throttle;
use crate::frontend::login::LoginError;
use crate::frontend::proxy::{self, ProxyHeaderError};
use crate::frontend::{ClientAddress, ClientStream, RefuseReason};
use crate::wire::message::ErrorReply;
use crate::wire::proxy::ProxiedTls;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::{self, Glance};

use std::time::Duration;

/// The time between two checks for more bytes.
const PEEK_INTERVAL: Duration = Duration::from_millis(10);

/// How long a connection from the reserve may take to set up TLS and send its first packet.
const FIRST_PACKET_WITHIN: Duration = Duration::from_secs(5);

/// A client whose address is known.
#[derive(Debug)]
pub(in crate::session) struct ClientOrigin {
    pub(in crate::session) address: ClientAddress,
    /// TLS that ended at the balancer, as its header describes it; for the log.
    pub(in crate::session) tls: Option<Box<ProxiedTls>>,
    /// The refusal. It is sent after the startup packet: clients understand no error before it.
    pub(in crate::session) denied: Option<LoginError>,
}

/// Whether a connection from this address must begin with a balancer's header.
pub fn is_announced(listener: &ListenerSettings, socket: ClientAddress) -> bool {
    match (&listener.entry.proxy_protocol, socket.ip()) {
        (Some(proxies), Some(ip)) => proxies.trusts(ip),
        _ => false,
    }
}

/// Finds out the client's address, and counts the place for it. `None`: the connection was refused.
pub(super) async fn identify(
    shared: &Shared,
    listener: &ListenerSettings,
    stream: &mut ClientStream,
    socket: ClientAddress,
    mut place: ArrivalPlace,
    (accepted, deadline): (Instant, Instant),
) -> Option<(ClientOrigin, ArrivalPlace)> {
    let is_announced = is_announced(listener, socket);
    let mut origin = ClientOrigin {
        address: socket,
        tls: None,
        denied: None,
    };
    if let (true, ClientStream::Plain(tcp)) = (is_announced, &*stream) {
        let header = tokio::select! {
            header = timeout_at(deadline, proxy::read(tcp)) => header,
            () = shared.closing.cancelled() => {
                shared.metrics.refuse(RefuseReason::Shutdown);
                return None;
            }
        };
        let header = match header {
            Ok(Ok(header)) => header,
            Ok(Err(error)) => {
                refuse_header(shared, listener, stream, socket, &error).await;
                return None;
            }
            Err(_elapsed) => {
                shared.metrics.refuse(RefuseReason::Timeout);
                return None;
            }
        };
        origin.address = socket.proxied(header.source);
        origin.tls = header.tls.map(Box::new);
        place = match attribute(shared, origin.address, place, accepted).await {
            Ok(place) => place,
            Err(full) => {
                too_many(shared, listener, stream, full).await;
                return None;
            }
        };
    }
    place = match await_first_bytes(shared, stream, origin.address, place, accepted).await {
        Ok(place) => place,
        Err(full) => {
            too_many(shared, listener, stream, full).await;
            return None;
        }
    };
    origin.denied = denied(listener, origin.address, is_announced);
    Some((origin, place))
}

/// The refusal, if this address may not connect to the listener.
fn denied(listener: &ListenerSettings, address: ClientAddress, is_announced: bool) -> Option<LoginError> {
    let proxies = listener.entry.proxy_protocol.as_ref();
    if !is_announced && proxies.is_some_and(|proxies| proxies.required) {
        let reply = ErrorReply::fatal(
            SqlState::INVALID_AUTHORIZATION,
            "this port of the router accepts connections from its balancer only",
        );
        let hint = "Connect to the balancer. The listener's proxy_protocol names the balancers.";
        return Some(LoginError::Limit(RefuseReason::ProxyRequired, reply.hint(hint)));
    }
    if address.ip().is_some_and(|ip| !listener.entry.addresses.admit(ip)) {
        let reply = ErrorReply::fatal(
            SqlState::INVALID_AUTHORIZATION,
            "this address may not connect to this port of the router",
        );
        let hint = "Ask the operator to change allow or deny of the listener.";
        return Some(LoginError::Limit(RefuseReason::AddressDenied, reply.hint(hint)));
    }
    None
}

/// Counts the place for the client's address from now on. If that address has as many places as it
/// may have, the connection waits like others, and has no place meanwhile.
async fn attribute(
    shared: &Shared,
    address: ClientAddress,
    mut place: ArrivalPlace,
    accepted: Instant,
) -> Result<ArrivalPlace, Full> {
    let (ArrivalPlace::Login(taken) | ArrivalPlace::Reserve(taken)) = &mut place;
    if taken.attribute(address.ip()).is_ok() {
        return Ok(place);
    }
    drop(place);
    match shared.admission.place(address.ip()) {
        Ok(place) => Ok(place),
        Err(_) => turn(shared, address, shared.admission.queued(address.ip())?, accepted).await,
    }
}

/// Waits for a place, for a short time, until others of the same address have logged in or sent
/// their first packet.
pub async fn turn(
    shared: &Shared,
    address: ClientAddress,
    queued: AdmissionPlace,
    accepted: Instant,
) -> Result<ArrivalPlace, Full> {
    let turn = tokio::select! {
        turn = shared.admission.place_until(address.ip(), accepted + PATIENCE) => turn,
        () = shared.closing.cancelled() => Err(Full::Total),
    };
    drop(queued);
    turn
}

/// Waits for the first bytes of a connection from the reserve. A cancel request in clear continues
/// at once. A login waits for a place. A connection that asks for TLS first waits too, but not
/// long: inside TLS it shows whether it is a login. A silent connection is refused.
async fn await_first_bytes(
    shared: &Shared,
    stream: &ClientStream,
    address: ClientAddress,
    place: ArrivalPlace,
    accepted: Instant,
) -> Result<ArrivalPlace, Full> {
    // On a Unix socket there is no TLS: the client's packet is read at once.
    let (ClientStream::Plain(socket), ArrivalPlace::Reserve(_)) = (stream, &place) else {
        return Ok(place);
    };
    let (admission, until) = (&shared.admission, accepted + PATIENCE);
    let wants_session = tokio::select! {
        biased;
        pending = admission.pending_until(address.ip(), until) => return pending.map(ArrivalPlace::Login),
        wants_session = wants_session(socket) => wants_session,
        () = shared.closing.cancelled() => return Err(Full::Total),
    };
    if !wants_session {
        return Ok(place);
    }
    // The reserve is for connections that have sent nothing yet.
    let place = match admission.queued(address.ip()) {
        Ok(queued) => {
            drop(place);
            ArrivalPlace::Reserve(queued)
        }
        Err(_) => place,
    };
    tokio::select! {
        pending = admission.pending_in_time(address.ip(), until) => match pending {
            Ok(pending) => Ok(ArrivalPlace::Login(pending)),
            Err(_) => Ok(place),
        },
        () = shared.closing.cancelled() => Ok(place),
    }
}

/// Whether the first bytes are those of a session, or of something that is not the protocol. Reads
/// nothing.
async fn wants_session(socket: &TcpStream) -> bool {
    let mut first = [0; 8];
    loop {
        let seen = match socket.peek(&mut first).await {
            Ok(seen) if seen > 0 => seen,
            // The client has left; the next read finds that out.
            Ok(_) | Err(_) => return false,
        };
        match startup::glance(&first[..seen]) {
            // `None` of eight bytes: the beginning of a cancel request.
            Ok(Some(Glance::Cancel(_) | Glance::Peer)) => return false,
            Ok(None) if seen == first.len() => return false,
            // The kernel has no event for "more than these": the socket stays readable. Eight bytes
            // nearly always come in one piece.
            Ok(None) => sleep(PEEK_INTERVAL).await,
            Ok(Some(Glance::Session)) | Err(_) => return true,
        }
    }
}

/// When the first packet of a connection must have come.
pub(super) fn first_packet_deadline(place: &ArrivalPlace, accepted: Instant, deadline: Instant) -> Instant {
    match place {
        ArrivalPlace::Reserve(_) => deadline.min(accepted + PATIENCE + FIRST_PACKET_WITHIN),
        ArrivalPlace::Login(_) => deadline,
    }
}

/// A place for a client whose first packet asks for a login.
pub(in crate::session) async fn login_place(
    shared: &Shared,
    address: ClientAddress,
    place: ArrivalPlace,
    accepted: Instant,
) -> Result<AdmissionPlace, Full> {
    match place {
        ArrivalPlace::Login(pending) => Ok(pending),
        ArrivalPlace::Reserve(reserve) => {
            let pending = shared
                .admission
                .pending_in_time(address.ip(), accepted + PATIENCE)
                .await;
            drop(reserve);
            pending
        }
    }
}

/// The refusal of a client whose first packet asks for a login.
pub(in crate::session) fn no_place(full: Full) -> (RefuseReason, ErrorReply) {
    let (text, hint) = login_throttle::too_many(full);
    let reply = ErrorReply::fatal(SqlState::TOO_MANY_CONNECTIONS, text).hint(hint);
    (reason(full), reply)
}

/// For metrics.
pub fn reason(full: Full) -> RefuseReason {
    match full {
        Full::Total => RefuseReason::TooManyLogins,
        Full::Source => RefuseReason::TooManyLoginsAddress,
    }
}

async fn too_many(shared: &Shared, listener: &ListenerSettings, stream: &mut ClientStream, full: Full) {
    shared.metrics.refuse(reason(full));
    let (text, hint) = login_throttle::too_many(full);
    close::say(stream, &close::too_many(listener, text, hint)).await;
}

/// Refuses a connection from a trusted address that sent no header, or a bad one: the balancer is
/// not configured for it, or another program connects from there.
async fn refuse_header(
    shared: &Shared,
    listener: &ListenerSettings,
    stream: &mut ClientStream,
    socket: ClientAddress,
    error: &ProxyHeaderError,
) {
    if matches!(error, ProxyHeaderError::HungUp) {
        debug!(client = %socket, listener = %listener.name, "the balancer hung up before its PROXY protocol header");
        return;
    }
    shared.metrics.refuse(RefuseReason::ProxyHeader);
    if let Some(skipped) = shared.failures.admit(socket.ip(), None) {
        warn!(client = %socket, listener = %listener.name, fault = %error, skipped, "connection refused");
    }
    let reply = ErrorReply::fatal(SqlState::PROTOCOL_VIOLATION, error.to_string()).hint(
        "This address is in the listener's proxy_protocol.trusted. Ask the operator to make the balancer there send \
         the header (send-proxy, send-proxy-v2).",
    );
    close::say(stream, &close::fatal(listener, &reply)).await;
}
