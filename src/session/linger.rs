//! What a session held on a server stays held until the server has ended its part, too: a place there, and the share of
//! its user, database and address.
//!
//! A server does not look at its client while it runs a statement, waits for a lock, or sleeps in a login. Its process,
//! and the place it takes among `max_connections`, outlive the connection; without this a client could have any number
//! of them by leaving each time.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::stream::SessionStream;

/// After a server has found out that nobody is there, until its process is gone.
const ENDING: Duration = Duration::from_millis(200);
/// At most, where the kernel would not find out that the server's host is gone (`server.keepalive` is off).
const BLIND: Duration = Duration::from_mins(10);

/// Tells the server that nothing more comes, and returns when it has ended the connection, or can be assumed to. Nobody
/// waits for it; the kernel's keepalive bounds it where the server's host is gone. Ends at once when the router closes,
/// as there are no newcomers to count then.
pub(super) async fn until_ended(server: TcpStream, has_keepalive: bool, closing: &CancellationToken) {
    // It may have been told before.
    server.end_socket();
    let limit = if has_keepalive { Duration::MAX } else { BLIND };
    tokio::select! {
        _ = timeout(limit, ended(server)) => {}
        () = closing.cancelled() => {}
    }
}

/// As [`until_ended`], in a task of its own that holds `held` for as long.
pub(super) fn hold<T: Send + 'static>(
    server: TcpStream,
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

/// A server that goes on speaking is not listened to for long: closed with something unread the connection is reset, and
/// the server finds that out when it says more.
async fn ended(server: TcpStream) {
    let readable = server.readable().await;
    if readable.is_err() {
        return;
    }
    // The end of TLS, or the last of an answer, is followed by the end at once.
    if timeout(ENDING, drained(&server)).await.is_err() {
        drop(server);
        sleep(ENDING).await;
    }
}

async fn drained(server: &TcpStream) {
    let mut waste = vec![0; 4096];
    while server.readable().await.is_ok() {
        match server.try_read(&mut waste) {
            Ok(1..) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(near, listener.accept());
        (near.unwrap(), far.unwrap().0)
    }

    #[tokio::test]
    async fn a_server_that_works_on_is_waited_for() {
        let (ours, mut server) = pair().await;
        let closing = CancellationToken::new();
        let lingering = until_ended(ours, true, &closing);
        tokio::pin!(lingering);
        // It is told, and goes on as if nothing had been.
        let until_told = async { server.read(&mut [0; 1]).await.unwrap() };
        tokio::select! {
            () = &mut lingering => panic!("the server has not ended"),
            read = until_told => assert_eq!(read, 0),
        }
        let moment = timeout(Duration::from_millis(50), &mut lingering).await;
        assert!(moment.is_err(), "the server has not ended");
        server.write_all(b"the end of TLS").await.unwrap();
        drop(server);
        lingering.await;
    }

    #[tokio::test]
    async fn a_server_that_speaks_on_is_reset() {
        let (ours, mut server) = pair().await;
        let closing = CancellationToken::new();
        let speaking = tokio::spawn(async move { while server.write_all(&[0; 4096]).await.is_ok() {} });
        until_ended(ours, true, &closing).await;
        timeout(Duration::from_secs(20), speaking).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn nothing_is_held_when_the_router_closes() {
        let (ours, _server) = pair().await;
        let closing = CancellationToken::new();
        closing.cancel();
        until_ended(ours, true, &closing).await;
    }
}
