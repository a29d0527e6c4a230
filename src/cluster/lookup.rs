//! Look-ups of verifiers and memberships by the service account, for sessions on other threads.
//!
//! Guarantees:
//!
//! - A look-up goes to the leader first, otherwise to a replica that is up, and ends within its
//!   deadline.
//! - An answer comes from a query that began after the login asked, so it includes every change
//!   made before the login.
//! - Answers are remembered, but used only if the query fails or takes longer than
//!   [`CONFIRM_WITHIN`], and then marked as [unconfirmed](crate::auth::lookup).
//! - At most one query runs for a user, and all logins that ask meanwhile share the next one, so
//!   the number of logins does not increase the cost. Known and unknown users cost the same
//!   queries.
//! - Connections are in a limited pool for each member, and are checked before use. Every wait is
//!   limited.
//! - An outage never counts as an unknown user. Probes are not delayed, since they have separate
//!   connections.
//!
//! A user's name can only be a value in the query.

mod ask;
mod pools;
mod question;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

pub(super) use self::ask::once;
pub(super) use self::pools::Pools;
pub use self::question::Query;
use self::question::Question;
pub(super) use self::question::{MembershipsQuery, StandingQuery};
use super::metrics::{LookUpResult, Metrics};
use crate::auth;
use crate::auth::lookup::{AnswerCache, Cached, LookupAnswer, MAX_NAME};

/// Limit of look-ups that wait in the queue.
const MAX_WAITING: usize = 1024;
/// Limit of users that are looked up at the same time.
const MAX_IN_FLIGHT: usize = 256;
/// How long a login waits until a remembered answer is confirmed. The query itself continues.
const CONFIRM_WITHIN: Duration = Duration::from_millis(250);
/// Minimum interval of warnings about failed look-ups.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Why a look-up gave no answer. The client gets 57P03, never 28P01.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// Verifiers come from a file.
    #[error("no query is configured for verifiers")]
    NotConfigured,
    #[error("too many look-ups are waiting")]
    Busy,
    #[error("the look-up was not answered in time")]
    Timeout,
    #[error("no member could answer the look-up: {0}")]
    Unavailable(String),
    /// The server refused the query: a missing function or right.
    #[error("the look-up query failed: {0}")]
    Query(String),
    /// A login failed against a remembered answer, or depended on it alone, and no server could
    /// confirm that the answer is still valid.
    #[error("a remembered answer could not be confirmed")]
    Unconfirmed,
    #[error("the router is shutting down")]
    Stopped,
}

/// What a user's login is checked against; `None` for a user that cannot log in.
pub type Lookup = Option<auth::Identity>;

type Asked<F> = Result<LookupAnswer<F>, LookupError>;

struct LookupRequest<F> {
    user: Vec<u8>,
    answer: oneshot::Sender<Asked<F>>,
}

/// A waiting caller.
struct Waiter<F> {
    since: Instant,
    answer: oneshot::Sender<Asked<F>>,
}

/// Sends look-ups from any thread and runtime.
#[derive(Debug)]
pub(super) struct Lookups<F> {
    requests: mpsc::Sender<LookupRequest<F>>,
}

impl<F: Default> Lookups<F> {
    pub(super) async fn ask(&self, user: &[u8], deadline: Instant) -> Asked<F> {
        // PostgreSQL cannot have such a user, and the query could not contain its name.
        if user.is_empty() || user.len() > MAX_NAME || user.contains(&0) {
            return Ok(LookupAnswer::confirmed(F::default()));
        }
        let (answer, answered) = oneshot::channel();
        self.requests
            .try_send(LookupRequest {
                user: user.to_vec(),
                answer,
            })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => LookupError::Busy,
                mpsc::error::TrySendError::Closed(_) => LookupError::Stopped,
            })?;
        match timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(LookupError::Stopped),
            Err(_) => Err(LookupError::Timeout),
        }
    }
}

/// The task that answers one kind of look-up. It runs on the control runtime.
pub(super) struct Service<Q: Question> {
    requests: mpsc::Receiver<LookupRequest<Q::Found>>,
    pools: Arc<Pools>,
    question: Arc<Q>,
    metrics: Arc<Metrics>,
    cache: AnswerCache<Q::Found>,
    in_flight: HashMap<Vec<u8>, InFlight<Q::Found>>,
    /// The users whose callers wait for a confirmation, and until when; the earliest first.
    late: VecDeque<(Instant, Vec<u8>)>,
    /// When a failure was last logged, and how many were left out since.
    warned: Option<Instant>,
    left_out: u64,
}

/// A query about one user.
struct InFlight<F> {
    asked: Instant,
    /// Callers that asked before the query began.
    waiting: Vec<Waiter<F>>,
    /// Callers that asked since. The running query may miss later changes, so another query follows
    /// for them.
    next: Vec<Waiter<F>>,
}

type Running<F> = JoinSet<(Vec<u8>, Result<F, LookupError>)>;

pub(super) fn service<Q: Question>(
    question: Q,
    pools: Arc<Pools>,
    metrics: Arc<Metrics>,
) -> (Lookups<Q::Found>, Service<Q>) {
    let (sender, requests) = mpsc::channel(MAX_WAITING);
    let service = Service {
        requests,
        pools,
        cache: AnswerCache::new(question.ttl(), Q::CAPACITY),
        question: Arc::new(question),
        metrics,
        in_flight: HashMap::new(),
        late: VecDeque::new(),
        warned: None,
        left_out: 0,
    };
    (Lookups { requests: sender }, service)
}

impl<Q: Question> Service<Q> {
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut running = Running::new();
        loop {
            let late = self.late.front().map(|(at, _)| *at);
            tokio::select! {
                () = stop.cancelled() => return self.pools.close().await,
                Some(done) = running.join_next() => {
                    if let Ok((user, answer)) = done {
                        self.finish(user, &answer, &mut running);
                    }
                    if running.is_empty() {
                        // After a panic in a task no caller must keep waiting.
                        self.in_flight.clear();
                    }
                }
                () = sleep_until(late.unwrap_or_else(Instant::now)), if late.is_some() => self.answer_late(),
                request = self.requests.recv() => match request {
                    Some(LookupRequest { user, answer }) => self.begin(user, answer, &mut running),
                    None => return self.pools.close().await,
                },
            }
        }
    }

    fn begin(
        &mut self,
        user: Vec<u8>,
        answer: oneshot::Sender<Asked<Q::Found>>,
        running: &mut Running<Q::Found>,
    ) {
        let now = Instant::now();
        let waiter = Waiter { since: now, answer };
        let remembered = match self.cache.get(&user, now) {
            Cached::Tried(found) => return self.answer_remembered(waiter, LookupAnswer::unconfirmed(found)),
            Cached::Known(found) => Some(LookupAnswer::unconfirmed(found)),
            Cached::Miss => None,
        };
        if let Some(flight) = self.in_flight.get_mut(&user) {
            if now >= flight.asked + CONFIRM_WITHIN
                && let Some(answer) = remembered
            {
                return self.answer_remembered(waiter, answer);
            }
            flight.next.retain(|other| !other.answer.is_closed());
            flight.next.push(waiter);
            if remembered.is_some() {
                self.late.push_back((now + CONFIRM_WITHIN, user));
            }
            return;
        }
        if running.len() >= MAX_IN_FLIGHT {
            match remembered {
                Some(answer) => self.answer_remembered(waiter, answer),
                None => drop(waiter.answer.send(Err(LookupError::Busy))),
            }
            return;
        }
        if remembered.is_some() {
            self.late.push_back((now + CONFIRM_WITHIN, user.clone()));
        }
        self.query(user, vec![waiter], now, running);
    }

    fn query(
        &mut self,
        user: Vec<u8>,
        waiting: Vec<Waiter<Q::Found>>,
        asked: Instant,
        running: &mut Running<Q::Found>,
    ) {
        self.in_flight.insert(
            user.clone(),
            InFlight {
                asked,
                waiting,
                next: Vec::new(),
            },
        );
        let pools = self.pools.in_order();
        let question = Arc::clone(&self.question);
        let deadline = asked + self.pools.account().config.service_account.timeout;
        running.spawn(async move {
            let answer = ask::look_up(&user, &*question, pools, deadline).await;
            (user, answer)
        });
    }

    fn finish(
        &mut self,
        user: Vec<u8>,
        answer: &Result<Q::Found, LookupError>,
        running: &mut Running<Q::Found>,
    ) {
        let Some(flight) = self.in_flight.remove(&user) else {
            return;
        };
        let now = Instant::now();
        match answer {
            Ok(found) => {
                self.count(if Q::is_known(found) {
                    LookUpResult::Found
                } else {
                    LookUpResult::NotFound
                });
                self.cache
                    .put(&user, found.clone(), Q::weight(found), flight.asked);
            }
            Err(error) => {
                self.count(LookUpResult::Failed);
                self.warn(error, now);
                self.cache.not_confirmed(&user, now);
            }
        }
        for waiter in flight.waiting {
            match answer {
                Ok(found) => {
                    let _ = waiter.answer.send(Ok(LookupAnswer::confirmed(found.clone())));
                }
                Err(error) => match self.cache.get(&user, now).unconfirmed() {
                    Some(answer) => self.answer_remembered(waiter, answer),
                    None => drop(waiter.answer.send(Err(error.clone()))),
                },
            }
        }
        if !flight.next.is_empty() {
            self.query(user, flight.next, now, running);
        }
    }

    /// Callers that have waited long enough for a confirmation get the remembered answer, if there
    /// still is one.
    fn answer_late(&mut self) {
        let now = Instant::now();
        while let Some((_, user)) = self.late.pop_front_if(|(at, _)| *at <= now) {
            let Some(flight) = self.in_flight.get_mut(&user) else {
                continue;
            };
            let Some(answer) = self.cache.get(&user, now).unconfirmed() else {
                continue;
            };
            let is_late = |waiter: &mut Waiter<Q::Found>| waiter.since + CONFIRM_WITHIN <= now;
            let mut late: Vec<_> = flight.waiting.extract_if(.., is_late).collect();
            late.extend(flight.next.extract_if(.., is_late));
            for waiter in late {
                self.answer_remembered(waiter, answer.clone());
            }
        }
    }

    fn answer_remembered(&self, waiter: Waiter<Q::Found>, answer: LookupAnswer<Q::Found>) {
        self.count(LookUpResult::Cached);
        let _ = waiter.answer.send(Ok(answer));
    }

    fn count(&self, result: LookUpResult) {
        if !Q::IS_COUNTED {
            return;
        }
        self.metrics.looked_up(&self.pools.account().config.name, result);
    }

    /// During an outage every login causes this failure, and anyone can cause logins, so the rate
    /// is limited.
    fn warn(&mut self, error: &LookupError, now: Instant) {
        let is_due = self
            .warned
            .is_none_or(|at| now.saturating_duration_since(at) >= WARN_EVERY);
        if is_due {
            let cluster = &self.pools.account().config.name;
            let left_out = std::mem::take(&mut self.left_out);
            self.warned = Some(now);
            tracing::warn!(%cluster, %error, left_out, "{} could not be looked up", Q::WHAT);
        } else {
            self.left_out += 1;
        }
    }
}

#[cfg(test)]
#[path = "lookup_tests.rs"]
mod tests;
