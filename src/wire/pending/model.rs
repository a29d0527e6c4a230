//! A server's message loop as PostgreSQL has it, [`PendingReplies`] beside it, and what the two
//! must agree about: for the property tests and the fuzzer.

#![allow(clippy::unwrap_used, reason = "a panic is how a fuzzer sees a failure")]

use std::collections::VecDeque;

use super::{Owner, PendingReplies, TransactionStatus};
use crate::wire::observe::ServerObserver;

/// As `prop_assert!`, but the error is a text.
macro_rules! ensure {
    ($holds:expr $(,)?) => {
        ensure!($holds, "{}", stringify!($holds))
    };
    ($holds:expr, $($format:tt)+) => {
        if !$holds {
            return Err(format!($($format)+));
        }
    };
}

/// One message of a server as bytes, observed the way the relay does; returns whose it is.
pub(super) fn feed(pending: &mut PendingReplies, message: &[u8]) -> Owner {
    let mut owner = pending.answering();
    ServerObserver::new()
        .feed(message, |event| owner = pending.server(&event))
        .unwrap();
    owner
}

/// `Z`, `Y` and `X` are ready in idle, in a transaction, in a failed one; `F` is a fatal error.
pub(super) fn server_message(tag: u8) -> &'static [u8] {
    match tag {
        b'Z' => b"Z\0\0\0\x05I",
        b'Y' => b"Z\0\0\0\x05T",
        b'X' => b"Z\0\0\0\x05E",
        b'E' => b"E\0\0\0\x1aSERROR\0VERROR\0C42P01\0\0",
        b'F' | BROKEN_COPY => b"E\0\0\0\x1aSFATAL\0VFATAL\0C57P01\0\0",
        b'C' => b"C\0\0\0\x06X\0",
        b'N' => b"N\0\0\0\x05\0",
        b'S' => b"S\0\0\0\x08a\0b\0",
        b'A' => b"A\0\0\0\x0c\0\0\0\x01c\0p\0",
        b'1' => b"1\0\0\0\x04",
        b'2' => b"2\0\0\0\x04",
        b'3' => b"3\0\0\0\x04",
        b'n' => b"n\0\0\0\x04",
        b's' => b"s\0\0\0\x04",
        b'I' => b"I\0\0\0\x04",
        b'T' => b"T\0\0\0\x06\0\0",
        b't' => b"t\0\0\0\x06\0\0",
        b'D' => b"D\0\0\0\x06\0\0",
        b'V' => b"V\0\0\0\x08\xff\xff\xff\xff",
        b'G' => b"G\0\0\0\x07\0\0\0",
        b'H' => b"H\0\0\0\x07\0\0\0",
        b'W' => b"W\0\0\0\x07\0\0\0",
        b'd' => b"d\0\0\0\x04",
        b'c' => b"c\0\0\0\x04",
        other => panic!("no such message: {other}"),
    }
}

/// The FATAL error behind a message that has no place in a COPY.
const BROKEN_COPY: u8 = b'!';

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Done,
    Rows,
    Empty,
    Fails,
    /// The server ends the session.
    Fatal,
    CopyOut,
    CopyIn,
    /// COPY IN that fails by itself after this many of the messages that follow.
    CopyInFails(u8),
}

#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) owner: Owner,
    pub(super) tag: u8,
    pub(super) fates: Vec<Fate>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Main,
    CopyIn { extended: bool, fails_after: Option<u8> },
    Dead,
}

#[derive(Debug)]
struct Server {
    inbox: VecDeque<Message>,
    /// Types of messages, and who asked for each.
    outbox: VecDeque<(u8, Owner)>,
    /// Who asked for what is under way.
    owner: Owner,
    mode: Mode,
    /// Statements left of the Query under way.
    statements: VecDeque<Fate>,
    in_query: bool,
    skipping: bool,
    batch_open: bool,
}

impl Server {
    fn new() -> Self {
        Self {
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            owner: Owner::Client,
            mode: Mode::Main,
            statements: VecDeque::new(),
            in_query: false,
            skipping: false,
            batch_open: false,
        }
    }

    /// Has answered everything, and does nothing until it is asked.
    fn is_idle(&self) -> bool {
        let waits = self.mode == Mode::Main && !self.in_query && !self.skipping && !self.batch_open;
        let ignored = self.inbox.iter().all(|message| b"Hdcf".contains(&message.tag));
        waits && ignored && self.outbox.is_empty()
    }

    fn say(&mut self, tags: &str) {
        self.outbox.extend(tags.bytes().map(|tag| (tag, self.owner)));
    }

    /// Processes one message, or one statement of a Query, or fails as its fate says.
    fn step(&mut self) {
        match self.mode {
            Mode::Dead => {}
            Mode::CopyIn {
                extended,
                fails_after: Some(0),
            } => self.copy_failed(extended),
            Mode::CopyIn {
                extended,
                fails_after,
            } => {
                let Some(message) = self.inbox.pop_front() else {
                    return;
                };
                let fails_after = fails_after.map(|left| left - 1);
                match message.tag {
                    b'd' | b'S' | b'H' => {
                        self.mode = Mode::CopyIn {
                            extended,
                            fails_after,
                        }
                    }
                    b'f' => self.copy_failed(extended),
                    b'c' if fails_after.is_some() => self.copy_failed(extended),
                    b'c' => {
                        self.say("C");
                        self.mode = Mode::Main;
                    }
                    _ => {
                        self.say("E");
                        // The session ends over what was sent, not over what was asked: it has no
                        // owner that could be known.
                        self.outbox.push_back((BROKEN_COPY, self.owner));
                        self.mode = Mode::Dead;
                    }
                }
            }
            Mode::Main if self.in_query => match self.statements.pop_front() {
                Some(Fate::Fails) => self.query_failed(),
                Some(fate) => self.execute(fate, false),
                None => {
                    self.in_query = false;
                    self.say("Z");
                }
            },
            Mode::Main => {
                if let Some(message) = self.inbox.pop_front() {
                    self.main(&message);
                }
            }
        }
    }

    fn main(&mut self, message: &Message) {
        let fate = message.fates.first().copied().unwrap_or(Fate::Done);
        self.owner = message.owner;
        match message.tag {
            b'X' => self.mode = Mode::Dead,
            b'd' | b'c' | b'f' => {}
            b'S' => {
                // Only the commit of what a batch has done can fail.
                let has_work = self.batch_open && !self.skipping;
                self.skipping = false;
                self.batch_open = false;
                self.say(if has_work && fate == Fate::Fails {
                    "EZ"
                } else {
                    "Z"
                });
            }
            _ if self.skipping => {}
            b'H' => {}
            b'Q' => {
                self.batch_open = false;
                self.in_query = true;
                self.statements = message.fates.iter().copied().collect();
                if self.statements.is_empty() {
                    self.say("I");
                }
            }
            b'F' if fate == Fate::Fatal => self.die(),
            b'F' => {
                self.batch_open = false;
                self.say(if fate == Fate::Fails { "EZ" } else { "VZ" });
            }
            tag => {
                self.batch_open = true;
                match (tag, fate) {
                    (_, Fate::Fails) => self.extended_failed(),
                    (_, Fate::Fatal) => self.die(),
                    (b'P', _) => self.say("1"),
                    (b'B', _) => self.say("2"),
                    (b'C', _) => self.say("3"),
                    (b'D', Fate::Rows) => self.say("tT"),
                    (b'D', _) => self.say("n"),
                    _ => self.execute(fate, true),
                }
            }
        }
    }

    fn execute(&mut self, fate: Fate, extended: bool) {
        match fate {
            Fate::Rows if extended => self.say("DDs"),
            Fate::Rows => self.say("TDDC"),
            Fate::Empty if extended => self.say("I"),
            Fate::Done | Fate::Empty => self.say("NSAC"),
            Fate::Fatal => self.die(),
            Fate::CopyOut => self.say("HddcC"),
            Fate::Fails => self.extended_failed(),
            Fate::CopyIn | Fate::CopyInFails(_) => {
                self.say("G");
                let fails_after = if let Fate::CopyInFails(after) = fate {
                    Some(after)
                } else {
                    None
                };
                self.mode = Mode::CopyIn {
                    extended,
                    fails_after,
                };
            }
        }
    }

    fn die(&mut self) {
        self.say("F");
        self.mode = Mode::Dead;
    }

    fn copy_failed(&mut self, extended: bool) {
        self.mode = Mode::Main;
        if extended {
            self.extended_failed();
        } else {
            self.query_failed();
        }
    }

    fn query_failed(&mut self) {
        self.statements.clear();
        self.in_query = false;
        self.say("EZ");
    }

    fn extended_failed(&mut self) {
        self.skipping = true;
        self.say("E");
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Turn {
    Client,
    Server,
    Delivery,
}

/// Sends a message to the server, past [`PendingReplies`].
fn send(pending: &mut PendingReplies, server: &mut Server, message: Message) {
    let _ = match message.owner {
        Owner::Client => pending.client(message.tag),
        Owner::Router => pending.router(message.tag),
    }
    .unwrap();
    server.inbox.push_back(message);
}

/// Delivers the server's next message, and checks whose it is said to be.
fn deliver(pending: &mut PendingReplies, server: &mut Server) -> Result<(), String> {
    let Some((tag, asked_by)) = server.outbox.pop_front() else {
        return Ok(());
    };
    let owner = feed(pending, server_message(tag));
    let expected = if b"NSA".contains(&tag) {
        Owner::Client
    } else {
        asked_by
    };
    ensure!(
        owner == expected || pending.is_lost() || tag == BROKEN_COPY,
        "{} is said to be of {owner:?}, {pending:?}",
        char::from(tag)
    );
    Ok(())
}

/// Plays a client, a router, a server and [`PendingReplies`] between them, in the order given; then
/// everything that is left. Returns whether it was ever uncertain.
pub(super) fn interleaved(messages: Vec<Message>, turns: Vec<Turn>) -> Result<bool, String> {
    let mut server = Server::new();
    let mut pending = PendingReplies::new(TransactionStatus::Idle);
    let mut messages = VecDeque::from(messages);
    let mut uncertain = false;
    let mut turns = turns.into_iter();
    loop {
        match turns.next() {
            Some(Turn::Client) => {
                if let Some(message) = messages.pop_front() {
                    send(&mut pending, &mut server, message);
                }
            }
            Some(Turn::Server) => server.step(),
            Some(Turn::Delivery) => deliver(&mut pending, &mut server)?,
            None if !server.outbox.is_empty() => deliver(&mut pending, &mut server)?,
            None => {
                let before = (
                    server.inbox.len(),
                    server.statements.len(),
                    server.mode,
                    server.in_query,
                );
                server.step();
                if (
                    server.inbox.len(),
                    server.statements.len(),
                    server.mode,
                    server.in_query,
                ) == before
                {
                    let Some(message) = messages.pop_front() else {
                        break;
                    };
                    send(&mut pending, &mut server, message);
                }
            }
        }
        uncertain |= pending.is_uncertain();
        ensure!(!pending.is_out_of_step(), "a server as it should be: {pending:?}");
        if pending.is_idle() {
            ensure!(server.is_idle(), "idle while {server:?}\n{pending:?}");
        }
        if server.is_idle() && !pending.is_uncertain() {
            ensure!(pending.is_idle(), "not idle: {pending:?}");
        }
        if server.mode == Mode::Dead && server.outbox.is_empty() {
            ensure!(pending.is_over());
        }
    }
    // A Query more settles what can be settled.
    if server.is_idle() && !pending.lost {
        let _ = pending.client(b'Q').unwrap();
        ensure!(!pending.is_idle());
        feed(&mut pending, server_message(b'C'));
        feed(&mut pending, server_message(b'Z'));
        ensure!(pending.between_transactions(), "{pending:?}");
    }
    Ok(uncertain)
}

/// Messages and turns from a fuzzer's bytes: two for each message, then `0xff`, then one for each
/// turn.
///
/// # Panics
/// [`PendingReplies`] and the server disagree.
pub(crate) fn play(data: &[u8]) {
    const TAGS: &[u8; 12] = b"QFPBDECSHdcf";
    let mut halves = data.splitn(2, |&byte| byte == 0xff);
    let (script, turns) = (
        halves.next().unwrap_or_default(),
        halves.next().unwrap_or_default(),
    );
    let messages = script.chunks_exact(2).take(64).map(|pair| Message {
        owner: if usize::from(pair[0]) / TAGS.len() % 4 == 3 {
            Owner::Router
        } else {
            Owner::Client
        },
        tag: TAGS[usize::from(pair[0]) % TAGS.len()],
        fates: fates(pair[0], pair[1]),
    });
    let turns = turns.iter().take(512).map(|byte| match byte % 3 {
        0 => Turn::Client,
        1 => Turn::Server,
        _ => Turn::Delivery,
    });
    if let Err(error) = interleaved(messages.collect(), turns.collect()) {
        panic!("{error}");
    }
}

/// None to three of them.
fn fates(first: u8, second: u8) -> Vec<Fate> {
    let fate = |number: u8| match number % 13 {
        0 => Fate::Done,
        1 => Fate::Rows,
        2 => Fate::Empty,
        3 => Fate::Fails,
        4 => Fate::CopyOut,
        5 | 6 => Fate::CopyIn,
        12 => Fate::Fatal,
        after => Fate::CopyInFails(after - 7),
    };
    let count = usize::from(second >> 6);
    [second & 15, (second >> 2) & 15, first >> 4]
        .into_iter()
        .take(count)
        .map(fate)
        .collect()
}
