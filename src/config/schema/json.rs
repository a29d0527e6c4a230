//! The table as JSON Schema, draft 2020-12: for editors, and for checks without the program.
//!
//! It refuses nothing that the readers accept. What it cannot say (limits of times and sizes, how
//! two keys depend on each other, what is in a file) `trunkline check` says.

use serde_json::{Map, Value, json};

use super::kind::{LONGEST_SOCKET_PATH, LONGEST_TEXT};
use super::{Key, Keys, Otherwise, ROOT, ValueKind};
use crate::config::units::{shown_duration, shown_size};

/// As [`crate::config::fields`] has it.
const NAME: &str = "^[A-Za-z0-9._-]{1,63}$";

pub(in crate::config) fn schema() -> Value {
    let mut schema = keys(&ROOT);
    schema.insert(
        "$schema".to_owned(),
        "https://json-schema.org/draft/2020-12/schema".into(),
    );
    schema.insert("title".to_owned(), "Configuration of Trunkline".into());
    schema.into()
}

fn keys(keys: &Keys) -> Map<String, Value> {
    let mut schema = Map::new();
    let required = |key: &&Key| matches!(key.otherwise, Otherwise::Required);
    let required: Vec<&str> = keys.0.iter().filter(required).map(|key| key.name).collect();
    let alternatives = keys.0.iter().filter_map(|key| match key.otherwise {
        Otherwise::Or(other) => Some(other),
        _ => None,
    });
    let alternatives: Vec<Value> = alternatives.map(|name| json!({"required": [name]})).collect();
    // A section whose keys are all commented out is null.
    let types = if required.is_empty() && alternatives.is_empty() {
        json!(["object", "null"])
    } else {
        json!("object")
    };
    schema.insert("type".to_owned(), types);
    let properties: Map<String, Value> = keys
        .0
        .iter()
        .map(|key| (key.name.to_owned(), property(key).into()))
        .collect();
    schema.insert("properties".to_owned(), properties.into());
    schema.insert("additionalProperties".to_owned(), false.into());
    if !required.is_empty() {
        schema.insert("required".to_owned(), required.into());
    }
    if !alternatives.is_empty() {
        schema.insert("oneOf".to_owned(), alternatives.into());
    }
    schema
}

fn property(key: &Key) -> Map<String, Value> {
    let mut schema = kind(&key.kind);
    let mut description = without_links(key.meaning);
    if let Some(bounds) = bounds(&key.kind) {
        description = format!("{description} {bounds}");
    }
    if let Otherwise::Said(default) = key.otherwise {
        description = format!("{description} Default: {default}.");
    }
    schema.insert("description".to_owned(), description.into());
    let default = match &key.otherwise {
        Otherwise::Truth(value) => json!(value),
        Otherwise::Number(value) => json!(value),
        Otherwise::Time(time) if time.is_zero() => json!(0),
        Otherwise::Time(time) => json!(shown_duration(*time)),
        Otherwise::Size(size) => json!(shown_size(*size)),
        Otherwise::Text(text) => json!(text),
        Otherwise::Required
        | Otherwise::Or(_)
        | Otherwise::Nothing
        | Otherwise::Below
        | Otherwise::Said(_) => return schema,
    };
    schema.insert("default".to_owned(), default);
    schema
}

fn kind(of: &ValueKind) -> Map<String, Value> {
    let schema = match of {
        ValueKind::Truth => json!({"type": "boolean"}),
        ValueKind::Number { least, most } => json!({"type": "integer", "minimum": least, "maximum": most}),
        ValueKind::Time { least, or_off, .. } if least.is_zero() || *or_off => {
            json!({"anyOf": [{"const": 0}, {"type": "string", "pattern": "^(0|[0-9]+(ms|s|m|h))$"}]})
        }
        ValueKind::Time { .. } => json!({"type": "string", "pattern": "^0*[1-9][0-9]*(ms|s|m|h)$"}),
        ValueKind::Size { .. } => {
            json!({"type": "string", "pattern": "^[0-9]+(B|kB|KiB|MB|MiB|GB|GiB|TB|TiB)$"})
        }
        ValueKind::Rate { .. } => {
            json!({"anyOf": [{"const": 0}, {"type": "string", "pattern": "^0*[1-9][0-9]*/s$"}]})
        }
        ValueKind::Words(words) => {
            // Without quotes, a version of TLS is a number to YAML, and clear.
            let numbers = words.iter().filter_map(|word| word.parse::<f64>().ok());
            let texts = words.iter().map(|word| json!(word));
            json!({"enum": texts.chain(numbers.map(|number| json!(number))).collect::<Vec<_>>()})
        }
        ValueKind::Text { most } => text(*most, "\\S"),
        ValueKind::Name => text(63, NAME),
        ValueKind::Address => text(LONGEST_TEXT, r"^(\*|[0-9.]+|\[[0-9A-Fa-f:.%]+\]):[0-9]+$"),
        ValueKind::SocketPath => text(LONGEST_SOCKET_PATH, "^/"),
        ValueKind::Mode => text(4, "^0?[0-7]{3}$"),
        ValueKind::Host => text(LONGEST_TEXT, r"^\S+$"),
        ValueKind::HostPort => text(LONGEST_TEXT, ":[0-9]+$"),
        ValueKind::Url => text(LONGEST_TEXT, "^https?://"),
        ValueKind::Network => text(LONGEST_TEXT, "^([0-9.]+|[0-9A-Fa-f]*:[0-9A-Fa-f:.]*)(/[0-9]+)?$"),
        ValueKind::Scalar => json!({"type": ["string", "number", "boolean"]}),
        ValueKind::File | ValueKind::Secret { .. } => text(LONGEST_TEXT, "^(?!~/)"),
        ValueKind::List { of, least, most } => {
            json!({"type": "array", "items": kind(of), "minItems": least, "maxItems": most})
        }
        ValueKind::Section(of) => return keys(of),
        ValueKind::Named { of, most } => {
            let mut schema = json!({
                "type": "object",
                "propertyNames": {"pattern": NAME},
                "additionalProperties": kind(of),
                "minProperties": 1,
            });
            if let Some(most) = most {
                schema["maxProperties"] = json!(most);
            }
            schema
        }
        ValueKind::Either(kinds) => json!({"anyOf": kinds.iter().map(kind).collect::<Vec<_>>()}),
    };
    let Value::Object(schema) = schema else {
        unreachable!("each of the above is an object");
    };
    schema
}

/// Lengths are of characters here and of bytes to the readers, so they may be looser.
fn text(most: usize, pattern: &str) -> Value {
    json!({"type": "string", "minLength": 1, "maxLength": most, "pattern": pattern})
}

/// What the schema itself cannot say.
fn bounds(kind: &ValueKind) -> Option<String> {
    let (least, most, or) = match kind {
        ValueKind::Time { least, most, or_off } => {
            let or = if *or_off { ", or 0" } else { "" };
            (shown_duration(*least), shown_duration(*most), or)
        }
        ValueKind::Size { least, most } => (shown_size(*least), shown_size(*most), ""),
        ValueKind::Rate { most } => return Some(format!("At most {most}/s.")),
        _ => return None,
    };
    Some(format!("From {least} to {most}{or}."))
}

/// `[text](target)` becomes its text: the targets are beside the documentation.
fn without_links(markdown: &str) -> String {
    let mut plain = String::new();
    let mut rest = markdown;
    while let Some((before, link)) = rest.split_once('[') {
        let found = link.split_once("](");
        let Some((text, (_, after))) = found.and_then(|(text, target)| Some((text, target.split_once(')')?)))
        else {
            break;
        };
        if text.contains(['[', ']']) {
            // The text has brackets itself, and the link is further on.
            plain.push_str(before);
            plain.push('[');
            rest = link;
            continue;
        }
        plain.push_str(before);
        plain.push_str(text);
        rest = after;
    }
    plain + rest
}
