//! Typed readers over the tree. Each collects what is wrong and goes on; `None` means that a fault was reported
//! (or that the key is not there), so that a caller may put in any value: the configuration is refused anyway.

use std::cell::RefCell;
use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::CryptoProvider;

use super::error::ConfigError;
use super::reload_unit::{Files, ReloadUnit};
use super::schema::kind::LONGEST_TEXT;
use super::schema::{Key, Keys, Otherwise, ValueKind};
use super::spelling::closest;
use super::tree::{MappingEntry, Node, Value};
use super::units::{parse_duration, parse_size, shown_duration, shown_size};

/// What a conversion needs besides the tree, and where it reports.
pub(super) struct Context<'a> {
    pub(super) file: Arc<Path>,
    /// Relative file names start here.
    pub(super) directory: PathBuf,
    pub(super) environment: &'a dyn Fn(&str) -> Option<OsString>,
    /// Unix seconds.
    pub(super) now: i64,
    pub(super) provider: Arc<CryptoProvider>,
    /// What is being read: faults and files belong to it.
    pub(super) part: RefCell<ReloadUnit>,
    pub(super) faults: RefCell<Vec<(ReloadUnit, ConfigError)>>,
    pub(super) files: RefCell<Files>,
    pub(super) warnings: RefCell<Vec<String>>,
}

impl Context<'_> {
    pub(super) fn fault(&self, path: &str, line: Option<usize>, message: String, hint: Option<String>) {
        let file = self.file.clone();
        let fault = ConfigError {
            file,
            path: path.to_owned(),
            line,
            message,
            hint,
        };
        self.faults.borrow_mut().push((self.part.borrow().clone(), fault));
    }

    /// Reads something whose files are taken by themselves when they change.
    pub(super) fn within<T>(&self, part: ReloadUnit, read: impl FnOnce() -> T) -> T {
        let before = self.part.replace(part);
        let value = read();
        self.part.replace(before);
        value
    }

    /// A file is about to be read.
    pub(super) fn note_file(&self, path: &Path) {
        self.files.borrow_mut().record(self.part.borrow().clone(), path);
    }

    pub(super) fn warn(&self, warning: String) {
        self.warnings.borrow_mut().push(warning);
    }
}

/// A map whose keys are fixed.
pub(super) struct Section<'a> {
    context: &'a Context<'a>,
    path: String,
    line: Option<usize>,
    entries: &'a [MappingEntry],
    keys: &'static Keys,
    /// It is not a map at all: this was reported, and what it lacks is not.
    broken: bool,
    /// The key stands in the file.
    present: bool,
}

impl<'a> Section<'a> {
    pub(super) fn root(context: &'a Context<'a>, node: &'a Node, keys: &'static Keys) -> Self {
        Self::open(context, String::new(), node.line, Some(node), keys)
    }

    /// Opens the map and reports the keys in it that do not belong there.
    fn open(
        context: &'a Context<'a>,
        path: String,
        line: Option<usize>,
        node: Option<&'a Node>,
        keys: &'static Keys,
    ) -> Self {
        let mut section = Self {
            context,
            path,
            line,
            entries: &[],
            keys,
            broken: false,
            present: node.is_some(),
        };
        match node.map(|node| &node.value) {
            Some(Value::Map(entries)) => section.entries = entries,
            // A section whose keys are all commented out.
            Some(Value::Null) | None => {}
            Some(other) => {
                section.broken = true;
                section.fault(format!("expected a map of keys, found {}", other.kind()));
            }
        }
        for (index, entry) in section.entries.iter().enumerate() {
            section.check_key(entry, &section.entries[..index]);
        }
        section
    }

    fn check_key(&self, entry: &MappingEntry, before: &[MappingEntry]) {
        let shown = shown_key(&entry.key);
        let path = join(&self.path, &shown);
        if let Some(first) = before.iter().find(|earlier| earlier.key == entry.key) {
            let message = match first.line {
                Some(line) => format!("`{shown}` stands here twice, first on line {line}"),
                None => format!("`{shown}` stands here twice"),
            };
            self.context.fault(&path, entry.line, message, None);
            return;
        }
        if self.keys.find(&entry.key).is_some() {
            return;
        }
        let hint = if entry.key == "<<" {
            Some("merge keys are not read; write the keys out".to_owned())
        } else {
            closest(&entry.key, self.keys.names()).map(|name| format!("did you mean `{name}`?"))
        };
        self.context
            .fault(&path, entry.line, format!("unknown key `{shown}`"), hint);
    }

    fn find(&self, key: &str) -> Option<&'a MappingEntry> {
        self.entries.iter().find(|entry| entry.key == self.key(key).name)
    }

    fn key(&self, name: &str) -> &'static Key {
        self.keys.find(name).expect("readers ask for keys of the schema")
    }

    /// Is the key written, whatever its value?
    pub(super) fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// Is this section itself written?
    pub(super) fn present(&self) -> bool {
        self.present
    }

    pub(super) fn field(&self, key: &str) -> Option<Field<'a>> {
        self.find(key).map(|entry| Field {
            context: self.context,
            path: join(&self.path, key),
            line: entry.node.line.or(entry.line),
            node: &entry.node,
            kind: &self.key(key).kind,
        })
    }

    /// As [`Section::field`]; that it is missing is a fault.
    pub(super) fn required(&self, key: &str) -> Option<Field<'a>> {
        let field = self.field(key);
        if field.is_none() && !self.broken {
            let path = join(&self.path, key);
            self.context
                .fault(&path, self.line, format!("`{key}` is missing"), None);
        }
        field
    }

    /// A section below this one; one that is not written has no keys.
    pub(super) fn section(&self, key: &str) -> Section<'a> {
        let entry = self.find(key);
        let keys = keys_of(&self.key(key).kind);
        let line = entry.map_or(self.line, |entry| entry.line);
        Self::open(
            self.context,
            join(&self.path, key),
            line,
            entry.map(|entry| &entry.node),
            keys,
        )
    }

    /// The number under a key that has a default.
    pub(super) fn number(&self, key: &str) -> u32 {
        let written = self.field(key).and_then(|field| field.number());
        written.unwrap_or_else(|| match self.key(key).otherwise {
            Otherwise::Number(default) => default,
            _ => unreachable!("the schema has a default for {key}"),
        })
    }

    /// The time under a key that has a default.
    pub(super) fn duration(&self, key: &str) -> Duration {
        let written = self.field(key).and_then(|field| field.duration());
        written.unwrap_or_else(|| self.default_duration(key))
    }

    /// As [`Section::duration`], with `0` for off, which is `None`.
    pub(super) fn duration_or_off(&self, key: &str) -> Option<Duration> {
        Some(self.duration(key)).filter(|duration| !duration.is_zero())
    }

    pub(super) fn default_duration(&self, key: &str) -> Duration {
        match self.key(key).otherwise {
            Otherwise::Time(default) => default,
            _ => unreachable!("the schema has a default for {key}"),
        }
    }

    /// True or false, under a key that has a default.
    pub(super) fn truth(&self, key: &str) -> bool {
        let written = self.field(key).and_then(|field| field.truth());
        written.unwrap_or_else(|| match self.key(key).otherwise {
            Otherwise::Truth(default) => default,
            _ => unreachable!("the schema has a default for {key}"),
        })
    }

    /// As [`Field::one_of`], under a key that has a default.
    pub(super) fn one_of<T: Copy>(&self, key: &str, words: &[(&str, Option<T>)]) -> Option<T> {
        if let Some(field) = self.field(key) {
            return field.one_of(words);
        }
        let default = self.default_text(key);
        words.iter().find(|(word, _)| *word == default)?.1
    }

    pub(super) fn default_text(&self, key: &str) -> &'static str {
        match self.key(key).otherwise {
            Otherwise::Text(default) => default,
            _ => unreachable!("the schema has a default for {key}"),
        }
    }

    /// The text under a key that has a default; `None` after a fault.
    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        match self.field(key) {
            Some(field) => field.text(),
            None => Some(self.default_text(key)),
        }
    }

    /// Both keys or neither.
    pub(super) fn pair(&self, one: &str, other: &str) -> Option<(Field<'a>, Field<'a>)> {
        match (self.field(one), self.field(other)) {
            (Some(one), Some(other)) => Some((one, other)),
            (Some(field), None) => {
                field.fault(format!("`{one}` needs `{other}` beside it"));
                None
            }
            (None, Some(field)) => {
                field.fault(format!("`{other}` needs `{one}` beside it"));
                None
            }
            (None, None) => None,
        }
    }

    pub(super) fn context(&self) -> &'a Context<'a> {
        self.context
    }

    pub(super) fn fault(&self, message: impl Into<String>) {
        self.context.fault(&self.path, self.line, message.into(), None);
    }
}

/// One value, with its place.
#[derive(Clone)]
pub(super) struct Field<'a> {
    pub(super) context: &'a Context<'a>,
    pub(super) path: String,
    pub(super) line: Option<usize>,
    node: &'a Node,
    kind: &'static ValueKind,
}

impl<'a> Field<'a> {
    pub(super) fn fault(&self, message: impl Into<String>) {
        self.context.fault(&self.path, self.line, message.into(), None);
    }

    pub(super) fn fault_with(&self, message: impl Into<String>, hint: impl Into<String>) {
        self.context
            .fault(&self.path, self.line, message.into(), Some(hint.into()));
    }

    fn expected(&self, what: impl Display) {
        match &self.node.value {
            Value::Null => self.fault(format!("has no value, expected {what}")),
            other => self.fault(format!("expected {what}, found {}", other.kind())),
        }
    }

    /// The text as it is written, if it is one; nothing is reported.
    pub(super) fn written_text(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// For what is legal, but probably not meant.
    pub(super) fn warn(&self, warning: impl Display) {
        self.context.warn(format!("{}: {warning}", self.path));
    }

    /// Text that is not empty, without control characters and not longer than the schema has it.
    pub(super) fn text(&self) -> Option<&'a str> {
        let most = self.kind.text().unwrap_or(LONGEST_TEXT);
        match &self.node.value {
            Value::Text(text) if text.trim().is_empty() => self.fault("must not be empty"),
            Value::Text(text) if text.len() > most => self.fault(format!("is longer than {most} bytes")),
            Value::Text(text) if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') => {
                self.fault("must not contain control characters");
            }
            Value::Text(text) => return Some(text),
            Value::Integer(_) | Value::Float(_) | Value::Bool(_) => {
                let kind = self.node.value.kind();
                self.fault_with(format!("expected text, found {kind}"), "put it in quotes");
            }
            _ => self.expected("text"),
        }
        None
    }

    /// A name of ours: it becomes a label of metrics and a part of URLs.
    pub(super) fn name(&self) -> Option<&'a str> {
        let name = self.text()?;
        if let Err(message) = check_name(name) {
            self.fault(message);
            return None;
        }
        Some(name)
    }

    /// One of a few words; a word whose value is `None` belongs to a feature that does not work yet.
    pub(super) fn one_of<T: Copy>(&self, words: &[(&str, Option<T>)]) -> Option<T> {
        debug_assert!(
            words
                .iter()
                .filter_map(|(word, value)| value.map(|_| *word))
                .eq(self.kind.words().unwrap_or_default().iter().copied()),
            "{}: other words than in the schema",
            self.path
        );
        // `min_version: 1.2` without quotes is a number, and clear.
        let number;
        let word = match &self.node.value {
            Value::Text(text) => text.as_str(),
            Value::Float(value) => {
                number = value.to_string();
                &number
            }
            _ => {
                self.expected(listed(words));
                return None;
            }
        };
        match words.iter().find(|(known, _)| *known == word) {
            Some((_, Some(value))) => return Some(*value),
            Some((_, None)) => {
                self.fault(format!("`{word}` is not supported yet; use {}", listed(words)));
            }
            None => {
                let message = format!("expected {}, found `{}`", listed(words), shown_key(word));
                match closest(word, words.iter().map(|(known, _)| *known)) {
                    Some(meant) => self.fault_with(message, format!("did you mean `{meant}`?")),
                    None => self.fault(message),
                }
            }
        }
        None
    }

    /// Text, a number, true or false: as JSON has it.
    pub(super) fn scalar(&self) -> Option<serde_json::Value> {
        Some(match &self.node.value {
            Value::Bool(value) => (*value).into(),
            Value::Integer(value) => {
                let Ok(value) = i64::try_from(*value) else {
                    self.fault("is too large a number");
                    return None;
                };
                value.into()
            }
            Value::Float(value) => (*value).into(),
            Value::Text(_) => self.text()?.into(),
            Value::Null | Value::List(_) | Value::Map(_) => {
                self.expected("text, a number, true or false");
                return None;
            }
        })
    }

    /// True or false.
    pub(super) fn truth(&self) -> Option<bool> {
        let Value::Bool(value) = &self.node.value else {
            self.expected("true or false");
            return None;
        };
        Some(*value)
    }

    /// A whole number within its bounds.
    pub(super) fn number(&self) -> Option<u32> {
        let ValueKind::Number { least, most } = *self.kind else {
            unreachable!("{}: not a number by the schema", self.path);
        };
        let Value::Integer(value) = &self.node.value else {
            self.expected(format_args!("a whole number from {least} to {most}"));
            return None;
        };
        let number = u32::try_from(*value)
            .ok()
            .filter(|number| (least..=most).contains(number));
        if number.is_none() {
            self.fault(format!("must be from {least} to {most}"));
        }
        number
    }

    /// A time within its bounds: `100ms`, `1s`, `2m`, `1h`, or `0` where they allow it.
    pub(super) fn duration(&self) -> Option<Duration> {
        let ValueKind::Time { least, most, or_off } = *self.kind else {
            unreachable!("{}: not a time by the schema", self.path);
        };
        self.duration_within(least, most, or_off)
    }

    /// As [`Self::duration`], where something else in the file raises the lower bound.
    pub(super) fn duration_from(&self, least: Duration) -> Option<Duration> {
        let ValueKind::Time { most, .. } = *self.kind else {
            unreachable!("{}: not a time by the schema", self.path);
        };
        self.duration_within(least, most, false)
    }

    fn duration_within(&self, least: Duration, most: Duration, or_off: bool) -> Option<Duration> {
        let duration = self.any_duration()?;
        if (least..=most).contains(&duration) || or_off && duration.is_zero() {
            return Some(duration);
        }
        let or = if or_off { ", or 0 for off" } else { "" };
        let (least, most) = (shown_duration(least), shown_duration(most));
        self.fault(format!("must be from {least} to {most}{or}"));
        None
    }

    /// A number of bytes within its bounds: `512kB`, `16MiB`.
    pub(super) fn size(&self) -> Option<u64> {
        let ValueKind::Size { least, most } = *self.kind else {
            unreachable!("{}: not a size by the schema", self.path);
        };
        let size = match &self.node.value {
            Value::Text(text) => parse_size(text),
            Value::Integer(_) | Value::Float(_) => None,
            _ => {
                self.expected("a size such as `16MiB`");
                return None;
            }
        };
        match size {
            Some(size) if (least..=most).contains(&size) => return Some(size),
            Some(_) => {
                let (least, most) = (shown_size(least), shown_size(most));
                self.fault(format!("must be from {least} to {most}"));
            }
            None => self.fault_with(
                "is not a size",
                "a whole number and a unit, B, kB, MB, GB or TB (PostgreSQL's, powers of 1024) or KiB, MiB, GiB or TiB",
            ),
        }
        None
    }

    fn any_duration(&self) -> Option<Duration> {
        let duration = match &self.node.value {
            Value::Integer(0) => Some(Duration::ZERO),
            Value::Text(text) => parse_duration(text),
            Value::Integer(_) | Value::Float(_) => None,
            _ => {
                self.expected("a time such as `5s`");
                return None;
            }
        };
        if duration.is_none() {
            self.fault_with(
                "is not a time",
                "a whole number and a unit, ms, s, m or h, as in `500ms` or `5s`",
            );
        }
        duration
    }

    pub(super) fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    /// The elements of a list, also of one that has too few or too many, which is a fault.
    pub(super) fn list(&self) -> Vec<Field<'a>> {
        let Some((kind, least, most)) = self.kind.list() else {
            unreachable!("{}: not a list by the schema", self.path);
        };
        let Value::List(nodes) = &self.node.value else {
            self.expected("a list");
            return Vec::new();
        };
        if nodes.len() < least {
            self.fault("must not be empty");
        }
        if nodes.len() > most {
            self.fault(format!(
                "has {} elements, at most {most} are allowed",
                nodes.len()
            ));
        }
        let field = |(index, node): (usize, &'a Node)| Field {
            context: self.context,
            path: format!("{}[{index}]", self.path),
            line: node.line.or(self.line),
            node,
            kind,
        };
        nodes.iter().enumerate().map(field).collect()
    }

    /// Per second.
    pub(super) fn most_rate(&self) -> u32 {
        match *self.kind {
            ValueKind::Rate { most } => most,
            _ => unreachable!("{}: not a rate by the schema", self.path),
        }
    }

    /// The bounds of a secret in a file, in bytes.
    pub(super) fn secret_size(&self) -> (usize, u64) {
        match *self.kind {
            ValueKind::Secret { least, most } => (least, most),
            _ => unreachable!("{}: not a secret by the schema", self.path),
        }
    }

    /// A map whose keys are names chosen by the operator; not empty. Faulty and repeated names are reported and
    /// left out.
    pub(super) fn named(&self) -> Vec<(&'a str, Field<'a>)> {
        let ValueKind::Named { of: kind, most } = *self.kind else {
            unreachable!("{}: not a map of names by the schema", self.path);
        };
        let Value::Map(entries) = &self.node.value else {
            self.expected("a map of names");
            return Vec::new();
        };
        if entries.is_empty() {
            self.fault("must not be empty");
        }
        if let Some(most) = most.filter(|most| entries.len() > *most) {
            self.fault(format!("has {} names, at most {most} are allowed", entries.len()));
        }
        let mut named: Vec<(&str, Field<'_>)> = Vec::new();
        for entry in entries {
            let path = join(&self.path, &shown_key(&entry.key));
            let problem = if named.iter().any(|(name, _)| *name == entry.key) {
                Err(format!("`{}` stands here twice", shown_key(&entry.key)))
            } else {
                check_name(&entry.key)
            };
            if let Err(message) = problem {
                self.context.fault(&path, entry.line, message, None);
                continue;
            }
            let field = Field {
                context: self.context,
                path,
                line: entry.line,
                node: &entry.node,
                kind,
            };
            named.push((&entry.key, field));
        }
        named
    }

    /// This value as a map with fixed keys.
    pub(super) fn section(&self) -> Section<'a> {
        let keys = keys_of(self.kind);
        Section::open(self.context, self.path.clone(), self.line, Some(self.node), keys)
    }
}

fn keys_of(kind: &'static ValueKind) -> &'static Keys {
    match kind {
        ValueKind::Section(keys) => keys,
        _ => unreachable!("readers open what the schema has as a map"),
    }
}

/// The first field of which a key repeats an earlier one is a fault.
pub(super) fn report_repeated<K: PartialEq>(fields: &[(K, Field<'_>)], what: &str) {
    for (index, (key, field)) in fields.iter().enumerate() {
        if let Some((_, first)) = fields[..index].iter().find(|(earlier, _)| earlier == key) {
            field.fault(format!("the same {what} as {}", first.path));
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// A key or word from the file, fit to be printed.
fn shown_key(key: &str) -> String {
    let short: String = key.chars().take(64).collect();
    short.escape_debug().to_string()
}

fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=63).contains(&name.len()) && name.chars().all(fits) {
        Ok(())
    } else {
        Err("a name has 1 to 63 of the characters a-z, A-Z, 0-9, `-`, `_` and `.`".to_owned())
    }
}

/// `a`, `b` or `c`: the words that work.
fn listed<T>(words: &[(&str, Option<T>)]) -> String {
    let known: Vec<String> = words
        .iter()
        .filter(|(_, value)| value.is_some())
        .map(|(word, _)| format!("`{word}`"))
        .collect();
    match known.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}
