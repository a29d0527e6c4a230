//! Trunkline: a connection manager for PostgreSQL high-availability clusters.
//!
//! One program between applications and a cluster. It terminates TLS, authenticates clients, knows
//! which server is the verified leader and which replicas are fit to read from, and relays sessions
//! to them.
//!
//! The rooms and the arrows between them are in `docs/architecture.md`; in short, `tls` and `wire`
//! use nothing of ours, `config` uses `tls`, `auth`, `cluster` and `routing` are decisions,
//! `frontend` and `backend` are connections, `session` is the life of a client, `admin` shows it,
//! `runtime` composes everything.

pub mod admin;
pub mod auth;
pub mod backend;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod events;
pub mod frontend;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(any(test, feature = "instructions"))]
#[doc(hidden)]
pub mod instructions;
mod labels;
pub mod listen;
mod names;
pub mod routing;
pub mod runtime;
pub mod session;
mod tls;
pub mod wire;
