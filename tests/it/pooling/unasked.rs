//! Servers that do what no real one does, on connections that sessions share.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::fake::{Fake, Session, one_row};
use crate::raw::{Client, Login, at, framed, query, shown};

const ROUTES: &str = "routes:
  read-write: {targets: [leader], queue_timeout: 20s, pool: {mode: transaction, max_connections: 1}}
  read-only: {targets: [replica]}
";

fn login(router: &crate::cluster::Router) -> Client {
    let login = Login {
        user: "app",
        password: "app",
        ..Login::default()
    };
    Client::login(at(router, 6432), login)
}

/// Answers the first queries with `first`, and then nothing; the connection stays open. What is
/// opened later is as it should be.
fn misbehaves_once(first: Vec<Vec<u8>>) -> Fake {
    let count = Arc::new(AtomicUsize::new(0));
    Fake::start(move |mut session: Session| {
        let is_first = count.fetch_add(1, Ordering::Relaxed) == 0;
        let first = first.clone();
        async move {
            if !is_first {
                return session.answer_all().await;
            }
            for answer in first {
                while !matches!(session.frame().await, Some((b'Q', _)) | None) {}
                session.send(&answer).await;
            }
            std::future::pending::<()>().await;
            drop(session);
        }
    })
}

/// The answer to BEGIN.
fn begun() -> Vec<u8> {
    [framed(b'C', b"BEGIN\0"), framed(b'Z', b"T")].concat()
}

#[test]
fn a_server_that_ends_a_session_and_not_its_connection_keeps_no_place() {
    let fatal = framed(b'E', b"SFATAL\0VFATAL\0C25P03\0Mthe end\0\0");
    let fake = misbehaves_once(vec![begun(), fatal]);
    let router = fake.router(ROUTES);
    let mut client = login(&router);
    assert_eq!(shown(&client.ask("BEGIN")), ["CBEGIN", "ZT"]);
    client.send(&query("SELECT 1"));
    let rest = client.rest();
    assert_eq!(shown(&rest), ["E25P03 FATAL"], "and its end");
    // There is one place.
    assert_eq!(login(&router).value("SELECT 1"), "1");
}

#[test]
fn a_session_goes_on_when_its_server_says_more_than_it_was_asked() {
    let error = framed(b'E', b"SERROR\0VERROR\0CXX000\0Msomething\0\0");
    let fake = misbehaves_once(vec![[one_row("1"), error].concat()]);
    let router = fake.router(ROUTES);
    let mut client = login(&router);
    for _ in 0..3 {
        assert_eq!(client.value("SELECT 1"), "1");
    }
    let discarded = "trunkline_pool_discarded_total{route=\"read-write\",reason=\"unquiet\"}";
    let closed = "trunkline_pool_closed_total{route=\"read-write\",reason=\"unquiet\"}";
    let count = |name| router.metric(name);
    assert_eq!(count(discarded) + count(closed), 1.0);
}

#[test]
fn a_session_in_a_transaction_ends_when_its_server_is_out_of_step() {
    let error = framed(b'E', b"SERROR\0VERROR\0CXX000\0Msomething\0\0");
    let fake = misbehaves_once(vec![[begun(), error].concat()]);
    let router = fake.router(ROUTES);
    let mut client = login(&router);
    client.send(&query("BEGIN"));
    let rest = client.rest();
    assert_eq!(shown(&rest), ["CBEGIN", "ZT", "E08P01 FATAL"]);
    assert_eq!(login(&router).value("SELECT 1"), "1");
    assert!(router.log().contains("an error (XX000) that answers nothing"));
}
