//! Frames: one type byte, a 32-bit length that counts itself but not the type byte, a body.
//!
//! For the login phase, where frames are few and their contents matter: a function that takes
//! exactly one frame from a buffer, and a reader for bodies. Both are pure, so a task that is
//! cancelled between two reads has lost nothing. The stream after login is never cut into frames:
//! see [`super::observe`].

use bytes::{Buf, Bytes, BytesMut};

use super::message::MAX_TEXT;
use super::sqlstate::SqlState;

/// The largest length word of a small message, PostgreSQL's `PQ_SMALL_MESSAGE_LIMIT`.
pub const SMALL_LIMIT: usize = 10_000;
/// The largest length word of a client's `p`: passwords (tokens of clouds) of up to 65 535 bytes
/// and a terminator.
pub const PASSWORD_LIMIT: usize = 65_540;
/// The largest length word of a `ParameterStatus` while logging in, libpq's limit. PostgreSQL 18
/// reports `search_path`, which a role may set to anything.
pub const PARAMETER_LIMIT: usize = 30_000;
/// The largest length word of an error or a notice from a server while logging in.
pub const REPORT_LIMIT: usize = 65_536;

const HEADER: usize = 5;

/// One whole frame. Its body may be a password and is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    pub tag: u8,
    pub body: Bytes,
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tag = char::from(self.tag);
        f.debug_struct("Frame")
            .field("tag", &tag)
            .field("length", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// Why a frame is refused. The two sides no longer agree on where a frame starts: the connection
/// must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length word does not even count itself, or is above the limit of its phase and type.
    #[error("invalid length {length} of message type 0x{tag:02x}")]
    Length { tag: u8, length: u32 },
    /// The body ends early, goes on where it should have ended, or lacks a terminator.
    #[error("invalid message format")]
    Body,
}

/// Largest length word of a frame from a client that is logging in.
pub fn client_login_limit(tag: u8) -> usize {
    if tag == b'p' { PASSWORD_LIMIT } else { SMALL_LIMIT }
}

/// Largest length word of a frame from a server while the router logs in. As in libpq: its limit
/// for messages that may be long at this time is 30,000 bytes, and it is lenient with errors.
pub fn server_login_limit(tag: u8) -> usize {
    match tag {
        b'E' | b'N' => REPORT_LIMIT,
        b'S' => PARAMETER_LIMIT,
        _ => SMALL_LIMIT,
    }
}

/// Takes one frame from the start of `buf`, or nothing while it is incomplete. `limit` applies to
/// the length word and is checked as soon as the header is there: `buf` never needs to hold more
/// than `limit + 1` bytes.
pub fn next_frame(buf: &mut BytesMut, limit: usize) -> Result<Option<Frame>, FrameError> {
    next_frame_by(buf, |_| limit)
}

/// As [`next_frame`], with a limit for each type.
pub fn next_frame_by(buf: &mut BytesMut, limit: impl Fn(u8) -> usize) -> Result<Option<Frame>, FrameError> {
    let Some(&[tag, a, b, c, d]) = buf.first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes([a, b, c, d]);
    let error = FrameError::Length { tag, length };
    let whole = usize::try_from(length).map_err(|_| error)?;
    if !(4..=limit(tag)).contains(&whole) {
        return Err(error);
    }
    if buf.len() <= whole {
        return Ok(None);
    }
    let mut frame = buf.split_to(whole + 1).freeze();
    frame.advance(HEADER);
    Ok(Some(Frame { tag, body: frame }))
}

/// Reads a body from its start; every step is checked, and [`Self::finish`] refuses what is left
/// over.
#[derive(Debug)]
pub struct BodyReader<'a>(&'a [u8]);

impl<'a> BodyReader<'a> {
    pub fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    pub fn byte(&mut self) -> Result<u8, FrameError> {
        self.take(1).map(|bytes| bytes[0])
    }

    /// A 32-bit number, unsigned: lengths and counts are to be checked before they are used.
    pub fn u32(&mut self) -> Result<u32, FrameError> {
        let (&bytes, rest) = self.0.split_first_chunk().ok_or(FrameError::Body)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(bytes))
    }

    /// Up to the terminator, which is taken too.
    pub fn cstr(&mut self) -> Result<&'a [u8], FrameError> {
        let length = self
            .0
            .iter()
            .position(|&byte| byte == 0)
            .ok_or(FrameError::Body)?;
        let text = self.take(length)?;
        self.take(1)?;
        Ok(text)
    }

    pub fn take(&mut self, length: usize) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(FrameError::Body)?;
        self.0 = rest;
        Ok(taken)
    }

    /// Everything that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn finish(self) -> Result<(), FrameError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(FrameError::Body)
        }
    }
}

/// The fields of an error or a notice. Text that is not UTF-8 has replacement characters; each
/// field is cut at [`MAX_TEXT`] bytes. It comes from a server: do not show it to a client before
/// that server is authenticated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ErrorFields {
    /// Not translated, where the server sends that (since PostgreSQL 9.6).
    pub severity: String,
    pub code: SqlState,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl ErrorFields {
    /// Parses a whole body.
    pub fn parse(body: &[u8]) -> Result<Self, FrameError> {
        let (fields, whole) = Self::scan(body);
        if whole { Ok(fields) } else { Err(FrameError::Body) }
    }

    /// Parses the start of a body: the fields that are there.
    pub fn of_prefix(body: &[u8]) -> Self {
        Self::scan(body).0
    }

    pub fn is_fatal(&self) -> bool {
        matches!(&self.severity[..], "FATAL" | "PANIC")
    }

    fn scan(body: &[u8]) -> (Self, bool) {
        let mut fields = Self::default();
        let mut list = fields_of(body);
        let (mut severity, mut translated) = (None, None);
        for (code, value) in &mut list {
            match code {
                b'V' => severity = Some(lossy(value)),
                b'S' => translated = Some(lossy(value)),
                b'C' => fields.code = SqlState::of(value),
                b'M' => fields.message = lossy(value),
                b'D' => fields.detail = Some(lossy(value)),
                b'H' => fields.hint = Some(lossy(value)),
                _ => {}
            }
        }
        fields.severity = severity.or(translated).unwrap_or_default();
        (fields, list.is_whole())
    }
}

/// The fields of an error or a notice, in order, as far as they are whole.
pub fn fields_of(body: &[u8]) -> Fields<'_> {
    Fields {
        body: BodyReader::new(body),
        ended: false,
    }
}

#[derive(Debug)]
pub struct Fields<'a> {
    body: BodyReader<'a>,
    ended: bool,
}

impl Fields<'_> {
    /// Whether the terminator has ended the list and nothing follows it. Ask after the last field.
    pub fn is_whole(&self) -> bool {
        self.ended && self.body.is_empty()
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let code = self.body.byte().ok()?;
        if code == 0 {
            self.ended = true;
            return None;
        }
        let Ok(value) = self.body.cstr() else {
            self.body.rest();
            return None;
        };
        Some((code, value))
    }
}

/// As text, at most [`MAX_TEXT`] bytes.
fn lossy(value: &[u8]) -> String {
    let cut = &value[..value.len().min(MAX_TEXT)];
    let mut text = String::from_utf8_lossy(cut).into_owned();
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use pgwire::messages::response::ErrorResponse;
    use pgwire::messages::{DecodeContext, Message};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![tag];
        frame.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        frame.extend(body);
        frame
    }

    #[test]
    fn one_frame_is_taken_at_a_time_wherever_reads_are_split() {
        let stream = [frame(b'p', b"first"), frame(b'X', b""), frame(b'p', b"\0")].concat();
        for step in 1..=stream.len() {
            let mut buf = BytesMut::new();
            let mut taken = Vec::new();
            for read in stream.chunks(step) {
                buf.extend_from_slice(read);
                while let Some(frame) = next_frame(&mut buf, 9).unwrap() {
                    taken.push((frame.tag, frame.body));
                }
            }
            let expected = [(b'p', "first".into()), (b'X', "".into()), (b'p', "\0".into())];
            assert_eq!(taken, expected, "reads of {step} bytes");
            assert!(buf.is_empty());
        }
    }

    #[test]
    fn a_length_out_of_bounds_is_refused_at_the_header() {
        for length in [0_u32, 3, 10, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
            let mut buf = BytesMut::from(&b"p"[..]);
            buf.extend(length.to_be_bytes());
            assert_eq!(
                next_frame(&mut buf, 9),
                Err(FrameError::Length { tag: b'p', length })
            );
        }
        let mut long = BytesMut::from(&frame(b'p', &vec![b'x'; 65_536])[..]);
        assert_eq!(
            next_frame_by(&mut long.clone(), client_login_limit)
                .unwrap()
                .unwrap()
                .body
                .len(),
            65_536
        );
        long[0] = b'R';
        assert!(next_frame_by(&mut long.clone(), client_login_limit).is_err());
        assert!(next_frame_by(&mut long, server_login_limit).is_err());
    }

    #[test]
    fn a_frame_never_shows_its_body() {
        let shown = format!(
            "{:?}",
            Frame {
                tag: b'p',
                body: "secret".into()
            }
        );
        assert_eq!(shown, "Frame { tag: 'p', length: 6, .. }");
    }

    #[test]
    fn a_body_must_be_consumed_and_never_read_past() {
        let mut body = BodyReader::new(b"\0\0\0\x0aname\0rest");
        assert_eq!(
            (body.u32(), body.cstr(), body.byte()),
            (Ok(10), Ok(&b"name"[..]), Ok(b'r'))
        );
        assert_eq!(
            (body.cstr(), body.u32().is_err(), body.take(4).is_err()),
            (Err(FrameError::Body), true, true)
        );
        assert_eq!(BodyReader::new(b"x").finish(), Err(FrameError::Body));
        assert_eq!((body.rest(), body.is_empty()), (&b"est"[..], true));
        body.finish().unwrap();
    }

    #[test]
    fn an_error_is_read_with_missing_and_strange_fields() {
        let fields = ErrorFields::parse(b"SFEHLER\0VERROR\0C42P01\0Mno \xff table\0Hh\0Xnew\0\0").unwrap();
        assert_eq!(
            (&fields.severity[..], fields.code.as_str(), &fields.message[..]),
            ("ERROR", "42P01", "no \u{fffd} table")
        );
        assert_eq!(
            (fields.hint.as_deref(), fields.detail.as_deref()),
            (Some("h"), None)
        );
        let fields = ErrorFields::parse(b"SFATAL\0Mno code\0\0").unwrap();
        assert!(fields.is_fatal() && fields.code == SqlState::MISSING);
        assert_eq!(ErrorFields::parse(b"\0").unwrap(), ErrorFields::default());
        for broken in [&b""[..], b"SERROR\0", b"SERROR", b"SERROR\0\0x"] {
            assert_eq!(ErrorFields::parse(broken), Err(FrameError::Body), "{broken:?}");
        }
        assert_eq!(ErrorFields::of_prefix(b"SERROR\0C57P01\0Mcut of").code, "57P01");
        let long = [b"M", &b"\xff".repeat(100_000)[..], b"\0\0"].concat();
        assert!(ErrorFields::parse(&long).unwrap().message.len() <= MAX_TEXT);
    }

    proptest! {
        #[test]
        fn pgwire_reads_the_same_fields(fields in vec((1_u8..127, "[^\0]{1,20}"), 0..9)) {
            let mut body = Vec::new();
            for (code, value) in &fields { body.push(*code); body.extend(value.bytes()); body.push(0); }
            body.push(0);
            let theirs = ErrorResponse::decode(
                &mut BytesMut::from(&frame(b'E', &body)[..]), &DecodeContext::default(),
            ).unwrap().unwrap();
            let ours: Vec<_> =
                fields_of(&body).map(|(code, value)| (code, String::from_utf8(value.to_vec()).unwrap())).collect();
            prop_assert_eq!(theirs.fields, ours);
            prop_assert!(ErrorFields::parse(&body).is_ok());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in vec(prop_oneof![Just(0), any::<u8>()], 0..60)) {
            let mut buf = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = next_frame(&mut buf, SMALL_LIMIT) {}
            let _ = ErrorFields::parse(&bytes);
            let _ = ErrorFields::of_prefix(&bytes);
        }
    }
}
