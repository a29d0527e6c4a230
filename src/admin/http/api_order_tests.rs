//! `/api/v1`: what operators ask for, and what reaches the router.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};

use super::api_tests::{Setting, setting};
use super::fixture::*;
use super::router::router;
use crate::config::LocalMember;

#[tokio::test]
async fn what_is_asked_for_is_done() {
    let setting = setting();
    for (path, body, told) in [
        ("members/db1/drain", "", "main db1 Admin(Drain)"),
        ("members/db2/maint", "{}", "main db2 Admin(Maint)"),
        ("members/kept/ready", "", "main kept Admin(Ready)"),
        (
            "members/db1/weight",
            "{\"weight\": 256}",
            "main db1 Weight(Some(256))",
        ),
        (
            "members/db1/weight",
            "{\"weight\": null}",
            "main db1 Weight(None)",
        ),
        (
            "members/db1/close-sessions",
            "",
            "main db1 AtBoundary { grace: None }",
        ),
        (
            "members/db1/close-sessions",
            "{\"when\": \"boundary\", \"grace_s\": 30}",
            "main db1 AtBoundary { grace: Some(30s) }",
        ),
        (
            "members/db1/close-sessions",
            "{\"when\": \"now\"}",
            "main db1 Now",
        ),
        ("clusters/main/forget-identity", "", "forget-identity main"),
        (
            "pools/reconnect",
            "{\"member\": \"db1\"}",
            "reconnect member db1 of cluster main",
        ),
        ("pools/reconnect", "{\"all\": true}", "reconnect all"),
        ("sessions/7/kill", "", "7 Now"),
        (
            "sessions/7/kill",
            "{\"when\": \"boundary\"}",
            "7 AtBoundary { grace: None }",
        ),
    ] {
        let (status, _) = setting.change(&format!("/api/v1/{path}"), body).await;
        assert!(status.is_success(), "{path} {status}");
        assert_eq!(setting.told(), [told]);
    }
}

#[tokio::test]
async fn what_is_not_understood_changes_nothing() {
    let setting = setting();
    let large = " ".repeat(5000);
    for (path, body, expected) in [
        ("members/db9/drain", "", 404),
        ("pools/reconnect", "", 400),
        ("pools/reconnect", "{\"all\": false}", 400),
        ("pools/reconnect", "{\"member\": \"db1\", \"route\": \"r\"}", 400),
        ("pools/reconnect", "{\"member\": \"db9\"}", 404),
        ("pools/reconnect", "{\"route\": \"nowhere\"}", 404),
        ("clusters/other/forget-identity", "", 404),
        ("members/db1/stop", "", 404),
        ("members/db1/drain?cluster=other", "", 404),
        ("members/db1/weight", "", 400),
        ("members/db1/weight", "{\"weight\": 257}", 400),
        ("members/db1/weight", "{\"weight\": -1}", 400),
        ("members/db1/weight", "{\"weight\": \"5\"}", 400),
        ("members/db1/weight", "{\"weight\": 5, \"wait\": 1}", 400),
        ("members/db1/close-sessions", "{\"when\": \"soon\"}", 400),
        (
            "members/db1/close-sessions",
            "{\"when\": \"now\", \"grace_s\": 1}",
            400,
        ),
        ("members/db1/close-sessions", "{\"grace_s\": 86401}", 400),
        ("members/db1/close-sessions", "[]", 400),
        ("members/db1/drain", &large, 400),
        ("sessions/8/kill", "", 404),
        ("sessions/x/kill", "", 404),
    ] {
        let (status, answer) = setting.change(&format!("/api/v1/{path}"), body).await;
        assert_eq!(status, expected, "{path} {body}");
        assert!(answer["error"].is_string());
        assert_eq!(setting.told(), [""; 0], "{path}");
    }
}

#[tokio::test]
async fn the_router_itself_is_drained_and_taken_back() {
    let setting = setting();
    let router = setting.look("/api/v1/router").await;
    assert_eq!(
        (&router["state"], &router["ready"]),
        (&json!("ready"), &json!(true))
    );
    assert_eq!(router["sessions"], 1);
    for (action, told) in [
        ("drain", "router drained true"),
        ("ready", "router drained false"),
    ] {
        let (status, _) = setting.change(&format!("/api/v1/router/{action}"), "").await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(setting.told(), [told]);
    }
    let (status, _) = setting.change("/api/v1/router/maint", "").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let path = "/api/v1/router/drain";
    let (status, _) = setting
        .ask(Method::POST, path, ("127.0.0.1", false), None, "")
        .await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "without the token");
}

#[tokio::test]
async fn a_route_is_disabled_and_enabled_by_name() {
    let setting = setting();
    let routes = setting.look("/api/v1/routes").await;
    assert_eq!(
        routes[0],
        json!({
            "name": "read-write", "cluster": "main", "access": "read-write", "admin": "enabled", "pool": "off",
            "paused_s": null, "hold": null, "members": ["db1"], "sessions": 1
        })
    );
    assert_eq!(routes[1]["name"], "read-only");
    assert_eq!(routes[1]["members"], json!([]));
    for (action, told) in [
        ("disable", "route read-write disabled true"),
        ("enable", "route read-write disabled false"),
    ] {
        let path = format!("/api/v1/routes/read-write/{action}");
        let (status, answer) = setting.change(&path, "").await;
        assert_eq!((status, &answer["name"]), (StatusCode::OK, &json!("read-write")));
        assert_eq!(setting.told(), [told]);
        let ask = setting.ask(Method::POST, &path, ("127.0.0.1", false), None, "");
        assert_eq!(ask.await.0, StatusCode::UNAUTHORIZED, "without the token");
    }
    let events = setting.look("/api/v1/events").await;
    assert_eq!(events[0]["event"], "route_disabled");
    assert_eq!(events[1]["event"], "route_enabled");
    assert_eq!(events[1]["route"], "read-write");
    for (path, error) in [
        ("/api/v1/routes/other/disable", "no listener has a route other"),
        ("/api/v1/routes/read-write/drain", "there is no such action"),
    ] {
        let (status, answer) = setting.change(path, "").await;
        assert_eq!((status, &answer["error"]), (StatusCode::NOT_FOUND, &json!(error)));
    }
    assert_eq!(setting.told(), [""; 0]);
}

#[tokio::test]
async fn a_disabled_route_is_shown_even_if_no_listener_has_it() {
    let handles = handles(vec![view(led(vec![primary("db1")]), LocalMember::None)]);
    let disabled = ["gone", "read-only"].map(str::to_owned);
    handles.disabled_routes.replace(disabled.into());
    let setting = Setting {
        router: router(app(handles)),
        operations: Arc::default(),
        token: Arc::default(),
    };
    let routes = setting.look("/api/v1/routes").await;
    let shown = routes.as_array().unwrap().iter();
    let shown: Vec<_> = shown.map(|route| (&route["name"], &route["admin"])).collect();
    let expected = [
        (&json!("read-write"), &json!("enabled")),
        (&json!("read-only"), &json!("disabled")),
        (&json!("gone"), &json!("disabled")),
    ];
    assert_eq!(shown, expected);
    assert_eq!(routes[2]["cluster"], Value::Null);
    let router = setting.look("/api/v1/router").await;
    assert_eq!(router["disabled_routes"], json!(["gone", "read-only"]));
}
