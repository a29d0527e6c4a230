//! Weights and zones: how sessions are shared out among members that fit alike.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::model::Source;
use super::section::{Field, Section};

/// The greatest weight, `HAProxy`'s.
pub const MOST_WEIGHT: u16 = 256;

/// Weights and zones of one cluster's members.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Placement {
    /// The router's own zone; its members are preferred among those that fit alike.
    pub zone: Option<Arc<str>>,
    /// The Patroni tag that gives a member's weight, where `members` does not.
    pub weight_tag: Option<String>,
    /// The Patroni tag that gives a member's zone, where `members` does not.
    pub zone_tag: Option<String>,
    /// How long the share of a member that has come back up grows, from a tenth to the whole; 0 is at once (default).
    pub slow_start: Duration,
    /// By the member's name; some may not be there (yet).
    pub members: BTreeMap<String, MemberPlacement>,
}

/// What the file says of one member.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberPlacement {
    /// 0 to 256: its share of the sessions is its weight's share of the sum; 0 is none, unless nobody else fits.
    pub weight: Option<u16>,
    pub zone: Option<Arc<str>>,
}

pub(super) fn read(cluster: &Section<'_>, source: Option<&Source>) -> Placement {
    let zone = cluster.field("zone").and_then(|field| zone(&field));
    let weight_tag = cluster.field("weight_tag");
    let zone_tag = cluster.field("zone_tag");
    if matches!(source, Some(Source::Servers(_))) {
        for field in weight_tag.iter().chain(&zone_tag) {
            field.fault("has no effect: tags are Patroni's, and the cluster is a list of `servers`");
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
            field.fault_with(
                format!("there is no server `{name}`"),
                format!("there is: {}", known.join(", ")),
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
            field.fault("has no effect without the router's own zone, `zone` of the cluster");
        }
        let zone = own.and_then(|field| self::zone(&field));
        placement
            .members
            .insert(name.to_owned(), MemberPlacement { weight, zone });
    }
    match (cluster.field("zone"), cluster.field("zone_tag")) {
        (Some(field), None) if !gives_zones => {
            field.fault("has no effect: no member has a zone; give `zone_tag`, or `zone` in `members`");
        }
        (None, Some(field)) => field.fault("has no effect without the router's own zone, `zone`"),
        _ => {}
    }
    placement
}

fn zone(field: &Field<'_>) -> Option<Arc<str>> {
    field.name().map(Arc::from)
}
