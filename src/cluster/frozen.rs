//! Whether this process stood still (SIGSTOP, a suspended virtual machine, a host without a moment for it).

use std::time::Duration;

use tokio::time::Instant;

/// When the control task was last seen to run. It wakes up several times a second.
#[derive(Debug)]
pub(super) struct Frozen {
    last: Instant,
    /// When the last standstill ended.
    until: Option<Instant>,
}

impl Frozen {
    /// Shorter ones are those of a busy host, and no answer is missed for them.
    pub(super) const SHORTEST: Duration = Duration::from_secs(2);

    pub(super) fn new(now: Instant) -> Self {
        Self {
            last: now,
            until: None,
        }
    }

    /// The task runs; for how long it did not, if that was long.
    pub(super) fn passed(&mut self, now: Instant) -> Option<Duration> {
        let gap = now.saturating_duration_since(std::mem::replace(&mut self.last, now));
        if gap < Self::SHORTEST {
            return None;
        }
        self.until = Some(now);
        Some(gap)
    }

    /// Whether what was begun then has run out of time for that reason.
    pub(super) fn spoilt(&self, begun: Instant) -> bool {
        self.until.is_some_and(|until| begun < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standstill_spoils_what_was_begun_before_its_end() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut frozen = Frozen::new(start);
        assert_eq!(frozen.passed(at(250)), None);
        assert!(!frozen.spoilt(start));
        assert_eq!(frozen.passed(at(12_250)), Some(Duration::from_secs(12)));
        assert!(frozen.spoilt(at(200)) && !frozen.spoilt(at(12_250)));
        assert_eq!(frozen.passed(at(12_500)), None);
    }
}
