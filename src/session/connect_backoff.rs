//! Members to which a connection failed lately. A probe's standing connection may still work while
//! the member refuses or does not answer new ones. Such a member has the fewest sessions, so
//! without this memory it would attract every new session. Pure: the caller passes the time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::occupancy::MemberKey;
use crate::cluster::snapshot::MemberName;

/// How long sessions prefer other members after a failed attempt. Then one session tries again, and
/// the others wait for its result.
const AVOIDED: Duration = Duration::from_secs(10);
/// A member that no session has tried for longer than this is forgotten: it may not exist any more.
const FORGOTTEN: Duration = Duration::from_mins(10);

/// Until when each member is avoided. Only members whose last attempt failed have an entry.
#[derive(Debug, Default)]
pub(super) struct ConnectBackoff(HashMap<MemberKey, Instant>);

impl ConnectBackoff {
    /// Whether sessions prefer other members now.
    pub(super) fn is_backing_off(&self, cluster: &Arc<str>, member: &MemberName, now: Instant) -> bool {
        // Nearly always there is no entry at all.
        !self.0.is_empty()
            && self
                .0
                .get(&(Arc::clone(cluster), member.clone()))
                .is_some_and(|until| now < *until)
    }

    /// A session is about to connect to the member. If the last attempt failed, other sessions
    /// avoid the member until this one has a result.
    pub(super) fn connecting(&mut self, cluster: &Arc<str>, member: &MemberName, now: Instant) {
        if !self.0.is_empty()
            && let Some(until) = self.0.get_mut(&(Arc::clone(cluster), member.clone()))
        {
            *until = now + AVOIDED;
        }
    }

    /// A connection to the member failed.
    pub(super) fn failed(&mut self, cluster: &Arc<str>, member: &MemberName, now: Instant) {
        self.0
            .retain(|_, until| now.saturating_duration_since(*until) < FORGOTTEN);
        self.0
            .insert((Arc::clone(cluster), member.clone()), now + AVOIDED);
    }

    /// The member answered like a server.
    pub(super) fn answered(&mut self, cluster: &Arc<str>, member: &MemberName) {
        if !self.0.is_empty() {
            self.0.remove(&(Arc::clone(cluster), member.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_failure_one_session_at_a_time_tries_again() {
        let (mut backoff, cluster, db1) = (ConnectBackoff::default(), "main".into(), MemberName::new("db1"));
        let mut now = Instant::now();
        assert!(!backoff.is_backing_off(&cluster, &db1, now));
        backoff.connecting(&cluster, &db1, now);
        assert!(!backoff.is_backing_off(&cluster, &db1, now), "it has not failed");
        backoff.failed(&cluster, &db1, now);
        assert!(backoff.is_backing_off(&cluster, &db1, now));
        assert!(
            !backoff.is_backing_off(&"other".into(), &db1, now),
            "a member of another cluster"
        );
        now += AVOIDED;
        assert!(
            !backoff.is_backing_off(&cluster, &db1, now),
            "one session may try it"
        );
        backoff.connecting(&cluster, &db1, now);
        assert!(backoff.is_backing_off(&cluster, &db1, now), "only one session");
        backoff.answered(&cluster, &db1);
        assert!(!backoff.is_backing_off(&cluster, &db1, now));
    }
}
