//! Addresses, masks and host names as `pg_hba.conf` has them, read as PostgreSQL on Linux reads
//! them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::error::{HbaErrorKind, shown};
use super::tokens::Token;
use crate::auth::rules::{AddressMatch, Network};

/// Reads the address column; `mask` gives the next field, which only an address without prefix
/// length needs.
pub(super) fn parse<'a>(
    token: &Token,
    mask: impl FnOnce() -> Result<&'a Token, HbaErrorKind>,
) -> Result<AddressMatch, HbaErrorKind> {
    for (keyword, address) in [
        (&b"all"[..], AddressMatch::All),
        (b"samehost", AddressMatch::SameHost),
        (b"samenet", AddressMatch::SameNet),
    ] {
        if token.is_keyword(keyword) {
            return Ok(address);
        }
    }
    let (text, length) = match token.text.iter().position(|&byte| byte == b'/') {
        Some(slash) => (&token.text[..slash], Some(&token.text[slash + 1..])),
        None => (&token.text[..], None),
    };
    let Some(address) = numeric(text) else {
        if has_scope(text) {
            return Err(HbaErrorKind::Scope(shown(text)));
        }
        return match length {
            Some(_) => Err(HbaErrorKind::HostWithMask(shown(&token.text))),
            None => Ok(AddressMatch::Host(token.text.clone())),
        };
    };
    if let Some(length) = length {
        let network = number(length).and_then(|length| Network::new(address, u8::try_from(length).ok()?));
        let network = network.ok_or_else(|| HbaErrorKind::PrefixLength(shown(&token.text)))?;
        return Ok(AddressMatch::Network(network));
    }
    let text = &mask()?.text;
    let mask = numeric(text).ok_or_else(|| HbaErrorKind::Mask(shown(text)))?;
    let network = Network::with_mask(address, mask).ok_or(HbaErrorKind::MaskFamily)?;
    Ok(AddressMatch::Network(network))
}

/// An address in figures, as `getaddrinfo` takes them: for IPv4 that is everything `inet_aton`
/// knows.
fn numeric(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let v4 = inet_aton(text).map(IpAddr::V4);
    v4.or_else(|| text.parse::<Ipv6Addr>().ok().map(IpAddr::V6))
}

fn has_scope(text: &[u8]) -> bool {
    text.iter()
        .position(|&byte| byte == b'%')
        .is_some_and(|at| numeric(&text[..at]).is_some_and(|address| address.is_ipv6()))
}

/// One to four numbers, decimal, octal or hexadecimal; the last one fills the bytes that are left.
fn inet_aton(text: &str) -> Option<Ipv4Addr> {
    let parts: Vec<&str> = text.splitn(5, '.').collect();
    let (last, leading) = parts.split_last()?;
    if leading.len() > 3 {
        return None;
    }
    let mut bits = 0_u32;
    for part in leading {
        bits = bits << 8 | u32::from(u8::try_from(c_number(part)?).ok()?);
    }
    let left = 32 - 8 * leading.len();
    let last = c_number(last)?;
    let leading_bits = u64::from(bits) << left;
    (last >> left == 0).then(|| Ipv4Addr::from_bits(u32::try_from(leading_bits | last).unwrap_or(u32::MAX)))
}

/// A number as in C, without a sign, below 2^32.
fn c_number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text, 10),
    };
    if !digits.starts_with(|digit: char| digit.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(digits, radix).ok().map(u64::from)
}

/// What C's `strtol` makes of the whole of `text`, base 10; only numbers that can be a prefix
/// length.
fn number(text: &[u8]) -> Option<u32> {
    let start = text
        .iter()
        .position(|byte| !matches!(byte, b' ' | b'\t'..=b'\r'))?;
    let (is_negative, digits) = match text[start..].split_first()? {
        (b'-', digits) => (true, digits),
        (b'+', digits) => (false, digits),
        _ => (false, &text[start..]),
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u32 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    (!is_negative || number == 0).then_some(number)
}

/// As the C library prints an address.
pub(crate) fn text(address: IpAddr) -> String {
    match address {
        IpAddr::V6(v6) if v6.segments()[..6] == [0; 6] && v6.segments()[6] != 0 => {
            let [.., a, b, c, d] = v6.octets();
            format!("::{}", Ipv4Addr::new(a, b, c, d))
        }
        _ => address.to_string(),
    }
}
