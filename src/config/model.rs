//! The validated model: types that cannot be wrong. See `docs/configuration.md` for every key.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::Secret;

/// Everything `trunkline run` needs to know. Made by [`super::load`] only.
#[derive(Debug)]
pub struct Config {
    pub path: PathBuf,
    pub clusters: IndexMap<String, Arc<Cluster>>,
    /// The certificate shown to clients; `None` where no listener offers TLS.
    pub tls: Option<Arc<ClientTls>>,
    pub auth: Auth,
    pub routes: IndexMap<String, Arc<Route>>,
    pub listeners: Vec<Listener>,
    pub http: Http,
    pub limits: Limits,
    pub peers: Option<Peers>,
    pub log: Log,
    pub shutdown: Shutdown,
    /// Threads that relay; each owns the sessions it was given (default: half of the processors, at least 1).
    pub workers: usize,
    /// What is legal but odd; see [`Config::warnings`].
    pub(super) warnings: Vec<String>,
}

impl Config {
    /// Sentences for the log at the start: what is legal but odd, such as a certificate that ends soon.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }
}

/// One `PostgreSQL` cluster: where its members are learned, and how they are spoken to.
#[derive(Debug)]
pub struct Cluster {
    pub name: Arc<str>,
    pub source: Source,
    pub service_account: ServiceAccount,
    pub server_tls: ServerTls,
    pub server: ServerOptions,
    pub probe: Probe,
    pub local_member: LocalMember,
}

/// Where the list of members comes from.
#[derive(Debug)]
pub enum Source {
    Patroni(Patroni),
    /// A fixed list, without Patroni; the leader is found by probing.
    Servers(Vec<Server>),
}

/// Patroni's REST interface.
#[derive(Debug)]
pub struct Patroni {
    /// Base URLs without a trailing slash, `http` or `https`, at least one, no duplicates.
    pub endpoints: Vec<String>,
    /// Extra trusted roots; without it the system's roots.
    pub ca: Option<Vec<CertificateDer<'static>>>,
    pub client_certificate: Option<Arc<KeyPair>>,
    pub basic_auth: Option<BasicAuth>,
    /// Time between polls, normally (default 1 s).
    pub poll_interval: Duration,
    /// Time between polls while anything is suspicious (default 100 ms).
    pub fast_poll_interval: Duration,
}

#[derive(Debug)]
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

/// A certificate chain, leaf first, and its private key.
pub struct KeyPair {
    pub cert_file: PathBuf,
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair")
            .field("cert_file", &self.cert_file)
            .finish_non_exhaustive()
    }
}

/// The account of the router itself: probes and look-ups of verifiers.
#[derive(Debug)]
pub struct ServiceAccount {
    pub user: String,
    pub password: Option<Secret>,
    pub dbname: String,
    /// Connections per member for look-ups (default 4, at least 1). The probe has one of its own.
    pub pool_size: usize,
    /// Bound on one look-up, connect included (default 3 s).
    pub timeout: Duration,
}

/// libpq's `sslmode`, with libpq's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SslMode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// TLS towards the servers.
#[derive(Debug)]
pub struct ServerTls {
    pub sslmode: SslMode,
    /// Trusted roots: of `sslrootcert`, or `None` for the system's (`sslrootcert: system` or unset).
    pub roots: Option<Vec<CertificateDer<'static>>>,
    pub client_certificate: Option<Arc<KeyPair>>,
}

/// Connections to servers on behalf of clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerOptions {
    /// From the start of the TCP connect to `ReadyForQuery` (default 3 s).
    pub connect_timeout: Duration,
    /// TCP keepalive idle time and interval; `None` is off (default 15 s). Both sides.
    pub keepalive: Option<Duration>,
    /// `TCP_USER_TIMEOUT`; `None` is the kernel's (default 30 s). Both sides.
    pub tcp_user_timeout: Option<Duration>,
}

/// How members are probed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Default 1 s.
    pub interval: Duration,
    /// Default 1 s.
    pub timeout: Duration,
    /// Successes in a row that make a member fit again (default 2).
    pub rise: u32,
    /// Failures in a row that make a member unfit (default 3).
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

/// TLS towards clients: one certificate for now.
pub struct ClientTls {
    pub certificate: Arc<KeyPair>,
    /// Ready to use: ALPN `postgresql`, no resumption, no tickets, at most 8 KiB of plaintext in a record.
    pub server_config: Arc<rustls::ServerConfig>,
    /// Expiry of the leaf, Unix seconds.
    pub not_after: i64,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// How clients are authenticated.
#[derive(Debug)]
pub struct Auth {
    /// Where verifiers come from.
    pub verifiers: Verifiers,
    /// From accept to authenticated, TLS included (default 60 s).
    pub login_timeout: Duration,
    pub rate_limit: RateLimit,
}

/// What failed logins lead to, counted per address and per user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// Failures after which each further attempt waits; 0 is no limit at all (default 5).
    pub failures: u32,
    /// The first wait, doubled with each further failure; 0 is none (default 250 ms).
    pub delay: Duration,
    /// Bound on one wait, shorter than the login timeout (default 8 s).
    pub max_delay: Duration,
    /// Failures after which attempts are refused, not fewer than `failures` (default 20).
    pub refuse_after: u32,
    /// How long they are refused, at least 1 s (default 1 m).
    pub refuse_for: Duration,
}

impl RateLimit {
    pub fn is_on(&self) -> bool {
        self.failures > 0
    }

    /// How long an attempt waits, given so many failures more than [`Self::failures`].
    pub fn delay_after(&self, beyond: u32) -> Duration {
        let factor = 2_u32.saturating_pow(beyond);
        self.delay.saturating_mul(factor).min(self.max_delay)
    }
}

#[derive(Debug)]
pub enum Verifiers {
    /// Contents of a file in `PgBouncer`'s `userlist.txt` form, already read; parsed by `auth::userlist`.
    UsersFile { path: PathBuf, contents: Secret },
    /// A query with `$1` for the user name, asked of the cluster by the service account; its first row's
    /// columns are the user name and the verifier.
    Query { sql: String, cache_ttl: Duration },
}

/// What a listener asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub name: Arc<str>,
    pub cluster: Arc<str>,
    pub target: TargetRole,
}

/// The role a route's servers must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TargetRole {
    Leader,
    Replica,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    pub name: Arc<str>,
    pub address: BindAddress,
    pub route: Arc<str>,
    /// [`ListenerTls::Off`] where no certificate is configured; otherwise [`Config::tls`] is there.
    pub tls: ListenerTls,
    /// Sessions at once; 0 is no limit (default 0).
    pub max_clients: u32,
}

/// Where to listen. `*` is one dual-stack socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum BindAddress {
    Any {
        port: u16,
    },
    Ip(SocketAddr),
    /// A Unix-domain socket at an absolute path of at most 107 bytes, with the permissions of its file. Only of
    /// listeners for clients.
    Unix {
        path: PathBuf,
        mode: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerTls {
    Off,
    Optional,
    Required,
}

/// The HTTP listener.
#[derive(Debug)]
pub struct Http {
    /// One or more; the same is answered on each.
    pub addresses: Vec<BindAddress>,
    pub tls: Option<Arc<rustls::ServerConfig>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at once over all listeners (default 5000; 0 is no limit).
    pub max_clients: u32,
    /// Connections between accept and authenticated (default 200, at least 1).
    pub max_pending_logins: u32,
}

/// Other routers in front of the same cluster, for cancel requests.
#[derive(Debug)]
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    pub level: LogLevel,
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shutdown {
    /// From SIGTERM to cutting what is left (default 30 s).
    pub grace: Duration,
}

impl BindAddress {
    /// `None` for a Unix socket.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Any { port } => Some(*port),
            Self::Ip(address) => Some(address.port()),
            Self::Unix { .. } => None,
        }
    }

    /// The one address listened on, or `None` for every address of the host, and for a Unix socket.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Any { .. } | Self::Unix { .. } => None,
            Self::Ip(address) => Some(address.ip()),
        }
    }
}

impl std::fmt::Display for BindAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any { port } => write!(f, "*:{port}"),
            Self::Ip(address) => write!(f, "{address}"),
            Self::Unix { path, .. } => write!(f, "{}", path.display()),
        }
    }
}
