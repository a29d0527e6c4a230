//! What is counted for each route while its sessions run: the errors that clients get, by class and
//! by whose they are, and how long transactions take. A session counts with atomic additions, takes
//! no lock and pays nothing for a row.

use std::array::from_fn;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::{Registry, Unit};

use super::distribution::Distribution;
use crate::wire::message::{self, ErrorReply};
use crate::wire::sqlstate::SqlState;

/// The classes of PostgreSQL's errors (its documentation, appendix "Error Codes"). An application
/// may raise others, of which there may be any number: they count together.
const CLASSES: [[u8; 2]; 41] = [
    *b"02", *b"03", *b"08", *b"09", *b"0A", *b"0B", *b"0F", *b"0L", *b"0P", *b"0Z", *b"10", *b"20", *b"21",
    *b"22", *b"23", *b"24", *b"25", *b"26", *b"27", *b"28", *b"2B", *b"2D", *b"2F", *b"34", *b"38", *b"39",
    *b"3B", *b"3D", *b"3F", *b"40", *b"42", *b"44", *b"53", *b"54", *b"55", *b"57", *b"58", *b"F0", *b"HV",
    *b"P0", *b"XX",
];

/// The classes of which a route has series from the beginning, so that the first error is seen as
/// an increase. Others begin with their first error.
const SHOWN: [[u8; 2]; 6] = [*b"08", *b"40", *b"53", *b"57", *b"58", *b"XX"];

/// The label `class` of all other errors.
const OTHER: &str = "other";

/// One transaction of so many is measured, and counts for all of them: two looks at the clock for
/// each would be seen in what a short transaction costs.
const SAMPLED: u64 = 32;

/// Errors by class; the last number is that of all other classes.
#[derive(Debug)]
struct Errors([AtomicU64; CLASSES.len() + 1]);

impl Default for Errors {
    fn default() -> Self {
        Self(from_fn(|_| AtomicU64::new(0)))
    }
}

impl Errors {
    fn count(&self, code: SqlState) {
        let known = CLASSES.iter().position(|class| code.is_in_class(*class));
        self.0[known.unwrap_or(CLASSES.len())].fetch_add(1, Ordering::Relaxed);
    }

    fn shown(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let numbers = self.0.iter().map(|number| number.load(Ordering::Relaxed));
        let classes = CLASSES.iter().map(Some).chain([None]);
        classes.zip(numbers).filter_map(|(class, number)| {
            let is_shown = number > 0 || class.is_some_and(|class| SHOWN.contains(class));
            let name = class.map_or(OTHER, |class| str::from_utf8(class).unwrap_or(OTHER));
            is_shown.then_some((name, number))
        })
    }
}

/// The counts of one route.
#[derive(Debug, Default)]
pub struct RouteCounts {
    /// What servers said.
    server: Errors,
    /// The router's own words.
    router: Errors,
    transactions: Distribution,
}

impl RouteCounts {
    /// Writes an error of the router's own, and counts it.
    pub(super) fn error(&self, out: &mut BytesMut, reply: &ErrorReply) {
        self.router_error(reply.code);
        message::error(out, reply);
    }

    /// An error of the router's own that is written elsewhere.
    pub(super) fn router_error(&self, code: SqlState) {
        self.router.count(code);
    }

    /// A server has answered a client with an error.
    pub(super) fn server_error(&self, code: SqlState) {
        self.server.count(code);
    }

    /// Whether the request with this number, which begins a transaction of the session with this
    /// id, is measured. The sessions' turns differ, so that their first transactions count neither
    /// always nor never.
    #[inline]
    pub(super) fn is_measured(id: u64, request: u64) -> bool {
        id.wrapping_add(request).is_multiple_of(SAMPLED)
    }

    /// A transaction that is measured has ended.
    pub(super) fn transaction(&self, duration: std::time::Duration) {
        self.transactions.observe(duration, SAMPLED);
    }
}

/// The counts of all routes by name. Those of a route outlive its gates: a route that comes back
/// after a reload goes on counting.
#[derive(Debug, Clone, Default)]
pub(super) struct AllCounts(Arc<Mutex<BTreeMap<Arc<str>, Arc<RouteCounts>>>>);

impl AllCounts {
    pub(super) fn of(&self, route: &Arc<str>) -> Arc<RouteCounts> {
        Arc::clone(self.lock().entry(Arc::clone(route)).or_default())
    }

    pub(super) fn register(&self, into: &mut Registry) {
        into.register_collector(Box::new(self.clone()));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Arc<RouteCounts>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for AllCounts {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let routes = self.lock().clone();
        let help = "Errors that clients got, by class of their SQLSTATE and by who reported them";
        let mut family = encoder.encode_descriptor("errors", help, None, MetricType::Counter)?;
        for (route, counts) in &routes {
            for (origin, errors) in [("server", &counts.server), ("router", &counts.router)] {
                for (class, number) in errors.shown() {
                    let labels = [("route", &**route), ("origin", origin), ("class", class)];
                    ConstCounter::new(number).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        let (help, unit) = ("How long transactions took", Some(&Unit::Seconds));
        let mut family = encoder.encode_descriptor("transaction", help, unit, MetricType::Histogram)?;
        for (route, counts) in &routes {
            counts
                .transactions
                .encode(family.encode_family(&[("route", &**route)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::path::Path;

    use prometheus_client::encoding::text::encode;

    use super::*;

    fn exposition(all: &AllCounts) -> String {
        let mut registry = Registry::default();
        all.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn errors_count_by_class_and_by_whose_they_are() {
        let all = AllCounts::default();
        let counts = all.of(&"rw".into());
        let line = |origin: &str, class: &str, number: u64| {
            format!("errors_total{{route=\"rw\",origin=\"{origin}\",class=\"{class}\"}} {number}\n")
        };
        let before = exposition(&all);
        for (origin, class) in [("server", "57"), ("router", "53"), ("router", "XX")] {
            assert!(before.contains(&line(origin, class, 0)), "{before}");
        }
        assert!(!before.contains("class=\"23\""), "{before}");
        for code in ["23505", "23503", "57014", "U0001", "U0002", ""] {
            counts.server_error(SqlState::of(code.as_bytes()));
        }
        let mut out = BytesMut::new();
        counts.error(
            &mut out,
            &ErrorReply::error(SqlState::TOO_MANY_CONNECTIONS, "full"),
        );
        assert_eq!(out[0], b'E');
        // A gate of the same route, after a reload.
        all.of(&"rw".into()).router_error(SqlState::CANNOT_CONNECT_NOW);
        let after = exposition(&all);
        for (origin, class, number) in [
            ("server", "23", 2),
            ("server", "57", 1),
            ("server", "other", 3),
            ("router", "53", 1),
            ("router", "57", 1),
            ("router", "23", 0),
        ] {
            let line = line(origin, class, number);
            assert_eq!(after.contains(&line), number > 0, "{line}in {after}");
        }
    }

    #[test]
    fn classes_are_listed_once_and_in_order() {
        assert!(CLASSES.is_sorted_by(|one, next| one < next));
        assert!(SHOWN.iter().all(|class| CLASSES.contains(class)));
    }

    #[test]
    fn one_transaction_of_32_is_measured_whatever_the_session() {
        for id in 0..40 {
            let measured = (1..=320).filter(|request| RouteCounts::is_measured(id, *request));
            assert_eq!(measured.count(), 10);
        }
        let first = (0..320).filter(|id| RouteCounts::is_measured(*id, 1));
        assert_eq!(first.count(), 10);
    }

    /// Besides this file: they write in place of a server's error, which counts.
    const OTHERS: [&str; 3] = ["counts.rs", "pool/answers.rs", "pool/statements/server.rs"];

    #[test]
    fn every_error_of_the_router_s_own_counts() {
        let room = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/session");
        let mut found = Vec::new();
        let mut folders = vec![room.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if fs::read_to_string(&path).unwrap().contains("message::error(") {
                    found.push(path.strip_prefix(&room).unwrap().display().to_string());
                }
            }
        }
        found.sort_unstable();
        assert_eq!(found, OTHERS);
    }
}
