//! Configurations of others against any text: what is written is YAML, with our keys and no others.

use super::{InputKind, Mode, convert};
use crate::config::tree::{self, Value};
use crate::fuzzing::choice;

pub(crate) fn run(data: &[u8]) {
    let (which, text) = choice(data);
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let kind = match which & 5 {
        0 => InputKind::Haproxy,
        1 => InputKind::PatroniProxy,
        _ => InputKind::PgBouncer,
    };
    let mode = if which & 2 == 0 { Mode::Postgres } else { Mode::Tcp };
    let Ok((yaml, notes)) = convert(kind, text, "file", mode) else {
        return;
    };
    for line in notes.lines("file") {
        assert!(!line.contains(char::is_control), "{line:?}");
    }
    let root = tree::parse(&yaml).unwrap_or_else(|error| panic!("{}\n{yaml}", error.message));
    let Value::Map(entries) = &root.value else {
        panic!("no map\n{yaml}");
    };
    let schema = crate::config::json_schema();
    for entry in entries {
        assert!(
            schema["properties"].get(&entry.key).is_some(),
            "{}\n{yaml}",
            entry.key
        );
    }
}
