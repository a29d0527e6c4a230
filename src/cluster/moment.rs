//! Points in time as Patroni writes them (Python's `isoformat`), and when they are due here.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// A later time is taken for a mistake.
const LONGEST: Duration = Duration::from_hours(366 * 24);

/// Reads `2026-12-01T16:27:00+00:00`, also with a fraction of a second or with `Z`. A time without
/// an offset is not read: Patroni always writes one.
pub(super) fn read(text: &str) -> Option<SystemTime> {
    let (date, rest) = text.split_once(['T', ' '])?;
    let mut fields = date.split('-');
    let (year, month, day) = (
        digits(fields.next()?, 4)?,
        digits(fields.next()?, 2)?,
        digits(fields.next()?, 2)?,
    );
    let (time, offset) = if let Some(time) = rest.strip_suffix('Z') {
        (time, 0)
    } else {
        let at = rest.find(['+', '-'])?;
        let (time, offset) = rest.split_at(at);
        let sign = if offset.starts_with('-') { -1 } else { 1 };
        let (hours, minutes) = offset[1..].split_once(':')?;
        let (hours, minutes) = (digits(hours, 2)?, digits(minutes.get(..2)?, 2)?);
        (time, sign * (hours * 3600 + minutes * 60))
    };
    let time = time.split_once('.').map_or(time, |(whole, _)| whole);
    let mut clock = time.split(':');
    let (hour, minute, second) = (
        digits(clock.next()?, 2)?,
        digits(clock.next()?, 2)?,
        clock.next().map_or(Some(0), |seconds| digits(seconds, 2))?,
    );
    let is_valid = fields.next().is_none()
        && clock.next().is_none()
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
    let since = Duration::from_secs(u64::try_from(seconds).ok().filter(|_| is_valid)?);
    SystemTime::UNIX_EPOCH.checked_add(since)
}

fn digits(text: &str, length: usize) -> Option<i64> {
    let is_number = text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

/// Days since 1970-01-01 in the Gregorian calendar, where the year begins in March: a leap day is
/// its last day.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468
}

/// When `at` is, by this host's clock; now if it is `None` or past.
pub(super) fn instant(at: Option<SystemTime>) -> Instant {
    let wait = at.and_then(|at| at.duration_since(SystemTime::now()).ok());
    Instant::now() + wait.unwrap_or_default().min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_patroni_writes() {
        let read = |text| {
            let since = read(text)?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
            Some(since.as_secs())
        };
        // By `date -d … +%s`.
        for (text, seconds) in [
            ("1970-01-01T00:00:00+00:00", 0),
            ("2026-12-01T16:27:00+00:00", 1_796_142_420),
            ("2026-12-01T16:27:00Z", 1_796_142_420),
            ("2026-12-01T18:57:00.123456+02:30", 1_796_142_420),
            ("2026-12-01 08:27:00-08:00", 1_796_142_420),
            ("2028-02-29T23:59:59+00:00", 1_835_481_599),
            ("2028-03-01T00:00:00+00:00", 1_835_481_600),
            ("2027-03-01T00:00+00:00", 1_803_859_200),
        ] {
            assert_eq!(read(text), Some(seconds), "{text}");
        }
        for wrong in [
            "",
            "tomorrow",
            "2026-12-01",
            "2026-12-01T16:27:00",
            "2026-13-01T16:27:00Z",
            "2026-12-01T25:27:00Z",
            "2026-12-01T16:27:00+0000",
            "2026-12-01T16:27:00+é0:00",
            "2026-12-01T16:27:00:00Z",
            "1960-01-01T00:00:00Z",
            "+026-12-01T16:27:00Z",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
