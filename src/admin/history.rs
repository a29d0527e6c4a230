//! The router's last hour: its counts and rates, a point every 10 s, in memory.
//!
//! Guarantees: the points come from the metrics, which the router reads as Prometheus would, on the
//! thread of the administration; so charts say what `/metrics` says, and sessions pay nothing. The
//! memory is limited: [`POINTS`] points of at most [`MOST_ROWS`] routes and as many members, less
//! than 3 MB; with 5 routes and 3 members about 150 kB. A counter that falls began again, and is
//! not a negative rate. What is not known at a point is no number.
//!
//! Refuses: to be kept. It begins with the process, and an upgrade begins it again.

mod reading;
mod sampler;
mod series;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

use reading::Reading;
pub(super) use reading::{Readings, samples};
pub(super) use sampler::sample;
use series::{Kind, Series};

/// Between two points.
pub(super) const INTERVAL: Duration = Duration::from_secs(10);
/// An hour.
pub(super) const POINTS: usize = 360;
/// Routes of which there are points, and members. Others are left out, and counted.
pub(super) const MOST_ROWS: usize = 64;

/// The points of one router. Clones share them.
#[derive(Debug, Clone)]
pub struct History(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    ring: Mutex<Ring>,
    /// The number of the newest point.
    newest: watch::Sender<u64>,
}

/// What a series is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About<'a> {
    Router,
    Route(&'a str),
    Member { cluster: &'a str, member: &'a str },
}

/// A member of a cluster.
type MemberKey = (String, String);

#[derive(Debug)]
struct Ring {
    /// When each point was taken, the oldest first: milliseconds since 1970.
    times: VecDeque<u64>,
    /// The number of the newest point; the first one has 1.
    newest: u64,
    taken: Option<Instant>,
    router: Row,
    routes: BTreeMap<String, Row>,
    members: BTreeMap<MemberKey, Row>,
    /// Routes and members of the newest point that have no row.
    left_out: usize,
}

/// The points of all series of one thing.
#[derive(Debug)]
struct Row {
    series: &'static [Series],
    /// The number of its first point.
    first: u64,
    /// The values of its first point in the order of the series, then those of the next one. NaN is
    /// what is not known.
    values: VecDeque<f32>,
    /// The newest readings of the counters.
    last: Vec<Reading>,
}

impl Default for History {
    fn default() -> Self {
        let ring = Ring {
            times: VecDeque::new(),
            newest: 0,
            taken: None,
            router: Row::new(series::ROUTER, 1),
            routes: BTreeMap::new(),
            members: BTreeMap::new(),
            left_out: 0,
        };
        Self(Arc::new(Shared {
            ring: Mutex::new(ring),
            newest: watch::Sender::new(0),
        }))
    }
}

impl History {
    /// Adds a point.
    pub(super) fn add(&self, readings: Readings, at: SystemTime) {
        let newest = {
            let mut ring = self.ring();
            ring.add(readings, at);
            ring.newest
        };
        self.0.newest.send_replace(newest);
    }

    /// The number of the newest point, as it changes; 0 before the first one.
    pub(super) fn newest(&self) -> watch::Receiver<u64> {
        self.0.newest.subscribe()
    }

    /// The points with higher numbers than `since`, as JSON. `is_wanted` chooses what they are
    /// about.
    pub(super) fn json(&self, since: u64, is_wanted: &dyn Fn(About<'_>) -> bool) -> String {
        self.ring().json(since, is_wanted)
    }

    /// The mean of what is known of a series in its newest `points`, or its newest value with one
    /// point. `None`: nothing is known, or there is no such series.
    pub(super) fn mean(&self, about: About<'_>, series: &str, points: usize) -> Option<f64> {
        let ring = self.ring();
        let row = match about {
            About::Router => Some(&ring.router),
            About::Route(route) => ring.routes.get(route),
            About::Member { cluster, member } => ring.members.get(&(cluster.to_owned(), member.to_owned())),
        }?;
        let index = row.series.iter().position(|of| of.name == series)?;
        let (mut sum, mut known) = (0.0, 0_u32);
        for value in row.of(index).rev().take(points).filter(|value| !value.is_nan()) {
            sum += f64::from(value);
            known += 1;
        }
        (known > 0).then(|| sum / f64::from(known))
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn add(&mut self, readings: Readings, at: SystemTime) {
        let now = Instant::now();
        let elapsed = self.taken.replace(now).map(|last| now - last);
        self.newest += 1;
        self.times.push_back(millis(at));
        if self.times.len() > POINTS {
            self.times.pop_front();
        }
        let oldest = self.oldest();
        self.router.add(Some(readings.router), elapsed);
        self.router.forget(oldest);
        let number = self.newest;
        let left = [
            fill(
                &mut self.routes,
                series::ROUTE,
                readings.routes,
                number,
                oldest,
                elapsed,
            ),
            fill(
                &mut self.members,
                series::MEMBER,
                readings.members,
                number,
                oldest,
                elapsed,
            ),
        ];
        self.left_out = left.iter().sum();
    }

    /// The number of the oldest point.
    fn oldest(&self) -> u64 {
        self.newest + 1 - self.times.len() as u64
    }

    fn json(&self, since: u64, is_wanted: &dyn Fn(About<'_>) -> bool) -> String {
        let first = self.oldest().max(since.saturating_add(1)).min(self.newest + 1);
        let skipped = usize::try_from(first - self.oldest()).unwrap_or(usize::MAX);
        let mut out = String::new();
        let times: Vec<String> = self.times.iter().skip(skipped).map(u64::to_string).collect();
        // Writing to a string cannot fail, here and below.
        let _ = write!(
            out,
            "{{\"interval_ms\":{},\"left_out\":{},\"number\":{},\"process_id\":{},\"time_ms\":[{}]",
            INTERVAL.as_millis(),
            self.left_out,
            self.newest,
            std::process::id(),
            times.join(",")
        );
        out.push_str(",\"router\":");
        if is_wanted(About::Router) {
            self.router.write(first, self.newest, &mut out);
        } else {
            out.push_str("null");
        }
        out.push_str(",\"routes\":[");
        let mut separator = "";
        for (route, row) in self
            .routes
            .iter()
            .filter(|(route, _)| is_wanted(About::Route(route)))
        {
            let _ = write!(out, "{separator}{{\"route\":{},\"series\":", quoted(route));
            row.write(first, self.newest, &mut out);
            out.push('}');
            separator = ",";
        }
        out.push_str("],\"members\":[");
        separator = "";
        for ((cluster, member), row) in &self.members {
            if !is_wanted(About::Member { cluster, member }) {
                continue;
            }
            let (cluster, member) = (quoted(cluster), quoted(member));
            let _ = write!(
                out,
                "{separator}{{\"cluster\":{cluster},\"member\":{member},\"series\":"
            );
            row.write(first, self.newest, &mut out);
            out.push('}');
            separator = ",";
        }
        out.push_str("]}");
        out
    }
}

/// Adds a point to each row, with new rows as long as there may be more, and forgets rows without
/// points. Returns how many things have no row.
fn fill<K: Ord>(
    rows: &mut BTreeMap<K, Row>,
    series: &'static [Series],
    mut readings: BTreeMap<K, Vec<Reading>>,
    number: u64,
    oldest: u64,
    elapsed: Option<Duration>,
) -> usize {
    rows.retain(|key, row| {
        row.add(readings.remove(key), elapsed);
        row.forget(oldest);
        row.is_known()
    });
    let mut left_out = 0;
    for (key, reading) in readings {
        if rows.len() == MOST_ROWS {
            left_out += 1;
            continue;
        }
        let mut row = Row::new(series, number);
        // What it has counted before is no rate.
        row.add(Some(reading), None);
        rows.insert(key, row);
    }
    left_out
}

impl Row {
    fn new(series: &'static [Series], first: u64) -> Self {
        Self {
            series,
            first,
            values: VecDeque::new(),
            last: vec![Reading::default(); series.len()],
        }
    }

    /// `None`: there is nothing of it now. `elapsed` is the time since the point before; without
    /// one there are no rates.
    fn add(&mut self, readings: Option<Vec<Reading>>, elapsed: Option<Duration>) {
        let Some(readings) = readings else {
            self.values
                .extend(std::iter::repeat_n(f32::NAN, self.series.len()));
            return;
        };
        for ((series, last), now) in self.series.iter().zip(&mut self.last).zip(readings) {
            self.values.push_back(series.kind.value(*last, now, elapsed));
            if now.value.is_some() {
                *last = now;
            }
        }
    }

    /// Forgets the points before this one.
    fn forget(&mut self, oldest: u64) {
        while self.first < oldest && !self.values.is_empty() {
            self.values.drain(..self.series.len());
            self.first += 1;
        }
    }

    fn is_known(&self) -> bool {
        self.values.iter().any(|value| !value.is_nan())
    }

    fn of(&self, series: usize) -> impl DoubleEndedIterator<Item = f32> {
        self.values
            .iter()
            .skip(series)
            .step_by(self.series.len())
            .copied()
    }

    /// `{"sessions":[1,2,null], …}`, from the point `from` to the point `to`.
    fn write(&self, from: u64, to: u64, out: &mut String) {
        let missing = usize::try_from(self.first.min(to + 1).saturating_sub(from)).unwrap_or(usize::MAX);
        let skipped = usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let mut begin = '{';
        for (index, series) in self.series.iter().enumerate() {
            let _ = write!(out, "{begin}\"{}\":", series.name);
            begin = ',';
            let unknown = std::iter::repeat_n(f32::NAN, missing);
            let mut begin = '[';
            for value in unknown.chain(self.of(index).skip(skipped)) {
                out.push(begin);
                number(value, out);
                begin = ',';
            }
            if begin == '[' {
                out.push('[');
            }
            out.push(']');
        }
        out.push('}');
    }
}

impl Kind {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a chart needs fewer digits than an f32 has"
    )]
    fn value(self, last: Reading, now: Reading, elapsed: Option<Duration>) -> f32 {
        let Some(value) = now.value else {
            return f32::NAN;
        };
        // A counter that fell began again from 0.
        let has_fallen = last.value.is_some_and(|last| value < last) || now.count < last.count;
        let before = if has_fallen { Reading::default() } else { last };
        let more = value - before.value.unwrap_or_default();
        let of_this = match (self, elapsed.map(|elapsed| elapsed.as_secs_f64())) {
            (Self::Gauge, _) => value,
            (Self::Rate, Some(seconds)) if seconds > 0.0 => more / seconds,
            (Self::MeanMs, Some(_)) if now.count > before.count => more * 1e3 / (now.count - before.count),
            (Self::Rate | Self::MeanMs, _) => f64::NAN,
        };
        of_this as f32
    }
}

/// At most three digits behind the point.
fn number(value: f32, out: &mut String) {
    let value = (f64::from(value) * 1e3).round() / 1e3;
    if value.is_finite() {
        let _ = write!(out, "{value}");
    } else {
        out.push_str("null");
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
