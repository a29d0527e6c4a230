//! Clients that mean harm, before and after their login: what they do costs nobody else anything.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use super::fake::{Fake, Session};
use super::hand::Raw;
use super::raw::{Client, query, shown};
use crate::cluster::{Cluster, Options, Router, eventually};

/// Any user may raise any SQLSTATE, so an ERROR says nothing of the server. Only its FATAL does.
#[test]
fn a_client_cannot_make_the_router_believe_that_the_leader_is_down() {
    let (cluster, router) = (Cluster::shared(), Router::shared());
    let leader = cluster.leader();
    for code in ["57P01", "57P02", "57P03", "25006"] {
        let forge = format!(
            "DO $$ BEGIN RAISE EXCEPTION 'I am the server' USING ERRCODE = '{code}'; END $$;\n\
             SELECT 'still here'"
        );
        let output = router.psql_output(6432, "", &forge);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("I am the server"), "{text}");
        // Whatever follows from it has been folded in when a later look at every member has.
        let polls =
            router.metric("trunkline_sessions_ended_total{route=\"read-write\",cause=\"client_terminated\"}");
        assert!(polls >= 0.0);
        assert_eq!(router.psql(6432, "SELECT pg_is_in_recovery()"), "f");
    }
    let log = router.log();
    assert!(!log.contains(&format!("{leader} is down")), "{log}");
    assert!(!log.contains("no longer the leader"), "{log}");
}

/// Logins beyond `max_pending_logins` wait in the kernel's queue for a moment; only a siege is
/// refused.
#[test]
fn a_burst_of_logins_waits_for_those_before_it() {
    let router = Router::before(
        Cluster::shared(),
        Options {
            extra: "limits: {max_pending_logins: 2}\n".to_owned(),
            ..Options::default()
        },
    );
    // From addresses of their own: one may not have all places.
    let stuck = [1, 2].map(|last| Raw::connect_from(Ipv4Addr::new(127, 99, 1, last), router.address, 6432));
    eventually("both are logging in", Duration::from_secs(5), || {
        router.metric("trunkline_pending_logins") >= 2.0
    });
    let mut third = TcpStream::connect((router.address, 6432)).unwrap();
    third.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).unwrap();
    third.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut answer = [0];
    let early = third.read(&mut answer);
    assert!(early.is_err(), "answered while there was no room: {answer:?}");
    drop(stuck);
    third.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    third.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"S");
}

/// What comes with the end of a server's login is read with it; a session whose server is out of
/// step from there on must not begin to relay.
#[test]
fn a_server_out_of_step_behind_its_login_is_noticed() {
    let fake = Fake::saying(b"Z\0\0\0\x03", Session::answer_all);
    let router = fake.router("");
    let mut client = Client::new(&router);
    client.send(&query("SELECT 1"));
    let answer = shown(&client.rest());
    assert_eq!(answer.len(), 1, "{answer:?}");
    assert!(answer[0].starts_with('E'), "{answer:?}");
    router.await_log(&["session ended", "protocol violation by the server"]);
}
