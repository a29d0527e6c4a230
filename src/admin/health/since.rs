//! Since when something is as it is, by the events that the router keeps.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use super::Subject;
use crate::events::{ClusterChange, ClusterEvent, Event, HoldEvent, OperatorEvent, RecordedEvent};

/// In milliseconds since 1970. `None`: it began before the first event that is kept.
pub(in crate::admin) fn since(events: &[Arc<RecordedEvent>], subject: Subject<'_>) -> Option<u64> {
    let mut begun = None;
    for recorded in events.iter().rev() {
        match turn(&recorded.event, subject) {
            Some(true) => begun = Some(recorded.at),
            Some(false) => break,
            None => {}
        }
    }
    let since = begun?.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).ok()
}

/// Whether the state begins with this event, or ends; `None`: the event says nothing of it.
#[expect(
    clippy::match_same_arms,
    clippy::unnested_or_patterns,
    reason = "an event and its subject stand together"
)]
fn turn(event: &Event, subject: Subject<'_>) -> Option<bool> {
    match (event, subject) {
        (Event::Cluster(ClusterEvent { cluster, change }), _) => of_cluster(cluster, change, subject),
        (
            Event::Operator(OperatorEvent::AdminStateSet {
                cluster,
                member,
                state,
                ..
            }),
            Subject::Admin(of, name, wanted),
        ) => (cluster == of && member == name).then(|| state == wanted),
        (Event::Operator(OperatorEvent::RouteDisabled { route, .. }), Subject::Disabled(name)) => {
            (route == name).then_some(true)
        }
        (Event::Operator(OperatorEvent::RouteEnabled { route, .. }), Subject::Disabled(name))
        | (Event::Operator(OperatorEvent::RouteUnpaused { route, .. }), Subject::Paused(name))
        | (Event::Hold(HoldEvent::PauseExpired { route, .. }), Subject::Paused(name)) => {
            (route == name).then_some(false)
        }
        (Event::Operator(OperatorEvent::RoutePaused { route, .. }), Subject::Paused(name)) => {
            (route == name).then_some(true)
        }
        (Event::Operator(OperatorEvent::RouterDrained { .. }), Subject::Router) => Some(true),
        (Event::Operator(OperatorEvent::RouterReady { .. }), Subject::Router) => Some(false),
        _ => None,
    }
}

#[expect(clippy::match_same_arms, reason = "a line for each subject")]
fn of_cluster(cluster: &str, change: &ClusterChange, subject: Subject<'_>) -> Option<bool> {
    use ClusterChange as Is;
    let (of, begins) = match (change, subject) {
        (
            Is::LeaderLost { .. } | Is::NoLeader { .. } | Is::NoLeaderYet | Is::LeaderOutOfService { .. },
            Subject::NoLeader(of),
        ) => (of, true),
        (
            Is::LeaderChanged { .. } | Is::LeaderConfirmed { .. } | Is::LeaderKept { .. },
            Subject::NoLeader(of),
        ) => (of, false),
        (Is::SourceLost { .. } | Is::NoSourceYet { .. }, Subject::Source(of)) => (of, true),
        (Is::SourceBack, Subject::Source(of)) => (of, false),
        (Is::EndpointsDisagree { .. }, Subject::Disagreement(of)) => (of, true),
        (Is::EndpointsAgree, Subject::Disagreement(of)) => (of, false),
        (Is::PatroniPaused, Subject::Patroni(of)) => (of, true),
        (Is::PatroniResumed, Subject::Patroni(of)) => (of, false),
        (Is::MemberDown { member, .. }, Subject::Down(of, name)) if member == name => (of, true),
        (Is::MemberUp { member, .. }, Subject::Down(of, name)) if member == name => (of, false),
        (Is::MemberLagging { member, route, .. }, Subject::Lag(of, name, wanted))
            if member == name && route == wanted =>
        {
            (of, true)
        }
        (Is::MemberCaughtUp { member, route }, Subject::Lag(of, name, wanted))
            if member == name && route == wanted =>
        {
            (of, false)
        }
        _ => return None,
    };
    (cluster == of).then_some(begins)
}
