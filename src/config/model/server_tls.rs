//! TLS to the servers, and which authentication a server may ask the router for.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::KeyPair;

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

/// A method by the name libpq's `require_auth` has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AuthMethod {
    /// The server asks for nothing: `trust`, or a client certificate alone.
    None,
    /// In clear.
    Password,
    Md5,
    Scram,
    Gss,
    Sspi,
    Oauth,
}

pub(in crate::config) const METHOD_NAMES: [(&str, AuthMethod); 7] = [
    ("none", AuthMethod::None),
    ("password", AuthMethod::Password),
    ("md5", AuthMethod::Md5),
    ("scram-sha-256", AuthMethod::Scram),
    ("gss", AuthMethod::Gss),
    ("sspi", AuthMethod::Sspi),
    ("oauth", AuthMethod::Oauth),
];

/// What is said of one method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    /// Listed: whatever the connection.
    Allowed,
    Refused,
    /// Not spoken of: where it is safe.
    IfSafe,
}

/// libpq's `require_auth`. By default nothing is said of any method.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RequireAuth {
    /// Each where it is safe.
    #[default]
    Safe,
    /// These and no other.
    Only(Vec<AuthMethod>),
    /// Each where it is safe, but none of these (`!`).
    Without(Vec<AuthMethod>),
}

impl RequireAuth {
    pub fn ruling(&self, method: AuthMethod) -> Ruling {
        match self {
            Self::Only(methods) if methods.contains(&method) => Ruling::Allowed,
            Self::Only(_) => Ruling::Refused,
            Self::Without(methods) if methods.contains(&method) => Ruling::Refused,
            Self::Safe | Self::Without(_) => Ruling::IfSafe,
        }
    }
}
