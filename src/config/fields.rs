//! Typed readers over the tree. Each reports what is wrong and goes on. `None` means that an error
//! was reported, or that the key is not there; a caller may then use any value, because the
//! configuration is refused anyway.

mod context;
mod field;
mod files;
mod key_pair;
mod section;
mod values;

pub(super) use context::Context;
pub(super) use field::Field;
pub(super) use key_pair::{Unlock, key_pair};
pub(super) use section::Section;

/// The first field of which a key repeats an earlier one is an error.
pub(super) fn report_repeated<K: PartialEq>(fields: &[(K, Field<'_>)], what: &str) {
    for (index, (key, field)) in fields.iter().enumerate() {
        if let Some((_, first)) = fields[..index].iter().find(|(earlier, _)| earlier == key) {
            field.error(format!("has the same {what} as {}", first.path));
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// A key or word from the file, fit to be printed.
fn shown_key(key: &str) -> String {
    let short: String = key.chars().take(64).collect();
    short.escape_debug().to_string()
}

fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=63).contains(&name.len()) && name.chars().all(fits) {
        Ok(())
    } else {
        Err("a name has 1 to 63 characters out of a-z, A-Z, 0-9, `-`, `_` and `.`".to_owned())
    }
}
