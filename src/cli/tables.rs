//! What `trunkline members`, `routes`, `sessions`, `pools` and `servers` print.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::table::Table;
use crate::admin::{
    HoldView, MemberView, PoolMemberView, PoolView, RouteView, ServerConnectionView, SessionView, lasting,
    lasting_ms,
};

/// As a cell: `-` where there is nothing.
fn word(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

fn optional(value: Option<&impl ToString>) -> String {
    word(&value.map(ToString::to_string).unwrap_or_default())
}

/// A process id; 0 is none, or one that is not known.
fn process(id: u32) -> String {
    optional((id > 0).then_some(&id))
}

pub(super) fn member_table(members: &[MemberView]) -> String {
    let mut table = Table::new(&[
        "NAME",
        "ADDRESS",
        "ROLE",
        "STATE",
        "STATUS",
        "ADMIN",
        "WEIGHT",
        "ZONE",
        "TL",
        "LAG",
        "SESSIONS",
        "CONNECTIONS",
        "CHECK",
        "ROUTES",
        "LAST CHECK",
    ])
    .right(&["WEIGHT", "TL", "LAG", "SESSIONS", "CONNECTIONS"]);
    for member in members {
        let fit = member.routes.iter().filter(|route| route.fit);
        let routes: Vec<&str> = fit.map(|route| route.route.as_str()).collect();
        let address = match (member.host.as_str(), member.port) {
            ("", _) => "-".to_owned(),
            (host, port) if host.contains(':') => format!("[{host}]:{port}"),
            (host, port) => format!("{host}:{port}"),
        };
        table.row(vec![
            word(&member.name),
            address,
            optional(member.shown_role().as_ref()),
            word(&member.state),
            member.status.to_string(),
            word(&member.admin),
            member.weight.to_string(),
            optional(member.zone.as_ref()),
            optional(member.timeline.as_ref()),
            optional(member.lag.map(bytes).as_ref()),
            member.sessions.to_string(),
            optional(member.server_connections.as_ref()),
            word(&member.check.status),
            word(&routes.join(",")),
            optional(member.check.text.as_ref()),
        ]);
    }
    table.text()
}

pub(super) fn route_table(routes: &[RouteView]) -> String {
    let mut table = Table::new(&[
        "NAME", "CLUSTER", "ACCESS", "POOL", "ADMIN", "SESSIONS", "MEMBERS", "HOLD",
    ])
    .right(&["SESSIONS"]);
    for route in routes {
        table.row(vec![
            word(&route.name),
            optional(route.cluster.as_ref()),
            optional(route.access.as_ref()),
            word(&route.pool),
            match route.paused_s {
                Some(left) => format!("{}, paused, {} left", word(&route.admin), lasting(left)),
                None => word(&route.admin),
            },
            route.sessions.to_string(),
            word(&route.members.join(",")),
            optional(route.hold.as_ref().map(HoldView::in_short).as_ref()),
        ]);
    }
    table.text()
}

/// One line for each member of a pool; `-` as the member of a pool without connections.
pub(super) fn pool_table(pools: &[PoolView]) -> String {
    let numbers = [
        "IDLE", "LEASED", "OPENING", "PINNED", "MAX", "RESERVE", "WAITING", "WAIT", "PROCESS",
    ];
    let mut table = Table::new(&[
        "ROUTE", "USER", "DATABASE", "MEMBER", "IDLE", "LEASED", "OPENING", "PINNED", "MAX", "RESERVE",
        "WAITING", "WAIT", "PROCESS", "PINS",
    ])
    .right(&numbers);
    let nothing = PoolMemberView {
        member: String::new(),
        idle: 0,
        leased: 0,
        opening: 0,
        outdated: 0,
        pinned: 0,
        pins: BTreeMap::new(),
        idle_connections: Vec::new(),
    };
    for pool in pools {
        let single = usize::from(pool.members.is_empty());
        for member in pool.members.iter().chain(std::iter::once(&nothing).take(single)) {
            let pins = member
                .pins
                .iter()
                .map(|(reason, count)| format!("{reason} {count}"));
            table.row(vec![
                word(&pool.route),
                word(&pool.user),
                word(&pool.database),
                word(&member.member),
                member.idle.to_string(),
                member.leased.to_string(),
                member.opening.to_string(),
                member.pinned.to_string(),
                pool.max_connections
                    .map_or_else(|| "-".to_owned(), |most| most.to_string()),
                pool.reserve.to_string(),
                pool.waiting.to_string(),
                lasting_ms(pool.longest_wait_ms),
                process(pool.router_process_id),
                word(&pins.collect::<Vec<_>>().join(",")),
            ]);
        }
    }
    table.text()
}

/// One line for each server connection.
pub(super) fn server_table(servers: &[ServerConnectionView]) -> String {
    let mut table = Table::new(&[
        "MEMBER", "PID", "ROUTE", "USER", "DATABASE", "STATE", "SESSION", "HELD", "IDLE", "LEASES", "PROCESS",
    ])
    .right(&["PID", "SESSION", "HELD", "IDLE", "LEASES", "PROCESS"]);
    for server in servers {
        table.row(vec![
            word(&server.member),
            process(server.process_id),
            word(&server.route),
            word(&server.user),
            word(&server.database),
            word(&server.state),
            optional(server.session.as_ref()),
            optional(server.held_s.map(lasting).as_ref()),
            optional(server.idle_ms.map(|idle| lasting(idle / 1000)).as_ref()),
            optional(server.leases.as_ref()),
            process(server.router_process_id),
        ]);
    }
    table.text()
}

pub(super) fn session_table(sessions: &[SessionView]) -> String {
    let mut table = Table::new(&[
        "ID", "CLIENT", "USER", "DATABASE", "ROUTE", "MEMBER", "PID", "STATE", "HELD", "AGE", "XACTS", "IN",
        "OUT", "TLS", "PROCESS",
    ])
    .right(&["ID", "PID", "HELD", "AGE", "XACTS", "IN", "OUT", "PROCESS"]);
    for session in sessions {
        table.row(vec![
            session.id.to_string(),
            word(&session.client),
            word(&session.user),
            word(&session.database),
            word(&session.route),
            word(&session.member),
            process(session.process_id),
            session_state(session),
            optional(held(session).as_ref()),
            lasting(session.age_s),
            session.transactions.to_string(),
            bytes(session.bytes_up),
            bytes(session.bytes_down),
            optional(session.tls.as_ref()),
            process(session.router_process_id),
        ]);
    }
    table.text()
}

/// For how long it has had its server connection, or waits for one.
fn held(session: &SessionView) -> Option<String> {
    let waits = session.waiting_s.map(|waits| format!("waits {}", lasting(waits)));
    waits.or_else(|| session.held_s.map(lasting))
}

/// What a table of pools does not count.
pub(super) fn held_beside_pools(holds: &[HoldView], route: Option<&str>) -> String {
    let mut text = String::new();
    for hold in holds {
        if hold.clients > 0 && route.is_none_or(|route| route == hold.route) {
            // Writing to a String does not fail.
            let _ = writeln!(text, "held, and not in WAITING: {}", hold.in_words());
        }
    }
    text
}

/// `idle`, `idle, detached`, `waiting`, `idle, pinned (listen)`, `active (ending: …)`
fn session_state(session: &SessionView) -> String {
    // Who waits for a server connection is not idle, and not active there.
    let mut text = match session.phase.as_str() {
        "waiting" => session.phase.clone(),
        _ => session.state.to_string(),
    };
    // Writing to a String does not fail.
    match (session.phase.as_str(), session.pins.is_empty()) {
        ("relaying" | "waiting", _) => {}
        (phase, true) => _ = write!(text, ", {phase}"),
        (phase, false) => _ = write!(text, ", {phase} ({})", session.pins.join(", ")),
    }
    if let Some(ending) = &session.ending {
        let _ = write!(text, " (ending: {ending})");
    }
    text
}

/// `512`, `1.5k`, `20M`, `3G`
pub(super) fn bytes(amount: u64) -> String {
    let units = [("G", 1_u64 << 30), ("M", 1 << 20), ("k", 1 << 10)];
    match units.iter().find(|(_, size)| amount >= *size) {
        Some((unit, size)) => {
            let tenths = u128::from(amount) * 10 / u128::from(*size);
            if tenths < 100 {
                format!("{}.{}{unit}", tenths / 10, tenths % 10)
            } else {
                format!("{}{unit}", tenths / 10)
            }
        }
        None => amount.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;
    use serde_json::json;

    use super::*;
    use crate::cli::status::scene::session;

    #[test]
    fn amounts_are_short() {
        let shown = [0, 1023, 1536, 10_240, 20 << 20, 3 << 30].map(bytes);
        assert_eq!(shown, ["0", "1023", "1.5k", "10k", "20M", "3.0G"]);
    }

    #[test]
    fn a_session_without_a_server_connection_has_no_process_id() {
        let mut cut = session(7, "idle", 9, 3, 0);
        cut.member.clear();
        cut.process_id = 0;
        cut.router_process_id = 0;
        cut.phase = "detached".to_owned();
        let text = session_table(&[cut]);
        let row: Vec<&str> = text.lines().nth(1).expect("a row").split_whitespace().collect();
        assert_eq!(
            row,
            [
                "7",
                "10.0.0.9:7",
                "app",
                "app",
                "rw",
                "-",
                "-",
                "idle,",
                "detached",
                "-",
                "9",
                "s",
                "3",
                "0",
                "0",
                "-",
                "-"
            ]
        );
    }

    #[test]
    fn a_member_is_one_aligned_line() {
        let member = json!({
            "name": "db1", "cluster": "main", "host": "10.0.0.1", "port": 5432, "role": "replica", "leader": false,
            "state": "streaming", "status": "DRAIN", "admin": "drain", "weight": 1, "zone": null, "timeline": 3, "lag": 0,
            "lag_seconds": null, "tags": {}, "sessions": 2,
            "check": {"status": "L7OK", "text": "answered in 0.5 ms", "in_a_row": 2, "age_ms": 1},
            "routes": [{"route": "read-write", "fit": false, "reason": "is being drained"}],
        });
        let mut member = MemberView::deserialize(&member).expect("a member");
        let text = member_table(std::slice::from_ref(&member));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        for (heading, cell) in [("STATUS", "DRAIN"), ("CHECK", "L7OK"), ("ADMIN", "drain")] {
            assert_eq!(
                lines[0].find(heading),
                lines[1].find(&format!(" {cell} ")).map(|at| at + 1),
                "{text}"
            );
        }
        // Patroni still names it, and the router has verified nobody.
        (member.role_shown, member.lag) = (Some("named leader".to_owned()), None);
        let text = member_table(&[member]);
        assert!(text.contains("  named leader  streaming  "), "{text}");
        assert!(text.contains("  3    -         2  "), "{text}");
    }

    #[test]
    fn who_waits_for_a_connection_is_not_idle() {
        let mut waiting = session(7, "idle", 75, 3, 0);
        (waiting.phase, waiting.waiting_s) = ("waiting".to_owned(), Some(3));
        let text = session_table(&[waiting]);
        assert!(text.contains("  waiting  waits 3 s  1 min 15 s  "), "{text}");
        assert!(!text.contains("idle"), "{text}");
    }
}
