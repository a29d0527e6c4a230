//! Session state of pooled sessions: what a client's session has that a server connection does not
//! have by itself, how the router learns of it, and how it is made again on another connection.
//!
//! The server is the source of truth. What passes (SQL text, command tags, `ParameterStatus`) only
//! says that something *may* have changed ([`Hint`], [`Doubts`]). At a boundary the router then
//! asks the server one [`Question`], and the answer gives the [`Settings`] and the [`Pins`] of the
//! session ([`Confirmed`]). [`Restore`] is the query that makes one session's settings out of
//! another's.
//!
//! How a lease uses this:
//!
//! 1. For each Query and Parse, before it is forwarded: [`Hint::of`], or [`LongText`] where it is
//!    longer than a read. For a Query: [`Doubts::query`].
//!    For a Parse keep the hint with the statement, and call [`Doubts::bind`] for each Bind of it.
//!    For each `FunctionCall`: [`Doubts::call`].
//! 2. For each answer to the client: [`Doubts::tag`], [`Doubts::parameter`].
//! 3. At each boundary: [`Doubts::settle`]. Where it returns a question, send it, feed its `D` to
//!    [`Question::row`], its `E` to [`Question::error`], and end with [`Question::finish`].
//! 4. If [`Confirmed::pins`] is empty, the connection may be released: [`Settings::before_idle`].
//! 5. At a lease: [`Restore::between`] what the connection has and what the session has.
//!
//! Guarantees: this is pure. Every text of the router's own is ASCII, so that no client encoding
//! can change it, and is proof against the client's settings: names and operators are qualified,
//! isolation is named. Everything kept has a limit; beyond it the session is pinned. If a question
//! fails, the session is pinned and is asked again at its next boundary.
//!
//! Refuses: to guess a value from SQL text. Text only gives names to ask for.

mod analysis;
mod calls;
mod command;
mod doubts;
mod hint;
mod lexer;
mod literal;
mod pins;
mod question;
mod reported;
mod restore;
mod settings;
mod suspicion;

pub use command::{Command, goes_on};
pub use doubts::Doubts;
pub use hint::{Hint, LongText};
pub use pins::{PinReason, Pins};
pub use question::{Malformed, Question};
pub use reported::Reported;
pub use restore::{BeforeIdle, Restore};
pub use settings::{CustomName, Settings};

use std::sync::Arc;

/// What of a route's configuration concerns session state.
#[derive(Debug, Clone, Default)]
pub struct StateOptions {
    /// `settings`: names that are asked at every boundary, in lower case.
    pub names: Arc<[Box<str>]>,
    /// `verify: always`: everything is asked at every boundary.
    pub verify_always: bool,
}

/// What the server said of a session at its last boundary. Belongs to the client's session.
#[derive(Debug, Clone, Default)]
pub struct Confirmed {
    /// What differs from what its startup parameters give.
    pub settings: Settings,
    /// Why the session must keep its server connection; usually empty.
    pub pins: Pins,
    /// What the statements may do that the session has made with SQL `PREPARE`: each `EXECUTE` of
    /// one does it again.
    prepared: Hint,
}
