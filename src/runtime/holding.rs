//! Orders that hold clients, given by this router: to its own processes, and to its peers.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::admin::{HoldOperations, StopReport};
use crate::cluster::LeaveToken;
use crate::cluster::snapshot::{MemberName, Snapshot};
use crate::session::Shared;
use crate::session::holds::{HoldAnswer, HoldOrder, HoldRefusal, HoldRequest, MAX_HOLD, MemberActivity};
use crate::session::peers::PeerOrders;

/// Between two renewals of an order.
const RENEWAL: Duration = Duration::from_secs(1);
/// For how long an order counts if it is not renewed: longer than a renewal may take.
const LEASE: Duration = Duration::from_secs(4);
/// Between two looks at the transactions that are open.
const LOOK: Duration = Duration::from_millis(50);
/// How long a stop may be delayed where Patroni does not say its times.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Left of the limit for the answer itself.
const SPARE: Duration = Duration::from_millis(250);

/// Gives orders that hold clients.
#[derive(Debug)]
pub(super) struct HoldingRouter {
    shared: Arc<Shared>,
    /// The runtime of the tasks that renew orders.
    control: Handle,
    tracker: TaskTracker,
    stop: CancellationToken,
}

/// One order, which is renewed until its purpose is fulfilled, or [`MAX_HOLD`] is over.
pub(super) struct RunningHold {
    shared: Arc<Shared>,
    peers: Option<PeerOrders>,
    order: HoldOrder,
    until: Instant,
}

/// What everybody answers to an order.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// This router's own processes. `Err`: the order is not possible here.
    pub(super) own: Option<Result<MemberActivity, HoldRefusal>>,
    pub(super) peers: Vec<(String, Result<MemberActivity, String>)>,
    /// A sentence for each other process of this router that does not follow.
    pub(super) missing: Vec<String>,
}

impl Round {
    fn answers(&self) -> impl Iterator<Item = &MemberActivity> {
        let own = self.own.iter().flatten();
        own.chain(self.peers.iter().filter_map(|(_, answer)| answer.as_ref().ok()))
    }

    /// On all routers that answer.
    pub(super) fn activity(&self) -> MemberActivity {
        self.answers()
            .copied()
            .reduce(MemberActivity::and)
            .unwrap_or_default()
    }

    /// Every router that answers holds clients, or has another leader already.
    pub(super) fn is_held(&self) -> bool {
        self.answers()
            .all(|answer| answer.is_leaving || answer.is_replaced)
    }

    /// No router that answers holds clients any more.
    fn is_over(&self) -> bool {
        !self.answers().any(|answer| answer.is_leaving)
    }

    /// A sentence for each process and each peer that does not follow.
    pub(super) fn missing(&self) -> Vec<String> {
        let refused = self.peers.iter().filter_map(|(peer, answer)| {
            let error = answer.as_ref().err()?;
            Some(format!("peer {peer}: {error}"))
        });
        self.missing.iter().cloned().chain(refused).collect()
    }
}

impl RunningHold {
    /// Gives the order, or renews it. The answers of this router and its peers come at the same
    /// time.
    pub(super) async fn renew(&mut self) -> Round {
        let left = self.until.saturating_duration_since(Instant::now()).min(LEASE);
        self.order.lasts_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        self.ask(&HoldRequest::Hold(self.order.clone())).await
    }

    async fn ask(&mut self, request: &HoldRequest) -> Round {
        let peers = async {
            match &mut self.peers {
                Some(peers) => peers.ask(request).await,
                None => Vec::new(),
            }
        };
        let ((own, missing), peers) = tokio::join!(self.shared.carry_out(request), peers);
        Round {
            own: Some(match own {
                HoldAnswer::Done(activity) => Ok(activity),
                HoldAnswer::Refused(refusal) => Err(refusal),
            }),
            peers: peers
                .into_iter()
                .map(|(peer, answer)| {
                    let answer = match answer {
                        Ok(HoldAnswer::Done(activity)) => Ok(activity),
                        Ok(HoldAnswer::Refused(refusal)) => Err(refusal.to_string()),
                        Err(error) => Err(error),
                    };
                    (peer, answer)
                })
                .collect(),
            missing,
        }
    }

    /// Gives the order, and waits until no transaction is open, or `deadline`. The answers of the
    /// last round.
    ///
    /// # Errors
    /// It is not possible at this router.
    pub(super) async fn wait(&mut self, deadline: Instant) -> Result<Round, HoldRefusal> {
        let mut last = Round::default();
        let mut quiet_rounds = 0;
        loop {
            let next = Instant::now() + LOOK;
            if let Ok(round) = timeout_at(deadline, self.renew()).await {
                if let Some(Err(refusal)) = &round.own {
                    return Err(*refusal);
                }
                // One that was let through just before the order may begin after the first look.
                quiet_rounds = if round.is_held() && round.activity().transactions == 0 {
                    quiet_rounds + 1
                } else {
                    0
                };
                last = round;
            }
            if quiet_rounds >= 2 || Instant::now() >= deadline {
                return Ok(last);
            }
            sleep_until(next.min(deadline)).await;
        }
    }

    /// Renews the order until nobody holds clients because of it, or its time is over.
    pub(super) async fn keep(mut self) {
        let member = self.order.member.clone();
        loop {
            let next = Instant::now() + RENEWAL;
            if next >= self.until {
                warn!(%member, "the member was not stopped, or nothing replaced it, within {} s: its clients go on", MAX_HOLD.as_secs());
                return;
            }
            if self.renew().await.is_over() {
                info!(%member, "the clients of the member go on");
                return;
            }
            sleep_until(next).await;
        }
    }
}

impl HoldingRouter {
    /// To be called on the control runtime.
    pub(super) fn new(shared: Arc<Shared>, tracker: TaskTracker, stop: CancellationToken) -> Self {
        Self {
            shared,
            control: Handle::current(),
            tracker,
            stop,
        }
    }

    /// An order about this member, not given yet.
    ///
    /// # Errors
    /// The cluster is not known well enough.
    pub(super) fn prepare(
        &self,
        cluster: &str,
        member: &MemberName,
        is_switchover: bool,
    ) -> Result<RunningHold, String> {
        let snapshot = self.snapshot(cluster)?;
        let identifier = snapshot.system_identifier.ok_or_else(|| {
            format!("the router does not know the system identifier of cluster {cluster} yet")
        })?;
        let peers = self.shared.peers.load_full();
        Ok(RunningHold {
            shared: Arc::clone(&self.shared),
            peers: peers.map(|peers| peers.orders()),
            order: HoldOrder {
                cluster: identifier,
                member: member.as_str().to_owned(),
                token: LeaveToken::random(),
                lasts_ms: 0,
                is_switchover,
            },
            until: Instant::now() + MAX_HOLD,
        })
    }

    fn snapshot(&self, cluster: &str) -> Result<Arc<Snapshot>, String> {
        let handle = self.shared.holds.named(cluster);
        let handle = handle.ok_or_else(|| format!("there is no cluster {cluster}"))?;
        Ok(handle.snapshot())
    }

    /// Runs `work` to its end, whatever becomes of the caller.
    async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, String> {
        let (tell, told) = oneshot::channel();
        let stop = self.stop.clone();
        self.tracker.spawn_on(
            async move {
                tokio::select! {
                    // The caller may be gone.
                    done = work => drop(tell.send(done)),
                    () = stop.cancelled() => {}
                }
            },
            &self.control,
        );
        told.await.map_err(|_| "the router is shutting down".to_owned())
    }
}

/// How long the stop of a member may take before Patroni loses the leader key, half of it.
fn stop_limit(_snapshot: &Snapshot) -> Duration {
    STOP_LIMIT
}

impl HoldOperations for HoldingRouter {
    fn before_stop<'a>(
        &'a self,
        cluster: &'a str,
        member: &'a MemberName,
        grace: Duration,
    ) -> BoxFuture<'a, Result<StopReport, String>> {
        async move {
            let began = Instant::now();
            let mut hold = self.prepare(cluster, member, false)?;
            let limit = stop_limit(&*self.snapshot(cluster)?).saturating_sub(SPARE);
            let deadline = began + grace.min(limit);
            info!(cluster, %member, "the server is about to be stopped: its clients are held");
            let tracker = self.tracker.clone();
            let (member, stop) = (member.as_str().to_owned(), self.stop.clone());
            let waiting = async move {
                let round = hold.wait(deadline).await.map_err(|refusal| refusal.to_string())?;
                let report = StopReport {
                    member,
                    waited_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
                    left: round.activity(),
                    missing: round.missing(),
                };
                tracker.spawn(async move {
                    tokio::select! {
                        () = hold.keep() => {}
                        () = stop.cancelled() => {}
                    }
                });
                Ok(report)
            };
            self.detached(waiting).await?
        }
        .boxed()
    }

    fn stop_limit(&self, cluster: &str) -> Duration {
        self.snapshot(cluster)
            .map_or(STOP_LIMIT, |snapshot| stop_limit(&snapshot))
    }
}
