//! The snapshot: one immutable, versioned value.

mod stop;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::check::CheckStatus;
pub use stop::{MAX_ORDERED_BY, OrderedBy, StopOrder};

/// A member's name from Patroni or the fixed list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberName(Arc<str>);

impl MemberName {
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The state of a cluster at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub cluster: Arc<str>,
    /// Counts up with every change that a reader could notice.
    pub version: u64,
    /// Sorted by name.
    pub members: Vec<Member>,
    pub leader: Leader,
    pub source: SourceStatus,
    /// The identifier that usable members must have: the named leader's if it is known, else the
    /// identifier of the majority; `None` until that is clear. It stays once a leader has been
    /// verified by it.
    pub system_identifier: Option<u64>,
    /// Patroni's `pause`.
    pub paused: bool,
    /// This router hears from the cluster: something there answered it lately. It turns false
    /// within two seconds after a router was cut off, unless polls and probes are configured to be
    /// rarer than that.
    pub hears: bool,
    /// How long a failover may take by Patroni's own configuration: `ttl` + `loop_wait`. `None`
    /// while no endpoint has said, and for a fixed list.
    pub patience: Option<Duration>,
    /// etcd shows a request for a switchover from the leader, now or at a time (`failover`).
    pub switchover_requested: bool,
}

impl Snapshot {
    pub fn member(&self, name: &MemberName) -> Option<&Member> {
        let found = self.members.binary_search_by(|member| member.name.cmp(name));
        found.ok().map(|index| &self.members[index])
    }

    /// Nothing of a cluster of several members has answered lately: it is this router that is cut
    /// off. The silence of a single server is its own, and may be a moment's.
    pub fn is_cut_off(&self) -> bool {
        !self.hears && self.members.len() > 1
    }
}

/// The verified leader, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leader {
    Verified {
        member: MemberName,
        timeline: u32,
        named_by: NamedBy,
    },
    None(NoLeader),
}

/// What names the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedBy {
    /// The DCS, as Patroni's `/cluster` shows it.
    LeaderKey,
    /// It was named last, and no endpoint gives a usable answer.
    Failsafe,
    /// In a fixed list: it alone has the highest timeline.
    HighestTimeline,
}

/// Why there is no leader. `Display` is the sentence that operators and clients see.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoLeader {
    #[error("the members have not been probed yet")]
    NotYetKnown,
    #[error("no Patroni endpoint gives a usable answer")]
    SourceUnreachable,
    /// An endpoint answers, so Patroni runs.
    #[error("Patroni answers, but reports no leader: it may not reach its DCS")]
    DcsUnreachable,
    /// Two faults at once, of which the second alone would leave the leader in service.
    #[error(
        "{last}, the last named leader, {}, and {}",
        lost_words(*check),
        if *is_dcs_silent { "Patroni reports no leader" } else { "no Patroni endpoint gives a usable answer" }
    )]
    LastLost {
        last: MemberName,
        check: CheckStatus,
        /// An endpoint of Patroni answers, but has no list of members.
        is_dcs_silent: bool,
    },
    #[error("no member holds the leader key")]
    NotNamed,
    #[error("{0} holds the leader key but has not been seen to accept writes")]
    NotWritable(MemberName),
    #[error("{0} holds the leader key but cannot be reached")]
    NotReachable(MemberName),
    /// It accepts connections, and the probe fails later. Clients see this sentence before they log
    /// in, so it has no text from the server.
    #[error("{member} holds the leader key, but the router's probe fails: {}", check.words())]
    ProbeFails { member: MemberName, check: CheckStatus },
    /// Sessions may try: their own connections must show a server that accepts writes, on no older
    /// timeline than `newest`.
    #[error("{member} has no free connection for the router to check whether it accepts writes")]
    Full { member: MemberName, newest: u32 },
    /// Its own Patroni says so. The server may still serve the sessions that it has.
    #[error("Patroni stops {0}, the leader")]
    Stopping(MemberName),
    #[error("{0} leads a standby cluster, which accepts no writes")]
    StandbyCluster(MemberName),
    #[error("{0} holds the leader key but Patroni gives no address for it")]
    NoAddress(MemberName),
    #[error("Patroni names several leaders at once")]
    SeveralNamed,
    #[error(
        "{newer} accepts writes on a newer timeline than {last}, the last named leader, and no Patroni endpoint gives a usable answer"
    )]
    Superseded { last: MemberName, newer: MemberName },
    #[error(
        "{newer} accepts writes on a newer timeline than {named}, the last known holder of the leader key"
    )]
    Overtaken { named: MemberName, newer: MemberName },
    #[error("{0} is named as the leader but belongs to another cluster")]
    NamedForeign(MemberName),
    #[error("{0} accepts writes but belongs to another cluster")]
    Foreign(MemberName),
    #[error("{member} is named as the leader on timeline {claimed} but has been seen on timeline {seen}")]
    NotOnTimeline {
        member: MemberName,
        seen: u32,
        claimed: u32,
    },
    #[error("{member} accepts writes on timeline {timeline}, but timeline {newest} has been seen")]
    OldTimeline {
        member: MemberName,
        timeline: u32,
        newest: u32,
    },
    #[error("the members belong to different clusters, and no cluster has the majority")]
    MixedClusters,
    /// The endpoints of Patroni list members of different clusters, and it is not known which of
    /// these is meant.
    #[error(
        "Patroni's endpoints are of different clusters, or of different groups of Citus; list those of one only"
    )]
    MixedEndpoints,
    #[error("several members accept writes on the same timeline")]
    Tie,
    #[error("no server accepts writes")]
    NoneWritable,
}

/// How a leader is lost, as a part of a sentence for readers who have not logged in.
fn lost_words(check: CheckStatus) -> String {
    if check.is_connected() {
        format!("fails the router's probe ({})", check.words())
    } else {
        format!("cannot be reached ({})", check.words())
    }
}

/// What can end the lack of a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A failover, a switchover or a restart may end it without anyone doing anything: sessions may
    /// wait for it.
    Passing,
    /// It is so by configuration, or only an operator can end it: waiting does not help.
    Lasting,
}

impl NoLeader {
    /// Whether it may pass by itself.
    pub fn cause(&self) -> Cause {
        match self {
            // The first probes and polls end it.
            Self::NotYetKnown
            // Patroni, or its DCS, is restarted or comes back. [`Snapshot::hears`] tells whether it
            // is this router that is cut off.
            | Self::SourceUnreachable
            | Self::DcsUnreachable
            | Self::LastLost { .. }
            // Patroni promotes a member, or restarts PostgreSQL.
            | Self::NotNamed
            | Self::NotWritable(_)
            | Self::NotReachable(_)
            | Self::ProbeFails { .. }
            | Self::NoneWritable
            | Self::Stopping(_)
            // Connections become free.
            | Self::Full { .. }
            // The router has seen one part of a failover before another: the next answer of
            // Patroni, or the next probe, completes it.
            | Self::SeveralNamed
            | Self::Superseded { .. }
            | Self::Overtaken { .. }
            | Self::NotOnTimeline { .. }
            | Self::OldTimeline { .. } => Cause::Passing,
            // No member of such a cluster accepts writes.
            Self::StandbyCluster(_)
            // The configuration of Patroni, or the addresses of this cluster, are wrong.
            | Self::NoAddress(_)
            | Self::NamedForeign(_)
            | Self::Foreign(_)
            | Self::MixedClusters
            | Self::MixedEndpoints
            // Only an operator can say which one is right.
            | Self::Tie => Cause::Lasting,
        }
    }
}

/// Whether the source of the member list answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceStatus {
    pub reachable: bool,
    /// The reason why it is not reachable, for the log and the hint; `None` while reachable.
    pub error: Option<String>,
    /// How the endpoints' answers differ, if they do.
    pub disagreement: Option<String>,
}

/// One server of the cluster.
#[derive(Debug, Clone)]
pub struct Member {
    pub name: MemberName,
    /// Empty if the source gives none: the member is then displayed, but never used.
    pub host: String,
    /// 0 if the source gives none.
    pub port: u16,
    /// Role by the source.
    pub role: Role,
    /// State by the source, verbatim (`running`, `streaming`, …); empty in a fixed list.
    pub state: String,
    /// Timeline by the source.
    pub timeline: Option<u32>,
    /// Lag in bytes by the source (up to `loop_wait` old).
    pub lag: Option<u64>,
    pub tags: BTreeMap<String, serde_json::Value>,
    pub health: Health,
    pub identity: Identity,
    pub admin: AdminState,
    /// Its server is about to be stopped, by this order: it gets nothing new. It may still be the
    /// verified leader.
    pub leaving: Option<Arc<StopOrder>>,
    /// How far it is behind the leader, by this router's probes; `None` if it is not known, and for
    /// a member that accepts writes.
    pub measured: Option<Lag>,
    /// Routes whose `max_lag` it exceeds (and has not fallen below the lower limit since), or for
    /// which its lag is not known.
    pub lagging: BTreeSet<Arc<str>>,
    /// Percent of its weight that counts, 10 to 100: less than [`WHOLE_SHARE`] for a while after it
    /// came back up.
    pub share: u8,
    /// 0 to 256, 1 by default; HAProxy's meaning.
    pub weight: u16,
    pub zone: Option<Arc<str>>,
}

/// [`Member::share`] of a member that has been up for a long time.
pub const WHOLE_SHARE: u8 = 100;

/// How far a standby is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lag {
    /// Bytes that the primary had written and the standby had not replayed.
    pub bytes: u64,
    /// How long ago nothing was missing; 0 if nothing is missing. `None`: longer than this router
    /// has watched the primary.
    pub time: Option<Duration>,
}

/// Whether a member belongs to this cluster, by its system identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// Its identifier is not known yet, or the cluster's identifier is not known yet.
    Unknown,
    Same,
    /// A member of another cluster: never used.
    Foreign,
}

impl Member {
    /// Whether the source gives an address to connect to.
    pub fn has_address(&self) -> bool {
        !self.host.is_empty() && self.port != 0
    }
}

/// Role by the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    Leader,
    StandbyLeader,
    Replica,
    SyncStandby,
    QuorumStandby,
    /// An unknown role; the member is then never eligible.
    Other(String),
    Unnamed,
}

/// What this router's probes have seen.
#[derive(Debug, Clone, Default)]
pub struct Health {
    /// After `rise` and `fall`: the member may get sessions.
    pub up: bool,
    /// Successes (up to `rise`) or failures (up to `fall`) in a row.
    pub streak: u32,
    /// When the last probe ended.
    pub last_probe: Option<Instant>,
    /// Of the last successful probe; cleared when the member goes down.
    pub facts: Option<ProbeFacts>,
    /// Of the last failed probe; cleared by a success.
    pub error: Option<String>,
    /// The last connection on which a probe saw that it belongs to this cluster, on its newest
    /// timeline.
    pub verified: Option<VerifiedAt>,
    /// The last time that a probe was led to another server. Kept when the address leads back:
    /// who looks at snapshots may not have seen each of them.
    pub strayed: Option<Strayed>,
    /// The result of the last probe, or what a session has seen since.
    pub check: CheckStatus,
    /// It answered the last probe with 53300 (no free connection). It is up; its facts may be
    /// minutes old.
    pub full: bool,
}

/// A connection of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifiedAt {
    /// When the connection began.
    pub at: Instant,
    pub timeline: u32,
}

/// A probe of a member that was on a server of another cluster, or on an older timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Strayed {
    /// What it saw there.
    pub facts: ProbeFacts,
    /// When that was known. The probe was there before, and so may be sessions that began before.
    pub known: Instant,
    /// [`Health::verified`] before it.
    pub before: Option<VerifiedAt>,
}

/// What a successful probe saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeFacts {
    /// `pg_is_in_recovery()`.
    pub in_recovery: bool,
    pub system_identifier: u64,
    /// Primary: the timeline of its current WAL file. Standby: `received_tli`, else the timeline of
    /// the last checkpoint.
    pub timeline: u32,
    /// Primary: current write position; standby: last replayed; 0 where unknown.
    pub position: u64,
    /// Standby: last position received from the primary; 0 where unknown, and of a primary.
    pub received: u64,
    /// Of a standby: its WAL receiver is streaming.
    pub streaming: bool,
    /// Server version as in `server_version_num`.
    pub server_version: u32,
    pub latency: Duration,
    /// The address the probe was connected to.
    pub address: Option<IpAddr>,
    /// When the connection of the probe began. It does not show whether the address has led to
    /// another server since.
    pub connected: Option<Instant>,
}

/// HAProxy's administrative states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AdminState {
    #[default]
    Ready,
    Drain,
    Maint,
}

impl AdminState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        }
    }

    /// The state with this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Ready, Self::Drain, Self::Maint]
            .into_iter()
            .find(|state| state.as_str() == name)
    }
}

impl fmt::Display for AdminState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
