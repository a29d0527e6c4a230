//! `listeners`.

use std::sync::Arc;

use super::addresses::{self, bind_address, default_bind_address};
use super::admission;
use super::names::reference;
use super::routes::Routes;
use super::sockets::{SocketToBind, Speaks};
use crate::config::fields::{Field, Section, report_repeated};
use crate::config::model::{
    BindAddress, ClientTls, Listener, ListenerMode, ListenerTls, OnLeader, Resume, Route,
};
use crate::config::schema::{DEFAULT_LISTENERS, LISTENER};

pub(super) fn listeners<'a>(
    root: &Section<'a>,
    routes: &Routes<'a>,
    tls: Option<&ClientTls>,
    places: &mut Vec<SocketToBind<'a>>,
) -> Vec<Listener> {
    // A certificate that is written and faulty is one error, not one for each listener.
    let can_tls = tls.is_some() || root.has("tls");
    let Some(field) = root.field("listeners") else {
        return default_listeners(root, routes, can_tls, places);
    };
    let (mut names, mut uses, mut listeners) = (Vec::new(), Vec::new(), Vec::new());
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
            .and_then(|field| reference(&field, &routes.names, "route"));
        let mode = section.word("mode");
        uses.extend(route.map(|route| (route, mode)));
        let of_route = route.and_then(|name| routes.models.get(name));
        if let (ListenerMode::Tcp, Some(of_route), Some(field)) = (mode, of_route, section.field("mode")) {
            check_forwarding(of_route, &field);
        }
        if let Some((name, field)) = &name {
            names.push((*name, field.clone()));
        }
        if let Some((address, field)) = &address {
            places.push(SocketToBind::written(
                address.clone(),
                field.clone(),
                Speaks::Listener(mode),
            ));
        }
        let is_local = matches!(&address, Some((BindAddress::Unix { .. }, _)));
        let tls = if mode == ListenerMode::Tcp {
            no_tls(&section)
        } else if is_local {
            local_tls(&section)
        } else {
            listener_tls(&section, can_tls)
        };
        let entry = admission::read(&section, is_local);
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
    check_client_addresses(routes, &uses);
    listeners
}

fn default_listeners<'a>(
    root: &Section<'a>,
    routes: &Routes<'a>,
    can_tls: bool,
    places: &mut Vec<SocketToBind<'a>>,
) -> Vec<Listener> {
    let section = Section::unwritten(root.context(), &LISTENER);
    let mode = section.word("mode");
    let is_missing = |name: &&str| routes.names.as_ref().is_some_and(|routes| !routes.contains(name));
    let defaults = DEFAULT_LISTENERS.iter().map(|(name, _)| *name);
    let missing: Vec<String> = defaults
        .filter(is_missing)
        .map(|name| format!("`{name}`"))
        .collect();
    if let (false, Some(field)) = (missing.is_empty(), root.field("routes")) {
        let noun = if missing.len() == 1 { "a route" } else { "routes" };
        field.error_with_hint(
            format!(
                "`listeners` is missing, and the default listeners need {noun} {}",
                missing.join(" and ")
            ),
            "write `listeners` for your routes, or give your routes these names",
        );
    }
    let listener = |(name, address): (&str, &str)| {
        let address = default_bind_address(address);
        let what = format!("listener {name}");
        places.push(SocketToBind::default(
            address.clone(),
            &what,
            Speaks::Listener(mode),
        ));
        Listener {
            name: Arc::from(name),
            address,
            route: Arc::from(name),
            mode,
            tls: listener_tls(&section, can_tls),
            max_clients: section.number("max_clients"),
            entry: admission::read(&section, false),
        }
    };
    DEFAULT_LISTENERS.into_iter().map(listener).collect()
}

/// What a route cannot do for a client that logs into the server itself.
fn check_forwarding(route: &Route, mode: &Field<'_>) {
    let asked = [
        (
            route.read_only_on_leader == OnLeader::Enforced,
            "`read_only_on_leader: enforced`",
        ),
        (route.pool.is_some(), "a `pool`"),
        (
            route.pool.is_none() && route.resume == Resume::Tracked,
            "`resume: tracked`",
        ),
        (
            route.resume == Resume::Off && route.hold.logins,
            "`hold: {logins: true}`",
        ),
    ];
    for (_, what) in asked.iter().filter(|(is_asked, _)| *is_asked) {
        mode.error_with_hint(
            format!("cannot be `tcp` where the route has {what}: the client itself logs into the server"),
            "use `mode: postgres`, or another route",
        );
    }
}

/// Where bytes are forwarded unread, the startup packet cannot carry the address.
fn check_client_addresses(routes: &Routes<'_>, uses: &[(&str, ListenerMode)]) {
    for (route, field) in &routes.client_addresses {
        let mut modes = uses.iter().filter(|(name, _)| name == route).peekable();
        if modes.peek().is_some() && modes.all(|(_, mode)| *mode == ListenerMode::Tcp) {
            field.error_with_hint(
                "has no effect: every listener of the route has `mode: tcp`, which forwards the client's bytes unread",
                "remove it, or give the route a listener with `mode: postgres`",
            );
        }
    }
}

/// A Unix socket too, unlike for HTTP.
fn listen_address(listener: &Section<'_>, field: &Field<'_>) -> Option<BindAddress> {
    if addresses::is_path(field) {
        let (path, mode) = (addresses::socket_path(field), addresses::socket_mode(listener));
        return path
            .zip(mode)
            .map(|(path, mode)| BindAddress::Unix { path, mode });
    }
    if let Some(field) = listener.field("socket_mode") {
        field.error("has no effect: `address` is not the path of a Unix socket");
    }
    bind_address(field)
}

/// The servers decide, with their own certificates and `pg_hba.conf`.
fn no_tls(listener: &Section<'_>) -> ListenerTls {
    if let Some(field) = listener.field("tls") {
        field.error_with_hint(
            "has no effect with `mode: tcp`: TLS is between the client and the server",
            "remove it; the servers decide by their `ssl` and pg_hba.conf",
        );
    }
    ListenerTls::Off
}

/// The network cannot see a Unix socket: like PostgreSQL's it offers no TLS.
fn local_tls(listener: &Section<'_>) -> ListenerTls {
    if let Some(field) = listener.field("tls")
        && field.one_of() == Some(ListenerTls::Required)
    {
        field.error("`required` is not possible on a Unix socket, which offers no TLS");
    }
    ListenerTls::Off
}

/// Without a certificate `optional` offers no TLS, so it becomes `off`: one case less for the rest
/// of the program.
fn listener_tls(listener: &Section<'_>, can_tls: bool) -> ListenerTls {
    match listener.word("tls") {
        ListenerTls::Required if !can_tls => {
            if let Some(field) = listener.field("tls") {
                field.error("`required` needs a certificate in `tls.certificates`");
            }
            ListenerTls::Required
        }
        ListenerTls::Optional if !can_tls => ListenerTls::Off,
        asked => asked,
    }
}
