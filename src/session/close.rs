//! Last words to a client, bounded: a peer that does not listen is not waited for.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::listener_settings::ListenerSettings;
use super::stream::SessionStream;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

/// For the last words to a client, and for it to hang up after them.
pub(super) const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// Last words, and the end. What the client has sent meanwhile is read and thrown away for a
/// moment: closing a socket with unread data resets it, and the words would be lost, the server's
/// own that were passed on as well.
pub(super) async fn close_with_error(mut stream: impl SessionStream, out: BytesMut) {
    let _ = timeout(CLOSE_WITHIN, async {
        say(&mut stream, &out).await;
        let mut waste = BytesMut::with_capacity(4096);
        while matches!(stream.read_buf(&mut waste).await, Ok(read) if read > 0) {
            waste.clear();
        }
    })
    .await;
}

pub(super) async fn say(stream: &mut impl SessionStream, out: &[u8]) {
    // Best effort, bounded: a client that does not listen any more is closed all the same.
    let _ = timeout(CLOSE_WITHIN, async {
        if !out.is_empty() {
            stream.write_all(out).await?;
            stream.flush().await?;
        }
        stream.shutdown().await
    })
    .await;
}

/// For sockets at the accept loop that get no further.
pub fn too_many(listener: &ListenerSettings, text: &str, hint: &str) -> BytesMut {
    fatal(
        listener,
        &ErrorReply::fatal(SqlState::TOO_MANY_CONNECTIONS, text).hint(hint),
    )
}

pub(super) fn fatal(listener: &ListenerSettings, reply: &ErrorReply) -> BytesMut {
    let mut out = BytesMut::new();
    listener.gate.counts().error(&mut out, reply);
    out
}

/// As a server that shuts down says it to who wants to log in.
pub(super) fn closing() -> ErrorReply {
    ErrorReply::fatal(SqlState::CANNOT_CONNECT_NOW, "the router is shutting down")
        .hint("Reconnect. Another router will serve you, or this one when it has restarted.")
}
