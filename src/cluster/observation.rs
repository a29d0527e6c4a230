//! What the reducer is told, and what it asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::check::CheckStatus;
use super::snapshot::{AdminState, MemberName, ProbeFacts, Role};
use super::state::LagLimits;

/// Where the list of members comes from, which decides who names the leader.
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
}

/// Whom the source names as the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    Nobody,
    One(MemberName),
    Several,
}

/// One poll of the source that was answered.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceReport {
    pub members: Vec<Listed>,
    pub named: Named,
    pub paused: bool,
    /// How the endpoints' answers differed, if they did.
    pub disagreement: Option<String>,
    /// Members that some endpoints name on a newer timeline than the one named here: not seen there yet.
    pub rivals: Vec<MemberName>,
}

/// A probe that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeError {
    pub message: String,
    pub check: CheckStatus,
    pub kind: FailureKind,
}

/// What a probe's failure says of the member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// It does not do what a server does: down after `fall` in a row.
    Counts,
    /// There is no doubt (refused, shutting down): down at once.
    Certain,
    /// It is up, and has no connection left (53300).
    Full,
    /// The probe never came as far as the member: this host is out of something, or the name service does not answer.
    NotTried,
}

/// What live sessions notice about a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// The server's port refused the connection: counts at once.
    ConnectRefused,
    /// A connection or a login failed in another way: look again, with a new connection.
    ConnectFailed,
    /// 57P01 to 57P03, or a connection lost: a shutdown, or one session terminated; look again, with a new connection.
    Terminated,
    /// 25006: a demoted server, or a read-only transaction; look again.
    ReadOnlySeen,
    /// `in_hot_standby=off` seen where a standby was expected: counts at once.
    Promoted,
    /// `in_hot_standby=on` seen where the leader was expected: counts at once.
    Demoted,
}

/// What the reducer is told.
#[derive(Debug, Clone)]
pub enum Observation {
    /// What the source says now.
    Source(SourceReport),
    /// A poll of the source that was answered; `begun` tells what it may have missed.
    Polled {
        report: SourceReport,
        begun: Instant,
    },
    /// No endpoint gave a usable answer.
    SourceFailed(String),
    /// The leader key as a watch on the DCS shows it; `at`: when it was known to be so.
    Key {
        named: Named,
        at: Instant,
    },
    /// The watch is lost, until the next [`Self::Key`].
    KeyLost,
    /// The DCS says that somebody asks for a switchover or failover now: look harder.
    SwitchoverAsked,
    /// A probe ended; `started` tells what it may have missed.
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
    /// In place of the configured weight; `None` gives it back.
    Weight(MemberName, Option<u16>),
    /// The system identifier by which a leader was verified before the configuration was read again.
    Identity(u64),
    /// An operator says that the cluster may be another one from now on.
    ForgetIdentity,
    /// Other limits of the routes.
    Limits(LagLimits),
    /// Someone asks to look again now.
    LookAgain,
}

/// How often to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    pub poll: Duration,
    pub probe: Duration,
    /// Between probes of `chased`.
    pub chase: Duration,
    /// Named just now, and about to accept writes. Bounded in time.
    pub chased: Option<MemberName>,
}

impl Pace {
    /// Between two probes of this member.
    pub fn of(&self, member: &MemberName) -> Duration {
        if self.chased.as_ref() == Some(member) {
            self.chase
        } else {
            self.probe
        }
    }
}

/// What to look at now, without waiting for the pace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wants {
    pub poll: bool,
    /// Ask the DCS whether what the watch last said is still so.
    pub check_key: bool,
    pub probe: BTreeSet<MemberName>,
    /// Of these, with a new connection: the standing one may go on where no other comes about.
    pub anew: BTreeSet<MemberName>,
}
