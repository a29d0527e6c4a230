//! Making one session's settings out of another's.

use std::fmt::Write as _;

use super::Settings;
use super::literal::Literal;
use super::question::BEGIN;
use super::settings::is_custom;

/// The query that makes the settings of one session out of those of another, which had the
/// connection before.
///
/// Send [`Restore::sql`] as one Query; all or nothing of it takes effect. On an error close the
/// connection: [`Restore::name_in`] says which name the error is about.
#[derive(Debug, PartialEq, Eq)]
pub struct Restore {
    sql: String,
    names: Vec<Box<str>>,
}

impl Restore {
    /// `from` is what the connection has, `to` what it must have. `None`: nothing to do, and the
    /// connection then counts as having `to`.
    pub fn between(from: &Settings, to: &Settings) -> Option<Self> {
        if from == to {
            return None;
        }
        let mut changes: Vec<(&str, Option<&[u8]>)> = Vec::new();
        for (name, value) in from.iter() {
            // A custom name cannot be removed: reset, it reads as an empty string, and so it does.
            let is_removed = is_custom(name) && value.is_empty();
            if to.get(name).is_none() && !is_removed {
                changes.push((name, None));
            }
        }
        changes.extend(
            to.iter()
                .filter(|&(name, value)| from.get(name) != Some(value))
                .map(|(name, value)| (name, Some(value))),
        );
        if changes.is_empty() {
            return None;
        }
        // Who has lowered its role may not set what it could before; so that goes first, and the
        // role to have comes last.
        let has_role = changes.iter().any(|(name, _)| *name == "role");
        let is_only_role = has_role && changes.len() == 1;
        changes.retain(|(name, _)| *name != "role");
        if from.get("role").is_some() && !(is_only_role && to.get("role").is_some()) {
            changes.insert(0, ("role", None));
        }
        if let Some(role) = to.get("role")
            && (has_role || from.get("role").is_some())
        {
            changes.push(("role", Some(role)));
        }
        let mut sql = format!("{BEGIN}SELECT ");
        for (index, (name, value)) in changes.iter().enumerate() {
            if index > 0 {
                sql.push_str(", ");
            }
            // The value itself would come back in the client's encoding, which may not have it.
            let name = Literal(name.as_bytes());
            let _ = match value {
                Some(value) => write!(
                    sql,
                    "pg_catalog.set_config({name}, {}, false) IS NULL",
                    Literal(value)
                ),
                None => write!(sql, "pg_catalog.set_config({name}, NULL, false) IS NULL"),
            };
        }
        sql.push_str("; COMMIT");
        let names = changes.iter().map(|(name, _)| (*name).into()).collect();
        Some(Self { sql, names })
    }

    /// Several statements, in ASCII, with a transaction of their own.
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// The names that are set or reset.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| &**name)
    }

    /// Which of the names the text of a server's error is about. The server quotes it; only a role
    /// is quoted itself.
    pub fn name_in(&self, message: &[u8]) -> Option<&str> {
        let message = String::from_utf8_lossy(message).to_ascii_lowercase();
        let is_quoted = |name: &&str| message.contains(&format!("\"{name}\""));
        let is_role = |name: &&str| *name == "role" && message.contains("role \"");
        let only = (self.names.len() == 1).then(|| self.names().next()).flatten();
        only.or_else(|| self.names().find(is_quoted))
            .or_else(|| self.names().find(is_role))
    }

    /// It only changes `application_name`, which cannot fail: the client's request may be sent
    /// behind it without waiting for its answer.
    pub fn is_certain(&self) -> bool {
        self.names().all(|name| name == "application_name")
    }
}

/// What must be reset before a connection idles.
#[derive(Debug, PartialEq, Eq)]
pub struct BeforeIdle {
    /// Utilities that work under any settings, to be sent as one Query.
    pub sql: String,
    /// What the connection has afterwards.
    pub left: Settings,
}

/// Timeouts below this would make the router's own statements fail now and then.
const SHORT_MS: u64 = 1000;

impl Settings {
    /// What of these would end an idle connection, or make the router's next query on it fail.
    /// Usually `None`: other settings stay on the connection until the next lease, as
    /// [`Restore`] works under all of them.
    pub fn before_idle(&self) -> Option<BeforeIdle> {
        let mut sql = String::new();
        let mut left = self.clone();
        for name in ["idle_session_timeout", "statement_timeout", "transaction_timeout"] {
            let Some(value) = self.get(name) else { continue };
            if name == "idle_session_timeout" || is_short(value) {
                let separator = if sql.is_empty() { "" } else { "; " };
                let _ = write!(sql, "{separator}RESET {name}");
                let _ = left.set(name, None);
            }
        }
        (!sql.is_empty()).then_some(BeforeIdle { sql, left })
    }
}

/// Whether a time-out as the server shows it is less than [`SHORT_MS`], and not off.
fn is_short(value: &[u8]) -> bool {
    let number = std::str::from_utf8(value)
        .ok()
        .and_then(|value| value.strip_suffix("ms"));
    number.is_some_and(|number| number.parse::<u64>().is_ok_and(|number| number < SHORT_MS))
}

#[cfg(test)]
mod tests;
