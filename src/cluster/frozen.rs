//! Detects that this process was frozen (SIGSTOP, a suspended virtual machine, an overloaded host).

use std::time::Duration;

use tokio::time::Instant;

/// When the control task last ran. It wakes up several times a second.
#[derive(Debug)]
pub(super) struct Frozen {
    last: Instant,
    /// When the last freeze ended.
    until: Option<Instant>,
}

impl Frozen {
    /// Shorter gaps happen on a busy host, and no answer is missed because of them.
    pub(super) const SHORTEST: Duration = Duration::from_secs(2);

    pub(super) fn new(now: Instant) -> Self {
        Self {
            last: now,
            until: None,
        }
    }

    /// Records that the task runs. Returns how long it did not run, if that was a freeze.
    pub(super) fn passed(&mut self, now: Instant) -> Option<Duration> {
        let gap = now.saturating_duration_since(std::mem::replace(&mut self.last, now));
        if gap < Self::SHORTEST {
            return None;
        }
        self.until = Some(now);
        Some(gap)
    }

    /// Whether an operation begun at `begun` may have run out of time because of a freeze.
    pub(super) fn was_frozen_since(&self, begun: Instant) -> bool {
        self.until.is_some_and(|until| begun < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freeze_affects_operations_begun_before_its_end() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut frozen = Frozen::new(start);
        assert_eq!(frozen.passed(at(250)), None);
        assert!(!frozen.was_frozen_since(start));
        assert_eq!(frozen.passed(at(12_250)), Some(Duration::from_secs(12)));
        assert!(frozen.was_frozen_since(at(200)) && !frozen.was_frozen_since(at(12_250)));
        assert_eq!(frozen.passed(at(12_500)), None);
    }
}
