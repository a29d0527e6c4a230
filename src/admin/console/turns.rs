//! Whose query is worked on, of all sessions of a process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::super::views::LimitView;

/// Queries that are worked on at the same time: they take the time of nobody else.
const MOST_AT_ONCE: usize = 2;
/// Of them, those of users who give no orders: an operator finds a place.
const MOST_OF_READERS: usize = 1;

/// The turns of a process.
pub(super) static TURNS: Turns = Turns::new();

#[derive(Debug)]
pub(super) struct Turns {
    all: Semaphore,
    readers: Semaphore,
    /// Of users who have a query here and are no operators. Each waits with one query at a time, so
    /// that users take turns however many sessions they have.
    users: Mutex<BTreeMap<String, Weak<Semaphore>>>,
}

/// Given back when it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    _of_all: SemaphorePermit<'a>,
    _of_readers: Option<(SemaphorePermit<'a>, OwnedSemaphorePermit)>,
}

impl Turns {
    const fn new() -> Self {
        Self {
            all: Semaphore::const_new(MOST_AT_ONCE),
            readers: Semaphore::const_new(MOST_OF_READERS),
            users: Mutex::new(BTreeMap::new()),
        }
    }

    /// Waits for the turn of an operator; of a `reader` by its user name.
    pub(super) async fn next(&self, reader: Option<&str>) -> Turn<'_> {
        let of_readers = match reader {
            Some(user) => {
                let own = self.of_user(user).acquire_owned().await.expect(NEVER_CLOSED);
                Some((self.readers.acquire().await.expect(NEVER_CLOSED), own))
            }
            None => None,
        };
        Turn {
            _of_all: self.all.acquire().await.expect(NEVER_CLOSED),
            _of_readers: of_readers,
        }
    }

    fn of_user(&self, user: &str) -> Arc<Semaphore> {
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = users.get(user).and_then(Weak::upgrade) {
            return own;
        }
        users.retain(|_, own| own.strong_count() > 0);
        let own = Arc::new(Semaphore::new(1));
        users.insert(user.to_owned(), Arc::downgrade(&own));
        own
    }

    pub(super) fn limits(&self) -> [LimitView; 2] {
        let of = |name, most: usize, left: &Semaphore| {
            LimitView::new(name, "router", "requests")
                .exactly(most)
                .used(most.saturating_sub(left.available_permits()))
        };
        [
            of("queries of the console", MOST_AT_ONCE, &self.all),
            of(
                "queries of the console of users who are no operators",
                MOST_OF_READERS,
                &self.readers,
            ),
        ]
    }
}

const NEVER_CLOSED: &str = "nobody closes the semaphores";

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, pin_mut};

    use super::*;

    #[test]
    fn readers_leave_a_place_to_operators_and_take_turns_by_user() {
        let turns = Turns::new();
        let first = turns.next(Some("one")).now_or_never();
        assert!(first.is_some());
        // In this order: a user with many sessions, and one with a single one.
        let more = [turns.next(Some("one")), turns.next(Some("one"))];
        let [second, third] = more;
        let other = turns.next(Some("other"));
        pin_mut!(second, third, other);
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none());
        assert!((&mut other).now_or_never().is_none());
        let operator = turns.next(None).now_or_never();
        assert!(operator.is_some(), "no reader has the second place");
        assert!(turns.next(None).now_or_never().is_none(), "there are two");
        drop(first);
        // Which asked later: the first user's next query does not come before it.
        assert!((&mut second).now_or_never().is_none());
        let other = (&mut other).now_or_never();
        assert!(other.is_some());
        drop(other);
        let second = (&mut second).now_or_never();
        assert!(second.is_some());
        drop((second, operator));
        let third = (&mut third).now_or_never();
        assert!(third.is_some());
        assert_eq!(turns.users.lock().map(|users| users.len()).ok(), Some(2));
        // Users who wait no more are not kept.
        drop(third);
        assert!(turns.next(Some("new")).now_or_never().is_some());
        assert_eq!(turns.users.lock().map(|users| users.len()).ok(), Some(1));
    }

    #[test]
    fn who_stops_to_wait_gives_everything_back() {
        let turns = Turns::new();
        let both = (turns.next(None).now_or_never(), turns.next(None).now_or_never());
        {
            let reader = turns.next(Some("one"));
            pin_mut!(reader);
            assert!((&mut reader).now_or_never().is_none());
        }
        drop(both);
        assert!(turns.next(Some("one")).now_or_never().is_some());
    }
}
