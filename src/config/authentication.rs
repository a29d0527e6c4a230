//! `auth`: where verifiers come from, and what failed logins lead to.

use std::time::Duration;

use super::access;
use super::cluster::{hours, minutes, ms, secs};
use super::model::{Auth, RateLimit, Verifiers};
use super::schema;
use super::section::{Field, Section};

/// Ships with `config/`: a `SECURITY DEFINER` function that gives a user's name and verifier.
const DEFAULT_QUERY: &str = "SELECT * FROM trunkline.user_lookup($1)";

pub(super) fn auth(root: &Section<'_>) -> Option<Auth> {
    let section = root.section("auth", &schema::AUTH);
    let users_file = section.field("users_file");
    let query = section.field("query");
    let cache_ttl = section.field("cache_ttl");
    if let (Some(_), Some(query)) = (&users_file, &query) {
        query.fault("stands beside `users_file`; remove one of them");
    }
    let ttl = cache_ttl
        .as_ref()
        .and_then(|field| field.duration(ms(0), hours(24)))
        .unwrap_or(secs(60));
    let login_timeout = section
        .field("login_timeout")
        .and_then(|field| field.duration(ms(100), minutes(10)))
        .unwrap_or(secs(60));
    let rate_limit = rate_limit(&section, login_timeout);
    let verifiers = if let Some(field) = users_file {
        if let Some(field) = cache_ttl {
            field.fault("has no effect with `users_file`");
        }
        field
            .users_file()
            .map(|(path, contents)| Verifiers::UsersFile { path, contents })
    } else {
        let sql = match query {
            Some(field) => verifier_query(&field),
            None => Some(DEFAULT_QUERY.to_owned()),
        };
        sql.map(|sql| Verifiers::Query { sql, cache_ttl: ttl })
    };
    let hba_file = section.field("hba_file");
    let ident_file = section.field("ident_file");
    if let (None, Some(field)) = (&hba_file, &ident_file) {
        field.fault("needs `hba_file` beside it, whose rules name the maps");
    }
    let ldap_roots = section.field("ldap_ca_file").and_then(|field| field.roots());
    Some(Auth {
        verifiers: verifiers?,
        login_timeout,
        rate_limit,
        hba_file: hba_file.and_then(|field| field.path()),
        ident_file: ident_file.and_then(|field| field.path()),
        ldap_roots,
        server_credentials: access::server_credentials(&section).into(),
    })
}

fn rate_limit(auth: &Section<'_>, login_timeout: Duration) -> RateLimit {
    let section = auth.section("rate_limit", &schema::RATE_LIMIT);
    let failures = section
        .field("failures")
        .and_then(|field| field.number(0, 1000))
        .unwrap_or(5);
    if failures == 0 {
        for key in ["delay", "max_delay", "refuse_after", "refuse_for"] {
            if let Some(field) = section.field(key) {
                field.fault("has no effect with `failures: 0`");
            }
        }
    }
    let delay_field = section.field("delay");
    let delay = delay_field
        .as_ref()
        .and_then(|field| field.duration(ms(0), minutes(1)));
    // An attempt that waited longer than its login may take could never begin.
    let longest = login_timeout / 2;
    let max_field = section.field("max_delay");
    let max_delay = match max_field
        .as_ref()
        .and_then(|field| field.duration(ms(1), minutes(5)))
    {
        Some(max_delay) => {
            if let Some(field) = max_field.filter(|_| max_delay > longest) {
                field.fault("must not be longer than half of `auth.login_timeout`");
            }
            max_delay
        }
        None => delay.unwrap_or_default().max(secs(8)).min(longest),
    };
    if let Some(field) = delay_field.filter(|_| delay.is_some_and(|delay| delay > max_delay)) {
        field.fault("must not be longer than `max_delay`, nor than half of `auth.login_timeout`");
    }
    let refuse_field = section.field("refuse_after");
    let refuse_after = refuse_field.as_ref().and_then(|field| field.number(1, 10_000));
    if let Some(field) = refuse_field.filter(|_| refuse_after.is_some_and(|after| after < failures)) {
        field.fault("must not be less than `failures`");
    }
    RateLimit {
        failures,
        delay: delay.unwrap_or(ms(250)).min(max_delay),
        max_delay,
        refuse_after: refuse_after.unwrap_or(failures.max(20)),
        refuse_for: section
            .field("refuse_for")
            .and_then(|field| field.duration(secs(1), hours(24)))
            .unwrap_or(minutes(1)),
    }
}

fn verifier_query(field: &Field<'_>) -> Option<String> {
    let sql = field.text()?;
    if !sql.contains("$1") {
        field.fault("must contain `$1`, which stands for the user's name");
        return None;
    }
    Some(sql.to_owned())
}
