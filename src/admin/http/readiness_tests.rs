//! Whether a balancer may send clients: `/connection/is-ready` and its relatives.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::super::handles::{Handles, Readiness};
use super::answer::REASON;
use super::fixture::*;
use super::tests::{beside, get, routes};
use crate::cluster::snapshot::*;
use crate::config::{AgentSubject, LocalMember};

#[tokio::test]
async fn connection_readiness() {
    let both = led(vec![primary("p"), member("m")]);
    let only_leader = led(vec![primary("p")]);
    let only_replica = leaderless(vec![member("m")], NoLeader::NotNamed);
    let nothing = leaderless(vec![], NoLeader::SourceUnreachable);
    for (snapshot, ready, rw, ro) in [
        (&both, 200, 200, 200),
        (&only_leader, 200, 200, 503),
        (&only_replica, 200, 503, 200),
        (&nothing, 503, 503, 503),
    ] {
        let router = beside(snapshot.clone(), "m");
        for (path, status) in [
            ("is-live", 200),
            ("is-ready", ready),
            ("is-ready-rw", rw),
            ("is-ready-ro", ro),
        ] {
            let got = get(&router, &format!("/connection/{path}")).await;
            assert_eq!(got.status, status, "{path}");
            assert_eq!(got.body, if status == 200 { "true" } else { "false" });
        }
    }
    let got = get(&beside(nothing.clone(), "m"), "/connection/is-ready-rw").await;
    assert_eq!(
        got.reason(),
        "no leader: no Patroni endpoint gives a usable answer"
    );
}

#[tokio::test]
async fn connection_readiness_follows_the_process_and_the_listeners() {
    let mut handles = handles(vec![view(
        led(vec![primary("p"), member("m")]),
        LocalMember::None,
    )]);
    handles.readiness = Arc::new(Readiness::new());
    let status = async |handles: &Handles, path: &str| {
        get(&routes(handles.clone()), &format!("/connection/{path}"))
            .await
            .status
            .as_u16()
    };
    assert_eq!(status(&handles, "is-ready").await, 503, "starting");
    assert_eq!(status(&handles, "is-live").await, 200);
    handles.readiness.accepting();
    assert_eq!(status(&handles, "is-ready").await, 200);
    handles.readiness.drain(true);
    let drained = get(&routes(handles.clone()), "/connection/is-ready").await;
    assert_eq!(
        (drained.status.as_u16(), drained.reason()),
        (503, "the router is drained")
    );
    assert_eq!(drained.headers["x-trunkline-router"], "drain");
    handles.readiness.drain(false);
    assert_eq!(status(&handles, "is-ready").await, 200);
    handles.readiness.leaving();
    for path in ["is-ready", "is-ready-rw", "is-ready-ro"] {
        assert_eq!(status(&handles, path).await, 503, "leaving");
    }
    // About the server, to which somebody else sends sessions: it is as fit as before.
    let node = get(&routes(handles.clone()), "/node/p/is-read-write").await;
    assert_eq!(node.status, 200);
    assert_eq!(node.headers["x-trunkline-router"], "stopping");
    handles.readiness.draining();
    for path in ["is-ready", "is-ready-rw", "is-ready-ro"] {
        assert_eq!(status(&handles, path).await, 503, "draining");
    }
    assert_eq!(status(&handles, "is-live").await, 200);

    handles.readiness = Arc::new(Readiness::new());
    handles.readiness.accepting();
    handles.clusters[0].read_write.clear();
    assert_eq!(status(&handles, "is-ready-rw").await, 503, "no such listener");
    assert_eq!(status(&handles, "is-ready").await, 200);
}

#[tokio::test]
async fn a_disabled_route_is_not_ready_and_says_nothing_about_servers() {
    let snapshot = led(vec![primary("p"), member("m")]);
    let handles = handles(vec![view(snapshot, LocalMember::None)]);
    let router = routes(handles.clone());
    let agent = || super::node::agent(&app(handles.clone()), AgentSubject::Router).to_string();
    for (disabled, ready, rw, ro, line) in [
        (&[][..], 200, 200, 200, "up ready 100%\n"),
        (&["read-write"], 200, 503, 200, "up ready 100%\n"),
        (&["read-only"], 200, 200, 503, "up ready 100%\n"),
        (&["read-only", "read-write"], 503, 503, 503, "up drain\n"),
    ] {
        let names = disabled.iter().map(|name: &&str| (*name).to_owned());
        handles.disabled_routes.replace(names.collect());
        for (path, status) in [
            ("/connection/is-ready", ready),
            ("/connection/is-ready-rw", rw),
            ("/connection/is-ready-ro", ro),
            ("/connection/is-live", 200),
            ("/node/p/is-read-write", 200),
            ("/node/m/is-read-only", 200),
        ] {
            assert_eq!(get(&router, path).await.status, status, "{disabled:?}: {path}");
        }
        assert_eq!(agent(), line, "{disabled:?}");
    }
    let got = get(&router, "/connection/is-ready-rw").await;
    assert_eq!(got.reason(), "the route read-write is disabled");
}

#[tokio::test]
async fn a_router_that_hears_nothing_of_the_cluster_is_not_ready() {
    let mut snapshot = led(vec![primary("p"), member("m")]);
    snapshot.hears = false;
    let mut view = view(snapshot, LocalMember::None);
    view.holds = Arc::new(|_| true);
    let handles = handles(vec![view]);
    let router = routes(handles.clone());
    for path in ["is-ready", "is-ready-rw", "is-ready-ro"] {
        let got = get(&router, &format!("/connection/{path}")).await;
        assert_eq!(got.status, 503, "{path}");
        assert!(got.reason().contains("hears nothing of the cluster"), "{path}");
    }
    assert_eq!(get(&router, "/connection/is-live").await.status, 200);
}

#[tokio::test]
async fn while_clients_are_held_read_write_stays_ready_unless_asked_strictly() {
    let mut view = view(
        leaderless(vec![member("m")], NoLeader::NotNamed),
        LocalMember::None,
    );
    view.holds = Arc::new(|_| true);
    let router = routes(handles(vec![view]));
    for (query, status) in [
        ("", 200),
        ("?strict=0", 200),
        ("?strict=1", 503),
        ("?strict", 503),
        ("?strict=true", 503),
    ] {
        assert_eq!(
            get(&router, &format!("/connection/is-ready-rw{query}"))
                .await
                .status,
            status,
            "{query}"
        );
    }
}

#[tokio::test]
async fn a_leader_that_is_about_to_be_stopped_is_named_with_who_ordered_it() {
    let mut leader = primary("db1");
    leader.leaving = Some(Arc::new(StopOrder {
        is_switchover: true,
        by: Some(OrderedBy::new("router2", "HTTP from 10.0.0.9:1")),
        since: tokio::time::Instant::now(),
        ends: None,
    }));
    let mut view = view(led(vec![leader]), LocalMember::None);
    view.holds = Arc::new(|_| true);
    let router = routes(handles(vec![view]));
    let got = get(&router, "/connection/is-ready-rw?strict=1").await;
    assert_eq!(
        got.headers.get(REASON).and_then(|reason| reason.to_str().ok()),
        Some("db1 is about to be stopped: ordered by switchover of router2; clients are held")
    );
    assert_eq!(get(&router, "/connection/is-ready-rw").await.status, 200);
}
