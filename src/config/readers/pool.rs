//! `pool` of a route.

mod limits;
mod overrides;
mod parameters;

use std::path::Path;
use std::time::Duration;

use limits::{of_pool, without_effect};
use overrides::{Override, overrides};
use parameters::{ignored, restored};

use crate::config::fields::{Context, Section};
use crate::config::model::{Pool, PoolMode, Queue, WrittenPoolMode};
use crate::config::schema::POOL;
use crate::config::units::shown_duration;

/// What only matters where a session changes its connection.
const OF_TRANSACTIONS: [&str; 6] = [
    "settings",
    "verify",
    "custom_settings",
    "max_statements",
    "max_statement_bytes",
    "wait_notify",
];

/// The time-outs, and the setting of the server that is nearest to each.
const TIMEOUTS: [(&str, &str); 4] = [
    ("query_timeout", "statement_timeout"),
    ("transaction_timeout", "transaction_timeout"),
    ("idle_transaction_timeout", "idle_in_transaction_session_timeout"),
    ("batch_timeout", "transaction_timeout"),
];

/// `None` is off. After an error in `mode` there is a pool, so that only this error is reported.
/// `most`: the cluster's `server.max_connections`, if it has one. `is_tracked`: sessions are
/// tracked in session mode, too.
pub(super) fn read(
    section: &Section<'_>,
    queue: &Queue,
    most: Option<u32>,
    is_tracked: bool,
) -> Option<Pool> {
    let mode = match section.one_of("mode").map(WrittenPoolMode::pooled) {
        Some(None) if !section.is_broken() => {
            nothing_but_mode(section, is_tracked);
            return None;
        }
        mode => mode.flatten(),
    };
    let limits = of_pool(section);
    let entries = overrides(section, &limits);
    let has_reserve = |entry: &Override<'_>| entry.model.limits.reserve > 0;
    without_effect(section, &limits, most, entries.iter().any(has_reserve));
    for entry in &entries {
        without_effect(&entry.section, &entry.model.limits, most, false);
    }
    if mode == Some(PoolMode::Session) && !is_tracked {
        nothing_of_transactions(section, &entries);
    }
    let wait_notify = section.duration_or_off("wait_notify");
    if mode != Some(PoolMode::Session) || is_tracked {
        check_waiting(section, wait_notify, queue);
    }
    Some(Pool {
        mode: mode.unwrap_or(PoolMode::Transaction),
        limits,
        overrides: entries.into_iter().map(|entry| entry.model).collect(),
        connects: section.number("connects"),
        max_statements: section.number("max_statements"),
        max_statement_bytes: section.size("max_statement_bytes"),
        reset_timeout: section.duration("reset_timeout"),
        wait_notify,
        settings: restored(section),
        verify: section.word("verify"),
        custom_settings: section.word("custom_settings"),
        ignore_startup_parameters: ignored(section),
    })
}

/// For tracked sessions without a pool: everything at its default, but nothing that keeps a session
/// from a connection of its own, and room for the prepared statements of one that lives long.
/// `written`: the route's `pool`, which may say what is asked and restored.
pub(super) fn of_tracked_sessions(written: &Section<'_>) -> Pool {
    let context = Context::new(Path::new(""), 0, &|_| None);
    let section = Section::unwritten(&context, &POOL);
    let mut limits = of_pool(&section);
    limits.max_connections = 100_000;
    Pool {
        mode: PoolMode::Session,
        limits,
        overrides: Vec::new(),
        connects: 100,
        max_statements: 10_000,
        max_statement_bytes: 32 << 20,
        reset_timeout: section.duration("reset_timeout"),
        wait_notify: section.duration_or_off("wait_notify"),
        settings: restored(written),
        verify: written.word("verify"),
        custom_settings: section.word("custom_settings"),
        ignore_startup_parameters: Vec::new(),
    }
}

/// What counts for tracked sessions without a pool.
const OF_TRACKED: [&str; 2] = ["settings", "verify"];

fn nothing_but_mode(section: &Section<'_>, is_tracked: bool) {
    if !section.has("mode") && section.has_unknown() {
        // It may be the mode that is misspelt.
        return;
    }
    let message = if section.has("mode") {
        "has no effect with `mode: off`"
    } else {
        "has no effect without `mode`, which is `off`"
    };
    let counts = |key: &str| key == "mode" || is_tracked && !section.has("mode") && OF_TRACKED.contains(&key);
    let others = section.fields().filter(|(key, _)| !counts(key));
    for field in others.filter_map(|(_, field)| field) {
        field.error_with_hint(
            message,
            "write `mode: session` or `mode: transaction`, or remove the key",
        );
    }
}

fn nothing_of_transactions(section: &Section<'_>, entries: &[Override<'_>]) {
    let message = "has no effect with `mode: session`: a session keeps its connection until it ends";
    for field in OF_TRANSACTIONS.iter().filter_map(|key| section.field(key)) {
        field.error_with_hint(
            message,
            "remove it, or write `mode: transaction`, or `resume: tracked` at the route",
        );
    }
    let of_entries = entries.iter().map(|entry| &entry.section);
    for section in std::iter::once(section).chain(of_entries) {
        for (key, server) in TIMEOUTS {
            if let Some(field) = section.field(key) {
                field.error_with_hint(
                    message,
                    format!(
                        "use PostgreSQL's `{server}`, or write `mode: transaction`, or `resume: tracked` at the route"
                    ),
                );
            }
        }
    }
}

/// A notice that no session would wait for.
fn check_waiting(section: &Section<'_>, after: Option<Duration>, queue: &Queue) {
    let (Some(field), Some(after)) = (section.field("wait_notify"), after) else {
        return;
    };
    if queue.most == 0 {
        field.error("has no effect: no session waits with `max_queue: 0`");
    } else if after >= queue.timeout {
        field.error_with_hint(
            format!(
                "has no effect: no session waits longer than `queue_timeout`, {}",
                shown_duration(queue.timeout)
            ),
            "`0` switches the notice off",
        );
    }
}
