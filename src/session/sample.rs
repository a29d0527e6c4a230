//! Sampling of log lines: the first few per key and interval are logged, the others are counted,
//! and the count is logged. Pure: the caller passes the time.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// What to do with one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SampleDecision {
    /// Log it, with the number of similar events that were not logged before.
    Log { suppressed: u64 },
    /// Do not log it. It is counted; [`Sampler::summaries`] or the next line that is logged reports
    /// it.
    Suppress,
}

/// Decides, per key, which events are logged.
#[derive(Debug)]
pub struct Sampler<K> {
    /// Events logged per key and interval.
    burst: u32,
    interval: Duration,
    /// Keys that are counted separately; all others share one window.
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
    pub fn observe(&mut self, key: K, now: Instant) -> SampleDecision {
        let (burst, interval) = (self.burst, self.interval);
        if let Some(window) = self.windows.get_mut(&key) {
            return window.observe(burst, interval, now);
        }
        if self.windows.len() >= self.max_keys {
            // Windows that still have a count to report stay.
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

    /// The keys whose interval is over, with the number of events that were not logged; `None`
    /// stands for all keys without a separate window. Call it about once an interval: it also frees
    /// their memory.
    pub fn summaries(&mut self, now: Instant) -> Vec<(Option<K>, u64)> {
        let interval = self.interval;
        let mut summaries: Vec<(Option<K>, u64)> = self
            .windows
            .extract_if(|_, window| window.is_over(interval, now))
            .filter(|(_, window)| window.suppressed > 0)
            .map(|(key, window)| (Some(key), window.suppressed))
            .collect();
        if let Some(window) = self.others.take_if(|window| window.is_over(interval, now))
            && window.suppressed > 0
        {
            summaries.push((None, window.suppressed));
        }
        summaries
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

    fn observe(&mut self, burst: u32, interval: Duration, now: Instant) -> SampleDecision {
        let mut suppressed = 0;
        if self.is_over(interval, now) {
            suppressed = self.suppressed;
            *self = Self::new(now);
        }
        if self.logged < burst {
            self.logged += 1;
            SampleDecision::Log { suppressed }
        } else {
            self.suppressed = self.suppressed.saturating_add(1);
            SampleDecision::Suppress
        }
    }
}

/// A member of a source; `None` for all members that are not counted separately.
pub type Member<S, M> = (S, Option<M>);

/// Several sources with several members each. The first few events of each member are logged; all
/// further members of a source are counted together. So no member hides another, and no source can
/// log without limit.
#[derive(Debug)]
pub struct Sources<S, M> {
    members: Sampler<Member<S, M>>,
    /// The members of each source that are counted separately in its interval.
    seen: HashMap<S, (Instant, HashSet<M>)>,
    most: usize,
}

impl<S: Eq + Hash + Clone, M: Eq + Hash + Clone> Sources<S, M> {
    /// At most `most` members of one source are counted separately, and `max_keys` members of all
    /// sources.
    pub fn new(burst: u32, interval: Duration, most: usize, max_keys: usize) -> Self {
        Self {
            members: Sampler::new(burst, interval, max_keys),
            seen: HashMap::new(),
            most,
        }
    }

    /// An event of this member of this source happens now.
    pub fn observe(&mut self, source: &S, member: &M, now: Instant) -> SampleDecision {
        let is_separate = self.is_separate(source, member, now);
        let key = (source.clone(), is_separate.then(|| member.clone()));
        self.members.observe(key, now)
    }

    /// Whether this member is counted separately; it is from now on if there is room.
    fn is_separate(&mut self, source: &S, member: &M, now: Instant) -> bool {
        if self.seen.len() >= self.members.max_keys && !self.seen.contains_key(source) {
            self.forget(now);
            if self.seen.len() >= self.members.max_keys {
                return false;
            }
        }
        let (start, seen) = self
            .seen
            .entry(source.clone())
            .or_insert_with(|| (now, HashSet::new()));
        if now.saturating_duration_since(*start) >= self.members.interval {
            (*start, *seen) = (now, HashSet::new());
        }
        seen.contains(member) || (seen.len() < self.most && seen.insert(member.clone()))
    }

    fn forget(&mut self, now: Instant) {
        let interval = self.members.interval;
        self.seen
            .retain(|_, (start, _)| now.saturating_duration_since(*start) < interval);
    }

    /// As [`Sampler::summaries`].
    pub fn summaries(&mut self, now: Instant) -> Vec<(Option<Member<S, M>>, u64)> {
        self.forget(now);
        self.members.summaries(now)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    #[test]
    fn the_first_events_are_logged_and_the_others_counted() {
        let mut sampler = Sampler::new(2, MINUTE, 10);
        let start = Instant::now();
        let log = |suppressed| SampleDecision::Log { suppressed };
        assert_eq!(sampler.observe("a", start), log(0));
        assert_eq!(sampler.observe("a", start), log(0));
        assert_eq!(sampler.observe("a", start), SampleDecision::Suppress);
        assert_eq!(
            sampler.observe("b", start),
            log(0),
            "keys do not disturb each other"
        );
        assert_eq!(sampler.observe("a", start + MINUTE), log(1));
        assert_eq!(sampler.observe("a", start + MINUTE), log(0));
        assert_eq!(sampler.observe("a", start + MINUTE), SampleDecision::Suppress);
        assert_eq!(sampler.summaries(start + MINUTE), [], "its interval is not over");
        assert_eq!(sampler.summaries(start + 2 * MINUTE), [(Some("a"), 1)]);
        assert_eq!(sampler.summaries(start + 2 * MINUTE), [], "reported once");
    }

    #[test]
    fn too_many_keys_share_one_limit() {
        let mut sampler = Sampler::new(1, MINUTE, 2);
        let start = Instant::now();
        let logged = (0..1000)
            .filter(|key| sampler.observe(*key, start) != SampleDecision::Suppress)
            .count();
        assert_eq!(logged, 3);
        assert_eq!(sampler.summaries(start + MINUTE), [(None, 997)]);
    }

    #[test]
    fn one_member_hides_no_other_and_a_source_is_limited() {
        let mut sources = Sources::new(5, MINUTE, 4, 100);
        let start = Instant::now();
        let mut logged = |source: &str, member: String, now| {
            sources.observe(&source.to_owned(), &member, now) != SampleDecision::Suppress
        };
        let loops = (0..1000)
            .filter(|_| logged("nat", "old".to_owned(), start))
            .count();
        assert_eq!(loops, 5);
        assert!(
            logged("nat", "neighbour".to_owned(), start),
            "not hidden by the other"
        );
        let made_up = (0..1000)
            .filter(|name| logged("nat", format!("u{name}"), start))
            .count();
        assert_eq!(made_up, 2 + 5, "two separately, the others together");
        assert!(logged("elsewhere", "old".to_owned(), start));
        assert!(logged("nat", "late".to_owned(), start + MINUTE));
        let summaries: u64 = sources
            .summaries(start + 2 * MINUTE)
            .iter()
            .map(|(_, times)| times)
            .sum();
        assert_eq!(summaries, 995 + 993);
        // Many sources are limited too.
        let mut sources = Sources::new(1, MINUTE, 4, 10);
        let logged = (0..1000).filter(|n| sources.observe(n, n, start) != SampleDecision::Suppress);
        assert_eq!(logged.count(), 11);
        assert!(sources.seen.len() <= 10);
    }

    proptest! {
        #[test]
        fn every_event_is_logged_or_counted_once(events in proptest::collection::vec((0..8_u8, 0..90_u64, any::<bool>()), 0..300)) {
            let mut sampler = Sampler::new(2, MINUTE, 4);
            let mut now = Instant::now();
            let (mut seen, mut summaries) = (0, 0);
            for (key, seconds, summarise) in events {
                now += Duration::from_secs(seconds);
                seen += 1;
                if let SampleDecision::Log { suppressed } = sampler.observe(key, now) {
                    summaries += 1 + suppressed;
                }
                if summarise {
                    summaries += sampler.summaries(now).iter().map(|(_, count)| count).sum::<u64>();
                }
                prop_assert!(sampler.windows.len() <= 4);
            }
            summaries += sampler.summaries(now + MINUTE).iter().map(|(_, count)| count).sum::<u64>();
            prop_assert_eq!(summaries, seen);
        }
    }
}
