//! Whether a certificate is for a name, as libpq, curl and `OpenLDAP` decide it: by its
//! `subjectAltName`, and by the common name where that has none of the kind (libpq's
//! `pq_verify_peer_name_matches_certificate_name`).

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, Error};
use webpki::EndEntityCert;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use super::error::from_webpki;

/// Whether the certificate is for the name.
pub(crate) fn fits_name(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Result<(), Error> {
    let error = match EndEntityCert::try_from(certificate) {
        Ok(leaf) => match leaf.verify_is_valid_for_subject_name(name) {
            Ok(()) => return Ok(()),
            Err(error @ webpki::Error::CertNotValidForName(_)) => from_webpki(error),
            Err(error) => return Err(from_webpki(error)),
        },
        // Version 1 has no extensions; its only name is the common name.
        Err(_) => CertificateError::NotValidForName.into(),
    };
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    let is_address = matches!(name, ServerName::IpAddress(_));
    if !has_names(&parsed, is_address) && common_name_fits(&parsed, &name.to_str()) {
        Ok(())
    } else {
        Err(error)
    }
}

/// Whether the `subjectAltName` has names of this kind; one that cannot be read might.
fn has_names(parsed: &X509Certificate<'_>, addresses: bool) -> bool {
    match parsed.subject_alternative_name() {
        Ok(None) => false,
        Ok(Some(names)) => names.value.general_names.iter().any(|name| match name {
            GeneralName::DNSName(_) => !addresses,
            GeneralName::IPAddress(_) => addresses,
            GeneralName::Invalid(..) => true,
            _ => false,
        }),
        Err(_) => true,
    }
}

fn common_name_fits(parsed: &X509Certificate<'_>, host: &str) -> bool {
    let Some(name) = parsed.subject().iter_common_name().next() else {
        return false;
    };
    // A name with a zero byte is not text, and matches nothing.
    str::from_utf8(name.attr_value().data)
        .is_ok_and(|pattern| !pattern.contains('\0') && fits_pattern(pattern, host))
}

/// `*` stands for the first label, and for a whole one.
fn fits_pattern(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return !host.is_empty();
    }
    match (pattern.strip_prefix("*."), host.split_once('.')) {
        (Some(rest), Some((label, parent))) => {
            !label.is_empty() && rest.contains('.') && rest.eq_ignore_ascii_case(parent)
        }
        _ => false,
    }
}
