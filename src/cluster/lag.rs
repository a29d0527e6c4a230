//! How far standbys are behind, measured against this router's history of the primary's position.
//!
//! `now() - pg_last_xact_replay_timestamp()` on the standby would grow while the primary is idle.
//! Here a standby that has replayed everything is not behind, no matter how old the last write is.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::snapshot::{Lag, ProbeFacts};
use crate::config::{Limit, MaxLag};

/// Limit of remembered positions: enough for a day at ten probes a second.
const MAX_SIGHTINGS: usize = 1024;
/// At the limit, positions that are closer together than this fraction of their age are dropped. So
/// old positions are less exact, and an old lag counts as slightly longer.
const CLOSE: u32 = 64;
/// How long the last position counts while no primary can be seen: longer than Patroni's default
/// `ttl` + `loop_wait`, so that replicas stay in use during a failover.
const FORGET: Duration = Duration::from_mins(1);

/// The primary's positions and their times, both in ascending order.
#[derive(Debug, Default)]
pub(super) struct History {
    timeline: u32,
    seen: VecDeque<Sighting>,
    /// Start of the last probe of the primary.
    last: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Sighting {
    position: u64,
    first: Instant,
    /// The last time at which the primary was still at this position.
    last: Instant,
}

impl History {
    /// Records the position that a probe begun at `at` saw. Higher positions seen before belong to
    /// a timeline that was left, or were lost in a crash.
    pub(super) fn primary(&mut self, at: Instant, timeline: u32, position: u64) {
        if self.last.is_some_and(|last| at <= last) {
            return;
        }
        if timeline < self.timeline {
            self.seen.clear();
        }
        self.timeline = timeline;
        self.last = Some(at);
        while self.seen.back().is_some_and(|last| last.position > position) {
            self.seen.pop_back();
        }
        if let Some(newest) = self.seen.back_mut().filter(|last| last.position == position) {
            newest.last = at;
            return;
        }
        if self.seen.len() >= MAX_SIGHTINGS {
            let mut kept: Option<Instant> = None;
            self.seen.retain(|sighting| {
                let age = at.saturating_duration_since(sighting.first);
                let is_far = kept.is_none_or(|kept| sighting.first - kept >= age / CLOSE);
                if is_far {
                    kept = Some(sighting.first);
                }
                is_far
            });
            while self.seen.len() >= MAX_SIGHTINGS {
                self.seen.pop_front();
            }
        }
        self.seen.push_back(Sighting {
            position,
            first: at,
            last: at,
        });
    }

    /// How far behind a standby was when its last probe ended, at `seen`. `None` if it is not
    /// known.
    pub(super) fn lag(&self, standby: &ProbeFacts, seen: Instant, now: Instant) -> Option<Lag> {
        if standby.position == 0 || now.saturating_duration_since(self.last?) > FORGET {
            return None;
        }
        let replayed = standby.position;
        let is_apart = !standby.streaming
            && standby.timeline < self.timeline
            && self.seen.back().is_some_and(|newest| replayed > newest.position);
        if is_apart {
            // It has replayed WAL that the current primary never wrote.
            return None;
        }
        // WAL that the primary wrote after the standby's probe does not count as missing.
        let known = self
            .seen
            .partition_point(|sighting| sighting.first <= seen)
            .max(1);
        let newest = self.seen.get(known - 1)?;
        let time = if replayed >= newest.position {
            Some(Duration::ZERO)
        } else {
            let below = self
                .seen
                .partition_point(|sighting| sighting.position <= replayed);
            let complete = below.checked_sub(1).and_then(|index| self.seen.get(index));
            complete.map(|sighting| seen.saturating_duration_since(sighting.last))
        };
        Some(Lag {
            // The received position also shows how far the primary is.
            bytes: newest.position.max(standby.received).saturating_sub(replayed),
            time,
        })
    }

    /// How long the primary had been watched at `seen`.
    pub(super) fn watched(&self, seen: Instant) -> Duration {
        self.seen.front().map_or(Duration::ZERO, |oldest| {
            seen.saturating_duration_since(oldest.first)
        })
    }
}

/// The result of comparing a lag with a route's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    Fit,
    Lagging,
    /// Not fit, but it need not fall below the lower limit to become fit.
    Unknown,
}

/// `was_lagging`: the lag exceeded the limit, and has not fallen below the lower limit since. A lag
/// of unknown duration is longer than the primary has been `watched`.
pub(super) fn judge(max: &MaxLag, lag: Option<Lag>, watched: Duration, was_lagging: bool) -> Judgement {
    let Some(lag) = lag else {
        return Judgement::Unknown;
    };
    let beyond_bytes = max
        .bytes
        .is_some_and(|limit| lag.bytes > limit_of(limit, was_lagging));
    let beyond_time = max
        .time
        .is_some_and(|limit| lag.time.unwrap_or(watched) > limit_of(limit, was_lagging));
    if beyond_bytes || beyond_time {
        Judgement::Lagging
    } else if max.time.is_some() && lag.time.is_none() {
        Judgement::Unknown
    } else {
        Judgement::Fit
    }
}

fn limit_of<T>(limit: Limit<T>, was_lagging: bool) -> T {
    if was_lagging { limit.recover } else { limit.most }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const MIB: u64 = 1 << 20;

    fn standby(position: u64) -> ProbeFacts {
        ProbeFacts {
            in_recovery: true,
            system_identifier: 1,
            timeline: 1,
            position,
            received: position,
            streaming: true,
            server_version: 150_000,
            latency: Duration::ZERO,
            address: None,
            connected: None,
        }
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A primary that writes a MiB each second and is seen each second.
    fn busy(start: Instant, seconds: u64) -> History {
        let mut history = History::default();
        for second in 0..seconds {
            history.primary(start + secs(second), 1, (100 + second) * MIB);
        }
        history
    }

    #[test]
    fn lag_is_the_bytes_not_replayed_and_the_time_since_nothing_was_missing() {
        let start = Instant::now();
        let (history, now) = (busy(start, 60), start + secs(59));
        let lag = |position| history.lag(&standby(position), now, now).unwrap();
        let none = Lag {
            bytes: 0,
            time: Some(Duration::ZERO),
        };
        assert_eq!(lag(159 * MIB), none);
        assert_eq!(lag(160 * MIB), none, "written since the primary was seen");
        let behind = Lag {
            bytes: 10 * MIB,
            time: Some(secs(10)),
        };
        assert_eq!(lag(149 * MIB), behind);
        assert_eq!(lag(149 * MIB + 1).time, Some(secs(10)));
        let before_all = Lag {
            bytes: 60 * MIB,
            time: None,
        };
        assert_eq!(lag(99 * MIB), before_all);
        assert_eq!(
            history.lag(&standby(0), now, now),
            None,
            "it has reported no position"
        );
        assert_eq!(History::default().lag(&standby(1), now, now), None);
        let receiving = ProbeFacts {
            received: 170 * MIB,
            ..standby(159 * MIB)
        };
        assert_eq!(history.lag(&receiving, now, now).unwrap().bytes, 11 * MIB);
    }

    #[test]
    fn no_standby_lags_while_the_primary_is_idle() {
        let start = Instant::now();
        let mut history = busy(start, 10);
        for second in 10..5000 {
            history.primary(start + secs(second), 1, 109 * MIB);
        }
        let now = start + secs(4999);
        let lag = history.lag(&standby(109 * MIB), now, now).unwrap();
        assert_eq!((lag.bytes, lag.time), (0, Some(Duration::ZERO)));
        // Then one more byte is missing, for one second at most.
        history.primary(now + secs(1), 1, 109 * MIB + 1);
        let lag = history.lag(&standby(109 * MIB), now + secs(1), now + secs(1));
        assert_eq!(lag.unwrap().time, Some(secs(1)));
    }

    #[test]
    fn the_last_position_counts_for_a_minute() {
        let start = Instant::now();
        let (history, now) = (busy(start, 10), start + secs(9));
        let at = |seconds| {
            let later = now + secs(seconds);
            history.lag(&standby(109 * MIB), later, later)
        };
        assert_eq!(at(60).unwrap().time, Some(Duration::ZERO));
        assert_eq!(at(61), None);
    }

    #[test]
    fn a_promotion_drops_positions_that_the_new_primary_does_not_have() {
        let start = Instant::now();
        let mut history = busy(start, 10);
        let now = start + secs(20);
        history.primary(now, 2, 105 * MIB + 5);
        let on = |timeline, streaming, position| {
            let standby = ProbeFacts {
                timeline,
                streaming,
                ..standby(position)
            };
            history.lag(&standby, now, now)
        };
        assert_eq!(on(2, true, 105 * MIB + 5).unwrap().bytes, 0);
        assert_eq!(on(1, false, 105 * MIB).unwrap().bytes, 5);
        assert_eq!(
            on(1, false, 109 * MIB),
            None,
            "it is ahead, on a timeline that was left"
        );
    }

    #[test]
    fn the_history_is_limited_and_an_old_lag_counts_as_slightly_longer() {
        let start = Instant::now();
        let history = busy(start, 100_000);
        assert!(history.seen.len() <= MAX_SIGHTINGS);
        let now = start + secs(99_999);
        for behind in [1, 10, 50, 100, 500, 3600, 50_000] {
            let position = (100 + 99_999 - behind) * MIB;
            let time = history.lag(&standby(position), now, now).unwrap().time.unwrap();
            assert!(time >= secs(behind), "{behind}: {time:?}");
            assert!(time <= secs(behind + behind / 20), "{behind}: {time:?}");
            assert!(behind > 50 || time == secs(behind), "{behind}: {time:?}");
        }
    }

    #[test]
    fn between_the_limits_the_judgement_stays_the_same() {
        let max = MaxLag {
            bytes: Some(Limit {
                most: 100,
                recover: 50,
            }),
            time: Some(Limit {
                most: secs(10),
                recover: secs(5),
            }),
        };
        let ask = |bytes, time, was_lagging| {
            let time = Some(Duration::from_secs(time));
            judge(&max, Some(Lag { bytes, time }), secs(0), was_lagging)
        };
        for (bytes, time, before, then) in [
            (100, 10, false, Judgement::Fit),
            (101, 0, false, Judgement::Lagging),
            (0, 11, false, Judgement::Lagging),
            (51, 0, true, Judgement::Lagging),
            (0, 6, true, Judgement::Lagging),
            (50, 5, true, Judgement::Fit),
        ] {
            assert_eq!(
                ask(bytes, time, before),
                then,
                "{bytes} bytes, {time} s, {before}"
            );
        }
        let unknown = Some(Lag { bytes: 0, time: None });
        assert_eq!(judge(&max, unknown, secs(10), false), Judgement::Unknown);
        assert_eq!(judge(&max, unknown, secs(11), false), Judgement::Lagging);
        assert_eq!(judge(&max, None, secs(11), false), Judgement::Unknown);
    }
}
