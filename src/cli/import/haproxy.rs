//! `haproxy.cfg`: which server a section wants is read from its check, since `HAProxy` itself knows
//! no roles.
//!
//! A frontend and the section with its servers become a listener and a route; sections that share
//! servers are one cluster. Where the check asks Patroni, Patroni is what the cluster is learned
//! from.

mod access;
mod bind;
mod check;
mod clusters;
mod parse;
mod proxy;
mod server;
mod words;

use std::collections::HashMap;
use std::time::Duration;

use super::Refusal;
use super::notes::Notes;
use super::write::{
    Certificate, ImportOutcome, Listener, Names, Role, Route, Settings, Targets, is_read_write, list, size,
    time,
};
use crate::config::ListenerTls;
use check::Meaning;
use parse::{Line, Section, SectionKind};
use proxy::Proxy;

/// The most servers of a file.
const MAX_SERVERS: usize = 1024;
/// The most directives that a section inherits.
const MAX_INHERITED: usize = 1000;
/// The most listeners a configuration takes.
const MAX_LISTENERS: usize = 256;

/// A section whose servers are sent sessions, and what its check says of them.
struct Service<'a> {
    proxy: &'a Proxy,
    meaning: Meaning,
    /// Index in [`ImportOutcome::clusters`].
    cluster: usize,
}

pub(super) fn convert(text: &str, notes: &mut Notes) -> Result<ImportOutcome, Refusal> {
    let sections = parse::sections(text, notes)?;
    let mut outcome = ImportOutcome::default();
    for section in &sections {
        match section.kind {
            SectionKind::Global => global(section, &mut outcome, notes),
            SectionKind::Other => other(section, notes),
            _ => {}
        }
    }
    let mut proxies = proxies(&sections, notes)?;
    if sections.iter().any(trusts_anybody) {
        for server in proxies.iter_mut().flat_map(|proxy| &mut proxy.servers) {
            server.options.trusts_anybody.get_or_insert(true);
        }
    }
    let servers: usize = proxies.iter().map(|proxy| proxy.servers.len()).sum();
    if servers > MAX_SERVERS {
        return Err(Refusal {
            line: None,
            message: format!("has more than {MAX_SERVERS} servers"),
        });
    }
    let by_name: HashMap<&str, &Proxy> = proxies
        .iter()
        .filter(|proxy| proxy.kind != SectionKind::Frontend)
        .map(|proxy| (proxy.name.as_str(), proxy))
        .collect();
    let entrances = entrances(&proxies, &by_name, &mut outcome, notes);
    if entrances.is_empty() {
        return Err(Refusal {
            line: None,
            message: "has no `listen` or `frontend` in TCP mode that leads to servers".to_owned(),
        });
    }
    // Each section that is used once, in the order of the file.
    let mut used: Vec<&Proxy> = Vec::new();
    for (_, backend, fallback) in &entrances {
        for proxy in std::iter::once(backend).chain(fallback) {
            if !used.iter().any(|known| std::ptr::eq(*known, *proxy)) {
                used.push(proxy);
            }
        }
    }
    let meanings: Vec<Meaning> = used.iter().map(|proxy| check::meaning(proxy, notes)).collect();
    let (clusters, places) = clusters::group(&used, &meanings, notes);
    outcome.clusters = clusters;
    let services: Vec<Service<'_>> = used
        .into_iter()
        .zip(meanings)
        .zip(places)
        .map(|((proxy, meaning), cluster)| Service {
            proxy,
            meaning,
            cluster,
        })
        .collect();
    add_routes(&entrances, &services, &mut outcome, notes);
    Ok(outcome)
}

/// `ssl-server-verify none`: servers' certificates are not verified where a server's line does not
/// say otherwise.
fn trusts_anybody(section: &Section) -> bool {
    let says = |line: &Line| line.word(0) == "ssl-server-verify" && line.word(1) == "none";
    section.kind == SectionKind::Global && section.lines.iter().any(says)
}

fn global(section: &Section, outcome: &mut ImportOutcome, notes: &mut Notes) {
    for line in &section.lines {
        match line.word(0) {
            "maxconn" => {
                let most = words::number(line, notes);
                outcome.limits.retain(|(key, _)| *key != "max_clients");
                outcome
                    .limits
                    .extend(most.map(|most| ("max_clients", most.to_string())));
            }
            // Every server's TLS has it, and says so there.
            "ssl-server-verify" => {}
            _ => words::without_equivalent(line, notes),
        }
    }
}

fn other(section: &Section, notes: &mut Notes) {
    let why = match section.keyword.as_str() {
        // Names are resolved again by themselves.
        "resolvers" => return,
        "peers" => "routers share no tables; `peers` of Trunkline is about cancel requests",
        "userlist" => "users and passwords are the cluster's, or those of `auth.users_file`",
        "mailers" => "alerts are made from `/metrics`",
        _ => "is unknown to the importer",
    };
    notes.lost(section.line, &section.keyword, why);
}

/// With what they inherit. Disabled ones are left out.
fn proxies(sections: &[Section], notes: &mut Notes) -> Result<Vec<Proxy>, Refusal> {
    let (mut last, mut named): (Vec<&Line>, HashMap<&str, Vec<&Line>>) = (Vec::new(), HashMap::new());
    let mut proxies = Vec::new();
    for section in sections {
        let from = section.from.as_deref();
        let of_name = from.and_then(|name| named.get(name)).cloned();
        if from.is_some() && of_name.is_none() {
            notes.differs(
                section.line,
                &section.keyword,
                "inherits from defaults that do not exist",
            );
        }
        match section.kind {
            SectionKind::Defaults => {
                last = of_name.unwrap_or_default();
                last.extend(&section.lines);
                if last.len() > MAX_INHERITED {
                    return Err(Refusal {
                        line: Some(section.line),
                        message: format!("`defaults` have more than {MAX_INHERITED} directives"),
                    });
                }
                named.insert(&section.name, last.clone());
            }
            SectionKind::Listen | SectionKind::Frontend | SectionKind::Backend => {
                let inherited = of_name.unwrap_or_else(|| last.clone());
                let proxy = Proxy::read(section, &inherited, notes);
                if proxy.is_disabled {
                    notes.lost(section.line, &what(&proxy), "is disabled");
                } else {
                    proxies.push(proxy);
                }
            }
            SectionKind::Global | SectionKind::Other => {}
        }
    }
    Ok(proxies)
}

/// A section as the file calls it.
fn what(proxy: &Proxy) -> String {
    let keyword = match proxy.kind {
        SectionKind::Frontend => "frontend",
        SectionKind::Backend => "backend",
        _ => "listen",
    };
    format!("{keyword} {}", proxy.name)
}

/// Where clients come in, the section with the servers, and the one to fall back to.
type Entrance<'a> = (&'a Proxy, &'a Proxy, Option<&'a Proxy>);

/// Sections for HTTP are pages or nothing.
fn entrances<'a>(
    proxies: &'a [Proxy],
    by_name: &HashMap<&str, &'a Proxy>,
    outcome: &mut ImportOutcome,
    notes: &mut Notes,
) -> Vec<Entrance<'a>> {
    let mut entrances = Vec::new();
    for proxy in proxies.iter().filter(|proxy| proxy.is_frontend()) {
        if proxy.is_http {
            if proxy.is_pages {
                outcome
                    .http
                    .extend(proxy.binds.iter().map(|bind| bind.address.clone()));
                notes.differs(
                    proxy.line,
                    &what(proxy),
                    "the HTTP port took its address: `/metrics`, health checks and the API are there, HAProxy's page and CSV are not",
                );
            } else {
                notes.lost(proxy.line, &what(proxy), "is for HTTP, not for PostgreSQL");
            }
            continue;
        }
        let (backend, fallback) = backends(proxy, by_name, notes);
        match backend {
            Some(backend) if backend.servers.is_empty() => {
                notes.lost(proxy.line, &what(proxy), "leads to no server");
            }
            Some(backend) => entrances.push((proxy, backend, fallback)),
            None => notes.lost(proxy.line, &what(proxy), "leads to no section with servers"),
        }
    }
    entrances
}

/// `use_backend X if { nbsrv(Y) … }` is how a fallback is written.
fn backends<'a>(
    proxy: &'a Proxy,
    by_name: &HashMap<&str, &'a Proxy>,
    notes: &mut Notes,
) -> (Option<&'a Proxy>, Option<&'a Proxy>) {
    let by_default = match &proxy.default_backend {
        Some((_, name)) => by_name.get(name.as_str()).copied(),
        None if proxy.kind == SectionKind::Listen => Some(proxy),
        None => None,
    };
    let (mut first, mut fallback) = (by_default, None);
    for (line, (name, condition)) in &proxy.use_backends {
        let named = by_name.get(name.as_str()).copied();
        match (access::is_empty(condition, &proxy.acls), named, by_default) {
            // "X, when no server of the default is up."
            (Some((watched, true)), Some(named), Some(default)) if watched == default.name => {
                fallback = Some(named);
            }
            // "X, while one of its servers is up."
            (Some((watched, false)), Some(named), Some(default)) if watched == named.name => {
                (first, fallback) = (Some(named), Some(default));
            }
            (_, Some(named), None) if condition.is_empty() && first.is_none() => first = Some(named),
            _ => notes.lost(
                *line,
                "use_backend",
                "a listener has one route; give those clients another port",
            ),
        }
    }
    (first, fallback)
}

fn add_routes(
    entrances: &[Entrance<'_>],
    services: &[Service<'_>],
    outcome: &mut ImportOutcome,
    notes: &mut Notes,
) {
    let find = |proxy: &Proxy| services.iter().find(|service| std::ptr::eq(service.proxy, proxy));
    let (mut route_names, mut listener_names) = (Names::default(), Names::default());
    let mut written: Vec<(*const Proxy, Option<*const Proxy>, String)> = Vec::new();
    for (entrance, backend, fallback) in entrances {
        let Some(service) = find(backend) else { continue };
        let key = (std::ptr::from_ref(*backend), fallback.map(std::ptr::from_ref));
        let known = written.iter().find(|(one, other, _)| (*one, *other) == key);
        let route = if let Some((_, _, name)) = known {
            name.clone()
        } else {
            let name = route_names.take(&backend.name);
            let fallback = fallback.and_then(find);
            let cluster = outcome.clusters[service.cluster].name.clone();
            outcome
                .routes
                .push(route(name.clone(), cluster, service, fallback, services, notes));
            written.push((key.0, key.1, name.clone()));
            name
        };
        add_listeners(entrance, &route, &mut listener_names, outcome, notes);
    }
}

fn route(
    name: String,
    cluster: String,
    service: &Service<'_>,
    fallback: Option<&Service<'_>>,
    services: &[Service<'_>],
    notes: &mut Notes,
) -> Route {
    let proxy = service.proxy;
    let mut targets = service.meaning.targets.clone();
    if let Some(fallback) = fallback {
        if fallback.cluster == service.cluster {
            append(&mut targets, &fallback.meaning.targets);
        } else {
            notes.lost(
                proxy.line,
                &what(proxy),
                "falls back to servers of another cluster; a route has only one cluster",
            );
        }
    }
    fall_back_to_backups(&mut targets, service, services, notes);
    let mut settings = Settings::new();
    if !is_read_write(&targets) {
        settings.push(("balance", balance(proxy, notes).to_owned()));
    }
    let meaning = &service.meaning;
    if !meaning.tags.is_empty() {
        let tags: Vec<String> = meaning
            .tags
            .iter()
            .map(|(key, value)| format!("{}: {}", super::write::scalar(key), super::write::scalar(value)))
            .collect();
        settings.push(("tags", format!("{{{}}}", tags.join(", "))));
    }
    if let Some(lag) = meaning.max_lag {
        settings.push(("max_lag", format!("{{bytes: {}}}", size(lag))));
    }
    if proxy.servers.iter().any(|server| server.options.closes_sessions) {
        let on_unfit = if meaning.max_lag.is_some() {
            "{lag: close, down: close}"
        } else {
            "{down: close}"
        };
        settings.push(("on_unfit", on_unfit.to_owned()));
    }
    if let Some((_, queue)) = proxy.queue {
        settings.push(("queue_timeout", time(queue)));
    }
    Route {
        name,
        cluster,
        targets,
        settings,
        pool: None,
    }
}

fn append(targets: &mut Targets, more: &Targets) {
    for tier in more {
        if !targets.contains(tier) {
            targets.push(tier.clone());
        }
    }
}

/// A backup server serves when no other does. One that is checked as the others are is a member of
/// the same role, and waits by its weight; one that follows another section has the role of that;
/// one without checks is always available.
fn fall_back_to_backups(
    targets: &mut Targets,
    service: &Service<'_>,
    services: &[Service<'_>],
    notes: &mut Notes,
) {
    for server in service
        .proxy
        .servers
        .iter()
        .filter(|server| server.options.is_backup)
    {
        let tracked = server.options.track.as_ref().and_then(|name| {
            services
                .iter()
                .find(|other| other.proxy.name == *name && other.cluster == service.cluster)
        });
        let place = format!("server {} … backup", server.name);
        if is_read_write(&service.meaning.targets) {
            if !server.options.check || service.meaning.is_guessed {
                notes.differs(
                    server.line,
                    &place,
                    "whichever member is the leader gets the sessions: there is no order among them",
                );
            }
            continue;
        }
        match tracked {
            Some(other) => append(targets, &other.meaning.targets),
            None if !server.options.check => append(targets, &vec![vec![Role::Leader]]),
            None => continue,
        }
        notes.differs(
            server.line,
            &place,
            "became the next tier of `targets`, which goes by role and not by server",
        );
    }
}

fn balance(proxy: &Proxy, notes: &mut Notes) -> &'static str {
    let Some((line, algorithm)) = &proxy.balance else {
        return "round_robin";
    };
    match algorithm.split('(').next().unwrap_or_default() {
        "roundrobin" | "static-rr" => "round_robin",
        "leastconn" => "least_connections",
        "random" => "random",
        "source" => "source_hash",
        "first" => "first",
        _ => {
            notes.lost(
                *line,
                "balance",
                "this algorithm needs HTTP or a rule; `least_connections` replaces it",
            );
            "least_connections"
        }
    }
}

fn add_listeners(
    proxy: &Proxy,
    route: &str,
    names: &mut Names,
    outcome: &mut ImportOutcome,
    notes: &mut Notes,
) {
    let access = access::settings(proxy, notes);
    if proxy.binds.is_empty() {
        notes.lost(proxy.line, &what(proxy), "has no address to listen on");
    }
    for bind in &proxy.binds {
        if outcome.listeners.len() == MAX_LISTENERS {
            notes.lost(
                bind.line,
                "bind",
                format!("a configuration has at most {MAX_LISTENERS} listeners"),
            );
            return;
        }
        let mut settings = Settings::new();
        let options = &bind.options;
        if let Some(mode) = &options.socket_mode {
            settings.push((
                "socket_mode",
                super::write::scalar(&format!("0{}", mode.trim_start_matches('0'))),
            ));
        }
        let most = options.max_clients.or(proxy.max_clients.map(|(_, most)| most));
        if let Some(most) = most {
            settings.push(("max_clients", most.to_string()));
        }
        if let Some((_, rate)) = proxy.rate {
            settings.push(("connection_rate", format!("{rate}/s")));
        }
        if options.accepts_proxy || access.proxy_from.is_some() {
            let trusted = access.proxy_from.clone().unwrap_or_default();
            settings.push(("proxy_protocol", proxy_protocol(bind.line, &trusted, notes)));
        }
        let mut deny = access.deny.clone();
        if let Some(interface) = &options.confined_to {
            deny.push(access::todo(bind.line, &format!("bind … {interface}")));
        }
        if options.is_tls {
            add_tls(bind, outcome, notes);
        }
        outcome.listeners.push(Listener {
            name: names.take(options.name.as_deref().unwrap_or(&proxy.name)),
            address: bind.address.clone(),
            route: route.to_owned(),
            tls: if options.is_tls {
                ListenerTls::Required
            } else {
                ListenerTls::Optional
            },
            settings,
            allow: access.allow.clone(),
            deny,
            certificate_demanded: options.demands_certificate.then_some(bind.line),
        });
    }
}

fn proxy_protocol(line: usize, trusted: &[String], notes: &mut Notes) -> String {
    if trusted.is_empty() {
        notes.differs(
            line,
            "bind … accept-proxy",
            "the header counts only from trusted addresses: TODO, list them",
        );
        return "{trusted: [\"TODO: addresses of the balancers in front\"]}".to_owned();
    }
    format!("{{trusted: {}}}", list(trusted))
}

/// HAProxy's own TLS starts with the first byte.
fn add_tls(bind: &bind::Bind, outcome: &mut ImportOutcome, notes: &mut Notes) {
    let options = &bind.options;
    notes.differs(
        bind.line,
        "bind … ssl",
        "clients may start TLS with the first byte as before, or by SSLRequest; in `--mode tcp` the servers handle TLS",
    );
    for certificate in &options.certificates {
        // The key is in the same file.
        let certificate = Certificate {
            cert_file: certificate.clone(),
            key_file: certificate.clone(),
        };
        if !outcome.certificates.contains(&certificate) {
            outcome.certificates.push(certificate);
        }
    }
    let mut set = |key: &'static str, value: Option<String>| {
        if let Some(value) = value
            && !outcome.tls.iter().any(|(known, _)| *known == key)
        {
            outcome.tls.push((key, value));
        }
    };
    let version = match options.min_version.as_deref() {
        Some("TLSv1.3") => Some("\"1.3\"".to_owned()),
        _ => None,
    };
    set("min_version", version);
    set(
        "client_ca_file",
        options.ca_file.as_deref().map(super::write::scalar),
    );
    set(
        "client_crl_file",
        options.crl_file.as_deref().map(super::write::scalar),
    );
}

/// A time within the configuration's limits; a note reports one outside of them.
fn within(at: (usize, Duration), what: &str, least: Duration, most: Duration, notes: &mut Notes) -> String {
    let (line, wanted) = at;
    let fits = wanted.clamp(least, most);
    if fits != wanted {
        notes.differs(line, what, format!("is {} here, the nearest allowed", time(fits)));
    }
    time(fits)
}
