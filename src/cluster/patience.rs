//! Reads Patroni's configuration, for [`Snapshot::patience`](super::snapshot::Snapshot::patience):
//! at the start, when Patroni answers again, and from time to time.
//!
//! It asks one endpoint at a time, and only one that has just answered a poll: a Patroni that
//! cannot reach its DCS has no REST threads to spare.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::patroni::{Reply, Requests};
use super::state::Observation;

/// The configuration is read again after this time,
const AGAIN: Duration = Duration::from_mins(1);
/// or after this one where the last attempt has failed.
const RETRY: Duration = Duration::from_secs(5);

pub(super) struct Patience {
    due: Instant,
    /// Counts attempts, so that each asks another endpoint.
    attempts: usize,
    asks: mpsc::Sender<usize>,
    /// Until the task takes it.
    asked: Option<mpsc::Receiver<usize>>,
}

impl Patience {
    pub(super) fn new(now: Instant) -> Self {
        let (asks, asked) = mpsc::channel(1);
        Self {
            due: now,
            attempts: 0,
            asks,
            asked: Some(asked),
        }
    }

    /// The task that reads.
    pub(super) fn reader(
        &mut self,
        requests: Requests,
        observations: mpsc::Sender<Observation>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let asked = self.asked.take();
        async move {
            let Some(mut asked) = asked else { return };
            while let Some(endpoint) = asked.recv().await {
                let Some(times) = requests.times(endpoint).await else {
                    continue;
                };
                if observations.send(Observation::Times(times)).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Asks an endpoint that has answered this poll, if it is time. `is_back`: no endpoint had
    /// answered before.
    pub(super) fn ask(&mut self, replies: &[Option<Reply>], is_back: bool, now: Instant) {
        if now < self.due && !is_back {
            return;
        }
        let answering: Vec<usize> = replies
            .iter()
            .enumerate()
            .filter_map(|(index, reply)| matches!(reply, Some(Ok(_))).then_some(index))
            .collect();
        if answering.is_empty() {
            return;
        }
        let endpoint = answering[self.attempts % answering.len()];
        self.attempts = self.attempts.wrapping_add(1);
        self.due = now + RETRY;
        // While the last request is under way, there is no need for another one.
        let _ = self.asks.try_send(endpoint);
    }

    /// It has been read.
    pub(super) fn known(&mut self, now: Instant) {
        self.due = now + AGAIN;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::cluster::patroni::parse;

    #[test]
    fn endpoints_that_answer_are_asked_in_turn_until_one_says_and_then_once_a_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut patience = Patience::new(start);
        let mut asked = patience.asked.take().unwrap();
        let answer = || Some(parse(br#"{"members": []}"#));
        let replies = [None, answer(), Some(Err("no".to_owned())), answer()];
        let mut ask = |patience: &mut Patience, is_back, seconds| {
            patience.ask(&replies, is_back, at(seconds));
            asked.try_recv().ok()
        };
        assert_eq!(ask(&mut patience, true, 0), Some(1));
        assert_eq!(ask(&mut patience, false, 4), None);
        assert_eq!(ask(&mut patience, false, 5), Some(3));
        patience.known(at(5));
        assert_eq!(ask(&mut patience, false, 64), None);
        assert_eq!(ask(&mut patience, true, 64), Some(1), "Patroni is back");
        patience.known(at(64));
        assert_eq!(ask(&mut patience, false, 124), Some(3));
        patience.ask(&[None], true, at(300));
        assert!(asked.try_recv().is_err());
    }
}
