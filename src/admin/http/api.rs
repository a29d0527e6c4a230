//! `/api/v1`: the topology and the sessions, and what an operator changes of them.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, to_bytes};
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderValue, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::super::actions::{self, MOST_GRACE};
use super::super::gather::{self, Shown};
use super::super::handles::{ClusterView, Phase};
use super::super::operations::{Change, Ending, Gathered, Reconnection};
use super::super::views::{ClusterSummary, EventView, MemberView, SessionView};
use super::answer::{JsonAnswer, TOTAL};
use super::app::{App, Params};
use super::guard::{Caller, HasToken};
use super::holding::held;
use super::names::{no_cluster, no_member};
use super::routes::no_route;
use crate::cluster::snapshot::{AdminState, MemberName};
use crate::config::MOST_WEIGHT;
use crate::events::OperatorEvent;

/// A request's body.
const MAX_BODY: usize = 4096;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

type CalledBy = Option<Extension<Caller>>;

/// `GET /api/v1/clusters`
pub(super) fn clusters(app: &App) -> JsonAnswer {
    let all: Vec<ClusterSummary> = app.handles.clusters.iter().map(ClusterSummary::new).collect();
    JsonAnswer::json(StatusCode::OK, &all)
}

/// `GET /api/v1/members`
pub(super) async fn members(app: &App, uri: &Uri) -> JsonAnswer {
    let view = match find(app, uri) {
        Ok(view) => view,
        Err(answer) => return answer,
    };
    let missing = app.handles.operations.refresh().await;
    let snapshot = view.snapshot.borrow().clone();
    let all: Vec<MemberView> = snapshot
        .members
        .iter()
        .map(|member| actions::shown(&app.handles, view, &snapshot, member))
        .collect();
    JsonAnswer::json(StatusCode::OK, &all).without(&missing)
}

/// `GET /api/v1/sessions`
pub(super) async fn sessions(app: &App, uri: &Uri) -> Response {
    let params = Params::of(uri);
    let Gathered {
        value: mut all,
        missing,
    } = app.handles.operations.sessions().await;
    for (key, wanted) in params.pairs() {
        match key {
            "cluster" => all.retain(|session| session.cluster == wanted),
            "member" => all.retain(|session| session.member == wanted),
            "user" => all.retain(|session| session.user == wanted),
            "database" => all.retain(|session| session.database == wanted),
            "route" => all.retain(|session| session.route == wanted),
            "search" => {
                let words = wanted.to_lowercase();
                all.retain(|session| has_all(session, &words));
            }
            _ => {}
        }
    }
    let total = all.len();
    match params.first("limit").map(str::parse::<usize>) {
        None => {}
        Some(Ok(limit)) => all.truncate(limit),
        Some(Err(_)) => {
            return JsonAnswer::problem(
                StatusCode::BAD_REQUEST,
                "`limit` is not a number",
                "send how many sessions you want at most, or leave `limit` out",
            )
            .into_response();
        }
    }
    let answer = JsonAnswer::json(StatusCode::OK, &all).without(&missing);
    let mut response = answer.into_response();
    response.headers_mut().insert(TOTAL, HeaderValue::from(total));
    response
}

/// Whether each of the words, in lower case, occurs in what the session shows as text.
fn has_all(session: &SessionView, words: &str) -> bool {
    let SessionView { id, state, .. } = session;
    let text = format!(
        "{id} {} {} {} {} {} {} {state} {} {}",
        session.client,
        session.user,
        session.database,
        session.cluster,
        session.route,
        session.member,
        session.phase,
        session.pins.join(" "),
    );
    let text = text.to_lowercase();
    words.split_whitespace().all(|word| text.contains(word))
}

/// `GET /api/v1/pools`
pub(super) async fn pools(app: &App, uri: &Uri) -> JsonAnswer {
    let params = Params::of(uri);
    let Gathered {
        value: mut all,
        missing,
    } = app.handles.operations.pools().await;
    for (key, wanted) in params.pairs() {
        match key {
            "cluster" => all.retain(|pool| pool.cluster == wanted),
            "route" => all.retain(|pool| pool.route == wanted),
            "user" => all.retain(|pool| pool.user == wanted),
            "database" => all.retain(|pool| pool.database == wanted),
            _ => {}
        }
    }
    JsonAnswer::json(StatusCode::OK, &all).without(&missing)
}

/// `GET /api/v1/servers`
pub(super) async fn servers(app: &App, uri: &Uri) -> JsonAnswer {
    let params = Params::of(uri);
    let Gathered {
        value: mut all,
        missing,
    } = gather::server_connections(&*app.handles.operations).await;
    for (key, wanted) in params.pairs() {
        match key {
            "cluster" => all.retain(|server| server.cluster == wanted),
            "member" => all.retain(|server| server.member == wanted),
            "route" => all.retain(|server| server.route == wanted),
            "user" => all.retain(|server| server.user == wanted),
            "database" => all.retain(|server| server.database == wanted),
            _ => {}
        }
    }
    JsonAnswer::json(StatusCode::OK, &all).without(&missing)
}

/// `POST /api/v1/pools/reconnect`
pub(super) async fn reconnect(app: Arc<App>, caller: CalledBy, uri: Uri, body: Body) -> JsonAnswer {
    let body = match object(body).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let which = match (body.len(), body.iter().next()) {
        (1, Some((key, Value::String(name)))) if key == "member" => {
            let view = match find(&app, &uri) {
                Ok(view) => view,
                Err(answer) => return answer,
            };
            let member = MemberName::new(name.as_str());
            if view.snapshot.borrow().member(&member).is_none() {
                return no_member(&app, view, &member);
            }
            Reconnection::Member {
                cluster: view.name.to_string(),
                member: name.clone(),
            }
        }
        (1, Some((key, Value::String(name)))) if key == "route" => {
            let mut routes = app.handles.clusters.iter().flat_map(ClusterView::routes);
            if !routes.any(|route| *route.name == **name) {
                return no_route(&app, name);
            }
            Reconnection::Route(name.clone())
        }
        (1, Some((key, Value::Bool(true)))) if key == "all" => Reconnection::All,
        _ => {
            return JsonAnswer::problem(
                StatusCode::BAD_REQUEST,
                "the body does not say which connections are to be replaced",
                "send {\"member\": \"NAME\"}, {\"route\": \"NAME\"} or {\"all\": true}",
            );
        }
    };
    let Gathered {
        value: connections,
        missing,
    } = actions::reconnect(&app.handles, &which, shown_caller(caller)).await;
    JsonAnswer::json(StatusCode::OK, &json!({"connections": connections})).without(&missing)
}

/// `GET /api/v1/events`
pub(super) fn events(app: &App, uri: &Uri) -> JsonAnswer {
    let params = Params::of(uri);
    let since = match params.since("event") {
        Ok(since) => since,
        Err(answer) => return answer,
    };
    let all: Vec<EventView> = app
        .handles
        .events
        .since(since)
        .iter()
        .map(|recorded| EventView::new(recorded))
        .collect();
    JsonAnswer::json(StatusCode::OK, &all)
}

/// `POST /api/v1/members/NAME/ACTION`
pub(super) async fn administer(
    app: Arc<App>,
    caller: CalledBy,
    path: Result<Path<(String, String)>, PathRejection>,
    uri: Uri,
    body: Body,
) -> JsonAnswer {
    let Ok(Path((name, action))) = path else {
        return JsonAnswer::problem(StatusCode::BAD_REQUEST, "the path is not UTF-8", "");
    };
    let name = MemberName::new(name);
    let body = match object(body).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let view = match find(&app, &uri) {
        Ok(view) => view,
        Err(answer) => return answer,
    };
    let is_here = view.snapshot.borrow().member(&name).is_some();
    if !is_here && !app.handles.operations.has_kept(&view.name, &name) {
        return no_member(&app, view, &name);
    }
    let change = match (action.as_str(), AdminState::named(&action)) {
        (_, Some(state)) => Change::Admin(state),
        ("weight", _) => match weight(&body) {
            Ok(weight) => Change::Weight(weight),
            Err(answer) => return answer,
        },
        ("close-sessions", _) => return close_sessions(&app, caller, view, &name, &body).await,
        _ => {
            return JsonAnswer::problem(
                StatusCode::NOT_FOUND,
                "there is no such action",
                "the actions are ready, drain, maint, weight, close-sessions",
            );
        }
    };
    change_member(&app, caller, view, &name, change).await
}

async fn change_member(
    app: &App,
    caller: CalledBy,
    view: &ClusterView,
    name: &MemberName,
    change: Change,
) -> JsonAnswer {
    let changed = actions::change_member(&app.handles, view, name, change, shown_caller(caller)).await;
    let changed = match changed {
        Ok(changed) => changed,
        Err(busy) => {
            return JsonAnswer::problem(StatusCode::SERVICE_UNAVAILABLE, &busy.to_string(), "");
        }
    };
    let status = if changed.in_time {
        StatusCode::OK
    } else {
        StatusCode::ACCEPTED
    };
    let answer = match changed.member {
        Some(member) => JsonAnswer::json(status, &member),
        None => JsonAnswer::json(status, &json!({"name": name.as_str(), "cluster": &*view.name})),
    };
    answer.without(&changed.missing)
}

async fn close_sessions(
    app: &App,
    caller: CalledBy,
    view: &ClusterView,
    name: &MemberName,
    body: &Map<String, Value>,
) -> JsonAnswer {
    let ending = match ending(body, Ending::AtBoundary { grace: None }) {
        Ok(ending) => ending,
        Err(answer) => return answer,
    };
    let by = shown_caller(caller);
    let Gathered {
        value: sessions,
        missing,
    } = actions::close_sessions(&app.handles, &view.name, name, ending, by).await;
    JsonAnswer::json(StatusCode::OK, &json!({"sessions": sessions})).without(&missing)
}

/// `DELETE /api/v1/sessions/ID`, `POST /api/v1/sessions/ID/kill`
pub(super) async fn kill(
    app: Arc<App>,
    caller: CalledBy,
    path: Result<Path<String>, PathRejection>,
    body: Body,
) -> JsonAnswer {
    let body = match object(body).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let ending = match ending(&body, Ending::Now) {
        Ok(ending) => ending,
        Err(answer) => return answer,
    };
    let id = path.ok().and_then(|Path(id)| id.parse::<u64>().ok());
    let Gathered {
        value: found,
        missing,
    } = match id {
        Some(id) => actions::kill(&app.handles, id, ending, shown_caller(caller)).await,
        None => Gathered::whole(None),
    };
    let Some(session) = found else {
        if !missing.is_empty() {
            return JsonAnswer::problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "the processes that answer have no session of this number",
                &missing.join("; "),
            )
            .without(&missing);
        }
        return JsonAnswer::problem(
            StatusCode::NOT_FOUND,
            "there is no session of this number",
            "`trunkline sessions` (GET /api/v1/sessions) shows the numbers",
        );
    };
    JsonAnswer::json(StatusCode::OK, &session)
}

/// `GET /api/v1/router`
pub(super) async fn router(app: &App, token: Option<Extension<HasToken>>) -> JsonAnswer {
    let missing = app.handles.operations.refresh().await;
    let view = gather::router(&app.handles, held(app, token));
    JsonAnswer::json(StatusCode::OK, &view).without(&missing)
}

/// `GET /api/v1/health`
pub(super) async fn health(app: &App, token: Option<Extension<HasToken>>, uri: &Uri) -> JsonAnswer {
    let handles = &app.handles;
    let mut missing = handles.operations.refresh().await;
    let pools = handles.operations.pools().await;
    missing.extend(pools.missing);
    missing.sort_unstable();
    missing.dedup();
    let has_token = matches!(token, Some(Extension(HasToken(true))));
    let params = Params::of(uri);
    let health = Shown::of(handles, has_token).health(
        handles,
        params.first("cluster"),
        &pools.value,
        &handles.inventory.certificates(),
    );
    JsonAnswer::json(StatusCode::OK, &health).without(&missing)
}

/// `POST /api/v1/router/drain`, `POST /api/v1/router/ready`
pub(super) async fn administer_router(
    app: &App,
    caller: CalledBy,
    path: &Result<Path<String>, PathRejection>,
) -> JsonAnswer {
    let is_drained = match path.as_deref().map(String::as_str) {
        Ok("drain") => true,
        Ok("ready") => false,
        _ => {
            return JsonAnswer::problem(
                StatusCode::NOT_FOUND,
                "there is no such action",
                "the actions are drain, ready",
            );
        }
    };
    if matches!(app.handles.readiness.phase(), Phase::Leaving | Phase::Draining) {
        return JsonAnswer::problem(
            StatusCode::CONFLICT,
            "the router is shutting down",
            "its state cannot change any more",
        );
    }
    if let Err(busy) = app.handles.operations.drain_router(is_drained) {
        return JsonAnswer::problem(StatusCode::SERVICE_UNAVAILABLE, &busy.to_string(), "");
    }
    let by = shown_caller(caller);
    app.handles.events.emit(if is_drained {
        OperatorEvent::RouterDrained { by }
    } else {
        OperatorEvent::RouterReady { by }
    });
    router(app, Some(Extension(HasToken(true)))).await
}

/// `POST /api/v1/clusters/NAME/forget-identity`
pub(super) fn forget_identity(
    app: &App,
    caller: CalledBy,
    path: Result<Path<String>, PathRejection>,
) -> JsonAnswer {
    let name = path.map(|Path(name)| name).unwrap_or_default();
    let mut clusters = app.handles.clusters.iter();
    let Some(view) = clusters.find(|view| *view.name == *name) else {
        return no_cluster(app, &name);
    };
    let before = view.snapshot.borrow().system_identifier;
    if let Err(busy) = app.handles.operations.forget_identity(&view.name) {
        return JsonAnswer::problem(StatusCode::SERVICE_UNAVAILABLE, &busy.to_string(), "");
    }
    app.handles.events.emit(OperatorEvent::IdentityForgotten {
        cluster: view.name.to_string(),
        identifier: before,
        by: shown_caller(caller),
    });
    JsonAnswer::json(
        StatusCode::OK,
        &json!({"name": &*view.name, "forgotten": before.map(|identifier| identifier.to_string())}),
    )
}

/// `POST /api/v1/reload`
pub(super) async fn reload(app: Arc<App>, caller: CalledBy) -> JsonAnswer {
    match actions::reload(&app.handles, shown_caller(caller)).await {
        Some(answer) if answer.applied => JsonAnswer::json(StatusCode::OK, &answer),
        Some(answer) => JsonAnswer::json(StatusCode::UNPROCESSABLE_ENTITY, &answer),
        None => JsonAnswer::problem(StatusCode::SERVICE_UNAVAILABLE, "the router is shutting down", ""),
    }
}

pub(super) fn shown_caller(caller: CalledBy) -> String {
    caller.map_or_else(
        || "-".to_owned(),
        |Extension(caller)| format!("HTTP from {caller}"),
    )
}

pub(super) fn find<'a>(app: &'a App, uri: &Uri) -> Result<&'a ClusterView, JsonAnswer> {
    let params = Params::of(uri);
    let found = app.cluster(&params).map(|(_, view)| view);
    found.map_err(|_| no_cluster(app, params.first("cluster").unwrap_or_default()))
}

/// The body: a JSON object, or nothing.
pub(super) async fn object(body: Body) -> Result<Map<String, Value>, JsonAnswer> {
    let bad = |error: &str| {
        Err(JsonAnswer::problem(
            StatusCode::BAD_REQUEST,
            error,
            "send a JSON object of at most 4096 bytes, or nothing",
        ))
    };
    let bytes = match timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => return bad("the body is too large, or incomplete"),
        Err(_) => return bad("the body took too long"),
    };
    if bytes.is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) | Err(_) => bad("the body is not a JSON object"),
    }
}

fn weight(body: &Map<String, Value>) -> Result<Option<u16>, JsonAnswer> {
    let weight = match body.get("weight") {
        _ if body.len() > 1 => None,
        Some(Value::Null) => return Ok(None),
        Some(value) => value.as_u64().and_then(|weight| u16::try_from(weight).ok()),
        None => None,
    };
    weight
        .filter(|weight| *weight <= MOST_WEIGHT)
        .map(Some)
        .ok_or_else(|| {
            JsonAnswer::problem(
                StatusCode::BAD_REQUEST,
                "the weight is missing or not valid",
                "send {\"weight\": N}, 0 to 256, or null for the configured one",
            )
        })
}

/// `{"when": "now"}`, `{"when": "boundary", "grace_s": 30}`
fn ending(body: &Map<String, Value>, default: Ending) -> Result<Ending, JsonAnswer> {
    let bad = || {
        JsonAnswer::problem(
            StatusCode::BAD_REQUEST,
            "the body does not say how to end the sessions",
            "send {\"when\": \"now\"} or {\"when\": \"boundary\", \"grace_s\": 30}; grace_s is 0 to 86400",
        )
    };
    if body.keys().any(|key| key != "when" && key != "grace_s") {
        return Err(bad());
    }
    let grace = match body.get("grace_s") {
        None => None,
        Some(value) => match value.as_u64() {
            Some(seconds) if seconds <= MOST_GRACE => Some(Duration::from_secs(seconds)),
            _ => return Err(bad()),
        },
    };
    match (body.get("when").map(|value| value.as_str()), grace) {
        (Some(Some("now")), None) => Ok(Ending::Now),
        (None, None) => Ok(default),
        (Some(Some("boundary")) | None, grace) => Ok(Ending::AtBoundary { grace }),
        _ => Err(bad()),
    }
}
