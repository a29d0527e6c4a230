//! `resume` and `hold` of a route.

use std::time::Duration;

use crate::config::fields::Section;
use crate::config::model::{Hold, Pool, PoolMode, Resume};

/// `resume: tracked` is written.
pub(super) fn is_tracked(route: &Section<'_>) -> bool {
    let written = route.field("resume");
    written.is_some_and(|field| field.written_text() == Some("tracked"))
}

/// Sessions of a transaction pool are always tracked.
pub(super) fn resume(route: &Section<'_>, pool: Option<&Pool>) -> Resume {
    let is_transaction = pool.is_some_and(|pool| pool.mode == PoolMode::Transaction);
    let Some(field) = route.field("resume") else {
        return if is_transaction {
            Resume::Tracked
        } else {
            Resume::Off
        };
    };
    let resume = field.one_of().unwrap_or(Resume::Tracked);
    if resume == Resume::Off && is_transaction {
        field.error_with_hint(
            "cannot be `off` with `pool: {mode: transaction}`: the router knows the state of such sessions in any case",
            "remove it, or write `mode: session`",
        );
    }
    resume
}

pub(super) fn hold(route: &Section<'_>, resume: Resume) -> Hold {
    let section = route.section("hold");
    let is_tracked = resume == Resume::Tracked;
    let logins = section.field("logins").and_then(|field| field.truth());
    let timeout = section.field("timeout").and_then(|field| field.duration());
    let hold = Hold {
        timeout,
        max_clients: section.field("max_clients").and_then(|field| field.number()),
        max_bytes: section.size("max_bytes"),
        logins: logins.unwrap_or(is_tracked),
    };
    let is_off = hold.timeout == Some(Duration::ZERO);
    let useless = match (is_tracked, hold.logins) {
        (false, false) => Some("has no effect: with `resume: off` nobody is held, unless `logins` is `true`"),
        _ if is_off => Some("has no effect with `timeout: 0`: nobody is held"),
        _ => None,
    };
    let keys = ["timeout", "max_clients", "max_bytes"];
    // `timeout: 0` itself has an effect where somebody would be held.
    let keys = if is_off && useless.is_some() && (is_tracked || hold.logins) {
        &keys[1..]
    } else {
        &keys[..]
    };
    match useless {
        Some(message) => {
            for field in keys.iter().filter_map(|key| section.field(key)) {
                field.error(message);
            }
        }
        None => {
            if let Some(field) = section.field("max_bytes").filter(|_| !is_tracked) {
                field.error("has no effect with `resume: off`: only logins are held");
            }
        }
    }
    hold
}
