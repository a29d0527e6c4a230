//! Listening sockets: one way to bind, one way to take over what another process has bound, one accept loop. The ports
//! for PostgreSQL, HTTP and the agent check use them, and so do the control socket and the socket between processes.
//!
//! Guarantees: an address that stays in the configuration is never closed in between; only a Unix socket that nobody
//! listens on is replaced; an accept loop that finds no descriptor waits instead of spinning, and where its handler
//! wants that, the next client gets an answer.
//!
//! Refuses: to read or write a connection. A handler ([`OnAccept`]) does that.

mod accept;
mod bind;
mod overlap;
mod place;
mod socket_file;

pub use accept::{ClientSocket, Connection, OnAccept, PeerAddress, PeerProcess, accept_loop};
pub use bind::{BindError, Bound, Handle, bind, bind_abstract};
pub use place::{BoundPlace, Inheritance, Inherited, PassedFile};
pub use socket_file::Identity;
