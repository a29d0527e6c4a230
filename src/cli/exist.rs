//! An empty list is no answer to a name that nothing has.

use super::administer::{clusters, understood};
use super::remote::{Remote, Router};
use crate::admin::{RouteView, there_are};

/// # Errors
/// There is no such cluster, member or route; in words, for the user, with the names there are.
pub(super) fn exist(
    router: &Router,
    remote: &Remote,
    member: Option<&str>,
    route: Option<&str>,
) -> Result<(), String> {
    let mut clusters = clusters(router)?;
    if let Some(name) = &remote.cluster {
        // A router of an older release does not refuse it itself.
        let names = clusters.iter().map(|cluster| cluster.name.as_str());
        found("the router has", "cluster", name, names)?;
    }
    if let Some(name) = member {
        let wanted = remote.cluster.as_ref();
        clusters.retain(|cluster| wanted.is_none_or(|wanted| *wanted == cluster.name));
        let place = match clusters.as_slice() {
            [cluster] => format!("cluster {} has", cluster.name),
            _ => "the clusters have".to_owned(),
        };
        let names = clusters.iter().flat_map(|cluster| &cluster.members);
        found(&place, "member", name, names.map(String::as_str))?;
    }
    if let Some(name) = route {
        let routes: Vec<RouteView> = understood(&router.look("/api/v1/routes")?)?;
        let names = routes.iter().map(|route| route.name.as_str());
        found("the router has", "route", name, names)?;
    }
    Ok(())
}

fn found<'n>(
    place: &str,
    what: &str,
    name: &str,
    names: impl Iterator<Item = &'n str>,
) -> Result<(), String> {
    let names: Vec<&str> = names.collect();
    if names.contains(&name) {
        return Ok(());
    }
    Err(format!(
        "{place} no {what} {name} ({})",
        there_are(names.into_iter())
    ))
}
