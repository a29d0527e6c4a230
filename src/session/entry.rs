//! Who knocks: a balancer's header where there must be one, and whether the client's address may come in.
//!
//! A connection from a trusted balancer counts for no source until its header is read; then for the client's, which
//! everything else goes by.

use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

use super::Shared;
use super::admission::{Full, PATIENCE, Pending};
use super::gate::Gate;
use super::{farewell, sentry};
use crate::frontend::login::LoginFault;
use crate::frontend::proxy::{self, ProxyHeaderFault};
use crate::frontend::{ClientAddress, ClientStream};
use crate::wire::message::ErrorReply;
use crate::wire::proxy::ProxiedTls;
use crate::wire::sqlstate::SqlState;

use std::time::Duration;

/// Between two looks whether there is a place by now.
const LOOK: Duration = Duration::from_millis(10);

/// A client whose address is known.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) address: ClientAddress,
    /// TLS that ended at the balancer, by its header; for the log.
    pub(super) tls: Option<Box<ProxiedTls>>,
    /// Why it is told no, once it can be: clients understand an error only after their startup packet.
    pub(super) denied: Option<LoginFault>,
}

/// Whether a connection from there begins with a header.
pub fn is_announced(gate: &Gate, socket: ClientAddress) -> bool {
    match (&gate.entry.proxy_protocol, socket.ip()) {
        (Some(proxies), Some(ip)) => proxies.trusts(ip),
        _ => false,
    }
}

/// Finds out who it is. `None`: it was refused, and told.
pub(super) async fn identify(
    shared: &Shared,
    gate: &Gate,
    stream: &mut ClientStream,
    socket: ClientAddress,
    pending: &mut Option<Pending>,
    deadline: Instant,
) -> Option<Caller> {
    let is_announced = is_announced(gate, socket);
    let mut caller = Caller {
        address: socket,
        tls: None,
        denied: None,
    };
    if let (true, ClientStream::Plain(tcp)) = (is_announced, &*stream) {
        let header = tokio::select! {
            header = timeout_at(deadline, proxy::read(tcp)) => header,
            () = shared.closing.cancelled() => {
                shared.metrics.refuse("shutdown");
                return None;
            }
        };
        let header = match header {
            Ok(Ok(header)) => header,
            Ok(Err(fault)) => {
                not_announced(shared, gate, stream, socket, &fault).await;
                return None;
            }
            Err(_elapsed) => {
                shared.metrics.refuse("timeout");
                return None;
            }
        };
        caller.address = socket.proxied(header.source);
        caller.tls = header.tls.map(Box::new);
        if let Err(full) = attribute(shared, caller.address, pending).await {
            too_many(shared, stream, full).await;
            return None;
        }
    }
    let proxies = gate.entry.proxy_protocol.as_ref();
    let ip = caller.address.ip();
    if !is_announced && proxies.is_some_and(|proxies| proxies.required) {
        let reply = ErrorReply::fatal(
            SqlState::INVALID_AUTHORIZATION,
            "connections to this port of the connection manager come through its balancer only",
        );
        let hint = "Connect to the balancer; who is one is said in its listener's proxy_protocol.";
        caller.denied = Some(LoginFault::Limit("proxy_required", reply.hint(hint)));
    } else if ip.is_some_and(|ip| !gate.entry.addresses.admit(ip)) {
        let reply = ErrorReply::fatal(
            SqlState::INVALID_AUTHORIZATION,
            "this address may not connect to this port of the connection manager",
        );
        let hint = "Its operator says who may with allow and deny of the listener.";
        caller.denied = Some(LoginFault::Limit("address_denied", reply.hint(hint)));
    }
    Some(caller)
}

/// Counts the place for the client from now on. Where its source has all it may have, it waits as others do.
async fn attribute(
    shared: &Shared,
    address: ClientAddress,
    pending: &mut Option<Pending>,
) -> Result<(), Full> {
    let admission = &shared.admission;
    let Some(Err(Full::Source)) = pending.as_mut().map(|pending| pending.attribute(address.ip())) else {
        return Ok(());
    };
    // It holds none of the places meanwhile.
    let queued = admission.queued(address.ip());
    *pending = None;
    *pending = Some(turn(shared, address, queued?).await?);
    Ok(())
}

/// Waits until others of the same source have logged in; not for long.
pub async fn turn(shared: &Shared, address: ClientAddress, queued: Pending) -> Result<Pending, Full> {
    let patience = Instant::now() + PATIENCE;
    loop {
        sleep(LOOK).await;
        match shared.admission.pending(address.ip()) {
            Ok(pending) => {
                drop(queued);
                return Ok(pending);
            }
            Err(full) if Instant::now() >= patience || shared.closing.is_cancelled() => return Err(full),
            Err(_) => {}
        }
    }
}

async fn too_many(shared: &Shared, stream: &mut ClientStream, full: Full) {
    shared.metrics.refuse(match full {
        Full::Total => "too_many_logins",
        Full::Source => "too_many_logins_address",
    });
    let (text, hint) = sentry::too_many(full);
    farewell::say(stream, &farewell::too_many(text, hint)).await;
}

/// No header from where one must come, or a bad one: the balancer's configuration, or somebody beside it.
async fn not_announced(
    shared: &Shared,
    gate: &Gate,
    stream: &mut ClientStream,
    socket: ClientAddress,
    fault: &ProxyHeaderFault,
) {
    if matches!(fault, ProxyHeaderFault::HungUp) {
        debug!(client = %socket, listener = %gate.name, "hung up before its PROXY protocol header");
        return;
    }
    shared.metrics.refuse("proxy_header");
    if let Some(skipped) = shared.failures.admit(socket.ip()) {
        warn!(client = %socket, listener = %gate.name, %fault, skipped, "connection refused");
    }
    let reply = ErrorReply::fatal(SqlState::PROTOCOL_VIOLATION, fault.to_string()).hint(
        "This address is in proxy_protocol.trusted of the connection manager's listener: the balancer there has to send \
         the header (send-proxy, send-proxy-v2).",
    );
    farewell::say(stream, &farewell::fatal(&reply)).await;
}
