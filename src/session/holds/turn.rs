//! At most one switchover of a cluster runs at a time, on all routers that know of it.

use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use super::{HoldOrder, HoldRefusal, Holds};
use crate::cluster::LeaveToken;
use crate::cluster::snapshot::OrderedBy;

/// A cluster's switchover.
#[derive(Debug)]
pub(super) struct Turn {
    token: LeaveToken,
    /// How long it counts if it is not renewed.
    until: Instant,
    member: String,
    by: Option<OrderedBy>,
}

/// A switchover that runs, as each router that takes part knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownSwitchover {
    pub cluster: String,
    pub leader: String,
    /// `None`: the release of the router that runs it does not say.
    pub by: Option<OrderedBy>,
}

impl Holds {
    pub(super) fn take_turn(
        &self,
        order: &HoldOrder,
        lasts: Duration,
        now: Instant,
    ) -> Result<(), HoldRefusal> {
        let mut running = self.switchovers.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, turn| turn.until > now);
        if running
            .get(&order.cluster)
            .is_some_and(|other| other.token != order.token)
        {
            return Err(HoldRefusal::SwitchoverRuns);
        }
        if !lasts.is_zero() {
            let turn = Turn {
                token: order.token,
                until: now + lasts,
                member: order.member.clone(),
                by: order.by.clone(),
            };
            running.insert(order.cluster, turn);
        }
        Ok(())
    }

    pub(super) fn end_turn(&self, token: LeaveToken) {
        let mut running = self.switchovers.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|_, turn| turn.token != token);
    }

    /// The switchovers that run now, on whatever router.
    pub fn switchovers(&self) -> Vec<KnownSwitchover> {
        let now = Instant::now();
        let running = self.switchovers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.known.load();
        let name = |cluster: u64| Some(known.cluster(cluster).ok()?.config().name.to_string());
        let running = running.iter().filter(|(_, turn)| turn.until > now);
        running
            .filter_map(|(cluster, turn)| {
                Some(KnownSwitchover {
                    cluster: name(*cluster)?,
                    leader: turn.member.clone(),
                    by: turn.by.clone(),
                })
            })
            .collect()
    }
}
