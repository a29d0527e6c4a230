//! The other routers of the same cluster.

use crate::config::secret::Secret;

/// Other routers in front of the same cluster, for cancel requests.
#[derive(Debug, PartialEq)]
pub struct Peers {
    pub secret: Secret,
    pub members: Vec<Peer>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    /// Host and port of any `PostgreSQL` listener of that router.
    pub host: String,
    pub port: u16,
}
