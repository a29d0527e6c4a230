//! The end of sessions without a server connection, in a process that another one has replaced.
//!
//! Sessions stay where they are after an upgrade. In transaction mode one may do nothing for days,
//! and would keep the old process for as long. It has nothing that the new process could not give
//! it: no server connection, and so no transaction and no pin.

use std::time::Duration;

use tokio::time::sleep;
use tracing::info;

use super::end::{Order, Reason};
use super::registry::Registry;

/// How long such sessions may stay where `shutdown.handover` sets no time for all.
const STAY: Duration = Duration::from_mins(10);
/// Between two looks: others give their connections back meanwhile.
const AGAIN: Duration = Duration::from_secs(1);

/// Orders them to end, from [`STAY`] on. Never returns. Cancel safe.
pub(crate) async fn end_detached(registry: &Registry) {
    sleep(STAY).await;
    info!(
        sessions = registry.len(),
        "this process was replaced {} minutes ago; from now on its sessions end when they have no server connection",
        STAY.as_secs() / 60
    );
    loop {
        for entry in registry.sessions() {
            entry.order_detached(Order::AtBoundary(Reason::Replaced));
        }
        sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use tokio::time::timeout;

    use super::*;
    use crate::cluster::snapshot::MemberName;
    use crate::routing::GrantedRole;
    use crate::session::registry::{Client, Origin, Phase, Placement, SessionKind};

    #[tokio::test(start_paused = true)]
    async fn sessions_without_a_server_connection_end_ten_minutes_after_an_upgrade() {
        let registry = Arc::new(Registry::default());
        let origin = Arc::new(Origin {
            client: Client::app(),
            cluster: "main".into(),
            route: "rw".into(),
            on_unfit: crate::config::Route::read_only("rw", "main").on_unfit,
            kind: SessionKind::Ordinary,
            counts: Arc::default(),
        });
        let phases = [Phase::Detached, Phase::Relaying, Phase::Pinned, Phase::Waiting];
        let tickets = phases.map(|phase| {
            let ticket = registry.enter(Arc::clone(&origin), None).unwrap();
            ticket.entry().set_phase(phase);
            ticket
        });
        let ordered = || tickets.each_ref().map(|ticket| ticket.entry().ordered());
        let ends = || Some(Order::AtBoundary(Reason::Replaced));
        let end = end_detached(&registry);
        tokio::pin!(end);
        let minute = Duration::from_mins(1);
        assert!(timeout(minute * 9, &mut end).await.is_err());
        assert_eq!(ordered(), [None, None, None, None]);
        assert!(timeout(minute * 2, &mut end).await.is_err());
        assert_eq!(ordered(), [ends(), None, None, None]);
        // One that gives its connection back later.
        tickets[1].entry().set_phase(Phase::Detached);
        assert!(timeout(AGAIN * 2, &mut end).await.is_err());
        assert_eq!(ordered(), [ends(), ends(), None, None]);
    }
    /// Its phase was read a moment ago: by now it may be in a transaction, or pinned.
    #[test]
    fn a_session_that_has_got_a_server_connection_meanwhile_stays() {
        let registry = Arc::new(Registry::default());
        let origin = Arc::new(Origin {
            client: Client::app(),
            cluster: "main".into(),
            route: "rw".into(),
            on_unfit: crate::config::Route::read_only("rw", "main").on_unfit,
            kind: SessionKind::Ordinary,
            counts: Arc::default(),
        });
        let ticket = registry.enter(origin, None).unwrap();
        let entry = ticket.entry();
        entry.set_phase(Phase::Detached);
        entry.place(Some(Arc::new(Placement {
            member: MemberName::new("db1"),
            granted: GrantedRole::ReadWrite,
            whereabouts: None,
            process_id: 1,
            cancel: None,
        })));
        entry.order_detached(Order::AtBoundary(Reason::Replaced));
        assert_eq!(entry.ordered(), None);
        entry.place(None);
        entry.order_detached(Order::AtBoundary(Reason::Replaced));
        assert_eq!(entry.ordered(), Some(Order::AtBoundary(Reason::Replaced)));
    }
}
