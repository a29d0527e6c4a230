use super::super::state::Command;
use super::*;
use crate::wire::observe::ServerObserver;
use TransactionStatus::{Failed, Idle, InTransaction};

/// Messages of a server, by a letter each: `Z`, `T` and `X` are `ReadyForQuery`, `t` is a
/// `RowDescription`.
fn server_message(letter: char) -> &'static [u8] {
    match letter {
        'Z' => b"Z\0\0\0\x05I",
        'T' => b"Z\0\0\0\x05T",
        'X' => b"Z\0\0\0\x05E",
        'E' => b"E\0\0\0\x1aSERROR\0VERROR\0C42P01\0\0",
        'C' => b"C\0\0\0\x06X\0",
        'G' => b"G\0\0\0\x07\0\0\0",
        'H' => b"H\0\0\0\x07\0\0\0",
        'W' => b"W\0\0\0\x07\0\0\0",
        '1' => b"1\0\0\0\x04",
        '2' => b"2\0\0\0\x04",
        't' => b"T\0\0\0\x06\0\0",
        other => panic!("{other}"),
    }
}

/// Requests and answers up to the loss. `q:TEXT` is a Query; `p:TEXT`, `b` and `e` are Parse, Bind
/// and Execute of the unnamed statement; `d` is a Describe of the portal; other single letters are
/// messages of the client. What the server says begins with `<`.
fn lost(status: TransactionStatus, steps: &str) -> String {
    let (mut pending, mut way) = (PendingReplies::new(status), UnderWay::default());
    for step in steps.split(' ').filter(|step| !step.is_empty()) {
        if let Some(said) = step.strip_prefix('<') {
            for letter in said.chars() {
                let fed = ServerObserver::new().feed(server_message(letter), |event| {
                    let _ = pending.server(&event);
                });
                fed.expect("it is a message");
            }
            continue;
        }
        let (kind, text) = step.split_once(':').unwrap_or((step, ""));
        let command = Command::of(text.replace('_', " ").as_bytes());
        if pending.is_idle() {
            way.rest(pending.status());
        }
        let tag = match kind {
            "q" => b'Q',
            "p" => b'P',
            "b" => b'B',
            "e" => b'E',
            "d" => b'D',
            other => other.as_bytes()[0],
        };
        let _ = pending.client(tag).expect("there is room");
        match tag {
            b'Q' => way.query(command),
            b'P' => way.parse_unnamed(command),
            b'B' => way.bind(true, way.unnamed().unwrap_or_default()),
            b'E' => way.execute(true),
            b'S' => way.sync(),
            b'F' => way.function_call(),
            b'D' if kind == "d" => way.describe_portal(),
            b'D' => way.others(),
            _ => {}
        }
    }
    shown(&decide(&pending, &way))
}

/// Errors: `?` unknown, `r` rolled back, `n` not executed, `a` aborted. `1`, `2` and `d` are the
/// answers to Parse, Bind and Describe, `R` the tag ROLLBACK, `I` and `X` `ReadyForQuery`, `~` up
/// to a Sync what follows is dropped, `!` in a failed transaction.
fn shown(plan: &Plan) -> String {
    let Answers {
        replies,
        discards,
        block,
        ..
    } = match plan {
        Plan::Nothing => return "nothing".to_owned(),
        Plan::Block(Block::Lost) => return "block".to_owned(),
        Plan::Block(Block::Batch(Why::Unknown)) => return "unknown batch".to_owned(),
        Plan::Block(Block::Batch(_)) => return "batch".to_owned(),
        Plan::Block(_) => return "failed block".to_owned(),
        Plan::Begin => return "begin".to_owned(),
        Plan::End => return "end".to_owned(),
        Plan::Answer(answers) => answers,
    };
    let mut text: String = replies
        .iter()
        .map(|reply| match reply {
            Reply::Error(Why::Unknown) => '?',
            Reply::Error(Why::RolledBack) => 'r',
            Reply::Error(Why::NotExecuted) => 'n',
            Reply::Error(Why::Aborted) => 'a',
            Reply::RolledBack => 'R',
            Reply::Parsed => '1',
            Reply::Bound => '2',
            Reply::NoRows => 'd',
            Reply::Ready(b'I') => 'I',
            Reply::Ready(_) => 'X',
        })
        .collect();
    text.push_str(if *discards { "~" } else { "" });
    text.push_str(if *block == Block::Failed { "!" } else { "" });
    text
}

fn check(cases: &[(TransactionStatus, &str, &str)]) {
    for (status, steps, expected) in cases {
        assert_eq!(lost(*status, steps), *expected, "{status:?}: {steps}");
    }
}

#[test]
fn with_nothing_under_way_there_is_nothing_to_answer() {
    check(&[
        (Idle, "", "nothing"),
        (Idle, "q:INSERT <CZ", "nothing"),
        (Idle, "p:INSERT D S <1tZ", "nothing"),
        // What a batch has parsed is not lost.
        (Idle, "p:INSERT D H <1t", "nothing"),
        (Idle, "q:BEGIN <CT", "block"),
        (InTransaction, "", "block"),
        (InTransaction, "p:INSERT H <1", "block"),
        (InTransaction, "q:INSERT <EX", "failed block"),
        (Failed, "", "failed block"),
    ]);
}

#[test]
fn what_may_be_committed_is_unknown_and_every_request_has_one_answer() {
    check(&[
        (Idle, "q:INSERT", "?I"),
        (Idle, "q:SELECT <t", "?I"),
        (Idle, "q:INSERT <C", "?I"),
        (Idle, "q:INSERT q:INSERT q:INSERT <CZ", "?I?I"),
        (Idle, "F", "?I"),
        (Idle, "q:COPY <G", "?I"),
        (Idle, "q:COPY <H", "?I"),
        (Idle, "q:BEGIN;INSERT", "?I"),
        (Idle, "p:INSERT b e S", "?I"),
        (Idle, "p:INSERT b e S <1", "?I"),
        (Idle, "p:INSERT b e S <12", "?I"),
        // The Sync commits.
        (Idle, "p:INSERT b e S <12C", "?I"),
        (Idle, "p:INSERT b e S p:INSERT b e S <12C", "?I?I"),
        (Idle, "p:INSERT b e", "?~"),
        (Idle, "p:INSERT b e H <12C", "unknown batch"),
        (Idle, "p:COPY b e <12G", "?~"),
        (Idle, "p:COPY b e <12G c S", "?I"),
        (Idle, "p:COPY b e S <12G", "?~"),
        // The server skips a Query behind an error up to the Sync.
        (Idle, "p:INSERT D q:INSERT S q:INSERT", "?I?I"),
        (Idle, "p:SELECT S q:INSERT <1", "I?I"),
        (InTransaction, "q:COMMIT", "?I"),
        (InTransaction, "q:INSERT q:COMMIT", "?I?I"),
        (InTransaction, "q:INSERT q:COMMIT <CT", "?I"),
        (InTransaction, "q:COMMIT <C", "?I"),
        (InTransaction, "p:COMMIT b e S <12", "?I"),
        (InTransaction, "q:PREPARE_TRANSACTION_'x'", "?I"),
        (InTransaction, "q:INSERT;SELECT", "?I"),
    ]);
}

#[test]
fn a_failure_that_the_client_has_is_told_once() {
    check(&[
        (Idle, "q:INSERT <E", "I"),
        (Idle, "q:INSERT q:INSERT <E", "I?I"),
        (Idle, "p:INSERT b e S <1E", "I"),
        (Idle, "p:INSERT b e S <12CE", "I"),
        (Idle, "p:INSERT b e <1E", "~"),
        (InTransaction, "q:INSERT <E", "X!"),
        (InTransaction, "q:INSERT q:SELECT <E", "XaX!"),
        (InTransaction, "p:INSERT b e <1E", "~!"),
        (InTransaction, "q:COMMIT <E", "?I"),
    ]);
}

#[test]
fn a_block_is_rolled_back_and_told_once() {
    check(&[
        (InTransaction, "q:INSERT", "rX!"),
        (InTransaction, "q:SELECT <t", "rX!"),
        (InTransaction, "q:INSERT q:INSERT F", "rXaXaX!"),
        (InTransaction, "q:CALL", "rX!"),
        (InTransaction, "q:COPY <G", "rX!"),
        (InTransaction, "p:INSERT b e S p:INSERT b e S", "rXaX!"),
        (InTransaction, "p:INSERT b e S <12C", "rX!"),
        (InTransaction, "p:INSERT b e", "r~!"),
        (InTransaction, "p:COPY b e <12G", "r~!"),
        (InTransaction, "p:INSERT b e H <12C", "block"),
        (Idle, "p:BEGIN b e H <12C", "block"),
        (InTransaction, "S", "rX!"),
        (InTransaction, "q:ROLLBACK_TO_a", "rX!"),
        (Idle, "q:BEGIN q:INSERT", "rXaX!"),
        (Idle, "q:BEGIN q:INSERT <CT", "rX!"),
        (Idle, "q:BEGIN <C", "rX!"),
        (Idle, "p:BEGIN b e p:INSERT b e S", "rX!"),
        (Idle, "p:BEGIN b e S", "rX!"),
        (Failed, "q:INSERT", "aX!"),
        (Failed, "q:ROLLBACK_TO_a q:INSERT", "rXaX!"),
    ]);
}

#[test]
fn a_rollback_is_done_in_any_case() {
    check(&[
        (InTransaction, "q:ROLLBACK", "RI"),
        (InTransaction, "q:ROLLBACK <C", "I"),
        (InTransaction, "q:INSERT q:ABORT", "rXRI"),
        (InTransaction, "q:INSERT q:ABORT <E", "XRI"),
        (InTransaction, "p:INSERT b e q:ROLLBACK", "r~!"),
        (Failed, "q:ROLLBACK", "RI"),
        (Failed, "q:COMMIT", "RI"),
        (InTransaction, "q:ROLLBACK q:INSERT", "?I?I"),
        (InTransaction, "q:ROLLBACK q:BEGIN", "rXaX!"),
    ]);
}

#[test]
fn a_batch_that_is_a_rollback_is_answered_as_by_a_server() {
    check(&[
        (InTransaction, "p:ROLLBACK b e S", "12RI"),
        (InTransaction, "p:ROLLBACK b d e S", "12dRI"),
        (InTransaction, "p:ROLLBACK b d e S <12", "dRI"),
        (InTransaction, "p:ROLLBACK b e S <12C", "I"),
        (InTransaction, "q:INSERT p:ABORT b e S", "rX12RI"),
        (InTransaction, "p:INSERT b e S p:ROLLBACK b e S", "rX12RI"),
        (InTransaction, "p:INSERT b e S <E p:ROLLBACK b e S", "X12RI"),
        (InTransaction, "F p:ROLLBACK b e S", "rXaX!"),
        (Failed, "p:ROLLBACK b e S", "12RI"),
        (Failed, "p:COMMIT b e S", "12RI"),
        (Idle, "q:BEGIN p:ROLLBACK b e S", "rX12RI"),
        // It is not alone, or not whole, or something follows.
        (InTransaction, "p:COMMIT b e S", "?I"),
        (InTransaction, "p:INSERT b e p:ROLLBACK b e S", "rX!"),
        (InTransaction, "p:ROLLBACK b e", "r~!"),
        (InTransaction, "p:ROLLBACK D b e S", "rX!"),
        (InTransaction, "p:ROLLBACK b S", "rX!"),
        (InTransaction, "p:ROLLBACK b e S <E", "X!"),
        (InTransaction, "p:ROLLBACK b e S S", "rXX!"),
        (InTransaction, "p:ROLLBACK b e S q:INSERT", "?I?I"),
        (InTransaction, "p:ROLLBACK b e S p:BEGIN b e S", "rXaX!"),
        (Idle, "p:ROLLBACK b e S", "?I"),
    ]);
}

#[test]
fn nothing_but_a_lone_begin_goes_out_again() {
    check(&[
        (Idle, "q:BEGIN", "begin"),
        (Idle, "q:START_TRANSACTION_READ_ONLY", "begin"),
        (Idle, "S <Z q:BEGIN", "begin"),
        (Idle, "S q:BEGIN", "rXaX!"),
        (Idle, "q:SELECT q:BEGIN <CZ", "?I"),
        (InTransaction, "q:BEGIN", "rX!"),
    ]);
}

#[test]
fn what_was_not_executed_can_be_repeated() {
    check(&[
        (Idle, "p:INSERT D S", "nI"),
        (Idle, "p:INSERT b S", "nI"),
        (Idle, "p:INSERT b", "n~"),
        (Idle, "p:INSERT b H <12", "batch"),
        (Idle, "p:INSERT b e H <12", "?~"),
        (Idle, "p:INSERT D S <1t", "I"),
        (Idle, "S", "I"),
    ]);
}

#[test]
fn what_is_ambiguous_or_too_much_ends_the_session() {
    check(&[
        // A Sync that the COPY may have taken or not.
        (Idle, "p:COPY b e <12G S S <E", "end"),
        (Idle, "q:COPY <W", "end"),
    ]);
    let many = "q:SELECT ".repeat(MOST_ANSWERED);
    assert_eq!(lost(Idle, &many), "?I".repeat(MOST_ANSWERED));
    assert_eq!(lost(Idle, &format!("{many} S")), "end");
}

#[test]
fn only_errors_about_the_connection_leave_the_session() {
    for (code, is_about) in [
        ("57P01", true),
        ("57P02", true),
        ("57P03", true),
        ("08006", true),
        ("08P01", true),
        ("57P04", false),
        ("57P05", false),
        ("25P03", false),
        ("25P04", false),
        ("28000", false),
        ("XX000", false),
    ] {
        assert_eq!(
            is_about_connection(SqlState::of(code.as_bytes())),
            is_about,
            "{code}"
        );
    }
}
