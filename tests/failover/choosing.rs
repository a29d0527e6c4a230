//! Targets while roles, tags and members come and go.
#![allow(clippy::format_push_string)]

use std::collections::HashMap;
use std::time::Duration;

use serde_json::json;

use super::cluster::{Cluster, Node, Options, Router, eventually};
use super::session::{Session, spread};
use super::standby::{patch, set_tags};

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn routes_follow_synchronous_roles_tags_and_fall_back_to_the_leader() {
    let cluster = Cluster::start(
        "127.0.43.11",
        14110,
        &["--ttl", "20", "--loop-wait", "1", "--name", "choosing"],
    );
    let routes = [
        "sync: {targets: [sync]}",
        "async: {targets: [async]}",
        "quorum: {targets: [quorum]}",
        "tagged: {targets: [replica], tags: {site: north, kept: true}}",
        "weighed: {targets: [replica]}",
        "fallback: {targets: [replica, leader], read_only_on_leader: unenforced}",
    ];
    let mut listeners = "  - {name: rw, address: \"{address}:6432\", route: read-write}\n  \
                         - {name: ro, address: \"{address}:6433\", route: read-only}\n"
        .to_owned();
    let mut extra =
        "routes:\n  read-write: {targets: [leader]}\n  read-only: {targets: [replica]}\n".to_owned();
    for (port, route) in (6440..).zip(routes) {
        let name = route.split(':').next().unwrap();
        listeners += &format!("  - {{name: {name}, address: \"{{address}}:{port}\", route: {name}}}\n");
        extra += &format!("  {route}\n");
    }
    let options = Options {
        listeners: Some(listeners),
        extra,
        cluster_extra: "weight_tag: share".into(),
        ..Options::default()
    };
    let router = Router::before(&cluster, options);
    let at = router.address;
    let [sync, asynchronous, quorum, tagged, weighed, fallback] = [6440, 6441, 6442, 6443, 6444, 6445];
    let leader = cluster.node(&cluster.leader());
    let replicas: Vec<Node> = cluster.replicas().iter().map(|name| cluster.node(name)).collect();
    let is_served = |port| Session::open(at, port).is_ok();

    // Two asynchronous standbys, then one of them synchronous, then a quorum of both.
    assert_eq!(Session::refused(at, sync).code, "57P03");
    assert_eq!(spread(at, asynchronous, 4).1.len(), 2);
    patch(&cluster, r#"{"synchronous_mode": true}"#);
    eventually("there is a synchronous standby", LIMIT, || is_served(sync));
    let (on_sync, on_async) = (spread(at, sync, 3).1, spread(at, asynchronous, 3).1);
    assert_eq!(
        (on_sync.len(), on_async.len()),
        (1, 1),
        "{on_sync:?} {on_async:?}"
    );
    assert!(on_sync.keys().all(|server| !on_async.contains_key(server)));
    patch(&cluster, r#"{"synchronous_mode": "quorum"}"#);
    eventually("there is a quorum of both", LIMIT, || {
        is_served(quorum) && spread(at, quorum, 4).1.len() == 2
    });
    assert_eq!(Session::refused(at, sync).code, "57P03");
    patch(&cluster, r#"{"synchronous_mode": false}"#);
    eventually("they are asynchronous again", LIMIT, || {
        is_served(asynchronous) && spread(at, asynchronous, 4).1.len() == 2
    });

    // Tags, as a filter and as a weight.
    assert_eq!(Session::refused(at, tagged).code, "57P03");
    let north = &replicas[1];
    set_tags(
        north,
        &format!("{}/{}", cluster.dir(), north.name),
        json!({"site": "north", "kept": "yes", "share": 3}),
    );
    eventually("the tags are heeded", LIMIT, || is_served(tagged));
    assert_eq!(
        spread(at, tagged, 3).1,
        HashMap::from([(north.address.clone(), 3)])
    );
    router.await_log(&[&format!("{} has weight 3", north.name)]);
    eventually("whoever was there before is gone", LIMIT, || {
        let (_held, places) = spread(at, weighed, 8);
        places.get(&north.address) == Some(&6)
    });

    // Without replicas readers go to the leader, and back, but those that are there stay.
    let (_held, places) = spread(at, fallback, 4);
    assert!(!places.contains_key(&leader.address), "{places:?}");
    for replica in &replicas {
        cluster.control("kill", &[&replica.name]);
    }
    let mut on_leader = Session::open(at, fallback).unwrap();
    assert_eq!(on_leader.server(), leader.address);
    assert_eq!(on_leader.query("SHOW default_transaction_read_only"), "on");
    let ready = router.http("/connection/is-ready-ro").unwrap().0;
    assert_eq!(ready, 200, "a read-only route has somebody to serve it");
    assert_eq!(Session::refused(at, weighed).code, "57P03");
    cluster.control("start", &[&replicas[0].name]);
    eventually("the replica serves again", LIMIT, || {
        Session::open(at, fallback).is_ok_and(|mut session| session.server() == replicas[0].address)
    });
    assert_eq!(on_leader.server(), leader.address);
}
