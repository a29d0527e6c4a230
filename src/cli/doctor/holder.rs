//! Which process listens on a port, by the kernel's tables. Only root sees the processes of other
//! users.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A process that listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) pid: u32,
    pub(super) name: String,
}

const LISTENS: &str = "0A";

/// The process that has the port, at `address` or at all addresses.
pub(super) fn of(address: Option<IpAddr>, port: u16) -> Option<Holder> {
    let mut inodes = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = fs::read_to_string(table).unwrap_or_default();
        inodes.extend(
            text.lines()
                .skip(1)
                .filter_map(|line| inode(line, address, port).map(str::to_owned)),
        );
    }
    if inodes.is_empty() {
        return None;
    }
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find_map(|pid| {
        let mut descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
        let has_it = descriptors.any(|descriptor| {
            let link = fs::read_link(descriptor.path());
            link.is_ok_and(|link| links.iter().any(|wanted| link.as_os_str() == wanted.as_str()))
        });
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        has_it.then(|| Holder {
            pid,
            name: name.trim().to_owned(),
        })
    })
}

/// The inode of a row that listens there.
fn inode(row: &str, address: Option<IpAddr>, port: u16) -> Option<&str> {
    let fields: Vec<&str> = row.split_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    let (ip, number) = local.split_once(':')?;
    if *state != LISTENS || u16::from_str_radix(number, 16).ok()? != port {
        return None;
    }
    let ip = parsed(ip)?;
    let meets = address.is_none_or(|wanted| ip.is_unspecified() || wanted.is_unspecified() || ip == wanted);
    meets.then_some(inode)
}

/// Words of four bytes, each in this host's order.
fn parsed(hex: &str) -> Option<IpAddr> {
    let word = |index: usize| {
        let word = hex.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
    };
    if hex.len() == 8 {
        return Some(Ipv4Addr::from(word(0)?).into());
    }
    let bytes = [word(0)?, word(1)?, word(2)?, word(3)?].concat();
    let address = Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?);
    Some(IpAddr::from(address).to_canonical())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_port_that_this_process_has_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let found = of(Some(address.ip()), address.port()).unwrap();
        assert_eq!(found.pid, std::process::id());
        assert!(!found.name.is_empty());
        assert_eq!(
            of(None, address.port()).map(|found| found.pid),
            Some(std::process::id())
        );
        let elsewhere = "127.0.0.99".parse().unwrap();
        assert_eq!(of(Some(elsewhere), address.port()), None);
        drop(listener);
        assert_eq!(of(Some(address.ip()), address.port()), None);
    }

    #[test]
    fn addresses_of_the_kernels_tables() {
        if cfg!(target_endian = "little") {
            assert_eq!(parsed("0100007F"), Some("127.0.0.1".parse().unwrap()));
            assert_eq!(
                parsed("00000000000000000000000001000000"),
                Some("::1".parse().unwrap())
            );
        }
        assert_eq!(parsed("xyz"), None);
    }
}
