//! A session with a pool against a connection of its own: whatever the client says, in whatever
//! pieces, it hears the same bytes, and the connection that goes back has nothing of it.

use std::time::Duration;

use super::conversations::{bind, conversations, execute, flush, long, parse, query, sync};
use super::exchange::MOST_LOST;
use super::model_server::Trouble;
use super::stage::{Stage, direct};
use crate::cluster::snapshot::MemberName;
use crate::routing::{EndReason, LeaveReason};
use crate::session::end::{Cause, Order, Reason};
use crate::session::simulator::{frame, short};

fn assert_heard(stage: &Stage, said: &[u8], at: &str) {
    assert!(
        stage.end.is_none(),
        "{at}: {:?}",
        stage.end.as_ref().map(|end| &end.0)
    );
    let expected = direct(said);
    assert!(
        stage.heard == expected,
        "{at}\nheard    {}\nexpected {}",
        short(&stage.heard),
        short(&expected)
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_hears_the_same_however_its_bytes_are_split() {
    for (name, messages) in conversations() {
        let said = messages.concat();
        for split in 0..=said.len() {
            let at = format!("{name}, split at {split}");
            let mut stage = Stage::new("");
            stage.say(&said[..split]).await;
            stage.say(&said[split..]).await;
            assert_heard(&stage, &said, &at);
            stage.assert_given_back(&at);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_hears_the_same_message_by_message_and_byte_by_byte() {
    for (name, messages) in conversations() {
        let said = messages.concat();
        let mut stage = Stage::new("");
        for message in &messages {
            stage.say(message).await;
        }
        assert_heard(&stage, &said, name);
        stage.assert_given_back(name);
        let mut stage = Stage::new("");
        stage.client_is_read_by(1);
        stage.piece = 1;
        stage.say(&said).await;
        assert_heard(&stage, &said, name);
        stage.assert_given_back(name);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_hears_the_same_wherever_the_server_pauses() {
    for (name, messages) in conversations() {
        let said = messages.concat();
        for pause in (0..direct(&said).len()).step_by(3) {
            let at = format!("{name}, the server pauses at {pause}");
            let mut stage = Stage::new("");
            stage.may_send = pause;
            stage.say(&said).await;
            stage.may_send = usize::MAX;
            stage.settle().await;
            assert_heard(&stage, &said, &at);
            stage.assert_given_back(&at);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn long_messages_pass_unchanged_in_pieces() {
    for (name, messages) in long() {
        let said = messages.concat();
        for split in [1, 4, 5, 6, 7, 100, 4096, 65_535, 65_536, 65_541, 100_000] {
            let at = format!("{name}, split at {split}");
            let split = split.min(said.len());
            let mut stage = Stage::new("");
            stage.say(&said[..split]).await;
            stage.say(&said[split..]).await;
            assert_heard(&stage, &said, &at);
            stage.assert_given_back(&at);
        }
    }
}

/// Nothing is lost while one side does not read.
#[tokio::test(start_paused = true)]
async fn who_does_not_read_loses_nothing() {
    for (name, messages) in conversations().into_iter().chain(long()) {
        let said = messages.concat();
        let mut stage = Stage::new("");
        (stage.client_listens, stage.servers_listen) = (false, false);
        stage.say(&said).await;
        stage.servers_listen = true;
        stage.settle().await;
        stage.client_listens = true;
        stage.settle().await;
        assert_heard(&stage, &said, name);
        stage.assert_given_back(name);
    }
}

#[tokio::test(start_paused = true)]
async fn half_a_message_takes_no_connection() {
    for message in [
        query("echo a"),
        parse("n", "echo n"),
        bind("n"),
        sync(),
        query(&"x".repeat(60_000)),
    ] {
        for sent in 0..message.len() {
            let sent = if sent < 32 { sent } else { message.len() - 1 };
            let mut stage = Stage::new("");
            stage.say(&message[..sent]).await;
            assert_eq!((stage.counts(), stage.servers.len()), ([0, 0, 0], 0));
            if sent > 32 {
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_terminate_behind_a_request_waits_for_its_answer() {
    for (name, messages) in conversations() {
        let said = messages.concat();
        let mut stage = Stage::new("");
        stage.say(&[&said[..], &frame(b'X', b"")].concat()).await;
        let (cause, session) = stage.end.take().expect("it has said goodbye");
        assert_eq!(cause, Cause::ClientTerminated, "{name}");
        assert!(session.lease.is_none(), "{name}");
        assert!(stage.heard == direct(&said), "{name}: {}", short(&stage.heard));
        assert_eq!(stage.cancels(), 0, "{name}");
        stage.assert_given_back(name);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_closes_its_side_still_hears_its_answers() {
    for (name, messages) in conversations() {
        let said = messages.concat();
        let mut stage = Stage::new("");
        stage.say(&said).await;
        stage.close_client_side().await;
        let (cause, session) = stage.end.take().expect("nothing follows");
        assert_eq!(cause, Cause::ClientGone, "{name}");
        assert!(session.lease.is_none(), "{name}");
        assert!(stage.heard == direct(&said), "{name}");
        stage.assert_given_back(name);
    }
}

/// What the session leaves is either clean, or marked as not to be used.
#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_anywhere_leaves_nothing_behind() {
    for (name, messages) in conversations() {
        for resets in [false, true] {
            for count in 0..=messages.len() {
                let at = format!("{name}, leaves after {count}, resets: {resets}");
                let mut stage = Stage::new("");
                stage.say(&messages[..count].concat()).await;
                stage.client_leaves(resets).await;
                let (cause, mut session) = stage.end.take().expect("nobody is there");
                assert_eq!(cause, Cause::ClientGone, "{at}");
                let Some(mut lease) = session.lease.take() else {
                    continue;
                };
                let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
                let cleaning = tokio::spawn(async move {
                    let is_clean = super::clean::clean(&mut lease, deadline).await;
                    (is_clean, lease)
                });
                stage.settle().await;
                let (is_clean, lease) = cleaning.await.expect("it ends");
                assert!(is_clean, "{at}");
                stage.scene.pool.release(lease);
                stage.assert_given_back(&at);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn orders_count_at_once_or_at_the_boundary() {
    let role = || Reason::Role(EndReason::Demoted(MemberName::new("db1")));
    let orders = [
        Order::AtBoundary(Reason::Shutdown),
        Order::Now(Reason::Killed),
        Order::AtBoundary(role()),
        Order::AtBoundary(Reason::Unfit(LeaveReason::Maintenance(MemberName::new("db1")))),
        Order::Move(Reason::Unfit(LeaveReason::Draining(MemberName::new("db1")))),
    ];
    for (name, messages) in conversations() {
        for count in 0..=messages.len() {
            for order in &orders {
                let at = format!("{name}, {order:?} after {count}");
                let mut stage = Stage::new("");
                stage.say(&messages[..count].concat()).await;
                let has_lease = stage.counts()[1] == 1;
                stage.order(order.clone()).await;
                let is_about_server = order.reason().is_about_server();
                // An order to leave the server at once is in `cut_tests`.
                let ends_now = match order {
                    _ if !has_lease => !is_about_server,
                    Order::Now(_) => true,
                    Order::AtBoundary(_) | Order::Move(_) => false,
                };
                if ends_now {
                    let (cause, _) = stage.end.take().unwrap_or_else(|| panic!("{at}"));
                    assert_eq!(cause, Cause::Ordered(order.reason().clone()), "{at}");
                    continue;
                }
                assert!(stage.end.is_none(), "{at}");
                stage.say(&messages[count..].concat()).await;
                if has_lease && !is_about_server {
                    let (cause, _) = stage.end.take().unwrap_or_else(|| panic!("{at}"));
                    assert_eq!(cause, Cause::Ordered(order.reason().clone()), "{at}");
                    continue;
                }
                assert_heard(&stage, &messages.concat(), &at);
                assert_eq!(stage.counts()[1], 0, "{at}");
            }
        }
    }
}

/// The batch is answered by one error, up to its Sync; the session goes on.
#[tokio::test(start_paused = true)]
async fn a_batch_that_gets_no_connection_is_answered_by_one_error() {
    let batch = [
        parse("a", "echo a"),
        bind("a"),
        execute(),
        query("echo lost"),
        sync(),
    ]
    .concat();
    let requests = [
        (query("echo a"), "E Z"),
        (sync(), "E Z"),
        (batch.clone(), "E Z"),
        ([&batch[..], &query("echo b")].concat(), "E Z E Z"),
        ([flush(), query(&"x".repeat(100_000))].concat(), "E Z"),
        ([parse("l", &"x".repeat(100_000)), sync()].concat(), "E Z"),
    ];
    for (request, expected) in requests {
        for split in [
            0,
            1,
            4,
            5,
            6,
            20,
            request.len() - 5,
            request.len() - 1,
            request.len(),
        ] {
            let mut stage = Stage::new("queue_timeout: 10s");
            let busy = stage.scene.opens("UTC", super::scene::NEAR);
            let split = split.min(request.len());
            let _keeper = stage.keeper();
            for part in [&request[..split], &request[split..]] {
                stage.say(part).await;
                for _ in 0..250 {
                    stage.pass(Duration::from_millis(100)).await;
                }
            }
            let words = short(&stage.heard).replace("ERROR 53300", "E").replace("ZI", "Z");
            let words = words.replace("N ", "");
            assert_eq!(words, expected, "split at {split}");
            drop(busy);
            let before = stage.heard.len();
            let after = [
                query("echo b"),
                parse("a", "echo a"),
                bind("a"),
                execute(),
                sync(),
            ]
            .concat();
            stage.say(&after).await;
            assert!(
                stage.heard[before..] == direct(&after),
                "{}",
                short(&stage.heard[before..])
            );
            stage.assert_given_back("after an error");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_is_told_and_can_be_cancelled() {
    let mut stage = Stage::new("queue_timeout: 60s");
    let busy = stage.scene.opens("UTC", super::scene::NEAR);
    assert!(!stage.entry.cancel_wait(), "it does not wait");
    stage
        .say(&[parse("", "echo a"), bind(""), execute()].concat())
        .await;
    let _keeper = stage.keeper();
    for _ in 0..60 {
        stage.pass(Duration::from_millis(100)).await;
    }
    assert_eq!(short(&stage.heard), "N");
    assert!(stage.entry.cancel_wait());
    stage.settle().await;
    assert_eq!(short(&stage.heard), "N ERROR 57014");
    stage.say(&sync()).await;
    assert_eq!(short(&stage.heard), "N ERROR 57014 ZI");
    drop(busy);
    let before = stage.heard.len();
    stage.say(&query("echo b")).await;
    assert!(stage.heard[before..] == direct(&query("echo b")));
    stage.assert_given_back("after a cancelled wait");
}

/// Another connection may do; a second failure is the answer to the request, and the next request
/// tries again. A connection that is lost is no failure, until there are too many.
#[tokio::test(start_paused = true)]
async fn a_restore_that_fails_is_tried_on_one_more_connection() {
    let own = [("application_name", &b"mine"[..])];
    for (name, messages) in conversations() {
        for trouble in [Trouble::Fails("application_name"), Trouble::Dies] {
            let mut stage = Stage::with("", &own);
            stage.troubles = vec![trouble];
            stage.say(&messages.concat()).await;
            assert_heard(&stage, &messages.concat(), name);
            assert_eq!(stage.servers.len(), 2, "{name}");
            stage.assert_given_back(name);
        }
    }
    let batch = [parse("a", "echo a"), bind("a"), execute(), sync()].concat();
    let mut stage = Stage::with("", &own);
    stage.troubles = vec![Trouble::Dies; 9];
    stage.say(&batch).await;
    assert_heard(&stage, &batch, "nine lost connections");
    for (trouble, count) in [
        (Trouble::Fails("application_name"), 2),
        (Trouble::Dies, usize::from(MOST_LOST) + 2),
    ] {
        let mut stage = Stage::with("", &own);
        stage.troubles = vec![trouble; count];
        stage.say(&batch).await;
        assert_eq!(short(&stage.heard), "ERROR 08006 ZI");
        let before = stage.heard.len();
        stage.say(&batch).await;
        assert!(stage.heard[before..] == direct(&batch));
        stage.assert_given_back("after a restore that failed twice");
    }
    let mut stage = Stage::with("", &own);
    stage.troubles = vec![Trouble::Hangs];
    stage.say(&batch).await;
    stage.pass(Duration::from_secs(5)).await;
    assert_heard(&stage, &batch, "a restore without an answer");
}

/// A question that fails leaves the connection with its session, which goes on; without an answer
/// the session ends.
#[tokio::test(start_paused = true)]
async fn a_question_that_fails_costs_no_answer() {
    let said = [query("SET a"), query("echo a")];
    let mut stage = Stage::new("");
    stage.troubles = vec![Trouble::Fails("a"); 2];
    stage.say(&said[0]).await;
    stage.say(&said[1]).await;
    assert_heard(&stage, &said.concat(), "a question that fails");
    for trouble in [Trouble::Dies, Trouble::Hangs] {
        let mut stage = Stage::new("");
        stage.troubles = vec![trouble];
        stage.say(&said[0]).await;
        stage.pass(Duration::from_secs(5)).await;
        assert_eq!(stage.heard, direct(&said[0]));
        let (cause, _) = stage.end.take().expect("what the session has is unknown");
        assert_eq!(cause, Cause::ServerGone);
    }
}

/// P48 makes a connection unfit for others; a session that is pinned to it keeps what it has there.
#[tokio::test(start_paused = true)]
async fn a_query_in_an_open_batch_takes_no_pinned_connection_away() {
    let batch = [parse("", "echo a"), bind(""), execute(), query("echo b"), sync()].concat();
    let mut stage = Stage::new("");
    stage.say(&batch).await;
    assert_heard(&stage, &batch, "without a pin");
    assert_eq!(stage.counts(), [0, 0, 0], "it serves nobody else");
    let mut stage = Stage::new("");
    // What the session has is not known: it keeps the connection.
    stage.troubles = vec![Trouble::Fails("a"); 2];
    let said = [query("SET a"), batch, query("echo c")];
    for part in &said {
        stage.say(part).await;
        assert_eq!((stage.counts(), stage.servers.len()), ([0, 1, 0], 1));
    }
    assert_heard(&stage, &said.concat(), "with a pin");
}
