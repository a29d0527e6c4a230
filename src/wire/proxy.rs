//! Headers of the PROXY protocol, versions 1 and 2 ("The PROXY protocol", `HAProxy`'s
//! doc/proxy-protocol.txt): for which client a balancer connects.
//!
//! A header is at most [`MAX_HEADER`] bytes. [`Reader`] says how many of the bytes at hand belong
//! to it, so that none behind it is consumed.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::text::Escaped;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_1: &[u8; 6] = b"PROXY ";
/// Of version 1, its line end included.
const LONGEST_LINE: usize = 107;
/// Of version 2, before what its length counts.
const FIXED: usize = 16;
/// Of version 2; senders use a few hundred bytes.
pub(crate) const MAX_HEADER: usize = 4096;

const TLV_CRC32C: u8 = 0x03;
const TLV_SSL: u8 = 0x20;
const SSL_VERSION: u8 = 0x21;
const SSL_CN: u8 = 0x22;
/// Of `PP2_TYPE_SSL`: the client connected with TLS; it gave a certificate on this connection.
const CLIENT_SSL: u8 = 0x01;
const CLIENT_CERT_CONN: u8 = 0x02;

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// The client's address; `None` where the balancer connects for itself (`LOCAL`, as its checks
    /// do), does not know it (`UNKNOWN`), or the client is on a Unix socket of its host.
    pub source: Option<SocketAddr>,
    /// The client's TLS towards the balancer, as the balancer reports it.
    pub tls: Option<ProxiedTls>,
}

/// TLS that ended at a balancer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProxiedTls {
    /// As sent: `TLSv1.3`. Not validated.
    pub version: Vec<u8>,
    /// The common name of a certificate that the client gave and the balancer verified.
    pub common_name: Option<Vec<u8>>,
}

/// `TLSv1.3, CN "app"`.
impl fmt::Display for ProxiedTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Escaped(&self.version))?;
        match &self.common_name {
            Some(name) => write!(f, ", CN \"{}\"", Escaped(name)),
            None => Ok(()),
        }
    }
}

/// Why bytes are not a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    #[error("no PROXY protocol header, which this listener requires from this address")]
    Missing,
    #[error("a PROXY protocol header longer than {MAX_HEADER} bytes")]
    TooLong,
    #[error("a PROXY protocol header of an unknown version or command")]
    Unknown,
    #[error("a PROXY protocol header for something other than a stream")]
    NotAStream,
    #[error("a malformed PROXY protocol header")]
    Malformed,
    #[error("a PROXY protocol header with a wrong checksum")]
    Checksum,
}

/// Whether this looks like the beginning of a header where none is expected.
pub(crate) fn begins(bytes: &[u8]) -> bool {
    let is = |with: &[u8]| {
        bytes.len() >= VERSION_1.len() && bytes.iter().zip(with).all(|(one, other)| one == other)
    };
    is(VERSION_1) || is(SIGNATURE)
}

/// Collects one header.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    taken: Vec<u8>,
}

impl Reader {
    /// Returns how many of the bytes `at_hand` belong to the header, and the header once it is
    /// whole. Consume those bytes and do not pass them again. Nothing behind the header is ever
    /// taken.
    pub(crate) fn push(&mut self, at_hand: &[u8]) -> Result<(usize, Option<Header>), ProxyError> {
        let mut used = 0;
        loop {
            let wanted = self.wanted(&at_hand[used..])?;
            if wanted == 0 {
                return parse(&self.taken).map(|header| (used, Some(header)));
            }
            let some = wanted.min(at_hand.len() - used);
            if some == 0 {
                return Ok((used, None));
            }
            self.taken.extend_from_slice(&at_hand[used..used + some]);
            used += some;
        }
    }

    /// How many more bytes surely belong to the header; 0 once it is whole.
    fn wanted(&self, next: &[u8]) -> Result<usize, ProxyError> {
        let taken = &self.taken[..];
        let begins = |with: &[u8]| taken.iter().zip(with).all(|(one, other)| one == other);
        if begins(SIGNATURE) && !taken.is_empty() {
            let Some(length) = taken.get(14..FIXED) else {
                return Ok(FIXED - taken.len());
            };
            let whole = FIXED + usize::from(u16::from_be_bytes([length[0], length[1]]));
            return match whole {
                ..=MAX_HEADER => Ok(whole - taken.len()),
                _ => Err(ProxyError::TooLong),
            };
        }
        if !begins(VERSION_1) {
            return Err(ProxyError::Missing);
        }
        match taken.len() {
            // Byte by byte: if it does not begin like a header, nothing of it may be consumed.
            0..6 => Ok(1),
            _ if taken.ends_with(b"\r\n") => Ok(0),
            LONGEST_LINE.. => Err(ProxyError::Malformed),
            length => {
                let line = next.iter().position(|&byte| byte == b'\n').map(|at| at + 1);
                let left = LONGEST_LINE - length;
                Ok(line.unwrap_or(next.len()).clamp(1, left))
            }
        }
    }
}

fn parse(header: &[u8]) -> Result<Header, ProxyError> {
    match header.split_first_chunk::<12>() {
        Some((SIGNATURE, rest)) => version_2(header, rest),
        _ => version_1(header),
    }
}

fn version_1(header: &[u8]) -> Result<Header, ProxyError> {
    let line = header
        .strip_prefix(VERSION_1)
        .and_then(|line| line.strip_suffix(b"\r\n"))
        .ok_or(ProxyError::Malformed)?;
    if line == b"UNKNOWN" || line.starts_with(b"UNKNOWN ") {
        return Ok(Header::default());
    }
    let line = str::from_utf8(line).map_err(|_| ProxyError::Malformed)?;
    let fields: Vec<&str> = line.split(' ').collect();
    let [family, source, destination, source_port, destination_port] = fields[..] else {
        return Err(ProxyError::Malformed);
    };
    let address = |text: &str| match family {
        "TCP4" => text.parse().map(IpAddr::V4).ok(),
        "TCP6" => text.parse().map(IpAddr::V6).ok(),
        _ => None,
    };
    let port = |text: &str| match text.as_bytes() {
        [b'0', _, ..] | [b'+', ..] => None,
        _ => text.parse::<u16>().ok(),
    };
    let all = (
        address(source),
        address(destination),
        port(source_port),
        port(destination_port),
    );
    let (Some(source), Some(_), Some(port), Some(_)) = all else {
        return Err(ProxyError::Malformed);
    };
    Ok(Header {
        source: Some(SocketAddr::new(source, port)),
        tls: None,
    })
}

fn version_2(header: &[u8], rest: &[u8]) -> Result<Header, ProxyError> {
    let [version, family, _, _, body @ ..] = rest else {
        return Err(ProxyError::Malformed);
    };
    match version {
        // For the balancer itself; what stands in it is to be ignored.
        0x20 => return Ok(Header::default()),
        0x21 => {}
        _ => return Err(ProxyError::Unknown),
    }
    let (source, tlvs) = match family {
        0x00 => (None, body),
        0x11 => {
            let (block, tlvs) = body.split_first_chunk::<12>().ok_or(ProxyError::Malformed)?;
            let [a, b, c, d, _, _, _, _, high, low, _, _] = *block;
            let source = (Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low]));
            (Some(SocketAddr::from(source)), tlvs)
        }
        0x21 => {
            let (block, tlvs) = body.split_first_chunk::<36>().ok_or(ProxyError::Malformed)?;
            let (address, rest) = block.split_first_chunk::<16>().ok_or(ProxyError::Malformed)?;
            let port = u16::from_be_bytes([rest[16], rest[17]]);
            (Some(SocketAddr::from((Ipv6Addr::from(*address), port))), tlvs)
        }
        // A Unix socket of another host: nothing that is known here, and no process of ours.
        0x31 => (None, body.get(216..).ok_or(ProxyError::Malformed)?),
        0x12 | 0x22 | 0x32 => return Err(ProxyError::NotAStream),
        _ => return Err(ProxyError::Malformed),
    };
    let mut tls = None;
    for tlv in Tlvs(tlvs) {
        match tlv? {
            (TLV_CRC32C, value) => check(header, value)?,
            (TLV_SSL, value) => tls = self::tls(value)?,
            _ => {}
        }
    }
    Ok(Header { source, tls })
}

/// Type and value of each.
struct Tlvs<'a>(&'a [u8]);

impl<'a> Iterator for Tlvs<'a> {
    type Item = Result<(u8, &'a [u8]), ProxyError>;

    fn next(&mut self) -> Option<Self::Item> {
        let [kind, high, low, rest @ ..] = self.0 else {
            let is_over = std::mem::take(&mut self.0).is_empty();
            return (!is_over).then_some(Err(ProxyError::Malformed));
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let Some((value, rest)) = rest.split_at_checked(length) else {
            self.0 = &[];
            return Some(Err(ProxyError::Malformed));
        };
        self.0 = rest;
        Some(Ok((*kind, value)))
    }
}

fn tls(value: &[u8]) -> Result<Option<ProxiedTls>, ProxyError> {
    let [client, a, b, c, d, tlvs @ ..] = value else {
        return Err(ProxyError::Malformed);
    };
    let mut tls = ProxiedTls::default();
    // 0 is verified; any other value says why not.
    let is_verified = [a, b, c, d].into_iter().all(|&byte| byte == 0) && client & CLIENT_CERT_CONN != 0;
    for tlv in Tlvs(tlvs) {
        match tlv? {
            (SSL_VERSION, value) => tls.version = value.to_vec(),
            (SSL_CN, value) if is_verified => tls.common_name = Some(value.to_vec()),
            _ => {}
        }
    }
    Ok((client & CLIENT_SSL != 0).then_some(tls))
}

/// The checksum is of the whole header, with zeros in its own place. `sent` is a part of `header`.
fn check(header: &[u8], sent: &[u8]) -> Result<(), ProxyError> {
    let sent_sum: [u8; 4] = sent.try_into().map_err(|_| ProxyError::Malformed)?;
    let at = sent.as_ptr().addr() - header.as_ptr().addr();
    let mut crc = u32::MAX;
    for (index, &byte) in header.iter().enumerate() {
        let byte = if (at..at + 4).contains(&index) { 0 } else { byte };
        crc ^= u32::from(byte);
        for _ in 0..8 {
            // Castagnoli's polynomial, reflected.
            crc = (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
        }
    }
    if !crc == u32::from_be_bytes(sent_sum) {
        Ok(())
    } else {
        Err(ProxyError::Checksum)
    }
}

#[cfg(test)]
#[path = "proxy_tests.rs"]
mod tests;
