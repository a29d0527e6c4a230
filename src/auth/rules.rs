//! Who may try to log in, from where, and how: an ordered list of rules, of which the first that matches decides, as in
//! `pg_hba.conf` (PostgreSQL documentation, "The `pg_hba.conf` File"). For now there is only the built-in list; the
//! file's syntax will be read into the same types.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::wire::message::ErrorReply;
use crate::wire::sqlstate::SqlState;
use crate::wire::startup::Replication;

/// Where a rule stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    Builtin,
    File { path: Arc<Path>, line: u32 },
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Builtin => f.write_str("built-in rule"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// `host`, `hostssl`, `hostnossl`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    Any,
    Tls,
    Plain,
}

/// One entry of the database column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseMatch {
    /// Every database, but not physical replication, which asks for none.
    All,
    /// Physical replication. Logical replication names its database.
    Replication,
    /// The database named like the user.
    SameUser,
    Name(Bytes),
}

/// One entry of the user column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserMatch {
    All,
    Name(Bytes),
}

/// The address column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressMatch {
    All,
    Network(Network),
}

/// An address and the number of its bits that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// `None` where the address has fewer bits than `prefix`. Bits beyond the prefix are ignored, as in PostgreSQL.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= bits).then_some(Self { address, prefix })
    }

    /// An IPv4 client of a dual-stack socket is an IPv4 client.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing.checked_shr(32 - u32::from(self.prefix)).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing.checked_shr(128 - u32::from(self.prefix)).unwrap_or(0) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

/// How a client that matches is authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    ScramSha256,
    Reject,
}

/// One line: who, from where, to what, and how. In each list one match is enough; an empty list matches nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub origin: Origin,
    pub connection: Connection,
    pub databases: Vec<DatabaseMatch>,
    pub users: Vec<UserMatch>,
    pub addresses: Vec<AddressMatch>,
    pub method: Method,
}

/// What is known of a client before it is authenticated.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub user: &'a [u8],
    pub database: &'a [u8],
    pub replication: Replication,
    /// The client's own address, which need not be the socket's.
    pub address: IpAddr,
    pub tls: bool,
}

/// What the rules say about a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision<'a> {
    /// Authenticate with SCRAM-SHA-256.
    Scram(Matched<'a>),
    /// A rule with `reject`.
    Reject(Matched<'a>),
    NoMatch,
}

/// The rule that decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matched<'a> {
    /// From 0.
    pub index: usize,
    pub rule: &'a Rule,
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

    /// `host all all all scram-sha-256`, and the same for `replication`: unlike in `pg_hba.conf`, where `all` leaves
    /// physical replication out, the default lets it in. The router only authenticates; whether a role may replicate
    /// is for its REPLICATION attribute and the server's own `pg_hba.conf` to say.
    pub fn builtin() -> Self {
        Self::new(vec![Rule {
            origin: Origin::Builtin,
            connection: Connection::Any,
            databases: vec![DatabaseMatch::All, DatabaseMatch::Replication],
            users: vec![UserMatch::All],
            addresses: vec![AddressMatch::All],
            method: Method::ScramSha256,
        }])
    }

    /// The first rule that matches decides; a failed login does not fall through to the next.
    pub fn decide(&self, facts: &Facts<'_>) -> Decision<'_> {
        let Some((index, rule)) = self
            .rules
            .iter()
            .enumerate()
            .find(|(_, rule)| rule.matches(facts))
        else {
            return Decision::NoMatch;
        };
        let matched = Matched { index, rule };
        match rule.method {
            Method::ScramSha256 => Decision::Scram(matched),
            Method::Reject => Decision::Reject(matched),
        }
    }
}

impl Rule {
    fn matches(&self, facts: &Facts<'_>) -> bool {
        let connection = match self.connection {
            Connection::Any => true,
            Connection::Tls => facts.tls,
            Connection::Plain => !facts.tls,
        };
        connection
            && self.databases.iter().any(|database| database.matches(facts))
            && self.users.iter().any(|user| match user {
                UserMatch::All => true,
                UserMatch::Name(name) => *name == facts.user,
            })
            && self.addresses.iter().any(|address| match address {
                AddressMatch::All => true,
                AddressMatch::Network(network) => network.contains(facts.address),
            })
    }
}

impl DatabaseMatch {
    fn matches(&self, facts: &Facts<'_>) -> bool {
        let physical = facts.replication == Replication::Physical;
        match self {
            Self::Replication => physical,
            Self::All => !physical,
            Self::SameUser => !physical && facts.user == facts.database,
            Self::Name(name) => !physical && *name == facts.database,
        }
    }
}

impl Facts<'_> {
    /// What a client is told that no rule matches (28000), in PostgreSQL's words.
    pub fn no_entry(&self) -> ErrorReply {
        let from = if self.replication == Replication::Physical {
            "replication connection from host"
        } else {
            "host"
        };
        self.refusal(&format!("no pg_hba.conf entry for {from}"))
    }

    /// What a client is told that a rule with `reject` matches (28000), in PostgreSQL's words.
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
        let address = self.address.to_canonical();
        let user = String::from_utf8_lossy(self.user);
        let encryption = if self.tls {
            "SSL encryption"
        } else {
            "no encryption"
        };
        ErrorReply::fatal(
            SqlState::INVALID_AUTHORIZATION,
            format!("{start} \"{address}\", user \"{user}\", {database}{encryption}"),
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn facts() -> Facts<'static> {
        Facts {
            user: b"app",
            database: b"shop",
            replication: Replication::None,
            address: "10.1.2.3".parse().unwrap(),
            tls: false,
        }
    }

    fn rule(method: Method) -> Rule {
        Rule {
            method,
            ..Rules::builtin().rules.remove(0)
        }
    }

    fn network(text: &str, prefix: u8) -> Network {
        Network::new(text.parse().unwrap(), prefix).unwrap()
    }

    #[test]
    fn the_default_asks_everybody_for_scram() {
        let rules = Rules::builtin();
        for replication in [Replication::None, Replication::Logical, Replication::Physical] {
            for tls in [false, true] {
                for address in ["10.1.2.3", "::1"] {
                    let facts = Facts {
                        replication,
                        tls,
                        address: address.parse().unwrap(),
                        ..facts()
                    };
                    let Decision::Scram(matched) = rules.decide(&facts) else {
                        panic!("{facts:?}")
                    };
                    assert_eq!((matched.index, &matched.rule.origin), (0, &Origin::Builtin));
                }
            }
        }
    }

    #[test]
    fn the_first_match_decides() {
        let reject = Rule {
            users: vec![UserMatch::Name(Bytes::from_static(b"app"))],
            ..rule(Method::Reject)
        };
        let rules = Rules::new(vec![reject, rule(Method::ScramSha256)]);
        assert!(matches!(
            rules.decide(&facts()),
            Decision::Reject(Matched { index: 0, .. })
        ));
        let other = Facts {
            user: b"App",
            ..facts()
        };
        assert!(matches!(
            rules.decide(&other),
            Decision::Scram(Matched { index: 1, .. })
        ));
    }

    #[test]
    fn all_databases_are_not_replication() {
        let only = |database| {
            Rules::new(vec![Rule {
                databases: vec![database],
                ..rule(Method::ScramSha256)
            }])
        };
        let physical = Facts {
            replication: Replication::Physical,
            user: b"shop",
            ..facts()
        };
        let logical = Facts {
            replication: Replication::Logical,
            ..physical
        };
        for database in [
            DatabaseMatch::All,
            DatabaseMatch::SameUser,
            DatabaseMatch::Name(Bytes::from_static(b"shop")),
        ] {
            let rules = only(database);
            assert_eq!(rules.decide(&physical), Decision::NoMatch);
            assert!(matches!(rules.decide(&logical), Decision::Scram(_)));
        }
        assert!(matches!(
            only(DatabaseMatch::Replication).decide(&physical),
            Decision::Scram(_)
        ));
        assert_eq!(
            only(DatabaseMatch::Replication).decide(&logical),
            Decision::NoMatch
        );
    }

    #[test]
    fn encryption_and_address_count() {
        let tls = Rules::new(vec![Rule {
            connection: Connection::Tls,
            ..rule(Method::ScramSha256)
        }]);
        assert_eq!(tls.decide(&facts()), Decision::NoMatch);
        assert!(matches!(
            tls.decide(&Facts { tls: true, ..facts() }),
            Decision::Scram(_)
        ));

        for (network, address, inside) in [
            (network("10.1.0.0", 16), "10.1.255.1", true),
            (network("10.1.0.0", 16), "10.2.0.1", false),
            (network("10.1.0.0", 16), "::ffff:10.1.2.3", true),
            (network("10.1.2.3", 32), "10.1.2.2", false),
            (network("0.0.0.0", 0), "255.1.2.3", true),
            (network("0.0.0.0", 0), "::1", false),
            (network("::", 0), "fe80::1", true),
            (network("::", 0), "1.2.3.4", false),
            (network("fd00::", 8), "fdff::1", true),
            (network("::1", 128), "::2", false),
        ] {
            assert_eq!(
                network.contains(address.parse().unwrap()),
                inside,
                "{network:?} {address}"
            );
        }
        assert!(Network::new("1.2.3.4".parse().unwrap(), 33).is_none());
    }

    #[test]
    fn refusals_are_in_postgresqls_words() {
        let reply = facts().no_entry();
        assert_eq!(reply.code.as_str(), "28000");
        assert_eq!(
            reply.message,
            "no pg_hba.conf entry for host \"10.1.2.3\", user \"app\", database \"shop\", no encryption"
        );
        let physical = Facts {
            replication: Replication::Physical,
            tls: true,
            address: "::ffff:1.2.3.4".parse().unwrap(),
            ..facts()
        };
        assert_eq!(
            physical.no_entry().message,
            "no pg_hba.conf entry for replication connection from host \"1.2.3.4\", user \"app\", SSL encryption"
        );
        assert_eq!(
            facts().rejected().message,
            "pg_hba.conf rejects connection for host \"10.1.2.3\", user \"app\", database \"shop\", no encryption"
        );
    }
}
