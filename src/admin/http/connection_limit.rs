//! Limits the connections of a listener, in all and of one source, and closes idle ones for new
//! ones.
//!
//! Guarantees: one source, an address or an IPv6 /64, has at most half of the slots. If it needs
//! more, or no slot is free, the connection that has been idle the longest is closed, so that new
//! requests are answered. A new connection is refused only if every slot is answering a request.
//! The log reports both, once a minute. Sources share the thread's time: a few requests of one
//! source are answered at the same time, and the others wait for their turn, in order.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::super::metrics::Metrics;
use crate::auth::login_throttle::network;

/// Between two lines of the log.
const LOG_EVERY: Duration = Duration::from_mins(1);

/// Requests of one source that are answered at the same time.
const TURNS: usize = 4;

/// The slots of one listener. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct ConnectionLimit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    most: usize,
    /// Of one source.
    share: usize,
    what: &'static str,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct State {
    taken: HashMap<u64, Taken>,
    next: u64,
    /// Of the sources that have connections with requests.
    turns: HashMap<IpAddr, Weak<Semaphore>>,
    logged: Option<Instant>,
    /// Connections that were closed or refused since then.
    unlogged: u64,
}

#[derive(Debug)]
struct Taken {
    /// `None`: the balancer has not named its client yet.
    source: Option<IpAddr>,
    /// When its last request was answered, or it was accepted; `None` while a request is being
    /// answered.
    idle: Option<Instant>,
    evict: CancellationToken,
}

/// The slot of one connection; free again when dropped.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    limit: ConnectionLimit,
    number: u64,
    evict: CancellationToken,
}

/// The turns of one source. At most as many requests wait as it has connections: each has one
/// request at a time.
#[derive(Debug)]
pub(super) struct Turns(Arc<Semaphore>);

/// A request that is being answered, until this is dropped.
#[derive(Debug)]
pub(super) struct Answering<'a>(&'a ConnectionSlot);

/// Every slot, or every slot of the source, is answering a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl ConnectionLimit {
    /// `what`: the service, for the log.
    pub(super) fn new(most: usize, what: &'static str, metrics: Metrics) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            most,
            share: most.div_ceil(2),
            what,
            metrics,
        }))
    }

    /// For a connection from `source`; `None` if a balancer has not named its client yet.
    pub(super) fn take(&self, source: Option<IpAddr>) -> Result<ConnectionSlot, Full> {
        let source = source.map(network);
        let mut state = self.state();
        self.make_room(&mut state, source)?;
        let evict = CancellationToken::new();
        let number = state.next;
        state.next += 1;
        state.taken.insert(
            number,
            Taken {
                source,
                idle: Some(Instant::now()),
                evict: evict.clone(),
            },
        );
        Ok(ConnectionSlot {
            limit: self.clone(),
            number,
            evict,
        })
    }

    /// If `source` may have no further slot, closes the connection that has been idle the longest.
    fn make_room(&self, state: &mut State, source: Option<IpAddr>) -> Result<(), Full> {
        let of_source = |taken: &Taken| source.is_some() && taken.source == source;
        let has_share = state.taken.values().filter(|taken| of_source(taken)).count() >= self.0.share;
        if !has_share && state.taken.len() < self.0.most {
            return Ok(());
        }
        let longest = state
            .taken
            .iter()
            .filter(|(_, taken)| !has_share || of_source(taken))
            .filter_map(|(number, taken)| Some((taken.idle?, *number)))
            .min();
        let left = longest.and_then(|(_, number)| state.taken.remove(&number));
        match &left {
            Some(left) => {
                left.evict.cancel();
                self.0.metrics.evicted.inc();
            }
            None => {
                self.0.metrics.refused.inc();
            }
        }
        self.log(state, has_share, source);
        left.map(drop).ok_or(Full)
    }

    fn log(&self, state: &mut State, has_share: bool, source: Option<IpAddr>) {
        state.unlogged += 1;
        if state.logged.is_some_and(|at| at.elapsed() < LOG_EVERY) {
            return;
        }
        state.logged = Some(Instant::now());
        let connections = std::mem::take(&mut state.unlogged);
        let what = self.0.what;
        let by = source.map_or_else(|| "-".to_owned(), |source| source.to_string());
        if has_share {
            tracing::warn!(
                %by, connections, most = self.0.share,
                "{what}: one address has all the connections that it may have; the longest idle ones close"
            );
        } else {
            tracing::warn!(
                %by, connections, most = self.0.most,
                "{what}: all connections are in use; the longest idle ones close"
            );
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionSlot {
    /// Counts the connection for `source`, which a balancer has named.
    pub(super) fn attribute(&self, source: IpAddr) -> Result<(), Full> {
        let mut state = self.limit.state();
        // The connection moves to the new source, and is not one more in all.
        let Some(taken) = state.taken.remove(&self.number) else {
            return Err(Full);
        };
        let source = Some(network(source));
        self.limit.make_room(&mut state, source)?;
        state.taken.insert(self.number, Taken { source, ..taken });
        Ok(())
    }

    /// The turns of a source: a client, or the client that a balancer has named.
    pub(super) fn turns(&self, source: IpAddr) -> Turns {
        let source = network(source);
        let mut state = self.limit.state();
        if let Some(turns) = state.turns.get(&source).and_then(Weak::upgrade) {
            return Turns(turns);
        }
        // Sources without connections.
        state.turns.retain(|_, turns| turns.strong_count() > 0);
        let turns = Arc::new(Semaphore::new(TURNS));
        state.turns.insert(source, Arc::downgrade(&turns));
        Turns(turns)
    }

    /// Until a new connection needs the slot.
    pub(super) async fn evicted(&self) {
        self.evict.cancelled().await;
    }

    /// The connection is not idle until the value is dropped.
    pub(super) fn answering(&self) -> Answering<'_> {
        self.set(None);
        Answering(self)
    }

    fn set(&self, idle: Option<Instant>) {
        if let Some(taken) = self.limit.state().taken.get_mut(&self.number) {
            taken.idle = idle;
        }
    }
}

impl Turns {
    /// In order of arrival; the turn ends when it is dropped. First the thread looks for other
    /// requests. `None` never happens: the semaphore stays open.
    pub(super) async fn take(&self) -> Option<SemaphorePermit<'_>> {
        let turn = self.0.acquire().await.ok();
        tokio::task::yield_now().await;
        turn
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.set(Some(Instant::now()));
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.limit.state().taken.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::time::advance;

    use super::*;

    fn slots(most: usize) -> ConnectionLimit {
        ConnectionLimit::new(most, "HTTP", Metrics::default())
    }

    fn ip(address: &str) -> IpAddr {
        address.parse().unwrap()
    }

    async fn taken(slots: &ConnectionLimit, source: Option<IpAddr>) -> ConnectionSlot {
        advance(Duration::from_secs(1)).await;
        slots.take(source).unwrap()
    }

    fn leaves(slot: &ConnectionSlot) -> bool {
        slot.evict.is_cancelled()
    }

    #[tokio::test(start_paused = true)]
    async fn one_source_has_half_and_its_longest_idle_makes_room() {
        let slots = slots(4);
        // The same /64, as everywhere.
        let (first, second) = (Some(ip("2001:db8::1")), Some(ip("2001:db8::2")));
        let a = taken(&slots, first).await;
        let b = taken(&slots, second).await;
        let other = taken(&slots, Some(ip("10.0.0.1"))).await;
        let c = taken(&slots, first).await;
        assert!(leaves(&a) && !leaves(&b) && !leaves(&other));
        // A request that is being answered stays, and counts as new afterwards.
        let answering = b.answering();
        let d = taken(&slots, first).await;
        assert!(leaves(&c) && !leaves(&b));
        advance(Duration::from_secs(1)).await;
        drop(answering);
        let _e = taken(&slots, second).await;
        assert!(leaves(&d) && !leaves(&b), "answered last");
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_are_taken_the_longest_idle_of_all_makes_room() {
        let slots = slots(2);
        let a = taken(&slots, Some(ip("10.0.0.1"))).await;
        let b = taken(&slots, Some(ip("10.0.0.2"))).await;
        let c = taken(&slots, Some(ip("10.0.0.3"))).await;
        assert!(leaves(&a) && !leaves(&b));
        let _busy = (b.answering(), c.answering());
        assert_eq!(slots.take(Some(ip("10.0.0.4"))).unwrap_err(), Full);
        assert!(!leaves(&b) && !leaves(&c));
        drop(a);
        assert!(
            slots.take(Some(ip("10.0.0.4"))).is_err(),
            "its slot is somebody else's"
        );
        assert_eq!(slots.0.metrics.evicted.get(), 1);
        assert_eq!(slots.0.metrics.refused.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn one_source_has_a_few_turns_and_nobody_else_waits_for_them() {
        let slots = slots(8);
        let first = slots.take(Some(ip("2001:db8::1"))).unwrap();
        let second = slots.take(Some(ip("2001:db8::2"))).unwrap();
        let (turns, same) = (first.turns(ip("2001:db8::1")), second.turns(ip("2001:db8::2")));
        let mut taken = Vec::new();
        for _ in 0..TURNS {
            taken.push(turns.take().await);
        }
        let mut waiting = std::pin::pin!(same.take());
        let second_later = tokio::time::timeout(Duration::from_secs(1), waiting.as_mut());
        assert!(second_later.await.is_err(), "it waits");
        // Others have their own.
        let other = second.turns(ip("10.0.0.1"));
        assert!(other.take().await.is_some());
        taken.pop();
        assert!(waiting.await.is_some());
        drop(taken);
        // Sources with connections are kept.
        drop(other);
        let _third = second.turns(ip("10.0.0.2"));
        assert_eq!(slots.state().turns.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn behind_a_balancer_it_counts_for_whom_that_names() {
        let slots = slots(4);
        let client: IpAddr = "10.0.0.1".parse().unwrap();
        let mut all = Vec::new();
        for _ in 0..3 {
            let slot = taken(&slots, None).await;
            slot.attribute(client).unwrap();
            all.push(slot);
        }
        assert!(leaves(&all[0]) && !leaves(&all[1]) && !leaves(&all[2]));
        let busy: Vec<_> = all[1..].iter().map(ConnectionSlot::answering).collect();
        let slot = taken(&slots, None).await;
        assert_eq!(slot.attribute(client), Err(Full));
        drop(busy);
    }
}
