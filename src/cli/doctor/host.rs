//! This host: descriptors, the kernel's settings, and whether its clock is kept.

use std::path::Path;

use super::place::Place;
use super::read_small;
use crate::cli::words::counted;
use crate::cluster::examine::Finding;
use crate::config::Config;
use crate::{listen, runtime};

pub(super) fn findings(config: &Config, place: &Place) -> Vec<Finding> {
    let mut findings = vec![descriptors(config, place), queue()];
    findings.extend(local_ports(config));
    findings.extend(tracked_connections(config));
    findings.push(workers(config));
    findings.push(kept_clock());
    findings
}

fn descriptors(config: &Config, place: &Place) -> Finding {
    let what = "descriptors".to_owned();
    let of_process = place.running.and_then(limit_of);
    let of_unit = place.unit.as_ref().and_then(super::unit::Unit::descriptors);
    let (limit, whose) = match (of_process, of_unit) {
        (Some(limit), _) => (limit, "of the running router"),
        (None, Some(limit)) => (limit, "of the unit (LimitNOFILE)"),
        (None, None) => match rlimit::getrlimit(rlimit::Resource::NOFILE) {
            Ok((_, hard)) => (hard, "of this shell (ulimit -Hn)"),
            Err(error) => return Finding::untried(what, format!("the limit cannot be read: {error}")),
        },
    };
    let shown = if limit == u64::MAX {
        "no limit".to_owned()
    } else {
        format!("limit {limit}")
    };
    if config.limits.max_clients == 0 {
        return Finding::good(
            what,
            format!("{shown} {whose}; limits.max_clients is 0, so this limit decides"),
        );
    }
    let needed = runtime::descriptors_needed(&config.limits);
    let clients = config.limits.max_clients;
    if limit < needed {
        return Finding::remark(
            what,
            format!("{shown} {whose}, and limits.max_clients ({clients}) needs {needed}"),
            format!("set LimitNOFILE={needed} in the unit (or `ulimit -Hn`), or lower limits.max_clients"),
        );
    }
    Finding::good(
        what,
        format!("{shown} {whose}; limits.max_clients ({clients}) needs {needed}"),
    )
}

/// The hard limit of a process.
fn limit_of(pid: u32) -> Option<u64> {
    let text = read_small(format!("/proc/{pid}/limits"))?;
    let row = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    match row.split_whitespace().nth(1)? {
        "unlimited" => Some(u64::MAX),
        hard => hard.parse().ok(),
    }
}

fn kernel(key: &str) -> Option<u64> {
    number(&read_small(Path::new("/proc/sys").join(key.replace('.', "/")))?)
}

fn number(text: &str) -> Option<u64> {
    text.parse().ok()
}

/// Connections that wait to be accepted.
fn queue() -> Finding {
    let what = "kernel: net.core.somaxconn".to_owned();
    let wanted = u64::from(listen::BACKLOG.unsigned_abs());
    match kernel("net.core.somaxconn") {
        Some(most) if most < wanted => Finding::remark(
            what,
            format!(
                "{most}, below the router's queue of {wanted}: in a rush of logins connections are dropped"
            ),
            format!("run `sysctl -w net.core.somaxconn={wanted}`, and keep it in /etc/sysctl.d"),
        ),
        Some(most) => Finding::good(what, most.to_string()),
        None => Finding::untried(what, "it cannot be read here"),
    }
}

/// Each connection to one member needs a local port of its own.
fn local_ports(config: &Config) -> Option<Finding> {
    let what = "kernel: net.ipv4.ip_local_port_range".to_owned();
    let Some(range) = read_small("/proc/sys/net/ipv4/ip_local_port_range") else {
        return Some(Finding::untried(what, "it cannot be read here"));
    };
    let mut ends = range.split_whitespace().filter_map(number);
    let (first, last) = (ends.next()?, ends.next()?);
    let ports = (last + 1).saturating_sub(first);
    let unpooled = |name: &str| {
        let mut routes = config.routes.values();
        routes.any(|route| &*route.cluster == name && route.pool.is_none())
    };
    let wanted = config
        .clusters
        .iter()
        .map(|(name, cluster)| match cluster.max_connections {
            0 if unpooled(name) => u64::from(config.limits.max_clients),
            most => u64::from(most),
        });
    let wanted = wanted.max()?;
    let shown = format!("{first} to {last}");
    Some(if wanted > ports {
        Finding::remark(
            what,
            format!(
                "{shown}: {}, and the router may open {} to one member",
                counted(ports, "port"),
                counted(wanted, "connection")
            ),
            "run `sysctl -w net.ipv4.ip_local_port_range=\"10000 65535\"`, use pools, or lower limits.max_clients",
        )
    } else {
        Finding::good(
            what,
            format!(
                "{shown}, enough for {} to one member",
                counted(wanted, "connection")
            ),
        )
    })
}

/// Where a firewall follows connections, its table limits them.
fn tracked_connections(config: &Config) -> Option<Finding> {
    let most = kernel("net.netfilter.nf_conntrack_max")?;
    let what = "kernel: net.netfilter.nf_conntrack_max".to_owned();
    let wanted = u64::from(config.limits.max_clients) * 2;
    Some(if wanted > most {
        Finding::remark(
            what,
            format!(
                "{most}, and {} may have {}",
                counted(config.limits.max_clients, "client"),
                counted(wanted, "connection")
            ),
            format!("run `sysctl -w net.netfilter.nf_conntrack_max={}`", wanted * 2),
        )
    } else {
        Finding::good(what, most.to_string())
    })
}

fn workers(config: &Config) -> Finding {
    let what = "workers".to_owned();
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let workers = config.workers;
    if workers > processors {
        return Finding::remark(
            what,
            format!(
                "{}, and this process may use {}",
                counted(workers, "worker"),
                counted(processors, "processor")
            ),
            "leave workers out: the default is half of the processors",
        );
    }
    Finding::good(
        what,
        format!("{workers}, with {}", counted(processors, "processor")),
    )
}

/// What keeps the clock tells it in files; other programs are not asked.
fn kept_clock() -> Finding {
    let what = "clock of this host".to_owned();
    if Path::new("/run/systemd/timesync/synchronized").exists() {
        return Finding::good(what, "systemd-timesyncd has synchronised it");
    }
    for (path, name) in [
        ("/run/chrony", "chrony"),
        ("/run/chronyd.pid", "chrony"),
        ("/run/ntpd.pid", "ntpd"),
    ] {
        if Path::new(path).exists() {
            return Finding::good(what, format!("{name} keeps it"));
        }
    }
    Finding::untried(
        what,
        "neither systemd-timesyncd, chrony nor ntpd says that it keeps it; the lines of Patroni and the servers compare it",
    )
}
