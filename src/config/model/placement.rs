//! Weights and zones: how sessions are shared out among members that are equally fit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// The greatest weight, `HAProxy`'s.
pub const MOST_WEIGHT: u16 = 256;

/// Weights and zones of one cluster's members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The router's own zone; its members are preferred among those that fit alike.
    pub zone: Option<Arc<str>>,
    /// The Patroni tag that gives a member's weight, where `members` does not.
    pub weight_tag: Option<String>,
    /// The Patroni tag that gives a member's zone, where `members` does not.
    pub zone_tag: Option<String>,
    /// How long the share of a member that has come back up grows, from a tenth to the whole; 0 is
    /// at once.
    pub slow_start: Duration,
    /// By the member's name; some may not be there (yet).
    pub members: BTreeMap<String, MemberPlacement>,
}

impl Placement {
    /// All members alike: no weights, no zones, no slow start.
    pub fn even() -> Self {
        Self {
            zone: None,
            weight_tag: None,
            zone_tag: None,
            slow_start: Duration::ZERO,
            members: BTreeMap::new(),
        }
    }
}

/// What the file says of one member.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemberPlacement {
    /// 0 to 256: its share of the sessions is its weight's share of the sum; 0 is none, unless no
    /// other member is fit.
    pub weight: Option<u16>,
    pub zone: Option<Arc<str>>,
}
