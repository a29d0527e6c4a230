//! The life of a session: attach, relay, end; the registry through which everything else acts on sessions; cancel
//! keys and the peer channel.
//!
//! Guarantees: a read-write session is only ever on a server seen writable on that very connection and named leader;
//! the bytes forwarded are the bytes received; an idle session holds no buffer; every session ends with one log line
//! that says why.

pub mod sample;
