//! The clients that may connect to a listener: addresses, the PROXY protocol, connections per
//! second.

use std::num::NonZeroU32;

use crate::config::fields::{Field, Section};
use crate::config::model::{Addresses, AdmissionRules, Network, ProxyProtocol};

/// The part of `listeners[]` that says who may knock. `is_local`: it is a Unix socket, which has no
/// addresses.
pub(super) fn read(listener: &Section<'_>, is_local: bool) -> AdmissionRules {
    if is_local {
        for key in ["allow", "deny", "proxy_protocol"] {
            if let Some(field) = listener.field(key) {
                field.error("has no effect on a Unix socket, whose clients have no addresses");
            }
        }
    }
    let networks = |key| {
        let field = listener.field(key);
        field.map(|field| networks(&field)).unwrap_or_default()
    };
    AdmissionRules {
        addresses: Addresses {
            allow: networks("allow"),
            deny: networks("deny"),
        },
        proxy_protocol: proxy_protocol(listener),
        connection_rate: rate(listener),
    }
}

/// `proxy_protocol` of a listener, or of `http`.
pub(super) fn proxy_protocol(of: &Section<'_>) -> Option<ProxyProtocol> {
    let section = of.section("proxy_protocol");
    if !section.present() {
        return None;
    }
    let trusted = section.required("trusted").map(|field| networks(&field));
    Some(ProxyProtocol {
        trusted: trusted.unwrap_or_default(),
        required: section.truth("required"),
    })
}

pub(super) fn networks(field: &Field<'_>) -> Vec<Network> {
    let mut networks = Vec::new();
    for field in field.list() {
        let Some(text) = field.text() else { continue };
        match Network::parse(text) {
            Ok(network) => networks.push(network),
            Err(message) => {
                field.error_with_hint(message, "as in `10.0.0.0/8`, `10.1.2.3` or `\"2001:db8::/32\"`");
            }
        }
    }
    networks
}

/// `connection_rate`: `500/s`, or `0` for no limit.
pub(super) fn rate(of: &Section<'_>) -> Option<NonZeroU32> {
    let field = of.field("connection_rate")?;
    let hint = "a whole number per second, as in `500/s`, or `0` for no limit";
    let Some(text) = field.written_text() else {
        if field.scalar()? != 0 {
            field.error_with_hint("is not a rate", hint);
        }
        return None;
    };
    let digits = text.strip_suffix("/s").unwrap_or_default();
    let number = Some(digits)
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse::<u32>().ok());
    match number.and_then(NonZeroU32::new) {
        Some(rate) if rate.get() <= field.most_rate() => return Some(rate),
        Some(_) => field.error(format!("must be at most {}/s", field.most_rate())),
        None => field.error_with_hint("is not a rate", hint),
    }
    None
}
