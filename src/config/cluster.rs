//! `clusters`: from the tree to [`Cluster`].

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;

use super::address;
use super::etcd::{self, Etcd};
use super::keys::{self, Unlock};
use super::material::Part;
use super::model::{
    BasicAuth, ChannelBinding, Cluster, LocalMember, Patroni, Probe, Server, ServerOptions, ServerTls,
    ServiceAccount, Source, SslMode, SslNegotiation,
};
use super::placement::{self, Placement};
use super::schema;
use super::section::{Field, Section, report_repeated};

const MAX_ENDPOINTS: usize = 64;
const MAX_SERVERS: usize = 256;

pub(super) const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(super) const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(super) const fn minutes(minutes: u64) -> Duration {
    Duration::from_mins(minutes)
}

pub(super) const fn hours(hours: u64) -> Duration {
    Duration::from_hours(hours)
}

/// What was read of a cluster; `None` where there was a fault.
pub(super) struct Draft {
    pub(super) name: Arc<str>,
    source: Option<Source>,
    etcd: Option<Etcd>,
    pub(super) service_account: Option<ServiceAccount>,
    pub(super) server_tls: Option<ServerTls>,
    server: ServerOptions,
    max_connections: u32,
    probe: Probe,
    local_member: Option<LocalMember>,
    placement: Placement,
}

impl Draft {
    /// It is a fixed list of servers.
    pub(super) fn is_fixed(&self) -> bool {
        matches!(self.source, Some(Source::Servers(_)))
    }

    pub(super) fn probe_interval(&self) -> Duration {
        self.probe.interval
    }

    /// Its members may be full.
    pub(super) fn is_bounded(&self) -> bool {
        self.max_connections > 0
    }

    pub(super) fn finish(self) -> Option<Cluster> {
        Some(Cluster {
            name: self.name,
            source: self.source?,
            etcd: self.etcd,
            service_account: self.service_account?,
            server_tls: self.server_tls?,
            server: self.server,
            max_connections: self.max_connections,
            probe: self.probe,
            local_member: self.local_member?,
            placement: self.placement,
        })
    }
}

pub(super) fn cluster(name: &str, field: &Field<'_>) -> Draft {
    let section = field.section(&schema::CLUSTER);
    let name: Arc<str> = Arc::from(name);
    let context = section.context();
    let source = source(&section);
    let (server, slow_start, max_connections) = server_options(&section);
    Draft {
        placement: Placement {
            slow_start,
            ..placement::read(&section, source.as_ref())
        },
        source,
        etcd: etcd::read(&section),
        service_account: context.within(Part::ServiceAccount(Arc::clone(&name)), || {
            service_account(&section)
        }),
        server_tls: context.within(Part::ServerTls(Arc::clone(&name)), || server_tls(&section)),
        server,
        max_connections,
        probe: probe(&section),
        local_member: local_member(&section),
        name,
    }
}

fn source(section: &Section<'_>) -> Option<Source> {
    match (section.has("patroni"), section.field("servers")) {
        (true, None) => patroni(&section.section("patroni", &schema::PATRONI)).map(Source::Patroni),
        (false, Some(servers)) => fixed_servers(&servers).map(Source::Servers),
        (true, Some(servers)) => {
            // Only for its faults.
            let _ = patroni(&section.section("patroni", &schema::PATRONI));
            let _ = fixed_servers(&servers);
            servers.fault("`servers` stands instead of `patroni`; remove one of them");
            None
        }
        (false, None) => {
            section.fault("`patroni` is missing; a cluster without Patroni has `servers`");
            None
        }
    }
}

fn patroni(section: &Section<'_>) -> Option<Patroni> {
    let endpoints = section.required("endpoints").map(|field| endpoints(&field));
    let ca = ca(section, endpoints.as_deref());
    let client_certificate = section
        .pair("cert_file", "key_file")
        .and_then(|(c, k)| keys::key_pair(&c, &k, &Unlock::Never));
    let basic_auth = login(section);
    let poll = section.field("poll_interval");
    let poll_interval = poll
        .and_then(|field| field.duration(ms(10), minutes(5)))
        .unwrap_or(secs(1));
    let fast = section.field("fast_poll_interval");
    let fast_poll_interval = match fast
        .as_ref()
        .map(|field| (field, field.duration(ms(10), minutes(5))))
    {
        Some((field, Some(fast))) if fast > poll_interval => {
            field.fault("must not be longer than `poll_interval`");
            fast
        }
        Some((_, Some(fast))) => fast,
        _ => ms(100).min(poll_interval),
    };
    Some(Patroni {
        endpoints: endpoints?,
        ca,
        client_certificate,
        basic_auth,
        poll_interval,
        fast_poll_interval,
    })
}

/// `ca_file`; none of the TLS keys has an effect where every endpoint is `http://`.
pub(super) fn ca(
    section: &Section<'_>,
    endpoints: Option<&[String]>,
) -> Option<Vec<CertificateDer<'static>>> {
    let clear = endpoints.is_some_and(|endpoints| {
        !endpoints.is_empty() && endpoints.iter().all(|endpoint| !endpoint.starts_with("https:"))
    });
    for key in ["ca_file", "cert_file", "key_file"] {
        if let Some(field) = section.field(key).filter(|_| clear) {
            field.fault_with(
                "has no effect: every endpoint is `http://`",
                "use `https://` or remove it",
            );
        }
    }
    section.field("ca_file").and_then(|field| field.roots())
}

/// `username` and `password_file`.
pub(super) fn login(section: &Section<'_>) -> Option<BasicAuth> {
    let (username, password) = section.pair("username", "password_file")?;
    let (username, password) = (username.text(), password.secret_file(1));
    Some(BasicAuth {
        username: username?.to_owned(),
        password: password?,
    })
}

pub(super) fn endpoints(field: &Field<'_>) -> Vec<String> {
    let mut endpoints = Vec::new();
    for field in field.list(MAX_ENDPOINTS) {
        if let Some(endpoint) = endpoint(&field) {
            endpoints.push((endpoint, field));
        }
    }
    report_repeated(&endpoints, "endpoint");
    endpoints.into_iter().map(|(endpoint, _)| endpoint).collect()
}

/// A base URL: scheme, host and port, nothing more.
fn endpoint(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    let hint = "as in `https://db1:8008`";
    let has_scheme = text.starts_with("http://") || text.starts_with("https://");
    let url = reqwest::Url::parse(text)
        .ok()
        .filter(|url| has_scheme && url.host_str().is_some());
    let Some(url) = url else {
        field.fault_with("is not an `http://` or `https://` URL", hint);
        return None;
    };
    if !url.username().is_empty() || url.password().is_some() {
        field.fault("must not contain a user or a password; use `username` and `password_file`");
        return None;
    }
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() || url.port() == Some(0) {
        field.fault_with("is a scheme, a host and a port, without a path", hint);
        return None;
    }
    Some(url.as_str().trim_end_matches('/').to_owned())
}

fn fixed_servers(field: &Field<'_>) -> Option<Vec<Server>> {
    let (mut names, mut places, mut servers) = (Vec::new(), Vec::new(), Vec::new());
    let list = field.list(MAX_SERVERS);
    for field in &list {
        let section = field.section(&schema::SERVERS);
        let name = section
            .required("name")
            .and_then(|field| field.name().map(|name| (name, field)));
        let host = section.required("host").and_then(|field| address::host(&field));
        let port = match section.field("port") {
            Some(field) => field.number(1, 65_535).and_then(|port| u16::try_from(port).ok()),
            None => Some(5432),
        };
        if let Some((name, field)) = &name {
            names.push((*name, field.clone()));
        }
        if let (Some((name, _)), Some(host), Some(port)) = (name, host, port) {
            places.push(((host.clone(), port), field.clone()));
            servers.push(Server {
                name: name.to_owned(),
                host,
                port,
            });
        }
    }
    report_repeated(&names, "name");
    report_repeated(&places, "host and port");
    (!list.is_empty()).then_some(servers)
}

fn service_account(cluster: &Section<'_>) -> Option<ServiceAccount> {
    if !cluster.has("service_account") {
        let _ = cluster.required("service_account");
        return None;
    }
    let section = cluster.section("service_account", &schema::SERVICE_ACCOUNT);
    let user = section.required("user").and_then(|field| identifier(&field));
    let file = section.field("password_file");
    let variable = section.field("password_env");
    if let (Some(_), Some(variable)) = (&file, &variable) {
        variable.fault("stands beside `password_file`; remove one of them");
    }
    let password = match (file, variable) {
        (Some(file), _) => file.secret_file(1),
        (None, Some(variable)) => variable.secret_variable(),
        (None, None) => None,
    };
    let dbname = match section.field("dbname") {
        Some(field) => identifier(&field),
        None => Some("postgres".to_owned()),
    };
    let pool_size = section
        .field("pool_size")
        .and_then(|field| field.number(1, 100))
        .unwrap_or(4);
    let timeout = section
        .field("timeout")
        .and_then(|field| field.duration(ms(100), minutes(1)));
    Some(ServiceAccount {
        user: user?,
        password,
        dbname: dbname?,
        pool_size: pool_size as usize,
        timeout: timeout.unwrap_or(secs(3)),
    })
}

/// A role or database name. `NAMEDATALEN` is a compile-time option of the server, so the bound is generous.
fn identifier(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    if text.len() > 255 {
        field.fault("is longer than 255 bytes");
        return None;
    }
    Some(text.to_owned())
}

fn server_tls(cluster: &Section<'_>) -> Option<ServerTls> {
    let section = cluster.section("server_tls", &schema::SERVER_TLS);
    let sslmode = match section.field("sslmode") {
        Some(field) => field.one_of(&[
            ("disable", Some(SslMode::Disable)),
            ("allow", Some(SslMode::Allow)),
            ("prefer", Some(SslMode::Prefer)),
            ("require", Some(SslMode::Require)),
            ("verify-ca", Some(SslMode::VerifyCa)),
            ("verify-full", Some(SslMode::VerifyFull)),
        ]),
        None => Some(SslMode::Prefer),
    };
    let sslnegotiation = sslnegotiation(&section, sslmode);
    let channel_binding = channel_binding(&section, sslmode);
    let root = section.field("sslrootcert");
    let mut roots = None;
    match (&root, root.as_ref().and_then(Field::text)) {
        (Some(field), Some("system")) => {
            // As libpq: any public authority would do, so only the name tells servers apart.
            if sslmode.is_some_and(|mode| mode != SslMode::VerifyFull) {
                field.fault("`system` needs `sslmode: verify-full`");
            }
        }
        (Some(field), Some(_)) => roots = field.roots(),
        _ => {
            if sslmode == Some(SslMode::VerifyCa) && root.is_none() {
                section.fault("`sslmode: verify-ca` needs `sslrootcert`, a file");
            }
        }
    }
    let pair = section.pair("sslcert", "sslkey");
    let command = section.field("sslpassphrase_command");
    if sslmode == Some(SslMode::Disable) {
        for key in ["sslrootcert", "sslcert", "sslkey", "sslpassphrase_command"] {
            if let Some(field) = section.field(key) {
                field.fault("has no effect with `sslmode: disable`");
            }
        }
    }
    if let (None, Some(command)) = (section.field("sslkey"), &command) {
        command.fault("has no effect without `sslkey`");
    }
    let unlock = Unlock::With("sslpassphrase_command", command);
    let client_certificate = pair.and_then(|(cert, key)| keys::key_pair(&cert, &key, &unlock));
    Some(ServerTls {
        sslmode: sslmode?,
        sslnegotiation: sslnegotiation?,
        channel_binding: channel_binding?,
        roots,
        client_certificate,
    })
}

fn sslnegotiation(section: &Section<'_>, sslmode: Option<SslMode>) -> Option<SslNegotiation> {
    let Some(field) = section.field("sslnegotiation") else {
        return Some(SslNegotiation::default());
    };
    let negotiation = field.one_of(&[
        ("postgres", Some(SslNegotiation::Postgres)),
        ("direct", Some(SslNegotiation::Direct)),
    ]);
    // Direct TLS leaves nothing to fall back to.
    let weak = matches!(sslmode, Some(SslMode::Disable | SslMode::Allow | SslMode::Prefer));
    if negotiation == Some(SslNegotiation::Direct) && weak {
        field.fault("`direct` needs `sslmode: require`, `verify-ca` or `verify-full`");
    }
    negotiation
}

fn channel_binding(section: &Section<'_>, sslmode: Option<SslMode>) -> Option<ChannelBinding> {
    let Some(field) = section.field("channel_binding") else {
        return Some(ChannelBinding::default());
    };
    let binding = field.one_of(&[
        ("disable", Some(ChannelBinding::Disable)),
        ("prefer", Some(ChannelBinding::Prefer)),
        ("require", Some(ChannelBinding::Require)),
    ]);
    if binding == Some(ChannelBinding::Require) && sslmode == Some(SslMode::Disable) {
        field.fault("`require` needs TLS, and `sslmode` is `disable`");
    }
    binding
}

/// With `slow_start` and `max_connections`, which are about choosing a server.
fn server_options(cluster: &Section<'_>) -> (ServerOptions, Duration, u32) {
    let section = cluster.section("server", &schema::SERVER);
    let slow_start = section
        .field("slow_start")
        .and_then(|field| field.duration(Duration::ZERO, hours(1)))
        .unwrap_or_default();
    let connect_timeout = section
        .field("connect_timeout")
        .and_then(|f| f.duration(ms(10), minutes(5)));
    let keepalive = match section.field("keepalive") {
        Some(field) => {
            // The kernel counts in whole seconds, at most 32767 of them.
            let keepalive = field.duration_or_off(secs(15), secs(1), hours(9));
            if keepalive.is_some_and(|time| time >= secs(1) && time.subsec_nanos() != 0) {
                field.fault("must be whole seconds");
            }
            keepalive
        }
        None => Some(secs(15)),
    };
    let tcp_user_timeout = match section.field("tcp_user_timeout") {
        Some(field) => field.duration_or_off(secs(30), ms(100), hours(24)),
        None => Some(secs(30)),
    };
    let max_connections = section
        .field("max_connections")
        .and_then(|field| field.number(0, 1_000_000));
    let options = ServerOptions {
        connect_timeout: connect_timeout.unwrap_or(secs(3)),
        keepalive,
        tcp_user_timeout,
    };
    (options, slow_start, max_connections.unwrap_or(0))
}

fn probe(cluster: &Section<'_>) -> Probe {
    let section = cluster.section("probe", &schema::PROBE);
    let time = |key| {
        section
            .field(key)
            .and_then(|field| field.duration(ms(10), minutes(5)))
    };
    let count = |key| section.field(key).and_then(|field| field.number(1, 100));
    Probe {
        interval: time("interval").unwrap_or(secs(1)),
        timeout: time("timeout").unwrap_or(secs(1)),
        rise: count("rise").unwrap_or(2),
        fall: count("fall").unwrap_or(3),
    }
}

fn local_member(cluster: &Section<'_>) -> Option<LocalMember> {
    match cluster.field("local_member") {
        None => Some(LocalMember::Auto),
        Some(field) => Some(match field.text()? {
            "auto" => LocalMember::Auto,
            "none" => LocalMember::None,
            name => LocalMember::Name(name.to_owned()),
        }),
    }
}
