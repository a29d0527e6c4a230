//! Connections from clients: listening, TLS, startup, login.
//!
//! Guarantees: one deadline covers everything from accept to the end of the login. An answer before
//! authentication reveals no more than PostgreSQL's would. Bytes after an encryption request are
//! refused. Health checks and port scans write no log lines. A peer that has not authenticated uses
//! a limited amount of memory.
//!
//! This room knows nothing of servers or sessions.

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
pub use stream::{ClientStream, ClientTlsStream, HangUp, Left};
