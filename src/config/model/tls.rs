//! Certificates and keys, and TLS to clients.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::words::words;

/// TLS towards clients.
#[derive(Debug)]
pub struct ClientTls {
    /// At least one. Each serves the names of its `subjectAltName`; the first serves all others,
    /// and who names none.
    pub certificates: Vec<ServedCertificate>,
    /// Clients are asked for a certificate; they may have none, but a bad one ends the handshake.
    pub asks_clients: bool,
    /// The authorities of clients' certificates.
    pub client_roots: Option<Vec<CertificateDer<'static>>>,
}

/// A certificate for clients.
pub struct ServedCertificate {
    pub pair: Arc<KeyPair>,
    /// Ready to use: ALPN `postgresql`, no resumption, no tickets, at most 8 KiB of plaintext in a
    /// record, and what is asked of clients.
    pub server_config: Arc<rustls::ServerConfig>,
}

impl std::fmt::Debug for ServedCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServedCertificate")
            .field("pair", &self.pair)
            .finish_non_exhaustive()
    }
}

/// A certificate chain, leaf first, and its private key.
#[derive(PartialEq, Eq)]
pub struct KeyPair {
    pub cert_file: PathBuf,
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair")
            .field("cert_file", &self.cert_file)
            .finish_non_exhaustive()
    }
}

/// The first certificate of a file, as the operator needs to see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leaf {
    pub cert_file: PathBuf,
    pub subject: String,
    /// DNS names and addresses of its `subjectAltName`.
    pub names: Vec<String>,
    /// Unix seconds.
    pub not_after: i64,
}

words! {
    /// The oldest version of TLS that clients may use.
    pub(in crate::config) enum MinVersion {
        Tls12 = "1.2",
        Tls13 = "1.3",
    }
}
