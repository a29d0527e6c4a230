//! Events of the router and of its clusters as typed values, such as a new leader, a failed member
//! or a refused reload.
//!
//! Guarantees: an event is logged as one line when it is emitted. The newest [`KEPT`] events can be
//! read back in order, each with a number that never repeats in this process. Callers limit the
//! length of texts from outside, so that the events need limited memory.
//!
//! Refuses: events of single sessions. A session writes its own log lines.

mod cluster;
mod hold;
mod operator;
mod process;
mod reload;
mod standing;
mod subject;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::Serialize;

pub use cluster::{ClusterChange, ClusterEvent, LeaderSource, MemberFacts};
pub use hold::HoldEvent;
pub use operator::OperatorEvent;
pub use process::ProcessEvent;
pub use reload::ReloadEvent;
pub use standing::{LeftMember, Refused, Standing};
pub use subject::subject;

/// The number of events that can be read back.
pub const KEPT: usize = 1000;

/// The severity of an event for an operator, and the level of its log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Info,
    Warn,
    Error,
}

/// Logs at a level that is known only at run time.
macro_rules! log_at {
    ($level:expr, $target:literal, $($line:tt)+) => {
        match $level {
            $crate::events::Level::Info => tracing::info!(target: $target, $($line)+),
            $crate::events::Level::Warn => tracing::warn!(target: $target, $($line)+),
            $crate::events::Level::Error => tracing::error!(target: $target, $($line)+),
        }
    };
}
use log_at;

/// An event that an operator may want to know. Its JSON is one flat object: `event` holds the kind,
/// and the event's fields stand beside it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Event {
    Cluster(ClusterEvent),
    Reload(ReloadEvent),
    Process(ProcessEvent),
    Operator(OperatorEvent),
    Hold(HoldEvent),
}

impl Event {
    pub fn level(&self) -> Level {
        match self {
            Self::Cluster(event) => event.change.level(),
            Self::Reload(event) => event.level(),
            Self::Process(event) => event.level(),
            Self::Operator(event) => event.level(),
            Self::Hold(event) => event.level(),
        }
    }

    fn log(&self) {
        match self {
            Self::Cluster(event) => event.log(),
            Self::Reload(event) => event.log(),
            Self::Process(event) => event.log(),
            Self::Operator(event) => event.log(),
            Self::Hold(event) => event.log(),
        }
    }
}

/// The message of the event's log line.
impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster(event) => event.change.fmt(f),
            Self::Reload(event) => event.fmt(f),
            Self::Process(event) => event.fmt(f),
            Self::Operator(event) => event.fmt(f),
            Self::Hold(event) => event.fmt(f),
        }
    }
}

impl From<ClusterEvent> for Event {
    fn from(event: ClusterEvent) -> Self {
        Self::Cluster(event)
    }
}

impl From<ReloadEvent> for Event {
    fn from(event: ReloadEvent) -> Self {
        Self::Reload(event)
    }
}

impl From<ProcessEvent> for Event {
    fn from(event: ProcessEvent) -> Self {
        Self::Process(event)
    }
}

impl From<OperatorEvent> for Event {
    fn from(event: OperatorEvent) -> Self {
        Self::Operator(event)
    }
}

impl From<HoldEvent> for Event {
    fn from(event: HoldEvent) -> Self {
        Self::Hold(event)
    }
}

/// An event that has been emitted.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedEvent {
    /// From 1, without gaps.
    pub number: u64,
    pub at: SystemTime,
    pub event: Event,
}

/// The events of one process. Cheap to clone; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Events(Arc<Mutex<Ring>>);

#[derive(Debug, Default)]
struct Ring {
    /// The number of the newest event.
    number: u64,
    kept: VecDeque<Arc<RecordedEvent>>,
    standing: Standing,
}

impl Events {
    pub fn new() -> Self {
        Self::default()
    }

    /// Logs the event and keeps it.
    pub fn emit(&self, event: impl Into<Event>) {
        let event = event.into();
        event.log();
        let mut ring = self.ring();
        ring.number += 1;
        if ring.kept.len() == KEPT {
            ring.kept.pop_front();
        }
        let recorded = RecordedEvent {
            number: ring.number,
            at: SystemTime::now(),
            event,
        };
        ring.standing.heed(&recorded.event, recorded.at);
        ring.kept.push_back(Arc::new(recorded));
    }

    /// The kept events after this number, oldest first. If the first one does not have the next
    /// number, the events between have been dropped.
    pub fn since(&self, number: u64) -> Vec<Arc<RecordedEvent>> {
        let ring = self.ring();
        let from = ring.kept.partition_point(|recorded| recorded.number <= number);
        ring.kept.range(from..).cloned().collect()
    }

    /// What goes on since an event, also one that is not kept any more.
    pub fn standing(&self) -> Standing {
        self.ring().standing.clone()
    }

    /// The number of the newest event; 0 before the first one.
    pub fn newest(&self) -> u64 {
        self.ring().number
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_events_are_read_back_by_number() {
        let events = Events::new();
        assert!(events.since(0).is_empty());
        for _ in 0..KEPT + 5 {
            events.emit(ReloadEvent::FilesRight);
        }
        let numbers = |since| -> Vec<u64> {
            let found = events.clone().since(since);
            found.iter().map(|recorded| recorded.number).collect()
        };
        let newest = KEPT as u64 + 5;
        assert_eq!(numbers(0), (6..=newest).collect::<Vec<u64>>());
        assert_eq!(numbers(newest - 2), [newest - 1, newest]);
        for since in [newest, u64::MAX] {
            assert_eq!(numbers(since), [0; 0]);
        }
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let event = Event::from(ClusterEvent {
            cluster: "main".to_owned(),
            change: ClusterChange::MemberDown {
                member: "db1".to_owned(),
                error: "connection refused".to_owned(),
            },
        });
        assert_eq!(event.level(), Level::Warn);
        assert_eq!(event.to_string(), "db1 is down: connection refused");
        assert_eq!(
            serde_json::to_value(&event).ok(),
            Some(serde_json::json!({
                "event": "member_down", "cluster": "main", "member": "db1", "error": "connection refused"
            }))
        );
        let event = Event::from(OperatorEvent::RouterReady { by: "-".to_owned() });
        assert_eq!(
            serde_json::to_value(&event).ok(),
            Some(serde_json::json!({"event": "router_ready", "by": "-"}))
        );
    }
}
