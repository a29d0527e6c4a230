//! What concerns the router as a whole: `limits`, `log`, `shutdown`, `workers`, `control_socket`
//! and `state_file`.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::admission;
use crate::config::fields::Section;
use crate::config::model::{Limits, Log, Shutdown};
use crate::config::schema::kind::LONGEST_SOCKET_PATH;

pub(super) fn limits(root: &Section<'_>) -> Limits {
    let section = root.section("limits");
    Limits {
        max_clients: section.number("max_clients"),
        max_pending_logins: section.number("max_pending_logins"),
        per_user: section.number("per_user"),
        per_database: section.number("per_database"),
        per_address: section.number("per_address"),
        connection_rate: admission::rate(&section),
    }
}

pub(super) fn log(root: &Section<'_>) -> Log {
    let section = root.section("log");
    Log {
        level: section.word("level"),
        format: section.word("format"),
    }
}

pub(super) fn shutdown(root: &Section<'_>) -> Shutdown {
    let section = root.section("shutdown");
    Shutdown {
        delay: section.duration("delay"),
        grace: section.duration("grace"),
        handover: section.field("handover").and_then(|field| field.duration()),
    }
}

/// Half of the processors by default: sessions that share a thread share its wake-ups, and read
/// more at a time. The figures are in `docs/benchmarks.md`.
pub(super) fn workers(root: &Section<'_>) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let asked = root.field("workers").and_then(|field| field.number());
    asked.map_or((processors / 2).max(1), |workers| workers as usize)
}

pub(super) fn control_socket(root: &Section<'_>) -> Option<PathBuf> {
    let field = root.field("control_socket")?;
    let path = PathBuf::from(field.text()?);
    if !path.is_absolute() || path.as_os_str().as_bytes().len() > LONGEST_SOCKET_PATH {
        field.error(format!(
            "is not an absolute path of at most {LONGEST_SOCKET_PATH} bytes"
        ));
        return None;
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    // The service manager may create it later.
    if !directory.is_dir() {
        field.warn(format_args!(
            "the directory {} does not exist, and the router does not start without it: with \
             `RuntimeDirectory=trunkline` systemd creates /run/trunkline; otherwise create the directory for the user of the router",
            directory.display()
        ));
    }
    Some(path)
}

/// The file itself need not be there; its directory must.
pub(super) fn state_file(root: &Section<'_>) -> Option<PathBuf> {
    let field = root.field("state_file")?;
    let path = field.path()?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    match directory.map(std::fs::metadata) {
        _ if path.file_name().is_none() || path.is_dir() => {
            field.error(format!("{}: is not the name of a file", path.display()));
        }
        Some(Ok(metadata)) if !metadata.is_dir() => {
            field.error(format!("{}: its directory is not a directory", path.display()));
        }
        Some(Err(error)) => field.error(format!(
            "{}: its directory cannot be used: {error}",
            path.display()
        )),
        Some(Ok(_)) | None => return Some(path),
    }
    None
}
