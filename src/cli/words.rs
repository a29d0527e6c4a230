//! Texts that several commands share: numbers of things, and the times that options take.

use std::time::Duration;

use crate::config;

/// What an option that takes a time says of its form.
const FORMS: &str = "a number with a unit, as in 500ms, 5s, 2m or 1h; a number alone is seconds";

/// `1 session`, `2 sessions`
pub(super) fn counted(count: impl TryInto<u64>, noun: &str) -> String {
    match count.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {noun}"),
        count => format!("{count} {noun}s"),
    }
}

/// As in the configuration (`500ms`, `5s`, `2m`, `1h`), or a number of seconds.
fn time(text: &str) -> Result<Duration, String> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let seconds = || {
        let number = is_number.then(|| text.parse().ok()).flatten()?;
        Duration::try_from_secs_f64(number).ok()
    };
    let parsed = config::parse_duration(text).or_else(seconds);
    parsed.ok_or_else(|| FORMS.to_owned())
}

/// The same within limits.
pub(super) fn time_within(text: &str, least: Duration, most: Duration) -> Result<Duration, String> {
    let parsed = time(text)?;
    let shown = config::shown_duration;
    match parsed {
        parsed if parsed < least => Err(format!("at least {} ({FORMS})", shown(least))),
        parsed if parsed > most => Err(format!("at most {} ({FORMS})", shown(most))),
        parsed => Ok(parsed),
    }
}

/// The same, with a limit in seconds.
pub(super) fn time_up_to(text: &str, most: u64) -> Result<Duration, String> {
    time_within(text, Duration::ZERO, Duration::from_secs(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular() {
        let shown = [0, 1, 2].map(|count| counted(count, "session"));
        assert_eq!(shown, ["0 sessions", "1 session", "2 sessions"]);
        assert_eq!(counted(1_usize, "event"), "1 event");
        assert_eq!(counted(u64::MAX, "day"), format!("{} days", u64::MAX));
    }

    #[test]
    fn a_time_has_a_unit_or_is_seconds() {
        for (text, millis) in [
            ("4", 4000),
            ("4s", 4000),
            ("0", 0),
            ("0.5", 500),
            ("500ms", 500),
            ("1m", 60_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(
                time_up_to(text, 3600),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for wrong in [
            "", ".", "4 s", "4sec", "-1", "nan", "inf", "1e3", "1.5s", "s", "1.2.3", "5S",
        ] {
            assert_eq!(time(wrong), Err(FORMS.to_owned()), "{wrong}");
        }
        let told = time_up_to("21", 20).expect_err("too long");
        assert!(told.starts_with("at most 20s (a number with a unit"), "{told}");
        let told = time_within("100ms", Duration::from_millis(200), Duration::MAX).expect_err("too short");
        assert!(told.starts_with("at least 200ms"), "{told}");
        assert!(time_up_to(&"9".repeat(400), 20).is_err());
    }
}
