//! `ldapurl`: the form of RFC 4516 without extensions, read as PostgreSQL (`OpenLDAP`'s historic
//! parser) does.

use super::message::Scope;
use super::{LdapOptions, LdapScheme};

/// Puts what the URL says among the options; its scope beside them, since no option says that. What
/// both say is refused: in PostgreSQL the later of the two wins.
pub(super) fn merge(mut options: LdapOptions, url: &str) -> Result<(LdapOptions, Scope), String> {
    let error = |why: &str| format!("ldapurl: \"{}\" {why}", url.escape_default());
    let (scheme, rest) = url.split_once("://").ok_or_else(|| error("is not a URL"))?;
    let scheme = match &*scheme.to_ascii_lowercase() {
        "ldap" => LdapScheme::Ldap,
        "ldaps" => LdapScheme::Ldaps,
        _ => return Err(error("is neither ldap:// nor ldaps://")),
    };
    let (path, mut query) = match rest.split_once('?') {
        Some((path, query)) => (path, query.split('?')),
        None => (rest, "".split('?')),
    };
    let (host, base) = path.split_once('/').unwrap_or((path, ""));
    let mut part = || {
        let text = query.next().filter(|text| !text.is_empty());
        text.map(|text| decode(text).ok_or_else(|| error("has a wrong %")))
            .transpose()
    };
    let attributes = part()?;
    let scope = match part()?.as_deref() {
        None | Some("base") => Scope::Base,
        Some("one") => Scope::One,
        Some("sub") => Scope::Subtree,
        Some(_) => return Err(error("has a scope that is not base, one or sub")),
    };
    let filter = part()?;
    if part()?.is_some() {
        return Err(error("has extensions, and none is known here"));
    }
    let attribute = attributes.map(|list| {
        let first = list.split(',').next().unwrap_or_default();
        first.to_owned()
    });
    if attribute.is_some() && filter.is_some() {
        return Err(error("has an attribute and a filter: only one can be used"));
    }
    let host = decode(host).ok_or_else(|| error("has a wrong %"))?;
    if host.contains(char::is_whitespace) {
        return Err(error("has a space in its host"));
    }

    put(&mut options.scheme, Some(scheme), "ldapscheme")?;
    put(
        &mut options.server,
        Some(host).filter(|host| !host.is_empty()),
        "ldapserver",
    )?;
    put(
        &mut options.basedn,
        Some(decode(base).ok_or_else(|| error("has a wrong %"))?),
        "ldapbasedn",
    )?;
    put(&mut options.searchattribute, attribute, "ldapsearchattribute")?;
    put(&mut options.searchfilter, filter, "ldapsearchfilter")?;
    if options.port.is_some() {
        return Err("ldapport cannot be used with ldapurl: put the port into the URL".to_owned());
    }
    Ok((options, scope))
}

fn put<T>(option: &mut Option<T>, value: Option<T>, name: &str) -> Result<(), String> {
    match value {
        Some(_) if option.is_some() => Err(format!("{name} cannot be used with an ldapurl that says it too")),
        Some(value) => {
            *option = Some(value);
            Ok(())
        }
        None => Ok(()),
    }
}

/// Undoes `%xx`; `None` where what follows the sign is no byte, or the whole is no UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let value = digit(bytes.next()?)? * 16 + digit(bytes.next()?)?;
                u8::try_from(value).ok()?
            }
            other => other,
        });
    }
    String::from_utf8(decoded).ok()
}
