//! The paths of Patroni's REST interface (its documentation, chapter "Patroni REST API"), answered
//! for the local member, and only by what the router's own probes confirm.
//!
//! Differences: a leader has been seen to accept writes, and does not only hold a lock; the
//! router's probes measure the lag; an unknown lag is not within a limit; members that are drained
//! or in maintenance here are unfit.

use axum::http::{StatusCode, Uri};
use serde_json::{Value, json};

use super::super::member_checks::{self, CheckResult};
use super::answer::JsonAnswer;
use super::app::{App, Params, Subject};
use crate::cluster::snapshot::{Member, Role, Snapshot};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PatroniCheck {
    Primary,
    Leader,
    StandbyLeader,
    Replica,
    ReadOnly,
    Sync,
    Quorum,
    Async,
    ReadOnlySync,
    ReadOnlyQuorum,
    Health,
    Readiness,
}

pub(super) const PATHS: &[(&str, PatroniCheck)] = &[
    ("/", PatroniCheck::Primary),
    ("/primary", PatroniCheck::Primary),
    ("/master", PatroniCheck::Primary),
    ("/read-write", PatroniCheck::Primary),
    ("/leader", PatroniCheck::Leader),
    ("/standby-leader", PatroniCheck::StandbyLeader),
    ("/standby_leader", PatroniCheck::StandbyLeader),
    ("/replica", PatroniCheck::Replica),
    ("/read-only", PatroniCheck::ReadOnly),
    ("/sync", PatroniCheck::Sync),
    ("/synchronous", PatroniCheck::Sync),
    ("/quorum", PatroniCheck::Quorum),
    ("/async", PatroniCheck::Async),
    ("/asynchronous", PatroniCheck::Async),
    ("/read-only-sync", PatroniCheck::ReadOnlySync),
    ("/read-only-synchronous", PatroniCheck::ReadOnlySync),
    ("/read-only-quorum", PatroniCheck::ReadOnlyQuorum),
    ("/health", PatroniCheck::Health),
    ("/readiness", PatroniCheck::Readiness),
];

/// Patroni's default of `maximum_lag_on_failover`, its default limit of `/readiness`.
const READINESS_LAG: u64 = 1024 * 1024;

pub(super) fn answer(app: &App, uri: &Uri, check: PatroniCheck) -> JsonAnswer {
    let params = Params::of(uri);
    let (index, view) = match app.cluster(&params) {
        Ok(found) => found,
        Err(answer) => return answer,
    };
    let snapshot = view.snapshot.borrow().clone();
    match app.local(index, &snapshot) {
        Subject::Member(member) => {
            let verdict = ask(&snapshot, member, check, &params);
            let status = if verdict.is_ok() {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            let answer = JsonAnswer::json(status, &document(&snapshot, member)).about(member.name.as_str());
            match verdict {
                Ok(()) => answer,
                Err(reason) => answer.because(reason),
            }
        }
        Subject::NotYet(why) => {
            JsonAnswer::json(StatusCode::SERVICE_UNAVAILABLE, &json!({"state": "unknown"})).because(why)
        }
        Subject::Missing(hint) => {
            JsonAnswer::json(StatusCode::NOT_FOUND, &json!({"error": hint})).because(hint)
        }
    }
}

/// `/liveness` is about this router: it runs if it answers.
pub(super) fn liveness() -> JsonAnswer {
    JsonAnswer::json(StatusCode::OK, &json!({"state": "running"}))
}

/// The answer to one check about one member. Pure.
pub(super) fn ask(snapshot: &Snapshot, member: &Member, check: PatroniCheck, params: &Params) -> CheckResult {
    let leader = || {
        member_checks::is_leader(snapshot, member)
            .or_else(|why| member_checks::is_standby_leader(snapshot, member).map_err(|_| why))
    };
    let replica = || is_replica(snapshot, member, params);
    let with_role = |role: &Role, name: &str| {
        if member.role == *role {
            replica()
        } else {
            Err(format!("it is not a {name} standby"))
        }
    };
    let sync = || with_role(&Role::SyncStandby, "synchronous");
    let quorum = || with_role(&Role::QuorumStandby, "quorum");
    match check {
        // Patroni ignores tags where it answers for a leader only.
        PatroniCheck::Primary => member_checks::is_leader(snapshot, member),
        PatroniCheck::Leader => leader(),
        PatroniCheck::StandbyLeader => member_checks::is_standby_leader(snapshot, member),
        PatroniCheck::Readiness => leader().or_else(|_| is_ready_replica(snapshot, member, params)),
        PatroniCheck::Replica => replica().and_then(|()| has_tags(member, params)),
        PatroniCheck::ReadOnly => leader()
            .or_else(|_| replica())
            .and_then(|()| has_tags(member, params)),
        PatroniCheck::Sync => sync().and_then(|()| has_tags(member, params)),
        PatroniCheck::Quorum => quorum().and_then(|()| has_tags(member, params)),
        PatroniCheck::ReadOnlySync => leader()
            .or_else(|_| sync())
            .and_then(|()| has_tags(member, params)),
        PatroniCheck::ReadOnlyQuorum => leader()
            .or_else(|_| quorum())
            .and_then(|()| has_tags(member, params)),
        PatroniCheck::Async => match member.role {
            Role::SyncStandby | Role::QuorumStandby => Err("it is a synchronous standby".into()),
            _ => replica().and_then(|()| has_tags(member, params)),
        },
        PatroniCheck::Health => member_checks::is_up(member).and_then(|()| has_tags(member, params)),
    }
}

fn is_replica(snapshot: &Snapshot, member: &Member, params: &Params) -> CheckResult {
    member_checks::is_replica(snapshot, member)?;
    if let Some(limit) = params.first("lag").and_then(bytes) {
        within(member_checks::replay_lag(member), limit)?;
    }
    match params.first("replication_state") {
        Some(wanted) if wanted != replication_state(member) => Err(format!(
            "its replication state is \"{}\"",
            replication_state(member)
        )),
        _ => Ok(()),
    }
}

fn is_ready_replica(snapshot: &Snapshot, member: &Member, params: &Params) -> CheckResult {
    member_checks::is_standby(snapshot, member)?;
    if replication_state(member).is_empty() {
        return Err("it does not replicate".into());
    }
    let limit = params.first("lag").and_then(bytes).unwrap_or(READINESS_LAG);
    match params.first("mode") {
        Some("write") => within(member_checks::receive_lag(member), limit),
        _ => within(member_checks::replay_lag(member), limit),
    }
}

/// Patroni's words; empty where neither our probe nor the source sees it replicate.
fn replication_state(member: &Member) -> &str {
    match &member.health.facts {
        Some(facts) if facts.streaming => "streaming",
        _ if member.state == "in archive recovery" => "in archive recovery",
        _ => "",
    }
}

fn within(lag: Option<u64>, limit: u64) -> CheckResult {
    match lag {
        Some(lag) if lag <= limit => Ok(()),
        Some(lag) => Err(format!("it is {lag} bytes behind, more than {limit}")),
        None => Err("how far it is behind is not known".into()),
    }
}

/// Every `tag_NAME=VALUE` is there; values that are not strings compare as Python prints them, in
/// lower case.
fn has_tags(member: &Member, params: &Params) -> CheckResult {
    for (key, wanted) in params.pairs() {
        let Some(name) = key.strip_prefix("tag_") else {
            continue;
        };
        // The first value of a name counts.
        let wanted = params.first(key).unwrap_or(wanted);
        let value = match member.tags.get(name) {
            None | Some(Value::Null) => return Err(format!("it does not have the tag {name}")),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string().to_lowercase(),
        };
        if value != wanted {
            return Err(format!("its tag {name} has another value"));
        }
    }
    Ok(())
}

/// A number of bytes as PostgreSQL and Patroni write it: `1048576`, `1024kB`, `10MB`, `1.5GB`.
/// `None` for any other text, which means no limit, also for Patroni.
pub(super) fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let split = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit.trim_start() {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return Some(whole.saturating_mul(factor));
    }
    let number: f64 = number.parse().ok()?;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "no sign can be written, the cast saturates, and a limit with a fraction is not exact anyway"
    )]
    let bytes = (number * factor as f64).round() as u64;
    Some(bytes)
}

/// A status document with Patroni's names.
fn document(snapshot: &Snapshot, member: &Member) -> Value {
    let facts = member.health.facts.as_ref();
    let role = if member_checks::is_leader(snapshot, member).is_ok() {
        "primary"
    } else if member_checks::is_standby_leader(snapshot, member).is_ok() {
        "standby_leader"
    } else if facts.is_some_and(|facts| facts.in_recovery) {
        "replica"
    } else {
        "unknown"
    };
    let state = match member.state.as_str() {
        _ if member.health.up => "running",
        "" | "running" | "streaming" => "unknown",
        state => state,
    };
    let position = facts.map(|facts| {
        if facts.in_recovery {
            json!({"replayed_location": facts.position})
        } else {
            json!({"location": facts.position})
        }
    });
    let mut document = json!({
        "state": state,
        "role": role,
        "server_version": facts.map(|facts| facts.server_version),
        "timeline": facts.map(|facts| facts.timeline),
        "xlog": position,
        "database_system_identifier": facts.map(|facts| facts.system_identifier.to_string()),
        "patroni": {"name": member.name.as_str(), "scope": &*snapshot.cluster},
    });
    if let Value::Object(fields) = &mut document {
        if member.role == Role::SyncStandby {
            fields.insert("sync_standby".into(), true.into());
        }
        if member.role == Role::QuorumStandby {
            fields.insert("quorum_standby".into(), true.into());
        }
        if snapshot.paused {
            fields.insert("pause".into(), true.into());
        }
        fields.retain(|_, value| !value.is_null());
    }
    document
}
