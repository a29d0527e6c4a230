//! `max_lag` and `on_unfit` of a route.

use std::time::Duration;

use crate::config::fields::{Field, Section};
use crate::config::model::{Access, Limit, MaxLag, OnUnfit, Route, Unfit};

/// `max_lag` and `on_unfit` of a route; `route` is `None` where the rest of it is faulty.
pub(super) fn read(
    section: &Section<'_>,
    route: Option<&Route>,
    probe_interval: Option<Duration>,
) -> (Option<MaxLag>, OnUnfit) {
    let is_read_write = route.is_some_and(|route| route.access == Access::ReadWrite);
    let max_lag = section.field("max_lag").and_then(|field| {
        if is_read_write {
            field.fault("has no effect: the leader is not behind itself");
        }
        max_lag(&field, probe_interval)
    });
    let on_unfit = section.section("on_unfit");
    let policy = |key| {
        let field = on_unfit.field(key)?;
        let words = [
            ("keep", Some(Unfit::Keep)),
            ("close_idle", Some(Unfit::CloseIdle)),
            ("close", Some(Unfit::Close)),
        ];
        Some((field.one_of(&words)?, field))
    };
    let lag = policy("lag");
    if let Some((lag, field)) = &lag
        && *lag != Unfit::Keep
        && !section.has("max_lag")
    {
        field.fault("has no effect without `max_lag`");
    }
    if let Some(field) = on_unfit.field("role") {
        let _ = field.one_of(&[("close", Some(()))]);
    }
    let on_unfit = OnUnfit {
        lag: lag.map(|(lag, _)| lag).unwrap_or_default(),
        down: policy("down").map(|(down, _)| down).unwrap_or_default(),
        grace: on_unfit.duration("grace"),
    };
    (max_lag, on_unfit)
}

fn max_lag(field: &Field<'_>, probe_interval: Option<Duration>) -> Option<MaxLag> {
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
        field.fault("needs `bytes`, `time` or both");
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
            field.fault("has no effect without the limit itself");
        }
        return None;
    };
    let most = read_most(&most)?;
    let recover = match recover {
        Some(field) => {
            let recover = read_recover(&field)?;
            if recover > most {
                field.fault("is more than the limit itself");
            }
            recover
        }
        None => default(most),
    };
    Some(Limit { most, recover })
}
