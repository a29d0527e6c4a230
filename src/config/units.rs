//! Times and sizes as they are written: a whole number and a unit.

use std::time::Duration;

pub(super) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(super) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(super) const fn minutes(minutes: u64) -> Duration {
    Duration::from_mins(minutes)
}

pub(super) const fn hours(hours: u64) -> Duration {
    Duration::from_hours(hours)
}

/// `500ms`, `5s`, `1m`, `2h`; `0`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

/// `PostgreSQL`'s units are powers of 1024, too.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let power = match unit {
        "B" => 0,
        "kB" | "KiB" => 1,
        "MB" | "MiB" => 2,
        "GB" | "GiB" => 3,
        "TB" | "TiB" => 4,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << (10 * power))
}

pub(super) fn shown_size(size: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = units.len().min(1 + size.trailing_zeros() as usize / 10) - 1;
    format!("{}{}", size >> (10 * power), units[power])
}

/// As it is written in the configuration, in the largest unit that it is a whole number of.
pub fn shown_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (unit, name) in [(3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
        if millis >= unit && millis.is_multiple_of(unit) {
            return format!("{}{name}", millis / unit);
        }
    }
    if millis == 0 {
        "0".to_owned()
    } else {
        format!("{millis}ms")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(parse_duration("100ms"), Some(Duration::from_millis(100)));
        assert_eq!(parse_duration("1s"), Some(Duration::from_secs(1)));
        assert_eq!(parse_duration("2m"), Some(Duration::from_mins(2)));
        assert_eq!(parse_duration("1h"), Some(Duration::from_hours(1)));
        assert_eq!(parse_duration("0"), Some(Duration::ZERO));
        for wrong in [
            "",
            "5",
            "s",
            "-1s",
            "1.5s",
            "1 s",
            "1d",
            "1sec",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sizes_have_a_unit_of_powers_of_1024() {
        assert_eq!(parse_size("1B"), Some(1));
        assert_eq!(parse_size("2kB"), Some(2048));
        assert_eq!(parse_size("16MB"), parse_size("16MiB"));
        assert_eq!(parse_size("1TiB"), Some(1 << 40));
        for wrong in [
            "",
            "1",
            "kB",
            "-1kB",
            "1.5MB",
            "1 MB",
            "1M",
            "1mb",
            "99999999999TB",
        ] {
            assert_eq!(parse_size(wrong), None, "{wrong}");
        }
        for text in ["1KiB", "3MiB", "1025B", "1024TiB"] {
            assert_eq!(shown_size(parse_size(text).unwrap()), text);
        }
    }

    #[test]
    fn durations_are_shown_as_they_are_written() {
        for text in ["0", "100ms", "1500ms", "1s", "90s", "2m", "1h", "24h"] {
            assert_eq!(shown_duration(parse_duration(text).unwrap()), *text);
        }
    }
}
