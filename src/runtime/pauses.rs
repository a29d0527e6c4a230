//! Pauses of routes as they are kept: by the wall clock, because a restart or another process has
//! no other clock in common.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;
use tracing::info;

use crate::session::paused::PausedRoutes;

/// The longest pause.
pub(super) const MAX_PAUSE: Duration = Duration::from_hours(1);

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
        keep(&mut kept, "rw", None);
        assert!(!kept.contains_key("rw"));
    }
}
