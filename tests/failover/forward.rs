//! Listeners with `mode: tcp` while the leader changes.

use std::time::Duration;

use super::cluster::{Cluster, Options, Router, eventually};
use super::session::{Session, spread};

#[test]
fn forwarded_connections_end_when_their_server_changes_its_role() {
    let options = ["--ttl", "20", "--loop-wait", "2", "--name", "forward"];
    let cluster = Cluster::start("127.0.45.11", 14160, &options);
    let router = Router::before(
        &cluster,
        Options {
            listeners: Some(
                "  - {name: rw, address: \"{address}:6432\", route: read-write, mode: tcp}\n  \
                 - {name: ro, address: \"{address}:6433\", route: read-only, mode: tcp}\n"
                    .to_owned(),
            ),
            tls: Some(String::new()),
            ..Options::default()
        },
    );
    let at = router.address;
    let old = cluster.node(&cluster.leader());
    let new = cluster.node(&cluster.replicas()[0]);
    let mut idle = Session::open(at, 6432).unwrap();
    let mut in_transaction = Session::open(at, 6432).unwrap();
    in_transaction.query("CREATE TABLE half (n int)");
    in_transaction.query("BEGIN; INSERT INTO half VALUES (1)");
    assert_eq!(idle.server(), old.address);
    let (readers, _) = spread(at, 6433, 4);
    let (mut promoted, mut staying): (Vec<_>, Vec<_>) = readers
        .into_iter()
        .map(|mut session| (session.server(), session))
        .partition(|(server, _)| *server == new.address);
    assert_eq!((promoted.len(), staying.len()), (2, 2), "least connections");

    assert_eq!(
        cluster.control("switchover", &["--to", &new.name]).trim(),
        new.name
    );
    for session in [&mut idle, &mut in_transaction] {
        assert!(session.end(Duration::from_secs(5)).closed);
    }
    for (_, session) in &mut promoted {
        let end = session.end(Duration::from_secs(5));
        assert!(end.closed && end.frames.is_empty(), "without a word: {end:?}");
    }
    router.await_log(&["session ended", "mode=\"tcp\"", "has been promoted"]);
    let mut session = None;
    eventually("the new leader serves", Duration::from_secs(20), || {
        session = Session::open(at, 6432).ok();
        session.is_some()
    });
    let mut session = session.unwrap();
    assert_eq!(session.server(), new.address);
    assert_eq!(session.query("SELECT count(*) FROM half"), "0");
    for (server, session) in &mut staying {
        assert_eq!(session.server(), *server, "readers on the other replica go on");
    }
    // On one timeline, or who is elected next may begin the same one once more, and the two never
    // be told apart.
    cluster.control("wait", &[]);
    // A leader that goes silent, too: nothing comes from it, and its connections end once another
    // one is verified.
    cluster.control("freeze", &[&new.name]);
    let end = session.end(Duration::from_secs(60));
    assert!(end.closed && end.frames.is_empty(), "{end:?}");
    router.await_log(&["session ended", "mode=\"tcp\"", "is the leader now, no longer"]);
    assert_ne!(Session::open(at, 6432).unwrap().server(), new.address);
    cluster.control("thaw", &[&new.name]);
    cluster.control("wait", &[]);

    // A dead replica is not waited for: the next candidate is tried with the same client.
    eventually("both replicas serve", Duration::from_secs(30), || {
        spread(at, 6433, 4).1.len() == 2
    });
    let leader = cluster.leader();
    let dead = cluster
        .replicas()
        .into_iter()
        .find(|name| *name != leader)
        .unwrap();
    cluster.control("kill", &[&dead]);
    let (_sessions, places) = spread(at, 6433, 6);
    assert_eq!(places.values().sum::<usize>(), 6);
    assert!(!places.contains_key(&cluster.node(&dead).address), "{places:?}");
}
