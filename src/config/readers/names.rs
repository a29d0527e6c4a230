//! Names that the file gives, and references to them.

use crate::config::fields::{Field, report_repeated};

/// The names given by the file, whether or not what they name is without error.
pub(super) type Names<'a> = Option<Vec<&'a str>>;

/// A name that must be one of `names`; with `None` they are unknown, and any will do.
pub(super) fn reference<'a>(field: &Field<'a>, names: &Names<'_>, what: &str) -> Option<&'a str> {
    let name = field.name()?;
    match names {
        Some(names) if !names.contains(&name) => {
            field.error_with_hint(
                format!("there is no {what} `{name}`"),
                format!("the names are: {}", names.join(", ")),
            );
            None
        }
        _ => Some(name),
    }
}

/// A list of names, none of them twice.
pub(super) fn user_names(field: &Field<'_>) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut whole = true;
    for field in field.list() {
        match field.text() {
            Some(name) => names.push((name.to_owned(), field)),
            None => whole = false,
        }
    }
    report_repeated(&names, "user");
    whole.then(|| names.into_iter().map(|(name, _)| name).collect())
}
