//! The router's own queries on a connection that is at a boundary: a question about the session's
//! state, its restoration, the reset before the connection idles.

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::lost::is_about_connection;
use crate::session::link::Link;
use crate::session::stream::SessionStream;
use crate::wire::frame::ErrorFields;
use crate::wire::message;
use crate::wire::sqlstate::SqlState;

/// The longest message of an answer that is read.
const MAX_FRAME: usize = 1024 * 1024;
/// All messages of an answer together.
const MAX_ANSWER: usize = 4 * 1024 * 1024;
const READ_SIZE: usize = 8 * 1024;

/// Why an exchange has no answer. The connection must be closed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    #[error("the server did not answer in time")]
    Timeout,
    #[error("the connection to the server was lost")]
    Lost,
    /// The server ended the session.
    #[error("the server ended the session with {0}")]
    Fatal(SqlState),
    #[error("the server violated the protocol")]
    Protocol,
}

/// Connections of one session that may be lost, one after the other, before its request is passed
/// on: as many as a pool may have had idle when its server stopped.
pub(super) const MOST_LOST: u8 = 20;

impl ExchangeError {
    /// The server connection is gone, and another may do.
    pub(super) fn is_loss(&self) -> bool {
        match self {
            Self::Lost => true,
            Self::Fatal(code) => is_about_connection(*code),
            Self::Timeout | Self::Protocol => false,
        }
    }
}

/// What came of a query.
#[derive(Debug)]
pub(super) struct Exchanged {
    /// The status in `Z`.
    pub(super) status: u8,
    /// The first error.
    pub(super) error: Option<ServerSaid>,
}

/// An error of the server.
#[derive(Debug, Clone)]
pub(super) struct ServerSaid {
    pub(super) code: SqlState,
    pub(super) message: String,
}

/// Sends one Query and reads to its `Z`, before `deadline`. `sink` gets each message in between
/// with its body: rows, changes of parameters, and what comes unasked (notices, notifications).
///
/// # Errors The connection cannot be used any more; nor if this future is dropped unfinished.
pub(super) async fn exchange<S: SessionStream>(
    link: &mut Link<S>,
    sql: &str,
    deadline: Instant,
    sink: impl FnMut(u8, &[u8]),
) -> Result<Exchanged, ExchangeError> {
    let mut out = BytesMut::new();
    message::query(&mut out, sql);
    send_and_read(link, &out, deadline, sink).await
}

/// As [`exchange`], with these messages, the last of which the server answers with `Z`.
pub(super) async fn send_and_read<S: SessionStream>(
    link: &mut Link<S>,
    messages: &[u8],
    deadline: Instant,
    sink: impl FnMut(u8, &[u8]),
) -> Result<Exchanged, ExchangeError> {
    let run = async {
        link.stream
            .write_all(messages)
            .await
            .map_err(|_| ExchangeError::Lost)?;
        link.stream.flush().await.map_err(|_| ExchangeError::Lost)?;
        read_to_ready(link, sink).await
    };
    timeout_at(deadline, run)
        .await
        .map_err(|_| ExchangeError::Timeout)?
}

/// Reads to the next `Z`. Behind an error, and behind the `Z`, may only be what comes unasked.
async fn read_to_ready<S: SessionStream>(
    link: &mut Link<S>,
    mut sink: impl FnMut(u8, &[u8]),
) -> Result<Exchanged, ExchangeError> {
    let mut buffer = BytesMut::with_capacity(READ_SIZE);
    let (mut total, mut error) = (0, None);
    let mut ready = None;
    loop {
        while let Some((tag, body)) = whole_frame(&buffer)? {
            match (tag, body) {
                (b'Z', &[status]) if ready.is_none() => ready = Some(status),
                (b'E', body) => {
                    let fields = ErrorFields::of_prefix(body);
                    let said = ServerSaid {
                        code: fields.code,
                        message: fields.message.clone(),
                    };
                    if fields.is_fatal() {
                        return Err(ExchangeError::Fatal(said.code));
                    }
                    if ready.is_some() || error.replace(said).is_some() {
                        return Err(ExchangeError::Protocol);
                    }
                }
                (b'N' | b'S' | b'A', body) => sink(tag, body),
                (b'Z', _) => return Err(ExchangeError::Protocol),
                _ if ready.is_some() || error.is_some() => return Err(ExchangeError::Protocol),
                (tag, body) => sink(tag, body),
            }
            let length = body.len() + 5;
            buffer.advance(length);
        }
        // What comes behind the `Z` in the same read came unasked.
        if let (Some(status), true) = (ready, buffer.is_empty()) {
            return Ok(Exchanged { status, error });
        }
        buffer.reserve(READ_SIZE);
        match link.stream.read_buf(&mut (&mut buffer).limit(READ_SIZE)).await {
            Ok(read @ 1..) => total += read,
            Ok(0) | Err(_) => return Err(ExchangeError::Lost),
        }
        if total > MAX_ANSWER {
            return Err(ExchangeError::Protocol);
        }
    }
}

/// The first frame of `buffer`, if it is whole.
fn whole_frame(buffer: &[u8]) -> Result<Option<(u8, &[u8])>, ExchangeError> {
    let Some((&[tag, a, b, c, d], rest)) = buffer.split_first_chunk::<5>() else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    let body = length.checked_sub(4).filter(|body| *body <= MAX_FRAME);
    let body = body.ok_or(ExchangeError::Protocol)?;
    Ok(rest.get(..body).map(|body| (tag, body)))
}
