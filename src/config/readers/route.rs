//! One route: the members that may serve it, the queue, and what the servers learn of the client.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::targets::{tags, targets};
use super::{hold, on_unfit, pool};
use crate::config::fields::{Context, Section};
use crate::config::model::{
    Access, Auth, Balance, ClientAddressOptions, CredentialUsers, OnLeader, Pool, Queue, Resume, Route,
    TargetRole, Tier,
};
use crate::config::schema::ROUTE;

/// What a route's reader needs to know of other sections.
#[derive(Clone, Copy, Default)]
pub(super) struct RouteContext<'a> {
    /// The cluster is a list of servers: of their roles and tags nothing is known but which one
    /// leads.
    pub(super) is_fixed: bool,
    /// The cluster's `server.max_connections`, if it has a limit.
    pub(super) max_connections: Option<u32>,
    /// The cluster has errors itself: whether sessions may have to wait is not known.
    pub(super) is_cluster_unknown: bool,
    pub(super) probe_interval: Option<Duration>,
    /// `None` where `auth` has errors itself.
    pub(super) auth: Option<&'a Auth>,
}

/// `cluster`: `None` after an error.
pub(super) fn read(
    section: &Section<'_>,
    name: &str,
    cluster: Option<&str>,
    around: &RouteContext<'_>,
) -> Option<Route> {
    let targets = section
        .required("targets")
        .and_then(|field| targets(&field, around.is_fixed));
    with_targets(section, name, cluster, targets, around)
}

impl Route {
    /// A route to the leader, with everything else at its default.
    pub fn read_write(name: &str, cluster: &str) -> Self {
        Self::new(name, cluster, vec![TargetRole::Leader.into()])
    }

    /// A route to any replica, with everything else at its default.
    pub fn read_only(name: &str, cluster: &str) -> Self {
        Self::new(name, cluster, vec![TargetRole::Replica.into()])
    }

    /// With everything else at its default.
    pub fn new(name: &str, cluster: &str, targets: Vec<Tier>) -> Self {
        let context = Context::new(Path::new(""), 0, &|_| None);
        let section = Section::unwritten(&context, &ROUTE);
        with_targets(
            &section,
            name,
            Some(cluster),
            Some(targets),
            &RouteContext::default(),
        )
        .unwrap_or_else(|| unreachable!("a section that is not written has no errors"))
    }
}

fn with_targets(
    section: &Section<'_>,
    name: &str,
    cluster: Option<&str>,
    targets: Option<Vec<Tier>>,
    around: &RouteContext<'_>,
) -> Option<Route> {
    let access = targets.as_deref().map(Access::of);
    let (queue, pool) = queue_and_pool(section, around);
    let resume = hold::resume(section, pool.as_ref());
    let tracking = (resume == Resume::Tracked && pool.is_none())
        .then(|| pool::of_tracked_sessions(&section.section("pool")));
    let hold = hold::hold(section, resume);
    let client_address = client_address_options(section, pool.is_some());
    let tags = match section.field("tags") {
        Some(field) => tags(&field, around.is_fixed),
        None => Some(BTreeMap::new()),
    };
    let balance = section.one_of("balance");
    let on_leader = on_leader(section, around.auth);
    if let Some(targets) = &targets {
        check_targets(section, targets, balance, on_leader);
    }
    let max_lag = on_unfit::max_lag(section, access, around.probe_interval);
    let on_unfit = on_unfit::on_unfit(section);
    Some(Route {
        name: Arc::from(name),
        cluster: Arc::from(cluster?),
        access: access?,
        targets: targets?,
        tags: tags?,
        balance: balance?,
        read_only_on_leader: on_leader?,
        max_lag,
        on_unfit,
        queue,
        pool,
        resume,
        tracking,
        hold,
        client_address,
    })
}

/// What has no effect with these targets, or is not safe.
fn check_targets(
    section: &Section<'_>,
    targets: &[Tier],
    balance: Option<Balance>,
    on_leader: Option<OnLeader>,
) {
    let on_leader_field = section.field("read_only_on_leader");
    match (Access::of(targets), targets.iter().any(Tier::takes_leader)) {
        (Access::ReadWrite, _) => {
            let default = section.default_word("balance");
            if let Some(field) = section
                .field("balance")
                .filter(|_| balance.is_some_and(|balance| balance != default))
            {
                field.error("has no effect: there is one leader at most");
            }
            if let Some(field) = on_leader_field {
                field.error("has no effect: `targets: [leader]` is a read-write route");
            }
        }
        (Access::ReadOnly, true) if on_leader == Some(OnLeader::Refused) => {
            let place = section.field("targets").or(on_leader_field);
            if let Some(field) = place {
                field.error_with_hint(
                    "sends read-only sessions to the leader, where only their privileges keep them from writing",
                    "remove `leader` and `any`, or set `read_only_on_leader` to `unenforced` or `enforced`; \
                     a read-write route has `targets: [leader]`",
                );
            }
        }
        (Access::ReadOnly, false) if on_leader.is_some_and(|on_leader| on_leader != OnLeader::Refused) => {
            if let Some(field) = on_leader_field {
                field.error("has no effect: neither `leader` nor `any` is among the targets");
            }
        }
        (Access::ReadOnly, _) => {}
    }
}

fn on_leader(section: &Section<'_>, auth: Option<&Auth>) -> Option<OnLeader> {
    let on_leader = section.one_of("read_only_on_leader")?;
    if let Some(field) = section.field("read_only_on_leader")
        && on_leader == OnLeader::Enforced
        && auth.is_some_and(|auth| !replaces_everybody(auth))
    {
        field.error_with_hint(
            "`enforced` needs a role without write privileges for every user: `auth.server_credentials` with \
             `server_user` in each entry, the last of them for `users: all`",
            "or use `unenforced`; users then log in as themselves",
        );
    }
    Some(on_leader)
}

/// Whether every session logs into the servers as another user than its client's.
fn replaces_everybody(auth: &Auth) -> bool {
    let credentials = &auth.server_credentials;
    credentials.iter().all(|entry| entry.server_user.is_some())
        && credentials
            .last()
            .is_some_and(|entry| entry.users == CredentialUsers::All)
}

/// `queue_timeout` and `max_queue`, and `pool`, which gives sessions a reason to wait.
fn queue_and_pool(route: &Section<'_>, around: &RouteContext<'_>) -> (Queue, Option<Pool>) {
    let queue = Queue {
        timeout: route.duration("queue_timeout"),
        most: route.number("max_queue"),
    };
    let is_tracked = hold::is_tracked(route);
    let pool = pool::read(&route.section("pool"), &queue, around.max_connections, is_tracked);
    let timeout = route.field("queue_timeout");
    let most = route.field("max_queue");
    if around.max_connections.is_none() && !around.is_cluster_unknown && pool.is_none() {
        for field in timeout.iter().chain(&most) {
            field.error("has no effect: the cluster has no `server.max_connections`, and the route no pool");
        }
    }
    if let Some(field) = timeout.as_ref().filter(|_| queue.most == 0) {
        field.error("has no effect with `max_queue: 0`");
    }
    (queue, pool)
}

/// What is told each client's server at login separates pools, so it is not told unasked.
fn client_address_options(route: &Section<'_>, has_pool: bool) -> ClientAddressOptions {
    let section = route.section("client_address");
    let setting = section.field("setting").and_then(|field| field.truth());
    ClientAddressOptions {
        setting: setting.unwrap_or(!has_pool),
        application_name: section.truth("application_name"),
        tls: section.truth("tls"),
    }
}
