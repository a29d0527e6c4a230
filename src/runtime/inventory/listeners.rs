//! The addresses that the router listens on, and where each leads.

use std::sync::Arc;

use crate::admin::{ListenerView, Phase};
use crate::config::{
    BindAddress, Config, Listener, ListenerMode, ListenerTls, Network, ProxyProtocol, Words,
};
use crate::session::Shared;
use crate::session::listener_settings::ListenerSettings;

pub(super) fn all(
    config: &Config,
    open: &[Arc<ListenerSettings>],
    shared: &Shared,
    phase: Phase,
) -> Vec<ListenerView> {
    let mut all: Vec<ListenerView> = config
        .listeners
        .iter()
        .map(|listener| {
            let settings = open.iter().find(|settings| settings.name == listener.name);
            of_clients(config, listener, settings, shared, phase)
        })
        .collect();
    let http = &config.http;
    for address in &http.addresses {
        let mut view = own("http", "http", address);
        if http.tls.is_some() {
            "required".clone_into(&mut view.tls);
        }
        view.proxy_protocol = http.proxy_protocol.as_ref().map(proxy_protocol);
        all.push(view);
    }
    if let Some(check) = &http.agent_check {
        let mut view = own("agent_check", "agent check", &check.address);
        view.proxy_protocol = http.proxy_protocol.as_ref().map(proxy_protocol);
        all.push(view);
    }
    if let Some(path) = &config.control_socket {
        let address = BindAddress::Unix {
            path: path.clone(),
            mode: 0o600,
        };
        all.push(own("control_socket", "control", &address));
    }
    all
}

fn of_clients(
    config: &Config,
    listener: &Listener,
    open: Option<&Arc<ListenerSettings>>,
    shared: &Shared,
    phase: Phase,
) -> ListenerView {
    let route = config.routes.get(&*listener.route);
    let is_forwarding = listener.mode == ListenerMode::Tcp;
    let tls = match (listener.tls, &config.tls) {
        _ if is_forwarding => "server",
        (_, None) => "off",
        (tls, Some(_)) => Words::word(tls),
    };
    let console = config.console.as_ref().filter(|_| !is_forwarding);
    let paused = shared.occupancy.paused_routes().all();
    let state = match phase {
        Phase::Draining => "closed",
        Phase::Leaving => "draining",
        _ if shared.disabled_routes.has(&listener.route) => "disabled",
        _ if paused.contains_key(&listener.route) => "paused",
        _ => "open",
    };
    let texts = |networks: &[Network]| networks.iter().map(Network::to_string).collect();
    ListenerView {
        route: Some(listener.route.to_string()),
        cluster: route.map(|route| route.cluster.to_string()),
        access: route.map(|route| route.access.to_string()),
        targets: route.map(|route| route.wanted()),
        pool: route.map(|route| {
            let pool = route.pool.as_ref();
            pool.map_or_else(|| route.resume.to_string(), |pool| pool.mode.to_string())
        }),
        console: console.map(|console| console.database.to_string()),
        tls: tls.to_owned(),
        proxy_protocol: listener.entry.proxy_protocol.as_ref().map(proxy_protocol),
        allow: texts(&listener.entry.addresses.allow),
        deny: texts(&listener.entry.addresses.deny),
        state: state.to_owned(),
        clients: open.map(|open| open.sessions().into()),
        max_clients: Some(listener.max_clients.into()).filter(|most| *most > 0),
        ..own(&listener.name, Words::word(listener.mode), &listener.address)
    }
}

/// One without sessions.
fn own(name: &str, protocol: &str, address: &BindAddress) -> ListenerView {
    let (ip, socket) = match address {
        BindAddress::Any { .. } => (Some("*".to_owned()), None),
        BindAddress::Ip(address) => (Some(address.ip().to_string()), None),
        BindAddress::Unix { path, .. } => (None, Some(path.display().to_string())),
    };
    ListenerView {
        name: name.to_owned(),
        protocol: protocol.to_owned(),
        address: ip,
        port: address.port(),
        socket,
        route: None,
        cluster: None,
        access: None,
        targets: None,
        pool: None,
        console: None,
        tls: Words::word(ListenerTls::Off).to_owned(),
        proxy_protocol: None,
        allow: Vec::new(),
        deny: Vec::new(),
        state: "open".to_owned(),
        clients: None,
        max_clients: None,
    }
}

fn proxy_protocol(proxy: &ProxyProtocol) -> String {
    if proxy.required { "required" } else { "trusted" }.to_owned()
}
