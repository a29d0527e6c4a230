//! Which path gives which answer.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{MethodFilter, MethodRouter, delete, on, post};
use axum::{Extension, Router};
use tokio::sync::watch;

use super::super::exposition::Form;
use super::super::handles::{ClusterView, Handles};
use super::super::local::Local;
use super::super::metrics::{self, Endpoint};
use super::answer::{self, JsonAnswer};
use super::guard::{self, Caller, Guard};
use super::{access, api, node, patroni};
use crate::cluster::snapshot::{Member, Snapshot};

/// What every request reads.
#[derive(Debug)]
pub(super) struct App {
    pub(super) handles: Handles,
    /// One per cluster, in the same order.
    pub(super) locals: Vec<watch::Receiver<Local>>,
    pub(super) guard: Guard,
}

/// The query of a request: the first value of a name counts, as with Patroni.
#[derive(Debug, Default)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    pub(super) fn of(uri: &Uri) -> Self {
        Self(
            Query::try_from_uri(uri)
                .map(|Query(pairs)| pairs)
                .unwrap_or_default(),
        )
    }

    pub(super) fn first(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// `?name`, `?name=1`, `?name=true`.
    pub(super) fn is_set(&self, name: &str) -> bool {
        matches!(self.first(name), Some("" | "1" | "true" | "on" | "yes"))
    }
}

/// The member asked about, in the snapshot that is answered from.
pub(super) enum Subject<'a> {
    Member(&'a Member),
    /// Answered with 503: it may come.
    NotYet(&'static str),
    /// Answered with 404: the question is wrong.
    Missing(&'static str),
}

impl App {
    /// The cluster asked about, with its place; the answer to give where there is none of that name.
    pub(super) fn cluster(&self, params: &Params) -> Result<(usize, &ClusterView), JsonAnswer> {
        let clusters = &self.handles.clusters;
        let found = match params.first("cluster") {
            None => clusters.first().map(|first| (0, first)),
            Some(name) => clusters.iter().enumerate().find(|(_, view)| *view.name == *name),
        };
        found.ok_or_else(|| {
            let names: Vec<&str> = clusters.iter().map(|view| &*view.name).collect();
            JsonAnswer::not_found(
                "there is no cluster of this name; the names are in the header X-Trunkline-Reason",
            )
            .because(format!(
                "there is no cluster of this name; there is: {}",
                names.join(", ")
            ))
        })
    }

    /// The member this copy runs beside.
    pub(super) fn local<'s>(&self, cluster: usize, snapshot: &'s Snapshot) -> Subject<'s> {
        let local = self.locals[cluster].borrow();
        match &*local {
            Local::Member(name) => match snapshot.member(name) {
                Some(member) => Subject::Member(member),
                None if snapshot.members.is_empty() => Subject::NotYet("no members are known yet"),
                None => Subject::Missing(local.hint()),
            },
            Local::NotYetKnown => Subject::NotYet(local.hint()),
            Local::Off | Local::NoneHere | Local::SeveralHere => Subject::Missing(local.hint()),
        }
    }
}

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
        .route("/liveness", read(async || patroni::liveness()))
        .route(
            "/metrics",
            read(async |State(app): Shared, headers: HeaderMap| metrics_text(&app, &headers)),
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

/// `/api/v1`, behind its guard.
fn api(app: &Arc<App>) -> Router<Arc<App>> {
    type Name<T> = Result<Path<T>, PathRejection>;
    type CalledBy = Option<Extension<Caller>>;
    let kill = async |State(app): Shared, caller: CalledBy, path: Name<String>, body: Body| {
        api::kill(app, caller, path, body).await
    };
    Router::new()
        .route("/api/v1/hba", read(async |State(app): Shared| access::hba(&app)))
        .route(
            "/api/v1/ident",
            read(async |State(app): Shared| access::ident(&app)),
        )
        .route(
            "/api/v1/clusters",
            read(async |State(app): Shared| api::clusters(&app)),
        )
        .route(
            "/api/v1/members",
            read(async |State(app): Shared, uri: Uri| api::members(&app, &uri)),
        )
        .route(
            "/api/v1/sessions",
            read(async |State(app): Shared, uri: Uri| api::sessions(&app, &uri)),
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
            "/api/v1/router",
            read(async |State(app): Shared| api::router(&app)),
        )
        .route(
            "/api/v1/router/{action}",
            post(async |State(app): Shared, caller: CalledBy, path: Name<String>| {
                api::administer_router(&app, caller, &path)
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
        .route("/api/v1/sessions/{id}", delete(kill))
        .route("/api/v1/sessions/{id}/kill", post(kill))
        .route_layer(middleware::from_fn_with_state(Arc::clone(app), guard::guard))
}

/// Around every request: counts it, and takes the body off the answer to OPTIONS, as Patroni does.
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
        Some("update_clusters") => Endpoint::UpdateClusters,
        Some("liveness") => Endpoint::Patroni,
        _ if patroni::PATHS.iter().any(|(known, _)| *known == path) => Endpoint::Patroni,
        _ => Endpoint::Other,
    }
}

fn metrics_text(app: &App, headers: &HeaderMap) -> JsonAnswer {
    match metrics::exposition(&app.handles.registry) {
        Ok(text) => JsonAnswer::exposition(text, Form::wanted(headers)),
        Err(_) => JsonAnswer::text(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the metrics could not be written",
        ),
    }
}

/// `patroni_proxy`'s: look again now. Does not wait for what is seen.
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
    // HEAD and OPTIONS are safe methods that tools send on their own account.
    if matches!(*method, Method::GET | Method::POST) {
        for view in asked {
            (view.look_again)();
        }
    }
    JsonAnswer::text(StatusCode::OK, "OK")
}
