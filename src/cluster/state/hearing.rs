//! Whether this router hears from the cluster at all: a router that is cut off must not keep
//! clients waiting for a failover that it would not see.
//!
//! It hears from the cluster while, within [`HEARD`], a poll of Patroni had a usable answer, a
//! probe had any answer (also a refusal: the host is there), or the watch on the DCS showed the
//! leader key. Before that time is over, everything is asked again, so that one rare or late source
//! does not decide.
//!
//! If neither polls nor probes are as frequent as that, what was heard last counts until the next
//! look of the same source has failed.

use std::time::Duration;

use tokio::time::Instant;

use super::{FailureKind, ProbeError, ProbeFacts, SourceKind, State};

/// How long an answer counts. Together with the interval at which the state is updated it is below
/// two seconds.
const HEARD: Duration = Duration::from_millis(1600);
/// Everything is asked again after this time without an answer: longer than the longest interval of
/// ordinary polls and probes.
const ASK: Duration = Duration::from_millis(1200);
/// The longest interval at which polls or probes are frequent enough to decide by time.
const FREQUENT: Duration = Duration::from_secs(1);

/// Whether the member, or its host, has answered a probe.
pub(super) fn is_answer(result: &Result<ProbeFacts, ProbeError>) -> bool {
    match result {
        Ok(_) => true,
        Err(error) => match error.kind {
            FailureKind::Certain | FailureKind::Full => true,
            FailureKind::Counts => error.check.is_answered(),
            FailureKind::NotTried => false,
        },
    }
}

impl State {
    fn is_frequent(&self) -> bool {
        let settings = &self.settings;
        settings.poll_interval.min(settings.probe_interval) <= FREQUENT
    }

    pub(super) fn hears(&self, now: Instant) -> bool {
        let is_fresh = |at: Instant| now.saturating_duration_since(at) <= HEARD;
        if self.is_frequent() || self.heard.is_some_and(is_fresh) {
            return self.heard.is_some_and(is_fresh);
        }
        self.settings.kind == SourceKind::Patroni && self.source.reachable
            || self.key.is_live()
            || self.members.values().any(|member| member.answers)
    }

    /// Asks everything once more before the last answer is too old.
    pub(super) fn listen(&mut self, now: Instant) {
        let age = self.heard.map(|at| now.saturating_duration_since(at));
        if !self.is_frequent() || age.is_none_or(|age| age <= ASK || age > HEARD) {
            return;
        }
        self.wants.poll = true;
        self.wants.check_key |= self.key.is_live();
        self.wants.probe.extend(self.members.keys().cloned());
    }
}

#[cfg(test)]
#[path = "hearing_tests.rs"]
mod tests;
