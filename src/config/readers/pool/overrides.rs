//! `overrides` of a pool: other limits for some users and databases.

use std::sync::Arc;

use super::limits::of_entry;
use crate::config::fields::{Field, Section};
use crate::config::model::{PoolLimits, PoolOverride};

/// An entry, with its place.
pub(super) struct Override<'a> {
    pub(super) section: Section<'a>,
    pub(super) model: PoolOverride,
}

/// Those without an error in their names.
pub(super) fn overrides<'a>(pool: &Section<'a>, limits: &PoolLimits) -> Vec<Override<'a>> {
    let Some(field) = pool.field("overrides") else {
        return Vec::new();
    };
    let mut entries: Vec<(Field<'a>, Override<'a>)> = Vec::new();
    let mut are_all_read = true;
    for field in field.list() {
        match entry(&field, limits) {
            Some(entry) => entries.push((field, entry)),
            None => are_all_read = false,
        }
    }
    for (index, (field, entry)) in entries.iter().enumerate() {
        let (before, after) = (&entries[..index], &entries[index + 1..]);
        if let Some((first, _)) = before
            .iter()
            .find(|(_, first)| covers(&first.model, &entry.model))
        {
            field.error_with_hint(
                format!("is never reached: {} decides for it", first.path),
                "put the entry with fewer matches first, or remove one",
            );
        } else if are_all_read
            && entry.says_nothing()
            && !after
                .iter()
                .any(|(_, other)| overlaps(&other.model, &entry.model))
        {
            field.error_with_hint(
                "changes nothing: it has no limit",
                "write what is different for it, as in `max_connections: 5`",
            );
        }
    }
    entries.into_iter().map(|(_, entry)| entry).collect()
}

fn entry<'a>(field: &Field<'a>, limits: &PoolLimits) -> Option<Override<'a>> {
    let section = field.section();
    if section.is_broken() {
        return None;
    }
    let name = |key| match section.field(key) {
        Some(field) => field.text().map(|name| Some(Arc::from(name))),
        None => Some(None),
    };
    let (user, database): (Option<Option<Arc<str>>>, _) = (name("user"), name("database"));
    let limits = of_entry(&section, limits);
    let (user, database) = (user?, database?);
    if user.is_none() && database.is_none() {
        field.error_with_hint(
            "needs `user`, `database` or both",
            "limits for every user and database are keys of `pool` itself",
        );
        return None;
    }
    let model = PoolOverride {
        user,
        database,
        limits,
    };
    Some(Override { section, model })
}

impl Override<'_> {
    fn says_nothing(&self) -> bool {
        let mut keys = self.section.fields();
        keys.all(|(key, _)| matches!(key, "user" | "database"))
    }
}

/// Whether the first matches whatever the second does.
fn covers(first: &PoolOverride, second: &PoolOverride) -> bool {
    let covers = |first: &Option<Arc<str>>, second: &Option<Arc<str>>| first.is_none() || first == second;
    covers(&first.user, &second.user) && covers(&first.database, &second.database)
}

/// Whether both match some user and database.
fn overlaps(one: &PoolOverride, other: &PoolOverride) -> bool {
    let overlaps =
        |one: &Option<Arc<str>>, other: &Option<Arc<str>>| one.is_none() || other.is_none() || one == other;
    overlaps(&one.user, &other.user) && overlaps(&one.database, &other.database)
}
