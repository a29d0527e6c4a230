//! What a planned switchover would do, and why it is not possible. It gives no order.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::holding::HoldingRouter;
use super::running_hold::RunningHold;
use super::switchover::DEFAULT_GRACE;
use super::switchover_sessions::HeldSessions;
use crate::admin::{SwitchoverPlan, SwitchoverRequest, there_are};
use crate::cluster::snapshot::{Leader, Member, MemberName};
use crate::cluster::switchover::{self, LeaderAccess, SwitchoverRight};
use crate::session::holds::{CandidateState, HoldAnswer, HoldRefusal, HoldRequest, MAX_PROCESSES};
use crate::session::peers::PeerOrders;

/// For the name service to say where the peers are.
const NAMES: Duration = Duration::from_secs(2);

/// What Patroni and the servers need of the time for which clients are held.
const NEEDED: Duration = Duration::from_secs(5);

pub(super) fn grace(request: &SwitchoverRequest) -> Duration {
    request.grace_ms.map_or(DEFAULT_GRACE, Duration::from_millis)
}

/// The longest grace behind which there is time left to switch over.
pub(super) fn longest_grace(longest: Duration) -> Duration {
    longest.saturating_sub(NEEDED)
}

/// The sentence for a grace that is longer. The default is cut instead.
fn too_long(grace: Duration, longest: Duration) -> Option<String> {
    let most = longest_grace(longest);
    (grace > most && grace > DEFAULT_GRACE).then(|| {
        format!(
            "a grace of {} s is too long: clients are held for {} s at most, by Patroni's ttl and loop_wait, and the \
             switchover itself needs some of it; use --grace {}s",
            grace.as_secs(),
            longest.as_secs(),
            most.as_secs()
        )
    })
}

/// What a planned switchover needs.
pub(super) struct PreparedSwitchover {
    pub(super) hold: RunningHold,
    pub(super) access: Arc<LeaderAccess>,
    pub(super) rest: String,
    pub(super) leader: Member,
    pub(super) candidate: MemberName,
}

impl HoldingRouter {
    /// What a switchover would do. It gives no order.
    pub(super) async fn plan(
        &self,
        request: &SwitchoverRequest,
        by: &str,
    ) -> Result<(SwitchoverPlan, PreparedSwitchover), String> {
        let cluster = self.cluster(&request.cluster)?;
        let snapshot = cluster.snapshot();
        let wanted = request.to.as_deref().map(MemberName::new);
        let candidate = switchover::candidate(&snapshot, wanted.as_ref())?;
        let Leader::Verified { member: name, .. } = &snapshot.leader else {
            return Err(
                "there is no verified leader to switch over from: `trunkline members` says why; while a failover is \
                 under way wait for its end, otherwise see `patronictl list`"
                    .to_owned(),
            );
        };
        let leader = snapshot.member(name).ok_or("the leader is not listed")?.clone();
        let access = Arc::new(cluster.leader_access().map_err(|error| error.to_string())?);
        let mut hold = self.prepare(&request.cluster, name, true, by)?;
        let mut problems = Vec::new();
        problems.extend(too_long(grace(request), hold.longest));
        if snapshot.switchover_requested {
            problems.push(
                "another switchover is requested: etcd has Patroni's key \"failover\". Wait for its end, or remove it with \
                 `patronictl flush CLUSTER switchover`"
                    .to_owned(),
            );
        }
        for peer in &request.without_peers {
            if !hold.peers.as_mut().is_some_and(|peers| peers.leave_out(peer)) {
                let names = hold.peers.as_ref().map(PeerOrders::names).unwrap_or_default();
                problems.push(match names.as_slice() {
                    [] => format!("there is no peer {peer}: no other peer is configured"),
                    names => format!(
                        "there is no peer {peer} ({})",
                        there_are(names.iter().map(|name| &**name))
                    ),
                });
            }
        }
        let peers = hold.peers.as_ref().map(PeerOrders::names).unwrap_or_default();
        let round = hold.look().await;
        if let Some(Err(refusal)) = round.own {
            problems.push(refusal.to_string());
        }
        problems.extend(round.missing());
        let runs = HoldRefusal::SwitchoverRuns.to_string();
        let is_silent = |answer: &Result<_, String>| answer.as_ref().is_err_and(|why| *why != runs);
        if round.peers.iter().any(|(_, answer)| is_silent(answer)) {
            problems.push("--without-peer NAME leaves a peer out: its clients see errors".to_owned());
        }
        for (peer, answer) in &round.peers {
            if answer.as_ref().is_ok_and(|activity| !activity.is_leader) {
                problems.push(format!("peer {peer} does not see {name} as the leader"));
            }
        }
        let mut remarks = Vec::new();
        if snapshot.paused {
            remarks.push(
                "Patroni is paused: it switches over, and does not fail over by itself (`patronictl resume` ends that)"
                    .to_owned(),
            );
        }
        let (mut known, routers) = (
            self.shared.server_processes(&request.cluster, name),
            self.addresses_of_peers().await,
        );
        known.extend(examined(&mut hold, name, &candidate, &mut problems, &mut remarks).await);
        let direct = access.direct_connections(&leader, &known, &routers).await;
        let direct = direct.unwrap_or_else(|error| {
            remarks.push(format!(
                "the connections that do not come through the routers are not known: {error}"
            ));
            Vec::new()
        });
        remarks.extend(without_checkpoint(&access, &leader).await);
        let held = HeldSessions::of(&self.shared, &request.cluster, name);
        let open = held.open(&access, &leader).await;
        let rest = match access.rest_of(name).await {
            Ok((rest, is_scheduled)) => {
                if is_scheduled {
                    problems.push("Patroni has a scheduled switchover: cancel it first".to_owned());
                }
                match access.right(&rest).await {
                    SwitchoverRight::Allowed => {}
                    SwitchoverRight::Denied(why) => problems.push(format!(
                        "Patroni does not let the router switch over ({why}): see username and password_file of clusters.NAME.patroni"
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
            open,
            pinned: held.pinned(),
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

    async fn addresses_of_peers(&self) -> Vec<IpAddr> {
        match self.shared.peers.load_full() {
            Some(peers) => peers.addresses(Instant::now() + NAMES).await,
            None => Vec::new(),
        }
    }
}

/// The server processes that the peers know of; with what speaks against the switchover there.
async fn examined(
    hold: &mut RunningHold,
    leader: &MemberName,
    candidate: &MemberName,
    problems: &mut Vec<String>,
    remarks: &mut Vec<String>,
) -> Vec<u32> {
    let examine = HoldRequest::Examine {
        cluster: hold.order.cluster,
        leader: leader.to_string(),
        candidate: candidate.to_string(),
    };
    let answers = match &mut hold.peers {
        Some(peers) => peers.ask(&examine).await,
        None => Vec::new(),
    };
    let mut known = Vec::new();
    for (peer, answer) in answers {
        // An older release does not say it, and one that is silent is reported already.
        let Ok(HoldAnswer::Examined(examined)) = answer else {
            continue;
        };
        known.extend(examined.processes);
        if examined.has_more {
            remarks.push(format!(
                "peer {peer} has more than {MAX_PROCESSES} connections: some of them may be listed as not through the routers"
            ));
        }
        match examined.candidate.map(CandidateState::refusal) {
            Some(None) => {}
            Some(Some(why)) => problems.push(format!(
                "{candidate} {why} at peer {peer}: its clients would find no leader; `trunkline ready {candidate}` there"
            )),
            None => problems.push(format!("peer {peer} does not know the member {candidate}")),
        }
    }
    known
}

/// Why there will be no checkpoint before clients are held, if there will be none.
async fn without_checkpoint(access: &LeaderAccess, leader: &Member) -> Option<String> {
    match access.may_checkpoint(leader).await {
        Ok(true) => None,
        Ok(false) => Some(
            "there will be no checkpoint before clients are held: the service account needs GRANT pg_checkpoint \
             (PostgreSQL 15 and later)"
                .to_owned(),
        ),
        Err(error) => Some(format!(
            "whether the service account may make a checkpoint is not known: {error}"
        )),
    }
}
