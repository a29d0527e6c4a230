//! Names of the server's parameters.

use std::sync::Arc;

use crate::config::fields::{Field, Section, report_repeated};

/// What no session can set, or what means nothing at another time (`transaction_…` too).
const UNRESTORABLE: [&str; 6] = [
    "in_hot_standby",
    "is_superuser",
    "seed",
    "server_encoding",
    "server_version",
    "server_version_num",
];

/// `settings`.
pub(super) fn restored(pool: &Section<'_>) -> Vec<Arc<str>> {
    names(pool, "settings", |name| {
        let cannot =
            UNRESTORABLE.contains(&name) || name.starts_with("transaction_") && name != "transaction_timeout";
        cannot.then_some(("cannot be restored on another connection", None))
    })
}

/// `ignore_startup_parameters`.
pub(super) fn ignored(pool: &Section<'_>) -> Vec<Arc<str>> {
    names(pool, "ignore_startup_parameters", |name| match name {
        "user" | "database" | "replication" => Some(("is no setting: it says what the client wants", None)),
        "client_encoding" => Some((
            "cannot be left out: the server would read the client's text in another encoding",
            None,
        )),
        "application_name" => Some((
            "has no effect: sessions with another `application_name` share connections",
            Some("remove it"),
        )),
        _ if name.starts_with("_pq_.") => Some(("is an option of the protocol", None)),
        _ => None,
    })
}

/// In lower case, as the server compares them.
fn names(
    pool: &Section<'_>,
    key: &str,
    refused: impl Fn(&str) -> Option<(&'static str, Option<&'static str>)>,
) -> Vec<Arc<str>> {
    let mut names = Vec::new();
    for field in pool.field(key).iter().flat_map(Field::list) {
        let Some(name) = field.text().map(str::to_ascii_lowercase) else {
            continue;
        };
        if !is_parameter(&name) {
            field.error_with_hint(
                "is not the name of a parameter",
                "as in `search_path` or `app.tenant`",
            );
            continue;
        }
        match refused(&name) {
            None => {}
            Some((message, None)) => field.error(message),
            Some((message, Some(hint))) => field.error_with_hint(message, hint),
        }
        names.push((name, field));
    }
    report_repeated(&names, "name");
    names.into_iter().map(|(name, _)| Arc::from(name)).collect()
}

/// One identifier, or several with dots between.
fn is_parameter(name: &str) -> bool {
    let begins = |c: char| c.is_ascii_alphabetic() || c == '_' || !c.is_ascii();
    let goes_on = |c: char| begins(c) || c.is_ascii_digit() || c == '$';
    name.split('.')
        .all(|part| part.starts_with(begins) && part.chars().all(goes_on))
}
