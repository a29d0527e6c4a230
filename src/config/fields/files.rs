//! The files that a value names: secrets, certificates, revocation lists, users and rules.

use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use zeroize::Zeroizing;

use super::Field;
use crate::config::files::{FileAccess, MAX_PEM, Unreadable, pem_problem, read, readable, without_mark};
use crate::config::secret::Secret;
use crate::tls::Authorities;

impl Field<'_> {
    /// This value as a file name, relative to the configuration's directory.
    pub(in crate::config) fn path(&self) -> Option<PathBuf> {
        let text = self.text()?;
        if text.starts_with("~/") {
            self.error_with_hint("`~` is not expanded", "write the full path");
            return None;
        }
        Some(self.context.directory.join(text))
    }

    /// The name of a file of rules, which `auth` reads: here only that it can be read, so that a
    /// missing one is reported with its key beside all other errors.
    pub(in crate::config) fn rules_file(&self) -> Option<PathBuf> {
        let path = self.path()?;
        match readable(&path) {
            Ok(()) => Some(path),
            Err(Unreadable { message, hint }) => {
                // Once it is there, the configuration may be right.
                self.context.note_file(&path);
                self.context.error(
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
    pub(in crate::config) fn contents(
        &self,
        access: FileAccess,
        most: u64,
    ) -> Option<(PathBuf, Zeroizing<Vec<u8>>)> {
        let path = self.path()?;
        self.context.note_file(&path);
        match read(&path, access, most) {
            Ok(contents) => Some((path, contents)),
            Err(Unreadable { message, hint }) => {
                self.context.error(
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
    pub(in crate::config) fn secret_file(&self) -> Option<Secret> {
        let (least, most) = self.secret_size();
        let (path, contents) = self.contents(FileAccess::Private, most)?;
        let secret = contents.strip_suffix(b"\n").unwrap_or(&contents);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        if [&b"\xef\xbb\xbf"[..], b"\xff\xfe", b"\xfe\xff"]
            .iter()
            .any(|mark| secret.starts_with(mark))
        {
            // It is unknown whether the mark is part of the secret.
            self.error_with_hint(
                format!("{}: begins with a byte order mark", path.display()),
                "save it as UTF-8 without one",
            );
            return None;
        }
        if secret.is_empty() {
            self.error(format!("{}: is empty", path.display()));
            return None;
        }
        if secret.len() < least {
            self.error(format!("{}: is shorter than {least} bytes", path.display()));
            return None;
        }
        Some(Secret::new(secret))
    }

    /// A secret from the environment variable that this value names.
    pub(in crate::config) fn secret_variable(&self) -> Option<Secret> {
        use std::os::unix::ffi::OsStringExt;
        let name = self.text()?;
        if name.contains(['=', '$']) {
            self.error("is not the name of an environment variable");
            return None;
        }
        match (self.context.environment)(name) {
            Some(value) if !value.is_empty() => Some(Secret::new(value.into_vec())),
            Some(_) => {
                self.error(format!("the environment variable `{name}` is empty"));
                None
            }
            None => {
                self.error(format!("the environment variable `{name}` is not set"));
                None
            }
        }
    }

    /// A users file, as it is.
    pub(in crate::config) fn users_file(&self) -> Option<(PathBuf, Secret)> {
        let (path, contents) = self.contents(FileAccess::Private, self.secret_size().1)?;
        Some((path, Secret::new(contents.as_slice())))
    }

    /// Trusted roots: at least one certificate.
    pub(in crate::config) fn roots(&self) -> Option<Vec<CertificateDer<'static>>> {
        let (path, contents) = self.contents(FileAccess::Public, MAX_PEM)?;
        let roots = self.certificates(&path, &contents)?;
        match Authorities::new(&roots) {
            Ok(authorities) => {
                for warning in authorities.warnings(self.context.now) {
                    self.context.warn(format!("{}: {warning}", path.display()));
                }
                Some(roots)
            }
            Err(error) => {
                self.error(format!("{}: {error}", path.display()));
                None
            }
        }
    }

    /// Revocation lists: at least one. An expired one causes a warning: clients with a certificate
    /// of its authority are rejected until there is a new one.
    pub(in crate::config) fn revocation_lists(&self) -> Option<Vec<CertificateRevocationListDer<'static>>> {
        let (path, contents) = self.contents(FileAccess::Public, MAX_PEM)?;
        let shown = path.display();
        let lists = CertificateRevocationListDer::pem_slice_iter(without_mark(&contents))
            .collect::<Result<Vec<_>, _>>();
        let lists = match lists {
            Ok(lists) if lists.is_empty() => {
                self.error_with_hint(
                    format!("{shown}: contains no revocation list"),
                    "a PEM file is expected",
                );
                return None;
            }
            Ok(lists) => lists,
            Err(error) => {
                self.error(format!("{shown}: is not valid PEM: {}", pem_problem(&error)));
                return None;
            }
        };
        for (index, list) in lists.iter().enumerate() {
            let number = index + 1;
            let Ok((_, parsed)) = CertificateRevocationList::from_der(list) else {
                self.error(format!("{shown}: revocation list {number} cannot be read"));
                return None;
            };
            if let Some(next) = parsed.next_update()
                && next.timestamp() < self.context.now
            {
                self.context.warn(format!(
                    "{shown}: revocation list {number} was due for renewal by {next}; clients with a certificate of {} are rejected",
                    parsed.issuer()
                ));
            }
        }
        Some(lists)
    }

    pub(in crate::config) fn certificates(
        &self,
        path: &Path,
        contents: &[u8],
    ) -> Option<Vec<CertificateDer<'static>>> {
        let shown = path.display();
        match CertificateDer::pem_slice_iter(without_mark(contents)).collect::<Result<Vec<_>, _>>() {
            Ok(certificates) if certificates.is_empty() => {
                self.error_with_hint(
                    format!("{shown}: contains no certificate"),
                    "a PEM file is expected",
                );
                None
            }
            Ok(certificates) => Some(certificates),
            Err(error) => {
                self.error(format!("{shown}: is not valid PEM: {}", pem_problem(&error)));
                None
            }
        }
    }
}
