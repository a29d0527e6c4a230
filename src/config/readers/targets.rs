//! `targets` and `tags` of a route.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::config::fields::Field;
use crate::config::model::{TargetRole, Tier};

pub(super) fn targets(field: &Field<'_>, is_fixed: bool) -> Option<Vec<Tier>> {
    let elements = field.list();
    let mut whole = !elements.is_empty();
    let mut seen = 0;
    let mut tiers = Vec::new();
    for element in elements {
        let roles = if element.is_list() {
            element.list()
        } else {
            vec![element]
        };
        whole &= !roles.is_empty();
        let mut tier = Vec::new();
        for field in roles {
            let Some(role) = role(&field, is_fixed) else {
                whole = false;
                continue;
            };
            if role.cover() & !seen == 0 {
                field.error(format!("`{role}` adds nothing to the targets before it"));
            }
            seen |= role.cover();
            tier.push(role);
        }
        tiers.push(Tier(tier));
    }
    whole.then_some(tiers)
}

fn role(field: &Field<'_>, is_fixed: bool) -> Option<TargetRole> {
    let role = field.one_of()?;
    if is_fixed && matches!(role, TargetRole::Sync | TargetRole::Quorum | TargetRole::Async) {
        field.error_with_hint(
            format!("`{role}` is known from Patroni only, and the cluster is a list of `servers`"),
            "use `replica`",
        );
        return None;
    }
    Some(role)
}

pub(super) fn tags(field: &Field<'_>, is_fixed: bool) -> Option<BTreeMap<String, Value>> {
    let named = field.named();
    if is_fixed {
        field.error("has no effect: tags are Patroni's, and the cluster is a list of `servers`");
    }
    named
        .into_iter()
        .map(|(key, field)| Some((key.to_owned(), field.scalar()?)))
        .collect()
}
