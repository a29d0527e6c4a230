//! The files a configuration names: secrets, certificates and keys. Each is read whole, within a bound, and
//! checked here, so that what would fail in service is a fault at the start.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use zeroize::Zeroizing;

use super::schema::kind::MOST_SECRET;
use super::secret::Secret;
use super::section::Field;
use crate::tls::Authorities;

/// Certificates, chains and keys.
pub(super) const MAX_PEM: u64 = 1024 * 1024;

/// What users who are neither its owner nor of its group may do with a file. Nobody else may write it: it decides who
/// comes in, or whom the router trusts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Read it.
    Public,
    /// Nothing.
    Private,
}

impl Access {
    /// What is wrong with a file's mode, and what to do.
    pub(crate) fn fault(self, mode: u32) -> Option<(String, &'static str)> {
        let mode = mode & 0o7777;
        match self {
            Self::Private if mode & 0o007 != 0 => Some((
                format!("is open to every user (mode {mode:04o})"),
                "`chmod o-rwx` it",
            )),
            Self::Public if mode & 0o002 != 0 => Some((
                format!("may be written by every user (mode {mode:04o})"),
                "`chmod o-w` it",
            )),
            Self::Private | Self::Public => None,
        }
    }
}

impl Field<'_> {
    /// This value as a file name, relative to the configuration's directory.
    pub(super) fn path(&self) -> Option<PathBuf> {
        let text = self.text()?;
        if text.starts_with("~/") {
            self.fault_with("`~` is not expanded", "write the directory out");
            return None;
        }
        Some(self.context.directory.join(text))
    }

    /// The name of a file of rules, which `auth` reads: here only that it can be read, so that a missing one is reported
    /// with its key beside all other faults.
    pub(super) fn rules_file(&self) -> Option<PathBuf> {
        let path = self.path()?;
        match readable(&path) {
            Ok(()) => Some(path),
            Err(Unreadable { message, hint }) => {
                // Once it is there, the configuration may be right.
                self.context.note_file(&path);
                self.context.fault(
                    &self.path,
                    self.line,
                    format!("{}: {message}", path.display()),
                    hint,
                );
                None
            }
        }
    }

    /// The whole file, with its name. It is watched from now on.
    pub(super) fn contents(&self, access: Access, most: u64) -> Option<(PathBuf, Zeroizing<Vec<u8>>)> {
        let path = self.path()?;
        self.context.note_file(&path);
        match read(&path, access, most) {
            Ok(contents) => Some((path, contents)),
            Err(Unreadable { message, hint }) => {
                self.context.fault(
                    &self.path,
                    self.line,
                    format!("{}: {message}", path.display()),
                    hint,
                );
                None
            }
        }
    }

    /// A secret: the file's contents without one trailing newline; as long as the schema has it.
    pub(super) fn secret_file(&self) -> Option<Secret> {
        let (least, most) = self.secret_size();
        let (path, contents) = self.contents(Access::Private, most)?;
        let secret = contents.strip_suffix(b"\n").unwrap_or(&contents);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        if [&b"\xef\xbb\xbf"[..], b"\xff\xfe", b"\xfe\xff"]
            .iter()
            .any(|mark| secret.starts_with(mark))
        {
            // Whether it is part of the secret nobody can know.
            self.fault_with(
                format!("{}: begins with a byte order mark", path.display()),
                "save it as UTF-8 without one",
            );
            return None;
        }
        if secret.is_empty() {
            self.fault(format!("{}: is empty", path.display()));
            return None;
        }
        if secret.len() < least {
            self.fault(format!("{}: is shorter than {least} bytes", path.display()));
            return None;
        }
        Some(Secret::new(secret))
    }

    /// A secret from the environment variable that this value names.
    pub(super) fn secret_variable(&self) -> Option<Secret> {
        use std::os::unix::ffi::OsStringExt;
        let name = self.text()?;
        if name.contains(['=', '$']) {
            self.fault("is not the name of an environment variable");
            return None;
        }
        match (self.context.environment)(name) {
            Some(value) if !value.is_empty() => Some(Secret::new(value.into_vec())),
            Some(_) => {
                self.fault(format!("the environment variable `{name}` is empty"));
                None
            }
            None => {
                self.fault(format!("the environment variable `{name}` is not set"));
                None
            }
        }
    }

    /// A users file, as it is.
    pub(super) fn users_file(&self) -> Option<(PathBuf, Secret)> {
        let (path, contents) = self.contents(Access::Private, self.secret_size().1)?;
        Some((path, Secret::new(contents.as_slice())))
    }

    /// Trusted roots: at least one certificate.
    pub(super) fn roots(&self) -> Option<Vec<CertificateDer<'static>>> {
        let (path, contents) = self.contents(Access::Public, MAX_PEM)?;
        let roots = self.certificates(&path, &contents)?;
        match Authorities::new(&roots) {
            Ok(authorities) => {
                for warning in authorities.warnings(self.context.now) {
                    self.context.warn(format!("{}: {warning}", path.display()));
                }
                Some(roots)
            }
            Err(fault) => {
                self.fault(format!("{}: {fault}", path.display()));
                None
            }
        }
    }

    /// Revocation lists: at least one. One whose time is over is worth a warning: clients with a certificate of its
    /// authority are refused until there is a new one.
    pub(super) fn revocation_lists(&self) -> Option<Vec<CertificateRevocationListDer<'static>>> {
        let (path, contents) = self.contents(Access::Public, MAX_PEM)?;
        let shown = path.display();
        let lists = CertificateRevocationListDer::pem_slice_iter(without_mark(&contents))
            .collect::<Result<Vec<_>, _>>();
        let lists = match lists {
            Ok(lists) if lists.is_empty() => {
                self.fault_with(
                    format!("{shown}: contains no revocation list"),
                    "a PEM file is expected",
                );
                return None;
            }
            Ok(lists) => lists,
            Err(error) => {
                self.fault(format!("{shown}: is not valid PEM: {}", pem_problem(&error)));
                return None;
            }
        };
        for (index, list) in lists.iter().enumerate() {
            let number = index + 1;
            let Ok((_, parsed)) = CertificateRevocationList::from_der(list) else {
                self.fault(format!("{shown}: revocation list {number} cannot be read"));
                return None;
            };
            if let Some(next) = parsed.next_update()
                && next.timestamp() < self.context.now
            {
                self.context.warn(format!(
                    "{shown}: revocation list {number} was to be renewed before {next}; clients with a certificate of {} are refused",
                    parsed.issuer()
                ));
            }
        }
        Some(lists)
    }

    pub(super) fn certificates(&self, path: &Path, contents: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
        let shown = path.display();
        match CertificateDer::pem_slice_iter(without_mark(contents)).collect::<Result<Vec<_>, _>>() {
            Ok(certificates) if certificates.is_empty() => {
                self.fault_with(
                    format!("{shown}: contains no certificate"),
                    "a PEM file is expected",
                );
                None
            }
            Ok(certificates) => Some(certificates),
            Err(error) => {
                self.fault(format!("{shown}: is not valid PEM: {}", pem_problem(&error)));
                None
            }
        }
    }
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

/// Why a file cannot be used, and what to do.
struct Unreadable {
    message: String,
    hint: Option<String>,
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        let message = match error.kind() {
            io::ErrorKind::NotFound => "does not exist".to_owned(),
            io::ErrorKind::PermissionDenied => "may not be read: permission denied".to_owned(),
            _ => format!("cannot be read: {error}"),
        };
        Self { message, hint: None }
    }
}

fn read(path: &Path, access: Access, most: u64) -> Result<Zeroizing<Vec<u8>>, Unreadable> {
    // Before it is opened: to open a named pipe would wait.
    check_kind(&std::fs::metadata(path)?)?;
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    check_kind(&metadata)?;
    if let Some((message, hint)) = access.fault(metadata.mode()) {
        return Err(Unreadable {
            message,
            hint: Some(hint.to_owned()),
        });
    }
    read_bounded(file, most)
}

/// Whether it is a file that may be opened.
fn readable(path: &Path) -> Result<(), Unreadable> {
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

/// A secret from a file that is not named in a configuration, by the same rules: other users cannot open it, and one
/// newline at its end is not part of it. `Err` is a sentence.
pub fn read_secret(path: &Path) -> Result<Secret, String> {
    let contents = read(path, Access::Private, MOST_SECRET).map_err(|error| match error.hint {
        Some(hint) => format!("{}: {} ({hint})", path.display(), error.message),
        None => format!("{}: {}", path.display(), error.message),
    })?;
    let secret = contents.strip_suffix(b"\n").unwrap_or(&contents);
    let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
    Ok(Secret::new(secret))
}

/// The configuration file itself, as text; `Err` is a sentence.
pub(super) fn read_text(path: &Path, most: u64) -> Result<String, String> {
    let contents = read(path, Access::Public, most).map_err(|error| match error.hint {
        Some(hint) => format!("{} ({hint})", error.message),
        None => error.message,
    })?;
    match str::from_utf8(without_mark(&contents)) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(format!(
            "is not UTF-8 text: the first bad byte is at {}",
            error.valid_up_to()
        )),
    }
}
