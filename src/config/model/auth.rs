//! How clients are authenticated, and how their sessions log into the servers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;

use super::{KeyPair, Network};
use crate::config::secret::Secret;

/// How clients are authenticated.
#[derive(Debug, PartialEq)]
pub struct Auth {
    /// Where verifiers come from.
    pub verifiers: Verifiers,
    /// From accept to authenticated, TLS included.
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

#[derive(Debug, PartialEq)]
pub enum Verifiers {
    /// Contents of a file in `PgBouncer`'s `userlist.txt` form, already read; parsed by
    /// `auth::userlist`.
    UsersFile { path: PathBuf, contents: Secret },
    /// A query with `$1` for the user name, asked of the cluster by the service account; its first
    /// row's columns are the user name and the verifier.
    Query { sql: String, cache_ttl: Duration },
}

/// What failed logins lead to, counted per address and per user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimit {
    /// Failures after which each further attempt waits; 0 is no limit at all.
    pub failures: u32,
    /// The first wait, doubled with each further failure; 0 is none.
    pub delay: Duration,
    /// Bound on one wait, shorter than the login timeout.
    pub max_delay: Duration,
    /// Failures after which attempts are refused, not fewer than `failures`.
    pub refuse_after: u32,
    /// How long they are refused, at least 1 s.
    pub refuse_for: Duration,
    /// Clients from there are neither counted nor limited.
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

/// How the sessions of some users log into the servers, in place of the client's own login.
#[derive(Debug, PartialEq)]
pub struct ServerCredential {
    /// Its place in the file, for messages.
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
    /// A separate client certificate, instead of the cluster's `sslcert`.
    Certificate(Arc<KeyPair>),
    /// The password that the client has just proven (methods `password` and `ldap`).
    ClientPassword,
    /// Nothing but the cluster's `sslcert`: the servers let the router in by it.
    ClusterCertificate,
}
