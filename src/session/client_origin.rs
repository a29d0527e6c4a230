//! Who knocks: a balancer's header where there must be one, and whether the client's address may come in.
//!
//! A connection from a trusted balancer counts for no source until its header is read; then for the client's, which
//! everything else goes by.

use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, warn};

use super::Shared;
use super::admission::{Full, Knock, PATIENCE, Pending, Room};
use super::listener_settings::ListenerSettings;
use super::{close, login_throttle};
use crate::frontend::login::LoginError;
use crate::frontend::proxy::{self, ProxyHeaderError};
use crate::frontend::{ClientAddress, ClientStream, RefuseReason};
use crate::wire::message::ErrorReply;
use crate::wire::proxy::ProxiedTls;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::{self, Glance};

use std::time::Duration;

/// Between two looks whether there is a place by now.
const LOOK: Duration = Duration::from_millis(10);

/// For a connection from the reserve to set up TLS and say what it wants, at most.
const SPEAKS: Duration = Duration::from_secs(5);

/// A client whose address is known.
#[derive(Debug)]
pub(super) struct ClientOrigin {
    pub(super) address: ClientAddress,
    /// TLS that ended at the balancer, by its header; for the log.
    pub(super) tls: Option<Box<ProxiedTls>>,
    /// Why it is told no, once it can be: clients understand an error only after their startup packet.
    pub(super) denied: Option<LoginError>,
}

/// Whether a connection from there begins with a header.
pub fn is_announced(listener: &ListenerSettings, socket: ClientAddress) -> bool {
    match (&listener.entry.proxy_protocol, socket.ip()) {
        (Some(proxies), Some(ip)) => proxies.trusts(ip),
        _ => false,
    }
}

/// Finds out who it is. `None`: it was refused, and told.
pub(super) async fn identify(
    shared: &Shared,
    listener: &ListenerSettings,
    stream: &mut ClientStream,
    socket: ClientAddress,
    knock: &mut Option<Knock>,
    (accepted, deadline): (Instant, Instant),
) -> Option<ClientOrigin> {
    let is_announced = is_announced(listener, socket);
    let mut caller = ClientOrigin {
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
            Ok(Err(fault)) => {
                not_announced(shared, listener, stream, socket, &fault).await;
                return None;
            }
            Err(_elapsed) => {
                shared.metrics.refuse(RefuseReason::Timeout);
                return None;
            }
        };
        caller.address = socket.proxied(header.source);
        caller.tls = header.tls.map(Box::new);
        if let Err(full) = attribute(shared, caller.address, knock, accepted).await {
            too_many(shared, stream, full).await;
            return None;
        }
    }
    if let Err(full) = look(shared, stream, caller.address, knock, accepted).await {
        too_many(shared, stream, full).await;
        return None;
    }
    let proxies = listener.entry.proxy_protocol.as_ref();
    let ip = caller.address.ip();
    if !is_announced && proxies.is_some_and(|proxies| proxies.required) {
        let reply = ErrorReply::fatal(
            SqlState::INVALID_AUTHORIZATION,
            "connections to this port of the connection manager come through its balancer only",
        );
        let hint = "Connect to the balancer; who is one is said in its listener's proxy_protocol.";
        caller.denied = Some(LoginError::Limit(RefuseReason::ProxyRequired, reply.hint(hint)));
    } else if ip.is_some_and(|ip| !listener.entry.addresses.admit(ip)) {
        let reply = ErrorReply::fatal(
            SqlState::INVALID_AUTHORIZATION,
            "this address may not connect to this port of the connection manager",
        );
        let hint = "Its operator says who may with allow and deny of the listener.";
        caller.denied = Some(LoginError::Limit(RefuseReason::AddressDenied, reply.hint(hint)));
    }
    Some(caller)
}

/// Counts the place for the client from now on. Where its source has all it may have, it waits as others do.
async fn attribute(
    shared: &Shared,
    address: ClientAddress,
    knock: &mut Option<Knock>,
    accepted: Instant,
) -> Result<(), Full> {
    let Some(Knock::Login(place) | Knock::Reserve(place)) = knock else {
        return Ok(());
    };
    if place.attribute(address.ip()).is_ok() {
        return Ok(());
    }
    // It holds none of the places meanwhile.
    *knock = None;
    let got = match shared.admission.knock(address.ip()) {
        Ok(knock) => knock,
        Err(_) => turn(shared, address, shared.admission.queued(address.ip())?, accepted).await?,
    };
    *knock = Some(got);
    Ok(())
}

/// Waits until others of the same source have logged in or said what they want; not for long.
pub async fn turn(
    shared: &Shared,
    address: ClientAddress,
    queued: Pending,
    accepted: Instant,
) -> Result<Knock, Full> {
    let patience = accepted + PATIENCE;
    loop {
        sleep(LOOK).await;
        match shared.admission.knock(address.ip()) {
            Ok(knock) => {
                drop(queued);
                return Ok(knock);
            }
            Err(full) if Instant::now() >= patience || shared.closing.is_cancelled() => return Err(full),
            Err(_) => {}
        }
    }
}

/// Has a look at what a connection from the reserve begins with. A cancel request in clear goes on at once; a login waits
/// for a place, and what may be either, because it wants TLS first, as well, but not for ever: whether it is a login shows
/// then. One that is silent is told to go.
async fn look(
    shared: &Shared,
    stream: &ClientStream,
    address: ClientAddress,
    knock: &mut Option<Knock>,
    accepted: Instant,
) -> Result<(), Full> {
    // On a Unix socket there is no TLS: what it wants is read at once.
    let (ClientStream::Plain(socket), Some(Knock::Reserve(_))) = (stream, &*knock) else {
        return Ok(());
    };
    let admission = &shared.admission;
    let patience = accepted + PATIENCE;
    let mut first = [0; 8];
    let mut has_spoken = false;
    loop {
        let full = match admission.pending(address.ip()) {
            Ok(pending) => {
                *knock = Some(Knock::Login(pending));
                return Ok(());
            }
            Err(full) => full,
        };
        let now = Instant::now();
        if has_spoken && (now >= patience || admission.room(now) == Room::Refuse) {
            return Ok(());
        }
        if now >= patience || shared.closing.is_cancelled() {
            return Err(full);
        }
        if has_spoken {
            sleep(LOOK).await;
            continue;
        }
        let seen = match timeout(LOOK, socket.peek(&mut first)).await {
            Ok(Ok(seen)) if seen > 0 => seen,
            // It has left; whoever reads next finds out.
            Ok(_) => return Ok(()),
            Err(_elapsed) => continue,
        };
        match startup::glance(&first[..seen]) {
            Ok(Some(Glance::Cancel(_) | Glance::Peer)) => return Ok(()),
            // The beginning of a cancel request.
            Ok(None) if seen == first.len() => return Ok(()),
            Ok(None) => sleep(LOOK).await,
            Ok(Some(Glance::Session)) | Err(_) => {
                has_spoken = true;
                // The place in the reserve is for those who have not spoken yet.
                if let Ok(queued) = admission.queued(address.ip()) {
                    *knock = Some(Knock::Reserve(queued));
                }
            }
        }
    }
}

/// Until when a connection may take to say what it wants.
pub(super) fn speaks_until(knock: Option<&Knock>, accepted: Instant, deadline: Instant) -> Instant {
    match knock {
        Some(Knock::Reserve(_)) => deadline.min(accepted + PATIENCE + SPEAKS),
        _ => deadline,
    }
}

/// A place for the login of a client that has said it wants one.
pub(super) async fn login(
    shared: &Shared,
    address: ClientAddress,
    knock: Option<Knock>,
    accepted: Instant,
) -> Result<Option<Pending>, Full> {
    match knock {
        Some(Knock::Reserve(place)) => {
            let patience = accepted + PATIENCE;
            loop {
                match shared.admission.pending(address.ip()) {
                    Ok(pending) => {
                        drop(place);
                        return Ok(Some(pending));
                    }
                    Err(full) => {
                        let now = Instant::now();
                        if now >= patience || shared.admission.room(now) == Room::Refuse {
                            return Err(full);
                        }
                    }
                }
                sleep(LOOK).await;
            }
        }
        Some(Knock::Login(pending)) => Ok(Some(pending)),
        None => Ok(None),
    }
}

/// The refusal of a client that has said it wants to log in.
pub(super) fn no_place(full: Full) -> LoginError {
    let (text, hint) = login_throttle::too_many(full);
    let reply = ErrorReply::fatal(SqlState::TOO_MANY_CONNECTIONS, text).hint(hint);
    LoginError::Limit(reason(full), reply)
}

/// For metrics.
pub fn reason(full: Full) -> RefuseReason {
    match full {
        Full::Total => RefuseReason::TooManyLogins,
        Full::Source => RefuseReason::TooManyLoginsAddress,
    }
}

async fn too_many(shared: &Shared, stream: &mut ClientStream, full: Full) {
    shared.metrics.refuse(reason(full));
    let (text, hint) = login_throttle::too_many(full);
    close::say(stream, &close::too_many(text, hint)).await;
}

/// No header from where one must come, or a bad one: the balancer's configuration, or somebody beside it.
async fn not_announced(
    shared: &Shared,
    listener: &ListenerSettings,
    stream: &mut ClientStream,
    socket: ClientAddress,
    fault: &ProxyHeaderError,
) {
    if matches!(fault, ProxyHeaderError::HungUp) {
        debug!(client = %socket, listener = %listener.name, "hung up before its PROXY protocol header");
        return;
    }
    shared.metrics.refuse(RefuseReason::ProxyHeader);
    if let Some(skipped) = shared.failures.admit(socket.ip(), None) {
        warn!(client = %socket, listener = %listener.name, %fault, skipped, "connection refused");
    }
    let reply = ErrorReply::fatal(SqlState::PROTOCOL_VIOLATION, fault.to_string()).hint(
        "This address is in proxy_protocol.trusted of the connection manager's listener: the balancer there has to send \
         the header (send-proxy, send-proxy-v2).",
    );
    close::say(stream, &close::fatal(&reply)).await;
}
