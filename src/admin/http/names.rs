//! Answers to names that nothing has: they repeat the name, and list those there are.

use axum::http::{StatusCode, Uri};

use super::super::handles::ClusterView;
use super::super::words::there_are;
use super::answer::JsonAnswer;
use super::api::find;
use super::app::{App, Params};
use crate::cluster::snapshot::MemberName;

/// # Errors
/// The query names a cluster that there is none of.
pub(super) fn known_cluster(app: &App, uri: &Uri) -> Result<(), JsonAnswer> {
    find(app, uri).map(drop).or_else(|answer| {
        let is_named = Params::of(uri).first("cluster").is_some();
        if is_named { Err(answer) } else { Ok(()) }
    })
}

pub(super) fn no_cluster(app: &App, name: &str) -> JsonAnswer {
    let names = app.handles.clusters.iter().map(|view| &*view.name);
    JsonAnswer::problem(
        StatusCode::NOT_FOUND,
        &format!("there is no cluster {name}"),
        &there_are(names),
    )
}

pub(super) fn no_member(app: &App, view: &ClusterView, name: &MemberName) -> JsonAnswer {
    let snapshot = view.snapshot.borrow().clone();
    let names = there_are(snapshot.members.iter().map(|member| member.name.as_str()));
    let hint = if app.handles.clusters.len() > 1 {
        format!("{names}; give another cluster with --cluster (?cluster=)")
    } else {
        names
    };
    JsonAnswer::problem(
        StatusCode::NOT_FOUND,
        &format!("cluster {} has no member {name}", view.name),
        &hint,
    )
}
