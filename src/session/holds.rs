//! Orders that hold clients: a member that is about to be stopped, or a route that an operator has
//! paused, gets no new transaction at this process. An operator's command gives them at one
//! process; that one passes them on to the other processes of its router and to its peers.
//!
//! An order counts for seconds only, so the process that gave it must renew it: if that process
//! dies, nobody stays held. At most one switchover of a cluster runs at a time.

mod examine;
mod turn;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Shared;
use super::generations::{Answer, RequestKind};
use super::paused::{MAX_PAUSE, PausedRoutes};
use super::registry::{Activity, Phase, Registry, SessionEntry, SessionKind};
use crate::cluster::snapshot::{Leader, MemberName, OrderedBy, Snapshot, StopOrder};
use crate::cluster::{ClusterHandle, LeaveRequest, LeaveToken};
pub use examine::{CandidateState, Examined, MAX_PROCESSES};
pub use turn::KnownSwitchover;
use turn::Turn;

/// The longest time for which one order counts, until it is renewed.
pub const MAX_HOLD: Duration = Duration::from_secs(30);
/// The longest name of a member in an order, in bytes.
pub const MAX_NAME: usize = 255;

/// What one process asks of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HoldRequest {
    Hold(HoldOrder),
    /// The end of an order.
    Release {
        /// The cluster's system identifier.
        cluster: u64,
        token: LeaveToken,
    },
    /// The member is not stopped after all: the end of every `before-stop` for it, whoever gave it.
    EndStop {
        /// The cluster's system identifier.
        cluster: u64,
        member: String,
    },
    /// Pause a route for so long. 0: its pause is over.
    Pause {
        route: String,
        lasts_ms: u32,
        /// `None`: an older release, which does not say.
        #[serde(default)]
        by: Option<OrderedBy>,
    },
    /// What the router knows of a switchover's members. Changes nothing.
    Examine {
        /// The cluster's system identifier.
        cluster: u64,
        leader: String,
        candidate: String,
    },
    /// How a route stands. Changes nothing.
    Look {
        route: String,
    },
}

/// Give a member no new transactions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldOrder {
    /// The cluster's system identifier: routers may have different names for it.
    pub cluster: u64,
    pub member: String,
    pub token: LeaveToken,
    /// For how long, until it is renewed. 0: the answer is all that is wanted.
    pub lasts_ms: u32,
    /// It belongs to a switchover by a router: there is only one at a time. The last renewals of
    /// one that is over say `false`.
    pub is_switchover: bool,
    /// Who ordered it, and in how long it is over, with all its renewals. `None`: an older release,
    /// which does not say.
    #[serde(default)]
    pub by: Option<OrderedBy>,
    #[serde(default)]
    pub ends_ms: Option<u32>,
}

impl HoldRequest {
    /// Who ordered it, for who is told.
    pub fn by_mut(&mut self) -> Option<&mut OrderedBy> {
        match self {
            Self::Hold(HoldOrder { by, .. }) | Self::Pause { by, .. } => by.as_mut(),
            Self::Release { .. } | Self::EndStop { .. } | Self::Examine { .. } | Self::Look { .. } => None,
        }
    }

    /// As older releases understand it.
    #[must_use]
    pub fn unnamed(&self) -> Self {
        let mut request = self.clone();
        match &mut request {
            Self::Hold(HoldOrder { by, ends_ms, .. }) => (*by, *ends_ms) = (None, None),
            Self::Pause { by, .. } => *by = None,
            Self::Release { .. } | Self::EndStop { .. } | Self::Examine { .. } | Self::Look { .. } => {}
        }
        request
    }
}

/// What a process answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HoldAnswer {
    Done(MemberActivity),
    Examined(Examined),
    Refused(HoldRefusal),
}

/// Why an order is not followed. `Display` completes "it refuses: ".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum HoldRefusal {
    #[error("another switchover of this cluster runs")]
    SwitchoverRuns,
    #[error("it has no such cluster")]
    UnknownCluster,
    #[error("its cluster has no such member")]
    UnknownMember,
    #[error("it has no such route")]
    UnknownRoute,
    #[error("too many requests wait there")]
    Busy,
    #[error("its release does not know the request")]
    Unsupported,
}

/// What the sessions of a process do on a member, and how the process sees the member.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberActivity {
    /// Sessions with a transaction or a request under way.
    pub transactions: u32,
    /// Sessions that are pinned to their server connection.
    pub pinned: u32,
    /// Sessions of routes whose sessions do not move (`resume: off`).
    pub unmovable: u32,
    /// Sessions of listeners with `mode: tcp`.
    pub forwarded: u32,
    /// Replication connections.
    pub replication: u32,
    /// It is the verified leader here.
    pub is_leader: bool,
    /// It gets no new transactions here. Of a route: it is paused.
    pub is_leaving: bool,
    /// Another member is the verified leader here.
    pub is_replaced: bool,
}

impl MemberActivity {
    /// Of two processes together. The views of the member are those of the first one.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            transactions: self.transactions.saturating_add(other.transactions),
            pinned: self.pinned.saturating_add(other.pinned),
            unmovable: self.unmovable.saturating_add(other.unmovable),
            forwarded: self.forwarded.saturating_add(other.forwarded),
            replication: self.replication.saturating_add(other.replication),
            is_leaving: self.is_leaving && (other.is_leaving || other.is_replaced),
            ..self
        }
    }

    /// Sessions that end when the member is stopped.
    pub fn cut(&self) -> u32 {
        self.pinned
            .saturating_add(self.unmovable)
            .saturating_add(self.forwarded)
            .saturating_add(self.replication)
    }

    fn count(&mut self, entry: &SessionEntry, movable: &BTreeSet<Arc<str>>) {
        match entry.origin.kind {
            SessionKind::Replication => self.replication += 1,
            SessionKind::Forwarded => self.forwarded += 1,
            SessionKind::Ordinary => {
                self.transactions += u32::from(entry.activity() != Activity::Idle);
                if entry.phase() == Phase::Pinned {
                    self.pinned += 1;
                } else if !movable.contains(&entry.origin.route) {
                    self.unmovable += 1;
                }
            }
        }
    }

    fn of(
        registry: &Registry,
        snapshot: &Snapshot,
        member: &MemberName,
        movable: &BTreeSet<Arc<str>>,
    ) -> Self {
        let leader = match &snapshot.leader {
            Leader::Verified { member, .. } => Some(member),
            Leader::None(_) => None,
        };
        let mut activity = Self {
            is_leader: leader == Some(member),
            is_leaving: snapshot
                .member(member)
                .is_some_and(|member| member.leaving.is_some()),
            is_replaced: leader.is_some_and(|leader| leader != member),
            ..Self::default()
        };
        for entry in registry.sessions_of(&snapshot.cluster) {
            if entry.placement().is_some_and(|place| place.member == *member) {
                activity.count(&entry, movable);
            }
        }
        activity
    }
}

/// Carries out orders at this process.
#[derive(Debug, Default)]
pub struct Holds {
    known: ArcSwap<Known>,
    /// By system identifier: which switchover runs.
    switchovers: Mutex<HashMap<u64, Turn>>,
}

#[derive(Debug, Default)]
struct Known {
    clusters: Vec<ClusterHandle>,
    movable: BTreeSet<Arc<str>>,
    routes: BTreeSet<Arc<str>>,
}

impl Holds {
    /// The clusters and routes of the configuration, and the routes whose sessions can go on with
    /// another server.
    pub fn replace(
        &self,
        clusters: Vec<ClusterHandle>,
        routes: BTreeSet<Arc<str>>,
        movable: BTreeSet<Arc<str>>,
    ) {
        self.known.store(Arc::new(Known {
            clusters,
            movable,
            routes,
        }));
    }

    /// The names of the clusters.
    pub fn names(&self) -> Vec<String> {
        let known = self.known.load();
        let names = known
            .clusters
            .iter()
            .map(|cluster| cluster.config().name.to_string());
        names.collect()
    }

    /// The cluster with this name.
    pub fn named(&self, name: &str) -> Option<ClusterHandle> {
        let known = self.known.load();
        let mut clusters = known.clusters.iter();
        clusters.find(|cluster| *cluster.config().name == *name).cloned()
    }

    /// Carries out a request of another process, or of this one.
    fn carry_out(&self, shared: &Shared, request: &HoldRequest) -> HoldAnswer {
        let (registry, paused) = (&shared.registry, shared.occupancy.paused_routes());
        let done = match request {
            HoldRequest::Hold(order) => self.hold(registry, order, Instant::now()),
            HoldRequest::Release { cluster, token } => self.release(*cluster, *token),
            HoldRequest::EndStop { cluster, member } => self.end_stop(registry, *cluster, member),
            HoldRequest::Pause { route, lasts_ms, by } => {
                self.pause(registry, paused, route, *lasts_ms, by.as_ref())
            }
            HoldRequest::Look { route } => self.look(registry, paused, route),
            HoldRequest::Examine {
                cluster,
                leader,
                candidate,
            } => {
                return match self.examine(shared, *cluster, leader, candidate) {
                    Ok(examined) => HoldAnswer::Examined(examined),
                    Err(refusal) => HoldAnswer::Refused(refusal),
                };
            }
        };
        match done {
            Ok(activity) => HoldAnswer::Done(activity),
            Err(refusal) => HoldAnswer::Refused(refusal),
        }
    }

    fn hold(
        &self,
        registry: &Registry,
        order: &HoldOrder,
        now: Instant,
    ) -> Result<MemberActivity, HoldRefusal> {
        let known = self.known.load();
        let cluster = known.cluster(order.cluster)?;
        let snapshot = cluster.snapshot();
        let member = MemberName::new(order.member.as_str());
        if snapshot.member(&member).is_none() {
            return Err(HoldRefusal::UnknownMember);
        }
        let lasts = Duration::from_millis(order.lasts_ms.into()).min(MAX_HOLD);
        if order.is_switchover {
            self.take_turn(order, lasts, now)?;
        } else {
            self.end_turn(order.token);
        }
        if !lasts.is_zero() {
            let ends = order.ends_ms.map(|ends| now + Duration::from_millis(ends.into()));
            let stop = StopOrder {
                is_switchover: order.is_switchover,
                by: order.by.clone(),
                since: now,
                ends,
            };
            cluster
                .leaving(LeaveRequest {
                    member: member.clone(),
                    token: order.token,
                    until: now + lasts,
                    order: stop,
                })
                .map_err(|_busy| HoldRefusal::Busy)?;
        }
        Ok(MemberActivity::of(registry, &snapshot, &member, &known.movable))
    }

    fn pause(
        &self,
        registry: &Registry,
        paused: &PausedRoutes,
        route: &str,
        lasts_ms: u32,
        by: Option<&OrderedBy>,
    ) -> Result<MemberActivity, HoldRefusal> {
        if lasts_ms == 0 {
            // Also of a route that the configuration does not have any more.
            if !paused.unpause(route) {
                self.known(route)?;
            }
        } else {
            self.known(route)?;
            let lasts = Duration::from_millis(lasts_ms.into()).min(MAX_PAUSE);
            let until = Instant::now() + lasts;
            if !paused.pause_by(route, until, by) {
                return Err(HoldRefusal::Busy);
            }
        }
        self.look(registry, paused, route)
    }

    /// The sessions of a route that have a server connection: a client that waits has nothing open.
    fn look(
        &self,
        registry: &Registry,
        paused: &PausedRoutes,
        route: &str,
    ) -> Result<MemberActivity, HoldRefusal> {
        let is_paused = paused.until(route, Instant::now()).is_some();
        if !is_paused {
            self.known(route)?;
        }
        let known = self.known.load();
        let mut activity = MemberActivity {
            is_leaving: is_paused,
            ..MemberActivity::default()
        };
        for entry in registry.sessions() {
            if *entry.origin.route == *route && entry.placement().is_some() {
                activity.count(&entry, &known.movable);
            }
        }
        Ok(activity)
    }

    fn known(&self, route: &str) -> Result<(), HoldRefusal> {
        let is_known = self.known.load().routes.contains(route);
        is_known.then_some(()).ok_or(HoldRefusal::UnknownRoute)
    }

    /// The answer says how the member stood before.
    fn end_stop(
        &self,
        registry: &Registry,
        cluster: u64,
        member: &str,
    ) -> Result<MemberActivity, HoldRefusal> {
        let known = self.known.load();
        let handle = known.cluster(cluster)?;
        let (snapshot, member) = (handle.snapshot(), MemberName::new(member));
        if snapshot.member(&member).is_none() {
            return Err(HoldRefusal::UnknownMember);
        }
        let before = MemberActivity::of(registry, &snapshot, &member, &known.movable);
        handle.end_stops(&member).map_err(|_busy| HoldRefusal::Busy)?;
        Ok(before)
    }

    fn release(&self, cluster: u64, token: LeaveToken) -> Result<MemberActivity, HoldRefusal> {
        self.end_turn(token);
        let known = self.known.load();
        let handle = known.cluster(cluster)?;
        handle.end_leaving(token).map_err(|_busy| HoldRefusal::Busy)?;
        Ok(MemberActivity::default())
    }
}

impl Shared {
    /// Carries out a request at this process.
    pub fn carry_out_here(&self, request: &HoldRequest) -> HoldAnswer {
        self.holds.carry_out(self, request)
    }

    /// Carries out a request at this process and at the others of this router. Also returns a
    /// sentence for each process that does not follow.
    pub async fn carry_out(&self, request: &HoldRequest) -> (HoldAnswer, Vec<String>) {
        let own = self.carry_out_here(request);
        let HoldAnswer::Done(mut all) = own else {
            return (own, Vec::new());
        };
        if self.generations.is_alone() {
            return (own, Vec::new());
        }
        let kind = match request {
            HoldRequest::Hold(_) => RequestKind::Hold,
            HoldRequest::Release { .. } | HoldRequest::EndStop { .. } => RequestKind::Release,
            HoldRequest::Pause { .. } | HoldRequest::Look { .. } => RequestKind::Pause,
            // Its answer is `Examined`, and that of this process is all there is.
            HoldRequest::Examine { .. } => return (own, Vec::new()),
        };
        let body = serde_json::to_vec(request).unwrap_or_default();
        let mut missing = Vec::new();
        for heard in self.generations.ask(kind, &body).await {
            let said = match &heard.answer {
                Ok(Answer::Done(body)) => serde_json::from_slice(body).map_err(|error| error.to_string()),
                Ok(_) => Err("its answer makes no sense".to_owned()),
                Err(error) => Err(error.to_string()),
            };
            match said {
                Ok(HoldAnswer::Done(activity)) => all = all.and(activity),
                Ok(HoldAnswer::Examined(_)) => missing.push(heard.missing(&"its answer makes no sense")),
                // It has no sessions there.
                Ok(HoldAnswer::Refused(
                    HoldRefusal::UnknownCluster | HoldRefusal::UnknownMember | HoldRefusal::UnknownRoute,
                )) => {}
                Ok(HoldAnswer::Refused(refusal)) => missing.push(heard.missing(&refusal)),
                Err(error) => missing.push(heard.missing(&error)),
            }
        }
        (HoldAnswer::Done(all), missing)
    }
}

impl Known {
    fn cluster(&self, identifier: u64) -> Result<&ClusterHandle, HoldRefusal> {
        self.clusters
            .iter()
            .find(|cluster| cluster.snapshot().system_identifier == Some(identifier))
            .ok_or(HoldRefusal::UnknownCluster)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn one_switchover_of_a_cluster_runs_at_a_time_until_it_is_not_renewed() {
        let holds = Holds::default();
        let order = |cluster, token| HoldOrder {
            cluster,
            member: "db1".to_owned(),
            token: LeaveToken([0, token]),
            lasts_ms: 0,
            is_switchover: true,
            by: None,
            ends_ms: None,
        };
        let (one, other) = (order(7, 1), order(7, 2));
        let now = Instant::now();
        holds.take_turn(&one, SECOND * 3, now).unwrap();
        assert_eq!(
            holds.take_turn(&other, SECOND, now),
            Err(HoldRefusal::SwitchoverRuns)
        );
        assert_eq!(
            holds.take_turn(&other, Duration::ZERO, now),
            Err(HoldRefusal::SwitchoverRuns),
            "also for one that only asks"
        );
        holds.take_turn(&order(8, 2), SECOND, now).unwrap();
        holds.take_turn(&one, SECOND * 3, now + SECOND * 2).unwrap();
        assert!(holds.take_turn(&other, SECOND, now + SECOND * 4).is_err());
        holds.take_turn(&other, SECOND, now + SECOND * 5).unwrap();
        // A question takes no turn.
        let later = now + SECOND * 10;
        holds.take_turn(&one, Duration::ZERO, later).unwrap();
        holds.take_turn(&other, SECOND, later).unwrap();
        // The end of the order makes room.
        assert_eq!(holds.release(7, other.token), Err(HoldRefusal::UnknownCluster));
        holds.take_turn(&one, SECOND, later).unwrap();
        // So does the end of the switchover, while clients are still held.
        holds.end_turn(one.token);
        holds.take_turn(&other, SECOND, later).unwrap();
    }

    #[test]
    fn requests_arrive_as_they_were_sent() {
        let order = HoldOrder {
            cluster: u64::MAX,
            member: "db1".to_owned(),
            token: LeaveToken([u64::MAX, 1]),
            lasts_ms: 3000,
            is_switchover: true,
            by: Some(OrderedBy::new("router2", "admin")),
            ends_ms: Some(27_000),
        };
        for request in [
            HoldRequest::Hold(order),
            HoldRequest::Release {
                cluster: 7,
                token: LeaveToken([1, 2]),
            },
            HoldRequest::Pause {
                route: "rw".to_owned(),
                lasts_ms: 7,
                by: None,
            },
            HoldRequest::Look {
                route: "rw".to_owned(),
            },
        ] {
            let text = serde_json::to_vec(&request).unwrap();
            assert_eq!(serde_json::from_slice::<HoldRequest>(&text).unwrap(), request);
        }
        // An older release says less.
        let older = br#"{"Pause": {"route": "rw", "lasts_ms": 7}}"#;
        let request = serde_json::from_slice::<HoldRequest>(older).unwrap();
        assert!(matches!(request, HoldRequest::Pause { by: None, .. }));
        let answer = HoldAnswer::Refused(HoldRefusal::SwitchoverRuns);
        let text = serde_json::to_vec(&answer).unwrap();
        assert_eq!(serde_json::from_slice::<HoldAnswer>(&text).unwrap(), answer);
    }

    #[test]
    fn the_activity_of_processes_is_a_sum_and_all_must_hold() {
        let one = MemberActivity {
            transactions: 1,
            pinned: 2,
            is_leader: true,
            is_leaving: true,
            ..MemberActivity::default()
        };
        let other = MemberActivity {
            transactions: 3,
            forwarded: 4,
            ..MemberActivity::default()
        };
        let both = one.and(other);
        assert_eq!((both.transactions, both.cut()), (4, 6));
        assert!(both.is_leader && !both.is_leaving);
        assert!(one.and(one).is_leaving);
    }
}
