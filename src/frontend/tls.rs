//! TLS towards clients: which certificate is shown, and what is known of the client when the handshake is done.

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

/// Ready to take TLS handshakes; made once for each set of certificates.
#[derive(Debug)]
pub struct Acceptor {
    /// At least one; the first is for who names none of the others.
    served: Vec<Served>,
}

#[derive(Debug)]
struct Served {
    config: Arc<ServerConfig>,
    leaf: CertificateDer<'static>,
    binding: Option<Arc<[u8]>>,
}

/// What a login needs to know of the TLS connection it runs on.
#[derive(Debug, Clone)]
pub struct TlsFacts {
    /// `tls-server-end-point` of the certificate that was shown; `None` where its signature has no hash (RFC 5929).
    pub binding: Option<Arc<[u8]>>,
    /// The client's, verified against `tls.client_ca_file`.
    pub certificate: Option<PeerCertificate>,
}

/// Why a handshake came to nothing.
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

    /// The certificate for the name a client asks for, by the rules a client checks it with: `*` is one whole label, the
    /// first. Unknown names, none, and what is
    /// no name get the first certificate, as PostgreSQL shows its only one.
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

    /// The whole handshake. The caller bounds its time.
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
