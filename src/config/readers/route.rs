//! One route: the members that may serve it, the queue, and what the servers learn of the client.

use std::collections::BTreeMap;

use super::targets::{tags, targets};
use crate::config::fields::{Field, Section};
use crate::config::model::{
    Access, Auth, Balance, ClientAddressOptions, CredentialUsers, OnLeader, Queue, Route, Tier,
};

/// The part of `routes.NAME` that says who may serve it. `is_fixed`: its cluster is a list of servers, of whose roles
/// and tags nothing is known but who leads. `is_bounded`: its members may be full. `auth`: `None` where it has faults
/// of its own.
pub(super) fn read(
    section: &Section<'_>,
    name: &str,
    cluster: Option<&str>,
    is_fixed: bool,
    is_bounded: bool,
    auth: Option<&Auth>,
) -> Option<Route> {
    let queue = queue(section, is_bounded);
    let client_address = client_address_options(section);
    let targets = section
        .required("targets")
        .and_then(|field| targets(&field, is_fixed));
    let tags = match section.field("tags") {
        Some(field) => tags(&field, is_fixed),
        None => Some(BTreeMap::new()),
    };
    let balance_field = section.field("balance");
    let balance = section.one_of(
        "balance",
        &[
            ("least_connections", Some(Balance::LeastConnections)),
            ("round_robin", Some(Balance::RoundRobin)),
            ("random", Some(Balance::Random)),
            ("source_hash", Some(Balance::SourceHash)),
            ("first", Some(Balance::First)),
        ],
    );
    let on_leader_field = section.field("read_only_on_leader");
    let on_leader = match &on_leader_field {
        Some(field) => on_leader(field, auth),
        None => Some(OnLeader::default()),
    };
    let targets = targets?;
    match (Access::of(&targets), targets.iter().any(Tier::takes_leader)) {
        (Access::ReadWrite, _) => {
            if let Some(field) = balance_field.filter(|_| balance.is_some_and(|b| b != Balance::default())) {
                field.fault("has no effect: there is one leader at most");
            }
            if let Some(field) = on_leader_field {
                field.fault("has no effect: `targets: [leader]` is a read-write route");
            }
        }
        (Access::ReadOnly, true) if on_leader == Some(OnLeader::Refused) => {
            let place = section.field("targets").or(on_leader_field);
            if let Some(field) = place {
                field.fault_with(
                    "sends read-only sessions to the leader, where nothing but their privileges keeps them from writing",
                    "leave `leader` and `any` out, or allow it with `read_only_on_leader`, `unenforced` or `enforced`; \
                     a read-write route has the targets `[leader]` alone",
                );
            }
        }
        (Access::ReadOnly, false) if on_leader.is_some_and(|on_leader| on_leader != OnLeader::Refused) => {
            if let Some(field) = on_leader_field {
                field.fault("has no effect: neither `leader` nor `any` is among the targets");
            }
        }
        (Access::ReadOnly, _) => {}
    }
    Some(Route {
        tags: tags?,
        balance: balance?,
        read_only_on_leader: on_leader?,
        queue,
        client_address,
        ..Route::new(name, cluster?, targets)
    })
}

fn on_leader(field: &Field<'_>, auth: Option<&Auth>) -> Option<OnLeader> {
    let on_leader = field.one_of(&[
        ("refused", Some(OnLeader::Refused)),
        ("unenforced", Some(OnLeader::Unenforced)),
        ("enforced", Some(OnLeader::Enforced)),
    ])?;
    if on_leader == OnLeader::Enforced && auth.is_some_and(|auth| !replaces_everybody(auth)) {
        field.fault_with(
            "`enforced` needs a role that may not write for every user: `auth.server_credentials` with `server_user` in \
             each entry, the last of them for `users: all`",
            "or `unenforced`, where users log in as themselves",
        );
    }
    Some(on_leader)
}

/// Whether nobody's sessions log in as who they came in as.
fn replaces_everybody(auth: &Auth) -> bool {
    let credentials = &auth.server_credentials;
    credentials.iter().all(|entry| entry.server_user.is_some())
        && credentials
            .last()
            .is_some_and(|entry| entry.users == CredentialUsers::All)
}

/// `queue_timeout` and `max_queue`. `is_bounded`: the cluster has `server.max_connections`, without which nobody waits.
fn queue(route: &Section<'_>, is_bounded: bool) -> Queue {
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

fn client_address_options(route: &Section<'_>) -> ClientAddressOptions {
    let section = route.section("client_address");
    ClientAddressOptions {
        setting: section.truth("setting"),
        application_name: section.truth("application_name"),
        tls: section.truth("tls"),
    }
}
