//! The sockets that the file asks for: no two of them may want one address.

use std::fmt;
use std::net::IpAddr;

use crate::config::fields::Field;
use crate::config::model::{BindAddress, ListenerMode};

/// The protocol on a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaks {
    /// A listener with this mode.
    Listener(ListenerMode),
    Http,
    AgentCheck,
}

impl fmt::Display for Speaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listener(ListenerMode::Postgres) => "a listener",
            Self::Listener(ListenerMode::Tcp) => "a `mode: tcp` listener",
            Self::Http => "the HTTP port",
            Self::AgentCheck => "the agent check",
        })
    }
}

/// A socket that will be bound, and where the file asks for it; `None` for a default.
pub(super) struct SocketToBind<'a> {
    address: BindAddress,
    speaks: Speaks,
    field: Option<Field<'a>>,
    what: String,
}

impl<'a> SocketToBind<'a> {
    pub(super) fn written(address: BindAddress, field: Field<'a>, speaks: Speaks) -> Self {
        Self {
            address,
            speaks,
            what: field.path.clone(),
            field: Some(field),
        }
    }

    pub(super) fn default(address: BindAddress, what: &str, speaks: Speaks) -> Self {
        Self {
            address,
            speaks,
            what: format!("the default of {what}"),
            field: None,
        }
    }
}

/// Peers are heard by PostgreSQL listeners only. Another router's sockets are not known here; but
/// one of ours may be named, and routers often have one configuration.
pub(super) fn check_peer(field: &Field<'_>, (host, port): (&str, u16), places: &[SocketToBind<'_>]) {
    let postgres = Speaks::Listener(ListenerMode::Postgres);
    let here: Vec<&SocketToBind<'_>> = places
        .iter()
        .filter(|place| place.address.port() == Some(port))
        .collect();
    let ip = host.parse::<IpAddr>().ok();
    let own = here
        .iter()
        .find(|place| ip.is_some() && place.address.ip() == ip && place.speaks != postgres);
    if let Some(place) = own {
        field.error_with_hint(
            format!(
                "is the address of {} of this router: {}",
                place.speaks, place.what
            ),
            "name a listener with `mode: postgres` of the other router",
        );
    } else if let Some(place) = here.first()
        && here.iter().all(|place| place.speaks != postgres)
    {
        field.warn(format!(
            "peers are reached on a PostgreSQL listener, but port {port} of this router belongs to {}: {}",
            place.speaks, place.what
        ));
    }
}

/// Two sockets on one address: the second could not be bound.
pub(super) fn check_addresses(places: &[SocketToBind<'_>]) {
    for (index, place) in places.iter().enumerate() {
        let Some(first) = places[..index]
            .iter()
            .find(|first| first.address.overlaps(&place.address))
        else {
            continue;
        };
        // Defaults do not overlap each other, so one of the two is written.
        let (written, other) = match &place.field {
            Some(field) => (Some(field), first),
            None => (first.field.as_ref(), place),
        };
        if let Some(field) = written {
            field.error(format!("overlaps {}, {}", other.what, other.address));
        }
    }
}
