//! What gates say of holds, as events.

use std::time::Duration;

use crate::cluster::snapshot::OrderedBy;
use crate::events::{Events, HoldEvent};
use crate::session::held_routes::HoldChange;
use crate::session::occupancy::Occupancy;

/// Each beginning and each end of a hold is an event from now on.
pub(super) fn emit(occupancy: &Occupancy, events: Events) {
    occupancy.on_hold_change(move |change| events.emit(event(change)));
}

fn event(change: HoldChange) -> HoldEvent {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let named = |by: Option<&OrderedBy>| by.map(ToString::to_string);
    match change {
        HoldChange::Begun {
            route,
            cause,
            lasts,
            because,
        } => HoldEvent::HoldBegun {
            route: route.to_string(),
            by: named(cause.by()),
            cause: cause.to_string(),
            lasts_ms: ms(lasts),
            because,
        },
        HoldChange::Ended {
            route,
            cause,
            clients,
            waiting,
            after,
            error,
        } => {
            let (route, by, cause) = (route.to_string(), named(cause.by()), cause.to_string());
            let after_ms = ms(after);
            match error {
                None => HoldEvent::HoldEnded {
                    route,
                    cause,
                    by,
                    clients,
                    held: waiting,
                    after_ms,
                },
                Some(error) => HoldEvent::HoldFailed {
                    route,
                    cause,
                    by,
                    clients,
                    held: waiting,
                    after_ms,
                    error,
                },
            }
        }
        HoldChange::PauseExpired { route, after, by } => HoldEvent::PauseExpired {
            route: route.to_string(),
            by: named(by.as_ref()),
            after_ms: ms(after),
        },
    }
}
