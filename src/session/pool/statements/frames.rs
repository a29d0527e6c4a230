//! The messages that name statements: where the name stands, and how to write them.

use bytes::{BufMut, BytesMut};

use super::Step;
use crate::wire::frame::{BodyReader, FrameError};

const HEADER: usize = 5;

/// Whether all of the frame is there.
pub(super) fn is_whole(frame: &[u8]) -> bool {
    length(frame).is_some_and(|length| frame.len() > length)
}

/// The length word.
fn length(frame: &[u8]) -> Option<usize> {
    let word = *frame.get(1..)?.first_chunk()?;
    usize::try_from(u32::from_be_bytes(word)).ok()
}

/// A name in a frame, and where it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    frame: &'a [u8],
    at: usize,
    pub(super) name: &'a [u8],
}

impl<'a> Target<'a> {
    /// The first name behind the `skipped` first bytes of the body.
    fn find(frame: &'a [u8], skipped: usize) -> Option<Self> {
        let at = HEADER + skipped;
        let name = BodyReader::new(frame.get(at..)?).cstr().ok()?;
        Some(Self { frame, at, name })
    }

    /// The statement that a Bind names, behind the portal.
    pub(super) fn of_bind(frame: &'a [u8]) -> Option<Self> {
        let portal = Self::find(frame, 0)?;
        Self::find(frame, portal.name.len() + 1)
    }

    /// The statement that a Describe or a Close names; none if it is about a portal.
    pub(super) fn of_statement(frame: &'a [u8]) -> Option<Self> {
        let target = Self::find(frame, 1)?;
        let is_statement = frame.get(HEADER) == Some(&b'S');
        // With anything behind it the server refuses it, and does nothing.
        let is_exact = target.end() == frame.len();
        (is_statement && is_exact).then_some(target)
    }

    /// The portal of a Bind.
    pub(super) fn portal(&self) -> &'a [u8] {
        portal(self.frame)
    }

    pub(super) fn frame_len(&self) -> usize {
        self.frame.len()
    }

    /// Where the frame goes on behind the name.
    fn end(&self) -> usize {
        self.at + self.name.len() + 1
    }

    /// Writes the frame up to and with another name in the place of this one.
    pub(super) fn rename(&self, name: &str, out: &mut BytesMut) -> Step {
        let old = u32::try_from(self.name.len()).unwrap_or(u32::MAX);
        let new = u32::try_from(name.len()).unwrap_or(u32::MAX);
        let length = length(self.frame)
            .and_then(|length| u32::try_from(length).ok())
            .unwrap_or(u32::MAX);
        out.put_u8(self.frame[0]);
        out.put_u32(length.wrapping_add(new).wrapping_sub(old));
        out.put_slice(&self.frame[HEADER..self.at]);
        put_name(out, name);
        Step::Forward { replaced: self.end() }
    }
}

/// The portal of a Bind or an Execute; the unnamed one where there is none.
pub(super) fn portal(frame: &[u8]) -> &[u8] {
    Target::find(frame, 0).map_or(&[], |target| target.name)
}

/// A Parse.
#[derive(Debug)]
pub(super) struct Parse<'a> {
    pub(super) target: Target<'a>,
    /// None if the frame is not whole.
    pub(super) statement: Option<(&'a [u8], Vec<u32>)>,
}

impl<'a> Parse<'a> {
    /// None if it is malformed, or its name does not end in the prefix that is there.
    pub(super) fn read(frame: &'a [u8]) -> Option<Self> {
        let target = Target::find(frame, 0)?;
        let statement = if is_whole(frame) {
            let mut body = BodyReader::new(&frame[target.end()..]);
            let text = body.cstr().ok()?;
            Some((text, types(&mut body).ok()?))
        } else {
            None
        };
        Some(Self { target, statement })
    }
}

/// A 16-bit count and as many OIDs, and nothing behind them.
fn types(body: &mut BodyReader<'_>) -> Result<Vec<u32>, FrameError> {
    let count = body.take(2)?;
    let count = usize::from(u16::from_be_bytes([count[0], count[1]]));
    let (oids, rest) = body.rest().as_chunks::<4>();
    if oids.len() == count && rest.is_empty() {
        Ok(oids.iter().map(|oid| u32::from_be_bytes(*oid)).collect())
    } else {
        Err(FrameError::Body)
    }
}

/// The OIDs in the body of a `ParameterDescription` (`t`).
pub(super) fn parameter_types(body: &[u8]) -> Option<Box<[u32]>> {
    types(&mut BodyReader::new(body)).ok().map(Vec::into_boxed_slice)
}

/// Of the body of a `RowDescription` (`T`), what must not change: names, types and type modifiers.
/// Not the formats, which differ between a portal and a statement, nor where a column comes from.
pub(super) fn columns(body: &[u8]) -> Option<Vec<u8>> {
    let mut reader = BodyReader::new(body);
    let mut columns = Vec::with_capacity(body.len());
    let count = reader.take(2).ok()?;
    for _ in 0..u16::from_be_bytes([count[0], count[1]]) {
        columns.extend_from_slice(reader.cstr().ok()?);
        let rest = reader.take(18).ok()?;
        columns.push(0);
        columns.extend_from_slice(&rest[6..10]);
        columns.extend_from_slice(&rest[12..16]);
    }
    reader.finish().ok()?;
    Some(columns)
}

/// The text of a Query, or the start of it.
pub(super) fn query_text(frame: &[u8]) -> &[u8] {
    let body = frame.get(HEADER..).unwrap_or_default();
    // Without its end it is no lone command.
    if is_whole(frame) {
        body.strip_suffix(b"\0").unwrap_or(body)
    } else {
        body
    }
}

/// Parse.
pub(super) fn put_parse(out: &mut BytesMut, name: &str, text: &[u8], types: &[u32]) {
    framed(out, b'P', |out| {
        put_name(out, name);
        out.put_slice(text);
        out.put_u8(0);
        out.put_u16(u16::try_from(types.len()).unwrap_or(u16::MAX));
        for &oid in types {
            out.put_u32(oid);
        }
    });
}

/// Close or Describe of a statement.
pub(super) fn put_statement(out: &mut BytesMut, tag: u8, name: &str) {
    framed(out, tag, |out| {
        out.put_u8(b'S');
        put_name(out, name);
    });
}

/// Bind of a statement without parameters to the unnamed portal.
pub(super) fn put_bind(out: &mut BytesMut, statement: &str) {
    framed(out, b'B', |out| {
        put_name(out, "");
        put_name(out, statement);
        out.put_bytes(0, 6);
    });
}

/// Execute of the unnamed portal, to its end.
pub(super) fn put_execute(out: &mut BytesMut) {
    framed(out, b'E', |out| {
        put_name(out, "");
        out.put_u32(0);
    });
}

/// Query.
pub(super) fn put_query(out: &mut BytesMut, text: &str) {
    framed(out, b'Q', |out| put_name(out, text));
}

/// Sync or Flush.
pub(super) fn put_empty(out: &mut BytesMut, tag: u8) {
    framed(out, tag, |_| {});
}

/// An error or a notice whose message has another name in the place of `name`; everything else as
/// the server says it, in its language.
pub(super) fn rename_in_report(body: &[u8], name: &str, other: &[u8]) -> BytesMut {
    let mut out = BytesMut::with_capacity(body.len() + other.len() + HEADER);
    framed(&mut out, b'E', |out| {
        let mut is_renamed = false;
        let mut fields = body;
        while let Some((&code, rest)) = fields.split_first()
            && code != 0
            && let Some(end) = rest.iter().position(|&byte| byte == 0)
        {
            let text = &rest[..end];
            out.put_u8(code);
            let at = text
                .windows(name.len())
                .position(|window| window == name.as_bytes());
            match at {
                Some(at) if code == b'M' && !is_renamed => {
                    is_renamed = true;
                    out.put_slice(&text[..at]);
                    out.put_slice(other);
                    out.put_slice(&text[at + name.len()..]);
                }
                _ => out.put_slice(text),
            }
            out.put_u8(0);
            fields = &rest[end + 1..];
        }
        out.put_u8(0);
    });
    out
}

fn put_name(out: &mut BytesMut, name: &str) {
    out.put_slice(name.as_bytes());
    out.put_u8(0);
}

fn framed(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    let start = out.len();
    out.put_u32(0);
    body(out);
    let length = u32::try_from(out.len() - start).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
}
