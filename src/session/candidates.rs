//! From a route to a server: a pass of the gate, then the candidates in order until one serves.
//! Sessions of `mode: postgres` and of `mode: tcp` use the same loop.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::gate::{self, Gate, QueueError};
use super::occupancy::{Occupancy, Seat};
use super::pool::pools::Pools;
use crate::cluster::ClusterHandle;
use crate::cluster::snapshot::Snapshot;
use crate::config::Route;
use crate::routing::{self, Candidate, Choice};
use crate::wire::message::ErrorReply;

/// Candidates tried for one session. More would only make the client wait longer for the same
/// error.
pub(super) const MOST_TRIES: u32 = 4;

/// What a session asks the gate for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) gate: &'a Gate,
    pub(super) metrics: &'a gate::Metrics,
    pub(super) occupancy: &'a Arc<Occupancy>,
    /// Whose idle connections make room; `None` in tests.
    pub(super) pools: Option<&'a Pools>,
    pub(super) cluster: &'a ClusterHandle,
    pub(super) route: &'a Route,
    /// The client's address; `None` on a Unix socket.
    pub(super) client: Option<IpAddr>,
}

/// The candidates as they were when the gate let the session pass, with a seat on the first of them
/// that had room. Only [`Wanted::pass`] makes one.
#[derive(Debug)]
pub(super) struct Pass {
    snapshot: Arc<Snapshot>,
    choice: Choice,
    /// `None` if there is no candidate.
    seat: Option<Seat>,
    /// How long the session waited for the pass.
    pub(super) queued: Duration,
}

/// Why there is no pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoPass {
    /// A limit of the queue is reached.
    Queue(QueueError),
    /// The client left while it waited.
    HungUp,
    /// The router shuts down.
    Closing,
}

impl Wanted<'_> {
    /// Waits for the pass until the client hangs up or the router shuts down. Without a wait
    /// neither is checked.
    pub(super) async fn pass(
        &self,
        hung_up: impl Future<Output = ()>,
        closing: &CancellationToken,
    ) -> Result<Pass, NoPass> {
        let attempt = || {
            let snapshot = self.cluster.snapshot();
            let config = self.cluster.config();
            let choose = || self.occupancy.choose(&config, self.route, self.client, &snapshot);
            let chosen = choose().or_else(|| {
                let is_made = self.make_room(&config.name, &snapshot);
                is_made.then(choose).flatten()
            });
            let (choice, seat) = chosen?;
            Some((snapshot, choice, seat))
        };
        let subscribe = || self.cluster.subscribe();
        tokio::select! {
            biased;
            passed = self.gate.pass(self.route, subscribe, self.metrics, attempt) => {
                let ((snapshot, choice, seat), queued) = passed.map_err(NoPass::Queue)?;
                Ok(Pass { snapshot, choice, seat, queued })
            }
            () = hung_up => Err(NoPass::HungUp),
            () = closing.cancelled() => Err(NoPass::Closing),
        }
    }
}

impl Wanted<'_> {
    /// Closes an idle connection of a pool on a member that may serve the route. `false`: there is
    /// none.
    fn make_room(&self, cluster: &str, snapshot: &Snapshot) -> bool {
        let Some(pools) = self.pools else { return false };
        let fit = snapshot
            .members
            .iter()
            .filter(|member| routing::fitness(snapshot, self.route, member).is_ok());
        fit.into_iter()
            .any(|member| pools.evict_oldest_idle_on(cluster, &member.name))
    }

    /// The error for a client whose session waited too long, or may not wait.
    pub(super) fn busy(&self, error: QueueError) -> ErrorReply {
        gate::busy(&self.cluster.config(), self.route, error)
    }
}

/// The result of one candidate.
pub(super) enum Attempt<T, E> {
    Serves(T),
    /// Another candidate may serve.
    Next(E),
    /// Every other candidate would fail in the same way.
    Stop(E),
}

/// Connects to a candidate, and does what else the session needs there.
pub(super) trait Connector {
    type Served;
    type Error;

    /// Tries this candidate. The seat is given back if the candidate does not serve.
    fn attempt(
        &self,
        candidate: &Candidate,
        seat: Seat,
    ) -> impl Future<Output = Attempt<Self::Served, Self::Error>> + Send;
}

impl Pass {
    /// Tries the candidates in order, each with a seat, until one serves; it skips full ones. No
    /// byte from the client has been forwarded yet, so it is always safe to try the next one.
    ///
    /// # Errors
    /// The error of the last candidate; `None` if none was tried.
    pub(super) async fn first_that_serves<C: Connector>(
        &mut self,
        occupancy: &Arc<Occupancy>,
        cluster: &ClusterHandle,
        connector: &C,
    ) -> Result<C::Served, Option<C::Error>> {
        let config = cluster.config();
        let (mut last, mut tried) = (None, 0);
        for candidate in &self.choice.candidates {
            if tried == MOST_TRIES {
                break;
            }
            // The gate has reserved the first seat; the candidates before it are full.
            let seat = match self.seat.take_if(|seat| *seat.member() == candidate.member) {
                Some(seat) => seat,
                None if self.seat.is_some() => continue,
                None => match occupancy.reserve(&config.name, &candidate.member, config.max_connections) {
                    Some(seat) => seat,
                    None => continue,
                },
            };
            tried += 1;
            occupancy.connecting(&config.name, &candidate.member);
            match connector.attempt(candidate, seat).await {
                Attempt::Serves(served) => return Ok(served),
                Attempt::Next(error) => last = Some(error),
                Attempt::Stop(error) => return Err(Some(error)),
            }
        }
        Err(last)
    }

    /// The error if there was no candidate to try.
    pub(super) fn unavailable(&self, route: &Route) -> ErrorReply {
        gate::unavailable(&self.snapshot, route, &self.choice)
    }
}
