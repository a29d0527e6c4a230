//! Tables of typed values: what the console shows and what its SQL reads.
//!
//! The types are PostgreSQL's, so that drivers and tools know them; texts and their order are those
//! of the C collation, times are in UTC.

use std::cmp::Ordering;
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

/// The type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bool,
    Int4,
    Int8,
    /// Of answers in PgBouncer's columns; their values are whole numbers, or NaN.
    Numeric,
    Float8,
    Text,
    TextArray,
    /// With a time zone, as `timestamptz`.
    Timestamp,
    /// Between two times. No column has it, and none of an answer.
    Interval,
}

impl Kind {
    /// As PostgreSQL names it in its messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bool => "boolean",
            Self::Int4 => "integer",
            Self::Int8 => "bigint",
            Self::Numeric => "numeric",
            Self::Float8 => "double precision",
            Self::Text => "text",
            Self::TextArray => "text[]",
            Self::Timestamp => "timestamp with time zone",
            Self::Interval => "interval",
        }
    }

    /// As PostgreSQL names a column that has no other name.
    pub(crate) fn short_name(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Int4 => "int4",
            Self::Int8 => "int8",
            Self::Numeric => "numeric",
            Self::Float8 => "float8",
            Self::Text | Self::TextArray => "text",
            Self::Timestamp => "timestamptz",
            Self::Interval => "interval",
        }
    }

    pub(crate) fn is_integer(self) -> bool {
        matches!(self, Self::Int4 | Self::Int8)
    }

    pub(crate) fn is_number(self) -> bool {
        self.is_integer() || self == Self::Float8
    }
}

/// A value of any type, or none.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    /// Of either integer type.
    Int(i64),
    Float(f64),
    Text(String),
    TextArray(Vec<String>),
    /// Microseconds since 1970.
    Timestamp(i64),
    /// Microseconds.
    Interval(i64),
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// One line for whoever lists the columns.
    pub(crate) about: &'static str,
}

pub(crate) const fn column(name: &'static str, kind: Kind, about: &'static str) -> Column {
    Column { name, kind, about }
}

/// As many values as columns, of their types.
pub(crate) type Row = Vec<Value>;

/// Of a text that stands for a time: `2026-12-01 12:30:00.5+00`.
const SECONDS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day] [hour]:[minute]:[second]");

impl Value {
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// An integer; the largest one for what is larger.
    pub(crate) fn int(number: impl TryInto<i64>) -> Self {
        Self::Int(number.try_into().unwrap_or(i64::MAX))
    }

    /// `Null` for `None`.
    pub(crate) fn or_null<T>(value: Option<T>, made: impl FnOnce(T) -> Self) -> Self {
        value.map_or(Self::Null, made)
    }

    /// The bytes of memory that it takes.
    pub(crate) fn size(&self) -> usize {
        let beside = match self {
            Self::Text(text) => text.len(),
            Self::TextArray(texts) => texts.iter().map(|text| size_of::<String>() + text.len()).sum(),
            _ => 0,
        };
        size_of::<Self>() + beside
    }

    pub(crate) fn is_null(&self) -> bool {
        *self == Self::Null
    }

    /// As PostgreSQL writes it with `IntervalStyle` and `DateStyle` at their defaults, in UTC.
    /// Nothing for `Null`, and for arrays what stands in them, in braces.
    pub(crate) fn to_text(&self) -> String {
        match self {
            Self::Null => String::new(),
            Self::Bool(value) => if *value { "t" } else { "f" }.to_owned(),
            Self::Int(number) | Self::Interval(number) => number.to_string(),
            Self::Float(number) => float_text(*number),
            Self::Text(text) => text.clone(),
            Self::TextArray(texts) => array_text(texts),
            Self::Timestamp(micros) => timestamp_text(*micros),
        }
    }

    /// The order of values of one type, or of two types of number. Nothing is known of `Null`.
    pub(crate) fn compare(&self, other: &Self) -> Option<Ordering> {
        Some(match (self, other) {
            (Self::Bool(one), Self::Bool(other)) => one.cmp(other),
            (Self::Int(one), Self::Int(other))
            | (Self::Timestamp(one), Self::Timestamp(other))
            | (Self::Interval(one), Self::Interval(other)) => one.cmp(other),
            (Self::Float(one), Self::Float(other)) => compare_floats(*one, *other),
            (Self::Int(one), Self::Float(other)) => compare_floats(lossy(*one), *other),
            (Self::Float(one), Self::Int(other)) => compare_floats(*one, lossy(*other)),
            (Self::Text(one), Self::Text(other)) => one.as_bytes().cmp(other.as_bytes()),
            (Self::TextArray(one), Self::TextArray(other)) => one.cmp(other),
            _ => return None,
        })
    }
}

/// Since 1970; 0 for what was before.
pub(crate) fn micros(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// As PostgreSQL orders them: what is not a number is equal to itself, and larger than all others.
fn compare_floats(one: f64, other: f64) -> Ordering {
    one.partial_cmp(&other)
        .unwrap_or_else(|| one.is_nan().cmp(&other.is_nan()))
}

/// As `int8` becomes `float8`.
#[expect(clippy::cast_precision_loss, reason = "as PostgreSQL does it")]
pub(crate) fn lossy(number: i64) -> f64 {
    number as f64
}

/// The shortest text that is read as the same number, in PostgreSQL's form.
fn float_text(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..15).contains(&exponent) {
        return format!("{number}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

fn array_text(texts: &[String]) -> String {
    let mut out = String::from("{");
    for (index, text) in texts.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        let is_plain = !text.is_empty()
            && !text.eq_ignore_ascii_case("null")
            && !text.chars().any(|c| {
                matches!(c, '{' | '}' | ',' | '"' | '\\') || c.is_ascii_whitespace() || c == '\u{b}'
            });
        if is_plain {
            out.push_str(text);
            continue;
        }
        out.push('"');
        for c in text.chars() {
            if matches!(c, '"' | '\\') {
                out.push('\\');
            }
            out.push(c);
        }
        out.push('"');
    }
    out.push('}');
    out
}

fn timestamp_text(micros: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000);
    let Ok(mut text) = at
        .map_err(|_| ())
        .and_then(|at| at.format(SECONDS).map_err(|_| ()))
    else {
        // Beyond the year 9999.
        return if micros > 0 { "infinity" } else { "-infinity" }.to_owned();
    };
    let fraction = micros.rem_euclid(1_000_000);
    if fraction > 0 {
        let digits = format!("{fraction:06}");
        let _ = write!(text, ".{}", digits.trim_end_matches('0'));
    }
    text.push_str("+00");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_postgresqls() {
        for (value, text) in [
            (Value::Bool(true), "t"),
            (Value::Int(-7), "-7"),
            (Value::Float(0.1), "0.1"),
            (Value::Float(100.0), "100"),
            (Value::Float(123_456_789_012_345.0), "123456789012345"),
            (Value::Float(1e15), "1e+15"),
            (Value::Float(1.5e-5), "1.5e-05"),
            (Value::Float(0.0001), "0.0001"),
            (Value::Float(-1e100), "-1e+100"),
            (Value::Float(f64::NAN), "NaN"),
            (Value::Float(f64::NEG_INFINITY), "-Infinity"),
            (Value::Timestamp(0), "1970-01-01 00:00:00+00"),
            (Value::Timestamp(951_827_696_500_000), "2000-02-29 12:34:56.5+00"),
            (Value::Timestamp(-1), "1969-12-31 23:59:59.999999+00"),
        ] {
            assert_eq!(value.to_text(), text);
        }
        let array = ["a", "", "a b", "NULL", "q\"\\", "{", "é"].map(str::to_owned);
        assert_eq!(
            Value::TextArray(array.into()).to_text(),
            r#"{a,"","a b","NULL","q\"\\","{",é}"#
        );
    }

    #[test]
    fn numbers_of_two_types_have_an_order() {
        assert_eq!(Value::Int(2).compare(&Value::Float(1.5)), Some(Ordering::Greater));
        assert_eq!(
            Value::Float(f64::NAN).compare(&Value::Float(f64::INFINITY)),
            Some(Ordering::Greater)
        );
        assert_eq!(
            Value::Float(f64::NAN).compare(&Value::Float(f64::NAN)),
            Some(Ordering::Equal)
        );
        assert_eq!(Value::Int(1).compare(&Value::Null), None);
        assert_eq!(Value::Int(1).compare(&Value::text("1")), None);
    }
}
