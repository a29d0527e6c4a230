//! The rules of authentication as JSON: the rows of PostgreSQL's views.

use axum::http::StatusCode;

use super::answer::JsonAnswer;
use super::app::App;

pub(super) fn hba(app: &App) -> JsonAnswer {
    JsonAnswer::json(StatusCode::OK, &(app.handles.access.hba)())
}

pub(super) fn ident(app: &App) -> JsonAnswer {
    JsonAnswer::json(StatusCode::OK, &(app.handles.access.ident)())
}
