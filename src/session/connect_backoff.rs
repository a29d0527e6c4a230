//! Members that could not be connected to lately. A probe's standing connection may go on working where new ones are
//! refused or go unanswered, and such a member has the fewest sessions of all: without memory it would attract
//! every next one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::snapshot::MemberName;

/// How long others are preferred after a failed attempt; then one session tries again, and the next ones wait for
/// what comes of it.
const AVOIDED: Duration = Duration::from_secs(10);
/// Longer than this nobody has wanted it; it may be gone.
const FORGOTTEN: Duration = Duration::from_mins(10);

/// By cluster and member, until when it is avoided. Entries are there for members that failed last time only.
#[derive(Debug, Default)]
pub(super) struct ConnectBackoff(Mutex<HashMap<(Arc<str>, MemberName), Instant>>);

impl ConnectBackoff {
    /// Others are to be preferred.
    pub(super) fn is_backing_off(&self, cluster: &Arc<str>, member: &MemberName) -> bool {
        let places = self.lock();
        // Nearly always there is none at all.
        !places.is_empty()
            && places
                .get(&(Arc::clone(cluster), member.clone()))
                .is_some_and(|until| Instant::now() < *until)
    }

    /// A session is about to connect to it. If it failed last time, the others keep away until this is decided.
    pub(super) fn trying(&self, cluster: &Arc<str>, member: &MemberName) {
        let mut places = self.lock();
        if !places.is_empty()
            && let Some(until) = places.get_mut(&(Arc::clone(cluster), member.clone()))
        {
            *until = Instant::now() + AVOIDED;
        }
    }

    /// It could not be connected to.
    pub(super) fn failed(&self, cluster: &Arc<str>, member: &MemberName) {
        let now = Instant::now();
        let mut places = self.lock();
        places.retain(|_, until| now.saturating_duration_since(*until) < FORGOTTEN);
        places.insert((Arc::clone(cluster), member.clone()), now + AVOIDED);
    }

    /// It answered as a server does.
    pub(super) fn answered(&self, cluster: &Arc<str>, member: &MemberName) {
        let mut places = self.lock();
        if !places.is_empty() {
            places.remove(&(Arc::clone(cluster), member.clone()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Arc<str>, MemberName), Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_a_failure_one_session_at_a_time_tries_again() {
        let (trouble, cluster, db1) = (ConnectBackoff::default(), "main".into(), MemberName::new("db1"));
        assert!(!trouble.is_backing_off(&cluster, &db1));
        trouble.trying(&cluster, &db1);
        assert!(!trouble.is_backing_off(&cluster, &db1), "it has not failed");
        trouble.failed(&cluster, &db1);
        assert!(trouble.is_backing_off(&cluster, &db1));
        assert!(
            !trouble.is_backing_off(&"other".into(), &db1),
            "another cluster's"
        );
        tokio::time::advance(AVOIDED).await;
        assert!(!trouble.is_backing_off(&cluster, &db1), "its turn to be tried");
        trouble.trying(&cluster, &db1);
        assert!(trouble.is_backing_off(&cluster, &db1), "by one session");
        trouble.answered(&cluster, &db1);
        assert!(!trouble.is_backing_off(&cluster, &db1));
    }
}
