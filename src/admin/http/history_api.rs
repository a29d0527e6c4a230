//! `/api/v1/history`: the last hour.

use axum::http::Uri;

use super::super::history::About;
use super::answer::JsonAnswer;
use super::app::{App, Params};

/// `GET /api/v1/history`
pub(super) fn history(app: &App, uri: &Uri) -> JsonAnswer {
    let params = Params::of(uri);
    let since = match params.since("point") {
        Ok(since) => since,
        Err(answer) => return answer,
    };
    let [cluster, route, member] = ["cluster", "route", "member"].map(|key| params.first(key));
    let is_of = |name: &str| {
        let mut views = app.handles.clusters.iter();
        cluster.is_none_or(|cluster| {
            views.any(|view| *view.name == *cluster && view.routes().any(|route| *route.name == *name))
        })
    };
    JsonAnswer::written(app.handles.history.json(since, &|about| match about {
        About::Router => true,
        About::Route(name) => {
            let is_wanted = route.map_or(member.is_none(), |route| route == name);
            is_wanted && is_of(name)
        }
        About::Member {
            cluster: of,
            member: name,
        } => {
            let is_wanted = member.map_or(route.is_none(), |member| member == name);
            is_wanted && cluster.is_none_or(|cluster| cluster == of)
        }
    }))
}
