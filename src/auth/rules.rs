//! Which users may try to log in, from where, and how: an ordered list of rules, of which the first
//! that matches decides, as in `pg_hba.conf` (PostgreSQL documentation, "The `pg_hba.conf` File").
//! [`super::hba`] reads the file.
//!
//! Deciding does no IO. Where a rule depends only on something that has to be looked up, the answer
//! says what to look up; the caller does so and asks again.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::hba::error::shown_path;
use super::hba::regex::Pattern;
use super::ldap::LdapOptions;
use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::Replication;

mod matching;

pub(super) use matching::Holds;

/// Where a rule stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuleOrigin {
    Builtin,
    File { path: Arc<Path>, line: u32 },
}

impl std::fmt::Display for RuleOrigin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Builtin => f.write_str("built-in rule"),
            Self::File { path, line } => write!(f, "{}:{line}", shown_path(path)),
        }
    }
}

/// The connection type. The router has no GSSAPI encryption: `hostgssenc` never matches,
/// `hostnogssenc` is `host`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    Local,
    Host,
    HostSsl,
    HostNoSsl,
    HostGssEnc,
    HostNoGssEnc,
}

impl Connection {
    /// The word in the file.
    pub fn word(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Host => "host",
            Self::HostSsl => "hostssl",
            Self::HostNoSsl => "hostnossl",
            Self::HostGssEnc => "hostgssenc",
            Self::HostNoGssEnc => "hostnogssenc",
        }
    }

    fn matches(self, facts: &Facts<'_>) -> bool {
        let is_local = facts.origin == Origin::Local;
        match self {
            Self::Local => is_local,
            Self::Host | Self::HostNoGssEnc => !is_local,
            Self::HostSsl => !is_local && facts.tls,
            Self::HostNoSsl => !is_local && !facts.tls,
            Self::HostGssEnc => false,
        }
    }
}

/// One entry of the database column. Physical replication asks for no database, and only
/// `replication` lets it in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseMatch {
    /// Every database, but not physical replication.
    All,
    /// Physical replication. Logical replication names its database.
    Replication,
    /// The database named like the user.
    SameUser,
    /// A database named like a role the user is a member of.
    SameRole,
    /// The old word for the same.
    SameGroup,
    Name(Bytes),
    Pattern(Pattern),
}

/// One entry of the user column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserMatch {
    All,
    Name(Bytes),
    /// `+role`: members of a role, directly or not.
    MemberOf(Bytes),
    Pattern(Pattern),
}

/// The address column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressMatch {
    All,
    /// An address of this host.
    SameHost,
    /// An address of a network this host is in.
    SameNet,
    Network(Network),
    /// A host name, or with a leading dot the end of one.
    Host(Bytes),
}

/// An address and a mask of the bits that count, which need not be contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    mask: IpAddr,
}

impl Network {
    /// `None` where the address has fewer bits than `prefix`. Bits beyond the prefix are ignored,
    /// as in PostgreSQL.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let prefix = u32::from(prefix);
        let mask: IpAddr = match address {
            IpAddr::V4(_) => {
                let zeros = 32_u32.checked_sub(prefix)?;
                std::net::Ipv4Addr::from_bits(u32::MAX.checked_shl(zeros).unwrap_or(0)).into()
            }
            IpAddr::V6(_) => {
                let zeros = 128_u32.checked_sub(prefix)?;
                std::net::Ipv6Addr::from_bits(u128::MAX.checked_shl(zeros).unwrap_or(0)).into()
            }
        };
        Some(Self { address, mask })
    }

    /// `None` where the two are not of the same family.
    pub fn with_mask(address: IpAddr, mask: IpAddr) -> Option<Self> {
        (address.is_ipv4() == mask.is_ipv4()).then_some(Self { address, mask })
    }

    /// As written.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    pub fn mask(&self) -> IpAddr {
        self.mask
    }

    /// An IPv4 client of a dual-stack socket is an IPv4 client.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, self.mask, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(mask), IpAddr::V4(address)) => {
                (network.to_bits() ^ address.to_bits()) & mask.to_bits() == 0
            }
            (IpAddr::V6(network), IpAddr::V6(mask), IpAddr::V6(address)) => {
                (network.to_bits() ^ address.to_bits()) & mask.to_bits() == 0
            }
            _ => false,
        }
    }
}

/// How a client that matches is authenticated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Method {
    Trust,
    Reject,
    Password,
    Md5,
    ScramSha256,
    Cert,
    Ldap(Arc<LdapOptions>),
    Peer,
}

impl Method {
    /// The word in the file.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Trust => "trust",
            Self::Reject => "reject",
            Self::Password => "password",
            Self::Md5 => "md5",
            Self::ScramSha256 => "scram-sha-256",
            Self::Cert => "cert",
            Self::Ldap(_) => "ldap",
            Self::Peer => "peer",
        }
    }
}

/// `clientcert=`: what is required before the method, for any method. `cert` implies `VerifyFull`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientCertificate {
    #[default]
    Off,
    /// Any certificate of a trusted authority.
    VerifyCa,
    /// One whose name is the user's, by the rule's map if it has one.
    VerifyFull,
}

/// `clientname=`: the part of a certificate that is its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientName {
    #[default]
    Cn,
    /// The whole subject, as in RFC 2253.
    Dn,
}

/// One line: the user, the database, the address, and the method. In each list one match is enough;
/// an empty list matches nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub place: RuleOrigin,
    pub connection: Connection,
    pub databases: Vec<DatabaseMatch>,
    pub users: Vec<UserMatch>,
    /// `All` for `local`.
    pub address: AddressMatch,
    pub method: Method,
    /// The map in `pg_ident.conf`; `None` and the empty name are no map.
    pub map: Option<Bytes>,
    pub client_certificate: ClientCertificate,
    pub client_name: ClientName,
}

/// Where a client comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A Unix-domain socket.
    Local,
    /// The client's own address, which need not be the socket's.
    Tcp(IpAddr),
}

/// What is known of a client before it is authenticated.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub user: &'a [u8],
    pub database: &'a [u8],
    pub replication: Replication,
    pub origin: Origin,
    pub tls: bool,
}

/// The roles a user is a member of, directly or not, itself included; none for a user that does not
/// exist.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Memberships(HashSet<Bytes>);

impl Memberships {
    pub fn new(roles: impl IntoIterator<Item = impl Into<Bytes>>) -> Self {
        Self(roles.into_iter().map(Into::into).collect())
    }

    pub fn contains(&self, role: &[u8]) -> bool {
        self.0.contains(role)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The name of a client's host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostName {
    /// The address has this name, and the name has this address.
    Verified(String),
    /// There is none, or one that is not confirmed. It matches no rule.
    Unknown,
}

/// One address of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interface {
    pub address: IpAddr,
    pub netmask: IpAddr,
}

impl Interface {
    /// With a mask of zero, or of another family, PostgreSQL uses the address alone.
    fn network(&self) -> Option<Network> {
        let address = self.address.to_canonical();
        if self.netmask.is_unspecified() {
            return self.host();
        }
        Network::with_mask(address, self.netmask).or_else(|| self.host())
    }

    fn host(&self) -> Option<Network> {
        let address = self.address.to_canonical();
        Network::new(address, if address.is_ipv4() { 32 } else { 128 })
    }
}

/// What has been looked up so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known<'a> {
    pub memberships: Option<&'a Memberships>,
    pub host_name: Option<&'a HostName>,
    pub interfaces: &'a [Interface],
}

/// What has to be looked up. The same need does not come twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Memberships,
    HostName,
}

/// A decision, or what is still needed for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'a> {
    Decided(Decision<'a>),
    Needs(Need),
}

/// The decision of the rules about a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision<'a> {
    /// The first rule that matches; it may be a `reject`.
    Match(Matched<'a>),
    NoMatch,
}

/// The rule that decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matched<'a> {
    /// From 0.
    pub index: usize,
    pub rule: &'a Rule,
}

/// A column that may not match.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// The connection type, that is, the kind of socket and its encryption.
    Type,
    Address,
    Database,
    User,
}

/// The verdict of one rule about a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleVerdict {
    Matches,
    /// The first column that does not match.
    Differs(Column),
    Needs(Need),
}

/// One rule, considered for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Considered<'a> {
    /// From 0.
    pub index: usize,
    pub rule: &'a Rule,
    pub verdict: RuleVerdict,
}

/// The ordered list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    rules: Vec<Rule>,
}

impl Rules {
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { rules }
    }

    /// `host all all all scram-sha-256`, the same for `local`, and for `replication`: unlike in
    /// `pg_hba.conf`, where `all` leaves physical replication out, the default lets it in. The
    /// router only authenticates; whether a role may replicate is for its REPLICATION attribute and
    /// the server's own `pg_hba.conf` to say.
    pub fn builtin() -> Self {
        let rule = |connection| Rule {
            place: RuleOrigin::Builtin,
            connection,
            databases: vec![DatabaseMatch::All, DatabaseMatch::Replication],
            users: vec![UserMatch::All],
            address: AddressMatch::All,
            method: Method::ScramSha256,
            map: None,
            client_certificate: ClientCertificate::Off,
            client_name: ClientName::Cn,
        };
        Self::new(vec![rule(Connection::Host), rule(Connection::Local)])
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Rule> {
        self.rules.iter()
    }

    /// Whether any rule depends on this host's own addresses.
    pub fn ask_for_interfaces(&self) -> bool {
        let asks = |rule: &Rule| matches!(rule.address, AddressMatch::SameHost | AddressMatch::SameNet);
        self.rules.iter().any(asks)
    }

    /// The first rule that matches decides; a failed login does not fall through to the next.
    /// Something is needed only where a rule matches in everything else.
    pub fn decide(&self, facts: &Facts<'_>, known: &Known<'_>) -> Step<'_> {
        for (index, rule) in self.rules.iter().enumerate() {
            match rule.verdict(facts, known) {
                RuleVerdict::Matches => return Step::Decided(Decision::Match(Matched { index, rule })),
                RuleVerdict::Needs(need) => return Step::Needs(need),
                RuleVerdict::Differs(_) => {}
            }
        }
        Step::Decided(Decision::NoMatch)
    }

    /// The verdict of each rule about a client, in order. Those after the first that matches have
    /// no effect.
    pub fn describe(&self, facts: &Facts<'_>, known: &Known<'_>) -> Vec<Considered<'_>> {
        let rules = self.rules.iter().enumerate();
        rules
            .map(|(index, rule)| Considered {
                index,
                rule,
                verdict: rule.verdict(facts, known),
            })
            .collect()
    }
}

impl<'a> IntoIterator for &'a Rules {
    type Item = &'a Rule;
    type IntoIter = std::slice::Iter<'a, Rule>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Facts<'_> {
    /// The error where no rule matches (28000), in PostgreSQL's words.
    pub fn no_entry(&self) -> ErrorReply {
        let from = if self.replication == Replication::Physical {
            "replication connection from host"
        } else {
            "host"
        };
        self.refusal(&format!("no pg_hba.conf entry for {from}"))
    }

    /// The error where a rule with `reject` matches (28000), in PostgreSQL's words.
    pub fn rejected(&self) -> ErrorReply {
        let what = if self.replication == Replication::Physical {
            "replication connection"
        } else {
            "connection"
        };
        self.refusal(&format!("pg_hba.conf rejects {what} for host"))
    }

    fn refusal(&self, start: &str) -> ErrorReply {
        let database = match self.replication {
            Replication::Physical => String::new(),
            Replication::None | Replication::Logical => {
                format!("database \"{}\", ", String::from_utf8_lossy(self.database))
            }
        };
        let from = match self.origin {
            Origin::Local => "[local]".to_owned(),
            Origin::Tcp(address) => address.to_canonical().to_string(),
        };
        let user = String::from_utf8_lossy(self.user);
        let encryption = if self.tls {
            "SSL encryption"
        } else {
            "no encryption"
        };
        ErrorReply::fatal(
            SqlState::INVALID_AUTHORIZATION,
            format!("{start} \"{from}\", user \"{user}\", {database}{encryption}"),
        )
    }
}

#[cfg(test)]
mod tests;
