//! Options of an authentication method: `name=value` after the method.

use bytes::Bytes;

use super::error::shown;
use super::tokens::Token;
use crate::auth::ldap::{LdapOptions, LdapScheme};
use crate::auth::rules::{ClientCertificate, ClientName, Connection, Method};
use crate::config::Secret;

/// What is wrong with an option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    #[error("authentication option not in name=value format")]
    Form,
    #[error("authentication option \"{0}\" is unknown or not supported")]
    Unknown(String),
    #[error("authentication option \"{option}\" is only valid for authentication method {methods}")]
    WrongMethod {
        option: &'static str,
        methods: &'static str,
    },
    #[error("{0} can only be configured for \"hostssl\" rows")]
    NotSsl(&'static str),
    #[error("invalid value for {0}")]
    Value(&'static str),
    #[error("{0} is not UTF-8")]
    Encoding(&'static str),
    #[error("clientcert only accepts \"verify-full\" when using \"cert\" authentication")]
    CertWithVerifyCa,
    #[error(
        "could not parse LDAP URL: it is not ldap[s]://host[:port]/basedn[?[attribute][?[scope][?[filter]]]]"
    )]
    LdapUrl,
    #[error("ldapurl cannot be combined with {0}")]
    LdapUrlAnd(&'static str),
    #[error("authentication method \"ldap\" requires argument \"ldapserver\" to be set")]
    LdapServer,
    #[error(
        "authentication method \"ldap\" requires argument \"ldapbasedn\", \"ldapprefix\", or \"ldapsuffix\" to be set"
    )]
    LdapMode,
    #[error("cannot mix options for simple bind and search+bind modes")]
    LdapModes,
    #[error("cannot use ldapsearchattribute together with ldapsearchfilter")]
    LdapSearch,
}

/// All options of a line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Options {
    pub(super) map: Option<Bytes>,
    pub(super) client_certificate: ClientCertificate,
    pub(super) client_name: ClientName,
    pub(super) ldap: LdapOptions,
}

const LDAP: &str = "ldap";

impl Options {
    /// `method` is that of the line, with no options yet.
    pub(super) fn parse<'a>(
        tokens: impl Iterator<Item = &'a Token>,
        connection: Connection,
        method: &Method,
    ) -> Result<Self, OptionError> {
        let mut options = Self::default();
        for token in tokens {
            let equals = token
                .text
                .iter()
                .position(|&byte| byte == b'=')
                .ok_or(OptionError::Form)?;
            let (name, value) = (&token.text[..equals], token.text.slice(equals + 1..));
            options.set(name, &value, connection, method)?;
        }
        match method {
            Method::Cert => options.client_certificate = ClientCertificate::VerifyFull,
            Method::Ldap(_) => options.ldap.check()?,
            _ => {}
        }
        Ok(options)
    }

    fn set(
        &mut self,
        name: &[u8],
        value: &Bytes,
        connection: Connection,
        method: &Method,
    ) -> Result<(), OptionError> {
        let only_ssl = |option| match connection {
            Connection::HostSsl => Ok(()),
            _ => Err(OptionError::NotSsl(option)),
        };
        match name {
            b"map" => {
                if !matches!(method, Method::Peer | Method::Cert) {
                    return Err(OptionError::WrongMethod {
                        option: "map",
                        methods: "peer, cert",
                    });
                }
                self.map = Some(value.clone());
            }
            b"clientcert" => {
                only_ssl("clientcert")?;
                self.client_certificate = match (&value[..], method) {
                    (b"verify-full", _) => ClientCertificate::VerifyFull,
                    (b"verify-ca", Method::Cert) => return Err(OptionError::CertWithVerifyCa),
                    (b"verify-ca", _) => ClientCertificate::VerifyCa,
                    _ => return Err(OptionError::Value("clientcert")),
                };
            }
            b"clientname" => {
                only_ssl("clientname")?;
                self.client_name = match &value[..] {
                    b"CN" => ClientName::Cn,
                    b"DN" => ClientName::Dn,
                    _ => return Err(OptionError::Value("clientname")),
                };
            }
            _ => {
                let option = LdapOptions::name(name).ok_or_else(|| OptionError::Unknown(shown(name)))?;
                if !matches!(method, Method::Ldap(_)) {
                    return Err(OptionError::WrongMethod {
                        option,
                        methods: LDAP,
                    });
                }
                self.ldap.set(option, value)?;
            }
        }
        Ok(())
    }
}

impl LdapOptions {
    fn name(name: &[u8]) -> Option<&'static str> {
        [
            "ldapserver",
            "ldapport",
            "ldapscheme",
            "ldaptls",
            "ldapprefix",
            "ldapsuffix",
            "ldapbasedn",
            "ldapbinddn",
            "ldapbindpasswd",
            "ldapsearchattribute",
            "ldapsearchfilter",
            "ldapurl",
        ]
        .into_iter()
        .find(|known| known.as_bytes() == name)
    }

    fn set(&mut self, option: &'static str, value: &Bytes) -> Result<(), OptionError> {
        if option == "ldapbindpasswd" {
            self.bindpasswd = Some(Secret::new(&value[..]));
            return Ok(());
        }
        let text = std::str::from_utf8(value)
            .map_err(|_| OptionError::Encoding(option))?
            .to_owned();
        match option {
            "ldapserver" => self.server = Some(text),
            "ldapport" => {
                let port = text.parse().ok().filter(|&port| port != 0);
                self.port = Some(port.ok_or(OptionError::Value(option))?);
            }
            "ldapscheme" => {
                self.scheme = Some(match &text[..] {
                    "ldap" => LdapScheme::Ldap,
                    "ldaps" => LdapScheme::Ldaps,
                    _ => return Err(OptionError::Value(option)),
                });
            }
            "ldaptls" => {
                self.tls = match &text[..] {
                    "1" => true,
                    "0" => false,
                    _ => return Err(OptionError::Value(option)),
                }
            }
            "ldapprefix" => self.prefix = Some(text),
            "ldapsuffix" => self.suffix = Some(text),
            "ldapbasedn" => self.basedn = Some(text),
            "ldapbinddn" => self.binddn = Some(text),
            "ldapsearchattribute" => self.searchattribute = Some(text),
            "ldapsearchfilter" => self.searchfilter = Some(text),
            _ => self.url = Some(text),
        }
        Ok(())
    }

    /// PostgreSQL's checks across options. Unlike there, a server must be named (no DNS SRV
    /// records), and `ldapurl` cannot be combined with the options that it stands for, where
    /// PostgreSQL lets the order decide.
    fn check(&self) -> Result<(), OptionError> {
        let url = self.url.as_deref().map(UrlParts::parse).transpose()?;
        if url.is_some() {
            for (is_set, option) in [
                (self.server.is_some(), "ldapserver"),
                (self.port.is_some(), "ldapport"),
                (self.scheme.is_some(), "ldapscheme"),
                (self.basedn.is_some(), "ldapbasedn"),
                (self.searchattribute.is_some(), "ldapsearchattribute"),
                (self.searchfilter.is_some(), "ldapsearchfilter"),
            ] {
                if is_set {
                    return Err(OptionError::LdapUrlAnd(option));
                }
            }
        }
        let url = url.unwrap_or_default();
        let has_server = self
            .server
            .as_ref()
            .is_some_and(|server| !server.trim().is_empty());
        if !has_server && !url.server {
            return Err(OptionError::LdapServer);
        }
        let has_base = self.basedn.is_some() || url.base;
        let has_attribute = self.searchattribute.is_some() || url.attribute;
        let has_filter = self.searchfilter.is_some() || url.filter;
        if self.prefix.is_some() || self.suffix.is_some() {
            let has_bind = self.binddn.is_some() || self.bindpasswd.is_some();
            if has_base || has_bind || has_attribute || has_filter {
                return Err(OptionError::LdapModes);
            }
        } else if !has_base {
            return Err(OptionError::LdapMode);
        }
        if has_attribute && has_filter {
            return Err(OptionError::LdapSearch);
        }
        Ok(())
    }

    /// In the order and form of `pg_hba_file_rules`, the password hidden. A URL is shown as it is
    /// written.
    pub(super) fn texts(&self) -> Vec<String> {
        let mut texts = Vec::new();
        let mut push = |name: &str, value: Option<&str>| {
            texts.extend(value.map(|value| format!("{name}={value}")));
        };
        push("ldapserver", self.server.as_deref());
        push("ldapport", self.port.map(|port| port.to_string()).as_deref());
        push("ldaptls", self.tls.then_some("true"));
        push("ldapprefix", self.prefix.as_deref());
        push("ldapsuffix", self.suffix.as_deref());
        push("ldapbasedn", self.basedn.as_deref());
        push("ldapbinddn", self.binddn.as_deref());
        push("ldapbindpasswd", self.bindpasswd.as_ref().map(|_| "***"));
        push("ldapsearchattribute", self.searchattribute.as_deref());
        push("ldapsearchfilter", self.searchfilter.as_deref());
        match self.url.as_deref() {
            Some(url) => push("ldapurl", Some(url)),
            // PostgreSQL's number for a search of the whole subtree, which it sets with any option.
            None => push("ldapscope", Some("2")),
        }
        texts
    }
}

/// Which parts an LDAP URL has (RFC 4516).
#[derive(Default)]
struct UrlParts {
    server: bool,
    base: bool,
    attribute: bool,
    filter: bool,
}

impl UrlParts {
    fn parse(url: &str) -> Result<Self, OptionError> {
        let rest = url
            .strip_prefix("ldap://")
            .or_else(|| url.strip_prefix("ldaps://"))
            .ok_or(OptionError::LdapUrl)?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let mut parts = path.split('?');
        let mut has_part = || parts.next().is_some_and(|part| !part.is_empty());
        let (base, attribute) = (has_part(), has_part());
        let scope = parts.next().unwrap_or("");
        if !matches!(scope, "" | "base" | "one" | "sub") {
            return Err(OptionError::LdapUrl);
        }
        Ok(Self {
            server: !host.is_empty() && !host.starts_with(':'),
            base,
            attribute,
            filter: parts.next().is_some_and(|part| !part.is_empty()),
        })
    }
}
