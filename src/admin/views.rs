//! What operators see of the router, its clusters, members and sessions: one value of each, which
//! HTTP sends, the command line reads back, and every other surface shows.
//!
//! The fields' names are those of `docs/http.md`. JSON has them in the order of the alphabet, and
//! `null` for what is not known.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::handles::{ClusterView, Phase};
use super::member_checks;
use crate::cluster::snapshot::{AdminState, Leader, Member, NamedBy, Role, Snapshot};
use crate::events::{Event, Level, RecordedEvent};
use crate::routing;

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
}

impl RouterView {
    pub(super) fn new(phase: Phase, sessions: usize) -> Self {
        Self {
            state: phase.word().to_owned(),
            ready: phase.not_ready().is_none(),
            reason: phase.not_ready().map(str::to_owned),
            sessions,
            process_id: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
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
    pub role: Option<String>,
    /// It is the verified leader.
    pub leader: bool,
    /// By the source.
    pub state: String,
    pub timeline: Option<u32>,
    /// Bytes.
    pub lag: Option<u64>,
    pub lag_seconds: Option<f64>,
    pub tags: BTreeMap<String, serde_json::Value>,
    pub status: MemberStatus,
    pub check: CheckView,
    /// `ready`, `drain` or `maint`.
    pub admin: String,
    pub weight: u16,
    pub zone: Option<String>,
    pub sessions: usize,
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
    /// `sessions`: how many it has.
    pub(super) fn new(view: &ClusterView, snapshot: &Snapshot, member: &Member, sessions: usize) -> Self {
        let leader =
            matches!(&snapshot.leader, Leader::Verified { member: leader, .. } if *leader == member.name);
        let health = &member.health;
        let facts = health.facts.as_ref();
        let lag_time = member.measured.filter(|_| !leader).and_then(|lag| lag.time);
        let answered =
            || facts.map(|facts| format!("answered in {:.1} ms", facts.latency.as_secs_f64() * 1e3));
        let age = |millis: u128| u64::try_from(millis).unwrap_or(u64::MAX);
        Self {
            name: member.name.to_string(),
            cluster: view.name.to_string(),
            host: member.host.clone(),
            port: member.port,
            role: role(member, leader).map(str::to_owned),
            leader,
            state: member.state.clone(),
            timeline: facts.map(|facts| facts.timeline).or(member.timeline),
            lag: if leader {
                None
            } else {
                member_checks::replay_lag(member)
            },
            lag_seconds: lag_time.map(|time| time.as_secs_f64()),
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
            sessions,
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
    pub member: String,
    /// The server's process, as in `pg_stat_activity`.
    pub process_id: u32,
    pub state: Activity,
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

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EventView {
    pub number: u64,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    pub level: Level,
    /// The message of its line in the log.
    pub text: String,
    /// Its kind and its fields.
    #[serde(flatten)]
    pub event: Event,
}

impl EventView {
    pub(super) fn new(recorded: &RecordedEvent) -> Self {
        let RecordedEvent { number, at, event } = recorded;
        Self {
            number: *number,
            time_ms: millis(*at),
            level: event.level(),
            text: event.to_string(),
            event: event.clone(),
        }
    }
}

fn millis(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
