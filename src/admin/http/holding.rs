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
use super::answer::JsonAnswer;
use super::api::{object, shown_caller};
use super::app::{App, Params, Subject};
use super::guard::Caller;
use super::routes;
use crate::cluster::snapshot::MemberName;
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
    let report = app.handles.holding.before_stop(&cluster, &member, grace).await;
    let report = match report {
        Ok(report) => report,
        Err(error) => return JsonAnswer::problem(StatusCode::CONFLICT, &error, ""),
    };
    app.handles.events.emit(OperatorEvent::StopPrepared {
        cluster,
        member: report.member.clone(),
        transactions: report.left.transactions,
        waited_ms: report.waited_ms,
        by: shown_caller(caller),
    });
    for missing in &report.missing {
        tracing::warn!(
            member = report.member,
            "clients are not held everywhere: {missing}"
        );
    }
    JsonAnswer::json(StatusCode::OK, &report)
}

/// `GET /api/v1/switchover`
pub(super) fn switchover(app: &App) -> JsonAnswer {
    JsonAnswer::json(StatusCode::OK, &app.handles.holding.switchover())
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
            Ok(()) => switchover(app),
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
    let done = match action {
        "plan" => holding.plan_switchover(&request).await,
        "start" => holding.switch_over(&request).await,
        _ => {
            return JsonAnswer::problem(
                StatusCode::NOT_FOUND,
                "there is no such action",
                "there is: plan, start, abort",
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
            by: shown_caller(caller),
        });
    }
    JsonAnswer::json(StatusCode::OK, &plan)
}

/// `POST /api/v1/routes/NAME/pause`, `/unpause`; other actions are not about holds.
pub(super) async fn administer_route(
    app: &App,
    caller: Option<Extension<Caller>>,
    path: Result<Path<(String, String)>, PathRejection>,
    body: Body,
) -> JsonAnswer {
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
        return routes::no_route();
    }
    let by = shown_caller(caller);
    let done = if is_pause {
        handles.events.emit(OperatorEvent::RoutePaused {
            route: route.clone(),
            by,
        });
        handles.holding.pause(&route, &request).await
    } else {
        let done = handles.holding.unpause(&route, request.all_peers).await;
        handles.events.emit(OperatorEvent::RouteUnpaused { route, by });
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
            return Err(super::api::no_member(app, view));
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
