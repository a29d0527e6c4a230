//! Sessions of a pool in transaction mode that take turns on one server connection.

use super::relay::{data_row, give, read, ready, row_description, take};
use super::{frame, measured};
use crate::session::pool::measured::Ring;

/// What a client asks, what the server hears, and what it answers.
struct Exchange {
    request: Vec<u8>,
    heard: Vec<u8>,
    answer: Vec<u8>,
}

const TEXT: &[u8] = b"SELECT abalance FROM pgbench_accounts WHERE aid = $1;";

/// Each session prepares the same text under the same name.
fn parse() -> Vec<u8> {
    let parse = frame(b'P', &[b"P_0\0", TEXT, b"\0\0\0"].concat());
    [parse, frame(b'S', b"")].concat()
}

/// As pgbench's `--select-only -M prepared` has it.
fn prepared(name: &[u8]) -> Vec<u8> {
    let bind = [b"\0", name, b"\0\0\0\0\x01\0\0\0\x04" as &[u8], b"4711\0\0"].concat();
    let rest = [frame(b'D', b"P\0"), frame(b'E', b"\0\0\0\0\0"), frame(b'S', b"")];
    [frame(b'B', &bind), rest.concat()].concat()
}

fn prepared_answer() -> Vec<u8> {
    let row = [row_description(), data_row(b"0"), frame(b'C', b"SELECT 1\0")];
    [frame(b'2', b""), row.concat(), ready()].concat()
}

fn simple() -> Exchange {
    let row = [row_description(), data_row(b"0"), frame(b'C', b"SELECT 1\0")].concat();
    let request = frame(b'Q', b"SELECT abalance FROM pgbench_accounts WHERE aid = 4711;\0");
    Exchange {
        heard: request.clone(),
        request,
        answer: [row, ready()].concat(),
    }
}

/// The connection is free whenever a client asks.
pub(super) fn simple_free(count: usize) {
    let mut play = Play::new(2);
    play.free(&simple(), count);
}

/// A client asks while another one has the connection, and gets it next.
pub(super) fn simple_wait(count: usize) {
    let mut play = Play::new(3);
    play.wait(&simple(), count);
}

pub(super) fn prepared_wait(count: usize) {
    let mut play = Play::new(3);
    let name = play.prepare();
    let exchange = Exchange {
        request: prepared(b"P_0"),
        heard: prepared(&name),
        answer: prepared_answer(),
    };
    play.wait(&exchange, count);
}

struct Play {
    ring: Ring,
    sessions: usize,
    buffer: Vec<u8>,
}

impl Play {
    fn new(sessions: usize) -> Self {
        Self {
            ring: Ring::new(sessions),
            sessions,
            buffer: vec![0; 4096],
        }
    }

    /// The client says this, and its session hears it.
    fn ask(&mut self, session: usize, request: &[u8]) {
        assert!(give(self.ring.client(session), request).is_empty());
        measured(|| self.ring.wake(session));
    }

    /// The server has heard this, and answers; the session passes it on.
    fn answer(&mut self, session: usize, heard: &[u8], answer: &[u8]) {
        assert!(take(self.ring.server(), &mut self.buffer, heard).is_empty());
        assert!(give(self.ring.server(), answer).is_empty());
        measured(|| self.ring.wake(session));
        assert!(take(self.ring.client(session), &mut self.buffer, answer).is_empty());
    }

    fn free(&mut self, exchange: &Exchange, count: usize) {
        for session in (0..self.sessions).cycle().take(count) {
            self.ask(session, &exchange.request);
            self.answer(session, &exchange.heard, &exchange.answer);
        }
    }

    fn wait(&mut self, exchange: &Exchange, count: usize) {
        self.ask(0, &exchange.request);
        for turn in 0..count {
            let (now, next) = (turn % self.sessions, (turn + 1) % self.sessions);
            self.ask(next, &exchange.request);
            self.answer(now, &exchange.heard, &exchange.answer);
            measured(|| self.ring.wake(next));
        }
    }

    /// Every session prepares its statement. Returns the name that the server knows it by.
    fn prepare(&mut self) -> Vec<u8> {
        let request = parse();
        let mut name = Vec::new();
        for session in 0..self.sessions {
            assert!(give(self.ring.client(session), &request).is_empty());
            self.ring.wake(session);
            let heard = read(self.ring.server(), &mut self.buffer);
            let mut answer = Vec::new();
            let mut rest = &heard[..];
            while let Some((tag, body)) = message(&mut rest) {
                match tag {
                    b'P' => {
                        name = body.split(|&byte| byte == 0).next().unwrap_or_default().to_vec();
                        answer.extend(frame(b'1', b""));
                    }
                    b'C' => answer.extend(frame(b'3', b"")),
                    b'D' => answer.extend([frame(b't', b"\0\x01\0\0\0\x17"), row_description()].concat()),
                    _ => answer.extend(ready()),
                }
            }
            assert!(give(self.ring.server(), &answer).is_empty());
            self.ring.wake(session);
            assert_eq!(
                read(self.ring.client(session), &mut self.buffer),
                [frame(b'1', b""), ready()].concat()
            );
        }
        name
    }
}

/// The next message: its type and its body.
fn message<'a>(rest: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&[tag, a, b, c, d], behind) = rest.split_first_chunk::<5>()?;
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    let (body, behind) = behind.split_at(length - 4);
    *rest = behind;
    Some((tag, body))
}
