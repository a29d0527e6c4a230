//! Words that every surface has in common: how long something lasts, which names there are, and who
//! leads.

/// The longest list of names.
const MOST_NAMES: usize = 20;

/// `12 s`, `5 min 12 s`, `3 h 5 min`, `2 d 3 h`: as the page writes it.
pub fn lasting(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min {} s", seconds % 60),
        (0, hours, minutes) => format!("{hours} h {} min", minutes % 60),
        (days, hours, _) => format!("{days} d {} h", hours % 24),
    }
}

/// `830 ms`, `1.5 s`, `5 min 12 s`.
pub fn lasting_ms(millis: u64) -> String {
    match (millis, millis % 1000 / 100) {
        (0..1000, _) => format!("{millis} ms"),
        (1000..60_000, tenths @ 1..) => format!("{}.{tenths} s", millis / 1000),
        _ => lasting(millis / 1000),
    }
}

/// Completes "there is no cluster x": the names there are.
pub fn there_are<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<&str> = names.collect();
    match names.as_slice() {
        [] => "there is none".to_owned(),
        [only] => format!("there is only {only}"),
        names if names.len() <= MOST_NAMES => format!("there are {}", names.join(", ")),
        names => format!(
            "there are {} and {} more",
            names[..MOST_NAMES].join(", "),
            names.len() - MOST_NAMES
        ),
    }
}

/// The role of a member that the source names as the leader, and that this router has not verified:
/// it was killed, is being promoted, or another one leads by now.
const NAMED_LEADER: &str = "named leader";

/// The role that does not contradict who leads.
pub(super) fn shown_role(role: Option<&str>, is_leader: bool) -> Option<&str> {
    match role {
        _ if is_leader => Some("leader"),
        Some("leader") => Some(NAMED_LEADER),
        role => role,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_a_blank_and_a_unit() {
        assert_eq!(
            [12, 296, 11_100, 183_600].map(lasting),
            ["12 s", "4 min 56 s", "3 h 5 min", "2 d 3 h"]
        );
        assert_eq!(
            [0, 830, 1000, 1540, 59_999, 296_400].map(lasting_ms),
            ["0 ms", "830 ms", "1 s", "1.5 s", "59.9 s", "4 min 56 s"]
        );
    }

    #[test]
    fn one_name_is_one_and_several_are_several() {
        let said = |names: &[&'static str]| there_are(names.iter().copied());
        assert_eq!(said(&[]), "there is none");
        assert_eq!(said(&["main"]), "there is only main");
        assert_eq!(said(&["main", "other"]), "there are main, other");
        assert!(said(&["x"; 25]).ends_with(", x and 5 more"));
    }
}
