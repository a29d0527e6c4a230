//! The sections `[databases]` and `[users]`.

use std::net::Ipv4Addr;

use super::parse::{Setting, elements, number, pairs, seconds};
use super::pools::{Pools, Sizes};
use crate::cli::import::notes::Notes;
use crate::cli::import::write::Role;

/// Why a limit over several pools has no equivalent.
pub(super) const OF_ALL: &str = "`max_connections` is of one user in one database; `server.max_connections` limits \
                                 all sessions on a member";
/// The most servers of a cluster.
const MAX_HOSTS: usize = 256;

/// An entry of `[databases]`.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) line: usize,
    /// As clients say it; `None` is `*`, every other one.
    pub(super) name: Option<String>,
    /// Its name on the server, unless it is the client's.
    pub(super) target: Option<String>,
    pub(super) place: Place,
    pub(super) role: Role,
    /// The user that logs into the server, instead of the client's.
    pub(super) user: Option<String>,
    /// All connections to it on a server; 0 is no limit.
    pub(super) most: Option<u32>,
    pub(super) sizes: Sizes,
}

/// Servers in the order of the file, and their port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) hosts: Vec<String>,
    pub(super) port: u16,
}

/// Entries of `[users]` that have sizes.
pub(super) type Users = Vec<(String, Sizes)>;

impl Database {
    /// For notes.
    pub(super) fn shown(&self) -> &str {
        self.name.as_deref().unwrap_or("*")
    }
}

pub(super) fn databases(settings: &[Setting], pools: &Pools, notes: &mut Notes) -> Vec<Database> {
    let mut databases: Vec<Database> = Vec::new();
    for setting in settings {
        let Some(pairs) = pairs(&setting.value) else {
            notes.lost(setting.line, &setting.key, "is no connection string");
            continue;
        };
        let database = database(setting, &pairs, pools, notes);
        // The last one counts.
        databases.retain(|known| known.name != database.name);
        databases.push(database);
    }
    databases
}

fn database(setting: &Setting, pairs: &[(String, String)], pools: &Pools, notes: &mut Notes) -> Database {
    let name = (setting.key != "*").then(|| setting.key.clone());
    let mut database = Database {
        line: setting.line,
        target: name.clone(),
        name,
        place: Place {
            hosts: Vec::new(),
            port: 5432,
        },
        role: Role::Leader,
        user: None,
        most: None,
        sizes: Sizes::default(),
    };
    let mut has_password = false;
    let what = |key: &str| format!("{} … {key}", setting.key);
    for (key, value) in pairs {
        let mut lost = |why: &str| notes.lost(setting.line, &what(key), why);
        match key.as_str() {
            "host" => database.place.hosts = hosts(value),
            "port" => match value.parse() {
                Ok(port) if port > 0 => database.place.port = port,
                _ => lost("is not a port"),
            },
            "dbname" if database.name.as_deref() == Some(value) => {}
            "dbname" if database.name.is_none() => {
                lost("clients name the database themselves; all of them did get this one");
            }
            "dbname" => {
                database.target = Some(value.clone());
                lost("clients connect to the database by its name on the server, this one");
            }
            "user" => database.user = Some(value.clone()),
            "password" => has_password = true,
            "target_session_attrs" => match value.as_str() {
                "read-write" | "primary" => database.role = Role::Leader,
                "read-only" | "standby" => database.role = Role::Replica,
                "any" => {}
                _ => lost("is no role that is known"),
            },
            "pool_mode" => pools.other_mode(setting.line, &what(key), value, notes),
            "max_db_connections" => match number(value) {
                Some(most) => database.most = Some(most),
                None => lost("is not a number"),
            },
            _ => {
                if !database
                    .sizes
                    .read(key, value, setting.line, &what(key), pools, notes)
                    && let Some(why) = reason(key)
                {
                    notes.lost(setting.line, &what(key), why);
                }
            }
        }
    }
    if has_password && database.user.is_none() {
        notes.lost(
            setting.line,
            &what("password"),
            "sessions log in with what their client has proven; `auth.server_credentials` has other passwords",
        );
    }
    check_hosts(setting, &mut database, pairs, notes);
    database
}

fn hosts(value: &str) -> Vec<String> {
    let mut hosts: Vec<String> = Vec::new();
    for host in elements(value) {
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        if !hosts.contains(&host) {
            hosts.push(host);
        }
    }
    hosts
}

fn check_hosts(setting: &Setting, database: &mut Database, pairs: &[(String, String)], notes: &mut Notes) {
    let what = format!("{} … host", setting.key);
    let hosts = &mut database.place.hosts;
    if hosts.is_empty() || hosts.iter().any(|host| host.starts_with(['/', '@'])) {
        notes.differs(
            setting.line,
            &what,
            "was a Unix socket; the router reaches servers by TCP, this one at 127.0.0.1",
        );
        hosts.retain(|host| !host.starts_with(['/', '@']));
        let own = Ipv4Addr::LOCALHOST.to_string();
        if !hosts.contains(&own) {
            hosts.push(own);
        }
    }
    if hosts.len() > MAX_HOSTS {
        notes.lost(
            setting.line,
            &what,
            format!("a cluster has at most {MAX_HOSTS} servers"),
        );
        hosts.truncate(MAX_HOSTS);
    }
    let has_role = pairs
        .iter()
        .any(|(key, value)| key == "target_session_attrs" && value != "any");
    if hosts.len() > 1 && !has_role {
        notes.differs(
            setting.line,
            &what,
            "sessions went to each server in turn, whatever its role; here they go to the leader. For reading only, \
             write `targets: [replica]`",
        );
    }
}

pub(super) fn users(settings: &[Setting], pools: &Pools, notes: &mut Notes) -> Users {
    let mut users: Users = Vec::new();
    for setting in settings {
        let Some(pairs) = pairs(&setting.value) else {
            notes.lost(setting.line, &setting.key, "is no list of settings");
            continue;
        };
        let mut sizes = Sizes::default();
        for (key, value) in &pairs {
            let what = format!("{} … {key}", setting.key);
            if key == "pool_mode" {
                pools.other_mode(setting.line, &what, value, notes);
            } else if !sizes.read(key, value, setting.line, &what, pools, notes)
                && let Some(why) = reason(key)
            {
                notes.lost(setting.line, &what, why);
            }
        }
        users.retain(|(name, _)| *name != setting.key);
        if sizes != Sizes::default() {
            users.push((setting.key.clone(), sizes));
        }
    }
    users
}

impl Sizes {
    /// Whether the key is about sizes or times of a pool.
    pub(super) fn read(
        &mut self,
        key: &str,
        value: &str,
        line: usize,
        what: &str,
        pools: &Pools,
        notes: &mut Notes,
    ) -> bool {
        let count = match key {
            "pool_size" | "default_pool_size" => Some(&mut self.max_connections),
            "min_pool_size" => Some(&mut self.min_connections),
            "reserve_pool_size" | "reserve_pool" => Some(&mut self.reserve),
            _ => None,
        };
        if let Some(count) = count {
            *count = number(value);
            if count.is_none() {
                notes.lost(line, what, "is not a number");
            }
            return true;
        }
        let (length, of_session) = match key {
            "server_lifetime" => (&mut self.max_lifetime, None),
            "query_timeout" => (&mut self.query_timeout, Some("statement_timeout")),
            "transaction_timeout" => (&mut self.transaction_timeout, Some("transaction_timeout")),
            "idle_transaction_timeout" => (
                &mut self.idle_transaction_timeout,
                Some("idle_in_transaction_session_timeout"),
            ),
            _ => return false,
        };
        let read = seconds(value);
        match (read, of_session) {
            (None, _) => notes.lost(line, what, "is not a number of seconds"),
            (Some(time), Some(server)) if pools.is_of_sessions() => {
                if !time.is_zero() {
                    notes.lost(
                        line,
                        what,
                        format!(
                            "pools with `mode: session` have no such time-out; use PostgreSQL's `{server}`"
                        ),
                    );
                }
            }
            (time, _) => *length = time,
        }
        true
    }
}

/// Why a key of a database or a user has no equivalent; `None` where nothing is lost.
fn reason(key: &str) -> Option<&'static str> {
    Some(match key {
        // By default a new connection is made to the next candidate.
        "load_balance_hosts" => return None,
        "max_user_connections" => OF_ALL,
        "max_db_client_connections" => "`limits.per_database` is one number for all databases",
        "max_user_client_connections" => "`limits.per_user` is one number for all users",
        "query_wait_timeout" => "`queue_timeout` is of the route",
        "client_idle_timeout" => {
            "idle sessions are not ended; in transaction mode they hold no server connection"
        }
        "connect_query" => "use `ALTER ROLE … SET` or `ALTER DATABASE … SET` for settings",
        "client_encoding" | "datestyle" | "timezone" | "application_name" => {
            "use `ALTER ROLE … SET` or `ALTER DATABASE … SET`; clients set it for themselves"
        }
        "auth_user" | "auth_query" | "auth_dbname" => {
            "the cluster's service account asks for verifiers, once for all databases"
        }
        _ => "is unknown to the importer",
    })
}
