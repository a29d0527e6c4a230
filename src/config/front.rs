//! What has no file of its own: from the tree to the model.

use std::sync::Arc;

use indexmap::IndexMap;
use rustls::SupportedProtocolVersion;
use rustls::server::danger::ClientCertVerifier;
use rustls::version::{TLS12, TLS13};

use super::address::{self, bind_address};
use super::administration;
use super::cluster::Draft;
use super::entry;
use super::keys::{self, Unlock};
use super::listener::{SocketToBind, Speaks, check_peer};
use super::model::{
    Auth, BindAddress, ClientTls, Http, HttpTls, KeyPair, Limits, Log, LogFormat, LogLevel, Peer, Peers,
    Route, ServedCertificate, Shutdown,
};
use super::route;
use super::section::{Field, Section, report_repeated};
use super::unfit;

static BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
static NEWEST: &[&SupportedProtocolVersion] = &[&TLS13];

/// The names given by the file, whether or not what they name is without fault.
pub(super) type Names<'a> = Option<Vec<&'a str>>;

pub(super) fn client_tls(root: &Section<'_>) -> Option<ClientTls> {
    let section = root.section("tls");
    if !section.present() {
        return None;
    }
    let versions = section.one_of("min_version", &[("1.2", Some(BOTH)), ("1.3", Some(NEWEST))]);
    let certificates = section.required("certificates");
    let mut pairs = Vec::new();
    for field in certificates.as_ref().map(Field::list).unwrap_or_default() {
        let section = field.section();
        pairs.push((key_pair(&section), field));
    }
    let clients = client_verifier(&section)?;
    let mut served = Vec::new();
    for (pair, field) in pairs {
        let pair = pair?;
        match keys::server_config(root.context(), &pair, b"postgresql", versions?, clients.clone()) {
            Ok(server_config) => served.push(ServedCertificate { pair, server_config }),
            Err(error) => {
                field.fault(format!("cannot be used: {error}"));
                return None;
            }
        }
    }
    (!served.is_empty()).then_some(ClientTls {
        certificates: served,
        asks_clients: clients.is_some(),
    })
}

/// `cert_file`, `key_file` and `passphrase_command`.
fn key_pair(section: &Section<'_>) -> Option<Arc<KeyPair>> {
    let (cert, key) = (section.required("cert_file"), section.required("key_file"));
    let unlock = Unlock::With("passphrase_command", section.field("passphrase_command"));
    let (cert, key) = cert.zip(key)?;
    keys::key_pair(&cert, &key, &unlock)
}

/// What clients' certificates are checked against; `Some(None)` where they are not asked for any.
#[expect(
    clippy::option_option,
    reason = "the outer one is a fault, as everywhere here"
)]
fn client_verifier(section: &Section<'_>) -> Option<Option<Arc<dyn ClientCertVerifier>>> {
    let lists = section.field("client_crl_file");
    let Some(field) = section.field("client_ca_file") else {
        let Some(lists) = lists else {
            return Some(None);
        };
        lists.fault("has no effect without `client_ca_file`");
        return None;
    };
    let roots = field.roots();
    let lists = match lists {
        Some(lists) => lists.revocation_lists(),
        None => Some(Vec::new()),
    };
    match keys::client_verifier(section.context(), &roots?, &lists?) {
        Ok(verifier) => Some(Some(verifier)),
        Err(error) => {
            field.fault(format!("cannot be used: {error}"));
            None
        }
    }
}

/// What listeners need to know of `routes`.
pub(super) struct Routes<'a> {
    pub(super) models: IndexMap<String, Arc<Route>>,
    pub(super) names: Names<'a>,
    /// `client_address`, by the route that has it.
    pub(super) client_addresses: Vec<(&'a str, Field<'a>)>,
}

pub(super) fn routes<'a>(
    root: &Section<'a>,
    clusters: &Names<'_>,
    drafts: &[Draft],
    auth: Option<&Auth>,
) -> Routes<'a> {
    let first = clusters.as_ref().and_then(|names| names.first().copied());
    let mut routes = IndexMap::new();
    let mut add = |route: Route| routes.insert(route.name.to_string(), Arc::new(route));
    let Some(field) = root.field("routes") else {
        let cluster = first.unwrap_or_default();
        add(Route::read_write("read-write", cluster));
        add(Route::read_only("read-only", cluster));
        return Routes {
            models: routes,
            names: Some(vec!["read-write", "read-only"]),
            client_addresses: Vec::new(),
        };
    };
    let mut client_addresses = Vec::new();
    let named = field.named();
    for (name, field) in &named {
        let section = field.section();
        let cluster = match section.field("cluster") {
            Some(field) => reference(&field, clusters, "cluster"),
            None => first,
        };
        let draft = drafts.iter().find(|draft| Some(&*draft.name) == cluster);
        let is_fixed = draft.is_some_and(Draft::is_fixed);
        let is_bounded = draft.is_none_or(Draft::is_bounded);
        if let Some(field) = section.field("resume") {
            let _ = field.one_of(&[("off", Some(())), ("tracked", None)]);
        }
        client_addresses.extend(section.field("client_address").map(|field| (*name, field)));
        let route = route::read(&section, name, cluster, is_fixed, is_bounded, auth);
        let probe_interval = drafts
            .iter()
            .find(|draft| Some(&*draft.name) == cluster)
            .map(Draft::probe_interval);
        let (max_lag, on_unfit) = unfit::read(&section, route.as_ref(), probe_interval);
        if let Some(route) = route {
            add(Route {
                max_lag,
                on_unfit,
                ..route
            });
        }
    }
    let names = (!named.is_empty()).then(|| named.into_iter().map(|(name, _)| name).collect());
    Routes {
        models: routes,
        names,
        client_addresses,
    }
}

/// A name that must be one of `names`; with `None` they are unknown, and any will do.
pub(super) fn reference<'a>(field: &Field<'a>, names: &Names<'_>, what: &str) -> Option<&'a str> {
    let name = field.name()?;
    match names {
        Some(names) if !names.contains(&name) => {
            field.fault_with(
                format!("there is no {what} `{name}`"),
                format!("there is: {}", names.join(", ")),
            );
            None
        }
        _ => Some(name),
    }
}

pub(super) fn http<'a>(root: &Section<'a>, places: &mut Vec<SocketToBind<'a>>) -> Option<Http> {
    let section = root.section("http");
    let mut addresses = Vec::new();
    if let Some(field) = section.field("address") {
        let fields = if field.is_list() {
            field.list()
        } else {
            vec![field]
        };
        for field in fields {
            if let Some(address) = bind_address(&field) {
                addresses.push(address.clone());
                places.push(SocketToBind::written(address, field, Speaks::Http));
            }
        }
    } else {
        places.push(SocketToBind::default(6434, "http.address", Speaks::Http));
        addresses.push(BindAddress::Any { port: 6434 });
    }
    let proxy_protocol = entry::proxy_protocol(&section);
    let tls = section.section("tls");
    let token = administration::token(&section);
    let agent_check = administration::agent_check(&section, places);
    if !tls.present() {
        return Some(Http {
            addresses,
            tls: None,
            token,
            agent_check,
            proxy_protocol,
        });
    }
    let pair = key_pair(&tls)?;
    match keys::server_config(root.context(), &pair, b"http/1.1", BOTH, None) {
        Ok(server_config) => Some(Http {
            addresses,
            tls: Some(HttpTls {
                leaf: pair.leaf(),
                server_config,
            }),
            token,
            agent_check,
            proxy_protocol,
        }),
        Err(error) => {
            tls.fault(format!("cannot be used: {error}"));
            None
        }
    }
}

pub(super) fn limits(root: &Section<'_>) -> Limits {
    let section = root.section("limits");
    Limits {
        max_clients: section.number("max_clients"),
        max_pending_logins: section.number("max_pending_logins"),
        per_user: section.number("per_user"),
        per_database: section.number("per_database"),
        per_address: section.number("per_address"),
        connection_rate: entry::rate(&section),
    }
}

/// `places`: where this router listens.
pub(super) fn peers(root: &Section<'_>, places: &[SocketToBind<'_>]) -> Option<Peers> {
    let section = root.section("peers");
    if !section.present() {
        return None;
    }
    let secret = section
        .required("secret_file")
        .and_then(|field| field.secret_file());
    let (mut names, mut addresses, mut members) = (Vec::new(), Vec::new(), Vec::new());
    for field in section
        .required("members")
        .map(|field| field.list())
        .unwrap_or_default()
    {
        let section = field.section();
        let name = section
            .required("name")
            .and_then(|field| field.name().map(|name| (name, field)));
        let address = section.required("address").and_then(|field| {
            let (host, port) = address::host_and_port(&field)?;
            check_peer(&field, (&host, port), places);
            Some((host, port))
        });
        if let Some((name, field)) = &name {
            names.push((*name, field.clone()));
        }
        if let (Some((name, _)), Some((host, port))) = (name, address) {
            addresses.push(((host.clone(), port), field));
            members.push(Peer {
                name: name.to_owned(),
                host,
                port,
            });
        }
    }
    report_repeated(&names, "name");
    report_repeated(&addresses, "address");
    Some(Peers {
        secret: secret?,
        members,
    })
}

pub(super) fn log(root: &Section<'_>) -> Log {
    let section = root.section("log");
    let level = section.one_of(
        "level",
        &[
            ("error", Some(LogLevel::Error)),
            ("warn", Some(LogLevel::Warn)),
            ("info", Some(LogLevel::Info)),
            ("debug", Some(LogLevel::Debug)),
            ("trace", Some(LogLevel::Trace)),
        ],
    );
    let format = section.one_of(
        "format",
        &[("text", Some(LogFormat::Text)), ("json", Some(LogFormat::Json))],
    );
    Log {
        level: level.unwrap_or(LogLevel::Info),
        format: format.unwrap_or(LogFormat::Text),
    }
}

pub(super) fn shutdown(root: &Section<'_>) -> Shutdown {
    let section = root.section("shutdown");
    Shutdown {
        delay: section.duration("delay"),
        grace: section.duration("grace"),
        handover: section.field("handover").and_then(|field| field.duration()),
    }
}

/// Half of the processors by default: sessions that share a thread share its wake-ups, and read more at a time. The
/// figures are in `docs/benchmarks.md`.
pub(super) fn workers(root: &Section<'_>) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let asked = root.field("workers").and_then(|field| field.number());
    asked.map_or((processors / 2).max(1), |workers| workers as usize)
}
