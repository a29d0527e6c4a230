//! A planned switchover by the router.
//!
//! The checkpoint comes first, while everybody works. Then clients of the leader are held, on all
//! routers; open transactions have the grace to end; only then Patroni is asked. Until then
//! everything can be undone. Afterwards each router lets its clients go on when it has itself
//! verified another leader, whatever Patroni answers, or when the time of the hold is over.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use super::running_hold::{RENEWAL, Round, RunningHold};
use super::running_orders::RunningOrder;
use super::supervisor::ENDING;
use crate::admin::{SwitchoverPlan, SwitchoverStatus};
use crate::cluster::ClusterHandle;
use crate::cluster::snapshot::{Leader, Member, MemberName};
use crate::cluster::switchover::{LeaderAccess, SwitchoverReply};
use crate::events::{Events, OperatorEvent};
use crate::session::registry::{Activity, SessionEntry};
use crate::wire::text::Escaped;

/// Time for open transactions where the operator gives none.
pub(super) const DEFAULT_GRACE: Duration = Duration::from_secs(10);
/// Sessions with an open transaction that are named.
const MAX_OPEN: usize = 10;
/// Steps of one switchover that are kept.
const MAX_STEPS: usize = 64;

/// One switchover, as others see it.
#[derive(Debug)]
pub(super) struct RunningSwitchover {
    status: Mutex<SwitchoverStatus>,
    abort: CancellationToken,
}

impl RunningSwitchover {
    pub(super) fn new(plan: &SwitchoverPlan) -> Self {
        Self {
            status: Mutex::new(SwitchoverStatus {
                cluster: plan.cluster.clone(),
                leader: plan.leader.clone(),
                candidate: plan.candidate.clone(),
                ..SwitchoverStatus::default()
            }),
            abort: CancellationToken::new(),
        }
    }

    pub(super) fn status(&self) -> SwitchoverStatus {
        self.lock().clone()
    }

    pub(super) fn abort(&self) -> Result<(), String> {
        let status = self.lock();
        if status.is_over {
            return Err("no switchover runs".to_owned());
        }
        if status.is_committed {
            return Err("Patroni has been asked already: it cannot be undone".to_owned());
        }
        self.abort.cancel();
        Ok(())
    }

    fn say(&self, step: impl Into<String>) {
        let step = step.into();
        let mut status = self.lock();
        info!(
            cluster = status.cluster,
            leader = status.leader,
            "switchover: {step}"
        );
        if status.steps.len() < MAX_STEPS {
            status.steps.push(step);
        }
    }

    /// Whose transactions are waited for: no step.
    fn waits_for(&self, sessions: Vec<String>) {
        let mut status = self.lock();
        for session in &sessions {
            info!(
                cluster = status.cluster,
                leader = status.leader,
                "switchover: waits for {session}"
            );
        }
        status.open_sessions = sessions;
    }

    /// From now on nothing is undone by an operator. `false`: it has been undone.
    fn commit(&self) -> bool {
        let mut status = self.lock();
        status.is_committed = !self.abort.is_cancelled();
        status.is_committed
    }

    fn end(&self, has_succeeded: bool, step: &str, events: &Events) {
        self.say(step);
        let mut status = self.lock();
        status.is_over = true;
        status.has_succeeded = has_succeeded;
        let event = OperatorEvent::SwitchoverEnded {
            cluster: status.cluster.clone(),
            leader: status.leader.clone(),
            has_succeeded,
            how: step.to_owned(),
        };
        drop(status);
        events.emit(event);
    }

    fn lock(&self) -> MutexGuard<'_, SwitchoverStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everything that a switchover needs, checked before.
pub(super) struct Switchover {
    pub(super) running: Arc<RunningSwitchover>,
    pub(super) cluster: ClusterHandle,
    pub(super) hold: RunningHold,
    pub(super) access: Arc<LeaderAccess>,
    /// The leader's REST interface.
    pub(super) rest: String,
    pub(super) leader: Member,
    pub(super) candidate: MemberName,
    pub(super) grace: Duration,
    /// Since when clients are held.
    pub(super) held_since: Option<Instant>,
    pub(super) events: Events,
    pub(super) tracker: TaskTracker,
    pub(super) order: Arc<RunningOrder>,
    /// Cancelled where the router shuts down.
    pub(super) ending: CancellationToken,
}

/// # Errors
/// A router does not hold its clients.
fn followed(round: &Round) -> Result<(), String> {
    if let Some(Err(refusal)) = &round.own {
        return Err(refusal.to_string());
    }
    let missing = round.missing();
    if !missing.is_empty() {
        return Err(missing.join("; "));
    }
    if !round.is_held() {
        return Err("not every router holds its clients".to_owned());
    }
    Ok(())
}

/// What is known after Patroni was asked.
enum Watched {
    /// This member is the verified leader.
    Leads(MemberName),
    Refused(String),
    /// The time of the hold is over.
    TimeIsOver,
}

impl Switchover {
    pub(super) async fn run(mut self) {
        let running = Arc::clone(&self.running);
        let (abort, ending) = (running.abort.clone(), self.ending.clone());
        let prepared = tokio::select! {
            prepared = self.prepare() => prepared,
            () = abort.cancelled() => Err("an operator has ended it".to_owned()),
            () = ending.cancelled() => Err(ENDING.to_owned()),
        };
        let prepared = prepared.and_then(|()| {
            let is_committed = running.commit();
            is_committed
                .then_some(())
                .ok_or_else(|| "an operator has ended it".to_owned())
        });
        if let Err(why) = prepared {
            return self.undo(&format!("nothing was changed: {why}")).await;
        }
        running.say(format!(
            "Patroni is asked to switch over from {} to {}",
            self.leader.name, self.candidate
        ));
        match self.ask_and_watch().await {
            Watched::Leads(member) => {
                self.cluster
                    .switched_over(self.held_since.map(|since| since.elapsed()));
                let step = format!("{member} is the leader: seen to accept writes");
                // Another switchover may begin now, also while clients are still let go.
                self.hold.order.is_switchover = false;
                self.hold.renew().await;
                running.end(true, &step, &self.events);
                // The other routers may see it a little later.
                self.hold.keep().await;
            }
            Watched::Refused(why) => {
                self.undo(&format!("Patroni refuses, and clients go on: {why}"))
                    .await;
            }
            Watched::TimeIsOver => {
                let leader = &self.leader.name;
                let seconds = self.hold.longest.as_secs();
                let step = match &self.cluster.snapshot().leader {
                    Leader::Verified { .. } => {
                        format!("{leader} is still the leader after {seconds} s: its clients go on")
                    }
                    Leader::None(why) => format!("there is no leader after {seconds} s: {why}"),
                };
                self.undo(&step).await;
            }
        }
    }

    async fn undo(self, step: &str) {
        let round = self.hold.release().await;
        for missing in round.missing() {
            self.running.say(missing);
        }
        self.cluster.switched_over(None);
        self.running.end(false, step, &self.events);
    }

    /// Up to the moment at which Patroni can be asked.
    async fn prepare(&mut self) -> Result<(), String> {
        let running = &self.running;
        let began = Instant::now();
        match self.access.checkpoint(&self.leader).await {
            Ok(true) => running.say(format!(
                "a checkpoint was made in {:.1} s",
                began.elapsed().as_secs_f64()
            )),
            Ok(false) => running.say("no checkpoint was made: the service account may not"),
            Err(error) => running.say(format!("no checkpoint was made: {error}")),
        }
        let began = Instant::now();
        self.hold.begin();
        self.held_since = Some(began);
        self.order.lasts_until(self.hold.until());
        let first = self.hold.renew().await;
        self.say_open(first.activity().transactions);
        let round = self.hold.wait(began + self.grace).await;
        followed(&round.map_err(|refusal| refusal.to_string())?)?;
        // The last round may be some time ago.
        let round = self.hold.make_final().await;
        followed(&round)?;
        let waited = began.elapsed().as_secs_f64();
        running.say(match round.activity().transactions {
            0 => format!("clients are held, and no transaction is open after {waited:.1} s"),
            1 => format!("clients are held, and 1 transaction is still open after {waited:.1} s: it is rolled back"),
            open => format!(
                "clients are held, and {open} transactions are still open after {waited:.1} s: they are rolled back"
            ),
        });
        Ok(())
    }

    /// Says at once for whom is waited.
    fn say_open(&self, open: u32) {
        if open == 0 {
            return;
        }
        let seconds = self.grace.as_secs();
        self.running.say(match open {
            1 => format!(
                "clients are held; 1 transaction is open, and has {seconds} s to end before it is rolled back"
            ),
            open => format!(
                "clients are held; {open} transactions are open, and have {seconds} s to end before they are rolled back"
            ),
        });
        let shared = &self.hold.shared;
        let sessions = shared.registry.sessions_of(&self.cluster.config().name);
        let is_open = |entry: &&Arc<SessionEntry>| {
            let is_there = entry
                .placement()
                .is_some_and(|place| place.member == self.leader.name);
            is_there && entry.activity() != Activity::Idle
        };
        let line = |entry: &Arc<SessionEntry>| {
            let client = &entry.origin.client;
            format!(
                "session {}: {} at {}, connected for {} s",
                entry.id,
                Escaped(&client.user),
                client.address,
                client.since.elapsed().as_secs()
            )
        };
        let listed = sessions.iter().filter(is_open).take(MAX_OPEN);
        let mut lines: Vec<String> = listed.map(line).collect();
        let more = (open as usize).saturating_sub(lines.len());
        if more > 0 {
            lines.push(format!(
                "{more} more, here or at other routers: `trunkline sessions` there shows them"
            ));
        }
        self.running.waits_for(lines);
    }

    async fn ask_and_watch(&mut self) -> Watched {
        let (tell, mut told) = oneshot::channel();
        let (access, rest) = (Arc::clone(&self.access), self.rest.clone());
        let (leader, candidate) = (self.leader.name.clone(), self.candidate.clone());
        self.tracker.spawn(async move {
            let reply = access.switch_over(&rest, &leader, &candidate).await;
            let _ = tell.send(reply);
        });
        let mut snapshots = self.cluster.subscribe();
        let mut is_answered = false;
        let mut next = Instant::now() + RENEWAL;
        loop {
            let leads = match &snapshots.borrow_and_update().leader {
                Leader::Verified { member, .. } if *member != self.leader.name => Some(member.clone()),
                _ => None,
            };
            if let Some(member) = leads {
                return Watched::Leads(member);
            }
            if Instant::now() >= self.hold.until() {
                return Watched::TimeIsOver;
            }
            tokio::select! {
                reply = &mut told, if !is_answered => {
                    is_answered = true;
                    let reply = reply.unwrap_or_else(|_| SwitchoverReply::Unknown("the request was lost".to_owned()));
                    match reply {
                        SwitchoverReply::Done(text) => self.running.say(format!("Patroni: {text}")),
                        SwitchoverReply::Refused(why) => return Watched::Refused(why),
                        SwitchoverReply::Unknown(why) => self.running.say(format!(
                            "Patroni: {why}: nobody knows whether it switches over; clients stay held for {} s at most",
                            self.hold.until().saturating_duration_since(Instant::now()).as_secs()
                        )),
                    }
                }
                Ok(()) = snapshots.changed() => {}
                () = sleep_until(next.min(self.hold.until())) => {
                    next = Instant::now() + RENEWAL;
                    self.hold.renew().await;
                }
            }
        }
    }
}
