//! A connection to a server, logged in and idle.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use super::error::{ConnectError, Step, Suspicion};
use super::hba_line;
use super::login::{LoggedIn, LoginRequest, ServerLoginFailure, login};
use super::orderly::{OrderlyStream, TERMINATE};
use super::socket::{dial, resolve};
use super::tls;
pub use super::tls::TlsClient;
use crate::auth::md5::Md5Hash;
use crate::auth::scram::ClientKey;
use crate::config::{ChannelBinding, Secret, ServerOptions, SslMode};
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::ProtocolVersion;

/// Plain or TLS; implements `AsyncRead` and `AsyncWrite`.
#[derive(Debug)]
pub enum ServerStream {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

/// How to log in.
#[derive(Debug, Clone)]
pub enum Credential {
    None,
    Password(Secret),
    /// SCRAM with the client's own key.
    ClientKey(ClientKey),
    /// For a server that knows the role by md5.
    Md5(Md5Hash),
}

/// The server to connect to, and the login.
#[derive(Debug, Clone)]
pub struct Target<'a> {
    pub host: &'a str,
    pub port: u16,
    pub tls: &'a Arc<TlsClient>,
    pub options: &'a ServerOptions,
    pub version: ProtocolVersion,
    /// The startup parameters, in order, `user` and `database` among them.
    pub parameters: &'a [(Bytes, Bytes)],
    pub credential: &'a Credential,
}

/// What a cancel request for a server connection needs.
#[derive(Clone)]
pub struct CancelTarget {
    pub address: SocketAddr,
    pub tls: Option<Arc<TlsClient>>,
    /// The name the certificate is checked against.
    pub host: Arc<str>,
    pub process_id: u32,
    pub key: Bytes,
}

/// What the server has shown of its role on this very connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeenRole {
    /// `in_hot_standby=off` (or `pg_is_in_recovery()` false).
    Writable,
    Standby,
    /// Not reported (a server before `PostgreSQL` 14).
    Unknown,
}

/// A connection after login's `ReadyForQuery`.
#[derive(Debug)]
pub struct ServerConnection<S: AsyncWrite + Unpin = ServerStream> {
    pub stream: OrderlyStream<S>,
    /// The requested version, or an older one that the server supports.
    pub version: ProtocolVersion,
    /// `ParameterStatus` as sent at login, in order.
    pub parameters: Vec<(Bytes, Bytes)>,
    /// `NoticeResponse` frames sent during login, verbatim, limited in number and bytes.
    pub notices: Vec<Bytes>,
    /// Bytes read behind `ReadyForQuery`.
    pub leftover: Bytes,
    pub role: SeenRole,
    pub address: SocketAddr,
    pub local_address: SocketAddr,
    pub is_tls: bool,
    /// The server's process id; `None` where it sent no `BackendKeyData`.
    pub process_id: Option<u32>,
    pub cancel: Option<CancelTarget>,
}

/// A server that is still there accepts Terminate at once.
const GOODBYE: Duration = Duration::from_millis(200);

impl ServerConnection {
    /// Sends Terminate and closes TLS in order: a server logs each TLS connection that ends without
    /// that. Best effort; ends within 200 ms.
    pub async fn close(self) {
        let mut stream = self.stream.release();
        let _ = timeout(GOODBYE, async {
            stream.write_all(TERMINATE).await?;
            stream.shutdown().await
        })
        .await;
    }
}

/// How one attempt is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encryption {
    Plain,
    /// TLS if the server answers `S`, else plain on the same connection.
    IfOffered,
    Required,
}

/// A connection on which nothing has been said but to set up TLS.
#[derive(Debug)]
pub(crate) struct OpenedStream<S> {
    pub stream: S,
    pub address: SocketAddr,
    pub local_address: SocketAddr,
    pub is_tls: bool,
    /// The hash of the server's certificate; `None` without TLS, or where it has none.
    pub end_point: Option<Vec<u8>>,
}

/// A failed attempt, and what the other one needs to know.
#[derive(Debug)]
pub(crate) struct Failure {
    pub error: ConnectError,
    /// The server that answered, for a second attempt on it.
    address: Option<SocketAddr>,
    /// The handshake failed, or the server refused the login before `AuthenticationOk` for a reason
    /// that encryption may change: its `pg_hba.conf` has `hostssl` and `hostnossl`.
    may_depend_on_encryption: bool,
    was_tls: bool,
}

/// Connects and logs in before `deadline`: all addresses of the host in order, then TLS, then
/// login.
///
/// As in libpq, `prefer` tries again without TLS, and `allow` again with TLS, on a new connection,
/// where the TLS handshake failed or the server refused the login before `AuthenticationOk`. Unlike
/// libpq not after SQLSTATE classes 53 and 57 (full, starting, stopping), which encryption does not
/// change. Where both attempts fail, the error of the one that got further is returned, else that
/// of the encrypted one. With `channel_binding: require` the router does not even try without TLS.
pub async fn connect(target: Target<'_>, deadline: Instant) -> Result<ServerConnection, ConnectError> {
    connect_leaving(target, deadline, &mut None).await
}

/// Like [`connect`]. If the deadline passes during the login, the connection is `left`: the server
/// may be busy with it, and does not notice that it is closed.
pub async fn connect_leaving(
    target: Target<'_>,
    deadline: Instant,
    left: &mut Option<OrderlyStream<ServerStream>>,
) -> Result<ServerConnection, ConnectError> {
    let addresses = resolve(target.host, target.port, deadline).await?;
    let is_bound = target.tls.channel_binding() == ChannelBinding::Require;
    let (first, second) = match target.tls.mode() {
        SslMode::Allow | SslMode::Prefer if is_bound => (Encryption::IfOffered, None),
        SslMode::Disable => (Encryption::Plain, None),
        SslMode::Allow => (Encryption::Plain, Some(Encryption::Required)),
        SslMode::Prefer => (Encryption::IfOffered, Some(Encryption::Plain)),
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => (Encryption::Required, None),
    };
    let failure = match attempt(&target, &addresses, first, deadline, left).await {
        Ok(connection) => return Ok(connection),
        Err(failure) => failure,
    };
    // After `prefer` was answered `N`, the plain attempt has been made already.
    let second = second.filter(|second| {
        failure.may_depend_on_encryption && (*second != Encryption::Plain) != failure.was_tls
    });
    let (Some(second), Some(address)) = (second, failure.address) else {
        return Err(failure.error);
    };
    tracing::debug!(error = %failure.error, ?second, "trying the other encryption");
    match attempt(&target, &[address], second, deadline, left).await {
        Ok(connection) => {
            if second == Encryption::Plain {
                target.tls.fell_back(address, &failure.error);
            }
            Ok(connection)
        }
        Err(later) => Err(telling(failure, later.error)),
    }
}

/// The more useful error of two attempts: if the server answered one of them, its answer.
fn telling(first: Failure, later: ConnectError) -> ConnectError {
    let is_before_login = |error: &ConnectError| error.suspicion() >= Suspicion::Likely;
    match (is_before_login(&first.error), is_before_login(&later)) {
        // Only an encrypted connection would be admitted: report why there is none.
        (true, false) if matches!(&later, ConnectError::Server(error) if error.code == SqlState::INVALID_AUTHORIZATION) => {
            ConnectError::TlsThenRefused {
                reason: first.error.to_string(),
            }
        }
        (true, false) => later,
        (false, true) => first.error,
        _ if first.was_tls => first.error,
        _ => later,
    }
}

async fn attempt(
    target: &Target<'_>,
    addresses: &[SocketAddr],
    encryption: Encryption,
    deadline: Instant,
    left: &mut Option<OrderlyStream<ServerStream>>,
) -> Result<ServerConnection, Failure> {
    let (stream, address) = dial(addresses, target.options, deadline)
        .await
        .map_err(|error| Failure {
            error,
            address: None,
            may_depend_on_encryption: false,
            was_tls: false,
        })?;
    let stream = match encryption {
        Encryption::Plain => ServerStream::Plain(stream),
        Encryption::IfOffered | Encryption::Required => target
            .tls
            .negotiate(stream, target.host, address, deadline)
            .await
            .map_err(|error| Failure {
                may_depend_on_encryption: is_handshake_failure(&error),
                error,
                address: Some(address),
                was_tls: true,
            })?,
    };
    let is_tls = stream.is_tls();
    let failed = |error, may_depend_on_encryption| Failure {
        error,
        address: Some(address),
        may_depend_on_encryption,
        was_tls: is_tls,
    };
    if encryption == Encryption::Required && !is_tls {
        return Err(failed(ConnectError::TlsRefused, false));
    }
    if !is_tls && target.tls.channel_binding() == ChannelBinding::Require {
        let reason = "it is required, and the connection has no TLS";
        return Err(failed(ConnectError::ChannelBinding { reason }, false));
    }
    let local_address = stream
        .tcp()
        .local_addr()
        .map_err(|error| failed(ConnectError::io(Step::Connect, error), false))?;
    let opened = OpenedStream {
        end_point: tls::end_point(&stream),
        stream,
        address,
        local_address,
        is_tls,
    };
    log_in(opened, target, deadline, left).await
}

/// Logs in before `deadline`, which, if it passes, leaves the connection in `left`.
pub(crate) async fn log_in<S: AsyncRead + AsyncWrite + Unpin>(
    opened: OpenedStream<S>,
    target: &Target<'_>,
    deadline: Instant,
    left: &mut Option<OrderlyStream<S>>,
) -> Result<ServerConnection<S>, Failure> {
    let OpenedStream {
        stream,
        address,
        local_address,
        is_tls,
        end_point,
    } = opened;
    let mut stream = OrderlyStream::new(stream);
    let failed = |error, may_depend_on_encryption| Failure {
        error,
        address: Some(address),
        may_depend_on_encryption,
        was_tls: is_tls,
    };
    let request = LoginRequest {
        version: target.version,
        parameters: target.parameters,
        credential: target.credential,
        is_tls,
        channel_binding: target.tls.channel_binding(),
        end_point,
        require_auth: target.tls.require_auth(),
        is_verified: is_tls && target.tls.verifies(),
        is_local: address.ip().is_loopback(),
        has_answered: AtomicBool::new(is_tls),
    };
    let logged_in = match timeout_at(deadline, login(&mut *stream, &request)).await {
        Err(_) => {
            let step = if request.has_answered.load(Ordering::Relaxed) {
                Step::Start
            } else {
                Step::Login
            };
            *left = Some(stream);
            return Err(failed(ConnectError::Timeout { step }, false));
        }
        Ok(Err(ServerLoginFailure {
            mut error,
            authenticated,
        })) => {
            let mut retry = false;
            if let ConnectError::Server(server) = &mut error {
                server.hba_line = hba_line::needed(server, target.parameters, local_address.ip(), is_tls);
                retry =
                    !authenticated && !server.code.is_in_class(*b"53") && !server.code.is_in_class(*b"57");
            }
            return Err(failed(error, retry));
        }
        Ok(Ok(logged_in)) => {
            if is_tls {
                target.tls.encrypted(address);
            }
            logged_in
        }
    };
    let LoggedIn {
        version,
        parameters,
        notices,
        role,
        key,
        leftover,
    } = logged_in;
    Ok(ServerConnection {
        stream: stream.logged_in(),
        version,
        parameters,
        notices,
        leftover,
        role,
        address,
        local_address,
        is_tls,
        process_id: key.as_ref().map(|(process_id, _)| *process_id),
        cancel: key.map(|(process_id, key)| CancelTarget {
            address,
            tls: is_tls.then(|| Arc::clone(target.tls)),
            host: Arc::from(target.host),
            process_id,
            key,
        }),
    })
}

fn is_handshake_failure(error: &ConnectError) -> bool {
    match error {
        ConnectError::Tls { .. } | ConnectError::Certificate { .. } => true,
        ConnectError::Lost { step, .. } | ConnectError::Closed { step } => *step == Step::TlsHandshake,
        _ => false,
    }
}

impl std::fmt::Debug for CancelTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelTarget")
            .field("address", &self.address)
            .field("process_id", &self.process_id)
            .finish_non_exhaustive()
    }
}
