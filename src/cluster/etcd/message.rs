//! Messages of etcd's JSON gateway. 64-bit numbers are strings, keys and values are base64, and
//! zero and false are left out.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::EtcdError;
use crate::cluster::patroni::printable;

/// Limit of a watch's message and of an answer's body. etcd's own limit of a request is 1.5 MiB.
pub(super) const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// The state of etcd when it answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) cluster: u64,
    pub(super) revision: i64,
    pub(super) term: u64,
}

/// The answer to a range over one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Single {
    pub(super) header: Header,
    pub(super) value: Option<Vec<u8>>,
}

/// One key that was put or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) key: Vec<u8>,
    /// `None`: deleted.
    pub(super) value: Option<Vec<u8>>,
    /// The key did not exist before.
    pub(super) created: bool,
    pub(super) revision: i64,
}

/// One message of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Update {
    pub(super) header: Header,
    /// The watch is set up.
    pub(super) created: bool,
    pub(super) changes: Vec<Change>,
}

pub(super) fn range_request(key: &str) -> Value {
    json!({"key": BASE64_STANDARD.encode(key)})
}

/// All keys that begin with `prefix`, from a revision on.
pub(super) fn watch_request(prefix: &str, start: i64) -> Value {
    // The prefix ends with a slash; the next character is `0`.
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    json!({"create_request": {
        "key": BASE64_STANDARD.encode(prefix),
        "range_end": BASE64_STANDARD.encode(end),
        "start_revision": start.to_string(),
        "progress_notify": true,
    }})
}

pub(super) fn single(body: &[u8]) -> Result<Single, EtcdError> {
    let answer = json(body)?;
    let value = match answer.get("kvs").and_then(Value::as_array).map(Vec::as_slice) {
        None | Some([]) => None,
        Some([only]) => Some(bytes(only, "value")?),
        Some(_) => return Err(EtcdError::InvalidAnswer("several values of one key")),
    };
    Ok(Single {
        header: header(&answer)?,
        value,
    })
}

/// The token of `/auth/authenticate`.
pub(super) fn token(body: &[u8]) -> Result<String, EtcdError> {
    let answer = json(body)?;
    let token = answer.get("token").and_then(Value::as_str);
    token
        .map(str::to_owned)
        .ok_or(EtcdError::InvalidAnswer("no token for the user"))
}

/// The message of an error in any of its forms.
pub(super) fn error(body: &[u8]) -> String {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = ["message", "error"]
        .into_iter()
        .find_map(|key| answer.get(key).and_then(Value::as_str))
        .unwrap_or_default();
    printable(text, 200)
}

pub(super) fn update(line: &[u8]) -> Result<Update, EtcdError> {
    let message = json(line)?;
    if let Some(error) = message.get("error") {
        let text = error.get("message").and_then(Value::as_str).unwrap_or_default();
        return Err(EtcdError::Cancelled(printable(text, 200)));
    }
    let result = message
        .get("result")
        .ok_or(EtcdError::InvalidAnswer("no result"))?;
    let flag = |key: &str| result.get(key).and_then(Value::as_bool).unwrap_or(false);
    // After this the stream may stay open without further messages.
    if flag("canceled") {
        if number(result, "compact_revision").is_some_and(|revision| revision != 0) {
            return Err(EtcdError::Compacted);
        }
        let text = result
            .get("cancel_reason")
            .and_then(Value::as_str)
            .unwrap_or_default();
        return Err(EtcdError::Cancelled(printable(text, 200)));
    }
    let events = result
        .get("events")
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    let changes = events.iter().map(change).collect::<Result<_, _>>()?;
    Ok(Update {
        header: header(result)?,
        created: flag("created"),
        changes,
    })
}

fn change(event: &Value) -> Result<Change, EtcdError> {
    let pair = event
        .get("kv")
        .ok_or(EtcdError::InvalidAnswer("an event without a key"))?;
    let deleted = event.get("type").and_then(Value::as_str) == Some("DELETE");
    let revision =
        number(pair, "mod_revision").ok_or(EtcdError::InvalidAnswer("an event without a revision"))?;
    Ok(Change {
        key: bytes(pair, "key")?,
        value: if deleted {
            None
        } else {
            Some(bytes(pair, "value")?)
        },
        created: !deleted && number(pair, "create_revision") == Some(revision),
        revision,
    })
}

fn header(answer: &Value) -> Result<Header, EtcdError> {
    let header = answer
        .get("header")
        .ok_or(EtcdError::InvalidAnswer("no header"))?;
    let field = |key| number(header, key).ok_or(EtcdError::InvalidAnswer("an incomplete header"));
    let positive = |key| unsigned(header.get(key)).ok_or(EtcdError::InvalidAnswer("an incomplete header"));
    Ok(Header {
        cluster: positive("cluster_id")?,
        revision: field("revision")?,
        term: positive("raft_term")?,
    })
}

fn json(body: &[u8]) -> Result<Value, EtcdError> {
    serde_json::from_slice(body).map_err(|_| EtcdError::InvalidAnswer("something that is not JSON"))
}

fn number(object: &Value, key: &str) -> Option<i64> {
    match object.get(key)? {
        Value::String(text) => text.parse().ok(),
        other => other.as_i64(),
    }
}

fn unsigned(value: Option<&Value>) -> Option<u64> {
    match value? {
        Value::String(text) => text.parse().ok(),
        other => other.as_u64(),
    }
}

fn bytes(object: &Value, key: &str) -> Result<Vec<u8>, EtcdError> {
    match object.get(key) {
        None => Ok(Vec::new()),
        Some(value) => value
            .as_str()
            .and_then(|text| BASE64_STANDARD.decode(text).ok())
            .ok_or(EtcdError::InvalidAnswer("a key or value that is not base64")),
    }
}

/// Cuts a stream into its lines, one message each.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// The beginning of an incomplete line.
    rest: Vec<u8>,
}

impl Lines {
    /// The messages that end in `chunk`.
    pub(super) fn push(&mut self, chunk: &[u8]) -> Result<Vec<Update>, EtcdError> {
        let mut updates = Vec::new();
        let mut pieces = chunk.split(|byte| *byte == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            if self.rest.len() + piece.len() > MAX_MESSAGE {
                return Err(EtcdError::TooLong);
            }
            self.rest.extend_from_slice(piece);
            if pieces.peek().is_some() {
                let line = std::mem::take(&mut self.rest);
                if !line.trim_ascii().is_empty() {
                    updates.push(update(&line)?);
                }
            }
        }
        Ok(updates)
    }
}
