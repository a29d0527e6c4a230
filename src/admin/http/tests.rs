//! Every path but those of Patroni and those for balancers, against hand-built snapshots.
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

use super::super::handles::Handles;
use super::super::live::Live;
use super::super::local::Local;
use super::answer::{MEMBER, REASON};
use super::app::App;
use super::fixture::*;
use super::guard::{Caller, Guard};
use super::node::stable_id;
use super::patroni_tests::PATRONI;
use super::router::router;
use crate::cluster::snapshot::*;
use crate::config::LocalMember;

pub(super) struct Got {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

impl Got {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub(super) fn reason(&self) -> &str {
        self.headers
            .get(REASON)
            .map_or("", |value| value.to_str().unwrap())
    }
}

pub(super) async fn ask(router: &Router, method: Method, uri: &str) -> Got {
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

pub(super) async fn get(router: &Router, uri: &str) -> Got {
    ask(router, Method::GET, uri).await
}

pub(super) fn routes(handles: Handles) -> Router {
    router(app(handles))
}

/// One cluster, seen from beside `local`.
pub(super) fn beside(snapshot: Snapshot, local: &str) -> Router {
    routes(handles(vec![view(snapshot, named(local))]))
}

pub(super) fn with(mut member: Member, change: impl FnOnce(&mut Member)) -> Member {
    change(&mut member);
    member
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
            got.reason().ends_with("there are main, other"),
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
