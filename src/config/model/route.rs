//! A route: what a listener asks of its servers, and what it does for its sessions.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::words::words;
use super::{Hold, MaxLag, OnUnfit, Pool, PoolMode, Resume};

/// What a listener asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub name: Arc<str>,
    pub cluster: Arc<str>,
    pub access: Access,
    /// In order of preference, at least one: a later one serves where no member of an earlier one
    /// can.
    pub targets: Vec<Tier>,
    /// Only members that have these Patroni tags.
    pub tags: BTreeMap<String, serde_json::Value>,
    pub balance: Balance,
    pub read_only_on_leader: OnLeader,
    /// How far behind a standby may be; `None` is no limit.
    pub max_lag: Option<MaxLag>,
    pub on_unfit: OnUnfit,
    /// Where the cluster has `server.max_connections`, or the route has a pool.
    pub queue: Queue,
    /// `None`: each session has a server connection of its own.
    pub pool: Option<Pool>,
    /// [`Resume::Tracked`] with transaction pooling.
    pub resume: Resume,
    /// How the router keeps tracked sessions where the route has no pool: each has a connection of
    /// its own, which serves nobody else. `None` elsewhere.
    pub tracking: Option<Pool>,
    pub hold: Hold,
    pub client_address: ClientAddressOptions,
}

impl Route {
    /// Whether the leader is among the targets.
    pub fn takes_leader(&self) -> bool {
        self.targets.iter().any(Tier::takes_leader)
    }

    /// How sessions are kept whose server connection can be replaced.
    pub fn session_pool(&self) -> Option<&Pool> {
        self.pool.as_ref().or(self.tracking.as_ref())
    }

    /// Clients may be held while no server can serve the route.
    pub fn holds_clients(&self) -> bool {
        let is_switched_off = self.hold.timeout == Some(Duration::ZERO);
        (self.hold.logins || self.resume == Resume::Tracked) && !is_switched_off
    }

    /// Sessions keep their server connection between transactions, and can have another one where
    /// they must leave it, or lose it.
    pub fn keeps_connections(&self) -> bool {
        let is_transaction = self
            .pool
            .as_ref()
            .is_some_and(|pool| pool.mode == PoolMode::Transaction);
        self.resume == Resume::Tracked && !is_transaction
    }

    /// Targets as a person says them: `replica, then leader`.
    pub fn wanted(&self) -> String {
        let tiers: Vec<String> = self.targets.iter().map(Tier::to_string).collect();
        tiers.join(", then ")
    }
}

/// What a route's sessions may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// The targets are the verified leader and nothing else.
    ReadWrite,
    /// Sessions begin with `default_transaction_read_only=on`.
    ReadOnly,
}

impl Access {
    /// What the sessions of a route with these targets may do.
    pub(in crate::config) fn of(targets: &[Tier]) -> Self {
        match targets {
            [Tier(roles)] if *roles == [TargetRole::Leader] => Self::ReadWrite,
            _ => Self::ReadOnly,
        }
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadWrite => "read-write",
            Self::ReadOnly => "read-only",
        })
    }
}

words! {
    /// A role that a route's server may have.
    pub enum TargetRole {
        /// The verified leader.
        Leader = "leader",
        /// Any fit standby.
        Replica = "replica",
        /// A standby that Patroni calls synchronous.
        Sync = "sync",
        /// A standby of which a quorum has confirmed each commit (Patroni 4 with `synchronous_mode:
        /// quorum`).
        Quorum = "quorum",
        /// A standby that is neither, nor leads a standby cluster.
        Async = "async",
        /// The leader or any fit standby.
        Any = "any",
    }
}

impl TargetRole {
    /// Whether the leader has it.
    pub fn takes_leader(self) -> bool {
        matches!(self, Self::Leader | Self::Any)
    }

    /// What it covers, one bit each: leader, sync, quorum, async, other standbys.
    pub(in crate::config) const fn cover(self) -> u8 {
        match self {
            Self::Leader => 0b1,
            Self::Sync => 0b10,
            Self::Quorum => 0b100,
            Self::Async => 0b1000,
            Self::Replica => 0b1_1110,
            Self::Any => 0b1_1111,
        }
    }
}

/// Roles that count alike; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tier(pub Vec<TargetRole>);

impl Tier {
    /// Whether the leader has one of the roles.
    pub(in crate::config) fn takes_leader(&self) -> bool {
        self.0.iter().any(|role| role.takes_leader())
    }
}

impl From<TargetRole> for Tier {
    fn from(role: TargetRole) -> Self {
        Self(vec![role])
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, role) in self.0.iter().enumerate() {
            let before = if index == 0 { "" } else { " or " };
            write!(f, "{before}{role}")?;
        }
        Ok(())
    }
}

words! {
    /// Which of several members that fit alike.
    pub enum Balance {
        /// The one with the fewest sessions of this router, divided by its weight.
        LeastConnections = "least_connections",
        /// In turn, by weight.
        RoundRobin = "round_robin",
        /// The less loaded of two that are drawn by weight.
        Random = "random",
        /// The same for the same client's address, as long as it is there; addresses are shared out
        /// by weight.
        SourceHash = "source_hash",
        /// The first by its place in a fixed list, by name with Patroni. Weights other than 0 do
        /// not matter.
        First = "first",
    }
}

words! {
    /// Read-only sessions on a leader, where nothing but privileges keeps a session from writing.
    pub enum OnLeader {
        Refused = "refused",
        /// They have `default_transaction_read_only=on`; a client that switches it off may write.
        Unenforced = "unenforced",
        /// They log in as roles of `auth.server_credentials`, which are seen to be unable to write,
        /// each time.
        Enforced = "enforced",
    }
}

/// Sessions wait while every server of their route has `server.max_connections` sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// How long one waits.
    pub timeout: Duration,
    /// How many wait at once; 0: none, they are refused.
    pub most: u32,
}

/// What a server learns about the client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddressOptions {
    /// As the setting `trunkline.client_addr`.
    pub setting: bool,
    /// Behind the client's own `application_name`.
    pub application_name: bool,
    /// Whether its connection is encrypted, as the setting `trunkline.client_tls`.
    pub tls: bool,
}
