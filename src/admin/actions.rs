//! What an operator orders, carried out the same way however it was asked for: by HTTP, with the
//! program, at the console. Each order is an event that names who asked.
//!
//! The caller has checked that he may, and looked names up.

use std::time::Duration;

use tokio::time::timeout;

use super::gather;
use super::handles::{ClusterView, Handles};
use super::operations::{Change, Ending, Gathered, Reconnection, ReloadAnswer};
use super::views::{MemberView, RouteView, SessionView};
use crate::cluster::Busy;
use crate::cluster::snapshot::{Member, MemberName, Snapshot};
use crate::events::OperatorEvent;

/// For a change to be seen in a snapshot. It is on its way in any case.
const EFFECT: Duration = Duration::from_secs(1);
/// The longest grace for sessions that are to end, in seconds.
pub(super) const MOST_GRACE: u64 = 24 * 3600;

/// A change of a member that was made.
#[derive(Debug)]
pub(super) struct ChangedMember {
    /// As it is now; `None` if the cluster does not have it any more.
    pub(super) member: Option<MemberView>,
    /// The change has taken effect; otherwise it is on its way.
    pub(super) in_time: bool,
    /// A sentence for each process that does not follow.
    pub(super) missing: Vec<String>,
}

/// The member as it is now.
pub(super) fn shown(
    handles: &Handles,
    view: &ClusterView,
    snapshot: &Snapshot,
    member: &Member,
) -> MemberView {
    let load = handles.operations.load_of(&view.name, &member.name);
    MemberView::new(view, snapshot, member, load)
}

/// Changes how a member is used, and waits a moment for the effect.
pub(super) async fn change_member(
    handles: &Handles,
    view: &ClusterView,
    name: &MemberName,
    change: Change,
    by: String,
) -> Result<ChangedMember, Busy> {
    let mut snapshots = view.snapshot.clone();
    snapshots.mark_unchanged();
    let changed = handles.operations.administer(&view.name, name, change).await?;
    let (cluster, member) = (view.name.to_string(), name.to_string());
    handles.events.emit(match change {
        Change::Admin(state) => OperatorEvent::AdminStateSet {
            cluster,
            member,
            state: state.to_string(),
            by,
        },
        Change::Weight(Some(weight)) => OperatorEvent::WeightSet {
            cluster,
            member,
            weight,
            by,
        },
        Change::Weight(None) => OperatorEvent::WeightReset { cluster, member, by },
    });
    let is_seen = |member: &Member| match change {
        Change::Admin(state) => member.admin == state,
        Change::Weight(Some(weight)) => member.weight == weight,
        Change::Weight(None) => false,
    };
    let seen = async {
        if change == Change::Weight(None) {
            // This task does not know the new weight, which may be the same as before.
            let _ = timeout(EFFECT / 5, snapshots.changed()).await;
            return;
        }
        let _ = snapshots
            .wait_for(|snapshot| snapshot.member(name).is_none_or(is_seen))
            .await;
    };
    let in_time = timeout(EFFECT, seen).await.is_ok();
    let snapshot = view.snapshot.borrow().clone();
    warn_of(&changed.missing, "a member's state");
    Ok(ChangedMember {
        member: snapshot
            .member(name)
            .map(|member| shown(handles, view, &snapshot, member)),
        in_time,
        missing: changed.missing,
    })
}

/// Ends the sessions on a member, and returns how many there are.
pub(super) async fn close_sessions(
    handles: &Handles,
    cluster: &str,
    name: &MemberName,
    ending: Ending,
    by: String,
) -> Gathered<usize> {
    let ended = handles.operations.end_sessions_on(cluster, name, ending).await;
    handles.events.emit(OperatorEvent::SessionsEnded {
        cluster: cluster.to_owned(),
        member: name.to_string(),
        sessions: ended.value,
        how: how(ending),
        by,
    });
    warn_of(&ended.missing, "the end of the sessions on a member");
    ended
}

/// Ends one session; `None`: there is none of this number in the processes that answered.
pub(super) async fn kill(
    handles: &Handles,
    id: u64,
    ending: Ending,
    by: String,
) -> Gathered<Option<SessionView>> {
    let found = handles.operations.end_session(id, ending).await;
    if let Some(session) = &found.value {
        handles.events.emit(OperatorEvent::SessionEnded {
            session: session.id,
            client: session.client.clone(),
            user: session.user.clone(),
            member: session.member.clone(),
            how: how(ending),
            by,
        });
    }
    found
}

/// Replaces server connections of pools, and returns how many there are.
pub(super) async fn reconnect(handles: &Handles, which: &Reconnection, by: String) -> Gathered<usize> {
    let replaced = handles.operations.reconnect(which).await;
    handles.events.emit(OperatorEvent::Reconnect {
        which: which.to_string(),
        connections: replaced.value,
        by,
    });
    warn_of(&replaced.missing, "new server connections of pools");
    replaced
}

/// Why a route was neither disabled nor enabled.
#[derive(Debug)]
pub(super) enum RouteRefusal {
    /// No listener has it.
    Unknown,
    Busy(Busy),
}

/// Disables a route, or enables it again; it is then as returned.
pub(super) async fn disable_route(
    handles: &Handles,
    name: &str,
    is_disabled: bool,
    by: String,
) -> Result<Gathered<RouteView>, RouteRefusal> {
    let mut known = handles.clusters.iter().flat_map(ClusterView::routes);
    if !known.any(|route| *route.name == *name) && !handles.disabled_routes.has(name) {
        return Err(RouteRefusal::Unknown);
    }
    let operations = &handles.operations;
    operations
        .disable_route(name, is_disabled)
        .map_err(RouteRefusal::Busy)?;
    let route = name.to_owned();
    handles.events.emit(if is_disabled {
        OperatorEvent::RouteDisabled { route, by }
    } else {
        OperatorEvent::RouteEnabled { route, by }
    });
    let missing = operations.refresh().await;
    let mut routes = gather::routes(handles, &handles.holding.holds()).into_iter();
    // Enabled now, and no listener has it.
    let absent = || RouteView::absent(name, false, operations.sessions_of(name));
    let value = routes.find(|route| route.name == name).unwrap_or_else(absent);
    Ok(Gathered { value, missing })
}

/// Reads the configuration again; `None`: the router is shutting down.
pub(super) async fn reload(handles: &Handles, by: String) -> Option<ReloadAnswer> {
    handles.events.emit(OperatorEvent::ReloadAsked { by });
    handles.operations.reload().await.ok()
}

/// An operator's order that did not reach every process.
fn warn_of(missing: &[String], what: &str) {
    for process in missing {
        tracing::warn!(what, "another process of this router was not reached: {process}");
    }
}

fn how(ending: Ending) -> String {
    match ending {
        Ending::Now => "now".to_owned(),
        Ending::AtBoundary { grace: None } => "at the next transaction end".to_owned(),
        Ending::AtBoundary { grace: Some(grace) } => {
            format!("at the next transaction end, after {} s anyway", grace.as_secs())
        }
    }
}
