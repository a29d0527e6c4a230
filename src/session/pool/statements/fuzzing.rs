//! Any messages of a client and any answers of a server.

use bytes::BytesMut;

use super::{Answer, ConnectionStatements, Interner, Limits, Rewriter, SessionStatements, Step};
use crate::wire::pending::{Owner, PendingReplies, TransactionStatus};

/// Each message: a type byte, a byte with the length of its body, the body. Bit 7 of the length:
/// the frame goes on behind what is there. Types that only a server has are answers, `!` is an
/// orderly loss of the connection.
pub(crate) fn run(data: &[u8]) {
    let limits = Limits {
        statements: 3,
        bytes: 100,
    };
    let interner = Interner::new();
    let mut session = SessionStatements::new(&interner, limits);
    let mut connection = ConnectionStatements::new(limits);
    let mut pending = PendingReplies::new(TransactionStatus::Idle);
    let mut rest = data;
    while let [tag, length, tail @ ..] = rest {
        let body;
        (body, rest) = tail.split_at(usize::from(length & 0x7f).min(tail.len()));
        if *tag == b'!' {
            session.connection_lost();
            connection.abandoned();
            pending = PendingReplies::new(TransactionStatus::Idle);
            continue;
        }
        let mut rewriter = Rewriter::new(&interner, &mut session, &mut connection, Some(1));
        if b"123tTnZIsVGW".contains(tag) || *tag == b'A' {
            // `A`: an error, as a client's Execute has its letter.
            let tag = if *tag == b'A' { b'E' } else { *tag };
            if let Answer::Instead(frame) = rewriter.answered(Owner::Client, tag, body) {
                assert!(is_whole(&frame));
            }
        } else {
            offer(&mut rewriter, *tag, body, length & 0x80 != 0, &mut pending);
        }
        assert!(session.len() <= limits.statements && session.bytes() <= limits.bytes);
    }
    session.connection_lost();
    connection.abandoned();
    assert!(!session.has_changes_pending());
}

fn offer(rewriter: &mut Rewriter<'_>, tag: u8, body: &[u8], goes_on: bool, pending: &mut PendingReplies) {
    let more = if goes_on { 1_000_000 } else { 0 };
    let length = u32::try_from(body.len() + 4 + more).unwrap_or(u32::MAX);
    let mut frame = vec![tag];
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(body);
    let mut out = BytesMut::new();
    let Ok(step) = rewriter.client(tag, &frame, &mut out, pending) else {
        return;
    };
    match step {
        Step::Forward { replaced } => out.extend_from_slice(&frame[replaced..]),
        Step::Wait => assert!(rewriter.is_waiting() && out.ends_with(b"H\0\0\0\x04")),
    }
    if !goes_on {
        assert!(is_whole(&out), "{out:?}");
    }
}

/// Nothing but whole frames.
fn is_whole(mut bytes: &[u8]) -> bool {
    while let Some((header, _)) = bytes.split_first_chunk::<5>() {
        let [_, length @ ..] = *header;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        match bytes.get(length.saturating_add(1)..) {
            Some(rest) if length >= 4 => bytes = rest,
            _ => return false,
        }
    }
    bytes.is_empty()
}
