//! The views of the console: one for each thing the router knows. Their columns are stable, and
//! `docs/console.md` lists them.

mod authentication;
mod inventory;
mod router;
mod sessions;
mod stats;
mod topology;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::super::handles::Handles;
use super::super::operations::Gathered;
use super::super::relation::{Column, Row, Value};

/// A view.
#[derive(Debug)]
pub(super) struct View {
    pub(super) name: &'static str,
    /// One line for `\d` and `SHOW HELP`.
    pub(super) about: &'static str,
    pub(super) columns: &'static [Column],
    rows: Rows,
}

/// Looks, and makes the rows of what it sees. Processes of this router that did not answer are
/// named beside them.
pub(super) type Rows = for<'a> fn(&'a Handles) -> BoxFuture<'a, Gathered<Vec<Row>>>;

impl View {
    pub(super) const fn new(
        name: &'static str,
        about: &'static str,
        columns: &'static [Column],
        rows: Rows,
    ) -> Self {
        Self {
            name,
            about,
            columns,
            rows,
        }
    }

    /// The rows there are now.
    pub(super) fn rows<'a>(&self, handles: &'a Handles) -> BoxFuture<'a, Gathered<Vec<Row>>> {
        (self.rows)(handles)
    }
}

pub(super) static VIEWS: &[View] = &[
    topology::CLUSTERS,
    topology::MEMBERS,
    topology::MEMBER_ROUTES,
    router::ROUTES,
    router::HOLDS,
    sessions::SESSIONS,
    sessions::WAITS,
    sessions::POOLS,
    sessions::SERVER_CONNECTIONS,
    stats::STATS,
    router::ROUTER,
    router::EVENTS,
    inventory::LISTENERS,
    inventory::LIMITS,
    inventory::CERTIFICATES,
    inventory::CONFIG,
    inventory::PEERS,
    authentication::HBA,
    authentication::IDENT,
];

/// The rows of what is known at once.
fn known<'a, T>(all: Vec<T>, row: fn(T) -> Row) -> BoxFuture<'a, Gathered<Vec<Row>>> {
    let rows = all.into_iter().map(row).collect();
    async { Gathered::whole(rows) }.boxed()
}

/// `Null` for what is not there.
fn text(text: Option<String>) -> Value {
    Value::or_null(text, Value::Text)
}

/// `Null` for what is empty.
fn named(text: String) -> Value {
    Value::or_null(Some(text).filter(|text| !text.is_empty()), Value::Text)
}

/// The view of this name.
pub(super) fn find(name: &str) -> Option<&'static View> {
    VIEWS.iter().find(|view| view.name == name)
}
