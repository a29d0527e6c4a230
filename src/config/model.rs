//! The validated configuration: plain data. Nothing here reads a file, or knows how the values were
//! written.
//!
//! This is the bottom of the room: it uses no other module of `config` but [`super::secret`].

mod admission;
mod auth;
mod cluster;
mod hold;
mod http;
mod listener;
mod on_unfit;
mod peers;
mod placement;
mod pool;
mod process;
mod route;
mod server_tls;
mod tls;
mod watched;
mod words;

use std::path::PathBuf;
use std::sync::Arc;

use indexmap::IndexMap;

pub use admission::{Addresses, AdmissionRules, Network, ProxyProtocol};
pub use auth::{Auth, CredentialUsers, RateLimit, ServerCredential, ServerSecret, Verifiers};
pub use cluster::{
    BasicAuth, Cluster, Etcd, LocalMember, Patroni, Probe, Server, ServerOptions, ServiceAccount, Source,
};
pub use hold::{Hold, Resume};
pub use http::{AgentCheck, AgentSubject, Console, Http, HttpAccess, HttpTls};
pub use listener::{BindAddress, Listener, ListenerMode, ListenerTls};
pub use on_unfit::{Limit, MaxLag, OnUnfit, Unfit};
pub use peers::{Peer, Peers};
pub use placement::{MOST_WEIGHT, MemberPlacement, Placement};
pub use pool::{CustomSettings, Pool, PoolLimits, PoolMode, PoolOverride, Verify, WrittenPoolMode};
pub use process::{Limits, Log, LogFormat, LogLevel, Shutdown};
pub use route::{Access, Balance, ClientAddressOptions, OnLeader, Queue, Route, TargetRole, Tier};
pub use server_tls::{AuthMethod, ChannelBinding, RequireAuth, Ruling, ServerTls, SslMode, SslNegotiation};
pub(in crate::config) use tls::MinVersion;
pub use tls::{ClientTls, KeyPair, Leaf, ServedCertificate};
pub use watched::{Files, ReloadUnit, Stamp, Stamps};
pub use words::Words;

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
    /// Threads that relay; each owns the sessions it was given.
    pub workers: usize,
    /// Where this process accepts orders to reload: a Unix socket at an absolute path of at most
    /// 107 bytes, for this process's own user and root only.
    pub control_socket: Option<PathBuf>,
    /// Where administrative states and weights are kept over a restart; `None`: they are not.
    pub state_file: Option<PathBuf>,
    /// What is legal but probably not meant; see [`Config::warnings`].
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
    /// Sentences for the log at the start: what is legal but probably not meant, and certificates
    /// that expire soon.
    pub fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    /// The files it names, as they were when they were read.
    pub fn files(&self) -> &Files {
        &self.origin.files
    }
}
