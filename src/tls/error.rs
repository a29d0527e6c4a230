//! Why a certificate is not accepted, in sentences that say what to do.

use std::sync::Arc;

use rustls::{CertificateError, OtherError};

/// The sentence for a peer that answers without TLS.
pub(crate) const NO_TLS: &str = "the other side does not speak TLS";

/// How the sentence for a certificate that is not accepted begins.
pub(crate) const NOT_TRUSTED: &str = "invalid peer certificate";

/// Errors that rustls' own error names do not express.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    #[error(
        "it is a version 1 certificate, which only an authority that is trusted here can sign for directly, without \
         revocation lists; sign it again with extensions (openssl x509 -req -extfile), or trust this very certificate"
    )]
    VersionOne,
    #[error(
        "it is the certificate of an authority (CA:TRUE), and no trusted authority signed it directly; sign it again \
         without CA:TRUE, or trust this very certificate"
    )]
    IsAuthority,
    #[error("the authority that signed it, {0}, expired on {1}; renew the authority's certificate")]
    AuthorityExpired(String, String),
    #[error("the authority that signed it, {0}, is not valid before {1}")]
    AuthorityNotYetValid(String, String),
    #[error(
        "the certificate that signed it, {0}, is none of an authority (it needs CA:TRUE and, where it has a key usage, \
         keyCertSign)"
    )]
    NotAnAuthority(String),
    #[error("the authority that signed it, {0}, is not for this purpose (its extended key usage)")]
    AuthorityPurpose(String),
    #[error("the authority that signed it, {0}, allows fewer authorities below it")]
    PathLength(String),
    #[error(
        "its key usage does not allow it to identify a {0}; sign it again with keyUsage = digitalSignature"
    )]
    KeyUsage(&'static str),
    #[error("its extended key usage does not allow it to identify a {0}")]
    ExtendedKeyUsage(&'static str),
    #[error(
        "the trusted authority of its issuer's name did not sign it: another one has the same name, or the authority \
         has another key now"
    )]
    SignedByNamesake,
    #[error("{0}")]
    Other(String),
}

impl From<TrustError> for rustls::Error {
    fn from(error: TrustError) -> Self {
        CertificateError::Other(OtherError(Arc::new(error))).into()
    }
}

/// An error for people: rustls prints only the names of some of its own.
pub(crate) fn explain(error: &rustls::Error) -> String {
    let reason = match error {
        rustls::Error::InvalidCertificate(reason) => reason,
        rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => {
            return NO_TLS.to_owned();
        }
        error => return error.to_string(),
    };
    let reason = match reason {
        CertificateError::Other(OtherError(error)) => error.to_string(),
        CertificateError::UnknownIssuer => "no trusted authority signed it (UnknownIssuer)".to_owned(),
        CertificateError::BadSignature => {
            "its key did not sign the handshake: the peer does not have it (BadSignature)".to_owned()
        }
        other => other.to_string(),
    };
    format!("{NOT_TRUSTED}: {reason}")
}

/// As [`explain`], for what a client of the router does.
pub(crate) fn explain_client(error: &rustls::Error) -> String {
    use rustls::AlertDescription as Alert;
    let rustls::Error::AlertReceived(alert) = error else {
        return explain(error);
    };
    let meaning = match alert {
        Alert::UnknownCA => "the client does not trust the router's certificate (its sslrootcert)",
        Alert::CertificateExpired => "the router's certificate has expired, the client says",
        Alert::BadCertificate | Alert::CertificateUnknown | Alert::UnsupportedCertificate => {
            "the client does not accept the router's certificate"
        }
        Alert::ProtocolVersion => "the client and the router have no TLS version in common (tls.min_version)",
        _ => return explain(error),
    };
    format!("{error}: {meaning}")
}

/// The TLS error in one of IO, if there is one.
pub(crate) fn of_io(error: &std::io::Error) -> Option<&rustls::Error> {
    let inner = error.get_ref()?;
    // Wrapped twice by some libraries.
    let again = || inner.downcast_ref::<std::io::Error>().and_then(of_io);
    inner.downcast_ref().or_else(again)
}

/// The sentence of the TLS error among an error's causes, which may be wrapped in one of IO;
/// `None`: TLS did not fail.
pub(crate) fn among_causes(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut cause = Some(error);
    while let Some(found) = cause {
        let io = found.downcast_ref::<std::io::Error>().and_then(of_io);
        if let Some(error) = io.or_else(|| found.downcast_ref()) {
            return Some(explain(error));
        }
        cause = found.source();
    }
    None
}

/// As rustls has them, so that a peer gets the right alert.
pub(super) fn from_webpki(error: webpki::Error) -> rustls::Error {
    use webpki::Error as E;
    let known = match error {
        E::UnsupportedCertVersion => return TrustError::VersionOne.into(),
        E::CaUsedAsEndEntity => return TrustError::IsAuthority.into(),
        E::BadDer | E::BadDerTime | E::TrailingData(_) => CertificateError::BadEncoding,
        E::CertNotValidYet { time, not_before } => CertificateError::NotValidYetContext { time, not_before },
        E::CertExpired { time, not_after } => CertificateError::ExpiredContext { time, not_after },
        E::UnknownIssuer => CertificateError::UnknownIssuer,
        E::CertRevoked => CertificateError::Revoked,
        E::UnknownRevocationStatus => CertificateError::UnknownRevocationStatus,
        E::CrlExpired { time, next_update } => {
            CertificateError::ExpiredRevocationListContext { time, next_update }
        }
        E::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        E::CertNotValidForName(context) => CertificateError::NotValidForNameContext {
            expected: context.expected,
            presented: context.presented,
        },
        E::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        other => return TrustError::Other(other.to_string()).into(),
    };
    known.into()
}

#[cfg(test)]
mod tests {
    use rustls::AlertDescription;

    use super::*;

    #[test]
    fn a_clients_alert_says_what_the_client_objects_to() {
        let told = explain_client(&rustls::Error::AlertReceived(AlertDescription::UnknownCA));
        assert!(told.contains("UnknownCA"), "{told}");
        assert!(
            told.ends_with("the router's certificate (its sslrootcert)"),
            "{told}"
        );
        let other = rustls::Error::AlertReceived(AlertDescription::InternalError);
        assert_eq!(explain_client(&other), explain(&other));
    }
}
