//! Configuration: a YAML file becomes a validated model, or a list of every error in it.
//!
//! Guarantees: unknown keys are rejected, and so are keys of features that do not work yet. Every
//! accepted key has an effect. All errors are reported together, each with its path and line. What
//! would fail in service (an unreadable certificate, a key that does not match, a world-readable
//! secret) is an error here. Time and memory are limited for text of any content, size or depth.
//!
//! Refuses: to know anything of the other rooms, and to take a secret from the command line.
//!
//! The text becomes a tree of values with lines ([`tree`]), compared with the table of all keys
//! ([`schema`]) and converted by readers that continue after an error ([`fields`], [`readers`])
//! into the [`model`]. Modules use each other in this order, from the model at the bottom up.

mod diff;
mod error;
mod fields;
mod files;
mod in_use;
mod leaf;
mod model;
mod passphrase;
mod readers;
mod reloaded;
mod replace;
mod schema;
mod secret;
mod settings;
mod spelling;
mod stamps;
#[cfg(test)]
mod tests;
pub(crate) mod tree;
mod units;
mod warnings;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

pub use diff::{Change, ChangeKind, ClusterChange, Diff};
pub use error::{ConfigError, ConfigErrors};
pub use files::read_secret;
pub(crate) use files::{FileAccess, without_mark};
pub use in_use::{CertificateFile, CertificateUse};
pub use leaf::CertificateFacts;
pub use model::*;
pub use reloaded::{ReloadedUnit, ReloadedUnits};
pub use replace::{beside, replace_file};
pub use secret::Secret;
pub use settings::Setting;
pub use units::{parse_duration, shown_duration};

use fields::Context;
use files::Unreadable;
use readers::ConfigDraft;

/// Reads and checks a configuration file and every file it names.
///
/// The file is UTF-8 and at most 1 MiB. Relative names in it start from its own directory.
pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
    match files::read_text(path) {
        Ok(text) => parse(path, &text),
        Err(Unreadable { message, hint }) => {
            let file = Arc::from(path);
            Err(ConfigErrors::new(vec![ConfigError {
                file,
                path: String::new(),
                line: None,
                message,
                hint,
            }]))
        }
    }
}

/// How to reach the HTTP port of the router that serves by this file. Looks only at `http`, so that
/// a fault elsewhere in the file does not hide a router that runs.
///
/// # Errors
/// The file is not YAML, or what leads to the port cannot be known: `http.address` has a fault,
/// there is an unknown key in `http` or `http.tls`, or, where `http` is not written, beside it.
pub fn http_access(path: &Path) -> Result<HttpAccess, ConfigErrors> {
    let environment = |name: &str| std::env::var_os(name);
    let context = Context::new(path, unix_now(), &environment);
    let access = match files::read_text(path) {
        Ok(text) => readers::http_access(&context, &text),
        Err(Unreadable { message, hint }) => {
            context.error("", None, message, hint);
            None
        }
    };
    let errors = context.errors.into_inner();
    access.ok_or_else(|| ConfigErrors::new(errors.into_iter().map(|(_, error)| error).collect()))
}

/// The control socket that a configuration names, also if the file has errors: the process that
/// serves by it can be asked.
pub fn find_control_socket(path: &Path) -> Option<PathBuf> {
    let text = files::read_text(path).ok()?;
    // The lines: the text may not be YAML.
    let mut values = text
        .lines()
        .filter_map(|line| line.strip_prefix("control_socket:"));
    let value = values.next()?.trim();
    let quoted = |quote: char| value.strip_prefix(quote)?.split(quote).next();
    let plain = || value.split(" #").next().unwrap_or(value).trim_end();
    let socket = quoted('"').or_else(|| quoted('\'')).unwrap_or_else(plain);
    Some(PathBuf::from(socket)).filter(|socket| socket.is_absolute())
}

/// Whether `file` is read only when the process starts: a reload does not apply a change of it.
pub fn is_read_at_start(config: &Config, file: &Path) -> bool {
    let Ok(tree) = tree::parse(&config.origin.text) else {
        return false;
    };
    let secret = tree.entry("peers").and_then(|peers| peers.entry("secret_file"));
    let directory = config.path.parent().unwrap_or(Path::new(""));
    match secret.map(|secret| &secret.value) {
        Some(tree::Value::Text(name)) => directory.join(name) == file,
        _ => false,
    }
}

/// As [`load`], for text that was read already. `path` is shown in errors, and its directory is
/// where relative file names start.
pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigErrors> {
    parse_at(path, text, unix_now(), &|name| std::env::var_os(name))
}

/// Reads again the files that a configuration names. Their contents may have changed; the text of
/// the configuration is the same. Each unit succeeds or fails separately. Blocks for as long as
/// files and passphrase commands do.
pub fn reread(config: &Config) -> ReloadedUnits {
    reread_at(config, unix_now(), &|name| std::env::var_os(name))
}

/// Has the text of the configuration file itself changed since it was read? `Err` is a sentence: it
/// cannot be read.
pub fn is_edited(config: &Config) -> Result<bool, String> {
    let text = files::read_text(&config.path).map_err(|error| error.message)?;
    Ok(*text != *config.origin.text)
}

/// The configuration's JSON Schema, draft 2020-12. What it accepts may still have errors that only
/// [`load`] finds; what it refuses has one.
pub fn json_schema() -> serde_json::Value {
    schema::json::schema()
}

/// The port of HTTP where the file gives none.
pub(crate) fn default_http_port() -> u16 {
    let port = schema::DEFAULT_HTTP
        .rsplit_once(':')
        .and_then(|(_, port)| port.parse().ok());
    port.unwrap_or_default()
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
    let errors = context.errors.into_inner();
    match config {
        Some(mut config) if errors.is_empty() => {
            config.warnings = context.warnings.into_inner();
            config.warnings.extend(warnings::of(&config));
            config.origin.files = context.files.into_inner();
            Ok(config)
        }
        _ => Err(ConfigErrors::new(
            errors.into_iter().map(|(_, error)| error).collect(),
        )),
    }
}

fn reread_at(config: &Config, now: i64, environment: &dyn Fn(&str) -> Option<OsString>) -> ReloadedUnits {
    let context = Context::new(&config.path, now, environment);
    let draft = readers::read(&context, &config.origin.text);
    let mut errors: BTreeMap<ReloadUnit, Vec<ConfigError>> = BTreeMap::new();
    for (unit, error) in context.errors.into_inner() {
        errors.entry(unit).or_default().push(error);
    }
    let mut units: BTreeMap<ReloadUnit, Result<ReloadedUnit, ConfigErrors>> = draft
        .into_iter()
        .flat_map(ConfigDraft::units)
        .filter(|(unit, _)| !errors.contains_key(unit))
        .map(|(unit, reloaded)| (unit, Ok(reloaded)))
        .collect();
    units.extend(
        errors
            .into_iter()
            .map(|(unit, errors)| (unit, Err(ConfigErrors::new(errors)))),
    );
    ReloadedUnits {
        units,
        files: context.files.into_inner(),
        warnings: context.warnings.into_inner(),
    }
}
