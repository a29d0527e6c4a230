//! A route's pool: server connections that sessions take in turn.

use std::sync::Arc;
use std::time::Duration;

use super::words::words;

/// `routes.NAME.pool`. A route without one (`mode: off`, the default) has a server connection of
/// its own for each session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    pub mode: PoolMode,
    /// For users and databases that no entry of `overrides` matches.
    pub limits: PoolLimits,
    /// In the order of the file, at most 1,024; see [`Self::limits_for`].
    pub overrides: Vec<PoolOverride>,
    /// How many connections of one pool to one member are being opened at once, 1 to 100.
    pub connects: u32,
    /// Named prepared statements of one session, and of one server connection, 1 to 100,000.
    /// Transaction mode only.
    pub max_statements: u32,
    /// Their texts together, in bytes, 16 KiB to 1 GiB: of one session, and of one server
    /// connection. Transaction mode only.
    pub max_statement_bytes: u64,
    /// How long a connection may take to become clean after a session, 10 ms to 1 min. Then it is
    /// closed.
    pub reset_timeout: Duration,
    /// When a waiting session gets a NOTICE, 10 ms to 10 min; `None`: never. Transaction mode
    /// only.
    pub wait_notify: Option<Duration>,
    /// Parameters that are asked and restored at every boundary: names in lower case, no
    /// duplicates, at most 64 of at most 255 bytes. Transaction mode only.
    pub settings: Vec<Arc<str>>,
    /// Transaction mode only.
    pub verify: Verify,
    /// Transaction mode only.
    pub custom_settings: CustomSettings,
    /// Startup parameters that servers are not told, and that do not separate pools: names in lower
    /// case, no duplicates, at most 64 of at most 255 bytes. Never `user`, `database`,
    /// `replication`, `client_encoding`, `application_name` or a protocol option (`_pq_.`).
    pub ignore_startup_parameters: Vec<Arc<str>>,
}

impl Pool {
    /// The limits of the pool that logs into the servers as `user`, to `database`: those of the
    /// first matching entry of `overrides`, or else the pool's own.
    pub fn limits_for(&self, user: &str, database: &str) -> &PoolLimits {
        let matching = |entry: &&PoolOverride| entry.matches(user, database);
        let found = self.overrides.iter().find(matching);
        found.map_or(&self.limits, |entry| &entry.limits)
    }
}

/// What may be different for each server user and database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolLimits {
    /// This router's connections to one member as one user to one database, over all workers and
    /// with those that are pinned, 1 to 100,000.
    pub max_connections: u32,
    /// As many are kept open while a session of the pool lives, or a stored credential can open
    /// them; at most `max_connections`.
    pub min_connections: u32,
    /// Further connections, 0 to 100,000, once a session has waited for `reserve_delay`.
    pub reserve: u32,
    /// 0 to 10 min.
    pub reserve_delay: Duration,
    /// How long a connection above `min_connections` may be idle, 100 ms to 24 h; `None`: no limit.
    pub idle_timeout: Option<Duration>,
    /// A connection is closed at its first release after this, 100 ms to 24 h. Each draws its own
    /// from 90 % to 100 % of it, so that connections opened together do not close together.
    pub max_lifetime: Duration,
    /// From a request's first message to the server's answer, 10 ms to 24 h; `None`: no limit.
    /// Then the statement is cancelled: the client gets 57014.
    pub query_timeout: Option<Duration>,
    /// From a transaction's begin, 10 ms to 24 h; `None`: no limit. Then the session ends with
    /// 25P04.
    pub transaction_timeout: Option<Duration>,
    /// How long the server waits for the client in an open transaction, 10 ms to 24 h; `None`: no
    /// limit. Then the session ends with 25P03.
    pub idle_transaction_timeout: Option<Duration>,
    /// How long no byte comes from the client in an open batch, `COPY … FROM STDIN` excepted, 10 ms
    /// to 24 h; `None`: no limit. Then the session ends with 25P03.
    pub batch_timeout: Option<Duration>,
}

/// An entry of `overrides`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolOverride {
    /// The user that logs into the servers; `None`: every user. One of the two names is given.
    pub user: Option<Arc<str>>,
    /// `None`: every database.
    pub database: Option<Arc<str>>,
    /// Complete: what the entry does not say is the pool's.
    pub limits: PoolLimits,
}

impl PoolOverride {
    /// Whether the entry is about this user and database.
    pub fn matches(&self, user: &str, database: &str) -> bool {
        let is =
            |wanted: &Option<Arc<str>>, name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
        is(&self.user, user) && is(&self.database, database)
    }
}

/// When a session gives its server connection back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PoolMode {
    /// At its end.
    Session,
    /// After each transaction.
    Transaction,
}

words! {
    /// `mode` as it is written.
    pub enum WrittenPoolMode {
        Off = "off",
        Session = "session",
        Transaction = "transaction",
    }
}

impl WrittenPoolMode {
    /// `None` is off.
    pub fn pooled(self) -> Option<PoolMode> {
        match self {
            Self::Off => None,
            Self::Session => Some(PoolMode::Session),
            Self::Transaction => Some(PoolMode::Transaction),
        }
    }
}

impl From<PoolMode> for WrittenPoolMode {
    fn from(mode: PoolMode) -> Self {
        match mode {
            PoolMode::Session => Self::Session,
            PoolMode::Transaction => Self::Transaction,
        }
    }
}

impl std::fmt::Display for PoolMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        WrittenPoolMode::from(*self).fmt(f)
    }
}

words! {
    /// When the server is asked what a session may have changed.
    pub enum Verify {
        /// After a transaction whose command tags, parameter reports or texts say that something
        /// may have changed.
        Tags = "tags",
        /// After every transaction, with every setting.
        Always = "always",
    }
}

words! {
    /// A setting with a name of the user's own (`app.tenant`) cannot be taken back: it reads as an
    /// empty text for ever where it read as NULL.
    pub enum CustomSettings {
        /// The connection serves other sessions.
        Share = "share",
        /// The connection is closed before a session that never set the name gets it.
        Close = "close",
    }
}
