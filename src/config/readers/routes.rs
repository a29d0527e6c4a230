//! `routes`.

use std::sync::Arc;

use indexmap::IndexMap;

use super::clusters::ClusterDraft;
use super::names::{Names, reference};
use super::route::{self, RouteContext};
use crate::config::fields::{Field, Section};
use crate::config::model::{Auth, Route};
use crate::config::schema::DEFAULT_ROUTES;

/// What listeners need to know of `routes`.
pub(super) struct Routes<'a> {
    pub(super) models: IndexMap<String, Arc<Route>>,
    pub(super) names: Names<'a>,
    /// `client_address`, by the route that has it.
    pub(super) client_addresses: Vec<(&'a str, Field<'a>)>,
}

pub(super) fn routes<'a>(
    root: &Section<'a>,
    clusters: &Names<'_>,
    drafts: &[ClusterDraft],
    auth: Option<&Auth>,
) -> Routes<'a> {
    let first = clusters.as_ref().and_then(|names| names.first().copied());
    let mut routes = IndexMap::new();
    let mut add = |route: Route| routes.insert(route.name.to_string(), Arc::new(route));
    let Some(field) = root.field("routes") else {
        let cluster = first.unwrap_or_default();
        for (name, target) in DEFAULT_ROUTES {
            add(Route::new(name, cluster, vec![target.into()]));
        }
        return Routes {
            models: routes,
            names: Some(DEFAULT_ROUTES.map(|(name, _)| name).into()),
            client_addresses: Vec::new(),
        };
    };
    let mut client_addresses = Vec::new();
    let named = field.named();
    for (name, field) in &named {
        let section = field.section();
        let cluster = match section.field("cluster") {
            Some(field) => reference(&field, clusters, "cluster"),
            None => first,
        };
        let draft = drafts.iter().find(|draft| Some(&*draft.name) == cluster);
        let around = RouteContext {
            is_fixed: draft.is_some_and(ClusterDraft::is_fixed),
            max_connections: draft.and_then(ClusterDraft::max_connections),
            is_cluster_unknown: draft.is_none(),
            probe_interval: draft.map(ClusterDraft::probe_interval),
            auth,
        };
        client_addresses.extend(section.field("client_address").map(|field| (*name, field)));
        if let Some(route) = route::read(&section, name, cluster, &around) {
            add(route);
        }
    }
    let names = (!named.is_empty()).then(|| named.into_iter().map(|(name, _)| name).collect());
    Routes {
        models: routes,
        names,
        client_addresses,
    }
}
