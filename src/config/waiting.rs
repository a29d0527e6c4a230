//! What a route does for a session beyond choosing its server: a place in the queue, and the client's address.

use std::time::Duration;

use super::cluster::secs;
use super::section::Section;

/// Sessions wait while every server of their route has `server.max_connections` sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// How long one waits (default 10 s).
    pub timeout: Duration,
    /// How many wait at once; 0: none, they are refused (default 100).
    pub most: u32,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            timeout: secs(10),
            most: 100,
        }
    }
}

/// What a server is told of the client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddressOptions {
    /// As the setting `trunkline.client_addr` (default).
    pub setting: bool,
    /// Behind the client's own `application_name` (default: not).
    pub application_name: bool,
    /// Whether its connection is encrypted, as the setting `trunkline.client_tls` (default: not told).
    pub tls: bool,
}

impl Default for ClientAddressOptions {
    fn default() -> Self {
        Self {
            setting: true,
            application_name: false,
            tls: false,
        }
    }
}

/// `queue_timeout` and `max_queue`. `is_bounded`: the cluster has `server.max_connections`, without which nobody waits.
pub(super) fn queue(route: &Section<'_>, is_bounded: bool) -> Queue {
    let timeout = route.field("queue_timeout");
    let most = route.field("max_queue");
    if !is_bounded {
        for field in timeout.iter().chain(&most) {
            field.fault("has no effect: the cluster has no `server.max_connections` to wait for");
        }
    }
    let most_value = route.number("max_queue");
    if let Some(field) = timeout.as_ref().filter(|_| most_value == 0) {
        field.fault("has no effect with `max_queue: 0`");
    }
    Queue {
        timeout: route.duration("queue_timeout"),
        most: most_value,
    }
}

pub(super) fn client_address_options(route: &Section<'_>) -> ClientAddressOptions {
    let section = route.section("client_address");
    ClientAddressOptions {
        setting: section.truth("setting"),
        application_name: section.truth("application_name"),
        tls: section.truth("tls"),
    }
}
