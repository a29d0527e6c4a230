//! Every key there is: what may stand under it, what holds without it, and what it means.
//!
//! The one source of the readers' names, bounds and defaults, of the JSON Schema that `trunkline schema` prints, and of
//! the tables in `docs/configuration.md`.

mod clients;
mod clusters;
pub(super) mod json;
pub(super) mod kind;
#[cfg(test)]
pub(super) mod markdown;
mod router;
mod routes;

use std::time::Duration;

pub(super) use clients::LISTENER;
pub(super) use kind::ValueKind;
pub(super) use router::{DEFAULT_LISTENERS, DEFAULT_ROUTES, ROOT};
pub(super) use routes::ROUTE;

/// The keys of one kind of map, in the order of the documentation.
#[derive(Debug)]
pub(super) struct Keys(pub(super) &'static [Key]);

#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: ValueKind,
    pub(super) otherwise: Otherwise,
    /// In Markdown, as it stands in `docs/configuration.md`.
    pub(super) meaning: &'static str,
}

/// What holds where a key is not written.
#[derive(Debug)]
pub(super) enum Otherwise {
    /// It must be.
    Required,
    /// It or this other key must be, not both.
    Or(&'static str),
    Truth(bool),
    Number(u32),
    Time(Duration),
    Text(&'static str),
    Nothing,
    /// What the map's own keys say.
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
