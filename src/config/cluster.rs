//! `clusters`: from the tree to [`Cluster`].

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, ServerName};

use super::address;
use super::etcd::{self, Etcd};
use super::keys::{self, Unlock};
use super::model::{
    BasicAuth, ChannelBinding, Cluster, LocalMember, Patroni, Probe, Server, ServerOptions, ServerTls,
    ServiceAccount, Source, SslMode, SslNegotiation,
};
use super::placement::{self, Placement};
use super::reload_unit::ReloadUnit;
use super::require_auth::{AuthMethod, RequireAuth, Ruling};
use super::section::{Field, Section, report_repeated};

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
    let section = field.section();
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
        service_account: context.within(ReloadUnit::ServiceAccount(Arc::clone(&name)), || {
            service_account(&section)
        }),
        server_tls: context.within(ReloadUnit::ServerTls(Arc::clone(&name)), || server_tls(&section)),
        server,
        max_connections,
        probe: probe(&section),
        local_member: local_member(&section),
        name,
    }
}

fn source(section: &Section<'_>) -> Option<Source> {
    match (section.has("patroni"), section.field("servers")) {
        (true, None) => patroni(&section.section("patroni")).map(Source::Patroni),
        (false, Some(servers)) => fixed_servers(&servers).map(Source::Servers),
        (true, Some(servers)) => {
            // Only for its faults.
            let _ = patroni(&section.section("patroni"));
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
    let poll_interval = section.duration("poll_interval");
    let fast = section.field("fast_poll_interval");
    let fast_poll_interval = match fast.as_ref().map(|field| (field, field.duration())) {
        Some((field, Some(fast))) if fast > poll_interval => {
            field.fault("must not be longer than `poll_interval`");
            fast
        }
        Some((_, Some(fast))) => fast,
        _ => section.default_duration("fast_poll_interval").min(poll_interval),
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
    let (username, password) = (username.text(), password.secret_file());
    Some(BasicAuth {
        username: username?.to_owned(),
        password: password?,
    })
}

pub(super) fn endpoints(field: &Field<'_>) -> Vec<String> {
    let mut endpoints = Vec::new();
    for field in field.list() {
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
    let list = field.list();
    for field in &list {
        let section = field.section();
        let name = section
            .required("name")
            .and_then(|field| field.name().map(|name| (name, field)));
        let host = section.required("host").and_then(|field| address::host(&field));
        let port = u16::try_from(section.number("port")).ok();
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
    let section = cluster.section("service_account");
    let user = section
        .required("user")
        .and_then(|field| field.text().map(str::to_owned));
    let file = section.field("password_file");
    let variable = section.field("password_env");
    if let (Some(_), Some(variable)) = (&file, &variable) {
        variable.fault("stands beside `password_file`; remove one of them");
    }
    let password = match (file, variable) {
        (Some(file), _) => file.secret_file(),
        (None, Some(variable)) => variable.secret_variable(),
        (None, None) => None,
    };
    let dbname = section.text("dbname").map(str::to_owned);
    Some(ServiceAccount {
        user: user?,
        password,
        dbname: dbname?,
        pool_size: section.number("pool_size") as usize,
        timeout: section.duration("timeout"),
    })
}

fn server_tls(cluster: &Section<'_>) -> Option<ServerTls> {
    let section = cluster.section("server_tls");
    let sslmode = section.one_of(
        "sslmode",
        &[
            ("disable", Some(SslMode::Disable)),
            ("allow", Some(SslMode::Allow)),
            ("prefer", Some(SslMode::Prefer)),
            ("require", Some(SslMode::Require)),
            ("verify-ca", Some(SslMode::VerifyCa)),
            ("verify-full", Some(SslMode::VerifyFull)),
        ],
    );
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
    let server_name = server_name(&section, sslmode);
    let require_auth = require_auth(&section, channel_binding);
    Some(ServerTls {
        server_name: server_name?,
        require_auth: require_auth?,
        sslmode: sslmode?,
        sslnegotiation: sslnegotiation?,
        channel_binding: channel_binding?,
        roots,
        client_certificate,
    })
}

fn sslnegotiation(section: &Section<'_>, sslmode: Option<SslMode>) -> Option<SslNegotiation> {
    let words = [
        ("postgres", Some(SslNegotiation::Postgres)),
        ("direct", Some(SslNegotiation::Direct)),
    ];
    let negotiation = section.one_of("sslnegotiation", &words);
    // Direct TLS leaves nothing to fall back to.
    let weak = matches!(sslmode, Some(SslMode::Disable | SslMode::Allow | SslMode::Prefer));
    if let Some(field) = section
        .field("sslnegotiation")
        .filter(|_| negotiation == Some(SslNegotiation::Direct) && weak)
    {
        field.fault("`direct` needs `sslmode: require`, `verify-ca` or `verify-full`");
    }
    negotiation
}

/// The inner `None`: the member's host.
#[expect(
    clippy::option_option,
    reason = "the outer one is a fault, as everywhere here"
)]
fn server_name(section: &Section<'_>, sslmode: Option<SslMode>) -> Option<Option<String>> {
    let Some(field) = section.field("server_name") else {
        return Some(None);
    };
    let name = field.text()?;
    if sslmode == Some(SslMode::Disable) {
        field.fault("has no effect with `sslmode: disable`");
        return None;
    }
    if !matches!(ServerName::try_from(name), Ok(ServerName::DnsName(_))) {
        field.fault_with(
            "is not a DNS name",
            "it is the name that the servers' certificates have, as in `db.example.org`",
        );
        return None;
    }
    Some(Some(name.to_owned()))
}

fn require_auth(section: &Section<'_>, binding: Option<ChannelBinding>) -> Option<RequireAuth> {
    let Some(field) = section.field("require_auth") else {
        return Some(RequireAuth::default());
    };
    let required = RequireAuth::read(&field)?;
    if binding == Some(ChannelBinding::Require) && required.ruling(AuthMethod::Scram) == Ruling::Refused {
        field.fault("leaves out `scram-sha-256`, which `channel_binding: require` needs");
        return None;
    }
    Some(required)
}

fn channel_binding(section: &Section<'_>, sslmode: Option<SslMode>) -> Option<ChannelBinding> {
    let words = [
        ("disable", Some(ChannelBinding::Disable)),
        ("prefer", Some(ChannelBinding::Prefer)),
        ("require", Some(ChannelBinding::Require)),
    ];
    let binding = section.one_of("channel_binding", &words);
    if let Some(field) = section
        .field("channel_binding")
        .filter(|_| binding == Some(ChannelBinding::Require) && sslmode == Some(SslMode::Disable))
    {
        field.fault("`require` needs TLS, and `sslmode` is `disable`");
    }
    binding
}

/// With `slow_start` and `max_connections`, which are about choosing a server.
fn server_options(cluster: &Section<'_>) -> (ServerOptions, Duration, u32) {
    let section = cluster.section("server");
    let keepalive = section.duration_or_off("keepalive");
    // The kernel counts in whole seconds, at most 32767 of them.
    if let Some(field) = section
        .field("keepalive")
        .filter(|_| keepalive.is_some_and(|time| time.subsec_nanos() != 0))
    {
        field.fault("must be whole seconds");
    }
    let options = ServerOptions {
        connect_timeout: section.duration("connect_timeout"),
        keepalive,
        tcp_user_timeout: section.duration_or_off("tcp_user_timeout"),
    };
    (
        options,
        section.duration("slow_start"),
        section.number("max_connections"),
    )
}

fn probe(cluster: &Section<'_>) -> Probe {
    let section = cluster.section("probe");
    Probe {
        interval: section.duration("interval"),
        timeout: section.duration("timeout"),
        rise: section.number("rise"),
        fall: section.number("fall"),
    }
}

fn local_member(cluster: &Section<'_>) -> Option<LocalMember> {
    Some(match cluster.text("local_member")? {
        "auto" => LocalMember::Auto,
        "none" => LocalMember::None,
        name => LocalMember::Name(name.to_owned()),
    })
}
