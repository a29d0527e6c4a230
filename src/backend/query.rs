//! A small simple-query client for the service account: probes and look-ups.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout_at};

use super::error::{ConnectError, ServerError, Step};
use super::login::role;
use super::reader::{FrameReader, parameter, send, verbatim};
use super::{SeenRole, ServerConnection};
use crate::wire::frame::{REPORT_LIMIT, server_login_limit};
use crate::wire::message;

/// One row: text values, `None` for NULL.
pub type Row = Vec<Option<Vec<u8>>>;

/// The limit for all rows of one answer together, as received.
const MAX_ANSWER: usize = 1024 * 1024;
/// The limit for messages of one answer that are neither rows nor the end of a statement.
const MAX_ASIDES: usize = 1000;

/// Runs one statement and returns its rows (at most `max_rows`, at most 1 MiB), reading up to
/// `ReadyForQuery`. After an `Err` other than one that the server reported
/// ([`ConnectError::leaves_usable`]), do not use the connection again; nor after this future was
/// dropped unfinished. Updates [`ServerConnection::role`] from what the server reports meanwhile.
pub async fn simple_query<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut ServerConnection<S>,
    sql: &str,
    max_rows: usize,
    deadline: Instant,
) -> Result<Vec<Row>, ConnectError> {
    if sql.as_bytes().contains(&0) {
        return Err(violation("a statement with a zero byte cannot be sent"));
    }
    timeout_at(deadline, run(connection, sql, max_rows))
        .await
        .map_err(|_| ConnectError::Timeout { step: Step::Query })?
}

fn violation(what: impl Into<String>) -> ConnectError {
    ConnectError::protocol(Step::Query, what)
}

async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut ServerConnection<S>,
    sql: &str,
    max_rows: usize,
) -> Result<Vec<Row>, ConnectError> {
    let mut out = BytesMut::new();
    message::query(&mut out, sql);
    send(&mut *connection.stream, &out, Step::Query).await?;

    let mut reader = FrameReader::new(Step::Query, &std::mem::take(&mut connection.leftover));
    let mut rows: Vec<Row> = Vec::new();
    let mut room = MAX_ANSWER;
    let mut asides = 0;
    let mut failure: Option<Box<ServerError>> = None;
    loop {
        let frame = reader
            .next(&mut *connection.stream, |tag| match tag {
                b'D' => MAX_ANSWER,
                b'T' => REPORT_LIMIT,
                other => server_login_limit(other),
            })
            .await?;
        match frame.tag {
            b'D' => {
                room = room
                    .checked_sub(frame.body.len())
                    .ok_or(ConnectError::AnswerTooLarge)?;
                if rows.len() >= max_rows {
                    return Err(ConnectError::AnswerTooLarge);
                }
                rows.push(row(&frame.body).ok_or_else(|| violation("malformed DataRow"))?);
                continue;
            }
            b'E' => {
                let error = ServerError::parse(&frame.body, verbatim(&frame))
                    .ok_or_else(|| violation("malformed ErrorResponse"))?;
                let error = Box::new(error);
                if error.is_fatal() {
                    return Err(ConnectError::Server(error));
                }
                failure.get_or_insert(error);
            }
            b'S' => {
                let changed = parameter(&frame.body).ok_or_else(|| violation("malformed ParameterStatus"))?;
                match role(&[changed]) {
                    SeenRole::Unknown => {}
                    seen @ (SeenRole::Writable | SeenRole::Standby) => connection.role = seen,
                }
            }
            b'Z' => {
                connection.leftover = reader.into_leftover();
                return failure.map_or(Ok(rows), |error| Err(ConnectError::Server(error)));
            }
            // RowDescription, CommandComplete, EmptyQueryResponse, notices and notifications.
            b'T' | b'C' | b'I' | b'N' | b'A' => {}
            other => {
                return Err(violation(format!(
                    "unexpected message '{}'",
                    other.escape_ascii()
                )));
            }
        }
        asides += 1;
        if asides > MAX_ASIDES {
            return Err(ConnectError::AnswerTooLarge);
        }
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) fn parse_row(body: &[u8]) {
    let _ = row(&Bytes::copy_from_slice(body));
}

/// Parses a `DataRow`, which must be all of `body`.
fn row(body: &Bytes) -> Option<Row> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let count = usize::from(u16::from_be_bytes(*count));
    // Each column takes at least its length.
    if rest.len() < count * 4 {
        return None;
    }
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let length = i32::from_be_bytes(*length);
        if length == -1 {
            values.push(None);
            rest = tail;
        } else {
            let (value, tail) = tail.split_at_checked(usize::try_from(length).ok()?)?;
            values.push(Some(value.to_vec()));
            rest = tail;
        }
    }
    rest.is_empty().then_some(values)
}
