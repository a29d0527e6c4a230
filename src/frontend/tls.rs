//! TLS with clients: which certificate the router presents, and what the handshake shows about the
//! client.

use std::io;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::Acceptor as HelloReader;
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::certificate::{PeerCertificate, PeerCertificateError};
use crate::auth::scram::binding::tls_server_end_point;
use crate::config::ClientTls;
use crate::tls::{HelloStream, fits_name};

/// Accepts TLS handshakes. Made once for each set of certificates.
#[derive(Debug)]
pub struct Acceptor {
    /// At least one. The first is for clients that do not ask for the name of another one.
    served: Vec<Served>,
}

#[derive(Debug)]
struct Served {
    config: Arc<ServerConfig>,
    leaf: CertificateDer<'static>,
    binding: Option<Arc<[u8]>>,
}

/// What a login needs to know about its TLS connection.
#[derive(Debug, Clone)]
pub struct TlsFacts {
    /// `tls-server-end-point` of the presented certificate; `None` if its signature has no hash
    /// (RFC 5929).
    pub binding: Option<Arc<[u8]>>,
    /// The client's certificate, verified against `tls.client_ca_file`.
    pub certificate: Option<PeerCertificate>,
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Certificate(#[from] PeerCertificateError),
}

impl Acceptor {
    pub fn new(tls: &ClientTls) -> Self {
        let served = tls.certificates.iter().filter_map(|certificate| {
            let leaf = certificate.pair.chain.first()?.clone();
            Some(Served {
                config: Arc::clone(&certificate.server_config),
                binding: tls_server_end_point(&leaf).map(Arc::from),
                leaf,
            })
        });
        Self {
            served: served.collect(),
        }
    }

    /// The certificate for the name that a client asks for, matched by the rules that clients use:
    /// `*` stands for the whole first label. A client that asks for no name, an unknown name or an
    /// invalid name gets the first certificate, as PostgreSQL presents its only one.
    fn choose(&self, asked: Option<&str>) -> Option<&Served> {
        let first = self.served.first();
        if self.served.len() < 2 {
            return first;
        }
        let Some(name) = asked.and_then(|name| ServerName::try_from(name).ok()) else {
            return first;
        };
        let fits = |served: &&Served| fits_name(&served.leaf, &name).is_ok();
        self.served.iter().find(fits).or(first)
    }

    /// Performs the whole handshake. The caller limits its time.
    pub(super) async fn accept(
        &self,
        socket: TcpStream,
    ) -> Result<(TlsStream<HelloStream<TcpStream>>, TlsFacts), HandshakeError> {
        let hello = LazyConfigAcceptor::new(HelloReader::default(), HelloStream::new(socket)).await?;
        let asked = hello.client_hello().server_name().map(str::to_owned);
        let Some(served) = self.choose(asked.as_deref()) else {
            return Err(io::Error::other("no certificate").into());
        };
        let stream = hello.into_stream(Arc::clone(&served.config)).await?;
        let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let certificate = leaf.map(|leaf| PeerCertificate::read(leaf)).transpose()?;
        let binding = served.binding.clone();
        Ok((stream, TlsFacts { binding, certificate }))
    }
}
