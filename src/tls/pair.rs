//! A chain and its key, ready for rustls.

use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};

use super::signature::public_key;

/// As [`CertifiedKey::from_der`], and a version 1 certificate as well.
pub(crate) fn certified(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, Error> {
    let refused = match CertifiedKey::from_der(chain.to_vec(), key.clone_key(), provider) {
        Err(error @ Error::InvalidCertificate(_)) => error,
        other => return other,
    };
    let Some(leaf) = chain.first() else {
        return Err(refused);
    };
    let key = provider.key_provider.load_private_key(key.clone_key())?;
    // A key without access to its public part cannot be compared.
    let own = key.public_key().ok_or(refused)?;
    if own.as_ref() != public_key(leaf)?.as_ref() {
        return Err(InconsistentKeys::KeyMismatch.into());
    }
    Ok(CertifiedKey::new(chain.to_vec(), key))
}
