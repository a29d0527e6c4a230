//! Settings of a session, as drivers read and set them on their own, and what else they send to
//! make a session as new.

use super::super::sql::Session;
use super::tokens::Token;
use super::transaction::are_modes;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// Reported to each client: the version of the oldest PostgreSQL that the router supports, so that
/// no driver expects more, and `off` for drivers that look for a server that accepts writes.
pub(super) const REPORTED: [(&str, &str); 10] = [
    (
        "server_version",
        concat!("14.0 (Trunkline ", env!("CARGO_PKG_VERSION"), ")"),
    ),
    ("server_encoding", "UTF8"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("integer_datetimes", "on"),
    ("standard_conforming_strings", "on"),
    ("default_transaction_read_only", "off"),
    ("in_hot_standby", "off"),
];

/// Shown when they are asked for; the values are PostgreSQL's defaults.
const SHOWN: &[(&str, &str)] = &[
    ("application_name", ""),
    ("bytea_output", "hex"),
    ("client_min_messages", "notice"),
    ("default_transaction_deferrable", "off"),
    ("default_transaction_isolation", "read committed"),
    ("extra_float_digits", "1"),
    ("idle_in_transaction_session_timeout", "0"),
    ("is_superuser", "off"),
    ("lc_collate", "C"),
    ("lc_ctype", "C"),
    ("lock_timeout", "0"),
    ("max_identifier_length", "63"),
    ("search_path", "\"$user\", public"),
    ("server_version_num", "140000"),
    ("statement_timeout", "0"),
    ("transaction_deferrable", "off"),
    ("transaction_isolation", "read committed"),
    ("transaction_read_only", "off"),
];

/// Drivers set them on their own, and nothing here depends on them.
const WITHOUT_EFFECT: &[&str] = &[
    "application_name",
    "bytea_output",
    "client_min_messages",
    "default_transaction_deferrable",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "lock_timeout",
    "search_path",
    "statement_timeout",
    "transaction_deferrable",
    "transaction_isolation",
    "transaction_read_only",
];

/// Values that are accepted, in small letters: those that the console has anyway.
const FIXED: &[(&str, &[&str])] = &[
    ("client_encoding", &["utf8", "utf-8", "unicode"]),
    ("datestyle", &["iso", "iso,mdy", "iso,us", "mdy"]),
    ("intervalstyle", &["postgres"]),
    ("standard_conforming_strings", &["on", "true", "yes", "1"]),
    ("timezone", &["utc", "etc/utc", "gmt", "etc/gmt", "zulu", "0"]),
];

/// What drivers send on their own, beside queries and transactions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SessionCommand {
    /// It changes nothing.
    Nothing {
        tag: &'static str,
    },
    /// The same, and PostgreSQL warns outside a block.
    InBlock {
        command: &'static str,
    },
    DiscardAll,
    /// `None`: all prepared statements.
    Deallocate(Option<String>),
    Show {
        name: &'static str,
    },
}

impl SessionCommand {
    /// `None`: the statement is none of these.
    ///
    /// # Errors
    /// It is one, and not what the console has.
    pub(super) fn read(tokens: &[Token]) -> Result<Option<Self>, ErrorReply> {
        let Some((Token::Word(first), rest)) = tokens.split_first() else {
            return Ok(None);
        };
        let nothing = |tag| Ok(Some(Self::Nothing { tag }));
        let second = rest.first().and_then(Token::text).unwrap_or_default();
        match (first.as_str(), second, rest.len()) {
            ("set", ..) => set(rest),
            ("reset", "all", 1) => nothing("RESET"),
            ("reset", ..) => Ok(setting(rest).map(|_| Self::Nothing { tag: "RESET" })),
            ("discard", "all", 1) => Ok(Some(Self::DiscardAll)),
            ("discard", "plans", 1) => nothing("DISCARD PLANS"),
            ("discard", "temp" | "temporary", 1) => nothing("DISCARD TEMP"),
            ("discard", "sequences", 1) => nothing("DISCARD SEQUENCES"),
            ("unlisten", _, 1) => nothing("UNLISTEN"),
            ("close", "all", 1) => nothing("CLOSE CURSOR ALL"),
            ("close", name, 1) if !matches!(name, "" | "sessions") => Err(ErrorReply::error(
                SqlState::INVALID_CURSOR_NAME,
                format!("cursor \"{name}\" does not exist"),
            )
            .hint("CLOSE SESSIONS and a member's name ends the sessions on a member.")),
            ("deallocate", ..) => Ok(deallocate(rest)),
            ("show", ..) => Ok(setting(rest).map(|name| Self::Show { name })),
            _ => Ok(None),
        }
    }
}

fn deallocate(rest: &[Token]) -> Option<SessionCommand> {
    let rest = match rest {
        [prepare, rest @ ..] if prepare.is("prepare") && !rest.is_empty() => rest,
        rest => rest,
    };
    match rest {
        [all] if all.is("all") => Some(SessionCommand::Deallocate(None)),
        [name @ (Token::Word(_) | Token::Quoted(_))] => {
            Some(SessionCommand::Deallocate(name.text().map(str::to_owned)))
        }
        _ => None,
    }
}

/// The setting of this name, also by the names that SQL has for some.
fn setting(name: &[Token]) -> Option<&'static str> {
    let words: Vec<&str> = name.iter().filter_map(Token::text).collect();
    if words.len() != name.len() {
        return None;
    }
    let name = match words[..] {
        ["time", "zone"] => "TimeZone",
        ["transaction", "isolation", "level"] => "transaction_isolation",
        ["session", "authorization"] => "session_authorization",
        [name] => name,
        _ => return None,
    };
    known(name)
}

/// With its letters as PostgreSQL shows it.
fn known(name: &str) -> Option<&'static str> {
    let all = REPORTED.iter().chain(SHOWN).map(|(known, _)| *known);
    let mut all = all.chain(["session_authorization"]);
    all.find(|known| known.eq_ignore_ascii_case(name))
}

/// Its value in this session.
pub(super) fn value(name: &str, session: &Session) -> Option<String> {
    if name.eq_ignore_ascii_case("session_authorization") {
        return Some(session.user.clone());
    }
    let mut all = REPORTED.iter().chain(SHOWN);
    let found = all.find(|(known, _)| known.eq_ignore_ascii_case(name));
    found.map(|(_, value)| (*value).to_owned())
}

fn set(rest: &[Token]) -> Result<Option<SessionCommand>, ErrorReply> {
    let nothing = Ok(Some(SessionCommand::Nothing { tag: "SET" }));
    let rest = match rest {
        [session, characteristics, as_, transaction, modes @ ..]
            if session.is("session")
                && characteristics.is("characteristics")
                && as_.is("as")
                && transaction.is("transaction")
                && are_modes(modes) =>
        {
            return nothing;
        }
        [transaction, modes @ ..] if transaction.is("transaction") && are_modes(modes) => {
            return Ok(Some(SessionCommand::InBlock {
                command: "SET TRANSACTION",
            }));
        }
        [scope, rest @ ..] if scope.is("session") => rest,
        [scope, rest @ ..] if scope.is("local") => {
            let is_known = set(rest)?.is_some();
            return Ok(is_known.then_some(SessionCommand::InBlock { command: "SET LOCAL" }));
        }
        rest => rest,
    };
    let (name, values) = match rest {
        [time, zone, values @ ..] if time.is("time") && zone.is("zone") => ("timezone", values),
        [names, values @ ..] if names.is("names") => ("client_encoding", values),
        [name @ (Token::Word(_) | Token::Quoted(_)), to, values @ ..]
            if (to.is("to") || *to == Token::Sign('=')) && !values.is_empty() =>
        {
            (name.text().unwrap_or_default(), values)
        }
        _ => return Ok(None),
    };
    if WITHOUT_EFFECT
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known))
    {
        return nothing;
    }
    let Some((_, accepted)) = FIXED.iter().find(|(known, _)| name.eq_ignore_ascii_case(known)) else {
        return Ok(None);
    };
    let typed: String = values
        .iter()
        .map(|token| token.text().map_or_else(|| ",".to_owned(), str::to_lowercase))
        .collect();
    let typed = typed.replace(' ', "");
    if typed == "default" || typed == "local" || accepted.contains(&typed.as_str()) {
        return nothing;
    }
    let only = value(name, &Session::default()).unwrap_or_default();
    Err(ErrorReply::error(
        SqlState::FEATURE_NOT_SUPPORTED,
        format!("the console has no other {name} than {only}"),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tokens::tokens;
    use super::*;

    fn read(sql: &str) -> Result<Option<SessionCommand>, ErrorReply> {
        SessionCommand::read(&tokens(sql).unwrap())
    }

    #[test]
    fn what_drivers_set_is_accepted_if_it_is_so_anyway() {
        for sql in [
            "SET extra_float_digits = 3",
            "set SESSION application_name to 'x; y'",
            "SET datestyle TO 'ISO'",
            "SET DateStyle = ISO, MDY",
            "SET client_encoding TO 'UTF8'",
            "SET NAMES 'utf8'",
            "SET TIME ZONE 'UTC'",
            "SET TimeZone TO DEFAULT",
            "SET search_path = public, x",
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED",
        ] {
            let expected = SessionCommand::Nothing { tag: "SET" };
            assert_eq!(read(sql).unwrap(), Some(expected), "{sql}");
        }
        for (sql, command) in [
            ("SET TRANSACTION READ ONLY", "SET TRANSACTION"),
            ("SET LOCAL statement_timeout = 5", "SET LOCAL"),
        ] {
            assert_eq!(
                read(sql).unwrap(),
                Some(SessionCommand::InBlock { command }),
                "{sql}"
            );
        }
        for sql in [
            "SET TIME ZONE 'Europe/Berlin'",
            "SET datestyle = 'German'",
            "SET client_encoding = 'LATIN1'",
        ] {
            assert_eq!(read(sql).unwrap_err().code.as_str(), "0A000", "{sql}");
        }
        for sql in [
            "SET",
            "SET x",
            "SET max_client_conn = 10",
            "SET role x",
            "SET extra_float_digits",
        ] {
            assert_eq!(read(sql).unwrap(), None, "{sql}");
        }
    }

    #[test]
    fn settings_are_shown_by_all_their_names() {
        let session = Session {
            user: "admin".to_owned(),
            ..Session::default()
        };
        for (sql, name, expected) in [
            (
                "SHOW TRANSACTION ISOLATION LEVEL",
                "transaction_isolation",
                "read committed",
            ),
            ("show transaction_read_only", "transaction_read_only", "off"),
            ("SHOW TIME ZONE", "TimeZone", "UTC"),
            ("SHOW timezone", "TimeZone", "UTC"),
            ("SHOW \"datestyle\"", "DateStyle", "ISO, MDY"),
            ("SHOW SESSION AUTHORIZATION", "session_authorization", "admin"),
        ] {
            assert_eq!(read(sql).unwrap(), Some(SessionCommand::Show { name }), "{sql}");
            assert_eq!(value(name, &session).as_deref(), Some(expected), "{sql}");
        }
        for sql in ["SHOW", "SHOW work_mem x", "SHOW nothing", "SHOW ="] {
            assert_eq!(read(sql).unwrap(), None, "{sql}");
        }
    }

    #[test]
    fn a_session_is_made_as_new() {
        let nothing = |tag| Some(SessionCommand::Nothing { tag });
        for (sql, expected) in [
            ("DISCARD ALL", Some(SessionCommand::DiscardAll)),
            ("DEALLOCATE ALL", Some(SessionCommand::Deallocate(None))),
            (
                "DEALLOCATE PREPARE \"S_1\"",
                Some(SessionCommand::Deallocate(Some("S_1".into()))),
            ),
            (
                "DEALLOCATE prepare",
                Some(SessionCommand::Deallocate(Some("prepare".into()))),
            ),
            ("RESET ALL", nothing("RESET")),
            ("RESET datestyle", nothing("RESET")),
            ("UNLISTEN *", nothing("UNLISTEN")),
            ("CLOSE ALL", nothing("CLOSE CURSOR ALL")),
            ("RESET nothing", None),
            ("DISCARD", None),
        ] {
            assert_eq!(read(sql).unwrap(), expected, "{sql}");
        }
        assert_eq!(read("CLOSE c").unwrap_err().code.as_str(), "34000");
    }
}
