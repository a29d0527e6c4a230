//! Numbers, times, sizes, rates and truth values, within the limits of the schema.

use std::time::Duration;

use super::Field;
use crate::config::schema::ValueKind;
use crate::config::tree::Value;
use crate::config::units::{parse_duration, parse_size, shown_duration, shown_size};

impl Field<'_> {
    /// Text, a number, true or false: as JSON has it.
    pub(in crate::config) fn scalar(&self) -> Option<serde_json::Value> {
        Some(match &self.node.value {
            Value::Bool(value) => (*value).into(),
            Value::Integer(value) => {
                let Ok(value) = i64::try_from(*value) else {
                    self.error("is a number that is too large");
                    return None;
                };
                value.into()
            }
            Value::Float(value) => (*value).into(),
            Value::Text(_) => self.text()?.into(),
            Value::Null | Value::List(_) | Value::Map(_) => {
                self.expected("text, a number, true or false");
                return None;
            }
        })
    }

    /// The whole number that is written, if it is one; nothing is reported.
    pub(in crate::config) fn whole_number(&self) -> Option<i128> {
        match &self.node.value {
            Value::Integer(number) => Some(*number),
            _ => None,
        }
    }

    /// True or false.
    pub(in crate::config) fn truth(&self) -> Option<bool> {
        let Value::Bool(value) = &self.node.value else {
            let meant = self
                .written_text()
                .and_then(|text| match &*text.to_ascii_lowercase() {
                    "yes" | "on" | "y" => Some("true"),
                    "no" | "off" | "n" => Some("false"),
                    _ => None,
                });
            match meant {
                Some(word) => {
                    self.error_with_hint("expected true or false, found text", format!("write `{word}`"));
                }
                None => self.expected("true or false"),
            }
            return None;
        };
        Some(*value)
    }

    /// A whole number within its limits.
    pub(in crate::config) fn number(&self) -> Option<u32> {
        let ValueKind::Number { least, most } = *self.kind else {
            unreachable!("{}: not a number by the schema", self.path);
        };
        let Value::Integer(value) = &self.node.value else {
            self.expected(format_args!("a whole number from {least} to {most}"));
            return None;
        };
        let number = u32::try_from(*value)
            .ok()
            .filter(|number| (least..=most).contains(number));
        if number.is_none() {
            self.error(format!("must be from {least} to {most}"));
        }
        number
    }

    /// A time within its limits: `100ms`, `1s`, `2m`, `1h`, or `0` where they allow it.
    pub(in crate::config) fn duration(&self) -> Option<Duration> {
        let ValueKind::Time { least, most, or_off } = *self.kind else {
            unreachable!("{}: not a time by the schema", self.path);
        };
        self.duration_within(least, most, or_off)
    }

    /// As [`Self::duration`], where something else in the file raises the lower limit.
    pub(in crate::config) fn duration_from(&self, least: Duration) -> Option<Duration> {
        let ValueKind::Time { most, .. } = *self.kind else {
            unreachable!("{}: not a time by the schema", self.path);
        };
        self.duration_within(least, most, false)
    }

    fn duration_within(&self, least: Duration, most: Duration, or_off: bool) -> Option<Duration> {
        let duration = self.any_duration()?;
        if (least..=most).contains(&duration) || or_off && duration.is_zero() {
            return Some(duration);
        }
        let or = if or_off { ", or 0 for off" } else { "" };
        let (least, most) = (shown_duration(least), shown_duration(most));
        self.error(format!("must be from {least} to {most}{or}"));
        None
    }

    /// A number of bytes within its limits: `512kB`, `16MiB`.
    pub(in crate::config) fn size(&self) -> Option<u64> {
        let ValueKind::Size { least, most } = *self.kind else {
            unreachable!("{}: not a size by the schema", self.path);
        };
        let size = match &self.node.value {
            Value::Text(text) => parse_size(text),
            Value::Integer(_) | Value::Float(_) => None,
            _ => {
                self.expected("a size such as `16MiB`");
                return None;
            }
        };
        match size {
            Some(size) if (least..=most).contains(&size) => return Some(size),
            Some(_) => {
                let (least, most) = (shown_size(least), shown_size(most));
                self.error(format!("must be from {least} to {most}"));
            }
            None => self.error_with_hint(
                "is not a size",
                "a whole number and a unit, B, kB, MB, GB or TB (PostgreSQL's, powers of 1024) or KiB, MiB, GiB or TiB",
            ),
        }
        None
    }

    fn any_duration(&self) -> Option<Duration> {
        let duration = match &self.node.value {
            Value::Integer(0) => Some(Duration::ZERO),
            Value::Text(text) => parse_duration(text),
            Value::Integer(_) | Value::Float(_) => None,
            _ => {
                self.expected("a time such as `5s`");
                return None;
            }
        };
        if duration.is_none() {
            self.error_with_hint(
                "is not a time",
                "a whole number and a unit, ms, s, m or h, as in `500ms` or `5s`",
            );
        }
        duration
    }

    /// Per second.
    pub(in crate::config) fn most_rate(&self) -> u32 {
        match *self.kind {
            ValueKind::Rate { most } => most,
            _ => unreachable!("{}: not a rate by the schema", self.path),
        }
    }

    /// The limits of a secret in a file, in bytes.
    pub(in crate::config) fn secret_size(&self) -> (usize, u64) {
        match *self.kind {
            ValueKind::Secret { least, most } => (least, most),
            _ => unreachable!("{}: not a secret by the schema", self.path),
        }
    }
}
