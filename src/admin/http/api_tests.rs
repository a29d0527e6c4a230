//! `/api/v1`: who may ask, and what is answered.
#![allow(clippy::unwrap_used)]

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, StatusCode, header};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::super::views::{Activity, ClusterSummary, MemberView, RouterView, SessionView};
use super::fixture::*;
use super::guard::Caller;
use super::router::router;
use crate::cluster::check::CheckStatus;
use crate::cluster::snapshot::*;
use crate::config::{LocalMember, Secret};

pub(super) const TOKEN: &str = "0123456789abcdef";

/// Two members, one session, a token.
pub(super) struct Setting {
    pub(super) router: Router,
    pub(super) operations: Arc<Nothing>,
    pub(super) token: Arc<ArcSwapOption<Secret>>,
}

pub(super) fn setting() -> Setting {
    let mut lost = down(member("db2"));
    lost.health.check = CheckStatus::Layer4Connection;
    let mut handles = handles(vec![view(led(vec![primary("db1"), lost]), LocalMember::None)]);
    let operations = Arc::new(Nothing {
        session: Some(session()),
        faults: Some(Vec::new()),
        ..Nothing::default()
    });
    let token = Arc::new(ArcSwapOption::from_pointee(Secret::new(TOKEN)));
    handles.operations = Arc::clone(&operations) as _;
    handles.token = Arc::clone(&token);
    Setting {
        router: router(app(handles)),
        operations,
        token,
    }
}

fn session() -> SessionView {
    SessionView {
        state: Activity::IdleInTransaction,
        phase: "pinned".into(),
        pins: vec!["listen".into()],
        held_s: Some(2),
        ..a_session()
    }
}

impl Setting {
    pub(super) async fn ask(
        &self,
        method: Method,
        path: &str,
        from: (&str, bool),
        token: Option<&str>,
        body: &str,
    ) -> (StatusCode, Value) {
        let caller = Caller::new((from.0.parse::<IpAddr>().unwrap(), 5000).into(), from.1);
        let mut request = Request::builder().method(method).uri(path).extension(caller);
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, token);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (status, has_challenge) = (
            response.status(),
            response.headers().contains_key(header::WWW_AUTHENTICATE),
        );
        assert_eq!(has_challenge, status == StatusCode::UNAUTHORIZED);
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    pub(super) async fn look(&self, path: &str) -> Value {
        let (status, value) = self.ask(Method::GET, path, ("127.0.0.1", false), None, "").await;
        assert_eq!(status, StatusCode::OK, "{value}");
        value
    }

    pub(super) async fn change(&self, path: &str, body: &str) -> (StatusCode, Value) {
        let token = format!("Bearer {TOKEN}");
        self.ask(Method::POST, path, ("127.0.0.1", false), Some(&token), body)
            .await
    }

    pub(super) fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.operations.told.lock().unwrap())
    }
}

#[tokio::test]
async fn who_may_look_and_who_may_change() {
    let setting = setting();
    let good = format!("Bearer {TOKEN}");
    let other = "Bearer 0123456789abcdeX";
    let (here, there, safely) = (("127.0.0.1", false), ("10.0.0.7", false), ("10.0.0.7", true));
    let mapped = ("::ffff:127.0.0.1", false);
    for (from, token, look, change) in [
        (here, None, 200, 401),
        (mapped, None, 200, 401),
        (here, Some(other), 200, 401),
        (here, Some("Basic 0123456789abcdef"), 200, 401),
        (here, Some("Bearer "), 200, 401),
        (here, Some(good.as_str()), 200, 200),
        (here, Some("bearer 0123456789abcdef"), 200, 200),
        (there, None, 403, 403),
        (there, Some(good.as_str()), 403, 403),
        (safely, None, 401, 401),
        (safely, Some(other), 401, 401),
        (safely, Some(good.as_str()), 200, 200),
    ] {
        for path in ["clusters", "members", "sessions", "events", "hba", "ident"] {
            let path = format!("/api/v1/{path}");
            let (status, body) = setting.ask(Method::GET, &path, from, token, "").await;
            assert_eq!(status, look, "{from:?} {token:?} {path}");
            assert_eq!(body["error"].is_string(), look != 200);
        }
        for (method, path) in [
            (Method::POST, "/api/v1/members/db1/drain"),
            (Method::POST, "/api/v1/members/db1/close-sessions"),
            (Method::DELETE, "/api/v1/sessions/7"),
            (Method::POST, "/api/v1/sessions/7/kill"),
            (Method::POST, "/api/v1/reload"),
            (Method::POST, "/api/v1/clusters/main/forget-identity"),
        ] {
            let (status, body) = setting.ask(method, path, from, token, "").await;
            // The snapshot here never follows what is asked for; who waits for it is not refused.
            assert!(
                status == change || (change == 200 && status == 202),
                "{from:?} {token:?} {path}: {status}"
            );
            assert_eq!(body["error"].is_string(), change != 200);
            assert_eq!(setting.told().is_empty(), change != 200, "{path}");
        }
    }
    // Another token in its place counts from then on.
    setting
        .token
        .store(Some(Arc::new(Secret::new("another-token-123"))));
    let (status, _) = setting.change("/api/v1/members/db1/drain", "").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn nothing_can_be_changed_where_there_is_no_token() {
    let router = router(app(handles(vec![view(
        led(vec![primary("db1")]),
        LocalMember::None,
    )])));
    let setting = Setting { router, ..setting() };
    let (status, body) = setting.change("/api/v1/members/db1/drain", "").await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert_eq!(body["hint"], "set http.token_file");
}

#[tokio::test]
async fn members_with_their_checks_and_routes() {
    let all = setting().look("/api/v1/members").await;
    let (leader, lost) = (&all[0], &all[1]);
    assert_eq!(
        (
            &leader["name"],
            &leader["role"],
            &leader["status"],
            &leader["check"]["status"]
        ),
        (&json!("db1"), &json!("leader"), &json!("UP"), &json!("L7OK"))
    );
    assert_eq!(
        leader["routes"],
        json!([{"route": "read-write", "fit": true, "reason": "verified leader"},
               {"route": "read-only", "fit": false, "reason": "is the leader"}])
    );
    assert_eq!(
        (&leader["sessions"], &leader["server_connections"]),
        (&json!(1), &json!(4))
    );
    assert_eq!(
        (&lost["status"], &lost["check"]["status"], &lost["check"]["text"]),
        (&json!("DOWN"), &json!("L4CON"), &json!("connection refused"))
    );
    assert_eq!(lost["routes"][1]["reason"], "is down: connection refused");
}

#[tokio::test]
async fn states_as_haproxy_names_them() {
    for (change, status) in [
        ((|_| {}) as fn(&mut Member), "UP"),
        (|member| member.admin = AdminState::Drain, "DRAIN"),
        (|member| member.weight = 0, "DRAIN"),
        (|member| member.admin = AdminState::Maint, "MAINT"),
        (|member| member.health = Health::default(), "INI"),
    ] {
        let mut one = member("db1");
        change(&mut one);
        let setting = Setting {
            router: router(app(handles(vec![view(led(vec![one]), LocalMember::None)]))),
            ..setting()
        };
        assert_eq!(setting.look("/api/v1/members").await[0]["status"], status);
    }
}

#[tokio::test]
async fn clusters_and_sessions() {
    let setting = setting();
    let clusters = setting.look("/api/v1/clusters").await;
    assert_eq!(clusters[0]["leader"]["member"], "db1");
    assert_eq!(clusters[0]["members"], json!(["db1", "db2"]));
    for (query, found) in [
        ("", 1),
        ("?member=db1", 1),
        ("?member=db2", 0),
        ("?user=app&route=x", 0),
    ] {
        let sessions = setting.look(&format!("/api/v1/sessions{query}")).await;
        assert_eq!(sessions.as_array().unwrap().len(), found, "{query}");
    }
    let session = &setting.look("/api/v1/sessions").await[0];
    assert_eq!(
        (&session["id"], &session["state"]),
        (&json!(7), &json!("idle in transaction"))
    );
}

#[tokio::test]
async fn what_is_sent_reads_back_and_keeps_its_bytes() {
    let setting = setting();
    let (members, clusters, sessions, router) = (
        setting.look("/api/v1/members").await,
        setting.look("/api/v1/clusters").await,
        setting.look("/api/v1/sessions").await,
        setting.look("/api/v1/router").await,
    );
    let leader = json!({
        "admin": "ready", "check": {"age_ms": null, "in_a_row": 2, "status": "L7OK", "text": "answered in 1.0 ms"},
        "cluster": "main", "host": "db1.example", "lag": null, "lag_seconds": null, "leader": true, "name": "db1",
        "port": 5432, "role": "leader", "role_shown": "leader",
        "routes": [{"fit": true, "reason": "verified leader", "route": "read-write"},
                   {"fit": false, "reason": "is the leader", "route": "read-only"}],
        "server_connections": 4, "sessions": 1, "state": "running", "status": "UP", "tags": {}, "timeline": 3, "weight": 1,
        "zone": null
    });
    assert_eq!(members[0].to_string(), leader.to_string());
    assert_eq!(members[1]["lag_seconds"], Value::Null);
    let cluster = json!([{
        "leader": {"member": "db1", "named_by": "leader key", "timeline": 3}, "members": ["db1", "db2"], "name": "main",
        "no_leader": null, "paused": false, "source": {"disagreement": null, "error": null, "reachable": true},
        "system_identifier": "7", "version": 1
    }]);
    assert_eq!(clusters.to_string(), cluster.to_string());
    let session = json!([{
        "age_s": 3, "bytes_down": 20, "bytes_up": 10, "client": "10.0.0.9:5000", "cluster": "main", "database": "app",
        "ending": null, "held_s": 2, "id": 7, "member": "db1", "phase": "pinned", "pins": ["listen"], "process_id": 4711,
        "route": "read-write",
        "router_process_id": 4711, "state": "idle in transaction", "tls": null, "transactions": 1, "user": "app", "waiting_s": null
    }]);
    assert_eq!(sessions.to_string(), session.to_string());
    let again: Vec<MemberView> = serde_json::from_value(members.clone()).unwrap();
    assert_eq!(json!(again), members);
    let again: Vec<ClusterSummary> = serde_json::from_value(clusters.clone()).unwrap();
    assert_eq!(json!(again), clusters);
    let again: Vec<SessionView> = serde_json::from_value(sessions.clone()).unwrap();
    assert_eq!(json!(again), sessions);
    let again: RouterView = serde_json::from_value(router.clone()).unwrap();
    assert_eq!(json!(again), router);
}

/// The source says for long that a dead leader leads and that a dead replica is not behind.
#[tokio::test]
async fn what_the_source_says_of_the_dead_is_not_shown_as_a_role_or_a_lag() {
    let shown = |snapshot: Snapshot| {
        let router = router(app(handles(vec![view(snapshot, LocalMember::None)])));
        async move {
            let request = Request::builder()
                .uri("/api/v1/members")
                .extension(Caller::new((IpAddr::from([127, 0, 0, 1]), 5000).into(), false));
            let answer = router
                .oneshot(request.body(Body::empty()).unwrap())
                .await
                .unwrap();
            let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
            let members: Value = serde_json::from_slice(&body).unwrap();
            let all = members.as_array().unwrap().iter();
            all.map(|member| json!([member["role"], member["role_shown"], member["lag"]]))
                .collect::<Vec<_>>()
        }
    };
    // By the source, db3 is 0 bytes behind.
    let replicas = || vec![member("db2"), down(member("db3"))];
    let healthy = led([vec![primary("db1")], replicas()].concat());
    assert_eq!(
        shown(healthy).await,
        [
            json!(["leader", "leader", null]),
            json!(["replica", "replica", 100]),
            json!(["replica", "replica", null])
        ]
    );
    let dead = NoLeader::NotReachable(MemberName::new("db1"));
    let killed = leaderless([vec![down(primary("db1"))], replicas()].concat(), dead);
    assert_eq!(
        shown(killed).await,
        [
            json!(["leader", "named leader", null]),
            json!(["replica", "replica", null]),
            json!(["replica", "replica", null])
        ]
    );
    // The source is behind: db2 has been promoted.
    let mut promoted = primary("db2");
    promoted.role = Role::Replica;
    let followed = led(vec![promoted, down(primary("db1"))]);
    assert_eq!(
        shown(followed).await,
        [
            json!(["leader", "named leader", null]),
            json!(["replica", "leader", null])
        ]
    );
}

#[tokio::test]
async fn sessions_are_searched_and_limited() {
    let setting = setting();
    for (query, found) in [
        ("", 1),
        ("?search=APP+read-write+7", 1),
        ("?search=idle+in+transaction+listen", 1),
        ("?search=app+other", 0),
        ("?search=10.0.0.9&user=app", 1),
        ("?search=", 1),
        ("?limit=0", 0),
        ("?limit=5", 1),
    ] {
        let path = format!("/api/v1/sessions{query}");
        let listed = setting.look(&path).await;
        assert_eq!(listed.as_array().unwrap().len(), found, "{query}");
        let caller = Caller::new((IpAddr::from([127, 0, 0, 1]), 5000).into(), false);
        let request = Request::builder()
            .uri(&path)
            .extension(caller)
            .body(Body::empty());
        let response = setting.router.clone().oneshot(request.unwrap()).await.unwrap();
        let total = usize::from(found == 1 || query == "?limit=0");
        assert_eq!(
            response.headers()["x-trunkline-total"],
            total.to_string(),
            "{query}"
        );
    }
    let here = ("127.0.0.1", false);
    let (status, _) = setting
        .ask(Method::GET, "/api/v1/sessions?limit=x", here, None, "")
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn events_are_read_from_a_number_on() {
    let setting = setting();
    assert_eq!(setting.look("/api/v1/events").await, json!([]));
    setting.change("/api/v1/router/drain", "").await;
    setting
        .change("/api/v1/members/db1/weight", "{\"weight\": 5}")
        .await;
    let all = setting.look("/api/v1/events?since=0").await;
    assert!(all[0]["time_ms"].as_u64().unwrap() > 1_600_000_000_000, "{all}");
    let mut newest = setting.look("/api/v1/events?since=1").await;
    assert!(newest[0].as_object_mut().unwrap().remove("time_ms").is_some());
    assert_eq!(
        newest,
        json!([{
            "number": 2, "level": "info", "text": "weight set", "event": "weight_set", "cluster": "main", "member": "db1",
            "weight": 5, "by": "HTTP from 127.0.0.1:5000", "about": "member=db1 weight=5 by=HTTP from 127.0.0.1:5000"
        }])
    );
    assert_eq!(setting.look("/api/v1/events?since=2").await, json!([]));
    let (status, _) = setting
        .ask(
            Method::GET,
            "/api/v1/events?since=x",
            ("127.0.0.1", false),
            None,
            "",
        )
        .await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[test]
fn every_path_is_documented() {
    let documented = include_str!("../../../docs/http.md");
    for path in [
        "clusters",
        "members",
        "sessions",
        "events",
        "history",
        "live",
        "members/NAME/ready",
        "members/NAME/drain",
        "members/NAME/maint",
        "members/NAME/weight",
        "members/NAME/close-sessions",
        "sessions/ID",
        "sessions/ID/kill",
        "routes",
        "routes/NAME/disable",
        "routes/NAME/enable",
        "reload",
    ] {
        assert!(documented.contains(&format!("/api/v1/{path}`")), "{path}");
    }
}

#[tokio::test]
async fn what_does_not_exist_is_refused_by_its_name_and_those_there_are_are_listed() {
    let setting = setting();
    let (here, bearer) = (("127.0.0.1", false), format!("Bearer {TOKEN}"));
    for (method, path, error, hint) in [
        (
            Method::GET,
            "/api/v1/routes?cluster=x",
            "there is no cluster x",
            "main",
        ),
        (
            Method::GET,
            "/api/v1/sessions?cluster=x",
            "there is no cluster x",
            "main",
        ),
        (
            Method::GET,
            "/api/v1/before-stop?cluster=x",
            "there is no cluster x",
            "main",
        ),
        (
            Method::POST,
            "/api/v1/routes/read-write/pause?cluster=x",
            "there is no cluster x",
            "main",
        ),
        (
            Method::POST,
            "/api/v1/routes/x/pause",
            "no listener has a route x",
            "read-write, read-only",
        ),
        (
            Method::POST,
            "/api/v1/members/x/drain",
            "cluster main has no member x",
            "db1, db2",
        ),
    ] {
        let (status, answer) = setting.ask(method, path, here, Some(&bearer), "").await;
        assert_eq!(
            (status, &answer["error"]),
            (StatusCode::NOT_FOUND, &json!(error)),
            "{path}"
        );
        let names = if hint.contains(',') {
            "there are"
        } else {
            "there is only"
        };
        assert_eq!(answer["hint"], format!("{names} {hint}"), "{path}");
    }
    assert_eq!(setting.told(), [""; 0]);
    let (status, _) = setting
        .change("/api/v1/switchover/plan", r#"{"cluster": "x"}"#)
        .await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(
        setting.look("/api/v1/routes?cluster=main").await[0]["name"],
        "read-write"
    );
}

#[tokio::test]
async fn a_route_that_holds_its_clients_shows_why() {
    let mut handles = handles(vec![view(led(vec![primary("db1")]), LocalMember::None)]);
    let held = json!({
        "route": "read-write", "cluster": "main", "clients": 12, "kind": "switchover", "cause": "…",
        "by": {"router": "router2", "operator": "HTTP from 127.0.0.1:53462"},
        "since_ms": 1, "held_s": 3, "until_ms": 2, "left_s": 19, "ended_by": "…",
    });
    let token = Arc::new(ArcSwapOption::from_pointee(Secret::new(TOKEN)));
    handles.token = Arc::clone(&token);
    handles.holding = Arc::new(NothingHeld {
        held: serde_json::from_value(held.clone()).unwrap(),
        ..NothingHeld::default()
    });
    let setting = Setting {
        router: router(app(handles)),
        operations: Arc::default(),
        token,
    };
    let (here, bearer) = (("127.0.0.1", false), format!("Bearer {TOKEN}"));
    let (_, holds) = setting
        .ask(Method::GET, "/api/v1/holds", here, Some(&bearer), "")
        .await;
    assert_eq!(holds, json!([held]), "with the token");
    let mut held = held;
    held["by"]["operator"] = json!("");
    for token in [None, Some("Bearer 0123456789abcdeX")] {
        let (_, holds) = setting.ask(Method::GET, "/api/v1/holds", here, token, "").await;
        assert_eq!(holds, json!([held]), "{token:?}");
    }
    let routes = setting.look("/api/v1/routes").await;
    assert_eq!((&routes[0]["hold"], &routes[1]["hold"]), (&held, &Value::Null));
    assert_eq!(setting.look("/api/v1/router").await["holds"], json!([held]));
}
