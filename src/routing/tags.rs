//! Compares a route's `tags` with a member's: YAML values, compared as text.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;

/// `Err` holds the first tag, `key: value`, that the member does not have. A missing tag counts as
/// false, because Patroni omits some tags that are false.
pub(super) fn check(wanted: &BTreeMap<String, Value>, has: &BTreeMap<String, Value>) -> Result<(), String> {
    match wanted
        .iter()
        .find(|(key, value)| !same(value, has.get(*key).unwrap_or(&Value::Bool(false))))
    {
        None => Ok(()),
        Some((key, value)) => Err(format!("{key}: {}", text(value))),
    }
}

/// Whether two values are equal, as truth values or as text.
fn same(wanted: &Value, has: &Value) -> bool {
    // One YAML reader may read `yes` as true, the other one as text.
    match (truth(wanted), truth(has)) {
        (Some(wanted), Some(has)) => wanted == has,
        _ => text(wanted) == text(has),
    }
}

fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(value) => Some(*value),
        Value::String(word) => ["true", "yes", "on", "false", "no", "off"]
            .iter()
            .position(|known| word.eq_ignore_ascii_case(known))
            .map(|index| index < 3),
        _ => None,
    }
}

fn text(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => Cow::Borrowed(text),
        other => Cow::Owned(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_compared_as_text_and_truth_in_any_spelling() {
        for (wanted, has, expected) in [
            (json!("a"), json!("a"), true),
            (json!("a"), json!("A"), false),
            (json!(1), json!("1"), true),
            (json!(1.5), json!("1.5"), true),
            (json!(1), json!(2), false),
            (json!(true), json!("TRUE"), true),
            (json!("yes"), json!(true), true),
            (json!("off"), json!(false), true),
            (json!(true), json!("no"), false),
            (json!(true), json!(1), false),
            (json!("a"), json!(null), false),
        ] {
            assert_eq!(same(&wanted, &has), expected, "{wanted} {has}");
        }
    }

    #[test]
    fn every_tag_must_match_and_a_missing_tag_is_false() {
        let tags =
            |value: Value| serde_json::from_value::<BTreeMap<String, Value>>(value).unwrap_or_default();
        let has = tags(json!({"disk": "ssd", "site": 2}));
        assert_eq!(check(&tags(json!({})), &has), Ok(()));
        assert_eq!(check(&tags(json!({"disk": "ssd", "site": "2"})), &has), Ok(()));
        assert_eq!(check(&tags(json!({"disk": "ssd", "old": false})), &has), Ok(()));
        assert_eq!(
            check(&tags(json!({"disk": "ssd", "site": 3})), &has),
            Err("site: 3".to_owned())
        );
        assert_eq!(
            check(&tags(json!({"disk": "ssd"})), &tags(json!({}))),
            Err("disk: ssd".to_owned())
        );
    }
}
