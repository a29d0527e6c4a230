//! Lines of `pgbouncer.ini`: sections, settings, and connection strings.

use std::time::Duration;

use crate::cli::import::Refusal;
use crate::cli::import::notes::Notes;

/// The most settings, databases and users of a file.
const MAX_SETTINGS: usize = 4096;

/// `key = value` on one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) line: usize,
    pub(super) key: String,
    pub(super) value: String,
}

/// The settings of each section, in the order of the file.
#[derive(Debug, Default)]
pub(super) struct Ini {
    pub(super) pgbouncer: Vec<Setting>,
    pub(super) databases: Vec<Setting>,
    pub(super) users: Vec<Setting>,
}

#[derive(Clone, Copy)]
enum Section {
    PgBouncer,
    Databases,
    Users,
    Other,
}

pub(super) fn ini(text: &str, notes: &mut Notes) -> Result<Ini, Refusal> {
    let mut ini = Ini::default();
    let (mut section, mut count) = (Section::Other, 0);
    for (index, text) in text.lines().enumerate() {
        let (line, text) = (index + 1, text.trim());
        if text.is_empty() || text.starts_with([';', '#']) {
            continue;
        }
        let included = text.strip_prefix("%include");
        if included.is_some_and(|file| file.starts_with(char::is_whitespace)) {
            notes.lost(
                line,
                "%include",
                "only this file is read: put what the other file has in its place, and import again",
            );
            continue;
        }
        if let Some(name) = text.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
            section = match name.trim() {
                "pgbouncer" => Section::PgBouncer,
                "databases" => Section::Databases,
                "users" => Section::Users,
                "peers" => {
                    notes.lost(
                        line,
                        "[peers]",
                        "`workers` of one process relay on several cores; other routers are named in `peers`, with a shared secret",
                    );
                    Section::Other
                }
                _ => {
                    notes.lost(line, &format!("[{name}]"), "is no section of PgBouncer's");
                    Section::Other
                }
            };
            continue;
        }
        count += 1;
        if count > MAX_SETTINGS {
            return Err(Refusal {
                line: Some(line),
                message: format!("has more than {MAX_SETTINGS} settings"),
            });
        }
        let settings = match section {
            Section::PgBouncer => &mut ini.pgbouncer,
            Section::Databases => &mut ini.databases,
            Section::Users => &mut ini.users,
            Section::Other => continue,
        };
        match setting(text) {
            Some((key, value)) => settings.push(Setting {
                line,
                key,
                value: value.to_owned(),
            }),
            None => notes.lost(line, "the line", "is no setting"),
        }
    }
    Ok(ini)
}

/// Names may be in double quotes, as in SQL.
fn setting(text: &str) -> Option<(String, &str)> {
    let (key, rest) = if let Some(quoted) = text.strip_prefix('"') {
        unquoted(quoted, '"')?
    } else {
        let (key, _) = text.split_once('=')?;
        (key.trim().to_owned(), &text[key.len()..])
    };
    let value = rest.trim_start().strip_prefix('=')?;
    (!key.is_empty()).then_some((key, value.trim()))
}

/// The text up to the closing quote, which is doubled inside, and what follows it.
fn unquoted(text: &str, quote: char) -> Option<(String, &str)> {
    let mut inside = String::new();
    let mut rest = text;
    loop {
        let (before, after) = rest.split_once(quote)?;
        inside.push_str(before);
        match after.strip_prefix(quote) {
            Some(after) => {
                inside.push(quote);
                rest = after;
            }
            None => return Some((inside, after)),
        }
    }
}

/// The pairs of a connection string; `None` where it is not one.
pub(super) fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let (value, after) = if let Some(quoted) = after.strip_prefix('\'') {
            unquoted(quoted, '\'')?
        } else {
            let end = after.find(char::is_whitespace).unwrap_or(after.len());
            (after[..end].to_owned(), &after[end..])
        };
        let key = key.trim();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return None;
        }
        pairs.push((key.to_owned(), value));
        rest = after.trim_start();
    }
    Some(pairs)
}

/// Elements between commas; empty ones do not count.
pub(super) fn elements(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|element| !element.is_empty())
}

/// Seconds, with a fraction.
pub(super) fn seconds(text: &str) -> Option<Duration> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let seconds: f64 = text.parse().ok().filter(|_| is_plain)?;
    (seconds < 1e9).then(|| Duration::from_secs_f64(seconds))
}

pub(super) fn number(text: &str) -> Option<u32> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_plain)
}

/// Whether a switch is on.
pub(super) fn is_on(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_and_values_may_be_quoted() {
        assert_eq!(setting("a = b c"), Some(("a".to_owned(), "b c")));
        assert_eq!(setting("* = host=x"), Some(("*".to_owned(), "host=x")));
        assert_eq!(setting("\"a \"\"= b\" =x"), Some(("a \"= b".to_owned(), "x")));
        assert_eq!(setting("a="), Some(("a".to_owned(), "")));
        for wrong in ["a", "= b", "\"a = b", "\"\" = b"] {
            assert_eq!(setting(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn connection_strings_are_pairs() {
        let read = |text| {
            pairs(text).map(|pairs| {
                pairs
                    .into_iter()
                    .map(|(key, value)| format!("{key}:{value}"))
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(read("").unwrap(), [""; 0]);
        assert_eq!(read("host=a  port = 5").unwrap(), ["host:a", "port:5"]);
        assert_eq!(
            read("password='a ''b'' =c' user=").unwrap(),
            ["password:a 'b' =c", "user:"]
        );
        for wrong in ["host", "host=a port", "=a", "a='b", "a b=c"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn times_are_seconds() {
        for (text, millis) in [
            ("5", Some(5000)),
            ("0.5", Some(500)),
            ("0", Some(0)),
            ("3600.0", Some(3_600_000)),
        ] {
            assert_eq!(seconds(text), millis.map(Duration::from_millis), "{text}");
        }
        for wrong in ["", "-1", "1e3", "5s", "inf", "1000000000", "1.1.1"] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
        assert_eq!(number("+5"), None);
        assert!(is_on("Yes") && !is_on("0"));
    }
}
