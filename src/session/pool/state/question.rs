//! The one question at a boundary.
//!
//! It is one Query with a transaction of its own, of at most three SELECTs whose rows are told
//! apart by their first column:
//!
//! - `n`: the values of names, and then what a RESET of each would give, found by resetting it
//!   until the end of this transaction. So a value counts as a deviation exactly if it differs from
//!   what the session would have by itself, whatever was set, reset or rolled back.
//! - `p`: whether there is what pins a session.
//! - `s`: all settings whose source is the session; what the first SELECT has reset is not among
//!   them.
//!
//! Values come in hexadecimal digits of the encoding of the database: no client encoding can fail
//! on them. Isolation is named, as the client's default may wait without limit or fail on a
//! standby. Timeouts and costs that would disturb the longer SELECTs are among the names of the
//! first one then, so they have been reset.

use std::fmt::Write as _;

use super::doubts::PINNED;
use super::literal::{Literal, decode_hex};
use super::settings::{MAX_BYTES, MAX_SETTINGS, is_custom, is_restorable};
use super::suspicion::Kinds;
use super::{Confirmed, Doubts, PinReason, Settings};

/// What would make the longer SELECTs fail or dear.
pub(super) const GUARDED: [&str; 2] = ["jit_above_cost", "statement_timeout"];

/// The first statement of the router's own transactions. No default of the client's can make it
/// wait or fail.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED; ";

/// A row of the answer has not the form that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the server's answer about the session's state is malformed")]
pub struct Malformed;

/// What has to be asked.
#[derive(Debug, Default, Clone)]
pub(super) struct Asked {
    /// Sorted, without repetition, none of them `role`.
    pub names: Vec<Box<str>>,
    pub role: bool,
    pub any_setting: bool,
    pub pins: Kinds,
    /// Without what a RESET would give: that failed before.
    pub is_plain: bool,
}

impl Asked {
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty() && !self.role && !self.any_setting && self.pins.is_empty()
    }

    fn has_names(&self) -> bool {
        self.role || !self.names.is_empty()
    }

    /// Names whose base is asked too. A custom name counts as soon as it is there.
    fn based(&self) -> impl Iterator<Item = &str> {
        let names = if self.is_plain { &[][..] } else { &self.names[..] };
        names.iter().map(|name| &**name).filter(|name| !is_custom(name))
    }
}

/// A question to the server about a session's state, and its answer as far as it has come.
///
/// Send [`Question::sql`] as one Query. If an error comes, call [`Question::error`]; the `Z` behind
/// it says `E`: send [`Question::AFTER_ERROR`] as a Query then, and close the connection if that
/// fails too.
#[derive(Debug)]
pub struct Question {
    asked: Asked,
    sql: String,
    values: Option<Vec<Option<Vec<u8>>>>,
    pins: Option<Kinds>,
    session: Vec<(Box<str>, Vec<u8>)>,
    bytes: usize,
    has_failed: bool,
}

impl Question {
    pub const AFTER_ERROR: &str = "ROLLBACK";

    pub(super) fn new(asked: Asked) -> Self {
        Self {
            sql: sql(&asked),
            asked,
            values: None,
            pins: None,
            session: Vec::new(),
            bytes: 0,
            has_failed: false,
        }
    }

    #[cfg(test)]
    pub(super) fn asked(&self) -> &Asked {
        &self.asked
    }

    /// Several statements, in ASCII, with a transaction of their own.
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// Takes the body of a `DataRow`. On an error close the connection.
    pub fn row(&mut self, body: &[u8]) -> Result<(), Malformed> {
        let columns = columns(body).ok_or(Malformed)?;
        match columns[..] {
            [Some(b"n"), ref values @ ..] => {
                let values = values.iter().map(|value| value.map(decode_hex));
                let values: Option<Vec<_>> = values
                    .map(|value| value.map_or(Some(None), |v| v.map(Some)))
                    .collect();
                self.values = Some(values.ok_or(Malformed)?);
            }
            [Some(b"p"), ref answers @ ..] => {
                let mut pins = Kinds::NONE;
                let kinds = PINNED.iter().filter(|(kind, _)| self.asked.pins.has(*kind));
                if answers.len() != kinds.clone().count() {
                    return Err(Malformed);
                }
                for ((kind, _), answer) in kinds.zip(answers) {
                    if *answer == Some(b"t") {
                        pins.add(*kind);
                    }
                }
                self.pins = Some(pins);
            }
            [Some(b"s"), Some(name), value] => {
                let name = std::str::from_utf8(name).map_err(|_| Malformed)?;
                let value = decode_hex(value.unwrap_or_default()).ok_or(Malformed)?;
                self.bytes += name.len() + value.len();
                // Beyond the limits the session is pinned: no more is needed.
                if self.bytes <= 2 * MAX_BYTES && self.session.len() <= 2 * MAX_SETTINGS {
                    self.session.push((name.to_ascii_lowercase().into(), value));
                }
            }
            _ => return Err(Malformed),
        }
        Ok(())
    }

    /// An error came as the answer.
    pub fn error(&mut self) {
        self.has_failed = true;
    }

    /// At the `Z`: puts the answer into `confirmed` and clears `doubts`. If the question failed,
    /// the session is pinned, and the doubts stay: the next boundary asks again.
    pub fn finish(self, confirmed: &mut Confirmed, doubts: &mut Doubts) {
        let is_whole = self.values.is_some() == self.asked.has_names()
            && self.pins.is_some() != self.asked.pins.is_empty()
            && !self.has_failed;
        let settings = if is_whole {
            self.settings(&confirmed.settings)
        } else {
            None
        };
        let Some((settings, is_kept)) = settings else {
            doubts.unanswered(confirmed);
            return;
        };
        confirmed.settings = settings;
        let pins = &mut confirmed.pins;
        if !is_kept {
            pins.insert(PinReason::Setting);
        }
        for (kind, reason) in PINNED {
            if self.asked.pins.has(kind) {
                pins.set(reason, self.pins.is_some_and(|found| found.has(kind)));
            }
        }
        pins.set(PinReason::Unanswered, false);
        doubts.settled(confirmed);
    }

    /// The session's settings after the answer, and whether all of them could be kept. `None` if
    /// there are not as many values as were asked for.
    fn settings(&self, before: &Settings) -> Option<(Settings, bool)> {
        let mut is_kept = self.bytes <= 2 * MAX_BYTES;
        let mut settings = before.clone();
        if self.asked.any_setting {
            let mut all = Settings::NONE;
            let kept = before
                .iter()
                .filter(|(name, _)| *name == "role" || is_custom(name));
            for (name, value) in kept {
                is_kept &= all.set(name, Some(value));
            }
            for (name, value) in self.session.iter().filter(|(name, _)| is_restorable(name)) {
                is_kept &= all.set(name, Some(value));
            }
            settings = all;
        }
        let Some(values) = &self.values else {
            return Some((settings, is_kept));
        };
        let mut values = values.iter().map(Option::as_deref);
        let own: Vec<_> = values.by_ref().take(self.asked.names.len()).collect();
        let mut role = None;
        if self.asked.role {
            let now = values.next()?;
            let base = if self.asked.is_plain {
                Some(&b"none"[..])
            } else {
                values.next()?
            };
            role = Some(now.filter(|_| now != base));
        }
        let bases: Vec<_> = values.collect();
        if own.len() != self.asked.names.len() || bases.len() != self.asked.based().count() {
            return None;
        }
        for (name, value) in self.asked.names.iter().zip(own) {
            is_kept &= settings.set(name, value);
        }
        for (name, base) in self.asked.based().zip(bases) {
            if settings.get(name) == base {
                is_kept &= settings.set(name, None);
            }
        }
        if let Some(role) = role {
            is_kept &= settings.set("role", role);
        }
        if settings == *before {
            // The same memory, for later comparisons.
            settings.clone_from(before);
        }
        Some((settings, is_kept))
    }
}

/// The value as hexadecimal digits, in the encoding of the database.
fn hex(sql: &mut String, value: impl std::fmt::Display) {
    let _ = write!(
        sql,
        "pg_catalog.encode(pg_catalog.convert_to({value}, 'SQL_ASCII'), 'hex')"
    );
}

fn sql(asked: &Asked) -> String {
    let mut sql = String::from(BEGIN);
    if asked.has_names() {
        sql.push_str("SELECT 'n'");
        let names = asked.names.iter().map(|name| &**name);
        for name in names.chain(asked.role.then_some("role")) {
            sql.push_str(", ");
            hex(
                &mut sql,
                format_args!("pg_catalog.current_setting({}, true)", Literal(name.as_bytes())),
            );
        }
        // To reset a name that there is not is an error; a text has one whose SET failed. The role
        // comes first: what a superuser
        let reset = (asked.role && !asked.is_plain).then_some("role").into_iter();
        for name in reset.chain(asked.based()) {
            sql.push_str(", ");
            hex(
                &mut sql,
                format_args!(
                    "CASE WHEN pg_catalog.current_setting({0}, true) IS NULL THEN NULL ELSE \
                     pg_catalog.set_config({0}, NULL, true) END",
                    Literal(name.as_bytes())
                ),
            );
        }
        sql.push_str("; ");
    }
    if !asked.pins.is_empty() {
        sql.push_str("SELECT 'p'");
        for (kind, _) in PINNED.iter().filter(|(kind, _)| asked.pins.has(*kind)) {
            sql.push_str(", ");
            sql.push_str(existence(*kind));
        }
        sql.push_str("; ");
    }
    if asked.any_setting {
        sql.push_str("SELECT 's', s.name, ");
        hex(&mut sql, "pg_catalog.current_setting(s.name, true)");
        sql.push_str(
            " FROM pg_catalog.pg_show_all_settings() s WHERE s.source OPERATOR(pg_catalog.=) 'session'; ",
        );
    }
    sql.push_str("COMMIT");
    sql
}

/// An expression that is true if the session has such a thing.
fn existence(kind: Kinds) -> &'static str {
    match kind {
        Kinds::PREPARE => "EXISTS (SELECT FROM pg_catalog.pg_prepared_statement() p WHERE p.from_sql)",
        Kinds::LISTEN => "EXISTS (SELECT FROM pg_catalog.pg_listening_channels())",
        // The temporary schema itself stays for the connection's life. Each object in it depends on
        // it (2615 is pg_namespace); so DISCARD TEMP finds them.
        Kinds::TEMPORARY => {
            "CASE WHEN pg_catalog.pg_my_temp_schema() OPERATOR(pg_catalog.=) '0' THEN false ELSE EXISTS (SELECT FROM \
             pg_catalog.pg_depend d WHERE d.refclassid OPERATOR(pg_catalog.=) '2615' AND d.refobjid \
             OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()) END"
        }
        Kinds::CURSOR => "EXISTS (SELECT FROM pg_catalog.pg_cursor() c WHERE c.is_holdable)",
        // At a boundary no transaction has any.
        _ => {
            "EXISTS (SELECT FROM pg_catalog.pg_lock_status() l WHERE l.locktype OPERATOR(pg_catalog.=) 'advisory' \
             AND l.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid())"
        }
    }
}

/// The columns of a `DataRow`, which must be all of the body.
fn columns(body: &[u8]) -> Option<Vec<Option<&[u8]>>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let count = usize::from(u16::from_be_bytes(*count));
    if rest.len() < count * 4 {
        return None;
    }
    let mut columns = Vec::with_capacity(count);
    for _ in 0..count {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let length = i32::from_be_bytes(*length);
        if length == -1 {
            columns.push(None);
            rest = tail;
        } else {
            let (value, tail) = tail.split_at_checked(usize::try_from(length).ok()?)?;
            columns.push(Some(value));
            rest = tail;
        }
    }
    rest.is_empty().then_some(columns)
}

#[cfg(test)]
mod tests;
