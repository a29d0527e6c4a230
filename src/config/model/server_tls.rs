//! TLS to the servers, and which authentication a server may ask the router for.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::KeyPair;
use super::words::words;

/// TLS towards the servers.
#[derive(Debug, PartialEq)]
pub struct ServerTls {
    pub sslmode: SslMode,
    pub sslnegotiation: SslNegotiation,
    pub channel_binding: ChannelBinding,
    /// Trusted roots: of `sslrootcert`, or `None` for the system's (`sslrootcert: system` or
    /// unset).
    pub roots: Option<Vec<CertificateDer<'static>>>,
    pub client_certificate: Option<Arc<KeyPair>>,
    /// The name to ask servers for (SNI), and to verify, in place of the member's host.
    pub server_name: Option<String>,
    pub require_auth: RequireAuth,
}

words! {
    /// libpq's `sslmode`, with libpq's meaning.
    pub enum SslMode {
        Disable = "disable",
        Allow = "allow",
        Prefer = "prefer",
        Require = "require",
        VerifyCa = "verify-ca",
        VerifyFull = "verify-full",
    }
}

words! {
    /// libpq's `channel_binding`, with libpq's meaning.
    pub enum ChannelBinding {
        Disable = "disable",
        /// SCRAM-SHA-256-PLUS where server and certificate have it.
        Prefer = "prefer",
        /// Nothing but a completed SCRAM-SHA-256-PLUS.
        Require = "require",
    }
}

words! {
    /// libpq's `sslnegotiation`, with libpq's meaning.
    pub enum SslNegotiation {
        /// `SSLRequest` first.
        Postgres = "postgres",
        /// TLS from the first byte (PostgreSQL 17 and later). `sslmode` is then `require` or
        /// stronger.
        Direct = "direct",
    }
}

words! {
    /// A method by the name libpq's `require_auth` has for it.
    pub enum AuthMethod {
        /// The server asks for nothing: `trust`, or a client certificate alone.
        None = "none",
        /// In clear.
        Password = "password",
        Md5 = "md5",
        Scram = "scram-sha-256",
        Gss = "gss",
        Sspi = "sspi",
        Oauth = "oauth",
    }
}

/// What is said of one method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    /// Listed: over any connection.
    Allowed,
    Refused,
    /// Not spoken of: where it is safe.
    IfSafe,
}

/// libpq's `require_auth`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequireAuth {
    /// Each where it is safe.
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
