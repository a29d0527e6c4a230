//! What the endpoints of Patroni say about themselves and each other.

use std::collections::BTreeMap;

use super::{Finding, clock};
use crate::cluster::patroni::EndpointFacts;
use crate::cluster::state::Listed;
use crate::config::{self, Source, shown_duration};

/// The oldest release that the router supports.
const OLDEST: (u32, u32) = (3, 0);

pub(super) fn findings(
    config: &config::Cluster,
    routes: &[&config::Route],
    facts: &[EndpointFacts],
    members: &[Listed],
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for endpoint in facts {
        let what = format!("cluster {}: Patroni at {}", config.name, endpoint.endpoint);
        findings.push(version(format!("{what}: version"), endpoint.version.as_deref()));
        findings.push(match endpoint.ahead {
            Some(ahead) => clock(format!("{what}: clock"), ahead, 1.0),
            None => Finding::untried(format!("{what}: clock"), "its answer has no date"),
        });
    }
    findings.extend(one_cluster(config, facts));
    findings.extend(paused(config, facts));
    findings.extend(coverage(config, members));
    findings.extend(times(config, routes, facts));
    findings
}

fn version(what: String, version: Option<&str>) -> Finding {
    let Some(version) = version else {
        return Finding::untried(what, "it does not say its version");
    };
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), minor) if (major, minor.unwrap_or(0)) < OLDEST => Finding::bad(
            what,
            format!("Patroni {version} is older than 3.0"),
            "install Patroni 3.0 or later: the router supports no older one",
        ),
        _ => Finding::good(what, format!("Patroni {version}")),
    }
}

/// All endpoints are of one cluster.
pub(super) fn one_cluster(config: &config::Cluster, facts: &[EndpointFacts]) -> Option<Finding> {
    let what = format!("cluster {}: which cluster the endpoints are of", config.name);
    let mut by_cluster: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for endpoint in facts {
        let scope = endpoint.scope.as_deref().unwrap_or("?");
        // A member that was never started has no identifier.
        let Some(identifier) = endpoint.system_identifier.as_deref() else {
            continue;
        };
        let key = (scope, identifier);
        by_cluster.entry(key).or_default().push(&endpoint.endpoint);
    }
    match by_cluster.len() {
        0 => None,
        1 => {
            let ((scope, identifier), _) = by_cluster.into_iter().next()?;
            Some(Finding::good(
                what,
                format!("{scope}, system identifier {identifier}"),
            ))
        }
        _ => {
            let each: Vec<String> = by_cluster
                .iter()
                .map(|((scope, identifier), endpoints)| {
                    format!("{} of {scope} ({identifier})", endpoints.join(", "))
                })
                .collect();
            Some(Finding::bad(
                what,
                format!("they are of different clusters: {}", each.join("; ")),
                "list only the endpoints of one cluster in patroni.endpoints; each cluster has its own entry in clusters",
            ))
        }
    }
}

fn paused(config: &config::Cluster, facts: &[EndpointFacts]) -> Option<Finding> {
    facts.iter().any(|endpoint| endpoint.is_paused).then(|| {
        Finding::remark(
            format!("cluster {}: Patroni's maintenance mode", config.name),
            "Patroni is paused: it does not fail over by itself",
            "run `patronictl resume` when the work on the cluster is done",
        )
    })
}

/// A router that asks one Patroni only knows nothing once that host is gone.
fn coverage(config: &config::Cluster, members: &[Listed]) -> Option<Finding> {
    let Source::Patroni(patroni) = &config.source else {
        return None;
    };
    let what = format!("cluster {}: number of endpoints", config.name);
    let (endpoints, members) = (patroni.endpoints.len(), members.len());
    if members == 0 {
        return None;
    }
    if endpoints == 1 && members > 1 {
        return Some(Finding::remark(
            what,
            format!("1 endpoint for {members} members: without it the router does not learn of a failover"),
            "list the Patroni of every member in patroni.endpoints",
        ));
    }
    Some(Finding::good(what, format!("{endpoints} for {members} members")))
}

/// Patroni's times, and how long clients are held.
fn times(config: &config::Cluster, routes: &[&config::Route], facts: &[EndpointFacts]) -> Vec<Finding> {
    let what = format!("cluster {}: Patroni's ttl", config.name);
    let Some([ttl, loop_wait, retry]) = facts.iter().find_map(|endpoint| endpoint.times) else {
        if facts.is_empty() {
            return Vec::new();
        }
        return vec![Finding::untried(what, "no endpoint shows its configuration")];
    };
    let shown = format!(
        "ttl {}, loop_wait {}, retry_timeout {}",
        shown_duration(ttl),
        shown_duration(loop_wait),
        shown_duration(retry)
    );
    let mut findings = Vec::new();
    if ttl < loop_wait + 2 * retry {
        findings.push(Finding::remark(
            what,
            format!(
                "{shown}: ttl is below loop_wait + 2 * retry_timeout, so a slow DCS can demote the leader"
            ),
            "raise ttl, or lower the other two, with `patronictl edit-config`",
        ));
    } else {
        findings.push(Finding::good(what, shown));
    }
    for route in routes.iter().filter(|route| route.holds_clients()) {
        let what = format!("route {}: hold.timeout", route.name);
        let needed = ttl + loop_wait;
        findings.push(match route.hold.timeout {
            Some(hold) if hold < needed => Finding::remark(
                what,
                format!(
                    "clients are held for {} at most, and Patroni may need {} (ttl + loop_wait) after a leader has died: they \
                     get errors",
                    shown_duration(hold),
                    shown_duration(needed)
                ),
                "raise hold.timeout, leave it out, or lower Patroni's ttl",
            ),
            Some(hold) => Finding::good(what, format!("{}, longer than a failover", shown_duration(hold))),
            None => Finding::good(what, format!("{} (Patroni's ttl + loop_wait)", shown_duration(needed))),
        });
    }
    findings
}
