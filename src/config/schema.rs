//! Every key: its possible values, its default, and its meaning.
//!
//! The one source of the readers' names, limits and defaults, of the JSON Schema that `trunkline
//! schema` prints, and of the tables in `docs/configuration.md`.

mod clients;
mod clusters;
pub(super) mod json;
pub(super) mod kind;
#[cfg(test)]
pub(super) mod markdown;
mod pools;
mod router;
mod routes;

use std::time::Duration;

pub(super) use clients::LISTENER;
pub(super) use kind::ValueKind;
pub(super) use pools::POOL;
pub(super) use router::{DEFAULT_HTTP, DEFAULT_LISTENERS, DEFAULT_ROUTES, ROOT};
pub(super) use routes::ROUTE;

/// The keys of one kind of map, in the order of the documentation.
#[derive(Debug)]
pub(super) struct Keys(pub(super) &'static [Key]);

#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: ValueKind,
    pub(super) otherwise: Otherwise,
    /// In Markdown, as in `docs/configuration.md`.
    pub(super) meaning: &'static str,
}

/// What applies if a key is not written.
#[derive(Debug)]
pub(super) enum Otherwise {
    /// It is required.
    Required,
    /// It or this other key is required, not both.
    Or(&'static str),
    Truth(bool),
    Number(u32),
    Time(Duration),
    /// Bytes.
    Size(u64),
    Text(&'static str),
    Nothing,
    /// The defaults of the map's own keys.
    Below,
    /// In words, in Markdown: it depends.
    Said(&'static str),
}

impl Keys {
    pub(super) fn find(&self, name: &str) -> Option<&'static Key> {
        self.0.iter().find(|key| key.name == name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|key| key.name)
    }
}

impl Key {
    const fn new(name: &'static str, kind: ValueKind, otherwise: Otherwise, meaning: &'static str) -> Self {
        Self {
            name,
            kind,
            otherwise,
            meaning,
        }
    }
}
