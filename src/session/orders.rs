//! Ends the sessions whose server is no longer the right one: at once if its role has changed, by
//! the route's policy if it is no longer fit.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::cluster::snapshot::{AdminState, Snapshot};
use crate::routing::{self, Leave, Leaving, SessionVerdict};
use crate::session::end::{Order, Reason};
use crate::session::registry::Registry;

/// How often all sessions are checked while a member is not fit: new ones may have begun.
const AGAIN: Duration = Duration::from_secs(1);

/// When the grace period of each session began, by the session's id.
type GraceStarts = HashMap<u64, Instant>;

/// Ends sessions until `stop`, or until the cluster is removed.
pub(crate) async fn enforce(
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    registry: Arc<Registry>,
    stop: CancellationToken,
) {
    let mut starts = GraceStarts::new();
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let now = Instant::now();
        let first_cut = pass(&snapshot, &registry, &mut starts, now);
        let again = is_anybody_unfit(&snapshot).then(|| now + AGAIN);
        let next = first_cut.into_iter().chain(again).min();
        let wait = async {
            match next {
                Some(next) => sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = wait => {}
            changed = snapshots.changed() => if changed.is_err() { return },
        }
    }
}

/// Gives and withdraws orders. Returns the time at which the first grace period ends.
fn pass(snapshot: &Snapshot, registry: &Registry, starts: &mut GraceStarts, now: Instant) -> Option<Instant> {
    let mut current_starts = GraceStarts::new();
    let mut first_cut = None;
    for entry in registry.sessions_of(&snapshot.cluster) {
        // A session without a server has nothing to leave.
        let Some(place) = entry.placement() else { continue };
        let origin = &entry.origin;
        if let SessionVerdict::End(reason) = place.verdict(snapshot) {
            entry.order_on(&place, Order::Now(Reason::Role(reason)));
            continue;
        }
        let Some(Leave { why, how }) =
            routing::leave(snapshot, &origin.route, origin.on_unfit, &place.member)
        else {
            entry.leave(&place, None);
            continue;
        };
        let reason = Reason::Unfit(why);
        let grace = match how {
            Leaving::Moves => {
                entry.leave(&place, Some(Order::Move(reason)));
                continue;
            }
            Leaving::AtBoundary => {
                entry.leave(&place, Some(Order::AtBoundary(reason)));
                continue;
            }
            Leaving::Within(grace) => grace,
        };
        let began = starts.get(&entry.id).copied().unwrap_or(now);
        current_starts.insert(entry.id, began);
        let cut = began + grace;
        if cut <= now {
            entry.leave(&place, Some(Order::Now(reason)));
        } else {
            entry.leave(&place, Some(Order::AtBoundary(reason)));
            first_cut = first_cut.into_iter().chain([cut]).min();
        }
    }
    *starts = current_starts;
    first_cut
}

fn is_anybody_unfit(snapshot: &Snapshot) -> bool {
    snapshot.members.iter().any(|member| {
        !member.health.up
            || !member.lagging.is_empty()
            || member.admin != AdminState::Ready
            || member.leaving.is_some()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::cluster::snapshot::{
        Health, Identity, Leader, Member, MemberName, NoLeader, Role, SourceStatus, WHOLE_SHARE,
    };
    use crate::config::{OnUnfit, Unfit};
    use crate::routing::{GrantedRole, LeaveReason};
    use crate::session::registry::{Client, Origin, Placement, SessionKind, Ticket};

    const GRACE: Duration = Duration::from_secs(5);

    fn fit() -> Member {
        Member {
            name: MemberName::new("db2"),
            host: "db2".into(),
            port: 5432,
            role: Role::Replica,
            state: "streaming".into(),
            timeline: None,
            lag: None,
            tags: BTreeMap::new(),
            health: Health {
                up: true,
                ..Health::default()
            },
            identity: Identity::Same,
            admin: AdminState::Ready,
            leaving: None,
            measured: None,
            lagging: BTreeSet::new(),
            share: WHOLE_SHARE,
            weight: 1,
            zone: None,
        }
    }

    fn lagging() -> Member {
        Member {
            lagging: ["ro".into()].into(),
            ..fit()
        }
    }

    fn snapshot(member: Member) -> Snapshot {
        Snapshot {
            cluster: "main".into(),
            version: 1,
            members: vec![member],
            leader: Leader::None(NoLeader::NotNamed),
            source: SourceStatus {
                reachable: true,
                error: None,
                disagreement: None,
            },
            system_identifier: None,
            paused: false,
            hears: true,
            patience: None,
            switchover_requested: false,
        }
    }

    fn session(registry: &Arc<Registry>, lag: Unfit) -> Ticket {
        let origin = Origin {
            client: Client::app(),
            cluster: "main".into(),
            route: "ro".into(),
            on_unfit: OnUnfit {
                lag,
                down: Unfit::Keep,
                grace: GRACE,
            },
            kind: SessionKind::Ordinary,
            counts: Arc::default(),
        };
        let ticket = registry.enter(Arc::new(origin), None).unwrap();
        ticket.entry().place(Some(Arc::new(Placement {
            member: MemberName::new("db2"),
            granted: GrantedRole::ReadOnly,
            whereabouts: None,
            process_id: 1,
            cancel: None,
        })));
        ticket
    }

    fn because_of_lag() -> Reason {
        Reason::Unfit(LeaveReason::Lagging(MemberName::new("db2")))
    }

    #[test]
    fn close_waits_for_the_grace_period_which_begins_again_with_each_lag() {
        let registry = Arc::new(Registry::default());
        let (kept, idle, close) = (
            session(&registry, Unfit::Keep),
            session(&registry, Unfit::CloseIdle),
            session(&registry, Unfit::Close),
        );
        let (mut starts, start) = (GraceStarts::new(), Instant::now());
        let mut at = |seconds: u64, member: Member| {
            let now = start + Duration::from_secs(seconds);
            let cut = pass(&snapshot(member), &registry, &mut starts, now);
            cut.map(|cut| cut.duration_since(start).as_secs())
        };
        assert_eq!(at(0, fit()), None);
        assert_eq!(at(1, lagging()), Some(6));
        for ticket in [&idle, &close] {
            assert_eq!(
                ticket.entry().ordered(),
                Some(Order::AtBoundary(because_of_lag()))
            );
        }
        assert_eq!(at(3, lagging()), Some(6));
        assert_eq!(at(4, fit()), None);
        for ticket in [&idle, &close] {
            assert_eq!(ticket.entry().ordered(), None, "it is fit again");
        }
        assert_eq!(at(5, lagging()), Some(10), "the grace period begins again");
        assert_eq!(at(10, lagging()), None);
        assert_eq!(close.entry().ordered(), Some(Order::Now(because_of_lag())));
        assert_eq!(idle.entry().ordered(), Some(Order::AtBoundary(because_of_lag())));
        assert_eq!(kept.entry().ordered(), None);
    }

    #[test]
    fn maintenance_closes_within_the_grace_period_and_draining_does_not() {
        let registry = Arc::new(Registry::default());
        let ticket = session(&registry, Unfit::Keep);
        let (mut starts, start) = (GraceStarts::new(), Instant::now());
        let administered = |admin| snapshot(Member { admin, ..fit() });
        pass(&administered(AdminState::Drain), &registry, &mut starts, start);
        let drained = Reason::Unfit(LeaveReason::Draining(MemberName::new("db2")));
        assert_eq!(
            ticket.entry().ordered(),
            Some(Order::Move(drained)),
            "who can move does; nobody ends"
        );
        let maint = administered(AdminState::Maint);
        let reason = || Reason::Unfit(LeaveReason::Maintenance(MemberName::new("db2")));
        assert_eq!(pass(&maint, &registry, &mut starts, start), Some(start + GRACE));
        assert_eq!(ticket.entry().ordered(), Some(Order::AtBoundary(reason())));
        pass(&administered(AdminState::Ready), &registry, &mut starts, start);
        assert_eq!(ticket.entry().ordered(), None);
        pass(&maint, &registry, &mut starts, start);
        pass(&maint, &registry, &mut starts, start + GRACE);
        assert_eq!(ticket.entry().ordered(), Some(Order::Now(reason())));
    }

    #[test]
    fn a_session_of_another_cluster_gets_no_order() {
        let registry = Arc::new(Registry::default());
        let ticket = session(&registry, Unfit::Close);
        let other = Snapshot {
            cluster: "other".into(),
            ..snapshot(lagging())
        };
        assert_eq!(
            pass(&other, &registry, &mut GraceStarts::new(), Instant::now()),
            None
        );
        assert_eq!(ticket.entry().ordered(), None);
    }
}
