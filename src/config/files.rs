//! The files a configuration names: secrets, certificates and keys. Each is read whole, within a bound, and
//! checked here, so that what would fail in service is a fault at the start.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, ServerConfig};
use x509_parser::certificate::Validity;
use zeroize::Zeroizing;

use super::model::KeyPair;
use super::secret::Secret;
use super::section::{Context, Field};

/// A password or shared secret.
const MAX_SECRET: u64 = 64 * 1024;
/// Certificates, chains and keys.
const MAX_PEM: u64 = 1024 * 1024;
/// A users file: more than a hundred thousand verifiers.
const MAX_USERS: u64 = 16 * 1024 * 1024;
/// A certificate that ends within this time is worth a warning.
const SOON: i64 = 14 * 24 * 3600;
/// A record carries at most 8 KiB of plaintext: `libpq` clients that poll the socket can hang on more. rustls
/// takes the record's header (5 bytes) off this number.
const MAX_FRAGMENT: usize = 8192;

/// May others read the file?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    Public,
    /// The owner and the group only.
    Private,
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

    fn contents(&self, access: Access, most: u64) -> Option<(PathBuf, Zeroizing<Vec<u8>>)> {
        let path = self.path()?;
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

    /// A secret: the file's contents without one trailing newline; at least `least` bytes.
    pub(super) fn secret_file(&self, least: usize) -> Option<Secret> {
        let (path, contents) = self.contents(Access::Private, MAX_SECRET)?;
        let secret = contents.strip_suffix(b"\n").unwrap_or(&contents);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
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
        let (path, contents) = self.contents(Access::Private, MAX_USERS)?;
        Some((path, Secret::new(contents.as_slice())))
    }

    /// Trusted roots: at least one certificate.
    pub(super) fn roots(&self) -> Option<Vec<CertificateDer<'static>>> {
        let (path, contents) = self.contents(Access::Public, MAX_PEM)?;
        let roots = self.certificates(&path, &contents)?;
        let mut store = rustls::RootCertStore::empty();
        for (index, root) in roots.iter().enumerate() {
            if let Err(error) = store.add(root.clone()) {
                let number = index + 1;
                self.fault(format!(
                    "{}: certificate {number} cannot be used: {error}",
                    path.display()
                ));
                return None;
            }
        }
        Some(roots)
    }

    fn certificates(&self, path: &Path, contents: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
        let shown = path.display();
        match CertificateDer::pem_slice_iter(contents).collect::<Result<Vec<_>, _>>() {
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
fn pem_problem(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "a section does not end",
        pem::Error::IllegalSectionStart { .. } => "a section does not begin as it should",
        pem::Error::Base64Decode(_) => "the base64 text is damaged",
        pem::Error::SectionTooLarge => "a section is too large",
        _ => "no section can be read",
    }
}

/// A chain and its key, checked: readable, valid now, belonging together. Also gives the end of the leaf's
/// validity, Unix seconds.
pub(super) fn key_pair(cert: &Field<'_>, key: &Field<'_>) -> Option<(Arc<KeyPair>, i64)> {
    // Both files are looked at, so that the faults of both are reported.
    let chain = chain(cert);
    let key_der = private_key(key);
    let (cert_file, chain, not_after) = chain?;
    let key_der = key_der?;
    let provider = &cert.context.provider;
    match CertifiedKey::from_der(chain.clone(), key_der.clone_key(), provider) {
        Ok(_) => {
            let pair = KeyPair {
                cert_file,
                chain,
                key: key_der,
            };
            Some((Arc::new(pair), not_after))
        }
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            let certificate = cert_file.display();
            key.fault_with(
                format!("does not belong to the first certificate of {certificate}"),
                "the file begins with the certificate of this key; those of the authorities follow",
            );
            None
        }
        Err(error) => {
            cert.fault(format!("{}: cannot be used: {error}", cert_file.display()));
            None
        }
    }
}

fn chain(field: &Field<'_>) -> Option<(PathBuf, Vec<CertificateDer<'static>>, i64)> {
    let (path, contents) = field.contents(Access::Public, MAX_PEM)?;
    let chain = field.certificates(&path, &contents)?;
    let shown = path.display().to_string();
    let mut leaf_ends = None;
    for (index, certificate) in chain.iter().enumerate() {
        let number = index + 1;
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
            field.fault(format!(
                "{shown}: certificate {number} is not a valid X.509 certificate"
            ));
            return None;
        };
        check_validity(
            field,
            &format!("{shown}: certificate {number}"),
            parsed.validity(),
        )?;
        leaf_ends.get_or_insert(parsed.validity().not_after.timestamp());
    }
    Some((path, chain, leaf_ends?))
}

fn check_validity(field: &Field<'_>, what: &str, validity: &Validity) -> Option<()> {
    let Context { now, .. } = *field.context;
    let (start, end) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    if now > end {
        field.fault(format!("{what} has expired, on {}", validity.not_after));
        return None;
    }
    if now < start {
        field.fault(format!("{what} is not valid before {}", validity.not_before));
        return None;
    }
    if end - now < SOON {
        field
            .context
            .warn(format!("{what} expires on {}", validity.not_after));
    }
    Some(())
}

fn private_key(field: &Field<'_>) -> Option<PrivateKeyDer<'static>> {
    let (path, contents) = field.contents(Access::Private, MAX_PEM)?;
    let shown = path.display();
    let contains = |text: &[u8]| contents.windows(text.len()).any(|window| window == text);
    let key = match PrivateKeyDer::from_pem_slice(&contents) {
        // The old form of an encrypted key parses, and is rubbish.
        _ if contains(b"BEGIN ENCRYPTED PRIVATE KEY") || contains(b"Proc-Type: 4,ENCRYPTED") => {
            field.fault_with(
                format!("{shown}: the key is encrypted, which is not supported yet"),
                "`openssl pkey -in KEY -out PLAIN` decrypts it",
            );
            return None;
        }
        Ok(key) => key,
        Err(pem::Error::NoItemsFound) => {
            field.fault_with(
                format!("{shown}: contains no private key"),
                "a PEM file is expected",
            );
            return None;
        }
        Err(error) => {
            field.fault(format!("{shown}: is not valid PEM: {}", pem_problem(&error)));
            return None;
        }
    };
    if let Err(error) = field
        .context
        .provider
        .key_provider
        .load_private_key(key.clone_key())
    {
        field.fault(format!("{shown}: the private key cannot be used: {error}"));
        return None;
    }
    Some(key)
}

/// TLS as a server: no client certificates, no resumption of any kind, one application protocol.
pub(super) fn server_config(
    context: &Context<'_>,
    pair: &KeyPair,
    protocol: &[u8],
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(context.provider.clone())
        .with_protocol_versions(versions)?
        .with_no_client_auth()
        .with_single_cert(pair.chain.clone(), pair.key.clone_key())?;
    config.alpn_protocols = vec![protocol.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_fragment_size = Some(MAX_FRAGMENT);
    Ok(Arc::new(config))
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
    let mode = metadata.mode() & 0o7777;
    if access == Access::Private && mode & 0o007 != 0 {
        return Err(Unreadable {
            message: format!("is open to every user (mode {mode:04o})"),
            hint: Some("`chmod o-rwx` it".to_owned()),
        });
    }
    read_bounded(file, most)
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

/// The configuration file itself, as text; `Err` is a sentence.
pub(super) fn read_text(path: &Path, most: u64) -> Result<String, String> {
    let contents = read(path, Access::Public, most).map_err(|error| error.message)?;
    match str::from_utf8(&contents) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(format!(
            "is not UTF-8 text: the first bad byte is at {}",
            error.valid_up_to()
        )),
    }
}
