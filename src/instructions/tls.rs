//! TLS over a connection in memory. Certificates do not matter here: the server has a raw key, and
//! the client accepts any.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::future;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio_rustls::{TlsAcceptor, TlsConnector, client};

use crate::frontend::ClientTlsStream;
use crate::session::memory::{self, MemoryStream};
use crate::tls::HelloStream;

type ClientEnd = Box<client::TlsStream<MemoryStream>>;
type ServerEnd = Box<ClientTlsStream<MemoryStream>>;

/// Both ends of a connection, behind their handshake.
pub(super) fn connection() -> (ClientEnd, ServerEnd) {
    let (near, far) = memory::connection();
    let name = ServerName::try_from("db1").expect("it is a name");
    let connecting = TlsConnector::from(Arc::new(client_config())).connect(name, near);
    let accepting = TlsAcceptor::from(Arc::new(server_config())).accept(HelloStream::new(far));
    let mut handshake = pin!(future::join(connecting, accepting));
    let mut context = Context::from_waker(Waker::noop());
    let (near, far) = loop {
        if let Poll::Ready(ends) = handshake.as_mut().poll(&mut context) {
            break ends;
        }
    };
    (
        Box::new(near.expect("the key is right")),
        Box::new(far.expect("the client is right")),
    )
}

fn server_config() -> ServerConfig {
    let pair = ::aws_lc_rs::signature::EcdsaKeyPair::generate(
        &::aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING,
    );
    let pair = pair.expect("there is randomness").to_pkcs8v1();
    let pair = PrivatePkcs8KeyDer::from(pair.expect("it is its own").as_ref().to_vec());
    let key = aws_lc_rs::sign::any_ecdsa_type(&PrivateKeyDer::Pkcs8(pair)).expect("it is of P-256");
    let public = key.public_key().expect("it has one").to_vec();
    let certified = CertifiedKey::new(vec![CertificateDer::from(public)], key);
    let resolver = AlwaysResolvesServerRawPublicKeys::new(Arc::new(certified));
    ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("they are its own")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver))
}

fn client_config() -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("they are its own")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyKey))
        .with_no_client_auth()
}

/// The other end is in the same function.
#[derive(Debug)]
struct AnyKey;

impl ServerCertVerifier for AnyKey {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
