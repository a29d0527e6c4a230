//! Connections from clients: listening, TLS, startup, login.
//!
//! Guarantees: one deadline from accept to authenticated; no answer before authentication that tells more than
//! PostgreSQL would; bytes after an encryption request are refused; a connection that only looks (health check, port
//! scan) makes no noise; before authentication a peer costs a bounded amount of memory.
//!
//! Refuses: to know servers or sessions.

mod address;
pub mod auth_policy;
pub mod certificate;
pub mod derivations;
pub mod interfaces;
pub mod ldap;
pub mod login;
pub mod opening;
pub mod peer;
pub mod proxy;
mod refuse_reason;
pub mod resolve;
mod stream;
pub mod tls;

pub use address::ClientAddress;
pub use refuse_reason::RefuseReason;
pub use stream::{ClientStream, ClientTlsStream, Left};
