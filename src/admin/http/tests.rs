//! Every path against hand-built snapshots; what Patroni answers is from its documentation, chapter
//! "Patroni REST API".
#![allow(clippy::unwrap_used)]

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Method, Request, StatusCode, header};
use axum::{Extension, Router};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt;

use super::super::handles::{Handles, Readiness};
use super::super::live::Live;
use super::super::local::Local;
use super::answer::{MEMBER, REASON};
use super::app::App;
use super::fixture::*;
use super::guard::{Caller, Guard};
use super::node::stable_id;
use super::patroni::{self, bytes};
use super::router::router;
use crate::cluster::snapshot::*;
use crate::config::{AgentSubject, LocalMember};

struct Got {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    fn reason(&self) -> &str {
        self.headers
            .get(REASON)
            .map_or("", |value| value.to_str().unwrap())
    }
}

async fn ask(router: &Router, method: Method, uri: &str) -> Got {
    let request = Request::builder()
        .method(method)
        .uri(uri)
        .body(Body::empty())
        .unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let body = String::from_utf8(to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap();
    Got {
        status,
        headers,
        body,
    }
}

async fn get(router: &Router, uri: &str) -> Got {
    ask(router, Method::GET, uri).await
}

fn routes(handles: Handles) -> Router {
    router(app(handles))
}

/// One cluster, seen from beside `local`.
fn beside(snapshot: Snapshot, local: &str) -> Router {
    routes(handles(vec![view(snapshot, named(local))]))
}

fn with(mut member: Member, change: impl FnOnce(&mut Member)) -> Member {
    change(&mut member);
    member
}

const PATRONI: [&str; 19] = [
    "/",
    "/primary",
    "/master",
    "/read-write",
    "/leader",
    "/standby-leader",
    "/standby_leader",
    "/replica",
    "/read-only",
    "/sync",
    "/synchronous",
    "/quorum",
    "/async",
    "/asynchronous",
    "/read-only-sync",
    "/read-only-synchronous",
    "/read-only-quorum",
    "/health",
    "/readiness",
];

const PRIMARY: &[&str] = &["/", "/primary", "/master", "/read-write"];

/// Which of Patroni's paths are 200 for the member `m` of the snapshot.
async fn yes(snapshot: Snapshot) -> Vec<&'static str> {
    let router = beside(snapshot, "m");
    let mut yes = Vec::new();
    for path in PATRONI {
        let got = get(&router, path).await;
        assert_eq!(got.headers[header::CONTENT_TYPE], "application/json");
        assert_eq!(got.json()["patroni"], json!({"name": "m", "scope": "main"}));
        match got.status {
            StatusCode::OK => yes.push(path),
            StatusCode::SERVICE_UNAVAILABLE => {
                assert!(!got.reason().is_empty(), "{path}");
            }
            other => panic!("{path}: {other}"),
        }
    }
    yes
}

fn any_of(groups: &[&[&'static str]]) -> Vec<&'static str> {
    PATRONI
        .into_iter()
        .filter(|path| groups.iter().any(|group| group.contains(path)))
        .collect()
}

#[expect(clippy::too_many_lines, reason = "a table of paths and statuses")]
#[tokio::test]
async fn the_table_of_patroni() {
    let leading = &[
        "/leader",
        "/read-only",
        "/read-only-sync",
        "/read-only-synchronous",
        "/read-only-quorum",
        "/readiness",
    ];
    let health: &[&str] = &["/health"];
    let replica: &[&str] = &["/replica", "/read-only", "/readiness", "/health"];
    let asynchronous: &[&str] = &["/async", "/asynchronous"];
    let other = || primary("p");
    let role = |role: Role| with(member("m"), |m| m.role = role);

    let table: Vec<(&str, Snapshot, Vec<&str>)> = vec![
        (
            "the leader",
            led(vec![primary("m"), member("r")]),
            any_of(&[PRIMARY, leading, health]),
        ),
        (
            "a replica",
            led(vec![other(), member("m")]),
            any_of(&[replica, asynchronous]),
        ),
        (
            "a synchronous standby",
            led(vec![other(), role(Role::SyncStandby)]),
            any_of(&[
                replica,
                &[
                    "/sync",
                    "/synchronous",
                    "/read-only-sync",
                    "/read-only-synchronous",
                ],
            ]),
        ),
        (
            "a quorum standby",
            led(vec![other(), role(Role::QuorumStandby)]),
            any_of(&[replica, &["/quorum", "/read-only-quorum"]]),
        ),
        (
            "the leader of a standby cluster",
            leaderless(
                vec![with(member("m"), |m| {
                    (m.role, m.state) = (Role::StandbyLeader, "running".into());
                })],
                NoLeader::StandbyCluster(MemberName::new("m")),
            ),
            any_of(&[&["/standby-leader", "/standby_leader"], leading, health]),
        ),
        (
            "a replica of Patroni 3.0, which calls it running",
            led(vec![other(), with(member("m"), |m| m.state = "running".into())]),
            any_of(&[replica, asynchronous]),
        ),
        (
            "a replica that restores from an archive",
            led(vec![
                other(),
                with(member("m"), |m| {
                    m.state = "in archive recovery".into();
                    facts(m).streaming = false;
                }),
            ]),
            any_of(&[replica, asynchronous]),
        ),
        (
            "a replica that neither streams nor restores",
            led(vec![
                other(),
                with(member("m"), |m| {
                    m.state = "running".into();
                    facts(m).streaming = false;
                }),
            ]),
            any_of(&[&["/replica", "/read-only", "/health"], asynchronous]),
        ),
        (
            "a replica kept out of balancing",
            led(vec![
                other(),
                with(member("m"), |m| {
                    m.tags.insert("noloadbalance".into(), true.into());
                }),
            ]),
            any_of(&[health, &["/readiness"]]),
        ),
        (
            "a leader kept out of balancing",
            led(vec![with(primary("m"), |m| {
                m.tags.insert("noloadbalance".into(), true.into());
            })]),
            any_of(&[PRIMARY, leading, health]),
        ),
        (
            "a holder of the leader key that is not writable yet",
            leaderless(
                vec![with(member("m"), |m| m.role = Role::Leader)],
                NoLeader::NotWritable(MemberName::new("m")),
            ),
            any_of(&[health]),
        ),
        (
            "a holder of the leader key that is dead",
            leaderless(
                vec![down(primary("m"))],
                NoLeader::NotReachable(MemberName::new("m")),
            ),
            vec![],
        ),
        (
            "a leader that went down after the snapshot's verdict",
            led(vec![down(primary("m"))]),
            vec![],
        ),
        ("a dead replica", led(vec![other(), down(member("m"))]), vec![]),
        (
            "a replica while there is no leader",
            leaderless(vec![member("m")], NoLeader::NotNamed),
            any_of(&[replica, asynchronous]),
        ),
        (
            "a replica that was promoted behind the source's back",
            led(vec![other(), with(member("m"), |m| facts(m).in_recovery = false)]),
            any_of(&[health]),
        ),
        (
            "a member of another cluster",
            led(vec![
                other(),
                with(member("m"), |m| m.identity = Identity::Foreign),
            ]),
            any_of(&[health]),
        ),
        (
            "a replica in maintenance",
            led(vec![other(), with(member("m"), |m| m.admin = AdminState::Maint)]),
            any_of(&[health]),
        ),
        (
            "a leader that is being drained",
            led(vec![with(primary("m"), |m| m.admin = AdminState::Drain)]),
            any_of(&[health]),
        ),
        (
            "a role that is not known",
            led(vec![other(), role(Role::Other("witness".into()))]),
            any_of(&[health]),
        ),
        (
            "a standby of a fixed list",
            led(vec![
                other(),
                with(member("m"), |m| {
                    (m.role, m.state) = (Role::Unnamed, String::new());
                }),
            ]),
            any_of(&[replica, asynchronous]),
        ),
        (
            "a leader of a fixed list",
            led(vec![with(primary("m"), |m| {
                (m.role, m.state) = (Role::Unnamed, String::new());
            })]),
            any_of(&[PRIMARY, leading, health]),
        ),
    ];
    for (what, snapshot, expected) in table {
        assert_eq!(yes(snapshot).await, expected, "{what}");
    }
}

#[tokio::test]
async fn patroni_lag_limits() {
    // 100 bytes behind by our probes; the source's figure is older and not used.
    let probed = led(vec![primary("p"), with(member("m"), |m| m.lag = Some(5_000_000))]);
    // Without a leader: the source's.
    let reported = leaderless(
        vec![with(member("m"), |m| m.lag = Some(2000))],
        NoLeader::NotNamed,
    );
    let unknown = leaderless(vec![with(member("m"), |m| m.lag = None)], NoLeader::NotNamed);
    for (snapshot, query, ok) in [
        (&probed, "/replica?lag=100", true),
        (&probed, "/replica?lag=99", false),
        (&probed, "/replica?lag=0", false),
        (&probed, "/replica?lag=1kB", true),
        (&probed, "/async?lag=99", false),
        (&probed, "/asynchronous?lag=10MB", true),
        (&probed, "/read-only?lag=99", false),
        (&probed, "/readiness", true),
        (&probed, "/readiness?lag=99", false),
        (&probed, "/readiness?lag=99&mode=apply", false),
        (&probed, "/readiness?lag=10MB&mode=write", true),
        // 50 of them have been received.
        (&probed, "/readiness?lag=50&mode=write", true),
        (&probed, "/readiness?lag=49&mode=write", false),
        (&reported, "/readiness?lag=1999&mode=write", false),
        (&reported, "/readiness?lag=2000&mode=write", true),
        (&probed, "/replica?lag=ten", true),
        (&reported, "/replica?lag=2000", true),
        (&reported, "/replica?lag=1999", false),
        (&unknown, "/replica?lag=10GB", false),
        (&unknown, "/replica", true),
        (&unknown, "/readiness", false),
    ] {
        let got = get(&beside(snapshot.clone(), "m"), query).await;
        assert_eq!(got.status == StatusCode::OK, ok, "{query}: {}", got.reason());
    }
    // A limit does not matter for the leader.
    let leader = beside(led(vec![primary("m")]), "m");
    for query in ["/read-only?lag=0", "/readiness?lag=0", "/primary?lag=0"] {
        assert_eq!(get(&leader, query).await.status, StatusCode::OK, "{query}");
    }
}

#[test]
fn numbers_of_bytes_as_patroni_reads_them() {
    for (text, value) in [
        ("0", Some(0)),
        ("1048576", Some(1 << 20)),
        ("1024kB", Some(1 << 20)),
        ("10MB", Some(10 << 20)),
        ("10 MB", Some(10 << 20)),
        ("1.5GB", Some(3 << 29)),
        ("1TB", Some(1 << 40)),
        ("7B", Some(7)),
        ("99999999999TB", Some(u64::MAX)),
        ("10mb", None),
        ("-1", None),
        ("", None),
        ("MB", None),
        ("1.2.3MB", None),
    ] {
        assert_eq!(bytes(text), value, "{text}");
    }
}

#[tokio::test]
async fn patroni_tags_and_replication_state() {
    let tagged = |member: Member| {
        with(member, |m| {
            m.tags.insert("zone".into(), "b".into());
            m.tags.insert("fast".into(), true.into());
            m.tags.insert("rank".into(), 3.into());
        })
    };
    let replica = beside(led(vec![primary("p"), tagged(member("m"))]), "m");
    let leader = beside(led(vec![tagged(primary("m"))]), "m");
    for (router, query, ok) in [
        (&replica, "/replica?tag_zone=b", true),
        (&replica, "/replica?tag_zone=b&tag_fast=true&tag_rank=3", true),
        (&replica, "/replica?tag_zone=b&tag_rank=4", false),
        (&replica, "/replica?tag_fast=True", false),
        (&replica, "/replica?tag_other=b", false),
        (&replica, "/replica?tag_zone=%62", true),
        (&replica, "/health?tag_zone=c", false),
        (&replica, "/replica?replication_state=streaming", true),
        (
            &replica,
            "/async?replication_state=in%20archive%20recovery",
            false,
        ),
        (&leader, "/read-only?tag_zone=c", false),
        (&leader, "/read-only?tag_zone=b", true),
        // Patroni ignores tags here.
        (&leader, "/?tag_zone=c", true),
        (&leader, "/primary?tag_zone=c", true),
        (&leader, "/leader?tag_zone=c", true),
        (&leader, "/read-write?tag_zone=c", true),
    ] {
        assert_eq!(get(router, query).await.status == StatusCode::OK, ok, "{query}");
    }
}

#[tokio::test]
async fn the_status_document() {
    let router = beside(led(vec![primary("m")]), "m");
    assert_eq!(
        get(&router, "/").await.json(),
        json!({"state": "running", "role": "primary", "server_version": 150_020, "timeline": 3,
               "xlog": {"location": 1000}, "database_system_identifier": "7",
               "patroni": {"name": "m", "scope": "main"}})
    );
    let mut snapshot = led(vec![
        primary("p"),
        with(member("m"), |m| m.role = Role::SyncStandby),
    ]);
    snapshot.paused = true;
    let document = get(&beside(snapshot, "m"), "/primary").await.json();
    assert_eq!(document["role"], "replica");
    assert_eq!(document["xlog"], json!({"replayed_location": 900}));
    assert_eq!(
        (&document["sync_standby"], &document["pause"]),
        (&json!(true), &json!(true))
    );
    let dead = beside(
        led(vec![
            primary("p"),
            with(down(member("m")), |m| m.state = "start failed".into()),
        ]),
        "m",
    );
    assert_eq!(get(&dead, "/health").await.json()["state"], "start failed");
}

#[tokio::test]
async fn node_answers_for_the_local_member_and_for_any() {
    let snapshot = led(vec![primary("p"), member("m"), down(member("x"))]);
    for (local, path, status) in [
        ("p", "/node/is-read-write", 200),
        ("p", "/node/is-read-only", 503),
        ("m", "/node/is-read-write", 503),
        ("m", "/node/is-read-only", 200),
        ("x", "/node/is-read-write", 503),
        ("x", "/node/is-read-only", 503),
        ("x", "/node/p/is-read-write", 200),
        ("x", "/node/%70/is-read-write", 200),
        ("x", "/node/m/is-read-only", 200),
        ("x", "/node/m/is-read-write", 503),
        ("gone", "/node/is-read-write", 404),
        ("m", "/node/gone/is-read-only", 404),
        ("m", "/node/%ff/is-read-only", 404),
        ("m", "/node/m/other", 404),
        ("m", "/node", 404),
    ] {
        let got = get(&beside(snapshot.clone(), local), path).await;
        assert_eq!(got.status, status, "{local} {path}");
        assert!(
            got.headers[header::CONTENT_TYPE]
                .to_str()
                .unwrap()
                .starts_with("text/plain")
        );
        match status {
            200 => assert_eq!(got.body, "true"),
            503 => assert_eq!(got.body, "false"),
            _ => assert!(!got.body.is_empty() && !got.reason().is_empty(), "a hint"),
        }
    }
    let got = get(&beside(snapshot, "x"), "/node/is-read-only").await;
    assert_eq!(
        (got.reason(), &got.headers[MEMBER]),
        ("x is down: no connection can be made", &"x".parse().unwrap())
    );
}

#[tokio::test]
async fn without_a_local_member_404_and_a_hint_or_503_while_it_may_still_come() {
    let snapshot = led(vec![primary("p")]);
    for (local, status) in [
        (Local::Off, 404),
        (Local::NoneHere, 404),
        (Local::SeveralHere, 404),
        (Local::Member(MemberName::new("gone")), 404),
        (Local::NotYetKnown, 503),
    ] {
        let handles = handles(vec![view(snapshot.clone(), LocalMember::Auto)]);
        let hint = local.hint();
        let router = router(Arc::new(App {
            guard: Guard::new(Arc::default()),
            live: Live::default(),
            handles,
            locals: vec![watch::channel(local).1],
        }));
        for path in [
            "/node/is-read-write",
            "/node/is-read-only",
            "/",
            "/replica",
            "/readiness",
        ] {
            let got = get(&router, path).await;
            assert_eq!((got.status.as_u16(), got.reason()), (status, hint), "{path}");
        }
        for path in ["/node/p/is-read-write", "/connection/is-ready", "/liveness"] {
            assert_eq!(
                get(&router, path).await.status,
                200,
                "{path} needs no local member"
            );
        }
    }
    // The name is configured, but no source has answered yet.
    for path in ["/node/is-read-write", "/node/p/is-read-only", "/primary"] {
        assert_eq!(
            get(&beside(super::fixture::snapshot(), "p"), path).await.status,
            503,
            "{path}"
        );
    }
}

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

#[tokio::test]
async fn groups_are_arrays() {
    let router = beside(led(vec![primary("p"), member("m"), down(member("x"))]), "m");
    let got = get(&router, "/group/read-write-info").await;
    assert_eq!(got.headers[header::CONTENT_TYPE], "application/json");
    assert_eq!(
        got.json(),
        json!([{"id": stable_id(&MemberName::new("p")), "name": "p", "host": "p.example", "port": 5432,
                "dbname": "postgres", "role": "leader", "timeline": 3, "lag": null, "weight": 1, "zone": null}])
    );
    let replicas = get(&router, "/group/read-only-info").await.json();
    assert_eq!(replicas.as_array().unwrap().len(), 1);
    assert_eq!(
        (&replicas[0]["name"], &replicas[0]["lag"]),
        (&json!("m"), &json!(100))
    );
    let empty = beside(leaderless(vec![], NoLeader::NotNamed), "m");
    let got = get(&empty, "/group/read-write-info").await;
    assert_eq!((got.status.as_u16(), got.body.as_str()), (200, "[]"));
}

#[test]
fn ids_are_stable() {
    // The test vectors of FIPS 180 for SHA-256.
    assert_eq!(stable_id(&MemberName::new("")), 0xe3b0_c442 & 0x7fff_ffff);
    assert_eq!(stable_id(&MemberName::new("abc")), 0xba78_16bf & 0x7fff_ffff);
}

#[tokio::test]
async fn several_clusters() {
    let mut second = led(vec![primary("q")]);
    second.cluster = "other".into();
    let router = routes(handles(vec![
        view(leaderless(vec![member("m")], NoLeader::NotNamed), named("m")),
        view(second, named("q")),
    ]));
    for (uri, status) in [
        ("/primary", 503),
        ("/primary?cluster=main", 503),
        ("/primary?cluster=other", 200),
        ("/node/is-read-write?cluster=other", 200),
        ("/connection/is-ready-rw?cluster=other", 200),
        ("/connection/is-ready-rw", 503),
        ("/node/q/is-read-write?cluster=other", 200),
        ("/node/q/is-read-write", 404),
    ] {
        assert_eq!(get(&router, uri).await.status, status, "{uri}");
    }
    for path in [
        "/primary",
        "/node/is-read-only",
        "/node/m/is-read-only",
        "/connection/is-ready",
        "/group/read-only-info",
        "/update_clusters",
    ] {
        let got = get(&router, &format!("{path}?cluster=none")).await;
        assert_eq!(got.status, 404, "{path}");
        assert!(
            got.reason().ends_with("there is: main, other"),
            "{}",
            got.reason()
        );
    }
}

#[tokio::test]
async fn update_clusters_looks_again_but_not_on_safe_methods() {
    let asked = Arc::new(AtomicUsize::new(0));
    let mut view = view(led(vec![primary("p")]), LocalMember::None);
    let count = Arc::clone(&asked);
    view.look_again = Arc::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let router = routes(handles(vec![view]));
    for (method, expected) in [
        (Method::GET, 1),
        (Method::POST, 2),
        (Method::HEAD, 2),
        (Method::OPTIONS, 2),
    ] {
        assert_eq!(ask(&router, method, "/update_clusters").await.status, 200);
        assert_eq!(asked.load(Ordering::SeqCst), expected);
    }
}

#[tokio::test]
async fn methods() {
    let router = beside(led(vec![primary("p"), member("m")]), "m");
    let paths = [
        "/connection/is-live",
        "/connection/is-ready-rw",
        "/node/is-read-write",
        "/node/m/is-read-only",
        "/group/read-only-info",
        "/liveness",
        "/metrics",
        "/nothing",
    ];
    for path in paths.into_iter().chain(PATRONI) {
        let expected = get(&router, path).await;
        for method in [Method::HEAD, Method::OPTIONS] {
            let got = ask(&router, method, path).await;
            assert_eq!((got.status, got.body.as_str()), (expected.status, ""), "{path}");
        }
        for method in [
            Method::POST,
            Method::PUT,
            Method::DELETE,
            Method::PATCH,
            Method::TRACE,
        ] {
            let status = ask(&router, method, path).await.status;
            assert_eq!(status, if path == "/nothing" { 404 } else { 405 }, "{path}");
        }
    }
}

#[tokio::test]
async fn metrics_are_served_and_count_requests_by_kind() {
    let router = beside(led(vec![primary("p")]), "p");
    get(&router, "/node/is-read-write").await;
    get(&router, "/node/p/is-read-only").await;
    get(&router, "/made/up").await;
    let got = get(&router, "/metrics").await;
    assert_eq!(
        got.headers[header::CONTENT_TYPE],
        "text/plain; version=0.0.4; charset=utf-8"
    );
    assert!(
        got.body
            .contains("# TYPE trunkline_http_requests_total counter\n")
    );
    assert!(!got.body.contains("# EOF"));
    let request = Request::get("/metrics").header(header::ACCEPT, "application/openmetrics-text");
    let response = router
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(
        response.headers()[header::CONTENT_TYPE],
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
    let samples = super::super::metrics::tests::parses(str::from_utf8(&body).unwrap());
    for (endpoint, code) in [("node", 200), ("node", 503), ("other", 404)] {
        let key = format!("trunkline_http_requests_total{{endpoint=\"{endpoint}\",code=\"{code}\"}}");
        assert!((samples[&key] - 1.0).abs() < 0.1, "{key}");
    }
}

#[tokio::test]
async fn every_path_is_documented() {
    let documented = include_str!("../../../docs/http.md");
    for (path, _) in patroni::PATHS {
        assert!(documented.contains(&format!("`{path}`")), "{path}");
    }
}

fn any_member() -> impl Strategy<Value = Member> {
    let role = prop_oneof![
        Just(Role::Leader),
        Just(Role::Replica),
        Just(Role::SyncStandby),
        Just(Role::StandbyLeader),
        Just(Role::Unnamed),
        Just(Role::Other("true".into()))
    ];
    let name = prop_oneof![
        Just("true".to_owned()),
        Just("untrue".to_owned()),
        "[a-z]{1,3}",
        any::<String>()
    ];
    let state = prop_oneof![Just("streaming"), Just("running"), Just("true"), Just("stopped")];
    (name, role, state, any::<[bool; 4]>()).prop_map(
        |(name, role, state, [up, in_recovery, known, foreign])| {
            let mut member = member(&name);
            (member.role, member.state) = (role, state.into());
            member.host = "true".into();
            member.health.error = (!up).then(|| "true".into());
            member.health.up = up;
            facts(&mut member).in_recovery = in_recovery;
            if foreign {
                member.identity = Identity::Foreign;
            }
            if !known {
                member.health.facts = None;
            }
            member
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn node_and_connection_say_true_only_when_it_is(
        members in proptest::collection::vec(any_member(), 0..4), leads in any::<bool>(), local in 0..6_usize,
    ) {
        let name = members.first().map_or_else(|| MemberName::new("true"), |member| member.name.clone());
        let snapshot = if leads && !members.is_empty() {
            led(members)
        } else {
            leaderless(members, NoLeader::NotWritable(name.clone()))
        };
        let local = match local {
            0 => Local::Off,
            1 => Local::NoneHere,
            2 => Local::SeveralHere,
            3 => Local::NotYetKnown,
            4 => Local::Member(MemberName::new("true")),
            _ => Local::Member(name),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut view = view(snapshot, LocalMember::Auto);
            view.name = "true".into();
            let handles = handles(vec![view]);
            let router = router(Arc::new(App { guard: Guard::new(Arc::default()), live: Live::default(), handles, locals: vec![watch::channel(local).1] }));
            for path in ["/connection/is-live", "/connection/is-ready", "/connection/is-ready-rw",
                         "/connection/is-ready-ro", "/connection/true", "/node/is-read-write", "/node/is-read-only",
                         "/node/true/is-read-write", "/node/true/is-read-only", "/node/true/true", "/node/true"] {
                for query in ["", "?cluster=true", "?cluster=nottrue", "?strict=true"] {
                    for method in [Method::GET, Method::POST] {
                        let got = ask(&router, method.clone(), &format!("{path}{query}")).await;
                        let says = got.body.contains("true");
                        assert_eq!(says, got.status == StatusCode::OK, "{method} {path}{query}: {}", got.body);
                    }
                }
            }
        });
    }
}

// --- who may log in ------------------------------------------------------------------------------

async fn get_from(router: &Router, uri: &str, caller: &str) -> Got {
    let caller = Caller::new((caller.parse::<IpAddr>().unwrap(), 5000).into(), false);
    get(&router.clone().layer(Extension(caller)), uri).await
}

#[tokio::test]
async fn rules_are_shown_to_this_host_only() {
    let router = beside(snapshot(), "m");
    for caller in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
        let got = get_from(&router, "/api/v1/hba", caller).await;
        assert_eq!(got.status, StatusCode::OK, "{caller}");
        let rules = got.json();
        assert_eq!(rules[0]["rule_number"], 1);
        assert_eq!(rules[0]["auth_method"], "scram-sha-256");
        assert_eq!(rules[0]["file_name"], Value::Null);
        let got = get_from(&router, "/api/v1/ident", caller).await;
        assert_eq!(
            got.json(),
            json!([{"map_number": 1, "file_name": "/etc/trunkline/pg_ident.conf", "line_number": 3, "map_name": "cn",
                    "sys_name": "/^(.*)@example$", "pg_username": "\\1", "error": null}])
        );
    }
    for caller in ["10.0.0.7", "::ffff:10.0.0.7", "2001:db8::1", "0.0.0.0"] {
        for path in ["/api/v1/hba", "/api/v1/ident"] {
            let got = get_from(&router, path, caller).await;
            assert_eq!(got.status, StatusCode::FORBIDDEN, "{caller}");
            assert!(got.reason().contains("on the same host"), "{}", got.reason());
            assert!(!got.body.contains("scram"), "{}", got.body);
        }
    }
    assert_eq!(get(&router, "/api/v1/hba").await.status, StatusCode::FORBIDDEN);
    // For whom does a balancer on this host connect?
    let balancer = Caller::new("127.0.0.1:5000".parse().unwrap(), false);
    for (client, status) in [
        (None, StatusCode::FORBIDDEN),
        (Some("10.0.0.7:1"), StatusCode::FORBIDDEN),
        (Some("127.0.0.1:1"), StatusCode::OK),
    ] {
        let caller = balancer.announced(client.map(|client| client.parse().unwrap()));
        let got = get(&router.clone().layer(Extension(caller)), "/api/v1/hba").await;
        assert_eq!(got.status, status, "{client:?}");
    }
}

#[tokio::test]
async fn a_replica_beyond_the_lag_of_the_default_route_is_not_fit_to_read_from() {
    let beyond = |route: &str| with(member("m"), |m| m.lagging = [Arc::from(route)].into());
    for (route, fit) in [("read-only", false), ("reports", true)] {
        let router = beside(led(vec![primary("p"), beyond(route)]), "m");
        for path in ["/node/is-read-only", "/node/m/is-read-only"] {
            let got = get(&router, path).await;
            assert_eq!((got.status == StatusCode::OK, got.body), (fit, fit.to_string()));
        }
        let listed = get(&router, "/group/read-only-info").await.json();
        assert_eq!(!listed.as_array().unwrap().is_empty(), fit);
        let ready = get(&router, "/connection/is-ready-ro").await;
        assert_eq!(ready.status == StatusCode::OK, fit);
        // Patroni's question has a limit of its own.
        assert_eq!(get(&router, "/replica?lag=100").await.status, StatusCode::OK);
    }
}
