//! The protocol between the processes of one router: hello, one request, its answer. No clock, no
//! socket of its own.
//!
//! ```text
//! asking      "TRNK" FF version        6 bytes: the hello
//!             length kind body         the request
//! answering   "TRNK" FF version
//!             length status body       the answer; before it, `AT_WORK` if the request takes time
//! ```
//!
//! A length has 4 bytes, big-endian, and counts what follows it. Each kind has its own [`Limits`],
//! and a length is checked against them before anything is read. Bodies are JSON, because the two
//! processes are of two releases most of the time: a release may add fields, and the other one
//! ignores them. Only the body of a cancel request is binary (process id, key): it is the one
//! request that anybody can cause, and its key does not belong into a text.
//!
//! Version 1 had no hello: its only question was a cancel request (process id, length of the key in
//! two bytes, key). The fifth byte of such a question is 0 or 1, because a key has at most 256
//! bytes; in a hello it is FF. So the key of a client, which a process of version 1 passes on, is
//! never taken for a request of version 2. A process of version 1 hangs up when it reads a hello. A
//! process of a later version answers with its own hello, so both name the other one.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::wire::message::CANCEL_KEY_LENGTHS;
use crate::wire::startup::CancelRequest;

/// The version of this process.
pub(crate) const VERSION: u8 = 2;
const MARK: [u8; 5] = *b"TRNK\xff";
/// Length of a kind or a status.
const CODE_LEN: usize = 1;
const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// A request that one process makes of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// Cancel what the session with this key runs.
    Cancel,
    /// List the sessions.
    Sessions,
    /// Counts of sessions and of what they moved, for metrics and for the list of members.
    Totals,
    /// End one session.
    Kill,
    /// End the sessions on a member.
    Close,
    /// Set a member's administrative state or its weight: `ready`, `drain`, `maint`.
    Member,
    /// Hold the clients of a member that is about to be stopped.
    Hold,
    /// End a hold.
    Release,
    /// Pause a route, or end that.
    Pause,
    /// List the pools.
    Pools,
    /// Replace server connections of pools.
    Reconnect,
}

/// The limits of one kind of request.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of the request's body.
    pub request_bytes: usize,
    /// Of the answer's body.
    pub answer_bytes: usize,
    /// Requests of this kind that a process works on at the same time.
    pub at_once: usize,
    /// From the connection to the answer. A cancel request that was found has more time after
    /// `AT_WORK`.
    pub time: Duration,
}

impl RequestKind {
    pub const ALL: [Self; 11] = [
        Self::Cancel,
        Self::Sessions,
        Self::Totals,
        Self::Kill,
        Self::Close,
        Self::Member,
        Self::Hold,
        Self::Release,
        Self::Pause,
        Self::Pools,
        Self::Reconnect,
    ];

    pub(super) const fn code(self) -> u8 {
        match self {
            Self::Cancel => 1,
            Self::Sessions => 2,
            Self::Totals => 3,
            Self::Kill => 4,
            Self::Close => 5,
            Self::Member => 6,
            Self::Hold => 7,
            Self::Release => 8,
            Self::Pause => 9,
            Self::Pools => 10,
            Self::Reconnect => 11,
        }
    }

    fn of(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    pub const fn limits(self) -> Limits {
        let (request_bytes, answer_bytes, at_once, seconds) = match self {
            Self::Cancel => (4 + *CANCEL_KEY_LENGTHS.end(), 0, 64, 5),
            Self::Sessions => (KIB, 64 * MIB, 2, 5),
            Self::Totals => (KIB, 4 * MIB, 4, 1),
            Self::Kill => (KIB, 16 * KIB, 16, 2),
            Self::Pools => (KIB, 4 * MIB, 2, 2),
            // A switchover may ask while a member's `before-stop` does.
            Self::Member | Self::Hold | Self::Release | Self::Pause => (4 * KIB, KIB, 16, 2),
            Self::Close | Self::Reconnect => (4 * KIB, KIB, 4, 2),
        };
        Limits {
            request_bytes,
            answer_bytes,
            at_once,
            time: Duration::from_secs(seconds),
        }
    }
}

/// Limit of the body of a request whose kind this process does not know.
const UNKNOWN_BYTES: usize = 4 * KIB;
/// Limit of the text of a refusal.
const REFUSAL_BYTES: usize = KIB;

/// An answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The request was carried out.
    Done(Vec<u8>),
    /// Another answer follows when the request has been carried out.
    AtWork,
    /// The session is not in this process.
    NotFound,
    /// As many requests of this kind as allowed are under way.
    Busy,
    /// The kind is reserved: this release does nothing with it.
    Unsupported,
    /// This release does not know the kind.
    UnknownKind,
    /// The request makes no sense.
    Malformed,
    /// The request was not carried out, for this reason.
    Refused(String),
}

/// A message that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("a message of {0} bytes is too short or too long")]
    Length(usize),
    #[error("the first bytes are not those of a process of this router")]
    Foreign,
    #[error("an answer of the unknown status {0}")]
    UnknownStatus(u8),
    #[error("the message makes no sense")]
    Malformed,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The first bytes of a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// A process of this version.
    Hello(u8),
    /// The head of a question of version 1: a cancel request.
    Old { process_id: u32, key_length: usize },
}

pub(super) fn hello() -> Vec<u8> {
    let mut bytes = MARK.to_vec();
    bytes.push(VERSION);
    bytes
}

/// Reads the first bytes. Not cancel safe, as are all readers here.
pub(super) async fn read_opening(from: &mut (impl AsyncRead + Unpin)) -> Result<Opening, CodecError> {
    let mut bytes = [0; 6];
    from.read_exact(&mut bytes).await?;
    if let [mark @ .., version] = bytes
        && mark == MARK
    {
        return Ok(Opening::Hello(version));
    }
    let [a, b, c, d, high, low] = bytes;
    let key_length = usize::from(u16::from_be_bytes([high, low]));
    if CANCEL_KEY_LENGTHS.contains(&key_length) {
        let process_id = u32::from_be_bytes([a, b, c, d]);
        Ok(Opening::Old {
            process_id,
            key_length,
        })
    } else {
        Err(CodecError::Foreign)
    }
}

/// A request with its hello.
pub(super) fn request(kind: RequestKind, body: &[u8]) -> Result<Vec<u8>, CodecError> {
    if body.len() > kind.limits().request_bytes {
        return Err(CodecError::Length(body.len()));
    }
    let mut bytes = hello();
    bytes.extend(frame(kind.code(), body)?);
    Ok(bytes)
}

/// The body of a cancel request.
pub(super) fn cancel_body(request: &CancelRequest) -> Vec<u8> {
    [&request.process_id.to_be_bytes()[..], &request.key].concat()
}

pub(super) fn parse_cancel(body: &[u8]) -> Result<CancelRequest, CodecError> {
    let (process_id, key) = body.split_first_chunk().ok_or(CodecError::Malformed)?;
    if !CANCEL_KEY_LENGTHS.contains(&key.len()) {
        return Err(CodecError::Malformed);
    }
    Ok(CancelRequest {
        process_id: u32::from_be_bytes(*process_id),
        key: Bytes::copy_from_slice(key),
    })
}

/// Reads a request. `Err` of the inner result: the code of a kind that this process does not know.
pub(super) async fn read_request(
    from: &mut (impl AsyncRead + Unpin),
) -> Result<(Result<RequestKind, u8>, Vec<u8>), CodecError> {
    let (length, code) = head(from).await?;
    let kind = RequestKind::of(code).ok_or(code);
    let most = kind.map_or(UNKNOWN_BYTES, |kind| kind.limits().request_bytes);
    Ok((kind, body(from, length, most).await?))
}

/// An answer to a request of this kind, without the hello.
pub(super) fn answer(kind: Option<RequestKind>, answer: &Answer) -> Result<Vec<u8>, CodecError> {
    let (code, body) = match answer {
        Answer::Done(body) => (0, body.as_slice()),
        Answer::AtWork => (1, &[][..]),
        Answer::NotFound => (2, &[][..]),
        Answer::Busy => (3, &[][..]),
        Answer::Unsupported => (4, &[][..]),
        Answer::UnknownKind => (5, &[][..]),
        Answer::Malformed => (6, &[][..]),
        Answer::Refused(why) => (7, why.as_bytes()),
    };
    if body.len() > most_in_answer(kind, code) {
        return Err(CodecError::Length(body.len()));
    }
    frame(code, body)
}

/// Reads an answer to a request of this kind.
pub(super) async fn read_answer(
    from: &mut (impl AsyncRead + Unpin),
    kind: RequestKind,
) -> Result<Answer, CodecError> {
    let (length, code) = head(from).await?;
    if code > 7 {
        return Err(CodecError::UnknownStatus(code));
    }
    let body = body(from, length, most_in_answer(Some(kind), code)).await?;
    Ok(match code {
        0 => Answer::Done(body),
        1 => Answer::AtWork,
        2 => Answer::NotFound,
        3 => Answer::Busy,
        4 => Answer::Unsupported,
        5 => Answer::UnknownKind,
        6 => Answer::Malformed,
        _ => Answer::Refused(String::from_utf8(body).map_err(|_| CodecError::Malformed)?),
    })
}

fn most_in_answer(kind: Option<RequestKind>, status: u8) -> usize {
    match (status, kind) {
        (0, Some(kind)) => kind.limits().answer_bytes,
        (7, _) => REFUSAL_BYTES,
        _ => 0,
    }
}

fn frame(code: u8, body: &[u8]) -> Result<Vec<u8>, CodecError> {
    let length = CODE_LEN + body.len();
    let length = u32::try_from(length).map_err(|_| CodecError::Length(length))?;
    Ok([&length.to_be_bytes()[..], &[code], body].concat())
}

/// The length of the body to come, and the code.
async fn head(from: &mut (impl AsyncRead + Unpin)) -> Result<(usize, u8), CodecError> {
    let mut bytes = [0; 5];
    from.read_exact(&mut bytes).await?;
    let [a, b, c, d, code] = bytes;
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
    let body = length.checked_sub(CODE_LEN).ok_or(CodecError::Length(length))?;
    Ok((body, code))
}

/// Memory grows with the bytes that come, not with the length that is announced.
async fn body(
    from: &mut (impl AsyncRead + Unpin),
    length: usize,
    most: usize,
) -> Result<Vec<u8>, CodecError> {
    if length > most {
        return Err(CodecError::Length(length));
    }
    let mut body = Vec::new();
    from.take(length as u64).read_to_end(&mut body).await?;
    if body.len() < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(body)
}

#[cfg(any(test, fuzzing))]
#[path = "codec_fuzzing.rs"]
pub(crate) mod fuzzing;

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
