//! What an event is about, for a person who reads its text.

use serde_json::Value;

/// In this order.
const KEYS: [&str; 10] = [
    "member",
    "route",
    "session",
    "state",
    "weight",
    "leader",
    "candidate",
    "why",
    "how",
    "by",
];

/// What the event of these fields is about and who asked for it, as `member=db1 by=…`, where its
/// text does not say so.
pub fn subject(fields: &Value, text: &str) -> String {
    let shown = KEYS.iter().filter_map(|key| {
        let value = match &fields[*key] {
            Value::String(value) => value.clone(),
            Value::Number(value) => value.to_string(),
            _ => return None,
        };
        (!text.contains(&value)).then(|| format!("{key}={value}"))
    });
    shown.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Event, OperatorEvent};

    #[test]
    fn an_order_names_its_subject_unless_its_text_does() {
        let set = Event::from(OperatorEvent::AdminStateSet {
            cluster: "main".to_owned(),
            member: "db1".to_owned(),
            state: "drain".to_owned(),
            by: "127.0.0.1:5000".to_owned(),
        });
        let fields = serde_json::to_value(&set).unwrap_or_default();
        assert_eq!(
            subject(&fields, &set.to_string()),
            "member=db1 state=drain by=127.0.0.1:5000"
        );
        assert_eq!(subject(&fields, "db1: drain, asked by 127.0.0.1:5000"), "");
        assert_eq!(subject(&Value::Null, "text"), "");
    }
}
