//! `/api/v1/routes`: the routes, and which of them get new sessions.

use axum::Extension;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{StatusCode, Uri};

use super::super::actions::{self, RouteRefusal};
use super::super::gather;
use super::super::handles::ClusterView;
use super::super::operations::Gathered;
use super::super::words::there_are;
use super::answer::JsonAnswer;
use super::api::shown_caller;
use super::app::{App, Params};
use super::guard::{Caller, HasToken};
use super::holding::held;

/// `GET /api/v1/routes`
pub(super) async fn routes(app: &App, token: Option<Extension<HasToken>>, uri: &Uri) -> JsonAnswer {
    let missing = app.handles.operations.refresh().await;
    let mut all = gather::routes(&app.handles, &held(app, token));
    if let Some(cluster) = Params::of(uri).first("cluster") {
        all.retain(|route| route.cluster.as_deref() == Some(cluster));
    }
    JsonAnswer::json(StatusCode::OK, &all).without(&missing)
}

pub(super) fn no_route(app: &App, name: &str) -> JsonAnswer {
    let routes = app.handles.clusters.iter().flat_map(ClusterView::routes);
    JsonAnswer::problem(
        StatusCode::NOT_FOUND,
        &format!("no listener has a route {name}"),
        &there_are(routes.map(|route| &*route.name)),
    )
}

/// # Errors
/// The query names the cluster, and the route is of another one.
pub(super) fn is_of_cluster(app: &App, uri: &Uri, name: &str) -> Result<(), JsonAnswer> {
    let params = Params::of(uri);
    let Some(wanted) = params.first("cluster") else {
        return Ok(());
    };
    let mut routes = app.handles.clusters.iter();
    let is_its = |view: &ClusterView| view.routes().any(|route| *route.name == *name);
    let owner = routes.find(|view| is_its(view));
    match owner {
        Some(owner) if *owner.name != *wanted => Err(JsonAnswer::problem(
            StatusCode::NOT_FOUND,
            &format!("cluster {wanted} has no route {name}"),
            &format!("it is a route of cluster {}", owner.name),
        )),
        _ => Ok(()),
    }
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
                "the actions are disable, enable, pause, unpause",
            );
        }
    };
    match actions::disable_route(&app.handles, &name, is_disabled, shown_caller(caller)).await {
        Ok(Gathered { value, missing }) => JsonAnswer::json(StatusCode::OK, &value).without(&missing),
        Err(RouteRefusal::Unknown) => no_route(app, &name),
        Err(RouteRefusal::Busy(busy)) => {
            JsonAnswer::problem(StatusCode::SERVICE_UNAVAILABLE, &busy.to_string(), "")
        }
    }
}
