//! One value, with its place in the file: texts, words, lists and maps.

use std::fmt::Display;

use super::section::keys_of;
use super::{Context, Section, check_name, join, shown_key};
use crate::config::model::Words;
use crate::config::schema::ValueKind;
use crate::config::schema::kind::LONGEST_TEXT;
use crate::config::spelling::{closest, meant};
use crate::config::tree::{Node, Value};

/// One value, with its place.
#[derive(Clone)]
pub(in crate::config) struct Field<'a> {
    pub(in crate::config) context: &'a Context<'a>,
    pub(in crate::config) path: String,
    pub(in crate::config) line: Option<usize>,
    pub(super) node: &'a Node,
    pub(super) kind: &'static ValueKind,
}

impl<'a> Field<'a> {
    pub(in crate::config) fn error(&self, message: impl Into<String>) {
        self.context.error(&self.path, self.line, message.into(), None);
    }

    pub(in crate::config) fn error_with_hint(&self, message: impl Into<String>, hint: impl Into<String>) {
        self.context
            .error(&self.path, self.line, message.into(), Some(hint.into()));
    }

    pub(super) fn expected(&self, what: impl Display) {
        match &self.node.value {
            Value::Null => self.error(format!("has no value, expected {what}")),
            other => self.error(format!("expected {what}, found {}", other.kind())),
        }
    }

    /// The text as it is written, if it is one; nothing is reported.
    pub(in crate::config) fn written_text(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// For what is legal, but probably not meant.
    pub(in crate::config) fn warn(&self, warning: impl Display) {
        self.context.warn(format!("{}: {warning}", self.path));
    }

    /// Text that is not empty, without control characters and not longer than the schema has it.
    pub(in crate::config) fn text(&self) -> Option<&'a str> {
        let most = self.kind.text().unwrap_or(LONGEST_TEXT);
        match &self.node.value {
            Value::Text(text) if text.trim().is_empty() => self.error("must not be empty"),
            Value::Text(text) if text.len() > most => self.error(format!("is longer than {most} bytes")),
            Value::Text(text) if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') => {
                self.error("must not contain control characters");
            }
            Value::Text(text) => return Some(text),
            Value::Integer(_) | Value::Float(_) | Value::Bool(_) => {
                let kind = self.node.value.kind();
                self.error_with_hint(format!("expected text, found {kind}"), "put it in quotes");
            }
            _ => self.expected("text"),
        }
        None
    }

    /// A name of ours: it becomes a label of metrics and a part of URLs.
    pub(in crate::config) fn name(&self) -> Option<&'a str> {
        let name = self.text()?;
        if let Err(message) = check_name(name) {
            self.error(message);
            return None;
        }
        Some(name)
    }

    /// One of the words of an enum.
    pub(in crate::config) fn one_of<T: Words>(&self) -> Option<T> {
        debug_assert_eq!(
            self.kind.words(),
            Some(T::WORDS),
            "{}: the schema has other words",
            self.path
        );
        self.word().and_then(T::from_word)
    }

    /// One of the words that the schema has for this value.
    pub(in crate::config) fn word(&self) -> Option<&'static str> {
        let words = self.words();
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
        let known = words.iter().find(|known| **known == word).copied();
        if known.is_some() {
            return known;
        }
        let message = format!("expected {}, found `{}`", listed(words), shown_key(word));
        let known = || words.iter().copied();
        match closest(word, known()).or_else(|| meant(word, known())) {
            Some(meant) => self.error_with_hint(message, format!("did you mean `{meant}`?")),
            None => self.error(message),
        }
        None
    }

    /// Is this text one of the words that the schema has beside other texts?
    pub(in crate::config) fn has_word(&self, text: &str) -> bool {
        self.words().contains(&text)
    }

    fn words(&self) -> &'static [&'static str] {
        self.kind
            .words()
            .unwrap_or_else(|| unreachable!("{}: no words by the schema", self.path))
    }

    pub(in crate::config) fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    /// The elements of a list, also of one that has too few or too many, which is an error.
    pub(in crate::config) fn list(&self) -> Vec<Field<'a>> {
        let Some((kind, least, most)) = self.kind.list() else {
            unreachable!("{}: not a list by the schema", self.path);
        };
        let Value::List(nodes) = &self.node.value else {
            self.expected("a list");
            return Vec::new();
        };
        if nodes.len() < least {
            self.error("must not be empty");
        }
        if nodes.len() > most {
            self.error(format!(
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

    /// A map whose keys are names chosen by the operator; not empty. Invalid and repeated names are
    /// reported and left out.
    pub(in crate::config) fn named(&self) -> Vec<(&'a str, Field<'a>)> {
        let ValueKind::Named { of: kind, most } = *self.kind else {
            unreachable!("{}: not a map of names by the schema", self.path);
        };
        let Value::Map(entries) = &self.node.value else {
            self.expected("a map of names");
            return Vec::new();
        };
        if entries.is_empty() {
            self.error("must not be empty");
        }
        if let Some(most) = most.filter(|most| entries.len() > *most) {
            self.error(format!("has {} names, at most {most} are allowed", entries.len()));
        }
        let mut named: Vec<(&str, Field<'_>)> = Vec::new();
        for entry in entries {
            let path = join(&self.path, &shown_key(&entry.key));
            let problem = if named.iter().any(|(name, _)| *name == entry.key) {
                let hint = "remove or rename one of the two".to_owned();
                Err((
                    format!("`{}` is written twice", shown_key(&entry.key)),
                    Some(hint),
                ))
            } else {
                check_name(&entry.key).map_err(|message| (message, None))
            };
            if let Err((message, hint)) = problem {
                self.context.error(&path, entry.line, message, hint);
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
    pub(in crate::config) fn section(&self) -> Section<'a> {
        let keys = keys_of(self.kind);
        Section::open(self.context, self.path.clone(), self.line, Some(self.node), keys)
    }
}

/// `a`, `b` or `c`.
fn listed(words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match words.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}
