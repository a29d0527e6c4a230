//! Observers of the relayed stream: they walk the headers of what passes, in place, and report the
//! few messages the session needs to know of.
//!
//! Guarantees: the stream may be split into reads anywhere; a frame larger than a read is a
//! counter, not a buffer; only small messages that are reported *and* split over reads are copied,
//! into a buffer that is freed when they are complete; an observer at a boundary has nothing on the
//! heap. A row costs its header's five bytes and no call.
//!
//! Refuses: lengths that no PostgreSQL sends or accepts. After such an error it is unknown where
//! the next frame starts, so both connections must end. Unknown message types pass: they concern
//! only the peers.

use super::frame::{ErrorFields, FrameError, fields_of};
use super::pending::TransactionStatus;
use super::sqlstate::SqlState;

/// The largest length word PostgreSQL accepts from a client (`PQ_LARGE_MESSAGE_LIMIT`).
const CLIENT_LARGE: u32 = 0x3fff_fffe;
const CLIENT_SMALL: u32 = 10_000;
/// The largest length word libpq accepts from a server.
const SERVER_LARGE: u32 = 0x7fff_ffff;
/// The same, for the types that libpq does not expect to be long.
const SERVER_SMALL: u32 = 30_000;
/// Bytes kept of an error or a notice that is split over reads. Severity and SQLSTATE come first.
const REPORT_KEPT: usize = 10_000;

/// A message that passed from the server, borrowed from the read. One without contents here is
/// reported at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerEvent<'a> {
    /// `Z`
    ReadyForQuery(TransactionStatus),
    /// `C`; the tag, as `SELECT 5`.
    CommandComplete(&'a [u8]),
    /// `E`
    Error(Report<'a>),
    /// `N`
    Notice(Report<'a>),
    /// `S`
    Parameter { name: &'a [u8], value: &'a [u8] },
    /// `K`
    Key { process_id: u32, key: &'a [u8] },
    /// `A`
    Notification,
    /// `G`
    CopyIn,
    /// `H`
    CopyOut,
    /// `W`
    CopyBoth,
    /// Any other answer that ends a request of the extended protocol or starts one of the simple
    /// protocol: `1`, `2`, `3`, `n`, `T`, `s`, `I`, `V`. Rows and copied data are not reported.
    Answer(u8),
}

/// An error or a notice, as it stands in the message (its first 10 000 bytes); it is parsed only on
/// demand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Report<'a>(&'a [u8]);

impl<'a> Report<'a> {
    fn of(body: &'a [u8]) -> Self {
        Self(&body[..body.len().min(REPORT_KEPT)])
    }
}

impl Report<'_> {
    /// FATAL or PANIC: the server ends the session.
    pub fn is_fatal(&self) -> bool {
        let severity = self.field(b'V').or_else(|| self.field(b'S'));
        matches!(severity, Some(b"FATAL" | b"PANIC"))
    }

    pub fn code(&self) -> SqlState {
        self.field(b'C').map_or(SqlState::MISSING, SqlState::of)
    }

    pub fn fields(&self) -> ErrorFields {
        ErrorFields::of_prefix(self.0)
    }

    fn field(&self, wanted: u8) -> Option<&[u8]> {
        fields_of(self.0)
            .find(|(code, _)| *code == wanted)
            .map(|(_, value)| value)
    }
}

impl std::fmt::Debug for Report<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the text: it may quote the user's data.
        f.debug_struct("Report")
            .field("code", &self.code())
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Rows, copied data, and unknown types.
    Skip,
    /// Reported at its end, without contents.
    Mark,
    /// Reported with its contents.
    Keep,
}

const CLASSES: [Class; 256] = {
    let mut classes = [Class::Skip; 256];
    let (marks, keeps) = (b"123nTsIVGHWA", b"ZCENSK");
    let mut i = 0;
    while i < marks.len() {
        classes[marks[i] as usize] = Class::Mark;
        i += 1;
    }
    i = 0;
    while i < keeps.len() {
        classes[keeps[i] as usize] = Class::Keep;
        i += 1;
    }
    classes
};

/// A header that may be split over reads, and the length of what is still to come of its frame.
#[derive(Debug, Default, Clone, Copy)]
struct Cursor {
    header: [u8; 5],
    /// Bytes of `header` that have come, while it is not whole.
    have: u8,
    /// Bytes of the body still to come.
    remaining: u32,
}

impl Cursor {
    fn at_boundary(&self) -> bool {
        self.have == 0 && self.remaining == 0
    }

    /// Completes a split header from the start of `rest`.
    fn header(&mut self, rest: &mut &[u8]) -> Option<(u8, u32)> {
        let have = usize::from(self.have);
        let wanted = self.header.len() - have;
        let (part, after) = rest.split_at(wanted.min(rest.len()));
        self.header[have..have + part.len()].copy_from_slice(part);
        *rest = after;
        if part.len() < wanted {
            self.have += u8::try_from(part.len()).expect("a header has five bytes");
            return None;
        }
        self.have = 0;
        Some(split(self.header))
    }

    /// Passes over the part of the body that has come; returns its length.
    fn body(&mut self, rest: &mut &[u8]) -> usize {
        let wanted = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        let taken = wanted.min(rest.len());
        *rest = &rest[taken..];
        self.remaining -= u32::try_from(taken).expect("no more than remained");
        taken
    }
}

fn split([tag, a, b, c, d]: [u8; 5]) -> (u8, u32) {
    (tag, u32::from_be_bytes([a, b, c, d]))
}

fn checked(tag: u8, length: u32, limit: u32) -> Result<u32, FrameError> {
    if (4..=limit).contains(&length) {
        Ok(length - 4)
    } else {
        Err(FrameError::Length { tag, length })
    }
}

/// Watches what a server sends after login.
#[derive(Debug, Default)]
pub struct ServerObserver {
    cursor: Cursor,
    /// The type of the frame under way.
    tag: u8,
    /// The length of its body.
    body: u32,
    /// The part that has come of a message that is kept.
    kept: Vec<u8>,
    /// Of the run that was refused: bytes before the invalid message.
    valid: u32,
    /// The invalid message began in an earlier run.
    torn: bool,
}

impl ServerObserver {
    pub fn new() -> Self {
        Self::default()
    }

    /// No frame is under way: the next byte is a type byte. After an error: the valid part of the
    /// stream ends with a whole frame.
    pub fn at_boundary(&self) -> bool {
        self.cursor.at_boundary() && !self.torn
    }

    /// How many bytes of the frame under way have passed.
    pub fn passed(&self) -> usize {
        let passed = match self.cursor {
            Cursor { have, .. } if have > 0 => u64::from(have),
            Cursor { remaining: 0, .. } => 0,
            Cursor { remaining, .. } => 5 + u64::from(self.body - remaining),
        };
        usize::try_from(passed).unwrap_or(usize::MAX)
    }

    /// How many more bytes may be read without reading into the next frame: none at a boundary,
    /// never more than the frame under way has.
    pub fn missing(&self) -> usize {
        match self.cursor {
            Cursor { have, .. } if have > 0 => 5 - usize::from(have),
            Cursor { remaining, .. } => usize::try_from(remaining).unwrap_or(usize::MAX),
        }
    }

    /// The invalid message began in an earlier run: nothing can be put behind what has passed.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    /// After an error: how many bytes of the run that was refused come before the invalid message.
    pub fn valid(&self) -> usize {
        usize::try_from(self.valid).unwrap_or_default()
    }

    /// Takes the next bytes of the stream and reports what they complete, in order. After an error
    /// do not feed it any more; [`Self::valid`] says how far the run was valid.
    pub fn feed(&mut self, run: &[u8], mut sink: impl FnMut(ServerEvent<'_>)) -> Result<(), FrameError> {
        let mut rest = run;
        if !self.cursor.at_boundary() {
            let outcome = if self.cursor.remaining == 0 {
                let Some((tag, length)) = self.cursor.header(&mut rest) else {
                    return Ok(());
                };
                self.begin(tag, length, &mut rest, &mut sink)
            } else {
                self.resume(&mut rest, &mut sink)
            };
            if outcome.is_err() {
                self.torn = true;
                return outcome;
            }
        }
        while let Some((&header, body)) = rest.split_first_chunk::<5>() {
            let start = rest.len();
            let (tag, length) = split(header);
            rest = body;
            let outcome = if CLASSES[usize::from(tag)] == Class::Skip {
                // The path of rows.
                self.pass(tag, length, &mut rest)
            } else {
                self.begin(tag, length, &mut rest, &mut sink)
            };
            if outcome.is_err() {
                self.cursor = Cursor::default();
                self.valid = u32::try_from(run.len() - start).unwrap_or_default();
                return outcome;
            }
        }
        if !rest.is_empty() {
            self.cursor.header(&mut rest);
        }
        Ok(())
    }

    #[inline]
    fn pass(&mut self, tag: u8, length: u32, rest: &mut &[u8]) -> Result<(), FrameError> {
        let body = checked(tag, length, SERVER_LARGE)?;
        if let Some(next) = rest.get(usize::try_from(body).unwrap_or(usize::MAX)..) {
            *rest = next;
        } else {
            (self.tag, self.body) = (tag, body);
            self.cursor.remaining = body;
            self.cursor.body(rest);
        }
        Ok(())
    }

    fn begin(
        &mut self,
        tag: u8,
        length: u32,
        rest: &mut &[u8],
        sink: &mut impl FnMut(ServerEvent<'_>),
    ) -> Result<(), FrameError> {
        let limit = match tag {
            b'Z' => 5,
            b'C' | b'S' | b'K' => SERVER_SMALL,
            _ => SERVER_LARGE,
        };
        self.tag = tag;
        self.cursor.remaining = checked(tag, length, limit)?;
        self.body = self.cursor.remaining;
        let start = *rest;
        let taken = self.cursor.body(rest);
        let class = CLASSES[usize::from(tag)];
        if self.cursor.remaining == 0 {
            match class {
                Class::Skip => {}
                Class::Mark => sink(mark(tag)),
                Class::Keep => sink(kept(tag, &start[..taken])?),
            }
        } else if class == Class::Keep {
            self.keep(&start[..taken]);
        }
        Ok(())
    }

    fn resume(&mut self, rest: &mut &[u8], sink: &mut impl FnMut(ServerEvent<'_>)) -> Result<(), FrameError> {
        let start = *rest;
        let taken = self.cursor.body(rest);
        let class = CLASSES[usize::from(self.tag)];
        if class == Class::Keep {
            self.keep(&start[..taken]);
        }
        if self.cursor.remaining == 0 {
            match class {
                Class::Skip => {}
                Class::Mark => sink(mark(self.tag)),
                Class::Keep => sink(kept(self.tag, &std::mem::take(&mut self.kept))?),
            }
        }
        Ok(())
    }

    /// At most [`REPORT_KEPT`] bytes of a report; all of the others, which are no longer than
    /// [`SERVER_SMALL`].
    fn keep(&mut self, part: &[u8]) {
        let room = if matches!(self.tag, b'E' | b'N') {
            REPORT_KEPT - self.kept.len()
        } else {
            part.len()
        };
        self.kept.extend_from_slice(&part[..part.len().min(room)]);
    }
}

fn mark(tag: u8) -> ServerEvent<'static> {
    match tag {
        b'A' => ServerEvent::Notification,
        b'G' => ServerEvent::CopyIn,
        b'H' => ServerEvent::CopyOut,
        b'W' => ServerEvent::CopyBoth,
        _ => ServerEvent::Answer(tag),
    }
}

fn kept(tag: u8, body: &[u8]) -> Result<ServerEvent<'_>, FrameError> {
    Ok(match tag {
        b'Z' => match body {
            [b'I'] => ServerEvent::ReadyForQuery(TransactionStatus::Idle),
            [b'T'] => ServerEvent::ReadyForQuery(TransactionStatus::InTransaction),
            [b'E'] => ServerEvent::ReadyForQuery(TransactionStatus::Failed),
            _ => return Err(FrameError::Body),
        },
        b'C' => ServerEvent::CommandComplete(body.strip_suffix(b"\0").ok_or(FrameError::Body)?),
        b'N' => ServerEvent::Notice(Report::of(body)),
        b'E' => ServerEvent::Error(Report::of(body)),
        b'S' => {
            let mut parts = body
                .strip_suffix(b"\0")
                .ok_or(FrameError::Body)?
                .split(|&byte| byte == 0);
            match (parts.next(), parts.next(), parts.next()) {
                (Some(name), Some(value), None) => ServerEvent::Parameter { name, value },
                _ => return Err(FrameError::Body),
            }
        }
        _ => {
            let (&process_id, key) = body.split_first_chunk().ok_or(FrameError::Body)?;
            ServerEvent::Key {
                process_id: u32::from_be_bytes(process_id),
                key,
            }
        }
    })
}

/// Watches what a client sends after login.
#[derive(Debug, Default, Clone, Copy)]
pub struct ClientObserver {
    cursor: Cursor,
    /// The frame under way, or the last one, is `X`.
    leaving: bool,
    terminated: bool,
}

impl ClientObserver {
    pub fn new() -> Self {
        Self::default()
    }

    /// No frame is under way: the next byte is a type byte.
    pub fn at_boundary(&self) -> bool {
        self.cursor.at_boundary()
    }

    /// The client has sent the whole of `X`. A server reads its body before it ends, so a header
    /// alone does not count.
    pub fn terminated(&self) -> bool {
        self.terminated
    }

    /// The type of the frame that has been reported and is not whole yet.
    pub fn unfinished(&self) -> Option<u8> {
        (self.cursor.remaining > 0).then_some(self.cursor.header[0])
    }

    /// Takes the next bytes of the stream and reports each frame at its header: its type, and its
    /// length word. Returns how many of the bytes are for the server: all of them, but nothing
    /// behind a whole `X`.
    pub fn feed(&mut self, run: &[u8], mut sink: impl FnMut(u8, u32)) -> Result<usize, FrameError> {
        if self.terminated {
            return Ok(0);
        }
        let mut rest = run;
        if self.cursor.remaining > 0 {
            self.cursor.body(&mut rest);
        }
        loop {
            if self.leaving && self.cursor.at_boundary() {
                self.terminated = true;
                return Ok(run.len() - rest.len());
            }
            if rest.is_empty() {
                break;
            }
            let Some((tag, length)) = self.cursor.header(&mut rest) else {
                break;
            };
            let limit = match tag {
                b'C' | b'D' | b'E' | b'H' | b'S' | b'X' | b'c' | b'f' => CLIENT_SMALL,
                _ => CLIENT_LARGE,
            };
            self.cursor.remaining = checked(tag, length, limit)?;
            self.leaving = tag == b'X';
            sink(tag, length);
            self.cursor.body(&mut rest);
        }
        Ok(run.len())
    }
}

#[cfg(test)]
mod tests;
