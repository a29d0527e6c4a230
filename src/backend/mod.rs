//! Connections to `PostgreSQL` servers: TCP, TLS, login, cancel, and a small simple-query client
//! for the service account.
//!
//! Guarantees: every step has a deadline; an answer before TLS is untrusted text; a server must
//! prove in SCRAM that it knows the verifier; bytes after `S` are refused; nothing that a server
//! sends causes a panic or unlimited growth.
//!
//! It knows nothing of routes, sessions or clients.

mod cancel;
pub(crate) mod connection;
mod derived;
mod error;
mod hba_line;
pub(crate) mod login;
mod orderly;
pub mod query;
mod reader;
pub(crate) mod role_audit;
mod socket;
mod stream;
#[cfg(test)]
mod tests;
mod tls;
mod unverified;

pub use cancel::pass_cancel;
pub use connection::{
    CancelTarget, Credential, SeenRole, ServerConnection, ServerStream, Target, TlsClient, connect,
    connect_leaving,
};
pub use error::{ClientReply, ConnectError, ServerError, Step, Suspicion};
pub use orderly::OrderlyStream;
pub use socket::{open, set_user_timeout, tune_listener};
pub use tls::TlsSettingsError;
pub(crate) use unverified::{CHANGING_HINT, Unverified};
