//! Weights and zones of a cluster's members.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::config::fields::{Field, Section};
use crate::config::model::{MemberPlacement, Placement, Source};

pub(super) fn read(cluster: &Section<'_>, source: Option<&Source>) -> Placement {
    let zone = cluster.field("zone").and_then(|field| zone(&field));
    let weight_tag = cluster.field("weight_tag");
    let zone_tag = cluster.field("zone_tag");
    if matches!(source, Some(Source::Servers(_))) {
        for field in weight_tag.iter().chain(&zone_tag) {
            field.error("has no effect: tags are Patroni's, and the cluster is a list of `servers`");
        }
    }
    let tag = |field: Option<Field<'_>>| field.and_then(|field| field.name().map(str::to_owned));
    let mut placement = Placement {
        zone,
        weight_tag: tag(weight_tag),
        zone_tag: tag(zone_tag),
        slow_start: Duration::ZERO,
        members: BTreeMap::new(),
    };
    let mut gives_zones = placement.zone_tag.is_some();
    for (name, field) in cluster
        .field("members")
        .map(|field| field.named())
        .unwrap_or_default()
    {
        if let Some(Source::Servers(servers)) = source
            && !servers.iter().any(|server| server.name == name)
        {
            let known: Vec<&str> = servers.iter().map(|server| server.name.as_str()).collect();
            field.error_with_hint(
                format!("there is no server `{name}`"),
                format!("the servers are: {}", known.join(", ")),
            );
        }
        let section = field.section();
        let weight = section
            .field("weight")
            .and_then(|field| field.number())
            .and_then(|weight| u16::try_from(weight).ok());
        let own = section.field("zone");
        gives_zones |= own.is_some();
        if let Some(field) = own.as_ref().filter(|_| !cluster.has("zone")) {
            field.error("has no effect without the router's own zone, `zone` of the cluster");
        }
        let zone = own.and_then(|field| self::zone(&field));
        placement
            .members
            .insert(name.to_owned(), MemberPlacement { weight, zone });
    }
    match (cluster.field("zone"), cluster.field("zone_tag")) {
        (Some(field), None) if !gives_zones => {
            field.error("has no effect: no member has a zone; give `zone_tag`, or `zone` in `members`");
        }
        (None, Some(field)) => field.error("has no effect without the router's own zone, `zone`"),
        _ => {}
    }
    placement
}

fn zone(field: &Field<'_>) -> Option<Arc<str>> {
    field.name().map(Arc::from)
}
