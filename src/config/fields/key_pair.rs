//! Certificates with their private keys, in every form that `openssl` writes them: PKCS#8, PKCS#1,
//! SEC1, and PKCS#8 under a passphrase that a command gives.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pkcs8::EncryptedPrivateKeyInfoRef;
use pkcs8::pkcs5::EncryptionScheme;
use pkcs8::pkcs5::pbes2::Kdf;
use rustls::InconsistentKeys;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::certificate::Validity;
use zeroize::Zeroizing;

use super::{Context, Field};
use crate::config::files::{FileAccess, MAX_PEM, pem_problem, without_mark};
use crate::config::model::KeyPair;
use crate::config::passphrase;
use crate::tls;

/// A certificate that ends within this time is worth a warning.
const SOON: i64 = 14 * 24 * 3600;

/// Work to turn a passphrase into a key: OpenSSL's default is 2048, OWASP's advice 600,000. More
/// takes seconds.
const MAX_ITERATIONS: u32 = 10_000_000;

/// Memory for scrypt; `openssl pkcs8 -scrypt` takes 16 MiB.
const MAX_SCRYPT_MEMORY: u64 = 256 * 1024 * 1024;

const ENCRYPTED_BEGIN: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";

const ENCRYPTED_END: &str = "-----END ENCRYPTED PRIVATE KEY-----";

/// How a key under a passphrase is opened.
pub(in crate::config) enum Unlock<'a> {
    /// There is no key for a command here.
    Never,
    /// By the command under this name, if it is there.
    With(&'static str, Option<Field<'a>>),
}

/// A chain and its key, checked: readable, valid now, belonging together.
pub(in crate::config) fn key_pair(
    cert: &Field<'_>,
    key: &Field<'_>,
    unlock: &Unlock<'_>,
) -> Option<Arc<KeyPair>> {
    // Both files are looked at, so that the errors of both are reported.
    let chain = chain(cert);
    let key_der = private_key(key, unlock);
    let (cert_file, chain) = chain?;
    let key_der = key_der?;
    let provider = &cert.context.provider;
    match tls::certified(&chain, &key_der, provider) {
        Ok(_) => Some(Arc::new(KeyPair {
            cert_file,
            chain,
            key: key_der,
        })),
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            let certificate = cert_file.display();
            key.error_with_hint(
                format!("does not belong to the first certificate of {certificate}"),
                "put the certificate of this key first, and those of the authorities after it",
            );
            None
        }
        Err(error) => {
            cert.error(format!("{}: cannot be used: {error}", cert_file.display()));
            None
        }
    }
}

fn chain(field: &Field<'_>) -> Option<(PathBuf, Vec<CertificateDer<'static>>)> {
    let (path, contents) = field.contents(FileAccess::Public, MAX_PEM)?;
    let chain = field.certificates(&path, &contents)?;
    let shown = path.display().to_string();
    for (index, certificate) in chain.iter().enumerate() {
        let number = index + 1;
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
            field.error(format!(
                "{shown}: certificate {number} is not a valid X.509 certificate"
            ));
            return None;
        };
        check_validity(
            field,
            &format!("{shown}: certificate {number}"),
            parsed.validity(),
        )?;
    }
    Some((path, chain))
}

fn check_validity(field: &Field<'_>, what: &str, validity: &Validity) -> Option<()> {
    let Context { now, .. } = *field.context;
    let (start, end) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    if now > end {
        field.error_with_hint(
            format!("{what} has expired, on {}", validity.not_after),
            "put a renewed one there; a process that runs reads it by itself, or at `trunkline reload`",
        );
        return None;
    }
    if now < start {
        field.error_with_hint(
            format!("{what} is not valid before {}", validity.not_before),
            "check the clock of this host, or put one there that is valid now",
        );
        return None;
    }
    if end - now < SOON {
        field
            .context
            .warn(format!("{what} expires on {}", validity.not_after));
    }
    Some(())
}

fn private_key(field: &Field<'_>, unlock: &Unlock<'_>) -> Option<PrivateKeyDer<'static>> {
    let (path, contents) = field.contents(FileAccess::Private, MAX_PEM)?;
    let shown = path.display();
    let contains = |text: &str| {
        contents
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    };
    let key = if contains(ENCRYPTED_BEGIN) {
        unlocked(field, &path, &contents, unlock)?
    } else if contains("Proc-Type: 4,ENCRYPTED") {
        // This form parses, but the result is unusable; its key is only one round of MD5 of the
        // passphrase.
        field.error_with_hint(
            format!("{shown}: the key is encrypted in OpenSSL's old format, which is not supported"),
            "`openssl pkcs8 -topk8 -v2 aes-256-cbc -in KEY -out NEW` converts it to PKCS#8",
        );
        return None;
    } else {
        let key = plain(field, &path, &contents)?;
        if let Unlock::With(_, Some(command)) = unlock
            && command.text().is_some()
        {
            command.context.warn(format!(
                "{}: has no effect: {shown} is not encrypted",
                command.path
            ));
        }
        key
    };
    if let Err(error) = field
        .context
        .provider
        .key_provider
        .load_private_key(key.clone_key())
    {
        field.error(format!("{shown}: the private key cannot be used: {error}"));
        return None;
    }
    Some(key)
}

fn plain(field: &Field<'_>, path: &Path, contents: &[u8]) -> Option<PrivateKeyDer<'static>> {
    let shown = path.display();
    match PrivateKeyDer::from_pem_slice(without_mark(contents)) {
        Ok(key) => return Some(key),
        Err(pem::Error::NoItemsFound) => field.error_with_hint(
            format!("{shown}: contains no private key"),
            "a PEM file is expected",
        ),
        Err(error) => field.error(format!("{shown}: is not valid PEM: {}", pem_problem(&error))),
    }
    None
}

/// Opens a key by the passphrase its command gives.
fn unlocked(
    field: &Field<'_>,
    path: &Path,
    contents: &[u8],
    unlock: &Unlock<'_>,
) -> Option<PrivateKeyDer<'static>> {
    let shown = path.display();
    let command = match unlock {
        Unlock::With(_, Some(command)) => command,
        Unlock::With(key, None) => {
            field.error_with_hint(
                format!("{shown}: the key is encrypted"),
                format!("set `{key}`, a command that prints the passphrase"),
            );
            return None;
        }
        Unlock::Never => {
            field.error_with_hint(
                format!("{shown}: the key is encrypted, which is not supported here"),
                "`openssl pkey -in KEY -out PLAIN` decrypts it",
            );
            return None;
        }
    };
    // The form is checked first: a command may ask a person, or be expensive.
    let der = match encrypted_der(contents) {
        Ok(der) => der,
        Err(problem) => {
            field.error(format!("{shown}: is not valid PEM: {problem}"));
            return None;
        }
    };
    let Ok(sealed) = EncryptedPrivateKeyInfoRef::try_from(der.as_slice()) else {
        field.error_with_hint(
            format!("{shown}: the key is damaged, or encrypted in an old format that is not supported"),
            "`openssl pkcs8 -topk8 -v2 aes-256-cbc -in KEY -out NEW` encrypts it again",
        );
        return None;
    };
    if let Err(problem) = affordable(&sealed.encryption_algorithm) {
        field.error(format!(
            "{shown}: the encrypted private key cannot be used: {problem}"
        ));
        return None;
    }
    let passphrase = match passphrase::passphrase(command.text()?, &command.context.directory) {
        Ok(passphrase) => passphrase,
        Err(error) => {
            command.error(format!("the command {error}"));
            return None;
        }
    };
    match sealed.decrypt(passphrase.expose()) {
        Ok(document) => Some(PrivatePkcs8KeyDer::from(document.as_bytes().to_vec()).into()),
        Err(pkcs8::Error::EncryptedPrivateKey(
            pkcs8::pkcs5::Error::UnsupportedAlgorithm { oid }
            | pkcs8::pkcs5::Error::AlgorithmParametersInvalid { oid },
        )) => {
            field.error_with_hint(
                format!("{shown}: the key is encrypted by an algorithm that is not supported ({oid})"),
                "`openssl pkcs8 -topk8 -v2 aes-256-cbc -in KEY -out NEW` encrypts it again",
            );
            None
        }
        Err(_) => {
            field.error(format!(
                "{shown}: the passphrase does not decrypt the key (it is wrong, or the file is damaged)"
            ));
            None
        }
    }
}

/// The bytes of the first encrypted section.
fn encrypted_der(contents: &[u8]) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    let text = str::from_utf8(contents).map_err(|_| "it is not text")?;
    let start = text.find(ENCRYPTED_BEGIN).ok_or("no section can be read")? + ENCRYPTED_BEGIN.len();
    let end = text[start..]
        .find(ENCRYPTED_END)
        .ok_or("a section does not end")?;
    let packed: Vec<u8> = text[start..start + end]
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    match STANDARD.decode(packed) {
        Ok(der) => Ok(Zeroizing::new(der)),
        Err(_) => Err("the base64 text is damaged"),
    }
}

/// The file decides how much work it takes to decrypt it; this limits it.
fn affordable(scheme: &EncryptionScheme) -> Result<(), &'static str> {
    let Some(parameters) = scheme.pbes2() else {
        return Err("it is encrypted by PBES1, an old format that is not supported");
    };
    match &parameters.kdf {
        Kdf::Pbkdf2(kdf) if kdf.iteration_count > MAX_ITERATIONS => {
            Err("it needs more than 10,000,000 iterations")
        }
        Kdf::Scrypt(kdf) => {
            let memory = kdf
                .cost_parameter
                .saturating_mul(u64::from(kdf.block_size))
                .saturating_mul(128);
            if memory > MAX_SCRYPT_MEMORY || kdf.parallelization > 16 {
                Err("scrypt would need more than 256 MiB, or more than 16 rounds")
            } else {
                Ok(())
            }
        }
        _ => Ok(()),
    }
}
