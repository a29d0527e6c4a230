//! A relay between a driver and a server that keep to one script.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{frame, measured, tls};
use crate::session::memory;
use crate::session::stream::SessionStream;

/// What one side asks and the other answers.
struct Transaction {
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Transaction {
    /// As pgbench's `--select-only` has it.
    fn select() -> Self {
        let row = [row_description(), data_row(b"0"), frame(b'C', b"SELECT 1\0")].concat();
        Self {
            request: frame(b'Q', b"SELECT abalance FROM pgbench_accounts WHERE aid = 4711;\0"),
            answer: [row, ready()].concat(),
        }
    }

    /// A hundred statements and one Sync, as pipelining drivers send them.
    fn pipeline() -> Self {
        let statement = [
            frame(
                b'P',
                b"\0SELECT abalance FROM pgbench_accounts WHERE aid = $1\0\0\0",
            ),
            frame(b'B', b"\0\0\0\x01\0\x01\0\x01\0\0\0\x04\0\0\x12\x67\0\x01\0\x01"),
            frame(b'D', b"P\0"),
            frame(b'E', b"\0\0\0\0\0"),
        ];
        let answer = [
            frame(b'1', b""),
            frame(b'2', b""),
            row_description(),
            data_row(&[0; 4]),
            frame(b'C', b"SELECT 1\0"),
        ];
        Self {
            request: [statement.concat().repeat(100), frame(b'S', b"")].concat(),
            answer: [answer.concat().repeat(100), ready()].concat(),
        }
    }

    fn large_row() -> Self {
        let row = data_row(&vec![b'x'; 1024 * 1024]);
        Self {
            request: frame(b'Q', b"SELECT document FROM documents WHERE id = 4711;\0"),
            answer: [row_description(), row, frame(b'C', b"SELECT 1\0"), ready()].concat(),
        }
    }
}

pub(super) fn row_description() -> Vec<u8> {
    frame(
        b'T',
        b"\0\x01abalance\0\0\0\x40\x0c\0\x03\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0",
    )
}

pub(super) fn data_row(value: &[u8]) -> Vec<u8> {
    let length = u32::try_from(value.len()).expect("it is short");
    frame(b'D', &[&b"\0\x01"[..], &length.to_be_bytes(), value].concat())
}

pub(super) fn ready() -> Vec<u8> {
    frame(b'Z', b"I")
}

pub(super) fn select(count: usize) {
    in_clear(&Transaction::select(), count);
}

pub(super) fn pipeline(count: usize) {
    in_clear(&Transaction::pipeline(), count);
}

pub(super) fn large_row(count: usize) {
    in_clear(&Transaction::large_row(), count);
}

pub(super) fn select_tls(count: usize) {
    in_tls(&Transaction::select(), count);
}

pub(super) fn pipeline_tls(count: usize) {
    in_tls(&Transaction::pipeline(), count);
}

pub(super) fn large_row_tls(count: usize) {
    in_tls(&Transaction::large_row(), count);
}

fn in_clear(transaction: &Transaction, count: usize) {
    play(transaction, count, memory::connection(), memory::connection());
}

fn in_tls(transaction: &Transaction, count: usize) {
    let (driver, to_client) = tls::connection();
    let (to_server, server) = tls::connection();
    play(transaction, count, (driver, to_client), (server, to_server));
}

/// Each pair is a peer, and the router's end of the connection to it.
fn play<C: SessionStream, S: SessionStream>(
    transaction: &Transaction,
    count: usize,
    (mut driver, to_client): (impl AsyncRead + AsyncWrite + Unpin, C),
    (mut server, to_server): (impl AsyncRead + AsyncWrite + Unpin, S),
) {
    let (mut relay, _entry) = memory::relay(to_client, to_server, false);
    let mut session = pin!(relay.run());
    let mut step = || {
        let mut context = Context::from_waker(Waker::noop());
        let polled = measured(|| session.as_mut().poll(&mut context).is_pending());
        assert!(polled, "the session has ended");
    };
    let mut buffer = vec![0; 64 * 1024];
    let Transaction { request, answer } = transaction;
    for _ in 0..count {
        let mut asked = &request[..];
        let mut heard = &request[..];
        while !heard.is_empty() {
            asked = give(&mut driver, asked);
            step();
            heard = take(&mut server, &mut buffer, heard);
        }
        let mut said = &answer[..];
        let mut seen = &answer[..];
        while !seen.is_empty() {
            said = give(&mut server, said);
            step();
            seen = take(&mut driver, &mut buffer, seen);
        }
    }
}

/// Writes what there is room for, and returns the rest.
pub(super) fn give<'a>(stream: &mut (impl AsyncWrite + Unpin), mut data: &'a [u8]) -> &'a [u8] {
    let mut context = Context::from_waker(Waker::noop());
    while !data.is_empty() {
        match Pin::new(&mut *stream).poll_write(&mut context, data) {
            Poll::Ready(written) => data = &data[written.expect("the router reads")..],
            Poll::Pending => break,
        }
    }
    if let Poll::Ready(flushed) = Pin::new(stream).poll_flush(&mut context) {
        flushed.expect("the router reads");
    }
    data
}

/// Reads what is there, which is what is expected, and returns what is expected next.
pub(super) fn take<'a>(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut [u8],
    mut expected: &'a [u8],
) -> &'a [u8] {
    let mut context = Context::from_waker(Waker::noop());
    loop {
        let mut read = ReadBuf::new(buffer);
        match Pin::new(&mut *stream).poll_read(&mut context, &mut read) {
            Poll::Ready(outcome) => outcome.expect("the router is there"),
            Poll::Pending => return expected,
        }
        let read = read.filled();
        assert!(!read.is_empty(), "the router has closed");
        expected = expected.strip_prefix(read).expect("what was sent comes");
    }
}

/// Reads what is there.
pub(super) fn read(stream: &mut (impl AsyncRead + Unpin), buffer: &mut [u8]) -> Vec<u8> {
    let mut context = Context::from_waker(Waker::noop());
    let mut all = Vec::new();
    loop {
        let mut read = ReadBuf::new(buffer);
        match Pin::new(&mut *stream).poll_read(&mut context, &mut read) {
            Poll::Ready(outcome) => outcome.expect("the router is there"),
            Poll::Pending => return all,
        }
        assert!(!read.filled().is_empty(), "the router has closed");
        all.extend_from_slice(read.filled());
    }
}
