//! What operators see of the router, its clusters, members and sessions: one value of each, which
//! HTTP sends, the command line reads back, and every other surface shows.
//!
//! The fields' names are those of `docs/http.md`. JSON has them in the order of the alphabet, and
//! `null` for what is not known.

mod event;
mod hold;
mod inventory;
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::handles::{ClusterView, Phase};
use super::words::shown_role;
use crate::cluster::snapshot::{AdminState, Leader, Member, NamedBy, Role, Snapshot};
use crate::config::Route;
use crate::routing;
use crate::session::generations::totals::MemberLoad;
pub use event::EventView;
pub use hold::HoldView;
pub use inventory::{CertificateView, LimitView, ListenerView, PeerView, SettingView};
pub use traffic::DatabaseView;
pub(super) use traffic::{StatView, TrafficView};

/// The router itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterView {
    /// `starting`, `ready`, `drain` or `stopping`.
    pub state: String,
    pub ready: bool,
    /// Why it is not ready.
    pub reason: Option<String>,
    pub sessions: usize,
    pub process_id: u32,
    pub version: String,
    /// Routes that an operator has disabled.
    #[serde(default)]
    pub disabled_routes: Vec<String>,
    /// Routes that hold their clients.
    #[serde(default)]
    pub holds: Vec<HoldView>,
}

impl RouterView {
    pub(super) fn new(
        phase: Phase,
        sessions: usize,
        disabled: &BTreeSet<String>,
        holds: Vec<HoldView>,
    ) -> Self {
        Self {
            state: phase.word().to_owned(),
            ready: phase.not_ready().is_none(),
            reason: phase.not_ready().map(str::to_owned),
            sessions,
            process_id: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            disabled_routes: disabled.iter().cloned().collect(),
            holds,
        }
    }
}

/// A route that a listener has, or one that is disabled and that no listener has now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteView {
    pub name: String,
    /// `null` if no listener has the route.
    pub cluster: Option<String>,
    /// `read-write` or `read-only`.
    pub access: Option<String>,
    /// `enabled` or `disabled`.
    pub admin: String,
    /// For how long its pause lasts; `null` without one.
    #[serde(default)]
    pub paused_s: Option<u64>,
    /// Its clients wait, and why; `null` if they do not.
    #[serde(default)]
    pub hold: Option<HoldView>,
    /// The mode of its pool. Without one `tracked` if its sessions are, otherwise `off`.
    pub pool: String,
    /// Those that may serve it now.
    pub members: Vec<String>,
    pub sessions: usize,
}

impl RouteView {
    pub(super) fn new(view: &ClusterView, route: &Route, is_disabled: bool, sessions: usize) -> Self {
        let snapshot = view.snapshot.borrow().clone();
        let fit = snapshot
            .members
            .iter()
            .filter(|member| routing::fitness(&snapshot, route, member).is_ok());
        Self {
            name: route.name.to_string(),
            cluster: Some(view.name.to_string()),
            access: Some(route.access.to_string()),
            admin: admin_word(is_disabled),
            paused_s: None,
            hold: None,
            pool: route
                .pool
                .as_ref()
                .map_or_else(|| route.resume.to_string(), |pool| pool.mode.to_string()),
            members: fit.map(|member| member.name.to_string()).collect(),
            sessions,
        }
    }

    /// A disabled route that no listener has.
    pub(super) fn absent(name: &str, is_disabled: bool, sessions: usize) -> Self {
        Self {
            name: name.to_owned(),
            cluster: None,
            access: None,
            admin: admin_word(is_disabled),
            paused_s: None,
            hold: None,
            pool: "off".to_owned(),
            members: Vec::new(),
            sessions,
        }
    }
}

fn admin_word(is_disabled: bool) -> String {
    let word = if is_disabled { "disabled" } else { "enabled" };
    word.to_owned()
}

/// One cluster, without its members' details.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSummary {
    pub name: String,
    pub leader: Option<LeaderView>,
    /// Why there is no leader.
    pub no_leader: Option<String>,
    /// Names.
    pub members: Vec<String>,
    pub source: SourceView,
    /// Text: it may be larger than the numbers that every reader of JSON takes.
    pub system_identifier: Option<String>,
    /// Patroni's `pause`.
    pub paused: bool,
    /// Of the snapshot.
    pub version: u64,
}

/// The verified leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderView {
    pub member: String,
    pub timeline: u32,
    /// `leader key`, `failsafe` or `highest timeline`.
    pub named_by: String,
}

/// The source of the list of members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceView {
    pub reachable: bool,
    pub error: Option<String>,
    pub disagreement: Option<String>,
}

impl ClusterSummary {
    pub(super) fn new(view: &ClusterView) -> Self {
        let snapshot = view.snapshot.borrow().clone();
        let (leader, no_leader) = match &snapshot.leader {
            Leader::Verified {
                member,
                timeline,
                named_by,
            } => {
                let named_by = match named_by {
                    NamedBy::LeaderKey => "leader key",
                    NamedBy::Failsafe => "failsafe",
                    NamedBy::HighestTimeline => "highest timeline",
                };
                let leader = LeaderView {
                    member: member.to_string(),
                    timeline: *timeline,
                    named_by: named_by.to_owned(),
                };
                (Some(leader), None)
            }
            Leader::None(why) => (None, Some(why.to_string())),
        };
        Self {
            name: view.name.to_string(),
            leader,
            no_leader,
            members: snapshot
                .members
                .iter()
                .map(|member| member.name.to_string())
                .collect(),
            source: SourceView {
                reachable: snapshot.source.reachable,
                error: snapshot.source.error.clone(),
                disagreement: snapshot.source.disagreement.clone(),
            },
            system_identifier: snapshot
                .system_identifier
                .map(|identifier| identifier.to_string()),
            paused: snapshot.paused,
            version: snapshot.version,
        }
    }
}

/// One member, with what the router's own probes and routes say about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberView {
    pub name: String,
    pub cluster: String,
    /// Empty where the source gives none.
    pub host: String,
    pub port: u16,
    /// By the source.
    pub role: Option<String>,
    /// As tables show it: `leader` only for the verified leader, `named leader` for another that
    /// the source names. `None` also from a router of an older version.
    #[serde(default)]
    pub role_shown: Option<String>,
    /// It is the verified leader.
    pub leader: bool,
    /// By the source.
    pub state: String,
    pub timeline: Option<u32>,
    /// Bytes, by this router's probes; `None` if it is not known. The source's number is not taken:
    /// it stays as it is when the member is dead.
    pub lag: Option<u64>,
    pub lag_seconds: Option<f64>,
    pub tags: BTreeMap<String, serde_json::Value>,
    pub status: MemberStatus,
    pub check: CheckView,
    /// `ready`, `drain` or `maint`.
    pub admin: String,
    pub weight: u16,
    pub zone: Option<String>,
    /// Those that have a server connection there now, or are connecting.
    pub sessions: usize,
    /// Of sessions, and idle ones of pools. `None`: the router is of an older version.
    #[serde(default)]
    pub server_connections: Option<usize>,
    pub routes: Vec<RouteFitness>,
}

/// The column `status` of HAProxy's statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MemberStatus {
    Up,
    Down,
    Drain,
    Maint,
    /// No probe has ended yet.
    Ini,
}

impl fmt::Display for MemberStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "UP",
            Self::Down => "DOWN",
            Self::Drain => "DRAIN",
            Self::Maint => "MAINT",
            Self::Ini => "INI",
        })
    }
}

/// The last probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckView {
    /// HAProxy's word for how it ended.
    pub status: String,
    pub text: Option<String>,
    pub in_a_row: u32,
    pub age_ms: Option<u64>,
}

/// Whether a member may get sessions of a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteFitness {
    pub route: String,
    pub fit: bool,
    pub reason: String,
}

impl MemberView {
    /// What tables show as its role.
    pub fn shown_role(&self) -> Option<&str> {
        self.role_shown.as_deref().or(self.role.as_deref())
    }

    pub(super) fn new(view: &ClusterView, snapshot: &Snapshot, member: &Member, load: MemberLoad) -> Self {
        let leader =
            matches!(&snapshot.leader, Leader::Verified { member: leader, .. } if *leader == member.name);
        let health = &member.health;
        let facts = health.facts.as_ref();
        let lag = member.measured.filter(|_| !leader && health.up);
        let role = role(member, leader);
        let answered =
            || facts.map(|facts| format!("answered in {:.1} ms", facts.latency.as_secs_f64() * 1e3));
        let age = |millis: u128| u64::try_from(millis).unwrap_or(u64::MAX);
        Self {
            name: member.name.to_string(),
            cluster: view.name.to_string(),
            host: member.host.clone(),
            port: member.port,
            role: role.map(str::to_owned),
            role_shown: shown_role(role, leader).map(str::to_owned),
            leader,
            state: member.state.clone(),
            timeline: facts.map(|facts| facts.timeline).or(member.timeline),
            lag: lag.map(|lag| lag.bytes),
            lag_seconds: lag.and_then(|lag| lag.time).map(|time| time.as_secs_f64()),
            tags: member.tags.clone(),
            status: MemberStatus::of(member),
            check: CheckView {
                status: health.check.as_str().to_owned(),
                text: health.error.clone().or_else(answered),
                in_a_row: health.streak,
                age_ms: health.last_probe.map(|at| age(at.elapsed().as_millis())),
            },
            admin: member.admin.as_str().to_owned(),
            weight: member.weight,
            zone: member.zone.as_deref().map(str::to_owned),
            sessions: load.sessions,
            server_connections: Some(load.connections),
            routes: routes(view, snapshot, member),
        }
    }
}

fn role(member: &Member, is_leader: bool) -> Option<&str> {
    match &member.role {
        Role::Leader => Some("leader"),
        Role::StandbyLeader => Some("standby_leader"),
        Role::Replica => Some("replica"),
        Role::SyncStandby => Some("sync_standby"),
        Role::QuorumStandby => Some("quorum_standby"),
        Role::Other(name) => Some(name.as_str()),
        Role::Unnamed if is_leader => Some("leader"),
        Role::Unnamed => {
            let facts = member.health.facts.as_ref();
            facts.filter(|facts| facts.in_recovery).map(|_| "replica")
        }
    }
}

fn routes(view: &ClusterView, snapshot: &Snapshot, member: &Member) -> Vec<RouteFitness> {
    let all = view.read_write.iter().chain(&view.read_only);
    all.map(|route| {
        let fitness = routing::fitness(snapshot, route, member);
        RouteFitness {
            route: route.name.to_string(),
            fit: fitness.is_ok(),
            reason: match fitness {
                Ok((_, preference)) => preference.to_string(),
                Err(reason) => reason.to_string(),
            },
        }
    })
    .collect()
}

impl MemberStatus {
    fn of(member: &Member) -> Self {
        match member.admin {
            AdminState::Maint => Self::Maint,
            _ if !member.health.up && member.health.error.is_none() => Self::Ini,
            _ if !member.health.up => Self::Down,
            AdminState::Drain => Self::Drain,
            AdminState::Ready if member.weight == 0 => Self::Drain,
            AdminState::Ready => Self::Up,
        }
    }
}

/// What a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    #[serde(rename = "active")]
    Active,
    #[serde(rename = "idle")]
    Idle,
    #[serde(rename = "idle in transaction")]
    IdleInTransaction,
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Idle => "idle",
            Self::IdleInTransaction => "idle in transaction",
        })
    }
}

/// One session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionView {
    /// Unique in all processes of this router.
    pub id: u64,
    /// Address and port, or `[local]`.
    pub client: String,
    pub user: String,
    pub database: String,
    pub cluster: String,
    pub route: String,
    /// Empty while it has no server connection.
    pub member: String,
    /// The server's process, as in `pg_stat_activity`.
    pub process_id: u32,
    pub state: Activity,
    /// With a pool: `relaying`, `detached`, `waiting` or `pinned`; `relaying` without one, and if
    /// another process does not say; `CONSOLE_PHASE` for a session with the console.
    #[serde(default = "relaying")]
    pub phase: String,
    /// Why it keeps its server connection between transactions.
    #[serde(default)]
    pub pins: Vec<String>,
    /// With a pool: for how many seconds it has had its server connection.
    #[serde(default)]
    pub held_s: Option<u64>,
    /// For how many seconds it has waited for a server connection.
    #[serde(default)]
    pub waiting_s: Option<u64>,
    /// Seconds since it was accepted.
    pub age_s: u64,
    /// From the client to the server.
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub transactions: u64,
    pub tls: Option<String>,
    /// Why it is about to end.
    pub ending: Option<String>,
    /// The process of this router that has the session; 0 if the router does not say.
    #[serde(default)]
    pub router_process_id: u32,
}

fn relaying() -> String {
    "relaying".to_owned()
}

/// One pool in one process of this router: the server connections of a route for one server user
/// and one database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolView {
    pub route: String,
    pub cluster: String,
    /// The role on the server.
    pub user: String,
    pub database: String,
    /// To each member; `null` without a limit. Of tracked sessions without a pool it is the
    /// cluster's.
    pub max_connections: Option<usize>,
    /// To each member, on top, for sessions that have waited long.
    pub reserve: usize,
    /// Sessions that wait for a connection.
    pub waiting: usize,
    /// Of the session that waits first.
    pub longest_wait_ms: u64,
    /// When a session was last refused a connection, because it waited too long or too many did:
    /// milliseconds since 1970. `None`: never.
    #[serde(default)]
    pub last_refused_ms: Option<u64>,
    /// Those with connections.
    pub members: Vec<PoolMemberView>,
    /// The process of this router that has the pool.
    pub router_process_id: u32,
}

/// The connections of a pool to one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolMemberView {
    pub member: String,
    pub idle: usize,
    /// The pinned ones included.
    pub leased: usize,
    pub opening: usize,
    /// Those from before `reconnect`: they close when their session gives them back.
    #[serde(default)]
    pub outdated: usize,
    /// Those that sessions keep between transactions.
    pub pinned: usize,
    /// The reasons with their connections; a connection may have several.
    pub pins: BTreeMap<String, usize>,
    /// The idle ones.
    #[serde(default)]
    pub idle_connections: Vec<IdleConnectionView>,
}

/// A server connection of a pool that no session has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdleConnectionView {
    /// The server's process, as in `pg_stat_activity`.
    pub process_id: u32,
    pub idle_ms: u64,
    /// How often sessions have had it.
    pub leases: u64,
}

/// One server connection: of a session, or idle in a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerConnectionView {
    pub member: String,
    /// The server's process, as in `pg_stat_activity`.
    pub process_id: u32,
    pub cluster: String,
    pub route: String,
    pub user: String,
    pub database: String,
    /// `idle` in a pool, `leased` to a session or its own, or `pinned`: the session keeps it
    /// between transactions.
    pub state: String,
    /// The session that has it.
    pub session: Option<u64>,
    /// Of one of a pool that a session has: for how many seconds.
    #[serde(default)]
    pub held_s: Option<u64>,
    /// Of an idle one: since its last session gave it back, or since it was opened.
    pub idle_ms: Option<u64>,
    /// Of an idle one: how often sessions have had it.
    pub leases: Option<u64>,
    /// The process of this router that has it; 0 if the router does not say.
    pub router_process_id: u32,
}

impl ServerConnectionView {
    /// `None`: the session has no server connection now.
    pub(super) fn of_session(session: SessionView) -> Option<Self> {
        let state = if session.phase == "pinned" {
            "pinned"
        } else {
            "leased"
        };
        (!session.member.is_empty()).then(|| Self {
            member: session.member,
            process_id: session.process_id,
            cluster: session.cluster,
            route: session.route,
            user: session.user,
            database: session.database,
            state: state.to_owned(),
            session: Some(session.id),
            held_s: session.held_s,
            idle_ms: None,
            leases: None,
            router_process_id: session.router_process_id,
        })
    }

    /// Those that are idle in a pool.
    pub(super) fn idle_in(pool: &PoolView) -> impl Iterator<Item = Self> {
        let all = pool
            .members
            .iter()
            .flat_map(|member| member.idle_connections.iter().map(move |idle| (member, idle)));
        all.map(|(member, idle)| Self {
            member: member.member.clone(),
            process_id: idle.process_id,
            cluster: pool.cluster.clone(),
            route: pool.route.clone(),
            user: pool.user.clone(),
            database: pool.database.clone(),
            state: "idle".to_owned(),
            session: None,
            held_s: None,
            idle_ms: Some(idle.idle_ms),
            leases: Some(idle.leases),
            router_process_id: pool.router_process_id,
        })
    }
}

fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
