//! Pools: modes, sizes and times.

use std::time::Duration;

use super::databases::{Database, Users};
use super::parse::{Setting, elements};
use super::{Globals, within};
use crate::cli::import::notes::Notes;
use crate::cli::import::write::{Pool, Settings, list, scalar, time};

/// The most entries of `overrides`.
const MAX_OVERRIDES: usize = 1024;
const DAY: Duration = Duration::from_hours(24);

/// What an entry says, as far as it says something. A time of 0 is off.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) max_connections: Option<u32>,
    pub(super) min_connections: Option<u32>,
    pub(super) reserve: Option<u32>,
    pub(super) max_lifetime: Option<Duration>,
    pub(super) query_timeout: Option<Duration>,
    pub(super) transaction_timeout: Option<Duration>,
    pub(super) idle_transaction_timeout: Option<Duration>,
}

impl Sizes {
    /// What is said here, or else there.
    fn or(&self, other: &Self) -> Self {
        Self {
            max_connections: self.max_connections.or(other.max_connections),
            min_connections: self.min_connections.or(other.min_connections),
            reserve: self.reserve.or(other.reserve),
            max_lifetime: self.max_lifetime.or(other.max_lifetime),
            query_timeout: self.query_timeout.or(other.query_timeout),
            transaction_timeout: self.transaction_timeout.or(other.transaction_timeout),
            idle_transaction_timeout: self.idle_transaction_timeout.or(other.idle_transaction_timeout),
        }
    }

    /// With `PgBouncer`'s defaults, as keys of a pool.
    /// `most`: the cluster's `server.max_connections`.
    fn keys(&self, has_reserve: bool, most: Option<u32>) -> Settings {
        let most = most.unwrap_or(100_000).min(100_000);
        let max = self.max_connections.unwrap_or(20).clamp(1, most);
        let reserve = self.reserve.filter(|_| has_reserve).unwrap_or(0);
        let lifetime = self.max_lifetime.unwrap_or(Duration::from_hours(1));
        let transaction = limit(self.transaction_timeout, Duration::ZERO);
        vec![
            ("max_connections", max.to_string()),
            // It is capped there, too.
            (
                "min_connections",
                self.min_connections.unwrap_or(0).min(max).to_string(),
            ),
            ("reserve", reserve.min(100_000).to_string()),
            (
                "max_lifetime",
                time(lifetime.clamp(Duration::from_millis(100), DAY)),
            ),
            ("query_timeout", time(limit(self.query_timeout, transaction))),
            ("transaction_timeout", time(transaction)),
            (
                "idle_transaction_timeout",
                time(limit(self.idle_transaction_timeout, transaction)),
            ),
        ]
    }
}

/// Off where the limit of the transaction comes first in any case.
fn limit(wanted: Option<Duration>, transaction: Duration) -> Duration {
    let wanted = wanted.unwrap_or_default();
    if wanted.is_zero() || !transaction.is_zero() && wanted >= transaction {
        return Duration::ZERO;
    }
    wanted.clamp(Duration::from_millis(10), DAY)
}

/// What one list of keys says that the other does not.
fn differences(keys: &Settings, base: &Settings) -> Settings {
    keys.iter().filter(|key| !base.contains(key)).cloned().collect()
}

/// What `[pgbouncer]` says about all pools.
#[derive(Debug)]
pub(super) struct Pools {
    /// `None`: the file names none that is known.
    mode: Option<&'static str>,
    sizes: Sizes,
    has_reserve: bool,
    /// With a reserve only.
    reserve_delay: Option<Duration>,
    queue_timeout: Duration,
    max_queue: Option<u32>,
    /// 0 is off.
    idle_timeout: Option<Duration>,
    /// The rest of `pool`.
    rest: Settings,
}

impl Pools {
    pub(super) fn read(globals: &mut Globals<'_>, notes: &mut Notes) -> Self {
        let mode = globals.take("pool_mode");
        let mut pools = Self {
            mode: mode.map_or(Some("session"), |mode| {
                self::mode(mode.line, "pool_mode", &mode.value, notes)
            }),
            sizes: Sizes::default(),
            has_reserve: true,
            reserve_delay: None,
            queue_timeout: Duration::from_mins(2),
            max_queue: None,
            idle_timeout: None,
            rest: Settings::new(),
        };
        let mut sizes = Sizes::default();
        for key in [
            "default_pool_size",
            "min_pool_size",
            "reserve_pool_size",
            "server_lifetime",
            "query_timeout",
            "transaction_timeout",
            "idle_transaction_timeout",
        ] {
            if let Some(Setting { line, value, .. }) = globals.take(key) {
                sizes.read(key, value, *line, key, &pools, notes);
            }
        }
        if sizes.max_lifetime == Some(Duration::ZERO) {
            notes.differs(
                None,
                "server_lifetime",
                "a connection was used once; here it lives for 100ms at least",
            );
        }
        pools.sizes = sizes;
        if let Some((line, delay)) = globals.seconds("reserve_pool_timeout", notes) {
            pools.has_reserve = !delay.is_zero();
            let bounds = (Duration::ZERO, Duration::from_mins(10));
            let delay = within(line, "reserve_pool_timeout", delay, bounds, notes);
            pools.reserve_delay = Some(delay).filter(|delay| *delay != Duration::from_secs(5));
        }
        pools.wait(globals, notes);
        pools.others(globals, notes);
        pools
    }

    fn wait(&mut self, globals: &mut Globals<'_>, notes: &mut Notes) {
        let most = Duration::from_mins(10);
        if let Some((line, wanted)) = globals.seconds("query_wait_timeout", notes) {
            if wanted.is_zero() {
                notes.differs(
                    line,
                    "query_wait_timeout",
                    "was off; here the longest wait is 10m",
                );
                self.queue_timeout = most;
            } else {
                let bounds = (Duration::from_millis(10), most);
                self.queue_timeout = within(line, "query_wait_timeout", wanted, bounds, notes);
            }
        }
        // Every client could wait. Others read the setting, too.
        let clients = globals
            .0
            .iter()
            .rev()
            .find(|setting| setting.key == "max_client_conn");
        let clients = clients.and_then(|setting| super::number(&setting.value));
        self.max_queue = clients.map(|clients| clients.clamp(1, 100_000));
        if let Some((line, wanted)) = globals.seconds("query_wait_notify", notes) {
            let bounds = (Duration::from_millis(10), most);
            if self.is_of_sessions() {
                if !wanted.is_zero() {
                    notes.lost(
                        line,
                        "query_wait_notify",
                        "pools with `mode: session` give no notice",
                    );
                }
            } else if wanted.is_zero() || wanted >= self.queue_timeout {
                self.rest.push(("wait_notify", "0".to_owned()));
            } else {
                let wanted = within(line, "query_wait_notify", wanted, bounds, notes);
                self.rest.push(("wait_notify", time(wanted)));
            }
        }
    }

    fn others(&mut self, globals: &mut Globals<'_>, notes: &mut Notes) {
        if let Some((line, wanted)) = globals.seconds("server_idle_timeout", notes) {
            let bounds = (Duration::from_millis(100), DAY);
            self.idle_timeout = Some(if wanted.is_zero() {
                wanted
            } else {
                within(line, "server_idle_timeout", wanted, bounds, notes)
            });
        }
        if let Some(setting) = globals.take("max_prepared_statements")
            && !self.is_of_sessions()
        {
            match super::number(&setting.value) {
                Some(most) if most > 1000 => {
                    self.rest.push(("max_statements", most.min(100_000).to_string()));
                }
                Some(0) => notes.differs(
                    setting.line,
                    "max_prepared_statements",
                    "named prepared statements work in transaction mode",
                ),
                Some(_) => notes.differs(
                    setting.line,
                    "max_prepared_statements",
                    "is left at 1000, because `max_statements` also limits what one session may have",
                ),
                None => notes.lost(setting.line, "max_prepared_statements", "is not a number"),
            }
        }
        if let Some(setting) = globals.take("ignore_startup_parameters") {
            self.ignore(setting, notes);
        }
    }

    fn ignore(&mut self, setting: &Setting, notes: &mut Notes) {
        let mut names: Vec<String> = Vec::new();
        for name in elements(&setting.value).map(str::to_ascii_lowercase) {
            let is_name = name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'))
                && name
                    .split('.')
                    .all(|part| part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_'))
                && name.len() <= 255;
            match name.as_str() {
                // Sessions keep them, and they never separate pools or are the client's to say.
                "application_name" | "client_encoding" | "user" | "database" | "replication" => {}
                _ if !is_name || name.starts_with("_pq_.") => {
                    notes.lost(
                        setting.line,
                        &setting.key,
                        "an element is not the name of a parameter",
                    );
                }
                _ if names.len() == 64 => {
                    notes.lost(setting.line, &setting.key, "has more than 64 names");
                    break;
                }
                _ if names.contains(&name) => {}
                _ => names.push(name),
            }
        }
        if !names.is_empty() {
            self.rest.push(("ignore_startup_parameters", list(&names)));
        }
    }

    pub(super) fn is_of_sessions(&self) -> bool {
        self.mode != Some("transaction")
    }

    /// A mode of a database or user.
    pub(super) fn other_mode(&self, line: usize, what: &str, value: &str, notes: &mut Notes) {
        let mode = mode(line, what, value, notes);
        if mode.is_some() && mode != self.mode {
            notes.lost(
                line,
                what,
                "a route has one mode: give its sessions a route with another `pool.mode`, and a listener",
            );
        }
    }

    /// The keys of a route beside its pool.
    pub(super) fn of_route(&self) -> Settings {
        let mut settings = vec![("queue_timeout", time(self.queue_timeout))];
        settings.extend(self.max_queue.map(|most| ("max_queue", most.to_string())));
        settings
    }

    /// The pool of a route for these databases. What `*` says holds for all of them. `most`: the
    /// cluster's `server.max_connections`.
    pub(super) fn pool(
        &self,
        databases: &[&Database],
        users: &Users,
        most: Option<u32>,
        notes: &mut Notes,
    ) -> Pool {
        let every = databases.iter().find(|database| database.name.is_none());
        let base = every.map_or(self.sizes.clone(), |every| every.sizes.or(&self.sizes));
        let keys = |sizes: &Sizes| sizes.keys(self.has_reserve, most);
        let base_keys = keys(&base);
        // Of names for one database of the server the first counts, as for the configuration.
        let mut named: Vec<(&str, Sizes)> = Vec::new();
        for database in databases.iter().filter(|database| database.name.is_some()) {
            let name = database.target.as_deref().unwrap_or_default();
            let sizes = database.sizes.or(&self.sizes);
            match named.iter().find(|(known, _)| *known == name) {
                Some((_, known)) if keys(known) == keys(&sizes) => {}
                Some(_) => notes.lost(
                    database.line,
                    database.shown(),
                    "its database has the sizes of an entry before it",
                ),
                None => named.push((name, sizes)),
            }
        }
        named.retain(|(_, sizes)| keys(sizes) != base_keys);
        let users = &users[..users.len().min(MAX_OVERRIDES)];
        let mut overrides = Vec::new();
        for (user, sizes) in users {
            let of_user = keys(&sizes.or(&base));
            for (name, of_database) in &named {
                // More are not written.
                if overrides.len() > MAX_OVERRIDES {
                    break;
                }
                let both = keys(&sizes.or(of_database));
                if both != of_user {
                    let names = vec![("user", scalar(user)), ("database", scalar(name))];
                    overrides.push((names, differences(&both, &base_keys)));
                }
            }
        }
        for (user, sizes) in users {
            overrides.push((
                vec![("user", scalar(user))],
                differences(&keys(&sizes.or(&base)), &base_keys),
            ));
        }
        for (name, sizes) in &named {
            overrides.push((
                vec![("database", scalar(name))],
                differences(&keys(sizes), &base_keys),
            ));
        }
        self.written(&base, &base_keys, &overrides, notes)
    }

    /// `keys`: what the base says.
    fn written(
        &self,
        base: &Sizes,
        keys: &Settings,
        overrides: &[(Settings, Settings)],
        notes: &mut Notes,
    ) -> Pool {
        let defaults = Sizes::default().keys(true, None);
        let mode = self.mode.map_or_else(|| scalar(MODE_TODO), str::to_owned);
        let mut settings = vec![("mode", mode)];
        settings.extend(differences(keys, &defaults));
        if let Some(idle) = self.idle_timeout {
            // A longer one than a connection lives would be refused.
            let lifetime = base.max_lifetime.unwrap_or(Duration::from_hours(1));
            let idle = if idle < lifetime.min(DAY) {
                idle
            } else {
                Duration::ZERO
            };
            settings.push(("idle_timeout", time(idle)));
        }
        // One without limits counts only before another that matches, too.
        let says_something = |(index, (names, limits)): &(usize, &(Settings, Settings))| {
            let mut later = overrides[index + 1..].iter();
            !limits.is_empty() || later.any(|(other, _)| overlaps(names, other))
        };
        let wanted = overrides.iter().enumerate().filter(says_something);
        let mut entries: Vec<Settings> = wanted
            .map(|(_, (names, limits))| [names.as_slice(), limits].concat())
            .collect();
        if entries.len() > MAX_OVERRIDES {
            notes.lost(
                None,
                "[users]",
                format!("a pool has at most {MAX_OVERRIDES} overrides"),
            );
            entries.truncate(MAX_OVERRIDES);
        }
        let has_reserve = |keys: &Settings| keys.iter().any(|(key, value)| *key == "reserve" && value != "0");
        if (has_reserve(keys) || entries.iter().any(has_reserve))
            && let Some(delay) = self.reserve_delay
        {
            settings.push(("reserve_delay", time(delay)));
        }
        settings.extend(self.rest.iter().cloned());
        Pool {
            settings,
            overrides: entries,
        }
    }
}

/// Whether both match some user and database.
fn overlaps(names: &Settings, others: &Settings) -> bool {
    names
        .iter()
        .all(|(key, name)| others.iter().all(|(other, its)| other != key || its == name))
}

/// In place of a mode; `check` refuses it.
const MODE_TODO: &str = "TODO: session or transaction";

/// `None`: there is no such mode.
fn mode(line: usize, what: &str, value: &str, notes: &mut Notes) -> Option<&'static str> {
    Some(match value {
        "session" => "session",
        "transaction" => "transaction",
        "statement" => {
            notes.differs(
                line,
                what,
                "is `transaction` here: transactions of several statements are allowed",
            );
            "transaction"
        }
        _ => {
            notes.lost(
                line,
                what,
                "is no mode of a pool: `session`, `transaction` or `statement`",
            );
            return None;
        }
    })
}
