//! `pgbouncer.ini`: databases that share servers become a cluster with a route, and each route has
//! a pool.
//!
//! `PgBouncer` finds the server by the name of the database; a listener here has one route. So
//! databases on other servers, or for another role of theirs, get a listener of their own.

mod access;
mod databases;
mod parse;
mod pools;
mod words;

use std::time::Duration;

use super::Refusal;
use super::notes::Notes;
use super::write::{
    Cluster, ImportOutcome, Listener, Names, Role, Route, Server, Settings, Source, scalar, time,
};
use crate::config::ListenerTls;
use databases::{Database, OF_ALL, Place, Users};
use parse::{Setting, elements, is_on, number, seconds};
use pools::Pools;

/// The most clusters and routes of a file: what a configuration takes of listeners.
const MAX_ROUTES: usize = 256;
const DEFAULT_PORT: u16 = 6432;

/// The section `[pgbouncer]`: of a setting that is there twice, the last counts. What nobody takes
/// has no equivalent.
struct Globals<'a>(Vec<&'a Setting>);

impl<'a> Globals<'a> {
    fn new(settings: &'a [Setting]) -> Self {
        Self(settings.iter().collect())
    }

    fn take(&mut self, key: &str) -> Option<&'a Setting> {
        let found = self.0.iter().rev().find(|setting| setting.key == key).copied();
        self.0.retain(|setting| setting.key != key);
        found
    }

    /// Its text, if there is any.
    fn text(&mut self, key: &str) -> Option<&'a str> {
        self.take(key)
            .map(|setting| setting.value.as_str())
            .filter(|text| !text.is_empty())
    }

    fn number(&mut self, key: &str, notes: &mut Notes) -> Option<u32> {
        let setting = self.take(key)?;
        let number = number(&setting.value);
        if number.is_none() {
            notes.lost(setting.line, key, "is not a number");
        }
        number
    }

    fn seconds(&mut self, key: &str, notes: &mut Notes) -> Option<(usize, Duration)> {
        let setting = self.take(key)?;
        let seconds = seconds(&setting.value);
        if seconds.is_none() {
            notes.lost(setting.line, key, "is not a number of seconds");
        }
        Some((setting.line, seconds?))
    }
}

pub(super) fn convert(text: &str, notes: &mut Notes) -> Result<ImportOutcome, Refusal> {
    let ini = parse::ini(text, notes)?;
    let mut globals = Globals::new(&ini.pgbouncer);
    let pools = Pools::read(&mut globals, notes);
    let databases = databases::databases(&ini.databases, &pools, notes);
    let users = databases::users(&ini.users, &pools, notes);
    if databases.is_empty() {
        return Err(Refusal {
            line: None,
            message: "has no database in its section [databases]".to_owned(),
        });
    }
    let mut outcome = ImportOutcome::default();
    let tls = access::client_tls(&mut globals, &mut outcome, notes);
    let addresses = addresses(&mut globals, notes);
    let (server_tls, server) = (
        access::server_tls(&mut globals, notes),
        server(&mut globals, notes),
    );
    outcome.auth = Some(access::auth(&mut globals, &databases, &mut outcome, notes));
    limits(&mut globals, &mut outcome, notes);
    let most = most_connections(&mut globals, &databases, notes);
    let (of_pools, of_client) = ((&pools, &*most), client_address(&mut globals));
    add_routes(&databases, &users, of_pools, &of_client, &mut outcome, notes)?;
    for cluster in &mut outcome.clusters {
        cluster.server_tls.clone_from(&server_tls);
        cluster.server.splice(..0, server.iter().cloned());
    }
    add_listeners(&addresses, tls, &mut outcome, notes);
    for setting in globals.0 {
        if let Some(why) = words::reason(&setting.key) {
            notes.lost(setting.line, &setting.key, why);
        }
    }
    Ok(outcome)
}

/// Where clients connect, with a socket's mode.
fn addresses(globals: &mut Globals<'_>, notes: &mut Notes) -> Vec<(String, Settings)> {
    let port = globals.take("listen_port");
    let number = port.map(|port| port.value.parse().ok().filter(|port: &u16| *port > 0));
    if let (Some(setting), Some(None)) = (port, number) {
        notes.lost(setting.line, "listen_port", "is not a port");
    }
    let port = number.flatten().unwrap_or(DEFAULT_PORT);
    let mut addresses = Vec::new();
    if let Some(setting) = globals.take("listen_addr") {
        for host in elements(&setting.value) {
            let address = match host {
                "*" => format!("*:{port}"),
                "localhost" => {
                    notes.differs(
                        setting.line,
                        "listen_addr",
                        "`localhost` is 127.0.0.1; add a listener for `[::1]` if clients use it",
                    );
                    format!("127.0.0.1:{port}")
                }
                host => {
                    if let Ok(address) = host.parse() {
                        std::net::SocketAddr::new(address, port).to_string()
                    } else {
                        notes.differs(
                            setting.line,
                            "listen_addr",
                            "a listener needs an IP address instead of a name: TODO",
                        );
                        format!("TODO: the IP address of {host}, and :{port}")
                    }
                }
            };
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
    }
    // The others are part of it.
    if let Some(every) = addresses.iter().position(|address| address.starts_with("*:")) {
        addresses = vec![addresses.swap_remove(every)];
    }
    let mut addresses: Vec<_> = addresses
        .into_iter()
        .map(|address| (address, Settings::new()))
        .collect();
    let mode = globals.take("unix_socket_mode");
    match globals.take("unix_socket_dir") {
        Some(directory) if directory.value.starts_with('@') => {
            notes.lost(
                directory.line,
                "unix_socket_dir",
                "a listener is a file or an address of the network",
            );
        }
        Some(directory) if directory.value.is_empty() => {}
        Some(directory) => addresses.push(unix_socket(&directory.value, port, mode, notes)),
        None if addresses.is_empty() => addresses.push(unix_socket("/tmp", port, mode, notes)),
        None => notes.differs(
            None,
            "unix_socket_dir",
            format!(
                "PgBouncer also listened on /tmp/.s.PGSQL.{port} by default; add a listener if clients use it"
            ),
        ),
    }
    addresses
}

fn unix_socket(directory: &str, port: u16, mode: Option<&Setting>, notes: &mut Notes) -> (String, Settings) {
    let mut settings = Settings::new();
    if let Some(mode) = mode {
        let digits = mode.value.trim_start_matches('0');
        if digits.len() == 3 && digits.bytes().all(|digit| (b'0'..b'8').contains(&digit)) {
            settings.push(("socket_mode", scalar(&format!("0{digits}"))));
        } else {
            notes.lost(
                mode.line,
                "unix_socket_mode",
                "is no mode of a socket; 0777 is the default",
            );
        }
    }
    let directory = directory.trim_end_matches('/');
    (format!("{directory}/.s.PGSQL.{port}"), settings)
}

/// `server` of every cluster.
fn server(globals: &mut Globals<'_>, notes: &mut Notes) -> Settings {
    let mut settings = Settings::new();
    if let Some((line, wanted)) = globals.seconds("server_connect_timeout", notes) {
        let bounds = (Duration::from_millis(10), Duration::from_mins(5));
        let fits = within(line, "server_connect_timeout", wanted, bounds, notes);
        settings.push(("connect_timeout", time(fits)));
    }
    let is_off = globals.text("tcp_keepalive").is_some_and(|text| !is_on(text));
    let idle = globals.seconds("tcp_keepidle", notes);
    if is_off {
        settings.push(("keepalive", "0".to_owned()));
    } else if let Some((line, wanted)) = idle.filter(|(_, idle)| !idle.is_zero()) {
        let bounds = (Duration::from_secs(1), Duration::from_hours(9));
        let fits = within(line, "tcp_keepidle", wanted, bounds, notes);
        settings.push(("keepalive", time(fits)));
    }
    if let Some(setting) = globals.take("tcp_user_timeout") {
        match number(&setting.value) {
            Some(0) => settings.push(("tcp_user_timeout", "0".to_owned())),
            Some(millis) => {
                let bounds = (Duration::from_millis(100), Duration::from_hours(24));
                let wanted = Duration::from_millis(millis.into());
                let fits = within(setting.line, "tcp_user_timeout", wanted, bounds, notes);
                settings.push(("tcp_user_timeout", time(fits)));
            }
            None => notes.lost(setting.line, "tcp_user_timeout", "is not a number"),
        }
    }
    settings
}

fn limits(globals: &mut Globals<'_>, outcome: &mut ImportOutcome, notes: &mut Notes) {
    for (theirs, ours) in [
        ("max_client_conn", "max_clients"),
        ("max_user_client_connections", "per_user"),
        ("max_db_client_connections", "per_database"),
    ] {
        if let Some(most) = globals.number(theirs, notes) {
            outcome.limits.push((ours, most.min(1_000_000).to_string()));
        }
    }
}

/// Places that have only one database, which has a limit over its users: there that is
/// `server.max_connections`. Elsewhere that would be a limit over several databases.
fn most_connections<'d>(
    globals: &mut Globals<'_>,
    databases: &'d [Database],
    notes: &mut Notes,
) -> Vec<(&'d Place, u32)> {
    let key = "max_db_connections";
    let global = globals.take(key);
    let of_all = global.and_then(|setting| {
        let most = number(&setting.value);
        if most.is_none() {
            notes.lost(setting.line, key, "is not a number");
        }
        most
    });
    let mut all = Vec::new();
    for database in databases {
        let what = database
            .most
            .map_or_else(|| key.to_owned(), |_| format!("{} … {key}", database.shown()));
        let line = match (database.most, global) {
            (None, Some(global)) => global.line,
            _ => database.line,
        };
        let Some(most) = database.most.or(of_all).filter(|most| *most > 0) else {
            continue;
        };
        let mut here = databases.iter().filter(|other| other.place == database.place);
        if database.name.is_some() && here.nth(1).is_none() {
            notes.differs(
                line,
                &what,
                "is `server.max_connections` here, which counts every connection to a member",
            );
            all.push((&database.place, most.min(1_000_000)));
        } else {
            notes.lost(line, &what, OF_ALL);
        }
    }
    all
}

/// What servers learn of the client, in the settings of a route.
fn client_address(globals: &mut Globals<'_>) -> Settings {
    match globals.text("application_name_add_host") {
        Some(text) if is_on(text) => vec![("client_address", "{application_name: true}".to_owned())],
        _ => Settings::new(),
    }
}

/// A cluster for each place, and a route for each place and role, those of `*` first: they have
/// `PgBouncer`'s own addresses.
fn add_routes(
    databases: &[Database],
    users: &Users,
    (pools, most): (&Pools, &[(&Place, u32)]),
    of_client: &Settings,
    outcome: &mut ImportOutcome,
    notes: &mut Notes,
) -> Result<(), Refusal> {
    let every = databases.iter().filter(|database| database.name.is_none());
    let named = databases.iter().filter(|database| database.name.is_some());
    let mut places: Vec<&Place> = Vec::new();
    let mut groups: Vec<(&Place, Role, Vec<&Database>)> = Vec::new();
    for database in every.chain(named) {
        let (place, role) = (&database.place, database.role);
        if !places.contains(&place) {
            places.push(place);
        }
        match groups
            .iter_mut()
            .find(|(of, wanted, _)| *of == place && *wanted == role)
        {
            Some((_, _, all)) => all.push(database),
            None => groups.push((place, role, vec![database])),
        }
    }
    if groups.len() > MAX_ROUTES {
        return Err(Refusal {
            line: None,
            message: format!("has databases on more than {MAX_ROUTES} servers"),
        });
    }
    let most_of = |place: &Place| most.iter().find(|(of, _)| *of == place).map(|(_, most)| *most);
    let (mut cluster_names, mut route_names) = (Names::default(), Names::default());
    for place in &places {
        let first = databases.iter().find(|database| database.place == **place);
        let name = first.and_then(|database| database.name.as_deref());
        let name = if places.len() == 1 {
            "main"
        } else {
            name.unwrap_or("main")
        };
        outcome
            .clusters
            .push(cluster(cluster_names.take(name), place, most_of(place)));
    }
    for (place, role, databases) in groups {
        let index = places.iter().position(|of| *of == place).unwrap_or_default();
        let cluster = outcome.clusters[index].name.clone();
        let kind = if role == Role::Leader {
            "read-write"
        } else {
            "read-only"
        };
        let name = if places.len() == 1 {
            kind.to_owned()
        } else {
            format!("{cluster}-{kind}")
        };
        if !outcome.routes.is_empty() {
            let why = if index == 0 {
                "is for another role than the first databases, so it has a listener of its own: TODO, its address, for \
                 its clients"
            } else {
                "is on other servers than the first databases, so it has a listener of its own: TODO, its address, for \
                 its clients. If the servers belong to one cluster, list them there, and give this route the cluster"
            };
            for database in &databases {
                notes.differs(database.line, database.shown(), why);
            }
        }
        let mut settings = pools.of_route();
        settings.extend(of_client.iter().cloned());
        outcome.routes.push(Route {
            name: route_names.take(&name),
            cluster,
            targets: vec![vec![role]],
            settings,
            pool: Some(pools.pool(&databases, users, most_of(place), notes)),
        });
    }
    Ok(())
}

fn cluster(name: String, place: &Place, most: Option<u32>) -> Cluster {
    let mut names = Names::default();
    let server = |host: &String| Server {
        name: names.take(host),
        host: host.clone(),
        port: place.port,
    };
    Cluster {
        name,
        source: Source::Servers(place.hosts.iter().map(server).collect()),
        server_tls: Settings::new(),
        server: most
            .iter()
            .map(|most| ("max_connections", most.to_string()))
            .collect(),
        probe: Settings::new(),
        weights: Vec::new(),
    }
}

fn add_listeners(
    addresses: &[(String, Settings)],
    tls: ListenerTls,
    outcome: &mut ImportOutcome,
    notes: &mut Notes,
) {
    let mut names = Names::default();
    let routes: Vec<String> = outcome.routes.iter().map(|route| route.name.clone()).collect();
    let mut add = |route: &String, address: String, settings: Settings| {
        // Nobody else sees a Unix socket, which has no TLS.
        let tls = if address.starts_with('/') {
            ListenerTls::Off
        } else {
            tls
        };
        outcome.listeners.push(Listener {
            name: names.take(route),
            address,
            route: route.clone(),
            tls,
            settings,
            allow: Vec::new(),
            deny: Vec::new(),
            certificate_demanded: None,
        });
    };
    if let Some((first, others)) = routes.split_first() {
        for (address, settings) in addresses.iter().take(MAX_ROUTES - others.len()) {
            add(first, address.clone(), settings.clone());
        }
        for route in others {
            add(route, format!("TODO: the address of {route}"), Settings::new());
        }
    }
    if addresses.is_empty() {
        notes.lost(
            None,
            "listen_addr",
            "there is no address that clients could connect to",
        );
    }
}

/// A time within the configuration's limits; a note reports one outside of them.
fn within(
    line: usize,
    what: &str,
    wanted: Duration,
    (least, most): (Duration, Duration),
    notes: &mut Notes,
) -> Duration {
    let fits = wanted.clamp(least, most);
    if fits != wanted {
        notes.differs(line, what, format!("is {} here, the nearest allowed", time(fits)));
    }
    fits
}

#[cfg(test)]
mod tests;
