//! The clients that may connect, and how often.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;

/// What a listener asks of a connection before it looks at anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdmissionRules {
    pub addresses: Addresses,
    /// `None`: a header is not understood.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Sessions that may begin here per second; `None` is no separate limit.
    pub connection_rate: Option<NonZeroU32>,
}

/// The clients' addresses that may log in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addresses {
    /// Empty: all.
    pub allow: Vec<Network>,
    /// Counts before `allow`.
    pub deny: Vec<Network>,
}

impl Addresses {
    pub fn admit(&self, address: IpAddr) -> bool {
        let among = |networks: &[Network]| networks.iter().any(|network| network.contains(address));
        !among(&self.deny) && (self.allow.is_empty() || among(&self.allow))
    }
}

/// Balancers that say in a header of the PROXY protocol, version 1 or 2, for whom they connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// From these addresses a header must come; at least one network.
    pub trusted: Vec<Network>,
    /// Others are refused; else they are clients without a header.
    pub required: bool,
}

impl ProxyProtocol {
    /// Whether a connection from there begins with a header.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(address))
    }
}

/// Addresses that share a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// `address/prefix`, or an address alone. `Err` is what is wrong with it.
    /// `Err` is what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| "is not an address or a network")?;
        if address.to_canonical() != address {
            return Err("write an IPv4 address as IPv4");
        }
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            Some(digits) => Some(digits)
                .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|digits| digits.parse().ok())
                .filter(|prefix| *prefix <= bits)
                .ok_or("has a prefix length that does not fit its address")?,
        };
        let network = Self { address, prefix };
        if network.host_bits() == 0 {
            Ok(network)
        } else {
            Err("has bits beyond its prefix length")
        }
    }

    fn host_bits(self) -> u128 {
        let (bits, width) = numeric(self.address);
        let hosts = width - u32::from(self.prefix);
        bits & !u128::MAX.checked_shl(hosts).unwrap_or(0)
    }

    /// An IPv4 client of a dual-stack socket is an IPv4 client.
    pub fn contains(self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let ((own, width), (other, _)) = (numeric(self.address), numeric(address));
        let hosts = width - u32::from(self.prefix);
        self.address.is_ipv4() == address.is_ipv4() && (own ^ other).checked_shr(hosts).unwrap_or(0) == 0
    }
}

/// The address as a number, and its width in bits.
fn numeric(address: IpAddr) -> (u128, u32) {
    match address {
        IpAddr::V4(v4) => (v4.to_bits().into(), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}
