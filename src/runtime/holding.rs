//! Orders that hold clients, given by this router: to its own processes, and to its peers.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use super::administration::Administration;
use super::running_hold::{LOOK, Round, RunningHold};
use super::switchover::{RunningSwitchover, Switchover};
use super::switchover_plan::{grace, longest_grace};
use crate::admin::{
    HoldOperations, HoldView, PauseReport, PauseRequest, StopCheck, StopEnd, StopReport, SwitchoverPlan,
    SwitchoverRequest, SwitchoverStatus, there_are,
};
use crate::cluster::snapshot::{MemberName, OrderedBy, Snapshot};
use crate::cluster::switchover::CHECKPOINT;
use crate::cluster::{ClusterHandle, LeaveToken};
use crate::events::Events;
use crate::session::Shared;
use crate::session::holds::{HoldAnswer, HoldOrder, HoldRefusal, HoldRequest, KnownSwitchover};
use crate::session::paused::MAX_PAUSE;
use crate::session::peers::PeerOrders;

/// How long a stop may be delayed where Patroni does not say its times.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Left of the limit for the answer itself.
const SPARE: Duration = Duration::from_millis(250);
/// How long a pause lasts, and how long open transactions may take, where nothing is said.
const DEFAULT_PAUSE: Duration = Duration::from_mins(5);
const DEFAULT_WAIT: Duration = Duration::from_secs(30);

/// A switchover that is over is shown for so long before this process may end.
const SHOWN: Duration = Duration::from_millis(500);

/// A cluster's name, and a member.
type StoppedMember = (String, MemberName);
type Stops = BTreeMap<StoppedMember, Instant>;

/// Gives orders that hold clients.
#[derive(Debug)]
pub(super) struct HoldingRouter {
    pub(super) shared: Arc<Shared>,
    /// The runtime of the tasks that renew orders.
    control: Handle,
    tracker: TaskTracker,
    stop: CancellationToken,
    pub(super) administration: Arc<Administration>,
    events: Events,
    /// The one that runs, or the last one.
    switchover: Mutex<Option<Arc<RunningSwitchover>>>,
    /// Until when the clients of a member that is about to be stopped are held, by its cluster and
    /// its name. An entry goes when its order is over.
    stops: Arc<Mutex<Stops>>,
    /// The name of this host.
    own_name: String,
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
            stops: Arc::default(),
            own_name: host_name(),
        }
    }

    /// Until when the clients of this member are held: no longer than by the first order, or they
    /// would wait until they get an error. An order that is over does not count.
    fn stop_until(&self, key: StoppedMember, is_leaving: bool, until: Instant) -> Instant {
        let mut stops = self.stops.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        stops.retain(|other, until| *until > now && (is_leaving || *other != key));
        *stops.entry(key).or_insert(until)
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
        by: &str,
    ) -> Result<RunningHold, String> {
        let snapshot = self.snapshot(cluster)?;
        let identifier = snapshot.system_identifier.ok_or_else(|| {
            format!("the router does not know the system identifier of cluster {cluster} yet")
        })?;
        let longest = RunningHold::longest(snapshot.patience);
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
                by: Some(self.by(by)),
                ends_ms: None,
            },
            until: Instant::now() + longest,
            longest,
            is_final: !is_switchover,
        })
    }

    /// Who orders something here, as the peers see it.
    fn by(&self, operator: &str) -> OrderedBy {
        OrderedBy::new(&self.own_name, operator)
    }

    pub(super) fn cluster(&self, cluster: &str) -> Result<ClusterHandle, String> {
        let handle = self.shared.holds.named(cluster);
        handle.ok_or_else(|| {
            let names = self.shared.holds.names();
            let names = there_are(names.iter().map(|name| &**name));
            format!("there is no cluster {cluster} ({names})")
        })
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

impl HoldingRouter {
    fn peers(&self, are_asked: bool) -> Option<PeerOrders> {
        let peers = self.shared.peers.load_full().filter(|_| are_asked)?;
        Some(peers.orders())
    }

    /// Gives an order about a route to this router's processes, and to the peers.
    async fn order(&self, peers: &mut Option<PeerOrders>, request: &HoldRequest) -> Round {
        Round::of(&self.shared, peers.as_mut(), request).await
    }
}

fn pause_for(route: &str, lasts: Duration, by: Option<OrderedBy>) -> HoldRequest {
    HoldRequest::Pause {
        route: route.to_owned(),
        by,
        lasts_ms: u32::try_from(lasts.as_millis()).unwrap_or(u32::MAX),
    }
}

fn report(route: &str, began: Instant, round: &Round) -> PauseReport {
    let activity = round.activity();
    PauseReport {
        route: route.to_owned(),
        open: activity.transactions,
        unaffected: activity.pinned.saturating_add(activity.unmovable),
        was_paused: true,
        waited_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
        missing: round.missing(),
    }
}

fn in_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// By which the peers know where an order comes from, unless they know its address.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname");
    name.map(|name| name.trim().to_owned()).unwrap_or_default()
}

impl HoldOperations for HoldingRouter {
    fn before_stop<'a>(
        &'a self,
        cluster: &'a str,
        member: &'a MemberName,
        grace: Duration,
        by: &'a str,
    ) -> BoxFuture<'a, Result<StopReport, String>> {
        async move {
            let began = Instant::now();
            let mut hold = self.prepare(cluster, member, false, by)?;
            let key = (cluster.to_owned(), member.clone());
            let snapshot = self.snapshot(cluster)?;
            let is_leaving = snapshot
                .member(member)
                .is_some_and(|member| member.leaving.is_some());
            hold.until = self.stop_until(key.clone(), is_leaving, hold.until);
            let limit = self.stop_limit(cluster).await.saturating_sub(SPARE);
            let deadline = (began + grace.min(limit)).min(hold.until);
            let what = format!("the clients of {member} are held, as its server is about to be stopped");
            let order = self.administration.orders.begin(what, hold.until);
            info!(cluster, %member, %by, "the server is about to be stopped: its clients are held");
            let tracker = self.tracker.clone();
            let (member, stop) = (member.as_str().to_owned(), self.stop.clone());
            let (stops, until) = (Arc::clone(&self.stops), hold.until);
            let forget = move || {
                let mut stops = stops.lock().unwrap_or_else(PoisonError::into_inner);
                // Not that of a later stop.
                if stops.get(&key) == Some(&until) {
                    stops.remove(&key);
                }
            };
            let waiting = async move {
                let round = match hold.wait(deadline).await {
                    Ok(round) => round,
                    Err(refusal) => {
                        forget();
                        return Err(refusal.to_string());
                    }
                };
                let report = StopReport {
                    member,
                    waited_ms: u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX),
                    left: round.activity(),
                    held_ms: Some(in_ms(hold.until().saturating_duration_since(Instant::now()))),
                    missing: round.missing(),
                };
                tracker.spawn(async move {
                    tokio::select! {
                        // The member may be stopped again, with all the time that this takes.
                        () = hold.keep() => forget(),
                        () = stop.cancelled() => {}
                    }
                    drop(order);
                });
                Ok(report)
            };
            self.detached(waiting).await?
        }
        .boxed()
    }

    fn check_stop<'a>(
        &'a self,
        cluster: &'a str,
        member: &'a MemberName,
    ) -> BoxFuture<'a, Result<StopCheck, String>> {
        async move {
            let mut hold = self.prepare(cluster, member, false, "")?;
            let round = hold.look().await;
            if let Some(Err(refusal)) = &round.own {
                return Err(refusal.to_string());
            }
            Ok(StopCheck {
                cluster: cluster.to_owned(),
                member: member.to_string(),
                limit_ms: in_ms(self.stop_limit(cluster).await),
                held_ms: in_ms(hold.longest),
                left: round.activity(),
                peers: round
                    .peers
                    .iter()
                    .map(|(peer, answer)| (peer.clone(), answer.as_ref().err().cloned()))
                    .collect(),
                missing: round.missing.clone(),
            })
        }
        .boxed()
    }

    fn end_stop<'a>(
        &'a self,
        cluster: &'a str,
        member: &'a MemberName,
    ) -> BoxFuture<'a, Result<StopEnd, String>> {
        async move {
            let order = self.prepare(cluster, member, false, "")?.order;
            let request = HoldRequest::EndStop {
                cluster: order.cluster,
                member: order.member,
            };
            let round = self.order(&mut self.peers(true), &request).await;
            if let Some(Err(refusal)) = &round.own {
                return Err(refusal.to_string());
            }
            Ok(StopEnd {
                member: member.to_string(),
                was_held: round.answers().any(|answer| answer.is_leaving),
                missing: round.missing(),
            })
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
        async move { Ok(self.plan(request, "").await?.0) }.boxed()
    }

    fn switch_over<'a>(
        &'a self,
        request: &'a SwitchoverRequest,
        by: &'a str,
    ) -> BoxFuture<'a, Result<SwitchoverPlan, String>> {
        async move {
            let (plan, prepared) = self.plan(request, by).await?;
            if !plan.problems.is_empty() {
                return Err(plan.problems.join("; "));
            }
            let running = Arc::new(RunningSwitchover::new(&plan));
            let what = format!("a switchover of cluster {} runs", request.cluster);
            let longest = Instant::now() + CHECKPOINT + prepared.hold.longest;
            let order = Arc::new(self.administration.orders.begin_if_staying(what, longest)?);
            {
                let mut current = self.switchover.lock().unwrap_or_else(PoisonError::into_inner);
                if current.as_ref().is_some_and(|current| !current.status().is_over) {
                    return Err(HoldRefusal::SwitchoverRuns.to_string());
                }
                *current = Some(Arc::clone(&running));
            }
            let most = longest_grace(prepared.hold.longest);
            let switchover = Switchover {
                running,
                cluster: self.cluster(&request.cluster)?,
                hold: prepared.hold,
                access: prepared.access,
                rest: prepared.rest,
                leader: prepared.leader,
                candidate: prepared.candidate,
                grace: grace(request).min(most),
                held_since: None,
                events: self.events.clone(),
                tracker: self.tracker.clone(),
                order: Arc::clone(&order),
                ending: self.administration.orders.ending(),
            };
            let stop = self.stop.clone();
            let work = async move {
                tokio::select! {
                    // Whoever follows it looks once more.
                    () = async { switchover.run().await; sleep(SHOWN).await } => {}
                    () = stop.cancelled() => {}
                }
                drop(order);
            };
            self.tracker.spawn_on(work, &self.control);
            Ok(plan)
        }
        .boxed()
    }

    fn pause<'a>(
        &'a self,
        route: &'a str,
        pause: &'a PauseRequest,
        by: &'a str,
    ) -> BoxFuture<'a, Result<PauseReport, String>> {
        async move {
            let began = Instant::now();
            let lasts = pause.timeout_ms.map_or(DEFAULT_PAUSE, Duration::from_millis);
            let lasts = lasts.min(MAX_PAUSE);
            let by = self.by(by);
            let deadline = began + pause.wait_ms.map_or(DEFAULT_WAIT, Duration::from_millis);
            self.administration
                .pause_route(route, Some(lasts), Some(&by))
                .map_err(|busy| busy.to_string())?;
            let mut peers = self.peers(pause.all_peers);
            // Ordered once: whoever ends it meanwhile has the last word.
            let mut round = self.order(&mut peers, &pause_for(route, lasts, Some(by))).await;
            let look = HoldRequest::Look {
                route: route.to_owned(),
            };
            let mut quiet_rounds = 0;
            loop {
                let next = Instant::now() + LOOK;
                let report = report(route, began, &round);
                if let Some(Err(refusal)) = round.own {
                    return Err(refusal.to_string());
                }
                if !round.is_held() {
                    return Err(format!(
                        "the pause of {route} is over: its timeout has passed, or somebody has ended it"
                    ));
                }
                // One that was let through just before the pause may begin after the first look.
                quiet_rounds = if report.open == 0 { quiet_rounds + 1 } else { 0 };
                if quiet_rounds >= 2 || next >= deadline {
                    return Ok(report);
                }
                sleep_until(next).await;
                let missing = std::mem::take(&mut round.missing);
                round = self.order(&mut peers, &look).await;
                for sentence in missing {
                    if !round.missing.contains(&sentence) {
                        round.missing.push(sentence);
                    }
                }
            }
        }
        .boxed()
    }

    fn unpause<'a>(&'a self, route: &'a str, all_peers: bool) -> BoxFuture<'a, Result<PauseReport, String>> {
        async move {
            let began = Instant::now();
            let mut was_paused = self.paused().contains_key(route);
            self.administration
                .pause_route(route, None, None)
                .map_err(|busy| busy.to_string())?;
            let mut peers = self.peers(true);
            if !all_peers && let Some(peers) = &mut peers {
                // They are not told, and may be paused by an order for all.
                let look = HoldRequest::Look {
                    route: route.to_owned(),
                };
                let own = self
                    .order(&mut None, &pause_for(route, Duration::ZERO, None))
                    .await;
                let mut report = report(route, began, &own);
                report.was_paused = was_paused;
                for (peer, answer) in peers.ask(&look).await {
                    if let Ok(HoldAnswer::Done(activity)) = answer
                        && activity.is_leaving
                    {
                        report.missing.push(format!(
                            "peer {peer}: it is still paused there (--all-peers ends it)"
                        ));
                    }
                }
                return Ok(report);
            }
            if let Some(peers) = &mut peers {
                let look = HoldRequest::Look {
                    route: route.to_owned(),
                };
                was_paused |= peers.ask(&look).await.iter().any(
                    |(_, answer)| matches!(answer, Ok(HoldAnswer::Done(activity)) if activity.is_leaving),
                );
            }
            let round = self
                .order(&mut peers, &pause_for(route, Duration::ZERO, None))
                .await;
            let mut report = report(route, began, &round);
            report.was_paused = was_paused;
            Ok(report)
        }
        .boxed()
    }

    fn paused(&self) -> BTreeMap<String, Duration> {
        let now = Instant::now();
        let all = self.shared.occupancy.paused_routes().all();
        all.iter()
            .filter(|(_, pause)| pause.until > now)
            .map(|(route, pause)| (route.to_string(), pause.until - now))
            .collect()
    }

    fn holds(&self) -> Vec<HoldView> {
        let held = self.shared.occupancy.held_routes();
        let others = self.shared.generations.totals().held();
        let elsewhere = |route: &str| others.get(route).copied().unwrap_or_default();
        held.iter()
            .map(|held| HoldView::new(held, elsewhere(&held.route)))
            .collect()
    }

    fn switchover(&self) -> Option<SwitchoverStatus> {
        let own = {
            let current = self.switchover.lock().unwrap_or_else(PoisonError::into_inner);
            current.as_ref().map(|current| current.status())
        };
        if own.as_ref().is_some_and(|own| !own.is_over) {
            return own;
        }
        let elsewhere = self.shared.holds.switchovers().into_iter().next();
        elsewhere.map(run_elsewhere).or(own)
    }

    fn abort_switchover(&self) -> Result<(), String> {
        let current = self.switchover.lock().unwrap_or_else(PoisonError::into_inner);
        match current.as_ref() {
            Some(current) if !current.status().is_over => current.abort(),
            _ => Err(match self.shared.holds.switchovers().first() {
                Some(known) => format!(
                    "{} runs the switchover of cluster {}: abort it there, with `trunkline switchover --abort` or ABORT SWITCHOVER",
                    router_of(known),
                    known.cluster
                ),
                None => "no switchover runs".to_owned(),
            }),
        }
    }
}

fn router_of(known: &KnownSwitchover) -> String {
    let by = known.by.as_ref().filter(|by| !by.router.is_empty());
    by.map_or_else(|| "a peer".to_owned(), |by| by.router.clone())
}

/// One that a peer runs.
fn run_elsewhere(known: KnownSwitchover) -> SwitchoverStatus {
    let router = router_of(&known);
    let operator = known.by.map(|by| by.operator).unwrap_or_default();
    SwitchoverStatus {
        steps: vec![format!(
            "{router} runs it, and says how it goes on; clients are held here, too"
        )],
        run_by: Some(OrderedBy::new(&router, &operator)),
        cluster: known.cluster,
        leader: known.leader,
        ..SwitchoverStatus::default()
    }
}
