//! A cluster: where its members are learned, and how the router connects to them.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;

use super::{KeyPair, Placement, ServerTls};
use crate::config::secret::Secret;

/// One `PostgreSQL` cluster: where its members are learned, and how they are spoken to.
#[derive(Debug, PartialEq)]
pub struct Cluster {
    pub name: Arc<str>,
    pub source: Source,
    /// A watch on Patroni's keys; only with [`Source::Patroni`].
    pub etcd: Option<Etcd>,
    pub service_account: ServiceAccount,
    pub server_tls: ServerTls,
    pub server: ServerOptions,
    /// `server.max_connections`: this router's sessions at once on one member, those connecting
    /// included; 0 is no limit.
    pub max_connections: u32,
    pub probe: Probe,
    pub local_member: LocalMember,
    pub placement: Placement,
}

/// Where the list of members comes from.
#[derive(Debug, PartialEq)]
pub enum Source {
    Patroni(Patroni),
    /// A fixed list, without Patroni; the leader is found by probing.
    Servers(Vec<Server>),
}

impl Source {
    /// Whether it is asked at the same places.
    pub fn is_same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Patroni(one), Self::Patroni(other)) => one.endpoints == other.endpoints,
            (Self::Servers(one), Self::Servers(other)) => one == other,
            (Self::Patroni(_), Self::Servers(_)) | (Self::Servers(_), Self::Patroni(_)) => false,
        }
    }
}

/// Patroni's REST interface.
#[derive(Debug, PartialEq)]
pub struct Patroni {
    /// Base URLs without a trailing slash, `http` or `https`, at least one, no duplicates.
    pub endpoints: Vec<String>,
    /// Extra trusted roots; without it the system's roots.
    pub ca: Option<Vec<CertificateDer<'static>>>,
    pub client_certificate: Option<Arc<KeyPair>>,
    pub basic_auth: Option<BasicAuth>,
    /// Time between polls, normally.
    pub poll_interval: Duration,
    /// Time between polls while anything is suspicious.
    pub fast_poll_interval: Duration,
}

/// The etcd that Patroni keeps its state in (etcd 3.2 or later, by its JSON gateway).
#[derive(Debug, PartialEq)]
pub struct Etcd {
    /// Base URLs without a trailing slash, `http` or `https`, at least one, no duplicates.
    pub endpoints: Vec<String>,
    /// What all of the cluster's keys begin with, as in `/service/main/`: Patroni's `namespace` and
    /// `scope`.
    pub prefix: String,
    /// Extra trusted roots; without it the system's roots.
    pub ca: Option<Vec<CertificateDer<'static>>>,
    pub client_certificate: Option<Arc<KeyPair>>,
    /// For etcd's own users.
    pub login: Option<BasicAuth>,
}

#[derive(Debug, PartialEq)]
pub struct BasicAuth {
    pub username: String,
    pub password: Secret,
}

/// One server of a fixed list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    pub name: String,
    pub host: String,
    pub port: u16,
}

/// The account of the router itself: probes and look-ups of verifiers.
#[derive(Debug, PartialEq)]
pub struct ServiceAccount {
    pub user: String,
    pub password: Option<Secret>,
    pub dbname: String,
    /// Connections per member for look-ups (at least 1). The probe has a separate one.
    pub pool_size: usize,
    /// Bound on one look-up, connect included.
    pub timeout: Duration,
}

/// Connections to servers on behalf of clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerOptions {
    /// From the start of the TCP connect to `ReadyForQuery`.
    pub connect_timeout: Duration,
    /// TCP keepalive idle time and interval; `None` is off. Both sides.
    pub keepalive: Option<Duration>,
    /// `TCP_USER_TIMEOUT`; `None` is the kernel's. Both sides.
    pub tcp_user_timeout: Option<Duration>,
}

/// How members are probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    pub interval: Duration,
    pub timeout: Duration,
    /// Successes in a row that make a member fit again.
    pub rise: u32,
    /// Failures in a row that make a member unfit.
    pub fall: u32,
}

/// The member this copy of the router runs beside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalMember {
    /// The one member whose address is an address of this host.
    Auto,
    None,
    Name(String),
}

impl LocalMember {
    pub(in crate::config) const AUTO: &str = "auto";
    const NONE: &str = "none";

    /// As the file has it: one of two words, or a name.
    pub(in crate::config) fn new(text: &str) -> Self {
        match text {
            Self::AUTO => Self::Auto,
            Self::NONE => Self::None,
            name => Self::Name(name.to_owned()),
        }
    }
}
