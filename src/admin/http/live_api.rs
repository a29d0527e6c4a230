//! `/api/v1/live`: server-sent events.

use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio_util::sync::CancellationToken;

use super::super::live::{Full, MOST_OF_SOURCE, MOST_READERS, Reader, Resumed};
use super::answer::JsonAnswer;
use super::app::App;
use super::guard::{Caller, HasToken};

/// Cancelled when the listener goes to another process, or ends: an answer that goes on ends then.
#[derive(Debug, Clone, Default)]
pub(super) struct Leaving(pub(super) CancellationToken);

/// Seconds after which a reader that finds no place may come again.
const RETRY_S: &str = "30";

/// `GET /api/v1/live`
pub(super) fn live(
    app: &Arc<App>,
    caller: Option<Extension<Caller>>,
    token: Option<Extension<HasToken>>,
    leaving: Option<Extension<Leaving>>,
    headers: &HeaderMap,
) -> Response {
    let leaving = leaving
        .map(|Extension(Leaving(leaving))| leaving)
        .unwrap_or_default();
    let source = caller.map(|Extension(caller)| caller.address.ip());
    let Some(source) = source.filter(|_| !leaving.is_cancelled()) else {
        return JsonAnswer::problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "another process of this router answers now",
            "connect again",
        )
        .into_response();
    };
    let has_token = matches!(token, Some(Extension(HasToken(true))));
    let place = match app.live.place(source, has_token) {
        Ok(place) => place,
        Err(full) => {
            let mut response = refused(full, has_token).into_response();
            let wait = HeaderValue::from_static(RETRY_S);
            response.headers_mut().insert(header::RETRY_AFTER, wait);
            return response;
        }
    };
    let id = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let resumed = id.and_then(Resumed::of);
    let reader = Reader::new(place, app.handles.clone(), has_token, resumed, leaving);
    let pieces = stream::unfold(reader, async |mut reader| {
        let piece = reader.next().await?;
        Some((Ok::<Bytes, std::convert::Infallible>(piece), reader))
    });
    let mut response = Body::from_stream(pieces).into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        // The connection ends with the stream, so that a reader that comes again reaches the
        // process that listens then.
        (header::CONNECTION, "close"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // For nginx, which would keep the messages until it has a page of them.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn refused(full: Full, has_token: bool) -> JsonAnswer {
    let who = if has_token { " with the token" } else { "" };
    let error = match full {
        Full::All => format!("{MOST_READERS} readers of this path{who} are connected already"),
        Full::OfSource => {
            format!("{MOST_OF_SOURCE} readers of this path{who} are connected from this address already")
        }
    };
    let hint = if has_token {
        "close pages that are not needed, or ask the other paths of /api/v1"
    } else {
        "close pages that are not needed, or show the token: who has it gets a place"
    };
    JsonAnswer::problem(StatusCode::SERVICE_UNAVAILABLE, &error, hint)
}
