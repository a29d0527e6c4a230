//! `trunkline check -c FILE`: is the configuration valid? Reports every error at once, with path
//! and line.
//!
//! What needs the network (endpoints, the service account, its rights) is `--connect`, which begins
//! with [`load_and_report`] as well.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command's answer to the person who runs it"
)]

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::plain::{plain, plain_lines};
use super::words::counted;
use crate::auth::scram::MockSecret;
use crate::cluster::examine::{Depth, examine};
use crate::config::{
    self, BindAddress, Config, Leaf, ListenerMode, Pool, ReloadUnit, Route, Source, Verifiers, Words,
    shown_duration,
};
use crate::frontend::auth_policy::{AuthPolicy, PolicyContext};

/// Checks the file and says what it would do; with `connect` it also tries what the file names.
/// Exit code 1 if anything is wrong.
pub fn run(path: &Path, connect: bool) -> ExitCode {
    match load_and_report(path) {
        Some(config) if connect => try_out(&config),
        Some(_) => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    }
}

/// Endpoints, service account, its rights, and the look-up of verifiers, on every member.
fn try_out(config: &Config) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (mut errors, mut untried) = (0, 0);
    for cluster in config.clusters.values() {
        let routes = config.routes.values().map(|route| &**route);
        match runtime.block_on(examine(Arc::clone(cluster), &config.auth, routes, Depth::Needed)) {
            Ok(examined) => {
                for finding in examined.findings {
                    println!("{}", plain(&finding));
                    errors += usize::from(finding.is_bad());
                    untried += usize::from(finding.is_untried());
                }
            }
            Err(error) => {
                println!("FAILED  cluster {}: {}", cluster.name, plain(error));
                errors += 1;
            }
        }
    }
    if errors == 0 {
        println!("{}", all_is_well(untried));
        return ExitCode::SUCCESS;
    }
    eprintln!("{}: {} failed", config.path.display(), counted(errors, "check"));
    ExitCode::FAILURE
}

/// The last line, which promises no more than was tried.
fn all_is_well(untried: usize) -> String {
    match untried {
        0 => "everything answers; no client's login was tried".to_owned(),
        1 => "everything that was tried answers; 1 login to a server was not tried, and no client's login"
            .to_owned(),
        _ => format!(
            "everything that was tried answers; {untried} logins to servers were not tried, and no client's login"
        ),
    }
}

/// Loads the file and prints its summary and warnings, or its errors (then `None`).
pub fn load_and_report(path: &Path) -> Option<Config> {
    match config::load(path) {
        Ok(config) if !access_is_right(&config) => None,
        Ok(config) => {
            print!("{}", plain_lines(summary(&config)));
            for warning in config.warnings() {
                eprintln!("warning: {}", plain_lines(warning));
            }
            Some(config)
        }
        Err(errors) => {
            eprintln!("{}", plain_lines(&errors));
            eprintln!("{}: {}", path.display(), counted(errors.count(), "error"));
            None
        }
    }
}

/// Reads the files that decide which clients may log in, and reports every error in them.
fn access_is_right(config: &Config) -> bool {
    let around = PolicyContext::of(config);
    match AuthPolicy::load(&config.auth, around, &MockSecret::new(None)) {
        Ok(access) => {
            for warning in access.warnings(around) {
                eprintln!("warning: {}", plain_lines(warning));
            }
            true
        }
        Err(errors) => {
            eprintln!("{}", plain_lines(&errors));
            eprintln!(
                "{}: {}",
                config.path.display(),
                counted(errors.lines.len(), "error")
            );
            false
        }
    }
}

/// What would run: clusters, routes, listeners. No secrets.
fn summary(config: &Config) -> String {
    let mut text = format!("{} is valid\n", config.path.display());
    // Writing to a String does not fail.
    for (name, cluster) in &config.clusters {
        let source = match &cluster.source {
            Source::Patroni(patroni) => format!("Patroni at {}", patroni.endpoints.join(", ")),
            Source::Servers(servers) => {
                let shown: Vec<String> = servers
                    .iter()
                    .map(|s| format!("{} ({}:{})", s.name, s.host, s.port))
                    .collect();
                format!("servers {}", shown.join(", "))
            }
        };
        let source = match &cluster.etcd {
            Some(etcd) => format!("{source}, etcd at {}", etcd.endpoints.join(", ")),
            None => source,
        };
        let _ = writeln!(
            text,
            "cluster {name}: {source}, as {}",
            cluster.service_account.user
        );
    }
    for (name, route) in &config.routes {
        let _ = writeln!(
            text,
            "route {name}: {}, {} of {}{}",
            route.access,
            route.wanted(),
            route.cluster,
            route
                .pool
                .as_ref()
                .map_or_else(String::new, |pool| pool_in_words(route, pool))
        );
    }
    for listener in &config.listeners {
        let tls = match listener.tls {
            _ if listener.mode == ListenerMode::Tcp => "the server's (mode tcp)",
            tls => tls.word(),
        };
        let _ = writeln!(
            text,
            "listener {}: {}, route {}, TLS {tls}",
            listener.name, listener.address, listener.route
        );
    }
    let now = unix_now();
    for (part, leaf) in certificates(config) {
        let names = if leaf.names.is_empty() {
            leaf.subject.clone()
        } else {
            leaf.names.join(", ")
        };
        let _ = writeln!(
            text,
            "certificate {} ({part}): {names}; {}, until {}",
            leaf.cert_file.display(),
            days_in_words(leaf.days_left(now)),
            leaf.expires()
        );
    }
    let scheme = if config.http.tls.is_some() {
        "HTTPS"
    } else {
        "HTTP"
    };
    let _ = writeln!(text, "{scheme}: {}", listed(&config.http.addresses));
    let verifiers = match &config.auth.verifiers {
        Verifiers::UsersFile { path, .. } => format!("the file {}", path.display()),
        Verifiers::Query { .. } => "the cluster".to_owned(),
    };
    let _ = writeln!(text, "users: from {verifiers}");
    text
}

/// What matters most of a route's pool, defaults included, in the words of the configuration.
fn pool_in_words(route: &Route, pool: &Pool) -> String {
    let limits = &pool.limits;
    let or_off = |time: Option<std::time::Duration>| time.map_or_else(|| "off".to_owned(), shown_duration);
    let mut text = format!(
        "; pool: {}, max_connections {}",
        pool.mode, limits.max_connections
    );
    // Writing to a String does not fail.
    for (key, count) in [
        ("min_connections", limits.min_connections),
        ("reserve", limits.reserve),
    ] {
        if count > 0 {
            let _ = write!(text, ", {key} {count}");
        }
    }
    let _ = write!(
        text,
        ", idle_timeout {}, max_lifetime {}, queue_timeout {}",
        or_off(limits.idle_timeout),
        shown_duration(limits.max_lifetime),
        shown_duration(route.queue.timeout)
    );
    for (key, time) in [
        ("query_timeout", limits.query_timeout),
        ("transaction_timeout", limits.transaction_timeout),
        ("idle_transaction_timeout", limits.idle_transaction_timeout),
        ("batch_timeout", limits.batch_timeout),
    ] {
        if let Some(time) = time {
            let _ = write!(text, ", {key} {}", shown_duration(time));
        }
    }
    match pool.overrides.len() {
        0 => {}
        1 => text.push_str(", 1 override"),
        count => _ = write!(text, ", {count} overrides"),
    }
    text
}

/// Every certificate that the router shows, with the unit of the configuration it belongs to.
pub(super) fn certificates(config: &Config) -> Vec<(ReloadUnit, Leaf)> {
    let of_clients = config.tls.iter().flat_map(|tls| &tls.certificates);
    let mut all: Vec<(ReloadUnit, Leaf)> = of_clients
        .map(|served| (ReloadUnit::Tls, served.pair.leaf()))
        .collect();
    all.extend(
        config
            .http
            .tls
            .iter()
            .map(|tls| (ReloadUnit::Http, tls.leaf.clone())),
    );
    for cluster in config.clusters.values() {
        let pair = cluster.server_tls.client_certificate.iter();
        all.extend(pair.map(|pair| (ReloadUnit::ServerTls(Arc::clone(&cluster.name)), pair.leaf())));
    }
    all
}

/// `30 days left`, `expired 2 days ago`
pub(super) fn days_in_words(left: i64) -> String {
    match left {
        0.. => format!("{} left", counted(left, "day")),
        ago => format!("expired {} ago", counted(ago.unsigned_abs(), "day")),
    }
}

pub(super) fn unix_now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

/// Addresses as a person writes them, with commas.
fn listed(addresses: &[BindAddress]) -> String {
    addresses
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PLAIN: &str = "clusters:\n  main:\n    patroni: {endpoints: [\"http://db1:8008\"]}\n    service_account: {user: trunkline}\n";

    #[test]
    fn the_summary_names_clusters_routes_and_listeners() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trunkline.yaml");
        std::fs::write(&path, PLAIN).unwrap();
        let text = summary(&config::load(&path).unwrap());
        for expected in [
            "cluster main: Patroni at http://db1:8008, as trunkline",
            "route read-only: read-only, replica of main",
            "listener read-write: *:6432, route read-write, TLS off",
            "HTTP: *:6434",
        ] {
            assert!(text.contains(expected), "{expected} is not in:\n{text}");
        }
    }

    #[test]
    fn the_summary_shows_the_pool_of_a_route() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trunkline.yaml");
        for (pool, expected) in [
            ("", "route rw: read-write, leader of main\n"),
            (
                ", pool: {mode: session}",
                "route rw: read-write, leader of main; pool: session, max_connections 20, idle_timeout 10m, \
                 max_lifetime 1h, queue_timeout 10s\n",
            ),
            (
                ", queue_timeout: 2s, pool: {mode: transaction, max_connections: 5, min_connections: 1, reserve: 2, \
                 idle_timeout: 0, query_timeout: 90s, overrides: [{user: a, reserve: 3}, {user: b, reserve: 4}]}",
                "route rw: read-write, leader of main; pool: transaction, max_connections 5, min_connections 1, \
                 reserve 2, idle_timeout off, max_lifetime 1h, queue_timeout 2s, query_timeout 90s, 2 overrides\n",
            ),
        ] {
            let routes = format!(
                "routes:\n  rw: {{targets: [leader]{pool}}}\nlisteners: [{{name: a, address: \"*:1\", route: rw}}]\n"
            );
            std::fs::write(&path, format!("{PLAIN}{routes}")).unwrap();
            let text = summary(&config::load(&path).unwrap());
            assert!(text.contains(expected), "{expected} is not in:\n{text}");
        }
    }

    #[test]
    fn the_last_line_promises_no_more_than_was_tried() {
        assert_eq!(all_is_well(0), "everything answers; no client's login was tried");
        assert!(all_is_well(1).contains("1 login to a server was not tried"));
        assert!(all_is_well(2).contains("2 logins to servers were not tried"));
    }

    #[test]
    fn a_fault_fails_the_command() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trunkline.yaml");
        assert!(load_and_report(&path).is_none(), "a file that is not there");
        std::fs::write(&path, format!("{PLAIN}lock: {{}}\n")).unwrap();
        assert!(load_and_report(&path).is_none(), "an unknown key");
        std::fs::write(&path, PLAIN).unwrap();
        assert!(load_and_report(&path).is_some());
    }
}
