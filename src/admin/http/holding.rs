//! `/api/v1/before-stop` and `/api/v1/switchover`: orders that hold clients.

use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{StatusCode, Uri};
use serde_json::{Map, Value, json};

use super::super::handles::ClusterView;
use super::super::holding::{PauseRequest, SwitchoverRequest};
use super::super::views::HoldView;
use super::answer::JsonAnswer;
use super::api::{object, shown_caller};
use super::app::{App, Params, Subject};
use super::guard::{Caller, HasToken};
use super::names::{no_cluster, no_member};
use super::routes;
use crate::cluster::snapshot::{MemberName, OrderedBy};
use crate::events::OperatorEvent;

/// The longest grace, in milliseconds: a hold does not last longer.
const MAX_GRACE_MS: u64 = 30_000;
const DEFAULT_GRACE_MS: u64 = 5000;
/// The longest pause.
const MAX_PAUSE_MS: u64 = 3_600_000;
/// A third of the longest hold is for Patroni.
const MAX_SWITCHOVER_GRACE_MS: u64 = 20_000;

/// `GET /api/v1/before-stop`
pub(super) async fn stop_limit(app: &App, uri: &Uri) -> JsonAnswer {
    match subject(app, uri) {
        Ok((cluster, member)) => {
            let limit = app.handles.holding.stop_limit(&cluster).await;
            JsonAnswer::json(
                StatusCode::OK,
                &json!({
                    "cluster": cluster,
                    "member": member.as_str(),
                    "limit_ms": u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
                }),
            )
        }
        Err(answer) => answer,
    }
}

/// `POST /api/v1/before-stop`
pub(super) async fn before_stop(
    app: &App,
    caller: Option<Extension<Caller>>,
    uri: &Uri,
    body: Body,
) -> JsonAnswer {
    let body = match object(body).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let Some(grace) = grace(&body) else {
        return JsonAnswer::problem(
            StatusCode::BAD_REQUEST,
            "the body does not say how long to wait",
            "send {\"grace_ms\": 5000}, 0 to 30000",
        );
    };
    let (cluster, member) = match subject(app, uri) {
        Ok(found) => found,
        Err(answer) => return answer,
    };
    let by = shown_caller(caller);
    let report = app
        .handles
        .holding
        .before_stop(&cluster, &member, grace, &by)
        .await;
    let report = match report {
        Ok(report) => report,
        Err(error) => return JsonAnswer::problem(StatusCode::CONFLICT, &error, ""),
    };
    app.handles.events.emit(OperatorEvent::StopPrepared {
        cluster,
        member: report.member.clone(),
        transactions: report.left.transactions,
        waited_ms: report.waited_ms,
        by,
    });
    for missing in &report.missing {
        tracing::warn!(
            member = report.member,
            "clients are not held everywhere: {missing}"
        );
    }
    JsonAnswer::json(StatusCode::OK, &report)
}

/// `POST /api/v1/before-stop/check`, `/end`
pub(super) async fn administer_stop(
    app: &App,
    caller: Option<Extension<Caller>>,
    path: &Result<Path<String>, PathRejection>,
    uri: &Uri,
) -> JsonAnswer {
    let action = path.as_deref().map(String::as_str).unwrap_or_default();
    if !matches!(action, "check" | "end") {
        return JsonAnswer::problem(
            StatusCode::NOT_FOUND,
            "there is no such action",
            "the actions are check, end",
        );
    }
    let (cluster, member) = match subject(app, uri) {
        Ok(found) => found,
        Err(answer) => return answer,
    };
    let holding = &app.handles.holding;
    if action == "check" {
        return match holding.check_stop(&cluster, &member).await {
            Ok(check) => JsonAnswer::json(StatusCode::OK, &check),
            Err(error) => JsonAnswer::problem(StatusCode::CONFLICT, &error, ""),
        };
    }
    match holding.end_stop(&cluster, &member).await {
        Ok(end) => {
            if end.was_held {
                app.handles.events.emit(OperatorEvent::StopCalledOff {
                    cluster,
                    member: end.member.clone(),
                    by: shown_caller(caller),
                });
            }
            JsonAnswer::json(StatusCode::OK, &end)
        }
        Err(error) => JsonAnswer::problem(StatusCode::CONFLICT, &error, ""),
    }
}

/// `GET /api/v1/holds`
pub(super) async fn holds(app: &App, token: Option<Extension<HasToken>>) -> JsonAnswer {
    let missing = app.handles.operations.refresh().await;
    JsonAnswer::json(StatusCode::OK, &held(app, token)).without(&missing)
}

/// The routes that hold their clients; without the token, not which operator has ordered it.
pub(super) fn held(app: &App, token: Option<Extension<HasToken>>) -> Vec<HoldView> {
    let mut all = app.handles.holding.holds();
    for hold in &mut all {
        hold.by = hold.by.take().and_then(|by| shown(by, token));
    }
    all
}

fn shown(by: OrderedBy, token: Option<Extension<HasToken>>) -> Option<OrderedBy> {
    match token {
        Some(Extension(HasToken(true))) => Some(by),
        _ => by.without_operator(),
    }
}

/// `GET /api/v1/switchover`
pub(super) fn switchover(app: &App, token: Option<Extension<HasToken>>) -> JsonAnswer {
    let mut status = app.handles.holding.switchover();
    if let Some(status) = &mut status {
        status.run_by = status.run_by.take().and_then(|by| shown(by, token));
    }
    JsonAnswer::json(StatusCode::OK, &status)
}

/// `POST /api/v1/switchover/plan`, `/start`, `/abort`
pub(super) async fn administer_switchover(
    app: &App,
    caller: Option<Extension<Caller>>,
    path: &Result<Path<String>, PathRejection>,
    body: Body,
) -> JsonAnswer {
    let holding = &app.handles.holding;
    let body = match object(body).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let action = path.as_deref().map(String::as_str).unwrap_or_default();
    if action == "abort" {
        return match holding.abort_switchover() {
            Ok(()) => switchover(app, Some(Extension(HasToken(true)))),
            Err(error) => JsonAnswer::problem(StatusCode::CONFLICT, &error, ""),
        };
    }
    let Ok(mut request) = serde_json::from_value::<SwitchoverRequest>(Value::Object(body)) else {
        return JsonAnswer::problem(
            StatusCode::BAD_REQUEST,
            "the body is not a request for a switchover",
            "send {\"cluster\": \"NAME\", \"to\": \"NODE\", \"grace_ms\": 10000, \"without_peers\": []}; all are optional",
        );
    };
    let clusters = &app.handles.clusters;
    if request.cluster.is_empty()
        && let Some(first) = clusters.first()
    {
        request.cluster = first.name.to_string();
    }
    if !clusters.iter().any(|view| *view.name == *request.cluster) {
        return no_cluster(app, &request.cluster);
    }
    if request
        .grace_ms
        .is_some_and(|grace| grace > MAX_SWITCHOVER_GRACE_MS)
    {
        return JsonAnswer::problem(
            StatusCode::BAD_REQUEST,
            "the grace is too long",
            "clients are held for half a minute at most: grace_ms is 0 to 20000",
        );
    }
    let by = shown_caller(caller);
    let done = match action {
        "plan" => holding.plan_switchover(&request).await,
        "start" => holding.switch_over(&request, &by).await,
        _ => {
            return JsonAnswer::problem(
                StatusCode::NOT_FOUND,
                "there is no such action",
                "the actions are plan, start, abort",
            );
        }
    };
    let plan = match done {
        Ok(plan) => plan,
        Err(error) => return JsonAnswer::problem(StatusCode::CONFLICT, &error, ""),
    };
    if action == "start" {
        app.handles.events.emit(OperatorEvent::SwitchoverBegun {
            cluster: plan.cluster.clone(),
            leader: plan.leader.clone(),
            candidate: plan.candidate.clone(),
            by,
        });
    }
    JsonAnswer::json(StatusCode::OK, &plan)
}

/// `POST /api/v1/routes/NAME/pause`, `/unpause`; other actions are not about holds.
pub(super) async fn administer_route(
    app: &App,
    caller: Option<Extension<Caller>>,
    path: Result<Path<(String, String)>, PathRejection>,
    uri: &Uri,
    body: Body,
) -> JsonAnswer {
    if let Ok(Path((route, _))) = &path
        && let Err(answer) = routes::is_of_cluster(app, uri, route)
    {
        return answer;
    }
    let is_pause = match &path {
        Ok(Path((_, action))) if action == "pause" => true,
        Ok(Path((_, action))) if action == "unpause" => false,
        _ => return routes::administer(app, caller, path).await,
    };
    let route = path.map(|Path((route, _))| route).unwrap_or_default();
    let body = match object(body).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let request = serde_json::from_value::<PauseRequest>(Value::Object(body));
    let limits = |request: &PauseRequest| {
        request.wait_ms.is_none_or(|wait| wait <= MAX_PAUSE_MS)
            && request
                .timeout_ms
                .is_none_or(|lasts| (1..=MAX_PAUSE_MS).contains(&lasts))
    };
    let Some(request) = request.ok().filter(limits) else {
        return JsonAnswer::problem(
            StatusCode::BAD_REQUEST,
            "the body does not say how to pause the route",
            "send {\"wait_ms\": 30000, \"timeout_ms\": 300000, \"all_peers\": false}; times are up to 3600000",
        );
    };
    let handles = &app.handles;
    let mut known = handles.clusters.iter().flat_map(ClusterView::routes);
    // A pause outlives its route.
    if !known.any(|known| *known.name == *route)
        && (is_pause || !handles.holding.paused().contains_key(&route))
    {
        return routes::no_route(app, &route);
    }
    let by = shown_caller(caller);
    let done = if is_pause {
        handles.events.emit(OperatorEvent::RoutePaused {
            route: route.clone(),
            by: by.clone(),
        });
        handles.holding.pause(&route, &request, &by).await
    } else {
        let done = handles.holding.unpause(&route, request.all_peers).await;
        if done.as_ref().is_ok_and(|report| report.was_paused) {
            handles.events.emit(OperatorEvent::RouteUnpaused { route, by });
        }
        done
    };
    match done {
        Ok(report) => JsonAnswer::json(StatusCode::OK, &report),
        Err(error) => JsonAnswer::problem(StatusCode::SERVICE_UNAVAILABLE, &error, ""),
    }
}

fn grace(body: &Map<String, Value>) -> Option<Duration> {
    if body.keys().any(|key| key != "grace_ms") {
        return None;
    }
    let grace = match body.get("grace_ms") {
        None => DEFAULT_GRACE_MS,
        Some(given) => given.as_u64()?,
    };
    (grace <= MAX_GRACE_MS).then_some(Duration::from_millis(grace))
}

/// The cluster and the member: the one of `?member=`, or the local one.
fn subject(app: &App, uri: &Uri) -> Result<(String, MemberName), JsonAnswer> {
    let params = Params::of(uri);
    let (index, view) = app.cluster(&params)?;
    let snapshot = view.snapshot.borrow().clone();
    let cluster = view.name.to_string();
    if let Some(named) = params.first("member") {
        let name = MemberName::new(named);
        if snapshot.member(&name).is_none() {
            return Err(no_member(app, view, &name));
        }
        return Ok((cluster, name));
    }
    match app.local(index, &snapshot) {
        Subject::Member(member) => Ok((cluster, member.name.clone())),
        Subject::NotYet(why) | Subject::Missing(why) => {
            Err(JsonAnswer::problem(StatusCode::CONFLICT, why, ""))
        }
    }
}
