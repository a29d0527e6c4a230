//! Whether a rule matches what is known of a client, or what must be looked up first.

use super::{
    AddressMatch, Column, DatabaseMatch, Facts, HostName, Interface, Known, Need, Network, Origin, Rule,
    RuleVerdict, UserMatch,
};
use crate::wire::startup::Replication;

impl Rule {
    /// Whether it matches, and if not, why.
    pub fn verdict(&self, facts: &Facts<'_>, known: &Known<'_>) -> RuleVerdict {
        if !self.connection.matches(facts) {
            return RuleVerdict::Differs(Column::Type);
        }
        let columns = [
            (Column::Address, self.address.holds(facts, known)),
            (
                Column::Database,
                any(&self.databases, |entry| entry.holds(facts, known)),
            ),
            (
                Column::User,
                any(&self.users, |entry| entry.holds(facts.user, known)),
            ),
        ];
        if let Some((column, _)) = columns.iter().find(|(_, holds)| *holds == Holds::No) {
            return RuleVerdict::Differs(*column);
        }
        let need = columns.iter().find_map(|(_, holds)| match holds {
            Holds::Needs(need) => Some(*need),
            Holds::Yes | Holds::No => None,
        });
        need.map_or(RuleVerdict::Matches, RuleVerdict::Needs)
    }
}

/// Whether something is the case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::auth) enum Holds {
    Yes,
    No,
    Needs(Need),
}

impl From<bool> for Holds {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

fn any<T>(entries: &[T], holds: impl Fn(&T) -> Holds) -> Holds {
    let mut result = Holds::No;
    for entry in entries {
        match holds(entry) {
            Holds::Yes => return Holds::Yes,
            Holds::No => {}
            needs @ Holds::Needs(_) => result = needs,
        }
    }
    result
}

fn is_member(role: &[u8], known: &Known<'_>) -> Holds {
    match known.memberships {
        Some(memberships) => memberships.contains(role).into(),
        None => Holds::Needs(Need::Memberships),
    }
}

impl DatabaseMatch {
    fn holds(&self, facts: &Facts<'_>, known: &Known<'_>) -> Holds {
        if facts.replication == Replication::Physical {
            return (*self == Self::Replication).into();
        }
        match self {
            Self::All => Holds::Yes,
            Self::Replication => Holds::No,
            Self::SameUser => (facts.user == facts.database).into(),
            Self::SameRole | Self::SameGroup => is_member(facts.database, known),
            Self::Name(name) => (name == facts.database).into(),
            Self::Pattern(pattern) => pattern.is_match(facts.database).into(),
        }
    }
}

impl UserMatch {
    pub(in crate::auth) fn holds(&self, user: &[u8], known: &Known<'_>) -> Holds {
        match self {
            Self::All => Holds::Yes,
            Self::Name(name) => (name == user).into(),
            Self::MemberOf(role) => is_member(role, known),
            Self::Pattern(pattern) => pattern.is_match(user).into(),
        }
    }
}

impl AddressMatch {
    fn holds(&self, facts: &Facts<'_>, known: &Known<'_>) -> Holds {
        let Origin::Tcp(address) = facts.origin else {
            return Holds::Yes;
        };
        let is_in = |network: fn(&Interface) -> Option<Network>| {
            let networks = known.interfaces.iter().filter_map(network);
            networks.into_iter().any(|network| network.contains(address))
        };
        match self {
            Self::All => Holds::Yes,
            Self::SameHost => is_in(Interface::host).into(),
            Self::SameNet => is_in(Interface::network).into(),
            Self::Network(network) => network.contains(address).into(),
            Self::Host(pattern) => match known.host_name {
                Some(HostName::Verified(name)) => is_host(pattern, name.as_bytes()).into(),
                Some(HostName::Unknown) => Holds::No,
                None => Holds::Needs(Need::HostName),
            },
        }
    }
}

fn is_host(pattern: &[u8], name: &[u8]) -> bool {
    if !pattern.starts_with(b".") {
        return pattern.eq_ignore_ascii_case(name);
    }
    let start = name.len().checked_sub(pattern.len());
    start.is_some_and(|start| name[start..].eq_ignore_ascii_case(pattern))
}
