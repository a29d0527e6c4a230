//! The orders of this process that hold clients, while they run.
//!
//! Only the process that was given an order can go on with it. So no other process takes the place
//! of this one meanwhile, and a process that ends undoes what can be undone, and goes on with the
//! rest until that is over. Each order has a time limit of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::supervisor::{ENDING, REPLACED};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct RunningOrders {
    state: watch::Sender<State>,
    /// The router shuts down.
    ending: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    running: BTreeMap<u64, Order>,
    /// Another process takes the place of this one.
    is_replaced: bool,
}

#[derive(Debug)]
struct Order {
    what: String,
    until: Instant,
}

/// One of them; it is over when this is dropped.
#[derive(Debug)]
pub(super) struct RunningOrder {
    orders: Arc<RunningOrders>,
    number: u64,
}

impl RunningOrders {
    /// An order is given, which ends by then. `what`: a sentence.
    pub(super) fn begin(self: &Arc<Self>, what: String, until: Instant) -> RunningOrder {
        let mut number = 0;
        self.state.send_modify(|state| {
            state.last += 1;
            number = state.last;
            state.running.insert(number, Order { what, until });
        });
        RunningOrder {
            orders: Arc::clone(self),
            number,
        }
    }

    /// As [`Self::begin`], for one that can be given to another process as well.
    ///
    /// # Errors
    /// This process takes none any more.
    pub(super) fn begin_if_staying(
        self: &Arc<Self>,
        what: String,
        until: Instant,
    ) -> Result<RunningOrder, String> {
        let order = self.begin(what, until);
        // Behind the entry: whoever replaces this process sees it, or has said so before.
        if self.state.borrow().is_replaced {
            return Err(REPLACED.to_owned());
        }
        if self.ending.is_cancelled() {
            return Err(ENDING.to_owned());
        }
        Ok(order)
    }

    /// A sentence for why no other process can take the place of this one now.
    pub(super) fn obstacle(&self) -> Option<String> {
        obstacle(&self.state.borrow())
    }

    /// Another process takes the place of this one.
    ///
    /// # Errors
    /// An order runs; the sentence for that.
    pub(super) fn replaced(&self) -> Result<(), String> {
        let mut why = None;
        self.state.send_modify(|state| {
            why = obstacle(state);
            state.is_replaced = why.is_none();
        });
        why.map_or(Ok(()), Err)
    }

    /// It did not.
    pub(super) fn not_replaced(&self) {
        self.state.send_modify(|state| state.is_replaced = false);
    }

    /// The router shuts down: what can be undone is undone.
    pub(super) fn undo(&self) {
        self.ending.cancel();
    }

    /// Cancelled by [`Self::undo`].
    pub(super) fn ending(&self) -> CancellationToken {
        self.ending.clone()
    }

    /// What runs, in words.
    pub(super) fn running(&self) -> Option<String> {
        let state = self.state.borrow();
        let all: Vec<&str> = state.running.values().map(|order| &*order.what).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// When the last one that runs now is over at the latest.
    pub(super) fn until(&self) -> Option<Instant> {
        self.state.borrow().until()
    }

    /// Waits until none runs.
    pub(super) async fn ended(&self) {
        // The sender is here: this cannot fail.
        let _ = self
            .state
            .subscribe()
            .wait_for(|state| state.running.is_empty())
            .await;
    }
}

impl State {
    fn until(&self) -> Option<Instant> {
        self.running.values().map(|order| order.until).max()
    }
}

fn obstacle(state: &State) -> Option<String> {
    let first = state.running.values().next()?;
    let left = state.until()?.saturating_duration_since(Instant::now());
    Some(format!(
        "{}, and only this process can go on with that: try again when it is over, in {} s at most",
        first.what,
        left.as_secs() + 1
    ))
}

impl RunningOrder {
    /// It ends by then.
    pub(super) fn lasts_until(&self, until: Instant) {
        self.orders.state.send_modify(|state| {
            if let Some(order) = state.running.get_mut(&self.number) {
                order.until = until;
            }
        });
    }
}

impl Drop for RunningOrder {
    fn drop(&mut self) {
        self.orders.state.send_modify(|state| {
            state.running.remove(&self.number);
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use futures_util::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_process_is_replaced_while_an_order_runs() {
        let orders: Arc<RunningOrders> = Arc::default();
        let until = Instant::now() + Duration::from_secs(20);
        let order = orders.begin_if_staying("one runs".to_owned(), until).unwrap();
        let other = orders.begin("another runs".to_owned(), Instant::now() + Duration::from_secs(5));
        assert_eq!(orders.running().unwrap(), "one runs; another runs");
        tokio::time::advance(Duration::from_secs(2)).await;
        let why = orders.replaced().unwrap_err();
        assert!(why.starts_with("one runs, and only this process"), "{why}");
        assert!(why.ends_with("in 19 s at most"), "{why}");
        order.lasts_until(Instant::now() + Duration::from_secs(1));
        assert!(orders.obstacle().unwrap().ends_with("in 4 s at most"));
        drop(order);
        assert!(orders.ended().now_or_never().is_none());
        drop(other);
        orders.ended().await;
        // From here on another process is asked.
        orders.replaced().unwrap();
        assert_eq!(
            orders.begin_if_staying(String::new(), until).unwrap_err(),
            REPLACED
        );
        assert!(orders.obstacle().is_none(), "what is refused does not run");
        orders.not_replaced();
        drop(orders.begin_if_staying(String::new(), until).unwrap());
        orders.undo();
        assert_eq!(orders.begin_if_staying(String::new(), until).unwrap_err(), ENDING);
    }
}
