//! Server connections that sessions share, one after the other.
//!
//! A pool belongs to one route, one server user and one database ([`key::PoolName`]). Its sessions
//! take a connection and give it back at a boundary; [`pools::Pools`] has the pools of the process.
//!
//! - [`pools`], [`pool`](mod@pool), [`acquire`], [`permit`]: connections, seats and those who wait.
//! - [`session`]: a session that has a connection while it needs one; its turns ([`relay`]), what
//!   its client sends ([`requests`]) and what its server says ([`answers`]), its waits ([`wait`])
//!   and what it does at a boundary ([`boundary`], [`clean`]).
//! - [`under_way`], [`lost`], [`cut`], [`aborted`]: what its client sees where a server connection
//!   is lost.
//! - [`state`]: what a session has that its next connection must have. [`statements`]: its prepared
//!   statements.
//! - [`begin`], [`open`]: the login of a client, and that of the router at a server.

mod aborted;
pub(in crate::session) mod acquire;
mod answers;
pub(in crate::session) mod begin;
mod boundary;
mod clean;
pub(in crate::session) mod connection;
mod cut;
mod displacements;
mod exchange;
mod hints;
mod idle;
mod inner;
mod keeper;
pub mod key;
mod keys;
mod limits;
mod lost;
mod members;
pub mod metrics;
mod numbers;
pub mod open;
pub(in crate::session) mod permit;
pub mod pinned;
#[expect(clippy::module_inception, reason = "one pool, beside all pools")]
pub(in crate::session) mod pool;
pub mod pools;
mod relay;
mod requests;
pub(in crate::session) mod session;
mod shortage;
pub mod state;
pub(crate) mod statements;
mod timers;
mod under_way;
pub mod view;
pub(in crate::session) mod wait;
mod waiters;
mod wary;
mod work;

#[cfg(test)]
mod change_tests;
#[cfg(test)]
mod conversations;
#[cfg(test)]
mod cut_tests;
#[cfg(test)]
mod full_tests;
#[cfg(test)]
mod held_tests;
#[cfg(any(test, feature = "instructions"))]
pub(crate) mod measured;
#[cfg(test)]
mod model_server;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod refused_tests;
#[cfg(any(test, feature = "instructions"))]
mod scene;
#[cfg(test)]
mod session_tests;
#[cfg(test)]
mod stage;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod unasked_tests;
