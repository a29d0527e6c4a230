//! Sessions and pools of this process as operators see them.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::admin::{Activity, CONSOLE_PHASE, IdleConnectionView, PoolMemberView, PoolView, SessionView};
use crate::session::pool::view;
use crate::session::registry::{self, ConsoleActivity, ConsoleSession, SessionEntry};
use crate::wire::text::Escaped;

/// A session with the console: of no cluster, route and member.
pub(super) fn console_view(session: &ConsoleSession) -> SessionView {
    let client = &session.origin.client;
    let traffic = session.traffic();
    SessionView {
        id: session.id,
        client: client.address.to_string(),
        user: Escaped(&client.user).to_string(),
        database: Escaped(&client.database).to_string(),
        cluster: String::new(),
        route: String::new(),
        member: String::new(),
        process_id: 0,
        state: match session.activity() {
            ConsoleActivity::Active => Activity::Active,
            ConsoleActivity::InTransaction => Activity::IdleInTransaction,
            ConsoleActivity::Idle => Activity::Idle,
        },
        phase: CONSOLE_PHASE.to_owned(),
        pins: Vec::new(),
        held_s: None,
        waiting_s: None,
        age_s: client.since.elapsed().as_secs(),
        bytes_up: traffic.bytes_up,
        bytes_down: traffic.bytes_down,
        transactions: traffic.transactions,
        tls: client.tls.map(str::to_owned),
        ending: session.ending().map(|reason| reason.to_string()),
        router_process_id: std::process::id(),
    }
}

pub(super) fn session_view(entry: &SessionEntry) -> SessionView {
    let origin = &entry.origin;
    let placement = entry.placement();
    let traffic = entry.traffic();
    SessionView {
        id: entry.id,
        client: origin.client.address.to_string(),
        user: Escaped(&origin.client.user).to_string(),
        database: Escaped(&origin.client.database).to_string(),
        cluster: origin.cluster.to_string(),
        route: origin.route.to_string(),
        member: placement
            .as_ref()
            .map(|placement| placement.member.as_str().to_owned())
            .unwrap_or_default(),
        process_id: placement.map_or(0, |placement| placement.process_id),
        state: match entry.activity() {
            registry::Activity::Active(_) => Activity::Active,
            registry::Activity::InTransaction => Activity::IdleInTransaction,
            registry::Activity::Idle => Activity::Idle,
        },
        phase: entry.phase().as_str().to_owned(),
        pins: entry
            .pins()
            .iter()
            .map(|reason| reason.label().to_owned())
            .collect(),
        held_s: entry.held_s(),
        waiting_s: entry.waiting_s(),
        age_s: origin.client.since.elapsed().as_secs(),
        bytes_up: traffic.bytes_up,
        bytes_down: traffic.bytes_down,
        transactions: traffic.transactions,
        tls: origin.client.tls.map(str::to_owned),
        ending: entry.ordered().map(|order| order.reason().to_string()),
        router_process_id: std::process::id(),
    }
}

pub(super) fn pool_view(pool: &view::PoolView) -> PoolView {
    let idle = |idle: &view::IdleConnectionView| IdleConnectionView {
        process_id: idle.process_id,
        idle_ms: u64::try_from(idle.idle.as_millis()).unwrap_or(u64::MAX),
        leases: idle.leases,
    };
    let member = |member: &view::PoolMemberView| PoolMemberView {
        member: member.member.as_str().to_owned(),
        idle: member.idle,
        leased: member.leased,
        opening: member.opening,
        outdated: member.outdated,
        pinned: member.pinned.connections,
        pins: member
            .pinned
            .reasons()
            .map(|(reason, count)| (reason.label().to_owned(), count))
            .collect(),
        idle_connections: member.idle_connections.iter().map(idle).collect(),
    };
    PoolView {
        route: pool.name.route.to_string(),
        cluster: pool.name.cluster.to_string(),
        user: Escaped(&pool.name.user).to_string(),
        database: Escaped(&pool.name.database).to_string(),
        max_connections: pool.max_connections,
        reserve: pool.reserve,
        waiting: pool.waiting,
        longest_wait_ms: u64::try_from(pool.longest_wait.as_millis()).unwrap_or(u64::MAX),
        last_refused_ms: pool.last_refused.and_then(|ago| {
            let at = SystemTime::now()
                .checked_sub(ago)?
                .duration_since(UNIX_EPOCH)
                .ok()?;
            u64::try_from(at.as_millis()).ok()
        }),
        members: pool.members.iter().map(member).collect(),
        router_process_id: std::process::id(),
    }
}
