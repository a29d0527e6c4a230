//! The HTTP port, and the console.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::words::words;
use super::{BindAddress, Leaf, ProxyProtocol};
use crate::config::secret::Secret;

/// The HTTP listener.
#[derive(Debug, PartialEq)]
pub struct Http {
    /// One or more; the same is answered on each.
    pub addresses: Vec<BindAddress>,
    pub tls: Option<HttpTls>,
    /// At least 16 visible ASCII characters, which every request for a change needs; `None`:
    /// nothing can be changed.
    pub token: Option<Secret>,
    /// `None` where `HAProxy`'s agent check is not answered.
    pub agent_check: Option<AgentCheck>,
    /// `None`: a header is not understood.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// The page for browsers is there.
    pub ui: bool,
}

/// The port for `HAProxy`'s agent check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentCheck {
    pub address: BindAddress,
    pub about: AgentSubject,
}

words! {
    /// What `HAProxy`'s server line points to, and so whose state is reported.
    pub enum AgentSubject {
        /// This router.
        Router = "router",
        /// The local member of the first cluster.
        LocalMember = "local_member",
    }
}

/// How a client on this host reaches the router's HTTP port.
#[derive(Debug)]
pub struct HttpAccess {
    /// One or more.
    pub addresses: Vec<BindAddress>,
    pub has_tls: bool,
    /// The certificate that the router shows.
    pub cert_file: Option<PathBuf>,
    /// `Err`: why the token cannot be used. Most questions need none on this host.
    pub token: Result<Option<Secret>, String>,
}

/// TLS of the HTTP listener.
#[derive(Clone)]
pub struct HttpTls {
    pub leaf: Leaf,
    /// The leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Ready to use: ALPN `http/1.1`, otherwise as towards clients.
    pub server_config: Arc<rustls::ServerConfig>,
}

/// Compares the certificates; everything else is new with every configuration.
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
    /// Those of them that may give orders; no duplicates.
    pub operators: Vec<String>,
    /// The name clients ask for; a database of that name in a cluster is out of reach.
    pub database: Arc<str>,
    /// The cluster whose users they are: a role of the same name in another one is another user.
    pub cluster: Arc<str>,
}
