//! Sections that share servers are one cluster.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::check::Meaning;
use super::proxy::Proxy;
use super::server::{Options, Server};
use super::within;
use crate::cli::import::notes::Notes;
use crate::cli::import::write::{self, Cluster, Names, Settings, Source, is_read_write, scalar, time};

const POSTGRES: u16 = 5432;
/// What `connect_timeout` and the times of `probe` may be.
const BOUNDS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_mins(5));

/// The clusters, and for each section the index of its own.
pub(super) fn group(used: &[&Proxy], meanings: &[Meaning], notes: &mut Notes) -> (Vec<Cluster>, Vec<usize>) {
    let groups = joined(used, meanings);
    let mut names = Names::default();
    let mut places = vec![0; used.len()];
    let mut clusters = Vec::new();
    let is_only = groups.len() == 1;
    for (index, group) in groups.into_values().enumerate() {
        for &section in &group {
            places[section] = index;
        }
        let name = if is_only { "main" } else { &used[group[0]].name };
        let sections: Vec<(&Proxy, &Meaning)> = group.iter().map(|&at| (used[at], &meanings[at])).collect();
        clusters.push(cluster(names.take(name), &sections, notes));
    }
    (clusters, places)
}

/// Groups of sections, by the index of their first.
fn joined(used: &[&Proxy], meanings: &[Meaning]) -> BTreeMap<usize, Vec<usize>> {
    let mut first: Vec<usize> = (0..used.len()).collect();
    let mut owners: HashMap<(String, u16), usize> = HashMap::new();
    for (index, proxy) in used.iter().enumerate() {
        for server in &proxy.servers {
            let place = (
                server.host.to_ascii_lowercase(),
                postgres_port(proxy, &meanings[index], server),
            );
            let owner = *owners.entry(place).or_insert(index);
            let (one, other) = (first[owner], first[index]);
            if one != other {
                let (keep, drop) = (one.min(other), one.max(other));
                for place in first.iter_mut().filter(|place| **place == drop) {
                    *place = keep;
                }
            }
        }
    }
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, first) in first.into_iter().enumerate() {
        groups.entry(first).or_default().push(index);
    }
    groups
}

/// Of the PostgreSQL server itself.
fn postgres_port(proxy: &Proxy, meaning: &Meaning, server: &Server) -> u16 {
    if meaning.through_routers {
        return POSTGRES;
    }
    let clients = proxy.binds.iter().find_map(|bind| bind.port);
    server.port.or(clients).unwrap_or(POSTGRES)
}

fn cluster(name: String, sections: &[(&Proxy, &Meaning)], notes: &mut Notes) -> Cluster {
    let source = match endpoints(sections) {
        endpoints if endpoints.is_empty() => Source::Servers(servers(sections, notes)),
        endpoints => {
            of_patroni(sections, notes);
            Source::Patroni {
                settings: if endpoints.iter().any(|url| url.starts_with("https:")) {
                    patroni_tls(sections, notes)
                } else {
                    Settings::new()
                },
                endpoints,
            }
        }
    };
    let patroni = matches!(source, Source::Patroni { .. });
    Cluster {
        name,
        server_tls: server_tls(sections, notes),
        server: server_options(sections, notes),
        probe: probe(sections, notes),
        weights: weights(sections, patroni, notes),
        source,
    }
}

fn all_servers<'a>(sections: &'a [(&'a Proxy, &'a Meaning)]) -> impl Iterator<Item = &'a Server> {
    sections.iter().flat_map(|(proxy, _)| &proxy.servers)
}

/// Patroni's REST interface on each server that is checked there.
fn endpoints(sections: &[(&Proxy, &Meaning)]) -> Vec<String> {
    let mut endpoints = Vec::new();
    for (proxy, _) in sections.iter().filter(|(_, meaning)| meaning.asks_patroni) {
        for server in &proxy.servers {
            let Some(port) = server.options.check_port.or(proxy.check.port) else {
                continue;
            };
            let host = server.options.check_host.as_ref().unwrap_or(&server.host);
            let host = if host.contains(':') {
                format!("[{host}]")
            } else {
                host.clone()
            };
            let is_https = server.options.check_tls || proxy.check.tls;
            let scheme = if is_https { "https" } else { "http" };
            let endpoint = format!("{scheme}://{host}:{port}");
            if !endpoints.contains(&endpoint) {
                endpoints.push(endpoint);
            }
        }
    }
    endpoints
}

/// TLS towards Patroni. There is one set of files for all endpoints, and certificates are always
/// verified.
fn patroni_tls(sections: &[(&Proxy, &Meaning)], notes: &mut Notes) -> Settings {
    let checked = || {
        let of_tls = sections
            .iter()
            .filter(|(proxy, meaning)| meaning.asks_patroni && !proxy.servers.is_empty());
        of_tls.flat_map(|(proxy, _)| {
            let by_rule = proxy.check.tls;
            let servers = proxy.servers.iter();
            servers.filter(move |server| by_rule || server.options.check_tls)
        })
    };
    let mut settings = Settings::new();
    let mut one = |what: &str, pick: fn(&Server) -> Option<&String>| {
        let mut files = checked().filter_map(|server| pick(server).map(|file| (server, file)));
        let (_, first) = files.next()?;
        if let Some((server, _)) = files.find(|(_, other)| *other != first) {
            notes.differs(
                server.line,
                &format!("server {} … {what}", server.name),
                "one file holds for all of Patroni's endpoints; the first server's was written",
            );
        }
        Some(scalar(first))
    };
    let ca = one("ca-file", |server| server.options.ca_file.as_ref());
    let certificate = one("crt", |server| server.options.certificate.as_ref());
    let unverified = checked().find(|server| server.options.trusts_anybody == Some(true));
    if let Some(server) = unverified {
        notes.lost(
            server.line,
            &format!("server {} … verify none", server.name),
            "Patroni's certificates are always verified, since a program in its place could name any leader: give the \
             certificate of their authority in `patroni.ca_file`",
        );
    }
    match ca {
        Some(file) => settings.push(("ca_file", file)),
        None if unverified.is_some() => settings.push(("ca_file", "TODO-patroni-ca.crt".to_owned())),
        None => {}
    }
    if let Some(file) = certificate {
        settings.push(("cert_file", file.clone()));
        settings.push(("key_file", file));
    }
    settings
}

/// Patroni announces the addresses of its members; the ports in the file do not count.
fn of_patroni(sections: &[(&Proxy, &Meaning)], notes: &mut Notes) {
    for (proxy, meaning) in sections {
        for server in &proxy.servers {
            let port = postgres_port(proxy, meaning, server);
            if port != POSTGRES || meaning.through_routers {
                notes.differs(
                    server.line,
                    &format!("server {}", server.name),
                    "sessions go to the address that Patroni announces for the member (`connect_address`), \
                     not to a router or pooler on another port",
                );
            }
        }
    }
}

fn servers(sections: &[(&Proxy, &Meaning)], notes: &mut Notes) -> Vec<write::Server> {
    let mut names = Names::default();
    let mut servers: Vec<write::Server> = Vec::new();
    for (proxy, meaning) in sections {
        for server in &proxy.servers {
            let port = postgres_port(proxy, meaning, server);
            if meaning.through_routers {
                notes.differs(
                    server.line,
                    &format!("server {}", server.name),
                    format!(
                        "port {} belongs to a router that Trunkline replaces; {POSTGRES} was written as PostgreSQL's port",
                        server.port.unwrap_or_default()
                    ),
                );
            }
            let host = server.host.to_ascii_lowercase();
            if !servers
                .iter()
                .any(|known| (&known.host, known.port) == (&host, port))
            {
                servers.push(write::Server {
                    name: names.take(&server.name),
                    host,
                    port,
                });
            }
        }
    }
    servers
}

/// TLS of HAProxy's own starts with the first byte.
fn server_tls(sections: &[(&Proxy, &Meaning)], notes: &mut Notes) -> Settings {
    let Some(server) = all_servers(sections).find(|server| server.options.is_tls) else {
        return Settings::new();
    };
    let options = &server.options;
    let mut settings = Settings::new();
    let sslmode = match (&options.ca_file, options.trusts_anybody == Some(true)) {
        (Some(_), false) if options.verify_host.is_some() => "verify-full",
        (Some(_), false) => "verify-ca",
        _ => "require",
    };
    settings.push(("sslmode", sslmode.to_owned()));
    settings.push(("sslnegotiation", "direct".to_owned()));
    if let Some(file) = options.ca_file.as_ref().filter(|_| sslmode != "require") {
        settings.push(("sslrootcert", scalar(file)));
    }
    if let Some(file) = &options.certificate {
        settings.push(("sslcert", scalar(file)));
        settings.push(("sslkey", scalar(file)));
    }
    let tls = |options: &Options| {
        let files = (options.ca_file.clone(), options.certificate.clone());
        (options.is_tls, options.trusts_anybody == Some(true), files)
    };
    if let Some(other) = all_servers(sections).find(|other| tls(&other.options) != tls(options)) {
        notes.differs(
            other.line,
            &format!("server {} … ssl", other.name),
            format!(
                "TLS to the servers is one setting for the cluster; that of {} was written",
                server.name
            ),
        );
    }
    if let Some(name) = options.verify_host.as_ref().filter(|name| **name != server.host) {
        notes.differs(
            server.line,
            &format!("server {} … verifyhost", server.name),
            format!("`verify-full` compares the certificate with the member's own host, not with {name}"),
        );
    }
    notes.differs(
        server.line,
        &format!("server {} … ssl", server.name),
        "holds for all servers of the cluster; `sslnegotiation: postgres` is for servers before PostgreSQL 17",
    );
    settings
}

fn server_options(sections: &[(&Proxy, &Meaning)], notes: &mut Notes) -> Settings {
    let mut settings = Settings::new();
    let connect = sections
        .iter()
        .filter_map(|(proxy, _)| proxy.connect)
        .max_by_key(|(_, time)| *time);
    if let Some(connect) = connect {
        settings.push((
            "connect_timeout",
            within(connect, "timeout connect", BOUNDS.0, BOUNDS.1, notes),
        ));
    }
    let limits = || {
        all_servers(sections).filter_map(|server| server.options.max_connections.map(|most| (server, most)))
    };
    // 0 is no limit, on both sides.
    if let Some(most) = limits().map(|(_, most)| most).max() {
        let most = if limits().any(|(_, most)| most == 0) {
            0
        } else {
            most
        };
        if let Some((server, _)) = limits().find(|(_, other)| *other != most) {
            notes.differs(
                server.line,
                &format!("server {} … maxconn", server.name),
                format!(
                    "`max_connections` holds for each member of the cluster; the largest, {most}, was written"
                ),
            );
        }
        settings.push(("max_connections", most.to_string()));
    }
    let slow = all_servers(sections)
        .filter_map(|server| server.options.slow_start)
        .max();
    if let Some(slow) = slow {
        settings.push(("slow_start", time(slow)));
    }
    settings
}

/// How often members are asked is one for the cluster; the fastest counts.
fn probe(sections: &[(&Proxy, &Meaning)], notes: &mut Notes) -> Settings {
    let mut settings = Settings::new();
    let intervals =
        || all_servers(sections).filter_map(|server| server.options.interval.map(|time| (server.line, time)));
    if let Some(interval) = intervals().min_by_key(|(_, time)| *time) {
        if let Some((line, _)) = intervals().find(|(_, time)| *time != interval.1) {
            notes.differs(
                line,
                "server … inter",
                "holds for the cluster; the shortest was written",
            );
        }
        settings.push(("interval", within(interval, "inter", BOUNDS.0, BOUNDS.1, notes)));
    }
    let timeout = sections
        .iter()
        .filter_map(|(proxy, _)| proxy.check_time)
        .max_by_key(|(_, time)| *time);
    if let Some(timeout) = timeout {
        settings.push((
            "timeout",
            within(timeout, "timeout check", BOUNDS.0, BOUNDS.1, notes),
        ));
    }
    let mut count = |key: &'static str, pick: fn(&Server) -> Option<u64>| {
        let counts =
            || all_servers(sections).filter_map(|server| pick(server).map(|count| (server.line, count)));
        let Some((line, count)) = counts().min_by_key(|(_, count)| *count) else {
            return;
        };
        let fits = count.clamp(1, 100);
        if fits != count {
            notes.differs(line, key, format!("is {fits} here, the nearest allowed"));
        }
        if let Some((line, _)) = counts().find(|(_, other)| *other != count) {
            notes.differs(
                line,
                &format!("server … {key}"),
                "holds for the cluster; the least was written",
            );
        }
        settings.push((key, fits.to_string()));
    };
    count("rise", |server| server.options.rise);
    count("fall", |server| server.options.fall);
    settings
}

/// Weights of read-only sections: there is one leader. Without any, all count alike.
fn weights(sections: &[(&Proxy, &Meaning)], patroni: bool, notes: &mut Notes) -> Vec<(String, u32)> {
    let mut weights: Vec<(String, u32)> = Vec::new();
    let mut first = None;
    for (proxy, _) in sections
        .iter()
        .filter(|(_, meaning)| !is_read_write(&meaning.targets))
    {
        let has_primaries = proxy.servers.iter().any(|server| !server.options.is_backup);
        for server in &proxy.servers {
            let options = &server.options;
            let waits = options.is_backup && options.check && options.track.is_none() && has_primaries;
            if options.is_backup && !waits {
                continue;
            }
            let weight = if waits { 0 } else { options.weight.unwrap_or(1) };
            if weight != 1 {
                first.get_or_insert((server.line, waits));
            }
            match weights.iter().find(|(name, _)| *name == server.name) {
                None => weights.push((server.name.clone(), weight)),
                Some((_, known)) if *known != weight => notes.differs(
                    server.line,
                    &format!("server {} … weight", server.name),
                    "a member has one weight for all routes; that of the first section was written",
                ),
                Some(_) => {}
            }
        }
    }
    let Some((line, waits)) = first else {
        return Vec::new();
    };
    if patroni {
        notes.differs(
            line,
            if waits {
                "server … backup"
            } else {
                "server … weight"
            },
            "weights are by Patroni's names of the members; the names of the servers were taken for them",
        );
    }
    weights
}
