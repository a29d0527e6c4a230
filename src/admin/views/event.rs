//! Something that happened, as an operator sees it.

use serde::Serialize;

use super::millis;
use crate::events::{Event, Level, RecordedEvent, subject};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EventView {
    pub number: u64,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    pub level: Level,
    /// The message of its line in the log.
    pub text: String,
    /// What it is about and who asked for it, where the text does not say so: `member=db1 by=…`.
    pub about: String,
    /// Its kind and its fields.
    #[serde(flatten)]
    pub event: Event,
}

impl EventView {
    pub(in crate::admin) fn new(recorded: &RecordedEvent) -> Self {
        let RecordedEvent { number, at, event } = recorded;
        let text = event.to_string();
        let fields = serde_json::to_value(event).unwrap_or_default();
        Self {
            number: *number,
            time_ms: millis(*at),
            level: event.level(),
            about: subject(&fields, &text),
            text,
            event: event.clone(),
        }
    }
}
