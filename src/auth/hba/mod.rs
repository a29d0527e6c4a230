//! `pg_hba.conf`, as PostgreSQL 18 reads it: syntax, includes and checks (PostgreSQL documentation,
//! "The `pg_hba.conf` File"; `src/backend/libpq/hba.c`).
//!
//! Every error is reported, each with file and line, and one is enough to refuse the whole: a line
//! that is skipped may be one that rejects a client. The router refuses more than PostgreSQL:
//! methods and options that it does not have, regular expressions that it might read differently
//! ([`regex`]), addresses with a scope, names longer than any role's or database's, zero bytes,
//! fields that consist of empty included files. No IO: files come through [`Files`].

mod address;
pub mod error;
pub mod options;
pub mod regex;
pub mod rows;
pub(super) mod tokens;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::rules::{AddressMatch, Connection, DatabaseMatch, Method, Rule, RuleOrigin, Rules, UserMatch};
use crate::wire::startup::MAX_NAME;
use error::shown;
pub use error::{HbaError, HbaErrorKind};
use options::Options;
use regex::Pattern;
pub use tokens::Files;
use tokens::Line;
pub(super) use tokens::Token;

/// A file that has been read, and those it includes.
#[derive(Debug)]
pub struct HbaFile {
    /// The rule or the error of each line, in order.
    lines: Vec<Result<Rule, HbaError>>,
    watched: BTreeSet<PathBuf>,
}

/// Reads a file and its includes, with limits on bytes, files and depth.
pub fn read(files: &dyn Files, path: &Path) -> HbaFile {
    let tokens = tokens::read(files, path);
    let mut lines: Vec<_> = tokens.lines.iter().map(rule).collect();
    // As in PostgreSQL: a file without rules is a mistake.
    if lines.is_empty() {
        lines.push(Err(HbaError {
            path: path.into(),
            line: 0,
            kind: HbaErrorKind::NoEntries,
        }));
    }
    HbaFile {
        lines,
        watched: tokens.watched,
    }
}

impl HbaFile {
    /// The files looked for, found or not, and the directories listed: a change in any may change
    /// the rules.
    pub fn watched(&self) -> &BTreeSet<PathBuf> {
        &self.watched
    }

    /// The rules, or every error.
    pub fn rules(self) -> Result<Rules, Vec<HbaError>> {
        let mut rules = Vec::new();
        let mut errors = Vec::new();
        for line in self.lines {
            match line {
                Ok(rule) => rules.push(rule),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() {
            Ok(Rules::new(rules))
        } else {
            Err(errors)
        }
    }

    /// Rules and errors, in the order of the lines.
    pub fn lines(&self) -> impl Iterator<Item = &Result<Rule, HbaError>> {
        self.lines.iter()
    }

    pub fn errors(&self) -> impl Iterator<Item = &HbaError> {
        self.lines.iter().filter_map(|line| line.as_ref().err())
    }
}

fn rule(line: &Line) -> Result<Rule, HbaError> {
    match &line.fields {
        Ok(fields) => parse(fields, line).map_err(|kind| line.error(kind)),
        Err(kind) => Err(line.error(kind.clone())),
    }
}

fn parse(fields: &[Vec<Token>], line: &Line) -> Result<Rule, HbaErrorKind> {
    let mut fields = fields.iter().map(Vec::as_slice);
    let connection = connection(one(fields.next(), "connection type")?)?;
    let databases = all(fields.next(), "database specification", database)?;
    let users = all(fields.next(), "role specification", user)?;
    let address = if connection == Connection::Local {
        AddressMatch::All
    } else {
        address::parse(one(fields.next(), "IP address specification")?, || {
            one(fields.next(), "netmask specification")
        })?
    };
    let method = method(one(fields.next(), "authentication method")?, connection)?;
    let options = Options::parse(fields.flatten(), connection, &method).map_err(HbaErrorKind::Option)?;
    Ok(Rule {
        place: RuleOrigin::File {
            path: Arc::clone(&line.path),
            line: line.number,
        },
        connection,
        databases,
        users,
        address,
        method: match method {
            Method::Ldap(_) => Method::Ldap(Arc::new(options.ldap)),
            other => other,
        },
        map: options.map,
        client_certificate: options.client_certificate,
        client_name: options.client_name,
    })
}

/// The only value of a field.
fn one<'a>(field: Option<&'a [Token]>, what: &'static str) -> Result<&'a Token, HbaErrorKind> {
    match field {
        Some([token]) => Ok(token),
        Some([]) | None => Err(HbaErrorKind::Missing(what)),
        Some(_) => Err(HbaErrorKind::Multiple(what)),
    }
}

fn all<T>(
    field: Option<&[Token]>,
    what: &'static str,
    parse: fn(&Token) -> Result<T, HbaErrorKind>,
) -> Result<Vec<T>, HbaErrorKind> {
    field
        .ok_or(HbaErrorKind::Missing(what))?
        .iter()
        .map(parse)
        .collect()
}

/// Quotes make no difference here.
fn connection(token: &Token) -> Result<Connection, HbaErrorKind> {
    Ok(match &token.text[..] {
        b"local" => Connection::Local,
        b"host" => Connection::Host,
        b"hostssl" => Connection::HostSsl,
        b"hostnossl" => Connection::HostNoSsl,
        b"hostgssenc" => Connection::HostGssEnc,
        b"hostnogssenc" => Connection::HostNoGssEnc,
        other => return Err(HbaErrorKind::ConnectionType(shown(other))),
    })
}

fn database(token: &Token) -> Result<DatabaseMatch, HbaErrorKind> {
    for (keyword, database) in [
        (&b"all"[..], DatabaseMatch::All),
        (b"sameuser", DatabaseMatch::SameUser),
        (b"samerole", DatabaseMatch::SameRole),
        (b"samegroup", DatabaseMatch::SameGroup),
        (b"replication", DatabaseMatch::Replication),
    ] {
        if token.is_keyword(keyword) {
            return Ok(database);
        }
    }
    Ok(match pattern(&token.text)? {
        Some(pattern) => DatabaseMatch::Pattern(pattern),
        None => DatabaseMatch::Name(possible(&token.text)?),
    })
}

/// An entry of the user column, or the database user of a map.
pub(super) fn user(token: &Token) -> Result<UserMatch, HbaErrorKind> {
    if token.is_keyword(b"all") {
        return Ok(UserMatch::All);
    }
    if !token.quoted && token.text.starts_with(b"+") {
        return Ok(UserMatch::MemberOf(possible(&token.text.slice(1..))?));
    }
    Ok(match pattern(&token.text)? {
        Some(pattern) => UserMatch::Pattern(pattern),
        None => UserMatch::Name(possible(&token.text)?),
    })
}

/// No role or database has a longer name: a rule for it would have no effect.
fn possible(name: &Bytes) -> Result<Bytes, HbaErrorKind> {
    if name.len() > MAX_NAME {
        return Err(HbaErrorKind::LongName(shown(name)));
    }
    Ok(name.clone())
}

/// A regular expression, if there is a slash before it; quotes make no difference.
pub(super) fn pattern(text: &Bytes) -> Result<Option<Pattern>, HbaErrorKind> {
    let Some(source) = text.strip_prefix(b"/") else {
        return Ok(None);
    };
    Pattern::new(source)
        .map(Some)
        .map_err(|error| HbaErrorKind::Pattern {
            pattern: shown(source),
            error,
        })
}

/// Quotes make no difference here.
fn method(token: &Token, connection: Connection) -> Result<Method, HbaErrorKind> {
    Ok(match &token.text[..] {
        b"trust" => Method::Trust,
        b"reject" => Method::Reject,
        b"password" => Method::Password,
        b"md5" => Method::Md5,
        b"scram-sha-256" => Method::ScramSha256,
        b"ldap" => Method::Ldap(Arc::default()),
        b"peer" | b"ident" if connection == Connection::Local => Method::Peer,
        b"peer" => return Err(HbaErrorKind::PeerNotLocal),
        b"cert" if connection == Connection::HostSsl => Method::Cert,
        b"cert" => return Err(HbaErrorKind::CertNotSsl),
        other => {
            let unsupported = ["ident", "gss", "sspi", "pam", "bsd", "radius", "oauth"]
                .into_iter()
                .find(|known| known.as_bytes() == other);
            return Err(match unsupported {
                Some(method) => HbaErrorKind::Unsupported(method),
                None => HbaErrorKind::Method(shown(other)),
            });
        }
    })
}
