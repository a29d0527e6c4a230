//! What a route asks of its servers: roles in order of preference, tags, and which of several that fit.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use super::model::{Auth, CredentialUsers, Route};
use super::section::{Field, Section};
use super::unfit::OnUnfit;
use super::waiting::{self, ClientAddressOptions, Queue};

/// What a route's sessions may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// The targets are the verified leader and nothing else.
    ReadWrite,
    /// Sessions begin with `default_transaction_read_only=on`.
    ReadOnly,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadWrite => "read-write",
            Self::ReadOnly => "read-only",
        })
    }
}

/// A role that a route's server may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TargetRole {
    /// The verified leader.
    Leader,
    /// Any fit standby.
    Replica,
    /// A standby that Patroni calls synchronous.
    Sync,
    /// A standby of which a quorum has confirmed each commit (Patroni 4 with `synchronous_mode: quorum`).
    Quorum,
    /// A standby that is neither, nor leads a standby cluster.
    Async,
    /// The leader or any fit standby.
    Any,
}

const WORDS: [(&str, Option<TargetRole>); 6] = [
    ("leader", Some(TargetRole::Leader)),
    ("replica", Some(TargetRole::Replica)),
    ("sync", Some(TargetRole::Sync)),
    ("quorum", Some(TargetRole::Quorum)),
    ("async", Some(TargetRole::Async)),
    ("any", Some(TargetRole::Any)),
];

impl TargetRole {
    /// Whether the leader has it.
    pub fn takes_leader(self) -> bool {
        matches!(self, Self::Leader | Self::Any)
    }

    /// What it covers, one bit each: leader, sync, quorum, async, other standbys.
    const fn cover(self) -> u8 {
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

impl fmt::Display for TargetRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = WORDS.iter().find(|(_, role)| *role == Some(*self));
        f.write_str(word.map_or("", |(word, _)| word))
    }
}

/// Roles that count alike; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tier(pub Vec<TargetRole>);

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

/// Which of several members that fit alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Balance {
    /// The one with the fewest sessions of this router, divided by its weight.
    #[default]
    LeastConnections,
    /// In turn, by weight.
    RoundRobin,
    /// The less loaded of two that are drawn by weight.
    Random,
    /// The same for the same client's address, as long as it is there; addresses are shared out by weight.
    SourceHash,
    /// The first by its place in a fixed list, by name with Patroni. Weights other than 0 do not matter.
    First,
}

/// Read-only sessions on a leader, where nothing but privileges keeps a session from writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OnLeader {
    #[default]
    Refused,
    /// They have `default_transaction_read_only=on`, and whoever takes it back may write.
    Unenforced,
    /// They log in as roles of `auth.server_credentials`, which are seen to be unable to write, each time.
    Enforced,
}

impl Route {
    /// To the leader.
    pub fn read_write(name: &str, cluster: &str) -> Self {
        Self::new(name, cluster, vec![TargetRole::Leader.into()])
    }

    /// To any replica.
    pub fn read_only(name: &str, cluster: &str) -> Self {
        Self::new(name, cluster, vec![TargetRole::Replica.into()])
    }

    /// With everything else at its default.
    pub fn new(name: &str, cluster: &str, targets: Vec<Tier>) -> Self {
        Self {
            name: Arc::from(name),
            cluster: Arc::from(cluster),
            access: access(&targets),
            targets,
            tags: BTreeMap::new(),
            balance: Balance::default(),
            read_only_on_leader: OnLeader::default(),
            max_lag: None,
            on_unfit: OnUnfit::default(),
            queue: Queue::default(),
            client_address: ClientAddressOptions::default(),
        }
    }

    /// Whether the leader is among the targets.
    pub fn takes_leader(&self) -> bool {
        takes_leader(&self.targets)
    }

    /// Targets as a person says them: `replica, then leader`.
    pub fn wanted(&self) -> String {
        let tiers: Vec<String> = self.targets.iter().map(Tier::to_string).collect();
        tiers.join(", then ")
    }
}

fn access(targets: &[Tier]) -> Access {
    match targets {
        [Tier(roles)] if *roles == [TargetRole::Leader] => Access::ReadWrite,
        _ => Access::ReadOnly,
    }
}

fn takes_leader(targets: &[Tier]) -> bool {
    targets
        .iter()
        .flat_map(|tier| &tier.0)
        .any(|role| role.takes_leader())
}

/// The part of `routes.NAME` that says who may serve it. `is_fixed`: its cluster is a list of servers, of whose roles
/// and tags nothing is known but who leads. `is_bounded`: its members may be full. `auth`: `None` where it has faults
/// of its own.
pub(super) fn read(
    section: &Section<'_>,
    name: &str,
    cluster: Option<&str>,
    is_fixed: bool,
    is_bounded: bool,
    auth: Option<&Auth>,
) -> Option<Route> {
    let queue = waiting::queue(section, is_bounded);
    let client_address = waiting::client_address_options(section);
    let targets = section
        .required("targets")
        .and_then(|field| targets(&field, is_fixed));
    let tags = match section.field("tags") {
        Some(field) => tags(&field, is_fixed),
        None => Some(BTreeMap::new()),
    };
    let balance_field = section.field("balance");
    let balance = section.one_of(
        "balance",
        &[
            ("least_connections", Some(Balance::LeastConnections)),
            ("round_robin", Some(Balance::RoundRobin)),
            ("random", Some(Balance::Random)),
            ("source_hash", Some(Balance::SourceHash)),
            ("first", Some(Balance::First)),
        ],
    );
    let on_leader_field = section.field("read_only_on_leader");
    let on_leader = match &on_leader_field {
        Some(field) => on_leader(field, auth),
        None => Some(OnLeader::default()),
    };
    let targets = targets?;
    match (access(&targets), takes_leader(&targets)) {
        (Access::ReadWrite, _) => {
            if let Some(field) = balance_field.filter(|_| balance.is_some_and(|b| b != Balance::default())) {
                field.fault("has no effect: there is one leader at most");
            }
            if let Some(field) = on_leader_field {
                field.fault("has no effect: `targets: [leader]` is a read-write route");
            }
        }
        (Access::ReadOnly, true) if on_leader == Some(OnLeader::Refused) => {
            let place = section.field("targets").or(on_leader_field);
            if let Some(field) = place {
                field.fault_with(
                    "sends read-only sessions to the leader, where nothing but their privileges keeps them from writing",
                    "leave `leader` and `any` out, or allow it with `read_only_on_leader`, `unenforced` or `enforced`; \
                     a read-write route has the targets `[leader]` alone",
                );
            }
        }
        (Access::ReadOnly, false) if on_leader.is_some_and(|on_leader| on_leader != OnLeader::Refused) => {
            if let Some(field) = on_leader_field {
                field.fault("has no effect: neither `leader` nor `any` is among the targets");
            }
        }
        (Access::ReadOnly, _) => {}
    }
    Some(Route {
        tags: tags?,
        balance: balance?,
        read_only_on_leader: on_leader?,
        queue,
        client_address,
        ..Route::new(name, cluster?, targets)
    })
}

fn on_leader(field: &Field<'_>, auth: Option<&Auth>) -> Option<OnLeader> {
    let on_leader = field.one_of(&[
        ("refused", Some(OnLeader::Refused)),
        ("unenforced", Some(OnLeader::Unenforced)),
        ("enforced", Some(OnLeader::Enforced)),
    ])?;
    if on_leader == OnLeader::Enforced && auth.is_some_and(|auth| !replaces_everybody(auth)) {
        field.fault_with(
            "`enforced` needs a role that may not write for every user: `auth.server_credentials` with `server_user` in \
             each entry, the last of them for `users: all`",
            "or `unenforced`, where users log in as themselves",
        );
    }
    Some(on_leader)
}

/// Whether nobody's sessions log in as who they came in as.
fn replaces_everybody(auth: &Auth) -> bool {
    let credentials = &auth.server_credentials;
    credentials.iter().all(|entry| entry.server_user.is_some())
        && credentials
            .last()
            .is_some_and(|entry| entry.users == CredentialUsers::All)
}

fn targets(field: &Field<'_>, is_fixed: bool) -> Option<Vec<Tier>> {
    let elements = field.list();
    let mut whole = !elements.is_empty();
    let mut seen = 0;
    let mut tiers = Vec::new();
    for element in elements {
        let roles = if element.is_list() {
            element.list()
        } else {
            vec![element]
        };
        whole &= !roles.is_empty();
        let mut tier = Vec::new();
        for field in roles {
            let Some(role) = role(&field, is_fixed) else {
                whole = false;
                continue;
            };
            if role.cover() & !seen == 0 {
                field.fault(format!("`{role}` adds nothing to what stands before it"));
            }
            seen |= role.cover();
            tier.push(role);
        }
        tiers.push(Tier(tier));
    }
    whole.then_some(tiers)
}

fn role(field: &Field<'_>, is_fixed: bool) -> Option<TargetRole> {
    let role = field.one_of(&WORDS)?;
    if is_fixed && matches!(role, TargetRole::Sync | TargetRole::Quorum | TargetRole::Async) {
        field.fault_with(
            format!("`{role}` is known from Patroni only, and the cluster is a list of `servers`"),
            "use `replica`",
        );
        return None;
    }
    Some(role)
}

fn tags(field: &Field<'_>, is_fixed: bool) -> Option<BTreeMap<String, Value>> {
    let named = field.named();
    if is_fixed {
        field.fault("has no effect: tags are Patroni's, and the cluster is a list of `servers`");
    }
    named
        .into_iter()
        .map(|(key, field)| Some((key.to_owned(), field.scalar()?)))
        .collect()
}
