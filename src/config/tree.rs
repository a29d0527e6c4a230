//! YAML as a tree in which every node knows its line.
//!
//! serde stops at the first error; an operator wants them all. So the text becomes this tree first,
//! and the conversion walks it and goes on after an error. Only what is not YAML at all ends here.
//! YAML of other programs is read by it as well.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::{AliasLimits, DuplicateKeyPolicy, MergeKeyPolicy, NonFiniteFloatPolicy};
use serde_saphyr::{Location, Options, Spanned};

/// Nesting allowed; the schema needs six levels.
const MAX_DEPTH: usize = 24;
/// Nodes allowed, aliases expanded: a limit on memory and on the number of errors.
const MAX_NODES: usize = 20_000;

#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) line: Option<usize>,
    pub(crate) value: Value,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<MappingEntry>),
}

/// One key of a map. Duplicates are kept, so that they can be reported.
#[derive(Debug, Clone)]
pub(crate) struct MappingEntry {
    pub(crate) key: String,
    pub(crate) line: Option<usize>,
    pub(crate) node: Node,
}

/// Compares without the line.
impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

/// Compares without the line.
impl PartialEq for MappingEntry {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key && self.node == other.node
    }
}

impl Node {
    /// The value of `key`, if this is a map.
    pub(super) fn entry(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => entries
                .iter()
                .find(|entry| entry.key == key)
                .map(|entry| &entry.node),
            _ => None,
        }
    }
}

impl Value {
    /// What it is, for "expected a list, found …". Never the value itself: it could be a secret.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

/// The text is not YAML, or exceeds the limits.
#[derive(Debug)]
pub(crate) struct NotYaml {
    pub(crate) line: Option<usize>,
    pub(crate) message: String,
}

/// Reads one document. An empty one is [`Value::Null`].
pub(crate) fn parse(text: &str) -> Result<Node, NotYaml> {
    serde_saphyr::from_str_with_options::<Node>(text, options()).map_err(|error| NotYaml {
        line: error.location().and_then(line_of),
        message: describe(&error),
    })
}

fn options() -> Options {
    let mut aliases = AliasLimits::default();
    aliases.max_total_replayed_events = MAX_NODES;
    aliases.max_replay_stack_depth = 8;
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 3 * MAX_NODES,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_recorded_anchor_events: 3 * MAX_NODES,
            max_documents: 2,
            max_inclusion_depth: 0,
        },
        alias_limits: aliases,
        // Seen by the conversion, which reports all of them.
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        merge_keys: MergeKeyPolicy::AsOrdinary,
        // `off` and `no` are words, not false.
        strict_booleans: true,
        reject_unsupported_tags: true,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        // A snippet could quote a secret that was put in by mistake.
        with_snippet: false,
    }
}

fn line_of(location: Location) -> Option<usize> {
    usize::try_from(location.line()).ok().filter(|line| *line > 0)
}

/// The parser's own sentence, without the position, which is reported apart.
fn describe(error: &serde_saphyr::Error) -> String {
    match error.without_snippet() {
        serde_saphyr::Error::MultipleDocuments { .. } => {
            return "contains more than one YAML document".to_owned();
        }
        serde_saphyr::Error::Budget { .. } => {
            return format!("exceeds the limits: {MAX_DEPTH} levels, {MAX_NODES} values, aliases expanded");
        }
        _ => {}
    }
    let mut text = error.without_snippet().to_string();
    if let Some(location) = error.location() {
        for suffix in [
            format!(" at line {}, column {}", location.line(), location.column()),
            format!("line {} column {}: ", location.line(), location.column()),
        ] {
            text = text.replace(&suffix, "");
        }
    }
    text.lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(300)
        .collect()
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        let line = line_of(spanned.referenced).or_else(|| line_of(spanned.defined));
        Ok(Self {
            line,
            value: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(Value::Integer(i128::try_from(value).unwrap_or(i128::MAX)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(node) = access.next_element()? {
            list.push(node);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let line = line_of(key.referenced).or_else(|| line_of(key.defined));
            map.push(MappingEntry {
                key: key.value,
                line,
                node: access.next_value()?,
            });
        }
        Ok(Value::Map(map))
    }
}
