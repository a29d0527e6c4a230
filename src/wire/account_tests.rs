//! The account against examples, and against a model of a server.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::wire::observe::ServerObserver;

/// One message of a server as bytes, given to the account the way the relay does.
fn feed(account: &mut Account, message: &[u8]) {
    ServerObserver::new()
        .feed(message, |event| account.server(&event))
        .unwrap();
}

/// Drives an account with a script: words with `>` are what the client sends, with `<` what the server says.
fn played(script: &str) -> Account {
    let mut account = Account::new(TransactionStatus::Idle);
    for turn in script.split_whitespace() {
        let (side, tags) = turn.split_at(1);
        for tag in tags.bytes() {
            if side == ">" {
                let _ = account.client(tag).unwrap();
            } else {
                feed(&mut account, server_message(tag));
            }
        }
    }
    account
}

/// `Z`, `Y` and `X` are ready in idle, in a transaction, in a failed one; `F` is a fatal error.
fn server_message(tag: u8) -> &'static [u8] {
    match tag {
        b'Z' => b"Z\0\0\0\x05I",
        b'Y' => b"Z\0\0\0\x05T",
        b'X' => b"Z\0\0\0\x05E",
        b'E' => b"E\0\0\0\x1aSERROR\0VERROR\0C42P01\0\0",
        b'F' => b"E\0\0\0\x1aSFATAL\0VFATAL\0C57P01\0\0",
        b'C' => b"C\0\0\0\x06X\0",
        b'N' => b"N\0\0\0\x05\0",
        b'S' => b"S\0\0\0\x08a\0b\0",
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

fn idle(script: &str) -> bool {
    played(script).is_idle()
}

#[test]
fn a_query_owes_one_ready_whatever_it_has() {
    assert!(idle(""));
    assert!(!idle(">Q") && !idle(">Q <TDDC"));
    assert!(idle(">Q <TDDCTDCZ"));
    assert!(idle(">Q <EZ") && idle(">Q <IZ"));
    assert!(!idle(">QQ <CZ") && idle(">QQ <CZCZ"));
    assert!(idle(">F <VZ") && idle(">F <EZ") && !idle(">F <V"));
}

#[test]
fn before_the_first_ready_nothing_is_idle() {
    let mut account = Account::default();
    assert_eq!(
        (account.is_idle(), account.status()),
        (false, TransactionStatus::Unknown)
    );
    let _ = account.client(b'Q').unwrap();
    feed(&mut account, server_message(b'C'));
    feed(&mut account, server_message(b'Z'));
    assert!(account.between_transactions());
}

#[test]
fn pipelined_syncs_owe_one_ready_each() {
    assert!(!idle(">PBDESPBDES <12TCZ"));
    assert!(idle(">PBDESPBDES <12TCZ12TCZ"));
    assert!(!idle(">SSS <ZZ") && idle(">SSS <ZZZ"));
    assert!(idle(">PDSBDCS <1tnZ2n3Z"));
}

#[test]
fn flush_is_answered_without_ready_and_leaves_the_batch_open() {
    assert!(!idle(">PDH <1tn") && !idle(">PH <1"));
    assert!(idle(">PDHS <1tnZ") && idle(">PDH <1tn >S <Z"));
    assert!(idle(">H"), "a Flush alone opens nothing");
    assert!(idle(">PQ <1CZ"), "a Query commits what the batch has done");
}

#[test]
fn an_error_in_the_extended_protocol_skips_to_the_sync() {
    assert!(idle(">PBESQ <EZCZ"));
    assert!(
        idle(">PBEQFS <EZ"),
        "Query and FunctionCall in between are discarded"
    );
    assert!(!idle(">PBQ <E") && !idle(">PBQ <E >QFP"));
    assert!(idle(">PBQ <E >QFPHdcf >S <Z"));
    assert!(idle(">PQS <1EZZ"), "the Query failed, and nothing is skipped");
    assert!(!idle(">PBDESPBDES <12TEZ") && idle(">PBDESPBDES <12TEZ12TCZ"));
    assert!(idle(">PBES <12CEZ"), "failed at the Sync: deferred constraints");
}

#[test]
fn copy_in_ignores_sync_and_flush() {
    assert!(idle(">Q <G >dSHdc <CZ"));
    assert!(
        idle(">PBES <12G >ddc <C >S <Z"),
        "the Sync behind Execute owes nothing"
    );
    assert!(idle(">PBESS <12G >dddcS <CZ"));
    assert!(!idle(">PBES <12G >c <C"), "the batch is still open");
    assert!(!idle(">PBESddcS <12GC") && idle(">PBESddcS <12GCZ"));
    assert!(played(">Q <G").in_copy() && !played(">Q <GE").in_copy() && !played(">Q >c <GC").in_copy());
    assert!(idle(">Q <G >c <CG >c <CZ"), "two COPY in one Query");
    assert!(idle(">Qcc <GCGCZ"));
}

#[test]
fn a_copy_that_fails_before_it_starts_owes_the_sync() {
    assert!(!idle(">PBESdcS <12EZ") && idle(">PBESdcS <12EZZ"));
    assert!(idle(">Qdc <EZ >dc"));
    assert!(idle(">QScS <EZZZ"));
}

#[test]
fn a_copy_that_fails_owes_what_follows_it() {
    assert!(idle(">Q <G >d <EZ >ddc"));
    assert!(idle(">Q <G >f <EZ") && idle(">Q <G >d <E >dcQ <ZCZ"));
    assert!(idle(">PBE <12G >dd <E >dcQS <Z"));
    assert!(idle(">PBE <12G >ddfS <EZ"));
}

#[test]
fn a_sync_inside_a_copy_that_fails_is_ambiguous_until_an_answer_tells() {
    let account = played(">PBES <12G >ddcS <EZ");
    assert!(account.is_uncertain() && !account.is_idle());
    assert!(
        idle(">PBES <12G >ddcS <EZZ"),
        "the server had not read it into the COPY"
    );
    assert!(
        idle(">PBES <12G >ddcS <EZ >Q <CZ"),
        "an answer to what follows: it had"
    );
    assert!(
        idle(">PBES <12G >ddcS <EZ >QQ <ZCZCZ"),
        "it had not, and was late"
    );
    assert!(idle(">PBES <12G >ddcSQQ <EZCZCZ") && idle(">PBES <12G >ddcSQQ <EZZCZCZ"));
    assert!(idle(">Q <G >dS <EZZ") && idle(">Q <G >dS <EZ >PS <1Z") && idle(">Q <G >dS <EZ >PS <EZ"));
    let hopeless = played(">PBES <12G >ddcQS <EZ");
    assert!(hopeless.is_uncertain() && !hopeless.is_idle());
}

#[test]
fn copy_out_and_both_need_nothing_from_the_client() {
    assert!(played(">Q <H").in_copy());
    assert!(idle(">Q <HddcCZ") && idle(">PBES <12HdcCZ") && idle(">Q <HdEZ"));
    assert!(played(">Q <W").in_copy());
    assert!(idle(">Q <Wd >dddc <dcCZ") && idle(">Q <WdcC >c <Z >Q <TDCCZ"));
}

#[test]
fn what_comes_unasked_changes_nothing_but_a_fatal_error() {
    assert!(idle("<NN") && idle(">Q <NCNZ"));
    let account = played("<F");
    assert!(account.is_over() && !account.is_idle());
    assert!(!idle(">X"));
    assert!(
        !idle("<Z") && !idle("<C") && !idle(">S <C >S <ZZ"),
        "not a PostgreSQL, or our mistake"
    );
}

#[test]
fn the_status_is_that_of_the_last_ready() {
    let account = played(">Q <CY");
    assert_eq!(account.status(), TransactionStatus::InTransaction);
    assert!(account.is_idle() && !account.between_transactions());
    assert_eq!(played(">Q <CY >Q <EX").status(), TransactionStatus::Failed);
    assert!(played(">Q <CY >Q <EX >Q <CZ").between_transactions());
}

#[test]
fn transactions_are_counted_when_the_server_is_idle_after_work() {
    assert_eq!(
        played(">Q <CZ >Q <CY >Q <CZ >S <Z >PBES <12CZ >Q <EZ").transactions(),
        4
    );
}

#[test]
fn an_idle_account_is_small_and_has_no_heap() {
    assert!(size_of::<Account>() <= 112);
    let account = played(">QQPPSQSQPSQQFS <CZCZ11ZCZZCZ1ZCZCZVZZ");
    assert!(account.is_idle());
    assert_eq!(account.waiting.far.capacity(), 0);
}

#[test]
fn the_queue_is_bounded_and_says_so() {
    let mut account = Account::default();
    for _ in 0..1_000_000 {
        assert_eq!(
            account.client(b'S'),
            Ok(Admit::More),
            "many of a kind are a few numbers"
        );
    }
    let mut taken = 0;
    while account.client(b'Q').and_then(|_| account.client(b'S')).is_ok() {
        taken += 2;
        assert!(taken < 2 * MAX_RUNS);
        assert_eq!(account.full(), account.waiting.runs() >= FULL_AT);
    }
    assert!(account.full() && account.waiting.runs() == MAX_RUNS);
}

// --- A model of PostgreSQL's message loop, with random outcomes ---

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Done,
    Rows,
    Empty,
    Fails,
    CopyOut,
    CopyIn,
    /// COPY IN that fails by itself after this many of the messages that follow.
    CopyInFails(u8),
}

#[derive(Debug, Clone)]
struct Message {
    tag: u8,
    fates: Vec<Fate>,
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
    outbox: VecDeque<u8>,
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
            mode: Mode::Main,
            statements: VecDeque::new(),
            in_query: false,
            skipping: false,
            batch_open: false,
        }
    }

    /// Owes nothing, and does nothing until it is asked.
    fn is_idle(&self) -> bool {
        let waits = self.mode == Mode::Main && !self.in_query && !self.skipping && !self.batch_open;
        let ignored = self.inbox.iter().all(|message| b"Hdcf".contains(&message.tag));
        waits && ignored && self.outbox.is_empty()
    }

    fn say(&mut self, tags: &str) {
        self.outbox.extend(tags.bytes());
    }

    /// One message of the client, or one statement of a Query; or the failure that was to come.
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
                        self.say("EF");
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
            b'F' => {
                self.batch_open = false;
                self.say(if fate == Fate::Fails { "EZ" } else { "VZ" });
            }
            tag => {
                self.batch_open = true;
                match (tag, fate) {
                    (_, Fate::Fails) => self.extended_failed(),
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
            Fate::Done | Fate::Empty => self.say("NC"),
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

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        5 => Just(Fate::Done),
        2 => Just(Fate::Rows),
        1 => Just(Fate::Empty),
        2 => Just(Fate::Fails),
        1 => Just(Fate::CopyOut),
        2 => Just(Fate::CopyIn),
        2 => (0_u8..5).prop_map(Fate::CopyInFails),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    let tag = proptest::sample::select(b"QQQFPBDEEECSSSSHddcccf".to_vec());
    (tag, vec(fate(), 0..3)).prop_map(|(tag, fates)| Message { tag, fates })
}

#[derive(Debug, Clone, Copy)]
enum Turn {
    Client,
    Server,
    Delivery,
}

/// A client, a server and an account between them, in the order given; then everything that is left. Returns whether
/// the account was ever uncertain.
fn interleaved(messages: Vec<Message>, turns: Vec<Turn>) -> Result<bool, TestCaseError> {
    let mut server = Server::new();
    let mut account = Account::new(TransactionStatus::Idle);
    let mut messages = VecDeque::from(messages);
    let mut uncertain = false;
    let mut turns = turns.into_iter();
    loop {
        match turns.next() {
            Some(Turn::Client) => {
                if let Some(message) = messages.pop_front() {
                    let _ = account.client(message.tag).unwrap();
                    server.inbox.push_back(message);
                }
            }
            Some(Turn::Server) => server.step(),
            Some(Turn::Delivery) => {
                if let Some(tag) = server.outbox.pop_front() {
                    feed(&mut account, server_message(tag));
                }
            }
            None if !server.outbox.is_empty() => {
                let tag = server.outbox.pop_front().unwrap();
                feed(&mut account, server_message(tag));
            }
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
                    let _ = account.client(message.tag).unwrap();
                    server.inbox.push_back(message);
                }
            }
        }
        uncertain |= account.is_uncertain();
        if account.is_idle() {
            prop_assert!(server.is_idle(), "idle while {server:?}\n{account:?}");
        }
        if server.is_idle() && !account.is_uncertain() {
            prop_assert!(account.is_idle(), "not idle: {account:?}");
        }
        if server.mode == Mode::Dead && server.outbox.is_empty() {
            prop_assert!(account.is_over());
        }
    }
    // A Query more settles what can be settled.
    if server.is_idle() && !account.lost {
        let _ = account.client(b'Q').unwrap();
        prop_assert!(!account.is_idle());
        feed(&mut account, server_message(b'C'));
        feed(&mut account, server_message(b'Z'));
        prop_assert!(account.between_transactions(), "{account:?}");
    }
    Ok(uncertain)
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    vec(
        prop_oneof![Just(Turn::Client), Just(Turn::Server), Just(Turn::Delivery)],
        0..200,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_account_agrees_with_a_server_about_anything_a_client_may_send(
        messages in vec(message(), 0..40), turns in turns(),
    ) {
        interleaved(messages, turns)?;
    }

    #[test]
    fn nothing_is_uncertain_where_no_sync_goes_into_a_copy(
        mut messages in vec(message(), 0..40), turns in turns(), syncs in any::<bool>(),
    ) {
        if syncs {
            let fates = messages.iter_mut().flat_map(|message| &mut message.fates);
            fates.filter(|fate| matches!(fate, Fate::CopyIn | Fate::CopyInFails(_))).for_each(|fate| *fate = Fate::CopyOut);
        } else {
            messages.retain(|message| message.tag != b'S');
        }
        prop_assert!(!interleaved(messages, turns)?);
    }
}
