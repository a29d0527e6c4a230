//! `/api/v1/before-stop`: orders that hold clients.

use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::http::{StatusCode, Uri};
use serde_json::{Map, Value, json};

use super::answer::JsonAnswer;
use super::api::{object, shown_caller};
use super::app::{App, Params, Subject};
use super::guard::Caller;
use crate::cluster::snapshot::MemberName;
use crate::events::OperatorEvent;

/// The longest grace, in milliseconds: a hold does not last longer.
const MAX_GRACE_MS: u64 = 30_000;
const DEFAULT_GRACE_MS: u64 = 5000;

/// `GET /api/v1/before-stop`
pub(super) fn stop_limit(app: &App, uri: &Uri) -> JsonAnswer {
    match local(app, uri, &Map::new()) {
        Ok((cluster, member)) => {
            let limit = app.handles.holding.stop_limit(&cluster);
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
            "send {\"grace_ms\": 5000}, 0 to 30000; also {\"member\": \"NAME\"} for another member than the local one",
        );
    };
    let (cluster, member) = match local(app, uri, &body) {
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

fn grace(body: &Map<String, Value>) -> Option<Duration> {
    if body.keys().any(|key| key != "grace_ms" && key != "member") {
        return None;
    }
    let grace = match body.get("grace_ms") {
        None => DEFAULT_GRACE_MS,
        Some(given) => given.as_u64()?,
    };
    (grace <= MAX_GRACE_MS).then_some(Duration::from_millis(grace))
}

/// The cluster and the member: the local one, if none is named.
fn local(app: &App, uri: &Uri, body: &Map<String, Value>) -> Result<(String, MemberName), JsonAnswer> {
    let (index, view) = app.cluster(&Params::of(uri))?;
    let snapshot = view.snapshot.borrow().clone();
    let cluster = view.name.to_string();
    if let Some(named) = body.get("member") {
        let name = MemberName::new(named.as_str().unwrap_or_default());
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
