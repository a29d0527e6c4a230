//! Pauses and switchovers: who may order them, and what the client is told.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::super::holding::SwitchoverStatus;
use super::super::http::fixture::{self, NothingHeld};
use super::tests::{Client, bind, execute, framed, parse, query, sync};
use crate::session::end::{Cause, Reason};
use crate::wire::frame::ErrorFields;

#[tokio::test]
async fn resume_says_how_many_sessions_go_on() {
    for (clients, expected) in [
        (0, "read-write: nobody waited"),
        (1, "read-write: 1 session goes on"),
        (2, "read-write: 2 sessions go on"),
    ] {
        let holding = NothingHeld {
            held: Some(fixture::paused("read-write", clients)),
            ..NothingHeld::default()
        };
        let mut client = Client::before(Arc::new(holding), true, CancellationToken::new()).await;
        for sql in ["RESUME", "RESUME read-write"] {
            client.send(&[query(sql)]).await;
            let frames = client.until_ready().await;
            let notice = frames.iter().find(|frame| frame.tag == b'N').unwrap();
            assert_eq!(
                ErrorFields::parse(&notice.body).unwrap().message,
                expected,
                "{sql}"
            );
        }
    }
}

#[tokio::test]
async fn orders_are_for_operators_and_reach_the_router() {
    let holding = Arc::new(NothingHeld::default());
    let mut reader = Client::before(Arc::clone(&holding), false, CancellationToken::new()).await;
    for sql in [
        "PAUSE",
        "RESUME read-write",
        "SWITCHOVER",
        "EXPLAIN SWITCHOVER",
        "ABORT SWITCHOVER",
    ] {
        reader.send(&[query(sql)]).await;
        assert_eq!(reader.told().await, "E42501 Z", "{sql}");
    }
    assert!(holding.told.lock().unwrap().is_empty());
    reader.send(&[query("SHOW SWITCHOVER")]).await;
    assert_eq!(reader.told().await, "TCZ");

    let mut client = Client::before(Arc::clone(&holding), true, CancellationToken::new()).await;
    let told = |sql: &str| {
        let known = holding.told.lock().unwrap().drain(..).collect::<Vec<_>>();
        assert!(known.len() == 1, "{sql}: {known:?}");
        known.into_iter().next().unwrap()
    };
    for sql in ["PAUSE", "PAUSE \"read-write\""] {
        client.send(&[query(sql)]).await;
        assert_eq!(client.told().await, "NCZ");
        assert!(told(sql).starts_with("pause read-write PauseRequest { all_peers: false"));
    }
    client.send(&[query("PAUSE nowhere")]).await;
    assert_eq!(client.told().await, "E42704 Z");
    // The router refuses; and nothing is paused.
    client.send(&[query("RESUME read-only"), query("RESUME")]).await;
    assert_eq!(client.told().await, "E55000 Z");
    assert_eq!(told("RESUME"), "unpause read-only");
    assert_eq!(client.told().await, "NCZ");
    client.send(&[query("ABORT SWITCHOVER")]).await;
    assert_eq!(client.told().await, "E55000 Z");
    // In the extended protocol, too: the rows are described beforehand.
    let plan = [
        parse("", "EXPLAIN SWITCHOVER TO db2"),
        bind("", "", &[]),
        framed(b'D', b"P\0"),
        execute("", 0),
        sync(),
    ];
    client.send(&plan).await;
    assert_eq!(client.told().await, "12TDDCZ");
    let pause = [
        parse("", "PAUSE"),
        bind("", "", &[]),
        framed(b'D', b"P\0"),
        execute("", 0),
        sync(),
    ];
    client.send(&pause).await;
    assert_eq!(client.told().await, "12nNCZ");
}

#[tokio::test]
async fn a_pause_with_open_transactions_is_an_error() {
    let holding = Arc::new(NothingHeld {
        open: 2,
        ..NothingHeld::default()
    });
    let mut client = Client::before(holding, true, CancellationToken::new()).await;
    client.send(&[query("PAUSE")]).await;
    assert_eq!(client.told().await, "E55006 Z");
}

#[tokio::test(start_paused = true)]
async fn a_switchover_shows_its_steps_and_how_it_ended() {
    let look = |steps: &[&str], is_over: bool, has_succeeded: bool| SwitchoverStatus {
        steps: steps.iter().map(|step| (*step).to_owned()).collect(),
        is_over,
        has_succeeded,
        ..SwitchoverStatus::default()
    };
    for (has_succeeded, expected) in [(true, "NNNNCZ"), (false, "NNNNE55000 Z")] {
        let looks = [
            look(&[], false, false),
            look(&["one"], false, false),
            look(&["one", "two"], true, has_succeeded),
        ];
        let holding = Arc::new(NothingHeld {
            looks: std::sync::Mutex::new(looks.into()),
            ..NothingHeld::default()
        });
        let mut client = Client::before(Arc::clone(&holding), true, CancellationToken::new()).await;
        client.send(&[query("SWITCHOVER TO db2")]).await;
        assert_eq!(client.told().await, expected, "two lines of the plan, two steps");
        let told = holding.told.lock().unwrap().join(" ");
        assert!(told.contains("cluster: \"main\", to: Some(\"db2\")"), "{told}");
    }
    // The end of the process does not wait for it.
    let looks = vec![look(&[], false, false); 1000];
    let holding = Arc::new(NothingHeld {
        looks: std::sync::Mutex::new(looks.into()),
        ..NothingHeld::default()
    });
    let closing = CancellationToken::new();
    let mut client = Client::before(holding, true, closing.clone()).await;
    client.send(&[query("SWITCHOVER TO db2")]).await;
    assert_eq!(client.frame().await.unwrap().tag, b'N');
    closing.cancel();
    assert_eq!(client.told().await, "NE57P01 Z");
    assert_eq!(client.end().await, Cause::Ordered(Reason::Shutdown));
}
