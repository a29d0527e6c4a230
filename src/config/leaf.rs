//! The first certificate of a file, as the operator needs to see it.

use std::path::Path;

use aws_lc_rs::digest;
use rustls::pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::time::ASN1Time;

use super::model::{KeyPair, Leaf};

const DAY: i64 = 24 * 3600;

impl Leaf {
    fn of(cert_file: &Path, chain: &[CertificateDer<'_>]) -> Self {
        let mut leaf = Self {
            cert_file: cert_file.to_owned(),
            ..Self::default()
        };
        let parsed = chain
            .first()
            .and_then(|first| x509_parser::parse_x509_certificate(first).ok());
        let Some((_, parsed)) = parsed else {
            return leaf;
        };
        leaf.subject = parsed.subject().to_string().escape_debug().to_string();
        leaf.not_after = parsed.validity().not_after.timestamp();
        leaf.names = names(&parsed);
        leaf
    }

    /// The end of its validity, for people.
    pub fn expires(&self) -> String {
        ASN1Time::from_timestamp(self.not_after).map_or_else(|_| "never".to_owned(), |time| time.to_string())
    }

    /// Whole days from `now` (Unix seconds) to the end of its validity; negative once it is over.
    pub fn days_left(&self, now: i64) -> i64 {
        self.not_after.saturating_sub(now).div_euclid(DAY)
    }
}

fn shown_name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some(name.escape_debug().to_string()),
        GeneralName::IPAddress(bytes) => match **bytes {
            [a, b, c, d] => Some(std::net::Ipv4Addr::new(a, b, c, d).to_string()),
            _ => Some(std::net::Ipv6Addr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
        },
        _ => None,
    }
}

/// What a certificate says; it has no key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CertificateFacts {
    pub subject: String,
    pub issuer: String,
    /// DNS names and addresses of its `subjectAltName`.
    pub names: Vec<String>,
    /// Unix seconds.
    pub not_before: i64,
    /// Unix seconds.
    pub not_after: i64,
    /// In hexadecimal digits, as `openssl x509 -serial` prints it.
    pub serial: String,
    /// SHA-256 over all of it, as `openssl x509 -fingerprint -sha256` prints it.
    pub fingerprint: String,
}

impl CertificateFacts {
    /// A certificate that cannot be read has a fingerprint only.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let digest = digest::digest(&digest::SHA256, certificate);
        let bytes: Vec<String> = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        let facts = Self {
            fingerprint: bytes.join(":"),
            ..Self::default()
        };
        let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
            return facts;
        };
        let serial = parsed.raw_serial().iter().map(|byte| format!("{byte:02X}"));
        Self {
            subject: parsed.subject().to_string().escape_debug().to_string(),
            issuer: parsed.issuer().to_string().escape_debug().to_string(),
            names: names(&parsed),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            serial: serial.collect(),
            ..facts
        }
    }
}

fn names(certificate: &X509Certificate<'_>) -> Vec<String> {
    match certificate.subject_alternative_name() {
        Ok(Some(alternative)) => {
            let names = alternative.value.general_names.iter();
            names.filter_map(shown_name).collect()
        }
        _ => Vec::new(),
    }
}

impl KeyPair {
    pub fn leaf(&self) -> Leaf {
        Leaf::of(&self.cert_file, &self.chain)
    }
}
