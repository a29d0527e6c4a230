//! Pauses of routes as they are kept: by the wall clock, because a restart or another process has
//! no other clock in common.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tracing::info;

use crate::session::paused::{MAX_PAUSE, PausedRoutes};

/// How much an end may move without being written again: whoever gives an order says how long the
/// rest is, again and again.
const TOLERANCE_MS: u64 = 1000;

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// Keeps the end of a pause; `None` forgets it. Pauses that are over are forgotten, too.
pub(super) fn keep(kept: &mut BTreeMap<String, u64>, route: &str, lasts: Option<Duration>) {
    let now = now_ms();
    kept.retain(|_, until| *until > now);
    match lasts {
        Some(lasts) => {
            let lasts = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX);
            kept.insert(route.to_owned(), now.saturating_add(lasts));
        }
        None => drop(kept.remove(route)),
    }
}

/// The pauses of this process as they are to be kept, whoever ordered them; `None` if they are kept
/// already.
pub(super) fn changed(kept: &BTreeMap<String, u64>, paused: &PausedRoutes) -> Option<BTreeMap<String, u64>> {
    let (now, now_ms) = (Instant::now(), now_ms());
    let mut current = BTreeMap::new();
    for (route, pause) in paused.all().iter().filter(|(_, pause)| pause.until > now) {
        let left = u64::try_from((pause.until - now).as_millis()).unwrap_or(u64::MAX);
        current.insert(route.to_string(), now_ms.saturating_add(left));
    }
    let is_kept = |(route, until): (&String, &u64)| {
        let known = kept.get(route);
        known.is_some_and(|known| known.abs_diff(*until) <= TOLERANCE_MS)
    };
    let is_same = kept.len() == current.len() && current.iter().all(is_kept);
    (!is_same).then_some(current)
}

/// Pauses the routes for what is left. A clock that was set back makes no pause longer than
/// [`MAX_PAUSE`].
pub(super) fn resume(paused: &PausedRoutes, kept: &BTreeMap<String, u64>) {
    let now = now_ms();
    for (route, until) in kept {
        let left = Duration::from_millis(until.saturating_sub(now)).min(MAX_PAUSE);
        if !left.is_zero() && paused.pause(route, Instant::now() + left) {
            info!(%route, "the route is paused for {} s more, as before", left.as_secs());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_pause_that_was_kept_goes_on_for_what_is_left() {
        let mut kept = BTreeMap::new();
        keep(&mut kept, "rw", Some(Duration::from_mins(1)));
        keep(&mut kept, "ro", Some(Duration::ZERO));
        keep(&mut kept, "far", Some(Duration::from_hours(100)));
        assert!(!kept.contains_key("ro"), "it is over");
        let paused = PausedRoutes::default();
        resume(&paused, &kept);
        let now = Instant::now();
        let left = |route: &str| paused.until(route, now).map(|until| until - now);
        assert!(left("rw").is_some_and(|left| left > Duration::from_secs(50)));
        assert!(left("far").is_some_and(|left| left <= MAX_PAUSE));
        assert_eq!(left("ro"), None);
        assert_eq!(
            changed(&kept, &paused).unwrap().len(),
            2,
            "\"far\" is shorter now"
        );
        keep(&mut kept, "rw", None);
        assert!(!kept.contains_key("rw"));
    }

    #[test]
    fn a_pause_that_anybody_ordered_is_kept_once() {
        let (mut kept, paused) = (BTreeMap::new(), PausedRoutes::default());
        assert_eq!(changed(&kept, &paused), None);
        let end = Instant::now() + Duration::from_mins(5);
        assert!(paused.pause("rw", end));
        kept = changed(&kept, &paused).unwrap();
        assert_eq!(kept.keys().collect::<Vec<_>>(), ["rw"]);
        for moved in [1, 50, 900] {
            assert!(paused.pause("rw", end + Duration::from_millis(moved)));
            assert_eq!(changed(&kept, &paused), None, "a renewal is nothing new");
        }
        assert!(paused.pause("rw", end + Duration::from_mins(1)));
        kept = changed(&kept, &paused).unwrap();
        assert!(paused.unpause("rw"));
        assert!(changed(&kept, &paused).unwrap().is_empty());
    }
}
