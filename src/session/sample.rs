//! Sampling of log lines: the first few per key and interval are logged, the rest are counted, and the count is
//! told. Pure: it is given the time.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// What to do with one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Log it, and say that so many like it were not logged before.
    Log { suppressed: u64 },
    /// Counted; [`Sampler::summaries`] or the next line logged tells.
    Suppress,
}

/// Decides, per key, which events are logged.
#[derive(Debug)]
pub struct Sampler<K> {
    /// Events logged per key and interval.
    burst: u32,
    interval: Duration,
    /// Keys told apart; beyond, all others share one.
    max_keys: usize,
    windows: HashMap<K, Window>,
    others: Option<Window>,
}

#[derive(Debug)]
struct Window {
    start: Instant,
    logged: u32,
    suppressed: u64,
}

impl<K: Eq + Hash> Sampler<K> {
    /// `burst` and `max_keys` are at least 1.
    pub fn new(burst: u32, interval: Duration, max_keys: usize) -> Self {
        Self {
            burst: burst.max(1),
            interval,
            max_keys: max_keys.max(1),
            windows: HashMap::new(),
            others: None,
        }
    }

    /// An event of this key happens now.
    pub fn observe(&mut self, key: K, now: Instant) -> Verdict {
        let (burst, interval) = (self.burst, self.interval);
        if let Some(window) = self.windows.get_mut(&key) {
            return window.observe(burst, interval, now);
        }
        if self.windows.len() >= self.max_keys {
            // Only what has nothing left to tell may go unseen.
            self.windows
                .retain(|_, window| !window.is_over(interval, now) || window.suppressed > 0);
        }
        let window = if self.windows.len() < self.max_keys {
            self.windows.entry(key).or_insert_with(|| Window::new(now))
        } else {
            self.others.get_or_insert_with(|| Window::new(now))
        };
        window.observe(burst, interval, now)
    }

    /// The keys whose interval is over, with the number of events that were not logged; `None` is all the keys
    /// that had no room of their own. Call it now and then (about once an interval): it also frees their memory.
    pub fn summaries(&mut self, now: Instant) -> Vec<(Option<K>, u64)> {
        let interval = self.interval;
        let mut told: Vec<(Option<K>, u64)> = self
            .windows
            .extract_if(|_, window| window.is_over(interval, now))
            .filter(|(_, window)| window.suppressed > 0)
            .map(|(key, window)| (Some(key), window.suppressed))
            .collect();
        if let Some(window) = self.others.take_if(|window| window.is_over(interval, now))
            && window.suppressed > 0
        {
            told.push((None, window.suppressed));
        }
        told
    }
}

impl Window {
    fn new(start: Instant) -> Self {
        Self {
            start,
            logged: 0,
            suppressed: 0,
        }
    }

    fn is_over(&self, interval: Duration, now: Instant) -> bool {
        now.saturating_duration_since(self.start) >= interval
    }

    fn observe(&mut self, burst: u32, interval: Duration, now: Instant) -> Verdict {
        let mut suppressed = 0;
        if self.is_over(interval, now) {
            suppressed = self.suppressed;
            *self = Self::new(now);
        }
        if self.logged < burst {
            self.logged += 1;
            Verdict::Log { suppressed }
        } else {
            self.suppressed = self.suppressed.saturating_add(1);
            Verdict::Suppress
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    #[test]
    fn the_first_are_logged_the_rest_counted_and_told() {
        let mut sampler = Sampler::new(2, MINUTE, 10);
        let start = Instant::now();
        let log = |suppressed| Verdict::Log { suppressed };
        assert_eq!(sampler.observe("a", start), log(0));
        assert_eq!(sampler.observe("a", start), log(0));
        assert_eq!(sampler.observe("a", start), Verdict::Suppress);
        assert_eq!(
            sampler.observe("b", start),
            log(0),
            "keys do not disturb each other"
        );
        assert_eq!(sampler.observe("a", start + MINUTE), log(1));
        assert_eq!(sampler.observe("a", start + MINUTE), log(0));
        assert_eq!(sampler.observe("a", start + MINUTE), Verdict::Suppress);
        assert_eq!(sampler.summaries(start + MINUTE), [], "its interval is not over");
        assert_eq!(sampler.summaries(start + 2 * MINUTE), [(Some("a"), 1)]);
        assert_eq!(sampler.summaries(start + 2 * MINUTE), [], "told once");
    }

    #[test]
    fn too_many_keys_share_one_limit() {
        let mut sampler = Sampler::new(1, MINUTE, 2);
        let start = Instant::now();
        let logged = (0..1000)
            .filter(|key| sampler.observe(*key, start) != Verdict::Suppress)
            .count();
        assert_eq!(logged, 3);
        assert_eq!(sampler.summaries(start + MINUTE), [(None, 997)]);
    }

    proptest! {
        #[test]
        fn every_event_is_logged_or_told_once(events in proptest::collection::vec((0..8_u8, 0..90_u64, any::<bool>()), 0..300)) {
            let mut sampler = Sampler::new(2, MINUTE, 4);
            let mut now = Instant::now();
            let (mut seen, mut told) = (0, 0);
            for (key, seconds, summarise) in events {
                now += Duration::from_secs(seconds);
                seen += 1;
                if let Verdict::Log { suppressed } = sampler.observe(key, now) {
                    told += 1 + suppressed;
                }
                if summarise {
                    told += sampler.summaries(now).iter().map(|(_, count)| count).sum::<u64>();
                }
                prop_assert!(sampler.windows.len() <= 4);
            }
            told += sampler.summaries(now + MINUTE).iter().map(|(_, count)| count).sum::<u64>();
            prop_assert_eq!(told, seen);
        }
    }
}
