//! `console`.

use super::names::{Names, reference, user_names};
use crate::config::fields::Section;
use crate::config::model::Console;

/// `None` where the section is not written.
pub(super) fn console(root: &Section<'_>, clusters: &Names<'_>) -> Option<Console> {
    let section = root.section("console");
    if !section.present() {
        return None;
    }
    let users = section.required("users").map(|field| user_names(&field));
    let operators = section.field("operators").map(|field| {
        let names = user_names(&field);
        if let (Some(names), Some(Some(users))) = (&names, &users) {
            for name in names.iter().filter(|name| !users.contains(name)) {
                field.error(format!("`{name}` is not in `console.users`"));
            }
        }
        names
    });
    let database = section.text("database")?;
    let cluster = match section.field("cluster") {
        Some(field) => reference(&field, clusters, "cluster")?,
        None => clusters.as_ref()?.first()?,
    };
    Some(Console {
        users: users??,
        operators: operators.unwrap_or_else(|| Some(Vec::new()))?,
        database: database.into(),
        cluster: cluster.into(),
    })
}
