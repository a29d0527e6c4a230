//! What the router has and how it is set: listeners, limits, certificates, settings, peers.

use serde::{Deserialize, Serialize};

/// An address that the router listens on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerView {
    /// Of the configuration; `http`, `agent_check` and `control_socket` are the router's own.
    pub name: String,
    /// `postgres`, `tcp`, `http`, `agent check` or `control`.
    pub protocol: String,
    /// An IP address, or `*` for all of the host; `null` for a Unix socket.
    pub address: Option<String>,
    pub port: Option<u16>,
    /// The path of a Unix socket.
    pub socket: Option<String>,
    /// Where its sessions go; `null` where there are none.
    pub route: Option<String>,
    pub cluster: Option<String>,
    /// `read-write` or `read-only`.
    pub access: Option<String>,
    /// Which members may serve, in order of preference: `replica, then leader`.
    pub targets: Option<String>,
    /// The mode of the route's pool. Without one `tracked` if sessions are, otherwise `off`.
    pub pool: Option<String>,
    /// The name of the database that is the console here.
    pub console: Option<String>,
    /// `off`, `optional`, `required`, or `server` where client and server agree on it.
    pub tls: String,
    /// Of the PROXY protocol's header: `required`, `trusted` (only trusted balancers send one), or
    /// `null` where none is understood.
    pub proxy_protocol: Option<String>,
    /// The networks whose clients may log in; empty: all.
    pub allow: Vec<String>,
    pub deny: Vec<String>,
    /// `open`, `paused` or `disabled` (its route is), `draining` or `closed` (the router stops).
    pub state: String,
    /// Sessions now, of this process; `null` where they are not counted.
    pub clients: Option<u64>,
    /// How many there may be; `null` without a limit of its own.
    pub max_clients: Option<u64>,
}

/// A limit, and what of it is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitView {
    /// What is limited.
    pub name: String,
    /// What has this limit: `router`, `route rw`, `member main/db1`, …
    pub scope: String,
    /// The configuration's key; `null`: it is built in, or the host's.
    pub key: Option<String>,
    /// `null`: there is none.
    pub limit: Option<u64>,
    /// Now; `null` where it is not counted.
    pub used: Option<u64>,
    /// `sessions`, `connections`, `logins`, `clients`, `requests`, `bytes`, `files`, or
    /// `sessions/s`.
    pub unit: String,
}

impl LimitView {
    pub(crate) fn new(name: &str, scope: impl Into<String>, unit: &str) -> Self {
        Self {
            name: name.to_owned(),
            scope: scope.into(),
            key: None,
            limit: None,
            used: None,
            unit: unit.to_owned(),
        }
    }

    #[must_use]
    pub(crate) fn key(self, key: impl Into<String>) -> Self {
        Self {
            key: Some(key.into()),
            ..self
        }
    }

    /// 0 is no limit.
    #[must_use]
    pub(crate) fn most(self, limit: impl TryInto<u64>) -> Self {
        self.exactly(limit).unless_zero()
    }

    /// 0 admits none.
    #[must_use]
    pub(crate) fn exactly(self, limit: impl TryInto<u64>) -> Self {
        Self {
            limit: Some(limit.try_into().unwrap_or(u64::MAX)),
            ..self
        }
    }

    fn unless_zero(self) -> Self {
        Self {
            limit: self.limit.filter(|limit| *limit > 0),
            ..self
        }
    }

    #[must_use]
    pub(crate) fn used(self, used: impl TryInto<u64>) -> Self {
        Self {
            used: Some(used.try_into().unwrap_or(u64::MAX)),
            ..self
        }
    }
}

/// A certificate in use. Its key is never shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateView {
    /// The connections that it is for: `clients`, `http`, `servers`, `patroni`, `etcd` or `ldap`.
    pub used_for: String,
    /// `own` (the router shows it), `chain` (shown with its own), or `authority` (the router trusts
    /// it).
    pub kind: String,
    /// The key that names its file.
    pub key: String,
    pub file: String,
    /// Its place in the file, from 1.
    pub number: usize,
    pub cluster: Option<String>,
    /// The listeners that show it to clients, or ask clients for one that it has signed.
    pub listeners: Vec<String>,
    pub subject: String,
    pub issuer: String,
    /// DNS names and addresses of its `subjectAltName`.
    pub names: Vec<String>,
    /// Milliseconds since 1970.
    pub not_before_ms: i64,
    pub not_after_ms: i64,
    /// Whole days; negative once it has expired.
    pub days_left: i64,
    /// In hexadecimal digits.
    pub serial: String,
    /// SHA-256, as `openssl x509 -fingerprint -sha256` prints it.
    pub fingerprint: String,
}

/// A key of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingView {
    /// As `listeners[0].address`.
    pub key: String,
    /// What is in effect; `null`: it is not set. `…` stands for what may contain a secret.
    pub value: Option<String>,
    pub default: Option<String>,
    /// `file` or `default`.
    pub source: String,
    /// `null` for a default.
    pub file: Option<String>,
    pub line: Option<u64>,
    /// The file that was read last says this, and it takes effect only after `trunkline upgrade` or
    /// a restart; `null`: nothing waits.
    pub after_restart: Option<String>,
}

/// Another router of the same clusters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    pub name: String,
    pub host: String,
    pub port: u16,
    /// `up`, `down`, or `self`: the list includes this router.
    pub state: String,
    /// Why it is down.
    pub error: Option<String>,
    /// How long its answer took.
    pub answer_ms: Option<u64>,
    /// When it last answered any question, in milliseconds since 1970; `null`: it has not, since
    /// this process started.
    pub seen_ms: Option<u64>,
    /// The version of the peer protocol in which it answers.
    pub protocol_version: Option<u8>,
}
