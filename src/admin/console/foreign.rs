//! Commands that operators know from PgBouncer or from PostgreSQL, and that the console does not
//! have: what to do instead.

use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// By the first word of a command.
const HINTS: &[(&str, &str)] = &[
    (
        "shutdown",
        "Stop the service, which sends SIGTERM. `trunkline router drain` takes the router out of its balancers before.",
    ),
    (
        "suspend",
        "`trunkline upgrade` replaces the process and keeps its sessions; PAUSE lets clients wait.",
    ),
    (
        "kill",
        "KILL takes the id of a session: SELECT id, client, \"user\" FROM sessions. The sessions on a member end by CLOSE \
         SESSIONS, new ones of a route are refused after DISABLE, and PAUSE lets its clients wait.",
    ),
    (
        "set",
        "A setting of the router is changed in its configuration file, and RELOAD reads it.",
    ),
    (
        "declare",
        "The console has no cursors by SQL: use a portal of the protocol with a row limit, or LIMIT and OFFSET.",
    ),
    (
        "fetch",
        "The console has no cursors by SQL: use a portal of the protocol with a row limit, or LIMIT and OFFSET.",
    ),
    (
        "copy",
        "In psql, `\\o FILE` or `psql --csv -c 'SELECT …'` writes an answer to a file.",
    ),
];

/// The error for such a command.
pub(super) fn refusal(words: &[&str]) -> Option<ErrorReply> {
    let first = words.first()?;
    let (_, hint) = HINTS.iter().find(|(word, _)| word.eq_ignore_ascii_case(first))?;
    let name = first.to_ascii_uppercase();
    let what = if name == "SET" {
        "the console cannot set this".to_owned()
    } else if name == "KILL" {
        "this is not a session's id".to_owned()
    } else {
        format!("the console has no {name}")
    };
    Some(ErrorReply::error(SqlState::FEATURE_NOT_SUPPORTED, what).hint(*hint))
}
