//! A limit on how often something may happen. The caller passes the time.

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::Instant;

/// A bucket of `burst` tokens that gains `per_second` tokens a second. Starts full.
///
/// It stores one time, at which the bucket will be full again, so that no fraction of a token is
/// lost.
#[derive(Debug, Clone)]
pub(super) struct TokenBucket {
    /// Time for one token.
    interval: Duration,
    /// Time for all tokens but one: how far ahead `full_at` may be when one more is taken.
    slack: Duration,
    /// `None` until the first token is taken.
    full_at: Option<Instant>,
}

impl TokenBucket {
    pub(super) fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        let interval = Duration::from_secs(1) / per_second.get();
        Self {
            interval,
            slack: interval * (burst.get() - 1),
            full_at: None,
        }
    }

    /// Takes one token; `false` if there is none.
    pub(super) fn try_take(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.map_or(now, |at| at.max(now));
        if full_at - now > self.slack {
            return false;
        }
        self.full_at = Some(full_at + self.interval);
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn bucket(per_second: u32, burst: u32) -> TokenBucket {
        TokenBucket::new(
            NonZeroU32::new(per_second).unwrap(),
            NonZeroU32::new(burst).unwrap(),
        )
    }

    #[test]
    fn a_burst_is_allowed_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = bucket(10, 3);
        let taken = (0..10).filter(|_| bucket.try_take(start)).count();
        assert_eq!(taken, 3);
        assert!(!bucket.try_take(start + Duration::from_millis(99)));
        assert!(bucket.try_take(start + Duration::from_millis(100)));
        assert!(!bucket.try_take(start + Duration::from_millis(100)));
        let rested = start + Duration::from_mins(1);
        assert_eq!((0..10).filter(|_| bucket.try_take(rested)).count(), 3);
    }

    #[test]
    fn a_clock_that_goes_back_gives_no_token() {
        let start = Instant::now() + Duration::from_secs(5);
        let mut bucket = bucket(1, 1);
        assert!(bucket.try_take(start));
        assert!(!bucket.try_take(start.checked_sub(Duration::from_secs(5)).unwrap()));
    }

    proptest! {
        #[test]
        fn never_more_tokens_than_burst_and_rate_allow(
            per_second in 1u32..100, burst in 1u32..20, steps in proptest::collection::vec(0u64..50, 1..200),
        ) {
            let start = Instant::now();
            let mut bucket = bucket(per_second, burst);
            let (mut now, mut taken) = (start, 0.0);
            for step in steps {
                now += Duration::from_millis(step);
                if bucket.try_take(now) {
                    taken += 1.0;
                }
                let most = f64::from(burst) + (now - start).as_secs_f64() * f64::from(per_second);
                prop_assert!(taken <= most + 1e-3);
            }
        }
    }
}
