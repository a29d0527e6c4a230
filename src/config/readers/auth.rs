//! `auth`: where verifiers come from, and what failed logins lead to.

use std::time::Duration;

use super::admission::networks;
use super::server_credentials::server_credentials;
use crate::config::fields::{Field, Section};
use crate::config::model::{Auth, RateLimit, Verifiers};

pub(super) fn auth(root: &Section<'_>) -> Option<Auth> {
    let section = root.section("auth");
    let users_file = section.field("users_file");
    let query = section.field("query");
    let cache_ttl = section.field("cache_ttl");
    if let (Some(_), Some(query)) = (&users_file, &query) {
        query.error("cannot be combined with `users_file`; remove one of them");
    }
    let login_timeout = section.duration("login_timeout");
    let rate_limit = rate_limit(&section, login_timeout);
    let verifiers = if let Some(field) = users_file {
        if let Some(field) = cache_ttl {
            field.error("has no effect with `users_file`");
        }
        field
            .users_file()
            .map(|(path, contents)| Verifiers::UsersFile { path, contents })
    } else {
        let sql = match query {
            Some(field) => verifier_query(&field),
            None => Some(section.default_text("query").to_owned()),
        };
        sql.map(|sql| Verifiers::Query {
            sql,
            cache_ttl: section.duration("cache_ttl"),
        })
    };
    let hba_file = section.field("hba_file");
    let ident_file = section.field("ident_file");
    if let (None, Some(field)) = (&hba_file, &ident_file) {
        field.error("needs `hba_file`, whose rules name the maps");
    }
    let ldap_roots = section.field("ldap_ca_file").and_then(|field| field.roots());
    let server_credentials = server_credentials(&section);
    let hba_file = hba_file.and_then(|field| field.rules_file());
    let ident_file = ident_file.and_then(|field| field.rules_file());
    Some(Auth {
        verifiers: verifiers?,
        login_timeout,
        rate_limit,
        hba_file,
        ident_file,
        ldap_roots,
        server_credentials: server_credentials?.into(),
    })
}

fn rate_limit(auth: &Section<'_>, login_timeout: Duration) -> RateLimit {
    let section = auth.section("rate_limit");
    let failures = section.number("failures");
    if failures == 0 {
        for key in ["delay", "max_delay", "refuse_after", "refuse_for", "exempt"] {
            if let Some(field) = section.field(key) {
                field.error("has no effect with `failures: 0`");
            }
        }
    }
    let delay_field = section.field("delay");
    let delay = delay_field.as_ref().and_then(Field::duration);
    // An attempt that waited longer than its login may take could never begin.
    let longest = login_timeout / 2;
    let max_field = section.field("max_delay");
    let max_delay = match max_field.as_ref().and_then(Field::duration) {
        Some(max_delay) => {
            if let Some(field) = max_field.filter(|_| max_delay > longest) {
                field.error("must not be longer than half of `auth.login_timeout`");
            }
            max_delay
        }
        None => delay
            .unwrap_or_default()
            .max(section.default_duration("max_delay"))
            .min(longest),
    };
    if let Some(field) = delay_field.filter(|_| delay.is_some_and(|delay| delay > max_delay)) {
        field.error("must not be longer than `max_delay`, nor than half of `auth.login_timeout`");
    }
    let refuse_field = section.field("refuse_after");
    let mut refuse_after = section.number("refuse_after");
    match refuse_field {
        Some(field) if refuse_after < failures => field.error("must not be less than `failures`"),
        Some(_) => {}
        None => refuse_after = refuse_after.max(failures),
    }
    RateLimit {
        failures,
        delay: delay
            .unwrap_or_else(|| section.default_duration("delay"))
            .min(max_delay),
        max_delay,
        refuse_after,
        refuse_for: section.duration("refuse_for"),
        exempt: section
            .field("exempt")
            .map(|field| networks(&field))
            .unwrap_or_default()
            .into(),
    }
}

fn verifier_query(field: &Field<'_>) -> Option<String> {
    let sql = field.text()?;
    if !sql.contains("$1") {
        field.error("must contain `$1`, which stands for the user's name");
        return None;
    }
    Some(sql.to_owned())
}
