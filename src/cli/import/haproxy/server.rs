//! `server`, `server-template` and `default-server` lines.

use std::time::Duration;

use super::parse::Line;
use super::words;
use crate::cli::import::notes::Notes;

#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) line: usize,
    pub(super) name: String,
    /// Host name or IP address, IPv6 without brackets.
    pub(super) host: String,
    /// `None` is the port the client has come to.
    pub(super) port: Option<u16>,
    pub(super) options: Options,
}

/// What a `server` line says after the address, `default-server` included.
#[derive(Debug, Clone, Default)]
pub(super) struct Options {
    pub(super) check: bool,
    pub(super) check_port: Option<u16>,
    pub(super) check_host: Option<String>,
    pub(super) check_tls: bool,
    pub(super) interval: Option<Duration>,
    pub(super) rise: Option<u64>,
    pub(super) fall: Option<u64>,
    pub(super) max_connections: Option<u64>,
    pub(super) weight: Option<u32>,
    pub(super) is_backup: bool,
    pub(super) is_disabled: bool,
    pub(super) slow_start: Option<Duration>,
    /// `on-marked-down shutdown-sessions`.
    pub(super) closes_sessions: bool,
    pub(super) is_tls: bool,
    /// `verify none`, or `verify required`; `None` is what `global` says.
    pub(super) trusts_anybody: Option<bool>,
    pub(super) verify_host: Option<String>,
    pub(super) ca_file: Option<String>,
    pub(super) certificate: Option<String>,
    /// `track BACKEND/SERVER`: the backend.
    pub(super) track: Option<String>,
}

/// Words with one argument that have no equivalent.
const WITH_ARGUMENT: &[&str] = &[
    "agent-addr",
    "agent-inter",
    "agent-port",
    "agent-send",
    "alpn",
    "check-alpn",
    "check-proto",
    "check-sni",
    "ciphers",
    "ciphersuites",
    "cookie",
    "crl-file",
    "curves",
    "client-sigalgs",
    "downinter",
    "error-limit",
    "fastinter",
    "hash-key",
    "idle-ping",
    "init-state",
    "log-bufsize",
    "log-proto",
    "max-reuse",
    "maxqueue",
    "minconn",
    "namespace",
    "npn",
    "observe",
    "on-error",
    "on-marked-up",
    "pool-conn-name",
    "pool-low-conn",
    "pool-max-conn",
    "pool-purge-delay",
    "proto",
    "proxy-v2-options",
    "redir",
    "sigalgs",
    "sni",
    "socks4",
    "source",
    "ssl-max-ver",
    "ssl-min-ver",
    "tcp-md5sig",
    "tcp-ut",
    "ws",
];

pub(super) fn read(line: &Line, defaults: &Options, notes: &mut Notes) -> Option<Server> {
    let is_template = line.word(0) == "server-template";
    let (name, at) = if is_template {
        let first = line.word(2).split('-').next().unwrap_or_default();
        let number = if line.word(2).contains('-') { first } else { "1" };
        (format!("{}{number}", line.word(1)), 3)
    } else {
        (line.word(1).to_owned(), 2)
    };
    let what = format!("{} {}", line.word(0), line.word(1));
    if is_template {
        notes.differs(
            line.number,
            &what,
            "one entry was written for it: with Patroni all members are found there; without, name each in `servers`",
        );
    }
    let Some((host, port)) = address(line.word(at)) else {
        notes.lost(line.number, &what, "its address is not a supported host and port");
        return None;
    };
    let mut options = defaults.clone();
    options.apply(
        line.words.get(at + 1..).unwrap_or_default(),
        line.number,
        &what,
        notes,
    );
    if options.is_disabled {
        notes.differs(
            line.number,
            &format!("{what} … disabled"),
            format!("it was written as enabled; `trunkline maint {name}` takes it out of service"),
        );
    }
    Some(Server {
        line: line.number,
        name,
        host,
        port,
        options,
    })
}

/// `host[:port]`; `None` for a socket, a variable or a port that depends on the client's.
fn address(written: &str) -> Option<(String, Option<u16>)> {
    let rest = match written.split_once('@') {
        Some(("ipv4" | "ipv6" | "tcp" | "tcp4" | "tcp6", rest)) => rest,
        Some(_) => return None,
        None => written,
    };
    let (host, port) = match rest.rsplit_once(':') {
        // An IPv6 address without a port needs its brackets.
        Some((host, _)) if host.starts_with('[') && !host.ends_with(']') => (rest, None),
        Some((host, port)) => (host, Some(words::port(port)?)),
        None => (rest, None),
    };
    let host = words::without_brackets(host);
    let fits = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '%');
    (!host.is_empty() && host.len() <= 253 && host.chars().all(fits)).then(|| (host.to_owned(), port))
}

impl Options {
    pub(super) fn apply(&mut self, options: &[String], line: usize, what: &str, notes: &mut Notes) {
        let mut rest = options.iter();
        while let Some(word) = rest.next() {
            let place = format!("{what} … {word}");
            let mut argument = || rest.next().map_or("", String::as_str);
            match word.as_str() {
                "check" => self.check = true,
                "no-check" => self.check = false,
                "port" => self.check_port = words::port(argument()),
                "addr" => self.check_host = Some(words::without_brackets(argument()).to_owned()),
                "check-ssl" => self.check_tls = true,
                "no-check-ssl" => self.check_tls = false,
                "inter" => self.interval = words::time(argument()).or(self.interval),
                "rise" => self.rise = argument().parse().ok(),
                "fall" => self.fall = argument().parse().ok(),
                "maxconn" => self.max_connections = argument().parse().ok(),
                "weight" => self.weight = argument().parse().ok().filter(|weight| *weight <= 256),
                "backup" => self.is_backup = true,
                "no-backup" => self.is_backup = false,
                "disabled" => self.is_disabled = true,
                "enabled" | "no-disabled" => self.is_disabled = false,
                "slowstart" => self.slow_start = words::time(argument()),
                "on-marked-down" => self.closes_sessions = argument() == "shutdown-sessions",
                "ssl" => self.is_tls = true,
                "no-ssl" => self.is_tls = false,
                "verify" => self.trusts_anybody = Some(argument() == "none"),
                "verifyhost" => self.verify_host = Some(argument().to_owned()),
                // `@system-ca`: the system's, which is the default here.
                "ca-file" => {
                    let file = Some(argument()).filter(|file| !file.starts_with('@'));
                    self.ca_file = file.map(str::to_owned);
                }
                "crt" => self.certificate = Some(argument().to_owned()),
                "track" => self.track = argument().split('/').next().map(str::to_owned),
                // Names are always resolved again, and members looked for.
                "init-addr" | "resolvers" | "resolve-prefer" | "resolve-opts" | "resolve-net" | "id"
                | "guid" => {
                    let _ = argument();
                }
                "stick" | "non-stick" | "no-tfo" | "no-send-proxy" | "no-send-proxy-v2"
                | "no-agent-check" => {}
                word => {
                    if WITH_ARGUMENT.contains(&word) {
                        let _ = argument();
                    }
                    notes.lost(line, &place, reason(word));
                }
            }
        }
    }
}

fn reason(word: &str) -> &'static str {
    match word {
        "fastinter" | "downinter" => {
            "while anything is suspicious Patroni is asked every `patroni.fast_poll_interval` (100ms)"
        }
        "send-proxy"
        | "send-proxy-v2"
        | "send-proxy-v2-ssl"
        | "send-proxy-v2-ssl-cn"
        | "check-send-proxy"
        | "proxy-v2-options" => {
            "PostgreSQL cannot read it; the client's address is passed on as a setting of the session"
        }
        "on-error" | "observe" | "error-limit" => {
            "what live sessions see of a server (refused, reset, 57P01 to 57P03) always counts at once"
        }
        "on-marked-up" => "sessions on a member that is fit stay there",
        "minconn" => "the limit on a member's connections is fixed",
        "maxqueue" => "the queue is bounded by route: `max_queue`",
        "agent-check" | "agent-addr" | "agent-inter" | "agent-port" | "agent-send" => {
            "members are drained by `trunkline drain`, or a tag in Patroni; an agent is not asked"
        }
        "cookie" => "is for HTTP",
        "source" | "usesrc" | "interface" | "namespace" => {
            "the kernel chooses the address the router connects from"
        }
        "tcp-ut" => "use `server.tcp_user_timeout` of the cluster",
        "check-sni" => "the name asked for is the host of Patroni's endpoint",
        "crl-file" => "lists of revoked certificates are not read for servers; those for clients are",
        "sni" | "alpn" | "check-alpn" | "npn" => "PostgreSQL's name and protocol are always sent",
        _ => "there is no such setting",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_all_forms() {
        for (written, expected) in [
            ("db1:5432", Some(("db1", Some(5432)))),
            ("10.0.0.1:5432", Some(("10.0.0.1", Some(5432)))),
            ("[::1]:5432", Some(("::1", Some(5432)))),
            ("::1:5432", Some(("::1", Some(5432)))),
            ("[::1]", Some(("::1", None))),
            ("ipv4@db1:1", Some(("db1", Some(1)))),
            ("db1", Some(("db1", None))),
            ("_pg._tcp.example.org", Some(("_pg._tcp.example.org", None))),
            ("${HOST}:5432", None),
            ("/run/pg", None),
            ("unix@/run/pg", None),
            ("db1:+1000", None),
            ("db1:0", None),
            ("", None),
        ] {
            let found = address(written);
            let found = found.as_ref().map(|(host, port)| (host.as_str(), *port));
            assert_eq!(found, expected, "{written}");
        }
    }
}
