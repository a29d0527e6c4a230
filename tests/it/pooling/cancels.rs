//! Cancel requests for sessions that share server connections.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::{FIRST_PORT, cheapen, codes, login, router, seen};
use crate::cancel::cancel;
use crate::cluster::eventually;
use crate::cluster::postgres::{Options, Postgres};
use crate::raw::{How, PATIENCE, at, extended, flush, query, shown, terminate};

#[test]
fn a_session_that_waits_is_cancelled_and_one_that_does_nothing_is_not() {
    let server = Postgres::start(&Options::default());
    let router = router(&server, &["max_connections: 1"], "20s");
    let address = at(&router, FIRST_PORT);
    let mut holder = login(&router, FIRST_PORT, "app", "app");
    let mut client = login(&router, FIRST_PORT, "app", "app");
    for _ in 0..20 {
        // On no server: nothing to cancel, neither now nor in the next statement.
        cancel(address, How::Plain, client.process_id, &client.key);
        assert_eq!(client.value("SELECT 1"), "1");
    }
    holder.ask("BEGIN");
    for _ in 0..20 {
        client.send(&query("SELECT 1"));
        // The cancel may come before the statement.
        eventually("the wait is cancelled", PATIENCE, || {
            cancel(address, How::Plain, client.process_id, &client.key);
            let socket = client.stream.socket();
            socket.set_nonblocking(true).unwrap();
            let is_answered = socket.peek(&mut [0]).is_ok();
            socket.set_nonblocking(false).unwrap();
            is_answered
        });
        assert_eq!(shown(&client.ready()), ["E57014 ERROR", "ZI"]);
    }
    // The holder's transaction has not noticed.
    assert_eq!(holder.value("SELECT 1"), "1");
    assert_eq!(shown(&holder.ask("COMMIT")), ["CCOMMIT", "ZI"]);
    assert_eq!(client.value("SELECT 1"), "1");
}

#[test]
fn a_cancel_hits_the_statement_of_its_own_session_only() {
    race(2_000);
}

#[test]
#[ignore = "takes minutes"]
fn twenty_thousand_cancels_hit_the_statements_of_their_own_session_only() {
    race(20_000);
}

/// A cancel that is late hits nothing that the session, or another one on the same connection, runs
/// next. Each race waits for nothing: a session that is read late makes this take minutes.
fn race(races: usize) {
    let server = Postgres::start(&Options::default());
    cheapen(&server);
    let router = router(&server, &["max_connections: 2"], "20s");
    let done = AtomicBool::new(false);
    let hits = thread::scope(|scope| {
        // Nobody cancels these.
        let others: Vec<_> = (0..3)
            .map(|_| {
                let (router, done) = (&router, &done);
                scope.spawn(move || {
                    let mut client = login(router, FIRST_PORT, "app", "app");
                    let mut answers = 0;
                    while !done.load(Ordering::Relaxed) {
                        let answer = seen(&client.ask("SELECT count(*) FROM generate_series(1, 300)"));
                        assert_eq!(answer, "300", "after {answers}");
                        let set = client.ask(&format!("SET work_mem = '{}kB'", 64 + answers % 100));
                        assert_eq!(codes(&set), Vec::<String>::new());
                        answers += 1;
                    }
                })
            })
            .collect();
        let mut client = login(&router, FIRST_PORT, "app", "app");
        let mut hits = 0;
        for race in 0..races {
            let (process_id, key) = (client.process_id, client.key.clone());
            let address = at(&router, FIRST_PORT);
            let last = race % 50 * 40;
            client.send(&query(&format!(
                "SELECT count(*) FROM generate_series(1, {last})"
            )));
            cancel(address, How::Plain, process_id, &key);
            let answer = seen(&client.ready());
            if answer == "57014" {
                hits += 1;
            } else {
                assert_eq!(answer, last.to_string(), "race {race}");
            }
            // The cancel is over, so it hits nothing that comes later.
            assert_eq!(seen(&client.ask("SELECT 7")), "7", "race {race}");
            if others.iter().any(thread::ScopedJoinHandle::is_finished) {
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
        for other in others {
            other.join().unwrap();
        }
        hits
    });
    eprintln!("{hits} of {races} cancels came in time");
    assert!(hits > 0, "some of them come in time");
}

/// What a session left under way is cancelled before the next one has its connection, not while the
/// next one uses it.
#[test]
fn a_batch_that_was_left_open_costs_the_next_session_no_statement() {
    let server = Postgres::start(&Options::default());
    cheapen(&server);
    let router = router(&server, &["max_connections: 1"], "20s");
    let mut next = login(&router, FIRST_PORT, "app", "app");
    for round in 0..60 {
        let mut leaves = login(&router, FIRST_PORT, "app", "app");
        leaves.send(&[extended("SELECT 1"), flush()].concat());
        while leaves.frame().tag != b'C' {}
        if round % 2 == 0 {
            leaves.send(&terminate());
        }
        drop(leaves);
        assert_eq!(
            seen(&next.ask("SELECT 7 FROM pg_sleep(0.03)")),
            "7",
            "round {round}"
        );
    }
    let connections = "SELECT count(DISTINCT backend_start) FROM pg_stat_activity WHERE usename = 'app'";
    assert_eq!(server.sql(connections), "1");
}
