//! Authorities, and the certificates that they may sign. As in OpenSSL, and unlike in rustls, an
//! authority's own certificate is checked: its time, that it is an authority at all, its purpose,
//! the number of authorities below it.

use std::cell::RefCell;

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, TrustAnchor, UnixTime};
use rustls::{CertificateError, DistinguishedName, RootCertStore};
use webpki::{EndEntityCert, KeyUsage, RawPublicKeyEntity, RevocationOptions, VerifiedPath};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;
use x509_parser::x509::X509Version;

use super::error::{TrustError, from_webpki};

/// The side of a connection that a certificate identifies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Party {
    Client,
    Server,
}

impl Party {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }

    fn usage(self) -> KeyUsage {
        match self {
            Self::Client => KeyUsage::client_auth(),
            Self::Server => KeyUsage::server_auth(),
        }
    }

    /// By its extended key usage, where it has one.
    fn is_purpose_of(self, certificate: &X509Certificate<'_>) -> bool {
        match certificate.extended_key_usage() {
            Ok(Some(usage)) => match self {
                Self::Client => usage.value.client_auth,
                Self::Server => usage.value.server_auth,
            },
            Ok(None) => true,
            Err(_) => false,
        }
    }

    /// Both of its usages.
    pub(super) fn check_purpose(self, certificate: &X509Certificate<'_>) -> Result<(), TrustError> {
        if !self.is_purpose_of(certificate) {
            return Err(TrustError::ExtendedKeyUsage(self.name()));
        }
        self.check_key_usage(certificate)
    }

    /// By its key usage, where it has one: what OpenSSL asks of the certificate of either side.
    fn check_key_usage(self, certificate: &X509Certificate<'_>) -> Result<(), TrustError> {
        let allowed = match certificate.key_usage() {
            Ok(None) => true,
            Ok(Some(usage)) => {
                let usage = usage.value;
                let both = usage.digital_signature() || usage.key_agreement();
                both || (self == Self::Server && usage.key_encipherment())
            }
            Err(_) => false,
        };
        if allowed {
            Ok(())
        } else {
            Err(TrustError::KeyUsage(self.name()))
        }
    }
}

/// What is trusted: authorities, and single certificates.
#[derive(Debug)]
pub(crate) struct Authorities {
    /// In the order of `known`.
    anchors: Vec<TrustAnchor<'static>>,
    known: Vec<Authority>,
    certificates: Vec<CertificateDer<'static>>,
}

/// The parts of an authority's certificate that are checked.
#[derive(Debug)]
struct Authority {
    subject: String,
    /// The name as it stands in the certificate, DER.
    name: Vec<u8>,
    key: SubjectPublicKeyInfoDer<'static>,
    not_before: i64,
    not_after: i64,
    may_sign_others: bool,
    for_clients: bool,
    for_servers: bool,
    path_length: Option<u32>,
    has_name_constraints: bool,
}

/// A certificate that cannot be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("certificate {number} cannot be used: {reason}")]
pub struct AuthorityError {
    /// From 1.
    pub number: usize,
    pub reason: String,
}

impl Authorities {
    /// These, at least one of them; each is also trusted itself.
    pub(crate) fn new(certificates: &[CertificateDer<'static>]) -> Result<Self, AuthorityError> {
        let mut all = Self::none();
        for (index, certificate) in certificates.iter().enumerate() {
            all.add(certificate).map_err(|reason| AuthorityError {
                number: index + 1,
                reason,
            })?;
            all.certificates.push(certificate.clone());
        }
        Ok(all)
    }

    /// The host's own. What cannot be read of them is left out.
    pub(crate) fn system() -> Self {
        let mut all = Self::none();
        for certificate in rustls_native_certs::load_native_certs().certs {
            let _ = all.add(&certificate);
        }
        all
    }

    /// Trusts no certificate.
    pub(crate) fn none() -> Self {
        Self {
            anchors: Vec::new(),
            known: Vec::new(),
            certificates: Vec::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }

    fn add(&mut self, certificate: &CertificateDer<'static>) -> Result<(), String> {
        let anchor = webpki::anchor_from_trusted_cert(certificate).map_err(|error| error.to_string())?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(certificate).map_err(|error| error.to_string())?;
        self.anchors.push(anchor.to_owned());
        self.known.push(Authority::read(&parsed));
        Ok(())
    }

    /// Warnings, one line each: certificates that are not trusted to sign others.
    pub(crate) fn warnings(&self, now: i64) -> Vec<String> {
        let mut warnings = Vec::new();
        for (index, authority) in self.known.iter().enumerate() {
            let number = index + 1;
            let subject = &authority.subject;
            if now > authority.not_after {
                let end = moment(authority.not_after);
                warnings.push(format!(
                    "certificate {number} ({subject}) expired on {end}: no certificate that it signed is accepted"
                ));
            } else if now < authority.not_before {
                let start = moment(authority.not_before);
                warnings.push(format!(
                    "certificate {number} ({subject}) is not valid before {start}: no certificate that it signed is accepted until then"
                ));
            } else if !authority.may_sign_others {
                warnings.push(format!(
                    "certificate {number} ({subject}) is not an authority: it is trusted itself, but no certificate that it signed is accepted"
                ));
            }
        }
        warnings
    }

    /// The names of authorities that are sent to a client, so that it chooses its certificate.
    pub(super) fn subjects(&self) -> Vec<DistinguishedName> {
        let roots = self.anchors.clone();
        RootCertStore { roots }.subjects()
    }

    /// Whether this very certificate is configured.
    pub(super) fn contains(&self, certificate: &CertificateDer<'_>) -> bool {
        self.certificates
            .iter()
            .any(|known| known.as_ref() == certificate.as_ref())
    }

    /// Whether a trusted authority signed a certificate, directly or through the ones that were
    /// sent with it.
    pub(super) fn check(
        &self,
        certificate: &CertificateDer<'_>,
        sent: &[CertificateDer<'_>],
        party: Party,
        now: UnixTime,
        algorithms: &WebPkiSupportedAlgorithms,
        revocation: Option<RevocationOptions<'_>>,
    ) -> Result<(), rustls::Error> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let is_revocable = revocation.is_some();
        match self.check_path(certificate, sent, party, now, algorithms, revocation) {
            // OpenSSL accepts both; webpki cannot.
            Err(webpki::Error::UnsupportedCertVersion) if !is_revocable => {
                self.check_direct(&parsed, party, now, algorithms, TrustError::VersionOne)?;
            }
            Err(webpki::Error::CaUsedAsEndEntity) if !is_revocable => {
                self.check_direct(&parsed, party, now, algorithms, TrustError::IsAuthority)?;
            }
            Err(webpki::Error::RequiredEkuNotFoundContext(_)) => {
                return Err(TrustError::ExtendedKeyUsage(party.name()).into());
            }
            Err(error) => return Err(self.explain(error, &parsed, sent, party, now)),
            Ok(()) => {}
        }
        Ok(party.check_key_usage(&parsed)?)
    }

    fn check_path(
        &self,
        certificate: &CertificateDer<'_>,
        sent: &[CertificateDer<'_>],
        party: Party,
        now: UnixTime,
        algorithms: &WebPkiSupportedAlgorithms,
        revocation: Option<RevocationOptions<'_>>,
    ) -> Result<(), webpki::Error> {
        let leaf = EndEntityCert::try_from(certificate)?;
        let check = |path: &VerifiedPath<'_>| self.check_issuers(path, party, now);
        leaf.verify_for_usage(
            algorithms.all,
            &self.anchors,
            sent,
            now,
            party.usage(),
            revocation,
            Some(&check),
        )
        .map(|_| ())
    }

    /// The checks of authorities that webpki does not make.
    fn check_issuers(
        &self,
        path: &VerifiedPath<'_>,
        party: Party,
        now: UnixTime,
    ) -> Result<(), webpki::Error> {
        let mut below = 0;
        for issuer in path.intermediate_certificates() {
            let der = issuer.der();
            let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|_| webpki::Error::BadDer)?;
            if !may_sign(&parsed) {
                return Err(webpki::Error::EndEntityUsedAsCa);
            }
            below += 1;
        }
        // The same key and name may stand in several certificates: one valid certificate is enough.
        let anchor = path.anchor();
        let mut last = webpki::Error::UnknownIssuer;
        for (known, authority) in self.anchors.iter().zip(&self.known) {
            if known.subject == anchor.subject
                && known.subject_public_key_info == anchor.subject_public_key_info
            {
                match authority.may_sign(party, seconds(now), below) {
                    Ok(()) => return Ok(()),
                    Err(_) => last = webpki::Error::EndEntityUsedAsCa,
                }
            }
        }
        Err(last)
    }

    /// In place of webpki's error, what is wrong with an authority that the certificate names.
    fn explain(
        &self,
        error: webpki::Error,
        parsed: &X509Certificate<'_>,
        sent: &[CertificateDer<'_>],
        party: Party,
        now: UnixTime,
    ) -> rustls::Error {
        if error == webpki::Error::InvalidSignatureForPublicKey {
            return TrustError::SignedByNamesake.into();
        }
        if !matches!(
            error,
            webpki::Error::EndEntityUsedAsCa | webpki::Error::UnknownIssuer
        ) {
            return from_webpki(error);
        }
        let mut issuers = vec![parsed.issuer().as_raw().to_vec()];
        for certificate in sent {
            if let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) {
                if error == webpki::Error::EndEntityUsedAsCa && !may_sign(&parsed) {
                    return TrustError::NotAnAuthority(shown(&parsed)).into();
                }
                issuers.push(parsed.issuer().as_raw().to_vec());
            }
        }
        self.known
            .iter()
            .filter(|authority| issuers.contains(&authority.name))
            .find_map(|authority| authority.may_sign(party, seconds(now), sent.len()).err())
            .map_or_else(|| from_webpki(error), rustls::Error::from)
    }

    /// A certificate that one of the authorities signed itself. `otherwise` is the error where none
    /// did.
    fn check_direct(
        &self,
        parsed: &X509Certificate<'_>,
        party: Party,
        now: UnixTime,
        algorithms: &WebPkiSupportedAlgorithms,
        otherwise: TrustError,
    ) -> Result<(), rustls::Error> {
        let error = RefCell::new(otherwise);
        let signed = self.known.iter().any(|authority| {
            if authority.name != parsed.issuer().as_raw() || !authority.has_signed(parsed, algorithms) {
                return false;
            }
            match authority.may_sign(party, seconds(now), 0) {
                // Only webpki checks constraints, and it cannot here.
                Ok(()) => !authority.has_name_constraints,
                Err(why) => {
                    *error.borrow_mut() = why;
                    false
                }
            }
        });
        if !signed {
            return Err(error.into_inner().into());
        }
        check_time(parsed, now)?;
        if !party.is_purpose_of(parsed) {
            return Err(TrustError::ExtendedKeyUsage(party.name()).into());
        }
        let is_known = |extension: &ParsedExtension<'_>| {
            matches!(
                extension,
                ParsedExtension::BasicConstraints(_)
                    | ParsedExtension::KeyUsage(_)
                    | ParsedExtension::ExtendedKeyUsage(_)
                    | ParsedExtension::SubjectAlternativeName(_)
                    | ParsedExtension::NSCertType(_)
            )
        };
        let mut extensions = parsed.extensions().iter();
        if extensions.any(|extension| extension.critical && !is_known(extension.parsed_extension())) {
            return Err(CertificateError::UnhandledCriticalExtension.into());
        }
        Ok(())
    }
}

impl Authority {
    fn read(parsed: &X509Certificate<'_>) -> Self {
        let constraints = parsed.basic_constraints().ok().flatten();
        Self {
            subject: shown(parsed),
            name: parsed.subject().as_raw().to_vec(),
            key: SubjectPublicKeyInfoDer::from(parsed.public_key().raw.to_vec()),
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            may_sign_others: may_sign(parsed),
            for_clients: Party::Client.is_purpose_of(parsed),
            for_servers: Party::Server.is_purpose_of(parsed),
            path_length: constraints.and_then(|found| found.value.path_len_constraint),
            has_name_constraints: !matches!(parsed.name_constraints(), Ok(None)),
        }
    }

    fn is_current(&self, now: i64) -> Result<(), TrustError> {
        if now > self.not_after {
            let end = moment(self.not_after);
            return Err(TrustError::AuthorityExpired(self.subject.clone(), end));
        }
        if now < self.not_before {
            let start = moment(self.not_before);
            return Err(TrustError::AuthorityNotYetValid(self.subject.clone(), start));
        }
        Ok(())
    }

    /// `below`: how many authorities stand between it and the certificate.
    fn may_sign(&self, party: Party, now: i64, below: usize) -> Result<(), TrustError> {
        self.is_current(now)?;
        if !self.may_sign_others {
            return Err(TrustError::NotAnAuthority(self.subject.clone()));
        }
        let is_for = match party {
            Party::Client => self.for_clients,
            Party::Server => self.for_servers,
        };
        if !is_for {
            return Err(TrustError::AuthorityPurpose(self.subject.clone()));
        }
        if self
            .path_length
            .is_some_and(|most| below as u64 > u64::from(most))
        {
            return Err(TrustError::PathLength(self.subject.clone()));
        }
        Ok(())
    }

    /// With any supported algorithm: what counts is that its key made the signature.
    fn has_signed(&self, parsed: &X509Certificate<'_>, algorithms: &WebPkiSupportedAlgorithms) -> bool {
        let Ok(key) = RawPublicKeyEntity::try_from(&self.key) else {
            return false;
        };
        let (message, signature) = (parsed.tbs_certificate.as_ref(), &parsed.signature_value.data);
        algorithms
            .all
            .iter()
            .any(|algorithm| key.verify_signature(*algorithm, message, signature).is_ok())
    }
}

/// Whether a certificate may sign others (OpenSSL's `check_ca`).
fn may_sign(parsed: &X509Certificate<'_>) -> bool {
    let usage = match parsed.key_usage() {
        Ok(usage) => usage.map(|found| found.value.key_cert_sign()),
        Err(_) => return false,
    };
    if usage == Some(false) {
        return false;
    }
    match parsed.basic_constraints() {
        Ok(Some(constraints)) => constraints.value.ca,
        Ok(None) if parsed.version() == X509Version::V1 => {
            parsed.subject().as_raw() == parsed.issuer().as_raw()
        }
        Ok(None) => usage == Some(true),
        Err(_) => false,
    }
}

/// Whether it is in its time.
pub(super) fn check_time(parsed: &X509Certificate<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let validity = parsed.validity();
    if seconds(now) > validity.not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    if seconds(now) < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    Ok(())
}

fn seconds(now: UnixTime) -> i64 {
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

fn shown(parsed: &X509Certificate<'_>) -> String {
    format!("\"{}\"", parsed.subject().to_string().escape_debug())
}

fn moment(timestamp: i64) -> String {
    x509_parser::time::ASN1Time::from_timestamp(timestamp)
        .map_or_else(|_| timestamp.to_string(), |time| time.to_string())
}
