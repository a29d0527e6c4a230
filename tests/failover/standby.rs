//! Which replica serves, and what happens when one stops being a replica.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use serde_json::Value;

use super::cluster::{Cluster, Node, Options, Router, eventually};
use super::session::{Session, spread};

/// Patroni's REST interface, by hand: status.
pub fn rest(node: &Node, method: &str, path: &str, body: &str) -> u16 {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect((node.address.as_str(), 8008)).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

pub fn patch(cluster: &Cluster, body: &str) {
    let node = cluster.node(&cluster.leader());
    assert_eq!(rest(&node, "PATCH", "/config", body), 200);
}

/// Sets or removes a node's `noloadbalance`.
fn tag(node: &Node, directory: &str, noloadbalance: bool) {
    set_tags(
        node,
        directory,
        serde_json::json!({ "noloadbalance": noloadbalance }),
    );
}

/// Gives a node these tags and no others, as its operator would.
pub fn set_tags(node: &Node, directory: &str, tags: Value) {
    let path = format!("{directory}/patroni.yaml");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["tags"] = tags;
    fs::write(&path, config.to_string()).unwrap();
    assert_eq!(rest(node, "POST", "/reload", ""), 202);
}

#[test]
fn replicas_share_sessions_and_stand_in_for_each_other() {
    // A member that is killed stays on Patroni's list for this long; hints are to name it.
    let cluster = Cluster::start(
        "127.0.35.11",
        14050,
        &["--ttl", "120", "--loop-wait", "1", "--name", "standby"],
    );
    let router = Router::before(&cluster, Options::default());
    let at = router.address;
    let replicas: Vec<Node> = cluster.replicas().iter().map(|name| cluster.node(name)).collect();

    // Least connections.
    let (sessions, places) = spread(at, 6433, 20);
    let even: HashMap<String, usize> = replicas.iter().map(|node| (node.address.clone(), 10)).collect();
    assert_eq!(places, even);
    drop(sessions);

    // The tag.
    let tagged = &replicas[0];
    let directory = format!("{}/{}", cluster.dir(), tagged.name);
    tag(tagged, &directory, true);
    eventually("noloadbalance is heeded", Duration::from_secs(20), || {
        let (_sessions, places) = spread(at, 6433, 4);
        !places.contains_key(&tagged.address)
    });
    tag(tagged, &directory, false);
    eventually("the tag's end is heeded", Duration::from_secs(20), || {
        let (_sessions, places) = spread(at, 6433, 4);
        places.len() == 2
    });

    // A router that has not noticed yet that a replica is gone: the first choice refuses, nobody
    // sees it.
    let slow = Options {
        cluster_extra: "probe: {interval: 1m, timeout: 1s}".into(),
        ..Options::default()
    };
    let unaware = Router::before(&cluster, slow);
    let (_held, places) = spread(unaware.address, 6433, 2);
    assert_eq!(places.len(), 2);
    let mut survivor = Session::open(at, 6433).unwrap();
    let mut victim = Session::open(at, 6433).unwrap();
    if survivor.server() == tagged.address {
        std::mem::swap(&mut survivor, &mut victim);
    }
    cluster.control("kill", &[&tagged.name]);
    for router in [&unaware, &router] {
        let (_sessions, places) = spread(router.address, 6433, 10);
        assert_eq!(places, HashMap::from([(replicas[1].address.clone(), 10)]));
    }
    let told = victim.end(Duration::from_secs(5)).ended();
    assert!(["57P01", "08006"].contains(&told.code.as_str()), "{told:?}");
    assert_eq!(survivor.server(), replicas[1].address);

    // None left: readers are told so, writers do not notice.
    cluster.control("kill", &[&replicas[1].name]);
    let mut writer = Session::open(at, 6432).unwrap();
    eventually("no replica", Duration::from_secs(10), || {
        router.http("/connection/is-ready-ro?strict=1").unwrap().0 == 503
    });
    let report = Session::refused(at, 6433);
    assert_eq!(report.code, "57P03", "{report:?}");
    assert!(
        report.hint.contains(&tagged.name) && report.hint.contains(&replicas[1].name),
        "{report:?}"
    );
    assert_eq!(writer.query("SELECT pg_is_in_recovery()"), "f");
    cluster.control("start", &[&tagged.name]);
    eventually("the replica serves again", Duration::from_secs(30), || {
        Session::open(at, 6433).is_ok_and(|mut session| session.server() == tagged.address)
    });
}

#[test]
fn a_standby_promoted_behind_patronis_back_never_gets_writers_and_loses_its_readers() {
    let cluster = Cluster::start(
        "127.0.36.11",
        14060,
        &["--ttl", "20", "--loop-wait", "1", "--name", "rogue"],
    );
    let router = Router::before(&cluster, Options::default());
    let at = router.address;
    let leader = cluster.node(&cluster.leader());
    let rogue = cluster.node(&cluster.replicas()[0]);
    patch(&cluster, r#"{"pause": true}"#);
    let mut writer = Session::open(at, 6432).unwrap();
    let (mut readers, places) = spread(at, 6433, 4);
    assert_eq!(places[&rogue.address], 2);
    rogue.sql("SELECT pg_promote()");
    let mut ended = 0;
    eventually("its readers are told to leave", Duration::from_secs(3), || {
        readers.retain_mut(|session| {
            let answer = session.end(Duration::from_millis(5));
            if answer.closed {
                let told = answer.ended();
                assert_eq!(told.code, "57P01", "{told:?}");
                assert!(told.message.contains("has been promoted"), "{told:?}");
                ended += 1;
            }
            !answer.closed
        });
        readers.len() == 2
    });
    assert_eq!(ended, 2);
    for session in &mut readers {
        assert_ne!(session.server(), rogue.address);
    }
    eventually("Patroni has been asked again", Duration::from_secs(3), || {
        router.http("/connection/is-ready-rw?strict=1").unwrap().0 == 200
    });
    for _ in 0..10 {
        assert_eq!(
            Session::open(at, 6432).unwrap().server(),
            leader.address,
            "read-write goes to the key's holder"
        );
        assert_ne!(
            Session::open(at, 6433).unwrap().server(),
            rogue.address,
            "it is no replica any more"
        );
    }
    assert_eq!(
        writer.server(),
        leader.address,
        "the leader's sessions are not concerned"
    );
    assert_eq!(
        router
            .http(&format!("/node/{}/is-read-write", rogue.name))
            .unwrap()
            .0,
        503
    );
    assert_eq!(
        router
            .http(&format!("/node/{}/is-read-only", rogue.name))
            .unwrap()
            .0,
        503
    );
}
