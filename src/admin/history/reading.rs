//! The readings that a point is made of, and how they are read from the text of the metrics.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::MemberKey;
use super::series::{Asked, MEMBER, ROUTE, ROUTER, Series, Source};

/// What a series reads at one moment. `value` is empty if there is no such thing.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(in crate::admin) struct Reading {
    pub(super) value: Option<f64>,
    /// Of a histogram.
    pub(super) count: f64,
}

/// The readings of all series at one moment, in the order of the series.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::admin) struct Readings {
    pub(super) router: Vec<Reading>,
    pub(super) routes: BTreeMap<String, Vec<Reading>>,
    pub(super) members: BTreeMap<MemberKey, Vec<Reading>>,
}

impl Readings {
    /// From the metrics as `OpenMetrics`. Other lines, and lines that cannot be read, count for
    /// nothing.
    pub(in crate::admin) fn of(metrics: &str) -> Self {
        let mut readings = Self {
            router: unread(ROUTER),
            routes: BTreeMap::new(),
            members: BTreeMap::new(),
        };
        for sample in samples(metrics) {
            readings.take(&sample);
        }
        readings
    }

    fn take(&mut self, sample: &Sample<'_>) {
        read(ROUTER, &mut self.router, sample);
        if let (Some(cluster), Some(member)) = (sample.label("cluster"), sample.label("member")) {
            if MEMBER.iter().any(|series| series.source.part(sample).is_some()) {
                let key = (cluster.into_owned(), member.into_owned());
                read(
                    MEMBER,
                    self.members.entry(key).or_insert_with(|| unread(MEMBER)),
                    sample,
                );
            }
        } else if let Some(route) = sample.label("route")
            && ROUTE.iter().any(|series| series.source.part(sample).is_some())
        {
            let row = self
                .routes
                .entry(route.into_owned())
                .or_insert_with(|| unread(ROUTE));
            read(ROUTE, row, sample);
        }
    }

    /// What is asked of the whole router.
    pub(super) fn router_asked(&mut self, what: Asked, value: usize) {
        set(ROUTER, &mut self.router, what, value);
    }

    pub(super) fn route_asked(&mut self, route: &str, what: Asked, value: usize) {
        let row = self
            .routes
            .entry(route.to_owned())
            .or_insert_with(|| unread(ROUTE));
        set(ROUTE, row, what, value);
    }

    pub(super) fn member_asked(&mut self, member: MemberKey, what: Asked, value: usize) {
        let row = self.members.entry(member).or_insert_with(|| unread(MEMBER));
        set(MEMBER, row, what, value);
    }

    /// Only what is there now: metrics may outlive their route and their member.
    pub(super) fn keep_only(&mut self, routes: &[&str], members: &[MemberKey]) {
        self.routes.retain(|route, _| routes.contains(&route.as_str()));
        self.members.retain(|member, _| members.contains(member));
    }
}

fn unread(series: &[Series]) -> Vec<Reading> {
    vec![Reading::default(); series.len()]
}

fn read(series: &[Series], row: &mut [Reading], sample: &Sample<'_>) {
    for (series, reading) in series.iter().zip(row) {
        match series.source.part(sample) {
            Some(Part::Value) => *reading.value.get_or_insert_default() += sample.value,
            Some(Part::Count) => reading.count += sample.value,
            None => {}
        }
    }
}

fn set(series: &[Series], row: &mut [Reading], what: Asked, value: usize) {
    #[expect(clippy::cast_precision_loss, reason = "no router has so many")]
    let value = value as f64;
    for (series, reading) in series.iter().zip(row) {
        if series.source == Source::Asked(what) {
            reading.value = Some(value);
        }
    }
}

/// What a line of the metrics is to a series.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Value,
    Count,
}

impl Source {
    fn part(self, sample: &Sample<'_>) -> Option<Part> {
        match self {
            Self::Metrics(names) => names.contains(&sample.name).then_some(Part::Value),
            Self::Labelled(name, label, value) => (name == sample.name
                && sample.label(label).is_some_and(|is| is == value))
            .then_some(Part::Value),
            Self::Histogram(name) => match sample.name.strip_prefix(name)? {
                "_sum" => Some(Part::Value),
                "_count" => Some(Part::Count),
                _ => None,
            },
            Self::Asked(_) => None,
        }
    }
}

/// The lines of metrics as `OpenMetrics` that have a value. Those of buckets are left out.
pub(in crate::admin) fn samples(metrics: &str) -> impl Iterator<Item = Sample<'_>> {
    metrics.lines().filter_map(Sample::of)
}

/// A line with a value.
#[derive(Debug)]
pub(in crate::admin) struct Sample<'a> {
    pub(in crate::admin) name: &'a str,
    labels: Vec<(&'a str, &'a str)>,
    pub(in crate::admin) value: f64,
}

impl<'a> Sample<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let end = line.find(['{', ' '])?;
        let (name, rest) = line.split_at(end);
        // Nearly all lines of a scrape are of no series.
        if name.ends_with("_bucket") || name.is_empty() || name.starts_with('#') {
            return None;
        }
        let (labels, value) = match rest.strip_prefix('{') {
            None => (Vec::new(), rest.trim_start()),
            Some(rest) => labels(rest)?,
        };
        let value = value.split(' ').next()?.parse().ok()?;
        Some(Self { name, labels, value })
    }

    pub(in crate::admin) fn label(&self, name: &str) -> Option<Cow<'a, str>> {
        let (_, value) = self.labels.iter().find(|(label, _)| *label == name)?;
        Some(unescaped(value))
    }
}

/// Labels as they are written, and the text behind them.
fn labels(mut rest: &str) -> Option<(Vec<(&str, &str)>, &str)> {
    let mut all = Vec::new();
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(value) = rest.strip_prefix('}') {
            return Some((all, value.trim_start()));
        }
        let (name, value) = rest.split_once("=\"")?;
        let mut escaped = false;
        let end = value.find(|c| {
            let is_end = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            is_end
        })?;
        all.push((name, &value[..end]));
        rest = &value[end + 1..];
    }
}

fn unescaped(value: &str) -> Cow<'_, str> {
    if !value.contains('\\') {
        return value.into();
    }
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => out.push('\n'),
                Some(other) => out.push(other),
                None => {}
            },
            c => out.push(c),
        }
    }
    out.into()
}
