//! Memory: what all clients together may need, beside what there is.

use super::place::Place;
use super::read_small;
use crate::admin::memory_limit_of;
use crate::cli::words::counted;
use crate::cluster::examine::Finding;
use crate::config::{Config, ListenerMode, ListenerTls, SslMode};
use crate::runtime::MOST_KEPT_BYTES;

/// A session with nothing on its way: its task, its entry, and what its connections keep.
const SESSION: u64 = 16 * 1024;
/// What TLS keeps of one connection at most: a record that is read, and records that the other side
/// does not take.
const TLS: u64 = 80 * 1024;
/// The process itself.
const PROCESS: u64 = 64 * 1024 * 1024;

pub(super) fn finding(config: &Config, place: &Place) -> Finding {
    let of_process = place.running.and_then(|pid| memory_limit_of(Some(pid)));
    let of_unit = place
        .unit
        .as_ref()
        .and_then(|unit| bytes(unit.value("MemoryMax")?));
    let limits = [
        (of_process, "its control group gives the running router"),
        (of_unit, "the unit gives the router (MemoryMax)"),
        (of_host(), "this host has"),
    ];
    let least = limits
        .into_iter()
        .filter_map(|(limit, whose)| Some((limit?, whose)))
        .min_by_key(|(limit, _)| *limit);
    compared(u64::from(config.limits.max_clients), per_client(config), least)
}

/// If neither side takes what is sent to it.
fn per_client(config: &Config) -> u64 {
    let terminated = config
        .listeners
        .iter()
        .any(|listener| listener.mode != ListenerMode::Tcp && listener.tls != ListenerTls::Off);
    let to_servers = config
        .clusters
        .values()
        .any(|cluster| cluster.server_tls.sslmode != SslMode::Disable);
    let kept = u64::try_from(MOST_KEPT_BYTES).unwrap_or(u64::MAX);
    SESSION + kept + TLS * (u64::from(terminated) + u64::from(to_servers))
}

fn compared(clients: u64, per_client: u64, least: Option<(u64, &str)>) -> Finding {
    let what = "memory".to_owned();
    let Some((limit, whose)) = least else {
        return Finding::untried(what, "how much there is cannot be read here");
    };
    let there = format!("{whose} {}", shown(limit));
    if clients == 0 {
        return Finding::good(
            what,
            format!("{there}; limits.max_clients is 0, so this limits the clients"),
        );
    }
    let needed = PROCESS + clients.saturating_mul(per_client);
    let told = format!(
        "{there}; {} (limits.max_clients) with full buffers need {}",
        counted(clients, "client"),
        shown(needed)
    );
    if needed <= limit {
        return Finding::good(what, told);
    }
    let room = limit.saturating_sub(PROCESS) / per_client;
    Finding::remark(
        what,
        told,
        format!(
            "give the router more memory (MemoryMax of the unit), or lower limits.max_clients to {}",
            room.max(1)
        ),
    )
}

fn of_host() -> Option<u64> {
    let text = read_small("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// As systemd has it: `512M`, `1.5G`, a number of bytes. `None`: no limit, or a share of the host.
fn bytes(text: &str) -> Option<u64> {
    let (number, power) = match text.char_indices().last()? {
        (at, unit @ ('K' | 'M' | 'G' | 'T')) => (&text[..at], "KMGT".find(unit)? + 1),
        _ => (text, 0),
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let unit = 1_u64 << (10 * power);
    let tenths: u64 = part.get(..1)?.parse().ok()?;
    whole
        .parse::<u64>()
        .ok()?
        .checked_mul(unit)?
        .checked_add(unit / 10 * tenths)
}

fn shown(bytes: u64) -> String {
    let (unit, size) = if bytes >= 1 << 30 {
        ("GiB", 1_u64 << 30)
    } else {
        ("MiB", 1 << 20)
    };
    let tenths = u128::from(bytes) * 10 / u128::from(size);
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_need_is_compared_with_what_there_is() {
        let per_client = 256 * 1024;
        let told = |clients, limit: Option<u64>| {
            compared(clients, per_client, limit.map(|limit| (limit, "this host has"))).to_string()
        };
        assert_eq!(
            told(4000, Some(4 << 30)),
            "ok      memory: this host has 4.0 GiB; 4000 clients (limits.max_clients) with full buffers need 1.0 GiB"
        );
        let short = told(4000, Some(564 << 20));
        assert!(
            short.starts_with("remark  memory: this host has 564.0 MiB; 4000 clients"),
            "{short}"
        );
        assert!(short.ends_with("lower limits.max_clients to 2000"), "{short}");
        assert!(told(0, Some(1 << 30)).contains("max_clients is 0"));
        assert!(told(1, None).starts_with("untried memory"));
        assert!(told(1, Some(1)).ends_with("lower limits.max_clients to 1"));
    }

    #[test]
    fn sizes_of_units() {
        assert_eq!(bytes("512M"), Some(512 << 20));
        assert_eq!(bytes("1.5G"), Some((1 << 30) + (1_u64 << 30) / 10 * 5));
        assert_eq!(bytes("1048576"), Some(1 << 20));
        for unlimited in ["infinity", "50%", "", "G"] {
            assert_eq!(bytes(unlimited), None, "{unlimited}");
        }
        assert!(of_host().is_some_and(|bytes| bytes > 64 << 20));
    }
}
