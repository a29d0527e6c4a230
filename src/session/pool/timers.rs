//! The time limits of one lease: on a request, a transaction, and on waiting for the client while a
//! server connection waits with it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::config::PoolLimits;

/// What a session is doing with its server connection, as far as time limits tell it apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// Between two transactions.
    Nothing,
    /// The server works on a request.
    Request,
    /// A transaction is open, and the server waits for the client.
    IdleTransaction,
    /// A batch of the extended protocol is open: the client has not sent its Sync.
    OpenBatch,
    /// The client sends the data of a COPY, for which it may take its time.
    Copying,
}

/// A limit that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expired {
    /// `query_timeout`: the request is to be cancelled. Reported once for each request.
    Request,
    /// `transaction_timeout`.
    Transaction,
    /// `idle_transaction_timeout`.
    IdleTransaction,
    /// `batch_timeout`.
    Batch,
}

/// See the module. Without any limit it costs one comparison and one word.
#[derive(Debug)]
pub(super) struct Timers {
    limited: Option<Box<Limited>>,
}

/// The limits of a session that has any, and how far they are used up.
#[derive(Debug)]
struct Limited {
    request: Option<Duration>,
    transaction: Option<Duration>,
    idle_transaction: Option<Duration>,
    batch: Option<Duration>,
    doing: Doing,
    since: Instant,
    /// When the transaction, or the request outside one, began.
    began: Option<Instant>,
    is_reported: bool,
    /// Runs to some deadline; it is set anew only when it has run out, so that a transaction costs
    /// no timer.
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timers {
    pub(super) fn new(limits: &PoolLimits) -> Self {
        let limited = Limited {
            request: limits.query_timeout,
            transaction: limits.transaction_timeout,
            idle_transaction: limits.idle_transaction_timeout,
            batch: limits.batch_timeout,
            doing: Doing::Nothing,
            since: Instant::now(),
            began: None,
            is_reported: false,
            sleep: None,
        };
        Self {
            limited: limited.has_any().then(|| Box::new(limited)),
        }
    }

    /// Whether there is any limit.
    pub(super) fn are_set(&self) -> bool {
        self.limited.is_some()
    }

    /// What the session does from now on. `is_new`: its time begins anew.
    pub(super) fn set(&mut self, doing: Doing, is_new: bool) {
        if let Some(limited) = &mut self.limited {
            limited.set(doing, is_new);
        }
    }

    /// `query_timeout` has cancelled the request that is under way.
    pub(super) fn has_cancelled(&self) -> bool {
        self.limited.as_ref().is_some_and(|limited| limited.is_reported)
    }

    /// The lease is over.
    pub(super) fn stop(&mut self) {
        self.set(Doing::Nothing, false);
    }

    /// The limit that is over now. Pending, and woken in time, if there is one to come.
    pub(super) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<Expired> {
        match &mut self.limited {
            Some(limited) => limited.poll_expired(cx),
            None => Poll::Pending,
        }
    }
}

impl Limited {
    fn has_any(&self) -> bool {
        let all = [self.request, self.transaction, self.idle_transaction, self.batch];
        all.iter().any(Option::is_some)
    }

    fn set(&mut self, doing: Doing, is_new: bool) {
        if doing == self.doing && !is_new {
            return;
        }
        let now = Instant::now();
        (self.doing, self.since, self.is_reported) = (doing, now, false);
        self.began = match doing {
            Doing::Nothing => None,
            _ => self.began.or(Some(now)),
        };
    }

    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<Expired> {
        if self.doing == Doing::Nothing {
            return Poll::Pending;
        }
        loop {
            let Some((deadline, expired)) = self.next() else {
                return Poll::Pending;
            };
            if deadline <= Instant::now() {
                self.is_reported |= expired == Expired::Request;
                return Poll::Ready(expired);
            }
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            if sleep.deadline() > deadline || sleep.is_elapsed() {
                sleep.as_mut().reset(deadline);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn next(&self) -> Option<(Instant, Expired)> {
        let (limit, expired) = match self.doing {
            Doing::Nothing => return None,
            Doing::Request => (None, Expired::Request),
            Doing::IdleTransaction => (self.idle_transaction, Expired::IdleTransaction),
            Doing::OpenBatch => (self.batch, Expired::Batch),
            Doing::Copying => (None, Expired::Batch),
        };
        let own = limit.map(|limit| (self.since + limit, expired));
        // In an open batch the server may work on a statement, too.
        let is_request = matches!(self.doing, Doing::Request | Doing::OpenBatch) && !self.is_reported;
        let request = self.request.filter(|_| is_request);
        let request = request.map(|limit| (self.since + limit, Expired::Request));
        let whole = self.began.zip(self.transaction);
        let whole = whole.map(|(began, limit)| (began + limit, Expired::Transaction));
        let all = own.into_iter().chain(request).chain(whole);
        all.min_by_key(|(deadline, _)| *deadline)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::future::poll_fn;

    use tokio::time::timeout;

    use super::*;

    fn timers(seconds: [u64; 4]) -> Timers {
        let limit = |at: usize| (seconds[at] > 0).then(|| Duration::from_secs(seconds[at]));
        let limited = Limited {
            request: limit(0),
            transaction: limit(1),
            idle_transaction: limit(2),
            batch: limit(3),
            doing: Doing::Nothing,
            since: Instant::now(),
            began: None,
            is_reported: false,
            sleep: None,
        };
        Timers {
            limited: limited.has_any().then(|| Box::new(limited)),
        }
    }

    /// The limit that is over first, and after how many seconds, within a minute.
    async fn first(timers: &mut Timers) -> Option<(Expired, u64)> {
        let begun = Instant::now();
        let expired = timeout(Duration::from_mins(1), poll_fn(|cx| timers.poll_expired(cx))).await;
        expired.ok().map(|expired| (expired, begun.elapsed().as_secs()))
    }

    #[tokio::test(start_paused = true)]
    async fn each_limit_counts_in_its_own_state() {
        // Of a batch: below.
        for (doing, expected) in [
            (Doing::Nothing, None),
            (Doing::Request, Some((Expired::Request, 3))),
            (Doing::IdleTransaction, Some((Expired::IdleTransaction, 5))),
            (Doing::OpenBatch, Some((Expired::Request, 3))),
            (Doing::Copying, Some((Expired::Transaction, 11))),
        ] {
            let mut timers = timers([3, 11, 5, 7]);
            timers.set(doing, true);
            assert_eq!(first(&mut timers).await, expected, "{doing:?}");
        }
        let mut none = timers([0; 4]);
        none.set(Doing::Request, true);
        assert_eq!(first(&mut none).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_is_reported_once_and_the_transaction_goes_on_counting() {
        let mut timers = timers([3, 10, 0, 0]);
        timers.set(Doing::Request, true);
        assert_eq!(first(&mut timers).await, Some((Expired::Request, 3)));
        assert_eq!(first(&mut timers).await, Some((Expired::Transaction, 7)));
        timers.stop();
        timers.set(Doing::Request, true);
        assert_eq!(first(&mut timers).await, Some((Expired::Request, 3)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_from_the_client_begins_the_batch_s_time_anew() {
        let mut timers = timers([0, 0, 0, 7]);
        timers.set(Doing::OpenBatch, true);
        tokio::time::advance(Duration::from_secs(5)).await;
        timers.set(Doing::OpenBatch, true);
        assert_eq!(first(&mut timers).await, Some((Expired::Batch, 7)));
        timers.set(Doing::OpenBatch, false);
        assert_eq!(first(&mut timers).await, Some((Expired::Batch, 0)));
    }
}
