//! The observations that the reducer takes, and the requests that it makes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::check::CheckStatus;
use super::snapshot::{AdminState, MemberName, ProbeFacts, Role};
use super::state::{LagLimits, LeaveRequest, LeaveToken};

/// Where the list of members comes from. It decides how the leader is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    Patroni,
    Fixed,
}

/// A member as the source lists it.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed {
    pub name: MemberName,
    pub host: String,
    pub port: u16,
    pub role: Role,
    pub state: String,
    pub timeline: Option<u32>,
    pub lag: Option<u64>,
    pub tags: BTreeMap<String, serde_json::Value>,
    /// Where its Patroni answers `GET /patroni`, by Patroni.
    pub api_url: Option<Arc<str>>,
}

/// The leader that the source names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    Nobody,
    One(MemberName),
    Several,
    /// Its endpoints are of different clusters.
    Mixed,
}

/// One poll of the source that was answered.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceReport {
    pub members: Vec<Listed>,
    pub named: Named,
    pub paused: bool,
    /// How the endpoints' answers differ, if they do.
    pub disagreement: Option<String>,
    /// Members that some endpoints name on a newer timeline than the leader named here, and that no
    /// probe has seen there yet.
    pub rivals: Vec<MemberName>,
    /// A switchover that Patroni shows as scheduled.
    pub scheduled: Option<SwitchoverRequest>,
}

/// A switchover or failover that somebody has requested of Patroni.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwitchoverRequest {
    /// The leader that is to be replaced; `None`: whichever leads.
    pub leader: Option<MemberName>,
    pub candidate: Option<MemberName>,
    /// `None`: now.
    pub at: Option<SystemTime>,
}

impl SwitchoverRequest {
    /// Whether it would take the leadership from this member.
    pub fn concerns(&self, leader: &MemberName) -> bool {
        self.leader.as_ref().is_none_or(|old| old == leader) && self.candidate.as_ref() != Some(leader)
    }
}

/// Where a request was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestedIn {
    /// The `failover` key in the DCS.
    Dcs,
    /// `scheduled_switchover` in `/cluster`.
    Source,
}

/// What Patroni's dynamic configuration says about time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PatroniTimes {
    pub ttl: Duration,
    pub loop_wait: Duration,
}

/// What a member's own Patroni says of its server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    pub state: String,
}

impl MemberStatus {
    /// Whether Patroni stops the server, or has stopped it. It says so before it runs `before_stop`
    /// and before the server gets the signal.
    pub fn is_stopping(&self) -> bool {
        matches!(self.state.as_str(), "stopping" | "stopped")
    }
}

/// The member whose Patroni is asked for its status now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusLook {
    pub member: MemberName,
    pub api_url: Option<Arc<str>>,
    pub every: Duration,
}

/// The router looks more closely for a while, because a switchover may begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arming {
    Begun { member: MemberName, why: &'static str },
    Ended { member: MemberName, why: String },
}

/// A probe that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeError {
    pub message: String,
    pub check: CheckStatus,
    pub kind: FailureKind,
}

/// What a probe's failure means for the member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The member is down after `fall` such failures in a row.
    Counts,
    /// A certain failure (refused, shutting down): the member is down at once.
    Certain,
    /// The member is up but has no free connection (53300).
    Full,
    /// The probe did not reach the member: this host lacks a resource, or the name service does not
    /// answer.
    NotTried,
}

/// What live sessions notice about a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// The server's port refused the connection: counts at once.
    ConnectRefused,
    /// A connection or a login failed in another way: probe again, with a new connection.
    ConnectFailed,
    /// 57P01 to 57P03, or a lost connection: a shutdown, or one terminated session. Probe again,
    /// with a new connection.
    Terminated,
    /// 25006: a demoted server, or a read-only transaction. Probe again.
    ReadOnlySeen,
    /// `in_hot_standby=off` seen where a standby was expected: counts at once.
    Promoted,
    /// `in_hot_standby=on` seen where the leader was expected: counts at once.
    Demoted,
}

/// An input of the reducer.
#[derive(Debug, Clone)]
pub enum Observation {
    /// The current answer of the source.
    Source(SourceReport),
    /// A poll of the source that was answered. It may have missed changes after `begun`.
    Polled {
        report: SourceReport,
        begun: Instant,
    },
    Times(PatroniTimes),
    /// No endpoint gave a usable answer.
    SourceFailed(String),
    /// The same, but an endpoint answered: Patroni runs, and may not reach its DCS.
    DcsFailed(String),
    /// The leader key as the watch on the DCS shows it, valid at `at`.
    Key {
        named: Named,
        at: Instant,
    },
    /// The watch is lost, until the next [`Self::Key`].
    KeyLost,
    /// A request for a switchover or failover, due at `due`; `None`: there is none, or it is done.
    Switchover {
        place: RequestedIn,
        request: Option<SwitchoverRequest>,
        due: Instant,
    },
    /// What a member's own Patroni says; `None`: it did not answer. It may have missed changes
    /// after `started`.
    Status {
        member: MemberName,
        started: Instant,
        status: Option<MemberStatus>,
    },
    /// A probe ended. It may have missed changes after `started`.
    Probe {
        member: MemberName,
        started: Instant,
        result: Result<ProbeFacts, ProbeError>,
    },
    /// `at`: when the session noticed it.
    Evidence {
        member: MemberName,
        evidence: Evidence,
        at: Instant,
    },
    Admin(MemberName, AdminState),
    /// Overrides the configured weight; `None` removes the override.
    Weight(MemberName, Option<u16>),
    /// The member's server is about to be stopped: it gets nothing new until then, or until it has
    /// been stopped.
    Leaving(LeaveRequest),
    /// The server is not stopped after all.
    EndLeaving(LeaveToken),
    /// No `before-stop` for the member counts any more.
    EndStops(MemberName),
    /// The system identifier by which a leader was verified before the configuration was read
    /// again.
    Identity(u64),
    /// An operator has declared that the cluster may be another one from now on.
    ForgetIdentity,
    /// New lag limits of the routes.
    Limits(LagLimits),
    /// A request to poll and probe now.
    LookAgain,
}

/// How often to poll and probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    pub poll: Duration,
    pub probe: Duration,
    /// Between probes of `chased`.
    pub chase: Duration,
    /// The member that was just named and is about to accept writes. Limited in time.
    pub chased: Option<MemberName>,
}

impl Pace {
    /// The interval between two probes of this member.
    pub fn of(&self, member: &MemberName) -> Duration {
        if self.chased.as_ref() == Some(member) {
            self.chase
        } else {
            self.probe
        }
    }
}

/// What to poll and probe now, without waiting for the interval.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wants {
    pub poll: bool,
    /// Check with the DCS whether the watch's last value is still valid.
    pub check_key: bool,
    pub probe: BTreeSet<MemberName>,
    /// The members of `probe` that need a new connection: the existing one may still work while new
    /// ones fail.
    pub anew: BTreeSet<MemberName>,
    /// To be reported.
    pub armings: Vec<Arming>,
}
