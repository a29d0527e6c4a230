//! `bind` lines: addresses to listen on.

use std::sync::Arc;

use super::parse::Line;
use super::words;
use crate::cli::import::notes::Notes;

/// The most addresses of one line; the configuration takes 256 listeners in all.
const MAX_ADDRESSES: usize = 256;

/// One address, and what its line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bind {
    pub(super) line: usize,
    /// As the configuration writes it.
    pub(super) address: String,
    pub(super) port: Option<u16>,
    pub(super) options: Arc<Options>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Options {
    pub(super) name: Option<String>,
    pub(super) accepts_proxy: bool,
    pub(super) is_tls: bool,
    pub(super) certificates: Vec<String>,
    pub(super) ca_file: Option<String>,
    pub(super) crl_file: Option<String>,
    pub(super) min_version: Option<String>,
    pub(super) max_clients: Option<u64>,
    /// Permissions of a Unix socket.
    pub(super) socket_mode: Option<String>,
    /// `verify required`.
    pub(super) demands_certificate: bool,
    /// The word that kept the listener to one interface or network namespace.
    pub(super) confined_to: Option<String>,
}

/// Words of a `bind` line with one argument that have no equivalent.
const WITH_ARGUMENT: &[&str] = &[
    "alpn",
    "npn",
    "backlog",
    "ca-ignore-err",
    "ca-sign-file",
    "ca-sign-pass",
    "ciphers",
    "ciphersuites",
    "client-sigalgs",
    "crt-ignore-err",
    "crt-list",
    "curves",
    "ecdhe",
    "gid",
    "group",
    "guid-prefix",
    "id",
    "interface",
    "level",
    "mss",
    "namespace",
    "nbconn",
    "nice",
    "ocsp-update",
    "process",
    "proto",
    "severity-output",
    "shards",
    "sigalgs",
    "ssl-max-ver",
    "tcp-md5sig",
    "tcp-ut",
    "thread",
    "tls-ticket-keys",
    "uid",
    "user",
];

pub(super) fn read(line: &Line, notes: &mut Notes) -> Vec<Bind> {
    let options = Arc::new(options(line, notes));
    let mut binds = Vec::new();
    for written in line.word(1).split(',').filter(|part| !part.is_empty()) {
        let takes_both = line.words.iter().any(|word| word == "v4v6");
        let Some(found) = addresses(written, takes_both) else {
            notes.lost(
                line.number,
                "bind",
                "listens on neither an IP address and a port nor the path of a Unix socket",
            );
            continue;
        };
        if binds.len() + found.len() > MAX_ADDRESSES {
            notes.lost(
                line.number,
                "bind",
                format!("has more than {MAX_ADDRESSES} addresses"),
            );
            break;
        }
        binds.extend(found.into_iter().map(|(address, port)| Bind {
            line: line.number,
            address,
            port,
            options: Arc::clone(&options),
        }));
    }
    binds
}

fn options(line: &Line, notes: &mut Notes) -> Options {
    let mut options = Options::default();
    let mut rest = line.words.iter().skip(2);
    while let Some(word) = rest.next() {
        let what = format!("bind … {word}");
        let mut argument = || rest.next().cloned();
        match word.as_str() {
            "name" => options.name = argument(),
            "accept-proxy" => options.accepts_proxy = true,
            "ssl" => options.is_tls = true,
            "crt" => options.certificates.extend(argument()),
            "ca-file" | "ca-verify-file" => options.ca_file = argument(),
            "crl-file" => options.crl_file = argument(),
            "ssl-min-ver" => options.min_version = argument(),
            "mode" => options.socket_mode = argument(),
            "maxconn" => options.max_clients = argument().and_then(|most| most.parse().ok()),
            "verify" => {
                if argument().as_deref() == Some("required") {
                    options.demands_certificate = true;
                    notes.differs(
                        line.number,
                        &what,
                        "clients are asked for a certificate; `auth.hba_file` says who needs one (`hostssl … clientcert=verify-ca`)",
                    );
                }
            }
            // The router has the kernel's defaults, or does this always.
            "v4v6" | "v6only" | "tfo" | "defer-accept" | "transparent" | "no-alpn" => {
                if word == "transparent" {
                    notes.lost(
                        line.number,
                        &what,
                        "the router connects and listens with its own addresses",
                    );
                }
            }
            "no-sslv3" | "no-tlsv10" | "no-tlsv11" => {}
            "force-tlsv13" | "no-tlsv12" => options.min_version = Some("TLSv1.3".to_owned()),
            word if WITH_ARGUMENT.contains(&word) => {
                let _ = argument();
                if matches!(word, "interface" | "namespace") {
                    options.confined_to = Some(word.to_owned());
                }
                let why = match word {
                    "user" | "uid" | "group" | "gid" => {
                        "the socket belongs to the user and group the router runs as"
                    }
                    "thread" | "process" | "shards" | "nice" => {
                        "one accept loop serves each listener; `workers` is the number of threads that relay"
                    }
                    "interface" | "namespace" => {
                        "listen on an address of that interface; a network namespace is configured in the service manager"
                    }
                    "crt-list" => {
                        "name the certificates in `tls.certificates`; they are chosen by the names in them"
                    }
                    _ => "there is no such setting",
                };
                notes.lost(line.number, &what, why);
            }
            _ => notes.lost(line.number, &what, "there is no such setting"),
        }
    }
    options
}

/// `[address]:port[-port]`, or a path; the configuration's own form and the port.
fn addresses(written: &str, takes_both: bool) -> Option<Vec<(String, Option<u16>)>> {
    if let Some(path) = written
        .strip_prefix("unix@")
        .or(Some(written).filter(|text| text.starts_with('/')))
    {
        return path.starts_with('/').then(|| vec![(path.to_owned(), None)]);
    }
    let (family, rest) = match written.split_once('@') {
        Some((family @ ("ipv4" | "ipv6" | "tcp" | "tcp4" | "tcp6"), rest)) => (family, rest),
        Some(_) => return None,
        None => ("", written),
    };
    let (host, ports) = rest.rsplit_once(':')?;
    let bare = words::without_brackets(host);
    let host = match (bare, family) {
        ("::", _) if takes_both => "*".to_owned(),
        ("" | "*", "ipv6" | "tcp6") => "[::]".to_owned(),
        ("" | "*", "ipv4" | "tcp4") => "0.0.0.0".to_owned(),
        ("" | "*", _) => "*".to_owned(),
        (bare, _) => match bare.parse::<std::net::IpAddr>().ok()? {
            std::net::IpAddr::V6(address) => format!("[{address}]"),
            std::net::IpAddr::V4(address) => address.to_string(),
        },
    };
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let (first, last) = (words::port(first)?, words::port(last)?);
    let ports = (first..=last).take(MAX_ADDRESSES + 1);
    (first <= last).then(|| ports.map(|port| (format!("{host}:{port}"), Some(port))).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_in_all_forms() {
        let one = |written: &str| {
            let found = addresses(written, false).unwrap();
            assert_eq!(found.len(), 1, "{written}");
            found[0].0.clone()
        };
        for (written, expected) in [
            ("*:5010", "*:5010"),
            (":5010", "*:5010"),
            ("127.0.0.1:7000", "127.0.0.1:7000"),
            ("ipv4@:5010", "0.0.0.0:5010"),
            ("ipv6@*:5010", "[::]:5010"),
            (":::5010", "[::]:5010"),
            ("[::1]:5010", "[::1]:5010"),
            ("::1:5010", "[::1]:5010"),
            ("/run/pg/.s.PGSQL.5432", "/run/pg/.s.PGSQL.5432"),
            ("unix@/run/x", "/run/x"),
        ] {
            assert_eq!(one(written), expected, "{written}");
        }
        assert_eq!(addresses(":::5010", true).unwrap()[0].0, "*:5010");
        let range: Vec<String> = addresses("10.0.0.1:1-3", false)
            .unwrap()
            .into_iter()
            .map(|(a, _)| a)
            .collect();
        assert_eq!(range, ["10.0.0.1:1", "10.0.0.1:2", "10.0.0.1:3"]);
        for bad in [
            "", "*", "*:0", "*:3-1", "db1:5432", "fd@3", "abns@x", "unix@x", "*:x", "*:+5", "*:70000",
        ] {
            assert_eq!(addresses(bad, false), None, "{bad}");
        }
    }
}
