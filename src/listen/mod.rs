//! Listening sockets: how they are bound, how they are taken over from another process, and the
//! accept loop. The ports for PostgreSQL, HTTP and the agent check use this room, and so do the
//! control socket and the socket between processes.
//!
//! Guarantees: a reload never closes an address that stays in the configuration. Only a Unix socket
//! without a listener is replaced. An accept loop without a free descriptor waits instead of
//! spinning; if its handler requests it, the next client gets an answer.
//!
//! Refuses: to read or write a connection. A handler ([`OnAccept`]) does that.

mod accept;
mod bind;
mod overlap;
mod place;
mod socket_file;

pub use accept::{ClientSocket, Connection, DetachedSocket, OnAccept, PeerAddress, PeerProcess, accept_loop};
pub use bind::{BACKLOG, BindError, Bound, Handle, bind, bind_abstract};
pub use place::{BoundPlace, Inheritance, Inherited, PassedFile};
pub use socket_file::Identity;
