//! Which sessions may share a server connection: those for which a new connection would be opened
//! in the same way.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::auth::credentials::{Fingerprint, ServerLogin};
use crate::config::{self, Access, ClientAddressOptions, Route};
use crate::session::client_address::{ClientAddressReport, add_client_address};
use crate::session::state::SessionState;
use crate::wire::startup::{ProtocolVersion, StartupPacket};

/// Whose connections a pool has: those of one route for one user and one database.
/// `max_connections` and the queue belong to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PoolName {
    pub route: Arc<str>,
    pub cluster: Arc<str>,
    /// The role on the server.
    pub user: Bytes,
    pub database: Bytes,
}

/// How a connection was opened. Sessions share a connection only if this is equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ConnectionKey {
    /// The startup parameters in canonical form: names in lower case, the last of several counts,
    /// sorted (P68). Without what differs from client to client: `application_name` and the
    /// client's address, which are session state.
    pub parameters: Vec<(Bytes, Bytes)>,
    pub credential: Fingerprint,
}

/// What it takes to open a connection for a key. Sessions of the key hold it; a pool only borrows
/// it.
#[derive(Debug)]
pub(in crate::session) struct Recipe {
    pub key: Arc<ConnectionKey>,
    pub version: ProtocolVersion,
    pub login: ServerLogin,
    pub route: Arc<Route>,
}

/// The startup parameters of a client, as a pool sees them.
#[derive(Debug)]
pub(super) struct Canonical {
    /// What makes a connection: see [`ConnectionKey::parameters`].
    pub(super) parameters: Vec<(Bytes, Bytes)>,
    /// What differs from client to client, and is given to each connection that the session has:
    /// names in lower case.
    pub(super) initial: Vec<(Box<str>, Bytes)>,
}

/// All that a client asks for at its startup: for a connection that serves nobody else.
pub(super) fn whole(
    packet: &StartupPacket,
    access: Access,
    login: &ServerLogin,
    report: ClientAddressReport,
) -> Canonical {
    Canonical {
        parameters: SessionState::at_login(packet, access, login.user.as_ref(), report).parameters,
        initial: Vec::new(),
    }
}

const APPLICATION_NAME: &[u8] = b"application_name";

/// Puts a client's startup parameters into canonical form.
pub(super) fn canonical(
    packet: &StartupPacket,
    access: Access,
    login: &ServerLogin,
    report: ClientAddressReport,
    pool: &config::Pool,
) -> Canonical {
    let nothing = ClientAddressReport {
        options: ClientAddressOptions {
            setting: false,
            application_name: false,
            tls: false,
        },
        ..report
    };
    let state = SessionState::at_login(packet, access, login.user.as_ref(), nothing);
    let mut parameters: BTreeMap<Bytes, Bytes> = BTreeMap::new();
    for (name, value) in state.parameters {
        parameters.insert(name.to_ascii_lowercase().into(), value);
    }
    let mut own: Vec<(Bytes, Bytes)> = Vec::new();
    if let Some(name) = parameters.remove(APPLICATION_NAME) {
        own.push((Bytes::from_static(APPLICATION_NAME), name));
    }
    add_client_address(&mut own, report);
    for ignored in &pool.ignore_startup_parameters {
        parameters.remove(ignored.as_bytes());
    }
    // A client's own value of a setting that the router gives.
    parameters.retain(|name, _| !own.iter().any(|(given, _)| given == name));
    let initial = own.into_iter().filter(|(_, value)| !value.is_empty());
    Canonical {
        parameters: parameters.into_iter().collect(),
        initial: initial
            .filter_map(|(name, value)| Some((std::str::from_utf8(&name).ok()?.into(), value)))
            .collect(),
    }
}
