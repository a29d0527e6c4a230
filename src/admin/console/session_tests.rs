//! Transactions, cancel requests and ends of sessions.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::super::holding::SwitchoverStatus;
use super::super::http::fixture::NothingHeld;
use super::tests::{Client, bind, execute, handles, parse, query, sync};
use crate::session::console::IsOperator;
use crate::session::end::{Cause, Order, Reason};

/// The answer, with the state of the transaction behind `Z`.
async fn answered(client: &mut Client, sql: &str) -> String {
    client.send(&[query(sql)]).await;
    let frames = client.until_ready().await;
    let tags: String = frames.iter().map(|frame| char::from(frame.tag)).collect();
    let state = frames.last().unwrap().body[0];
    let code = frames
        .iter()
        .filter(|frame| matches!(frame.tag, b'E' | b'N'))
        .map(|frame| {
            crate::wire::frame::ErrorFields::parse(&frame.body)
                .unwrap()
                .code
                .to_string()
        });
    format!("{tags}{} {}", char::from(state), code.collect::<String>())
        .trim_end()
        .to_owned()
}

#[tokio::test]
async fn transactions_are_seen_as_postgresql_shows_them() {
    let mut client = Client::new().await;
    for (sql, expected) in [
        ("COMMIT", "NCZI 25P01"),
        ("ROLLBACK", "NCZI 25P01"),
        ("BEGIN", "CZT"),
        ("BEGIN", "NCZT 25001"),
        ("SELECT 1", "TDCZT"),
        ("SHOW transaction_isolation", "TDCZT"),
        ("SAVEPOINT a", "CZT"),
        ("SELECT 1/0", "EZE 22012"),
        ("SELECT 1", "EZE 25P02"),
        ("SAVEPOINT b", "EZE 25P02"),
        ("BEGIN", "EZE 25P02"),
        ("ROLLBACK TO a", "CZT"),
        ("SELECT 1", "TDCZT"),
        ("RELEASE a", "CZT"),
        ("RELEASE a", "EZE 3B001"),
        ("", "IZE"),
        ("COMMIT", "CZI"),
        ("START TRANSACTION READ ONLY", "CZT"),
        ("COMMIT AND CHAIN", "CZT"),
        ("PAUSE", "EZE 25001"),
        ("ROLLBACK", "CZI"),
        ("SAVEPOINT a", "EZI 25P01"),
        ("BEGIN; SELECT 1", "CTDCZT"),
        ("DISCARD ALL", "EZE 25001"),
        ("ROLLBACK; DISCARD ALL", "CEZI 25001"),
        ("SHOW VERSION; PAUSE", "TDCEZI 25001"),
        ("SET TRANSACTION READ ONLY", "NCZI 25P01"),
        ("BEGIN; SET LOCAL statement_timeout = 1; END", "CCCZI"),
    ] {
        assert_eq!(answered(&mut client, sql).await, expected, "{sql}");
    }
    // In the extended protocol.
    let extended = |sql: &str| [parse("", sql), bind("", "", &[]), execute("", 0), sync()].concat();
    for (sql, expected) in [
        ("BEGIN", "12CZ"),
        ("SELECT 1", "12DCZ"),
        ("SELECT 1/0", "12E22012 Z"),
        ("SELECT 1", "E25P02 Z"),
        ("ROLLBACK", "12CZ"),
        ("SELECT 1", "12DCZ"),
        ("BEGIN; SELECT 1", "E42601 Z"),
    ] {
        client.send(&[extended(sql)]).await;
        assert_eq!(client.told().await, expected, "{sql}");
    }
}

#[tokio::test]
async fn a_portal_of_a_transaction_lives_as_long_as_it() {
    let mut client = Client::new().await;
    client
        .send(&[query("BEGIN"), parse("s", "SHOW HELP"), bind("p", "s", &[])])
        .await;
    client.send(&[execute("p", 2), sync()]).await;
    assert_eq!(client.told().await, "CZ");
    assert_eq!(client.told().await, "12DDsZ");
    client.send(&[execute("p", 1), sync()]).await;
    assert_eq!(client.told().await, "DsZ", "it goes on");
    client.send(&[query("COMMIT"), execute("p", 1), sync()]).await;
    assert_eq!(client.told().await, "CZ");
    assert_eq!(client.told().await, "E34000 Z");
}

#[tokio::test]
async fn statements_that_sql_drops_are_gone_and_make_room() {
    let mut client = Client::new().await;
    let fill = || (0..64).map(|number| parse(&format!("s{number}"), "SHOW HELP"));
    client.send(&[fill().collect::<Vec<_>>().concat(), sync()]).await;
    client.told().await;
    client
        .send(&[query("DEALLOCATE s3"), bind("", "s3", &[]), sync()])
        .await;
    assert_eq!(client.told().await, "CZ");
    assert_eq!(client.told().await, "E26000 Z");
    client
        .send(&[query("DEALLOCATE s3"), parse("again", "SHOW HELP"), sync()])
        .await;
    assert_eq!(client.told().await, "E26000 Z");
    assert_eq!(client.told().await, "1Z");
    client
        .send(&[query("DISCARD ALL"), fill().collect::<Vec<_>>().concat(), sync()])
        .await;
    assert_eq!(client.told().await, "CZ");
    assert_eq!(client.told().await, "1".repeat(64) + "Z");
}

#[tokio::test]
async fn operators_do_not_wait_behind_the_queries_of_readers() {
    let of = |is_operator| {
        Client::of(
            handles(),
            Arc::default(),
            IsOperator::new(move || is_operator),
            CancellationToken::new(),
        )
    };
    let (mut reader, mut operator) = (of(false).await, of(true).await);
    // As another reader's slow query.
    let slow = super::turns::TURNS.next(Some("slow")).await;
    reader.send(&[query("SELECT 1")]).await;
    operator.send(&[query("SELECT 1")]).await;
    assert_eq!(operator.told().await, "TDCZ");
    // It has waited since before the operator asked.
    let nothing = reader.socket.try_read(&mut [0]);
    assert!(nothing.is_err(), "the reader is still waiting: {nothing:?}");
    drop(slow);
    assert_eq!(reader.told().await, "TDCZ");
}

/// A router whose switchover never ends.
fn endless() -> Arc<NothingHeld> {
    let look = SwitchoverStatus::default();
    Arc::new(NothingHeld {
        looks: std::sync::Mutex::new(vec![look; 100_000].into()),
        ..NothingHeld::default()
    })
}

async fn waiting() -> Client {
    let mut client = Client::of(
        handles(),
        endless(),
        IsOperator::new(|| true),
        CancellationToken::new(),
    )
    .await;
    client.send(&[query("SWITCHOVER TO db2")]).await;
    assert_eq!(client.frame().await.unwrap().tag, b'N');
    client
}

#[tokio::test]
async fn a_cancel_request_ends_the_wait_and_the_session_goes_on() {
    let mut client = waiting().await;
    assert!(client.session.session().cancel());
    assert_eq!(client.told().await, "NE57014 Z");
    assert!(!client.session.session().cancel(), "nothing is under way");
    client.send(&[query("SELECT 1")]).await;
    assert_eq!(client.told().await, "TDCZ");
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_wait() {
    assert_eq!(waiting().await.end().await, Cause::ClientGone);
}

#[tokio::test]
async fn a_session_that_is_killed_ends_its_wait() {
    let mut client = waiting().await;
    let session = Arc::clone(client.session.session());
    session.order(&Order::Now(Reason::Killed));
    assert_eq!(client.told().await, "NE57P01 Z");
    assert_eq!(client.end().await, Cause::Ordered(Reason::Killed));
    // Between two answers, too.
    let mut client = Client::new().await;
    client.send(&[query("SELECT 1")]).await;
    assert_eq!(client.told().await, "TDCZ");
    client.session.session().order(&Order::AtBoundary(Reason::Killed));
    assert_eq!(client.end().await, Cause::Ordered(Reason::Killed));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_reads_does_not_keep_a_session() {
    let mut client = Client::new().await;
    let asked = query("SHOW HELP");
    // Until neither side takes more: the console stands in the middle of an answer.
    let mut full = 0;
    while full < 1000 {
        match client.socket.try_write(&asked) {
            Ok(written) if written == asked.len() => full = 0,
            Ok(_) => break,
            Err(_) => full += 1,
        }
        tokio::task::yield_now().await;
    }
    let begun = tokio::time::Instant::now();
    client.session.session().order(&Order::Now(Reason::Killed));
    let end = (&mut client.console).await.unwrap();
    assert_eq!(end.cause, Cause::Ordered(Reason::Killed));
    assert!(end.stream.is_none(), "nothing more can be said");
    assert!(begun.elapsed() < super::WRITE_TIMEOUT);
}
