//! Addresses: where to listen, and hosts to connect to.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::config::fields::{Field, Section};
use crate::config::model::BindAddress;
use crate::config::schema::kind::LONGEST_SOCKET_PATH;

/// `*:6432`, `127.0.0.1:6432` or `[::1]:6432`.
pub(super) fn bind_address(field: &Field<'_>) -> Option<BindAddress> {
    if let Some(number) = field.whole_number() {
        let port = u16::try_from(number).ok().filter(|port| *port > 0);
        field.error_with_hint(
            "expected text, found a number",
            format!(
                "an address and a port in quotes, as in `\"*:{}\"`",
                port.unwrap_or(6432)
            ),
        );
        return None;
    }
    let hint = "an IP address or `*`, and a port: `\"*:6432\"`, `127.0.0.1:6432`, `\"[::1]:6432\"`";
    match parse_bind_address(field.text()?) {
        None => field.error_with_hint("is not an address to listen on", hint),
        Some(address) if address.port() == Some(0) => {
            field.error_with_hint("the port must be from 1 to 65535", hint);
        }
        // It would listen where its IPv4 form does, and no comparison with other addresses would
        // find that.
        Some(BindAddress::Ip(SocketAddr::V6(v6))) if v6.ip().to_ipv4_mapped().is_some() => {
            field.error("write an IPv4 address as IPv4, as in `127.0.0.1:6432`");
        }
        Some(address) => return Some(address),
    }
    None
}

/// A default of the schema.
pub(super) fn default_bind_address(text: &str) -> BindAddress {
    parse_bind_address(text).unwrap_or_else(|| unreachable!("{text} is an address"))
}

fn parse_bind_address(text: &str) -> Option<BindAddress> {
    match text.strip_prefix("*:") {
        Some(port) => port_number(port).map(|port| BindAddress::Any { port }),
        None => text.parse::<SocketAddr>().ok().map(BindAddress::Ip),
    }
}

/// Is it meant for the path of a Unix socket?
pub(super) fn is_path(field: &Field<'_>) -> bool {
    field.written_text().is_some_and(|text| text.starts_with('/'))
}

/// The path of a Unix socket, where [`is_path`].
pub(super) fn socket_path(field: &Field<'_>) -> Option<PathBuf> {
    let text = field.text()?;
    let path = Path::new(text);
    if text.len() > LONGEST_SOCKET_PATH {
        field.error(format!(
            "is longer than the {LONGEST_SOCKET_PATH} bytes of a Unix socket's path"
        ));
        return None;
    }
    let Some(name) = path.file_name().filter(|_| !text.ends_with('/')) else {
        field.error("is a directory; add the name of the socket, as in `/run/trunkline/.s.PGSQL.6432`");
        return None;
    };
    let port = name.to_str().and_then(|name| name.strip_prefix(".s.PGSQL."));
    if port.and_then(port_number).is_none() {
        field.warn(format!(
            "{text}: libpq looks only for Unix sockets named `.s.PGSQL.` and a port"
        ));
    }
    Some(path.to_owned())
}

/// Permissions of the file of a listener's Unix socket, in octal.
pub(super) fn socket_mode(listener: &Section<'_>) -> Option<u32> {
    let Some(field) = listener.field("socket_mode") else {
        return parse_mode(listener.default_text("socket_mode"));
    };
    let mode = parse_mode(field.text()?);
    if mode.is_none() {
        field.error_with_hint(
            "must be from `\"0000\"` to `\"0777\"`",
            "octal digits in quotes, as in `\"0770\"`",
        );
    }
    mode
}

fn parse_mode(text: &str) -> Option<u32> {
    Some(text)
        .filter(|text| (3..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| u32::from_str_radix(text, 8).ok())
        .filter(|mode| *mode <= 0o777)
}

/// A host name or an IP address, IPv6 without brackets. Only its shape is checked: names are
/// resolved later.
pub(super) fn host(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    match check_host(text) {
        Ok(()) => Some(text.to_owned()),
        Err(message) => {
            field.error(message);
            None
        }
    }
}

/// `host:port`, IPv6 in brackets.
pub(super) fn host_and_port(field: &Field<'_>) -> Option<(String, u16)> {
    let text = field.text()?;
    let Some((host, port)) = text
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host, port_number(port)?)))
    else {
        field.error_with_hint("is not a host and a port", "as in `db2:6432` or `\"[::1]:6432\"`");
        return None;
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if bare.is_none() && host.contains(':') {
        field.error("put an IPv6 address in brackets, as in `\"[::1]:6432\"`");
        return None;
    }
    match check_host(bare.unwrap_or(host)) {
        Ok(()) => Some((bare.unwrap_or(host).to_owned(), port)),
        Err(message) => {
            field.error(message);
            None
        }
    }
}

fn check_host(host: &str) -> Result<(), &'static str> {
    if host.contains(['[', ']']) {
        return Err("write an IPv6 address without brackets here");
    }
    if host.starts_with(['/', '@']) {
        return Err("a Unix-domain socket is not supported; give a host name or an IP address");
    }
    let letter = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    let fits = host.parse::<IpAddr>().is_ok() || host.split('%').next().is_some_and(is_scoped(host));
    if fits || (!host.is_empty() && host.len() <= 253 && host.chars().all(letter)) {
        Ok(())
    } else {
        Err("is not a host name or an IP address")
    }
}

/// `fe80::1%eth0`: an IPv6 address with the interface it belongs to.
fn is_scoped(host: &str) -> impl Fn(&str) -> bool + '_ {
    move |address| host.contains('%') && address.parse::<std::net::Ipv6Addr>().is_ok()
}

/// A port from 1 to 65535, digits only.
fn port_number(text: &str) -> Option<u16> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for host in [
            "db1",
            "db1.example.org",
            "10.0.0.1",
            "::1",
            "fe80::1%eth0",
            "bücher.example",
        ] {
            assert_eq!(check_host(host), Ok(()), "{host}");
        }
        for host in [
            "",
            "[::1]",
            "/run/postgresql",
            "a b",
            "db1:5432",
            "u@h",
            &"a".repeat(300),
        ] {
            assert!(check_host(host).is_err(), "{host}");
        }
    }
}
