//! Authentication: an ordered list of rules, verifiers, and SCRAM-SHA-256 (RFC 5802, RFC 7677) on
//! both sides with reuse of the client's key.
//!
//! Guarantees: no IO (it returns what has to be looked up); nothing distinguishes an unknown user
//! from a wrong password; secrets are wiped when dropped and never printed; comparisons of secrets
//! take constant time.
//!
//! Refuses: `y` flags that contradict the offer, channel bindings other than
//! `tls-server-end-point`.

use std::sync::Arc;

use crate::config::Secret;

pub(crate) mod credentials;
pub(crate) mod crypto;
pub mod hba;
pub mod ident;
pub mod ldap;
pub(crate) mod login_throttle;
pub(crate) mod lookup;
pub mod md5;
pub(crate) mod password;
pub mod rules;
pub mod scram;
pub(crate) mod userlist;

use md5::Md5Hash;
use scram::Verifier;

/// What is known of a user, and so how a session can log into a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// A verifier only: the client's own key, recovered in its login, opens every server with the
    /// same verifier.
    Verifier(Arc<Verifier>),
    /// The password itself. The router computed the verifier from it with another salt than the
    /// server, so that the client's key is of no use at a server: sessions log in there with the
    /// password.
    Password(Secret, Arc<Verifier>),
    /// A role whose password is stored as md5: no SCRAM for it. The hash opens a server that asks
    /// for md5.
    Md5(Md5Hash),
}

impl Identity {
    /// The verifier to check a SCRAM client with; `None` where there can be none.
    pub fn verifier(&self) -> Option<&Arc<Verifier>> {
        match self {
            Self::Verifier(verifier) | Self::Password(_, verifier) => Some(verifier),
            Self::Md5(_) => None,
        }
    }
}
