//! Orders that hold clients, and the process that runs them: it is replaced, or stopped. And
//! clients that leave while they are held.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::{FakeRest, POOLED, TOKEN, answer, send, session, trunkline};
use crate::cluster::postgres::{Options as ServerOptions, Postgres};
use crate::cluster::{Cluster, Options, Router, eventually, fresh_address, secret};
use crate::hand::Raw;
use crate::handover::NewProcess;

/// Only the process that was given an order can go on with it.
#[test]
fn no_process_is_replaced_while_an_order_of_its_own_holds_clients() {
    let server = Postgres::start(&ServerOptions::default());
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        clusters: Some(format!("{}    local_member: s1\n", server.yaml())),
        address: Some(fresh_address()),
        http: format!("token_file: {}", secret(dir.path(), "token", TOKEN).display()),
        extra: format!("control_socket: {}/control\n{POOLED}", dir.path().display()),
        ..Options::default()
    };
    let router = Router::launch(None, options);
    router.await_read_write();
    let mut client = session(&router);
    let said = trunkline(&router, &["before-stop", "--grace", "300ms"]);
    let errors = String::from_utf8(said.stderr).unwrap();
    assert!(errors.contains("no transaction is open"), "{errors}");
    let said = trunkline(&router, &["upgrade"]);
    let errors = String::from_utf8(said.stderr).unwrap();
    assert!(
        !said.status.success()
            && errors
                .contains("the clients of s1 are held, as its server is about to be stopped, and only this")
            && errors.contains(" s at most\nnot upgraded: process "),
        "{errors}"
    );
    send(&mut client, "SELECT 1");
    server.stop();
    server.start_again();
    assert_eq!(answer(&mut client), "TDCZ", "{}", router.log());
    eventually("the order is over", Duration::from_secs(40), || {
        let said = trunkline(&router, &["upgrade"]);
        let text = String::from_utf8(said.stdout).unwrap();
        let new = text.split_whitespace().nth(2).and_then(|word| word.parse().ok());
        new.map(NewProcess).is_some()
    });
}

#[test]
fn a_router_that_is_stopped_undoes_a_switchover_or_goes_on_with_it() {
    let cluster = Cluster::shared();
    let fake = FakeRest::start(cluster);
    let dir = tempfile::tempdir().unwrap();
    let clusters = cluster.yaml(dir.path());
    let (before, behind) = clusters.split_once("endpoints: [").unwrap();
    let (_, behind) = behind.split_once(']').unwrap();
    for is_asked in [false, true] {
        let options = Options {
            clusters: Some(format!("{before}endpoints: [\"{}\"]{behind}", fake.url)),
            http: format!("token_file: {}", secret(dir.path(), "token", TOKEN).display()),
            extra: format!("control_socket: {}/control\n{POOLED}", dir.path().display()),
            ..Options::default()
        };
        let mut router = Router::before(cluster, options);
        let mut client = session(&router);
        if !is_asked {
            send(&mut client, "BEGIN");
            assert_eq!(answer(&mut client), "CZ");
        }
        // Nobody knows whether Patroni switches over.
        fake.set(Some(503));
        let command = Command::new(env!("CARGO_BIN_EXE_trunkline"))
            .args(["switchover", "--yes", "--grace", "12s", "-c"])
            .arg(router.dir().join("trunkline.yaml"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        eventually("it has begun", Duration::from_secs(20), || {
            let (_, members) = router.http("/api/v1/members").unwrap();
            members.contains("about to be stopped") && fake.asked.lock().unwrap().is_empty() != is_asked
        });
        let said = trunkline(&router, &["upgrade"]);
        let errors = String::from_utf8(said.stderr).unwrap();
        assert!(
            !said.status.success()
                && errors.contains("a switchover of cluster main runs, and only this process"),
            "{errors}"
        );
        router.signal("TERM");
        let said = command.wait_with_output().unwrap();
        let text = String::from_utf8(said.stdout).unwrap();
        let log = router.log();
        if is_asked {
            assert!(text.contains(" is still the leader after "), "{text}");
            let waits = "a switchover of cluster main runs: this process ends when that is over, in ";
            assert!(log.contains(waits), "{log}");
        } else {
            let undone = "nothing was changed: the router is shutting down";
            assert!(text.contains(undone) && log.contains(undone), "{text}\n{log}");
            assert!(fake.asked.lock().unwrap().is_empty());
        }
        assert!(!said.status.success());
        drop(client);
        assert_eq!(router.await_exit(Duration::from_secs(20)), 0);
    }
}

/// The end of its connection is behind what the router has not read yet.
#[test]
fn a_client_that_leaves_behind_a_long_request_is_not_served() {
    let server = Postgres::start(&ServerOptions::default());
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        clusters: Some(server.yaml()),
        address: Some(fresh_address()),
        http: format!("token_file: {}", secret(dir.path(), "token", TOKEN).display()),
        extra: POOLED.to_owned(),
        ..Options::default()
    };
    let router = Router::launch(None, options);
    router.await_read_write();
    let mut observer = session(&router);
    for sql in [
        "CREATE TABLE left_behind (length int)",
        "INSERT INTO left_behind VALUES (0)",
    ] {
        send(&mut observer, sql);
        assert_eq!(answer(&mut observer), "CZ");
    }
    let lengths = [1_000, 70_000, 200_000, 1_000_000];
    let mut clients: Vec<Raw> = lengths.iter().map(|_| session(&router)).collect();
    assert!(trunkline(&router, &["pause", "read-write"]).status.success());
    std::thread::scope(|scope| {
        let sending: Vec<_> = lengths
            .iter()
            .zip(&mut clients)
            .map(|(length, client)| {
                scope.spawn(move || {
                    send(
                        client,
                        &format!(
                            "INSERT INTO left_behind VALUES (length('{}'))",
                            "x".repeat(*length)
                        ),
                    );
                    client.half_close();
                })
            })
            .collect();
        // What the kernels take may be less than the longest: its client waits, too.
        eventually("three have sent everything", Duration::from_secs(20), || {
            sending.iter().filter(|client| client.is_finished()).count() >= 3
        });
        assert!(trunkline(&router, &["unpause", "read-write"]).status.success());
    });
    eventually("they are gone", Duration::from_secs(20), || {
        let (_, sessions) = router.http("/api/v1/sessions").unwrap();
        sessions.matches("\"phase\":").count() == 1
    });
    let counted =
        observer.value("SELECT string_agg(length::text, ' ') FROM left_behind WHERE length < 1000000");
    assert_eq!(counted, "0");
}
