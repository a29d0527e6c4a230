//! The signature of a handshake: it proves that the peer has the key of the certificate it shows,
//! since certificates are public. Channel binding relies on it, so it is verified wherever there is
//! a certificate. OpenSSL does the same.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use rustls::{CertificateError, DigitallySignedStruct, PeerMisbehaved};
use webpki::RawPublicKeyEntity;

use super::error::from_webpki;

/// The public key of any certificate, also of one that is not version 3.
pub(super) fn public_key(certificate: &[u8]) -> Result<SubjectPublicKeyInfoDer<'_>, rustls::Error> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
    Ok(SubjectPublicKeyInfoDer::from(
        parsed.tbs_certificate.subject_pki.raw,
    ))
}

/// `CertificateVerify` of TLS 1.3.
pub(crate) fn tls13(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    verify_tls13_signature_with_raw_key(message, &public_key(certificate)?, signed, algorithms)
}

/// `ServerKeyExchange` or `CertificateVerify` of TLS 1.2. The scheme does not name the curve there,
/// so that each algorithm of the scheme that fits the key is tried.
pub(crate) fn tls12(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    let unasked = PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme;
    let candidates = algorithms
        .mapping
        .iter()
        .find(|(scheme, _)| *scheme == signed.scheme)
        .map(|(_, candidates)| *candidates)
        .ok_or(unasked)?;
    let key = public_key(certificate)?;
    let key = RawPublicKeyEntity::try_from(&key).map_err(from_webpki)?;
    let mut last = webpki::Error::InvalidSignatureForPublicKey;
    for algorithm in candidates {
        match key.verify_signature(*algorithm, message, signed.signature()) {
            Ok(()) => return Ok(HandshakeSignatureValid::assertion()),
            Err(error @ webpki::Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_)) => last = error,
            Err(error) => return Err(from_webpki(error)),
        }
    }
    Err(from_webpki(last))
}
