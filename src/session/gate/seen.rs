//! What others see of a gate: whether clients are held, why, and what becomes of them.

use std::sync::Arc;

use tokio::time::Instant;

use super::position::{Position, ShutReason};
use super::{Computed, Gate, Gates};
use crate::cluster::snapshot::Snapshot;
use crate::config::Route;
use crate::routing;
use crate::session::held_routes::{HeldRoute, HoldCause, HoldChange};

impl Gates {
    /// The routes that hold their clients, by name.
    pub(in crate::session) fn held_routes(&self, now: Instant) -> Vec<HeldRoute> {
        let gates: Vec<_> = {
            let gates = self.lock();
            let living = gates
                .iter()
                .filter_map(|(key, gate)| Some((Arc::clone(&key.cluster), gate.upgrade()?)));
            living.collect()
        };
        let mut held: Vec<_> = gates
            .iter()
            .filter_map(|(cluster, gate)| gate.held_route(cluster, now))
            .collect();
        held.sort_by(|one, other| (&one.cluster, &one.route).cmp(&(&other.cluster, &other.route)));
        held
    }
}

impl Gate {
    /// Why clients are held; `None`: they are not.
    pub(super) fn cause(&self, position: &Position, snapshot: &Snapshot, route: &Route) -> Option<HoldCause> {
        match position {
            Position::Shut {
                why: ShutReason::Paused,
                ..
            } => {
                let pauses = self.paused.all();
                let by = pauses.get(&*route.name).and_then(|pause| pause.by.clone());
                Some(HoldCause::Paused(by))
            }
            Position::Shut { .. } => {
                let refused = routing::check_available(snapshot, route).err()?;
                Some(HoldCause::of(snapshot, route, &refused))
            }
            Position::Open | Position::FailFast(_) => None,
        }
    }

    /// What becomes of clients from now on.
    pub(super) fn change(
        &self,
        before: Option<&Computed>,
        position: &Position,
        cause: Option<&HoldCause>,
        now: Instant,
    ) -> Option<HoldChange> {
        let route = Arc::from(&*self.label.route);
        if let (Position::Shut { why, until, error }, Some(cause)) = (position, cause) {
            let because = error.hint.clone().filter(|_| *why == ShutReason::NoServer);
            return Some(HoldChange::Begun {
                route,
                cause: cause.clone(),
                lasts: until.duration_since(now),
                because,
            });
        }
        let before = before.filter(|known| matches!(known.position, Position::Shut { .. }))?;
        let (cause, held_before) = before.hold.clone()?;
        Some(HoldChange::Ended {
            route,
            cause,
            clients: self.line.entered() - held_before,
            waiting: self.line.length(),
            after: now.duration_since(before.since),
            error: match position {
                Position::FailFast(error) => Some(error.message.clone()),
                Position::Open | Position::Shut { .. } => None,
            },
        })
    }

    /// Whether clients are held now, and why.
    fn held_route(&self, cluster: &Arc<str>, now: Instant) -> Option<HeldRoute> {
        let known = self.state.load_full()?;
        let until = known.position.until().filter(|until| *until > now)?;
        let (cause, _) = known.hold.clone()?;
        Some(HeldRoute {
            route: Arc::from(&*self.label.route),
            cluster: Arc::clone(cluster),
            clients: self.line.length(),
            cause,
            since: known.since,
            until,
        })
    }
}
