//! TLS towards servers, with the meaning of libpq's `sslmode`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{AlertDescription, ClientConfig};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::connection::ServerStream;
use super::error::{ConnectError, Step, escape};
use crate::auth::scram::tls_server_end_point;
use crate::config::{ChannelBinding, KeyPair, RequireAuth, ServerTls, SslMode, SslNegotiation};
use crate::tls::{self, Authorities, AuthorityError, NameCheck, ServerVerifier, certified};
use crate::wire::message;

/// How much of an error before TLS is read, and how long it may take: it is only for the log.
const EARLY_ERROR_BYTES: usize = 1024;
const EARLY_ERROR_WAIT: Duration = Duration::from_millis(500);

/// PostgreSQL's name for its protocol in ALPN.
const ALPN: &[u8] = b"postgresql";

/// Ready-made TLS settings towards the servers of one cluster (from [`ServerTls`]).
///
/// As in libpq: with roots of the configuration the chain is verified in every mode that uses TLS;
/// without, only in `verify-ca` and `verify-full`, against the system's roots. The name (or IP
/// address) is verified in `verify-full` only. A server certificate that is itself one of the
/// configured roots is trusted (a self-signed certificate given as `sslrootcert`).
#[derive(Clone)]
pub struct TlsClient {
    mode: SslMode,
    negotiation: SslNegotiation,
    channel_binding: ChannelBinding,
    require_auth: RequireAuth,
    check: NameCheck,
    server_name: Option<Arc<str>>,
    in_clear: Arc<InClear>,
    connector: Option<TlsConnector>,
}

/// Servers with which `prefer` has fallen back to clear text, and for which that was logged.
#[derive(Debug, Default)]
struct InClear(Mutex<BTreeSet<SocketAddr>>);

/// The number of servers that are remembered. Beyond it each fallback is logged.
const MOST_IN_CLEAR: usize = 1024;

impl std::fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsClient")
            .field("mode", &self.mode)
            .field("negotiation", &self.negotiation)
            .field("channel_binding", &self.channel_binding)
            .finish_non_exhaustive()
    }
}

/// Why TLS settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsSettingsError {
    #[error("no usable root certificate in sslrootcert or the system's store")]
    NoRoots,
    #[error("sslrootcert: {0}")]
    Root(#[from] AuthorityError),
    #[error("the client certificate cannot be used: {0}")]
    ClientCertificate(rustls::Error),
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

impl TlsClient {
    pub fn new(settings: &ServerTls) -> Result<Arc<Self>, TlsSettingsError> {
        if settings.sslmode == SslMode::Disable {
            return Ok(Arc::new(Self {
                mode: settings.sslmode,
                negotiation: settings.sslnegotiation,
                channel_binding: settings.channel_binding,
                require_auth: settings.require_auth.clone(),
                ..Self::none()
            }));
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let check = check(settings);
        let verifier = ServerVerifier::new(check, authorities(settings, check)?, &provider);
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsSettingsError::Setup)?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match &settings.client_certificate {
            Some(pair) => builder.with_client_cert_resolver(resolver(pair, &provider)?),
            None => builder.with_no_client_auth(),
        };
        // PostgreSQL never resumes a session.
        config.resumption = Resumption::disabled();
        // As libpq 17 does, also after SSLRequest; older servers ignore it.
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Arc::new(Self {
            mode: settings.sslmode,
            negotiation: settings.sslnegotiation,
            channel_binding: settings.channel_binding,
            require_auth: settings.require_auth.clone(),
            check,
            server_name: settings.server_name.as_deref().map(Arc::from),
            in_clear: Arc::default(),
            connector: Some(TlsConnector::from(Arc::new(config))),
        }))
    }

    /// The same with another client certificate, for the connections of one user.
    pub fn with_certificate(&self, pair: &KeyPair) -> Result<Arc<Self>, TlsSettingsError> {
        let connector = match &self.connector {
            None => None,
            Some(connector) => {
                let mut config = ClientConfig::clone(connector.config());
                config.client_auth_cert_resolver = resolver(pair, config.crypto_provider())?;
                Some(TlsConnector::from(Arc::new(config)))
            }
        };
        Ok(Arc::new(Self {
            connector,
            ..self.clone()
        }))
    }

    /// `sslmode: disable`.
    pub fn disabled() -> Arc<Self> {
        Arc::new(Self::none())
    }

    fn none() -> Self {
        Self {
            mode: SslMode::Disable,
            negotiation: SslNegotiation::Postgres,
            channel_binding: ChannelBinding::Prefer,
            require_auth: RequireAuth::Safe,
            check: NameCheck::Nothing,
            server_name: None,
            in_clear: Arc::default(),
            connector: None,
        }
    }

    pub fn mode(&self) -> SslMode {
        self.mode
    }

    pub fn channel_binding(&self) -> ChannelBinding {
        self.channel_binding
    }

    pub(super) fn require_auth(&self) -> &RequireAuth {
        &self.require_auth
    }

    /// Whether a server with TLS has shown a certificate that a trusted authority signed.
    pub(super) fn verifies(&self) -> bool {
        self.check != NameCheck::Nothing
    }

    /// `prefer` goes on in clear text after TLS failed: one warning until TLS works again.
    pub(super) fn fell_back(&self, address: SocketAddr, why: &ConnectError) {
        let mut known = self.in_clear.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = if known.len() < MOST_IN_CLEAR {
            known.insert(address)
        } else {
            !known.contains(&address)
        };
        drop(known);
        if is_new {
            tracing::warn!(
                server = %address,
                reason = %why,
                "connections to a server go on in clear text (sslmode: prefer); sslmode: require refuses that"
            );
        }
    }

    /// TLS works with this server.
    pub(super) fn encrypted(&self, address: SocketAddr) {
        self.in_clear
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&address);
    }

    /// Sets up TLS on a fresh connection, after `SSLRequest` or at once. `Ok(Plain)` where the
    /// server answered `N`: the caller decides whether that is acceptable.
    pub(super) async fn negotiate(
        &self,
        mut stream: TcpStream,
        host: &str,
        address: SocketAddr,
        deadline: Instant,
    ) -> Result<ServerStream, ConnectError> {
        let connector = self.connector.as_ref().ok_or(ConnectError::TlsRefused)?;
        if self.negotiation == SslNegotiation::Postgres {
            match request(&mut stream, deadline).await? {
                Offer::Tls => {}
                Offer::Nothing => return Ok(ServerStream::Plain(stream)),
            }
        }
        let host = self.server_name.as_deref().unwrap_or(host);
        let name = match ServerName::try_from(host) {
            Ok(name) => name.to_owned(),
            Err(_) if self.mode == SslMode::VerifyFull => {
                let reason = format!(
                    "\"{}\" is not a name a certificate can have",
                    host.escape_default()
                );
                return Err(ConnectError::Certificate { reason });
            }
            Err(_) => ServerName::from(address.ip()),
        };
        let asked = matches!(name, ServerName::DnsName(_));
        let tls = timeout_at(deadline, connector.connect(name, stream))
            .await
            .map_err(|_| ConnectError::Timeout {
                step: Step::TlsHandshake,
            })?
            .map_err(|error| self.handshake_failed(error, asked))?;
        // A peer without ALPN may be another service, or an older server behind a proxy that
        // terminates TLS.
        if self.negotiation == SslNegotiation::Direct && tls.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(ConnectError::DirectTls {
                reason: "it did not agree on the protocol \"postgresql\" (ALPN)",
            });
        }
        Ok(ServerStream::Tls(Box::new(tls)))
    }

    fn handshake_failed(&self, error: std::io::Error, asked: bool) -> ConnectError {
        if let Some(rustls::Error::AlertReceived(alert)) = tls::of_io(&error)
            && wants_name(*alert, asked)
        {
            let hint = if asked {
                "it knows no such name"
            } else {
                "it was asked for no name, since its host is an address"
            };
            let reason = format!(
                "{}; {hint} (PostgreSQL 19 with ssl_sni = on looks names up in its pg_hosts.conf; \
                 server_tls.server_name says what to ask for)",
                tls::explain(&rustls::Error::AlertReceived(*alert))
            );
            return ConnectError::Tls { reason };
        }
        match ConnectError::io(Step::TlsHandshake, error) {
            // What a server before PostgreSQL 17 does: it takes the ClientHello for a broken
            // startup packet.
            ConnectError::Closed { .. } | ConnectError::Lost { .. }
                if self.negotiation == SslNegotiation::Direct =>
            {
                ConnectError::DirectTls {
                    reason: "it closed the connection during the handshake",
                }
            }
            other => other,
        }
    }
}

/// Whether this end of a handshake may mean that the server expected a name, or did not know the
/// one it got.
fn wants_name(alert: AlertDescription, asked: bool) -> bool {
    match alert {
        AlertDescription::UnrecognisedName => true,
        AlertDescription::HandshakeFailure | AlertDescription::MissingExtension => !asked,
        _ => false,
    }
}

fn resolver(pair: &KeyPair, provider: &CryptoProvider) -> Result<Arc<SingleCertAndKey>, TlsSettingsError> {
    certified(&pair.chain, &pair.key, provider)
        .map(|certified| Arc::new(SingleCertAndKey::from(certified)))
        .map_err(TlsSettingsError::ClientCertificate)
}

/// The hash of the server's certificate on this connection; `None` without TLS, or where it has
/// none.
pub(super) fn end_point(stream: &ServerStream) -> Option<Vec<u8>> {
    match stream {
        ServerStream::Plain(_) => None,
        ServerStream::Tls(tls) => tls_server_end_point(tls.get_ref().1.peer_certificates()?.first()?),
    }
}

/// A server's answer to `SSLRequest`.
enum Offer {
    Tls,
    Nothing,
}

async fn request(stream: &mut TcpStream, deadline: Instant) -> Result<Offer, ConnectError> {
    let answer = timeout_at(deadline, ask(stream))
        .await
        .map_err(|_| ConnectError::Timeout {
            step: Step::TlsRequest,
        })??;
    match answer {
        b'S' => refuse_early_bytes(stream).map(|()| Offer::Tls),
        b'N' => Ok(Offer::Nothing),
        b'E' => Err(early_error(stream, deadline).await),
        other => {
            let what = format!("answer '{}' to SSLRequest", other.escape_ascii());
            Err(ConnectError::protocol(Step::TlsRequest, what))
        }
    }
}

/// Sends `SSLRequest` and reads exactly one byte.
async fn ask(stream: &mut TcpStream) -> Result<u8, ConnectError> {
    let failed = |error| ConnectError::io(Step::TlsRequest, error);
    let mut request = BytesMut::new();
    message::ssl_request(&mut request);
    stream.write_all(&request).await.map_err(failed)?;
    stream.read_u8().await.map_err(failed)
}

/// Nothing may follow `S` before the router's `ClientHello` (CVE-2021-23222). Bytes that arrive
/// later than this look end up in the handshake, never in the encrypted stream, because only one
/// byte was read.
fn refuse_early_bytes(stream: &TcpStream) -> Result<(), ConnectError> {
    let mut byte = [std::mem::MaybeUninit::uninit(); 1];
    match SockRef::from(stream).peek(&mut byte) {
        Ok(0) => Err(ConnectError::Closed {
            step: Step::TlsRequest,
        }),
        Ok(_) => Err(ConnectError::protocol(
            Step::TlsRequest,
            "unencrypted bytes after the answer to SSLRequest",
        )),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(ConnectError::io(Step::TlsRequest, error)),
    }
}

async fn early_error(stream: &mut TcpStream, deadline: Instant) -> ConnectError {
    let until = deadline.min(Instant::now() + EARLY_ERROR_WAIT);
    let mut text = Vec::new();
    // However it ends, the text that has come can be shown.
    let _ = timeout_at(
        until,
        stream.take(EARLY_ERROR_BYTES as u64).read_to_end(&mut text),
    )
    .await;
    ConnectError::ErrorBeforeTls {
        text: escape(&text, EARLY_ERROR_BYTES),
    }
}

/// How the settings verify a server's certificate.
fn check(settings: &ServerTls) -> NameCheck {
    match settings.sslmode {
        SslMode::VerifyFull => NameCheck::ChainAndName,
        SslMode::VerifyCa => NameCheck::Chain,
        SslMode::Disable | SslMode::Allow | SslMode::Prefer | SslMode::Require => match settings.roots {
            Some(_) => NameCheck::Chain,
            None => NameCheck::Nothing,
        },
    }
}

fn authorities(settings: &ServerTls, check: NameCheck) -> Result<Authorities, TlsSettingsError> {
    let authorities = match &settings.roots {
        Some(roots) => Authorities::new(roots)?,
        None if check == NameCheck::Nothing => return Ok(Authorities::none()),
        None => Authorities::system(),
    };
    if authorities.is_empty() {
        return Err(TlsSettingsError::NoRoots);
    }
    Ok(authorities)
}
