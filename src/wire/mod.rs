//! The PostgreSQL frontend/backend protocol: frames, startup packets, observers and the messages
//! the router originates (PostgreSQL documentation, chapter "Frontend/Backend Protocol").
//!
//! Guarantees: no IO and no clock; nothing from a peer panics; each phase limits lengths before
//! anything is allocated; a parser takes exactly one frame and must consume all of it; observers
//! look at headers in place and copy only small messages.
//!
//! It does not decode rows, and does not re-encode what is forwarded.

pub mod frame;
pub mod message;
pub mod observe;
pub mod pending;
pub(crate) mod proxy;
pub(crate) mod settings;
pub mod sqlstate;
pub mod startup;
pub(crate) mod text;
