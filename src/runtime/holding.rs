//! Orders that hold clients, given by this router: to its own processes, and to its peers.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::administration::Administration;
use super::switchover::{DEFAULT_GRACE, RunningSwitchover, Switchover};
use crate::admin::{HoldOperations, StopReport, SwitchoverPlan, SwitchoverRequest, SwitchoverStatus};
use crate::cluster::snapshot::{Leader, Member, MemberName, Snapshot};
use crate::cluster::switchover::{self, LeaderAccess, SwitchoverRight};
use crate::cluster::{ClusterHandle, LeaveToken};
use crate::events::Events;
use crate::names;
use crate::session::Shared;
use crate::session::holds::{HoldAnswer, HoldOrder, HoldRefusal, HoldRequest, MAX_HOLD, MemberActivity};
use crate::session::peers::PeerOrders;

/// Between two renewals of an order.
pub(super) const RENEWAL: Duration = Duration::from_secs(1);
/// For how long an order counts if it is not renewed: longer than a renewal may take.
const LEASE: Duration = Duration::from_secs(4);
/// Between two looks at the transactions that are open.
const LOOK: Duration = Duration::from_millis(50);
/// How long a stop may be delayed where Patroni does not say its times.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Left of the limit for the answer itself.
const SPARE: Duration = Duration::from_millis(250);
/// For the name service to say where the peers are.
const NAMES: Duration = Duration::from_secs(2);

/// Gives orders that hold clients.
#[derive(Debug)]
pub(super) struct HoldingRouter {
    shared: Arc<Shared>,
    /// The runtime of the tasks that renew orders.
    control: Handle,
    tracker: TaskTracker,
    stop: CancellationToken,
    administration: Arc<Administration>,
    events: Events,
    /// The one that runs, or the last one.
    switchover: Mutex<Option<Arc<RunningSwitchover>>>,
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
    /// Its time begins now.
    pub(super) fn begin(&mut self) {
        self.until = Instant::now() + MAX_HOLD;
    }

    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// Gives the order, or renews it. The answers of this router and its peers come at the same
    /// time.
    pub(super) async fn renew(&mut self) -> Round {
        let left = self.until.saturating_duration_since(Instant::now()).min(LEASE);
        self.order.lasts_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        self.ask(&HoldRequest::Hold(self.order.clone())).await
    }

    /// Asks what the order would be about, and gives none.
    pub(super) async fn look(&mut self) -> Round {
        self.order.lasts_ms = 0;
        self.ask(&HoldRequest::Hold(self.order.clone())).await
    }

    /// Ends the order everywhere.
    pub(super) async fn release(mut self) -> Round {
        let request = HoldRequest::Release {
            cluster: self.order.cluster,
            token: self.order.token,
        };
        self.ask(&request).await
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
    pub(super) fn new(
        shared: Arc<Shared>,
        administration: Arc<Administration>,
        events: Events,
        (tracker, stop): (&TaskTracker, &CancellationToken),
    ) -> Self {
        Self {
            shared,
            control: Handle::current(),
            tracker: tracker.clone(),
            stop: stop.clone(),
            administration,
            events,
            switchover: Mutex::default(),
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

    fn cluster(&self, cluster: &str) -> Result<ClusterHandle, String> {
        let handle = self.shared.holds.named(cluster);
        handle.ok_or_else(|| format!("there is no cluster {cluster}"))
    }

    fn snapshot(&self, cluster: &str) -> Result<Arc<Snapshot>, String> {
        Ok(self.cluster(cluster)?.snapshot())
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

/// What a planned switchover needs.
struct PreparedSwitchover {
    hold: RunningHold,
    access: Arc<LeaderAccess>,
    rest: String,
    leader: Member,
    candidate: MemberName,
}

impl HoldingRouter {
    /// What a switchover would do. It gives no order.
    async fn plan(
        &self,
        request: &SwitchoverRequest,
    ) -> Result<(SwitchoverPlan, PreparedSwitchover), String> {
        let cluster = self.cluster(&request.cluster)?;
        let snapshot = cluster.snapshot();
        let wanted = request.to.as_deref().map(MemberName::new);
        let candidate = switchover::candidate(&snapshot, wanted.as_ref())?;
        let Leader::Verified { member: name, .. } = &snapshot.leader else {
            return Err("there is no verified leader to switch over from".to_owned());
        };
        let leader = snapshot.member(name).ok_or("the leader is not listed")?.clone();
        let access = Arc::new(cluster.leader_access().map_err(|error| error.to_string())?);
        let mut hold = self.prepare(&request.cluster, name, true)?;
        let mut problems = Vec::new();
        for peer in &request.without_peers {
            if !hold.peers.as_mut().is_some_and(|peers| peers.leave_out(peer)) {
                problems.push(format!("there is no peer {peer}"));
            }
        }
        let peers = hold.peers.as_ref().map(PeerOrders::names).unwrap_or_default();
        let round = hold.look().await;
        if let Some(Err(refusal)) = round.own {
            problems.push(refusal.to_string());
        }
        let missing = round.missing();
        if !missing.is_empty() {
            problems.extend(missing);
            if !peers.is_empty() {
                problems.push("--without-peer NAME leaves a peer out: its clients see errors".to_owned());
            }
        }
        for (peer, answer) in &round.peers {
            if answer.as_ref().is_ok_and(|activity| !activity.is_leader) {
                problems.push(format!("peer {peer} does not see {name} as the leader"));
            }
        }
        let mut remarks = Vec::new();
        let (known, routers) = (
            self.known_processes(&request.cluster),
            self.addresses_of_peers().await,
        );
        let direct = access.direct_connections(&leader, &known, &routers).await;
        let direct = direct.unwrap_or_else(|error| {
            remarks.push(format!(
                "the connections that do not come through the routers are not known: {error}"
            ));
            Vec::new()
        });
        let rest = match access.rest_of(name).await {
            Ok((rest, is_scheduled)) => {
                if is_scheduled {
                    problems.push("Patroni has a scheduled switchover: cancel it first".to_owned());
                }
                match access.right(&rest).await {
                    SwitchoverRight::Allowed => {}
                    SwitchoverRight::Denied(why) => problems.push(format!(
                        "Patroni does not let the router switch over ({why}): see clusters.NAME.patroni.basic_auth"
                    )),
                    SwitchoverRight::Unknown(why) => problems.push(format!("{rest}/switchover: {why}")),
                }
                rest
            }
            Err(error) => {
                problems.push(error);
                String::new()
            }
        };
        let plan = SwitchoverPlan {
            cluster: request.cluster.clone(),
            leader: name.to_string(),
            candidate: candidate.to_string(),
            sessions: round.activity(),
            peers,
            direct,
            remarks,
            problems,
        };
        let prepared = PreparedSwitchover {
            hold,
            access,
            rest,
            leader,
            candidate,
        };
        Ok((plan, prepared))
    }

    /// The server processes of this process's sessions and pools.
    fn known_processes(&self, cluster: &str) -> Vec<u32> {
        let sessions = self.shared.registry.sessions_of(cluster);
        let held = sessions.iter().filter_map(|entry| entry.placement());
        let held = held.map(|placement| placement.process_id);
        let pools = self.administration.pools();
        let members = pools.iter().flat_map(|pool| &pool.members);
        let idle = members.flat_map(|member| &member.idle_connections);
        held.chain(idle.map(|idle| idle.process_id)).collect()
    }

    async fn addresses_of_peers(&self) -> Vec<IpAddr> {
        let Some(peers) = self.shared.peers.load_full() else {
            return Vec::new();
        };
        let deadline = Instant::now() + NAMES;
        let hosts: Vec<String> = peers.hosts().map(str::to_owned).collect();
        let found = hosts.iter().map(|host| names::addresses(host, deadline));
        let found = join_all(found).await;
        found.into_iter().flatten().flatten().collect()
    }
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
            let limit = self.stop_limit(cluster).await.saturating_sub(SPARE);
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

    /// Half of the time after which Patroni would lose the leader key.
    fn stop_limit<'a>(&'a self, cluster: &'a str) -> BoxFuture<'a, Duration> {
        async move {
            let access = self
                .cluster(cluster)
                .ok()
                .and_then(|cluster| cluster.leader_access().ok());
            let times = match &access {
                Some(access) => access.times().await,
                None => None,
            };
            times.map_or(STOP_LIMIT, |(ttl, loop_wait)| ttl.saturating_sub(loop_wait) / 2)
        }
        .boxed()
    }

    fn plan_switchover<'a>(
        &'a self,
        request: &'a SwitchoverRequest,
    ) -> BoxFuture<'a, Result<SwitchoverPlan, String>> {
        async move { Ok(self.plan(request).await?.0) }.boxed()
    }

    fn switch_over<'a>(
        &'a self,
        request: &'a SwitchoverRequest,
    ) -> BoxFuture<'a, Result<SwitchoverPlan, String>> {
        async move {
            let (plan, prepared) = self.plan(request).await?;
            if !plan.problems.is_empty() {
                return Err(plan.problems.join("; "));
            }
            let running = Arc::new(RunningSwitchover::new(&plan));
            {
                let mut current = self.switchover.lock().unwrap_or_else(PoisonError::into_inner);
                if current.as_ref().is_some_and(|current| !current.status().is_over) {
                    return Err(HoldRefusal::SwitchoverRuns.to_string());
                }
                *current = Some(Arc::clone(&running));
            }
            let switchover = Switchover {
                running,
                cluster: self.cluster(&request.cluster)?,
                hold: prepared.hold,
                access: prepared.access,
                rest: prepared.rest,
                leader: prepared.leader,
                candidate: prepared.candidate,
                grace: request.grace_ms.map_or(DEFAULT_GRACE, Duration::from_millis),
                events: self.events.clone(),
                tracker: self.tracker.clone(),
            };
            let stop = self.stop.clone();
            let work = async move {
                tokio::select! {
                    () = switchover.run() => {}
                    () = stop.cancelled() => {}
                }
            };
            self.tracker.spawn_on(work, &self.control);
            Ok(plan)
        }
        .boxed()
    }

    fn switchover(&self) -> Option<SwitchoverStatus> {
        let current = self.switchover.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().map(|current| current.status())
    }

    fn abort_switchover(&self) -> Result<(), String> {
        let current = self.switchover.lock().unwrap_or_else(PoisonError::into_inner);
        let current = current.as_ref().ok_or("no switchover runs")?;
        current.abort()
    }
}
