//! The validated model: types that cannot be wrong. See `docs/configuration.md` for every key.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::Secret;
use super::address;
use super::entry::{AdmissionRules, Network, ProxyProtocol};
use super::etcd::Etcd;
use super::keys::Leaf;
use super::placement::Placement;
use super::reload_unit::Files;
use super::require_auth::RequireAuth;
use super::route::{Access, Balance, OnLeader, Tier};
use super::unfit::{MaxLag, OnUnfit};
use super::waiting::{ClientAddressOptions, Queue};

/// Everything `trunkline run` needs to know. Made by [`super::load`] only.
#[derive(Debug)]
pub struct Config {
    pub path: PathBuf,
    pub clusters: IndexMap<String, Arc<Cluster>>,
    /// The certificates shown to clients; `None` where no listener offers TLS.
    pub tls: Option<Arc<ClientTls>>,
    pub auth: Auth,
    pub routes: IndexMap<String, Arc<Route>>,
    pub listeners: Vec<Listener>,
    pub http: Http,
    /// `None` where there is no console.
    pub console: Option<Console>,
    pub limits: Limits,
    pub peers: Option<Peers>,
    pub log: Log,
    pub shutdown: Shutdown,
    /// Threads that relay; each owns the sessions it was given (default: half of the processors, at least 1).
    pub workers: usize,
    /// Where this process is told to reload: a Unix socket at an absolute path of at most 107 bytes, for this process's own
    /// user and root only (default none).
    pub control_socket: Option<PathBuf>,
    /// Where administrative states and weights are kept over a restart; `None`: they are not.
    pub state_file: Option<PathBuf>,
    /// What is legal but odd; see [`Config::warnings`].
    pub(super) warnings: Vec<String>,
    pub(super) origin: Origin,
}

/// What a configuration was made of; it is enough to read its files again.
pub(super) struct Origin {
    pub(super) text: Arc<str>,
    pub(super) files: Files,
}

impl std::fmt::Debug for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Origin").finish_non_exhaustive()
    }
}

impl Config {
    /// Sentences for the log at the start: what is legal but odd, such as a certificate that ends soon.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    /// The files it names, as they were when they were read.
    pub fn files(&self) -> &Files {
        &self.origin.files
    }
}

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
    /// `server.max_connections`: this router's sessions at once on one member, those connecting included; 0 is no limit
    /// (default 0).
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
    /// Time between polls, normally (default 1 s).
    pub poll_interval: Duration,
    /// Time between polls while anything is suspicious (default 100 ms).
    pub fast_poll_interval: Duration,
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

/// A certificate chain, leaf first, and its private key.
#[derive(PartialEq, Eq)]
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
#[derive(Debug, PartialEq)]
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

/// libpq's `channel_binding`, with libpq's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ChannelBinding {
    Disable,
    /// SCRAM-SHA-256-PLUS where server and certificate have it.
    #[default]
    Prefer,
    /// Nothing but a completed SCRAM-SHA-256-PLUS.
    Require,
}

/// libpq's `sslnegotiation`, with libpq's meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SslNegotiation {
    /// `SSLRequest` first.
    #[default]
    Postgres,
    /// TLS from the first byte (PostgreSQL 17 and later). `sslmode` is then `require` or stronger.
    Direct,
}

/// TLS towards the servers.
#[derive(Debug, PartialEq)]
pub struct ServerTls {
    pub sslmode: SslMode,
    pub sslnegotiation: SslNegotiation,
    pub channel_binding: ChannelBinding,
    /// Trusted roots: of `sslrootcert`, or `None` for the system's (`sslrootcert: system` or unset).
    pub roots: Option<Vec<CertificateDer<'static>>>,
    pub client_certificate: Option<Arc<KeyPair>>,
    /// The name to ask servers for (SNI), and to verify, in place of the member's host.
    pub server_name: Option<String>,
    pub require_auth: RequireAuth,
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

/// TLS towards clients.
#[derive(Debug)]
pub struct ClientTls {
    /// At least one. Each serves the names of its `subjectAltName`; the first serves all others, and who names none.
    pub certificates: Vec<ServedCertificate>,
    /// Clients are asked for a certificate; they may have none, but a bad one ends the handshake.
    pub asks_clients: bool,
}

/// A certificate for clients.
pub struct ServedCertificate {
    pub pair: Arc<KeyPair>,
    /// Ready to use: ALPN `postgresql`, no resumption, no tickets, at most 8 KiB of plaintext in a record, and what is
    /// asked of clients.
    pub server_config: Arc<rustls::ServerConfig>,
}

impl std::fmt::Debug for ServedCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServedCertificate")
            .field("pair", &self.pair)
            .finish_non_exhaustive()
    }
}

/// How clients are authenticated.
#[derive(Debug, PartialEq)]
pub struct Auth {
    /// Where verifiers come from.
    pub verifiers: Verifiers,
    /// From accept to authenticated, TLS included (default 60 s).
    pub login_timeout: Duration,
    pub rate_limit: RateLimit,
    /// Rules in `pg_hba.conf` syntax, read by `auth`; without it everybody authenticates by SCRAM.
    pub hba_file: Option<PathBuf>,
    /// Maps in `pg_ident.conf` syntax, read by `auth`; only with `hba_file`.
    pub ident_file: Option<PathBuf>,
    /// Authorities trusted for LDAP over TLS; `None` is the system's.
    pub ldap_roots: Option<Vec<CertificateDer<'static>>>,
    /// How sessions of which users log into the servers; the first that fits counts.
    pub server_credentials: Arc<[ServerCredential]>,
}

/// How the sessions of some users log into the servers, in place of the client's own login.
#[derive(Debug, PartialEq)]
pub struct ServerCredential {
    /// Where it stands in the file, for messages.
    pub path: String,
    pub line: Option<usize>,
    pub users: CredentialUsers,
    /// The role on the server; `None` is the client's own.
    pub server_user: Option<String>,
    pub secret: ServerSecret,
}

/// The users, as clients name them, that a server credential is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialUsers {
    All,
    Names(Vec<String>),
}

/// What a server credential consists of.
#[derive(Debug, PartialEq)]
pub enum ServerSecret {
    Password(Secret),
    /// A client certificate of its own, instead of the cluster's `sslcert`.
    Certificate(Arc<KeyPair>),
    /// The password that the client has just proven (methods `password` and `ldap`).
    ClientPassword,
    /// Nothing but the cluster's `sslcert`: the servers let the router in by it.
    ClusterCertificate,
}

/// What failed logins lead to, counted per address and per user.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Clients from there are neither counted nor limited (default none).
    pub exempt: Arc<[Network]>,
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

#[derive(Debug, PartialEq)]
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
    pub access: Access,
    /// In order of preference, at least one: a later one serves where no member of an earlier one can.
    pub targets: Vec<Tier>,
    /// Only members that have these Patroni tags (default: none is asked for).
    pub tags: BTreeMap<String, serde_json::Value>,
    pub balance: Balance,
    pub read_only_on_leader: OnLeader,
    /// How far behind a standby may be (default: however far).
    pub max_lag: Option<MaxLag>,
    pub on_unfit: OnUnfit,
    /// Where the cluster has [`Cluster::max_connections`].
    pub queue: Queue,
    pub client_address: ClientAddressOptions,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    pub name: Arc<str>,
    pub address: BindAddress,
    pub route: Arc<str>,
    /// Default [`ListenerMode::Postgres`].
    pub mode: ListenerMode,
    /// [`ListenerTls::Off`] where no certificate is configured, and with [`ListenerMode::Tcp`]; otherwise [`Config::tls`] is there.
    pub tls: ListenerTls,
    /// Sessions at once; 0 is no limit (default 0).
    pub max_clients: u32,
    pub entry: AdmissionRules,
}

/// What a listener does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ListenerMode {
    /// Speaks PostgreSQL's protocol with the client and with the server.
    #[default]
    Postgres,
    /// Passes bytes on unread, to a server of the route: TLS and authentication are between client and server.
    Tcp,
}

impl std::fmt::Display for ListenerMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Postgres => "postgres",
            Self::Tcp => "tcp",
        })
    }
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
#[derive(Debug, PartialEq)]
pub struct Http {
    /// One or more; the same is answered on each.
    pub addresses: Vec<BindAddress>,
    pub tls: Option<HttpTls>,
    /// At least 16 visible ASCII characters, which whoever changes something must show; `None`: nothing can be changed.
    pub token: Option<Secret>,
    /// `None` where `HAProxy`'s agent check is not answered.
    pub agent_check: Option<AgentCheck>,
    /// `None`: a header is not understood.
    pub proxy_protocol: Option<ProxyProtocol>,
}

/// The port for `HAProxy`'s agent check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentCheck {
    pub address: BindAddress,
    pub about: AgentSubject,
}

/// What is behind `HAProxy`'s server line, so whose state is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AgentSubject {
    /// This router.
    #[default]
    Router,
    /// The local member of the first cluster.
    LocalMember,
}

/// TLS of the HTTP listener.
#[derive(Clone)]
pub struct HttpTls {
    pub leaf: Leaf,
    /// Ready to use: ALPN `http/1.1`, otherwise as towards clients.
    pub server_config: Arc<rustls::ServerConfig>,
}

/// By the certificate; what else there is comes with every configuration anew.
impl PartialEq for HttpTls {
    fn eq(&self, other: &Self) -> bool {
        self.leaf == other.leaf
    }
}

impl std::fmt::Debug for HttpTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpTls")
            .field("leaf", &self.leaf)
            .finish_non_exhaustive()
    }
}

/// The console: a database of the router's own, on every listener for clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Console {
    /// Who may use it once authenticated; at least one, no duplicates.
    pub users: Vec<String>,
    /// The name clients ask for (default `trunkline`); a database of that name in a cluster is out of reach.
    pub database: Arc<str>,
    /// The cluster whose users they are (default the first): a role of the same name in another one is somebody else.
    pub cluster: Arc<str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Sessions at once over all listeners (default 5000; 0 is no limit).
    pub max_clients: u32,
    /// Connections between accept and authenticated (default 200, at least 1).
    pub max_pending_logins: u32,
    /// Sessions at once of one user name over all listeners and clusters; 0 is no limit (default 0).
    pub per_user: u32,
    /// Of one database name, likewise.
    pub per_database: u32,
    /// Of one client address (IPv6: /64), likewise; a Unix socket has none.
    pub per_address: u32,
    /// Sessions that may begin per second over all listeners, with a burst of one second; `None` is no limit (default).
    pub connection_rate: Option<NonZeroU32>,
}

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
    /// From SIGTERM to closing the ports (default 0).
    pub delay: Duration,
    /// From there to cutting what is left (default 30 s).
    pub grace: Duration,
    /// From being replaced by another process to ending the sessions that are left, as at SIGTERM; `None`: they may go
    /// on as long as they like.
    pub handover: Option<Duration>,
}

impl BindAddress {
    /// Whether nobody can listen on both at once, as on `*:6432` and `127.0.0.1:6432`.
    pub fn overlaps(&self, other: &Self) -> bool {
        address::overlap(self, other)
    }

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
