//! The ports that the router binds: free, or its own already; allowed; on this host.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use super::holder::{self, Holder};
use super::place::Place;
use super::read_small;
use crate::cluster::examine::Finding;
use crate::config::{BindAddress, Config};

pub(super) fn findings(config: &Config, place: &Place) -> Vec<Finding> {
    let listeners = config.listeners.iter();
    let mut all: Vec<(String, &BindAddress)> = listeners
        .map(|listener| (format!("listener {}", listener.name), &listener.address))
        .collect();
    all.extend(
        config
            .http
            .addresses
            .iter()
            .map(|address| ("http".to_owned(), address)),
    );
    let agent = config.http.agent_check.iter();
    all.extend(agent.map(|check| ("http.agent_check".to_owned(), &check.address)));
    let mut findings: Vec<Finding> = all
        .into_iter()
        .map(|(owner, address)| bindable(format!("{owner}: {address}"), address, place))
        .collect();
    if let Some(path) = &config.control_socket {
        let address = BindAddress::Unix {
            path: path.clone(),
            mode: 0o600,
        };
        findings.push(bindable(
            format!("control_socket: {}", path.display()),
            &address,
            place,
        ));
    }
    findings
}

fn bindable(what: String, address: &BindAddress, place: &Place) -> Finding {
    let (ip, port) = match address {
        BindAddress::Unix { path, .. } => return unix(what, path, place),
        BindAddress::Any { port } => (None, *port),
        BindAddress::Ip(address) => (Some(address.ip()), address.port()),
    };
    if let Some(finding) = low(&what, port, place) {
        return finding;
    }
    let Err(error) = bind(ip, port) else {
        return Finding::good(what, "free");
    };
    match Errno::from_raw(error.raw_os_error().unwrap_or_default()) {
        Errno::EADDRINUSE => taken(what, holder::of(ip, port), place),
        Errno::EADDRNOTAVAIL => Finding::bad(
            what,
            "this host does not have that address",
            "correct it (`ip address` lists this host's); for an address that moves between hosts, set \
             net.ipv4.ip_nonlocal_bind = 1 with sysctl",
        ),
        Errno::EACCES => Finding::bad(what, "permission denied", LOW),
        _ => Finding::bad(what, error, "choose another address"),
    }
}

const LOW: &str = "use a port from 1024 on, or give the service CAP_NET_BIND_SERVICE (AmbientCapabilities= and \
                   CapabilityBoundingSet= of the unit)";

/// A port that only root may bind, if the router does not run as root.
fn low(what: &str, port: u16, place: &Place) -> Option<Finding> {
    let first = read_small("/proc/sys/net/ipv4/ip_unprivileged_port_start")?;
    let first: u16 = first.parse().ok()?;
    let may = place.user.is_root()
        || place
            .unit
            .as_ref()
            .is_some_and(super::unit::Unit::may_bind_low_ports);
    if port >= first || port == 0 || may {
        return None;
    }
    let found = format!("{} may not bind ports below {first}", place.user.name);
    Some(Finding::bad(what.to_owned(), found, LOW))
}

fn taken(what: String, holder: Option<Holder>, place: &Place) -> Finding {
    match (holder, place.running) {
        (Some(holder), Some(running)) if holder.pid == running => {
            Finding::good(what, format!("the running router has it (process {running})"))
        }
        (Some(holder), _) => Finding::bad(
            what,
            format!("{} has it (process {})", holder.name, holder.pid),
            "stop that process, or choose another port",
        ),
        (None, Some(running)) => Finding::good(
            what,
            format!("in use; the running router (process {running}) has it, as far as this user can see"),
        ),
        (None, None) => Finding::bad(
            what,
            "it is in use by another program",
            "find out which (`ss -ltnp` as root) and stop it, or choose another port",
        ),
    }
}

/// Binds as the router does, and does not listen, so that no client connects.
fn bind(ip: Option<IpAddr>, port: u16) -> io::Result<()> {
    match ip {
        Some(ip) => bind_one((ip, port).into(), ip.is_ipv6()),
        None => match bind_one((Ipv6Addr::UNSPECIFIED, port).into(), false) {
            Err(error)
                if matches!(
                    error.raw_os_error().map(Errno::from_raw),
                    Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL)
                ) =>
            {
                bind_one((Ipv4Addr::UNSPECIFIED, port).into(), false)
            }
            bound => bound,
        },
    }
}

fn bind_one(address: SocketAddr, only_v6: bool) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())
}

/// A file that a dead process left is replaced at the start.
fn unix(what: String, path: &std::path::Path, place: &Place) -> Finding {
    match std::fs::symlink_metadata(path) {
        Err(_) => Finding::good(what, "free"),
        Ok(found) if !is_socket(&found) => Finding::bad(
            what,
            "there is another file at this path",
            "move it away, or choose another path",
        ),
        Ok(_) => match (UnixStream::connect(path), place.running) {
            (Ok(_), Some(running)) => {
                Finding::good(what, format!("the running router has it (process {running})"))
            }
            (Ok(_), None) => Finding::bad(
                what,
                "a process accepts connections there",
                "find out which (`ss -lxp` as root) and stop it, or choose another path",
            ),
            (Err(_), _) => Finding::good(what, "free: the process that made it is gone"),
        },
    }
}

fn is_socket(metadata: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    metadata.file_type().is_socket()
}
