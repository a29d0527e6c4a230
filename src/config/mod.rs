//! Configuration: a YAML file becomes a validated model, or a list of every fault in it.
//!
//! Guarantees: unknown keys are refused; a key whose feature does not work yet is refused; everything that is
//! accepted has an effect; all faults are reported together, each with its path and line. What would fail in
//! service (an unreadable certificate, a key that does not match, a world-readable secret) is a fault here.
//! Text of any content, size or depth costs bounded time and memory.
//!
//! Refuses: to know anything of the other rooms, and to take a secret from the command line.
//!
//! The text becomes a tree of values with lines ([`tree`]), compared with the table of all keys ([`schema`]) and
//! converted by readers that go on after a fault ([`section`]) into the [`model`].

pub mod diff;
mod error;
mod fields;
mod files;
mod leaf;
mod model;
mod passphrase;
mod readers;
mod reloaded;
mod replace;
mod schema;
mod secret;
mod spelling;
mod stamps;
#[cfg(test)]
mod tests;
pub(crate) mod tree;
mod units;
mod warnings;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

pub use error::{ConfigError, ConfigErrors};
pub use files::read_secret;
pub(crate) use files::{Access as FileAccess, without_mark};
pub use model::*;
pub use reloaded::{ReloadedUnit, ReloadedUnits};
pub use replace::{beside, replace_file};
pub use secret::Secret;

use fields::Context;
use readers::Draft;

/// Reads and checks a configuration file and every file it names.
///
/// The file is UTF-8 and at most 1 MiB. Relative names in it start from its own directory.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    match files::read_text(path) {
        Ok(text) => parse(path, &text),
        Err(message) => {
            let file = Arc::from(path);
            Err(ConfigErrors::new(vec![ConfigError {
                file,
                path: String::new(),
                line: None,
                message,
                hint: None,
            }]))
        }
    }
}

/// As [`load`], for text that was read already. `path` is shown in faults, and its directory is where relative
/// file names start.
pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigErrors> {
    parse_at(path, text, unix_now(), &|name| std::env::var_os(name))
}

/// Reads again the files a configuration names, by the text it was made of: what is in them may have changed, what is
/// asked for has not. Each part of it is good or not by itself. Blocks for as long as files and passphrase commands do.
pub fn reread(config: &Config) -> ReloadedUnits {
    reread_at(config, unix_now(), &|name| std::env::var_os(name))
}

/// Has the text of the configuration file itself changed since it was read? `Err` is a sentence: it cannot be read.
pub fn is_edited(config: &Config) -> Result<bool, String> {
    files::read_text(&config.path).map(|text| *text != *config.origin.text)
}

/// The configuration's JSON Schema, draft 2020-12. What it accepts may still have faults that only [`load`] finds; what it
/// refuses has one.
pub fn json_schema() -> serde_json::Value {
    schema::json::schema()
}

/// Unix seconds.
fn unix_now() -> i64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    i64::try_from(now).unwrap_or(i64::MAX)
}

/// [`parse`] with the time (Unix seconds) and the environment as arguments.
fn parse_at(
    path: &Path,
    text: &str,
    now: i64,
    environment: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Config, ConfigErrors> {
    let context = Context::new(path, now, environment);
    let config = readers::read(&context, text).and_then(|draft| draft.finish(path, text));
    let faults = context.faults.into_inner();
    match config {
        Some(mut config) if faults.is_empty() => {
            config.warnings = context.warnings.into_inner();
            config.warnings.extend(warnings::of(&config));
            config.origin.files = context.files.into_inner();
            Ok(config)
        }
        _ => Err(ConfigErrors::new(
            faults.into_iter().map(|(_, fault)| fault).collect(),
        )),
    }
}

fn reread_at(config: &Config, now: i64, environment: &dyn Fn(&str) -> Option<OsString>) -> ReloadedUnits {
    let context = Context::new(&config.path, now, environment);
    let draft = readers::read(&context, &config.origin.text);
    let mut faults: BTreeMap<ReloadUnit, Vec<ConfigError>> = BTreeMap::new();
    for (part, fault) in context.faults.into_inner() {
        faults.entry(part).or_default().push(fault);
    }
    let mut parts: BTreeMap<ReloadUnit, Result<ReloadedUnit, ConfigErrors>> = draft
        .into_iter()
        .flat_map(Draft::materials)
        .filter(|(part, _)| !faults.contains_key(part))
        .map(|(part, material)| (part, Ok(material)))
        .collect();
    parts.extend(
        faults
            .into_iter()
            .map(|(part, faults)| (part, Err(ConfigErrors::new(faults)))),
    );
    ReloadedUnits {
        parts,
        files: context.files.into_inner(),
        warnings: context.warnings.into_inner(),
    }
}
