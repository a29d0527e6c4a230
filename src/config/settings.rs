//! Every key with its value, for people: what the file says, and what counts where it says nothing.
//!
//! Secrets are never part of it: a key that names a file shows the name, and a command that prints
//! a passphrase is left out, because it may contain one.

use std::fmt::Write as _;
use std::path::PathBuf;

use super::model::Config;
use super::schema::{self, DEFAULT_LISTENERS, DEFAULT_ROUTES, Key, Keys, Otherwise, ValueKind};
use super::tree::{self, MappingEntry, Node, Value};
use super::units::{shown_duration, shown_size};

/// What stands for a value that is not shown.
const HIDDEN: &str = "…";

/// Keys whose values may contain a secret.
const HIDDEN_KEYS: [&str; 2] = ["passphrase_command", "sslpassphrase_command"];

/// A key of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// As `listeners[0].address`.
    pub key: String,
    /// As it is written, or the default; `None`: nothing counts.
    pub value: Option<String>,
    /// `None` if it has none.
    pub default: Option<String>,
    /// The line of the file; `None` if the key is not written.
    pub line: Option<usize>,
    /// The file says it.
    pub is_written: bool,
}

impl Config {
    /// All keys, in the order of the documentation. It reads the text of the configuration again,
    /// not the file.
    pub fn settings(&self) -> Vec<Setting> {
        let Ok(mut root) = tree::parse(&self.origin.text) else {
            // It was parsed before.
            return Vec::new();
        };
        let defaults = add_defaults(&mut root);
        let mut settings = Settings {
            all: Vec::new(),
            defaults,
        };
        settings.section("", &schema::ROOT, Some(&root));
        let mut all = settings.all;
        for setting in all.iter_mut().filter(|setting| !setting.is_written) {
            if let Some(value) = self.computed(&setting.key) {
                setting.value = Some(value);
            }
        }
        all
    }

    /// The value of a default that depends on something else, if it is known here.
    fn computed(&self, key: &str) -> Option<String> {
        if key == "workers" {
            return Some(self.workers.to_string());
        }
        if key == "console.cluster" {
            return self.console.as_ref().map(|console| console.cluster.to_string());
        }
        let of_route = key.strip_prefix("routes.")?;
        self.routes.values().find_map(|route| {
            let key = of_route.strip_prefix(&*route.name)?.strip_prefix('.')?;
            match key {
                "cluster" => Some(route.cluster.to_string()),
                "resume" => Some(route.resume.to_string()),
                "hold.logins" => Some(route.hold.logins.to_string()),
                "client_address.setting" => Some(route.client_address.setting.to_string()),
                _ => None,
            }
        })
    }

    /// The file that this key names, as it is opened.
    pub(super) fn file_of(&self, key: &str) -> PathBuf {
        let named = self.settings().into_iter().find(|setting| setting.key == key);
        let name = named.and_then(|setting| setting.value).unwrap_or_default();
        match self.path.parent() {
            Some(directory) => directory.join(name),
            None => name.into(),
        }
    }
}

/// Routes and listeners that count if the file has none. Returns the names of these sections.
fn add_defaults(root: &mut Node) -> Vec<&'static str> {
    let Value::Map(entries) = &mut root.value else {
        return Vec::new();
    };
    let is_written = |entries: &[MappingEntry], key: &str| entries.iter().any(|entry| entry.key == key);
    let mut added = Vec::new();
    if !is_written(entries, "routes") {
        let routes = DEFAULT_ROUTES.map(|(name, target)| {
            let targets = node(Value::List(vec![text(&target.to_string())]));
            entry(name, node(Value::Map(vec![entry("targets", targets)])))
        });
        entries.push(entry("routes", node(Value::Map(routes.into()))));
        added.push("routes");
    }
    if !is_written(entries, "listeners") {
        let listeners = DEFAULT_LISTENERS.map(|(name, address)| {
            node(Value::Map(vec![
                entry("name", text(name)),
                entry("address", text(address)),
                entry("route", text(name)),
            ]))
        });
        entries.push(entry("listeners", node(Value::List(listeners.into()))));
        added.push("listeners");
    }
    added
}

fn node(value: Value) -> Node {
    Node { line: None, value }
}

fn text(text: &str) -> Node {
    node(Value::Text(text.to_owned()))
}

fn entry(key: &str, node: Node) -> MappingEntry {
    MappingEntry {
        key: key.to_owned(),
        line: None,
        node,
    }
}

struct Settings {
    all: Vec<Setting>,
    /// Sections at the top that the file does not have.
    defaults: Vec<&'static str>,
}

/// What is written under a key.
#[derive(Clone, Copy)]
struct Written<'a> {
    line: Option<usize>,
    node: &'a Node,
}

impl Settings {
    fn section(&mut self, path: &str, keys: &'static Keys, node: Option<&Node>) {
        for key in keys.0 {
            let written = node.and_then(|node| find(node, key.name));
            self.key(&join(path, key.name), key, written);
        }
    }

    fn key(&mut self, path: &str, key: &'static Key, written: Option<Written<'_>>) {
        match (section_of(&key.kind), written) {
            (Some(keys), Some(written)) if is_map(written.node) => {
                self.section(path, keys, Some(written.node));
            }
            (Some(keys), None) if matches!(key.otherwise, Otherwise::Below) => {
                self.section(path, keys, None);
            }
            (None, Some(written)) if self.below(path, &key.kind, written) => {}
            _ => self.leaf(path, key, written),
        }
    }

    /// Maps of names and lists of sections. `false`: it is something else.
    fn below(&mut self, path: &str, kind: &'static ValueKind, written: Written<'_>) -> bool {
        if let (ValueKind::Named { of, .. }, Value::Map(entries)) = (kind, &written.node.value) {
            let Some(keys) = section_of(of) else {
                return false;
            };
            for entry in entries {
                self.section(&join(path, &entry.key), keys, Some(&entry.node));
            }
            return true;
        }
        let elements = kind.list().and_then(|(of, ..)| section_of(of));
        if let (Some(keys), Value::List(nodes)) = (elements, &written.node.value) {
            for (index, node) in nodes.iter().enumerate() {
                self.section(&format!("{path}[{index}]"), keys, Some(node));
            }
            return true;
        }
        false
    }

    fn leaf(&mut self, path: &str, key: &'static Key, written: Option<Written<'_>>) {
        let default = default_of(key);
        let is_default = |section: &str| {
            path.strip_prefix(section)
                .is_some_and(|rest| rest.starts_with(['.', '[']))
        };
        let is_written = written.is_some() && !self.defaults.iter().any(|section| is_default(section));
        let value = match written.map(|written| shown(written.node)) {
            Some(value) if HIDDEN_KEYS.contains(&key.name) => value.map(|_| HIDDEN.to_owned()),
            Some(value) => value,
            None => default.clone(),
        };
        self.all.push(Setting {
            key: path.to_owned(),
            value,
            default,
            line: written.and_then(|written| written.node.line.or(written.line)),
            is_written,
        });
    }
}

fn join(path: &str, key: &str) -> String {
    match path {
        "" => key.to_owned(),
        path => format!("{path}.{key}"),
    }
}

fn find<'a>(node: &'a Node, key: &str) -> Option<Written<'a>> {
    let Value::Map(entries) = &node.value else {
        return None;
    };
    let found = entries.iter().find(|entry| entry.key == key)?;
    Some(Written {
        line: found.line,
        node: &found.node,
    })
}

fn is_map(node: &Node) -> bool {
    // A section whose keys are all commented out is null.
    matches!(node.value, Value::Map(_) | Value::Null)
}

fn section_of(kind: &'static ValueKind) -> Option<&'static Keys> {
    match kind {
        ValueKind::Section(keys) => Some(keys),
        ValueKind::Either(kinds) => kinds.iter().find_map(section_of),
        _ => None,
    }
}

fn default_of(key: &Key) -> Option<String> {
    Some(match &key.otherwise {
        Otherwise::Truth(value) => value.to_string(),
        Otherwise::Number(value) => value.to_string(),
        Otherwise::Time(time) => shown_duration(*time),
        Otherwise::Size(size) => shown_size(*size),
        Otherwise::Text(text) => (*text).to_owned(),
        Otherwise::Said(words) => words.replace('`', ""),
        Otherwise::Required | Otherwise::Or(_) | Otherwise::Nothing | Otherwise::Below => return None,
    })
}

/// In one line, as YAML has it in its short form.
fn shown(node: &Node) -> Option<String> {
    let shown_or_null = |node: &Node| shown(node).unwrap_or_else(|| "null".to_owned());
    Some(match &node.value {
        Value::Null => return None,
        Value::Bool(value) => value.to_string(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Text(text) => text.clone(),
        Value::List(nodes) => {
            let nodes: Vec<String> = nodes.iter().map(shown_or_null).collect();
            format!("[{}]", nodes.join(", "))
        }
        Value::Map(entries) => {
            let mut text = String::from("{");
            for (index, entry) in entries.iter().enumerate() {
                let comma = if index > 0 { ", " } else { "" };
                // Writing to a string cannot fail.
                let _ = write!(text, "{comma}{}: {}", entry.key, shown_or_null(&entry.node));
            }
            text.push('}');
            text
        }
    })
}
