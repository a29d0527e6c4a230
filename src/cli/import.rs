//! `trunkline import FILE`: a configuration of `HAProxy`, `patroni_proxy` or `PgBouncer` becomes
//! one of Trunkline.
//!
//! Guarantees: what is written says the same, as far as there are words for it; everything that has
//! no equivalent, or is different afterwards, is listed with its line and the reason, on standard
//! error and at the end of what is written. What cannot be known from the file is a `TODO`, which
//! `trunkline check` complains about. Secrets in the file are never repeated.
//!
//! Refuses: files that are not text or larger than 1 MiB, and to overwrite a file unasked.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command's answer to the person who runs it"
)]

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod haproxy;
mod notes;
mod patroni_proxy;
mod pgbouncer;
mod write;

use std::fs::File;
use std::io::{Read, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use notes::Notes;
use write::ImportOutcome;

use crate::config;
use crate::wire::text::is_unsafe;

/// A file's size: that of our own configuration.
const MAX_FILE: u64 = 1024 * 1024;

/// What is to be imported, and how.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The file to import.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The program that the file belongs to; without it, the importer recognises it.
    #[arg(long, value_enum, value_name = "PROGRAM")]
    from: Option<InputKind>,
    /// What the listeners do: speak PostgreSQL, or forward bytes as the imported program did.
    #[arg(long, value_enum, default_value = "postgres")]
    mode: Mode,
    /// The file to write; without it, standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Overwrite that file.
    #[arg(long, requires = "output")]
    force: bool,
}

/// Whose configuration it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum InputKind {
    #[value(name = "haproxy")]
    Haproxy,
    #[value(name = "patroni_proxy")]
    PatroniProxy,
    #[value(name = "pgbouncer")]
    PgBouncer,
}

impl InputKind {
    fn program(self) -> &'static str {
        match self {
            Self::Haproxy => "HAProxy",
            Self::PatroniProxy => "patroni_proxy",
            Self::PgBouncer => "PgBouncer",
        }
    }
}

/// What the listeners written do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// TLS and authentication at the router.
    Postgres,
    /// Bytes forwarded; TLS and authentication at the server.
    Tcp,
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}: {source}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{}: is larger than 1 MiB", .0.display())]
    TooLarge(PathBuf),
    #[error("{}: is not UTF-8 text", .0.display())]
    NotText(PathBuf),
    #[error("{}: is no configuration of HAProxy, patroni_proxy or PgBouncer (if it is one of them, name the program with --from)", .0.display())]
    Unknown(PathBuf),
    #[error("{}: exists; --force overwrites it", .0.display())]
    Exists(PathBuf),
    #[error("{}: is a link, or no regular file, and is not overwritten", .0.display())]
    NoFile(PathBuf),
    #[error("{}:{} {message}", path.display(), line.map_or(String::new(), |line| format!("{line}:")))]
    Refused {
        path: PathBuf,
        line: Option<usize>,
        message: String,
    },
    #[error("standard output: {0}")]
    Output(#[source] std::io::Error),
}

/// The file as a whole cannot be imported.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    line: Option<usize>,
    message: String,
}

/// Exit code 0 also where something has no equivalent: the list says what.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    match import(arguments) {
        Ok(notes) => {
            for line in notes.lines(&shown(&arguments.file)) {
                eprintln!("{line}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn import(arguments: &Arguments) -> Result<Notes, Error> {
    let text = read(&arguments.file)?;
    let kind = arguments
        .from
        .or_else(|| recognise(&text))
        .ok_or_else(|| Error::Unknown(arguments.file.clone()))?;
    let (yaml, notes) =
        convert(kind, &text, &shown(&arguments.file), arguments.mode).map_err(|refusal| Error::Refused {
            path: arguments.file.clone(),
            line: refusal.line,
            message: refusal.message,
        })?;
    match &arguments.output {
        Some(path) => save(path, &yaml, arguments.force)?,
        None => std::io::stdout()
            .write_all(yaml.as_bytes())
            .map_err(Error::Output)?,
    }
    Ok(notes)
}

/// The text to write and what there is to say. `file` is shown in comments.
fn convert(kind: InputKind, text: &str, file: &str, mode: Mode) -> Result<(String, Notes), Refusal> {
    let mut notes = Notes::default();
    let outcome: ImportOutcome = match kind {
        InputKind::Haproxy => haproxy::convert(text, &mut notes)?,
        InputKind::PatroniProxy => patroni_proxy::convert(text, &mut notes)?,
        InputKind::PgBouncer if mode == Mode::Tcp => {
            return Err(Refusal {
                line: None,
                message: "becomes pools, which `--mode tcp` cannot have".to_owned(),
            });
        }
        InputKind::PgBouncer => pgbouncer::convert(text, &mut notes)?,
    };
    let yaml = outcome.yaml(kind.program(), file, mode, &notes);
    Ok((yaml, notes))
}

fn read(path: &Path) -> Result<String, Error> {
    let failed = |source| Error::File {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    let mut file = File::open(path).map_err(failed)?.take(MAX_FILE + 1);
    file.read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::TooLarge(path.to_owned()));
    }
    let text = String::from_utf8(bytes).map_err(|_| Error::NotText(path.to_owned()))?;
    // A byte order mark, as some editors put it.
    Ok(text.trim_start_matches('\u{feff}').to_owned())
}

fn save(path: &Path, yaml: &str, force: bool) -> Result<(), Error> {
    let found = std::fs::symlink_metadata(path).ok();
    let written = if let Some(found) = found.filter(|found| force && found.is_file()) {
        config::replace_file(path, found.mode() & 0o777, yaml.as_bytes())
    } else {
        let created = File::options().write(true).create_new(true).open(path);
        created.and_then(|mut file| file.write_all(yaml.as_bytes()))
    };
    written.map_err(|source| match source.kind() {
        std::io::ErrorKind::AlreadyExists if force => Error::NoFile(path.to_owned()),
        std::io::ErrorKind::AlreadyExists => Error::Exists(path.to_owned()),
        _ => Error::File {
            path: path.to_owned(),
            source,
        },
    })
}

/// A file's name on one line.
fn shown(path: &Path) -> String {
    let name = path.display().to_string();
    name.chars().map(|c| if is_unsafe(c) { '?' } else { c }).collect()
}

/// By the first line that only one of them could have.
fn recognise(text: &str) -> Option<InputKind> {
    text.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().take(2).collect();
        match *words.first()? {
            "global" | "defaults" => Some(InputKind::Haproxy),
            "listen" | "frontend" | "backend" if words.len() > 1 => Some(InputKind::Haproxy),
            "[databases]" | "[pgbouncer]" | "[users]" | "[peers]" => Some(InputKind::PgBouncer),
            "clusters:" | "cluster_update_interval:" | "listen_address:" => Some(InputKind::PatroniProxy),
            _ => None,
        }
    })
}

#[cfg(test)]
mod security_tests;
#[cfg(test)]
mod tests;
