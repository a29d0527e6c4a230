//! Which path gives which answer.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, delete, on, post};
use axum::{Extension, Router};

use super::super::exposition::Form;
use super::super::handles::ClusterView;
use super::super::metrics::{self, Endpoint};
use super::answer::{self, JsonAnswer};
use super::app::{App, Params};
use super::guard::{Caller, HasToken, Right};
use super::live_api::Leaving;
use super::{api, hba, history_api, holding, inventory, live_api, names, node, page, patroni, routes};

type Shared = State<Arc<App>>;

/// GET, HEAD and OPTIONS; anything else is 405.
fn read<H, T>(handler: H) -> MethodRouter<Arc<App>>
where
    H: axum::handler::Handler<T, Arc<App>>,
    T: 'static,
{
    on(
        MethodFilter::GET.or(MethodFilter::HEAD).or(MethodFilter::OPTIONS),
        handler,
    )
}

pub(super) fn router(app: Arc<App>) -> Router {
    let mut router = Router::new()
        .route("/connection/is-live", read(async || JsonAnswer::boolean(Ok(()))))
        .route(
            "/connection/is-ready",
            read(async |State(app): Shared, uri: Uri| node::is_ready(&app, &uri)),
        )
        .route(
            "/connection/is-ready-rw",
            read(async |State(app): Shared, uri: Uri| node::is_ready_rw(&app, &uri)),
        )
        .route(
            "/connection/is-ready-ro",
            read(async |State(app): Shared, uri: Uri| node::is_ready_ro(&app, &uri)),
        )
        .route(
            "/group/read-write-info",
            read(async |State(app): Shared, uri: Uri| node::read_write_info(&app, &uri)),
        )
        .route(
            "/group/read-only-info",
            read(async |State(app): Shared, uri: Uri| node::read_only_info(&app, &uri)),
        )
        .route(
            "/ui",
            read(async |State(app): Shared, headers: HeaderMap| page::page(&app, "", &headers)),
        )
        .route(
            "/ui/{file}",
            read(
                async |State(app): Shared, file: Result<Path<String>, PathRejection>, headers: HeaderMap| {
                    // Only `/ui` is the page itself.
                    let file = file.map(|Path(file)| file).unwrap_or_default();
                    page::page(&app, if file.is_empty() { "-" } else { &file }, &headers)
                },
            ),
        )
        .route("/ui/", read(async || page::without_slash()))
        .route("/liveness", read(async || patroni::liveness()))
        .route(
            "/metrics",
            read(async |State(app): Shared, headers: HeaderMap| metrics_text(&app, &headers).await),
        )
        .route(
            "/update_clusters",
            read(async |State(app): Shared, method: Method, uri: Uri| look_again(&app, &method, &uri))
                .post(async |State(app): Shared, method: Method, uri: Uri| look_again(&app, &method, &uri)),
        );
    for (question, check) in [
        ("is-read-write", node::Question::ReadWrite),
        ("is-read-only", node::Question::ReadOnly),
    ] {
        router = router
            .route(
                &format!("/node/{question}"),
                read(async move |State(app): Shared, uri: Uri| node::local(&app, &uri, check)),
            )
            .route(
                &format!("/node/{{name}}/{question}"),
                read(
                    async move |State(app): Shared, name: Result<Path<String>, PathRejection>, uri: Uri| {
                        node::named(&app, &uri, name.as_deref().ok().map(String::as_str), check)
                    },
                ),
            );
    }
    for (path, check) in patroni::PATHS {
        router = router.route(
            path,
            read(async move |State(app): Shared, uri: Uri| patroni::answer(&app, &uri, *check)),
        );
    }
    router
        .merge(api(&app))
        .fallback(async || JsonAnswer::not_found("there is nothing at this path; see docs/http.md"))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), count))
        .with_state(app)
}

type Name<T> = Result<Path<T>, PathRejection>;
type CalledBy = Option<Extension<Caller>>;
type Token = Option<Extension<HasToken>>;

/// `/api/v1`, behind the check of the token.
fn api(app: &Arc<App>) -> Router<Arc<App>> {
    let kill = async |State(app): Shared, caller: CalledBy, path: Name<String>, body: Body| {
        api::kill(app, caller, path, body).await
    };
    views()
        .route("/api/v1/hba", read(async |State(app): Shared| hba::hba(&app)))
        .route("/api/v1/ident", read(async |State(app): Shared| hba::ident(&app)))
        .route(
            "/api/v1/clusters",
            read(async |State(app): Shared| api::clusters(&app)),
        )
        .route(
            "/api/v1/members",
            read(async |State(app): Shared, uri: Uri| api::members(&app, &uri).await),
        )
        .route(
            "/api/v1/sessions",
            read(async |State(app): Shared, uri: Uri| api::sessions(&app, &uri).await),
        )
        .route(
            "/api/v1/servers",
            read(async |State(app): Shared, uri: Uri| api::servers(&app, &uri).await),
        )
        .route(
            "/api/v1/pools",
            read(async |State(app): Shared, uri: Uri| api::pools(&app, &uri).await),
        )
        .route(
            "/api/v1/pools/reconnect",
            post(
                async |State(app): Shared, caller: CalledBy, uri: Uri, body: Body| {
                    api::reconnect(app, caller, uri, body).await
                },
            ),
        )
        .route(
            "/api/v1/events",
            read(async |State(app): Shared, uri: Uri| api::events(&app, &uri)),
        )
        .route(
            "/api/v1/live",
            read(
                async |State(app): Shared,
                       caller: CalledBy,
                       token: Token,
                       leaving: Option<Extension<Leaving>>,
                       headers: HeaderMap| {
                    live_api::live(&app, caller, token, leaving, &headers)
                },
            ),
        )
        .route(
            "/api/v1/history",
            read(async |State(app): Shared, uri: Uri| history_api::history(&app, &uri)),
        )
        .route(
            "/api/v1/members/{name}/{action}",
            post(
                async |State(app): Shared,
                       caller: CalledBy,
                       path: Name<(String, String)>,
                       uri: Uri,
                       body: Body| { api::administer(app, caller, path, uri, body).await },
            ),
        )
        .route(
            "/api/v1/routes",
            read(async |State(app): Shared, token: Token, uri: Uri| routes::routes(&app, token, &uri).await),
        )
        .route(
            "/api/v1/routes/{name}/{action}",
            post(
                async |State(app): Shared,
                       caller: CalledBy,
                       path: Name<(String, String)>,
                       uri: Uri,
                       body: Body| {
                    holding::administer_route(&app, caller, path, &uri, body).await
                },
            ),
        )
        .route(
            "/api/v1/router",
            read(async |State(app): Shared, token: Token| api::router(&app, token).await),
        )
        .route(
            "/api/v1/health",
            read(async |State(app): Shared, token: Token, uri: Uri| api::health(&app, token, &uri).await),
        )
        .route(
            "/api/v1/router/{action}",
            post(async |State(app): Shared, caller: CalledBy, path: Name<String>| {
                api::administer_router(&app, caller, &path).await
            }),
        )
        .route(
            "/api/v1/clusters/{name}/forget-identity",
            post(async |State(app): Shared, caller: CalledBy, path: Name<String>| {
                api::forget_identity(&app, caller, path)
            }),
        )
        .route(
            "/api/v1/reload",
            post(async |State(app): Shared, caller: CalledBy| api::reload(app, caller).await),
        )
        .merge(holding_api())
        .route("/api/v1/sessions/{id}", delete(kill))
        .route("/api/v1/sessions/{id}/kill", post(kill))
        .route_layer(middleware::from_fn_with_state(Arc::clone(app), guard))
}

/// The part of it that is about clients that are held.
fn holding_api() -> Router<Arc<App>> {
    Router::new()
        .route(
            "/api/v1/holds",
            read(async |State(app): Shared, token: Token| holding::holds(&app, token).await),
        )
        .route(
            "/api/v1/before-stop",
            read(async |State(app): Shared, uri: Uri| holding::stop_limit(&app, &uri).await).post(
                async |State(app): Shared, caller: CalledBy, uri: Uri, body: Body| {
                    holding::before_stop(&app, caller, &uri, body).await
                },
            ),
        )
        .route(
            "/api/v1/before-stop/{action}",
            post(
                async |State(app): Shared, caller: CalledBy, path: Name<String>, uri: Uri| {
                    holding::administer_stop(&app, caller, &path, &uri).await
                },
            ),
        )
        .route(
            "/api/v1/switchover",
            read(async |State(app): Shared, token: Token| holding::switchover(&app, token)),
        )
        .route(
            "/api/v1/switchover/{action}",
            post(
                async |State(app): Shared, caller: CalledBy, path: Name<String>, body: Body| {
                    holding::administer_switchover(&app, caller, &path, body).await
                },
            ),
        )
}

/// What the router has and how it is set.
fn views() -> Router<Arc<App>> {
    Router::new()
        .route(
            "/api/v1/listeners",
            read(async |State(app): Shared, uri: Uri| inventory::listeners(&app, &uri)),
        )
        .route(
            "/api/v1/limits",
            read(async |State(app): Shared| inventory::limits(&app)),
        )
        .route(
            "/api/v1/stats",
            read(async |State(app): Shared, uri: Uri| inventory::stats(&app, &uri).await),
        )
        .route(
            "/api/v1/certificates",
            read(async |State(app): Shared| inventory::certificates(&app)),
        )
        .route(
            "/api/v1/config",
            read(async |State(app): Shared, headers: HeaderMap, token: Token| {
                inventory::config(&app, &headers, token)
            }),
        )
        .route(
            "/api/v1/peers",
            read(async |State(app): Shared| inventory::peers(&app).await),
        )
}

/// Before every handler of `/api/v1`.
async fn guard(State(app): Shared, mut request: Request, next: Next) -> Response {
    let caller = request.extensions().get::<Caller>().copied();
    let right = Right::asked_by(request.method());
    match app.guard.admit(caller, request.headers(), right) {
        // Also where the answer is not about one cluster: a wrong name is never taken for none.
        Ok(()) => match names::known_cluster(&app, request.uri()) {
            Ok(()) => {
                let token = app.guard.has_token(request.headers());
                request.extensions_mut().insert(token);
                next.run(request).await
            }
            Err(answer) => answer.into_response(),
        },
        Err(answer) => {
            // Patroni stops the server all the same, and only its own log would say why there is no
            // hold.
            if right == Right::Change && request.uri().path() == "/api/v1/before-stop" {
                app.guard.log_stop(caller);
            }
            answer.into_response()
        }
    }
}

/// Around every request: counts it, and removes the body of the answer to OPTIONS, as Patroni does.
async fn count(State(app): Shared, request: Request, next: Next) -> Response {
    let endpoint = endpoint(request.uri().path());
    let method = request.method().clone();
    let mut response = next.run(request).await;
    if method == Method::OPTIONS {
        *response.body_mut() = Body::empty();
    }
    let phase = app.handles.readiness.phase();
    if phase.not_ready().is_some() && endpoint.is_check() {
        let state = HeaderValue::from_static(phase.word());
        response.headers_mut().insert(answer::ROUTER, state);
    }
    app.handles.metrics.request(endpoint, response.status().as_u16());
    tracing::debug!(%method, ?endpoint, status = response.status().as_u16(), "HTTP request");
    response
}

fn endpoint(path: &str) -> Endpoint {
    match path.split('/').nth(1) {
        Some("connection") => Endpoint::Connection,
        Some("node") => Endpoint::Node,
        Some("group") => Endpoint::Group,
        Some("api") => Endpoint::Api,
        Some("metrics") => Endpoint::Metrics,
        Some("ui") => Endpoint::Ui,
        Some("update_clusters") => Endpoint::UpdateClusters,
        Some("liveness") => Endpoint::Patroni,
        _ if patroni::PATHS.iter().any(|(known, _)| *known == path) => Endpoint::Patroni,
        _ => Endpoint::Other,
    }
}

async fn metrics_text(app: &App, headers: &HeaderMap) -> JsonAnswer {
    let missing = app.handles.operations.refresh().await;
    match metrics::exposition(&app.handles.registry) {
        Ok(text) => JsonAnswer::exposition(text, Form::wanted(headers)).without(&missing),
        Err(_) => JsonAnswer::text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the metrics could not be written",
        ),
    }
}

/// The path of `patroni_proxy`: starts polls and probes, and does not wait for them.
fn look_again(app: &App, method: &Method, uri: &Uri) -> JsonAnswer {
    let params = Params::of(uri);
    let asked: Vec<&ClusterView> = if params.first("cluster").is_some() {
        match app.cluster(&params) {
            Ok((_, view)) => vec![view],
            Err(answer) => return answer,
        }
    } else {
        app.handles.clusters.iter().collect()
    };
    // HEAD and OPTIONS are safe methods, which tools send on their own.
    if matches!(*method, Method::GET | Method::POST) {
        for view in asked {
            (view.look_again)();
        }
    }
    JsonAnswer::text(StatusCode::OK, "OK")
}
