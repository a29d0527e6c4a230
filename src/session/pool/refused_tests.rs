//! Requests that the router itself refuses, and what the client has sent behind them.

use std::time::Duration;

use super::conversations::{bind, execute, parse, query, sync};
use super::stage::{Stage, direct};
use crate::session::simulator::short;

/// The answers to what the client says while the pool is full for too long, and a server answers
/// what comes later.
async fn refused(said: &[Vec<u8>], is_one_write: bool) -> Stage {
    let mut stage = Stage::new("queue_timeout: 10s");
    let busy = stage.scene.opens("UTC", super::scene::NEAR);
    let keeper = stage.keeper();
    if is_one_write {
        stage.say(&said.concat()).await;
    } else {
        for message in said {
            stage.say(message).await;
        }
    }
    for _ in 0..110 {
        stage.pass(Duration::from_millis(100)).await;
    }
    drop(busy);
    for _ in 0..10 {
        stage.pass(Duration::from_millis(100)).await;
    }
    drop(keeper);
    stage
}

/// What follows a BEGIN was meant to be part of its transaction.
#[tokio::test(start_paused = true)]
async fn a_transaction_whose_begin_is_refused_is_not_executed_piece_by_piece() {
    let batch = |text: &str| [parse("", text), bind(""), execute(), sync()].concat();
    let rows = [
        [query("BEGIN"), query("echo a"), query("ROLLBACK")],
        [query("BEGIN"), query("echo a"), query("COMMIT")],
        [
            query("begin; set local x = 1"),
            query("echo a"),
            query("ROLLBACK"),
        ],
        [batch("BEGIN"), batch("echo a"), batch("ROLLBACK")],
        [batch("START TRANSACTION"), query("echo a"), query("COMMIT")],
    ];
    for (index, said) in rows.iter().enumerate() {
        for is_one_write in [true, false] {
            let at = format!("row {index}, {is_one_write}");
            let mut stage = refused(said, is_one_write).await;
            let words = short(&stage.heard).replace("N ", "");
            assert!(words.starts_with("ERROR 53300 ZE"), "{at}: {words}");
            assert!(words.ends_with("ZI"), "{at}: {words}");
            assert_eq!(words.matches('Z').count(), 3, "{at}: {words}");
            // A server refuses it, in a failed transaction.
            assert!(
                words.contains("ERROR 25P02 ZE") && !words.contains('D'),
                "{at}: {words}"
            );
            let before = stage.heard.len();
            stage.say(&query("echo b")).await;
            assert!(stage.heard[before..] == direct(&query("echo b")), "{at}");
            stage.assert_given_back(&at);
        }
    }
}

/// A client that waits for the answer to its BEGIN knows that it is in no transaction.
#[tokio::test(start_paused = true)]
async fn a_begin_alone_that_is_refused_leaves_no_transaction() {
    for said in [
        query("BEGIN"),
        [parse("", "BEGIN"), bind(""), execute(), sync()].concat(),
    ] {
        let stage = refused(&[said], true).await;
        assert_eq!(short(&stage.heard).replace("N ", ""), "ERROR 53300 ZI");
    }
}

/// Nothing is lost of what does not depend on the refused request.
#[tokio::test(start_paused = true)]
async fn what_follows_another_request_that_is_refused_is_served() {
    for first in ["echo a", "BEGIN; COMMIT", "SELECT 'begin'; SELECT 2"] {
        let stage = refused(&[query(first), query("echo b")], true).await;
        let words = short(&stage.heard).replace("N ", "");
        assert!(words.starts_with("ERROR 53300 ZI"), "{first}: {words}");
        assert!(
            stage.heard.ends_with(&direct(&query("echo b"))),
            "{first}: {words}"
        );
    }
}
