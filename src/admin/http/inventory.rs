//! What the router has and how it is set.

use axum::Extension;
use axum::http::{HeaderMap, StatusCode, Uri, header};

use super::super::gather;
use super::super::stats as traffic;
use super::answer::JsonAnswer;
use super::app::{App, Params};
use super::guard::HasToken;

/// `GET /api/v1/listeners`
pub(super) fn listeners(app: &App, uri: &Uri) -> JsonAnswer {
    let mut all = app.handles.inventory.listeners();
    for (key, wanted) in Params::of(uri).pairs() {
        match key {
            "cluster" => all.retain(|listener| listener.cluster.as_deref() == Some(wanted)),
            "route" => all.retain(|listener| listener.route.as_deref() == Some(wanted)),
            _ => {}
        }
    }
    JsonAnswer::json(StatusCode::OK, &all)
}

/// `GET /api/v1/limits`
pub(super) fn limits(app: &App) -> JsonAnswer {
    JsonAnswer::json(StatusCode::OK, &gather::limits(&app.handles))
}

/// `GET /api/v1/stats`
pub(super) async fn stats(app: &App, uri: &Uri) -> JsonAnswer {
    let mut all = traffic::stats(&app.handles).await.value;
    for (key, wanted) in Params::of(uri).pairs() {
        match key {
            "cluster" => all.retain(|row| row.cluster == wanted),
            "route" => all.retain(|row| row.route == wanted),
            "member" => all.retain(|row| row.member.as_deref() == Some(wanted)),
            _ => {}
        }
    }
    JsonAnswer::json(StatusCode::OK, &all)
}

/// `GET /api/v1/certificates`
pub(super) fn certificates(app: &App) -> JsonAnswer {
    JsonAnswer::json(StatusCode::OK, &app.handles.inventory.certificates())
}

/// `GET /api/v1/config`: only with the token, also on this host. It names files and accounts.
pub(super) fn config(app: &App, headers: &HeaderMap, token: Option<Extension<HasToken>>) -> JsonAnswer {
    if app.handles.token.load().is_none() {
        return JsonAnswer::problem(
            StatusCode::FORBIDDEN,
            "this needs a token, and none is configured",
            "set http.token_file; the console has the same as the view `config`",
        );
    }
    if !matches!(token, Some(Extension(HasToken(true)))) {
        return JsonAnswer::problem(
            StatusCode::UNAUTHORIZED,
            if headers.contains_key(header::AUTHORIZATION) {
                "this needs the token, and the one that was sent is wrong"
            } else {
                "this needs the token"
            },
            "send `Authorization: Bearer TOKEN`, with the content of http.token_file; \
             the console has the same as the view `config`",
        )
        .challenging();
    }
    JsonAnswer::json(StatusCode::OK, &app.handles.inventory.settings())
}

/// `GET /api/v1/peers`
pub(super) async fn peers(app: &App) -> JsonAnswer {
    JsonAnswer::json(StatusCode::OK, &app.handles.inventory.peers().await)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use axum::http::{Method, StatusCode};
    use serde_json::json;

    use super::super::api_tests::{TOKEN, setting};

    #[tokio::test]
    async fn what_the_router_has_is_shown_and_its_configuration_to_operators_only() {
        let setting = setting();
        let listeners = setting.look("/api/v1/listeners").await;
        assert_eq!(listeners[0]["port"], 6432);
        assert_eq!(listeners[0]["route"], "read-write");
        for (query, count) in [("?cluster=main", 1), ("?route=read-only", 0)] {
            let some = setting.look(&format!("/api/v1/listeners{query}")).await;
            assert_eq!(some.as_array().unwrap().len(), count, "{query}");
        }
        let limits = setting.look("/api/v1/limits").await;
        let named = |name: &str| {
            let all = limits.as_array().unwrap().iter();
            all.clone().find(|limit| limit["name"] == name).unwrap().clone()
        };
        assert_eq!(named("clients")["limit"], 5000);
        assert_eq!(named("HTTP connections")["limit"], 512);
        assert!(named("open files")["used"].as_u64() > Some(2));
        assert!(named("memory")["used"].as_u64() > Some(100_000));
        assert_eq!(setting.look("/api/v1/certificates").await[0]["days_left"], 90);
        assert_eq!(setting.look("/api/v1/peers").await[0]["state"], "down");
        let here = ("127.0.0.1", false);
        let path = "/api/v1/config";
        let (refused, _) = setting.ask(Method::GET, path, here, None, "").await;
        assert_eq!(refused, StatusCode::UNAUTHORIZED);
        let (refused, answer) = setting
            .ask(Method::GET, path, here, Some("Bearer wrong"), "")
            .await;
        assert_eq!(refused, StatusCode::UNAUTHORIZED);
        assert!(answer["error"].as_str().unwrap().contains("wrong"), "{answer}");
        let bearer = format!("Bearer {TOKEN}");
        let (status, config) = setting.ask(Method::GET, path, here, Some(&bearer), "").await;
        assert_eq!((status, &config[0]["line"]), (StatusCode::OK, &json!(7)));
        setting.token.store(None);
        let (refused, answer) = setting.ask(Method::GET, path, here, None, "").await;
        assert_eq!(refused, StatusCode::FORBIDDEN);
        assert!(answer["hint"].as_str().unwrap().contains("http.token_file"));
    }
}
