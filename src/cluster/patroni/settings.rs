//! What Patroni's dynamic configuration (`GET /config`) says about time.

use std::time::Duration;

use serde_json::Value;

use crate::cluster::state::PatroniTimes;

/// What Patroni uses where its configuration has no such key.
const TTL: u64 = 30;
const LOOP_WAIT: u64 = 10;
/// A longer `ttl` or `loop_wait` is taken for a mistake.
const LONGEST: u64 = 3600;

/// `None` if the body is not such a configuration.
pub fn times(body: &[u8]) -> Option<PatroniTimes> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let settings = value.as_object()?;
    let seconds = |key, default| match settings.get(key) {
        None | Some(Value::Null) => Some(default),
        Some(given) => number(given).filter(|seconds| (1..=LONGEST).contains(seconds)),
    };
    Some(PatroniTimes {
        ttl: Duration::from_secs(seconds("ttl", TTL)?),
        loop_wait: Duration::from_secs(seconds("loop_wait", LOOP_WAIT)?),
    })
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
    fn ttl_and_loop_wait_are_read_and_patronis_defaults_count() {
        let read = |value: Value| {
            let times = times(value.to_string().as_bytes())?;
            Some((times.ttl.as_secs(), times.loop_wait.as_secs()))
        };
        let whole = json!({"ttl": 20, "loop_wait": 5, "retry_timeout": 10,
            "postgresql": {"parameters": {"max_connections": 100}}});
        assert_eq!(read(whole), Some((20, 5)));
        assert_eq!(read(json!({})), Some((30, 10)));
        assert_eq!(read(json!({"ttl": null, "loop_wait": "7"})), Some((30, 7)));
        assert_eq!(read(json!({"ttl": 3600, "loop_wait": 3600})), Some((3600, 3600)));
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
        assert_eq!(times(b""), None);
        assert_eq!(times(b"<html>"), None);
    }
}
