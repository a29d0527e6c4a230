//! Values, and what is said of directives that have no equivalent.

use std::time::Duration;

use super::parse::Line;
use crate::cli::import::notes::Notes;

/// A number and a unit, milliseconds by default.
pub(super) fn time(text: &str) -> Option<Duration> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let micros: u64 = match unit {
        "us" => 1,
        "" | "ms" => 1000,
        "s" => 1_000_000,
        "m" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return None,
    };
    number.checked_mul(micros).map(Duration::from_micros)
}

/// The number after the first word.
pub(super) fn number(line: &Line, notes: &mut Notes) -> Option<u64> {
    let number = line.word(1).parse().ok();
    if number.is_none() {
        notes.lost(line.number, line.word(0), "is not a number");
    }
    number
}

/// A port from 1 to 65535, digits only.
pub(super) fn port(text: &str) -> Option<u16> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| *port > 0 && is_number)
}

pub(super) fn without_brackets(host: &str) -> &str {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    bare.unwrap_or(host)
}

/// First words whose second says what they are about.
const TWO_WORDS: &[&str] = &[
    "http-check",
    "no",
    "option",
    "stats",
    "tcp-check",
    "tcp-request",
    "tcp-response",
    "timeout",
];

/// Notes a directive that is not in what is written; a few are the case by themselves.
pub(super) fn without_equivalent(line: &Line, notes: &mut Notes) {
    let first = line.word(0);
    let what = if TWO_WORDS.contains(&first) && line.words.len() > 1 {
        format!("{first} {}", line.word(1))
    } else {
        first.to_owned()
    };
    if let Some(why) = reason(&what) {
        notes.lost(line.number, &what, why);
    }
}

/// Why it has no equivalent, and what instead; `None` where it is the case without being said.
fn reason(what: &str) -> Option<&'static str> {
    Some(match what {
        "option redispatch"
        | "option tcpka"
        | "option clitcpka"
        | "option srvtcpka"
        | "option tcp-smart-accept"
        | "option tcp-smart-connect"
        | "option log-health-checks"
        | "option tcplog"
        | "option dontlognull"
        | "option logasap"
        | "option abortonclose"
        | "option contstats"
        | "option nolinger"
        | "daemon"
        | "description"
        | "option http-server-close"
        | "option httplog"
        | "option forwardfor"
        | "option log-separate-errors"
        | "option http-keep-alive"
        | "option httpclose"
        | "option dontlog-normal"
        | "timeout http-request"
        | "timeout http-keep-alive"
        | "unique-id-format"
        | "errorfile"
        | "errorloc"
        | "option http-use-htx" => {
            return None;
        }
        "timeout client" | "timeout server" | "timeout tunnel" | "clitimeout" | "srvtimeout" => {
            "idle sessions are not cut; lost peers are noticed by `server.keepalive` and \
             `server.tcp_user_timeout`, and PostgreSQL has `idle_session_timeout`"
        }
        "timeout client-fin" | "timeout server-fin" => {
            "a half-closed connection is limited by `server.tcp_user_timeout`"
        }
        "timeout" => "there is no such timeout",
        "retries" => {
            "a connection that fails is tried on the next member that is fit, within `server.connect_timeout` for each"
        }
        "log" | "log-format" | "log-tag" | "log-send-hostname" | "error-log-format" => {
            "the log goes to standard error; `log.format` and `log.level` say how"
        }
        "option splice-auto" | "option splice-request" | "option splice-response" => {
            "how bytes are moved is not a setting"
        }
        "option persist" | "stick" | "stick-table" | "cookie" | "persist" | "appsession" => {
            "the closest is `balance: source_hash`"
        }
        "hash-type" | "hash-balance-factor" => {
            "`balance: source_hash` moves as few clients as consistent hashing does"
        }
        "fullconn" => "the limit on a member's connections is fixed",
        "source" => "the kernel chooses the address the router connects from",
        "option allbackups" => "members of one tier of `targets` are always treated alike",
        "option tcp-check" | "tcp-check" | "external-check" => "members are probed by SQL",
        "dispatch" | "transparent" | "option transparent" => "servers are named in `clusters`",
        "user" | "group" | "uid" | "gid" | "chroot" | "pidfile" | "ulimit-n" | "setcap" => {
            "is configured in the service manager"
        }
        "stats socket" | "stats timeout" => {
            "use `trunkline members`, `drain`, `sessions` and so on, or the HTTP API"
        }
        "nbthread" | "nbproc" | "cpu-map" | "thread-groups" => {
            "`workers` is the number of threads that relay; its default fits most hosts"
        }
        "maxconnrate" | "maxsessrate" | "maxsslrate" => "use `limits.connection_rate`",
        "ssl-default-bind-options"
        | "ssl-default-bind-ciphers"
        | "ssl-default-bind-ciphersuites"
        | "ssl-default-server-options"
        | "ssl-default-server-ciphers"
        | "ssl-default-server-ciphersuites"
        | "ca-base"
        | "crt-base"
        | "tune.ssl.default-dh-param"
        | "ssl-dh-param-file" => {
            "TLS is 1.2 and 1.3 with good ciphers; `tls.min_version` raises it, `server_tls` is TLS to the servers"
        }
        "hard-stop-after" | "grace" => "use `shutdown.grace`",
        "server-state-file" | "server-state-base" | "load-server-state-from-file" => "use `state_file`",
        "spread-checks" | "max-spread-checks" => "probes are always spread",
        "tcp-request inspect-delay" | "tcp-response inspect-delay" => "nothing is inspected",
        "tcp-request connection" | "tcp-request session" | "tcp-request content" => {
            "of these rules only `accept`, `reject` and `expect-proxy` by the client's address are supported"
        }
        "email-alert" | "mailers" => "alerts are made from `/metrics`",
        "http-check disable-on-404" => "members are drained by `trunkline drain`, or a tag in Patroni",
        "http-check comment" => return None,
        _ if what.starts_with("tune.") => "buffers and limits of this kind are not settings",
        _ if what.starts_with("lua-") => "there are no scripts",
        _ if what.starts_with("http-") || what.starts_with("capture") => "is for HTTP",
        _ => "is unknown to the importer",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, expected) in [
            ("4s", Some(4_000_000)),
            ("30m", Some(1_800_000_000)),
            ("2000", Some(2_000_000)),
            ("5ms", Some(5000)),
            ("7us", Some(7)),
            ("1d", Some(86_400_000_000)),
            ("", None),
            ("s", None),
            ("1.5s", None),
            ("99999999999999999999", None),
            ("18446744073709551615d", None),
        ] {
            assert_eq!(time(text), expected.map(Duration::from_micros), "{text}");
        }
    }
}
