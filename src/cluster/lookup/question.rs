//! The queries about a user, and how their answers are read.

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use super::{Lookup, LookupError};
use crate::auth::lookup::{LookedUp, Standing};
use crate::auth::rules::Memberships;
use crate::backend::query::Row;

/// The query of a superuser if the default look-up function does not exist.
const SUPERUSER_QUERY: &str = "SELECT rolname, rolpassword FROM pg_catalog.pg_authid \
WHERE rolname = $1 AND rolcanlogin AND (rolvaliduntil IS NULL OR rolvaliduntil > pg_catalog.now())";
/// The function of the default query. Only that query may be replaced by the one above.
const DEFAULT_FUNCTION: &str = "trunkline.user_lookup(";

/// Limit of roles that one user may be a member of.
const MAX_ROLES: usize = 10_000;
/// The meaning of `+role` in `pg_hba.conf` (PostgreSQL's `is_member_of_role_nosuper`): memberships
/// of every kind, also those without INHERIT or SET, and no implicit memberships of superusers.
/// Every role can read the catalogs. The name is compared as text, since the type `name` would
/// truncate it. One row above the limit shows that there are more. The query does not depend on the
/// account's `search_path`.
const MEMBERSHIPS_QUERY: &str = "WITH RECURSIVE member_of(oid) AS (\
SELECT r.oid FROM pg_catalog.pg_roles AS r WHERE r.rolname::pg_catalog.text OPERATOR(pg_catalog.=) $1::pg_catalog.text \
UNION SELECT m.roleid FROM member_of AS o \
JOIN pg_catalog.pg_auth_members AS m ON m.member OPERATOR(pg_catalog.=) o.oid) \
SELECT r.rolname FROM member_of AS o JOIN pg_catalog.pg_roles AS r ON r.oid OPERATOR(pg_catalog.=) o.oid LIMIT 10001";

const STANDING_QUERY: &str = "SELECT r.rolcanlogin, \
coalesce(r.rolvaliduntil OPERATOR(pg_catalog.<=) pg_catalog.now(), false) FROM pg_catalog.pg_roles AS r \
WHERE r.rolname::pg_catalog.text OPERATOR(pg_catalog.=) $1::pg_catalog.text";

/// A kind of look-up: one statement about a user.
pub(in crate::cluster) trait Question: Send + Sync + 'static {
    /// The answer. Its default is the answer for a name that no role can have.
    type Found: Clone + Default + Send + 'static;
    /// Its name in the log.
    const WHAT: &'static str;
    /// Limit of the weights of all remembered answers.
    const CAPACITY: usize;
    const MAX_ROWS: usize;
    /// Whether the metrics count it.
    const IS_COUNTED: bool = true;

    /// The statement, with the user's name as `$1`.
    fn sql(&self) -> &str;

    /// The query of a superuser if a function or schema of `sql` does not exist.
    fn stand_in(&self) -> Option<&'static str>;

    /// How long an unconfirmed answer may be used.
    fn ttl(&self) -> Duration;

    fn read(rows: Vec<Row>, user: &[u8]) -> Result<Self::Found, LookupError>;

    /// Whether the metrics count the user as known.
    fn is_known(found: &Self::Found) -> bool;

    /// At least 1.
    fn weight(found: &Self::Found) -> usize;
}

/// The configured query (of [`crate::config::Verifiers::Query`]) for the verifier of a user.
#[derive(Debug, Clone)]
pub struct Query {
    pub sql: String,
    pub cache_ttl: Duration,
}

impl Question for Query {
    type Found = Lookup;
    const WHAT: &'static str = "a verifier";
    const CAPACITY: usize = 10_000;
    const MAX_ROWS: usize = 1;

    fn sql(&self) -> &str {
        &self.sql
    }

    fn stand_in(&self) -> Option<&'static str> {
        self.sql.contains(DEFAULT_FUNCTION).then_some(SUPERUSER_QUERY)
    }

    fn ttl(&self) -> Duration {
        self.cache_ttl
    }

    fn read(rows: Vec<Row>, user: &[u8]) -> Result<Lookup, LookupError> {
        let found = first(&rows, user)?;
        if let LookedUp::Unsupported(why) = &found {
            tracing::warn!(user = %String::from_utf8_lossy(user).escape_debug(), "a user cannot log in: {why}");
        }
        Ok(found.identity())
    }

    fn is_known(found: &Lookup) -> bool {
        found.is_some()
    }

    fn weight(_: &Lookup) -> usize {
        1
    }
}

/// The query for the roles that the user is a member of.
#[derive(Debug, Clone)]
pub(in crate::cluster) struct MembershipsQuery {
    pub(in crate::cluster) cache_ttl: Duration,
}

impl Question for MembershipsQuery {
    type Found = Arc<Memberships>;
    const WHAT: &'static str = "memberships";
    /// Names of roles and a small constant for each user: some megabytes.
    const CAPACITY: usize = 50_000;
    const MAX_ROWS: usize = MAX_ROLES + 1;

    fn sql(&self) -> &str {
        MEMBERSHIPS_QUERY
    }

    fn stand_in(&self) -> Option<&'static str> {
        None
    }

    fn ttl(&self) -> Duration {
        self.cache_ttl
    }

    fn read(rows: Vec<Row>, _: &[u8]) -> Result<Arc<Memberships>, LookupError> {
        if rows.len() > MAX_ROLES {
            return Err(LookupError::Query(format!(
                "the user is a member of more than {MAX_ROLES} roles"
            )));
        }
        let names = rows
            .into_iter()
            .filter_map(|row| row.into_iter().next().flatten());
        Ok(Arc::new(Memberships::new(names)))
    }

    fn is_known(found: &Arc<Memberships>) -> bool {
        !found.is_empty()
    }

    fn weight(found: &Arc<Memberships>) -> usize {
        4 + found.len()
    }
}

/// The query for the reason why a user has no verifier. Every role can read the catalog.
#[derive(Debug, Clone)]
pub(in crate::cluster) struct StandingQuery;

impl Question for StandingQuery {
    type Found = Standing;
    const WHAT: &'static str = "why a user cannot log in";
    const CAPACITY: usize = 0;
    const MAX_ROWS: usize = 1;
    const IS_COUNTED: bool = false;

    fn sql(&self) -> &'static str {
        STANDING_QUERY
    }

    fn stand_in(&self) -> Option<&'static str> {
        None
    }

    fn ttl(&self) -> Duration {
        Duration::ZERO
    }

    fn read(rows: Vec<Row>, _: &[u8]) -> Result<Standing, LookupError> {
        let is_true = |column: &Option<Vec<u8>>| column.as_deref() == Some(b"t");
        Ok(match rows.first().map(Vec::as_slice) {
            None => Standing::NoRole,
            Some([may_log_in, ..]) if !is_true(may_log_in) => Standing::NoLogin,
            Some([_, has_expired, ..]) if is_true(has_expired) => Standing::Expired,
            Some(_) => Standing::NoPassword,
        })
    }

    fn is_known(found: &Standing) -> bool {
        *found != Standing::NoRole
    }

    fn weight(_: &Standing) -> usize {
        1
    }
}

/// The second column of the first row, if the first column is the requested user.
fn first(rows: &[Row], user: &[u8]) -> Result<LookedUp, LookupError> {
    let Some(row) = rows.first() else {
        return Ok(LookedUp::NoPassword);
    };
    let [name, password, ..] = row.as_slice() else {
        return Err(LookupError::Query(
            "the query must return two columns, the user's name and the verifier".into(),
        ));
    };
    match name {
        // A function may return one row of NULLs for an unknown user.
        None => Ok(LookedUp::NoPassword),
        Some(name) if name == user => Ok(LookedUp::parse(password.as_deref())),
        Some(_) => Err(LookupError::Query(
            "the query returned another user than the requested one".into(),
        )),
    }
}

/// Replaces each `$1` outside of quotes and comments with the user's name. `encoding` is the
/// database's encoding. The name must not contain NUL ([`super::Lookups::ask`] checks this).
pub(super) fn bind(sql: &str, user: &[u8], encoding: Option<&[u8]>) -> String {
    let literal = value(user, encoding);
    let mut bound = String::with_capacity(sql.len() + literal.len());
    let mut rest = sql;
    while let Some(next) = rest.chars().next() {
        let length = if rest.starts_with("--") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(comment) = rest.strip_prefix("/*") {
            comment.find("*/").map_or(rest.len(), |end| end + 4)
        } else if next == '\'' || next == '"' {
            rest[1..].find(next).map_or(rest.len(), |end| end + 2)
        } else if next.is_alphanumeric() || next == '_' {
            // An identifier may contain a dollar sign, which is then no parameter.
            rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '$')
                .unwrap_or(rest.len())
        } else if rest.starts_with("$1") && !rest[2..].starts_with(|c: char| c.is_ascii_digit()) {
            bound.push_str(&literal);
            rest = &rest[2..];
            continue;
        } else {
            next.len_utf8()
        };
        let (taken, after) = rest.split_at(length);
        bound.push_str(taken);
        rest = after;
    }
    bound
}

/// A user's name as an SQL value with exactly the server's bytes. A role's name has no encoding:
/// every database of the server shows the same bytes, and the bytes of a startup packet are
/// compared with them unchanged. The server checks a non-ASCII constant against the database's
/// encoding, so a name that may not be valid in it is selected by its bytes.
fn value(user: &[u8], encoding: Option<&[u8]>) -> Cow<'static, str> {
    match str::from_utf8(user) {
        Ok(name) if name.is_ascii() || encoding == Some(b"UTF8") => literal(name),
        _ => by_bytes(user).into(),
    }
}

/// NULL if no role's name has these bytes.
fn by_bytes(user: &[u8]) -> String {
    let mut digits = String::with_capacity(2 * user.len());
    for byte in user {
        let _ = write!(digits, "{byte:02x}");
    }
    format!(
        " (SELECT n.rolname::pg_catalog.text FROM pg_catalog.pg_roles AS n \
         WHERE pg_catalog.namesend(n.rolname) OPERATOR(pg_catalog.=) pg_catalog.decode('{digits}', 'hex'))"
    )
}

/// A string constant that does not depend on `standard_conforming_strings` (PostgreSQL
/// documentation, "String Constants with C-Style Escapes").
fn literal(text: &str) -> Cow<'static, str> {
    let mut quoted = String::with_capacity(text.len() + 8);
    quoted.push_str(" E'");
    for c in text.chars() {
        match c {
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str("\\\\"),
            other => quoted.push(other),
        }
    }
    quoted.push('\'');
    quoted.into()
}

#[cfg(test)]
#[path = "question_tests.rs"]
mod tests;
