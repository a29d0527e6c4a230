//! Servers that say what nobody asked for, and servers that end a session and not its connection.

use std::time::Duration;

use super::conversations::{bind, execute, flush, parse, query, sync};
use super::model_server::{Trouble, fatal};
use super::stage::{Stage, direct};
use crate::session::close::CLOSE_WITHIN;
use crate::session::end::{Cause, Fate};
use crate::session::simulator::{frame, short};
use crate::wire::sqlstate::SqlState;

/// What no server says where nothing was asked.
fn unasked() -> Vec<Vec<u8>> {
    let error = frame(b'E', b"SERROR\0VERROR\0CXX000\0Msomething\0\0");
    let ready = frame(b'Z', b"I");
    vec![
        error.clone(),
        [&error[..], &ready].concat(),
        ready,
        frame(b'C', b"SELECT 1\0"),
        frame(b'T', b"\0\0"),
        frame(b't', b"\0\0"),
        frame(b'D', b"\0\0"),
        // Longer than what has come.
        frame(b'D', &[0; 1000])[..100].to_vec(),
        frame(b'V', &[0; 1000])[..100].to_vec(),
        frame(b'd', b"x"),
        frame(b'1', b""),
        frame(b'G', &[0; 3]),
        frame(b'?', b""),
    ]
}

fn last_word() -> Vec<u8> {
    fatal("57P01", "terminating connection")
}

/// Of bytes that may be no whole message.
fn start(bytes: &[u8]) -> String {
    bytes[..bytes.len().min(30)].escape_ascii().to_string()
}

fn metric(stage: &Stage, reason: &str) -> bool {
    let line = format!("pool_discarded_total{{route=\"rw\",reason=\"{reason}\"}} 1");
    stage.scene.exposition().contains(&line)
}

/// It goes to the server together with the end of an answer, so that no other session can have the
/// connection before it is seen.
#[tokio::test(start_paused = true)]
async fn a_session_that_needs_nothing_of_its_connection_goes_on_with_another_one() {
    let mut more = unasked();
    more.push(last_word());
    more.push([last_word(), frame(b'Z', b"I")].concat());
    let requests = [
        query("echo a"),
        [parse("a", "echo a"), bind("a"), execute(), sync()].concat(),
    ];
    for more in &more {
        for request in &requests {
            let at = start(more);
            let mut stage = Stage::new("");
            stage.may_send = 0;
            stage.say(request).await;
            stage.server_says(more).await;
            assert!(stage.heard == direct(request), "{at}: {}", short(&stage.heard));
            assert_eq!(stage.counts(), [0, 0, 0], "{at}");
            assert!(stage.servers[0].model.is_over, "{at}: it was told");
            assert!(metric(&stage, "unquiet"), "{at}");
            stage.say(&query("echo b")).await;
            assert!(stage.end.is_none(), "{at}");
            assert!(stage.heard.ends_with(&direct(&query("echo b"))), "{at}");
            assert_eq!(stage.servers.len(), 2, "{at}");
            stage.assert_given_back(&at);
        }
    }
}

/// What a session has on its connection only is lost with it.
#[tokio::test(start_paused = true)]
async fn a_session_whose_server_is_out_of_step_ends_where_it_needs_the_connection() {
    let batch = [parse("", "echo a"), bind(""), execute(), flush()].concat();
    let begun = [
        (query("BEGIN"), Fate::RolledBack, 0),
        // Nobody can ask any more what it has.
        (query("SET a"), Fate::Settled, 0),
        // Pinned, as the question failed.
        (query("SET a"), Fate::Settled, 2),
        (batch, Fate::Unsynced, 0),
    ];
    for more in unasked() {
        for (request, fate, troubles) in &begun {
            let at = format!("{} {}", start(request), start(&more));
            let mut stage = Stage::new("");
            stage.troubles = vec![Trouble::Fails("a"); *troubles];
            stage.may_send = if *troubles > 0 { usize::MAX } else { 0 };
            stage.say(request).await;
            stage.server_says(&more).await;
            let (cause, session) = stage.end.take().unwrap_or_else(|| panic!("{at}"));
            assert!(matches!(cause, Cause::ServerProtocol(_)), "{at}: {cause:?}");
            assert_eq!(session.fate(), *fate, "{at}");
            assert!(stage.heard == direct(request), "{at}: {}", short(&stage.heard));
            drop(session);
            assert_eq!(stage.counts(), [0, 0, 0], "{at}");
        }
    }
}

/// An answer to something else than what was asked: nobody knows what was done.
#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_fit_ends_the_session_with_an_unknown_outcome() {
    for keys in ["mode: transaction", "mode: session"] {
        for (request, answer) in [(sync(), frame(b'1', b"")), (parse("", "x"), frame(b'Z', b"I"))] {
            let mut stage = Stage::of(&format!("pool: {{{keys}, max_connections: 1}}"), &[]);
            stage.may_send = 0;
            stage.say(&query("BEGIN")).await;
            stage.may_send = usize::MAX;
            stage.settle().await;
            let before = stage.heard.len();
            stage.servers[0].model.is_hung = true;
            stage.say(&request).await;
            stage.server_says(&answer).await;
            let (cause, session) = stage.end.take().expect("it is out of step");
            assert!(matches!(cause, Cause::ServerProtocol(_)), "{keys}: {cause:?}");
            assert_eq!(session.fate(), Fate::Unknown, "{keys}");
            if keys == "mode: transaction" {
                assert_eq!(stage.heard.len(), before);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn in_session_mode_a_server_out_of_step_ends_the_session() {
    let error = frame(b'E', b"SERROR\0VERROR\0CXX000\0Msomething\0\0");
    for (begun, fate) in [("echo a", Fate::Settled), ("BEGIN", Fate::RolledBack)] {
        for (more, is_seen) in [
            (error.clone(), true),
            (frame(b'Z', b"I"), true),
            // What comes at any time.
            (frame(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mx\0\0"), false),
            (frame(b'A', b"\0\0\0\x01x\0\0"), false),
            (frame(b'S', b"TimeZone\0UTC\0"), false),
        ] {
            let mut stage = Stage::of("pool: {mode: session, max_connections: 1}", &[]);
            stage.say(&query(begun)).await;
            stage.server_says(&more).await;
            if !is_seen {
                assert!(stage.end.is_none());
                assert!(stage.heard == [direct(&query(begun)), more].concat());
                continue;
            }
            let (cause, session) = stage.end.take().expect("it is out of step");
            assert!(matches!(cause, Cause::ServerProtocol(_)), "{cause:?}");
            assert_eq!(session.fate(), fate);
        }
    }
}

/// The client has the server's last word at once, if the session ends with it; the connection ends
/// with the server's end of it, or soon.
#[tokio::test(start_paused = true)]
async fn a_server_that_ends_a_session_and_not_the_connection_is_not_waited_for() {
    let batch = [parse("", "echo a"), bind(""), execute(), flush()].concat();
    for mode in ["transaction", "session"] {
        for (request, is_answered) in [
            (query("BEGIN"), true),
            (query("SET a"), false),
            (batch.clone(), true),
            (batch.clone(), false),
        ] {
            for more in [Vec::new(), frame(b'Z', b"I"), frame(b'D', &[0; 1000])] {
                let at = format!("{mode}, {}, {is_answered}, {}", start(&request), start(&more));
                let mut stage = Stage::of(&format!("pool: {{mode: {mode}, max_connections: 1}}"), &[]);
                if is_answered {
                    stage.say(&request).await;
                } else {
                    stage.say(&query("BEGIN")).await;
                    stage.servers[0].model.is_hung = true;
                    stage.say(&request).await;
                }
                let before = stage.heard.len();
                // In transaction mode a session goes on where another server connection will do.
                let last_word = fatal("25P03", "terminating connection");
                stage.server_says(&last_word).await;
                assert!(stage.heard[before..] == last_word, "{at}");
                assert!(stage.end.is_none(), "{at}: it may close the connection itself");
                if more.is_empty() {
                    stage.pass(CLOSE_WITHIN).await;
                } else {
                    // It goes on and on.
                    stage.server_says(&more).await;
                }
                let (cause, session) = stage.end.take().unwrap_or_else(|| panic!("{at}"));
                let code = SqlState::IDLE_IN_TRANSACTION_TIMEOUT;
                assert_eq!(cause, Cause::ServerFatal { code }, "{at}");
                assert!(stage.heard[before..] == last_word, "{at}");
                drop(session);
                assert_eq!(stage.counts(), [0, 0, 0], "{at}");
            }
        }
    }
}

/// While the router itself asks: another connection for the request, or the end where nobody can
/// ask any more.
#[tokio::test(start_paused = true)]
async fn an_exchange_with_a_server_out_of_step_ends_its_connection() {
    let request = query("echo a");
    for trouble in [Trouble::Ends, Trouble::Babbles, Trouble::Stumbles] {
        let mut stage = Stage::with("", &[("application_name", &b"x"[..])]);
        stage.troubles = vec![trouble];
        stage.say(&request).await;
        assert!(stage.end.is_none(), "{trouble:?}");
        assert!(
            stage.heard == direct(&request),
            "{trouble:?}: {}",
            short(&stage.heard)
        );
        assert!(stage.servers[0].model.is_over, "{trouble:?}");
        assert_eq!(stage.servers.len(), 2);
        stage.assert_given_back("restored on another one");

        let mut stage = Stage::new("");
        stage.troubles = vec![trouble];
        stage.say(&query("SET a")).await;
        let (cause, session) = stage.end.take().expect("what it has is unknown");
        let is_fatal = trouble == Trouble::Ends;
        assert!(
            if is_fatal {
                cause == Cause::ServerGone
            } else {
                matches!(cause, Cause::ServerProtocol(_))
            },
            "{trouble:?}: {cause:?}"
        );
        drop(session);
        assert_eq!(stage.counts(), [0, 0, 0], "{trouble:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_that_is_not_quiet_is_replaced() {
    let mut all = unasked();
    all.push(last_word());
    for more in all {
        let keys = "pool: {mode: transaction, max_connections: 1, min_connections: 1}";
        let mut stage = Stage::of(keys, &[]);
        stage.say(&query("echo a")).await;
        assert_eq!(stage.counts(), [1, 0, 0]);
        let _keeper = stage.keeper();
        stage.server_says(&more).await;
        // Two looks of the keeper: at what is unquiet, and at what is missing.
        for _ in 0..30 {
            stage.pass(Duration::from_millis(100)).await;
        }
        let spare = stage.scene.spares.try_recv();
        let spare = spare.unwrap_or_else(|_| panic!("{}: it is kept", start(&more)));
        assert!(stage.end.is_none());
        stage
            .scene
            .pool
            .release(stage.scene.open(spare.permit, super::scene::NEAR));
        assert_eq!(stage.counts(), [1, 0, 0]);
    }
}
