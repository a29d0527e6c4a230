//! Sessions that lose their server connection, at every message and every byte: what their clients
//! hear, and that no server gets anything twice.

use super::conversations::{bind, conversations, execute, flush, parse, portal, query, sync};
use super::exchange::MOST_LOST;
use super::model_server::{ModelServer, Trouble, fatal};
use super::stage::{Stage, direct};
use crate::cluster::snapshot::MemberName;
use crate::routing::EndReason;
use crate::session::end::{Cause, Order, Reason};
use crate::session::simulator::{frame, short};
use crate::wire::observe::ServerObserver;
use crate::wire::pending::{PendingReplies, TransactionStatus};
use crate::wire::sqlstate::SqlState;

/// How a connection is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Closed,
    /// FATAL, and then the end.
    Stopped,
    /// The router must leave it.
    Ordered,
}

const WAYS: [Way; 3] = [Way::Closed, Way::Stopped, Way::Ordered];

fn last_word() -> Vec<u8> {
    fatal("57P01", "terminating connection")
}

async fn lose(stage: &mut Stage, way: Way) {
    match way {
        Way::Closed => {}
        Way::Stopped if stage.servers.is_empty() => {}
        Way::Stopped => stage.server_says(&last_word()).await,
        Way::Ordered => {
            let reason = Reason::Role(EndReason::Demoted(MemberName::new("db1")));
            stage.order(Order::Now(reason)).await;
            for server in &mut stage.servers {
                server.model.is_hung = false;
            }
            return;
        }
    }
    stage.servers_die().await;
}

/// A client that follows what it is owed.
struct Account {
    pending: PendingReplies,
    observer: ServerObserver,
    heard: usize,
}

impl Account {
    fn new() -> Self {
        Self {
            pending: PendingReplies::new(TransactionStatus::Idle),
            observer: ServerObserver::new(),
            heard: 0,
        }
    }

    fn says(&mut self, messages: &[Vec<u8>]) {
        // A message of a conversation may be several.
        let mut rest = &messages.concat()[..];
        while let Some(&[tag, a, b, c, d]) = rest.first_chunk::<5>() {
            let _ = self.pending.client(tag).expect("there is room");
            rest = &rest[u32::from_be_bytes([a, b, c, d]) as usize + 1..];
        }
    }

    fn hears(&mut self, heard: &[u8], at: &str) {
        let pending = &mut self.pending;
        let fed = self.observer.feed(&heard[self.heard..], |event| {
            pending.server(&event);
        });
        assert!(fed.is_ok(), "{at}");
        assert!(!pending.is_out_of_step(), "{at}: {}", short(heard));
        self.heard = heard.len();
    }
}

/// What the servers ran, or were to run, all together: Queries and Executes, and BEGINs among them.
fn ran(stage: &Stage) -> (usize, usize) {
    let mut all: Vec<Vec<u8>> = Vec::new();
    for server in &stage.servers {
        for (text, count) in &server.model.ran {
            all.extend(std::iter::repeat_n(text.clone(), *count));
        }
        all.extend(server.model.unread());
    }
    let begins = all.iter().filter(|text| text.starts_with(b"BEGIN")).count();
    (all.len(), begins)
}

/// Everything is answered, the session is of use, and nothing was run more often than it was said.
async fn assert_goes_on(stage: &mut Stage, account: &mut Account, said: &[Vec<u8>], at: &str) {
    let after = [sync(), query("ROLLBACK"), query("echo after")];
    for message in &after {
        account.says(std::slice::from_ref(message));
        stage.say(message).await;
        account.hears(&stage.heard, at);
    }
    assert!(
        stage.end.is_none(),
        "{at}: {:?}",
        stage.end.as_ref().map(|end| &end.0)
    );
    assert!(
        account.pending.between_transactions(),
        "{at}: {}",
        short(&stage.heard)
    );
    assert!(stage.heard.ends_with(&direct(&query("echo after"))), "{at}");
    stage.assert_given_back(at);
    let mut once = ModelServer::default();
    once.hear(&[said.concat(), after.concat()].concat(), &mut Vec::new());
    let said = once.got.bytes().filter(|tag| b"QE".contains(tag)).count();
    let (all, begins) = ran(stage);
    // A BEGIN is sent again where it was not answered.
    assert!(all <= said + begins.min(1), "{at}: {all} of {said}");
}

/// A session may end only where nothing can be said, or where nobody knows what it has.
fn assert_may_end(stage: &mut Stage, at: &str) -> bool {
    let Some((cause, session)) = stage.end.take() else {
        return false;
    };
    let lease = session.lease.as_ref().expect("it was lost");
    let is_torn = lease.link.observer.passed() > session.client.answers.rest.len();
    let is_unknown = session.memory.is_tainted
        || !session.memory.doubts.end_with_connection()
        || lease.link.pending.is_uncertain();
    assert!(is_torn || is_unknown, "{at}: {cause:?}");
    true
}

#[tokio::test(start_paused = true)]
async fn between_two_messages_and_behind_those_that_are_not_answered() {
    for (name, messages) in conversations() {
        for way in WAYS {
            for answered in 0..=messages.len() {
                for unanswered in 0..=2.min(messages.len() - answered) {
                    let at = format!("{name}, {way:?} after {answered} and {unanswered}");
                    let mut stage = Stage::new("");
                    let mut account = Account::new();
                    for message in &messages[..answered] {
                        account.says(std::slice::from_ref(message));
                        stage.say(message).await;
                        account.hears(&stage.heard, &at);
                    }
                    if unanswered > 0 {
                        stage.hangs = true;
                        for server in &mut stage.servers {
                            server.model.is_hung = true;
                        }
                    }
                    for message in &messages[answered..answered + unanswered] {
                        account.says(std::slice::from_ref(message));
                        stage.say(message).await;
                    }
                    stage.hangs = false;
                    lose(&mut stage, way).await;
                    account.hears(&stage.heard, &at);
                    if assert_may_end(&mut stage, &at) {
                        continue;
                    }
                    for message in &messages[answered + unanswered..] {
                        account.says(std::slice::from_ref(message));
                        stage.say(message).await;
                        account.hears(&stage.heard, &at);
                    }
                    assert_goes_on(&mut stage, &mut account, &messages, &at).await;
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn at_any_byte_of_the_answers_to_a_pipeline() {
    for (name, messages) in conversations() {
        let said = messages.concat();
        let total = direct(&said).len();
        for way in [Way::Closed, Way::Ordered] {
            for sent in (0..total).filter(|sent| sent % 9 == 0 || *sent < 32) {
                let at = format!("{name}, {way:?} after {sent} bytes");
                let mut stage = Stage::new("");
                let mut account = Account::new();
                stage.may_send = sent;
                account.says(&messages);
                stage.say(&said).await;
                account.hears(&stage.heard, &at);
                for server in &mut stage.servers {
                    server.model.is_hung = true;
                }
                lose(&mut stage, way).await;
                stage.may_send = usize::MAX;
                stage.settle().await;
                if assert_may_end(&mut stage, &at) {
                    continue;
                }
                account.hears(&stage.heard, &at);
                assert_goes_on(&mut stage, &mut account, &messages, &at).await;
            }
        }
    }
}

/// What a client says up to the loss and then, and what it hears from the loss on.
type Row = (Vec<Vec<u8>>, Vec<Vec<u8>>, &'static str);

/// What a client hears behind `said`, of which the last is not answered when its server is lost.
async fn heard_behind(said: &[Vec<u8>], then: &[Vec<u8>]) -> (String, Stage) {
    let mut stage = Stage::new("");
    let (last, before) = said.split_last().expect("there is one");
    for message in before {
        stage.say(message).await;
    }
    let heard = stage.heard.len();
    if last.is_empty() {
        // Nothing is under way.
    } else {
        stage.hangs = true;
        for server in &mut stage.servers {
            server.model.is_hung = true;
        }
        stage.say(last).await;
        stage.hangs = false;
    }
    stage.servers_die().await;
    for message in then {
        stage.say(message).await;
    }
    let shown = short(&stage.heard[heard..]);
    (shown.replace("ERROR ", ""), stage)
}

fn batch(text: &str) -> Vec<u8> {
    [parse("", text), bind(""), execute(), sync()].concat()
}

/// Without its Sync.
fn open(text: &str) -> Vec<u8> {
    [parse("", text), bind(""), execute(), flush()].concat()
}

fn unknown() -> Vec<Row> {
    let (begin, insert, commit) = (query("BEGIN"), query("INSERT"), query("COMMIT"));
    let (echo, none) = (query("echo a"), Vec::new());
    let call = frame(b'F', &[0, 0, 3, 0xbd, 0, 0, 0, 0, 0, 0]);
    vec![
        (vec![insert.clone()], vec![echo.clone()], "08007 ZI T D C ZI"),
        (vec![call], vec![], "08007 ZI"),
        (vec![batch("INSERT")], vec![echo.clone()], "08007 ZI T D C ZI"),
        (vec![open("INSERT")], vec![bind(""), sync()], "08007 ZI"),
        (
            vec![begin.clone(), commit.clone()],
            vec![echo.clone()],
            "08007 ZI T D C ZI",
        ),
        (vec![begin.clone(), batch("COMMIT")], vec![], "08007 ZI"),
        (
            vec![begin.clone(), [insert.clone(), commit.clone()].concat()],
            vec![],
            "08007 ZI 08007 ZI",
        ),
        (
            vec![query("in")],
            vec![frame(b'd', b"1"), frame(b'c', b""), echo.clone()],
            "08007 ZI T D C ZI",
        ),
        (
            vec![open("INSERT"), none.clone()],
            vec![bind(""), sync(), echo.clone()],
            "08007 ZI T D C ZI",
        ),
        (vec![open("INSERT"), none.clone()], vec![sync()], "08007 ZI"),
        (
            vec![[parse("", "INSERT"), bind("")].concat(), none.clone()],
            vec![execute(), sync()],
            "40001 ZI",
        ),
    ]
}

fn rolled_back() -> Vec<Row> {
    let (begin, insert, commit) = (query("BEGIN"), query("INSERT"), query("COMMIT"));
    let (rollback, echo, none) = (query("ROLLBACK"), query("echo a"), Vec::new());
    vec![
        (
            vec![begin.clone(), insert.clone()],
            vec![echo.clone(), rollback.clone()],
            "40001 ZE 25P02 ZE C ZI",
        ),
        (
            vec![begin.clone(), insert.clone()],
            vec![commit.clone()],
            "40001 ZE C ZI",
        ),
        (
            vec![begin.clone(), [insert.clone(), echo.clone()].concat()],
            vec![],
            "40001 ZE 25P02 ZE",
        ),
        (
            vec![begin.clone(), batch("INSERT")],
            vec![batch("echo a"), batch("ROLLBACK")],
            "40001 ZE 25P02 ZE 1 2 C ZI",
        ),
        (
            vec![begin.clone(), open("INSERT"), none.clone()],
            vec![sync(), rollback.clone()],
            "40001 ZE C ZI",
        ),
        (
            vec![begin.clone(), open("INSERT")],
            vec![bind(""), sync()],
            "40001 ZE",
        ),
        (
            vec![[begin.clone(), insert.clone()].concat()],
            vec![],
            "40001 ZE 25P02 ZE",
        ),
        (
            vec![begin.clone(), rollback.clone()],
            vec![echo.clone()],
            "C ZI T D C ZI",
        ),
        (
            vec![begin.clone(), query("bad"), echo.clone()],
            vec![rollback.clone()],
            "25P02 ZE C ZI",
        ),
        (
            vec![begin.clone(), batch("ROLLBACK")],
            vec![echo.clone()],
            "1 2 C ZI T D C ZI",
        ),
        (
            vec![begin.clone(), query("bad"), batch("COMMIT")],
            vec![echo.clone()],
            "1 2 C ZI T D C ZI",
        ),
        (
            vec![
                [parse("r", "ROLLBACK"), sync()].concat(),
                begin.clone(),
                [bind("r"), portal(), execute(), sync()].concat(),
            ],
            vec![echo.clone()],
            "2 n C ZI T D C ZI",
        ),
        // An open block, and nothing under way.
        (
            vec![begin.clone(), none.clone()],
            vec![commit.clone(), echo.clone()],
            "40001 ZI T D C ZI",
        ),
        (
            vec![begin.clone(), none.clone()],
            vec![rollback.clone(), echo.clone()],
            "C ZI T D C ZI",
        ),
        (
            vec![begin.clone(), none.clone()],
            vec![insert.clone(), echo.clone(), commit.clone()],
            "40001 ZE 25P02 ZE C ZI",
        ),
        (
            vec![begin.clone(), none.clone()],
            vec![batch("COMMIT"), echo.clone()],
            "40001 ZI T D C ZI",
        ),
        (
            vec![begin.clone(), none.clone()],
            vec![batch("ROLLBACK"), echo.clone()],
            "1 2 C ZI T D C ZI",
        ),
        (
            vec![begin.clone(), none.clone()],
            vec![batch("INSERT"), batch("ROLLBACK")],
            "40001 ZE 1 2 C ZI",
        ),
        (
            vec![begin.clone(), query("bad"), none.clone()],
            vec![echo.clone(), rollback.clone()],
            "25P02 ZE C ZI",
        ),
        // A BEGIN alone, and nothing at all.
        (
            vec![begin.clone()],
            vec![echo.clone(), commit.clone()],
            "C ZT T D C ZT C ZI",
        ),
        (vec![echo.clone(), none.clone()], vec![echo.clone()], "T D C ZI"),
        (
            vec![parse("a", "echo a"), sync(), none.clone()],
            vec![bind("a"), execute(), sync()],
            "2 D C ZI",
        ),
    ]
}

#[tokio::test(start_paused = true)]
async fn each_row_of_the_table() {
    for (said, then, expected) in unknown().into_iter().chain(rolled_back()) {
        let at = said.concat().escape_ascii().to_string();
        let (heard, stage) = heard_behind(&said, &then).await;
        assert_eq!(heard, expected, "{at}");
        assert!(stage.end.is_none(), "{at}");
    }
}

/// A server that answers what it has been asked before it is left is heard.
#[tokio::test(start_paused = true)]
async fn a_statement_on_a_server_that_must_be_left_is_cancelled() {
    let mut stage = Stage::new("");
    stage.say(&query("BEGIN")).await;
    stage.servers[0].model.is_hung = true;
    stage.say(&query("INSERT")).await;
    lose(&mut stage, Way::Ordered).await;
    assert_eq!(short(&stage.heard), "C ZT ERROR 40001 ZE");
    assert_eq!(stage.abandoned(), 1);
    let mut stage = Stage::new("");
    stage.say(&query("BEGIN")).await;
    lose(&mut stage, Way::Ordered).await;
    stage.say(&query("COMMIT")).await;
    assert_eq!(short(&stage.heard), "C ZT ERROR 40001 ZI");
    assert_eq!(stage.abandoned(), 0, "nothing ran");
}

#[tokio::test(start_paused = true)]
async fn a_begin_is_not_sent_again_for_ever() {
    let mut stage = Stage::new("");
    stage.say(&query("echo a")).await;
    let heard = stage.heard.len();
    stage.hangs = true;
    stage.servers[0].model.is_hung = true;
    stage.say(&query("BEGIN")).await;
    for _ in 0..4 {
        assert_eq!(stage.heard.len(), heard);
        stage.servers_die().await;
    }
    assert_eq!(short(&stage.heard[heard..]), "ERROR 40001 ZI");
    assert_eq!(stage.servers.len(), 4);
}

/// One more connection is tried; then there is none that the session could go on with.
#[tokio::test(start_paused = true)]
async fn a_transaction_that_cannot_be_made_to_fail_ends_the_session() {
    let said = [query("BEGIN"), Vec::new()];
    let lost = usize::from(MOST_LOST);
    for (trouble, most) in [
        (Trouble::Dies, lost),
        (Trouble::Hangs, 1),
        (Trouble::Ends, lost),
        (Trouble::Stumbles, 1),
    ] {
        for count in [1, most, most + 1] {
            let (_, mut stage) = heard_behind(&said, &[query("INSERT")]).await;
            stage.troubles = vec![trouble; count];
            let heard = stage.heard.len();
            stage.say(&query("echo a")).await;
            for _ in 0..count {
                stage.pass(std::time::Duration::from_secs(5)).await;
            }
            if count <= most {
                assert_eq!(short(&stage.heard[heard..]), "ERROR 25P02 ZE", "{trouble:?}");
            } else {
                let (cause, session) = stage.end.take().expect("there is no connection for it");
                assert_eq!(cause, Cause::ServerGone, "{trouble:?}");
                assert!(session.lease.is_none() && stage.heard.len() == heard);
            }
        }
    }
}

/// So nobody has received the request.
#[tokio::test(start_paused = true)]
async fn a_last_word_that_is_there_is_heard_before_the_next_request_is_read() {
    for last_word in [last_word(), Vec::new()] {
        for (said, heard) in [("COMMIT", "ERROR 40001 ZI"), ("echo b", "ERROR 40001 ZE")] {
            let mut stage = Stage::new("");
            stage.say(&query("BEGIN")).await;
            stage.say(&query("echo a")).await;
            let before = stage.heard.len();
            stage.servers_die_as_client_says(&last_word, &query(said)).await;
            assert_eq!(short(&stage.heard[before..]), heard, "{said} {last_word:?}");
            assert!(stage.end.is_none());
        }
        let mut stage = Stage::of("pool: {mode: session, max_connections: 1}, resume: tracked", &[]);
        stage.say(&query("echo a")).await;
        let before = stage.heard.len();
        stage
            .servers_die_as_client_says(&last_word, &query("echo b"))
            .await;
        assert_eq!(stage.heard[before..], direct(&query("echo b")), "{last_word:?}");
        assert_eq!(stage.servers.len(), 2);
    }
}

/// What a server says last about its session, and not about its connection, is the client's.
#[tokio::test(start_paused = true)]
async fn another_last_word_ends_the_session() {
    for (begun, is_pinned) in [("BEGIN", false), ("SET a", true)] {
        for code in ["25P03", "57P04", "57P01"] {
            let mut stage = Stage::new("");
            if is_pinned {
                // Nobody knows what it has.
                stage.troubles = vec![Trouble::Fails("a"); 2];
            }
            stage.say(&query(begun)).await;
            let heard = stage.heard.len();
            stage.server_says(&fatal(code, "the end")).await;
            stage.servers_die().await;
            if code == "57P01" && !is_pinned {
                assert!(stage.end.is_none());
                assert_eq!(stage.heard.len(), heard);
                continue;
            }
            let (cause, _) = stage.end.take().expect("it is over");
            let code = SqlState::of(code.as_bytes());
            assert_eq!(cause, Cause::ServerFatal { code });
            assert_eq!(short(&stage.heard[heard..]), format!("FATAL {code}"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_needs_its_connection_ends_with_it_and_says_why() {
    let mut stage = Stage::new("");
    stage.troubles = vec![Trouble::Fails("a"); 2];
    stage.say(&query("SET a")).await;
    stage.servers_die().await;
    let (cause, _) = stage.end.take().expect("it is pinned");
    let text = crate::session::end::End::from(cause)
        .reply()
        .map(|reply| reply.message);
    assert!(text.is_some_and(|text| text.ends_with("what the session had there (unanswered)")));
    let mut stage = Stage::new("");
    stage.say(&query("BEGIN")).await;
    stage.say(&query("echo pg_advisory_lock(1)")).await;
    stage.servers_die().await;
    let (cause, _) = stage.end.take().expect("the lock is lost");
    let text = crate::session::end::End::from(cause)
        .reply()
        .map(|reply| reply.message);
    assert!(text.is_some_and(|text| text.ends_with("(advisory_lock)")));
}

#[tokio::test(start_paused = true)]
async fn every_loss_is_counted_by_what_it_meant() {
    let (begin, insert) = (query("BEGIN"), query("INSERT"));
    for (said, outcome) in [
        (vec![insert.clone()], "unknown"),
        (vec![begin.clone(), insert], "rolled_back"),
        (vec![begin.clone(), Vec::new()], "rolled_back"),
        (vec![begin], "nothing"),
    ] {
        let (_, stage) = heard_behind(&said, &[]).await;
        assert_counted(&stage, outcome);
    }
    // The connection that would have been given the session's settings.
    let mut stage = Stage::with("", &[("a", b"1")]);
    stage.troubles = vec![Trouble::Dies];
    stage.say(&query("echo a")).await;
    assert_eq!(stage.heard, direct(&query("echo a")));
    assert_counted(&stage, "nothing");
}

/// One loss, and this is what it meant.
fn assert_counted(stage: &Stage, outcome: &str) {
    let metrics = stage.scene.exposition();
    let counted = metrics.lines().filter(|line| line.contains("pool_lost_total{"));
    let counted: Vec<&str> = counted.filter(|line| !line.ends_with(" 0")).collect();
    let end = format!("pool_lost_total{{route=\"rw\",outcome=\"{outcome}\"}} 1");
    assert!(
        counted.len() == 1 && counted[0].ends_with(&end),
        "{end}: {counted:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_with_its_connection_is_counted() {
    for (last_word, is_about_connection) in [
        (fatal("57P01", "the end"), true),
        (Vec::new(), true),
        // Its own fault.
        (fatal("25P03", "the end"), false),
    ] {
        let mut stage = Stage::new("");
        // Nobody knows what it has.
        stage.troubles = vec![Trouble::Fails("a"); 2];
        stage.say(&query("SET a")).await;
        stage.server_says(&last_word).await;
        stage.servers_die().await;
        assert!(stage.end.is_some());
        let is_counted = stage
            .scene
            .exposition()
            .contains("pool_lost_total{route=\"rw\",outcome=\"ended\"} 1");
        assert_eq!(is_counted, is_about_connection, "{last_word:?}");
    }
    // The server that is asked what the session has.
    let mut stage = Stage::new("");
    stage.troubles = vec![Trouble::Dies];
    stage.say(&query("SET a")).await;
    assert!(stage.end.is_some());
    assert_counted(&stage, "ended");
    // It must be left.
    let mut stage = Stage::new("");
    stage.troubles = vec![Trouble::Fails("a"); 2];
    stage.say(&query("SET a")).await;
    lose(&mut stage, Way::Ordered).await;
    assert!(stage.end.is_some());
    assert_counted(&stage, "ended");
}
