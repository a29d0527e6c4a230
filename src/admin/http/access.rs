//! Who may log in, as JSON: the rows of PostgreSQL's views. For this host only, until callers can show who they are.

use std::net::IpAddr;

use axum::Extension;
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::json;

use super::answer::Answer;
use super::router::App;

/// Where a request comes from: the other end of its connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller(pub(super) IpAddr);

impl Caller {
    /// For whom a balancer connects. Its own host's loopback is not ours: then it stays the caller itself.
    pub(super) fn announced(self, client: Option<IpAddr>) -> Self {
        match client {
            Some(client) if !client.to_canonical().is_loopback() || self.0.to_canonical().is_loopback() => {
                Self(client)
            }
            _ => self,
        }
    }
}

/// `None` is nobody's: it is refused.
pub(super) type CalledBy = Option<Extension<Caller>>;

pub(super) fn hba(app: &App, caller: CalledBy) -> Answer {
    rows(caller, &*app.handles.access.hba)
}

pub(super) fn ident(app: &App, caller: CalledBy) -> Answer {
    rows(caller, &*app.handles.access.ident)
}

fn rows<T: Serialize>(caller: CalledBy, rows: &(dyn Fn() -> Vec<T> + Send + Sync)) -> Answer {
    match caller {
        Some(Extension(Caller(address))) if address.to_canonical().is_loopback() => {
            Answer::json(StatusCode::OK, &json!(rows()))
        }
        _ => {
            let hint = "this is answered to callers on the same host only; ask there, or use the console";
            Answer::text(StatusCode::FORBIDDEN, hint).because(hint)
        }
    }
}
