//! Reading files: each is read whole, within a limit, and only if its permissions are safe.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustls::pki_types::pem;
use zeroize::Zeroizing;

use super::schema::kind::MOST_SECRET;
use super::secret::Secret;

/// The largest configuration file.
pub(super) const MAX_CONFIG: usize = 1024 * 1024;
/// Certificates, chains and keys.
pub(super) const MAX_PEM: u64 = 1024 * 1024;

/// What users that are neither the owner nor in the group of a file may do with it. They may never
/// write it: it decides which clients may log in, or which servers the router trusts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileAccess {
    /// Read it.
    Public,
    /// Nothing.
    Private,
}

impl FileAccess {
    /// What is wrong with a file's mode, and how to fix it.
    pub(crate) fn problem(self, mode: u32) -> Option<(String, &'static str)> {
        let mode = mode & 0o7777;
        match self {
            Self::Private if mode & 0o007 != 0 => Some((
                format!("is open to every user (mode {mode:04o})"),
                "run `chmod o-rwx` on it",
            )),
            Self::Public if mode & 0o002 != 0 => Some((
                format!("is writable by every user (mode {mode:04o})"),
                "run `chmod o-w` on it",
            )),
            Self::Private | Self::Public => None,
        }
    }
}

/// Why a file cannot be used, and what to do.
pub(super) struct Unreadable {
    pub(super) message: String,
    pub(super) hint: Option<String>,
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        let (message, hint) = match error.kind() {
            io::ErrorKind::NotFound => (
                "does not exist".to_owned(),
                Some("create it, or correct its name"),
            ),
            io::ErrorKind::PermissionDenied => (
                "cannot be read: permission denied".to_owned(),
                Some("let the user that the router runs as read it"),
            ),
            _ => (format!("cannot be read: {error}"), None),
        };
        Self {
            message,
            hint: hint.map(str::to_owned),
        }
    }
}

/// A secret from a file that is not named in a configuration, by the same rules: other users cannot
/// open it, and one newline at its end is not part of it. `Err` is a sentence.
pub fn read_secret(path: &Path) -> Result<Secret, String> {
    let contents = read(path, FileAccess::Private, MOST_SECRET).map_err(|error| match error.hint {
        Some(hint) => format!("{}: {} ({hint})", path.display(), error.message),
        None => format!("{}: {}", path.display(), error.message),
    })?;
    let secret = contents.strip_suffix(b"\n").unwrap_or(&contents);
    let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
    Ok(Secret::new(secret))
}

/// The configuration file itself, as text.
pub(super) fn read_text(path: &Path) -> Result<String, Unreadable> {
    let contents = read(path, FileAccess::Public, MAX_CONFIG as u64)?;
    match str::from_utf8(without_mark(&contents)) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(Unreadable {
            message: format!(
                "is not UTF-8 text: the first bad byte is at {}",
                error.valid_up_to()
            ),
            hint: Some("save it as UTF-8".to_owned()),
        }),
    }
}

pub(super) fn read(path: &Path, access: FileAccess, most: u64) -> Result<Zeroizing<Vec<u8>>, Unreadable> {
    // Before it is opened: to open a named pipe would wait.
    check_kind(&std::fs::metadata(path)?)?;
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    check_kind(&metadata)?;
    if let Some((message, hint)) = access.problem(metadata.mode()) {
        return Err(Unreadable {
            message,
            hint: Some(hint.to_owned()),
        });
    }
    read_bounded(file, most)
}

/// Whether it is a file that may be opened.
pub(super) fn readable(path: &Path) -> Result<(), Unreadable> {
    check_kind(&std::fs::metadata(path)?)?;
    File::open(path)?;
    Ok(())
}

/// Reads at most `most` bytes; the buffer never moves, so that no copy of a secret is left behind.
fn read_bounded(file: File, most: u64) -> Result<Zeroizing<Vec<u8>>, Unreadable> {
    let expected = file.metadata()?.len().min(most);
    let mut contents = Zeroizing::new(Vec::with_capacity(usize::try_from(expected).unwrap_or(0) + 64));
    file.take(most + 1).read_to_end(&mut contents)?;
    if contents.len() as u64 > most {
        return Err(Unreadable {
            message: format!("is larger than {} KiB", most / 1024),
            hint: None,
        });
    }
    Ok(contents)
}

fn check_kind(metadata: &Metadata) -> Result<(), Unreadable> {
    if metadata.is_file() {
        return Ok(());
    }
    let message = if metadata.is_dir() {
        "is a directory"
    } else {
        "is not a regular file"
    };
    Err(Unreadable {
        message: message.to_owned(),
        hint: None,
    })
}

/// What is wrong with a PEM file, without quoting it: it could be a key.
pub(super) fn pem_problem(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section does not end",
        pem::Error::IllegalSectionStart { .. } => "a section does not begin as it should",
        pem::Error::Base64Decode(_) => "the base64 text is damaged",
        pem::Error::SectionTooLarge => "a section is too large",
        _ => "no section can be read",
    }
}

/// A text without the byte order mark that some editors put before it.
pub(crate) fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}
