//! `tls-server-end-point` (RFC 5929, section 4): the hash of the certificate the server of a
//! connection has shown, which ties a SCRAM exchange to the TLS connection it runs on.

use aws_lc_rs::digest::{self, Algorithm};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::signature_algorithm::SignatureAlgorithm;

/// The one type of channel binding PostgreSQL knows.
pub(super) const BINDING_TYPE: &str = "tls-server-end-point";

/// The hash of a leaf certificate, by the hash function of its signature; SHA-256 in place of MD5
/// and SHA-1. With RSASSA-PSS the hash function is that of its parameters, as PostgreSQL has it
/// since 15.2.
///
/// `None` where the signature has no hash function of its own (Ed25519, Ed448), or one not known
/// here, or where the certificate cannot be parsed: then neither side can bind.
pub fn tls_server_end_point(leaf_der: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(leaf_der).ok()?;
    // The outer field: RFC 5929 names it, and OpenSSL looks there.
    let signature = &certificate.signature_algorithm;
    let hash = match signature.algorithm.to_id_string().as_str() {
        PSS => match SignatureAlgorithm::try_from(signature).ok()? {
            SignatureAlgorithm::RSASSA_PSS(parameters) => {
                plain_hash(&parameters.hash_algorithm_oid().to_id_string())?
            }
            _ => return None,
        },
        other => signature_hash(other)?,
    };
    Some(digest::digest(hash, leaf_der).as_ref().to_vec())
}

const PSS: &str = "1.2.840.113549.1.1.10";

/// By RFC 8017 (PKCS #1) and RFC 5758 (ECDSA).
fn signature_hash(oid: &str) -> Option<&'static Algorithm> {
    Some(match oid {
        // MD5 and SHA-1 with RSA, SHA-1 with ECDSA; then SHA-256 itself with both.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.10045.4.1"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.3.2" => &digest::SHA256,
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" => &digest::SHA224,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => &digest::SHA384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => &digest::SHA512,
        _ => return None,
    })
}

fn plain_hash(oid: &str) -> Option<&'static Algorithm> {
    Some(match oid {
        // MD5 and SHA-1, the default of the parameters; then SHA-256 itself.
        "1.2.840.113549.2.5" | "1.3.14.3.2.26" | "2.16.840.1.101.3.4.2.1" => &digest::SHA256,
        "2.16.840.1.101.3.4.2.4" => &digest::SHA224,
        "2.16.840.1.101.3.4.2.2" => &digest::SHA384,
        "2.16.840.1.101.3.4.2.3" => &digest::SHA512,
        _ => return None,
    })
}
