//! What clients and servers say to each other, message by message, and what is known after each.

use super::frame;
use crate::session::end::Fate;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

/// What a session that ends here leaves, and how its client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// Between two transactions.
    Idle,
    /// Everything is answered. A transaction or a batch is open, and is rolled back.
    Open,
    /// The server owes answers. An error now has this status behind it.
    Owed(char),
    /// The server owes answers, and nothing would follow an error, as no Sync was sent.
    NoSync,
    /// Everything is answered. Something was executed, and no Sync was sent.
    Unsynced,
}

impl Known {
    pub(super) fn fate(self) -> Fate {
        match self {
            Self::Idle => Fate::Settled,
            Self::Open => Fate::RolledBack,
            Self::Owed(_) | Self::NoSync => Fate::Unknown,
            Self::Unsynced => Fate::Unsynced,
        }
    }

    /// The last words to the client; `settled` is the SQLSTATE where nothing is unknown.
    pub(super) fn last_words(self, settled: &str) -> String {
        match self {
            Self::Idle | Self::Open => format!("FATAL {settled}"),
            Self::Owed(status) => format!("ERROR 08007 Z{status}"),
            Self::NoSync | Self::Unsynced => "FATAL 08007".to_owned(),
        }
    }
}

/// One message.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) side: Side,
    pub(super) bytes: Vec<u8>,
    /// Once it has arrived whole.
    pub(super) after: Known,
}

#[derive(Debug)]
pub(super) struct Conversation {
    pub(super) name: &'static str,
    pub(super) steps: Vec<Step>,
}

impl Conversation {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            steps: Vec::new(),
        }
    }

    fn client(mut self, tag: u8, body: &[u8], after: Known) -> Self {
        self.steps.push(Step {
            side: Side::Client,
            bytes: frame(tag, body),
            after,
        });
        self
    }

    fn server(mut self, tag: u8, body: &[u8], after: Known) -> Self {
        self.steps.push(Step {
            side: Side::Server,
            bytes: frame(tag, body),
            after,
        });
        self
    }

    /// Every position: before each byte of each message, and the end. A position is a message and
    /// how much of it was sent.
    pub(super) fn positions(&self) -> impl Iterator<Item = (usize, usize)> {
        let within = self.steps.iter().enumerate();
        within
            .flat_map(|(step, Step { bytes, .. })| (0..bytes.len()).map(move |sent| (step, sent)))
            .chain([(self.steps.len(), 0)])
    }

    /// What is known at a position. A message that is not whole changes nothing, but that a batch
    /// counts as open once the type and the length of its first message are there.
    pub(super) fn known_at(&self, (step, sent): (usize, usize)) -> Known {
        let before = step
            .checked_sub(1)
            .map_or(Known::Idle, |before| self.steps[before].after);
        let is_batch = |step: &Step| step.side == Side::Client && step.after == Known::NoSync;
        match self.steps.get(step) {
            Some(step) if sent >= 5 && before == Known::Idle && is_batch(step) => Known::Open,
            _ => before,
        }
    }

    /// The bytes of one side up to a position.
    pub(super) fn said(&self, side: Side, (step, sent): (usize, usize)) -> Vec<u8> {
        let whole = self.steps[..step].iter().map(|step| (step.side, &step.bytes[..]));
        let part = self.steps.get(step).map(|step| (step.side, &step.bytes[..sent]));
        let own = whole.chain(part).filter(|(said_by, _)| *said_by == side);
        own.flat_map(|(_, bytes)| bytes).copied().collect()
    }
}

const ERROR: &[u8] = b"SERROR\0VERROR\0C23505\0Mduplicate\0\0";
const NOTICE: &[u8] = b"SNOTICE\0VNOTICE\0C00000\0M-\0\0";

/// They begin and end between two transactions.
pub(super) fn conversations() -> Vec<Conversation> {
    use Known::{Idle, NoSync, Open, Owed, Unsynced};
    let owed = Owed('I');
    let in_block = Owed('E');
    vec![
        Conversation::new("simple queries, a transaction among them")
            .server(b'N', NOTICE, Idle)
            .client(b'Q', b"INSERT\0", owed)
            .server(b'C', b"INSERT 0 1\0", owed)
            .server(b'Z', b"I", Idle)
            .server(b'S', b"TimeZone\0UTC\0", Idle)
            .client(b'Q', b"BEGIN\0", owed)
            .server(b'C', b"BEGIN\0", owed)
            .server(b'Z', b"T", Open)
            .client(b'Q', b"SELECT\0", in_block)
            .server(b'T', &[0, 0], in_block)
            .server(b'D', &[0, 0], in_block)
            .server(b'C', b"SELECT 1\0", in_block)
            .server(b'Z', b"T", Open)
            .client(b'Q', b"bad\0", in_block)
            .server(b'E', ERROR, in_block)
            .server(b'Z', b"E", Open)
            .client(b'Q', b"ROLLBACK\0", in_block)
            .server(b'C', b"ROLLBACK\0", in_block)
            .server(b'Z', b"I", Idle),
        Conversation::new("the extended protocol")
            .client(b'P', b"\0S\0\0\0", NoSync)
            .client(b'B', &[0; 8], NoSync)
            .client(b'D', b"P\0", NoSync)
            .client(b'E', &[0; 5], NoSync)
            .client(b'S', b"", owed)
            .server(b'1', b"", owed)
            .server(b'2', b"", owed)
            .server(b'T', &[0, 0], owed)
            .server(b'D', &[0, 0], owed)
            .server(b'C', b"SELECT 1\0", owed)
            .server(b'Z', b"I", Idle)
            // An answer at a Flush, and the Sync later.
            .client(b'P', b"\0S\0\0\0", NoSync)
            .client(b'B', &[0; 8], NoSync)
            .client(b'H', b"", NoSync)
            .server(b'1', b"", NoSync)
            .server(b'2', b"", Open)
            .client(b'E', &[0; 5], NoSync)
            .client(b'H', b"", NoSync)
            .server(b'C', b"INSERT 0 1\0", Unsynced)
            .client(b'S', b"", owed)
            .server(b'Z', b"I", Idle),
        Conversation::new("a pipeline, of which the first part fails")
            .client(b'P', b"\0S\0\0\0", NoSync)
            .client(b'E', &[0; 5], NoSync)
            .client(b'S', b"", owed)
            .client(b'E', &[0; 5], owed)
            .client(b'S', b"", owed)
            .server(b'1', b"", owed)
            .server(b'E', ERROR, owed)
            .server(b'Z', b"I", owed)
            .server(b'C', b"INSERT 0 1\0", owed)
            .client(b'Q', b"SELECT\0", owed)
            .server(b'Z', b"I", owed)
            .server(b'I', b"", owed)
            .server(b'Z', b"I", Idle),
        Conversation::new("COPY, in and out, and a function call")
            .client(b'Q', b"COPY\0", owed)
            .server(b'G', &[0; 3], owed)
            .client(b'd', b"1\n", owed)
            .client(b'c', b"", owed)
            .server(b'C', b"COPY 1\0", owed)
            .server(b'Z', b"I", Idle)
            .client(b'Q', b"COPY\0", owed)
            .server(b'H', &[0; 3], owed)
            .server(b'd', b"1\n", owed)
            .server(b'A', &[0; 6], owed)
            .server(b'c', b"", owed)
            .server(b'C', b"COPY 1\0", owed)
            .server(b'Z', b"I", Idle)
            .client(b'F', &[0; 10], owed)
            .server(b'V', &[0; 4], owed)
            .server(b'Z', b"I", Idle),
    ]
}
