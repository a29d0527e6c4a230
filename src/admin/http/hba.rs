//! Who may log in, as JSON: the rows of PostgreSQL's views.

use axum::http::StatusCode;
use serde_json::json;

use super::answer::JsonAnswer;
use super::app::App;

pub(super) fn hba(app: &App) -> JsonAnswer {
    JsonAnswer::json(StatusCode::OK, &json!((app.handles.access.hba)()))
}

pub(super) fn ident(app: &App) -> JsonAnswer {
    JsonAnswer::json(StatusCode::OK, &json!((app.handles.access.ident)()))
}
