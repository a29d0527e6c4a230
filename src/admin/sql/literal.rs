//! Texts that stand for values of a type: literals, and parameters that come as text.

use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime, Time, UtcOffset};

use super::super::relation::{Kind, Value};
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;

const DATE: &[BorrowedFormatItem<'_>] = format_description!("[year]-[month]-[day]");
const TIME: &[BorrowedFormatItem<'_>] = format_description!("[hour]:[minute][optional [:[second]]]");

/// As a value of this type.
///
/// # Errors
/// It is none.
pub(crate) fn read(text: &str, kind: Kind) -> Result<Value, ErrorReply> {
    let trimmed = text.trim_matches(|c: char| c.is_ascii_whitespace());
    let value = match kind {
        Kind::Text => Some(Value::text(text)),
        Kind::Bool => boolean(trimmed).map(Value::Bool),
        Kind::Int4 => trimmed
            .parse::<i32>()
            .ok()
            .map(|number| Value::Int(number.into())),
        Kind::Int8 | Kind::Numeric => trimmed.parse().ok().map(Value::Int),
        Kind::Float8 => float(trimmed).map(Value::Float),
        Kind::Timestamp => timestamp(trimmed).map(Value::Timestamp),
        Kind::Interval => interval(trimmed).map(Value::Interval),
        Kind::TextArray => array(trimmed).map(Value::TextArray),
    };
    value.ok_or_else(|| {
        let digits = trimmed.strip_prefix(['-', '+']).unwrap_or(trimmed);
        if kind.is_integer() && !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return out_of_range(text, kind);
        }
        let code = match kind {
            Kind::Timestamp | Kind::Interval => SqlState::INVALID_DATETIME_FORMAT,
            _ => SqlState::INVALID_TEXT_REPRESENTATION,
        };
        let reply = ErrorReply::error(
            code,
            format!(
                "invalid input syntax for type {}: \"{}\"",
                kind.name(),
                text.escape_debug()
            ),
        );
        match kind {
            Kind::Timestamp => reply.hint("The console reads 2026-12-31 23:59:59.5+00, and T and Z in it."),
            Kind::Interval => {
                reply.hint("The console reads numbers with the units seconds, minutes, hours and days.")
            }
            _ => reply,
        }
    })
}

fn out_of_range(text: &str, kind: Kind) -> ErrorReply {
    ErrorReply::error(
        SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
        format!("value \"{text}\" is out of range for type {}", kind.name()),
    )
}

/// Any beginning of these words that no other has, in letters of either case.
fn boolean(text: &str) -> Option<bool> {
    let text = text.to_ascii_lowercase();
    let begins = |word: &str, least: usize| text.len() >= least && word.starts_with(&text);
    if begins("true", 1) || begins("yes", 1) || text == "on" || text == "1" {
        return Some(true);
    }
    (begins("false", 1) || begins("no", 1) || begins("off", 2) || text == "0").then_some(false)
}

fn float(text: &str) -> Option<f64> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let is_number = unsigned
        .bytes()
        .all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'));
    let is_word = ["nan", "infinity", "inf"]
        .iter()
        .any(|word| unsigned.eq_ignore_ascii_case(word));
    let number: f64 = text.parse().ok()?;
    // What is too large for the type is refused, and does not become infinite.
    ((is_number && number.is_finite()) || is_word).then_some(number)
}

fn timestamp(text: &str) -> Option<i64> {
    let (date, rest) = text.split_at_checked(10).filter(|(date, _)| date.is_ascii())?;
    let date = time::Date::parse(date, DATE).ok()?;
    let rest = rest.strip_prefix(['T', 't', ' ']).unwrap_or(rest).trim_start();
    let (clock, zone) = match rest.find(['Z', 'z', '+', '-']) {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let clock = clock.trim_end();
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let time = match clock {
        "" if zone.is_empty() => Time::MIDNIGHT,
        clock => Time::parse(clock, TIME).ok()?,
    };
    let fraction: i64 = match fraction {
        "" => 0,
        digits if digits.len() <= 9 && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            format!("{digits:0<6}").get(..6)?.parse().ok()?
        }
        _ => return None,
    };
    let at = PrimitiveDateTime::new(date, time).assume_offset(offset(zone)?);
    micros(at).checked_add(fraction)
}

fn micros(at: OffsetDateTime) -> i64 {
    at.unix_timestamp().saturating_mul(1_000_000)
}

/// `Z`, `+01`, `-0530`, `+05:30`; nothing is UTC.
fn offset(zone: &str) -> Option<UtcOffset> {
    if zone.is_empty() || zone.eq_ignore_ascii_case("z") {
        return Some(UtcOffset::UTC);
    }
    let (sign, digits) = match zone.split_at_checked(1)? {
        ("+", digits) => (1, digits),
        ("-", digits) => (-1, digits),
        _ => return None,
    };
    let digits = digits.replace(':', "");
    let number: i8 = match digits.len() {
        2 | 4 if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits[..2].parse().ok()?,
        _ => return None,
    };
    let minutes: i8 = digits.get(2..4).map_or(Some(0), |text| text.parse().ok())?;
    UtcOffset::from_hms(sign * number, sign * minutes, 0).ok()
}

/// Numbers with units: `90 seconds`, `1 hour 30 min`, `1d`; or `01:30:00`.
fn interval(text: &str) -> Option<i64> {
    let mut micros: i64 = 0;
    let mut rest = text;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | ':' | '-' | '+')))
            .unwrap_or(rest.len());
        let (number, behind) = rest.split_at(end);
        let behind = behind.trim_start();
        let end = behind
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(behind.len());
        let (unit, behind) = behind.split_at(end);
        rest = behind.trim_start();
        let part = if number.contains(':') && unit.is_empty() {
            clock(number)?
        } else {
            let number = float(number)? * unit_micros(unit)?;
            // Far within what is exact.
            (number.abs() < 9e15).then(|| rounded(number))?
        };
        micros = micros.checked_add(part)?;
    }
    Some(micros)
}

fn clock(text: &str) -> Option<i64> {
    let time = Time::parse(text, TIME).ok()?;
    let seconds = i64::from(time.hour()) * 3600 + i64::from(time.minute()) * 60 + i64::from(time.second());
    Some(seconds * 1_000_000)
}

#[expect(clippy::cast_possible_truncation, reason = "its caller bounds it")]
fn rounded(number: f64) -> i64 {
    number.round() as i64
}

fn unit_micros(unit: &str) -> Option<f64> {
    Some(match unit.to_ascii_lowercase().as_str() {
        "us" | "microsecond" | "microseconds" => 1.0,
        "ms" | "millisecond" | "milliseconds" => 1e3,
        "" | "s" | "sec" | "secs" | "second" | "seconds" => 1e6,
        "m" | "min" | "mins" | "minute" | "minutes" => 60e6,
        "h" | "hour" | "hours" => 3600e6,
        "d" | "day" | "days" => 86_400e6,
        "w" | "week" | "weeks" => 7.0 * 86_400e6,
        _ => return None,
    })
}

/// One dimension, without missing elements.
fn array(text: &str) -> Option<Vec<String>> {
    let inner = text.strip_prefix('{')?.strip_suffix('}')?;
    let mut all = Vec::new();
    if inner.trim().is_empty() {
        return Some(all);
    }
    let mut rest = inner;
    loop {
        rest = rest.trim_start();
        let mut element = String::new();
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut chars = quoted.chars();
            loop {
                match chars.next()? {
                    '"' => break,
                    '\\' => element.push(chars.next()?),
                    c => element.push(c),
                }
            }
            rest = chars.as_str().trim_start();
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            let bare = rest[..end].trim_end();
            let is_plain = !bare.is_empty()
                && !bare.eq_ignore_ascii_case("null")
                && !bare.contains(['{', '}', '"', '\\']);
            element.push_str(is_plain.then_some(bare)?);
            rest = &rest[end..];
        }
        all.push(element);
        if rest.is_empty() {
            return Some(all);
        }
        rest = rest.strip_prefix(',')?;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn texts_of_every_type() {
        let cases = [
            (Kind::Bool, "T", Value::Bool(true)),
            (Kind::Bool, " off", Value::Bool(false)),
            (Kind::Int4, "-2147483648", Value::Int(-2_147_483_648)),
            (Kind::Int8, " +7 ", Value::Int(7)),
            (Kind::Float8, "1e3", Value::Float(1000.0)),
            (Kind::Float8, "-Infinity", Value::Float(f64::NEG_INFINITY)),
            (Kind::Text, " as it is ", Value::text(" as it is ")),
            (Kind::Timestamp, "1970-01-01", Value::Timestamp(0)),
            (
                Kind::Timestamp,
                "2000-02-29T12:34:56.5Z",
                Value::Timestamp(951_827_696_500_000),
            ),
            (
                Kind::Timestamp,
                "2000-02-29 18:04:56.500000+05:30",
                Value::Timestamp(951_827_696_500_000),
            ),
            (
                Kind::Timestamp,
                "1970-01-01 01:00-01",
                Value::Timestamp(7_200_000_000),
            ),
            (Kind::Interval, "1 hour 30 min", Value::Interval(5_400_000_000)),
            (Kind::Interval, "90", Value::Interval(90_000_000)),
            (Kind::Interval, "-0.5s", Value::Interval(-500_000)),
            (Kind::Interval, "00:01:30", Value::Interval(90_000_000)),
            (
                Kind::TextArray,
                r#"{a, "b\"c" ,""}"#,
                Value::TextArray(vec!["a".to_owned(), "b\"c".to_owned(), String::new()]),
            ),
            (Kind::TextArray, "{ }", Value::TextArray(Vec::new())),
        ];
        for (kind, text, value) in cases {
            assert_eq!(read(text, kind).unwrap(), value, "{text}");
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for (kind, text, code) in [
            (Kind::Bool, "o", "22P02"),
            (Kind::Bool, "", "22P02"),
            (Kind::Int4, "2147483648", "22003"),
            (Kind::Int8, "9223372036854775808", "22003"),
            (Kind::Int8, "1.0", "22P02"),
            (Kind::Int8, "", "22P02"),
            (Kind::Float8, "1e999", "22P02"),
            (Kind::Float8, "0x10", "22P02"),
            (Kind::Timestamp, "yesterday", "22007"),
            (Kind::Timestamp, "2026-02-30", "22007"),
            (Kind::Timestamp, "2026-02-01 25:00", "22007"),
            (Kind::Timestamp, "2026-02-01 10:00+99", "22007"),
            (Kind::Timestamp, "2026-02-0é", "22007"),
            (Kind::Interval, "3 fortnights", "22007"),
            (Kind::Interval, "", "22007"),
            (Kind::Interval, "1e300 days", "22007"),
            (Kind::TextArray, "a", "22P02"),
            (Kind::TextArray, "{a", "22P02"),
            (Kind::TextArray, "{a,,b}", "22P02"),
            (Kind::TextArray, "{{a}}", "22P02"),
            (Kind::TextArray, "{NULL}", "22P02"),
        ] {
            assert_eq!(read(text, kind).unwrap_err().code, code, "{text}");
        }
    }
}
