//! Commands that operators know from PgBouncer or from PostgreSQL, and that the console does not
//! have: what to do instead.

use super::command::COMMANDS;
use super::views;
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

/// Words of `trunkline` and of other consoles, with the console's words for the same.
const WORDS: &[(&str, &str)] = &[
    (
        "unpause",
        "In the console it is RESUME, for all routes, or RESUME and a route's name.",
    ),
    ("servers", "SELECT * FROM server_connections shows them."),
    (
        "status",
        "TABLE members, TABLE routes and TABLE holds show it; `trunkline status` has it on one screen.",
    ),
    (
        "top",
        "`trunkline top` shows it, at a shell. In psql, \\watch 2 repeats a query.",
    ),
    (
        "close-sessions",
        "In the console it is CLOSE SESSIONS and a member's name.",
    ),
    (
        "explain",
        "EXPLAIN SWITCHOVER shows what a switchover would do. Queries are not explained.",
    ),
    ("describe", "\\d and a view's name lists its columns."),
    ("desc", "\\d and a view's name lists its columns."),
    (
        "help",
        "SHOW HELP lists the commands, \\d the views, and \\? what psql knows.",
    ),
    ("quit", "In psql it is \\q."),
    ("exit", "In psql it is \\q."),
    (
        "insert",
        "The console's views only show; orders change something, and SHOW HELP lists them.",
    ),
    (
        "update",
        "The console's views only show; orders change something, and SHOW HELP lists them.",
    ),
    (
        "delete",
        "The console's views only show. KILL and a session's id ends a session; SHOW HELP lists the orders.",
    ),
    (
        "create",
        "The console has its own views, which \\d lists, and no others.",
    ),
    (
        "drop",
        "The console has its own views, which \\d lists, and no others.",
    ),
    (
        "alter",
        "Roles are changed at the leader; settings of the router in its configuration file, which RELOAD reads.",
    ),
];
/// Of `trunkline`, and only there.
const AT_A_SHELL: &[&str] = &[
    "before-stop",
    "check",
    "completions",
    "doctor",
    "forget-identity",
    "hba",
    "import",
    "schema",
    "upgrade",
];

/// A command that is written as if the console had it, because it has something of this name.
fn misplaced(words: &[&str]) -> Option<ErrorReply> {
    let first = words.first()?;
    let no = |what: &str, hint: String| {
        let text = format!("the console has no {}", what.to_ascii_uppercase());
        Some(ErrorReply::error(SqlState::FEATURE_NOT_SUPPORTED, text).hint(hint))
    };
    if let [show, name] = words
        && show.eq_ignore_ascii_case("show")
    {
        if name.eq_ignore_ascii_case("all") {
            return no(
                "SHOW ALL",
                "SELECT * FROM config shows the router's settings.".to_owned(),
            );
        }
        let view = view_of(name)?;
        return no(&format!("SHOW {name}"), format!("SELECT * FROM {view} shows it."));
    }
    if let Some((_, hint)) = WORDS.iter().find(|(word, _)| word.eq_ignore_ascii_case(first)) {
        return no(first, (*hint).to_owned());
    }
    if let [router, state] = words
        && router.eq_ignore_ascii_case("router")
    {
        let state = state.to_ascii_lowercase();
        return no(
            "ROUTER",
            format!("`trunkline router {state}` does it, at a shell on the router's host."),
        );
    }
    if AT_A_SHELL.iter().any(|word| word.eq_ignore_ascii_case(first)) {
        let command = first.to_ascii_lowercase();
        return no(
            first,
            format!("`trunkline {command}` does it, at a shell on the router's host."),
        );
    }
    let view = view_of(first)?;
    no(first, format!("SELECT * FROM {view} shows it."))
}

/// The view of this name, also in the singular.
fn view_of(name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    let view = views::find(&name).or_else(|| views::find(&format!("{name}s")))?;
    Some(view.name)
}

/// A name in single quotes, which are for texts, in a command that the console has. In others a
/// text may be a password, which no error repeats.
fn text_for_name(words: &[&str]) -> Option<ErrorReply> {
    let first = words.first()?;
    let begins = |text: &str| {
        let word = text.split(' ').next();
        word.is_some_and(|word| word.eq_ignore_ascii_case(first))
    };
    if !COMMANDS.iter().any(|command| begins(command.text)) {
        return None;
    }
    let text = words.iter().skip(1).find(|word| word.starts_with('\''))?;
    let name = text.trim_matches('\'').replace('"', "\"\"");
    let reply = ErrorReply::error(
        SqlState::SYNTAX_ERROR,
        format!("{text} is a text, and a name is expected"),
    );
    Some(reply.hint(format!("Names stand in double quotes, or in none: \"{name}\".")))
}

/// The error for such a command.
pub(super) fn refusal(words: &[&str]) -> Option<ErrorReply> {
    let first = words.first()?;
    if let Some(reply) = text_for_name(words) {
        return Some(reply);
    }
    let Some((_, hint)) = HINTS.iter().find(|(word, _)| word.eq_ignore_ascii_case(first)) else {
        return misplaced(words);
    };
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::statement::Statement;

    #[test]
    fn what_people_type_gets_the_consoles_words() {
        for (sql, code, hint) in [
            ("UNPAUSE rw", "0A000", "In the console it is RESUME"),
            ("close db1", "34000", "CLOSE SESSIONS and a member's name"),
            ("CLOSE db1 NOW", "0A000", "The console has CLOSE SESSIONS"),
            ("SHOW MEMBERS", "0A000", "SELECT * FROM members"),
            ("show route;", "0A000", "SELECT * FROM routes"),
            ("SHOW ALL", "0A000", "SELECT * FROM config"),
            ("members", "0A000", "SELECT * FROM members"),
            ("servers", "0A000", "SELECT * FROM server_connections"),
            ("status", "0A000", "TABLE members"),
            ("doctor", "0A000", "`trunkline doctor`"),
            ("router drain", "0A000", "`trunkline router drain`"),
            ("help", "0A000", "SHOW HELP"),
            ("PAUSE 'rw'", "42601", "\"rw\""),
            ("DRAIN 'db1' CLUSTER main", "42601", "\"db1\""),
            ("ALTER USER a PASSWORD 'secret'", "0A000", "Roles are changed"),
            ("KILL '7'", "42601", "\"7\""),
            (
                "SELECT * FROM routes WHERE access = \"read-write\"",
                "42703",
                "'read-write'",
            ),
            ("SELECT * FROM members WHERE member = db1", "42703", "'db1'"),
            ("SELECT * FROM 'members'", "42601", "\"members\""),
            ("SELECT member AS 'm' FROM members", "42601", "double quotes"),
            ("SELECT * FROM members ORDER BY 'lag'", "42601", "\"lag\""),
            ("SELECT * FROM member", "42P01", "Did you mean members?"),
            ("TABLE pg_stat_activity", "42P01", "The console has sessions"),
            (
                "SELECT 1 FROM pg_catalog.pg_roles r",
                "0A000",
                "\\d lists its views",
            ),
        ] {
            let reply = Statement::read(sql, Vec::new()).unwrap_err();
            assert_eq!(reply.code, code, "{sql}: {reply:?}");
            let told = reply.hint.as_deref().unwrap_or_default();
            assert!(told.contains(hint), "{sql}: {told}");
            assert!(!format!("{reply:?}").contains("secret"), "{reply:?}");
        }
    }
}
