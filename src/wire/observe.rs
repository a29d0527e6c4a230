//! Observers of the relayed stream: they walk the headers of what passes, in place, and report the few messages the
//! session needs to know of.
//!
//! Guarantees: the stream may be split into reads anywhere; a frame larger than a read is a counter, not a buffer;
//! only small messages that are reported *and* split over reads are copied, into a buffer that is gone again when
//! they are complete; an observer with nothing under way has nothing on the heap. A row costs its header's five
//! bytes and no call.
//!
//! Refuses: lengths that no PostgreSQL sends or accepts. After a fault nobody knows where the next frame starts, so
//! both connections must end. Message types not known pass: they are the peers' affair.

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

/// What passed from the server. Borrowed from the read; a message without contents here is reported at its end.
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
    /// Any other answer that ends a request of the extended protocol or starts one of the simple protocol:
    /// `1`, `2`, `3`, `n`, `T`, `s`, `I`, `V`. Rows and copied data are not reported.
    Answer(u8),
}

/// An error or a notice, as it stands in the message (its first 10 000 bytes, however it came); looked into only if asked.
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
    /// Rows, copied data, and whatever is not known.
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

/// A header that may be split over reads, and what is left of a frame behind it.
#[derive(Debug, Default, Clone, Copy)]
struct Cursor {
    header: [u8; 5],
    /// Bytes of `header` that are there, while it is not whole.
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

    /// Passes over what there is of the body; says how much that was.
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
    /// What came so far of a message that is kept.
    kept: Vec<u8>,
    /// Of the run that was refused: bytes before the message that was at fault.
    valid: u32,
    /// The message at fault began in an earlier run.
    torn: bool,
}

impl ServerObserver {
    pub fn new() -> Self {
        Self::default()
    }

    /// No frame is under way: the next byte is a type byte. After a fault: what is valid of the stream ends with a
    /// whole frame.
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

    /// How many more bytes may be read without reading into the next frame: none at a boundary, never more than the
    /// frame under way has.
    pub fn missing(&self) -> usize {
        match self.cursor {
            Cursor { have, .. } if have > 0 => 5 - usize::from(have),
            Cursor { remaining, .. } => usize::try_from(remaining).unwrap_or(usize::MAX),
        }
    }

    /// The message at fault began in an earlier run: nothing can be put behind what has passed.
    pub fn is_torn(&self) -> bool {
        self.torn
    }

    /// After a fault: how many bytes of the run that was refused come before the message at fault.
    pub fn valid(&self) -> usize {
        usize::try_from(self.valid).unwrap_or_default()
    }

    /// Takes the next bytes of the stream and reports what they complete, in order. After a fault there is no more to
    /// feed, and [`Self::valid`] says how far the run was good.
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

    /// At most [`REPORT_KEPT`] bytes of a report; all of the others, which are no longer than [`SERVER_SMALL`].
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

    /// The client has said the whole of `X`. A server reads its body before it ends, so a header alone is no goodbye.
    pub fn terminated(&self) -> bool {
        self.terminated
    }

    /// The type of the frame that has been reported and is not whole yet.
    pub fn unfinished(&self) -> Option<u8> {
        (self.cursor.remaining > 0).then_some(self.cursor.header[0])
    }

    /// Takes the next bytes of the stream and reports each frame at its header: its type, and its length word. Says how
    /// many of the bytes are the server's: all of them, except that nothing behind a whole `X` is, nor looked at.
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
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn frame(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![tag];
        frame.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        frame.extend(body);
        frame
    }

    /// Wherever the stream is split, what is good of it is what comes before the message at fault; and if a part of
    /// that message has passed already, nothing may be put behind it.
    #[test]
    fn a_fault_says_how_far_the_stream_is_good() {
        let good = [
            frame(b'T', &[7; 30]),
            frame(b'D', &[7; 40]),
            frame(b'C', b"SELECT 1\0"),
        ]
        .concat();
        for bad in [
            &b"D\0\0\0\x03"[..],
            b"Z\0\0\0\x05?",
            b"Z\0\0\0\x09",
            b"S\0\0\0\x05x",
        ] {
            let stream = [&good[..], bad].concat();
            for cut in 0..=stream.len() {
                let mut observer = ServerObserver::new();
                let (first, second) = stream.split_at(cut);
                let mut passed = 0;
                for run in [first, second] {
                    if observer.feed(run, |_| {}).is_err() {
                        passed += observer.valid();
                        break;
                    }
                    passed += run.len();
                }
                assert_eq!(observer.at_boundary(), passed == good.len(), "{cut}");
                assert!(passed >= good.len(), "{cut}");
            }
        }
    }

    /// Everything a server may say, and what is to be reported of it.
    fn server_stream() -> (Vec<u8>, Vec<String>) {
        let long_report = [b"SERROR\0VERROR\0C23505\0M", &b"x".repeat(40_000)[..], b"\0\0"].concat();
        let frames: Vec<(u8, Vec<u8>, Option<&str>)> = vec![
            (b'1', vec![], Some("Answer(49)")),
            (b't', b"\0\0".to_vec(), None),
            (b'T', vec![7; 300], Some("Answer(84)")),
            (b'D', vec![7; 100], None),
            (b'D', vec![], None),
            (b'C', b"SELECT 2\0".to_vec(), Some("C SELECT 2")),
            (b'S', b"TimeZone\0\xff\0".to_vec(), Some("S TimeZone \u{fffd}")),
            (
                b'K',
                b"\0\0\0\x07key!".to_vec(),
                Some("Key { process_id: 7, key: [107, 101, 121, 33] }"),
            ),
            (
                b'N',
                b"SWARNING\0VWARNING\0C01000\0M?\0\0".to_vec(),
                Some("N 01000 false"),
            ),
            (b'E', long_report, Some("E 23505 false")),
            (
                b'E',
                b"SFATAL\0VFATAL\0C57P01\0M!\0\0".to_vec(),
                Some("E 57P01 true"),
            ),
            (b'?', vec![1; 50], None),
            (b'G', b"\0\0\x01\0\0".to_vec(), Some("CopyIn")),
            (b'H', b"\0\0\x01\0\0".to_vec(), Some("CopyOut")),
            (b'W', b"\0\0\0".to_vec(), Some("CopyBoth")),
            (b'd', vec![1; 20], None),
            (b'c', vec![], None),
            (b'A', b"\0\0\0\x01ch\0payload\0".to_vec(), Some("Notification")),
            (b'Z', b"T".to_vec(), Some("ReadyForQuery(InTransaction)")),
        ];
        let stream = frames
            .iter()
            .flat_map(|(tag, body, _)| frame(*tag, body))
            .collect();
        (
            stream,
            frames
                .iter()
                .filter_map(|(_, _, event)| event.map(str::to_owned))
                .collect(),
        )
    }

    fn shown(event: ServerEvent<'_>) -> String {
        let report = |tag, report: Report<'_>| format!("{tag} {} {}", report.code(), report.is_fatal());
        let text = String::from_utf8_lossy;
        match event {
            ServerEvent::CommandComplete(tag) => format!("C {}", text(tag)),
            ServerEvent::Parameter { name, value } => format!("S {} {}", text(name), text(value)),
            ServerEvent::Notice(notice) => report("N", notice),
            ServerEvent::Error(error) => report("E", error),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn a_server_s_stream_may_be_split_at_every_byte() {
        let (stream, expected) = server_stream();
        for at in 0..=stream.len() {
            let (mut observer, mut seen) = (ServerObserver::new(), Vec::new());
            for part in [&stream[..at], &stream[at..]] {
                observer.feed(part, |event| seen.push(shown(event))).unwrap();
            }
            assert_eq!(seen, expected, "split at {at}");
            assert!(observer.at_boundary());
            assert_eq!(observer.kept.capacity(), 0);
        }
    }

    #[test]
    fn a_server_s_stream_may_come_in_reads_of_any_size() {
        let (stream, expected) = server_stream();
        for step in (1..64).chain([997, 8192]) {
            let (mut observer, mut seen, mut fed) = (ServerObserver::new(), Vec::new(), 0);
            let mut boundaries = vec![0];
            while let Some(&[_, a, b, c, d]) = stream[*boundaries.last().unwrap()..].first_chunk::<5>() {
                let length = u32::from_be_bytes([a, b, c, d]) as usize;
                boundaries.push(boundaries.last().unwrap() + 1 + length);
            }
            for part in stream.chunks(step) {
                observer.feed(part, |event| seen.push(shown(event))).unwrap();
                fed += part.len();
                assert_eq!(
                    observer.at_boundary(),
                    boundaries.contains(&fed),
                    "after {fed} bytes"
                );
                assert!(observer.kept.len() <= REPORT_KEPT);
            }
            assert_eq!(seen, expected, "reads of {step} bytes");
        }
    }

    #[test]
    fn an_idle_observer_is_small() {
        assert!(size_of::<ServerObserver>() <= 64);
        assert!(size_of::<ClientObserver>() <= 16);
    }

    #[test]
    fn a_frame_larger_than_memory_is_a_counter() {
        let mut observer = ServerObserver::new();
        observer
            .feed(b"D\x7f\xff\xff\xff", |_| panic!("a row is not reported"))
            .unwrap();
        let megabyte = vec![b'Z'; 1 << 20];
        let mut left = 0x7fff_ffff_usize - 4;
        while left > 0 {
            assert!(!observer.at_boundary());
            let part = &megabyte[..left.min(megabyte.len())];
            observer.feed(part, |_| panic!("inside a row")).unwrap();
            left -= part.len();
        }
        assert!(observer.at_boundary());
        let mut seen = 0;
        observer.feed(b"Z\0\0\0\x05I", |_| seen += 1).unwrap();
        assert_eq!(seen, 1);
    }

    #[test]
    fn a_server_out_of_step_is_a_fault() {
        let absurd: [&[u8]; 13] = [
            b"D\0\0\0\x03",
            b"D\x80\0\0\0",
            b"Z\0\0\0\x06II",
            b"Z\0\0\0\x04",
            b"Z\0\0\0\x05X",
            b"C\0\0\x75\x31",
            b"C\0\0\0\x05x",
            b"C\0\0\0\x04",
            b"S\0\0\x75\x31",
            b"S\0\0\0\x06x\0",
            b"S\0\0\0\x0aa\0b\0c\0",
            b"K\0\0\0\x06xx",
            b"?\0\0\0\0",
        ];
        for stream in absurd {
            let mut whole = ServerObserver::new();
            assert!(whole.feed(stream, |_| {}).is_err(), "{stream:?}");
            let mut split = ServerObserver::new();
            assert!(
                stream.iter().any(|byte| split.feed(&[*byte], |_| {}).is_err()),
                "{stream:?}"
            );
        }
    }

    #[test]
    fn a_client_s_frames_are_reported_at_their_headers() {
        let stream = [
            frame(b'P', &[b'x'; 500]),
            frame(b'S', b""),
            frame(b'?', b"abc"),
            frame(b'X', b""),
        ]
        .concat();
        let expected = [(b'P', 504), (b'S', 4), (b'?', 7), (b'X', 4)];
        for step in 1..=stream.len() {
            let (mut observer, mut seen) = (ClientObserver::new(), Vec::new());
            for part in stream.chunks(step) {
                assert!(!observer.terminated());
                observer
                    .feed(part, |tag, length| seen.push((tag, length)))
                    .unwrap();
            }
            assert_eq!(seen, expected, "reads of {step} bytes");
            assert!(observer.at_boundary() && observer.terminated());
            // Nothing follows a goodbye.
            assert_eq!(observer.feed(b"Q\0\0\0\x04", |_, _| panic!("ignored")), Ok(0));
        }
        let mut observer = ClientObserver::new();
        let mut seen = Vec::new();
        observer.feed(&stream[..5], |tag, _| seen.push(tag)).unwrap();
        assert_eq!((seen, observer.at_boundary()), (vec![b'P'], false));
    }

    /// A server reads the body of `X` before it ends, and nothing behind it.
    #[test]
    fn a_goodbye_is_one_when_it_is_whole() {
        let stream = [frame(b'X', b"and a body"), frame(b'Q', b"SELECT 1\0")].concat();
        let goodbye = 5 + b"and a body".len();
        for cut in 0..=stream.len() {
            let mut observer = ClientObserver::new();
            let mut tags = Vec::new();
            let first = observer.feed(&stream[..cut], |tag, _| tags.push(tag)).unwrap();
            assert_eq!(observer.terminated(), cut >= goodbye, "{cut}");
            assert_eq!(observer.unfinished(), (5..goodbye).contains(&cut).then_some(b'X'));
            let second = observer.feed(&stream[cut..], |tag, _| tags.push(tag)).unwrap();
            assert_eq!((first + second, observer.terminated()), (goodbye, true), "{cut}");
            assert_eq!(tags, b"X");
        }
    }

    #[test]
    fn what_has_passed_of_a_frame_and_what_is_missing_is_known() {
        let frames = [
            frame(b'D', &[7; 300]),
            frame(b'E', b"SERROR\0C42P01\0\0"),
            frame(b'I', b""),
        ];
        let stream = frames.concat();
        let mut start = 0;
        for frame in &frames {
            for passed in 0..frame.len() {
                let mut observer = ServerObserver::new();
                let mut at = start + passed;
                observer.feed(&stream[..at], |_| {}).unwrap();
                assert_eq!(observer.passed(), passed, "{at}");
                while !observer.at_boundary() {
                    let next = at + observer.missing();
                    observer.feed(&stream[at..next], |_| {}).unwrap();
                    at = next;
                }
                let end = if passed == 0 { start } else { start + frame.len() };
                assert_eq!((at, observer.missing()), (end, 0));
            }
            start += frame.len();
        }
    }

    #[test]
    fn a_client_s_lengths_are_bounded_as_postgresql_bounds_them() {
        for (header, fault) in [
            (b"Q\x3f\xff\xff\xfe", false),
            (b"Q\x3f\xff\xff\xff", true),
            (b"d\0\0\0\x03", true),
            (b"S\0\0\x27\x10", false),
            (b"S\0\0\x27\x11", true),
            (b"?\xff\xff\xff\xff", true),
        ] {
            assert_eq!(
                ClientObserver::new().feed(header, |_, _| {}).is_err(),
                fault,
                "{header:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_the_same_however_they_are_split(
            bytes in vec(prop_oneof![4 => Just(0), 2 => Just(5), 2 => proptest::sample::select(b"ZCENSKDGT1".to_vec()), 1 => any::<u8>()], 0..80),
            cuts in vec(0_usize..80, 0..6),
        ) {
            let run = |parts: &[&[u8]]| {
                let (mut server, mut events) = (ServerObserver::new(), Vec::new());
                let outcome = parts.iter().try_for_each(|p| server.feed(p, |event| events.push(format!("{event:?}"))));
                let (mut client, mut frames) = (ClientObserver::new(), Vec::new());
                let client_outcome = parts.iter().try_for_each(|p| client.feed(p, |tag, length| frames.push((tag, length))).map(drop));
                (outcome, events, client_outcome, frames)
            };
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([0, bytes.len()]).collect();
            cuts.sort_unstable();
            let parts: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(run(&[&bytes]), run(&parts));
        }
    }
}
