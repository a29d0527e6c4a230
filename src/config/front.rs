//! Everything but `clusters`: from the tree to the model.

use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;
use rustls::SupportedProtocolVersion;
use rustls::server::danger::ClientCertVerifier;
use rustls::version::{TLS12, TLS13};

use super::access;
use super::address::{self, bind_address, overlap};
use super::administration;
use super::cluster::Draft;
use super::entry::{self, Entry};
use super::fitness;
use super::keys::{self, Unlock};
use super::model::{
    Auth, BindAddress, ClientTls, Http, HttpTls, KeyPair, Limits, Listener, ListenerMode, ListenerTls, Log,
    LogFormat, LogLevel, Peer, Peers, RateLimit, Route, ServedCertificate, Shutdown, Verifiers,
};
use super::route;
use super::route::OnLeader;
use super::section::{Field, Section, report_repeated};

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
    match keys::client_verifier(section.context(), roots?, lists?) {
        Ok(verifier) => Some(Some(verifier)),
        Err(error) => {
            field.fault(format!("cannot be used: {error}"));
            None
        }
    }
}

pub(super) fn auth(root: &Section<'_>) -> Option<Auth> {
    let section = root.section("auth");
    let users_file = section.field("users_file");
    let query = section.field("query");
    let cache_ttl = section.field("cache_ttl");
    if let (Some(_), Some(query)) = (&users_file, &query) {
        query.fault("stands beside `users_file`; remove one of them");
    }
    let login_timeout = section.duration("login_timeout");
    let rate_limit = rate_limit(&section, login_timeout);
    let verifiers = if let Some(field) = users_file {
        if let Some(field) = cache_ttl {
            field.fault("has no effect with `users_file`");
        }
        field
            .users_file()
            .map(|(path, contents)| Verifiers::UsersFile { path, contents })
    } else {
        let sql = match query {
            Some(field) => verifier_query(&field),
            None => Some(section.default_text("query").to_owned()),
        };
        sql.map(|sql| Verifiers::Query {
            sql,
            cache_ttl: section.duration("cache_ttl"),
        })
    };
    let hba_file = section.field("hba_file");
    let ident_file = section.field("ident_file");
    if let (None, Some(field)) = (&hba_file, &ident_file) {
        field.fault("needs `hba_file` beside it, whose rules name the maps");
    }
    let ldap_roots = section.field("ldap_ca_file").and_then(|field| field.roots());
    Some(Auth {
        verifiers: verifiers?,
        login_timeout,
        rate_limit,
        hba_file: hba_file.and_then(|field| field.path()),
        ident_file: ident_file.and_then(|field| field.path()),
        ldap_roots,
        server_credentials: access::server_credentials(&section).into(),
    })
}

fn rate_limit(auth: &Section<'_>, login_timeout: Duration) -> RateLimit {
    let section = auth.section("rate_limit");
    let failures = section.number("failures");
    if failures == 0 {
        for key in ["delay", "max_delay", "refuse_after", "refuse_for"] {
            if let Some(field) = section.field(key) {
                field.fault("has no effect with `failures: 0`");
            }
        }
    }
    let delay_field = section.field("delay");
    let delay = delay_field.as_ref().and_then(Field::duration);
    // An attempt that waited longer than its login may take could never begin.
    let longest = login_timeout / 2;
    let max_field = section.field("max_delay");
    let max_delay = match max_field.as_ref().and_then(Field::duration) {
        Some(max_delay) => {
            if let Some(field) = max_field.filter(|_| max_delay > longest) {
                field.fault("must not be longer than half of `auth.login_timeout`");
            }
            max_delay
        }
        None => delay
            .unwrap_or_default()
            .max(section.default_duration("max_delay"))
            .min(longest),
    };
    if let Some(field) = delay_field.filter(|_| delay.is_some_and(|delay| delay > max_delay)) {
        field.fault("must not be longer than `max_delay`, nor than half of `auth.login_timeout`");
    }
    let refuse_field = section.field("refuse_after");
    let mut refuse_after = section.number("refuse_after");
    match refuse_field {
        Some(field) if refuse_after < failures => field.fault("must not be less than `failures`"),
        Some(_) => {}
        None => refuse_after = refuse_after.max(failures),
    }
    RateLimit {
        failures,
        delay: delay
            .unwrap_or_else(|| section.default_duration("delay"))
            .min(max_delay),
        max_delay,
        refuse_after,
        refuse_for: section.duration("refuse_for"),
    }
}

fn verifier_query(field: &Field<'_>) -> Option<String> {
    let sql = field.text()?;
    if !sql.contains("$1") {
        field.fault("must contain `$1`, which stands for the user's name");
        return None;
    }
    Some(sql.to_owned())
}

/// The routes, and the names that listeners may refer to.
pub(super) fn routes<'a>(
    root: &Section<'a>,
    clusters: &Names<'_>,
    drafts: &[Draft],
    auth: Option<&Auth>,
) -> (IndexMap<String, Arc<Route>>, Names<'a>) {
    let first = clusters.as_ref().and_then(|names| names.first().copied());
    let mut routes = IndexMap::new();
    let mut add = |route: Route| routes.insert(route.name.to_string(), Arc::new(route));
    let Some(field) = root.field("routes") else {
        let cluster = first.unwrap_or_default();
        add(Route::read_write("read-write", cluster));
        add(Route::read_only("read-only", cluster));
        return (routes, Some(vec!["read-write", "read-only"]));
    };
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
        let route = route::read(&section, name, cluster, is_fixed, is_bounded, auth);
        let probe_interval = drafts
            .iter()
            .find(|draft| Some(&*draft.name) == cluster)
            .map(Draft::probe_interval);
        let (max_lag, on_unfit) = fitness::read(&section, route.as_ref(), probe_interval);
        if let Some(route) = route {
            add(Route {
                max_lag,
                on_unfit,
                ..route
            });
        }
    }
    let names = (!named.is_empty()).then(|| named.into_iter().map(|(name, _)| name).collect());
    (routes, names)
}

/// A name that must be one of `names`; with `None` they are unknown, and any will do.
fn reference<'a>(field: &Field<'a>, names: &Names<'_>, what: &str) -> Option<&'a str> {
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

pub(super) fn listeners<'a>(
    root: &Section<'a>,
    (routes, models): (&Names<'_>, &IndexMap<String, Arc<Route>>),
    tls: Option<&ClientTls>,
    places: &mut Vec<Place<'a>>,
) -> Vec<Listener> {
    // A certificate that is written and faulty is one fault, not one for each listener.
    let can_tls = tls.is_some() || root.has("tls");
    let plain = if can_tls {
        ListenerTls::Optional
    } else {
        ListenerTls::Off
    };
    let Some(field) = root.field("listeners") else {
        let defaults = [("read-write", 6432), ("read-only", 6433)];
        if let Some(missing) = defaults
            .iter()
            .find(|(name, _)| routes.as_ref().is_some_and(|routes| !routes.contains(name)))
        {
            let name = missing.0;
            root.fault(format!(
                "`listeners` is missing, and the default ones need a route `{name}`, which `routes` does not have"
            ));
        }
        places.extend(defaults.map(|(name, port)| Place::default(port, &format!("listener {name}"))));
        return defaults
            .map(|(name, port)| Listener {
                name: Arc::from(name),
                address: BindAddress::Any { port },
                route: Arc::from(name),
                mode: ListenerMode::default(),
                tls: plain,
                max_clients: 0,
                entry: Entry::default(),
            })
            .into();
    };
    let (mut names, mut listeners) = (Vec::new(), Vec::new());
    for field in field.list() {
        let section = field.section();
        let name = section
            .required("name")
            .and_then(|field| field.name().map(|name| (name, field)));
        let address = section
            .required("address")
            .and_then(|field| listen_address(&section, &field).map(|address| (address, field)));
        let route = section
            .required("route")
            .and_then(|field| reference(&field, routes, "route"));
        let mode = listener_mode(&section);
        let on_leader = route.and_then(|name| models.get(name).map(|route| route.read_only_on_leader));
        if let (ListenerMode::Tcp, Some(OnLeader::Enforced), Some(field)) =
            (mode, on_leader, section.field("mode"))
        {
            field.fault_with(
                "cannot be `tcp` where the route has `read_only_on_leader: enforced`: the client logs in as itself",
                "use `mode: postgres`, or another route",
            );
        }
        if let Some((name, field)) = &name {
            names.push((*name, field.clone()));
        }
        if let Some((address, field)) = &address {
            places.push(Place::written(address.clone(), field.clone()));
        }
        let is_local = matches!(&address, Some((BindAddress::Unix { .. }, _)));
        let tls = if mode == ListenerMode::Tcp {
            no_tls(&section)
        } else if is_local {
            local_tls(&section)
        } else {
            listener_tls(&section, can_tls)
        };
        let entry = entry::read(&section, is_local);
        let (Some((name, _)), Some((address, _)), Some(route)) = (name, address, route) else {
            continue;
        };
        listeners.push(Listener {
            name: Arc::from(name),
            address,
            route: Arc::from(route),
            mode,
            tls,
            max_clients: section.number("max_clients"),
            entry,
        });
    }
    report_repeated(&names, "name");
    listeners
}

/// A Unix socket too, unlike for HTTP.
fn listen_address(listener: &Section<'_>, field: &Field<'_>) -> Option<BindAddress> {
    let mode = listener.field("socket_mode");
    if address::is_path(field) {
        let path = address::socket_path(field);
        let mode = match mode {
            Some(field) => address::socket_mode(&field),
            None => Some(0o777),
        };
        return path
            .zip(mode)
            .map(|(path, mode)| BindAddress::Unix { path, mode });
    }
    if let Some(field) = mode {
        field.fault("has no effect: `address` is not the path of a Unix socket");
    }
    bind_address(field)
}

fn listener_mode(listener: &Section<'_>) -> ListenerMode {
    let words = [
        ("postgres", Some(ListenerMode::Postgres)),
        ("tcp", Some(ListenerMode::Tcp)),
    ];
    let asked = listener.field("mode").and_then(|field| field.one_of(&words));
    asked.unwrap_or_default()
}

/// The servers decide, with their own certificates and `pg_hba.conf`.
fn no_tls(listener: &Section<'_>) -> ListenerTls {
    if let Some(field) = listener.field("tls") {
        field.fault_with(
            "has no effect with `mode: tcp`: TLS is between the client and the server",
            "remove it; what the servers ask for is in their `ssl` and pg_hba.conf",
        );
    }
    ListenerTls::Off
}

/// Nobody listens in on a Unix socket: like PostgreSQL it offers no TLS.
fn local_tls(listener: &Section<'_>) -> ListenerTls {
    let words = [
        ("off", Some(ListenerTls::Off)),
        ("optional", Some(ListenerTls::Optional)),
        ("required", Some(ListenerTls::Required)),
    ];
    if let Some(field) = listener.field("tls")
        && field.one_of(&words) == Some(ListenerTls::Required)
    {
        field.fault("`required` cannot be had on a Unix socket, which offers no TLS");
    }
    ListenerTls::Off
}

/// Without a certificate `optional` offers none, which is `off`: one case less for the rest of the program.
fn listener_tls(section: &Section<'_>, can_tls: bool) -> ListenerTls {
    let field = section.field("tls");
    let words = [
        ("off", Some(ListenerTls::Off)),
        ("optional", Some(ListenerTls::Optional)),
        ("required", Some(ListenerTls::Required)),
    ];
    let asked = field.as_ref().and_then(|field| field.one_of(&words));
    match (asked.unwrap_or(ListenerTls::Optional), field) {
        (ListenerTls::Required, Some(field)) if !can_tls => {
            field.fault("`required` needs a certificate in `tls.certificates`");
            ListenerTls::Required
        }
        (ListenerTls::Optional, _) if !can_tls => ListenerTls::Off,
        (asked, _) => asked,
    }
}

pub(super) fn http<'a>(root: &Section<'a>, places: &mut Vec<Place<'a>>) -> Option<Http> {
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
                places.push(Place::written(address, field));
            }
        }
    } else {
        places.push(Place::default(6434, "http.address"));
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

/// A socket that will be bound, and where the file asks for it; `None` for a default.
pub(super) struct Place<'a> {
    address: BindAddress,
    field: Option<Field<'a>>,
    what: String,
}

impl<'a> Place<'a> {
    pub(super) fn written(address: BindAddress, field: Field<'a>) -> Self {
        Self {
            address,
            what: field.path.clone(),
            field: Some(field),
        }
    }

    fn default(port: u16, what: &str) -> Self {
        Self {
            address: BindAddress::Any { port },
            what: format!("the default of {what}"),
            field: None,
        }
    }
}

/// Two sockets on one address: the second could not be bound.
pub(super) fn check_addresses(places: &[Place<'_>]) {
    for (index, place) in places.iter().enumerate() {
        let Some(first) = places[..index]
            .iter()
            .find(|first| overlap(&first.address, &place.address))
        else {
            continue;
        };
        // Defaults do not overlap each other, so one of the two is written.
        let (written, other) = match &place.field {
            Some(field) => (Some(field), first),
            None => (first.field.as_ref(), place),
        };
        if let Some(field) = written {
            field.fault(format!("overlaps {}, {}", other.what, other.address));
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

pub(super) fn peers(root: &Section<'_>) -> Option<Peers> {
    let section = root.section("peers");
    if !section.present() {
        return None;
    }
    let secret = section
        .required("secret_file")
        .and_then(|field| field.secret_file());
    let (mut names, mut places, mut members) = (Vec::new(), Vec::new(), Vec::new());
    for field in section
        .required("members")
        .map(|field| field.list())
        .unwrap_or_default()
    {
        let section = field.section();
        let name = section
            .required("name")
            .and_then(|field| field.name().map(|name| (name, field)));
        let address = section
            .required("address")
            .and_then(|field| address::host_and_port(&field));
        if let Some((name, field)) = &name {
            names.push((*name, field.clone()));
        }
        if let (Some((name, _)), Some((host, port))) = (name, address) {
            places.push(((host.clone(), port), field));
            members.push(Peer {
                name: name.to_owned(),
                host,
                port,
            });
        }
    }
    report_repeated(&names, "name");
    report_repeated(&places, "address");
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
        grace: section.duration("grace"),
    }
}

/// Half of the processors by default: sessions that share a thread share its wake-ups, and read more at a time. The
/// figures are in `docs/benchmarks.md`.
pub(super) fn workers(root: &Section<'_>) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let asked = root.field("workers").and_then(|field| field.number());
    asked.map_or((processors / 2).max(1), |workers| workers as usize)
}
