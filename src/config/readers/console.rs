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
    let database = section.text("database")?;
    let cluster = match section.field("cluster") {
        Some(field) => reference(&field, clusters, "cluster")?,
        None => clusters.as_ref()?.first()?,
    };
    Some(Console {
        users: users??,
        database: database.into(),
        cluster: cluster.into(),
    })
}
