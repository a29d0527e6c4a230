//! Pending replies against examples, and against a model of a server.
#![allow(clippy::unwrap_used)]

use proptest::collection::vec;
use proptest::prelude::*;

use super::model::{Fate, Message, Turn, feed, interleaved, server_message};
use super::*;

/// Follows a script: words with `>` are what the client sends, with `!` what the router sends
/// itself, with `<` what the server says. Returns whose each message of the server is said to be:
/// `c` or `r`.
fn follow(script: &str) -> (PendingReplies, String) {
    let mut pending = PendingReplies::new(TransactionStatus::Idle);
    let mut owners = String::new();
    for turn in script.split_whitespace() {
        let (side, tags) = turn.split_at(1);
        for tag in tags.bytes() {
            match side {
                ">" => drop(pending.client(tag).unwrap()),
                "!" => drop(pending.router(tag).unwrap()),
                _ => owners.push(match feed(&mut pending, server_message(tag)) {
                    Owner::Client => 'c',
                    Owner::Router => 'r',
                }),
            }
        }
    }
    (pending, owners)
}

fn played(script: &str) -> PendingReplies {
    follow(script).0
}

fn owners(script: &str) -> String {
    follow(script).1
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
    let mut pending = PendingReplies::default();
    assert_eq!(
        (pending.is_idle(), pending.status()),
        (false, TransactionStatus::Unknown)
    );
    let _ = pending.client(b'Q').unwrap();
    feed(&mut pending, server_message(b'C'));
    feed(&mut pending, server_message(b'Z'));
    assert!(pending.between_transactions());
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

/// Those that the server has read as a part of the COPY do not count.
#[test]
fn behind_a_copy_of_a_batch_the_server_waits_for_a_sync() {
    let waits = [
        ">PBE <12G",
        ">PBE <12G >dc",
        ">PBEH <12G >c",
        ">PBES <12G >c",
        ">PBES <12G >dSc",
        ">PBES <12G >f <E",
        ">PBE <12G >c <C",
    ];
    for script in waits {
        assert!(played(script).waits_for_client(), "{script}");
    }
    let goes_on = [
        ">PBE <12G >cS",
        ">PBES <12G >cS",
        ">PBES <12G >fS <E",
        ">PBE <12G >cS <CZ",
        ">Q <G >c",
        ">Q <H",
    ];
    for script in goes_on {
        assert!(!played(script).waits_for_client(), "{script}");
    }
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
    let pending = played(">PBES <12G >ddcS <EZ");
    assert!(pending.is_uncertain() && !pending.is_idle());
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
    let pending = played("<F");
    assert!(pending.is_over() && !pending.is_idle());
    assert!(!idle(">X"));
    assert!(
        !idle("<Z") && !idle("<C") && !idle(">S <C >S <ZZ"),
        "this server is no PostgreSQL, or the router is wrong"
    );
}

#[test]
fn the_status_is_that_of_the_last_ready() {
    let pending = played(">Q <CY");
    assert_eq!(pending.status(), TransactionStatus::InTransaction);
    assert!(pending.is_idle() && !pending.between_transactions());
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

/// The answers to Parse, Bind, Describe and Close prove nothing and leave nothing; an Execute may
/// have committed until a `Z` says what became of it.
#[test]
fn what_is_executed_is_settled_at_the_next_ready() {
    for script in [
        ">PBDCH <12n3",
        ">PH <E",
        ">PBH <1E",
        ">PBES <12CZ",
        ">PBES <12EZ",
        ">PBES <12EZ >PH <E",
        ">PBES <12CZ >PBH <12",
        ">PBESPBES <12CZ12CZ",
        ">PBE >Q <12CCZ",
        ">Q <CY >PBH <12",
        ">Q <C",
        ">Q <W >d <d",
    ] {
        assert!(!played(script).has_executed(), "{script}");
    }
    for script in [
        ">PBEH <12C",
        ">PBEH <12I",
        ">PBEH <12DDs",
        ">PBEH <12E",
        ">PBEPH <12C1",
        ">PBEPH <12CE",
        ">PBEPBEPBEH <12C12C12C",
        ">Q <CY >PBEH <12C",
        ">PBESPBEH <12CZ12C",
        ">PBE <12G >ddc <C",
        ">PBEH <12C >S",
    ] {
        assert!(played(script).has_executed(), "{script}");
    }
}

#[test]
fn each_reply_has_the_owner_of_its_request() {
    for (script, expected) in [
        ("!Q >Q <TDDCZTDCZ", "rrrrrcccc"),
        (">Q !Q >Q <TDCTDCZCZEZ", "cccccccrrcc"),
        // The router's Parse in front of a client's Bind.
        (">P !P >BDES <11nTDCZ", "crccccc"),
        ("!PBES >PBES <12TDCZ12TDCZ", "rrrrrrcccccc"),
        ("!PBDE >E !S <12tTDDsDDCZ", "rrrrrrrcccr"),
        ("!F >F <VZVZ", "rrcc"),
        // What the router sends may be discarded too; a Sync may be the router's.
        ("!P >BES <EZ", "rc"),
        (">PE !Q >S !Q <EZCZ", "ccrr"),
        (">PE <E !Q !S <Z", "cr"),
        (">Q <G >d !f <EZ", "ccc"),
        (">Q <G >dc !Q <CZTDCZ", "cccrrrr"),
        ("!Q >Q <HddcCZHdcCZ", "rrrrrrccccc"),
        (">X <", ""),
    ] {
        assert_eq!(owners(script), expected, "{script}");
    }
}

#[test]
fn what_comes_unasked_is_the_client_s() {
    assert_eq!(owners("!Q <NSATNDSCZ >Q <NSACZ"), "cccrcrcrrccccc");
    assert_eq!(owners("<NSA"), "ccc");
    assert_eq!(
        (owners("<F"), owners(">Q <F"), owners("!Q <F")),
        ("c".into(), "c".into(), "r".into())
    );
    assert_eq!(owners("!Q >Q <CZTF"), "rrcc");
}

#[test]
fn a_server_that_answers_what_nobody_asked_is_out_of_step() {
    for script in [
        "<E",
        "<Z",
        "<C",
        "<T",
        "<G",
        ">Q <CZ <E",
        ">Q <CZZ",
        ">PBE <12C <E",
        ">P <Z",
        ">S <C",
    ] {
        let pending = played(script);
        assert!(pending.is_out_of_step() && pending.is_lost(), "{script}");
    }
    for script in [
        "<NSA",
        "<F",
        ">Q <EZ",
        ">PBES <12G >ddcS <EZ",
        ">PBE !S >S <12G >d <EZZZE",
    ] {
        assert!(!played(script).is_out_of_step(), "{script}");
    }
    for (script, owes_nothing) in [
        ("", true),
        (">Q <CY", true),
        (">PBEH <12C", true),
        (">Q", false),
        (">PBE <12C >S", false),
        (">PBES <12G >ddcS <EZ", false),
        ("<F", false),
    ] {
        assert_eq!(played(script).owes_nothing(), owes_nothing, "{script}");
    }
}

#[test]
fn a_sync_in_a_copy_has_an_owner_or_nobody_knows_any_more() {
    // A COPY that succeeds ignores it, whose ever it is.
    assert!(!played(">PBE !S >S <12G >dc <C").is_lost());
    assert_eq!(owners(">PBE !S >S <12G >dc <C !S <Z"), "ccccr");
    // It fails: all that may still come is the client's, then the router asks.
    assert_eq!(owners(">Q <G >dS <EZ !Q <ZTDCZ"), "ccccrrrr");
    assert_eq!(owners(">PBES <12G >ddcS !Q <EZZTDCZ"), "ccccccrrrr");
    assert!(!played(">PBES <12G >ddcS !Q <EZZTDCZ").is_lost());
    assert!(
        played(">PBES <12G >ddcS !S <EZZ").is_lost(),
        "the second is of either"
    );
    assert!(
        played(">PBE !S >S <12G >d <E").is_lost(),
        "nothing says which of them is answered"
    );
}

/// The router's own requests are none of the client's transactions, nor does the client's fate
/// depend on them.
#[test]
fn the_router_s_requests_are_not_counted_as_the_client_s() {
    assert_eq!(
        played(">Q <CZ !Q <CZ !PBES <12CZ !F <VZ !Q <EZ").transactions(),
        1
    );
    assert_eq!(played(">Q <CY !Q <CZ").transactions(), 1, "the router rolls back");
    assert!(!played("!PBEH <12C").has_executed() && !played("!PBEH <12E").has_executed());
    assert!(played(">PBEH <12C !P <1").has_executed());
    assert_eq!(played("!QQ >Q").outstanding(), Some(1));
    assert_eq!(played("!Q").outstanding(), Some(0));
    let ready = |script: &str| played(script).ready_after_error();
    assert_eq!(
        (ready("!Q"), ready("!Q >Q"), ready("!P >B"), ready("!P >BS")),
        (None, Some(b'I'), None, Some(b'I'))
    );
    assert!(!played("!Q").is_idle() && !played("!P").is_idle());
}

#[test]
fn idle_pending_replies_are_small_and_have_no_heap() {
    assert!(size_of::<PendingReplies>() <= 112);
    let pending = played(">QQPPSQSQPSQQFS <CZCZ11ZCZZCZ1ZCZCZVZZ");
    assert!(pending.is_idle());
    assert!(!pending.waiting.uses_heap());
}

#[test]
fn the_queue_is_bounded_and_says_so() {
    let mut pending = PendingReplies::default();
    for _ in 0..1_000_000 {
        assert_eq!(
            pending.client(b'S'),
            Ok(Admit::More),
            "many of a kind are a few numbers"
        );
    }
    let mut taken = 0;
    while pending.client(b'Q').and_then(|_| pending.client(b'S')).is_ok() {
        taken += 2;
        assert!(taken < 2 * MAX_RUNS);
        assert_eq!(pending.full(), pending.waiting.runs() >= FULL_AT);
    }
    assert!(pending.full() && pending.waiting.runs() == MAX_RUNS);
}

// --- Against the model, with random outcomes ---

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        5 => Just(Fate::Done),
        2 => Just(Fate::Rows),
        1 => Just(Fate::Empty),
        2 => Just(Fate::Fails),
        1 => Just(Fate::CopyOut),
        1 => Just(Fate::Fatal),
        2 => Just(Fate::CopyIn),
        2 => (0_u8..5).prop_map(Fate::CopyInFails),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    let tag = proptest::sample::select(b"QQQFPBDEEECSSSSHddcccf".to_vec());
    let owner = prop_oneof![3 => Just(Owner::Client), 1 => Just(Owner::Router)];
    (owner, tag, vec(fate(), 0..3)).prop_map(|(owner, tag, fates)| Message { owner, tag, fates })
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
    fn pending_replies_agree_with_a_server_about_anything_a_client_and_the_router_may_send(
        messages in vec(message(), 0..40), turns in turns(),
    ) {
        interleaved(messages, turns).map_err(TestCaseError::fail)?;
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
        prop_assert!(!interleaved(messages, turns).map_err(TestCaseError::fail)?);
    }
}
