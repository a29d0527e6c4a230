//! What a message changes once the server has done it.

use std::sync::Arc;

use super::interner::Statement;
use super::session::{Kept, Named};
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// What one message on its way changes when the server completes it; if it fails or is skipped, it
/// changes nothing, unless it says otherwise.
#[derive(Debug)]
pub(super) enum Effect {
    None,
    /// A Bind or Describe of the client under the router's name.
    Use(Arc<Named>),
    /// In an error, this name of the router's stands for the client's.
    Shown(&'static str, Box<[u8]>),
    /// Must fail: where the server says the code, the client gets the reply.
    Refused(SqlState, Box<ErrorReply>),
    /// The client's Parse.
    Prepare(Arc<Named>),
    /// The router's Parse of what the client has prepared elsewhere.
    Again(Arc<Statement>),
    /// The router's Describe behind the client's Parse.
    Learn(Arc<Named>),
    /// The router's Describe behind its own Parse.
    Verify(Arc<Statement>),
    /// The router's Close of a statement on the connection: its number.
    DropCopy(u64),
    /// The client's Close of a name.
    DropName(Box<[u8]>),
    /// The client's `DEALLOCATE` of a name: it counts with the tag.
    Deallocate(Box<[u8]>),
    /// It may take all prepared statements away, or some.
    MayDropAll,
    /// The client sets its unnamed statement (Parse), or removes it (Close).
    SetUnnamed(Kept),
    /// The router makes the connection's unnamed statement the client's.
    RestoreUnnamed,
    /// The router's `DISCARD SEQUENCES`.
    Forget,
    /// The client asks for the types of its unnamed statement.
    DescribeUnnamed,
}
