//! rustls' verifiers, for both sides.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use webpki::{
    CertRevocationList, ExpirationPolicy, OwnedCertRevocationList, RevocationCheckDepth,
    RevocationOptionsBuilder, UnknownStatusPolicy,
};

use super::authority::{Authorities, Party, check_time};
use super::error::from_webpki;
use super::hello::restored;
use super::name::fits_name;
use super::signature;

/// The checks of a server's certificate. That its key signed the handshake is always checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameCheck {
    Nothing,
    Chain,
    ChainAndName,
}

/// Verifies servers: PostgreSQL, Patroni, etcd, LDAP, other routers.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    check: NameCheck,
    authorities: Authorities,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerVerifier {
    pub(crate) fn new(check: NameCheck, authorities: Authorities, provider: &CryptoProvider) -> Arc<Self> {
        Arc::new(Self {
            check,
            authorities,
            algorithms: provider.signature_verification_algorithms,
        })
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.check == NameCheck::Nothing {
            return Ok(ServerCertVerified::assertion());
        }
        if self.authorities.contains(end_entity) {
            let (_, parsed) = x509_parser::parse_x509_certificate(end_entity)
                .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
            check_time(&parsed, now)?;
        } else {
            self.authorities.check(
                end_entity,
                intermediates,
                Party::Server,
                now,
                &self.algorithms,
                None,
            )?;
        }
        if self.check == NameCheck::ChainAndName {
            fits_name(end_entity, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature::tls12(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature::tls13(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Asks clients for a certificate, which they may leave out; one that is shown must be valid. With
/// revocation lists the whole chain is checked, as PostgreSQL does (`X509_V_FLAG_CRL_CHECK_ALL`):
/// certificates of an authority without a list, or with an overdue one, are refused.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    authorities: Authorities,
    subjects: Vec<DistinguishedName>,
    lists: Vec<CertRevocationList<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ClientVerifier {
    /// `Err` is a sentence.
    pub(crate) fn new(
        authorities: Authorities,
        lists: &[CertificateRevocationListDer<'static>],
        provider: &CryptoProvider,
    ) -> Result<Arc<Self>, String> {
        if authorities.is_empty() {
            return Err("no authority can be used".to_owned());
        }
        let lists = lists
            .iter()
            .map(|list| OwnedCertRevocationList::from_der(list).map(CertRevocationList::from))
            .collect::<Result<_, _>>()
            .map_err(|error| format!("a revocation list cannot be used: {error}"))?;
        Ok(Arc::new(Self {
            subjects: authorities.subjects(),
            authorities,
            lists,
            algorithms: provider.signature_verification_algorithms,
        }))
    }

    /// A certificate that is trusted itself, where there are revocation lists: one of its issuer
    /// has to be among them.
    fn check_listed(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        if self.lists.is_empty() {
            return Ok(());
        }
        // A list names its issuer without the outer tag, as webpki has it of certificates.
        let leaf = webpki::EndEntityCert::try_from(certificate).map_err(from_webpki)?;
        let mut lists = self
            .lists
            .iter()
            .filter(|list| list.issuer() == leaf.issuer())
            .peekable();
        if lists.peek().is_none() {
            return Err(CertificateError::UnknownRevocationStatus.into());
        }
        for list in lists {
            if list.find_serial(leaf.serial()).map_err(from_webpki)?.is_some() {
                return Err(CertificateError::Revoked.into());
            }
        }
        Ok(())
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.subjects
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        if self.authorities.contains(end_entity) {
            let (_, parsed) = x509_parser::parse_x509_certificate(end_entity)
                .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
            check_time(&parsed, now)?;
            Party::Client.check_purpose(&parsed)?;
            self.check_listed(end_entity)?;
            return Ok(ClientCertVerified::assertion());
        }
        let lists: Vec<_> = self.lists.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
            options
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Deny)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        self.authorities.check(
            end_entity,
            intermediates,
            Party::Client,
            now,
            &self.algorithms,
            revocation,
        )?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // The signature covers the whole handshake so far, as the client knows it.
        let original = restored(message);
        signature::tls12(
            original.as_deref().unwrap_or(message),
            cert,
            dss,
            &self.algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signature::tls13(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
