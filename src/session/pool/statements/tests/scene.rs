//! Sessions in front of connections that they share, and beside each session a connection of its
//! own that is given the same messages.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use bytes::BytesMut;

use super::super::{Answer, ConnectionStatements, Interner, Limits, Rewriter, SessionStatements, Step};
use super::model::{Server, frame};
use crate::wire::observe::ServerObserver;
use crate::wire::pending::{Owner, PendingReplies, TransactionStatus};

/// More than any test reaches.
pub(super) const PLENTY: Limits = Limits {
    statements: 1000,
    bytes: 100_000,
};

pub(super) fn parse(name: &str, text: &str, types: &[u32]) -> Vec<u8> {
    let mut body = format!("{name}\0{text}\0").into_bytes();
    body.extend_from_slice(&u16::try_from(types.len()).unwrap().to_be_bytes());
    body.extend(types.iter().flat_map(|oid| oid.to_be_bytes()));
    frame(b'P', &body)
}

pub(super) fn bind(portal: &str, name: &str) -> Vec<u8> {
    frame(b'B', format!("{portal}\0{name}\0\0\0\0\0\0\0").as_bytes())
}

pub(super) fn describe(name: &str) -> Vec<u8> {
    frame(b'D', format!("S{name}\0").as_bytes())
}

pub(super) fn close(name: &str) -> Vec<u8> {
    frame(b'C', format!("S{name}\0").as_bytes())
}

pub(super) fn execute(portal: &str) -> Vec<u8> {
    frame(b'E', format!("{portal}\0\0\0\0\0").as_bytes())
}

pub(super) fn sync() -> Vec<u8> {
    frame(b'S', b"")
}

/// A message of COPY, or Flush.
pub(super) fn data(tag: u8) -> Vec<u8> {
    frame(tag, b"")
}

pub(super) fn query(text: &str) -> Vec<u8> {
    frame(b'Q', format!("{text}\0").as_bytes())
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) statements: SessionStatements,
    waiting: VecDeque<Vec<u8>>,
    pub(super) lease: Option<usize>,
    /// It never gives its connection back.
    pub(super) is_pinned: bool,
    own: Server,
    pub(super) expected: Vec<u8>,
    pub(super) seen: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) statements: ConnectionStatements,
    pub(super) pending: PendingReplies,
    pub(super) server: Server,
    /// Messages that the server has not read yet.
    pub(super) sent: VecDeque<Vec<u8>>,
    is_free: bool,
}

#[derive(Debug)]
pub(super) struct Scene {
    interner: Interner,
    pub(super) schema: Rc<Cell<u32>>,
    pub(super) path: Option<u64>,
    pub(super) clients: Vec<Client>,
    pub(super) connections: Vec<Connection>,
    /// How often a message had to wait.
    pub(super) waits: usize,
}

impl Scene {
    pub(super) fn new(clients: usize, connections: usize, limits: Limits) -> Self {
        let interner = Interner::new();
        let schema = Rc::default();
        let client = |_| Client {
            statements: SessionStatements::new(&interner, PLENTY),
            waiting: VecDeque::new(),
            lease: None,
            is_pinned: false,
            own: Server::new(&schema),
            expected: Vec::new(),
            seen: Vec::new(),
        };
        let connection = |_| Connection {
            statements: ConnectionStatements::new(limits),
            pending: PendingReplies::new(TransactionStatus::Idle),
            server: Server::new(&schema),
            sent: VecDeque::new(),
            is_free: true,
        };
        Self {
            clients: (0..clients).map(client).collect(),
            connections: (0..connections).map(connection).collect(),
            schema,
            path: Some(1),
            interner,
            waits: 0,
        }
    }

    /// The client sends a message, which may not be read yet.
    pub(super) fn send(&mut self, client: usize, message: Vec<u8>) {
        self.clients[client].waiting.push_back(message);
    }

    /// Forwards what can be; `choice` says which connection is taken where one is needed. Returns
    /// whether anything was forwarded.
    pub(super) fn forward(&mut self, client: usize, choice: usize) -> bool {
        let mut is_any = false;
        while !self.clients[client].waiting.is_empty() {
            let free = (0..self.connections.len())
                .map(|i| (i + choice) % self.connections.len())
                .find(|&i| self.connections[i].is_free);
            let Some(lease) = self.clients[client].lease.or(free) else {
                break;
            };
            self.clients[client].lease = Some(lease);
            self.connections[lease].is_free = false;
            if !self.forward_one(client, lease) {
                break;
            }
            is_any = true;
        }
        is_any
    }

    fn forward_one(&mut self, client: usize, lease: usize) -> bool {
        let client = &mut self.clients[client];
        let connection = &mut self.connections[lease];
        let mut rewriter = Rewriter::new(
            &self.interner,
            &mut client.statements,
            &mut connection.statements,
            self.path,
        );
        if rewriter.is_waiting() {
            return false;
        }
        let message = client.waiting.front().unwrap();
        let mut out = BytesMut::new();
        let step = rewriter
            .client(message[0], message, &mut out, &mut connection.pending)
            .unwrap();
        let is_forwarded = match step {
            Step::Forward { replaced } => {
                out.extend_from_slice(&message[replaced..]);
                true
            }
            Step::Wait => false,
        };
        let mut rest = &out[..];
        while !rest.is_empty() {
            let length = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
            connection.sent.push_back(rest[..=length].to_vec());
            rest = &rest[length + 1..];
        }
        if is_forwarded {
            let message = client.waiting.pop_front().unwrap();
            client.expected.extend(client.own.process(&message));
        } else {
            self.waits += 1;
        }
        is_forwarded
    }

    /// The server of a connection reads up to so many messages. Returns whether there were any.
    pub(super) fn serve(&mut self, lease: usize, messages: usize) -> bool {
        let mut is_any = false;
        for _ in 0..messages {
            let connection = &mut self.connections[lease];
            let Some(message) = connection.sent.pop_front() else {
                break;
            };
            is_any = true;
            let answers = connection.server.process(&message);
            let client = self
                .clients
                .iter()
                .position(|client| client.lease == Some(lease))
                .unwrap();
            self.deliver(client, lease, &answers);
        }
        is_any
    }

    fn deliver(&mut self, client: usize, lease: usize, answers: &[u8]) {
        let mut rest = answers;
        let client = &mut self.clients[client];
        let connection = &mut self.connections[lease];
        while !rest.is_empty() {
            let length = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
            let frame;
            (frame, rest) = rest.split_at(length + 1);
            let mut owner = connection.pending.answering();
            ServerObserver::new()
                .feed(frame, |event| owner = connection.pending.server(&event))
                .unwrap();
            assert!(!connection.pending.is_lost());
            let mut rewriter = Rewriter::new(
                &self.interner,
                &mut client.statements,
                &mut connection.statements,
                self.path,
            );
            match rewriter.answered(owner, frame[0], &frame[5..]) {
                Answer::Forward => client.seen.extend_from_slice(frame),
                Answer::Swallow => assert_eq!(owner, Owner::Router),
                Answer::Instead(other) => client.seen.extend_from_slice(&other),
            }
        }
        if connection.pending.between_transactions() && connection.sent.is_empty() && !client.is_pinned {
            assert!(connection.statements.ledger.is_empty());
            client.lease = None;
            connection.is_free = true;
        }
    }

    /// Goes on until nothing moves any more.
    pub(super) fn settle(&mut self) {
        loop {
            let mut moved = false;
            for client in 0..self.clients.len() {
                moved |= self.forward(client, client);
            }
            for connection in 0..self.connections.len() {
                moved |= self.serve(connection, usize::MAX);
            }
            if !moved {
                break;
            }
        }
    }

    /// Each client has seen what a connection of its own would have said.
    pub(super) fn check(&self) -> Result<(), String> {
        for (i, client) in self.clients.iter().enumerate() {
            if client.seen != client.expected {
                return Err(format!(
                    "client {i} sees\n{}\nbut expects\n{}",
                    readable(&client.seen),
                    readable(&client.expected)
                ));
            }
            let is_waiting = client
                .lease
                .is_some_and(|lease| self.connections[lease].statements.waiting);
            if is_waiting || client.lease.is_some() && !client.waiting.is_empty() {
                return Err(format!("client {i} waits for ever"));
            }
        }
        Ok(())
    }

    /// One client does this and that, each to its end; then everything must be as it should.
    pub(super) fn play(&mut self, client: usize, choice: usize, messages: &[Vec<u8>]) {
        for message in messages {
            self.send(client, message.clone());
        }
        self.forward(client, choice);
        self.settle();
        self.check().unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Frames one a line.
pub(super) fn readable(mut bytes: &[u8]) -> String {
    let mut lines = Vec::new();
    while !bytes.is_empty() {
        let length = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
        lines.push(format!(
            "  {} {}",
            char::from(bytes[0]),
            bytes[5..=length].escape_ascii()
        ));
        bytes = &bytes[length + 1..];
    }
    lines.join("\n")
}
