//! What a section's check says about the servers it wants.

use super::proxy::{Method, Proxy};
use crate::cli::import::notes::Notes;
use crate::cli::import::write::{Role, Targets};

/// The port for HTTP of Connection Manager, and of this router.
const ROUTER_HTTP: u16 = 6434;
/// Where those two listen for read-write and for read-only sessions.
const ROUTER_PORTS: [(u16, Role); 2] = [(6432, Role::Leader), (6433, Role::Replica)];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meaning {
    pub(super) targets: Targets,
    /// `?lag=`, bytes.
    pub(super) max_lag: Option<u64>,
    /// `?tag_KEY=VALUE`.
    pub(super) tags: Vec<(String, String)>,
    /// The check asks Patroni.
    pub(super) asks_patroni: bool,
    /// The servers are routers in front of PostgreSQL, by their port or their check.
    pub(super) through_routers: bool,
    /// Only a name indicated the role.
    pub(super) is_guessed: bool,
}

impl Meaning {
    fn of(targets: Targets) -> Self {
        Self {
            targets,
            max_lag: None,
            tags: Vec::new(),
            asks_patroni: false,
            through_routers: false,
            is_guessed: false,
        }
    }
}

pub(super) fn meaning(proxy: &Proxy, notes: &mut Notes) -> Meaning {
    let written = proxy.check.path.as_deref().unwrap_or("/");
    let (path, query) = written.split_once('?').unwrap_or((written, ""));
    let mut meaning = match proxy.check.method {
        Method::Http => by_path(proxy, path.trim_end_matches('/'), notes),
        _ => None,
    }
    .unwrap_or_else(|| by_port_or_name(proxy, notes));
    if proxy.check.method == Method::Http {
        parameters(proxy, query, &mut meaning, notes);
    }
    if !meaning.asks_patroni {
        without_patroni(proxy, &mut meaning, notes);
    }
    meaning
}

/// Does the check go to a port that is Patroni's?
fn has_patroni_port(proxy: &Proxy) -> bool {
    proxy.servers.iter().any(|server| {
        let port = server.options.check_port.or(proxy.check.port);
        port.is_some_and(|port| port != ROUTER_HTTP && server.port != Some(port))
    })
}

/// By what the path asks; `None` for one that says nothing about roles.
fn by_path(proxy: &Proxy, path: &str, notes: &mut Notes) -> Option<Meaning> {
    use Role::{Any, Async, Leader, Quorum, Replica, Sync};
    let mut note = |why: &str| notes.differs(proxy.check.line, "option httpchk", why);
    let one = |role| vec![vec![role]];
    let targets = match path {
        "" | "/primary" | "/master" | "/read-write" => one(Leader),
        "/leader" => {
            note(
                "`/leader` is true for a standby cluster's leader too, which takes no writes and is no leader here",
            );
            one(Leader)
        }
        "/replica" => one(Replica),
        "/standby-leader" | "/standby_leader" => {
            note("there is no role for the leader of a standby cluster alone: it counts as a replica");
            one(Replica)
        }
        "/read-only" => vec![vec![Replica, Leader]],
        "/sync" | "/synchronous" => one(Sync),
        "/async" | "/asynchronous" => one(Async),
        "/quorum" => one(Quorum),
        "/read-only-sync" => vec![vec![Sync, Leader]],
        "/read-only-quorum" => vec![vec![Quorum, Leader]],
        "/health" | "/liveness" | "/readiness" | "/patroni" => one(Any),
        "/node/is-read-write" | "/connection/is-ready-rw" => return Some(of_router(path, one(Leader))),
        "/node/is-read-only" | "/connection/is-ready-ro" => return Some(of_router(path, one(Replica))),
        "/connection/is-ready" | "/connection/is-live" => {
            let mut meaning = by_port_or_name(proxy, notes);
            meaning.through_routers = true;
            return Some(meaning);
        }
        _ => {
            note("the path of the check says nothing about the role");
            return None;
        }
    };
    let mut meaning = Meaning::of(targets);
    meaning.asks_patroni = has_patroni_port(proxy);
    Some(meaning)
}

fn of_router(path: &str, targets: Targets) -> Meaning {
    let mut meaning = Meaning::of(targets);
    meaning.through_routers = path.starts_with("/connection/");
    meaning
}

/// Of a check that any server passes.
fn by_port_or_name(proxy: &Proxy, notes: &mut Notes) -> Meaning {
    let by_port = ROUTER_PORTS.iter().find(|(port, _)| {
        !proxy.servers.is_empty() && proxy.servers.iter().all(|server| server.port == Some(*port))
    });
    if let Some((_, role)) = by_port {
        let mut meaning = Meaning::of(vec![vec![*role]]);
        meaning.through_routers = true;
        return meaning;
    }
    let (role, why) = match by_name(&proxy.name) {
        Some(role) => (role, "its name"),
        None => (Role::Leader, "that being the safe choice"),
    };
    notes.differs(
        proxy.check.line.unwrap_or(proxy.line),
        &super::what(proxy),
        format!(
            "the check does not distinguish the leader from a replica; `{}` was chosen because of {why}",
            role.word()
        ),
    );
    let mut meaning = Meaning::of(vec![vec![role]]);
    meaning.is_guessed = true;
    meaning
}

/// `read-write` has both words: that of writing counts first.
fn by_name(name: &str) -> Option<Role> {
    let lower = name.to_ascii_lowercase();
    let has = |words: &[&str]| {
        let mut parts = lower.split(|c: char| !c.is_ascii_alphabetic());
        parts.any(|part| words.contains(&part))
    };
    let contains = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    if has(&["rw"]) || contains(&["write", "primary", "master", "leader"]) {
        return Some(Role::Leader);
    }
    (has(&["ro", "rr"]) || contains(&["read", "replica", "standby", "slave", "secondary"]))
        .then_some(Role::Replica)
}

/// Patroni's parameters.
fn parameters(proxy: &Proxy, query: &str, meaning: &mut Meaning, notes: &mut Notes) {
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let what = format!("option httpchk … ?{key}");
        match key {
            "lag" => match bytes(value) {
                Some(lag) => meaning.max_lag = Some(lag),
                None => notes.lost(proxy.check.line, &what, "is not a number of bytes"),
            },
            // What is probed is a standby that receives and replays.
            "replication_state" if value == "streaming" => {}
            key if key.starts_with("tag_") && key.len() > 4 => {
                meaning.tags.push((key[4..].to_owned(), value.to_owned()));
            }
            _ => notes.lost(proxy.check.line, &what, "there is no such limit"),
        }
    }
    if meaning.targets == [[Role::Leader]] && (meaning.max_lag.take().is_some() || !meaning.tags.is_empty()) {
        meaning.tags.clear();
        notes.lost(
            proxy.check.line,
            "option httpchk",
            "limits on lag and tags are for replicas; the leader has none",
        );
    }
}

/// As Patroni reads it: `kB`, `MB`, `GB` and `TB` are powers of 1024.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start_matches("%20") {
        "" | "B" => 0,
        "kB" => 10,
        "MB" => 20,
        "GB" => 30,
        "TB" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A fixed list knows the leader and replicas, and nothing finer.
fn without_patroni(proxy: &Proxy, meaning: &mut Meaning, notes: &mut Notes) {
    let fine = |role: &Role| matches!(role, Role::Sync | Role::Async | Role::Quorum);
    if !meaning.tags.is_empty() || meaning.targets.iter().flatten().any(fine) {
        meaning.tags.clear();
        for role in meaning.targets.iter_mut().flatten().filter(|role| fine(role)) {
            *role = Role::Replica;
        }
        notes.differs(
            proxy.check.line,
            "option httpchk",
            "no port of Patroni is named, and a fixed list of servers has no tags, and no roles but leader and replica",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_by_name() {
        for (name, expected) in [
            ("read-write", Some(Role::Leader)),
            ("pg_rw", Some(Role::Leader)),
            ("PrimaryPG", Some(Role::Leader)),
            ("read-only", Some(Role::Replica)),
            ("pg-ro", Some(Role::Replica)),
            ("postgres_read", Some(Role::Replica)),
            ("standbys", Some(Role::Replica)),
            ("postgres", None),
            ("rows", None),
        ] {
            assert_eq!(by_name(name), expected, "{name}");
        }
    }

    #[test]
    fn lag_as_patroni_reads_it() {
        assert_eq!(bytes("10MB"), Some(10 << 20));
        assert_eq!(bytes("16777216"), Some(16 << 20));
        assert_eq!(bytes("64kB"), Some(64 << 10));
        assert_eq!(bytes("1TB"), Some(1 << 40));
        for bad in ["", "MB", "10mb", "-1", "99999999999TB"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
    }
}
