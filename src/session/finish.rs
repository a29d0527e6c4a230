//! The end of a relayed session: what is under way on the server is cancelled, the client hears the
//! last words, and the log has one line.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::close::{CLOSE_WITHIN, close_with_error};
use super::counts::RouteCounts;
use super::end::{Cause, End};
use super::record::{Record, log_end};
use super::relay::{Ended, Parting};
use super::stream::SessionStream;
use super::{Shared, cancel};
use crate::wire::observe::ServerObserver;

/// Of the message under way, read at once.
const PART: usize = 16 * 1024;

/// Says goodbye where there is something to say, and writes the session's line. What is left is the
/// connection to the server, which may not have ended.
pub(super) async fn finish<C: SessionStream, S: SessionStream>(
    ended: Ended<C, S>,
    record: Record,
    shared: &Arc<Shared>,
) -> S {
    let Ended {
        end,
        parting,
        traffic,
        ticket,
    } = ended;
    if let Cause::Ordered(_) = end.cause {
        // Nobody may go on writing for a session that has been taken off its server.
        let placement = ticket.entry().placement();
        let target = placement.and_then(|placement| placement.cancel.clone());
        if let (true, Some(target)) = (ticket.entry().in_flight(), target) {
            cancel::forget(shared, target);
        }
    }
    log_end(&end, &record, traffic, None);
    shared.metrics.end(&record.listener.route.name, &end);
    drop(ticket);
    part(parting, &end, &record.origin.counts).await
}

/// The last words to the client, where there is a boundary between two messages to put them, and
/// the end.
pub(super) async fn part<C: SessionStream, S: SessionStream>(
    parting: Parting<C, S>,
    end: &End,
    counts: &RouteCounts,
) -> S {
    let Parting {
        mut client,
        mut server,
        from_server,
        ready,
        rest,
    } = parting;
    let (mut out, at_boundary) = match until_boundary(rest, &from_server) {
        Ok(rest) => (BytesMut::from(rest.as_ref()), true),
        // Only a server that still speaks can complete its message.
        Err(rest) if matches!(end.cause, Cause::Ordered(_) | Cause::ClientProtocol(_)) => {
            let whole = complete(&mut client, rest, &mut server, from_server);
            (
                BytesMut::new(),
                matches!(timeout(CLOSE_WITHIN, whole).await, Ok(Some(()))),
            )
        }
        Err(rest) => (BytesMut::from(rest.as_ref()), false),
    };
    // Before anybody waits for the client.
    server.end_socket();
    if at_boundary {
        end.write_error(&mut out, ready, counts);
    }
    close_with_error(client, out).await;
    server
}

/// What is still to be sent, without the start of a message that will not be completed. `Err`: a
/// part of that has been sent.
fn until_boundary(mut rest: Bytes, from_server: &ServerObserver) -> Result<Bytes, Bytes> {
    if from_server.is_torn() {
        return Err(rest);
    }
    match rest.len().checked_sub(from_server.passed()) {
        Some(whole) => {
            rest.truncate(whole);
            Ok(rest)
        }
        None => Err(rest),
    }
}

/// Passes on what is left of the message under way, and nothing behind it.
async fn complete(
    client: &mut impl SessionStream,
    rest: Bytes,
    server: &mut impl SessionStream,
    mut from_server: ServerObserver,
) -> Option<()> {
    client.write_all(&rest).await.ok()?;
    let mut part = vec![0; PART];
    while !from_server.at_boundary() {
        let wanted = from_server.missing().min(PART);
        let read = match server.read(&mut part[..wanted]).await {
            Ok(read @ 1..) => &part[..read],
            Ok(0) | Err(_) => return None,
        };
        from_server.feed(read, |_| {}).ok()?;
        client.write_all(read).await.ok()?;
    }
    client.flush().await.ok()
}
