//! A connection to a server, logged in and idle.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::auth::scram::ClientKey;
use crate::config::{Secret, ServerOptions};
use crate::wire::startup::ProtocolVersion;

/// Plain or TLS; implements `AsyncRead` and `AsyncWrite`.
#[derive(Debug)]
pub enum ServerStream {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

/// Ready-made TLS settings towards the servers of one cluster (from [`crate::config::ServerTls`]).
#[derive(Debug)]
pub struct TlsClient {}

/// How to log in.
#[derive(Debug, Clone)]
pub enum Credential {
    None,
    Password(Secret),
    /// SCRAM with the client's own key.
    ClientKey(ClientKey),
}

/// Whom to connect to, and as whom.
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

/// What it takes to cancel what runs on a server connection.
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
    /// Not told (a server before PostgreSQL 14).
    Unknown,
}

/// A connection after login's ReadyForQuery.
#[derive(Debug)]
pub struct ServerConnection {
    pub stream: ServerStream,
    /// ParameterStatus as sent at login, in order.
    pub parameters: Vec<(Bytes, Bytes)>,
    /// NoticeResponse frames sent during login, verbatim, bounded.
    pub notices: Vec<Bytes>,
    /// Bytes read behind ReadyForQuery.
    pub leftover: Bytes,
    pub role: SeenRole,
    pub address: SocketAddr,
    pub local_address: SocketAddr,
    pub is_tls: bool,
    /// The server's process id; `None` where it sent no BackendKeyData.
    pub process_id: Option<u32>,
    pub cancel: Option<CancelTarget>,
}

/// Connects and logs in before `deadline`.
pub async fn connect(
    _target: Target<'_>,
    _deadline: Instant,
) -> Result<ServerConnection, super::ConnectError> {
    todo!()
}

impl std::fmt::Debug for CancelTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelTarget")
            .field("address", &self.address)
            .field("process_id", &self.process_id)
            .finish_non_exhaustive()
    }
}
