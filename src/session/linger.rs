//! Keeps what a session holds on a server until the server has ended its part too: a place there,
//! and the share of its user, database and address.
//!
//! A server does not notice that its client is gone while it runs a statement, waits for a lock, or
//! sleeps in a login. Its process outlives the connection, and so does the place that it takes
//! among `max_connections`. Without this a client could have any number of them by leaving each
//! time.

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::stream::SessionStream;

/// How long a server's process needs to end after it has noticed that its client is gone.
const ENDING: Duration = Duration::from_millis(200);
/// The longest wait if the kernel does not notice that the server's host is gone
/// (`server.keepalive` is off).
const BLIND: Duration = Duration::from_mins(10);

/// Notifies the server that nothing more comes, and returns when the server has ended the
/// connection, or can be assumed to have ended it. No client waits for this; the kernel's keepalive
/// limits it if the server's host is gone. It returns at once when the router shuts down, because
/// there are no new sessions to count then.
pub(super) async fn until_ended(
    server: impl SessionStream,
    has_keepalive: bool,
    closing: &CancellationToken,
) {
    // The session may have done this before.
    server.end_socket();
    let limit = if has_keepalive { Duration::MAX } else { BLIND };
    tokio::select! {
        _ = timeout(limit, ended(server)) => {}
        () = closing.cancelled() => {}
    }
}

/// Like [`until_ended`], in a separate task that holds `held` as long.
pub(super) fn hold<T: Send + 'static>(
    server: impl SessionStream + Send + 'static,
    has_keepalive: bool,
    closing: &CancellationToken,
    held: T,
) {
    let closing = closing.clone();
    tokio::spawn(async move {
        until_ended(server, has_keepalive, &closing).await;
        drop(held);
    });
}

/// Does not read for long from a server that continues to send. Closing the connection with unread
/// bytes resets it, and the server notices that when it sends more.
async fn ended(mut server: impl SessionStream) {
    // A long wait holds no buffer.
    if !matches!(server.read(&mut [0; 1]).await, Ok(1..)) {
        return;
    }
    // The end of TLS, or of an answer, is followed by the end of the connection at once.
    if timeout(ENDING, drained(&mut server)).await.is_err() {
        drop(server);
        sleep(ENDING).await;
    }
}

async fn drained(server: &mut impl SessionStream) {
    let mut waste = vec![0; 4096];
    while matches!(server.read(&mut waste).await, Ok(1..)) {}
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(near, listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn the_wait_lasts_until_a_working_server_has_ended() {
        let (ours, mut server) = pair().await;
        let closing = CancellationToken::new();
        let lingering = until_ended(ours, true, &closing);
        tokio::pin!(lingering);
        // It sees the end of the stream, and continues to work.
        let end_of_stream = async { server.read(&mut [0; 1]).await.unwrap() };
        tokio::select! {
            () = &mut lingering => panic!("the server has not ended"),
            read = end_of_stream => assert_eq!(read, 0),
        }
        let moment = timeout(Duration::from_millis(50), &mut lingering).await;
        assert!(moment.is_err(), "the server has not ended");
        server.write_all(b"the end of TLS").await.unwrap();
        drop(server);
        lingering.await;
    }

    #[tokio::test]
    async fn a_server_that_continues_to_send_is_reset() {
        let (ours, mut server) = pair().await;
        let closing = CancellationToken::new();
        let sending = tokio::spawn(async move { while server.write_all(&[0; 4096]).await.is_ok() {} });
        until_ended(ours, true, &closing).await;
        timeout(Duration::from_secs(20), sending).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn nothing_is_held_when_the_router_shuts_down() {
        let (ours, _server) = pair().await;
        let closing = CancellationToken::new();
        closing.cancel();
        until_ended(ours, true, &closing).await;
    }
}
