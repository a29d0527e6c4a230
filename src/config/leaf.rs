//! The first certificate of a file, as the operator needs to see it.

use std::path::Path;

use rustls::pki_types::CertificateDer;
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
        if let Ok(Some(alternative)) = parsed.subject_alternative_name() {
            leaf.names = alternative
                .value
                .general_names
                .iter()
                .filter_map(shown_name)
                .collect();
        }
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

impl KeyPair {
    pub fn leaf(&self) -> Leaf {
        Leaf::of(&self.cert_file, &self.chain)
    }
}
