//! How far behind a standby may be for a route, and what becomes of sessions on a member that is no longer fit for it.

use std::time::Duration;

use super::cluster::secs;
use super::model::Route;
use super::route::Access;
use super::section::{Field, Section};

const GRACE: Duration = secs(30);

/// How far a standby may be behind the leader; one of the two is limited at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxLag {
    /// WAL written and not replayed, in bytes: 1 kB to 1024 TB.
    pub bytes: Option<Limit<u64>>,
    /// How long it has been since it had replayed all there was: two probe intervals to 24 h.
    pub time: Option<Limit<Duration>>,
}

/// A limit, and what a member that was beyond it must come down to (default: half of it).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit<T> {
    pub most: T,
    /// Not more than `most`.
    pub recover: T,
}

/// What happens to the live sessions of a member that is no longer fit for their route. A session keeps what was so
/// when it began. A change of the member's role ends them at once, whatever is written here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnUnfit {
    /// It lags too far behind (default `keep`).
    pub lag: Unfit,
    /// It is down by our probes (default `keep`: a connection may live, and a dead one ends by itself).
    pub down: Unfit,
    /// How long `close`, and maintenance, wait for the end of a transaction, 0 to 24 h (default 30 s).
    pub grace: Duration,
}

impl Default for OnUnfit {
    fn default() -> Self {
        Self {
            lag: Unfit::Keep,
            down: Unfit::Keep,
            grace: GRACE,
        }
    }
}

/// What happens to live sessions, milder first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Unfit {
    #[default]
    Keep,
    /// They end between transactions, whenever that is.
    CloseIdle,
    /// They end between transactions, or when the grace period is over.
    Close,
}

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
    let least = probe_interval.map_or(secs(0), |interval| interval * 2);
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
