//! What `ldap` in a rule means (PostgreSQL's chapter "LDAP Authentication"): the options and their
//! cross checks, the name to bind as, the filter to search with.
//!
//! Guarantees: a user name is one value, never part of a name's or a filter's structure; an option
//! that would have no effect is refused.

pub(crate) mod message;
mod url;

use ldap3::asn1::{ASNTag, write};

use crate::config::Secret;
use message::Scope;

/// Nested parentheses in a filter: its parser is recursive.
const DEEPEST_FILTER: usize = 32;
/// Bytes of a filter before names are put in.
const LONGEST_FILTER: usize = 4096;
/// More servers than this are a mistake: each gets a share of the login's time.
const MOST_SERVERS: usize = 16;
/// Bytes of a user name; PostgreSQL truncates to 63, directories allow 256 at most.
const LONGEST_USER: usize = 256;

/// What stands for the user in `ldapsearchfilter`.
const PLACEHOLDER: &str = "$username";

/// `ldapscheme`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LdapScheme {
    #[default]
    Ldap,
    Ldaps,
}

/// The options of a rule, as written. Names are PostgreSQL's without `ldap`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LdapOptions {
    /// Hosts, separated by spaces, each with or without `:port`.
    pub server: Option<String>,
    pub port: Option<u16>,
    pub scheme: Option<LdapScheme>,
    /// `StartTLS`.
    pub tls: bool,
    pub prefix: Option<String>,
    pub suffix: Option<String>,
    pub basedn: Option<String>,
    pub binddn: Option<String>,
    pub bindpasswd: Option<Secret>,
    pub searchattribute: Option<String>,
    pub searchfilter: Option<String>,
    /// `ldap[s]://host[:port]/basedn[?[attribute][?[scope][?[filter]]]]`. It stands for server,
    /// port, scheme, base, attribute and filter, none of which is then set.
    pub url: Option<String>,
}

/// A directory and how to ask it about a user; checked.
#[derive(Debug, Clone)]
pub struct LdapSettings {
    servers: Vec<LdapServer>,
    encryption: Encryption,
    mode: Mode,
}

/// One server of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LdapServer {
    /// A name or an address, without brackets. Its certificate must be for it.
    pub host: String,
    pub port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encryption {
    /// Passwords travel in clear text.
    None,
    StartTls,
    /// TLS from the first byte (`ldaps`).
    Ldaps,
}

#[derive(Debug, Clone)]
pub(crate) enum Mode {
    /// Bind as prefix, user, suffix.
    Direct { prefix: String, suffix: String },
    /// Find the user's entry, then bind as it.
    Search(Search),
}

#[derive(Debug, Clone)]
pub(crate) struct Search {
    pub(crate) base: String,
    /// The name and password to search with; without them the search is anonymous.
    pub(crate) searcher: Option<(String, Secret)>,
    pub(crate) scope: Scope,
    filter: String,
}

/// A user name that is never sent to a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnfitName {
    #[error("the user name is empty, too long or not UTF-8")]
    Malformed,
    #[error("the user name has a character with a meaning in LDAP")]
    Character,
}

impl LdapSettings {
    /// Checks the options against each other, as PostgreSQL does when it reads the rule, and where
    /// it leaves a choice open (an option given twice, once in the URL) more strictly. An error is
    /// a sentence for the author of the rule.
    pub fn new(options: LdapOptions) -> Result<Self, String> {
        let (options, scope) = match options.url.clone() {
            Some(url) => {
                let (options, scope) = url::merge(options, &url)?;
                (options, Some(scope))
            }
            None => (options, None),
        };
        let encryption = match (options.scheme.unwrap_or_default(), options.tls) {
            (LdapScheme::Ldap, false) => Encryption::None,
            (LdapScheme::Ldap, true) => Encryption::StartTls,
            (LdapScheme::Ldaps, false) => Encryption::Ldaps,
            (LdapScheme::Ldaps, true) => {
                return Err("ldaptls cannot be used with ldaps: that is TLS already".to_owned());
            }
        };
        let default_port = match (options.port, encryption) {
            (Some(0), _) => return Err("ldapport is 1 to 65535".to_owned()),
            (Some(port), _) => port,
            (None, Encryption::Ldaps) => 636,
            (None, _) => 389,
        };
        let servers = servers(options.server.as_deref().unwrap_or_default(), default_port)?;
        Ok(Self {
            servers,
            encryption,
            mode: mode(options, scope)?,
        })
    }

    /// In the order in which they are tried; never empty.
    pub fn servers(&self) -> &[LdapServer] {
        &self.servers
    }

    pub fn encryption(&self) -> Encryption {
        self.encryption
    }

    pub(crate) fn mode(&self) -> &Mode {
        &self.mode
    }
}

fn servers(list: &str, default_port: u16) -> Result<Vec<LdapServer>, String> {
    let servers = list
        .split_ascii_whitespace()
        .map(|item| server(item, default_port))
        .collect::<Result<Vec<_>, _>>()?;
    match servers.len() {
        // PostgreSQL asks DNS for SRV records then.
        0 => Err("ldapserver is needed".to_owned()),
        1..=MOST_SERVERS => Ok(servers),
        _ => Err(format!("ldapserver has more than {MOST_SERVERS} servers")),
    }
}

/// Reads `host`, `host:port`, `[IPv6]`, `[IPv6]:port` or a bare IPv6 address.
fn server(item: &str, default_port: u16) -> Result<LdapServer, String> {
    let error = || {
        format!(
            "ldapserver: \"{}\" is not a host with or without a port",
            item.escape_default()
        )
    };
    let (host, port) = match item.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(error)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| error())?;
            match port {
                "" => (host, None),
                _ => (host, Some(port.strip_prefix(':').ok_or_else(error)?)),
            }
        }
        None if item.parse::<std::net::Ipv6Addr>().is_ok() => (item, None),
        None => match item.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (item, None),
        },
    };
    // Before any look-up: what cannot be a name in a certificate could never be verified.
    rustls::pki_types::ServerName::try_from(host).map_err(|_| error())?;
    let port = match port {
        Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or_else(error)?,
        None => default_port,
    };
    Ok(LdapServer {
        host: host.to_owned(),
        port,
    })
}

fn mode(options: LdapOptions, scope: Option<Scope>) -> Result<Mode, String> {
    let searches = options.basedn.is_some()
        || options.binddn.is_some()
        || options.bindpasswd.is_some()
        || options.searchattribute.is_some()
        || options.searchfilter.is_some()
        || scope.is_some();
    if options.prefix.is_some() || options.suffix.is_some() {
        if searches {
            return Err(
                "ldapprefix and ldapsuffix bind directly: they cannot be used with ldapbasedn, ldapbinddn, \
                        ldapbindpasswd, ldapsearchattribute, ldapsearchfilter or ldapurl, which search first"
                    .to_owned(),
            );
        }
        return Ok(Mode::Direct {
            prefix: options.prefix.unwrap_or_default(),
            suffix: options.suffix.unwrap_or_default(),
        });
    }
    let Some(base) = options.basedn else {
        return Err("ldap needs ldapbasedn, ldapprefix or ldapsuffix".to_owned());
    };
    let searcher = match (options.binddn, options.bindpasswd) {
        (None, None) => None,
        // A bind with a name and no password succeeds on many servers and proves nothing.
        (Some(name), Some(password)) if !name.is_empty() && !password.expose().is_empty() => {
            Some((name, password))
        }
        _ => return Err("ldapbinddn and ldapbindpasswd need each other".to_owned()),
    };
    let filter = match (options.searchattribute, options.searchfilter) {
        (Some(_), Some(_)) => {
            return Err("ldapsearchattribute cannot be used with ldapsearchfilter".to_owned());
        }
        (None, Some(filter)) => filter,
        (attribute, None) => {
            let attribute = attribute.unwrap_or_else(|| "uid".to_owned());
            if !attribute.starts_with(|c: char| c.is_ascii_alphanumeric())
                || !attribute
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-.;".contains(c))
            {
                return Err(format!(
                    "ldapsearchattribute: \"{}\" is not the name of an attribute",
                    attribute.escape_default()
                ));
            }
            format!("({attribute}={PLACEHOLDER})")
        }
    };
    check_filter(&filter)?;
    Ok(Mode::Search(Search {
        base,
        searcher,
        scope: scope.unwrap_or(Scope::Subtree),
        filter,
    }))
}

fn check_filter(filter: &str) -> Result<(), String> {
    let error = |why: &str| Err(format!("ldapsearchfilter: \"{}\" {why}", filter.escape_default()));
    if filter.len() > LONGEST_FILTER {
        return Err(format!("ldapsearchfilter is longer than {LONGEST_FILTER} bytes"));
    }
    let mut depth = 0usize;
    for byte in filter.bytes() {
        match byte {
            b'(' => depth += 1,
            b')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEEPEST_FILTER {
            return error("is nested too deeply");
        }
    }
    if !filter.contains(PLACEHOLDER) {
        // The same entry for every user: its password would let a client in as any user.
        return error("does not have $username");
    }
    if encode_filter(&filter.replace(PLACEHOLDER, "user")).is_none() {
        return error("is not a filter (RFC 4515)");
    }
    Ok(())
}

fn encode_filter(filter: &str) -> Option<Vec<u8>> {
    let tag = ldap3::parse_filter(filter).ok()?;
    let mut encoded = bytes::BytesMut::new();
    write::encode_into(&mut encoded, tag.into_structure()).ok()?;
    Some(encoded.to_vec())
}

impl Search {
    /// The filter for this user, as it travels (RFC 4511, 4.5.1.7).
    pub(crate) fn filter(&self, user: &[u8]) -> Result<Vec<u8>, UnfitName> {
        let user = plain(user)?;
        // As in PostgreSQL, names with these characters are refused. The router escapes the rest as
        // well.
        if user.contains(['*', '(', ')', '\\', '/']) {
            return Err(UnfitName::Character);
        }
        encode_filter(&self.filter.replace(PLACEHOLDER, &escape(user))).ok_or(UnfitName::Character)
    }
}

/// The name to bind as in the direct mode.
///
/// PostgreSQL puts any name between prefix and suffix, so that `bob,ou=staff` with the prefix
/// `uid=` is the entry of another user. The router refuses such a name. Escaping (RFC 4514) would
/// be right for distinguished names only: Active Directory also takes `user@domain` and
/// `DOMAIN\user`, where a backslash is the separator, not an escape.
pub(crate) fn direct_name(prefix: &str, user: &[u8], suffix: &str) -> Result<String, UnfitName> {
    let user = plain(user)?;
    let structure = user.contains([',', '+', '"', '\\', '<', '>', ';', '=', '/'])
        || user.starts_with(['#', ' '])
        || user.ends_with(' ')
        || (suffix.starts_with('@') && user.contains('@'));
    if structure {
        return Err(UnfitName::Character);
    }
    Ok(format!("{prefix}{user}{suffix}"))
}

fn plain(user: &[u8]) -> Result<&str, UnfitName> {
    let user = std::str::from_utf8(user).map_err(|_| UnfitName::Malformed)?;
    if user.is_empty() || user.len() > LONGEST_USER {
        return Err(UnfitName::Malformed);
    }
    if user.contains(char::is_control) {
        return Err(UnfitName::Character);
    }
    Ok(user)
}

/// Writes everything but letters and digits as `\xx`, which is always allowed.
fn escape(user: &str) -> String {
    use std::fmt::Write as _;
    user.bytes().fold(String::new(), |mut escaped, byte| {
        if byte.is_ascii_alphanumeric() {
            escaped.push(char::from(byte));
        } else {
            let _ = write!(escaped, "\\{byte:02x}");
        }
        escaped
    })
}

#[cfg(test)]
mod tests;
