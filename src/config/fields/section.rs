//! A map whose keys are fixed.

use std::time::Duration;

use super::{Context, Field, join, shown_key};
use crate::config::model::Words;
use crate::config::schema::{Key, Keys, Otherwise, ValueKind};
use crate::config::spelling::{closest, meant, of_pgbouncer};
use crate::config::tree::{MappingEntry, Node, Value};

/// A map whose keys are fixed.
pub(in crate::config) struct Section<'a> {
    context: &'a Context<'a>,
    path: String,
    line: Option<usize>,
    entries: &'a [MappingEntry],
    keys: &'static Keys,
    /// It is not a map at all. This was reported; missing keys are not.
    broken: bool,
    /// The key is in the file.
    present: bool,
    /// Keys that do not belong here, with the one that is probably meant.
    unknown: Vec<Option<&'static str>>,
}

impl<'a> Section<'a> {
    pub(in crate::config) fn root(context: &'a Context<'a>, node: &'a Node, keys: &'static Keys) -> Self {
        Self::open(context, String::new(), node.line, Some(node), keys)
    }

    /// A section that is not written: every key has its default.
    pub(in crate::config) fn unwritten(context: &'a Context<'a>, keys: &'static Keys) -> Self {
        Self::open(context, String::new(), None, None, keys)
    }

    /// Opens the map and reports the keys in it that do not belong there.
    pub(super) fn open(
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
            unknown: Vec::new(),
        };
        match node.map(|node| &node.value) {
            Some(Value::Map(entries)) => section.entries = entries,
            // A section whose keys are all commented out.
            Some(Value::Null) | None => {}
            Some(other) => {
                section.broken = true;
                section.error(format!("expected a map of keys, found {}", other.kind()));
            }
        }
        let entries = section.entries;
        for (index, entry) in entries.iter().enumerate() {
            section.check_key(entry, &entries[..index]);
        }
        section
    }

    fn check_key(&mut self, entry: &MappingEntry, before: &[MappingEntry]) {
        let shown = shown_key(&entry.key);
        let path = join(&self.path, &shown);
        if let Some(first) = before.iter().find(|earlier| earlier.key == entry.key) {
            let message = match first.line {
                Some(line) => format!("`{shown}` is written twice, first on line {line}"),
                None => format!("`{shown}` is written twice"),
            };
            let hint = "remove one of the two".to_owned();
            self.context.error(&path, entry.line, message, Some(hint));
            return;
        }
        if self.keys.find(&entry.key).is_some() {
            return;
        }
        let glued = entry.key.split_once(':');
        let is_known = |key: &str| self.keys.find(key).is_some();
        let glued = glued.and_then(|(key, _)| self.keys.find(key));
        let (hint, meant) = if entry.key == "<<" {
            let hint = "merge keys are not supported; write the keys out".to_owned();
            (Some(hint), None)
        } else if let Some(key) = glued {
            (
                Some("a blank is missing after the colon".to_owned()),
                Some(key.name),
            )
        } else if let Some(place) = of_pgbouncer(&entry.key, &self.path, is_known) {
            let meant = self.keys.find(&place).map(|key| key.name);
            (Some(format!("did you mean `{place}`?")), meant)
        } else {
            let names = || self.keys.names();
            let meant = closest(&entry.key, names()).or_else(|| meant(&entry.key, names()));
            let place = meant.map(str::to_owned).or_else(|| self.below(&entry.key));
            (place.map(|place| format!("did you mean `{place}`?")), meant)
        };
        self.context
            .error(&path, entry.line, format!("unknown key `{shown}`"), hint);
        self.unknown.push(meant);
    }

    /// The only section here that has this key.
    fn below(&self, key: &str) -> Option<String> {
        let sections = self.keys.names().filter(|name| match self.key(name).kind {
            ValueKind::Section(keys) => keys.find(key).is_some(),
            _ => false,
        });
        let found: Vec<&str> = sections.collect();
        match found.as_slice() {
            [section] => Some(format!("{section}.{key}")),
            _ => None,
        }
    }

    /// Some key does not belong here. That was reported.
    pub(in crate::config) fn has_unknown(&self) -> bool {
        !self.unknown.is_empty()
    }

    fn find(&self, key: &str) -> Option<&'a MappingEntry> {
        self.entries.iter().find(|entry| entry.key == self.key(key).name)
    }

    fn key(&self, name: &str) -> &'static Key {
        self.keys.find(name).expect("readers ask for keys of the schema")
    }

    /// Is the key written, with any value?
    pub(in crate::config) fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// Is this section itself written?
    pub(in crate::config) fn present(&self) -> bool {
        self.present
    }

    /// Is it written, and not a map? That was reported.
    pub(in crate::config) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Every key that is written, in the order of the file. `None`: it does not belong here.
    pub(in crate::config) fn fields(&self) -> impl Iterator<Item = (&'a str, Option<Field<'a>>)> {
        self.entries.iter().map(|entry| {
            let known = self.keys.find(&entry.key);
            (&*entry.key, known.and_then(|key| self.field(key.name)))
        })
    }

    pub(in crate::config) fn field(&self, key: &str) -> Option<Field<'a>> {
        self.find(key).map(|entry| Field {
            context: self.context,
            path: join(&self.path, key),
            line: entry.node.line.or(entry.line),
            node: &entry.node,
            kind: &self.key(key).kind,
        })
    }

    /// As [`Section::field`]; that it is missing is an error.
    pub(in crate::config) fn required(&self, key: &str) -> Option<Field<'a>> {
        let field = self.field(key);
        // A misspelt key is one fault, not two.
        let is_misspelt = self.unknown.contains(&Some(self.key(key).name));
        if field.is_none() && !self.broken && !is_misspelt {
            let path = join(&self.path, key);
            self.context
                .error(&path, self.line, format!("`{key}` is missing"), None);
        }
        field
    }

    /// A section below this one; one that is not written has no keys.
    pub(in crate::config) fn section(&self, key: &str) -> Section<'a> {
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
    pub(in crate::config) fn number(&self, key: &str) -> u32 {
        let written = self.field(key).and_then(|field| field.number());
        written.unwrap_or_else(|| match self.key(key).otherwise {
            Otherwise::Number(default) => default,
            _ => unreachable!("the schema has a default for {key}"),
        })
    }

    /// The time under a key that has a default.
    pub(in crate::config) fn duration(&self, key: &str) -> Duration {
        let written = self.field(key).and_then(|field| field.duration());
        written.unwrap_or_else(|| self.default_duration(key))
    }

    /// As [`Section::duration`], with `0` for off, which is `None`.
    pub(in crate::config) fn duration_or_off(&self, key: &str) -> Option<Duration> {
        Some(self.duration(key)).filter(|duration| !duration.is_zero())
    }

    pub(in crate::config) fn default_duration(&self, key: &str) -> Duration {
        match self.key(key).otherwise {
            Otherwise::Time(default) => default,
            _ => unreachable!("the schema has a default for {key}"),
        }
    }

    /// The size under a key that has a default.
    pub(in crate::config) fn size(&self, key: &str) -> u64 {
        let written = self.field(key).and_then(|field| field.size());
        written.unwrap_or_else(|| match self.key(key).otherwise {
            Otherwise::Size(default) => default,
            _ => unreachable!("the schema has a default for {key}"),
        })
    }

    /// True or false, under a key that has a default.
    pub(in crate::config) fn truth(&self, key: &str) -> bool {
        let written = self.field(key).and_then(|field| field.truth());
        written.unwrap_or_else(|| match self.key(key).otherwise {
            Otherwise::Truth(default) => default,
            _ => unreachable!("the schema has a default for {key}"),
        })
    }

    /// As [`Field::one_of`], under a key that has a default.
    pub(in crate::config) fn one_of<T: Words>(&self, key: &str) -> Option<T> {
        match self.field(key) {
            Some(field) => field.one_of(),
            None => Some(self.default_word(key)),
        }
    }

    /// As [`Self::one_of`]; after an error it is the default.
    pub(in crate::config) fn word<T: Words>(&self, key: &str) -> T {
        self.one_of(key).unwrap_or_else(|| self.default_word(key))
    }

    pub(in crate::config) fn default_word<T: Words>(&self, key: &str) -> T {
        T::from_word(self.default_text(key))
            .unwrap_or_else(|| unreachable!("the default of {key} is one of its words"))
    }

    pub(in crate::config) fn default_text(&self, key: &str) -> &'static str {
        match self.key(key).otherwise {
            Otherwise::Text(default) => default,
            _ => unreachable!("the schema has a default for {key}"),
        }
    }

    /// The text under a key that has a default; `None` after an error.
    pub(in crate::config) fn text(&self, key: &str) -> Option<&'a str> {
        match self.field(key) {
            Some(field) => field.text(),
            None => Some(self.default_text(key)),
        }
    }

    /// Both keys or neither.
    pub(in crate::config) fn pair(&self, one: &str, other: &str) -> Option<(Field<'a>, Field<'a>)> {
        match (self.field(one), self.field(other)) {
            (Some(one), Some(other)) => Some((one, other)),
            (Some(field), None) => {
                field.error(format!("`{one}` also needs `{other}`"));
                None
            }
            (None, Some(field)) => {
                field.error(format!("`{other}` also needs `{one}`"));
                None
            }
            (None, None) => None,
        }
    }

    pub(in crate::config) fn context(&self) -> &'a Context<'a> {
        self.context
    }

    pub(in crate::config) fn error(&self, message: impl Into<String>) {
        self.context.error(&self.path, self.line, message.into(), None);
    }
}

pub(super) fn keys_of(kind: &'static ValueKind) -> &'static Keys {
    match kind {
        ValueKind::Section(keys) => keys,
        _ => unreachable!("readers open what the schema has as a map"),
    }
}
