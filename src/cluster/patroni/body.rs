//! What a body of `/cluster` says, read leniently.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::{MAX_MEMBERS, MAX_NAME, Reply, printable};
use crate::cluster::moment;
use crate::cluster::snapshot::{MemberName, Role};
use crate::cluster::state::{Listed, Named, SourceReport, SwitchoverRequest};
use crate::wire::text::is_unsafe;

/// Limit of a URL in bytes.
const MAX_URL: usize = 512;

/// Reads the body of `/cluster`. Fails only if it is not such a body at all.
pub fn parse(body: &[u8]) -> Reply {
    let value: Value =
        serde_json::from_slice(body).map_err(|error| format!("the answer is not JSON: {error}"))?;
    let Some(list) = value.get("members").and_then(Value::as_array) else {
        return Err("the answer has no list of members".to_owned());
    };
    let mut members: Vec<Listed> = Vec::new();
    for member in list.iter().filter_map(member).take(MAX_MEMBERS) {
        if members.iter().all(|known| known.name != member.name) {
            members.push(member);
        }
    }
    let mut leaders = members
        .iter()
        .filter(|member| matches!(member.role, Role::Leader | Role::StandbyLeader));
    let named = match (leaders.next(), leaders.next()) {
        (None, _) => Named::Nobody,
        (Some(leader), None) => Named::One(leader.name.clone()),
        (Some(_), Some(_)) => Named::Several,
    };
    let paused = value.get("pause").and_then(Value::as_bool).unwrap_or(false);
    Ok(SourceReport {
        members,
        named,
        paused,
        disagreement: None,
        rivals: Vec::new(),
        scheduled: value.get("scheduled_switchover").and_then(scheduled),
    })
}

fn scheduled(value: &Value) -> Option<SwitchoverRequest> {
    let name = |key: &str| {
        value
            .get(key)
            .and_then(Value::as_str)
            .filter(|name| is_name(name))
    };
    Some(SwitchoverRequest {
        leader: name("from").map(MemberName::new),
        candidate: name("to").map(MemberName::new),
        at: Some(moment::read(value.get("at")?.as_str()?)?),
    })
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME && !name.chars().any(char::is_control)
}

/// One member; `None` if it has no usable name.
fn member(value: &Value) -> Option<Listed> {
    let name = value.get("name")?.as_str()?;
    if !is_name(name) {
        return None;
    }
    let text = |key: &str| {
        value
            .get(key)
            .and_then(Value::as_str)
            .map(|text| printable(text, 64))
    };
    let usable = |host: &&str| {
        !host.is_empty() && host.len() <= 255 && !host.chars().any(|c| is_unsafe(c) || c.is_whitespace())
    };
    let host = value
        .get("host")
        .and_then(Value::as_str)
        .filter(usable)
        .unwrap_or_default()
        .to_owned();
    let port = match value.get("port") {
        Some(Value::Number(number)) => number.as_u64().and_then(|number| u16::try_from(number).ok()),
        Some(Value::String(text)) => text.parse().ok(),
        _ => None,
    };
    let role = match text("role").unwrap_or_default().as_str() {
        "leader" | "master" | "primary" => Role::Leader,
        "standby_leader" => Role::StandbyLeader,
        "replica" => Role::Replica,
        "sync_standby" => Role::SyncStandby,
        "quorum_standby" => Role::QuorumStandby,
        other => Role::Other(other.to_owned()),
    };
    let number = |key: &str| value.get(key).and_then(Value::as_u64);
    let tags = match value.get("tags") {
        Some(Value::Object(tags)) => tags
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        _ => BTreeMap::new(),
    };
    Some(Listed {
        name: MemberName::new(name),
        host,
        port: port.unwrap_or(0),
        role,
        state: text("state").unwrap_or_default(),
        timeline: number("timeline").and_then(|timeline| u32::try_from(timeline).ok()),
        lag: number("lag"),
        tags,
        api_url: value
            .get("api_url")
            .and_then(Value::as_str)
            .filter(|url| url.len() <= MAX_URL)
            .map(Arc::from),
    })
}
