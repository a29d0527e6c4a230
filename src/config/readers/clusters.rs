//! `clusters`: a cluster's servers, the router's own account on them, and how it connects to them.

use std::sync::Arc;
use std::time::Duration;

use super::{addresses, etcd, patroni, placement, server_tls};
use crate::config::fields::{Field, Section, report_repeated};
use crate::config::model::{
    Cluster, Etcd, LocalMember, Placement, Probe, ReloadUnit, Server, ServerOptions, ServerTls,
    ServiceAccount, Source,
};

/// What was read of a cluster; `None` where there was an error.
pub(super) struct ClusterDraft {
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

impl ClusterDraft {
    /// It is a fixed list of servers.
    pub(super) fn is_fixed(&self) -> bool {
        matches!(self.source, Some(Source::Servers(_)))
    }

    pub(super) fn probe_interval(&self) -> Duration {
        self.probe.interval
    }

    /// `server.max_connections`; `None` is no limit.
    pub(super) fn max_connections(&self) -> Option<u32> {
        Some(self.max_connections).filter(|most| *most > 0)
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

pub(super) fn cluster(name: &str, field: &Field<'_>) -> ClusterDraft {
    let section = field.section();
    let name: Arc<str> = Arc::from(name);
    let context = section.context();
    let source = source(&section);
    let (server, slow_start, max_connections) = server_options(&section);
    ClusterDraft {
        placement: Placement {
            slow_start,
            ..placement::read(&section, source.as_ref())
        },
        source,
        etcd: etcd::read(&section),
        service_account: context.within(ReloadUnit::ServiceAccount(Arc::clone(&name)), || {
            service_account(&section)
        }),
        server_tls: context.within(ReloadUnit::ServerTls(Arc::clone(&name)), || {
            server_tls::server_tls(&section)
        }),
        server,
        max_connections,
        probe: probe(&section),
        local_member: local_member(&section),
        name,
    }
}

fn source(section: &Section<'_>) -> Option<Source> {
    match (section.has("patroni"), section.field("servers")) {
        (true, None) => patroni::patroni(&section.section("patroni")).map(Source::Patroni),
        (false, Some(servers)) => fixed_servers(&servers).map(Source::Servers),
        (true, Some(servers)) => {
            // Only to report its errors.
            let _ = patroni::patroni(&section.section("patroni"));
            let _ = fixed_servers(&servers);
            servers.error("`servers` cannot be combined with `patroni`; remove one of them");
            None
        }
        (false, None) => {
            section.error("`patroni` is missing; for a cluster without Patroni give `servers`");
            None
        }
    }
}

fn fixed_servers(field: &Field<'_>) -> Option<Vec<Server>> {
    let (mut names, mut places, mut servers) = (Vec::new(), Vec::new(), Vec::new());
    let list = field.list();
    for field in &list {
        let section = field.section();
        let name = section
            .required("name")
            .and_then(|field| field.name().map(|name| (name, field)));
        let host = section.required("host").and_then(|field| addresses::host(&field));
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
        variable.error("cannot be combined with `password_file`; remove one of them");
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

/// With `slow_start` and `max_connections`, which are about choosing a server.
fn server_options(cluster: &Section<'_>) -> (ServerOptions, Duration, u32) {
    let section = cluster.section("server");
    let keepalive = section.duration_or_off("keepalive");
    // The kernel counts in whole seconds, at most 32767 of them.
    if let Some(field) = section
        .field("keepalive")
        .filter(|_| keepalive.is_some_and(|time| time.subsec_nanos() != 0))
    {
        field.error("must be whole seconds");
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
    cluster.text("local_member").map(LocalMember::new)
}
