//! The addresses of this host, for `samehost` and `samenet`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::sys::socket::SockaddrStorage;
use tokio::time::Instant;

/// The addresses are read again when they are older than this, because they change, for instance
/// when a virtual address moves in a failover.
const REUSED_FOR: Duration = Duration::from_secs(1);

type Addresses = Vec<(IpAddr, IpAddr)>;

static READ: Mutex<Option<(Instant, Addresses)>> = Mutex::new(None);

/// Every address of every interface, with its netmask; at most a second old.
pub fn interfaces() -> io::Result<Vec<(IpAddr, IpAddr)>> {
    let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((at, addresses)) = &*read
        && at.elapsed() < REUSED_FOR
    {
        return Ok(addresses.clone());
    }
    let addresses: Addresses = getifaddrs()?
        .filter_map(|interface| address_and_mask(&interface))
        .collect();
    *read = Some((Instant::now(), addresses.clone()));
    Ok(addresses)
}

fn address_and_mask(interface: &InterfaceAddress) -> Option<(IpAddr, IpAddr)> {
    let address = interface.address.as_ref().and_then(ip)?;
    Some((address, mask(address, interface.netmask.as_ref().and_then(ip))))
}

/// If the mask is missing, empty or of another family, the net contains only the address, as in
/// PostgreSQL (`pg_foreach_ifaddr`).
fn mask(address: IpAddr, given: Option<IpAddr>) -> IpAddr {
    match given {
        Some(mask) if mask.is_ipv4() == address.is_ipv4() && !mask.is_unspecified() => mask,
        _ if address.is_ipv4() => Ipv4Addr::BROADCAST.into(),
        _ => Ipv6Addr::from_bits(u128::MAX).into(),
    }
}

/// `None` for an address of another kind, for instance of the link layer.
fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(v4.ip().into());
    }
    address.as_sockaddr_in6().map(|v6| v6.ip().into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_loopback_interface_has_its_net() {
        let loopback = (
            Ipv4Addr::LOCALHOST.into(),
            IpAddr::from(Ipv4Addr::new(255, 0, 0, 0)),
        );
        for _ in 0..2 {
            assert!(interfaces().unwrap().contains(&loopback));
        }
    }

    #[test]
    fn a_mask_of_another_family_or_an_empty_mask_is_replaced() {
        let v4: IpAddr = [10, 0, 0, 1].into();
        let v6: IpAddr = Ipv6Addr::LOCALHOST.into();
        let slash_8: IpAddr = [255, 0, 0, 0].into();
        let one_v4: IpAddr = [255, 255, 255, 255].into();
        let one_v6: IpAddr = [0xffff_u16; 8].into();
        assert_eq!(mask(v4, Some(slash_8)), slash_8);
        for given in [None, Some([0, 0, 0, 0].into()), Some(one_v6)] {
            assert_eq!(mask(v4, given), one_v4, "{given:?}");
        }
        for given in [None, Some([0_u16; 8].into()), Some(slash_8)] {
            assert_eq!(mask(v6, given), one_v6, "{given:?}");
        }
    }
}
