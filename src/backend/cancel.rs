//! `CancelRequest` towards a server.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, timeout_at};

use super::connection::{CancelTarget, ServerStream, TlsClient};
use super::error::{ConnectError, Step};
use super::reader::send;
use super::socket::{dial, resolve};
use crate::config::{ServerOptions, SslMode};
use crate::wire::message;

impl CancelTarget {
    /// Sends the request to the address the session is connected to, over TLS if the session is,
    /// and waits until the server has closed the connection: then the signal was sent, and it
    /// cannot hit the session's next statement. After an error, a reset included, it may still hit
    /// one. `timeout` limits all of it. `Ok` does not mean that anything was cancelled
    /// (docs/protocol.md, cases 32 and 33).
    pub async fn send(self, timeout: Duration) -> Result<(), ConnectError> {
        let deadline = Instant::now() + timeout;
        let options = ServerOptions {
            connect_timeout: timeout,
            keepalive: None,
            tcp_user_timeout: None,
        };
        let (stream, address) = dial(&[self.address], &options, deadline).await?;
        let mut stream = match &self.tls {
            None => ServerStream::Plain(stream),
            Some(tls) => match tls.negotiate(stream, &self.host, address, deadline).await? {
                // The key is not sent in clear if the session's was not.
                ServerStream::Plain(_) => return Err(ConnectError::TlsRefused),
                encrypted @ ServerStream::Tls(_) => encrypted,
            },
        };
        let mut request = BytesMut::new();
        message::cancel_request(&mut request, self.process_id, &self.key);
        deliver(&mut stream, &request, deadline).await
    }
}

/// Sends a request that came in clear with a server's own key. It is encrypted as sessions with
/// this server are: in clear only where a session may be, too. Otherwise like
/// [`CancelTarget::send`].
pub async fn pass_cancel(
    host: &str,
    port: u16,
    tls: &TlsClient,
    request: &[u8],
    timeout: Duration,
) -> Result<(), ConnectError> {
    let deadline = Instant::now() + timeout;
    let options = ServerOptions {
        connect_timeout: timeout,
        keepalive: None,
        tcp_user_timeout: None,
    };
    let addresses = resolve(host, port, deadline).await?;
    let (stream, address) = dial(&addresses, &options, deadline).await?;
    let mut stream = match tls.mode() {
        SslMode::Disable | SslMode::Allow => ServerStream::Plain(stream),
        SslMode::Prefer => match tls.negotiate(stream, host, address, deadline).await {
            Ok(stream) => stream,
            // As sessions do.
            Err(_) => ServerStream::Plain(dial(&[address], &options, deadline).await?.0),
        },
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => {
            match tls.negotiate(stream, host, address, deadline).await? {
                ServerStream::Plain(_) => return Err(ConnectError::TlsRefused),
                encrypted @ ServerStream::Tls(_) => encrypted,
            }
        }
    };
    deliver(&mut stream, request, deadline).await
}

/// Waits until the server has closed: then the signal was sent.
async fn deliver(stream: &mut ServerStream, request: &[u8], deadline: Instant) -> Result<(), ConnectError> {
    timeout_at(deadline, async {
        send(stream, request, Step::Cancel).await?;
        match stream.read(&mut [0; 1]).await {
            Ok(0) => Ok(()),
            Ok(_) => Err(ConnectError::protocol(Step::Cancel, "an answer to CancelRequest")),
            // Closed in order, but for TLS's close_notify, which PostgreSQL does not send. A reset
            // is no such end: it may come from something in between, while the request is still on
            // its way.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
            Err(error) => Err(ConnectError::io(Step::Cancel, error)),
        }
    })
    .await
    .map_err(|_| ConnectError::Timeout { step: Step::Cancel })?
}
