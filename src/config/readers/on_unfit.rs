//! `max_lag` and `on_unfit` of a route.

use std::time::Duration;

use crate::config::fields::{Field, Section};
use crate::config::model::{Access, Limit, MaxLag, OnUnfit, Unfit};

/// `access`: `None` after an error.
pub(super) fn max_lag(
    route: &Section<'_>,
    access: Option<Access>,
    probe_interval: Option<Duration>,
) -> Option<MaxLag> {
    let field = route.field("max_lag")?;
    if access == Some(Access::ReadWrite) {
        field.error("has no effect: the leader has no lag");
    }
    limits(&field, probe_interval)
}

pub(super) fn on_unfit(route: &Section<'_>) -> OnUnfit {
    let section = route.section("on_unfit");
    let lag = section.word("lag");
    if let Some(field) = section
        .field("lag")
        .filter(|_| lag != Unfit::Keep && !route.has("max_lag"))
    {
        field.error("has no effect without `max_lag`");
    }
    if let Some(field) = section.field("role") {
        let _ = field.word();
    }
    OnUnfit {
        lag,
        down: section.word("down"),
        grace: section.duration("grace"),
    }
}

fn limits(field: &Field<'_>, probe_interval: Option<Duration>) -> Option<MaxLag> {
    let section = field.section();
    let bytes = limit(
        &section,
        ["bytes", "recover_bytes"],
        Field::size,
        Field::size,
        |most| most / 2,
    );
    // What is measured twice an interval apart is not known any better.
    let least = probe_interval.map_or(Duration::ZERO, |interval| interval * 2);
    let time = limit(
        &section,
        ["time", "recover_time"],
        |field| field.duration_from(least),
        Field::duration,
        |most| most / 2,
    );
    if !["bytes", "time", "recover_bytes", "recover_time"]
        .iter()
        .any(|key| section.has(key))
    {
        field.error("needs `bytes`, `time` or both");
    }
    Some(MaxLag { bytes, time }).filter(|max| max.bytes.is_some() || max.time.is_some())
}

fn limit<'s, T: Copy + PartialOrd>(
    section: &Section<'s>,
    [most, recover]: [&str; 2],
    read_most: impl Fn(&Field<'s>) -> Option<T>,
    read_recover: impl Fn(&Field<'s>) -> Option<T>,
    default: impl Fn(T) -> T,
) -> Option<Limit<T>> {
    let recover = section.field(recover);
    let Some(most) = section.field(most) else {
        if let Some(field) = recover {
            field.error("has no effect without the limit itself");
        }
        return None;
    };
    let most = read_most(&most)?;
    let recover = match recover {
        Some(field) => {
            let recover = read_recover(&field)?;
            if recover > most {
                field.error("must not be more than the limit");
            }
            recover
        }
        None => default(most),
    };
    Some(Limit { most, recover })
}
