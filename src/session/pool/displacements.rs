//! Notices when clients displace each other's connections because of a single startup parameter.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::key::ConnectionKey;

/// More displacements than this within a [`WINDOW`] are worth a warning.
const TOLERATED: u32 = 1;
const WINDOW: Duration = Duration::from_secs(1);
/// Between two warnings of one pool.
const PAUSE: Duration = Duration::from_mins(1);
/// Parameters that are counted in one window.
const MOST_PARAMETERS: usize = 16;

/// The displacements of one pool within the present window.
#[derive(Debug, Default)]
pub(super) struct Displacements {
    began: Option<Instant>,
    by_parameter: HashMap<Bytes, u32>,
    warned: Option<Instant>,
}

/// Sessions that differ in this parameter only have displaced each other several times.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Displaced {
    pub(super) parameter: Bytes,
}

impl Displacements {
    /// A connection of `old` was closed to make room for one of `new`. Returns what is to be
    /// logged.
    pub(super) fn note(
        &mut self,
        old: &ConnectionKey,
        new: &ConnectionKey,
        now: Instant,
    ) -> Option<Displaced> {
        if old.credential != new.credential {
            return None;
        }
        let parameter = only_difference(&old.parameters, &new.parameters)?;
        if self.began.is_none_or(|began| began + WINDOW <= now) {
            self.began = Some(now);
            self.by_parameter.clear();
        }
        if self.by_parameter.len() >= MOST_PARAMETERS && !self.by_parameter.contains_key(parameter) {
            return None;
        }
        let count = self.by_parameter.entry(parameter.clone()).or_default();
        *count += 1;
        if *count <= TOLERATED || self.warned.is_some_and(|warned| now < warned + PAUSE) {
            return None;
        }
        self.warned = Some(now);
        Some(Displaced {
            parameter: parameter.clone(),
        })
    }
}

/// The name of the one parameter that has another value, or is in one list only. Both are sorted.
fn only_difference<'a>(one: &'a [(Bytes, Bytes)], two: &'a [(Bytes, Bytes)]) -> Option<&'a Bytes> {
    let mut differing = None;
    let (mut left, mut right) = (one.iter().peekable(), two.iter().peekable());
    loop {
        let name = match (left.peek(), right.peek()) {
            (None, None) => return differing,
            (Some(a), Some(b)) if a == b => {
                left.next();
                right.next();
                continue;
            }
            (Some((a, _)), Some((b, _))) if a == b => {
                left.next();
                right.next();
                a
            }
            (Some((a, _)), Some((b, _))) if a < b => {
                left.next();
                a
            }
            (Some((a, _)), None) => {
                left.next();
                a
            }
            (_, Some((b, _))) => {
                right.next();
                b
            }
        };
        if differing.replace(name).is_some() {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::credentials::{ServerLogin, ServerProof};

    fn key(parameters: &[(&'static str, &'static str)]) -> ConnectionKey {
        let login = ServerLogin {
            user: None,
            with: ServerProof::Nothing,
            is_operators: false,
        };
        let bytes = |(name, value): &(&'static str, &'static str)| {
            (
                Bytes::from_static(name.as_bytes()),
                Bytes::from_static(value.as_bytes()),
            )
        };
        ConnectionKey {
            parameters: parameters.iter().map(bytes).collect(),
            credential: login.fingerprint(&[0; 32]),
        }
    }

    #[test]
    fn the_parameter_in_which_two_keys_differ_is_found() {
        let difference = |one: &[_], two: &[_]| {
            let (one, two) = (key(one), key(two));
            only_difference(&one.parameters, &two.parameters).cloned()
        };
        assert_eq!(difference(&[], &[]), None);
        assert_eq!(difference(&[("a", "1")], &[("a", "1")]), None);
        assert_eq!(
            difference(&[("a", "1")], &[("a", "2")]).as_deref(),
            Some(&b"a"[..])
        );
        assert_eq!(difference(&[("a", "1")], &[]).as_deref(), Some(&b"a"[..]));
        assert_eq!(
            difference(&[("a", "1"), ("c", "1")], &[("a", "1"), ("b", "1"), ("c", "1")]).as_deref(),
            Some(&b"b"[..])
        );
        assert_eq!(difference(&[("a", "1")], &[("b", "1")]), None, "two parameters");
        assert_eq!(
            difference(&[("a", "1"), ("b", "1")], &[("a", "2"), ("b", "2")]),
            None
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_displacement_within_a_second_warns_once_a_minute() {
        let (one, two) = (key(&[("timezone", "UTC")]), key(&[("timezone", "Europe/Berlin")]));
        let mut displacements = Displacements::default();
        let start = Instant::now();
        let mut after = |milliseconds| {
            let now = start + Duration::from_millis(milliseconds);
            displacements
                .note(&one, &two, now)
                .map(|warning| warning.parameter)
        };
        assert_eq!(after(0), None);
        assert_eq!(after(1000), None, "once a second");
        assert_eq!(after(1999).as_deref(), Some(&b"timezone"[..]));
        assert_eq!(after(1999), None);
        assert_eq!(after(60_000), None);
        assert_eq!(after(60_500), None);
        assert_eq!(after(62_000), None);
        assert_eq!(after(62_500).as_deref(), Some(&b"timezone"[..]));
    }
}
