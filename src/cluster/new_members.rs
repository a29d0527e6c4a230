//! Limits how many new members a source may list: each one costs a prober, connections, entries in
//! every table and log lines.

use std::time::Duration;

use tokio::time::Instant;

use super::snapshot::Snapshot;
use super::state::{Named, SourceReport};

/// New members at once. A cluster that moves to other hosts has fewer.
const BURST: u32 = 32;
/// Time after which one more is allowed.
const EACH: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct NewMemberLimit {
    allowed: u32,
    since: Instant,
    /// The first list has been seen.
    has_list: bool,
}

impl NewMemberLimit {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            allowed: BURST,
            since: now,
            has_list: false,
        }
    }

    /// Removes the members above the limit from the report, and returns their number. The first
    /// list and the named leader are always accepted.
    pub(super) fn admit(&mut self, report: &mut SourceReport, known: &Snapshot, now: Instant) -> usize {
        if !std::mem::replace(&mut self.has_list, true) {
            return 0;
        }
        let earned = now.saturating_duration_since(self.since).as_secs() / EACH.as_secs();
        if earned > 0 {
            self.since = now;
            let earned = u32::try_from(earned).unwrap_or(BURST);
            self.allowed = self.allowed.saturating_add(earned).min(BURST);
        }
        let before = report.members.len();
        let named = match &report.named {
            Named::One(name) => Some(name),
            Named::Nobody | Named::Several | Named::Mixed => None,
        };
        let allowed = &mut self.allowed;
        report.members.retain(|member| {
            if known.member(&member.name).is_some() || named == Some(&member.name) {
                return true;
            }
            let is_allowed = *allowed > 0;
            *allowed = allowed.saturating_sub(1);
            is_allowed
        });
        before - report.members.len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::cluster::observation::{Observation, SourceKind};
    use crate::cluster::patroni::parse;
    use crate::cluster::state::{Settings, State};
    use crate::config::Placement;

    fn report(names: std::ops::Range<u32>) -> SourceReport {
        let members: Vec<_> = names
            .map(|name| serde_json::json!({"name": format!("m{name}"), "host": "127.0.0.1", "port": 1}))
            .collect();
        parse(serde_json::json!({"members": members}).to_string().as_bytes()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_lists_other_members_each_time_is_followed_slowly() {
        let settings = Settings {
            cluster: "main".into(),
            kind: SourceKind::Patroni,
            rise: 2,
            fall: 3,
            probe_interval: Duration::from_secs(1),
            probe_timeout: Duration::from_secs(1),
            poll_interval: Duration::from_secs(1),
            fast_interval: Duration::from_secs(1),
            placement: Placement::even(),
            limits: std::collections::BTreeMap::new(),
        };
        let mut state = State::new(settings, Instant::now());
        let mut limit = NewMemberLimit::new(Instant::now());
        let mut poll = |from: u32| {
            let mut report = report(from..from + 200);
            let left_out = limit.admit(&mut report, &state.snapshot(), Instant::now());
            state.observe(Observation::Source(report), Instant::now());
            (left_out, state.snapshot().members.len())
        };
        assert_eq!(poll(0), (0, 200), "the first list");
        let mut most = 0;
        for second in 1..=60 {
            tokio::time::advance(Duration::from_secs(1)).await;
            most = poll(second * 1000).1.max(most);
        }
        assert_eq!(most, 32, "at once");
        let (_, later) = poll(100_000);
        assert!(later <= 1, "{later}");
    }
}
