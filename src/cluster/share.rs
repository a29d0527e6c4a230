//! A member's weight and zone, from the configuration or else from its Patroni tags.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::snapshot::MemberName;
use crate::config::{MOST_WEIGHT, Placement};

/// HAProxy's default, too.
const DEFAULT_WEIGHT: u16 = 1;
/// The limit for names in the configuration.
const MAX_ZONE: usize = 63;

/// A tag that is not a valid weight or zone is ignored.
pub(super) fn share(
    placement: &Placement,
    name: &MemberName,
    tags: &BTreeMap<String, Value>,
) -> (u16, Option<Arc<str>>) {
    let configured = placement.members.get(name.as_str());
    let tag = |key: &Option<String>| key.as_ref().and_then(|key| tags.get(key));
    let weight = configured
        .and_then(|member| member.weight)
        .or_else(|| tag(&placement.weight_tag).and_then(weight))
        .unwrap_or(DEFAULT_WEIGHT);
    let zone = configured
        .and_then(|member| member.zone.clone())
        .or_else(|| tag(&placement.zone_tag).and_then(zone));
    (weight, zone)
}

fn weight(tag: &Value) -> Option<u16> {
    let weight = match tag {
        Value::Number(number) => number.as_u64()?.try_into().ok()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    (weight <= MOST_WEIGHT).then_some(weight)
}

fn zone(tag: &Value) -> Option<Arc<str>> {
    let zone = match tag {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        _ => return None,
    };
    (1..=MAX_ZONE).contains(&zone.len()).then(|| zone.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;
    use crate::config::MemberPlacement;

    fn tagged(tags: Value) -> (u16, Option<Arc<str>>) {
        let placement = Placement {
            weight_tag: Some("w".into()),
            zone_tag: Some("z".into()),
            ..Placement::even()
        };
        let tags = serde_json::from_value(tags).unwrap();
        share(&placement, &MemberName::new("db1"), &tags)
    }

    #[test]
    fn valid_tags_give_weight_and_zone() {
        assert_eq!(tagged(json!({"w": 256, "z": "b"})), (256, Some("b".into())));
        assert_eq!(tagged(json!({"w": "0", "z": 2})), (0, Some("2".into())));
        for odd in [
            json!(257),
            json!(-1),
            json!(1.5),
            json!("much"),
            json!(true),
            json!(null),
        ] {
            assert_eq!(tagged(json!({"w": odd})), (1, None), "{odd}");
        }
        for odd in [json!(""), json!("x".repeat(64)), json!([1]), json!(true)] {
            assert_eq!(tagged(json!({"z": odd})), (1, None), "{odd}");
        }
    }

    #[test]
    fn the_configuration_takes_precedence_over_tags() {
        let tags = serde_json::from_value(json!({"w": 7, "z": "b"})).unwrap();
        let mut placement = Placement::even();
        let name = MemberName::new("db1");
        assert_eq!(share(&placement, &name, &tags), (1, None), "no tag is configured");
        (placement.weight_tag, placement.zone_tag) = (Some("w".into()), Some("z".into()));
        let member = MemberPlacement {
            weight: Some(0),
            zone: None,
        };
        placement.members.insert("db1".into(), member);
        assert_eq!(share(&placement, &name, &tags), (0, Some("b".into())));
    }
}
