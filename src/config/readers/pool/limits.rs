//! Sizes and time-outs, of the pool and of an entry of `overrides`.

use std::time::Duration;

use crate::config::fields::Section;
use crate::config::model::PoolLimits;
use crate::config::units::shown_duration;

/// With the table's defaults.
pub(super) fn of_pool(section: &Section<'_>) -> PoolLimits {
    PoolLimits {
        max_connections: section.number("max_connections"),
        min_connections: section.number("min_connections"),
        reserve: section.number("reserve"),
        reserve_delay: section.duration("reserve_delay"),
        idle_timeout: section.duration_or_off("idle_timeout"),
        max_lifetime: section.duration("max_lifetime"),
        query_timeout: section.duration_or_off("query_timeout"),
        transaction_timeout: section.duration_or_off("transaction_timeout"),
        idle_transaction_timeout: section.duration_or_off("idle_transaction_timeout"),
        batch_timeout: section.duration_or_off("batch_timeout"),
    }
}

/// What the entry does not say is the pool's.
pub(super) fn of_entry(section: &Section<'_>, pool: &PoolLimits) -> PoolLimits {
    let number = |key, inherited| {
        let written = section.field(key).and_then(|field| field.number());
        written.unwrap_or(inherited)
    };
    let time = |key, inherited| {
        let written = section.field(key).and_then(|field| field.duration());
        written.unwrap_or(inherited)
    };
    let time_or_off = |key, inherited: Option<Duration>| {
        Some(time(key, inherited.unwrap_or_default())).filter(|time| !time.is_zero())
    };
    PoolLimits {
        max_connections: number("max_connections", pool.max_connections),
        min_connections: number("min_connections", pool.min_connections),
        reserve: number("reserve", pool.reserve),
        reserve_delay: time("reserve_delay", pool.reserve_delay),
        idle_timeout: time_or_off("idle_timeout", pool.idle_timeout),
        max_lifetime: time("max_lifetime", pool.max_lifetime),
        query_timeout: time_or_off("query_timeout", pool.query_timeout),
        transaction_timeout: time_or_off("transaction_timeout", pool.transaction_timeout),
        idle_transaction_timeout: time_or_off("idle_transaction_timeout", pool.idle_transaction_timeout),
        batch_timeout: time_or_off("batch_timeout", pool.batch_timeout),
    }
}

/// What would not count as it is written. `reserved`: an entry of `overrides` has a reserve, for
/// which the pool's delay counts.
pub(super) fn without_effect(section: &Section<'_>, limits: &PoolLimits, most: Option<u32>, reserved: bool) {
    connections(section, limits, most);
    if limits.reserve == 0
        && !reserved
        && let Some(field) = section.field("reserve_delay")
    {
        field.error_with_hint(
            "has no effect without a reserve",
            "write `reserve`, the number of connections beyond `max_connections`, or remove it",
        );
    }
    if let Some(transaction) = limits.transaction_timeout {
        for (key, limit) in [
            ("query_timeout", limits.query_timeout),
            ("idle_transaction_timeout", limits.idle_transaction_timeout),
            ("batch_timeout", limits.batch_timeout),
        ] {
            longer(section, key, limit, "transaction_timeout", transaction);
        }
    }
    longer(
        section,
        "idle_timeout",
        limits.idle_timeout,
        "max_lifetime",
        limits.max_lifetime,
    );
}

fn connections(section: &Section<'_>, limits: &PoolLimits, most: Option<u32>) {
    let max = limits.max_connections;
    if limits.min_connections > max {
        // In an entry the other number may be the pool's.
        if let Some(field) = section.field("min_connections") {
            field.error_with_hint(
                format!("is more than `max_connections`, {max}"),
                "raise `max_connections`, or lower this",
            );
        } else if let Some(field) = section.field("max_connections") {
            field.error_with_hint(
                format!(
                    "is less than the pool's `min_connections`, {}",
                    limits.min_connections
                ),
                "write `min_connections` here, too",
            );
        }
    }
    if let Some(field) = section.field("max_connections")
        && let Some(most) = most.filter(|most| max > *most)
    {
        field.error_with_hint(
            format!("is more than the cluster's `server.max_connections`, {most}, which limits all sessions"),
            "raise that, or lower this",
        );
    }
}

/// The written time is not shorter than another one that ends the same thing.
fn longer(section: &Section<'_>, key: &str, limit: Option<Duration>, other: &str, most: Duration) {
    if let Some(field) = section.field(key)
        && limit.is_some_and(|limit| limit >= most)
    {
        field.error_with_hint(
            format!("has no effect: `{other}` is {}", shown_duration(most)),
            format!("write a time below `{other}`, or remove it"),
        );
    }
}
