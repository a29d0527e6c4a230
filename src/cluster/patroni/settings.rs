//! What Patroni's dynamic configuration (`GET /config`) says about the duration of a failover.

use std::time::Duration;

use serde_json::Value;

/// What Patroni uses where its configuration has no such key.
const TTL: u64 = 30;
const LOOP_WAIT: u64 = 10;
/// A longer `ttl` or `loop_wait` is taken for a mistake.
const LONGEST: u64 = 3600;

/// `ttl` + `loop_wait`: after this time a dead leader has lost its key, and another member has
/// noticed. `None` if the body is not such a configuration.
pub fn patience(body: &[u8]) -> Option<Duration> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let settings = value.as_object()?;
    let seconds = |key, default| match settings.get(key) {
        None | Some(Value::Null) => Some(default),
        Some(given) => number(given).filter(|seconds| (1..=LONGEST).contains(seconds)),
    };
    let sum = seconds("ttl", TTL)? + seconds("loop_wait", LOOP_WAIT)?;
    Some(Duration::from_secs(sum))
}

/// Whole seconds, also as a text: Patroni takes both.
fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn ttl_and_loop_wait_are_added_and_patronis_defaults_count() {
        let read = |value: Value| patience(value.to_string().as_bytes()).map(|time| time.as_secs());
        let whole = json!({"ttl": 20, "loop_wait": 5, "retry_timeout": 10,
            "postgresql": {"parameters": {"max_connections": 100}}});
        assert_eq!(read(whole), Some(25));
        assert_eq!(read(json!({})), Some(40));
        assert_eq!(read(json!({"ttl": null, "loop_wait": "7"})), Some(37));
        assert_eq!(read(json!({"ttl": 3600, "loop_wait": 3600})), Some(7200));
        for wrong in [
            json!({"ttl": 0}),
            json!({"ttl": 3601}),
            json!({"ttl": u64::MAX, "loop_wait": u64::MAX}),
            json!({"ttl": -30}),
            json!({"ttl": 30.5}),
            json!({"ttl": "half a minute"}),
            json!({"loop_wait": [10]}),
            json!([]),
            json!("ttl"),
            json!(null),
        ] {
            assert_eq!(read(wrong.clone()), None, "{wrong}");
        }
        assert_eq!(patience(b""), None);
        assert_eq!(patience(b"<html>"), None);
    }
}
