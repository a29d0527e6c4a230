//! `/api/v1/routes`: the routes, and which of them get new sessions.

use axum::Extension;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::StatusCode;

use super::super::gather;
use super::super::handles::ClusterView;
use super::super::views::RouteView;
use super::answer::JsonAnswer;
use super::api::shown_caller;
use super::app::App;
use super::guard::Caller;
use crate::events::OperatorEvent;

/// `GET /api/v1/routes`
pub(super) async fn routes(app: &App) -> JsonAnswer {
    let missing = app.handles.operations.refresh().await;
    JsonAnswer::json(StatusCode::OK, &gather::routes(&app.handles)).without(&missing)
}

pub(super) fn no_route() -> JsonAnswer {
    JsonAnswer::problem(
        StatusCode::NOT_FOUND,
        "no listener has a route of this name",
        "`trunkline routes` (GET /api/v1/routes) shows the names",
    )
}

/// `POST /api/v1/routes/NAME/disable`, `POST /api/v1/routes/NAME/enable`
pub(super) async fn administer(
    app: &App,
    caller: Option<Extension<Caller>>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> JsonAnswer {
    let Ok(Path((name, action))) = path else {
        return JsonAnswer::problem(StatusCode::BAD_REQUEST, "the path is not UTF-8", "");
    };
    let is_disabled = match action.as_str() {
        "disable" => true,
        "enable" => false,
        _ => {
            return JsonAnswer::problem(
                StatusCode::NOT_FOUND,
                "there is no such action",
                "there is: disable, enable, pause, unpause",
            );
        }
    };
    let handles = &app.handles;
    let mut known = handles.clusters.iter().flat_map(ClusterView::routes);
    if !known.any(|route| *route.name == *name) && !handles.disabled_routes.has(&name) {
        return no_route();
    }
    if let Err(busy) = handles.operations.disable_route(&name, is_disabled) {
        return JsonAnswer::problem(StatusCode::SERVICE_UNAVAILABLE, &busy.to_string(), "");
    }
    let (route, by) = (name.clone(), shown_caller(caller));
    handles.events.emit(if is_disabled {
        OperatorEvent::RouteDisabled { route, by }
    } else {
        OperatorEvent::RouteEnabled { route, by }
    });
    let missing = handles.operations.refresh().await;
    let route = gather::routes(handles)
        .into_iter()
        .find(|route| route.name == name);
    // Enabled now, and no listener has it.
    let route =
        route.unwrap_or_else(|| RouteView::absent(&name, false, handles.operations.sessions_of(&name)));
    JsonAnswer::json(StatusCode::OK, &route).without(&missing)
}
